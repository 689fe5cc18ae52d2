"""Listening channels: accept, negotiate and verify, then hand over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from ._native import TLSError
from .channel import Channel, close_anything
from .errors import closed_error, make_error, timeout_error
from .events import report
from .options import READ_ONLY, TLS_READ_ONLY
from .sspi import Credentials, make_session
from .tls import TlsChannel
from .verify import discard_awaitable, is_awaitable

TYPE_CHECKING = False

if TYPE_CHECKING:
    import asyncio
    from typing import Any, NoReturn

    from .tls import CredentialsChooser
    from .verify import Verifier


class Listener(Channel):
    """A listening TLS channel, state LISTENER.

    Each connection gets its own references to credentials and verifier, so
    that closing the listener does not touch it. Connections that are still
    negotiating when the listener closes go on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        callback: Callable[[TlsChannel, str, int], object],
        *,
        credentials: Credentials | CredentialsChooser,
        verifier: Verifier | None,
        requestclientcert: bool,
        alpn: tuple[bytes, ...] | None,
        handshake_timeout: float | None,
        max_handshakes: int,
    ) -> None:
        super().__init__(None)
        self._loop = loop
        self._callback = callback
        self._credentials = credentials
        self._verifier = verifier
        self._request = requestclientcert
        self._alpn = alpn
        self._handshake_timeout = handshake_timeout
        self._max_handshakes = max_handshakes
        self._unfinished: set[TlsChannel] = set()
        self._below: Any = None
        self._paused = False
        self._thread = threading.get_ident()
        # Loaded by who listens: a client needs none.
        from .pool import new_pool

        self._pool = new_pool()

    @property
    def state(self) -> str:
        """LISTENER, or CLOSED."""
        return "CLOSED" if self._closed else "LISTENER"

    def listen(self, below: Any) -> None:
        """``below``: what the socket command gave; it is started if it can be."""
        self._below = below
        start = getattr(below, "start", None)
        if start is not None:
            start(self._loop)

    # --- accepting

    def accepted(self, sock: Any, address: str, port: int) -> None:
        """A connection came in; from any thread, as socket commands may."""
        from .events import running_loop

        if running_loop() is self._loop:
            self._accept(sock, address, port)
            return
        try:
            self._loop.call_soon_threadsafe(self._accept, sock, address, port)
        except RuntimeError:
            close_anything(sock)

    def _accept(self, sock: Any, address: str, port: int) -> None:
        if self._closed:
            close_anything(sock)
            return
        if len(self._unfinished) >= self._max_handshakes:
            # The socket command cannot be paused: shed the connection.
            close_anything(sock)
            report(
                self._loop,
                make_error(
                    TLSError,
                    f"too many unfinished handshakes ({self._max_handshakes}): "
                    f"the connection from {address} was dropped",
                    errorcode=("TWAPI", "TLS", "BUSY"),
                ),
                self,
                "accept",
            )
            return
        channel: TlsChannel | None = None
        try:
            credentials = self._credentials
            session = make_session(
                "server",
                credentials if isinstance(credentials, Credentials) else None,
                request_cert=self._request,
                ask_verdict=self._verifier is not None,
                alpn=self._alpn,
            )
            channel = TlsChannel(
                session,
                "server",
                credentials=credentials,
                verifier=self._verifier,
                timeout=0.0,
            )
            channel.owned = False  # until its callback has it
            below, sock = sock, None
            channel.put_on(below)
        except Exception as error:
            if channel is not None:
                channel.abort()
            close_anything(sock)
            report(self._loop, error, self, "accept")
            return
        self._unfinished.add(channel)
        timer: asyncio.TimerHandle | None = None
        if self._handshake_timeout is not None:
            timer = self._loop.call_later(self._handshake_timeout, self._expire, channel)

        def settled(channel: TlsChannel, error: BaseException | None) -> None:
            if timer is not None:
                timer.cancel()
            self._settled(channel, error, address, port)

        channel.drive_from(self._loop, settled, self._pool)
        self._pace()

    @staticmethod
    def _expire(channel: TlsChannel) -> None:
        channel.fail(timeout_error("the TLS negotiation"))

    def _pace(self) -> None:
        """Stops accepting while too many handshakes are unfinished, and has
        threads make their steps while there are several."""
        if self._pool is not None:
            self._pool.crowded = len(self._unfinished) > 1
        full = len(self._unfinished) >= self._max_handshakes
        if full != self._paused and not self._closed:
            change = getattr(self._below, "pause" if full else "resume", None)
            if change is not None:
                self._paused = full
                change()

    def _settled(
        self, channel: TlsChannel, error: BaseException | None, address: str, port: int
    ) -> None:
        self._unfinished.discard(channel)
        self._pace()
        if error is not None:
            channel.abort()
            report(self._loop, error, channel, "handshake")
            return
        channel.hand_over()
        self._loop.call_soon(self._hand, channel, address, port)

    def _hand(self, channel: TlsChannel, address: str, port: int) -> None:
        channel.owned = True
        try:
            result = self._callback(channel, address, port)
        except Exception as error:
            self._callback_failed(channel, error)
            return
        if is_awaitable(result):
            if not hasattr(result, "send") and not hasattr(result, "add_done_callback"):
                discard_awaitable(result)
                return
            work: Any = result

            async def run() -> None:
                try:
                    await work
                except Exception as error:
                    self._callback_failed(channel, error)

            task = self._loop.create_task(run())
            _running.add(task)
            task.add_done_callback(_running.discard)

    def _callback_failed(self, channel: TlsChannel, error: Exception) -> None:
        # Nobody else is sure to hold the channel: no socket may leak.
        with suppress(OSError):
            channel.close()
        report(self._loop, error, channel, "callback")

    # --- as a channel

    def _raise_closed(self) -> NoReturn:
        if self._closed:
            raise closed_error()
        raise make_error(
            TLSError,
            "a listening channel has no data",
            errorcode=("TWAPI", "TLS", "LISTENER"),
        )

    def _check_alive(self) -> None:
        self._raise_closed()

    def _read_only(self) -> tuple[str, ...]:
        return (*READ_ONLY, *TLS_READ_ONLY)

    def cget(self, name: str) -> Any:
        """As ``Channel.cget``; ``context`` is None on a listener."""
        if name == "credentials":
            return self._credentials
        if name == "verifier":
            return self._verifier
        if name == "context":
            return None
        return super().cget(name)

    def fileno(self) -> int:
        method = getattr(self._below, "fileno", None)
        return -1 if self._closed or method is None else int(method())

    def getsockname(self) -> Any:
        """The listening address; its port is at index 1."""
        method = getattr(self._below, "getsockname", None)
        if self._closed or method is None:
            raise closed_error("the listener has no address")
        return method()

    def event(self, *args: Any, **kwargs: Any) -> Any:
        """Raises: a listener's one event is its callback."""
        raise ValueError("a listening channel has no readable or writable events")

    def close(self) -> None:
        """Stops listening; accepted channels live on. Idempotent."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        below = self._below
        if below is None:
            return
        if threading.get_ident() == self._thread or not self._loop.is_running():
            below.close()
        else:
            # Its readiness callbacks belong to the loop's thread.
            self._loop.call_soon_threadsafe(below.close)

    abort = close

    def __del__(self) -> None:
        # The loop holds what listens: a forgotten listener goes on.
        return

    def __repr__(self) -> str:
        return f"<Listener {self.state}>"


# Tasks of coroutine callbacks: the loop itself keeps weak references only.
_running: set[Any] = set()
