"""Far into a connection, where no test can get by sending.

The record engine's sequence numbers are put ahead by hand, and so are those
of tlslite-ng, the peer that lets one: 2^24 records are 256 GB, and numbers go
on to 2^64. What is due there in TLS 1.3, our KeyUpdate at 2^24 records, other
peers must follow as well: for that only our count of records is put ahead.

The SSL object's numbers nobody can set; on its path the same code of libssl
works for both ends.
"""

from __future__ import annotations

import re
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peers
import pytest
import sspi_support as sspi
from certs import Pki
from interop_support import PATIENCE
from test_provider_contract import TLS12, TLS13, End, credential

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    tlslite = pytest.importorskip("tlslite.api", reason="tlslite-ng is not installed")

t = sspi.load_testnative()
if t.engine()[0] != "openssl":
    pytest.skip("Schannel's sequence numbers are its own", allow_module_level=True)
pytestmark = [pytest.mark.peers, pytest.mark.timeout(60)]

REKEY = 1 << 24  # tw_records_rekey_at
LAST = (1 << 64) - 1  # the number that is never used
both_roles = pytest.mark.parametrize("role", ["client", "server"])


@pytest.fixture(autouse=True)
def by_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWAPI_TLS_RECORDS", raising=False)


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

    def receive(self, size: int) -> bytes:
        """That much; what a step says to a message goes out."""
        got = b""
        while len(got) < size:
            while t.record(self.left)["whole"] == 0:
                self.left += self.more()
            status, plain, self.left = self.end.open(self.left)
            got += plain
            if status == sspi.RENEGOTIATE:
                self.plain.sendall(self.end.step(self.left or None))
                self.left = self.end.inbox
                status = self.end.status
            assert status == sspi.OK
        return got


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


@both_roles
@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("version", [TLS12, TLS13], ids=["1.2", "1.3"])
def test_numbers_far_ahead(pki: Pki, version: int, cipher: str, role: str) -> None:
    """Across each boundary in both directions, and to the end, where nothing wraps."""
    with with_tlslite(pki, role, version, cipher) as (ours, peer):
        for far in (1 << 24, 1 << 32, 1 << 40, 1 << 48, 1 << 63):
            ours.jump(far - 2, far - 1, 0)
            put(peer, far - 1, far - 2)
            converse(ours, peer, 3)
        ours.jump(LAST - 1, LAST - 1, 0)
        put(peer, LAST - 1, LAST - 1)
        converse(ours, peer, 1)
        assert t.stands(ours.end.ctx) == (LAST, LAST)
        status, records = t.seal(ours.end.ctx, b"one too many")
        assert (status, records) == (sspi.FAILURES["SEC_E_ENCRYPT_FAILURE"], b"")
    with with_tlslite(pki, role, version, cipher) as (ours, peer):
        ours.jump(LAST, 0, 0)
        put(peer, 0, LAST)
        peer.sendall(b"one too many")
        status, got, _ = ours.end.open(ours.more())
        assert status < 0 and got == b""


@both_roles
@pytest.mark.parametrize("cipher", CIPHERS)
def test_keys_change_before_their_limit(pki: Pki, cipher: str, role: str) -> None:
    """RFC 8446, 5.5: by a KeyUpdate at 2^24 records, where AES needs it."""
    with with_tlslite(pki, role, TLS13, cipher) as (ours, peer):
        ours.jump(7, REKEY - 2, REKEY - 2)
        put(peer, REKEY - 2, 7)
        converse(ours, peer, 5)
        stood = REKEY + 3 if cipher.startswith("chacha") else 3
        assert t.stands(ours.end.ctx) == (12, stood)
        assert peer._recordLayer._readState.seqnum == stood
        # What the peer renews goes on from there.
        for _ in peer.send_keyupdate_request(0):
            pass
        converse(ours, peer, 2)
        assert t.stands(ours.end.ctx) == (2, stood + 2)


def rekeyed(ours: Ours, answer: Any) -> None:
    """Our keys change five times between lines that the peer answers."""
    for number in range(5):
        read, write = t.stands(ours.end.ctx)
        ours.jump(read, write, REKEY - 1)
        for part in (b"before", b"behind", b"beyond"):
            line = b"%s %d\n" % (part, number)
            ours.send(line)
            answer(ours, line)
        # A KeyUpdate behind the first line, two lines under new keys.
        assert t.stands(ours.end.ctx)[1] == 2


def echoed(ours: Ours, line: bytes) -> None:
    assert ours.receive(len(line)) == line


def reversed_(ours: Ours, line: bytes) -> None:
    assert ours.receive(len(line)) == line[-2::-1] + b"\n"


def test_openssls_server_follows(pki: Pki) -> None:
    arguments = ["-rev", "-msg"]
    with peers.openssl_server(pki.server_rsa, version="1.3", arguments=arguments) as peer:
        with socket.create_connection((peers.HOST, peer.port), PATIENCE) as plain:
            rekeyed(Ours(pki, "client", TLS13, plain), reversed_)
        assert len(KEY_UPDATE.findall(peer.output)) == 5


def test_gnutls_server_follows(pki: Pki) -> None:
    with peers.gnutls_server(pki.server_rsa, version="1.3") as peer:
        with socket.create_connection((peers.HOST, peer.port), PATIENCE) as plain:
            rekeyed(Ours(pki, "client", TLS13, plain), echoed)


KEY_UPDATE = re.compile(rb"<<< TLS 1.3, Handshake \[length 0005\], KeyUpdate")
CLIENTS = {
    "openssl": (peers.openssl_client, ["-msg"]),
    "gnutls": (peers.gnutls_client, []),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_clients_follow(pki: Pki, name: str) -> None:
    start, arguments = CLIENTS[name]
    with socket.create_server((peers.HOST, 0)) as listener:
        listener.settimeout(PATIENCE)
        port = listener.getsockname()[1]
        with start(port, version="1.3", arguments=arguments) as peer:  # type: ignore[operator]
            plain, _ = listener.accept()
            with plain:
                plain.settimeout(PATIENCE)
                ours = Ours(pki, "server", TLS13, plain)
                rekeyed(ours, lambda ours, line: peer.expect(line, PATIENCE))
            if name == "openssl":
                assert len(KEY_UPDATE.findall(peer.output)) == 5
