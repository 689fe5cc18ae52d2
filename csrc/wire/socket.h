/*
 * The native socket behind one face: socket_posix.c, socket_winsock.c.
 */
#ifndef TW_WIRE_SOCKET_H
#define TW_WIRE_SOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
typedef uintptr_t tw_socket; /* SOCKET */
#define TW_NO_SOCKET (~(tw_socket)0)
#else
typedef int tw_socket;
#define TW_NO_SOCKET (-1)
#endif

/* Results of one system call: >= 0 bytes, or one of these. */
#define TW_IO_BLOCKED (-1)     /* would block */
#define TW_IO_INTERRUPTED (-2) /* signal */
#define TW_IO_ERROR (-3)       /* *os holds errno / WSAGetLastError */

/* 0 or the system's error. Not inheritable, no SIGPIPE; blocking where
   there is tw_socket_recv_wait, else non-blocking. */
int tw_socket_prepare(tw_socket);
/* 0 at EOF. Neither waits, whatever the socket's mode. */
long tw_socket_recv(tw_socket, void *buf, size_t cap, int *os);
/* Waits for bytes, the end, a signal. TW_IO_BLOCKED: not to be had here, or
   not now (another owner of the socket made it non-blocking). */
long tw_socket_recv_wait(tw_socket, void *buf, size_t cap, int *os);
long tw_socket_send(tw_socket, const void *buf, size_t len, int *os);
/* 1 ready, 0 timed out, or TW_IO_...; timeout_ms -1: forever. */
int tw_socket_wait(tw_socket, bool for_write, int64_t timeout_ns, int *os);
int tw_socket_shutdown(tw_socket, bool read, bool write); /* 0 or error */
void tw_socket_close(tw_socket);

#endif
