/*
 * A session and a socket, driven together.
 *
 * Every public call is the same few steps: enter (fail if closing, count
 * the user), take the turn of its direction, loop { engine, output,
 * socket }, leave. The last user to leave after tw_wire_close closes the
 * descriptor, so a descriptor number is never reused under a system call.
 * Users and closing are one word, so that exactly one of them is the last.
 *
 * Locks, held for a whole call, waits included: `reader` orders those who
 * receive, `writer` those who send. Neither is acquired with a plain wait:
 * take_turn() naps and tries, so that deadlines, signals and tw_wire_close
 * reach the one in the queue. Who holds `reader` may take `writer`, not the
 * other way round.
 *
 * The session locks itself, call by call. What it lends (room for input to
 * the holder of `reader`, output to the holder of `writer`) stays in place
 * while the other direction goes on, so system calls need no lock of it.
 *
 * Only the holder of `writer` sends and consumes output, so what is sent
 * goes out in the order it was sealed in. A reader whose work left output
 * (the answer to a KeyUpdate, an alert) sends it if the writer's lock is
 * free; if not, it leaves word (`more`) and its holder looks once more
 * after letting go (nudge). A reader whose output waits for room does not
 * sleep for good: it looks after it now and then.
 *
 * A wait for the peer without a deadline is the system's own blocking recv,
 * into a small room on the stack (an idle connection holds no buffer), so
 * that a message costs one system call and not two; all other calls do not
 * wait in the system, whatever the descriptor's mode. Who got little last
 * time looks for more in the small room as well: most often there is as
 * little, or nothing, and a buffer is made and dropped for neither.
 */
#include "wire/wire.h"

#include <stdlib.h>
#include <string.h>

#include "core/atomic.h"
#include "core/lock.h"
#include "core/record.h"

/* Ciphertext per recv: grows while it comes in full. From 48 KiB on it
   lands in a block of the pool (core/buffer.c). */
#define READ_MIN ((size_t)20 * 1024)
#define READ_MAX ((size_t)256 * 1024)
/* Ciphertext that a wait takes: what comes behind it is asked for next. */
#define READ_WAIT ((size_t)4096)
/* Plaintext sealed between two sends: 64 KiB loses a tenth to system calls,
   1 MiB leaves the second cache. */
#define AHEAD ((size_t)256 * 1024)
/* ns: first and longest nap in a queue */
#define NAP_MIN INT64_C(50000)
#define NAP_MAX INT64_C(20000000)
/* ns: a reader with unsent output looks after it this often */
#define SLICE INT64_C(10000000)
/* ns: bounds of the time that a reader spins for the peer before it sleeps;
   a wake-up costs about the longest of them */
#define SPIN_MIN INT64_C(2000)
#define SPIN_MAX INT64_C(50000)
/* ns: how long a refused peer may take to read its alert */
#define LINGER INT64_C(500000000)
/* Bytes of it that closing reads and drops: those that are there, those that
   come while it lingers. */
#define DRAIN_NOW ((size_t)1024 * 1024)
#define DRAIN_MAX ((size_t)64 * 1024 * 1024)

#define CLOSING 1L /* in tw_wire.gate: tw_wire_close was called */
#define USER 2L    /* the same: one call inside */

struct tw_wire {
    struct tw_session *session; /* owned */
    tw_socket fd;               /* until the last user leaves */
    struct tw_count gate;       /* CLOSING, and USER for each call inside */
    struct tw_count more;       /* output came while writer was taken */
    struct tw_lock reader;      /* order of those who receive */
    struct tw_lock writer;      /* order of those who send */
    bool ending;                /* FIN follows what waits; by writer */
    bool fin;                   /* our FIN is out; by writer */
    bool eof;                   /* the peer's FIN came; by reader */
    int recv_os;                /* first error of recv; by reader */
    int send_os;                /* first error of send; by writer */
    size_t chunk;               /* room for the next recv; by reader */
    bool drained;               /* the last recv took all; by reader */
    bool small;                 /* the last bytes were few; by reader */
    struct tw_count spin;       /* ns to spin before a wait; 0: never */
};

/* --- small things --- */

