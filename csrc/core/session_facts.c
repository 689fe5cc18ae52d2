/*
 * What is asked about a session: its state, the peer, what was agreed.
 *
 * Everything is read under the lock; what is given out is a copy, a counted
 * reference, or was written once and stays. What the engine knows only for
 * a while was kept when the session became OPEN.
 */
#include "core/session_internal.h"

#include <string.h>

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
    return tw_refuse_call(err, TW_E_STATE,
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
            && (s->state == TW_OPEN || s->pause == TW_PAUSE_VERDICT)) {
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
