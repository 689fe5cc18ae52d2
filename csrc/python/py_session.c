/*
 * Session: core/session.h for Python, and wire/wire.h once it has a socket.
 *
 * Every call that works or waits is described by a struct call and goes
 * through run(): it lets go of the GIL (the only place that does), performs
 * the call, looks after signals and goes on with the same deadline. The
 * GIL is kept for what neither waits nor takes longer than letting go of
 * it would: at most SMALL bytes with a timeout of 0; a read of more room
 * counts as small where the last one was.
 *
 * Without a socket the session's lock is not enough: its output is looked
 * at through a pointer that the next call may move. So calls on a session
 * without a socket take `guard`; with one, the wire has locks of its own.
 * The wire is attached under `guard` and stays until the object dies, so
 * who sees it needs no lock.
 *
 * A Session is made whole by __new__ and never made again, so no method
 * meets half of one.
 */
#include "core/atomic.h"
#include "python/convert.h"
#include "python/module.h"
#include "python/py_error.h"

#include <limits.h>
#include <string.h>

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

/* Bytes up to which a call that does not wait keeps the GIL. */
#define SMALL ((size_t)4096)
/* recv(n): up to this on the stack, beyond that a block of at most the
   other: 128 KiB and more would be mapped and unmapped at every call. */
#define STACK_ROOM ((size_t)16384)
#define BLOCK_ROOM ((size_t)120 * 1024)
/* The most key material export() makes at once. */
#define EXPORT_MAX 65535

struct py_session {
    PyObject_HEAD
    struct tw_session *session; /* owned by wire once there is one */
    struct tw_pointer wire;     /* struct tw_wire; NULL without a socket */
    struct tw_lock guard;       /* see above; also credentials */
    struct tw_count lately;     /* bytes of the last recv that gave any */
    PyObject *credentials;      /* a Credentials, or NULL */
};

static struct py_session *session_of(PyObject *self)
{
    return (struct py_session *)self;
}

static struct tw_session *core_of(PyObject *self)
{
    return session_of(self)->session;
}

static struct tw_wire *wire_of(struct py_session *self)
{
    return tw_pointer_get(&self->wire);
}

/* --- one call: no Python from here ... --- */

enum op {
    OP_HANDSHAKE,
    OP_RECV,
    OP_SEND,
    OP_FLUSH,
    OP_SHUTDOWN_WRITE,
    OP_SHUTDOWN,
    OP_CLOSE,
    OP_FEED,
    OP_FEED_EOF,
    OP_TAKE_OUTPUT,
    OP_TAKE_INPUT,
    OP_VERDICT,
    OP_SET_CREDENTIALS,
    OP_SET_CERTIFICATE,
    OP_SEAL,
    OP_SEAL_ALL,
    OP_OPEN
};

struct call {
    enum op op;
    uint8_t *dst;       /* where bytes go */
    const uint8_t *src; /* where they come from */
    size_t len;         /* of either */
    size_t room;        /* OP_SEAL..., OP_OPEN: of dst; len is of src */
    size_t used;        /* OP_SEAL..., OP_OPEN: of src */
    struct tw_buffer *more; /* OP_SEAL: what did not go into dst */
    size_t work;        /* most bytes that this takes time for, where len
                           does not say it; 0: len does */
    size_t n;           /* bytes moved so far */
    int64_t deadline;   /* tw_clock_ns */
    bool graceful;      /* OP_CLOSE */
    int32_t code;       /* OP_VERDICT */
    const char *detail; /* OP_VERDICT */
    struct tw_credentials *credentials; /* OP_SET_...; may be NULL */
    struct tw_error err;
};

/* Answers, the same with and without a socket. */
static enum tw_status answer(struct tw_session *s, struct call *c)
{
    switch (c->op) {
    case OP_VERDICT:
        return tw_session_verdict(s, c->code, c->detail, &c->err);
    case OP_SET_CREDENTIALS:
        return tw_session_set_credentials(s, c->credentials, &c->err);
    case OP_SET_CERTIFICATE:
        return tw_session_set_certificate(s, c->credentials, &c->err);
    default:
        return tw_error_set(&c->err, TW_E_STATE, 0,
                            "not while the session drives a socket");
    }
}

static enum tw_status perform_wire(struct tw_wire *w, struct call *c)
{
    struct tw_session *s = tw_wire_session(w);
    enum tw_status st;
    size_t n = 0;

    switch (c->op) {
    case OP_HANDSHAKE:
        return tw_wire_handshake(w, c->deadline, &c->err);
    case OP_RECV:
        st = tw_wire_recv(w, c->dst, c->len, &n, c->deadline, &c->err);
        c->n = n;
        return st;
    case OP_SEND:
        st = tw_wire_send(w, c->src + c->n, c->len - c->n, &n, c->deadline,
                          &c->err);
        c->n += n;
        return st;
    case OP_FLUSH:
        return tw_wire_flush(w, c->deadline, &c->err);
    case OP_SHUTDOWN_WRITE:
        return tw_wire_shutdown_write(w, c->deadline, &c->err);
    case OP_CLOSE:
        tw_wire_close(w, c->deadline, c->graceful);
        return TW_DONE;
    case OP_TAKE_INPUT:
        /* What follows close_notify. Before that a reader may be busy
           with it. */
        if (!tw_session_read_ended(s)) {
            break;
        }
        c->n = tw_session_input_take(s, c->dst, c->len);
        return TW_DONE;
    default:
        break;
    }
    st = answer(s, c);
    if (c->op == OP_VERDICT) {
        (void)tw_wire_flush(w, TW_NO_WAIT, NULL); /* the alert */
    }
    return st;
}

/* Seals what fits. A bound that is reached is no error: the caller takes
   the output and comes again. */
static enum tw_status seal(struct tw_session *s, struct call *c)
{
    enum tw_status st;

    st = tw_session_write(s, c->src, c->len, &c->n, &c->err);
    if (c->n != 0 && st < 0) {
        tw_error_clear(&c->err); /* it stays, and is told next time */
        return TW_DONE;
    }
    return st;
}

static size_t copy_output(struct tw_session *s, uint8_t *dst, size_t room)
{
    const uint8_t *ptr = NULL;
    size_t len = tw_session_output(s, &ptr);

    len = len < room ? len : room;
    if (len != 0) {
        memcpy(dst, ptr, len);
        tw_session_output_consume(s, len);
    }
    return len;
}

static enum tw_status cannot_encrypt(struct call *c)
{
    return tw_error_set(&c->err, TW_E_STATE, 0,
                        "the context cannot encrypt now: a renegotiation "
                        "waits for the peer");
}

/* What waits and then all of c->src as records, into c->dst. Should that be
   too small after all (somebody else left output in between), the rest
   becomes output. */
static enum tw_status seal_all(struct tw_session *s, struct call *c)
{
    for (;;) {
        enum tw_status st;
        size_t taken;
        size_t made;

        if (c->n < c->room) {
            c->n += copy_output(s, c->dst + c->n, c->room - c->n);
        }
        if (c->used == c->len) {
            return TW_DONE;
        }
        st = tw_session_seal(s, c->src + c->used, c->len - c->used,
                             c->dst + c->n, c->room - c->n, &taken, &made,
                             &c->err);
        c->n += made;
        if (st == TW_DONE && taken == 0) {
            st = tw_session_write(s, c->src + c->used, c->len - c->used,
                                  &taken, &c->err);
        }
        c->used += taken;
        if (st < 0) {
            return st;
        }
        if (taken == 0) {
            return cannot_encrypt(c);
        }
    }
}

/* What the direct way left of c->src goes the ordinary one, into c->dst. */
static enum tw_status open_rest(struct tw_session *s, struct call *c)
{
    enum tw_status st;
    size_t n = 0;

    if (c->used < c->len) {
        st = tw_session_input(s, c->src + c->used, c->len - c->used);
        if (st != TW_DONE) {
            return tw_error_set(&c->err, st, 0,
                                "too much input at once: read what there "
                                "is");
        }
        c->used = c->len;
    }
    st = tw_session_read(s, c->dst + c->n, c->room - c->n, &n, &c->err);
    c->n += n;
    if (c->n != 0 && st < 0) {
        tw_error_clear(&c->err); /* it stays, and is told next time */
        return TW_DONE;
    }
    return st;
}

