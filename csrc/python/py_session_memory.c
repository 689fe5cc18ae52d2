/*
 * Session in memory: the peer's bytes in, ours out, no socket.
 *
 * feed and take_output move ciphertext for a handshake, or beside recv and
 * send. encrypt and decrypt do both halves in one call, with no more copies
 * than the engine needs: into an object of the caller's, a bytes object
 * that has the right size already, or, where little is moved, by way of the
 * stack.
 */
#include "python/py_session.h"

#include <string.h>

TW_METHOD_DOC(feed,
"feed(data)\n\n"
"Bytes from the peer. ValueError beyond 1 MiB that nobody read.");

PyObject *tw_py_session_feed(PyObject *self, PyObject *arg)
{
    struct tw_call c = {.op = TW_OP_FEED};
    PyObject *result;
    Py_buffer view;

    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    c.src = view.buf;
    c.len = (size_t)view.len;
    result = tw_call_run_plain(self, &c);
    PyBuffer_Release(&view);
    return result;
}

TW_METHOD_DOC(feed_eof,
"feed_eof()\n\nThe peer's stream has ended (TCP FIN).");

PyObject *tw_py_session_feed_eof(PyObject *self, PyObject *unused)
{
    struct tw_call c = {.op = TW_OP_FEED_EOF};

    (void)unused;
    return tw_call_run_plain(self, &c);
}

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
                             struct tw_call *c)
{
    struct tw_module *state = tw_module_of(self);
    struct tw_session *s = core_of(self);
    PyObject *token;