static enum tw_status closed_in_use(struct tw_error *err)
{
    return tw_error_set(err, TW_E_CLOSED, 0,
                        "the channel was closed while in use");
}

static enum tw_status os_failed(struct tw_error *err, int os,
                                const char *what)
{
    if (err != NULL && err->status == TW_DONE) {
        err->os = os;
    }
    return tw_error_set(err, TW_E_OS, 0, "%s failed", what);
}

static bool is_closing(struct tw_wire *w)
{
    return (tw_count_get(&w->gate) & CLOSING) != 0;
}

static enum tw_status enter(struct tw_wire *w, struct tw_error *err)
{
    long seen;

    do {
        seen = tw_count_get(&w->gate);
        if ((seen & CLOSING) != 0) {
            return tw_error_set(err, TW_E_CLOSED, 0,
                                "the channel is closed");
        }
    } while (!tw_count_swap(&w->gate, seen, seen + USER));
    return TW_DONE;
}

static void leave(struct tw_wire *w)
{
    if (tw_count_add(&w->gate, -USER) == CLOSING) {
        tw_session_abort(w->session);
        tw_socket_close(w->fd);
    }
}

/* Nanoseconds that are left, at most `limit` (below 0: no limit); -1 for
   ever. */
static int64_t time_left(int64_t deadline, int64_t limit)
{
    int64_t left = -1;

    if (deadline != TW_FOREVER) {
        left = deadline - tw_clock_ns();
        if (left < 0) {
            left = 0;
        }
    }
    if (limit >= 0 && (left < 0 || left > limit)) {
        left = limit;
    }
    return left;
}

static bool too_late(int64_t deadline)
{
    return deadline != TW_FOREVER && tw_clock_ns() >= deadline;
}

static enum tw_status timed_out(struct tw_error *err)
{
    return tw_error_set(err, TW_E_TIMEOUT, 0, "the operation timed out");
}

/* Waits on fd, or with TW_NO_SOCKET just for `limit` ns. TW_DONE: look
   again, which does not mean ready. */
static enum tw_status wait_for(struct tw_wire *w, tw_socket fd,
                               bool for_write, int64_t deadline,
                               int64_t limit, struct tw_error *err)
{
    int os = 0;
    int ready;

    if (too_late(deadline)) {
        return timed_out(err);
    }
    ready = tw_socket_wait(fd, for_write, time_left(deadline, limit), &os);
    if (is_closing(w)) {
        return closed_in_use(err);
    }
    if (ready == TW_IO_INTERRUPTED) {
        return tw_error_set(err, TW_E_INTERRUPTED, 0, "a signal arrived");
    }
    if (ready == TW_IO_ERROR) {
        return os_failed(err, os, "waiting for the socket");
    }
    return TW_DONE;
}

/* One nap in a queue, longer each time. */
static enum tw_status doze(struct tw_wire *w, int64_t *nap,
                           int64_t deadline, struct tw_error *err)
{
    enum tw_status st;

    st = wait_for(w, TW_NO_SOCKET, false, deadline, *nap, err);
    *nap = *nap * 2 < NAP_MAX ? *nap * 2 : NAP_MAX;
    return st;
}

/* An order lock, or `want` if it may not wait. */
static enum tw_status take_turn(struct tw_wire *w, struct tw_lock *order,
                                int64_t deadline, enum tw_status want,
                                struct tw_error *err)
{
    int64_t nap = NAP_MIN;

    while (!tw_lock_try(order)) {
        enum tw_status st;

        if (deadline == TW_NO_WAIT) {
            return want;
        }
        st = doze(w, &nap, deadline, err);
        if (st != TW_DONE) {
            return st;
        }
    }
    return TW_DONE;
}

/* --- output: who calls the _held ones holds `writer` --- */

/* FIN, once. A socket that is gone already has none to send. */
static void send_fin_held(struct tw_wire *w)
{
    if (!w->fin) {
        w->fin = true;
        (void)tw_socket_shutdown(w->fd, false, true);
    }
}

/* Sends until none is left, and FIN if that is its turn: TW_DONE;
   TW_WANT_WRITE with TW_NO_WAIT. */
