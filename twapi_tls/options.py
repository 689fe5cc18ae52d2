"""The names of a channel's options, and the checks of their values."""

from __future__ import annotations

import socket
import threading

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Final, TypeVar

    T = TypeVar("T")


BUFFERING: Final = ("full", "line", "none")
RAGGED: Final = ("error", "eof")
MIN_BUFFER: Final = 10
MAX_BUFFER: Final = 1_000_000

# Every channel has these; cget of a socket option asks the system.
SETTABLE: Final = (
    "blocking",
    "buffering",
    "buffersize",
    "encoding",
    "eofchar",
    "translation",
    "keepalive",
    "nodelay",
    "ragged_eof",
    "spin",
)
READ_ONLY: Final = ("connecting", "error", "peername", "sockname")
TLS_READ_ONLY: Final = ("context", "credentials", "verifier")


def check_flag(name: str, value: object) -> bool:
    """True or False (0 and 1 as well); TypeError otherwise."""
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise TypeError(f"{name} must be True or False, not {value!r}")


def expect(kind: type[T], value: object, name: str) -> T:
    """``value``, if it is a ``kind``; TypeError otherwise.

    Says the type alone: the value may be a key in the wrong place.
    """
    if isinstance(value, kind):
        return value
    given = f"{name} must be of type {kind.__name__}, not {type(value).__name__}"
    raise TypeError(given)


def check_timeout(timeout: Any, name: str = "a timeout") -> float | None:
    """Seconds (0 or more) or None; TypeError, ValueError."""
    if timeout is None:
        return None
    if not hasattr(timeout, "__float__") and not hasattr(timeout, "__index__"):
        raise TypeError(f"{name} must be a number of seconds or None, not {timeout!r}")
    try:
        seconds = float(timeout)
    except OverflowError:
        seconds = threading.TIMEOUT_MAX * 2
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        largest = int(threading.TIMEOUT_MAX)
        raise ValueError(f"{name} must be from 0 to {largest} seconds, not {timeout!r}")
    return seconds


def check_seconds(timeout: Any, name: str) -> float:
    """Seconds; None, which waits for ever, is a TypeError here."""
    seconds = check_timeout(timeout, name)
    if seconds is None:
        raise TypeError(f"{name} must be a number of seconds, not None")
    return seconds


def check_port(port: object, option: str = "port") -> int:
    """A port's number, of a number or a service's name."""
    if isinstance(port, bool) or not isinstance(port, (int, str)):
        raise TypeError(f"{option} must be a number or a service name, not {port!r}")
    if isinstance(port, int) and not 0 <= port <= 65535:
        raise ValueError(f"{option} must be 0 to 65535, not {port}")
    if isinstance(port, str) and not port.isdecimal():
        try:
            return socket.getservbyname(port, "tcp")
        except (OSError, ValueError):
            raise ValueError(f"{option} {port!r} is neither a number nor a known service") from None
    return check_port(int(port), option) if isinstance(port, str) else port


def check_word(name: str, value: object, words: tuple[str, ...]) -> str:
    """One of ``words``; ValueError otherwise."""
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"bad {name} {value!r}: must be one of {', '.join(words)}")
    return value


def check_buffersize(value: object) -> int:
    """10 to 1,000,000 bytes; ValueError outside."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"buffersize must be an integer, not {value!r}")
    if not MIN_BUFFER <= value <= MAX_BUFFER:
        raise ValueError(f"buffersize must be {MIN_BUFFER} to {MAX_BUFFER}, not {value}")
    return value
