/*
 * Steps: InitializeSecurityContext, AcceptSecurityContext, control tokens,
 * and the verdict.
 *
 * The SSL object is fed whole records, one by one. The pause for a verdict
 * lies before anything is sent that depends on it:
 *   client, TLS 1.3           SSL_set_retry_verify inside the callback,
 *                             before our Finished
 *   client, TLS 1.2           the callback comes before the message with
 *                             the stapled OCSP answer, which the verdict
 *                             needs: it takes note of the certificate, and
 *                             the core holds the token with our Finished
 *   client, resumed           we stop after ServerHello, where the session
 *                             is known
 *   server                    the callback takes note of the certificate
 *                             and the SSL object goes on: a retry would be
 *                             ignored there and fail open. The core holds
 *                             the token, and with it our Finished (TLS
 *                             1.2) or the tickets (1.3, where our Finished
 *                             precedes the client's certificate), and
 *                             lets no data move
 * Not an ASYNC job: OpenSSL's fibres must be resumed on the thread that
 * began them, and a session may be answered or freed on any.
 * A refusal's alert is ours, since libssl has no call for one of our
 * choice: in the clear while our side has no keys yet, else under the right
 * ones (traffic_openssl.c).
 */
#include "sspi/context_openssl.h"

#include <stdlib.h>
#include <string.h>

/* Moves gathered output into the caller's TOKEN buffer. */
static SECURITY_STATUS give_token(struct tw_octx *c, PSecBufferDesc out,
                                  bool allocate)
{
    SecBuffer *token = NULL;

    for (ULONG i = 0; out && i < out->cBuffers; i++) {
        SecBuffer *b = &out->pBuffers[i];
        if (b->BufferType == SECBUFFER_TOKEN && !token) {
            token = b;
        } else if (b->BufferType == SECBUFFER_ALERT && allocate) {
            b->cbBuffer = 0;
            b->pvBuffer = NULL;
        }
    }
    if (c->out_len == 0) {
        if (token) {
            token->cbBuffer = 0;
            if (allocate) {
                token->pvBuffer = NULL;
            }
        }
        return SEC_E_OK;
    }
    if (!token) {
        return SEC_E_INVALID_TOKEN;
    }
    if (allocate) {
        token->pvBuffer = c->out; /* FreeContextBuffer is free */
        token->cbBuffer = (ULONG)c->out_len;
        c->out = NULL;
        c->out_room = 0;
    } else if (!token->pvBuffer || token->cbBuffer < c->out_len) {
        return SEC_E_BUFFER_TOO_SMALL; /* kept for the next call */
    } else {
        memcpy(token->pvBuffer, c->out, c->out_len);
        token->cbBuffer = (ULONG)c->out_len;
    }
    c->out_len = 0;
    return SEC_E_OK;
}

static void report_extra(PSecBufferDesc in, size_t extra)
{
    for (ULONG i = 1; in && i < in->cBuffers; i++) {
        SecBuffer *b = &in->pBuffers[i];
        if (b->BufferType == SECBUFFER_EMPTY) {
            if (extra) {
                b->BufferType = SECBUFFER_EXTRA;
                b->cbBuffer = (ULONG)extra;
                b->pvBuffer = NULL; /* found by length, from the end */
            }
            return;
        }
    }
}

void tw_octx_report_missing(SecBufferDesc *in, size_t missing)
{
    for (ULONG i = 1; in && i < in->cBuffers; i++) {
        SecBuffer *b = &in->pBuffers[i];
        if (b->BufferType == SECBUFFER_EMPTY) {
            b->BufferType = SECBUFFER_MISSING;
            b->cbBuffer = (ULONG)missing;
            return;
        }
    }
}

enum drive { FINISHED, MORE, SUSPENDED, LOOKUP, CLOSED, BROKEN };

/* One SSL_do_handshake over what `in` shows. */
static enum drive drive_once(struct tw_octx *c)
{
    int r;

    ERR_clear_error();
    c->suspended = false;
    c->lookup = false;
    if (c->cred->heard) {
        tw_openssl_listen(tw_octx_secret_heard, c);
    }
    r = SSL_do_handshake(c->ssl);
    if (c->cred->heard) {
        tw_openssl_listen(NULL, NULL);
    }
    if (r == 1) {
        return FINISHED;
    }
    switch (SSL_get_error(c->ssl, r)) {
    case SSL_ERROR_WANT_READ:
        return MORE;
    case SSL_ERROR_WANT_RETRY_VERIFY:
        c->suspended = true;
        return SUSPENDED;
    case SSL_ERROR_WANT_X509_LOOKUP:
        return LOOKUP;
    case SSL_ERROR_ZERO_RETURN:
        return CLOSED;
    default:
        return BROKEN;
    }
}

