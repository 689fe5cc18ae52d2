/*
 * How a session fails: the error that stays, and the alert for the peer.
 *
 * The first error counts (tw_error_set sees to that) and every later call
 * returns it. Before it does, the peer is told why: by the engine's own
 * token, by an alert that the engine is asked for, or, as long as there
 * are no keys, by one in the clear. An alert that the peer sent is no
 * failure of ours and is not answered.
 */
#include "core/session_internal.h"

#include <string.h>

enum tw_status tw_session_failed_lock_held(struct tw_session *s)
{
    s->state = TW_FAILED;
    s->pause = TW_PAUSE_NONE;
    s->poke = false;
    s->renegotiating = false;
    tw_buffer_free(&s->held);
    return s->error.status;
}

enum tw_status tw_session_nomem_lock_held(struct tw_session *s)
{
    (void)tw_error_set(&s->error, TW_E_NOMEM,
                       (int32_t)SEC_E_INSUFFICIENT_MEMORY, NULL);
    return tw_session_failed_lock_held(s);
}

enum tw_status tw_session_report_lock_held(struct tw_session *s,
                                           enum tw_status st,
                                           struct tw_error *err)
{
    if (st < 0 && err != NULL && s->error.status < 0) {
        *err = s->error;
    }
    return st;
}

enum tw_status tw_refuse_call(struct tw_error *err,
                              enum tw_status status, const char *why)
{
    tw_error_clear(err);
    return tw_error_set(err, status, 0, "%s", why);
}

void tw_alert_plain_lock_held(struct tw_session *s, int alert)
{
    uint8_t record[7] = {TW_RECORD_ALERT, 3, 3, 0, 2, 2, 0};

    record[6] = (uint8_t)alert;
    if (tw_output_append_lock_held(s, record, sizeof(record))) {
        s->error.alert_sent = (int16_t)alert;
    }
}

/* The description of an alert record without keys; -1 for other bytes. */
static int alert_in(const uint8_t *data, size_t len)
{
    return len == 7 && data[0] == TW_RECORD_ALERT && data[3] == 0
                   && data[4] == 2 && data[5] <= 2
               ? data[6]
               : -1;
}

int tw_alert_told_lock_held(struct tw_session *s, const uint8_t *data,
                            size_t len, int meant)
{
    int alert = alert_in(data, len);

    if (alert < 0 && s->provider->alert_sent != NULL) {
        alert = s->provider->alert_sent(&s->ctx);
    }
    return alert >= 0 ? alert : meant;
}

/*
 * Tells the peer why: the engine's alert, made from `alert` by
 * ApplyControlToken and a step, or one without keys during the first
 * handshake. Best effort; whatever the engine gives is sent.
 */
void tw_alert_send_lock_held(struct tw_session *s, int alert)
{
    SCHANNEL_ALERT_TOKEN token;
    SecBuffer buffer;
    SecBufferDesc desc = {SECBUFFER_VERSION, 1, NULL};
    bool sent = false;
    int told;

    desc.pBuffers = &buffer;
    tw_buffer_free(&s->held);
    if (s->has_ctx && !s->dead) {
        memset(&token, 0, sizeof(token));
        token.dwTokenType = SCHANNEL_ALERT;
        token.dwAlertType = TLS1_ALERT_FATAL;
        token.dwAlertNumber = (ULONG)alert;
        tw_sec_buffer_set(&buffer, SECBUFFER_TOKEN, &token, sizeof(token));
        if (s->table->ApplyControlToken(&s->ctx, &desc) >= 0) {
            (void)tw_step_run_lock_held(s, NULL, 0);
            sent = tw_buffer_length(&s->held) > 0;
        }
        s->dead = true;
    }
    if (sent) {
        told = tw_alert_told_lock_held(s, tw_buffer_head(&s->held),
                                       tw_buffer_length(&s->held), alert);
        if (tw_held_release_lock_held(s)) {
            s->error.alert_sent = (int16_t)told;
        }
    } else if (s->state != TW_OPEN) {
        tw_alert_plain_lock_held(s, alert);
    }
}

/* The fatal alert that the peer sent, or -1. */
static int fatal_alert_lock_held(struct tw_session *s)
{
    int alert = s->has_ctx ? s->provider->alert_received(&s->ctx) : -1;

    return alert > 0 && alert != TW_ALERT_USER_CANCELED
                   && alert != TW_ALERT_NO_RENEGOTIATION
               ? alert
               : -1;
}

