/*
 * The first handshake: the engine's steps, the pauses, and their answers.
 *
 * drive goes from step to step as far as the input at hand allows. Each
 * step's tokens wait in `held` until gate has seen whether the peer's
 * certificate is known and has to be judged first. A pause is left only by
 * the call that answers it; each of those ends with the session ready for
 * the next drive. The table of transitions is in session.c.
 */
#include "core/session_internal.h"

#include <stdlib.h>
#include <string.h>

#define ALERT_ROOM 512u

static enum tw_status negotiation_eof_lock_held(struct tw_session *s)
{
    (void)tw_error_set(&s->error, TW_E_NEGOTIATE_EOF, 0,
                       "Unexpected EOF during TLS negotiation "
                       "(NEGOTIATING).");
    return tw_session_failed_lock_held(s);
}

/* TW_DONE if a whole record is there that was not tried yet. */
static enum tw_status want_record_lock_held(struct tw_session *s)
{
    size_t len;
    const uint8_t *at = tw_cipher_at_lock_held(s, &len);
    enum tw_record_fault fault = TW_RECORD_OK;

    if (len >= TW_RECORD_HEADER || (s->eof && len > 0)) {
        fault = tw_record_check(at, len);
    }
    if (fault != TW_RECORD_OK) {
        return tw_peer_not_tls_lock_held(s, fault);
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
    const uint8_t *at = tw_cipher_at_lock_held(s, &len);
    enum tw_record_fault fault = tw_record_check(at, len);

    if (why->status != TW_E_FORMAT) {
        return tw_session_nomem_lock_held(s);
    }
    (void)tw_error_set(&s->error, TW_E_TLS, (int32_t)SEC_E_INVALID_TOKEN,
                       "%s", why->detail);
    if (fault == TW_RECORD_OK) {
        tw_alert_plain_lock_held(s, at[0] == TW_RECORD_HANDSHAKE
                                     ? TW_ALERT_DECODE_ERROR
                                     : TW_ALERT_UNEXPECTED_MESSAGE);
    } else if (fault == TW_RECORD_TOO_LONG) {
        tw_alert_plain_lock_held(s, TW_ALERT_RECORD_OVERFLOW);
    } else if (tw_record_looks_like(at, len) == NULL) {
        tw_alert_plain_lock_held(s, TW_ALERT_UNEXPECTED_MESSAGE);
    }
    return tw_session_failed_lock_held(s);
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
        tw_alert_plain_lock_held(s, TW_ALERT_INTERNAL_ERROR);
        return tw_session_failed_lock_held(s);
    }
    return TW_DONE;
}

/* Server: reads the ClientHello, consumes nothing. */
static enum tw_status look_at_hello_lock_held(struct tw_session *s)
{
    struct tw_hello hello;
    struct tw_error why;
    enum tw_status st;
    size_t missing = 0;
    size_t len;
    const uint8_t *at = tw_cipher_at_lock_held(s, &len);

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
        return tw_session_nomem_lock_held(s);
    }
    *s->hello = hello;
    if (hello.sni[0] != '\0') {
        s->sni = tw_name_copy(hello.sni, strlen(hello.sni));
        if (s->sni == NULL) {
            return tw_session_nomem_lock_held(s);
        }
    }
    s->need = 0;
    if (s->ask_credentials) {
        s->pause = TW_PAUSE_CREDENTIALS;
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
    s->pause = TW_PAUSE_NONE;
    status = s->provider->verdict(&s->ctx, SEC_E_OK, alert, &alert_len);
    if (status == SEC_I_CONTINUE_NEEDED) {
        /* the engine was suspended: wake it, with no input if need be */
        s->held_status = SEC_I_CONTINUE_NEEDED;
        s->poke = true;
        s->tried = 0;
        return TW_DONE;
    }
    if (status != SEC_E_OK) {
        return tw_engine_failed_lock_held(s, status);
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
        s->pause = TW_PAUSE_VERDICT;
        return TW_WANT_VERDICT;
    }
    return accept_lock_held(s);
}

enum tw_status tw_session_query_sizes_lock_held(struct tw_session *s)
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
                              : tw_engine_failed_lock_held(s, status);
}

/* SEC_E_OK, and the verdict was given: OPEN. */
static enum tw_status open_lock_held(struct tw_session *s)
{
    const ULONG asked = s->role == TW_CLIENT
                            ? ISC_REQ_CONFIDENTIALITY | ISC_REQ_STREAM
                            : ASC_REQ_CONFIDENTIALITY | ASC_REQ_STREAM;
    struct tw_error ignored;
    struct tw_facts facts;

