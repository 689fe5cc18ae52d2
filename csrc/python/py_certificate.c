/*
 * Certificate: a certificate, perhaps with its private key. Immutable, so
 * it needs no lock; equal and hashed by its DER. Made by a Store, by a
 * Session, or from DER; never by calling the type.
 *
 * Everything it tells comes from the engine as text or bytes through a
 * sink; no ASN.1 here. verify() may go to the network: it lets go of the
 * GIL, with the stores it uses locked for as long as the engine needs them.
 */
#include "python/convert.h"
#include "python/module.h"
#include "python/py_error.h"

#include <string.h>

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

static struct tw_cert *cert_of(PyObject *self)
{
    return ((struct tw_py_certificate *)self)->cert;
}

/* --- making, finding, freeing --- */

PyObject *tw_certificate_wrap(struct tw_module *state, struct tw_cert *cert)
{
    PyObject *self = PyType_GenericAlloc(state->certificate, 0);

    if (self == NULL) {
        tw_provider_default()->cert_free(cert);
        return NULL;
    }
    ((struct tw_py_certificate *)self)->cert = cert;
    return self;
}

struct tw_cert *tw_certificate_get(struct tw_module *state, PyObject *obj,
                                   const char *what)
{
    if (!PyObject_TypeCheck(obj, state->certificate)) {
        (void)PyErr_Format(PyExc_TypeError, "%s must be a Certificate",
                           what);
        return NULL;
    }
    return cert_of(obj);
}

static void certificate_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    tw_provider_default()->cert_free(cert_of(self));
    PyObject_Free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(from_der_doc,
"from_der(data) -> Certificate\n\n"
"The certificate that bytes hold in DER. TLSError if they hold none.");

static PyObject *certificate_from_der(PyObject *type, PyObject *arg)
{
    struct tw_module *state = tw_module_of_type((PyTypeObject *)type);
    const struct tw_provider *p = tw_provider_default();
    struct tw_store *store = NULL;
    struct tw_cert *cert = NULL;
    struct tw_error err;
    enum tw_status st;
    Py_buffer view;

    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    tw_error_clear(&err);
    st = p->store_new(&store, &err);
    if (st == TW_DONE) {
        st = p->store_import(store, TW_ENC_CERT_DER, view.buf,
                             (size_t)view.len, NULL, &err);
    }
    PyBuffer_Release(&view);
    if (st == TW_DONE) {
        cert = p->store_get(store, 0);
        if (cert == NULL) {
            st = tw_error_set(&err, TW_E_FORMAT, CRYPT_E_ASN1_BADTAG,
                              "this is no certificate in DER");
        }
    }
    p->store_free(store);
    if (st != TW_DONE) {
        return tw_error_raise(state, &err);
    }
    return tw_certificate_wrap(state, cert);
}

/* --- what it is --- */

static void der_of(PyObject *self, const uint8_t **der, size_t *len)
{
    *der = NULL;
    *len = 0;
    tw_provider_default()->cert_der(cert_of(self), der, len);
}

PyDoc_STRVAR(der_doc, "der() -> bytes\n\nThe certificate in DER.");

static PyObject *certificate_der(PyObject *self, PyObject *unused)
{
    const uint8_t *der;
    size_t len;

    (void)unused;
    der_of(self, &der, &len);
    return PyBytes_FromStringAndSize((const char *)der, (Py_ssize_t)len);
}

PyDoc_STRVAR(chain_doc,
"chain() -> Store\n\n"
"The certificates that came with it from the peer, leaf first.");

static PyObject *certificate_chain(PyObject *self, PyObject *unused)
{
    struct tw_module *state = tw_module_of(self);
    struct tw_store *store = NULL;
    struct tw_error err;

    (void)unused;
    tw_error_clear(&err);
    if (tw_provider_default()->cert_chain(cert_of(self), &store, &err) !=
        TW_DONE) {
        return tw_error_raise(state, &err);
    }
    return tw_store_wrap(state, store);
}

PyDoc_STRVAR(has_private_key_doc,
"has_private_key() -> bool\n\nWhether its private key can be used.");

static PyObject *certificate_has_private_key(PyObject *self,
                                             PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(
        tw_provider_default()->cert_has_key(cert_of(self)));
}

PyDoc_STRVAR(name_doc,
"name(which) -> str\n\n"
"which: \"subject_rdn\", \"issuer_rdn\", \"subject_cn\" or \"issuer_cn\".\n"
"\"\" if the certificate does not say.");

