/*
 * Shared by the certificate rooms of the OpenSSL engine, and by nobody
 * else: cert_openssl.c (objects, names, errors), info_openssl.c (what they
 * say), store_openssl.c and import_openssl.c (sets of them and how they are
 * read), system_openssl.c (the system's sets), verify_openssl.c,
 * revoke_openssl.c and path_openssl.c (whether to believe them). The slots
 * of the provider table that they fill are in openssl_internal.h, and
 * library_openssl.c, which a context's rooms use as well: what a peer's
 * certificates are parsed in.
 *
 * Functions that return bool: false means out of memory.
 */
#ifndef TW_SSPI_CERT_OPENSSL_H
#define TW_SSPI_CERT_OPENSSL_H

#include <time.h>

#include <openssl/bio.h>
#include <openssl/x509.h>

#include "sspi/openssl_internal.h"

#define TW_KEYS_MAX 32                /* private keys of one import */
#define TW_DEPTH_MAX 128              /* OpenSSL's own limit is 100 */
#define TW_CRL_MAX ((size_t)16 << 20) /* bytes of one CRL, or OCSP answer */
#define TW_SECURITY_LEVEL 2           /* 112 bits, when all else fails */
#define TW_IMPORT_MAX ((size_t)64 << 20) /* bytes of one import */

/* First line of our serialized form; PEM readers skip it. */
#define TW_SERIALIZED_HEAD "twapi_tls certificate store\n"

/* --- cert_openssl.c --- */

/* Drains the error queue; returns TW_E_NOMEM. */
enum tw_status tw_openssl_no_memory(struct tw_error *err);

/* As the slot cert_matches. */
bool tw_openssl_x509_matches(X509 *, const char *host, bool cn);

/* --- info_openssl.c --- */

/* A memory BIO with "CN=a, O=b, C=c"; NULL when out of memory. */
BIO *tw_openssl_name_text(const X509_NAME *);

/* Copies src into dst[0..room), cut where a UTF-8 sequence begins, at a
   zero at the latest; always terminated. */
void tw_openssl_copy_text(char *dst, size_t room, const char *src,
                          size_t len);

/* Every URI of the cRLDistributionPoints to visit; false stops. */
void tw_openssl_each_crl_url(X509 *,
                             bool (*visit)(void *arg, const ASN1_STRING *),
                             void *arg);

/* --- import_openssl.c --- */

/* What one import holds, before it is merged into a store. */
struct tw_bundle {
    STACK_OF(X509) *certs;    /* owned */
    STACK_OF(X509_CRL) *crls; /* owned */
    EVP_PKEY *keys[TW_KEYS_MAX]; /* owned */
    int key_count;            /* of them */
};

bool tw_bundle_init(struct tw_bundle *);
void tw_bundle_fini(struct tw_bundle *);

/* Reads data into the bundle, which on failure holds a part of it. The
   store's slot store_import has the contract of the rest. */
enum tw_status tw_bundle_parse(struct tw_bundle *, enum tw_encoding,
                               const uint8_t *data, size_t len,
                               const char *password, struct tw_error *err);

/* pem_password_cb: answers arg, a string, or nothing when it is NULL;
   never the terminal. */
int tw_openssl_password(char *buf, int size, int writing, void *arg);

/* --- store_openssl.c --- */

/* A store of cert (may be NULL) and then of chain (may be NULL). */
enum tw_status tw_openssl_store_of(struct tw_cert *cert,
                                   STACK_OF(X509) *chain,
                                   struct tw_store **out,
                                   struct tw_error *err);

/* Is this the private key of that certificate? */
bool tw_openssl_key_fits(X509 *, EVP_PKEY *);

/* Adds all of the bundle, or nothing. Takes a key out of it when that has
   to wait for its certificate. */
enum tw_status tw_openssl_store_merge(struct tw_store *, struct tw_bundle *,
                                      struct tw_error *err);

/* The public parts as new references, appended; each of certs and crls may
   be NULL, the store as well. */
bool tw_openssl_store_snapshot(struct tw_store *, STACK_OF(X509) *certs,
                               STACK_OF(X509_CRL) *crls);

/* The number of what the store holds at present, 0 for NULL: no other store
   has it, nor this one once something was added. */
uint64_t tw_openssl_store_edition(struct tw_store *);

/* --- system_openssl.c --- */

/* The system's roots as new references: as a store, as a list; and their
   edition. Each may be NULL. */
bool tw_openssl_system_roots(X509_STORE **trust, STACK_OF(X509) **certs,
                             uint64_t *edition);

bool tw_openssl_trust_all(X509_STORE *trust, STACK_OF(X509) *certs);

/* --- verify_openssl.c, revoke_openssl.c and path_openssl.c --- */

/* Which class of trouble an X509_V_ERR_... is: decides the code, what
   ignores it, and which of two is the one to report (the lower). */
enum tw_trouble {
    TW_TROUBLE_SIGNATURE,
    TW_TROUBLE_REVOKED,
    TW_TROUBLE_ROOT,
    TW_TROUBLE_CHAINING,
    TW_TROUBLE_CONSTRAINTS,
    TW_TROUBLE_CRITICAL,
    TW_TROUBLE_NAME_SPACE,
    TW_TROUBLE_POLICY,
    TW_TROUBLE_OTHER,
    TW_TROUBLE_TIME,
    TW_TROUBLE_USAGE,
    TW_TROUBLE_NAME,
    TW_TROUBLE_UNCHECKED, /* revocation: nothing to go by */
    TW_TROUBLE_OFFLINE,   /* revocation: what there is is stale */
    TW_TROUBLE_NONE
};

/* One verification. */
struct tw_trial {
    const struct tw_verify_config *config;
    time_t now;               /* when the question is asked */
    X509 *leaf;               /* borrowed */
    X509_STORE *trust;        /* owned: the anchors; NULL if the path was
                                 remembered */
    uint64_t anchors[2];      /* their editions: roots, more roots */
    STACK_OF(X509) *extra;    /* owned: what may stand between */
    STACK_OF(X509_CRL) *crls; /* owned */
    STACK_OF(X509) *path;     /* owned: what was built */
    uint32_t ignore;          /* TW_IGNORE_... */
    bool revocation;          /* is to be looked at */
    bool broken;              /* the path ends in the open */
    const X509_CRL *bad_crl;  /* not to be believed; borrowed */
    enum tw_trouble worst;    /* so far */
    int depth;                /* of it */
    char detail[256];         /* of it */
    /* By depth: TW_TROUBLE_UNCHECKED, TW_TROUBLE_OFFLINE or 0. */
    unsigned char open[TW_DEPTH_MAX];
};

/* What keys, digests and signatures are strong enough: the level that
   openssl.cnf gives to TLS, or OpenSSL's own default. */
int tw_openssl_security_level(void);

/* Notes a trouble at this depth, unless it is to be ignored or a worse one
   is known; x509, the certificate it is about, may be NULL. */
void tw_trial_note(struct tw_trial *, enum tw_trouble, int depth,
                   const char *text, const X509 *x509);

/* Lets the stapled answer speak about the leaf of a built path. */
void tw_trial_check_stapled(struct tw_trial *);

/* CRLs for every certificate whose revocation is open; true if there are
   new ones. */
bool tw_trial_fetch_crls(struct tw_trial *);

/* A number that was never given out before; not 0. */
uint64_t tw_openssl_new_edition(void);

/* The path, if the same question had a good one before; needs leaf, extra
   and anchors. */
bool tw_trial_recall(struct tw_trial *);

/* Keeps a path that was built, if it is good. */
void tw_trial_remember(const struct tw_trial *);

#endif