static enum tw_status flush_held(struct tw_wire *w, int64_t deadline,
                                 struct tw_error *err)
{
    for (;;) {
        bool last = w->ending && !tw_session_close_waits(w->session);
        enum tw_status st;
        const uint8_t *ptr = NULL;
        size_t len;
        long sent;
        int os = 0;

        if (!tw_session_has_output(w->session)) {
            if (last) { /* asked before: close_notify went by as output */
                send_fin_held(w);
            }
            return TW_DONE;
        }
        len = tw_session_output(w->session, &ptr);
        if (w->send_os != 0) {
            return os_failed(err, w->send_os, "sending to the peer");
        }
        sent = tw_socket_send(w->fd, ptr, len, &os);
        tw_session_output_consume(w->session,
                                  sent > 0 ? (size_t)sent : 0);
        if (sent >= 0) {
            continue;
        }
        if (sent == TW_IO_ERROR) {
            if (is_closing(w)) {
                return closed_in_use(err);
            }
            w->send_os = os;
            return os_failed(err, os, "sending to the peer");
        }
        if (deadline == TW_NO_WAIT) {
            return TW_WANT_WRITE;
        }
        st = wait_for(w, w->fd, true, deadline, -1, err);
        if (st != TW_DONE) {
            return st;
        }
    }
}

/* Words that were left: of output that came while the writer was taken.
   The fences see to it that who leaves one and then finds the lock taken is
   seen by who lets go of the lock and then looks for one. */
static bool take_word(struct tw_wire *w)
{
    tw_fence();
    return tw_count_glance(&w->more) != 0
           && tw_count_swap(&w->more, 1, 0);
}

static void leave_word(struct tw_wire *w)
{
    tw_count_set(&w->more, 1);
    tw_fence();
}

/* Lets go of `writer`, and sends what came meanwhile from who found it
   taken. True if some of that has to wait for room. */
static bool release_writer(struct tw_wire *w)
{
    bool waits = false;

    tw_lock_release(&w->writer);
    while (take_word(w)) {
        if (!tw_lock_try(&w->writer)) {
            leave_word(w); /* for the one who has it now */
            if (!tw_lock_try(&w->writer)) {
                break;
            }
        }
        waits = flush_held(w, TW_NO_WAIT, NULL) == TW_WANT_WRITE;
        tw_lock_release(&w->writer);
    }
    return waits;
}

/* Sends what waits if that costs no waiting; if somebody else is sending,
   he does it. True if some had to stay: with the one, or the other. */
static bool nudge(struct tw_wire *w)
{
    bool waits;

    if (!tw_session_has_output(w->session)) {
        return false;
    }
    if (!tw_lock_try(&w->writer)) {
        leave_word(w);
        if (!tw_lock_try(&w->writer)) {
            return true;
        }
    }
    waits = flush_held(w, TW_NO_WAIT, NULL) == TW_WANT_WRITE;
    return release_writer(w) || waits;
}

/* The same with waiting. */
static enum tw_status flush_all(struct tw_wire *w, int64_t deadline,
                                struct tw_error *err)
{
    enum tw_status st;

    st = take_turn(w, &w->writer, deadline, TW_WANT_WRITE, err);
    if (st == TW_DONE) {
        st = flush_held(w, deadline, err);
        (void)release_writer(w);
    }
    return st;
}

/* --- input: who calls holds `reader` --- */

/* The next recv asks for more if this one came in full. */
static void adapt(struct tw_wire *w, size_t room, size_t got)
{
    if (got >= room) {
        w->chunk = w->chunk * 2 < READ_MAX ? w->chunk * 2 : READ_MAX;
    } else if (got < w->chunk / 4) {
        w->chunk = w->chunk / 2 > READ_MIN ? w->chunk / 2 : READ_MIN;
    }
}

/* What a recv into `room` bytes came to, `got` of which the session has:
   TW_DONE (an end of the stream is told to the session), TW_WANT_READ,
   TW_E_INTERRUPTED of one that waits, errors. */
