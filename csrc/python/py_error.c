/*
 * Exceptions.
 *
 * TLSError is an OSError, so that code written for sockets catches it. Its
 * attributes come from struct tw_error; class attributes hold the values
 * of "nothing known", so that an instance made by Python code is whole.
 * The only argument is the sentence, so str() is that sentence, and
 * pickling and copying work as for any exception: what is more sits in
 * the instance's __dict__.
 *
 * An error of the operating system stays what Python programmers know:
 * ConnectionResetError, BrokenPipeError and so on, chosen by OSError.
 *
 * TWAPI's error codes (`errorcode`): ("TWAPI", "TLS", ...) for what its
 * tls module finds out, ("TWAPI_WIN32", number, text) for SSPI failures,
 * those of the automatic verification among them. VERIFYFAIL is a verifier's
 * answer and made where verifiers are called.
 */
#include "python/py_error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define TEXT_MAX 640

PyDoc_STRVAR(tls_error_doc,
"TLS failed.\n\n"
"code: the SSPI status, signed, 0 if there is none; name: its name,\n"
"\"SEC_E_...\", or \"\"; reason: the sentence alone; errorcode: TWAPI's\n"
"error code, a tuple of str; alert_sent, alert_received: TLS alerts by\n"
"name, or None; alert: the one that explains the error; token: bytes\n"
"for the peer that the failed step produced, if no socket took them.");
PyDoc_STRVAR(verification_doc,
"The peer's certificate was refused: `code` says why.");
PyDoc_STRVAR(truncated_doc,
"The peer's stream ended without close_notify: data may be missing.");
PyDoc_STRVAR(alert_doc,
"The peer sent a fatal alert: `alert_received` names it.");
PyDoc_STRVAR(timeout_doc,
"The time given was over. `written`, on a send: the bytes taken.");
PyDoc_STRVAR(closed_doc,
"The channel is closed, or was closed while in use.");

/* --- the types --- */

static PyObject *class_attributes(void)
{
    PyObject *none = Py_None;

    return Py_BuildValue("{s:s,s:i,s:s,s:(),s:O,s:O,s:O,s:y#,s:s}",
                         "__module__", "twapi_tls", "code", 0, "name", "",
                         "errorcode", "alert", none, "alert_sent", none,
                         "alert_received", none, "token", "",
                         (Py_ssize_t)0, "reason", "");
}

static int add_exception(PyObject *module, const char *name,
                         const char *doc, PyObject *base, PyObject *other,
                         PyObject *attributes, PyObject **out)
{
    char full[64];
    PyObject *bases;

    (void)snprintf(full, sizeof(full), "twapi_tls.%s", name);
    bases = other != NULL ? PyTuple_Pack(2, base, other)
                          : PyTuple_Pack(1, base);
    if (bases == NULL) {
        return -1;
    }
    *out = PyErr_NewExceptionWithDoc(full, doc, bases, attributes);
    Py_DECREF(bases);
    if (*out == NULL) {
        return -1;
    }
    return PyModule_AddObjectRef(module, name, *out);
}

/* The arguments of OSError's constructor: (errno, text, written). */
static PyObject *blocked_arguments(Py_ssize_t written)
{
    return Py_BuildValue("isn", EAGAIN, "the operation would block",
                         written);
}

int tw_errors_init(PyObject *module, struct tw_module *state)
{
    PyObject *attributes = class_attributes();
    PyObject *tls;
    int failed;

    if (attributes == NULL) {
        return -1;
    }
    state->blocked = blocked_arguments(0);
    failed = state->blocked == NULL
             || add_exception(module, "TLSError", tls_error_doc,
                              PyExc_OSError, NULL, attributes,
                              &state->tls_error) < 0;
    Py_DECREF(attributes);
    if (failed) {
        return -1;
    }
    tls = state->tls_error;
    if (add_exception(module, "TLSVerificationError", verification_doc, tls,
                      NULL, NULL, &state->verification_error) < 0 ||
        add_exception(module, "TLSTruncatedError", truncated_doc, tls,
                      PyExc_EOFError, NULL, &state->truncated_error) < 0 ||
        add_exception(module, "TLSAlertError", alert_doc, tls, NULL, NULL,
                      &state->alert_error) < 0 ||
        add_exception(module, "TLSTimeoutError", timeout_doc, tls,
                      PyExc_TimeoutError, NULL,
                      &state->timeout_error) < 0 ||
        add_exception(module, "TLSClosedError", closed_doc, tls,
                      PyExc_BrokenPipeError, NULL,
                      &state->closed_error) < 0) {
        return -1;
    }
    return 0;
}

