/*
 * What is asked about a Session: the ClientHello, state, errors, the peer,
 * what was agreed. None of it waits for the peer, and nothing changes.
 */
#include "python/py_session.h"
#include "python/py_session_data.h"

#include <string.h>

/* The most key material export() makes at once. */
#define EXPORT_MAX 65535

static PyObject *hello_alpn(const struct tw_hello *hello)
{
    PyObject *list = PyList_New(0);
    size_t at = 0;

    while (list != NULL && at < hello->alpn_len) {
        size_t len = hello->alpn[at];
        PyObject *name;

        if (len > hello->alpn_len - at - 1) {
            break; /* cut off where the room ended */
        }
        name = PyBytes_FromStringAndSize(
            (const char *)hello->alpn + at + 1, (Py_ssize_t)len);
        if (name == NULL || PyList_Append(list, name) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(name);
        at += len + 1;
    }
    return list;
}

static PyObject *hello_versions(const struct tw_hello *hello)
{
    PyObject *list = PyList_New(0);
    size_t i;

    for (i = 0; list != NULL && i < hello->version_count; i++) {
        PyObject *version = PyLong_FromLong(hello->versions[i]);

        if (version == NULL || PyList_Append(list, version) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(version);
    }
    return list;
}

TW_METHOD_DOC(hello,
"hello() -> dict | None\n\n"
"What the ClientHello said, from WANT_CREDENTIALS on: server_name (str, ''\n"
"if none), alpn (list of bytes), versions (list of int, 0x0304 is TLS 1.3).");

PyObject *tw_py_session_hello(PyObject *self, PyObject *unused)
{
    const struct tw_hello *hello = tw_session_hello(core_of(self));
    PyObject *alpn, *versions, *name;
    PyObject *result = NULL;

    (void)unused;
    if (hello == NULL) {
        return Py_NewRef(Py_None);
    }
    alpn = hello_alpn(hello);
    versions = hello_versions(hello);
    name = PyUnicode_DecodeUTF8(hello->sni, (Py_ssize_t)strlen(hello->sni),
                                "replace");
    if (alpn != NULL && versions != NULL && name != NULL) {
        result = Py_BuildValue("{s:O,s:O,s:O}", "server_name", name, "alpn",
                               alpn, "versions", versions);
    }
    Py_XDECREF(alpn);
    Py_XDECREF(versions);
    Py_XDECREF(name);
    return result;
}

/*
 * The session for a look at it. If somebody is inside, at work with a block
 * of records or in a step, who looks waits for him without the GIL: the
 * look itself is short.
 */
static struct tw_session *looked_at(PyObject *self)
{
    struct tw_session *s = core_of(self);

    if (tw_session_busy(s)) {
        Py_BEGIN_ALLOW_THREADS
        (void)tw_session_state(s);
        Py_END_ALLOW_THREADS
    }
    return s;
}

TW_METHOD_DOC(state,
"state() -> str\n\n\"INIT\", \"NEGOTIATING\", \"OPEN\" or \"FAILED\".");

PyObject *tw_py_session_state(PyObject *self, PyObject *unused)
{
    (void)unused;
    switch (tw_session_state(looked_at(self))) {
    case TW_INIT:
        return PyUnicode_FromString("INIT");
    case TW_NEGOTIATING:
        return PyUnicode_FromString("NEGOTIATING");
    case TW_OPEN:
        return PyUnicode_FromString("OPEN");
    default:
        return PyUnicode_FromString("FAILED");
    }
}

TW_METHOD_DOC(pending,
"pending() -> int\n\nBytes decrypted and not yet read.");

PyObject *tw_py_session_pending(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSize_t(tw_session_pending(looked_at(self)));
}

TW_METHOD_DOC(at_rest,
"at_rest() -> bool\n\n"
"Whether everything waits for the peer's next bytes: nothing inside is to be\n"
"read, and no output waits. Without a look in the socket.");

bool tw_data_at_rest(PyObject *session)
{
    return tw_session_at_rest(looked_at(session));
}

PyObject *tw_py_session_at_rest(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(tw_data_at_rest(self));
}

TW_METHOD_DOC(output_pending,
"output_pending() -> int\n\nBytes for the peer that wait to be sent.");

PyObject *tw_py_session_output_pending(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSize_t(tw_session_output(looked_at(self), NULL));
}

TW_METHOD_DOC(input_pending,
"input_pending() -> int\n\nBytes from the peer that were not consumed.");

PyObject *tw_py_session_input_pending(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSize_t(tw_session_input_length(looked_at(self)));
}

TW_METHOD_DOC(read_ended,
"read_ended() -> bool\n\nWhether the peer's data has ended.");

PyObject *tw_py_session_read_ended(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(tw_session_read_ended(looked_at(self)));
}

TW_METHOD_DOC(write_ended,
"write_ended() -> bool\n\nWhether close_notify was made.");

PyObject *tw_py_session_write_ended(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(tw_session_write_ended(looked_at(self)));
}

TW_METHOD_DOC(error,
"error() -> TLSError | OSError | None\n\n"
"The error that stands, as a new exception.");

PyObject *tw_py_session_error(PyObject *self, PyObject *unused)
{
    struct tw_error err;

    (void)unused;
    tw_error_clear(&err);
    tw_session_error(looked_at(self), &err);
    if (err.status >= TW_DONE) {
        return Py_NewRef(Py_None);
    }
    return tw_error_exception(tw_module_of(self), &err, NULL);
}

/* A certificate that `get` gives; without one TLSError says `why`. */
static PyObject *known_cert(PyObject *self,
                            enum tw_status (*get)(struct tw_session *,
                                                  struct tw_cert **,
                                                  struct tw_error *),
                            const char *why)
{
    struct tw_module *state = tw_module_of(self);
    struct tw_cert *cert = NULL;
    struct tw_error err;

    tw_error_clear(&err);
    if (get(looked_at(self), &cert, &err) != TW_DONE) {
        (void)tw_error_set(&err, TW_E_NOT_FOUND, SEC_E_NO_CREDENTIALS, "%s",
                           why);
        return tw_error_raise(state, &err);
    }
    return tw_certificate_wrap(state, cert);
}

TW_METHOD_DOC(remote_cert,
"remote_cert() -> Certificate\n\n"
"The peer's. TLSError, SEC_E_NO_CREDENTIALS, if it showed none.");

PyObject *tw_py_session_remote_cert(PyObject *self, PyObject *unused)
{
    (void)unused;
    return known_cert(self, tw_session_remote_cert,
                      "the peer's certificate is not known yet");
}

TW_METHOD_DOC(local_cert,
"local_cert() -> Certificate\n\n"
"Ours, as shown to the peer. TLSError, SEC_E_NO_CREDENTIALS, if none was.");

PyObject *tw_py_session_local_cert(PyObject *self, PyObject *unused)
{
    (void)unused;
    return known_cert(self, tw_session_local_cert,
                      "no certificate was shown to the peer");
}

TW_METHOD_DOC(facts,
"facts() -> dict\n\n"
"protocol (\"TLS 1.3\"), suite (IANA number), suite_name, cipher_name, bits,\n"
"group, alpn (bytes or None), resumed (bool, None: unknown), sni (str).\n"
"\"\" and 0 where something is not known.");

PyObject *tw_py_session_facts(PyObject *self, PyObject *unused)
{
    struct tw_facts facts;
    struct tw_error err;
    const char *protocol;

    (void)unused;
    memset(&facts, 0, sizeof(facts));
    tw_error_clear(&err);
    if (tw_session_facts(looked_at(self), &facts, &err) != TW_DONE) {
        (void)tw_error_set(&err, TW_E_STATE, 0,
                           "not known before the handshake");
        return tw_error_raise(tw_module_of(self), &err);
    }
    protocol = facts.protocol == TW_TLS1_3   ? "TLS 1.3"
               : facts.protocol == TW_TLS1_2 ? "TLS 1.2"
                                             : "";
    return Py_BuildValue(
        "{s:s,s:i,s:s,s:s,s:i,s:s,s:N,s:N,s:s}", "protocol", protocol,
        "suite", (int)facts.suite, "suite_name", facts.suite_name,
        "cipher_name", facts.cipher_name, "bits", facts.bits, "group",
        facts.group, "alpn",
        facts.alpn[0] != '\0' ? PyBytes_FromString(facts.alpn)
                              : Py_NewRef(Py_None),
        "resumed",
        facts.resumed < 0 ? Py_NewRef(Py_None)
                          : PyBool_FromLong(facts.resumed),
        "sni", tw_session_sni(core_of(self)));
}

TW_METHOD_DOC(binding,
"binding(kind) -> bytes\n\n"
"A channel binding with its prefix: \"unique\" (tls-unique, RFC 5929, TLS\n"
"1.2 only) or \"endpoint\" (tls-server-end-point). TLSError without one.");

PyObject *tw_py_session_binding(PyObject *self, PyObject *arg)
{
    static const char *const names[] = {"unique", "endpoint", NULL};
    static const enum tw_binding kinds[] = {TW_BIND_UNIQUE,
                                            TW_BIND_ENDPOINT};
    uint8_t out[256];
    size_t len = sizeof(out);
    struct tw_error err;
    int kind = 0;

    if (tw_arg_word(arg, "kind", names, &kind) < 0) {
        return NULL;
    }
    tw_error_clear(&err);
    if (tw_session_binding(looked_at(self), kinds[kind], NULL, NULL, 0, out,
                           &len, &err) != TW_DONE) {
        (void)tw_error_set(&err, TW_E_STATE, 0,
                           "there is no channel binding yet");
        return tw_error_raise(tw_module_of(self), &err);
    }
    return PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)len);
}

