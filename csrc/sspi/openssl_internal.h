/*
 * Shared by the two halves of the OpenSSL engine, and by nobody else: the
 * rooms around a context, whose map is context_openssl.h (provider_openssl.c
 * among them, which holds the provider table), and the certificate rooms,
 * whose map is cert_openssl.h.
 */
#ifndef TW_SSPI_OPENSSL_INTERNAL_H
#define TW_SSPI_OPENSSL_INTERNAL_H

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include "core/atomic.h"
#include "core/lock.h"
#include "sspi/provider.h"

struct tw_cert {
    struct tw_count refs;
    X509 *x509;             /* owned */
    EVP_PKEY *key;          /* owned; NULL without a private key */
    STACK_OF(X509) *chain;  /* owned; what came with it, leaf first when
                               sent by a peer; NULL if nothing did */
    uint8_t *der;           /* owned; encoded once at creation */
    size_t der_len;
};

struct tw_store {
    struct tw_count refs;
    struct tw_lock lock;         /* around all below */
    uint64_t edition;            /* of certs; 0: nobody asked yet */
    struct tw_cert **certs;      /* owned references, in order of adding */
    size_t count, room;
    STACK_OF(X509_CRL) *crls;    /* owned; NULL if none */
    EVP_PKEY *orphan;            /* a key imported before its certificate */
};

/* Takes its own references to all three (key and chain may be NULL); NULL
   when out of memory. */
struct tw_cert *tw_openssl_cert_new(X509 *, EVP_PKEY *key,
                                    STACK_OF(X509) *chain);

/* The library context for the SSL_CTX of a client that meets no private key:
   NULL, the default one, or one that reads certificates faster. */
OSSL_LIB_CTX *tw_openssl_reading_library(void);

/* What an SSL object of that library derives on this thread from now on:
   the label of RFC 8446, 7.1, and the secret. hearer NULL: no more. */
typedef void tw_hearer(void *arg, const char *label, size_t label_len,
                       const uint8_t *secret, size_t len);
void tw_openssl_listen(tw_hearer *hearer, void *arg);

/* The certificate that a peer sent, with chain (may be NULL), both as parsed
   in either library context; NULL when out of memory. */
struct tw_cert *tw_openssl_peer_new(X509 *, STACK_OF(X509) *chain);

/* Drains OpenSSL's error queue into *err: its reason as the detail. */
enum tw_status tw_openssl_fail(struct tw_error *err, enum tw_status status,
                               int32_t code, const char *what);

/* X509_V_ERR_... to the CERT_E_/CRYPT_E_/TRUST_E_ code. */
int32_t tw_openssl_verify_code(int x509_error);

/* The certificate slots of struct tw_provider, in its order. */
struct tw_cert *tw_openssl_cert_ref(struct tw_cert *);
void tw_openssl_cert_free(struct tw_cert *);
void tw_openssl_cert_der(struct tw_cert *, const uint8_t **, size_t *);
enum tw_status tw_openssl_cert_chain(struct tw_cert *, struct tw_store **,
                                     struct tw_error *);
bool tw_openssl_cert_has_key(struct tw_cert *);
enum tw_status tw_openssl_cert_text(struct tw_cert *, enum tw_name, tw_sink,
                                    void *, struct tw_error *);
enum tw_status tw_openssl_cert_info(struct tw_cert *, tw_sink, void *,
                                    struct tw_error *);
void tw_openssl_cert_digest(struct tw_cert *, int, uint8_t *);
enum tw_status tw_openssl_cert_verify(struct tw_cert *,
                                      const struct tw_verify_config *,
                                      struct tw_verdict *,
                                      struct tw_error *);
bool tw_openssl_cert_matches(struct tw_cert *, const char *, bool);
enum tw_status tw_openssl_store_new(struct tw_store **, struct tw_error *);
enum tw_status tw_openssl_store_open(const char *, const char *,
                                     struct tw_store **, struct tw_error *);
enum tw_status tw_openssl_store_import(struct tw_store *, enum tw_encoding,
                                       const uint8_t *, size_t,
                                       const char *, struct tw_error *);
enum tw_status tw_openssl_store_add(struct tw_store *, struct tw_cert *,
                                    struct tw_error *);
struct tw_store *tw_openssl_store_ref(struct tw_store *);
void tw_openssl_store_free(struct tw_store *);
size_t tw_openssl_store_count(struct tw_store *);
struct tw_cert *tw_openssl_store_get(struct tw_store *, size_t);
enum tw_status tw_openssl_store_export(struct tw_store *, enum tw_encoding,
                                       tw_sink, void *, struct tw_error *);

#endif
