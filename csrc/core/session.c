/*
 * The state machine of one TLS channel, over any SecurityFunctionTableW.
 *
 * Theory of operation. One mutex guards everything. `input` holds, from its
 * first unread byte on, three regions:
 *
 *     plain_len bytes   plaintext, decrypted in place, not yet read
 *     plain_skip bytes  what is left of its record(s), of no more use
 *     the rest          ciphertext, for DecryptMessage or the next step
 *
 * so that nothing is moved per record and plaintext always comes before
 * whatever follows it, errors included. `output` holds what goes to the
 * peer. The tokens of a step go to `held` first and are released into
 * `output` only once nothing needs a verdict before: that is the gate.
 *
 * Transitions (state, what happens, then):
 *
 *   INIT         first handshake call                    NEGOTIATING
 *   NEGOTIATING  ClientHello read, ask_credentials       pause CREDENTIALS
 *     "          step, certificate known or done         pause VERDICT
 *     "          step INCOMPLETE_CREDENTIALS             pause CERTIFICATE,
 *                   or the same input again with USE_SUPPLIED_CREDS, once
 *     "          step CONTINUE_NEEDED                    NEGOTIATING
 *     "          step INCOMPLETE_MESSAGE                 WANT_READ
 *     "          step OK, sizes and attributes good      OPEN
 *   pause V.     accepted, engine was suspended          step, even empty
 *     "          accepted, else                          held status counts
 *     "          refused                                 alert, FAILED
 *   OPEN         Decrypt OK                              OPEN
 *     "          Decrypt RENEGOTIATE, step OK            OPEN
 *     "          the same, step CONTINUE or INCOMPLETE   OPEN, renegotiating
 *     "          Decrypt CONTEXT_EXPIRED                 OPEN, read_ended
 *     "          tw_session_shutdown                     OPEN, write_ended
 *   renegot.     step OK, same certificate               OPEN
 *   any          error (an alert is tried), abort        FAILED, for good
 *
 * A step never follows SEC_E_OK of its own accord: Schannel would take it
 * for a wish to authenticate again. It does only after RENEGOTIATE and
 * after ApplyControlToken.
 *
 * Memory lent out (input_reserve, output) is not moved or freed until it
 * comes back, so that a reader in recv() and a writer in send() need not
 * hold the mutex: `input_lent`, `output_lent`.
 */
#include "core/session.h"

#include <stdlib.h>
#include <string.h>

#include "core/atomic.h"
#include "core/buffer.h"
#include "core/lock.h"
#include "core/record.h"

#define INPUT_MAX (1024u * 1024u) /* of one reserve */
#define EMPTY_MAX 64u     /* records without data in a row: a flood */
#define HANDSHAKES_MAX 256u /* post-handshake messages without data */
#define ANSWERS_MAX (64u * 1024u) /* output beside what writing leaves */
#define ALERT_ROOM 512u
#define UPDATE_ROOM 64u   /* for a KeyUpdate that an engine puts between */
#define HEADER_MAX 64u    /* of a record, as far as one is set aside */
#define SNI_MAX 255u /* RFC 1035, 2.3.4 */

#define ALERT_UNEXPECTED_MESSAGE 10
#define ALERT_RECORD_OVERFLOW 22
#define ALERT_DECODE_ERROR 50
#define ALERT_USER_CANCELED 90
#define ALERT_NO_RENEGOTIATION 100

enum pause { PAUSE_NONE, PAUSE_VERDICT, PAUSE_CREDENTIALS,
             PAUSE_CERTIFICATE };

struct tw_session {
    struct tw_lock lock;
    const struct tw_provider *provider;
    const SecurityFunctionTableW *table;
    struct tw_credentials *credentials; /* a reference; may be NULL */
    CredHandle *handle;     /* of credentials; NULL until chosen */
    CtxtHandle ctx;         /* valid while has_ctx */
    SEC_WCHAR *target;      /* UTF-16; NULL: no SNI */
    uint8_t *alpn;          /* SEC_APPLICATION_PROTOCOLS; may be NULL */
    ULONG alpn_len;         /* its exact length */
    struct tw_hello *hello; /* server, once the ClientHello is read */
    struct tw_cert *remote; /* the peer's certificate, once known */
    struct tw_facts *facts; /* as they were at OPEN; facts_len bytes */
    size_t facts_len;
    struct tw_buffer input; /* see above */
    size_t plain_len;
    size_t plain_skip;
    size_t tried;  /* ciphertext length that was not enough; 0: none */
    size_t need;   /* ciphertext length the engine hopes for; 0: none */
    struct tw_buffer output;
    struct tw_count has_output; /* is there any? Read without the lock */
    struct tw_buffer retired; /* output's old memory, still lent out */
    struct tw_buffer held;    /* tokens of the last step, not released */
    SECURITY_STATUS held_status; /* of that step */
    SecPkgContext_StreamSizes sizes; /* valid once OPEN */
    ULONG features;      /* attributes of the context */
    unsigned int empty;  /* records without data in a row */
    unsigned int handshakes; /* the same of RENEGOTIATE */
    struct tw_error error;   /* the first one; stays */
    enum tw_role role;
    enum tw_state state;
    enum pause pause;
    bool has_ctx;
    bool request_cert, ask_verdict, ask_credentials, ask_certificate;
    bool ragged_eof;
    bool eof;            /* the peer's stream ended */
    bool seen_record;    /* the peer's first record was TLS */
    bool judged;         /* the verdict was given */
    bool poke;           /* step next without waiting for input */
    bool asked_cert;     /* the certificate pause is over */
    bool use_supplied;   /* ISC_REQ_USE_SUPPLIED_CREDS was added */
    bool renegotiating;
    bool read_ended, write_ended;
    bool close_later;    /* close_notify is due after the renegotiation */
    bool aborted;
    bool dead;           /* the context takes no further calls */
    bool input_lent, output_lent;
    bool indirect;       /* the engine has no seal and open for this one */
    char *sni;           /* owned; NULL if none */
};

/* What one call of ISC or ASC came to. */
struct step {
    SECURITY_STATUS status;
    size_t consumed; /* bytes of its input */
};

/* --- errors --- */

/* s->error is set: no way back. Returns its status. */
static enum tw_status failed_lock_held(struct tw_session *s)
{
    s->state = TW_FAILED;
    s->pause = PAUSE_NONE;
    s->poke = false;
    s->renegotiating = false;
    tw_buffer_free(&s->held);
    return s->error.status;
}

static enum tw_status fail_nomem_lock_held(struct tw_session *s)
{
    (void)tw_error_set(&s->error, TW_E_NOMEM,
                       (int32_t)SEC_E_INSUFFICIENT_MEMORY, NULL);
    return failed_lock_held(s);
}

/* Hands the standing error out together with an error status. */
static enum tw_status report_lock_held(struct tw_session *s,
                                       enum tw_status st,
                                       struct tw_error *err)
{
    if (st < 0 && err != NULL && s->error.status < 0) {
        *err = s->error;
    }
    return st;
}

/* An error of this call only; the session lives on. */
static enum tw_status refuse_call(struct tw_error *err,
                                  enum tw_status status, const char *why)
{
    tw_error_clear(err);
    return tw_error_set(err, status, 0, "%s", why);
}

/* --- input: ciphertext behind the plaintext --- */

static uint8_t *cipher_at_lock_held(struct tw_session *s, size_t *len)
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

static void cipher_consume_lock_held(struct tw_session *s, size_t n)
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

static void plain_consume_lock_held(struct tw_session *s, size_t n)
{
    s->plain_len -= n;
    if (s->plain_len == 0) {
        n += s->plain_skip;
        s->plain_skip = 0;
    }
    input_drop_lock_held(s, n);
}

static void input_relax_lock_held(struct tw_session *s)
{
    if (!s->input_lent) {
        tw_buffer_relax(&s->input);
    }
}

/* The bytes at hand were not enough; what SECBUFFER_MISSING said is a hint
   and may be 0. */
static void note_missing_lock_held(struct tw_session *s, size_t hint)
{
    size_t len;
    const uint8_t *at = cipher_at_lock_held(s, &len);
    size_t missing = tw_record_missing(at, len);

    s->tried = len;
    if (missing == 0) {
        missing = 1;
    }
    s->need = len + (hint > 0 && hint <= INPUT_MAX ? hint : missing);
}

/* --- output --- */

/* As tw_buffer_reserve; memory that is lent out is left where it is and
   freed when it comes back. */
static uint8_t *output_reserve_lock_held(struct tw_session *s, size_t n)
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

static void output_commit_lock_held(struct tw_session *s, size_t n)
{
    tw_buffer_commit(&s->output, n);
    tw_count_set(&s->has_output, tw_buffer_length(&s->output) > 0);
}

