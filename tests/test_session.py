"""The session machine through ``_native.Session``, two ends in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
from certs import Identity, Pki
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twapi_tls import _native
from twapi_tls._native import Credentials, Session, Store, TLSError

Version = Literal[2, 4]
VERSIONS = pytest.mark.parametrize("version", [_native.TLS1_2, _native.TLS1_3], ids=["1.2", "1.3"])


def certificate(identity: Identity) -> _native.Certificate:
    store = Store()
    store.import_("pem", identity.key_pem + identity.chain_pem)
    return next(store[i] for i in range(len(store)) if store[i].has_private_key())


def credentials(
    role: Literal["client", "server"], identity: Identity | None, version: int, **options: object
) -> Credentials:
    certs = [certificate(identity)] if identity else []
    return Credentials(role, certificates=certs, protocols=version, **options)  # type: ignore[arg-type]


def whole(data: bytes) -> Iterator[bytes]:
    if data:
        yield data


def bytewise(data: bytes) -> Iterator[bytes]:
    for i in range(len(data)):
        yield data[i : i + 1]


def on_thread(work: Callable[[], object]) -> None:
    """Does it on a thread that is gone afterwards."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result(10)


class Pair:
    """A client and a server, with what each decides."""

    def __init__(
        self, client: Session, server: Session, chunks: Callable[[bytes], Iterator[bytes]] = whole
    ) -> None:
        self.client, self.server, self.chunks = client, server, chunks
        self.asked: list[Session] = []
        self.client_verdict = self.server_verdict = 0

    def move(self, source: Session, target: Session) -> None:
        for chunk in self.chunks(source.take_output()):
            target.feed(chunk)

    def drive(self, session: Session) -> bool:
        status = session.handshake()
        while status == _native.WANT_VERDICT:
            self.asked.append(session)
            assert session.state() == "NEGOTIATING"
            verdict = self.client_verdict if session is self.client else self.server_verdict
            session.verdict(verdict)
            status = session.handshake()
        return status == _native.DONE

    def handshake(self) -> None:
        done_client = done_server = False
        for _ in range(20):
            done_client = self.drive(self.client)
            self.move(self.client, self.server)
            done_server = self.drive(self.server)
            self.move(self.server, self.client)
            if done_client and done_server:
                return
        raise AssertionError("the handshake does not end")

    def carry(self, source: Session, target: Session, data: bytes) -> bytes:
        """Sends data through, returns what arrives."""
        sent, got = 0, b""
        while len(got) < len(data):
            if sent < len(data):
                sent += source.send(data[sent:], 0)
            self.move(source, target)
            while piece := target.recv(1 << 16, 0):
                got += piece
            self.move(target, source)
        return got


def make_pair(
    pki: Pki,
    version: int,
    *,
    mutual: bool = False,
    target: str = "localhost",
    chunks: Callable[[bytes], Iterator[bytes]] = whole,
    creds: tuple[Credentials, Credentials] | None = None,
) -> Pair:
    client, server = creds or (
        credentials("client", pki.client if mutual else None, version),
        credentials("server", pki.server, version),
    )
    return Pair(
        Session("client", client, target=target),
        Session("server", server, request_cert=mutual, ask_verdict=mutual),
        chunks,
    )


@VERSIONS
@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("chunks", [whole, bytewise])
def test_handshake_and_both_directions(
    pki: Pki, version: int, mutual: bool, chunks: Callable[[bytes], Iterator[bytes]]
) -> None:
    pair = make_pair(pki, version, mutual=mutual, chunks=chunks)
    pair.handshake()
    assert pair.client.state() == pair.server.state() == "OPEN"
    assert pair.asked.count(pair.client) == 1
    assert pair.asked.count(pair.server) == (1 if mutual else 0)
    assert pair.carry(pair.client, pair.server, b"ping" * 10) == b"ping" * 10
    big = bytes(range(256)) * 200
    assert pair.carry(pair.server, pair.client, big) == big
    facts = pair.client.facts()
    assert facts["protocol"] == ("TLS 1.2" if version == 2 else "TLS 1.3")
    assert facts["resumed"] is False
    assert pair.client.remote_cert().der() == pki.server.leaf_der
    if mutual:
        assert pair.server.remote_cert().der() == pki.client.leaf_der
    else:
        with pytest.raises(TLSError) as caught:
            pair.server.remote_cert()
        assert caught.value.name == "SEC_E_NO_CREDENTIALS"


