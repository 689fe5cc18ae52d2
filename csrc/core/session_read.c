/*
 * Reading: decrypting what is there, and what else records may hold.
 *
 * An engine that opens from one memory into another (provider.h, `open`)
 * decrypts straight into the reader's; elsewhere DecryptMessage works in
 * place, and the plaintext is copied out of the input. RENEGOTIATE is
 * Schannel's word for any handshake message after the first handshake:
 * tickets and KeyUpdates of TLS 1.3 too. It is answered by a step, and only
 * where that step wants more does a renegotiation go on, during which
 * nothing is sealed. Records that bring no data are counted: a peer cannot
 * keep us busy with them for ever.
 */
#include "core/session_internal.h"

#include <string.h>

#define EMPTY_MAX 64u /* records without data in a row: a flood */
#define HANDSHAKES_MAX 256u /* post-handshake messages without data */
#define ANSWERS_MAX (64u * 1024u) /* output beside what writing leaves */

/* Nothing more can be decrypted from what is there. */
static enum tw_status dry_lock_held(struct tw_session *s)
{
    if (!s->eof) {
        return TW_WANT_READ;
    }
    if (s->ragged_eof) {
        s->read_ended = true;
        return TW_END;
    }
    (void)tw_error_set(&s->error, TW_E_TRUNCATED, 0,
                       "the connection ended without close_notify: data "
                       "may be missing");
    return tw_session_failed_lock_held(s);
}

/* The certificate of a renegotiation must be the one that was judged. */
static bool same_remote_lock_held(struct tw_session *s)
{
    struct tw_error ignored;
    struct tw_cert *cert = NULL;
    const uint8_t *a = NULL;
    const uint8_t *b = NULL;
    size_t a_len = 0;
    size_t b_len = 0;
    enum tw_status st;
    bool same;

    tw_error_clear(&ignored);
    st = s->provider->remote_cert(&s->ctx, &cert, &ignored);
    if (st != TW_DONE) {
        /* known to be none at all: a change, if there was one before */
        return st != TW_E_NOT_FOUND || s->remote == NULL;
    }
    if (s->remote == NULL) {
        s->provider->cert_free(cert);
        return false;
    }
    s->provider->cert_der(s->remote, &a, &a_len);
    s->provider->cert_der(cert, &b, &b_len);
    same = a_len == b_len && a_len > 0 && memcmp(a, b, a_len) == 0;
    s->provider->cert_free(cert);
    return same;
}

/*
 * In TLS 1.2 a peer that asked for a renegotiation may go on sending data
 * until it has our ClientHello, and the record type is in the clear: such
 * a record is for DecryptMessage, and what stands before it is all that a
 * step may have. (In 1.3 every record says DATA.)
 */
static size_t before_data_lock_held(struct tw_session *s)
{
    size_t len;
    size_t n = 0;
    const uint8_t *at = tw_cipher_at_lock_held(s, &len);

    if (s->facts == NULL || s->facts->protocol != TW_TLS1_2) {
        return len;
    }
    while (n < len && at[n] != TW_RECORD_DATA) {
        size_t record = tw_record_length(at + n, len - n);

        if (record == 0 || record > len - n) {
            return len;
        }
        n += record;
    }
    return n;
}

static bool data_ahead_lock_held(struct tw_session *s)
{
    size_t len;

    (void)tw_cipher_at_lock_held(s, &len);
    return len > 0 && before_data_lock_held(s) == 0;
}

/*
 * A step after RENEGOTIATE, or of the renegotiation that came of it; with
 * the ciphertext at hand up to data, or with none. TW_DONE: go on reading.
 */
static enum tw_status answer_lock_held(struct tw_session *s)
{
    struct tw_step step;
    size_t all;
    uint8_t *at = tw_cipher_at_lock_held(s, &all);
    size_t len = before_data_lock_held(s);
    bool real = s->renegotiating;

