/*
 * The module twapi_tls._native: its state, its constants, its functions.
 *
 * Multi-phase init; nothing Python is static, so every interpreter has a
 * module of its own, and the locks are the floors' own, so no GIL is
 * needed where there is none. The types come from their rooms.
 */
#include "python/module.h"

#include "python/convert.h"
#include "python/py_error.h"

PyMODINIT_FUNC PyInit__native(void);

/* --- constants --- */

/* Every code that this code or an engine's answer can name. */
#define CODE_LIST(X)                                                       \
    X(SEC_E_OK)                                                            \
    X(SEC_I_CONTINUE_NEEDED)                                               \
    X(SEC_I_CONTEXT_EXPIRED)                                               \
    X(SEC_I_INCOMPLETE_CREDENTIALS)                                        \
    X(SEC_I_RENEGOTIATE)                                                   \
    X(SEC_E_INSUFFICIENT_MEMORY)                                           \
    X(SEC_E_INVALID_HANDLE)                                                \
    X(SEC_E_UNSUPPORTED_FUNCTION)                                          \
    X(SEC_E_TARGET_UNKNOWN)                                                \
    X(SEC_E_INTERNAL_ERROR)                                                \
    X(SEC_E_SECPKG_NOT_FOUND)                                              \
    X(SEC_E_INVALID_TOKEN)                                                 \
    X(SEC_E_LOGON_DENIED)                                                  \
    X(SEC_E_UNKNOWN_CREDENTIALS)                                           \
    X(SEC_E_NO_CREDENTIALS)                                                \
    X(SEC_E_MESSAGE_ALTERED)                                               \
    X(SEC_E_OUT_OF_SEQUENCE)                                               \
    X(SEC_E_NO_AUTHENTICATING_AUTHORITY)                                   \
    X(SEC_E_CONTEXT_EXPIRED)                                               \
    X(SEC_E_INCOMPLETE_MESSAGE)                                            \
    X(SEC_E_INCOMPLETE_CREDENTIALS)                                        \
    X(SEC_E_BUFFER_TOO_SMALL)                                              \
    X(SEC_E_WRONG_PRINCIPAL)                                               \
    X(SEC_E_UNTRUSTED_ROOT)                                                \
    X(SEC_E_ILLEGAL_MESSAGE)                                               \
    X(SEC_E_CERT_UNKNOWN)                                                  \
    X(SEC_E_CERT_EXPIRED)                                                  \
    X(SEC_E_ENCRYPT_FAILURE)                                               \
    X(SEC_E_DECRYPT_FAILURE)                                               \
    X(SEC_E_ALGORITHM_MISMATCH)                                            \
    X(SEC_E_CERT_WRONG_USAGE)                                              \
    X(SEC_E_APPLICATION_PROTOCOL_MISMATCH)                                 \
    X(SEC_E_UNSUPPORTED_PREAUTH)                                           \
    X(SEC_E_INVALID_PARAMETER)                                             \
    X(E_ACCESSDENIED)                                                      \
    X(SCARD_E_NO_SMARTCARD)                                                \
    X(SCARD_E_NO_READERS_AVAILABLE)                                        \
    X(SCARD_W_REMOVED_CARD)                                                \
    X(SCARD_W_WRONG_CHV)                                                   \
    X(SCARD_W_CHV_BLOCKED)                                                 \
    X(SCARD_W_CANCELLED_BY_USER)                                           \
    X(NTE_PERM)                                                            \
    X(NTE_BAD_KEYSET)                                                      \
    X(NTE_SILENT_CONTEXT)                                                  \
    X(NTE_USER_CANCELLED)                                                  \
    X(CRYPT_E_REVOKED)                                                     \
    X(CRYPT_E_NO_REVOCATION_CHECK)                                         \
    X(CRYPT_E_REVOCATION_OFFLINE)                                          \
    X(CRYPT_E_NOT_FOUND)                                                   \
    X(CRYPT_E_ASN1_BADTAG)                                                 \
    X(TRUST_E_CERT_SIGNATURE)                                              \
    X(TRUST_E_BASIC_CONSTRAINTS)                                           \
    X(CERT_E_EXPIRED)                                                      \
    X(CERT_E_VALIDITYPERIODNESTING)                                        \
    X(CERT_E_ROLE)                                                         \
    X(CERT_E_CRITICAL)                                                     \
    X(CERT_E_PURPOSE)                                                      \
    X(CERT_E_UNTRUSTEDROOT)                                                \
    X(CERT_E_CHAINING)                                                     \
    X(CERT_E_REVOKED)                                                      \
    X(CERT_E_REVOCATION_FAILURE)                                           \
    X(CERT_E_CN_NO_MATCH)                                                  \
    X(CERT_E_WRONG_USAGE)                                                  \
    X(CERT_E_INVALID_POLICY)                                               \
    X(CERT_E_INVALID_NAME)

