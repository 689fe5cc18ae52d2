/* The pure functions of core/, as they are. */
#include "ext.h"

#include <string.h>

#include "core/buffer.h"
#include "core/hello.h"
#include "core/record.h"
#include "core/status.h"

/* A copy of exactly its length, so that a sanitizer sees the byte after
   it. */
struct exact {
    uint8_t *data;
    size_t len;
};

static bool exact_from(PyObject *arg, struct exact *out)
{
    char *data;
    Py_ssize_t len;

    if (PyBytes_AsStringAndSize(arg, &data, &len) != 0) {
        return false;
    }
    out->len = (size_t)len;
    out->data = PyMem_Malloc(out->len > 0 ? out->len : 1);
    if (out->data == NULL) {
        (void)PyErr_NoMemory();
        return false;
    }
    memcpy(out->data, data, out->len);
    return true;
}

static PyObject *record(PyObject *module, PyObject *arg)
{
    struct exact in;
    const char *looks;
    PyObject *answer;

    (void)module;
    if (!exact_from(arg, &in)) {
        return NULL;
    }
    looks = tw_record_looks_like(in.data, in.len);
    answer = Py_BuildValue(
        "{s:n,s:n,s:n,s:i,s:z}", "length",
        (Py_ssize_t)tw_record_length(in.data, in.len), "missing",
        (Py_ssize_t)tw_record_missing(in.data, in.len), "whole",
        (Py_ssize_t)tw_record_whole(in.data, in.len), "check",
        (int)tw_record_check(in.data, in.len), "looks", looks);
    PyMem_Free(in.data);
    return answer;
}

static PyObject *hello(PyObject *module, PyObject *arg)
{
    struct exact in;
    struct tw_hello out;
    struct tw_error err;
    enum tw_status st;
    size_t missing = 0;
    size_t i;
    PyObject *versions;

    (void)module;
    if (!exact_from(arg, &in)) {
        return NULL;
    }
    tw_error_clear(&err);
    st = tw_hello_parse(in.data, in.len, &out, &missing, &err);
    PyMem_Free(in.data);
    versions = PyList_New(0);
    for (i = 0; versions != NULL && st == TW_DONE && i < out.version_count;
         i++) {
        PyObject *one = PyLong_FromLong(out.versions[i]);

        if (one == NULL || PyList_Append(versions, one) != 0) {
            Py_CLEAR(versions);
        }
        Py_XDECREF(one);
    }
    if (versions == NULL) {
        return NULL;
    }
    return Py_BuildValue("{s:i,s:n,s:s,s:i,s:s,s:y#,s:N}", "status", (int)st,
                         "missing", (Py_ssize_t)missing, "detail",
                         err.detail, "code", (int)err.code, "sni",
                         st == TW_DONE ? out.sni : "", "alpn",
                         (char *)out.alpn,
                         st == TW_DONE ? (Py_ssize_t)out.alpn_len : 0,
                         "versions", versions);
}

/* What is left of a text in tw_error.detail. */
static PyObject *error_detail(PyObject *module, PyObject *arg)
{
    struct tw_error err;
    char *text;
    Py_ssize_t len;

    (void)module;
    if (PyBytes_AsStringAndSize(arg, &text, &len) != 0) {
        return NULL;
    }
    tw_error_clear(&err);
    (void)tw_error_set(&err, TW_E_TLS, 0, "%.*s", (int)len, text);
    return PyBytes_FromString(err.detail);
}

static PyObject *alert_for_code(PyObject *module, PyObject *arg)
{
    long code = PyLong_AsLong(arg);

    (void)module;
    if (code == -1 && PyErr_Occurred() != NULL) {
        return NULL;
    }
    return PyLong_FromLong(tw_alert_for_code((int32_t)code));
}

static PyObject *status_text(PyObject *module, PyObject *arg)
{
    long status = PyLong_AsLong(arg);

    (void)module;
    if (status == -1 && PyErr_Occurred() != NULL) {
        return NULL;
    }
    return PyUnicode_FromString(tw_status_text((enum tw_status)status));
}

