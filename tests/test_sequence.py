"""Far into a connection, where no test can get by sending.

The record engine's sequence numbers are put ahead by hand, and so are those
of tlslite-ng, the peer that lets one: 2^24 records are 256 GB, and numbers go
on to 2^64. What is due there in TLS 1.3, our KeyUpdate at 2^24 records, other
peers must follow as well: for that only our count of records is put ahead.
Peers that nobody can tell to renew their keys (nginx, curl) do so when a
KeyUpdate asks them; those that can be told are in test_interop_load.py.

``make interop`` puts what passed into the table interop.md.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import peers
import pytest
import sspi_support as sspi
from certs import Pki
from interop_support import PATIENCE, payload, serve, sha256
from test_provider_contract import TLS12, TLS13, End, credential

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    tlslite = pytest.importorskip("tlslite.api", reason="tlslite-ng is not installed")

t = sspi.load_testnative()
if t.engine()[0] != "openssl":
    pytest.skip("Schannel's sequence numbers are its own", allow_module_level=True)
pytestmark = [
    pytest.mark.peers,
    pytest.mark.timeout(60),
    pytest.mark.skipif(
        os.environ.get("TWAPI_TLS_RECORDS") == "openssl",
        reason="the numbers of an SSL object nobody can set; libssl counts on both ends there",
    ),
]

REKEY = 1 << 24  # tw_records_rekey_at
LAST = (1 << 64) - 1  # the number that is never used
tlslite_only = pytest.mark.parametrize("peer", ["tlslite-ng"])
both_roles = pytest.mark.parametrize("role", ["client", "server"])


class Ours:
    """A context of ours on a socket."""

    def __init__(self, pki: Pki, role: str, version: int, plain: socket.socket) -> None:
        identity = pki.server_rsa if role == "server" else None
        self.end = End(
            role == "server", credential(role, identity, version, flags=1), target="localhost"
        )
        self.plain = plain
        data: bytes | None = None
        if role == "server":
            data = self.more()
        while self.end.status != sspi.OK or data:
            output = self.end.step(data) + self.end.judge()
            if self.end.status != sspi.INCOMPLETE:
                assert self.end.status >= 0, hex(self.end.status & 0xFFFFFFFF)
                plain.sendall(output)
            if self.end.status == sspi.OK:
                break
            data = self.end.inbox if output and self.end.inbox else self.end.inbox + self.more()
        self.left = self.end.inbox

    def more(self) -> bytes:
        data = self.plain.recv(65536)
        assert data, "the peer has gone"
        return data

    def jump(self, read: int, write: int, count: int) -> None:
        t.jump(self.end.ctx, read, write, count)

    def send(self, data: bytes) -> bytes:
        """By the way for many records; what went out."""
        status, records = t.seal(self.end.ctx, data)
        assert status == sspi.OK
        self.plain.sendall(records)
        return bytes(records)

    def ask(self) -> None:
        """A KeyUpdate that asks the peer for its own."""
        self.plain.sendall(t.ask(self.end.ctx))

    def record(self) -> bytes:
        """What one record brings; what a step says to a message goes out."""
        while t.record(self.left)["whole"] == 0:
            self.left += self.more()
        status, plain, self.left = self.end.open(self.left)
        if status == sspi.RENEGOTIATE:
            self.plain.sendall(self.end.step(self.left or None))
            self.left = self.end.inbox
            status = self.end.status
        assert status == sspi.OK
        return bytes(plain)

    def receive(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            got += self.record()
        assert len(got) == size, got
        return got

    def http_head(self, body: bytes = b"") -> bytes:
        """A request's or an answer's, with that body behind it."""
        got = b""
        while not got.endswith(b"\r\n\r\n" + body):
            got += self.record()
        return got.removesuffix(body)


@contextmanager
def with_tlslite(pki: Pki, role: str, version: int, cipher: str) -> Iterator[tuple[Ours, Any]]:
    """Ours in ``role`` and tlslite-ng in the other, both OPEN."""
    settings = tlslite.HandshakeSettings()
    settings.minVersion = settings.maxVersion = (3, 3) if version == TLS12 else (3, 4)
    settings.cipherNames = [cipher]
    settings.ticket_count = 0
    here, there = socket.socketpair()
    failed: list[BaseException] = []
    with here, there:
        here.settimeout(PATIENCE)
        there.settimeout(PATIENCE)
        peer = tlslite.TLSConnection(there)
        peer.closeSocket = False

        def play() -> None:
            try:
                if role == "client":
                    chain = tlslite.X509CertChain()
                    chain.parsePemList(pki.server_rsa.chain_pem.decode())
                    key = tlslite.parsePEMKey(pki.server_rsa.key_pem.decode(), private=True)
                    peer.handshakeServer(certChain=chain, privateKey=key, settings=settings)
                else:
                    peer.handshakeClientCert(settings=settings, serverName="localhost")
            except BaseException as error:
                failed.append(error)
                there.close()

        thread = threading.Thread(target=play, daemon=True)
        thread.start()
        ours = Ours(pki, role, version, here)
        thread.join(PATIENCE)
        assert not thread.is_alive() and not failed, failed
        yield ours, peer


def put(peer: Any, read: int, write: int) -> None:
    layer = peer._recordLayer
    layer._readState.seqnum, layer._writeState.seqnum = read, write


CIPHERS = ["aes128gcm", "aes256gcm", "chacha20-poly1305"]


def converse(ours: Ours, peer: Any, times: int) -> None:
    """Something else each time, from each end to the other."""
    for number in range(times):
        text = b"number %d" % number
        ours.send(text)
        assert bytes(peer.read(len(text), len(text))) == text
        peer.sendall(text[::-1])
        assert ours.receive(len(text)) == text[::-1]


@tlslite_only
@both_roles
@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("version", [TLS12, TLS13], ids=["1.2", "1.3"])
def test_numbers_far_ahead(pki: Pki, version: int, cipher: str, role: str, peer: str) -> None:
    """Both ends' numbers jump across 2^24, 2^32, 2^40, 2^48, 2^63 and to the last, which ends it"""
    with with_tlslite(pki, role, version, cipher) as (ours, there):
        for far in (1 << 24, 1 << 32, 1 << 40, 1 << 48, 1 << 63):
            ours.jump(far - 2, far - 1, 0)
            put(there, far - 1, far - 2)
            converse(ours, there, 3)
        ours.jump(LAST - 1, LAST - 1, 0)
        put(there, LAST - 1, LAST - 1)
        converse(ours, there, 1)
        assert t.stands(ours.end.ctx) == (LAST, LAST)
        status, records = t.seal(ours.end.ctx, b"one too many")
        assert (status, records) == (sspi.FAILURES["SEC_E_ENCRYPT_FAILURE"], b"")
    with with_tlslite(pki, role, version, cipher) as (ours, there):
        ours.jump(LAST, 0, 0)
        put(there, 0, LAST)
        there.sendall(b"one too many")
        status, got, _ = ours.end.open(ours.more())
        assert status < 0 and got == b""


