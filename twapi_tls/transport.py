"""Byte transports: what a channel runs over.

Three things satisfy ``ByteTransport``: a plain socket (``SocketTransport``),
an object of the user's (``ObjectTransport``), and a TLS session, be it on a
native socket (``_native.Session`` itself) or on any other transport
(``Pump``). So TLS in TLS is a ``Pump`` over a session, and nothing knows.

Timeouts are in seconds everywhere: None waits for ever, 0 never waits.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from . import _native
from .errors import Deadline, closed_error, note_written, written

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Protocol

    from typing_extensions import Buffer
else:
    Protocol = object

CHUNK = 65536


class ByteTransport(Protocol):
    """The floor of a channel. One reader and one writer may be in it at once."""

    def recv(self, n: int, timeout: float | None = None, /) -> bytes | None:
        """1..n bytes, b"" at the end, None if it would wait (timeout 0)."""

    def recv_into(self, buffer: Buffer, timeout: float | None = None, /) -> int:
        """Bytes read, 0 at the end, -1 if it would wait (timeout 0)."""

    def send(self, data: Buffer, timeout: float | None = None, /) -> int:
        """Bytes taken, possibly not all; 0 if it would wait (timeout 0)."""

    def flush(self, timeout: float | None = None, /) -> bool:
        """True once nothing taken by send waits any more."""

    def shutdown_write(self, timeout: float | None = None, /) -> bool:
        """Ends the output; False if output still waits (timeout 0)."""

    def readable(self) -> bool:
        """Would recv give bytes, the end or an error, without waiting? May
        take bytes from below to know. (Of an object of the user's, which may
        have a protocol of its own: perhaps. Who runs over it reads.)"""

    def at_rest(self) -> bool:
        """Will the descriptor tell of whatever comes next: nothing to read
        waits in here, and no output? Without a system call."""

    def output_pending(self) -> int:
        """Bytes taken by send that wait to be sent, here or further down."""

    def fileno(self) -> int:
        """A descriptor that can be selected on, or -1."""

    def close(self, timeout: float = 0.0, graceful: bool = True, /) -> None:
        """Closes; ends calls that wait in it. Idempotent."""


class StreamTransport(Protocol):
    """What an object needs so that ``starttls`` can wrap it.

    A ``typing.Protocol`` to type checkers, an ordinary class when the program
    runs: nothing has to inherit from it, and isinstance tells nothing.

    ``recv(n)`` gives 1..n bytes and b"" at the end, ``send(data)`` says how
    many bytes it took, ``close()`` closes. Used where they exist:
    ``fileno()`` with ``setblocking(flag)`` (both are needed for timeouts that
    are exact, for non-blocking use and for events; a call that would block
    raises BlockingIOError), else ``settimeout(seconds)``; ``shutdown(how)``,
    ``pending()``, ``getpeername()``, ``getsockname()``, ``gettimeout()``.
    """

    def recv(self, n: int, /) -> bytes:
        """1..n bytes; b"" at the end."""

    def send(self, data: bytes, /) -> int:
        """How many bytes it took."""

    def close(self) -> None:
        """Closes; what waits in it ends."""


# Where there is no poll (Windows) nothing interrupts a select(): neither
# control-C nor another thread that closes the socket. So it waits in slices,
# in seconds; and a send takes whatever it is given, so that it is given less.
HAS_POLL = hasattr(select, "poll")
SLICE = 0.1
SEND_MAX = 1 << 20


def wait_fd(fd: int, write: bool, timeout: float | None) -> bool:
    """Waits until a descriptor is ready; False at the timeout."""
    if fd < 0:
        raise closed_error()
    if HAS_POLL:
        poller = select.poll()
        poller.register(fd, select.POLLOUT if write else select.POLLIN)
        return bool(poller.poll(None if timeout is None else timeout * 1000 + 0.5))
    sets: tuple[list[int], list[int]] = ([], [fd]) if write else ([fd], [])
    return any(select.select(*sets, [fd], timeout))


def wait_until(fd: int, write: bool, deadline: Deadline) -> None:
    """Waits for a descriptor, perhaps in slices: look again, which does not
    mean ready. TimeoutError at the deadline."""
    left = deadline.left()
    piece = left if HAS_POLL or (left is not None and left <= SLICE) else SLICE
    if not wait_fd(fd, write, piece) and piece == left:
        raise TimeoutError("timed out")


@contextmanager
def borrowed_socket(fd: int) -> Iterator[socket.socket]:
    """A socket object on a descriptor that somebody else owns."""
    if fd < 0:
        raise closed_error("the channel has no socket")
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def is_plain_socket(thing: object) -> bool:
    """A socket whose bytes are the descriptor's.

    Not so a socket of the ssl module: taking its descriptor would drop its
    encryption. The module is looked up, not imported: whoever has such a
    socket has imported it.
    """
    if not isinstance(thing, socket.socket):
        return False
    ssl = sys.modules.get("ssl")
    return ssl is None or not isinstance(thing, ssl.SSLSocket)


def carries_bytes(thing: object) -> bool:
    """Is it a socket, a channel or another ``StreamTransport``?"""
    methods = (getattr(thing, name, None) for name in ("recv", "send", "close"))
    return not isinstance(thing, type) and all(map(callable, methods))


class SocketTransport:
    """A connected plain socket.

    The last user to leave after ``close`` closes the descriptor, so that its
    number is never another socket's under a system call.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False

    def detach(self) -> socket.socket:
        """The socket; its caller detaches or closes it."""
        return self._sock

    def _closed_error(self) -> OSError:
        return OSError(errno.EBADF, "the channel is closed")

    def _call(
        self, method: Callable[[Any], Any], argument: Any, timeout: float | None, write: bool
    ) -> Any:
        """The method's answer, None if it would wait."""
        deadline = Deadline(timeout)
        with self._lock:
            if self._closed:
                raise self._closed_error()
            self._users += 1
        try:
            while True:
                try:
                    answer = method(argument)
                except BlockingIOError:
                    answer = None
                if self._closed:
                    raise self._closed_error()
                if answer is not None or timeout == 0:
                    return answer
                wait_until(self._sock.fileno(), write, deadline)
        except OSError:
            if self._closed:
                raise self._closed_error() from None
            raise
        finally:
            with self._lock:
                self._users -= 1
                last = self._closed and not self._users
            if last:
                self._sock.close()

    def recv(self, n: int, timeout: float | None = None, /) -> bytes | None:
        data: bytes | None = self._call(self._sock.recv, n, timeout, False)
        return data

    def recv_into(self, buffer: Buffer, timeout: float | None = None, /) -> int:
        n = self._call(self._sock.recv_into, buffer, timeout, False)
        return -1 if n is None else int(n)

    def send(self, data: Buffer, timeout: float | None = None, /) -> int:
        part = data if HAS_POLL else memoryview(data)[:SEND_MAX]
        return int(self._call(self._sock.send, part, timeout, True) or 0)

    def flush(self, timeout: float | None = None, /) -> bool:
        return True

    def shutdown_write(self, timeout: float | None = None, /) -> bool:
        self._sock.shutdown(socket.SHUT_WR)
        return True

    def readable(self) -> bool:
        fd = self.fileno()
        return fd < 0 or wait_fd(fd, False, 0)

    def at_rest(self) -> bool:
        return True

    def output_pending(self) -> int:
        return 0

    def fileno(self) -> int:
        return -1 if self._closed else self._sock.fileno()

    def close(self, timeout: float = 0.0, graceful: bool = True, /) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            last = not self._users
        if last:
            self._sock.close()
            return
        with suppress(OSError):
            # Wakes a thread that waits; close() would not.
            self._sock.shutdown(socket.SHUT_RDWR)