/* Feeds whole records one by one until the handshake is done, pauses,
   fails, or no whole record is left. *used: bytes taken. */
static enum drive drive(struct tw_octx *c, const uint8_t *p, size_t len,
                        bool resume, size_t *used)
{
    enum drive d = MORE;
    static const uint8_t nothing[1];
    size_t missing;

    *used = 0;
    p = p ? p : nothing;
    while (d == MORE) {
        size_t span = tw_octx_record_span(p + *used, len - *used, &missing);
        uint8_t *anew = NULL;
        if (span == 0 && !resume) {
            break;
        }
        resume = false;
        c->in = p + *used;
        c->in_len = span;
        c->in_pos = 0;
        if (c->shadow && span > 0 && !c->shadow->read_through) {
            anew = tw_octx_reseal_input(c, p + *used, span);
            if (!anew) {
                c->in = NULL;
                c->in_len = 0;
                return BROKEN;
            }
            c->in = anew;
        }
        d = drive_once(c);
        if (d != MORE || c->out_len > 0) {
            c->flight = true;
        }
        *used += c->in_pos;
        free(anew);
        c->in = NULL;
        c->in_len = c->in_pos = 0;
        if (d == MORE && !c->open && c->role == TW_CLIENT
            && c->verdict == TW_UNASKED && SSL_session_reused(c->ssl)) {
            c->verdict = TW_PAUSED;
            c->suspended = true;
            c->flight = true;
            d = SUSPENDED;
        }
    }
    return d;
}

/* The handshake's step with input p[0..len). */
static SECURITY_STATUS handshake(struct tw_octx *c, const uint8_t *p,
                                 size_t len, bool resume,
                                 PSecBufferDesc in)
{
    size_t used = 0, missing = 0, skip = c->replay;
    SECURITY_STATUS st;

    if (skip > len) {
        return SEC_E_INVALID_TOKEN;
    }
    if (!resume && tw_octx_record_span(p + skip, len - skip, &missing) == 0) {
        tw_octx_report_missing(in, missing);
        return SEC_E_INCOMPLETE_MESSAGE;
    }
    c->replay = 0;
    switch (drive(c, p + skip, len - skip, resume, &used)) {
    case FINISHED:
        c->open = true;
        st = c->kept ? tw_octx_renew(c) : SEC_E_OK;
        if (st != SEC_E_OK) {
            c->dead = true;
        }
        break;
    case MORE:
    case SUSPENDED:
        st = SEC_I_CONTINUE_NEEDED;
        break;
    case LOOKUP:
        c->replay = skip + used;
        return SEC_I_INCOMPLETE_CREDENTIALS;
    case CLOSED:
        c->dead = true;
        st = SEC_I_CONTEXT_EXPIRED;
        break;
    default:
        /* an alert of the engine's went out in place of the SSL object's */
        return c->dead ? SEC_E_MESSAGE_ALTERED : tw_octx_failure(c);
    }
    report_extra(in, len - skip - used);
    return st;
}

/* A step once the first handshake is over: answers what DecryptMessage
   reported, or goes on with a renegotiation (TLS 1.2). */
static SECURITY_STATUS after_handshake(struct tw_octx *c, const uint8_t *p,
                                       size_t len, PSecBufferDesc in)
{
    size_t used = 0;

    tw_octx_engage(c);
    if (c->ssl && SSL_version(c->ssl) != TLS1_3_VERSION
        && SSL_in_init(c->ssl)) {
        return handshake(c, p, len, len == 0, in);
    }
    if (c->records) {
        if (c->update_asked || tw_records_due(c->records)) {
            c->update_asked = false;
            if (!tw_octx_send_update(c)) {
                return tw_octx_records_failed(c, SSL_AD_INTERNAL_ERROR);
            }
        }
    } else if (c->update_asked) {
        /* RFC 8446, 4.6.3: answer with one of our own before any data */
        c->update_asked = false;
        if (!SSL_key_update(c->ssl, SSL_KEY_UPDATE_NOT_REQUESTED)
            || drive(c, NULL, 0, true, &used) != FINISHED) {
            return tw_octx_failure(c);
        }
    }
    report_extra(in, len);
    return SEC_E_OK;
}

