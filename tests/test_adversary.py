"""Whole connections with somebody on the line who cuts, doubles and flips.

Two sessions of ours in memory, and between them every byte position of a
handshake and of a transfer in both directions. Whatever is done to it, each
end comes to an end: with a clear error, or with exactly what the other one
sent. Nothing is delivered that was not sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from certs import Pki
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from platforms import rounds
from test_session import credentials

from twapi_tls import _native
from twapi_tls._native import Credentials, Session, TLSError

VERSIONS = pytest.mark.parametrize("version", [_native.TLS1_2, _native.TLS1_3], ids=["1.2", "1.3"])
TO_SERVER, TO_CLIENT = "to the server", "to the client"
REQUEST = b"a request that goes to the server"
ANSWER = b"and an answer, somewhat longer, that comes back from it" * 3

Mutation = Callable[[bytes, int], bytes]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


def doubled(data: bytes, at: int) -> bytes:
    return data[: at + 1] + data[at:]


def dropped(data: bytes, at: int) -> bytes:
    return data[:at] + data[at + 1 :]


@dataclass
class Wire:
    """One direction; `at` is the position that `mutation` works on."""

    at: int = -1
    mutation: Mutation | None = None  # None: cut there
    passed: int = 0
    ended: bool = False

    def carry(self, data: bytes, target: Session) -> None:
        if self.ended:
            return
        here = self.at - self.passed
        self.passed += len(data)
        if self.at >= 0 and 0 <= here < len(data):
            if self.mutation is None:
                target.feed(data[:here])
                self.end(target)
                return
            data = self.mutation(data, here)
        target.feed(data)

    def end(self, target: Session) -> None:
        if not self.ended:
            self.ended = True
            target.feed_eof()


@dataclass
class Side:
    session: Session
    got: bytes = b""
    ended: bool = False  # a clean end was read
    errors: list[TLSError] = field(default_factory=list)

    def run(self, action: Callable[[], object]) -> object:
        if self.errors:
            return None
        try:
            return action()
        except TLSError as error:
            self.errors.append(error)
            return None

    def shake(self) -> bool:
        def action() -> bool:
            while (status := self.session.handshake()) == _native.WANT_VERDICT:
                self.session.verdict(0)
            return status == _native.DONE

        return bool(self.run(action))

    def read(self) -> None:
        def action() -> None:
            while (piece := self.session.recv(1 << 16, 0)) is not None:
                if not piece:
                    self.ended = True
                    return
                self.got += piece

        self.run(action)

    def open(self) -> bool:
        return self.session.state() == "OPEN" and not self.errors


def connection(
    creds: tuple[Credentials, Credentials], to_server: Wire, to_client: Wire
) -> tuple[Side, Side]:
    """A whole life: handshake, request, answer, both ends closed."""
    client = Side(Session("client", creds[0], target="localhost"))
    server = Side(Session("server", creds[1], ask_verdict=False))

    def move() -> bool:
        out = client.session.take_output()
        to_server.carry(out, server.session)
        back = server.session.take_output()
        to_client.carry(back, client.session)
        return bool(out or back)

    for _ in range(12):
        client.shake()
        move()
        server.shake()
        if not move() or (client.open() and server.open()):
            break
    if client.open():
        client.run(lambda: client.session.send(REQUEST, 0))
        move()
    if server.open():
        server.read()
        if server.got == REQUEST:
            server.run(lambda: server.session.send(ANSWER, 0))
            move()
    if client.open():
        client.read()
    for side in (client, server):
        if side.open():
            side.run(side.session.shutdown)
    for _ in range(4):
        move()
        for side in (client, server):
            if side.open():
                side.read()
            else:
                side.shake()
    # TCP ends; whoever still waits must come to an end now
    to_server.end(server.session)
    to_client.end(client.session)
    for side in (client, server):
        if side.session.state() == "OPEN":
            side.read()
        else:
            side.shake()
    return client, server


def judge(client: Side, server: Side) -> bool:
    """The promise. True if the connection came through unharmed."""
    assert REQUEST.startswith(server.got), server.got
    assert ANSWER.startswith(client.got), client.got
    for side in (client, server):
        assert side.errors or side.ended, "one end knows of no end"
        for error in side.errors:
            assert str(error) and error.errorcode[0].startswith("TWAPI")
        assert not (side.ended and side.errors)
    if not client.errors and not server.errors:
        assert (server.got, client.got) == (REQUEST, ANSWER)
        return True
    return False


@pytest.fixture(scope="module")
def creds(pki: Pki) -> Callable[[int], tuple[Credentials, Credentials]]:
    made: dict[int, tuple[Credentials, Credentials]] = {}

    def get(version: int) -> tuple[Credentials, Credentials]:
        if version not in made:
            made[version] = (
                credentials("client", None, version, resume=False),
                credentials("server", pki.server, version, resume=version == _native.TLS1_3),
            )
        return made[version]

    return get


@VERSIONS
def test_left_alone_it_comes_through(creds: Callable[..., object], version: int) -> None:
    to_server, to_client = Wire(), Wire()
    assert judge(*connection(creds(version), to_server, to_client))
    assert to_server.passed > 300 and to_client.passed > 1000


@VERSIONS
@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
@pytest.mark.parametrize("mutation", [None, flipped, doubled, dropped], ids=lambda m: m.__name__ if m else "cut")  # fmt: skip  # noqa: E501
def test_every_byte_position(
    creds: Callable[..., tuple[Credentials, Credentials]],
    version: int,
    direction: str,
    mutation: Mutation | None,
) -> None:
    clean = Wire(), Wire()
    connection(creds(version), *clean)
    length = clean[direction == TO_CLIENT].passed
    unharmed = []
    for at in range(0, length, length // rounds(length)):
        wires = Wire(), Wire()
        chosen = wires[direction == TO_CLIENT]
        chosen.at, chosen.mutation = at, mutation
        if judge(*connection(creds(version), *wires)) and chosen.passed > at:
            unharmed.append(at)
    # Only the version in a record's header is nobody's (RFC 8446, 5.1); a
    # signature's length varies, so the last bytes may not be reached.
    assert len(unharmed) <= (0 if mutation is None else 12), unharmed


@VERSIONS
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_records_dropped_doubled_and_swapped(
    creds: Callable[..., tuple[Credentials, Credentials]], version: int, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(["drop", "double", "swap"]))
    which = data.draw(st.integers(0, 9))
    seen = 0

    class Shuffler(Wire):
        def carry(self, stream: bytes, target: Session) -> None:
            nonlocal seen
            records = []
            while len(stream) >= 5:
                n = 5 + int.from_bytes(stream[3:5])
                records.append(stream[:n])
                stream = stream[n:]
            first = seen
            seen += len(records)
            at = which - first
            if 0 <= at < len(records):
                if kind == "drop":
                    del records[at]
                elif kind == "double":
                    records.insert(at, records[at])
                elif at + 1 < len(records):
                    records[at], records[at + 1] = records[at + 1], records[at]
            super().carry(b"".join(records) + stream, target)

    wires = [Wire(), Wire()]
    wires[data.draw(st.integers(0, 1))] = Shuffler()
    judge(*connection(creds(version), wires[0], wires[1]))


@VERSIONS
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    garbage=st.binary(min_size=1, max_size=60),
    at=st.integers(0, 3000),
    direction=st.sampled_from([0, 1]),
)
def test_bytes_of_a_stranger(
    creds: Callable[..., tuple[Credentials, Credentials]],
    version: int,
    garbage: bytes,
    at: int,
    direction: int,
) -> None:
    wires = Wire(), Wire()
    wires[direction].at = at
    wires[direction].mutation = lambda data, here: data[:here] + garbage + data[here:]
    judge(*connection(creds(version), *wires))
