/*
 * Stores over OpenSSL: an array of certificates, and a stack of CRLs, behind
 * a lock.
 *
 * An import parses all it was given into a bundle, without the lock
 * (import_openssl.c), then marries keys to certificates into a new array, and
 * swaps the arrays at the end: it happens as a whole or not at all. A key that
 * arrives replaces the certificate object by one that has it; one that arrives
 * before its certificate waits as the orphan. Exports hold public parts only.
 */

#include <string.h>

#include <openssl/pem.h>
#include <openssl/pkcs7.h>
#include <openssl/x509v3.h>

#include "sspi/cert_openssl.h"

#define CHAIN_MAX 32 /* issuers above a certificate */

enum tw_status tw_openssl_store_new(struct tw_store **out,
                                    struct tw_error *err)
{
    struct tw_store *store = OPENSSL_zalloc(sizeof *store);

    *out = store;
    if (store == NULL) {
        return tw_openssl_no_memory(err);
    }
    tw_count_init(&store->refs, 1);
    tw_lock_init(&store->lock);
    return TW_DONE;
}

struct tw_store *tw_openssl_store_ref(struct tw_store *store)
{
    tw_count_up(&store->refs);
    return store;
}

static void free_certs(struct tw_cert **certs, size_t count)
{
    size_t i;

    for (i = 0; i < count; i++) {
        tw_openssl_cert_free(certs[i]);
    }
    OPENSSL_free(certs);
}

void tw_openssl_store_free(struct tw_store *store)
{
    if (store == NULL || tw_count_down(&store->refs) != 0) {
        return;
    }
    free_certs(store->certs, store->count);
    sk_X509_CRL_pop_free(store->crls, X509_CRL_free);
    EVP_PKEY_free(store->orphan);
    tw_lock_fini(&store->lock);
    OPENSSL_free(store);
}

size_t tw_openssl_store_count(struct tw_store *store)
{
    size_t count;

    tw_lock_acquire(&store->lock);
    count = store->count;
    tw_lock_release(&store->lock);
    return count;
}

uint64_t tw_openssl_store_edition(struct tw_store *store)
{
    uint64_t edition = 0;

    if (store != NULL) {
        tw_lock_acquire(&store->lock);
        if (store->edition == 0) {
            store->edition = tw_openssl_new_edition();
        }
        edition = store->edition;
        tw_lock_release(&store->lock);
    }
    return edition;
}

struct tw_cert *tw_openssl_store_get(struct tw_store *store, size_t index)
{
    struct tw_cert *cert = NULL;

    tw_lock_acquire(&store->lock);
    if (index < store->count) {
        cert = tw_openssl_cert_ref(store->certs[index]);
    }
    tw_lock_release(&store->lock);
    return cert;
}

/* Puts cert (a reference that is taken over) into an array with room. Of
   two objects for one certificate, the one that knows more stays. */
static void place(struct tw_cert **certs, size_t *count,
                  struct tw_cert *cert)
{
    size_t i;

    for (i = 0; i < *count; i++) {
        if (certs[i]->der_len != cert->der_len
            || memcmp(certs[i]->der, cert->der, cert->der_len) != 0) {
            continue;
        }
        if ((cert->key != NULL && certs[i]->key == NULL)
            || (cert->chain != NULL && certs[i]->chain == NULL
                && certs[i]->key == NULL)) {
            struct tw_cert *old = certs[i];
            certs[i] = cert;
            cert = old;
        }
        tw_openssl_cert_free(cert);
        return;
    }
    certs[(*count)++] = cert;
}

bool tw_openssl_key_fits(X509 *x509, EVP_PKEY *key)
{
    EVP_PKEY *pub = X509_get0_pubkey(x509);
    bool fits = pub != NULL && EVP_PKEY_eq(pub, key) == 1;

    ERR_clear_error();
    return fits;
}

enum tw_status tw_openssl_store_add(struct tw_store *store,
                                    struct tw_cert *cert,
                                    struct tw_error *err)
{
    enum tw_status status = TW_DONE;
    struct tw_cert *item = NULL;

