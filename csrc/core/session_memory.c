/*
 * Sealing and opening from the caller's memory to the caller's.
 *
 * For channels without a socket: records pass neither the input nor the
 * output where that can be avoided. There is one order of bytes all the
 * same, so the direct way is taken only while nothing waits inside: no
 * output before what is sealed, no input before what is opened, and no
 * renegotiation. An engine with its own way from memory to memory (seal,
 * open in provider.h) does it without a copy. Else the record is copied to
 * where its content shall lie, and worked on there. What fits neither goes
 * by way of the input.
 */
#include "core/session_internal.h"

#include <string.h>

#define HEADER_MAX 64u /* of a record, as far as one is set aside */

static size_t sealed_size_lock_held(const struct tw_session *s, size_t len)
{
    size_t each = s->sizes.cbMaximumMessage;
    size_t records;

    if (s->state != TW_OPEN) {
        return 0;
    }
    records = len / each + (len % each != 0);
    return len
           + records * ((size_t)s->sizes.cbHeader + s->sizes.cbTrailer);
}

bool tw_session_sealed_exactly(struct tw_session *s)
{
    bool exactly;

    tw_lock_acquire(&s->lock);
    exactly = s->sizes.cbBlockSize <= 1;
    tw_lock_release(&s->lock);
    return exactly;
}

size_t tw_session_sealed_size(struct tw_session *s, size_t len)
{
    size_t size;

    tw_lock_acquire(&s->lock);
    size = sealed_size_lock_held(s, len);
    tw_lock_release(&s->lock);
    return size;
}

size_t tw_session_sealed_bound(struct tw_session *s, size_t len)
{
    size_t size;

    tw_lock_acquire(&s->lock);
    size = sealed_size_lock_held(s, len);
    size += tw_buffer_length(&s->output) + (size > 0 ? TW_UPDATE_ROOM : 0);
    tw_lock_release(&s->lock);
    return size;
}

enum tw_status tw_session_seal(struct tw_session *s, const uint8_t *src,
                               size_t len, uint8_t *dst, size_t room,
                               size_t *taken, size_t *made,
                               struct tw_error *err)
{
    enum tw_status st;

    *taken = 0;
    *made = 0;
    tw_lock_acquire(&s->lock);
    st = tw_session_may_write_lock_held(s, err);
    if (st == TW_DONE && !s->renegotiating
        && tw_buffer_length(&s->output) == 0) {
        st = tw_session_seal_into_lock_held(s, src, len, dst, room, taken,
                                            made);
        st = tw_session_report_lock_held(s, st, err);
    }
    tw_lock_release(&s->lock);
    return st;
}

size_t tw_session_content_size(struct tw_session *s, const uint8_t *src,
                               size_t len)
{
    size_t around = 0;
    size_t size = 0;
    size_t inside;
    size_t i;
    const uint8_t *at;

    tw_lock_acquire(&s->lock);
    if (s->state == TW_OPEN && !s->indirect && s->provider->open != NULL
        && s->sizes.cbBlockSize <= 1) {
        /* blocks are padded: what is around content then differs */
        around = (size_t)s->sizes.cbHeader + s->sizes.cbTrailer;
    }
    at = tw_cipher_at_lock_held(s, &inside);
    size = s->plain_len;
    for (i = 0; i < 2; i++) {
        const uint8_t *p = i == 0 ? at : src;
        size_t left = i == 0 ? inside : len;
        size_t one;

        while ((one = tw_record_length(p, left)) > 0 && one <= left) {
            size += one > around ? one - around : 0;
            p += one;
            left -= one;
        }
        if (i == 0 && left > 0) {
            /* a started record: src goes on with it */
            size += left + len;
            break;
        }
    }
    tw_lock_release(&s->lock);
    return size;
}

/* Opens the record src[0..len) from one memory into another by the engine's
   own way: *used 0 if it has none, or if dst is too small for it. */
static enum tw_status open_record_lock_held(struct tw_session *s,
                                            const uint8_t *src, size_t len,
                                            uint8_t *dst, size_t cap,
                                            size_t *used, size_t *n)
{
    SECURITY_STATUS status;

    status = s->provider->open(&s->ctx, src, len, dst, cap, used, n);
    if (status == SEC_E_UNSUPPORTED_FUNCTION) {
        s->indirect = true;
        return TW_DONE;
    }
    if (!tw_is_reading(status)) {
        return tw_engine_failed_lock_held(
            s, status < 0 ? status : SEC_E_INTERNAL_ERROR);
    }
    return *used > 0
               ? tw_session_decrypted_lock_held(s, status, *n > 0)
               : TW_DONE;
}

