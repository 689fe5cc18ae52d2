/*
 * What the fuzz targets share: a source of decisions drawn from the input,
 * what must hold of a session's errors, and a certificate made on the spot.
 * A target is one function, LLVMFuzzerTestOneInput; scripts/fuzz links it
 * with libFuzzer, or with fuzz_replay.c, which runs files through it.
 */
#ifndef TW_TESTS_FUZZ_H
#define TW_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>
#include <openssl/x509.h>

#include "core/session.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* What must hold; a crash is how a fuzz target fails. */
#define HOLDS(x)                                                           \
    do {                                                                   \
        if (!(x)) {                                                        \
            (void)fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);  \
            abort();                                                       \
        }                                                                  \
    } while (0)

struct source {
    const uint8_t *data;
    size_t len;
};

/* The next byte; 0 once the input is used up. */
static inline uint8_t source_byte(struct source *s)
{
    if (s->len == 0) {
        return 0;
    }
    s->len--;
    return *s->data++;
}

static inline size_t source_size(struct source *s, size_t below)
{
    size_t value = source_byte(s);

    value = value << 8 | source_byte(s);
    return below == 0 ? 0 : value % below;
}

/* What a call on a session came to: the first error stays. */
static inline void note_status(struct tw_session *s, enum tw_status *failed,
                               enum tw_status st)
{
    if (st >= 0 || st == TW_E_STATE || st == TW_E_CLOSED) {
        return;
    }
    if (*failed != TW_DONE) {
        HOLDS(st == *failed);
    }
    *failed = st;
    HOLDS(tw_session_state(s) == TW_FAILED);
}

static inline EVP_PKEY *make_key(void)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");

    HOLDS(key != NULL);
    return key;
}

/* Self-signed, for `name`, valid now. */
static inline X509 *make_x509(EVP_PKEY *key, const char *name)
{
    X509 *x = X509_new();
    X509_NAME *subject = X509_get_subject_name(x);

    HOLDS(ASN1_INTEGER_set(X509_get_serialNumber(x), 1) == 1);
    HOLDS(X509_gmtime_adj(X509_getm_notBefore(x), -3600) != NULL);
    HOLDS(X509_gmtime_adj(X509_getm_notAfter(x), 86400) != NULL);
    HOLDS(X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                                     (const unsigned char *)name, -1, -1,
                                     0) == 1);
    HOLDS(X509_set_issuer_name(x, subject) == 1);
    HOLDS(X509_set_version(x, X509_VERSION_3) == 1);
    HOLDS(X509_set_pubkey(x, key) == 1);
    HOLDS(X509_sign(x, key, EVP_sha256()) > 0);
    return x;
}

#endif
