"""The contenders behind one face: ours, Python's ``ssl``, plain sockets.

All verify the server's chain and name as a client and run on the same libssl.
The suite of TLS 1.3 is chosen by OPENSSL_CONF (run.py), since ``ssl`` has no
call for it before Python 3.15. Nothing here measures.
"""

from __future__ import annotations

import socket
import ssl
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import twapi_tls as tls
from twapi_tls.demo import make_certificates

NAME = "localhost"
PIECE = 256 * 1024


@dataclass(frozen=True)
class Kind:
    """What is spoken: the protocol, and for TLS 1.2 the cipher."""

    version: str = "tls1.3"
    ciphers: str | None = None


TLS13 = Kind()


class Stream(Protocol):
    """A connected end, blocking or not."""

    def sendall(self, data: Any, /) -> object: ...
    def send(self, data: Any, /) -> int: ...
    def recv(self, n: int, /) -> bytes: ...
    def recv_into(self, buffer: Any, /) -> int: ...
    def setblocking(self, flag: bool, /) -> object: ...
    def fileno(self) -> int: ...
    def close(self) -> object: ...


class Engine(Protocol):
    """One contender."""

    name: str
    would_block: tuple[type[BaseException], ...]

    def client(self, sock: socket.socket) -> Stream: ...
    def server(self, sock: socket.socket) -> Stream: ...


class Certificates:
    """Made on the spot, in memory and as files (``ssl`` takes no other)."""

    def __init__(self) -> None:
        self.root, self.server, _ = make_certificates()
        self.folder = tempfile.TemporaryDirectory(prefix="twapi_tls-bench-")
        self.root_file = Path(self.folder.name, "root.pem")
        self.server_file = Path(self.folder.name, "server.pem")
        self.root_file.write_bytes(self.root)
        self.server_file.write_bytes(self.server)

    @classmethod
    def of(cls, folder: Path) -> Certificates:
        """Those that another process made and keeps."""
        made = cls.__new__(cls)
        made.root_file, made.server_file = folder / "root.pem", folder / "server.pem"
        made.root, made.server = made.root_file.read_bytes(), made.server_file.read_bytes()
        return made


class Ours:
    """twapi_tls, through its public names."""

    name = "twapi_tls"
    would_block: tuple[type[BaseException], ...] = (BlockingIOError,)

    def __init__(self, certificates: Certificates, kind: Kind = TLS13) -> None:
        self.certificates = certificates
        self.kind: dict[str, Any] = {"protocols": [kind.version], "ciphers": kind.ciphers}
        store = tls.cert_temporary_store(pem=certificates.server)
        self.server_credentials = tls.sspi_acquire_credentials(
            role="server",
            credentials=tls.sspi_schannel_credentials(certificates=store, **self.kind),
        )
        self.roots = self.new_roots()
        self.client_config = self.new_client_config()
        self.client_credentials = self.new_client_credentials()

    def new_roots(self) -> tls.Store:
        """The anchors, as a set of its own."""
        return tls.cert_temporary_store(pem=self.certificates.root)

    def new_client_config(self, roots: tls.Store | None = None) -> tls.CredentialsConfig:
        """A client that trusts these anchors, else the common ones."""
        return tls.sspi_schannel_credentials(rootstore=roots or self.roots, **self.kind)

    def new_client_credentials(self) -> tls.Credentials:
        """A client without sessions to resume."""
        return tls.sspi_acquire_credentials(role="client", credentials=self.client_config)

    def client(self, sock: socket.socket) -> Stream:
        return tls.starttls(sock, credentials=self.client_credentials, peersubject=NAME)

    def server(self, sock: socket.socket) -> Stream:
        channel = tls.starttls(sock, server=True, credentials=self.server_credentials)
        tls.tls_handshake(channel)
        return channel

    def memory_pair(
        self, client_credentials: tls.Credentials | None = None
    ) -> tuple[tls.SspiContext, tls.SspiContext]:
        """Two contexts after the handshake, the ticket delivered."""
        client = tls.sspi_client_context(client_credentials or self.client_credentials, NAME)
        _, to_server, _ = tls.sspi_step(client)
        server = tls.sspi_server_context(self.server_credentials, to_server)
        status, to_client, _ = tls.sspi_step(server)
        done, to_server, _ = tls.sspi_step(client, to_client)
        while status != "done" or done != "done":
            status, to_client, _ = tls.sspi_step(server, to_server)
            if done != "done":
                done, to_server, to_client = tls.sspi_step(client, to_client)
        tls.sspi_decrypt_stream(client, to_client)
        return client, server


class Ssl:
    """Python's ssl module."""

    name = "ssl"
    would_block: tuple[type[BaseException], ...] = (ssl.SSLWantReadError, ssl.SSLWantWriteError)

    def __init__(self, certificates: Certificates, kind: Kind = TLS13) -> None:
        self.server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server_context.load_cert_chain(certificates.server_file)
        self.client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.client_context.load_verify_locations(certificates.root_file)
        version = ssl.TLSVersion.TLSv1_3 if kind.version == "tls1.3" else ssl.TLSVersion.TLSv1_2
        for context in (self.server_context, self.client_context):
            context.minimum_version = context.maximum_version = version
            if kind.ciphers is not None:
                context.set_ciphers(kind.ciphers)

    def client(self, sock: socket.socket) -> Stream:
        return self.client_context.wrap_socket(sock, server_hostname=NAME)

    def server(self, sock: socket.socket) -> Stream:
        return self.server_context.wrap_socket(sock, server_side=True)

    def memory_pair(self, session: ssl.SSLSession | None = None) -> tuple[SslEnd, SslEnd]:
        """Two objects after the handshake, the tickets delivered."""
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self.client_context.wrap_bio(down, up, server_hostname=NAME, session=session)
        server = self.server_context.wrap_bio(up, down, server_side=True)
        done = [False, False]
        while not all(done):
            for number, end in enumerate((client, server)):
                if not done[number]:
                    try:
                        end.do_handshake()
                        done[number] = True
                    except ssl.SSLWantReadError:
                        continue
        try:
            client.read(1)
        except ssl.SSLWantReadError:
            pass
        return SslEnd(client, down, up), SslEnd(server, up, down)


@dataclass
class SslEnd:
    """An SSLObject with its two BIOs."""

    object: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO


class Plain:
    """No TLS at all: the limit of what a socket gives."""

    name = "plain sockets"
    would_block: tuple[type[BaseException], ...] = (BlockingIOError,)

    def client(self, sock: socket.socket) -> Stream:
        return sock

    def server(self, sock: socket.socket) -> Stream:
        return sock


class Tcp:
    """The congestion control of the connections that are made here.

    None: the system's own. One that paces (BBR) sends by a timer, and over
    loopback its interrupts are much of what there is to measure.
    """

    congestion: str | None = None

    @classmethod
    def name(cls) -> str:
        """What is in use ("cubic"), or "" where the system does not tell."""
        if cls.congestion is not None or sys.platform != "linux":
            return cls.congestion or ""
        with socket.socket() as sock:
            return (
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).strip(b"\0").decode()
            )


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback, without delay."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if Tcp.congestion is not None and sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, Tcp.congestion.encode())
    return one, other
