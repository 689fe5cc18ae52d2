"""tls_background_error: errors that no caller can receive."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from certs import Pki
from channels import clog, tcp_pair, tls_pair
from platforms import WINE
from twapi_support import (
    HOST,
    LIMIT,
    client_credentials,
    connect,
    server_credentials,
)

import twapi_tls as tls

pytestmark = pytest.mark.timeout(30)

versions = pytest.mark.parametrize("version", ["1.2", "1.3"])

ORIGINAL = tls.__tls_background_error__


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    yield
    tls.tls_background_error = ORIGINAL


class Loop:
    """What reached the loop's exception handler."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.changed = asyncio.Event()

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.told.append(context)
        self.changed.set()

    async def one(self) -> dict[str, Any]:
        """The first report, and no other after it."""
        await asyncio.wait_for(self.changed.wait(), LIMIT)
        await asyncio.sleep(0.05)
        assert len(self.told) == 1, self.told
        return self.told[0]


def run(main: Callable[[Loop], Any]) -> Any:
    async def bounded() -> Any:
        told = Loop()
        asyncio.get_running_loop().set_exception_handler(told)
        return await asyncio.wait_for(main(told), 4 * LIMIT)

    return asyncio.run(bounded())


class Odd(Exception):
    """What the tests raise."""


def listen(pki: Pki, callback: Any = print, **options: Any) -> Any:
    return tls.tls_socket(
        0,
        server=callback,
        credentials=server_credentials(pki.server),
        myaddr=HOST,
        **options,
    )


def client_of(listener: Any) -> socket.socket:
    return socket.create_connection(listener.getsockname(), LIMIT)


# --- the hook


def test_the_default_raises_the_exception() -> None:
    assert tls.tls_background_error is ORIGINAL
    error = Odd("the text")
    with pytest.raises(Odd) as caught:
        ORIGINAL("the text", {"exception": error})
    assert caught.value is error
    with pytest.raises(RuntimeError, match="the text"):
        ORIGINAL("the text", {})


OPTIONS = {"code", "errorcode", "errorinfo", "exception", "channel", "phase"}


def test_what_the_hook_is_given(pki: Pki) -> None:
    given: list[Any] = []

    def hook(message: str, options: dict[str, Any]) -> None:
        given.append((message, options))
        raise options["exception"]

    tls.tls_background_error = hook

    async def main(loop: Loop) -> None:
        with listen(pki) as listener, client_of(listener) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            told = await loop.one()
        ((message, options),) = given
        assert options.keys() == OPTIONS
        error = options["exception"]
        assert told["exception"] is error
        assert isinstance(error, tls.TLSError)
        assert message == str(error)
        assert "HTTP" in message
        assert options["code"] == error.code != 0
        assert options["errorcode"] == error.errorcode
        assert options["phase"] == "handshake"
        assert isinstance(options["channel"], tls.TlsChannel)
        assert tls.tls_state(options["channel"]) == "CLOSED"
        assert "Traceback" in options["errorinfo"]
        assert message in options["errorinfo"]
        # What the loop's handler is told names us, and the channel.
        assert "twapi_tls" in told["message"]
        assert told["channel"] is options["channel"]

    run(main)


def test_options_of_an_error_that_is_not_ours(pki: Pki) -> None:
    given: list[Any] = []

    def hook(message: str, options: dict[str, Any]) -> None:
        given.append((message, options))
        raise options["exception"]

    tls.tls_background_error = hook

    def fail(*_: Any) -> None:
        raise Odd("of the callback")

    async def main(loop: Loop) -> None:
        with listen(pki, fail) as listener:
            channel = await asyncio.to_thread(connect, listener.getsockname()[1], pki)
            with channel:
                await loop.one()
        ((message, options),) = given
        assert options.keys() == OPTIONS
        assert message == "of the callback"
        assert options["code"] == 0
        assert options["errorcode"] == ()
        assert options["phase"] == "callback"
        assert "in fail" in options["errorinfo"]

    run(main)


