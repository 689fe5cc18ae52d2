/*
 * DirectStream: the small call without Python.
 *
 * The base class of the channels' Python class `Streams`. Its recv,
 * recv_into, send and sendall do what nearly every call is, bytes straight
 * from or to a Session on a socket, in one C function; a Python frame, its
 * attributes and its exception would cost as much again as the record.
 *
 * What a channel's calls mean is said in one place, streams.py. This room
 * knows one case only, and knows it by sight: the channel is usable, what
 * it runs over is a Session (`direct`), no bytes wait above that one (read
 * ahead, decoded, or queued), and no end or error stands. Anything else, an
 * argument that is not the ordinary one among it, goes to the Python method
 * of the same name with `_slow_` before it, untouched. What the ordinary
 * case met is handed up as well: an error of a read to `_read_failed`, what
 * a send did not take to `_send_rest`.
 *
 * Events look at the same case (_direct_readable, _direct_at_rest): where
 * it holds, the session alone knows what is to be read and whether anything
 * is to be done, and a pass of events.py asks nobody else.
 *
 * So that a look is cheap and cannot be out of date, the state that decides
 * lives here, and Python reads and writes it as attributes: flags are bits
 * of one atomic word; objects sit in slots, and those whose presence
 * decides (`_io`, `_reader`, ...) set their bit as they are set. There is
 * no second copy to keep in step.
 *
 * Without a GIL other threads set attributes meanwhile. Slots are changed
 * and lent under `lock`; those that calls look into without it (the queue,
 * the bytes read ahead, the writers' turn) are set once. So is `session`:
 * the first Session that `_io` was stays referenced until the object dies,
 * so whoever saw `direct` may use it, also after `_io` was taken away.
 *
 * Sending takes the writers' turn, as all senders of streams.py do: what
 * was written before goes before, and a call interrupted half-way goes on
 * before another begins. Receiving takes none: the session has its own.
 */
#include "core/atomic.h"
#include "python/convert.h"
#include "python/module.h"
#include "python/py_error.h"
#include "python/py_session_data.h"
#include "python/py_turn.h"

/* --- state --- */

/* Flags that Python sets: */
#define USABLE 1L         /* open, and no error stands */
#define CLOSED 2L         /* close() was called, or starttls took it */
#define ENDED 4L          /* reading met the end of the stream */
#define BLOCKED 8L        /* the last read found too little */
#define WRITE_ENDED 16L   /* no more is to be written */
/* Flags that a slot sets: */
#define DIRECT 32L        /* _io is `session` */
#define READER 64L        /* decoded text is ahead of recv */
#define OUTPUT_ERROR 128L /* for the next writer to raise */
#define NO_WAIT 256L      /* the timeout is 0 */
#define TIMED 512L        /* it is more than that */

enum slot {
    IO,
    TIMEOUT,
    TEXT_READER,
    FAILED_OUTPUT,
    AHEAD, /* a bytearray, set once: bytes read and not used */
    QUEUE, /* a bytearray, set once: bytes written and not sent */
    WRITERS, /* a Turn, set once: who sends */
    SLOTS
};

struct py_direct {
    PyObject_HEAD
    struct tw_module *state;   /* its type holds it */
    struct tw_count flags;     /* see above */
    struct tw_pointer session; /* a Session: owned; set once */
    struct tw_lock lock;       /* around changes of slots */
    PyObject *slots[SLOTS];    /* owned; NULL: not set */
};

static struct py_direct *direct_of(PyObject *self)
{
    return (struct py_direct *)self;
}

/* Sets what is `on` among the bits of `mask`, clears the others. */
static void set_flags(struct py_direct *self, long mask, long on)
{
    long seen;

    do {
        seen = tw_count_get(&self->flags);
        if ((seen & mask) == on) {
            return;
        }
    } while (!tw_count_swap(&self->flags, seen, (seen & ~mask) | on));
}

/* A new reference, or NULL. */
static PyObject *slot_get(struct py_direct *self, enum slot slot)
{
    PyObject *value;

    tw_lock_acquire(&self->lock);
    value = self->slots[slot];
    Py_XINCREF(value);
    tw_lock_release(&self->lock);
    return value;
}

/* --- the ordinary case --- */

static bool reads_directly(struct py_direct *self)
{
    long flags = tw_count_get(&self->flags);

    return (flags & (USABLE | DIRECT | ENDED | READER)) == (USABLE | DIRECT)
           && self->slots[AHEAD] != NULL
           && PyByteArray_Size(self->slots[AHEAD]) == 0;
}

