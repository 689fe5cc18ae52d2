/*
 * One call of the floors below, for Session.
 *
 * What it does is chosen by its op and by whether the session has a socket;
 * up to the line that says so, nothing here knows Python. The GIL is kept
 * for what neither waits nor takes longer than letting go of it would: at
 * most TW_SMALL bytes with a timeout of 0; a read of more room counts as
 * small where the last one was.
 *
 * Without a socket the session's lock is not enough: its output is looked
 * at through a pointer that the next call may move, and what takes several
 * calls of the core must not be parted. So calls on a session without a
 * socket take `guard`; with one, the wire has locks of its own.
 */
#include "python/py_session.h"

#include <string.h>

/* --- one call: no Python from here ... --- */

/* Answers, the same with and without a socket. */
static enum tw_status answer(struct tw_session *s, struct tw_call *c)
{
    switch (c->op) {
    case TW_OP_VERDICT:
        return tw_session_verdict(s, c->code, c->detail, &c->err);
    case TW_OP_SET_CREDENTIALS:
        return tw_session_set_credentials(s, c->credentials, &c->err);
    case TW_OP_SET_CERTIFICATE:
        return tw_session_set_certificate(s, c->credentials, &c->err);
    default:
        return tw_error_set(&c->err, TW_E_STATE, 0,
                            "not while the session drives a socket");
    }
}

static enum tw_status perform_wire(struct tw_wire *w, struct tw_call *c)
{
    struct tw_session *s = tw_wire_session(w);
    enum tw_status st;
    size_t n = 0;

    switch (c->op) {
    case TW_OP_HANDSHAKE:
        return tw_wire_handshake(w, c->deadline, &c->err);
    case TW_OP_RECV:
        st = tw_wire_recv(w, c->dst, c->len, &n, c->deadline, &c->err);
        c->n = n;
        return st;
    case TW_OP_SEND:
        st = tw_wire_send(w, c->src + c->n, c->len - c->n, &n, c->deadline,
                          &c->err);
        c->n += n;
        return st;
    case TW_OP_FLUSH:
        return tw_wire_flush(w, c->deadline, &c->err);
    case TW_OP_SHUTDOWN_WRITE:
        return tw_wire_shutdown_write(w, c->deadline, &c->err);
    case TW_OP_CLOSE:
        tw_wire_close(w, c->deadline, c->graceful);
        return TW_DONE;
    case TW_OP_TAKE_INPUT:
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
    if (c->op == TW_OP_VERDICT) {
        (void)tw_wire_flush(w, TW_NO_WAIT, NULL); /* the alert */
    }
    return st;
}

/* Seals what fits. A bound that is reached is no error: the caller takes
   the output and comes again. */
static enum tw_status seal(struct tw_session *s, struct tw_call *c)
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

static enum tw_status cannot_encrypt(struct tw_call *c)
{
    return tw_error_set(&c->err, TW_E_STATE, 0,
                        "the context cannot encrypt now: a renegotiation "
                        "waits for the peer");
}

/* What waits and then all of c->src as records, into c->dst. Should that be
   too small after all (somebody else left output in between), the rest
   becomes output. */
static enum tw_status seal_all(struct tw_session *s, struct tw_call *c)
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
static enum tw_status open_rest(struct tw_session *s, struct tw_call *c)
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

static enum tw_status open_all(struct tw_session *s, struct tw_call *c)
{
    enum tw_status st;
    size_t used;
    size_t n;

    st = tw_session_open(s, c->src + c->used, c->len - c->used,
                         c->dst + c->n, c->room - c->n, &used, &n, &c->err);
    c->used += used;
    c->n += n;
    if (st != TW_DONE || (c->used == c->len && used != 0)) {
        return st;
    }
    return open_rest(s, c);
}

bool tw_call_gather_output(struct tw_session *s, struct tw_buffer *to)
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
 * Seals what is left of c->src: straight into c->dst as far as that goes,
 * the rest by way of the output, with what waited there, into c->more. All
 * of it within one call, so that no renegotiation can begin in between,
 * which would leave half of it unsent and the other half sealed.
 */
static enum tw_status seal_gathered(struct tw_session *s, struct tw_call *c)
{
    enum tw_status st;
    size_t taken;
    size_t made;

