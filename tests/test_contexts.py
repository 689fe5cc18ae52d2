"""Security contexts without sockets: ``sspi_client_context`` to ``sspi_delete_context``.

Both versions, both roles; against Python's ``ssl`` in memory and openssl over a
socket that the test itself carries.
"""

from __future__ import annotations

import hashlib
import io
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from certs import Pki
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import Connection, bytewise, client, connect, negotiate, server, tell, whole
from mint import CLIENT_AUTH, Minted, authority, mint

import twapi_tls as tls
from twapi_tls import SspiContext, TLSError

VERSIONS = pytest.mark.parametrize("version", ["tls1.2", "tls1.3"])
PYTHON = {"tls1.2": ssl.TLSVersion.TLSv1_2, "tls1.3": ssl.TLSVersion.TLSv1_3}


class World:
    def __init__(self) -> None:
        self.root = authority("Root")
        self.server = mint("server", self.root, names=["localhost"])
        self.client = mint("A client", self.root, eku=[CLIENT_AUTH])


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def contexts(world: World, version: str, **options: Any) -> tuple[SspiContext, SspiContext]:
    ours = client(world.root, world.client, protocols=version)
    return (
        tls.sspi_client_context(ours, "localhost"),
        tls.sspi_server_context(server(world.server), **options),
    )


# --- stepping


@VERSIONS
@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("chunks", [whole, bytewise])
def test_negotiation_and_traffic(
    world: World, version: str, mutual: bool, chunks: Callable[[bytes], Iterator[bytes]]
) -> None:
    ours, theirs = contexts(world, version, mutualauth=mutual)
    with negotiate(ours, theirs, chunks) as connection:
        for end in (ours, theirs):
            assert connection.send(end, b"x" * 100) == ("ok", b"x" * 100)
            big = bytes(range(256)) * 2000
            assert connection.send(end, big) == ("ok", big)
        for end in (ours, theirs):
            facts = end.facts()
            assert facts.protocol == ("TLS 1.2" if version == "tls1.2" else "TLS 1.3")
            assert facts == tls.sspi_connection_facts(end)
            assert facts.resumed is False and facts.sni == "localhost"
            assert facts.bits in (128, 256) and facts.suite_name.startswith("TLS_")
        assert ours.facts() == theirs.facts()
        features = tls.sspi_context_features(ours)
        for word in ("confidentiality", "replaydetect", "sequencedetect", "stream"):
            assert features[word] is True
        assert isinstance(features["raw"], int)
        assert tls.sspi_context_features(theirs)["mutualauth"] is mutual


@VERSIONS
def test_step_by_step(world: World, version: str) -> None:
    """What TWAPI documents: continue with a token, done with a leftover."""
    ours, theirs = contexts(world, version)
    status, hello, left = tls.sspi_step(ours)
    assert (status, left) == ("continue", b"") and hello[0] == 22
    assert tls.sspi_step(ours) == ("continue", b"", b"")  # nothing new: nothing to say
    assert tls.sspi_step(theirs, hello[:20]) == ("continue", b"", b"")
    status, flight, left = tls.sspi_step(theirs, hello[20:])
    assert (status, left) == ("continue", b"") and flight
    status, answer, left = tls.sspi_step(ours, flight)
    if version == "tls1.3":
        # our Finished and data behind it in one piece: the server's leftover
        assert (status, left) == ("done", b"")
        early = tls.sspi_encrypt_stream(ours, b"behind the Finished")
        status, tickets, left = tls.sspi_step(theirs, answer + early)
        assert (status, left) == ("done", early)
        assert tls.sspi_decrypt_stream(theirs, left) == ("ok", b"behind the Finished")
        late = tls.sspi_encrypt_stream(theirs, b"behind the tickets")
        assert tls.sspi_decrypt_stream(ours, tickets + late) == ("ok", b"behind the tickets")
    else:
        assert (status, left) == ("continue", b"")
        status, last, left = tls.sspi_step(theirs, answer)
        assert (status, left) == ("done", b"")
        early = tls.sspi_encrypt_stream(theirs, b"behind the Finished")
        status, more, left = tls.sspi_step(ours, last + early[:10])
        assert (status, more, left) == ("done", b"", early[:10])
        assert tls.sspi_decrypt_stream(ours, left) == ("ok", b"")
        assert tls.sspi_decrypt_stream(ours, early[10:]) == ("ok", b"behind the Finished")
    with Connection(ours, theirs) as connection:
        assert tls.sspi_step(ours) == ("done", b"", b"")  # done stays done
        assert connection.send(ours, b"x") == ("ok", b"x")


