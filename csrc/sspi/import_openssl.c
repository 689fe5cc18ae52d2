/*
 * Reading certificates, CRLs and private keys from memory, in every form that
 * a store takes, into a bundle.
 *
 * The parsers are OpenSSL's. A password is never asked for at the terminal:
 * what is encrypted and has none given is an error of its own, and so is one
 * that does not fit. A bundle that failed half-way is thrown away whole.
 */

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include <openssl/pem.h>
#include <openssl/pkcs12.h>
#include <openssl/pkcs7.h>

#include "sspi/cert_openssl.h"

#define NESTING_MAX 8 /* of SafeContents in each other, RFC 7292, 4.2.6 */

/*
 * What went wrong when something could not be decrypted: an algorithm that
 * is not loaded (RC2 of old PFX files lives in the legacy provider) says so
 * somewhere in the queue; anything else is the password, since garbage out
 * of a cipher fails in as many ways as there is garbage.
 */
static enum tw_status fail_decrypt(struct tw_error *err, bool given,
                                   const char *what)
{
    bool unsupported = false;
    char text[160] = "";
    const char *data;
    int flags;
    unsigned long e;

    for (;;) {
        e = ERR_get_error_all(NULL, NULL, NULL, &data, &flags);
        if (e == 0) {
            break;
        }
        int lib = ERR_GET_LIB(e);
        int reason = ERR_GET_REASON(e);
        if (reason == ERR_R_UNSUPPORTED
            || (lib == ERR_LIB_EVP
                && (reason == EVP_R_UNSUPPORTED_ALGORITHM
                    || reason == EVP_R_UNKNOWN_PBE_ALGORITHM
                    || reason == EVP_R_UNSUPPORTED_CIPHER
                    || reason == EVP_R_UNSUPPORTED_PRF
                    || reason == EVP_R_UNSUPPORTED_KEY_DERIVATION_FUNCTION
                    || reason == EVP_R_UNKNOWN_CIPHER))
            || (lib == ERR_LIB_PEM
                && (reason == PEM_R_UNSUPPORTED_ENCRYPTION
                    || reason == PEM_R_UNSUPPORTED_CIPHER))
            || (lib == ERR_LIB_PKCS12
                && reason == PKCS12_R_UNKNOWN_DIGEST_ALGORITHM)) {
            if (!unsupported || text[0] == '\0') {
                (void)snprintf(text, sizeof text, "%s",
                               (flags & ERR_TXT_STRING) != 0 ? data : "");
            }
            unsupported = true;
        }
    }
    if (unsupported) {
        return tw_error_set(err, TW_E_UNSUPPORTED, 0,
                            "%s is encrypted with an algorithm that OpenSSL"
                            " does not offer here%s%s%s", what,
                            text[0] != '\0' ? " (" : "", text,
                            text[0] != '\0' ? ")" : "");
    }
    return tw_error_set(err, TW_E_PASSWORD, 0, "%s%s", what,
                        given ? ": the password is wrong"
                              : " is encrypted: a password is needed");
}

bool tw_bundle_init(struct tw_bundle *b)
{
    memset(b, 0, sizeof *b);
    b->certs = sk_X509_new_null();
    b->crls = sk_X509_CRL_new_null();
    return b->certs != NULL && b->crls != NULL;
}

void tw_bundle_fini(struct tw_bundle *b)
{
    sk_X509_pop_free(b->certs, X509_free);
    sk_X509_CRL_pop_free(b->crls, X509_CRL_free);
    while (b->key_count > 0) {
        EVP_PKEY_free(b->keys[--b->key_count]);
    }
}

/* These three take over what they are given, also when they fail. */
static enum tw_status bundle_cert(struct tw_bundle *b, X509 *x509,
                                  struct tw_error *err)
{
    if (x509 == NULL) {
        return tw_openssl_fail(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                               "not a certificate");
    }
    if (sk_X509_push(b->certs, x509) == 0) {
        X509_free(x509);
        return tw_openssl_no_memory(err);
    }
    return TW_DONE;
}

static enum tw_status bundle_crl(struct tw_bundle *b, X509_CRL *crl,
                                 struct tw_error *err)
{
    if (crl == NULL) {
        return tw_openssl_fail(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                               "not a certificate revocation list");
    }
    if (sk_X509_CRL_push(b->crls, crl) == 0) {
        X509_CRL_free(crl);
        return tw_openssl_no_memory(err);
    }
    return TW_DONE;
}

