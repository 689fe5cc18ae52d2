/*
 * Certificates over OpenSSL, and what every room beside this one uses to say
 * that something failed.
 *
 * A certificate object is immutable: X.509, perhaps the private key, and the
 * chain that came with it; encoded once, and with OpenSSL's cache of its
 * extensions filled, when it is made, so that threads may share it. Here is
 * also the comparison with a host name. What a certificate says of itself is
 * info_openssl.c; sets of them are store_openssl.c; whether to believe one is
 * verify_openssl.c.
 */

#include <string.h>

#include <openssl/x509v3.h>

#include "sspi/cert_openssl.h"

enum tw_status tw_openssl_fail(struct tw_error *err, enum tw_status status,
                               int32_t code, const char *what)
{
    const char *data = NULL;
    int flags = 0;
    unsigned long first = ERR_peek_error_data(&data, &flags);
    const char *reason = first != 0 ? ERR_reason_error_string(first) : NULL;

    if (first != 0 && ERR_GET_REASON(first) == ERR_R_MALLOC_FAILURE) {
        status = TW_E_NOMEM;
    }
    if (data == NULL || (flags & ERR_TXT_STRING) == 0) {
        data = "";
    }
    if (reason == NULL) {
        (void)tw_error_set(err, status, code, "%s", what);
    } else if (*data != '\0') {
        (void)tw_error_set(err, status, code, "%s: %s (%s)", what, reason,
                           data);
    } else {
        (void)tw_error_set(err, status, code, "%s: %s", what, reason);
    }
    ERR_clear_error();
    return status;
}

enum tw_status tw_openssl_no_memory(struct tw_error *err)
{
    ERR_clear_error();
    return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY, "%s",
                        "out of memory");
}

struct tw_cert *tw_openssl_cert_new(X509 *x509, EVP_PKEY *key,
                                    STACK_OF(X509) *chain)
{
    struct tw_cert *cert = OPENSSL_zalloc(sizeof *cert);
    unsigned char *der = NULL;
    int len;

    if (cert == NULL) {
        return NULL;
    }
    tw_count_init(&cert->refs, 1);
    len = i2d_X509(x509, &der);
    if (len < 0) {
        OPENSSL_free(cert);
        return NULL;
    }
    cert->der = der;
    cert->der_len = (size_t)len;
    if (chain != NULL) {
        cert->chain = X509_chain_up_ref(chain);
        if (cert->chain == NULL) {
            OPENSSL_free(der);
            OPENSSL_free(cert);
            return NULL;
        }
    }
    (void)X509_up_ref(x509);
    cert->x509 = x509;
    if (key != NULL) {
        (void)EVP_PKEY_up_ref(key);
        cert->key = key;
    }
    /* The extension cache is filled here, once, before threads share it. */
    (void)X509_check_purpose(x509, -1, 0);
    ERR_clear_error();
    return cert;
}

struct tw_cert *tw_openssl_cert_ref(struct tw_cert *cert)
{
    tw_count_up(&cert->refs);
    return cert;
}

void tw_openssl_cert_free(struct tw_cert *cert)
{
    if (cert == NULL || tw_count_down(&cert->refs) != 0) {
        return;
    }
    X509_free(cert->x509);
    EVP_PKEY_free(cert->key);
    sk_X509_pop_free(cert->chain, X509_free);
    OPENSSL_free(cert->der);
    OPENSSL_free(cert);
}

void tw_openssl_cert_der(struct tw_cert *cert, const uint8_t **der,
                         size_t *len)
{
    *der = cert->der;
    *len = cert->der_len;
}

bool tw_openssl_cert_has_key(struct tw_cert *cert)
{
    return cert->key != NULL;
}

void tw_openssl_cert_digest(struct tw_cert *cert, int bytes, uint8_t *out)
{
    const char *name = bytes == 20 ? "SHA1" : "SHA256";
    unsigned char hash[EVP_MAX_MD_SIZE];
    size_t len = 0;

    memset(out, 0, (size_t)bytes);
    /* A name for a certificate, no protection: FIPS mode does not matter. */
    if (EVP_Q_digest(NULL, name, "-fips", cert->der, cert->der_len, hash, &len)
        && len == (size_t)bytes) {
        memcpy(out, hash, len);
    }
    ERR_clear_error();
}

/* ------------------------------------------------------------------ */
/* Host names                                                         */
/* ------------------------------------------------------------------ */

/*
 * RFC 6125 and 9525: dnsNames with a whole-label wildcard at the left, IP
 * addresses by value and never by text, the common name only when asked
 * for and only where there is no subjectAltName at all. X509_check_host
 * takes a leading dot for "any subdomain": such hosts are refused here.
 * It compares whole lengths, so that "good\0.evil" does not match "good".
 */
bool tw_openssl_x509_matches(X509 *x509, const char *host, bool cn)
{
    char name[256];
    size_t len = host != NULL ? strlen(host) : 0;
    unsigned int flags = X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS;
    ASN1_OCTET_STRING *ip;
    bool match;

    if (len > 2 && host[0] == '[' && host[len - 1] == ']') {
        host++;
        len -= 2;
    } else if (len > 1 && host[len - 1] == '.') {
        len--;
    }
    if (len == 0 || len >= sizeof name || host[0] == '.') {
        return false;
    }
    memcpy(name, host, len);
    name[len] = '\0';

    ip = a2i_IPADDRESS(name);
    if (ip != NULL) {
        match = X509_check_ip(x509, ASN1_STRING_get0_data(ip),
                              (size_t)ASN1_STRING_length(ip), 0) == 1;
        ASN1_OCTET_STRING_free(ip);
    } else if (strchr(name, '*') != NULL || strchr(name, ':') != NULL) {
        match = false;
    } else {
        if (!cn || X509_get_ext_by_NID(x509, NID_subject_alt_name, -1) >= 0) {
            flags |= X509_CHECK_FLAG_NEVER_CHECK_SUBJECT;
        }
        match = X509_check_host(x509, name, len, flags, NULL) == 1;
    }
    ERR_clear_error();
    return match;
}

bool tw_openssl_cert_matches(struct tw_cert *cert, const char *host, bool cn)
{
    return tw_openssl_x509_matches(cert->x509, host, cn);
}
