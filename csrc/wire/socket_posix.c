/*
 * The native socket, POSIX side.
 *
 * One system call per function, its outcome folded into socket.h's few
 * results, so that wire.c reads the same on every platform. Nothing here
 * knows TLS, and nothing here keeps state.
 *
 * SIGPIPE: a library must not let a peer that hung up kill the process.
 * MSG_NOSIGNAL says so per call where it exists, SO_NOSIGPIPE per socket on
 * macOS and the BSDs. The signal's disposition is the program's, not ours.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "wire/socket.h"
#include "wire/wire.h"

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

/* ns in one ms, in one s */
#define MS INT64_C(1000000)
#define SECOND INT64_C(1000000000)

int64_t tw_clock_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * SECOND + (int64_t)now.tv_nsec;
}

int tw_socket_prepare(tw_socket fd)
{
    int type = 0;
    int flags;
    socklen_t size = sizeof(type);

    /* Fails with EBADF or ENOTSOCK before anything is changed. */
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0) {
        return errno;
    }
    if (type != SOCK_STREAM) {
        return EPROTOTYPE;
    }
#ifdef SO_NOSIGPIPE
    {
        int on = 1;

        if (setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on)) != 0) {
            return errno;
        }
    }
#endif
    flags = fcntl(fd, F_GETFD);
    if (flags < 0 || fcntl(fd, F_SETFD, flags | FD_CLOEXEC) < 0) {
        return errno;
    }
    flags = fcntl(fd, F_GETFL);
    if (flags < 0) {
        return errno;
    }
    if ((flags & O_NONBLOCK) != 0 &&
        fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0) {
        return errno;
    }
    return 0;
}

/* What errno means for a transfer. */
static long failure(int *os)
{
    int code = errno;

    if (code == EAGAIN || code == EWOULDBLOCK) {
        return TW_IO_BLOCKED;
    }
    if (code == EINTR) {
        return TW_IO_INTERRUPTED;
    }
    *os = code;
    return TW_IO_ERROR;
}

/* One call moves what a long can count. */
static size_t clip(size_t len)
{
    return len > (size_t)INT_MAX ? (size_t)INT_MAX : len;
}

long tw_socket_recv(tw_socket fd, void *buf, size_t cap, int *os)
{
    ssize_t got = recv(fd, buf, clip(cap), MSG_DONTWAIT);

    return got >= 0 ? (long)got : failure(os);
}

long tw_socket_recv_wait(tw_socket fd, void *buf, size_t cap, int *os)
{
    ssize_t got = recv(fd, buf, clip(cap), 0);

    return got >= 0 ? (long)got : failure(os);
}

long tw_socket_send(tw_socket fd, const void *buf, size_t len, int *os)
{
    ssize_t sent = send(fd, buf, clip(len), MSG_NOSIGNAL | MSG_DONTWAIT);

    return sent >= 0 ? (long)sent : failure(os);
}

/*
 * With TW_NO_SOCKET it only sleeps: poll() skips negative descriptors.
 * A time beyond poll's range ends early with 0; who waits looks at the
 * clock anyway.
 */
int tw_socket_wait(tw_socket fd, bool for_write, int64_t timeout_ns, int *os)
{
    struct pollfd one = {.fd = fd, .events = for_write ? POLLOUT : POLLIN};
    int ms = -1;
    int found;

    if (timeout_ns >= 0) {
        /* rounded up: waking early would spin */
        int64_t whole = timeout_ns / MS + (timeout_ns % MS != 0);

        ms = whole > INT_MAX ? INT_MAX : (int)whole;
    }
    found = poll(&one, 1, ms);
    if (found < 0) {
        return (int)failure(os);
    }
    if (found == 0) {
        return 0;
    }
    if ((one.revents & POLLNVAL) != 0) {
        *os = EBADF;
        return TW_IO_ERROR;
    }
    return 1; /* POLLERR and POLLHUP too: the transfer will tell */
}

int tw_socket_shutdown(tw_socket fd, bool read, bool write)
{
    int how = read && write ? SHUT_RDWR : write ? SHUT_WR : SHUT_RD;

    if (!read && !write) {
        return 0;
    }
    return shutdown(fd, how) == 0 ? 0 : errno;
}

void tw_socket_close(tw_socket fd)
{
    /* Not repeated on EINTR: Linux has closed it by then. */
    (void)close(fd);
}
