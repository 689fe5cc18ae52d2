"""starttls on a connected socket: SMTP's STARTTLS (RFC 3207) by hand.

    python starttls_client.py HOST PORT ROOTS.pem

For programs `twapi_tls.starttls` is all it takes; the clear-text dialogue
before it belongs to the protocol.
"""

import socket
import sys
from pathlib import Path

import twapi_tls as tls


def main(host: str, port: int, roots_file: str) -> None:
    credentials = tls.sspi_acquire_credentials(
        package="unisp",
        role="client",
        credentials=tls.sspi_schannel_credentials(
            rootstore=tls.cert_temporary_store(pem=Path(roots_file).read_bytes())
        ),
    )
    sock = socket.create_connection((host, port), timeout=10)
    answer = sock.recv(4096)
    sock.sendall(b"EHLO client.example\r\n")
    answer = sock.recv(4096)
    sock.sendall(b"STARTTLS\r\n")
    answer = sock.recv(4096)
    if not answer.startswith(b"220"):
        raise SystemExit(f"no STARTTLS here: {answer!r}")
    # from here on the socket belongs to the channel, also if this fails
    with tls.starttls(sock, credentials=credentials, peersubject=host) as channel:
        channel.sendall(b"EHLO client.example\r\n")
        print(channel.recv(4096).decode(), end="")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
