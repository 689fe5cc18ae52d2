/*
 * The function table of this platform's engine, called by hand: buffers
 * are described from Python and described again after the call.
 *
 * A buffer is (type, content): bytes are copied to memory of their own, an
 * int is that much zeroed memory, None is NULL with no size, and for an
 * EMPTY buffer (type, -n) is NULL with the size n. After the call it is
 * (type, size, content), content None where the pointer is NULL or, for
 * EXTRA and MISSING, leads nowhere.
 */
#include "ext.h"

#include <string.h>

#include "sspi/provider.h"

#define BUFFERS_MAX 8

static PyTypeObject *credential_type;
static PyTypeObject *context_type;

struct handle {
    PyObject_HEAD
    SecHandle handle; /* invalid once freed */
    PyObject *keeps;  /* a context's credential; may be NULL */
};

static const SecurityFunctionTableW *table(void)
{
    return tw_provider_default()->table();
}

/* --- buffers --- */

struct memory {
    SecBuffer b[BUFFERS_MAX];
    uint8_t *own[BUFFERS_MAX]; /* what we put behind each; may be NULL */
    size_t own_len[BUFFERS_MAX];
    SecBufferDesc desc;
    bool given; /* false: no descriptor at all */
};

static void memory_free(struct memory *m)
{
    size_t i;

    for (i = 0; i < BUFFERS_MAX; i++) {
        PyMem_Free(m->own[i]);
    }
}

static bool fill_one(struct memory *m, size_t i, PyObject *content)
{
    const char *source = NULL;
    char *bytes;
    Py_ssize_t n;

    if (content == Py_None) {
        return true;
    }
    if (PyBytes_Check(content)) {
        if (PyBytes_AsStringAndSize(content, &bytes, &n) != 0) {
            return false;
        }
        source = bytes;
    } else {
        n = PyLong_AsSsize_t(content);
        if (n == -1 && PyErr_Occurred() != NULL) {
            return false;
        }
        if (n < 0) {
            m->b[i].cbBuffer = (ULONG)-n;
            return true;
        }
    }
    m->own[i] = PyMem_Calloc(1, n > 0 ? (size_t)n : 1);
    if (m->own[i] == NULL) {
        (void)PyErr_NoMemory();
        return false;
    }
    if (source != NULL) {
        memcpy(m->own[i], source, (size_t)n);
    }
    m->own_len[i] = (size_t)n;
    m->b[i].pvBuffer = m->own[i];
    m->b[i].cbBuffer = (ULONG)n;
    return true;
}

/* From a sequence of (type, content), or None. */
static bool memory_from(PyObject *spec, struct memory *m)
{
    Py_ssize_t n;
    Py_ssize_t i;

    memset(m, 0, sizeof(*m));
    m->desc.ulVersion = SECBUFFER_VERSION;
    m->desc.pBuffers = m->b;
    if (spec == NULL || spec == Py_None) {
        return true;
    }
    m->given = true;
    n = PySequence_Size(spec);
    if (n < 0 || n > BUFFERS_MAX) {
        PyErr_SetString(PyExc_ValueError, "too many buffers, or none");
        return false;
    }
    m->desc.cBuffers = (ULONG)n;
    for (i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(spec, i);
        unsigned long type = 0;
        PyObject *content = NULL;
        bool good = item != NULL
                    && PyArg_ParseTuple(item, "kO", &type, &content);

        if (good) {
            m->b[i].BufferType = (ULONG)type;
            good = fill_one(m, (size_t)i, content);
        }
        Py_XDECREF(item);
        if (!good) {
            memory_free(m);
            return false;
        }
    }
    return true;
}

/* Does the buffer's pointer lie where we put memory of its size? */
static bool readable(const struct memory *m, const SecBuffer *b)
{
    const uint8_t *p = b->pvBuffer;
    size_t i;

    for (i = 0; p != NULL && i < BUFFERS_MAX; i++) {
        if (m->own[i] != NULL && p >= m->own[i]
            && p + b->cbBuffer <= m->own[i] + m->own_len[i]) {
            return true;
        }
    }
    return false;
}

