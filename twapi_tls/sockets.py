"""Plain TCP: connecting, connecting off-thread, and listening.

The default socket command is made of these.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from .events import report

TYPE_CHECKING = False

if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from .pollers import Poller

    AcceptCallback = Callable[[Any, str, int], object]


# Connections taken per readiness, so that a flood does not starve the loop.
ACCEPTS = 64
GIVEN_UP = "the connection attempt was given up"
# Seconds to rest when the system has no descriptors left.
REST = 0.5


def connect(
    host: str,
    port: int | str,
    *,
    myaddr: str | None = None,
    myport: int | None = None,
    timeout: float | None = None,
) -> socket.socket:
    """A connected, blocking TCP socket without Nagle's delay.

    All addresses of ``host`` are tried in turn. myaddr, myport: our own
    end. timeout: seconds for each address. Raises what ``socket`` raises.
    """
    source = None if myaddr is None and myport is None else (myaddr or "", int(myport or 0))
    sock = socket.create_connection((host, port), timeout, source)
    sock.settimeout(None)
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _close(sock: Any) -> None:
    """Closes what an attempt gave, if it can be closed."""
    close = getattr(sock, "close", None)
    if close is not None:
        with suppress(Exception):
            close()


class PendingConnection:
    """A connection attempt in a thread of its own.

    Its thread is a daemon: a name server that does not answer must not keep
    the process from ending.
    """

    def __init__(self, attempt: Callable[[], Any]) -> None:
        self._attempt = attempt
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._cancelled = False
        self._sock: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], object]] = []
        threading.Thread(target=self._run, name="twapi_tls connect", daemon=True).start()

    def _run(self) -> None:
        sock: Any = None
        error: BaseException | None = None
        try:
            sock = self._attempt()
        except BaseException as caught:
            error = caught
        with self._lock:
            if self._cancelled:
                _close(sock)
                sock, error = None, OSError(errno.ECANCELED, GIVEN_UP)
            self._sock, self._error = sock, error
            self._done.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_done(self, callback: Callable[[], object]) -> None:
        """Calls back once, perhaps at once, perhaps from another thread."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def done(self) -> bool:
        """Is the attempt over?"""
        return self._done.is_set()

    def wait(self, timeout: float | None) -> bool:
        """Waits for the end; False at the timeout (seconds)."""
        return self._done.wait(timeout)

    def failure(self) -> BaseException | None:
        """What it failed of, None so far."""
        return self._error

    def result(self) -> Any:
        """The socket, once; raises what the attempt raised."""
        self._done.wait()
        with self._lock:
            if self._error is not None:
                raise self._error
            sock, self._sock = self._sock, None
            self._error = OSError(errno.ECANCELED, GIVEN_UP)
            return sock

    def cancel(self) -> None:
        """Gives it up: its socket, if it ever comes, is closed."""
        with self._lock:
            self._cancelled = True
            sock, self._sock = self._sock, None
        _close(sock)

    close = cancel


class ListeningSocket:
    """Listening TCP sockets; accepts from an event loop once started.

    ``server(sock, address, port)`` is called for each connection.
    """

    def __init__(
        self, port: int | str, *, server: AcceptCallback, myaddr: str | None = None
    ) -> None:
        self._server = server
        self._sockets = _open(port, myaddr)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._poller: Poller | None = None
        self._watching = False
        self._closed = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to accept; in the loop's thread, or before it runs."""
        self._loop = loop
        from .pollers import poller_of  # loaded by who has a loop

        self._poller = poller_of(loop)
        self.resume()

    def pause(self) -> None:
        """Lets connections wait in the system's queue."""
        if self._watching and self._poller is not None:
            self._watching = False
            for sock in self._sockets:
                self._poller.remove_reader(sock.fileno())

    def resume(self) -> None:
        """Accepts again."""
        if not self._watching and not self._closed and self._poller is not None:
            self._watching = True
            for sock in self._sockets:
                self._poller.add_reader(sock.fileno(), lambda sock=sock: self._accept(sock))  # type: ignore[misc]

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            if self._closed or not self._watching:
                return
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if self._loop is not None and not self._closed:
                    # Out of descriptors: waiting helps, spinning does not.
                    self.pause()
                    self._loop.call_later(REST, self.resume)
                    report(self._loop, error, self, "accept")
                return
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            address, port = (peer[0], peer[1]) if isinstance(peer, tuple) else (str(peer), 0)
            self._server(sock, str(address).removeprefix("::ffff:"), port)

    def fileno(self) -> int:
        """The first socket's descriptor, -1 once closed."""
        return self._sockets[0].fileno()

    def getsockname(self) -> Any:
        """The first socket's address."""
        return self._sockets[0].getsockname()

    def close(self) -> None:
        """Stops listening; idempotent."""
        if self._closed:
            return
        self.pause()
        self._closed = True
        for sock in self._sockets:
            sock.close()


def _open(port: int | str, myaddr: str | None) -> list[socket.socket]:
    if isinstance(port, str) and not port.isdigit():
        number = socket.getservbyname(port, "tcp")
    else:
        number = int(port)
    sockets: list[socket.socket] = []
    try:
        if myaddr:
            found = socket.getaddrinfo(
                myaddr, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, address in dict.fromkeys((item[0], item[4]) for item in found):
                if sockets and not number:
                    break  # one free port cannot be asked for twice
                sockets.append(_listen(family, address))
        elif socket.has_dualstack_ipv6():
            try:
                sockets.append(
                    socket.create_server(
                        ("", number), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
                    )
                )
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
        if not sockets:
            sockets.append(socket.create_server(("", number), backlog=1024))
        for sock in sockets:
            sock.setblocking(False)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _listen(family: int, address: Any) -> socket.socket:
    return socket.create_server(address[:2], family=family, backlog=1024)
