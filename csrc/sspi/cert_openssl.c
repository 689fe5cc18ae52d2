/*
 * Certificates, stores and chains over OpenSSL: the half of the engine
 * that is out of the record path.
 *
 * A certificate is immutable; a store is an array of them behind a lock.
 * An import first parses all it was given into a bundle, without the lock,
 * then marries keys to certificates into a new array, and swaps the arrays
 * at the end: it happens as a whole or not at all. A key that arrives
 * replaces the certificate object by one that has it.
 *
 * A verification lets X509_verify_cert run to its end, whatever it finds:
 * the callback notes every error that is not to be ignored, and the worst
 * one becomes the verdict. Revocation is noted by depth and judged last,
 * when a stapled OCSP answer, or a CRL that was fetched, had its say.
 *
 * The system's roots are parsed once a process (and again when
 * SSL_CERT_FILE or SSL_CERT_DIR change); verifications share the set.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include <openssl/crypto.h>
#include <openssl/http.h>
#include <openssl/ocsp.h>
#include <openssl/pem.h>
#include <openssl/pkcs12.h>
#include <openssl/pkcs7.h>
#include <openssl/x509v3.h>

#include "sspi/openssl_internal.h"

#define IMPORT_MAX ((size_t)64 << 20) /* bytes of one import */
#define KEYS_MAX 32                   /* private keys of one import */
#define CHAIN_MAX 32                  /* issuers above a certificate */
#define DEPTH_MAX 128                 /* OpenSSL's own limit is 100 */
#define CRL_MAX ((size_t)16 << 20)    /* bytes of one fetched CRL */
#define CRL_URLS_MAX 4                /* tried per certificate */
#define OCSP_SKEW 300                 /* seconds a clock may be off */
#define OCSP_AGE_MAX (7L * 24 * 3600) /* of an answer without nextUpdate */
#define SECURITY_LEVEL 2              /* 112 bits, SSL_CTX's default */
#define FETCH_TIMEOUT_MS 15000        /* when none is given */

/* First line of our serialized form; PEM readers skip it. */
static const char serialized_head[] = "twapi_tls certificate store\n";

/* ------------------------------------------------------------------ */
/* Errors                                                             */
/* ------------------------------------------------------------------ */

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

static enum tw_status no_memory(struct tw_error *err)
{
    ERR_clear_error();
    return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY, "%s",
                        "out of memory");
}

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

/* ------------------------------------------------------------------ */
/* Text                                                               */
/* ------------------------------------------------------------------ */

/* Length of the well-formed UTF-8 sequence at s, 0 if it is none. */
static size_t utf8_unit(const unsigned char *s, size_t len)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xC2 ? 0 : s[0] < 0xE0 ? 2
             : s[0] < 0xF0 ? 3 : s[0] < 0xF5 ? 4 : 0;
    size_t i;

    if (n == 0 || n > len) {
        return 0;
    }
    for (i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F)
        || (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F)) {
        return 0;
    }
    return n;
}

/* Where cert_text and cert_info put what they find. */
struct output {
    tw_sink sink;
    void *arg;    /* the sink's */
    bool stopped; /* the sink wants no more */
    bool failed;  /* out of memory */
};

/* One item. Certificates may claim bytes to be UTF-8 that are not; those
   are replaced by U+FFFD, so that the sink's promise holds. */
static void give(struct output *out, const char *key, const void *text,
                 size_t len)
{
    const unsigned char *s = text;
    unsigned char *clean = NULL;
    size_t at = 0, n, used = 0;

    if (out->stopped || out->failed) {
        return;
    }
    while (at < len && (n = utf8_unit(s + at, len - at)) != 0) {
        at += n;
    }
    if (at == len) {
        out->stopped = !out->sink(out->arg, key, len != 0 ? text : "", len);
        return;
    }
    clean = OPENSSL_malloc(3 * len);
    if (clean == NULL) {
        out->failed = true;
        return;
    }
    for (at = 0; at < len; at += n != 0 ? n : 1) {
        n = utf8_unit(s + at, len - at);
        if (n != 0) {
            memcpy(clean + used, s + at, n);
            used += n;
        } else {
            memcpy(clean + used, "\xEF\xBF\xBD", 3);
            used += 3;
        }
    }
    out->stopped = !out->sink(out->arg, key, clean, used);
    OPENSSL_free(clean);
}

static void give_text(struct output *out, const char *key, const char *text)
{
    give(out, key, text, strlen(text));
}

static void give_string(struct output *out, const char *key,
                        const ASN1_STRING *s)
{
    const unsigned char *data = ASN1_STRING_get0_data(s);
    int len = ASN1_STRING_length(s);

    give(out, key, data, len > 0 ? (size_t)len : 0);
}

/* A memory BIO with "CN=a, O=b, C=c"; NULL when out of memory. */
static BIO *name_text(const X509_NAME *name)
{
    BIO *bio = BIO_new(BIO_s_mem());
    unsigned long flags = XN_FLAG_SEP_CPLUS_SPC | XN_FLAG_DN_REV
        | XN_FLAG_FN_SN | XN_FLAG_DUMP_UNKNOWN_FIELDS
        | (ASN1_STRFLGS_RFC2253 & ~(unsigned long)ASN1_STRFLGS_ESC_MSB);

    if (bio != NULL && X509_NAME_print_ex(bio, name, 0, flags) < 0) {
        /* A string that is not what its type says: escape it all. */
        (void)BIO_reset(bio);
        flags = (flags & ~(unsigned long)ASN1_STRFLGS_UTF8_CONVERT)
            | ASN1_STRFLGS_ESC_MSB;
        if (X509_NAME_print_ex(bio, name, 0, flags) < 0) {
            (void)BIO_reset(bio);
        }
        ERR_clear_error();
    }
    return bio;
}

static void give_name(struct output *out, const char *key,
                      const X509_NAME *name)
{
    BIO *bio = name_text(name);
    char *text = NULL;
    long len;

    if (bio == NULL) {
        out->failed = true;
        return;
    }
    len = BIO_get_mem_data(bio, &text);
    give(out, key, text, len > 0 ? (size_t)len : 0);
    BIO_free(bio);
}

/* The most specific common name, which is the last one; "" if none. */
static void give_common_name(struct output *out, const char *key,
                             const X509_NAME *name)
{
    int at = -1, next;
    unsigned char *text = NULL;
    int len;

    while ((next = X509_NAME_get_index_by_NID(name, NID_commonName, at))
           >= 0) {
        at = next;
    }
    if (at < 0) {
        give(out, key, "", 0);
        return;
    }
    len = ASN1_STRING_to_UTF8(
        &text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, at)));
    if (len < 0) {
        ERR_clear_error();
        give(out, key, "", 0);
        return;
    }
    give(out, key, text, (size_t)len);
    OPENSSL_free(text);
}

/* Copies src into dst, cut where a UTF-8 sequence begins. */
static void copy_text(char *dst, size_t room, const char *src, size_t len)
{
    size_t at = 0, n;

    while (at < len && src[at] != '\0') {
        n = utf8_unit((const unsigned char *)src + at, len - at);
        if (at + (n != 0 ? n : 1) >= room) {
            break;
        }
        if (n != 0) {
            memcpy(dst + at, src + at, n);
            at += n;
        } else {
            dst[at++] = '?';
        }
    }
    dst[at] = '\0';
}

/* ------------------------------------------------------------------ */
/* Certificates                                                       */
/* ------------------------------------------------------------------ */

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
    if (EVP_Q_digest(NULL, name, NULL, cert->der, cert->der_len, hash, &len)
        && len == (size_t)bytes) {
        memcpy(out, hash, len);
    }
    ERR_clear_error();
}

enum tw_status tw_openssl_cert_text(struct tw_cert *cert, enum tw_name which,
                                    tw_sink sink, void *arg,
                                    struct tw_error *err)
{
    struct output out = {sink, arg, false, false};
    const X509_NAME *subject = X509_get_subject_name(cert->x509);
    const X509_NAME *issuer = X509_get_issuer_name(cert->x509);

    switch (which) {
    case TW_NAME_SUBJECT_RDN:
        give_name(&out, NULL, subject);
        break;
    case TW_NAME_ISSUER_RDN:
        give_name(&out, NULL, issuer);
        break;
    case TW_NAME_SUBJECT_CN:
        give_common_name(&out, NULL, subject);
        break;
    case TW_NAME_ISSUER_CN:
        give_common_name(&out, NULL, issuer);
        break;
    default:
        return tw_error_set(err, TW_E_ARGUMENT, 0, "%s", "unknown name");
    }
    return out.failed ? no_memory(err) : TW_DONE;
}

