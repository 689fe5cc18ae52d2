/*
 * Allocation that fails when told to (counted.c), for pytest. The scripted
 * engine's own bookkeeping is not counted.
 */
#include "ext.h"

static PyObject *fail_allocation(PyObject *module, PyObject *args)
{
    long nth;
    int onward = 0;

    (void)module;
    if (!PyArg_ParseTuple(args, "l|p:fail_allocation", &nth, &onward)) {
        return NULL;
    }
    counted_fail(nth, onward != 0);
    Py_RETURN_NONE;
}

static PyObject *allocations(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    return Py_BuildValue("ll", counted_made(), counted_live());
}

static PyMethodDef functions[] = {
    {"fail_allocation", fail_allocation, METH_VARARGS, NULL},
    {"allocations", allocations, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int ext_add_alloc(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
