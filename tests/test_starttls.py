"""starttls: every kind of channel beneath, what is kept, and what an error leaves."""

from __future__ import annotations

import asyncio
import io
import selectors
import socket
import ssl
import threading
import time
from typing import Any

import peers
import pytest
from certs import Pki
from channels import Work, plain_pair, run, tcp_pair, tls_pair
from twapi_support import (
    HOST,
    LIMIT,
    client_credentials,
    first,
    server_credentials,
    silent_server,
)

import twapi_tls as tls

pytestmark = pytest.mark.timeout(30)


# --- things that carry bytes


class Pipe:
    """A stream without descriptor: recv, send and close, nothing else."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.inbox = bytearray()
        self.ended = False
        self.other: Pipe = self
        self.closed = 0

    def recv(self, n: int) -> bytes:
        with self.changed:
            if not self.changed.wait_for(lambda: self.inbox or self.ended, LIMIT):
                raise TimeoutError("the other end says nothing")
            data = bytes(self.inbox[:n])
            del self.inbox[:n]
            return data

    def send(self, data: bytes) -> int:
        with self.other.changed:
            # Not all at once: a transport may take a part.
            part = data[:1000]
            self.other.inbox += part
            self.other.changed.notify_all()
            return len(part)

    def close(self) -> None:
        self.closed += 1
        for end in (self, self.other):
            with end.changed:
                end.ended = True
                end.changed.notify_all()


def pipe_pair() -> tuple[Pipe, Pipe]:
    one, other = Pipe(), Pipe()
    one.other, other.other = other, one
    return one, other


class Wrapped:
    """A socket behind the methods of a stream, descriptor included."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        for name in ("recv", "send", "close", "fileno", "setblocking", "shutdown"):
            setattr(self, name, getattr(sock, name))
        self.getpeername = sock.getpeername
        self.getsockname = sock.getsockname
        self.gettimeout = sock.gettimeout


def wrapped_pair() -> tuple[Any, Any]:
    one, other = tcp_pair()
    return Wrapped(one), Wrapped(other)


def unix_pair() -> tuple[Any, Any]:
    one, other = socket.socketpair()
    one.settimeout(LIMIT)
    other.settimeout(LIMIT)
    return one, other


def plain_channels() -> tuple[Any, Any]:
    one, other = tcp_pair()
    return tls.TcpChannel(one), tls.TcpChannel(other)


def exchange(here: Any, there: Any) -> None:
    """Both ways, more than one record, and a clean end."""
    data = bytes(range(256)) * 200
    for sender, receiver in ((here, there), (there, here)):
        reading = Work(receiver.read, len(data))
        sender.sendall(data)
        assert reading.result() == data
    here.close()
    assert there.read() == b""
    there.close()