static void give_time(struct output *out, const char *key,
                      const ASN1_TIME *when)
{
    struct tm tm;
    char text[64];

    if (when == NULL || !ASN1_TIME_to_tm(when, &tm)) {
        ERR_clear_error();
        give_text(out, key, "");
        return;
    }
    (void)snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02dZ",
                   tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour,
                   tm.tm_min, tm.tm_sec);
    give_text(out, key, text);
}

static void give_serial(struct output *out, X509 *x509)
{
    BIGNUM *n = ASN1_INTEGER_to_BN(X509_get0_serialNumber(x509), NULL);
    char *hex = n != NULL ? BN_bn2hex(n) : NULL;

    if (hex == NULL) {
        out->failed = true;
    } else {
        give_text(out, "serial", hex);
    }
    OPENSSL_free(hex);
    BN_free(n);
}

static void give_key(struct output *out, X509 *x509)
{
    EVP_PKEY *key = X509_get0_pubkey(x509);
    const ASN1_OBJECT *sig = NULL;
    ASN1_OBJECT *oid = NULL;
    const char *name = key != NULL ? EVP_PKEY_get0_type_name(key) : NULL;
    char text[128];

    if (name == NULL) {
        text[0] = '\0';
        if (X509_PUBKEY_get0_param(&oid, NULL, NULL, NULL,
                                   X509_get_X509_PUBKEY(x509))) {
            (void)OBJ_obj2txt(text, sizeof text, oid, 0);
        }
        name = text;
    }
    give_text(out, "key_algorithm", name);
    (void)snprintf(text, sizeof text, "%d",
                   key != NULL ? EVP_PKEY_get_bits(key) : 0);
    give_text(out, "key_bits", text);

    text[0] = '\0';
    X509_ALGOR_get0(&sig, NULL, NULL, X509_get0_tbs_sigalg(x509));
    (void)OBJ_obj2txt(text, sizeof text, sig, 0);
    give_text(out, "signature_algorithm", text);
    ERR_clear_error();
}

static void give_ip(struct output *out, const ASN1_OCTET_STRING *ip)
{
    char text[INET6_ADDRSTRLEN];
    const unsigned char *data = ASN1_STRING_get0_data(ip);
    int len = ASN1_STRING_length(ip);

    if ((len == 4 || len == 16)
        && inet_ntop(len == 4 ? AF_INET : AF_INET6, data, text, sizeof text)
            != NULL) {
        give_text(out, "ip", text);
    }
}

static void give_alt_names(struct output *out, X509 *x509)
{
    GENERAL_NAMES *names =
        X509_get_ext_d2i(x509, NID_subject_alt_name, NULL, NULL);
    int i;

    for (i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        switch (name->type) {
        case GEN_DNS:
            give_string(out, "dns", name->d.dNSName);
            break;
        case GEN_IPADD:
            give_ip(out, name->d.iPAddress);
            break;
        case GEN_EMAIL:
            give_string(out, "email", name->d.rfc822Name);
            break;
        case GEN_URI:
            give_string(out, "uri", name->d.uniformResourceIdentifier);
            break;
        default:
            break;
        }
    }
    GENERAL_NAMES_free(names);
}

static void give_usages(struct output *out, X509 *x509)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } bits[] = {
        {KU_DIGITAL_SIGNATURE, "digitalSignature"},
        {KU_NON_REPUDIATION, "nonRepudiation"},
        {KU_KEY_ENCIPHERMENT, "keyEncipherment"},
        {KU_DATA_ENCIPHERMENT, "dataEncipherment"},
        {KU_KEY_AGREEMENT, "keyAgreement"},
        {KU_KEY_CERT_SIGN, "keyCertSign"},
        {KU_CRL_SIGN, "cRLSign"},
        {KU_ENCIPHER_ONLY, "encipherOnly"},
        {KU_DECIPHER_ONLY, "decipherOnly"},
    };
    EXTENDED_KEY_USAGE *eku;
    char text[128];
    size_t i;
    int k;

    if ((X509_get_extension_flags(x509) & EXFLAG_KUSAGE) != 0) {
        uint32_t usage = X509_get_key_usage(x509);
        for (i = 0; i < sizeof bits / sizeof bits[0]; i++) {
            if ((usage & bits[i].bit) != 0) {
                give_text(out, "usage", bits[i].name);
            }
        }
    }
    eku = X509_get_ext_d2i(x509, NID_ext_key_usage, NULL, NULL);
    for (k = 0; k < sk_ASN1_OBJECT_num(eku); k++) {
        int len = OBJ_obj2txt(text, sizeof text,
                              sk_ASN1_OBJECT_value(eku, k), 1);
        if (len > 0 && (size_t)len < sizeof text) {
            give_text(out, "eku", text);
        }
    }
    EXTENDED_KEY_USAGE_free(eku);
}

static void give_access(struct output *out, X509 *x509)
{
    AUTHORITY_INFO_ACCESS *aia =
        X509_get_ext_d2i(x509, NID_info_access, NULL, NULL);
    int i;

    for (i = 0; i < sk_ACCESS_DESCRIPTION_num(aia); i++) {
        const ACCESS_DESCRIPTION *ad = sk_ACCESS_DESCRIPTION_value(aia, i);
        int nid = OBJ_obj2nid(ad->method);
        if (ad->location->type != GEN_URI) {
            continue;
        }
        if (nid == NID_ad_OCSP) {
            give_string(out, "ocsp_url",
                        ad->location->d.uniformResourceIdentifier);
        } else if (nid == NID_ad_ca_issuers) {
            give_string(out, "ca_url",
                        ad->location->d.uniformResourceIdentifier);
        }
    }
    AUTHORITY_INFO_ACCESS_free(aia);
}

/* Every URI of the cRLDistributionPoints to visit; false stops. */
static void each_crl_url(X509 *x509,
                         bool (*visit)(void *arg, const ASN1_STRING *url),
                         void *arg)
{
    CRL_DIST_POINTS *points =
        X509_get_ext_d2i(x509, NID_crl_distribution_points, NULL, NULL);
    bool more = true;
    int i, k;

    for (i = 0; more && i < sk_DIST_POINT_num(points); i++) {
        const DIST_POINT *point = sk_DIST_POINT_value(points, i);
        /* A point that names another issuer or some reasons only is for
           indirect CRLs, which X509_verify_cert would not use. */
        if (point->distpoint == NULL || point->distpoint->type != 0) {
            continue;
        }
        const GENERAL_NAMES *names = point->distpoint->name.fullname;
        for (k = 0; more && k < sk_GENERAL_NAME_num(names); k++) {
            const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, k);
            if (name->type == GEN_URI) {
                more = visit(arg, name->d.uniformResourceIdentifier);
            }
        }
    }
    CRL_DIST_POINTS_free(points);
}

static bool give_crl_url(void *arg, const ASN1_STRING *url)
{
    struct output *out = arg;

    give_string(out, "crl_url", url);
    return !out->stopped;
}

enum tw_status tw_openssl_cert_info(struct tw_cert *cert, tw_sink sink,
                                    void *arg, struct tw_error *err)
{
    struct output out = {sink, arg, false, false};
    X509 *x509 = cert->x509;
    char text[32];

    (void)snprintf(text, sizeof text, "%ld", X509_get_version(x509) + 1);
    give_text(&out, "version", text);
    give_serial(&out, x509);
    give_name(&out, "subject", X509_get_subject_name(x509));
    give_name(&out, "issuer", X509_get_issuer_name(x509));
    give_time(&out, "notbefore", X509_get0_notBefore(x509));
    give_time(&out, "notafter", X509_get0_notAfter(x509));
    give_key(&out, x509);
    give_text(&out, "is_ca",
              (X509_get_extension_flags(x509) & EXFLAG_CA) != 0 ? "1" : "0");
    give_alt_names(&out, x509);
    give_usages(&out, x509);
    give_access(&out, x509);
    each_crl_url(x509, give_crl_url, &out);
    ERR_clear_error();
    return out.failed ? no_memory(err) : TW_DONE;
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
static bool x509_matches(X509 *x509, const char *host, bool cn)
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
    return x509_matches(cert->x509, host, cn);
}

/* ------------------------------------------------------------------ */
/* Stores                                                             */
/* ------------------------------------------------------------------ */