    tw_lock_acquire(&store->lock);
    if (store->orphan != NULL && cert->key == NULL
        && tw_openssl_key_fits(cert->x509, store->orphan)) {
        item = tw_openssl_cert_new(cert->x509, store->orphan, cert->chain);
    } else {
        item = tw_openssl_cert_ref(cert);
    }
    if (item == NULL) {
        status = tw_openssl_no_memory(err);
        goto done;
    }
    if (store->count == store->room) {
        size_t room = store->room != 0 ? 2 * store->room : 8;
        struct tw_cert **certs = OPENSSL_realloc(store->certs,
                                                 room * sizeof *certs);
        if (certs == NULL) {
            status = tw_openssl_no_memory(err);
            goto done;
        }
        store->certs = certs;
        store->room = room;
    }
    if (item != cert) {
        EVP_PKEY_free(store->orphan);
        store->orphan = NULL;
    }
    place(store->certs, &store->count, item);
    item = NULL;
    store->edition = 0;
done:
    tw_openssl_cert_free(item);
    tw_lock_release(&store->lock);
    return status;
}

/* A store of cert (may be NULL) and then of chain (may be NULL). */
enum tw_status tw_openssl_store_of(struct tw_cert *cert, STACK_OF(X509) *chain,
                                   struct tw_store **out, struct tw_error *err)
{
    struct tw_store *store = NULL;
    struct tw_cert *item;
    enum tw_status status;
    int i;

    *out = NULL;
    status = tw_openssl_store_new(&store, err);
    if (status == TW_DONE && cert != NULL) {
        status = tw_openssl_store_add(store, cert, err);
    }
    for (i = 0; status == TW_DONE && i < sk_X509_num(chain); i++) {
        item = tw_openssl_cert_new(sk_X509_value(chain, i), NULL, NULL);
        if (item == NULL) {
            status = tw_openssl_no_memory(err);
            break;
        }
        status = tw_openssl_store_add(store, item, err);
        tw_openssl_cert_free(item);
    }
    if (status != TW_DONE) {
        tw_openssl_store_free(store);
        return status;
    }
    *out = store;
    return TW_DONE;
}

enum tw_status tw_openssl_cert_chain(struct tw_cert *cert,
                                     struct tw_store **out,
                                     struct tw_error *err)
{
    return tw_openssl_store_of(cert, cert->chain, out, err);
}

/* ------------------------------------------------------------------ */
/* Merging                                                            */
/* ------------------------------------------------------------------ */

static bool key_fits_any(STACK_OF(X509) *certs, EVP_PKEY *key)
{
    int i;

    for (i = 0; i < sk_X509_num(certs); i++) {
        if (tw_openssl_key_fits(sk_X509_value(certs, i), key)) {
            return true;
        }
    }
    return false;
}

/* The certificate that signed x509, among pool; NULL if not there. */
static X509 *find_issuer(X509 *x509, STACK_OF(X509) *pool)
{
    int i;

    for (i = 0; i < sk_X509_num(pool); i++) {
        X509 *other = sk_X509_value(pool, i);
        EVP_PKEY *pub;
        if (X509_check_issued(other, x509) != X509_V_OK) {
            continue;
        }
        pub = X509_get0_pubkey(other);
        if (pub != NULL && X509_verify(x509, pub) == 1) {
            return other;
        }
    }
    return NULL;
}

static bool contains(STACK_OF(X509) *certs, const X509 *x509)
{
    int i;

    for (i = 0; i < sk_X509_num(certs); i++) {
        if (X509_cmp(sk_X509_value(certs, i), x509) == 0) {
            return true;
        }
    }
    return false;
}

/* The issuers of leaf found in pool, nearest first, borrowed references;
   NULL when out of memory. */
static STACK_OF(X509) *find_chain(X509 *leaf, STACK_OF(X509) *pool)
{
    STACK_OF(X509) *chain = sk_X509_new_null();
    X509 *at = leaf;

    while (chain != NULL && sk_X509_num(chain) < CHAIN_MAX
           && X509_self_signed(at, 0) != 1) {
        at = find_issuer(at, pool);
        if (at == NULL || X509_cmp(at, leaf) == 0 || contains(chain, at)) {
            break;
        }
        if (sk_X509_push(chain, at) == 0) {
            sk_X509_free(chain);
            chain = NULL;
        }
    }
    ERR_clear_error();
    return chain;
}

/* A certificate object for x509, with its key and chain if there is a key
   for it among keys; NULL when out of memory. */
