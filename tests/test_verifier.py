"""Verifiers: who decides, when, what counts as yes, and what the peer hears."""

from __future__ import annotations

import asyncio
import gc
import select
import socket
import ssl
import threading
import warnings
from collections.abc import Callable
from typing import Any

import peers
import pytest
from certs import Pki
from channels import Work, run, tcp_pair, tls_pair
from twapi_support import (
    CERTIFICATE_ALERTS,
    HOST,
    LIMIT,
    REFUSED,
    VERIFYFAIL,
    Background,
    answer_one_line,
    client_credentials,
    connect,
    first,
    handshake_refused,
    server_credentials,
    serving,
    tls_server,
    verify_true,
)

import twapi_tls as tls

pytestmark = pytest.mark.timeout(30)

VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])


class Judge:
    """A verifier that counts its calls and notes what it saw."""

    def __init__(self, answer: Any = True) -> None:
        self.answer = answer
        self.calls: list[Any] = []

    def __call__(self, channel: Any, context: Any) -> Any:
        self.calls.append((channel, tls.tls_state(channel), context))
        return self.answer() if callable(self.answer) else self.answer


class Awaitable:
    """What is no coroutine and can be awaited nevertheless."""

    def __await__(self) -> Any:
        yield
        return True


async def say_yes() -> bool:
    return True


# --- once, in NEGOTIATING


@VERSIONS
def test_called_once_in_negotiating_with_channel_and_context(pki: Pki, version: str) -> None:
    judges = {"client": Judge(), "server": Judge()}
    with tls_pair(
        pki,
        version=version,
        client={"verifier": judges["client"]},
        server={"verifier": judges["server"]},
    ) as (here, there):
        here.sendall(b"x")
        assert there.recv(1) == b"x"
        for judge, channel in ((judges["client"], here), (judges["server"], there)):
            assert judge.calls == [(channel, "NEGOTIATING", channel.context)]


@VERSIONS
@pytest.mark.parametrize("answer", [True, False])
def test_once_and_again_on_resumed_sessions(pki: Pki, version: str, answer: bool) -> None:
    """A resumed session brings no certificate: it is judged all the same."""
    creds = client_credentials(pki, protocols=[f"tls{version}"])
    with serving(tls_server(pki.server, answer_one_line)) as served:

        def talk(judge: Judge) -> bool | None:
            with connect(served.port, verifier=judge, credentials=creds) as channel:
                channel.puts(b"a line")
                assert channel.gets() == b"enil a"
                return bool(channel.facts().resumed)

        first_judge, second = Judge(), Judge(answer)
        assert talk(first_judge) is False
        assert len(first_judge.calls) == 1
        assert served.result() == "a line"
        if answer:
            assert talk(second) is True
            assert served.result() == "a line"
        else:
            with pytest.raises(tls.TLSVerificationError, match=REFUSED):
                talk(second)
            error = served.result()
            assert isinstance(error, Background)
            assert isinstance(error.error, tls.TLSAlertError)
            assert error.error.alert_received == "certificate_unknown"
        assert len(second.calls) == 1


@VERSIONS
def test_a_servers_verifier_on_resumed_sessions(pki: Pki, version: str) -> None:
    judge = Judge()
    creds = client_credentials(pki, pki.client, protocols=[f"tls{version}"])
    server = tls_server(pki.server, answer_one_line, verifier=judge, requestclientcert=True)
    with serving(server) as served:
        resumed = []
        for _ in range(2):
            with connect(served.port, credentials=creds) as channel:
                channel.puts(b"a line")
                assert channel.gets() == b"enil a"
                resumed.append(channel.facts().resumed)
            assert served.result() == "a line"
        assert resumed == [False, True]
    assert [state for _, state, _ in judge.calls] == ["NEGOTIATING"] * 2
    assert judge.calls[0][0] is not judge.calls[1][0]


@pytest.mark.parametrize("none", [None, "", ()])
def test_an_empty_verifier_is_none(pki: Pki, none: Any) -> None:
    with tls_pair(pki, client={"verifier": none}, server={"verifier": none}) as (here, there):
        assert here.cget("verifier") is None
        assert there.cget("verifier") is None
    # The automatic verification is on.
    with peers.ssl_server(pki.untrusted) as server:
        with pytest.raises(tls.TLSVerificationError):
            connect(server.port, pki, verifier=none)


@pytest.mark.parametrize("verifier", [7, "verify", ["verify"]])
def test_no_verifier(pki: Pki, verifier: Any) -> None:
    with pytest.raises(TypeError, match="verifier must be callable"):
        connect(1, pki, verifier=verifier)


