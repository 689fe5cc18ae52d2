/*
 * The library context in which clients read certificates: that it reads the
 * same as the default one, that what it cannot read is read there, that it
 * is not used where the default one is anything but plain, and who hears
 * what it derives.
 *
 * Each case has a process of its own, since most change the default context.
 */
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <openssl/core_names.h>
#include <openssl/kdf.h>
#include <openssl/provider.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>

#include "sspi/openssl_internal.h"

#include "support.h"

static bool has_library(void)
{
    return tw_openssl_reading_library() != NULL;
}

static X509 *make(EVP_PKEY *key, EVP_PKEY *signer, const EVP_MD *md)
{
    X509 *x509 = X509_new();
    X509_NAME *name = X509_NAME_new();

    CHECK(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                                     (const unsigned char *)"x", -1, -1, 0)
          && X509_set_version(x509, 2)
          && ASN1_INTEGER_set(X509_get_serialNumber(x509), 1)
          && X509_gmtime_adj(X509_getm_notBefore(x509), -86400)
          && X509_gmtime_adj(X509_getm_notAfter(x509), 86400)
          && X509_set_subject_name(x509, name)
          && X509_set_issuer_name(x509, name) && X509_set_pubkey(x509, key)
          && X509_sign(x509, signer, md) > 0);
    X509_NAME_free(name);
    return x509;
}

static X509 *self_signed(EVP_PKEY *key, const EVP_MD *md)
{
    return make(key, key, md);
}

/* As libssl reads it for an SSL_CTX of that library context. */
static X509 *read_in(OSSL_LIB_CTX *library, X509 *x509)
{
    unsigned char *der = NULL;
    int len = i2d_X509(x509, &der);
    const unsigned char *at = der;
    X509 *copy = X509_new_ex(library, NULL);

    CHECK(len > 0 && d2i_X509(&copy, &at, len) != NULL);
    OPENSSL_free(der);
    return copy;
}

static EVP_PKEY *pss_key(void)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA-PSS", NULL);
    EVP_PKEY *key = NULL;

    CHECK(ctx != NULL && EVP_PKEY_keygen_init(ctx) == 1
          && EVP_PKEY_CTX_set_rsa_keygen_bits(ctx, 2048) == 1
          && EVP_PKEY_generate(ctx, &key) == 1);
    EVP_PKEY_CTX_free(ctx);
    return key;
}

/* What authenticates in TLS is read, and can be verified, compared, written
   and used beside what the default context read. */
static void test_keys(void)
{
    OSSL_LIB_CTX *library = tw_openssl_reading_library();
    struct {
        EVP_PKEY *key;
        const EVP_MD *md;
    } kinds[] = {
        { EVP_RSA_gen(2048), EVP_sha256() },
        { pss_key(), EVP_sha256() },
        { EVP_EC_gen("P-256"), EVP_sha256() },
        { EVP_EC_gen("P-521"), EVP_sha512() },
        { EVP_PKEY_Q_keygen(NULL, NULL, "SM2"), EVP_sm3() },
        { EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"), NULL },
        { EVP_PKEY_Q_keygen(NULL, NULL, "ED448"), NULL },
    };

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        X509 *x509 = self_signed(kinds[i].key, kinds[i].md);
        X509 *copy = read_in(library, x509);
        struct tw_cert *peer = tw_openssl_peer_new(copy, NULL);
        unsigned char *plain = NULL, *ours = NULL;
        int len = i2d_PUBKEY(kinds[i].key, &plain);
        EVP_PKEY *key = X509_get0_pubkey(copy);
        CHECK(key != NULL && EVP_PKEY_eq(key, kinds[i].key) == 1);
        CHECK(X509_verify(copy, kinds[i].key) == 1);
        CHECK(X509_verify(x509, key) == 1 && X509_verify(copy, key) == 1);
        CHECK(X509_check_private_key(copy, kinds[i].key) == 1);
        CHECK(i2d_PUBKEY(key, &ours) == len && memcmp(plain, ours, len) == 0);
        CHECK(peer != NULL && peer->x509 == copy); /* no need of another */
        tw_openssl_cert_free(peer);
        OPENSSL_free(plain);
        OPENSSL_free(ours);
        X509_free(copy);
        X509_free(x509);
        EVP_PKEY_free(kinds[i].key);
    }
}

