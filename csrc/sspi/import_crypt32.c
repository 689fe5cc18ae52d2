/*
 * Import: PEM, DER, PFX, PKCS #7 and crypt32's own serialized form.
 *
 * All is parsed into a bundle first, keys moved into containers of their
 * own, then married to certificates and merged under the store's lock: an
 * import happens as a whole or not at all, and what fails leaves no
 * container behind (tw_crypt32_key_free deletes it).
 *
 * PEM's armour is ours to strip (RFC 7468); what is inside is crypt32's to
 * decode.
 */
#include "sspi/schannel_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT_MAX ((size_t)64 << 20) /* bytes of one import */
#define KEYS_MAX 32                   /* private keys of one import */

struct bundle {
    HCERTSTORE pool;       /* all certificates and CRLs; owned */
    PCCERT_CONTEXT *certs; /* in their order; owned */
    size_t count, room;
    struct tw_key *keys[KEYS_MAX]; /* counted */
    size_t key_count;
};

static void bundle_fini(struct bundle *b)
{
    size_t i;

    for (i = 0; i < b->count; i++) {
        (void)CertFreeCertificateContext(b->certs[i]);
    }
    free(b->certs);
    for (i = 0; i < b->key_count; i++) {
        tw_crypt32_key_free(b->keys[i]);
    }
    if (b->pool != NULL) {
        (void)CertCloseStore(b->pool, 0);
    }
}

static enum tw_status not_a(struct tw_error *err, const char *what)
{
    return tw_error_set(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG, "not %s",
                        what);
}

/* Takes over cert, also when it fails. */
static enum tw_status bundle_context(struct bundle *b, PCCERT_CONTEXT cert,
                                     struct tw_error *err)
{
    if (b->count == b->room) {
        size_t room = b->room != 0 ? 2 * b->room : 8;
        PCCERT_CONTEXT *certs = realloc(b->certs, room * sizeof(*certs));

        if (certs == NULL) {
            (void)CertFreeCertificateContext(cert);
            return tw_crypt32_nomem(err);
        }
        b->certs = certs;
        b->room = room;
    }
    b->certs[b->count++] = cert;
    if (!tw_crypt32_put(b->pool, cert)) {
        return tw_crypt32_fail(err, TW_E_FORMAT, GetLastError(),
                               "keeping a certificate");
    }
    return TW_DONE;
}

static enum tw_status bundle_cert(struct bundle *b, const uint8_t *der,
                                  size_t len, struct tw_error *err)
{
    PCCERT_CONTEXT cert =
        CertCreateCertificateContext(X509_ASN_ENCODING, der, (DWORD)len);

    return cert == NULL ? not_a(err, "a certificate")
                        : bundle_context(b, cert, err);
}

static enum tw_status bundle_crl(struct bundle *b, const uint8_t *der,
                                 size_t len, struct tw_error *err)
{
    return CertAddEncodedCRLToStore(b->pool, X509_ASN_ENCODING, der,
                                    (DWORD)len, CERT_STORE_ADD_USE_EXISTING,
                                    NULL)
               ? TW_DONE
               : not_a(err, "a certificate revocation list");
}

static enum tw_status bundle_key(struct bundle *b, struct tw_key *key,
                                 struct tw_error *err)
{
    if (b->key_count == KEYS_MAX) {
        tw_crypt32_key_free(key);
        return tw_error_set(err, TW_E_ARGUMENT, 0,
                            "more than %d private keys at once", KEYS_MAX);
    }
    b->keys[b->key_count++] = key;
    return TW_DONE;
}

/* Everything of a crypt32 store, keys left out. */
static enum tw_status bundle_store(struct bundle *b, HCERTSTORE from,
                                   struct tw_error *err)
{
    PCCERT_CONTEXT cert = NULL;
    PCCRL_CONTEXT crl = NULL;
    enum tw_status st = TW_DONE;

