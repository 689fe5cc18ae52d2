/*
 * Certificates over crypt32: making, counting, comparing, and the small
 * helpers that the rest of the certificate half shares.
 *
 *   cert_crypt32.c    this: the objects
 *   info_crypt32.c    what a certificate says; host names
 *   key_crypt32.c     private keys in containers of our own
 *   pbes2_crypt32.c   encrypted ones, opened on their way there
 *   import_crypt32.c  PEM, DER, PFX, PKCS #7
 *   store_crypt32.c   stores, the system's and ours; export
 *   verify_crypt32.c  chains and revocation
 *
 * A certificate context of crypt32 is counted and immutable save for its
 * properties; a private key is such a property (CERT_KEY_PROV_INFO names
 * its container). So a key that arrives makes a new context of the same
 * bytes, and what others hold does not change under them.
 */
#include "sspi/schannel_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum tw_status tw_crypt32_nomem(struct tw_error *err)
{
    return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY, "%s",
                        "out of memory");
}

WCHAR *tw_crypt32_widen(const char *text)
{
    int n = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1,
                                NULL, 0);
    WCHAR *wide = n > 0 ? calloc((size_t)n, sizeof(*wide)) : NULL;

    if (wide != NULL
        && MultiByteToWideChar(CP_UTF8, 0, text, -1, wide, n) != n) {
        free(wide);
        wide = NULL;
    }
    return wide;
}

char *tw_crypt32_narrow(const WCHAR *text)
{
    int n = WideCharToMultiByte(CP_UTF8, 0, text, -1, NULL, 0, NULL, NULL);
    char *narrow = n > 0 ? malloc((size_t)n) : NULL;

    if (narrow != NULL
        && WideCharToMultiByte(CP_UTF8, 0, text, -1, narrow, n, NULL, NULL)
               != n) {
        free(narrow);
        narrow = NULL;
    }
    return narrow;
}

/* The system's sentence for a code, UTF-8, without its line end. */
static char *system_sentence(DWORD code)
{
    WCHAR *text = NULL;
    char *narrow;
    size_t len;

    if (FormatMessageW(FORMAT_MESSAGE_ALLOCATE_BUFFER
                           | FORMAT_MESSAGE_FROM_SYSTEM
                           | FORMAT_MESSAGE_IGNORE_INSERTS,
                       NULL, code, 0, (LPWSTR)(void *)&text, 0, NULL)
        == 0) {
        return NULL;
    }
    len = wcslen(text);
    while (len > 0 && (text[len - 1] <= L' ' || text[len - 1] == L'.')) {
        text[--len] = L'\0';
    }
    narrow = len > 0 ? tw_crypt32_narrow(text) : NULL;
    (void)LocalFree(text);
    return narrow;
}

enum tw_status tw_crypt32_fail(struct tw_error *err, enum tw_status status,
                               DWORD system, const char *what)
{
    char *sentence;

    if (system == ERROR_NOT_ENOUGH_MEMORY || system == ERROR_OUTOFMEMORY
        || system == (DWORD)E_OUTOFMEMORY || system == (DWORD)NTE_NO_MEMORY) {
        return tw_crypt32_nomem(err);
    }
    sentence = system_sentence(system);
    if (sentence != NULL) {
        (void)tw_error_set(err, status, (int32_t)HRESULT_FROM_WIN32(system),
                           "%s: %s", what, sentence);
    } else {
        (void)tw_error_set(err, status, (int32_t)HRESULT_FROM_WIN32(system),
                           "%s: error 0x%08lx", what, (unsigned long)system);
    }
    free(sentence);
    return status;
}

void *tw_crypt32_decode(LPCSTR type, const BYTE *data, DWORD len)
{
    void *out = NULL;
    DWORD size = 0;

    return CryptDecodeObjectEx(TW_ENCODING, type, data, len,
                               CRYPT_DECODE_ALLOC_FLAG, NULL, &out, &size)
               ? out
               : NULL;
}

