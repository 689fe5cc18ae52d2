"""What the interoperability tests share: peers in one shape, exchanges with them."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import peers
from certs import Identity, Pki
from platforms import SLOWER
from twapi_support import HOST, Served, server_credentials, serving

import twapi_tls as tls

PATIENCE = 20.0 * SLOWER
SERVERS = ("openssl", "gnutls", "python", "nginx")
CLIENTS = ("openssl", "gnutls", "python", "curl")
OTHER = "other.example"  # a name of pki.wrong_name's


def payload(size: int, seed: int = 1) -> bytes:
    """Lines of digits between < and >: no peer takes them for a command."""
    source = random.Random(seed)
    lines = bytearray(b"<")
    while len(lines) < size:
        lines += b"%078d\n" % source.randrange(10**78)
    return bytes(lines[: size - 2]) + b">\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


MEGABYTE = payload(1_000_000)


# --- peers that serve


@contextmanager
def serve(
    peer: str,
    identity: Identity,
    folder: Path,
    *,
    version: str | None,
    client_ca: Path | None = None,
    require_client: bool = False,
    alpn: Sequence[str] = (),
    other: Identity | None = None,
    tickets: bool = True,
) -> Iterator[Any]:
    """One of SERVERS, ready; ``other``: its certificate for the name OTHER."""
    asked: dict[str, Any] = {
        "version": version,
        "client_ca": client_ca,
        "require_client": require_client,
    }
    arguments: list[str] = []
    if peer == "openssl":
        if alpn:
            arguments += ["-alpn", ",".join(alpn)]
        if other is not None:
            arguments += ["-servername", OTHER]
            arguments += ["-cert2", str(other.leaf), "-key2", str(other.key)]
        # A session of a server that verifies clients belongs to a context.
        arguments += ["-context", "interop"]
        with peers.openssl_server(identity, arguments=arguments, **asked) as running:
            yield running
    elif peer == "gnutls":
        for name in alpn:
            arguments += ["--alpn", name]
        if other is not None:
            arguments += ["--x509certfile", str(other.chain), "--x509keyfile", str(other.key)]
        with peers.gnutls_server(identity, arguments=arguments, **asked) as running:
            yield running
    elif peer == "python":
        context = peers.ssl_server_context(identity, alpn=alpn, **asked)
        if other is not None:
            second = peers.ssl_server_context(other, alpn=alpn, **asked)

            def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
                if name == OTHER:
                    connection.context = second

            context.sni_callback = choose  # type: ignore[assignment]
        with peers.ssl_server(identity, context=context) as server:
            yield server
    else:
        with peers.nginx(
            identity,
            folder,
            extra="ssl_session_cache shared:interop:1m;",
            other=None if other is None else (OTHER, other),
            **asked,
        ) as running:
            yield running


def connect(peer: Any, **options: Any) -> tls.TlsChannel:
    options.setdefault("peersubject", "localhost")
    channel = tls.tls_socket(HOST, peer.port, timeout=PATIENCE, **options)
    assert isinstance(channel, tls.TlsChannel)
    return channel


def facts(channel: tls.TlsChannel) -> tls.ConnectionFacts:
    found: tls.ConnectionFacts = channel.cget("context").facts()
    return found


def send_aside(channel: tls.TlsChannel, data: bytes) -> Callable[[], None]:
    """Sends in a thread; the result joins it and raises what it met."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            channel.sendall(data)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def finish() -> None:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "sending does not end"
        if failures:
            raise failures[0]

    return finish


