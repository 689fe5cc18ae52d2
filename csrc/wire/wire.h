/*
 * struct tw_wire: a session and a native socket, driven together.
 *
 * The only floor that waits: with poll() until its deadline, or, for the
 * peer's bytes and without one, in recv() itself. Many records go with one
 * system call in either direction. One reader and one writer may be in a
 * wire at once; each direction has an order lock, so two readers take
 * turns. No lock is held across a system call that waits, save the order
 * lock of that direction.
 *
 * Closing from a third thread: tw_wire_close marks it, wakes both sides
 * (shutdown of the socket), and the last user closes the descriptor.
 */
#ifndef TW_WIRE_WIRE_H
#define TW_WIRE_WIRE_H

#include "core/session.h"
#include "wire/socket.h"

struct tw_wire;

/* Deadlines: absolute, tw_clock_ns(); these two are special. */
#define TW_NO_WAIT INT64_C(0)        /* never waits: TW_WANT_... instead */
#define TW_FOREVER INT64_C(-1)

int64_t tw_clock_ns(void); /* monotonic */

/* Takes over both; on failure (NULL, *err) neither. fd is made not
   inheritable, and blocking where each call can say that it does not wait;
   who else uses it may change that. */
struct tw_wire *tw_wire_new(struct tw_session *, tw_socket fd,
                            struct tw_error *err);
void tw_wire_free(struct tw_wire *); /* closes what is open */
struct tw_session *tw_wire_session(struct tw_wire *);
tw_socket tw_wire_fd(struct tw_wire *); /* TW_NO_SOCKET once closed */

/* Each returns TW_DONE, a TW_WANT_... (only with TW_NO_WAIT, or for
   decisions), TW_END, or an error: TW_E_TIMEOUT at the deadline,
   TW_E_INTERRUPTED on a signal: look after it and call again; what was
   done so far is in *n and not lost. */
enum tw_status tw_wire_handshake(struct tw_wire *, int64_t deadline,
                                 struct tw_error *err);
enum tw_status tw_wire_recv(struct tw_wire *, uint8_t *dst, size_t cap,
                            size_t *n, int64_t deadline,
                            struct tw_error *err);
/* Takes bytes until all are sealed *and* handed to the system, or, when
   it may not wait, as many as fit. */
enum tw_status tw_wire_send(struct tw_wire *, const uint8_t *src,
                            size_t len, size_t *n, int64_t deadline,
                            struct tw_error *err);
/* Hands pending output to the system. */
enum tw_status tw_wire_flush(struct tw_wire *, int64_t deadline,
                             struct tw_error *err);
/* close_notify, then FIN: reading goes on. Idempotent. */
enum tw_status tw_wire_shutdown_write(struct tw_wire *, int64_t deadline,
                                      struct tw_error *err);
/* Full close: close_notify best effort within the deadline, then close. Not
   graceful: at once and without a word. A session that has failed sends the
   alert that waits either way, and its peer has until the deadline, half a
   second at most, to read it and hang up. */
void tw_wire_close(struct tw_wire *, int64_t deadline, bool graceful);
/* Would tw_wire_recv say something, without waiting? Takes from the socket
   what is there and opens records until one has data; none is consumed. */
bool tw_wire_readable(struct tw_wire *);
/* Whether a receiver that has to wait spins for the peer's bytes for a
   while (at most 50 us, less where that was in vain) before it sleeps. */
void tw_wire_set_spin(struct tw_wire *, bool on);

#endif