    while (st == TW_DONE
           && (cert = CertEnumCertificatesInStore(from, cert)) != NULL) {
        st = bundle_cert(b, cert->pbCertEncoded, cert->cbCertEncoded, err);
    }
    if (st != TW_DONE && cert != NULL) {
        (void)CertFreeCertificateContext(cert);
    }
    while (st == TW_DONE && (crl = CertEnumCRLsInStore(from, crl)) != NULL) {
        st = bundle_crl(b, crl->pbCrlEncoded, crl->cbCrlEncoded, err);
    }
    if (st != TW_DONE && crl != NULL) {
        (void)CertFreeCRLContext(crl);
    }
    return st;
}

static enum tw_status parse_stored(struct bundle *b, LPCSTR provider,
                                   const uint8_t *data, size_t len,
                                   const char *what, struct tw_error *err)
{
    CRYPT_DATA_BLOB blob = {(DWORD)len, (BYTE *)(uintptr_t)data};
    HCERTSTORE store = len > 0 ? CertOpenStore(provider, TW_ENCODING, 0, 0,
                                               &blob)
                               : NULL;
    enum tw_status st;

    if (store == NULL) {
        return not_a(err, what);
    }
    st = bundle_store(b, store, err);
    (void)CertCloseStore(store, 0);
    return st;
}

/* --- PFX --- */

/* Leaves before their issuers, whatever order crypt32 kept: the first
   certificate of a PFX is whose key it holds. */
static void keys_first(struct bundle *b)
{
    size_t front = 0;
    size_t i;
    size_t k;

    for (i = 0; i < b->count; i++) {
        PCCERT_CONTEXT cert = b->certs[i];

        for (k = 0; k < b->key_count; k++) {
            if (tw_crypt32_key_fits(b->keys[k], cert)) {
                memmove(b->certs + front + 1, b->certs + front,
                        (i - front) * sizeof(*b->certs));
                b->certs[front++] = cert;
                break;
            }
        }
    }
}

/* The keys of an imported PFX, each into a container of its own. */
static enum tw_status adopt_keys(struct bundle *b, HCERTSTORE from,
                                 struct tw_error *err)
{
    PCCERT_CONTEXT cert = NULL;
    enum tw_status st = TW_DONE;

    while (st == TW_DONE
           && (cert = CertEnumCertificatesInStore(from, cert)) != NULL) {
        struct tw_key *key = NULL;

        st = tw_crypt32_key_adopt(cert, &key, err);
        if (st == TW_DONE && key != NULL) {
            st = bundle_key(b, key, err);
        }
    }
    if (st != TW_DONE && cert != NULL) {
        (void)CertFreeCertificateContext(cert);
    }
    return st;
}

/*
 * Keys in memory only, so that the import writes no container whose name
 * we do not choose. CNG first: CAPI holds no keys of elliptic curves.
 */
static HCERTSTORE open_pfx(CRYPT_DATA_BLOB *blob, const WCHAR *secret)
{
    HCERTSTORE store = PFXImportCertStore(
        blob, secret,
        PKCS12_NO_PERSIST_KEY | PKCS12_ALWAYS_CNG_KSP | CRYPT_EXPORTABLE);

    if (store == NULL && GetLastError() != ERROR_INVALID_PASSWORD) {
        store = PFXImportCertStore(blob, secret,
                                   PKCS12_NO_PERSIST_KEY | CRYPT_EXPORTABLE);
    }
    return store;
}

static enum tw_status parse_pfx(struct bundle *b, const uint8_t *data,
                                size_t len, const char *password,
                                struct tw_error *err)
{
    CRYPT_DATA_BLOB blob = {(DWORD)len, (BYTE *)(uintptr_t)data};
    CRYPT_SEQUENCE_OF_ANY *parts = tw_crypt32_decode(X509_SEQUENCE_OF_ANY,
                                                     data, (DWORD)len);
    WCHAR *secret = NULL;
    HCERTSTORE store;
    enum tw_status st;

