/*
 * What a certificate says, read by crypt32's decoders, and the comparison
 * with a host name.
 *
 * Names come as "CN=a, O=b" (RFC 4514, with the escapes of RFC 2253), put
 * together here from crypt32's decoded attributes: its own text differs in
 * its quotes, and its strings end at a zero that a certificate may hold. A
 * host name in a subjectAltName that holds one matches nothing, for the same
 * reason. Algorithms are known by
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

/* Growing UTF-8 text. */
struct text {
    char *data; /* owned; not NUL-terminated */
    size_t len, room;
    bool failed; /* out of memory */
};

static void put(struct text *t, const char *bytes, size_t n)
{
    size_t room = t->room > 0 ? t->room : 256;
    char *data;

    while (room - t->len < n) {
        room *= 2;
    }
    if (room > t->room) {
        data = realloc(t->data, room);
        if (data == NULL) {
            t->failed = true;
            return;
        }
        t->data = data;
        t->room = room;
    }
    memcpy(t->data + t->len, bytes, n);
    t->len += n;
}

static void put_text(struct text *t, const char *text)
{
    put(t, text, strlen(text));
}

static void give_built(struct output *out, const char *key, struct text *t)
{
    if (t->failed) {
        out->failed = true;
    } else if (!out->stopped && !out->failed) {
        out->stopped = !out->sink(out->arg, key,
                                  t->data != NULL ? t->data : "", t->len);
    }
    free(t->data);
}

static CERT_NAME_INFO *decode_name(const CERT_NAME_BLOB *name)
{
    return tw_crypt32_decode(X509_UNICODE_NAME, name->pbData, name->cbData);
}

/* Does the length of a decoded string count its terminator? Windows' does
   not, Wine's does, and a name may end in a zero of its own: so a known
   name is looked at. */
static size_t terminator(void)
{
    static const BYTE cn_x[] = {0x30, 0x0C, 0x31, 0x0A, 0x30, 0x08, 0x06,
                                0x03, 0x55, 0x04, 0x03, 0x0C, 0x01, 'x'};
    CERT_NAME_BLOB blob = {sizeof(cn_x), (BYTE *)(uintptr_t)cn_x};
    CERT_NAME_INFO *parts = decode_name(&blob);
    size_t extra = 0;

    if (parts != NULL && parts->cRDN == 1 && parts->rgRDN[0].cRDNAttr == 1) {
        extra = parts->rgRDN[0].rgRDNAttr[0].Value.cbData / sizeof(WCHAR)
                - 1;
    }
    if (parts != NULL) {
        (void)LocalFree(parts);
    }
    return extra;
}

/* What crypt32 decodes an attribute's string to; NULL if it is none. */
static const WCHAR *attribute_text(const CERT_RDN_ATTR *a, size_t *n)
{
    size_t extra = terminator();

    if (a->dwValueType == CERT_RDN_ENCODED_BLOB
        || a->dwValueType == CERT_RDN_OCTET_STRING) {
        *n = 0;
        return NULL;
    }
    *n = a->Value.cbData / sizeof(WCHAR);
    if (extra > 0 && *n > 0
        && ((const WCHAR *)(void *)a->Value.pbData)[*n - 1] == L'\0') {
        --*n; /* some types' only, there */
    }
    return (const WCHAR *)(void *)a->Value.pbData;
}

/* One code point, perhaps of two units, moved past. */
static void put_unit(struct text *t, const WCHAR **at, size_t *left)
{
    char bytes[8];
    int units = *left > 1 && (**at & 0xFC00) == 0xD800
                        && ((*at)[1] & 0xFC00) == 0xDC00
                    ? 2
                    : 1;
    int n = WideCharToMultiByte(CP_UTF8, 0, *at, units, bytes,
                                sizeof(bytes), NULL, NULL);

    put(t, bytes, n > 0 ? (size_t)n : 0);
    *at += units;
    *left -= (size_t)units;
}

/* RFC 2253, 2.4; control characters as \XX. */
static void put_escaped(struct text *t, const WCHAR *at, size_t left)
{
    bool first = true;
    char hex[4];

    while (left > 0) {
        WCHAR c = *at;

        if (c < 0x20 || c == 0x7F) {
            (void)snprintf(hex, sizeof(hex), "\\%02X", (unsigned int)c);
            put(t, hex, 3);
            at++;
            left--;
        } else {
            if (wcschr(L",+\"\\<>;", c) != NULL
                || (first && (c == L'#' || c == L' '))
                || (left == 1 && c == L' ')) {
                put(t, "\\", 1);
            }
            put_unit(t, &at, &left);
        }
        first = false;
    }
}