static PyObject *certificate_name(PyObject *self, PyObject *arg)
{
    /* in the order of enum tw_name */
    const char *const *words = NAMES("subject_rdn", "issuer_rdn",
                                     "subject_cn", "issuer_cn");
    PyObject *result = NULL;
    struct tw_items items;
    struct tw_error err;
    int which = 0;

    if (tw_arg_word(arg, "which", words, &which) < 0) {
        return NULL;
    }
    tw_error_clear(&err);
    tw_items_init(&items);
    if (tw_provider_default()->cert_text(cert_of(self), (enum tw_name)which,
                                         tw_items_sink, &items,
                                         &err) != TW_DONE &&
        !items.failed) {
        tw_error_raise(tw_module_of(self), &err);
    } else {
        result = tw_items_text(&items);
    }
    tw_items_free(&items);
    return result;
}

PyDoc_STRVAR(info_doc,
"info() -> list[tuple[str, str]]\n\n"
"(key, text) pairs: version, serial (hex), subject, issuer, notbefore,\n"
"notafter (ISO 8601), key_algorithm, key_bits, signature_algorithm, is_ca\n"
"(\"0\" or \"1\"), and as often as there are any: dns, ip, email, uri,\n"
"usage, eku (dotted), ocsp_url, crl_url, ca_url.");

static PyObject *certificate_info(PyObject *self, PyObject *unused)
{
    PyObject *result = NULL;
    struct tw_items items;
    struct tw_error err;

    (void)unused;
    tw_error_clear(&err);
    tw_items_init(&items);
    if (tw_provider_default()->cert_info(cert_of(self), tw_items_sink,
                                         &items, &err) != TW_DONE &&
        !items.failed) {
        tw_error_raise(tw_module_of(self), &err);
    } else {
        result = tw_items_pairs(&items);
    }
    tw_items_free(&items);
    return result;
}

PyDoc_STRVAR(digest_doc,
"digest(bytes) -> bytes\n\n"
"The digest of its DER: SHA-1 for 20 bytes, SHA-256 for 32.");

static PyObject *certificate_digest(PyObject *self, PyObject *const *args,
                                    Py_ssize_t count, PyObject *kwnames)
{
    const struct tw_signature sig = {"digest", NAMES("bytes"), 1, 1};
    static const uint8_t none[32];
    struct tw_error err;
    PyObject *given[1];
    uint8_t out[32];
    int64_t size = 0;

    if (tw_args(&sig, args, count, kwnames, given) < 0 ||
        tw_arg_int(given[0], "bytes", INT32_MIN, INT32_MAX, &size) < 0) {
        return NULL;
    }
    if (size != 20 && size != 32) {
        PyErr_SetString(PyExc_ValueError, "bytes must be 20 or 32");
        return NULL;
    }
    tw_provider_default()->cert_digest(cert_of(self), (int)size, out);
    if (memcmp(out, none, (size_t)size) == 0) {
        tw_error_clear(&err);
        (void)tw_error_set(&err, TW_E_UNSUPPORTED,
                           SEC_E_UNSUPPORTED_FUNCTION,
                           "the engine does not offer SHA-%s",
                           size == 20 ? "1" : "256");
        return tw_error_raise(tw_module_of(self), &err);
    }
    return PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)size);
}

PyDoc_STRVAR(matches_doc,
"matches(host, common_name=False) -> bool\n\n"
"Whether it names the host, a DNS name or an IP address (RFC 6125). The\n"
"common name counts only if asked for, and only without other names.");

static PyObject *certificate_matches(PyObject *self, PyObject *const *args,
                                     Py_ssize_t count, PyObject *kwnames)
{
    const struct tw_signature sig = {"matches",
                                     NAMES("host", "common_name"), 1, 2};
    PyObject *given[2];
    const char *host = NULL;
    bool cn = false;

    if (tw_args(&sig, args, count, kwnames, given) < 0 ||
        tw_arg_text(given[0], "host", false, &host) < 0 ||
        tw_arg_bool(given[1], &cn) < 0) {
        return NULL;
    }
    return PyBool_FromLong(
        tw_provider_default()->cert_matches(cert_of(self), host, cn));
}

/* --- verify --- */

