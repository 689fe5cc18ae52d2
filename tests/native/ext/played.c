/*
 * tw_credentials and tw_session over the scripted table, call by call.
 *
 * Every call answers with its status; nothing raises for an error of TLS.
 * The error that the call gave is in `last`, the one that stands in
 * `error`.
 */
#include "ext.h"

#include <string.h>

#include "core/credentials.h"
#include "core/session.h"
#include "sspi/scripted.h"

static PyTypeObject *script_type;
static PyTypeObject *credentials_type;

static const char *const slot_names[TW_SLOT_COUNT] = {
    "step", "encrypt", "decrypt", "control", "query", "set",
    "acquire", "verdict", "seal", "open", "forbid", "delete",
};

struct script {
    PyObject_HEAD
    struct tw_script *script;
};

struct credentials {
    PyObject_HEAD
    struct tw_credentials *credentials;
    PyObject *keeps; /* the script */
};

struct session {
    PyObject_HEAD
    struct tw_session *session;
    struct tw_error last;
    uint8_t *lent; /* by reserve */
    PyObject *keeps;
};

static void *make(PyTypeObject *type)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);

    return alloc(type, 0);
}

static void release(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc give_back = (freefunc)PyType_GetSlot(type, Py_tp_free);

    give_back(self);
    Py_DECREF(type);
}

/* --- Script --- */

static PyObject *script_new(PyTypeObject *type, PyObject *args,
                            PyObject *kwargs)
{
    struct script *self = make(type);

    (void)args;
    (void)kwargs;
    if (self != NULL) {
        self->script = tw_script_new();
        tw_script_use(self->script);
    }
    return (PyObject *)self;
}

static void script_dealloc(PyObject *self)
{
    tw_script_free(((struct script *)self)->script);
    release(self);
}

static bool slot_from(const char *name, enum tw_slot *out)
{
    int i;

    for (i = 0; i < TW_SLOT_COUNT; i++) {
        if (strcmp(slot_names[i], name) == 0) {
            *out = (enum tw_slot)i;
            return true;
        }
    }
    PyErr_Format(PyExc_ValueError, "no such call: %s", name);
    return false;
}

/* parts: a sequence of (type, offset or -1, length) */
static bool parts_from(PyObject *arg, struct tw_script_entry *e)
{
    Py_ssize_t n = arg == NULL || arg == Py_None ? 0 : PySequence_Size(arg);
    Py_ssize_t i;

    if (n < 0 || n > 4) {
        PyErr_SetString(PyExc_ValueError, "at most four parts");
        return false;
    }
    for (i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(arg, i);
        unsigned long type;
        long long at;
        Py_ssize_t len;
        bool good = item != NULL
                    && PyArg_ParseTuple(item, "kLn", &type, &at, &len);

        Py_XDECREF(item);
        if (!good) {
            return false;
        }
        e->parts[i].type = (ULONG)type;
        e->parts[i].at = at;
        e->parts[i].len = (size_t)len;
    }
    e->part_count = (size_t)n;
    return true;
}

/* remote: False unknown, None none, bytes a certificate; absent: as is */
static bool remote_from(PyObject *arg, struct tw_script_entry *e)
{
    char *data;
    Py_ssize_t len;

    if (arg == NULL) {
        return true;
    }
    e->set |= TW_WORLD_REMOTE;
    if (arg == Py_None) {
        e->remote = TW_REMOTE_NONE;
    } else if (arg == Py_False) {
        e->remote = TW_REMOTE_UNKNOWN;
    } else {
        if (PyBytes_AsStringAndSize(arg, &data, &len) != 0) {
            return false;
        }
        e->remote = TW_REMOTE_CERT;
        e->remote_der = (const uint8_t *)data;
        e->remote_len = (size_t)len;
    }
    return true;
}

static bool sizes_from(PyObject *arg, struct tw_script_entry *e)
{
    unsigned long header;
    unsigned long trailer;
    unsigned long maximum;
    unsigned long block = 1;

    if (arg == NULL || arg == Py_None) {
        return true;
    }
    if (!PyArg_ParseTuple(arg, "kkk|k", &header, &trailer, &maximum,
                          &block)) {
        return false;
    }
    e->set |= TW_WORLD_SIZES;
    e->sizes.cbHeader = (ULONG)header;
    e->sizes.cbTrailer = (ULONG)trailer;
    e->sizes.cbMaximumMessage = (ULONG)maximum;
    e->sizes.cBuffers = 4;
    e->sizes.cbBlockSize = (ULONG)block;
    return true;
}