TW_METHOD_DOC(export,
"export(label, length, context=None) -> bytes\n\n"
"Key material (RFC 8446, 7.5; RFC 5705): length bytes, 1 to 65535.");

PyObject *tw_py_session_export(PyObject *self, PyObject *const *args,
                               Py_ssize_t count)
{
    const char *label = NULL;
    Py_buffer view = {.obj = NULL};
    PyObject *bytes;
    struct tw_error err;
    enum tw_status st;
    int64_t length = 0;
    size_t len;

    if (tw_arg_count("export", count, 2, 3) < 0 ||
        tw_arg_text(args[0], "label", false, &label) < 0 ||
        tw_arg_int(args[1], "length", 1, EXPORT_MAX, &length) < 0) {
        return NULL;
    }
    if (count > 2 && args[2] != Py_None &&
        PyObject_GetBuffer(args[2], &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    len = (size_t)length;
    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);
    if (bytes != NULL) {
        /* An empty context is not the same as none (RFC 5705, 4). */
        const uint8_t *context =
            view.obj == NULL ? NULL
            : view.len != 0  ? view.buf
                             : (const uint8_t *)"";

        tw_error_clear(&err);
        st = tw_session_binding(looked_at(self), TW_BIND_EXPORTER, label,
                                context, (size_t)view.len,
                                (uint8_t *)PyBytes_AsString(bytes), &len,
                                &err);
        if (st != TW_DONE || len != (size_t)length) {
            Py_CLEAR(bytes);
            (void)tw_error_set(&err, TW_E_STATE, 0,
                               "there is no key material to export");
            (void)tw_error_raise(tw_module_of(self), &err);
        }
    }
    if (view.obj != NULL) {
        PyBuffer_Release(&view);
    }
    return bytes;
}

TW_METHOD_DOC(issuers,
"issuers() -> list[bytes]\n\n"
"The CA names (DER) that the peer asks certificates from.");

PyObject *tw_py_session_issuers(PyObject *self, PyObject *unused)
{
    PyObject *result = NULL;
    struct tw_items items;
    struct tw_error err;
    enum tw_status st;

    (void)unused;
    tw_error_clear(&err);
    tw_items_init(&items);
    st = tw_session_issuers(looked_at(self), tw_items_sink, &items, &err);
    if (st < 0 && !items.failed) {
        (void)tw_error_set(&err, st, 0, "%s", tw_status_text(st));
        (void)tw_error_raise(tw_module_of(self), &err);
    } else {
        result = tw_items_list(&items);
    }
    tw_items_free(&items);
    return result;
}

TW_METHOD_DOC(ocsp,
"ocsp() -> bytes | None\n\nThe stapled OCSP answer in DER.");

PyObject *tw_py_session_ocsp(PyObject *self, PyObject *unused)
{
    struct tw_items items;
    PyObject *result;

    (void)unused;
    tw_items_init(&items);
    tw_session_ocsp(looked_at(self), tw_items_sink, &items);
    result = tw_items_first(&items);
    tw_items_free(&items);
    return result;
}

TW_METHOD_DOC(features,
"features() -> int\n\n"
"The ISC_RET_ or ASC_RET_ flags that the context has.");

PyObject *tw_py_session_features(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(tw_session_features(looked_at(self)));
}
