"""The two streams of a channel, on one transport.

``send``/``recv`` are the unbuffered one; ``read``/``readline``/``gets`` and
``write``/``puts`` go through buffers and the text layer. They may be mixed:
bytes read ahead are handed to ``recv`` first, bytes written and not sent go
before ``send``'s.

Locks: one for the input buffers, one for the output queue; a reader never
takes the writer's nor the other way round, and closing takes neither, so
that it can end both.

The small calls (``recv``, ``recv_into``, ``send``, ``sendall``) are C's
(``_native.DirectStream``, which says when): bytes straight from or to a
session. Whatever is not that comes to the ``_slow_`` method here; what these
calls mean is said here.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator

from . import _native, text
from ._native import TLSTruncatedError
from .errors import Deadline, add_written, note_written, would_block, written
from .gather import blocks_of, gathered
from .transport import CHUNK, ByteTransport

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, BinaryIO, NoReturn

    from typing_extensions import Buffer

QUEUE_LIMIT = 1 << 20
"""Bytes a non-blocking channel queues; past that, BlockingIOError."""


class Streams(_native.DirectStream):
    """What of a channel moves bytes: its buffers, queue and text layer.

    One thread may read while another writes; a third may close.
    """

    def __init__(self, transport: ByteTransport | None, *, timeout: float | None = None) -> None:
        self._io = transport
        self._timeout = timeout
        self._closed = False
        self._taken = False  # wrapped by starttls: not ours any more
        self._usable = transport is not None
        self._error: BaseException | None = None
        self._read_lock = threading.RLock()
        self._write_lock = _native.Turn()
        self._ahead = bytearray()  # raw bytes read and not used
        self._reader = None  # a text.TextReader
        self._writer: text.TextWriter | None = None
        self._queue = bytearray()  # bytes written and not sent
        self._settings = text.TextSettings()
        self._buffering = "none"
        self._buffersize = 4096
        self._ragged = "error"
        self._eof = False
        self._blocked = False
        self._write_ended = False
        self._ending = False  # its end is asked for, and not yet handed down
        self._spin = False
        # What sending from the loop met: the next writer's to raise.
        self._output_error = None  # an OSError
        self._eofchar_added = False

    def _kick(self) -> bool:
        """Has the event loop look at the channel; False without a loop."""
        return False

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
            self._read_failed(error)
            return b""
        if data == b"":
            self._eof = True
        return data

    def _read_failed(self, error: OSError) -> None:
        """What a read makes of an error: raises it, unless it counts as the end.

        Called while the error is being handled.
        """
        if isinstance(error, TLSTruncatedError) and self._ragged == "eof":
            self._eof = True
            return
        if not isinstance(error, (TimeoutError, BlockingIOError, InterruptedError)):
            if self._closed:
                self._raise_closed()
            self._failed(error)
        raise error

    def _slow_recv(self, bufsize: int, flags: int) -> bytes:
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

    def _slow_recv_into(self, buffer: Buffer, nbytes: int, flags: int) -> int:
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
            self._read_failed(error)
            return 0
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

    def _slow_send(self, data: Buffer, flags: int) -> int:
        if flags:
            raise ValueError("send() flags are not possible on a channel")
        view = memoryview(data).cast("B")
        with self._write_lock:
            return self._send_promised(view, Deadline(self._timeout))

    def _send_promised(self, view: memoryview, deadline: Deadline) -> int:
        """All of it, since not every transport takes all in one go; without
        waiting as many as fit. The write lock is held."""
        if deadline.timeout == 0:
            return self._send(view, 0)
        self._send_all(view, deadline)
        return len(view)

    def _send(self, view: memoryview, timeout: float | None) -> int:
        """As many as the transport takes in one go; the write lock is held."""
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
        if self._output_error is not None:
            raise self._output_error.with_traceback(None)

    def _enqueue(self, view: memoryview) -> int:
        """Queues what the bound allows, at least one byte."""
        room = QUEUE_LIMIT - len(self._queue)
        if room <= 0 and len(view):
            raise would_block()
        taken = view[:room]
        self._queue += taken
        self._kick()
        return len(taken)

    def _slow_sendall(self, data: Buffer, flags: int) -> None:
        if flags:
            raise ValueError("sendall() flags are not possible on a channel")
        with self._write_lock:
            self._send_rest(data, 0)

    def _send_rest(self, data: Buffer, sent: int) -> None:
        """The write lock is held; the first ``sent`` bytes are gone."""
        self._send_all(memoryview(data).cast("B"), Deadline(self._timeout), sent)

    def sendmsg(self, buffers: Iterable[Buffer]) -> int:
        """Sends the bytes of several buffers, one behind the other.

        As ``socket.sendmsg`` without ancillary data: how many were taken, by
        ``send``'s rules, so all of them if the channel is blocking. They
        share records, whatever their sizes, and system calls; an error of a
        blocking channel says in ``written`` how many were taken before it.
        """
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        with self._write_lock:
            deadline = Deadline(self._timeout)
            sent = 0
            for piece in gathered(views):
                try:
                    n = self._send_promised(piece, deadline)
                except BlockingIOError:
                    if sent:
                        break
                    raise
                except BaseException as error:
                    add_written(error, sent)
                    raise
                sent += n
                if n < len(piece):
                    break
            else:
                if not sent:
                    self._send(memoryview(b""), deadline.left())
            return sent

    def sendfile(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> int:
        """Sends a file up to its end, or ``count`` bytes of it; how many.

        As ``socket.sendfile``: ``file`` is open in binary mode, ``offset``
        says where to start, and its position is behind what was sent
        afterwards, also after an error. Read block by block, never whole;
        the timeout is for each block. ValueError on a non-blocking channel.
        """
        if "b" not in getattr(file, "mode", "b"):
            raise ValueError("file should be opened in binary mode")
        if count is not None:
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"count must be a positive integer (got {count!r})")
            if count <= 0:
                raise ValueError(f"count must be a positive integer (got {count!r})")
        if self._timeout == 0:
            raise ValueError("non-blocking sockets are not supported")
        seek = getattr(file, "seek", None)
        if offset and seek is not None:
            seek(offset)
        sent = 0
        try:
            with self._write_lock:
                self._check_writable()
                for block in blocks_of(file, count):
                    try:
                        self._send_all(block, Deadline(self._timeout))
                    except BaseException as error:
                        sent += written(error)
                        raise
                    sent += len(block)
            return sent
        finally:
            if sent and seek is not None:
                seek(offset + sent)

    def _send_all(self, view: memoryview, deadline: Deadline, sent: int = 0) -> None:
        while True:
            try:
                sent += self._send(view[sent:], deadline.left())
            except BlockingIOError:
                raise would_block(sent) from None
            except BaseException as error:
                add_written(error, sent)
                raise
            if sent >= len(view):
                return

    def _finish_writing(self, deadline: Deadline) -> None:
        """The end that was asked for, once all before it is gone.

        The write lock is held. What would wait goes with the loop, or with
        the next flush.
        """
        if self._ending and (self._usable or self._prepare(deadline.left())):
            if self._queue and not self._flush_queue(deadline):
                self._kick()
                return
            self._ending = False
            if not self._transport().shutdown_write(deadline.left()):
                self._kick()
        elif self._ending:
            self._kick()

    def _flush_queue(self, deadline: Deadline) -> bool:
        """Sends what was written; True once all of it is gone.

        The write lock is held. What was sent leaves the queue even if a
        later part fails, times out or is interrupted.
        """
        transport = self._transport()
        while self._queue:
            chunk = bytes(self._queue[: 1 << 18])
            try:
                n = transport.send(chunk, deadline.left())
            except BaseException as error:
                del self._queue[: written(error)]
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
        nothing). ``written`` of any other error of a send: the bytes that
        are not to be given again, be they sent or kept for the next flush.
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
            try:
                self._flush_queue(deadline)
            except BaseException as error:
                note_written(error, len(view))  # what is not sent is kept
                raise
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
            # memoryview(), since bytes(3) would be three zero bytes.
            data = data + "\n" if isinstance(data, str) else bytes(memoryview(data)) + b"\n"
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
            if self._usable and not (self._queue or self._ending or self._transport_output()):
                return
            deadline = Deadline(self._timeout)
            if self._prepare(deadline.left()) and self._flush_queue(deadline):
                self._finish_writing(deadline)
            if self._queue or self._ending or self._transport_output():
                if self._timeout == 0 and self._kick():
                    return
                raise would_block()
