/*
 * Writing: sealing into the output or the caller's memory, and its end.
 *
 * Output is bounded (TW_OUTPUT_LIMIT): who writes more than the peer takes
 * is told so before memory is. Room for all of a call's records is taken
 * at once. close_notify is a step behind ApplyControlToken; while keys
 * change in a renegotiation it waits for the end of that.
 */
#include "core/session_internal.h"

#include <string.h>

/*
 * Seals one record at `at`, where cbHeader + len + cbTrailer bytes are
 * free. The parts may come back shorter: they are closed up.
 */
static SECURITY_STATUS seal_lock_held(struct tw_session *s, uint8_t *at,
                                      const uint8_t *src, size_t len,
                                      size_t *sealed)
{
    SecBuffer b[4];
    SecBufferDesc desc = {SECBUFFER_VERSION, 4, NULL};
    SECURITY_STATUS status;
    size_t header = s->sizes.cbHeader;
    size_t room[3];
    size_t i;

    room[0] = header;
    room[1] = len;
    room[2] = s->sizes.cbTrailer;
    memcpy(at + header, src, len);
    tw_sec_buffer_set(&b[0], SECBUFFER_STREAM_HEADER, at, header);
    tw_sec_buffer_set(&b[1], SECBUFFER_DATA, at + header, len);
    tw_sec_buffer_set(&b[2], SECBUFFER_STREAM_TRAILER, at + header + len,
                      room[2]);
    tw_sec_buffer_set(&b[3], SECBUFFER_EMPTY, NULL, 0);
    desc.pBuffers = b;
    status = s->table->EncryptMessage(&s->ctx, 0, &desc, 0);
    if (status != SEC_E_OK) {
        tw_wipe(at + header, len);
        return status;
    }
    *sealed = 0;
    for (i = 0; i < 3; i++) {
        if (b[i].cbBuffer > room[i]) {
            return SEC_E_INTERNAL_ERROR;
        }
        if (at + *sealed != (uint8_t *)b[i].pvBuffer) {
            memmove(at + *sealed, b[i].pvBuffer, b[i].cbBuffer);
        }
        *sealed += b[i].cbBuffer;
    }
    return SEC_E_OK;
}

/* Room for what the call will seal, taken in one piece. */
static bool prepare_output_lock_held(struct tw_session *s, size_t len)
{
    size_t pending = tw_buffer_length(&s->output);
    size_t each = s->sizes.cbMaximumMessage;
    size_t records;
    size_t room;

    if (pending >= TW_OUTPUT_LIMIT) {
        return true;
    }
    len = len < TW_OUTPUT_LIMIT - pending ? len : TW_OUTPUT_LIMIT - pending;
    records = (len + each - 1) / each;
    room = len + records * ((size_t)s->sizes.cbHeader + s->sizes.cbTrailer)
           + TW_UPDATE_ROOM;
    return tw_output_reserve_lock_held(s, room) != NULL;
}

/* What of len goes into the next record, and what stands around it. */
static size_t next_part_lock_held(const struct tw_session *s, size_t len,
                                  size_t *around)
{
    *around = (size_t)s->sizes.cbHeader + s->sizes.cbTrailer;
    return len < s->sizes.cbMaximumMessage ? len : s->sizes.cbMaximumMessage;
}

/*
 * By the engine's own way from one memory to another, or record by record:
 * EncryptMessage works in place, so a record's data is copied to where it
 * shall be, and that is the only copy.
 */
enum tw_status tw_session_seal_into_lock_held(struct tw_session *s,
                                              const uint8_t *src, size_t len,
                                              uint8_t *dst, size_t room,
                                              size_t *taken, size_t *made)
{
    SECURITY_STATUS status = SEC_E_UNSUPPORTED_FUNCTION;

    *taken = 0;
    *made = 0;
    if (!s->indirect && s->provider->seal != NULL) {
        status = s->provider->seal(&s->ctx, src, len, dst, room, taken,
                                   made);
        s->indirect = status == SEC_E_UNSUPPORTED_FUNCTION;
    }
    if (status == SEC_E_UNSUPPORTED_FUNCTION) {
        status = SEC_E_OK;
        while (*taken < len && status == SEC_E_OK) {
            size_t around;
            size_t part = next_part_lock_held(s, len - *taken, &around);
            size_t sealed = 0;

            if (room - *made < part + around) {
                break;
            }
            status = seal_lock_held(s, dst + *made, src + *taken, part,
                                    &sealed);
            if (status == SEC_E_OK) {
                *taken += part;
                *made += sealed;
            }
        }
    }
    return status == SEC_E_OK ? TW_DONE
                              : tw_engine_failed_lock_held(
                                    s, status < 0 ? status
                                                  : SEC_E_INTERNAL_ERROR);
}

