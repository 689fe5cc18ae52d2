/*
 * The record engine of the OpenSSL provider: once a handshake is over it
 * seals and opens records by itself, over libcrypto's AEADs, in place or from
 * one buffer into another. TLS 1.3 (RFC 8446, 5) and TLS 1.2 with AES-GCM (RFC
 * 5288) or ChaCha20-Poly1305 (RFC 7905); everything else is not for it.
 *
 * It knows records and keys: no messages but their bytes, no SSL object, no
 * socket. Its two directions share nothing, so one thread may seal while
 * another opens; all else is the caller's to order.
 */
#ifndef TW_SSPI_RECORD_OPENSSL_H
#define TW_SSPI_RECORD_OPENSSL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <stdatomic.h>

#include "sspi/aead_openssl.h"

#define TW_SECRET_MAX 48u /* SHA-384, and TLS 1.2's master secret */
#define TW_SEAL_TAIL 17u  /* most that follows the content: type, tag */

/* Records under one AES-GCM key before ours is changed: 2^24, where RFC
   8446, 5.5 allows 2^24.5. A variable so that tests need not send as many;
   nobody else sets it. */
extern uint64_t tw_records_rekey_at;

/* One direction of a connection. */
struct tw_half {
    void *ctx;            /* keyed; NULL: to be made at the next record */
    atomic_bool held;     /* ctx, slot, recent, robbed: by who works with
                             them */
    bool recent;          /* used since the desk last looked */
    bool robbed;          /* the desk gave ctx to another direction */
    uint8_t aead;         /* enum tw_aead, of ctx and key */
    int16_t slot;         /* of the desk; -1: none. Only with ctx */
    uint64_t seq;         /* of the next record */
    uint64_t count;       /* records under this key */
    uint64_t nonce;       /* TLS 1.2 AES-GCM, writing: the next explicit
                             nonce */
    uint8_t key[32];      /* as long as the AEAD wants */
    uint8_t iv[12];       /* TLS 1.2 AES-GCM: its first 4 bytes, the salt */
    uint8_t secret[TW_SECRET_MAX]; /* TLS 1.3: the traffic secret */
};

struct tw_records {
    struct tw_half read, write;
    bool tls13;
    uint8_t header;       /* bytes before the content: 5, or 13 */
    uint8_t tail;         /* bytes behind it: 17, or 16 */
    uint8_t hash_len;     /* of the suite's hash: 32 or 48 */
};

/* What made a record bad; the alert that says so is tw_fault_alert. */
enum tw_fault {
    TW_FAULT_NONE,
    TW_FAULT_MAC,      /* tag or length: bad_record_mac */
    TW_FAULT_TYPE,     /* unexpected_message */
    TW_FAULT_LENGTH,   /* record_overflow */
    TW_FAULT_VERSION,  /* protocol_version or decode_error */
    TW_FAULT_INTERNAL  /* OpenSSL failed, or the sequence is used up */
};

int tw_fault_alert(enum tw_fault);

/* Does the engine work here? Runs its self-test once: key schedule and
   records against known answers. And is what it was proved with still what
   OpenSSL would choose? False: keep to the SSL object. */
bool tw_records_usable(void);

/*
 * Sets r up; false (r wiped) if OpenSSL fails. Secrets are copied.
 *
 * TLS 1.3: traffic secrets of hash_len bytes (32: SHA-256, 48: SHA-384);
 * write_seq records were sent under ours already.
 */
bool tw_records_init13(struct tw_records *r, enum tw_aead aead,
                       size_t hash_len, const uint8_t *read_secret,
                       const uint8_t *write_secret, uint64_t write_seq);
/* TLS 1.2: both directions stand behind their Finished, so at 1. nonce: the
   explicit nonce to begin with (AES-GCM); it must follow those used. */
bool tw_records_init12(struct tw_records *r, enum tw_aead aead,
                       size_t hash_len, bool client, const uint8_t *master,
                       const uint8_t *client_random,
                       const uint8_t *server_random, uint64_t nonce);
/* Wipes. A zeroed r is fine. */
void tw_records_fini(struct tw_records *r);

/*
 * Seals content src[0..len), len <= 16384, as one record of `type` at dst:
 * header + len + tail bytes, how many is returned; 0 if it failed. src may
 * be dst + header, else the two must not overlap.
 */
size_t tw_records_seal(struct tw_records *r, uint8_t type,
                       const uint8_t *src, size_t len, uint8_t *dst);
/*
 * Opens the whole record rec[0..span): *n bytes of content of *type to
 * dst[0..room), room >= span - header - tail, which may be rec + header. A
 * byte more of room saves a call, and is left as it was. On a fault
 * dst holds zeros where content was, and the direction is dead.
 */
enum tw_fault tw_records_open(struct tw_records *r, const uint8_t *rec,
                              size_t span, uint8_t *dst, size_t room,
                              size_t *n, uint8_t *type);
/* The most content that a record of span bytes can have. */
static inline size_t tw_records_content(const struct tw_records *r,
                                        size_t span)
{
    size_t around = (size_t)r->header + r->tail;

    return span > around ? span - around : 0;
}
/* TLS 1.3: the next generation of a direction's keys (RFC 8446, 7.2). */
bool tw_records_update(struct tw_records *r, struct tw_half *half);
/* Is it time for a KeyUpdate of ours? */
static inline bool tw_records_due(const struct tw_records *r)
{
    return r->tls13 && r->write.aead != TW_AEAD_CHACHA
           && r->write.count >= tw_records_rekey_at;
}

/* One direction by its secret, for feeding an SSL object what was opened
   already: sealed as the peer would have, under sequence half->seq. */
bool tw_half_init13(struct tw_half *half, enum tw_aead aead,
                    size_t hash_len, const uint8_t *secret);
void tw_half_fini(struct tw_half *half);
size_t tw_half_seal(const struct tw_records *like, struct tw_half *half,
                    uint8_t type, const uint8_t *src, size_t len,
                    uint8_t *dst);
enum tw_fault tw_half_open(const struct tw_records *like,
                           struct tw_half *half, const uint8_t *rec,
                           size_t span, uint8_t *dst, size_t room,
                           size_t *n, uint8_t *type);

/* HKDF-Expand-Label (RFC 8446, 7.1) and TLS 1.2's PRF (RFC 5246, 5), by
   EVP_KDF; false if OpenSSL fails. seed is three parts, any may be empty. */
bool tw_expand_label(size_t hash_len, const uint8_t *secret,
                     const char *label, const uint8_t *context,
                     size_t context_len, uint8_t *out, size_t len);
bool tw_prf12(size_t hash_len, const uint8_t *master, const char *label,
              const uint8_t *seed, size_t seed_len, uint8_t *out,
              size_t len);

#endif