    if (parts == NULL || parts->cValue < 2) {
        if (parts != NULL) {
            (void)LocalFree(parts);
        }
        return not_a(err, "PKCS #12 (PFX)");
    }
    (void)LocalFree(parts);
    if (password != NULL && (secret = tw_crypt32_widen(password)) == NULL) {
        return tw_crypt32_nomem(err);
    }
    store = open_pfx(&blob, secret);
    if (store == NULL && password == NULL) {
        store = open_pfx(&blob, L""); /* "no password" comes in two forms */
    }
    if (store == NULL) {
        st = tw_error_set(err, TW_E_PASSWORD, (int32_t)GetLastError(),
                          "the PKCS #12 file%s",
                          password != NULL
                              ? ": the password is wrong"
                              : " is encrypted: a password is needed");
    } else {
        st = bundle_store(b, store, err);
        if (st == TW_DONE) {
            st = adopt_keys(b, store, err);
            keys_first(b);
        }
        (void)CertCloseStore(store, 0);
    }
    if (secret != NULL) {
        SecureZeroMemory(secret, wcslen(secret) * sizeof(*secret));
        free(secret);
    }
    return st;
}

/* --- PEM --- */

/* The next "-----<word> LABEL-----" at or after *at; label is copied. */
static const char *find_fence(const char *at, const char *end,
                              const char *word, char *label, size_t room,
                              const char **after)
{
    size_t n = strlen(word);

    for (; at + n + 10 <= end; at++) {
        const char *from;
        const char *to;

        if (*at != '-' || memcmp(at, "-----", 5) != 0
            || memcmp(at + 5, word, n) != 0) {
            continue;
        }
        from = to = at + 5 + n;
        while (to + 5 <= end && memcmp(to, "-----", 5) != 0 && *to != '\n'
               && *to != '\r') {
            to++;
        }
        if (to + 5 > end || memcmp(to, "-----", 5) != 0
            || (size_t)(to - from) >= room) {
            continue;
        }
        memcpy(label, from, (size_t)(to - from));
        label[to - from] = '\0';
        *after = to + 5;
        return at;
    }
    return NULL;
}

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s);
    size_t m = strlen(tail);

    return n >= m && strcmp(s + n - m, tail) == 0;
}

static enum tw_status parse_key(struct bundle *b, const char *label,
                                const uint8_t *der, size_t len,
                                const char *password, struct tw_error *err)
{
    struct tw_key *key = NULL;
    enum tw_status st;

    if (strcmp(label, "RSA PRIVATE KEY") == 0) {
        st = tw_crypt32_key_import_bare(true, der, len, &key, err);
    } else if (strcmp(label, "EC PRIVATE KEY") == 0) {
        st = tw_crypt32_key_import_bare(false, der, len, &key, err);
    } else {
        st = tw_crypt32_key_import(der, len, password, &key, err);
    }
    return st == TW_DONE ? bundle_key(b, key, err) : st;
}

/* One block's content; *known: it was of a kind that counts. */
static enum tw_status parse_block(struct bundle *b, const char *label,
                                  const uint8_t *der, size_t len,
                                  const char *password, bool *known,
                                  struct tw_error *err)
{
    *known = true;
    if (strcmp(label, "CERTIFICATE") == 0
        || strcmp(label, "X509 CERTIFICATE") == 0
        || strcmp(label, "TRUSTED CERTIFICATE") == 0) {
        return bundle_cert(b, der, len, err);
    }
    if (strcmp(label, "X509 CRL") == 0) {
        return bundle_crl(b, der, len, err);
    }
    if (strcmp(label, "PKCS7") == 0
        || strcmp(label, "PKCS #7 SIGNED DATA") == 0
        || strcmp(label, "CMS") == 0) {
        return parse_stored(b, CERT_STORE_PROV_PKCS7, der, len, "PKCS #7",
                            err);
    }
    if (ends_with(label, "PRIVATE KEY")) {
        return parse_key(b, label, der, len, password, err);
    }
    *known = false; /* parameters, requests, public keys: not for us */
    return TW_DONE;
}