/* --- Buffer --- */

struct buffer {
    PyObject_HEAD
    struct tw_buffer b;
};

static PyObject *buffer_new(PyTypeObject *type, PyObject *args,
                            PyObject *kwargs)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct buffer *self = (struct buffer *)alloc(type, 0);

    (void)args;
    (void)kwargs;
    if (self != NULL) {
        tw_buffer_init(&self->b);
    }
    return (PyObject *)self;
}

static void buffer_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    tw_buffer_free(&((struct buffer *)self)->b);
    release(self);
    Py_DECREF(type);
}

static PyObject *buffer_append(PyObject *self, PyObject *arg)
{
    char *data;
    Py_ssize_t len;

    if (PyBytes_AsStringAndSize(arg, &data, &len) != 0) {
        return NULL;
    }
    return PyBool_FromLong(tw_buffer_append(&((struct buffer *)self)->b,
                                            data, (size_t)len));
}

/* reserve(room, data): False without memory; commits data. */
static PyObject *buffer_reserve(PyObject *self, PyObject *args)
{
    struct tw_buffer *b = &((struct buffer *)self)->b;
    Py_ssize_t room;
    const char *data;
    Py_ssize_t len;
    uint8_t *at;

    if (!PyArg_ParseTuple(args, "ny#:reserve", &room, &data, &len)) {
        return NULL;
    }
    at = tw_buffer_reserve(b, (size_t)room);
    if (at == NULL) {
        Py_RETURN_FALSE;
    }
    memset(at, 0xA5, (size_t)room); /* all of it is ours */
    memcpy(at, data, (size_t)len);
    tw_buffer_commit(b, (size_t)len);
    Py_RETURN_TRUE;
}

static PyObject *buffer_consume(PyObject *self, PyObject *arg)
{
    Py_ssize_t n = PyLong_AsSsize_t(arg);

    if (n == -1 && PyErr_Occurred() != NULL) {
        return NULL;
    }
    tw_buffer_consume(&((struct buffer *)self)->b, (size_t)n);
    Py_RETURN_NONE;
}

static PyObject *buffer_relax(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    tw_buffer_relax(&((struct buffer *)self)->b);
    Py_RETURN_NONE;
}

static PyObject *buffer_content(PyObject *self, PyObject *ignored)
{
    struct tw_buffer *b = &((struct buffer *)self)->b;
    const uint8_t *head = tw_buffer_head(b);

    (void)ignored;
    return PyBytes_FromStringAndSize((const char *)head,
                                     (Py_ssize_t)tw_buffer_length(b));
}

static PyObject *buffer_room(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    return PyLong_FromSize_t(((struct buffer *)self)->b.room);
}

static PyMethodDef buffer_methods[] = {
    {"append", buffer_append, METH_O, NULL},
    {"reserve", buffer_reserve, METH_VARARGS, NULL},
    {"consume", buffer_consume, METH_O, NULL},
    {"relax", buffer_relax, METH_NOARGS, NULL},
    {"content", buffer_content, METH_NOARGS, NULL},
    {"room", buffer_room, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot buffer_slots[] = {
    {Py_tp_new, (void *)buffer_new},
    {Py_tp_dealloc, (void *)buffer_dealloc},
    {Py_tp_methods, (void *)buffer_methods},
    {0, NULL},
};

static PyType_Spec buffer_spec = {
    .name = "_testnative.Buffer",
    .basicsize = sizeof(struct buffer),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = buffer_slots,
};

static PyMethodDef functions[] = {
    {"record", record, METH_O, NULL},
    {"hello", hello, METH_O, NULL},
    {"error_detail", error_detail, METH_O, NULL},
    {"alert_for_code", alert_for_code, METH_O, NULL},
    {"status_text", status_text, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int ext_add_floors(PyObject *module)
{
    if (PyModule_AddFunctions(module, functions) != 0) {
        return -1;
    }
    return ext_add_type(module, &buffer_spec, "Buffer") == NULL ? -1 : 0;
}