@VERSIONS
@pytest.mark.parametrize("mutual", [False, True])
def test_resumption_asks_for_the_verdict_again(pki: Pki, version: int, mutual: bool) -> None:
    creds = (
        credentials("client", pki.client if mutual else None, version),
        credentials("server", pki.server, version),
    )
    for round_ in range(3):
        pair = make_pair(pki, version, mutual=mutual, creds=creds)
        pair.handshake()
        pair.carry(pair.server, pair.client, b"the ticket comes before this")
        assert pair.client.facts()["resumed"] is (round_ > 0)
        assert pair.server.facts()["resumed"] is (round_ > 0)
        assert pair.asked.count(pair.client) == 1
        assert pair.asked.count(pair.server) == (1 if mutual else 0)
        assert pair.client.remote_cert().der() == pki.server.leaf_der
        pair.client.shutdown()


@VERSIONS
def test_resumption_can_be_off(pki: Pki, version: int) -> None:
    creds = (
        credentials("client", None, version, resume=False),
        credentials("server", pki.server, version),
    )
    for _ in range(2):
        pair = make_pair(pki, version, creds=creds)
        pair.handshake()
        pair.carry(pair.server, pair.client, b"x")
        assert pair.client.facts()["resumed"] is False


@VERSIONS
@pytest.mark.parametrize("resumed", [False, True])
def test_client_refusal_reaches_the_server_as_an_alert(
    pki: Pki, version: int, resumed: bool
) -> None:
    creds = (credentials("client", None, version), credentials("server", pki.server, version))
    if resumed:
        first = make_pair(pki, version, creds=creds)
        first.handshake()
        first.carry(first.server, first.client, b"x")
        first.client.shutdown()
    pair = make_pair(pki, version, creds=creds)
    pair.client_verdict = _native.CODES["SEC_E_CERT_EXPIRED"]
    with pytest.raises(_native.TLSVerificationError) as refused:
        pair.handshake()
    assert refused.value.name == "SEC_E_CERT_EXPIRED"
    assert pair.client.state() == "FAILED"
    pair.server.feed(refused.value.token or pair.client.take_output())
    with pytest.raises(_native.TLSAlertError) as told:
        pair.server.handshake()
    assert told.value.alert_received == "certificate_expired"
    assert pair.server.state() == "FAILED"


@VERSIONS
@pytest.mark.parametrize("with_cert", [True, False])
def test_server_refusal_reaches_the_client_as_an_alert(
    pki: Pki, version: int, with_cert: bool
) -> None:
    creds = (
        credentials("client", pki.client if with_cert else None, version),
        credentials("server", pki.server, version),
    )
    pair = make_pair(pki, version, mutual=True, creds=creds)
    pair.server_verdict = _native.CODES[
        "SEC_E_CERT_EXPIRED" if with_cert else "SEC_E_NO_CREDENTIALS"
    ]
    with pytest.raises(_native.TLSVerificationError) as refused:
        pair.handshake()
    pair.client.feed(refused.value.token or pair.server.take_output())
    with pytest.raises(_native.TLSAlertError) as told:
        if pair.client.handshake() == _native.DONE:
            pair.client.recv(100, 0)
    if with_cert:
        assert told.value.alert_received == "certificate_expired"
    else:
        expected = "handshake_failure" if version == 2 else "certificate_required"
        assert told.value.alert_received == expected


@VERSIONS
def test_close_notify_is_a_clean_end_and_eof_is_not(pki: Pki, version: int) -> None:
    pair = make_pair(pki, version)
    pair.handshake()
    pair.client.send(b"last words", 0)
    pair.client.shutdown()
    pair.move(pair.client, pair.server)
    assert pair.server.recv(100, 0) == b"last words"
    assert pair.server.recv(100, 0) == b""
    # the other direction goes on
    assert pair.carry(pair.server, pair.client, b"still here") == b"still here"
    with pytest.raises(TLSError):
        pair.client.send(b"more", 0)

    pair = make_pair(pki, version)
    pair.handshake()
    pair.client.send(b"cut", 0)
    pair.move(pair.client, pair.server)
    pair.server.feed_eof()
    assert pair.server.recv(100, 0) == b"cut"
    with pytest.raises(_native.TLSTruncatedError):
        pair.server.recv(100, 0)


@VERSIONS
def test_a_flipped_bit_is_an_error_after_the_data_before_it(pki: Pki, version: int) -> None:
    pair = make_pair(pki, version)
    pair.handshake()
    pair.client.send(b"good", 0)
    good = pair.client.take_output()
    pair.client.send(b"evil", 0)
    evil = bytearray(pair.client.take_output())
    evil[-1] ^= 1
    pair.server.feed(good + bytes(evil))
    assert pair.server.recv(4, 0) == b"good"
    for _ in range(2):
        with pytest.raises(TLSError) as caught:
            pair.server.recv(100, 0)
        assert caught.value.name == "SEC_E_MESSAGE_ALTERED"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
        (bytes(64), ""),
    ],
)
def test_foreign_bytes_on_a_server_are_named(pki: Pki, data: bytes, word: str) -> None:
    server = Session("server", credentials("server", pki.server, 0), ask_verdict=False)
    server.feed(data)
    with pytest.raises(TLSError) as caught:
        server.handshake()
    assert word in str(caught.value)


