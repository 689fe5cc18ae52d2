/*
 * Owned bytes with a read and a write cursor.
 *
 * Content is moved to the front only when room is asked for and the tail
 * is too short, never on consume: a loop over records consumes many times
 * and reserves once. Memory grows by doubling and goes back as soon as the
 * owner says so and the buffer is empty (tw_buffer_relax).
 *
 * Large buffers are needed for a moment only, while data is in flight, and
 * malloc would map and unmap them each time: 20 us of page faults. So they
 * are blocks of one size from a pool that the whole process shares, and a
 * connection that rests holds none. The pool's lock is only tried: who does
 * not get it at once (or sits in the child of a fork that happened under
 * it) uses malloc.
 */
#include "core/buffer.h"
#include "core/lock.h"

#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <windows.h>
#endif

#define SMALLEST 512u
#define POOLED_FROM ((size_t)48 * 1024) /* smaller ones are malloc's */
#define POOL_SIZE 8u

static struct {
    struct tw_lock lock;
    uint8_t *block[POOL_SIZE]; /* block[0..count): free, no secrets inside */
    size_t count;
} pool = {.lock = TW_LOCK_READY};

static uint8_t *take_memory(size_t *room)
{
    uint8_t *found = NULL;

    if (*room < POOLED_FROM || *room > TW_BUFFER_BLOCK) {
        return malloc(*room);
    }
    *room = TW_BUFFER_BLOCK;
    if (tw_lock_try(&pool.lock)) {
        if (pool.count > 0) {
            found = pool.block[--pool.count];
        }
        tw_lock_release(&pool.lock);
    }
    return found != NULL ? found : malloc(*room);
}

static void give_memory(uint8_t *data, size_t room)
{
    if (room == TW_BUFFER_BLOCK && tw_lock_try(&pool.lock)) {
        if (pool.count < POOL_SIZE) {
            pool.block[pool.count++] = data;
            data = NULL;
        }
        tw_lock_release(&pool.lock);
    }
    free(data);
}

void tw_wipe(void *data, size_t n)
{
    if (data == NULL || n == 0) {
        return;
    }
#ifdef _WIN32
    SecureZeroMemory(data, n);
#else
    /* a call through a volatile pointer cannot be optimised away, and is
       the library's fast memset all the same */
    {
        static void *(*const volatile set)(void *, int, size_t) = memset;

        (void)set(data, 0, n);
    }
#endif
}

void tw_buffer_init(struct tw_buffer *b)
{
    b->data = NULL;
    b->start = 0;
    b->end = 0;
    b->room = 0;
    b->secret = 0;
}

static void drop_memory(struct tw_buffer *b)
{
    if (b->data != NULL) {
        tw_wipe(b->data, b->secret); /* what was consumed is still there */
        give_memory(b->data, b->room);
    }
}

void tw_buffer_free(struct tw_buffer *b)
{
    drop_memory(b);
    tw_buffer_init(b);
}

size_t tw_buffer_length(const struct tw_buffer *b)
{
    return b->end - b->start;
}

uint8_t *tw_buffer_head(const struct tw_buffer *b)
{
    return b->data == NULL ? NULL : b->data + b->start;
}

uint8_t *tw_buffer_reserve(struct tw_buffer *b, size_t n)
{
    size_t length = b->end - b->start;
    size_t secret;
    size_t room;
    uint8_t *data;

    if (b->data != NULL && b->room - b->end >= n) {
        return b->data + b->end;
    }
    if (n > SIZE_MAX / 4 || length > SIZE_MAX / 4) {
        return NULL;
    }
    if (b->data != NULL && b->room - length >= n) {
        if (length > 0) {
            memmove(b->data, b->data + b->start, length);
        }
        b->start = 0;
        b->end = length;
        return b->data + b->end;
    }
    /* exactly what is asked for when it starts from nothing; doubled when
       it grows, so that many small appends stay linear */
    room = length + n;
    if (b->data != NULL && room < 2 * b->room) {
        room = 2 * b->room;
    }
    if (room < SMALLEST) {
        room = SMALLEST;
    }
    data = take_memory(&room);
    if (data == NULL) {
        return NULL;
    }
    if (length > 0) {
        memcpy(data, b->data + b->start, length);
    }
    secret = b->secret > b->start ? b->secret - b->start : 0;
    drop_memory(b);
    b->secret = secret < length ? secret : length;
    b->data = data;
    b->start = 0;
    b->end = length;
    b->room = room;
    return b->data + b->end;
}

void tw_buffer_commit(struct tw_buffer *b, size_t n)
{
    if (n > b->room - b->end) {
        n = b->room - b->end;
    }
    b->end += n;
}

void tw_buffer_consume(struct tw_buffer *b, size_t n)
{
    if (n > b->end - b->start) {
        n = b->end - b->start;
    }
    b->start += n;
    if (b->start == b->end) {
        b->start = 0;
        b->end = 0;
    }
}

bool tw_buffer_append(struct tw_buffer *b, const void *data, size_t n)
{
    uint8_t *at;

    if (n == 0) {
        return true;
    }
    at = tw_buffer_reserve(b, n);
    if (at == NULL) {
        return false;
    }
    memcpy(at, data, n);
    tw_buffer_commit(b, n);
    return true;
}

void tw_buffer_stain(struct tw_buffer *b, const uint8_t *end)
{
    size_t n = (size_t)(end - b->data);

    b->secret = n > b->secret ? n : b->secret;
}

void tw_buffer_relax(struct tw_buffer *b)
{
    if (b->data != NULL && b->start == b->end) {
        tw_buffer_free(b);
    }
}