def test_a_server_given_its_first_bytes(world: World) -> None:
    ours = tls.sspi_client_context(client(world.root), "localhost")
    _, hello, _ = tls.sspi_step(ours)
    for data in (hello, bytearray(hello), memoryview(hello)):
        theirs = tls.sspi_server_context(server(world.server), data)
        status, flight, _ = tls.sspi_step(theirs)
        assert status == "continue" and flight
        theirs.delete()
    ours.delete()


def test_a_target_is_needed_to_verify(world: World) -> None:
    with pytest.raises(ValueError, match="target is needed"):
        tls.sspi_client_context(client(world.root))
    tls.sspi_client_context(client(world.root), manualvalidation=True).delete()
    tls.sspi_client_context(client(world.root, validateservercert=False)).delete()
    for target in ("a\0b", "ü" * 70):
        with pytest.raises(ValueError):
            tls.sspi_client_context(client(world.root), target)
    with pytest.raises(TypeError):
        tls.sspi_client_context(client(world.root), 5)  # type: ignore[arg-type]


def test_manual_validation_leaves_it_to_the_caller(world: World) -> None:
    stranger = mint("x", names=["elsewhere.example"])
    with connect(client(world.root), server(stranger), manualvalidation=True) as connection:
        cert = tls.sspi_remote_cert(connection.client)
        assert cert.der() == stranger.der
        assert tls.cert_tls_verify(cert, "localhost", revocationcheck="none") == "untrustedroot"


@VERSIONS
def test_disconnected_by_close_notify(world: World, version: str) -> None:
    ours, theirs = contexts(world, version)
    _, hello, _ = tls.sspi_step(ours)
    assert tls.sspi_step(theirs, hello)[0] == "continue"
    goodbye = bytes([21, 3, 3, 0, 2, 1, 0])
    assert tls.sspi_step(ours, goodbye) == ("disconnected", b"", b"")
    ours.delete()
    theirs.delete()


# --- failures


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", None, "HTTP"),
        (b"\x00" * 50, None, ""),
        (b"\x16\x03\x01\xff\xff" + b"x" * 100, None, ""),
        (b"\x17\x03\x03\x00\x01x", None, ""),
        (b"\x16\x03\x01\x00\x04\x00\x00\x00\x00", None, ""),
    ],
)
def test_what_is_no_client(world: World, data: bytes, code: str | None, words: str) -> None:
    theirs = tls.sspi_server_context(server(world.server))
    with pytest.raises(TLSError, match=words or None) as caught:
        tls.sspi_step(theirs, data)
    assert caught.value.code < 0
    # the first error stays
    with pytest.raises(TLSError) as again:
        tls.sspi_step(theirs)
    assert again.value.name == caught.value.name
    with pytest.raises(TLSError):
        tls.sspi_encrypt_stream(theirs, b"x")
    theirs.delete()


@VERSIONS
def test_the_token_of_a_failure_tells_the_peer(world: World, version: str) -> None:
    """Each step's alert is on the exception; the other end understands it."""
    strangers = client(authority("Root"), protocols=version)
    ours = tls.sspi_client_context(strangers, "localhost")
    theirs = tls.sspi_server_context(server(world.server))
    _, hello, _ = tls.sspi_step(ours)
    _, flight, _ = tls.sspi_step(theirs, hello)
    with pytest.raises(TLSError) as caught:
        tls.sspi_step(ours, flight)
    assert caught.value.name == "SEC_E_UNTRUSTED_ROOT"
    assert caught.value.alert_sent == caught.value.alert == "unknown_ca"
    assert caught.value.token
    told = tell(theirs, caught.value.token)
    assert isinstance(told, tls.TLSAlertError)
    assert told.alert_received == "unknown_ca"
    assert told.token == b""


