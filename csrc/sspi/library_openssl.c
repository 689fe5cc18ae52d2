/*
 * The library context of clients with OpenSSL 3.0 and 3.1: servers'
 * certificates are read faster in it, and secrets need not be logged.
 *
 * OpenSSL 3.0 and 3.1 decode the key of a certificate as they parse it, and
 * for that collect every decoder of every provider of the library context
 * anew: 1.2 million instructions, 100 us, a quarter of a client's handshake
 * for each certificate that is sent. From 3.2 on the collection is kept.
 * libssl parses in the library context of its SSL_CTX; so a client gets one
 * of ours, with few decoders in it: 0.5 million.
 *
 *   inner    has OpenSSL's own default provider, and nothing else
 *   reading  has a provider of ours, built in, that passes on what inner's
 *            offers: each algorithm, the groups of TLS, the provider's own
 *            context; but of the decoders only those for the keys that
 *            authenticate in TLS, out of a SubjectPublicKeyInfo
 *
 * No algorithm is ours. A certificate with another kind of key is parsed
 * once more in the default context (tw_openssl_peer_new), so that verdicts
 * are the same.
 *
 * libssl's key log writes each secret of TLS 1.3 as text with one sprintf a
 * byte: 240,000 instructions a handshake, a tenth of a client's resumed one.
 * Those secrets are what it has EVP_KDF derive under the labels of RFC 8446,
 * 7.1; so behind the derivation that is passed on (TLS13-KDF, derive) stands
 * one call more, to who listens on this thread. Nobody listens but while a
 * client's handshake is stepped (tw_openssl_listen). If libssl derived them
 * otherwise, none would be heard, and records would stay with it.
 *
 * A library context of one's own does not read openssl.cnf. What that says
 * of TLS holds all the same: libssl gives each new SSL_CTX the section
 * system_default, whatever its library context. What it says of algorithms
 * would not. So ours is used only where the default context is as OpenSSL
 * makes it: there is one provider, the default one; FIPS mode is off, and
 * what other default properties there may be leave that provider in use;
 * random numbers come from the usual generator. The question is put when
 * credentials are acquired, since a program may load providers at any time.
 * Wherever the answer is no, and for credentials that have or may be given a
 * private key, whose provider must be at hand, it is the default context.
 *
 * Both contexts are made once and live as long as the process: certificates
 * of theirs may, and at exit OpenSSL has its own order.
 */
#include "sspi/openssl_internal.h"

#include <string.h>

#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/provider.h>
#include <openssl/rand.h>

#define DECODERS_MAX 8
#define KDFS_MAX 16
#define SLOTS_MAX 16

static const char provider_name[] = "twapi_tls";
static CRYPTO_ONCE once = CRYPTO_ONCE_STATIC_INIT;
static OSSL_LIB_CTX *inner, *reading; /* NULL: not to be had */
static const OSSL_PROVIDER *passed;   /* the default provider of inner */
/* All three end with zeros. */
static OSSL_ALGORITHM decoders[DECODERS_MAX + 1];
static OSSL_ALGORITHM kdfs[KDFS_MAX + 1];
static OSSL_DISPATCH heard_slots[SLOTS_MAX + 1]; /* of TLS13-KDF */
static OSSL_FUNC_kdf_derive_fn *derive_passed_on;

static _Thread_local struct {
    tw_hearer *hearer; /* NULL: nobody listens */
    void *arg;
} ear;

/* --- the provider that passes on --- */

static const OSSL_ALGORITHM *query(void *provctx, int operation,
                                   int *no_cache)
{
    (void)provctx;
    if (operation == OSSL_OP_DECODER) {
        *no_cache = 0;
        return decoders;
    }
    if (operation == OSSL_OP_KDF) {
        *no_cache = 0;
        return kdfs;
    }
    return OSSL_PROVIDER_query_operation(passed, operation, no_cache);
}

static int capabilities(void *provctx, const char *capability,
                        OSSL_CALLBACK *each, void *arg)
{
    (void)provctx;
    return OSSL_PROVIDER_get_capabilities(passed, capability, each, arg);
}

