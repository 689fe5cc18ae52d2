"""A registered socket command: every TLS connection through an HTTP proxy.

    python socket_command.py PROXY_HOST PROXY_PORT HOST PORT

The command makes the TCP connection that TLS runs over (RFC 9110, 9.3.6:
CONNECT); tls_socket does the rest.
"""

import socket
import sys
from typing import Any

import twapi_tls as tls


def through(proxy_host: str, proxy_port: int) -> Any:
    def command(
        host: str, port: int, *, myaddr: str | None, myport: int | None, async_: bool
    ) -> socket.socket:
        sock = socket.create_connection((proxy_host, proxy_port), timeout=10)
        try:
            sock.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                byte = sock.recv(1)  # not one byte of TLS
                if not byte or len(head) > 8192:
                    raise ConnectionError("the proxy gave no proper answer")
                head += byte
            if head.split(b" ", 2)[1] != b"200":
                raise ConnectionError(head.split(b"\r\n")[0].decode("latin-1"))
        except BaseException:
            sock.close()
            raise
        return sock

    return command


def main(proxy_host: str, proxy_port: int, host: str, port: int) -> None:
    before = tls.tls_socket_command(through(proxy_host, proxy_port))
    try:
        with tls.tls_socket(host, port, timeout=10) as channel:
            print(tls.tls_state(channel))
    finally:
        tls.tls_socket_command(before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