@tlslite_only
@both_roles
@pytest.mark.parametrize("cipher", CIPHERS)
def test_keys_change_before_their_limit(pki: Pki, cipher: str, role: str, peer: str) -> None:
    """A KeyUpdate at 2^24 records, where AES needs it (RFC 8446, 5.5); and one of the peer's"""
    with with_tlslite(pki, role, TLS13, cipher) as (ours, there):
        ours.jump(7, REKEY - 2, REKEY - 2)
        put(there, REKEY - 2, 7)
        converse(ours, there, 5)
        stood = REKEY + 3 if cipher.startswith("chacha") else 3
        assert t.stands(ours.end.ctx) == (12, stood)
        assert there._recordLayer._readState.seqnum == stood
        # What the peer renews goes on from there.
        for _ in there.send_keyupdate_request(0):
            pass
        converse(ours, there, 2)
        assert t.stands(ours.end.ctx) == (2, stood + 2)


ROUNDS = 5  # GnuTLS takes eight KeyUpdates a second
PARTS = [payload(50_000, number) for number in range(3 * ROUNDS)]
BODY = b"".join(PARTS)
# nginx answers requests, curl sends one: what it is sent becomes a file.
PUT = b"PUT /upload/far HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def rekeyed(ours: Ours, lines: list[bytes], answered: Callable[[bytes], None]) -> None:
    """Our keys change once in three lines, behind the first of them."""
    for at, line in enumerate(lines):
        if at % 3 == 0:
            read, write = t.stands(ours.end.ctx)
            ours.jump(read, write, REKEY - 1)
        ours.send(line)
        answered(line)
        if at % 3 == 2:  # what followed the first record went under new keys
            sent = sum(-(-len(part) // 16384) for part in lines[at - 2 : at + 1])
            assert t.stands(ours.end.ctx)[1] == sent - 1


LINES = [b"line %d of some\n" % number for number in range(3 * ROUNDS)]
KEY_UPDATE = re.compile(rb"<<< TLS 1.3, Handshake \[length 0005\], KeyUpdate")


@contextmanager
def with_server(pki: Pki, peer: str, folder: Path) -> Iterator[tuple[Ours, Any]]:
    """A client of ours of one of the peers."""
    if peer == "openssl":
        arguments = ["-rev", "-msg"]
        running = peers.openssl_server(pki.server_rsa, version="1.3", arguments=arguments)
    else:
        running = serve(peer, pki.server_rsa, folder, version="1.3")
    with running as server:
        with socket.create_connection((peers.HOST, server.port), PATIENCE) as plain:
            yield Ours(pki, "client", TLS13, plain), server


def answer_of(peer: str, ours: Ours) -> Callable[[bytes], None]:
    def answered(line: bytes) -> None:
        expected = line[-2::-1] + b"\n" if peer == "openssl" else line
        assert ours.receive(len(line)) == expected

    return answered


@pytest.mark.parametrize("peer", ["gnutls", "nginx", "openssl"])
def test_servers_follow(pki: Pki, peer: str, tmp_path: Path) -> None:
    """As client: our keys change five times at 2^24 records; all arrives, and the answers"""
    with with_server(pki, peer, tmp_path) as (ours, server):
        if peer == "nginx":
            ours.send(PUT % len(BODY))
            rekeyed(ours, PARTS, lambda _: None)
            assert ours.http_head().startswith(b"HTTP/1.1 201 ")
            ours.send(GET % b"/upload/far")
            assert ours.http_head(BODY).startswith(b"HTTP/1.1 200 ")
        else:
            rekeyed(ours, LINES, answer_of(peer, ours))
        if peer == "openssl":
            assert len(KEY_UPDATE.findall(server.output)) == ROUNDS


@pytest.mark.parametrize("peer", ["gnutls", "nginx", "openssl"])
def test_servers_renew_when_asked(pki: Pki, peer: str, tmp_path: Path) -> None:
    """As client: a KeyUpdate of ours asks for the peer's; both go on under new keys"""
    with with_server(pki, peer, tmp_path) as (ours, _):
        for line in LINES[:ROUNDS]:
            ours.ask()
            if peer == "nginx":
                ours.send(GET % b"/hello")
                assert ours.http_head(b"hello from nginx\n").startswith(b"HTTP/1.1 200 ")
            else:
                ours.send(line)
                answer_of(peer, ours)(line)
            renewed(ours)


def renewed(ours: Ours) -> None:
    """Few records since both ends' KeyUpdate, though there were some rounds."""
    read, write = t.stands(ours.end.ctx)
    assert 1 <= read <= 2 and write == 1


@contextmanager
def with_client(pki: Pki, peer: str) -> Iterator[tuple[Ours, peers.Peer]]:
    """A server of ours with one of the peers as its client."""
    start: Callable[..., Any]
    with socket.create_server((peers.HOST, 0)) as listener:
        listener.settimeout(PATIENCE)
        port = listener.getsockname()[1]
        if peer == "curl":
            start = partial(peers.curl, arguments=[f"https://localhost:{port}/"] * MORE)
        elif peer == "openssl":
            start = partial(peers.openssl_client, arguments=["-msg"])
        else:
            start = peers.gnutls_client
        with start(port, version="1.3") as running:
            plain, _ = listener.accept()
            with plain:
                plain.settimeout(PATIENCE)
                yield Ours(pki, "server", TLS13, plain), running


MORE = 4  # requests of curl's behind its first


@pytest.mark.parametrize("peer", ["curl", "gnutls", "openssl"])
def test_clients_follow(pki: Pki, peer: str) -> None:
    """As server: our keys change five times at 2^24 records; all arrives"""
    with with_client(pki, peer) as (ours, running):
        if peer == "curl":
            for _ in range(1 + MORE):
                assert ours.http_head().startswith(b"GET / ")
                ours.send(ANSWER % len(BODY))
                rekeyed(ours, PARTS, lambda _: None)
            assert running.wait(PATIENCE) == 0
            assert sha256(running.output) == sha256((1 + MORE) * BODY)
        else:
            rekeyed(ours, LINES, lambda line: running.expect(line, PATIENCE))
        if peer == "openssl":
            assert len(KEY_UPDATE.findall(running.output)) == ROUNDS


@pytest.mark.parametrize("peer", ["curl", "gnutls", "openssl"])
def test_clients_renew_when_asked(pki: Pki, peer: str) -> None:
    """As server: a KeyUpdate of ours asks for the peer's; both go on under new keys"""
    with with_client(pki, peer) as (ours, running):
        if peer == "curl":
            for number in range(1 + MORE):
                assert ours.http_head().startswith(b"GET / ")
                if number > 0:
                    renewed(ours)
                ours.ask()
                ours.send(ANSWER % 6 + b"hello\n")
            assert running.wait(PATIENCE) == 0
            assert running.output == (1 + MORE) * b"hello\n"
        else:
            for line in LINES[:ROUNDS]:
                ours.ask()
                ours.send(line)
                running.expect(line, PATIENCE)
                running.send(line)
                assert ours.receive(len(line)) == line
                renewed(ours)