struct constant {
    const char *name;
    long value;
};

static const struct constant codes[] = {
#define CODE_ENTRY(name) {#name, (long)(int32_t)name},
    CODE_LIST(CODE_ENTRY)
#undef CODE_ENTRY
    {NULL, 0},
};

static const struct constant ignore[] = {
    {"time", TW_IGNORE_TIME},
    {"name", TW_IGNORE_NAME},
    {"usage", TW_IGNORE_USAGE},
    {"unknownca", TW_IGNORE_UNKNOWN_CA},
    {"revocation", TW_IGNORE_REVOCATION},
    {"basicconstraints", TW_IGNORE_BASIC_CONSTRAINTS},
    {"policy", TW_IGNORE_POLICY},
    {"criticalextensions", TW_IGNORE_CRITICAL},
    {"revocationoffline", TW_IGNORE_REVOCATION_OFFLINE},
    {NULL, 0},
};

static const struct constant constants[] = {
    {"DONE", TW_DONE},
    {"WANT_READ", TW_WANT_READ},
    {"WANT_WRITE", TW_WANT_WRITE},
    {"WANT_VERDICT", TW_WANT_VERDICT},
    {"WANT_CREDENTIALS", TW_WANT_CREDENTIALS},
    {"WANT_CERTIFICATE", TW_WANT_CERTIFICATE},
    {"END", TW_END},
    {"TLS1_2", TW_TLS1_2},
    {"TLS1_3", TW_TLS1_3},
    {NULL, 0},
};

static int add_dict(PyObject *module, const char *name,
                    const struct constant *list)
{
    PyObject *dict = PyDict_New();
    int failed = dict == NULL ? -1 : 0;

    for (; failed == 0 && list->name != NULL; list++) {
        PyObject *value = PyLong_FromLong(list->value);

        failed = value == NULL
                     ? -1
                     : PyDict_SetItemString(dict, list->name, value);
        Py_XDECREF(value);
    }
    if (failed == 0) {
        failed = PyModule_AddObjectRef(module, name, dict);
    }
    Py_XDECREF(dict);
    return failed;
}

static int add_constants(PyObject *module)
{
    const struct constant *one;

    for (one = constants; one->name != NULL; one++) {
        if (PyModule_AddIntConstant(module, one->name, one->value) < 0) {
            return -1;
        }
    }
    if (add_dict(module, "CODES", codes) < 0) {
        return -1;
    }
    return add_dict(module, "IGNORE", ignore);
}

/* --- functions --- */

PyDoc_STRVAR(engine_doc,
"engine() -> (name, version, fips)\n\n"
"The TLS engine: \"schannel\" or \"openssl\", its version for a person, and\n"
"whether FIPS mode is on: 1, 0, or -1 if that is not known.");

static PyObject *engine(PyObject *module, PyObject *unused)
{
    const struct tw_provider *p = tw_provider_default();

    (void)module;
    (void)unused;
    return Py_BuildValue("(ssi)", p->name,
                         p->version != NULL ? p->version() : "",
                         p->fips != NULL ? p->fips() : -1);
}

/* An SSPI code, signed or as the unsigned number it is printed as. */
static int code_argument(PyObject *arg, int32_t *code)
{
    int64_t value = 0;

    if (tw_arg_int(arg, "code", INT32_MIN, UINT32_MAX, &value) < 0) {
        return -1;
    }
    *code = (int32_t)(uint32_t)value;
    return 0;
}

PyDoc_STRVAR(code_name_doc,
"code_name(code) -> str\n\n"
"The name of an SSPI code (signed or unsigned), \"\" if it has none.");

static PyObject *code_name(PyObject *module, PyObject *arg)
{
    const char *name;
    int32_t code;

    (void)module;
    if (code_argument(arg, &code) < 0) {
        return NULL;
    }
    name = tw_code_name(code);
    return PyUnicode_FromString(name != NULL ? name : "");
}

PyDoc_STRVAR(code_text_doc,
"code_text(code) -> str\n\n"
"A sentence for an SSPI code (signed or unsigned).");

static PyObject *code_text(PyObject *module, PyObject *arg)
{
    int32_t code;

    (void)module;
    if (code_argument(arg, &code) < 0) {
        return NULL;
    }
    return PyUnicode_FromString(tw_code_text(code));
}