@VERSIONS
def test_a_server_that_cannot_go_on_says_so(world: World, version: str) -> None:
    ours = tls.sspi_client_context(client(world.root, protocols=version, alpn="a"), "localhost")
    theirs = tls.sspi_server_context(server(world.server, alpn="b"))
    _, hello, _ = tls.sspi_step(ours)
    with pytest.raises(TLSError) as caught:
        tls.sspi_step(theirs, hello)
    told = tell(ours, caught.value.token)
    assert isinstance(told, tls.TLSAlertError)
    assert told.alert_received == "no_application_protocol"


@VERSIONS
@pytest.mark.parametrize("end", ["client", "server"])
def test_a_damaged_record(world: World, version: str, end: str) -> None:
    """Plaintext before it first; then the error, its alert, and nothing more."""
    with connect(client(world.root, protocols=version), server(world.server)) as connection:
        sender = connection.client if end == "client" else connection.server
        receiver = connection.other(sender)
        good = tls.sspi_encrypt_stream(sender, b"good")
        bad = bytearray(tls.sspi_encrypt_stream(sender, b"bad"))
        bad[-1] ^= 1
        data = good + bytes(bad) + tls.sspi_encrypt_stream(sender, b"late")
        assert tls.sspi_decrypt_stream(receiver, data) == ("ok", b"good")
        for _ in range(2):
            with pytest.raises(TLSError) as caught:
                tls.sspi_decrypt_stream(receiver, b"")
            assert caught.value.name == "SEC_E_MESSAGE_ALTERED"
        with pytest.raises(TLSError):
            tls.sspi_encrypt_stream(receiver, b"x")


@VERSIONS
def test_a_replayed_record_is_refused(world: World, version: str) -> None:
    with connect(client(world.root, protocols=version), server(world.server)) as connection:
        record = tls.sspi_encrypt_stream(connection.client, b"once")
        assert tls.sspi_decrypt_stream(connection.server, record) == ("ok", b"once")
        with pytest.raises(TLSError) as caught:
            tls.sspi_decrypt_stream(connection.server, record)
        assert caught.value.name == "SEC_E_MESSAGE_ALTERED"
        told = tell(connection.client, caught.value.token)
        assert isinstance(told, tls.TLSAlertError) and told.alert_received == "bad_record_mac"


@VERSIONS
def test_before_the_end_of_the_negotiation(world: World, version: str) -> None:
    ours, theirs = contexts(world, version)
    _, hello, _ = tls.sspi_step(ours)
    uses: list[Callable[[], object]] = [
        lambda: tls.sspi_encrypt_stream(ours, b"x"),
        lambda: tls.sspi_decrypt_stream(ours, b""),
        ours.facts,
        lambda: ours.channel_binding("tls-exporter"),
        lambda: ours.export("EXPORTER-x", 16),
        lambda: tls.sspi_remote_cert(ours),
    ]
    for use in uses:
        with pytest.raises((TLSError, ValueError)):
            use()
    # none of that broke it
    _, flight, _ = tls.sspi_step(theirs, hello)
    _, answer, _ = tls.sspi_step(ours, flight)
    status, last, _ = tls.sspi_step(theirs, answer)
    assert status == "done"
    if version == "tls1.2":
        assert tls.sspi_step(ours, last)[0] == "done"
    with Connection(ours, theirs) as connection:
        assert connection.send(ours, b"x") == ("ok", b"x")


# --- traffic


