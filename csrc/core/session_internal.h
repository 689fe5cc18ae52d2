/*
 * The rooms of the session that share its state, and nobody else:
 *
 *   session.c             its making and its end; the theory of operation
 *   session_bytes.c       input, output, and what the wire does with them
 *   session_step.c        one call of ISC or ASC
 *   session_fail.c        errors, and the alerts that go with them
 *   session_handshake.c   the first handshake, its pauses and their answers
 *   session_read.c        decrypting, renegotiation
 *   session_write.c       sealing, close_notify
 *   session_memory.c      both from the caller's memory to the caller's
 *   session_facts.c       what is asked about it
 *
 * A function whose name ends in _lock_held is called with the session's
 * lock, and none of them lets go of it. A status that one returns is the
 * session's own: below 0, the session has failed with s->error, for good.
 * tw_session_report_lock_held hands that out.
 */
#ifndef TW_CORE_SESSION_INTERNAL_H
#define TW_CORE_SESSION_INTERNAL_H

#include "core/atomic.h"
#include "core/buffer.h"
#include "core/lock.h"
#include "core/record.h"
#include "core/session.h"

#define TW_UPDATE_ROOM 64u /* for a KeyUpdate that an engine puts between */

#define TW_ALERT_UNEXPECTED_MESSAGE 10
#define TW_ALERT_RECORD_OVERFLOW 22
#define TW_ALERT_ILLEGAL_PARAMETER 47
#define TW_ALERT_DECODE_ERROR 50
#define TW_ALERT_INTERNAL_ERROR 80
#define TW_ALERT_USER_CANCELED 90
#define TW_ALERT_NO_RENEGOTIATION 100

enum tw_pause {
    TW_PAUSE_NONE,
    TW_PAUSE_VERDICT,
    TW_PAUSE_CREDENTIALS,
    TW_PAUSE_CERTIFICATE
};

struct tw_session {
    struct tw_lock lock;
    const struct tw_provider *provider;
    const SecurityFunctionTableW *table;
    struct tw_credentials *credentials; /* a reference; may be NULL */
    CredHandle *handle;     /* of credentials; NULL until chosen */
    CtxtHandle ctx;         /* valid while has_ctx */
    SEC_WCHAR *target;      /* UTF-16; NULL: no SNI */
    uint8_t *alpn;          /* SEC_APPLICATION_PROTOCOLS; may be NULL */
    ULONG alpn_len;         /* its exact length */
    struct tw_hello *hello; /* server, once the ClientHello is read */
    struct tw_cert *remote; /* the peer's certificate, once known */
    struct tw_facts *facts; /* as they were at OPEN; facts_len bytes */
    size_t facts_len;
    struct tw_buffer input; /* see session.c */
    size_t plain_len;
    size_t plain_skip;
    size_t tried;  /* ciphertext length that was not enough; 0: none */
    size_t need;   /* ciphertext length the engine hopes for; 0: none */
    struct tw_buffer output;
    struct tw_count has_output; /* is there any? Read without the lock */
    struct tw_buffer retired; /* output's old memory, still lent out */
    struct tw_buffer held;    /* tokens of the last step, not released */
    SECURITY_STATUS held_status; /* of that step */
    SecPkgContext_StreamSizes sizes; /* valid once OPEN */
    ULONG features;      /* attributes of the context */
    unsigned int empty;  /* records without data in a row */
    unsigned int handshakes; /* the same of RENEGOTIATE */
    struct tw_error error;   /* the first one; stays */
    enum tw_role role;
    enum tw_state state;
    enum tw_pause pause;
    bool has_ctx;
    bool request_cert, ask_verdict, ask_credentials, ask_certificate;
    bool ragged_eof;
    bool eof;            /* the peer's stream ended */
    bool seen_record;    /* the peer's first record was TLS */
    bool judged;         /* the verdict was given */
    bool poke;           /* step next without waiting for input */
    bool asked_cert;     /* the certificate pause is over */
    bool use_supplied;   /* ISC_REQ_USE_SUPPLIED_CREDS was added */
    bool renegotiating;
    bool read_ended, write_ended;
    bool close_later;    /* close_notify is due after the renegotiation */
    bool aborted;
    bool dead;           /* the context takes no further calls */
    bool input_lent, output_lent;
    bool indirect;       /* the engine has no seal and open for this one */
    char *sni;           /* owned; NULL if none */
};

/* What one call of ISC or ASC came to. */
struct tw_step {
    SECURITY_STATUS status;
    size_t consumed; /* bytes of its input */
};

/* What DecryptMessage made of a record: n bytes of data, and how many of
   the bytes it was given are left over at their end. */
struct tw_plain {
    uint8_t *data; /* where it lies; NULL: none */
    size_t n;
    size_t extra;
};

/* --- session.c --- */

/* Is this what the session can use? */
bool tw_session_suits_lock_held(const struct tw_session *s,
                                struct tw_credentials *c);
/* len bytes and a NUL, to be freed; NULL: no memory. */
char *tw_name_copy(const char *name, size_t len);

/* --- session_bytes.c --- */

/* The ciphertext behind the plaintext: where it lies, and how much. */
uint8_t *tw_cipher_at_lock_held(struct tw_session *s, size_t *len);
/* n bytes of it were used; they go once the plaintext before them went. */
void tw_cipher_consume_lock_held(struct tw_session *s, size_t n);
/* n bytes of the plaintext were read. */
void tw_plain_consume_lock_held(struct tw_session *s, size_t n);
/* Gives memory back that is empty and not lent out. */
void tw_input_relax_lock_held(struct tw_session *s);
/* The bytes at hand were not enough; what SECBUFFER_MISSING said is a hint
   and may be 0. */