static enum tw_status bundle_key(struct tw_bundle *b, EVP_PKEY *key,
                                 struct tw_error *err)
{
    if (key == NULL) {
        return tw_openssl_fail(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                               "not a private key");
    }
    if (b->key_count == TW_KEYS_MAX) {
        EVP_PKEY_free(key);
        return tw_error_set(err, TW_E_ARGUMENT, 0,
                            "more than %d private keys at once", TW_KEYS_MAX);
    }
    b->keys[b->key_count++] = key;
    return TW_DONE;
}

static enum tw_status bundle_pkcs7(struct tw_bundle *b, PKCS7 *p7,
                                   struct tw_error *err)
{
    STACK_OF(X509) *certs = NULL;
    STACK_OF(X509_CRL) *crls = NULL;
    enum tw_status status = TW_DONE;
    int i;

    if (p7 == NULL) {
        return tw_openssl_fail(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                               "not PKCS #7");
    }
    if (PKCS7_type_is_signed(p7) && p7->d.sign != NULL) {
        certs = p7->d.sign->cert;
        crls = p7->d.sign->crl;
    } else if (PKCS7_type_is_signedAndEnveloped(p7)
               && p7->d.signed_and_enveloped != NULL) {
        certs = p7->d.signed_and_enveloped->cert;
        crls = p7->d.signed_and_enveloped->crl;
    } else {
        return tw_error_set(err, TW_E_FORMAT, 0, "%s",
                            "PKCS #7 of a kind that holds no certificates");
    }
    for (i = 0; status == TW_DONE && i < sk_X509_num(certs); i++) {
        X509 *x509 = sk_X509_value(certs, i);
        (void)X509_up_ref(x509);
        status = bundle_cert(b, x509, err);
    }
    for (i = 0; status == TW_DONE && i < sk_X509_CRL_num(crls); i++) {
        X509_CRL *crl = sk_X509_CRL_value(crls, i);
        (void)X509_CRL_up_ref(crl);
        status = bundle_crl(b, crl, err);
    }
    return status;
}

/* The answer to OpenSSL asking for a password: never the terminal. */
int tw_openssl_password(char *buf, int size, int writing, void *arg)
{
    const char *password = arg;
    size_t len;

    (void)writing;
    if (password == NULL || size <= 0) {
        return -1;
    }
    len = strlen(password);
    if (len > (size_t)size) {
        return -1;
    }
    memcpy(buf, password, len);
    return (int)len;
}

/* DER of a PKCS#8 EncryptedPrivateKeyInfo. */
static enum tw_status parse_encrypted_key(struct tw_bundle *b,
                                          X509_SIG *sealed,
                                          const char *password,
                                          struct tw_error *err)
{
    PKCS8_PRIV_KEY_INFO *info;
    EVP_PKEY *key;
    size_t len = password != NULL ? strlen(password) : 0;

    if (password == NULL || len > INT_MAX) {
        return fail_decrypt(err, password != NULL, "the private key");
    }
    info = PKCS8_decrypt(sealed, password, (int)len);
    if (info == NULL) {
        return fail_decrypt(err, true, "the private key");
    }
    key = EVP_PKCS82PKEY(info);
    PKCS8_PRIV_KEY_INFO_free(info);
    return bundle_key(b, key, err);
}

/* Plain or encrypted, PKCS#8 or traditional; DER. */
static enum tw_status parse_key_der(struct tw_bundle *b, const uint8_t *data,
                                    size_t len, const char *password,
                                    struct tw_error *err)
{
    const unsigned char *p = data;
    X509_SIG *sealed = d2i_X509_SIG(NULL, &p, (long)len);
    enum tw_status status;

    ERR_clear_error();
    if (sealed != NULL) {
        status = parse_encrypted_key(b, sealed, password, err);
        X509_SIG_free(sealed);
        return status;
    }
    p = data;
    return bundle_key(b, d2i_AutoPrivateKey(NULL, &p, (long)len), err);
}

/* RFC 1421 headers: "Proc-Type: 4,ENCRYPTED". */
static enum tw_status parse_key_pem(struct tw_bundle *b, char *header,
                                    unsigned char *data, long len,
                                    const char *password,
                                    struct tw_error *err)
{
    EVP_CIPHER_INFO cipher;
    const unsigned char *p;
    EVP_PKEY *key;