static PyObject *script_add(PyObject *self, PyObject *args,
                            PyObject *kwargs)
{
    static char *names[] = {
        "slot",       "status",      "context", "flags_set",
        "flags_clear", "attribute",  "input",   "no_input",
        "token",      "alert",       "extra",   "missing",
        "attributes", "no_handle",   "data",    "parts",
        "header",     "trailer",     "remote",  "alert_received",
        "sizes",      "protocol",    "stray_handle", NULL};
    struct tw_script_entry e;
    const char *slot_name;
    const char *input = NULL;
    const char *token = NULL;
    const char *alert = NULL;
    const char *data = NULL;
    Py_ssize_t input_len = 0;
    Py_ssize_t token_len = 0;
    Py_ssize_t alert_len = 0;
    Py_ssize_t data_len = 0;
    unsigned long flags_set = 0;
    unsigned long flags_clear = 0;
    long long attribute = -1;
    long long extra = -1;
    long long missing = -1;
    long long attributes = -1;
    long long header = -1;
    long long trailer = -1;
    PyObject *parts = NULL;
    PyObject *remote = NULL;
    PyObject *sizes = NULL;
    int status = 0;
    int context = -1;
    int no_input = 0;
    int no_handle = 0;
    int stray_handle = 0;
    int alert_received = -2;
    int protocol = -1;
    enum tw_slot slot;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "s|iikkLz#pz#z#LLLpz#OLLOiOip:add", names,
            &slot_name, &status, &context, &flags_set, &flags_clear,
            &attribute, &input, &input_len, &no_input, &token, &token_len,
            &alert, &alert_len, &extra, &missing, &attributes, &no_handle,
            &data, &data_len, &parts, &header, &trailer, &remote,
            &alert_received, &sizes, &protocol, &stray_handle)
        || !slot_from(slot_name, &slot)) {
        return NULL;
    }
    tw_script_entry_init(&e, slot);
    e.status = (SECURITY_STATUS)status;
    e.has_context = context;
    e.flags_set = (ULONG)flags_set;
    e.flags_clear = (ULONG)flags_clear;
    e.attribute = attribute;
    e.input = (const uint8_t *)input;
    e.input_len = (size_t)input_len;
    e.no_input = no_input;
    e.token = (const uint8_t *)token;
    e.token_len = (size_t)token_len;
    e.alert = (const uint8_t *)alert;
    e.alert_len = (size_t)alert_len;
    e.extra = extra;
    e.missing = missing;
    e.attributes = attributes;
    e.no_handle = no_handle != 0;
    e.stray_handle = stray_handle != 0;
    e.data = (const uint8_t *)data;
    e.data_len = (size_t)data_len;
    e.header = header;
    e.trailer = trailer;
    if (!parts_from(parts, &e) || !remote_from(remote, &e)
        || !sizes_from(sizes, &e)) {
        return NULL;
    }
    if (alert_received != -2) {
        e.set |= TW_WORLD_ALERT;
        e.alert_received = alert_received;
    }
    if (protocol != -1) {
        e.set |= TW_WORLD_PROTOCOL;
        e.protocol = (uint32_t)protocol;
    }
    (void)tw_script_add(((struct script *)self)->script, &e);
    Py_RETURN_NONE;
}

