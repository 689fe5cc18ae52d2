/*
 * AEADs by the functions of libcrypto's provider.
 *
 * Theory of operation. A small record is bound by what EVP does around the
 * cipher: for a nonce alone EVP_CipherInit_ex asks the provider how long
 * nonce and key are, each parameter is looked for in a list of names. So
 * the functions that EVP calls are called here without it: provider-
 * cipher(7) says what they do, OSSL_PROVIDER_query_operation(3) gives them,
 * for the provider that EVP_CIPHER_fetch chose (the FIPS provider where that
 * is asked for). For 64 bytes there and back that is a sixth of the
 * instructions.
 *
 * What EVP would have seen to is little, and seen to here: a nonce is set
 * for every record; both ends of a record are by `final`, never by `cipher`
 * without input, which for ChaCha20-Poly1305 says yes to everything; a
 * result is good if it is 1, since some of these functions say -1. Where a
 * provider lacks a function or does not want its table kept, or where a
 * record is not what EVP makes of it, there is no record engine at all.
 */
#include "sspi/aead_openssl.h"

#include <string.h>

#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/provider.h>

/* What a provider has for one AEAD. */
struct functions {
    EVP_CIPHER *cipher;  /* keeps the provider; NULL: there is none */
    void *provider;      /* what the provider knows itself by */
    size_t key_length;
    OSSL_FUNC_cipher_newctx_fn *newctx;
    OSSL_FUNC_cipher_freectx_fn *freectx;
    OSSL_FUNC_cipher_encrypt_init_fn *encrypt_init;
    OSSL_FUNC_cipher_decrypt_init_fn *decrypt_init;
    OSSL_FUNC_cipher_update_fn *update;
    OSSL_FUNC_cipher_final_fn *final;
    OSSL_FUNC_cipher_get_ctx_params_fn *get_ctx_params;
};

static struct functions aeads[4]; /* by enum tw_aead; set up once */

bool tw_aead_known(enum tw_aead aead)
{
    return aeads[aead].cipher != NULL;
}

size_t tw_aead_key_length(enum tw_aead aead)
{
    return aead == TW_AEAD_AES128 ? 16 : 32;
}

void *tw_aead_new(enum tw_aead aead)
{
    return aeads[aead].newctx(aeads[aead].provider);
}

void tw_aead_free(enum tw_aead aead, void *ctx)
{
    if (ctx) {
        aeads[aead].freectx(ctx);
    }
}

bool tw_aead_begin_seal(enum tw_aead aead, void *ctx, const uint8_t *key,
                        const uint8_t nonce[TW_NONCE])
{
    const struct functions *f = &aeads[aead];

    return f->encrypt_init(ctx, key, key ? f->key_length : 0, nonce,
                           TW_NONCE, NULL) == 1;
}

bool tw_aead_begin_open(enum tw_aead aead, void *ctx, const uint8_t *key,
                        const uint8_t nonce[TW_NONCE],
                        const uint8_t tag[TW_TAG])
{
    const struct functions *f = &aeads[aead];
    const OSSL_PARAM params[2] = {
        OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG,
                                (void *)(uintptr_t)tag, TW_TAG),
        OSSL_PARAM_END,
    };

    return f->decrypt_init(ctx, key, key ? f->key_length : 0, nonce,
                           TW_NONCE, params) == 1;
}

bool tw_aead_additional(enum tw_aead aead, void *ctx, const uint8_t *data,
                        size_t len)
{
    size_t n;

    return aeads[aead].update(ctx, NULL, &n, len, data, len) == 1;
}

bool tw_aead_update(enum tw_aead aead, void *ctx, uint8_t *dst,
                    const uint8_t *src, size_t len)
{
    size_t n = 0;

    return len == 0
           || (aeads[aead].update(ctx, dst, &n, len, src, len) == 1
               && n == len);
}