    if (!PEM_get_EVP_CIPHER_INFO(header, &cipher)) {
        return tw_openssl_fail(err, TW_E_UNSUPPORTED, 0,
                               "the private key's PEM header");
    }
    if (cipher.cipher == NULL) {
        return parse_key_der(b, data, (size_t)len, password, err);
    }
    if (password == NULL) {
        return fail_decrypt(err, false, "the private key");
    }
    if (!PEM_do_header(&cipher, data, &len, tw_openssl_password,
                       (void *)(uintptr_t)password)) {
        return fail_decrypt(err, true, "the private key");
    }
    p = data;
    key = d2i_AutoPrivateKey(NULL, &p, len);
    if (key == NULL) {
        /* The padding was right by chance, 1 in 256. */
        ERR_clear_error();
        return fail_decrypt(err, true, "the private key");
    }
    return bundle_key(b, key, err);
}

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);

    return n >= m && strcmp(s + n - m, tail) == 0;
}

/* One block; *known tells whether it was one of those that count. */
static enum tw_status parse_block(struct tw_bundle *b, const char *name,
                                  char *header, unsigned char *data,
                                  long len, const char *password,
                                  bool *known, struct tw_error *err)
{
    const unsigned char *p = data;
    enum tw_status status;
    PKCS7 *p7;

    *known = true;
    if (strcmp(name, PEM_STRING_X509) == 0
        || strcmp(name, PEM_STRING_X509_OLD) == 0) {
        return bundle_cert(b, d2i_X509(NULL, &p, len), err);
    }
    if (strcmp(name, PEM_STRING_X509_TRUSTED) == 0) {
        return bundle_cert(b, d2i_X509_AUX(NULL, &p, len), err);
    }
    if (strcmp(name, PEM_STRING_X509_CRL) == 0) {
        return bundle_crl(b, d2i_X509_CRL(NULL, &p, len), err);
    }
    if (strcmp(name, PEM_STRING_PKCS7) == 0
        || strcmp(name, PEM_STRING_PKCS7_SIGNED) == 0
        || strcmp(name, PEM_STRING_CMS) == 0) {
        p7 = d2i_PKCS7(NULL, &p, len);
        status = bundle_pkcs7(b, p7, err);
        PKCS7_free(p7);
        return status;
    }
    if (ends_with(name, "PRIVATE KEY")) {
        return parse_key_pem(b, header, data, len, password, err);
    }
    *known = false; /* parameters, requests, public keys: not for us */
    return TW_DONE;
}

static enum tw_status parse_pem(struct tw_bundle *b, const uint8_t *data,
                                size_t len, const char *password,
                                struct tw_error *err)
{
    BIO *bio = BIO_new_mem_buf(data, (int)len);
    enum tw_status status = TW_DONE;
    bool any = false, known;

    if (bio == NULL) {
        return tw_openssl_no_memory(err);
    }
    while (status == TW_DONE) {
        char *name = NULL, *header = NULL;
        unsigned char *block = NULL;
        long size = 0;

        if (!PEM_read_bio(bio, &name, &header, &block, &size)) {
            unsigned long e = ERR_peek_last_error();
            if (ERR_GET_LIB(e) == ERR_LIB_PEM
                && ERR_GET_REASON(e) == PEM_R_NO_START_LINE) {
                ERR_clear_error();
                break;
            }
            status = tw_openssl_fail(err, TW_E_FORMAT, 0,
                                     "a damaged PEM block");
            break;
        }
        status = parse_block(b, name, header, block, size, password, &known,
                             err);
        any = any || known;
        OPENSSL_free(name);
        OPENSSL_free(header);
        OPENSSL_clear_free(block, (size_t)size);
    }
    BIO_free(bio);
    if (status == TW_DONE && !any) {
        status = tw_error_set(err, TW_E_FORMAT, 0, "%s",
                              "no certificate, CRL or private key in PEM"
                              " form was found");
    }
    return status;
}

/* What a PKCS#12 bag may be opened with, and what to say if it cannot. */
struct pfx {
    struct tw_bundle *bundle;
    const char *password; /* as its MAC wants it; may be NULL */
    int password_len;     /* of it */
    bool given;           /* the caller gave one */
};

static enum tw_status parse_safes(struct pfx *f,
                                  const STACK_OF(PKCS12_SAFEBAG) *bags,
                                  int depth, struct tw_error *err);

/* RFC 7292, 4.2.2: a PKCS#8 key under a password of its own kind. */
static enum tw_status parse_shrouded(struct pfx *f,
                                     const PKCS12_SAFEBAG *bag,
                                     struct tw_error *err)
{
    PKCS8_PRIV_KEY_INFO *info =
        PKCS12_decrypt_skey(bag, f->password, f->password_len);
    EVP_PKEY *key;