def test_alpn_and_its_mismatch(pki: Pki) -> None:
    creds = (credentials("client", None, 0), credentials("server", pki.server, 0))

    def pair(client: list[bytes], server: list[bytes]) -> Pair:
        return Pair(
            Session("client", creds[0], target="localhost", alpn=client),
            Session("server", creds[1], ask_verdict=False, alpn=server),
        )

    good = pair([b"h2", b"http/1.1"], [b"http/1.1"])
    good.handshake()
    assert good.client.facts()["alpn"] == good.server.facts()["alpn"] == b"http/1.1"
    bad = pair([b"h2"], [b"imap"])
    with pytest.raises(TLSError) as caught:
        bad.handshake()
    assert "APPLICATION_PROTOCOL" in caught.value.name


def test_channel_bindings_agree(pki: Pki) -> None:
    for version in (_native.TLS1_2, _native.TLS1_3):
        pair = make_pair(pki, version)
        pair.handshake()
        assert pair.client.binding("endpoint") == pair.server.binding("endpoint")
        key = pair.client.export("EXPORTER-Channel-Binding", 32, b"")
        assert len(key) == 32
        assert key == pair.server.export("EXPORTER-Channel-Binding", 32, b"")
        if version == _native.TLS1_2:
            assert pair.client.binding("unique") == pair.server.binding("unique")
        else:
            with pytest.raises(TLSError):
                pair.client.binding("unique")


@VERSIONS
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cuts=st.lists(st.integers(1, 3000), min_size=1, max_size=40),
    payload=st.binary(min_size=1, max_size=40_000),
)
def test_any_chunking(pki: Pki, version: int, cuts: list[int], payload: bytes) -> None:
    def chunks(data: bytes) -> Iterator[bytes]:
        at = i = 0
        while at < len(data):
            yield data[at : at + cuts[i % len(cuts)]]
            at += cuts[i % len(cuts)]
            i += 1

    pair = make_pair(pki, version, chunks=chunks)
    pair.handshake()
    assert pair.carry(pair.client, pair.server, payload) == payload
    assert pair.carry(pair.server, pair.client, payload) == payload


@VERSIONS
@pytest.mark.parametrize("end", ["accept", "refuse", "drop"])
def test_a_server_may_be_judged_or_dropped_on_another_thread(
    pki: Pki, version: int, end: str
) -> None:
    """The pause of a server is bound to no thread, not even to one that lives."""
    pair = make_pair(pki, version, mutual=True)

    def until_the_verdict() -> None:
        status = -1
        while status != _native.WANT_VERDICT:
            pair.drive(pair.client)
            pair.move(pair.client, pair.server)
            status = pair.server.handshake()
            pair.move(pair.server, pair.client)

    on_thread(until_the_verdict)
    if end == "accept":
        on_thread(lambda: pair.server.verdict(0))
        pair.handshake()
        assert pair.carry(pair.client, pair.server, b"ping") == b"ping"
    elif end == "refuse":
        with pytest.raises(_native.TLSVerificationError):
            on_thread(lambda: pair.server.verdict(_native.CODES["SEC_E_CERT_EXPIRED"]))
        pair.move(pair.server, pair.client)
        with pytest.raises(_native.TLSAlertError) as told:
            if pair.drive(pair.client):
                pair.client.recv(100, 0)
        assert told.value.alert_received == "certificate_expired"
    else:
        on_thread(lambda: delattr(pair, "server"))
        assert pair.client.state() != "FAILED"


@pytest.mark.parametrize("reason", ["SEC_E_CERT_EXPIRED", "SEC_E_CERT_UNKNOWN", "CRYPT_E_REVOKED"])
@VERSIONS
def test_a_refusal_of_a_resumed_session_is_told_by_name(
    pki: Pki, version: int, reason: str
) -> None:
    creds = (credentials("client", None, version), credentials("server", pki.server, version))
    first = make_pair(pki, version, creds=creds)
    first.handshake()
    assert first.carry(first.server, first.client, b"ticket comes") == b"ticket comes"
    pair = make_pair(pki, version, creds=creds)
    pair.client_verdict = _native.CODES[reason]
    with pytest.raises(_native.TLSVerificationError) as refused:
        pair.handshake()
    assert pair.client.facts()["resumed"] is True
    pair.move(pair.client, pair.server)
    with pytest.raises(_native.TLSAlertError) as told:
        pair.drive(pair.server)
    assert told.value.alert_received == refused.value.alert_sent