    st = tw_session_seal(s, c->src + c->used, c->len - c->used,
                         c->dst + c->n, c->room - c->n, &taken, &made,
                         &c->err);
    c->used += taken;
    c->n += made;
    while (st >= 0 && c->used < c->len) {
        st = tw_session_write(s, c->src + c->used, c->len - c->used, &taken,
                              &c->err);
        c->used += taken;
        if (!tw_call_gather_output(s, c->more)) {
            return tw_error_set(&c->err, TW_E_NOMEM, 0, NULL);
        }
        if (st == TW_WANT_READ) {
            return cannot_encrypt(c);
        }
    }
    return st;
}

static enum tw_status perform_core(struct tw_session *s, struct tw_call *c)
{
    switch (c->op) {
    case TW_OP_SEAL:
        return seal_gathered(s, c);
    case TW_OP_SEAL_ALL:
        return seal_all(s, c);
    case TW_OP_OPEN:
        return open_all(s, c);
    case TW_OP_HANDSHAKE:
        return tw_session_handshake(s, &c->err);
    case TW_OP_RECV:
        return tw_session_read(s, c->dst, c->len, &c->n, &c->err);
    case TW_OP_SEND:
        return seal(s, c);
    case TW_OP_SHUTDOWN:
    case TW_OP_SHUTDOWN_WRITE:
        return tw_session_shutdown(s, &c->err);
    case TW_OP_FLUSH:
        return tw_session_output(s, NULL) == 0 ? TW_DONE : TW_WANT_WRITE;
    case TW_OP_CLOSE:
        tw_session_abort(s);
        return TW_DONE;
    case TW_OP_FEED:
        return tw_error_set(&c->err,
                            tw_session_input(s, c->src, c->len), 0,
                            "too much input at once: read what there is");
    case TW_OP_FEED_EOF:
        tw_session_input_eof(s);
        return TW_DONE;
    case TW_OP_TAKE_OUTPUT:
        c->n = copy_output(s, c->dst, c->len);
        return TW_DONE;
    case TW_OP_TAKE_INPUT:
        c->n = tw_session_input_take(s, c->dst, c->len);
        return TW_DONE;
    default:
        return answer(s, c);
    }
}

static enum tw_status perform(PyObject *self, struct tw_call *c)
{
    struct tw_wire *wire = wire_of(self);
    enum tw_status st;

    if (wire != NULL) {
        return perform_wire(wire, c);
    }
    tw_lock_acquire(&session_of(self)->guard);
    st = perform_core(core_of(self), c);
    tw_lock_release(&session_of(self)->guard);
    return st;
}

/* --- ... to here --- */

/* Quick enough to keep the GIL? */
static bool is_small(const struct tw_call *c)
{
    switch (c->op) {
    case TW_OP_RECV:
    case TW_OP_SEND:
        return c->deadline == TW_NO_WAIT
               && (c->work != 0 ? c->work : c->len) <= TW_SMALL;
    case TW_OP_FEED:
    case TW_OP_TAKE_OUTPUT:
    case TW_OP_TAKE_INPUT:
    case TW_OP_SEAL:
    case TW_OP_SEAL_ALL:
        return c->len <= TW_SMALL;
    case TW_OP_OPEN:
        return c->work <= TW_SMALL;
    case TW_OP_FEED_EOF:
        return true;
    default:
        return false;
    }
}

enum tw_status tw_call_run(PyObject *self, struct tw_call *c)
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

PyObject *tw_call_output_bytes(PyObject *self)
{
    struct tw_call c = {.op = TW_OP_TAKE_OUTPUT};
    PyObject *bytes;

    tw_lock_acquire(&session_of(self)->guard);
    c.len = wire_of(self) == NULL ? tw_session_output(core_of(self), NULL)
                                  : 0;
    tw_lock_release(&session_of(self)->guard);
    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)c.len);
    if (bytes == NULL || c.len == 0) {
        return bytes;
    }
    c.dst = (uint8_t *)PyBytes_AsString(bytes);
    (void)tw_call_run(self, &c);
    /* somebody else may have taken some in between */
    return tw_bytes_cut(bytes, c.n);
}

PyObject *tw_call_fail(PyObject *self, enum tw_status st, struct tw_call *c)
{
    PyObject *token = NULL;

    if (st == TW_E_INTERRUPTED) {
        return NULL;
    }
    if (wire_of(self) == NULL) {
        token = tw_call_output_bytes(self);
        if (token == NULL) {
            return NULL;
        }
    }
    (void)tw_error_raise_token(tw_module_of(self), &c->err, token);
    Py_XDECREF(token);
    return NULL;
}

int tw_call_check(PyObject *self, enum tw_status st, struct tw_call *c)
{
    if (st < 0) {
        (void)tw_call_fail(self, st, c);
        return -1;
    }
    if (c->n == 0 &&
        (st == TW_WANT_VERDICT || st == TW_WANT_CREDENTIALS ||
         st == TW_WANT_CERTIFICATE)) {
        (void)tw_error_set(&c->err, TW_E_STATE, 0, "%s: call handshake()",
                           tw_status_text(st));
        (void)tw_error_raise(tw_module_of(self), &c->err);
        return -1;
    }
    return 0;
}

PyObject *tw_call_run_plain(PyObject *self, struct tw_call *c)
{
    enum tw_status st = tw_call_run(self, c);

    return st < 0 ? tw_call_fail(self, st, c) : Py_NewRef(Py_None);
}
