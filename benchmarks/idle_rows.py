"""Memory of an idle connection, at the server's side (idle_server.py).

On blocking sockets ours is the session with its socket, the object that a
channel stands on: what Python's own objects take (a channel's dictionary of 2
KiB, which malloc serves as well) is a note, not the row. On asyncio it is all
that a connection makes the process keep: a channel with its handler against a
transport with its protocol, counted in pages that are the process's own.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ends import Certificates, Kind, Ours
from idle_server import HOST, WARM
from measure import Row, quartiles

HERE = Path(__file__).resolve().parent
MESSAGE = b"a message"
NATIVE, DIRTY = 0, 1


class Servers:
    """Starts servers, with clients of ours as the other ends."""

    def __init__(self, certificates: Certificates, kind: Kind, connections: int) -> None:
        self.arguments = (
            *(os.fspath(certificates.server_file.parent), kind.version, kind.ciphers or ""),
            str(connections),
        )
        self.client = Ours(certificates, kind)
        self.connections = connections

    def idle(self, engine: str) -> tuple[float, float]:
        """(native bytes, private dirty bytes) per connection of that server."""
        with subprocess.Popen(
            [sys.executable, str(HERE / "idle_server.py"), engine, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            assert server.stdin is not None and server.stdout is not None

            def hear(out: Callable[[], str] = server.stdout.readline) -> str:
                line = out()
                if not line:
                    raise RuntimeError(f"the benchmark's server {engine!r} failed")
                return line

            port = int(hear())
            streams = []
            for number in range(WARM + self.connections):
                stream = self.client.client(socket.create_connection((HOST, port)))
                stream.sendall(MESSAGE)
                if stream.recv(64) != MESSAGE:
                    raise RuntimeError(f"the benchmark's server {engine!r} does not answer")
                streams.append(stream)
                if number == WARM - 1:
                    hear()
            native, dirty = map(float, hear().split())
            server.stdin.write("\n")
            server.stdin.flush()
            for stream in streams:
                stream.close()
        return native, dirty


def compare(row: Row, servers: Servers, ours: str, theirs: str, pairs: int, which: int) -> None:
    """The ratio: how many of ours take what one of theirs takes."""
    taken: dict[str, list[tuple[float, float]]] = {ours: [], theirs: []}
    for _ in range(pairs):
        for engine, figures in taken.items():
            figures.append(servers.idle(engine))
    mine, other = ([figures[which] for figures in each] for each in taken.values())
    row.ours, row.theirs = quartiles(mine)[1], quartiles(other)[1]
    row.low, row.ratio, row.high = quartiles([b / a for a, b in zip(mine, other, strict=True)])
    row.pairs = pairs
    row.notes = {
        engine: dict(
            zip(
                ("native bytes", "private dirty bytes"),
                (quartiles(list(column))[1] for column in zip(*figures, strict=True)),
                strict=True,
            )
        )
        for engine, figures in taken.items()
    }


def rows(
    certificates: Certificates, kind: Kind, quick: bool, wanted: Callable[[str], bool]
) -> list[Row]:
    """The rows of this file that are wanted. Bars: what of the peer's was
    measured, 14 and 288 KiB, to what is asked of us."""
    connections, pairs = (600, 3) if quick else (1000, 5)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    servers = Servers(certificates, kind, connections)
    done = []
    row = Row("idle connection, native memory", "ssl sockets", "2.5 KiB asked", "bytes", 14 / 2.5)
    if wanted(row.name):
        compare(row, servers, "sessions", "ssl", pairs, NATIVE)
        row.notes["channels"] = dict(
            zip(("native bytes", "private dirty bytes"), servers.idle("channels"), strict=True)
        )
        done.append(row)
    row = Row("idle connection on asyncio", "asyncio ssl", "12 KiB asked", "bytes", 288 / 12)
    if wanted(row.name):
        compare(row, servers, "asyncio", "asyncio ssl", pairs, DIRTY)
        done.append(row)
    return done
