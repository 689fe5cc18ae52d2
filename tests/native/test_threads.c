/*
 * Threads in one connection: a reader and a writer at each end, and a third
 * that closes under them; and forks beside them. `scripts/native-tests
 * -fsanitize=thread` looks for races in it.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sspi/cert_openssl.h"
#include "sspi/openssl_internal.h"
#include "sspi/record_openssl.h"
#include "wire/wire.h"

#include "support.h"

#define SECOND INT64_C(1000000000)

static struct tw_credentials *both[2]; /* client's, server's */

static struct tw_credentials *acquire(enum tw_role role,
                                      struct tw_cert *cert,
                                      uint32_t protocol)
{
    struct tw_credentials_config config = {
        .role = role, .protocols = protocol, .certs = &cert,
        .cert_count = role == TW_SERVER,
    };
    struct tw_credentials *made;
    struct tw_error err;

    tw_error_clear(&err);
    made = tw_credentials_new(tw_provider_default(), &config, &err);
    CHECK(made);
    return made;
}

static struct tw_wire *make_wire(enum tw_role role, int fd)
{
    struct tw_session_config config = {
        .role = role, .target = "host.example",
        .credentials = both[role == TW_SERVER],
    };
    struct tw_session *session;
    struct tw_wire *wire;
    struct tw_error err;

    tw_error_clear(&err);
    session = tw_session_new(tw_provider_default(), &config, &err);
    CHECK(session);
    wire = tw_wire_new(session, fd, &err);
    CHECK(wire);
    return wire;
}

/* What a thread does at its end of the connection. */
struct work {
    struct tw_wire *wire;
    size_t total; /* bytes; 0: until the connection is closed */
    size_t part;
    uint8_t salt; /* of the bytes */
    enum tw_status st;
    size_t n;
    char why[256];
};

static uint8_t byte_at(const struct work *w, size_t at)
{
    return (uint8_t)(at * 131 + w->salt);
}

static void *writing(void *arg)
{
    struct work *w = arg;
    uint8_t *data = malloc(w->part);
    int64_t deadline = tw_clock_ns() + 60 * SECOND;
    struct tw_error err;

    CHECK(data);
    tw_error_clear(&err);
    w->st = tw_wire_handshake(w->wire, deadline, &err);
    while (w->st == TW_DONE && (w->total == 0 || w->n < w->total)) {
        size_t i, n, part = w->part;

        if (w->total > 0 && part > w->total - w->n) {
            part = w->total - w->n;
        }
        for (i = 0; i < part; i++) {
            data[i] = byte_at(w, w->n + i);
        }
        tw_error_clear(&err);
        w->st = tw_wire_send(w->wire, data, part, &n, deadline, &err);
        w->n += n;
    }
    snprintf(w->why, sizeof(w->why), "%s", err.detail);
    free(data);
    return NULL;
}

static void *reading(void *arg)
{
    struct work *w = arg;
    uint8_t *data = malloc(w->part);
    int64_t deadline = tw_clock_ns() + 60 * SECOND;
    struct tw_error err;

    CHECK(data);
    tw_error_clear(&err);
    w->st = tw_wire_handshake(w->wire, deadline, &err);
    while (w->st == TW_DONE && (w->total == 0 || w->n < w->total)) {
        size_t i, n;

        tw_error_clear(&err);
        w->st = tw_wire_recv(w->wire, data, w->part, &n, deadline, &err);
        for (i = 0; i < n; i++) {
            CHECK(data[i] == byte_at(w, w->n + i));
        }
        w->n += n;
    }
    snprintf(w->why, sizeof(w->why), "%s", err.detail);
    free(data);
    return NULL;
}

/* Four threads at the two ends; total 0: the client's end is closed under
   them after a while. */