    step = tw_step_run_lock_held(s, len > 0 ? at : NULL, len);
    if (step.status == SEC_I_INCOMPLETE_CREDENTIALS && !s->use_supplied
        && s->role == TW_CLIENT) {
        /* the same input once more, without a pause: what may be chosen
           was chosen in the first handshake */
        s->use_supplied = true;
        step = tw_step_run_lock_held(s, len > 0 ? at : NULL, len);
    }
    switch (step.status) {
    case SEC_E_OK:
        s->renegotiating = false;
        break;
    case SEC_I_CONTINUE_NEEDED:
    case SEC_E_INCOMPLETE_MESSAGE:
        s->renegotiating = true;
        break;
    case SEC_I_INCOMPLETE_CREDENTIALS:
        return tw_engine_failed_lock_held(s, SEC_E_INCOMPLETE_CREDENTIALS);
    case SEC_I_CONTEXT_EXPIRED:
        s->renegotiating = false;
        s->read_ended = true;
        break;
    default:
        return tw_engine_failed_lock_held(
            s, step.status < 0 ? step.status : SEC_E_INTERNAL_ERROR);
    }
    if (step.consumed > 0) {
        tw_cipher_consume_lock_held(s, step.consumed);
    } else if (s->renegotiating) {
        s->tried = len > 0 ? all : 0;
        if (len == 0) {
            s->need = 0;
        }
    }
    if ((real || s->renegotiating) && !same_remote_lock_held(s)) {
        return tw_peer_broke_lock_held(s, SEC_E_ILLEGAL_MESSAGE,
                                       TW_ALERT_ILLEGAL_PARAMETER,
                                       "the peer's certificate changed in a "
                                       "renegotiation");
    }
    if (!tw_held_release_lock_held(s)) {
        return tw_session_nomem_lock_held(s);
    }
    if (real && !s->renegotiating && !s->read_ended) {
        enum tw_status st = tw_session_query_sizes_lock_held(s);

        if (st == TW_DONE && s->close_later) {
            s->close_later = false;
            (void)tw_session_shutdown_lock_held(s, NULL);
        }
        return st;
    }
    return TW_DONE;
}

bool tw_plain_find(const SecBuffer *b, uint8_t *at, size_t len,
                   struct tw_plain *found)
{
    size_t i;

    memset(found, 0, sizeof(*found));
    for (i = 0; i < 4; i++) {
        if (b[i].BufferType == SECBUFFER_DATA && found->data == NULL) {
            found->data = b[i].pvBuffer;
            found->n = b[i].cbBuffer;
        } else if (b[i].BufferType == SECBUFFER_EXTRA) {
            found->extra = b[i].cbBuffer;
        }
    }
    if (found->extra > len) {
        return false;
    }
    if (found->n == 0 || found->data == NULL) {
        found->data = NULL;
        found->n = 0;
        return true;
    }
    len -= found->extra;
    /* not in place: no such engine is known */
    return found->data >= at && found->data <= at + len
           && found->n <= len - (size_t)(found->data - at);
}

/* Keeps it as what is read next; at[0..len) is the ciphertext at hand. */
static void place_plain_lock_held(struct tw_session *s,
                                  const struct tw_plain *found,
                                  const uint8_t *at, size_t len)
{
    size_t offset;

    len -= found->extra;
    if (found->data == NULL) {
        tw_cipher_consume_lock_held(s, len);
        return;
    }
    offset = (size_t)(found->data - at);
    tw_cipher_consume_lock_held(s, offset);
    s->plain_len = found->n;
    s->plain_skip = len - offset - found->n;
    s->tried = 0;
    s->need = 0;
}

SECURITY_STATUS tw_engine_decrypt_lock_held(struct tw_session *s,
                                            SecBuffer *b, uint8_t *at,
                                            size_t len)
{
    SecBufferDesc desc = {SECBUFFER_VERSION, 4, b};
    size_t i;

    tw_sec_buffer_set(&b[0], SECBUFFER_DATA, at, len);
    for (i = 1; i < 4; i++) {
        tw_sec_buffer_set(&b[i], SECBUFFER_EMPTY, NULL, 0);
    }
    return s->table->DecryptMessage(&s->ctx, &desc, 0, NULL);
}

bool tw_is_reading(SECURITY_STATUS status)
{
    return status == SEC_E_OK || status == SEC_I_RENEGOTIATE
           || status == SEC_I_CONTEXT_EXPIRED;
}

