"""A step of a negotiation that may wait for a person.

A private key in a smart card, or one that is protected, asks its user for a
PIN or for consent, in the middle of an engine's call, and no call of Windows'
takes the question back. So the step runs in a thread of its own: who waits for
it keeps its timeout and hears control-C, an event loop goes on, and a channel
that is closed meanwhile leaves the thread to the question. It ends when that
is answered, and hinders nothing: not the process's end either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from .errors import Deadline

SLICE = 0.1  # seconds: on Windows nothing interrupts a wait in the main thread


def in_a_thread(work: Callable[[], object]) -> None:
    """Runs it in a thread of its own."""
    threading.Thread(target=work, name="twapi_tls step", daemon=True).start()


class Asker:
    """One step under way. ``done`` is called from its thread once it is over.

    start: has a thread run it.
    """

    def __init__(
        self,
        step: Callable[[], int],
        done: Callable[[], object],
        start: Callable[[Callable[[], object]], object] = in_a_thread,
    ) -> None:
        self._step = step
        self._done = done
        self._over = threading.Event()
        self._status = 0
        self._error: BaseException | None = None
        start(self._run)

    def _run(self) -> None:
        try:
            self._status = self._step()
        except BaseException as error:
            self._error = error
        self._over.set()
        self._done()

    def over(self) -> bool:
        """Did the step come back?"""
        return self._over.is_set()

    def wait(self, timeout: float | None) -> bool:
        """Waits until it is over, in seconds; False at the timeout."""
        deadline = Deadline(timeout)
        while not self._over.is_set():
            left = deadline.left()
            if left == 0 or deadline.expired():
                return False
            self._over.wait(SLICE if left is None else min(left, SLICE))
        return True

    def result(self) -> int:
        """What the step gave; raises what it raised."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._status

    def leave(self, close: Callable[[], object]) -> None:
        """``close`` what the step works on, without waiting for it."""
        threading.Thread(target=close, name="twapi_tls close", daemon=True).start()
