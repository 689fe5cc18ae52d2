"""Events: when handlers run, from where, and on which loops."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib.util
import selectors
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import peers
import pytest
from certs import Pki
from channels import Work, clog, drain, held_back, new_deaf_loop, plain_pair, tls_pair
from twapi_support import (
    HOST,
    LIMIT,
    answer_lines,
    client_credentials,
    connect,
    first,
    server_credentials,
    serving,
    silent_server,
    tls_server,
    wait,
)

import twapi_tls as tls
from twapi_tls.pollers import ThreadPollers, poller_of, select_ready

pytestmark = pytest.mark.timeout(30)


def new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class Setting(NamedTuple):
    """What a test runs in."""

    new_loop: Callable[[], asyncio.AbstractEventLoop]
    version: str  # of TLS


def settings() -> list[Any]:
    """Each kind of loop, each version of TLS; both of these on the first."""
    have_uvloop = importlib.util.find_spec("uvloop") is not None
    if have_uvloop:
        # The first opens a pipe for signals that libuv keeps for good.
        new_uvloop().close()
    return [
        pytest.param(Setting(asyncio.SelectorEventLoop, "1.3"), id="selector"),
        pytest.param(Setting(asyncio.SelectorEventLoop, "1.2"), id="selector-1.2"),
        pytest.param(
            Setting(new_uvloop, "1.3"),
            id="uvloop",
            marks=pytest.mark.skipif(not have_uvloop, reason="uvloop is not installed"),
        ),
        pytest.param(Setting(new_deaf_loop, "1.2"), id="thread-1.2"),
    ]


Runner = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=settings())
def setting(request: pytest.FixtureRequest) -> Setting:
    made: Setting = request.param
    return made


@pytest.fixture
def run(setting: Setting) -> Iterator[Runner]:
    """Runs a coroutine on each kind of loop; nothing may reach the loop's
    exception handler."""
    reports: list[dict[str, Any]] = []

    def runner(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=setting.new_loop) as runner:
            runner.get_loop().set_exception_handler(lambda _, told: reports.append(told))
            return runner.run(asyncio.wait_for(main, 4 * LIMIT))

    yield runner
    gc.collect()
    assert reports == []


@pytest.fixture
def version(request: pytest.FixtureRequest) -> str:
    """Of TLS; 1.3 in a test that has its own loop, or none."""
    if "setting" not in request.fixturenames:
        return "1.3"
    setting: Setting = request.getfixturevalue("setting")
    return setting.version


@pytest.fixture
def creds(pki: Pki, version: str) -> Any:
    """A client's, for one version."""
    return client_credentials(pki, protocols=[f"tls{version}"])


@pytest.fixture
def ends(pki: Pki, version: str) -> Iterator[tuple[Any, Any]]:
    with tls_pair(pki, version=version) as both:
        yield both


async def turns(count: int = 5) -> None:
    """Lets the loop turn: what is due now has run then."""
    for _ in range(count):
        await asyncio.sleep(0)


@contextmanager
def counting(channel: Any, kind: str, action: Callable[[], Any] = lambda: None) -> Iterator[Any]:
    """A handler that counts its calls."""
    calls: list[Any] = []
    channel.event(kind, lambda: calls.append(action()))
    yield calls
    if not channel.closed:
        channel.event(kind, None)


