/*
 * Private keys in containers of our own.
 *
 * Schannel signs in another process (LSA), so a key must be in a container
 * that can be opened by name: a key that lives in this process only
 * (ephemeral) makes server credentials fail. An imported key goes into
 * Microsoft's software key storage provider (CNG) under a fresh GUID, so
 * that imports at the same time cannot meet, and is deleted with the last
 * certificate that uses it. A process that is killed leaves its container:
 * there is no name in Windows that dies with a process.
 *
 * Where CNG stores no keys (Wine), RSA keys go into the RSA-and-AES
 * provider of CAPI instead, the one that can sign with SHA-2. The key's
 * structure is taken apart by crypt32's own decoder, piece by piece.
 *
 * The user's key set is tried first; accounts without a profile (services)
 * have none, so that the machine's is next.
 */
#include "sspi/schannel_internal.h"

#include <objbase.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY_MAX ((size_t)1 << 20) /* bytes of an encoded key */

static const WCHAR cng_provider[] = L"Microsoft Software Key Storage "
                                    L"Provider";
static const WCHAR capi_provider[] = L"Microsoft Enhanced RSA and AES "
                                     L"Cryptographic Provider";

/* --- the object --- */

static struct tw_key *key_new(void)
{
    struct tw_key *key = calloc(1, sizeof(*key));
    GUID id;

    if (key != NULL) {
        tw_count_init(&key->refs, 1);
        if (CoCreateGuid(&id) != S_OK
            || StringFromGUID2(&id, key->name, 40) == 0) {
            free(key);
            key = NULL;
        }
    }
    return key;
}

struct tw_key *tw_crypt32_key_ref(struct tw_key *key)
{
    if (key != NULL) {
        tw_count_up(&key->refs);
    }
    return key;
}

static void delete_container(const struct tw_key *key)
{
    NCRYPT_PROV_HANDLE provider = 0;
    NCRYPT_KEY_HANDLE handle = 0;
    HCRYPTPROV capi;

    if (!key->cng) {
        (void)CryptAcquireContextW(
            &capi, key->name, key->provider, key->provider_type,
            CRYPT_DELETEKEYSET | CRYPT_SILENT
                | (key->machine ? CRYPT_MACHINE_KEYSET : 0u));
        return;
    }
    if (NCryptOpenStorageProvider(&provider, key->provider, 0) == 0) {
        if (NCryptOpenKey(provider, &handle, key->name, 0,
                          NCRYPT_SILENT_FLAG
                              | (key->machine ? NCRYPT_MACHINE_KEY_FLAG : 0u))
                == 0
            && NCryptDeleteKey(handle, NCRYPT_SILENT_FLAG) != 0) {
            (void)NCryptFreeObject(handle);
        }
        (void)NCryptFreeObject(provider);
    }
}

void tw_crypt32_key_free(struct tw_key *key)
{
    if (key == NULL || tw_count_down(&key->refs) != 0) {
        return;
    }
    if (key->provider != NULL) {
        delete_container(key);
    }
    free(key->public_info);
    free(key);
}

bool tw_crypt32_key_fits(const struct tw_key *key, PCCERT_CONTEXT cert)
{
    return CertComparePublicKeyInfo(
               TW_ENCODING, key->public_info,
               &cert->pCertInfo->SubjectPublicKeyInfo)
           != FALSE;
}

bool tw_crypt32_key_attach(const struct tw_key *key, PCCERT_CONTEXT cert)
{
    CRYPT_KEY_PROV_INFO info;

    memset(&info, 0, sizeof(info));
    info.pwszContainerName = (LPWSTR)(uintptr_t)key->name;
    info.pwszProvName = (LPWSTR)(uintptr_t)key->provider;
    info.dwProvType = key->provider_type;
    info.dwFlags = key->machine ? CRYPT_MACHINE_KEYSET : 0;
    info.dwKeySpec = key->spec;
    return CertSetCertificateContextProperty(
               cert, CERT_KEY_PROV_INFO_PROP_ID, 0, &info)
           != FALSE;
}

