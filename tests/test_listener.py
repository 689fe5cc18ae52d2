"""Listeners: what is accepted, when it is handed over, and what bounds it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import peers
import pytest
from certs import Pki
from channels import new_deaf_loop, run
from twapi_support import (
    HOST,
    LIMIT,
    Background,
    Served,
    answer_one_line,
    certificate,
    client_credentials,
    connect,
    server_credentials,
    serving,
    silent_server,
    tls_server,
    verify_name,
    verify_true,
)

import twapi_tls as tls

pytestmark = pytest.mark.timeout(30)


def listen(pki: Pki, callback: Any, **options: Any) -> Any:
    options.setdefault("credentials", server_credentials(pki.server))
    options.setdefault("myaddr", HOST)
    return tls.tls_socket(0, server=callback, **options)


def ask(port: int, pki: Pki, **options: Any) -> Any:
    with connect(port, pki, **options) as channel:
        channel.puts(b"line")
        return channel.gets()


async def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        await asyncio.sleep(0.001)


# --- handing over


def test_the_channel_is_open_and_blocking(pki: Pki) -> None:
    order: list[Any] = []

    def verify(channel: Any, context: Any) -> bool:
        order.append(("verifier", tls.tls_state(channel)))
        return True

    def answer(served: Served, channel: Any, address: str, port: int) -> None:
        order.append(("callback", tls.tls_state(channel)))
        assert channel.cget("blocking") is True
        assert channel.gettimeout() is None
        assert channel.event("readable") is None
        assert (address, port) == channel.getpeername()
        assert channel.cget("verifier") is verify
        answer_one_line(served, channel, address, port)

    with serving(tls_server(pki.server, answer, verifier=verify)) as served:
        assert ask(served.port, pki) == b"enil"
        assert served.result() == "line"
    assert order == [("verifier", "NEGOTIATING"), ("callback", "OPEN")]


def test_the_callback_never_runs_inside_a_call(pki: Pki) -> None:
    async def main() -> None:
        handed: list[Any] = []
        with listen(pki, lambda *arguments: handed.append(arguments)) as listener:
            port = listener.getsockname()[1]
            with await asyncio.to_thread(connect, port, pki) as channel:
                await until(lambda: handed)
                assert channel.getsockname() == handed[0][1:]
                handed[0][0].close()

    run(main())


def test_data_that_came_with_the_handshake_is_there(pki: Pki) -> None:
    """The client's Finished and its first line in one segment."""
    with serving(tls_server(pki.server, answer_one_line)) as served:
        for _ in range(10):
            channel = connect(served.port, pki, async_=True)
            with channel:
                channel.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    channel.write(b"queued before open\n")
                channel.settimeout(LIMIT)
                channel.flush()
                assert channel.gets() == b"nepo erofeb deueuq"
            assert served.result() == "queued before open"


def test_a_coroutine_as_callback(pki: Pki) -> None:
    async def answer(channel: Any, address: str, port: int) -> None:
        channel.setblocking(False)
        readable = asyncio.Event()
        channel.event("readable", readable.set)
        await asyncio.wait_for(readable.wait(), LIMIT)
        with channel:
            channel.event("readable", None)
            channel.settimeout(LIMIT)
            channel.puts(channel.gets()[::-1])

    async def main() -> None:
        with listen(pki, answer) as listener:
            port = listener.getsockname()[1]
            answers = await asyncio.gather(*(asyncio.to_thread(ask, port, pki) for _ in range(3)))
            assert answers == [b"enil"] * 3

    run(main())


def test_a_partial_or_object_as_callback(pki: Pki) -> None:
    class Server:
        def __init__(self) -> None:
            self.got: list[Any] = []

        def __call__(self, channel: Any, address: str, port: int) -> int:
            self.got.append(address)
            channel.close()
            return 7  # what it returns means nothing

    async def main() -> None:
        server = Server()
        with listen(pki, server) as listener:
            with await asyncio.to_thread(connect, listener.getsockname()[1], pki) as channel:
                assert await asyncio.to_thread(channel.recv, 1) == b""
        assert server.got == [HOST]

    run(main())


