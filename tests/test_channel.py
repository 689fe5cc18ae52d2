"""Channels: a socket's manners, the options, the streams, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import hashlib
import io
import random
import select
import selectors
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from certs import Pki
from channels import (
    NOBODYS,
    Work,
    damage,
    drain,
    fill,
    held_back,
    narrow,
    pair_of,
    plain_pair,
    run,
    tcp_pair,
    tls_pair,
)
from platforms import WINDOWS
from twapi_support import HOST, LIMIT, client_credentials, connect, first, silent_server

import twapi_tls as tls
from twapi_tls.channel import CLOSE_TIMEOUT
from twapi_tls.streams import QUEUE_LIMIT
from twapi_tls.transport import wait_fd

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(params=["plain", "TLS 1.2", "TLS 1.3", "TLS in TLS"])
def pair(request: pytest.FixtureRequest, pki: Pki) -> Iterator[tuple[Any, Any]]:
    """Two ends, over each kind of channel."""
    with pair_of(request.param, pki) as ends:
        yield ends


@pytest.fixture
def ends(pki: Pki) -> Iterator[tuple[Any, Any]]:
    """A TLS client and its server."""
    with tls_pair(pki) as both:
        yield both


# --- the unbuffered stream


def test_send_and_recv(pair: tuple[Any, Any]) -> None:
    here, there = pair
    assert here.send(b"hello") == 5
    assert there.recv(100) == b"hello"
    there.sendall(bytearray(b"abcdef"))
    assert here.recv(2) == b"ab"
    buffer = bytearray(10)
    assert here.recv_into(buffer, 3) == 3
    assert here.recv_into(memoryview(buffer)[3:]) == 1
    assert buffer == b"cdef" + bytes(6)


@pytest.mark.parametrize("call", ["send", "sendmsg"])
def test_a_blocking_send_takes_all(pair: tuple[Any, Any], call: str) -> None:
    """More than the sockets hold, whatever the channel runs over."""
    here, there = pair
    whole = random.Random(1).randbytes(12_000_000)
    reading = Work(there.read, len(whole))
    assert (here.send(whole) if call == "send" else here.sendmsg([whole])) == len(whole)
    assert hashlib.sha256(reading.result()).digest() == hashlib.sha256(whole).digest()
    there.setblocking(False)
    assert fill(there) > 0
    there.settimeout(0.05)
    with pytest.raises(TimeoutError) as caught:
        getattr(there, call)(whole if call == "send" else [whole])
    assert 0 <= getattr(caught.value, "written", 0) < len(whole)


def test_sendmsg_of_many_sizes(pair: tuple[Any, Any]) -> None:
    """All of it, in order, whatever the sizes; nothing is a number as well."""
    here, there = pair
    parts: list[Any] = [b"", b"a", bytearray(b"bc" * 5000), bytes(300_000), b"end"]
    parts += [bytes([i % 251]) * 7 for i in range(10_000)]
    whole = b"".join(parts)
    reading = Work(there.read, len(whole))
    assert here.sendmsg(parts) == len(whole)
    assert hashlib.sha256(reading.result()).digest() == hashlib.sha256(whole).digest()
    assert here.sendmsg([]) == here.sendmsg([b""]) == 0
    here.configure(buffering="full")
    here.write(b"written, ")
    assert here.sendmsg(iter([memoryview(b"then"), b" sent"])) == 9
    assert there.read(18) == b"written, then sent"


def test_sendmsg_fills_records(pki: Pki) -> None:
    """A hundred small buffers are two records, not a hundred."""
    seen: list[bytes] = []

    def handler(connection: ssl.SSLSocket) -> None:
        seen.append(connection.recv(1 << 20))  # gives one record at most
        seen.append(connection.recv(1 << 20))
        connection.unwrap()

    with (
        peers.ssl_server(pki.server, handler) as server,
        connect(server.port, pki) as channel,
    ):
        assert channel.sendmsg([bytes(200)] * 100) == 20_000
        assert channel.recv(1) == b""
        assert [len(part) for part in seen] == [16384, 20_000 - 16384]


def test_sendmsg_that_does_not_wait(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            n = here.sendmsg([bytes(100_000), bytes(300_000)])
            assert 0 < n <= 400_000
            sent += n
    there.settimeout(LIMIT)
    reading = Work(there.read, sent)
    end = time.monotonic() + LIMIT
    while here.pending("output") and time.monotonic() < end:
        selector_wait(here)
        with contextlib.suppress(BlockingIOError):
            here.flush()
    assert reading.result() == bytes(sent)


def selector_wait(channel: Any) -> None:
    """Until the descriptor takes more."""
    with selectors.DefaultSelector() as selector:
        selector.register(channel.fileno(), selectors.EVENT_WRITE)
        selector.select(LIMIT)


@pytest.mark.parametrize("count", [None, 1, 16384, 250_000, 1 << 30])
@pytest.mark.parametrize("offset", [0, 5, 400_000])
def test_sendfile(ends: tuple[Any, Any], tmp_path: Path, offset: int, count: int | None) -> None:
    here, there = ends
    data = random.Random(7).randbytes(300_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    wanted = data[offset:] if count is None else data[offset : offset + count]
    reading = Work(there.read)
    with path.open("rb") as file:
        assert here.sendfile(file, offset, count) == len(wanted)
        assert file.tell() == offset + len(wanted)
    here.shutdown(socket.SHUT_WR)
    assert reading.result() == wanted


def test_sendfile_of_what_is_no_file(pair: tuple[Any, Any]) -> None:
    """Anything with read; behind what was written before it."""
    here, there = pair

    class Source:
        left = (b"abc", b"", b"never")

        def read(self, n: int) -> bytes:
            data, *self.left = self.left  # type: ignore[assignment]
            return data[:n]

    here.configure(buffering="full")
    here.write(b"first ")
    assert here.sendfile(Source()) == 3
    assert here.sendfile(io.BytesIO(b"xdefx"), 1, 3) == 3
    assert there.read(12) == b"first abcdef"


def test_sendfile_refuses_as_a_socket_does(pair: tuple[Any, Any], tmp_path: Path) -> None:
    here, _ = pair
    path = tmp_path / "file"
    path.write_bytes(b"data")
    with path.open("rb") as file:
        for count in (0, -1):
            with pytest.raises(ValueError, match="positive"):
                here.sendfile(file, 0, count)
        with pytest.raises(TypeError, match="positive"):
            here.sendfile(file, 0, 2.5)
        here.setblocking(False)
        with pytest.raises(ValueError, match="non-blocking"):
            here.sendfile(file)
        here.settimeout(LIMIT)
        assert file.tell() == 0
        here.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenPipeError):
            here.sendfile(file)
        with pytest.raises(BrokenPipeError):
            here.sendmsg([b"data"])
    with path.open() as text, pytest.raises(ValueError, match="binary"):
        here.sendfile(text)


def test_sendfile_that_times_out_says_where_it_stands(
    pair: tuple[Any, Any], tmp_path: Path
) -> None:
    """The position is behind what was taken; the peer gets just that."""
    here, there = pair
    data = random.Random(8).randbytes(30_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    here.settimeout(0.2)
    with path.open("rb") as file:
        with pytest.raises(TimeoutError):
            here.sendfile(file)
        sent = file.tell()
    assert 0 < sent < len(data)
    reading = Work(there.read)
    here.settimeout(LIMIT)
    here.close()
    assert reading.result() == data[:sent]


def test_spinning_reads_lose_nothing(pair: tuple[Any, Any]) -> None:
    """Turns short and long, with a deadline and without, and an end."""
    here, there = pair
    here.configure(spin=True)
    there.configure(spin=True)
    assert here.cget("spin") is True
    for timeout in (LIMIT, None):
        here.settimeout(timeout)

        def echo() -> None:
            for _ in range(200):
                there.sendall(there.recv(100))

        echoing = Work(echo)
        for number in range(200):
            here.sendall(b"%d" % number)
            assert here.recv(100) == b"%d" % number
        echoing.result()
    here.settimeout(0.05)
    with pytest.raises(TimeoutError):
        here.recv(1)
    here.settimeout(LIMIT)
    there.shutdown(socket.SHUT_WR)
    assert here.recv(1) == b""


def test_recv_takes_what_is_there_and_waits_only_for_nothing(pair: tuple[Any, Any]) -> None:
    here, there = pair
    reading = Work(there.recv, 1 << 20)
    here.sendall(b"x")
    assert reading.result() == b"x"


def test_empty_requests(pair: tuple[Any, Any]) -> None:
    here, there = pair
    assert here.recv(0) == b""
    assert here.recv_into(bytearray()) == 0
    assert here.read(0) == b""
    assert here.send(b"") == 0
    here.sendall(b"")
    assert here.write(b"") == 0
    here.flush()
    here.sendall(b"!")
    assert there.recv(10) == b"!"


def test_bad_arguments_of_the_stream(ends: tuple[Any, Any]) -> None:
    here, _ = ends
    for call in (
        lambda: here.recv(-1),
        lambda: here.recv_into(bytearray(4), -1),
        lambda: here.recv_into(bytearray(4), 5),
        lambda: here.recv(1, socket.MSG_PEEK),
        lambda: here.recv_into(bytearray(4), 1, socket.MSG_PEEK),
        lambda: here.send(b"x", socket.MSG_OOB),
        lambda: here.sendall(b"x", socket.MSG_OOB),
        lambda: here.pending("both"),
        lambda: here.settimeout(-1),
        lambda: here.settimeout(float("nan")),
        lambda: here.makefile("x"),
        lambda: here.makefile("r", 0),
    ):
        with pytest.raises(ValueError):
            call()
    for call in (
        lambda: here.recv("1"),
        lambda: here.recv_into(b"read only"),
        lambda: here.send("text"),
        lambda: here.sendall(7),
        lambda: here.write("text"),
        lambda: here.settimeout("soon"),
    ):
        with pytest.raises(TypeError):
            call()
    assert here.state == "OPEN"


def test_any_contiguous_buffer(ends: tuple[Any, Any]) -> None:
    import array

    here, there = ends
    numbers = array.array("I", range(1000))
    here.sendall(numbers)
    got = array.array("I", bytes(4000))
    view = memoryview(got).cast("B")
    at = 0
    while at < 4000:
        at += there.recv_into(view[at:])
    assert got == numbers
    with pytest.raises((TypeError, BufferError)):
        here.send(memoryview(bytes(10))[::2])


def test_much_data_both_ways_at_once(pair: tuple[Any, Any]) -> None:
    """Full duplex: a thread reads each end while another writes it."""
    here, there = pair
    data = [random.Random(seed).randbytes(3_000_000 + seed) for seed in (1, 2)]

    def collect(channel: Any, size: int) -> str:
        digest = hashlib.sha256()
        while size:
            piece = channel.recv(min(size, 50_000))
            assert piece
            digest.update(piece)
            size -= len(piece)
        return digest.hexdigest()

    def feed(channel: Any, data: bytes) -> None:
        at = 0
        for size in [1, 16384, 16385, 70_000] * 100:
            channel.sendall(data[at : at + size])
            at += size
        channel.sendall(data[at:])

    readers = [Work(collect, there, len(data[0])), Work(collect, here, len(data[1]))]
    writers = [Work(feed, here, data[0]), Work(feed, there, data[1])]
    for writer in writers:
        writer.result()
    assert [reader.result() for reader in readers] == [
        hashlib.sha256(part).hexdigest() for part in data
    ]


# --- waiting


def test_timeouts(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.settimeout(0.05)
    assert here.gettimeout() == 0.05
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        here.recv(1)
    assert 0.04 < time.monotonic() - begin < LIMIT
    with pytest.raises(TimeoutError):
        here.recv_into(bytearray(1))
    with pytest.raises(TimeoutError):
        here.sendall(bytes(50_000_000))
    # Reading was not hurt by its timeout.
    there.sendall(b"late")
    assert here.recv(10) == b"late"


def test_a_timeout_in_read_loses_nothing(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.settimeout(0.05)
    there.sendall(b"half a li")
    with pytest.raises(TimeoutError):
        here.readline()
    with pytest.raises(TimeoutError):
        here.read(100)
    there.sendall(b"ne\n")
    here.settimeout(LIMIT)
    assert here.readline() == b"half a line\n"


def test_a_timeout_covers_the_whole_call(ends: tuple[Any, Any]) -> None:
    """Bytes that trickle in do not begin a read's or a line's time anew."""
    here, there = ends
    here.settimeout(0.3)
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.02):
            there.send(b".")

    trickling = Work(trickle)
    try:
        for call in (lambda: here.read(1 << 20), here.readline):
            begin = time.monotonic()
            with pytest.raises(TimeoutError):
                call()
            assert time.monotonic() - begin < LIMIT / 2
    finally:
        stop.set()
        trickling.result()


def test_non_blocking(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.setblocking(False)
    assert here.gettimeout() == 0.0
    assert here.getblocking() is False
    assert here.cget("blocking") is False
    for call in (lambda: here.recv(1), here.read, here.readline, here.gets):
        with pytest.raises(BlockingIOError) as caught:
            call()
        assert caught.value.errno == errno.EAGAIN
        assert here.blocked()
    there.sendall(b"abc")
    with selectors.DefaultSelector() as selector:
        selector.register(here, selectors.EVENT_READ)
        assert selector.select(LIMIT)
    assert here.read(10) == b"abc"
    assert not here.blocked()


def test_non_blocking_sends_what_fits(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.setblocking(False)
    sent = fill(here)
    assert sent > 0
    with pytest.raises(BlockingIOError) as caught:
        here.sendall(bytes(1 << 22))
    sent += caught.value.characters_written
    reading = Work(drain, there, sent)
    here.setblocking(True)
    here.settimeout(LIMIT)
    here.flush()
    assert reading.result() == sent


def test_the_modes_of_a_socket(ends: tuple[Any, Any]) -> None:
    here, _ = ends
    here.setblocking(True)
    assert here.gettimeout() is None
    assert here.getblocking() is True
    here.configure(blocking=False)
    assert here.gettimeout() == 0.0
    here.configure(blocking=True)
    assert here.gettimeout() is None


def test_configure_blocking_true_keeps_a_timeout(ends: tuple[Any, Any]) -> None:
    """A channel with a timeout is blocking already."""
    here, _ = ends
    here.settimeout(2.5)
    assert here.cget("blocking") is True
    here.configure(blocking=True)
    assert here.gettimeout() == 2.5


def test_a_signal_handler_that_raises_ends_a_wait(ends: tuple[Any, Any]) -> None:
    import signal

    here, _ = ends

    class Alarm(Exception):
        pass

    def handler(number: int, frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(Alarm):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            here.recv(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert here.state == "OPEN"


@pytest.mark.parametrize("before", [b"", b"kept before"])
def test_a_write_that_times_out_tells_what_it_took(pair: tuple[Any, Any], before: bytes) -> None:
    """Behind what was written before all of it is kept; else what was sent is gone."""
    here, there = pair
    narrow(here, there)
    data = random.Random(2).randbytes(2_000_000)
    here.configure(buffering="full")
    here.write(before)
    here.configure(buffering="none")
    here.settimeout(0.05)
    with pytest.raises(TimeoutError) as caught:
        here.write(data)
    taken = caught.value.written  # type: ignore[attr-defined]
    assert taken == len(data) if before else taken < len(data)
    reading = Work(there.read)
    here.settimeout(LIMIT)
    here.write(data[taken:])
    here.flush()
    here.close()
    assert reading.result() == before + data


@pytest.mark.parametrize("call", ["sendall", "sendmsg", "sendfile", "flush", "write"])
def test_a_signal_handler_that_raises_ends_a_wait_to_send(pair: tuple[Any, Any], call: str) -> None:
    """Ctrl-C on a busy connection: what was taken is told or remembered, so
    that who goes on loses nothing and sends nothing twice."""
    import signal

    here, there = pair
    narrow(here, there)
    data = b"".join(struct.pack(">I", number) for number in range(200_000))
    file = io.BytesIO(data)
    ticks: list[bool] = []

    class Enough(BaseException):
        pass

    def handler(number: int, frame: object) -> None:
        """Once the call has been waiting for room for a while."""
        ticks.append(not wait_fd(here.fileno(), True, 0))
        if ticks[-3:] == [True] * 3:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Enough

    def send(more: bytes) -> None:
        if call == "sendmsg":
            here.sendmsg([more[:1000], more[1000:]])
        elif call == "sendfile":
            here.sendfile(file)
        elif call in ("flush", "write"):
            here.configure(buffering="full", buffersize=1_000_000)
            here.write(more)
            if call == "flush":
                here.flush()
            else:
                here.configure(buffering="none")
                here.write(b"")
        else:
            here.sendall(more)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(Enough) as caught:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            send(data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    reading = Work(there.read)
    if call in ("sendall", "sendmsg"):
        here.sendall(data[caught.value.written :])
    elif call == "sendfile":
        here.sendfile(file)
    here.close()
    assert reading.result() == data


# --- the buffered stream


def test_read_is_a_files(pair: tuple[Any, Any]) -> None:
    here, there = pair
    reading = Work(there.read, 10)
    here.sendall(b"01234")
    here.sendall(b"56789rest\nlast")
    assert reading.result() == b"0123456789"
    assert there.readline() == b"rest\n"
    here.close()
    assert there.read() == b"last"
    assert there.read() == b""
    assert there.eof()


def test_lines(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.sendall(b"one\n\nthree\r\nlong line\nno end")
    here.close()
    assert there.gets() == b"one"
    assert there.gets() == b""
    assert there.gets() == b"three\r"
    assert there.readline(4) == b"long"
    assert not there.eof()
    assert list(there) == [b" line\n", b"no end"]
    assert there.gets() is None
    assert there.readline() == b""
    assert there.eof()


def test_the_two_streams_mix(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.configure(buffering="full")
    here.write(b"buffered ")
    here.send(b"sent\n")
    here.write(b"line\nmore")
    here.flush()
    assert there.readline() == b"buffered sent\n"
    # What was read ahead goes to recv first.
    assert there.recv(3) == b"lin"
    got = bytearray(1)
    assert there.recv_into(got) == 1
    assert got == b"e"
    assert there.read(5) == b"\nmore"


def test_buffering(pair: tuple[Any, Any]) -> None:
    here, there = pair
    there.setblocking(False)

    def arrived() -> bytes:
        """What is there after a mark that goes past the buffers."""
        with selectors.DefaultSelector() as selector:
            selector.register(there, selectors.EVENT_READ)
            assert there.pending() or selector.select(LIMIT)
        return bytes(there.recv(1 << 16))

    assert here.cget("buffering") == "none"
    here.write(b"at once")
    assert arrived() == b"at once"

    here.configure(buffering="line")
    here.write(b"a part, ")
    assert here.pending("output") == 8
    here.write(b"the rest\n")
    assert here.pending("output") == 0
    assert arrived() == b"a part, the rest\n"

    here.configure(buffering="full", buffersize=10)
    here.write(b"line\n")
    here.write(b"1234")
    assert here.pending("output") == 9
    here.write(b"5")
    assert here.pending("output") == 0
    assert arrived() == b"line\n12345"
    here.write(b"tail")
    here.flush()
    assert here.pending("output") == 0
    assert arrived() == b"tail"


def test_setting_buffering_to_none_keeps_what_waits(ends: tuple[Any, Any]) -> None:
    here, there = ends
    here.configure(buffering="full")
    here.write(b"first ")
    here.configure(buffering="none")
    here.write(b"second")
    assert there.read(12) == b"first second"


def test_close_sends_what_was_written(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.configure(buffering="full", buffersize=1_000_000)
    here.write(b"kept " * 1000)
    reading = Work(there.read)
    here.close()
    assert reading.result() == b"kept " * 1000


def test_puts(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.puts(b"line")
    here.puts(b"no end", newline=False)
    here.puts()
    here.configure(encoding="utf-8")
    here.puts("Grüße")
    here.puts()
    here.close()
    assert there.read() == "line\nno end\nGrüße\n\n".encode()


def test_pending_counts_both_buffers(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.sendall(b"0123456789\nabc")
    assert there.readline() == b"0123456789\n"
    assert there.pending() == there.pending("input") == 3
    assert there.recv(1) == b"a"
    assert there.pending() == 2
    here.configure(buffering="full")
    here.write(b"waits")
    assert here.pending("output") == 5


def test_pending_tells_plaintext_that_the_descriptor_does_not(ends: tuple[Any, Any]) -> None:
    """The trap of selectors: one record, read in two parts."""
    here, there = ends
    here.sendall(b"0123456789")
    with selectors.DefaultSelector() as selector:
        selector.register(there, selectors.EVENT_READ)
        assert selector.select(LIMIT)
        assert there.recv(4) == b"0123"
        assert selector.select(0) == []
        assert there.pending() == 6
        assert there.recv(100) == b"456789"
        assert there.pending() == 0


def test_copy_to(pki: Pki) -> None:
    data = random.Random(5).randbytes(500_000)
    with tls_pair(pki) as (source, middle), plain_pair() as (relay, target):
        sending = Work(lambda: (source.sendall(data), source.close()))
        reading = Work(target.read)
        assert middle.copy_to(relay, 1000) == 1000
        assert middle.copy_to(relay) == len(data) - 1000
        assert middle.copy_to(relay) == 0
        relay.close()
        sending.result()
        assert reading.result() == data


def test_copy_to_takes_what_was_read_ahead(ends: tuple[Any, Any]) -> None:
    here, there = ends
    here.sendall(b"head\nbody")
    here.close()
    assert there.readline() == b"head\n"
    with plain_pair() as (relay, target):
        assert there.copy_to(relay) == 4
        assert target.recv(10) == b"body"


def test_copy_to_a_socket(ends: tuple[Any, Any]) -> None:
    here, there = ends
    one, other = tcp_pair()
    with one, other:
        here.sendall(b"to a socket")
        here.close()
        assert there.copy_to(one) == 11
        assert other.recv(100) == b"to a socket"


@pytest.mark.parametrize("size", [-1, 200_000])
def test_copy_to_in_the_background(pki: Pki, size: int) -> None:
    data = random.Random(6).randbytes(3_000_000)

    async def main() -> None:
        import asyncio

        with tls_pair(pki) as (source, middle), tls_pair(pki) as (relay, target):
            sending = Work(lambda: (source.sendall(data), source.close()))
            want = data if size < 0 else data[:size]
            reading = Work(target.read, len(want))
            for channel in (middle, relay):
                channel.setblocking(False)
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            assert middle.copy_to(relay, size, lambda *told: done.set_result(told)) is None
            assert not done.done()
            assert await asyncio.wait_for(done, LIMIT * 2) == (len(want),)
            assert middle.event("readable") is None
            assert relay.event("writable") is None
            assert await asyncio.to_thread(reading.result) == want
            middle.abort()
            await asyncio.to_thread(sending.wait)

    run(main())


def test_copy_to_in_the_background_tells_its_error(pki: Pki) -> None:
    async def main() -> None:
        import asyncio

        with tls_pair(pki) as (source, middle), tls_pair(pki) as (relay, target):
            for channel in (middle, relay):
                channel.setblocking(False)
            source.sendall(b"some")
            relay.close()
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            middle.copy_to(relay, -1, lambda *told: done.set_result(told))
            copied, error = await asyncio.wait_for(done, LIMIT)
            assert copied == 0
            assert isinstance(error, tls.TLSClosedError)
            assert target.recv(1) == b""

    run(main())


def test_copy_to_wants_a_channel_and_a_loop_for_the_background(ends: tuple[Any, Any]) -> None:
    here, there = ends
    with pytest.raises(TypeError):
        here.copy_to(io.BytesIO(), -1, print)
    with pytest.raises(RuntimeError):
        here.copy_to(there, -1, print)


# --- files


def test_makefile(pair: tuple[Any, Any]) -> None:
    here, there = pair
    with here.makefile("rwb") as file:
        file.write(b"a line\nanother\n")
        file.flush()
        with there.makefile("r", encoding="ascii", newline="\n") as text:
            assert text.readline() == "a line\n"
            assert text.readline() == "another\n"
            there.sendall(b"answer")
            assert file.read(6) == b"answer"
    here.sendall(b"still open")
    assert there.recv(100) == b"still open"


def test_the_channel_closes_with_its_last_file(ends: tuple[Any, Any]) -> None:
    here, there = ends
    file = here.makefile("wb")
    here.close()
    file.write(b"after close")
    file.close()
    assert there.read() == b"after close"
    assert here.state == "CLOSED"
    assert here.fileno() == -1


def test_http_client_reads_over_makefile(pki: Pki) -> None:
    import http.client

    from twapi_support import SMALL_PAGE

    with peers.ssl_server(pki.server, SMALL_PAGE) as server, connect(server.port, pki) as channel:
        connection = http.client.HTTPConnection("localhost", server.port)
        connection.sock = channel
        connection.putrequest("GET", "/", skip_accept_encoding=True)
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 200
        assert b"small" in response.read()
        connection.close()


# --- options


DEFAULTS = {
    "blocking": True,
    "buffering": "none",
    "buffersize": 4096,
    "encoding": None,
    "eofchar": "",
    "translation": "binary",
    "ragged_eof": "error",
    "spin": False,
    "connecting": False,
    "error": None,
}


def test_all_options(pair: tuple[Any, Any]) -> None:
    here, there = pair
    options = here.configure()
    assert {name: options[name] for name in DEFAULTS} == DEFAULTS
    assert options["sockname"] == here.getsockname() == there.getpeername()
    assert options["peername"] == here.getpeername() == there.getsockname()
    tls_only = {"credentials", "context", "verifier"}
    own = tls_only if isinstance(here, tls.TlsChannel) else set()
    assert options.keys() == {*DEFAULTS, "keepalive", "nodelay", "sockname", "peername", *own}
    for name, value in options.items():
        assert here.cget(name) == value


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("blocking", [False, True, 0, 1]),
        ("buffering", ["full", "line", "none"]),
        ("buffersize", [10, 1_000_000, 4096]),
        ("encoding", ["utf-8", "iso8859-1", None]),
        ("eofchar", ["\x1a", "", ("\x1a", "")]),
        ("translation", ["auto", "lf", "cr", "crlf", ("auto", "crlf"), "binary"]),
        ("keepalive", [True, False]),
        ("nodelay", [False, True]),
        ("ragged_eof", ["eof", "error"]),
        ("spin", [True, False]),
    ],
)
def test_setting_options(ends: tuple[Any, Any], option: str, values: list[Any]) -> None:
    here, _ = ends
    for value in values:
        assert here.configure(**{option: value}) is None
        assert here.cget(option) == value


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("blocking", "yes", TypeError),
        ("blocking", 2, TypeError),
        ("buffering", "some", ValueError),
        ("buffering", None, ValueError),
        ("buffersize", 9, ValueError),
        ("buffersize", 1_000_001, ValueError),
        ("buffersize", "10", TypeError),
        ("buffersize", True, TypeError),
        ("encoding", "klingon", LookupError),
        ("encoding", 8, TypeError),
        ("encoding", "base64", LookupError),
        ("eofchar", "ab", ValueError),
        ("eofchar", "é", ValueError),
        ("eofchar", 26, TypeError),
        ("translation", "lfcr", ValueError),
        ("translation", ("lf",), TypeError),
        ("translation", ("lf", "nl"), ValueError),
        ("translation", ("lf", []), (TypeError, ValueError)),
        ("translation", 1, TypeError),
        ("keepalive", "on", TypeError),
        ("nodelay", None, TypeError),
        ("ragged_eof", True, ValueError),
        ("spin", 2, TypeError),
        ("colour", "red", ValueError),
    ],
)
def test_bad_options_change_nothing(
    ends: tuple[Any, Any], option: str, value: Any, kind: Any
) -> None:
    here, _ = ends
    before = here.configure()
    with pytest.raises(kind):
        # All values are checked before the first is set.
        here.configure(buffering="full", nodelay=False, encoding="utf-16", **{option: value}) if (
            option not in ("buffering", "nodelay", "encoding")
        ) else here.configure(ragged_eof="eof", **{option: value})
    assert here.configure() == before


@pytest.mark.parametrize(
    "option",
    ["peername", "sockname", "error", "connecting", "credentials", "context", "verifier"],
)
def test_read_only_options(ends: tuple[Any, Any], option: str) -> None:
    here, _ = ends
    here.cget(option)
    with pytest.raises(ValueError, match=f"{option} is a read-only option"):
        here.configure(**{option: None})


def test_an_unknown_option_names_the_known(ends: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"'colour'.*\bbuffersize\b.*\bverifier\b"):
        ends[0].cget("colour")
    with plain_pair() as (here, _), pytest.raises(ValueError):
        here.cget("verifier")


def test_socket_options_are_the_systems(ends: tuple[Any, Any]) -> None:
    here, _ = ends
    for option, number in (
        ("keepalive", (socket.SOL_SOCKET, socket.SO_KEEPALIVE)),
        ("nodelay", (socket.IPPROTO_TCP, socket.TCP_NODELAY)),
    ):
        for value in (True, False):
            here.configure(**{option: value})
            sock = socket.fromfd(here.fileno(), socket.AF_INET, socket.SOCK_STREAM)
            with sock:
                assert bool(sock.getsockopt(*number)) is value


def test_the_options_of_a_connection(pki: Pki) -> None:
    creds = client_credentials(pki)

    def verify(channel: Any, context: Any) -> bool:
        return True

    options = {"credentials": creds, "verifier": verify}
    with tls_pair(pki, client=options) as (here, _):
        assert here.cget("credentials") is creds
        assert here.cget("verifier") is verify
        assert here.cget("context") is here.context
        assert tls.sspi_remote_cert(here.cget("context")) == here.peer_certificate()


def test_no_option_looks_a_name_up(ends: tuple[Any, Any], monkeypatch: Any) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a name was looked up")

    for name in ("getaddrinfo", "gethostbyaddr", "getnameinfo", "getfqdn"):
        monkeypatch.setattr(socket, name, never)
    assert ends[0].configure()["peername"][0] == HOST


def test_options_of_a_closed_channel(ends: tuple[Any, Any]) -> None:
    here, _ = ends
    here.configure(encoding="utf-8")
    here.close()
    options = here.configure()
    assert options["encoding"] == "utf-8"
    assert options["peername"] is None
    assert options["error"] is None
    for name in ("peername", "sockname", "nodelay"):
        with pytest.raises(OSError):
            here.cget(name)
    with pytest.raises(OSError):
        here.configure(nodelay=True)


def test_facts_of_a_connection(pki: Pki) -> None:
    for version in ("1.2", "1.3"):
        with tls_pair(pki, version=version) as (here, there):
            for end in (here, there):
                assert end.version() == f"TLSv{version}"
                name, protocol, bits = end.cipher()
                assert protocol == f"TLSv{version}"
                assert bits in (128, 256)
                assert name
                assert end.facts().sni == "localhost"
            kinds = ["tls-server-end-point", "tls-exporter"]
            for kind in kinds + (["tls-unique"] if version == "1.2" else []):
                binding = here.get_channel_binding(kind)
                assert binding == there.get_channel_binding(kind)
                assert binding


# --- how it ends: half close, truncation, errors


def test_half_close_and_reading_on(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.sendall(b"request")
    here.shutdown(socket.SHUT_WR)
    assert there.read() == b"request"
    there.sendall(b"a long answer " * 10_000)
    there.close()
    assert here.read() == b"a long answer " * 10_000
    assert here.eof()


def test_half_close_behind_what_waits(ends: tuple[Any, Any]) -> None:
    """Non-blocking with a full socket: it waits its turn, and flush does it."""
    here, there = ends
    here.setblocking(False)
    size = fill(here)
    here.write(b"queued")
    here.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        here.write(b"more")
    reading = Work(there.read)
    end = time.monotonic() + LIMIT
    while here.pending("output") and time.monotonic() < end:
        selector_wait(here)
        with contextlib.suppress(BlockingIOError):
            here.flush()
    here.flush()
    data = reading.result()  # ends: close_notify and FIN are there
    assert len(data) == size + 6
    assert data.endswith(b"queued")


def test_half_close_by_the_loop(pair: tuple[Any, Any]) -> None:
    """The same with an event loop: it sends the rest, and then the end."""
    here, there = pair

    async def main() -> tuple[int, bytes]:
        here.setblocking(False)
        here.event("readable", lambda: here.event("readable", None))
        size = fill(here)
        here.write(b"queued")
        here.shutdown(socket.SHUT_WR)
        return size, await asyncio.to_thread(there.read)

    size, data = run(main())
    assert len(data) == size + 6
    assert data.endswith(b"queued")


def test_close_beside_a_writer_that_holds_on(pair: tuple[Any, Any]) -> None:
    """What another thread kept us from sending is an error, not lost unsaid."""
    here, _ = pair
    here.configure(buffering="full")
    here.write(b"waits in the buffer")
    here.settimeout(0.2)
    held = threading.Event()
    done = threading.Event()

    def holder() -> None:
        with here._write_lock:
            held.set()
            done.wait(LIMIT)

    holding = Work(holder)
    assert held.wait(LIMIT)
    try:
        with pytest.raises(TimeoutError):
            here.close()
    finally:
        done.set()
    holding.result()
    assert here.closed
    assert here.fileno() == -1


def test_writing_after_half_close_raises(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.shutdown(socket.SHUT_WR)
    here.shutdown(socket.SHUT_WR)
    for call in (here.send, here.sendall, here.write, here.puts):
        with pytest.raises(BrokenPipeError):
            call(b"more")
    there.sendall(b"reading goes on")
    assert here.recv(100) == b"reading goes on"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_half_close_sends_close_notify_and_fin(pki: Pki, version: str) -> None:
    """Python's ssl sees the alert, a plain socket below it the FIN."""
    seen: list[Any] = []

    def handler(connection: ssl.SSLSocket) -> None:
        seen.append(connection.recv(100))
        seen.append(connection.recv(100))  # b"": close_notify, else SSLEOFError
        seen.append(socket.socket.recv(connection, 1))  # the FIN
        connection.sendall(b"still answering")
        connection.unwrap()

    with (
        peers.ssl_server(pki.server, handler, version=version) as server,
        connect(server.port, pki) as channel,
    ):
        channel.configure(buffering="full")
        channel.write(b"bye")
        tls.tls_close(channel, "write")
        assert channel.read() == b"still answering"
        assert seen == [b"bye", b"", b""]
        assert server.errors == []


