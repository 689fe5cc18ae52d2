"""Event handlers and background errors over asyncio, on every loop.

A channel's events are computed, not counted: one *pass*, always a callback
of the loop's own, moves the channel on (negotiation, queued output), looks
whether it is readable or writable, calls the handlers, and is scheduled
again for as long as a condition with a handler holds. So events are level
triggered, as Tcl's are, and a handler never runs inside the call that
caused it.

How the loop tells readiness is the only thing that depends on the loop:
``add_reader`` where it works, else (Windows' Proactor loop) a thread with a
selector. asyncio is imported at the first use only, since it imports ssl.
"""

from __future__ import annotations

import select
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio

Callback = Callable[[], object]

# How long a thread that closes a channel waits for the channel's loop to
# forget the descriptor, in seconds; the loop may be busy, or waiting for it.
FORGET = 1.0
# How long a selecting thread waits for something to select on, in seconds.
IDLE = 1.0


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


# --- readiness of descriptors


class Poller(Protocol):
    """Readiness callbacks; every method is called in the loop's thread.

    A paused reader need not be called, if that saves work, until it is
    resumed: its owner comes back by itself.
    """

    def add_reader(self, fd: int, callback: Callback) -> None: ...

    def remove_reader(self, fd: int) -> None: ...

    def pause_reader(self, fd: int) -> None: ...

    def resume_reader(self, fd: int) -> None: ...

    def add_writer(self, fd: int, callback: Callback) -> None: ...

    def remove_writer(self, fd: int) -> None: ...