static bool output_append_lock_held(struct tw_session *s, const void *data,
                                    size_t n)
{
    uint8_t *at;

    if (n == 0) {
        return true;
    }
    at = output_reserve_lock_held(s, n);
    if (at == NULL) {
        return false;
    }
    memcpy(at, data, n);
    output_commit_lock_held(s, n);
    return true;
}

/* Opens the gate: the held tokens become output. */
static bool release_lock_held(struct tw_session *s)
{
    bool good = output_append_lock_held(s, tw_buffer_head(&s->held),
                                        tw_buffer_length(&s->held));

    tw_buffer_free(&s->held);
    return good;
}

/* A fatal alert in a record without keys: RFC 8446, 6. */
static void plain_alert_lock_held(struct tw_session *s, int alert)
{
    uint8_t record[7] = {TW_RECORD_ALERT, 3, 3, 0, 2, 2, 0};

    record[6] = (uint8_t)alert;
    if (output_append_lock_held(s, record, sizeof(record))) {
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

/* --- one call of ISC or ASC --- */

static ULONG request_flags_lock_held(const struct tw_session *s)
{
    if (s->role == TW_CLIENT) {
        return ISC_REQ_SEQUENCE_DETECT | ISC_REQ_REPLAY_DETECT
               | ISC_REQ_CONFIDENTIALITY | ISC_REQ_EXTENDED_ERROR
               | ISC_REQ_ALLOCATE_MEMORY | ISC_REQ_STREAM
               | ISC_REQ_MANUAL_CRED_VALIDATION
               | (s->use_supplied ? (ULONG)ISC_REQ_USE_SUPPLIED_CREDS : 0u);
    }
    return ASC_REQ_SEQUENCE_DETECT | ASC_REQ_REPLAY_DETECT
           | ASC_REQ_CONFIDENTIALITY | ASC_REQ_EXTENDED_ERROR
           | ASC_REQ_ALLOCATE_MEMORY | ASC_REQ_STREAM
           | (s->request_cert ? (ULONG)ASC_REQ_MUTUAL_AUTH : 0u);
}

static void set_buffer(SecBuffer *b, ULONG type, void *data, size_t len)
{
    b->BufferType = type;
    b->pvBuffer = data;
    b->cbBuffer = (ULONG)len;
}

/* Copies what the step gave into `held` and frees it all. The
   ALERT buffer counts only where a failed step gave no token. */
static bool take_tokens_lock_held(struct tw_session *s, SecBuffer *out,
                                  size_t count, SECURITY_STATUS status)
{
    bool good = true;
    bool any = false;
    size_t i;

    for (i = 0; i < count; i++) {
        if (out[i].pvBuffer == NULL || out[i].cbBuffer == 0) {
            continue;
        }
        if (out[i].BufferType == SECBUFFER_TOKEN
            || (out[i].BufferType == SECBUFFER_ALERT && status < 0 && !any
                && *(const uint8_t *)out[i].pvBuffer == TW_RECORD_ALERT)) {
            good = tw_buffer_append(&s->held, out[i].pvBuffer,
                                    out[i].cbBuffer)
                   && good;
            any = true;
        }
    }
    for (i = 0; i < count; i++) {
        if (out[i].pvBuffer != NULL) {
            (void)s->table->FreeContextBuffer(out[i].pvBuffer);
        }
    }
    return good;
}

static void free_tokens_lock_held(struct tw_session *s, SecBufferDesc *out)
{
    ULONG i;

    for (i = 0; i < out->cBuffers; i++) {
        if (out->pBuffers[i].pvBuffer != NULL) {
            (void)s->table->FreeContextBuffer(out->pBuffers[i].pvBuffer);
            out->pBuffers[i].pvBuffer = NULL;
            out->pBuffers[i].cbBuffer = 0;
        }
    }
}

static SECURITY_STATUS call_engine_lock_held(struct tw_session *s,
                                             SecBufferDesc *in,
                                             SecBufferDesc *out)
{
    SECURITY_STATUS status;
    CtxtHandle fresh;
    CtxtHandle *old = s->has_ctx ? &s->ctx : NULL;
    CtxtHandle *made = s->has_ctx ? &s->ctx : &fresh;
    ULONG flags = request_flags_lock_held(s);
    ULONG attributes = 0;
    int64_t expiry = 0;
    void *when = &expiry; /* a TimeStamp where there is one */

    SecInvalidateHandle(&fresh);
    if (s->role == TW_CLIENT) {
        status = s->table->InitializeSecurityContextW(
            s->handle, old, s->target, flags, 0, SECURITY_NATIVE_DREP, in,
            0, made, out, &attributes, when);
    } else {
        status = s->table->AcceptSecurityContext(
            s->handle, old, in, flags, SECURITY_NATIVE_DREP, made, out,
            &attributes, when);
    }
    /* a context is there only after a success; Wine makes one before it
       looks at the input */
    if (!s->has_ctx && status < 0 && SecIsValidHandle(&fresh)) {
        (void)s->table->DeleteSecurityContext(&fresh);
    } else if (!s->has_ctx && status >= 0 && SecIsValidHandle(&fresh)) {
        s->ctx = fresh;
        s->has_ctx = true;
    } else if (!s->has_ctx && status >= 0) {
        status = SEC_E_INTERNAL_ERROR;
    }
    if (status >= 0 && attributes != 0) {
        s->features = attributes;
    }
    return status;
}

/* Whose windows ask for the PIN of these credentials' key. */
static SECURITY_STATUS set_window_lock_held(struct tw_session *s)
{
    void *window = tw_credentials_window(s->credentials);
    SECURITY_STATUS status = SEC_E_OK;

    if (window != NULL && s->has_ctx && s->provider->set_window != NULL) {
        status = s->provider->set_window(&s->ctx, window);
    }
    if (status < 0) {
        (void)tw_error_set(&s->error, TW_E_UNSUPPORTED, (int32_t)status,
                           "the TLS engine takes no parent window here");
    }
    return status;
}

/*
 * A client's first step, and what the new context must know. Where only the
 * context can be told not to offer resumption and the engine says that this
 * came too late, the step is made again, with a context that knows.
 */
static SECURITY_STATUS begin_lock_held(struct tw_session *s,
                                       SecBufferDesc *in, SecBufferDesc *out)
{
    SECURITY_STATUS status = call_engine_lock_held(s, in, out);
    SECURITY_STATUS told = SEC_E_OK;

    if (!s->has_ctx || s->role != TW_CLIENT) {
        return status;
    }
    if (s->provider->forbid_resumption != NULL
        && !tw_credentials_resumes(s->credentials)) {
        told = s->provider->forbid_resumption(&s->ctx);
    }
    if (told == SEC_I_CONTINUE_NEEDED) {
        (void)s->table->DeleteSecurityContext(&s->ctx);
        s->has_ctx = false;
        free_tokens_lock_held(s, out);
        status = call_engine_lock_held(s, in, out);
        told = SEC_E_OK;
    }
    if (told == SEC_E_OK && status >= 0) {
        told = set_window_lock_held(s);
    }
    return told == SEC_E_OK ? status : told;
}

/*
 * One step with len bytes of input; in NULL: none at all. What it gave for
 * the peer lies in `held`.
 */
static struct step run_step_lock_held(struct tw_session *s, uint8_t *in,
                                      size_t len)
{
    struct step step = {SEC_E_INTERNAL_ERROR, 0};
    SecBuffer in_buffers[3];
    SecBuffer out_buffers[3];
    SecBufferDesc in_desc = {SECBUFFER_VERSION, 0, NULL};
    SecBufferDesc out_desc = {SECBUFFER_VERSION, 3, NULL};
    size_t n = 0;
    size_t hint = 0;
    size_t extra = 0;
    size_t i;

    in_desc.pBuffers = in_buffers;
    out_desc.pBuffers = out_buffers;
    if (in != NULL) {
        set_buffer(&in_buffers[n++], SECBUFFER_TOKEN, in, len);
        set_buffer(&in_buffers[n++], SECBUFFER_EMPTY, NULL, 0);
    }
    if (!s->has_ctx && s->alpn != NULL) {
        set_buffer(&in_buffers[n++], SECBUFFER_APPLICATION_PROTOCOLS,
                   s->alpn, s->alpn_len);
    }
    in_desc.cBuffers = (ULONG)n;
    set_buffer(&out_buffers[0], SECBUFFER_TOKEN, NULL, 0);
    set_buffer(&out_buffers[1], SECBUFFER_ALERT, NULL, 0);
    set_buffer(&out_buffers[2], SECBUFFER_EMPTY, NULL, 0);

    step.status = s->has_ctx
                      ? call_engine_lock_held(s, n > 0 ? &in_desc : NULL,
                                              &out_desc)
                      : begin_lock_held(s, n > 0 ? &in_desc : NULL,
                                        &out_desc);
    if (!take_tokens_lock_held(s, out_buffers, 3, step.status)) {
        step.status = SEC_E_INSUFFICIENT_MEMORY;
    }
    for (i = 1; i < n; i++) {
        if (in_buffers[i].BufferType == SECBUFFER_EXTRA) {
            extra = in_buffers[i].cbBuffer;
        } else if (in_buffers[i].BufferType == SECBUFFER_MISSING) {
            hint = in_buffers[i].cbBuffer;
        }
    }
    if (step.status == SEC_E_INCOMPLETE_MESSAGE) {
        note_missing_lock_held(s, hint);
    } else if (step.status >= 0
               && step.status != SEC_I_INCOMPLETE_CREDENTIALS) {
        /* EXTRA is found by its length from the end */
        if (extra > len) {
            step.status = SEC_E_INTERNAL_ERROR;
        } else {
            step.consumed = len - extra;
        }
    }
    return step;
}

/* --- alerts, and failures of the engine --- */

/* Which alert these bytes for the peer are: in the clear, or as the engine
   tells, or else as was meant. */
static int told_lock_held(struct tw_session *s, const uint8_t *data,
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
static void send_alert_lock_held(struct tw_session *s, int alert)
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
        set_buffer(&buffer, SECBUFFER_TOKEN, &token, sizeof(token));
        if (s->table->ApplyControlToken(&s->ctx, &desc) >= 0) {
            (void)run_step_lock_held(s, NULL, 0);
            sent = tw_buffer_length(&s->held) > 0;
        }
        s->dead = true;
    }
    if (sent) {
        told = told_lock_held(s, tw_buffer_head(&s->held),
                              tw_buffer_length(&s->held), alert);
        if (release_lock_held(s)) {
            s->error.alert_sent = (int16_t)told;
        }
    } else if (s->state != TW_OPEN) {
        plain_alert_lock_held(s, alert);
    }
}

/* The fatal alert that the peer sent, or -1. */
static int fatal_alert_lock_held(struct tw_session *s)
{
    int alert = s->has_ctx ? s->provider->alert_received(&s->ctx) : -1;

    return alert > 0 && alert != ALERT_USER_CANCELED
                   && alert != ALERT_NO_RENEGOTIATION
               ? alert
               : -1;
}

/* An alert that came without keys and still lies in the input: close_notify,
   or a fatal one; -1 for anything else. Not every engine tells which. */
static int alert_ahead_lock_held(struct tw_session *s)
{
    size_t len;
    const uint8_t *at = cipher_at_lock_held(s, &len);
    int alert = len >= 7 && s->state == TW_NEGOTIATING ? alert_in(at, 7) : -1;

    return alert == 0 || (alert > 0 && at[5] == 2) ? alert : -1;
}

static enum tw_status negotiation_closed_lock_held(struct tw_session *s)
{
    (void)release_lock_held(s);
    (void)tw_error_set(&s->error, TW_E_NEGOTIATE_EOF,
                       (int32_t)SEC_I_CONTEXT_EXPIRED,
                       "the peer closed the connection during the TLS "
                       "negotiation");
    return failed_lock_held(s);
}

/* A call of the engine failed; `held` may have its alert. */
static enum tw_status engine_failed_lock_held(struct tw_session *s,
                                              SECURITY_STATUS status)
{
    int received = fatal_alert_lock_held(s);
    const char *name;
    int sent;

    if (status == SEC_E_INSUFFICIENT_MEMORY) {
        return fail_nomem_lock_held(s);
    }
    if (received < 0) {
        received = alert_ahead_lock_held(s);
    }
    if (received == 0) {
        return negotiation_closed_lock_held(s);
    }
    if (received > 0) {
        name = tw_alert_name(received);
        s->error.alert_received = (int16_t)received;
        (void)tw_error_set(&s->error, TW_E_ALERT, (int32_t)status,
                           "the peer sent the alert %s (%d)",
                           name != NULL ? name : "unknown", received);
        (void)release_lock_held(s);
        return failed_lock_held(s);
    }
    (void)tw_error_set(&s->error, TW_E_TLS, (int32_t)status, "%s",
                       tw_code_text((int32_t)status));
    if (tw_buffer_length(&s->held) > 0) {
        sent = told_lock_held(s, tw_buffer_head(&s->held),
                              tw_buffer_length(&s->held), -1);
        if (release_lock_held(s) && sent >= 0) {
            s->error.alert_sent = (int16_t)sent;
        }
    } else {
        send_alert_lock_held(s, tw_alert_for_code((int32_t)status));
    }
    return failed_lock_held(s);
}

/* An error of the peer's that we found ourselves. */
static enum tw_status peer_broke_lock_held(struct tw_session *s,
                                           SECURITY_STATUS code, int alert,
                                           const char *what)
{
    (void)tw_error_set(&s->error, TW_E_TLS, (int32_t)code, "%s", what);
    send_alert_lock_held(s, alert);
    return failed_lock_held(s);
}

/* The ciphertext at hand does not begin like a TLS record. Bytes of a
   known other protocol get no alert: nobody there would read it. */
static enum tw_status not_tls_lock_held(struct tw_session *s,
                                        enum tw_record_fault fault)
{
    size_t len;
    const uint8_t *at = cipher_at_lock_held(s, &len);
    const char *looks = tw_record_looks_like(at, len);

    if (fault == TW_RECORD_TOO_LONG) {
        return peer_broke_lock_held(s, SEC_E_INVALID_TOKEN,
                                    ALERT_RECORD_OVERFLOW,
                                    "the peer sent a TLS record that is "
                                    "too long");
    }
    if (s->seen_record) {
        return peer_broke_lock_held(s, SEC_E_INVALID_TOKEN,
                                    ALERT_UNEXPECTED_MESSAGE,
                                    "the peer sent something that is no "
                                    "TLS record");
    }
    if (looks == NULL) {
        return peer_broke_lock_held(s, SEC_E_INVALID_TOKEN,
                                    ALERT_UNEXPECTED_MESSAGE,
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
    return failed_lock_held(s);
}

/* --- the first handshake --- */

static enum tw_status negotiation_eof_lock_held(struct tw_session *s)
{
    (void)tw_error_set(&s->error, TW_E_NEGOTIATE_EOF, 0,
                       "Unexpected EOF during TLS negotiation "
                       "(NEGOTIATING).");
    return failed_lock_held(s);
}

/* TW_DONE if a whole record is there that was not tried yet. */
static enum tw_status want_record_lock_held(struct tw_session *s)
{
    size_t len;
    const uint8_t *at = cipher_at_lock_held(s, &len);
    enum tw_record_fault fault = TW_RECORD_OK;

    if (len >= TW_RECORD_HEADER || (s->eof && len > 0)) {
        fault = tw_record_check(at, len);
    }
    if (fault != TW_RECORD_OK) {
        return not_tls_lock_held(s, fault);
    }
    if (len > s->tried && tw_record_missing(at, len) == 0) {
        return TW_DONE;
    }
    return s->eof ? negotiation_eof_lock_held(s) : TW_WANT_READ;
}

/* Records that the ClientHello was none, with the alert that fits. */
static enum tw_status bad_hello_lock_held(struct tw_session *s,
                                          const struct tw_error *why)
{
    size_t len;
    const uint8_t *at = cipher_at_lock_held(s, &len);
    enum tw_record_fault fault = tw_record_check(at, len);

    if (why->status != TW_E_FORMAT) {
        return fail_nomem_lock_held(s);
    }
    (void)tw_error_set(&s->error, TW_E_TLS, (int32_t)SEC_E_INVALID_TOKEN,
                       "%s", why->detail);
    if (fault == TW_RECORD_OK) {
        plain_alert_lock_held(s, at[0] == TW_RECORD_HANDSHAKE
                                     ? ALERT_DECODE_ERROR
                                     : ALERT_UNEXPECTED_MESSAGE);
    } else if (fault == TW_RECORD_TOO_LONG) {
        plain_alert_lock_held(s, ALERT_RECORD_OVERFLOW);
    } else if (tw_record_looks_like(at, len) == NULL) {
        plain_alert_lock_held(s, ALERT_UNEXPECTED_MESSAGE);
    }
    return failed_lock_held(s);
}

static enum tw_status choose_handle_lock_held(struct tw_session *s)
{
    s->handle = s->credentials == NULL
                    ? NULL
                    : tw_credentials_handle(
                          s->credentials, s->sni);
    if (s->handle == NULL) {
        (void)tw_error_set(&s->error, TW_E_TLS,
                           (int32_t)SEC_E_NO_CREDENTIALS, "%s",
                           tw_code_text((int32_t)SEC_E_NO_CREDENTIALS));
        plain_alert_lock_held(s, 80 /* internal_error */);
        return failed_lock_held(s);
    }
    return TW_DONE;
}

static char *copy_name(const char *name, size_t len)
{
    char *copy = malloc(len + 1);

    if (copy != NULL) {
        memcpy(copy, name, len);
        copy[len] = '\0';
    }
    return copy;
}

/* Server: reads the ClientHello, consumes nothing. */
static enum tw_status look_at_hello_lock_held(struct tw_session *s)
{
    struct tw_hello hello;
    struct tw_error why;
    enum tw_status st;
    size_t missing = 0;
    size_t len;
    const uint8_t *at = cipher_at_lock_held(s, &len);

    tw_error_clear(&why);
    st = tw_hello_parse(at, len, &hello, &missing, &why);
    if (st == TW_WANT_READ) {
        s->need = len + missing;
        return s->eof ? negotiation_eof_lock_held(s) : TW_WANT_READ;
    }
    if (st != TW_DONE) {
        return bad_hello_lock_held(s, &why);
    }
    s->hello = malloc(sizeof(*s->hello));
    if (s->hello == NULL) {
        return fail_nomem_lock_held(s);
    }
    *s->hello = hello;
    if (hello.sni[0] != '\0') {
        s->sni = copy_name(hello.sni, strlen(hello.sni));
        if (s->sni == NULL) {
            return fail_nomem_lock_held(s);
        }
    }
    s->need = 0;
    if (s->ask_credentials) {
        s->pause = PAUSE_CREDENTIALS;
        return TW_WANT_CREDENTIALS;
    }
    return choose_handle_lock_held(s);
}

/* The peer's certificate into s->remote. TW_WANT_READ: not known yet. */
static enum tw_status learn_remote_lock_held(struct tw_session *s)
{
    struct tw_error ignored;
    struct tw_cert *cert = NULL;
    enum tw_status st;

    if (s->remote != NULL) {
        return TW_DONE;
    }
    tw_error_clear(&ignored);
    st = s->provider->remote_cert(&s->ctx, &cert, &ignored);
    if (st == TW_DONE) {
        s->remote = cert;
    }
    return st;
}

/* provider->verdict with code 0, and what it means for the held step. */
static enum tw_status accept_lock_held(struct tw_session *s)
{
    uint8_t alert[ALERT_ROOM];
    size_t alert_len = sizeof(alert);
    SECURITY_STATUS status;

    s->judged = true;
    s->pause = PAUSE_NONE;
    status = s->provider->verdict(&s->ctx, SEC_E_OK, alert, &alert_len);
    if (status == SEC_I_CONTINUE_NEEDED) {
        /* the engine was suspended: wake it, with no input if need be */
        s->held_status = SEC_I_CONTINUE_NEEDED;
        s->poke = true;
        s->tried = 0;
        return TW_DONE;
    }
    if (status != SEC_E_OK) {
        return engine_failed_lock_held(s, status);
    }
    return TW_DONE;
}

/*
 * After each successful step: is the verdict due? TW_WANT_VERDICT then,
 * with the tokens held. Due as soon as it is known which certificate the
 * peer has, or that it has none, and at the latest when the handshake is
 * done.
 */
static enum tw_status gate_lock_held(struct tw_session *s)
{
    enum tw_status st;
    bool due = s->held_status == SEC_E_OK;

    if (s->judged
        || (s->role == TW_SERVER && !s->request_cert && !s->ask_verdict)) {
        return TW_DONE;
    }
    st = learn_remote_lock_held(s);
    if (!due && st != TW_DONE
        && (st != TW_E_NOT_FOUND || s->role == TW_CLIENT)) {
        return TW_DONE; /* servers have one: "none" comes too early */
    }
    if (s->ask_verdict) {
        s->pause = PAUSE_VERDICT;
        return TW_WANT_VERDICT;
    }
    return accept_lock_held(s);
}

static enum tw_status query_sizes_lock_held(struct tw_session *s)
{
    SECURITY_STATUS status;

    memset(&s->sizes, 0, sizeof(s->sizes));
    status = s->table->QueryContextAttributesW(
        &s->ctx, SECPKG_ATTR_STREAM_SIZES, &s->sizes);
    if (status == SEC_E_OK
        && (s->sizes.cbMaximumMessage == 0
            || s->sizes.cbMaximumMessage > TW_OUTPUT_LIMIT / 2
            || s->sizes.cbHeader > 4096 || s->sizes.cbTrailer > 4096)) {
        status = SEC_E_INTERNAL_ERROR;
    }
    return status == SEC_E_OK ? TW_DONE
                              : engine_failed_lock_held(s, status);
}

/* SEC_E_OK, and the verdict was given: OPEN. */
static enum tw_status open_lock_held(struct tw_session *s)
{
    const ULONG asked = s->role == TW_CLIENT
                            ? ISC_REQ_CONFIDENTIALITY | ISC_REQ_STREAM
                            : ASC_REQ_CONFIDENTIALITY | ASC_REQ_STREAM;
    struct tw_error ignored;
    struct tw_facts facts;

    if (query_sizes_lock_held(s) != TW_DONE) {
        return s->error.status;
    }
    if ((s->features & asked) != asked) {
        (void)tw_error_set(&s->error, TW_E_TLS,
                           (int32_t)SEC_E_UNSUPPORTED_FUNCTION,
                           "the TLS engine does not give the "
                           "confidentiality that was asked for");
        send_alert_lock_held(s, 80 /* internal_error */);
        return failed_lock_held(s);
    }
    /* ALPN reads empty after post-handshake steps on Schannel, and a
       certificate must have something to be compared with */
    (void)learn_remote_lock_held(s);
    tw_error_clear(&ignored);
    memset(&facts, 0, sizeof(facts));
    if (s->provider->facts(&s->ctx, &facts, &ignored) == TW_DONE) {
        /* as far as they go: the name of the protocol comes last */
        s->facts_len =
            offsetof(struct tw_facts, alpn) + strlen(facts.alpn) + 1;
        s->facts = malloc(s->facts_len);
        if (s->facts == NULL) {
            return fail_nomem_lock_held(s);
        }
        memcpy(s->facts, &facts, s->facts_len);
    }
    if (!s->ask_credentials) {
        free(s->hello); /* nobody was told to ask for it */
        s->hello = NULL;
    }
    s->state = TW_OPEN;
    s->tried = 0;
    s->need = 0;
    return TW_DONE;
}

/* INCOMPLETE_CREDENTIALS: ask once, try without once, then it is over. The
   input stays: the retry gets the same bytes. */
static enum tw_status credentials_lacking_lock_held(struct tw_session *s)
{
    if (s->ask_certificate && !s->asked_cert) {
        s->pause = PAUSE_CERTIFICATE;
        return TW_WANT_CERTIFICATE;
    }
    if (s->use_supplied) {
        return engine_failed_lock_held(s, SEC_E_INCOMPLETE_CREDENTIALS);
    }
    s->use_supplied = true;
    s->poke = true;
    s->tried = 0;
    return TW_DONE;
}

/* The gate is open: releases the held tokens and acts on the status of
   their step. */
static enum tw_status go_on_lock_held(struct tw_session *s)
{
    if (!release_lock_held(s)) {
        return fail_nomem_lock_held(s);
    }
    if (s->held_status == SEC_E_OK) {
        return open_lock_held(s);
    }
    if (s->held_status == SEC_I_INCOMPLETE_CREDENTIALS) {
        return credentials_lacking_lock_held(s);
    }
    return TW_DONE;
}

/* One step of the first handshake. TW_DONE: go on. */
static enum tw_status negotiate_lock_held(struct tw_session *s)
{
    struct step step;
    enum tw_status st;
    size_t len;
    uint8_t *at = cipher_at_lock_held(s, &len);

    if ((s->role == TW_CLIENT && !s->has_ctx)
        || (s->poke && tw_record_whole(at, len) == 0)) {
        at = NULL;
        len = 0;
    }
    s->poke = false;
    step = run_step_lock_held(s, at, len);
    switch (step.status) {
    case SEC_E_OK:
    case SEC_I_CONTINUE_NEEDED:
    case SEC_I_INCOMPLETE_CREDENTIALS:
        break;
    case SEC_E_INCOMPLETE_MESSAGE:
        if (!release_lock_held(s)) {
            return fail_nomem_lock_held(s);
        }
        return s->eof ? negotiation_eof_lock_held(s) : TW_WANT_READ;
    case SEC_I_CONTEXT_EXPIRED:
        return negotiation_closed_lock_held(s);
    default:
        return engine_failed_lock_held(
            s, step.status < 0 ? step.status : SEC_E_INTERNAL_ERROR);
    }
    if (step.consumed > 0) {
        s->seen_record = true;
        cipher_consume_lock_held(s, step.consumed);
    } else {
        s->tried = len; /* the same bytes again would change nothing */
    }
    s->held_status = step.status;
    st = gate_lock_held(s);
    return st == TW_DONE ? go_on_lock_held(s) : st;
}

static enum tw_status renegotiate_lock_held(struct tw_session *s);

static enum tw_status drive_lock_held(struct tw_session *s)
{
    enum tw_status st;

    for (;;) {
        if (s->state == TW_FAILED) {
            return s->error.status;
        }
        if (s->state == TW_OPEN) {
            return renegotiate_lock_held(s);
        }
        switch (s->pause) {
        case PAUSE_VERDICT:
            return TW_WANT_VERDICT;
        case PAUSE_CREDENTIALS:
            return TW_WANT_CREDENTIALS;
        case PAUSE_CERTIFICATE:
            return TW_WANT_CERTIFICATE;
        case PAUSE_NONE:
            break;
        }
        if (s->role == TW_CLIENT || tw_buffer_length(&s->input) > 0) {
            s->state = TW_NEGOTIATING; /* a server waits in INIT */
        }
        st = TW_DONE;
        if (s->role == TW_SERVER && s->hello == NULL) {
            st = look_at_hello_lock_held(s);
        } else if (!s->poke && (s->role == TW_SERVER || s->has_ctx)) {
            st = want_record_lock_held(s);
        }
        if (st == TW_DONE) {
            st = negotiate_lock_held(s);
        }
        if (st != TW_DONE) {
            return st;
        }
    }
}

enum tw_status tw_session_handshake(struct tw_session *s,
                                    struct tw_error *err)
{
    enum tw_status st;

    tw_lock_acquire(&s->lock);
    st = report_lock_held(s, drive_lock_held(s), err);
    if (st != TW_DONE) {
        input_relax_lock_held(s);
    }
    tw_lock_release(&s->lock);
    return st;
}

/* A TLS 1.3 server's Finished precedes the client's certificate, so that
   the peer expects records under keys (RFC 8446, 2). Everywhere else the
   token that would have switched to them is dropped. */
static bool has_new_keys_lock_held(struct tw_session *s)
{
    struct tw_facts facts;
    struct tw_error ignored;

    tw_error_clear(&ignored);
    return s->role == TW_SERVER && s->held_status == SEC_E_OK
           && s->provider->facts(&s->ctx, &facts, &ignored) == TW_DONE
           && facts.protocol == TW_TLS1_3;
}

/* The held token is dropped, the alert goes out in its place. */
static enum tw_status refuse_lock_held(struct tw_session *s, int32_t code,
                                       const char *detail)
{
    uint8_t alert[ALERT_ROOM];
    size_t len = sizeof(alert);
    int number = tw_alert_for_code(code);

    s->judged = true;
    tw_buffer_free(&s->held);
    (void)s->provider->verdict(&s->ctx, (SECURITY_STATUS)code, alert, &len);
    s->dead = true;
    (void)tw_error_set(&s->error, TW_E_REFUSED, code, "%s",
                       detail != NULL && detail[0] != '\0'
                           ? detail
                           : tw_code_text(code));
    if (len > 0 && len <= sizeof(alert)) {
        if (output_append_lock_held(s, alert, len)) {
            s->error.alert_sent =
                (int16_t)told_lock_held(s, alert, len, number);
        }
    } else if (has_new_keys_lock_held(s)) {
        s->dead = false;
        send_alert_lock_held(s, number);
    } else {
        plain_alert_lock_held(s, number);
    }
    return failed_lock_held(s);
}

enum tw_status tw_session_verdict(struct tw_session *s, int32_t code,
                                  const char *detail, struct tw_error *err)
{
    enum tw_status st;

    tw_lock_acquire(&s->lock);
    if (s->state == TW_FAILED) {
        st = s->error.status;
    } else if (s->pause != PAUSE_VERDICT) {
        st = refuse_call(err, TW_E_STATE, "no verdict is asked for now");
        goto done;
    } else if (code != 0) {
        st = refuse_lock_held(s, code, detail);
    } else {
        st = accept_lock_held(s);
        if (st == TW_DONE) {
            st = go_on_lock_held(s);
        }
        if (st > 0) {
            st = TW_DONE; /* a further pause; the next drive says so */
        }
    }
    st = report_lock_held(s, st, err);
done:
    tw_lock_release(&s->lock);
    return st;
}

/* Is this what the session can use? */
static bool suits_lock_held(const struct tw_session *s,
                            struct tw_credentials *c)
{
    return tw_credentials_provider(c) == s->provider
           && tw_credentials_role(c) == s->role;
}

static void replace_credentials_lock_held(struct tw_session *s,
                                          struct tw_credentials *c)
{
    struct tw_credentials *old = s->credentials;

    s->credentials = tw_credentials_ref(c);
    tw_credentials_free(old);
}

enum tw_status tw_session_set_credentials(struct tw_session *s,
                                          struct tw_credentials *c,
                                          struct tw_error *err)
{
    enum tw_status st;

    tw_lock_acquire(&s->lock);
    if (s->state == TW_FAILED) {
        st = s->error.status;
    } else if (s->pause != PAUSE_CREDENTIALS) {
        st = refuse_call(err, TW_E_STATE,
                         "no credentials are asked for now");
        goto done;
    } else if (c != NULL ? !suits_lock_held(s, c)
                         : s->credentials == NULL) {
        st = refuse_call(err, TW_E_ARGUMENT,
                         "server credentials of this engine are needed");
        goto done;
    } else {
        if (c != NULL) {
            replace_credentials_lock_held(s, c);
        }
        s->pause = PAUSE_NONE;
        st = choose_handle_lock_held(s);
    }
    st = report_lock_held(s, st, err);
done:
    tw_lock_release(&s->lock);
    return st;
}

enum tw_status tw_session_set_certificate(struct tw_session *s,
                                          struct tw_credentials *c,
                                          struct tw_error *err)
{
    SECURITY_STATUS told;
    enum tw_status st;

    tw_lock_acquire(&s->lock);
    if (s->state == TW_FAILED) {
        st = s->error.status;
    } else if (s->pause != PAUSE_CERTIFICATE) {
        st = refuse_call(err, TW_E_STATE,
                         "no certificate is asked for now");
        goto done;
    } else if (c != NULL && !suits_lock_held(s, c)) {
        st = refuse_call(err, TW_E_ARGUMENT,
                         "client credentials of this engine are needed");
        goto done;
    } else {
        s->pause = PAUSE_NONE;
        s->asked_cert = true;
        s->poke = true;
        s->tried = 0;
        st = TW_DONE;
        if (c != NULL) {
            replace_credentials_lock_held(s, c);
            st = choose_handle_lock_held(s);
            if (st == TW_DONE && (told = set_window_lock_held(s)) < 0) {
                st = engine_failed_lock_held(s, told);
            }
        } else {
            s->use_supplied = true;
        }
    }
    st = report_lock_held(s, st, err);
done:
    tw_lock_release(&s->lock);
    return st;
}

const struct tw_hello *tw_session_hello(struct tw_session *s)
{
    const struct tw_hello *hello;

    tw_lock_acquire(&s->lock);
    hello = s->ask_credentials ? s->hello : NULL; /* else it goes at OPEN */
    tw_lock_release(&s->lock);
    return hello;
}

/* --- reading --- */

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
    return failed_lock_held(s);
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
    const uint8_t *at = cipher_at_lock_held(s, &len);

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

    (void)cipher_at_lock_held(s, &len);
    return len > 0 && before_data_lock_held(s) == 0;
}

static enum tw_status shutdown_lock_held(struct tw_session *s,
                                         struct tw_error *err);

/*
 * A step after RENEGOTIATE, or of the renegotiation that came of it; with
 * the ciphertext at hand up to data, or with none. TW_DONE: go on reading.
 */
static enum tw_status answer_lock_held(struct tw_session *s)
{
    struct step step;
    size_t all;
    uint8_t *at = cipher_at_lock_held(s, &all);
    size_t len = before_data_lock_held(s);
    bool real = s->renegotiating;

    step = run_step_lock_held(s, len > 0 ? at : NULL, len);
    if (step.status == SEC_I_INCOMPLETE_CREDENTIALS && !s->use_supplied
        && s->role == TW_CLIENT) {
        /* the same input once more, without a pause: what may be chosen
           was chosen in the first handshake */
        s->use_supplied = true;
        step = run_step_lock_held(s, len > 0 ? at : NULL, len);
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
        return engine_failed_lock_held(s, SEC_E_INCOMPLETE_CREDENTIALS);
    case SEC_I_CONTEXT_EXPIRED:
        s->renegotiating = false;
        s->read_ended = true;
        break;
    default:
        return engine_failed_lock_held(
            s, step.status < 0 ? step.status : SEC_E_INTERNAL_ERROR);
    }
    if (step.consumed > 0) {
        cipher_consume_lock_held(s, step.consumed);
    } else if (s->renegotiating) {
        s->tried = len > 0 ? all : 0;
        if (len == 0) {
            s->need = 0;
        }
    }
    if ((real || s->renegotiating) && !same_remote_lock_held(s)) {
        return peer_broke_lock_held(s, SEC_E_ILLEGAL_MESSAGE, 47,
                                    "the peer's certificate changed in a "
                                    "renegotiation");
    }
    if (!release_lock_held(s)) {
        return fail_nomem_lock_held(s);
    }
    if (real && !s->renegotiating && !s->read_ended) {
        enum tw_status st = query_sizes_lock_held(s);

        if (st == TW_DONE && s->close_later) {
            s->close_later = false;
            (void)shutdown_lock_held(s, NULL);
        }
        return st;
    }
    return TW_DONE;
}

/* What DecryptMessage made of a record: n bytes of data, and how many of
   the bytes it was given are left over at their end. */
struct plain {
    uint8_t *data; /* where it lies; NULL: none */
    size_t n;
    size_t extra;
};

/* Sorts out the four buffers of DecryptMessage over at[0..len). */
static bool find_plain(const SecBuffer *b, uint8_t *at, size_t len,
                       struct plain *found)
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
                                  const struct plain *found,
                                  const uint8_t *at, size_t len)
{
    size_t offset;

    len -= found->extra;
    if (found->data == NULL) {
        cipher_consume_lock_held(s, len);
        return;
    }
    offset = (size_t)(found->data - at);
    cipher_consume_lock_held(s, offset);
    s->plain_len = found->n;
    s->plain_skip = len - offset - found->n;
    s->tried = 0;
    s->need = 0;
}

static SECURITY_STATUS decrypt_message_lock_held(struct tw_session *s,
                                                 SecBuffer *b, uint8_t *at,
                                                 size_t len)
{
    SecBufferDesc desc = {SECBUFFER_VERSION, 4, b};
    size_t i;

    set_buffer(&b[0], SECBUFFER_DATA, at, len);
    for (i = 1; i < 4; i++) {
        set_buffer(&b[i], SECBUFFER_EMPTY, NULL, 0);
    }
    return s->table->DecryptMessage(&s->ctx, &desc, 0, NULL);
}

/* A status of DecryptMessage after which reading goes on. */
static bool is_reading(SECURITY_STATUS status)
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
        return peer_broke_lock_held(s, SEC_E_ILLEGAL_MESSAGE,
                                    ALERT_UNEXPECTED_MESSAGE,
                                    "the peer floods the connection with "
                                    "empty records");
    }
    return TW_DONE;
}