@VERSIONS
def test_encryption_splits_and_decryption_joins(world: World, version: str) -> None:
    with connect(client(world.root, protocols=version), server(world.server)) as connection:
        ours, theirs = connection.client, connection.server
        assert tls.sspi_encrypt_stream(ours, b"") == b""
        assert tls.sspi_decrypt_stream(theirs, b"") == ("ok", b"")
        data = bytes(range(256)) * 400
        records = tls.sspi_encrypt_stream(ours, memoryview(data))
        lengths, at = [], 0
        while at < len(records):
            assert records[at] == 23
            size = int.from_bytes(records[at + 3 : at + 5], "big")
            lengths.append(size)
            at += 5 + size
        assert at == len(records) and max(lengths) <= 16384 + 256
        got, status = b"", "ok"
        for start in range(0, len(records), 10007):
            status, plain = tls.sspi_decrypt_stream(theirs, records[start : start + 10007])
            assert status == "ok"
            got += plain
        assert got == data
        # The methods are the same without status.
        assert ours.decrypt(theirs.encrypt(data)) == data
        assert ours.decrypt(b"") == theirs.encrypt(b"") == b""


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40000), max_size=5),
    cuts=st.lists(st.integers(1, 20000)),
    version=st.sampled_from(["tls1.2", "tls1.3"]),
)
def test_any_cut_of_any_data(sizes: list[int], cuts: list[int], version: str) -> None:
    theirs = server(_HYPOTHETICAL)
    with connect(client(_HYPOTHETICAL_ROOT, protocols=version), theirs) as connection:
        data = [bytes([n % 256]) * size for n, size in enumerate(sizes)]
        records = b"".join(tls.sspi_encrypt_stream(connection.client, each) for each in data)
        got = b""
        for cut in [*cuts, len(records)]:
            status, plain = tls.sspi_decrypt_stream(connection.server, records[:cut])
            assert status == "ok"
            records = records[cut:]
            got += plain
        assert got == b"".join(data)


_HYPOTHETICAL_ROOT = authority("Hypothetical root")
_HYPOTHETICAL = mint("x", _HYPOTHETICAL_ROOT, names=["localhost"])


@VERSIONS
def test_shutdown(world: World, version: str) -> None:
    """close_notify ends one direction; the other goes on until it is its turn."""
    with connect(client(world.root, protocols=version), server(world.server)) as connection:
        ours, theirs = connection.client, connection.server
        last = tls.sspi_encrypt_stream(ours, b"last words")
        status, goodbye = tls.sspi_shutdown_context(ours)
        assert status == "done" and goodbye
        assert tls.sspi_shutdown_context(ours) == ("done", b"")
        with pytest.raises(TLSError):
            tls.sspi_encrypt_stream(ours, b"more")
        assert tls.sspi_decrypt_stream(theirs, last + goodbye) == ("expired", b"last words")
        assert tls.sspi_decrypt_stream(theirs, b"") == ("expired", b"")
        answer = tls.sspi_encrypt_stream(theirs, b"heard")
        assert tls.sspi_decrypt_stream(ours, answer) == ("ok", b"heard")
        status, goodbye = tls.sspi_shutdown_context(theirs)
        assert tls.sspi_decrypt_stream(ours, goodbye) == ("expired", b"")