/* What a decrypted record without data counts for. */
static enum tw_status count_record_lock_held(struct tw_session *s, bool data)
{
    if (data) {
        s->empty = 0;
        s->handshakes = 0;
        return TW_DONE;
    }
    s->empty++;
    if (s->empty > EMPTY_MAX) {
        return tw_peer_broke_lock_held(s, SEC_E_ILLEGAL_MESSAGE,
                                       TW_ALERT_UNEXPECTED_MESSAGE,
                                       "the peer floods the connection with "
                                       "empty records");
    }
    return TW_DONE;
}

enum tw_status tw_session_decrypted_lock_held(struct tw_session *s,
                                              SECURITY_STATUS status,
                                              bool data)
{
    if (status == SEC_I_CONTEXT_EXPIRED) {
        s->read_ended = true;
        return TW_DONE;
    }
    if (status == SEC_E_OK) {
        return count_record_lock_held(s, data);
    }
    s->handshakes = data ? 0 : s->handshakes + 1;
    if (s->handshakes > HANDSHAKES_MAX) {
        return tw_peer_broke_lock_held(s, SEC_E_ILLEGAL_MESSAGE,
                                       TW_ALERT_UNEXPECTED_MESSAGE,
                                       "the peer floods the connection with "
                                       "handshake messages");
    }
    if (tw_buffer_length(&s->output) > TW_OUTPUT_LIMIT + ANSWERS_MAX) {
        return tw_peer_broke_lock_held(s, SEC_E_ILLEGAL_MESSAGE,
                                       TW_ALERT_UNEXPECTED_MESSAGE,
                                       "the peer asks for answers and takes "
                                       "none of them");
    }
    return answer_lock_held(s);
}

/*
 * Decrypts the next record(s), with no plaintext waiting. TW_DONE:
 * something was done, perhaps without plaintext; go on.
 */
static enum tw_status decrypt_lock_held(struct tw_session *s)
{
    SecBuffer b[4];
    SECURITY_STATUS status;
    enum tw_record_fault fault;
    struct tw_plain found;
    size_t len;
    size_t i;
    uint8_t *at = tw_cipher_at_lock_held(s, &len);

    fault = len > 0 ? tw_record_check(at, len) : TW_RECORD_OK;
    if (fault != TW_RECORD_OK) {
        return tw_peer_not_tls_lock_held(s, fault);
    }
    if (len <= s->tried || tw_record_missing(at, len) > 0) {
        return dry_lock_held(s);
    }
    /* The engine writes where the record lies, or, should it fail, who knows
       where. */
    tw_buffer_stain(&s->input, at + tw_record_length(at, len));
    status = tw_engine_decrypt_lock_held(s, b, at, len);
    if (status == SEC_E_INCOMPLETE_MESSAGE) {
        size_t hint = 0;
        for (i = 0; i < 4; i++) {
            if (b[i].BufferType == SECBUFFER_MISSING) {
                hint = b[i].cbBuffer;
            }
        }
        tw_input_note_missing_lock_held(s, hint);
        return dry_lock_held(s);
    }
    if (!tw_is_reading(status)) {
        tw_buffer_stain(&s->input, at + len);
        return tw_engine_failed_lock_held(
            s, status < 0 ? status : SEC_E_INTERNAL_ERROR);
    }
    if (!tw_plain_find(b, at, len, &found)) {
        tw_buffer_stain(&s->input, at + len);
        return tw_engine_failed_lock_held(s, SEC_E_INTERNAL_ERROR);
    }
    tw_buffer_stain(&s->input, at + len - found.extra);
    place_plain_lock_held(s, &found, at, len);
    return tw_session_decrypted_lock_held(s, status, s->plain_len > 0);
}

/*
 * Decrypts straight into dst, with no plaintext waiting, what ciphertext is
 * there and fits; *n bytes. TW_DONE with *n 0: nothing of that kind was
 * there (*did false), or it had no data (*did true).
 */
