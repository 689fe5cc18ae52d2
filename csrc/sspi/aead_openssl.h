/*
 * The AEADs of TLS, of libcrypto's provider: keyed contexts for records.
 *
 * A record is begun with its nonce (and, to open it, its tag), then come
 * the additional data, the content in any number of parts, and the end,
 * which gives the tag or says whether it was right. Nothing of a record
 * that is being opened counts before its end is good. A context is used by
 * one call at a time.
 */
#ifndef TW_SSPI_AEAD_OPENSSL_H
#define TW_SSPI_AEAD_OPENSSL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TW_TAG 16u   /* bytes of each AEAD's tag */
#define TW_NONCE 12u /* and nonce */

enum tw_aead { TW_AEAD_NONE, TW_AEAD_AES128, TW_AEAD_AES256,
               TW_AEAD_CHACHA };

/* Fetches them all and proves each against EVP. Once, before all else;
   false: there is no AES-GCM, or something is not as it has to be. */
bool tw_aead_set_up(void);
/* Would they be of the same providers if they were fetched now? A program
   may switch FIPS mode on, or load a provider that is preferred. */
bool tw_aead_in_force(void);
/* Is there this one? (In FIPS mode no ChaCha20.) */
bool tw_aead_known(enum tw_aead aead);
size_t tw_aead_key_length(enum tw_aead aead);

/* A context without a key; NULL: no memory. */
void *tw_aead_new(enum tw_aead aead);
void tw_aead_free(enum tw_aead aead, void *ctx); /* wipes; NULL: ignored */

/* key NULL: the one it has. A context may go over from one direction to
   the other with a key. */
bool tw_aead_begin_seal(enum tw_aead aead, void *ctx, const uint8_t *key,
                        const uint8_t nonce[TW_NONCE]);
bool tw_aead_begin_open(enum tw_aead aead, void *ctx, const uint8_t *key,
                        const uint8_t nonce[TW_NONCE],
                        const uint8_t tag[TW_TAG]);
bool tw_aead_additional(enum tw_aead aead, void *ctx, const uint8_t *data,
                        size_t len);
/* len bytes of src to dst, which is the same memory or another; 0 is
   nothing. */
bool tw_aead_update(enum tw_aead aead, void *ctx, uint8_t *dst,
                    const uint8_t *src, size_t len);
bool tw_aead_end_seal(enum tw_aead aead, void *ctx, uint8_t tag[TW_TAG]);
/* False: the tag was wrong. Compared in constant time. */
bool tw_aead_end_open(enum tw_aead aead, void *ctx);

#endif