    if (info == NULL) {
        return fail_decrypt(err, f->given, "the PKCS #12 file's key");
    }
    key = EVP_PKCS82PKEY(info);
    PKCS8_PRIV_KEY_INFO_free(info);
    return bundle_key(f->bundle, key, err);
}

static enum tw_status parse_safe(struct pfx *f, const PKCS12_SAFEBAG *bag,
                                 int depth, struct tw_error *err)
{
    switch (PKCS12_SAFEBAG_get_nid(bag)) {
    case NID_keyBag:
        return bundle_key(f->bundle,
                          EVP_PKCS82PKEY(PKCS12_SAFEBAG_get0_p8inf(bag)),
                          err);
    case NID_pkcs8ShroudedKeyBag:
        return parse_shrouded(f, bag, err);
    case NID_certBag:
        if (PKCS12_SAFEBAG_get_bag_nid(bag) != NID_x509Certificate) {
            return TW_DONE; /* SDSI: nobody has one */
        }
        return bundle_cert(f->bundle, PKCS12_SAFEBAG_get1_cert(bag), err);
    case NID_crlBag:
        if (PKCS12_SAFEBAG_get_bag_nid(bag) != NID_x509Crl) {
            return TW_DONE;
        }
        return bundle_crl(f->bundle, PKCS12_SAFEBAG_get1_crl(bag), err);
    case NID_safeContentsBag:
        return parse_safes(f, PKCS12_SAFEBAG_get0_safes(bag), depth + 1,
                           err);
    default:
        return TW_DONE; /* secrets of other programs */
    }
}

static enum tw_status parse_safes(struct pfx *f,
                                  const STACK_OF(PKCS12_SAFEBAG) *bags,
                                  int depth, struct tw_error *err)
{
    enum tw_status status = TW_DONE;
    int i;

    if (depth > NESTING_MAX) {
        return tw_error_set(err, TW_E_FORMAT, 0, "%s",
                            "the PKCS #12 file is nested too deep");
    }
    for (i = 0; status == TW_DONE && i < sk_PKCS12_SAFEBAG_num(bags); i++) {
        status = parse_safe(f, sk_PKCS12_SAFEBAG_value(bags, i), depth, err);
    }
    return status;
}

static enum tw_status parse_safe_contents(struct pfx *f, PKCS7 *p7,
                                          struct tw_error *err)
{
    STACK_OF(PKCS12_SAFEBAG) *bags;
    enum tw_status status;

    if (PKCS7_type_is_data(p7)) {
        bags = PKCS12_unpack_p7data(p7);
    } else if (PKCS7_type_is_encrypted(p7)) {
        bags = PKCS12_unpack_p7encdata(p7, f->password, f->password_len);
    } else {
        return tw_error_set(err, TW_E_UNSUPPORTED, 0, "%s",
                            "the PKCS #12 file is encrypted for a public"
                            " key, not with a password");
    }
    if (bags == NULL) {
        return PKCS7_type_is_data(p7)
            ? tw_openssl_fail(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                              "not PKCS #12 (PFX)")
            : fail_decrypt(err, f->given, "the PKCS #12 file");
    }
    status = parse_safes(f, bags, 0, err);
    sk_PKCS12_SAFEBAG_pop_free(bags, PKCS12_SAFEBAG_free);
    return status;
}

/* Which password is it? No password may have been encoded as nothing at
   all or as an empty string (RFC 7292, B.1 has both meanings). */
static bool open_pfx(struct pfx *f, PKCS12 *p12)
{
    if (!PKCS12_mac_present(p12)) {
        return true;
    }
    if (f->password_len == 0) {
        if (PKCS12_verify_mac(p12, NULL, 0)) {
            f->password = NULL;
            return true;
        }
        f->password = "";
    }
    return PKCS12_verify_mac(p12, f->password, f->password_len) != 0;
}

static bool has_key(const struct tw_bundle *b, X509 *x509)
{
    bool has = false;
    int i;

    for (i = 0; !has && i < b->key_count; i++) {
        has = tw_openssl_key_fits(x509, b->keys[i]);
    }
    return has;
}

/* Certificates with a key come first, so that the first of a store is the
   identity, whatever order the file's maker chose. */
static enum tw_status keys_first(struct tw_bundle *b, struct tw_error *err)
{
    STACK_OF(X509) *sorted = sk_X509_new_null();
    int pass, i;

