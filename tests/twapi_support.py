"""What the ports of TWAPI's tls.test share: credentials, verifiers, servers.

The original starts its servers as child processes and its clients in the test
program. Here ``serving`` runs a server's event loop in a thread, and the client
is the test: whoever holds the GIL while it waits stops the other.
"""

from __future__ import annotations

import asyncio
import json
import queue
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import peers
import pytest
from certs import Identity, Pki
from platforms import SLOWER

import twapi_tls as tls
from twapi_tls import pollers

HOST = "127.0.0.1"
LIMIT = 5.0 * SLOWER  # seconds that anything may take
EOF = "EOF"

# The values that tls.test pins.
WRONG_PRINCIPAL = -2146893022
UNTRUSTED_ROOT = -2146893019
NO_CREDENTIALS = -2146893042
CERT_EXPIRED = -2146893016

REFUSED = r"TLS negotiation failed\. Verifier callback returned false\."
VERIFYFAIL = ("TWAPI", "TLS", "VERIFYFAIL")
CERTIFICATE_ALERTS = {
    "access_denied",
    "bad_certificate",
    "certificate_expired",
    "certificate_unknown",
    "unknown_ca",
    "unsupported_certificate",
}
HTTP_RESPONSE = re.compile(rb"(?is)HTTP.*<HTML.*</HTML>")


# --- credentials and verifiers


def certificate(identity: Identity) -> Any:
    """The certificate with its key and what came with it."""
    with tls.cert_temporary_store(pem=identity.combined.read_bytes()) as store:
        found = tls.cert_store_find_certificate(store, "has_private_key")
        assert found is not None
        return found


def client_credentials(pki: Pki, identity: Identity | None = None, **options: Any) -> Any:
    """A client's that trust the tests' root; with ``identity`` a certificate."""
    return tls.sspi_acquire_credentials(
        package="unisp",
        role="client",
        credentials=tls.sspi_schannel_credentials(
            certificates=[certificate(identity)] if identity is not None else [],
            rootstore=tls.cert_temporary_store(pem=pki.root_pem),
            **options,
        ),
    )


def server_credentials(identity: Identity, **options: Any) -> Any:
    """A server's; Schannel finds the intermediate as well."""
    options.setdefault("install_intermediates", True)
    return tls.sspi_acquire_credentials(
        package="unisp",
        role="server",
        credentials=tls.sspi_schannel_credentials(certificates=[certificate(identity)], **options),
    )


class VerificationError(Exception):
    """What ``verify_error`` raises; ``errorcode`` as in the original."""

    errorcode = ("TEST", "TLS", "VERIFYFAIL")


def verify_true(channel: Any, context: Any) -> bool:
    return True


def verify_false(channel: Any, context: Any) -> bool:
    return False


def verify_error(channel: Any, context: Any) -> bool:
    raise VerificationError("Verification error")


def verify_name(pki: Pki, name: str | None) -> Callable[[Any, Any], bool]:
    """The original's ``verify``: against our CA, for a server's name or a client."""

    def verify(channel: Any, context: Any) -> bool:
        with tls.sspi_remote_cert(context) as cert:
            return status_of(pki, cert, name) == "ok"

    return verify


def status_of(pki: Pki, cert: Any, name: str | None) -> str:
    root = tls.cert_import(pki.root_pem)
    return str(tls.cert_tls_verify(cert, server=name, trustedroots=[root], revocationcheck="none"))


# --- servers of ours


@dataclass
class Background:
    """An error that reached the event loop's exception handler."""

    error: Any


class Served:
    """A server in a thread: its port, and what it reports, in order."""

    def __init__(self) -> None:
        self.port = 0
        self.listener: Any = None
        self.channels: list[Any] = []
        self._reports: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def report(self, value: Any) -> None:
        self._reports.put(value)

    def result(self, limit: float = LIMIT) -> Any:
        """The next report; fails the test if none comes within so many seconds."""
        try:
            return self._reports.get(timeout=limit)
        except queue.Empty:
            pytest.fail(f"the server reported nothing within {limit:g} s")

    def nothing_more(self) -> bool:
        return self._reports.empty()