def test_shutdown_of_the_reading_side_alone(pair: tuple[Any, Any]) -> None:
    here, there = pair
    with pytest.raises(OSError):
        here.shutdown(socket.SHUT_RD)
    here.sendall(b"open")
    assert there.recv(10) == b"open"


def test_writing_goes_on_after_the_peers_close_notify(ends: tuple[Any, Any]) -> None:
    here, there = ends
    there.shutdown(socket.SHUT_WR)
    assert here.recv(10) == b""
    assert here.recv(10) == b""
    here.sendall(b"one-sided")
    assert there.recv(100) == b"one-sided"
    assert here.state == "OPEN"


def test_a_write_that_tcp_refuses_is_a_broken_pipe(pair: tuple[Any, Any]) -> None:
    """The peer has closed: nothing is dropped silently."""
    here, there = pair
    there.close()
    assert here.recv(10) == b""
    # Winsock has no EPIPE: it says that the connection was reset or aborted.
    refused = ConnectionError if WINDOWS else BrokenPipeError
    with pytest.raises(refused):
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            here.send(b"into the void")
    with pytest.raises(refused):
        here.send(b"again")


def truncate(pki: Pki, channel: Any, server: Any) -> None:
    """The peer's TCP ends without close_notify."""
    sock = socket.socket(fileno=server.fileno())
    try:
        sock.shutdown(socket.SHUT_WR)
    finally:
        sock.detach()