/* The plaintext alert record of a handshake that has no keys yet. */
static bool plain_alert(struct tw_octx *c, int alert)
{
    const uint8_t record[7] = { 21, 3, 3, 0, 2, 2, (uint8_t)alert };

    return !c->open && tw_octx_out_append(c, record, sizeof(record));
}

/* The step that follows ApplyControlToken. */
static SECURITY_STATUS control_step(struct tw_octx *c)
{
    if (c->open) {
        tw_octx_engage(c);
    }
    if (c->alert >= 0) {
        /* If the engine or the SSL object failed by itself its own alert is
           in `out`; otherwise the SSL object has no call that sends one
           under keys. */
        if (c->out_len > 0) {
            c->alert_sent = c->alert_sent > 0 ? c->alert_sent : c->alert;
        } else if (c->records) {
            tw_octx_forget_session(c);
            (void)tw_octx_send_alert(c, SSL3_AL_FATAL, c->alert);
        } else {
            (void)plain_alert(c, c->alert);
        }
        c->alert = -1;
        c->dead = true;
        return SEC_E_OK;
    }
    c->shutdown = false;
    if (c->records) {
        if (!c->sent_shutdown) {
            c->sent_shutdown = true;
            return tw_octx_send_alert(c, SSL3_AL_WARNING, SSL_AD_CLOSE_NOTIFY)
                       ? SEC_E_OK
                       : SEC_E_INTERNAL_ERROR;
        }
        return SEC_E_OK;
    }
    ERR_clear_error();
    if (SSL_shutdown(c->ssl) < 0) {
        ERR_clear_error();
        return SEC_E_INTERNAL_ERROR;
    }
    return SEC_E_OK;
}

static const SecBuffer *find(PSecBufferDesc desc, ULONG type)
{
    for (ULONG i = 0; desc && i < desc->cBuffers; i++) {
        if (desc->pBuffers[i].BufferType == type) {
            return &desc->pBuffers[i];
        }
    }
    return NULL;
}

/* What InitializeSecurityContext and AcceptSecurityContext share, with a
   context at hand. */
static SECURITY_STATUS step(struct tw_octx *c, PSecBufferDesc in,
                            PSecBufferDesc out, bool allocate, bool first)
{
    const SecBuffer *token = find(in, SECBUFFER_TOKEN);
    static const uint8_t nothing[1];
    const uint8_t *p = token && token->pvBuffer ? token->pvBuffer : nothing;
    size_t len = token && token->pvBuffer ? token->cbBuffer : 0;
    SECURITY_STATUS st, given;

    if (c->dead && c->alert < 0) {
        return SEC_E_INVALID_HANDLE;
    }
    if (c->shutdown || c->alert >= 0) {
        st = control_step(c);
    } else if (c->open) {
        st = after_handshake(c, p, len, in);
    } else {
        bool resume = c->suspended || c->lookup
                      || (first && c->role == TW_CLIENT);
        if (len == 0 && !resume) {
            return SEC_E_INCOMPLETE_MESSAGE;
        }
        if (c->suspended && c->verdict == TW_PAUSED) {
            return SEC_E_OUT_OF_SEQUENCE; /* the verdict comes first */
        }
        st = handshake(c, p, len, resume, in);
    }
    if (st == SEC_E_INCOMPLETE_MESSAGE || (c->open && c->dead)) {
        if (c->out_len == 0) {
            return st;
        }
    }
    given = give_token(c, out, allocate);
    return given == SEC_E_OK ? st : (st < 0 ? st : given);
}

/* An EMPTY buffer with a size is no input. */
static bool misshapen(PSecBufferDesc in)
{
    return in && in->cBuffers > 0
           && in->pBuffers[0].BufferType == SECBUFFER_EMPTY
           && in->pBuffers[0].cbBuffer > 0;
}

/* The first step of either role. A context is made only if it succeeds;
   failing, its token is given all the same. */
static SECURITY_STATUS first_step(struct tw_ocred *cred,
                                  enum tw_role role,
                                  const SEC_WCHAR *target, bool ask,
                                  PSecBufferDesc in, PCtxtHandle fresh,
                                  PSecBufferDesc out, bool allocate)
{
    SECURITY_STATUS st;
    struct tw_octx *c;
    size_t missing = 0;

    if (!fresh) {
        return SEC_E_INVALID_HANDLE;
    }
    if (role == TW_SERVER) {
        const SecBuffer *token = find(in, SECBUFFER_TOKEN);
        if (!token) {
            return SEC_E_INVALID_TOKEN;
        }
        if (tw_octx_record_span(token->pvBuffer, token->cbBuffer, &missing)
            == 0) {
            tw_octx_report_missing(in, missing);
            return SEC_E_INCOMPLETE_MESSAGE;
        }
    }
    c = tw_octx_new(cred, role, target,
                    find(in, SECBUFFER_APPLICATION_PROTOCOLS), ask, &st);
    if (!c) {
        return st;
    }
    st = step(c, in, out, allocate, true);
    if (st < 0) {
        tw_octx_free(c);
        return st;
    }
    fresh->dwLower = (uintptr_t)c;
    fresh->dwUpper = 0;
    return st;
}

