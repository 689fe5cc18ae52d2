/*
 * Arguments in, lists of bytes out: see convert.h.
 *
 * A collected item is a frame in one buffer: the two lengths, the key, the
 * data. The lengths are copied in and out, for frames are not aligned.
 */
#include "python/convert.h"

#include <math.h>
#include <string.h>

/* --- which argument is which --- */

int tw_arg_count(const char *method, Py_ssize_t count, Py_ssize_t min,
                 Py_ssize_t max)
{
    if (count >= min && count <= max) {
        return 0;
    }
    (void)PyErr_Format(PyExc_TypeError,
                       "%s() takes %zd to %zd arguments, not %zd", method,
                       min, max, count);
    return -1;
}

static int find_name(const struct tw_signature *sig, PyObject *name)
{
    int i;

    for (i = 0; sig->names[i] != NULL; i++) {
        if (sig->names[i][0] != '\0' &&
            PyUnicode_CompareWithASCIIString(name, sig->names[i]) == 0) {
            return i;
        }
    }
    (void)PyErr_Format(PyExc_TypeError,
                       "%s() got an unexpected keyword argument '%U'",
                       sig->method, name);
    return -1;
}

int tw_args(const struct tw_signature *sig, PyObject *const *args,
            Py_ssize_t count, PyObject *kwnames, PyObject **out)
{
    Py_ssize_t named = kwnames != NULL ? PyTuple_Size(kwnames) : 0;
    Py_ssize_t i;

    for (i = 0; sig->names[i] != NULL; i++) {
        out[i] = NULL;
    }
    if (count > sig->positional) {
        (void)PyErr_Format(PyExc_TypeError,
                           "%s() takes at most %d positional arguments, "
                           "not %zd",
                           sig->method, sig->positional, count);
        return -1;
    }
    for (i = 0; i < count; i++) {
        out[i] = args[i];
    }
    for (i = 0; i < named; i++) {
        PyObject *name = PyTuple_GetItem(kwnames, i);
        int place = find_name(sig, name);

        if (place < 0) {
            return -1;
        }
        if (out[place] != NULL) {
            (void)PyErr_Format(PyExc_TypeError,
                               "%s() got argument '%U' twice", sig->method,
                               name);
            return -1;
        }
        out[place] = args[count + i];
    }
    for (i = 0; i < sig->required; i++) {
        if (out[i] == NULL) {
            (void)PyErr_Format(PyExc_TypeError,
                               "%s() misses argument '%s' (%d)",
                               sig->method, sig->names[i], (int)i + 1);
            return -1;
        }
    }
    return 0;
}

/* --- what it holds --- */