static const char *attribute_name(const char *oid)
{
    static const struct {
        const char *oid;
        const char *name;
    } known[] = {
        {szOID_COMMON_NAME, "CN"},
        {szOID_ORGANIZATION_NAME, "O"},
        {szOID_ORGANIZATIONAL_UNIT_NAME, "OU"},
        {szOID_COUNTRY_NAME, "C"},
        {szOID_STATE_OR_PROVINCE_NAME, "ST"},
        {szOID_LOCALITY_NAME, "L"},
        {szOID_STREET_ADDRESS, "street"},
        {szOID_SUR_NAME, "SN"},
        {szOID_GIVEN_NAME, "GN"},
        {szOID_INITIALS, "initials"},
        {szOID_TITLE, "title"},
        {szOID_DEVICE_SERIAL_NUMBER, "serialNumber"},
        {szOID_DN_QUALIFIER, "dnQualifier"},
        {szOID_RSA_emailAddr, "emailAddress"},
        {szOID_DOMAIN_COMPONENT, "DC"},
        {"0.9.2342.19200300.100.1.1", "UID"},
    };
    size_t i;

    for (i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].oid, oid) == 0) {
            return known[i].name;
        }
    }
    return oid;
}

/* An attribute that is no string, as RFC 2253, 2.4 has it: #hex. */
static void put_hex(struct text *t, const CRYPT_DATA_BLOB *value)
{
    char hex[3];
    DWORD i;

    put(t, "#", 1);
    for (i = 0; i < value->cbData; i++) {
        (void)snprintf(hex, sizeof(hex), "%02X", value->pbData[i]);
        put(t, hex, 2);
    }
}

static void put_attribute(struct text *t, const CERT_RDN_ATTR *a)
{
    size_t n;
    const WCHAR *value = attribute_text(a, &n);

    put_text(t, attribute_name(a->pszObjId));
    put(t, "=", 1);
    if (value != NULL) {
        put_escaped(t, value, n);
    } else {
        put_hex(t, &a->Value);
    }
}

/* The most specific part first, which is the last encoded. */
static void give_name(struct output *out, const char *key,
                      const CERT_NAME_BLOB *name)
{
    CERT_NAME_INFO *parts = decode_name(name);
    struct text t = {NULL, 0, 0, false};
    DWORD i;
    DWORD k;

    for (i = parts != NULL ? parts->cRDN : 0; i > 0; i--) {
        const CERT_RDN *rdn = &parts->rgRDN[i - 1];

        if (t.len > 0) {
            put_text(&t, ", ");
        }
        for (k = 0; k < rdn->cRDNAttr; k++) {
            if (k > 0) {
                put_text(&t, " + ");
            }
            put_attribute(&t, &rdn->rgRDNAttr[k]);
        }
    }
    if (parts != NULL) {
        (void)LocalFree(parts);
    }
    give_built(out, key, &t);
}

/* The last common name: the attribute in parts, or NULL. */
static const CERT_RDN_ATTR *common_name(const CERT_NAME_INFO *parts)
{
    const CERT_RDN_ATTR *found = NULL;
    DWORD i;
    DWORD k;

    for (i = 0; parts != NULL && i < parts->cRDN; i++) {
        for (k = 0; k < parts->rgRDN[i].cRDNAttr; k++) {
            const CERT_RDN_ATTR *a = &parts->rgRDN[i].rgRDNAttr[k];
            if (strcmp(a->pszObjId, szOID_COMMON_NAME) == 0) {
                found = a;
            }
        }
    }
    return found;
}

