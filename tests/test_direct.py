"""The small calls, which are C: recv, recv_into, send, sendall.

The ordinary case, bytes straight from or to a session, is done without
Python; every other is Python's. Both must mean the same, and the channel's
state, which lives in C, must be as safe as a Python attribute.
"""

from __future__ import annotations

import array
import errno
import gc
import inspect
import signal
import struct
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from certs import Pki
from channels import Work, pair_of, tls_pair
from twapi_support import LIMIT

import twapi_tls as tls
from twapi_tls import _native
from twapi_tls.streams import Streams

pytestmark = pytest.mark.timeout(60)

CALLS = ("recv", "recv_into", "send", "sendall")


@pytest.fixture(params=["plain", "TLS", "TLS in TLS"])
def pair(request: pytest.FixtureRequest, pki: Pki) -> Iterator[tuple[Any, Any]]:
    """Two ends: one kind goes the direct way, the others never."""
    with pair_of(request.param, pki) as ends:
        yield ends


@pytest.fixture
def ends(pki: Pki) -> Iterator[tuple[Any, Any]]:
    with tls_pair(pki) as both:
        yield both


# --- arguments


def test_arguments_mean_the_same_either_way(pair: tuple[Any, Any]) -> None:
    here, there = pair
    there.sendall(b"abcdefghijklmnop")
    assert here.recv(1) == b"a"
    assert here.recv(1, 0) == b"b"
    assert here.recv(bufsize=1) == b"c"
    assert here.recv(1, flags=0) == b"d"
    assert here.recv(flags=0, bufsize=1) == b"e"
    assert here.recv(True) == b"f"
    assert here.recv(0) == b""
    room = bytearray(4)
    assert here.recv_into(room, 1) == 1
    assert here.recv_into(buffer=room, nbytes=1) == 1
    assert here.recv_into(memoryview(room)[1:3]) == 2
    assert bytes(room) == b"hij\0"
    assert here.recv_into(array.array("I", [0]), True) == 1
    assert here.recv_into(bytearray()) == 0
    assert here.recv(100) == b"lmnop"


def test_wrong_arguments_are_refused_either_way(pair: tuple[Any, Any]) -> None:
    here, there = pair
    there.sendall(b"kept")
    for bad, error in (
        (lambda: here.recv(), TypeError),
        (lambda: here.recv("1"), TypeError),
        (lambda: here.recv(1.0), TypeError),
        (lambda: here.recv(-1), ValueError),
        (lambda: here.recv(1 << 80), (ValueError, OverflowError)),
        (lambda: here.recv(1, 2), ValueError),
        (lambda: here.recv(1, 0, 0), TypeError),
        (lambda: here.recv(1, bufsize=1), TypeError),
        (lambda: here.recv(1, size=1), TypeError),
        (lambda: here.recv_into(b"xy"), TypeError),
        (lambda: here.recv_into("xy"), TypeError),
        (lambda: here.recv_into(memoryview(bytearray(8))[::2]), TypeError),
        (lambda: here.recv_into(bytearray(2), 3), ValueError),
        (lambda: here.recv_into(bytearray(2), -1), ValueError),
        (lambda: here.recv_into(bytearray(2), 1, 1), ValueError),
        (lambda: here.recv_into(bytearray(2), 1.0), TypeError),
        (lambda: here.send("text"), TypeError),
        (lambda: here.send(None), TypeError),
        (lambda: here.send(memoryview(b"abcd")[::2]), TypeError),
        (lambda: here.send(b"x", 1), ValueError),
        (lambda: here.sendall(), TypeError),
        (lambda: here.sendall("text"), TypeError),
        (lambda: here.sendall(b"x", flags=1), ValueError),
    ):
        with pytest.raises(error):
            bad()
    here.sendall(b"on")
    assert there.recv(10) == b"on"
    assert here.recv(10) == b"kept"


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="Python objects have buffers from Python 3.12 on (PEP 688)"
)
@pytest.mark.parametrize("call", ["recv_into", "send", "sendall"])
def test_what_a_buffer_raises_is_not_lost(pair: tuple[Any, Any], call: str) -> None:
    """Asked once, whatever it says: Ctrl-C, say."""
    here, _ = pair
    asked: list[int] = []

    class Moody:
        def __buffer__(self, flags: int) -> memoryview:
            asked.append(flags)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        getattr(here, call)(Moody())
    assert len(asked) == 1


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="Python objects have buffers from Python 3.12 on (PEP 688)"
)
def test_a_buffer_that_uses_the_channel(pair: tuple[Any, Any]) -> None:
    """What it reads ahead comes first, what it sends as well."""
    here, there = pair
    room = bytearray(10)

    class Busy:
        def __buffer__(self, flags: int) -> memoryview:
            if not seen:
                seen.append(here.readline())
                here.write(b"first ")
            return memoryview(room)

    seen: list[bytes] = []
    there.sendall(b"line\nrest")
    assert here.recv_into(Busy()) == 4
    assert seen == [b"line\n"]
    assert room[:4] == b"rest"
    seen.clear()
    there.sendall(b"line\n")
    here.sendall(Busy())
    expected = b"first first " + room
    got = b""
    while len(got) < len(expected):
        got += there.recv(100)
    assert got == expected


