/*
 * Shared by the two halves of the Windows engine, and by nobody else:
 * provider_schannel.c (credentials, contexts; holds the provider table)
 * and cert_crypt32.c (certificates, stores, keys, chains).
 */
#ifndef TW_SSPI_SCHANNEL_INTERNAL_H
#define TW_SSPI_SCHANNEL_INTERNAL_H

#include "core/atomic.h"
#include "core/lock.h"
#include "sspi/provider.h"

#include <ncrypt.h>

/*
 * A private key that was imported, in a container of our own: named by a
 * GUID, deleted with the last certificate that uses it. Keys of system
 * stores have none of these: they stay where they are.
 */
struct tw_key {
    struct tw_count refs;
    bool cng;            /* NCrypt; else CAPI */
    bool machine;        /* in the machine's key set */
    DWORD provider_type; /* CAPI: PROV_...; 0 with CNG */
    DWORD spec;          /* CAPI: AT_KEYEXCHANGE; 0 with CNG */
    const WCHAR *provider;
    WCHAR name[40];      /* a GUID with its braces */
    CERT_PUBLIC_KEY_INFO *public_info; /* owned; which certificate it fits */
};

struct tw_cert {
    struct tw_count refs;
    PCCERT_CONTEXT ctx; /* owned; immutable */
    struct tw_key *key; /* counted; NULL: none, or one of the system's */
    HCERTSTORE chain;   /* owned; what came with it; NULL if nothing did */
};

struct tw_store {
    struct tw_count refs;
    struct tw_lock lock;    /* around all below */
    struct tw_cert **certs; /* owned references, in order of adding */
    size_t count, room;
    HCERTSTORE crls;        /* owned; CRLs only; NULL if none */
    HCERTSTORE system;      /* owned; the system store it mirrors, or NULL */
    struct tw_key *orphan;  /* counted; imported before its certificate */
};

#define TW_ENCODING (X509_ASN_ENCODING | PKCS_7_ASN_ENCODING)

/* cert_crypt32.c */

/* Takes over ctx, also when it fails (NULL: out of memory); key may be
   NULL and is counted; chain may be NULL and is duplicated. */
struct tw_cert *tw_crypt32_cert_new(PCCERT_CONTEXT ctx, struct tw_key *key,
                                    HCERTSTORE chain);
/* A new context of the same bytes, with the key attached; owned by the
   caller; NULL on failure. */
struct tw_cert *tw_crypt32_cert_with_key(PCCERT_CONTEXT ctx,
                                         struct tw_key *key,
                                         HCERTSTORE pool);
/* A GetLastError, HRESULT or SECURITY_STATUS: what was being done, then
   the system's own sentence. */
enum tw_status tw_crypt32_fail(struct tw_error *err, enum tw_status status,
                               DWORD system, const char *what);
enum tw_status tw_crypt32_nomem(struct tw_error *err);
/* UTF-8 to UTF-16 and back, NUL-terminated, free(); NULL: no memory or
   malformed. */
WCHAR *tw_crypt32_widen(const char *text);
char *tw_crypt32_narrow(const WCHAR *text);
/* crypt32's decoder; LocalFree; NULL if the bytes are not of the type. */
void *tw_crypt32_decode(LPCSTR type, const BYTE *data, DWORD len);
HCERTSTORE tw_crypt32_memory_store(void);
/* Adds a certificate by its bytes, so without key or property; true as well
   if it is there already: looked for first, as adding it again leaks on
   Wine whatever the disposition. */
bool tw_crypt32_put(HCERTSTORE into, PCCERT_CONTEXT cert);
bool tw_crypt32_same(PCCERT_CONTEXT a, PCCERT_CONTEXT b);

/* key_crypt32.c */

/* pkcs8: DER, PrivateKeyInfo or EncryptedPrivateKeyInfo (then with its
   password); the key moves into a container of its own. */
enum tw_status tw_crypt32_key_import(const uint8_t *pkcs8, size_t len,
                                     const char *password,
                                     struct tw_key **out,
                                     struct tw_error *err);