static void give_common_name(struct output *out, const char *key,
                             const CERT_NAME_BLOB *name)
{
    CERT_NAME_INFO *parts = decode_name(name);
    const CERT_RDN_ATTR *a = common_name(parts);
    struct text t = {NULL, 0, 0, false};
    size_t left = 0;
    const WCHAR *at = a != NULL ? attribute_text(a, &left) : NULL;

    while (at != NULL && left > 0) {
        put_unit(&t, &at, &left);
    }
    if (parts != NULL) {
        (void)LocalFree(parts);
    }
    give_built(out, key, &t);
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
        give_common_name(&out, NULL, &info->Subject);
        break;
    case TW_NAME_ISSUER_CN:
        give_common_name(&out, NULL, &info->Issuer);
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

/* Little-endian two's complement in the context, and longer than RFC 5280
   allows at will. */
static void give_serial(struct output *out, const CRYPT_INTEGER_BLOB *serial)
{
    DWORD n = serial->cbData;
    bool negative = n > 0 && (serial->pbData[n - 1] & 0x80) != 0;
    struct text t = {NULL, 0, 0, false};
    uint8_t *magnitude = malloc(n > 0 ? n : 1);
    unsigned int carry = negative ? 1 : 0;
    char hex[3];
    DWORD i;

    if (magnitude == NULL) {
        out->failed = true;
        return;
    }
    for (i = 0; i < n; i++) {
        unsigned int b = serial->pbData[i];

        b = (negative ? b ^ 0xFFu : b) + carry;
        magnitude[i] = (uint8_t)b;
        carry = b >> 8;
    }
    while (n > 0 && magnitude[n - 1] == 0) {
        n--;
    }
    put_text(&t, negative ? "-" : n == 0 ? "0" : "");
    while (n > 0) {
        (void)snprintf(hex, sizeof(hex), "%02X", magnitude[--n]);
        put(&t, hex, 2);
    }
    free(magnitude);
    give_built(out, "serial", &t);
}

/* Where crypt32 does not know the length of a key (Wine, of curves). */
static DWORD curve_bits(const CERT_PUBLIC_KEY_INFO *key)
{
    static const struct {
        const char *oid;
        DWORD bits;
    } curves[] = {
        {"1.2.840.10045.3.1.7", 256},
        {"1.3.132.0.34", 384},
        {"1.3.132.0.35", 521},
    };
    LPSTR *oid = NULL;
    DWORD bits = 0;
    size_t i;

    if (strcmp(key->Algorithm.pszObjId, "1.2.840.10045.2.1") == 0) {
        oid = tw_crypt32_decode(X509_OBJECT_IDENTIFIER,
                                key->Algorithm.Parameters.pbData,
                                key->Algorithm.Parameters.cbData);
    }
    for (i = 0; oid != NULL && i < sizeof(curves) / sizeof(curves[0]); i++) {
        if (strcmp(*oid, curves[i].oid) == 0) {
            bits = curves[i].bits;
        }
    }
    if (oid != NULL) {
        (void)LocalFree(oid);
    }
    return bits;
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
    DWORD bits = CertGetPublicKeyLength(TW_ENCODING,
                                        &info->SubjectPublicKeyInfo);
    char text[32];

    if (bits == 0) {
        bits = curve_bits(&info->SubjectPublicKeyInfo);
    }
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
    (void)snprintf(text, sizeof(text), "%lu", (unsigned long)bits);
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

/* Does a name in the extension hold a zero byte? crypt32 gives it as a
   string that ends there: "good.example\0.evil" would pass for the first.
   The lengths of names beyond 255 bytes count as well: no host has one. */
static bool has_zero(const CERT_EXTENSION *found)
{
    CRYPT_SEQUENCE_OF_ANY *parts = tw_crypt32_decode(
        X509_SEQUENCE_OF_ANY, found->Value.pbData, found->Value.cbData);
    bool zero = parts == NULL;
    DWORD i;

    for (i = 0; parts != NULL && i < parts->cValue; i++) {
        const CRYPT_DER_BLOB *name = &parts->rgValue[i];
        if (name->cbData > 2
            && name->pbData[0] == (0x80 | 2) /* dNSName [2] */
            && memchr(name->pbData + 2, 0, name->cbData - 2) != NULL) {
            zero = true;
        }
    }
    if (parts != NULL) {
        (void)LocalFree(parts);
    }
    return zero;
}

/* Any name of the certificate; *any: it has a subjectAltName at all. */
static bool alt_name_matches(PCCERT_CONTEXT cert, const WCHAR *host,
                             const uint8_t *address, size_t address_len,
                             bool *any)
{
    CERT_ALT_NAME_INFO *names = alt_names(cert);
    CERT_INFO *info = cert->pCertInfo;
    CERT_EXTENSION *found = CertFindExtension(
        szOID_SUBJECT_ALT_NAME2, info->cExtension, info->rgExtension);
    bool zero = found != NULL && address_len == 0 && has_zero(found);
    bool match = false;
    DWORD i;

    *any = found != NULL;
    for (i = 0; names != NULL && !match && i < names->cAltEntry; i++) {
        CERT_ALT_NAME_ENTRY *name = &names->rgAltEntry[i];
        if (address_len > 0) {
            match = name->dwAltNameChoice == CERT_ALT_NAME_IP_ADDRESS
                    && name->IPAddress.cbData == address_len
                    && memcmp(name->IPAddress.pbData, address, address_len)
                           == 0;
        } else {
            match = !zero && name->dwAltNameChoice == CERT_ALT_NAME_DNS_NAME
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
    CERT_NAME_INFO *parts = decode_name(&cert->pCertInfo->Subject);
    const CERT_RDN_ATTR *a = common_name(parts);
    WCHAR text[256];
    size_t n = 0;
    const WCHAR *value = a != NULL ? attribute_text(a, &n) : NULL;
    bool match = false;

    if (value != NULL && n > 0 && n < 256) {
        memcpy(text, value, n * sizeof(*text));
        text[n] = L'\0';
        match = wcslen(text) == n && dns_matches(text, host);
    }
    if (parts != NULL) {
        (void)LocalFree(parts);
    }
    return match;
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
