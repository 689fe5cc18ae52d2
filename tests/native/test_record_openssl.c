/*
 * The record engine alone: RFC 8448's traces, the sentences of RFC 8446
 * (5.1 to 5.5) and RFC 5246 that it implements, hostile records, and the
 * limits of sequence numbers. docs/record-engine.md names these tests.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <openssl/core_dispatch.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/provider.h>

#include "sspi/record_openssl.h"

#include "support.h"

#define DATA 23
#define HANDSHAKE 22
#define ALERT 21

static const enum tw_aead aeads[] = { TW_AEAD_AES128, TW_AEAD_AES256,
                                      TW_AEAD_CHACHA };
static uint8_t secret_a[48], secret_b[48];

static size_t hex(const char *text, uint8_t *out)
{
    size_t n = 0;
    unsigned byte;

    for (; text[0] && text[1]; text += 2) {
        CHECK(sscanf(text, "%2x", &byte) == 1);
        out[n++] = (uint8_t)byte;
    }
    return n;
}

/* A pair of ends of one connection. */
static void pair(struct tw_records *a, struct tw_records *b,
                 enum tw_aead aead, bool tls13)
{
    static const uint8_t client_random[32] = { 1 },
                         server_random[32] = { 2 };

    if (tls13) {
        CHECK(tw_records_init13(a, aead, 32, secret_a, secret_b, 0));
        CHECK(tw_records_init13(b, aead, 32, secret_b, secret_a, 0));
    } else {
        CHECK(tw_records_init12(a, aead, 32, true, secret_a, client_random,
                                server_random, 100));
        CHECK(tw_records_init12(b, aead, 32, false, secret_a, client_random,
                                server_random, 200));
    }
}

/* An inner plaintext of the attacker's choice, properly sealed: what an
   honest end never sends. Returns the record's length. */
static size_t seal_inner(const struct tw_records *r, const uint8_t *inner,
                         size_t len, uint8_t *record)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    uint8_t aead = r->write.aead;
    const EVP_CIPHER *cipher = aead == TW_AEAD_AES128   ? EVP_aes_128_gcm()
                               : aead == TW_AEAD_AES256 ? EVP_aes_256_gcm()
                                                : EVP_chacha20_poly1305();
    uint8_t nonce[12];
    uint64_t seq = r->write.seq;
    int n;

    memcpy(nonce, r->write.iv, 12);
    for (int i = 11; i >= 4; i--) {
        nonce[i] ^= (uint8_t)seq;
        seq >>= 8;
    }
    record[0] = DATA;
    record[1] = record[2] = 3;
    record[3] = (uint8_t)((len + 16) >> 8);
    record[4] = (uint8_t)(len + 16);
    CHECK(EVP_EncryptInit_ex(ctx, cipher, NULL, r->write.key, nonce));
    CHECK(EVP_EncryptUpdate(ctx, NULL, &n, record, 5));
    CHECK(EVP_EncryptUpdate(ctx, record + 5, &n, inner, (int)len));
    CHECK(EVP_EncryptFinal_ex(ctx, record + 5 + len, &n));
    CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16,
                              record + 5 + len));
    EVP_CIPHER_CTX_free(ctx);
    return 5 + len + 16;
}

/* RFC 8448, 3: both directions' application traffic secrets, keys, records;
   the server's record is its second (its ticket was the first). */
static void test_rfc8448(void)
{
    static const struct {
        const char *secret, *key, *iv, *record;
        uint64_t seq;
    } traces[2] = {
        { "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
          "17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9",
          "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f"
          "2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a2977014bd1e3deae6"
          "3aeebb21694915e4",
          0 },
        { "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
          "9f02283b6c9c07efc26bb9f2ac92e356", "cf782b88dd83549aadf1e984",
          "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36"
          "e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2e5f0a21c0047c2abf33254"
          "0dd032e167c2955d",
          1 },
    };

    for (int i = 0; i < 2; i++) {
        uint8_t secret[32], expected[80], got[80], back[80], type, raw[32];
        struct tw_records r;
        size_t n, len;

        CHECK(hex(traces[i].secret, secret) == 32);
        CHECK(tw_records_init13(&r, TW_AEAD_AES128, 32, secret, secret,
                                traces[i].seq));
        hex(traces[i].key, raw);
        CHECK(memcmp(r.write.key, raw, 16) == 0);
        hex(traces[i].iv, raw);
        CHECK(memcmp(r.write.iv, raw, 12) == 0);
        len = hex(traces[i].record, expected);
        CHECK(len == 72);
        for (n = 0; n < 50; n++) {
            back[n] = (uint8_t)n; /* the trace's payload */
        }
        CHECK(tw_records_seal(&r, DATA, back, 50, got) == len);
        CHECK(memcmp(got, expected, len) == 0);
        r.read.seq = traces[i].seq;
        memset(back, 0, sizeof(back));
        CHECK(tw_records_open(&r, expected, len, back, sizeof(back), &n,
                              &type)
              == TW_FAULT_NONE);
        CHECK(n == 50 && type == DATA);
        while (n-- > 0) {
            CHECK(back[n] == n);
        }
        tw_records_fini(&r);
    }
}

