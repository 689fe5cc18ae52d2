"""Socket commands: registered, given for one call, wrapping the default, odd."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from certs import Pki
from channels import Work, held_back, run, tcp_pair
from twapi_support import (
    HOST,
    LIMIT,
    Background,
    answer_one_line,
    client_credentials,
    connect,
    server_credentials,
    serving,
    tls_server,
)

import twapi_tls as tls

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    before = tls.tls_socket_command()
    yield
    tls.tls_socket_command(before)


class Recorder:
    """A command that notes its arguments and does what the default does."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any]] = []

    def __call__(self, *address: Any, **options: Any) -> Any:
        self.calls.append((address, options))
        return tls.socket_command(*address, **options)


def talk(port: int, pki: Pki, **options: Any) -> None:
    with connect(port, pki, **options) as channel:
        channel.puts(b"line")
        assert channel.gets() == b"enil"


def test_registering_gives_the_one_before() -> None:
    default = tls.tls_socket_command()
    assert default is tls.socket_command
    mine = Recorder()
    assert tls.tls_socket_command(mine) is default
    assert tls.tls_socket_command() is mine
    assert tls.tls_socket_command(default) is mine
    assert tls.tls_socket_command() is default


@pytest.mark.parametrize("wrong", [7, "socket", b"", [], 0, False])
def test_what_cannot_be_called_is_refused_and_changes_nothing(wrong: Any) -> None:
    before = tls.tls_socket_command()
    with pytest.raises(TypeError, match="callable"):
        tls.tls_socket_command(wrong)
    assert tls.tls_socket_command() is before


def test_the_registry_is_per_process() -> None:
    """What a thread registers, all see; no registration is lost or doubled."""
    commands = [Recorder() for _ in range(50)]
    start = threading.Barrier(2)

    def register(part: list[Recorder]) -> list[Any]:
        start.wait(LIMIT)
        return [tls.tls_socket_command(command) for command in part]

    works = [Work(register, commands[:25]), Work(register, commands[25:])]
    given = [before for work in works for before in work.result()]
    last = tls.tls_socket_command()
    # Each was the registered one exactly once.
    assert sorted(map(id, [*given, last])) == sorted(map(id, [*commands, tls.socket_command]))


def test_how_a_clients_command_is_called(pki: Pki) -> None:
    mine = Recorder()
    tls.tls_socket_command(mine)
    with serving(tls_server(pki.server, answer_one_line)) as served:
        talk(served.port, pki, myaddr=HOST)
        talk(served.port, pki, async_=True)
    assert served.result() == "line"
    # The first is the listener's.
    assert mine.calls[0][0] == (0,)
    assert set(mine.calls[0][1]) == {"server", "myaddr"}
    assert mine.calls[0][1]["myaddr"] == HOST
    assert callable(mine.calls[0][1]["server"])
    assert mine.calls[1:] == [
        (("localhost", served.port), {"myaddr": HOST, "myport": None, "async_": False}),
        (("localhost", served.port), {"myaddr": None, "myport": None, "async_": True}),
    ]


def test_socketcmd_goes_before_the_registered(pki: Pki) -> None:
    registered, mine = Recorder(), Recorder()
    with serving(tls_server(pki.server, answer_one_line)) as served:
        tls.tls_socket_command(registered)
        talk(served.port, pki, socketcmd=mine)
        # As in TWAPI, the empty word means the plain socket command.
        talk(served.port, pki, socketcmd="")
        assert len(mine.calls) == 1
        assert registered.calls == []
        talk(served.port, pki)
        assert len(registered.calls) == 1


def test_our_own_end(pki: Pki) -> None:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        myport = probe.getsockname()[1]
    with serving(tls_server(pki.server, answer_one_line)) as served:
        with connect(served.port, pki, myaddr=HOST, myport=myport) as channel:
            assert channel.getsockname() == (HOST, myport)
            channel.puts(b"conninfo")
            assert f'"{HOST}", {myport}'.encode() in channel.gets()


def test_a_command_may_give_any_transport(pki: Pki) -> None:
    """A socket, a plain channel, an open TLS channel, a stream object."""
    from test_starttls import Wrapped

    def as_socket(host: str, port: int, **_: Any) -> Any:
        return socket.create_connection((host, port), LIMIT)

    def as_channel(host: str, port: int, **options: Any) -> Any:
        return tls.TcpChannel(as_socket(host, port))

    def as_object(host: str, port: int, **options: Any) -> Any:
        return Wrapped(as_socket(host, port))

    with serving(tls_server(pki.server, answer_one_line)) as served:
        for command in (as_socket, as_channel, as_object):
            talk(served.port, pki, socketcmd=command)