@pytest.mark.parametrize(
    "read",
    [lambda c: c.recv(100), lambda c: c.read(), lambda c: c.readline(), lambda c: c.gets()],
    ids=["recv", "read", "readline", "gets"],
)
@pytest.mark.parametrize("encoding", [None, "utf-8"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("role", ["client", "server"])
def test_truncation_is_data_first_then_an_error(
    pki: Pki, read: Any, encoding: Any, version: str, role: str
) -> None:
    with tls_pair(pki, version=version) as ends:
        here, there = ends if role == "client" else reversed(ends)
        there.sendall(b"the beginning of")
        truncate(pki, here, there)
        here.configure(encoding=encoding)
        data = read(here)
        assert data in (b"the beginning of", "the beginning of")
        for _ in range(2):
            with pytest.raises(tls.TLSTruncatedError) as caught:
                read(here)
            assert isinstance(caught.value, EOFError)
        assert here.cget("error") is caught.value
        assert here.state == "CLOSED"


def test_a_half_record_is_truncation(pki: Pki) -> None:
    with tls_pair(pki) as (here, there):
        sock = socket.socket(fileno=there.fileno())
        try:
            sock.sendall(b"\x17\x03\x03\x00\x40half")
            sock.shutdown(socket.SHUT_WR)
        finally:
            sock.detach()
        with pytest.raises(tls.TLSTruncatedError):
            here.recv(10)


def test_ragged_eof(pki: Pki) -> None:
    with tls_pair(pki) as (here, there):
        here.configure(ragged_eof="eof")
        there.sendall(b"all there is")
        truncate(pki, here, there)
        assert here.read() == b"all there is"
        assert here.read() == b""
        assert here.eof()
        assert here.cget("error") is None
        here.sendall(b"writing goes on")
        assert there.recv(100) == b"writing goes on"


def test_ragged_eof_of_recv_into(pki: Pki) -> None:
    with tls_pair(pki) as (here, there):
        here.configure(ragged_eof="eof")
        truncate(pki, here, there)
        assert here.recv_into(bytearray(10)) == 0


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_plaintext_before_a_bad_record_and_the_first_error_stays(pki: Pki, version: str) -> None:
    with tls_pair(pki, version=version) as (here, there):
        there.sendall(b"good")
        damage(there)
        assert here.read(4) == b"good"
        errors = []
        for call in (
            lambda: here.recv(10),
            here.read,
            here.readline,
            lambda: here.send(b"x"),
            lambda: here.write(b"x"),
            lambda: tls.tls_handshake(here),
        ):
            with pytest.raises(tls.TLSError) as caught:
                call()
            errors.append(caught.value)
        assert all(error is errors[0] for error in errors)
        assert errors[0].name in ("SEC_E_MESSAGE_ALTERED", "SEC_E_DECRYPT_FAILURE")
        assert errors[0].alert_sent == "bad_record_mac"
        assert here.cget("error") is errors[0]
        assert tls.tls_state(here) == "CLOSED"
        assert here.fileno() == -1
        # The peer was told.
        with pytest.raises(tls.TLSAlertError) as told:
            there.recv(10)
        assert told.value.alert_received == "bad_record_mac"


def test_read_gives_good_data_before_a_bad_record(pki: Pki) -> None:
    """One read meets both: the data is its result, the error comes next."""
    with tls_pair(pki) as (here, there):
        there.sendall(b"good")
        damage(there)
        assert here.read(100) == b"good"
        with pytest.raises(tls.TLSError):
            here.read(100)


def second_handle(channel: Any) -> socket.socket:
    """The channel's socket once more, for what goes past TLS."""
    with channel._socket() as sock:
        return sock.dup()


def to_the_end(sock: socket.socket) -> bytes:
    sock.settimeout(LIMIT)
    return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_peer_that_sent_more_can_read_our_alert(pki: Pki, version: str) -> None:
    """Closing with bytes unread would reset the connection under the alert."""
    with tls_pair(pki, version=version) as (here, there), second_handle(there) as beneath:
        there.sendall(b"good")
        assert here.recv(4) == b"good"
        here.setblocking(False)
        beneath.sendall(NOBODYS + bytes(40_000))  # more than is received at once
        assert select.select([here], [], [], LIMIT)[0]
        with pytest.raises(tls.TLSError):
            here.recv(10)
        assert here.fileno() == -1
        assert to_the_end(beneath)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_peer_that_sends_on_can_read_our_alert(pki: Pki, version: str) -> None:
    """Who may wait gives it half a second to finish and to hang up."""
    with tls_pair(pki, version=version) as (here, there), second_handle(there) as beneath:

        def send_then_read() -> bytes:
            with there, beneath:
                beneath.sendall(NOBODYS + bytes(4_000_000))
                answer = to_the_end(beneath)
                there.abort()
                return answer

        peer = Work(send_then_read)
        with pytest.raises(tls.TLSError):
            here.recv(10)
        assert peer.result()


def reset(channel: Any) -> None:
    """Ends the channel's TCP by a reset."""
    with socket.fromfd(channel.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    channel.abort()


def test_a_reset_is_a_connection_reset(pair: tuple[Any, Any]) -> None:
    here, there = pair
    reset(there)
    for _ in range(2):
        with pytest.raises(ConnectionResetError) as caught:
            here.recv(10)
    if isinstance(here, tls.TlsChannel):
        assert here.state == "CLOSED"
    assert here.cget("error") is caught.value
    with pytest.raises(OSError):
        here.send(b"x")


# --- closing


def test_close_is_a_clean_end_for_the_peer_and_idempotent(pair: tuple[Any, Any]) -> None:
    here, there = pair
    here.close()
    here.close()
    here.abort()
    assert here.closed
    assert here.fileno() == -1
    assert there.recv(10) == b""
    with pytest.raises(OSError):
        here.recv(1)
    with pytest.raises(OSError):
        here.send(b"x")
    with pytest.raises(OSError):
        here.flush()


def test_with(pki: Pki) -> None:
    with tls_pair(pki) as (here, there):
        with here as same:
            assert same is here
        assert here.closed
        with pytest.raises(ZeroDivisionError), there:
            raise ZeroDivisionError
        assert there.closed


def test_a_forgotten_channel_warns_and_closes(pki: Pki) -> None:
    one, other = tcp_pair()
    channel = tls.TcpChannel(one)
    with other:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del channel
            gc.collect()
        assert [str(w.message) for w in caught if w.category is ResourceWarning]
        assert other.recv(1) == b""


@pytest.mark.parametrize("call", ["recv", "read", "readline", "recv_into", "send"])
def test_closing_from_another_thread_ends_a_wait(pair: tuple[Any, Any], call: str) -> None:
    here, _ = pair
    here.settimeout(None)
    begun = threading.Event()

    def wait() -> Any:
        begun.set()
        if call == "recv":
            return here.recv(10)
        if call == "recv_into":
            return here.recv_into(bytearray(10))
        if call == "send":
            while True:
                here.send(bytes(1 << 20))
        return getattr(here, call)()

    waiting = Work(wait)
    assert begun.wait(LIMIT)
    time.sleep(0.05)  # not for the result: it is right without it, and less telling
    begin = time.monotonic()
    here.abort() if call == "send" else here.close()
    error = waiting.error()
    assert time.monotonic() - begin < LIMIT
    assert isinstance(error, OSError)
    assert "closed" in str(error)


def test_closing_from_a_third_thread_ends_reader_and_writer(ends: tuple[Any, Any]) -> None:
    here, _ = ends
    here.settimeout(None)

    def write() -> None:
        while True:
            here.sendall(bytes(1 << 20))

    working = [Work(here.recv, 10), Work(write)]
    begin = time.monotonic()
    Work(here.close).wait()
    for work in working:
        error = work.error()
        assert isinstance(error, OSError)
        assert "closed" in str(error)
    # Bounded: the writer had the peer's window closed before it.
    assert time.monotonic() - begin < 2 * CLOSE_TIMEOUT


def test_closing_does_not_wait_for_ever_for_a_peer_that_does_not_read(
    ends: tuple[Any, Any],
) -> None:
    here, _ = ends
    here.setblocking(False)
    fill(here)
    with pytest.raises(BlockingIOError):
        here.write(bytes(1 << 22))
    assert here.pending("output")
    here.settimeout(0.2)
    begin = time.monotonic()
    with pytest.raises(OSError):
        # What was written is lost, and its writer is told.
        here.close()
    assert time.monotonic() - begin < LIMIT / 2
    assert here.closed
    assert here.fileno() == -1


def test_closing_a_non_blocking_channel_sends_the_rest_from_the_loop(pki: Pki) -> None:
    async def main() -> None:
        import asyncio

        with tls_pair(pki) as (here, there):
            here.setblocking(False)
            here.event("readable", lambda: None)
            sent = fill(here)
            more = 100_000
            try:
                assert here.write(bytes(more)) == more
            except BlockingIOError as error:
                more = error.characters_written
            begin = time.monotonic()
            here.close()
            assert time.monotonic() - begin < 1
            assert here.closed
            got = await asyncio.to_thread(there.read)
            assert len(got) == sent + more

    run(main())


# --- before OPEN


def test_writes_before_open_are_queued_within_a_bound(pki: Pki) -> None:
    """And sent once, in order, after the verdict."""
    order: list[str] = []

    def verify(channel: Any, context: Any) -> bool:
        order.append("verdict")
        return True

    got: list[bytes] = []

    def handler(connection: ssl.SSLSocket) -> None:
        order.append("opened")
        data = b""
        while piece := connection.recv(1 << 18):
            data += piece
        got.append(data)
        connection.unwrap()

    data = random.Random(7).randbytes(QUEUE_LIMIT)
    go = threading.Event()
    with peers.ssl_server(pki.server, handler) as server:
        options = {"verifier": verify, "socketcmd": held_back(go)}
        with connect(server.port, pki, async_=True, **options) as channel:
            channel.setblocking(False)
            assert channel.write(data[:1000]) == 1000
            assert channel.send(data[1000:2000]) == 1000
            with pytest.raises(BlockingIOError) as caught:
                channel.sendall(data[2000:] + b"too much")
            assert caught.value.characters_written == len(data) - 2000
            with pytest.raises(BlockingIOError):
                channel.send(b"x")
            assert channel.pending("output") == len(data)
            assert tls.tls_state(channel) == "CLIENTINIT"
            go.set()
            channel.settimeout(LIMIT)
            channel.flush()
            assert order[0] == "verdict"
            channel.shutdown(socket.SHUT_WR)
            assert channel.recv(1) == b""
    assert got == [data]


def test_nothing_that_was_queued_moves_when_the_verdict_is_no(pki: Pki) -> None:
    go = threading.Event()
    with peers.ssl_server(pki.server) as server:
        options = {"verifier": lambda *_: False, "socketcmd": held_back(go)}
        with connect(server.port, pki, async_=True, **options) as channel:
            channel.setblocking(False)
            channel.write(b"a secret")
            go.set()
            channel.settimeout(LIMIT)
            with pytest.raises(tls.TLSVerificationError):
                channel.flush()
            assert channel.pending("output") == 0
            with pytest.raises(tls.TLSVerificationError):
                channel.write(b"more")
    assert server.accepted == []


def test_reads_before_open(pki: Pki) -> None:
    with silent_server() as listener:
        with connect(listener.getsockname()[1], pki, async_=True) as channel:
            channel.setblocking(False)
            for call in (lambda: channel.recv(1), channel.read, channel.gets):
                with pytest.raises(BlockingIOError):
                    call()
            channel.settimeout(0.05)
            with pytest.raises(TimeoutError):
                channel.recv(1)
            assert tls.tls_state(channel) == "NEGOTIATING"


def test_connecting_and_the_real_cause(pki: Pki) -> None:
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    channel = tls.tls_socket(HOST, port, async_=True, credentials=client_credentials(pki))
    with channel:
        for call in (
            lambda: channel.recv(1),
            lambda: channel.send(b"x"),
            lambda: tls.tls_handshake(channel),
        ):
            with pytest.raises(ConnectionRefusedError) as caught:
                call()
            assert channel.cget("error") is caught.value
        assert channel.cget("connecting") is False
        assert tls.tls_state(channel) == "CLOSED"


def test_connecting_says_so(pki: Pki) -> None:
    go = threading.Event()
    with silent_server() as listener:
        channel = tls.tls_socket(
            HOST, listener.getsockname()[1], async_=True, socketcmd=held_back(go), timeout=LIMIT
        )
        with channel:
            assert channel.cget("connecting") is True
            assert channel.fileno() == -1
            go.set()
            listener.accept()[0].close()
            with pytest.raises(OSError):
                tls.tls_handshake(channel)
            assert channel.cget("connecting") is False


# --- plain channels


def test_tcp_channel_takes_the_socket_over() -> None:
    one, other = tcp_pair()
    one.settimeout(1.5)
    number = one.fileno()
    with other, tls.TcpChannel(one) as channel:
        assert one.fileno() == -1
        assert channel.fileno() == number
        assert channel.gettimeout() == 1.5
        other.sendall(b"plain\n")
        assert channel.gets() == b"plain"
        with pytest.raises(TypeError):
            tls.tls_state(channel)


def test_tcp_channel_wants_a_socket() -> None:
    for thing in (None, 7, io.BytesIO()):
        with pytest.raises(TypeError):
            tls.TcpChannel(thing)  # type: ignore[arg-type]
    with socket.socket() as sock:
        secure = ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")
        with secure, pytest.raises(TypeError):
            tls.TcpChannel(secure)


def test_event_is_there(pki: Pki) -> None:
    """The one test here that needs a loop; the rest is in test_events.py."""

    async def main() -> None:
        with tls_pair(pki) as (here, there):
            here.sendall(b"x")
            assert await first(there, "readable", lambda: there.recv(1)) == b"x"

    run(main())
