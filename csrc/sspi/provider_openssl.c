/*
 * The OpenSSL engine: a SecurityFunctionTableW that keeps Schannel's
 * contract over an SSL object.
 *
 * Theory of operation. The SSL object never sees a socket. Its BIO is a
 * pair of spans: `in` points into the caller's input and holds only whole
 * records (what the SSL object has not taken of it is SECBUFFER_EXTRA),
 * output goes to the caller's buffer (EncryptMessage) or gathers in `out`,
 * which becomes the token. So the SSL object holds no partial record, and
 * "how much is missing" is always arithmetic on the record header.
 *
 * The pause for a verdict lies before anything is sent that depends on it:
 *   client, TLS 1.3           SSL_set_retry_verify inside the callback,
 *                             before our Finished
 *   client, TLS 1.2           the callback comes before the message with
 *                             the stapled OCSP answer, which the verdict
 *                             needs: it takes note of the certificate, and
 *                             the core holds the token with our Finished
 *   client, resumed           records are fed one by one; we stop after
 *                             ServerHello, where the session is known
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
 *
 * Once the handshake is over and judged, the record engine takes over where
 * it can (engage(); record_openssl.c): it has the keys from the secrets that
 * the SSL object logs, and the SSL object goes as soon as nothing can need
 * it: at once on a server, on a client once its ticket is there. Until then
 * it is fed what is its to read (tickets; in TLS 1.2 a HelloRequest and the
 * renegotiation that follows), sealed anew under the sequence numbers that
 * it stands at; what it writes is opened and sealed anew as well (struct
 * shadow). Where the engine cannot, records go through the SSL object
 * (SSL_read, SSL_write): another suite, a failed self-test, a negotiated
 * maximum fragment length, TWAPI_TLS_RECORDS=openssl.
 */
#include "sspi/openssl_internal.h"
#include "sspi/record_openssl.h"
#include "sspi/traffic_openssl.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <arpa/inet.h>
#include <openssl/crypto.h>
#include <openssl/x509v3.h>

#define SERVER_SESSIONS 1024 /* kept for resumption without a ticket */
#define HEADER 5u                     /* RFC 8446, 5.1 */
#define LENGTH_MAX (16384u + 2048u)   /* RFC 5246, 6.2.3 */
#define SESSIONS_MAX 512              /* per credentials, all targets */

/* A client's cached session: one ticket of one target. */
struct cached {
    struct cached *next;
    SSL_SESSION *session; /* owned */
    char target[256];
};

struct credentials {
    struct tw_count refs;
    SSL_CTX *ssl_ctx;
    enum tw_role role;
    uint32_t flags;        /* TW_CRED_... */
    bool has_cert;
    bool engine;           /* contexts may use the record engine */
    struct tw_lock lock;   /* around sessions */
    struct cached *sessions; /* newest first */
    size_t session_count;
};

enum verdict { UNASKED, PAUSED, ACCEPTED, REFUSED };

/* What is asked about a connection once its handshake is over; outlives the
   SSL object. */
struct kept {
    const SSL_CIPHER *cipher; /* in libssl's tables */
    const char *group;        /* in libssl's, or the SSL_CTX's; may be NULL */
    X509 *local;              /* owned; NULL without */
    STACK_OF(X509) *chain;    /* owned; sent with local; may be NULL */
    SSL_SESSION *session;     /* owned; TLS 1.2 server: not to be resumed
                                 after a fatal alert */
    int version;              /* TLS1_2_VERSION ... */
    bool resumed;
    uint8_t unique_len;       /* TLS 1.2: tls-unique */
    uint8_t alpn_len;
    uint8_t exporter[TW_SECRET_MAX]; /* TLS 1.3: exporter_master_secret;
                                        1.2: master secret */
    uint8_t seed[64];         /* TLS 1.2: client's random, server's */
    uint8_t unique[36];
    uint8_t alpn[];           /* alpn_len bytes */
};

/* Where an SSL object that is still fed stands: keys as it knows them. */
struct shadow {
    struct tw_half read, write;
    bool read_through, write_through; /* behind its ChangeCipherSpec: its
                              records are the wire's */
};

struct context {
    struct credentials *cred; /* counted */
    SSL *ssl;              /* NULL once the record engine needs none */
    struct kept *kept;     /* owned; NULL until engage() */
    struct tw_records *records; /* owned; NULL: records are ssl's */
    struct shadow *shadow; /* owned; while records and ssl are both there */
    uint8_t *partial;      /* owned; the start of a handshake message */
    size_t partial_len;
    bool sent_shutdown;    /* records: close_notify is out */
    bool ticket_fed;       /* records: ssl has got a ticket */
    bool peer_finished;    /* the peer's Finished was read */
    uint8_t sealed;        /* records of ours since then, TLS 1.3 */
    uint64_t nonce;        /* TLS 1.2: explicit nonce of ssl's last record */
    enum tw_role role;
    const uint8_t *in;     /* what the BIO may read; the caller's memory */
    size_t in_len, in_pos;
    uint8_t *out;          /* output gathered, owned */
    size_t out_len, out_room;
    bool dry;              /* more input was asked for than there is */
    bool out_failed;       /* no memory for output */
    uint8_t *sink;         /* EncryptMessage: goes straight here */
    size_t sink_room, sink_len;
    size_t replay;         /* input bytes taken by a step that answered
                              INCOMPLETE_CREDENTIALS; they come again */
    struct tw_cert *peer;  /* owned; from the verify callback */
    enum verdict verdict;
    struct tw_traffic *traffic; /* owned; TLS 1.3, until open */
    bool suspended;        /* by retry_verify, or by drive() */
    bool lookup;           /* suspended in the client's cert_cb */
    bool supplied;         /* go on with what credentials there are */
    bool asked;            /* for a certificate that our credentials lack */
    bool chosen;           /* other credentials gave it */
    bool flight;           /* the peer's flight is whole, or we pause */
    bool open;             /* the first handshake is over */
    bool dead;
    bool shutdown;         /* a SCHANNEL_SHUTDOWN token waits */
    int alert;             /* a SCHANNEL_ALERT token waits: number, -1 */
    bool saw_handshake;    /* a handshake message came while open */
    bool update_asked;     /* KeyUpdate with update_requested */
    int alert_received, alert_sent;
    uint8_t *alpn;         /* server: our list, owned */
    size_t alpn_len;
    char *target;          /* client: whom to resume with, owned; may be
                              NULL */
};

static BIO_METHOD *span_method;
static int context_index = -1;
static CRYPTO_ONCE once = CRYPTO_ONCE_STATIC_INIT;

/* ------------------------------------------------------------- the BIO */