/* Base64 between the fences, RFC 1421 headers refused: Windows has nothing
   that opens keys encrypted so. */
static enum tw_status decode_block(const char *from, const char *to,
                                   bool given, uint8_t **out, DWORD *len,
                                   struct tw_error *err)
{
    const char *colon = memchr(from, ':', (size_t)(to - from));

    *out = NULL;
    *len = 0;
    if (colon != NULL && !given) {
        return tw_error_set(err, TW_E_PASSWORD, 0, "%s",
                            "the private key is encrypted: a password is "
                            "needed");
    }
    if (colon != NULL) {
        return tw_error_set(err, TW_E_UNSUPPORTED, 0,
                            "the private key is encrypted as in old PEM "
                            "files (Proc-Type), which Windows does not "
                            "open; convert it to PKCS #12 (PFX)");
    }
    if (to > from
        && CryptStringToBinaryA(from, (DWORD)(to - from),
                                CRYPT_STRING_BASE64, NULL, len, NULL, NULL)
        && *len > 0) {
        *out = malloc(*len);
        if (*out == NULL) {
            return tw_crypt32_nomem(err);
        }
        if (CryptStringToBinaryA(from, (DWORD)(to - from),
                                 CRYPT_STRING_BASE64, *out, len, NULL,
                                 NULL)) {
            return TW_DONE;
        }
    }
    return tw_error_set(err, TW_E_FORMAT, 0, "%s", "a damaged PEM block");
}

static enum tw_status parse_pem(struct bundle *b, const uint8_t *data,
                                size_t len, const char *password,
                                struct tw_error *err)
{
    const char *at = (const char *)data;
    const char *end = at + len;
    enum tw_status st = TW_DONE;
    char label[64];
    char closing[64];
    bool any = false;
    bool known;

    while (st == TW_DONE) {
        const char *from = NULL;
        const char *after = NULL;
        const char *to;
        uint8_t *der = NULL;
        DWORD size = 0;

        if (find_fence(at, end, "BEGIN ", label, sizeof(label), &from)
            == NULL) {
            break;
        }
        to = find_fence(from, end, "END ", closing, sizeof(closing), &after);
        if (to == NULL || strcmp(label, closing) != 0) {
            st = tw_error_set(err, TW_E_FORMAT, 0, "%s",
                              "a damaged PEM block");
            break;
        }
        st = decode_block(from, to, password != NULL, &der, &size, err);
        if (st == TW_DONE) {
            st = parse_block(b, label, der, size, password, &known, err);
            any = any || known;
        }
        if (der != NULL) {
            SecureZeroMemory(der, size);
            free(der);
        }
        at = after;
    }
    if (st == TW_DONE && !any) {
        st = tw_error_set(err, TW_E_FORMAT, 0, "%s",
                          "no certificate, CRL or private key in PEM"
                          " form was found");
    }
    return st;
}

/* --- by encoding --- */

static enum tw_status parse_key_der(struct bundle *b, const uint8_t *data,
                                    size_t len, const char *password,
                                    struct tw_error *err)
{
    struct tw_key *key = NULL;
    struct tw_error first;
    enum tw_status st;

    tw_error_clear(&first);
    st = tw_crypt32_key_import(data, len, password, &key, &first);
    if (st != TW_DONE && st != TW_E_PASSWORD
        && tw_crypt32_key_import_bare(true, data, len, &key, NULL)
               != TW_DONE
        && tw_crypt32_key_import_bare(false, data, len, &key, NULL)
               != TW_DONE) {
        if (err != NULL && err->status >= 0) {
            *err = first;
        }
        return st;
    }
    if (key == NULL) {
        if (err != NULL && err->status >= 0) {
            *err = first;
        }
        return st;
    }
    return bundle_key(b, key, err);
}

