"""Rows over TCP on loopback: bulk, echo, a server of many connections.

The other end is a forked process; both ends are joined by one connection and
a pipe for what the two tell each other. ``time.monotonic`` is one clock for
all processes of the machine.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ends import PIECE, Engine, Ours, Plain, Ssl, connected_pair
from measure import Row, Run, compare

import twapi_tls as tls

MB = 1e6


class Partner:
    """A forked process that runs ``work(say, hear)``."""

    def __init__(self, work: Callable[[Callable[[Any], None], Callable[[], Any]], None]) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                ours.close()
                pipe = theirs.makefile("rw")
                work(lambda thing: _say(pipe, thing), lambda: json.loads(pipe.readline()))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        theirs.close()
        self.socket = ours
        self.pipe = ours.makefile("rw")

    def say(self, thing: Any) -> None:
        _say(self.pipe, thing)

    def hear(self) -> Any:
        line = self.pipe.readline()
        if not line:
            raise RuntimeError("the other process of the benchmark failed")
        return json.loads(line)

    def end(self) -> None:
        self.pipe.close()
        self.socket.close()
        _, status = os.waitpid(self.pid, 0)
        if status:
            raise RuntimeError("the other process of the benchmark failed")


def _say(pipe: Any, thing: Any) -> None:
    pipe.write(json.dumps(thing) + "\n")
    pipe.flush()


def pin(*wanted: int) -> None:
    """Keeps this process on one CPU, or on several, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[cpu % len(cpus)] for cpu in wanted})


@contextmanager
def pinned(*wanted: int) -> Iterator[None]:
    """``pin`` for a while."""
    before = affinity()
    pin(*wanted)
    try:
        yield
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


def affinity() -> set[int] | None:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def drain_raw(fd: int, amount: int) -> None:
    """Drops ciphertext as it comes, without looking at it."""
    trunc = getattr(socket, "MSG_TRUNC", 0) if sys.platform == "linux" else 0
    sock = socket.socket(fileno=os.dup(fd))
    with sock:
        sock.setblocking(True)
        waste = bytearray(1 << 20)
        while amount > 0:
            n = sock.recv_into(waste, 0, trunc)
            if not n:
                return
            amount -= n


