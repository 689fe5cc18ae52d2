/*
 * Where the record engine takes over from the SSL object, and what goes
 * between the two afterwards.
 *
 * Once the handshake is over and judged, tw_octx_engage makes the engine of
 * the secrets that the SSL object logged (record_openssl.c), keeps what will
 * be asked about the connection, and frees the SSL object as soon as nothing
 * can need it: at once on a server, on a client once its ticket is there.
 * Until then the SSL object is fed what is its to read (tickets; in TLS 1.2
 * a HelloRequest and the renegotiation that follows), sealed anew under the
 * sequence numbers that it stands at; what it writes is opened and sealed
 * anew as well (struct tw_shadow). Where the engine cannot, records stay
 * with the SSL object: another suite, a failed self-test, a negotiated
 * maximum fragment length, TWAPI_TLS_RECORDS=openssl.
 */
#include "sspi/context_openssl.h"

#include <stdlib.h>
#include <string.h>

static enum tw_aead aead_of(const SSL_CIPHER *cipher)
{
    switch (SSL_CIPHER_get_cipher_nid(cipher)) {
    case NID_aes_128_gcm:
        return TW_AEAD_AES128;
    case NID_aes_256_gcm:
        return TW_AEAD_AES256;
    case NID_chacha20_poly1305:
        return TW_AEAD_CHACHA;
    default:
        return TW_AEAD_NONE;
    }
}

/* What will be asked when the SSL object may be gone. */
static struct tw_kept *keep(struct tw_octx *c)
{
    const unsigned char *alpn = NULL;
    unsigned alpn_len = 0;
    STACK_OF(X509) *chain = NULL;
    X509 *local = SSL_get_certificate(c->ssl);
    struct tw_kept *k;
    int group;

    SSL_get0_alpn_selected(c->ssl, &alpn, &alpn_len);
    k = calloc(1, sizeof(*k) + alpn_len);
    if (!k) {
        return NULL;
    }
    k->cipher = SSL_get_current_cipher(c->ssl);
    k->version = SSL_version(c->ssl);
    k->resumed = SSL_session_reused(c->ssl) != 0;
    group = (int)SSL_get_negotiated_group(c->ssl);
    if (group != NID_undef) {
        k->group = SSL_group_to_name(c->ssl, group);
    }
    k->alpn_len = (uint8_t)alpn_len;
    if (alpn_len > 0) {
        memcpy(k->alpn, alpn, alpn_len);
    }
    if (local && X509_up_ref(local)) {
        k->local = local;
        (void)SSL_get0_chain_certs(c->ssl, &chain);
        k->chain = chain && sk_X509_num(chain) > 0 ? X509_chain_up_ref(chain)
                                                   : NULL;
    }
    if (k->version != TLS1_3_VERSION) {
        SSL_SESSION *session = SSL_get_session(c->ssl);
        bool ours = (c->role == TW_CLIENT) == !k->resumed;
        size_t n = ours ? SSL_get_finished(c->ssl, k->unique,
                                           sizeof(k->unique))
                        : SSL_get_peer_finished(c->ssl, k->unique,
                                                sizeof(k->unique));
        k->unique_len =
            (uint8_t)(n < sizeof(k->unique) ? n : sizeof(k->unique));
        (void)SSL_get_client_random(c->ssl, k->seed, 32);
        (void)SSL_get_server_random(c->ssl, k->seed + 32, 32);
        (void)SSL_SESSION_get_master_key(session, k->exporter,
                                         sizeof(k->exporter));
        if (c->role == TW_SERVER && SSL_SESSION_up_ref(session)) {
            k->session = session;
        }
    } else if (c->traffic && c->traffic->len[TW_EXPORTER] > 0
               && c->traffic->len[TW_EXPORTER] <= TW_SECRET_MAX) {
        memcpy(k->exporter, c->traffic->secret[TW_EXPORTER],
               c->traffic->len[TW_EXPORTER]);
    }
    return k;
}

static bool start_records(struct tw_octx *c, struct tw_records *r,
                          enum tw_aead aead)
{
    const EVP_MD *md = SSL_CIPHER_get_handshake_digest(c->kept->cipher);
    int hash_len = md ? EVP_MD_get_size(md) : 0;
    const struct tw_traffic *t = c->traffic;
    enum tw_secret theirs =
        c->role == TW_CLIENT ? TW_SERVER_TRAFFIC : TW_CLIENT_TRAFFIC;
    enum tw_secret ours =
        c->role == TW_CLIENT ? TW_CLIENT_TRAFFIC : TW_SERVER_TRAFFIC;

