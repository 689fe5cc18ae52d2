"""Many buffers, or a file, as pieces worth a record and a system call each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

RECORD = 16384
"""Bytes that a full record holds (RFC 8446, 5.1)."""

PIECE = 16 * RECORD
"""Bytes for one send: system calls cost little from there on."""

BLOCK = 7 * RECORD
"""Bytes of a file read at once: below what malloc maps and unmaps each time."""


def gathered(views: Sequence[memoryview]) -> Iterator[memoryview]:
    """The bytes of ``views`` (flat, of bytes) in pieces of ``PIECE``, the last
    one shorter, so that all records but the last are full. Copied only where
    a piece is of several views.
    """
    parts: list[memoryview] = []
    have = 0
    for view in views:
        while len(view):
            part = view[: PIECE - have]
            view = view[len(part) :]
            parts.append(part)
            have += len(part)
            if have == PIECE:
                yield joined(parts)
                parts, have = [], 0
    if parts:
        yield joined(parts)


def joined(parts: Sequence[memoryview]) -> memoryview:
    """The parts as one; itself if it is one."""
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def blocks_of(file: Any, count: int | None) -> Iterator[memoryview]:
    """What a file has from where it stands, at most ``count`` bytes, in blocks
    of whole records; each is valid until the next one is asked for.
    """
    room = memoryview(bytearray(BLOCK if count is None else min(BLOCK, count)))
    readinto = getattr(file, "readinto", None)
    left = count
    while left is None or left > 0:
        want = len(room) if left is None else min(len(room), left)
        have = 0
        while have < want:
            if readinto is not None:
                n = readinto(room[have:want]) or 0
            else:
                data = file.read(want - have)
                n = len(data)
                room[have : have + n] = data
            if not n:
                break
            have += n
        if have:
            yield room[:have]
        if have < want:
            return  # its end: not asked for twice
        if left is not None:
            left -= have
