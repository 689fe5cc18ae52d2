"""Exceptions that Python code of the package raises in the C floor's types.

The C floor makes ``TLSError`` and its subclasses; failures found above it
(a verifier's refusal, a closed channel) must look the same to a user.
"""

from __future__ import annotations

import time
from contextlib import suppress

from . import _native
from ._native import CODES, TLSClosedError, TLSError, TLSTimeoutError

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import TypeVar

    E = TypeVar("E", bound=TLSError)


VERIFYFAIL = ("TWAPI", "TLS", "VERIFYFAIL")

# What a non-blocking call raises when nothing can be done now; the small
# calls, which are C, raise it as well.
would_block = _native.would_block


def code(name: str) -> int:
    """The signed SSPI status of a name such as ``SEC_E_WRONG_PRINCIPAL``."""
    return CODES[name]


def make_error(
    kind: type[E],
    reason: str,
    *,
    code: int = 0,
    errorcode: tuple[str, ...] = (),
    alert_sent: str | None = None,
) -> E:
    """A TLSError of ``kind`` with every attribute that the C floor's have.

    ``code`` is signed; its name and hexadecimal form go into the text.
    """
    name = _native.code_name(code) if code else ""
    text = f"{reason} ({name} 0x{code & 0xFFFFFFFF:08x})" if code else reason
    error = kind(text)
    error.code = code
    error.name = name
    error.errorcode = errorcode
    error.alert = alert_sent
    error.alert_sent = alert_sent
    error.alert_received = None
    error.token = b""
    error.reason = reason
    return error


def closed_error(reason: str = "the channel is closed") -> TLSClosedError:
    """What using a channel after its close raises."""
    return make_error(TLSClosedError, reason, errorcode=("TWAPI", "TLS", "CLOSED"))


def timeout_error(what: str) -> TLSTimeoutError:
    """``what`` timed out."""
    return make_error(TLSTimeoutError, f"{what} timed out", errorcode=("TWAPI", "TLS", "TIMEOUT"))


def written(error: BaseException) -> int:
    """How many bytes a send that failed, or was interrupted, had taken: never
    to be given again."""
    return int(getattr(error, "written", 0))


def note_written(error: BaseException, taken: int) -> None:
    """That a send of ``taken`` bytes ended with ``error``, whatever a call
    below, whose bytes are others, noted there."""
    if taken != written(error):
        with suppress(Exception):  # it may be of the user's own making
            error.written = taken  # type: ignore[attr-defined]


def add_written(error: BaseException, before: int) -> None:
    """Bytes of the same call that earlier sends had taken."""
    note_written(error, before + written(error))


class Deadline:
    """A timeout that several waits share.

    ``timeout``: seconds; None for ever, 0 never waits.
    """

    __slots__ = ("_end", "timeout")

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._end = time.monotonic() + timeout if timeout else None

    def expired(self) -> bool:
        """Is it over? Never for no timeout."""
        return self._end is not None and time.monotonic() >= self._end

    def left(self) -> float | None:
        """Seconds left, in the C floor's sense: None for ever, 0 no waiting.

        An expired deadline that may wait gives a tiny positive number, so
        that the wait reports a timeout and not "would block".
        """
        if self._end is None:
            return self.timeout
        return max(self._end - time.monotonic(), 1e-6)
