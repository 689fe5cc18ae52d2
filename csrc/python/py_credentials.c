/*
 * Credentials: what a side of a connection shows and accepts. A thin
 * owner of struct tw_credentials, which sessions share by counting, so a
 * Credentials may be dropped while its sessions live. Immutable once
 * made; it is made whole by __new__, there is no half of one.
 */
#include "python/convert.h"
#include "python/module.h"
#include "python/py_error.h"

#include <string.h>

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

static struct tw_credentials *credentials_of(PyObject *self)
{
    return ((struct tw_py_credentials *)self)->credentials;
}

struct tw_credentials *tw_credentials_get(struct tw_module *state,
                                          PyObject *obj, const char *what)
{
    if (!PyObject_TypeCheck(obj, state->credentials)) {
        (void)PyErr_Format(PyExc_TypeError, "%s must be Credentials", what);
        return NULL;
    }
    return credentials_of(obj);
}

/* The arguments, by place. */
enum {
    C_ROLE,
    C_CERTIFICATES,
    C_CHAIN,
    C_ROOTS,
    C_PROTOCOLS,
    C_MIN_BITS,
    C_MAX_BITS,
    C_CIPHERS,
    C_LIFESPAN,
    C_RESUME,
    C_DEFAULT_CERT,
    C_CHOOSES,
    C_INSTALL_CHAIN,
    C_WINDOW,
    C_COUNT
};

/* What the making holds on to. */
struct making {
    struct tw_credentials_config config;
    struct tw_py_store *stores[2]; /* chain, roots; sorted when locked */
    PyObject *tuple;               /* of Certificate, owned, or NULL */
    struct tw_cert **certs;        /* into tuple; owned array */
};

static int parse_certificates(struct making *m, struct tw_module *state,
                              PyObject *obj)
{
    Py_ssize_t count;
    Py_ssize_t i;

    if (obj == NULL) {
        return 0;
    }
    m->tuple = tw_arg_tuple(obj, "certificates");
    if (m->tuple == NULL) {
        return -1;
    }
    count = PyTuple_Size(m->tuple);
    m->certs = PyMem_Calloc((size_t)count + 1, sizeof(*m->certs));
    if (m->certs == NULL) {
        (void)PyErr_NoMemory();
        return -1;
    }
    for (i = 0; i < count; i++) {
        m->certs[i] = tw_certificate_get(
            state, PyTuple_GetItem(m->tuple, i), "each certificate");
        if (m->certs[i] == NULL) {
            return -1;
        }
    }
    m->config.certs = m->certs;
    m->config.cert_count = (size_t)count;
    return 0;
}

static int parse_numbers(struct tw_credentials_config *config,
                         PyObject **given)
{
    int64_t protocols = 0, min_bits = 0, max_bits = 0, lifespan = 0;
    int64_t window = 0;
    bool resume = true, default_cert = false, chooses = false;
    bool install = false;

    if (tw_arg_int(given[C_PROTOCOLS], "protocols", 0, UINT32_MAX,
                   &protocols) < 0 ||
        tw_arg_int(given[C_MIN_BITS], "min_bits", 0, INT32_MAX,
                   &min_bits) < 0 ||
        tw_arg_int(given[C_MAX_BITS], "max_bits", 0, INT32_MAX,
                   &max_bits) < 0 ||
        tw_arg_int(given[C_LIFESPAN], "session_lifespan", 0, INT32_MAX,
                   &lifespan) < 0 ||
        tw_arg_bool(given[C_RESUME], &resume) < 0 ||
        tw_arg_bool(given[C_DEFAULT_CERT], &default_cert) < 0 ||
        tw_arg_bool(given[C_CHOOSES], &chooses) < 0 ||
        tw_arg_bool(given[C_INSTALL_CHAIN], &install) < 0 ||
        tw_arg_int(given[C_WINDOW], "window", 0,
                   sizeof(void *) == 8 ? INT64_MAX : UINT32_MAX,
                   &window) < 0) {
        return -1;
    }
    config->protocols = (uint32_t)protocols;
    config->min_bits = (int)min_bits;
    config->max_bits = (int)max_bits;
    config->session_lifespan = (int32_t)lifespan;
    config->flags = (resume ? 0 : TW_CRED_NO_RESUME) |
                    (default_cert ? TW_CRED_DEFAULT_CLIENT_CERT : 0) |
                    (chooses ? TW_CRED_CHOOSES : 0) |
                    (install ? TW_CRED_INSTALL_CHAIN : 0);
    config->window = (void *)(uintptr_t)window;
    return 0;
}

