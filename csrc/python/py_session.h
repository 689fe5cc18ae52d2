/*
 * The rooms of the type Session, and nobody else:
 *
 *   py_session.c          its making, the answers to its questions, the type
 *   py_session_call.c     struct tw_call: one call of what is below Python
 *   py_session_socket.c   handshake and data as a channel has them
 *   py_session_memory.c   bytes in memory: feed, encrypt, decrypt, take
 *   py_session_facts.c    what is asked about it
 *
 * Every call that works or waits is described by a struct tw_call and goes
 * through tw_call_run: it lets go of the GIL (the only place that does),
 * performs the call, looks after signals and goes on with the same deadline.
 */
#ifndef TW_PYTHON_PY_SESSION_H
#define TW_PYTHON_PY_SESSION_H

#include "core/atomic.h"
#include "python/convert.h"
#include "python/module.h"
#include "python/py_error.h"

/* Bytes up to which a call that does not wait keeps the GIL. */
#define TW_SMALL ((size_t)4096)

struct tw_py_session {
    PyObject_HEAD
    struct tw_session *session; /* owned by wire once there is one */
    struct tw_pointer wire;     /* struct tw_wire; NULL without a socket */
    struct tw_lock guard;       /* see py_session.c; also credentials */
    struct tw_count lately;     /* bytes of the last recv that gave any */
    PyObject *credentials;      /* a Credentials, or NULL */
};

static inline struct tw_py_session *session_of(PyObject *self)
{
    return (struct tw_py_session *)self;
}
static inline struct tw_session *core_of(PyObject *self)
{
    return session_of(self)->session;
}
static inline struct tw_wire *wire_of(PyObject *self)
{
    return tw_pointer_get(&session_of(self)->wire);
}

/* --- py_session_call.c --- */

enum tw_op {
    TW_OP_HANDSHAKE,
    TW_OP_RECV,
    TW_OP_SEND,
    TW_OP_FLUSH,
    TW_OP_SHUTDOWN_WRITE,
    TW_OP_SHUTDOWN,
    TW_OP_CLOSE,
    TW_OP_FEED,
    TW_OP_FEED_EOF,
    TW_OP_TAKE_OUTPUT,
    TW_OP_TAKE_INPUT,
    TW_OP_VERDICT,
    TW_OP_SET_CREDENTIALS,
    TW_OP_SET_CERTIFICATE,
    TW_OP_SEAL,     /* len bytes to dst, the rest to more */
    TW_OP_SEAL_ALL, /* what waits, and len bytes, to dst */
    TW_OP_OPEN
};

struct tw_call {
    enum tw_op op;
    uint8_t *dst;       /* where bytes go */
    const uint8_t *src; /* where they come from */
    size_t len;         /* of either */
    size_t room;        /* ..._SEAL, _OPEN: of dst; len is of src */
    size_t used;        /* ..._SEAL, _OPEN: of src */
    struct tw_buffer *more; /* TW_OP_SEAL: what did not go into dst */
    size_t work;        /* most bytes that this takes time for, where len
                           does not say it; 0: len does */
    size_t n;           /* bytes moved so far */
    int64_t deadline;   /* tw_clock_ns */
    bool graceful;      /* TW_OP_CLOSE */
    int32_t code;       /* TW_OP_VERDICT */
    const char *detail; /* TW_OP_VERDICT */
    struct tw_credentials *credentials; /* TW_OP_SET_...; may be NULL */
    struct tw_error err;
};

/* Performs it, without the GIL if it is not small. Below 0: look at c->err,
   save that TW_E_INTERRUPTED means an exception is set already. */
enum tw_status tw_call_run(PyObject *self, struct tw_call *c);
/* Raises what tw_call_run left, with the output as token if no socket sends
   it. Always NULL. */
PyObject *tw_call_fail(PyObject *self, enum tw_status st, struct tw_call *c);
/* The same for a status that a data call cannot return: an error, or, with
   nothing moved, that a decision is wanted. 0: it is none; or -1. */
int tw_call_check(PyObject *self, enum tw_status st, struct tw_call *c);
/* Performs it: None, or raises. */
PyObject *tw_call_run_plain(PyObject *self, struct tw_call *c);
/* The pending output as bytes; b"" with a socket. */
PyObject *tw_call_output_bytes(PyObject *self);
/* Moves the output behind what is gathered; false: no memory. The guard is
   held. */
bool tw_call_gather_output(struct tw_session *s, struct tw_buffer *to);

/* --- the methods --- */

/* X_FAST: METH_FASTCALL; X_NONE: METH_NOARGS; X_ONE: METH_O. */
#define TW_SESSION_METHODS(X_FAST, X_NONE, X_ONE)                          \
    /* py_session.c */                                                     \
    X_FAST(verdict)                                                        \
    X_ONE(set_credentials)                                                 \
    X_ONE(set_certificate)                                                 \
    /* py_session_socket.c */                                              \
    X_ONE(attach)                                                          \
    X_NONE(fileno)                                                         \
    X_FAST(handshake)                                                      \
    X_FAST(recv)                                                           \
    X_FAST(recv_into)                                                      \
    X_FAST(send)                                                           \
    X_FAST(flush)                                                          \
    X_FAST(shutdown_write)                                                 \
    X_FAST(close)                                                          \
    X_NONE(readable)                                                       \
    X_ONE(set_ragged_eof)                                                  \
    X_ONE(set_spin)                                                        \
    /* py_session_memory.c */                                              \
    X_ONE(feed)                                                            \
    X_NONE(feed_eof)                                                       \
    X_ONE(encrypt)                                                         \
    X_FAST(encrypt_into)                                                   \
    X_ONE(encrypted_size)                                                  \
    X_ONE(decrypt)                                                         \
    X_FAST(decrypt_into)                                                   \
    X_NONE(take_output)                                                    \
    X_NONE(take_input)                                                     \
    X_NONE(shutdown)                                                       \
    X_NONE(missing)                                                        \
    /* py_session_facts.c */                                               \
    X_NONE(hello)                                                          \
    X_NONE(state)                                                          \
    X_NONE(pending)                                                        \
    X_NONE(at_rest)                                                        \
    X_NONE(output_pending)                                                 \
    X_NONE(input_pending)                                                  \
    X_NONE(read_ended)                                                     \
    X_NONE(write_ended)                                                    \
    X_NONE(error)                                                          \
    X_NONE(remote_cert)                                                    \
    X_NONE(local_cert)                                                     \
    X_NONE(facts)                                                          \
    X_ONE(binding)                                                         \
    X_FAST(export)                                                         \
    X_NONE(issuers)                                                        \
    X_NONE(ocsp)                                                           \
    X_NONE(features)

#define TW_DECLARE_FAST(name)                                              \
    PyObject *tw_py_session_##name(PyObject *, PyObject *const *,          \
                                   Py_ssize_t);                            \
    extern const char tw_py_session_##name##_doc[];
#define TW_DECLARE(name)                                                   \
    PyObject *tw_py_session_##name(PyObject *, PyObject *);                \
    extern const char tw_py_session_##name##_doc[];
TW_SESSION_METHODS(TW_DECLARE_FAST, TW_DECLARE, TW_DECLARE)
#undef TW_DECLARE_FAST
#undef TW_DECLARE

/* Beside its method, the docstring of it. */
#define TW_METHOD_DOC(name, text)                                          \
    const char tw_py_session_##name##_doc[] = PyDoc_STR(text)

#endif
