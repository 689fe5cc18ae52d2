"""A peer that breaks the protocol: each time a clear error here, an alert there.

The peer is tlslite-ng, which completes a handshake by the book and then, or on
the way, does one thing wrong.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from certs import Pki
from interop_support import PATIENCE, our_server
from twapi_support import HOST, client_credentials

import twapi_tls as tls

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    tlslite = pytest.importorskip("tlslite.api", reason="tlslite-ng is not installed")
    from tlslite import messages
    from tlslite.constants import AlertDescription, AlertLevel

pytestmark = [pytest.mark.peers, pytest.mark.timeout(60)]

both_roles = pytest.mark.parametrize("peer", ["as server", "as client"])
versions = pytest.mark.parametrize("version", ["1.2", "1.3"])


class Wire:
    """The socket under tlslite-ng, which may spoil what goes out."""

    def __init__(self, plain: socket.socket) -> None:
        self.plain = plain
        self.spoil: Callable[[bytes], bytes] = lambda data: data

    def send(self, data: bytes) -> int:
        self.plain.sendall(self.spoil(bytes(data)))
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


class Outcome:
    """How both ends fared."""

    ours: BaseException | None = None
    received: bytes = b""
    theirs: BaseException | None = None

    @property
    def alert_there(self) -> str | None:
        """The alert that tlslite-ng received, by name."""
        if isinstance(self.theirs, tlslite.TLSRemoteAlert):
            return str(AlertDescription.toRepr(self.theirs.description))
        return None


def settings(version: str) -> Any:
    chosen = tlslite.HandshakeSettings()
    number = {"1.2": (3, 3), "1.3": (3, 4)}[version]
    chosen.minVersion = chosen.maxVersion = number
    return chosen


def alert_of_ours(name: str) -> str | None:
    """What the core finds itself it tells by the record engine: libssl has no
    call that sends an alert once the handshake is over."""
    return None if os.environ.get("TWAPI_TLS_RECORDS") == "openssl" else name


Deed = Callable[[Any, Wire], None]


def nothing(connection: Any, wire: Wire) -> None:
    pass


def meet(
    pki: Pki, peer: str, version: str, *, before: Deed = nothing, after: Deed = nothing
) -> Outcome:
    """One connection with tlslite-ng.

    ``before`` and ``after`` the handshake it may misbehave; then it reads to
    the end. Ours reads to the end as well.
    """
    outcome = Outcome()

    def play(plain: socket.socket) -> None:
        plain.settimeout(PATIENCE)
        wire = Wire(plain)
        connection = tlslite.TLSConnection(wire)
        connection.closeSocket = False
        try:
            before(connection, wire)
            if peer == "as server":
                chain = tlslite.X509CertChain()
                chain.parsePemList(pki.server_rsa.chain_pem.decode())
                key = tlslite.parsePEMKey(pki.server_rsa.key_pem.decode(), private=True)
                connection.handshakeServer(
                    certChain=chain, privateKey=key, settings=settings(version)
                )
            else:
                connection.handshakeClientCert(settings=settings(version), serverName="localhost")
            after(connection, wire)
            while connection.recv(4096):
                pass
        except Exception as error:
            outcome.theirs = error
        finally:
            plain.close()

    if peer == "as server":
        with socket.create_server((HOST, 0)) as listener:
            listener.settimeout(PATIENCE)

            def serve() -> None:
                play(listener.accept()[0])

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            try:
                with tls.tls_socket(
                    HOST,
                    listener.getsockname()[1],
                    peersubject="localhost",
                    credentials=client_credentials(pki),
                    timeout=PATIENCE,
                ) as channel:
                    while data := channel.recv(4096):
                        outcome.received += data
            except OSError as error:
                outcome.ours = error
            thread.join(PATIENCE)
    else:

        def collect(channel: tls.TlsChannel) -> None:
            while data := channel.recv(4096):
                outcome.received += data

        with our_server(pki.server_rsa, collect) as served:
            with socket.create_connection((HOST, served.port), PATIENCE) as plain:
                play(plain)
            result = served.result()
            if isinstance(result, tls.ConnectionFacts):
                result = served.result()
        if isinstance(result, BaseException):
            outcome.ours = result
        elif not isinstance(result, tls.TlsChannel):
            outcome.ours = result.error  # of a handshake, in the background
    return outcome


@both_roles
@versions
def test_good_manners(pki: Pki, peer: str, version: str) -> None:
    """For comparison: data and close_notify, no error anywhere"""

    def finish(connection: Any, wire: Wire) -> None:
        connection.sendall(b"data")
        connection.close()

    outcome = meet(pki, peer, version, after=finish)
    assert outcome.ours is None
    assert outcome.received == b"data"


@both_roles
@versions
def test_bad_record_mac(pki: Pki, peer: str, version: str) -> None:
    """A record whose authentication fails: bad_record_mac; data before it is delivered"""

    def flip(connection: Any, wire: Wire) -> None:
        connection.sendall(b"good")
        wire.spoil = lambda data: data[:-1] + bytes([data[-1] ^ 1])
        connection.sendall(b"bad")
        wire.spoil = lambda data: data

    outcome = meet(pki, peer, version, after=flip)
    assert outcome.received == b"good"
    assert isinstance(outcome.ours, tls.TLSError)
    assert outcome.ours.name == "SEC_E_MESSAGE_ALTERED"
    assert outcome.ours.alert_sent == "bad_record_mac"
    assert outcome.alert_there == "bad_record_mac"


@both_roles
@versions
def test_wrong_finished(pki: Pki, peer: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Finished that does not fit the handshake: decrypt_error"""

    proper = messages.Finished.write

    def write(self: Any) -> Any:
        spoiled = bytearray(proper(self))
        spoiled[-1] ^= 1
        return spoiled

    monkeypatch.setattr(messages.Finished, "write", write)
    outcome = meet(pki, peer, version)
    assert isinstance(outcome.ours, tls.TLSError)
    assert outcome.ours.alert_sent == "decrypt_error"
    assert outcome.alert_there == "decrypt_error"
    assert outcome.received == b""


