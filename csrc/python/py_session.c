/*
 * Session: core/session.h for Python, and wire/wire.h once it has a socket.
 *
 * The wire is attached under `guard` (py_session_call.c says what that is
 * for) and stays until the object dies, so who sees it needs no lock. A
 * Session is made whole by __new__ and never made again, so no method meets
 * half of one.
 */
#include "python/py_session.h"

#include <string.h>

enum {
    S_ROLE,
    S_CREDENTIALS,
    S_TARGET,
    S_REQUEST_CERT,
    S_ASK_VERDICT,
    S_ASK_CREDENTIALS,
    S_ASK_CERTIFICATE,
    S_RAGGED_EOF,
    S_ALPN,
    S_COUNT
};

/* A ProtocolNameList (RFC 7301, 3.1) without its outer length. */
static int parse_alpn(PyObject *obj, struct tw_buffer *list)
{
    PyObject *names;
    Py_ssize_t i;
    int result = -1;

    if (obj == NULL || obj == Py_None) {
        return 0;
    }
    names = tw_arg_tuple(obj, "alpn");
    if (names == NULL) {
        return -1;
    }
    for (i = 0; i < PyTuple_Size(names); i++) {
        PyObject *name = PyTuple_GetItem(names, i);
        Py_ssize_t len;
        uint8_t prefix;
        char *data;

        if (PyBytes_AsStringAndSize(name, &data, &len) < 0) {
            goto done;
        }
        if (len < 1 || len > 255 ||
            tw_buffer_length(list) + (size_t)len + 1 > 65535) {
            PyErr_SetString(PyExc_ValueError,
                            "an ALPN name has 1 to 255 bytes, all of them "
                            "together less than 64 KiB");
            goto done;
        }
        prefix = (uint8_t)len;
        if (!tw_buffer_append(list, &prefix, 1) ||
            !tw_buffer_append(list, data, (size_t)len)) {
            (void)PyErr_NoMemory();
            goto done;
        }
    }
    result = 0;
done:
    Py_DECREF(names);
    return result;
}

static int parse_config(struct tw_module *state, PyObject **given,
                        struct tw_session_config *config,
                        struct tw_buffer *alpn)
{
    static const char *const roles[] = {"client", "server", NULL};
    int role = 0;

    config->ask_verdict = true;
    if (tw_arg_word(given[S_ROLE], "role", roles, &role) < 0 ||
        tw_arg_text(given[S_TARGET], "target", true, &config->target) < 0 ||
        tw_arg_bool(given[S_REQUEST_CERT], &config->request_cert) < 0 ||
        tw_arg_bool(given[S_ASK_VERDICT], &config->ask_verdict) < 0 ||
        tw_arg_bool(given[S_ASK_CREDENTIALS], &config->ask_credentials) <
            0 ||
        tw_arg_bool(given[S_ASK_CERTIFICATE], &config->ask_certificate) <
            0 ||
        tw_arg_bool(given[S_RAGGED_EOF], &config->ragged_eof) < 0 ||
        parse_alpn(given[S_ALPN], alpn) < 0) {
        return -1;
    }
    config->role = role == 0 ? TW_CLIENT : TW_SERVER;
    config->alpn = tw_buffer_head(alpn);
    config->alpn_len = tw_buffer_length(alpn);
    if (given[S_CREDENTIALS] != Py_None) {
        config->credentials = tw_credentials_get(
            state, given[S_CREDENTIALS], "credentials");
        if (config->credentials == NULL) {
            return -1;
        }
    }
    return 0;
}

static PyObject *make(PyTypeObject *type, PyObject *credentials,
                      const struct tw_session_config *config)
{
    struct tw_session *core;
    struct tw_py_session *self;
    struct tw_error err;

    tw_error_clear(&err);
    core = tw_session_new(tw_provider_default(), config, &err);
    if (core == NULL) {
        return tw_error_raise(tw_module_of_type(type), &err);
    }
    self = (struct tw_py_session *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        tw_session_free(core);
        return NULL;
    }
    self->session = core;
    tw_pointer_set(&self->wire, NULL);
    tw_count_init(&self->lately, 0);
    tw_lock_init(&self->guard);
    if (credentials != Py_None) {
        self->credentials = Py_NewRef(credentials);
    }
    return (PyObject *)self;
}

static PyObject *session_tp_new(PyTypeObject *type, PyObject *args,
                                PyObject *kwargs)
{
    static char *names[] = {"role",          "credentials",
                            "target",        "request_cert",
                            "ask_verdict",   "ask_credentials",
                            "ask_certificate", "ragged_eof",
                            "alpn",          NULL};
    struct tw_session_config config;
    PyObject *given[S_COUNT] = {NULL};
    PyObject *self = NULL;
    struct tw_buffer alpn;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "OO|$OOOOOOO:Session", names, &given[S_ROLE],
            &given[S_CREDENTIALS], &given[S_TARGET],
            &given[S_REQUEST_CERT], &given[S_ASK_VERDICT],
            &given[S_ASK_CREDENTIALS], &given[S_ASK_CERTIFICATE],
            &given[S_RAGGED_EOF], &given[S_ALPN])) {
        return NULL;
    }
    memset(&config, 0, sizeof(config));
    tw_buffer_init(&alpn);
    if (parse_config(tw_module_of_type(type), given, &config, &alpn) == 0) {
        self = make(type, given[S_CREDENTIALS], &config);
    }
    tw_buffer_free(&alpn);
    return self;
}

static int session_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(session_of(self)->credentials);
    return 0;
}

static int session_clear(PyObject *self)
{
    Py_CLEAR(session_of(self)->credentials);
    return 0;
}