/* Acts on the status of what was decrypted, with data or without. */
static enum tw_status decrypted_lock_held(struct tw_session *s,
                                          SECURITY_STATUS status, bool data)
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
        return peer_broke_lock_held(s, SEC_E_ILLEGAL_MESSAGE,
                                    ALERT_UNEXPECTED_MESSAGE,
                                    "the peer floods the connection with "
                                    "handshake messages");
    }
    if (tw_buffer_length(&s->output) > TW_OUTPUT_LIMIT + ANSWERS_MAX) {
        return peer_broke_lock_held(s, SEC_E_ILLEGAL_MESSAGE,
                                    ALERT_UNEXPECTED_MESSAGE,
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
    struct plain found;
    size_t len;
    size_t i;
    uint8_t *at = cipher_at_lock_held(s, &len);

    fault = len > 0 ? tw_record_check(at, len) : TW_RECORD_OK;
    if (fault != TW_RECORD_OK) {
        return not_tls_lock_held(s, fault);
    }
    if (len <= s->tried || tw_record_missing(at, len) > 0) {
        return dry_lock_held(s);
    }
    s->input.secret = true;
    status = decrypt_message_lock_held(s, b, at, len);
    if (status == SEC_E_INCOMPLETE_MESSAGE) {
        size_t hint = 0;
        for (i = 0; i < 4; i++) {
            if (b[i].BufferType == SECBUFFER_MISSING) {
                hint = b[i].cbBuffer;
            }
        }
        note_missing_lock_held(s, hint);
        return dry_lock_held(s);
    }
    if (!is_reading(status)) {
        return engine_failed_lock_held(
            s, status < 0 ? status : SEC_E_INTERNAL_ERROR);
    }
    if (!find_plain(b, at, len, &found)) {
        return engine_failed_lock_held(s, SEC_E_INTERNAL_ERROR);
    }
    place_plain_lock_held(s, &found, at, len);
    return decrypted_lock_held(s, status, s->plain_len > 0);
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
    const uint8_t *at = cipher_at_lock_held(s, &len);

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
    cipher_consume_lock_held(s, used);
    if (!is_reading(status)) {
        return engine_failed_lock_held(
            s, status < 0 ? status : SEC_E_INTERNAL_ERROR);
    }
    return *did ? decrypted_lock_held(s, status, *n > 0) : TW_DONE;
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
    (void)cipher_at_lock_held(s, &len);
    return len <= s->tried ? dry_lock_held(s) : answer_lock_held(s);
}

/*
 * Brings a renegotiation on that a writer has to wait for, as a read would.
 * Plaintext in its way is the reader's: TW_DONE, and nothing has changed.
 */
static enum tw_status renegotiate_lock_held(struct tw_session *s)
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

static enum tw_status read_lock_held(struct tw_session *s, uint8_t *dst,
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
            plain_consume_lock_held(s, part);
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
        st = refuse_call(err, TW_E_STATE,
                         "the TLS negotiation is not finished");
        goto done;
    }
    st = report_lock_held(s, read_lock_held(s, dst, cap, n), err);
    input_relax_lock_held(s);
done:
    tw_lock_release(&s->lock);
    return st;
}