async def until(condition: Callable[[], Any]) -> None:
    """The loop runs until something holds; bounded."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        await asyncio.sleep(0.001)


# --- the handlers themselves


def test_set_get_and_remove(run: Runner, ends: tuple[Any, Any]) -> None:
    here, _ = ends

    async def main() -> None:
        def one() -> None: ...

        def two() -> None: ...

        for kind in ("readable", "writable"):
            assert here.event(kind) is None
            assert here.event(kind, one) is one
            assert here.event(kind) is one
            assert here.event(kind, two) is two
            assert here.event(kind) is two
            assert here.event(kind, None) is None
            assert here.event(kind) is None
            assert here.event(kind, None) is None

    run(main())


def test_bad_arguments(run: Runner, ends: tuple[Any, Any]) -> None:
    here, _ = ends

    async def main() -> None:
        for kind in ("read", "", None, "Readable"):
            with pytest.raises(ValueError):
                here.event(kind, print)
        for handler in (7, "handler", ()):
            with pytest.raises(TypeError):
                here.event("readable", handler)
        here.close()
        with pytest.raises(OSError, match="closed"):
            here.event("readable", print)
        here.event("readable", None)

    run(main())


def test_without_a_loop(ends: tuple[Any, Any]) -> None:
    here, there = ends
    with pytest.raises(RuntimeError, match="running asyncio event loop"):
        here.event("readable", print)
    assert here.event("readable") is None
    here.event("readable", None)
    closed = asyncio.new_event_loop()
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        here.event("readable", print, closed)
    there.sendall(b"unharmed")
    assert here.recv(10) == b"unharmed"


def test_an_explicit_loop_from_another_thread(pki: Pki, ends: tuple[Any, Any]) -> None:
    here, there = ends
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        seen: list[Any] = []
        done = threading.Event()

        def readable() -> None:
            seen.append((here.recv(10), threading.get_ident()))
            done.set()

        here.event("readable", readable, loop=loop)
        there.sendall(b"over there")
        assert done.wait(LIMIT)
        assert seen == [(b"over there", thread.ident)]
        # An async_ client may be given one as well.
        with serving(tls_server(pki.server, answer_lines)) as served:
            with connect(served.port, pki, async_=True, loop=loop) as channel:
                opened = threading.Event()
                channel.event("writable", opened.set, loop)
                assert opened.wait(LIMIT)
                assert channel.state == "OPEN"
        here.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT)
        assert not thread.is_alive()
        loop.close()


def test_an_explicit_loop_that_does_not_run_yet(ends: tuple[Any, Any]) -> None:
    here, there = ends
    loop = asyncio.new_event_loop()
    try:
        future: asyncio.Future[bytes] = loop.create_future()
        here.event("readable", lambda: future.set_result(here.recv(10)), loop)
        there.sendall(b"later")
        assert loop.run_until_complete(asyncio.wait_for(future, LIMIT)) == b"later"
        here.close()
    finally:
        loop.close()


# --- readable


def test_readable_when_there_is_something(run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        with counting(here, "readable", lambda: here.recv(100)) as calls:
            await turns()
            assert calls == []
            there.sendall(b"one")
            await until(lambda: calls)
            await turns()
            assert calls == [b"one"]

    run(main())


def test_readable_is_level_triggered(run: Runner, ends: tuple[Any, Any]) -> None:
    """Again and again, while the handler leaves something."""
    here, there = ends

    async def main() -> None:
        there.sendall(b"abc")
        with counting(here, "readable", lambda: here.recv(1)) as calls:
            await until(lambda: len(calls) == 3)
            await turns()
            assert calls == [b"a", b"b", b"c"]

    run(main())


def test_records_that_came_together_raise_it_until_all_are_read(
    run: Runner, ends: tuple[Any, Any]
) -> None:
    """The first look takes many records out of the system: no descriptor tells of the rest."""
    client, server = ends

    async def main() -> None:
        client.configure(blocking=False)
        for number in range(100):
            server.sendall(b"%09d" % number)
        got: list[bytes] = []
        client.event("readable", lambda: got.append(client.recv(9)))
        await until(lambda: len(got) == 100)
        assert got == [b"%09d" % number for number in range(100)]
        client.event("readable", None)

    run(main())


def test_data_already_decrypted_raises_the_event(run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        there.sendall(b"first\nsecond\n")
        assert await asyncio.to_thread(here.readline) == b"first\n"
        assert await first(here, "readable", here.readline) == b"second\n"

    run(main())


def test_no_data_no_event(run: Runner, ends: tuple[Any, Any]) -> None:
    """Tickets and other records without data: a blocking reader must not be
    called and hang."""
    here, _ = ends  # TLS 1.3: the server's tickets are waiting in the socket

    async def main() -> None:
        here.settimeout(None)
        with counting(here, "readable") as calls:
            await asyncio.sleep(0.05)
            assert calls == []

    run(main())


def test_a_half_line_raises_no_event_for_ever(run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        here.setblocking(False)
        lines: list[Any] = []
        calls = [0]

        def readable() -> None:
            calls[0] += 1
            try:
                lines.append(here.gets())
            except BlockingIOError:
                pass

        here.event("readable", readable)
        there.sendall(b"half")
        await until(lambda: calls[0])
        count = calls[0]
        await asyncio.sleep(0.05)
        assert calls[0] <= count + 1
        there.sendall(b" a line\nanother\nrest")
        await until(lambda: len(lines) == 2)
        assert lines == [b"half a line", b"another"]

    run(main())


def test_the_end_raises_readable(run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        there.sendall(b"last")
        there.close()
        assert await first(here, "readable", lambda: here.recv(100)) == b"last"
        for _ in range(2):
            assert await first(here, "readable", lambda: here.recv(100)) == b""
        assert here.eof()

    run(main())


def test_the_end_of_a_half_line_raises_readable(run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        here.setblocking(False)
        got: list[Any] = []

        def readable() -> None:
            try:
                got.append(here.gets())
            except BlockingIOError:
                got.append(BlockingIOError)

        here.event("readable", readable)
        there.sendall(b"no end")
        await until(lambda: got == [BlockingIOError])
        there.close()
        await until(lambda: None in got)
        here.event("readable", None)
        assert got[:3] == [BlockingIOError, b"no end", None]

    run(main())


def test_tls_begins_once_the_hello_is_heard_of(pki: Pki, run: Runner, creds: Any) -> None:
    """An event leaves the peer's bytes where the negotiation finds them."""

    async def main(here: Any) -> None:
        await first(here, "readable")
        channel = await asyncio.to_thread(
            tls.starttls, here, server=True, credentials=server_credentials(pki.server)
        )
        assert await first(channel, "readable", lambda: channel.recv(10)) == b"protected"
        channel.close()

    def client(there: Any) -> None:
        with tls.starttls(there, credentials=creds, peersubject="localhost") as channel:
            channel.sendall(b"protected")

    with plain_pair() as (here, there):
        work = Work(client, there)
        run(main(here))
        work.result()


