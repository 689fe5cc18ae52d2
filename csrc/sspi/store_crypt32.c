/*
 * Stores: ours in memory, and the system's.
 *
 * A store is an array of certificates behind a lock, in the order of
 * adding, because crypt32 promises no order and callers count. A system
 * store is opened as what there is (a name that does not exist is an
 * error, nothing is created) and read once; what is added goes into the
 * real one too. CRLs live in a crypt32 store of their own.
 *
 * Export gives public parts: the certificates are copied by their bytes,
 * so that no property, and so no key, comes along.
 */
#include "sspi/schannel_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum tw_status tw_crypt32_store_new(struct tw_store **out,
                                    struct tw_error *err)
{
    struct tw_store *store = calloc(1, sizeof(*store));

    *out = store;
    if (store == NULL) {
        return tw_crypt32_nomem(err);
    }
    tw_count_init(&store->refs, 1);
    tw_lock_init(&store->lock);
    return TW_DONE;
}

struct tw_store *tw_crypt32_store_ref(struct tw_store *store)
{
    tw_count_up(&store->refs);
    return store;
}

void tw_crypt32_store_free(struct tw_store *store)
{
    size_t i;

    if (store == NULL || tw_count_down(&store->refs) != 0) {
        return;
    }
    for (i = 0; i < store->count; i++) {
        tw_crypt32_cert_free(store->certs[i]);
    }
    free(store->certs);
    if (store->crls != NULL) {
        (void)CertCloseStore(store->crls, 0);
    }
    if (store->system != NULL) {
        (void)CertCloseStore(store->system, 0);
    }
    tw_crypt32_key_free(store->orphan);
    tw_lock_fini(&store->lock);
    free(store);
}

size_t tw_crypt32_store_count(struct tw_store *store)
{
    size_t count;

    tw_lock_acquire(&store->lock);
    count = store->count;
    tw_lock_release(&store->lock);
    return count;
}

struct tw_cert *tw_crypt32_store_get(struct tw_store *store, size_t index)
{
    struct tw_cert *cert = NULL;

    tw_lock_acquire(&store->lock);
    if (index < store->count) {
        cert = tw_crypt32_cert_ref(store->certs[index]);
    }
    tw_lock_release(&store->lock);
    return cert;
}

/* Puts cert (a reference that is taken over) where there is room. Of two
   objects for one certificate, the one that knows more stays. */
static void place(struct tw_store *store, struct tw_cert *cert)
{
    size_t i;

    for (i = 0; i < store->count; i++) {
        struct tw_cert *old = store->certs[i];
        bool has = tw_crypt32_cert_has_key(old);

        if (!tw_crypt32_same(old->ctx, cert->ctx)) {
            continue;
        }
        if ((!has && tw_crypt32_cert_has_key(cert))
            || (!has && old->chain == NULL && cert->chain != NULL)) {
            store->certs[i] = cert;
            cert = old;
        }
        tw_crypt32_cert_free(cert);
        return;
    }
    store->certs[store->count++] = cert;
}

static bool make_room(struct tw_store *store)
{
    size_t room = store->room != 0 ? 2 * store->room : 8;
    struct tw_cert **certs;

    if (store->count < store->room) {
        return true;
    }
    certs = realloc(store->certs, room * sizeof(*certs));
    if (certs == NULL) {
        return false;
    }
    store->certs = certs;
    store->room = room;
    return true;
}

/* The real store, too. A key that is ours goes when we go: it is left out
   there, as a certificate whose key is gone is a trap. */
static enum tw_status add_to_system(struct tw_store *store,
                                    struct tw_cert *cert,
                                    struct tw_error *err)
{
    DWORD failure;

    if (cert->key != NULL) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            SEC_E_UNSUPPORTED_FUNCTION,
                            "a private key that was imported for this "
                            "process cannot be added to a system store; "
                            "import the PFX there with certutil or "
                            "Import-PfxCertificate");
    }
    if (CertAddCertificateContextToStore(
            store->system, cert->ctx, CERT_STORE_ADD_USE_EXISTING, NULL)) {
        return TW_DONE;
    }
    failure = GetLastError();
    if (failure == ERROR_ACCESS_DENIED || failure == (DWORD)E_ACCESSDENIED) {
        return tw_error_set(err, TW_E_OS, (int32_t)E_ACCESSDENIED,
                            "this account may not add to the system store; "
                            "run elevated, or use a store of the user's");
    }
    return tw_crypt32_fail(err, TW_E_OS, failure,
                           "adding to the system store");
}