size_t tw_session_pending(struct tw_session *s)
{
    size_t n;

    tw_lock_acquire(&s->lock);
    n = s->plain_len;
    tw_lock_release(&s->lock);
    return n;
}

/* --- writing --- */

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
    set_buffer(&b[0], SECBUFFER_STREAM_HEADER, at, header);
    set_buffer(&b[1], SECBUFFER_DATA, at + header, len);
    set_buffer(&b[2], SECBUFFER_STREAM_TRAILER, at + header + len, room[2]);
    set_buffer(&b[3], SECBUFFER_EMPTY, NULL, 0);
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
           + UPDATE_ROOM;
    return output_reserve_lock_held(s, room) != NULL;
}

/* What of len goes into the next record, and what stands around it. */
static size_t next_part_lock_held(const struct tw_session *s, size_t len,
                                  size_t *around)
{
    *around = (size_t)s->sizes.cbHeader + s->sizes.cbTrailer;
    return len < s->sizes.cbMaximumMessage ? len : s->sizes.cbMaximumMessage;
}

/*
 * Seals straight from src to dst[0..room), as many records as fit: *taken
 * bytes became *made. By the engine's own way from one memory to another,
 * or record by record: EncryptMessage works in place, so a record's data is
 * copied to where it shall be, and that is the only copy.
 */