static int span_read(BIO *bio, char *dst, size_t cap, size_t *n)
{
    struct context *c = BIO_get_data(bio);
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

/* Room for n bytes behind what is gathered, or NULL. */
static uint8_t *out_reserve(struct context *c, size_t n)
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

static bool out_append(struct context *c, const uint8_t *src, size_t len)
{
    uint8_t *at = out_reserve(c, len);

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
static void note_record(struct context *c, const uint8_t *p, size_t span)
{
    uint64_t nonce = 0;

    if (p[0] == SSL3_RT_APPLICATION_DATA && c->peer_finished
        && c->sealed < UINT8_MAX) {
        c->sealed++;
    }
    for (size_t i = HEADER; i < HEADER + 8 && i < span; i++) {
        nonce = nonce << 8 | p[i];
    }
    c->nonce = nonce;
}

static bool reseal_output(struct context *c, const uint8_t *p, size_t span);

static int span_write(BIO *bio, const char *src, size_t len, size_t *n)
{
    struct context *c = BIO_get_data(bio);
    const uint8_t *p = (const uint8_t *)src;

    BIO_clear_retry_flags(bio);
    *n = len;
    if (c->sink && len <= c->sink_room - c->sink_len) {
        memcpy(c->sink + c->sink_len, src, len);
        c->sink_len += len;
        return 1;
    }
    /* libssl writes whole records */
    for (size_t at = 0; at + HEADER <= len;) {
        size_t span = HEADER + ((size_t)p[at + 3] << 8 | p[at + 4]);
        if (span > len - at) {
            break;
        }
        if (!c->open || SSL_in_init(c->ssl)) {
            note_record(c, p + at, span);
        }
        if (c->shadow && !reseal_output(c, p + at, span)) {
            return 0;
        }
        at += span;
    }
    return c->shadow || out_append(c, p, len);
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

static bool ready(void)
{
    return CRYPTO_THREAD_run_once(&once, initialise) && span_method
           && context_index >= 0;
}

static struct context *context_of(const SSL *ssl)
{
    return SSL_get_ex_data(ssl, context_index);
}

/* ------------------------------------------------- errors and alerts */

static SECURITY_STATUS status_of_alert(int alert)
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

static SECURITY_STATUS status_of_reason(struct context *c, int reason)
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

/* After a failed SSL call: what it was, in SSPI's words. */
static SECURITY_STATUS failure(struct context *c)
{
    /* the last one is libssl's; those before it are its causes, and the
       same reason number means something else in another library */
    unsigned long error = ERR_peek_last_error();
    SECURITY_STATUS st;

    if (c->out_failed) {
        st = SEC_E_INSUFFICIENT_MEMORY;
    } else if (c->alert_received > 0) {
        st = status_of_alert(c->alert_received);
    } else if (error != 0) {
        st = ERR_GET_REASON(error) == ERR_R_MALLOC_FAILURE
                 ? SEC_E_INSUFFICIENT_MEMORY
                 : status_of_reason(c, ERR_GET_LIB(error) == ERR_LIB_SSL
                                           ? ERR_GET_REASON(error)
                                           : 0);
    } else {
        st = SEC_E_INTERNAL_ERROR;
    }
    ERR_clear_error();
    c->dead = true;
    return st;
}

static void message_seen(int sent, int version, int type, const void *buf,
                         size_t len, SSL *ssl, void *arg)
{
    struct context *c = arg;
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

/* TLS 1.3 secrets, for the record engine, and for an alert that libssl
   cannot send. */
static void secret_logged(const SSL *ssl, const char *line)
{
    struct context *c = context_of(ssl);

    if (c->open || SSL_version(ssl) != TLS1_3_VERSION
        || (c->verdict == ACCEPTED && !c->cred->engine)) {
        return;
    }
    if (!c->traffic) {
        c->traffic = calloc(1, sizeof(*c->traffic));
    }
    if (c->traffic) {
        tw_traffic_note(c->traffic, line);
    }
}

static void forget_secrets(struct context *c)
{
    if (c->traffic) {
        tw_traffic_wipe(c->traffic);
        free(c->traffic);
        c->traffic = NULL;
    }
}

/* -------------------------------------------------- SSL's callbacks */

static int verify_peer(X509_STORE_CTX *store, void *arg)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(
        store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct context *c = context_of(ssl);

    (void)arg;
    if (c->open) {
        /* a renegotiation: the core compares the certificates */
        tw_openssl_cert_free(c->peer);
        c->peer = NULL;
    }
    if (!c->peer) {
        c->peer = tw_openssl_cert_new(X509_STORE_CTX_get0_cert(store), NULL,
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
    if (c->verdict == UNASKED || c->verdict == PAUSED) {
        c->verdict = PAUSED;
        (void)SSL_set_retry_verify(ssl);
        return 1;
    }
    /* a refused context is never stepped again; were it, it fails here */
    X509_STORE_CTX_set_error(store,
                             c->verdict == ACCEPTED
                                 ? X509_V_OK
                                 : X509_V_ERR_APPLICATION_VERIFICATION);
    return c->verdict == ACCEPTED;
}

/* The server asks for a certificate (RFC 8446, 4.3.2) and the credentials
   have none: SEC_I_INCOMPLETE_CREDENTIALS. */
static int choose_certificate(SSL *ssl, void *arg)
{
    struct context *c = context_of(ssl);

    (void)arg;
    if (c->role == TW_SERVER || c->supplied || SSL_get_certificate(ssl)) {
        return 1;
    }
    c->lookup = c->asked = true;
    return -1;
}

static int choose_alpn(SSL *ssl, const unsigned char **out,
                       unsigned char *out_len, const unsigned char *in,
                       unsigned in_len, void *arg)
{
    struct context *c = context_of(ssl);
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

static void drop_oldest_lock_held(struct credentials *cred)
{
    struct cached **at = &cred->sessions;

    while (*at && (*at)->next) {
        at = &(*at)->next;
    }
    if (*at) {
        SSL_SESSION_free((*at)->session);
        free(*at);
        *at = NULL;
        cred->session_count--;
    }
}

/* Would the next connection of these credentials be the same client? The
   server remembers what certificate it saw. */
static bool same_client(const struct context *c)
{
    return !c->chosen
           && !(c->asked && (c->cred->flags & TW_CRED_CHOOSES));
}

/* A client's new ticket (RFC 8446, 4.6.1): kept for the next connection
   with the same credentials to the same target. */
static int session_new(SSL *ssl, SSL_SESSION *session)
{
    struct context *c = context_of(ssl);
    struct credentials *cred = c->cred;
    struct cached *item;

    if (c->role != TW_CLIENT || !c->target
        || (cred->flags & TW_CRED_NO_RESUME) || !same_client(c)) {
        return 0;
    }
    item = calloc(1, sizeof(*item));
    if (!item) {
        return 0;
    }
    memcpy(item->target, c->target, strlen(c->target) + 1);
    item->session = session; /* the 1 below keeps this reference */
    tw_lock_acquire(&cred->lock);
    item->next = cred->sessions;
    cred->sessions = item;
    if (++cred->session_count > SESSIONS_MAX) {
        drop_oldest_lock_held(cred);
    }
    tw_lock_release(&cred->lock);
    return 1;
}

static void drop_lock_held(struct credentials *cred, struct cached **at)
{
    struct cached *item = *at;

    *at = item->next;
    cred->session_count--;
    SSL_SESSION_free(item->session);
    free(item);
}

/* Of the credentials' lifespan, or OpenSSL's. */
static bool is_old(const SSL_SESSION *session)
{
    return (long)time(NULL) - SSL_SESSION_get_time(session)
           > SSL_SESSION_get_timeout(session);
}

/* A session for target, or NULL. TLS 1.3 tickets are used once (RFC 8446,
   C.4), others stay. */
static SSL_SESSION *session_take(struct credentials *cred,
                                 const char *target)
{
    SSL_SESSION *found = NULL;

    tw_lock_acquire(&cred->lock);
    for (struct cached **at = &cred->sessions; *at;) {
        struct cached *item = *at;
        if (strcmp(item->target, target) != 0) {
            at = &item->next;
            continue;
        }
        if (is_old(item->session)) {
            drop_lock_held(cred, at);
            continue;
        }
        if (SSL_SESSION_get_protocol_version(item->session)
            == TLS1_3_VERSION) {
            *at = item->next;
            cred->session_count--;
            found = item->session;
            free(item);
        } else {
            found = item->session;
            (void)SSL_SESSION_up_ref(found);
        }
        break;
    }
    tw_lock_release(&cred->lock);
    return found;
}

/* ------------------------------------------------------- credentials */

static void credentials_free(struct credentials *cred)
{
    if (!cred || tw_count_down(&cred->refs) != 0) {
        return;
    }
    while (cred->sessions) {
        drop_oldest_lock_held(cred);
    }
    SSL_CTX_free(cred->ssl_ctx);
    tw_lock_fini(&cred->lock);
    free(cred);
}

static bool self_issued(X509 *x)
{
    return X509_NAME_cmp(X509_get_subject_name(x),
                         X509_get_issuer_name(x)) == 0;
}

/* The path that leads up from leaf, out of pool, without the root. New
   stack with references of its own; NULL when out of memory. */
static STACK_OF(X509) *path_from(X509 *leaf, STACK_OF(X509) *pool)
{
    STACK_OF(X509) *path = sk_X509_new_null();
    X509 *at = leaf;

    while (path && !self_issued(at) && sk_X509_num(path) < 16) {
        X509 *issuer = NULL;
        for (int i = 0; i < sk_X509_num(pool); i++) {
            X509 *x = sk_X509_value(pool, i);
            if (x != at && X509_check_issued(x, at) == X509_V_OK) {
                issuer = x;
                break;
            }
        }
        if (!issuer || self_issued(issuer)) {
            break;
        }
        if (!X509_add_cert(path, issuer, X509_ADD_FLAG_UP_REF)) {
            sk_X509_pop_free(path, X509_free);
            return NULL;
        }
        at = issuer;
    }
    return path;
}

static bool pool_add(STACK_OF(X509) *pool, struct tw_store *store)
{
    for (size_t i = 0; store && i < tw_openssl_store_count(store); i++) {
        struct tw_cert *cert = tw_openssl_store_get(store, i);
        int ok = !cert
                 || X509_add_cert(pool, cert->x509,
                                  X509_ADD_FLAG_UP_REF
                                      | X509_ADD_FLAG_NO_DUP);
        tw_openssl_cert_free(cert);
        if (!ok) {
            return false;
        }
    }
    return true;
}

static enum tw_status use_certificate(SSL_CTX *ctx, SSL *ssl,
                                      struct tw_cert *cert,
                                      struct tw_store *chain,
                                      struct tw_error *err)
{
    enum tw_status st = TW_E_NOMEM;
    STACK_OF(X509) *pool = sk_X509_new_null();
    STACK_OF(X509) *path = NULL;

    if (!cert->key) {
        st = tw_error_set(err, TW_E_ARGUMENT, SEC_E_NO_CREDENTIALS,
                          "the certificate has no private key");
        goto done;
    }
    if (!pool
        || (cert->chain
            && !X509_add_certs(pool, cert->chain, X509_ADD_FLAG_UP_REF
                                                   | X509_ADD_FLAG_NO_DUP))
        || !pool_add(pool, chain)
        || !(path = path_from(cert->x509, pool))) {
        st = tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY, "%s",
                          "out of memory");
        goto done;
    }
    ERR_clear_error();
    if (ctx ? SSL_CTX_use_cert_and_key(ctx, cert->x509, cert->key, path, 1)
            : SSL_use_cert_and_key(ssl, cert->x509, cert->key, path, 1)) {
        st = TW_DONE;
    } else {
        st = tw_openssl_fail(err, TW_E_TLS, SEC_E_UNKNOWN_CREDENTIALS,
                             "the certificate cannot be used");
    }
done:
    sk_X509_pop_free(pool, X509_free);
    sk_X509_pop_free(path, X509_free);
    return st;
}

/* Keeps the suites whose keys have min to max bits. */
static enum tw_status limit_strength(SSL_CTX *ctx, int min, int max,
                                     struct tw_error *err)
{
    char list12[4096] = "", list13[512] = "";
    STACK_OF(SSL_CIPHER) *ciphers = SSL_CTX_get_ciphers(ctx);

    for (int i = 0; i < sk_SSL_CIPHER_num(ciphers); i++) {
        const SSL_CIPHER *cipher = sk_SSL_CIPHER_value(ciphers, i);
        const char *name = SSL_CIPHER_get_name(cipher);
        bool is13 = strncmp(name, "TLS_", 4) == 0;
        char *list = is13 ? list13 : list12;
        size_t room = is13 ? sizeof(list13) : sizeof(list12);
        int bits = SSL_CIPHER_get_bits(cipher, NULL);
        if (bits < min || (max > 0 && bits > max)
            || strlen(list) + strlen(name) + 2 > room) {
            continue;
        }
        if (list[0]) {
            strcat(list, ":");
        }
        strcat(list, name);
    }
    if (!list12[0] && !list13[0]) {
        return max > 0
            ? tw_error_set(err, TW_E_ARGUMENT, SEC_E_ALGORITHM_MISMATCH,
                           "no cipher suite has a key of %d to %d bits",
                           min, max)
            : tw_error_set(err, TW_E_ARGUMENT, SEC_E_ALGORITHM_MISMATCH,
                           "no cipher suite has a key of at least %d bits",
                           min);
    }
    if (!SSL_CTX_set_ciphersuites(ctx, list13)
        || (list12[0] && !SSL_CTX_set_cipher_list(ctx, list12))) {
        return tw_openssl_fail(err, TW_E_ARGUMENT,
                               SEC_E_ALGORITHM_MISMATCH, "cipherstrength");
    }
    if (!list12[0]) {
        (void)SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    }
    return TW_DONE;
}

static enum tw_status set_protocols(SSL_CTX *ctx, uint32_t protocols,
                                    struct tw_error *err)
{
    if (protocols == 0) {
        /* at least TLS 1.2; a system policy may ask for more */
        int floor = (int)SSL_CTX_get_min_proto_version(ctx);
        if (floor < TLS1_2_VERSION) {
            (void)SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
        }
        return TW_DONE;
    }
    if (protocols & ~(uint32_t)(TW_TLS1_2 | TW_TLS1_3)) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            SEC_E_UNSUPPORTED_FUNCTION,
                            "this engine offers TLS 1.2 and TLS 1.3 only");
    }
    if (!SSL_CTX_set_min_proto_version(
            ctx, protocols & TW_TLS1_2 ? TLS1_2_VERSION : TLS1_3_VERSION)
        || !SSL_CTX_set_max_proto_version(
            ctx, protocols & TW_TLS1_3 ? TLS1_3_VERSION : TLS1_2_VERSION)) {
        return tw_openssl_fail(err, TW_E_UNSUPPORTED,
                               SEC_E_UNSUPPORTED_FUNCTION,
                               "the protocol range is not available");
    }
    return TW_DONE;
}

static enum tw_status add_ca_names(SSL_CTX *ctx, struct tw_store *roots,
                                   struct tw_error *err)
{
    for (size_t i = 0; roots && i < tw_openssl_store_count(roots); i++) {
        struct tw_cert *cert = tw_openssl_store_get(roots, i);
        int ok = !cert || SSL_CTX_add_client_CA(ctx, cert->x509);
        tw_openssl_cert_free(cert);
        if (!ok) {
            return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY,
                                "%s", "out of memory");
        }
    }
    return TW_DONE;
}

static enum tw_status configure(struct credentials *cred,
                                const struct tw_credentials_config *config,
                                struct tw_error *err)
{
    SSL_CTX *ctx = cred->ssl_ctx;
    enum tw_status st = set_protocols(ctx, config->protocols, err);

    (void)SSL_CTX_clear_mode(ctx, SSL_MODE_AUTO_RETRY);
    (void)SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS
                                    | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_quiet_shutdown(ctx, 0);
    SSL_CTX_set_cert_verify_callback(ctx, verify_peer, NULL);
    SSL_CTX_set_cert_cb(ctx, choose_certificate, NULL);
    SSL_CTX_set_alpn_select_cb(ctx, choose_alpn, NULL);
    SSL_CTX_set_keylog_callback(ctx, secret_logged);
    if (config->flags & TW_CRED_NO_RESUME) {
        (void)SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
        (void)SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
        (void)SSL_CTX_set_num_tickets(ctx, 0);
    } else if (config->role == TW_CLIENT) {
        (void)SSL_CTX_set_session_cache_mode(
            ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(ctx, session_new);
    } else {
        /* Sessions of TLS 1.2 clients that take no tickets stay here, 1.3
           KB each: libssl's own limit would let them grow to 27 MB. */
        (void)SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER);
        (void)SSL_CTX_sess_set_cache_size(ctx, SERVER_SESSIONS);
        (void)SSL_CTX_set_num_tickets(ctx, 1);
    }
    if (config->session_lifespan > 0) {
        (void)SSL_CTX_set_timeout(ctx, config->session_lifespan);
    }
    if (config->role == TW_SERVER) {
        (void)SSL_CTX_set_options(ctx, SSL_OP_CIPHER_SERVER_PREFERENCE);
    }
    if (st == TW_DONE && config->ciphers
        && !SSL_CTX_set_cipher_list(ctx, config->ciphers)) {
        st = tw_openssl_fail(err, TW_E_ARGUMENT, SEC_E_ALGORITHM_MISMATCH,
                             "no cipher suite of the list is available");
    }
    if (st == TW_DONE && (config->min_bits > 0 || config->max_bits > 0)) {
        st = limit_strength(ctx, config->min_bits, config->max_bits, err);
    }
    for (size_t i = 0; st == TW_DONE && i < config->cert_count; i++) {
        st = use_certificate(ctx, NULL, config->certs[i], config->chain,
                             err);
        cred->has_cert = true;
    }
    if (st == TW_DONE && config->role == TW_SERVER) {
        st = add_ca_names(ctx, config->roots, err);
    }
    return st;
}

/* TWAPI_TLS_RECORDS=openssl keeps records with the SSL object. */
static bool engine_wanted(void)
{
    const char *records = getenv("TWAPI_TLS_RECORDS");

    return !records || strcmp(records, "openssl") != 0;
}

static enum tw_status acquire(const struct tw_credentials_config *config,
                              CredHandle *out, struct tw_error *err)
{
    struct credentials *cred;
    enum tw_status st;

    if (config->flags & TW_CRED_DEFAULT_CLIENT_CERT) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            SEC_E_UNSUPPORTED_FUNCTION,
                            "OpenSSL has no default client certificate");
    }
    ERR_clear_error();
    if (!ready() || !(cred = calloc(1, sizeof(*cred)))) {
        return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY,
                            "%s", "out of memory");
    }
    tw_count_init(&cred->refs, 1);
    tw_lock_init(&cred->lock);
    cred->engine = engine_wanted() && tw_records_usable();
    cred->role = config->role;
    cred->flags = config->flags;
    cred->ssl_ctx = SSL_CTX_new(config->role == TW_SERVER
                                    ? TLS_server_method()
                                    : TLS_client_method());
    if (!cred->ssl_ctx) {
        st = tw_openssl_fail(
            err, TW_E_TLS, SEC_E_INTERNAL_ERROR,
            EVP_default_properties_is_fips_enabled(NULL)
                ? "OpenSSL could not be set up (FIPS mode is on: does"
                  " openssl.cnf load the FIPS provider?)"
                : "OpenSSL could not be set up");
    } else {
        st = configure(cred, config, err);
    }
    if (st != TW_DONE) {
        credentials_free(cred);
        return st;
    }
    out->dwLower = (uintptr_t)cred;
    out->dwUpper = 0;
    return TW_DONE;
}

