"""Session resumption: works, off, reported; never crosses identities.

A resumed session skips the certificates: who was verified then must be who
is wanted now, and the verifier is asked again.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
from memory import Connection, client, connect, negotiate, server
from mint import CLIENT_AUTH, DAY, Minted, authority, mint
from platforms import WINE

import twapi_tls as tls
from twapi_tls import Credentials, SspiContext, TLSError

VERSIONS = pytest.mark.parametrize("version", ["tls1.2", "tls1.3"])


class World:
    def __init__(self) -> None:
        self.root = authority("Root")
        # Wine's servers send no intermediates.
        self.middle = self.root if WINE else authority("Intermediate", self.root)
        self.server = mint("server", self.middle, names=["localhost", "other.example"])
        self.alice = mint("Alice", self.middle, eku=[CLIENT_AUTH])
        self.bob = mint("Bob", self.middle, eku=[CLIENT_AUTH])


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def resumed(connection: Connection) -> bool:
    """Both ends say the same; traffic flows, tickets are taken; then it is closed."""
    ours, theirs = connection.client, connection.server
    said = ours.facts().resumed, theirs.facts().resumed
    assert said in ((True, True), (False, False))
    assert connection.send(theirs, b"down") == ("ok", b"down")
    assert connection.send(ours, b"up") == ("ok", b"up")
    status, token = tls.sspi_shutdown_context(ours)
    assert status == "done"
    assert tls.sspi_decrypt_stream(theirs, token) == ("expired", b"")
    with connection:
        return bool(said[0])


@VERSIONS
def test_works_and_is_reported(world: World, version: str) -> None:
    ours, theirs = client(world.root, protocols=version), server(world.server)
    assert [resumed(connect(ours, theirs)) for _ in range(4)] == [False, True, True, True]


@VERSIONS
@pytest.mark.parametrize("mutual", [False, True])
def test_the_same_certificate_is_told_again(world: World, version: str, mutual: bool) -> None:
    ours = client(world.root, *([world.alice] if mutual else []), protocols=version)
    theirs = server(world.server)
    for expected in (False, True, True):
        connection = connect(ours, theirs, mutualauth=mutual)
        assert sent(connection.client) == [world.server.der, world.middle.der]
        assert tls.sspi_local_cert(connection.server).der() == world.server.der
        if mutual:
            assert sent(connection.server) == [world.alice.der, world.middle.der]
            assert tls.sspi_local_cert(connection.client).der() == world.alice.der
        else:
            with pytest.raises(TLSError) as caught:
                tls.sspi_remote_cert(connection.server)
            assert caught.value.name == "SEC_E_NO_CREDENTIALS"
        assert resumed(connection) is expected


def sent(end: SspiContext) -> list[bytes]:
    """What the peer sent with its certificate: intermediates to verify it by."""
    return [cert.der() for cert in tls.sspi_remote_cert(end).chain()]


@VERSIONS
@pytest.mark.parametrize("side", ["client", "server"])
def test_off_on_either_side(world: World, version: str, side: str) -> None:
    ours = client(world.root, protocols=version, disablereconnects=side == "client")
    theirs = server(world.server, disablereconnects=side == "server")
    assert [resumed(connect(ours, theirs)) for _ in range(3)] == [False] * 3


@VERSIONS
def test_not_by_other_credentials(world: World, version: str) -> None:
    """Same configuration, another handle: another cache."""
    theirs = server(world.server)
    options: dict[str, Any] = {"protocols": version}
    assert not resumed(connect(client(world.root, **options), theirs))
    assert not resumed(connect(client(world.root, **options), theirs))
    ours = client(world.root, **options)
    assert not resumed(connect(ours, theirs))
    assert not resumed(connect(ours, server(world.server)))


@VERSIONS
def test_not_for_another_target(world: World, version: str) -> None:
    ours, theirs = client(world.root, protocols=version), server(world.server)
    assert not resumed(connect(ours, theirs, "localhost"))
    assert not resumed(connect(ours, theirs, "other.example"))
    assert resumed(connect(ours, theirs, "localhost"))
    assert resumed(connect(ours, theirs, "other.example"))
    # One name in another case: resumed or not as the engine likes, it connects.
    resumed(connect(ours, theirs, "LOCALHOST"))


@VERSIONS
def test_not_without_a_target(world: World, version: str) -> None:
    ours, theirs = client(None, protocols=version), server(world.server)
    for _ in range(2):
        assert not resumed(connect(ours, theirs, None, manualvalidation=True))


class Chooser:
    """A client certificate chooser that is told whom to show."""

    def __init__(self) -> None:
        self.chosen: Credentials | None = None
        self.asked = 0

    def __call__(self, context: SspiContext, issuers: list[bytes]) -> Credentials | None:
        self.asked += 1
        return self.chosen


@VERSIONS
@pytest.mark.parametrize("order", ["alice bob", "alice nobody", "nobody alice", "alice alice"])
def test_not_with_another_client_certificate(world: World, version: str, order: str) -> None:
    """A server that remembers Alice must not take Bob for her."""
    chooser = Chooser()
    ours = client(world.root, protocols=version, clientcertificate=chooser)
    theirs = server(world.server)
    people = {"alice": world.alice, "bob": world.bob}
    shown = {word: client(None, cert) for word, cert in people.items()}
    for turn, word in enumerate(order.split() * 2, 1):
        chooser.chosen = shown.get(word)
        connection = connect(ours, theirs, mutualauth=True)
        if word == "nobody":
            with pytest.raises(TLSError) as caught:
                tls.sspi_remote_cert(connection.server)
            assert caught.value.name == "SEC_E_NO_CREDENTIALS"
        else:
            assert tls.sspi_remote_cert(connection.server).der() == people[word].der
        assert chooser.asked == turn
        resumed(connection)


@VERSIONS
def test_not_between_asked_and_not_asked(world: World, version: str) -> None:
    """A session without a client's certificate is none where one is wanted."""
    ours = client(world.root, world.alice, protocols=version)
    theirs = server(world.server)
    assert not resumed(connect(ours, theirs))
    connection = connect(ours, theirs, mutualauth=True)
    assert tls.sspi_remote_cert(connection.server).der() == world.alice.der
    assert not resumed(connection)
    with connect(ours, theirs) as connection, pytest.raises(TLSError):
        tls.sspi_remote_cert(connection.server)