static SECURITY_STATUS use_other_credentials(struct tw_octx *c,
                                             struct tw_ocred *cred)
{
    X509 *cert;
    EVP_PKEY *key;
    STACK_OF(X509) *chain = NULL;

    if (cred == c->cred) {
        return SEC_E_OK;
    }
    cert = SSL_CTX_get0_certificate(cred->ssl_ctx);
    key = SSL_CTX_get0_privatekey(cred->ssl_ctx);
    if (!cert || !key) {
        return SEC_E_OK;
    }
    (void)SSL_CTX_get0_chain_certs(cred->ssl_ctx, &chain);
    if (!SSL_use_cert_and_key(c->ssl, cert, key, chain, 1)) {
        ERR_clear_error();
        return SEC_E_UNKNOWN_CREDENTIALS;
    }
    c->chosen = true;
    return SEC_E_OK;
}

SECURITY_STATUS tw_octx_initialize(
    PCredHandle cred, PCtxtHandle ctx, SEC_WCHAR *target, ULONG req,
    ULONG reserved1, ULONG drep, PSecBufferDesc in, ULONG reserved2,
    PCtxtHandle fresh, PSecBufferDesc out, ULONG *attr, void *expiry)
{
    bool allocate = (req & ISC_REQ_ALLOCATE_MEMORY) != 0;
    struct tw_octx *c = tw_octx_at(ctx);
    SECURITY_STATUS st;

    (void)reserved1;
    (void)drep;
    (void)reserved2;
    (void)expiry;
    if (misshapen(in)) {
        return SEC_E_INVALID_TOKEN;
    }
    if (attr) {
        *attr = req;
    }
    if (ctx) {
        if (!c || c->role != TW_CLIENT) {
            return SEC_E_INVALID_HANDLE;
        }
        c->supplied = (req & ISC_REQ_USE_SUPPLIED_CREDS) != 0;
        if (c->lookup && cred && SecIsValidHandle(cred)) {
            st = use_other_credentials(
                c, (struct tw_ocred *)cred->dwLower);
            if (st != SEC_E_OK) {
                return st;
            }
        }
        return step(c, in, out, allocate, false);
    }
    if (!cred || !SecIsValidHandle(cred)
        || ((struct tw_ocred *)cred->dwLower)->role != TW_CLIENT) {
        return SEC_E_INVALID_HANDLE;
    }
    return first_step((struct tw_ocred *)cred->dwLower, TW_CLIENT,
                      target, false, in, fresh, out, allocate);
}

SECURITY_STATUS tw_octx_accept(
    PCredHandle cred, PCtxtHandle ctx, PSecBufferDesc in, ULONG req,
    ULONG drep, PCtxtHandle fresh, PSecBufferDesc out, ULONG *attr,
    void *expiry)
{
    bool allocate = (req & ASC_REQ_ALLOCATE_MEMORY) != 0;
    struct tw_octx *c = tw_octx_at(ctx);

    (void)drep;
    (void)expiry;
    if (misshapen(in)) {
        return SEC_E_INVALID_TOKEN;
    }
    if (attr) {
        *attr = req;
    }
    if (ctx) {
        if (!c || c->role != TW_SERVER) {
            return SEC_E_INVALID_HANDLE;
        }
        return step(c, in, out, allocate, false);
    }
    if (!cred || !SecIsValidHandle(cred)
        || ((struct tw_ocred *)cred->dwLower)->role != TW_SERVER) {
        return SEC_E_INVALID_HANDLE;
    }
    return first_step((struct tw_ocred *)cred->dwLower, TW_SERVER, NULL,
                      (req & ASC_REQ_MUTUAL_AUTH) != 0, in, fresh, out,
                      allocate);
}

