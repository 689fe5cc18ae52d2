/*
 * struct tw_session: one TLS channel as a byte machine.
 *
 * Bytes from the peer go in, bytes for the peer come out, plaintext is read
 * and written; it never waits, never sees a socket, never calls back. Where
 * a decision is needed (the peer's certificate, a server's credentials, a
 * client's certificate) a call returns TW_WANT_... and the caller answers.
 *
 * Every function takes the session's lock; a session may be used from any
 * thread. Whatever a call returns, output that it left is sent first
 * (tw_session_output): an alert that explains an error to the peer is
 * output too. The first error stays and is returned again; plaintext that
 * was decrypted before it is delivered first.
 *
 * States (tw_session_state) and what leads on:
 *   INIT --handshake--> NEGOTIATING --engine done, verdict yes--> OPEN
 *   any --error--> FAILED;  any --tw_session_abort--> FAILED
 * In OPEN the two directions end apart: `read_end` by close_notify,
 * `write_end` by tw_session_shutdown.
 */
#ifndef TW_CORE_SESSION_H
#define TW_CORE_SESSION_H

#include "core/credentials.h"
#include "core/hello.h"
#include "core/status.h"
#include "sspi/provider.h"

enum tw_state { TW_INIT, TW_NEGOTIATING, TW_OPEN, TW_FAILED };

struct tw_session;

struct tw_session_config {
    enum tw_role role;
    struct tw_credentials *credentials; /* counted; a server may leave it
                                  NULL if ask_credentials */
    const char *target;   /* client: name asked for by SNI, UTF-8 (ASCII
                             A-labels); "" or NULL: none. IP literals send
                             no SNI. */
    bool request_cert;    /* server: ask the client for its certificate */
    bool ask_verdict;     /* pause with TW_WANT_VERDICT; false: no check */
    bool ask_credentials; /* server: pause with TW_WANT_CREDENTIALS once
                             the ClientHello is read */
    bool ask_certificate; /* client: pause with TW_WANT_CERTIFICATE */
    bool ragged_eof;      /* TCP EOF without close_notify is TW_END */
    const uint8_t *alpn;  /* RFC 7301 ProtocolNameList without its outer
                             length: (len, bytes)*; may be NULL */
    size_t alpn_len;
};

/* A new session, or NULL with *err. Copies the config. */
struct tw_session *tw_session_new(const struct tw_provider *,
                                  const struct tw_session_config *,
                                  struct tw_error *err);
void tw_session_free(struct tw_session *); /* wipes; NULL is ignored */

/* --- bytes of the wire --- */

/* Room for bytes from the peer: *ptr with at least `want` bytes (*room),
   and as many as the next step lacks. Valid until the next call on this
   session. TW_E_NOMEM possible. Input is bounded: want above 1 MiB is
   TW_E_ARGUMENT. */
enum tw_status tw_session_input_reserve(struct tw_session *, size_t want,
                                        uint8_t **ptr, size_t *room);
void tw_session_input_commit(struct tw_session *, size_t n);
/* The same with a copy. */
enum tw_status tw_session_input(struct tw_session *, const uint8_t *data,
                                size_t len);
/* The peer's stream has ended (TCP EOF). */
void tw_session_input_eof(struct tw_session *);
/* Changes what TCP EOF without close_notify is, as in the configuration;
   an error that stands already stays. */
void tw_session_set_ragged_eof(struct tw_session *, bool ragged);
/* How many bytes the next step lacks at least; 0: a whole record (or an
   end) is there already. A hint for how much to receive. */
size_t tw_session_missing(struct tw_session *);
/* Unconsumed input, taken out: for contexts without sockets (`leftover`).
   Copies up to cap bytes, removes them, returns how many. */
size_t tw_session_input_take(struct tw_session *, uint8_t *dst,
                             size_t cap);
size_t tw_session_input_length(struct tw_session *);

/* Bytes for the peer: the pending output, valid until the next call. ptr
   NULL: only how many; whoever holds them may be sending them. */
size_t tw_session_output(struct tw_session *, const uint8_t **ptr);
void tw_session_output_consume(struct tw_session *, size_t n);
/* Is there any? Without a lock: certain of what the calling thread left or
   took, a glance at what others do. */
bool tw_session_has_output(struct tw_session *);

/* --- handshake --- */

/* One drive as far as it goes with the input at hand: TW_DONE (OPEN),
   TW_WANT_READ, TW_WANT_VERDICT/_CREDENTIALS/_CERTIFICATE, or an error.
   Once OPEN it brings on a renegotiation that holds writing back, up to
   plaintext that has to be read first (TW_DONE). */
enum tw_status tw_session_handshake(struct tw_session *,
                                    struct tw_error *err);
/* Answers. Wrong state: TW_E_STATE. code 0 accepts, else refuses with that
   SSPI code (the session fails with TW_E_REFUSED and an alert is output). */
enum tw_status tw_session_verdict(struct tw_session *, int32_t code,
                                  const char *detail,
                                  struct tw_error *err);
enum tw_status tw_session_set_credentials(struct tw_session *,
                                          struct tw_credentials *,
                                          struct tw_error *err);
/* NULL: go on without a certificate. */
enum tw_status tw_session_set_certificate(struct tw_session *,
                                          struct tw_credentials *,
                                          struct tw_error *err);