/* [(slot, status, has_context, flags, types or None, input or None)] */
static PyObject *script_log(PyObject *self, PyObject *ignored)
{
    const struct tw_script *s = ((struct script *)self)->script;
    PyObject *list = PyList_New(0);
    size_t i;
    ULONG k;

    (void)ignored;
    for (i = 0; list != NULL && i < tw_script_log_length(s); i++) {
        const struct tw_script_call *c = tw_script_log(s, i);
        PyObject *types = PyList_New(0);
        PyObject *item = NULL;

        for (k = 0; types != NULL && k < c->buffers && k < 4; k++) {
            PyObject *one = PyLong_FromUnsignedLong(c->types[k]);

            if (one == NULL || PyList_Append(types, one) != 0) {
                Py_CLEAR(types);
            }
            Py_XDECREF(one);
        }
        if (types != NULL) {
            item = Py_BuildValue("(siikNN)", slot_names[c->slot],
                                 (int)c->status, c->has_context,
                                 (unsigned long)c->flags, types,
                                 ext_bytes(c->input, c->input_len));
        }
        if (item == NULL || PyList_Append(list, item) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *script_problem(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    return PyUnicode_FromString(
        tw_script_problem(((struct script *)self)->script));
}

static PyObject *script_left(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    return PyLong_FromSize_t(
        tw_script_left(((struct script *)self)->script));
}

static PyObject *script_alive(PyObject *self, PyObject *ignored)
{
    struct tw_script_alive n;

    (void)ignored;
    tw_script_count(((struct script *)self)->script, &n);
    return Py_BuildValue("(llll)", n.credentials, n.contexts, n.certs,
                         n.buffers);
}

/* use(False): the provider has no function table from now on */
static PyObject *script_use(PyObject *self, PyObject *arg)
{
    tw_script_use(PyObject_IsTrue(arg) == 1
                      ? ((struct script *)self)->script
                      : NULL);
    Py_RETURN_NONE;
}

static PyMethodDef script_methods[] = {
    {"add", (PyCFunction)(void (*)(void))script_add,
     METH_VARARGS | METH_KEYWORDS, NULL},
    {"log", script_log, METH_NOARGS, NULL},
    {"problem", script_problem, METH_NOARGS, NULL},
    {"left", script_left, METH_NOARGS, NULL},
    {"alive", script_alive, METH_NOARGS, NULL},
    {"use", script_use, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot script_slots[] = {
    {Py_tp_new, (void *)script_new},
    {Py_tp_dealloc, (void *)script_dealloc},
    {Py_tp_methods, (void *)script_methods},
    {0, NULL},
};

static PyType_Spec script_spec = {
    .name = "_testnative.Script",
    .basicsize = sizeof(struct script),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = script_slots,
};

/* --- errors --- */

static PyObject *error_dict(const struct tw_error *e)
{
    return Py_BuildValue("{s:i,s:i,s:i,s:i,s:i,s:s}", "status",
                         (int)e->status, "code", (int)e->code, "os", e->os,
                         "alert_sent", (int)e->alert_sent, "alert_received",
                         (int)e->alert_received, "detail", e->detail);
}

/* --- Credentials: (script, role, certs) --- */

static PyObject *credentials_new(PyTypeObject *type, PyObject *args,
                                 PyObject *kwargs)
{
    static char *names[] = {"script",   "role",     "certs",    "store",
                            "flags",    "protocols", "min_bits", "max_bits",
                            "ciphers",  "lifespan",  "window", NULL};
    struct tw_credentials_config config;
    struct tw_cert *certs[8];
    struct tw_store *store = NULL;
    struct credentials *self = NULL;
    struct tw_error err;
    PyObject *script;
    PyObject *list = NULL;
    int role;
    int with_store = 0; /* 1: the chain, 2: the roots */
    unsigned long flags = 0; /* TW_CRED_... */
    unsigned long protocols = 0; /* TW_TLS1_... */
    Py_ssize_t window = 0; /* HWND */
    Py_ssize_t n = 0;
    Py_ssize_t i;

    memset(&config, 0, sizeof(config));
    tw_error_clear(&err);
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!i|Oikkiizin", names, script_type, &script,
            &role, &list, &with_store, &flags, &protocols, &config.min_bits,
            &config.max_bits, &config.ciphers, &config.session_lifespan,
            &window)) {
        return NULL;
    }
    config.window = (void *)window;
    n = list == NULL ? 0 : PySequence_Size(list);
    for (i = 0; i < n && i < 8; i++) {
        PyObject *item = PySequence_GetItem(list, i);

        certs[i] = NULL;
        if (item != NULL && item != Py_None) {
            char *data;
            Py_ssize_t len;

            if (PyBytes_AsStringAndSize(item, &data, &len) == 0) {
                certs[i] = ext_engine.cert_new(
                    ((struct script *)script)->script,
                    (const uint8_t *)data, (size_t)len);
                if (certs[i] == NULL) {
                    (void)tw_error_set(&err, TW_E_NOMEM, 0, NULL);
                }
            }
        }
        Py_XDECREF(item);
    }
    n = i;
    config.role = (enum tw_role)role;
    config.flags = (uint32_t)flags;
    config.protocols = (uint32_t)protocols;
    config.certs = certs;
    config.cert_count = (size_t)n;
    if (with_store != 0) {
        (void)ext_engine.provider->store_new(&store, &err);
        config.chain = (with_store & 1) != 0 ? store : NULL;
        config.roots = (with_store & 2) != 0 ? store : NULL;
    }
    self = make(type);
    if (self != NULL) {
        if (err.status == TW_DONE) {
            self->credentials =
                tw_credentials_new(ext_engine.provider, &config, &err);
        }
        self->keeps = Py_NewRef(script);
        if (self->credentials == NULL) {
            PyObject *why = error_dict(&err);

            Py_CLEAR(self);
            PyErr_SetObject(PyExc_RuntimeError, why);
            Py_XDECREF(why);
        }
    }
    for (i = 0; i < n; i++) {
        ext_engine.provider->cert_free(certs[i]);
    }
    ext_engine.provider->store_free(store);
    return (PyObject *)self;
}

static void credentials_dealloc(PyObject *self)
{
    tw_credentials_free(((struct credentials *)self)->credentials);
    Py_XDECREF(((struct credentials *)self)->keeps);
    release(self);
}

/* Which handle answers for a host: its index, -1 for none. */
static PyObject *credentials_handle(PyObject *self, PyObject *args)
{
    struct tw_credentials *c = ((struct credentials *)self)->credentials;
    const char *host;
    CredHandle *first = tw_credentials_handle(c, NULL);
    CredHandle *found;

    if (!PyArg_ParseTuple(args, "z:handle", &host)) {
        return NULL;
    }
    found = tw_credentials_handle(c, host);
    return PyLong_FromLong(found == NULL ? -1 : (long)(found - first));
}

static PyMethodDef credentials_methods[] = {
    {"handle", credentials_handle, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot credentials_slots[] = {
    {Py_tp_new, (void *)credentials_new},
    {Py_tp_dealloc, (void *)credentials_dealloc},
    {Py_tp_methods, (void *)credentials_methods},
    {0, NULL},
};

static PyType_Spec credentials_spec = {
    .name = "_testnative.Credentials",
    .basicsize = sizeof(struct credentials),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = credentials_slots,
};

/* --- Session --- */

static PyObject *session_new(PyTypeObject *type, PyObject *args,
                             PyObject *kwargs)
{
    static char *names[] = {
        "script", "role", "credentials", "target", "alpn", "request_cert",
        "ask_verdict", "ask_credentials", "ask_certificate", "ragged_eof",
        NULL};
    struct tw_session_config config;
    struct session *self;
    struct tw_error err;
    PyObject *script;
    PyObject *cred;
    const char *alpn = NULL;
    Py_ssize_t alpn_len = 0;
    Py_ssize_t target_len = 0; /* bytes may be no UTF-8 */
    int role;
    int request_cert = 0;
    int ask_verdict = 0;
    int ask_credentials = 0;
    int ask_certificate = 0;
    int ragged_eof = 0;

    memset(&config, 0, sizeof(config));
    tw_error_clear(&err);
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!iO|z#z#ppppp", names, script_type, &script,
            &role, &cred, &config.target, &target_len, &alpn, &alpn_len,
            &request_cert, &ask_verdict, &ask_credentials, &ask_certificate,
            &ragged_eof)) {
        return NULL;
    }
    if (cred != Py_None && Py_TYPE(cred) != credentials_type) {
        PyErr_SetString(PyExc_TypeError, "credentials");
        return NULL;
    }
    config.role = (enum tw_role)role;
    config.credentials =
        cred == Py_None ? NULL : ((struct credentials *)cred)->credentials;
    config.alpn = (const uint8_t *)alpn;
    config.alpn_len = (size_t)alpn_len;
    config.request_cert = request_cert != 0;
    config.ask_verdict = ask_verdict != 0;
    config.ask_credentials = ask_credentials != 0;
    config.ask_certificate = ask_certificate != 0;
    config.ragged_eof = ragged_eof != 0;
    self = make(type);
    if (self == NULL) {
        return NULL;
    }
    self->keeps = Py_NewRef(script);
    tw_error_clear(&self->last);
    self->session = tw_session_new(ext_engine.provider, &config, &err);
    if (self->session == NULL) {
        PyObject *why = error_dict(&err);

        PyErr_SetObject(PyExc_RuntimeError, why);
        Py_XDECREF(why);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void session_dealloc(PyObject *self)
{
    tw_session_free(((struct session *)self)->session);
    Py_XDECREF(((struct session *)self)->keeps);
    release(self);
}

static struct tw_session *of(PyObject *self, struct tw_error **err)
{
    struct session *s = (struct session *)self;

    if (err != NULL) {
        tw_error_clear(&s->last);
        *err = &s->last;
    }
    return s->session;
}

static PyObject *session_handshake(PyObject *self, PyObject *ignored)
{
    struct tw_error *err;
    struct tw_session *s = of(self, &err);

    (void)ignored;
    return PyLong_FromLong(tw_session_handshake(s, err));
}

static PyObject *session_feed(PyObject *self, PyObject *arg)
{
    char *data;
    Py_ssize_t len;

    if (PyBytes_AsStringAndSize(arg, &data, &len) != 0) {
        return NULL;
    }
    return PyLong_FromLong(tw_session_input(
        of(self, NULL), (const uint8_t *)data, (size_t)len));
}

/* reserve(n) -> (status, room): the input's memory is lent out */
static PyObject *session_reserve(PyObject *self, PyObject *arg)
{
    Py_ssize_t n = PyLong_AsSsize_t(arg);
    size_t room = 0;
    enum tw_status st;

    if (n == -1 && PyErr_Occurred() != NULL) {
        return NULL;
    }
    st = tw_session_input_reserve(of(self, NULL), (size_t)n,
                                  &((struct session *)self)->lent, &room);
    return Py_BuildValue("(in)", (int)st, (Py_ssize_t)room);
}

/* commit(data): fills what was lent, gives it back */
static PyObject *session_commit(PyObject *self, PyObject *arg)
{
    char *data;
    Py_ssize_t len;

    if (PyBytes_AsStringAndSize(arg, &data, &len) != 0) {
        return NULL;
    }
    memcpy(((struct session *)self)->lent, data, (size_t)len);
    tw_session_input_commit(of(self, NULL), (size_t)len);
    Py_RETURN_NONE;
}

static PyObject *session_feed_eof(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    tw_session_input_eof(of(self, NULL));
    Py_RETURN_NONE;
}

/* output() -> bytes: lent out until consume(n) */
static PyObject *session_output(PyObject *self, PyObject *ignored)
{
    const uint8_t *ptr = NULL;
    size_t n = tw_session_output(of(self, NULL), &ptr);

    (void)ignored;
    return PyBytes_FromStringAndSize((const char *)ptr, (Py_ssize_t)n);
}

static PyObject *session_consume(PyObject *self, PyObject *arg)
{
    Py_ssize_t n = PyLong_AsSsize_t(arg);

    if (n == -1 && PyErr_Occurred() != NULL) {
        return NULL;
    }
    tw_session_output_consume(of(self, NULL), (size_t)n);
    Py_RETURN_NONE;
}

static PyObject *session_take_input(PyObject *self, PyObject *arg)
{
    Py_ssize_t cap = PyLong_AsSsize_t(arg);
    PyObject *answer;
    uint8_t *room;
    size_t n;

    if (cap == -1 && PyErr_Occurred() != NULL) {
        return NULL;
    }
    room = PyMem_Malloc((size_t)cap + 1);
    if (room == NULL) {
        return PyErr_NoMemory();
    }
    n = tw_session_input_take(of(self, NULL), room, (size_t)cap);
    answer = PyBytes_FromStringAndSize((char *)room, (Py_ssize_t)n);
    PyMem_Free(room);
    return answer;
}

static PyObject *session_read(PyObject *self, PyObject *arg)
{
    Py_ssize_t cap = PyLong_AsSsize_t(arg);
    struct tw_error *err;
    struct tw_session *s;
    PyObject *answer;
    uint8_t *room;
    size_t n = 0;
    enum tw_status st;

    if (cap == -1 && PyErr_Occurred() != NULL) {
        return NULL;
    }
    room = PyMem_Malloc((size_t)cap + 1);
    if (room == NULL) {
        return PyErr_NoMemory();
    }
    s = of(self, &err);
    st = tw_session_read(s, room, (size_t)cap, &n, err);
    answer = Py_BuildValue("(iy#)", (int)st, (char *)room, (Py_ssize_t)n);
    PyMem_Free(room);
    return answer;
}

static PyObject *session_write(PyObject *self, PyObject *arg)
{
    struct tw_error *err;
    struct tw_session *s;
    char *data;
    Py_ssize_t len;
    size_t n = 0;
    enum tw_status st;

    if (PyBytes_AsStringAndSize(arg, &data, &len) != 0) {
        return NULL;
    }
    s = of(self, &err);
    st = tw_session_write(s, (const uint8_t *)data, (size_t)len, &n, err);
    return Py_BuildValue("(in)", (int)st, (Py_ssize_t)n);
}

/* convert(open, data, room) -> (status, taken, bytes): tw_session_open or
   tw_session_seal */
static PyObject *session_convert(PyObject *self, PyObject *args)
{
    struct tw_error *err;
    struct tw_session *s;
    const char *data;
    Py_ssize_t len;
    Py_ssize_t room;
    uint8_t *dst;
    size_t taken = 0;
    size_t made = 0;
    enum tw_status st;
    PyObject *answer;
    int opens;

    if (!PyArg_ParseTuple(args, "py#n:convert", &opens, &data, &len,
                          &room)) {
        return NULL;
    }
    dst = PyMem_Malloc((size_t)room + 1);
    if (dst == NULL) {
        return PyErr_NoMemory();
    }
    s = of(self, &err);
    st = opens ? tw_session_open(s, (const uint8_t *)data, (size_t)len, dst,
                                 (size_t)room, &taken, &made, err)
               : tw_session_seal(s, (const uint8_t *)data, (size_t)len, dst,
                                 (size_t)room, &taken, &made, err);
    answer = Py_BuildValue("(iny#)", (int)st, (Py_ssize_t)taken,
                           (char *)dst, (Py_ssize_t)made);
    PyMem_Free(dst);
    return answer;
}

/* sizes(n, data) -> (sealed size of n bytes, content size of data, whether
   the first is exact, what a caller needs room for) */
static PyObject *session_sizes(PyObject *self, PyObject *args)
{
    Py_ssize_t n;
    const char *data;
    Py_ssize_t len;

    if (!PyArg_ParseTuple(args, "ny#:sizes", &n, &data, &len)) {
        return NULL;
    }
    return Py_BuildValue(
        "(nnOn)",
        (Py_ssize_t)tw_session_sealed_size(of(self, NULL), (size_t)n),
        (Py_ssize_t)tw_session_content_size(
            of(self, NULL), (const uint8_t *)data, (size_t)len),
        tw_session_sealed_exactly(of(self, NULL)) ? Py_True : Py_False,
        (Py_ssize_t)tw_session_sealed_bound(of(self, NULL), (size_t)n));
}

static PyObject *session_ragged(PyObject *self, PyObject *arg)
{
    tw_session_set_ragged_eof(of(self, NULL), PyObject_IsTrue(arg) == 1);
    Py_RETURN_NONE;
}

static PyObject *session_shutdown(PyObject *self, PyObject *ignored)
{
    struct tw_error *err;
    struct tw_session *s = of(self, &err);

    (void)ignored;
    return PyLong_FromLong(tw_session_shutdown(s, err));
}

static PyObject *session_abort(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    tw_session_abort(of(self, NULL));
    Py_RETURN_NONE;
}

static PyObject *session_verdict(PyObject *self, PyObject *args)
{
    struct tw_error *err;
    struct tw_session *s;
    const char *detail = NULL;
    int code;

    if (!PyArg_ParseTuple(args, "i|z:verdict", &code, &detail)) {
        return NULL;
    }
    s = of(self, &err);
    return PyLong_FromLong(tw_session_verdict(s, code, detail, err));
}

static PyObject *session_choose(PyObject *self, PyObject *args,
                                bool certificate)
{
    struct tw_error *err;
    struct tw_session *s;
    struct tw_credentials *c = NULL;
    PyObject *arg;

    if (!PyArg_ParseTuple(args, "O", &arg)) {
        return NULL;
    }
    if (arg != Py_None) {
        if (Py_TYPE(arg) != credentials_type) {
            PyErr_SetString(PyExc_TypeError, "credentials");
            return NULL;
        }
        c = ((struct credentials *)arg)->credentials;
    }
    s = of(self, &err);
    return PyLong_FromLong(certificate
                               ? tw_session_set_certificate(s, c, err)
                               : tw_session_set_credentials(s, c, err));
}

static PyObject *session_set_credentials(PyObject *self, PyObject *args)
{
    return session_choose(self, args, false);
}

static PyObject *session_set_certificate(PyObject *self, PyObject *args)
{
    return session_choose(self, args, true);
}

static bool add_bytes(void *arg, const char *key, const void *data,
                      size_t len)
{
    PyObject *item = ext_bytes(data, len);
    int bad;

    (void)key;
    bad = item == NULL || PyList_Append(arg, item) != 0;
    Py_XDECREF(item);
    return !bad;
}

/* what issuers() wants: no more than so many */
struct few {
    PyObject *list;
    Py_ssize_t most;
};

static bool add_few(void *arg, const char *key, const void *data, size_t len)
{
    struct few *few = arg;

    return add_bytes(few->list, key, data, len)
           && PyList_Size(few->list) < few->most;
}

/* issuers(most) -> (status, [names]) */
static PyObject *session_issuers(PyObject *self, PyObject *arg)
{
    struct few few = {PyList_New(0), PyLong_AsSsize_t(arg)};
    struct tw_error *err;
    struct tw_session *s = of(self, &err);

    if (few.list == NULL || (few.most == -1 && PyErr_Occurred() != NULL)) {
        Py_XDECREF(few.list);
        return NULL;
    }
    return Py_BuildValue("(iN)",
                         (int)tw_session_issuers(s, add_few, &few, err),
                         few.list);
}

/* everything that the session says of itself */
static PyObject *session_facts(PyObject *self, PyObject *ignored)
{
    struct tw_session *s = of(self, NULL);
    const struct tw_hello *hello = tw_session_hello(s);
    struct tw_error err;
    struct tw_error standing;
    struct tw_facts facts;
    struct tw_cert *remote = NULL;
    struct tw_cert *local = NULL;
    struct tw_credentials *cred = tw_session_credentials(s);
    const uint8_t *der = NULL;
    const uint8_t *own = NULL;
    size_t der_len = 0;
    size_t own_len = 0;
    uint8_t bound[16];
    size_t bound_len = sizeof(bound);
    PyObject *issuers = PyList_New(0);
    PyObject *staple = PyList_New(0);
    PyObject *answer = NULL;
    int st_facts;
    int st_remote;
    int st_local;
    int st_binding;
    int st_issuers;

    (void)ignored;
    tw_error_clear(&err);
    memset(&facts, 0, sizeof(facts));
    st_facts = (int)tw_session_facts(s, &facts, &err);
    st_remote = (int)tw_session_remote_cert(s, &remote, &err);
    if (remote != NULL) {
        ext_engine.provider->cert_der(remote, &der, &der_len);
    }
    st_local = (int)tw_session_local_cert(s, &local, &err);
    if (local != NULL) {
        ext_engine.provider->cert_der(local, &own, &own_len);
    }
    st_binding = (int)tw_session_binding(s, TW_BIND_EXPORTER, "x", NULL, 0,
                                         bound, &bound_len, &err);
    tw_session_error(s, &standing);
    if (issuers != NULL && staple != NULL) {
        st_issuers = (int)tw_session_issuers(s, add_bytes, issuers, &err);
        tw_session_ocsp(s, add_bytes, staple);
        answer = Py_BuildValue(
            "{s:i,s:n,s:n,s:n,s:O,s:O,s:k,s:s,s:i,s:k,s:s,s:i,s:N,s:i,s:i,"
            "s:i,s:O,s:O,s:N,s:O,s:O,s:i,s:i,s:i,s:s,s:s,s:N,"
            "s:O,s:O,s:O}",
            "state", (int)tw_session_state(s), "missing",
            (Py_ssize_t)tw_session_missing(s), "pending",
            (Py_ssize_t)tw_session_pending(s), "input",
            (Py_ssize_t)tw_session_input_length(s), "read_ended",
            tw_session_read_ended(s) ? Py_True : Py_False, "write_ended",
            tw_session_write_ended(s) ? Py_True : Py_False, "features",
            (unsigned long)tw_session_features(s), "sni", tw_session_sni(s),
            "facts", st_facts, "protocol", (unsigned long)facts.protocol,
            "alpn", facts.alpn, "remote_status", st_remote, "remote",
            ext_bytes(der, der_len), "local_status", st_local,
            "binding_status", st_binding, "issuers_status", st_issuers,
            "issuers", issuers, "staple", staple, "error",
            error_dict(&standing), "hello",
            hello != NULL ? Py_True : Py_False, "credentials",
            cred != NULL ? Py_True : Py_False, "suite", (int)facts.suite,
            "bits", facts.bits, "resumed", facts.resumed, "suite_name",
            facts.suite_name, "cipher_name", facts.cipher_name, "local",
            ext_bytes(own, own_len), "close_waits",
            tw_session_close_waits(s) ? Py_True : Py_False, "has_output",
            tw_session_has_output(s) ? Py_True : Py_False, "busy",
            tw_session_busy(s) ? Py_True : Py_False);
    }
    ext_engine.provider->cert_free(remote);
    ext_engine.provider->cert_free(local);
    tw_credentials_free(cred);
    Py_XDECREF(issuers);
    Py_XDECREF(staple);
    return answer;
}

/* binding(kind, label, context, room) -> (status, bytes): enum tw_binding */
static PyObject *session_binding(PyObject *self, PyObject *args)
{
    struct tw_error *err;
    struct tw_session *s;
    const char *label;
    const char *context;
    Py_ssize_t context_len;
    Py_ssize_t room;
    PyObject *answer;
    uint8_t *out;
    size_t len;
    enum tw_status st;
    int kind;

    if (!PyArg_ParseTuple(args, "izz#n:binding", &kind, &label, &context,
                          &context_len, &room)) {
        return NULL;
    }
    out = PyMem_Malloc((size_t)room + 1);
    if (out == NULL) {
        return PyErr_NoMemory();
    }
    s = of(self, &err);
    len = (size_t)room;
    st = tw_session_binding(s, (enum tw_binding)kind, label,
                            (const uint8_t *)context, (size_t)context_len,
                            out, &len, err);
    answer = Py_BuildValue("(iy#)", (int)st, (char *)out,
                           st == TW_DONE ? (Py_ssize_t)len : 0);
    PyMem_Free(out);
    return answer;
}

static PyObject *session_last(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    return error_dict(&((struct session *)self)->last);
}

static PyMethodDef session_methods[] = {
    {"handshake", session_handshake, METH_NOARGS, NULL},
    {"feed", session_feed, METH_O, NULL},
    {"reserve", session_reserve, METH_O, NULL},
    {"commit", session_commit, METH_O, NULL},
    {"feed_eof", session_feed_eof, METH_NOARGS, NULL},
    {"output", session_output, METH_NOARGS, NULL},
    {"consume", session_consume, METH_O, NULL},
    {"take_input", session_take_input, METH_O, NULL},
    {"read", session_read, METH_O, NULL},
    {"write", session_write, METH_O, NULL},
    {"convert", session_convert, METH_VARARGS, NULL},
    {"sizes", session_sizes, METH_VARARGS, NULL},
    {"ragged", session_ragged, METH_O, NULL},
    {"shutdown", session_shutdown, METH_NOARGS, NULL},
    {"abort", session_abort, METH_NOARGS, NULL},
    {"verdict", session_verdict, METH_VARARGS, NULL},
    {"set_credentials", session_set_credentials, METH_VARARGS, NULL},
    {"set_certificate", session_set_certificate, METH_VARARGS, NULL},
    {"facts", session_facts, METH_NOARGS, NULL},
    {"binding", session_binding, METH_VARARGS, NULL},
    {"issuers", session_issuers, METH_O, NULL},
    {"last", session_last, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot session_slots[] = {
    {Py_tp_new, (void *)session_new},
    {Py_tp_dealloc, (void *)session_dealloc},
    {Py_tp_methods, (void *)session_methods},
    {0, NULL},
};

static PyType_Spec session_spec = {
    .name = "_testnative.Session",
    .basicsize = sizeof(struct session),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = session_slots,
};

int ext_add_played(PyObject *module)
{
    script_type = ext_add_type(module, &script_spec, "Script");
    credentials_type =
        ext_add_type(module, &credentials_spec, "Credentials");
    return script_type == NULL || credentials_type == NULL
                   || ext_add_type(module, &session_spec, "Session") == NULL
               ? -1
               : 0;
}