static enum tw_status open_all(struct tw_session *s, struct call *c)
{
    enum tw_status st;

    st = tw_session_open(s, c->src, c->len, c->dst, c->room, &c->used,
                         &c->n, &c->err);
    if (st != TW_DONE || (c->used == c->len && c->len != 0)) {
        return st;
    }
    return open_rest(s, c);
}

/* Moves the output behind what is gathered. */
static bool gather_output(struct tw_session *s, struct tw_buffer *to)
{
    const uint8_t *ptr = NULL;
    size_t len = tw_session_output(s, &ptr);
    bool good = tw_buffer_append(to, ptr, len);

    if (good && len != 0) {
        tw_session_output_consume(s, len);
    }
    return good;
}

/*
 * Seals c->src: straight into c->dst as far as that goes, the rest by way of
 * the output, with what waited there, into c->more. All of it within one
 * call, so that no renegotiation can begin in between, which would leave
 * half of it unsent and the other half sealed.
 */
static enum tw_status seal_gathered(struct tw_session *s, struct call *c)
{
    enum tw_status st;

    st = tw_session_seal(s, c->src, c->len, c->dst, c->room, &c->used,
                         &c->n, &c->err);
    while (st >= 0 && c->used < c->len) {
        size_t taken = 0;

        st = tw_session_write(s, c->src + c->used, c->len - c->used, &taken,
                              &c->err);
        c->used += taken;
        if (!gather_output(s, c->more)) {
            return tw_error_set(&c->err, TW_E_NOMEM, 0, NULL);
        }
        if (st == TW_WANT_READ) {
            return cannot_encrypt(c);
        }
    }
    return st;
}

static enum tw_status perform_core(struct tw_session *s, struct call *c)
{
    switch (c->op) {
    case OP_SEAL:
        return seal_gathered(s, c);
    case OP_SEAL_ALL:
        return seal_all(s, c);
    case OP_OPEN:
        return open_all(s, c);
    case OP_HANDSHAKE:
        return tw_session_handshake(s, &c->err);
    case OP_RECV:
        return tw_session_read(s, c->dst, c->len, &c->n, &c->err);
    case OP_SEND:
        return seal(s, c);
    case OP_SHUTDOWN:
    case OP_SHUTDOWN_WRITE:
        return tw_session_shutdown(s, &c->err);
    case OP_FLUSH:
        return tw_session_output(s, NULL) == 0 ? TW_DONE : TW_WANT_WRITE;
    case OP_CLOSE:
        tw_session_abort(s);
        return TW_DONE;
    case OP_FEED:
        return tw_error_set(&c->err,
                            tw_session_input(s, c->src, c->len), 0,
                            "too much input at once: read what there is");
    case OP_FEED_EOF:
        tw_session_input_eof(s);
        return TW_DONE;
    case OP_TAKE_OUTPUT:
        c->n = copy_output(s, c->dst, c->len);
        return TW_DONE;
    case OP_TAKE_INPUT:
        c->n = tw_session_input_take(s, c->dst, c->len);
        return TW_DONE;
    default:
        return answer(s, c);
    }
}

static enum tw_status perform(struct py_session *self, struct call *c)
{
    struct tw_wire *wire = wire_of(self);
    enum tw_status st;

    if (wire != NULL) {
        return perform_wire(wire, c);
    }
    tw_lock_acquire(&self->guard);
    st = perform_core(self->session, c);
    tw_lock_release(&self->guard);
    return st;
}

/* --- ... to here --- */

/* Quick enough to keep the GIL? */
static bool is_small(const struct call *c)
{
    switch (c->op) {
    case OP_RECV:
    case OP_SEND:
        return c->deadline == TW_NO_WAIT
               && (c->work != 0 ? c->work : c->len) <= SMALL;
    case OP_FEED:
    case OP_TAKE_OUTPUT:
    case OP_TAKE_INPUT:
    case OP_SEAL:
    case OP_SEAL_ALL:
        return c->len <= SMALL;
    case OP_OPEN:
        return c->work <= SMALL;
    case OP_FEED_EOF:
        return true;
    default:
        return false;
    }
}

/* The one place that lets go of the GIL. Below 0: look at c->err, save
   that TW_E_INTERRUPTED means an exception is set already. */
static enum tw_status run(struct py_session *self, struct call *c)
{
    for (;;) {
        enum tw_status st;

        tw_error_clear(&c->err);
        if (is_small(c)) {
            st = perform(self, c);
        } else {
            Py_BEGIN_ALLOW_THREADS
            st = perform(self, c);
            Py_END_ALLOW_THREADS
        }
        if (st != TW_E_INTERRUPTED) {
            if (st < 0 && c->err.status == TW_DONE) {
                (void)tw_error_set(&c->err, st, 0, "%s",
                                   tw_status_text(st));
            }
            return st;
        }
        if (PyErr_CheckSignals() < 0) {
            return st;
        }
    }
}

/* The pending output as bytes; b"" with a socket. */
static PyObject *take_output_bytes(struct py_session *self)
{
    struct call c = {.op = OP_TAKE_OUTPUT};
    PyObject *bytes;
    PyObject *exact;

    tw_lock_acquire(&self->guard);
    c.len = wire_of(self) == NULL ? tw_session_output(self->session, NULL)
                                  : 0;
    tw_lock_release(&self->guard);
    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)c.len);
    if (bytes == NULL || c.len == 0) {
        return bytes;
    }
    c.dst = (uint8_t *)PyBytes_AsString(bytes);
    (void)run(self, &c);
    if (c.n == c.len) {
        return bytes;
    }
    /* somebody else took some in between */
    exact = PyBytes_FromStringAndSize((const char *)c.dst, (Py_ssize_t)c.n);
    Py_DECREF(bytes);
    return exact;
}

/* Raises what run() left, with the output as token if no socket sends it.
   Always NULL. */
static PyObject *fail(struct py_session *self, enum tw_status st,
                      struct call *c)
{
    struct tw_module *state = tw_module_of((PyObject *)self);
    PyObject *token = NULL;

    if (st == TW_E_INTERRUPTED) {
        return NULL;
    }
    if (wire_of(self) == NULL) {
        token = take_output_bytes(self);
        if (token == NULL) {
            return NULL;
        }
    }
    (void)tw_error_raise_token(state, &c->err, token);
    Py_XDECREF(token);
    return NULL;
}

/* Data calls have no way to return that a decision is wanted. */
static PyObject *fail_decision(PyObject *self, enum tw_status st)
{
    struct tw_error err;

    tw_error_clear(&err);
    (void)tw_error_set(&err, TW_E_STATE, 0, "%s: call handshake()",
                       tw_status_text(st));
    return tw_error_raise(tw_module_of(self), &err);
}

static bool is_decision(enum tw_status st)
{
    return st == TW_WANT_VERDICT || st == TW_WANT_CREDENTIALS ||
           st == TW_WANT_CERTIFICATE;
}

/* None for success, else raises. */
static PyObject *run_plain(PyObject *self, struct call *c)
{
    enum tw_status st = run(session_of(self), c);

    return st < 0 ? fail(session_of(self), st, c) : Py_NewRef(Py_None);
}

/* --- making and freeing --- */

enum {
    S_ROLE,
    S_CREDENTIALS,
    S_TARGET,
    S_REQUEST_CERT,
    S_ASK_VERDICT,
    S_ASK_CREDENTIALS,
    S_ASK_CERTIFICATE,
    S_RAGGED_EOF,
    S_ALPN,
    S_COUNT
};