PyDoc_STRVAR(alert_name_doc,
"alert_name(alert) -> str\n\n"
"The name of a TLS alert 0..255 (RFC 8446, 6), \"\" if it has none.");

static PyObject *alert_name(PyObject *module, PyObject *arg)
{
    const char *name;
    int64_t value = 0;

    (void)module;
    if (tw_arg_int(arg, "alert", 0, 255, &value) < 0) {
        return NULL;
    }
    name = tw_alert_name((int)value);
    return PyUnicode_FromString(name != NULL ? name : "");
}

PyDoc_STRVAR(would_block_doc,
"would_block(written=0) -> BlockingIOError\n\n"
"What a non-blocking call raises when nothing can be done now.\n\n"
"written: bytes that were taken nevertheless (characters_written).");

static PyObject *would_block(PyObject *module, PyObject *const *args,
                             Py_ssize_t count)
{
    int64_t written = 0;

    if (tw_arg_count("would_block", count, 0, 1) < 0 ||
        tw_arg_int(count > 0 ? args[0] : NULL, "written", 0, PTRDIFF_MAX,
                   &written) < 0) {
        return NULL;
    }
    return tw_error_blocked(PyModule_GetState(module), (Py_ssize_t)written);
}

static PyMethodDef functions[] = {
    {"engine", engine, METH_NOARGS, engine_doc},
    {"code_name", code_name, METH_O, code_name_doc},
    {"code_text", code_text, METH_O, code_text_doc},
    {"alert_name", alert_name, METH_O, alert_name_doc},
    {"would_block", (PyCFunction)(void (*)(void))would_block, METH_FASTCALL,
     would_block_doc},
    {NULL, NULL, 0, NULL},
};

/* --- the module --- */

int tw_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **out)
{
    *out = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (*out == NULL) {
        return -1;
    }
    return PyModule_AddType(module, *out);
}

static int native_exec(PyObject *module)
{
    struct tw_module *state = PyModule_GetState(module);

    if (tw_errors_init(module, state) < 0 ||
        tw_certificate_type(module, state) < 0 ||
        tw_store_type(module, state) < 0 ||
        tw_credentials_type(module, state) < 0 ||
        tw_session_type(module, state) < 0 ||
        tw_direct_type(module, state) < 0 ||
        tw_turn_type(module, state) < 0 || tw_capi_add(module) < 0) {
        return -1;
    }
    return add_constants(module);
}

static int native_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct tw_module *state = PyModule_GetState(module);

    Py_VISIT(state->certificate);
    Py_VISIT(state->store);
    Py_VISIT(state->credentials);
    Py_VISIT(state->session);
    Py_VISIT(state->direct);
    Py_VISIT(state->turn);
    Py_VISIT(state->tls_error);
    Py_VISIT(state->verification_error);
    Py_VISIT(state->truncated_error);
    Py_VISIT(state->alert_error);
    Py_VISIT(state->timeout_error);
    Py_VISIT(state->closed_error);
    return 0;
}

static int native_clear(PyObject *module)
{
    struct tw_module *state = PyModule_GetState(module);
    int i;

    Py_CLEAR(state->certificate);
    Py_CLEAR(state->store);
    Py_CLEAR(state->credentials);
    Py_CLEAR(state->session);
    Py_CLEAR(state->direct);
    Py_CLEAR(state->turn);
    Py_CLEAR(state->blocked);
    for (i = 0; i < TW_WORDS; i++) {
        Py_CLEAR(state->words[i]);
    }
    Py_CLEAR(state->tls_error);
    Py_CLEAR(state->verification_error);
    Py_CLEAR(state->truncated_error);
    Py_CLEAR(state->alert_error);
    Py_CLEAR(state->timeout_error);
    Py_CLEAR(state->closed_error);
    return 0;
}

static void native_free(void *module)
{
    (void)native_clear(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)native_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

PyDoc_STRVAR(native_doc,
"The C floor of twapi_tls; _native.pyi is its contract.");

static struct PyModuleDef def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "twapi_tls._native",
    .m_doc = native_doc,
    .m_size = sizeof(struct tw_module),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = native_traverse,
    .m_clear = native_clear,
    .m_free = native_free,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&def);
}

struct tw_module *tw_module_find(PyTypeObject *type)
{
    for (; type != NULL; type = PyType_GetSlot(type, Py_tp_base)) {
        PyObject *module = PyType_GetModule(type);

        if (module == NULL) {
            PyErr_Clear(); /* a class made by a class statement */
        } else if (PyModule_GetDef(module) == &def) {
            return PyModule_GetState(module);
        }
    }
    PyErr_SetString(PyExc_TypeError, "not a type of this module");
    return NULL;
}