static struct tw_cert *join(X509 *x509, EVP_PKEY *const *keys, int count,
                            STACK_OF(X509) *pool)
{
    struct tw_cert *cert;
    STACK_OF(X509) *chain;
    int i;

    for (i = 0; i < count; i++) {
        if (!tw_openssl_key_fits(x509, keys[i])) {
            continue;
        }
        chain = find_chain(x509, pool);
        if (chain == NULL) {
            return NULL;
        }
        cert = tw_openssl_cert_new(x509, keys[i],
                                   sk_X509_num(chain) > 0 ? chain : NULL);
        sk_X509_free(chain);
        return cert;
    }
    return tw_openssl_cert_new(x509, NULL, NULL);
}

/* All CRLs of both, as new references; NULL when out of memory. */
static STACK_OF(X509_CRL) *union_crls(STACK_OF(X509_CRL) *a,
                                      STACK_OF(X509_CRL) *b)
{
    STACK_OF(X509_CRL) *all = sk_X509_CRL_new_null();
    STACK_OF(X509_CRL) *part[2] = {a, b};
    int i, k, n;

    for (k = 0; all != NULL && k < 2; k++) {
        for (i = 0; i < sk_X509_CRL_num(part[k]); i++) {
            X509_CRL *crl = sk_X509_CRL_value(part[k], i);
            for (n = 0; n < sk_X509_CRL_num(all); n++) {
                if (X509_CRL_match(sk_X509_CRL_value(all, n), crl) == 0) {
                    break;
                }
            }
            if (n < sk_X509_CRL_num(all)) {
                continue;
            }
            if (sk_X509_CRL_push(all, crl) == 0) {
                sk_X509_CRL_pop_free(all, X509_CRL_free);
                return NULL;
            }
            (void)X509_CRL_up_ref(crl);
        }
    }
    return all;
}

/* Sees to it that every key has its certificate. One key may wait in a
   store that has none yet: *waits. */
static enum tw_status check_keys(const struct tw_bundle *b,
                                 STACK_OF(X509) *pool, EVP_PKEY *orphan,
                                 bool *waits, struct tw_error *err)
{
    bool fits = true;
    int i;

    *waits = false;
    if (sk_X509_num(pool) == 0 && b->key_count == 1
        && (orphan == NULL || EVP_PKEY_eq(orphan, b->keys[0]) == 1)) {
        *waits = true;
        return TW_DONE;
    }
    for (i = 0; fits && i < b->key_count; i++) {
        fits = key_fits_any(pool, b->keys[i]);
    }
    if (orphan != NULL && sk_X509_num(b->certs) > 0) {
        fits = fits && key_fits_any(b->certs, orphan);
    }
    return fits ? TW_DONE : tw_error_set(err, TW_E_ARGUMENT, 0, "%s",
                        "the private key does not match any certificate");
}

static enum tw_status merge_lock_held(struct tw_store *store,
                                      struct tw_bundle *b,
                                      struct tw_error *err)
{
    size_t room = store->count + (size_t)sk_X509_num(b->certs), count = 0, i;
    struct tw_cert **next = OPENSSL_zalloc((room + 1) * sizeof *next);
    STACK_OF(X509) *pool = sk_X509_dup(b->certs);
    STACK_OF(X509_CRL) *crls = union_crls(store->crls, b->crls);
    EVP_PKEY *keys[TW_KEYS_MAX + 1];
    int key_count = b->key_count, k;
    enum tw_status status = TW_E_NOMEM;
    struct tw_cert *cert;
    bool waits;

    if (next == NULL || pool == NULL || crls == NULL) {
        goto done;
    }
    for (i = 0; i < store->count; i++) {
        if (sk_X509_push(pool, store->certs[i]->x509) == 0) {
            goto done;
        }
    }
    status = check_keys(b, pool, store->orphan, &waits, err);
    if (status != TW_DONE) {
        goto done;
    }
    status = TW_E_NOMEM;
    memcpy(keys, b->keys, (size_t)key_count * sizeof keys[0]);
    if (store->orphan != NULL) {
        keys[key_count++] = store->orphan;
    }
    for (i = 0; i < store->count; i++) {
        cert = store->certs[i];
        cert = cert->key != NULL || key_count == 0
            ? tw_openssl_cert_ref(cert)
            : join(cert->x509, keys, key_count, pool);
        if (cert != NULL && cert->key == NULL && cert != store->certs[i]) {
            tw_openssl_cert_free(cert); /* no key for it: keep the old */
            cert = tw_openssl_cert_ref(store->certs[i]);
        }
        if (cert == NULL) {
            goto done;
        }
        next[count++] = cert;
    }
    for (k = 0; k < sk_X509_num(b->certs); k++) {
        cert = join(sk_X509_value(b->certs, k), keys, key_count, pool);
        if (cert == NULL) {
            goto done;
        }
        place(next, &count, cert);
    }

