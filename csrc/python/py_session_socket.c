/*
 * Session as a channel uses it: handshake, data both ways, endings.
 *
 * attach gives it a socket; then these calls wait for it, up to their
 * timeout. Without one they do what the bytes in memory allow and say what
 * is wanted; feed and take_output (py_session_memory.c) move those.
 */
#include "python/py_session.h"
#include "python/py_session_data.h"

#include <limits.h>

/* recv(n): up to this on the stack, beyond that a block of at most the
   other: 128 KiB and more would be mapped and unmapped at every call. */
#define STACK_ROOM ((size_t)16384)
#define BLOCK_ROOM ((size_t)120 * 1024)

TW_METHOD_DOC(attach,
"attach(fd)\n\n"
"Takes over a connected stream socket (its native descriptor): from now\n"
"on the session drives and closes it. OSError for a descriptor that is no\n"
"such socket, ValueError if there is one already; then fd stays with the\n"
"caller.");

PyObject *tw_py_session_attach(PyObject *obj, PyObject *arg)
{
    struct tw_py_session *self = session_of(obj);
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
    taken = wire_of(obj) != NULL;
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

TW_METHOD_DOC(fileno,
"fileno() -> int\n\n"
"The socket's descriptor; -1 without one, or once it is closed.");

PyObject *tw_py_session_fileno(PyObject *self, PyObject *unused)
{
    struct tw_wire *wire = wire_of(self);
    tw_socket fd = wire != NULL ? tw_wire_fd(wire) : TW_NO_SOCKET;

    (void)unused;
    return fd == TW_NO_SOCKET ? PyLong_FromLong(-1)
                              : PyLong_FromLongLong((long long)fd);
}

/* The optional timeout, the last of max arguments: none is for ever. */
static int parse_timeout(const char *method, PyObject *const *args,
                         Py_ssize_t count, Py_ssize_t max,
                         int64_t *deadline)
{
    *deadline = TW_FOREVER;
    if (tw_arg_count(method, count, max - 1, max) < 0) {
        return -1;
    }
    return tw_arg_timeout(count == max ? args[max - 1] : NULL, deadline);
}

TW_METHOD_DOC(handshake,
"handshake(timeout=None) -> int\n\n"
"Goes on with the handshake: DONE once it is open; WANT_VERDICT,\n"
"WANT_CREDENTIALS, WANT_CERTIFICATE: answer and call again. WANT_READ and\n"
"WANT_WRITE only with timeout 0 or without a socket. timeout: seconds,\n"
"None for ever. TLSError if it failed; its token holds the output that is\n"
"to be sent if there is no socket.");

PyObject *tw_py_session_handshake(PyObject *self, PyObject *const *args,
                                  Py_ssize_t count)
{
    struct tw_call c = {.op = TW_OP_HANDSHAKE};
    enum tw_status st;

    if (parse_timeout("handshake", args, count, 1, &c.deadline) < 0) {
        return NULL;
    }
    st = tw_call_run(self, &c);
    if (st < 0) {
        return tw_call_fail(self, st, &c);
    }
    return PyLong_FromLong(st);
}

static enum tw_outcome run_recv(PyObject *self, struct tw_call *c)
{
    enum tw_status st = tw_call_run(self, c);

    if (c->n != 0) {
        tw_count_set(&session_of(self)->lately, (long)c->n);
        return TW_GOT_BYTES;
    }
    if (st == TW_DONE || st == TW_END) {
        return TW_GOT_END;
    }
    return tw_call_check(self, st, c) < 0 ? TW_GOT_ERROR : TW_GOT_NOTHING;
}

/* The read into c->dst, as a bytes object if there are any. */
static enum tw_outcome recv_bytes(PyObject *self, struct tw_call *c,
                                  PyObject **bytes)
{
    enum tw_outcome outcome = run_recv(self, c);

    if (outcome == TW_GOT_BYTES) {
        *bytes = PyBytes_FromStringAndSize((const char *)c->dst,
                                           (Py_ssize_t)c->n);
        if (*bytes == NULL) {
            return TW_GOT_ERROR;
        }
    }
    return outcome;
}

/* What a read of `room` bytes may come to, by what the last one did. */
static size_t likely_work(PyObject *self, size_t room)
{
    size_t lately = (size_t)tw_count_glance(&session_of(self)->lately);

    return room > TW_SMALL && lately != 0 && lately <= TW_SMALL ? lately
                                                                : room;
}

/* Apart, so that its frame is there for small reads only. */
static enum tw_outcome recv_small(PyObject *self, struct tw_call *c,
                                  PyObject **bytes)
{
    uint8_t room[STACK_ROOM];

    c->dst = room;
    return recv_bytes(self, c, bytes);
}

enum tw_outcome tw_data_recv(PyObject *self, size_t n, int64_t deadline,
                             PyObject **bytes)
{
    struct tw_call c = {.op = TW_OP_RECV, .deadline = deadline};
    enum tw_outcome outcome;

    c.len = n < BLOCK_ROOM ? n : BLOCK_ROOM;
    c.work = likely_work(self, c.len);
    if (c.work <= TW_SMALL && c.len > STACK_ROOM) {
        c.len = STACK_ROOM; /* most likely enough */
    }
    if (c.len <= STACK_ROOM) {
        return recv_small(self, &c, bytes);
    }
    c.dst = PyMem_Malloc(c.len);
    if (c.dst == NULL) {
        (void)PyErr_NoMemory();
        return TW_GOT_ERROR;
    }
    outcome = recv_bytes(self, &c, bytes);
    PyMem_Free(c.dst);
    return outcome;
}

enum tw_outcome tw_data_recv_into(PyObject *self, uint8_t *dst, size_t len,
                                  int64_t deadline, size_t *n)
{
    struct tw_call c = {
        .op = TW_OP_RECV, .dst = dst, .len = len, .deadline = deadline};
    enum tw_outcome outcome;

    c.work = likely_work(self, len);
    outcome = run_recv(self, &c);
    *n = c.n;
    return outcome;
}

Py_ssize_t tw_data_send(PyObject *self, const uint8_t *src, size_t len,
                        int64_t deadline)
{
    struct tw_call c = {
        .op = TW_OP_SEND, .src = src, .len = len, .deadline = deadline};
    enum tw_status st = tw_call_run(self, &c);

    if (tw_call_check(self, st, &c) == 0) {
        return (Py_ssize_t)c.n;
    }
    tw_error_annotate("written", PyLong_FromSize_t(c.n));
    return -1;
}

TW_METHOD_DOC(recv,
"recv(n, timeout=None) -> bytes | None\n\n"
"1 to n bytes, as soon as there are any; b\"\" at the end (close_notify);\n"
"None: would block (timeout 0, or no socket). TLSTruncatedError if the\n"
"stream ended without close_notify, TLSTimeoutError after timeout seconds.");

PyObject *tw_py_session_recv(PyObject *self, PyObject *const *args,
                             Py_ssize_t count)
{
    PyObject *bytes = NULL;
    int64_t deadline;
    int64_t n = 0;

    if (parse_timeout("recv", args, count, 2, &deadline) < 0 ||
        tw_arg_int(args[0], "n", 0, INT64_MAX, &n) < 0) {
        return NULL;
    }
    if (n > (int64_t)BLOCK_ROOM) {
        n = (int64_t)BLOCK_ROOM; /* size_t may be smaller */
    }
    switch (tw_data_recv(self, (size_t)n, deadline, &bytes)) {
    case TW_GOT_BYTES:
        return bytes;
    case TW_GOT_END:
        return PyBytes_FromStringAndSize("", 0);
    case TW_GOT_NOTHING:
        return Py_NewRef(Py_None);
    default:
        return NULL;
    }
}

TW_METHOD_DOC(recv_into,
"recv_into(buffer, timeout=None) -> int\n\n"
"Reads into a writable buffer; how many bytes, 0 at the end, -1: would\n"
"block (timeout 0, or no socket). Errors as recv().");

PyObject *tw_py_session_recv_into(PyObject *self, PyObject *const *args,
                                  Py_ssize_t count)
{
    enum tw_outcome outcome;
    int64_t deadline;
    Py_buffer view;
    size_t n = 0;

    if (parse_timeout("recv_into", args, count, 2, &deadline) < 0 ||
        PyObject_GetBuffer(args[0], &view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    outcome = tw_data_recv_into(self, view.buf, (size_t)view.len, deadline,
                                &n);
    PyBuffer_Release(&view);
    switch (outcome) {
    case TW_GOT_BYTES:
        return PyLong_FromSize_t(n);
    case TW_GOT_END:
        return PyLong_FromLong(0);
    case TW_GOT_NOTHING:
        return PyLong_FromLong(-1);
    default:
        return NULL;
    }
}

TW_METHOD_DOC(send,
"send(data, timeout=None) -> int\n\n"
"How many bytes were taken: all of them, handed to the system; with\n"
"timeout 0 (or no socket) as many as fit, perhaps 0: flush() sends what is\n"
"left of them. Bytes taken are never to be given again: on a\n"
"TLSTimeoutError or any other exception, its attribute `written` says how\n"
"many were.");

PyObject *tw_py_session_send(PyObject *self, PyObject *const *args,
                             Py_ssize_t count)
{
    int64_t deadline;
    Py_ssize_t taken;
    Py_buffer view;

    if (parse_timeout("send", args, count, 2, &deadline) < 0 ||
        PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    taken = tw_data_send(self, view.buf, (size_t)view.len, deadline);
    PyBuffer_Release(&view);
    return taken < 0 ? NULL : PyLong_FromSsize_t(taken);
}

/* True: done; False: output still waits. */
static PyObject *run_output(PyObject *self, struct tw_call *c)
{
    enum tw_status st = tw_call_run(self, c);
    bool waits = st == TW_WANT_WRITE;

    if (st < 0) {
        return tw_call_fail(self, st, c);
    }
    if (wire_of(self) == NULL) {
        waits = tw_session_output(core_of(self), NULL) != 0;
    }
    return PyBool_FromLong(!waits);
}

TW_METHOD_DOC(flush,
"flush(timeout=None) -> bool\n\n"
"Hands pending output to the system. True when none waits any more.");

PyObject *tw_py_session_flush(PyObject *self, PyObject *const *args,
                              Py_ssize_t count)
{
    struct tw_call c = {.op = TW_OP_FLUSH};

    if (parse_timeout("flush", args, count, 1, &c.deadline) < 0) {
        return NULL;
    }
    return run_output(self, &c);
}

TW_METHOD_DOC(shutdown_write,
"shutdown_write(timeout=None) -> bool\n\n"
"Sends close_notify and FIN; reading goes on. Idempotent. False: output\n"
"still waits (timeout 0, or no socket): call again.");

PyObject *tw_py_session_shutdown_write(PyObject *self,
                                       PyObject *const *args,
                                       Py_ssize_t count)
{
    struct tw_call c = {.op = TW_OP_SHUTDOWN_WRITE};

    if (parse_timeout("shutdown_write", args, count, 1, &c.deadline) < 0) {
        return NULL;
    }
    return run_output(self, &c);
}

TW_METHOD_DOC(close,
"close(timeout=0.0, graceful=True)\n\n"
"Closes for good. graceful: with a close_notify, as far as timeout seconds\n"
"allow. Calls of other threads end with TLSClosedError. Idempotent, never\n"
"fails.");

PyObject *tw_py_session_close(PyObject *self, PyObject *const *args,
                              Py_ssize_t count)
{
    struct tw_call c = {.op = TW_OP_CLOSE, .graceful = true};

    c.deadline = TW_NO_WAIT;
    if (tw_arg_count("close", count, 0, 2) < 0 ||
        tw_arg_timeout(count > 0 ? args[0] : NULL, &c.deadline) < 0 ||
        tw_arg_bool(count > 1 ? args[1] : NULL, &c.graceful) < 0) {
        return NULL;
    }
    return tw_call_run_plain(self, &c);
}

TW_METHOD_DOC(readable,
"readable() -> bool\n\n"
"Whether recv() would say something without waiting: bytes, the end or an\n"
"error. Looks in the socket, and opens a record to know whether it has data.");

bool tw_data_readable(PyObject *session)
{
    struct tw_wire *wire = wire_of(session);

    return wire != NULL ? tw_wire_readable(wire)
                        : tw_session_look(core_of(session));
}

PyObject *tw_py_session_readable(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(tw_data_readable(self));
}

TW_METHOD_DOC(set_ragged_eof,
"set_ragged_eof(flag)\n\n"
"Whether TCP EOF without close_notify is an end and no error.");

PyObject *tw_py_session_set_ragged_eof(PyObject *self, PyObject *arg)
{
    bool ragged;

    if (tw_arg_bool(arg, &ragged) < 0) {
        return NULL;
    }
    tw_session_set_ragged_eof(core_of(self), ragged);
    Py_RETURN_NONE;
}

TW_METHOD_DOC(set_spin,
"set_spin(flag)\n\n"
"Whether a read that has to wait for the peer spins for a while, at most 50\n"
"us, less where that was in vain, before it sleeps. With a socket.");

PyObject *tw_py_session_set_spin(PyObject *self, PyObject *arg)
{
    struct tw_wire *wire = wire_of(self);
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
