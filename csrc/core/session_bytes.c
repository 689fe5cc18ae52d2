/*
 * The session's bytes: from the peer, and for him.
 *
 * `input` holds plaintext, what is left of its records, and ciphertext, in
 * this order (session.c draws it). Reading and decrypting only move the
 * borders, so that a record's bytes lie still from recv() to the reader.
 * The wire reads straight into the room that input_reserve lends and sends
 * straight from what output lends. While memory is lent out, input is not
 * moved, and output that has to grow goes to other memory; the old is
 * freed when it comes back.
 */
#include "core/session_internal.h"

#include <string.h>

#define INPUT_MAX (1024u * 1024u) /* of one reserve */

/* --- input: ciphertext behind the plaintext --- */

uint8_t *tw_cipher_at_lock_held(struct tw_session *s, size_t *len)
{
    size_t before = s->plain_len + s->plain_skip;
    uint8_t *head = tw_buffer_head(&s->input);

    *len = tw_buffer_length(&s->input) - before;
    return head == NULL ? NULL : head + before;
}

/* Like tw_buffer_consume; lent memory keeps its place. */
static void input_drop_lock_held(struct tw_session *s, size_t n)
{
    if (s->input_lent) {
        s->input.start += n;
    } else {
        tw_buffer_consume(&s->input, n);
    }
}

void tw_cipher_consume_lock_held(struct tw_session *s, size_t n)
{
    if (n == 0) {
        return;
    }
    s->tried = 0;
    s->need = 0;
    if (s->plain_len > 0) {
        s->plain_skip += n;
    } else {
        input_drop_lock_held(s, s->plain_skip + n);
        s->plain_skip = 0;
    }
}

void tw_plain_consume_lock_held(struct tw_session *s, size_t n)
{
    s->plain_len -= n;
    if (s->plain_len == 0) {
        n += s->plain_skip;
        s->plain_skip = 0;
    }
    input_drop_lock_held(s, n);
}

void tw_input_relax_lock_held(struct tw_session *s)
{
    if (!s->input_lent) {
        tw_buffer_relax(&s->input);
    }
}

void tw_input_note_missing_lock_held(struct tw_session *s, size_t hint)
{
    size_t len;
    const uint8_t *at = tw_cipher_at_lock_held(s, &len);
    size_t missing = tw_record_missing(at, len);

    s->tried = len;
    if (missing == 0) {
        missing = 1;
    }
    s->need = len + (hint > 0 && hint <= INPUT_MAX ? hint : missing);
}

/* --- output --- */

uint8_t *tw_output_reserve_lock_held(struct tw_session *s, size_t n)
{
    struct tw_buffer fresh;
    size_t len = tw_buffer_length(&s->output);

    if (!s->output_lent || s->output.room - s->output.end >= n) {
        return tw_buffer_reserve(&s->output, n);
    }
    tw_buffer_init(&fresh);
    if (n > SIZE_MAX / 4 || tw_buffer_reserve(&fresh, 2 * len + n) == NULL) {
        return NULL;
    }
    (void)tw_buffer_append(&fresh, tw_buffer_head(&s->output), len);
    tw_buffer_free(&s->retired);
    s->retired = s->output;
    s->output = fresh;
    s->output_lent = false;
    return tw_buffer_reserve(&s->output, n);
}

void tw_output_commit_lock_held(struct tw_session *s, size_t n)
{
    tw_buffer_commit(&s->output, n);
    tw_count_set(&s->has_output, tw_buffer_length(&s->output) > 0);
}

bool tw_output_append_lock_held(struct tw_session *s, const void *data,
                                size_t n)
{
    uint8_t *at;

    if (n == 0) {
        return true;
    }
    at = tw_output_reserve_lock_held(s, n);
    if (at == NULL) {
        return false;
    }
    memcpy(at, data, n);
    tw_output_commit_lock_held(s, n);
    return true;
}

bool tw_held_release_lock_held(struct tw_session *s)
{
    bool good = tw_output_append_lock_held(s, tw_buffer_head(&s->held),
                                           tw_buffer_length(&s->held));

    tw_buffer_free(&s->held);
    return good;
}

/* --- bytes of the wire --- */

size_t tw_input_missing_lock_held(struct tw_session *s)
{
    size_t missing = 0;
    size_t len;
    const uint8_t *at = tw_cipher_at_lock_held(s, &len);

    if (s->state != TW_FAILED && s->pause == TW_PAUSE_NONE && !s->eof
        && !s->poke && s->plain_len == 0 && !s->read_ended
        && !(s->role == TW_CLIENT && !s->has_ctx)) {
        missing = s->need > len ? s->need - len
                                : tw_record_missing(at, len);
        if (missing == 0 && len <= s->tried) {
            missing = 1;
        }
    }
    return missing;
}

