/*
 * Records sealed and opened by libcrypto's AEADs.
 *
 * Theory of operation. A direction (struct tw_half) is a key, a static IV
 * and a sequence number. A record is a nonce (and, opening, the tag that is
 * expected), additional data, content with the inner type (TLS 1.3), end
 * and tag. No byte is moved that the cipher does not move anyway: content
 * goes from the caller's memory into the record and back.
 *
 * What is authenticated is looked at, and nothing before it is: the checks
 * on the header (type, version, length) come first, since they need no key;
 * the inner type and the padding come after the tag was found good. Until
 * then the plaintext lies in the caller's buffer, which is zeroed if the
 * tag is wrong. libcrypto compares tags in constant time.
 *
 * The key of a direction is never used twice with one nonce: in TLS 1.3
 * and with ChaCha20 the nonce is the IV xor the sequence number, which only
 * counts up and stops before it wraps; in TLS 1.2 with AES-GCM the explicit
 * nonce counts up from where the SSL object left it.
 *
 * A keyed context takes a KiB, keying one a microsecond. So not each
 * of ten thousand idle connections has two: there are as many as the desk
 * has slots, and a direction that needs one takes it from one that has not
 * worked for long ("clock" of the last look). What a direction keeps is its
 * key. A direction that comes back for what was taken from it shows that
 * more work than there are slots, and the desk gets one more: two hundred
 * busy connections would else key two contexts for every request.
 */
#include "sspi/record_openssl.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include "core/lock.h"

#define HEADER 5u
#define SALT 4u     /* RFC 5288, 3 */
#define EXPLICIT 8u /* the same */
#define PLAIN_MAX 16384u

#define TYPE_CCS 20
#define TYPE_DATA 23

static CRYPTO_ONCE once = CRYPTO_ONCE_STATIC_INIT;
static EVP_KDF *hkdf, *prf;
static bool usable;

uint64_t tw_records_rekey_at = UINT64_C(1) << 24;

int tw_fault_alert(enum tw_fault fault)
{
    switch (fault) {
    case TW_FAULT_MAC:
        return 20; /* bad_record_mac */
    case TW_FAULT_TYPE:
        return 10; /* unexpected_message */
    case TW_FAULT_LENGTH:
        return 22; /* record_overflow */
    case TW_FAULT_VERSION:
        return 50; /* decode_error */
    default:
        return 80; /* internal_error */
    }
}

/* ------------------------------------------------------- key schedule */

static const char *hash_name(size_t hash_len)
{
    return hash_len == 48 ? "SHA384" : "SHA256";
}

/* HKDF-Expand with this secret, any number of times; NULL on failure. */
static EVP_KDF_CTX *expander(size_t hash_len, const uint8_t *secret)
{
    EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(hkdf);
    int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
    OSSL_PARAM params[4];

    params[0] = OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode);
    params[1] = OSSL_PARAM_construct_utf8_string(
        OSSL_KDF_PARAM_DIGEST, (char *)(uintptr_t)hash_name(hash_len), 0);
    params[2] = OSSL_PARAM_construct_octet_string(
        OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)secret, hash_len);
    params[3] = OSSL_PARAM_construct_end();
    if (ctx && EVP_KDF_CTX_set_params(ctx, params) != 1) {
        EVP_KDF_CTX_free(ctx);
        ctx = NULL;
    }
    return ctx;
}

/* HKDF-Expand-Label of an expander's secret; ctx may be NULL. */
static bool expand(EVP_KDF_CTX *ctx, const char *label,
                   const uint8_t *context, size_t context_len, uint8_t *out,
                   size_t len)
{
    /* HkdfLabel: u16 length, opaque label<7..255>, opaque context<0..255> */
    uint8_t info[2 + 1 + 255 + 1 + 255];
    size_t label_len = strlen(label), at = 0;
    OSSL_PARAM params[2];

    if (!ctx || label_len > 255 - 6 || context_len > 255 || len > 65535) {
        return false;
    }
    info[at++] = (uint8_t)(len >> 8);
    info[at++] = (uint8_t)len;
    info[at++] = (uint8_t)(6 + label_len);
    memcpy(info + at, "tls13 ", 6);
    memcpy(info + at + 6, label, label_len);
    at += 6 + label_len;
    info[at++] = (uint8_t)context_len;
    if (context_len > 0) {
        memcpy(info + at, context, context_len);
    }
    at += context_len;
    params[0] = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info,
                                                  at);
    params[1] = OSSL_PARAM_construct_end();
    return EVP_KDF_derive(ctx, out, len, params) > 0;
}

