/*
 * Encrypted private keys: PBES2 of PKCS #5 (RFC 8018, 6.2).
 *
 * It is what openssl and nearly everybody else writes today, and what CNG's
 * own import does not open: that knows PKCS #12's older kind alone. So the
 * structure is taken apart here, by crypt32's decoder, and opened by
 * bcrypt.dll: PBKDF2 with HMAC, then a cipher in CBC mode. The plain key
 * goes to the key storage at once.
 *
 *   EncryptedPrivateKeyInfo { { id-PBES2, { kdf, scheme } }, OCTET STRING }
 *   kdf    { id-PBKDF2, { salt, iterations, [key length], [prf] } }
 *   scheme { a cipher, its initialisation vector }
 */
#include "sspi/schannel_internal.h"

#include <stdlib.h>
#include <string.h>

#include <bcrypt.h>

#define OID_PBES2 "1.2.840.113549.1.5.13"
#define OID_PBKDF2 "1.2.840.113549.1.5.12"
#define OID_HMAC_SHA1 "1.2.840.113549.2.7"
#define ITERATIONS_MAX 100000000 /* a minute's work; beyond it: a joke */
#define BLOCK_MAX 16

static const struct prf {
    const char *oid;
    LPCWSTR algorithm;
} prfs[] = {
    {OID_HMAC_SHA1, BCRYPT_SHA1_ALGORITHM},
    {"1.2.840.113549.2.9", BCRYPT_SHA256_ALGORITHM},
    {"1.2.840.113549.2.10", BCRYPT_SHA384_ALGORITHM},
    {"1.2.840.113549.2.11", BCRYPT_SHA512_ALGORITHM},
};

static const struct scheme {
    const char *oid;
    LPCWSTR algorithm;
    ULONG key, block; /* bytes */
} schemes[] = {
    {"2.16.840.1.101.3.4.1.2", BCRYPT_AES_ALGORITHM, 16, 16},
    {"2.16.840.1.101.3.4.1.22", BCRYPT_AES_ALGORITHM, 24, 16},
    {"2.16.840.1.101.3.4.1.42", BCRYPT_AES_ALGORITHM, 32, 16},
    {"1.2.840.113549.3.7", BCRYPT_3DES_ALGORITHM, 24, 8},
};

/* What the structure says. */
struct sealed {
    const struct prf *prf;
    const struct scheme *scheme;
    CRYPT_DATA_BLOB *salt; /* LocalFree */
    CRYPT_DATA_BLOB *iv;   /* LocalFree */
    CRYPT_DATA_BLOB *data; /* LocalFree */
    int iterations;
};

/* --- reading --- */

/* At least n parts; LocalFree; NULL: not that. */
static CRYPT_SEQUENCE_OF_ANY *sequence(const CRYPT_DER_BLOB *der, DWORD n)
{
    CRYPT_SEQUENCE_OF_ANY *parts =
        tw_crypt32_decode(X509_SEQUENCE_OF_ANY, der->pbData, der->cbData);

    if (parts != NULL && parts->cValue < n) {
        (void)LocalFree(parts);
        parts = NULL;
    }
    return parts;
}

static CRYPT_DATA_BLOB *octets(const CRYPT_DER_BLOB *der)
{
    return tw_crypt32_decode(X509_OCTET_STRING, der->pbData, der->cbData);
}

static bool integer(const CRYPT_DER_BLOB *der, int *out)
{
    int *number = tw_crypt32_decode(X509_INTEGER, der->pbData, der->cbData);

    if (number != NULL) {
        *out = *number;
        (void)LocalFree(number);
    }
    return number != NULL;
}

/* AlgorithmIdentifier: its OID into name; the parts, LocalFree. */
static CRYPT_SEQUENCE_OF_ANY *algorithm(const CRYPT_DER_BLOB *der,
                                        char *name, size_t room)
{
    CRYPT_SEQUENCE_OF_ANY *parts = sequence(der, 1);
    LPSTR *oid = NULL;

    if (parts != NULL) {
        oid = tw_crypt32_decode(X509_OBJECT_IDENTIFIER,
                                parts->rgValue[0].pbData,
                                parts->rgValue[0].cbData);
    }
    if (oid == NULL || strlen(*oid) >= room) {
        name[0] = '\0';
    } else {
        memcpy(name, *oid, strlen(*oid) + 1);
    }
    if (oid != NULL) {
        (void)LocalFree(oid);
    }
    return parts;
}