    free_certs(store->certs, store->count);
    store->certs = next;
    store->count = count;
    store->edition = 0;
    store->room = room + 1;
    next = NULL;
    count = 0;
    sk_X509_CRL_pop_free(store->crls, X509_CRL_free);
    store->crls = crls;
    crls = NULL;
    if (waits || sk_X509_num(b->certs) > 0) {
        EVP_PKEY_free(store->orphan);
        store->orphan = waits ? b->keys[--b->key_count] : NULL;
    }
    status = TW_DONE;
done:
    free_certs(next, count);
    sk_X509_free(pool);
    sk_X509_CRL_pop_free(crls, X509_CRL_free);
    return status == TW_E_NOMEM ? tw_openssl_no_memory(err) : status;
}

enum tw_status tw_openssl_store_merge(struct tw_store *store,
                                      struct tw_bundle *b,
                                      struct tw_error *err)
{
    enum tw_status status;

    tw_lock_acquire(&store->lock);
    status = merge_lock_held(store, b, err);
    tw_lock_release(&store->lock);
    return status;
}

enum tw_status tw_openssl_store_import(struct tw_store *store,
                                       enum tw_encoding encoding,
                                       const uint8_t *data, size_t len,
                                       const char *password,
                                       struct tw_error *err)
{
    struct tw_bundle b;
    enum tw_status status;

    ERR_clear_error();
    if (len > TW_IMPORT_MAX) {
        return tw_error_set(err, TW_E_ARGUMENT, 0, "%s",
                            "too much data for one import");
    }
    if (!tw_bundle_init(&b)) {
        status = tw_openssl_no_memory(err);
        goto done;
    }
    status = tw_bundle_parse(&b, encoding, data, len, password, err);
    if (status != TW_DONE) {
        goto done;
    }
    status = tw_openssl_store_merge(store, &b, err);
done:
    tw_bundle_fini(&b);
    ERR_clear_error();
    return status;
}

/* ------------------------------------------------------------------ */
/* Export                                                             */
/* ------------------------------------------------------------------ */

/* The public parts as new references; false when out of memory. */
bool tw_openssl_store_snapshot(struct tw_store *store, STACK_OF(X509) *certs,
                               STACK_OF(X509_CRL) *crls)
{
    bool ok = true;
    size_t i;
    int k;

    if (store == NULL) {
        return true;
    }
    tw_lock_acquire(&store->lock);
    for (i = 0; ok && certs != NULL && i < store->count; i++) {
        X509 *x509 = store->certs[i]->x509;
        ok = sk_X509_push(certs, x509) != 0;
        if (ok) {
            (void)X509_up_ref(x509);
        }
    }
    for (k = 0; ok && crls != NULL && k < sk_X509_CRL_num(store->crls);
         k++) {
        X509_CRL *crl = sk_X509_CRL_value(store->crls, k);
        ok = sk_X509_CRL_push(crls, crl) != 0;
        if (ok) {
            (void)X509_CRL_up_ref(crl);
        }
    }
    tw_lock_release(&store->lock);
    return ok;
}

static bool write_pem(BIO *bio, STACK_OF(X509) *certs,
                      STACK_OF(X509_CRL) *crls)
{
    bool ok = true;
    int i;

    for (i = 0; ok && i < sk_X509_num(certs); i++) {
        ok = PEM_write_bio_X509(bio, sk_X509_value(certs, i)) == 1;
    }
    for (i = 0; ok && i < sk_X509_CRL_num(crls); i++) {
        ok = PEM_write_bio_X509_CRL(bio, sk_X509_CRL_value(crls, i)) == 1;
    }
    return ok;
}