void tw_input_note_missing_lock_held(struct tw_session *s, size_t hint);
/* Bytes that the next step lacks at least; 0: it can go on, or will not. */
size_t tw_input_missing_lock_held(struct tw_session *s);
/* As tw_buffer_reserve, _commit, _append; memory that is lent out is left
   where it is and freed when it comes back. */
uint8_t *tw_output_reserve_lock_held(struct tw_session *s, size_t n);
void tw_output_commit_lock_held(struct tw_session *s, size_t n);
bool tw_output_append_lock_held(struct tw_session *s, const void *data,
                                size_t n);
/* Opens the gate: the held tokens become output. False: no memory. */
bool tw_held_release_lock_held(struct tw_session *s);

/* --- session_step.c --- */

void tw_sec_buffer_set(SecBuffer *b, ULONG type, void *data, size_t len);
/* One step with len bytes of input; in NULL: none at all. What it gave for
   the peer lies in `held`. */
struct tw_step tw_step_run_lock_held(struct tw_session *s, uint8_t *in,
                                     size_t len);
/* Tells the engine whose windows ask for the PIN of these credentials'
   key. Below 0 with s->error set; the session has not failed yet. */
SECURITY_STATUS tw_session_set_window_lock_held(struct tw_session *s);

/* --- session_fail.c --- */

/* s->error is set: no way back. Returns its status. */
enum tw_status tw_session_failed_lock_held(struct tw_session *s);
enum tw_status tw_session_nomem_lock_held(struct tw_session *s);
/* Hands the standing error out together with an error status. */
enum tw_status tw_session_report_lock_held(struct tw_session *s,
                                           enum tw_status st,
                                           struct tw_error *err);
/* An error of this call only; the session lives on. */
enum tw_status tw_refuse_call(struct tw_error *err, enum tw_status status,
                              const char *why);
/* A fatal alert in a record without keys: RFC 8446, 6. */
void tw_alert_plain_lock_held(struct tw_session *s, int alert);
/* Which alert these bytes for the peer are: in the clear, or as the engine
   tells, or else as was meant. */
int tw_alert_told_lock_held(struct tw_session *s, const uint8_t *data,
                            size_t len, int meant);
/* Tells the peer why, as well as can be; the context is dead then. */
void tw_alert_send_lock_held(struct tw_session *s, int alert);
/* The peer closed the connection during the negotiation. */
enum tw_status tw_negotiation_closed_lock_held(struct tw_session *s);
/* A call of the engine failed; `held` may have its alert. */
enum tw_status tw_engine_failed_lock_held(struct tw_session *s,
                                          SECURITY_STATUS status);
/* An error of the peer's that we found ourselves. */
enum tw_status tw_peer_broke_lock_held(struct tw_session *s,
                                       SECURITY_STATUS code, int alert,
                                       const char *what);
/* The ciphertext at hand does not begin like a TLS record. */
enum tw_status tw_peer_not_tls_lock_held(struct tw_session *s,
                                         enum tw_record_fault fault);

/* --- session_handshake.c --- */

/* SECPKG_ATTR_STREAM_SIZES, kept where they make sense. */
enum tw_status tw_session_query_sizes_lock_held(struct tw_session *s);

/* --- session_read.c --- */

/* DecryptMessage over at[0..len) with these four buffers. */
SECURITY_STATUS tw_engine_decrypt_lock_held(struct tw_session *s,
                                            SecBuffer *b, uint8_t *at,
                                            size_t len);
/* A status of DecryptMessage after which reading goes on. */
bool tw_is_reading(SECURITY_STATUS status);
/* Sorts the four buffers out; false: the engine breaks its word. */
bool tw_plain_find(const SecBuffer *b, uint8_t *at, size_t len,
                   struct tw_plain *found);
/* Acts on the status of what was decrypted, with data or without. */
enum tw_status tw_session_decrypted_lock_held(struct tw_session *s,
                                              SECURITY_STATUS status,
                                              bool data);
/* tw_session_read within the lock, of a session that is OPEN or FAILED; *n
   is where to go on in dst. */
enum tw_status tw_session_read_lock_held(struct tw_session *s, uint8_t *dst,
                                         size_t cap, size_t *n);
/* Brings a renegotiation on that a writer has to wait for, as a read would.
   Plaintext in its way is the reader's: TW_DONE, and nothing has changed. */
enum tw_status tw_session_renegotiate_lock_held(struct tw_session *s);

/* --- session_write.c --- */

/* May bytes be sealed now? If not, *err says why. */
enum tw_status tw_session_may_write_lock_held(struct tw_session *s,
                                              struct tw_error *err);
/* Seals straight from src to dst[0..room), as many records as fit: *taken
   bytes became *made. */
enum tw_status tw_session_seal_into_lock_held(struct tw_session *s,
                                              const uint8_t *src, size_t len,
                                              uint8_t *dst, size_t room,
                                              size_t *taken, size_t *made);
/* close_notify into the output, or later if a renegotiation goes on. An
   error is this call's only. */
enum tw_status tw_session_shutdown_lock_held(struct tw_session *s,
                                             struct tw_error *err);

#endif