def test_a_clients_verifier_replaces_the_automatic_verification(pki: Pki) -> None:
    for identity in (pki.expired, pki.untrusted, pki.wrong_name, pki.self_signed):
        with tls_pair(pki, identity=identity, client={"verifier": verify_true}) as (here, _):
            assert here.state == "OPEN"


def test_a_server_verifies_no_certificate_of_its_own_accord(pki: Pki) -> None:
    creds = client_credentials(pki, pki.untrusted)
    with tls_pair(pki, client={"credentials": creds}, server={"requestclientcert": True}) as (
        here,
        there,
    ):
        here.sendall(b"x")
        assert there.recv(1) == b"x"
        assert there.peer_certificate() is not None


def test_the_context_tells_the_certificate(pki: Pki) -> None:
    names = []

    def verify(channel: Any, context: Any) -> bool:
        try:
            names.append(tls.cert_subject_name(tls.sspi_remote_cert(context)))
        except tls.TLSError as error:
            names.append(error.name)
        return True

    creds = client_credentials(pki, pki.client)
    for client in ({"credentials": creds}, {}):
        server = {"verifier": verify, "requestclientcert": True}
        with tls_pair(pki, client=client, server=server):
            pass
    assert "A client" in names[0]
    assert names[1] == "SEC_E_NO_CREDENTIALS"


# --- what counts as yes


NOT_TRUE = [1, "ok", "untrustedroot", "", None, 0, 1.0, [True], object()]


@pytest.mark.parametrize("answer", NOT_TRUE, ids=repr)
def test_nothing_but_true_opens(pki: Pki, answer: Any) -> None:
    """A status string of cert_tls_verify is not true, whatever it says."""
    with peers.ssl_server(pki.server) as server:
        with pytest.raises(TypeError) as caught:
            connect(server.port, pki, verifier=Judge(answer))
        assert repr(answer) in str(caught.value)
        assert "True or False" in str(caught.value)
        assert handshake_refused(server) in SSL_ALERTS


SSL_ALERTS = {
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "TLSV1_ALERT_ACCESS_DENIED",
    "TLSV1_ALERT_UNKNOWN_CA",
}