enum tw_status tw_crypt32_store_add(struct tw_store *store,
                                    struct tw_cert *cert,
                                    struct tw_error *err)
{
    enum tw_status st = TW_DONE;
    struct tw_cert *item;

    tw_lock_acquire(&store->lock);
    if (store->orphan != NULL && !tw_crypt32_cert_has_key(cert)
        && tw_crypt32_key_fits(store->orphan, cert->ctx)) {
        item = tw_crypt32_cert_with_key(cert->ctx, store->orphan,
                                        cert->chain);
        if (item != NULL) {
            tw_crypt32_key_free(store->orphan);
            store->orphan = NULL;
        }
    } else {
        item = tw_crypt32_cert_ref(cert);
    }
    if (item == NULL || !make_room(store)) {
        st = tw_crypt32_nomem(err);
    } else if (store->system != NULL) {
        st = add_to_system(store, item, err);
    }
    if (st == TW_DONE) {
        place(store, item);
    } else {
        tw_crypt32_cert_free(item);
    }
    tw_lock_release(&store->lock);
    return st;
}

/* --- the system's --- */

static enum tw_status open_failed(DWORD code, const char *name,
                                  const char *location,
                                  struct tw_error *err)
{
    if (code == ERROR_FILE_NOT_FOUND
        || code == (DWORD)HRESULT_FROM_WIN32(ERROR_FILE_NOT_FOUND)
        || code == ERROR_SUCCESS) {
        return tw_error_set(err, TW_E_NOT_FOUND, CRYPT_E_NOT_FOUND,
                            "no system store '%s' of the %s; certutil "
                            "-store lists them", name, location);
    }
    if (code == ERROR_ACCESS_DENIED || code == (DWORD)E_ACCESSDENIED) {
        return tw_error_set(err, TW_E_OS, (int32_t)E_ACCESSDENIED,
                            "access to the %s's store '%s' is denied; run "
                            "elevated, or use the user's", location, name);
    }
    return tw_crypt32_fail(err, TW_E_OS, code, "opening the system store");
}

/* Wine and Windows create a store of an unknown name when a registry key
   can be made; only what exists is meant. */
static HCERTSTORE open_existing(const WCHAR *name, bool machine)
{
    const DWORD where = machine ? CERT_SYSTEM_STORE_LOCAL_MACHINE
                                : CERT_SYSTEM_STORE_CURRENT_USER;
    HCERTSTORE found;

    found = CertOpenStore(CERT_STORE_PROV_SYSTEM_W, 0, 0,
                          where | CERT_STORE_OPEN_EXISTING_FLAG
                              | CERT_STORE_MAXIMUM_ALLOWED_FLAG,
                          name);
    if (found == NULL
        && (_wcsicmp(name, L"MY") == 0 || _wcsicmp(name, L"ROOT") == 0
            || _wcsicmp(name, L"CA") == 0)) {
        /* these always are, even where nobody has used them yet */
        found = CertOpenStore(CERT_STORE_PROV_SYSTEM_W, 0, 0,
                              where | CERT_STORE_MAXIMUM_ALLOWED_FLAG, name);
    }
    return found;
}

static enum tw_status read_system(struct tw_store *store,
                                  struct tw_error *err)
{
    PCCERT_CONTEXT at = NULL;
    struct tw_cert *cert;

    while ((at = CertEnumCertificatesInStore(store->system, at)) != NULL) {
        cert = tw_crypt32_cert_new(CertDuplicateCertificateContext(at), NULL,
                                   NULL);
        if (cert == NULL || !make_room(store)) {
            tw_crypt32_cert_free(cert);
            (void)CertFreeCertificateContext(at);
            return tw_crypt32_nomem(err);
        }
        place(store, cert);
    }
    return TW_DONE;
}

enum tw_status tw_crypt32_store_open(const char *name, const char *location,
                                     struct tw_store **out,
                                     struct tw_error *err)
{
    struct tw_store *store = NULL;
    WCHAR *wide = NULL;
    enum tw_status st;
    bool machine;

