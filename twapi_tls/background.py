"""What goes on for a channel on the event loop after the call that began it:
sending the rest of a closed one, and copying.
"""

from __future__ import annotations

from collections.abc import Callable

from .errors import timeout_error
from .events import WRITES, ChannelEvents, report
from .transport import CHUNK, ByteTransport

TYPE_CHECKING = False

if TYPE_CHECKING:
    import asyncio

    from .channel import Channel

LINGER = 30.0
"""Seconds that sending the rest of a closed channel may take."""


class Linger:
    """The end of a non-blocking channel with output left: sends it, closes.

    Nobody can receive its failure any more: it is a background error.
    """

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
        self._loop = loop
        self._events = ChannelEvents(self, loop)
        self._timer = loop.call_later(LINGER, self._expire)

    def start(self) -> None:
        self._events.kick()

    def _expire(self) -> None:
        self._finish(timeout_error("sending the rest of a closed channel"))

    def _finish(self, error: OSError | None) -> None:
        self._timer.cancel()
        self._events.close()
        self._channel._close_transport(0.0, error is None)
        if error is not None:
            report(self._loop, error, self._channel, "close")

    def _event_step(self) -> None:
        try:
            while self._queue:
                n = self._transport.send(bytes(self._queue[: 1 << 18]), 0)
                if not n:
                    return
                del self._queue[:n]
            done = self._transport.flush(0)
        except OSError as error:
            self._finish(error)
        else:
            if done:
                self._finish(None)

    def _event_fd(self) -> int:
        return self._transport.fileno()

    def _event_readable(self) -> bool:
        return False

    def _event_rest(self) -> int:
        return WRITES

    def _event_orphaned(self) -> None:
        self._channel._close_transport(0.0, False)


class BackgroundCopy:
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