@both_roles
@versions
def test_unexpected_message(pki: Pki, peer: str, version: str) -> None:
    """A handshake message that has no business there: unexpected_message"""

    def send_done(connection: Any, wire: Wire) -> None:
        connection.sendall(b"good")
        for _ in connection._sendMsg(messages.ServerHelloDone().create()):
            pass

    outcome = meet(pki, peer, version, after=send_done)
    assert outcome.received == b"good"
    assert isinstance(outcome.ours, tls.TLSError)
    assert outcome.ours.alert_sent == "unexpected_message"
    assert outcome.alert_there == "unexpected_message"


@both_roles
@versions
def test_no_close_notify(pki: Pki, peer: str, version: str) -> None:
    """TCP's end without close_notify: the data, then a truncation error"""

    def hang_up(connection: Any, wire: Wire) -> None:
        connection.sendall(b"all that there is")
        wire.plain.shutdown(socket.SHUT_WR)

    outcome = meet(pki, peer, version, after=hang_up)
    assert outcome.received == b"all that there is"
    assert isinstance(outcome.ours, tls.TLSTruncatedError)


@both_roles
@versions
@pytest.mark.parametrize("flight", [1, 2])
def test_truncated_handshake(pki: Pki, peer: str, version: str, flight: int) -> None:
    """The handshake ends in the middle of a flight: an error that says so"""
    sent = 0

    def cut(connection: Any, wire: Wire) -> None:
        def spoil(data: bytes) -> bytes:
            nonlocal sent
            sent += 1
            if sent < flight:
                return data
            wire.plain.sendall(data[: len(data) // 2])
            wire.plain.shutdown(socket.SHUT_WR)
            raise ConnectionError("cut here")

        wire.spoil = spoil

    outcome = meet(pki, peer, version, before=cut)
    assert isinstance(outcome.ours, tls.TLSError)
    assert outcome.ours.errorcode[:4] == ("TWAPI", "TLS", "NEGOTIATE", "EOF")
    assert outcome.received == b""


@both_roles
@versions
def test_unknown_record_type(pki: Pki, peer: str, version: str) -> None:
    """A record of a type that there is not: unexpected_message"""

    def send_junk(connection: Any, wire: Wire) -> None:
        connection.sendall(b"good")
        wire.plain.sendall(b"\x63\x03\x03\x00\x05junk!")

    outcome = meet(pki, peer, version, after=send_junk)
    assert outcome.received == b"good"
    assert isinstance(outcome.ours, tls.TLSError)
    assert outcome.ours.alert_sent == alert_of_ours("unexpected_message")


@both_roles
@versions
def test_oversized_record(pki: Pki, peer: str, version: str) -> None:
    """A record longer than TLS allows: record_overflow"""

    def send_long(connection: Any, wire: Wire) -> None:
        connection.sendall(b"good")
        wire.plain.sendall(b"\x17\x03\x03\xff\xff" + bytes(0xFFFF))

    outcome = meet(pki, peer, version, after=send_long)
    assert outcome.received == b"good"
    assert isinstance(outcome.ours, tls.TLSError)
    assert outcome.ours.alert_sent == alert_of_ours("record_overflow")


@both_roles
def test_key_updates(pki: Pki, peer: str) -> None:
    """KeyUpdate after every few records, asking for ours: nothing lost (TLS 1.3)"""
    parts = [b"%d " % number * 500 for number in range(40)]

    def update(connection: Any, wire: Wire) -> None:
        for number, part in enumerate(parts):
            connection.sendall(part)
            for _ in connection.send_keyupdate_request(number % 2):
                pass
        end = messages.Alert().create(AlertDescription.close_notify, AlertLevel.warning)
        for _ in connection._sendMsg(end):
            pass

    outcome = meet(pki, peer, "1.3", after=update)
    assert outcome.ours is None
    assert outcome.received == b"".join(parts)


@pytest.mark.parametrize("peer", ["as server"])
@pytest.mark.parametrize("good", [1, 40])
def test_more_tickets_than_anybody_needs(pki: Pki, peer: str, good: int) -> None:
    """Hundreds of tickets in a record: the first are taken, no work is done for others (TLS 1.3)"""

    def ticket(number: int, tail: bytes = b"\0\0") -> bytes:
        """RFC 8446, 4.6.1: an hour's life, no extensions."""
        body = struct.pack(">II", 3600, 0) + b"\1%c\0\2xy" % number + tail
        return b"\4" + len(body).to_bytes(3, "big") + body

    def send_tickets(connection: Any, wire: Wire) -> None:
        record = b"".join(map(ticket, range(good))) + ticket(good, b"\0")
        for _ in connection._sendMsg(messages.Message(22, bytearray(record))):
            pass
        connection.sendall(b"data")
        connection.close()

    outcome = meet(pki, peer, "1.3", after=send_tickets)
    if good == 1 or os.environ.get("TWAPI_TLS_RECORDS") == "openssl":
        assert isinstance(outcome.ours, tls.TLSError), "each is parsed, and the last is malformed"
    else:
        assert outcome.ours is None
        assert outcome.received == b"data"