SECURITY_STATUS tw_octx_delete(PCtxtHandle ctx)
{
    struct tw_octx *c = tw_octx_at(ctx);

    if (!c) {
        return SEC_E_INVALID_HANDLE;
    }
    tw_octx_free(c);
    SecInvalidateHandle(ctx);
    return SEC_E_OK;
}

SECURITY_STATUS tw_octx_control(PCtxtHandle ctx,
                                PSecBufferDesc in)
{
    struct tw_octx *c = tw_octx_at(ctx);
    const SecBuffer *token = find(in, SECBUFFER_TOKEN);
    ULONG kind;

    if (!c) {
        return SEC_E_INVALID_HANDLE;
    }
    if (!token || token->cbBuffer < sizeof(kind)) {
        return SEC_E_INVALID_TOKEN;
    }
    memcpy(&kind, token->pvBuffer, sizeof(kind));
    if (kind == SCHANNEL_SHUTDOWN) {
        c->shutdown = true;
        return SEC_E_OK;
    }
    if (kind == SCHANNEL_ALERT
        && token->cbBuffer >= sizeof(SCHANNEL_ALERT_TOKEN)) {
        SCHANNEL_ALERT_TOKEN alert;
        memcpy(&alert, token->pvBuffer, sizeof(alert));
        c->alert = (int)(alert.dwAlertNumber & 0xff);
        return SEC_E_OK;
    }
    return kind == SCHANNEL_SESSION ? SEC_E_UNSUPPORTED_FUNCTION
                                    : SEC_E_INVALID_TOKEN;
}

SECURITY_STATUS tw_octx_free_buffer(void *buffer)
{
    free(buffer);
    return SEC_E_OK;
}

/*
 * The alert of a refusal: tw_alert_for_code chooses it. Our side has no
 * keys yet in TLS 1.2 (our ChangeCipherSpec is in the token that is
 * dropped), nor on a server that resumes (ServerHello is). In TLS 1.3 a
 * server has those of its data. A client has those of its handshake, but
 * libssl makes them only as it sends ChangeCipherSpec, unless the system's
 * configuration switches that off (MiddleboxCompat): till then in the
 * clear, as libssl itself does it, which its servers understand.
 */
static size_t refusal_alert(struct tw_octx *c, SECURITY_STATUS code,
                            uint8_t *alert, size_t room)
{
    bool tls13 = tw_octx_current_version(c) == TLS1_3_VERSION;
    int number = tw_alert_for_code((int32_t)code);
    size_t n = 0;

    if (number == TLS13_AD_CERTIFICATE_REQUIRED && !tls13) {
        number = SSL_AD_HANDSHAKE_FAILURE;
    }
    if (c->records && tls13 && c->role == TW_SERVER && room >= 64) {
        /* the tickets before it are dropped */
        const uint8_t bytes[2] = { SSL3_AL_FATAL, (uint8_t)number };
        c->records->write.seq = 0;
        n = tw_records_seal(c->records, SSL3_RT_ALERT, bytes, 2, alert);
    } else if (tls13 && c->traffic
               && (c->role == TW_CLIENT || !SSL_session_reused(c->ssl))) {
        n = tw_traffic_seal_alert(c->traffic,
                                  c->role == TW_CLIENT ? TW_CLIENT_HANDSHAKE
                                                       : TW_SERVER_TRAFFIC,
                                  SSL_get_current_cipher(c->ssl), number,
                                  alert, room);
    }
    if (n == 0 && room >= 7) {
        memcpy(alert, (const uint8_t[]){21, 3, 3, 0, 2, SSL3_AL_FATAL, 0},
               6);
        alert[6] = (uint8_t)number;
        n = 7;
    }
    return n;
}

SECURITY_STATUS tw_octx_verdict(CtxtHandle *ctx, SECURITY_STATUS code,
                                uint8_t *alert, size_t *alert_len)
{
    struct tw_octx *c = tw_octx_at(ctx);

    if (!c) {
        return SEC_E_INVALID_HANDLE;
    }
    if (code == SEC_E_OK) {
        bool was_suspended = c->suspended;
        c->verdict = TW_ACCEPTED;
        if (!c->cred->engine) {
            tw_octx_forget_secrets(c);
        }
        *alert_len = 0;
        return was_suspended ? SEC_I_CONTINUE_NEEDED : SEC_E_OK;
    }
    c->verdict = TW_REFUSED;
    tw_octx_forget_session(c);
    c->out_len = 0;
    *alert_len = refusal_alert(c, code, alert, *alert_len);
    c->suspended = false;
    c->dead = true;
    tw_octx_forget_secrets(c);
    return SEC_E_OK;
}