@pytest.mark.parametrize("override", ["returns", "raises its own", "raises the original", "none"])
def test_what_is_raised_reaches_the_loop_once(pki: Pki, override: str) -> None:
    calls: list[str] = []

    def hook(message: str, options: dict[str, Any]) -> None:
        calls.append(message)
        if override == "raises its own":
            raise Odd("another message")
        if override == "raises the original":
            raise options["exception"]

    if override != "none":
        tls.tls_background_error = hook

    async def main(loop: Loop) -> None:
        with listen(pki) as listener, client_of(listener) as client:
            client.sendall(b"SSH-2.0-client\r\n")
            told = await loop.one()
        assert isinstance(told["exception"], Odd if override == "raises its own" else tls.TLSError)
        assert len(calls) == (0 if override == "none" else 1)

    run(main)


def test_a_hook_of_wrong_signature_is_an_error_as_well(pki: Pki) -> None:
    tls.tls_background_error = lambda: None  # type: ignore[assignment]

    async def main(loop: Loop) -> None:
        with listen(pki) as listener, client_of(listener) as client:
            client.sendall(b"SSH-2.0-client\r\n")
            assert isinstance((await loop.one())["exception"], TypeError)

    run(main)


def test_the_default_handler_of_the_loop_logs_it(pki: Pki, caplog: Any) -> None:
    async def main() -> None:
        with listen(pki) as listener, client_of(listener) as client:
            client.sendall(b"SSH-2.0-client\r\n")
            end = asyncio.get_running_loop().time() + LIMIT
            while not caplog.records and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.001)
        (record,) = caplog.records
        assert "twapi_tls" in record.getMessage()
        assert isinstance(record.exc_info[1], tls.TLSError)

    asyncio.run(main())


# --- each phase


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# Wine may have taken a reset's error off the socket before we read: an end.
RESET = "reset|EOF" if WINE else "reset"
HELLO = bytes.fromhex("160301 00f8 01 0000f4 0303".replace(" ", ""))


@pytest.mark.parametrize(
    ("act", "kind", "says"),
    [
        (lambda s: s.sendall(b"GET / HTTP/1.1\r\n\r\n"), tls.TLSError, "HTTP"),
        (lambda s: s.sendall(b"EHLO x\r\n" * 4), tls.TLSError, "TLS"),
        (lambda s: s.sendall(b"\x16\x03\x01\xff\xff" + bytes(100)), tls.TLSError, "."),
        (lambda s: s.shutdown(socket.SHUT_WR), tls.TLSError, "EOF"),
        (lambda s: (s.sendall(HELLO), s.shutdown(socket.SHUT_WR)), tls.TLSError, "EOF"),
        (reset, OSError, RESET),
        (lambda s: (s.sendall(HELLO), reset(s)), OSError, RESET),
    ],
    ids=["http", "smtp", "oversized", "closes", "closes in the middle", "resets", "resets later"],
)
@pytest.mark.parametrize("when", ["readable at accept", "later"])
def test_a_handshake_that_fails(pki: Pki, act: Any, kind: Any, says: str, when: str) -> None:
    """Also when the failing bytes were readable before the loop accepted."""

    async def main(loop: Loop) -> None:
        callbacks: list[Any] = []
        listener = listen(pki, lambda *arguments: callbacks.append(arguments))
        client = client_of(listener)
        with listener, client:
            if when == "later":
                # The loop takes the connection and finds nothing to read.
                end = asyncio.get_running_loop().time() + LIMIT
                while not listener._unfinished and asyncio.get_running_loop().time() < end:
                    await asyncio.sleep(0)
            act(client)
            told = await loop.one()
            assert isinstance(told["exception"], kind)
            assert re.search(says, str(told["exception"])), told["exception"]
            assert callbacks == []
            assert told["channel"].fileno() == -1
            if client.fileno() >= 0:
                # The peer sees the end, perhaps after an alert.
                client.settimeout(LIMIT)
                try:
                    while await asyncio.to_thread(client.recv, 100):
                        pass
                except ConnectionResetError:
                    pass

    run(main)


@versions
def test_a_client_that_refuses_us(pki: Pki, version: str) -> None:
    async def main(loop: Loop) -> None:
        with listen(pki) as listener:

            def ask() -> None:
                creds = client_credentials(pki, protocols=[f"tls{version}"])
                with pytest.raises(tls.TLSVerificationError):
                    connect(
                        listener.getsockname()[1], credentials=creds, peersubject="other.example"
                    )

            await asyncio.to_thread(ask)
            error = (await loop.one())["exception"]
            assert isinstance(error, tls.TLSAlertError)
            assert error.alert == error.alert_received is not None

    run(main)