/* DER of one certificate is exactly as long as it says. */
static enum tw_status parse_cert_der(struct bundle *b, const uint8_t *data,
                                     size_t len, struct tw_error *err)
{
    enum tw_status st = bundle_cert(b, data, len, err);
    size_t lead;
    size_t body = 0;
    size_t i;

    if (st != TW_DONE || len < 2) {
        return st;
    }
    lead = data[1] < 0x80 ? 2 : 2u + (data[1] & 0x7Fu);
    if (lead == 2) {
        body = data[1];
    }
    for (i = 2; i < lead && i < len; i++) {
        body = body << 8 | data[i];
    }
    return lead + body == len
               ? TW_DONE
               : tw_error_set(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG, "%s",
                              "bytes follow the certificate");
}

static enum tw_status parse(struct bundle *b, enum tw_encoding encoding,
                            const uint8_t *data, size_t len,
                            const char *password, struct tw_error *err)
{
    switch (encoding) {
    case TW_ENC_CERT_DER:
        return parse_cert_der(b, data, len, err);
    case TW_ENC_PEM:
        return parse_pem(b, data, len, password, err);
    case TW_ENC_PFX:
        return parse_pfx(b, data, len, password, err);
    case TW_ENC_PKCS7:
        if (len > 0 && data[0] != 0x30) { /* DER begins with a SEQUENCE */
            return parse_pem(b, data, len, password, err);
        }
        return parse_stored(b, CERT_STORE_PROV_PKCS7, data, len, "PKCS #7",
                            err);
    case TW_ENC_KEY_DER:
        return parse_key_der(b, data, len, password, err);
    case TW_ENC_SERIALIZED:
        return parse_stored(b, CERT_STORE_PROV_SERIALIZED, data, len,
                            "a serialized store", err);
    default:
        return tw_error_set(err, TW_E_ARGUMENT, 0, "%s",
                            "unknown encoding");
    }
}

/* --- merging --- */

/* Is there a certificate for this key, in the bundle or the store? */
static bool has_place_lock_held(struct tw_store *store,
                                const struct bundle *b,
                                const struct tw_key *key)
{
    size_t i;

    for (i = 0; i < b->count; i++) {
        if (tw_crypt32_key_fits(key, b->certs[i])) {
            return true;
        }
    }
    for (i = 0; i < store->count; i++) {
        if (tw_crypt32_key_fits(key, store->certs[i]->ctx)) {
            return true;
        }
    }
    return false;
}

/* Every key needs its certificate; one may wait in a store without any. */
static enum tw_status check_keys_lock_held(struct tw_store *store,
                                           const struct bundle *b,
                                           bool *waits,
                                           struct tw_error *err)
{
    bool fits = true;
    size_t i;

    *waits = b->count == 0 && store->count == 0 && b->key_count == 1
             && store->orphan == NULL;
    for (i = 0; !*waits && fits && i < b->key_count; i++) {
        fits = has_place_lock_held(store, b, b->keys[i]);
    }
    if (fits && store->orphan != NULL && b->count > 0) {
        fits = has_place_lock_held(store, b, store->orphan);
    }
    return fits ? TW_DONE
                : tw_error_set(err, TW_E_ARGUMENT, 0, "%s",
                               "the private key does not match any "
                               "certificate");
}

static struct tw_key *key_for(struct tw_store *store, const struct bundle *b,
                              PCCERT_CONTEXT cert)
{
    size_t i;

    for (i = 0; i < b->key_count; i++) {
        if (tw_crypt32_key_fits(b->keys[i], cert)) {
            return b->keys[i];
        }
    }
    return store->orphan != NULL && tw_crypt32_key_fits(store->orphan, cert)
               ? store->orphan
               : NULL;
}