@pytest.mark.parametrize(
    "data",
    [b"12345678", bytearray(b"12345678"), memoryview(b"012345678")[1:], array.array("Q", [7])],
    ids=lambda data: type(data).__name__,
)
def test_every_kind_of_buffer_is_sent(pair: tuple[Any, Any], data: Any) -> None:
    here, there = pair
    assert here.send(data) == 8
    assert there.recv(100) == bytes(memoryview(data).cast("B"))
    assert here.sendall(data, 0) is None
    assert there.recv(100) == bytes(memoryview(data).cast("B"))
    assert here.send(b"") == 0
    assert here.sendall(b"") is None
    if isinstance(data, bytearray):
        data.extend(b"+")  # BufferError if a buffer of it were held
        del data[8:]


def test_signatures_and_documentation_are_those_of_python_methods() -> None:
    for cls in (tls.Channel, tls.TlsChannel, tls.TcpChannel):
        for name in CALLS:
            method = getattr(cls, name)
            assert method.__doc__
            first, *given = inspect.signature(method).parameters.values()
            assert first.name == "self"
            assert [one.kind for one in given] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * len(
                given
            )
            assert [one.default for one in given] == [inspect.Parameter.empty] + [0] * (
                len(given) - 1
            )


# --- outcomes


def test_nothing_there_is_the_same_error_either_way(pair: tuple[Any, Any]) -> None:
    here, _ = pair
    here.setblocking(False)
    room = bytearray(10)
    for call in (lambda: here.recv(10), lambda: here.recv(10, 0), lambda: here.recv_into(room)):
        with pytest.raises(BlockingIOError) as caught:
            call()
        assert caught.value.errno == errno.EAGAIN
        assert caught.value.characters_written == 0
        assert caught.value.__context__ is None
        assert here.blocked()


def test_blocked_tells_of_the_last_read(ends: tuple[Any, Any]) -> None:
    here, there = ends
    here.setblocking(False)
    with pytest.raises(BlockingIOError):
        here.recv(1)
    there.sendall(b"xy")
    here.setblocking(True)
    assert here.recv(1) == b"x"
    assert not here.blocked()


def test_timeouts_change_between_calls(ends: tuple[Any, Any]) -> None:
    here, there = ends
    for seconds in (0.01, 0.02):
        here.settimeout(seconds)
        assert here.gettimeout() == seconds
        with pytest.raises(tls.TLSTimeoutError):
            here.recv(1)
    here.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        here.recv(1)
    here.settimeout(None)
    reading = Work(here.recv, 10)
    there.sendall(b"at last")
    assert reading.result() == b"at last"


