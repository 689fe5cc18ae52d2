"""Memory of an idle connection, at the server's side.

Ours is the session with its socket, the object that a channel stands on:
what Python's own objects take (a channel's dictionary of 2 KiB, which malloc
serves as well) is a note, not the row.
"""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ends import Engine, Ours, Ssl, connected_pair
from measure import Row, quartiles
from socket_rows import Partner

from twapi_tls.sspi import make_session


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _libc() -> Any:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        raise OSError("this C library has no mallinfo2()")
    libc.mallinfo2.restype = _Mallinfo
    return libc


def native_bytes(libc: Any) -> int:
    """Bytes that malloc has handed out; Python's small objects lie elsewhere."""
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def private_dirty() -> int:
    """Of the whole process, in bytes."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"Private_Dirty:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


class Bare:
    """Our engine without the channel."""

    name = "twapi_tls sessions"
    would_block: tuple[type[BaseException], ...] = (BlockingIOError,)

    def __init__(self, ours: Ours) -> None:
        self.ours = ours

    def client(self, sock: socket.socket) -> Any:
        return self.ours.client(sock)

    def server(self, sock: socket.socket) -> Any:
        session = make_session("server", self.ours.server_credentials, ask_verdict=False)
        session.attach(sock.detach())
        session.handshake(None)
        return session


def idle(engine: Engine, client: Ours, connections: int) -> tuple[float, float]:
    """(native bytes, private dirty bytes) per connection held by a server.

    Each has carried a message both ways. The first fifty connections warm up
    and are not counted.
    """
    warm = 50
    pairs = [connected_pair() for _ in range(connections + warm)]

    def server(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        libc = _libc()
        ends: list[Any] = []
        figures = []
        for number, (one, other) in enumerate(pairs):
            one.close()
            if number in (warm, 0):
                gc.collect()
                libc.malloc_trim(0)
                figures = [native_bytes(libc), private_dirty()]
            end = engine.server(other)
            getattr(end, "sendall", end.send)(end.recv(64))
            ends.append(end)
        gc.collect()
        libc.malloc_trim(0)
        say([native_bytes(libc) - figures[0], private_dirty() - figures[1]])
        hear()

    partner = Partner(server)
    streams = []
    for one, other in pairs:
        other.close()
        stream = client.client(one)
        stream.sendall(b"a message")
        stream.recv(64)
        streams.append(stream)
    native, dirty = partner.hear()
    partner.say("done")
    partner.end()
    for stream in streams:
        stream.close()
    return native / connections, dirty / connections


def rows(ours: Ours, peer: Ssl, quick: bool, wanted: Callable[[str], bool]) -> list[Row]:
    """The row of this file, if it is wanted."""
    row = Row("idle connection, native memory", "ssl sockets", "2.5 KiB asked", "bytes", None)
    if not wanted(row.name):
        return []
    connections, pairs = (600, 3) if quick else (1000, 5)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    natives: list[list[float]] = [[], []]
    dirty: list[list[float]] = [[], []]
    for _ in range(pairs):
        engines: tuple[Engine, Engine] = (Bare(ours), peer)
        for at, engine in enumerate(engines):
            native, private = idle(engine, ours, connections)
            natives[at].append(native)
            dirty[at].append(private)
    row.ours, row.theirs = quartiles(natives[0])[1], quartiles(natives[1])[1]
    ratios = [b / a for a, b in zip(natives[0], natives[1], strict=True)]
    row.low, row.ratio, row.high = quartiles(ratios)
    row.pairs = pairs
    row.bar = 14.0 / 2.5  # of 14 KiB to 2.5 KiB
    row.notes = {
        "private dirty bytes": {
            "our sessions": quartiles(dirty[0])[1],
            "our channels": idle(ours, ours, connections)[1],
            "ssl": quartiles(dirty[1])[1],
        },
        "when": time.strftime("%Y-%m-%d"),
    }
    return [row]
