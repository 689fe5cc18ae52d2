/*
 * A context of the OpenSSL engine: its SSL object, the BIO under it, and
 * what the SSL object calls back.
 *
 * The SSL object never sees a socket. Its BIO is a pair of spans: `in`
 * points into the caller's input and holds only whole records (what the SSL
 * object has not taken of it is SECBUFFER_EXTRA), output goes to the
 * caller's buffer (EncryptMessage) or gathers in `out`, which becomes the
 * token. So the SSL object holds no partial record, and "how much is
 * missing" is always arithmetic on the record header.
 *
 * Callbacks take note and return: the decision about the peer is the
 * core's (handshake_openssl.c says where the engine stops for it).
 */
#include "sspi/context_openssl.h"

#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <openssl/crypto.h>

static BIO_METHOD *span_method;
static int context_index = -1;
static CRYPTO_ONCE once = CRYPTO_ONCE_STATIC_INIT;

static int span_read(BIO *bio, char *dst, size_t cap, size_t *n)
{
    struct tw_octx *c = BIO_get_data(bio);
    size_t left = c->in_len - c->in_pos;

    BIO_clear_retry_flags(bio);
    *n = left < cap ? left : cap;
    if (*n == 0) {
        c->dry = true;
        BIO_set_retry_read(bio);
        return 0;
    }
    memcpy(dst, c->in + c->in_pos, *n);
    c->in_pos += *n;
    return 1;
}

uint8_t *tw_octx_out_reserve(struct tw_octx *c, size_t n)
{
    if (n > c->out_room - c->out_len) {
        size_t room = c->out_room ? c->out_room : n < 512 ? 512 : 4096;
        while (room - c->out_len < n) {
            room *= 2;
        }
        uint8_t *bigger = realloc(c->out, room);
        if (!bigger) {
            c->out_failed = true;
            return NULL;
        }
        c->out = bigger;
        c->out_room = room;
    }
    return c->out + c->out_len;
}

bool tw_octx_out_append(struct tw_octx *c, const uint8_t *src, size_t len)
{
    uint8_t *at = tw_octx_out_reserve(c, len);

    if (!at) {
        return false;
    }
    memcpy(at, src, len);
    c->out_len += len;
    return true;
}

/* Notes what the engine must know of records that the SSL object writes in
   a handshake: how many follow the peer's Finished (TLS 1.3: tickets), and
   the explicit nonce of the last (TLS 1.2: Finished). */
static void note_record(struct tw_octx *c, const uint8_t *p, size_t span)
{
    uint64_t nonce = 0;

    if (p[0] == SSL3_RT_APPLICATION_DATA && c->peer_finished
        && c->sealed < UINT8_MAX) {
        c->sealed++;
    }
    for (size_t i = TW_HEADER; i < TW_HEADER + 8 && i < span; i++) {
        nonce = nonce << 8 | p[i];
    }
    c->nonce = nonce;
}

static int span_write(BIO *bio, const char *src, size_t len, size_t *n)
{
    struct tw_octx *c = BIO_get_data(bio);
    const uint8_t *p = (const uint8_t *)src;

    BIO_clear_retry_flags(bio);
    *n = len;
    if (c->sink && len <= c->sink_room - c->sink_len) {
        memcpy(c->sink + c->sink_len, src, len);
        c->sink_len += len;
        return 1;
    }
    /* libssl writes whole records */
    for (size_t at = 0; at + TW_HEADER <= len;) {
        size_t span = TW_HEADER + ((size_t)p[at + 3] << 8 | p[at + 4]);
        if (span > len - at) {
            break;
        }
        if (!c->open || SSL_in_init(c->ssl)) {
            note_record(c, p + at, span);
        }
        if (c->shadow && !tw_octx_reseal_output(c, p + at, span)) {
            return 0;
        }
        at += span;
    }
    return c->shadow || tw_octx_out_append(c, p, len);
}

static long span_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
    (void)bio;
    (void)num;
    (void)ptr;
    return cmd == BIO_CTRL_FLUSH ? 1 : 0;
}

static void initialise(void)
{
    span_method = BIO_meth_new(
        BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "caller's spans");
    if (span_method) {
        BIO_meth_set_read_ex(span_method, span_read);
        BIO_meth_set_write_ex(span_method, span_write);
        BIO_meth_set_ctrl(span_method, span_ctrl);
    }
    context_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
}

bool tw_octx_ready(void)
{
    return CRYPTO_THREAD_run_once(&once, initialise) && span_method
           && context_index >= 0;
}

struct tw_octx *tw_octx_of(const SSL *ssl)
{
    return SSL_get_ex_data(ssl, context_index);
}