bool tw_aead_end_seal(enum tw_aead aead, void *ctx, uint8_t tag[TW_TAG])
{
    const struct functions *f = &aeads[aead];
    OSSL_PARAM params[2] = {
        OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, tag, TW_TAG),
        OSSL_PARAM_END,
    };
    size_t n;

    return f->final(ctx, tag, &n, TW_TAG) == 1
           && f->get_ctx_params(ctx, params) == 1;
}

bool tw_aead_end_open(enum tw_aead aead, void *ctx)
{
    uint8_t nothing[TW_TAG];
    size_t n;

    return aeads[aead].final(ctx, nothing, &n, sizeof(nothing)) == 1;
}

/* --- setting up --- */

/* The first of "AES-128-GCM:id-aes128-GCM:..." names the algorithm too. */
static bool is_named(const EVP_CIPHER *cipher, const OSSL_ALGORITHM *one)
{
    char name[64];
    size_t len = strcspn(one->algorithm_names, ":");

    if (len >= sizeof(name)) {
        return false;
    }
    memcpy(name, one->algorithm_names, len);
    name[len] = '\0';
    return EVP_CIPHER_is_a(cipher, name) == 1;
}

static bool take_functions(struct functions *f, const OSSL_DISPATCH *d)
{
    for (; d->function_id != 0; d++) {
        switch (d->function_id) {
        case OSSL_FUNC_CIPHER_NEWCTX:
            f->newctx = OSSL_FUNC_cipher_newctx(d);
            break;
        case OSSL_FUNC_CIPHER_FREECTX:
            f->freectx = OSSL_FUNC_cipher_freectx(d);
            break;
        case OSSL_FUNC_CIPHER_ENCRYPT_INIT:
            f->encrypt_init = OSSL_FUNC_cipher_encrypt_init(d);
            break;
        case OSSL_FUNC_CIPHER_DECRYPT_INIT:
            f->decrypt_init = OSSL_FUNC_cipher_decrypt_init(d);
            break;
        case OSSL_FUNC_CIPHER_UPDATE:
            f->update = OSSL_FUNC_cipher_update(d);
            break;
        case OSSL_FUNC_CIPHER_FINAL:
            f->final = OSSL_FUNC_cipher_final(d);
            break;
        case OSSL_FUNC_CIPHER_GET_CTX_PARAMS:
            f->get_ctx_params = OSSL_FUNC_cipher_get_ctx_params(d);
            break;
        default:
            break;
        }
    }
    return f->newctx && f->freectx && f->encrypt_init && f->decrypt_init
           && f->update && f->final && f->get_ctx_params;
}

/* The functions of f->cipher. */
static bool find_functions(struct functions *f)
{
    const OSSL_PROVIDER *provider = EVP_CIPHER_get0_provider(f->cipher);
    const OSSL_ALGORITHM *one = NULL;
    int no_cache = 0;

    if (provider) {
        one = OSSL_PROVIDER_query_operation(provider, OSSL_OP_CIPHER,
                                            &no_cache);
        f->provider = OSSL_PROVIDER_get0_provider_ctx(provider);
    }
    while (one && one->algorithm_names && !is_named(f->cipher, one)) {
        one++;
    }
    return one && one->algorithm_names && no_cache == 0
           && take_functions(f, one->implementation);
}

#define PROOF 67u /* bytes: whole blocks and a part of one */

/* What EVP makes of the proof's text, and its tag behind it. */
static bool seal_by_evp(EVP_CIPHER_CTX *ctx, const uint8_t nonce[TW_NONCE],
                        const uint8_t text[PROOF], uint8_t *made)
{
    int n;

    return EVP_EncryptInit_ex2(ctx, NULL, NULL, nonce, NULL) == 1
           && EVP_EncryptUpdate(ctx, NULL, &n, nonce, 5) == 1
           && EVP_EncryptUpdate(ctx, made, &n, text, PROOF) == 1
           && EVP_EncryptFinal_ex(ctx, made + PROOF, &n) == 1
           && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TW_TAG,
                                  made + PROOF) == 1;
}