    *out = NULL;
    if (location == NULL) {
        location = "user";
    }
    machine = _stricmp(location, "machine") == 0;
    if (!machine && _stricmp(location, "user") != 0) {
        return tw_error_set(err, TW_E_NOT_FOUND, CRYPT_E_NOT_FOUND,
                            "no store location '%s': there are 'user' and"
                            " 'machine'", location);
    }
    if (name == NULL || name[0] == '\0') {
        return tw_error_set(err, TW_E_NOT_FOUND, CRYPT_E_NOT_FOUND,
                            "no system store '': a store has a name");
    }
    st = tw_crypt32_store_new(&store, err);
    if (st == TW_DONE) {
        wide = tw_crypt32_widen(name);
        if (wide == NULL) {
            st = tw_crypt32_nomem(err);
        } else {
            store->system = open_existing(wide, machine);
            st = store->system == NULL
                     ? open_failed(GetLastError(), name, location, err)
                     : read_system(store, err);
        }
    }
    free(wide);
    if (st != TW_DONE) {
        tw_crypt32_store_free(store);
        return st;
    }
    *out = store;
    return TW_DONE;
}

/* --- pouring into crypt32's own stores --- */

bool tw_crypt32_store_pour(struct tw_store *from, HCERTSTORE into)
{
    PCCRL_CONTEXT crl = NULL;
    bool good = true;
    size_t i;

    if (from == NULL) {
        return true;
    }
    tw_lock_acquire(&from->lock);
    for (i = 0; good && i < from->count; i++) {
        good = tw_crypt32_put(into, from->certs[i]->ctx);
    }
    while (good && from->crls != NULL
           && (crl = CertEnumCRLsInStore(from->crls, crl)) != NULL) {
        good = CertAddEncodedCRLToStore(into, X509_ASN_ENCODING,
                                        crl->pbCrlEncoded, crl->cbCrlEncoded,
                                        CERT_STORE_ADD_USE_EXISTING, NULL);
        if (!good) {
            (void)CertFreeCRLContext(crl);
        }
    }
    tw_lock_release(&from->lock);
    return good;
}

/* One that signed itself is an anchor or nothing; it is not sent along. */
static bool is_intermediate(PCCERT_CONTEXT cert)
{
    return !CertCompareCertificateName(X509_ASN_ENCODING,
                                       &cert->pCertInfo->Subject,
                                       &cert->pCertInfo->Issuer);
}

enum tw_status tw_crypt32_install_chain(struct tw_cert *cert,
                                        struct tw_store *more,
                                        struct tw_error *err)
{
    HCERTSTORE issuers = tw_crypt32_memory_store();
    HCERTSTORE into = open_existing(L"CA", false);
    PCCERT_CONTEXT at = NULL;
    bool good = issuers != NULL && into != NULL
                && tw_crypt32_store_pour(more, issuers);

    while (good && cert->chain != NULL
           && (at = CertEnumCertificatesInStore(cert->chain, at)) != NULL) {
        good = tw_crypt32_same(at, cert->ctx) || tw_crypt32_put(issuers, at);
    }
    if (!good && at != NULL) {
        (void)CertFreeCertificateContext(at);
        at = NULL;
    }
    while (good && (at = CertEnumCertificatesInStore(issuers, at)) != NULL) {
        good = !is_intermediate(at) || tw_crypt32_put(into, at);
    }
    if (!good) {
        (void)tw_crypt32_fail(err, TW_E_OS, GetLastError(),
                              "installing the intermediate certificates");
    }
    if (at != NULL) {
        (void)CertFreeCertificateContext(at);
    }
    if (issuers != NULL) {
        (void)CertCloseStore(issuers, 0);
    }
    if (into != NULL) {
        (void)CertCloseStore(into, 0);
    }
    return good ? TW_DONE : TW_E_OS;
}

/* --- export --- */

struct bytes {
    uint8_t *data; /* owned */
    size_t len, room;
};

