/*
 * What a certificate says, read by crypt32's decoders, and the comparison
 * with a host name.
 *
 * Names come as "CN=a, O=b": crypt32 keeps the encoded order (most general
 * first), so that the text is asked for reversed. Algorithms are known by
 * object identifier; the few that TLS uses have the names that every
 * engine here gives them, others are shown as numbers.
 */
#include "sspi/schannel_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct output {
    tw_sink sink;
    void *arg;    /* the sink's */
    bool stopped; /* the sink wants no more */
    bool failed;  /* out of memory */
};

static void give_text(struct output *out, const char *key, const char *text)
{
    if (!out->stopped && !out->failed) {
        out->stopped = !out->sink(out->arg, key, text, strlen(text));
    }
}

static void give_wide(struct output *out, const char *key, const WCHAR *text)
{
    char *narrow = tw_crypt32_narrow(text);

    if (narrow == NULL) {
        out->failed = true;
        return;
    }
    give_text(out, key, narrow);
    free(narrow);
}

static void give_name(struct output *out, const char *key,
                      CERT_NAME_BLOB *name)
{
    const DWORD form = CERT_X500_NAME_STR | CERT_NAME_STR_REVERSE_FLAG;
    DWORD n = CertNameToStrW(TW_ENCODING, name, form, NULL, 0);
    WCHAR *text = calloc(n > 0 ? n : 1, sizeof(*text));

    if (text == NULL) {
        out->failed = true;
        return;
    }
    (void)CertNameToStrW(TW_ENCODING, name, form, text, n);
    give_wide(out, key, text);
    free(text);
}

static void give_common_name(struct output *out, const char *key,
                             PCCERT_CONTEXT cert, bool issuer)
{
    const DWORD flags = issuer ? CERT_NAME_ISSUER_FLAG : 0;
    DWORD n = CertGetNameStringW(cert, CERT_NAME_ATTR_TYPE, flags,
                                 (void *)(uintptr_t)szOID_COMMON_NAME, NULL,
                                 0);
    WCHAR *text = calloc(n > 0 ? n : 1, sizeof(*text));

    if (text == NULL) {
        out->failed = true;
        return;
    }
    (void)CertGetNameStringW(cert, CERT_NAME_ATTR_TYPE, flags,
                             (void *)(uintptr_t)szOID_COMMON_NAME, text, n);
    give_wide(out, key, text);
    free(text);
}

enum tw_status tw_crypt32_cert_text(struct tw_cert *cert, enum tw_name which,
                                    tw_sink sink, void *arg,
                                    struct tw_error *err)
{
    struct output out = {sink, arg, false, false};
    CERT_INFO *info = cert->ctx->pCertInfo;

    switch (which) {
    case TW_NAME_SUBJECT_RDN:
        give_name(&out, NULL, &info->Subject);
        break;
    case TW_NAME_ISSUER_RDN:
        give_name(&out, NULL, &info->Issuer);
        break;
    case TW_NAME_SUBJECT_CN:
        give_common_name(&out, NULL, cert->ctx, false);
        break;
    case TW_NAME_ISSUER_CN:
        give_common_name(&out, NULL, cert->ctx, true);
        break;
    default:
        return tw_error_set(err, TW_E_ARGUMENT, 0, "%s", "unknown name");
    }
    return out.failed ? tw_crypt32_nomem(err) : TW_DONE;
}

/* --- extensions --- */

/* The decoded extension, LocalFree; NULL if absent or damaged. */
static void *extension(PCCERT_CONTEXT cert, const char *oid, LPCSTR type)
{
    CERT_INFO *info = cert->pCertInfo;
    CERT_EXTENSION *found =
        CertFindExtension(oid, info->cExtension, info->rgExtension);

    return found == NULL ? NULL
                         : tw_crypt32_decode(type, found->Value.pbData,
                                             found->Value.cbData);
}

static CERT_ALT_NAME_INFO *alt_names(PCCERT_CONTEXT cert)
{
    return extension(cert, szOID_SUBJECT_ALT_NAME2, X509_ALTERNATE_NAME);
}

static void give_ip(struct output *out, const CRYPT_DATA_BLOB *ip)
{
    char text[64];
    const BYTE *b = ip->pbData;

    if (ip->cbData == 4) {
        (void)snprintf(text, sizeof(text), "%u.%u.%u.%u", b[0], b[1], b[2],
                       b[3]);
    } else if (ip->cbData != 16
               || inet_ntop(AF_INET6, (void *)(uintptr_t)b, text,
                            sizeof(text))
                      == NULL) {
        return;
    }
    give_text(out, "ip", text);
}