def test_encrypt_and_write(world: World) -> None:
    class Stream(io.BytesIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    with connect(client(world.root), server(world.server)) as connection:
        stream = Stream()
        tls.sspi_encrypt_and_write(connection.client, b"one", stream)
        assert stream.flushed == 1
        tls.sspi_encrypt_and_write(connection.client, b"two", stream, flush=False)
        assert stream.flushed == 1
        assert tls.sspi_decrypt_stream(connection.server, stream.getvalue()) == ("ok", b"onetwo")


def test_delete_is_idempotent_and_final(world: World) -> None:
    connection = connect(client(world.root), server(world.server))
    ours = connection.client
    cert = tls.sspi_remote_cert(ours)
    tls.sspi_delete_context(ours)
    tls.sspi_delete_context(ours)
    assert cert.der() == world.server.der
    uses: list[Callable[[SspiContext], object]] = [
        tls.sspi_step,
        tls.sspi_remote_cert,
        tls.sspi_local_cert,
        tls.sspi_shutdown_context,
        tls.sspi_context_features,
        tls.sspi_connection_facts,
        tls.sspi_issuers_accepted_by_peer,
        lambda ctx: tls.sspi_encrypt_stream(ctx, b"x"),
        lambda ctx: tls.sspi_decrypt_stream(ctx, b"x"),
        lambda ctx: ctx.encrypt(b"x"),
        lambda ctx: ctx.decrypt(b"x"),
        lambda ctx: ctx.channel_binding(),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="deleted"):
            use(ours)
    with connection.server:
        pass
    with pytest.raises(ValueError, match="deleted"):
        tls.sspi_step(connection.server)


@pytest.mark.peers
def test_a_channels_context_is_moved_by_the_channel_alone(pki: Pki) -> None:
    credentials = tls.sspi_acquire_credentials(
        credentials=tls.sspi_schannel_credentials(
            rootstore=tls.cert_temporary_store(pem=pki.root_pem)
        )
    )
    with peers.openssl_server(pki.server, arguments=["-rev"]) as peer:
        with tls.tls_socket(
            "127.0.0.1", peer.port, peersubject="localhost", credentials=credentials
        ) as channel:
            context = channel.cget("context")
            assert context.facts().sni == "localhost"
            uses: list[Callable[[], object]] = [
                lambda: tls.sspi_step(context),
                lambda: tls.sspi_encrypt_stream(context, b"x"),
                lambda: tls.sspi_decrypt_stream(context, b"x"),
                lambda: context.encrypt(b"x"),
                lambda: context.decrypt(b"x"),
                lambda: context.decrypt_into(b"x", bytearray(1)),
                lambda: context.encrypt_into(b"x", bytearray(100)),
                lambda: context.encrypted_size(1),
                lambda: tls.sspi_shutdown_context(context),
            ]
            for use in uses:
                with pytest.raises(ValueError, match="by the channel alone"):
                    use()
            tls.sspi_delete_context(context)  # does not hurt it
            channel.sendall(b"abc\n")
            assert channel.readline() == b"cba\n"


# --- channel bindings and exporters


@VERSIONS
@pytest.mark.parametrize(
    ("algorithm", "name"),
    [(hashes.SHA256(), "sha256"), (hashes.SHA384(), "sha384"), (hashes.SHA512(), "sha512")],
)
def test_bindings_are_equal_on_both_ends(
    world: World, version: str, algorithm: hashes.HashAlgorithm, name: str
) -> None:
    """tls-server-end-point takes the digest of the certificate's signature (RFC 5929, 4)."""
    leaf = mint("x", world.root, names=["localhost"], hash_=algorithm)
    with connect(client(world.root, protocols=version), server(leaf)) as connection:
        ours, theirs = connection.client, connection.server
        endpoint = hashlib.new(name, leaf.der).digest()
        for end in (ours, theirs):
            assert end.channel_binding() == endpoint
            assert end.channel_binding("tls-server-end-point") == endpoint
        exporter = ours.channel_binding("tls-exporter")
        assert exporter == theirs.channel_binding("tls-exporter") and len(exporter) == 32
        assert exporter == ours.export("EXPORTER-Channel-Binding", 32, b"")
        if version == "tls1.2":
            unique = ours.channel_binding("tls-unique")
            assert unique == theirs.channel_binding("tls-unique") and len(unique) == 12
        else:
            for end in (ours, theirs):
                with pytest.raises(TLSError, match="tls-unique"):
                    end.channel_binding("tls-unique")
        with pytest.raises(ValueError, match="'tls-other'"):
            ours.channel_binding("tls-other")


@VERSIONS
def test_exporters(world: World, version: str) -> None:
    with connect(client(world.root, protocols=version), server(world.server)) as connection:
        ours, theirs = connection.client, connection.server
        seen = set()
        for label in ("EXPORTER-one", "EXPORTER-two"):
            for context in (None, b"", b"context", b"\0" * 300):
                for length in (1, 20, 32, 100):
                    secret = ours.export(label, length, context)
                    assert secret == theirs.export(label, length, context)
                    assert len(secret) == length
                    if length >= 20:
                        seen.add(secret)
        # TLS 1.2 tells no context from an empty one (RFC 5705), TLS 1.3 does not
        assert len(seen) == 2 * (4 if version == "tls1.2" else 3) * 3
        for length in (0, -1):
            with pytest.raises((ValueError, TLSError)):
                ours.export("EXPORTER-one", length)


class PythonEnd:
    """An end of Python's ``ssl`` in memory."""

    def __init__(self, context: ssl.SSLContext, server_side: bool, name: str | None) -> None:
        self.input, self.output = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self.input, self.output, server_side, name)
        self.done = False

    def step(self, data: bytes) -> bytes:
        self.input.write(data)
        if not self.done:
            try:
                self.object.do_handshake()
                self.done = True
            except ssl.SSLWantReadError:
                pass
        return self.output.read()

    def read(self) -> bytes:
        got = b""
        try:
            while piece := self.object.read(65536):
                got += piece
        except ssl.SSLWantReadError:
            pass
        return got


