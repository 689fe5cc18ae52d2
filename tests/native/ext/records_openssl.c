/*
 * The record engine within contexts of the OpenSSL engine: where a
 * connection's records stand, put to where a test cannot get by sending.
 */
#include "ext.h"

#include "sspi/context_openssl.h"

/* The records of a context, the engine engaged as by their first use; NULL
   with an exception where they are the SSL object's, whose numbers nobody
   can set. */
static struct tw_records *records_of(PyObject *arg)
{
    CtxtHandle *handle = ext_context(arg);
    struct tw_octx *c;

    if (handle == NULL) {
        return NULL;
    }
    c = tw_octx_at(handle);
    if (c != NULL && c->open) {
        tw_octx_engage(c);
    }
    if (c == NULL || c->records == NULL) {
        PyErr_SetString(PyExc_ValueError, "no record engine here");
        return NULL;
    }
    return c->records;
}

/* jump(context, read, write, count): the next records' sequence numbers,
   and how many were sent under our key. */
static PyObject *jump(PyObject *module, PyObject *args)
{
    PyObject *arg;
    unsigned long long read, write, count;
    struct tw_records *r;

    (void)module;
    if (!PyArg_ParseTuple(args, "OKKK:jump", &arg, &read, &write, &count)
        || (r = records_of(arg)) == NULL) {
        return NULL;
    }
    r->read.seq = read;
    r->write.seq = write;
    r->write.count = count;
    Py_RETURN_NONE;
}

/* stands(context) -> (read, write): the next records' sequence numbers. */
static PyObject *stands(PyObject *module, PyObject *arg)
{
    struct tw_records *r = records_of(arg);

    (void)module;
    return r == NULL ? NULL
                     : Py_BuildValue("(KK)",
                                     (unsigned long long)r->read.seq,
                                     (unsigned long long)r->write.seq);
}

/* ask(context) -> the record of a KeyUpdate that asks for the peer's as
   well (RFC 8446, 4.6.3), which ours never do; our keys are renewed. */
static PyObject *ask(PyObject *module, PyObject *arg)
{
    static const uint8_t update[5] = {24, 0, 0, 1, 1};
    struct tw_records *r = records_of(arg);
    uint8_t record[128];
    size_t len;

    (void)module;
    if (r == NULL) {
        return NULL;
    }
    len = tw_records_seal(r, 22, update, sizeof(update), record);
    if (len == 0 || !tw_records_update(r, &r->write)) {
        PyErr_SetString(PyExc_ValueError, "no KeyUpdate could be made");
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)record, (Py_ssize_t)len);
}

static PyMethodDef functions[] = {
    {"jump", jump, METH_VARARGS, NULL},
    {"stands", stands, METH_O, NULL},
    {"ask", ask, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int ext_add_records(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
