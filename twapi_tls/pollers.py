"""Readiness of descriptors, told by the event loop or for it.

``add_reader`` where it works, else (Windows' Proactor loop) threads that
select, each for so many descriptors as Windows' ``select`` takes.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
import weakref
from contextlib import suppress

TYPE_CHECKING = False

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any, Protocol

    from .events import Callback
else:
    Protocol = object

# How long a selecting thread waits for something to select on, in seconds.
IDLE = 1.0
# Descriptors of one selecting thread: Windows' select() takes 512 in Python.
ROOM = 500


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


def select_ready(
    readers: list[int], writers: list[int], timeout: float | None = None
) -> tuple[list[int], list[int]]:
    """Those that are ready, or have failed; within ``timeout`` seconds.

    OSError or ValueError if one is not open. ``poll`` where there is one: a
    POSIX ``select`` knows no descriptor above 1023.
    """
    if not hasattr(select, "poll"):
        readable, writable, failed = select.select(readers, writers, writers, timeout)
        return readable, [*writable, *failed]
    wanted = dict.fromkeys(readers, select.POLLIN)
    for fd in writers:
        wanted[fd] = wanted.get(fd, 0) | select.POLLOUT
    poll = select.poll()
    for fd, mask in wanted.items():
        poll.register(fd, mask)
    ready = poll.poll(None if timeout is None else timeout * 1000)
    if any(got & select.POLLNVAL for _, got in ready):
        raise OSError(errno.EBADF, "a descriptor was closed")
    return (
        [fd for fd, got in ready if wanted[fd] & select.POLLIN and got & ~select.POLLOUT],
        [fd for fd, got in ready if wanted[fd] & select.POLLOUT and got & ~select.POLLIN],
    )


class ThreadPoller:
    """A thread that selects for a loop that cannot (as tornado's does).

    The loop's thread hands over what to select on, the selecting thread
    hands back what is ready and rests until that was dealt with, so that
    level-triggered descriptors do not make it spin. Nor does a channel whose
    handler takes little at a time: its descriptor is left out meanwhile. The
    thread ends when for ``IDLE`` seconds there was nothing to select on, when
    the loop turns out to be closed, and when the poller goes: while it
    selects it holds neither poller nor loop, so that both can be collected
    with the channels that they watched.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._paused: set[int] = set()  # of the readers
        self._condition = threading.Condition()
        self._job: tuple[list[int], list[int]] | None = None
        self._busy = False
        self._thread: threading.Thread | None = None
        self._waker: socket.socket | None = None
        self._hang_up: Callable[[], object] = lambda: None

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
            if self._thread is None:
                self._start()
            self._busy = True
            self._job = ([*self._readers.keys() - self._paused], list(self._writers))
            self._condition.notify()

    def _start(self) -> None:
        """Starts the thread; the condition is held. OSError, RuntimeError if
        there is no descriptor or thread to be had: then all is as before, and
        the next offer tries again."""
        waker, sleeper = socket.socketpair()
        waker.setblocking(False)
        sleeper.setblocking(False)
        thread = threading.Thread(
            target=ThreadPoller._run,
            args=(weakref.ref(self), sleeper),
            name="twapi_tls selector",
            daemon=True,
        )
        try:
            thread.start()
        except BaseException:
            waker.close()
            sleeper.close()
            raise
        self._thread, self._waker = thread, waker
        # A poller that is collected wakes its thread by this.
        self._hang_up = weakref.finalize(self, waker.close)

    def _next_job(self) -> tuple[list[int], list[int]] | None:
        """What to select on; None: the thread has to end, and is forgotten."""
        with self._condition:
            if self._condition.wait_for(lambda: self._job, IDLE):
                job, self._job = self._job, None
                return job
            self._forget_thread()
            return None

    def _forget_thread(self) -> None:
        """The condition is held."""
        self._thread = self._waker = None
        self._hang_up()

    def _tell(self, readable: list[int], writable: list[int], closed: bool) -> bool:
        """Has the loop deal with what is ready; False: it is closed or gone."""
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._deal, readable, writable, closed)
                return True
        except RuntimeError:
            pass
        with self._condition:
            self._forget_thread()
        return False

    @staticmethod
    def _run(reference: weakref.ref[ThreadPoller], sleeper: socket.socket) -> None:
        with sleeper:
            while True:
                poller = reference()
                job = None if poller is None else poller._next_job()
                del poller
                if job is None:
                    return
                readers, writers = job
                try:
                    ready = select_ready([*readers, sleeper.fileno()], writers)
                    closed = False
                except (OSError, ValueError):
                    # A descriptor was closed: the next sets lack it.
                    ready, closed = ([], []), True
                with suppress(OSError):
                    while sleeper.recv(4096):
                        pass
                poller = reference()
                if poller is None or not poller._tell(*ready, closed):
                    return
                del poller

    def _deal(self, readable: list[int], writable: list[int], closed: bool) -> None:
        try:
            for fds, callbacks in ((readable, self._readers), (writable, self._writers)):
                for fd in fds:
                    self._call(callbacks.get(fd))
        finally:  # whatever it was: the others are still to be heard of
            self._go_on(closed)

    def _call(self, callback: Callback | None) -> None:
        """As the loop would: what is raised is told, and others' turn comes."""
        try:
            if callback is not None:
                callback()
        except Exception as error:
            loop = self._loop()
            if loop is not None:
                loop.call_exception_handler(
                    {"message": f"Exception in callback {callback!r}", "exception": error}
                )

    def _go_on(self, closed: bool) -> None:
        """The thread may select again."""
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

    def watches(self, fd: int) -> bool:
        return fd in self._readers or fd in self._writers

    def __len__(self) -> int:
        """How many descriptors it watches."""
        return len(self._readers.keys() | self._writers.keys())