/* What the ClientHello said; valid after TW_WANT_CREDENTIALS on a server,
   for as long as the session lives. NULL before, and on a server that does
   not ask for credentials: there it may go at any time. */
const struct tw_hello *tw_session_hello(struct tw_session *);

/* --- plaintext --- */

/* Decrypts records at hand into dst: *n > 0 and TW_DONE; TW_WANT_READ when
   no whole record is there; TW_END after close_notify; an error after all
   plaintext before it was read. cap 0 gives TW_DONE, *n 0. */
enum tw_status tw_session_read(struct tw_session *, uint8_t *dst,
                               size_t cap, size_t *n,
                               struct tw_error *err);
/* Would tw_session_read say something: data, the end, an error? Records at
   hand are opened until one has data, which stays for the reader; what they
   call for (an answer, an alert) becomes output. Before OPEN: could the
   negotiation go on? */
bool tw_session_look(struct tw_session *);
/* Does everything wait for the peer's next bytes: no data, no whole record,
   no end inside, and no output? */
bool tw_session_at_rest(struct tw_session *);
/* Plaintext decrypted and not yet read, in bytes. */
size_t tw_session_pending(struct tw_session *);
/* Seals src into output as far as its bound (TW_OUTPUT_LIMIT) allows; *n
   bytes taken. *n < len with TW_WANT_WRITE: drain the output, go on with
   the rest. Bytes taken are never to be given again. Before OPEN:
   TW_E_STATE. After shutdown: TW_E_CLOSED. */
#define TW_OUTPUT_LIMIT (512u * 1024u)
enum tw_status tw_session_write(struct tw_session *, const uint8_t *src,
                                size_t len, size_t *n,
                                struct tw_error *err);
/*
 * The same two for callers who have the peer's bytes in memory and want
 * theirs there: with as few copies as the engine allows, and no more memory
 * in between than a record takes. Both do what they can and say how far
 * they came: nothing, if bytes already wait that must go first. The rest
 * goes the ordinary way.
 *
 * seal: *taken bytes of src became *made of whole records at dst;
 * sealed_size is what len bytes become, room enough for all of them.
 * open: *used bytes of src gave *n of data; content_size is room enough for
 * what whole records in src can hold, with what waits inside already.
 */
size_t tw_session_sealed_size(struct tw_session *, size_t len);
/* Room for all that a caller gets who takes the output, seals len bytes and
   takes the output again: with what waits, and what an engine puts between. */
size_t tw_session_sealed_bound(struct tw_session *, size_t len);
/* Is sealed_size exactly what comes out (an AEAD), or a bound? */
bool tw_session_sealed_exactly(struct tw_session *);
enum tw_status tw_session_seal(struct tw_session *, const uint8_t *src,
                               size_t len, uint8_t *dst, size_t room,
                               size_t *taken, size_t *made,
                               struct tw_error *err);
size_t tw_session_content_size(struct tw_session *, const uint8_t *src,
                               size_t len);
enum tw_status tw_session_open(struct tw_session *, const uint8_t *src,
                               size_t len, uint8_t *dst, size_t cap,
                               size_t *used, size_t *n,
                               struct tw_error *err);
/* close_notify into the output, once; later calls are no-ops. It comes
   there at the end of a renegotiation that goes on. */
enum tw_status tw_session_shutdown(struct tw_session *,
                                   struct tw_error *err);
/* Does it wait for that end? tw_session_handshake brings it on. */
bool tw_session_close_waits(struct tw_session *);
/* Kills it: every later call gives TW_E_CLOSED (or its first error). */
void tw_session_abort(struct tw_session *);

/* --- facts --- */
/* Is somebody inside now, so that the calls below would wait for him? */
bool tw_session_busy(struct tw_session *);
enum tw_state tw_session_state(struct tw_session *);
bool tw_session_read_ended(struct tw_session *);
bool tw_session_write_ended(struct tw_session *);
/* The error that stands; status TW_DONE if none. */
void tw_session_error(struct tw_session *, struct tw_error *out);
enum tw_status tw_session_remote_cert(struct tw_session *,
                                      struct tw_cert **out,
                                      struct tw_error *err);
enum tw_status tw_session_local_cert(struct tw_session *,
                                     struct tw_cert **out,
                                     struct tw_error *err);
enum tw_status tw_session_facts(struct tw_session *, struct tw_facts *,
                                struct tw_error *err);
enum tw_status tw_session_binding(struct tw_session *, enum tw_binding,
                                  const char *label,
                                  const uint8_t *context,
                                  size_t context_len, uint8_t *out,
                                  size_t *len, struct tw_error *err);
enum tw_status tw_session_issuers(struct tw_session *, tw_sink, void *,
                                  struct tw_error *err);
/* Copies the stapled OCSP answer to the sink (once) if there is one. */
void tw_session_ocsp(struct tw_session *, tw_sink, void *arg);
/* The flags the context was asked for and got (ISC_RET_/ASC_RET_). */
uint32_t tw_session_features(struct tw_session *);
const char *tw_session_sni(struct tw_session *); /* "" if none */
struct tw_credentials *tw_session_credentials(struct tw_session *); /* a
                              new reference; NULL if none */

#endif
