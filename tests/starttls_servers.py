"""The server's half of each STARTTLS dialogue, up to the first byte of TLS.

Each takes the connected plain socket. ``openssl s_client -starttls`` speaks the
client's half with them as well (test_cli.py): so they are what they say.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import peers
from certs import Identity

LIMIT = 30.0


def read_line(plain: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        byte = plain.recv(1)
        if not byte:
            raise ConnectionError("the client hung up")
        line += byte
    return line.decode().strip()


def read_until(plain: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        byte = plain.recv(1)
        if not byte:
            raise ConnectionError("the client hung up")
        data += byte
    return data


def smtp(plain: socket.socket) -> None:
    plain.sendall(b"220-mx.example welcomes you\r\n220 mx.example ESMTP\r\n")
    assert read_line(plain).upper().startswith("EHLO ")
    plain.sendall(b"250-mx.example\r\n250-8BITMIME\r\n250-STARTTLS\r\n250 HELP\r\n")
    assert read_line(plain).upper() == "STARTTLS"
    plain.sendall(b"220 Go ahead\r\n")


def imap(plain: socket.socket) -> None:
    plain.sendall(b"* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n")
    while True:
        tag, command = read_line(plain).split(" ", 1)
        if command.upper() == "STARTTLS":
            break
        plain.sendall(b"* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\n")
        plain.sendall(f"{tag} OK done\r\n".encode())
    plain.sendall(f"{tag} OK Begin TLS negotiation now\r\n".encode())


def pop3(plain: socket.socket) -> None:
    plain.sendall(b"+OK ready\r\n")
    while read_line(plain).upper() != "STLS":
        plain.sendall(b"+OK\r\nSTLS\r\n.\r\n")
    plain.sendall(b"+OK Begin TLS negotiation\r\n")


def ftp(plain: socket.socket) -> None:
    plain.sendall(b"220-Welcome\r\n220 ready\r\n")
    while read_line(plain).upper() != "AUTH TLS":
        plain.sendall(b"211-Features:\r\n AUTH TLS\r\n211 End\r\n")
    plain.sendall(b"234 AUTH command ok\r\n")


def ldap(plain: socket.socket) -> None:
    kind, length = plain.recv(1)[0], plain.recv(1)[0]
    assert kind == 0x30 and length < 0x80
    request = b""
    while len(request) < length:
        request += plain.recv(length - len(request))
    assert b"1.3.6.1.4.1.1466.20037" in request
    # ExtendedResponse (24) to the same message id: success, "", ""
    body = request[:3] + bytes([0x78, 7, 0x0A, 1, 0, 4, 0, 4, 0])
    plain.sendall(bytes([0x30, len(body)]) + body)


def xmpp(plain: socket.socket) -> None:
    opened = read_until(plain, b">")
    while b"stream:stream" not in opened:
        opened += read_until(plain, b">")
    plain.sendall(
        b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' "
        b"xmlns:stream='http://etherx.jabber.org/streams' id='1' from='localhost' "
        b"version='1.0'><stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'>"
        b"<required/></starttls></stream:features>"
    )
    assert re.search(rb"<starttls\s", read_until(plain, b">"))
    plain.sendall(b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")


def postgres(plain: socket.socket) -> None:
    assert plain.recv(8) == b"\0\0\0\x08\x04\xd2\x16\x2f"
    plain.sendall(b"S")


def mysql(plain: socket.socket) -> None:
    body = (
        b"\x0a8.0.36\0\x01\0\0\0saltsalt\0\xff\xff\x21\x02\0\xff\xdf\x15"
        + bytes(10)
        + b"saltsaltsalt\0mysql_native_password\0"
    )
    plain.sendall(len(body).to_bytes(3, "little") + b"\0" + body)
    head = plain.recv(4)
    assert head[3] == 1
    request = b""
    while len(request) < head[0]:
        request += plain.recv(head[0] - len(request))
    assert len(request) == 32 and int.from_bytes(request[:4], "little") & 0x0800


SERVERS: dict[str, Callable[[socket.socket], None]] = {
    "smtp": smtp,
    "imap": imap,
    "pop3": pop3,
    "ftp": ftp,
    "ldap": ldap,
    "xmpp": xmpp,
    "postgres": postgres,
    "mysql": mysql,
}


# Servers that will not: what they say, and what a user must read of it.


def refusing_smtp(plain: socket.socket) -> None:
    plain.sendall(b"220 mx.example ESMTP\r\n")
    read_line(plain)
    plain.sendall(b"250 mx.example\r\n")
    read_line(plain)
    plain.sendall(b"502 5.5.1 STARTTLS is not for you\r\n")
    plain.recv(1)


def refusing_imap(plain: socket.socket) -> None:
    plain.sendall(b"* OK ready\r\n")
    tag = read_line(plain).split()[0]
    plain.sendall(f"{tag} BAD no such command\r\n".encode())
    plain.recv(1)


def refusing_postgres(plain: socket.socket) -> None:
    plain.recv(8)
    plain.sendall(b"N")
    plain.recv(1)


def refusing_mysql(plain: socket.socket) -> None:
    body = b"\x0a8.0.36\0\x01\0\0\0saltsalt\0\xff\xf7\x21\x02\0\xff\xdf\x15" + bytes(23)
    plain.sendall(len(body).to_bytes(3, "little") + b"\0" + body)
    plain.recv(1)


def refusing_ldap(plain: socket.socket) -> None:
    plain.recv(64)
    plain.sendall(bytes([0x30, 12, 2, 1, 1, 0x78, 7, 0x0A, 1, 2, 4, 0, 4, 0]))
    plain.recv(1)


def hanging_up(plain: socket.socket) -> None:
    plain.recv(1)


REFUSALS: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "smtp": (refusing_smtp, "502 5.5.1 STARTTLS is not for you"),
    "imap": (refusing_imap, "BAD no such command"),
    "postgres": (refusing_postgres, "the PostgreSQL server does not offer SSL"),
    "mysql": (refusing_mysql, "the MySQL server does not offer SSL"),
    "ldap": (refusing_ldap, "the LDAP server refused StartTLS"),
}


@contextmanager
def dialogue_server(
    identity: Identity,
    dialogue: Callable[[socket.socket], None],
    handler: Callable[[ssl.SSLSocket], None] = peers.echo,
) -> Iterator[tuple[int, list[BaseException]]]:
    """The dialogue, then TLS and an echo (or ``handler``); one connection at a time."""
    errors: list[BaseException] = []
    context = peers.ssl_server_context(identity)
    over = threading.Event()
    with socket.create_server((peers.HOST, 0)) as listener:
        listener.settimeout(0.05)

        def serve() -> None:
            while not over.is_set():
                try:
                    plain, _ = listener.accept()
                except TimeoutError:
                    continue
                with plain:
                    plain.settimeout(LIMIT)
                    try:
                        dialogue(plain)
                        with context.wrap_socket(plain, server_side=True) as secure:
                            handler(secure)
                    except Exception as error:
                        errors.append(error)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], errors
        finally:
            over.set()
            thread.join(LIMIT)