bool tw_expand_label(size_t hash_len, const uint8_t *secret,
                     const char *label, const uint8_t *context,
                     size_t context_len, uint8_t *out, size_t len)
{
    EVP_KDF_CTX *ctx = expander(hash_len, secret);
    bool good = expand(ctx, label, context, context_len, out, len);

    EVP_KDF_CTX_free(ctx);
    if (!good) {
        ERR_clear_error();
    }
    return good;
}

bool tw_prf12(size_t hash_len, const uint8_t *master, const char *label,
              const uint8_t *seed, size_t seed_len, uint8_t *out,
              size_t len)
{
    EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(prf);
    OSSL_PARAM params[5];
    bool good;

    params[0] = OSSL_PARAM_construct_utf8_string(
        OSSL_KDF_PARAM_DIGEST, (char *)(uintptr_t)hash_name(hash_len), 0);
    params[1] = OSSL_PARAM_construct_octet_string(
        OSSL_KDF_PARAM_SECRET, (void *)(uintptr_t)master, 48);
    /* seeds add up: label, then seed */
    params[2] = OSSL_PARAM_construct_octet_string(
        OSSL_KDF_PARAM_SEED, (void *)(uintptr_t)label, strlen(label));
    params[3] = OSSL_PARAM_construct_octet_string(
        OSSL_KDF_PARAM_SEED, (void *)(uintptr_t)seed, seed_len);
    params[4] = OSSL_PARAM_construct_end();
    good = ctx && EVP_KDF_derive(ctx, out, len, params) > 0;
    EVP_KDF_CTX_free(ctx);
    if (!good) {
        ERR_clear_error();
    }
    return good;
}

/* ------------------------------------------------------------ the desk */

#define SLOTS 256u      /* to begin with */
#define SLOTS_MAX 2048u /* 2 MiB of contexts */

static struct {
    struct tw_lock lock;
    struct tw_half *owner[SLOTS_MAX]; /* of a context, NULL: free slot */
    unsigned slots;                   /* that there are */
    unsigned hand;
} desk = {.lock = TW_LOCK_READY, .slots = SLOTS};

/* A fork leaves the child the lock free and the desk whole, whatever other
   threads were about. */
static void before_fork(void)
{
    tw_lock_acquire(&desk.lock);
}

static void after_fork(void)
{
    tw_lock_release(&desk.lock);
}

/* Held for a record by its own end, for an instant by who takes a context
   away. Order: own half, desk, other halves (those only tried). */
static bool try_hold(struct tw_half *half)
{
    return !atomic_exchange_explicit(&half->held, true,
                                     memory_order_acquire);
}

static void hold(struct tw_half *half)
{
    while (!try_hold(half)) {
        (void)sched_yield();
    }
}

static void let_go(struct tw_half *half)
{
    atomic_store_explicit(&half->held, false, memory_order_release);
}

/* A context for half, which is held: a new one in a free slot, or that of a
   direction that rests, if it is for the same AEAD. NULL: no memory. */
