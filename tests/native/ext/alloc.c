/*
 * Allocation that fails when told to: counted.h has our own calls of malloc,
 * calloc, realloc and free come here. The scripted engine's own bookkeeping
 * is not counted.
 */
#include "ext.h"

static long made;    /* allocations since the last fail_allocation */
static long fails;   /* which of them fails; 0: none */
static bool onward;  /* and every one after it */
static long live;    /* blocks that are alive */

static bool refused(void)
{
    made++;
    return fails > 0 && (made == fails || (onward && made > fails));
}

void *counted_malloc(size_t n)
{
    void *p = refused() ? NULL : (malloc)(n);

    live += p != NULL;
    return p;
}

void *counted_calloc(size_t n, size_t each)
{
    void *p = refused() ? NULL : (calloc)(n, each);

    live += p != NULL;
    return p;
}

void *counted_realloc(void *old, size_t n)
{
    void *p = refused() ? NULL : (realloc)(old, n);

    live += p != NULL && old == NULL;
    return p;
}

void counted_free(void *p)
{
    live -= p != NULL;
    (free)(p);
}

static PyObject *fail_allocation(PyObject *module, PyObject *args)
{
    int every = 0;

    (void)module;
    if (!PyArg_ParseTuple(args, "l|p:fail_allocation", &fails, &every)) {
        return NULL;
    }
    onward = every != 0;
    made = 0;
    Py_RETURN_NONE;
}

static PyObject *allocations(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    return Py_BuildValue("ll", made, live);
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