/* --- which, and what it says --- */

/* Codes by which an engine refuses a certificate by itself. */
static bool is_verification_code(int32_t code)
{
    switch (code) {
    case SEC_E_WRONG_PRINCIPAL:
    case SEC_E_UNTRUSTED_ROOT:
    case SEC_E_CERT_UNKNOWN:
    case SEC_E_CERT_EXPIRED:
    case SEC_E_CERT_WRONG_USAGE:
    case CRYPT_E_REVOKED:
    case CRYPT_E_NO_REVOCATION_CHECK:
    case CRYPT_E_REVOCATION_OFFLINE:
    case TRUST_E_CERT_SIGNATURE:
    case TRUST_E_BASIC_CONSTRAINTS:
        return true;
    default:
        /* FACILITY_CERT: CERT_E_... */
        return ((uint32_t)code & 0xFFFFFF00u) == 0x800B0100u;
    }
}

static bool is_verification(const struct tw_error *err)
{
    return err->status == TW_E_REFUSED ||
           (err->status == TW_E_TLS && is_verification_code(err->code));
}

static PyObject *type_of(struct tw_module *state,
                         const struct tw_error *err)
{
    if (is_verification(err)) {
        return state->verification_error;
    }
    switch (err->status) {
    case TW_E_TRUNCATED:
        return state->truncated_error;
    case TW_E_ALERT:
        return state->alert_error;
    case TW_E_TIMEOUT:
        return state->timeout_error;
    case TW_E_CLOSED:
        return state->closed_error;
    default:
        return state->tls_error;
    }
}

static const char *sentence_of(const struct tw_error *err)
{
    if (err->detail[0] != '\0') {
        return err->detail;
    }
    if (err->code != 0 && err->status != TW_E_TRUNCATED &&
        err->status != TW_E_NEGOTIATE_EOF) {
        return tw_code_text(err->code);
    }
    return tw_status_text(err->status);
}

static PyObject *text(const char *utf8)
{
    return PyUnicode_DecodeUTF8(utf8, (Py_ssize_t)strlen(utf8), "replace");
}

static PyObject *errorcode_of(const struct tw_error *err)
{
    const char *word;

    switch (err->status) {
    case TW_E_NEGOTIATE_EOF:
        return Py_BuildValue("(ssss)", "TWAPI", "TLS", "NEGOTIATE", "EOF");
    case TW_E_TRUNCATED:
        word = "TRUNCATED";
        break;
    case TW_E_TIMEOUT:
        word = "TIMEOUT";
        break;
    case TW_E_CLOSED:
        word = "CLOSED";
        break;
    default:
        if (err->code != 0) {
            char number[16];

            (void)snprintf(number, sizeof(number), "%ld", (long)err->code);
            return Py_BuildValue("(ssN)", "TWAPI_WIN32", number,
                                 text(tw_code_text(err->code)));
        }
        word = err->status == TW_E_ALERT         ? "ALERT"
               : err->status == TW_E_STATE       ? "STATE"
               : err->status == TW_E_UNSUPPORTED ? "UNSUPPORTED"
               : err->status == TW_E_NOT_FOUND   ? "NOTFOUND"
               : err->status == TW_E_PASSWORD    ? "PASSWORD"
               : err->status == TW_E_FORMAT      ? "FORMAT"
                                                 : "FAILED";
    }
    return Py_BuildValue("(sss)", "TWAPI", "TLS", word);
}

/* An alert's name, its number if it has none, None for -1. */
static PyObject *alert_of(int alert)
{
    const char *name;

    if (alert < 0) {
        return Py_NewRef(Py_None);
    }
    name = tw_alert_name(alert);
    return name != NULL ? text(name) : PyUnicode_FromFormat("%d", alert);
}

/* Takes over value. */
static int set(PyObject *exc, const char *name, PyObject *value)
{
    int failed;

    if (value == NULL) {
        return -1;
    }
    failed = PyObject_SetAttrString(exc, name, value);
    Py_DECREF(value);
    return failed;
}

static PyObject *message_of(const struct tw_error *err)
{
    const char *name = err->code != 0 ? tw_code_name(err->code) : NULL;
    char buf[TEXT_MAX];

    if (err->code == 0) {
        return text(sentence_of(err));
    }
    (void)snprintf(buf, sizeof(buf), "%s [%s%s0x%08lX]", sentence_of(err),
                   name != NULL ? name : "", name != NULL ? " " : "",
                   (unsigned long)(uint32_t)err->code);
    return text(buf);
}

