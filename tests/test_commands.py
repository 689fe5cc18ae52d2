"""tls_socket's arguments, tls_handshake, tls_state and tls_close."""

from __future__ import annotations

import asyncio
import inspect
import io
import socket
import threading
import time
from typing import Any

import peers
import pytest
from certs import Pki
from channels import Work, held_back, plain_pair, run, tcp_pair, tls_pair
from twapi_support import (
    HOST,
    LIMIT,
    answer_lines,
    answer_one_line,
    client_credentials,
    connect,
    server_credentials,
    serving,
    silent_server,
    tls_server,
)

import twapi_tls as tls

pytestmark = pytest.mark.timeout(30)


# --- tls_state


@pytest.mark.parametrize(
    "thing", [None, 7, "chan", b"", object(), io.BytesIO(), tls.TlsChannel], ids=repr
)
@pytest.mark.parametrize("command", [tls.tls_state, tls.tls_handshake, tls.tls_close])
def test_what_is_no_tls_channel(command: Any, thing: Any) -> None:
    with pytest.raises(TypeError, match="not a valid TLS channel"):
        command(thing)


def test_a_socket_and_a_plain_channel_are_no_tls_channels() -> None:
    one, other = tcp_pair()
    with one, other:
        for command in (tls.tls_state, tls.tls_handshake, tls.tls_close):
            with pytest.raises(TypeError):
                command(one)
        assert one.fileno() >= 0
    with plain_pair() as (here, _):
        for command in (tls.tls_state, tls.tls_handshake, tls.tls_close):
            with pytest.raises(TypeError):
                command(here)
        assert not here.closed


def test_the_states_of_a_client(pki: Pki) -> None:
    with serving(tls_server(pki.server, answer_one_line)) as served:
        with connect(served.port, pki, async_=True) as channel:
            assert tls.tls_state(channel) == "CLIENTINIT"
            channel.setblocking(False)
            while not tls.tls_handshake(channel):
                assert tls.tls_state(channel) in ("CLIENTINIT", "NEGOTIATING")
                threading.Event().wait(0.001)
            assert tls.tls_state(channel) == "OPEN"
        assert tls.tls_state(channel) == "CLOSED"


def test_the_states_of_a_server(pki: Pki) -> None:
    one, other = tcp_pair()
    with one:
        other.setblocking(False)
        channel = tls.starttls(other, server=True, credentials=server_credentials(pki.server))
        with channel:
            assert tls.tls_state(channel) == "SERVERINIT"
            assert tls.tls_handshake(channel) is False
            assert tls.tls_state(channel) == "SERVERINIT"
            one.sendall(b"\x16")  # a ClientHello's first byte
            channel.settimeout(0.05)
            with pytest.raises(TimeoutError):
                tls.tls_handshake(channel)
            assert tls.tls_state(channel) == "NEGOTIATING"
        assert tls.tls_state(channel) == "CLOSED"


def test_the_states_of_a_listener(pki: Pki) -> None:
    async def main() -> None:
        listener = tls.tls_socket(
            0, server=print, credentials=server_credentials(pki.server), myaddr=HOST
        )
        assert tls.tls_state(listener) == "LISTENER"
        tls.tls_close(listener)
        assert tls.tls_state(listener) == "CLOSED"
        tls.tls_close(listener)

    run(main())


# --- tls_handshake


def test_handshake_of_an_open_channel(pki: Pki) -> None:
    with tls_pair(pki) as (here, there):
        assert tls.tls_handshake(here) is True
        here.setblocking(False)
        assert tls.tls_handshake(here) is True
        # The peer's clean end does not take it back.
        there.close()
        assert tls.tls_handshake(here) is True


def test_handshake_finishes_on_a_blocking_channel(pki: Pki) -> None:
    with serving(tls_server(pki.server, answer_one_line)) as served:
        with connect(served.port, pki, async_=True) as channel:
            assert tls.tls_handshake(channel) is True
            assert tls.tls_state(channel) == "OPEN"