/* The certificates of one import, with their keys, as objects. */
static enum tw_status make_objects_lock_held(struct tw_store *store,
                                             struct bundle *b,
                                             struct tw_cert ***out,
                                             size_t *count,
                                             struct tw_error *err)
{
    size_t room = b->count + store->count + 1;
    struct tw_cert **made = calloc(room, sizeof(*made));
    struct tw_cert *cert;
    struct tw_key *key;
    size_t i;

    *out = made;
    *count = 0;
    if (made == NULL) {
        return tw_crypt32_nomem(err);
    }
    for (i = 0; i < b->count + store->count; i++) {
        bool fresh = i < b->count;
        PCCERT_CONTEXT ctx = fresh ? b->certs[i]
                                   : store->certs[i - b->count]->ctx;

        key = key_for(store, b, ctx);
        if (key != NULL) {
            cert = tw_crypt32_cert_with_key(ctx, key, b->pool);
        } else if (fresh) {
            cert = tw_crypt32_cert_new(CertDuplicateCertificateContext(ctx),
                                       NULL, NULL);
        } else {
            continue;
        }
        if (cert == NULL) {
            return tw_crypt32_nomem(err);
        }
        made[(*count)++] = cert;
    }
    return TW_DONE;
}

static enum tw_status keep_crls(struct tw_store *store, struct bundle *b,
                                struct tw_error *err)
{
    PCCRL_CONTEXT crl = NULL;

    while ((crl = CertEnumCRLsInStore(b->pool, crl)) != NULL) {
        if (store->crls == NULL) {
            store->crls = tw_crypt32_memory_store();
        }
        if (store->crls == NULL
            || !CertAddEncodedCRLToStore(
                store->crls, X509_ASN_ENCODING, crl->pbCrlEncoded,
                crl->cbCrlEncoded, CERT_STORE_ADD_USE_EXISTING, NULL)) {
            (void)CertFreeCRLContext(crl);
            return tw_crypt32_fail(err, TW_E_OS, GetLastError(),
                                   "keeping a CRL");
        }
    }
    return TW_DONE;
}

static enum tw_status merge(struct tw_store *store, struct bundle *b,
                            struct tw_error *err)
{
    struct tw_cert **made = NULL;
    size_t count = 0;
    size_t i;
    enum tw_status st;
    bool waits = false;

    tw_lock_acquire(&store->lock);
    st = check_keys_lock_held(store, b, &waits, err);
    if (st == TW_DONE && waits) {
        store->orphan = tw_crypt32_key_ref(b->keys[0]);
    } else if (st == TW_DONE) {
        st = make_objects_lock_held(store, b, &made, &count, err);
        if (st == TW_DONE && b->count > 0) {
            tw_crypt32_key_free(store->orphan);
            store->orphan = NULL;
        }
    }
    if (st == TW_DONE) {
        st = keep_crls(store, b, err);
    }
    tw_lock_release(&store->lock);
    for (i = 0; i < count; i++) {
        if (st == TW_DONE) {
            st = tw_crypt32_store_add(store, made[i], err);
        }
        tw_crypt32_cert_free(made[i]);
    }
    free(made);
    return st;
}

enum tw_status tw_crypt32_store_import(struct tw_store *store,
                                       enum tw_encoding encoding,
                                       const uint8_t *data, size_t len,
                                       const char *password,
                                       struct tw_error *err)
{
    struct bundle b;
    enum tw_status st;

    if (len > IMPORT_MAX) {
        return tw_error_set(err, TW_E_ARGUMENT, 0,
                            "more than %d MiB to import",
                            (int)(IMPORT_MAX >> 20));
    }
    memset(&b, 0, sizeof(b));
    b.pool = tw_crypt32_memory_store();
    if (b.pool == NULL) {
        return tw_crypt32_nomem(err);
    }
    st = parse(&b, encoding, data, len, password, err);
    if (st == TW_DONE) {
        st = merge(store, &b, err);
    }
    bundle_fini(&b);
    return st;
}