static int start(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in,
                 const OSSL_DISPATCH **out, void **provctx)
{
    static const OSSL_DISPATCH slots[] = {
        { OSSL_FUNC_PROVIDER_QUERY_OPERATION, (void (*)(void))query },
        { OSSL_FUNC_PROVIDER_GET_CAPABILITIES,
          (void (*)(void))capabilities },
        { 0, NULL },
    };

    (void)handle;
    (void)in;
    *out = slots;
    /* what the algorithms that are passed on expect */
    *provctx = OSSL_PROVIDER_get0_provider_ctx(passed);
    return 1;
}

static bool is_named(const OSSL_ALGORITHM *algorithm, const char *name)
{
    /* aliases follow */
    size_t len = strcspn(algorithm->algorithm_names, ":");

    return strlen(name) == len
           && memcmp(algorithm->algorithm_names, name, len) == 0;
}

/* Is this a decoder for a key that can authenticate in TLS 1.2 or 1.3? */
static bool is_wanted(const OSSL_ALGORITHM *decoder)
{
    static const char *const kinds[] = { "RSA", "RSA-PSS", "EC", "ED25519",
                                         "ED448" };

    if (strstr(decoder->property_definition,
               "structure=SubjectPublicKeyInfo") == NULL) {
        return false;
    }
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (is_named(decoder, kinds[i])) {
            return true;
        }
    }
    return false;
}

static bool choose_decoders(void)
{
    int no_cache, n = 0;
    const OSSL_ALGORITHM *at =
        OSSL_PROVIDER_query_operation(passed, OSSL_OP_DECODER, &no_cache);

    for (; at != NULL && at->algorithm_names != NULL; at++) {
        if (is_wanted(at) && n < DECODERS_MAX) {
            decoders[n++] = *at;
        }
    }
    return n > 0;
}

/* --- the secrets --- */

static int derive(void *kdf, unsigned char *key, size_t len,
                  const OSSL_PARAM params[])
{
    int derived = derive_passed_on(kdf, key, len, params);
    const OSSL_PARAM *label = derived == 1 && ear.hearer != NULL
        ? OSSL_PARAM_locate_const(params, OSSL_KDF_PARAM_LABEL) : NULL;

    if (label != NULL && label->data_type == OSSL_PARAM_OCTET_STRING) {
        ear.hearer(ear.arg, label->data, label->data_size, key, len);
    }
    return derived;
}

/* The slots of TLS13-KDF, with our derive before the one that there is. */
static bool copy_slots(const OSSL_DISPATCH *from)
{
    size_t n = 0;

    for (; from->function_id != 0 && n < SLOTS_MAX; from++, n++) {
        heard_slots[n] = *from;
        if (from->function_id == OSSL_FUNC_KDF_DERIVE) {
            derive_passed_on = OSSL_FUNC_kdf_derive(from);
            heard_slots[n].function = (void (*)(void))derive;
        }
    }
    return from->function_id == 0 && derive_passed_on != NULL;
}

static bool choose_kdfs(void)
{
    int no_cache;
    size_t n = 0;
    const OSSL_ALGORITHM *at =
        OSSL_PROVIDER_query_operation(passed, OSSL_OP_KDF, &no_cache);

    for (; at != NULL && at->algorithm_names != NULL && n < KDFS_MAX; at++) {
        kdfs[n] = *at;
        if (is_named(at, OSSL_KDF_NAME_TLS1_3_KDF)) {
            if (!copy_slots(at->implementation)) {
                return false;
            }
            kdfs[n].implementation = heard_slots;
        }
        n++;
    }
    return at != NULL && at->algorithm_names == NULL
           && derive_passed_on != NULL;
}

void tw_openssl_listen(tw_hearer *hearer, void *arg)
{
    ear.hearer = hearer;
    ear.arg = arg;
}

static void initialise(void)
{
    inner = OSSL_LIB_CTX_new();
    reading = OSSL_LIB_CTX_new();
    passed = inner != NULL ? OSSL_PROVIDER_load(inner, "default") : NULL;
    if (reading == NULL || passed == NULL || !choose_decoders()
        || !choose_kdfs()
        || !OSSL_PROVIDER_add_builtin(reading, provider_name, start)
        || OSSL_PROVIDER_load(reading, provider_name) == NULL) {
        OSSL_LIB_CTX_free(reading);
        OSSL_LIB_CTX_free(inner);
        reading = inner = NULL;
        ERR_clear_error();
    }
}