def test_handshake_drives_a_non_blocking_channel(pki: Pki) -> None:
    """Both ends in one thread: neither call may wait."""
    one, other = tcp_pair()
    for sock in (one, other):
        sock.setblocking(False)
    there = tls.starttls(other, server=True, credentials=server_credentials(pki.server))
    here = tls.starttls(one, peersubject="localhost", credentials=client_credentials(pki))
    with here, there:
        assert tls.tls_state(here) == "NEGOTIATING"
        end = time.monotonic() + LIMIT
        done = (False, False)
        while done != (True, True):
            assert time.monotonic() < end
            done = (tls.tls_handshake(here), tls.tls_handshake(there))
        assert tls.tls_state(here) == tls.tls_state(there) == "OPEN"


def test_handshake_raises_what_failed_every_time(pki: Pki) -> None:
    with peers.ssl_server(pki.untrusted) as server:
        with connect(server.port, pki, async_=True) as channel:
            errors = []
            for blocking in (True, True, False):
                channel.setblocking(blocking)
                with pytest.raises(tls.TLSVerificationError) as caught:
                    tls.tls_handshake(channel)
                errors.append(caught.value)
            assert errors[0] is errors[1] is errors[2]


def test_handshake_of_a_closed_channel(pki: Pki) -> None:
    with tls_pair(pki) as (here, _):
        here.close()
        with pytest.raises(tls.TLSClosedError):
            tls.tls_handshake(here)


def test_handshake_of_a_closed_channel_that_had_failed_tells_the_cause(pki: Pki) -> None:
    with peers.ssl_server(pki.untrusted) as server:
        channel = connect(server.port, pki, async_=True)
        with pytest.raises(tls.TLSVerificationError):
            tls.tls_handshake(channel)
        channel.close()
        with pytest.raises(tls.TLSVerificationError):
            tls.tls_handshake(channel)


def test_handshake_of_a_listener(pki: Pki) -> None:
    async def main() -> None:
        with tls.tls_socket(
            0, server=print, credentials=server_credentials(pki.server), myaddr=HOST
        ) as listener:
            with pytest.raises(tls.TLSError, match="listening"):
                tls.tls_handshake(listener)
            assert tls.tls_state(listener) == "LISTENER"

    run(main())


def test_a_handshake_that_times_out_goes_on_later(pki: Pki) -> None:
    go = threading.Event()
    one, other = tcp_pair()

    def serve() -> Any:
        assert go.wait(LIMIT)
        return tls.starttls(other, server=True, credentials=server_credentials(pki.server))

    serving_other = Work(serve)
    one.setblocking(False)
    here = tls.starttls(one, peersubject="localhost", credentials=client_credentials(pki))
    with here:
        here.settimeout(0.05)
        for call in (lambda: tls.tls_handshake(here), lambda: here.recv(1)):
            with pytest.raises(tls.TLSTimeoutError) as caught:
                call()
            assert isinstance(caught.value, TimeoutError)
        assert tls.tls_state(here) == "NEGOTIATING"
        go.set()
        here.settimeout(LIMIT)
        assert tls.tls_handshake(here) is True
        serving_other.result().abort()


# --- tls_close


@pytest.mark.parametrize("word", ["write", "writ", "wri", "wr", "w"])
def test_half_close_by_any_abbreviation(pki: Pki, word: str) -> None:
    with tls_pair(pki) as (here, there):
        here.configure(buffering="full")
        here.write(b"flushed first")
        tls.tls_close(here, word)
        tls.tls_close(here, word)
        assert tls.tls_state(here) == "OPEN"
        assert there.read() == b"flushed first"
        there.sendall(b"answer")
        assert here.recv(10) == b"answer"
        with pytest.raises(BrokenPipeError):
            here.write(b"x")
        tls.tls_close(here)
        assert tls.tls_state(here) == "CLOSED"
        assert there.recv(1) == b""


@pytest.mark.parametrize("word", ["read", "rea", "re", "r", "", "W", "writes", "both", "wx"])
def test_bad_directions_close_nothing(pki: Pki, word: str) -> None:
    with tls_pair(pki) as (here, there):
        with pytest.raises(ValueError):
            tls.tls_close(here, word)
        for wrong in (0, b"write", ["write"]):
            with pytest.raises(TypeError):
                tls.tls_close(here, wrong)  # type: ignore[arg-type]
        here.sendall(b"open")
        assert there.recv(10) == b"open"
        there.sendall(b"both ways")
        assert here.recv(10) == b"both ways"