    if (st == TW_E_INTERRUPTED) {
        return NULL;
    }
    tw_lock_acquire(&session_of(self)->guard);
    if (wire_of(self) == NULL) {
        (void)tw_call_gather_output(s, c->more);
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
static PyObject *sealed(PyObject *self, struct tw_call *c)
{
    enum tw_status st = tw_call_run(self, c);

    return st < 0 ? fail_sealed(self, st, c) : join(c->dst, c->n, c->more);
}

/* Straight into a bytes object of the size that the records will have. */
static PyObject *sealed_exactly(PyObject *self, struct tw_call *c)
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
    st = tw_call_run(self, c);
    if (st >= 0 && c->n == c->room && tw_buffer_length(c->more) == 0) {
        return bytes;
    }
    whole = st < 0 ? fail_sealed(self, st, c)
                   : join(c->dst, c->n, c->more);
    Py_DECREF(bytes);
    return whole;
}

/* What is left of data, once `used` bytes of it are `n` bytes at dst. */
static PyObject *encrypt_rest(PyObject *self, const Py_buffer *data,
                              size_t used, uint8_t *dst, size_t room,
                              size_t n)
{
    struct tw_call c = {.op = TW_OP_SEAL};
    struct tw_buffer more;
    PyObject *bytes;

    tw_buffer_init(&more);
    c.more = &more;
    c.src = data->buf;
    c.len = (size_t)data->len;
    c.used = used;
    c.dst = dst;
    c.room = room;
    c.n = n;
    /* Without an exact size the records pass through the output, which is
       copied out once as well. */
    bytes = dst == NULL && tw_session_sealed_exactly(core_of(self))
                ? sealed_exactly(self, &c)
                : sealed(self, &c);
    tw_buffer_free(&more);
    return bytes;
}

/*
 * One record, which takes one call of the core most often: no call is
 * described for it, its size is not asked for, and of the locks only the
 * session's is taken, which is enough where nothing comes before or after.
 */
static PyObject *encrypt_small(PyObject *self, const Py_buffer *data)
{
    uint8_t room[TW_SMALL + 512];
    struct tw_error ignored; /* it stands, or comes again */
    enum tw_status st = TW_WANT_WRITE;
    size_t len = (size_t)data->len;
    size_t used = 0;
    size_t n = 0;

    if (wire_of(self) == NULL) {
        tw_error_clear(&ignored);
        st = tw_session_seal(core_of(self), data->buf, len, room,
                             sizeof(room), &used, &n, &ignored);
    }
    return st == TW_DONE && used == len && len != 0
               ? PyBytes_FromStringAndSize((const char *)room,
                                           (Py_ssize_t)n)
               : encrypt_rest(self, data, used, room, sizeof(room), n);
}

TW_METHOD_DOC(encrypt,
"encrypt(data) -> bytes\n\n"
"The records for data, with whatever output waited before them. TLSError if\n"
"the session is not open, or while a renegotiation waits for the peer; its\n"
"token is to be sent, its attribute `written` says how much of data is in.");

PyObject *tw_py_session_encrypt(PyObject *self, PyObject *arg)
{
    PyObject *bytes;
    Py_buffer view;

    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    bytes = (size_t)view.len <= TW_SMALL
                ? encrypt_small(self, &view)
                : encrypt_rest(self, &view, 0, NULL, 0, 0);
    PyBuffer_Release(&view);
    return bytes;
}

/* Decrypts c->src to c->dst; what came of it as bytes. */
static PyObject *decrypted(PyObject *self, struct tw_call *c)
{
    enum tw_status st = tw_call_run(self, c);

    return tw_call_check(self, st, c) < 0
               ? NULL
               : PyBytes_FromStringAndSize((const char *)c->dst,
                                           (Py_ssize_t)c->n);
}

/* Straight into a bytes object that has the size that all of it has if it
   is data without padding; c->n bytes at `before` are in already. */
static PyObject *decrypted_exactly(PyObject *self, struct tw_call *c,
                                   const uint8_t *before)
{
    enum tw_status st;
    PyObject *bytes =
        PyBytes_FromStringAndSize(NULL, (Py_ssize_t)c->room);

    if (bytes == NULL) {
        return NULL;
    }
    c->dst = (uint8_t *)PyBytes_AsString(bytes);
    if (c->n != 0) {
        memcpy(c->dst, before, c->n);
    }
    st = tw_call_run(self, c);
    if (tw_call_check(self, st, c) < 0) {
        Py_DECREF(bytes);
        return NULL;
    }
    return tw_bytes_cut(bytes, c->n);
}

/* What is left of data, once `used` bytes of it gave `n` bytes at dst. */
static PyObject *decrypt_rest(PyObject *self, const Py_buffer *data,
                              size_t used, uint8_t *dst, size_t room,
                              size_t n)
{
    struct tw_call c = {.op = TW_OP_OPEN};

    c.src = data->buf;
    c.len = (size_t)data->len;
    c.used = used;
    c.n = n;
    c.work = tw_session_content_size(core_of(self), c.src + used,
                                     c.len - used);
    if (n + c.work <= room) {
        c.dst = dst;
        c.room = room;
        return decrypted(self, &c);
    }
    c.room = n + c.work;
    return decrypted_exactly(self, &c, dst);
}

/* As encrypt_small: whole records with nothing before them. */
static PyObject *decrypt_small(PyObject *self, const Py_buffer *data)
{
    uint8_t room[TW_SMALL + 1]; /* tw_records_open is quicker for the 1 */
    struct tw_error ignored;    /* it stands */
    enum tw_status st = TW_WANT_READ;
    size_t len = (size_t)data->len;
    size_t used = 0;
    size_t n = 0;

    if (wire_of(self) == NULL) {
        tw_error_clear(&ignored);
        st = tw_session_open(core_of(self), data->buf, len, room,
                             sizeof(room), &used, &n, &ignored);
    }
    return st == TW_DONE && used == len && len != 0
               ? PyBytes_FromStringAndSize((const char *)room,
                                           (Py_ssize_t)n)
               : decrypt_rest(self, data, used, room, sizeof(room), n);
}

TW_METHOD_DOC(decrypt,
"decrypt(data) -> bytes\n\n"
"The plaintext of the peer's bytes, perhaps b\"\"; incomplete records are\n"
"kept. read_ended() and output_pending() tell what else came. Plaintext\n"
"before an error comes first; the next call raises the error.");

PyObject *tw_py_session_decrypt(PyObject *self, PyObject *arg)
{
    PyObject *result;
    Py_buffer view;

    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    result = (size_t)view.len <= TW_SMALL
                 ? decrypt_small(self, &view)
                 : decrypt_rest(self, &view, 0, NULL, 0, 0);
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
                        struct tw_call *c)
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

TW_METHOD_DOC(encrypt_into,
"encrypt_into(data, buffer) -> int\n\n"
"As encrypt() into a writable buffer: how many bytes. ValueError if it has\n"
"less room than encrypted_size(len(data)): nothing was done. The two must\n"
"not overlap.");

PyObject *tw_py_session_encrypt_into(PyObject *self, PyObject *const *args,
                                     Py_ssize_t count)
{
    struct tw_call c = {.op = TW_OP_SEAL_ALL};
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
    st = tw_call_run(self, &c);
    result = st < 0 ? tw_call_fail(self, st, &c)
                    : PyLong_FromSize_t(c.n);
done:
    release_memories(&memories);
    return result;
}

TW_METHOD_DOC(encrypted_size,
"encrypted_size(length) -> int\n\n"
"The room that encrypt_into() wants for so many bytes, and for what waits\n"
"to go before them. Before the handshake is over: for that alone.");

PyObject *tw_py_session_encrypted_size(PyObject *self, PyObject *arg)
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

TW_METHOD_DOC(decrypt_into,
"decrypt_into(data, buffer) -> int\n\n"
"As decrypt() into a writable buffer: how many bytes, perhaps 0. What does\n"
"not fit waits inside: decrypt_into(b\"\", buffer) gives more of it. The two\n"
"must not overlap.");

PyObject *tw_py_session_decrypt_into(PyObject *self, PyObject *const *args,
                                     Py_ssize_t count)
{
    struct tw_call c = {.op = TW_OP_OPEN};
    struct memories memories;
    PyObject *result;
    enum tw_status st;

    if (get_memories("decrypt_into", args, count, &memories, &c) < 0) {
        return NULL;
    }
    c.work = tw_session_content_size(core_of(self), c.src, c.len);
    st = tw_call_run(self, &c);
    result = tw_call_check(self, st, &c) < 0 ? NULL
                                             : PyLong_FromSize_t(c.n);
    release_memories(&memories);
    return result;
}

TW_METHOD_DOC(take_output,
"take_output() -> bytes\n\n"
"The bytes for the peer, removed. Send them whatever else happens.");

PyObject *tw_py_session_take_output(PyObject *self, PyObject *unused)
{
    struct tw_error err;

    (void)unused;
    if (wire_of(self) != NULL) {
        tw_error_clear(&err);
        (void)tw_error_set(&err, TW_E_STATE, 0,
                           "not while the session drives a socket");
        return tw_error_raise(tw_module_of(self), &err);
    }
    return tw_call_output_bytes(self);
}

TW_METHOD_DOC(take_input,
"take_input() -> bytes\n\n"
"Bytes from the peer that were not consumed, removed. With a socket only\n"
"after the end of the peer's data.");

PyObject *tw_py_session_take_input(PyObject *self, PyObject *unused)
{
    struct tw_call c = {.op = TW_OP_TAKE_INPUT};
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
    result = tw_call_run_plain(self, &c);
    if (result != NULL) {
        Py_DECREF(result);
        result = PyBytes_FromStringAndSize((const char *)c.dst,
                                           (Py_ssize_t)c.n);
    }
    PyMem_Free(c.dst);
    return result;
}

TW_METHOD_DOC(shutdown,
"shutdown()\n\n"
"Puts close_notify into the output, once. With a socket use\n"
"shutdown_write().");

PyObject *tw_py_session_shutdown(PyObject *self, PyObject *unused)
{
    struct tw_call c = {.op = TW_OP_SHUTDOWN};

    (void)unused;
    return tw_call_run_plain(self, &c);
}

TW_METHOD_DOC(missing,
"missing() -> int\n\n"
"Bytes that the next step lacks at least; 0: it can go on.");

PyObject *tw_py_session_missing(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSize_t(tw_session_missing(core_of(self)));
}