/* A key that authenticates nobody in TLS: leaf or above, it is read. */
static void test_other_keys(void)
{
    OSSL_LIB_CTX *library = tw_openssl_reading_library();
    EVP_PKEY *odd = EVP_PKEY_Q_keygen(NULL, NULL, "X25519");
    EVP_PKEY *usual = EVP_EC_gen("P-256");
    X509 *strange = make(odd, usual, EVP_sha256());
    X509 *good = self_signed(usual, EVP_sha256());
    X509 *copies[2] = { read_in(library, strange), read_in(library, good) };
    STACK_OF(X509) *chain = sk_X509_new_null();
    struct tw_cert *peer;

    CHECK(X509_get0_pubkey(copies[0]) == NULL);
    CHECK((peer = tw_openssl_peer_new(copies[0], NULL)) != NULL);
    CHECK(EVP_PKEY_eq(X509_get0_pubkey(peer->x509), odd) == 1);
    tw_openssl_cert_free(peer);

    CHECK(sk_X509_push(chain, copies[1]) && sk_X509_push(chain, copies[0]));
    CHECK((peer = tw_openssl_peer_new(copies[1], chain)) != NULL);
    CHECK(sk_X509_num(peer->chain) == 2);
    CHECK(X509_cmp(sk_X509_value(peer->chain, 1), strange) == 0);
    CHECK(EVP_PKEY_eq(X509_get0_pubkey(sk_X509_value(peer->chain, 1)), odd)
          == 1);
    tw_openssl_cert_free(peer);
    CHECK(ERR_peek_error() == 0);
    sk_X509_pop_free(chain, X509_free); /* frees the copies */
    X509_free(good);
    X509_free(strange);
    EVP_PKEY_free(usual);
    EVP_PKEY_free(odd);
}

static void test_other_providers(void)
{
    static const char *const names[] = { "base", "null" };

    for (size_t i = 0; i < 2; i++) {
        OSSL_PROVIDER *also = OSSL_PROVIDER_try_load(NULL, names[i], 1);
        CHECK(also != NULL && !has_library());
        CHECK(OSSL_PROVIDER_unload(also) && has_library());
    }
}

/* A program that has loaded another provider only, on purpose. */
static void test_no_default_provider(void)
{
    OSSL_PROVIDER *only = OSSL_PROVIDER_load(NULL, "null");

    CHECK(only != NULL && !has_library());
    CHECK(!OSSL_PROVIDER_available(NULL, "default"));
    CHECK(OSSL_PROVIDER_unload(only));
}

static void test_properties(void)
{
    CHECK(EVP_set_default_properties(NULL, "fips=yes") && !has_library());
    CHECK(EVP_set_default_properties(NULL, "provider=else")
          && !has_library());
    /* These choose nothing where there is but one provider. */
    CHECK(EVP_set_default_properties(NULL, "?fips=yes") && has_library());
    CHECK(EVP_set_default_properties(NULL, "provider=default")
          && has_library());
    CHECK(EVP_set_default_properties(NULL, NULL) && has_library());
}

static void test_other_generator(void)
{
    CHECK(RAND_set_DRBG_type(NULL, "HASH-DRBG", NULL, NULL, "SHA256"));
    CHECK(!has_library());
}

static void test_weaker_generator(void)
{
    CHECK(RAND_set_DRBG_type(NULL, "CTR-DRBG", NULL, "AES-128-CTR", NULL));
    CHECK(!has_library());
}

/* What is the default is a matter of the thread. */
static void test_other_default_context(void)
{
    OSSL_LIB_CTX *theirs = OSSL_LIB_CTX_new(), *before;
    OSSL_PROVIDER *none = OSSL_PROVIDER_load(theirs, "null");

    before = OSSL_LIB_CTX_set0_default(theirs);
    CHECK(!has_library());
    (void)OSSL_LIB_CTX_set0_default(before);
    CHECK(has_library());
    CHECK(OSSL_PROVIDER_unload(none));
    OSSL_LIB_CTX_free(theirs);
}

/* The default context is left as it was. */
static void test_nothing_stays_loaded(void)
{
    OSSL_PROVIDER *theirs = OSSL_PROVIDER_load(NULL, "default");

    CHECK(theirs != NULL && has_library());
    CHECK(OSSL_PROVIDER_unload(theirs));
    CHECK(!OSSL_PROVIDER_available(NULL, "default") && !has_library());
}

static X509 *shared;

