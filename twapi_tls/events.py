"""Event handlers and background errors over asyncio, on every loop.

A channel's events are computed, not counted: one *pass*, always a callback
of the loop's own, moves the channel on (negotiation, queued output), looks
whether it is readable or writable, calls the handlers, and is scheduled
again for as long as a condition with a handler holds. So events are level
triggered, as Tcl's are, and a handler never runs inside the call that
caused it.

The ordinary pass is what the loop calls when the descriptor is readable, and
asks two things of the channel: is there something to read, and, once the
handler ran, is there anything left to do? Only then is more looked at.

How the loop tells readiness is the only thing that depends on the loop:
pollers.py. asyncio is imported at the first use only, since it imports ssl.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress

TYPE_CHECKING = False

if TYPE_CHECKING:
    import asyncio
    from typing import Any, Protocol

    Callback = Callable[[], object]
else:
    Protocol = object


# How long a thread that closes a channel waits for the channel's loop to
# forget the descriptor, in seconds; the loop may be busy, or waiting for it.
FORGET = 1.0


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if any; never imports asyncio."""
    asyncio_events = sys.modules.get("asyncio.events")
    if asyncio_events is None:
        return None
    loop: asyncio.AbstractEventLoop | None = asyncio_events._get_running_loop()
    return loop


