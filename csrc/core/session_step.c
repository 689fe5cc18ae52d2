/*
 * One step of the session: a call of InitializeSecurityContextW or
 * AcceptSecurityContext with all its buffers.
 *
 * Whatever the engine gives is copied to `held` and freed at once, so that
 * nobody else owns memory of the engine's; the caller decides when it may
 * go out. How much of the input was consumed is reckoned from its end:
 * SECBUFFER_EXTRA has a length that counts and a pointer that does not.
 */
#include "core/session_internal.h"

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

void tw_sec_buffer_set(SecBuffer *b, ULONG type, void *data, size_t len)
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

SECURITY_STATUS tw_session_set_window_lock_held(struct tw_session *s)
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
        told = tw_session_set_window_lock_held(s);
    }
    return told == SEC_E_OK ? status : told;
}

struct tw_step tw_step_run_lock_held(struct tw_session *s, uint8_t *in,
                                     size_t len)
{
    struct tw_step step = {SEC_E_INTERNAL_ERROR, 0};
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
        tw_sec_buffer_set(&in_buffers[n++], SECBUFFER_TOKEN, in, len);
        tw_sec_buffer_set(&in_buffers[n++], SECBUFFER_EMPTY, NULL, 0);
    }
    if (!s->has_ctx && s->alpn != NULL) {
        tw_sec_buffer_set(&in_buffers[n++], SECBUFFER_APPLICATION_PROTOCOLS,
                          s->alpn, s->alpn_len);
    }
    in_desc.cBuffers = (ULONG)n;
    tw_sec_buffer_set(&out_buffers[0], SECBUFFER_TOKEN, NULL, 0);
    tw_sec_buffer_set(&out_buffers[1], SECBUFFER_ALERT, NULL, 0);
    tw_sec_buffer_set(&out_buffers[2], SECBUFFER_EMPTY, NULL, 0);

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
        tw_input_note_missing_lock_held(s, hint);
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
