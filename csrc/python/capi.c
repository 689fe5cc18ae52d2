/*
 * The C API for other extensions: twapi_tls.h's table, in a capsule.
 *
 * All but tw_capi_add at the end is free of Python: the functions run in
 * threads that Python does not know. They are thin: a session (core) or a
 * wire does the work; what is added here is credentials made from bytes,
 * the default verification (Python has its own in verify.py), and the
 * carrying of bytes between the session's buffers and the caller's.
 *
 * Bounds: no more of the caller's input is taken than the session wants
 * next (a record at a time), no more plaintext is sealed than dst has room
 * for, give or take a record, so a context holds what it needs and no more.
 *
 * The table is append-only: nothing in it moves or changes its meaning.
 */
#include "python/module.h"

#include <stdlib.h>
#include <string.h>

#include "core/atomic.h"
#include "twapi_tls.h"

#define FEED ((size_t)64 * 1024)
#define RECORD ((size_t)16 * 1024)

#define SAME(ours, theirs) \
    _Static_assert((int)(ours) == (int)(theirs), #theirs)
SAME(TW_DONE, TWAPI_TLS_DONE);
SAME(TW_WANT_READ, TWAPI_TLS_WANT_READ);
SAME(TW_WANT_WRITE, TWAPI_TLS_WANT_WRITE);
SAME(TW_WANT_VERDICT, TWAPI_TLS_WANT_VERDICT);
SAME(TW_END, TWAPI_TLS_END);
SAME(TW_E_TLS, TWAPI_TLS_E_TLS);
SAME(TW_E_ALERT, TWAPI_TLS_E_ALERT);
SAME(TW_E_TRUNCATED, TWAPI_TLS_E_TRUNCATED);
SAME(TW_E_NEGOTIATE_EOF, TWAPI_TLS_E_NEGOTIATE_EOF);
SAME(TW_E_REFUSED, TWAPI_TLS_E_REFUSED);
SAME(TW_E_CLOSED, TWAPI_TLS_E_CLOSED);
SAME(TW_E_STATE, TWAPI_TLS_E_STATE);
SAME(TW_E_OS, TWAPI_TLS_E_OS);
SAME(TW_E_TIMEOUT, TWAPI_TLS_E_TIMEOUT);
SAME(TW_E_INTERRUPTED, TWAPI_TLS_E_INTERRUPTED);
SAME(TW_E_NOMEM, TWAPI_TLS_E_NOMEM);
SAME(TW_E_ARGUMENT, TWAPI_TLS_E_ARGUMENT);
SAME(TW_E_UNSUPPORTED, TWAPI_TLS_E_UNSUPPORTED);
SAME(TW_E_NOT_FOUND, TWAPI_TLS_E_NOT_FOUND);
SAME(TW_E_PASSWORD, TWAPI_TLS_E_PASSWORD);
SAME(TW_E_FORMAT, TWAPI_TLS_E_FORMAT);
SAME(TW_CLIENT, TWAPI_TLS_CLIENT);
SAME(TW_SERVER, TWAPI_TLS_SERVER);
SAME(TW_TLS1_2, TWAPI_TLS_V1_2);
SAME(TW_TLS1_3, TWAPI_TLS_V1_3);
SAME(TW_NO_WAIT, TWAPI_TLS_NO_WAIT);
SAME(TW_FOREVER, TWAPI_TLS_FOREVER);

struct twapi_tls_credentials {
    struct tw_count refs; /* the caller's, and one for each context */
    struct tw_credentials *inner;
    struct tw_store *roots; /* trust anchors; NULL: the system's */
    struct tw_lock lock;    /* around every use of roots */
};

struct twapi_tls_context {
    struct tw_session *session; /* owned, unless a wire owns it */
    struct twapi_tls_credentials *credentials; /* a reference */
    enum tw_role role;
    char *target;   /* owned; NULL if none */
    uint32_t flags; /* TWAPI_TLS_MANUAL ... */
    bool lent;      /* the session is a wire's */
    struct tw_lock lock; /* one at a time moves bytes: what the session
                            lends is good until its next call only */
};

struct twapi_tls_connection {
    struct tw_wire *wire;              /* owned */
    struct twapi_tls_context *context; /* owned */
};

/* --- errors --- */

/* Tells the caller; returns the status as the API's. */
static int report(struct twapi_tls_error *out, enum tw_status st,
                  const struct tw_error *e)
{
    if (out == NULL || (int)st >= 0) {
        return (int)st;
    }
    memset(out, 0, sizeof(*out));
    out->status = (int)st;
    out->code = e->code;
    out->os = e->os;
    out->alert_sent = e->alert_sent;
    out->alert_received = e->alert_received;
    memcpy(out->detail, e->detail, sizeof(out->detail));
    if (out->detail[0] == '\0') {
        strncpy(out->detail, tw_status_text(st), sizeof(out->detail) - 1);
    }
    return (int)st;
}

static int report_argument(struct twapi_tls_error *out, const char *text)
{
    struct tw_error e;

    tw_error_clear(&e);
    return report(out, tw_error_set(&e, TW_E_ARGUMENT, 0, "%s", text), &e);
}

/* A caller's structure, of whatever size, as one of ours. False if it has
   no size. */
static bool take_config(void *mine, size_t my_size, const void *theirs)
{
    size_t size;

    memset(mine, 0, my_size);
    if (theirs == NULL) {
        return false;
    }
    memcpy(&size, theirs, sizeof(size));
    if (size <= sizeof(size)) {
        return false;
    }
    memcpy(mine, theirs, size < my_size ? size : my_size);
    return true;
}

/* --- words --- */

static const char *api_engine(void)
{
    return tw_provider_default()->name;
}

static const char *api_engine_version(void)
{
    const struct tw_provider *p = tw_provider_default();

    return p->version != NULL ? p->version() : "";
}

static const char *api_status_text(int status)
{
    return tw_status_text((enum tw_status)status);
}

/* --- credentials --- */

static void api_credentials_free(struct twapi_tls_credentials *c)
{
    if (c == NULL || tw_count_down(&c->refs) != 0) {
        return;
    }
    if (c->roots != NULL) {
        tw_provider_default()->store_free(c->roots);
    }
    tw_credentials_free(c->inner);
    tw_lock_fini(&c->lock);
    free(c);
}

/* A store of the bytes of one buffer. */
static enum tw_status read_store(const void *data, size_t len, bool pfx,
                                 const char *password,
                                 struct tw_store **out,
                                 struct tw_error *err)
{
    const struct tw_provider *p = tw_provider_default();
    enum tw_status st;

    *out = NULL;
    st = p->store_new(out, err);
    if (st != TW_DONE) {
        return st;
    }
    st = p->store_import(*out, pfx ? TW_ENC_PFX : TW_ENC_PEM, data, len,
                         password, err);
    if (st != TW_DONE) {
        p->store_free(*out);
        *out = NULL;
    }
    return st;
}

/* The certificates of a store that have a key: a new array of references,
   NULL if there is none or no memory. */
static struct tw_cert **with_keys(struct tw_store *store, size_t *count)
{
    const struct tw_provider *p = tw_provider_default();
    size_t all = p->store_count(store);
    struct tw_cert **list = calloc(all + 1, sizeof(struct tw_cert *));
    size_t i;

    *count = 0;
    for (i = 0; list != NULL && i < all; i++) {
        struct tw_cert *cert = p->store_get(store, i);

        if (cert != NULL && p->cert_has_key(cert)) {
            list[(*count)++] = cert;
        } else {
            p->cert_free(cert);
        }
    }
    return list;
}

#define CREDENTIAL_FLAGS \
    (TWAPI_TLS_NO_RESUME | TWAPI_TLS_INSTALL_INTERMEDIATES)

/* The flags by the names of the floors below. */
static uint32_t credential_flags(uint32_t given)
{
    uint32_t flags = 0;

    if ((given & TWAPI_TLS_NO_RESUME) != 0) {
        flags |= TW_CRED_NO_RESUME;
    }
    if ((given & TWAPI_TLS_INSTALL_INTERMEDIATES) != 0) {
        flags |= TW_CRED_INSTALL_CHAIN;
    }
    return flags;
}

static int api_credentials_new(
    const struct twapi_tls_credentials_config *given,
    struct twapi_tls_credentials **out, struct twapi_tls_error *error)
{
    const struct tw_provider *p = tw_provider_default();
    struct twapi_tls_credentials_config config;
    struct tw_credentials_config inner;
    struct twapi_tls_credentials *c = NULL;
    struct tw_store *identity = NULL;
    struct tw_cert **certs = NULL;
    size_t count = 0;
    struct tw_error err;
    enum tw_status st;

    if (out == NULL) {
        return report_argument(error, "out is NULL");
    }
    *out = NULL;
    if (!take_config(&config, sizeof(config), given)) {
        return report_argument(error, "config has no size");
    }
    if (config.role != TWAPI_TLS_CLIENT && config.role != TWAPI_TLS_SERVER) {
        return report_argument(error, "role must be client or server");
    }
    if ((config.flags & ~CREDENTIAL_FLAGS) != 0) {
        return report_argument(error, "unknown flags");
    }
    if ((config.protocols & ~(TWAPI_TLS_V1_2 | TWAPI_TLS_V1_3)) != 0) {
        return report_argument(error, "unknown protocols");
    }
    tw_error_clear(&err);
    c = calloc(1, sizeof(*c));
    if (c == NULL) {
        return report(error, TW_E_NOMEM, &err);
    }
    tw_count_init(&c->refs, 1);
    tw_lock_init(&c->lock);
    memset(&inner, 0, sizeof(inner));
    inner.role = (enum tw_role)config.role;
    inner.protocols = config.protocols;
    inner.flags = credential_flags(config.flags);
    if (config.roots != NULL) {
        st = read_store(config.roots, config.roots_len, false, NULL,
                        &c->roots, &err);
        if (st != TW_DONE) {
            goto done;
        }
        inner.roots = config.role == TWAPI_TLS_SERVER ? c->roots : NULL;
    }
    if (config.identity != NULL) {
        st = read_store(config.identity, config.identity_len,
                        config.identity_pfx != 0, config.password,
                        &identity, &err);
        if (st != TW_DONE) {
            goto done;
        }
        certs = with_keys(identity, &count);
        if (certs == NULL) {
            st = TW_E_NOMEM;
            goto done;
        }
        if (count == 0) {
            st = tw_error_set(&err, TW_E_ARGUMENT, 0,
                              "identity holds no certificate with its key");
            goto done;
        }
        inner.certs = certs;
        inner.cert_count = count;
    }
    c->inner = tw_credentials_new(p, &inner, &err);
    st = c->inner != NULL ? TW_DONE : err.status;
done:
    while (count > 0) {
        p->cert_free(certs[--count]);
    }
    free(certs);
    if (identity != NULL) {
        p->store_free(identity);
    }
    if (st == TW_DONE) {
        *out = c;
    } else {
        api_credentials_free(c);
    }
    return report(error, st, &err);
}

/* --- contexts --- */

static void api_context_free(struct twapi_tls_context *x)
{
    if (x == NULL) {
        return;
    }
    if (!x->lent) {
        tw_session_free(x->session);
    }
    api_credentials_free(x->credentials);
    tw_lock_fini(&x->lock);
    free(x->target);
    free(x);
}

static int api_context_new(struct twapi_tls_credentials *credentials,
                           const struct twapi_tls_context_config *given,
                           struct twapi_tls_context **out,
                           struct twapi_tls_error *error)
{
    struct twapi_tls_context_config config;
    struct tw_session_config inner;
    struct twapi_tls_context *x;
    struct tw_error err;
    bool manual;
    bool client;

    if (out == NULL) {
        return report_argument(error, "out is NULL");
    }
    *out = NULL;
    if (credentials == NULL) {
        return report_argument(error, "credentials is NULL");
    }
    if (!take_config(&config, sizeof(config), given)) {
        return report_argument(error, "config has no size");
    }
    if ((config.flags & ~(TWAPI_TLS_MANUAL | TWAPI_TLS_REQUEST_CERT |
                          TWAPI_TLS_RAGGED_EOF)) != 0) {
        return report_argument(error, "unknown flags");
    }
    manual = (config.flags & TWAPI_TLS_MANUAL) != 0;
    client = tw_credentials_role(credentials->inner) == TW_CLIENT;
    if (client && !manual &&
        (config.target == NULL || config.target[0] == '\0')) {
        return report_argument(
            error, "a client needs target, the name to verify, or MANUAL");
    }
    if (!client && !manual &&
        (config.flags & TWAPI_TLS_REQUEST_CERT) != 0) {
        return report_argument(
            error, "REQUEST_CERT needs MANUAL: who else would judge it");
    }
    tw_error_clear(&err);
    x = calloc(1, sizeof(*x));
    if (x == NULL) {
        return report(error, TW_E_NOMEM, &err);
    }
    tw_lock_init(&x->lock);
    tw_count_up(&credentials->refs);
    x->credentials = credentials;
    x->role = client ? TW_CLIENT : TW_SERVER;
    x->flags = config.flags;
    if (config.target != NULL && client) {
        size_t size = strlen(config.target) + 1;

        x->target = malloc(size);
        if (x->target == NULL) {
            api_context_free(x);
            return report(error, TW_E_NOMEM, &err);
        }
        memcpy(x->target, config.target, size);
    }
    memset(&inner, 0, sizeof(inner));
    inner.role = x->role;
    inner.credentials = credentials->inner;
    inner.target = x->target;
    inner.request_cert = (config.flags & TWAPI_TLS_REQUEST_CERT) != 0;
    inner.ask_verdict = manual || client;
    inner.ragged_eof = (config.flags & TWAPI_TLS_RAGGED_EOF) != 0;
    inner.alpn = config.alpn;
    inner.alpn_len = config.alpn_len;
    x->session = tw_session_new(tw_provider_default(), &inner, &err);
    if (x->session == NULL) {
        api_context_free(x);
        return report(error, err.status, &err);
    }
    *out = x;
    return TWAPI_TLS_DONE;
}

/* --- the verdict --- */

struct bytes {
    uint8_t *data; /* owned */
    size_t len;
    bool failed;
};

static bool keep_bytes(void *arg, const char *key, const void *data,
                       size_t len)
{
    struct bytes *b = arg;

    (void)key;
    if (b->data == NULL && len > 0) {
        b->data = malloc(len);
        b->failed = b->data == NULL;
        if (b->data != NULL) {
            memcpy(b->data, data, len);
            b->len = len;
        }
    }
    return false;
}

/* What a failed verification is called when a handshake fails of it
   (Schannel's own mapping; the same table is in verify.py). */
static int32_t peer_code(int32_t code)
{
    switch (code) {
    case (int32_t)CERT_E_CN_NO_MATCH:
        return (int32_t)SEC_E_WRONG_PRINCIPAL;
    case (int32_t)CERT_E_UNTRUSTEDROOT:
    case (int32_t)CERT_E_CHAINING:
        return (int32_t)SEC_E_UNTRUSTED_ROOT;
    case (int32_t)CERT_E_EXPIRED:
        return (int32_t)SEC_E_CERT_EXPIRED;
    case (int32_t)CERT_E_WRONG_USAGE:
    case (int32_t)CERT_E_PURPOSE:
        return (int32_t)SEC_E_CERT_WRONG_USAGE;
    default:
        return code;
    }
}

/* Chain, validity, usage, and on a client the name. Revocation by what is
   at hand alone: off, as it is by default in Python. */
static enum tw_status verify_peer(struct twapi_tls_context *x,
                                  struct tw_verdict *verdict,
                                  struct tw_error *err)
{
    const struct tw_provider *p = tw_provider_default();
    struct bytes ocsp = {NULL, 0, false};
    struct tw_verify_config config;
    struct tw_cert *cert = NULL;
    enum tw_status st;

    memset(verdict, 0, sizeof(*verdict));
    st = tw_session_remote_cert(x->session, &cert, err);
    if (st != TW_DONE) {
        return st;
    }
    tw_session_ocsp(x->session, keep_bytes, &ocsp);
    if (ocsp.failed) {
        st = tw_error_set(err, TW_E_NOMEM, 0, "no memory for the staple");
        goto done;
    }
    memset(&config, 0, sizeof(config));
    config.server = x->role == TW_CLIENT ? x->target : NULL;
    config.check_name = x->role == TW_CLIENT;
    config.roots = x->credentials->roots;
    config.ocsp = ocsp.data;
    config.ocsp_len = ocsp.len;
    tw_lock_acquire(&x->credentials->lock);
    st = p->cert_verify(cert, &config, verdict, err);
    tw_lock_release(&x->credentials->lock);
    if (st == TW_DONE) {
        verdict->code = peer_code(verdict->code);
    }
done:
    free(ocsp.data);
    p->cert_free(cert);
    return st;
}

static int api_verify(struct twapi_tls_context *x, int32_t *code,
                      struct twapi_tls_error *error)
{
    struct tw_verdict verdict;
    struct tw_error err;
    enum tw_status st;

    tw_error_clear(&err);
    *code = (int32_t)SEC_E_CERT_UNKNOWN;
    if (x->role == TW_CLIENT && x->target == NULL) {
        return report_argument(error, "the context has no target to verify");
    }
    st = verify_peer(x, &verdict, &err);
    if (st == TW_DONE) {
        *code = verdict.code;
    }
    return report(error, st, &err);
}

static int api_verdict(struct twapi_tls_context *x, int32_t code,
                       struct twapi_tls_error *error)
{
    struct tw_error err;
    enum tw_status st;

    tw_error_clear(&err);
    st = tw_session_verdict(x->session, code, NULL, &err);
    return report(error, st, &err);
}

/* The pause, answered by the check above: a client without MANUAL. */
static enum tw_status answer_verdict(struct twapi_tls_context *x,
                                     struct tw_error *err)
{
    struct tw_verdict verdict;
    struct tw_error why;
    enum tw_status st;

    tw_error_clear(&why);
    st = verify_peer(x, &verdict, &why);
    if (st != TW_DONE) {
        /* Could not run, so nothing speaks for the peer. */
        verdict.code = why.code != 0 ? why.code
                                     : (int32_t)SEC_E_CERT_UNKNOWN;
        memcpy(verdict.detail, why.detail, sizeof(verdict.detail));
    }
    return tw_session_verdict(x->session, verdict.code,
                              verdict.detail[0] != '\0'
                                  ? verdict.detail
                                  : tw_code_text(verdict.code),
                              err);
}

/* --- bytes in, bytes out --- */

/* The context's turn for moving bytes, or TW_E_STATE. */
static enum tw_status take_turn(struct twapi_tls_context *x,
                                struct tw_error *err)
{
    if (x->lent) {
        return tw_error_set(err, TW_E_STATE, 0,
                            "the context belongs to a connection");
    }
    tw_lock_acquire(&x->lock);
    return TW_DONE;
}

/* Moves pending output into dst; false if some had no room. */
static bool drain(struct tw_session *s, uint8_t *dst, size_t cap,
                  size_t *written)
{
    const uint8_t *from;
    size_t pending = tw_session_output(s, &from);
    size_t part = pending < cap - *written ? pending : cap - *written;

    if (part > 0) {
        memcpy(dst + *written, from, part);
        *written += part;
        tw_session_output_consume(s, part);
    }
    return part == pending;
}

/* The next piece of the caller's input into the session: up to the end of
   the record it waits for, so that the next one can be opened where it
   lies. */
static enum tw_status feed(struct tw_session *s, const uint8_t *src,
                           size_t len, size_t *consumed,
                           struct tw_error *err)
{
    size_t part = tw_session_missing(s);
    enum tw_status st;

    if (part == 0 || part > FEED) {
        part = FEED;
    }
    if (part > len - *consumed) {
        part = len - *consumed;
    }

    st = tw_session_input(s, src + *consumed, part);
    if (st != TW_DONE) {
        return tw_error_set(err, st, 0, "no memory for input");
    }
    *consumed += part;
    return TW_DONE;
}

static int api_handshake(struct twapi_tls_context *x, const void *src,
                         size_t len, size_t *consumed, void *dst,
                         size_t cap, size_t *written,
                         struct twapi_tls_error *error)
{
    struct tw_error err;
    enum tw_status st;
    bool all;

    *consumed = 0;
    *written = 0;
    tw_error_clear(&err);
    st = take_turn(x, &err);
    if (st != TW_DONE) {
        return report(error, st, &err);
    }
    for (;;) {
        st = tw_session_handshake(x->session, &err);
        if (st == TW_WANT_READ && *consumed < len) {
            st = feed(x->session, src, len, consumed, &err);
        } else if (st == TW_WANT_VERDICT &&
                   (x->flags & TWAPI_TLS_MANUAL) == 0) {
            st = answer_verdict(x, &err);
        } else {
            break;
        }
        if (st != TW_DONE) {
            break;
        }
    }
    all = drain(x->session, dst, cap, written);
    tw_lock_release(&x->lock);
    if (!all && (int)st >= 0) {
        st = TW_WANT_WRITE;
    }
    return report(error, st, &err);
}

/* api_encrypt with the turn taken. */
static enum tw_status encrypt_lock_held(struct twapi_tls_context *x,
                                        const uint8_t *src, size_t len,
                                        size_t *consumed, uint8_t *dst,
                                        size_t cap, size_t *written,
                                        struct tw_error *err)
{
    enum tw_status st = TW_DONE;
    size_t part;
    size_t made;
    size_t n;

    while (drain(x->session, dst, cap, written)) {
        if (*consumed == len || st == TW_WANT_READ || (int)st < 0) {
            return st == TW_WANT_WRITE ? TW_DONE : st;
        }
        if (*written == cap) {
            break;
        }
        /* Straight into dst if the engine can and a record fits. */
        st = tw_session_seal(x->session, src + *consumed, len - *consumed,
                             dst + *written, cap - *written, &n, &made,
                             err);
        *consumed += n;
        *written += made;
        if (n > 0 || (int)st < 0) {
            continue;
        }
        /* As many records as dst has room for, at least one. */
        part = cap - *written < RECORD ? RECORD : cap - *written;
        part -= part % RECORD;
        if (part > len - *consumed) {
            part = len - *consumed;
        }
        st = tw_session_write(x->session, src + *consumed, part, &n, err);
        *consumed += n;
    }
    return (int)st < 0 ? st : TW_WANT_WRITE;
}

static int api_encrypt(struct twapi_tls_context *x, const void *src,
                       size_t len, size_t *consumed, void *dst, size_t cap,
                       size_t *written, struct twapi_tls_error *error)
{
    struct tw_error err;
    enum tw_status st;

    *consumed = 0;
    *written = 0;
    tw_error_clear(&err);
    st = take_turn(x, &err);
    if (st == TW_DONE) {
        st = encrypt_lock_held(x, src, len, consumed, dst, cap, written,
                               &err);
        tw_lock_release(&x->lock);
    }
    return report(error, st, &err);
}

static int api_decrypt(struct twapi_tls_context *x, const void *src,
                       size_t len, size_t *consumed, void *dst, size_t cap,
                       size_t *written, struct twapi_tls_error *error)
{
    const uint8_t *from = src;
    uint8_t *to = dst;
    struct tw_error err;
    enum tw_status st;
    size_t used;
    size_t n;

    *consumed = 0;
    *written = 0;
    tw_error_clear(&err);
    st = take_turn(x, &err);
    if (st != TW_DONE) {
        return report(error, st, &err);
    }
    while (st == TW_DONE && *written < cap) {
        st = tw_session_read(x->session, to + *written, cap - *written, &n,
                             &err);
        *written += n;
        if (st == TW_WANT_READ && *consumed < len) {
            /* Straight from src to dst if the engine can. */
            st = tw_session_open(x->session, from + *consumed,
                                 len - *consumed, to + *written,
                                 cap - *written, &used, &n, &err);
            *consumed += used;
            *written += n;
            if (used == 0 && st == TW_DONE) {
                st = feed(x->session, src, len, consumed, &err);
            }
        }
    }
    tw_lock_release(&x->lock);
    return report(error, st, &err);
}

static size_t api_output(struct twapi_tls_context *x, void *dst, size_t cap)
{
    size_t written = 0;

    if (take_turn(x, NULL) == TW_DONE) {
        (void)drain(x->session, dst, cap, &written);
        tw_lock_release(&x->lock);
    }
    return written;
}

static void api_input_eof(struct twapi_tls_context *x)
{
    tw_session_input_eof(x->session);
}

static int api_shutdown(struct twapi_tls_context *x,
                        struct twapi_tls_error *error)
{
    struct tw_error err;
    enum tw_status st;

    tw_error_clear(&err);
    st = tw_session_shutdown(x->session, &err);
    return report(error, st, &err);
}

/* --- facts --- */

static int api_facts(struct twapi_tls_context *x,
                     struct twapi_tls_facts *out,
                     struct twapi_tls_error *error)
{
    struct twapi_tls_facts all;
    struct tw_facts facts;
    struct tw_error err;
    enum tw_status st;
    size_t size = out->size;

    tw_error_clear(&err);
    if (size <= sizeof(size)) {
        return report_argument(error, "facts has no size");
    }
    st = tw_session_facts(x->session, &facts, &err);
    if (st != TW_DONE) {
        return report(error, st, &err);
    }
    memset(&all, 0, sizeof(all));
    all.size = size < sizeof(all) ? size : sizeof(all);
    all.protocol = facts.protocol;
    all.suite = facts.suite;
    all.bits = facts.bits;
    all.resumed = facts.resumed;
    memcpy(all.suite_name, facts.suite_name, sizeof(all.suite_name));
    memcpy(all.group, facts.group, sizeof(all.group));
    memcpy(all.alpn, facts.alpn, sizeof(all.alpn));
    strncpy(all.sni, tw_session_sni(x->session), sizeof(all.sni) - 1);
    memcpy(out, &all, all.size);
    return TWAPI_TLS_DONE;
}

static int api_peer_certificate(struct twapi_tls_context *x, void *dst,
                                size_t *len, struct twapi_tls_error *error)
{
    const struct tw_provider *p = tw_provider_default();
    const uint8_t *der = NULL;
    struct tw_cert *cert = NULL;
    struct tw_error err;
    enum tw_status st;
    size_t room = *len;

    tw_error_clear(&err);
    *len = 0;
    st = tw_session_remote_cert(x->session, &cert, &err);
    if (st != TW_DONE) {
        return report(error, st, &err);
    }
    p->cert_der(cert, &der, len);
    if (*len > room) {
        st = TW_WANT_WRITE;
    } else {
        memcpy(dst, der, *len);
    }
    p->cert_free(cert);
    return (int)st;
}

/* --- connections --- */

static int api_connection_new(struct twapi_tls_context *x,
                              twapi_tls_socket fd,
                              struct twapi_tls_connection **out,
                              struct twapi_tls_error *error)
{
    struct twapi_tls_connection *c;
    struct tw_error err;

    if (out == NULL) {
        return report_argument(error, "out is NULL");
    }
    *out = NULL;
    if (x == NULL || x->lent) {
        return report_argument(error, "no context, or one that is in use");
    }
    tw_error_clear(&err);
    c = calloc(1, sizeof(*c));
    if (c == NULL) {
        return report(error, TW_E_NOMEM, &err);
    }
    c->wire = tw_wire_new(x->session, (tw_socket)fd, &err);
    if (c->wire == NULL) {
        free(c);
        return report(error, err.status, &err);
    }
    x->lent = true;
    c->context = x;
    *out = c;
    return TWAPI_TLS_DONE;
}

static void api_connection_free(struct twapi_tls_connection *c)
{
    if (c == NULL) {
        return;
    }
    tw_wire_free(c->wire);
    api_context_free(c->context);
    free(c);
}

static struct twapi_tls_context *api_connection_context(
    struct twapi_tls_connection *c)
{
    return c->context;
}

static int api_connection_handshake(struct twapi_tls_connection *c,
                                    int64_t deadline,
                                    struct twapi_tls_error *error)
{
    struct twapi_tls_context *x = c->context;
    struct tw_error err;
    enum tw_status st;

    tw_error_clear(&err);
    st = tw_wire_handshake(c->wire, deadline, &err);
    while (st == TW_WANT_VERDICT && (x->flags & TWAPI_TLS_MANUAL) == 0) {
        (void)answer_verdict(x, NULL);
        /* A refusal is told again, after its alert went out. */
        st = tw_wire_handshake(c->wire, deadline, &err);
    }
    return report(error, st, &err);
}

static int api_connection_read(struct twapi_tls_connection *c, void *dst,
                               size_t cap, size_t *n, int64_t deadline,
                               struct twapi_tls_error *error)
{
    struct tw_error err;
    enum tw_status st;

    tw_error_clear(&err);
    st = tw_wire_recv(c->wire, dst, cap, n, deadline, &err);
    return report(error, st, &err);
}

static int api_connection_write(struct twapi_tls_connection *c,
                                const void *src, size_t len, size_t *n,
                                int64_t deadline,
                                struct twapi_tls_error *error)
{
    struct tw_error err;
    enum tw_status st;

    tw_error_clear(&err);
    st = tw_wire_send(c->wire, src, len, n, deadline, &err);
    return report(error, st, &err);
}

static int api_connection_shutdown(struct twapi_tls_connection *c,
                                   int64_t deadline,
                                   struct twapi_tls_error *error)
{
    struct tw_error err;
    enum tw_status st;

    tw_error_clear(&err);
    st = tw_wire_shutdown_write(c->wire, deadline, &err);
    return report(error, st, &err);
}

static void api_connection_close(struct twapi_tls_connection *c,
                                 int64_t deadline)
{
    tw_wire_close(c->wire, deadline, true);
}

/* --- the table --- */

static const struct twapi_tls_api table = {
    .version = TWAPI_TLS_API_VERSION,
    .size = sizeof(struct twapi_tls_api),
    .engine = api_engine,
    .engine_version = api_engine_version,
    .clock_ns = tw_clock_ns,
    .status_text = api_status_text,
    .code_name = tw_code_name,
    .alert_name = tw_alert_name,
    .credentials_new = api_credentials_new,
    .credentials_free = api_credentials_free,
    .context_new = api_context_new,
    .context_free = api_context_free,
    .handshake = api_handshake,
    .verdict = api_verdict,
    .verify = api_verify,
    .encrypt = api_encrypt,
    .decrypt = api_decrypt,
    .output = api_output,
    .input_eof = api_input_eof,
    .shutdown = api_shutdown,
    .facts = api_facts,
    .peer_certificate = api_peer_certificate,
    .connection_new = api_connection_new,
    .connection_free = api_connection_free,
    .connection_context = api_connection_context,
    .connection_handshake = api_connection_handshake,
    .connection_read = api_connection_read,
    .connection_write = api_connection_write,
    .connection_shutdown = api_connection_shutdown,
    .connection_close = api_connection_close,
};

int tw_capi_add(PyObject *module)
{
    PyObject *capsule;
    int failed;

    /* A capsule's pointer is not const; nobody writes through it. */
    capsule = PyCapsule_New((void *)(uintptr_t)&table, TWAPI_TLS_CAPSULE,
                            NULL);
    if (capsule == NULL) {
        return -1;
    }
    failed = PyModule_AddObjectRef(module, "capi", capsule);
    Py_DECREF(capsule);
    return failed;
}
