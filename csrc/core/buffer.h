/*
 * Owned bytes with a read and a write cursor. Given back whenever empty and
 * asked to, so that an idle connection holds none; wiped before that if
 * they held what is secret.
 */
#ifndef TW_CORE_BUFFER_H
#define TW_CORE_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tw_buffer {
    uint8_t *data; /* NULL while it holds no memory */
    size_t start;  /* first unread byte */
    size_t end;    /* one past the last written byte */
    size_t room;   /* bytes allocated */
    size_t secret; /* bytes from data on that may hold plaintext */
};

/* Blocks of this size come from a pool: 256 KiB of content in records, and
   a started one. Larger or much smaller ones are malloc's. */
#define TW_BUFFER_BLOCK ((size_t)(256 + 20) * 1024)

void tw_buffer_init(struct tw_buffer *);
void tw_buffer_free(struct tw_buffer *); /* ready for reuse */
size_t tw_buffer_length(const struct tw_buffer *);
uint8_t *tw_buffer_head(const struct tw_buffer *); /* first unread byte */
/* At least n writable bytes at the returned place; NULL: no memory.
   Moves the content to the front before it grows. */
uint8_t *tw_buffer_reserve(struct tw_buffer *, size_t n);
void tw_buffer_commit(struct tw_buffer *, size_t n);
void tw_buffer_consume(struct tw_buffer *, size_t n);
bool tw_buffer_append(struct tw_buffer *, const void *, size_t n);
/* What lies before `end` may be plaintext from now on: it is wiped before
   the memory goes. Nothing else is: a small message in a large room would
   pay for all of it. */
void tw_buffer_stain(struct tw_buffer *, const uint8_t *end);
/* Gives its memory back if it is empty. */
void tw_buffer_relax(struct tw_buffer *);
/* Wiping that no compiler removes. */
void tw_wipe(void *, size_t);

#endif
