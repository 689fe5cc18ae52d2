/*
 * Store: a set of certificates, with private keys where they came with one.
 *
 * The engine's stores are safe on distinct objects only, hence one lock
 * per Store, held around every engine call on it, with the GIL let go:
 * opening a PKCS#12 file derives keys for milliseconds. Who uses several
 * at once (a verification, credentials) locks them in the order of their
 * addresses.
 */
#include "python/convert.h"
#include "python/module.h"
#include "python/py_error.h"

#include <string.h>

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

static struct tw_py_store *store_of(PyObject *self)
{
    return (struct tw_py_store *)self;
}

/* --- locking several --- */

void tw_stores_lock(struct tw_py_store **stores, size_t count)
{
    size_t i, j;

    for (i = 1; i < count; i++) {
        for (j = i; j > 0 && (uintptr_t)stores[j - 1] >
                                 (uintptr_t)stores[j];
             j--) {
            struct tw_py_store *swap = stores[j];

            stores[j] = stores[j - 1];
            stores[j - 1] = swap;
        }
    }
    for (i = 0; i < count; i++) {
        if (stores[i] != NULL && (i == 0 || stores[i] != stores[i - 1])) {
            tw_lock_acquire(&stores[i]->lock);
        }
    }
}

void tw_stores_unlock(struct tw_py_store **stores, size_t count)
{
    size_t i;

    for (i = 0; i < count; i++) {
        if (stores[i] != NULL && (i == 0 || stores[i] != stores[i - 1])) {
            tw_lock_release(&stores[i]->lock);
        }
    }
}

/* --- making, finding, freeing --- */

static PyObject *store_wrap_type(PyTypeObject *type, struct tw_store *store)
{
    PyObject *self = PyType_GenericAlloc(type, 0);

    if (self == NULL) {
        tw_provider_default()->store_free(store);
        return NULL;
    }
    store_of(self)->store = store;
    tw_lock_init(&store_of(self)->lock);
    return self;
}

PyObject *tw_store_wrap(struct tw_module *state, struct tw_store *store)
{
    return store_wrap_type(state->store, store);
}

int tw_store_get(struct tw_module *state, PyObject *obj, const char *what,
                 struct tw_py_store **out)
{
    if (obj == NULL || obj == Py_None) {
        *out = NULL;
        return 0;
    }
    if (!PyObject_TypeCheck(obj, state->store)) {
        (void)PyErr_Format(PyExc_TypeError, "%s must be a Store or None",
                           what);
        return -1;
    }
    *out = store_of(obj);
    return 0;
}

static PyObject *store_tp_new(PyTypeObject *type, PyObject *args,
                              PyObject *kwargs)
{
    struct tw_store *store = NULL;
    struct tw_error err;

    if (PyTuple_Size(args) != 0 ||
        (kwargs != NULL && PyDict_Size(kwargs) != 0)) {
        PyErr_SetString(PyExc_TypeError, "Store() takes no arguments");
        return NULL;
    }
    tw_error_clear(&err);
    if (tw_provider_default()->store_new(&store, &err) != TW_DONE) {
        return tw_error_raise(tw_module_of_type(type), &err);
    }
    return store_wrap_type(type, store);
}

static void store_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    tw_provider_default()->store_free(store_of(self)->store);
    tw_lock_fini(&store_of(self)->lock);
    PyObject_Free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(open_system_doc,
"open_system(name, location='user') -> Store\n\n"
"A store of the system: \"ROOT\", \"CA\", \"MY\" ...; location: \"user\" or\n"
"\"machine\". TLSError if there is no such store.");

static PyObject *store_open_system(PyObject *type, PyObject *const *args,
                                   Py_ssize_t count)
{
    const char *const *places = NAMES("user", "machine");
    struct tw_store *store = NULL;
    const char *name = NULL;
    struct tw_error err;
    enum tw_status st;
    int place = 0;

    if (tw_arg_count("open_system", count, 1, 2) < 0 ||
        tw_arg_text(args[0], "name", false, &name) < 0 ||
        tw_arg_word(count > 1 ? args[1] : NULL, "location", places,
                    &place) < 0) {
        return NULL;
    }
    tw_error_clear(&err);
    Py_BEGIN_ALLOW_THREADS
    st = tw_provider_default()->store_open(name, places[place], &store,
                                           &err);
    Py_END_ALLOW_THREADS
    if (st != TW_DONE) {
        return tw_error_raise(tw_module_of_type((PyTypeObject *)type),
                              &err);
    }
    return store_wrap_type((PyTypeObject *)type, store);
}

/* --- filling --- */

PyDoc_STRVAR(import_doc,
"import_(kind, data, password=None)\n\n"
"Adds what the bytes hold. kind: \"der\", \"pem\", \"pfx\", \"pkcs7\",\n"
"\"key_der\" (a private key, which joins its certificate) or\n"
"\"serialized\". TLSError for bytes of another kind, a key that is\n"
"encrypted and no or a wrong password; ValueError for a key that fits no\n"
"certificate.");