/* The same of RSAPrivateKey (PKCS #1) or ECPrivateKey (RFC 5915). */
enum tw_status tw_crypt32_key_import_bare(bool rsa, const uint8_t *der,
                                          size_t len, struct tw_key **out,
                                          struct tw_error *err);
/* The same of what PFXImportCertStore attached to a certificate. *out NULL
   and TW_DONE: it has none. */
enum tw_status tw_crypt32_key_adopt(PCCERT_CONTEXT cert,
                                    struct tw_key **out,
                                    struct tw_error *err);
struct tw_key *tw_crypt32_key_ref(struct tw_key *); /* NULL is passed on */
void tw_crypt32_key_free(struct tw_key *);
bool tw_crypt32_key_fits(const struct tw_key *, PCCERT_CONTEXT);
bool tw_crypt32_key_attach(const struct tw_key *, PCCERT_CONTEXT);
/* Why the certificate's private key cannot be used: a code whose sentence
   names the remedy, or 0 if it can. Never shows a window. */
int32_t tw_crypt32_key_trouble(struct tw_cert *cert);

/* pbes2_crypt32.c */

/* Opens an EncryptedPrivateKeyInfo; password: UTF-8. *plain: to be wiped
   and freed. TW_E_PASSWORD; TW_E_UNSUPPORTED: of another kind; TW_E_NOMEM. */
enum tw_status tw_crypt32_open_pbes2(const uint8_t *der, size_t len,
                                     const char *password, uint8_t **plain,
                                     size_t *plain_len);

/* store_crypt32.c */

/* Puts the intermediates that came with cert, and those of more (may be
   NULL), into the user's CA store, so that Schannel finds and sends
   them. They stay there. */
enum tw_status tw_crypt32_install_chain(struct tw_cert *cert,
                                        struct tw_store *more,
                                        struct tw_error *err);
/* Adds certificates, encoded only, and CRLs to a memory store. */
bool tw_crypt32_store_pour(struct tw_store *from, HCERTSTORE into);

/* The certificate slots of struct tw_provider, in its order. */
struct tw_cert *tw_crypt32_cert_ref(struct tw_cert *);
void tw_crypt32_cert_free(struct tw_cert *);
void tw_crypt32_cert_der(struct tw_cert *, const uint8_t **, size_t *);
enum tw_status tw_crypt32_cert_chain(struct tw_cert *, struct tw_store **,
                                     struct tw_error *);
bool tw_crypt32_cert_has_key(struct tw_cert *);
enum tw_status tw_crypt32_cert_text(struct tw_cert *, enum tw_name, tw_sink,
                                    void *, struct tw_error *);
enum tw_status tw_crypt32_cert_info(struct tw_cert *, tw_sink, void *,
                                    struct tw_error *);
void tw_crypt32_cert_digest(struct tw_cert *, int, uint8_t *);
enum tw_status tw_crypt32_cert_verify(struct tw_cert *,
                                      const struct tw_verify_config *,
                                      struct tw_verdict *,
                                      struct tw_error *);
bool tw_crypt32_cert_matches(struct tw_cert *, const char *, bool);
enum tw_status tw_crypt32_store_new(struct tw_store **, struct tw_error *);
enum tw_status tw_crypt32_store_open(const char *, const char *,
                                     struct tw_store **, struct tw_error *);
enum tw_status tw_crypt32_store_import(struct tw_store *, enum tw_encoding,
                                       const uint8_t *, size_t,
                                       const char *, struct tw_error *);
enum tw_status tw_crypt32_store_add(struct tw_store *, struct tw_cert *,
                                    struct tw_error *);
struct tw_store *tw_crypt32_store_ref(struct tw_store *);
void tw_crypt32_store_free(struct tw_store *);
size_t tw_crypt32_store_count(struct tw_store *);
struct tw_cert *tw_crypt32_store_get(struct tw_store *, size_t);
enum tw_status tw_crypt32_store_export(struct tw_store *, enum tw_encoding,
                                       tw_sink, void *, struct tw_error *);

#endif