def require_loop(loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """The loop given, or the running one; RuntimeError if there is neither.

    TypeError for what is no loop.
    """
    found = loop if loop is not None else running_loop()
    if found is None:
        raise RuntimeError("events need a running asyncio event loop, or one given as loop=")
    # Loops need not inherit asyncio's class: these are what is called.
    if not callable(getattr(found, "is_closed", None)) or not callable(
        getattr(found, "call_soon", None)
    ):
        raise TypeError(f"loop must be an asyncio event loop, not {type(found).__name__}")
    if found.is_closed():
        raise RuntimeError("the event loop is closed")
    return found


# --- a channel's handlers

# What ``Subject._event_rest`` says.
READABLE = 1  # what is to be read may wait inside, where no descriptor tells
WRITABLE = 2  # OPEN with no output waiting, or failed
FAILED = 4  # failed, or its reading side is dead: no descriptor will tell
READS = 8  # the channel itself waits for input
WRITES = 16  # the channel itself waits for room


class Subject(Protocol):
    """What ``ChannelEvents`` asks of a channel."""

    def _event_step(self) -> None:
        """Moves on what needs no caller; keeps its own failures."""

    def _event_fd(self) -> int:
        """The descriptor to watch, or -1."""

    def _event_readable(self) -> bool:
        """Plaintext, the end or a failure waits; asks the system."""

    def _event_rest(self) -> int:
        """How it stands once the handlers ran: the flags above. A look at
        what is inside, without a system call."""

    def _event_orphaned(self) -> None:
        """The loop is closed: nothing that it drove goes on."""


class ChannelEvents:
    """The handlers of one channel on one loop."""

    __slots__ = (
        "_closed",
        "_fd_read",
        "_fd_write",
        "_lock",
        "_paused",
        "_poller",
        "_rest",
        "_room",
        "_scheduled",
        "channel",
        "loop",
        "readable",
        "writable",
    )

    def __init__(self, channel: Subject, loop: asyncio.AbstractEventLoop) -> None:
        self.channel = channel
        self.loop = loop
        self.readable: Callback | None = None
        self.writable: Callback | None = None
        from .pollers import poller_of  # loaded by who has a loop

        self._poller = poller_of(loop)
        self._fd_read = -1
        self._fd_write = -1
        self._paused = False
        self._rest = 0  # as the last pass left it
        self._room = False
        self._scheduled = False
        self._closed = False
        self._lock = threading.Lock()

    def in_loop(self) -> bool:
        """Is this the thread in which the loop runs?"""
        return running_loop() is self.loop

    def kick(self) -> None:
        """Schedules a pass; from any thread."""
        self._schedule(self.in_loop())

    def _schedule(self, in_loop: bool) -> None:
        with self._lock:
            if self._scheduled or self._closed:
                return
            self._scheduled = True
        try:
            if in_loop:
                self.loop.call_soon(self._kicked)
            else:
                self.loop.call_soon_threadsafe(self._kicked)
        except RuntimeError:
            # The loop is closed: there is nobody to tell any more.
            with self._lock:
                self._scheduled = False
            self.channel._event_orphaned()

    def set(self, kind: str, callback: Callback | None) -> None:
        """Sets or removes the handler of "readable" or "writable"."""
        if kind == "readable":
            self.readable = callback
        else:
            self.writable = callback
            self._room = False
        self.kick()

    # The three ways into a pass. Where one is scheduled already the other
    # two leave it to that one: a condition raises one event, not two.

    def _kicked(self) -> None:
        with self._lock:
            self._scheduled = False
        if not self._closed:
            self.channel._event_step()
            self._pass()

    def _on_input(self) -> None:
        if not (self._scheduled or self._closed):
            if self._rest & (READS | WRITES):
                self.channel._event_step()
            self._pass()

    def _on_room(self) -> None:
        self._room = True
        if not (self._scheduled or self._closed):
            self.channel._event_step()
            self._pass()

    def _pass(self) -> None:
        """The handlers, and what is to be watched after them."""
        channel = self.channel
        ran = False
        callback = self.readable
        if callback is not None and channel._event_readable():
            self._run("readable", callback)
            ran = True
        rest = channel._event_rest()
        again = ran and rest & READABLE
        callback = self.writable
        if callback is not None and (self._room or rest & FAILED):
            self._room = False
            if rest & WRITABLE:
                self._run("writable", callback)
                rest = channel._event_rest()
                again = again or rest & FAILED
        if self._closed:
            return
        self._rest = rest
        failed = rest & FAILED
        reads = rest & READS or (self.readable is not None and not failed)
        writes = rest & WRITES or (self.writable is not None and rest & WRITABLE and not failed)
        if bool(reads) != (self._fd_read >= 0) or bool(writes) != (self._fd_write >= 0):
            self._watch(bool(reads), bool(writes))
        if again and (self.readable is not None or (failed and self.writable is not None)):
            self._schedule(True)
            self._pause(True)
        elif self._paused:
            self._pause(False)

    def _run(self, kind: str, callback: Callback) -> None:
        try:
            callback()
        except Exception as error:
            # Tcl's rule: a handler that fails is removed, or a condition
            # that it did not look after would raise the error for ever.
            if kind == "readable" and self.readable is callback:
                self.readable = None
            elif kind == "writable" and self.writable is callback:
                self.writable = None
            report(self.loop, error, self.channel, "handler")

    def _pause(self, pause: bool) -> None:
        """Tells the poller whether the next pass comes without it."""
        if pause != self._paused and self._fd_read >= 0:
            self._paused = pause
            if pause:
                self._poller.pause_reader(self._fd_read)
            else:
                self._poller.resume_reader(self._fd_read)

    def _watch(self, reads: bool, writes: bool) -> None:
        """Watches what is waited for, and nothing else."""
        fd = self.channel._event_fd() if reads or writes else -1
        want_read = fd if reads else -1
        want_write = fd if writes else -1
        if want_read != self._fd_read:
            if self._fd_read >= 0:
                self._poller.remove_reader(self._fd_read)
            self._fd_read = want_read
            self._paused = False
            if want_read >= 0:
                self._poller.add_reader(want_read, self._on_input)
        if want_write != self._fd_write:
            if self._fd_write >= 0:
                self._poller.remove_writer(self._fd_write)
            self._fd_write = want_write
            if want_write >= 0:
                self._poller.add_writer(want_write, self._on_room)

    def _forget(self) -> None:
        if self._fd_read >= 0:
            self._poller.remove_reader(self._fd_read)
        if self._fd_write >= 0:
            self._poller.remove_writer(self._fd_write)
        self._fd_read = self._fd_write = -1
        self._paused = False

    def forget_descriptor(self) -> None:
        """Stops watching; to be called *before* the descriptor is closed.

        A number that is closed first may be another socket's already.
        """
        if self._fd_read < 0 and self._fd_write < 0:
            return
        if self.in_loop() or not self.loop.is_running():
            with suppress(RuntimeError, OSError, ValueError):
                self._forget()
            return
        done = threading.Event()

        def forget() -> None:
            self._forget()
            done.set()

        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(forget)
            done.wait(FORGET)

    def close(self) -> None:
        """The channel goes: no handler runs any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.readable = self.writable = None
        self.forget_descriptor()


# --- background errors


def tls_background_error(message: str, options: dict[str, Any]) -> None:
    """The hook for errors that no caller can receive; raises the exception.

    Override it by assigning ``twapi_tls.tls_background_error``; the original
    stays at ``twapi_tls.__tls_background_error__``. An override must raise;
    if it returns, the original error is raised. What is raised goes to the
    event loop's exception handler, once.

    message: the error's text. options: ``code`` (the SSPI status, signed; 0
    if none), ``errorcode`` (TWAPI's error code, a tuple), ``errorinfo`` (the
    traceback as text), ``exception``, ``channel``, ``phase`` ("accept",
    "handshake", "callback", "handler", or "close": the rest of a closed
    channel could not be sent).
    Source: TWAPI's manual page, tls_background_error.
    """
    exception = options.get("exception")
    if isinstance(exception, BaseException):
        raise exception
    raise RuntimeError(message)


def report(
    loop: asyncio.AbstractEventLoop, error: BaseException, channel: object, phase: str
) -> None:
    """Gives an error to the hook, and what that raises to the loop.

    The hook is looked up on the package at the call: that is what makes it
    overridable, and the one place where an import runs uphill.
    """
    import traceback  # here: it would be a quarter of what importing us costs

    package = sys.modules[__package__]
    hook: Callable[[str, dict[str, Any]], object] = package.tls_background_error
    options = {
        "code": getattr(error, "code", 0),
        "errorcode": getattr(error, "errorcode", ()),
        "errorinfo": "".join(traceback.format_exception(error)),
        "exception": error,
        "channel": channel,
        "phase": phase,
    }
    raised = error
    try:
        hook(str(error), options)
    except Exception as other:
        raised = other
    if not loop.is_closed():
        loop.call_exception_handler(
            {
                "message": f"background error in twapi_tls ({phase})",
                "exception": raised,
                "channel": channel,
            }
        )
