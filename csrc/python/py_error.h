/*
 * From struct tw_error to exceptions: the only place that makes TLSError.
 */
#ifndef TW_PYTHON_PY_ERROR_H
#define TW_PYTHON_PY_ERROR_H

#include "python/module.h"

/* Makes the exception types and adds them to the module; 0 or -1. */
int tw_errors_init(PyObject *module, struct tw_module *);

/* A new exception that says what err says. token: bytes or NULL. NULL only
   if making it failed (with that exception set). */
PyObject *tw_error_exception(struct tw_module *, const struct tw_error *,
                             PyObject *token);
/* Raises it; always NULL. */
PyObject *tw_error_raise(struct tw_module *, const struct tw_error *);
PyObject *tw_error_raise_token(struct tw_module *, const struct tw_error *,
                               PyObject *token);
/* What a non-blocking call raises when nothing can be done now: a new
   BlockingIOError that says how many bytes were taken nevertheless. */
PyObject *tw_error_blocked(struct tw_module *, Py_ssize_t written);
/* Sets attribute `name` of the exception that is being raised. Takes over
   value; does nothing if value is NULL or it cannot be set. */
void tw_error_annotate(const char *name, PyObject *value);

#endif