SECURITY_STATUS tw_octx_status_of_alert(int alert)
{
    switch (alert) {
    case SSL_AD_BAD_RECORD_MAC:
        return SEC_E_MESSAGE_ALTERED;
    case SSL_AD_PROTOCOL_VERSION:
        return SEC_E_UNSUPPORTED_FUNCTION;
    case SSL_AD_UNKNOWN_CA:
        return SEC_E_UNTRUSTED_ROOT;
    case SSL_AD_CERTIFICATE_EXPIRED:
        return SEC_E_CERT_EXPIRED;
    case SSL_AD_CERTIFICATE_REVOKED:
        return CRYPT_E_REVOKED;
    case SSL_AD_BAD_CERTIFICATE:
    case SSL_AD_UNSUPPORTED_CERTIFICATE:
    case SSL_AD_CERTIFICATE_UNKNOWN:
        return SEC_E_CERT_UNKNOWN;
    case TLS13_AD_CERTIFICATE_REQUIRED:
        return SEC_E_NO_CREDENTIALS;
    case SSL_AD_NO_APPLICATION_PROTOCOL:
        return SEC_E_APPLICATION_PROTOCOL_MISMATCH;
    case SSL_AD_UNRECOGNIZED_NAME:
        return SEC_E_WRONG_PRINCIPAL;
    case SSL_AD_INSUFFICIENT_SECURITY:
        return SEC_E_ALGORITHM_MISMATCH;
    case SSL_AD_ACCESS_DENIED:
        return SEC_E_LOGON_DENIED;
    case SSL_AD_INTERNAL_ERROR:
        return SEC_E_INTERNAL_ERROR;
    default:
        return SEC_E_ILLEGAL_MESSAGE;
    }
}

static SECURITY_STATUS status_of_reason(struct tw_octx *c, int reason)
{
    switch (reason) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
        return SEC_E_CERT_UNKNOWN;
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return SEC_E_NO_CREDENTIALS;
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_VERSION_TOO_LOW:
    case SSL_R_WRONG_SSL_VERSION:
    case SSL_R_NO_PROTOCOLS_AVAILABLE:
        return SEC_E_UNSUPPORTED_FUNCTION;
    case SSL_R_NO_SHARED_CIPHER:
    case SSL_R_NO_SUITABLE_KEY_SHARE:
    case SSL_R_NO_SUITABLE_GROUPS:
    case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
    case SSL_R_NO_SHARED_SIGNATURE_ALGORITHMS:
    case SSL_R_NO_CIPHERS_AVAILABLE:
    case SSL_R_DH_KEY_TOO_SMALL:
    case SSL_R_EE_KEY_TOO_SMALL:
    case SSL_R_CA_KEY_TOO_SMALL:
        return SEC_E_ALGORITHM_MISMATCH;
    case SSL_R_NO_APPLICATION_PROTOCOL:
        return SEC_E_APPLICATION_PROTOCOL_MISMATCH;
    case SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
    case SSL_R_BAD_DECOMPRESSION:
    case SSL_R_DECRYPTION_FAILED:
        return c->open ? SEC_E_MESSAGE_ALTERED : SEC_E_DECRYPT_FAILURE;
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_UNEXPECTED_MESSAGE:
        return c->open ? SEC_E_ILLEGAL_MESSAGE : SEC_E_INVALID_TOKEN;
    default:
        return SEC_E_ILLEGAL_MESSAGE;
    }
}

#ifndef SSL_R_RECORD_LAYER_FAILURE
#define SSL_R_RECORD_LAYER_FAILURE 313 /* since 3.2, which we may meet */
#endif

/* The queue's last error, which is libssl's: those before it are its causes.
   Since 3.2 libssl says last that its record layer failed, and why before
   that. Empties the queue. */
static unsigned long last_error(void)
{
    unsigned long error, last = 0;

    while ((error = ERR_get_error()) != 0) {
        if (last == 0 || ERR_GET_LIB(error) != ERR_LIB_SSL
            || ERR_GET_REASON(error) != SSL_R_RECORD_LAYER_FAILURE) {
            last = error;
        }
    }
    return last;
}

SECURITY_STATUS tw_octx_failure(struct tw_octx *c)
{
    /* the same reason number means something else in another library */
    unsigned long error = last_error();
    SECURITY_STATUS st;

    if (c->out_failed) {
        st = SEC_E_INSUFFICIENT_MEMORY;
    } else if (c->alert_received > 0) {
        st = tw_octx_status_of_alert(c->alert_received);
    } else if (error != 0) {
        st = ERR_GET_REASON(error) == ERR_R_MALLOC_FAILURE
                 ? SEC_E_INSUFFICIENT_MEMORY
                 : status_of_reason(c, ERR_GET_LIB(error) == ERR_LIB_SSL
                                           ? ERR_GET_REASON(error)
                                           : 0);
    } else {
        st = SEC_E_INTERNAL_ERROR;
    }
    c->dead = true;
    return st;
}