    if (hash_len != 32 && hash_len != 48) {
        return false;
    }
    if (c->kept->version == TLS1_3_VERSION) {
        return t && t->len[theirs] == (size_t)hash_len
               && t->len[ours] == (size_t)hash_len
               && t->len[TW_EXPORTER] == (size_t)hash_len
               && tw_records_init13(r, aead, (size_t)hash_len,
                                    t->secret[theirs], t->secret[ours],
                                    c->role == TW_SERVER ? c->sealed : 0);
    }
    return c->kept->version == TLS1_2_VERSION
           && tw_records_init12(r, aead, (size_t)hash_len,
                                c->role == TW_CLIENT, c->kept->exporter,
                                c->kept->seed, c->kept->seed + 32,
                                c->nonce + 1);
}

/* The SSL object's own state of keys: what the engine starts with. */
static bool start_shadow(struct tw_octx *c)
{
    struct tw_shadow *s = calloc(1, sizeof(*s));

    if (!s) {
        return false;
    }
    s->read = c->records->read;
    s->write = c->records->write;
    s->read.ctx = s->write.ctx = NULL;
    /* The explicit nonce of what it is fed: any, nobody else sees it. */
    s->read.nonce = 0;
    c->shadow = s;
    return true;
}

/* Can a client's SSL object still be of use? In TLS 1.3 for a ticket, and
   for what nobody copied; in TLS 1.2 for a renegotiation. */
static bool ssl_needed(const struct tw_octx *c)
{
    const unsigned char *staple = NULL;

    if (c->role == TW_SERVER) {
        return false;
    }
    if (c->kept->version != TLS1_3_VERSION) {
        return true;
    }
    return sk_X509_NAME_num(SSL_get0_peer_CA_list(c->ssl)) > 0
           || SSL_get_tlsext_status_ocsp_resp(c->ssl, &staple) > 0
           || (c->tickets == 0 && c->target
               && !(c->cred->flags & TW_CRED_NO_RESUME));
}

bool tw_octx_learn_peer(struct tw_octx *c)
{
    X509 *x509;

    if (!c->peer && c->ssl && (c->open || SSL_session_reused(c->ssl))
        && (x509 = SSL_get0_peer_certificate(c->ssl))) {
        c->peer = tw_openssl_peer_new(x509, SSL_get_peer_cert_chain(c->ssl));
        return c->peer != NULL;
    }
    return true;
}

void tw_octx_engage(struct tw_octx *c)
{
    enum tw_aead aead;
    struct tw_records *r;

    if (c->kept) {
        return;
    }
    c->kept = keep(c);
    if (!c->kept || !c->cred->engine || !tw_octx_learn_peer(c)) {
        goto done;
    }
    aead = aead_of(c->kept->cipher);
    if (aead == TW_AEAD_NONE || SSL_has_pending(c->ssl)
        || SSL_get_current_compression(c->ssl)
        || SSL_SESSION_get_max_fragment_length(SSL_get_session(c->ssl))
               != TLSEXT_max_fragment_length_DISABLED) {
        goto done;
    }
    r = malloc(sizeof(*r));
    if (!r || !start_records(c, r, aead)) {
        free(r);
        goto done;
    }
    c->records = r;
    if (!ssl_needed(c)) {
        tw_octx_drop_ssl(c, true);
    } else if (!start_shadow(c)) {
        tw_records_fini(r);
        free(r);
        c->records = NULL;
    }
done:
    tw_octx_forget_secrets(c);
    ERR_clear_error();
}

/* A record of ours into the output. */
static bool send_record(struct tw_octx *c, uint8_t type,
                        const uint8_t *content, size_t len)
{
    uint8_t *at = tw_octx_out_reserve(c, c->records->header + len
                                             + c->records->tail);
    size_t n = at ? tw_records_seal(c->records, type, content, len, at) : 0;

    c->out_len += n;
    return n > 0;
}

bool tw_octx_send_alert(struct tw_octx *c, int level, int number)
{
    const uint8_t alert[2] = { (uint8_t)level, (uint8_t)number };

    c->alert_sent = number;
    return send_record(c, SSL3_RT_ALERT, alert, sizeof(alert));
}