/* The trace's client handshake keys and Finished: an inner type that is not
   data. */
static void test_rfc8448_finished(void)
{
    uint8_t record[58], back[64], type;
    struct tw_records r;
    size_t n;

    memset(&r, 0, sizeof(r));
    r.tls13 = true;
    r.read.aead = TW_AEAD_AES128;
    r.header = 5;
    r.tail = 17;
    hex("dbfaa693d1762c5b666af5d950258d01", r.read.key);
    hex("5bd3c71b836e0b76bb73265f", r.read.iv);
    CHECK(hex("170303003575ec4dc238cce60b298044a71e219c56cc77b0517fe9b93c7a4b"
              "fc44d87f38f80338ac98fc46deb384bd1caeacab6867d726c40546",
              record)
          == sizeof(record));
    CHECK(tw_records_open(&r, record, sizeof(record), back, sizeof(back),
                          &n, &type)
          == TW_FAULT_NONE);
    CHECK(type == HANDSHAKE && n == 36 && back[0] == 20 && back[3] == 32);
    tw_records_fini(&r);
}

/* Every size that has its own way through the code, in place and not, with
   room for the content alone and for more. */
static void test_there_and_back(enum tw_aead aead, bool tls13)
{
    static const size_t sizes[] = { 0, 1, 15, 16, 17, 64, 1023, 1024, 1025,
                                    16383, 16384 };
    static uint8_t plain[16384], record[16384 + 64], back[16384 + 64];
    struct tw_records a, b;

    pair(&a, &b, aead, tls13);
    for (size_t i = 0; i < sizeof(plain); i++) {
        plain[i] = (uint8_t)(i * 7);
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        size_t len = sizes[i], span, n;
        uint8_t type;

        for (int way = 0; way < 3; way++) {
            bool in_place = way == 2;
            uint8_t *to = in_place ? record + b.header : back;
            if (in_place) {
                memcpy(record + a.header, plain, len);
            }
            span = tw_records_seal(&a, DATA,
                                   in_place ? record + a.header : plain, len,
                                   record);
            CHECK(span == len + a.header + a.tail);
            CHECK(tw_records_content(&b, span) == len);
            back[len] = 0x99; /* behind the content nothing is touched */
            CHECK(tw_records_open(&b, record, span, to,
                                  way == 0 ? len : span - b.header, &n,
                                  &type)
                  == TW_FAULT_NONE);
            CHECK(n == len && type == DATA && memcmp(to, plain, n) == 0);
            CHECK(back[len] == 0x99);
        }
    }
    CHECK(tw_records_seal(&a, DATA, plain, 16385, record) == 0);
    tw_records_fini(&a);
    tw_records_fini(&b);
}

/* Any bit of a record flipped: bad_record_mac (or a fault of the header),
   the buffer zeroed, the direction dead. */
static void test_every_bit(enum tw_aead aead, bool tls13)
{
    struct tw_records a, b;
    uint8_t record[128], copy[128], back[128], type;
    size_t span, n;

    pair(&a, &b, aead, tls13);
    span = tw_records_seal(&a, DATA, (const uint8_t *)"some plaintext", 14,
                           record);
    for (size_t bit = 0; bit < span * 8; bit++) {
        struct tw_records fresh = b;
        enum tw_fault fault;

        memcpy(copy, record, span);
        copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
        memset(back, 0xee, sizeof(back));
        fault = tw_records_open(&fresh, copy, span, back, sizeof(back), &n,
                                &type);
        CHECK(fault != TW_FAULT_NONE && n == 0);
        /* the content type of TLS 1.2 is authenticated, too */
        CHECK(bit / 8 < 3 || fault == TW_FAULT_MAC
              || (bit / 8 < 5 && fault == TW_FAULT_LENGTH));
        if (fault == TW_FAULT_MAC && bit / 8 >= 5) {
            for (size_t i = 0; i < tw_records_content(&b, span); i++) {
                CHECK(back[i] == 0);
            }
        }
        CHECK(tw_records_open(&fresh, record, span, back, sizeof(back), &n,
                              &type)
              == TW_FAULT_INTERNAL);
        tw_half_fini(&fresh.read);
    }
    CHECK(tw_records_open(&b, record, span, back, sizeof(back), &n, &type)
          == TW_FAULT_NONE);
    tw_records_fini(&a);
    tw_records_fini(&b);
}