static enum tw_status seal_into_lock_held(struct tw_session *s,
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
                              : engine_failed_lock_held(
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
        return fail_nomem_lock_held(s);
    }
    while (*n < len) {
        least = next_part_lock_held(s, len - *n, &around) + around;
        pending = tw_buffer_length(&s->output);
        if (pending > 0 && pending + least > TW_OUTPUT_LIMIT) {
            return TW_WANT_WRITE;
        }
        least += UPDATE_ROOM;
        at = output_reserve_lock_held(s, least);
        if (at == NULL) {
            return fail_nomem_lock_held(s);
        }
        room = s->output.room - s->output.end;
        if (room > TW_OUTPUT_LIMIT - pending) {
            room = TW_OUTPUT_LIMIT - pending;
        }
        if (room < least) {
            room = least;
        }
        st = seal_into_lock_held(s, src + *n, len - *n, at, room, &taken,
                                 &sealed);
        output_commit_lock_held(s, sealed);
        *n += taken;
        if (st != TW_DONE) {
            return st;
        }
        if (taken == 0) {
            /* there was room: the engine is at its end */
            return engine_failed_lock_held(s, SEC_E_INTERNAL_ERROR);
        }
    }
    return TW_DONE;
}

bool tw_session_sealed_exactly(struct tw_session *s)
{
    bool exactly;

    tw_lock_acquire(&s->lock);
    exactly = s->sizes.cbBlockSize <= 1;
    tw_lock_release(&s->lock);
    return exactly;
}