def test_the_reading_side_is_named(pki: Pki) -> None:
    with tls_pair(pki) as (here, _):
        with pytest.raises(ValueError, match="input side"):
            tls.tls_close(here, "read")
        with pytest.raises(ValueError, match="must be 'write'"):
            tls.tls_close(here, "sideways")


def test_half_close_of_a_closed_channel_does_nothing(pki: Pki) -> None:
    with tls_pair(pki) as (here, there):
        tls.tls_close(here)
        assert tls.tls_close(here, "write") is None  # type: ignore[func-returns-value]
        tls.tls_close(here)
        assert tls.tls_state(here) == "CLOSED"
        assert here.cget("error") is None
        assert there.read() == b""  # one close_notify, one end


def test_half_close_before_open(pki: Pki) -> None:
    """Blocking: negotiates first. Non-blocking: it waits its turn."""
    go = threading.Event()
    # It reads to the end: who closes with something unread resets.
    with serving(tls_server(pki.server, answer_lines)) as served:
        with connect(served.port, pki, async_=True, socketcmd=held_back(go)) as channel:
            channel.setblocking(False)
            channel.write(b"line\n")
            tls.tls_close(channel, "write")
            with pytest.raises(BrokenPipeError):
                channel.write(b"more\n")
            go.set()
            channel.settimeout(LIMIT)
            tls.tls_handshake(channel)
            assert channel.gets() == b"enil"
            assert channel.gets() is None  # the server has seen our end


def test_half_close_of_a_failed_channel_raises_its_error(pki: Pki) -> None:
    with peers.ssl_server(pki.untrusted) as server:
        with connect(server.port, pki, async_=True) as channel:
            with pytest.raises(tls.TLSVerificationError):
                tls.tls_close(channel, "write")
            with pytest.raises(tls.TLSVerificationError):
                tls.tls_close(channel, "write")


def test_closing_before_open(pki: Pki) -> None:
    with silent_server() as listener:
        channel = connect(listener.getsockname()[1], pki, async_=True)
        tls.tls_close(channel)
        tls.tls_close(channel)
        assert tls.tls_state(channel) == "CLOSED"
        # The peer, if it was connected to at all, sees the end.
        listener.settimeout(0.2)
        try:
            accepted, _ = listener.accept()
        except TimeoutError:
            return
        with accepted:
            accepted.settimeout(LIMIT)
            assert accepted.recv(10) == b""


def test_closing_frees_automatic_credentials_and_no_others(pki: Pki) -> None:
    creds = client_credentials(pki)
    with serving(tls_server(pki.server, answer_one_line)) as served:
        with connect(served.port, credentials=creds) as channel:
            assert channel.cget("credentials") is creds
        assert not creds.freed
        with connect(served.port, verifier=lambda *_: True) as channel:
            own = channel.cget("credentials")
            assert not own.freed
        assert own.freed
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    channel = tls.tls_socket(HOST, port, async_=True)
    own = channel.cget("credentials")
    with channel, pytest.raises(ConnectionRefusedError):
        tls.tls_handshake(channel)
    assert own.freed


def test_freeing_credentials_does_not_hurt_the_channel(pki: Pki) -> None:
    creds = client_credentials(pki)
    with serving(tls_server(pki.server, answer_one_line)) as served:
        with connect(served.port, credentials=creds) as channel:
            tls.sspi_free_credentials(creds)
            channel.puts(b"line")
            assert channel.gets() == b"enil"
        with pytest.raises(ValueError, match="freed"):
            connect(served.port, credentials=creds)


# --- tls_socket's arguments