static void give_alt_names(struct output *out, PCCERT_CONTEXT cert)
{
    CERT_ALT_NAME_INFO *names = alt_names(cert);
    DWORD i;

    for (i = 0; names != NULL && i < names->cAltEntry; i++) {
        CERT_ALT_NAME_ENTRY *name = &names->rgAltEntry[i];
        switch (name->dwAltNameChoice) {
        case CERT_ALT_NAME_DNS_NAME:
            give_wide(out, "dns", name->pwszDNSName);
            break;
        case CERT_ALT_NAME_IP_ADDRESS:
            give_ip(out, &name->IPAddress);
            break;
        case CERT_ALT_NAME_RFC822_NAME:
            give_wide(out, "email", name->pwszRfc822Name);
            break;
        case CERT_ALT_NAME_URL:
            give_wide(out, "uri", name->pwszURL);
            break;
        default:
            break;
        }
    }
    if (names != NULL) {
        (void)LocalFree(names);
    }
}

static void give_usages(struct output *out, PCCERT_CONTEXT cert)
{
    static const struct {
        unsigned int bit;
        const char *name;
    } bits[] = {
        {CERT_DIGITAL_SIGNATURE_KEY_USAGE, "digitalSignature"},
        {CERT_NON_REPUDIATION_KEY_USAGE, "nonRepudiation"},
        {CERT_KEY_ENCIPHERMENT_KEY_USAGE, "keyEncipherment"},
        {CERT_DATA_ENCIPHERMENT_KEY_USAGE, "dataEncipherment"},
        {CERT_KEY_AGREEMENT_KEY_USAGE, "keyAgreement"},
        {CERT_KEY_CERT_SIGN_KEY_USAGE, "keyCertSign"},
        {CERT_CRL_SIGN_KEY_USAGE, "cRLSign"},
        {CERT_ENCIPHER_ONLY_KEY_USAGE, "encipherOnly"},
        {(unsigned int)CERT_DECIPHER_ONLY_KEY_USAGE << 8, "decipherOnly"},
    };
    BYTE usage[2] = {0, 0};
    CERT_ENHKEY_USAGE *eku;
    size_t i;
    DWORD k;

    if (CertGetIntendedKeyUsage(X509_ASN_ENCODING, cert->pCertInfo, usage,
                                sizeof(usage))) {
        unsigned int set = usage[0] | (unsigned int)usage[1] << 8;
        for (i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
            if (set & bits[i].bit) {
                give_text(out, "usage", bits[i].name);
            }
        }
    }
    eku = extension(cert, szOID_ENHANCED_KEY_USAGE, X509_ENHANCED_KEY_USAGE);
    for (k = 0; eku != NULL && k < eku->cUsageIdentifier; k++) {
        give_text(out, "eku", eku->rgpszUsageIdentifier[k]);
    }
    if (eku != NULL) {
        (void)LocalFree(eku);
    }
}

static void give_access(struct output *out, PCCERT_CONTEXT cert)
{
    CERT_AUTHORITY_INFO_ACCESS *access = extension(
        cert, szOID_AUTHORITY_INFO_ACCESS, X509_AUTHORITY_INFO_ACCESS);
    DWORD i;

    for (i = 0; access != NULL && i < access->cAccDescr; i++) {
        CERT_ACCESS_DESCRIPTION *item = &access->rgAccDescr[i];
        if (item->AccessLocation.dwAltNameChoice != CERT_ALT_NAME_URL) {
            continue;
        }
        if (strcmp(item->pszAccessMethod, szOID_PKIX_OCSP) == 0) {
            give_wide(out, "ocsp_url", item->AccessLocation.pwszURL);
        } else if (strcmp(item->pszAccessMethod, szOID_PKIX_CA_ISSUERS)
                   == 0) {
            give_wide(out, "ca_url", item->AccessLocation.pwszURL);
        }
    }
    if (access != NULL) {
        (void)LocalFree(access);
    }
}

static void give_crl_urls(struct output *out, PCCERT_CONTEXT cert)
{
    CRL_DIST_POINTS_INFO *points = extension(
        cert, szOID_CRL_DIST_POINTS, X509_CRL_DIST_POINTS);
    DWORD i;
    DWORD k;

    for (i = 0; points != NULL && i < points->cDistPoint; i++) {
        CRL_DIST_POINT_NAME *name = &points->rgDistPoint[i].DistPointName;
        if (name->dwDistPointNameChoice != CRL_DIST_POINT_FULL_NAME) {
            continue;
        }
        for (k = 0; k < name->FullName.cAltEntry; k++) {
            if (name->FullName.rgAltEntry[k].dwAltNameChoice
                == CERT_ALT_NAME_URL) {
                give_wide(out, "crl_url",
                          name->FullName.rgAltEntry[k].pwszURL);
            }
        }
    }
    if (points != NULL) {
        (void)LocalFree(points);
    }
}