/* A ProtocolNameList (RFC 7301, 3.1) without its outer length. */
static int parse_alpn(PyObject *obj, struct tw_buffer *list)
{
    PyObject *names;
    Py_ssize_t i;
    int result = -1;

    if (obj == NULL || obj == Py_None) {
        return 0;
    }
    names = tw_arg_tuple(obj, "alpn");
    if (names == NULL) {
        return -1;
    }
    for (i = 0; i < PyTuple_Size(names); i++) {
        PyObject *name = PyTuple_GetItem(names, i);
        Py_ssize_t len;
        uint8_t prefix;
        char *data;

        if (PyBytes_AsStringAndSize(name, &data, &len) < 0) {
            goto done;
        }
        if (len < 1 || len > 255 ||
            tw_buffer_length(list) + (size_t)len + 1 > 65535) {
            PyErr_SetString(PyExc_ValueError,
                            "an ALPN name has 1 to 255 bytes, all of them "
                            "together less than 64 KiB");
            goto done;
        }
        prefix = (uint8_t)len;
        if (!tw_buffer_append(list, &prefix, 1) ||
            !tw_buffer_append(list, data, (size_t)len)) {
            (void)PyErr_NoMemory();
            goto done;
        }
    }
    result = 0;
done:
    Py_DECREF(names);
    return result;
}

static int parse_config(struct tw_module *state, PyObject **given,
                        struct tw_session_config *config,
                        struct tw_buffer *alpn)
{
    int role = 0;

    config->ask_verdict = true;
    if (tw_arg_word(given[S_ROLE], "role", NAMES("client", "server"),
                    &role) < 0 ||
        tw_arg_text(given[S_TARGET], "target", true, &config->target) < 0 ||
        tw_arg_bool(given[S_REQUEST_CERT], &config->request_cert) < 0 ||
        tw_arg_bool(given[S_ASK_VERDICT], &config->ask_verdict) < 0 ||
        tw_arg_bool(given[S_ASK_CREDENTIALS], &config->ask_credentials) <
            0 ||
        tw_arg_bool(given[S_ASK_CERTIFICATE], &config->ask_certificate) <
            0 ||
        tw_arg_bool(given[S_RAGGED_EOF], &config->ragged_eof) < 0 ||
        parse_alpn(given[S_ALPN], alpn) < 0) {
        return -1;
    }
    config->role = role == 0 ? TW_CLIENT : TW_SERVER;
    config->alpn = tw_buffer_head(alpn);
    config->alpn_len = tw_buffer_length(alpn);
    if (given[S_CREDENTIALS] != Py_None) {
        config->credentials = tw_credentials_get(
            state, given[S_CREDENTIALS], "credentials");
        if (config->credentials == NULL) {
            return -1;
        }
    }
    return 0;
}

static PyObject *make(PyTypeObject *type, PyObject *credentials,
                      const struct tw_session_config *config)
{
    struct tw_session *core;
    struct py_session *self;
    struct tw_error err;

    tw_error_clear(&err);
    core = tw_session_new(tw_provider_default(), config, &err);
    if (core == NULL) {
        return tw_error_raise(tw_module_of_type(type), &err);
    }
    self = (struct py_session *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        tw_session_free(core);
        return NULL;
    }
    self->session = core;
    tw_pointer_set(&self->wire, NULL);
    tw_count_init(&self->lately, 0);
    tw_lock_init(&self->guard);
    if (credentials != Py_None) {
        self->credentials = Py_NewRef(credentials);
    }
    return (PyObject *)self;
}

static PyObject *session_tp_new(PyTypeObject *type, PyObject *args,
                                PyObject *kwargs)
{
    static char *names[] = {"role",          "credentials",
                            "target",        "request_cert",
                            "ask_verdict",   "ask_credentials",
                            "ask_certificate", "ragged_eof",
                            "alpn",          NULL};
    struct tw_session_config config;
    PyObject *given[S_COUNT] = {NULL};
    PyObject *self = NULL;
    struct tw_buffer alpn;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "OO|$OOOOOOO:Session", names, &given[S_ROLE],
            &given[S_CREDENTIALS], &given[S_TARGET],
            &given[S_REQUEST_CERT], &given[S_ASK_VERDICT],
            &given[S_ASK_CREDENTIALS], &given[S_ASK_CERTIFICATE],
            &given[S_RAGGED_EOF], &given[S_ALPN])) {
        return NULL;
    }
    memset(&config, 0, sizeof(config));
    tw_buffer_init(&alpn);
    if (parse_config(tw_module_of_type(type), given, &config, &alpn) == 0) {
        self = make(type, given[S_CREDENTIALS], &config);
    }
    tw_buffer_free(&alpn);
    return self;
}

static int session_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(session_of(self)->credentials);
    return 0;
}

static int session_clear(PyObject *self)
{
    Py_CLEAR(session_of(self)->credentials);
    return 0;
}

static void session_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    (void)session_clear(self);
    if (wire_of(session_of(self)) != NULL) {
        tw_wire_free(wire_of(session_of(self))); /* and the session */
    } else {
        tw_session_free(session_of(self)->session);
    }
    tw_lock_fini(&session_of(self)->guard);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* --- with a socket --- */

PyDoc_STRVAR(attach_doc,
"attach(fd)\n\n"
"Takes over a connected stream socket (its native descriptor): from now\n"
"on the session drives and closes it. OSError for a descriptor that is no\n"
"such socket, ValueError if there is one already; then fd stays with the\n"
"caller.");