def transfer(
    engine: Engine,
    size: int,
    amount: int,
    take: Callable[[socket.socket], Callable[[], None]],
    clock: Callable[[], float],
) -> tuple[float, float, float, float]:
    """Sends ``amount`` bytes in messages of ``size`` to another process.

    Each has a CPU of its own. take: puts the other end on its socket; the
    answer takes ``amount``. What ``clock`` said when the sender began and
    ended, and when the receiver did.
    """
    one, other = connected_pair()

    def receiver(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        one.close()
        pin(1)
        taking = take(other)
        say("ready")
        began = clock()
        taking()
        say([began, clock()])
        hear()

    partner = Partner(receiver)
    other.close()
    with pinned(0):
        stream = engine.client(one)
        data = bytes(size)
        partner.hear()
        began = clock()
        for _ in range(amount // size):
            stream.sendall(data)
        ended = clock()
        took = partner.hear()
    partner.say("go")
    partner.end()
    stream.close()
    return began, ended, float(took[0]), float(took[1])


def one_way(
    engine: Engine, amount: int, take: Callable[[socket.socket], Callable[[], None]]
) -> float:
    """MB/s of a sender until the other process has taken all."""
    began, _, _, taken = transfer(engine, PIECE, amount, take, time.monotonic)
    return amount / (taken - began) / MB


def send_run(engine: Engine, amount: int, peer: Ssl) -> float:
    """MB/s of the sender; the receiver drops ciphertext unread."""

    def take(other: socket.socket) -> Callable[[], None]:
        end: Any = other if isinstance(engine, Plain) else peer.server(other)
        return lambda: drain_raw(end.fileno(), amount)

    return one_way(engine, amount, take)


def taken_by(engine: Engine, amount: int) -> Callable[[socket.socket], Callable[[], None]]:
    """What takes ``amount`` bytes at an end of this engine's, for ``transfer``."""

    def take(other: socket.socket) -> Callable[[], None]:
        end = engine.server(other)
        return lambda: receive(end, amount)

    return take


def both_run(engine: Engine, amount: int) -> float:
    """MB/s with the same engine at both ends."""
    return one_way(engine, amount, taken_by(engine, amount))


def receive(end: Any, amount: int) -> None:
    buffer = bytearray(PIECE)
    while amount > 0:
        n = end.recv_into(buffer)
        if not n:
            raise RuntimeError("the stream ended early")
        amount -= n


def serve_sealed(ours: Ours, sock: socket.socket, amount: int, hear: Callable[[], Any]) -> None:
    """Handshakes in memory, seals everything beforehand, sends at the word."""
    sock.setblocking(True)
    context = tls.sspi_server_context(ours.server_credentials)
    status = "continue"
    while status == "continue":
        status, out, _ = tls.sspi_step(context, sock.recv(65536))
        sock.sendall(out)
    data = bytes(PIECE)
    sealed = b"".join(tls.sspi_encrypt_stream(context, data) for _ in range(amount // PIECE))
    hear()
    sock.sendall(sealed)


def send_sealed(
    ours: Ours,
    sock: socket.socket,
    amount: int,
    plain: bool,
    say: Callable[[Any], None],
    hear: Callable[[], Any],
) -> None:
    """The other end of a receiver that is measured: makes everything, says
    so, sends it at the word, and waits for another."""

    def ready() -> None:
        say("ready")
        hear()

    if plain:
        data = bytes(amount)
        ready()
        sock.sendall(data)
    else:
        serve_sealed(ours, sock, amount, ready)
    hear()


def receive_run(engine: Engine, amount: int, ours: Ours, cpu: list[float] | None = None) -> float:
    """MB/s of the receiver; the sender has sealed everything beforehand.

    cpu: gets the bytes per second of the receiver's CPU time.
    """
    one, other = connected_pair()

    def sender(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        one.close()
        pin(1)
        send_sealed(ours, other, amount, isinstance(engine, Plain), say, hear)

    partner = Partner(sender)
    other.close()
    with pinned(0):
        stream = engine.client(one)
        partner.hear()
        partner.say("go")
        began, used = time.monotonic(), time.process_time()
        receive(stream, amount)
        ended = time.monotonic()
        used = time.process_time() - used
    partner.say("done")
    partner.end()
    stream.close()
    if cpu is not None:
        return amount / used / MB
    return amount / (ended - began) / MB


def echo_run(engine: Engine, size: int, seconds: float, cpus: int = 1, spin: bool = False) -> float:
    """Round trips per second, both processes on one CPU, or each on its own.

    spin: ours, and at both ends.
    """
    one, other = connected_pair()

    def echo(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        one.close()
        pin(cpus - 1)
        end: Any = engine.server(other)
        if spin:
            end.configure(spin=True)
        say("ready")
        recv, sendall = end.recv, end.sendall
        while data := recv(size):
            sendall(data)

    partner = Partner(echo)
    other.close()
    with pinned(0):
        stream: Any = engine.client(one)
        if spin:
            stream.configure(spin=True)
        partner.hear()
        data = bytes(size)
        recv, sendall = stream.recv, stream.sendall
        rounds = 0
        began = time.monotonic()
        end = began + seconds
        while time.monotonic() < end:
            for _ in range(50):
                sendall(data)
                left = size
                while left:
                    left -= len(recv(left))
            rounds += 50
        spent = time.monotonic() - began
        say_goodbye(stream)
        partner.end()
    return rounds / spent


def say_goodbye(stream: Any) -> None:
    unwrap = getattr(stream, "unwrap", None)
    if unwrap is not None:
        try:
            unwrap().close()
        except OSError:
            stream.close()
    else:
        stream.close()


def epoll_server(engine: Engine, ends: list[Any], size: int) -> float:
    """Answers whole messages of ``size`` bytes with as many, until all close.

    The same loop for all, the one that the ssl module's documentation asks
    for: recv() until it would block, then select. (What TLS has decrypted
    already makes no descriptor readable, so a short read says nothing.)

    The answer is the CPU time at which the first one closed: requests are
    measured, and an end of ours says close_notify where ssl's is dropped.
    """
    until = 0.0
    selector = selectors.DefaultSelector()
    blocked = engine.would_block
    for end in ends:
        end.setblocking(False)
        selector.register(end.fileno(), selectors.EVENT_READ, (end, bytearray()))
    left = len(ends)
    while left:
        for key, _ in selector.select():
            end, have = key.data
            closed = False
            while True:
                try:
                    data = end.recv(65536)
                except blocked:
                    break
                except OSError:
                    data = b""
                if not data:
                    closed = True
                    break
                if not have and len(data) == size:
                    whole: Any = data
                else:
                    have += data
                    if len(have) < size:
                        continue
                    whole = bytes(have[:size])
                    del have[:size]
                while whole:
                    try:
                        whole = whole[end.send(whole) :]
                    except blocked:
                        continue
            if closed:
                until = until or time.process_time()
                selector.unregister(key.fd)
                end.close()
                left -= 1
    selector.close()
    return until


def server_run(
    prepare: Callable[[list[socket.socket]], Callable[[], float | None]],
    client: Engine,
    connections: int,
    size: int,
    seconds: float,
) -> float:
    """Requests per second of a server's CPU time.

    prepare: puts the server's ends on the sockets; its answer serves until
    all have closed, and may say up to which CPU time is measured. The load
    comes from the other CPU, over our channels whatever the server is; one
    request is under way on each connection.
    """
    pairs = [connected_pair() for _ in range(connections)]

    def server(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        for one, _ in pairs:
            one.close()
        serve = prepare([other for _, other in pairs])
        pin(1)
        say("ready")
        hear()
        used = time.process_time()
        until = serve()
        say((until or time.process_time()) - used)

    partner = Partner(server)
    streams = []
    for one, other in pairs:
        other.close()
        streams.append(client.client(one))
    partner.hear()
    with pinned(0):
        requests = drive(streams, size, seconds, partner)
    used = partner.hear()
    partner.end()
    return requests / float(used)


def epoll_run(
    engine: Engine, ours: Ours, connections: int, size: int, seconds: float, plain: bool
) -> float:
    """Requests per second of the CPU of a server that waits with epoll."""

    def prepare(socks: list[socket.socket]) -> Callable[[], float | None]:
        ends = [engine.server(sock) for sock in socks]
        return lambda: epoll_server(engine, ends, size)

    return server_run(prepare, Plain() if plain else ours, connections, size, seconds)


def drive(streams: list[Any], size: int, seconds: float, partner: Partner) -> int:
    selector = selectors.DefaultSelector()
    request = bytes(size)
    for stream in streams:
        stream.setblocking(False)
        selector.register(stream.fileno(), selectors.EVENT_READ, [stream, 0])
    partner.say("go")
    for stream in streams:
        send_whole(stream, request)
    done = 0
    end = time.monotonic() + seconds
    running = True
    left = len(streams)
    while left:
        running = running and time.monotonic() < end
        for key, _ in selector.select():
            data = key.data
            stream = data[0]
            try:
                while data[1] < size:
                    n = len(stream.recv(65536))
                    if not n:
                        raise RuntimeError("the server closed")
                    data[1] += n
            except BlockingIOError:
                continue
            data[1] = 0
            done += 1
            if running:
                send_whole(stream, request)
            else:
                selector.unregister(key.fd)
                stream.setblocking(True)
                stream.close()
                left -= 1
    selector.close()
    return done


def send_whole(stream: Any, data: bytes) -> None:
    while data:
        try:
            data = data[stream.send(data) :]
        except BlockingIOError:
            continue


def rows(ours: Ours, peer: Ssl, quick: bool, wanted: Callable[[str], bool]) -> list[Row]:
    """All rows of this file that are wanted."""
    # Enough to leave the connection's beginning (windows that grow, pages
    # that a forked process touches first) without weight.
    amount = (192 if quick else 512) << 20
    sealed = (128 if quick else 256) << 20
    seconds = 0.4 if quick else 1.5
    pairs = 5 if quick else 15
    plain = Plain()
    out: list[Row] = []

    def add(row: Row, runs: Callable[[Engine], float], limit: bool = True) -> None:
        if not wanted(row.name):
            return
        contenders: dict[str, Run] = {"ours": lambda: runs(ours), "peer": lambda: runs(peer)}
        if limit:
            contenders["limit"] = lambda: runs(plain)
        out.append(compare(row, contenders, pairs))

    sockets = "plain sockets"
    add(
        Row("bulk TCP, send", "ssl sockets", sockets, "MB/s", 1.9),
        lambda engine: send_run(engine, amount, peer),
    )
    add(
        Row("bulk TCP, receive", "ssl sockets", sockets, "MB/s", 2.4),
        lambda engine: receive_run(engine, sealed, ours),
    )
    add(
        Row("bulk TCP, both ends", "ssl sockets", sockets, "MB/s", 1.8),
        lambda engine: both_run(engine, amount),
    )
    add(
        Row("receiver, bytes per CPU second", "ssl sockets", sockets, "MB/s", 2.5),
        lambda engine: receive_run(engine, sealed, ours, cpu=[]),
    )
    add(
        Row("echo 64 B, one core", "ssl sockets", sockets, "1/s", 1.4),
        lambda engine: echo_run(engine, 64, seconds),
    )
    if len(affinity() or {}) > 1:
        add(
            Row("echo 64 B, two cores", "ssl sockets", sockets, "1/s", None),
            lambda engine: echo_run(engine, 64, seconds, 2),
        )
        add(
            Row("echo 64 B, two cores, ours spinning", "ssl sockets", sockets, "1/s", None),
            lambda engine: echo_run(engine, 64, seconds, 2, isinstance(engine, Ours)),
        )
    for size, name, bar in ((64, "64 B", 1.8), (16384, "16 KiB", 1.6)):
        add(
            Row(f"epoll server, 200 connections, {name}", "ssl + epoll", sockets, "1/CPU s", bar),
            lambda engine, size=size: epoll_run(  # type: ignore[misc]
                engine, ours, 200, size, seconds, isinstance(engine, Plain)
            ),
        )
    return out
