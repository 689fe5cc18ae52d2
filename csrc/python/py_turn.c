/*
 * Turn: whose turn it is to write on a channel.
 *
 * A lock that its holder may take again, as threading.RLock is, and with
 * that one's methods; but C takes and gives it without a call into Python,
 * which costs a small send a tenth of its time above the system's.
 *
 * The owner is a thread's number, which nobody else sets to one's own, so
 * comparing it needs no lock. Waiting lets go of the GIL, and of nothing
 * else: a signal's handlers run, and may raise, before the wait goes on.
 */
#include "python/py_turn.h"

#include "core/atomic.h"
#include "python/convert.h"

/* us: the longest wait in one go (an hour) */
#define LONGEST INT64_C(3600000000)

struct py_turn {
    PyObject_HEAD
    PyThread_type_lock lock; /* owned */
    struct tw_count owner;   /* number of the thread that has it, or 0 */
    long depth;              /* how often it took it; by the owner */
};

static struct py_turn *turn_of(PyObject *self)
{
    return (struct py_turn *)self;
}

static long this_thread(void)
{
    return (long)PyThread_get_thread_ident();
}

/* Microseconds that are left, rounded up; at most LONGEST. */
static int64_t time_left(int64_t deadline)
{
    int64_t left;

    if (deadline == TW_FOREVER) {
        return LONGEST;
    }
    left = (deadline - tw_clock_ns() + 999) / 1000;
    return left < 0 ? 0 : left < LONGEST ? left : LONGEST;
}

/* 1: taken; 0: the time is over; -1 with an exception. */
static int wait_for(struct py_turn *self, int64_t deadline)
{
    for (;;) {
        int64_t left = time_left(deadline);
        PyLockStatus status;

        Py_BEGIN_ALLOW_THREADS
        status = PyThread_acquire_lock_timed(self->lock, left, 1);
        Py_END_ALLOW_THREADS
        if (status == PY_LOCK_ACQUIRED) {
            return 1;
        }
        if (status == PY_LOCK_INTR) {
            if (PyErr_CheckSignals() < 0) {
                return -1;
            }
        } else if (left < LONGEST) {
            return 0;
        }
    }
}

int tw_turn_take(PyObject *turn, int64_t deadline)
{
    struct py_turn *self = turn_of(turn);
    long me = this_thread();

    if (tw_count_glance(&self->owner) == me) {
        self->depth++;
        return 1;
    }
    if (!PyThread_acquire_lock(self->lock, NOWAIT_LOCK)) {
        int taken = deadline == TW_NO_WAIT ? 0 : wait_for(self, deadline);

        if (taken <= 0) {
            return taken;
        }
    }
    tw_count_set(&self->owner, me);
    self->depth = 1;
    return 1;
}

void tw_turn_give(PyObject *turn)
{
    struct py_turn *self = turn_of(turn);

    if (--self->depth == 0) {
        tw_count_set(&self->owner, 0);
        PyThread_release_lock(self->lock);
    }
}

bool tw_turn_check(struct tw_module *state, PyObject *thing)
{
    return Py_TYPE(thing) == state->turn;
}

/* --- for Python --- */

PyDoc_STRVAR(acquire_doc,
"acquire(timeout=None) -> bool\n\n"
"Takes the turn; False after timeout seconds (None: for ever, 0: at once).");

static PyObject *turn_acquire(PyObject *self, PyObject *const *args,
                              Py_ssize_t count)
{
    int64_t deadline = TW_FOREVER;
    int taken;

    if (tw_arg_count("acquire", count, 0, 1) < 0 ||
        tw_arg_timeout(count > 0 ? args[0] : NULL, &deadline) < 0) {
        return NULL;
    }
    taken = tw_turn_take(self, deadline);
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

PyDoc_STRVAR(release_doc,
"release()\n\n"
"Gives it up, once for each time it was taken. RuntimeError for a thread\n"
"that has not got it.");

static PyObject *turn_release(PyObject *self, PyObject *unused)
{
    (void)unused;
    if (tw_count_glance(&turn_of(self)->owner) != this_thread()) {
        PyErr_SetString(PyExc_RuntimeError,
                        "another thread's turn, or nobody's");
        return NULL;
    }
    tw_turn_give(self);
    return Py_NewRef(Py_None);
}

PyDoc_STRVAR(enter_doc, "__enter__()\n\nTakes the turn.");

static PyObject *turn_enter(PyObject *self, PyObject *unused)
{
    (void)unused;
    return tw_turn_take(self, TW_FOREVER) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(exit_doc, "__exit__(*error)\n\nGives it up.");

static PyObject *turn_exit(PyObject *self, PyObject *const *args,
                           Py_ssize_t count)
{
    (void)args;
    (void)count;
    return turn_release(self, NULL);
}

static PyObject *turn_new(PyTypeObject *type, PyObject *args,
                          PyObject *kwargs)
{
    PyThread_type_lock lock;
    struct py_turn *self;
    static char *names[] = {NULL};

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Turn", names)) {
        return NULL;
    }
    lock = PyThread_allocate_lock();
    if (lock == NULL) {
        return PyErr_NoMemory();
    }
    self = (struct py_turn *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        PyThread_free_lock(lock);
        return NULL;
    }
    self->lock = lock;
    tw_count_init(&self->owner, 0);
    return (PyObject *)self;
}

static void turn_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    if (turn_of(self)->depth != 0) {
        /* its holder ended with it: a lock is not freed while taken */
        PyThread_release_lock(turn_of(self)->lock);
    }
    PyThread_free_lock(turn_of(self)->lock);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* --- the type --- */

static PyMethodDef turn_methods[] = {
    {"acquire", (PyCFunction)(void (*)(void))turn_acquire, METH_FASTCALL,
     acquire_doc},
    {"release", turn_release, METH_NOARGS, release_doc},
    {"__enter__", turn_enter, METH_NOARGS, enter_doc},
    {"__exit__", (PyCFunction)(void (*)(void))turn_exit, METH_FASTCALL,
     exit_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(turn_doc,
"Turn()\n\nA lock that its holder may take again, as threading.RLock.");

static PyType_Slot turn_slots[] = {
    {Py_tp_doc, (void *)turn_doc},
    {Py_tp_new, (void *)turn_new},
    {Py_tp_dealloc, (void *)turn_dealloc},
    {Py_tp_methods, turn_methods},
    {0, NULL},
};

static PyType_Spec turn_spec = {
    .name = "twapi_tls._native.Turn",
    .basicsize = sizeof(struct py_turn),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = turn_slots,
};

int tw_turn_type(PyObject *module, struct tw_module *state)
{
    return tw_add_type(module, &turn_spec, &state->turn);
}