void tw_octx_forget_session(struct tw_octx *c)
{
    SSL_SESSION *session = c->kept && c->kept->session ? c->kept->session
                           : c->ssl ? SSL_get0_session(c->ssl) : NULL;
    struct tw_ocred *cred = c->cred;

    if (!session) {
        return;
    }
    (void)SSL_CTX_remove_session(cred->ssl_ctx, session);
    tw_lock_acquire(&cred->lock);
    for (struct tw_cached **at = &cred->sessions; *at;) {
        if ((*at)->session == session) {
            tw_ocred_drop_lock_held(cred, at);
        } else {
            at = &(*at)->next;
        }
    }
    tw_lock_release(&cred->lock);
}

SECURITY_STATUS tw_octx_records_failed(struct tw_octx *c, int alert)
{
    (void)tw_octx_send_alert(c, SSL3_AL_FATAL, alert);
    tw_octx_forget_session(c);
    c->dead = true;
    return alert == SSL_AD_INTERNAL_ERROR ? SEC_E_INTERNAL_ERROR
           : alert == SSL_AD_BAD_RECORD_MAC ? SEC_E_MESSAGE_ALTERED
                                            : SEC_E_ILLEGAL_MESSAGE;
}

bool tw_octx_reseal_output(struct tw_octx *c, const uint8_t *p, size_t span)
{
    struct tw_shadow *s = c->shadow;
    uint8_t *content, type;
    size_t n;
    bool good;

    if (s->write_through) {
        return tw_octx_out_append(c, p, span);
    }
    content = malloc(span);
    good = content
           && tw_half_open(c->records, &s->write, p, span, content, span,
                           &n, &type) == TW_FAULT_NONE
           && send_record(c, type, content, n);
    if (good && type == SSL3_RT_CHANGE_CIPHER_SPEC) {
        s->write_through = true;
    }
    free(content);
    return good;
}

uint8_t *tw_octx_reseal_input(struct tw_octx *c, const uint8_t *p,
                              size_t span)
{
    struct tw_shadow *s = c->shadow;
    uint8_t *anew = malloc(span), *content = malloc(span), type = 0;
    size_t n = 0, made = 0;
    enum tw_fault fault = TW_FAULT_INTERNAL;

    if (anew && content) {
        fault = tw_records_open(c->records, p, span, content, span, &n,
                                &type);
    }
    if (fault == TW_FAULT_NONE) {
        made = tw_half_seal(c->records, &s->read, type, content, n, anew);
    }
    if (made == 0) {
        (void)tw_octx_records_failed(c, tw_fault_alert(fault));
        free(anew);
        anew = NULL;
    } else if (type == SSL3_RT_CHANGE_CIPHER_SPEC) {
        s->read_through = true;
    }
    if (content) {
        OPENSSL_cleanse(content, span);
    }
    free(content);
    return anew;
}

/* Gives the SSL object a handshake message to read. */
static SECURITY_STATUS feed(struct tw_octx *c, const uint8_t *message,
                            size_t len)
{
    SECURITY_STATUS st = SEC_E_OK;
    uint8_t *record = malloc(16384 + 64), nothing[1];
    size_t n;

    if (!record) {
        return SEC_E_INSUFFICIENT_MEMORY;
    }
    for (size_t at = 0; at < len && st == SEC_E_OK;) {
        size_t part = len - at < 16384 ? len - at : 16384;
        int r;
        c->in = record;
        c->in_len = tw_half_seal(c->records, &c->shadow->read,
                                 SSL3_RT_HANDSHAKE, message + at, part,
                                 record);
        c->in_pos = 0;
        at += part;
        ERR_clear_error();
        r = SSL_read_ex(c->ssl, nothing, sizeof(nothing), &n);
        if (r == 1 || c->in_pos != c->in_len
            || SSL_get_error(c->ssl, r) != SSL_ERROR_WANT_READ) {
            /* its alert, sealed anew, is in the output */
            st = c->out_len > 0
                     ? tw_octx_failure(c)
                     : tw_octx_records_failed(c, SSL_AD_UNEXPECTED_MESSAGE);
            ERR_clear_error();
        }
    }
    c->in = NULL;
    c->in_len = c->in_pos = 0;
    free(record);
    return st;
}

