/*
 * What the rooms of the Python floor share: the module's state, the object
 * layouts, and how one type makes objects of another.
 *
 * Nothing Python is static: types and exceptions live in the module's
 * state, reached from any of our objects through its type: no type here
 * can be subclassed, so Py_TYPE is the defining class. DirectStream can,
 * and its objects know the state themselves.
 */
#ifndef TW_PYTHON_MODULE_H
#define TW_PYTHON_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <pyconfig.h> /* says whether there is a GIL */
#if !defined(Py_LIMITED_API) && !defined(Py_GIL_DISABLED)
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include "core/credentials.h"
#include "core/lock.h"
#include "core/session.h"
#include "core/status.h"
#include "sspi/provider.h"
#include "wire/wire.h"

/* X(name, text): attributes that C looks up, as interned str. */
#define TW_WORD_LIST(X)                                                    \
    X(TW_SLOW_RECV, "_slow_recv")                                          \
    X(TW_SLOW_RECV_INTO, "_slow_recv_into")                                \
    X(TW_SLOW_SEND, "_slow_send")                                          \
    X(TW_SLOW_SENDALL, "_slow_sendall")                                    \
    X(TW_READ_FAILED, "_read_failed")                                      \
    X(TW_SEND_REST, "_send_rest")

enum tw_word {
#define TW_WORD_ENUM(name, text) name,
    TW_WORD_LIST(TW_WORD_ENUM)
#undef TW_WORD_ENUM
    TW_WORDS
};

struct tw_module {
    PyTypeObject *certificate;
    PyTypeObject *store;
    PyTypeObject *credentials;
    PyTypeObject *session;
    PyTypeObject *direct;
    PyTypeObject *turn;
    PyObject *words[TW_WORDS]; /* of TW_WORD_LIST */
    PyObject *blocked; /* arguments of a BlockingIOError with 0 written */
    PyObject *tls_error; /* TLSError, and its subclasses: */
    PyObject *verification_error;
    PyObject *truncated_error;
    PyObject *alert_error;
    PyObject *timeout_error;
    PyObject *closed_error;
};

struct tw_py_certificate {
    PyObject_HEAD
    struct tw_cert *cert; /* owned, never NULL */
};

struct tw_py_store {
    PyObject_HEAD
    struct tw_store *store; /* owned, never NULL */
    struct tw_lock lock;    /* around every use of store */
};

struct tw_py_credentials {
    PyObject_HEAD
    struct tw_credentials *credentials; /* owned, never NULL */
};

/* The state behind one of our types, or behind the type of an object. */
static inline struct tw_module *tw_module_of_type(PyTypeObject *type)
{
    return PyType_GetModuleState(type);
}
static inline struct tw_module *tw_module_of(PyObject *self)
{
    return PyType_GetModuleState(Py_TYPE(self));
}

/* The state behind a type that is DirectStream or derived from it; NULL
   with an exception. */
struct tw_module *tw_module_find(PyTypeObject *type);

/* Each adds its type to the module; 0, or -1 with an exception. */
int tw_certificate_type(PyObject *module, struct tw_module *);
int tw_store_type(PyObject *module, struct tw_module *);
int tw_credentials_type(PyObject *module, struct tw_module *);
int tw_session_type(PyObject *module, struct tw_module *);
int tw_direct_type(PyObject *module, struct tw_module *);
int tw_turn_type(PyObject *module, struct tw_module *);
/* The capsule for C extensions (capi.c), as `capi`. */
int tw_capi_add(PyObject *module);
/* PyType_FromModuleAndSpec and PyModule_AddType in one. */
int tw_add_type(PyObject *module, PyType_Spec *, PyTypeObject **out);

/* Wrap what the engine gave; take it over, also on failure (NULL). */
PyObject *tw_certificate_wrap(struct tw_module *, struct tw_cert *);
PyObject *tw_store_wrap(struct tw_module *, struct tw_store *);

/* What is in an object: borrowed, TypeError (NULL) for another type.
   `what` names the argument. */
struct tw_cert *tw_certificate_get(struct tw_module *, PyObject *,
                                   const char *what);
struct tw_credentials *tw_credentials_get(struct tw_module *, PyObject *,
                                          const char *what);
/* A store argument: *out NULL for None or a missing one. 0 or -1. */
int tw_store_get(struct tw_module *, PyObject *, const char *what,
                 struct tw_py_store **out);
/* Locks up to four stores (NULLs and repetitions allowed) in an order that
   is the same for everybody; sorts the array. No GIL needed. */
void tw_stores_lock(struct tw_py_store **stores, size_t count);
void tw_stores_unlock(struct tw_py_store **stores, size_t count);

#endif