static void *read_many(void *arg)
{
    OSSL_LIB_CTX *library = tw_openssl_reading_library();

    (void)arg;
    for (int i = 0; i < 8; i++) {
        X509 *copy = read_in(library, shared);
        CHECK(X509_verify(copy, X509_get0_pubkey(copy)) == 1);
        X509_free(copy);
    }
    return library;
}

static void test_threads(void)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    pthread_t threads[8];
    void *libraries[8];

    shared = self_signed(key, EVP_sha256());
    for (int i = 0; i < 8; i++) {
        CHECK(pthread_create(&threads[i], NULL, read_many, NULL) == 0);
    }
    for (int i = 0; i < 8; i++) {
        CHECK(pthread_join(threads[i], &libraries[i]) == 0);
        CHECK(libraries[i] != NULL && libraries[i] == libraries[0]);
    }
    X509_free(shared);
    EVP_PKEY_free(key);
}

/* As libssl derives a secret of TLS 1.3 (RFC 8446, 7.1). */
static void derive(OSSL_LIB_CTX *library, const char *label, uint8_t *out)
{
    static uint8_t secret[32] = { 7 };
    char prefix[] = "tls13 ", digest[] = "SHA256", name[32];
    int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, secret,
                                          sizeof(secret)),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_PREFIX, prefix, 6),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_LABEL, name,
                                          strlen(label)),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_DATA, secret,
                                          sizeof(secret)),
        OSSL_PARAM_construct_end(),
    };
    EVP_KDF *kdf = EVP_KDF_fetch(library, OSSL_KDF_NAME_TLS1_3_KDF, NULL);
    EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(kdf);

    strcpy(name, label);
    CHECK(ctx != NULL && EVP_KDF_derive(ctx, out, 32, params) == 1);
    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
}

struct heard {
    int times;
    char label[32];
    uint8_t secret[32];
};

static void hear(void *arg, const char *label, size_t label_len,
                 const uint8_t *secret, size_t len)
{
    struct heard *heard = arg;

    CHECK(label_len < sizeof(heard->label) && len == 32);
    heard->times++;
    memcpy(heard->label, label, label_len);
    memcpy(heard->secret, secret, len);
}

static void *derive_elsewhere(void *library)
{
    uint8_t out[32];

    derive(library, "s ap traffic", out);
    return NULL;
}

/* Each derivation in that library on this thread, and no other. */
static void test_hearing(void)
{
    OSSL_LIB_CTX *library = tw_openssl_reading_library();
    struct heard heard = { .times = 0 };
    uint8_t out[32], usual[32];
    pthread_t other;

    derive(library, "c hs traffic", out);
    tw_openssl_listen(hear, &heard);
    derive(NULL, "c hs traffic", usual);
    CHECK(pthread_create(&other, NULL, derive_elsewhere, library) == 0
          && pthread_join(other, NULL) == 0);
    CHECK(heard.times == 0 && memcmp(out, usual, 32) == 0);
    derive(library, "c ap traffic", out);
    derive(NULL, "c ap traffic", usual);
    CHECK(heard.times == 1 && strcmp(heard.label, "c ap traffic") == 0);
    CHECK(memcmp(heard.secret, out, 32) == 0
          && memcmp(heard.secret, usual, 32) == 0);
    tw_openssl_listen(NULL, NULL);
    derive(library, "s ap traffic", out);
    CHECK(heard.times == 1);
}

/* A child goes on with what its parent made. */
static void test_fork(void)
{
    pid_t child;
    int status = -1;

    test_other_keys();
    child = fork();
    if (child == 0) {
        test_other_keys();
        exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

int main(void)
{
    static void (*const cases[])(void) = {
        test_keys,
        test_other_keys,
        test_other_providers,
        test_no_default_provider,
        test_properties,
        test_other_generator,
        test_weaker_generator,
        test_other_default_context,
        test_nothing_stays_loaded,
        test_threads,
        test_fork,
        test_hearing,
    };

    if (OPENSSL_version_major() > 3 || OPENSSL_version_minor() >= 2) {
        CHECK(!has_library()); /* there is nothing to gain */
        return 0;
    }
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        pid_t child = fork();
        int status = -1;
        if (child == 0) {
            cases[i]();
            exit(0);
        }
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        if (status != 0) {
            fprintf(stderr, "test_library_openssl.c: case %zu\n", i);
            return 1;
        }
    }
    return 0;
}