/* Replayed, left out, out of order, reflected, cut off. */
static void test_order(enum tw_aead aead, bool tls13)
{
    struct tw_records a, b, fresh;
    uint8_t one[64], two[64], back[64], type;
    size_t n, span, span2;

    pair(&a, &b, aead, tls13);
    span = tw_records_seal(&a, DATA, (const uint8_t *)"one", 3, one);
    span2 = tw_records_seal(&a, DATA, (const uint8_t *)"two", 3, two);
    fresh = b;
    CHECK(tw_records_open(&fresh, two, span2, back, sizeof(back), &n, &type)
          == TW_FAULT_MAC);
    tw_half_fini(&fresh.read);
    CHECK(tw_records_open(&b, one, span, back, sizeof(back), &n, &type)
          == TW_FAULT_NONE);
    fresh = b;
    fresh.read.ctx = NULL;
    CHECK(tw_records_open(&fresh, one, span, back, sizeof(back), &n, &type)
          == TW_FAULT_MAC);
    fresh = b;
    fresh.read.ctx = NULL;
    CHECK(tw_records_open(&fresh, two, span2 - 1, back, sizeof(back), &n,
                          &type)
          == TW_FAULT_MAC);
    span = tw_records_seal(&b, DATA, (const uint8_t *)"own", 3, one);
    fresh = b;
    fresh.read.ctx = NULL;
    CHECK(tw_records_open(&fresh, one, span, back, sizeof(back), &n, &type)
          == TW_FAULT_MAC);
    for (n = 0; n < (size_t)a.header + a.tail; n++) {
        /* too short to have a tag */
        fresh = b;
        fresh.read.ctx = NULL;
        CHECK(tw_records_open(&fresh, two, n, back, sizeof(back), &span, &type)
              == TW_FAULT_MAC);
    }
    tw_records_fini(&a);
    tw_records_fini(&b);
}

/* RFC 8446, 5.1, 5.2, 5.4: type, padding, lengths of the inner plaintext. */
static void test_inner(void)
{
    static uint8_t inner[17000], record[17100], back[17000];
    static const struct {
        size_t content, padding;
        uint8_t type;
        enum tw_fault fault;
    } cases[] = {
        { 5, 0, DATA, TW_FAULT_NONE },
        { 5, 1, DATA, TW_FAULT_NONE },
        { 0, 300, DATA, TW_FAULT_NONE },
        { 3, 7, HANDSHAKE, TW_FAULT_NONE },
        { 2, 0, ALERT, TW_FAULT_NONE },
        { 0, 0, DATA, TW_FAULT_NONE },
        { 16384, 0, DATA, TW_FAULT_NONE },
        { 16000, 384, DATA, TW_FAULT_NONE },
        { 0, 16384, DATA, TW_FAULT_NONE },
        { 0, 0, 0, TW_FAULT_TYPE },      /* one zero: no type at all */
        { 0, 99, 0, TW_FAULT_TYPE },     /* nothing but zeros */
        { 16385, 0, DATA, TW_FAULT_LENGTH },
        { 16384, 1, DATA, TW_FAULT_LENGTH },
        { 0, 16385, DATA, TW_FAULT_LENGTH },
        { 16624, 0, DATA, TW_FAULT_LENGTH }, /* 2^14 + 257 with the tag */
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tw_records a, b;
        size_t span, n, len = cases[i].content + 1 + cases[i].padding;
        enum tw_fault fault;
        uint8_t type;

        pair(&a, &b, aeads[i % 3], true);
        memset(inner, 0x5a, cases[i].content);
        memset(inner + cases[i].content, 0, 1 + cases[i].padding);
        inner[cases[i].content] = cases[i].type;
        span = seal_inner(&a, inner, len, record);
        memset(back, 0xee, sizeof(back));
        fault = tw_records_open(&b, record, span, back, sizeof(back), &n,
                                &type);
        CHECK(fault == cases[i].fault);
        if (fault == TW_FAULT_NONE) {
            CHECK(n == cases[i].content && type == cases[i].type);
            CHECK(n == 0 || (back[0] == 0x5a && back[n - 1] == 0x5a));
        } else {
            CHECK(n == 0 && back[0] != 0x5a);
        }
        tw_records_fini(&a);
        tw_records_fini(&b);
    }
}