/* Asks the handle for its public half. */
static bool learn_public(struct tw_key *key,
                         HCRYPTPROV_OR_NCRYPT_KEY_HANDLE handle)
{
    DWORD spec = key->cng ? 0 : key->spec;
    DWORD size = 0;

    if (!CryptExportPublicKeyInfo(handle, spec, TW_ENCODING, NULL, &size)) {
        return false;
    }
    key->public_info = malloc(size);
    return key->public_info != NULL
           && CryptExportPublicKeyInfo(handle, spec, TW_ENCODING,
                                       key->public_info, &size);
}

/* --- CNG --- */

/* One import under key->name. */
static SECURITY_STATUS import_cng_once(struct tw_key *key, LPCWSTR type,
                                       const uint8_t *blob, size_t len,
                                       WCHAR *secret, DWORD flags)
{
    NCRYPT_PROV_HANDLE provider = 0;
    NCRYPT_KEY_HANDLE handle = 0;
    NCryptBuffer buffers[2];
    NCryptBufferDesc desc = {NCRYPTBUFFER_VERSION, 1, NULL};
    SECURITY_STATUS status;

    desc.pBuffers = buffers;
    buffers[0].BufferType = NCRYPTBUFFER_PKCS_KEY_NAME;
    buffers[0].pvBuffer = key->name;
    buffers[0].cbBuffer = (ULONG)((wcslen(key->name) + 1) * sizeof(WCHAR));
    if (secret != NULL) {
        desc.cBuffers = 2;
        buffers[1].BufferType = NCRYPTBUFFER_PKCS_SECRET;
        buffers[1].pvBuffer = secret;
        buffers[1].cbBuffer = (ULONG)((wcslen(secret) + 1) * sizeof(WCHAR));
    }
    status = NCryptOpenStorageProvider(&provider, cng_provider, 0);
    if (status != 0) {
        return status;
    }
    status = NCryptImportKey(provider, 0, type, &desc, &handle,
                             (PBYTE)(uintptr_t)blob, (DWORD)len,
                             NCRYPT_SILENT_FLAG | flags);
    if (status == 0) {
        key->provider = cng_provider; /* from now on there is a container */
        key->cng = true;
        key->machine = (flags & NCRYPT_MACHINE_KEY_FLAG) != 0;
        if (!learn_public(key, handle)) {
            status = NTE_BAD_KEY;
        }
        (void)NCryptFreeObject(handle);
    }
    (void)NCryptFreeObject(provider);
    return status;
}

static SECURITY_STATUS import_cng(struct tw_key *key, LPCWSTR type,
                                  const uint8_t *blob, size_t len,
                                  WCHAR *secret)
{
    SECURITY_STATUS status =
        import_cng_once(key, type, blob, len, secret, 0);

    /* no profile to keep a user's key in */
    if (status == (SECURITY_STATUS)HRESULT_FROM_WIN32(ERROR_FILE_NOT_FOUND)
        || status == NTE_TEMPORARY_PROFILE || status == NTE_BAD_KEYSET) {
        status = import_cng_once(key, type, blob, len, secret,
                                 NCRYPT_MACHINE_KEY_FLAG);
    }
    return status;
}

/* CNG has no way to store such a key here. */
static bool not_offered(SECURITY_STATUS status)
{
    return status == NTE_NOT_SUPPORTED || status == NTE_INVALID_PARAMETER
           || status == E_NOTIMPL;
}

/* --- CAPI --- */

/* A PRIVATEKEYBLOB into a container named key->name. */
static bool import_capi(struct tw_key *key, const uint8_t *blob, size_t len)
{
    HCRYPTPROV provider = 0;
    HCRYPTKEY handle = 0;
    bool good = false;
    DWORD flags = CRYPT_NEWKEYSET | CRYPT_SILENT;

    if (!CryptAcquireContextW(&provider, key->name, capi_provider,
                              PROV_RSA_AES, flags)) {
        flags |= CRYPT_MACHINE_KEYSET;
        if (!CryptAcquireContextW(&provider, key->name, capi_provider,
                                  PROV_RSA_AES, flags)) {
            return false;
        }
    }
    key->provider = capi_provider;
    key->provider_type = PROV_RSA_AES;
    key->machine = (flags & CRYPT_MACHINE_KEYSET) != 0;
    key->spec = AT_KEYEXCHANGE;
    if (CryptImportKey(provider, blob, (DWORD)len, 0, 0, &handle)) {
        good = learn_public(key, provider);
        (void)CryptDestroyKey(handle);
    }
    (void)CryptReleaseContext(provider, 0);
    return good;
}