/* --- making them --- */

/* OSError(errno, text) picks its own subclass. */
static PyObject *os_exception(int os)
{
#ifdef _WIN32
    /* the system's sentence, and the subclass that suits */
    PyObject *type = NULL;
    PyObject *exc = NULL;
    PyObject *trace = NULL;

    (void)PyErr_SetFromWindowsErr(os);
    PyErr_Fetch(&type, &exc, &trace);
    PyErr_NormalizeException(&type, &exc, &trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return exc;
#else
    return PyObject_CallFunction(PyExc_OSError, "is", os, strerror(os));
#endif
}

static PyObject *builtin_exception(PyObject *type,
                                   const struct tw_error *err)
{
    PyObject *message = text(sentence_of(err));
    PyObject *exc;

    if (message == NULL) {
        return NULL;
    }
    exc = PyObject_CallFunctionObjArgs(type, message, NULL);
    Py_DECREF(message);
    return exc;
}

static int fill(PyObject *exc, const struct tw_error *err, PyObject *token)
{
    const char *name = err->code != 0 ? tw_code_name(err->code) : NULL;
    int alert = err->alert_received >= 0 ? err->alert_received
                                         : err->alert_sent;

    if (set(exc, "code", PyLong_FromLong((long)err->code)) < 0 ||
        set(exc, "name", text(name != NULL ? name : "")) < 0 ||
        set(exc, "errorcode", errorcode_of(err)) < 0 ||
        set(exc, "alert", alert_of(alert)) < 0 ||
        set(exc, "alert_sent", alert_of(err->alert_sent)) < 0 ||
        set(exc, "alert_received", alert_of(err->alert_received)) < 0 ||
        set(exc, "reason", text(sentence_of(err))) < 0) {
        return -1;
    }
    if (token != NULL && set(exc, "token", Py_NewRef(token)) < 0) {
        return -1;
    }
    /* For code that looks at OSError.errno; str() stays the sentence. */
    if (err->status == TW_E_TIMEOUT) {
        return set(exc, "errno", PyLong_FromLong(ETIMEDOUT));
    }
    if (err->status == TW_E_CLOSED) {
        return set(exc, "errno", PyLong_FromLong(EPIPE));
    }
    return 0;
}

PyObject *tw_error_exception(struct tw_module *state,
                             const struct tw_error *err, PyObject *token)
{
    PyObject *message;
    PyObject *exc;

    switch (err->status) {
    case TW_E_OS:
        if (err->os != 0) {
            return os_exception(err->os);
        }
        break;
    case TW_E_NOMEM:
        return builtin_exception(PyExc_MemoryError, err);
    case TW_E_ARGUMENT:
        return builtin_exception(PyExc_ValueError, err);
    default:
        break;
    }
    message = message_of(err);
    if (message == NULL) {
        return NULL;
    }
    exc = PyObject_CallFunctionObjArgs(type_of(state, err), message, NULL);
    Py_DECREF(message);
    if (exc != NULL && fill(exc, err, token) < 0) {
        Py_CLEAR(exc);
    }
    return exc;
}

PyObject *tw_error_raise_token(struct tw_module *state,
                               const struct tw_error *err, PyObject *token)
{
    PyObject *exc = tw_error_exception(state, err, token);

    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
    return NULL;
}

PyObject *tw_error_raise(struct tw_module *state,
                         const struct tw_error *err)
{
    return tw_error_raise_token(state, err, NULL);
}

PyObject *tw_error_blocked(struct tw_module *state, Py_ssize_t written)
{
    PyObject *arguments = written == 0 ? Py_NewRef(state->blocked)
                                       : blocked_arguments(written);
    PyObject *exc;

    if (arguments == NULL) {
        return NULL;
    }
    exc = PyObject_Call(PyExc_BlockingIOError, arguments, NULL);
    Py_DECREF(arguments);
    return exc;
}

void tw_error_annotate(const char *name, PyObject *value)
{
    PyObject *type, *exc, *trace;

    PyErr_Fetch(&type, &exc, &trace);
    PyErr_NormalizeException(&type, &exc, &trace);
    if (value == NULL || PyObject_SetAttrString(exc, name, value) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(value);
    PyErr_Restore(type, exc, trace);
}