bool tw_octx_send_update(struct tw_octx *c)
{
    static const uint8_t update[5] = { SSL3_MT_KEY_UPDATE, 0, 0, 1, 0 };

    return send_record(c, SSL3_RT_HANDSHAKE, update, sizeof(update))
           && tw_records_update(c->records, &c->records->write);
}

/* Tickets that are worth what libssl does for each, 20 us: a record has room
   for hundreds, and a server may send as many records as it likes. */
#define TICKETS_FED 32

/* One whole message behind the handshake, of a kind that judge_message
   lets pass; more: bytes that follow it in its record. */
static SECURITY_STATUS message(struct tw_octx *c, const uint8_t *m,
                               size_t len, size_t more)
{
    SECURITY_STATUS st = SEC_E_OK;

    if (m[0] == SSL3_MT_CLIENT_HELLO) {
        /* a TLS 1.2 server does not renegotiate, as by libssl's default */
        return tw_octx_send_alert(c, SSL3_AL_WARNING, SSL_AD_NO_RENEGOTIATION)
                   ? SEC_E_OK
                   : tw_octx_records_failed(c, SSL_AD_INTERNAL_ERROR);
    }
    if (m[0] == SSL3_MT_KEY_UPDATE) {
        if (m[4] > 1) {
            return tw_octx_records_failed(c, SSL_AD_ILLEGAL_PARAMETER);
        }
        if (more > 0) { /* RFC 8446, 5.1: no message spans a key change */
            return tw_octx_records_failed(c, SSL_AD_UNEXPECTED_MESSAGE);
        }
        if (!tw_records_update(c->records, &c->records->read)) {
            return tw_octx_records_failed(c, SSL_AD_INTERNAL_ERROR);
        }
        c->update_asked = c->update_asked || m[4] == 1;
        return SEC_E_OK;
    }
    if (c->ssl && c->tickets < TICKETS_FED) {
        st = feed(c, m, len);
        c->tickets++;
    }
    return st;
}

/* The longest of each kind that libssl takes as well. */
#define TICKET_MAX 16384u

#define HELLO_MAX 131396u

/* A message by its first four bytes: the alert that refuses it, or 0. Told
   before the rest is waited for. */
static int judge_message(const struct tw_octx *c, const uint8_t *m,
                         size_t len)
{
    bool tls13 = c->records->tls13;

    if (tls13 && m[0] == SSL3_MT_KEY_UPDATE) {
        return len == 1 ? 0 : len > 1 ? SSL_AD_ILLEGAL_PARAMETER
                                      : SSL_AD_DECODE_ERROR;
    }
    if (tls13 && m[0] == SSL3_MT_NEWSESSION_TICKET && c->role == TW_CLIENT) {
        return len <= TICKET_MAX ? 0 : SSL_AD_ILLEGAL_PARAMETER;
    }
    if (!tls13 && m[0] == SSL3_MT_CLIENT_HELLO && c->role == TW_SERVER) {
        return len <= HELLO_MAX ? 0 : SSL_AD_ILLEGAL_PARAMETER;
    }
    return SSL_AD_UNEXPECTED_MESSAGE;
}

/* Handshake bytes behind the handshake: messages may be spread over
   records, and several may lie in one. */
static SECURITY_STATUS handshake_bytes(struct tw_octx *c, const uint8_t *p,
                                       size_t n)
{
    SECURITY_STATUS st = SEC_E_OK;
    uint8_t *whole = NULL;
    bool any = false;

    if (n == 0) { /* RFC 8446, 5.1 */
        return tw_octx_records_failed(c, SSL_AD_UNEXPECTED_MESSAGE);
    }
    if (c->partial_len > 0) {
        whole = realloc(c->partial, c->partial_len + n);
        if (!whole) {
            return tw_octx_records_failed(c, SSL_AD_INTERNAL_ERROR);
        }
        memcpy(whole + c->partial_len, p, n);
        n += c->partial_len;
        c->partial = NULL;
        c->partial_len = 0;
        p = whole;
    }
    while (st == SEC_E_OK && n >= 4) {
        size_t len = 4 + ((size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3]);
        int alert = judge_message(c, p, len - 4);
        if (alert) {
            st = tw_octx_records_failed(c, alert);
        } else if (n < len) {
            break;
        } else {
            st = message(c, p, len, n - len);
            any = true;
            p += len;
            n -= len;
        }
    }
    if (st == SEC_E_OK && n > 0) {
        if (whole && p == whole) {
            c->partial = whole; /* no copy with each piece of a message */
            whole = NULL;
        } else {
            c->partial = malloc(n);
            if (c->partial) {
                memcpy(c->partial, p, n);
            }
        }
        c->partial_len = c->partial ? n : 0;
        if (!c->partial) {
            st = tw_octx_records_failed(c, SSL_AD_INTERNAL_ERROR);
        }
    }
    free(whole);
    return st != SEC_E_OK ? st : any ? SEC_I_RENEGOTIATE : SEC_E_OK;
}