/* Writes a number in little-endian order, padded to `width` bytes, and
   moves *at behind it. */
static bool put_number(uint8_t **at, const CRYPT_DER_BLOB *der,
                       size_t width)
{
    CRYPT_UINT_BLOB *number =
        tw_crypt32_decode(X509_MULTI_BYTE_UINT, der->pbData, der->cbData);
    bool good = number != NULL && number->cbData <= width;

    if (good) {
        memset(*at, 0, width);
        memcpy(*at, number->pbData, number->cbData);
        *at += width;
    }
    if (number != NULL) {
        SecureZeroMemory(number->pbData, number->cbData);
        (void)LocalFree(number);
    }
    return good;
}

/*
 * RSAPrivateKey (RFC 8017, A.1.2) as a PRIVATEKEYBLOB: header, RSAPUBKEY,
 * modulus, primes, exponents, coefficient, private exponent.
 */
static uint8_t *rsa_blob(const CRYPT_SEQUENCE_OF_ANY *parts, size_t *len)
{
    enum { VERSION, MODULUS, PUBLIC, PRIVATE, P, Q, DP, DQ, QINV, PARTS };
    CRYPT_UINT_BLOB *modulus;
    CRYPT_UINT_BLOB *exponent;
    BLOBHEADER header = {PRIVATEKEYBLOB, CUR_BLOB_VERSION, 0,
                         CALG_RSA_KEYX};
    RSAPUBKEY rsa = {0x32415352 /* "RSA2" */, 0, 0};
    uint8_t *blob = NULL;
    uint8_t *at;
    size_t full = 0;
    size_t half;
    bool good = false;

    *len = 0;
    if (parts->cValue < PARTS) {
        return NULL;
    }
    modulus = tw_crypt32_decode(X509_MULTI_BYTE_UINT,
                                parts->rgValue[MODULUS].pbData,
                                parts->rgValue[MODULUS].cbData);
    exponent = tw_crypt32_decode(X509_MULTI_BYTE_UINT,
                                 parts->rgValue[PUBLIC].pbData,
                                 parts->rgValue[PUBLIC].cbData);
    if (modulus != NULL && exponent != NULL && exponent->cbData <= 4
        && modulus->cbData <= 2048) {
        full = modulus->cbData;
        rsa.bitlen = (DWORD)full * 8;
        memcpy(&rsa.pubexp, exponent->pbData, exponent->cbData);
        good = true;
    }
    half = (full + 1) / 2;
    *len = sizeof(header) + sizeof(rsa) + 2 * full + 5 * half;
    at = blob = good ? malloc(*len) : NULL;
    if (blob != NULL) {
        memcpy(at, &header, sizeof(header));
        memcpy(at + sizeof(header), &rsa, sizeof(rsa));
        at += sizeof(header) + sizeof(rsa);
        if (!put_number(&at, &parts->rgValue[MODULUS], full)
            || !put_number(&at, &parts->rgValue[P], half)
            || !put_number(&at, &parts->rgValue[Q], half)
            || !put_number(&at, &parts->rgValue[DP], half)
            || !put_number(&at, &parts->rgValue[DQ], half)
            || !put_number(&at, &parts->rgValue[QINV], half)
            || !put_number(&at, &parts->rgValue[PRIVATE], full)) {
            SecureZeroMemory(blob, *len);
            free(blob);
            blob = NULL;
        }
    }
    if (modulus != NULL) {
        (void)LocalFree(modulus);
    }
    if (exponent != NULL) {
        (void)LocalFree(exponent);
    }
    return blob;
}

static bool import_rsa_capi(struct tw_key *key, const uint8_t *der,
                            size_t len)
{
    CRYPT_SEQUENCE_OF_ANY *parts =
        tw_crypt32_decode(X509_SEQUENCE_OF_ANY, der, (DWORD)len);
    uint8_t *blob;
    size_t blob_len;
    bool good = false;

    if (parts == NULL) {
        return false;
    }
    blob = rsa_blob(parts, &blob_len);
    if (blob != NULL) {
        good = import_capi(key, blob, blob_len);
        SecureZeroMemory(blob, blob_len);
        free(blob);
    }
    (void)LocalFree(parts);
    return good;
}

