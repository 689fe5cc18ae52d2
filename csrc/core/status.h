/*
 * One vocabulary of results for every floor above the engine.
 *
 * 0 is done, positive values say what is wanted before the same call can
 * go on, negative values are errors. The text of each, and the exception
 * that the Python floor makes of it, come from the one list below.
 *
 * An error's particulars travel in struct tw_error, filled by whoever
 * found the cause and never overwritten on the way up: the first cause is
 * the one a person wants to read.
 */
#ifndef TW_CORE_STATUS_H
#define TW_CORE_STATUS_H

#include <stdint.h>

/* X(name, value, sentence) */
#define TW_STATUS_LIST(X)                                                  \
    X(TW_DONE, 0, "done")                                                  \
    X(TW_WANT_READ, 1, "more bytes from the peer are needed")              \
    X(TW_WANT_WRITE, 2, "output waits to be sent")                         \
    X(TW_WANT_VERDICT, 3, "the peer's certificate waits for a verdict")    \
    X(TW_WANT_CREDENTIALS, 4, "the server's credentials are to be chosen") \
    X(TW_WANT_CERTIFICATE, 5, "a client certificate is asked for")         \
    X(TW_END, 6, "the peer closed its side with close_notify")             \
    X(TW_E_TLS, -1, "TLS failed")                                          \
    X(TW_E_ALERT, -2, "the peer sent a fatal alert")                       \
    X(TW_E_TRUNCATED, -3, "the connection ended without close_notify")     \
    X(TW_E_NEGOTIATE_EOF, -4, "Unexpected EOF during TLS negotiation")     \
    X(TW_E_REFUSED, -5, "the peer's certificate was refused")              \
    X(TW_E_CLOSED, -6, "the channel is closed")                            \
    X(TW_E_STATE, -7, "not possible in this state")                        \
    X(TW_E_OS, -8, "the operating system reported an error")               \
    X(TW_E_TIMEOUT, -9, "the operation timed out")                         \
    X(TW_E_INTERRUPTED, -10, "a signal arrived")                           \
    X(TW_E_NOMEM, -11, "out of memory")                                    \
    X(TW_E_ARGUMENT, -12, "bad argument")                                  \
    X(TW_E_UNSUPPORTED, -13, "this engine cannot do that")                 \
    X(TW_E_NOT_FOUND, -14, "not found")                                    \
    X(TW_E_PASSWORD, -15, "wrong password")                                \
    X(TW_E_FORMAT, -16, "not in the expected format")

enum tw_status {
#define TW_STATUS_ENUM(name, value, text) name = value,
    TW_STATUS_LIST(TW_STATUS_ENUM)
#undef TW_STATUS_ENUM
};

struct tw_error {
    enum tw_status status; /* an error, or TW_DONE while there is none */
    int32_t code;          /* SSPI status (SEC_E_...), 0 if none */
    int os;                /* errno or WSAGetLastError(), 0 if none */
    int16_t alert_sent;    /* AlertDescription (RFC 8446, 6), or -1 */
    int16_t alert_received;
    char detail[256];      /* a sentence for a person, UTF-8, may be "" */
};

/* Empties err: no error, no alerts. */
void tw_error_clear(struct tw_error *err);

/*
 * Records an error unless one is recorded already. err may be NULL.
 * Always returns status, so that `return tw_error_set(...)` reads well.
 */
#if defined(__GNUC__)
__attribute__((format(printf, 4, 5)))
#endif
enum tw_status
tw_error_set(struct tw_error *err, enum tw_status status, int32_t code,
             const char *format, ...);

/* The sentence of a status; never NULL. */
const char *tw_status_text(enum tw_status status);

/* "SEC_E_WRONG_PRINCIPAL" and the like; NULL for an unknown code. */
const char *tw_code_name(int32_t code);

/* A sentence a person can act on for an SSPI code; never NULL. */
const char *tw_code_text(int32_t code);

/* "handshake_failure" and the like (RFC 8446, 6.2); NULL if unknown. */
const char *tw_alert_name(int alert);

/* The alert that says best to the peer why we refuse, RFC 8446, 6.2. */
int tw_alert_for_code(int32_t code);

#endif