/* --- may it be used? --- */

/* OSSL_PROVIDER_do_all: clears *arg if this is another provider. */
static int is_default(OSSL_PROVIDER *provider, void *arg)
{
    bool *plain = arg;

    if (strcmp(OSSL_PROVIDER_get0_name(provider), "default") != 0) {
        *plain = false;
    }
    return 1;
}

/* The generator that OpenSSL takes where no configuration names another. */
static bool has_usual_generator(void)
{
    EVP_RAND_CTX *generator = RAND_get0_public(NULL);
    char cipher[32] = "";
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_DRBG_PARAM_CIPHER, cipher,
                                         sizeof(cipher)),
        OSSL_PARAM_construct_end(),
    };

    return generator != NULL
           && EVP_RAND_is_a(EVP_RAND_CTX_get0_rand(generator), "CTR-DRBG")
           && EVP_RAND_CTX_get_params(generator, params)
           && strcmp(cipher, "AES-256-CTR") == 0;
}

/* Are the algorithms of the default context those of the default provider,
   all of which have the same properties? */
static bool default_is_plain(void)
{
    bool plain = true;
    EVP_MD *any;

    if (EVP_default_properties_is_fips_enabled(NULL)
        || !OSSL_PROVIDER_do_all(NULL, is_default, &plain) || !plain) {
        return false;
    }
    any = EVP_MD_fetch(NULL, OSSL_DIGEST_NAME_SHA2_256, NULL);
    EVP_MD_free(any);
    return any != NULL && has_usual_generator();
}

OSSL_LIB_CTX *tw_openssl_reading_library(void)
{
    bool slow = OPENSSL_version_major() == 3 && OPENSSL_version_minor() < 2;
    bool ours = slow && default_is_plain()
                && CRYPTO_THREAD_run_once(&once, initialise);

    ERR_clear_error();
    return ours ? reading : NULL;
}

/* --- what was read --- */

static bool all_keys_known(X509 *leaf, STACK_OF(X509) *chain)
{
    for (int i = 0; i < sk_X509_num(chain); i++) {
        if (X509_get0_pubkey(sk_X509_value(chain, i)) == NULL) {
            return false;
        }
    }
    return X509_get0_pubkey(leaf) != NULL;
}

/* In the default context; NULL when out of memory. */
static X509 *read_again(X509 *x509)
{
    unsigned char *der = NULL;
    int len = i2d_X509(x509, &der);
    const unsigned char *at = der;
    X509 *copy = len > 0 ? d2i_X509(NULL, &at, len) : NULL;

    OPENSSL_free(der);
    return copy;
}

static STACK_OF(X509) *read_all_again(STACK_OF(X509) *chain)
{
    STACK_OF(X509) *copies = sk_X509_new_null();

    for (int i = 0; copies != NULL && i < sk_X509_num(chain); i++) {
        X509 *copy = read_again(sk_X509_value(chain, i));
        if (copy == NULL || sk_X509_push(copies, copy) == 0) {
            X509_free(copy);
            sk_X509_pop_free(copies, X509_free);
            copies = NULL;
        }
    }
    return copies;
}

struct tw_cert *tw_openssl_peer_new(X509 *leaf, STACK_OF(X509) *chain)
{
    struct tw_cert *peer = NULL;
    STACK_OF(X509) *copies;
    X509 *copy;

    if (all_keys_known(leaf, chain)) {
        ERR_clear_error();
        return tw_openssl_cert_new(leaf, NULL, chain);
    }
    copy = read_again(leaf);
    copies = read_all_again(chain);
    if (copy != NULL && copies != NULL) {
        peer = tw_openssl_cert_new(copy, NULL, copies);
    }
    X509_free(copy);
    sk_X509_pop_free(copies, X509_free);
    ERR_clear_error();
    return peer;
}