@pytest.mark.parametrize(
    ("positional", "named", "kind", "says"),
    [
        ((), {}, TypeError, "host and port"),
        (("h",), {}, TypeError, "host and port"),
        (("h", 1, 2), {}, TypeError, "host and port"),
        ((7, 1), {}, TypeError, "host"),
        (("", 1), {}, ValueError, "host"),
        (("h", "no such service"), {}, ValueError, "port"),
        (("h", -1), {}, ValueError, "port"),
        (("h", 65536), {}, ValueError, "port"),
        (("h", 1.5), {}, TypeError, "port"),
        (("h", True), {}, TypeError, "port"),
        (("h", None), {}, TypeError, "port"),
        (("h", 1), {"myport": "http"}, TypeError, "myport"),
        (("h", 1), {"myport": 70000}, ValueError, "myport"),
        (("h", 1), {"myaddr": 5}, TypeError, "myaddr"),
        (("h", 1), {"credentials": "mine"}, TypeError, "credentials"),
        (("h", 1), {"credentials": print}, TypeError, "credentials"),
        (("h", 1), {"peersubject": 5}, TypeError, "name"),
        (("h", 1), {"peersubject": ""}, ValueError, "peersubject"),
        (("h", 1), {"socketcmd": 5}, TypeError, "socketcmd"),
        (("h", 1), {"timeout": -1}, ValueError, "[Tt]imeout"),
        (("h", 1), {"timeout": "1"}, TypeError, "timeout"),
        (("h", 1), {"alpn": [""]}, ValueError, "ALPN"),
        (("h", 1), {"alpn": 5}, TypeError, "."),
        (("h", 1), {"colour": "red"}, TypeError, "colour"),
        (("h", 1), {"handshake_timeout": 5}, TypeError, "handshake_timeout"),
        (("h", 1), {"max_handshakes": 5}, TypeError, "max_handshakes"),
    ],
)
def test_bad_arguments_of_a_client(
    positional: Any, named: Any, kind: type[Exception], says: str
) -> None:
    def command(*_: Any, **__: Any) -> Any:
        raise AssertionError("a connection was tried")

    named = {"socketcmd": command, **named}
    with pytest.raises(kind, match=says):
        tls.tls_socket(*positional, **named)


@pytest.mark.parametrize(
    ("positional", "named", "kind", "says"),
    [
        ((), {}, TypeError, "port"),
        ((HOST, 0), {}, TypeError, "port"),
        ((0,), {"server": ""}, ValueError, "server"),
        ((0,), {"server": 5}, TypeError, "server"),
        ((0,), {"credentials": None}, ValueError, "credentials are required"),
        ((0,), {"credentials": "mine"}, TypeError, "credentials"),
        ((-1,), {}, ValueError, "port"),
        ((0,), {"async_": True}, TypeError, "async_"),
        ((0,), {"myport": 1}, TypeError, "myport"),
        ((0,), {"timeout": 1}, TypeError, "timeout"),
        ((0,), {"max_handshakes": 0}, ValueError, "max_handshakes"),
        ((0,), {"max_handshakes": 1.5}, TypeError, "max_handshakes"),
        ((0,), {"handshake_timeout": -1}, ValueError, "[Tt]imeout"),
        ((0,), {"verifier": 5}, TypeError, "verifier"),
        ((0,), {"colour": "red"}, TypeError, "colour"),
        ((0,), {"myaddr": 5}, TypeError, "myaddr"),
    ],
)
def test_bad_arguments_of_a_listener(
    pki: Pki, positional: Any, named: Any, kind: type[Exception], says: str
) -> None:
    async def main() -> None:
        options = {"server": print, "credentials": server_credentials(pki.server), **named}
        with pytest.raises(kind, match=says):
            tls.tls_socket(*positional, **options)

    run(main())


def test_credentials_of_the_wrong_role(pki: Pki) -> None:
    with pytest.raises(ValueError, match="client credentials are needed"):
        connect(1, credentials=server_credentials(pki.server))

    async def main() -> None:
        with pytest.raises(ValueError, match="server credentials are needed"):
            tls.tls_socket(0, server=print, credentials=client_credentials(pki))

    run(main())


def test_what_the_manual_ignores_is_ignored(pki: Pki) -> None:
    with serving(tls_server(pki.server, answer_one_line, peersubject="nobody")) as served:
        with connect(served.port, pki, requestclientcert=True) as channel:
            channel.puts(b"x")
            assert channel.gets() == b"x"