static bool sends_directly(struct py_direct *self)
{
    long flags = tw_count_get(&self->flags);

    return (flags & (USABLE | DIRECT | CLOSED | WRITE_ENDED | OUTPUT_ERROR))
               == (USABLE | DIRECT)
           && self->slots[QUEUE] != NULL
           && PyByteArray_Size(self->slots[QUEUE]) == 0
           && self->slots[WRITERS] != NULL;
}

/* 0 or -1. */
static int get_deadline(struct py_direct *self, int64_t *deadline)
{
    long flags = tw_count_get(&self->flags);
    PyObject *timeout;
    int failed;

    *deadline = (flags & NO_WAIT) != 0 ? TW_NO_WAIT : TW_FOREVER;
    if ((flags & TIMED) == 0) {
        return 0;
    }
    timeout = slot_get(self, TIMEOUT);
    failed = tw_arg_timeout(timeout, deadline);
    Py_XDECREF(timeout);
    return failed;
}

/* Takes what is being raised off the thread, as an exception. */
static PyObject *take_exception(void)
{
    PyObject *type, *exc, *trace;

    PyErr_Fetch(&type, &exc, &trace);
    PyErr_NormalizeException(&type, &exc, &trace);
    if (trace != NULL) {
        (void)PyException_SetTraceback(exc, trace);
    }
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return exc;
}

/* The buffer of what is no ordinary argument: true if Python is to say so,
   which it does better. What else was raised (a signal's handler may have
   run in __buffer__) stays. */
static bool is_no_buffer(void)
{
    if (PyErr_ExceptionMatches(PyExc_TypeError)
        || PyErr_ExceptionMatches(PyExc_BufferError)) {
        PyErr_Clear();
        return true;
    }
    return false;
}

/* Gives it back. */
static void put_exception(PyObject *exc)
{
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(exc)), exc, NULL);
}

/*
 * A read met an error, which is set: 0 if the channel takes it for the end
 * of the stream; else -1, with what it makes of it. The error is the one
 * that is being handled meanwhile, as in an except clause.
 */
static int read_failed(PyObject *obj)
{
    PyObject *exc = take_exception();
    PyObject *before;
    PyObject *answer;

    if (!PyErr_GivenExceptionMatches(exc, PyExc_OSError)) {
        put_exception(exc);
        return -1;
    }
    before = PyErr_GetHandledException();
    PyErr_SetHandledException(exc);
    answer = PyObject_CallMethodObjArgs(
        obj, direct_of(obj)->state->words[TW_READ_FAILED], exc, NULL);
    PyErr_SetHandledException(before);
    Py_XDECREF(before);
    Py_DECREF(exc);
    Py_XDECREF(answer);
    return answer != NULL ? 0 : -1;
}

/* Raises that nothing can be done now; always NULL. */
static PyObject *raise_blocked(struct py_direct *self)
{
    PyObject *exc = tw_error_blocked(self->state, 0);

    if (exc != NULL) {
        put_exception(exc);
    }
    return NULL;
}

/* What a read came to, in the channel's flags; TW_GOT_NOTHING and errors
   raise. */
static enum tw_outcome note_read(PyObject *obj, enum tw_outcome outcome)
{
    struct py_direct *self = direct_of(obj);

    switch (outcome) {
    case TW_GOT_BYTES:
        set_flags(self, BLOCKED, 0);
        return outcome;
    case TW_GOT_END:
        set_flags(self, BLOCKED | ENDED, ENDED);
        return outcome;
    case TW_GOT_NOTHING:
        set_flags(self, BLOCKED, BLOCKED);
        (void)raise_blocked(self);
        return TW_GOT_ERROR;
    default:
        if (read_failed(obj) < 0) {
            return TW_GOT_ERROR;
        }
        set_flags(self, BLOCKED, 0);
        return TW_GOT_END;
    }
}

static PyObject *recv_directly(PyObject *obj, size_t n)
{
    struct py_direct *self = direct_of(obj);
    PyObject *bytes = NULL;
    enum tw_outcome outcome;
    int64_t deadline;

    if (get_deadline(self, &deadline) < 0) {
        return NULL;
    }
    outcome = tw_data_recv(tw_pointer_get(&self->session), n, deadline,
                           &bytes);
    switch (note_read(obj, outcome)) {
    case TW_GOT_BYTES:
        return bytes;
    case TW_GOT_END:
        return PyBytes_FromStringAndSize("", 0);
    default:
        return NULL;
    }
}