static const struct prf *find_prf(const char *oid)
{
    size_t i;

    for (i = 0; i < sizeof(prfs) / sizeof(prfs[0]); i++) {
        if (strcmp(prfs[i].oid, oid) == 0) {
            return &prfs[i];
        }
    }
    return NULL;
}

static const struct scheme *find_scheme(const char *oid)
{
    size_t i;

    for (i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        if (strcmp(schemes[i].oid, oid) == 0) {
            return &schemes[i];
        }
    }
    return NULL;
}

/* PBKDF2-params (RFC 8018, A.2); the key's length follows from the cipher,
   where it is told as well. */
static bool read_params(struct sealed *s, const CRYPT_DER_BLOB *der)
{
    CRYPT_SEQUENCE_OF_ANY *params = sequence(der, 2);
    CRYPT_SEQUENCE_OF_ANY *prf;
    const CRYPT_DER_BLOB *last;
    char oid[64] = OID_HMAC_SHA1;

    if (params == NULL) {
        return false;
    }
    s->salt = octets(&params->rgValue[0]);
    if (!integer(&params->rgValue[1], &s->iterations)) {
        s->iterations = 0;
    }
    last = &params->rgValue[params->cValue - 1];
    if (params->cValue > 2 && last->cbData > 0 && last->pbData[0] == 0x30) {
        prf = algorithm(last, oid, sizeof(oid));
        if (prf != NULL) {
            (void)LocalFree(prf);
        }
    }
    s->prf = find_prf(oid);
    (void)LocalFree(params);
    return s->salt != NULL && s->prf != NULL && s->iterations > 0
           && s->iterations <= ITERATIONS_MAX;
}

static bool read_kdf(struct sealed *s, const CRYPT_DER_BLOB *der)
{
    char oid[64];
    CRYPT_SEQUENCE_OF_ANY *kdf = algorithm(der, oid, sizeof(oid));
    bool good = kdf != NULL && kdf->cValue == 2
                && strcmp(oid, OID_PBKDF2) == 0
                && read_params(s, &kdf->rgValue[1]);

    if (kdf != NULL) {
        (void)LocalFree(kdf);
    }
    return good;
}

static bool read_scheme(struct sealed *s, const CRYPT_DER_BLOB *der)
{
    char oid[64];
    CRYPT_SEQUENCE_OF_ANY *scheme = algorithm(der, oid, sizeof(oid));

    s->scheme = find_scheme(oid);
    if (scheme != NULL && scheme->cValue == 2) {
        s->iv = octets(&scheme->rgValue[1]);
    }
    if (scheme != NULL) {
        (void)LocalFree(scheme);
    }
    return s->scheme != NULL && s->iv != NULL
           && s->iv->cbData == s->scheme->block;
}

static bool read_sealed(struct sealed *s, const uint8_t *der, size_t len)
{
    CRYPT_DER_BLOB whole = {(DWORD)len, (BYTE *)(uintptr_t)der};
    CRYPT_SEQUENCE_OF_ANY *parts = sequence(&whole, 2);
    CRYPT_SEQUENCE_OF_ANY *outer = NULL;
    CRYPT_SEQUENCE_OF_ANY *inner = NULL;
    char oid[64];
    bool good = false;

    if (parts == NULL) {
        return false;
    }
    s->data = octets(&parts->rgValue[1]);
    outer = algorithm(&parts->rgValue[0], oid, sizeof(oid));
    if (outer != NULL && outer->cValue == 2 && strcmp(oid, OID_PBES2) == 0) {
        inner = sequence(&outer->rgValue[1], 2);
    }
    if (inner != NULL) {
        good = s->data != NULL && read_kdf(s, &inner->rgValue[0])
               && read_scheme(s, &inner->rgValue[1]);
        (void)LocalFree(inner);
    }
    if (outer != NULL) {
        (void)LocalFree(outer);
    }
    (void)LocalFree(parts);
    return good;
}

