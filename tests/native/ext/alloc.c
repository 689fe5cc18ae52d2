/*
 * Allocation that fails when told to. The linker turns every malloc,
 * calloc, realloc and free of this extension's objects into the functions
 * below (--wrap); Python and OpenSSL keep theirs. The scripted engine's
 * own bookkeeping is not counted.
 */
#include "ext.h"

#include <stdlib.h>

void *__real_malloc(size_t);
void *__real_calloc(size_t, size_t);
void *__real_realloc(void *, size_t);
void __real_free(void *);
void *__wrap_malloc(size_t);
void *__wrap_calloc(size_t, size_t);
void *__wrap_realloc(void *, size_t);
void __wrap_free(void *);

static long made;    /* allocations since the last fail_allocation */
static long fails;   /* which of them fails; 0: none */
static bool onward;  /* and every one after it */
static long live;    /* blocks that are alive */

static bool refused(void)
{
    made++;
    return fails > 0 && (made == fails || (onward && made > fails));
}

void *__wrap_malloc(size_t n)
{
    void *p = refused() ? NULL : __real_malloc(n);

    live += p != NULL;
    return p;
}

void *__wrap_calloc(size_t n, size_t each)
{
    void *p = refused() ? NULL : __real_calloc(n, each);

    live += p != NULL;
    return p;
}

void *__wrap_realloc(void *old, size_t n)
{
    void *p = refused() ? NULL : __real_realloc(old, n);

    live += p != NULL && old == NULL;
    return p;
}

void __wrap_free(void *p)
{
    live -= p != NULL;
    __real_free(p);
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