static void message_seen(int sent, int version, int type, const void *buf,
                         size_t len, SSL *ssl, void *arg)
{
    struct tw_octx *c = arg;
    const uint8_t *m = buf;

    (void)version;
    if (type == SSL3_RT_ALERT && len == 2) {
        /* close_notify and warnings are not why anything failed */
        if (sent) {
            c->alert_sent = m[1];
        } else if (SSL_version(ssl) == TLS1_3_VERSION
                       ? m[1] != SSL_AD_CLOSE_NOTIFY
                             && m[1] != SSL_AD_USER_CANCELLED
                       : m[0] == SSL3_AL_FATAL) {
            c->alert_received = m[1];
        }
    } else if (type == SSL3_RT_HANDSHAKE && !sent && len >= 4) {
        if (m[0] == SSL3_MT_FINISHED) {
            c->peer_finished = true;
        }
        if (c->open) {
            c->saw_handshake = true;
            if (m[0] == SSL3_MT_KEY_UPDATE && len == 5 && m[4] == 1) {
                c->update_asked = true;
            }
        }
    }
}

/* Where secrets are to be noted: NULL if they are not, or cannot be. */
static struct tw_traffic *traffic_of(struct tw_octx *c)
{
    if (c->open || SSL_version(c->ssl) != TLS1_3_VERSION
        || (c->verdict == TW_ACCEPTED && !c->cred->engine)) {
        return NULL;
    }
    if (!c->traffic) {
        c->traffic = calloc(1, sizeof(*c->traffic));
    }
    return c->traffic;
}

void tw_octx_secret_logged(const SSL *ssl, const char *line)
{
    struct tw_traffic *traffic = traffic_of(tw_octx_of(ssl));

    if (traffic) {
        tw_traffic_note(traffic, line);
    }
}

void tw_octx_secret_heard(void *context, const char *label, size_t label_len,
                          const uint8_t *secret, size_t len)
{
    int at = tw_traffic_index(label, label_len);
    struct tw_traffic *traffic = at < 0 ? NULL : traffic_of(context);

    if (traffic && len <= sizeof(traffic->secret[at])) {
        memcpy(traffic->secret[at], secret, len);
        traffic->len[at] = len;
    }
}

void tw_octx_forget_secrets(struct tw_octx *c)
{
    if (c->traffic) {
        tw_traffic_wipe(c->traffic);
        free(c->traffic);
        c->traffic = NULL;
    }
}

int tw_octx_verify_peer(X509_STORE_CTX *store, void *arg)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(
        store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct tw_octx *c = tw_octx_of(ssl);

    (void)arg;
    if (c->open) {
        /* a renegotiation: the core compares the certificates */
        tw_openssl_cert_free(c->peer);
        c->peer = NULL;
    }
    if (!c->peer) {
        c->peer = tw_openssl_peer_new(X509_STORE_CTX_get0_cert(store),
                                      X509_STORE_CTX_get0_untrusted(store));
        if (!c->peer) {
            X509_STORE_CTX_set_error(store, X509_V_ERR_OUT_OF_MEM);
            return 0;
        }
    }
    if (c->role == TW_SERVER
        || (SSL_version(ssl) < TLS1_3_VERSION && !c->open)) {
        /* the core holds everything back until the verdict */
        X509_STORE_CTX_set_error(store, X509_V_OK);
        return 1;
    }
    if (c->verdict == TW_UNASKED || c->verdict == TW_PAUSED) {
        c->verdict = TW_PAUSED;
        (void)SSL_set_retry_verify(ssl);
        return 1;
    }
    /* a refused context is never stepped again; were it, it fails here */
    X509_STORE_CTX_set_error(store,
                             c->verdict == TW_ACCEPTED
                                 ? X509_V_OK
                                 : X509_V_ERR_APPLICATION_VERIFICATION);
    return c->verdict == TW_ACCEPTED;
}

int tw_octx_choose_certificate(SSL *ssl, void *arg)
{
    struct tw_octx *c = tw_octx_of(ssl);

    (void)arg;
    if (c->role == TW_SERVER || c->supplied || SSL_get_certificate(ssl)) {
        return 1;
    }
    c->lookup = c->asked = true;
    return -1;
}