def test_accept_that_fails(pki: Pki, monkeypatch: Any) -> None:
    """No descriptor left: told once, and the loop does not spin on it."""
    import errno

    from twapi_tls import sockets

    tries = []

    class Poor(socket.socket):
        def accept(self) -> Any:
            tries.append(1)
            if len(tries) == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr(sockets, "REST", 0.05)

    async def main(loop: Loop) -> None:
        done = asyncio.Event()
        listener = listen(pki, lambda channel, *_: (channel.close(), done.set()))
        inner = listener._below._sockets
        inner[0] = Poor(fileno=inner[0].detach())
        inner[0].setblocking(False)
        listener._below.pause()
        listener._below.resume()
        with listener:
            channel = await asyncio.to_thread(connect, listener.getsockname()[1], pki)
            with channel:
                await asyncio.wait_for(done.wait(), LIMIT)
            told = await loop.one()
            assert told["exception"].errno == errno.EMFILE
            assert told["channel"] is not None

    run(main)


@pytest.mark.parametrize("sort", ["function", "coroutine"])
def test_a_callback_that_raises(pki: Pki, sort: str) -> None:
    """Its channel is closed: nobody else is sure to hold it."""
    phases: list[Any] = []

    def hook(message: str, options: dict[str, Any]) -> None:
        phases.append(options["phase"])
        raise options["exception"]

    tls.tls_background_error = hook

    def callback(*_: Any) -> None:
        raise Odd("in the callback")

    async def coroutine(*_: Any) -> None:
        await asyncio.sleep(0)
        raise Odd("in the callback")

    async def main(loop: Loop) -> None:
        with listen(pki, callback if sort == "function" else coroutine) as listener:
            channel = await asyncio.to_thread(connect, listener.getsockname()[1], pki)
            with channel:
                assert isinstance((await loop.one())["exception"], Odd)
                assert await asyncio.to_thread(channel.recv, 1) == b""
        assert phases == ["callback"]

    run(main)


@versions
@pytest.mark.parametrize("kind", ["readable", "writable"])
def test_a_handler_that_raises_is_removed(pki: Pki, version: str, kind: str) -> None:
    phases: list[Any] = []

    def hook(message: str, options: dict[str, Any]) -> None:
        phases.append((options["phase"], options["channel"]))
        raise options["exception"]

    tls.tls_background_error = hook

    async def main(loop: Loop) -> None:
        with tls_pair(pki, version=version) as (here, there):

            def handler() -> None:
                raise Odd("in the handler")

            there.sendall(b"x")
            here.event(kind, handler)
            assert isinstance((await loop.one())["exception"], Odd)
            assert here.event(kind) is None
            assert phases == [("handler", here)]
            # The channel itself is unharmed.
            assert here.recv(1) == b"x"

    run(main)


@versions
def test_a_handler_that_meets_the_channels_error(pki: Pki, version: str) -> None:
    """Raised by the read in it: reported once, not again and again."""

    async def main(loop: Loop) -> None:
        with tls_pair(pki, version=version) as (here, there):
            here.event("readable", lambda: here.recv(10))
            there.abort()
            assert isinstance((await loop.one())["exception"], tls.TLSTruncatedError)

    run(main)