def test_ipv4_and_ipv6(pki: Pki) -> None:
    async def main() -> None:
        seen: list[Any] = []

        def server(channel: Any, address: str, port: int) -> None:
            seen.append(address)
            channel.close()

        with listen(pki, server, myaddr=None) as listener:
            port = listener.getsockname()[1]
            hosts = [HOST] + (["::1"] if socket.has_dualstack_ipv6() else [])
            for host in hosts:
                with await asyncio.to_thread(
                    tls.tls_socket,
                    host,
                    port,
                    credentials=client_credentials(pki),
                    timeout=LIMIT,
                ) as channel:
                    assert await asyncio.to_thread(channel.recv, 1) == b""
            # An IPv4 address is told as one.
            assert seen == hosts

    run(main())


def test_without_a_loop(pki: Pki) -> None:
    with pytest.raises(RuntimeError, match="loop"):
        listen(pki, print)


def test_an_explicit_loop(pki: Pki) -> None:
    loop = asyncio.new_event_loop()
    try:
        handed = loop.create_future()

        def server(channel: Any, address: str, port: int) -> None:
            channel.close()
            handed.set_result(address)

        with listen(pki, server, loop=loop) as listener:
            port = listener.getsockname()[1]

            async def main() -> Any:
                with await asyncio.to_thread(connect, port, pki):
                    return await asyncio.wait_for(handed, LIMIT)

            assert loop.run_until_complete(main()) == HOST
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


# --- as a channel


def test_a_listener_has_no_data(pki: Pki) -> None:
    async def main() -> None:
        with listen(pki, print) as listener:
            for call in (
                lambda: listener.recv(1),
                lambda: listener.read(),
                lambda: listener.gets(),
                lambda: listener.recv_into(bytearray(1)),
                lambda: listener.send(b"x"),
                lambda: listener.write(b"x"),
                lambda: tls.tls_handshake(listener),
            ):
                with pytest.raises(tls.TLSError, match="listening"):
                    call()
            for close in ("write", "read"):
                with pytest.raises(ValueError):
                    tls.tls_close(listener, close)
            with pytest.raises(ValueError, match="events"):
                listener.event("readable", print)
            assert tls.tls_state(listener) == "LISTENER"

    run(main())


def test_options_of_a_listener(pki: Pki) -> None:
    async def main() -> None:
        creds = server_credentials(pki.server)
        with listen(pki, print, credentials=creds, verifier=verify_true) as listener:
            assert listener.cget("verifier") is verify_true
            assert isinstance(listener.cget("credentials"), tls.Credentials)
            assert listener.cget("context") is None
            assert listener.cget("sockname") == listener.getsockname()
            options = listener.configure()
            assert options["sockname"] == listener.getsockname()
            assert options["peername"] is None
            for name in ("credentials", "verifier", "context"):
                with pytest.raises(ValueError, match="read-only"):
                    listener.configure(**{name: None})
            assert listener.fileno() >= 0
        assert listener.fileno() == -1

    run(main())


# --- closing


def test_the_listener_closed_in_its_callback(pki: Pki) -> None:
    async def main() -> None:
        kept: list[Any] = []

        def server(channel: Any, address: str, port: int) -> None:
            listener.close()
            kept.append(channel)

        listener = listen(pki, server)
        port = listener.getsockname()[1]
        with await asyncio.to_thread(connect, port, pki) as channel:
            await until(lambda: kept)
            assert tls.tls_state(listener) == "CLOSED"
            with kept[0]:
                kept[0].sendall(b"lives")
                assert await asyncio.to_thread(channel.recv, 10) == b"lives"
            with pytest.raises(OSError):
                await asyncio.to_thread(connect, port, pki)

    run(main())


def test_closing_never_hurts_accepted_channels(pki: Pki) -> None:
    """Not the open ones, not those that are still negotiating."""

    async def main() -> None:
        kept: list[Any] = []
        creds = server_credentials(pki.server)
        listener = listen(pki, lambda c, *_: kept.append(c), credentials=creds)
        port = listener.getsockname()[1]
        opened = await asyncio.to_thread(connect, port, pki)
        await until(lambda: kept)
        plain = socket.create_connection((HOST, port), LIMIT)
        await until(lambda: listener._unfinished)
        listener.close()
        creds.free()
        del creds
        gc.collect()
        late = await asyncio.to_thread(
            tls.starttls, plain, peersubject="localhost", credentials=client_credentials(pki)
        )
        await until(lambda: len(kept) == 2)
        for client, server in zip((opened, late), kept, strict=True):
            with client, server:
                server.settimeout(LIMIT)
                client.sendall(b"both")
                assert server.recv(10) == b"both"
                server.sendall(b"ways")
                assert client.recv(10) == b"ways"

    run(main())


