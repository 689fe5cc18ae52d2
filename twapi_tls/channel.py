"""Channels: byte streams with Tcl's options and a Python socket's manners.

``Channel`` gives the streams (streams.py) their options, events and end, over
any ``ByteTransport``; ``TcpChannel`` is one over a plain socket, and the TLS
channel (tls.py) the other user.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress

from . import text
from .errors import Deadline, timeout_error, would_block
from .events import (
    FAILED,
    READABLE,
    WRITABLE,
    WRITES,
    ChannelEvents,
    require_loop,
    running_loop,
)
from .options import (
    BUFFERING,
    RAGGED,
    READ_ONLY,
    SETTABLE,
    check_buffersize,
    check_flag,
    check_timeout,
    check_word,
)
from .streams import Streams
from .transport import (
    CHUNK,
    ByteTransport,
    ObjectTransport,
    SocketTransport,
    borrowed_socket,
    is_plain_socket,
)

TYPE_CHECKING = False

if TYPE_CHECKING:
    import asyncio
    from typing import Any

CLOSE_TIMEOUT = 5.0
"""Seconds that closing may take to send what was written."""

UNSET: Any = object()
"""A timeout not given: ``socket.getdefaulttimeout()``, as with sockets."""


def default_timeout(timeout: Any) -> float | None:
    """Seconds or None; the sockets' default where none was given."""
    if timeout is UNSET:
        return socket.getdefaulttimeout()
    return check_timeout(timeout)


def close_anything(thing: Any) -> None:
    """Closes what was handed to us, whatever it is; without waiting."""
    close = getattr(thing, "abort", None) if isinstance(thing, Channel) else None
    close = close or getattr(thing, "close", None)
    if close is not None:
        with suppress(Exception):
            close()