/* --- everything --- */

static const char *algorithm_name(const char *oid)
{
    static const struct {
        const char *oid;
        const char *name;
    } known[] = {
        {"1.2.840.113549.1.1.1", "RSA"},
        {"1.2.840.113549.1.1.10", "rsassaPss"},
        {"1.2.840.10045.2.1", "EC"},
        {"1.3.101.112", "ED25519"},
        {"1.3.101.113", "ED448"},
        {"1.2.840.113549.1.1.5", "sha1WithRSAEncryption"},
        {"1.2.840.113549.1.1.11", "sha256WithRSAEncryption"},
        {"1.2.840.113549.1.1.12", "sha384WithRSAEncryption"},
        {"1.2.840.113549.1.1.13", "sha512WithRSAEncryption"},
        {"1.2.840.10045.4.1", "ecdsa-with-SHA1"},
        {"1.2.840.10045.4.3.2", "ecdsa-with-SHA256"},
        {"1.2.840.10045.4.3.3", "ecdsa-with-SHA384"},
        {"1.2.840.10045.4.3.4", "ecdsa-with-SHA512"},
    };
    size_t i;

    for (i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].oid, oid) == 0) {
            return known[i].name;
        }
    }
    return oid;
}

static void give_time(struct output *out, const char *key,
                      const FILETIME *when)
{
    SYSTEMTIME t;
    char text[64] = "";

    if (FileTimeToSystemTime(when, &t)) {
        (void)snprintf(text, sizeof(text),
                       "%04u-%02u-%02uT%02u:%02u:%02uZ", t.wYear, t.wMonth,
                       t.wDay, t.wHour, t.wMinute, t.wSecond);
    }
    give_text(out, key, text);
}

/* Little-endian in the context, and longer than RFC 5280 allows at will. */
static void give_serial(struct output *out, const CRYPT_INTEGER_BLOB *serial)
{
    static const char digits[] = "0123456789ABCDEF";
    DWORD n = serial->cbData;
    char *text = malloc((size_t)n * 2 + 3);
    size_t at = 0;

    if (text == NULL) {
        out->failed = true;
        return;
    }
    while (n > 1 && serial->pbData[n - 1] == 0) {
        n--; /* the sign's zero */
    }
    while (n > 0) {
        n--;
        text[at++] = digits[serial->pbData[n] >> 4];
        text[at++] = digits[serial->pbData[n] & 15];
    }
    text[at] = '\0';
    give_text(out, "serial", at > 0 ? text : "0");
    free(text);
}

static bool is_authority(PCCERT_CONTEXT cert)
{
    CERT_BASIC_CONSTRAINTS2_INFO *basic = extension(
        cert, szOID_BASIC_CONSTRAINTS2, X509_BASIC_CONSTRAINTS2);
    bool ca = basic != NULL && basic->fCA;

    if (basic != NULL) {
        (void)LocalFree(basic);
    }
    return ca;
}

enum tw_status tw_crypt32_cert_info(struct tw_cert *cert, tw_sink sink,
                                    void *arg, struct tw_error *err)
{
    struct output out = {sink, arg, false, false};
    CERT_INFO *info = cert->ctx->pCertInfo;
    char text[32];

    (void)snprintf(text, sizeof(text), "%lu",
                   (unsigned long)info->dwVersion + 1);
    give_text(&out, "version", text);
    give_serial(&out, &info->SerialNumber);
    give_name(&out, "subject", &info->Subject);
    give_name(&out, "issuer", &info->Issuer);
    give_time(&out, "notbefore", &info->NotBefore);
    give_time(&out, "notafter", &info->NotAfter);
    give_text(&out, "key_algorithm",
              algorithm_name(info->SubjectPublicKeyInfo.Algorithm.pszObjId));
    (void)snprintf(text, sizeof(text), "%lu",
                   (unsigned long)CertGetPublicKeyLength(
                       TW_ENCODING, &info->SubjectPublicKeyInfo));
    give_text(&out, "key_bits", text);
    give_text(&out, "signature_algorithm",
              algorithm_name(info->SignatureAlgorithm.pszObjId));
    give_text(&out, "is_ca", is_authority(cert->ctx) ? "1" : "0");
    give_alt_names(&out, cert->ctx);
    give_usages(&out, cert->ctx);
    give_access(&out, cert->ctx);
    give_crl_urls(&out, cert->ctx);
    return out.failed ? tw_crypt32_nomem(err) : TW_DONE;
}