/* The order of a SET OF in DER (X.690, 11.6). */
static int compare_der(const unsigned char *a, int a_len,
                       const unsigned char *b, int b_len)
{
    int order;

    if (a == NULL || b == NULL || a_len < 0 || b_len < 0) {
        return 0; /* out of memory: any order will do for BER */
    }
    order = memcmp(a, b, (size_t)(a_len < b_len ? a_len : b_len));
    return order != 0 ? order : a_len - b_len;
}

static int compare_certs(const X509 *const *a, const X509 *const *b)
{
    unsigned char *x = NULL, *y = NULL;
    int x_len = i2d_X509(*a, &x), y_len = i2d_X509(*b, &y);
    int order = compare_der(x, x_len, y, y_len);

    OPENSSL_free(x);
    OPENSSL_free(y);
    return order;
}

static int compare_crls(const X509_CRL *const *a, const X509_CRL *const *b)
{
    unsigned char *x = NULL, *y = NULL;
    int x_len = i2d_X509_CRL(*a, &x), y_len = i2d_X509_CRL(*b, &y);
    int order = compare_der(x, x_len, y, y_len);

    OPENSSL_free(x);
    OPENSSL_free(y);
    return order;
}

/* A degenerate SignedData (RFC 2315, 9.1): nobody signs nothing. */
static bool write_pkcs7(BIO *bio, STACK_OF(X509) *certs,
                        STACK_OF(X509_CRL) *crls)
{
    PKCS7 *p7 = PKCS7_new();
    bool ok = p7 != NULL && PKCS7_set_type(p7, NID_pkcs7_signed) == 1
        && PKCS7_content_new(p7, NID_pkcs7_data) == 1
        && PKCS7_set_detached(p7, 1) == 1;
    int i;

    (void)sk_X509_set_cmp_func(certs, compare_certs);
    sk_X509_sort(certs);
    (void)sk_X509_CRL_set_cmp_func(crls, compare_crls);
    sk_X509_CRL_sort(crls);
    for (i = 0; ok && i < sk_X509_num(certs); i++) {
        ok = PKCS7_add_certificate(p7, sk_X509_value(certs, i)) == 1;
    }
    for (i = 0; ok && i < sk_X509_CRL_num(crls); i++) {
        ok = PKCS7_add_crl(p7, sk_X509_CRL_value(crls, i)) == 1;
    }
    ok = ok && i2d_PKCS7_bio(bio, p7) == 1;
    PKCS7_free(p7);
    return ok;
}

enum tw_status tw_openssl_store_export(struct tw_store *store,
                                       enum tw_encoding encoding,
                                       tw_sink sink, void *arg,
                                       struct tw_error *err)
{
    STACK_OF(X509) *certs = sk_X509_new_null();
    STACK_OF(X509_CRL) *crls = sk_X509_CRL_new_null();
    BIO *bio = BIO_new(BIO_s_mem());
    enum tw_status status = TW_DONE;
    bool ok = true;
    char *text = NULL;
    long len;

    if (certs == NULL || crls == NULL || bio == NULL
        || !tw_openssl_store_snapshot(store, certs, crls)) {
        status = tw_openssl_no_memory(err);
        goto done;
    }
    switch (encoding) {
    case TW_ENC_SERIALIZED:
        ok = BIO_puts(bio, TW_SERIALIZED_HEAD) > 0
            && write_pem(bio, certs, crls);
        break;
    case TW_ENC_PEM:
        ok = write_pem(bio, certs, crls);
        break;
    case TW_ENC_PKCS7:
        ok = write_pkcs7(bio, certs, crls);
        break;
    default:
        status = tw_error_set(err, TW_E_UNSUPPORTED, 0, "%s",
                              "a store cannot be exported in this form");
        goto done;
    }
    if (!ok) {
        status = tw_openssl_fail(err, TW_E_NOMEM, 0,
                                 "the store could not be exported");
        goto done;
    }
    len = BIO_get_mem_data(bio, &text);
    (void)sink(arg, NULL, len > 0 ? text : "", len > 0 ? (size_t)len : 0);
done:
    BIO_free(bio);
    sk_X509_pop_free(certs, X509_free);
    sk_X509_CRL_pop_free(crls, X509_CRL_free);
    return status;
}
