/*
 * Arguments in, bytes and lists of them out: what every room here needs.
 *
 * The limited API has no argument parser for METH_FASTCALL, hence tw_args.
 * Functions return 0 or -1 with an exception, pointers NULL with one.
 */
#ifndef TW_PYTHON_CONVERT_H
#define TW_PYTHON_CONVERT_H

#include "core/buffer.h"
#include "python/module.h"

/* How a METH_FASTCALL | METH_KEYWORDS method may be called. */
struct tw_signature {
    const char *method;       /* for messages: "recv" */
    const char *const *names; /* of the parameters, NULL at the end; a
                                 name "" is positional only */
    int required;             /* the first so many must be there */
    int positional;           /* at most so many without a name */
};

/* Borrowed arguments into out, one per name, NULL where not given. */
int tw_args(const struct tw_signature *, PyObject *const *args,
            Py_ssize_t count, PyObject *kwnames, PyObject **out);
/* For METH_FASTCALL: is the number of arguments within min..max? */
int tw_arg_count(const char *method, Py_ssize_t count, Py_ssize_t min,
                 Py_ssize_t max);

/* In each, obj may be NULL (not given): *out stays as it is. */

/* TypeError if it is no int, ValueError out of min..max. */
int tw_arg_int(PyObject *obj, const char *what, int64_t min, int64_t max,
               int64_t *out);
int tw_arg_bool(PyObject *obj, bool *out);
/* Borrowed UTF-8 without NUL; None gives NULL if allowed. */
int tw_arg_text(PyObject *obj, const char *what, bool none_allowed,
                const char **out);
/* One of NULL-ended words; *out its index. ValueError lists them. */
int tw_arg_word(PyObject *obj, const char *what, const char *const *words,
                int *out);
/* Seconds (None: for ever) to an absolute deadline. */
int tw_arg_timeout(PyObject *obj, int64_t *deadline);
/* A tuple of what an iterable has; a str is refused. NULL on failure. */
PyObject *tw_arg_tuple(PyObject *obj, const char *what);

/* The first n bytes of a bytes object that was made with more room, in the
   place of it: takes over the reference. (The limited API cannot resize.) */
PyObject *tw_bytes_cut(PyObject *bytes, size_t n);

/* Collects items without touching Python: a tw_sink, for calls made with
   no GIL or under a lock. */
struct tw_items {
    struct tw_buffer bytes; /* frames: two size_t, key, data */
    size_t count;
    bool failed; /* out of memory */
};

void tw_items_init(struct tw_items *);
void tw_items_free(struct tw_items *);
bool tw_items_sink(void *items, const char *key, const void *data,
                   size_t len);
/* New objects; tw_items_first gives None if there is none. */
PyObject *tw_items_pairs(const struct tw_items *); /* [(str, str)] */
PyObject *tw_items_list(const struct tw_items *);  /* [bytes] */
PyObject *tw_items_first(const struct tw_items *); /* bytes or None */
PyObject *tw_items_text(const struct tw_items *);  /* str, "" if none */

#endif