static PyObject *recv_into_directly(PyObject *obj, uint8_t *dst, size_t len)
{
    struct py_direct *self = direct_of(obj);
    enum tw_outcome outcome;
    int64_t deadline;
    size_t n = 0;

    if (get_deadline(self, &deadline) < 0) {
        return NULL;
    }
    outcome = tw_data_recv_into(tw_pointer_get(&self->session), dst, len,
                                deadline, &n);
    switch (note_read(obj, outcome)) {
    case TW_GOT_BYTES:
        return PyLong_FromSize_t(n);
    case TW_GOT_END:
        return PyLong_FromLong(0);
    default:
        return NULL;
    }
}

/* What to do with bytes that a send did not take. */
enum rest { TELL_REST, SEND_REST };

/* The turn is this thread's. */
static PyObject *send_in_turn(PyObject *obj, PyObject *data,
                              const Py_buffer *view, enum rest rest)
{
    struct py_direct *self = direct_of(obj);
    int64_t deadline;
    PyObject *result;
    PyObject *taken;
    Py_ssize_t n;

    if (get_deadline(self, &deadline) < 0) {
        return NULL;
    }
    n = tw_data_send(tw_pointer_get(&self->session), view->buf,
                     (size_t)view->len, deadline);
    if (n < 0) {
        return NULL;
    }
    if (rest == TELL_REST) {
        return n != 0 ? PyLong_FromSsize_t(n) : raise_blocked(self);
    }
    if (n == view->len) {
        return Py_NewRef(Py_None);
    }
    taken = PyLong_FromSsize_t(n);
    if (taken == NULL) {
        return NULL;
    }
    result = PyObject_CallMethodObjArgs(
        obj, self->state->words[TW_SEND_REST], data, taken, NULL);
    Py_DECREF(taken);
    return result;
}

/* False: not the ordinary case after all, and nothing was done. *result is
   what the call gives, NULL with an exception. */
static bool send_directly(PyObject *obj, PyObject *data, enum rest rest,
                          PyObject **result)
{
    struct py_direct *self = direct_of(obj);
    bool done = false;
    Py_buffer view;

    *result = NULL;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return !is_no_buffer();
    }
    if (view.len != 0) {
        done = tw_turn_take(self->slots[WRITERS], TW_FOREVER) < 0;
        if (!done) {
            done = sends_directly(self); /* still? */
            if (done) {
                *result = send_in_turn(obj, data, &view, rest);
            }
            tw_turn_give(self->slots[WRITERS]);
        }
    }
    PyBuffer_Release(&view);
    return done;
}

/* --- the calls --- */

/* Everything that is not ordinary: the Python method `word` gets all
   arguments, those that were not given as 0. */
static PyObject *call_slow(PyObject *obj, const struct tw_signature *sig,
                           PyObject *const *args, Py_ssize_t count,
                           PyObject *kwnames, enum tw_word word)
{
    PyObject *given[4];
    PyObject *zero;
    PyObject *result;
    int i;

    if (tw_args(sig, args, count, kwnames, given) < 0) {
        return NULL;
    }
    zero = PyLong_FromLong(0);
    if (zero == NULL) {
        return NULL;
    }
    for (i = 0; sig->names[i] != NULL; i++) {
        given[i] = given[i] != NULL ? given[i] : zero;
    }
    given[i] = NULL;
    result = PyObject_CallMethodObjArgs(
        obj, direct_of(obj)->state->words[word], given[0], given[1],
        given[2], NULL);
    Py_DECREF(zero);
    return result;
}

PyDoc_STRVAR(recv_doc,
"recv($self, bufsize, flags=0)\n--\n\n"
"1 to ``bufsize`` bytes; b\"\" at the end of the stream.\n\n"
"Waits only while nothing is there. Raises BlockingIOError\n"
"(non-blocking and nothing there), TimeoutError, the channel's error.");

static PyObject *direct_recv(PyObject *obj, PyObject *const *args,
                             Py_ssize_t count, PyObject *kwnames)
{
    static const char *const names[] = {"bufsize", "flags", NULL};
    static const struct tw_signature sig = {"recv", names, 1, 2};

    if (kwnames == NULL && count == 1 && PyLong_CheckExact(args[0])
        && reads_directly(direct_of(obj))) {
        int overflow = 0;
        long n = PyLong_AsLongAndOverflow(args[0], &overflow);

        if (n > 0 && overflow == 0) {
            return recv_directly(obj, (size_t)n);
        }
    }
    return call_slow(obj, &sig, args, count, kwnames, TW_SLOW_RECV);
}