@VERSIONS
def test_what_was_let_pass_once_is_verified_when_it_must_be(world: World, version: str) -> None:
    """A session that manual validation accepted is no proof for automatic."""
    stranger = mint("stranger", authority("Unknown"), names=["localhost"])
    ours, theirs = client(world.root, protocols=version), server(stranger)
    for _ in range(2):
        resumed(connect(ours, theirs, manualvalidation=True))
    with pytest.raises(TLSError) as caught:
        connect(ours, theirs)
    assert caught.value.name == "SEC_E_UNTRUSTED_ROOT"


@VERSIONS
def test_an_expired_certificate_is_refused_when_resumed(version: str) -> None:
    """The chain is judged anew: what it trusts may have changed."""
    root = authority("Root")
    theirs = server(mint("x", root, names=["localhost"]))
    ours = client(root, protocols=version)
    assert not resumed(connect(ours, theirs))
    assert resumed(connect(ours, theirs))
    # the same session, another policy: as a credentials' user might replace it
    strict = tls.sspi_client_context(ours, "localhost")
    assert strict.policy is not None
    strict.policy = strict.policy._replace(revocation="all")
    with pytest.raises(TLSError) as caught:
        negotiate(strict, tls.sspi_server_context(theirs))
    assert caught.value.name == "CERT_E_REVOCATION_FAILURE"


