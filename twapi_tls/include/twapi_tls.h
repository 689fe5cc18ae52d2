/*
 * The C API of twapi_tls: TLS for C extensions, without the GIL.
 *
 * The functions are in a table behind a capsule. Include <Python.h>, then
 * this file, and once, with the GIL:
 *
 *     static const struct twapi_tls_api *tls;
 *     tls = twapi_tls_import();             (NULL with an exception)
 *
 * After that nothing here needs the GIL, a Python object, or a thread that
 * Python knows. Compile with twapi_tls.get_include() on the include path;
 * there is nothing to link.
 *
 * Versions: the table only grows at its end, structures carry their size,
 * and a status or flag never changes its value, so an extension that was
 * built against version N runs with every later one.
 *
 * Threads: a context may be used from any thread; calls that move bytes
 * take turns. Of a connection one thread may read while another writes; closing it from a
 * third ends both with TWAPI_TLS_E_CLOSED. Freeing is for the last user.
 *
 * Output first: whatever a call on a context returns, errors included, the
 * bytes in dst[0..*written) go to the peer: an alert may be among them. The
 * first error stays and is returned again.
 *
 * Deadlines are in nanoseconds on the clock of clock_ns();
 * TWAPI_TLS_NO_WAIT never waits (a TWAPI_TLS_WANT_ status instead),
 * TWAPI_TLS_FOREVER always does.
 */
#ifndef TWAPI_TLS_H
#define TWAPI_TLS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TWAPI_TLS_API_VERSION 1
#define TWAPI_TLS_CAPSULE "twapi_tls._native.capi"

/* --- statuses: 0 done, above it what is wanted, below it errors --- */
enum twapi_tls_status {
    TWAPI_TLS_DONE = 0,
    TWAPI_TLS_WANT_READ = 1,    /* bytes of the peer */
    TWAPI_TLS_WANT_WRITE = 2,   /* room: dst is full, or the socket is */
    TWAPI_TLS_WANT_VERDICT = 3, /* with TWAPI_TLS_MANUAL: call verdict */
    TWAPI_TLS_END = 6,          /* the peer closed with close_notify */
    TWAPI_TLS_E_TLS = -1,
    TWAPI_TLS_E_ALERT = -2,     /* the peer sent a fatal alert */
    TWAPI_TLS_E_TRUNCATED = -3, /* the stream ended without close_notify */
    TWAPI_TLS_E_NEGOTIATE_EOF = -4,
    TWAPI_TLS_E_REFUSED = -5,   /* the peer's certificate; see code */
    TWAPI_TLS_E_CLOSED = -6,
    TWAPI_TLS_E_STATE = -7,     /* not possible now; nothing was done */
    TWAPI_TLS_E_OS = -8,        /* see os */
    TWAPI_TLS_E_TIMEOUT = -9,
    TWAPI_TLS_E_INTERRUPTED = -10, /* a signal: call again, or give up */
    TWAPI_TLS_E_NOMEM = -11,
    TWAPI_TLS_E_ARGUMENT = -12,
    TWAPI_TLS_E_UNSUPPORTED = -13,
    TWAPI_TLS_E_NOT_FOUND = -14,
    TWAPI_TLS_E_PASSWORD = -15, /* wrong or missing, for a key */
    TWAPI_TLS_E_FORMAT = -16
};

struct twapi_tls_error {
    int status;           /* as returned */
    int32_t code;         /* SSPI code (SEC_E_...), 0 if none */
    int os;               /* errno or WSAGetLastError(), 0 if none */
    int16_t alert_sent;   /* AlertDescription (RFC 8446, 6), or -1 */
    int16_t alert_received;
    char detail[256];     /* a sentence, UTF-8, NUL-terminated, may be "" */
};

#define TWAPI_TLS_CLIENT 1
#define TWAPI_TLS_SERVER 2

#define TWAPI_TLS_V1_2 0x2u
#define TWAPI_TLS_V1_3 0x4u

#define TWAPI_TLS_NO_WAIT INT64_C(0)
#define TWAPI_TLS_FOREVER INT64_C(-1)

/* --- credentials --- */

