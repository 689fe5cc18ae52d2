/*
 * The native socket, Windows side.
 *
 * Winsock's sockets are handles of the kernel, not descriptors of the C
 * library: close is closesocket, errors come from WSAGetLastError, and a
 * wait is a select() over one socket. (WSAPoll reports no failed connect
 * below Windows 10 2004; WSAEventSelect would take over the socket's event
 * state, which asyncio's loops may want.)
 *
 * Console control-C: it arrives on another thread and interrupts no wait
 * of Winsock's, so a wait is cut into slices; after each the caller hears
 * TW_IO_INTERRUPTED and looks after signals. A slice costs nothing while
 * data flows.
 */
#include <winsock2.h>
#include <windows.h>

#include <limits.h>

#include "wire/socket.h"
#include "wire/wire.h"

/* ns in a second, in a millisecond, and longest wait in one piece */
#define SECOND INT64_C(1000000000)
#define MS INT64_C(1000000)
#define SLICE (INT64_C(100) * MS)

int64_t tw_clock_ns(void)
{
    LARGE_INTEGER now;
    LARGE_INTEGER rate;

    (void)QueryPerformanceFrequency(&rate);
    (void)QueryPerformanceCounter(&now);
    /* in two steps: ticks times 1e9 would overflow after minutes */
    return now.QuadPart / rate.QuadPart * SECOND
           + now.QuadPart % rate.QuadPart * SECOND / rate.QuadPart;
}

int tw_socket_prepare(tw_socket s)
{
    int type = 0;
    int size = sizeof(type);
    u_long on = 1;

    /* Fails with WSAENOTSOCK before anything is changed. */
    if (getsockopt((SOCKET)s, SOL_SOCKET, SO_TYPE, (char *)&type, &size)
        != 0) {
        return WSAGetLastError();
    }
    if (type != SOCK_STREAM) {
        return WSAEPROTOTYPE;
    }
    /* Refused for sockets of layered providers, which are not inherited. */
    (void)SetHandleInformation((HANDLE)s, HANDLE_FLAG_INHERIT, 0);
    if (ioctlsocket((SOCKET)s, FIONBIO, &on) != 0) {
        return WSAGetLastError();
    }
    return 0;
}

/* What the last error means for a transfer. */
static long failure(int *os)
{
    int code = WSAGetLastError();

    if (code == WSAEWOULDBLOCK) {
        return TW_IO_BLOCKED;
    }
    if (code == WSAEINTR) {
        return TW_IO_INTERRUPTED;
    }
    *os = code;
    return TW_IO_ERROR;
}

/* One call moves what an int can count. */
static int clip(size_t len)
{
    return len > (size_t)INT_MAX ? INT_MAX : (int)len;
}

long tw_socket_recv(tw_socket s, void *buf, size_t cap, int *os)
{
    int got = recv((SOCKET)s, buf, clip(cap), 0);

    return got >= 0 ? (long)got : failure(os);
}

/* A blocking recv() could be ended neither by control-C nor by a deadline,
   and Winsock has no way of not waiting per call: tw_socket_wait does it. */
long tw_socket_recv_wait(tw_socket s, void *buf, size_t cap, int *os)
{
    (void)s;
    (void)buf;
    (void)cap;
    (void)os;
    return TW_IO_BLOCKED;
}

long tw_socket_send(tw_socket s, const void *buf, size_t len, int *os)
{
    int sent = send((SOCKET)s, buf, clip(len), 0);

    return sent >= 0 ? (long)sent : failure(os);
}

/* With TW_NO_SOCKET it only sleeps: select() wants one socket at least. */
static int nap(int64_t ns)
{
    Sleep((DWORD)((ns + MS - 1) / MS));
    return 0;
}

int tw_socket_wait(tw_socket s, bool for_write, int64_t timeout_ns, int *os)
{
    int64_t piece = timeout_ns;
    bool cut = timeout_ns < 0 || timeout_ns > SLICE;
    struct timeval limit;
    fd_set ready;
    fd_set failed;
    int found;

    if (cut) {
        piece = SLICE;
    }
    if (s == TW_NO_SOCKET) {
        found = nap(piece);
        return cut ? TW_IO_INTERRUPTED : found;
    }
    FD_ZERO(&ready);
    FD_ZERO(&failed);
    FD_SET((SOCKET)s, &ready);
    FD_SET((SOCKET)s, &failed);
    /* rounded up: waking early would spin */
    piece = (piece + 999) / 1000;
    limit.tv_sec = (long)(piece / 1000000);
    limit.tv_usec = (long)(piece % 1000000);
    found = for_write ? select(0, NULL, &ready, &failed, &limit)
                      : select(0, &ready, NULL, &failed, &limit);
    if (found < 0) {
        return (int)failure(os);
    }
    if (found == 0) {
        return cut ? TW_IO_INTERRUPTED : 0;
    }
    return 1; /* failed too: the transfer will tell */
}

int tw_socket_shutdown(tw_socket s, bool read, bool write)
{
    int how = read && write ? SD_BOTH : write ? SD_SEND : SD_RECEIVE;

    if (!read && !write) {
        return 0;
    }
    return shutdown((SOCKET)s, how) == 0 ? 0 : WSAGetLastError();
}

void tw_socket_close(tw_socket s)
{
    (void)closesocket((SOCKET)s);
}