/* At a TLS 1.2 client: a HelloRequest, which its SSL object answers. */
static SECURITY_STATUS hello_request(struct tw_octx *c, const uint8_t *p,
                                     size_t n)
{
    SECURITY_STATUS st;

    if (n == 0) {
        return tw_octx_records_failed(c, SSL_AD_UNEXPECTED_MESSAGE);
    }
    c->saw_handshake = false;
    st = feed(c, p, n);
    return st != SEC_E_OK ? st
           : c->saw_handshake ? SEC_I_RENEGOTIATE : SEC_E_OK;
}

/* RFC 8446, 6; RFC 5246, 7.2. */
static SECURITY_STATUS alert_bytes(struct tw_octx *c, const uint8_t *p,
                                   size_t n)
{
    bool tls13 = c->records->tls13;

    if (n != 2) {
        return tw_octx_records_failed(c, SSL_AD_DECODE_ERROR);
    }
    if (p[1] == SSL_AD_CLOSE_NOTIFY && (tls13 || p[0] == SSL3_AL_WARNING)) {
        return SEC_I_CONTEXT_EXPIRED;
    }
    /* 1.3: all but these two are fatal, whatever the level says */
    if (tls13 ? p[1] == SSL_AD_USER_CANCELLED : p[0] == SSL3_AL_WARNING) {
        return SEC_E_OK;
    }
    if (!tls13 && p[0] != SSL3_AL_FATAL) {
        return tw_octx_records_failed(c, SSL_AD_ILLEGAL_PARAMETER);
    }
    c->alert_received = p[1];
    tw_octx_forget_session(c);
    c->dead = true;
    return tw_octx_status_of_alert(p[1]);
}

SECURITY_STATUS tw_octx_engine_open(struct tw_octx *c, const uint8_t *p,
                                    size_t span, uint8_t *dst, size_t room,
                                    size_t *n)
{
    SECURITY_STATUS st;
    uint8_t type;
    size_t len;
    bool split;
    enum tw_fault fault =
        tw_records_open(c->records, p, span, dst, room, &len, &type);

    *n = 0;
    if (fault != TW_FAULT_NONE) {
        return tw_octx_records_failed(c, tw_fault_alert(fault));
    }
    /* RFC 8446, 5.1: nothing comes between the parts of a message; RFC
       5246, 6.2.1: it may */
    split = c->partial_len > 0 && c->records->tls13;
    if (type == SSL3_RT_APPLICATION_DATA && !split) {
        *n = len;
        if (c->ssl && c->tickets > 0 && !ssl_needed(c)) {
            tw_octx_drop_ssl(c, true);
        }
        return SEC_E_OK;
    }
    if (type == SSL3_RT_HANDSHAKE) {
        st = !c->records->tls13 && c->ssl ? hello_request(c, dst, len)
                                          : handshake_bytes(c, dst, len);
    } else if (type == SSL3_RT_ALERT && !split) {
        st = alert_bytes(c, dst, len);
    } else {
        st = tw_octx_records_failed(c, SSL_AD_UNEXPECTED_MESSAGE);
    }
    OPENSSL_cleanse(dst, len);
    return st;
}

SECURITY_STATUS tw_octx_renew(struct tw_octx *c)
{
    struct tw_kept *k = keep(c);

    tw_octx_shadow_free(c);
    if (!k) {
        return SEC_E_INSUFFICIENT_MEMORY;
    }
    tw_kept_free(c->kept);
    c->kept = k;
    if (!c->records) {
        return SEC_E_OK;
    }
    tw_records_fini(c->records);
    if (!start_records(c, c->records, aead_of(k->cipher))) {
        /* another kind of suite: the SSL object has the keys */
        free(c->records);
        c->records = NULL;
        return SEC_E_OK;
    }
    return start_shadow(c) ? SEC_E_OK : SEC_E_INSUFFICIENT_MEMORY;
}