/* `allocated`: foreign pointers are the engine's, to be freed. */
static PyObject *memory_after(struct memory *m, bool allocated)
{
    PyObject *list = PyList_New(0);
    ULONG i;

    for (i = 0; list != NULL && i < m->desc.cBuffers; i++) {
        SecBuffer *b = &m->b[i];
        bool ours = readable(m, b);
        bool foreign = allocated && b->pvBuffer != NULL && !ours;
        PyObject *content = ext_bytes(
            ours || foreign ? b->pvBuffer : NULL, b->cbBuffer);
        PyObject *item =
            content == NULL
                ? NULL
                : Py_BuildValue("(kkN)", (unsigned long)b->BufferType,
                                (unsigned long)b->cbBuffer, content);

        if (foreign) {
            (void)table()->FreeContextBuffer(b->pvBuffer);
        }
        if (item == NULL || PyList_Append(list, item) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

/* --- handles --- */

static struct handle *handle_new(PyTypeObject *type)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct handle *self = (struct handle *)alloc(type, 0);

    if (self != NULL) {
        SecInvalidateHandle(&self->handle);
        self->keeps = NULL;
    }
    return self;
}

static void handle_dealloc(PyObject *object)
{
    struct handle *self = (struct handle *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    if (SecIsValidHandle(&self->handle)) {
        if (type == credential_type) {
            (void)table()->FreeCredentialsHandle(&self->handle);
        } else {
            (void)table()->DeleteSecurityContext(&self->handle);
        }
    }
    Py_XDECREF(self->keeps);
    release(object);
    Py_DECREF(type);
}

static bool handle_of(PyObject *arg, PyTypeObject *type, SecHandle **out)
{
    *out = NULL;
    if (arg == NULL || arg == Py_None) {
        return true;
    }
    if (Py_TYPE(arg) != type) {
        PyErr_SetString(PyExc_TypeError, "not the right kind of handle");
        return false;
    }
    *out = &((struct handle *)arg)->handle;
    return true;
}

void *ext_context(PyObject *arg)
{
    if (Py_TYPE(arg) != context_type) {
        PyErr_SetString(PyExc_TypeError, "not a context");
        return NULL;
    }
    return &((struct handle *)arg)->handle;
}

static bool first_with_key(struct tw_store *store, struct tw_cert **out)
{
    const struct tw_provider *p = tw_provider_default();
    size_t i;

    for (i = 0; i < p->store_count(store); i++) {
        struct tw_cert *cert = p->store_get(store, i);

        if (cert != NULL && p->cert_has_key(cert)) {
            *out = cert;
            return true;
        }
        p->cert_free(cert);
    }
    return false;
}

static bool import(const char *data, Py_ssize_t len, struct tw_store **out,
                   struct tw_error *err)
{
    const struct tw_provider *p = tw_provider_default();

    return p->store_new(out, err) == TW_DONE
           && p->store_import(*out, TW_ENC_PEM, (const uint8_t *)data,
                              (size_t)len, NULL, err)
                  == TW_DONE;
}

/* credential(role, pem=None, roots=None, protocols=0, flags=0, ciphers) */
static PyObject *credential(PyObject *module, PyObject *args)
{
    const struct tw_provider *p = tw_provider_default();
    struct tw_credentials_config config;
    struct tw_store *store = NULL;
    struct tw_store *roots = NULL;
    struct tw_cert *cert = NULL;
    struct tw_error err;
    struct handle *self = NULL;
    const char *role;
    const char *pem = NULL;
    const char *roots_pem = NULL;
    const char *ciphers = NULL;
    Py_ssize_t pem_len = 0;
    Py_ssize_t roots_len = 0;
    unsigned long protocols = 0;
    unsigned long flags = 0;
    bool good;

    (void)module;
    if (!PyArg_ParseTuple(args, "s|z#z#kkz:credential", &role, &pem,
                          &pem_len, &roots_pem, &roots_len, &protocols,
                          &flags, &ciphers)) {
        return NULL;
    }
    memset(&config, 0, sizeof(config));
    tw_error_clear(&err);
    config.role = strcmp(role, "server") == 0 ? TW_SERVER : TW_CLIENT;
    config.protocols = (uint32_t)protocols;
    config.flags = (uint32_t)flags;
    config.ciphers = ciphers;
    good = (pem == NULL
            || (import(pem, pem_len, &store, &err)
                && first_with_key(store, &cert)))
           && (roots_pem == NULL
               || import(roots_pem, roots_len, &roots, &err));
    if (good) {
        config.certs = &cert;
        config.cert_count = cert != NULL ? 1 : 0;
        config.chain = store;
        config.roots = roots;
        self = handle_new(credential_type);
        if (self != NULL
            && p->acquire(&config, &self->handle, &err) != TW_DONE) {
            Py_CLEAR(self);
            good = false;
        }
    }
    if (!good && PyErr_Occurred() == NULL) {
        PyErr_Format(PyExc_RuntimeError, "%s (%d)", err.detail,
                     (int)err.code);
    }
    p->cert_free(cert);
    p->store_free(store);
    p->store_free(roots);
    return (PyObject *)self;
}

/* --- steps --- */

/* An ASCII name as UTF-16; Python strings stay short here. */
static SEC_WCHAR *widen(const char *name, SEC_WCHAR *room, size_t n)
{
    size_t i;

    if (name == NULL) {
        return NULL;
    }
    for (i = 0; name[i] != '\0' && i + 1 < n; i++) {
        room[i] = (SEC_WCHAR)(unsigned char)name[i];
    }
    room[i] = 0;
    return room;
}

/*
 * step(server, credential, context, target, flags, inputs, outputs) ->
 * (status, context, attributes, inputs, outputs). context: the given one,
 * a new one if a handle was written, or None.
 */
static PyObject *step(PyObject *module, PyObject *args)
{
    int server;
    PyObject *cred_arg;
    PyObject *ctx_arg;
    PyObject *in_arg;
    PyObject *out_arg;
    const char *target;
    unsigned long flags;
    SEC_WCHAR wide[256];
    struct memory in;
    struct memory out;
    SecHandle *cred;
    SecHandle *ctx;
    SecHandle fresh;
    ULONG attributes = 0;
    SECURITY_STATUS status;
    int64_t expiry = 0;
    void *when = &expiry;
    PyObject *after;
    PyObject *given;

    (void)module;
    if (!PyArg_ParseTuple(args, "pOOzkOO:step", &server, &cred_arg, &ctx_arg,
                          &target, &flags, &in_arg, &out_arg)
        || !handle_of(cred_arg, credential_type, &cred)
        || !handle_of(ctx_arg, context_type, &ctx)
        || !memory_from(in_arg, &in)) {
        return NULL;
    }
    if (!memory_from(out_arg, &out)) {
        memory_free(&in);
        return NULL;
    }
    SecInvalidateHandle(&fresh);
    if (server) {
        status = table()->AcceptSecurityContext(
            cred, ctx, in.given ? &in.desc : NULL, (ULONG)flags,
            SECURITY_NATIVE_DREP, ctx != NULL ? ctx : &fresh,
            out.given ? &out.desc : NULL, &attributes, when);
    } else {
        status = table()->InitializeSecurityContextW(
            cred, ctx, widen(target, wide, 256), (ULONG)flags, 0,
            SECURITY_NATIVE_DREP, in.given ? &in.desc : NULL, 0,
            ctx != NULL ? ctx : &fresh, out.given ? &out.desc : NULL,
            &attributes, when);
    }
    if (ctx == NULL && SecIsValidHandle(&fresh)) {
        struct handle *made = handle_new(context_type);

        if (made != NULL) {
            made->handle = fresh;
            made->keeps = Py_NewRef(cred_arg);
        }
        ctx_arg = (PyObject *)made;
    } else {
        Py_INCREF(ctx_arg);
    }
    after = memory_after(&in, false);
    given = memory_after(&out, true);
    memory_free(&in);
    memory_free(&out);
    if (ctx_arg == NULL || after == NULL || given == NULL) {
        Py_XDECREF(ctx_arg);
        Py_XDECREF(after);
        Py_XDECREF(given);
        return NULL;
    }
    return Py_BuildValue("(iNkNN)", (int)status, ctx_arg,
                         (unsigned long)attributes, after, given);
}

/* --- records --- */

/* encrypt(context, buffers, qop=0) -> (status, buffers). What HEADER, DATA
   and TRAILER hold lies in one piece, in the order given. */
static PyObject *encrypt(PyObject *module, PyObject *args)
{
    PyObject *ctx_arg;
    PyObject *spec;
    unsigned long qop = 0;
    struct memory m;
    SecHandle *ctx;
    SECURITY_STATUS status;
    PyObject *after;
    uint8_t *all;
    size_t total = 0;
    size_t i;

    (void)module;
    if (!PyArg_ParseTuple(args, "OO|k:encrypt", &ctx_arg, &spec, &qop)
        || !handle_of(ctx_arg, context_type, &ctx)
        || !memory_from(spec, &m)) {
        return NULL;
    }
    for (i = 0; i < BUFFERS_MAX; i++) {
        total += m.own_len[i];
    }
    all = PyMem_Calloc(1, total + 1);
    if (all == NULL) {
        memory_free(&m);
        return PyErr_NoMemory();
    }
    total = 0;
    for (i = 0; i < BUFFERS_MAX; i++) {
        if (m.own[i] != NULL) {
            memcpy(all + total, m.own[i], m.own_len[i]);
            m.b[i].pvBuffer = all + total;
            total += m.own_len[i];
        }
    }
    memory_free(&m);
    memset(m.own, 0, sizeof(m.own));
    m.own[0] = all;
    m.own_len[0] = total;
    status = table()->EncryptMessage(ctx, (ULONG)qop, &m.desc, 0);
    after = memory_after(&m, false);
    memory_free(&m);
    return after == NULL ? NULL : Py_BuildValue("(iN)", (int)status, after);
}

/* decrypt(context, buffers) -> (status, buffers, memory of buffer 0) */
static PyObject *decrypt(PyObject *module, PyObject *args)
{
    PyObject *ctx_arg;
    PyObject *spec;
    struct memory m;
    SecHandle *ctx;
    SECURITY_STATUS status;
    PyObject *after;
    PyObject *whole;
    ULONG qop = 7;

    (void)module;
    if (!PyArg_ParseTuple(args, "OO:decrypt", &ctx_arg, &spec)
        || !handle_of(ctx_arg, context_type, &ctx)
        || !memory_from(spec, &m)) {
        return NULL;
    }
    status = table()->DecryptMessage(ctx, m.given ? &m.desc : NULL, 0, &qop);
    after = memory_after(&m, false);
    whole = ext_bytes(m.own[0], m.own_len[0]);
    memory_free(&m);
    if (after == NULL || whole == NULL) {
        Py_XDECREF(after);
        Py_XDECREF(whole);
        return NULL;
    }
    return Py_BuildValue("(iNN)", (int)status, after, whole);
}

/* seal(context, data) -> (status, records): the engine's own way for many
   records; NotImplementedError where it has none. */
static PyObject *seal(PyObject *module, PyObject *args)
{
    const struct tw_provider *p = tw_provider_default();
    PyObject *ctx_arg, *answer;
    const char *data;
    Py_ssize_t len;
    SecHandle *ctx;
    SECURITY_STATUS status;
    size_t room, taken, made;
    uint8_t *out;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oy#:seal", &ctx_arg, &data, &len)
        || !handle_of(ctx_arg, context_type, &ctx)) {
        return NULL;
    }
    if (p->seal == NULL) {
        PyErr_SetString(PyExc_NotImplementedError, "EncryptMessage only");
        return NULL;
    }
    room = (size_t)len + (size_t)len / 16384 * 64 + 256;
    out = PyMem_Malloc(room);
    if (out == NULL) {
        return PyErr_NoMemory();
    }
    status = p->seal(ctx, (const uint8_t *)data, (size_t)len, out, room,
                     &taken, &made);
    answer = Py_BuildValue("(iy#)", (int)status, (char *)out,
                           (Py_ssize_t)made);
    PyMem_Free(out);
    return answer;
}

/* --- the rest --- */

/* control(context, token) -> status */
static PyObject *control(PyObject *module, PyObject *args)
{
    PyObject *ctx_arg;
    PyObject *spec;
    struct memory m;
    SecHandle *ctx;
    SECURITY_STATUS status;

    (void)module;
    if (!PyArg_ParseTuple(args, "OO:control", &ctx_arg, &spec)
        || !handle_of(ctx_arg, context_type, &ctx)
        || !memory_from(spec, &m)) {
        return NULL;
    }
    status = table()->ApplyControlToken(ctx, m.given ? &m.desc : NULL);
    memory_free(&m);
    return PyLong_FromLong(status);
}

/* query(context, attribute) -> (status, structure of at most 1024 bytes) */
static PyObject *query(PyObject *module, PyObject *args)
{
    PyObject *ctx_arg;
    unsigned long attribute;
    SecHandle *ctx;
    SECURITY_STATUS status;
    union {
        uint8_t bytes[1024];
        void *aligned;
    } out;

    (void)module;
    if (!PyArg_ParseTuple(args, "Ok:query", &ctx_arg, &attribute)
        || !handle_of(ctx_arg, context_type, &ctx)) {
        return NULL;
    }
    memset(&out, 0, sizeof(out));
    status =
        table()->QueryContextAttributesW(ctx, (ULONG)attribute, &out);
    return Py_BuildValue("(iy#)", (int)status, (char *)out.bytes,
                         (Py_ssize_t)sizeof(out));
}

/* remove(handle) -> status: DeleteSecurityContext, FreeCredentialsHandle */
static PyObject *remove_handle(PyObject *module, PyObject *arg)
{
    SecHandle *h;
    SECURITY_STATUS status;

    (void)module;
    if (Py_TYPE(arg) == credential_type) {
        h = &((struct handle *)arg)->handle;
        status = table()->FreeCredentialsHandle(h);
    } else {
        if (!handle_of(arg, context_type, &h)) {
            return NULL;
        }
        status = table()->DeleteSecurityContext(h);
    }
    if (status == SEC_E_OK) {
        SecInvalidateHandle(h);
    }
    return PyLong_FromLong(status);
}

/* verdict(context, code) -> (status, alert) */
static PyObject *verdict(PyObject *module, PyObject *args)
{
    PyObject *ctx_arg;
    int code;
    SecHandle *ctx;
    uint8_t alert[512];
    size_t len = sizeof(alert);
    SECURITY_STATUS status;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oi:verdict", &ctx_arg, &code)
        || !handle_of(ctx_arg, context_type, &ctx)) {
        return NULL;
    }
    status = tw_provider_default()->verdict(ctx, (SECURITY_STATUS)code,
                                            alert, &len);
    return Py_BuildValue("(iy#)", (int)status, (char *)alert,
                         (Py_ssize_t)len);
}

/* remote_cert(context) -> (status, code, DER or None) */
static PyObject *remote_cert(PyObject *module, PyObject *arg)
{
    const struct tw_provider *p = tw_provider_default();
    struct tw_cert *cert = NULL;
    struct tw_error err;
    SecHandle *ctx;
    const uint8_t *der = NULL;
    size_t len = 0;
    enum tw_status st;
    PyObject *answer;

    (void)module;
    if (!handle_of(arg, context_type, &ctx)) {
        return NULL;
    }
    tw_error_clear(&err);
    st = p->remote_cert(ctx, &cert, &err);
    if (cert != NULL) {
        p->cert_der(cert, &der, &len);
    }
    answer = Py_BuildValue("(iiz#)", (int)st, (int)err.code, NULL,
                           (Py_ssize_t)0);
    if (answer != NULL && der != NULL) {
        Py_DECREF(answer);
        answer = Py_BuildValue("(iiy#)", (int)st, (int)err.code,
                               (const char *)der, (Py_ssize_t)len);
    }
    p->cert_free(cert);
    return answer;
}

static PyObject *alert_received(PyObject *module, PyObject *arg)
{
    SecHandle *ctx;

    (void)module;
    if (!handle_of(arg, context_type, &ctx)) {
        return NULL;
    }
    return PyLong_FromLong(tw_provider_default()->alert_received(ctx));
}

static PyObject *binding(PyObject *module, PyObject *args)
{
    PyObject *ctx_arg;
    SecHandle *ctx;
    int kind;
    struct tw_error err;
    uint8_t out[256];
    size_t len = sizeof(out);
    enum tw_status st;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oi:binding", &ctx_arg, &kind)
        || !handle_of(ctx_arg, context_type, &ctx)) {
        return NULL;
    }
    tw_error_clear(&err);
    st = tw_provider_default()->binding(ctx, (enum tw_binding)kind, NULL,
                                        NULL, 0, out, &len, &err);
    return Py_BuildValue("(iy#)", (int)st, (char *)out,
                         st == TW_DONE ? (Py_ssize_t)len : 0);
}