@versions
@pytest.mark.parametrize("how", ["reset", "too slow"])
def test_the_rest_of_a_closed_channel_that_cannot_be_sent(
    pki: Pki, version: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twapi_tls.background.LINGER", 0.2 if how == "too slow" else LIMIT)

    async def main(loop: Loop) -> None:
        with tls_pair(pki, version=version) as (here, there):
            here.setblocking(False)
            here.event("readable", lambda: None)
            clog(here, there)
            here.close()
            if how == "reset":
                sock = socket.socket(fileno=there.fileno())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.detach()
                there.abort()
            told = await loop.one()
            kind = ConnectionError if how == "reset" else tls.TLSTimeoutError
            assert isinstance(told["exception"], kind)
            assert told["channel"] is here
            assert "(close)" in told["message"]

    run(main)


def test_a_starttls_server_that_only_the_loop_drives(pki: Pki) -> None:
    async def main(loop: Loop) -> None:
        one, other = tcp_pair()
        one.setblocking(False)
        with other:
            channel = tls.starttls(one, server=True, credentials=server_credentials(pki.server))
            other.sendall(b"GET / HTTP/1.1\r\n\r\n")
            told = await loop.one()
            assert "HTTP" in str(told["exception"])
            assert told["channel"] is channel
            with channel, pytest.raises(tls.TLSError) as caught:
                channel.recv(1)
            assert caught.value is told["exception"]

    run(main)


# --- what is no background error


def test_a_clients_failure_is_its_callers(pki: Pki) -> None:
    """Kept for the next call, not reported."""

    async def main(loop: Loop) -> None:
        with peers.ssl_server(pki.untrusted) as server:
            with connect(server.port, pki, async_=True) as channel:
                future = asyncio.get_running_loop().create_future()

                def failed() -> None:
                    channel.event("readable", None)
                    future.set_result(None)

                channel.event("readable", failed)
                await asyncio.wait_for(future, LIMIT)
                await asyncio.sleep(0.02)
                assert loop.told == []
                with pytest.raises(tls.TLSVerificationError):
                    channel.recv(1)

    run(main)


def test_a_client_that_nobody_asks_again_leaves_nothing(pki: Pki) -> None:
    async def main(loop: Loop) -> None:
        with peers.ssl_server(pki.untrusted) as server:
            channel = connect(server.port, pki, async_=True)
            end = asyncio.get_running_loop().time() + LIMIT
            while tls.tls_state(channel) != "CLOSED":
                assert asyncio.get_running_loop().time() < end
                await asyncio.sleep(0.001)
            assert channel.fileno() == -1
            assert channel.cget("credentials") is not None
            channel.close()
            del channel
            gc.collect()
            assert loop.told == []

    run(main)


def test_callers_get_their_errors_themselves(pki: Pki) -> None:
    """A blocking call's failure is raised, and not reported as well."""

    async def main(loop: Loop) -> None:
        one, other = tcp_pair()
        with other:
            other.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with pytest.raises(tls.TLSError):
                tls.starttls(one, server=True, credentials=server_credentials(pki.server))
        with peers.ssl_server(pki.untrusted) as server:
            with pytest.raises(tls.TLSVerificationError):
                connect(server.port, pki)
        await asyncio.sleep(0.02)
        assert loop.told == []

    run(main)


def test_nothing_is_reported_after_the_loop_was_closed(pki: Pki) -> None:
    """A listener that outlives its loop: no error, no leak."""
    kept: list[Any] = []

    async def main(loop: Loop) -> None:
        kept.append(listen(pki))

    run(main)
    with kept[0] as listener:
        client = client_of(listener)
        client.close()
    assert tls.tls_state(kept[0]) == "CLOSED"


def test_errors_in_many_connections_are_each_told_once(pki: Pki) -> None:
    async def main(loop: Loop) -> None:
        with listen(pki) as listener:
            clients = [client_of(listener) for _ in range(20)]
            for client in clients:
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            end = asyncio.get_running_loop().time() + LIMIT
            while len(loop.told) < 20 and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            assert len(loop.told) == 20
            assert len({id(told["channel"]) for told in loop.told}) == 20
            for client in clients:
                client.close()

    run(main)


@versions
def test_python_ssl_clients_that_break_off(pki: Pki, version: str) -> None:
    """A peer that rejects our certificate at its leisure, in a thread."""

    async def main(loop: Loop) -> None:
        with listen(pki) as listener:
            context = ssl.create_default_context()  # does not know the root
            context.maximum_version = getattr(ssl.TLSVersion, f"TLSv{version}".replace(".", "_"))

            def ask() -> None:
                with client_of(listener) as plain, pytest.raises(ssl.SSLCertVerificationError):
                    context.wrap_socket(plain, server_hostname="localhost")

            await asyncio.to_thread(ask)
            error = (await loop.one())["exception"]
            assert error.alert_received == "unknown_ca"

    run(main)


@versions
def test_credentials_serve_on_after_failures(pki: Pki, version: str) -> None:
    got: list[Any] = []

    async def main(loop: Loop) -> None:
        done = threading.Event()

        def serve(channel: Any, *_: Any) -> None:
            with channel:
                channel.sendall(b"served")
            done.set()

        with listen(pki, serve) as listener:
            with client_of(listener) as bad:
                bad.sendall(b"not TLS at all\r\n\r\n")
                await loop.one()

            def ask() -> None:
                creds = client_credentials(pki, protocols=[f"tls{version}"])
                with connect(listener.getsockname()[1], credentials=creds) as channel:
                    got.append(channel.read())

            await asyncio.to_thread(ask)

    run(main)
    assert got == [b"served"]