/*
 * The same for an engine that works in place: the record, which is whole,
 * is copied so that its data comes to lie at dst[0..), with `before` bytes
 * of the caller's in front of it. Its header lies over the last of those
 * meanwhile, and what is behind its data over what follows.
 */
static enum tw_status open_in_place_lock_held(struct tw_session *s,
                                              const uint8_t *src,
                                              size_t record, uint8_t *dst,
                                              size_t before, size_t *used,
                                              size_t *n)
{
    SecBuffer b[4];
    SECURITY_STATUS status;
    struct tw_plain found;
    uint8_t kept[HEADER_MAX];
    size_t header = s->sizes.cbHeader;
    uint8_t *at;
    bool good;

    if (header > before || header > sizeof(kept)) {
        header = 0;
    }
    at = dst - header;
    memcpy(kept, at, header);
    memcpy(at, src, record);
    status = tw_engine_decrypt_lock_held(s, b, at, record);
    good = tw_is_reading(status) && tw_plain_find(b, at, record, &found)
           && tw_buffer_append(&s->input, at + record - found.extra,
                               found.extra);
    if (good && found.n > 0 && found.data != dst) {
        memmove(dst, found.data, found.n);
    } else if (!good) {
        tw_wipe(at, record); /* plaintext that nothing vouches for */
    }
    memcpy(at, kept, header);
    if (status == SEC_E_INCOMPLETE_MESSAGE) {
        return TW_DONE; /* it wants more than a record: in the input */
    }
    *used = record;
    if (!good) {
        return tw_engine_failed_lock_held(
            s, status < 0 ? status : SEC_E_INTERNAL_ERROR);
    }
    *n = found.n;
    return tw_session_decrypted_lock_held(s, status, found.n > 0);
}

/* The same by way of the input, which is empty: where dst is too small for
   the record with all that is around its data. */
static enum tw_status copy_record_lock_held(struct tw_session *s,
                                            const uint8_t *src,
                                            size_t record, uint8_t *dst,
                                            size_t cap, size_t *used,
                                            size_t *n)
{
    enum tw_status st;

    if (!tw_buffer_append(&s->input, src, record)) {
        return tw_session_nomem_lock_held(s);
    }
    *used = record;
    st = tw_session_read_lock_held(s, dst, cap, n);
    return st < 0 ? st : TW_DONE; /* what is wanted next, a read will tell */
}

enum tw_status tw_session_open(struct tw_session *s, const uint8_t *src,
                               size_t len, uint8_t *dst, size_t cap,
                               size_t *used, size_t *n,
                               struct tw_error *err)
{
    enum tw_status st = TW_DONE;
    size_t part = 1;

    *used = 0;
    *n = 0;
    tw_lock_acquire(&s->lock);
    while (st == TW_DONE && part > 0 && *used < len && s->state == TW_OPEN
           && !s->renegotiating && !s->read_ended && !s->eof
           && tw_buffer_length(&s->input) == 0
           && tw_record_check(src + *used, len - *used) == TW_RECORD_OK
           && tw_record_missing(src + *used, len - *used) == 0) {
        const uint8_t *at = src + *used;
        size_t record = tw_record_length(at, len - *used);
        bool direct = !s->indirect && s->provider->open != NULL;
        size_t got = 0;

        part = 0;
        if (direct) {
            st = open_record_lock_held(s, at, len - *used, dst + *n,
                                       cap - *n, &part, &got);
            direct = !s->indirect;
        }
        if (!direct && record <= cap - *n) {
            st = open_in_place_lock_held(s, at, record, dst + *n, *n, &part,
                                         &got);
        }
        if (!direct && part == 0 && st == TW_DONE) {
            st = copy_record_lock_held(s, at, record, dst + *n, cap - *n,
                                       &part, &got);
        }
        *used += part;
        *n += got;
    }
    tw_input_relax_lock_held(s);
    st = *n > 0 ? TW_DONE : tw_session_report_lock_held(s, st, err);
    tw_lock_release(&s->lock);
    return st;
}