static void *take_context(struct tw_half *half)
{
    void *ctx = NULL;
    uint8_t kind = half->aead;

    half->slot = -1;
    tw_lock_acquire(&desk.lock);
    if (half->robbed && desk.slots < SLOTS_MAX) {
        desk.hand = desk.slots++;
    }
    half->robbed = false;
    for (unsigned i = 0; i < 2 * desk.slots && half->slot < 0; i++) {
        struct tw_half *other = desk.owner[desk.hand];

        if (other == NULL) {
            half->slot = (int16_t)desk.hand;
        } else if (try_hold(other)) {
            if (!other->recent) {
                ctx = other->ctx;
                kind = other->aead;
                other->ctx = NULL;
                other->robbed = true;
                half->slot = (int16_t)desk.hand;
            }
            other->recent = false;
            let_go(other);
        }
        if (half->slot < 0) {
            desk.hand = (desk.hand + 1) % desk.slots;
        }
    }
    if (kind != half->aead) {
        tw_aead_free(kind, ctx);
        ctx = NULL;
    }
    if (!ctx) {
        ctx = tw_aead_new(half->aead);
    }
    if (half->slot >= 0) {
        desk.owner[desk.hand] = ctx ? half : NULL;
        desk.hand = (desk.hand + 1) % desk.slots;
    }
    tw_lock_release(&desk.lock);
    return ctx;
}

static void give_up_held(struct tw_half *half)
{
    if (half->ctx && half->slot >= 0) {
        tw_lock_acquire(&desk.lock);
        desk.owner[half->slot] = NULL;
        tw_lock_release(&desk.lock);
    }
    tw_aead_free(half->aead, half->ctx);
    half->ctx = NULL;
}

static void unkey(struct tw_half *half)
{
    hold(half);
    give_up_held(half);
    let_go(half);
}

/* Key and IV of half->secret: RFC 8446, 7.3. */
static bool take_secret(struct tw_half *half, size_t hash_len)
{
    EVP_KDF_CTX *ctx = expander(hash_len, half->secret);
    bool good;

    unkey(half);
    half->seq = 0;
    half->count = 0;
    good = expand(ctx, "key", NULL, 0, half->key,
                  tw_aead_key_length(half->aead))
           && expand(ctx, "iv", NULL, 0, half->iv, sizeof(half->iv));
    EVP_KDF_CTX_free(ctx);
    if (!good) {
        ERR_clear_error();
    }
    return good;
}

bool tw_half_init13(struct tw_half *half, enum tw_aead aead,
                    size_t hash_len, const uint8_t *secret)
{
    memset(half, 0, sizeof(*half));
    half->aead = (uint8_t)aead;
    memcpy(half->secret, secret, hash_len);
    return take_secret(half, hash_len);
}

void tw_half_fini(struct tw_half *half)
{
    unkey(half);
    OPENSSL_cleanse(half, sizeof(*half));
}

bool tw_records_init13(struct tw_records *r, enum tw_aead aead,
                       size_t hash_len, const uint8_t *read_secret,
                       const uint8_t *write_secret, uint64_t write_seq)
{
    memset(r, 0, sizeof(*r));
    r->tls13 = true;
    r->header = HEADER;
    r->tail = 1 + TW_TAG;
    r->hash_len = (uint8_t)hash_len;
    if (!tw_half_init13(&r->read, aead, hash_len, read_secret)
        || !tw_half_init13(&r->write, aead, hash_len, write_secret)) {
        tw_records_fini(r);
        return false;
    }
    r->write.seq = write_seq;
    r->write.count = write_seq;
    return true;
}

bool tw_records_init12(struct tw_records *r, enum tw_aead aead,
                       size_t hash_len, bool client, const uint8_t *master,
                       const uint8_t *client_random,
                       const uint8_t *server_random, uint64_t nonce)
{
    bool gcm = aead != TW_AEAD_CHACHA;
    size_t key = tw_aead_key_length(aead), iv = gcm ? SALT : 12;
    uint8_t seed[64], block[2 * 32 + 2 * 12];
    struct tw_half *mine = client ? &r->write : &r->read;
    struct tw_half *other = client ? &r->read : &r->write;
    bool good;

    memset(r, 0, sizeof(*r));
    r->header = (uint8_t)(HEADER + (gcm ? EXPLICIT : 0));
    r->tail = TW_TAG;
    r->read.aead = r->write.aead = (uint8_t)aead;
    r->hash_len = (uint8_t)hash_len;
    /* RFC 5246, 6.3: server_random first */
    memcpy(seed, server_random, 32);
    memcpy(seed + 32, client_random, 32);
    good = tw_prf12(hash_len, master, "key expansion", seed, sizeof(seed),
                    block, 2 * key + 2 * iv);
    if (good) {
        memcpy(mine->key, block, key);
        memcpy(other->key, block + key, key);
        memcpy(mine->iv, block + 2 * key, iv);
        memcpy(other->iv, block + 2 * key + iv, iv);
        r->read.seq = r->write.seq = 1; /* 0 was Finished */
        r->write.nonce = nonce;
    }
    OPENSSL_cleanse(block, sizeof(block));
    return good;
}