@pytest.mark.parametrize("make", [say_yes, Awaitable])
def test_an_awaitable_is_refused_on_a_blocking_channel(pki: Pki, make: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "was never awaited"
        with peers.ssl_server(pki.server) as server:
            with pytest.raises(TypeError, match="awaitable.*blocking channel"):
                connect(server.port, pki, verifier=Judge(make))
            assert handshake_refused(server) in SSL_ALERTS
        gc.collect()


def test_numpy_like_truth_is_not_true(pki: Pki) -> None:
    class Yes:
        def __bool__(self) -> bool:
            return True

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    with peers.ssl_server(pki.server) as server:
        with pytest.raises(TypeError):
            connect(server.port, pki, verifier=Judge(Yes()))


# --- refusing: what is raised, what the peer sees, what has moved


@VERSIONS
def test_a_clients_refusal_comes_before_its_finished(pki: Pki, version: str) -> None:
    with peers.ssl_server(pki.server, version=version) as server:
        with pytest.raises(tls.TLSVerificationError, match=REFUSED) as caught:
            connect(server.port, pki, verifier=Judge(False))
        assert caught.value.errorcode == VERIFYFAIL
        assert caught.value.alert_sent in CERTIFICATE_ALERTS
        assert caught.value.alert == caught.value.alert_sent
        # accepted is empty: the server never saw our Finished.
        assert handshake_refused(server) == "SSLV3_ALERT_CERTIFICATE_UNKNOWN"


@VERSIONS
def test_a_servers_refusal(pki: Pki, version: str) -> None:
    """TLS 1.2: the client's handshake fails. TLS 1.3: it was over, but no
    ticket and no data came before the alert."""
    server = tls_server(pki.server, answer_one_line, verifier=Judge(False), requestclientcert=True)
    context = peers.ssl_client_context(pki.root, identity=pki.client, version=version)
    with serving(server) as served:
        with socket.create_connection((HOST, served.port), LIMIT) as plain:
            connection = context.wrap_socket(
                plain, server_hostname="localhost", do_handshake_on_connect=False
            )
            with connection, pytest.raises(ssl.SSLError) as caught:
                connection.do_handshake()
                assert version == "1.3"
                connection.recv(1)
        assert caught.value.reason == "SSLV3_ALERT_CERTIFICATE_UNKNOWN"
        if version == "1.3":
            assert connection.session is None or not connection.session.has_ticket
        told = served.result()
        assert isinstance(told, Background)
        assert isinstance(told.error, tls.TLSVerificationError)
        assert told.error.errorcode == VERIFYFAIL
        assert served.nothing_more()


class Odd(Exception):
    """An exception that nobody else raises."""


@pytest.mark.parametrize("role", ["client", "server"])
def test_what_a_verifier_raises_is_raised_on(pki: Pki, role: str) -> None:
    error = Odd("for a reason")

    def verify(channel: Any, context: Any) -> bool:
        raise error

    one, other = tcp_pair()
    mine = {
        "client": {"peersubject": "localhost", "credentials": client_credentials(pki)},
        "server": {"server": True, "credentials": server_credentials(pki.server)},
    }
    peer = "server" if role == "client" else "client"
    theirs = Work(lambda: tls.starttls(other, **mine[peer]))
    with pytest.raises(Odd) as caught:
        tls.starttls(one, **mine[role], verifier=verify)
    assert caught.value is error
    if role == "client":
        told = theirs.error()
    else:
        with theirs.result() as channel, pytest.raises(tls.TLSAlertError) as heard:
            channel.recv(1)
        told = heard.value
    assert isinstance(told, tls.TLSAlertError)
    assert told.alert_received == "certificate_unknown"


def test_a_keyboard_interrupt_in_a_verifier_is_not_swallowed(pki: Pki) -> None:
    def verify(channel: Any, context: Any) -> bool:
        raise KeyboardInterrupt

    with peers.ssl_server(pki.server) as server:
        with pytest.raises(KeyboardInterrupt):
            connect(server.port, pki, verifier=verify)
        server.wait_for(lambda seen: seen.errors)
        assert server.accepted == []


@pytest.mark.parametrize(
    ("identity", "alerts"),
    [
        ("expired", {"SSLV3_ALERT_CERTIFICATE_EXPIRED"}),
        ("untrusted", {"TLSV1_ALERT_UNKNOWN_CA"}),
        ("wrong_name", {"SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_UNKNOWN"}),
        (
            "wrong_usage",
            {"SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "SSLV3_ALERT_BAD_CERTIFICATE"},
        ),
    ],
)
@VERSIONS
def test_the_automatic_verification_tells_the_peer_why(
    pki: Pki, identity: str, alerts: set[str], version: str
) -> None:
    with peers.ssl_server(getattr(pki, identity), version=version) as server:
        with pytest.raises(tls.TLSVerificationError) as caught:
            connect(server.port, pki)
        assert caught.value.alert_sent is not None
        assert handshake_refused(server) in alerts


# --- what a verifier may do


@VERSIONS
@pytest.mark.parametrize("close", [tls.tls_close, lambda c: c.close(), lambda c: c.abort()])
@pytest.mark.parametrize("answer", [True, False])
def test_a_verifier_may_close_the_channel(
    pki: Pki, version: str, close: Callable[[Any], None], answer: bool
) -> None:
    seen = []

    def verify(channel: Any, context: Any) -> bool:
        seen.append(channel)
        close(channel)
        return answer

    with peers.ssl_server(pki.server, version=version) as server:
        with pytest.raises(tls.TLSClosedError, match="closed during the TLS negotiation"):
            connect(server.port, pki, verifier=verify)
        server.wait_for(lambda s: s.errors)
        assert server.accepted == []
    (channel,) = seen
    assert tls.tls_state(channel) == "CLOSED"
    assert channel.fileno() == -1


def test_a_servers_verifier_may_close_the_channel(pki: Pki) -> None:
    def verify(channel: Any, context: Any) -> bool:
        channel.close()
        return True

    with serving(tls_server(pki.server, answer_one_line, verifier=verify)) as served:
        with pytest.raises(OSError):
            with connect(served.port, pki) as channel:
                channel.recv(1)
        told = served.result()
        assert isinstance(told, Background)
        assert isinstance(told.error, tls.TLSClosedError)
        assert served.nothing_more()


def test_a_verifier_may_call_the_api(pki: Pki) -> None:
    """Facts and options work; what needs an open channel says so, at once."""
    seen: dict[str, Any] = {}

    def verify(channel: Any, context: Any) -> bool:
        seen["options"] = channel.configure()
        channel.configure(encoding="utf-8", buffering="full")
        seen["peer"] = channel.getpeername()
        seen["cert"] = tls.sspi_remote_cert(context)
        seen["kept"] = channel.write("kept back until the verdict\n")
        for name, call in (
            ("handshake", lambda: tls.tls_handshake(channel)),
            ("recv", lambda: channel.recv(1)),
            ("send", lambda: channel.send(b"x")),
            ("half", lambda: tls.tls_close(channel, "write")),
        ):
            with pytest.raises(tls.TLSError) as caught:
                call()
            seen[name] = caught.value
        return True

    with tls_pair(pki, client={"verifier": verify}) as (here, there):
        assert seen["peer"] == here.getpeername()
        assert seen["options"]["verifier"] is verify
        for name in ("handshake", "recv", "send", "half"):
            assert "verifier" in str(seen[name])
            assert seen[name].errorcode[:3] == ("TWAPI", "TLS", "NEGOTIATE")
        here.flush()
        assert there.gets() == b"kept back until the verdict"


def test_a_verifier_may_connect_elsewhere(pki: Pki) -> None:
    """It holds no lock: another channel, even in another thread, works."""
    with serving(tls_server(pki.server, answer_one_line)) as served:

        def ask(port: int) -> Any:
            with connect(port, pki) as other:
                other.puts(b"inner")
                return other.gets()

        def verify(channel: Any, context: Any) -> bool:
            watcher = Work(lambda: tls.tls_state(channel))
            assert watcher.result() == "NEGOTIATING"
            return bool(Work(ask, served.port).result() == ask(served.port) == b"renni")

        with connect(served.port, pki, verifier=verify) as channel:
            channel.puts(b"outer")
            assert channel.gets() == b"retuo"
        assert sorted(served.result() for _ in range(3)) == ["inner", "inner", "outer"]


def test_another_thread_waits_for_the_verdict(pki: Pki) -> None:
    asked, go = threading.Event(), threading.Event()

    def verify(channel: Any, context: Any) -> bool:
        asked.set()
        return go.wait(LIMIT)

    with serving(tls_server(pki.server, answer_one_line)) as served:
        with connect(served.port, pki, verifier=verify, async_=True) as channel:
            driving = Work(lambda: tls.tls_handshake(channel))
            assert asked.wait(LIMIT)
            channel.setblocking(False)
            assert tls.tls_handshake(channel) is False
            assert channel.write(b"queued\n") == 7
            with pytest.raises(BlockingIOError):
                channel.recv(1)
            channel.settimeout(LIMIT)
            waiting = Work(channel.gets)
            go.set()
            assert driving.result() is True
            channel.flush()
            assert waiting.result() == b"deueuq"
        assert served.result() == "queued"


def test_closing_from_another_thread_while_the_verifier_thinks(pki: Pki) -> None:
    asked, go = threading.Event(), threading.Event()
    channels = []

    def verify(channel: Any, context: Any) -> bool:
        channels.append(channel)
        asked.set()
        return go.wait(LIMIT)

    with peers.ssl_server(pki.server) as server:
        connecting = Work(lambda: connect(server.port, pki, verifier=verify))
        assert asked.wait(LIMIT)
        channels[0].close()
        go.set()
        assert isinstance(connecting.error(), tls.TLSClosedError)
        server.wait_for(lambda s: s.errors)
        assert server.accepted == []


# --- on the event loop


@VERSIONS
@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("answer", [True, False, "ok", Odd("raised")], ids=repr)
def test_an_awaitable_is_awaited_on_a_driven_channel(
    pki: Pki, version: str, role: str, answer: Any
) -> None:
    """The loop runs on while the verifier thinks, and nothing moves before."""
    thinking = []

    async def verify(channel: Any, context: Any) -> Any:
        # The loop is free: a round trip to another thread gets through.
        assert await asyncio.to_thread(tls.tls_state, channel) == "NEGOTIATING"
        thinking.append((channel, context))
        if isinstance(answer, Exception):
            raise answer
        return answer

    reports: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, told: reports.append(told["exception"]))
        one, other = tcp_pair()
        for sock in (one, other):
            sock.setblocking(False)
        protocols = [f"tls{version}"]
        creds = client_credentials(pki, pki.client, protocols=protocols)
        options: dict[str, dict[str, Any]] = {
            "client": {"credentials": creds, "peersubject": "localhost"},
            "server": {
                "server": True,
                "credentials": server_credentials(pki.server),
                "requestclientcert": True,
            },
        }
        options[role]["verifier"] = verify
        there = tls.starttls(other, **options["server"])
        here = tls.starttls(one, **options["client"])
        try:
            mine, peer = (here, there) if role == "client" else (there, here)
            mine.write(b"queued before the verdict")
            state = await first(mine, "writable", lambda: tls.tls_state(mine))
            if answer is True:
                assert state == "OPEN"
                assert await first(peer, "readable", peer.read) == b"queued before the verdict"
            else:
                assert state == "CLOSED"
                error = mine.cget("error")
                wanted: Any = {False: tls.TLSVerificationError, "ok": TypeError}.get(
                    answer if not isinstance(answer, Exception) else None, Odd
                )
                assert isinstance(error, wanted)
                await first(peer, "readable")
                with pytest.raises(tls.TLSAlertError) as caught:
                    peer.recv(1)
                assert caught.value.alert_received == "certificate_unknown"
            assert thinking == [(mine, mine.context)]
        finally:
            here.abort()
            there.abort()

    asyncio.run(asyncio.wait_for(main(), LIMIT))
    # The server's failure met only the loop, whichever side refused; the
    # client's is its user's to read.
    assert len(reports) == (0 if answer is True else 1)


def test_an_awaitable_is_awaited_on_accepted_channels(pki: Pki) -> None:
    seen = []

    async def verify(channel: Any, context: Any) -> bool:
        await asyncio.sleep(0)
        seen.append(tls.tls_state(channel))
        return True

    with serving(tls_server(pki.server, answer_one_line, verifier=verify)) as served:
        with connect(served.port, pki) as channel:
            channel.puts(b"line")
            assert channel.gets() == b"enil"
        assert served.result() == "line"
    assert seen == ["NEGOTIATING"]


def test_a_blocking_use_of_a_channel_whose_verifier_is_awaited(pki: Pki) -> None:
    """In the loop's own thread it could only deadlock: it is told so."""

    async def main() -> None:
        asked = asyncio.Event()
        go = asyncio.Event()

        async def verify(channel: Any, context: Any) -> bool:
            asked.set()
            await go.wait()
            return True

        one, other = tcp_pair()
        one.setblocking(False)
        serving_other = Work(
            lambda: tls.starttls(other, server=True, credentials=server_credentials(pki.server))
        )
        here = tls.starttls(
            one, peersubject="localhost", credentials=client_credentials(pki), verifier=verify
        )
        with here:
            await asyncio.wait_for(asked.wait(), LIMIT)
            here.settimeout(LIMIT)
            with pytest.raises(tls.TLSError, match="waits for the verifier"):
                here.recv(1)
            # Another thread may wait.
            waiting = asyncio.create_task(asyncio.to_thread(tls.tls_handshake, here))
            await asyncio.sleep(0)
            go.set()
            assert await asyncio.wait_for(waiting, LIMIT) is True
            (await asyncio.to_thread(serving_other.result)).abort()

    run(main())


def test_closing_while_a_verifier_is_awaited_cancels_it(pki: Pki) -> None:
    async def main() -> None:
        ended = asyncio.Event()
        asked = asyncio.Event()

        async def verify(channel: Any, context: Any) -> bool:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return True

        with peers.ssl_server(pki.server) as server:
            plain = socket.create_connection((HOST, server.port), LIMIT)
            plain.setblocking(False)
            here = tls.starttls(
                plain, peersubject="localhost", credentials=client_credentials(pki), verifier=verify
            )
            await asyncio.wait_for(asked.wait(), LIMIT)
            here.close()
            await asyncio.wait_for(ended.wait(), LIMIT)
            assert server.accepted == []
        assert len(asyncio.all_tasks()) <= 2  # ours: run() and its wait_for

    run(main())


@pytest.mark.peers
@pytest.mark.parametrize(
    "peer", [peers.openssl_client, peers.gnutls_client], ids=["openssl", "gnutls"]
)
def test_a_refused_client_that_sends_a_lot_reads_why(pki: Pki, peer: Any) -> None:
    """In TLS 1.3 it sends before it is judged, and must not be reset for it."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(LIMIT)

        def verify(channel: Any, context: Any) -> bool:
            assert select.select([channel], [], [], LIMIT)[0]  # it has sent
            return False

        def serve() -> None:
            plain, _ = listener.accept()
            plain.settimeout(LIMIT)
            creds = server_credentials(pki.server)
            tls.starttls(plain, server=True, credentials=creds, verifier=verify)

        refusing = Work(serve)
        port = listener.getsockname()[1]
        with peer(port, ca=pki.root, version="1.3") as client:
            sending = Work(client.send, bytes(4_000_000))
            assert isinstance(refusing.error(), tls.TLSError)
            client.expect(rb"(?i)alert")
            sending.wait()
