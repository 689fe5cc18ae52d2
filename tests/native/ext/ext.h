/*
 * _testnative: the C floors as pytest sees them, below csrc/python. Built
 * by tests/native/setup.py for tests only; never in a wheel.
 *
 *   floors.c   record, hello, buffer, status: pure functions
 *   alloc.c    malloc and its kin, made to fail by number (../counted.h)
 *   raw.c      the engine's SecurityFunctionTableW, buffers by hand
 *   records_*.c  where the records of a context of raw.c stand
 *   played.c   tw_credentials and tw_session over the scripted table
 *   support.c  what these share
 *
 * The same files, but for raw.c and records, make _testschannel with those
 * of ../sdk: there provider_schannel.c is the engine over the scripted table.
 */
#ifndef TW_TESTS_EXT_H
#define TW_TESTS_EXT_H

#define PY_SSIZE_T_CLEAN
#include <pyconfig.h> /* says whether there is a GIL */
#if !defined(Py_LIMITED_API) && !defined(Py_GIL_DISABLED)
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

struct tw_cert;
struct tw_provider;
struct tw_script;

/* Whom played.c drives over the scripted table; module.c of each module. */
struct ext_engine {
    const struct tw_provider *provider;
    struct tw_cert *(*cert_new)(struct tw_script *, const uint8_t *text,
                                size_t len);
};
extern const struct ext_engine ext_engine;

/* The module of this definition; it needs no GIL: a test is one thread. */
PyObject *ext_module_new(struct PyModuleDef *definition);
/* Each adds its functions and types; 0, or -1 with an exception. */
int ext_add_floors(PyObject *module);
int ext_add_alloc(PyObject *module);
int ext_add_raw(PyObject *module);
int ext_add_records(PyObject *module);
int ext_add_played(PyObject *module);

/* A type from its spec, added under its name; NULL on failure. */
PyTypeObject *ext_add_type(PyObject *module, PyType_Spec *spec,
                           const char *name);
/* bytes, or None for NULL */
PyObject *ext_bytes(const void *data, size_t len);
/* The CtxtHandle of a context of raw.c; NULL with an exception. */
void *ext_context(PyObject *arg);

#endif