def _into(
    buffer: Buffer, recv: Callable[[int, float | None], bytes | None], timeout: float | None
) -> int:
    """``recv_into`` for who has ``recv`` alone."""
    view = memoryview(buffer).cast("B")
    data = recv(len(view), timeout)
    if data is None:
        return -1
    view[: len(data)] = data
    return len(data)


class ObjectTransport:
    """Any object with a stream's methods (``StreamTransport``)."""

    def __init__(self, stream: Any) -> None:
        # Any: only some of its methods are promised.
        self.stream: Any = stream
        self._closed = False
        self._selectable = self.fileno() >= 0 and self._has("setblocking")
        if self._selectable:
            self.stream.setblocking(False)

    def _has(self, name: str) -> bool:
        return callable(getattr(self.stream, name, None))

    def fileno(self) -> int:
        method = getattr(self.stream, "fileno", None)
        if method is None or self._closed:
            return -1
        try:
            return int(method())
        except OSError:
            return -1

    @staticmethod
    def _blocked(error: OSError) -> int:
        """0: a real error; 1: wants to read; 2: wants to write."""
        name = type(error).__name__
        # Names, not types: ssl must not be imported here.
        if name == "SSLWantReadError":
            return 1
        if name == "SSLWantWriteError":
            return 2
        return 3 if isinstance(error, BlockingIOError) else 0

    def _call(self, name: str, argument: Any, timeout: float | None, write: bool) -> Any:
        method = getattr(self.stream, name)
        if not self._selectable:
            if timeout == 0 and not write:
                raise ValueError("the transport has no fileno() and setblocking(): blocking only")
            settimeout = getattr(self.stream, "settimeout", None)
            if settimeout is not None:
                settimeout(None if timeout == 0 else timeout)
            return method(argument)
        deadline = Deadline(timeout)
        while True:
            try:
                return method(argument)
            except OSError as error:
                wants = self._blocked(error)
                if not wants:
                    raise
            if timeout == 0:
                return None
            on_write = write if wants == 3 else wants == 2
            wait_until(self.fileno(), on_write, deadline)

    def recv(self, n: int, timeout: float | None = None, /) -> bytes | None:
        data = self._call("recv", n, timeout, False)
        if data is None and self._selectable:
            return None
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"the transport's recv() must give bytes, not {data!r}")
        if len(data) > n:
            raise ValueError(f"the transport's recv({n}) gave {len(data)} bytes")
        return bytes(data)

    def recv_into(self, buffer: Buffer, timeout: float | None = None, /) -> int:
        return _into(buffer, self.recv, timeout)

    def send(self, data: Buffer, timeout: float | None = None, /) -> int:
        raw = bytes(data)
        n = self._call("send", raw, timeout, True)
        if n is None and self._selectable:
            return 0
        if not isinstance(n, int):
            raise TypeError(f"the transport's send() must give a number of bytes, not {n!r}")
        if not (0 < n <= len(raw) or n == len(raw)):
            raise ValueError(f"the transport's send() of {len(raw)} bytes says that it took {n}")
        return n

    def flush(self, timeout: float | None = None, /) -> bool:
        return True

    def shutdown_write(self, timeout: float | None = None, /) -> bool:
        shutdown = getattr(self.stream, "shutdown", None)
        if shutdown is not None:
            shutdown(socket.SHUT_WR)
        return True

    def readable(self) -> bool:
        pending = getattr(self.stream, "pending", None)
        if pending is not None and pending():
            return True
        fd = self.fileno()
        return fd >= 0 and wait_fd(fd, False, 0)

    def at_rest(self) -> bool:
        return False  # what a stream keeps inside is its own affair

    def output_pending(self) -> int:
        return 0

    def close(self, timeout: float = 0.0, graceful: bool = True, /) -> None:
        if not self._closed:
            self._closed = True
            self.stream.close()