    for (pass = 0; sorted != NULL && pass < 2; pass++) {
        for (i = 0; i < sk_X509_num(b->certs); i++) {
            X509 *x509 = sk_X509_value(b->certs, i);
            if (has_key(b, x509) == (pass == 0)
                && sk_X509_push(sorted, x509) == 0) {
                sk_X509_free(sorted);
                return tw_openssl_no_memory(err);
            }
        }
    }
    if (sorted == NULL) {
        return tw_openssl_no_memory(err);
    }
    sk_X509_free(b->certs); /* the references moved */
    b->certs = sorted;
    return TW_DONE;
}

/* Every bag of the file: PKCS12_parse would give the first key only. */
static enum tw_status parse_pfx(struct tw_bundle *b, const uint8_t *data,
                                size_t len, const char *password,
                                struct tw_error *err)
{
    const unsigned char *p = data;
    size_t password_len = password != NULL ? strlen(password) : 0;
    struct pfx f = {b, password, (int)password_len, password != NULL};
    PKCS12 *p12 = d2i_PKCS12(NULL, &p, (long)len);
    STACK_OF(PKCS7) *safes = NULL;
    enum tw_status status = TW_DONE;
    int i;

    if (p12 == NULL) {
        return tw_openssl_fail(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                               "not PKCS #12 (PFX)");
    }
    if (password_len > INT_MAX || !open_pfx(&f, p12)) {
        status = fail_decrypt(err, f.given, "the PKCS #12 file");
        goto done;
    }
    ERR_clear_error();
    safes = PKCS12_unpack_authsafes(p12);
    if (safes == NULL) {
        status = tw_openssl_fail(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                                 "not PKCS #12 (PFX)");
        goto done;
    }
    for (i = 0; status == TW_DONE && i < sk_PKCS7_num(safes); i++) {
        status = parse_safe_contents(&f, sk_PKCS7_value(safes, i), err);
    }
    if (status == TW_DONE) {
        status = keys_first(b, err);
    }
done:
    sk_PKCS7_pop_free(safes, PKCS7_free);
    PKCS12_free(p12);
    return status;
}

static bool looks_like_pem(const uint8_t *data, size_t len)
{
    return len != 0 && data[0] != 0x30; /* DER begins with a SEQUENCE */
}

/* Does the certificate encode to these bytes? libssl reads some encodings
   that are not DER and gives others back, so that hashes would not be those
   of what came. */
static bool is_der_of(const X509 *x509, const uint8_t *data, size_t len)
{
    unsigned char *der = NULL;
    int n = i2d_X509(x509, &der);
    bool same = n >= 0 && (size_t)n == len && memcmp(der, data, len) == 0;

    OPENSSL_free(der);
    return same;
}

enum tw_status tw_bundle_parse(struct tw_bundle *b, enum tw_encoding encoding,
                               const uint8_t *data, size_t len,
                               const char *password, struct tw_error *err)
{
    const unsigned char *p = data;
    size_t head = sizeof TW_SERIALIZED_HEAD - 1;
    enum tw_status status;
    PKCS7 *p7;
    X509 *x509;

    switch (encoding) {
    case TW_ENC_CERT_DER:
        x509 = d2i_X509(NULL, &p, (long)len);
        if (x509 != NULL && p != data + len) {
            X509_free(x509);
            return tw_error_set(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG, "%s",
                                "bytes follow the certificate");
        }
        if (x509 != NULL && !is_der_of(x509, data, len)) {
            X509_free(x509);
            return tw_error_set(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG, "%s",
                                "the certificate is not encoded in DER");
        }
        return bundle_cert(b, x509, err);
    case TW_ENC_PEM:
        return parse_pem(b, data, len, password, err);
    case TW_ENC_PFX:
        return parse_pfx(b, data, len, password, err);
    case TW_ENC_PKCS7:
        if (looks_like_pem(data, len)) {
            return parse_pem(b, data, len, password, err);
        }
        p7 = d2i_PKCS7(NULL, &p, (long)len);
        status = bundle_pkcs7(b, p7, err);
        PKCS7_free(p7);
        return status;
    case TW_ENC_KEY_DER:
        return parse_key_der(b, data, len, password, err);
    case TW_ENC_SERIALIZED:
        if (len < head || memcmp(data, TW_SERIALIZED_HEAD, head) != 0) {
            return tw_error_set(err, TW_E_FORMAT, 0, "%s",
                                "not a serialized certificate store");
        }
        if (len == head) {
            return TW_DONE; /* the store was empty */
        }
        return parse_pem(b, data, len, password, err);
    default:
        return tw_error_set(err, TW_E_ARGUMENT, 0, "%s",
                            "unknown encoding");
    }
}