void tw_records_fini(struct tw_records *r)
{
    tw_half_fini(&r->read);
    tw_half_fini(&r->write);
    OPENSSL_cleanse(r, sizeof(*r));
}

bool tw_records_update(struct tw_records *r, struct tw_half *half)
{
    uint8_t next[TW_SECRET_MAX];
    bool good = tw_expand_label(r->hash_len, half->secret, "traffic upd",
                                NULL, 0, next, r->hash_len);

    if (good) {
        memcpy(half->secret, next, r->hash_len);
        good = take_secret(half, r->hash_len);
    }
    OPENSSL_cleanse(next, sizeof(next));
    return good;
}

/* ------------------------------------------------------------- records */

static void put64(uint8_t *p, uint64_t v)
{
    /* written out: compilers make one store of it */
    p[0] = (uint8_t)(v >> 56);
    p[1] = (uint8_t)(v >> 48);
    p[2] = (uint8_t)(v >> 40);
    p[3] = (uint8_t)(v >> 32);
    p[4] = (uint8_t)(v >> 24);
    p[5] = (uint8_t)(v >> 16);
    p[6] = (uint8_t)(v >> 8);
    p[7] = (uint8_t)v;
}

/* RFC 8446, 5.3 and RFC 7905, 2: the sequence number, padded to the left,
   xor the IV. */
static void sequence_nonce(const struct tw_half *half,
                           uint8_t nonce[TW_NONCE])
{
    uint64_t iv, seq;

    memcpy(nonce, half->iv, 4);
    put64(nonce + 4, half->seq);
    memcpy(&seq, nonce + 4, 8);
    memcpy(&iv, half->iv + 4, 8);
    seq ^= iv;
    memcpy(nonce + 4, &seq, 8);
}

/* Begins a record of half, whose context is keyed if need be; to open one,
   with its tag. */
static bool begin(struct tw_half *half, const uint8_t nonce[TW_NONCE],
                  const uint8_t *tag)
{
    const uint8_t *key = NULL;

    half->recent = true;
    if (!half->ctx) {
        key = half->key;
        half->ctx = take_context(half);
    }
    if (half->ctx
        && (tag == NULL
                ? tw_aead_begin_seal(half->aead, half->ctx, key, nonce)
                : tw_aead_begin_open(half->aead, half->ctx, key, nonce,
                                     tag))) {
        return true;
    }
    give_up_held(half);
    return false;
}

/* RFC 5246, 6.2.3.3: seq_num, type, version, length of the content. */
static size_t additional12(const struct tw_half *half, const uint8_t *header,
                           size_t len, uint8_t ad[13])
{
    put64(ad, half->seq);
    memcpy(ad + 8, header, 3);
    ad[11] = (uint8_t)(len >> 8);
    ad[12] = (uint8_t)len;
    return 13;
}

/* Content, in TLS 1.3 with its type behind it, and the tag: at dst. */
static bool encipher(const struct tw_records *like, struct tw_half *half,
                     uint8_t type, const uint8_t *src, size_t len,
                     uint8_t *dst)
{
    uint8_t *tail = dst + len;
    bool good;

    if (!like->tls13) {
        good = tw_aead_update(half->aead, half->ctx, dst, src, len);
        return good && tw_aead_end_seal(half->aead, half->ctx, tail);
    }
    if (len <= 1024) {
        /* one call for both: a call costs more than a copy */
        if (src != dst) {
            memcpy(dst, src, len);
        }
        *tail = type;
        good = tw_aead_update(half->aead, half->ctx, dst, dst, len + 1);
    } else {
        good = tw_aead_update(half->aead, half->ctx, dst, src, len);
        *tail = type;
        good = good
               && tw_aead_update(half->aead, half->ctx, tail, tail, 1);
    }
    return good && tw_aead_end_seal(half->aead, half->ctx, tail + 1);
}