class TlsTransport(ByteTransport, Protocol):
    """A ByteTransport that negotiates first: Session with a socket, or Pump."""

    def handshake(self, timeout: float | None = None, /) -> int:
        """As ``_native.Session.handshake``."""

    def verdict(self, code: int, detail: str = "", /) -> None:
        """As ``_native.Session.verdict``; the alert is sent, if it can be."""

    def set_ragged_eof(self, flag: bool, /) -> None:
        """As ``_native.Session.set_ragged_eof``."""


class Pump:
    """A TLS session over any ByteTransport.

    Bytes go between the two by hand: that is the one difference from a
    session on a native socket. Output is taken from the session and sent
    under one lock, since records must not change places.
    """

    def __init__(self, session: _native.Session, transport: ByteTransport) -> None:
        self.session = session
        self.transport = transport
        self._read_lock = threading.RLock()
        self._write_lock = threading.RLock()
        self._out = b""
        self._ending = False  # close_notify was made: FIN follows it
        self._fin = False

    def _push(self, timeout: float | None) -> bool:
        """Sends what waits; the write lock is held. False: would wait."""
        deadline = Deadline(timeout)
        while True:
            if not self._out:
                self._out = self.session.take_output()
            if not self._out:
                return self.transport.flush(deadline.left())
            try:
                n = self.transport.send(self._out, deadline.left())
            except BaseException as error:
                self._out = self._out[written(error) :]
                raise
            if not n and timeout == 0:
                return False
            self._out = self._out[n:]

    def _push_alert(self) -> None:
        """Sends what a failure left for the peer, as far as it goes."""
        with suppress(Exception), self._write_lock:
            self._push(0)

    def _pull(self, timeout: float | None) -> bool:
        """Feeds the session once; False: would wait."""
        data = self.transport.recv(CHUNK, timeout)
        if data is None:
            return False
        if data:
            self.session.feed(data)
        else:
            self.session.feed_eof()
        return True

    def handshake(self, timeout: float | None = None, /) -> int:
        deadline = Deadline(timeout)
        while True:
            try:
                status = self.session.handshake(0)
            except OSError:
                self._push_alert()
                raise
            with self._write_lock:
                if not self._push(deadline.left()) and status == _native.WANT_READ:
                    return _native.WANT_WRITE
            if status == _native.WANT_WRITE:
                continue
            if status != _native.WANT_READ:
                return status
            with self._read_lock:
                if not self._pull(deadline.left()):
                    return status

    def verdict(self, code: int, detail: str = "", /) -> None:
        try:
            self.session.verdict(code, detail)
        finally:
            self._push_alert()

    def recv(self, n: int, timeout: float | None = None, /) -> bytes | None:
        deadline = Deadline(timeout)
        with self._read_lock:
            while True:
                try:
                    data = self.session.recv(n, 0)
                finally:
                    # Answers to post-handshake messages, or an alert.
                    if self.session.output_pending():
                        self._push_alert()
                if data is not None or not self._pull(deadline.left()):
                    return data

    def recv_into(self, buffer: Buffer, timeout: float | None = None, /) -> int:
        return _into(buffer, self.recv, timeout)

    def send(self, data: Buffer, timeout: float | None = None, /) -> int:
        deadline = Deadline(timeout)
        view = memoryview(data).cast("B")
        sent = 0
        with self._write_lock:
            try:
                while sent < len(view):
                    if not self._push(deadline.left()):
                        return sent
                    n = self.session.send(view[sent:], 0)
                    sent += n
                    if not n and not self.session.output_pending():
                        # A renegotiation holds writing back until the peer
                        # has spoken; nobody else may be reading.
                        if timeout == 0:
                            return sent
                        with self._read_lock:
                            moved = self.session.handshake(0) == _native.DONE
                            if not moved or self.session.pending():
                                self._pull(deadline.left())
                self._push(deadline.left())
            except BaseException as error:
                note_written(error, sent)
                raise
        return sent

    def flush(self, timeout: float | None = None, /) -> bool:
        deadline = Deadline(timeout)
        with self._write_lock:
            if not self._push(deadline.left()):
                return False
            if self._ending and not self._fin:
                self._fin = True
                return self.transport.shutdown_write(deadline.left())
            return True

    def shutdown_write(self, timeout: float | None = None, /) -> bool:
        with self._write_lock:
            self.session.shutdown()
            self._ending = True
            return self.flush(timeout)

    def output_pending(self) -> int:
        own = len(self._out) + self.session.output_pending()
        return own + self.transport.output_pending()

    def set_ragged_eof(self, flag: bool, /) -> None:
        self.session.set_ragged_eof(flag)

    def readable(self) -> bool:
        if not self._read_lock.acquire(blocking=False):
            return self.session.pending() > 0
        try:
            while not self.session.readable():
                if not self.transport.readable() or not self._pull(0):
                    return False
            return True
        except OSError:
            return True
        finally:
            self._read_lock.release()
            if self.session.output_pending():
                self._push_alert()  # or an answer

    def at_rest(self) -> bool:
        return not self._out and self.session.at_rest() and self.transport.at_rest()

    def fileno(self) -> int:
        return self.transport.fileno()

    def close(self, timeout: float = 0.0, graceful: bool = True, /) -> None:
        try:
            if graceful and self.session.state() == "OPEN":
                with suppress(OSError):
                    self.session.shutdown()
            if self._write_lock.acquire(timeout=max(timeout, 0.0)):
                try:
                    # Best effort: the transport may be what has failed.
                    with suppress(Exception):
                        self._push(timeout)
                finally:
                    self._write_lock.release()
        finally:
            try:
                self.transport.close(timeout, graceful)
            finally:
                self.session.close(0.0, False)


def session_transport(session: _native.Session, below: object) -> TlsTransport:
    """Puts a fresh session on a connected thing, taking it over.

    ``below``: a plain ``socket.socket`` (its descriptor moves into the
    session), one of our transports, or a ``StreamTransport``.
    """
    if isinstance(below, SocketTransport):
        below = below.detach()
    if is_plain_socket(below):
        assert isinstance(below, socket.socket)
        fd = below.detach()
        try:
            session.attach(fd)
        except BaseException:
            socket.close(fd)
            raise
        return session
    if isinstance(below, (_native.Session, Pump, ObjectTransport)):
        return Pump(session, below)
    if carries_bytes(below):
        return Pump(session, ObjectTransport(below))
    raise TypeError(
        f"{below!r} is no connection: that is a socket, or has recv(n), send(data) and close()"
    )