/* PrivateKeyInfo (RFC 5208, 5): version, algorithm, OCTET STRING. */
static CRYPT_SEQUENCE_OF_ANY *open_pkcs8(const uint8_t *der, size_t len)
{
    CRYPT_SEQUENCE_OF_ANY *parts =
        tw_crypt32_decode(X509_SEQUENCE_OF_ANY, der, (DWORD)len);

    if (parts != NULL && parts->cValue < 3) {
        (void)LocalFree(parts);
        parts = NULL;
    }
    return parts;
}

static bool is_rsa(const CRYPT_DER_BLOB *algorithm)
{
    CRYPT_SEQUENCE_OF_ANY *parts = tw_crypt32_decode(
        X509_SEQUENCE_OF_ANY, algorithm->pbData, algorithm->cbData);
    LPSTR *oid = NULL;
    bool rsa = false;

    if (parts != NULL && parts->cValue > 0) {
        oid = tw_crypt32_decode(X509_OBJECT_IDENTIFIER,
                                parts->rgValue[0].pbData,
                                parts->rgValue[0].cbData);
    }
    if (oid != NULL) {
        rsa = strcmp(*oid, szOID_RSA_RSA) == 0;
        (void)LocalFree(oid);
    }
    if (parts != NULL) {
        (void)LocalFree(parts);
    }
    return rsa;
}

/* The same key for CAPI, if it is an RSA key; *rsa tells. */
static bool import_pkcs8_capi(struct tw_key *key, const uint8_t *der,
                              size_t len, bool *rsa)
{
    CRYPT_SEQUENCE_OF_ANY *parts = open_pkcs8(der, len);
    CRYPT_DATA_BLOB *inner = NULL;
    bool good = false;

    *rsa = false;
    if (parts == NULL) {
        return false;
    }
    *rsa = is_rsa(&parts->rgValue[1]);
    if (*rsa) {
        inner = tw_crypt32_decode(X509_OCTET_STRING,
                                  parts->rgValue[2].pbData,
                                  parts->rgValue[2].cbData);
    }
    if (inner != NULL) {
        good = import_rsa_capi(key, inner->pbData, inner->cbData);
        SecureZeroMemory(inner->pbData, inner->cbData);
        (void)LocalFree(inner);
    }
    (void)LocalFree(parts);
    return good;
}

/* --- what others call --- */

static enum tw_status import_failed(SECURITY_STATUS status, bool secret,
                                    struct tw_error *err)
{
    if (secret && !not_offered(status)) {
        return tw_error_set(err, TW_E_PASSWORD, status,
                            "the private key: the password is wrong");
    }
    if (secret) {
        return tw_error_set(err, TW_E_UNSUPPORTED, status,
                            "the private key is encrypted in a way that "
                            "Windows does not open; convert it to PKCS #12 "
                            "(PFX), or decrypt it");
    }
    if (not_offered(status)) {
        return tw_error_set(err, TW_E_UNSUPPORTED, status,
                            "no key storage of this system takes a private "
                            "key of this kind");
    }
    return tw_crypt32_fail(err, TW_E_FORMAT, (DWORD)status,
                           "the private key cannot be imported");
}

/* EncryptedPrivateKeyInfo (RFC 5208, 6) has two parts, the first a
   sequence; PrivateKeyInfo begins with an INTEGER. */
static bool is_encrypted(const uint8_t *der, size_t len)
{
    CRYPT_SEQUENCE_OF_ANY *parts =
        tw_crypt32_decode(X509_SEQUENCE_OF_ANY, der, (DWORD)len);
    bool sealed = parts != NULL && parts->cValue == 2
                  && parts->rgValue[0].cbData > 0
                  && parts->rgValue[0].pbData[0] == 0x30;

    if (parts != NULL) {
        (void)LocalFree(parts);
    }
    return sealed;
}

/* password NULL: not encrypted. */
static enum tw_status import_pkcs8(const uint8_t *pkcs8, size_t len,
                                   const char *password, struct tw_key **out,
                                   struct tw_error *err)
{
    struct tw_key *key = key_new();
    WCHAR *secret = password != NULL ? tw_crypt32_widen(password) : NULL;
    SECURITY_STATUS status;
    enum tw_status st = TW_DONE;
    bool rsa = false;