PyDoc_STRVAR(recv_into_doc,
"recv_into($self, buffer, nbytes=0, flags=0)\n--\n\n"
"As ``recv`` into a writable buffer; the number of bytes, 0 at the end.");

/* The bytes of view that are asked for; false: an argument for Python. */
static bool room_in(const Py_buffer *view, PyObject *nbytes, size_t *room)
{
    int overflow = 0;
    long n = 0;

    if (nbytes != NULL) {
        if (!PyLong_CheckExact(nbytes)) {
            return false;
        }
        n = PyLong_AsLongAndOverflow(nbytes, &overflow);
    }
    if (n < 0 || overflow != 0 || n > view->len) {
        return false;
    }
    *room = n != 0 ? (size_t)n : (size_t)view->len;
    return *room != 0;
}

static PyObject *direct_recv_into(PyObject *obj, PyObject *const *args,
                                  Py_ssize_t count, PyObject *kwnames)
{
    static const char *const names[] = {"buffer", "nbytes", "flags", NULL};
    static const struct tw_signature sig = {"recv_into", names, 1, 3};
    PyObject *result = NULL;
    Py_buffer view;
    size_t room;

    if (kwnames == NULL && (count == 1 || count == 2)
        && reads_directly(direct_of(obj))) {
        if (PyObject_GetBuffer(args[0], &view, PyBUF_WRITABLE) == 0) {
            /* still? its __buffer__ may have used the channel */
            bool ordinary = reads_directly(direct_of(obj))
                            && room_in(&view, count == 2 ? args[1] : NULL,
                                       &room);

            if (ordinary) {
                result = recv_into_directly(obj, view.buf, room);
            }
            PyBuffer_Release(&view);
            if (ordinary) {
                return result;
            }
        } else if (!is_no_buffer()) {
            return NULL;
        }
    }
    return call_slow(obj, &sig, args, count, kwnames, TW_SLOW_RECV_INTO);
}

/* send and sendall. */
static PyObject *send_any(PyObject *obj, const struct tw_signature *sig,
                          PyObject *const *args, Py_ssize_t count,
                          PyObject *kwnames, enum rest rest)
{
    PyObject *result;

    if (kwnames == NULL && count == 1 && sends_directly(direct_of(obj))
        && send_directly(obj, args[0], rest, &result)) {
        return result;
    }
    return call_slow(obj, sig, args, count, kwnames,
                     rest == TELL_REST ? TW_SLOW_SEND : TW_SLOW_SENDALL);
}

static const char *const send_names[] = {"data", "flags", NULL};

PyDoc_STRVAR(send_doc,
"send($self, data, flags=0)\n--\n\n"
"Sends bytes; how many were taken.\n\n"
"Blocking: all of them. Non-blocking: as many as fit, at least one;\n"
"BlockingIOError if none. Before OPEN on a non-blocking channel they\n"
"are queued, within ``QUEUE_LIMIT``.");

static PyObject *direct_send(PyObject *obj, PyObject *const *args,
                             Py_ssize_t count, PyObject *kwnames)
{
    static const struct tw_signature sig = {"send", send_names, 1, 2};

    return send_any(obj, &sig, args, count, kwnames, TELL_REST);
}

PyDoc_STRVAR(sendall_doc,
"sendall($self, data, flags=0)\n--\n\n"
"Sends all bytes.\n\n"
"Raises BlockingIOError on a non-blocking channel that cannot take\n"
"them all; its ``characters_written`` says how many it took.");

static PyObject *direct_sendall(PyObject *obj, PyObject *const *args,
                                Py_ssize_t count, PyObject *kwnames)
{
    static const struct tw_signature sig = {"sendall", send_names, 1, 2};

    return send_any(obj, &sig, args, count, kwnames, SEND_REST);
}

/* --- for events --- */

PyDoc_STRVAR(look_readable_doc,
"_direct_readable() -> bool | None\n\n"
"The session's readable(), where reading is the ordinary case; None: it is\n"
"not, and who asks looks himself.");

static PyObject *look_readable(PyObject *obj, PyObject *unused)
{
    struct py_direct *self = direct_of(obj);

    (void)unused;
    if (!reads_directly(self)) {
        return Py_NewRef(Py_None);
    }
    return PyBool_FromLong(tw_data_readable(tw_pointer_get(&self->session)));
}