/* The arguments of verify(), by place. */
enum {
    V_SERVER,
    V_CHECK_NAME,
    V_COMMON_NAME,
    V_EXTRA,
    V_ROOTS,
    V_MORE_ROOTS,
    V_REVOCATION,
    V_IGNORE,
    V_USAGES,
    V_USAGE_ANY,
    V_OCSP,
    V_FETCH,
    V_FETCH_TIMEOUT,
    V_CACHE_END_CERT,
    V_ROOT_UPDATE,
    V_MACHINE,
    V_PATH,
    V_COUNT
};

/* What a verification holds on to while it runs. */
struct verification {
    struct tw_verify_config config;
    struct tw_py_store *stores[3]; /* extra, roots, more_roots */
    struct tw_py_store *order[3];  /* the same, sorted by the lock */
    bool locked;
    PyObject *usages;              /* tuple of str, owned, or NULL */
    const char **oids;             /* into usages; owned array */
    Py_buffer ocsp;                /* .obj NULL: none */
};

static int parse_usages(struct verification *v, PyObject *obj)
{
    Py_ssize_t count;
    Py_ssize_t i;

    if (obj == NULL || obj == Py_None) {
        return 0;
    }
    v->usages = tw_arg_tuple(obj, "usages");
    if (v->usages == NULL) {
        return -1;
    }
    count = PyTuple_Size(v->usages);
    v->oids = PyMem_Calloc((size_t)count + 1, sizeof(*v->oids));
    if (v->oids == NULL) {
        (void)PyErr_NoMemory();
        return -1;
    }
    for (i = 0; i < count; i++) {
        if (tw_arg_text(PyTuple_GetItem(v->usages, i), "usage", false,
                        &v->oids[i]) < 0) {
            return -1;
        }
    }
    v->config.usages = v->oids;
    v->config.usage_count = (size_t)count;
    return 0;
}

static int parse_stores(struct verification *v, struct tw_module *state,
                        PyObject **given)
{
    if (tw_store_get(state, given[V_EXTRA], "extra", &v->stores[0]) < 0 ||
        tw_store_get(state, given[V_ROOTS], "roots", &v->stores[1]) < 0 ||
        tw_store_get(state, given[V_MORE_ROOTS], "more_roots",
                     &v->stores[2]) < 0) {
        return -1;
    }
    memcpy(v->order, v->stores, sizeof(v->order));
    v->config.extra = v->stores[0] ? v->stores[0]->store : NULL;
    v->config.roots = v->stores[1] ? v->stores[1]->store : NULL;
    v->config.more_roots = v->stores[2] ? v->stores[2]->store : NULL;
    return 0;
}

static int parse_numbers(struct verification *v, PyObject **given)
{
    /* in the order of enum tw_revocation */
    const char *const *words = NAMES("none", "leaf", "all", "excluderoot");
    int revocation = TW_REVOKE_NONE;
    double seconds = 15.0;
    int64_t ignored = 0;

    if (tw_arg_word(given[V_REVOCATION], "revocation", words,
                    &revocation) < 0 ||
        tw_arg_int(given[V_IGNORE], "ignore", 0, 0x1FF, &ignored) < 0) {
        return -1;
    }
    if (given[V_FETCH_TIMEOUT] != NULL) {
        seconds = PyFloat_AsDouble(given[V_FETCH_TIMEOUT]);
        if (seconds == -1.0 && PyErr_Occurred()) {
            return -1;
        }
    }
    if (!(seconds >= 0.0)) { /* NaN as well */
        PyErr_SetString(PyExc_ValueError,
                        "fetch_timeout must be 0 or more seconds");
        return -1;
    }
    v->config.revocation = (enum tw_revocation)revocation;
    v->config.ignore = (uint32_t)ignored;
    v->config.fetch_timeout_ms =
        seconds > 1e6 ? 1000000000 : (int)(seconds * 1000.0);
    return 0;
}

static int parse_flags(struct verification *v, PyObject **given)
{
    bool cache = false, update = true, machine = false;

    if (tw_arg_bool(given[V_CACHE_END_CERT], &cache) < 0 ||
        tw_arg_bool(given[V_ROOT_UPDATE], &update) < 0 ||
        tw_arg_bool(given[V_MACHINE], &machine) < 0) {
        return -1;
    }
    v->config.flags = (cache ? TW_VERIFY_CACHE_END_CERT : 0) |
                      (update ? 0 : TW_VERIFY_NO_ROOT_UPDATE) |
                      (machine ? TW_VERIFY_MACHINE : 0);
    return 0;
}

