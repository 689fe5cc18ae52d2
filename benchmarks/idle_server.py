"""A server that holds idle connections and tells what each costs it.

``idle_server.py ENGINE FOLDER VERSION CIPHERS COUNT`` is a process of its own:
one that was forked would find free memory of its parent's, and dirty pages
that it never wrote. Says its port, takes WARM connections, says "warm", takes
COUNT more and says [native bytes, private dirty bytes] per connection; then
waits for a line. Each connection has carried a message both ways.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ends import Certificates, Kind, Ours, Ssl

import twapi_tls as tls
from twapi_tls.sspi import make_session

HOST = "127.0.0.1"
WARM = 50  # connections before the count begins


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


class Measure:
    """Counts messages sent back, and measures where the count says so."""

    def __init__(self, count: int) -> None:
        self.libc = ctypes.CDLL(None)
        if not hasattr(self.libc, "mallinfo2"):
            raise OSError("this C library has no mallinfo2()")
        self.libc.mallinfo2.restype = _Mallinfo
        self.count = count
        self.served = 0
        self.before = (0, 0)

    def taken(self) -> tuple[int, int]:
        """(bytes that malloc has handed out, private dirty bytes of the process).

        What is free is given back first. Python's small objects lie outside
        of malloc: only the pages show them.
        """
        gc.collect()
        self.libc.malloc_trim(0)
        info = self.libc.mallinfo2()
        found = re.search(r"Private_Dirty:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
        return int(info.uordblks + info.hblkhd), int(found[1]) * 1024 if found else 0

    def note(self) -> bool:
        """After a message was sent back; True: that was the last."""
        self.served += 1
        if self.served == WARM:
            self.before = self.taken()
            print("warm", flush=True)
        if self.served < WARM + self.count:
            return False
        after = self.taken()
        print(*((a - b) / self.count for a, b in zip(after, self.before, strict=True)), flush=True)
        return True


def blocking(serve: Callable[[socket.socket], Any], measure: Measure) -> None:
    """Holds the ends that ``serve`` makes of accepted sockets."""
    held = []
    with socket.create_server((HOST, 0), backlog=64) as listener:
        print(listener.getsockname()[1], flush=True)
        over = False
        while not over:
            end = serve(listener.accept()[0])
            getattr(end, "sendall", end.send)(end.recv(64))
            held.append(end)
            over = measure.note()
    sys.stdin.readline()


def sessions(ours: Ours) -> Callable[[socket.socket], Any]:
    """Our engine without the channel."""

    def serve(sock: socket.socket) -> Any:
        session = make_session("server", ours.server_credentials, ask_verdict=False)
        session.attach(sock.detach())
        session.handshake(None)
        return session

    return serve


async def on_asyncio_ours(ours: Ours, measure: Measure) -> None:
    """Our listener, and a handler of each channel."""
    over = asyncio.Event()

    def accepted(channel: tls.TlsChannel, address: str, port: int) -> None:
        channel.configure(blocking=False)

        def readable() -> None:
            if not (data := channel.recv(64)):
                channel.close()  # all was measured, and the clients go
                return
            channel.sendall(data)
            if measure.note():
                over.set()

        channel.event("readable", readable)

    with tls.tls_socket(
        0, server=accepted, credentials=ours.server_credentials, myaddr=HOST
    ) as listener:
        print(listener.getsockname()[1], flush=True)
        await over.wait()
        sys.stdin.readline()


async def on_asyncio_ssl(peer: Ssl, measure: Measure) -> None:
    """asyncio's transport over ssl, and a protocol of each."""
    over = asyncio.Event()

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)
            if measure.note():
                over.set()

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, HOST, 0, ssl=peer.server_context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await over.wait()
    sys.stdin.readline()
    server.close()


def main(engine: str, folder: str, version: str, ciphers: str, count: str) -> None:
    certificates = Certificates.of(Path(folder))
    kind = Kind(version, ciphers or None)
    measure = Measure(int(count))
    if engine == "sessions":
        blocking(sessions(Ours(certificates, kind)), measure)
    elif engine == "channels":
        blocking(Ours(certificates, kind).server, measure)
    elif engine == "ssl":
        blocking(Ssl(certificates, kind).server, measure)
    elif engine == "asyncio":
        asyncio.run(on_asyncio_ours(Ours(certificates, kind), measure))
    elif engine == "asyncio ssl":
        asyncio.run(on_asyncio_ssl(Ssl(certificates, kind), measure))
    else:
        raise ValueError(f"no engine is called {engine!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
