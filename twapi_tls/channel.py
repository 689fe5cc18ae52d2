"""Channels: byte streams with Tcl's options and a Python socket's manners.

``Channel`` carries the options, the buffers and the text layer over any
``ByteTransport``; ``TcpChannel`` is one over a plain socket, and the TLS
channel (tls.py) the other user.

Two streams lie on one transport. ``send``/``recv`` are the unbuffered one;
``read``/``readline``/``gets`` and ``write``/``puts`` go through buffers.
They may be mixed: bytes read ahead are handed to ``recv`` first, bytes
written and not sent go before ``send``'s.

Locks: one for the input buffers, one for the output queue; a reader never
takes the writer's nor the other way round, and closing takes neither, so
that it can end both.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from . import text
from ._native import TLSTruncatedError
from .errors import Deadline, would_block
from .events import ChannelEvents, require_loop, running_loop
from .options import (
    BUFFERING,
    RAGGED,
    READ_ONLY,
    SETTABLE,
    check_buffersize,
    check_flag,
    check_word,
)
from .transport import (
    CHUNK,
    ByteTransport,
    ObjectTransport,
    SocketTransport,
    borrowed_socket,
    is_plain_socket,
)

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Buffer

QUEUE_LIMIT = 1 << 20
"""Bytes a non-blocking channel queues; past that, BlockingIOError."""

CLOSE_TIMEOUT = 5.0
"""Seconds that closing may take to send what was written."""

LINGER = 30.0
"""The same, in the background, for a non-blocking channel with a loop."""

UNSET: Any = object()
"""A timeout not given: ``socket.getdefaulttimeout()``, as with sockets."""


def default_timeout(timeout: Any) -> float | None:
    """Seconds or None; the sockets' default where none was given."""
    if timeout is UNSET:
        return socket.getdefaulttimeout()
    return check_timeout(timeout)


def check_timeout(timeout: Any) -> float | None:
    """Seconds (0 or more) or None; as ``socket.settimeout`` checks it."""
    if timeout is None:
        return None
    if not hasattr(timeout, "__float__") and not hasattr(timeout, "__index__"):
        raise TypeError(f"a timeout must be a number of seconds or None, not {timeout!r}")
    seconds = float(timeout)
    if not seconds >= 0:
        raise ValueError("Timeout value out of range")
    if seconds > threading.TIMEOUT_MAX:
        raise OverflowError("the timeout is too large")
    return seconds


def close_anything(thing: Any) -> None:
    """Closes what was handed to us, whatever it is; without waiting."""
    close = getattr(thing, "abort", None) if isinstance(thing, Channel) else None
    close = close or getattr(thing, "close", None)
    if close is not None:
        with suppress(Exception):
            close()