/* What is judged before any key is used. */
static void test_header(void)
{
    static uint8_t record[20000];
    static const struct {
        bool tls13;
        uint8_t type, major, minor;
        size_t body;
        enum tw_fault fault;
    } cases[] = {
        { true, HANDSHAKE, 3, 3, 30, TW_FAULT_TYPE },
        { true, ALERT, 3, 3, 30, TW_FAULT_TYPE },
        { true, 20, 3, 3, 1, TW_FAULT_TYPE }, /* ChangeCipherSpec: too late */
        { true, DATA, 3, 1, 30, TW_FAULT_VERSION },
        { true, DATA, 3, 4, 30, TW_FAULT_VERSION },
        { true, DATA, 3, 3, 16384 + 257, TW_FAULT_LENGTH },
        { true, DATA, 3, 3, 16384 + 256, TW_FAULT_MAC },
        { true, DATA, 3, 3, 0, TW_FAULT_MAC },
        { true, DATA, 3, 3, 16, TW_FAULT_MAC },
        { false, 24, 3, 3, 40, TW_FAULT_TYPE },
        { false, 19, 3, 3, 40, TW_FAULT_TYPE },
        { false, DATA, 3, 1, 40, TW_FAULT_VERSION },
        { false, DATA, 3, 3, 16384 + 2049, TW_FAULT_LENGTH },
        { false, DATA, 3, 3, 23, TW_FAULT_MAC },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tw_records a, b;
        uint8_t type;
        size_t n;

        pair(&a, &b, TW_AEAD_AES128, cases[i].tls13);
        record[0] = cases[i].type;
        record[1] = cases[i].major;
        record[2] = cases[i].minor;
        record[3] = (uint8_t)(cases[i].body >> 8);
        record[4] = (uint8_t)cases[i].body;
        CHECK(tw_records_open(&b, record, 5 + cases[i].body, record + 5,
                              cases[i].body, &n, &type)
              == cases[i].fault);
        tw_records_fini(&a);
        tw_records_fini(&b);
    }
}

/* A gap of 2^24, 2^32, 2^40 records: 100 GB and far beyond. And the end:
   a sequence number is not used twice (RFC 8446, 5.3). */
static void test_sequence(enum tw_aead aead, bool tls13)
{
    static const uint64_t jumps[] = { UINT64_C(1) << 23, UINT64_C(1) << 32,
                                      UINT64_C(1) << 40, UINT64_MAX - 1 };
    struct tw_records a, b;
    uint8_t record[64], back[64], type;
    size_t span, n;

    pair(&a, &b, aead, tls13);
    for (size_t i = 0; i < 4; i++) {
        a.write.seq = b.read.seq = jumps[i];
        span = tw_records_seal(&a, DATA, (const uint8_t *)"far", 3, record);
        CHECK(span > 0);
        CHECK(tw_records_open(&b, record, span, back, sizeof(back), &n, &type)
              == TW_FAULT_NONE);
        CHECK(n == 3);
    }
    CHECK(tw_records_seal(&a, DATA, (const uint8_t *)"one too many", 12,
                          record)
          == 0);
    CHECK(tw_records_open(&b, record, span, back, sizeof(back), &n, &type)
          == TW_FAULT_INTERNAL);
    tw_records_fini(&a);
    tw_records_fini(&b);
}

/* RFC 8446, 7.2: both ends move on; old keys open nothing any more, the
   sequence starts at 0. A KeyUpdate of ours is due at 2^24 records. */
