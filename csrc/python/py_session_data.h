/*
 * A Session's data calls without the objects around them, for the other
 * types of this floor. They let go of the GIL as the methods do.
 */
#ifndef TW_PYTHON_PY_SESSION_DATA_H
#define TW_PYTHON_PY_SESSION_DATA_H

#include "python/module.h"

/* What a read came to, told by the caller's words for bytes, end, none.
   TW_GOT_ERROR: an exception is set. */
enum tw_outcome { TW_GOT_BYTES, TW_GOT_END, TW_GOT_NOTHING, TW_GOT_ERROR };

/* 1 to n bytes as a new bytes object in *bytes, which stays as it is for
   any other outcome. deadline: tw_clock_ns. */
enum tw_outcome tw_data_recv(PyObject *session, size_t n, int64_t deadline,
                             PyObject **bytes);
/* The same into dst; *n bytes. */
enum tw_outcome tw_data_recv_into(PyObject *session, uint8_t *dst,
                                  size_t len, int64_t deadline, size_t *n);
/* How many bytes were taken, as Session.send() says it; -1 with an
   exception, whose `written` says it. */
Py_ssize_t tw_data_send(PyObject *session, const uint8_t *src, size_t len,
                        int64_t deadline);
/* Session.readable() and at_rest(). */
bool tw_data_readable(PyObject *session);
bool tw_data_at_rest(PyObject *session);

#endif