static enum tw_status write_lock_held(struct tw_session *s,
                                      const uint8_t *src, size_t len,
                                      size_t *n)
{
    enum tw_status st;
    uint8_t *at;
    size_t pending;
    size_t around;
    size_t least;
    size_t room;
    size_t taken;
    size_t sealed;

    if (len > 0 && !prepare_output_lock_held(s, len)) {
        return tw_session_nomem_lock_held(s);
    }
    while (*n < len) {
        least = next_part_lock_held(s, len - *n, &around) + around;
        pending = tw_buffer_length(&s->output);
        if (pending > 0 && pending + least > TW_OUTPUT_LIMIT) {
            return TW_WANT_WRITE;
        }
        least += TW_UPDATE_ROOM;
        at = tw_output_reserve_lock_held(s, least);
        if (at == NULL) {
            return tw_session_nomem_lock_held(s);
        }
        room = s->output.room - s->output.end;
        if (room > TW_OUTPUT_LIMIT - pending) {
            room = TW_OUTPUT_LIMIT - pending;
        }
        if (room < least) {
            room = least;
        }
        st = tw_session_seal_into_lock_held(s, src + *n, len - *n, at, room,
                                            &taken, &sealed);
        tw_output_commit_lock_held(s, sealed);
        *n += taken;
        if (st != TW_DONE) {
            return st;
        }
        if (taken == 0) {
            /* there was room: the engine is at its end */
            return tw_engine_failed_lock_held(s, SEC_E_INTERNAL_ERROR);
        }
    }
    return TW_DONE;
}

enum tw_status tw_session_may_write_lock_held(struct tw_session *s,
                                              struct tw_error *err)
{
    if (s->state == TW_FAILED) {
        return tw_session_report_lock_held(s, s->error.status, err);
    }
    if (s->state != TW_OPEN) {
        return tw_refuse_call(err, TW_E_STATE,
                              "the TLS negotiation is not finished");
    }
    return s->write_ended ? tw_refuse_call(err, TW_E_CLOSED,
                                           "the channel is closed for writing")
                          : TW_DONE;
}

enum tw_status tw_session_write(struct tw_session *s, const uint8_t *src,
                                size_t len, size_t *n, struct tw_error *err)
{
    enum tw_status st;

    *n = 0;
    tw_lock_acquire(&s->lock);
    st = tw_session_may_write_lock_held(s, err);
    if (st == TW_DONE && s->renegotiating) {
        st = TW_WANT_READ; /* nothing else is encrypted */
    } else if (st == TW_DONE) {
        st = write_lock_held(s, src, len, n);
        st = tw_session_report_lock_held(s, st, err);
    }
    tw_lock_release(&s->lock);
    return st;
}

/* --- endings --- */

enum tw_status tw_session_shutdown_lock_held(struct tw_session *s,
                                             struct tw_error *err)
{
    ULONG kind = SCHANNEL_SHUTDOWN;
    SecBuffer buffer;
    SecBufferDesc desc = {SECBUFFER_VERSION, 1, NULL};
    SECURITY_STATUS status;
    struct tw_step step;

    desc.pBuffers = &buffer;
    tw_sec_buffer_set(&buffer, SECBUFFER_TOKEN, &kind, sizeof(kind));
    s->write_ended = true;
    if (s->renegotiating) {
        /* keys change, and nothing else is encrypted */
        s->close_later = true;
        return TW_DONE;
    }
    status = s->table->ApplyControlToken(&s->ctx, &desc);
    if (status >= 0) {
        /* nothing is decrypted between the two */
        step = tw_step_run_lock_held(s, NULL, 0);
        status = step.status;
        if (!tw_held_release_lock_held(s)) {
            status = SEC_E_INSUFFICIENT_MEMORY;
        }
    }
    if (status < 0) {
        tw_error_clear(err);
        return tw_error_set(err, TW_E_TLS, (int32_t)status, "%s",
                            tw_code_text((int32_t)status));
    }
    return TW_DONE;
}

enum tw_status tw_session_shutdown(struct tw_session *s,
                                   struct tw_error *err)
{
    enum tw_status st = TW_DONE;

    tw_lock_acquire(&s->lock);
    if (s->write_ended) {
        goto done;
    }
    if (s->state != TW_OPEN) {
        st = tw_refuse_call(err, s->aborted ? TW_E_CLOSED : TW_E_STATE,
                            "there is no open TLS connection to close");
        goto done;
    }
    st = tw_session_shutdown_lock_held(s, err);
done:
    tw_lock_release(&s->lock);
    return st;
}

bool tw_session_close_waits(struct tw_session *s)
{
    bool waits;

    tw_lock_acquire(&s->lock);
    waits = s->close_later && s->state == TW_OPEN;
    tw_lock_release(&s->lock);
    return waits;
}