def test_what_was_read_ahead_or_queued_goes_first(ends: tuple[Any, Any]) -> None:
    here, there = ends
    there.sendall(b"one\ntwo\nthree")
    assert here.readline() == b"one\n"
    assert here.recv(4) == b"two\n"
    assert here.recv_into(bytearray(2)) == 2
    here.configure(buffering="full")
    here.write(b"first ")
    assert here.send(b"then ") == 5
    here.write(b"more ")
    here.sendall(b"last")
    got = b""
    while len(got) < 20:
        got += there.recv(100)
    assert got == b"first then more last"


def test_text_that_was_decoded_comes_back_as_bytes(ends: tuple[Any, Any]) -> None:
    here, there = ends
    here.configure(encoding="utf-8", translation="lf")
    there.sendall("äöü\nß".encode())
    assert here.readline() == "äöü\n"
    assert here.recv(10) == "ß".encode()
    there.sendall(b"x")
    assert here.recv(10) == b"x"


@pytest.mark.parametrize("call", ["recv", "recv_into"])
def test_an_end_without_close_notify(pki: Pki, call: str) -> None:
    """What the option says of it holds for C as well, again and again."""

    def read(channel: Any) -> Any:
        return channel.recv(10) if call == "recv" else channel.recv_into(bytearray(10))

    for ragged in ("eof", "error"):
        with tls_pair(pki) as (here, there):
            here.configure(ragged_eof=ragged)
            there.abort()
            for _ in range(2):
                if ragged == "eof":
                    assert not read(here)
                else:
                    with pytest.raises(tls.TLSTruncatedError) as caught:
                        read(here)
                    assert caught.value.__context__ is None
            assert here.eof() is (ragged == "eof")


@pytest.mark.parametrize("closes", ["close", "abort"])
def test_use_after_the_end(ends: tuple[Any, Any], closes: str) -> None:
    here, _ = ends
    getattr(here, closes)()
    for call in (
        lambda: here.recv(1),
        lambda: here.recv_into(bytearray(1)),
        lambda: here.send(b"x"),
        lambda: here.sendall(bytearray(b"x")),
    ):
        for _ in range(2):
            with pytest.raises(tls.TLSClosedError):
                call()


def test_writing_is_over_and_reading_goes_on(ends: tuple[Any, Any]) -> None:
    here, there = ends
    here.half_close()
    for call in (here.send, here.sendall):
        with pytest.raises(BrokenPipeError, match="closed for writing"):
            call(b"x")
    assert there.recv(1) == b""
    assert there.recv(1) == b""
    there.sendall(b"still")
    assert here.recv(10) == b"still"


@pytest.mark.parametrize("call", ["recv", "recv_into"])
def test_a_thread_that_reads_while_another_closes(ends: tuple[Any, Any], call: str) -> None:
    here, _ = ends
    started = threading.Event()

    def read() -> None:
        started.set()
        if call == "recv":
            here.recv(10)
        else:
            here.recv_into(bytearray(10))

    reading = Work(read)
    assert started.wait(LIMIT)
    here.abort()
    error = reading.error()
    assert isinstance(error, tls.TLSClosedError)


# --- subclasses


def test_a_subclass_may_override_a_call(ends: tuple[Any, Any]) -> None:
    """Who calls the channel gets the subclass's, which may call ours."""
    here, there = ends
    seen: list[str] = []

    class Loud(tls.TlsChannel):
        def recv(self, bufsize: int, flags: int = 0) -> bytes:
            seen.append("recv")
            return super().recv(bufsize, flags)

        def sendall(self, data: Any, flags: int = 0) -> None:
            seen.append("sendall")
            super().sendall(data)

    here.__class__ = Loud
    there.sendall(b"abc")
    assert here.recv(2) == b"ab"
    there.half_close()
    assert here.copy_to(here) == 1
    assert seen == ["recv", "recv", "sendall", "recv"]
    assert there.recv(10) == b"c"