static void sealed_fini(struct sealed *s)
{
    CRYPT_DATA_BLOB *blobs[3];
    size_t i;

    blobs[0] = s->salt;
    blobs[1] = s->iv;
    blobs[2] = s->data;
    for (i = 0; i < 3; i++) {
        if (blobs[i] != NULL) {
            (void)LocalFree(blobs[i]);
        }
    }
}

/* --- opening --- */

static bool derive(const struct sealed *s, const char *password,
                   uint8_t *key)
{
    BCRYPT_ALG_HANDLE hmac = NULL;
    NTSTATUS status;

    if (BCryptOpenAlgorithmProvider(&hmac, s->prf->algorithm, NULL,
                                    BCRYPT_ALG_HANDLE_HMAC_FLAG)
        != 0) {
        return false;
    }
    status = BCryptDeriveKeyPBKDF2(
        hmac, (PUCHAR)(uintptr_t)password, (ULONG)strlen(password),
        s->salt->pbData, s->salt->cbData, (ULONGLONG)s->iterations, key,
        s->scheme->key, 0);
    (void)BCryptCloseAlgorithmProvider(hmac, 0);
    return status == 0;
}

/* As long as the data at most; the padding goes. *n 0: it was wrong. */
static bool decrypt(const struct sealed *s, uint8_t *key, uint8_t *out,
                    ULONG *n)
{
    static const WCHAR mode[] = BCRYPT_CHAIN_MODE_CBC;
    BCRYPT_ALG_HANDLE cipher = NULL;
    BCRYPT_KEY_HANDLE handle = NULL;
    uint8_t iv[BLOCK_MAX]; /* is changed on the way */
    bool good;

    *n = 0;
    memcpy(iv, s->iv->pbData, s->iv->cbData);
    good = BCryptOpenAlgorithmProvider(&cipher, s->scheme->algorithm, NULL,
                                       0)
               == 0
           && BCryptSetProperty(cipher, BCRYPT_CHAINING_MODE,
                                (PUCHAR)(uintptr_t)mode, sizeof(mode), 0)
                  == 0
           && BCryptGenerateSymmetricKey(cipher, &handle, NULL, 0, key,
                                         s->scheme->key, 0)
                  == 0;
    if (good
        && BCryptDecrypt(handle, s->data->pbData, s->data->cbData, NULL, iv,
                         s->iv->cbData, out, s->data->cbData, n,
                         BCRYPT_BLOCK_PADDING)
               != 0) {
        *n = 0;
    }
    if (handle != NULL) {
        (void)BCryptDestroyKey(handle);
    }
    if (cipher != NULL) {
        (void)BCryptCloseAlgorithmProvider(cipher, 0);
    }
    return good;
}

enum tw_status tw_crypt32_open_pbes2(const uint8_t *der, size_t len,
                                     const char *password, uint8_t **plain,
                                     size_t *plain_len)
{
    struct sealed s;
    CRYPT_SEQUENCE_OF_ANY *info;
    CRYPT_DER_BLOB opened;
    uint8_t key[32];
    uint8_t *out = NULL;
    ULONG n = 0;
    enum tw_status st = TW_E_UNSUPPORTED;

    *plain = NULL;
    *plain_len = 0;
    memset(&s, 0, sizeof(s));
    if (!read_sealed(&s, der, len)) {
        goto done;
    }
    out = malloc(s.data->cbData > 0 ? s.data->cbData : 1);
    if (out == NULL) {
        st = TW_E_NOMEM;
        goto done;
    }
    if (!derive(&s, password, key) || !decrypt(&s, key, out, &n)) {
        goto done;
    }
    /* The padding of a wrong password is right once in 256 times; what it
       leaves is no PrivateKeyInfo. */
    opened.pbData = out;
    opened.cbData = n;
    info = n > 0 ? sequence(&opened, 3) : NULL;
    st = info != NULL ? TW_DONE : TW_E_PASSWORD;
    if (info != NULL) {
        (void)LocalFree(info);
    }
done:
    SecureZeroMemory(key, sizeof(key));
    if (st == TW_DONE) {
        *plain = out;
        *plain_len = n;
    } else if (out != NULL) {
        SecureZeroMemory(out, s.data->cbData);
        free(out);
    }
    sealed_fini(&s);
    return st;
}
