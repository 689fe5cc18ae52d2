"""Rows on event loops: asyncio's and uvloop's, against their own ``ssl``.

There is no transport of ours for these loops yet, so ours is a channel with a
handler for "readable" (``Channel.event``), and the rows say so; the others are
a ``Protocol`` each. Handshakes are over before the clock runs.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from ends import NAME, PIECE, Engine, Ours, Plain, Ssl, connected_pair
from measure import Row, compare
from socket_rows import MB, Partner, pin, send_sealed, server_run

Loop = asyncio.AbstractEventLoop


class OnLoop(Protocol):
    """One contender, on a loop that is there already."""

    def echo(self, loop: Loop, socks: list[socket.socket], over: Callable[[], None]) -> None:
        """Server ends that send back what comes; over: called as each ends."""

    def reader(self, loop: Loop, sock: socket.socket, take: Callable[[int], None]) -> None:
        """A client's end; take: told how many bytes came."""


class OursOnLoop:
    """Channels and handlers of "readable"."""

    def __init__(self, ours: Ours) -> None:
        self.ours = ours

    def echo(self, loop: Loop, socks: list[socket.socket], over: Callable[[], None]) -> None:
        def watch(channel: Any) -> None:
            recv, sendall = channel.recv, channel.sendall

            def readable() -> None:
                data = recv(65536)
                if data:
                    sendall(data)
                else:
                    channel.close()
                    over()

            channel.event("readable", readable)

        async def start() -> None:
            for sock in socks:
                channel: Any = self.ours.server(sock)
                channel.configure(blocking=False)
                watch(channel)

        loop.run_until_complete(start())

    def reader(self, loop: Loop, sock: socket.socket, take: Callable[[int], None]) -> None:
        channel: Any = self.ours.client(sock)
        buffer = bytearray(PIECE)

        async def start() -> None:
            channel.configure(blocking=False)
            channel.event("readable", lambda: take(channel.recv_into(buffer)))

        loop.run_until_complete(start())


class ProtocolOnLoop:
    """The loop's transport, over its ``ssl`` or (None) over nothing."""

    def __init__(self, peer: Ssl | None) -> None:
        self.server = None if peer is None else peer.server_context
        self.client = None if peer is None else peer.client_context

    def echo(self, loop: Loop, socks: list[socket.socket], over: Callable[[], None]) -> None:
        class Echo(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.write = transport.write

            def data_received(self, data: bytes) -> None:
                self.write(data)

            def connection_lost(self, exc: Exception | None) -> None:
                over()

        async def start() -> None:
            for sock in socks:
                await loop.connect_accepted_socket(Echo, sock, ssl=self.server)

        loop.run_until_complete(start())

    def reader(self, loop: Loop, sock: socket.socket, take: Callable[[int], None]) -> None:
        class Reader(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                take(len(data))

        name = NAME if self.client else None
        loop.run_until_complete(
            loop.create_connection(Reader, sock=sock, ssl=self.client, server_hostname=name)
        )


def echo_run(
    contender: OnLoop, new_loop: Callable[[], Loop], client: Engine, size: int, seconds: float
) -> float:
    """Requests per second of the server's CPU, 200 connections."""

    def prepare(socks: list[socket.socket]) -> Callable[[], None]:
        loop = new_loop()
        left = [len(socks)]
        done = loop.create_future()

        def over() -> None:
            left[0] -= 1
            if not left[0]:
                done.set_result(None)

        contender.echo(loop, socks, over)
        return lambda: loop.run_until_complete(done)

    return server_run(prepare, client, 200, size, seconds)


def receive_run(
    contender: OnLoop, new_loop: Callable[[], Loop], ours: Ours, amount: int, plain: bool
) -> float:
    """MB per second of the receiver's CPU; all was sealed beforehand."""
    one, other = connected_pair()

    def sender(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        one.close()
        pin(1)
        send_sealed(ours, other, amount, plain, say, hear)

    partner = Partner(sender)
    other.close()
    loop = new_loop()
    left = [amount]
    done = loop.create_future()

    def take(n: int) -> None:
        left[0] -= n
        if not n and left[0] > 0:
            done.set_exception(RuntimeError("the stream ended early"))
        elif left[0] <= 0 and not done.done():
            done.set_result(None)

    contender.reader(loop, one, take)
    partner.hear()
    partner.say("go")
    used = time.process_time()
    loop.run_until_complete(done)
    used = time.process_time() - used
    partner.say("done")
    partner.end()
    loop.close()
    return amount / used / MB


def loops() -> dict[str, Callable[[], Loop]]:
    """Those there are."""
    found: dict[str, Callable[[], Loop]] = {"asyncio": asyncio.SelectorEventLoop}
    try:
        found["uvloop"] = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        print("note: no rows of uvloop, which is not installed", file=sys.stderr)
    return found


# What a transport of ours is to reach.
BARS = {"asyncio": (2.2, 2.0), "uvloop": (5.0, 2.0)}


def rows(ours: Ours, peer: Ssl, quick: bool, wanted: Callable[[str], bool]) -> list[Row]:
    """All rows of this file that are wanted."""
    if sys.platform == "win32":
        return []
    seconds, amount, pairs = (0.4, 48 << 20, 5) if quick else (1.5, 192 << 20, 11)
    out: list[Row] = []
    contenders: dict[str, OnLoop] = {
        "ours": OursOnLoop(ours),
        "peer": ProtocolOnLoop(peer),
        "limit": ProtocolOnLoop(None),
    }
    for name, new_loop in loops().items():
        for what, bar, unit, run in (
            (
                "200 connections, 64 B, through events",
                BARS[name][0],
                "1/CPU s",
                lambda who, new_loop=new_loop: echo_run(
                    contenders[who],
                    new_loop,
                    Plain() if who == "limit" else ours,
                    64,
                    seconds,
                ),
            ),
            (
                "bulk stream received, through events",
                BARS[name][1],
                "MB/CPU s",
                lambda who, new_loop=new_loop: receive_run(
                    contenders[who], new_loop, ours, amount, who == "limit"
                ),
            ),
        ):
            row = Row(f"{name}: {what}", f"{name} ssl", f"plain {name}", unit, bar)
            if wanted(row.name):
                runs = {who: lambda who=who, run=run: float(run(who)) for who in contenders}
                out.append(compare(row, runs, pairs))
    return out