PyDoc_STRVAR(look_at_rest_doc,
"_direct_at_rest() -> bool\n\n"
"Are reading and writing the ordinary case, and the session at rest?");

static PyObject *look_at_rest(PyObject *obj, PyObject *unused)
{
    struct py_direct *self = direct_of(obj);

    (void)unused;
    return PyBool_FromLong(reads_directly(self) && sends_directly(self)
                           && tw_data_at_rest(
                               tw_pointer_get(&self->session)));
}

/* --- the state as attributes --- */

/* The closure of an attribute: a flag's bit, or a slot. */
#define CLOSURE(number) ((void *)(uintptr_t)(number))

static PyObject *get_flag(PyObject *obj, void *closure)
{
    long bit = (long)(uintptr_t)closure;

    return PyBool_FromLong(
        (tw_count_get(&direct_of(obj)->flags) & bit) != 0);
}

static int refuse_deletion(PyObject *value)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot be deleted");
        return -1;
    }
    return 0;
}

static int set_flag(PyObject *obj, PyObject *value, void *closure)
{
    long bit = (long)(uintptr_t)closure;
    bool on = false;

    if (refuse_deletion(value) < 0 || tw_arg_bool(value, &on) < 0) {
        return -1;
    }
    set_flags(direct_of(obj), bit, on ? bit : 0);
    return 0;
}

static bool is_set_once(enum slot slot)
{
    return slot >= AHEAD;
}

static PyObject *get_slot(PyObject *obj, void *closure)
{
    enum slot slot = (enum slot)(uintptr_t)closure;
    PyObject *value = slot_get(direct_of(obj), slot);

    if (value == NULL && is_set_once(slot)) {
        PyErr_SetString(PyExc_AttributeError, "not set yet");
        return NULL;
    }
    return value != NULL ? value : Py_NewRef(Py_None);
}

/* The flags that go with `value` in a slot, among *mask; -1 with an
   exception for what does not belong there. */
static long flags_of(struct py_direct *self, enum slot slot, PyObject *value,
                     long *mask)
{
    int64_t deadline = TW_FOREVER;

    switch (slot) {
    case IO:
        *mask = DIRECT;
        return value == tw_pointer_get(&self->session) ? DIRECT : 0;
    case TEXT_READER:
        *mask = READER;
        return value != Py_None ? READER : 0;
    case FAILED_OUTPUT:
        *mask = OUTPUT_ERROR;
        return value != Py_None ? OUTPUT_ERROR : 0;
    case TIMEOUT:
        *mask = NO_WAIT | TIMED;
        if (tw_arg_timeout(value, &deadline) < 0) {
            return -1;
        }
        return deadline == TW_NO_WAIT   ? NO_WAIT
               : deadline == TW_FOREVER ? 0
                                        : TIMED;
    case AHEAD:
    case QUEUE:
        if (!PyByteArray_CheckExact(value)) {
            PyErr_SetString(PyExc_TypeError, "must be a bytearray");
            return -1;
        }
        break;
    case WRITERS:
        if (!tw_turn_check(self->state, value)) {
            PyErr_SetString(PyExc_TypeError, "must be a Turn");
            return -1;
        }
        break;
    default:
        break;
    }
    *mask = 0;
    return 0;
}

static int set_slot(PyObject *obj, PyObject *value, void *closure)
{
    enum slot slot = (enum slot)(uintptr_t)closure;
    struct py_direct *self = direct_of(obj);
    PyObject *before;
    long mask;
    long on;
    bool refused;

    if (refuse_deletion(value) < 0) {
        return -1;
    }
    tw_lock_acquire(&self->lock);
    if (slot == IO && Py_TYPE(value) == self->state->session
        && tw_pointer_get(&self->session) == NULL) {
        tw_pointer_set(&self->session, Py_NewRef(value));
    }
    tw_lock_release(&self->lock);
    on = flags_of(self, slot, value, &mask);
    if (on < 0) {
        return -1;
    }
    tw_lock_acquire(&self->lock);
    before = self->slots[slot];
    refused = before != NULL && before != value && is_set_once(slot);
    if (!refused) { /* the same once more: what `+=` ends with */
        self->slots[slot] = Py_NewRef(value);
        set_flags(self, mask, on);
    }
    tw_lock_release(&self->lock);
    if (refused) {
        PyErr_SetString(PyExc_AttributeError, "set already");
        return -1;
    }
    Py_XDECREF(before); /* may run anything: with nothing held */
    return 0;
}