static void talk(size_t total, size_t part)
{
    struct tw_wire *wires[2];
    struct work works[4];
    pthread_t threads[4];
    int fds[2];
    int i;

    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    wires[0] = make_wire(TW_CLIENT, fds[0]);
    wires[1] = make_wire(TW_SERVER, fds[1]);
    for (i = 0; i < 4; i++) {
        /* 0 writes what 3 reads, 2 what 1 reads */
        works[i] = (struct work){.wire = wires[i / 2], .total = total,
                                 .part = part + (size_t)i * 100,
                                 .salt = i == 0 || i == 3 ? 7 : 100};
        CHECK(pthread_create(&threads[i], NULL,
                             i % 2 == 0 ? writing : reading, &works[i])
              == 0);
    }
    if (total == 0) {
        struct tw_error err;

        /* Until the last of them is at work. */
        while (tw_session_state(tw_wire_session(wires[1])) != TW_OPEN) {
            CHECK(tw_wire_fd(wires[0]) != TW_NO_SOCKET);
            (void)tw_wire_readable(wires[0]);
            tw_error_clear(&err);
            (void)tw_wire_flush(wires[0], tw_clock_ns() + SECOND / 100,
                                &err);
        }
        tw_wire_close(wires[0], tw_clock_ns() + SECOND / 10, part % 2 == 0);
        CHECK(tw_wire_fd(wires[0]) == TW_NO_SOCKET);
    }
    for (i = 0; i < 4; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    for (i = 0; i < 4; i++) {
        if (total > 0 && works[i].st != TW_DONE) {
            fprintf(stderr, "thread %d: %s, %s (%zu of %zu, in pieces of "
                    "%zu)\n", i, tw_status_text(works[i].st),
                    works[i].why, works[i].n, total, works[i].part);
        }
    }
    for (i = 0; i < 4; i++) {
        if (total > 0) {
            CHECK(works[i].st == TW_DONE && works[i].n == total);
        } else if (i < 2) {
            CHECK(works[i].st == TW_E_CLOSED);
        } else {
            CHECK(works[i].st < 0 || works[i].st == TW_END);
        }
    }
    tw_wire_free(wires[0]);
    tw_wire_free(wires[1]);
}

/* Two times 60 connections with four directions each share the 256 contexts
   of the record engine. */
#define CROWD 60

static void *crowd(void *arg)
{
    struct tw_wire **wires = arg;
    uint8_t data[600], back[600];
    int64_t deadline = tw_clock_ns() + 60 * SECOND;
    struct tw_error err;
    size_t n, got;
    int i, round;

    memset(data, 5, sizeof(data));
    for (round = 0; round < 5; round++) {
        for (i = 0; i < CROWD; i++) {
            int from = (round + i) % 2;

            tw_error_clear(&err);
            CHECK(tw_wire_send(wires[2 * i + from], data, sizeof(data), &n,
                               deadline, &err)
                  == TW_DONE);
            for (got = 0; got < sizeof(back); got += n) {
                CHECK(tw_wire_recv(wires[2 * i + !from], back + got,
                                   sizeof(back) - got, &n, deadline, &err)
                      == TW_DONE);
            }
            CHECK(memcmp(back, data, sizeof(data)) == 0);
        }
    }
    for (i = 0; i < 2 * CROWD; i++) {
        tw_wire_free(wires[i]);
    }
    return NULL;
}

static void *answering(void *arg)
{
    struct tw_error err;

    tw_error_clear(&err);
    CHECK(tw_wire_handshake(arg, tw_clock_ns() + 60 * SECOND, &err)
          == TW_DONE);
    return NULL;
}

static void crowds(void)
{
    static struct tw_wire *wires[2][2 * CROWD];
    pthread_t threads[2], other;
    int fds[2];
    int i, k;

    for (k = 0; k < 2; k++) {
        for (i = 0; i < CROWD; i++) {
            struct tw_error err;

            CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
            wires[k][2 * i] = make_wire(TW_CLIENT, fds[0]);
            wires[k][2 * i + 1] = make_wire(TW_SERVER, fds[1]);
            CHECK(pthread_create(&other, NULL, answering,
                                 wires[k][2 * i + 1])
                  == 0);
            tw_error_clear(&err);
            CHECK(tw_wire_handshake(wires[k][2 * i],
                                    tw_clock_ns() + 60 * SECOND, &err)
                  == TW_DONE);
            CHECK(pthread_join(other, NULL) == 0);
        }
    }
    for (k = 0; k < 2; k++) {
        CHECK(pthread_create(&threads[k], NULL, crowd, wires[k]) == 0);
    }
    for (k = 0; k < 2; k++) {
        CHECK(pthread_join(threads[k], NULL) == 0);
    }
}

/* A child of a fork seals, looks a path up and asks for the system's roots
   while its parent's threads, at that moment, take contexts from each other
   and do as much. */
#define BUSY 300

static atomic_bool enough;
static struct tw_records busy[2][BUSY];

static struct tw_cert *leaf;

/* AddressSanitizer's allocator looks after no forks before GCC 14: beside a
   thread that allocates a child may hang in its first malloc. */
#ifdef __SANITIZE_ADDRESS__
#define MAY_ALLOCATE false
#else
#define MAY_ALLOCATE true
#endif

/* What the locks are about that all threads share, besides the records'. */
static bool look_up(void)
{
    const struct tw_verify_config config = {.server = "host.example"};
    struct tw_trial trial = {.config = &config, .leaf = leaf->x509};
    X509_STORE *roots = NULL;
    bool good = tw_openssl_system_roots(&roots, NULL, NULL);

    X509_STORE_free(roots);
    return good && !tw_trial_recall(&trial); /* nobody noted it */
}

static void *keep_busy(void *arg)
{
    struct tw_records *all = arg;
    const uint8_t secret[32] = {1};
    uint8_t record[64];
    int i;

    for (i = 0; i < BUSY; i++) {
        CHECK(tw_records_init13(&all[i], TW_AEAD_AES128, 32, secret, secret,
                                0));
    }
    while (!atomic_load(&enough)) {
        for (i = 0; i < BUSY; i++) {
            CHECK(tw_records_seal(&all[i], 23, secret, 3, record) > 0);
            CHECK(!MAY_ALLOCATE || look_up());
        }
    }
    for (i = 0; i < BUSY; i++) {
        tw_records_fini(&all[i]);
    }
    return NULL;
}

static void forks(void)
{
    const uint8_t secret[32] = {2};
    struct tw_records mine;
    uint8_t record[64];
    pthread_t threads[2];
    int i, status;

    CHECK(tw_records_usable());
    CHECK(tw_records_init13(&mine, TW_AEAD_AES128, 32, secret, secret, 0));
    for (i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, keep_busy, busy[i]) == 0);
    }
    for (i = 0; i < 200; i++) {
        pid_t child = fork();

        CHECK(child >= 0);
        if (child == 0) {
            (void)alarm(10);
            _exit(tw_records_seal(&mine, 23, secret, 3, record) == 0
                  || (MAY_ALLOCATE && !look_up()));
        }
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(status == 0);
    }
    atomic_store(&enough, true);
    for (i = 0; i < 2; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    tw_records_fini(&mine);
}

int main(void)
{
    static const uint32_t versions[2] = {TW_TLS1_2, TW_TLS1_3};
    struct tw_cert *cert = make_cert("host.example");
    int i, k;

    for (i = 0; i < 2; i++) {
        both[0] = acquire(TW_CLIENT, NULL, versions[i]);
        both[1] = acquire(TW_SERVER, cert, versions[i]);
        /* keys change on the way, in TLS 1.3 */
        tw_records_rekey_at = 50;
        talk(400000, 700);
        talk(4000000, 60000);
        for (k = 0; k < 10; k++) {
            talk(0, 4096 + (size_t)k);
        }
        tw_records_rekey_at = UINT64_C(1) << 24;
        crowds();
        tw_credentials_free(both[0]);
        tw_credentials_free(both[1]);
    }
    leaf = cert;
    forks();
    tw_provider_default()->cert_free(cert);
    puts("threads: ok");
    return 0;
}