class Channel:
    """A byte stream over a transport.

    Not made by users: ``tls_socket``, ``starttls`` and ``TcpChannel`` do it.
    One thread may read while another writes; a third may close.
    """

    def __init__(self, transport: ByteTransport | None, *, timeout: float | None = None) -> None:
        self._io: ByteTransport | None = transport
        self._timeout = timeout
        self._closed = False
        self._taken = False  # wrapped by starttls: not ours any more
        self._usable = transport is not None
        self._error: BaseException | None = None
        self._read_lock = threading.RLock()
        self._write_lock = threading.RLock()
        self._close_lock = threading.Lock()
        self._ahead = bytearray()  # raw bytes read and not used
        self._reader: text.TextReader | None = None
        self._writer: text.TextWriter | None = None
        self._queue = bytearray()  # bytes written and not sent
        self._settings = text.TextSettings()
        self._buffering = "none"
        self._buffersize = 4096
        self._ragged = "error"
        self._eof = False
        self._blocked = False
        self._write_ended = False
        self._eofchar_added = False
        self._events: ChannelEvents | None = None
        self._makefile_refs = 0
        self._close_asked = False

    # --- what a subclass with a negotiation replaces

    def _prepare(self, timeout: float | None) -> bool:
        """Ready for data? False: would wait (timeout 0). Raises if failed."""
        self._check_alive()
        if self._io is None:
            self._raise_closed()
        return True

    def _check_alive(self) -> None:
        """Raises the error that stands, or that the channel is closed."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._closed:
            self._raise_closed()

    def _raise_closed(self) -> NoReturn:
        if self._taken:
            raise OSError(errno.EBADF, "the channel was given to starttls")
        raise OSError(errno.EBADF, "the channel is closed")

    def _transport(self) -> ByteTransport:
        io_ = self._io
        if io_ is None:
            self._raise_closed()
        return io_

    def _failed(self, error: BaseException) -> None:
        """A read failed for good: the first error stays."""
        if self._error is None:
            self._error = error
        self._usable = False

    # --- the unbuffered stream

    def _receive(self, n: int, timeout: float | None) -> bytes | None:
        """From the transport: bytes, b"" at the end, None if it would wait."""
        if self._eof:
            return b""
        if not self._usable and not self._prepare(timeout):
            return None
        try:
            data = self._transport().recv(n, timeout)
        except OSError as error:
            if self._read_failure(error):
                return b""
            raise
        if data == b"":
            self._eof = True
        return data

    def _read_failure(self, error: OSError) -> bool:
        """Sorts a read's error: True if it counts as the end."""
        if isinstance(error, TLSTruncatedError) and self._ragged == "eof":
            self._eof = True
            return True
        if not isinstance(error, (TimeoutError, BlockingIOError, InterruptedError)):
            if self._closed:
                self._raise_closed()
            self._failed(error)
        return False

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """1 to ``bufsize`` bytes; b"" at the end of the stream.

        Waits only while nothing is there. Raises BlockingIOError
        (non-blocking and nothing there), TimeoutError, the channel's error.
        """
        io_ = self._io
        # The way of most calls, without a detour: each step of Python's costs
        # as much as a tenth of the system call.
        if (
            self._usable
            and io_ is not None
            and bufsize > 0
            and not (flags or self._eof or self._ahead)
            and self._reader is None
        ):
            try:
                data = io_.recv(bufsize, self._timeout)
            except OSError as error:
                if self._read_failure(error):
                    return b""
                raise
            if data:
                self._blocked = False
                return data
            self._blocked = data is None
            if data is None:
                raise would_block()
            self._eof = True
            return b""
        if flags:
            raise ValueError("recv() flags are not possible on a channel")
        if bufsize <= 0:
            if bufsize < 0:
                raise ValueError("negative buffersize in recv")
            return b""
        if self._ahead or self._reader is not None:
            data = self._take_ahead(bufsize)
            if data:
                return data
        got = self._receive(bufsize, self._timeout)
        self._blocked = got is None
        if got is None:
            raise would_block()
        return got

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """As ``recv`` into a writable buffer; the number of bytes, 0 at the end."""
        if flags:
            raise ValueError("recv_into() flags are not possible on a channel")
        if nbytes < 0:
            raise ValueError("negative buffersize in recv_into")
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise TypeError("recv_into() needs a read-write bytes-like object")
        if nbytes:
            if nbytes > len(view):
                raise ValueError("buffer too small for requested bytes")
            view = view[:nbytes]
        if not len(view):
            return 0
        if self._ahead or self._reader is not None:
            data = self._take_ahead(len(view))
            if data:
                view[: len(data)] = data
                return len(data)
        if self._eof:
            return 0
        if not self._usable and not self._prepare(self._timeout):
            self._blocked = True
            raise would_block()
        try:
            n = self._transport().recv_into(view, self._timeout)
        except OSError as error:
            if self._read_failure(error):
                return 0
            raise
        self._blocked = n < 0
        if n < 0:
            raise would_block()
        if not n:
            self._eof = True
        return n

    def _take_ahead(self, n: int) -> bytes:
        with self._read_lock:
            self._unread_text()
            data = bytes(self._ahead[:n])
            del self._ahead[:n]
            return data

    def send(self, data: Buffer, flags: int = 0) -> int:
        """Sends bytes; how many were taken.

        Blocking: all of them. Non-blocking: as many as fit, at least one;
        BlockingIOError if none. Before OPEN on a non-blocking channel they
        are queued, within ``QUEUE_LIMIT``.
        """
        if flags:
            raise ValueError("send() flags are not possible on a channel")
        with self._write_lock:
            io_ = self._io
            if (
                type(data) is bytes
                and data
                and io_ is not None
                and self._usable
                and not (self._closed or self._write_ended or self._queue)
            ):
                n = io_.send(data, self._timeout)
                if not n:
                    raise would_block()
                return n
            return self._send(memoryview(data).cast("B"), self._timeout)

    def _send(self, view: memoryview, timeout: float | None) -> int:
        """The write lock is held."""
        deadline = Deadline(timeout)
        if not self._writable_or_queue(deadline):
            return self._enqueue(view)
        if self._queue and not self._flush_queue(deadline):
            raise would_block()
        if not len(view):
            return 0
        n = self._transport().send(view, deadline.left())
        if not n:
            raise would_block()
        return n

    def _writable_or_queue(self, deadline: Deadline) -> bool:
        """Open for output? False: queue. Raises where writing is over."""
        self._check_writable()
        return self._usable or self._prepare(deadline.left())

    def _check_writable(self) -> None:
        """Raises where writing is over."""
        if self._write_ended:
            raise BrokenPipeError(errno.EPIPE, "the channel was closed for writing")
        self._check_alive()

    def _enqueue(self, view: memoryview) -> int:
        """Queues what the bound allows, at least one byte."""
        room = QUEUE_LIMIT - len(self._queue)
        if room <= 0 and len(view):
            raise would_block()
        taken = view[:room]
        self._queue += taken
        self._kick()
        return len(taken)

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """Sends all bytes.

        Raises BlockingIOError on a non-blocking channel that cannot take
        them all; its ``characters_written`` says how many it took.
        """
        if flags:
            raise ValueError("sendall() flags are not possible on a channel")
        with self._write_lock:
            deadline = Deadline(self._timeout)
            io_ = self._io
            sent = 0
            if (
                type(data) is bytes
                and data
                and io_ is not None
                and self._usable
                and not (self._closed or self._write_ended or self._queue)
            ):
                sent = io_.send(data, self._timeout)
                if sent == len(data):
                    return
            self._send_all(memoryview(data).cast("B"), deadline, sent)

    def _send_all(self, view: memoryview, deadline: Deadline, sent: int = 0) -> None:
        while True:
            try:
                sent += self._send(view[sent:], deadline.left())
            except BlockingIOError:
                raise would_block(sent) from None
            if sent >= len(view):
                return

    def _flush_queue(self, deadline: Deadline) -> bool:
        """Sends what was written; True once all of it is gone.

        The write lock is held. What was sent leaves the queue even if a
        later part fails or times out.
        """
        transport = self._transport()
        while self._queue:
            chunk = bytes(self._queue[: 1 << 18])
            try:
                n = transport.send(chunk, deadline.left())
            except OSError as error:
                del self._queue[: int(getattr(error, "written", 0))]
                raise
            del self._queue[:n]
            if not n:
                return False
        return transport.flush(deadline.left())

    # --- the buffered input

    def _unread_text(self) -> None:
        """Gives decoded and unused text back as bytes."""
        if self._reader is not None:
            self._ahead[:0] = self._reader.unread()
            self._reader = None

    def _fill(self, deadline: Deadline) -> bool:
        """Reads ahead once. False at the end; BlockingIOError if it would wait."""
        data = self._receive(max(self._buffersize, CHUNK), deadline.left())
        if data is None:
            self._blocked = True
            raise would_block()
        self._ahead += data
        return bool(data)

    def _text_reader(self) -> text.TextReader:
        reader = self._reader
        if reader is None:
            reader = self._reader = text.TextReader(self._settings)
        return reader

    def _fill_text(self, reader: text.TextReader, deadline: Deadline) -> None:
        if self._ahead:
            reader.feed(bytes(self._ahead))
            self._ahead.clear()
            return
        data = self._receive(max(self._buffersize, CHUNK), deadline.left())
        if data is None:
            self._blocked = True
            raise would_block()
        if data:
            reader.feed(data)
        else:
            reader.feed_eof()

    def read(self, n: int | None = -1) -> Any:
        """A file's read: ``n`` bytes (characters, if an encoding is set).

        Less only at the end of the stream; None or negative: up to the end.
        Non-blocking: what is there, BlockingIOError if nothing is. A timeout
        loses nothing: what had arrived is there for the next read.
        """
        count = -1 if n is None or n < 0 else n
        with self._read_lock:
            self._blocked = False
            if self._settings.raw_input:
                self._unread_text()
                return self._read_bytes(count)
            return self._read_text(count)

    def _read_bytes(self, count: int) -> bytes:
        deadline = Deadline(self._timeout)
        while count < 0 or len(self._ahead) < count:
            want = CHUNK * 4 if count < 0 else count - len(self._ahead)
            try:
                data = self._receive(want, deadline.left())
            except TimeoutError:
                raise
            except OSError:
                # Data first: the error stays for the next call.
                if self._ahead:
                    break
                raise
            if data is None:
                if self._ahead:
                    break
                if count == 0:
                    return b""
                self._blocked = True
                raise would_block()
            if not data:
                break
            self._ahead += data
        if count < 0 or count >= len(self._ahead):
            data = bytes(self._ahead)
            self._ahead.clear()
        else:
            data = bytes(self._ahead[:count])
            del self._ahead[:count]
        return data

    def _read_text(self, count: int) -> str | bytes:
        deadline = Deadline(self._timeout)
        reader = self._text_reader()
        parts: list[Any] = []
        have = 0
        nothing: Any = b"" if self._settings.encoding is None else ""
        while count < 0 or have < count:
            try:
                piece = reader.take(count - have if count >= 0 else CHUNK)
            except UnicodeDecodeError:
                if not parts:
                    raise
                break  # the good characters first
            if piece is not None:
                if not piece:
                    break
                parts.append(piece)
                have += len(piece)
                continue
            try:
                self._fill_text(reader, deadline)
            except OSError:
                if not parts:
                    raise
                # Nothing is lost: a blocking read that stops half-way for
                # an error delivers what it has, the error comes again.
                break
        result: str | bytes = nothing.join(parts)
        return result

    def readline(self, limit: int = -1) -> Any:
        r"""The next line with its end ("\n"), at the stream's end the rest.

        ``limit`` >= 0: at most so many bytes or characters. Empty at the
        end. Non-blocking and no whole line there: BlockingIOError, nothing
        is lost.
        """
        with self._read_lock:
            self._blocked = False
            deadline = Deadline(self._timeout)
            if self._settings.raw_input:
                self._unread_text()
                return self._readline_bytes(limit, deadline)
            reader = self._text_reader()
            while True:
                line = reader.line(limit)
                if line is not None:
                    return line
                try:
                    self._fill_text(reader, deadline)
                except (BlockingIOError, TimeoutError):
                    raise
                except OSError:
                    rest = reader.take(limit if limit >= 0 else 1 << 30)
                    if rest:
                        return rest
                    raise

    def _readline_bytes(self, limit: int, deadline: Deadline) -> bytes:
        scanned = 0
        ahead = self._ahead
        while True:
            at = ahead.find(b"\n", scanned)
            end = at + 1 if at >= 0 else 0
            if limit >= 0 and (end > limit or (not end and len(ahead) >= limit)):
                end = limit
                break
            if end:
                break
            scanned = len(ahead)
            try:
                if not self._fill(deadline):
                    end = len(ahead)
                    break
            except (BlockingIOError, TimeoutError):
                raise
            except OSError:
                if not ahead:
                    raise
                end = len(ahead)
                break
        line = bytes(ahead[:end])
        del ahead[:end]
        return line

    def gets(self) -> Any:
        """The next line without its end; None at the end of the stream."""
        line = self.readline()
        if not line:
            return None
        end = b"\n" if isinstance(line, bytes) else "\n"
        return line.removesuffix(end)

    def __iter__(self) -> Iterator[Any]:
        """The lines up to the end of the stream, as a file gives them."""
        while line := self.readline():
            yield line

    def eof(self) -> bool:
        """Did reading meet the end of the stream (or eofchar)?"""
        if self._reader is not None:
            return self._reader.ended and self._reader.empty
        return self._eof and not self._ahead

    def blocked(self) -> bool:
        """Did the last read come back because too little was there?"""
        return self._blocked

    def pending(self, direction: str = "input") -> int:
        """Bytes in our buffers: "input", read or decrypted and not used;
        "output", written and not sent. For use with selectors: a channel
        with pending input is readable although its descriptor is not.
        """
        if direction == "output":
            return len(self._queue) + self._transport_output()
        if direction != "input":
            raise ValueError(f"bad direction {direction!r}: must be 'input' or 'output'")
        with self._read_lock:
            return self._ahead_size() + self._transport_input()

    def _ahead_size(self) -> int:
        if self._reader is None:
            return len(self._ahead)
        self._unread_text()
        return len(self._ahead)

    def _transport_input(self) -> int:
        return 0

    def _transport_output(self) -> int:
        return self._io.output_pending() if self._usable and self._io is not None else 0

    # --- the buffered output

    def write(self, data: Any) -> int:
        """Writes through ``buffering``; the number of items given.

        bytes-like, or str if an encoding is set. "none": sent at once;
        "line": at each line end; "full": when ``buffersize`` bytes wait; all
        of them: at ``flush`` and close. Non-blocking: what does not fit is
        queued within ``QUEUE_LIMIT`` and sent later; past that
        BlockingIOError with ``characters_written`` (bytes; for text all or
        nothing).
        """
        with self._write_lock:
            if self._settings.raw_output and not isinstance(data, str):
                view = memoryview(data).cast("B")
                self._write(view, False)
                return len(view)
            writer = self._writer
            if writer is None:
                writer = self._writer = text.TextWriter(self._settings)
            raw = writer.encode(data)
            self._write(memoryview(raw), True)
            return len(data)

    def _write(self, view: memoryview, whole: bool) -> None:
        deadline = Deadline(self._timeout)
        waits = self._timeout != 0
        if self._keeps(view):
            # Only memory is touched: not even a negotiation is waited for.
            self._check_writable()
            self._queue += view
            return
        is_open = self._writable_or_queue(deadline)
        if waits and is_open:
            if not self._queue:
                self._send_all(view, deadline)
                return
            # Behind what waits: one send for both.
            self._queue += view
            self._flush_queue(deadline)
            return
        self._write_nowait(view, whole, is_open)

    def _keeps(self, view: memoryview) -> bool:
        """Does ``buffering`` hold these bytes back?"""
        if self._buffering == "none" or len(self._queue) + len(view) >= self._buffersize:
            return False
        return self._buffering == "full" or not {10, 13} & set(view)

    def _write_nowait(self, view: memoryview, whole: bool, is_open: bool) -> None:
        if is_open:
            gone = self._flush_queue(Deadline(0))
        room = QUEUE_LIMIT - len(self._queue)
        if whole and len(view) > room:
            raise would_block()
        sent = 0
        if is_open and gone:
            while sent < len(view):
                n = self._transport().send(view[sent:], 0)
                if not n:
                    break
                sent += n
        rest = view[sent : sent + room]
        if len(rest):
            self._queue += rest
            self._kick()
        if sent + len(rest) < len(view):
            raise would_block(sent + len(rest))

    def puts(self, data: Any = None, *, newline: bool = True) -> None:
        r"""Writes a line: ``data`` and "\n" (translated)."""
        if data is None:
            data = b"" if self._settings.encoding is None else ""
        if newline:
            data = data + "\n" if isinstance(data, str) else bytes(data) + b"\n"
        self.write(data)

    def flush(self) -> None:
        """Sends what was written.

        On a non-blocking channel with an event loop what does not fit goes
        on in the background (``pending("output")`` tells), as with Tcl's
        flush; without a loop BlockingIOError says that some is left.
        Nothing is lost either way.
        """
        with self._write_lock:
            if self._closed:
                self._raise_closed()
            if not self._queue and not self._transport_output() and self._usable:
                return
            deadline = Deadline(self._timeout)
            if not self._prepare(deadline.left()) or not self._flush_queue(deadline):
                if self._queue or self._transport_output():
                    if self._timeout == 0 and self._events is not None:
                        self._kick()
                        return
                    raise would_block()

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
            _BackgroundCopy(self, channel, size, callback).start()
            return None
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
        ("error", "eof"). Read only: connecting, error, peername, sockname.
        All values are checked before the first is set. ValueError and
        TypeError for bad ones.
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
        if name == "encoding":
            text.check_encoding(value)
        elif name == "translation":
            text.check_translation(value)
        else:
            text.check_eofchar(value)
        return lambda: None

    def _set_ragged(self, ragged: str) -> None:
        self._ragged = ragged

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
            if self._write_ended:
                return
            deadline = Deadline(self._timeout)
            if not self._prepare(deadline.left()):
                raise would_block()
            self._add_eofchar()
            if self._queue and not self._flush_queue(deadline):
                self._kick()
                raise would_block()
            self._write_ended = True
            if not self._transport().shutdown_write(deadline.left()):
                # The rest goes with the loop, or with the next flush.
                self._kick()

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

    def _kick(self) -> None:
        if self._events is not None:
            self._events.kick()

    def _event_step(self) -> None:
        waits = self._queue or self._transport_output()
        if waits and self._usable and self._write_lock.acquire(blocking=False):
            try:
                # Its error stays in the transport for the next call.
                with suppress(OSError):
                    self._flush_queue(Deadline(0))
            finally:
                self._write_lock.release()

    def _event_fd(self) -> int:
        return self.fileno()

    def _event_failed(self) -> bool:
        return self._closed or self._error is not None

    def _event_readable(self) -> bool:
        if self._closed or self._error is not None or self._eof:
            return True
        if not self._read_lock.acquire(blocking=False):
            return False  # somebody is reading
        try:
            # A half line that gets() could not use must not raise the event
            # for ever: after that only new bytes do.
            unused = self._ahead or (self._reader is not None and not self._reader.empty)
            return bool(unused and not self._blocked) or self._read_event()
        finally:
            self._read_lock.release()

    def _read_event(self) -> bool:
        """Looks by reading: a whole record may turn out to hold no data,
        and a handler of a blocking channel would hang on it."""
        io_ = self._io
        if not self._usable or io_ is None:
            return False
        if self._transport_input():
            return True
        try:
            if not io_.readable():
                return False
            data = self._receive(CHUNK, 0)
        except OSError:
            return True  # it stays, or comes again: the reader's to raise
        if data is None:
            return False
        self._ahead += data
        self._blocked = False
        return True

    def _event_writable(self) -> bool:
        if self._closed or self._error is not None:
            return True
        return self._usable and not self._queue and not self._transport_output()

    def _event_drives(self) -> tuple[bool, bool]:
        waits = bool(self._queue or self._transport_output())
        return False, self._usable and waits and not self._closed

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
        trouble: OSError | None = None
        limit = CLOSE_TIMEOUT if not self._timeout else min(CLOSE_TIMEOUT, self._timeout)
        end = time.monotonic() + limit
        if self._usable and not self._write_ended:
            self._add_eofchar()
        if self._usable and (self._queue or self._transport_output()):
            if self._timeout == 0 and self._linger():
                return
            if self._write_lock.acquire(timeout=limit):
                try:
                    self._flush_queue(Deadline(max(end - time.monotonic(), 1e-6)))
                except OSError as error:
                    trouble = error
                finally:
                    self._write_lock.release()
        self._close_transport(max(end - time.monotonic(), 0.0), True)
        if trouble is not None:
            raise trouble

    def _linger(self) -> bool:
        """Sends the rest from the loop, then closes; False without a loop."""
        events = self._events
        if events is None or not events.loop.is_running() or not events.in_loop():
            return False
        loop, transport, queue = events.loop, self._transport(), self._queue
        events.close()
        _Linger(self, loop, transport, queue).start()
        return True

    def _close_transport(self, timeout: float, graceful: bool) -> None:
        self._usable = False
        events, self._events = self._events, None
        if events is not None:
            events.close()
        io_ = self._io
        if io_ is not None:
            with self._close_lock:
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._io is not None:
            warnings.warn(f"unclosed channel {self!r}", ResourceWarning, source=self, stacklevel=2)
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


