"""Private keys that ask their user: ``parent_window``.

No key here asks. What a question does to a negotiation is that a step of it
does not come back: a transport whose first ``recv`` waits for the test does
the same. Windows of a real Windows: test_real_windows.py.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from certs import Pki
from channels import Work, run, tcp_pair, tls_pair
from platforms import WINE
from twapi_support import LIMIT, client_credentials, server_credentials

import twapi_tls as tls

VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])


class Question:
    """A socket whose first ``recv`` comes back once ``answered`` is set."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.asked = threading.Event()
        self.answered = threading.Event()
        self.closed = threading.Event()

    def recv(self, n: int) -> bytes:
        self.asked.set()
        assert self.answered.wait(LIMIT)
        return self._sock.recv(n)

    def send(self, data: bytes) -> int:
        return self._sock.send(data)

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)

    def gettimeout(self) -> float | None:
        return self._sock.gettimeout()

    def close(self) -> None:
        self._sock.close()
        self.closed.set()


@pytest.fixture
def asked(pki: Pki) -> Iterator[tuple[Question, Work]]:
    """A question for the client, and a server at the other end."""
    one, other = tcp_pair()
    question = Question(one)
    other.settimeout(LIMIT)
    server = Work(
        lambda: tls.starttls(other, server=True, credentials=server_credentials(pki.server))
    )
    yield question, server
    question.answered.set()
    one.close()
    server.wait()


def asking(pki: Pki, **options: Any) -> Any:
    return client_credentials(pki, parent_window=0, **options)


@VERSIONS
def test_a_conversation(pki: Pki, version: str) -> None:
    credentials = asking(pki, protocols=f"tls{version}")
    with tls_pair(pki, client={"credentials": credentials}) as (client, server):
        assert client.facts().protocol == f"TLS {version}"
        client.sendall(b"question")
        assert server.recv(100) == b"question"
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"


def test_the_peer_refused(pki: Pki) -> None:
    """What the step raises is raised in the caller's thread."""
    with pytest.raises(tls.TLSVerificationError) as caught:
        options = {"credentials": asking(pki), "peersubject": "other.example"}
        with tls_pair(pki, client=options):
            pass
    assert caught.value.name == "SEC_E_WRONG_PRINCIPAL"


@pytest.mark.real_windows(elsewhere=True)
@VERSIONS
def test_nobody_is_asked_for_a_stranger(pki: Pki, version: str) -> None:
    """The certificate goes along once the server is verified, and not before."""
    order: list[str] = []
    credentials = asking(pki, identity=pki.client, protocols=f"tls{version}")
    chooser = credentials.config.clientcertificate

    def choose(context: Any, issuers: Any) -> Any:
        order.append("asked")
        return chooser(context, issuers)

    def verify(verdict: bool) -> Any:
        def verifier(channel: Any, context: Any) -> bool:
            order.append("verified")
            return verdict

        return verifier

    seen = []

    def see(channel: Any, context: Any) -> bool:
        seen.append(tls.sspi_remote_cert(context).der())
        return True

    credentials.config = credentials.config._replace(clientcertificate=choose)
    asks = {"requestclientcert": True, "verifier": see}
    good = {"credentials": credentials, "verifier": verify(True)}
    with tls_pair(pki, client=good, server=asks) as (client, server):
        client.sendall(b"x")
        assert server.recv(1) == b"x"
    assert order == ["verified", "asked"] and seen == [pki.client.leaf_der]
    order.clear()
    with pytest.raises(tls.TLSError):
        with tls_pair(pki, client={**good, "verifier": verify(False)}, server=asks):
            pass
    assert order == ["verified"] and len(seen) == 1


def test_the_timeout_holds(pki: Pki, asked: tuple[Question, Work]) -> None:
    question, _ = asked
    question._sock.settimeout(0.3)
    began = time.monotonic()
    with pytest.raises(tls.TLSTimeoutError, match="private key"):
        tls.starttls(question, credentials=asking(pki), peersubject="localhost")
    assert time.monotonic() - began < LIMIT / 2
    assert question.asked.is_set() and not question.answered.is_set()
    question.answered.set()  # too late: the channel is gone
    assert question.closed.wait(LIMIT)