static enum tw_status received_held(struct tw_wire *w, long got, size_t room,
                                    int os, struct tw_error *err)
{
    w->drained = (size_t)(got > 0 ? got : 0) < room;
    if (got > 0) {
        w->small = (size_t)got < READ_WAIT;
        return TW_DONE;
    }
    if (is_closing(w)) {
        return closed_in_use(err);
    }
    if (got == TW_IO_BLOCKED) {
        return TW_WANT_READ;
    }
    if (got == TW_IO_INTERRUPTED) {
        return tw_error_set(err, TW_E_INTERRUPTED, 0, "a signal arrived");
    }
    if (got == 0) {
        if (w->eof) { /* told before, and still asked for bytes */
            return tw_error_set(err, TW_E_TRUNCATED, 0,
                                "the connection has ended");
        }
        w->eof = true;
        tw_session_input_eof(w->session);
        return TW_DONE;
    }
    w->recv_os = os;
    return os_failed(err, os, "receiving from the peer");
}

/* One recv straight into the session's input, without waiting: as
   received_held. */
static enum tw_status fill_once_held(struct tw_wire *w,
                                     struct tw_error *err)
{
    enum tw_status st;
    uint8_t *ptr = NULL;
    size_t room = 0;
    long got;
    int os = 0;

    if (w->recv_os != 0) {
        return os_failed(err, w->recv_os, "receiving from the peer");
    }
    st = tw_session_input_reserve(w->session, w->chunk, &ptr, &room);
    if (st != TW_DONE) {
        return tw_error_set(err, st, 0, "no room for the peer's bytes");
    }
    /* Not more, though there be room: what is left of a record before these
       bytes and READ_MAX of them make 256 KiB of data at most, which a reader
       with a buffer of that size takes in one go. */
    room = room < w->chunk ? room : w->chunk;
    got = tw_socket_recv(w->fd, ptr, room, &os);
    tw_session_input_commit(w->session, got > 0 ? (size_t)got : 0);
    if (got > 0) {
        adapt(w, room, (size_t)got);
    }
    if (got == TW_IO_INTERRUPTED) {
        got = TW_IO_BLOCKED; /* nothing waited: look again */
    }
    return received_held(w, got, room, os, err);
}

/* The same over a small room on the stack, so that who waits for the peer
   holds no buffer meanwhile, and who gets little needs none. waits: in the
   system, for as long as it takes (a signal ends it). */
static enum tw_status fill_small_held(struct tw_wire *w, bool waits,
                                      struct tw_error *err)
{
    uint8_t room[READ_WAIT];
    enum tw_status st;
    long got;
    int os = 0;

    if (w->recv_os != 0) {
        return os_failed(err, w->recv_os, "receiving from the peer");
    }
    got = waits ? tw_socket_recv_wait(w->fd, room, sizeof(room), &os)
                : tw_socket_recv(w->fd, room, sizeof(room), &os);
    if (got > 0) {
        st = tw_session_input(w->session, room, (size_t)got);
        if (st != TW_DONE) {
            return tw_error_set(err, st, 0, "no room for the peer's bytes");
        }
    }
    if (got == TW_IO_INTERRUPTED && !waits) {
        got = TW_IO_BLOCKED; /* nothing waited: look again */
    }
    return received_held(w, got, sizeof(room), os, err);
}

/*
 * Spins for the peer's next bytes instead of sleeping at once: between two
 * cores an answer often comes sooner than a sleeper is woken. Longer after
 * a hit, shorter after a miss, so that it costs little where the peer takes
 * its time. TW_WANT_READ: nothing came.
 */
static enum tw_status spin_held(struct tw_wire *w, int64_t deadline,
                                struct tw_error *err)
{
    long before = tw_count_glance(&w->spin);
    int64_t spin = before;
    int64_t end = tw_clock_ns() + spin;
    enum tw_status st;

    if (deadline != TW_FOREVER && deadline < end) {
        end = deadline;
    }
    do {
        st = fill_small_held(w, false, err);
    } while (st == TW_WANT_READ && tw_clock_ns() < end);
    spin = st == TW_WANT_READ ? spin / 2 : spin * 2;
    spin = spin < SPIN_MIN ? SPIN_MIN : spin > SPIN_MAX ? SPIN_MAX : spin;
    (void)tw_count_swap(&w->spin, before, (long)spin); /* unless set anew */
    return st;
}

/* The same with waiting; output that could not go out yet is looked after
   meanwhile, for the peer may answer only once it has it. */