size_t tw_half_seal(const struct tw_records *like, struct tw_half *half,
                    uint8_t type, const uint8_t *src, size_t len,
                    uint8_t *dst)
{
    bool tls13 = like->tls13, explicit_nonce = like->header > HEADER;
    size_t body = like->header - HEADER + len + like->tail;
    uint8_t *content = dst + like->header;
    uint8_t nonce[TW_NONCE], ad[13];
    size_t ad_len = HEADER;

    if (len > PLAIN_MAX || half->seq == UINT64_MAX) {
        return 0;
    }
    dst[0] = tls13 ? TYPE_DATA : type;
    dst[1] = dst[2] = 3;
    dst[3] = (uint8_t)(body >> 8);
    dst[4] = (uint8_t)body;
    if (explicit_nonce) {
        memcpy(nonce, half->iv, SALT);
        put64(nonce + SALT, half->nonce);
        memcpy(dst + HEADER, nonce + SALT, EXPLICIT);
    } else {
        sequence_nonce(half, nonce);
    }
    if (!tls13) {
        ad_len = additional12(half, dst, len, ad);
    }
    hold(half);
    if (!begin(half, nonce, NULL)
        || !tw_aead_additional(half->aead, half->ctx, tls13 ? dst : ad,
                               ad_len)
        || !encipher(like, half, type, src, len, content)) {
        goto failed;
    }
    let_go(half);
    half->seq++;
    half->count++;
    half->nonce++;
    return HEADER + body;
failed:
    ERR_clear_error();
    give_up_held(half);
    let_go(half);
    half->seq = UINT64_MAX; /* never again: the nonce may be used up */
    OPENSSL_cleanse(content, len);
    return 0;
}

size_t tw_records_seal(struct tw_records *r, uint8_t type,
                       const uint8_t *src, size_t len, uint8_t *dst)
{
    return tw_half_seal(r, &r->write, type, src, len, dst);
}

/* The header, as far as it can be judged without keys. */
static enum tw_fault judge_header(const struct tw_records *like,
                                  const uint8_t *rec, size_t span)
{
    size_t body = (size_t)rec[3] << 8 | rec[4];

    if (like->tls13) {
        /* RFC 8446, 5.2: application_data outside, and 2^14 + 256 */
        if (rec[0] != TYPE_DATA) {
            return TW_FAULT_TYPE;
        }
        if (rec[1] != 3 || rec[2] != 3) {
            return TW_FAULT_VERSION;
        }
        if (body > PLAIN_MAX + 256) {
            return TW_FAULT_LENGTH;
        }
    } else {
        if (rec[0] < TYPE_CCS || rec[0] > TYPE_DATA) {
            return TW_FAULT_TYPE;
        }
        if (rec[1] != 3 || rec[2] != 3) {
            return TW_FAULT_VERSION;
        }
        /* RFC 5246, 6.2.3 */
        if (body > PLAIN_MAX + 2048) {
            return TW_FAULT_LENGTH;
        }
    }
    /* too short for a tag is no record of anybody who has the key */
    return span != HEADER + body
                   || span < (size_t)like->header + like->tail
               ? TW_FAULT_MAC
               : TW_FAULT_NONE;
}

/* Content and, in TLS 1.3, the byte behind it, the last of the inner
   plaintext: into *last. With room for it one call does both, and dst gets
   back what was there. */
static bool update(const struct tw_records *like, struct tw_half *half,
                   const uint8_t *in, size_t content, uint8_t *dst,
                   size_t room, uint8_t *last)
{
    if (like->tls13 && room > content) {
        uint8_t before = dst[content];
        bool good =
            tw_aead_update(half->aead, half->ctx, dst, in, content + 1);

        *last = dst[content];
        dst[content] = before;
        return good;
    }
    return tw_aead_update(half->aead, half->ctx, dst, in, content)
           && tw_aead_update(half->aead, half->ctx, last, in + content,
                             like->tls13 ? 1 : 0);
}