    if (tw_session_query_sizes_lock_held(s) != TW_DONE) {
        return s->error.status;
    }
    if ((s->features & asked) != asked) {
        (void)tw_error_set(&s->error, TW_E_TLS,
                           (int32_t)SEC_E_UNSUPPORTED_FUNCTION,
                           "the TLS engine does not give the "
                           "confidentiality that was asked for");
        tw_alert_send_lock_held(s, TW_ALERT_INTERNAL_ERROR);
        return tw_session_failed_lock_held(s);
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
            return tw_session_nomem_lock_held(s);
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
        s->pause = TW_PAUSE_CERTIFICATE;
        return TW_WANT_CERTIFICATE;
    }
    if (s->use_supplied) {
        return tw_engine_failed_lock_held(s, SEC_E_INCOMPLETE_CREDENTIALS);
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
    if (!tw_held_release_lock_held(s)) {
        return tw_session_nomem_lock_held(s);
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
    struct tw_step step;
    enum tw_status st;
    size_t len;
    uint8_t *at = tw_cipher_at_lock_held(s, &len);

    if ((s->role == TW_CLIENT && !s->has_ctx)
        || (s->poke && tw_record_whole(at, len) == 0)) {
        at = NULL;
        len = 0;
    }
    s->poke = false;
    step = tw_step_run_lock_held(s, at, len);
    switch (step.status) {
    case SEC_E_OK:
    case SEC_I_CONTINUE_NEEDED:
    case SEC_I_INCOMPLETE_CREDENTIALS:
        break;
    case SEC_E_INCOMPLETE_MESSAGE:
        if (!tw_held_release_lock_held(s)) {
            return tw_session_nomem_lock_held(s);
        }
        return s->eof ? negotiation_eof_lock_held(s) : TW_WANT_READ;
    case SEC_I_CONTEXT_EXPIRED:
        return tw_negotiation_closed_lock_held(s);
    default:
        return tw_engine_failed_lock_held(
            s, step.status < 0 ? step.status : SEC_E_INTERNAL_ERROR);
    }
    if (step.consumed > 0) {
        s->seen_record = true;
        tw_cipher_consume_lock_held(s, step.consumed);
    } else {
        s->tried = len; /* the same bytes again would change nothing */
    }
    s->held_status = step.status;
    st = gate_lock_held(s);
    return st == TW_DONE ? go_on_lock_held(s) : st;
}

static enum tw_status drive_lock_held(struct tw_session *s)
{
    enum tw_status st;

    for (;;) {
        if (s->state == TW_FAILED) {
            return s->error.status;
        }
        if (s->state == TW_OPEN) {
            return tw_session_renegotiate_lock_held(s);
        }
        switch (s->pause) {
        case TW_PAUSE_VERDICT:
            return TW_WANT_VERDICT;
        case TW_PAUSE_CREDENTIALS:
            return TW_WANT_CREDENTIALS;
        case TW_PAUSE_CERTIFICATE:
            return TW_WANT_CERTIFICATE;
        case TW_PAUSE_NONE:
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
    st = tw_session_report_lock_held(s, drive_lock_held(s), err);
    if (st != TW_DONE) {
        tw_input_relax_lock_held(s);
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
        if (tw_output_append_lock_held(s, alert, len)) {
            s->error.alert_sent =
                (int16_t)tw_alert_told_lock_held(s, alert, len, number);
        }
    } else if (has_new_keys_lock_held(s)) {
        s->dead = false;
        tw_alert_send_lock_held(s, number);
    } else {
        tw_alert_plain_lock_held(s, number);
    }
    return tw_session_failed_lock_held(s);
}

enum tw_status tw_session_verdict(struct tw_session *s, int32_t code,
                                  const char *detail, struct tw_error *err)
{
    enum tw_status st;

    tw_lock_acquire(&s->lock);
    if (s->state == TW_FAILED) {
        st = s->error.status;
    } else if (s->pause != TW_PAUSE_VERDICT) {
        st = tw_refuse_call(err, TW_E_STATE, "no verdict is asked for now");
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
    st = tw_session_report_lock_held(s, st, err);
done:
    tw_lock_release(&s->lock);
    return st;
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
    } else if (s->pause != TW_PAUSE_CREDENTIALS) {
        st = tw_refuse_call(err, TW_E_STATE,
                            "no credentials are asked for now");
        goto done;
    } else if (c != NULL ? !tw_session_suits_lock_held(s, c)
                         : s->credentials == NULL) {
        st = tw_refuse_call(err, TW_E_ARGUMENT,
                            "server credentials of this engine are needed");
        goto done;
    } else {
        if (c != NULL) {
            replace_credentials_lock_held(s, c);
        }
        s->pause = TW_PAUSE_NONE;
        st = choose_handle_lock_held(s);
    }
    st = tw_session_report_lock_held(s, st, err);
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
    } else if (s->pause != TW_PAUSE_CERTIFICATE) {
        st = tw_refuse_call(err, TW_E_STATE,
                            "no certificate is asked for now");
        goto done;
    } else if (c != NULL && !tw_session_suits_lock_held(s, c)) {
        st = tw_refuse_call(err, TW_E_ARGUMENT,
                            "client credentials of this engine are needed");
        goto done;
    } else {
        s->pause = TW_PAUSE_NONE;
        s->asked_cert = true;
        s->poke = true;
        s->tried = 0;
        st = TW_DONE;
        if (c != NULL) {
            replace_credentials_lock_held(s, c);
            st = choose_handle_lock_held(s);
            told = st == TW_DONE ? tw_session_set_window_lock_held(s)
                                 : SEC_E_OK;
            if (told < 0) {
                st = tw_engine_failed_lock_held(s, told);
            }
        } else {
            s->use_supplied = true;
        }
    }
    st = tw_session_report_lock_held(s, st, err);
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