static enum tw_status decrypt_into_lock_held(struct tw_session *s,
                                             uint8_t *dst, size_t cap,
                                             size_t *n, bool *did)
{
    SECURITY_STATUS status;
    size_t used = 0;
    size_t len;
    const uint8_t *at = tw_cipher_at_lock_held(s, &len);

    *n = 0;
    *did = false;
    if (s->indirect || s->provider->open == NULL || s->state != TW_OPEN
        || s->renegotiating || s->read_ended || len <= s->tried
        || tw_record_check(at, len) != TW_RECORD_OK
        || tw_record_missing(at, len) > 0) {
        return TW_DONE;
    }
    status = s->provider->open(&s->ctx, at, len, dst, cap, &used, n);
    if (status == SEC_E_UNSUPPORTED_FUNCTION) {
        s->indirect = true;
        return TW_DONE;
    }
    *did = used > 0 || status != SEC_E_OK;
    tw_cipher_consume_lock_held(s, used);
    if (!tw_is_reading(status)) {
        return tw_engine_failed_lock_held(
            s, status < 0 ? status : SEC_E_INTERNAL_ERROR);
    }
    return *did ? tw_session_decrypted_lock_held(s, status, *n > 0) : TW_DONE;
}

/* One advance of the reading side, with no plaintext waiting. */
static enum tw_status receive_lock_held(struct tw_session *s)
{
    size_t len;

    if (s->state == TW_FAILED) {
        return s->error.status;
    }
    if (s->read_ended) {
        return TW_END;
    }
    if (!s->renegotiating || data_ahead_lock_held(s)) {
        return decrypt_lock_held(s);
    }
    (void)tw_cipher_at_lock_held(s, &len);
    return len <= s->tried ? dry_lock_held(s) : answer_lock_held(s);
}

enum tw_status tw_session_renegotiate_lock_held(struct tw_session *s)
{
    while (s->renegotiating && s->plain_len == 0) {
        enum tw_status st = receive_lock_held(s);

        if (st == TW_END) {
            s->renegotiating = false; /* the peer will not go on with it */
            break;
        }
        if (st != TW_DONE) {
            return st;
        }
    }
    return TW_DONE;
}

enum tw_status tw_session_read_lock_held(struct tw_session *s, uint8_t *dst,
                                         size_t cap, size_t *n)
{
    enum tw_status st = TW_DONE;
    size_t part;
    bool did;

    while (*n < cap) {
        if (s->plain_len == 0) {
            st = decrypt_into_lock_held(s, dst + *n, cap - *n, &part, &did);
            *n += part;
            if (st != TW_DONE) {
                break;
            }
            if (did) {
                continue;
            }
        }
        if (s->plain_len > 0) {
            part = cap - *n < s->plain_len ? cap - *n : s->plain_len;
            memcpy(dst + *n, tw_buffer_head(&s->input), part);
            tw_plain_consume_lock_held(s, part);
            *n += part;
            continue;
        }
        st = receive_lock_held(s);
        if (st != TW_DONE && s->plain_len == 0) {
            break;
        }
        /* an error behind plaintext waits until that was read */
    }
    return *n > 0 ? TW_DONE : st;
}

enum tw_status tw_session_read(struct tw_session *s, uint8_t *dst,
                               size_t cap, size_t *n, struct tw_error *err)
{
    enum tw_status st;

    *n = 0;
    tw_lock_acquire(&s->lock);
    if (s->state == TW_INIT || s->state == TW_NEGOTIATING) {
        st = tw_refuse_call(err, TW_E_STATE,
                            "the TLS negotiation is not finished");
        goto done;
    }
    st = tw_session_read_lock_held(s, dst, cap, n);
    st = tw_session_report_lock_held(s, st, err);
    tw_input_relax_lock_held(s);
done:
    tw_lock_release(&s->lock);
    return st;
}

bool tw_session_look(struct tw_session *s)
{
    enum tw_status st = TW_DONE;
    bool found;

    tw_lock_acquire(&s->lock);
    if (s->state == TW_INIT || s->state == TW_NEGOTIATING) {
        found = tw_input_missing_lock_held(s) == 0;
    } else {
        while (s->plain_len == 0 && st == TW_DONE) {
            st = receive_lock_held(s);
        }
        found = s->plain_len > 0 || st != TW_WANT_READ;
        tw_input_relax_lock_held(s);
    }
    tw_lock_release(&s->lock);
    return found;
}