def test_a_subclass_may_override_what_is_not_ordinary(ends: tuple[Any, Any]) -> None:
    here, there = ends

    class Own(tls.TlsChannel):
        def _raise_closed(self) -> Any:
            raise tls.TLSClosedError("mine")

    here.__class__ = Own
    there.sendall(b"x")
    assert here.recv(1) == b"x"
    here.close()
    with pytest.raises(tls.TLSClosedError, match="mine"):
        here.recv(1)
    with pytest.raises(tls.TLSClosedError, match="mine"):
        here.send(b"x")


def test_another_transport_in_its_place_is_asked(ends: tuple[Any, Any]) -> None:
    """Nothing goes past what the channel runs over now."""
    here, there = ends
    below = here._io

    class Between:
        def __getattr__(self, name: str) -> Any:
            return getattr(below, name)

        def recv(self, n: int, timeout: float | None = None, /) -> bytes | None:
            data: bytes | None = below.recv(n, timeout)
            return data and data.upper()

    here._io = Between()
    there.sendall(b"abc")
    assert here.recv(10) == b"ABC"
    here._io = below
    there.sendall(b"abc")
    assert here.recv(10) == b"abc"


# --- the state


def test_half_a_channel_is_harmless() -> None:
    """Made without __init__, or by one that failed: errors, no crash, no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cls in (_native.DirectStream, Streams, tls.Channel, tls.TlsChannel):
            half: Any = cls.__new__(cls, 1, two=3)
            for usable in (False, True):
                half._usable = usable
                for name, argument in (
                    ("recv", 1),
                    ("recv_into", bytearray(1)),
                    ("send", b"x"),
                    ("sendall", b"x"),
                ):
                    with pytest.raises((AttributeError, OSError)):
                        getattr(half, name)(argument)
            with pytest.raises(AttributeError):
                _ = half._ahead
            del half
        gc.collect()


def test_the_state_keeps_its_types(ends: tuple[Any, Any]) -> None:
    here, _ = ends
    for name in ("_usable", "_closed", "_io", "_timeout", "_queue"):
        with pytest.raises((AttributeError, TypeError)):
            delattr(here, name)
    for bad in (-1.0, "1"):
        with pytest.raises((TypeError, ValueError)):
            here._timeout = bad
    for name in ("_ahead", "_queue", "_write_lock"):
        kept = getattr(here, name)
        with pytest.raises((AttributeError, TypeError)):
            setattr(here, name, bytearray())
        setattr(here, name, kept)
        assert getattr(here, name) is kept
    half = Streams.__new__(Streams)
    with pytest.raises(TypeError):
        half._queue = b""  # type: ignore[assignment]


def test_a_channel_in_a_cycle_is_collected(pki: Pki) -> None:
    with tls_pair(pki) as (here, there):
        here.me = here
        here.call = here.recv
        gone = weakref.ref(here)
        here.owned = False  # no warning that nobody closed it
        del here
    # the fixture's own names went with the block
    gc.collect()
    assert gone() is None
    assert there.closed


@pytest.mark.skipif(not hasattr(sys, "getallocatedblocks"), reason="only CPython counts its blocks")
@pytest.mark.parametrize("kind", ["bytes", "would block", "closed", "arguments"])
def test_a_call_leaves_nothing_behind(ends: tuple[Any, Any], kind: str) -> None:
    here, there = ends

    def once() -> None:
        if kind == "bytes":
            here.sendall(b"x" * 100)
            there.recv_into(bytearray(50))
            there.recv(50)
            return
        with pytest.raises((OSError, ValueError)):
            if kind == "arguments":
                here.recv(1, 1)
            else:
                here.recv(1)

    if kind == "would block":
        here.setblocking(False)
    elif kind == "closed":
        here.close()
    for _ in range(50):
        once()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(1000):
        once()
    gc.collect()
    assert sys.getallocatedblocks() - before < 500


# --- threads


def test_a_turn_is_a_lock_that_its_holder_takes_again() -> None:
    turn = _native.Turn()
    assert turn.acquire()
    with turn:
        assert turn.acquire(0)
        assert Work(turn.acquire, 0).result() is False
        assert Work(turn.acquire, 0.01).result() is False
        assert isinstance(Work(turn.release).error(), RuntimeError)
        turn.release()
    assert Work(turn.acquire, 0).result() is False
    waiting = Work(lambda: turn.acquire() and turn.release())
    timed = Work(lambda: turn.acquire(LIMIT) and turn.release())
    turn.release()
    for one in (waiting, timed):
        assert one.result() is None
    with pytest.raises(RuntimeError):
        turn.release()
    with pytest.raises(ZeroDivisionError), turn:
        _ = 1 // 0
    assert Work(lambda: turn.acquire(0)).result()
    for bad in ("1", -1):
        with pytest.raises((TypeError, ValueError)):
            turn.acquire(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _native.Turn(1)  # type: ignore[call-arg]
    held = _native.Turn()
    held.acquire()
    del held


def test_a_turn_lets_one_thread_in_at_a_time() -> None:
    turn = _native.Turn()
    inside = 0

    def work() -> int:
        nonlocal inside
        most = 0
        for _ in range(3000):
            with turn:
                inside += 1
                with turn:
                    most = max(most, inside)
                inside -= 1
        return most

    threads = [Work(work) for _ in range(4)]
    assert {thread.result() for thread in threads} == {1}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no interval timer")
def test_a_signal_reaches_who_waits_for_a_turn() -> None:
    """Its handler runs, and the wait goes on, or ends with what it raises."""
    turn = _native.Turn()
    taken, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            taken.set()
            assert leave.wait(LIMIT)

    holder = Work(hold)
    assert taken.wait(LIMIT)
    runs: list[int] = []

    def handler(number: int, _: object) -> None:
        runs.append(number)
        if len(runs) == 2:
            raise InterruptedError("enough")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        with pytest.raises(InterruptedError, match="enough"):
            turn.acquire()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        leave.set()
    holder.result()
    assert turn.acquire(LIMIT)
    turn.release()


def test_messages_of_several_threads_stay_whole(ends: tuple[Any, Any]) -> None:
    """However they are sent: C's way, Python's, or through the queue."""
    here, there = ends
    here.configure(buffering="full", buffersize=4096)
    rounds, size = 60, 40_000

    def send_whole(data: bytes) -> None:
        assert here.send(data) == len(data)

    ways: list[Callable[[bytes], object]] = [
        here.sendall,
        send_whole,
        lambda data: here.sendall(data, 0),
        here.write,
    ]

    def send(number: int) -> None:
        for turn in range(rounds):
            ways[number](struct.pack("<II", number, turn) * (size // 8))
        here.flush()

    threads = [Work(send, number) for number in range(len(ways))]
    last = [-1] * len(ways)
    for _ in range(rounds * len(ways)):
        got = bytearray()
        while len(got) < size:
            got += there.recv(size - len(got))
        number, turn = struct.unpack("<II", got[:8])
        assert got == struct.pack("<II", number, turn) * (size // 8)
        assert turn == last[number] + 1
        last[number] = turn
    for thread in threads:
        thread.result()


def test_options_change_while_another_thread_calls(ends: tuple[Any, Any]) -> None:
    """What decides is read by C while Python writes it.

    Each blocking call waits for the GIL, 5 ms or 15, where the other thread never
    rests: so not too many.
    """
    here, there = ends
    over = threading.Event()

    def change() -> int:
        changes = 0
        while not over.is_set():
            here.settimeout((None, 5.0, 7.5)[changes % 3])
            here.configure(ragged_eof=("eof", "error")[changes % 2])
            changes += 1
        return changes

    changing = Work(change)
    try:
        for number in range(200):
            here.sendall(struct.pack("<I", number))
            assert there.recv(4) == struct.pack("<I", number)
            there.send(b"ok")
            assert here.recv(2) == b"ok"
    finally:
        over.set()
    assert changing.result() > 0