static PyObject *engine_name(PyObject *module, PyObject *ignored)
{
    const struct tw_provider *p = tw_provider_default();

    (void)module;
    (void)ignored;
    return Py_BuildValue("(sk)", p->name, (unsigned long)p->caps);
}

static PyType_Slot credential_slots[] = {
    {Py_tp_dealloc, (void *)handle_dealloc},
    {0, NULL},
};

static PyType_Spec credential_spec = {
    .name = "_testnative.Credential",
    .basicsize = sizeof(struct handle),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = credential_slots,
};

static PyType_Spec context_spec = {
    .name = "_testnative.Context",
    .basicsize = sizeof(struct handle),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = credential_slots,
};

static PyMethodDef functions[] = {
    {"engine", engine_name, METH_NOARGS, NULL},
    {"credential", credential, METH_VARARGS, NULL},
    {"step", step, METH_VARARGS, NULL},
    {"encrypt", encrypt, METH_VARARGS, NULL},
    {"decrypt", decrypt, METH_VARARGS, NULL},
    {"seal", seal, METH_VARARGS, NULL},
    {"control", control, METH_VARARGS, NULL},
    {"query", query, METH_VARARGS, NULL},
    {"remove", remove_handle, METH_O, NULL},
    {"verdict", verdict, METH_VARARGS, NULL},
    {"remote_cert", remote_cert, METH_O, NULL},
    {"alert_received", alert_received, METH_O, NULL},
    {"binding", binding, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int ext_add_raw(PyObject *module)
{
    credential_type = ext_add_type(module, &credential_spec, "Credential");
    context_type = ext_add_type(module, &context_spec, "Context");
    return credential_type == NULL || context_type == NULL
               ? -1
               : PyModule_AddFunctions(module, functions);
}