/* An alert that came without keys and still lies in the input: close_notify,
   or a fatal one; -1 for anything else. Not every engine tells which. */
static int alert_ahead_lock_held(struct tw_session *s)
{
    size_t len;
    const uint8_t *at = tw_cipher_at_lock_held(s, &len);
    int alert = len >= 7 && s->state == TW_NEGOTIATING ? alert_in(at, 7) : -1;

    return alert == 0 || (alert > 0 && at[5] == 2) ? alert : -1;
}

enum tw_status tw_negotiation_closed_lock_held(struct tw_session *s)
{
    (void)tw_held_release_lock_held(s);
    (void)tw_error_set(&s->error, TW_E_NEGOTIATE_EOF,
                       (int32_t)SEC_I_CONTEXT_EXPIRED,
                       "the peer closed the connection during the TLS "
                       "negotiation");
    return tw_session_failed_lock_held(s);
}

enum tw_status tw_engine_failed_lock_held(struct tw_session *s,
                                          SECURITY_STATUS status)
{
    int received = fatal_alert_lock_held(s);
    const char *name;
    int sent;

    if (status == SEC_E_INSUFFICIENT_MEMORY) {
        return tw_session_nomem_lock_held(s);
    }
    if (received < 0) {
        received = alert_ahead_lock_held(s);
    }
    if (received == 0) {
        return tw_negotiation_closed_lock_held(s);
    }
    if (received > 0) {
        name = tw_alert_name(received);
        s->error.alert_received = (int16_t)received;
        (void)tw_error_set(&s->error, TW_E_ALERT, (int32_t)status,
                           "the peer sent the alert %s (%d)",
                           name != NULL ? name : "unknown", received);
        (void)tw_held_release_lock_held(s);
        return tw_session_failed_lock_held(s);
    }
    (void)tw_error_set(&s->error, TW_E_TLS, (int32_t)status, "%s",
                       tw_code_text((int32_t)status));
    if (tw_buffer_length(&s->held) > 0) {
        sent = tw_alert_told_lock_held(s, tw_buffer_head(&s->held),
                                       tw_buffer_length(&s->held), -1);
        if (tw_held_release_lock_held(s) && sent >= 0) {
            s->error.alert_sent = (int16_t)sent;
        }
    } else {
        tw_alert_send_lock_held(s, tw_alert_for_code((int32_t)status));
    }
    return tw_session_failed_lock_held(s);
}

enum tw_status tw_peer_broke_lock_held(struct tw_session *s,
                                       SECURITY_STATUS code, int alert,
                                       const char *what)
{
    (void)tw_error_set(&s->error, TW_E_TLS, (int32_t)code, "%s", what);
    tw_alert_send_lock_held(s, alert);
    return tw_session_failed_lock_held(s);
}

/* The ciphertext at hand does not begin like a TLS record. Bytes of a
   known other protocol get no alert: nobody there would read it. */
enum tw_status tw_peer_not_tls_lock_held(struct tw_session *s,
                                         enum tw_record_fault fault)
{
    size_t len;
    const uint8_t *at = tw_cipher_at_lock_held(s, &len);
    const char *looks = tw_record_looks_like(at, len);

    if (fault == TW_RECORD_TOO_LONG) {
        return tw_peer_broke_lock_held(s, SEC_E_INVALID_TOKEN,
                                       TW_ALERT_RECORD_OVERFLOW,
                                       "the peer sent a TLS record that is "
                                       "too long");
    }
    if (s->seen_record) {
        return tw_peer_broke_lock_held(s, SEC_E_INVALID_TOKEN,
                                       TW_ALERT_UNEXPECTED_MESSAGE,
                                       "the peer sent something that is no "
                                       "TLS record");
    }
    if (looks == NULL) {
        return tw_peer_broke_lock_held(s, SEC_E_INVALID_TOKEN,
                                       TW_ALERT_UNEXPECTED_MESSAGE,
                                       "the peer's answer is not TLS; check "
                                       "that the port speaks TLS");
    }
    if (strcmp(looks, "plain text") == 0) {
        (void)tw_error_set(&s->error, TW_E_TLS,
                           (int32_t)SEC_E_INVALID_TOKEN,
                           "the server answered in plain text; check that "
                           "the port speaks TLS");
    } else {
        (void)tw_error_set(&s->error, TW_E_TLS,
                           (int32_t)SEC_E_INVALID_TOKEN,
                           "the server answered in plain text: %s", looks);
    }
    return tw_session_failed_lock_held(s);
}