/* twapi_tls_credentials_config.flags */
#define TWAPI_TLS_NO_RESUME 0x1u /* neither offers nor accepts tickets */
#define TWAPI_TLS_INSTALL_INTERMEDIATES 0x2u /* into the user's CA store, as
                                                Schannel sends what Windows
                                                finds; else nothing to do */

/* Zero it, set size to sizeof, fill in what is needed. All is copied. */
struct twapi_tls_credentials_config {
    size_t size;
    int role;                 /* TWAPI_TLS_CLIENT or _SERVER */
    uint32_t flags;
    uint32_t protocols;       /* TWAPI_TLS_V1_..., 0: the default */
    const void *identity;     /* certificates, their chain and keys; may
                                 be NULL on a client */
    size_t identity_len;
    int identity_pfx;         /* 0: PEM, 1: PKCS#12 */
    const char *password;     /* UTF-8; NULL: none */
    const void *roots;        /* PEM: a client's trust anchors in place of
                                 the system's, a server's CA names; NULL */
    size_t roots_len;
};

struct twapi_tls_credentials;

/* --- contexts --- */

/* twapi_tls_context_config.flags */
#define TWAPI_TLS_MANUAL 0x1u       /* pause with WANT_VERDICT; a client
                                       checks nothing by itself then */
#define TWAPI_TLS_REQUEST_CERT 0x2u /* server: ask the client for its
                                       certificate; needs MANUAL, for only
                                       the caller can judge it */
#define TWAPI_TLS_RAGGED_EOF 0x4u   /* END also without close_notify */

struct twapi_tls_context_config {
    size_t size;
    uint32_t flags;
    const char *target;   /* client: the server's name (ASCII A-labels) or
                             address, for SNI and the check; needed unless
                             MANUAL */
    const uint8_t *alpn;  /* RFC 7301 names, each after its length byte */
    size_t alpn_len;
};

struct twapi_tls_context;

struct twapi_tls_facts {
    size_t size;           /* set by the caller */
    uint32_t protocol;     /* TWAPI_TLS_V1_... */
    uint16_t suite;        /* IANA number */
    int bits;              /* of the cipher's key */
    int resumed;           /* 1, 0, -1: the engine cannot tell */
    char suite_name[64];
    char group[32];        /* "x25519", "" if unknown */
    char alpn[256];        /* "" if none */
    char sni[256];         /* what the client asked for, "" if nothing */
};

/* --- connections: a context and a native socket --- */

struct twapi_tls_connection;

#ifdef _WIN32
typedef uintptr_t twapi_tls_socket; /* SOCKET */
#else
typedef int twapi_tls_socket;
#endif

/*
 * Functions give a status; err may be NULL, else it is filled on an error.
 * Buffers are the caller's; *consumed, *written and *n are always set.
 */
struct twapi_tls_api {
    uint32_t version; /* TWAPI_TLS_API_VERSION of the library */
    size_t size;      /* of the library's table */

    const char *(*engine)(void);         /* "openssl", "schannel" */
    const char *(*engine_version)(void);
    int64_t (*clock_ns)(void);           /* monotonic */
    const char *(*status_text)(int status);
    const char *(*code_name)(int32_t code);   /* NULL if it has none */
    const char *(*alert_name)(int alert);     /* NULL if it has none */

    /* A server needs at least one certificate with its key. */
    int (*credentials_new)(const struct twapi_tls_credentials_config *,
                           struct twapi_tls_credentials **,
                           struct twapi_tls_error *);
    /* Contexts keep what they need. NULL is ignored, here and below. */
    void (*credentials_free)(struct twapi_tls_credentials *);

    int (*context_new)(struct twapi_tls_credentials *,
                       const struct twapi_tls_context_config *,
                       struct twapi_tls_context **,
                       struct twapi_tls_error *);
    void (*context_free)(struct twapi_tls_context *);

    /* Bytes in, bytes out: */