HCERTSTORE tw_crypt32_memory_store(void)
{
    return CertOpenStore(CERT_STORE_PROV_MEMORY, 0, 0,
                         CERT_STORE_CREATE_NEW_FLAG, NULL);
}

bool tw_crypt32_put(HCERTSTORE into, PCCERT_CONTEXT cert)
{
    PCCERT_CONTEXT there = CertFindCertificateInStore(
        into, X509_ASN_ENCODING, 0, CERT_FIND_EXISTING, cert, NULL);

    if (there != NULL) {
        (void)CertFreeCertificateContext(there);
        return true;
    }
    return CertAddEncodedCertificateToStore(
               into, X509_ASN_ENCODING, cert->pbCertEncoded,
               cert->cbCertEncoded, CERT_STORE_ADD_NEW, NULL)
           != FALSE;
}

bool tw_crypt32_same(PCCERT_CONTEXT a, PCCERT_CONTEXT b)
{
    return a->cbCertEncoded == b->cbCertEncoded
           && memcmp(a->pbCertEncoded, b->pbCertEncoded, a->cbCertEncoded)
                  == 0;
}

struct tw_cert *tw_crypt32_cert_new(PCCERT_CONTEXT ctx, struct tw_key *key,
                                    HCERTSTORE chain)
{
    struct tw_cert *cert = calloc(1, sizeof(*cert));

    if (cert == NULL) {
        (void)CertFreeCertificateContext(ctx);
        return NULL;
    }
    tw_count_init(&cert->refs, 1);
    cert->ctx = ctx;
    cert->key = tw_crypt32_key_ref(key);
    cert->chain = chain != NULL ? CertDuplicateStore(chain) : NULL;
    return cert;
}

/* The issuers of leaf in pool, nearest first, in a store of their own;
   NULL if there is none. Names decide, a chain engine checks them later. */
static HCERTSTORE find_chain(PCCERT_CONTEXT leaf, HCERTSTORE pool)
{
    HCERTSTORE chain = NULL;
    PCCERT_CONTEXT at = CertDuplicateCertificateContext(leaf);
    int left = 32;

    while (at != NULL && left-- > 0) {
        DWORD flags = 0;
        PCCERT_CONTEXT issuer =
            CertGetIssuerCertificateFromStore(pool, at, NULL, &flags);

        (void)CertFreeCertificateContext(at);
        at = issuer;
        if (issuer == NULL || tw_crypt32_same(issuer, leaf)) {
            break;
        }
        if (chain == NULL) {
            chain = tw_crypt32_memory_store();
        }
        if (chain == NULL
            || !CertAddEncodedCertificateToStore(
                chain, X509_ASN_ENCODING, issuer->pbCertEncoded,
                issuer->cbCertEncoded, CERT_STORE_ADD_NEW, NULL)) {
            break; /* no memory, or there already: a circle */
        }
    }
    if (at != NULL) {
        (void)CertFreeCertificateContext(at);
    }
    return chain;
}

struct tw_cert *tw_crypt32_cert_with_key(PCCERT_CONTEXT ctx,
                                         struct tw_key *key, HCERTSTORE pool)
{
    PCCERT_CONTEXT fresh = CertCreateCertificateContext(
        X509_ASN_ENCODING, ctx->pbCertEncoded, ctx->cbCertEncoded);
    HCERTSTORE chain = NULL;
    struct tw_cert *cert;

    if (fresh == NULL) {
        return NULL;
    }
    if (!tw_crypt32_key_attach(key, fresh)) {
        (void)CertFreeCertificateContext(fresh);
        return NULL;
    }
    if (pool != NULL) {
        chain = find_chain(fresh, pool);
    }
    cert = tw_crypt32_cert_new(fresh, key, chain);
    if (chain != NULL) {
        (void)CertCloseStore(chain, 0);
    }
    return cert;
}

struct tw_cert *tw_crypt32_cert_ref(struct tw_cert *cert)
{
    tw_count_up(&cert->refs);
    return cert;
}