/* --- making and freeing --- */

/* Not yet a channel: __init__ makes it one. Until then there is nothing to
   close, whatever became of __init__. */
static PyObject *direct_new(PyTypeObject *type, PyObject *args,
                            PyObject *kwargs)
{
    struct tw_module *state = tw_module_find(type);
    struct py_direct *self;

    (void)args;
    (void)kwargs;
    if (state == NULL) {
        return NULL;
    }
    self = (struct py_direct *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->state = state;
    tw_count_init(&self->flags, CLOSED);
    tw_pointer_set(&self->session, NULL);
    tw_lock_init(&self->lock);
    return (PyObject *)self;
}

static int direct_traverse(PyObject *obj, visitproc visit, void *arg)
{
    struct py_direct *self = direct_of(obj);
    int i;

    Py_VISIT(Py_TYPE(obj));
    Py_VISIT(tw_pointer_get(&self->session));
    for (i = 0; i < SLOTS; i++) {
        Py_VISIT(self->slots[i]);
    }
    return 0;
}

static int direct_clear(PyObject *obj)
{
    struct py_direct *self = direct_of(obj);
    PyObject *session = tw_pointer_get(&self->session);
    int i;

    set_flags(self, USABLE | DIRECT, 0);
    tw_pointer_set(&self->session, NULL);
    Py_XDECREF(session);
    for (i = 0; i < SLOTS; i++) {
        Py_CLEAR(self->slots[i]);
    }
    return 0;
}

static void direct_dealloc(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    PyObject_GC_UnTrack(obj);
    (void)direct_clear(obj);
    tw_lock_fini(&direct_of(obj)->lock);
    release(obj);
    Py_DECREF(type);
}

/* --- the type --- */

#define CALL(name)                                                         \
    {#name, (PyCFunction)(void (*)(void))direct_##name,                    \
     METH_FASTCALL | METH_KEYWORDS, name##_doc}

static PyMethodDef direct_methods[] = {
    CALL(recv),
    CALL(recv_into),
    CALL(send),
    CALL(sendall),
    {"_direct_readable", look_readable, METH_NOARGS,
     look_readable_doc},
    {"_direct_at_rest", look_at_rest, METH_NOARGS,
     look_at_rest_doc},
    {NULL, NULL, 0, NULL},
};

#define FLAG(name, bit) {name, get_flag, set_flag, NULL, CLOSURE(bit)}
#define SLOT(name, slot) {name, get_slot, set_slot, NULL, CLOSURE(slot)}

static PyGetSetDef direct_getset[] = {
    FLAG("_usable", USABLE),
    FLAG("_closed", CLOSED),
    FLAG("_eof", ENDED),
    FLAG("_blocked", BLOCKED),
    FLAG("_write_ended", WRITE_ENDED),
    SLOT("_io", IO),
    SLOT("_timeout", TIMEOUT),
    SLOT("_reader", TEXT_READER),
    SLOT("_output_error", FAILED_OUTPUT),
    SLOT("_ahead", AHEAD),
    SLOT("_queue", QUEUE),
    SLOT("_write_lock", WRITERS),
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(direct_doc,
"What Streams is made of: recv, recv_into, send and sendall, which do the\n"
"ordinary case themselves and call _slow_recv and so on for any other, and\n"
"the state that decides which it is, as attributes.");

static PyType_Slot direct_slots[] = {
    {Py_tp_doc, (void *)direct_doc},
    {Py_tp_new, (void *)direct_new},
    {Py_tp_dealloc, (void *)direct_dealloc},
    {Py_tp_traverse, (void *)direct_traverse},
    {Py_tp_clear, (void *)direct_clear},
    {Py_tp_methods, direct_methods},
    {Py_tp_getset, direct_getset},
    {0, NULL},
};

static PyType_Spec direct_spec = {
    .name = "twapi_tls._native.DirectStream",
    .basicsize = sizeof(struct py_direct),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = direct_slots,
};

int tw_direct_type(PyObject *module, struct tw_module *state)
{
    static const char *const words[] = {
#define TEXT_OF(name, text) text,
        TW_WORD_LIST(TEXT_OF)
#undef TEXT_OF
    };
    int i;

    for (i = 0; i < TW_WORDS; i++) {
        state->words[i] = PyUnicode_InternFromString(words[i]);
        if (state->words[i] == NULL) {
            return -1;
        }
    }
    return tw_add_type(module, &direct_spec, &state->direct);
}
