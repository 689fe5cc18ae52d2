"""Threads that step handshakes for an event loop.

A step of a handshake is native work without the GIL, some hundred
microseconds of public-key arithmetic; the loop's own part of a connection is
less. So a listener with several handshakes at hand gives their steps to
threads, and decides (verdict, credentials, hand-over) in the loop as ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

IDLE = 0.5
"""Seconds after which a thread that has nothing to do ends."""


def cores() -> int:
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


class StepPool:
    """At most ``size`` threads, there while there is work."""

    def __init__(self, size: int) -> None:
        self.crowded = False
        """Are there several handshakes? One alone is stepped sooner by the loop."""
        self._size = size
        self._work: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0  # jobs that no thread has begun
        self._idle = 0  # threads that wait for one
        self._threads = 0

    def submit(self, job: Callable[[], object]) -> None:
        """Has a thread call ``job``, which must not raise.

        Where no thread can be had and none is there, it is called here.
        """
        with self._lock:
            self._waiting += 1
            if self._waiting > self._idle and self._threads < self._size:
                self._threads += self._start()
            alone = not self._threads
            self._waiting -= alone
        if alone:
            job()
        else:
            self._work.put(job)

    def _start(self) -> bool:
        """Starts a thread; False: there is none to be had now."""
        try:
            threading.Thread(target=self._run, name="twapi_tls handshakes", daemon=True).start()
        except RuntimeError:
            return False
        return True

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            try:
                job = self._work.get(timeout=IDLE)
            except Empty:
                job = None
            with self._lock:
                self._idle -= 1
                if job is None and not self._waiting:
                    self._threads -= 1
                    return
                self._waiting -= job is not None
            if job is not None:
                job()
                del job  # it keeps a channel alive


def new_pool() -> StepPool | None:
    """A pool as large as the machine has use for; None on one processor."""
    size = cores()
    return StepPool(size) if size > 1 else None