static enum tw_status fill_held(struct tw_wire *w, int64_t deadline,
                                struct tw_error *err)
{
    /* Who took all that there was last time most likely has to wait now:
       asking first would be one system call more. */
    bool ask = !w->drained || deadline == TW_NO_WAIT;

    for (;; ask = true) {
        enum tw_status st = TW_WANT_READ;
        bool waits;

        if (ask) {
            st = w->small ? fill_small_held(w, false, err)
                          : fill_once_held(w, err);
        }
        if (st != TW_WANT_READ || deadline == TW_NO_WAIT) {
            return st;
        }
        waits = nudge(w);
        if (tw_count_glance(&w->spin) != 0) {
            st = spin_held(w, deadline, err);
        }
        if (st == TW_WANT_READ && deadline == TW_FOREVER && !waits
            && !is_closing(w)) {
            st = fill_small_held(w, true, err);
        }
        if (st != TW_WANT_READ) {
            return st;
        }
        st = wait_for(w, w->fd, false, deadline, waits ? SLICE : -1, err);
        if (st != TW_DONE) {
            return st;
        }
    }
}

/* --- handshake --- */

/* Sending failed in the handshake; the peer may have said why before it
   hung up. Its alert is the better error. */
static bool peer_explains_held(struct tw_wire *w, struct tw_error *err)
{
    struct tw_error found;
    enum tw_status st;
    int rounds;

    for (rounds = 0; rounds < 16; rounds++) {
        st = fill_once_held(w, NULL);
        if (st != TW_DONE || w->eof) {
            break;
        }
    }
    tw_error_clear(&found);
    st = tw_session_handshake(w->session, &found);
    if (st >= 0 || st == TW_E_NEGOTIATE_EOF || st == TW_E_TRUNCATED) {
        return false;
    }
    if (err != NULL) {
        *err = found;
    }
    return true;
}

/* As flush_all, the handshake being over: somebody may be sending data
   already, and not get on until the peer reads. What waits goes with it. */
static enum tw_status flush_last(struct tw_wire *w, int64_t deadline,
                                 struct tw_error *err)
{
    enum tw_status st;

    if (!tw_lock_try(&w->writer)) {
        (void)nudge(w);
        return TW_DONE;
    }
    st = flush_held(w, deadline, err);
    (void)release_writer(w);
    return st;
}

static enum tw_status handshake_held(struct tw_wire *w, int64_t deadline,
                                     struct tw_error *err)
{
    for (;;) {
        enum tw_status st;
        enum tw_status out;

        st = tw_session_handshake(w->session, err);
        if (st < 0) {
            (void)nudge(w); /* the alert, best effort */
            return st;
        }
        out = st == TW_DONE ? flush_last(w, deadline, err)
                            : flush_all(w, deadline, err);
        if (out == TW_E_OS && peer_explains_held(w, err)) {
            return err != NULL ? err->status : TW_E_TLS;
        }
        if (out != TW_DONE) {
            return out;
        }
        if (st != TW_WANT_READ && st != TW_WANT_WRITE) {
            return st;
        }
        if (st == TW_WANT_READ) {
            st = fill_held(w, deadline, err);
            if (st != TW_DONE) {
                return st;
            }
        }
    }
}

/* The reader's turn; TW_END: somebody has it who receives data, so the
   handshake is over, and he may wait for the peer for long. */
static enum tw_status handshake_turn(struct tw_wire *w, int64_t deadline,
                                     struct tw_error *err)
{
    int64_t nap = NAP_MIN;

    while (!tw_lock_try(&w->reader)) {
        enum tw_status st;

        if (tw_session_state(w->session) == TW_OPEN) {
            return TW_END;
        }
        if (deadline == TW_NO_WAIT) {
            return TW_WANT_READ;
        }
        st = doze(w, &nap, deadline, err);
        if (st != TW_DONE) {
            return st;
        }
    }
    return TW_DONE;
}

enum tw_status tw_wire_handshake(struct tw_wire *w, int64_t deadline,
                                 struct tw_error *err)
{
    enum tw_status st = enter(w, err);