    if (key == NULL || (password != NULL && secret == NULL)) {
        tw_crypt32_key_free(key);
        free(secret);
        return tw_crypt32_nomem(err);
    }
    status = import_cng(key, NCRYPT_PKCS8_PRIVATE_KEY_BLOB, pkcs8, len,
                        secret);
    if (status != 0
        && !(not_offered(status) && password == NULL
             && import_pkcs8_capi(key, pkcs8, len, &rsa))) {
        st = import_failed(rsa ? NTE_BAD_DATA : status, password != NULL,
                           err);
    }
    if (secret != NULL) {
        SecureZeroMemory(secret, wcslen(secret) * sizeof(*secret));
        free(secret);
    }
    if (st != TW_DONE) {
        tw_crypt32_key_free(key);
        return st;
    }
    *out = key;
    return TW_DONE;
}

enum tw_status tw_crypt32_key_import(const uint8_t *pkcs8, size_t len,
                                     const char *password,
                                     struct tw_key **out,
                                     struct tw_error *err)
{
    uint8_t *plain = NULL;
    size_t plain_len;
    enum tw_status st;

    *out = NULL;
    if (len > KEY_MAX) {
        return tw_error_set(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                            "the private key is too long");
    }
    if (!is_encrypted(pkcs8, len)) {
        return import_pkcs8(pkcs8, len, NULL, out, err);
    }
    if (password == NULL) {
        return tw_error_set(err, TW_E_PASSWORD, 0,
                            "the private key is encrypted: a password is "
                            "needed");
    }
    st = tw_crypt32_open_pbes2(pkcs8, len, password, &plain, &plain_len);
    switch (st) {
    case TW_DONE:
        st = import_pkcs8(plain, plain_len, NULL, out, err);
        SecureZeroMemory(plain, plain_len);
        free(plain);
        return st;
    case TW_E_PASSWORD:
        return tw_error_set(err, TW_E_PASSWORD, 0,
                            "the private key: the password is wrong");
    case TW_E_NOMEM:
        return tw_crypt32_nomem(err);
    default: /* the older kinds are CNG's */
        return import_pkcs8(pkcs8, len, password, out, err);
    }
}

/* DER of PrivateKeyInfo around a traditional key; LocalFree. */
static uint8_t *wrap_pkcs8(bool rsa, const uint8_t *der, size_t len,
                           DWORD *size)
{
    static BYTE null_der[] = {0x05, 0x00};
    CRYPT_PRIVATE_KEY_INFO info;
    CRYPT_ECC_PRIVATE_KEY_INFO *ecc = NULL;
    uint8_t *curve = NULL;
    uint8_t *out = NULL;
    bool good = true;

    memset(&info, 0, sizeof(info));
    info.PrivateKey.pbData = (BYTE *)(uintptr_t)der;
    info.PrivateKey.cbData = (DWORD)len;
    if (rsa) {
        info.Algorithm.pszObjId = (LPSTR)(uintptr_t)szOID_RSA_RSA;
        info.Algorithm.Parameters.pbData = null_der;
        info.Algorithm.Parameters.cbData = sizeof(null_der);
    } else {
        ecc = tw_crypt32_decode(X509_ECC_PRIVATE_KEY, der, (DWORD)len);
        info.Algorithm.pszObjId = (LPSTR)(uintptr_t)szOID_ECC_PUBLIC_KEY;
        good = ecc != NULL && ecc->szCurveOid != NULL
               && CryptEncodeObjectEx(
                   TW_ENCODING, X509_OBJECT_IDENTIFIER, &ecc->szCurveOid,
                   CRYPT_ENCODE_ALLOC_FLAG, NULL, &curve,
                   &info.Algorithm.Parameters.cbData);
        info.Algorithm.Parameters.pbData = curve;
    }
    if (!good
        || !CryptEncodeObjectEx(TW_ENCODING, PKCS_PRIVATE_KEY_INFO, &info,
                                CRYPT_ENCODE_ALLOC_FLAG, NULL, &out, size)) {
        out = NULL;
    }
    if (curve != NULL) {
        (void)LocalFree(curve);
    }
    if (ecc != NULL) {
        (void)LocalFree(ecc);
    }
    return out;
}