def test_closing_from_another_thread(pki: Pki) -> None:
    async def main() -> None:
        listener = listen(pki, print)
        port = listener.getsockname()[1]
        await asyncio.to_thread(listener.close)

        def refused() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((HOST, port)) != 0

        await until(refused)
        listener.close()

    run(main())


def test_freed_credentials_serve_on_and_go_with_their_last_user(pki: Pki) -> None:
    async def main() -> None:
        creds = server_credentials(pki.server)
        gone = weakref.ref(creds)
        kept: list[Any] = []
        with listen(pki, lambda c, *_: kept.append(c), credentials=creds) as listener:
            tls.sspi_free_credentials(creds)
            del creds
            port = listener.getsockname()[1]
            for _ in range(2):
                with await asyncio.to_thread(connect, port, pki) as channel:
                    assert channel.state == "OPEN"
            await until(lambda: len(kept) == 2)
            with pytest.raises(ValueError, match="freed"):
                listen(pki, print, credentials=gone() or _freed(pki))
        for channel in kept:
            channel.close()
        kept.clear()
        gc.collect()
        assert gone() is None

    run(main())


def _freed(pki: Pki) -> Any:
    creds = server_credentials(pki.server)
    creds.free()
    return creds


# --- bounds


def test_handshake_timeout(pki: Pki) -> None:
    """A peer that says nothing, or half a hello, and stalls."""
    with serving(tls_server(pki.server, answer_one_line, handshake_timeout=0.2)) as served:
        for said in (b"", b"\x16\x03"):
            with socket.create_connection((HOST, served.port), LIMIT) as stalling:
                stalling.sendall(said)
                begin = time.monotonic()
                told = served.result()
                assert isinstance(told, Background)
                assert isinstance(told.error, tls.TLSTimeoutError)
                assert isinstance(told.error, TimeoutError)
                assert time.monotonic() - begin < LIMIT
                assert stalling.recv(1) == b""
        # Who is in time is served, for as long as it likes.
        with connect(served.port, pki) as channel:
            time.sleep(0.3)
            channel.puts(b"line")
            assert channel.gets() == b"enil"
        assert served.result() == "line"


def test_handshake_timeout_ends_an_awaited_verifier(pki: Pki) -> None:
    cancelled: list[bool] = []

    async def verify(channel: Any, context: Any) -> bool:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return True

    options = {"verifier": verify, "handshake_timeout": 0.2}
    with serving(tls_server(pki.server, answer_one_line, **options)) as served:
        with pytest.raises(OSError):
            with connect(served.port, pki) as channel:
                channel.recv(1)
        told = served.result()
        assert isinstance(told, Background)
        assert isinstance(told.error, tls.TLSTimeoutError)
    assert cancelled == [True]


def test_no_handshake_timeout(pki: Pki) -> None:
    with serving(tls_server(pki.server, answer_one_line, handshake_timeout=None)) as served:
        assert ask(served.port, pki) == b"enil"


def test_the_defaults() -> None:
    from twapi_tls import commands

    assert commands.HANDSHAKE_TIMEOUT == 60
    assert commands.MAX_HANDSHAKES == 1000


def test_max_handshakes(pki: Pki) -> None:
    """Past the bound connections wait in the system's queue, and come later."""

    async def main() -> None:
        kept: list[Any] = []
        with listen(pki, lambda c, *_: kept.append(c), max_handshakes=3) as listener:
            port = listener.getsockname()[1]
            stalling = [socket.create_connection((HOST, port), LIMIT) for _ in range(5)]
            await until(lambda: len(listener._unfinished) == 3)
            waiting = asyncio.create_task(asyncio.to_thread(connect, port, pki))
            await asyncio.sleep(0.1)
            assert len(listener._unfinished) == 3
            assert not waiting.done()
            for plain in stalling:
                plain.close()
            with await asyncio.wait_for(waiting, LIMIT) as channel:
                await until(lambda: kept and not listener._unfinished)
                assert channel.state == "OPEN"
            kept[0].close()

    reports: list[Any] = []

    async def noisy() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: reports.append(told))
        await asyncio.wait_for(main(), 2 * LIMIT)

    asyncio.run(noisy())
    # The five that broke off, each once.
    assert len(reports) == 5