void tw_crypt32_cert_free(struct tw_cert *cert)
{
    if (cert == NULL || tw_count_down(&cert->refs) != 0) {
        return;
    }
    if (cert->chain != NULL) {
        (void)CertCloseStore(cert->chain, 0);
    }
    (void)CertFreeCertificateContext(cert->ctx);
    tw_crypt32_key_free(cert->key);
    free(cert);
}

void tw_crypt32_cert_der(struct tw_cert *cert, const uint8_t **der,
                         size_t *len)
{
    *der = cert->ctx->pbCertEncoded;
    *len = cert->ctx->cbCertEncoded;
}

bool tw_crypt32_cert_has_key(struct tw_cert *cert)
{
    DWORD size = 0;

    return cert->key != NULL
           || CertGetCertificateContextProperty(
               cert->ctx, CERT_KEY_PROV_INFO_PROP_ID, NULL, &size)
           || CertGetCertificateContextProperty(
               cert->ctx, CERT_KEY_CONTEXT_PROP_ID, NULL, &size);
}

void tw_crypt32_cert_digest(struct tw_cert *cert, int bytes, uint8_t *out)
{
    DWORD size = (DWORD)bytes;

    memset(out, 0, (size_t)bytes);
    if (!CryptHashCertificate(0, bytes == 20 ? CALG_SHA1 : CALG_SHA_256, 0,
                              cert->ctx->pbCertEncoded,
                              cert->ctx->cbCertEncoded, out, &size)
        || size != (DWORD)bytes) {
        memset(out, 0, (size_t)bytes);
    }
}

/* Takes over at. */
static enum tw_status add_context(struct tw_store *store, PCCERT_CONTEXT at,
                                  struct tw_error *err)
{
    struct tw_cert *item = tw_crypt32_cert_new(at, NULL, NULL);
    enum tw_status st = item == NULL ? tw_crypt32_nomem(err)
                                     : tw_crypt32_store_add(store, item, err);

    tw_crypt32_cert_free(item);
    return st;
}

/* The issuers first, nearest first: crypt32's stores promise no order, and
   a store of ours does not add what it has. */
static enum tw_status add_path(struct tw_store *store, struct tw_cert *cert,
                               struct tw_error *err)
{
    PCCERT_CONTEXT at = CertDuplicateCertificateContext(cert->ctx);
    enum tw_status st = TW_DONE;
    int left = 32;

    while (st == TW_DONE && at != NULL && left-- > 0) {
        DWORD flags = 0;
        PCCERT_CONTEXT issuer =
            CertGetIssuerCertificateFromStore(cert->chain, at, NULL, &flags);

        (void)CertFreeCertificateContext(at);
        at = issuer;
        if (issuer != NULL) {
            st = add_context(store, CertDuplicateCertificateContext(issuer),
                             err);
        }
    }
    if (at != NULL) {
        (void)CertFreeCertificateContext(at);
    }
    return st;
}

/* A store of cert, and then of what came with it. */
enum tw_status tw_crypt32_cert_chain(struct tw_cert *cert,
                                     struct tw_store **out,
                                     struct tw_error *err)
{
    struct tw_store *store = NULL;
    PCCERT_CONTEXT at = NULL;
    enum tw_status st;

    *out = NULL;
    st = tw_crypt32_store_new(&store, err);
    if (st == TW_DONE) {
        st = tw_crypt32_store_add(store, cert, err);
    }
    if (st == TW_DONE && cert->chain != NULL) {
        st = add_path(store, cert, err);
    }
    while (st == TW_DONE && cert->chain != NULL
           && (at = CertEnumCertificatesInStore(cert->chain, at)) != NULL) {
        st = add_context(store, CertDuplicateCertificateContext(at), err);
        if (st != TW_DONE) {
            (void)CertFreeCertificateContext(at);
        }
    }
    if (st != TW_DONE) {
        tw_crypt32_store_free(store);
        return st;
    }
    *out = store;
    return TW_DONE;
}