static void test_update(void)
{
    struct tw_records a, b;
    uint8_t record[64], back[64], type, key[32];
    size_t span, n;

    pair(&a, &b, TW_AEAD_AES256, true);
    CHECK(!tw_records_due(&a));
    a.write.count = tw_records_rekey_at - 1;
    b.read.count = 0;
    span = tw_records_seal(&a, DATA, (const uint8_t *)"x", 1, record);
    CHECK(tw_records_due(&a));
    CHECK(tw_records_open(&b, record, span, back, sizeof(back), &n, &type)
          == TW_FAULT_NONE);
    memcpy(key, a.write.key, 32);
    CHECK(tw_records_update(&a, &a.write));
    CHECK(memcmp(key, a.write.key, 32) != 0);
    CHECK(!tw_records_due(&a) && a.write.seq == 0);
    span = tw_records_seal(&a, DATA, (const uint8_t *)"y", 1, record);
    CHECK(tw_records_update(&b, &b.read));
    CHECK(tw_records_open(&b, record, span, back, sizeof(back), &n, &type)
          == TW_FAULT_NONE);
    tw_records_fini(&a);
    tw_records_fini(&b);
    /* Keys of the next generation, from RFC 8448's first secret. */
    hex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
        secret_a);
    CHECK(tw_records_init13(&a, TW_AEAD_AES128, 32, secret_a, secret_a, 0));
    CHECK(tw_records_update(&a, &a.write));
    hex("fcdfcc72725aaee48bf64e4fd8b749cdbdbab39d90da0b26e2245ca6ea167207",
        key);
    CHECK(memcmp(a.write.secret, key, 32) == 0);
    tw_records_fini(&a);
}

/* RFC 5288, 3: the explicit nonce never comes twice, and counts on from
   where it was told to. */
static void test_explicit_nonce(void)
{
    struct tw_records a, b;
    uint8_t record[64];

    pair(&a, &b, TW_AEAD_AES128, false);
    a.write.nonce = UINT64_MAX;
    for (unsigned i = 0; i < 300; i++) {
        uint64_t nonce = 0;
        CHECK(tw_records_seal(&a, DATA, (const uint8_t *)"n", 1, record));
        for (int k = 5; k < 13; k++) {
            nonce = nonce << 8 | record[k];
        }
        CHECK(nonce == UINT64_MAX + (uint64_t)i);
    }
    tw_records_fini(&a);
    tw_records_fini(&b);
}

/* Nothing of keys and secrets stays in the struct. */
static void test_wiped(void)
{
    struct tw_records a, b;
    static const uint8_t zeros[sizeof(struct tw_records)];

    pair(&a, &b, TW_AEAD_AES128, true);
    tw_records_fini(&a);
    CHECK(memcmp(&a, zeros, sizeof(a)) == 0);
    tw_records_fini(&b);
}

/* More directions than the desk has contexts, from several threads: each
   keeps its own keys and its place. */
static void *many(void *arg)
{
    enum { PAIRS = 100, ROUNDS = 40 };
    static const uint8_t text[5] = "many";
    struct tw_records *ends = calloc(2 * PAIRS, sizeof(*ends));
    uint8_t record[64], back[64], type;
    size_t span, n;

    (void)arg;
    CHECK(ends);
    for (int i = 0; i < PAIRS; i++) {
        pair(&ends[2 * i], &ends[2 * i + 1], aeads[i % 3], i % 2);
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < 2 * PAIRS; i++) {
            struct tw_records *from = &ends[i], *to = &ends[i ^ 1];
            span = tw_records_seal(from, DATA, text, sizeof(text), record);
            CHECK(span > 0);
            CHECK(tw_records_open(to, record, span, back, sizeof(back), &n,
                                  &type)
                  == TW_FAULT_NONE);
            CHECK(n == sizeof(text) && memcmp(back, text, n) == 0);
        }
    }
    for (int i = 0; i < 2 * PAIRS; i++) {
        tw_records_fini(&ends[i]);
    }
    free(ends);
    return NULL;
}

static void test_desk(void)
{
    pthread_t threads[4];

    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, many, NULL) == 0);
    }
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

/* More directions at work in turns than the desk has contexts: it gets more
   of them, and soon each keeps its own. */
