"""What is said in the clear before STARTTLS, protocol by protocol.

Each function takes a connected plain socket, speaks as the client until the
server is ready for TLS, and reads not one byte more: bytes after the server's
go-ahead would be an injection (CVE-2011-0411).

Sources: SMTP RFC 3207; IMAP RFC 3501, 6.2.1; POP3 RFC 2595; FTP RFC 4217;
LDAP RFC 4511, 4.14; XMPP RFC 6120, 5; PostgreSQL's and MySQL's protocol
documentation ("SSL session encryption", "Connection phase").
"""

from __future__ import annotations

import socket
from collections.abc import Callable

__all__ = ["DIALOGUES", "StartTLSRefused"]

_LINE_LIMIT = 4096


class StartTLSRefused(ConnectionError):
    """The server does not offer TLS; the text is its answer."""


def _exactly(sock: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        piece = sock.recv(n - len(data))
        if not piece:
            raise ConnectionError("the server closed the connection before STARTTLS")
        data += piece
    return data


def _line(sock: socket.socket) -> bytes:
    line = bytearray()
    # byte by byte, so that nothing after the line is taken
    while not line.endswith(b"\n"):
        if len(line) >= _LINE_LIMIT:
            raise StartTLSRefused("the server's answer is too long for a line")
        line += _exactly(sock, 1)
    return bytes(line).rstrip(b"\r\n")


def _reply(sock: socket.socket, wanted: bytes) -> bytes:
    """A reply of SMTP or FTP, its last line; ``250-`` lines lead to ``250 ``."""
    line = _line(sock)
    while line[3:4] == b"-":
        line = _line(sock)
    if not line.startswith(wanted):
        raise StartTLSRefused(line.decode("latin-1"))
    return line


def smtp(sock: socket.socket, host: str) -> None:
    _reply(sock, b"220")
    sock.sendall(b"EHLO localhost\r\n")
    _reply(sock, b"250")
    sock.sendall(b"STARTTLS\r\n")
    _reply(sock, b"220")


def imap(sock: socket.socket, host: str) -> None:
    _line(sock)
    sock.sendall(b"a1 STARTTLS\r\n")
    line = _line(sock)
    while line.startswith(b"* "):
        line = _line(sock)
    if not line.upper().startswith(b"A1 OK"):
        raise StartTLSRefused(line.decode("latin-1"))


def pop3(sock: socket.socket, host: str) -> None:
    for command in (b"", b"STLS\r\n"):
        sock.sendall(command)
        line = _line(sock)
        if not line.startswith(b"+OK"):
            raise StartTLSRefused(line.decode("latin-1"))


def ftp(sock: socket.socket, host: str) -> None:
    _reply(sock, b"220")
    sock.sendall(b"AUTH TLS\r\n")
    _reply(sock, b"234")


def ldap(sock: socket.socket, host: str) -> None:
    # an ExtendedRequest 1.3.6.1.4.1.1466.20037 with message id 1, as bytes
    oid = b"1.3.6.1.4.1.1466.20037"
    name = bytes([0x80, len(oid)]) + oid
    request = bytes([0x77, len(name)]) + name
    message = b"\x02\x01\x01" + request
    sock.sendall(bytes([0x30, len(message)]) + message)
    head = _exactly(sock, 2)
    length = head[1]
    if length & 0x80:
        length = int.from_bytes(_exactly(sock, length & 0x7F), "big")
    if head[0] != 0x30 or length > _LINE_LIMIT:
        raise StartTLSRefused("the answer is no LDAP message")
    answer = _exactly(sock, length)
    # message id, then [APPLICATION 24] whose first element is the resultCode
    at = answer.find(b"\x0a\x01")
    if at < 0 or answer[at + 2 : at + 3] != b"\x00":
        raise StartTLSRefused("the LDAP server refused StartTLS")


def xmpp(sock: socket.socket, host: str) -> None:
    sock.sendall(
        b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' "
        b"xmlns:stream='http://etherx.jabber.org/streams' version='1.0' to='"
        + host.encode("idna")
        + b"'>"
    )
    seen = b""
    while b"</stream:features>" not in seen:
        if len(seen) > 16 * _LINE_LIMIT:
            raise StartTLSRefused("the XMPP server sent no stream features")
        seen += _exactly(sock, 1)
    sock.sendall(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
    seen = b""
    while not seen.endswith(b">"):
        if len(seen) > _LINE_LIMIT:
            raise StartTLSRefused("the XMPP server's answer is too long")
        seen += _exactly(sock, 1)
    if b"<proceed" not in seen:
        raise StartTLSRefused(seen.decode("utf-8", "replace"))


def postgres(sock: socket.socket, host: str) -> None:
    sock.sendall((8).to_bytes(4, "big") + (80877103).to_bytes(4, "big"))
    if _exactly(sock, 1) != b"S":
        raise StartTLSRefused("the PostgreSQL server does not offer SSL")


def mysql(sock: socket.socket, host: str) -> None:
    head = _exactly(sock, 4)
    greeting = _exactly(sock, int.from_bytes(head[:3], "little"))
    end = greeting.find(b"\0", 1)
    # version, connection id (4), 8 bytes of salt, a filler, the capabilities
    at = end + 1 + 4 + 8 + 1
    capabilities = int.from_bytes(greeting[at : at + 2], "little")
    if greeting[:1] != b"\x0a" or end < 0 or not capabilities & 0x0800:
        raise StartTLSRefused("the MySQL server does not offer SSL")
    # CLIENT_PROTOCOL_41, CLIENT_SSL, CLIENT_SECURE_CONNECTION
    flags = 0x0200 | 0x0800 | 0x8000
    body = flags.to_bytes(4, "little") + (1 << 24).to_bytes(4, "little") + b"\x2d" + bytes(23)
    sock.sendall(len(body).to_bytes(3, "little") + b"\x01" + body)


DIALOGUES: dict[str, Callable[[socket.socket, str], None]] = {
    "smtp": smtp,
    "imap": imap,
    "pop3": pop3,
    "ftp": ftp,
    "ldap": ldap,
    "xmpp": xmpp,
    "postgres": postgres,
    "mysql": mysql,
}
"""Protocol name to its dialogue; the command line's ``--starttls``."""