static int parse_verification(struct verification *v,
                              struct tw_module *state, PyObject **given)
{
    v->config.check_name = true;
    if (tw_arg_text(given[V_SERVER], "server", true, &v->config.server) <
            0 ||
        tw_arg_bool(given[V_CHECK_NAME], &v->config.check_name) < 0 ||
        tw_arg_bool(given[V_COMMON_NAME], &v->config.common_name) < 0 ||
        tw_arg_bool(given[V_USAGE_ANY], &v->config.usage_any) < 0 ||
        tw_arg_bool(given[V_FETCH], &v->config.fetch) < 0 ||
        tw_arg_bool(given[V_PATH], &v->config.want_path) < 0 ||
        parse_numbers(v, given) < 0 || parse_flags(v, given) < 0 ||
        parse_stores(v, state, given) < 0 ||
        parse_usages(v, given[V_USAGES]) < 0) {
        return -1;
    }
    if (given[V_OCSP] != NULL && given[V_OCSP] != Py_None) {
        if (PyObject_GetBuffer(given[V_OCSP], &v->ocsp, PyBUF_SIMPLE) < 0) {
            return -1;
        }
        v->config.ocsp = v->ocsp.buf;
        v->config.ocsp_len = (size_t)v->ocsp.len;
    }
    return 0;
}

static PyObject *verdict_tuple(struct tw_module *state,
                               struct tw_verdict *verdict)
{
    PyObject *path = verdict->path != NULL
                         ? tw_store_wrap(state, verdict->path)
                         : Py_NewRef(Py_None);
    PyObject *detail = PyUnicode_DecodeUTF8(
        verdict->detail, (Py_ssize_t)strlen(verdict->detail), "replace");
    PyObject *result = NULL;

    if (path != NULL && detail != NULL) {
        result = Py_BuildValue("(liOO)", (long)verdict->code,
                               verdict->depth, detail, path);
    }
    Py_XDECREF(path);
    Py_XDECREF(detail);
    return result;
}

static void unlock_stores(void *arg)
{
    struct verification *v = arg;

    v->locked = false;
    tw_stores_unlock(v->order, 3);
}

static PyObject *run_verification(PyObject *self, struct verification *v)
{
    struct tw_module *state = tw_module_of(self);
    struct tw_verdict verdict;
    struct tw_error err;
    enum tw_status st;

    memset(&verdict, 0, sizeof(verdict));
    tw_error_clear(&err);
    Py_BEGIN_ALLOW_THREADS
    v->config.gathered = unlock_stores;
    v->config.gathered_arg = v;
    v->locked = true;
    tw_stores_lock(v->order, 3);
    st = tw_provider_default()->cert_verify(cert_of(self), &v->config,
                                            &verdict, &err);
    if (v->locked) {
        unlock_stores(v);
    }
    Py_END_ALLOW_THREADS
    if (st != TW_DONE) {
        tw_provider_default()->store_free(verdict.path);
        return tw_error_raise(state, &err);
    }
    return verdict_tuple(state, &verdict);
}

PyDoc_STRVAR(verify_doc,
"verify(*, server=None, check_name=True, common_name=False, extra=None,\n"
"    roots=None, more_roots=None, revocation='none', ignore=0,\n"
"    usages=None, usage_any=False, ocsp=None, fetch=False,\n"
"    fetch_timeout=15.0, cache_end_cert=False, root_update=True,\n"
"    machine=False, path=False)\n"
"    -> (code, depth, detail, path)\n\n"
"Builds and judges its path. code: 0 if it is good, else a CERT_E_ code;\n"
"depth: of the certificate it is about, 0 for this one; detail: the\n"
"engine's sentence; path: it as a Store if asked for, else None. server:\n"
"the name to compare, None for a client's certificate. extra: what may\n"
"stand between, besides what came with it. roots: the only anchors, None\n"
"for the system's; more_roots: besides them. ignore: IGNORE bits.\n"
"usages: dotted OIDs. ocsp: a stapled answer in DER. fetch: may go to the\n"
"network, at most fetch_timeout seconds. cache_end_cert, root_update,\n"
"machine (the machine's trust, not the user's): for an engine that does\n"
"such things. TLSError if it could not run.");