@VERSIONS
@pytest.mark.parametrize("role", ["client", "server"])
def test_against_python_ssl(pki: Pki, version: str, role: str) -> None:
    """Traffic both ways, and the same tls-unique."""
    if role == "client":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.server.chain, pki.server.key)
        other = PythonEnd(context, True, None)
        ours = tls.sspi_client_context(
            tls.sspi_acquire_credentials(
                credentials=tls.sspi_schannel_credentials(
                    rootstore=tls.cert_temporary_store(pem=pki.root_pem), protocols=version
                )
            ),
            "localhost",
        )
        _, data, _ = tls.sspi_step(ours)
    else:
        context = ssl.create_default_context(cafile=str(pki.root))
        context.minimum_version = context.maximum_version = PYTHON[version]
        other = PythonEnd(context, False, "localhost")
        credentials = tls.sspi_schannel_credentials(
            tls.cert_temporary_store(pem=pki.server.combined.read_bytes())
        )
        ours = tls.sspi_server_context(tls.sspi_acquire_credentials("tls", "server", credentials))
        data = b""
    status = "continue"
    for _ in range(10):
        data = other.step(data)
        if status == "done":
            assert tls.sspi_decrypt_stream(ours, data) == ("ok", b"")
            data = b""
            break
        status, data, left = tls.sspi_step(ours, data)
        if left:
            assert tls.sspi_decrypt_stream(ours, left) == ("ok", b"")
    other.step(data)
    assert other.done and status == "done"
    if version == "tls1.2":
        assert ours.channel_binding("tls-unique") == other.object.get_channel_binding("tls-unique")
    big = bytes(range(256)) * 1000
    other.step(tls.sspi_encrypt_stream(ours, big))
    assert other.read() == big
    other.object.write(big)
    assert tls.sspi_decrypt_stream(ours, other.output.read()) == ("ok", big)
    other.step(tls.sspi_shutdown_context(ours)[1])
    assert other.object.read(10) == b""
    ours.delete()


class Carried:
    """A context whose bytes the test carries over a socket."""

    def __init__(self, context: SspiContext, port: int) -> None:
        self.context = context
        self.sock = socket.create_connection(("127.0.0.1", port), 10)
        self.statuses: list[str] = []

    def negotiate(self) -> None:
        status, output, left = tls.sspi_step(self.context)
        while True:
            self.sock.sendall(output)
            if status == "done":
                break
            data = self.sock.recv(65536)
            assert data
            status, output, left = tls.sspi_step(self.context, data)
        if left:
            self.take(left)

    def take(self, data: bytes) -> bytes:
        """Decrypts, and answers every renegotiation: a step, and on with what it leaves."""
        got = b""
        while True:
            status, plain = tls.sspi_decrypt_stream(self.context, data)
            got += plain
            self.statuses.append(status)
            if status != "renegotiate":
                return got
            _, output, data = tls.sspi_step(self.context)
            self.sock.sendall(output)

    def read_until(self, what: bytes) -> bytes:
        got = b""
        while what not in got:
            data = self.sock.recv(65536)
            assert data, got
            got += self.take(data)
        return got

    def command(self, peer: peers.Peer, letter: bytes) -> None:
        """A command of s_server, which reads one at a time: its message is taken in."""
        peer.send(b"no tickets on their way\n")
        self.read_until(b"way\n")
        peer.send(letter + b"\n")
        assert self.take(self.sock.recv(65536)) == b""

    def __enter__(self) -> Carried:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        self.context.delete()


def carried(pki: Pki, version: str, port: int) -> Carried:
    config = tls.sspi_schannel_credentials(
        rootstore=tls.cert_temporary_store(pem=pki.root_pem), protocols=version
    )
    credentials = tls.sspi_acquire_credentials(credentials=config)
    return Carried(tls.sspi_client_context(credentials, "localhost"), port)