/* Nonce and tag, additional data, content: into dst, and in TLS 1.3 the
   last byte of the inner plaintext into *last. */
static bool decipher(const struct tw_records *like, struct tw_half *half,
                     const uint8_t *rec, size_t content, size_t span,
                     uint8_t *dst, size_t room, uint8_t *last)
{
    uint8_t nonce[TW_NONCE], ad[13];
    size_t ad_len = HEADER;

    if (like->header > HEADER) {
        memcpy(nonce, half->iv, SALT);
        memcpy(nonce + SALT, rec + HEADER, EXPLICIT);
    } else {
        sequence_nonce(half, nonce);
    }
    if (!like->tls13) {
        ad_len = additional12(half, rec, content, ad);
    }
    return begin(half, nonce, rec + span - TW_TAG)
           && tw_aead_additional(half->aead, half->ctx,
                                 like->tls13 ? rec : ad, ad_len)
           && update(like, half, rec + like->header, content, dst, room,
                     last)
           && tw_aead_end_open(half->aead, half->ctx);
}

enum tw_fault tw_half_open(const struct tw_records *like,
                           struct tw_half *half, const uint8_t *rec,
                           size_t span, uint8_t *dst, size_t room,
                           size_t *n, uint8_t *type)
{
    enum tw_fault fault;
    size_t content;
    uint8_t last = 0;

    *n = 0;
    *type = 0;
    if (half->seq == UINT64_MAX) {
        return TW_FAULT_INTERNAL;
    }
    fault = span < HEADER ? TW_FAULT_MAC : judge_header(like, rec, span);
    if (fault != TW_FAULT_NONE) {
        half->seq = UINT64_MAX;
        return fault;
    }
    content = span - like->header - like->tail;
    *type = rec[0];
    hold(half);
    if (!decipher(like, half, rec, content, span, dst, room, &last)) {
        fault = TW_FAULT_MAC;
    }
    let_go(half);
    if (fault != TW_FAULT_NONE) {
        /* nothing of it is looked at */
    } else if (like->tls13) {
        /* RFC 8446, 5.4: zeros are padding, the byte before them the type;
           no such byte: unexpected_message */
        while (last == 0 && content > 0) {
            last = dst[--content];
        }
        *type = last;
        if (last == 0) {
            fault = TW_FAULT_TYPE;
        }
    }
    /* RFC 8446, 5.2 and 5.4: the inner plaintext is at most 2^14 + 1 */
    if (fault == TW_FAULT_NONE
        && (span - like->header - like->tail > PLAIN_MAX)) {
        fault = TW_FAULT_LENGTH;
    }
    if (fault != TW_FAULT_NONE) {
        OPENSSL_cleanse(dst, span - like->header - like->tail);
        ERR_clear_error();
        unkey(half);
        half->seq = UINT64_MAX;
        return fault;
    }
    *n = content;
    half->seq++;
    half->count++;
    return TW_FAULT_NONE;
}

enum tw_fault tw_records_open(struct tw_records *r, const uint8_t *rec,
                              size_t span, uint8_t *dst, size_t room,
                              size_t *n, uint8_t *type)
{
    return tw_half_open(r, &r->read, rec, span, dst, room, n, type);
}

/* ----------------------------------------------------------- self-test */

/*
 * Known answers: RFC 8448, 3, the client's first application traffic
 * secret with its key and IV; then a record there and back for each AEAD,
 * and one with a flipped bit.
 */