static SECURITY_STATUS free_credentials_handle(PCredHandle handle)
{
    if (!handle || !SecIsValidHandle(handle) || !handle->dwLower) {
        return SEC_E_INVALID_HANDLE;
    }
    credentials_free((struct credentials *)handle->dwLower);
    SecInvalidateHandle(handle);
    return SEC_E_OK;
}

/* ----------------------------------------------------------- contexts */

static struct context *context_at(PCtxtHandle handle)
{
    if (!handle || !SecIsValidHandle(handle)) {
        return NULL;
    }
    return (struct context *)handle->dwLower;
}

static void shadow_free(struct context *c)
{
    if (c->shadow) {
        tw_half_fini(&c->shadow->read);
        tw_half_fini(&c->shadow->write);
        OPENSSL_cleanse(c->shadow, sizeof(*c->shadow));
        free(c->shadow);
        c->shadow = NULL;
    }
}

/* The SSL object goes; its session stays resumable if `good`. */
static void ssl_drop(struct context *c, bool good)
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
    shadow_free(c);
}

static void kept_free(struct kept *k)
{
    if (k) {
        X509_free(k->local);
        sk_X509_pop_free(k->chain, X509_free);
        SSL_SESSION_free(k->session);
        OPENSSL_cleanse(k, sizeof(*k));
        free(k);
    }
}

static void partial_free(struct context *c)
{
    free(c->partial);
    c->partial = NULL;
    c->partial_len = 0;
}

static void context_free(struct context *c)
{
    if (!c) {
        return;
    }
    ssl_drop(c, c->open && !c->dead);
    kept_free(c->kept);
    if (c->records) {
        tw_records_fini(c->records);
        free(c->records);
    }
    partial_free(c);
    tw_openssl_cert_free(c->peer);
    forget_secrets(c);
    if (c->out) {
        OPENSSL_cleanse(c->out, c->out_room);
        free(c->out);
    }
    free(c->alpn);
    free(c->target);
    credentials_free(c->cred);
    free(c);
}

static bool is_address(const char *name)
{
    unsigned char bytes[16];

    return inet_pton(AF_INET, name, bytes) == 1
           || inet_pton(AF_INET6, name, bytes) == 1;
}

/* UTF-16 to ASCII: a target name is A-labels or an address literal. */
static bool set_target(struct context *c, const SEC_WCHAR *target)
{
    char ascii[sizeof(((struct cached *)0)->target)];
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

static SECURITY_STATUS set_client(struct context *c)
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
        session = session_take(c->cred, c->target);
        if (session) {
            (void)SSL_set_session(c->ssl, session);
            SSL_SESSION_free(session);
        }
    }
    return SEC_E_OK;
}

static SECURITY_STATUS set_server(struct context *c, bool ask)
{
    /* a session made without asking for a certificate is no good where one
       is asked for, and the other way round (RFC 8446, 4.6.1) */
    static const unsigned char kinds[2] = { 'n', 'c' };

    SSL_set_accept_state(c->ssl);
    (void)SSL_set_session_id_context(c->ssl, &kinds[ask], 1);
    if (ask) {
        SSL_set_verify(c->ssl, SSL_VERIFY_PEER, NULL);
        /* a ticket would carry the client's leaf without its chain */
        (void)SSL_set_options(c->ssl, SSL_OP_NO_TICKET);
    } else {
        SSL_set_verify(c->ssl, SSL_VERIFY_NONE, NULL);
    }
    return SEC_E_OK;
}

/* SEC_APPLICATION_PROTOCOLS: u32 size, u32 extension, u16 list, bytes. */
static SECURITY_STATUS set_alpn(struct context *c, const SecBuffer *buffer)
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

static struct context *context_new(struct credentials *cred,
                                   enum tw_role role,
                                   const SEC_WCHAR *target,
                                   const SecBuffer *alpn, bool ask,
                                   SECURITY_STATUS *st)
{
    struct context *c = calloc(1, sizeof(*c));
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
    context_free(c);
    return NULL;
}