@contextmanager
def serving(start: Callable[[Served], Any]) -> Iterator[Served]:
    """An event loop in a thread; ``start`` runs in it and returns the listener.

    What reaches the loop's exception handler is reported as ``Background``.
    At the end the listener and ``channels`` are closed and the thread joined.
    """
    served = Served()
    started: queue.SimpleQueue[Any] = queue.SimpleQueue()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, context: served.report(Background(context.get("exception")))
        )
        stop = asyncio.Event()
        served.listener = start(served)
        served.port = served.listener.getsockname()[1]
        started.put((loop, stop))
        try:
            await stop.wait()
        finally:
            served.listener.close()
            for channel in served.channels:
                channel.close()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            started.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    answer = started.get(timeout=LIMIT)
    if isinstance(answer, BaseException):
        thread.join(LIMIT)
        raise answer
    loop, stop = answer
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(2 * LIMIT)
        assert not thread.is_alive(), "the server's thread does not end"


def connection_facts(channel: Any, address: str, port: int) -> bytes:
    """Who the peer is: as the callback was told, and as the channel says."""
    return json.dumps(
        [[address, port], list(channel.cget("sockname")), list(channel.cget("peername"))]
    ).encode()


def answer_one_line(served: Served, channel: Any, address: str, port: int) -> None:
    """The original's basic server: one line, blocking, answered reversed."""
    served.channels.append(channel)
    with channel:
        channel.settimeout(LIMIT)
        line = channel.gets()
        if line is not None:
            known = line == b"conninfo"
            channel.puts(connection_facts(channel, address, port) if known else line[::-1])
            channel.flush()
    served.report(EOF if line is None else line.decode())


def answer_lines(served: Served, channel: Any, address: str, port: int) -> None:
    """The original's event-driven server: every line, until EOF or ``quit``."""
    received: list[str] = []
    served.channels.append(channel)

    def finish() -> None:
        channel.close()
        served.report(received)

    def readable() -> None:
        try:
            line = channel.gets()
        except BlockingIOError:
            return
        except OSError:
            # Its negotiation failed: the background error is the report.
            channel.close()
            return
        if line is None:
            received.append(EOF)
            finish()
            return
        received.append(line.decode())
        if line == b"conninfo":
            channel.puts(connection_facts(channel, address, port))
        elif line == b"quit":
            finish()
        else:
            channel.puts(line[::-1])

    channel.configure(blocking=False, translation="lf", buffering="line")
    channel.event("readable", readable)


Answer = Callable[[Served, Any, str, int], None]


def tls_server(identity: Identity, answer: Answer, **options: Any) -> Callable[[Served], Any]:
    """A listener of ours, for ``serving``."""
    options.setdefault("verifier", verify_true)

    def start(served: Served) -> Any:
        return tls.tls_socket(
            0,
            server=lambda channel, address, port: answer(served, channel, address, port),
            credentials=server_credentials(identity),
            myaddr=HOST,
            **options,
        )

    return start


def starttls_server(
    identity: Identity, answer: Answer, *, blocking: bool
) -> Callable[[Served], Any]:
    """A plain listener whose connections are wrapped on the server's side."""

    def start(served: Served) -> Any:
        loop = asyncio.get_running_loop()
        listener = socket.create_server((HOST, 0))
        listener.setblocking(False)

        def accept() -> None:
            plain, (address, port) = listener.accept()
            plain.settimeout(LIMIT if blocking else 0)
            channel = tls.starttls(
                plain,
                server=True,
                credentials=server_credentials(identity),
                verifier=verify_true,
            )
            assert tls.tls_state(channel) == ("OPEN" if blocking else "SERVERINIT")
            answer(served, channel, address, port)

        # A callback of the loop's: what it raises reaches the exception handler.
        poller = pollers.poller_of(loop)
        poller.add_reader(listener.fileno(), accept)
        return _Watched(poller, listener)

    return start