def test_data_that_came_with_the_handshake_raises_the_event(
    pki: Pki, run: Runner, creds: Any
) -> None:
    """The peer's Finished and its first data in one segment."""

    def greet(connection: Any) -> None:
        connection.sendall(b"hello\n")
        connection.recv(1)

    async def main(port: int) -> None:
        channel = await asyncio.to_thread(connect, port, credentials=creds)
        with channel:
            # The greeting may be here already: nothing else will come.
            await asyncio.sleep(0.05)
            assert await first(channel, "readable", channel.gets) == b"hello"
        channel = connect(port, credentials=creds, async_=True)
        with channel:
            assert await first(channel, "readable", channel.gets) == b"hello"

    with peers.ssl_server(pki.server, greet) as server:
        run(main(server.port))


# --- writable


def test_writable_again_and_again(run: Runner, ends: tuple[Any, Any]) -> None:
    """Every time there is room, not only once (TWAPI: once)."""
    here, _ = ends

    async def main() -> None:
        with counting(here, "writable") as calls:
            await until(lambda: len(calls) >= 5)
        assert here.event("writable") is None
        count = len(calls)
        await turns()
        assert len(calls) == count
        with counting(here, "writable") as calls:
            await until(lambda: calls)

    run(main())


def test_writable_only_while_there_is_room(run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        here.setblocking(False)
        sent = clog(here, there)
        with counting(here, "writable") as calls:
            await asyncio.sleep(0.05)
            assert calls == []
            assert await asyncio.to_thread(drain, there, sent) == sent
            await until(lambda: calls)

    run(main())


def test_output_goes_on_while_only_readable_is_wanted(run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        here.setblocking(False)
        here.event("readable", lambda: None)
        sent = clog(here, there)
        assert here.pending("output")
        assert await asyncio.to_thread(drain, there, sent) == sent
        await until(lambda: not here.pending("output"))

    run(main())


def test_the_loop_does_not_spin_on_what_cannot_go(run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        here.setblocking(False)
        here.event("readable", lambda: None)
        here.event("writable", lambda: None)
        clog(here, there)
        await asyncio.sleep(0.02)
        begin = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - begin < 0.15

    run(main())


@pytest.mark.parametrize("kind", ["plain", "TLS"])
def test_output_that_fails_behind_the_scenes_is_told_once(
    pki: Pki, run: Runner, version: str, kind: str
) -> None:
    """The next writer hears of it; the loop does not try for ever."""

    async def main() -> None:
        with plain_pair() if kind == "plain" else tls_pair(pki, version=version) as (here, there):
            here.setblocking(False)
            here.event("readable", lambda: None)
            clog(here, there)
            here.event("readable", None)  # nobody looks at the descriptor for us
            sock = socket.socket(fileno=there.fileno())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.detach()
            there.abort()
            await first(here, "writable")
            begin = time.process_time()
            await asyncio.sleep(0.3)
            assert time.process_time() - begin < 0.15
            for _ in range(2):
                with pytest.raises(ConnectionError) as caught:
                    here.write(b"more")
                assert here.cget("error") is caught.value
            with pytest.raises(ConnectionError):
                here.close()
            assert here.closed

    run(main())


def test_writable_waits_for_open(pki: Pki, run: Runner, creds: Any) -> None:
    """TWAPI's bug 202: not when TCP has connected, once the channel is OPEN."""
    go = threading.Event()

    async def main(port: int) -> None:
        channel = connect(port, credentials=creds, async_=True, socketcmd=held_back(go))
        with channel:
            with counting(channel, "writable", lambda: tls.tls_state(channel)) as calls:
                await turns()
                assert calls == []
                go.set()
                await until(lambda: len(calls) >= 2)
            assert set(calls) == {"OPEN"}

    with serving(tls_server(pki.server, answer_lines)) as served:
        run(main(served.port))
        served.result()


def test_a_server_that_stalls_raises_nothing(run: Runner, creds: Any) -> None:
    async def main(listener: socket.socket) -> None:
        channel = connect(listener.getsockname()[1], credentials=creds, async_=True)
        with channel, counting(channel, "writable") as calls, counting(channel, "readable") as more:
            accepted, _ = await asyncio.to_thread(listener.accept)
            with accepted:
                accepted.settimeout(LIMIT)
                assert await asyncio.to_thread(accepted.recv, 5)
                await asyncio.sleep(0.05)
                assert calls == more == []
                assert tls.tls_state(channel) == "NEGOTIATING"

    with silent_server() as listener:
        run(main(listener))


# --- failures


@pytest.mark.parametrize("kind", ["readable", "writable"])
def test_a_failed_negotiation_raises_both(pki: Pki, run: Runner, creds: Any, kind: str) -> None:
    async def main(port: int) -> None:
        channel = connect(port, credentials=creds, async_=True)
        with channel:
            both: list[str] = []
            channel.event("readable", lambda: both.append("readable"))
            channel.event("writable", lambda: both.append("writable"))
            await until(lambda: set(both) == {"readable", "writable"})
            assert tls.tls_state(channel) == "CLOSED"
            error = channel.cget("error")
            assert isinstance(error, tls.TLSVerificationError)
            # Level triggered: for one who looks later as well.
            channel.event("readable", None)
            channel.event("writable", None)
            await first(channel, kind)
            with pytest.raises(tls.TLSVerificationError) as caught:
                channel.recv(1)
            assert caught.value is error

    with peers.ssl_server(pki.untrusted) as server:
        run(main(server.port))


def test_a_refused_connection_raises_both(pki: Pki, run: Runner) -> None:
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]

    async def main() -> None:
        with tls.tls_socket(HOST, port, async_=True) as channel:
            with counting(channel, "readable") as r, counting(channel, "writable") as w:
                await until(lambda: r and w)
            assert isinstance(channel.cget("error"), ConnectionRefusedError)

    run(main())


def test_truncation_raises_readable(pki: Pki, run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        there.sendall(b"cut")
        sock = socket.socket(fileno=there.fileno())
        sock.shutdown(socket.SHUT_WR)
        sock.detach()
        assert await first(here, "readable", lambda: here.recv(10)) == b"cut"
        with pytest.raises(tls.TLSTruncatedError):
            await first(here, "readable", lambda: here.recv(10))
        with pytest.raises(tls.TLSTruncatedError):
            await first(here, "writable", lambda: here.send(b"x"))

    run(main())


# --- from where handlers run


def test_never_inside_the_call_that_caused_it(run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        inside: list[str] = []
        calls: list[str] = []

        def handler(kind: str) -> Callable[[], None]:
            def handle() -> None:
                assert not inside, f"{kind} ran inside {inside}"
                calls.append(kind)

            return handle

        there.sendall(b"data")
        with selectors.DefaultSelector() as selector:
            selector.register(here, selectors.EVENT_READ)
            selector.select(LIMIT)
        for name, call in (
            ("event", lambda: here.event("readable", handler("readable"))),
            ("event", lambda: here.event("writable", handler("writable"))),
            ("read", lambda: here.recv(1)),
            ("write", lambda: here.write(b"x")),
            ("flush", here.flush),
            ("configure", lambda: here.configure(blocking=False, encoding="utf-8")),
            ("half close", lambda: here.shutdown(socket.SHUT_WR)),
        ):
            inside.append(name)
            call()
            inside.clear()
        await until(lambda: {"readable", "writable"} <= set(calls))
        # Not after the close either, and not inside it.
        inside.append("close")
        here.close()
        inside.clear()
        count = len(calls)
        await turns()
        assert len(calls) == count

    run(main())


def test_nothing_runs_within_tls_socket(pki: Pki, run: Runner) -> None:
    async def main(port: int) -> None:
        inside = True
        called: list[bool] = []

        def verify(channel: Any, context: Any) -> bool:
            called.append(inside)
            return True

        channel = connect(port, pki, async_=True, verifier=verify)
        with channel:
            inside = False
            await first(channel, "writable")
            assert called == [False]

    with serving(tls_server(pki.server, answer_lines)) as served:
        run(main(served.port))
        served.result()


def test_a_handler_may_remove_replace_and_close(run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        seen: list[str] = []

        def once() -> None:
            seen.append("once")
            here.event("readable", then)

        def then() -> None:
            seen.append("then")
            here.event("writable", None)
            here.close()

        there.sendall(b"x")
        here.event("readable", once)
        here.event("writable", lambda: None)
        await until(lambda: here.closed)
        await turns()
        assert seen == ["once", "then"]

    run(main())


def test_closing_from_another_thread_ends_the_handlers(run: Runner, ends: tuple[Any, Any]) -> None:
    here, _ = ends

    async def main() -> None:
        with counting(here, "writable") as calls:
            await until(lambda: calls)
            await asyncio.to_thread(here.close)
            count = len(calls)
            await turns()
            assert len(calls) == count
        # The number may be another's now, and it is not watched.
        one, other = socket.socketpair()
        with one, other:
            await asyncio.get_running_loop().sock_sendall(one, b"x") if (
                one.setblocking(False) is None
            ) else None
            assert other.recv(1) == b"x"

    run(main())


def test_a_handler_of_a_blocking_channel_may_block_within_its_rights(
    run: Runner, ends: tuple[Any, Any]
) -> None:
    """An event on a blocking channel: one read does not wait."""
    here, there = ends

    async def main() -> None:
        assert here.cget("blocking")
        there.sendall(b"now")
        assert await first(here, "readable", lambda: here.recv(100)) == b"now"

    run(main())


def test_settimeout_and_events_go_together(run: Runner, ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        with counting(here, "readable", lambda: here.recv(10)) as calls:
            here.settimeout(0.5)
            there.sendall(b"a")
            await until(lambda: calls == [b"a"])
            here.setblocking(False)
            there.sendall(b"b")
            await until(lambda: calls == [b"a", b"b"])

    run(main())


def test_both_handlers_on_plain_channels(run: Runner) -> None:
    async def main() -> None:
        with plain_pair() as (here, there):
            await first(here, "writable")
            there.sendall(b"plain")
            assert await first(here, "readable", lambda: here.recv(10)) == b"plain"
            there.close()
            assert await first(here, "readable", lambda: here.recv(10)) == b""

    run(main())


def test_a_conversation_by_events(pki: Pki, run: Runner, creds: Any) -> None:
    """Many lines each way, both ends event-driven, non-blocking."""

    async def main(port: int) -> None:
        channel = connect(port, credentials=creds, async_=True)
        with channel:
            channel.configure(blocking=False, buffering="line")
            lines = [str(i).encode() * (i % 50 + 1) for i in range(500)]
            answers: list[bytes] = []
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def readable() -> None:
                try:
                    while True:
                        answers.append(channel.gets())
                except BlockingIOError:
                    if len(answers) == len(lines):
                        done.set_result(None)
                        channel.event("readable", None)

            channel.event("readable", readable)
            for line in lines:
                channel.puts(line)
            await wait(done)
            assert answers == [line[::-1] for line in lines]

    with serving(tls_server(pki.server, answer_lines)) as served:
        run(main(served.port))
        assert len(served.result()) == 501


def test_many_channels_on_one_loop(pki: Pki, run: Runner, creds: Any) -> None:
    async def main(port: int) -> None:
        channels = [connect(port, async_=True, credentials=creds) for _ in range(30)]
        try:
            await asyncio.gather(*(first(channel, "writable") for channel in channels))
            for number, channel in enumerate(channels):
                channel.puts(str(number + 100).encode())
            answers = await asyncio.gather(
                *(first(channel, "readable", channel.gets) for channel in channels)
            )
            assert answers == [str(n + 100).encode()[::-1] for n in range(30)]
        finally:
            for channel in channels:
                channel.close()

    with serving(tls_server(pki.server, answer_lines)) as served:
        run(main(served.port))
        for _ in range(30):
            served.result()


# --- loops come and go


def test_a_channel_may_move_to_another_loop(ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> bytes:
        there.sendall(b"x")
        got: bytes = await first(here, "readable", lambda: here.recv(1))
        return got

    assert asyncio.run(main()) == b"x"
    assert asyncio.run(main()) == b"x"


def test_a_loop_that_was_closed_does_not_hurt(ends: tuple[Any, Any]) -> None:
    here, there = ends

    async def main() -> None:
        here.event("readable", lambda: None)
        here.event("writable", lambda: None)

    asyncio.run(main())
    there.sendall(b"on without a loop")
    assert here.read(17) == b"on without a loop"
    here.settimeout(1)
    here.close()
    assert there.recv(1) == b""


def test_channels_and_loops_are_collected(pki: Pki) -> None:
    async def main(here: Any) -> None:
        await first(here, "writable")

    with tls_pair(pki) as (here, _):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main(here))
        loop.close()
        gone = weakref.ref(here)
        here.close()
    del here, _, loop
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("how", ["forgotten", "closed", "idle"])
def test_the_selecting_thread_ends(how: str) -> None:
    loop = new_deaf_loop()
    pollers = poller_of(loop)
    assert isinstance(pollers, ThreadPollers)
    assert poller_of(loop) is pollers
    one, other = socket.socketpair()
    with one, other:
        # Refers to the loop, as a channel's callback does.
        pollers.add_reader(one.fileno(), loop.stop)
        thread = pollers._pollers[0]._thread
        assert thread is not None
        if how == "idle":
            loop.call_later(0.01, pollers.remove_reader, one.fileno())
            loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()
        if how == "forgotten":
            del loop, pollers
        elif how == "closed":
            other.sendall(b"x")
        end = time.monotonic() + LIMIT
        while thread.is_alive() and time.monotonic() < end:
            gc.collect()  # it may just be on its way to select
            thread.join(0.05)
        assert not thread.is_alive()
        assert how == "forgotten" or pollers._pollers[0]._thread is None


@pytest.mark.parametrize("lacking", ["descriptors", "threads"])
def test_what_the_selecting_thread_lacks_is_told_and_no_more(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call tries again, for what was refused too."""
    heard: list[bytes] = []
    loop = new_deaf_loop()
    poller = poller_of(loop)
    one, other = socket.socketpair()

    def refuse(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "none") if lacking == "descriptors" else RuntimeError("none")

    def hear(sock: socket.socket) -> None:
        heard.append(sock.recv(1))
        poller.remove_reader(sock.fileno())
        if len(heard) == 2:
            loop.stop()

    with one, other:
        with monkeypatch.context() as patched:
            if lacking == "descriptors":
                patched.setattr("twapi_tls.pollers.socket.socketpair", refuse)
            else:
                patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises((OSError, RuntimeError), match="none"):
                poller.add_reader(one.fileno(), lambda: hear(one))
        loop.call_later(LIMIT, loop.stop)
        poller.add_reader(other.fileno(), lambda: hear(other))
        one.send(b"x")
        other.send(b"x")
        loop.run_forever()
        loop.close()
    assert heard == [b"x", b"x"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_who_fails_when_it_is_told_keeps_nobody_waiting(failure: type[BaseException]) -> None:
    """Where a thread selects, one callback of the loop's tells many."""
    reports: list[dict[str, Any]] = []
    heard: list[bytes] = []
    loop = new_deaf_loop()
    loop.set_exception_handler(lambda _, told: reports.append(told))
    poller = poller_of(loop)
    one, other = socket.socketpair()
    with one, other:

        def bad() -> None:
            one.recv(1)
            raise failure("of the callback")

        def good() -> None:
            heard.append(other.recv(1))
            loop.stop()

        poller.add_reader(one.fileno(), bad)
        poller.add_reader(other.fileno(), good)
        one.send(b"1")
        other.send(b"2")
        if failure is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                loop.run_forever()
        if not heard:  # it may have had its turn before
            loop.run_forever()
        poller.remove_reader(one.fileno())
        poller.remove_reader(other.fileno())
        loop.close()
    assert heard == [b"1"]
    assert [type(told["exception"]) for told in reports] == [ValueError] * (failure is ValueError)


@pytest.mark.parametrize(("room", "count"), [(4, 21), (500, 600)])
def test_more_descriptors_than_a_thread_selects_on(
    room: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows' select() takes 512 sockets."""
    monkeypatch.setattr("twapi_tls.pollers.ROOM", room)
    threads = -(-count // room)

    async def main(ends: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        poller = poller_of(loop)
        assert isinstance(poller, ThreadPollers)
        heard: set[socket.socket] = set()
        everyone = loop.create_future()

        def readable(end: socket.socket) -> None:
            end.recv(1)
            heard.add(end)
            if len(heard) == count:
                everyone.set_result(None)

        def writable(end: socket.socket) -> None:
            poller.remove_writer(end.fileno())
            end.send(b"x")  # to itself

        for end in ends:
            poller.add_reader(end.fileno(), partial(readable, end))
        assert len(poller._pollers) == threads
        for end in ends:
            poller.add_writer(end.fileno(), partial(writable, end))
        await wait(everyone)
        for end in ends:
            poller.remove_reader(end.fileno())
            poller.add_reader(end.fileno(), lambda: None)
            poller.remove_reader(end.fileno())
        assert len(poller._pollers) == threads, "there was room again"

    with ExitStack() as stack:
        ends = []
        for _ in range(count):
            end = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            end.bind((HOST, 0))
            end.connect(end.getsockname())
            ends.append(end)
        with asyncio.Runner(loop_factory=new_deaf_loop) as runner:
            runner.run(main(ends))


def test_the_selecting_thread_rests_while_a_handler_takes_bit_by_bit(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Selecting again for each bit would take turns with the handler."""
    selects = [0]

    def counting(*sets: Any) -> Any:
        selects[0] += 1
        return select_ready(*sets)

    taken = bytearray()
    data = bytes(64 * 1024)

    async def main(here: Any) -> None:
        done = asyncio.get_running_loop().create_future()

        def readable() -> None:
            taken.extend(here.recv(64))
            if len(taken) == len(data):
                here.event("readable", None)
                done.set_result(None)

        here.event("readable", readable)
        await wait(done)

    monkeypatch.setattr("twapi_tls.pollers.select_ready", counting)
    with tls_pair(pki) as (here, there):
        # What a socket holds, so that its descriptor stays ready meanwhile.
        work = Work(lambda: there.sendall(data))
        with asyncio.Runner(loop_factory=new_deaf_loop) as runner:
            runner.run(main(here))
        work.result()
    assert taken == data
    assert selects[0] < 100, "for a thousand events"


def test_events_from_many_threads(pki: Pki) -> None:
    """Setting and removing handlers races with their being run."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        with tls_pair(pki) as (here, there):
            stop = threading.Event()
            calls = [0]

            def readable() -> None:
                calls[0] += len(here.recv(10))

            def toggle() -> None:
                while not stop.is_set():
                    here.event("readable", readable, loop)
                    here.event("writable", lambda: None, loop)
                    here.event("writable", None, loop)

            works = [Work(toggle) for _ in range(2)]
            for _ in range(200):
                there.sendall(b"x")
            end = time.monotonic() + LIMIT
            while calls[0] < 200 and time.monotonic() < end:
                stop.wait(0.01)
            stop.set()
            for work in works:
                work.result()
            assert calls[0] == 200
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT)
        loop.close()