static bool known_keys(void)
{
    static const uint8_t secret[32] = {
        0x9e, 0x40, 0x64, 0x6c, 0xe7, 0x9a, 0x7f, 0x9d, 0xc0, 0x5a, 0xf8,
        0x88, 0x9b, 0xce, 0x65, 0x52, 0x87, 0x5a, 0xfa, 0x0b, 0x06, 0xdf,
        0x00, 0x87, 0xf7, 0x92, 0xeb, 0xb7, 0xc1, 0x75, 0x04, 0xa5,
    };
    static const uint8_t key[16] = {
        0x17, 0x42, 0x2d, 0xda, 0x59, 0x6e, 0xd5, 0xd9,
        0xac, 0xd8, 0x90, 0xe3, 0xc6, 0x3f, 0x50, 0x51,
    };
    static const uint8_t iv[12] = {
        0x5b, 0x78, 0x92, 0x3d, 0xee, 0x08,
        0x57, 0x90, 0x33, 0xe5, 0x23, 0xd9,
    };
    struct tw_half half;
    bool good = tw_half_init13(&half, TW_AEAD_AES128, 32, secret)
                && memcmp(half.key, key, sizeof(key)) == 0
                && memcmp(half.iv, iv, sizeof(iv)) == 0;

    tw_half_fini(&half);
    return good;
}

static bool there_and_back(enum tw_aead aead, bool tls13)
{
    static const uint8_t secret[64] = {1, 2, 3};
    struct tw_records a, b;
    uint8_t record[HEADER + EXPLICIT + 3 + TW_SEAL_TAIL], back[3], type;
    size_t span, n;
    bool good;

    memset(&a, 0, sizeof(a));
    memset(&b, 0, sizeof(b));
    good = tls13 ? tw_records_init13(&a, aead, 32, secret, secret, 0)
                       && tw_records_init13(&b, aead, 32, secret, secret, 0)
                 : tw_records_init12(&a, aead, 32, true, secret, secret,
                                     secret, 7)
                       && tw_records_init12(&b, aead, 32, false, secret,
                                            secret, secret, 9);
    for (int i = 0; good && i < 3; i++) {
        span = tw_records_seal(&a, TYPE_DATA, (const uint8_t *)"abc", 3,
                               record);
        if (i == 2) {
            record[span - 1] ^= 1;
        }
        good = span == (size_t)a.header + 3 + a.tail
               && (tw_records_open(&b, record, span, back, sizeof(back),
                                   &n, &type)
                   == TW_FAULT_NONE)
                      == (i < 2)
               && (i == 2 || (n == 3 && type == TYPE_DATA
                              && memcmp(back, "abc", 3) == 0));
    }
    tw_records_fini(&a);
    tw_records_fini(&b);
    return good;
}

static void prove(void)
{
    bool good;

    hkdf = EVP_KDF_fetch(NULL, OSSL_KDF_NAME_HKDF, NULL);
    prf = EVP_KDF_fetch(NULL, OSSL_KDF_NAME_TLS1_PRF, NULL);
    good = hkdf && prf && tw_aead_set_up() && known_keys();
    for (enum tw_aead one = TW_AEAD_AES128; good && one <= TW_AEAD_CHACHA;
         one++) {
        /* one that is not there, nobody negotiates */
        good = !tw_aead_known(one)
               || (there_and_back(one, true) && there_and_back(one, false));
    }
    ERR_clear_error();
    usable = good
             && pthread_atfork(before_fork, after_fork, after_fork) == 0;
}

/* Would the key schedule's functions be of the same providers now? */
static bool schedule_in_force(void)
{
    EVP_KDF *now[2] = { EVP_KDF_fetch(NULL, OSSL_KDF_NAME_HKDF, NULL),
                        EVP_KDF_fetch(NULL, OSSL_KDF_NAME_TLS1_PRF, NULL) };
    bool same = now[0] && now[1]
                && EVP_KDF_get0_provider(now[0])
                       == EVP_KDF_get0_provider(hkdf)
                && EVP_KDF_get0_provider(now[1])
                       == EVP_KDF_get0_provider(prf);

    EVP_KDF_free(now[0]);
    EVP_KDF_free(now[1]);
    return same;
}

bool tw_records_usable(void)
{
    bool good = CRYPTO_THREAD_run_once(&once, prove) && usable
                && tw_aead_in_force() && schedule_in_force();

    ERR_clear_error();
    return good;
}
