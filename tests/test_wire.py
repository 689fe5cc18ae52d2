"""A session on a native socket: deadlines, signals, threads, and bad ends."""

from __future__ import annotations

import hashlib
import random
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import peers
import pytest
from certs import Pki
from channels import NOBODYS
from platforms import SLOWER
from test_session import credentials

from twapi_tls import _native
from twapi_tls._native import Credentials, Session, TLSError

LIMIT = 20.0 * SLOWER  # seconds that nothing here may take
VERSIONS = pytest.mark.parametrize("version", [_native.TLS1_2, _native.TLS1_3], ids=["1.2", "1.3"])


def tcp_pair(buffers: int = 0) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if buffers:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        near = socket.socket()
        if buffers:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                near.setsockopt(socket.SOL_SOCKET, option, buffers)
        near.settimeout(LIMIT)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        if buffers:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    return near, far


@contextmanager
def in_thread(action: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Runs it beside the body; what it raised is in the list at the end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield raised
    thread.join(LIMIT)
    assert not thread.is_alive(), "the other thread does not end"


def drive(session: Session, timeout: float = LIMIT) -> None:
    while (status := session.handshake(timeout)) == _native.WANT_VERDICT:
        session.verdict(0)
    assert status == _native.DONE


@pytest.fixture(scope="module")
def creds(pki: Pki) -> Callable[[int], tuple[Credentials, Credentials]]:
    return lambda version: (
        credentials("client", None, version),
        credentials("server", pki.server, version),
    )


def attached(creds: tuple[Credentials, Credentials], buffers: int = 0) -> tuple[Session, Session]:
    """A client and a server on the two ends of a connection, not yet open."""
    near, far = tcp_pair(buffers)
    client = Session("client", creds[0], target="localhost")
    server = Session("server", creds[1], ask_verdict=False)
    client.attach(near.detach())
    server.attach(far.detach())
    return client, server


@pytest.fixture
def connected(creds: Callable[[int], tuple[Credentials, Credentials]]) -> Iterator[object]:
    made: list[Session] = []

    def connect(version: int = 0, buffers: int = 0) -> tuple[Session, Session]:
        client, server = attached(creds(version), buffers)
        made.extend((client, server))
        with in_thread(lambda: drive(server)) as raised:
            drive(client)
        assert raised == []
        return client, server

    yield connect
    for session in made:
        session.close(0, False)


Connect = Callable[..., tuple[Session, Session]]


# --- deadlines ---------------------------------------------------------------------


@VERSIONS
def test_a_read_times_out_and_goes_on(connected: Connect, version: int) -> None:
    client, server = connected(version)
    began = time.monotonic()
    with pytest.raises(_native.TLSTimeoutError):
        client.recv(10, 0.1)
    assert 0.09 <= time.monotonic() - began < LIMIT
    assert client.recv(10, 0) is None
    assert client.recv_into(bytearray(4), 0) == -1
    server.send(b"after all", LIMIT)
    assert client.recv(100, LIMIT) == b"after all"


def test_a_handshake_times_out_and_goes_on(
    creds: Callable[[int], tuple[Credentials, Credentials]],
) -> None:
    client, server = attached(creds(0))
    with pytest.raises(_native.TLSTimeoutError):
        client.handshake(0.05)
    assert client.handshake(0) == _native.WANT_READ
    assert client.state() == "NEGOTIATING"
    with in_thread(lambda: drive(server)) as raised:
        drive(client)
    assert raised == []
    client.close(0, False)
    server.close(0, False)


@VERSIONS
def test_a_write_that_times_out_says_how_much_was_taken(connected: Connect, version: int) -> None:
    client, server = connected(version, buffers=8192)
    data = random.Random(1).randbytes(6 << 20)
    with pytest.raises(_native.TLSTimeoutError) as caught:
        client.send(data, 0.1)
    taken = caught.value.written  # type: ignore[attr-defined]
    assert 0 < taken < len(data)
    # without waiting: as much as fits, which is nothing now or a little
    more = client.send(data[taken:], 0)
    assert 0 <= more < len(data) - taken
    got = bytearray()

    def read() -> None:
        while piece := server.recv(1 << 16, LIMIT):
            got.extend(piece)

    with in_thread(read) as raised:
        assert client.send(data[taken + more :], LIMIT) == len(data) - taken - more
        assert client.shutdown_write(LIMIT)
    assert raised == []
    assert got == data  # every byte once, in order


def test_no_time_at_all_is_not_waited(connected: Connect) -> None:
    client, _ = connected()
    began = time.monotonic()
    for _ in range(100):
        assert client.recv(1, 0) is None
    assert time.monotonic() - began < LIMIT / 2


# --- signals --------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
class TestSignals:
    @pytest.fixture(autouse=True)
    def alarm(self) -> Iterator[None]:
        before = signal.getsignal(signal.SIGALRM)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    def test_a_handler_that_returns_interrupts_nothing(self, connected: Connect) -> None:
        client, server = connected()
        seen: list[int] = []

        def handler(number: int, frame: object) -> None:
            seen.append(number)
            if len(seen) == 5:
                server.send(b"now", LIMIT)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        assert client.recv(10, LIMIT) == b"now"
        assert len(seen) >= 5

    def test_the_deadline_holds_whatever_signals_arrive(self, connected: Connect) -> None:
        client, _ = connected()
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        began = time.monotonic()
        with pytest.raises(_native.TLSTimeoutError):
            client.recv(10, 0.3)
        assert 0.29 <= time.monotonic() - began < LIMIT

    @pytest.mark.parametrize("what", ["recv", "send", "handshake"])
    def test_a_handler_that_raises_ends_the_wait(
        self,
        connected: Connect,
        creds: Callable[[int], tuple[Credentials, Credentials]],
        what: str,
    ) -> None:
        class Enough(Exception):
            pass

        def handler(number: int, frame: object) -> None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Enough

        signal.signal(signal.SIGALRM, handler)
        if what == "handshake":
            client, server = attached(creds(0))
        else:
            client, server = connected(buffers=8192)
        data = bytes(8 << 20)
        with pytest.raises(Enough) as caught:
            # Again until it is heard: a signal that comes just before the system
            # waits is told after the wait, as with Python's own sockets.
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            if what == "recv":
                client.recv(10, LIMIT)
            elif what == "send":
                client.send(data, LIMIT)
            else:
                client.handshake(LIMIT)
        assert caught.type is Enough
        # nothing is broken by it
        if what == "handshake":
            with in_thread(lambda: drive(server)) as raised:
                drive(client)
            assert raised == []
        server.send(b"still there", LIMIT)
        assert client.recv(100, LIMIT) == b"still there"
        client.close(0, False)
        server.close(0, False)


# --- threads ----------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("buffers", [0, 8192])
def test_two_threads_full_duplex(connected: Connect, version: int, buffers: int) -> None:
    client, server = connected(version, buffers)
    generator = random.Random(version)
    total = 8 << 20 if not buffers else 2 << 20
    streams = {client: generator.randbytes(total), server: generator.randbytes(total)}
    got: dict[Session, hashlib._Hash] = {client: hashlib.sha256(), server: hashlib.sha256()}

    def write(session: Session) -> None:
        data = memoryview(streams[session])
        at = 0
        sizes = random.Random(9)
        while at < len(data):
            n = sizes.choice([1, 100, 5000, 16384, 70_000, 300_000])
            session.send(data[at : at + n], LIMIT)
            at += n
        session.shutdown_write(LIMIT)

    def read(session: Session) -> None:
        while piece := session.recv(1 << 17, LIMIT):
            got[session].update(piece)

    with (
        in_thread(lambda: write(client)) as a,
        in_thread(lambda: read(client)) as b,
        in_thread(lambda: write(server)) as c,
    ):
        read(server)
    assert a == b == c == []
    assert got[server].digest() == hashlib.sha256(streams[client]).digest()
    assert got[client].digest() == hashlib.sha256(streams[server]).digest()


def test_two_readers_take_turns(connected: Connect) -> None:
    client, server = connected()
    got: list[bytes] = []

    def read() -> None:
        got.append(client.recv(4, LIMIT) or b"")

    with in_thread(read) as a, in_thread(read) as b:
        server.send(b"oneetwoo", LIMIT)
    assert a == b == []
    assert sorted(got) == [b"onee", b"twoo"]


@pytest.mark.parametrize("graceful", [False, True])
def test_closing_from_a_third_thread_ends_both(connected: Connect, graceful: bool) -> None:
    client, server = connected(buffers=8192)
    started = threading.Barrier(3)

    def read() -> None:
        started.wait(LIMIT)
        client.recv(10, LIMIT)

    def write() -> None:
        started.wait(LIMIT)
        while True:
            client.send(bytes(1 << 20), LIMIT)

    began = time.monotonic()
    with in_thread(read) as read_raised, in_thread(write) as write_raised:
        started.wait(LIMIT)
        with suppress(_native.TLSTimeoutError):
            server.recv(1, 0.2)  # both are under way
        client.close(0.2, graceful)
    assert time.monotonic() - began < LIMIT
    for raised in (read_raised, write_raised):
        assert len(raised) == 1
        assert isinstance(raised[0], _native.TLSClosedError), raised
        assert "closed" in str(raised[0])
    assert client.fileno() == -1
    with pytest.raises(_native.TLSClosedError):
        client.send(b"x", LIMIT)


# --- bad ends ---------------------------------------------------------------------------


def relay_pair(
    creds: tuple[Credentials, Credentials],
) -> tuple[Session, Session, socket.socket]:
    """A client on a socket, and a server in memory behind the other end."""
    near, far = tcp_pair()
    far.settimeout(LIMIT)
    client = Session("client", creds[0], target="localhost")
    client.attach(near.detach())
    server = Session("server", creds[1], ask_verdict=False)

    def serve() -> None:
        while server.handshake() != _native.DONE:
            far.sendall(server.take_output())
            data = far.recv(1 << 16)
            if not data:
                return
            server.feed(data)
        far.sendall(server.take_output())

    with in_thread(serve) as raised:
        drive(client)
    assert raised == []
    return client, server, far


@VERSIONS
def test_a_reset_is_told_after_the_data(
    creds: Callable[[int], tuple[Credentials, Credentials]], version: int
) -> None:
    client, server, far = relay_pair(creds(version))
    server.send(b"before the end", 0)
    far.sendall(server.take_output())
    assert client.recv(6, LIMIT) == b"before"
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    assert client.recv(100, LIMIT) == b" the end"
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            client.recv(100, LIMIT)
    with pytest.raises(OSError):
        for _ in range(50):
            client.send(bytes(1 << 16), LIMIT)
    client.close()


@VERSIONS
def test_truncation_is_told_after_the_data(
    creds: Callable[[int], tuple[Credentials, Credentials]], version: int
) -> None:
    client, server, far = relay_pair(creds(version))
    server.send(b"cut", 0)
    whole = server.take_output()
    server.send(b"never seen", 0)
    part = server.take_output()[:-1]
    far.sendall(whole + part)
    far.close()
    assert client.recv(100, LIMIT) == b"cut"
    for _ in range(2):
        with pytest.raises(_native.TLSTruncatedError):
            client.recv(100, LIMIT)
    client.close()


@pytest.mark.parametrize("after", [0, 3, 5, 40])
@pytest.mark.parametrize("how", ["end", "reset"])
def test_the_peer_ends_during_the_handshake(
    creds: Callable[[int], tuple[Credentials, Credentials]], after: int, how: str
) -> None:
    near, far = tcp_pair()
    far.settimeout(LIMIT)
    client = Session("client", creds(0)[0], target="localhost")
    client.attach(near.detach())
    server = Session("server", creds(0)[1], ask_verdict=False)
    assert client.handshake(0) == _native.WANT_READ
    server.feed(far.recv(1 << 16))
    server.handshake()
    far.sendall(server.take_output()[:after])
    if how == "reset":
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    with pytest.raises(OSError) as caught:
        drive(client)
    if how == "end":
        assert isinstance(caught.value, TLSError)
        assert caught.value.errorcode[:4] == ("TWAPI", "TLS", "NEGOTIATE", "EOF")
    else:
        assert isinstance(caught.value, ConnectionResetError | TLSError)
    client.close()


def test_a_peer_that_speaks_something_else(
    creds: Callable[[int], tuple[Credentials, Credentials]],
) -> None:
    near, far = tcp_pair()
    client = Session("client", creds(0)[0], target="localhost")
    client.attach(near.detach())
    far.sendall(b"220 mail.example.org ESMTP ready\r\n")
    with pytest.raises(TLSError, match="an SMTP greeting"):
        client.handshake(LIMIT)
    far.close()
    client.close()


@VERSIONS
def test_half_a_close(connected: Connect, version: int) -> None:
    client, server = connected(version)
    client.send(b"request", LIMIT)
    assert client.shutdown_write(LIMIT)
    assert client.shutdown_write(LIMIT)
    assert client.write_ended()
    assert server.recv(100, LIMIT) == b"request"
    assert server.recv(100, LIMIT) == b""
    assert server.read_ended()
    server.send(b"answer", LIMIT)
    assert client.recv(100, LIMIT) == b"answer"
    with pytest.raises(_native.TLSClosedError):
        client.send(b"more", LIMIT)
    server.close(LIMIT)
    assert client.recv(100, LIMIT) == b""


def test_readable_knows_without_taking(connected: Connect) -> None:
    client, server = connected(_native.TLS1_2)
    assert not client.readable() and client.at_rest()
    server.send(b"12345", LIMIT)
    end = time.monotonic() + LIMIT
    while not client.readable():
        assert time.monotonic() < end
        threading.Event().wait(0.001)
    assert client.recv(2, LIMIT) == b"12"
    assert client.readable() and client.pending() == 3 and not client.at_rest()
    assert client.recv(10, LIMIT) == b"345"
    assert client.at_rest()
    server.close(LIMIT)
    assert client.recv(10, LIMIT) == b""
    assert client.readable()
    assert not client.at_rest()
    client.close()
    assert client.readable()  # recv raises at once


@pytest.mark.parametrize("version", [_native.TLS1_3], ids=["1.3"])
def test_readable_opens_what_has_no_data(connected: Connect, version: int) -> None:
    """Tickets are records of data to who has no key for them."""
    client, server = connected(version)
    assert select.select([client.fileno()], [], [], LIMIT)[0]  # the tickets
    assert not client.readable() and not client.pending()
    assert not select.select([client.fileno()], [], [], 0)[0]  # it has taken them
    server.send(b"data", LIMIT)
    assert select.select([client.fileno()], [], [], LIMIT)[0]
    assert client.readable() and client.pending() == 4
    assert client.recv(10, LIMIT) == b"data"


def test_readable_answers_a_broken_record(
    creds: Callable[[int], tuple[Credentials, Credentials]],
) -> None:
    """The look that meets it sends the alert; the error is the reader's."""
    near, far = tcp_pair()
    client, server = (
        Session("client", creds(_native.TLS1_2)[0], target="localhost"),
        Session("server", creds(_native.TLS1_2)[1], ask_verdict=False),
    )
    client.attach(near.detach())
    with far, far.dup() as raw:
        server.attach(far.detach())
        with in_thread(lambda: drive(server)) as raised:
            drive(client)
        assert raised == []
        raw.sendall(NOBODYS)
        assert select.select([client.fileno()], [], [], LIMIT)[0]
        assert client.readable()
        with pytest.raises(TLSError) as told:
            server.recv(10, LIMIT)
        assert told.value.alert_received == "bad_record_mac"
    with pytest.raises(TLSError) as caught:
        client.recv(10, LIMIT)
    assert caught.value.alert_sent == "bad_record_mac"
    server.close(0, False)
    client.close(0, False)


# --- what is attached ---------------------------------------------------------------------


def test_only_connected_streams_are_attached(
    creds: Callable[[int], tuple[Credentials, Credentials]], tmp_path: object
) -> None:
    def fresh() -> Session:
        return Session("client", creds(0)[0], target="localhost")

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(OSError):
            fresh().attach(datagrams.fileno())
        assert datagrams.fileno() >= 0
        datagrams.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)  # it was not closed
    with open(sys.executable, "rb") as file:
        with pytest.raises(OSError):
            fresh().attach(file.fileno())
        assert file.read(1)
    with pytest.raises(OSError):
        fresh().attach(1 << 20)