/* --- host names --- */

static WCHAR lower(WCHAR c)
{
    return c >= L'A' && c <= L'Z' ? (WCHAR)(c + (L'a' - L'A')) : c;
}

/* Equal without regard to the case of ASCII letters. */
static bool same_name(const WCHAR *a, const WCHAR *b)
{
    while (*a != L'\0' && lower(*a) == lower(*b)) {
        a++;
        b++;
    }
    return lower(*a) == lower(*b);
}

/* RFC 6125, 6.4.3; RFC 9525, 6.3: a wildcard is the whole left-most label,
   stands for exactly one, and at least two labels follow it. */
static bool dns_matches(const WCHAR *pattern, const WCHAR *host)
{
    const WCHAR *rest;

    if (pattern[0] != L'*') {
        return pattern[0] != L'\0' && same_name(pattern, host);
    }
    if (pattern[1] != L'.' || pattern[2] == L'\0'
        || wcschr(pattern + 2, L'.') == NULL
        || wcschr(pattern + 1, L'*') != NULL) {
        return false;
    }
    rest = wcschr(host, L'.');
    return rest != NULL && rest != host && same_name(pattern + 1, rest);
}

/* Bytes of an address literal; 0 if it is none. */
static size_t address_bytes(const char *host, uint8_t out[16])
{
    struct in_addr four;

    if (strchr(host, ':') != NULL) {
        return inet_pton(AF_INET6, host, out) == 1 ? 16 : 0;
    }
    if (inet_pton(AF_INET, host, &four) != 1) {
        return 0;
    }
    memcpy(out, &four, 4);
    return 4;
}

/* Any name of the certificate; *any: it has a subjectAltName at all. */
static bool alt_name_matches(PCCERT_CONTEXT cert, const WCHAR *host,
                             const uint8_t *address, size_t address_len,
                             bool *any)
{
    CERT_ALT_NAME_INFO *names = alt_names(cert);
    CERT_INFO *info = cert->pCertInfo;
    bool match = false;
    DWORD i;

    *any = CertFindExtension(szOID_SUBJECT_ALT_NAME2, info->cExtension,
                             info->rgExtension)
           != NULL;
    for (i = 0; names != NULL && !match && i < names->cAltEntry; i++) {
        CERT_ALT_NAME_ENTRY *name = &names->rgAltEntry[i];
        if (address_len > 0) {
            match = name->dwAltNameChoice == CERT_ALT_NAME_IP_ADDRESS
                    && name->IPAddress.cbData == address_len
                    && memcmp(name->IPAddress.pbData, address, address_len)
                           == 0;
        } else {
            match = name->dwAltNameChoice == CERT_ALT_NAME_DNS_NAME
                    && dns_matches(name->pwszDNSName, host);
        }
    }
    if (names != NULL) {
        (void)LocalFree(names);
    }
    return match;
}

static bool common_name_matches(PCCERT_CONTEXT cert, const WCHAR *host)
{
    WCHAR text[256];
    DWORD n = CertGetNameStringW(cert, CERT_NAME_ATTR_TYPE, 0,
                                 (void *)(uintptr_t)szOID_COMMON_NAME, text,
                                 256);

    return n > 1 && n < 256 && dns_matches(text, host);
}

bool tw_crypt32_cert_matches(struct tw_cert *cert, const char *host, bool cn)
{
    char name[256];
    uint8_t address[16];
    size_t address_len;
    size_t len = host != NULL ? strlen(host) : 0;
    WCHAR *wide;
    bool any = false;
    bool match;

    if (len > 2 && host[0] == '[' && host[len - 1] == ']') {
        host++;
        len -= 2;
    } else if (len > 1 && host[len - 1] == '.') {
        len--;
    }
    if (len == 0 || len >= sizeof(name) || host[0] == '.') {
        return false;
    }
    memcpy(name, host, len);
    name[len] = '\0';
    address_len = address_bytes(name, address);
    if (address_len == 0 && strpbrk(name, "*:") != NULL) {
        return false;
    }
    wide = tw_crypt32_widen(name);
    if (wide == NULL) {
        return false;
    }
    match = alt_name_matches(cert->ctx, wide, address, address_len, &any);
    if (!match && cn && !any && address_len == 0) {
        match = common_name_matches(cert->ctx, wide);
    }
    free(wide);
    return match;
}
