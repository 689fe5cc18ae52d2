/*
 * What the C unit programs share: a check that ends the program, and a
 * certificate made on the spot. scripts/native-tests links support.c to each.
 */
#ifndef TW_TESTS_SUPPORT_H
#define TW_TESTS_SUPPORT_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(x)                                                      \
    do {                                                              \
        if (!(x)) {                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);   \
            exit(1);                                                  \
        }                                                             \
    } while (0)

struct tw_cert;

/* Self-signed, with its key (P-256), for `name`, valid today; the caller's
   to free (provider's cert_free). */
struct tw_cert *make_cert(const char *name);

#endif