static PyObject *session_attach(PyObject *obj, PyObject *arg)
{
    struct py_session *self = session_of(obj);
    struct tw_error err;
    bool taken;
    int64_t fd = 0;

#ifdef _WIN32
    if (tw_arg_int(arg, "fd", INT64_MIN, INT64_MAX, &fd) < 0) {
#else
    if (tw_arg_int(arg, "fd", INT_MIN, INT_MAX, &fd) < 0) {
#endif
        return NULL;
    }
    tw_error_clear(&err);
    tw_lock_acquire(&self->guard);
    taken = wire_of(self) != NULL;
    if (!taken) {
        tw_pointer_set(&self->wire,
                       tw_wire_new(self->session, (tw_socket)fd, &err));
    }
    tw_lock_release(&self->guard);
    if (taken) {
        PyErr_SetString(PyExc_ValueError, "a socket is attached already");
        return NULL;
    }
    if (err.status != TW_DONE) {
        return tw_error_raise(tw_module_of(obj), &err);
    }
    return Py_NewRef(Py_None);
}

PyDoc_STRVAR(fileno_doc,
"fileno() -> int\n\n"
"The socket's descriptor; -1 without one, or once it is closed.");

static PyObject *session_fileno(PyObject *self, PyObject *unused)
{
    struct tw_wire *wire = wire_of(session_of(self));
    tw_socket fd = wire != NULL ? tw_wire_fd(wire) : TW_NO_SOCKET;

    (void)unused;
    return fd == TW_NO_SOCKET ? PyLong_FromLong(-1)
                              : PyLong_FromLongLong((long long)fd);
}

/* The optional timeout, the last of max arguments: None by default. */
static int parse_call(const char *method, PyObject *const *args,
                      Py_ssize_t count, Py_ssize_t max, struct call *c)
{
    c->deadline = TW_FOREVER;
    if (tw_arg_count(method, count, max - 1, max) < 0) {
        return -1;
    }
    return tw_arg_timeout(count == max ? args[max - 1] : NULL,
                          &c->deadline);
}

PyDoc_STRVAR(handshake_doc,
"handshake(timeout=None) -> int\n\n"
"Goes on with the handshake: DONE once it is open; WANT_VERDICT,\n"
"WANT_CREDENTIALS, WANT_CERTIFICATE: answer and call again. WANT_READ and\n"
"WANT_WRITE only with timeout 0 or without a socket. timeout: seconds,\n"
"None for ever. TLSError if it failed; its token holds the output that is\n"
"to be sent if there is no socket.");

static PyObject *session_handshake(PyObject *self, PyObject *const *args,
                                   Py_ssize_t count)
{
    struct call c = {.op = OP_HANDSHAKE};
    enum tw_status st;

    if (parse_call("handshake", args, count, 1, &c) < 0) {
        return NULL;
    }
    st = run(session_of(self), &c);
    if (st < 0) {
        return fail(session_of(self), st, &c);
    }
    return PyLong_FromLong(st);
}

/* What a read came to, told by the caller's words for bytes, end, none. */
enum outcome { GOT_BYTES, GOT_END, GOT_NOTHING, GOT_ERROR };

static enum outcome run_recv(PyObject *self, struct call *c)
{
    enum tw_status st = run(session_of(self), c);

    if (c->n != 0) {
        tw_count_set(&session_of(self)->lately, (long)c->n);
        return GOT_BYTES;
    }
    if (st == TW_DONE || st == TW_END) {
        return GOT_END;
    }
    if (st < 0) {
        (void)fail(session_of(self), st, c);
        return GOT_ERROR;
    }
    if (is_decision(st)) {
        (void)fail_decision(self, st);
        return GOT_ERROR;
    }
    return GOT_NOTHING;
}

/* The read into c->dst as bytes, b"" or None. */
static PyObject *recv_bytes(PyObject *self, struct call *c)
{
    switch (run_recv(self, c)) {
    case GOT_BYTES:
        return PyBytes_FromStringAndSize((const char *)c->dst,
                                         (Py_ssize_t)c->n);
    case GOT_END:
        return PyBytes_FromStringAndSize("", 0);
    case GOT_NOTHING:
        return Py_NewRef(Py_None);
    default:
        return NULL;
    }
}

/* What a read of `room` bytes may come to, by what the last one did. */
static size_t likely_work(struct py_session *self, size_t room)
{
    size_t lately = (size_t)tw_count_glance(&self->lately);

    return room > SMALL && lately != 0 && lately <= SMALL ? lately : room;
}

/* Apart, so that its frame is there for small reads only. */
static PyObject *recv_small(PyObject *self, struct call *c)
{
    uint8_t room[STACK_ROOM];

    c->dst = room;
    return recv_bytes(self, c);
}

PyDoc_STRVAR(recv_doc,
"recv(n, timeout=None) -> bytes | None\n\n"
"1 to n bytes, as soon as there are any; b\"\" at the end (close_notify);\n"
"None: would block (timeout 0, or no socket). TLSTruncatedError if the\n"
"stream ended without close_notify, TLSTimeoutError after timeout seconds.");

static PyObject *session_recv(PyObject *self, PyObject *const *args,
                              Py_ssize_t count)
{
    struct call c = {.op = OP_RECV};
    PyObject *result;
    int64_t n = 0;

    if (parse_call("recv", args, count, 2, &c) < 0 ||
        tw_arg_int(args[0], "n", 0, INT64_MAX, &n) < 0) {
        return NULL;
    }
    c.len = (uint64_t)n < BLOCK_ROOM ? (size_t)n : BLOCK_ROOM;
    c.work = likely_work(session_of(self), c.len);
    if (c.work <= SMALL && c.len > STACK_ROOM) {
        c.len = STACK_ROOM; /* most likely enough */
    }
    if (c.len <= STACK_ROOM) {
        return recv_small(self, &c);
    }
    c.dst = PyMem_Malloc(c.len);
    if (c.dst == NULL) {
        return PyErr_NoMemory();
    }
    result = recv_bytes(self, &c);
    PyMem_Free(c.dst);
    return result;
}

PyDoc_STRVAR(recv_into_doc,
"recv_into(buffer, timeout=None) -> int\n\n"
"Reads into a writable buffer; how many bytes, 0 at the end, -1: would\n"
"block (timeout 0, or no socket). Errors as recv().");

static PyObject *session_recv_into(PyObject *self, PyObject *const *args,
                                   Py_ssize_t count)
{
    struct call c = {.op = OP_RECV};
    enum outcome outcome;
    Py_buffer view;

    if (parse_call("recv_into", args, count, 2, &c) < 0 ||
        PyObject_GetBuffer(args[0], &view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    c.dst = view.buf;
    c.len = (size_t)view.len;
    c.work = likely_work(session_of(self), c.len);
    outcome = run_recv(self, &c);
    PyBuffer_Release(&view);
    switch (outcome) {
    case GOT_BYTES:
        return PyLong_FromSize_t(c.n);
    case GOT_END:
        return PyLong_FromLong(0);
    case GOT_NOTHING:
        return PyLong_FromLong(-1);
    default:
        return NULL;
    }
}

PyDoc_STRVAR(send_doc,
"send(data, timeout=None) -> int\n\n"
"How many bytes were taken: all of them, handed to the system; with\n"
"timeout 0 (or no socket) as many as fit, perhaps 0: flush() sends what is\n"
"left of them. Bytes taken are never to be given again: on a\n"
"TLSTimeoutError or any other exception, its attribute `written` says how\n"
"many were.");

static PyObject *session_send(PyObject *self, PyObject *const *args,
                              Py_ssize_t count)
{
    struct call c = {.op = OP_SEND};
    enum tw_status st;
    Py_buffer view;

    if (parse_call("send", args, count, 2, &c) < 0 ||
        PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    c.src = view.buf;
    c.len = (size_t)view.len;
    st = run(session_of(self), &c);
    PyBuffer_Release(&view);
    if (st < 0) {
        (void)fail(session_of(self), st, &c);
    } else if (is_decision(st) && c.n == 0) {
        (void)fail_decision(self, st);
    } else {
        return PyLong_FromSize_t(c.n);
    }
    tw_error_annotate("written", PyLong_FromSize_t(c.n));
    return NULL;
}

/* True: done; False: output still waits. */
static PyObject *run_output(PyObject *self, struct call *c)
{
    enum tw_status st = run(session_of(self), c);
    bool waits = st == TW_WANT_WRITE;

    if (st < 0) {
        return fail(session_of(self), st, c);
    }
    if (wire_of(session_of(self)) == NULL) {
        waits = tw_session_output(core_of(self), NULL) != 0;
    }
    return PyBool_FromLong(!waits);
}

PyDoc_STRVAR(flush_doc,
"flush(timeout=None) -> bool\n\n"
"Hands pending output to the system. True when none waits any more.");

static PyObject *session_flush(PyObject *self, PyObject *const *args,
                               Py_ssize_t count)
{
    struct call c = {.op = OP_FLUSH};

    if (parse_call("flush", args, count, 1, &c) < 0) {
        return NULL;
    }
    return run_output(self, &c);
}

PyDoc_STRVAR(shutdown_write_doc,
"shutdown_write(timeout=None) -> bool\n\n"
"Sends close_notify and FIN; reading goes on. Idempotent. False: output\n"
"still waits (timeout 0, or no socket): call again.");

static PyObject *session_shutdown_write(PyObject *self,
                                        PyObject *const *args,
                                        Py_ssize_t count)
{
    struct call c = {.op = OP_SHUTDOWN_WRITE};

    if (parse_call("shutdown_write", args, count, 1, &c) < 0) {
        return NULL;
    }
    return run_output(self, &c);
}

PyDoc_STRVAR(close_doc,
"close(timeout=0.0, graceful=True)\n\n"
"Closes for good. graceful: with a close_notify, as far as timeout seconds\n"
"allow. Calls of other threads end with TLSClosedError. Idempotent, never\n"
"fails.");

static PyObject *session_close(PyObject *self, PyObject *const *args,
                               Py_ssize_t count)
{
    struct call c = {.op = OP_CLOSE, .graceful = true};

    c.deadline = TW_NO_WAIT;
    if (tw_arg_count("close", count, 0, 2) < 0 ||
        tw_arg_timeout(count > 0 ? args[0] : NULL, &c.deadline) < 0 ||
        tw_arg_bool(count > 1 ? args[1] : NULL, &c.graceful) < 0) {
        return NULL;
    }
    return run_plain(self, &c);
}

PyDoc_STRVAR(readable_doc,
"readable() -> bool\n\n"
"Whether recv() would say something without waiting: bytes, the end or an\n"
"error. A whole record counts, even if it turns out to hold no data.");

static PyObject *session_readable(PyObject *self, PyObject *unused)
{
    struct tw_session *s = core_of(self);
    struct tw_wire *wire = wire_of(session_of(self));

    (void)unused;
    if (wire != NULL) {
        return PyBool_FromLong(tw_wire_readable(wire));
    }
    return PyBool_FromLong(tw_session_pending(s) != 0 ||
                           tw_session_read_ended(s) ||
                           tw_session_state(s) == TW_FAILED ||
                           tw_session_missing(s) == 0);
}

/* --- without a socket --- */

PyDoc_STRVAR(feed_doc,
"feed(data)\n\n"
"Bytes from the peer. ValueError beyond 1 MiB that nobody read.");

static PyObject *session_feed(PyObject *self, PyObject *arg)
{
    struct call c = {.op = OP_FEED};
    PyObject *result;
    Py_buffer view;

    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    c.src = view.buf;
    c.len = (size_t)view.len;
    result = run_plain(self, &c);
    PyBuffer_Release(&view);
    return result;
}

PyDoc_STRVAR(feed_eof_doc,
"feed_eof()\n\nThe peer's stream has ended (TCP FIN).");

static PyObject *session_feed_eof(PyObject *self, PyObject *unused)
{
    struct call c = {.op = OP_FEED_EOF};

    (void)unused;
    return run_plain(self, &c);
}

/* Most calls below that move bytes make no sense with a socket. */
static PyObject *refuse_with_socket(PyObject *self)
{
    struct tw_error err;

    tw_error_clear(&err);
    (void)tw_error_set(&err, TW_E_STATE, 0,
                       "not while the session drives a socket");
    return tw_error_raise(tw_module_of(self), &err);
}

PyDoc_STRVAR(set_ragged_eof_doc,
"set_ragged_eof(flag)\n\n"
"Whether TCP EOF without close_notify is an end and no error.");

static PyObject *session_set_ragged_eof(PyObject *self, PyObject *arg)
{
    bool ragged;

    if (tw_arg_bool(arg, &ragged) < 0) {
        return NULL;
    }
    tw_session_set_ragged_eof(core_of(self), ragged);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_spin_doc,
"set_spin(flag)\n\n"
"Whether a read that has to wait for the peer spins for a while, at most 50\n"
"us, less where that was in vain, before it sleeps. With a socket.");

static PyObject *session_set_spin(PyObject *self, PyObject *arg)
{
    struct tw_wire *wire = wire_of(session_of(self));
    bool on;

    if (tw_arg_bool(arg, &on) < 0) {
        return NULL;
    }
    if (wire == NULL) {
        PyErr_SetString(PyExc_ValueError, "the session has no socket");
        return NULL;
    }
    tw_wire_set_spin(wire, on);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(encrypt_doc,
"encrypt(data) -> bytes\n\n"
"The records for data, with whatever output waited before them. TLSError if\n"
"the session is not open, or while a renegotiation waits for the peer; its\n"
"token is to be sent, its attribute `written` says how much of data is in.");

/* Two parts of what was sealed as bytes. */
static PyObject *join(const uint8_t *first, size_t n, struct tw_buffer *more)
{
    size_t rest = tw_buffer_length(more);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL,
                                                (Py_ssize_t)(n + rest));

    if (bytes != NULL) {
        char *at = PyBytes_AsString(bytes);

        if (n != 0) {
            memcpy(at, first, n);
        }
        if (rest != 0) {
            memcpy(at + n, tw_buffer_head(more), rest);
        }
    }
    return bytes;
}

/* An error of c, with what was sealed nevertheless, and the output, as the
   token that is to be sent. Always NULL. */
static PyObject *fail_sealed(PyObject *self, enum tw_status st,
                             struct call *c)
{
    struct tw_module *state = tw_module_of(self);
    struct tw_session *s = core_of(self);
    PyObject *token;

    if (st == TW_E_INTERRUPTED) {
        return NULL;
    }
    tw_lock_acquire(&session_of(self)->guard);
    if (wire_of(session_of(self)) == NULL) {
        (void)gather_output(s, c->more);
    }
    tw_lock_release(&session_of(self)->guard);
    token = join(c->dst, c->n, c->more);
    if (token != NULL) {
        (void)tw_error_raise_token(state, &c->err, token);
        Py_DECREF(token);
        tw_error_annotate("written", PyLong_FromSize_t(c->used));
    }
    return NULL;
}

/* Seals c->src to c->dst and c->more; the two as bytes. */
static PyObject *sealed(PyObject *self, struct call *c)
{
    enum tw_status st = run(session_of(self), c);

    return st < 0 ? fail_sealed(self, st, c) : join(c->dst, c->n, c->more);
}

/* Apart, so that its frame is there for small writes only: one record, and
   no need to ask for its size first. */
static PyObject *encrypt_small(PyObject *self, struct call *c)
{
    uint8_t room[SMALL + 512];

    c->dst = room;
    c->room = sizeof(room);
    return sealed(self, c);
}

/* Straight into a bytes object of the size that the records will have. */
static PyObject *encrypt_large(PyObject *self, struct call *c)
{
    enum tw_status st;
    PyObject *bytes;
    PyObject *whole;

    c->room = tw_session_sealed_size(core_of(self), c->len);
    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)c->room);
    if (bytes == NULL) {
        return NULL;
    }
    c->dst = (uint8_t *)PyBytes_AsString(bytes);
    st = run(session_of(self), c);
    if (st >= 0 && c->n == c->room && tw_buffer_length(c->more) == 0) {
        return bytes;
    }
    whole = st < 0 ? fail_sealed(self, st, c)
                   : join(c->dst, c->n, c->more);
    Py_DECREF(bytes);
    return whole;
}

static PyObject *session_encrypt(PyObject *self, PyObject *arg)
{
    struct call c = {.op = OP_SEAL};
    struct tw_buffer more;
    PyObject *bytes;
    Py_buffer view;

    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    tw_buffer_init(&more);
    c.more = &more;
    c.src = view.buf;
    c.len = (size_t)view.len;
    if (c.len <= SMALL) {
        bytes = encrypt_small(self, &c);
    } else if (tw_session_sealed_exactly(core_of(self))) {
        bytes = encrypt_large(self, &c);
    } else {
        /* Without an exact size the records pass through the output, which
           is copied out once as well. */
        bytes = sealed(self, &c);
    }
    tw_buffer_free(&more);
    PyBuffer_Release(&view);
    return bytes;
}

PyDoc_STRVAR(decrypt_doc,
"decrypt(data) -> bytes\n\n"
"The plaintext of the peer's bytes, perhaps b\"\"; incomplete records are\n"
"kept. read_ended() and output_pending() tell what else came. Plaintext\n"
"before an error comes first; the next call raises the error.");

/* Decrypts c->src to c->dst; what came of it as bytes. */
static PyObject *decrypted(PyObject *self, struct call *c)
{
    enum tw_status st = run(session_of(self), c);

    if (st < 0) {
        return fail(session_of(self), st, c);
    }
    return is_decision(st) && c->n == 0
               ? fail_decision(self, st)
               : PyBytes_FromStringAndSize((const char *)c->dst,
                                           (Py_ssize_t)c->n);
}

static PyObject *decrypt_small(PyObject *self, struct call *c)
{
    uint8_t room[SMALL + 1];

    c->dst = room;
    c->room = sizeof(room);
    return decrypted(self, c);
}

/* Straight into a bytes object that has the size that all of it has if it
   is data without padding. */
static PyObject *decrypt_large(PyObject *self, struct call *c, size_t size)
{
    enum tw_status st;
    PyObject *exact;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);

    if (bytes == NULL) {
        return NULL;
    }
    c->dst = (uint8_t *)PyBytes_AsString(bytes);
    c->room = size;
    st = run(session_of(self), c);
    if (st < 0) {
        Py_DECREF(bytes);
        return fail(session_of(self), st, c);
    }
    if (c->n == size) {
        return bytes;
    }
    exact = PyBytes_FromStringAndSize((const char *)c->dst,
                                      (Py_ssize_t)c->n);
    Py_DECREF(bytes);
    return exact;
}

static PyObject *session_decrypt(PyObject *self, PyObject *arg)
{
    struct call c = {.op = OP_OPEN};
    PyObject *result;
    Py_buffer view;
    size_t size;

    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    c.src = view.buf;
    c.len = (size_t)view.len;
    size = tw_session_content_size(core_of(self), c.src, c.len);
    c.work = size;
    result = size <= SMALL ? decrypt_small(self, &c)
                           : decrypt_large(self, &c, size);
    PyBuffer_Release(&view);
    return result;
}

/* The arguments (data, buffer) of a call that reads one and fills the
   other. To be released together. */
struct memories {
    Py_buffer data;
    Py_buffer into;
};

static void release_memories(struct memories *m)
{
    PyBuffer_Release(&m->into);
    PyBuffer_Release(&m->data);
}

/* -1 with an exception, and nothing to release. */
static int get_memories(const char *name, PyObject *const *args,
                        Py_ssize_t count, struct memories *m,
                        struct call *c)
{
    if (tw_arg_count(name, count, 2, 2) < 0 ||
        PyObject_GetBuffer(args[0], &m->data, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    if (PyObject_GetBuffer(args[1], &m->into, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&m->data);
        return -1;
    }
    c->src = m->data.buf;
    c->len = (size_t)m->data.len;
    c->dst = m->into.buf;
    c->room = (size_t)m->into.len;
    if (c->len != 0 && c->room != 0 && c->dst < c->src + c->len &&
        c->src < c->dst + c->room) {
        PyErr_SetString(PyExc_ValueError, "data and buffer overlap");
        release_memories(m);
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(encrypt_into_doc,
"encrypt_into(data, buffer) -> int\n\n"
"As encrypt() into a writable buffer: how many bytes. ValueError if it has\n"
"less room than encrypted_size(len(data)): nothing was done. The two must\n"
"not overlap.");

static PyObject *session_encrypt_into(PyObject *self, PyObject *const *args,
                                      Py_ssize_t count)
{
    struct call c = {.op = OP_SEAL_ALL};
    struct memories memories;
    PyObject *result = NULL;
    enum tw_status st;
    size_t need;

    if (get_memories("encrypt_into", args, count, &memories, &c) < 0) {
        return NULL;
    }
    need = tw_session_sealed_bound(core_of(self), c.len);
    if (c.room < need) {
        PyErr_Format(PyExc_ValueError,
                     "the buffer has %zu bytes of the %zu that are needed",
                     c.room, need);
        goto done;
    }
    st = run(session_of(self), &c);
    result = st < 0 ? fail(session_of(self), st, &c)
                    : PyLong_FromSize_t(c.n);
done:
    release_memories(&memories);
    return result;
}

PyDoc_STRVAR(encrypted_size_doc,
"encrypted_size(length) -> int\n\n"
"The room that encrypt_into() wants for so many bytes, and for what waits\n"
"to go before them. Before the handshake is over: for that alone.");

static PyObject *session_encrypted_size(PyObject *self, PyObject *arg)
{
    size_t length = PyLong_AsSize_t(arg);

    if (length == (size_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    if (length > (size_t)PY_SSIZE_T_MAX / 2) {
        PyErr_SetString(PyExc_OverflowError, "no such length");
        return NULL;
    }
    return PyLong_FromSize_t(
        tw_session_sealed_bound(core_of(self), length));
}

PyDoc_STRVAR(decrypt_into_doc,
"decrypt_into(data, buffer) -> int\n\n"
"As decrypt() into a writable buffer: how many bytes, perhaps 0. What does\n"
"not fit waits inside: decrypt_into(b\"\", buffer) gives more of it. The two\n"
"must not overlap.");

static PyObject *session_decrypt_into(PyObject *self, PyObject *const *args,
                                      Py_ssize_t count)
{
    struct call c = {.op = OP_OPEN};
    struct memories memories;
    PyObject *result = NULL;
    enum tw_status st;

    if (get_memories("decrypt_into", args, count, &memories, &c) < 0) {
        return NULL;
    }
    c.work = tw_session_content_size(core_of(self), c.src, c.len);
    st = run(session_of(self), &c);
    if (st < 0) {
        (void)fail(session_of(self), st, &c);
    } else if (is_decision(st) && c.n == 0) {
        (void)fail_decision(self, st);
    } else {
        result = PyLong_FromSize_t(c.n);
    }
    release_memories(&memories);
    return result;
}

PyDoc_STRVAR(take_output_doc,
"take_output() -> bytes\n\n"
"The bytes for the peer, removed. Send them whatever else happens.");

static PyObject *session_take_output(PyObject *self, PyObject *unused)
{
    (void)unused;
    if (wire_of(session_of(self)) != NULL) {
        return refuse_with_socket(self);
    }
    return take_output_bytes(session_of(self));
}

PyDoc_STRVAR(take_input_doc,
"take_input() -> bytes\n\n"
"Bytes from the peer that were not consumed, removed. With a socket only\n"
"after the end of the peer's data.");

static PyObject *session_take_input(PyObject *self, PyObject *unused)
{
    struct call c = {.op = OP_TAKE_INPUT};
    PyObject *result;

    (void)unused;
    c.len = tw_session_input_length(core_of(self));
    if (c.len == 0) {
        return PyBytes_FromStringAndSize("", 0);
    }
    c.dst = PyMem_Malloc(c.len);
    if (c.dst == NULL) {
        return PyErr_NoMemory();
    }
    result = run_plain(self, &c);
    if (result != NULL) {
        Py_DECREF(result);
        result = PyBytes_FromStringAndSize((const char *)c.dst,
                                           (Py_ssize_t)c.n);
    }
    PyMem_Free(c.dst);
    return result;
}

PyDoc_STRVAR(shutdown_doc,
"shutdown()\n\n"
"Puts close_notify into the output, once. With a socket use\n"
"shutdown_write().");

static PyObject *session_shutdown(PyObject *self, PyObject *unused)
{
    struct call c = {.op = OP_SHUTDOWN};

    (void)unused;
    return run_plain(self, &c);
}

PyDoc_STRVAR(missing_doc,
"missing() -> int\n\n"
"Bytes that the next step lacks at least; 0: it can go on.");

static PyObject *session_missing(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSize_t(tw_session_missing(core_of(self)));
}

/* --- answers --- */

PyDoc_STRVAR(verdict_doc,
"verdict(code, detail='')\n\n"
"The answer to WANT_VERDICT. code 0 accepts the peer's certificate. Any\n"
"other is the SSPI code that says why not, detail a sentence: the session\n"
"fails, the alert is sent (without a socket: stays in the output), and\n"
"TLSVerificationError is raised.");

static PyObject *session_verdict(PyObject *self, PyObject *const *args,
                                 Py_ssize_t count)
{
    struct call c = {.op = OP_VERDICT, .detail = ""};
    enum tw_status st;
    int64_t code = 0;

    if (tw_arg_count("verdict", count, 1, 2) < 0 ||
        tw_arg_int(args[0], "code", INT32_MIN, UINT32_MAX, &code) < 0 ||
        tw_arg_text(count > 1 ? args[1] : NULL, "detail", false,
                    &c.detail) < 0) {
        return NULL;
    }
    c.code = (int32_t)(uint32_t)code;
    st = run(session_of(self), &c);
    if (st == TW_DONE && c.code != 0) {
        st = tw_error_set(&c.err, TW_E_REFUSED, c.code, "%s", c.detail);
    }
    if (st < 0) {
        return st == TW_E_INTERRUPTED
                   ? NULL
                   : tw_error_raise(tw_module_of(self), &c.err);
    }
    return Py_NewRef(Py_None);
}

/* Remembers who is in use now; value may be None. */
static void keep_credentials(struct py_session *self, PyObject *value)
{
    PyObject *old;

    tw_lock_acquire(&self->guard);
    old = self->credentials;
    self->credentials = Py_NewRef(value);
    tw_lock_release(&self->guard);
    Py_XDECREF(old);
}

PyDoc_STRVAR(set_credentials_doc,
"set_credentials(credentials)\n\n"
"The answer to WANT_CREDENTIALS: a server's Credentials.");

static PyObject *session_set_credentials(PyObject *self, PyObject *arg)
{
    struct call c = {.op = OP_SET_CREDENTIALS};
    PyObject *result;

    c.credentials =
        tw_credentials_get(tw_module_of(self), arg, "credentials");
    if (c.credentials == NULL) {
        return NULL;
    }
    result = run_plain(self, &c);
    if (result != NULL) {
        keep_credentials(session_of(self), arg);
    }
    return result;
}

PyDoc_STRVAR(set_certificate_doc,
"set_certificate(credentials)\n\n"
"The answer to WANT_CERTIFICATE: Credentials with a certificate, or None\n"
"to go on without one.");

static PyObject *session_set_certificate(PyObject *self, PyObject *arg)
{
    struct call c = {.op = OP_SET_CERTIFICATE};
    PyObject *result;

    if (arg != Py_None) {
        c.credentials =
            tw_credentials_get(tw_module_of(self), arg, "credentials");
        if (c.credentials == NULL) {
            return NULL;
        }
    }
    result = run_plain(self, &c);
    if (result != NULL && arg != Py_None) {
        keep_credentials(session_of(self), arg);
    }
    return result;
}

static PyObject *hello_alpn(const struct tw_hello *hello)
{
    PyObject *list = PyList_New(0);
    size_t at = 0;

    while (list != NULL && at < hello->alpn_len) {
        size_t len = hello->alpn[at];
        PyObject *name;

        if (len > hello->alpn_len - at - 1) {
            break; /* cut off where the room ended */
        }
        name = PyBytes_FromStringAndSize(
            (const char *)hello->alpn + at + 1, (Py_ssize_t)len);
        if (name == NULL || PyList_Append(list, name) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(name);
        at += len + 1;
    }
    return list;
}

static PyObject *hello_versions(const struct tw_hello *hello)
{
    PyObject *list = PyList_New(0);
    size_t i;

    for (i = 0; list != NULL && i < hello->version_count; i++) {
        PyObject *version = PyLong_FromLong(hello->versions[i]);

        if (version == NULL || PyList_Append(list, version) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(version);
    }
    return list;
}

PyDoc_STRVAR(hello_doc,
"hello() -> dict | None\n\n"
"What the ClientHello said, from WANT_CREDENTIALS on: server_name (str, ''\n"
"if none), alpn (list of bytes), versions (list of int, 0x0304 is TLS 1.3).");

static PyObject *session_hello(PyObject *self, PyObject *unused)
{
    const struct tw_hello *hello = tw_session_hello(core_of(self));
    PyObject *alpn, *versions, *name;
    PyObject *result = NULL;

    (void)unused;
    if (hello == NULL) {
        return Py_NewRef(Py_None);
    }
    alpn = hello_alpn(hello);
    versions = hello_versions(hello);
    name = PyUnicode_DecodeUTF8(hello->sni, (Py_ssize_t)strlen(hello->sni),
                                "replace");
    if (alpn != NULL && versions != NULL && name != NULL) {
        result = Py_BuildValue("{s:O,s:O,s:O}", "server_name", name, "alpn",
                               alpn, "versions", versions);
    }
    Py_XDECREF(alpn);
    Py_XDECREF(versions);
    Py_XDECREF(name);
    return result;
}

/* --- facts --- */

/*
 * The session for a look at it. If somebody is inside, at work with a block
 * of records or in a step, who looks waits for him without the GIL: the
 * look itself is short.
 */
static struct tw_session *looked_at(PyObject *self)
{
    struct tw_session *s = core_of(self);

    if (tw_session_busy(s)) {
        Py_BEGIN_ALLOW_THREADS
        (void)tw_session_state(s);
        Py_END_ALLOW_THREADS
    }
    return s;
}

PyDoc_STRVAR(state_doc,
"state() -> str\n\n\"INIT\", \"NEGOTIATING\", \"OPEN\" or \"FAILED\".");

static PyObject *session_state(PyObject *self, PyObject *unused)
{
    (void)unused;
    switch (tw_session_state(looked_at(self))) {
    case TW_INIT:
        return PyUnicode_FromString("INIT");
    case TW_NEGOTIATING:
        return PyUnicode_FromString("NEGOTIATING");
    case TW_OPEN:
        return PyUnicode_FromString("OPEN");
    default:
        return PyUnicode_FromString("FAILED");
    }
}

PyDoc_STRVAR(pending_doc,
"pending() -> int\n\nBytes decrypted and not yet read.");

static PyObject *session_pending(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSize_t(tw_session_pending(looked_at(self)));
}

PyDoc_STRVAR(output_pending_doc,
"output_pending() -> int\n\nBytes for the peer that wait to be sent.");

static PyObject *session_output_pending(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSize_t(tw_session_output(looked_at(self), NULL));
}

PyDoc_STRVAR(input_pending_doc,
"input_pending() -> int\n\nBytes from the peer that were not consumed.");

static PyObject *session_input_pending(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSize_t(tw_session_input_length(looked_at(self)));
}

PyDoc_STRVAR(read_ended_doc,
"read_ended() -> bool\n\nWhether the peer's data has ended.");

static PyObject *session_read_ended(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(tw_session_read_ended(looked_at(self)));
}

PyDoc_STRVAR(write_ended_doc,
"write_ended() -> bool\n\nWhether close_notify was made.");

static PyObject *session_write_ended(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(tw_session_write_ended(looked_at(self)));
}

PyDoc_STRVAR(error_doc,
"error() -> TLSError | OSError | None\n\n"
"The error that stands, as a new exception.");

static PyObject *session_error(PyObject *self, PyObject *unused)
{
    struct tw_error err;

    (void)unused;
    tw_error_clear(&err);
    tw_session_error(looked_at(self), &err);
    if (err.status >= TW_DONE) {
        return Py_NewRef(Py_None);
    }
    return tw_error_exception(tw_module_of(self), &err, NULL);
}

PyDoc_STRVAR(remote_cert_doc,
"remote_cert() -> Certificate\n\n"
"The peer's. TLSError, SEC_E_NO_CREDENTIALS, if it showed none.");

static PyObject *session_remote_cert(PyObject *self, PyObject *unused)
{
    struct tw_module *state = tw_module_of(self);
    struct tw_cert *cert = NULL;
    struct tw_error err;
    enum tw_status st;

    (void)unused;
    tw_error_clear(&err);
    st = tw_session_remote_cert(looked_at(self), &cert, &err);
    if (st != TW_DONE) {
        (void)tw_error_set(&err, TW_E_NOT_FOUND, SEC_E_NO_CREDENTIALS,
                           "the peer's certificate is not known yet");
        return tw_error_raise(state, &err);
    }
    return tw_certificate_wrap(state, cert);
}

PyDoc_STRVAR(local_cert_doc,
"local_cert() -> Certificate\n\n"
"Ours, as shown to the peer. TLSError, SEC_E_NO_CREDENTIALS, if none was.");

static PyObject *session_local_cert(PyObject *self, PyObject *unused)
{
    struct tw_module *state = tw_module_of(self);
    struct tw_cert *cert = NULL;
    struct tw_error err;
    enum tw_status st;

    (void)unused;
    tw_error_clear(&err);
    st = tw_session_local_cert(looked_at(self), &cert, &err);
    if (st != TW_DONE) {
        (void)tw_error_set(&err, TW_E_NOT_FOUND, SEC_E_NO_CREDENTIALS,
                           "no certificate was shown to the peer");
        return tw_error_raise(state, &err);
    }
    return tw_certificate_wrap(state, cert);
}

PyDoc_STRVAR(facts_doc,
"facts() -> dict\n\n"
"protocol (\"TLS 1.3\"), suite (IANA number), suite_name, cipher_name, bits,\n"
"group, alpn (bytes or None), resumed (bool, None: unknown), sni (str).\n"
"\"\" and 0 where something is not known.");

static PyObject *session_facts(PyObject *self, PyObject *unused)
{
    struct tw_facts facts;
    struct tw_error err;
    const char *protocol;

    (void)unused;
    memset(&facts, 0, sizeof(facts));
    tw_error_clear(&err);
    if (tw_session_facts(looked_at(self), &facts, &err) != TW_DONE) {
        (void)tw_error_set(&err, TW_E_STATE, 0,
                           "not known before the handshake");
        return tw_error_raise(tw_module_of(self), &err);
    }
    protocol = facts.protocol == TW_TLS1_3   ? "TLS 1.3"
               : facts.protocol == TW_TLS1_2 ? "TLS 1.2"
                                             : "";
    return Py_BuildValue(
        "{s:s,s:i,s:s,s:s,s:i,s:s,s:N,s:N,s:s}", "protocol", protocol,
        "suite", (int)facts.suite, "suite_name", facts.suite_name,
        "cipher_name", facts.cipher_name, "bits", facts.bits, "group",
        facts.group, "alpn",
        facts.alpn[0] != '\0' ? PyBytes_FromString(facts.alpn)
                              : Py_NewRef(Py_None),
        "resumed",
        facts.resumed < 0 ? Py_NewRef(Py_None)
                          : PyBool_FromLong(facts.resumed),
        "sni", tw_session_sni(core_of(self)));
}

PyDoc_STRVAR(binding_doc,
"binding(kind) -> bytes\n\n"
"A channel binding with its prefix: \"unique\" (tls-unique, RFC 5929, TLS\n"
"1.2 only) or \"endpoint\" (tls-server-end-point). TLSError without one.");

static PyObject *session_binding(PyObject *self, PyObject *arg)
{
    static const enum tw_binding kinds[] = {TW_BIND_UNIQUE,
                                            TW_BIND_ENDPOINT};
    uint8_t out[256];
    size_t len = sizeof(out);
    struct tw_error err;
    int kind = 0;

    if (tw_arg_word(arg, "kind", NAMES("unique", "endpoint"), &kind) < 0) {
        return NULL;
    }
    tw_error_clear(&err);
    if (tw_session_binding(looked_at(self), kinds[kind], NULL, NULL, 0, out,
                           &len, &err) != TW_DONE) {
        (void)tw_error_set(&err, TW_E_STATE, 0,
                           "there is no channel binding yet");
        return tw_error_raise(tw_module_of(self), &err);
    }
    return PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)len);
}

PyDoc_STRVAR(export_doc,
"export(label, length, context=None) -> bytes\n\n"
"Key material (RFC 8446, 7.5; RFC 5705): length bytes, 1 to 65535.");

static PyObject *session_export(PyObject *self, PyObject *const *args,
                                Py_ssize_t count)
{
    const char *label = NULL;
    Py_buffer view = {.obj = NULL};
    PyObject *bytes;
    struct tw_error err;
    enum tw_status st;
    int64_t length = 0;
    size_t len;

    if (tw_arg_count("export", count, 2, 3) < 0 ||
        tw_arg_text(args[0], "label", false, &label) < 0 ||
        tw_arg_int(args[1], "length", 1, EXPORT_MAX, &length) < 0) {
        return NULL;
    }
    if (count > 2 && args[2] != Py_None &&
        PyObject_GetBuffer(args[2], &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    len = (size_t)length;
    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);
    if (bytes != NULL) {
        /* An empty context is not the same as none (RFC 5705, 4). */
        const uint8_t *context =
            view.obj == NULL ? NULL
            : view.len != 0  ? view.buf
                             : (const uint8_t *)"";

        tw_error_clear(&err);
        st = tw_session_binding(looked_at(self), TW_BIND_EXPORTER, label,
                                context, (size_t)view.len,
                                (uint8_t *)PyBytes_AsString(bytes), &len,
                                &err);
        if (st != TW_DONE || len != (size_t)length) {
            Py_CLEAR(bytes);
            (void)tw_error_set(&err, TW_E_STATE, 0,
                               "there is no key material to export");
            (void)tw_error_raise(tw_module_of(self), &err);
        }
    }
    if (view.obj != NULL) {
        PyBuffer_Release(&view);
    }
    return bytes;
}

PyDoc_STRVAR(issuers_doc,
"issuers() -> list[bytes]\n\n"
"The CA names (DER) that the peer asks certificates from.");

static PyObject *session_issuers(PyObject *self, PyObject *unused)
{
    PyObject *result = NULL;
    struct tw_items items;
    struct tw_error err;
    enum tw_status st;

    (void)unused;
    tw_error_clear(&err);
    tw_items_init(&items);
    st = tw_session_issuers(looked_at(self), tw_items_sink, &items, &err);
    if (st < 0 && !items.failed) {
        (void)tw_error_set(&err, st, 0, "%s", tw_status_text(st));
        (void)tw_error_raise(tw_module_of(self), &err);
    } else {
        result = tw_items_list(&items);
    }
    tw_items_free(&items);
    return result;
}

PyDoc_STRVAR(ocsp_doc,
"ocsp() -> bytes | None\n\nThe stapled OCSP answer in DER.");

static PyObject *session_ocsp(PyObject *self, PyObject *unused)
{
    struct tw_items items;
    PyObject *result;

    (void)unused;
    tw_items_init(&items);
    tw_session_ocsp(looked_at(self), tw_items_sink, &items);
    result = tw_items_first(&items);
    tw_items_free(&items);
    return result;
}

PyDoc_STRVAR(features_doc,
"features() -> int\n\n"
"The ISC_RET_ or ASC_RET_ flags that the context has.");

static PyObject *session_features(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(tw_session_features(looked_at(self)));
}

static PyObject *session_credentials(PyObject *obj, void *unused)
{
    struct py_session *self = session_of(obj);
    PyObject *found;

    (void)unused;
    tw_lock_acquire(&self->guard);
    found = Py_NewRef(self->credentials != NULL ? self->credentials
                                                : Py_None);
    tw_lock_release(&self->guard);
    return found;
}

/* --- the type --- */

#define FAST(name)                                                         \
    {#name, (PyCFunction)(void (*)(void))session_##name, METH_FASTCALL,    \
     name##_doc}
#define NONE(name) {#name, session_##name, METH_NOARGS, name##_doc}
#define ONE(name) {#name, session_##name, METH_O, name##_doc}

static PyMethodDef session_methods[] = {
    ONE(attach),
    NONE(fileno),
    FAST(handshake),
    FAST(recv),
    FAST(recv_into),
    FAST(send),
    FAST(flush),
    FAST(shutdown_write),
    FAST(close),
    NONE(readable),
    ONE(feed),
    NONE(feed_eof),
    ONE(set_ragged_eof),
    ONE(set_spin),
    ONE(encrypt),
    FAST(encrypt_into),
    ONE(encrypted_size),
    ONE(decrypt),
    FAST(decrypt_into),
    NONE(take_output),
    NONE(take_input),
    NONE(shutdown),
    NONE(missing),
    FAST(verdict),
    ONE(set_credentials),
    ONE(set_certificate),
    NONE(hello),
    NONE(state),
    NONE(pending),
    NONE(output_pending),
    NONE(input_pending),
    NONE(read_ended),
    NONE(write_ended),
    NONE(error),
    NONE(remote_cert),
    NONE(local_cert),
    NONE(facts),
    ONE(binding),
    FAST(export),
    NONE(issuers),
    NONE(ocsp),
    NONE(features),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef session_getset[] = {
    {"credentials", session_credentials, NULL,
     "The Credentials in use, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(session_doc,
"Session(role, credentials, *, target=None, request_cert=False,\n"
"    ask_verdict=True, ask_credentials=False, ask_certificate=False,\n"
"    ragged_eof=False, alpn=())\n\n"
"One TLS channel. role: \"client\" or \"server\". credentials: a server may\n"
"leave them None with ask_credentials. target: the name a client asks for\n"
"(SNI). request_cert: a server asks for the client's certificate. ask_...:\n"
"handshake() pauses with WANT_VERDICT, WANT_CREDENTIALS,\n"
"WANT_CERTIFICATE. ragged_eof: TCP EOF without close_notify is an end, not\n"
"an error. alpn: names as bytes, the preferred first.");

static PyType_Slot session_slots[] = {
    {Py_tp_doc, (void *)session_doc},
    {Py_tp_new, (void *)session_tp_new},
    {Py_tp_dealloc, (void *)session_dealloc},
    {Py_tp_traverse, (void *)session_traverse},
    {Py_tp_clear, (void *)session_clear},
    {Py_tp_methods, session_methods},
    {Py_tp_getset, session_getset},
    {0, NULL},
};

static PyType_Spec session_spec = {
    .name = "twapi_tls._native.Session",
    .basicsize = sizeof(struct py_session),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = session_slots,
};

int tw_session_type(PyObject *module, struct tw_module *state)
{
    return tw_add_type(module, &session_spec, &state->session);
}