class Channel(Streams):
    """A byte stream over a transport.

    Not made by users: ``tls_socket``, ``starttls`` and ``TcpChannel`` do it.
    One thread may read while another writes; a third may close.
    """

    def __init__(self, transport: ByteTransport | None, *, timeout: float | None = None) -> None:
        super().__init__(transport, timeout=timeout)
        self._close_lock = threading.RLock()
        self._events: ChannelEvents | None = None
        self._makefile_refs = 0
        self._close_asked = False
        # Has somebody got it, who is to close it? Who accepts says otherwise.
        self.owned = True

    # --- copying

    def copy_to(
        self,
        channel: Any,
        size: int = -1,
        callback: Callable[..., object] | None = None,
    ) -> int | None:
        """Copies bytes to another channel (or anything with ``sendall``).

        size: how many, negative: up to the end. Without callback: waits and
        returns the number copied. With one: returns None at once, copies
        from the running event loop, to a Channel, and calls
        ``callback(copied)`` or ``callback(copied, error)``. Bytes go as they
        are, without the text layers. Source: Tcl's chan copy.
        """
        if callback is not None:
            if not isinstance(channel, Channel):
                raise TypeError("copying in the background needs a channel as the target")
            from .background import BackgroundCopy  # rare

            BackgroundCopy(self, channel, size, callback).start()
            return None
        # Before the first byte is read, which would be lost.
        if not callable(getattr(channel, "sendall", None)):
            raise TypeError(f"the target must have sendall; {type(channel).__name__} has none")
        if isinstance(channel, Channel) and channel.closed:
            channel._raise_closed()
        copied = 0
        while size < 0 or copied < size:
            data = self.recv(CHUNK if size < 0 else min(CHUNK, size - copied))
            if not data:
                break
            channel.sendall(data)
            copied += len(data)
        return copied

    # --- options

    @property
    def blocking(self) -> bool:
        """Do calls wait? (With a timeout, they do.)"""
        return self._timeout != 0

    def configure(self, **options: Any) -> dict[str, Any] | None:
        """Sets options; without arguments, returns all of them.

        blocking (bool), buffering ("full", "line", "none"), buffersize (10
        to 1,000,000), encoding (None: bytes), translation ("auto", "binary",
        "lf", "cr", "crlf", or a pair for input and output; "binary" sets
        encoding None and no eofchar as well), eofchar ("" or one ASCII
        character, or a pair), keepalive, nodelay (bool), ragged_eof
        ("error", "eof"), spin (bool: a TLS channel on a socket that has to
        wait for the peer looks for its bytes for up to 50 us before it
        sleeps; worth it where both ends do and each has a processor).
        Read only: connecting, error, peername, sockname.
        All values are checked before the first is set. ValueError and
        TypeError for bad ones, LookupError for an unknown encoding.
        """
        if not options:
            return self._all_options()
        changes = [self._check_option(name, value) for name, value in options.items()]
        settings = self._settings.copy()
        if "translation" in options:
            settings.input, settings.output = text.check_translation(options["translation"])
            if options["translation"] == "binary":
                settings.encoding, settings.eof_in, settings.eof_out = None, "", ""
        if "encoding" in options:
            settings.encoding = text.check_encoding(options["encoding"])
        if "eofchar" in options:
            settings.eof_in, settings.eof_out = text.check_eofchar(options["eofchar"])
        if {"translation", "encoding", "eofchar"} & options.keys():
            self._set_text(settings)
        for change in changes:
            change()
        return None

    def _set_text(self, settings: text.TextSettings) -> None:
        with self._read_lock:
            self._unread_text()
            with self._write_lock:
                self._settings = settings
                self._writer = None

    def _check_option(self, name: str, value: Any) -> Callable[[], None]:
        """Checks one option; the answer sets it."""
        if name in self._read_only():
            raise ValueError(f"{name} is a read-only option")
        if name not in SETTABLE:
            allowed = ", ".join(sorted((*SETTABLE, *self._read_only())))
            raise ValueError(f"bad option {name!r}: must be one of {allowed}")
        if name == "blocking":
            flag = check_flag(name, value)
            # A timeout is a way of blocking, and stays.
            return lambda: None if flag == self.blocking else self.setblocking(flag)
        if name == "buffering":
            word = check_word(name, value, BUFFERING)
            return lambda: setattr(self, "_buffering", word)
        if name == "buffersize":
            size = check_buffersize(value)
            return lambda: setattr(self, "_buffersize", size)
        if name == "ragged_eof":
            ragged = check_word(name, value, RAGGED)
            return lambda: self._set_ragged(ragged)
        if name == "keepalive":
            keep = check_flag(name, value)
            return lambda: self._set_socket_flag(socket.SOL_SOCKET, socket.SO_KEEPALIVE, keep)
        if name == "nodelay":
            nodelay = check_flag(name, value)
            return lambda: self._set_socket_flag(socket.IPPROTO_TCP, socket.TCP_NODELAY, nodelay)
        if name == "spin":
            spin = check_flag(name, value)
            return lambda: self._set_spin(spin)
        if name == "encoding":
            text.check_encoding(value)
        elif name == "translation":
            text.check_translation(value)
        else:
            text.check_eofchar(value)
        return lambda: None

    def _set_ragged(self, ragged: str) -> None:
        self._ragged = ragged

    def _set_spin(self, spin: bool) -> None:
        self._spin = spin

    def _read_only(self) -> tuple[str, ...]:
        return READ_ONLY

    def cget(self, name: str) -> Any:
        """The value of one option.

        peername and sockname are addresses as ``getpeername`` gives them,
        without name look-up; error is the exception that stands or None.
        """
        settings = self._settings
        if name == "blocking":
            return self.blocking
        if name == "buffering":
            return self._buffering
        if name == "buffersize":
            return self._buffersize
        if name == "encoding":
            return settings.encoding
        if name == "translation":
            same = settings.input == settings.output
            return settings.input if same else (settings.input, settings.output)
        if name == "eofchar":
            same = settings.eof_in == settings.eof_out
            return settings.eof_in if same else (settings.eof_in, settings.eof_out)
        if name == "ragged_eof":
            return self._ragged
        if name == "peername":
            return self.getpeername()
        if name == "sockname":
            return self.getsockname()
        if name == "error":
            return self._current_error()
        if name == "connecting":
            return self._connecting()
        if name == "keepalive":
            return self._get_socket_flag(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if name == "nodelay":
            return self._get_socket_flag(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if name == "spin":
            return self._spin
        allowed = ", ".join(sorted((*SETTABLE, *self._read_only())))
        raise ValueError(f"bad option {name!r}: must be one of {allowed}")

    def _all_options(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name in (*SETTABLE, *self._read_only()):
            try:
                result[name] = self.cget(name)
            except OSError:
                # Not a socket, not connected, closed: the option has no value.
                result[name] = None
        return result

    def _current_error(self) -> BaseException | None:
        if self._error is not None or self._closed:
            return self._error
        if self._output_error is not None:
            return self._output_error
        try:
            with self._socket() as sock:
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError:
            return None
        return OSError(number, os.strerror(number)) if number else None

    def _connecting(self) -> bool:
        return False

    def copy_options(self, other: Channel) -> None:
        """Takes over another channel's timeout, buffering and text options."""
        self._timeout = other._timeout
        self._buffering = other._buffering
        self._buffersize = other._buffersize
        self._set_text(other._settings.copy())

    # --- socket manners

    def _socket(self) -> Any:
        return borrowed_socket(self.fileno())

    def _set_socket_flag(self, level: int, option: int, value: bool) -> None:
        with self._close_lock, self._socket() as sock:
            sock.setsockopt(level, option, int(value))

    def _get_socket_flag(self, level: int, option: int) -> bool:
        with self._close_lock, self._socket() as sock:
            return bool(sock.getsockopt(level, option))

    def fileno(self) -> int:
        """The descriptor, for selectors; -1 if closed or not yet connected."""
        io_ = self._io
        return -1 if io_ is None or self._closed else io_.fileno()

    def getpeername(self) -> Any:
        """The peer's address; no name look-up."""
        return self._address("getpeername")

    def getsockname(self) -> Any:
        """Our own address."""
        return self._address("getsockname")

    def _address(self, which: str) -> Any:
        io_ = self._io
        if isinstance(io_, ObjectTransport) and hasattr(io_.stream, which):
            return getattr(io_.stream, which)()
        with self._close_lock, self._socket() as sock:
            return getattr(sock, which)()

    def settimeout(self, timeout: float | None) -> None:
        """Seconds for each call; None: for ever; 0: non-blocking."""
        self._timeout = check_timeout(timeout)
        self._kick()

    def gettimeout(self) -> float | None:
        """The timeout in seconds; None: for ever; 0.0: non-blocking."""
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        """True: ``settimeout(None)``; False: ``settimeout(0.0)``."""
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        """Do calls wait?"""
        return self.blocking

    def shutdown(self, how: int) -> None:
        """Ends the writing side, or both (``socket.SHUT_WR``, ``SHUT_RDWR``)."""
        if how not in (socket.SHUT_WR, socket.SHUT_RDWR):
            raise OSError(errno.ENOTSUP, "half-closing the reading side is not supported")
        self._end_writing()
        if how == socket.SHUT_RDWR:
            with suppress(OSError), self._close_lock, self._socket() as sock:
                sock.shutdown(socket.SHUT_RD)

    def _end_writing(self) -> None:
        with self._write_lock:
            if self._error is not None or not self._write_ended:
                self._check_alive()
            if not self._write_ended:
                self._add_eofchar()
                self._write_ended = self._ending = True
            self._finish_writing(Deadline(self._timeout))

    def _add_eofchar(self) -> None:
        """The last byte of the output, once, however often its end is tried."""
        if self._settings.eof_out and not self._eofchar_added:
            self._eofchar_added = True
            self._queue += self._settings.eof_out.encode("ascii")

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """A file object over the unbuffered stream, as ``socket.makefile``.

        The channel closes once both it and its files are closed.
        """
        if not set(mode) <= {"r", "w", "b"} or not mode:
            raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
        writing = "w" in mode
        reading = "r" in mode or not writing
        raw_mode = ("r" if reading else "") + ("w" if writing else "")
        raw = socket.SocketIO(self, raw_mode)  # type: ignore[arg-type]
        self._makefile_refs += 1
        if buffering is None or buffering < 0:
            buffering = io.DEFAULT_BUFFER_SIZE
        if buffering == 0:
            if "b" not in mode:
                raise ValueError("unbuffered streams must be binary")
            return raw
        buffer: Any
        if reading and writing:
            buffer = io.BufferedRWPair(raw, raw, buffering)
        elif reading:
            buffer = io.BufferedReader(raw, buffering)
        else:
            buffer = io.BufferedWriter(raw, buffering)
        if "b" in mode:
            return buffer
        wrapper = io.TextIOWrapper(buffer, io.text_encoding(encoding), errors, newline)
        wrapper.mode = mode  # type: ignore[misc]
        return wrapper

    def _decref_socketios(self) -> None:
        # socket.SocketIO calls this when it is closed.
        if self._makefile_refs > 0:
            self._makefile_refs -= 1
        if self._close_asked:
            self.close()

    # --- events

    def event(
        self,
        kind: str,
        callback: Callable[[], object] | None = UNSET,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Callable[[], object] | None:
        """Sets the handler of "readable" or "writable"; None removes it.

        Without callback: returns the present one. Handlers run from the
        event loop (asyncio's running one, or ``loop``), never inside the call
        that caused the event, again and again while the condition holds:
        readable while plaintext, the end or a failure waits; writable while
        OPEN (or failed) and there is room. A handler that raises is removed
        and its error reported (``tls_background_error``). RuntimeError if
        there is no loop.
        """
        if kind not in ("readable", "writable"):
            raise ValueError(f"bad event {kind!r}: must be 'readable' or 'writable'")
        events = self._events
        if callback is UNSET:
            return None if events is None else getattr(events, kind)
        if callback is None:
            if events is not None:
                events.set(kind, None)
            return None
        if not callable(callback):
            raise TypeError(f"an event handler must be callable, not {callback!r}")
        if self._closed:
            self._raise_closed()
        self._attach_loop(loop).set(kind, callback)
        return callback

    def _attach_loop(self, loop: asyncio.AbstractEventLoop | None) -> ChannelEvents:
        """The channel's events, made or moved to the loop wanted."""
        events = self._events
        if events is not None and loop is None:
            running = running_loop()
            if running is None or running is events.loop:
                return events
            loop = running
        wanted = require_loop(loop)
        if events is not None and events.loop is wanted:
            return events
        fresh = ChannelEvents(self, wanted)
        if events is not None:
            fresh.readable, fresh.writable = events.readable, events.writable
            events.close()
        self._events = fresh
        return fresh

    def _kick(self) -> bool:
        if self._events is None:
            return False
        self._events.kick()
        return True

    def _event_step(self) -> None:
        waits = self._output_waits()
        if waits and self._usable and self._write_lock.acquire(0):
            try:
                if self._flush_queue(Deadline(0)):
                    self._finish_writing(Deadline(0))
            except OSError as error:
                # Kept for the next writer; trying again would be a busy loop.
                self._output_error = error
            finally:
                self._write_lock.release()

    def _event_fd(self) -> int:
        return self.fileno()

    def _event_readable(self) -> bool:
        found = self._direct_readable()
        if found is not None:
            return found  # most looks end here
        if self._closed or self._error is not None or self._eof:
            return True
        if (self._ahead or self._reader is not None) and not self._blocked:
            # Not after a half line that gets() could not use, or it would
            # raise the event for ever: then only new bytes do.
            if not self._read_lock.acquire(False):
                return False  # somebody is reading
            try:
                if self._ahead or (self._reader is not None and not self._reader.empty):
                    return True
            finally:
                self._read_lock.release()
        io_ = self._io
        if not self._usable or io_ is None:
            return False
        try:
            return io_.readable()
        except OSError:
            return True  # it stays, or comes again: the reader's to raise

    def _event_rest(self) -> int:
        if self._direct_at_rest():
            return WRITABLE  # most passes end here
        if self._closed or self._error is not None:
            return FAILED | READABLE | WRITABLE
        io_ = self._io
        if not self._usable or io_ is None:
            return 0
        waits = self._transport_output()
        flags = 0
        if self._ahead or self._reader is not None or self._eof or not io_.at_rest():
            flags = READABLE
        if self._output_error is not None:
            return flags | WRITABLE
        if waits or self._queue or self._ending:
            flags |= WRITES
        if not (waits or self._queue):
            flags |= WRITABLE
        return flags

    def _output_waits(self) -> bool:
        """Is there output that may yet go?"""
        return self._output_error is None and bool(
            self._queue or self._ending or self._transport_output()
        )

    # --- the end

    @property
    def closed(self) -> bool:
        """Was the channel closed (or given to starttls)?"""
        return self._closed

    def close(self) -> None:
        """Sends what was written, and closes; idempotent.

        Bounded by ``CLOSE_TIMEOUT`` (or the channel's shorter timeout); with
        an event loop a non-blocking channel sends the rest in the
        background, within ``LINGER`` seconds. What could not be sent raises
        its error, after everything was closed.
        """
        if self._makefile_refs > 0:
            self._close_asked = True
            return
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        limit = CLOSE_TIMEOUT if not self._timeout else min(CLOSE_TIMEOUT, self._timeout)
        end = time.monotonic() + limit
        try:
            lingers = self._flush_for_close(end, limit)
        except OSError:
            self._close_transport(max(end - time.monotonic(), 0.0), True)
            raise
        except BaseException:
            # Ctrl-C, or what a transport's own method raised: a second
            # close() would do nothing, and nobody wants to wait now.
            self._close_transport(0.0, False)
            raise
        if not lingers:
            self._close_transport(max(end - time.monotonic(), 0.0), True)

    def _flush_for_close(self, end: float, limit: float) -> bool:
        """Sends what was written; True: the loop sends it, and then closes."""
        if self._usable and not self._write_ended:
            self._add_eofchar()
        if self._usable and (self._queue or self._transport_output()):
            if self._timeout == 0 and self._output_error is None and self._linger():
                return True
            if not self._write_lock.acquire(limit):
                raise timeout_error("closing the channel: another thread was writing, and it")
            try:
                self._flush_queue(Deadline(max(end - time.monotonic(), 1e-6)))
            finally:
                self._write_lock.release()
        return False

    def _linger(self) -> bool:
        """Sends the rest from the loop, then closes; False without a loop."""
        events = self._events
        if events is None or not events.loop.is_running() or not events.in_loop():
            return False
        loop, transport, queue = events.loop, self._transport(), self._queue
        events.close()
        from .background import Linger  # rare

        Linger(self, loop, transport, queue).start()
        return True

    def _close_transport(self, timeout: float, graceful: bool) -> None:
        self._usable = False
        events, self._events = self._events, None
        if events is not None:
            events.close()
        io_ = self._io
        if io_ is not None:
            with self._close_lock:
                self._close_io(io_, timeout, graceful)

    def _close_io(self, io_: ByteTransport, timeout: float, graceful: bool) -> None:
        io_.close(timeout, graceful)

    def abort(self) -> None:
        """Closes at once: nothing waits, nothing is flushed; idempotent."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        self._close_transport(0.0, False)

    def release_transport(self) -> ByteTransport:
        """Gives the transport away (``starttls``); the channel is closed then.

        Raises ValueError, and changes nothing, if bytes of the peer were
        read ahead: they came before TLS and nobody may take them for what
        came through it (CVE-2011-0411), nor may they be lost.
        """
        with self._read_lock, self._write_lock:
            if not self._prepare(self._timeout):
                raise would_block()
            if self._ahead_size():
                raise ValueError(
                    f"{self._ahead_size()} bytes of the peer wait unread on the channel: "
                    "they came before TLS (possible injection, CVE-2011-0411)"
                )
            if self._queue and not self._flush_queue(Deadline(self._timeout)):
                raise would_block()
            with self._close_lock:
                io_ = self._transport()
                self._closed = self._taken = True
                self._usable = False
                self._io = None
            events, self._events = self._events, None
            if events is not None:
                events.close()
            return io_

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except OSError as trouble:
            # What ended the body is the cause; Ctrl-C must stay Ctrl-C.
            if error is None:
                raise
            if trouble is not error and str(trouble) != str(error):
                error.add_note(f"closing the channel failed as well: {trouble}")

    def __reduce_ex__(self, protocol: object) -> Any:
        # copy.copy() comes here too: two owners of one connection.
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled")

    def _holds(self) -> bool:
        """Is there something to close?"""
        return self._io is not None

    def _event_orphaned(self) -> None:
        # An owner may go on without a loop.
        if not self.owned:
            self.abort()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._holds():
            try:
                if self.owned:
                    text = f"unclosed channel {self!r}"
                    warnings.warn(text, ResourceWarning, source=self, stacklevel=2)
            finally:
                with suppress(Exception):
                    self.abort()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self.fileno()}"
        return f"<{type(self).__name__} {state}>"


class TcpChannel(Channel):
    """A plain channel over a connected ``socket.socket``, which it takes over.

    Its timeout becomes the channel's. What ``starttls`` wraps if options and
    buffered reading are wanted before TLS.
    """

    def __init__(self, sock: socket.socket) -> None:
        if not is_plain_socket(sock):
            raise TypeError(f"a TcpChannel is made of a plain socket, not {sock!r}")
        timeout = sock.gettimeout()
        mine = socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        super().__init__(SocketTransport(mine), timeout=timeout)