static bool seal_here(enum tw_aead aead, void *ctx, const uint8_t *key,
                      const uint8_t nonce[TW_NONCE],
                      const uint8_t text[PROOF], uint8_t *made)
{
    return tw_aead_begin_seal(aead, ctx, key, nonce)
           && tw_aead_additional(aead, ctx, nonce, 5)
           && tw_aead_update(aead, ctx, made, text, PROOF - 1)
           && tw_aead_update(aead, ctx, made + PROOF - 1, text + PROOF - 1,
                             1)
           && tw_aead_end_seal(aead, ctx, made + PROOF);
}

static bool open_here(enum tw_aead aead, void *ctx, const uint8_t *key,
                      const uint8_t nonce[TW_NONCE], const uint8_t *made,
                      uint8_t text[PROOF])
{
    return tw_aead_begin_open(aead, ctx, key, nonce, made + PROOF)
           && tw_aead_additional(aead, ctx, nonce, 5)
           && tw_aead_update(aead, ctx, text, made, PROOF)
           && tw_aead_end_open(aead, ctx);
}

/*
 * Three records under one key, each sealed by EVP and here; the same bytes
 * must come out, go in again, and not go in with a bit of them or of the
 * tag changed. By one context, which so changes its direction as well.
 */
static bool prove(enum tw_aead aead)
{
    static const uint8_t key[32] = {4, 5, 6};
    static const uint8_t text[PROOF] = {1, 2, 3};
    uint8_t nonce[TW_NONCE] = {7, 8, 9}, made[2][PROOF + TW_TAG];
    uint8_t back[PROOF];
    EVP_CIPHER_CTX *evp = EVP_CIPHER_CTX_new();
    void *ctx = tw_aead_new(aead);
    bool good = evp && ctx
                && EVP_EncryptInit_ex2(evp, aeads[aead].cipher, key, nonce,
                                       NULL) == 1;

    for (uint8_t round = 0; good && round < 3; round++) {
        nonce[TW_NONCE - 1] = round;
        good = seal_by_evp(evp, nonce, text, made[0])
               && seal_here(aead, ctx, round == 1 ? NULL : key, nonce, text,
                            made[1])
               && memcmp(made[0], made[1], sizeof(made[0])) == 0;
        if (round != 0) {
            good = good && open_here(aead, ctx, key, nonce, made[1], back)
                   && memcmp(back, text, PROOF) == 0;
            made[1][round == 1 ? 0 : PROOF] ^= 1;
            good = good
                   && !open_here(aead, ctx, NULL, nonce, made[1], back);
        }
    }
    EVP_CIPHER_CTX_free(evp);
    tw_aead_free(aead, ctx);
    return good;
}

static const char *const names[4] = {
    NULL, "AES-128-GCM", "AES-256-GCM", "ChaCha20-Poly1305",
};

bool tw_aead_set_up(void)
{
    bool good = true;

    for (int i = 1; good && i < 4; i++) {
        struct functions *f = &aeads[i];

        f->cipher = EVP_CIPHER_fetch(NULL, names[i], NULL);
        f->key_length = tw_aead_key_length((enum tw_aead)i);
        good = f->cipher
                   ? find_functions(f) && prove((enum tw_aead)i)
                   : i == TW_AEAD_CHACHA;
    }
    ERR_clear_error();
    return good;
}

bool tw_aead_in_force(void)
{
    bool same = true;

    for (int i = 1; same && i < 4; i++) {
        EVP_CIPHER *now;

        if (!aeads[i].cipher) {
            continue;
        }
        now = EVP_CIPHER_fetch(NULL, names[i], NULL);
        same = now
               && EVP_CIPHER_get0_provider(now)
                      == EVP_CIPHER_get0_provider(aeads[i].cipher);
        EVP_CIPHER_free(now);
    }
    return same;
}