/* May bytes be sealed now? */
static enum tw_status may_write_lock_held(struct tw_session *s,
                                          struct tw_error *err)
{
    if (s->state == TW_FAILED) {
        return report_lock_held(s, s->error.status, err);
    }
    if (s->state != TW_OPEN) {
        return refuse_call(err, TW_E_STATE,
                           "the TLS negotiation is not finished");
    }
    return s->write_ended ? refuse_call(err, TW_E_CLOSED,
                                        "the channel is closed for writing")
                          : TW_DONE;
}

enum tw_status tw_session_write(struct tw_session *s, const uint8_t *src,
                                size_t len, size_t *n, struct tw_error *err)
{
    enum tw_status st;

    *n = 0;
    tw_lock_acquire(&s->lock);
    st = may_write_lock_held(s, err);
    if (st == TW_DONE) {
        st = s->renegotiating
                 ? TW_WANT_READ /* nothing else is encrypted */
                 : report_lock_held(s, write_lock_held(s, src, len, n),
                                    err);
    }
    tw_lock_release(&s->lock);
    return st;
}

/* --- both, from memory to memory --- */

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
    size += tw_buffer_length(&s->output) + (size > 0 ? UPDATE_ROOM : 0);
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
    st = may_write_lock_held(s, err);
    if (st == TW_DONE && !s->renegotiating
        && tw_buffer_length(&s->output) == 0) {
        st = report_lock_held(
            s, seal_into_lock_held(s, src, len, dst, room, taken, made),
            err);
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
    at = cipher_at_lock_held(s, &inside);
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
    if (!is_reading(status)) {
        return engine_failed_lock_held(
            s, status < 0 ? status : SEC_E_INTERNAL_ERROR);
    }
    return *used > 0 ? decrypted_lock_held(s, status, *n > 0) : TW_DONE;
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
    struct plain found;
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
    status = decrypt_message_lock_held(s, b, at, record);
    good = is_reading(status) && find_plain(b, at, record, &found)
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
        return engine_failed_lock_held(
            s, status < 0 ? status : SEC_E_INTERNAL_ERROR);
    }
    *n = found.n;
    return decrypted_lock_held(s, status, found.n > 0);
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
        return fail_nomem_lock_held(s);
    }
    *used = record;
    st = read_lock_held(s, dst, cap, n);
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
    input_relax_lock_held(s);
    st = *n > 0 ? TW_DONE : report_lock_held(s, st, err);
    tw_lock_release(&s->lock);
    return st;
}