/* Moves gathered output into the caller's TOKEN buffer. */
static SECURITY_STATUS give_token(struct context *c, PSecBufferDesc out,
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

static void report_missing(SecBufferDesc *in, size_t missing)
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

/* ------------------------------------------------- feeding by records */

/* No record begins so: a type, version or length that there is not. */
static bool header_broken(const uint8_t *p, size_t len)
{
    return len >= HEADER
           && (p[0] < 20 || p[0] > 24 || p[1] != 3
               || ((size_t)p[3] << 8 | p[4]) > LENGTH_MAX);
}

/* The length of the first record, or 0 with *missing. A header that no
   record can have counts as whole: the SSL object is to refuse it. */
static size_t record_span(const uint8_t *p, size_t len, size_t *missing)
{
    size_t body;

    *missing = 0;
    if (len < HEADER) {
        *missing = HEADER - len;
        return 0;
    }
    if (header_broken(p, len)) {
        return p[0] < 20 || p[0] > 24 ? len : HEADER;
    }
    body = (size_t)p[3] << 8 | p[4];
    if (len - HEADER < body) {
        *missing = body - (len - HEADER);
        return 0;
    }
    return HEADER + body;
}

/* --------------------------------------------------- the record engine */

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
static struct kept *keep(struct context *c)
{
    const unsigned char *alpn = NULL;
    unsigned alpn_len = 0;
    STACK_OF(X509) *chain = NULL;
    X509 *local = SSL_get_certificate(c->ssl);
    struct kept *k;
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

static bool start_records(struct context *c, struct tw_records *r,
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
static bool start_shadow(struct context *c)
{
    struct shadow *s = calloc(1, sizeof(*s));

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
static bool ssl_needed(const struct context *c)
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
           || (!c->ticket_fed && c->target
               && !(c->cred->flags & TW_CRED_NO_RESUME));
}

/* The peer's certificate as long as the SSL object knows it. */
static bool learn_peer(struct context *c)
{
    X509 *x509;

    if (!c->peer && c->ssl && (c->open || SSL_session_reused(c->ssl))
        && (x509 = SSL_get0_peer_certificate(c->ssl))) {
        c->peer = tw_openssl_cert_new(x509, NULL,
                                      SSL_get_peer_cert_chain(c->ssl));
        return c->peer != NULL;
    }
    return true;
}

/*
 * Once the handshake is over and judged, at the first use of records: the
 * engine takes over if it can. Without memory it does not; then, and
 * wherever it cannot, records stay with the SSL object.
 */
static void engage(struct context *c)
{
    enum tw_aead aead;
    struct tw_records *r;

    if (c->kept) {
        return;
    }
    c->kept = keep(c);
    if (!c->kept || !c->cred->engine || !learn_peer(c)) {
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
        ssl_drop(c, true);
    } else if (!start_shadow(c)) {
        tw_records_fini(r);
        free(r);
        c->records = NULL;
    }
done:
    forget_secrets(c);
    ERR_clear_error();
}

/* A record of ours into the output. */
static bool send_record(struct context *c, uint8_t type,
                        const uint8_t *content, size_t len)
{
    uint8_t *at = out_reserve(c, c->records->header + len
                                     + c->records->tail);
    size_t n = at ? tw_records_seal(c->records, type, content, len, at) : 0;

    c->out_len += n;
    return n > 0;
}

static bool send_alert(struct context *c, int level, int number)
{
    const uint8_t alert[2] = { (uint8_t)level, (uint8_t)number };

    c->alert_sent = number;
    return send_record(c, SSL3_RT_ALERT, alert, sizeof(alert));
}

/* RFC 5246, 7.2.2: not to be resumed after a fatal alert. */
static void forget_session(struct context *c)
{
    SSL_SESSION *session = c->kept && c->kept->session ? c->kept->session
                           : c->ssl ? SSL_get0_session(c->ssl) : NULL;
    struct credentials *cred = c->cred;

    if (!session) {
        return;
    }
    (void)SSL_CTX_remove_session(cred->ssl_ctx, session);
    tw_lock_acquire(&cred->lock);
    for (struct cached **at = &cred->sessions; *at;) {
        if ((*at)->session == session) {
            drop_lock_held(cred, at);
        } else {
            at = &(*at)->next;
        }
    }
    tw_lock_release(&cred->lock);
}

/* The peer broke the protocol: the alert that says so, and its status. */
static SECURITY_STATUS records_failed(struct context *c, int alert)
{
    (void)send_alert(c, SSL3_AL_FATAL, alert);
    forget_session(c);
    c->dead = true;
    return alert == SSL_AD_INTERNAL_ERROR ? SEC_E_INTERNAL_ERROR
           : alert == SSL_AD_BAD_RECORD_MAC ? SEC_E_MESSAGE_ALTERED
                                            : SEC_E_ILLEGAL_MESSAGE;
}

/* What the SSL object wrote, under the keys and numbers that it stands at,
   becomes the engine's record. */
static bool reseal_output(struct context *c, const uint8_t *p, size_t span)
{
    struct shadow *s = c->shadow;
    uint8_t *content, type;
    size_t n;
    bool good;

    if (s->write_through) {
        return out_append(c, p, span);
    }
    content = malloc(span);
    good = content
           && tw_half_open(c->records, &s->write, p, span, content, &n,
                           &type) == TW_FAULT_NONE
           && send_record(c, type, content, n);
    if (good && type == SSL3_RT_CHANGE_CIPHER_SPEC) {
        s->write_through = true;
    }
    free(content);
    return good;
}

/* A record that is the SSL object's to read, as it expects it; NULL with
   c->dead if it is not the peer's. */
static uint8_t *reseal_input(struct context *c, const uint8_t *p,
                             size_t span)
{
    struct shadow *s = c->shadow;
    uint8_t *anew = malloc(span), *content = malloc(span), type = 0;
    size_t n = 0, made = 0;
    enum tw_fault fault = TW_FAULT_INTERNAL;

    if (anew && content) {
        fault = tw_records_open(c->records, p, span, content, &n, &type);
    }
    if (fault == TW_FAULT_NONE) {
        made = tw_half_seal(c->records, &s->read, type, content, n, anew);
    }
    if (made == 0) {
        (void)records_failed(c, tw_fault_alert(fault));
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
static SECURITY_STATUS feed(struct context *c, const uint8_t *message,
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
                     ? failure(c)
                     : records_failed(c, SSL_AD_UNEXPECTED_MESSAGE);
            ERR_clear_error();
        }
    }
    c->in = NULL;
    c->in_len = c->in_pos = 0;
    free(record);
    return st;
}

/* Our own KeyUpdate, and the keys behind it (RFC 8446, 4.6.3). */
static bool send_update(struct context *c)
{
    static const uint8_t update[5] = { SSL3_MT_KEY_UPDATE, 0, 0, 1, 0 };

    return send_record(c, SSL3_RT_HANDSHAKE, update, sizeof(update))
           && tw_records_update(c->records, &c->records->write);
}

/* One whole message behind the handshake, of a kind that judge_message
   lets pass; more: bytes that follow it in its record. */
static SECURITY_STATUS message(struct context *c, const uint8_t *m,
                               size_t len, size_t more)
{
    SECURITY_STATUS st = SEC_E_OK;

    if (m[0] == SSL3_MT_CLIENT_HELLO) {
        /* a TLS 1.2 server does not renegotiate, as by libssl's default */
        return send_alert(c, SSL3_AL_WARNING, SSL_AD_NO_RENEGOTIATION)
                   ? SEC_E_OK
                   : records_failed(c, SSL_AD_INTERNAL_ERROR);
    }
    if (m[0] == SSL3_MT_KEY_UPDATE) {
        if (m[4] > 1) {
            return records_failed(c, SSL_AD_ILLEGAL_PARAMETER);
        }
        if (more > 0) { /* RFC 8446, 5.1: no message spans a key change */
            return records_failed(c, SSL_AD_UNEXPECTED_MESSAGE);
        }
        if (!tw_records_update(c->records, &c->records->read)) {
            return records_failed(c, SSL_AD_INTERNAL_ERROR);
        }
        c->update_asked = c->update_asked || m[4] == 1;
        return SEC_E_OK;
    }
    if (c->ssl) { /* a ticket */
        st = feed(c, m, len);
        c->ticket_fed = true;
    }
    return st;
}

/* The longest of each kind that libssl takes as well. */
#define TICKET_MAX 16384u
#define HELLO_MAX 131396u

/* A message by its first four bytes: the alert that refuses it, or 0. Told
   before the rest is waited for. */
static int judge_message(const struct context *c, const uint8_t *m,
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
static SECURITY_STATUS handshake_bytes(struct context *c, const uint8_t *p,
                                       size_t n)
{
    SECURITY_STATUS st = SEC_E_OK;
    uint8_t *whole = NULL;
    bool any = false;

    if (n == 0) { /* RFC 8446, 5.1 */
        return records_failed(c, SSL_AD_UNEXPECTED_MESSAGE);
    }
    if (c->partial_len > 0) {
        whole = realloc(c->partial, c->partial_len + n);
        if (!whole) {
            return records_failed(c, SSL_AD_INTERNAL_ERROR);
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
            st = records_failed(c, alert);
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
        c->partial = malloc(n);
        if (c->partial) {
            memcpy(c->partial, p, n);
            c->partial_len = n;
        } else {
            st = records_failed(c, SSL_AD_INTERNAL_ERROR);
        }
    }
    free(whole);
    return st != SEC_E_OK ? st : any ? SEC_I_RENEGOTIATE : SEC_E_OK;
}

/* At a TLS 1.2 client: a HelloRequest, which its SSL object answers. */
static SECURITY_STATUS hello_request(struct context *c, const uint8_t *p,
                                     size_t n)
{
    SECURITY_STATUS st;

    if (n == 0) {
        return records_failed(c, SSL_AD_UNEXPECTED_MESSAGE);
    }
    c->saw_handshake = false;
    st = feed(c, p, n);
    return st != SEC_E_OK ? st
           : c->saw_handshake ? SEC_I_RENEGOTIATE : SEC_E_OK;
}

/* RFC 8446, 6; RFC 5246, 7.2. */
static SECURITY_STATUS alert_bytes(struct context *c, const uint8_t *p,
                                   size_t n)
{
    bool tls13 = c->records->tls13;

    if (n != 2) {
        return records_failed(c, SSL_AD_DECODE_ERROR);
    }
    if (p[1] == SSL_AD_CLOSE_NOTIFY && (tls13 || p[0] == SSL3_AL_WARNING)) {
        return SEC_I_CONTEXT_EXPIRED;
    }
    /* 1.3: all but these two are fatal, whatever the level says */
    if (tls13 ? p[1] == SSL_AD_USER_CANCELLED : p[0] == SSL3_AL_WARNING) {
        return SEC_E_OK;
    }
    if (!tls13 && p[0] != SSL3_AL_FATAL) {
        return records_failed(c, SSL_AD_ILLEGAL_PARAMETER);
    }
    c->alert_received = p[1];
    forget_session(c);
    c->dead = true;
    return status_of_alert(p[1]);
}

/*
 * Opens the record p[0..span) into dst, which has room for all its content;
 * dst may be where that lies. *n: bytes of data.
 */
static SECURITY_STATUS engine_open(struct context *c, const uint8_t *p,
                                   size_t span, uint8_t *dst, size_t *n)
{
    SECURITY_STATUS st;
    uint8_t type;
    size_t len;
    bool split;
    enum tw_fault fault =
        tw_records_open(c->records, p, span, dst, &len, &type);

    *n = 0;
    if (fault != TW_FAULT_NONE) {
        return records_failed(c, tw_fault_alert(fault));
    }
    /* RFC 8446, 5.1: nothing comes between the parts of a message; RFC
       5246, 6.2.1: it may */
    split = c->partial_len > 0 && c->records->tls13;
    if (type == SSL3_RT_APPLICATION_DATA && !split) {
        *n = len;
        if (c->ssl && c->ticket_fed && !ssl_needed(c)) {
            ssl_drop(c, true);
        }
        return SEC_E_OK;
    }
    if (type == SSL3_RT_HANDSHAKE) {
        st = !c->records->tls13 && c->ssl ? hello_request(c, dst, len)
                                          : handshake_bytes(c, dst, len);
    } else if (type == SSL3_RT_ALERT && !split) {
        st = alert_bytes(c, dst, len);
    } else {
        st = records_failed(c, SSL_AD_UNEXPECTED_MESSAGE);
    }
    OPENSSL_cleanse(dst, len);
    return st;
}

/* The end of a TLS 1.2 renegotiation: other facts, and fresh keys for the
   engine. */
static SECURITY_STATUS renew(struct context *c)
{
    struct kept *k = keep(c);

    shadow_free(c);
    if (!k) {
        return SEC_E_INSUFFICIENT_MEMORY;
    }
    kept_free(c->kept);
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

enum drive { FINISHED, MORE, SUSPENDED, LOOKUP, CLOSED, BROKEN };

/* One SSL_do_handshake over what `in` shows. */
static enum drive drive_once(struct context *c)
{
    int r;

    ERR_clear_error();
    c->suspended = false;
    c->lookup = false;
    r = SSL_do_handshake(c->ssl);
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
static enum drive drive(struct context *c, const uint8_t *p, size_t len,
                        bool resume, size_t *used)
{
    enum drive d = MORE;
    static const uint8_t nothing[1];
    size_t missing;

    *used = 0;
    p = p ? p : nothing;
    while (d == MORE) {
        size_t span = record_span(p + *used, len - *used, &missing);
        uint8_t *anew = NULL;
        if (span == 0 && !resume) {
            break;
        }
        resume = false;
        c->in = p + *used;
        c->in_len = span;
        c->in_pos = 0;
        if (c->shadow && span > 0 && !c->shadow->read_through) {
            anew = reseal_input(c, p + *used, span);
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
            && c->verdict == UNASKED && SSL_session_reused(c->ssl)) {
            c->verdict = PAUSED;
            c->suspended = true;
            c->flight = true;
            d = SUSPENDED;
        }
    }
    return d;
}

/* The handshake's step with input p[0..len). */
static SECURITY_STATUS handshake(struct context *c, const uint8_t *p,
                                 size_t len, bool resume,
                                 PSecBufferDesc in)
{
    size_t used = 0, missing = 0, skip = c->replay;
    SECURITY_STATUS st;

    if (skip > len) {
        return SEC_E_INVALID_TOKEN;
    }
    if (!resume && record_span(p + skip, len - skip, &missing) == 0) {
        report_missing(in, missing);
        return SEC_E_INCOMPLETE_MESSAGE;
    }
    c->replay = 0;
    switch (drive(c, p + skip, len - skip, resume, &used)) {
    case FINISHED:
        c->open = true;
        st = c->kept ? renew(c) : SEC_E_OK;
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
        return c->dead ? SEC_E_MESSAGE_ALTERED : failure(c);
    }
    report_extra(in, len - skip - used);
    return st;
}

/* A step once the first handshake is over: answers what DecryptMessage
   reported, or goes on with a renegotiation (TLS 1.2). */
static SECURITY_STATUS after_handshake(struct context *c, const uint8_t *p,
                                       size_t len, PSecBufferDesc in)
{
    size_t used = 0;

    engage(c);
    if (c->ssl && SSL_version(c->ssl) != TLS1_3_VERSION
        && SSL_in_init(c->ssl)) {
        return handshake(c, p, len, len == 0, in);
    }
    if (c->records) {
        if (c->update_asked || tw_records_due(c->records)) {
            c->update_asked = false;
            if (!send_update(c)) {
                return records_failed(c, SSL_AD_INTERNAL_ERROR);
            }
        }
    } else if (c->update_asked) {
        /* RFC 8446, 4.6.3: answer with one of our own before any data */
        c->update_asked = false;
        if (!SSL_key_update(c->ssl, SSL_KEY_UPDATE_NOT_REQUESTED)
            || drive(c, NULL, 0, true, &used) != FINISHED) {
            return failure(c);
        }
    }
    report_extra(in, len);
    return SEC_E_OK;
}

/* The plaintext alert record of a handshake that has no keys yet. */
static bool plain_alert(struct context *c, int alert)
{
    const uint8_t record[7] = { 21, 3, 3, 0, 2, 2, (uint8_t)alert };

    return !c->open && out_append(c, record, sizeof(record));
}

/* The step that follows ApplyControlToken. */
static SECURITY_STATUS control_step(struct context *c)
{
    if (c->open) {
        engage(c);
    }
    if (c->alert >= 0) {
        /* If the engine or the SSL object failed by itself its own alert is
           in `out`; otherwise the SSL object has no call that sends one
           under keys. */
        if (c->out_len > 0) {
            c->alert_sent = c->alert_sent > 0 ? c->alert_sent : c->alert;
        } else if (c->records) {
            forget_session(c);
            (void)send_alert(c, SSL3_AL_FATAL, c->alert);
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
            return send_alert(c, SSL3_AL_WARNING, SSL_AD_CLOSE_NOTIFY)
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
static SECURITY_STATUS step(struct context *c, PSecBufferDesc in,
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
        if (c->suspended && c->verdict == PAUSED) {
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

/* Fact 3: an EMPTY buffer with a size is no input. */
static bool misshapen(PSecBufferDesc in)
{
    return in && in->cBuffers > 0
           && in->pBuffers[0].BufferType == SECBUFFER_EMPTY
           && in->pBuffers[0].cbBuffer > 0;
}

/* The first step of either role. A context is made only if it succeeds;
   failing, its token is given all the same. */
static SECURITY_STATUS first_step(struct credentials *cred,
                                  enum tw_role role,
                                  const SEC_WCHAR *target, bool ask,
                                  PSecBufferDesc in, PCtxtHandle fresh,
                                  PSecBufferDesc out, bool allocate)
{
    SECURITY_STATUS st;
    struct context *c;
    size_t missing = 0;

    if (!fresh) {
        return SEC_E_INVALID_HANDLE;
    }
    if (role == TW_SERVER) {
        const SecBuffer *token = find(in, SECBUFFER_TOKEN);
        if (!token) {
            return SEC_E_INVALID_TOKEN;
        }
        if (record_span(token->pvBuffer, token->cbBuffer, &missing) == 0) {
            report_missing(in, missing);
            return SEC_E_INCOMPLETE_MESSAGE;
        }
    }
    c = context_new(cred, role, target,
                    find(in, SECBUFFER_APPLICATION_PROTOCOLS), ask, &st);
    if (!c) {
        return st;
    }
    st = step(c, in, out, allocate, true);
    if (st < 0) {
        context_free(c);
        return st;
    }
    fresh->dwLower = (uintptr_t)c;
    fresh->dwUpper = 0;
    return st;
}

static SECURITY_STATUS use_other_credentials(struct context *c,
                                             struct credentials *cred)
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

static SECURITY_STATUS initialize_security_context(
    PCredHandle cred, PCtxtHandle ctx, SEC_WCHAR *target, ULONG req,
    ULONG reserved1, ULONG drep, PSecBufferDesc in, ULONG reserved2,
    PCtxtHandle fresh, PSecBufferDesc out, ULONG *attr, void *expiry)
{
    bool allocate = (req & ISC_REQ_ALLOCATE_MEMORY) != 0;
    struct context *c = context_at(ctx);
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
                c, (struct credentials *)cred->dwLower);
            if (st != SEC_E_OK) {
                return st;
            }
        }
        return step(c, in, out, allocate, false);
    }
    if (!cred || !SecIsValidHandle(cred)
        || ((struct credentials *)cred->dwLower)->role != TW_CLIENT) {
        return SEC_E_INVALID_HANDLE;
    }
    return first_step((struct credentials *)cred->dwLower, TW_CLIENT,
                      target, false, in, fresh, out, allocate);
}

static SECURITY_STATUS accept_security_context(
    PCredHandle cred, PCtxtHandle ctx, PSecBufferDesc in, ULONG req,
    ULONG drep, PCtxtHandle fresh, PSecBufferDesc out, ULONG *attr,
    void *expiry)
{
    bool allocate = (req & ASC_REQ_ALLOCATE_MEMORY) != 0;
    struct context *c = context_at(ctx);

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
        || ((struct credentials *)cred->dwLower)->role != TW_SERVER) {
        return SEC_E_INVALID_HANDLE;
    }
    return first_step((struct credentials *)cred->dwLower, TW_SERVER, NULL,
                      (req & ASC_REQ_MUTUAL_AUTH) != 0, in, fresh, out,
                      allocate);
}

static SECURITY_STATUS delete_security_context(PCtxtHandle ctx)
{
    struct context *c = context_at(ctx);

    if (!c) {
        return SEC_E_INVALID_HANDLE;
    }
    context_free(c);
    SecInvalidateHandle(ctx);
    return SEC_E_OK;
}

static SECURITY_STATUS apply_control_token(PCtxtHandle ctx,
                                           PSecBufferDesc in)
{
    struct context *c = context_at(ctx);
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

static SECURITY_STATUS free_context_buffer(void *buffer)
{
    free(buffer);
    return SEC_E_OK;
}

/* -------------------------------------------------------- the records */

static const SSL_CIPHER *current_cipher(const struct context *c)
{
    return c->kept ? c->kept->cipher : SSL_get_current_cipher(c->ssl);
}

static int current_version(const struct context *c)
{
    return c->kept ? c->kept->version : SSL_version(c->ssl);
}

static bool is_resumed(const struct context *c)
{
    return c->kept ? c->kept->resumed : SSL_session_reused(c->ssl) != 0;
}

static void stream_sizes(struct context *c, SecPkgContext_StreamSizes *s)
{
    const SSL_CIPHER *cipher = current_cipher(c);
    int nid = cipher ? SSL_CIPHER_get_cipher_nid(cipher) : NID_undef;

    s->cBuffers = 4;
    s->cbMaximumMessage = 16384;
    s->cbBlockSize = 1;
    s->cbHeader = HEADER;
    if (current_version(c) == TLS1_3_VERSION) {
        s->cbTrailer = 17; /* inner type and tag */
    } else if (nid == NID_chacha20_poly1305) {
        s->cbTrailer = 16;
    } else if (cipher && SSL_CIPHER_is_aead(cipher)) {
        s->cbHeader += 8; /* explicit nonce, RFC 5288, 3 */
        s->cbTrailer = 16;
    } else {
        s->cbHeader += 16; /* IV of a block */
        s->cbTrailer = 48 + 16; /* MAC, then a block of padding */
        s->cbBlockSize = 16;
    }
}

static SECURITY_STATUS record_seal(struct context *c, SecBuffer *header,
                                   SecBuffer *data, SecBuffer *trailer)
{
    size_t room = (size_t)header->cbBuffer + data->cbBuffer
                  + trailer->cbBuffer;
    uint8_t *at = header->pvBuffer, *gathered = NULL;
    size_t taken = 0, len = data->cbBuffer;
    SECURITY_STATUS st = SEC_E_OK;

    if (at + header->cbBuffer != (uint8_t *)data->pvBuffer
        || at + header->cbBuffer + len != (uint8_t *)trailer->pvBuffer) {
        at = gathered = malloc(room);
        if (!gathered) {
            return SEC_E_INSUFFICIENT_MEMORY;
        }
    }
    c->sink = at;
    c->sink_room = room;
    c->sink_len = 0;
    if (c->records) {
        c->sink_len = tw_records_seal(c->records, SSL3_RT_APPLICATION_DATA,
                                      data->pvBuffer, len, at);
        if (c->sink_len == 0) {
            c->dead = true;
            st = SEC_E_ENCRYPT_FAILURE;
        }
    } else {
        ERR_clear_error();
        if (SSL_write_ex(c->ssl, data->pvBuffer, len, &taken) != 1
            || taken != len || c->out_len > 0
            || c->sink_len < header->cbBuffer + len) {
            st = failure(c);
        }
    }
    if (st == SEC_E_OK) {
        trailer->cbBuffer =
            (ULONG)(c->sink_len - header->cbBuffer - len);
        if (gathered) {
            memcpy(header->pvBuffer, at, header->cbBuffer);
            memcpy(data->pvBuffer, at + header->cbBuffer, len);
            memcpy(trailer->pvBuffer, at + header->cbBuffer + len,
                   trailer->cbBuffer);
        }
    }
    c->sink = NULL;
    c->sink_room = c->sink_len = 0;
    free(gathered);
    return st;
}

/* Opens the record p[0..span) by the SSL object: *n bytes of data at
   dst[0..room). The SSL object takes the whole record before it gives
   plaintext, so the two may lie in the same memory. */
static SECURITY_STATUS object_open(struct context *c, const uint8_t *p,
                                   size_t span, uint8_t *dst, size_t room,
                                   size_t *n)
{
    SECURITY_STATUS st;
    int r;

    c->in = p;
    c->in_len = span;
    c->in_pos = 0;
    c->saw_handshake = false;
    *n = 0;
    ERR_clear_error();
    do {
        /* one call takes one message; several may lie in a record */
        c->dry = false;
        r = SSL_read_ex(c->ssl, dst, room, n);
    } while (r != 1 && !c->dry
             && SSL_get_error(c->ssl, r) == SSL_ERROR_WANT_READ);
    if (r == 1) {
        st = SEC_E_OK;
    } else {
        *n = 0;
        switch (SSL_get_error(c->ssl, r)) {
        case SSL_ERROR_WANT_READ:
            st = c->saw_handshake ? SEC_I_RENEGOTIATE : SEC_E_OK;
            break;
        case SSL_ERROR_ZERO_RETURN:
            st = SEC_I_CONTEXT_EXPIRED;
            break;
        default:
            st = failure(c);
            OPENSSL_cleanse(dst, room); /* no unproved plaintext */
            break;
        }
    }
    c->in = NULL;
    c->in_len = c->in_pos = 0;
    return st;
}

/* Opens the record p[0..span) in place: plaintext at p + *at. */
static SECURITY_STATUS record_open(struct context *c, uint8_t *p,
                                   size_t span, size_t *at, size_t *n)
{
    *at = HEADER;
    if (c->records) {
        if (span >= c->records->header) {
            *at = c->records->header;
        }
        return engine_open(c, p, span, p + *at, n);
    }
    return object_open(c, p, span, p + HEADER,
                       span > HEADER ? span - HEADER : 0, n);
}

/* Seals src as one record at dst by the SSL object: how long, or 0. */
static size_t object_seal(struct context *c, const uint8_t *src, size_t len,
                          uint8_t *dst, size_t room)
{
    size_t taken = 0, made = 0;

    c->sink = dst;
    c->sink_room = room;
    c->sink_len = 0;
    ERR_clear_error();
    if (SSL_write_ex(c->ssl, src, len, &taken) == 1 && taken == len
        && c->out_len == 0) {
        made = c->sink_len;
    }
    c->sink = NULL;
    c->sink_room = c->sink_len = 0;
    return made;
}

static bool sent_shutdown(const struct context *c)
{
    return c->records ? c->sent_shutdown
                      : (SSL_get_shutdown(c->ssl) & SSL_SENT_SHUTDOWN) != 0;
}

static SECURITY_STATUS encrypt_message(PCtxtHandle ctx, ULONG qop,
                                       PSecBufferDesc desc, ULONG seq)
{
    struct context *c = context_at(ctx);
    SecBuffer *part[3] = { NULL, NULL, NULL };
    SecPkgContext_StreamSizes sizes;

    (void)seq;
    if (!c || !c->open) {
        return SEC_E_INVALID_HANDLE;
    }
    engage(c);
    if (c->dead || sent_shutdown(c)) {
        return SEC_E_CONTEXT_EXPIRED;
    }
    for (ULONG i = 0; desc && i < desc->cBuffers; i++) {
        SecBuffer *b = &desc->pBuffers[i];
        if (b->BufferType == SECBUFFER_STREAM_HEADER) {
            part[0] = b;
        } else if (b->BufferType == SECBUFFER_DATA) {
            part[1] = b;
        } else if (b->BufferType == SECBUFFER_STREAM_TRAILER) {
            part[2] = b;
        }
    }
    if (qop != 0 || !part[0] || !part[1] || !part[2]
        || !part[0]->pvBuffer || !part[1]->pvBuffer
        || !part[2]->pvBuffer) {
        return SEC_E_INVALID_TOKEN;
    }
    stream_sizes(c, &sizes);
    if (part[0]->cbBuffer < sizes.cbHeader
        || part[2]->cbBuffer < sizes.cbTrailer) {
        return SEC_E_BUFFER_TOO_SMALL;
    }
    if (part[1]->cbBuffer > sizes.cbMaximumMessage) {
        return SEC_E_ENCRYPT_FAILURE;
    }
    if (part[1]->cbBuffer == 0) {
        part[0]->cbBuffer = part[2]->cbBuffer = 0;
        return SEC_E_OK;
    }
    if (c->records && c->out_len > 0) {
        return SEC_E_ENCRYPT_FAILURE; /* that goes first, by seal or step */
    }
    if (c->records && tw_records_due(c->records)
        && c->records->write.count
               >= tw_records_rekey_at + (tw_records_rekey_at >> 2)) {
        /* RFC 8446, 5.5: a step was due long ago, for its KeyUpdate */
        return SEC_E_ENCRYPT_FAILURE;
    }
    part[0]->cbBuffer = sizes.cbHeader;
    return record_seal(c, part[0], part[1], part[2]);
}

static SECURITY_STATUS decrypt_message(PCtxtHandle ctx,
                                       PSecBufferDesc desc, ULONG seq,
                                       ULONG *qop)
{
    struct context *c = context_at(ctx);
    SecBuffer *b;
    uint8_t *p;
    size_t len, span, missing, n, at;
    SECURITY_STATUS st;

    (void)seq;
    if (qop) {
        *qop = 0;
    }
    if (!c || !c->open) {
        return SEC_E_INVALID_HANDLE;
    }
    if (!desc || desc->cBuffers != 4) {
        return SEC_E_INVALID_TOKEN;
    }
    b = desc->pBuffers;
    if (b[0].BufferType != SECBUFFER_DATA
        || b[1].BufferType != SECBUFFER_EMPTY
        || b[2].BufferType != SECBUFFER_EMPTY
        || b[3].BufferType != SECBUFFER_EMPTY) {
        return SEC_E_INVALID_TOKEN;
    }
    if (c->dead) {
        return SEC_E_CONTEXT_EXPIRED;
    }
    p = b[0].pvBuffer;
    len = b[0].cbBuffer;
    span = record_span(p, len, &missing);
    if (span == 0) {
        report_missing(desc, missing);
        return SEC_E_INCOMPLETE_MESSAGE;
    }
    engage(c);
    st = record_open(c, p, span, &at, &n);
    if (st < 0) {
        return st;
    }
    b[0].BufferType = SECBUFFER_STREAM_HEADER;
    b[0].cbBuffer = (ULONG)at;
    b[1].BufferType = SECBUFFER_DATA;
    b[1].pvBuffer = p + at;
    b[1].cbBuffer = (ULONG)n;
    b[2].BufferType = SECBUFFER_STREAM_TRAILER;
    b[2].pvBuffer = p + at + n;
    b[2].cbBuffer = (ULONG)(span > at + n ? span - at - n : 0);
    if (len > span) {
        b[3].BufferType = SECBUFFER_EXTRA;
        b[3].pvBuffer = p + span;
        b[3].cbBuffer = (ULONG)(len - span);
    }
    return st;
}

static SECURITY_STATUS seal(CtxtHandle *ctx, const uint8_t *src, size_t len,
                            uint8_t *dst, size_t room, size_t *taken,
                            size_t *made)
{
    struct context *c = context_at(ctx);
    SecPkgContext_StreamSizes sizes;
    size_t around;

    *taken = *made = 0;
    if (!c || !c->open) {
        return SEC_E_INVALID_HANDLE;
    }
    engage(c);
    if (c->dead || sent_shutdown(c)) {
        return SEC_E_CONTEXT_EXPIRED;
    }
    stream_sizes(c, &sizes);
    around = (size_t)sizes.cbHeader + sizes.cbTrailer;
    while (*taken < len) {
        size_t part = len - *taken < 16384 ? len - *taken : 16384, n;
        if (c->records && tw_records_due(c->records)) {
            /* RFC 8446, 4.6.3 and 5.5 */
            if (!send_update(c)) {
                return records_failed(c, SSL_AD_INTERNAL_ERROR);
            }
        }
        if (c->out_len > 0) {
            if (room - *made < c->out_len + around + part) {
                break;
            }
            memcpy(dst + *made, c->out, c->out_len);
            *made += c->out_len;
            c->out_len = 0;
        }
        if (room - *made < around + part) {
            break;
        }
        if (c->records) {
            n = tw_records_seal(c->records, SSL3_RT_APPLICATION_DATA,
                                src + *taken, part, dst + *made);
        } else {
            n = object_seal(c, src + *taken, part, dst + *made,
                            room - *made);
        }
        if (n == 0) {
            ERR_clear_error();
            c->dead = true;
            return SEC_E_ENCRYPT_FAILURE;
        }
        *taken += part;
        *made += n;
    }
    return SEC_E_OK;
}

static SECURITY_STATUS open_records(CtxtHandle *ctx, const uint8_t *src,
                                    size_t len, uint8_t *dst, size_t room,
                                    size_t *used, size_t *made)
{
    struct context *c = context_at(ctx);
    SECURITY_STATUS st = SEC_E_OK;
    size_t missing, n = 1;

    *used = *made = 0;
    if (!c || !c->open) {
        return SEC_E_INVALID_HANDLE;
    }
    engage(c);
    if (c->dead) {
        return SEC_E_CONTEXT_EXPIRED;
    }
    while (st == SEC_E_OK && n > 0) {
        size_t span = record_span(src + *used, len - *used, &missing);
        size_t most = c->records     ? tw_records_content(c->records, span)
                      : span > HEADER ? span - HEADER
                                      : 0;
        /* A header that is none stands for itself: who reads it judges it. */
        if (span == 0 || header_broken(src + *used, len - *used)
            || most > room - *made) {
            break;
        }
        st = c->records ? engine_open(c, src + *used, span, dst + *made, &n)
                        : object_open(c, src + *used, span, dst + *made,
                                      most, &n);
        *used += span;
        *made += n;
    }
    return st;
}

/* --------------------------------------------------------- attributes */

static void widen(SEC_WCHAR *dst, size_t room, const char *src)
{
    size_t n = 0;

    for (; src && src[n] && n + 1 < room; n++) {
        dst[n] = (SEC_WCHAR)(unsigned char)src[n];
    }
    dst[n] = 0;
}

static void cipher_info(struct context *c, SecPkgContext_CipherInfo *info)
{
    const SSL_CIPHER *cipher = current_cipher(c);

    memset(info, 0, sizeof(*info));
    info->dwVersion = SECPKGCONTEXT_CIPHERINFO_V1;
    info->dwProtocol = (ULONG)current_version(c);
    info->dwCipherSuite = SSL_CIPHER_get_protocol_id(cipher);
    info->dwBaseCipherSuite = info->dwCipherSuite;
    info->dwCipherLen = (ULONG)SSL_CIPHER_get_bits(cipher, NULL);
    widen(info->szCipherSuite, SZ_ALG_MAX_SIZE,
          SSL_CIPHER_standard_name(cipher));
    widen(info->szCipher, SZ_ALG_MAX_SIZE, SSL_CIPHER_get_name(cipher));
}

static SECURITY_STATUS query_context_attributes(PCtxtHandle ctx,
                                                ULONG attribute, void *out)
{
    struct context *c = context_at(ctx);

    if (!c || !out) {
        return SEC_E_INVALID_HANDLE;
    }
    if (!c->open) {
        return SEC_E_INVALID_HANDLE;
    }
    engage(c);
    if (!c->kept) {
        return SEC_E_INSUFFICIENT_MEMORY;
    }
    switch (attribute) {
    case SECPKG_ATTR_STREAM_SIZES:
        stream_sizes(c, out);
        return SEC_E_OK;
    case SECPKG_ATTR_CIPHER_INFO:
        cipher_info(c, out);
        return SEC_E_OK;
    case SECPKG_ATTR_CONNECTION_INFO: {
        SecPkgContext_ConnectionInfo *info = out;
        bool tls13 = current_version(c) == TLS1_3_VERSION;
        memset(info, 0, sizeof(*info));
        if (c->role == TW_CLIENT) {
            info->dwProtocol =
                tls13 ? SP_PROT_TLS1_3_CLIENT : SP_PROT_TLS1_2_CLIENT;
        } else {
            info->dwProtocol =
                tls13 ? SP_PROT_TLS1_3_SERVER : SP_PROT_TLS1_2_SERVER;
        }
        info->dwCipherStrength =
            (ULONG)SSL_CIPHER_get_bits(current_cipher(c), NULL);
        return SEC_E_OK;
    }
    case SECPKG_ATTR_SESSION_INFO: {
        SecPkgContext_SessionInfo *info = out;
        memset(info, 0, sizeof(*info));
        info->dwFlags = is_resumed(c) ? SSL_SESSION_RECONNECT : 0;
        return SEC_E_OK;
    }
    case SECPKG_ATTR_APPLICATION_PROTOCOL: {
        SecPkgContext_ApplicationProtocol *alpn = out;
        const uint8_t *name = c->kept->alpn;
        size_t len = c->kept->alpn_len;
        memset(alpn, 0, sizeof(*alpn));
        if (len > 0) {
            alpn->ProtoNegoStatus =
                SecApplicationProtocolNegotiationStatus_Success;
            alpn->ProtoNegoExt =
                SecApplicationProtocolNegotiationExt_ALPN;
            alpn->ProtocolIdSize = (uint8_t)len;
            memcpy(alpn->ProtocolId, name, len);
        }
        return SEC_E_OK;
    }
    default:
        return SEC_E_UNSUPPORTED_FUNCTION;
    }
}

/* ----------------------------------- slots beside the function table */

/*
 * The alert of a refusal: tw_alert_for_code chooses it. Our side has no
 * keys yet in TLS 1.2 (our ChangeCipherSpec is in the token that is
 * dropped), nor on a server that resumes (ServerHello is). In TLS 1.3 a
 * server has those of its data. A client has those of its handshake, but
 * libssl makes them only as it sends ChangeCipherSpec, unless the system's
 * configuration switches that off (MiddleboxCompat): till then in the
 * clear, as libssl itself does it, which its servers understand.
 */
static size_t refusal_alert(struct context *c, SECURITY_STATUS code,
                            uint8_t *alert, size_t room)
{
    bool tls13 = current_version(c) == TLS1_3_VERSION;
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

static SECURITY_STATUS verdict(CtxtHandle *ctx, SECURITY_STATUS code,
                               uint8_t *alert, size_t *alert_len)
{
    struct context *c = context_at(ctx);

    if (!c) {
        return SEC_E_INVALID_HANDLE;
    }
    if (code == SEC_E_OK) {
        bool was_suspended = c->suspended;
        c->verdict = ACCEPTED;
        if (!c->cred->engine) {
            forget_secrets(c);
        }
        *alert_len = 0;
        return was_suspended ? SEC_I_CONTINUE_NEEDED : SEC_E_OK;
    }
    c->verdict = REFUSED;
    forget_session(c);
    c->out_len = 0;
    *alert_len = refusal_alert(c, code, alert, *alert_len);
    c->suspended = false;
    c->dead = true;
    forget_secrets(c);
    return SEC_E_OK;
}

static enum tw_status no_certificate_from_peer(struct tw_error *err)
{
    return tw_error_set(err, TW_E_NOT_FOUND, SEC_E_NO_CREDENTIALS,
                        "the peer sent no certificate");
}

static enum tw_status remote_cert(CtxtHandle *ctx, struct tw_cert **out,
                                  struct tw_error *err)
{
    struct context *c = context_at(ctx);

    *out = NULL;
    if (!c) {
        return no_certificate_from_peer(err);
    }
    if (!learn_peer(c)) {
        return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY,
                            "%s", "out of memory");
    }
    if (c->peer && c->flight) {
        *out = tw_openssl_cert_ref(c->peer);
        return TW_DONE;
    }
    return c->open ? no_certificate_from_peer(err) : TW_WANT_READ;
}

static enum tw_status local_cert(CtxtHandle *ctx, struct tw_cert **out,
                                 struct tw_error *err)
{
    struct context *c = context_at(ctx);
    STACK_OF(X509) *chain = c && c->kept ? c->kept->chain : NULL;
    X509 *x509 = !c        ? NULL
                 : c->kept ? c->kept->local
                           : SSL_get_certificate(c->ssl);

    *out = NULL;
    if (!x509) {
        return tw_error_set(err, TW_E_NOT_FOUND, SEC_E_NO_CREDENTIALS,
                            "this end has no certificate");
    }
    if (!c->kept) {
        (void)SSL_get0_chain_certs(c->ssl, &chain);
    }
    *out = tw_openssl_cert_new(x509, NULL, chain);
    return *out ? TW_DONE
                : tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY,
                               "%s", "out of memory");
}

static void copy_text(char *dst, size_t room, const char *src)
{
    size_t n = src ? strlen(src) : 0;

    n = n < room ? n : room - 1;
    memcpy(dst, src ? src : "", n);
    dst[n] = '\0';
}

static enum tw_status facts(CtxtHandle *ctx, struct tw_facts *out,
                            struct tw_error *err)
{
    struct context *c = context_at(ctx);
    const SSL_CIPHER *cipher = c ? current_cipher(c) : NULL;
    const unsigned char *alpn = NULL;
    const char *name = NULL;
    unsigned alpn_len = 0;
    int group;

    memset(out, 0, sizeof(*out));
    if (!cipher) {
        return tw_error_set(err, TW_E_STATE, SEC_E_INVALID_HANDLE,
                            "the handshake has not come that far");
    }
    out->protocol =
        current_version(c) == TLS1_3_VERSION ? TW_TLS1_3 : TW_TLS1_2;
    out->suite = SSL_CIPHER_get_protocol_id(cipher);
    out->bits = SSL_CIPHER_get_bits(cipher, NULL);
    out->resumed = is_resumed(c);
    copy_text(out->suite_name, sizeof(out->suite_name),
              SSL_CIPHER_standard_name(cipher));
    copy_text(out->cipher_name, sizeof(out->cipher_name),
              SSL_CIPHER_get_name(cipher));
    if (c->kept) {
        name = c->kept->group;
        alpn = c->kept->alpn;
        alpn_len = c->kept->alpn_len;
    } else {
        group = (int)SSL_get_negotiated_group(c->ssl);
        name = group != NID_undef ? SSL_group_to_name(c->ssl, group) : NULL;
        SSL_get0_alpn_selected(c->ssl, &alpn, &alpn_len);
    }
    copy_text(out->group, sizeof(out->group), name);
    if (alpn_len > 0 && alpn_len < sizeof(out->alpn)) {
        memcpy(out->alpn, alpn, alpn_len);
    }
    return TW_DONE;
}

/* RFC 5929, 3 (tls-unique) and 4 (tls-server-end-point). */
static enum tw_status fixed_binding(struct context *c, enum tw_binding kind,
                                    uint8_t *out, size_t *len,
                                    struct tw_error *err)
{
    const char *prefix = kind == TW_BIND_UNIQUE ? "tls-unique:"
                                                : "tls-server-end-point:";
    size_t at = strlen(prefix), n = 0;
    uint8_t value[EVP_MAX_MD_SIZE];

    if (kind == TW_BIND_UNIQUE) {
        if (c->kept->version == TLS1_3_VERSION) {
            return tw_error_set(err, TW_E_UNSUPPORTED,
                                SEC_E_UNSUPPORTED_FUNCTION,
                                "tls-unique is not defined for TLS 1.3; "
                                "use tls-exporter (RFC 9266)");
        }
        n = c->kept->unique_len;
        memcpy(value, c->kept->unique, n);
    } else {
        X509 *cert = c->role == TW_SERVER ? c->kept->local
                     : c->peer            ? c->peer->x509
                                          : NULL;
        int md = NID_undef;
        const EVP_MD *digest;
        unsigned got = 0;
        if (cert) {
            (void)X509_get_signature_info(cert, &md, NULL, NULL, NULL);
        }
        if (md == NID_md5 || md == NID_sha1) {
            md = NID_sha256;
        }
        digest = EVP_get_digestbynid(md);
        if (!cert || !digest || !X509_digest(cert, digest, value, &got)) {
            return tw_error_set(err, TW_E_NOT_FOUND,
                                SEC_E_UNSUPPORTED_FUNCTION,
                                "no tls-server-end-point for this "
                                "certificate's signature");
        }
        n = got;
    }
    if (at + n > *len) {
        return tw_error_set(err, TW_E_ARGUMENT, SEC_E_BUFFER_TOO_SMALL,
                            "the buffer is too small");
    }
    memcpy(out, prefix, at);
    memcpy(out + at, value, n);
    *len = at + n;
    return TW_DONE;
}

/* RFC 8446, 7.5, and RFC 5705, 4: as SSL_export_keying_material, which
   needs an SSL object. */
static bool export_keys(struct context *c, const char *label,
                        const uint8_t *context, size_t context_len,
                        uint8_t *out, size_t len)
{
    const EVP_MD *md = SSL_CIPHER_get_handshake_digest(c->kept->cipher);
    uint8_t hash[EVP_MAX_MD_SIZE], secret[EVP_MAX_MD_SIZE], *seed;
    size_t seed_len = 64, hash_len;
    unsigned n = 0;
    bool good;

    if (c->ssl) {
        return SSL_export_keying_material(c->ssl, out, len, label,
                                          strlen(label), context,
                                          context_len, context != NULL)
               == 1;
    }
    if (!md || context_len > 65535) {
        return false;
    }
    hash_len = (size_t)EVP_MD_get_size(md);
    if (c->kept->version == TLS1_3_VERSION) {
        good = EVP_Digest("", 0, hash, &n, md, NULL)
               && tw_expand_label(hash_len, c->kept->exporter, label, hash,
                                  n, secret, hash_len)
               && EVP_Digest(context ? (const void *)context : "",
                             context_len, hash, &n, md, NULL)
               && tw_expand_label(hash_len, secret, "exporter", hash, n, out,
                                  len);
        OPENSSL_cleanse(secret, sizeof(secret));
        return good;
    }
    seed = malloc(64 + 2 + context_len);
    if (!seed) {
        return false;
    }
    memcpy(seed, c->kept->seed, 64);
    if (context) {
        seed[64] = (uint8_t)(context_len >> 8);
        seed[65] = (uint8_t)context_len;
        memcpy(seed + 66, context, context_len);
        seed_len += 2 + context_len;
    }
    good = tw_prf12(hash_len, c->kept->exporter, label, seed, seed_len, out,
                    len);
    free(seed);
    return good;
}

static enum tw_status binding(CtxtHandle *ctx, enum tw_binding kind,
                              const char *label, const uint8_t *context,
                              size_t context_len, uint8_t *out, size_t *len,
                              struct tw_error *err)
{
    struct context *c = context_at(ctx);

    if (!c || !c->open) {
        return tw_error_set(err, TW_E_STATE, SEC_E_INVALID_HANDLE,
                            "the handshake is not over");
    }
    engage(c);
    if (!c->kept || !learn_peer(c)) {
        return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY,
                            "%s", "out of memory");
    }
    if (kind != TW_BIND_EXPORTER) {
        return fixed_binding(c, kind, out, len, err);
    }
    ERR_clear_error();
    if (!export_keys(c, label, context, context_len, out, *len)) {
        return tw_openssl_fail(err, TW_E_TLS, SEC_E_UNSUPPORTED_FUNCTION,
                               "keying material cannot be exported");
    }
    return TW_DONE;
}

static enum tw_status issuers(CtxtHandle *ctx, tw_sink sink, void *arg,
                              struct tw_error *err)
{
    struct context *c = context_at(ctx);
    const STACK_OF(X509_NAME) *names =
        c && c->ssl ? SSL_get0_peer_CA_list(c->ssl) : NULL;

    for (int i = 0; names && i < sk_X509_NAME_num(names); i++) {
        unsigned char *der = NULL;
        int n = i2d_X509_NAME(sk_X509_NAME_value(names, i), &der);
        bool go_on = n >= 0 && sink(arg, NULL, der, (size_t)n);
        OPENSSL_free(der);
        if (n < 0) {
            return tw_openssl_fail(err, TW_E_NOMEM,
                                   SEC_E_INSUFFICIENT_MEMORY,
                                   "out of memory");
        }
        if (!go_on) {
            break;
        }
    }
    return TW_DONE;
}

static void ocsp(CtxtHandle *ctx, tw_sink sink, void *arg)
{
    struct context *c = context_at(ctx);
    const unsigned char *answer = NULL;
    long n = c && c->ssl ? SSL_get_tlsext_status_ocsp_resp(c->ssl, &answer)
                         : -1;

    if (n > 0) {
        (void)sink(arg, NULL, answer, (size_t)n);
    }
}

static int alert_received(CtxtHandle *ctx)
{
    struct context *c = context_at(ctx);

    return c ? c->alert_received : -1;
}

static int alert_sent(CtxtHandle *ctx)
{
    struct context *c = context_at(ctx);

    return c ? c->alert_sent : -1;
}

static const SecurityFunctionTableW function_table = {
    .FreeCredentialsHandle = free_credentials_handle,
    .InitializeSecurityContextW = initialize_security_context,
    .AcceptSecurityContext = accept_security_context,
    .DeleteSecurityContext = delete_security_context,
    .ApplyControlToken = apply_control_token,
    .QueryContextAttributesW = query_context_attributes,
    .FreeContextBuffer = free_context_buffer,
    .EncryptMessage = encrypt_message,
    .DecryptMessage = decrypt_message,
};

static const SecurityFunctionTableW *table(void)
{
    return ready() ? &function_table : NULL;
}

static const char *version(void)
{
    return OpenSSL_version(OPENSSL_VERSION);
}

static int fips(void)
{
    return EVP_default_properties_is_fips_enabled(NULL) ? 1 : 0;
}

const struct tw_provider tw_provider_openssl = {
    .name = "openssl",
    .caps = 0,
    .table = table,
    .version = version,
    .fips = fips,
    .acquire = acquire,
    .seal = seal,
    .open = open_records,
    .verdict = verdict,
    .remote_cert = remote_cert,
    .local_cert = local_cert,
    .facts = facts,
    .binding = binding,
    .issuers = issuers,
    .ocsp = ocsp,
    .alert_received = alert_received,
    .alert_sent = alert_sent,
    .cert_ref = tw_openssl_cert_ref,
    .cert_free = tw_openssl_cert_free,
    .cert_der = tw_openssl_cert_der,
    .cert_chain = tw_openssl_cert_chain,
    .cert_has_key = tw_openssl_cert_has_key,
    .cert_text = tw_openssl_cert_text,
    .cert_info = tw_openssl_cert_info,
    .cert_digest = tw_openssl_cert_digest,
    .cert_verify = tw_openssl_cert_verify,
    .cert_matches = tw_openssl_cert_matches,
    .store_new = tw_openssl_store_new,
    .store_open = tw_openssl_store_open,
    .store_import = tw_openssl_store_import,
    .store_add = tw_openssl_store_add,
    .store_ref = tw_openssl_store_ref,
    .store_free = tw_openssl_store_free,
    .store_count = tw_openssl_store_count,
    .store_get = tw_openssl_store_get,
    .store_export = tw_openssl_store_export,
};

const struct tw_provider *tw_provider_default(void)
{
    return &tw_provider_openssl;
}