    if (st != TW_DONE) {
        return st;
    }
    st = handshake_turn(w, deadline, err);
    if (st == TW_DONE) {
        st = handshake_held(w, deadline, err);
        tw_lock_release(&w->reader);
    } else if (st == TW_END) {
        st = TW_DONE;
    }
    leave(w);
    return st;
}

/* --- data --- */

static enum tw_status recv_held(struct tw_wire *w, uint8_t *dst, size_t cap,
                                size_t *n, int64_t deadline,
                                struct tw_error *err)
{
    for (;;) {
        enum tw_status st = tw_session_read(w->session, dst, cap, n, err);

        if (*n != 0) {
            return TW_DONE;
        }
        if (st == TW_WANT_WRITE) {
            /* Its answers fill the output: they go first. */
            st = flush_all(w, deadline, err);
            if (st != TW_DONE) {
                return st;
            }
            continue;
        }
        if (st != TW_WANT_READ) {
            return st;
        }
        st = fill_held(w, deadline, err);
        if (st != TW_DONE) {
            return st;
        }
    }
}

enum tw_status tw_wire_recv(struct tw_wire *w, uint8_t *dst, size_t cap,
                            size_t *n, int64_t deadline,
                            struct tw_error *err)
{
    enum tw_status st;

    *n = 0;
    st = enter(w, err);
    if (st != TW_DONE) {
        return st;
    }
    st = take_turn(w, &w->reader, deadline, TW_WANT_READ, err);
    if (st == TW_DONE) {
        st = recv_held(w, dst, cap, n, deadline, err);
        (void)nudge(w); /* KeyUpdate's answer, an alert */
        tw_lock_release(&w->reader);
    }
    leave(w);
    return st;
}

/*
 * A writer found the session in a renegotiation: bring it on with bytes of
 * the peer. If somebody is reading, he does it; he may want to send for it,
 * so `writer` is free during the nap. On return the caller holds it again,
 * save where *held is false: then an error kept it from him.
 */
static enum tw_status renegotiate(struct tw_wire *w, int64_t *nap,
                                  int64_t deadline, bool *held,
                                  struct tw_error *err)
{
    enum tw_status st;

    if (tw_lock_try(&w->reader)) {
        st = TW_DONE;
        if (tw_session_missing(w->session) != 0) {
            st = fill_held(w, deadline, err);
        }
        if (st == TW_DONE) {
            st = tw_session_handshake(w->session, err);
        }
        tw_lock_release(&w->reader);
        if (st != TW_DONE && (st != TW_WANT_READ || deadline == TW_NO_WAIT)) {
            return st;
        }
    }
    /* Nap also if it seems to go on: plaintext that nobody reads can be in
       its way, and this must not spin. */
    if (deadline == TW_NO_WAIT) {
        return TW_WANT_READ;
    }
    (void)release_writer(w);
    *held = false;
    st = doze(w, nap, deadline, err);
    if (st == TW_DONE) {
        st = take_turn(w, &w->writer, deadline, TW_WANT_WRITE, err);
        *held = st == TW_DONE;
    }
    return st;
}

static enum tw_status send_held(struct tw_wire *w, const uint8_t *src,
                                size_t len, size_t *n, int64_t deadline,
                                bool *held, struct tw_error *err)
{
    int64_t nap = NAP_MIN;
    bool first = true; /* len 0 still learns the session's state */

    for (;;) {
        enum tw_status st = TW_DONE;
        enum tw_status out;
        size_t step = len - *n;
        size_t taken = 0;

        /* What waits goes first: it bounds what is sealed ahead. */
        out = flush_held(w, deadline, err);
        if (out != TW_DONE) {
            return out;
        }
        if (step == 0 && !first) {
            return TW_DONE;
        }
        first = false;
        if (step > AHEAD) {
            step = AHEAD;
        }
        st = tw_session_write(w->session, src == NULL ? src : src + *n,
                              step, &taken, err);
        *n += taken;
        if (st < 0) {
            (void)flush_held(w, TW_NO_WAIT, NULL);
            return st;
        }
        if (st == TW_WANT_READ) {
            /* Its half of the renegotiation must be out. */
            out = flush_held(w, deadline, err);
            if (out != TW_DONE) {
                return out;
            }
            st = renegotiate(w, &nap, deadline, held, err);
            if (st != TW_DONE) {
                return st;
            }
        } else if (st != TW_DONE && st != TW_WANT_WRITE) {
            return st;
        }
    }
}