def receive(channel: tls.TlsChannel, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(min(65536, size - len(data)))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


def http(channel: tls.TlsChannel, request: bytes, body: bytes = b"") -> bytes:
    """The body of the answer to one request; the connection goes on."""
    channel.sendall(request + b"\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
    finish = send_aside(channel, body)
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        piece = channel.recv(1)
        assert piece, f"no HTTP answer: {bytes(head)!r}"
        head += piece
    finish()
    assert re.match(rb"HTTP/1.1 20[0-9] ", head), bytes(head)
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return receive(channel, int(length[1])) if length else b""


def printed(peer: peers.Peer, size: int) -> bytes:
    """What the peer received, out of what it printed: from < to >."""
    found = peer.expect(rb"<[0-9\n]*>\n", PATIENCE)
    data = found[0]
    assert len(data) == size, f"{len(data)} bytes printed of {size}"
    return data


def exchange(
    peer: str, running: Any, channel: tls.TlsChannel, data: bytes = b"<123>\n"
) -> tuple[bytes, bytes]:
    """Data to the peer and data from it: what it received, what we did."""
    if peer == "openssl":
        finish = send_aside(channel, data)
        there = printed(running, len(data))
        finish()
        sender = threading.Thread(target=running.send, args=(data,), daemon=True)
        sender.start()
        here = receive(channel, len(data))
        sender.join(PATIENCE)
        return there, here
    if peer == "nginx":
        name = sha256(data).encode()
        http(channel, b"PUT /upload/%b HTTP/1.1" % name, data)
        here = http(channel, b"GET /upload/%b HTTP/1.1" % name)
        return here, here
    # They echo: what comes back went there.
    finish = send_aside(channel, data)
    here = receive(channel, len(data))
    finish()
    return here, here


# --- peers that connect


def echo(channel: tls.TlsChannel) -> None:
    while data := channel.recv(65536):
        channel.sendall(data)


def answer_http(channel: tls.TlsChannel) -> None:
    """Answers one request with its own body, or with ``hello``, and closes.

    Reading on would meet, on Windows, the reset of a client that left our
    close_notify unread.
    """
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        piece = channel.recv(1)
        if not piece:
            return
        head += piece
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    if re.search(rb"(?i)\r\nexpect: 100-continue", head):
        channel.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = receive(channel, int(length[1])) if length else b"hello\n"
    channel.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    )
    channel.sendall(body)


@contextmanager
def our_server(
    identity: Identity | Callable[[str, list[bytes], list[int]], tls.Credentials],
    work: Callable[[tls.TlsChannel], None] = echo,
    *,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[Served]:
    """A listener of ours; ``work`` runs in a thread for each connection.

    Reports each connection's facts when it was accepted and then, once its
    work is over, the channel, or what the work or the handshake met.
    """
    threads: list[threading.Thread] = []

    def start(served: Served) -> Any:
        def accepted(channel: tls.TlsChannel, address: str, port: int) -> None:
            served.report(facts(channel))

            def run() -> None:
                outcome: Any = channel
                try:
                    with channel:
                        channel.settimeout(PATIENCE)
                        work(channel)
                except BaseException as error:
                    outcome = error
                served.report(outcome)

            thread = threading.Thread(target=run, daemon=True)
            threads.append(thread)
            thread.start()

        credentials = (
            server_credentials(identity, **(config or {}))
            if isinstance(identity, Identity)
            else identity
        )
        return tls.tls_socket(0, server=accepted, credentials=credentials, myaddr=HOST, **options)

    with serving(start) as served:
        yield served
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a connection's thread does not end"


def run_python_client(
    port: int, context: ssl.SSLContext, name: str, data: bytes, session: Any = None
) -> tuple[bytes, str, bool, Any]:
    """Echo by Python's ssl: what came back, ALPN, resumed or not, the session."""
    with socket.create_connection((HOST, port), PATIENCE) as plain:
        with context.wrap_socket(plain, server_hostname=name, session=session) as secure:
            # One thread: before 3.13 an SSLSocket does not bear two.
            back = bytearray()
            for at in range(0, len(data), 32768):
                piece = data[at : at + 32768]
                secure.sendall(piece)
                while len(back) < at + len(piece):
                    answer = secure.recv(65536)
                    if not answer:
                        raise peers.PeerError("our server ended early")
                    back += answer
            found = (
                bytes(back),
                f"ALPN: {secure.selected_alpn_protocol()}",
                bool(secure.session_reused),
                secure.session,
            )
            secure.unwrap()
            return found


def run_client(
    peer: str,
    port: int,
    pki: Pki,
    folder: Path,
    *,
    version: str | None,
    name: str = "localhost",
    identity: Identity | None = None,
    alpn: Sequence[str] = (),
    data: bytes = b"<123>\n",
) -> tuple[bytes, str]:
    """One of CLIENTS sends data to our echo: what came back, and its output."""
    options: dict[str, Any] = {"ca": pki.root, "version": version, "identity": identity}
    arguments: list[str] = []
    if peer == "python":
        context = peers.ssl_client_context(pki.root, identity=identity, version=version, alpn=alpn)
        return run_python_client(port, context, name, data)[:2]
    if peer == "curl":
        source, target = folder / "sent", folder / "got"
        source.write_bytes(data)
        arguments = ["--data-binary", f"@{source}", "--output", str(target), "--verbose"]
        with peers.curl(port, servername=name, arguments=arguments, **options) as client:
            status = client.wait(PATIENCE)
            output = client.output.decode(errors="replace")
        if status:
            raise peers.PeerError(f"curl ended with {status}: {output}")
        return target.read_bytes(), output
    if peer == "openssl":
        arguments = ["-alpn", ",".join(alpn)] if alpn else []
        start = peers.openssl_client
    else:
        arguments = [word for one in alpn for word in ("--alpn", one)]
        start = peers.gnutls_client
    with start(port, servername=name, arguments=arguments, **options) as client:
        sender = threading.Thread(target=_send_quietly, args=(client, data), daemon=True)
        sender.start()
        try:
            back = printed(client, len(data))
        finally:
            sender.join(PATIENCE)
        client.close_stdin()
        client.wait(PATIENCE)
        return back, client.output.decode(errors="replace")


def _send_quietly(client: peers.Peer, data: bytes) -> None:
    # A client that ends early says why on its output.
    with suppress(OSError):
        client.send(data)


def work_for(peer: str) -> Callable[[tls.TlsChannel], None]:
    return answer_http if peer == "curl" else echo