def test_a_command_behind_a_proxy(pki: Pki) -> None:
    """What socket commands are for: somebody else's dialogue comes first."""

    def serve_proxy(sock: socket.socket) -> None:
        with sock:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += sock.recv(1)
            _, target, _ = request.split(b" ", 2)
            host, _, port = target.decode().rpartition(":")
            with socket.create_connection((host, int(port)), LIMIT) as onward:
                sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                works = [Work(relay, sock, onward), Work(relay, onward, sock)]
                for work in works:
                    work.wait()

    def relay(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def through_proxy(host: str, port: int, **_: Any) -> Any:
        one, other = tcp_pair()
        proxies.append(Work(serve_proxy, other))
        one.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += one.recv(1)
        assert b" 200 " in answer
        return one

    proxies: list[Work] = []
    with serving(tls_server(pki.server, answer_one_line)) as served:
        talk(served.port, pki, socketcmd=through_proxy)
        for proxy in proxies:
            proxy.result()


NONSENSE = [None, 7, "a socket", object(), b"", tls.TlsChannel]


@pytest.mark.parametrize("given", NONSENSE, ids=repr)
@pytest.mark.parametrize("async_", [False, True])
def test_a_clients_command_that_gives_nonsense(pki: Pki, given: Any, async_: bool) -> None:
    with pytest.raises(TypeError) as caught:
        tls.tls_socket("localhost", 1, socketcmd=lambda *_, **__: given, async_=async_)
    assert "socket command" in str(caught.value)


def test_a_clients_command_that_gives_an_unusable_socket(pki: Pki) -> None:
    def closed(*_: Any, **__: Any) -> Any:
        sock = socket.socket()
        sock.close()
        return sock

    made = []

    def unconnected(*_: Any, **__: Any) -> Any:
        made.append(socket.socket())
        return made[-1]

    for command in (closed, unconnected):
        with pytest.raises(OSError):
            tls.tls_socket("localhost", 1, socketcmd=command, timeout=LIMIT)
    assert made[0].fileno() == -1


def test_what_a_command_raises_is_raised() -> None:
    class Odd(Exception):
        pass

    def command(*_: Any, **__: Any) -> Any:
        raise Odd

    for async_ in (False, True):
        with pytest.raises(Odd):
            tls.tls_socket("localhost", 1, socketcmd=command, async_=async_)


def test_what_a_pending_attempt_raises_or_gives_is_the_channels(pki: Pki) -> None:
    from twapi_tls.sockets import PendingConnection

    class Odd(Exception):
        pass

    def failing() -> Any:
        raise Odd("in the thread")

    for attempt, kind in ((failing, Odd), (lambda: 7, TypeError), (lambda: None, TypeError)):
        channel = tls.tls_socket(
            "localhost",
            1,
            async_=True,
            timeout=LIMIT,
            socketcmd=lambda *_, attempt=attempt, **__: PendingConnection(attempt),
        )
        with channel:
            for _ in range(2):
                with pytest.raises(kind):
                    channel.recv(1)
            assert isinstance(channel.cget("error"), kind)
            assert tls.tls_state(channel) == "CLOSED"


def test_a_pending_attempt_that_is_given_up_is_closed() -> None:
    go = threading.Event()
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(LIMIT)
        channel = tls.tls_socket(
            HOST, listener.getsockname()[1], async_=True, socketcmd=held_back(go)
        )
        channel.close()
        go.set()
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            assert accepted.recv(1) == b""


# --- listeners


@pytest.mark.parametrize("given", [None, 7, "a listener", object()], ids=repr)
def test_a_listeners_command_that_gives_nonsense(pki: Pki, given: Any) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="socket command"):
            tls.tls_socket(
                0,
                server=print,
                credentials=server_credentials(pki.server),
                socketcmd=lambda *_, **__: given,
            )

    run(main())


def test_a_listeners_command_that_accepts_in_a_thread(pki: Pki) -> None:
    """It may call ``server`` from wherever it likes."""

    class Threaded:
        def __init__(self, port: int, *, server: Any, myaddr: Any) -> None:
            self._sock = socket.create_server((HOST, port))
            self.getsockname = self._sock.getsockname
            self._server = server
            self._work = Work(self._accept)

        def _accept(self) -> None:
            while True:
                try:
                    sock, (address, port) = self._sock.accept()
                except OSError:
                    return
                self._server(sock, address, port)

        def close(self) -> None:
            if sys.platform == "win32":
                self._sock.close()  # what wakes accept() there
            else:
                self._sock.shutdown(socket.SHUT_RDWR)
            self._work.wait()
            self._sock.close()

    with serving(tls_server(pki.server, answer_one_line, socketcmd=Threaded)) as served:
        for _ in range(3):
            talk(served.port, pki)
            assert served.result() == "line"


def test_a_listeners_command_that_accepts_nonsense(pki: Pki) -> None:
    """A background error that names it; the next connection is served."""
    deliver: list[Any] = []

    def command(port: int, *, server: Any, myaddr: Any) -> Any:
        deliver.append(server)
        return tls.socket_command(port, server=server, myaddr=myaddr)

    with serving(tls_server(pki.server, answer_one_line, socketcmd=command)) as served:
        for nonsense in (None, 7, object()):
            deliver[0](nonsense, HOST, 1)
            told = served.result()
            assert isinstance(told, Background)
            assert isinstance(told.error, TypeError)
        talk(served.port, pki)
        assert served.result() == "line"


def test_a_listeners_command_that_raises(pki: Pki) -> None:
    async def main() -> None:
        with socket.create_server((HOST, 0)) as taken:
            with pytest.raises(OSError):
                tls.tls_socket(
                    taken.getsockname()[1],
                    server=print,
                    credentials=server_credentials(pki.server),
                    myaddr=HOST,
                )

    run(main())


def test_credentials_are_not_needed_for_a_command(pki: Pki) -> None:
    """The default command alone makes plain sockets, for programs of their own."""
    with serving(tls_server(pki.server, answer_one_line)) as served:
        plain = tls.socket_command("localhost", served.port, async_=False)
        assert isinstance(plain, socket.socket)
        with tls.starttls(
            plain, peersubject="localhost", credentials=client_credentials(pki)
        ) as channel:
            channel.settimeout(LIMIT)
            channel.puts(b"line")
            assert channel.gets() == b"enil"