class LoopPoller:
    """A loop that watches descriptors itself (selector loops, uvloop)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def add_reader(self, fd: int, callback: Callback) -> None:
        self._loop.add_reader(fd, callback)

    def remove_reader(self, fd: int) -> None:
        self._loop.remove_reader(fd)

    def pause_reader(self, fd: int) -> None:
        """Calls too many cost less than telling the kernel."""

    def resume_reader(self, fd: int) -> None:
        """Was never paused."""

    def add_writer(self, fd: int, callback: Callback) -> None:
        self._loop.add_writer(fd, callback)

    def remove_writer(self, fd: int) -> None:
        self._loop.remove_writer(fd)


class ThreadPoller:
    """A thread that selects for a loop that cannot (as tornado's does).

    The loop's thread hands over what to select on, the selecting thread
    hands back what is ready and rests until that was dealt with, so that
    level-triggered descriptors do not make it spin. Nor does a channel whose
    handler takes little at a time: its descriptor is left out meanwhile. The
    thread ends when the loop does, or when for ``IDLE`` seconds there was
    nothing to select on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The thread must not keep a forgotten loop alive.
        self._loop = weakref.ref(loop)
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._paused: set[int] = set()  # of the readers
        self._condition = threading.Condition()
        self._job: tuple[list[int], list[int]] | None = None
        self._busy = False
        self._stop = False
        self._thread: threading.Thread | None = None
        self._waker: socket.socket | None = None
        weakref.finalize(loop, ThreadPoller._quit, weakref.ref(self))

    @staticmethod
    def _quit(reference: weakref.ref[ThreadPoller]) -> None:
        poller = reference()
        if poller is not None:
            with poller._condition:
                poller._stop = True
                poller._condition.notify()
                poller._wake()

    def _wake(self) -> None:
        """Interrupts the thread's select(); the condition is held."""
        if self._waker is not None:
            with suppress(OSError):
                self._waker.send(b"\0")

    def _offer(self) -> None:
        """Gives the thread the present sets, or interrupts it for them."""
        with self._condition:
            if self._busy:
                self._wake()
                return
            self._busy = True
            self._job = ([*self._readers.keys() - self._paused], list(self._writers))
            if self._thread is None:
                self._start()
            self._condition.notify()

    def _start(self) -> None:
        self._waker, sleeper = socket.socketpair()
        self._waker.setblocking(False)
        sleeper.setblocking(False)
        self._thread = threading.Thread(
            target=self._run, args=(sleeper,), name="twapi_tls selector", daemon=True
        )
        self._thread.start()

    def _next_job(self) -> tuple[list[int], list[int]] | None:
        """What to select on; None: the thread has to end, and is forgotten."""
        with self._condition:
            if self._condition.wait_for(lambda: self._job or self._stop, IDLE) and not self._stop:
                job, self._job = self._job, None
                return job
            self._forget_thread()
            return None

    def _forget_thread(self) -> None:
        """The condition is held."""
        self._thread = None
        if self._waker is not None:
            self._waker.close()
            self._waker = None

    def _run(self, sleeper: socket.socket) -> None:
        with sleeper:
            while (job := self._next_job()) is not None:
                readers, writers = job
                try:
                    ready = select.select([*readers, sleeper.fileno()], writers, writers)
                    closed = False
                except (OSError, ValueError):
                    # A descriptor was closed: the next sets lack it.
                    ready, closed = ([], [], []), True
                with suppress(OSError):
                    while sleeper.recv(4096):
                        pass
                loop = self._loop()
                try:
                    if loop is None:
                        raise RuntimeError("the loop is gone")
                    loop.call_soon_threadsafe(self._deal, ready[0], [*ready[1], *ready[2]], closed)
                except RuntimeError:  # or closed
                    with self._condition:
                        self._forget_thread()
                    return
                del loop

    def _deal(self, readable: list[int], writable: list[int], closed: bool) -> None:
        for fds, callbacks in ((readable, self._readers), (writable, self._writers)):
            for fd in fds:
                callback = callbacks.get(fd)
                if callback is not None:
                    callback()
        with self._condition:
            self._busy = False
        if closed:
            # One that nobody removed would end every select() at once.
            for callbacks in (self._readers, self._writers):
                for fd in [fd for fd in callbacks if not _is_open(fd)]:
                    del callbacks[fd]
            self._paused &= self._readers.keys()
        if self._readers.keys() - self._paused or self._writers:
            self._offer()

    def add_reader(self, fd: int, callback: Callback) -> None:
        self._readers[fd] = callback
        self._offer()

    def remove_reader(self, fd: int) -> None:
        self._paused.discard(fd)
        if self._readers.pop(fd, None) is not None:
            self._interrupt()

    def pause_reader(self, fd: int) -> None:
        self._paused.add(fd)

    def resume_reader(self, fd: int) -> None:
        if fd in self._paused:
            self._paused.remove(fd)
            self._offer()

    def add_writer(self, fd: int, callback: Callback) -> None:
        self._writers[fd] = callback
        self._offer()

    def remove_writer(self, fd: int) -> None:
        if self._writers.pop(fd, None) is not None:
            self._interrupt()

    def _interrupt(self) -> None:
        with self._condition:
            self._wake()


def _is_open(fd: int) -> bool:
    try:
        select.select([], [fd], [fd], 0)
    except (OSError, ValueError):
        return False
    return True


_pollers: weakref.WeakKeyDictionary[Any, Poller] = weakref.WeakKeyDictionary()


def poller_of(loop: asyncio.AbstractEventLoop) -> Poller:
    """The poller that suits a loop: found by trying, not by platform."""
    poller = _pollers.get(loop)
    if poller is None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                loop.add_reader(ours.fileno(), lambda: None)
                loop.remove_reader(ours.fileno())
            except NotImplementedError:
                poller = ThreadPoller(loop)
                _pollers[loop] = poller
            else:
                # Not kept: it refers to its key and would never go.
                poller = LoopPoller(loop)
    return poller


# --- a channel's handlers


class Subject(Protocol):
    """What ``ChannelEvents`` asks of a channel."""

    def _event_step(self) -> None:
        """Moves on what needs no caller; keeps its own failures."""

    def _event_fd(self) -> int:
        """The descriptor to watch, or -1."""

    def _event_readable(self) -> bool:
        """Plaintext, the end or a failure waits."""

    def _event_more(self) -> bool:
        """Once a handler has read: may something wait that no descriptor
        tells of? A look at what is inside, without a system call."""

    def _event_writable(self) -> bool:
        """OPEN with no output waiting, or failed."""

    def _event_failed(self) -> bool:
        """Failed, or its reading side is dead: no descriptor will tell."""

    def _event_drives(self) -> tuple[bool, bool]:
        """(read, write) readiness that the channel itself waits for."""


class ChannelEvents:
    """The handlers of one channel on one loop."""

    def __init__(self, channel: Subject, loop: asyncio.AbstractEventLoop) -> None:
        self.channel = channel
        self.loop = loop
        self.readable: Callback | None = None
        self.writable: Callback | None = None
        self._poller = poller_of(loop)
        self._fd_read = -1
        self._fd_write = -1
        self._paused = False
        self._room = False
        self._scheduled = False
        self._closed = False
        self._lock = threading.Lock()

    def in_loop(self) -> bool:
        """Is this the thread in which the loop runs?"""
        return running_loop() is self.loop

    def kick(self) -> None:
        """Schedules a pass; from any thread."""
        with self._lock:
            if self._scheduled or self._closed:
                return
            self._scheduled = True
        try:
            if self.in_loop():
                self.loop.call_soon(self._pass)
            else:
                self.loop.call_soon_threadsafe(self._pass)
        except RuntimeError:
            # The loop is closed: there is nobody to tell any more.
            with self._lock:
                self._scheduled = False

    def set(self, kind: str, callback: Callback | None) -> None:
        """Sets or removes the handler of "readable" or "writable"."""
        if kind == "readable":
            self.readable = callback
        else:
            self.writable = callback
            self._room = False
        self.kick()

    def _on_room(self) -> None:
        self._room = True
        self.kick()

    def _pass(self) -> None:
        with self._lock:
            self._scheduled = False
            if self._closed:
                return
        channel = self.channel
        channel._event_step()
        again = False
        if self.readable is not None and not self._closed and channel._event_readable():
            self._run("readable", self.readable)
            again = channel._event_more()
        failed = channel._event_failed()
        if self.writable is not None and not self._closed and (self._room or failed):
            self._room = False
            if channel._event_writable():
                self._run("writable", self.writable)
                again = again or failed
        self._watch()
        again = again and (self.readable is not None or (failed and self.writable is not None))
        if again:
            self.kick()
        if again != self._paused and self._fd_read >= 0:
            self._paused = again
            if again:
                self._poller.pause_reader(self._fd_read)
            else:
                self._poller.resume_reader(self._fd_read)

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

    def _watch(self) -> None:
        """Watches what is waited for, and nothing else."""
        if self._closed:
            return
        reads, writes = self.channel._event_drives()
        alive = not self.channel._event_failed()
        fd = self.channel._event_fd()
        want_read = fd if reads or (alive and self.readable is not None) else -1
        want_write = (
            fd
            if writes or (alive and self.writable is not None and self.channel._event_writable())
            else -1
        )
        if want_read != self._fd_read:
            if self._fd_read >= 0:
                self._poller.remove_reader(self._fd_read)
            self._fd_read = want_read
            self._paused = False
            if want_read >= 0:
                self._poller.add_reader(want_read, self.kick)
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