int tw_octx_choose_alpn(SSL *ssl, const unsigned char **out,
                        unsigned char *out_len, const unsigned char *in,
                        unsigned in_len, void *arg)
{
    struct tw_octx *c = tw_octx_of(ssl);
    unsigned char *chosen = NULL;

    (void)arg;
    if (!c->alpn) {
        return SSL_TLSEXT_ERR_NOACK;
    }
    if (SSL_select_next_proto(&chosen, out_len, c->alpn,
                              (unsigned)c->alpn_len, in, in_len)
        != OPENSSL_NPN_NEGOTIATED) {
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    }
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

struct tw_octx *tw_octx_at(PCtxtHandle handle)
{
    if (!handle || !SecIsValidHandle(handle)) {
        return NULL;
    }
    return (struct tw_octx *)handle->dwLower;
}

void tw_octx_shadow_free(struct tw_octx *c)
{
    if (c->shadow) {
        tw_half_fini(&c->shadow->read);
        tw_half_fini(&c->shadow->write);
        OPENSSL_cleanse(c->shadow, sizeof(*c->shadow));
        free(c->shadow);
        c->shadow = NULL;
    }
}

void tw_octx_drop_ssl(struct tw_octx *c, bool good)
{
    if (c->ssl) {
        if (good) {
            /* without this the session would not be resumable */
            SSL_set_shutdown(c->ssl,
                             SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        }
        SSL_free(c->ssl);
        c->ssl = NULL;
    }
    tw_octx_shadow_free(c);
}

void tw_kept_free(struct tw_kept *k)
{
    if (k) {
        X509_free(k->local);
        sk_X509_pop_free(k->chain, X509_free);
        SSL_SESSION_free(k->session);
        OPENSSL_cleanse(k, sizeof(*k));
        free(k);
    }
}

static void partial_free(struct tw_octx *c)
{
    free(c->partial);
    c->partial = NULL;
    c->partial_len = 0;
}

void tw_octx_free(struct tw_octx *c)
{
    if (!c) {
        return;
    }
    tw_octx_drop_ssl(c, c->open && !c->dead);
    tw_kept_free(c->kept);
    if (c->records) {
        tw_records_fini(c->records);
        free(c->records);
    }
    partial_free(c);
    tw_openssl_cert_free(c->peer);
    tw_octx_forget_secrets(c);
    if (c->out) {
        OPENSSL_cleanse(c->out, c->out_room);
        free(c->out);
    }
    free(c->alpn);
    free(c->target);
    tw_ocred_free(c->cred);
    free(c);
}

static bool is_address(const char *name)
{
    unsigned char bytes[16];

    return inet_pton(AF_INET, name, bytes) == 1
           || inet_pton(AF_INET6, name, bytes) == 1;
}

/* UTF-16 to ASCII: a target name is A-labels or an address literal. */
static bool set_target(struct tw_octx *c, const SEC_WCHAR *target)
{
    char ascii[sizeof(((struct tw_cached *)0)->target)];
    size_t n = 0;

    for (; target && target[n]; n++) {
        if (target[n] > 0x7e || target[n] < 0x21 || n + 1 >= sizeof(ascii)) {
            return false;
        }
        ascii[n] = (char)target[n];
    }
    ascii[n] = '\0';
    if (n > 0 && (c->target = malloc(n + 1))) {
        memcpy(c->target, ascii, n + 1);
    }
    return n == 0 || c->target;
}

static SECURITY_STATUS set_client(struct tw_octx *c)
{
    SSL_SESSION *session;

    SSL_set_connect_state(c->ssl);
    SSL_set_verify(c->ssl, SSL_VERIFY_PEER, NULL);
    if (c->target && !is_address(c->target)
        && !SSL_set_tlsext_host_name(c->ssl, c->target)) {
        return SEC_E_TARGET_UNKNOWN;
    }
    (void)SSL_set_tlsext_status_type(c->ssl, TLSEXT_STATUSTYPE_ocsp);
    if (c->alpn
        && SSL_set_alpn_protos(c->ssl, c->alpn, (unsigned)c->alpn_len)
               != 0) {
        return SEC_E_INVALID_TOKEN;
    }
    if (!(c->cred->flags & TW_CRED_NO_RESUME) && c->target) {
        session = tw_ocred_take_session(c->cred, c->target);
        if (session) {
            (void)SSL_set_session(c->ssl, session);
            SSL_SESSION_free(session);
        }
    }
    return SEC_E_OK;
}

static SECURITY_STATUS set_server(struct tw_octx *c, bool ask)
{
    /* a session made without asking for a certificate is no good where one
       is asked for, and the other way round (RFC 8446, 4.6.1) */
    static const unsigned char kinds[2] = { 'n', 'c' };

    (void)SSL_set_session_id_context(c->ssl, &kinds[ask], 1);
    if (ask) {
        SSL_set_verify(c->ssl, SSL_VERIFY_PEER, NULL);
        /* a ticket would carry the client's leaf without its chain */
        (void)SSL_set_options(c->ssl, SSL_OP_NO_TICKET);
    } else {
        SSL_set_verify(c->ssl, SSL_VERIFY_NONE, NULL);
    }
    /* last: OpenSSL 3.5 says nothing of a record layer that it had no memory
       for here, and setting options would crash */
    SSL_set_accept_state(c->ssl);
    return SEC_E_OK;
}

/* SEC_APPLICATION_PROTOCOLS: u32 size, u32 extension, u16 list, bytes. */
static SECURITY_STATUS set_alpn(struct tw_octx *c, const SecBuffer *buffer)
{
    const uint8_t *p = buffer->pvBuffer;
    uint16_t len;

    if (!p || buffer->cbBuffer < 10) {
        return SEC_E_INVALID_TOKEN;
    }
    memcpy(&len, p + 8, sizeof(len));
    if (len == 0 || (size_t)len + 10 > buffer->cbBuffer) {
        return SEC_E_INVALID_TOKEN;
    }
    c->alpn = malloc(len);
    if (!c->alpn) {
        return SEC_E_INSUFFICIENT_MEMORY;
    }
    memcpy(c->alpn, p + 10, len);
    c->alpn_len = len;
    return SEC_E_OK;
}

struct tw_octx *tw_octx_new(struct tw_ocred *cred,
                            enum tw_role role,
                            const SEC_WCHAR *target,
                            const SecBuffer *alpn, bool ask,
                            SECURITY_STATUS *st)
{
    struct tw_octx *c = calloc(1, sizeof(*c));
    BIO *bio = NULL;

    *st = SEC_E_INSUFFICIENT_MEMORY;
    if (!c) {
        return NULL;
    }
    tw_count_up(&cred->refs);
    c->cred = cred;
    c->role = role;
    c->alert = c->alert_received = c->alert_sent = -1;
    c->ssl = SSL_new(cred->ssl_ctx);
    bio = c->ssl ? BIO_new(span_method) : NULL;
    if (!bio || !SSL_set_ex_data(c->ssl, context_index, c)) {
        BIO_free(bio);
        goto failed;
    }
    BIO_set_data(bio, c);
    BIO_set_init(bio, 1);
    SSL_set_bio(c->ssl, bio, bio);
    SSL_set_msg_callback(c->ssl, message_seen);
    SSL_set_msg_callback_arg(c->ssl, c);
    if (alpn && (*st = set_alpn(c, alpn)) != SEC_E_OK) {
        goto failed;
    }
    if (!set_target(c, target)) {
        *st = SEC_E_TARGET_UNKNOWN;
        goto failed;
    }
    *st = role == TW_CLIENT ? set_client(c) : set_server(c, ask);
    if (*st == SEC_E_OK) {
        return c;
    }
failed:
    tw_octx_free(c);
    return NULL;
}

bool tw_octx_header_broken(const uint8_t *p, size_t len)
{
    return len >= TW_HEADER
           && (p[0] < 20 || p[0] > 24 || p[1] != 3
               || ((size_t)p[3] << 8 | p[4]) > TW_LENGTH_MAX);
}

size_t tw_octx_record_span(const uint8_t *p, size_t len, size_t *missing)
{
    size_t body;

    *missing = 0;
    if (len < TW_HEADER) {
        *missing = TW_HEADER - len;
        return 0;
    }
    if (tw_octx_header_broken(p, len)) {
        return p[0] < 20 || p[0] > 24 ? len : TW_HEADER;
    }
    body = (size_t)p[3] << 8 | p[4];
    if (len - TW_HEADER < body) {
        *missing = body - (len - TW_HEADER);
        return 0;
    }
    return TW_HEADER + body;
}

const SSL_CIPHER *tw_octx_current_cipher(const struct tw_octx *c)
{
    return c->kept ? c->kept->cipher : SSL_get_current_cipher(c->ssl);
}

int tw_octx_current_version(const struct tw_octx *c)
{
    return c->kept ? c->kept->version : SSL_version(c->ssl);
}

bool tw_octx_is_resumed(const struct tw_octx *c)
{
    return c->kept ? c->kept->resumed : SSL_session_reused(c->ssl) != 0;
}