def test_a_descriptor_is_not_inherited(connected: Connect) -> None:
    import os

    client, _ = connected()
    inheritable = os.get_handle_inheritable if sys.platform == "win32" else os.get_inheritable
    assert not inheritable(client.fileno())


# --- renegotiation under way ------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize("letter", [b"r", b"R"], ids=["plain", "with a request for a certificate"])
@pytest.mark.parametrize("reader", [False, True], ids=["writer alone", "reader beside it"])
def test_a_peer_renegotiates_while_we_write(pki: Pki, letter: bytes, reader: bool) -> None:
    """TLS 1.2: the writer brings it to its end by itself, or a reader does."""
    with peers.openssl_server(pki.server, version="1.2") as peer:
        near = socket.create_connection((peer.host, peer.port), LIMIT)
        client = Session("client", credentials("client", None, _native.TLS1_2), target="localhost")
        client.attach(near.detach())
        drive(client)
        got = bytearray()

        def read() -> None:
            while not got.endswith(b"=the end\n"):
                got.extend(client.recv(1000, LIMIT) or b"")

        def exchange() -> None:
            for i in range(8):
                peer.send(letter + b"\n")
                if not reader:
                    # takes the HelloRequest; its answer goes out
                    assert select.select([client.fileno()], [], [], LIMIT)[0]
                    assert client.recv(1000, 0) is None
                line = b"line %d of ours" % i
                client.send(line + b"\n", LIMIT)
                peer.expect(line)
            peer.send(b"=the end\n")  # no command letter

        if reader:
            with in_thread(read) as raised:
                exchange()
            assert raised == []
        else:
            exchange()
            read()
        assert bytes(got) == b"=the end\n"
        client.close(0.5)