/* --- endings --- */

static enum tw_status shutdown_lock_held(struct tw_session *s,
                                         struct tw_error *err)
{
    ULONG kind = SCHANNEL_SHUTDOWN;
    SecBuffer buffer;
    SecBufferDesc desc = {SECBUFFER_VERSION, 1, NULL};
    SECURITY_STATUS status;
    struct step step;

    desc.pBuffers = &buffer;
    set_buffer(&buffer, SECBUFFER_TOKEN, &kind, sizeof(kind));
    s->write_ended = true;
    if (s->renegotiating) {
        /* keys change, and nothing else is encrypted */
        s->close_later = true;
        return TW_DONE;
    }
    status = s->table->ApplyControlToken(&s->ctx, &desc);
    if (status >= 0) {
        /* nothing is decrypted between the two */
        step = run_step_lock_held(s, NULL, 0);
        status = step.status;
        if (!release_lock_held(s)) {
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
        st = refuse_call(err, s->aborted ? TW_E_CLOSED : TW_E_STATE,
                         "there is no open TLS connection to close");
        goto done;
    }
    st = shutdown_lock_held(s, err);
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

void tw_session_abort(struct tw_session *s)
{
    tw_lock_acquire(&s->lock);
    (void)tw_error_set(&s->error, TW_E_CLOSED, 0, "the channel is closed");
    (void)failed_lock_held(s);
    s->aborted = true;
    s->plain_len = 0;
    s->plain_skip = 0;
    if (!s->input_lent) {
        tw_buffer_free(&s->input);
    }
    tw_lock_release(&s->lock);
}

/* --- bytes of the wire --- */

static size_t missing_lock_held(struct tw_session *s)
{
    size_t missing = 0;
    size_t len;
    const uint8_t *at = cipher_at_lock_held(s, &len);

    if (s->state != TW_FAILED && s->pause == PAUSE_NONE && !s->eof
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
    missing = missing_lock_held(s);
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
    missing = missing_lock_held(s);
    tw_lock_release(&s->lock);
    return missing;
}

size_t tw_session_input_take(struct tw_session *s, uint8_t *dst, size_t cap)
{
    size_t len;
    size_t n;
    uint8_t *at;

    tw_lock_acquire(&s->lock);
    at = cipher_at_lock_held(s, &len);
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
            cipher_consume_lock_held(s, n);
        }
        input_relax_lock_held(s);
    }
    tw_lock_release(&s->lock);
    return n;
}

size_t tw_session_input_length(struct tw_session *s)
{
    size_t len;

    tw_lock_acquire(&s->lock);
    (void)cipher_at_lock_held(s, &len);
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

/* --- facts --- */

bool tw_session_busy(struct tw_session *s)
{
    bool busy = !tw_lock_try(&s->lock);

    if (!busy) {
        tw_lock_release(&s->lock);
    }
    return busy;
}

enum tw_state tw_session_state(struct tw_session *s)
{
    enum tw_state state;

    tw_lock_acquire(&s->lock);
    state = s->state;
    tw_lock_release(&s->lock);
    return state;
}

bool tw_session_read_ended(struct tw_session *s)
{
    bool ended;

    tw_lock_acquire(&s->lock);
    ended = s->read_ended;
    tw_lock_release(&s->lock);
    return ended;
}

bool tw_session_write_ended(struct tw_session *s)
{
    bool ended;

    tw_lock_acquire(&s->lock);
    ended = s->write_ended;
    tw_lock_release(&s->lock);
    return ended;
}

void tw_session_error(struct tw_session *s, struct tw_error *out)
{
    tw_lock_acquire(&s->lock);
    *out = s->error;
    tw_lock_release(&s->lock);
}

static enum tw_status no_context(struct tw_error *err)
{
    return refuse_call(err, TW_E_STATE,
                       "the TLS negotiation has not begun");
}

enum tw_status tw_session_remote_cert(struct tw_session *s,
                                      struct tw_cert **out,
                                      struct tw_error *err)
{
    enum tw_status st = TW_DONE;

    *out = NULL;
    tw_lock_acquire(&s->lock);
    if (s->remote != NULL) {
        *out = s->provider->cert_ref(s->remote);
    } else if (s->has_ctx) {
        st = s->provider->remote_cert(&s->ctx, out, err);
        if (st == TW_WANT_READ
            && (s->state == TW_OPEN || s->pause == PAUSE_VERDICT)) {
            /* an engine that cannot tell "none" from "not yet" */
            st = tw_error_set(err, TW_E_NOT_FOUND,
                              (int32_t)SEC_E_NO_CREDENTIALS,
                              "the peer sent no certificate");
        }
    } else {
        st = no_context(err);
    }
    tw_lock_release(&s->lock);
    return st;
}

enum tw_status tw_session_local_cert(struct tw_session *s,
                                     struct tw_cert **out,
                                     struct tw_error *err)
{
    enum tw_status st;

    *out = NULL;
    tw_lock_acquire(&s->lock);
    st = s->has_ctx ? s->provider->local_cert(&s->ctx, out, err)
                    : no_context(err);
    tw_lock_release(&s->lock);
    return st;
}

enum tw_status tw_session_facts(struct tw_session *s, struct tw_facts *out,
                                struct tw_error *err)
{
    enum tw_status st = TW_DONE;

    tw_lock_acquire(&s->lock);
    if (s->facts != NULL) {
        memset(out, 0, sizeof(*out));
        memcpy(out, s->facts, s->facts_len);
    } else if (s->has_ctx) {
        st = s->provider->facts(&s->ctx, out, err);
    } else {
        st = no_context(err);
    }
    tw_lock_release(&s->lock);
    return st;
}

enum tw_status tw_session_binding(struct tw_session *s,
                                  enum tw_binding kind, const char *label,
                                  const uint8_t *context,
                                  size_t context_len, uint8_t *out,
                                  size_t *len, struct tw_error *err)
{
    enum tw_status st;

    tw_lock_acquire(&s->lock);
    st = s->has_ctx
             ? s->provider->binding(&s->ctx, kind, label, context,
                                    context_len, out, len, err)
             : no_context(err);
    tw_lock_release(&s->lock);
    return st;
}

enum tw_status tw_session_issuers(struct tw_session *s, tw_sink sink,
                                  void *arg, struct tw_error *err)
{
    enum tw_status st;

    tw_lock_acquire(&s->lock);
    st = s->has_ctx ? s->provider->issuers(&s->ctx, sink, arg, err)
                    : no_context(err);
    tw_lock_release(&s->lock);
    return st;
}

void tw_session_ocsp(struct tw_session *s, tw_sink sink, void *arg)
{
    tw_lock_acquire(&s->lock);
    if (s->has_ctx) {
        s->provider->ocsp(&s->ctx, sink, arg);
    }
    tw_lock_release(&s->lock);
}

uint32_t tw_session_features(struct tw_session *s)
{
    uint32_t features;

    tw_lock_acquire(&s->lock);
    features = (uint32_t)s->features;
    tw_lock_release(&s->lock);
    return features;
}

const char *tw_session_sni(struct tw_session *s)
{
    const char *sni;

    /* written once, before anybody can know that it is there */
    tw_lock_acquire(&s->lock);
    sni = s->sni != NULL ? s->sni : "";
    tw_lock_release(&s->lock);
    return sni;
}

struct tw_credentials *tw_session_credentials(struct tw_session *s)
{
    struct tw_credentials *c;

    tw_lock_acquire(&s->lock);
    c = tw_credentials_ref(s->credentials);
    tw_lock_release(&s->lock);
    return c;
}

/* --- making and freeing --- */

/* "10.0.0.1", "::1", "[::1]", "fe80::1%eth0": no name for SNI (RFC 6066,
   3). */
static bool is_ip_literal(const char *text)
{
    unsigned int parts = 1;
    unsigned int digits = 0;
    unsigned int value = 0;

    if (strchr(text, ':') != NULL || text[0] == '[') {
        return true;
    }
    for (; *text != '\0'; text++) {
        if (*text == '.') {
            if (digits == 0) {
                return false;
            }
            parts++;
            digits = 0;
            value = 0;
        } else if (*text >= '0' && *text <= '9') {
            digits++;
            value = value * 10 + (unsigned int)(*text - '0');
            if (digits > 3 || value > 255) {
                return false;
            }
        } else {
            return false;
        }
    }
    return parts == 4 && digits > 0;
}

/* The code point at *at, which moves behind it; 0 for malformed UTF-8. */
static uint32_t next_code_point(const unsigned char **at)
{
    const unsigned char *p = *at;
    uint32_t value = *p;
    uint32_t least;
    int more;

    if (value < 0x80) {
        *at = p + 1;
        return value;
    }
    if (value >= 0xF8 || value < 0xC2) {
        return 0;
    }
    more = value >= 0xF0 ? 3 : value >= 0xE0 ? 2 : 1;
    least = more == 3 ? 0x10000 : more == 2 ? 0x800 : 0x80;
    value &= 0x3Fu >> more;
    while (more-- > 0) {
        p++;
        if ((*p & 0xC0u) != 0x80u) {
            return 0;
        }
        value = value << 6 | (*p & 0x3Fu);
    }
    if (value < least || value > 0x10FFFF
        || (value >= 0xD800 && value <= 0xDFFF)) {
        return 0;
    }
    *at = p + 1;
    return value;
}

static enum tw_status set_target(struct tw_session *s, const char *target,
                                 struct tw_error *err)
{
    const unsigned char *at;
    size_t len = target == NULL ? 0 : strlen(target);
    size_t n = 0;
    uint32_t value;

    if (len == 0 || is_ip_literal(target)) {
        return TW_DONE;
    }
    if (target[len - 1] == '.') {
        len--; /* SNI carries no trailing dot */
    }
    if (len == 0 || len > SNI_MAX) {
        return tw_error_set(err, TW_E_ARGUMENT,
                            (int32_t)SEC_E_TARGET_UNKNOWN,
                            "the server name is too long, or none");
    }
    s->sni = copy_name(target, len);
    if (s->sni == NULL) {
        return tw_error_set(err, TW_E_NOMEM, 0, NULL);
    }
    s->target = calloc(len + 1, sizeof(*s->target));
    if (s->target == NULL) {
        return tw_error_set(err, TW_E_NOMEM, 0, NULL);
    }
    at = (const unsigned char *)s->sni;
    while (*at != '\0') {
        value = next_code_point(&at);
        if (value == 0) {
            return tw_error_set(err, TW_E_ARGUMENT,
                                (int32_t)SEC_E_TARGET_UNKNOWN,
                                "the server name is not valid UTF-8");
        }
        if (value >= 0x10000) {
            value -= 0x10000;
            s->target[n++] = (SEC_WCHAR)(0xD800 + (value >> 10));
            value = 0xDC00 + (value & 0x3FF);
        }
        s->target[n++] = (SEC_WCHAR)value;
    }
    return TW_DONE;
}

/* SEC_APPLICATION_PROTOCOLS with one list: u32 size of what follows, u32
   extension, u16 size of the names, the names. */
static enum tw_status set_alpn(struct tw_session *s, const uint8_t *names,
                               size_t len, struct tw_error *err)
{
    const uint32_t extension = 2; /* ..NegotiationExt_ALPN */
    uint32_t lists_size;
    uint16_t list_size;
    size_t at = 0;

    if (names == NULL || len == 0) {
        return TW_DONE;
    }
    while (at < len && names[at] != 0 && names[at] < len - at) {
        at += 1u + names[at];
    }
    if (at != len || len > 0xFFFF) {
        return tw_error_set(err, TW_E_ARGUMENT, 0,
                            "the list of application protocols is "
                            "malformed");
    }
    s->alpn = malloc(10 + len);
    if (s->alpn == NULL) {
        return tw_error_set(err, TW_E_NOMEM, 0, NULL);
    }
    list_size = (uint16_t)len;
    lists_size = (uint32_t)(6 + len);
    memcpy(s->alpn, &lists_size, 4);
    memcpy(s->alpn + 4, &extension, 4);
    memcpy(s->alpn + 8, &list_size, 2);
    memcpy(s->alpn + 10, names, len);
    s->alpn_len = (ULONG)(10 + len);
    return TW_DONE;
}

static enum tw_status set_config(struct tw_session *s,
                                 const struct tw_session_config *config,
                                 struct tw_error *err)
{
    enum tw_status st;
    bool may_lack = config->role == TW_SERVER && config->ask_credentials;

    s->role = config->role;
    s->request_cert = config->request_cert && s->role == TW_SERVER;
    s->ask_verdict = config->ask_verdict;
    s->ask_credentials = may_lack;
    s->ask_certificate = config->ask_certificate && s->role == TW_CLIENT;
    s->ragged_eof = config->ragged_eof;
    if (s->table == NULL) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            (int32_t)SEC_E_SECPKG_NOT_FOUND,
                            "the TLS engine %s cannot be used here",
                            s->provider->name);
    }
    if (s->role != TW_CLIENT && s->role != TW_SERVER) {
        return tw_error_set(err, TW_E_ARGUMENT, 0,
                            "the role of the session is unknown");
    }
    if (config->credentials == NULL && !may_lack) {
        return tw_error_set(err, TW_E_ARGUMENT,
                            (int32_t)SEC_E_NO_CREDENTIALS,
                            "credentials are needed");
    }
    if (config->credentials != NULL
        && !suits_lock_held(s, config->credentials)) {
        return tw_error_set(err, TW_E_ARGUMENT,
                            (int32_t)SEC_E_UNKNOWN_CREDENTIALS,
                            "the credentials are for the other side of a "
                            "connection, or of another engine");
    }
    s->credentials = tw_credentials_ref(config->credentials);
    st = set_alpn(s, config->alpn, config->alpn_len, err);
    if (st == TW_DONE && s->role == TW_CLIENT) {
        s->handle = tw_credentials_handle(s->credentials, NULL);
        st = set_target(s, config->target, err);
        if (st == TW_DONE && s->handle == NULL) {
            st = tw_error_set(err, TW_E_ARGUMENT,
                              (int32_t)SEC_E_NO_CREDENTIALS,
                              "the credentials are empty");
        }
    }
    return st;
}