class _Watched:
    """A plain listener that the loop watches."""

    def __init__(self, poller: pollers.Poller, listener: socket.socket) -> None:
        self._poller = poller
        self._listener = listener
        self.getsockname = listener.getsockname

    def close(self) -> None:
        if self._listener.fileno() >= 0:
            self._poller.remove_reader(self._listener.fileno())
            self._listener.close()


@contextmanager
def silent_server() -> Iterator[socket.socket]:
    """Lets clients connect and says nothing; ``accept`` gives their bytes."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(LIMIT)
        yield listener


# --- clients of ours


def connect(port: int, pki: Pki | None = None, **options: Any) -> Any:
    """``tls_socket`` to a local server; with ``pki`` its root is trusted."""
    if pki is not None:
        options.setdefault("credentials", client_credentials(pki))
    return tls.tls_socket("localhost", port, timeout=LIMIT, **options)


def wrap(port: int, pki: Pki | None = None, **options: Any) -> Any:
    """``starttls`` on a plain connection to a local server."""
    if pki is not None:
        options.setdefault("credentials", client_credentials(pki))
    options.setdefault("peersubject", "localhost")
    return tls.starttls(socket.create_connection((HOST, port), LIMIT), **options)


# --- the web, on loopback


def page_server(body: bytes) -> Callable[[ssl.SSLSocket], None]:
    """A handler for ``peers.ssl_server``: one HTTP answer, then close_notify."""
    html = b"<HTML><HEAD><TITLE>A page</TITLE></HEAD>\n<BODY>" + body + b"</BODY></HTML>\n"

    def handle(connection: ssl.SSLSocket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            data = connection.recv(4096)
            if not data:
                raise ConnectionError(f"the request ended early: {request!r}")
            request += data
        if not request.startswith(b"GET / HTTP/1.1\r\nHost: "):
            raise ConnectionError(f"not the request that was expected: {request!r}")
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(html)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + html)
        connection.unwrap().close()

    return handle


SMALL_PAGE = page_server(b"small" * 40)
# More than one read takes in; each of its lines is an event somewhere.
BIG_PAGE = page_server((b"a line of the page ".ljust(94, b".") + b"\n") * 2_000)


def say_first(connection: ssl.SSLSocket) -> None:
    """A handler that greets before it was asked, as IRC servers do."""
    connection.sendall(b":server NOTICE * :*** Checking Ident\r\n")
    peers.echo(connection)


def http_request(channel: Any) -> None:
    channel.configure(translation="crlf")
    channel.puts(b"GET / HTTP/1.1")
    channel.puts(b"Host: localhost")
    channel.puts(b"Connection: close")
    channel.puts(b"")
    channel.flush()


def handshake_refused(server: peers.SSLServer) -> str:
    """The alert that ended the one connection of a Python ssl server.

    Nothing may have been accepted: the verdict came before our Finished.
    """
    server.wait_for(lambda seen: seen.errors)
    error = server.errors[0]
    assert isinstance(error, ssl.SSLError), repr(error)
    assert server.accepted == []
    assert error.reason is not None
    return error.reason


# --- events


async def wait(future: asyncio.Future[Any]) -> Any:
    return await asyncio.wait_for(future, LIMIT)


async def first(channel: Any, kind: str, action: Callable[[], Any] = lambda: None) -> Any:
    """What ``action`` gives in the handler of the first event of ``kind``."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def handler() -> None:
        try:
            result = action()
        except BaseException as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)
        if not channel.closed:
            channel.event(kind, None)

    channel.event(kind, handler)
    return await wait(future)


async def read_to_eof(channel: Any, read: Callable[[], Any]) -> bytes:
    """All that ``read`` gives in readable events up to EOF; then closes."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    parts: list[bytes] = []

    def readable() -> None:
        try:
            data = read()
        except BlockingIOError:
            return
        except BaseException as error:
            channel.close()
            future.set_exception(error)
            return
        if data is not None:
            parts.append(data)
        if channel.eof():
            channel.close()
            future.set_result(None)

    channel.event("readable", readable)
    await wait(future)
    return b"".join(parts)
