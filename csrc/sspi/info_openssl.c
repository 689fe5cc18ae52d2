/*
 * What a certificate says of itself, as UTF-8 text: cert_text and cert_info.
 *
 * Nothing in a certificate can be trusted to be text: a string may hold bytes
 * that its type forbids, a zero in the middle, or half a UTF-8 sequence. All
 * text leaves through give(), which replaces what is not UTF-8 by U+FFFD, and
 * lengths go with it all the way. A damaged extension gives no items: it is
 * the verification's business to refuse it.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <openssl/x509v3.h>

#include "sspi/cert_openssl.h"

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
BIO *tw_openssl_name_text(const X509_NAME *name)
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
    BIO *bio = tw_openssl_name_text(name);
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
void tw_openssl_copy_text(char *dst, size_t room, const char *src, size_t len)
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
/* Everything                                                         */
/* ------------------------------------------------------------------ */

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
    return out.failed ? tw_openssl_no_memory(err) : TW_DONE;
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
void tw_openssl_each_crl_url(X509 *x509,
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
    tw_openssl_each_crl_url(x509, give_crl_url, &out);
    ERR_clear_error();
    return out.failed ? tw_openssl_no_memory(err) : TW_DONE;
}