def test_max_handshakes_with_a_command_that_cannot_pause(pki: Pki) -> None:
    """The connection is shed, and told of."""

    class Bare:
        def __init__(self, port: int, *, server: Any, myaddr: Any) -> None:
            self._inner = tls.socket_command(port, server=server, myaddr=myaddr)
            self.getsockname = self._inner.getsockname
            self.start = self._inner.start
            self.close = self._inner.close

    options = {"socketcmd": Bare, "max_handshakes": 1}
    with serving(tls_server(pki.server, answer_one_line, **options)) as served:
        with socket.create_connection((HOST, served.port), LIMIT) as stalling:
            stalling.sendall(b"\x16")
            with socket.create_connection((HOST, served.port), LIMIT) as shed:
                assert shed.recv(1) == b""
            told = served.result()
            assert isinstance(told, Background)
            assert "too many unfinished handshakes" in str(told.error)
        served.result()  # the stalling one's end
        assert ask(served.port, pki) == b"enil"


def test_many_clients_at_once(pki: Pki) -> None:
    with serving(tls_server(pki.server, answer_one_line)) as served:

        async def main() -> Any:
            return await asyncio.gather(
                *(asyncio.to_thread(ask, served.port, pki) for _ in range(40))
            )

        assert run(main()) == [b"enil"] * 40
        assert [served.result() for _ in range(40)] == ["line"] * 40


def answer(channel: tls.TlsChannel, address: str, port: int) -> None:
    with channel:
        channel.settimeout(LIMIT)
        channel.puts(channel.gets()[::-1])


def stepping_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "twapi_tls handshakes"]