def test_signatures_are_the_specifications() -> None:
    parameters = inspect.signature(tls.tls_socket).parameters
    for name in (
        "server async_ myaddr myport credentials peersubject verifier requestclientcert "
        "socketcmd timeout"
    ).split():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(tls.starttls).parameters
    assert list(parameters)[0] == "chan"
    for name in "server credentials peersubject verifier requestclientcert".split():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(inspect.signature(tls.tls_close).parameters.values())[1].default is None


def test_host_and_port_by_name(pki: Pki) -> None:
    with serving(tls_server(pki.server, answer_one_line)) as served:
        with tls.tls_socket(
            host="localhost", port=str(served.port), credentials=client_credentials(pki)
        ) as channel:
            assert channel.state == "OPEN"


def test_peersubject_defaults_to_host(pki: Pki) -> None:
    with serving(tls_server(pki.server, answer_one_line)) as served:
        creds = client_credentials(pki)
        for host in ("localhost", HOST):
            with tls.tls_socket(host, served.port, credentials=creds, timeout=LIMIT) as channel:
                assert channel.state == "OPEN"
        with pytest.raises(tls.TLSVerificationError) as caught:
            tls.tls_socket(
                HOST, served.port, credentials=creds, timeout=LIMIT, peersubject="elsewhere"
            )
        assert caught.value.name == "SEC_E_WRONG_PRINCIPAL"


def test_the_timeout_covers_connect_and_handshake(pki: Pki) -> None:
    with silent_server() as listener:
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            tls.tls_socket(HOST, listener.getsockname()[1], timeout=0.1)
        assert time.monotonic() - begin < LIMIT


def test_the_timeout_becomes_the_channels(pki: Pki, monkeypatch: Any) -> None:
    with serving(tls_server(pki.server, answer_one_line)) as served:
        with connect(served.port, pki) as channel:
            assert channel.gettimeout() == LIMIT
        monkeypatch.setattr(socket, "getdefaulttimeout", lambda: 3.5)
        with tls.tls_socket(
            "localhost", served.port, credentials=client_credentials(pki)
        ) as channel:
            assert channel.gettimeout() == 3.5


def test_async_does_not_wait_for_the_name(pki: Pki, monkeypatch: Any) -> None:
    """The look-up goes off-thread, the channel is blocking and CLIENTINIT."""
    go = threading.Event()
    real = socket.getaddrinfo
    threads = []

    def slow(*arguments: Any, **named: Any) -> Any:
        threads.append(threading.current_thread())
        assert go.wait(LIMIT)
        return real(*arguments, **named)

    with serving(tls_server(pki.server, answer_one_line)) as served:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        with connect(served.port, pki, async_=True) as channel:
            assert tls.tls_state(channel) == "CLIENTINIT"
            assert channel.cget("blocking") is True
            assert channel.cget("connecting") is True
            go.set()
            channel.puts(b"line")
            assert channel.gets() == b"enil"
        assert threading.current_thread() not in threads


def test_async_without_a_loop_is_driven_by_the_next_call(pki: Pki) -> None:
    with serving(tls_server(pki.server, answer_one_line)) as served:
        with connect(served.port, pki, async_=True) as channel:
            assert channel.write(b"line\n") == 5
            assert tls.tls_state(channel) == "OPEN"
            assert channel.gets() == b"enil"


def test_async_with_a_loop_is_driven_by_it_alone(pki: Pki) -> None:
    async def main(port: int) -> None:
        channel = connect(port, pki, async_=True)
        with channel:
            end = time.monotonic() + LIMIT
            while tls.tls_state(channel) != "OPEN":
                assert time.monotonic() < end
                await asyncio.sleep(0.001)
            assert channel.cget("blocking") is True

    with serving(tls_server(pki.server, answer_one_line)) as served:
        run(main(served.port))


def test_loop_needs_async() -> None:
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(TypeError, match="async_"):
            tls.tls_socket("h", 1, loop=loop)
    finally:
        loop.close()


def test_engine_is_named() -> None:
    assert tls.engine.name
    assert tls.engine.version