/* n more bytes at the returned place; NULL: no memory. */
static uint8_t *extend(struct bytes *out, size_t n)
{
    size_t room = out->room > 0 ? out->room : 4096;
    uint8_t *data;

    while (room - out->len < n) {
        room *= 2;
    }
    if (room > out->room) {
        data = realloc(out->data, room);
        if (data == NULL) {
            return NULL;
        }
        out->data = data;
        out->room = room;
    }
    out->len += n;
    return out->data + out->len - n;
}

static bool append(struct bytes *out, const char *text)
{
    size_t n = strlen(text);
    uint8_t *at = extend(out, n);

    if (at != NULL) {
        memcpy(at, text, n);
    }
    return at != NULL;
}

static bool append_pem(struct bytes *out, const char *label,
                       const BYTE *der, DWORD len)
{
    char line[64];
    DWORD n = 0;
    char *text = NULL;
    bool good = false;

    if (CryptBinaryToStringA(der, len,
                             CRYPT_STRING_BASE64 | CRYPT_STRING_NOCR, NULL,
                             &n)
        && (text = malloc(n)) != NULL
        && CryptBinaryToStringA(der, len,
                                CRYPT_STRING_BASE64 | CRYPT_STRING_NOCR,
                                text, &n)) {
        (void)snprintf(line, sizeof(line), "-----BEGIN %s-----\n", label);
        good = append(out, line)
               && append(out, text);
        (void)snprintf(line, sizeof(line), "-----END %s-----\n", label);
        good = good && append(out, line);
    }
    free(text);
    return good;
}

/* In our own order: CertEnum... promises none. */
static bool export_pem(struct tw_store *store, struct bytes *out)
{
    PCCRL_CONTEXT crl = NULL;
    bool good = true;
    size_t i;

    tw_lock_acquire(&store->lock);
    for (i = 0; good && i < store->count; i++) {
        good = append_pem(out, "CERTIFICATE",
                          store->certs[i]->ctx->pbCertEncoded,
                          store->certs[i]->ctx->cbCertEncoded);
    }
    while (good && store->crls != NULL
           && (crl = CertEnumCRLsInStore(store->crls, crl)) != NULL) {
        good = append_pem(out, "X509 CRL", crl->pbCrlEncoded,
                          crl->cbCrlEncoded);
        if (!good) {
            (void)CertFreeCRLContext(crl);
        }
    }
    tw_lock_release(&store->lock);
    return good;
}

static bool export_saved(struct tw_store *store, DWORD kind,
                         struct bytes *out)
{
    HCERTSTORE copy = tw_crypt32_memory_store();
    CRYPT_DATA_BLOB blob = {0, NULL};
    bool good = false;

    if (copy != NULL && tw_crypt32_store_pour(store, copy)
        && CertSaveStore(copy, TW_ENCODING, kind, CERT_STORE_SAVE_TO_MEMORY,
                         &blob, 0)
        && (blob.pbData = extend(out, blob.cbData)) != NULL
        && CertSaveStore(copy, TW_ENCODING, kind, CERT_STORE_SAVE_TO_MEMORY,
                         &blob, 0)) {
        out->len = blob.cbData;
        good = true;
    }
    if (copy != NULL) {
        (void)CertCloseStore(copy, 0);
    }
    return good;
}

enum tw_status tw_crypt32_store_export(struct tw_store *store,
                                       enum tw_encoding encoding,
                                       tw_sink sink, void *arg,
                                       struct tw_error *err)
{
    struct bytes out = {NULL, 0, 0};
    enum tw_status st = TW_DONE;
    bool good;

    switch (encoding) {
    case TW_ENC_PEM:
        good = export_pem(store, &out);
        break;
    case TW_ENC_PKCS7:
        good = export_saved(store, CERT_STORE_SAVE_AS_PKCS7, &out);
        break;
    case TW_ENC_SERIALIZED:
        good = export_saved(store, CERT_STORE_SAVE_AS_STORE, &out);
        break;
    default:
        return tw_error_set(err, TW_E_ARGUMENT, 0, "%s",
                            "a store is exported as PEM, PKCS #7 or "
                            "serialized");
    }
    if (good) {
        (void)sink(arg, NULL, out.data, out.len);
    } else {
        st = tw_crypt32_fail(err, TW_E_OS, GetLastError(),
                             "exporting the store");
    }
    free(out.data);
    return st;
}