struct tw_session *tw_session_new(const struct tw_provider *provider,
                                  const struct tw_session_config *config,
                                  struct tw_error *err)
{
    struct tw_session *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        (void)tw_error_set(err, TW_E_NOMEM, 0, NULL);
        return NULL;
    }
    tw_lock_init(&s->lock);
    s->provider = provider;
    s->table = provider->table();
    tw_error_clear(&s->error);
    tw_buffer_init(&s->input);
    tw_buffer_init(&s->output);
    tw_count_init(&s->has_output, 0);
    tw_buffer_init(&s->retired);
    tw_buffer_init(&s->held);
    SecInvalidateHandle(&s->ctx);
    s->state = TW_INIT;
    if (set_config(s, config, err) != TW_DONE) {
        tw_session_free(s);
        return NULL;
    }
    return s;
}

void tw_session_free(struct tw_session *s)
{
    if (s == NULL) {
        return;
    }
    if (s->has_ctx) {
        (void)s->table->DeleteSecurityContext(&s->ctx);
    }
    if (s->remote != NULL) {
        s->provider->cert_free(s->remote);
    }
    tw_credentials_free(s->credentials);
    tw_buffer_free(&s->input);
    tw_buffer_free(&s->output);
    tw_buffer_free(&s->retired);
    tw_buffer_free(&s->held);
    free(s->target);
    free(s->sni);
    free(s->alpn);
    free(s->hello);
    free(s->facts);
    tw_lock_fini(&s->lock);
    tw_wipe(s, sizeof(*s));
    free(s);
}