    /* Goes as far as src allows. DONE: open. What src holds past the
       handshake is kept for decrypt. WANT_WRITE: dst is full, go on with
       another. A client verifies by itself unless MANUAL. */
    int (*handshake)(struct twapi_tls_context *, const void *src,
                     size_t len, size_t *consumed, void *dst, size_t cap,
                     size_t *written, struct twapi_tls_error *);
    /* After WANT_VERDICT: 0 accepts, an SSPI code refuses; then call
       handshake again for what goes to the peer. */
    int (*verdict)(struct twapi_tls_context *, int32_t code,
                   struct twapi_tls_error *);
    /* The check that a client does by itself: 0 in *code, or why not. */
    int (*verify)(struct twapi_tls_context *, int32_t *code,
                  struct twapi_tls_error *);
    /* DONE: all of src is sealed and in dst. WANT_WRITE: dst is full,
       src is taken up to *consumed. WANT_READ: a renegotiation has to be
       answered first: decrypt what comes. */
    int (*encrypt)(struct twapi_tls_context *, const void *src, size_t len,
                   size_t *consumed, void *dst, size_t cap,
                   size_t *written, struct twapi_tls_error *);
    /* Records of src into plaintext. DONE: dst is full, there may be
       more; WANT_READ: all of src is taken, the next record is not whole;
       END. Bytes for the peer may have come up: output. */
    int (*decrypt)(struct twapi_tls_context *, const void *src, size_t len,
                   size_t *consumed, void *dst, size_t cap,
                   size_t *written, struct twapi_tls_error *);
    /* Bytes for the peer that wait, moved into dst; how many. */
    size_t (*output)(struct twapi_tls_context *, void *dst, size_t cap);
    /* The peer's stream has ended (TCP EOF). */
    void (*input_eof)(struct twapi_tls_context *);
    /* close_notify into the output; idempotent. */
    int (*shutdown)(struct twapi_tls_context *, struct twapi_tls_error *);
    int (*facts)(struct twapi_tls_context *, struct twapi_tls_facts *,
                 struct twapi_tls_error *);
    /* DER of the peer's certificate: *len is the room on entry, the
       length on return; WANT_WRITE if it does not fit, E_NOT_FOUND if
       there is none. */
    int (*peer_certificate)(struct twapi_tls_context *, void *dst,
                            size_t *len, struct twapi_tls_error *);

    /* Takes over both, on success only. The socket becomes non-blocking
       and is not inherited. */
    int (*connection_new)(struct twapi_tls_context *, twapi_tls_socket,
                          struct twapi_tls_connection **,
                          struct twapi_tls_error *);
    /* Closes what is open, at once. */
    void (*connection_free)(struct twapi_tls_connection *);
    /* The context, for facts, verdict, verify, peer_certificate; borrowed.
       The calls that move bytes answer E_STATE. */
    struct twapi_tls_context *(*connection_context)(
        struct twapi_tls_connection *);
    int (*connection_handshake)(struct twapi_tls_connection *,
                                int64_t deadline, struct twapi_tls_error *);
    /* 1..cap bytes and DONE, or END with none. */
    int (*connection_read)(struct twapi_tls_connection *, void *dst,
                           size_t cap, size_t *n, int64_t deadline,
                           struct twapi_tls_error *);
    /* All of src, or as much as *n says. */
    int (*connection_write)(struct twapi_tls_connection *, const void *src,
                            size_t len, size_t *n, int64_t deadline,
                            struct twapi_tls_error *);
    /* close_notify, then FIN; reading goes on. */
    int (*connection_shutdown)(struct twapi_tls_connection *,
                               int64_t deadline, struct twapi_tls_error *);
    /* close_notify as far as the deadline allows, then closes. */
    void (*connection_close)(struct twapi_tls_connection *,
                             int64_t deadline);
    /* version 1 ends here */
};

#ifdef Py_PYTHON_H
/* With the GIL. NULL with an exception if the package is not there or is
   older than this header. */
static inline const struct twapi_tls_api *twapi_tls_import(void)
{
    const struct twapi_tls_api *api =
        (const struct twapi_tls_api *)PyCapsule_Import(TWAPI_TLS_CAPSULE, 0);

    if (api != NULL && (api->version < TWAPI_TLS_API_VERSION ||
                        api->size < sizeof(*api))) {
        PyErr_Format(PyExc_ImportError,
                     "twapi_tls offers version %u of its C API, this "
                     "extension was built for %u",
                     (unsigned)api->version,
                     (unsigned)TWAPI_TLS_API_VERSION);
        return NULL;
    }
    return api;
}
#endif

#ifdef __cplusplus
}
#endif

#endif