class _Linger:
    """The end of a non-blocking channel with output left: sends it, closes."""

    def __init__(
        self,
        channel: Channel,
        loop: asyncio.AbstractEventLoop,
        transport: ByteTransport,
        queue: bytearray,
    ) -> None:
        self._channel = channel
        self._transport = transport
        self._queue = queue
        self._events = ChannelEvents(self, loop)
        self._timer = loop.call_later(LINGER, self._finish, False)

    def start(self) -> None:
        self._events.kick()

    def _finish(self, graceful: bool) -> None:
        self._timer.cancel()
        self._events.close()
        self._channel._close_transport(0.0, graceful)

    def _event_step(self) -> None:
        try:
            while self._queue:
                n = self._transport.send(bytes(self._queue[: 1 << 18]), 0)
                if not n:
                    return
                del self._queue[:n]
            done = self._transport.flush(0)
        except OSError:
            self._finish(False)
        else:
            if done:
                self._finish(True)

    def _event_fd(self) -> int:
        return self._transport.fileno()

    def _event_readable(self) -> bool:
        return False

    def _event_writable(self) -> bool:
        return False

    def _event_failed(self) -> bool:
        return False

    def _event_drives(self) -> tuple[bool, bool]:
        return False, True


class _BackgroundCopy:
    """``copy_to`` with a callback: reads when there is something to read,
    writes when there is room, holds at most one chunk."""

    def __init__(
        self, source: Channel, target: Channel, size: int, callback: Callable[..., object]
    ) -> None:
        self._source = source
        self._target = target
        self._size = size
        self._callback = callback
        self._copied = 0
        self._rest = b""

    def start(self) -> None:
        self._source.event("readable", self._read)

    def _read(self) -> None:
        want = CHUNK if self._size < 0 else min(CHUNK, self._size - self._copied)
        if not want:
            self._done()
            return
        try:
            data: bytes | None = self._source._take_ahead(want)
            if not data:
                data = self._source._receive(want, 0)
        except OSError as error:
            self._done(error)
            return
        if data is None:
            return
        if not data:
            self._done()
            return
        self._rest = data
        self._source.event("readable", None)
        self._write()

    def _write(self) -> None:
        try:
            with self._target._write_lock:
                n = self._target._send(memoryview(self._rest), 0)
        except BlockingIOError:
            n = 0
        except OSError as error:
            self._done(error)
            return
        self._copied += n
        self._rest = self._rest[n:]
        loop = self._source._events.loop if self._source._events else None
        if self._rest:
            self._target.event("writable", self._write, loop)
            return
        if self._target.event("writable") == self._write:
            self._target.event("writable", None)
        self._source.event("readable", self._read, loop)

    def _done(self, error: OSError | None = None) -> None:
        self._source.event("readable", None)
        if self._target.event("writable") == self._write:
            self._target.event("writable", None)
        if error is None:
            self._callback(self._copied)
        else:
            self._callback(self._copied, error)