static int parse(struct making *m, struct tw_module *state,
                 PyObject **given)
{
    int role = 0;

    if (tw_arg_word(given[C_ROLE], "role", NAMES("client", "server"),
                    &role) < 0 ||
        parse_certificates(m, state, given[C_CERTIFICATES]) < 0 ||
        tw_store_get(state, given[C_CHAIN], "chain", &m->stores[0]) < 0 ||
        tw_store_get(state, given[C_ROOTS], "roots", &m->stores[1]) < 0 ||
        tw_arg_text(given[C_CIPHERS], "ciphers", true,
                    &m->config.ciphers) < 0) {
        return -1;
    }
    m->config.role = role == 0 ? TW_CLIENT : TW_SERVER;
    m->config.chain = m->stores[0] ? m->stores[0]->store : NULL;
    m->config.roots = m->stores[1] ? m->stores[1]->store : NULL;
    return parse_numbers(&m->config, given);
}

static PyObject *make(PyTypeObject *type, struct making *m)
{
    struct tw_credentials *made;
    struct tw_error err;
    PyObject *self;

    tw_error_clear(&err);
    Py_BEGIN_ALLOW_THREADS
    tw_stores_lock(m->stores, 2);
    made = tw_credentials_new(tw_provider_default(), &m->config, &err);
    tw_stores_unlock(m->stores, 2);
    Py_END_ALLOW_THREADS
    if (made == NULL) {
        return tw_error_raise(tw_module_of_type(type), &err);
    }
    self = PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        tw_credentials_free(made);
        return NULL;
    }
    ((struct tw_py_credentials *)self)->credentials = made;
    return self;
}

static PyObject *credentials_tp_new(PyTypeObject *type, PyObject *args,
                                    PyObject *kwargs)
{
    static char *names[] = {"role",        "certificates",
                            "chain",       "roots",
                            "protocols",   "min_bits",
                            "max_bits",    "ciphers",
                            "session_lifespan", "resume",
                            "default_client_cert", "chooses",
                            "install_chain", "window",
                            NULL};
    PyObject *given[C_COUNT] = {NULL};
    PyObject *self = NULL;
    struct making m;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O|$OOOOOOOOOOOOO:Credentials", names,
            &given[C_ROLE], &given[C_CERTIFICATES], &given[C_CHAIN],
            &given[C_ROOTS], &given[C_PROTOCOLS], &given[C_MIN_BITS],
            &given[C_MAX_BITS], &given[C_CIPHERS], &given[C_LIFESPAN],
            &given[C_RESUME], &given[C_DEFAULT_CERT], &given[C_CHOOSES],
            &given[C_INSTALL_CHAIN], &given[C_WINDOW])) {
        return NULL;
    }
    memset(&m, 0, sizeof(m));
    if (parse(&m, tw_module_of_type(type), given) == 0) {
        self = make(type, &m);
    }
    PyMem_Free(m.certs);
    Py_XDECREF(m.tuple);
    return self;
}

static void credentials_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    tw_credentials_free(credentials_of(self));
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *credentials_role(PyObject *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(
        tw_credentials_role(credentials_of(self)) == TW_CLIENT ? "client"
                                                               : "server");
}

static PyGetSetDef credentials_getset[] = {
    {"role", credentials_role, NULL, "\"client\" or \"server\"", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(credentials_doc,
"Credentials(role, *, certificates=(), chain=None, roots=None,\n"
"    protocols=0, min_bits=0, max_bits=0, ciphers=None,\n"
"    session_lifespan=0, resume=True, default_client_cert=False,\n"
"    chooses=False, install_chain=False, window=0)\n\n"
"What a side shows and accepts; shared by any number of sessions. role:\n"
"\"client\" or \"server\". certificates: with private keys; a server\n"
"answers with the one that names the host asked for, else the first.\n"
"chain: intermediates to send. roots: on a server the CA names to ask\n"
"for. protocols: TLS1_2 | TLS1_3, 0 for the engine's choice. Strengths in\n"
"bits, session_lifespan in seconds, 0 for the engine's choice. ciphers: a\n"
"TLS 1.2 cipher list. chooses: a client that picks a certificate for each\n"
"request; sessions in which one was asked for are not resumed.\n"
"install_chain: intermediates go into the user's store, for an engine that\n"
"sends none but the system's. window: a client's, an HWND, the parent of\n"
"what asks for a PIN; 0 for none. ValueError for a server without a\n"
"certificate; TLSError if the engine does not take them.");

static PyType_Slot credentials_slots[] = {
    {Py_tp_doc, (void *)credentials_doc},
    {Py_tp_new, (void *)credentials_tp_new},
    {Py_tp_dealloc, (void *)credentials_dealloc},
    {Py_tp_getset, credentials_getset},
    {0, NULL},
};

static PyType_Spec credentials_spec = {
    .name = "twapi_tls._native.Credentials",
    .basicsize = sizeof(struct tw_py_credentials),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = credentials_slots,
};

int tw_credentials_type(PyObject *module, struct tw_module *state)
{
    return tw_add_type(module, &credentials_spec, &state->credentials);
}
