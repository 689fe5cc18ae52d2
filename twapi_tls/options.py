"""The names of a channel's options, and the checks of their values."""

from __future__ import annotations

from typing import Final

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
)
READ_ONLY: Final = ("connecting", "error", "peername", "sockname")
TLS_READ_ONLY: Final = ("context", "credentials", "verifier")


def check_flag(name: str, value: object) -> bool:
    """True or False (0 and 1 as well); TypeError otherwise."""
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise TypeError(f"{name} must be True or False, not {value!r}")


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