@pytest.mark.parametrize("cores", [1, 3])
def test_a_crowd_is_stepped_by_threads_and_judged_by_the_loop(
    pki: Pki, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the peers break off; each is told of once, whoever stepped it."""
    monkeypatch.setattr("twapi_tls.pool.cores", lambda: cores)
    calls: list[tuple[str, int, int]] = []
    told: list[str] = []

    def note(what: str) -> None:
        calls.append((what, threading.get_ident(), len(stepping_threads())))

    def verifier(channel: tls.TlsChannel, context: tls.SspiContext) -> bool:
        note("verifier")
        assert tls.tls_state(channel) == "NEGOTIATING"
        return True

    def callback(channel: tls.TlsChannel, address: str, port: int) -> None:
        note("callback")
        assert tls.tls_state(channel) == "OPEN"
        answer(channel, address, port)

    def hook(message: str, options: dict[str, Any]) -> None:
        told.append(options["phase"])
        raise options["exception"]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        with listen(pki, callback, verifier=verifier) as listener:
            port = listener.getsockname()[1]
            silent = [socket.create_connection((HOST, port), LIMIT) for _ in range(3)]
            await until(lambda: len(listener._unfinished) == 3)
            asked = (asyncio.to_thread(ask, port, pki) for _ in range(12))
            assert await asyncio.gather(*asked) == [b"enil"] * 12
            for number, sock in enumerate(silent):
                sock.sendall(b"\x16\x03\x01\x00\x02xx"[: 7 * (number > 0)])
                sock.close()
            await until(lambda: len(told) == 3)
            await asyncio.to_thread(ask, port, pki)

    monkeypatch.setattr(tls, "tls_background_error", hook)
    asyncio.run(main())
    assert told == ["handshake"] * 3
    assert sorted(what for what, _, _ in calls) == ["callback"] * 13 + ["verifier"] * 13
    assert {thread for _, thread, _ in calls} == {threading.get_ident()}
    most = max(threads for _, _, threads in calls)
    assert most == 0 if cores == 1 else 1 <= most <= cores


def test_a_lone_client_needs_no_thread(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twapi_tls.pool.cores", lambda: 4)
    seen: list[list[str]] = []

    def callback(channel: tls.TlsChannel, address: str, port: int) -> None:
        seen.append(stepping_threads())
        answer(channel, address, port)

    async def main() -> None:
        with listen(pki, callback) as listener:
            for _ in range(3):
                await asyncio.to_thread(ask, listener.getsockname()[1], pki)

    asyncio.run(main())
    assert seen == [[], [], []]


def test_a_crowd_while_no_thread_can_be_had(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop steps them itself, and has threads again once there are some."""
    monkeypatch.setattr("twapi_tls.pool.cores", lambda: 2)
    start = threading.Thread.start
    none_left = True
    seen: list[int] = []

    def start_perhaps(thread: threading.Thread) -> None:
        if none_left and thread.name == "twapi_tls handshakes":
            raise RuntimeError("can't start new thread")
        start(thread)

    def callback(channel: tls.TlsChannel, address: str, port: int) -> None:
        seen.append(len(stepping_threads()))
        answer(channel, address, port)

    async def main() -> None:
        nonlocal none_left
        with listen(pki, callback) as listener, contextlib.ExitStack() as stack:
            port = listener.getsockname()[1]
            for _ in range(2):
                stack.enter_context(socket.create_connection((HOST, port), LIMIT))
            await until(lambda: len(listener._unfinished) == 2)
            for _ in range(2):
                asked = (asyncio.to_thread(ask, port, pki) for _ in range(4))
                assert await asyncio.gather(*asked) == [b"enil"] * 4
                none_left = False

    monkeypatch.setattr(threading.Thread, "start", start_perhaps)
    asyncio.run(main())
    assert seen[:4] == [0] * 4
    assert max(seen[4:]) > 0


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, new_deaf_loop])
def test_handshakes_that_outlive_their_loop(
    pki: Pki,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    cores: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody was given their channels: they close by themselves, without a warning."""
    monkeypatch.setattr("twapi_tls.pool.cores", lambda: cores)

    async def main() -> list[socket.socket]:
        with listen(pki, answer) as listener:
            address = (HOST, listener.getsockname()[1])
            peers = [socket.create_connection(address, LIMIT) for _ in range(3)]
            for peer in peers:
                peer.sendall(b"\x16\x03\x01\x02\x00")  # the beginning of a ClientHello
            await until(lambda: len(listener._unfinished) == 3)
        return peers

    with asyncio.Runner(loop_factory=new_loop) as runner:
        peers = runner.run(main())
    del runner
    with contextlib.ExitStack() as stack:
        for peer in peers:
            stack.enter_context(peer)
        for peer in peers:
            peer.settimeout(0.05)
            end = time.monotonic() + LIMIT
            while time.monotonic() < end:
                gc.collect()  # a step under way ends first
                try:
                    assert peer.recv(100) == b""
                    break
                except ConnectionResetError:
                    break
                except TimeoutError:
                    continue
            else:
                pytest.fail("the connection is still there")


def test_handshake_timeout_of_a_crowd(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twapi_tls.pool.cores", lambda: 2)
    told: list[BaseException] = []

    def hook(message: str, options: dict[str, Any]) -> None:
        told.append(options["exception"])
        raise options["exception"]

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        with listen(pki, answer, handshake_timeout=0.3) as listener:
            with contextlib.ExitStack() as stack:
                for _ in range(6):
                    address = (HOST, listener.getsockname()[1])
                    stack.enter_context(socket.create_connection(address, LIMIT)).sendall(b"\x16")
                await until(lambda: len(told) == 6)
            assert not listener._unfinished

    monkeypatch.setattr(tls, "tls_background_error", hook)
    asyncio.run(main())
    assert all(isinstance(error, TimeoutError) for error in told)


# --- credentials: by SNI, by ALPN, client certificates


def test_a_chooser_by_name(pki: Pki) -> None:
    """SNI: each name has its own credentials; None is nobody's."""
    asked: list[Any] = []
    by_name = {
        "localhost": server_credentials(pki.server),
        "other.example": server_credentials(pki.wrong_name),
    }

    def choose(name: str, alpn: list[bytes], versions: list[int]) -> Any:
        asked.append((name, alpn, max(versions)))
        return by_name.get(name)

    def server(served: Served) -> Any:
        return tls.tls_socket(
            0,
            server=lambda *given: answer_one_line(served, *given),
            credentials=choose,
            myaddr=HOST,
            alpn=["h2", "http/1.1"],
        )

    with serving(server) as served:
        for name in by_name:
            creds = client_credentials(pki)
            with connect(served.port, peersubject=name, credentials=creds, alpn=["h2"]) as channel:
                assert channel.selected_alpn_protocol() == "h2"
                channel.puts(b"line")
                assert channel.gets() == b"enil"
            assert served.result() == "line"
        with pytest.raises(tls.TLSError):
            connect(served.port, pki, peersubject="unknown.example")
        told = served.result()
        assert isinstance(told, Background)
        assert isinstance(told.error, TypeError)
        assert "Credentials" in str(told.error)
    assert [name for name, _, _ in asked] == ["localhost", "other.example", "unknown.example"]
    assert asked[0][1:] == ([b"h2"], 0x0304)


def test_a_chooser_that_raises(pki: Pki) -> None:
    class Odd(Exception):
        pass

    def choose(*_: Any) -> Any:
        raise Odd

    def server(served: Served) -> Any:
        return tls.tls_socket(0, server=print, credentials=choose, myaddr=HOST)

    with serving(server) as served:
        with pytest.raises(OSError):
            connect(served.port, pki)
        told = served.result()
        assert isinstance(told, Background)
        assert isinstance(told.error, Odd)


def test_several_certificates_in_one(pki: Pki) -> None:
    """Without a chooser: the one whose name fits is shown."""
    creds = tls.sspi_acquire_credentials(
        role="server",
        credentials=tls.sspi_schannel_credentials(
            certificates=[certificate(pki.wrong_name), certificate(pki.server)]
        ),
    )

    def server(served: Served) -> Any:
        return tls.tls_socket(
            0,
            server=lambda *given: answer_one_line(served, *given),
            credentials=creds,
            myaddr=HOST,
        )

    with serving(server) as served:
        for name in ("localhost", "other.example", "a.wild.example"):
            assert ask(served.port, pki, peersubject=name) == b"enil"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_client_certificates(pki: Pki, version: str) -> None:
    """Asked for, judged by the verifier, seen by the callback."""
    seen: list[Any] = []

    def answer(served: Served, channel: Any, address: str, port: int) -> None:
        seen.append(tls.cert_subject_name(channel.peer_certificate()))
        answer_one_line(served, channel, address, port)

    options = {"requestclientcert": True, "verifier": verify_name(pki, None)}
    with serving(tls_server(pki.server, answer, **options)) as served:
        creds = client_credentials(pki, pki.client, protocols=[f"tls{version}"])
        assert ask(served.port, pki, credentials=creds) == b"enil"
        assert served.result() == "line"
        # None, and one of a root that is not ours: the verifier says no.
        for identity in (None, pki.untrusted):
            creds = client_credentials(pki, identity, protocols=[f"tls{version}"])
            with pytest.raises(OSError):
                with connect(served.port, credentials=creds) as channel:
                    channel.recv(1)
            told = served.result()
            assert isinstance(told, Background)
            assert isinstance(told.error, tls.TLSError)
    assert len(seen) == 1
    assert "A client" in seen[0]


def test_a_client_of_pythons_ssl(pki: Pki) -> None:
    context = peers.ssl_client_context(pki.root)
    with serving(tls_server(pki.server, answer_one_line)) as served:
        with (
            socket.create_connection((HOST, served.port), LIMIT) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(b"line\n")
            assert connection.recv(10) == b"enil\n"
            # A clean end: close_notify, not a ragged one.
            assert connection.recv(1) == b""
            with contextlib.suppress(ssl.SSLError):
                connection.unwrap()


def test_no_listener_is_left_by_an_error(pki: Pki) -> None:
    """A port in use, an address that is not ours: nothing stays open."""

    async def main() -> None:
        with silent_server() as taken:
            with pytest.raises(OSError):
                tls.tls_socket(
                    taken.getsockname()[1],
                    server=print,
                    credentials=server_credentials(pki.server),
                    myaddr=HOST,
                )
        with pytest.raises(OSError):
            listen(pki, print, myaddr="192.0.2.1")
        with pytest.raises(OSError):
            listen(pki, print, myaddr="no such address")

    run(main())
