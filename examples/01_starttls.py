"""starttls on a connected socket: SMTP's STARTTLS (RFC 3207) by hand.

    python 01_starttls.py HOST PORT ROOTS.pem

For programs `twapi_tls.starttls` is all it takes; the clear-text dialogue
before it belongs to the protocol.
"""

import socket
import sys
from pathlib import Path
from typing import BinaryIO

import twapi_tls as tls


def reply(stream: BinaryIO) -> str:
    """A whole reply: ``250-...`` lines lead to a ``250 ...`` line."""
    text = ""
    while not (line := stream.readline().decode())[3:4] == " ":
        if not line:
            raise SystemExit(f"the server hung up after: {text!r}")
        text += line
    return text + line


def main(host: str, port: int, roots_file: str) -> None:
    credentials = tls.sspi_acquire_credentials(
        package="unisp",
        role="client",
        credentials=tls.sspi_schannel_credentials(
            rootstore=tls.cert_temporary_store(pem=Path(roots_file).read_bytes())
        ),
    )
    sock = socket.create_connection((host, port), timeout=10)
    # Unbuffered: not one byte beyond the reply may be taken from the socket.
    with sock.makefile("rb", buffering=0) as plain:
        reply(plain)
        sock.sendall(b"EHLO client.example\r\n")
        reply(plain)
        sock.sendall(b"STARTTLS\r\n")
        answer = reply(plain)
    if not answer.startswith("220"):
        raise SystemExit(f"no STARTTLS here: {answer}")
    # From here on the socket belongs to the channel, also if this fails.
    with tls.starttls(sock, credentials=credentials, peersubject=host) as channel:
        channel.sendall(b"EHLO client.example\r\n")
        with channel.makefile("rb") as protected:
            print(reply(protected), end="")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