int tw_arg_int(PyObject *obj, const char *what, int64_t min, int64_t max,
               int64_t *out)
{
    PyObject *number;
    long long value;
    int overflow = 0;

    if (obj == NULL) {
        return 0;
    }
    number = PyNumber_Index(obj);
    if (number == NULL) {
        return -1;
    }
    value = PyLong_AsLongLongAndOverflow(number, &overflow);
    Py_DECREF(number);
    if (value == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (overflow != 0 || value < min || value > max) {
        (void)PyErr_Format(PyExc_ValueError,
                           "%s must be from %lld to %lld", what,
                           (long long)min, (long long)max);
        return -1;
    }
    *out = value;
    return 0;
}

int tw_arg_bool(PyObject *obj, bool *out)
{
    int truth;

    if (obj == NULL) {
        return 0;
    }
    truth = PyObject_IsTrue(obj);
    if (truth < 0) {
        return -1;
    }
    *out = truth != 0;
    return 0;
}

int tw_arg_text(PyObject *obj, const char *what, bool none_allowed,
                const char **out)
{
    const char *utf8;
    Py_ssize_t len;

    if (obj == NULL) {
        return 0;
    }
    if (obj == Py_None && none_allowed) {
        *out = NULL;
        return 0;
    }
    if (!PyUnicode_Check(obj)) {
        (void)PyErr_Format(PyExc_TypeError, "%s must be a str%s", what,
                           none_allowed ? " or None" : "");
        return -1;
    }
    utf8 = PyUnicode_AsUTF8AndSize(obj, &len);
    if (utf8 == NULL) {
        return -1;
    }
    if (strlen(utf8) != (size_t)len) {
        (void)PyErr_Format(PyExc_ValueError, "%s holds a NUL character",
                           what);
        return -1;
    }
    *out = utf8;
    return 0;
}

int tw_arg_word(PyObject *obj, const char *what, const char *const *words,
                int *out)
{
    char list[160] = "";
    int i;

    if (obj == NULL) {
        return 0;
    }
    if (!PyUnicode_Check(obj)) {
        (void)PyErr_Format(PyExc_TypeError, "%s must be a str", what);
        return -1;
    }
    for (i = 0; words[i] != NULL; i++) {
        if (PyUnicode_CompareWithASCIIString(obj, words[i]) == 0) {
            *out = i;
            return 0;
        }
    }
    for (i = 0; words[i] != NULL; i++) {
        if (strlen(list) + strlen(words[i]) + 2 < sizeof(list)) {
            strcat(strcat(list, " "), words[i]);
        }
    }
    (void)PyErr_Format(PyExc_ValueError, "%s must be one of%s, not %R",
                       what, list, obj);
    return -1;
}

int tw_arg_timeout(PyObject *obj, int64_t *deadline)
{
    double seconds;
    int64_t ns;

    if (obj == NULL) {
        return 0;
    }
    if (obj == Py_None) {
        *deadline = TW_FOREVER;
        return 0;
    }
    seconds = PyFloat_AsDouble(obj);
    if (seconds == -1.0 && PyErr_Occurred()) {
        return -1;
    }
    if (isnan(seconds) || seconds < 0.0) {
        PyErr_SetString(PyExc_ValueError,
                        "timeout must be None or 0 or more seconds");
        return -1;
    }
    if (seconds == 0.0) {
        *deadline = TW_NO_WAIT;
    } else if (seconds > 1e9) { /* 31 years, and no overflow below */
        *deadline = TW_FOREVER;
    } else {
        ns = (int64_t)(seconds * 1e9);
        *deadline = tw_clock_ns() + (ns > 0 ? ns : 1);
    }
    return 0;
}

PyObject *tw_arg_tuple(PyObject *obj, const char *what)
{
    if (PyUnicode_Check(obj)) {
        (void)PyErr_Format(PyExc_TypeError,
                           "%s must be a sequence, not one str", what);
        return NULL;
    }
    return PySequence_Tuple(obj);
}

PyObject *tw_bytes_cut(PyObject *bytes, size_t n)
{
    PyObject *exact;

    if ((size_t)PyBytes_Size(bytes) == n) {
        return bytes;
    }
    exact = PyBytes_FromStringAndSize(PyBytes_AsString(bytes),
                                      (Py_ssize_t)n);
    Py_DECREF(bytes);
    return exact;
}

/* --- items out --- */

void tw_items_init(struct tw_items *items)
{
    tw_buffer_init(&items->bytes);
    items->count = 0;
    items->failed = false;
}

void tw_items_free(struct tw_items *items)
{
    tw_buffer_free(&items->bytes);
}

bool tw_items_sink(void *arg, const char *key, const void *data, size_t len)
{
    struct tw_items *items = arg;
    size_t sizes[2];

    sizes[0] = key != NULL ? strlen(key) : 0;
    sizes[1] = len;
    if (!tw_buffer_append(&items->bytes, sizes, sizeof(sizes)) ||
        (sizes[0] != 0 &&
         !tw_buffer_append(&items->bytes, key, sizes[0])) ||
        (len != 0 && !tw_buffer_append(&items->bytes, data, len))) {
        items->failed = true;
        return false;
    }
    items->count++;
    return true;
}

struct item {
    const char *key;
    const char *data;
    Py_ssize_t key_len;
    Py_ssize_t len;
};

/* The item at *at, which moves on. */
static struct item next_item(const char **at)
{
    struct item found;
    size_t sizes[2];

    memcpy(sizes, *at, sizeof(sizes));
    found.key = *at + sizeof(sizes);
    found.key_len = (Py_ssize_t)sizes[0];
    found.data = found.key + sizes[0];
    found.len = (Py_ssize_t)sizes[1];
    *at = found.data + sizes[1];
    return found;
}

static PyObject *pair(const struct item *it)
{
    PyObject *key = PyUnicode_DecodeUTF8(it->key, it->key_len, "replace");
    PyObject *value = PyUnicode_DecodeUTF8(it->data, it->len, "replace");
    PyObject *both = NULL;

    if (key != NULL && value != NULL) {
        both = PyTuple_Pack(2, key, value);
    }
    Py_XDECREF(key);
    Py_XDECREF(value);
    return both;
}

static PyObject *make_list(const struct tw_items *items, bool pairs)
{
    const char *at = (const char *)tw_buffer_head(&items->bytes);
    PyObject *list;
    size_t i;

    if (items->failed) {
        return PyErr_NoMemory();
    }
    list = PyList_New((Py_ssize_t)items->count);
    for (i = 0; list != NULL && i < items->count; i++) {
        struct item it = next_item(&at);
        PyObject *one = pairs ? pair(&it)
                              : PyBytes_FromStringAndSize(it.data, it.len);

        if (one == NULL || PyList_SetItem(list, (Py_ssize_t)i, one) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

PyObject *tw_items_pairs(const struct tw_items *items)
{
    return make_list(items, true);
}

PyObject *tw_items_list(const struct tw_items *items)
{
    return make_list(items, false);
}

PyObject *tw_items_first(const struct tw_items *items)
{
    const char *at = (const char *)tw_buffer_head(&items->bytes);
    struct item it;

    if (items->failed) {
        return PyErr_NoMemory();
    }
    if (items->count == 0) {
        return Py_NewRef(Py_None);
    }
    it = next_item(&at);
    return PyBytes_FromStringAndSize(it.data, it.len);
}

PyObject *tw_items_text(const struct tw_items *items)
{
    const char *at = (const char *)tw_buffer_head(&items->bytes);
    struct item it;

    if (items->failed) {
        return PyErr_NoMemory();
    }
    if (items->count == 0) {
        return PyUnicode_FromStringAndSize("", 0);
    }
    it = next_item(&at);
    return PyUnicode_DecodeUTF8(it.data, it.len, "replace");
}
