/* What the C unit programs share; see support.h. */
#include "support.h"

#include <openssl/evp.h>
#include <openssl/x509.h>

#include "sspi/openssl_internal.h"

struct tw_cert *make_cert(const char *name)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    X509_NAME *subject = X509_get_subject_name(x);
    struct tw_cert *cert;

    CHECK(key && x);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
    X509_gmtime_adj(X509_getm_notBefore(x), -3600);
    X509_gmtime_adj(X509_getm_notAfter(x), 86400);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                               (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(x, subject);
    X509_set_version(x, X509_VERSION_3);
    X509_set_pubkey(x, key);
    CHECK(X509_sign(x, key, EVP_sha256()) > 0);
    cert = tw_openssl_cert_new(x, key, NULL);
    CHECK(cert);
    X509_free(x);
    EVP_PKEY_free(key);
    return cert;
}
