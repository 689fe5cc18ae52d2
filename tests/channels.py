"""Two ends of a connection for the tests of channels, both in this process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from certs import Identity, Pki
from twapi_support import HOST, LIMIT, client_credentials, server_credentials

import twapi_tls as tls
from twapi_tls.sockets import PendingConnection


class Deaf(asyncio.SelectorEventLoop):
    """A loop without add_reader, as Windows' Proactor loop is: a thread
    selects for it."""

    deaf = False

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> Any:
        if self.deaf:
            raise NotImplementedError
        return super().add_reader(fd, callback, *args)

    def add_writer(self, fd: Any, callback: Any, *args: Any) -> Any:
        if self.deaf:
            raise NotImplementedError
        return super().add_writer(fd, callback, *args)


def new_deaf_loop() -> asyncio.AbstractEventLoop:
    loop = Deaf()
    loop.deaf = True
    return loop


class Work:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._answer: list[Any] = []
        self._error: list[BaseException] = []

        def run() -> None:
            try:
                self._answer.append(call(*arguments))
            except BaseException as error:
                self._error.append(error)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join(2 * LIMIT)
        assert not self._thread.is_alive(), "the thread does not end"

    def result(self) -> Any:
        """What the call gave or raised."""
        self.wait()
        if self._error:
            raise self._error[0]
        return self._answer[0]

    def error(self) -> BaseException:
        """What the call raised; fails the test if it raised nothing."""
        self.wait()
        assert self._error, f"the call should have raised, it gave {self._answer!r}"
        return self._error[0]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback, with a timeout."""
    with socket.create_server((HOST, 0)) as listener:
        one = socket.create_connection(listener.getsockname(), LIMIT)
        other, _ = listener.accept()
    other.settimeout(LIMIT)
    return one, other


@contextmanager
def tls_pair(
    pki: Pki,
    *,
    version: str | None = None,
    below: Callable[[], tuple[Any, Any]] = tcp_pair,
    identity: Identity | None = None,
    client: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
) -> Iterator[tuple[tls.TlsChannel, tls.TlsChannel]]:
    """(client, server): OPEN and blocking, with a timeout; aborted at the end.

    client, server: more options for ``starttls``.
    """
    one, other = below()
    protocols = () if version is None else (f"tls{version}",)
    client = {
        "credentials": client_credentials(pki, protocols=protocols),
        "peersubject": "localhost",
        **(client or {}),
    }
    server = {
        "credentials": server_credentials(identity or pki.server),
        "server": True,
        **(server or {}),
    }
    accepting = Work(lambda: tls.starttls(other, **server))
    try:
        here = tls.starttls(one, **client)
    except BaseException:
        accepting.wait()
        raise
    there = accepting.result()
    try:
        yield here, there
    finally:
        here.abort()
        there.abort()


def held_back(go: threading.Event) -> Callable[..., Any]:
    """A socket command for ``async_`` clients that connects once ``go`` is set."""

    def command(host: str, port: int, **_: Any) -> PendingConnection:
        def attempt() -> socket.socket:
            assert go.wait(LIMIT)
            return socket.create_connection((host, port), LIMIT)

        return PendingConnection(attempt)

    return command


@contextmanager
def plain_pair() -> Iterator[tuple[tls.TcpChannel, tls.TcpChannel]]:
    """Two plain channels; aborted at the end."""
    one, other = (tls.TcpChannel(sock) for sock in tcp_pair())
    try:
        yield one, other
    finally:
        one.abort()
        other.abort()


@contextmanager
def pair_of(kind: str, pki: Pki) -> Iterator[tuple[Any, Any]]:
    """Two ends: "plain", "TLS" (or "TLS 1.2", "TLS 1.3"), "TLS in TLS"."""
    with ExitStack() as stack:
        if kind == "plain":
            yield stack.enter_context(plain_pair())
        elif kind == "TLS in TLS":
            outer = stack.enter_context(tls_pair(pki))
            yield stack.enter_context(tls_pair(pki, below=lambda: outer))
        else:
            version = kind.removeprefix("TLS").strip() or None
            yield stack.enter_context(tls_pair(pki, version=version))


def fill(channel: Any) -> int:
    """Sends to a non-blocking channel until it takes no more; bytes taken."""
    sent = 0
    while True:
        try:
            sent += channel.send(bytes(65536))
        except BlockingIOError:
            return sent


def clog(here: Any, there: Any) -> int:
    """Output of a non-blocking channel that waits until ``there`` reads; bytes given.

    A full socket is not yet a full connection: when it takes no more, the
    kernel still moves bytes on, and makes the receiver's buffer larger (up to
    32 MB). So both buffers get a fixed size, and more is queued than they hold.
    """
    narrow(here, there)
    return fill(here) + int(here.write(bytes(500_000)))


def narrow(here: Any, there: Any) -> None:
    """Little room on the way from the one to the other, and no more to come."""
    for channel, option in ((here, socket.SO_SNDBUF), (there, socket.SO_RCVBUF)):
        with channel._socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, option, 32768)


NOBODYS = b"\x17\x03\x03\x00\x20" + bytes(32)
"""A record that nobody can have sealed."""


def damage(channel: Any) -> None:
    """Sends it, past the channel."""
    with channel._socket() as sock:
        sock.sendall(NOBODYS)


def drain(channel: Any, size: int) -> int:
    """Receives up to ``size`` bytes or the end; how many."""
    got = 0
    while got < size:
        data = channel.recv(1 << 18)
        if not data:
            break
        got += len(data)
    return got


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """``asyncio.run``, bounded; fails if the loop's exception handler was used."""

    async def bounded() -> Any:
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: reports.append(told))
        answer = await asyncio.wait_for(main, 4 * LIMIT)
        assert reports == []
        return answer

    return asyncio.run(bounded())