@pytest.mark.peers
@VERSIONS
def test_exporter_of_openssl(pki: Pki, version: str) -> None:
    label = "EXPORTER-twapi-tls-test"
    arguments = ["-keymatexport", label, "-keymatexportlen", "40"]
    with peers.openssl_server(pki.server, arguments=arguments) as peer:
        with carried(pki, version, peer.port) as ours:
            ours.negotiate()
            found = peer.expect(rb"Keying material: ([0-9A-F]+)")
            expected = bytes.fromhex(found[1].decode())
            assert ours.context.export(label, 40) == expected


@pytest.mark.peers
@pytest.mark.parametrize("letter", ["K", "k"])
def test_key_update_of_openssl(pki: Pki, letter: str) -> None:
    """K asks for ours in return: the status renegotiate, a step, and on."""
    with peers.openssl_server(pki.server) as peer, carried(pki, "tls1.3", peer.port) as ours:
        ours.negotiate()
        for turn in range(3):
            ours.command(peer, letter.encode())
            peer.send(b"after update %d\n" % turn)
            assert b"after update" in ours.read_until(b"%d\n" % turn)
            line = b"answer %d" % turn
            ours.sock.sendall(tls.sspi_encrypt_stream(ours.context, line + b"\n"))
            peer.expect(line)
        assert ("renegotiate" in ours.statuses) is (letter == "K")


@pytest.mark.peers
def test_renegotiation_of_openssl(pki: Pki) -> None:
    """TLS 1.2: the server asks, the same certificate is shown, data goes on."""
    with peers.openssl_server(pki.server) as peer, carried(pki, "tls1.2", peer.port) as ours:
        ours.negotiate()
        ours.sock.sendall(tls.sspi_encrypt_stream(ours.context, b"before\n"))
        peer.expect(b"before")
        ours.command(peer, b"r")
        peer.send(b"after renegotiation\n")
        assert b"after renegotiation" in ours.read_until(b"renegotiation\n")
        assert "renegotiate" in ours.statuses
        while True:
            try:
                records = tls.sspi_encrypt_stream(ours.context, b"and back\n")
                break
            except TLSError as error:  # the server has not answered yet
                assert error.errorcode == ("TWAPI", "TLS", "STATE")
                assert "a renegotiation waits for the peer" in str(error)
                ours.take(ours.sock.recv(65536))
        ours.sock.sendall(records)
        peer.expect(b"and back")
        assert tls.sspi_remote_cert(ours.context).der() == pki.server.leaf_der


@pytest.mark.peers
def test_an_unanswered_key_update_keeps_its_order(pki: Pki) -> None:
    """Data encrypted before the step that renegotiate asks for is not lost."""
    with peers.openssl_server(pki.server) as peer, carried(pki, "tls1.3", peer.port) as ours:
        ours.negotiate()
        peer.send(b"K\n")
        status = "ok"
        while status == "ok":
            status, _ = tls.sspi_decrypt_stream(ours.context, ours.sock.recv(65536))
        assert status == "renegotiate"
        records = tls.sspi_encrypt_stream(ours.context, b"first the answer\n")
        _, output, left = tls.sspi_step(ours.context)
        assert left == b""
        # whichever holds the KeyUpdate, it goes first: never the data
        ours.sock.sendall(records + output)
        peer.expect(b"first the answer")
        ours.sock.sendall(tls.sspi_encrypt_stream(ours.context, b"then this\n"))
        peer.expect(b"then this")


def test_rsa_and_ecdsa_servers(world: World) -> None:
    leaf: Minted = mint(
        "x", world.root, names=["localhost"], key=rsa.generate_private_key(65537, 2048)
    )
    for version in ("tls1.2", "tls1.3"):
        with connect(client(world.root, protocols=version), server(leaf)) as connection:
            assert connection.send(connection.server, b"x") == ("ok", b"x")
            assert "RSA" in connection.client.facts().suite_name or version == "tls1.3"