static void test_desk_grows(void)
{
    enum { PAIRS = 300 };
    struct tw_records *ends = calloc(2 * PAIRS, sizeof(*ends));
    uint8_t record[64], back[64], type;
    size_t span, n, keyed = 0;

    CHECK(ends);
    for (int i = 0; i < PAIRS; i++) {
        pair(&ends[2 * i], &ends[2 * i + 1], TW_AEAD_AES128, true);
    }
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < PAIRS; i++) {
            span = tw_records_seal(&ends[2 * i], DATA, secret_a, 5, record);
            CHECK(tw_records_open(&ends[2 * i + 1], record, span, back,
                                  sizeof(back), &n, &type)
                  == TW_FAULT_NONE);
        }
    }
    for (int i = 0; i < PAIRS; i++) {
        keyed += ends[2 * i].write.ctx != NULL;
        keyed += ends[2 * i + 1].read.ctx != NULL;
        tw_records_fini(&ends[2 * i]);
        tw_records_fini(&ends[2 * i + 1]);
    }
    CHECK(keyed == 2 * PAIRS);
    free(ends);
}

/* --- a provider that comes later --- */

static OSSL_PROVIDER *real;
static int offered; /* the operation in which "other" has an algorithm */

/* One algorithm, as the default provider makes it. */
static const OSSL_ALGORITHM *query(void *provctx, int operation,
                                   int *no_cache)
{
    static OSSL_ALGORITHM found[2];
    const char *name = operation == OSSL_OP_KDF ? "HKDF" : "AES-256-GCM";
    const OSSL_ALGORITHM *at;

    (void)provctx;
    *no_cache = 0;
    if (operation != offered) {
        return NULL;
    }
    at = OSSL_PROVIDER_query_operation(real, operation, no_cache);
    /* by its whole first name: 3.2 and later have AES-256-GCM-SIV as well */
    while (at->algorithm_names != NULL
           && (strcspn(at->algorithm_names, ":") != strlen(name)
               || strncmp(at->algorithm_names, name, strlen(name)) != 0)) {
        at++;
    }
    found[0] = *at;
    found[0].property_definition = "provider=other";
    return found;
}

static int start(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in,
                 const OSSL_DISPATCH **out, void **provctx)
{
    static const OSSL_DISPATCH slots[] = {
        { OSSL_FUNC_PROVIDER_QUERY_OPERATION, (void (*)(void))query },
        { 0, NULL },
    };

    (void)handle;
    (void)in;
    *out = slots;
    *provctx = OSSL_PROVIDER_get0_provider_ctx(real);
    return 1;
}

/* What a program chooses after the engine was set up holds for records as
   well, be it FIPS mode or a provider that is preferred: they are the SSL
   object's then. */
static void test_chosen_later(int operation)
{
    OSSL_PROVIDER *other;

    offered = operation;
    real = OSSL_PROVIDER_load(NULL, "default");
    CHECK(real != NULL && OSSL_PROVIDER_add_builtin(NULL, "other", start));
    other = OSSL_PROVIDER_load(NULL, "other");
    CHECK(other != NULL && tw_records_usable());
    CHECK(EVP_set_default_properties(NULL, "?provider=other"));
    CHECK(!tw_records_usable());
    CHECK(EVP_set_default_properties(NULL, "fips=yes"));
    CHECK(!tw_records_usable() && ERR_peek_error() == 0);
    CHECK(EVP_set_default_properties(NULL, NULL));
    CHECK(tw_records_usable());
    CHECK(OSSL_PROVIDER_unload(other) && OSSL_PROVIDER_unload(real));
}

/* In processes of their own, for it changes the default context. */
static void test_choices(void)
{
    static const int operations[] = { OSSL_OP_CIPHER, OSSL_OP_KDF };

    for (size_t i = 0; i < 2; i++) {
        pid_t child = fork();
        int status = -1;

        if (child == 0) {
            test_chosen_later(operations[i]);
            exit(0);
        }
        CHECK(child > 0 && waitpid(child, &status, 0) == child
              && status == 0);
    }
}

int main(void)
{
    memset(secret_a, 0xa1, sizeof(secret_a));
    memset(secret_b, 0xb2, sizeof(secret_b));
    CHECK(tw_records_usable());
    test_choices();
    test_rfc8448();
    test_rfc8448_finished();
    for (size_t i = 0; i < 3; i++) {
        for (int tls13 = 0; tls13 < 2; tls13++) {
            test_there_and_back(aeads[i], tls13);
            test_every_bit(aeads[i], tls13);
            test_order(aeads[i], tls13);
            test_sequence(aeads[i], tls13);
        }
    }
    test_inner();
    test_header();
    test_explicit_nonce();
    test_wiped();
    test_desk_grows();
    test_desk();
    test_update();
    puts("records: ok");
    return 0;
}