enum tw_status tw_session_input_reserve(struct tw_session *s, size_t want,
                                        uint8_t **ptr, size_t *room)
{
    enum tw_status st = TW_DONE;
    size_t missing;

    *ptr = NULL;
    *room = 0;
    if (want > INPUT_MAX) {
        return TW_E_ARGUMENT;
    }
    tw_lock_acquire(&s->lock);
    missing = tw_input_missing_lock_held(s);
    if (want < missing) {
        want = missing;
    }
    *ptr = tw_buffer_reserve(&s->input, want > 0 ? want : 1);
    if (*ptr == NULL) {
        st = TW_E_NOMEM;
    } else {
        *room = s->input.room - s->input.end;
        s->input_lent = true;
    }
    tw_lock_release(&s->lock);
    return st;
}

void tw_session_input_commit(struct tw_session *s, size_t n)
{
    tw_lock_acquire(&s->lock);
    s->input_lent = false;
    if (s->aborted) {
        tw_buffer_free(&s->input);
    } else {
        tw_buffer_commit(&s->input, n);
        if (n == 0) {
            tw_buffer_relax(&s->input);
        }
    }
    tw_lock_release(&s->lock);
}

enum tw_status tw_session_input(struct tw_session *s, const uint8_t *data,
                                size_t len)
{
    bool good = true;

    if (len > INPUT_MAX) {
        return TW_E_ARGUMENT;
    }
    tw_lock_acquire(&s->lock);
    if (!s->aborted) {
        good = tw_buffer_append(&s->input, data, len);
    }
    tw_lock_release(&s->lock);
    return good ? TW_DONE : TW_E_NOMEM;
}

void tw_session_input_eof(struct tw_session *s)
{
    tw_lock_acquire(&s->lock);
    s->eof = true;
    tw_lock_release(&s->lock);
}

void tw_session_set_ragged_eof(struct tw_session *s, bool ragged)
{
    tw_lock_acquire(&s->lock);
    s->ragged_eof = ragged;
    tw_lock_release(&s->lock);
}

size_t tw_session_missing(struct tw_session *s)
{
    size_t missing;

    tw_lock_acquire(&s->lock);
    missing = tw_input_missing_lock_held(s);
    tw_lock_release(&s->lock);
    return missing;
}

bool tw_session_at_rest(struct tw_session *s)
{
    bool rests;

    tw_lock_acquire(&s->lock);
    rests = tw_input_missing_lock_held(s) > 0
            && tw_buffer_length(&s->output) == 0;
    tw_lock_release(&s->lock);
    return rests;
}

size_t tw_session_input_take(struct tw_session *s, uint8_t *dst, size_t cap)
{
    size_t len;
    size_t n;
    uint8_t *at;

    tw_lock_acquire(&s->lock);
    at = tw_cipher_at_lock_held(s, &len);
    n = len < cap ? len : cap;
    if (n > 0) {
        memcpy(dst, at, n);
        if (s->plain_len > 0 && !s->input_lent) {
            /* the plaintext in front stays where it is */
            memmove(at, at + n, len - n);
            s->input.end -= n;
            s->tried = 0;
            s->need = 0;
        } else {
            tw_cipher_consume_lock_held(s, n);
        }
        tw_input_relax_lock_held(s);
    }
    tw_lock_release(&s->lock);
    return n;
}

size_t tw_session_input_length(struct tw_session *s)
{
    size_t len;

    tw_lock_acquire(&s->lock);
    (void)tw_cipher_at_lock_held(s, &len);
    tw_lock_release(&s->lock);
    return len;
}

size_t tw_session_output(struct tw_session *s, const uint8_t **ptr)
{
    size_t len;

    tw_lock_acquire(&s->lock);
    len = tw_buffer_length(&s->output);
    if (ptr != NULL) {
        *ptr = len > 0 ? tw_buffer_head(&s->output) : NULL;
        s->output_lent = len > 0;
    }
    tw_lock_release(&s->lock);
    return len;
}

void tw_session_output_consume(struct tw_session *s, size_t n)
{
    tw_lock_acquire(&s->lock);
    s->output_lent = false;
    tw_buffer_free(&s->retired);
    tw_buffer_consume(&s->output, n);
    tw_buffer_relax(&s->output);
    tw_count_set(&s->has_output, tw_buffer_length(&s->output) > 0);
    tw_lock_release(&s->lock);
}

bool tw_session_has_output(struct tw_session *s)
{
    return tw_count_glance(&s->has_output) != 0;
}

size_t tw_session_pending(struct tw_session *s)
{
    size_t n;

    tw_lock_acquire(&s->lock);
    n = s->plain_len;
    tw_lock_release(&s->lock);
    return n;
}