@VERSIONS
@pytest.mark.parametrize("side", ["client", "server"])
def test_the_verifier_runs_on_resumed_ones(world: World, version: str, side: str) -> None:
    """Once per connection; another verifier may refuse what the first let pass."""
    ours = client(world.root, world.alice, protocols=version)
    theirs = server(world.server)
    calls: list[tuple[str, bytes, bool | None]] = []
    answers = {"client": True, "server": True}

    def verifier(end: str) -> Any:
        def verify(channel: Any, context: SspiContext) -> bool:
            assert tls.tls_state(channel) == "NEGOTIATING"
            calls.append((end, tls.sspi_remote_cert(context).der(), context.facts().resumed))
            return answers[end]

        return verify

    for turn in range(3):
        calls.clear()
        if turn == 2:
            answers[side] = False
        outcome = pair_of_channels(ours, theirs, verifier("client"), verifier("server"))
        refused = turn == 2
        assert isinstance(outcome[side], TLSError) is refused, outcome
        if refused:
            assert outcome[side].errorcode == ("TWAPI", "TLS", "VERIFYFAIL")
        ends = {end for end, _, _ in calls}
        assert side in ends and len(calls) == len(ends)
        shown = {"client": world.server.der, "server": world.alice.der}
        for end, der, again in calls:
            assert der == shown[end]
            assert again is (turn > 0)


def pair_of_channels(
    ours: Credentials, theirs: Credentials, client_verifier: Any, server_verifier: Any
) -> dict[str, Any]:
    """Both ends over a socket pair: what each sent the other, or its error."""
    a, b = socket.socketpair()
    a.settimeout(10)
    b.settimeout(10)
    outcome: dict[str, Any] = {}

    def serve() -> None:
        try:
            with tls.starttls(
                b, server=True, credentials=theirs, verifier=server_verifier, requestclientcert=True
            ) as channel:
                channel.sendall(b"down")
                outcome["server"] = channel.recv(10)
        except OSError as error:
            outcome["server"] = error

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with tls.starttls(
            a, peersubject="localhost", credentials=ours, verifier=client_verifier
        ) as channel:
            outcome["client"] = channel.recv(10)
            channel.sendall(b"up")
    except OSError as error:
        outcome["client"] = error
    thread.join(20)
    assert not thread.is_alive()
    return outcome


@VERSIONS
@pytest.mark.parametrize("side", ["client", "server"])
def test_the_lifespan_ends_it(world: World, version: str, side: str) -> None:
    """A second's life: resumed at once, no more after it. The wait is the subject."""
    short: dict[str, Any] = {"sessionlifespan": 1000}
    ours = client(world.root, protocols=version, **(short if side == "client" else {}))
    theirs = server(world.server, **(short if side == "server" else {}))
    assert not resumed(connect(ours, theirs))
    assert resumed(connect(ours, theirs))
    threading.Event().wait(2.1)
    assert not resumed(connect(ours, theirs))


@VERSIONS
def test_a_failed_connection_leaves_no_session(world: World, version: str) -> None:
    """Neither a refusal nor a broken record is resumed."""
    expired = mint("x", world.root, names=["localhost"], ends=-DAY)
    ours, theirs = client(world.root, protocols=version), server(expired)
    for _ in range(2):
        with pytest.raises(TLSError) as caught:
            connect(ours, theirs)
        assert caught.value.name == "SEC_E_CERT_EXPIRED"
        with connect(ours, theirs, manualvalidation=True) as connection:
            assert connection.client.facts().resumed is False


def test_versions_do_not_mix(world: World) -> None:
    """A session of TLS 1.3 does not bring TLS 1.2 back, nor the other way."""
    ours = client(world.root)
    old, new = (server(world.server, protocols=version) for version in ("tls1.2", "tls1.3"))
    for theirs, protocol in ((old, "TLS 1.2"), (new, "TLS 1.3"), (old, "TLS 1.2")):
        connection = connect(ours, theirs)
        assert connection.client.facts().protocol == protocol
        resumed(connection)


def test_many_sessions_are_bounded(world: World) -> None:
    """A cache that remembers every target would grow for ever."""
    leaf: Minted = mint("x", world.root, names=["*.many.example"])
    ours, theirs = client(world.root, protocols="tls1.2"), server(leaf)
    for number in range(600):
        with connect(ours, theirs, f"h{number}.many.example") as connection:
            assert connection.client.facts().resumed is False
    assert resumed(connect(ours, theirs, "h599.many.example"))
    assert not resumed(connect(ours, theirs, "h0.many.example"))