enum tw_status tw_crypt32_key_import_bare(bool rsa, const uint8_t *der,
                                          size_t len, struct tw_key **out,
                                          struct tw_error *err)
{
    DWORD size = 0;
    uint8_t *wrapped = len <= KEY_MAX ? wrap_pkcs8(rsa, der, len, &size)
                                      : NULL;
    struct tw_key *key;
    enum tw_status st;

    *out = NULL;
    if (wrapped != NULL) {
        st = tw_crypt32_key_import(wrapped, size, NULL, out, err);
        SecureZeroMemory(wrapped, size);
        (void)LocalFree(wrapped);
        return st;
    }
    if (!rsa) {
        return tw_error_set(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                            "not a private key");
    }
    key = key_new();
    if (key == NULL) {
        return tw_crypt32_nomem(err);
    }
    if (!import_rsa_capi(key, der, len)) {
        tw_crypt32_key_free(key);
        return tw_error_set(err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                            "not a private key");
    }
    *out = key;
    return TW_DONE;
}

/*
 * An ephemeral CNG key: exported and imported again under our name. A PFX
 * key may be exported encrypted only (CRYPT_EXPORTABLE is not
 * ALLOW_PLAINTEXT_EXPORT), so it goes through a secret of the moment:
 * pbeWithSHAAnd3-KeyTripleDES-CBC (RFC 7292, C), which never leaves memory.
 */
static SECURITY_STATUS move_cng(struct tw_key *key, NCRYPT_KEY_HANDLE from)
{
    static const char algorithm[] = "1.2.840.113549.1.12.1.3";
    struct {
        CRYPT_PKCS12_PBE_PARAMS params;
        BYTE salt[8];
    } pbe = {{2048, 8}, {0}};
    WCHAR secret[40];
    GUID id;
    NCryptBuffer buffers[3];
    NCryptBufferDesc desc = {NCRYPTBUFFER_VERSION, 3, NULL};
    SECURITY_STATUS status;
    uint8_t *blob;
    DWORD len = 0;

    if (CoCreateGuid(&id) != S_OK || StringFromGUID2(&id, secret, 40) == 0) {
        return NTE_FAIL;
    }
    memcpy(pbe.salt, &id, sizeof(pbe.salt));
    desc.pBuffers = buffers;
    buffers[0].BufferType = NCRYPTBUFFER_PKCS_SECRET;
    buffers[0].pvBuffer = secret;
    buffers[0].cbBuffer = (ULONG)((wcslen(secret) + 1) * sizeof(WCHAR));
    buffers[1].BufferType = NCRYPTBUFFER_PKCS_ALG_OID;
    buffers[1].pvBuffer = (void *)(uintptr_t)algorithm;
    buffers[1].cbBuffer = sizeof(algorithm);
    buffers[2].BufferType = NCRYPTBUFFER_PKCS_ALG_PARAM;
    buffers[2].pvBuffer = &pbe;
    buffers[2].cbBuffer = sizeof(pbe);
    status = NCryptExportKey(from, 0, NCRYPT_PKCS8_PRIVATE_KEY_BLOB, &desc,
                             NULL, 0, &len, NCRYPT_SILENT_FLAG);
    if (status != 0 || len == 0 || len > KEY_MAX) {
        return status != 0 ? status : NTE_BAD_DATA;
    }
    blob = malloc(len);
    if (blob == NULL) {
        return NTE_NO_MEMORY;
    }
    status = NCryptExportKey(from, 0, NCRYPT_PKCS8_PRIVATE_KEY_BLOB, &desc,
                             blob, len, &len, NCRYPT_SILENT_FLAG);
    if (status == 0) {
        status = import_cng(key, NCRYPT_PKCS8_PRIVATE_KEY_BLOB, blob, len,
                            secret);
    }
    SecureZeroMemory(secret, sizeof(secret));
    free(blob);
    return status;
}