class ThreadPollers:
    """As many ``ThreadPoller`` as the descriptors need."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._pollers: list[ThreadPoller] = []
        self._homes: dict[int, ThreadPoller] = {}

    def _home(self, fd: int) -> ThreadPoller:
        """The one that watches it, or shall."""
        home = self._homes.get(fd)
        if home is None or not home.watches(fd):
            home = next((p for p in self._pollers if len(p) < ROOM), None)
            if home is None:
                loop = self._loop()
                assert loop is not None, "called from its thread"
                home = ThreadPoller(loop)
                self._pollers.append(home)
            self._homes[fd] = home
        return home

    def _left(self, fd: int) -> None:
        home = self._homes.get(fd)
        if home is not None and not home.watches(fd):
            del self._homes[fd]

    def add_reader(self, fd: int, callback: Callback) -> None:
        self._home(fd).add_reader(fd, callback)

    def remove_reader(self, fd: int) -> None:
        if fd in self._homes:
            self._homes[fd].remove_reader(fd)
            self._left(fd)

    def pause_reader(self, fd: int) -> None:
        if fd in self._homes:
            self._homes[fd].pause_reader(fd)

    def resume_reader(self, fd: int) -> None:
        if fd in self._homes:
            self._homes[fd].resume_reader(fd)

    def add_writer(self, fd: int, callback: Callback) -> None:
        self._home(fd).add_writer(fd, callback)

    def remove_writer(self, fd: int) -> None:
        if fd in self._homes:
            self._homes[fd].remove_writer(fd)
            self._left(fd)


def _is_open(fd: int) -> bool:
    try:
        select_ready([], [fd], 0)
    except (OSError, ValueError):
        return False
    return True


# Loops that were asked whether they watch descriptors themselves.
_watching: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
# The loop itself holds its threads' poller, which refers to the loop by its
# callbacks: from a dictionary of ours neither would ever go.
_ATTRIBUTE = "_twapi_tls_pollers"


def _watches_itself(loop: asyncio.AbstractEventLoop) -> bool:
    """Found by trying, not by platform."""
    watches = _watching.get(loop)
    if watches is None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                loop.add_reader(ours.fileno(), lambda: None)
                loop.remove_reader(ours.fileno())
                watches = True
            except NotImplementedError:
                watches = False
        _watching[loop] = watches
    return watches


def poller_of(loop: asyncio.AbstractEventLoop) -> Poller:
    """The poller that suits a loop."""
    if _watches_itself(loop):
        return LoopPoller(loop)
    kept: dict[str, ThreadPollers] = vars(loop)
    return kept.get(_ATTRIBUTE) or kept.setdefault(_ATTRIBUTE, ThreadPollers(loop))