enum tw_status tw_openssl_store_new(struct tw_store **out,
                                    struct tw_error *err)
{
    struct tw_store *store = OPENSSL_zalloc(sizeof *store);

    *out = store;
    if (store == NULL) {
        return no_memory(err);
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

static bool key_fits(X509 *x509, EVP_PKEY *key)
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
        && key_fits(cert->x509, store->orphan)) {
        item = tw_openssl_cert_new(cert->x509, store->orphan, cert->chain);
    } else {
        item = tw_openssl_cert_ref(cert);
    }
    if (item == NULL) {
        status = no_memory(err);
        goto done;
    }
    if (store->count == store->room) {
        size_t room = store->room != 0 ? 2 * store->room : 8;
        struct tw_cert **certs = OPENSSL_realloc(store->certs,
                                                 room * sizeof *certs);
        if (certs == NULL) {
            status = no_memory(err);
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
done:
    tw_openssl_cert_free(item);
    tw_lock_release(&store->lock);
    return status;
}

/* A store of cert (may be NULL) and then of chain (may be NULL). */
static enum tw_status store_of(struct tw_cert *cert, STACK_OF(X509) *chain,
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
            status = no_memory(err);
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
    return store_of(cert, cert->chain, out, err);
}

/* ------------------------------------------------------------------ */
/* Import: parsing                                                    */
/* ------------------------------------------------------------------ */

/* What one import holds, before it is merged into a store. */
struct bundle {
    STACK_OF(X509) *certs;    /* owned */
    STACK_OF(X509_CRL) *crls; /* owned */
    EVP_PKEY *keys[KEYS_MAX]; /* owned */
    int key_count;            /* of them */
};

static bool bundle_init(struct bundle *b)
{
    memset(b, 0, sizeof *b);
    b->certs = sk_X509_new_null();
    b->crls = sk_X509_CRL_new_null();
    return b->certs != NULL && b->crls != NULL;
}

static void bundle_fini(struct bundle *b)
{
    sk_X509_pop_free(b->certs, X509_free);
    sk_X509_CRL_pop_free(b->crls, X509_CRL_free);
    while (b->key_count > 0) {
        EVP_PKEY_free(b->keys[--b->key_count]);
    }
}

/* These three take over what they are given, also when they fail. */
static enum tw_status bundle_cert(struct bundle *b, X509 *x509,
                                  struct tw_error *err)
{
    if (x509 == NULL) {
        return tw_openssl_fail(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                               "not a certificate");
    }
    if (sk_X509_push(b->certs, x509) == 0) {
        X509_free(x509);
        return no_memory(err);
    }
    return TW_DONE;
}

static enum tw_status bundle_crl(struct bundle *b, X509_CRL *crl,
                                 struct tw_error *err)
{
    if (crl == NULL) {
        return tw_openssl_fail(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                               "not a certificate revocation list");
    }
    if (sk_X509_CRL_push(b->crls, crl) == 0) {
        X509_CRL_free(crl);
        return no_memory(err);
    }
    return TW_DONE;
}

static enum tw_status bundle_key(struct bundle *b, EVP_PKEY *key,
                                 struct tw_error *err)
{
    if (key == NULL) {
        return tw_openssl_fail(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                               "not a private key");
    }
    if (b->key_count == KEYS_MAX) {
        EVP_PKEY_free(key);
        return tw_error_set(err, TW_E_ARGUMENT, 0,
                            "more than %d private keys at once", KEYS_MAX);
    }
    b->keys[b->key_count++] = key;
    return TW_DONE;
}

static enum tw_status bundle_pkcs7(struct bundle *b, PKCS7 *p7,
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
static int answer_password(char *buf, int size, int writing, void *arg)
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
static enum tw_status parse_encrypted_key(struct bundle *b, X509_SIG *sealed,
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
static enum tw_status parse_key_der(struct bundle *b, const uint8_t *data,
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
static enum tw_status parse_key_pem(struct bundle *b, char *header,
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
    if (!PEM_do_header(&cipher, data, &len, answer_password,
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
static enum tw_status parse_block(struct bundle *b, const char *name,
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

static enum tw_status parse_pem(struct bundle *b, const uint8_t *data,
                                size_t len, const char *password,
                                struct tw_error *err)
{
    BIO *bio = BIO_new_mem_buf(data, (int)len);
    enum tw_status status = TW_DONE;
    bool any = false, known;

    if (bio == NULL) {
        return no_memory(err);
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

static enum tw_status parse_pfx(struct bundle *b, const uint8_t *data,
                                size_t len, const char *password,
                                struct tw_error *err)
{
    const unsigned char *p = data;
    PKCS12 *p12 = d2i_PKCS12(NULL, &p, (long)len);
    EVP_PKEY *key = NULL;
    X509 *leaf = NULL;
    STACK_OF(X509) *others = NULL;
    enum tw_status status = TW_DONE;

    if (p12 == NULL) {
        return tw_openssl_fail(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                               "not PKCS #12 (PFX)");
    }
    if (!PKCS12_parse(p12, password, &key, &leaf, &others)) {
        status = fail_decrypt(err, password != NULL, "the PKCS #12 file");
        goto done;
    }
    ERR_clear_error();
    if (leaf != NULL) {
        status = bundle_cert(b, leaf, err);
        leaf = NULL;
    }
    while (status == TW_DONE && sk_X509_num(others) > 0) {
        status = bundle_cert(b, sk_X509_shift(others), err);
    }
    if (status == TW_DONE && key != NULL) {
        status = bundle_key(b, key, err);
        key = NULL;
    }
done:
    EVP_PKEY_free(key);
    X509_free(leaf);
    sk_X509_pop_free(others, X509_free);
    PKCS12_free(p12);
    return status;
}

static bool looks_like_pem(const uint8_t *data, size_t len)
{
    return len != 0 && data[0] != 0x30; /* DER begins with a SEQUENCE */
}

static enum tw_status parse(struct bundle *b, enum tw_encoding encoding,
                            const uint8_t *data, size_t len,
                            const char *password, struct tw_error *err)
{
    const unsigned char *p = data;
    size_t head = sizeof serialized_head - 1;
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
        if (len == head && memcmp(data, serialized_head, head) == 0) {
            return TW_DONE; /* the store was empty */
        }
        return parse_pem(b, data, len, password, err);
    default:
        return tw_error_set(err, TW_E_ARGUMENT, 0, "%s",
                            "unknown encoding");
    }
}

/* ------------------------------------------------------------------ */
/* Import: merging                                                    */
/* ------------------------------------------------------------------ */

static bool key_fits_any(STACK_OF(X509) *certs, EVP_PKEY *key)
{
    int i;

    for (i = 0; i < sk_X509_num(certs); i++) {
        if (key_fits(sk_X509_value(certs, i), key)) {
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
        if (!key_fits(x509, keys[i])) {
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
static enum tw_status check_keys(const struct bundle *b,
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
                                      struct bundle *b,
                                      struct tw_error *err)
{
    size_t room = store->count + (size_t)sk_X509_num(b->certs), count = 0, i;
    struct tw_cert **next = OPENSSL_zalloc((room + 1) * sizeof *next);
    STACK_OF(X509) *pool = sk_X509_dup(b->certs);
    STACK_OF(X509_CRL) *crls = union_crls(store->crls, b->crls);
    EVP_PKEY *keys[KEYS_MAX + 1];
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
    return status == TW_E_NOMEM ? no_memory(err) : status;
}

enum tw_status tw_openssl_store_import(struct tw_store *store,
                                       enum tw_encoding encoding,
                                       const uint8_t *data, size_t len,
                                       const char *password,
                                       struct tw_error *err)
{
    struct bundle b;
    enum tw_status status;

    ERR_clear_error();
    if (len > IMPORT_MAX) {
        return tw_error_set(err, TW_E_ARGUMENT, 0, "%s",
                            "too much data for one import");
    }
    if (!bundle_init(&b)) {
        status = no_memory(err);
        goto done;
    }
    status = parse(&b, encoding, data, len, password, err);
    if (status != TW_DONE) {
        goto done;
    }
    tw_lock_acquire(&store->lock);
    status = merge_lock_held(store, &b, err);
    tw_lock_release(&store->lock);
done:
    bundle_fini(&b);
    ERR_clear_error();
    return status;
}

/* ------------------------------------------------------------------ */
/* Export                                                             */
/* ------------------------------------------------------------------ */

/* The public parts as new references; false when out of memory. */
static bool snapshot(struct tw_store *store, STACK_OF(X509) *certs,
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

/* A degenerate SignedData (RFC 2315, 9.1): nobody signs nothing. */
static bool write_pkcs7(BIO *bio, STACK_OF(X509) *certs,
                        STACK_OF(X509_CRL) *crls)
{
    PKCS7 *p7 = PKCS7_new();
    bool ok = p7 != NULL && PKCS7_set_type(p7, NID_pkcs7_signed) == 1
        && PKCS7_content_new(p7, NID_pkcs7_data) == 1
        && PKCS7_set_detached(p7, 1) == 1;
    int i;

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
        || !snapshot(store, certs, crls)) {
        status = no_memory(err);
        goto done;
    }
    switch (encoding) {
    case TW_ENC_SERIALIZED:
        ok = BIO_puts(bio, serialized_head) > 0
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

/* ------------------------------------------------------------------ */
/* The system's stores                                                */
/* ------------------------------------------------------------------ */

/* The system's roots, parsed; shared by all verifications. */
static struct {
    struct tw_lock lock;   /* around all below */
    char *key;             /* the environment they were read under */
    X509_STORE *trust;     /* of certs */
    STACK_OF(X509) *certs; /* owned references */
} roots;

static CRYPTO_ONCE roots_once = CRYPTO_ONCE_STATIC_INIT;

static void roots_init(void)
{
    tw_lock_init(&roots.lock);
}

/* Adds the certificates of a PEM file; silently none if it is not one. */
static bool load_file(const char *path, STACK_OF(X509) *certs)
{
    BIO *bio = BIO_new_file(path, "r");
    int bad = 0;
    bool ok = true;

    /* X509_AUX: the bundle may say "TRUSTED CERTIFICATE" and for what. A
       block that cannot be read does not hide those after it. */
    while (ok && bio != NULL && bad < 100) {
        X509 *x509 = PEM_read_bio_X509_AUX(bio, NULL, answer_password, NULL);
        if (x509 != NULL) {
            ok = sk_X509_push(certs, x509) != 0;
            if (!ok) {
                X509_free(x509);
            }
        } else if (ERR_GET_REASON(ERR_peek_last_error())
                   == PEM_R_NO_START_LINE) {
            break;
        } else {
            bad++;
            ERR_clear_error();
        }
    }
    BIO_free(bio);
    ERR_clear_error();
    return ok;
}

/* "1a2b3c4d.0": what c_rehash makes of a certificate. */
static bool is_hashed_name(const char *name)
{
    return strspn(name, "0123456789abcdef") == 8 && name[8] == '.'
        && name[9] != '\0'
        && strspn(name + 9, "0123456789") == strlen(name + 9);
}

static bool is_pfx_name(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot != NULL && dot != name
        && (strcasecmp(dot, ".pfx") == 0 || strcasecmp(dot, ".p12") == 0);
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void free_paths(char **paths, size_t count)
{
    while (count > 0) {
        OPENSSL_free(paths[--count]);
    }
    OPENSSL_free(paths);
}

static char *join_path(const char *dir, size_t dir_len, const char *tail)
{
    size_t room = dir_len + strlen(tail) + 2;
    char *path = OPENSSL_malloc(room);

    if (path != NULL) {
        (void)snprintf(path, room, "%.*s/%s", (int)dir_len, dir, tail);
    }
    return path;
}

/* The wanted files of a directory, sorted; a directory that is not there
   has none. False when out of memory. */
static bool list_directory(const char *path, bool (*wanted)(const char *),
                           char ***out, size_t *count)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    char **paths = NULL, **more;
    size_t n = 0, room = 0;
    bool ok = true;

    while (ok && dir != NULL && (entry = readdir(dir)) != NULL) {
        if (!wanted(entry->d_name)) {
            continue;
        }
        if (n == room) {
            room = room != 0 ? 2 * room : 64;
            more = OPENSSL_realloc(paths, room * sizeof *paths);
            if (more == NULL) {
                ok = false;
                break;
            }
            paths = more;
        }
        paths[n] = join_path(path, strlen(path), entry->d_name);
        ok = paths[n] != NULL;
        n += ok ? 1 : 0;
    }
    if (dir != NULL) {
        (void)closedir(dir);
    }
    if (!ok) {
        free_paths(paths, n);
        return false;
    }
    if (n > 1) {
        qsort(paths, n, sizeof *paths, compare_paths);
    }
    *out = paths;
    *count = n;
    return true;
}

/* dirs: one or more directories, separated by ':'. */
static bool load_directories(const char *dirs, STACK_OF(X509) *certs)
{
    const char *at = dirs;
    bool ok = true;

    while (ok && *at != '\0') {
        size_t len = strcspn(at, ":");
        char **paths = NULL, *dir;
        size_t count = 0, i;

        if (len > 0) {
            dir = OPENSSL_strndup(at, len);
            ok = dir != NULL
                && list_directory(dir, is_hashed_name, &paths, &count);
            for (i = 0; ok && i < count; i++) {
                ok = load_file(paths[i], certs);
            }
            free_paths(paths, count);
            OPENSSL_free(dir);
        }
        at += len;
        at += *at == ':' ? 1 : 0;
    }
    return ok;
}

/*
 * As OpenSSL does it: the environment's file and directory, each with its
 * default. A directory is read when it was named or when the file gave
 * nothing. Where OpenSSL's own directories are empty (a build of its own,
 * as wheels bring) and the environment is silent, the places where systems
 * keep their bundle are tried.
 */
static bool load_roots(const char *env_file, const char *env_dir,
                       STACK_OF(X509) *certs)
{
    static const char *const known[] = {
        "/etc/ssl/certs/ca-certificates.crt", /* Debian, Arch, Alpine */
        "/etc/pki/tls/certs/ca-bundle.crt",   /* Fedora, RHEL */
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/ca-bundle.pem",             /* openSUSE */
        "/etc/ssl/cert.pem",                  /* Alpine, BSD, macOS */
        "/usr/local/share/certs/ca-root-nss.crt",
    };
    const char *file = env_file != NULL ? env_file
                                        : X509_get_default_cert_file();
    const char *dir = env_dir != NULL ? env_dir
                                      : X509_get_default_cert_dir();
    size_t i;

    if (!load_file(file, certs)) {
        return false;
    }
    if ((env_dir != NULL || sk_X509_num(certs) == 0)
        && !load_directories(dir, certs)) {
        return false;
    }
    for (i = 0; env_file == NULL && env_dir == NULL
                && sk_X509_num(certs) == 0
                && i < sizeof known / sizeof known[0]; i++) {
        if (!load_file(known[i], certs)) {
            return false;
        }
    }
    return true;
}

static bool trust_all(X509_STORE *trust, STACK_OF(X509) *certs)
{
    int i;

    for (i = 0; i < sk_X509_num(certs); i++) {
        if (!X509_STORE_add_cert(trust, sk_X509_value(certs, i))) {
            return false;
        }
    }
    return true;
}

static bool roots_refresh_lock_held(void)
{
    const char *file = getenv(X509_get_default_cert_file_env());
    const char *dir = getenv(X509_get_default_cert_dir_env());
    size_t room = 8 + (file != NULL ? strlen(file) : 0)
        + (dir != NULL ? strlen(dir) : 0);
    char *key = OPENSSL_malloc(room);
    STACK_OF(X509) *certs = NULL;
    X509_STORE *trust = NULL;
    bool ok = false;

    if (key == NULL) {
        return false;
    }
    (void)snprintf(key, room, "%s%s\n%s%s", file != NULL ? "=" : "",
                   file != NULL ? file : "", dir != NULL ? "=" : "",
                   dir != NULL ? dir : "");
    if (roots.key != NULL && strcmp(roots.key, key) == 0) {
        OPENSSL_free(key);
        return true;
    }
    certs = sk_X509_new_null();
    trust = X509_STORE_new();
    ok = certs != NULL && trust != NULL && load_roots(file, dir, certs)
        && trust_all(trust, certs);
    if (ok) {
        OPENSSL_free(roots.key);
        X509_STORE_free(roots.trust);
        sk_X509_pop_free(roots.certs, X509_free);
        roots.key = key;
        roots.trust = trust;
        roots.certs = certs;
    } else {
        OPENSSL_free(key);
        X509_STORE_free(trust);
        sk_X509_pop_free(certs, X509_free);
    }
    ERR_clear_error();
    return ok;
}

/* New references to what is asked for; false when out of memory. */
static bool system_roots(X509_STORE **trust, STACK_OF(X509) **certs)
{
    bool ok;

    if (!CRYPTO_THREAD_run_once(&roots_once, roots_init)) {
        return false;
    }
    tw_lock_acquire(&roots.lock);
    ok = roots_refresh_lock_held();
    if (ok && trust != NULL) {
        (void)X509_STORE_up_ref(roots.trust);
        *trust = roots.trust;
    }
    if (ok && certs != NULL) {
        *certs = X509_chain_up_ref(roots.certs);
        ok = *certs != NULL;
    }
    tw_lock_release(&roots.lock);
    return ok;
}

static enum tw_status open_root(struct tw_store *store,
                                struct tw_error *err)
{
    struct bundle b;
    STACK_OF(X509) *certs = NULL;
    enum tw_status status;

    memset(&b, 0, sizeof b);
    if (!system_roots(NULL, &certs)) {
        return no_memory(err);
    }
    b.certs = certs;
    tw_lock_acquire(&store->lock);
    status = merge_lock_held(store, &b, err);
    tw_lock_release(&store->lock);
    bundle_fini(&b);
    return status;
}

/* Where the files of "MY" are; NULL if there is no home, or no memory. */
static char *my_directory(const char *location)
{
    const char *data = getenv("XDG_DATA_HOME");
    const char *home = getenv("HOME");

    if (strcasecmp(location, "machine") == 0) {
        return OPENSSL_strdup("/etc/twapi_tls/my");
    }
    if (data != NULL && data[0] == '/') {
        return join_path(data, strlen(data), "twapi_tls/my");
    }
    if (home != NULL && home[0] != '\0') {
        return join_path(home, strlen(home), ".local/share/twapi_tls/my");
    }
    return NULL;
}

/* PKCS #12 files without a password. One that cannot be read is passed
   over, as .NET does it: it must not take the others with it. */
static enum tw_status open_my(struct tw_store *store, const char *location,
                              struct tw_error *err)
{
    char *dir = my_directory(location);
    char **paths = NULL;
    size_t count = 0, i;

    if (dir == NULL) {
        return TW_DONE;
    }
    if (!list_directory(dir, is_pfx_name, &paths, &count)) {
        OPENSSL_free(dir);
        return no_memory(err);
    }
    for (i = 0; i < count; i++) {
        BIO *bio = BIO_new_file(paths[i], "rb");
        PKCS12 *p12 = bio != NULL ? d2i_PKCS12_bio(bio, NULL) : NULL;
        unsigned char *der = NULL;
        int len = p12 != NULL ? i2d_PKCS12(p12, &der) : 0;
        if (len > 0) {
            (void)tw_openssl_store_import(store, TW_ENC_PFX, der,
                                          (size_t)len, "", NULL);
        }
        OPENSSL_clear_free(der, len > 0 ? (size_t)len : 0);
        PKCS12_free(p12);
        BIO_free(bio);
    }
    free_paths(paths, count);
    OPENSSL_free(dir);
    ERR_clear_error();
    return TW_DONE;
}

enum tw_status tw_openssl_store_open(const char *name, const char *location,
                                     struct tw_store **out,
                                     struct tw_error *err)
{
    struct tw_store *store = NULL;
    enum tw_status status;

    *out = NULL;
    if (location == NULL) {
        location = "user";
    }
    if (strcasecmp(location, "user") != 0
        && strcasecmp(location, "machine") != 0) {
        return tw_error_set(err, TW_E_NOT_FOUND, CRYPT_E_NOT_FOUND,
                            "no store location '%s': there are 'user' and"
                            " 'machine'", location);
    }
    if (name == NULL
        || (strcasecmp(name, "ROOT") != 0 && strcasecmp(name, "CA") != 0
            && strcasecmp(name, "MY") != 0)) {
        return tw_error_set(err, TW_E_NOT_FOUND, CRYPT_E_NOT_FOUND,
                            "no system store '%s': there are 'ROOT', 'CA'"
                            " and 'MY'", name != NULL ? name : "");
    }
    status = tw_openssl_store_new(&store, err);
    if (status == TW_DONE && strcasecmp(name, "ROOT") == 0) {
        status = open_root(store, err);
    } else if (status == TW_DONE && strcasecmp(name, "MY") == 0) {
        status = open_my(store, location, err);
    }
    if (status != TW_DONE) {
        tw_openssl_store_free(store);
        return status;
    }
    *out = store;
    return TW_DONE;
}

/* ------------------------------------------------------------------ */
/* Verification                                                       */
/* ------------------------------------------------------------------ */

/* Which class of trouble an X509_V_ERR_... is: decides the code, what
   ignores it, and which of two is the one to report (the lower). */
enum trouble {
    TROUBLE_SIGNATURE,
    TROUBLE_REVOKED,
    TROUBLE_ROOT,
    TROUBLE_CHAINING,
    TROUBLE_CONSTRAINTS,
    TROUBLE_CRITICAL,
    TROUBLE_NAME_SPACE,
    TROUBLE_POLICY,
    TROUBLE_OTHER,
    TROUBLE_TIME,
    TROUBLE_USAGE,
    TROUBLE_NAME,
    TROUBLE_UNCHECKED, /* revocation: nothing to go by */
    TROUBLE_OFFLINE,   /* revocation: what there is is stale */
    TROUBLE_NONE
};

static const struct {
    int32_t code;
    uint32_t ignore; /* TW_IGNORE_... */
} troubles[] = {
    [TROUBLE_SIGNATURE] = {TRUST_E_CERT_SIGNATURE, 0},
    [TROUBLE_REVOKED] = {CRYPT_E_REVOKED, TW_IGNORE_REVOCATION},
    [TROUBLE_ROOT] = {CERT_E_UNTRUSTEDROOT, TW_IGNORE_UNKNOWN_CA},
    [TROUBLE_CHAINING] = {CERT_E_CHAINING, TW_IGNORE_UNKNOWN_CA},
    [TROUBLE_CONSTRAINTS] = {TRUST_E_BASIC_CONSTRAINTS,
                             TW_IGNORE_BASIC_CONSTRAINTS},
    [TROUBLE_CRITICAL] = {CERT_E_CRITICAL, TW_IGNORE_CRITICAL},
    [TROUBLE_NAME_SPACE] = {CERT_E_INVALID_NAME, 0},
    [TROUBLE_POLICY] = {CERT_E_INVALID_POLICY, TW_IGNORE_POLICY},
    [TROUBLE_OTHER] = {SEC_E_CERT_UNKNOWN, 0},
    [TROUBLE_TIME] = {CERT_E_EXPIRED, TW_IGNORE_TIME},
    [TROUBLE_USAGE] = {CERT_E_WRONG_USAGE, TW_IGNORE_USAGE},
    [TROUBLE_NAME] = {CERT_E_CN_NO_MATCH, TW_IGNORE_NAME},
    [TROUBLE_UNCHECKED] = {CERT_E_REVOCATION_FAILURE,
                           TW_IGNORE_REVOCATION
                               | TW_IGNORE_REVOCATION_OFFLINE},
    [TROUBLE_OFFLINE] = {CRYPT_E_REVOCATION_OFFLINE,
                         TW_IGNORE_REVOCATION
                             | TW_IGNORE_REVOCATION_OFFLINE},
    [TROUBLE_NONE] = {0, 0},
};

static enum trouble trouble_of(int error)
{
    switch (error) {
    case X509_V_OK:
        return TROUBLE_NONE;
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    case X509_V_ERR_UNABLE_TO_DECRYPT_CERT_SIGNATURE:
    case X509_V_ERR_UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY:
    case X509_V_ERR_SIGNATURE_ALGORITHM_MISMATCH:
    case X509_V_ERR_EE_KEY_TOO_SMALL:
    case X509_V_ERR_CA_KEY_TOO_SMALL:
    case X509_V_ERR_CA_MD_TOO_WEAK:
        return TROUBLE_SIGNATURE;
    case X509_V_ERR_CERT_REVOKED:
        return TROUBLE_REVOKED;
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_UNTRUSTED:
    case X509_V_ERR_CERT_REJECTED:
        return TROUBLE_ROOT;
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_CERT_CHAIN_TOO_LONG:
    case X509_V_ERR_SUBJECT_ISSUER_MISMATCH:
    case X509_V_ERR_AKID_SKID_MISMATCH:
    case X509_V_ERR_AKID_ISSUER_SERIAL_MISMATCH:
        return TROUBLE_CHAINING;
    case X509_V_ERR_INVALID_CA:
    case X509_V_ERR_INVALID_NON_CA:
    case X509_V_ERR_PATH_LENGTH_EXCEEDED:
    case X509_V_ERR_PROXY_PATH_LENGTH_EXCEEDED:
    case X509_V_ERR_PROXY_CERTIFICATES_NOT_ALLOWED:
    case X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA:
    case X509_V_ERR_PATHLEN_WITHOUT_KU_KEY_CERT_SIGN:
    case X509_V_ERR_KU_KEY_CERT_SIGN_INVALID_FOR_NON_CA:
    case X509_V_ERR_CA_BCONS_NOT_CRITICAL:
        return TROUBLE_CONSTRAINTS;
    case X509_V_ERR_UNHANDLED_CRITICAL_EXTENSION:
        return TROUBLE_CRITICAL;
    case X509_V_ERR_PERMITTED_VIOLATION:
    case X509_V_ERR_EXCLUDED_VIOLATION:
    case X509_V_ERR_SUBTREE_MINMAX:
    case X509_V_ERR_UNSUPPORTED_CONSTRAINT_TYPE:
    case X509_V_ERR_UNSUPPORTED_CONSTRAINT_SYNTAX:
    case X509_V_ERR_UNSUPPORTED_NAME_SYNTAX:
    case X509_V_ERR_PROXY_SUBJECT_NAME_VIOLATION:
        return TROUBLE_NAME_SPACE;
    case X509_V_ERR_INVALID_POLICY_EXTENSION:
    case X509_V_ERR_NO_EXPLICIT_POLICY:
        return TROUBLE_POLICY;
    case X509_V_ERR_CERT_NOT_YET_VALID:
    case X509_V_ERR_CERT_HAS_EXPIRED:
    case X509_V_ERR_ERROR_IN_CERT_NOT_BEFORE_FIELD:
    case X509_V_ERR_ERROR_IN_CERT_NOT_AFTER_FIELD:
        return TROUBLE_TIME;
    case X509_V_ERR_INVALID_PURPOSE:
    case X509_V_ERR_KEYUSAGE_NO_CERTSIGN:
    case X509_V_ERR_KEYUSAGE_NO_DIGITAL_SIGNATURE:
        return TROUBLE_USAGE;
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
    case X509_V_ERR_EMAIL_MISMATCH:
        return TROUBLE_NAME;
    case X509_V_ERR_CRL_HAS_EXPIRED:
    case X509_V_ERR_CRL_NOT_YET_VALID:
        return TROUBLE_OFFLINE;
    case X509_V_ERR_UNABLE_TO_GET_CRL:
    case X509_V_ERR_UNABLE_TO_GET_CRL_ISSUER:
    case X509_V_ERR_UNABLE_TO_DECRYPT_CRL_SIGNATURE:
    case X509_V_ERR_CRL_SIGNATURE_FAILURE:
    case X509_V_ERR_ERROR_IN_CRL_LAST_UPDATE_FIELD:
    case X509_V_ERR_ERROR_IN_CRL_NEXT_UPDATE_FIELD:
    case X509_V_ERR_KEYUSAGE_NO_CRL_SIGN:
    case X509_V_ERR_UNHANDLED_CRITICAL_CRL_EXTENSION:
    case X509_V_ERR_DIFFERENT_CRL_SCOPE:
    case X509_V_ERR_CRL_PATH_VALIDATION_ERROR:
    case X509_V_ERR_OCSP_VERIFY_NEEDED:
    case X509_V_ERR_OCSP_VERIFY_FAILED:
    case X509_V_ERR_OCSP_CERT_UNKNOWN:
        return TROUBLE_UNCHECKED;
    default:
        return TROUBLE_OTHER;
    }
}

int32_t tw_openssl_verify_code(int x509_error)
{
    return troubles[trouble_of(x509_error)].code;
}

/* One verification. */
struct trial {
    const struct tw_verify_config *config;
    X509 *leaf;               /* borrowed */
    X509_STORE *trust;        /* owned: the anchors */
    STACK_OF(X509) *extra;    /* owned: what may stand between */
    STACK_OF(X509_CRL) *crls; /* owned */
    STACK_OF(X509) *path;     /* owned: what was built */
    uint32_t ignore;          /* TW_IGNORE_... */
    bool revocation;          /* is to be looked at */
    bool broken;              /* the path ends in the open */
    const X509_CRL *bad_crl;  /* not to be believed; borrowed */
    enum trouble worst;       /* so far */
    int depth;                /* of it */
    char detail[256];         /* of it */
    /* By depth: TROUBLE_UNCHECKED, TROUBLE_OFFLINE or 0. */
    unsigned char open[DEPTH_MAX];
};

static void note(struct trial *t, enum trouble trouble, int depth,
                 const char *text, const X509 *x509)
{
    BIO *bio;
    char *name = NULL;
    long len;
    size_t at;

    if (trouble >= t->worst || (troubles[trouble].ignore & t->ignore) != 0) {
        return;
    }
    t->worst = trouble;
    t->depth = depth;
    copy_text(t->detail, sizeof t->detail, text, strlen(text));
    bio = x509 != NULL ? name_text(X509_get_subject_name(x509)) : NULL;
    len = bio != NULL ? BIO_get_mem_data(bio, &name) : 0;
    at = strlen(t->detail);
    if (len > 0 && at + 8 < sizeof t->detail) {
        memcpy(t->detail + at, ": ", 2);
        copy_text(t->detail + at + 2, sizeof t->detail - at - 2, name,
                  (size_t)len);
    }
    BIO_free(bio);
}

/*
 * Revocation of one certificate could not be settled. The anchor is the
 * exception: no one stands above it who could revoke it, and roots do not
 * name a CRL for themselves.
 */
static void note_open(struct trial *t, X509_STORE_CTX *ctx,
                      enum trouble trouble, int depth)
{
    STACK_OF(X509) *path = X509_STORE_CTX_get0_chain(ctx);
    int top = sk_X509_num(path) - 1;
    bool anchor = depth == top
        && (!t->broken || X509_self_signed(sk_X509_value(path, top), 0) == 1);

    if (depth < 0 || depth >= DEPTH_MAX
        || (anchor && (trouble == TROUBLE_UNCHECKED
                       || t->config->revocation
                           == TW_REVOKE_CHAIN_NO_ROOT))) {
        return;
    }
    if (t->open[depth] == 0 || trouble == TROUBLE_OFFLINE) {
        t->open[depth] = (unsigned char)trouble;
    }
}

static int on_verify(int ok, X509_STORE_CTX *ctx)
{
    struct trial *t = X509_STORE_CTX_get_app_data(ctx);
    int error = X509_STORE_CTX_get_error(ctx);
    int depth = X509_STORE_CTX_get_error_depth(ctx);
    enum trouble trouble;

    if (ok || t == NULL) {
        return ok; /* t is NULL in a path of its own, for a CRL's signer */
    }
    if (error == X509_V_ERR_OUT_OF_MEM || error == X509_V_ERR_INVALID_CALL
        || error == X509_V_ERR_STORE_LOOKUP) {
        return 0;
    }
    trouble = trouble_of(error);
    if (trouble == TROUBLE_UNCHECKED || trouble == TROUBLE_OFFLINE) {
        /* Nothing of an unsound CRL is to be believed. */
        if (error != X509_V_ERR_UNABLE_TO_GET_CRL
            && trouble == TROUBLE_UNCHECKED) {
            t->bad_crl = X509_STORE_CTX_get0_current_crl(ctx);
        }
        note_open(t, ctx, trouble, depth);
        return 1;
    }
    if (trouble == TROUBLE_REVOKED
        && ((t->bad_crl != NULL
             && t->bad_crl == X509_STORE_CTX_get0_current_crl(ctx))
            || (t->config->revocation == TW_REVOKE_CHAIN_NO_ROOT
                && depth == sk_X509_num(X509_STORE_CTX_get0_chain(ctx)) - 1
                && depth > 0))) {
        return 1;
    }
    if (trouble == TROUBLE_ROOT || trouble == TROUBLE_CHAINING) {
        t->broken = true;
    }
    note(t, trouble, depth, X509_verify_cert_error_string(error),
         X509_STORE_CTX_get_current_cert(ctx));
    return 1;
}

/* Runs X509_verify_cert over what there is; false if it could not run. */
static bool build_path(struct trial *t)
{
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    X509_VERIFY_PARAM *param;
    unsigned long flags = 0;
    int error;
    bool ok = false;

    t->worst = TROUBLE_NONE;
    t->depth = 0;
    t->detail[0] = '\0';
    t->broken = false;
    t->bad_crl = NULL;
    memset(t->open, 0, sizeof t->open);
    sk_X509_pop_free(t->path, X509_free);
    t->path = NULL;

    if (ctx == NULL
        || !X509_STORE_CTX_init(ctx, t->trust, t->leaf, t->extra)) {
        goto done;
    }
    if (t->revocation) {
        flags |= X509_V_FLAG_CRL_CHECK;
        if (t->config->revocation != TW_REVOKE_LEAF) {
            flags |= X509_V_FLAG_CRL_CHECK_ALL;
        }
    }
    param = X509_STORE_CTX_get0_param(ctx);
    (void)X509_VERIFY_PARAM_set_flags(param, flags);
    X509_VERIFY_PARAM_set_auth_level(param, SECURITY_LEVEL);
    /* What "TRUSTED CERTIFICATE" says; the usages are seen to below. */
    (void)X509_VERIFY_PARAM_set_trust(param, t->config->server != NULL
                                                 ? X509_TRUST_SSL_SERVER
                                                 : X509_TRUST_SSL_CLIENT);
    X509_STORE_CTX_set0_crls(ctx, t->crls);
    X509_STORE_CTX_set_verify_cb(ctx, on_verify);
    if (!X509_STORE_CTX_set_app_data(ctx, t)) {
        goto done;
    }
    ok = X509_verify_cert(ctx) == 1;
    if (!ok) {
        error = X509_STORE_CTX_get_error(ctx);
        ok = error != X509_V_OK && error != X509_V_ERR_OUT_OF_MEM
            && error != X509_V_ERR_INVALID_CALL
            && error != X509_V_ERR_STORE_LOOKUP;
        if (ok && t->worst == TROUBLE_NONE) {
            /* It gave up without asking: no flag may turn that to good. */
            t->ignore = 0;
            note(t, trouble_of(error), 0,
                 X509_verify_cert_error_string(error), t->leaf);
        }
    }
    if (ok) {
        t->path = X509_STORE_CTX_get1_chain(ctx);
        ok = t->path != NULL;
    }
done:
    X509_STORE_CTX_free(ctx);
    return ok;
}

/* --- usages --- */

static bool allows_usage(X509 *x509, const char *oid)
{
    EXTENDED_KEY_USAGE *eku;
    char text[128];
    bool allowed = false;
    int at = -1, i;

    eku = X509_get_ext_d2i(x509, NID_ext_key_usage, &at, NULL);
    if (eku == NULL) {
        return at == -1; /* no such extension; otherwise it is damaged */
    }
    for (i = 0; !allowed && i < sk_ASN1_OBJECT_num(eku); i++) {
        const ASN1_OBJECT *object = sk_ASN1_OBJECT_value(eku, i);
        int len = OBJ_obj2txt(text, sizeof text, object, 1);
        allowed = OBJ_obj2nid(object) == NID_anyExtendedKeyUsage
            || (len > 0 && (size_t)len < sizeof text
                && strcmp(text, oid) == 0);
    }
    EXTENDED_KEY_USAGE_free(eku);
    return allowed;
}

/* The depth of the first certificate that does not allow oid, or -1. The
   anchor is not asked, unless it is the leaf itself: trusting it was a
   decision, not a matter of what it says. */
static int usage_refused(const struct trial *t, const char *oid)
{
    int n = sk_X509_num(t->path), i;

    if (!allows_usage(t->leaf, oid)) {
        return 0;
    }
    for (i = 1; i < (t->broken ? n : n - 1); i++) {
        if (!allows_usage(sk_X509_value(t->path, i), oid)) {
            return i;
        }
    }
    return -1;
}

/* RFC 5280, 4.2.1.12 and 4.2.1.3. */
static void check_usages(struct trial *t)
{
    static const char *const server_auth[] = {"1.3.6.1.5.5.7.3.1"};
    static const char *const client_auth[] = {"1.3.6.1.5.5.7.3.2"};
    const struct tw_verify_config *config = t->config;
    const char *const *usages = config->usages;
    size_t count = config->usage_count, i;
    uint32_t bits = KU_DIGITAL_SIGNATURE | KU_KEY_AGREEMENT;
    int refused = -1;

    if (usages == NULL) {
        usages = config->server != NULL ? server_auth : client_auth;
        count = 1;
    }
    for (i = 0; i < count; i++) {
        refused = usage_refused(t, usages[i]);
        if ((refused < 0) == config->usage_any) {
            break; /* one of any is found, or one of all is not */
        }
    }
    if (refused >= 0) {
        note(t, TROUBLE_USAGE, refused,
             "not meant for this use (extendedKeyUsage)",
             sk_X509_value(t->path, refused));
    }
    if (config->server != NULL) {
        bits |= KU_KEY_ENCIPHERMENT; /* RSA key exchange of TLS 1.2 */
    }
    if (config->usages == NULL
        && (X509_get_key_usage(t->leaf) & bits) == 0) {
        note(t, TROUBLE_USAGE, 0, "not meant for this use (keyUsage)",
             t->leaf);
    }
}

static void check_name(struct trial *t)
{
    const struct tw_verify_config *config = t->config;
    char text[200];

    if (!config->check_name || config->server == NULL
        || x509_matches(t->leaf, config->server, config->common_name)) {
        return;
    }
    (void)snprintf(text, sizeof text, "not issued for '%.120s'",
                   config->server);
    note(t, TROUBLE_NAME, 0, text, t->leaf);
}

/* --- revocation: the stapled answer --- */

/* The answer about leaf among those of bs, NULL if there is none. */
static OCSP_SINGLERESP *find_answer(OCSP_BASICRESP *bs, X509 *leaf,
                                    X509 *issuer)
{
    OCSP_SINGLERESP *found = NULL;
    int i;

    for (i = 0; found == NULL && i < OCSP_resp_count(bs); i++) {
        OCSP_SINGLERESP *single = OCSP_resp_get0(bs, i);
        const OCSP_CERTID *theirs = OCSP_SINGLERESP_get0_id(single);
        ASN1_OBJECT *algorithm = NULL;
        const EVP_MD *md;
        OCSP_CERTID *ours;

        (void)OCSP_id_get0_info(NULL, &algorithm, NULL, NULL,
                                (OCSP_CERTID *)(uintptr_t)theirs);
        md = algorithm != NULL ? EVP_get_digestbyobj(algorithm) : NULL;
        ours = md != NULL ? OCSP_cert_to_id(md, leaf, issuer) : NULL;
        if (ours != NULL && OCSP_id_cmp(ours, theirs) == 0) {
            found = single;
        }
        OCSP_CERTID_free(ours);
    }
    return found;
}

/*
 * Is bs signed by the issuer, or by whom it delegated to (RFC 6960,
 * 4.2.2.2)? The issuer is taken from the path that was built, and is the
 * only anchor here, so that no other CA can speak for it.
 */
static bool answer_is_genuine(OCSP_BASICRESP *bs, X509 *issuer)
{
    X509_STORE *trust = X509_STORE_new();
    STACK_OF(X509) *known = sk_X509_new_null();
    bool genuine = false;

    if (trust != NULL && known != NULL && sk_X509_push(known, issuer) != 0
        && X509_STORE_add_cert(trust, issuer)
        && X509_STORE_set_flags(trust, X509_V_FLAG_PARTIAL_CHAIN)) {
        X509_VERIFY_PARAM_set_auth_level(X509_STORE_get0_param(trust),
                                         SECURITY_LEVEL);
        genuine = OCSP_basic_verify(bs, known, trust, 0) == 1;
    }
    sk_X509_free(known);
    X509_STORE_free(trust);
    return genuine;
}

/* TROUBLE_NONE: good; TROUBLE_REVOKED; TROUBLE_OFFLINE: stale;
   TROUBLE_UNCHECKED: it does not help. */
static enum trouble judge_answer(const struct trial *t)
{
    const unsigned char *p = t->config->ocsp;
    X509 *issuer = sk_X509_value(t->path, 1);
    OCSP_RESPONSE *response = NULL;
    OCSP_BASICRESP *bs = NULL;
    OCSP_SINGLERESP *single;
    ASN1_GENERALIZEDTIME *from = NULL, *until = NULL;
    enum trouble trouble = TROUBLE_UNCHECKED;
    int status, reason;

    if (p == NULL || t->config->ocsp_len > CRL_MAX || issuer == NULL) {
        return TROUBLE_UNCHECKED;
    }
    response = d2i_OCSP_RESPONSE(NULL, &p, (long)t->config->ocsp_len);
    if (response == NULL
        || OCSP_response_status(response)
            != OCSP_RESPONSE_STATUS_SUCCESSFUL) {
        goto done;
    }
    bs = OCSP_response_get1_basic(response);
    single = bs != NULL ? find_answer(bs, t->leaf, issuer) : NULL;
    if (single == NULL || !answer_is_genuine(bs, issuer)) {
        goto done;
    }
    status = OCSP_single_get0_status(single, &reason, NULL, &from, &until);
    if (status == V_OCSP_CERTSTATUS_REVOKED) {
        trouble = TROUBLE_REVOKED; /* however old: there is no way back */
    } else if (!OCSP_check_validity(from, until, OCSP_SKEW,
                                    until != NULL ? -1 : OCSP_AGE_MAX)) {
        trouble = TROUBLE_OFFLINE;
    } else if (status == V_OCSP_CERTSTATUS_GOOD) {
        trouble = TROUBLE_NONE;
    }
done:
    OCSP_BASICRESP_free(bs);
    OCSP_RESPONSE_free(response);
    ERR_clear_error();
    return trouble;
}

static void check_answer(struct trial *t)
{
    enum trouble answer = judge_answer(t);

    if (answer == TROUBLE_REVOKED) {
        note(t, TROUBLE_REVOKED, 0,
             "certificate revoked (stapled OCSP answer)", t->leaf);
    } else if (answer == TROUBLE_NONE) {
        t->open[0] = 0;
    } else if (answer == TROUBLE_OFFLINE && t->open[0] != 0) {
        t->open[0] = TROUBLE_OFFLINE;
    }
}

/* --- revocation: fetched CRLs --- */

struct fetch {
    STACK_OF(X509_CRL) *crls; /* where to; borrowed */
    int64_t deadline;         /* milliseconds of the monotonic clock */
    int tries;                /* left for this certificate */
    bool found;               /* something, for this certificate */
};

static int64_t now_ms(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool fetch_crl(void *arg, const ASN1_STRING *where)
{
    struct fetch *f = arg;
    const unsigned char *data = ASN1_STRING_get0_data(where);
    int len = ASN1_STRING_length(where);
    int64_t left = f->deadline - now_ms();
    char *url = NULL;
    BIO *bio = NULL;
    X509_CRL *crl = NULL;

    if (left <= 0 || f->tries-- <= 0) {
        return false;
    }
    /* Plain http only (RFC 5280, 8: anything else could loop). */
    if (len < 8 || len > 2048 || strncasecmp((const char *)data, "http://",
                                             7) != 0
        || memchr(data, '\0', (size_t)len) != NULL) {
        return true;
    }
    url = OPENSSL_strndup((const char *)data, (size_t)len);
    if (url != NULL) {
        bio = OSSL_HTTP_get(url, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL,
                            NULL, 1, CRL_MAX, (int)((left + 999) / 1000));
    }
    if (bio != NULL) {
        crl = d2i_X509_CRL_bio(bio, NULL);
    }
    if (crl != NULL && sk_X509_CRL_push(f->crls, crl) != 0) {
        f->found = true;
        crl = NULL;
    }
    X509_CRL_free(crl);
    BIO_free_all(bio);
    OPENSSL_free(url);
    ERR_clear_error();
    return !f->found;
}

/* CRLs for every certificate whose revocation is open; true if there are
   new ones. */
static bool fetch_crls(struct trial *t)
{
    int ms = t->config->fetch_timeout_ms;
    struct fetch f = {t->crls, 0, 0, false};
    bool any = false;
    int i;

    f.deadline = now_ms() + (ms > 0 ? ms : FETCH_TIMEOUT_MS);
    for (i = 0; i < sk_X509_num(t->path) && i < DEPTH_MAX; i++) {
        if (t->open[i] == 0) {
            continue;
        }
        f.tries = CRL_URLS_MAX;
        f.found = false;
        each_crl_url(sk_X509_value(t->path, i), fetch_crl, &f);
        any = any || f.found;
    }
    ERR_clear_error();
    return any;
}

static void judge_open(struct trial *t)
{
    int i;

    for (i = 0; i < sk_X509_num(t->path) && i < DEPTH_MAX; i++) {
        if (t->open[i] == TROUBLE_OFFLINE) {
            note(t, TROUBLE_OFFLINE, i, "revocation information is stale",
                 sk_X509_value(t->path, i));
        } else if (t->open[i] != 0) {
            note(t, TROUBLE_UNCHECKED, i,
                 "nothing tells whether it was revoked",
                 sk_X509_value(t->path, i));
        }
    }
}

static void check_all(struct trial *t)
{
    check_usages(t);
    check_name(t);
    if (t->revocation) {
        check_answer(t);
    }
}

/* --- putting it together --- */

/* The anchors: given ones, the system's, or the system's and more. */
static bool gather_trust(struct trial *t)
{
    const struct tw_verify_config *config = t->config;
    STACK_OF(X509) *certs = NULL;
    bool ok = false;

    if (config->roots == NULL && config->more_roots == NULL) {
        return system_roots(&t->trust, NULL);
    }
    if (config->roots != NULL) {
        certs = sk_X509_new_null();
    } else if (!system_roots(NULL, &certs)) {
        return false;
    }
    t->trust = X509_STORE_new();
    ok = t->trust != NULL && certs != NULL
        && snapshot(config->roots, certs, t->crls)
        && snapshot(config->more_roots, certs, t->crls)
        && trust_all(t->trust, certs)
        && X509_STORE_set_flags(t->trust, X509_V_FLAG_PARTIAL_CHAIN);
    sk_X509_pop_free(certs, X509_free);
    return ok;
}

static bool gather(struct trial *t, struct tw_cert *cert)
{
    int i;

    t->extra = sk_X509_new_null();
    t->crls = sk_X509_CRL_new_null();
    if (t->extra == NULL || t->crls == NULL
        || !snapshot(t->config->extra, t->extra, t->crls)
        || !gather_trust(t)) {
        return false;
    }
    for (i = 0; i < sk_X509_num(cert->chain); i++) {
        X509 *x509 = sk_X509_value(cert->chain, i);
        if (sk_X509_push(t->extra, x509) == 0) {
            return false;
        }
        (void)X509_up_ref(x509);
    }
    return true;
}

enum tw_status tw_openssl_cert_verify(struct tw_cert *cert,
                                      const struct tw_verify_config *config,
                                      struct tw_verdict *out,
                                      struct tw_error *err)
{
    struct trial t;
    enum tw_status status = TW_DONE;

    memset(out, 0, sizeof *out);
    memset(&t, 0, sizeof t);
    ERR_clear_error();
    t.config = config;
    t.leaf = cert->x509;
    t.ignore = config->ignore;
    t.revocation = config->revocation != TW_REVOKE_NONE
        && (config->ignore & TW_IGNORE_REVOCATION) == 0;

    if (!gather(&t, cert) || !build_path(&t)) {
        status = tw_openssl_fail(err, TW_E_NOMEM, SEC_E_INTERNAL_ERROR,
                                 "the verification could not run");
        goto done;
    }
    check_all(&t);
    /* URLs are followed only of a path that is good so far. */
    if (t.revocation && config->fetch && t.worst == TROUBLE_NONE
        && fetch_crls(&t)) {
        if (!build_path(&t)) {
            status = tw_openssl_fail(err, TW_E_NOMEM, SEC_E_INTERNAL_ERROR,
                                     "the verification could not run");
            goto done;
        }
        check_all(&t);
    }
    judge_open(&t);
    status = store_of(cert, t.path, &out->chain, err);
    out->code = troubles[t.worst].code;
    out->depth = t.depth;
    memcpy(out->detail, t.detail, sizeof out->detail);
done:
    X509_STORE_free(t.trust);
    sk_X509_pop_free(t.extra, X509_free);
    sk_X509_CRL_pop_free(t.crls, X509_CRL_free);
    sk_X509_pop_free(t.path, X509_free);
    ERR_clear_error();
    return status;
}
