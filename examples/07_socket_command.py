"""A registered socket command: every TLS connection through an HTTP proxy.

    python 07_socket_command.py PROXY_HOST PROXY_PORT HOST PORT [ROOTS.pem]

The command makes the TCP connection that TLS runs over (RFC 9110, 9.3.6:
CONNECT); tls_socket does the rest.
"""

import socket
import sys
from pathlib import Path
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


def main(proxy_host: str, proxy_port: int, host: str, port: int, roots_file: str | None) -> None:
    credentials = None
    if roots_file is not None:
        roots = tls.cert_temporary_store(pem=Path(roots_file).read_bytes())
        credentials = tls.sspi_acquire_credentials(
            role="client", credentials=tls.sspi_schannel_credentials(rootstore=roots)
        )
    before = tls.tls_socket_command(through(proxy_host, proxy_port))
    try:
        with tls.tls_socket(host, port, credentials=credentials, timeout=10) as channel:
            print(tls.tls_state(channel))
    finally:
        tls.tls_socket_command(before)


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    arguments = sys.argv[1:]
    main(
        arguments[0],
        int(arguments[1]),
        arguments[2],
        int(arguments[3]),
        arguments[4] if len(arguments) > 4 else None,
    )