@VERSIONS
def test_encrypting_into_a_buffer(world: World, version: str) -> None:
    """The room asked for is enough for all, and what waits goes first."""
    here, there = contexts(world, version)
    negotiate(here, there)
    for size in (1, 16384, 16385, 700_000):
        data = bytes(range(256)) * (size // 256 + 1)
        room = here.encrypted_size(len(data))
        buffer = bytearray(room + 10)
        n = here.encrypt_into(data, buffer)
        assert len(data) < n <= room
        _, plain = tls.sspi_decrypt_stream(there, buffer[:n])
        while len(plain) < len(data):
            _, more = tls.sspi_decrypt_stream(there, b"")
            assert more
            plain += more
        assert plain == data
    assert here.encrypt_into(b"", bytearray()) == 0
    small = bytearray(here.encrypted_size(100) - 1)
    with pytest.raises(ValueError, match=f"{len(small)} bytes of the {len(small) + 1}"):
        here.encrypt_into(bytes(100), small)
    with pytest.raises(ValueError, match="overlap"):
        here.encrypt_into(memoryview(small)[:9], memoryview(small)[8:])
    with pytest.raises((TypeError, BufferError)):
        here.encrypt_into(b"data", b"read only")
    with pytest.raises(OverflowError):
        here.encrypted_size(-1)
    # none of it has cost a record: the peer reads on
    n = here.encrypt_into(b"after", buffer)
    assert tls.sspi_decrypt_stream(there, buffer[:n])[1] == b"after"


@VERSIONS
def test_what_waits_goes_before_what_is_encrypted(world: World, version: str) -> None:
    here, there = contexts(world, version)
    negotiate(here, there)
    here.session.shutdown()  # its close_notify waits
    waiting = here.encrypted_size(0)
    assert waiting > 0
    buffer = bytearray(waiting)
    assert here.encrypt_into(b"", buffer) == waiting
    status, plain = tls.sspi_decrypt_stream(there, buffer)
    assert (status, plain) == ("expired", b"")
    with pytest.raises(TLSError):
        here.encrypt_into(b"late", bytearray(100_000))


@VERSIONS
def test_decrypting_into_a_buffer(world: World, version: str) -> None:
    """What does not fit waits; errors come after the data before them."""
    here, there = contexts(world, version)
    negotiate(here, there)
    data = bytes(range(256)) * 300
    records = tls.sspi_encrypt_stream(here, data)
    small = bytearray(10_000)
    got = bytearray()
    n = there.decrypt_into(records[:20_000], small)
    while n or len(got) < len(data):
        got += small[:n]
        n = there.decrypt_into(b"", small)
        if not n and len(got) < len(data):
            n = there.decrypt_into(records[20_000:], small)
    assert bytes(got) == data
    exact = bytearray(5)
    assert there.decrypt_into(tls.sspi_encrypt_stream(here, b"hello"), exact) == 5
    assert exact == b"hello"
    assert there.decrypt_into(b"", small) == 0
    with pytest.raises(ValueError, match="overlap"):
        there.decrypt_into(memoryview(small)[:100], memoryview(small)[50:])
    with pytest.raises((TypeError, BufferError)):
        there.decrypt_into(b"", b"read only")
    good = tls.sspi_encrypt_stream(here, b"good")
    bad = bytearray(tls.sspi_encrypt_stream(here, b"evil"))
    bad[-1] ^= 1
    assert there.decrypt_into(good + bad, small) == 4
    with pytest.raises(TLSError) as caught:
        there.decrypt_into(b"", small)
    assert caught.value.name == "SEC_E_MESSAGE_ALTERED"


@VERSIONS
def test_a_clients_chain_is_bounded(version: str) -> None:
    """A server keeps it with the session: 32 KiB, no more."""
    root = authority("Roomy root")
    theirs = server(mint("server", root, names=["localhost"]), protocols=version)
    for count, fits in ((900, True), (1600, False)):
        names = [f"{at:015}.example" for at in range(count)]
        wide = mint("wide", root, eku=[CLIENT_AUTH], names=names)
        assert (len(wide.der) < 32 * 1024) is fits
        ours = client(root, wide, protocols=version)
        if fits:
            with connect(ours, theirs, mutualauth=True) as connection:
                assert tls.sspi_remote_cert(connection.server).der() == wide.der
        else:
            with pytest.raises(TLSError):
                connect(ours, theirs, mutualauth=True)