@pytest.mark.parametrize(
    "below",
    [tcp_pair, unix_pair, plain_channels, pipe_pair, wrapped_pair],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_what_can_be_wrapped(pki: Pki, below: Any, version: str) -> None:
    with tls_pair(pki, below=below, version=version) as (here, there):
        assert here.state == there.state == "OPEN"
        exchange(here, there)


def test_a_pipe_is_closed_once(pki: Pki) -> None:
    pipes = pipe_pair()
    with tls_pair(pki, below=lambda: pipes) as (here, there):
        assert here.fileno() == -1
        with pytest.raises(OSError):
            here.getpeername()
        exchange(here, there)
    assert [pipe.closed for pipe in pipes] == [1, 1]


def test_an_object_with_a_descriptor_is_selectable_and_has_names(pki: Pki) -> None:
    with tls_pair(pki, below=wrapped_pair) as (here, there):
        assert here.getpeername() == there.getsockname()
        here.setblocking(False)
        with pytest.raises(BlockingIOError):
            here.recv(1)
        with selectors.DefaultSelector() as selector:
            selector.register(here, selectors.EVENT_READ)
            there.sendall(b"ready")
            assert selector.select(LIMIT)
        assert here.recv(10) == b"ready"
        here.settimeout(0.05)
        with pytest.raises(TimeoutError):
            here.recv(1)


def test_a_socket_of_the_ssl_module(pki: Pki) -> None:
    """Its encryption stays: TLS of ours in TLS of Python's."""
    inner: list[Any] = []

    def handler(connection: ssl.SSLSocket) -> None:
        inner.append(
            tls.starttls(connection, server=True, credentials=server_credentials(pki.server))
        )
        with inner[0] as channel:
            channel.sendall(channel.recv(100)[::-1])

    with peers.ssl_server(pki.server, handler) as server:
        context = peers.ssl_client_context(pki.root)
        outer = context.wrap_socket(
            socket.create_connection((HOST, server.port), LIMIT), server_hostname="localhost"
        )
        channel = tls.starttls(outer, peersubject="localhost", credentials=client_credentials(pki))
        with channel:
            channel.sendall(b"twice")
            assert channel.recv(100) == b"eciwt"
            assert channel.read() == b""
        server.finish()


@pytest.mark.parametrize("depth", [2, 3])
def test_tls_in_tls(pki: Pki, depth: int) -> None:
    with tls_pair(pki, version="1.2") as ends:
        channels: list[Any] = [ends]
        pairs = []
        for _ in range(depth - 1):
            pair = tls_pair(pki, below=lambda: channels[-1])
            pairs.append(pair)
            channels.append(pair.__enter__())
        here, there = channels[-1]
        for outer in channels[:-1]:
            for channel in outer:
                assert channel.closed
                with pytest.raises(OSError, match="given to starttls"):
                    channel.recv(1)
        assert here.getpeername() == there.getsockname()
        exchange(here, there)
        for pair in reversed(pairs):
            pair.__exit__(None, None, None)


def test_tls_in_tls_events(pki: Pki) -> None:
    async def main() -> None:
        with tls_pair(pki) as outer, tls_pair(pki, below=lambda: outer) as (here, there):
            here.setblocking(False)
            there.sendall(b"x" * 100_000)
            got = 0
            while got < 100_000:
                got += len(await first(here, "readable", lambda: here.recv(1 << 20)))
            there.close()
            assert await first(here, "readable", lambda: here.recv(1)) == b""

    run(main())


# --- what the new channel has


def test_options_are_kept(pki: Pki) -> None:
    one, other = plain_channels()
    one.settimeout(4.5)
    wanted = {
        "buffering": "line",
        "buffersize": 1234,
        "encoding": "utf-8",
        "eofchar": ("\x1a", ""),
        "translation": ("auto", "crlf"),
        "blocking": True,
    }
    one.configure(**wanted)
    other.configure(buffering="full", buffersize=99)
    with tls_pair(pki, below=lambda: (one, other)) as (here, there):
        assert {name: here.cget(name) for name in wanted} == wanted
        assert here.gettimeout() == 4.5
        assert (there.cget("buffering"), there.cget("buffersize")) == ("full", 99)
        here.puts("Grüße")
        assert there.readline() == "Grüße\r\n".encode()


def test_options_of_a_tls_channel_are_kept(pki: Pki) -> None:
    with tls_pair(pki) as outer:
        outer[0].configure(encoding="latin-1", buffering="full", buffersize=77)
        with tls_pair(pki, below=lambda: outer) as (here, _):
            assert here.cget("encoding") == "iso8859-1"
            assert here.cget("buffering") == "full"
            assert here.cget("buffersize") == 77


def test_what_was_written_before_goes_before(pki: Pki) -> None:
    """A flushed STARTTLS answer, though nobody called flush."""
    one, other = tcp_pair()
    channel = tls.TcpChannel(one)
    channel.configure(buffering="full")
    channel.write(b"220 go ahead\r\n")

    def client() -> Any:
        assert other.recv(14) == b"220 go ahead\r\n"
        return tls.starttls(other, peersubject="localhost", credentials=client_credentials(pki))

    connecting = Work(client)
    with tls.starttls(channel, server=True, credentials=server_credentials(pki.server)) as here:
        with connecting.result() as there:
            here.sendall(b"x")
            assert there.recv(1) == b"x"


def test_handlers_are_not_copied(pki: Pki) -> None:
    async def main() -> None:
        calls: list[str] = []
        one, other = plain_channels()
        one.event("readable", lambda: calls.append("r"))
        one.event("writable", lambda: calls.append("w"))
        with tls_pair(pki, below=lambda: (one, other)) as (here, there):
            assert here.event("readable") is None
            assert here.event("writable") is None
            del calls[:]
            there.sendall(b"x")
            await first(here, "readable")
            assert calls == []

    run(main())


# --- non-blocking


def test_a_non_blocking_client_has_sent_its_first_flight(pki: Pki) -> None:
    one, other = tcp_pair()
    one.setblocking(False)
    with other:
        channel = tls.starttls(one, peersubject="localhost", credentials=client_credentials(pki))
        with channel:
            assert tls.tls_state(channel) == "NEGOTIATING"
            assert channel.gettimeout() == 0.0
            hello = other.recv(5)
            assert hello[0] == 22


def test_a_non_blocking_server_is_in_serverinit(pki: Pki) -> None:
    one, other = tcp_pair()
    one.setblocking(False)
    with other:
        channel = tls.starttls(one, server=True, credentials=server_credentials(pki.server))
        with channel:
            assert tls.tls_state(channel) == "SERVERINIT"
            other.sendall(b"\x16")
            # Without a loop nobody has looked yet.
            assert tls.tls_state(channel) == "SERVERINIT"


def test_a_non_blocking_server_whose_bytes_are_there(pki: Pki) -> None:
    """SERVERINIT nevertheless: the call itself does not negotiate."""
    one, other = tcp_pair()
    one.setblocking(False)
    with other:
        other.sendall(b"GET / HTTP/1.1\r\n\r\n")
        channel = tls.starttls(one, server=True, credentials=server_credentials(pki.server))
        with channel:
            assert tls.tls_state(channel) == "SERVERINIT"
            with pytest.raises(tls.TLSError, match="HTTP"):
                while True:
                    tls.tls_handshake(channel)


def test_both_ends_on_one_loop(pki: Pki) -> None:
    async def main() -> None:
        one, other = tcp_pair()
        for sock in (one, other):
            sock.setblocking(False)
        there = tls.starttls(other, server=True, credentials=server_credentials(pki.server))
        here = tls.starttls(one, peersubject="localhost", credentials=client_credentials(pki))
        with here, there:
            here.write(b"early")
            assert await first(there, "readable", there.read) == b"early"
            assert here.state == there.state == "OPEN"

    run(main())


def test_a_non_blocking_channel_over_a_pipe_says_that_it_cannot(pki: Pki) -> None:
    """No descriptor, no non-blocking use: an error, not a hang."""
    pipes = pipe_pair()
    with tls_pair(pki, below=lambda: pipes) as (here, _):
        here.setblocking(False)
        with pytest.raises(ValueError, match="blocking only"):
            here.recv(1)


# --- errors leave chan closed


class Fake(tls.Channel):
    """A channel with nothing beneath."""

    def __init__(self) -> None:
        super().__init__(None)


def bad_arguments(pki: Pki) -> list[tuple[dict[str, Any], type[Exception], str]]:
    creds = client_credentials(pki)
    server = server_credentials(pki.server)
    freed = client_credentials(pki)
    freed.free()
    return [
        ({"credentials": creds}, ValueError, "peersubject must be specified"),
        ({"credentials": creds, "peersubject": ""}, ValueError, "peersubject"),
        ({"credentials": creds, "peersubject": 7}, TypeError, "."),
        ({"credentials": 7, "peersubject": "x"}, TypeError, "credentials"),
        ({"credentials": server, "peersubject": "x"}, ValueError, "client credentials"),
        ({"credentials": freed, "peersubject": "x"}, ValueError, "freed"),
        ({"peersubject": "x", "verifier": 7}, TypeError, "verifier"),
        ({"peersubject": "x", "alpn": [b""]}, ValueError, "ALPN"),
        ({"peersubject": "x", "colour": "red"}, TypeError, "colour"),
        ({"server": True}, ValueError, "credentials must be specified"),
        ({"server": True, "credentials": creds}, ValueError, "server credentials"),
        (
            {"server": True, "credentials": server, "peersubject": "x"},
            ValueError,
            "peersubject cannot be specified",
        ),
    ]


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("kind", ["socket", "plain", "TLS", "object"])
def test_every_argument_error_leaves_chan_closed(pki: Pki, number: int, kind: str) -> None:
    options, error, says = bad_arguments(pki)[number]
    if kind == "TLS":
        with tls_pair(pki) as (here, there):
            with pytest.raises(error, match=says):
                tls.starttls(here, **options)
            assert here.closed
            with pytest.raises((tls.TLSTruncatedError, ConnectionError)):
                there.recv(1)
        return
    one, other = tcp_pair()
    with other:
        chan: Any = {"socket": lambda: one, "plain": lambda: tls.TcpChannel(one)}.get(
            kind, lambda: Wrapped(one)
        )()
        with pytest.raises(error, match=says):
            tls.starttls(chan, **options)
        assert chan.fileno() == -1
        assert other.recv(1) == b""


def test_a_failed_handshake_leaves_chan_closed(pki: Pki) -> None:
    for below in (tcp_pair, plain_channels, wrapped_pair, pipe_pair):
        one, other = below()
        refusing = Work(
            lambda other=other: tls.starttls(
                other, server=True, credentials=server_credentials(pki.untrusted)
            )
        )
        with pytest.raises(tls.TLSVerificationError):
            tls.starttls(one, peersubject="localhost", credentials=client_credentials(pki))
        assert isinstance(refusing.error(), tls.TLSAlertError)
        for end in (one, other):
            if isinstance(end, Pipe):
                assert end.closed == 1
            else:
                assert end.fileno() == -1


def test_a_timeout_leaves_chan_closed(pki: Pki) -> None:
    with silent_server() as listener:
        plain = socket.create_connection(listener.getsockname(), 0.1)
        begin = time.monotonic()
        with pytest.raises(tls.TLSTimeoutError):
            tls.starttls(plain, peersubject="localhost", credentials=client_credentials(pki))
        assert time.monotonic() - begin < LIMIT
        assert plain.fileno() == -1


def test_what_is_no_channel(pki: Pki) -> None:
    for thing in (None, 7, "chan", object(), io.StringIO()):
        with pytest.raises(TypeError, match="cannot be wrapped"):
            tls.starttls(thing, peersubject="x")


def test_what_is_no_channel_but_can_be_closed_is_closed() -> None:
    file = io.BytesIO()
    with pytest.raises(TypeError):
        tls.starttls(file, peersubject="x")
    assert file.closed


def test_sockets_that_cannot_carry_tls() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.connect((HOST, 9))
        with pytest.raises(ValueError, match="stream"):
            tls.starttls(datagram, peersubject="x")
        assert datagram.fileno() == -1
    with socket.socket() as unconnected:
        with pytest.raises(OSError):
            tls.starttls(unconnected, peersubject="x")
        assert unconnected.fileno() == -1
    with socket.create_server((HOST, 0)) as listening:
        with pytest.raises(OSError):
            tls.starttls(listening, peersubject="x")
        assert listening.fileno() == -1
    closed = socket.socket()
    closed.close()
    with pytest.raises(OSError):
        tls.starttls(closed, peersubject="x")


def test_closed_channels_and_listeners(pki: Pki) -> None:
    with plain_pair() as (here, _):
        here.close()
        with pytest.raises(OSError, match="closed"):
            tls.starttls(here, peersubject="x")
    with pytest.raises(OSError, match="closed"):
        tls.starttls(Fake(), peersubject="x")

    async def main() -> None:
        listener = tls.tls_socket(
            0, server=print, credentials=server_credentials(pki.server), myaddr=HOST
        )
        with pytest.raises(TypeError, match="listening"):
            tls.starttls(listener, peersubject="x")
        assert tls.tls_state(listener) == "CLOSED"

    run(main())


def test_a_tls_channel_that_is_not_open(pki: Pki) -> None:
    """A blocking one is opened first; a failing one gives its own error."""
    with peers.ssl_server(pki.untrusted) as server:
        outer = tls.tls_socket(
            "localhost",
            server.port,
            async_=True,
            credentials=client_credentials(pki),
            timeout=LIMIT,
        )
        with pytest.raises(tls.TLSVerificationError):
            tls.starttls(outer, peersubject="localhost", credentials=client_credentials(pki))
        assert outer.closed


# --- injection


@pytest.mark.parametrize("kind", ["plain", "TLS"])
@pytest.mark.parametrize("server", [False, True])
def test_injected_bytes_are_refused(pki: Pki, kind: str, server: bool) -> None:
    """CVE-2011-0411: bytes that came before TLS are not taken for protected."""
    with plain_pair() if kind == "plain" else tls_pair(pki) as (here, there):
        there.sendall(b"220 go ahead\r\nINJECTED\r\n")
        assert here.readline() == b"220 go ahead\r\n"
        options: dict[str, Any] = (
            {"server": True, "credentials": server_credentials(pki.server)}
            if server
            else {"peersubject": "localhost", "credentials": client_credentials(pki)}
        )
        with pytest.raises(ValueError, match="10 bytes.*injection"):
            tls.starttls(here, **options)
        assert here.closed


def test_injected_text_is_refused(pki: Pki) -> None:
    with plain_pair() as (here, there):
        here.configure(encoding="utf-8", translation="auto")
        there.sendall(b"220 go ahead\r\nINJECTED\r\n")
        assert here.gets() == "220 go ahead"
        with pytest.raises(ValueError, match="injection"):
            tls.starttls(here, peersubject="localhost", credentials=client_credentials(pki))
        assert here.closed


def test_the_line_end_of_the_answer_is_no_injection(pki: Pki) -> None:
    """In auto translation the LF of a CR LF may still be unread."""
    one, other = tcp_pair()
    chan = tls.TcpChannel(one)
    chan.configure(translation="auto")
    other.sendall(b"220 go ahead\r\n")
    assert chan.gets() == b"220 go ahead"
    accepting = Work(
        lambda: tls.starttls(other, server=True, credentials=server_credentials(pki.server))
    )
    with (
        tls.starttls(chan, peersubject="localhost", credentials=client_credentials(pki)) as here,
        accepting.result() as there,
    ):
        here.configure(translation="binary")
        here.sendall(b"x")
        assert there.recv(1) == b"x"


def test_credentials_by_a_chooser(pki: Pki) -> None:
    asked: list[Any] = []

    def choose(name: str, alpn: list[bytes], versions: list[int]) -> Any:
        asked.append((name, alpn, versions))
        return server_credentials(pki.server)

    server = {"credentials": choose, "alpn": ["imap"]}
    client = {"alpn": ["imap", "pop3"]}
    with tls_pair(pki, client=client, server=server) as (here, there):
        assert here.selected_alpn_protocol() == there.selected_alpn_protocol() == "imap"
    ((name, alpn, versions),) = asked
    assert name == "localhost"
    assert alpn == [b"imap", b"pop3"]
    assert 0x0304 in versions


def test_starttls_needs_no_loop_and_takes_a_running_one(pki: Pki) -> None:
    """Blocking in a coroutine is blocking; nothing is left on the loop."""

    async def main() -> None:
        before = len(asyncio.all_tasks())
        with tls_pair(pki) as (here, there):
            here.sendall(b"x")
            assert there.recv(1) == b"x"
        assert len(asyncio.all_tasks()) == before

    run(main())


@pytest.mark.parametrize("server", [False, True])
def test_a_negotiation_goes_on_where_its_loop_has_ended(pki: Pki, server: bool) -> None:
    """The channel is its user's: the next call drives it, as without a loop."""
    one, other = tcp_pair()
    ours: dict[str, Any] = {"server": True, "credentials": server_credentials(pki.server)}
    theirs: dict[str, Any] = {
        "peersubject": "localhost",
        "credentials": client_credentials(pki),
    }

    async def begin() -> tls.TlsChannel:
        one.setblocking(False)
        return tls.starttls(one, **(ours if server else theirs))

    channel = asyncio.run(begin())
    assert tls.tls_state(channel) == ("SERVERINIT" if server else "NEGOTIATING")
    peer = Work(lambda: tls.starttls(other, **(theirs if server else ours)))
    channel.settimeout(LIMIT)
    assert tls.tls_handshake(channel)
    with channel, peer.result() as there:
        channel.sendall(b"x")
        assert there.recv(1) == b"x"