def test_it_can_be_waited_for_again(pki: Pki, asked: tuple[Question, Work]) -> None:
    """A timeout leaves the question, and the negotiation, as they are."""
    question, server = asked
    question._sock.setblocking(False)

    async def main() -> tls.TlsChannel:
        channel = tls.starttls(question, credentials=asking(pki), peersubject="localhost")
        await asyncio.to_thread(question.asked.wait, LIMIT)
        return channel

    channel = run(main())
    with channel:
        channel.settimeout(0.2)
        for _ in range(2):
            with pytest.raises(tls.TLSTimeoutError):
                tls.tls_handshake(channel)
            assert tls.tls_state(channel) == "NEGOTIATING"
        question.answered.set()
        channel.settimeout(LIMIT)
        assert tls.tls_handshake(channel)
        with server.result() as other:
            channel.sendall(b"x")
            assert other.recv(1) == b"x"


def test_the_loop_goes_on(pki: Pki, asked: tuple[Question, Work]) -> None:
    question, server = asked
    question._sock.setblocking(False)

    async def main() -> None:
        opened = asyncio.Event()
        with tls.starttls(question, credentials=asking(pki), peersubject="localhost") as channel:
            channel.event("writable", opened.set)
            turns = 0
            while not question.asked.is_set():
                await asyncio.sleep(0)
            for _ in range(10):
                await asyncio.sleep(0.01)
                turns += 1
            assert turns == 10 and tls.tls_state(channel) == "NEGOTIATING"
            assert not opened.is_set()
            question.answered.set()
            await asyncio.wait_for(opened.wait(), LIMIT)
            channel.event("writable", None)
            assert tls.tls_state(channel) == "OPEN"
            with await asyncio.to_thread(server.result) as other:
                channel.sendall(b"x")
                assert await asyncio.to_thread(other.recv, 1) == b"x"

    run(main())


def test_closing_does_not_wait_for_the_answer(pki: Pki, asked: tuple[Question, Work]) -> None:
    question, _ = asked
    question._sock.setblocking(False)

    async def main() -> None:
        channel = tls.starttls(question, credentials=asking(pki), peersubject="localhost")
        await asyncio.to_thread(question.asked.wait, LIMIT)
        began = time.monotonic()
        channel.close()
        assert time.monotonic() - began < 1
        assert tls.tls_state(channel) == "CLOSED"

    run(main())
    question.answered.set()
    assert question.closed.wait(LIMIT)


def test_what_is_no_window(pki: Pki) -> None:
    for wrong in ("0x1234", 1.0, True, b""):
        with pytest.raises(TypeError, match="parent_window"):
            client_credentials(pki, parent_window=wrong)
    for wrong in (-1, 1 << 63, 1 << 70):
        with pytest.raises(ValueError, match="parent_window"):
            client_credentials(pki, parent_window=wrong)
    with pytest.raises(ValueError, match="for clients"):
        server_credentials(pki.server, parent_window=0)


def test_a_window_where_no_engine_shows_one(pki: Pki) -> None:
    if tls.engine.name == "openssl":
        with pytest.raises(tls.TLSError, match="ask nobody") as caught:
            client_credentials(pki, parent_window=0x1234)
        assert caught.value.name == "SEC_E_UNSUPPORTED_FUNCTION"
    elif WINE:
        with pytest.raises(tls.TLSError, match="no parent window") as caught:
            with tls_pair(pki, client={"credentials": client_credentials(pki, parent_window=1)}):
                pass
        assert caught.value.name == "SEC_E_UNSUPPORTED_FUNCTION"
    else:
        pytest.skip("Schannel of a real Windows shows one: test_real_windows.py")