static void session_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    (void)session_clear(self);
    if (wire_of(self) != NULL) {
        tw_wire_free(wire_of(self)); /* and the session */
    } else {
        tw_session_free(session_of(self)->session);
    }
    tw_lock_fini(&session_of(self)->guard);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* --- answers --- */

TW_METHOD_DOC(verdict,
"verdict(code, detail='')\n\n"
"The answer to WANT_VERDICT. code 0 accepts the peer's certificate. Any\n"
"other is the SSPI code that says why not, detail a sentence: the session\n"
"fails, the alert is sent (without a socket: stays in the output), and\n"
"TLSVerificationError is raised.");

PyObject *tw_py_session_verdict(PyObject *self, PyObject *const *args,
                                Py_ssize_t count)
{
    struct tw_call c = {.op = TW_OP_VERDICT, .detail = ""};
    enum tw_status st;
    int64_t code = 0;

    if (tw_arg_count("verdict", count, 1, 2) < 0 ||
        tw_arg_int(args[0], "code", INT32_MIN, UINT32_MAX, &code) < 0 ||
        tw_arg_text(count > 1 ? args[1] : NULL, "detail", false,
                    &c.detail) < 0) {
        return NULL;
    }
    c.code = (int32_t)(uint32_t)code;
    st = tw_call_run(self, &c);
    if (st == TW_DONE && c.code != 0) {
        st = tw_error_set(&c.err, TW_E_REFUSED, c.code, "%s", c.detail);
    }
    if (st < 0) {
        return st == TW_E_INTERRUPTED
                   ? NULL
                   : tw_error_raise(tw_module_of(self), &c.err);
    }
    return Py_NewRef(Py_None);
}

/* Remembers who is in use now; value may be None. */
static void keep_credentials(struct tw_py_session *self, PyObject *value)
{
    PyObject *old;

    tw_lock_acquire(&self->guard);
    old = self->credentials;
    self->credentials = Py_NewRef(value);
    tw_lock_release(&self->guard);
    Py_XDECREF(old);
}

TW_METHOD_DOC(set_credentials,
"set_credentials(credentials)\n\n"
"The answer to WANT_CREDENTIALS: a server's Credentials.");

PyObject *tw_py_session_set_credentials(PyObject *self, PyObject *arg)
{
    struct tw_call c = {.op = TW_OP_SET_CREDENTIALS};
    PyObject *result;

    c.credentials =
        tw_credentials_get(tw_module_of(self), arg, "credentials");
    if (c.credentials == NULL) {
        return NULL;
    }
    result = tw_call_run_plain(self, &c);
    if (result != NULL) {
        keep_credentials(session_of(self), arg);
    }
    return result;
}

TW_METHOD_DOC(set_certificate,
"set_certificate(credentials)\n\n"
"The answer to WANT_CERTIFICATE: Credentials with a certificate, or None\n"
"to go on without one.");

PyObject *tw_py_session_set_certificate(PyObject *self, PyObject *arg)
{
    struct tw_call c = {.op = TW_OP_SET_CERTIFICATE};
    PyObject *result;

    if (arg != Py_None) {
        c.credentials =
            tw_credentials_get(tw_module_of(self), arg, "credentials");
        if (c.credentials == NULL) {
            return NULL;
        }
    }
    result = tw_call_run_plain(self, &c);
    if (result != NULL && arg != Py_None) {
        keep_credentials(session_of(self), arg);
    }
    return result;
}

static PyObject *session_credentials(PyObject *obj, void *unused)
{
    struct tw_py_session *self = session_of(obj);
    PyObject *found;

    (void)unused;
    tw_lock_acquire(&self->guard);
    found = Py_NewRef(self->credentials != NULL ? self->credentials
                                                : Py_None);
    tw_lock_release(&self->guard);
    return found;
}

/* --- the type --- */

#define FAST(name)                                                         \
    {#name, (PyCFunction)(void (*)(void))tw_py_session_##name,             \
     METH_FASTCALL, tw_py_session_##name##_doc},
#define NONE(name)                                                         \
    {#name, tw_py_session_##name, METH_NOARGS, tw_py_session_##name##_doc},
#define ONE(name)                                                          \
    {#name, tw_py_session_##name, METH_O, tw_py_session_##name##_doc},

static PyMethodDef session_methods[] = {
    TW_SESSION_METHODS(FAST, NONE, ONE)
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef session_getset[] = {
    {"credentials", session_credentials, NULL,
     "The Credentials in use, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(session_doc,
"Session(role, credentials, *, target=None, request_cert=False,\n"
"    ask_verdict=True, ask_credentials=False, ask_certificate=False,\n"
"    ragged_eof=False, alpn=())\n\n"
"One TLS channel. role: \"client\" or \"server\". credentials: a server may\n"
"leave them None with ask_credentials. target: the name a client asks for\n"
"(SNI). request_cert: a server asks for the client's certificate. ask_...:\n"
"handshake() pauses with WANT_VERDICT, WANT_CREDENTIALS,\n"
"WANT_CERTIFICATE. ragged_eof: TCP EOF without close_notify is an end, not\n"
"an error. alpn: names as bytes, the preferred first.");

static PyType_Slot session_slots[] = {
    {Py_tp_doc, (void *)session_doc},
    {Py_tp_new, (void *)session_tp_new},
    {Py_tp_dealloc, (void *)session_dealloc},
    {Py_tp_traverse, (void *)session_traverse},
    {Py_tp_clear, (void *)session_clear},
    {Py_tp_methods, session_methods},
    {Py_tp_getset, session_getset},
    {0, NULL},
};

static PyType_Spec session_spec = {
    .name = "twapi_tls._native.Session",
    .basicsize = sizeof(struct tw_py_session),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = session_slots,
};

int tw_session_type(PyObject *module, struct tw_module *state)
{
    return tw_add_type(module, &session_spec, &state->session);
}