enum tw_status tw_wire_send(struct tw_wire *w, const uint8_t *src,
                            size_t len, size_t *n, int64_t deadline,
                            struct tw_error *err)
{
    enum tw_status st;

    *n = 0;
    st = enter(w, err);
    if (st != TW_DONE) {
        return st;
    }
    st = take_turn(w, &w->writer, deadline, TW_WANT_WRITE, err);
    if (st == TW_DONE) {
        bool held = true;

        st = send_held(w, src, len, n, deadline, &held, err);
        if (held) {
            (void)release_writer(w);
        }
    }
    leave(w);
    if (deadline == TW_NO_WAIT && *n != 0) {
        /* Some were taken; an error stays and is told next time. */
        if (err != NULL) {
            tw_error_clear(err);
        }
        return TW_DONE;
    }
    return st;
}

enum tw_status tw_wire_flush(struct tw_wire *w, int64_t deadline,
                             struct tw_error *err)
{
    enum tw_status st = enter(w, err);

    if (st != TW_DONE) {
        return st;
    }
    st = flush_all(w, deadline, err);
    leave(w);
    return st;
}

/* --- ends --- */

/*
 * close_notify and whatever waits before it to the system, then FIN. In a
 * renegotiation nothing else is encrypted: that is brought to its end first
 * (RFC 5246, 7.2.1 wants the one before the other). *held as renegotiate's.
 */
static enum tw_status end_held(struct tw_wire *w, int64_t deadline,
                               bool *held, struct tw_error *err)
{
    int64_t nap = NAP_MIN;
    enum tw_status st;

    st = tw_session_shutdown(w->session, err);
    if (st < 0) {
        (void)flush_held(w, TW_NO_WAIT, NULL);
        return st;
    }
    for (;;) {
        w->ending = true;
        st = flush_held(w, deadline, err);
        if (st != TW_DONE || w->fin) {
            return st;
        }
        st = renegotiate(w, &nap, deadline, held, err);
        if (st != TW_DONE) {
            return st;
        }
    }
}

enum tw_status tw_wire_shutdown_write(struct tw_wire *w, int64_t deadline,
                                      struct tw_error *err)
{
    enum tw_status st = enter(w, err);

    if (st != TW_DONE) {
        return st;
    }
    st = take_turn(w, &w->writer, deadline, TW_WANT_WRITE, err);
    if (st == TW_DONE) {
        bool held = true;

        st = end_held(w, deadline, &held, err);
        if (held) {
            (void)release_writer(w);
        }
    }
    leave(w);
    return st;
}

/*
 * Reads and drops what the peer has sent: close() with bytes unread makes
 * the system send RST, as it does for bytes that come after, and RST makes
 * the peer's system drop our last bytes before the peer has read them. What
 * is there goes without waiting; for more, and for the peer to hang up, it
 * waits until `deadline` (RFC 9112, 9.6, has servers do as much).
 */
static void drain(struct tw_wire *w, int64_t deadline)
{
    uint8_t waste[16 * 1024];
    size_t left = deadline == TW_NO_WAIT ? DRAIN_NOW : DRAIN_MAX;

    if (!tw_lock_try(&w->reader)) {
        return;
    }
    while (left > 0) {
        size_t room = left < sizeof(waste) ? left : sizeof(waste);
        enum tw_status st;
        int os = 0;
        long got = tw_socket_recv(w->fd, waste, room, &os);

        if (got > 0) {
            left -= (size_t)got;
            continue;
        }
        if (got == 0 || got == TW_IO_ERROR || deadline == TW_NO_WAIT) {
            break;
        }
        st = wait_for(w, w->fd, false, deadline, -1, NULL);
        if (st != TW_DONE && st != TW_E_INTERRUPTED) {
            break;
        }
    }
    tw_lock_release(&w->reader);
}