static PyObject *certificate_verify(PyObject *self, PyObject *const *args,
                                    Py_ssize_t count, PyObject *kwnames)
{
    const struct tw_signature sig = {
        "verify",
        NAMES("server", "check_name", "common_name", "extra", "roots",
              "more_roots", "revocation", "ignore", "usages", "usage_any",
              "ocsp", "fetch", "fetch_timeout", "cache_end_cert",
              "root_update", "machine", "path"),
        0, 0};
    PyObject *given[V_COUNT];
    PyObject *result = NULL;
    struct verification v;

    memset(&v, 0, sizeof(v));
    if (tw_args(&sig, args, count, kwnames, given) < 0) {
        return NULL;
    }
    if (parse_verification(&v, tw_module_of(self), given) == 0) {
        result = run_verification(self, &v);
    }
    if (v.ocsp.obj != NULL) {
        PyBuffer_Release(&v.ocsp);
    }
    PyMem_Free(v.oids);
    Py_XDECREF(v.usages);
    return result;
}

/* --- the object protocol --- */

static PyObject *certificate_compare(PyObject *a, PyObject *b, int op)
{
    const uint8_t *der_a, *der_b;
    size_t len_a, len_b;
    bool same;

    if ((op != Py_EQ && op != Py_NE) || Py_TYPE(a) != Py_TYPE(b)) {
        return Py_NewRef(Py_NotImplemented);
    }
    der_of(a, &der_a, &len_a);
    der_of(b, &der_b, &len_b);
    same = len_a == len_b && memcmp(der_a, der_b, len_a) == 0;
    return PyBool_FromLong(same == (op == Py_EQ));
}

static Py_hash_t certificate_hash(PyObject *self)
{
    uint8_t digest[32];
    Py_hash_t hash;

    tw_provider_default()->cert_digest(cert_of(self), 32, digest);
    memcpy(&hash, digest, sizeof(hash));
    return hash == -1 ? -2 : hash;
}

static PyObject *certificate_repr(PyObject *self)
{
    PyObject *result = NULL;
    PyObject *subject = NULL;
    struct tw_items items;
    struct tw_error err;

    tw_error_clear(&err);
    tw_items_init(&items);
    (void)tw_provider_default()->cert_text(cert_of(self),
                                           TW_NAME_SUBJECT_RDN,
                                           tw_items_sink, &items, &err);
    subject = tw_items_text(&items);
    tw_items_free(&items);
    if (subject != NULL) {
        result = PyUnicode_FromFormat("<Certificate %R>", subject);
        Py_DECREF(subject);
    }
    return result;
}

static PyMethodDef certificate_methods[] = {
    {"der", certificate_der, METH_NOARGS, der_doc},
    {"chain", certificate_chain, METH_NOARGS, chain_doc},
    {"has_private_key", certificate_has_private_key, METH_NOARGS,
     has_private_key_doc},
    {"name", certificate_name, METH_O, name_doc},
    {"info", certificate_info, METH_NOARGS, info_doc},
    {"digest", (PyCFunction)(void (*)(void))certificate_digest,
     METH_FASTCALL | METH_KEYWORDS, digest_doc},
    {"matches", (PyCFunction)(void (*)(void))certificate_matches,
     METH_FASTCALL | METH_KEYWORDS, matches_doc},
    {"verify", (PyCFunction)(void (*)(void))certificate_verify,
     METH_FASTCALL | METH_KEYWORDS, verify_doc},
    {"from_der", certificate_from_der, METH_O | METH_CLASS, from_der_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(certificate_doc,
"A certificate, perhaps with a private key. Immutable; equal and hashed\n"
"by its DER.");

static PyType_Slot certificate_slots[] = {
    {Py_tp_doc, (void *)certificate_doc},
    {Py_tp_dealloc, (void *)certificate_dealloc},
    {Py_tp_methods, certificate_methods},
    {Py_tp_richcompare, (void *)certificate_compare},
    {Py_tp_hash, (void *)certificate_hash},
    {Py_tp_repr, (void *)certificate_repr},
    {0, NULL},
};

static PyType_Spec certificate_spec = {
    .name = "twapi_tls._native.Certificate",
    .basicsize = sizeof(struct tw_py_certificate),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = certificate_slots,
};

int tw_certificate_type(PyObject *module, struct tw_module *state)
{
    return tw_add_type(module, &certificate_spec, &state->certificate);
}