/* A CAPI key: its blob goes to CNG where that takes it, else to CAPI. */
static SECURITY_STATUS move_capi(struct tw_key *key, HCRYPTPROV from)
{
    HCRYPTKEY handle = 0;
    DWORD len = 0;
    uint8_t *blob = NULL;
    SECURITY_STATUS status = NTE_BAD_KEY;

    if (!CryptGetUserKey(from, AT_KEYEXCHANGE, &handle)
        && !CryptGetUserKey(from, AT_SIGNATURE, &handle)) {
        return (SECURITY_STATUS)GetLastError();
    }
    if (CryptExportKey(handle, 0, PRIVATEKEYBLOB, 0, NULL, &len)
        && len <= KEY_MAX && (blob = malloc(len)) != NULL
        && CryptExportKey(handle, 0, PRIVATEKEYBLOB, 0, blob, &len)) {
        status = import_cng(key, LEGACY_RSAPRIVATE_BLOB, blob, len, NULL);
        if (status != 0 && import_capi(key, blob, len)) {
            status = 0;
        }
        SecureZeroMemory(blob, len);
    }
    free(blob);
    (void)CryptDestroyKey(handle);
    return status;
}

enum tw_status tw_crypt32_key_adopt(PCCERT_CONTEXT cert,
                                    struct tw_key **out,
                                    struct tw_error *err)
{
    CERT_KEY_CONTEXT context;
    DWORD size = sizeof(context);
    struct tw_key *key;
    SECURITY_STATUS status;

    *out = NULL;
    memset(&context, 0, sizeof(context));
    if (!CertGetCertificateContextProperty(cert, CERT_KEY_CONTEXT_PROP_ID,
                                           &context, &size)) {
        return TW_DONE;
    }
    key = key_new();
    if (key == NULL) {
        return tw_crypt32_nomem(err);
    }
    status = context.dwKeySpec == CERT_NCRYPT_KEY_SPEC
                 ? move_cng(key, context.hNCryptKey)
                 : move_capi(key, context.hCryptProv);
    if (status != 0) {
        tw_crypt32_key_free(key);
        return tw_crypt32_fail(err, TW_E_UNSUPPORTED, (DWORD)status,
                               "the private key cannot be moved into a "
                               "container");
    }
    if (!tw_crypt32_key_fits(key, cert)) {
        tw_crypt32_key_free(key); /* another certificate's of the file */
        return TW_DONE;
    }
    *out = key;
    return TW_DONE;
}

/* One name for what different providers call differently; 0: a PIN may be
   wanted, which is no trouble yet, or something that is not for us to say. */
static int32_t trouble_of(DWORD failure)
{
    switch (failure) {
    case (DWORD)NTE_PERM:
    case ERROR_ACCESS_DENIED:
    case (DWORD)E_ACCESSDENIED:
        return (int32_t)NTE_PERM;
    case (DWORD)NTE_BAD_KEYSET:
    case (DWORD)NTE_KEYSET_NOT_DEF:
    case (DWORD)CRYPT_E_NO_KEY_PROPERTY:
        return (int32_t)NTE_BAD_KEYSET;
    case (DWORD)SCARD_E_NO_SMARTCARD:
    case (DWORD)SCARD_W_REMOVED_CARD:
    case (DWORD)SCARD_E_NO_READERS_AVAILABLE:
    case (DWORD)SCARD_W_CHV_BLOCKED:
    case (DWORD)SCARD_W_CANCELLED_BY_USER:
    case (DWORD)NTE_USER_CANCELLED:
        return (int32_t)failure;
    default:
        return 0;
    }
}

int32_t tw_crypt32_key_trouble(struct tw_cert *cert)
{
    HCRYPTPROV_OR_NCRYPT_KEY_HANDLE handle = 0;
    DWORD spec = 0;
    BOOL release = FALSE;

    if (!CryptAcquireCertificatePrivateKey(
            cert->ctx,
            CRYPT_ACQUIRE_SILENT_FLAG | CRYPT_ACQUIRE_ALLOW_NCRYPT_KEY_FLAG,
            NULL, &handle, &spec, &release)) {
        return trouble_of(GetLastError());
    }
    if (release && spec == CERT_NCRYPT_KEY_SPEC) {
        (void)NCryptFreeObject(handle);
    } else if (release) {
        (void)CryptReleaseContext(handle, 0);
    }
    return 0;
}