static PyObject *store_import(PyObject *self, PyObject *const *args,
                              Py_ssize_t count, PyObject *kwnames)
{
    const struct tw_signature sig = {
        "import_", NAMES("kind", "data", "password"), 2, 3};
    const char *const *kinds = NAMES("der", "pem", "pfx", "pkcs7",
                                     "key_der", "serialized");
    static const enum tw_encoding encodings[] = {
        TW_ENC_CERT_DER, TW_ENC_PEM,     TW_ENC_PFX,
        TW_ENC_PKCS7,    TW_ENC_KEY_DER, TW_ENC_SERIALIZED};
    const char *password = NULL;
    PyObject *given[3];
    struct tw_error err;
    enum tw_status st;
    Py_buffer view;
    int kind = 0;

    if (tw_args(&sig, args, count, kwnames, given) < 0 ||
        tw_arg_word(given[0], "kind", kinds, &kind) < 0 ||
        tw_arg_text(given[2], "password", true, &password) < 0 ||
        PyObject_GetBuffer(given[1], &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    tw_error_clear(&err);
    Py_BEGIN_ALLOW_THREADS
    tw_lock_acquire(&store_of(self)->lock);
    st = tw_provider_default()->store_import(
        store_of(self)->store, encodings[kind], view.buf, (size_t)view.len,
        password, &err);
    tw_lock_release(&store_of(self)->lock);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    if (st != TW_DONE) {
        return tw_error_raise(tw_module_of(self), &err);
    }
    return Py_NewRef(Py_None);
}

PyDoc_STRVAR(add_doc,
"add(cert)\n\nAdds a Certificate, with its private key if it has one.");

static PyObject *store_add(PyObject *self, PyObject *arg)
{
    struct tw_module *state = tw_module_of(self);
    struct tw_cert *cert = tw_certificate_get(state, arg, "cert");
    struct tw_error err;
    enum tw_status st;

    if (cert == NULL) {
        return NULL;
    }
    tw_error_clear(&err);
    Py_BEGIN_ALLOW_THREADS
    tw_lock_acquire(&store_of(self)->lock);
    st = tw_provider_default()->store_add(store_of(self)->store, cert,
                                          &err);
    tw_lock_release(&store_of(self)->lock);
    Py_END_ALLOW_THREADS
    if (st != TW_DONE) {
        return tw_error_raise(state, &err);
    }
    return Py_NewRef(Py_None);
}

/* --- looking --- */

static Py_ssize_t store_length(PyObject *self)
{
    size_t count;

    Py_BEGIN_ALLOW_THREADS
    tw_lock_acquire(&store_of(self)->lock);
    count = tw_provider_default()->store_count(store_of(self)->store);
    tw_lock_release(&store_of(self)->lock);
    Py_END_ALLOW_THREADS
    return (Py_ssize_t)count;
}

static PyObject *store_item(PyObject *self, Py_ssize_t index)
{
    struct tw_cert *cert = NULL;

    if (index >= 0) {
        Py_BEGIN_ALLOW_THREADS
        tw_lock_acquire(&store_of(self)->lock);
        cert = tw_provider_default()->store_get(store_of(self)->store,
                                                (size_t)index);
        tw_lock_release(&store_of(self)->lock);
        Py_END_ALLOW_THREADS
    }
    if (cert == NULL) {
        PyErr_SetString(PyExc_IndexError, "no such certificate");
        return NULL;
    }
    return tw_certificate_wrap(tw_module_of(self), cert);
}

PyDoc_STRVAR(export_doc,
"export(kind) -> bytes\n\n"
"Its certificates, public parts only, as \"pem\", \"pkcs7\" or\n"
"\"serialized\".");

static PyObject *store_export(PyObject *self, PyObject *arg)
{
    const char *const *kinds = NAMES("pem", "pkcs7", "serialized");
    static const enum tw_encoding encodings[] = {TW_ENC_PEM, TW_ENC_PKCS7,
                                                 TW_ENC_SERIALIZED};
    PyObject *result = NULL;
    struct tw_items items;
    struct tw_error err;
    enum tw_status st;
    int kind = 0;

    if (tw_arg_word(arg, "kind", kinds, &kind) < 0) {
        return NULL;
    }
    tw_error_clear(&err);
    tw_items_init(&items);
    Py_BEGIN_ALLOW_THREADS
    tw_lock_acquire(&store_of(self)->lock);
    st = tw_provider_default()->store_export(
        store_of(self)->store, encodings[kind], tw_items_sink, &items,
        &err);
    tw_lock_release(&store_of(self)->lock);
    Py_END_ALLOW_THREADS
    if (st != TW_DONE && !items.failed) {
        tw_error_raise(tw_module_of(self), &err);
    } else if (items.count == 0 && !items.failed) {
        result = PyBytes_FromStringAndSize("", 0); /* an empty store */
    } else {
        result = tw_items_first(&items);
    }
    tw_items_free(&items);
    return result;
}

static PyMethodDef store_methods[] = {
    {"open_system", (PyCFunction)(void (*)(void))store_open_system,
     METH_FASTCALL | METH_CLASS, open_system_doc},
    {"import_", (PyCFunction)(void (*)(void))store_import,
     METH_FASTCALL | METH_KEYWORDS, import_doc},
    {"add", store_add, METH_O, add_doc},
    {"export", store_export, METH_O, export_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(store_doc,
"Store()\n\n"
"A set of certificates: len(), indexing and iteration give Certificate.");

static PyType_Slot store_slots[] = {
    {Py_tp_doc, (void *)store_doc},
    {Py_tp_new, (void *)store_tp_new},
    {Py_tp_dealloc, (void *)store_dealloc},
    {Py_tp_methods, store_methods},
    {Py_sq_length, (void *)store_length},
    {Py_sq_item, (void *)store_item},
    {0, NULL},
};

static PyType_Spec store_spec = {
    .name = "twapi_tls._native.Store",
    .basicsize = sizeof(struct tw_py_store),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = store_slots,
};

int tw_store_type(PyObject *module, struct tw_module *state)
{
    return tw_add_type(module, &store_spec, &state->store);
}