/* close_notify or the alert that waits, then FIN, best effort. */
static void say_goodbye(struct tw_wire *w, int64_t deadline)
{
    enum tw_status st;
    int64_t linger = TW_NO_WAIT;

    /* A signal does not cut it short: its deadline bounds it, and where a
       wait comes in slices (Windows) each ends like that. */
    do {
        st = take_turn(w, &w->writer, deadline, TW_WANT_WRITE, NULL);
        if (st == TW_DONE) {
            bool held = true;

            if (tw_session_state(w->session) == TW_OPEN) {
                st = end_held(w, deadline, &held, NULL);
            } else {
                w->ending = true;
                st = flush_held(w, deadline, NULL);
            }
            if (held) {
                tw_lock_release(&w->writer);
            }
        }
    } while (st == TW_E_INTERRUPTED && deadline != TW_FOREVER);
    if (st != TW_DONE) {
        return;
    }
    if (deadline != TW_NO_WAIT &&
        tw_session_state(w->session) == TW_FAILED) {
        linger = tw_clock_ns() + LINGER;
        if (deadline != TW_FOREVER && deadline < linger) {
            linger = deadline;
        }
    }
    drain(w, linger);
}

/* Is nobody else inside? Who is may be held up in the engine for long, by a
   question for a PIN, and looks after his alert himself. */
static bool is_alone(struct tw_wire *w)
{
    return (tw_count_get(&w->gate) & ~CLOSING) == USER;
}

void tw_wire_close(struct tw_wire *w, int64_t deadline, bool graceful)
{
    if (enter(w, NULL) != TW_DONE) {
        return;
    }
    if (graceful
        || (is_alone(w) && tw_session_state(w->session) == TW_FAILED)) {
        say_goodbye(w, deadline);
    }
    if ((tw_count_or(&w->gate, CLOSING) & ~CLOSING) != USER) {
        /* Wakes who waits. Not done without need: in a forked child it
           would end the parent's connection too. */
        (void)tw_socket_shutdown(w->fd, true, true);
    }
    leave(w);
}

/* --- the rest --- */

bool tw_wire_readable(struct tw_wire *w)
{
    bool found;

    if (enter(w, NULL) != TW_DONE) {
        return true; /* recv raises at once */
    }
    if (!tw_lock_try(&w->reader)) {
        found = tw_session_pending(w->session) != 0;
        leave(w);
        return found;
    }
    found = tw_session_look(w->session);
    while (!found) {
        enum tw_status st = fill_once_held(w, NULL);

        if (st == TW_WANT_READ) {
            break;
        }
        /* an error is something to read */
        found = st != TW_DONE || tw_session_look(w->session);
    }
    (void)nudge(w); /* KeyUpdate's answer, an alert */
    tw_lock_release(&w->reader);
    leave(w);
    return found;
}

struct tw_wire *tw_wire_new(struct tw_session *session, tw_socket fd,
                            struct tw_error *err)
{
    struct tw_wire *w;
    int os;

    w = calloc(1, sizeof(*w));
    if (w == NULL) {
        (void)tw_error_set(err, TW_E_NOMEM, 0, "out of memory");
        return NULL;
    }
    os = tw_socket_prepare(fd);
    if (os != 0) {
        (void)os_failed(err, os, "taking over the socket");
        free(w);
        return NULL;
    }
    w->session = session;
    w->fd = fd;
    w->chunk = READ_MIN;
    tw_lock_init(&w->reader);
    tw_lock_init(&w->writer);
    tw_count_init(&w->gate, 0);
    tw_count_init(&w->more, 0);
    tw_count_init(&w->spin, 0);
    return w;
}

void tw_wire_free(struct tw_wire *w)
{
    if (w == NULL) {
        return;
    }
    tw_wire_close(w, TW_NO_WAIT, false);
    tw_session_free(w->session);
    tw_lock_fini(&w->reader);
    tw_lock_fini(&w->writer);
    free(w);
}

struct tw_session *tw_wire_session(struct tw_wire *w)
{
    return w->session;
}

tw_socket tw_wire_fd(struct tw_wire *w)
{
    return is_closing(w) ? TW_NO_SOCKET : w->fd;
}

void tw_wire_set_spin(struct tw_wire *w, bool on)
{
    tw_count_set(&w->spin, on ? (long)SPIN_MAX : 0);
}
