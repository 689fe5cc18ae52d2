"""TWAPI's tls.test, ported: the echo servers, tlsIO-* and starttlsIO-*.

Both ends are ours. See PORTED.md for what became of each original.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from certs import Identity, Pki
from platforms import rounds
from twapi_support import (
    CERTIFICATE_ALERTS,
    EOF,
    HOST,
    LIMIT,
    REFUSED,
    VERIFYFAIL,
    Background,
    Served,
    answer_lines,
    answer_one_line,
    client_credentials,
    connect,
    server_credentials,
    serving,
    starttls_server,
    tls_server,
    verify_name,
    verify_true,
    wait,
    wrap,
)

import twapi_tls as tls

pytestmark = pytest.mark.timeout(30)

ARGUMENT_ERRORS = (TypeError, ValueError)


# --- tls_echoserver-*: lines there and back, counted at both ends


def echo_sizes(density: int, limit: int) -> list[int]:
    """``density`` line lengths for each power of ten, the last ``limit``."""
    sizes = []
    decade = 1
    while decade < limit:
        sizes += [decade + 9 * decade * step // density for step in range(density)]
        decade *= 10
    return [*sizes, limit]


def echo_line(size: int) -> bytes:
    return (b"0123456789abcdefghijklmnopqrstuvwxyz" * (size // 36 + 1))[:size]


def echo_client(channel: Any, sizes: list[int]) -> list[int]:
    """Messages, characters in all, and the last one's size."""
    channel.configure(translation="lf", buffering="full", buffersize=100_000)
    for size in sizes:
        line = echo_line(size)
        channel.puts(line)
        channel.flush()
        assert channel.gets() == line
    return [len(sizes), sum(sizes), sizes[-1]]


def echo_blocking(served: Served, channel: Any, address: str, port: int) -> None:
    messages = total = last = 0
    with channel:
        channel.settimeout(LIMIT)
        while (line := channel.gets()) is not None:
            channel.puts(line)
            messages, total, last = messages + 1, total + len(line), len(line)
    served.report([messages, total, last])


def echo_by_events(served: Served, channel: Any, address: str, port: int) -> None:
    counts = [0, 0, 0]
    served.channels.append(channel)

    def readable() -> None:
        try:
            line = channel.gets()
        except BlockingIOError:
            return
        if line is None:
            channel.close()
            served.report(counts)
            return
        counts[:] = [counts[0] + 1, counts[1] + len(line), len(line)]
        channel.puts(line)

    channel.configure(blocking=False)
    channel.event("readable", readable)


def run_echo(pki: Pki, identity: Identity, answer: Any, sizes: list[int]) -> None:
    with serving(tls_server(identity, answer)) as served:
        with connect(served.port, pki) as channel:
            counted = echo_client(channel, sizes)
        assert served.result() == counted


def test_tls_echoserver_1_0(pki: Pki, server_identity: Identity) -> None:
    """tls_echoserver-1.0: a server with blocking I/O."""
    run_echo(pki, server_identity, echo_blocking, echo_sizes(3, 1000))


def test_tls_echoserver_1_1(pki: Pki) -> None:
    """tls_echoserver-1.1: a server with blocking I/O, lines up to 1,000,000."""
    run_echo(pki, pki.server, echo_blocking, echo_sizes(10, 1_000_000))


def test_tls_echoserver_2_0(pki: Pki, server_identity: Identity) -> None:
    """tls_echoserver-2.0: a server with events."""
    run_echo(pki, server_identity, echo_by_events, echo_sizes(3, 1000))


def test_tls_echoserver_2_1(pki: Pki) -> None:
    """tls_echoserver-2.1: a server with events, lines up to 1,000,000."""
    run_echo(pki, pki.server, echo_by_events, echo_sizes(10, 1_000_000))


# --- tlsIO-1.*: arguments. No socket may be left, which conftest.py watches.


def never(*_: Any) -> None:
    raise AssertionError("nothing may be accepted")


def test_tlsIO_1_1(pki: Pki) -> None:
    """tlsIO-1.1: a listener without a callback."""
    credentials = server_credentials(pki.server)
    with pytest.raises(ARGUMENT_ERRORS, match="server"):
        tls.tls_socket(0, server="", credentials=credentials)
    with pytest.raises(ARGUMENT_ERRORS, match="server"):
        tls.tls_socket(0, server=17, credentials=credentials)
    with pytest.raises(TypeError):
        tls.tls_socket(0, server=None, credentials=credentials)


def test_tlsIO_1_2() -> None:
    """tlsIO-1.2: a listener without credentials."""
    with pytest.raises(ARGUMENT_ERRORS, match="credentials"):
        tls.tls_socket(0, server=never)


def test_tlsIO_1_3() -> None:
    """tlsIO-1.3: myaddr that is no address."""
    with pytest.raises(ARGUMENT_ERRORS, match="myaddr"):
        tls.tls_socket(HOST, 1, myaddr=17)


def test_tlsIO_1_4() -> None:
    """tlsIO-1.4: myaddr, but neither host nor port."""
    with pytest.raises(TypeError, match="host|port"):
        tls.tls_socket(myaddr=HOST)


def test_tlsIO_1_5() -> None:
    """tlsIO-1.5: myport that is nothing like a port."""
    with pytest.raises(ARGUMENT_ERRORS, match="myport"):
        tls.tls_socket(HOST, 1, myport=[])


def test_tlsIO_1_6() -> None:
    """tlsIO-1.6: myport that is no number."""
    with pytest.raises(ARGUMENT_ERRORS, match="myport"):
        tls.tls_socket(HOST, 1, myport="xxxx")


def test_tlsIO_1_7() -> None:
    """tlsIO-1.7: myport, but neither host nor port."""
    with pytest.raises(TypeError, match="host|port"):
        tls.tls_socket(myport=2522)


def test_tlsIO_1_8() -> None:
    """tlsIO-1.8: an option that there is not."""
    with pytest.raises(TypeError, match="froboz"):
        tls.tls_socket(HOST, 1, froboz=True)


def test_tlsIO_1_9(pki: Pki) -> None:
    """tlsIO-1.9: a listener with myport, without and with credentials."""
    with pytest.raises(ARGUMENT_ERRORS, match="credentials|myport"):
        tls.tls_socket(3333, server=never, myport=2521)
    with pytest.raises(ARGUMENT_ERRORS, match="myport"):
        tls.tls_socket(0, server=never, myport=2521, credentials=server_credentials(pki.server))


def test_tlsIO_1_10() -> None:
    """tlsIO-1.10: a client with an argument too many."""
    with pytest.raises(TypeError, match="argument"):
        tls.tls_socket("host", 2528, "-junk")


def test_tlsIO_1_11(pki: Pki) -> None:
    """tlsIO-1.11: a listener with an argument too many."""
    with pytest.raises(ARGUMENT_ERRORS):
        tls.tls_socket(2520, "--", server=never)
    with pytest.raises(ARGUMENT_ERRORS):
        tls.tls_socket(2520, "--", server=never, credentials=server_credentials(pki.server))


def test_tlsIO_1_12() -> None:
    """tlsIO-1.12: a port that is no number."""
    with pytest.raises(ARGUMENT_ERRORS, match="port"):
        tls.tls_socket("foo", "badport")


# --- tlsIO-2.*: blocking servers


def ask(channel: Any, line: bytes) -> bytes:
    with channel:
        channel.settimeout(LIMIT)
        channel.puts(line)
        channel.flush()
        answer = channel.gets()
    assert isinstance(answer, bytes)
    return answer


def ours(pki: Pki, name: str) -> dict[str, Any]:
    """The options of the original's clients: a certificate, and a verifier."""
    return {
        "credentials": client_credentials(pki, pki.client),
        "verifier": verify_name(pki, name),
    }


def assert_refused(served: Served, connecting: Any) -> None:
    """The client's verifier says no: a clear error here, an alert there."""
    with pytest.raises(tls.TLSVerificationError, match=REFUSED) as caught:
        connecting()
    assert caught.value.errorcode == VERIFYFAIL
    seen = served.result()
    # The original's server had an open channel and read EOF.
    assert isinstance(seen, Background)
    assert isinstance(seen.error, tls.TLSError), repr(seen.error)
    assert seen.error.alert_received in CERTIFICATE_ALERTS
    assert served.nothing_more()


def test_tlsIO_2_1(pki: Pki, server_identity: Identity) -> None:
    """tlsIO-2.1: the client's verifier accepts the server."""
    with serving(tls_server(server_identity, answer_one_line)) as served:
        assert ask(connect(served.port, **ours(pki, "localhost")), b"done") == b"enod"
        assert served.result() == "done"


def test_starttlsIO_2_1(pki: Pki, server_identity: Identity) -> None:
    """starttlsIO-2.1: the client's verifier accepts the server."""
    with serving(starttls_server(server_identity, answer_one_line, blocking=True)) as served:
        channel = wrap(served.port, peersubject=HOST, **ours(pki, "localhost"))
        assert ask(channel, b"done") == b"enod"
        assert served.result() == "done"


def test_tlsIO_2_1_1(pki: Pki) -> None:
    """tlsIO-2.1.1: the client's verifier finds another name."""
    with serving(tls_server(pki.server, answer_one_line)) as served:
        assert_refused(served, lambda: connect(served.port, **ours(pki, "localhostx")))


def test_starttlsIO_2_1_1(pki: Pki) -> None:
    """starttlsIO-2.1.1: the client's verifier finds another name."""
    with serving(starttls_server(pki.server, answer_one_line, blocking=True)) as served:
        assert_refused(served, lambda: wrap(served.port, **ours(pki, "localhostx")))


def test_tlsIO_2_1_2(pki: Pki) -> None:
    """tlsIO-2.1.2: the name is among the alternative names only."""
    with serving(tls_server(pki.wrong_name, answer_one_line)) as served:
        channel = connect(served.port, **ours(pki, "altserver.wild.example"))
        assert ask(channel, b"done") == b"enod"
        assert served.result() == "done"


def test_starttlsIO_2_1_2(pki: Pki) -> None:
    """starttlsIO-2.1.2: the name is among the alternative names only."""
    with serving(starttls_server(pki.wrong_name, answer_one_line, blocking=True)) as served:
        channel = wrap(served.port, peersubject=HOST, **ours(pki, "altserver.wild.example"))
        assert ask(channel, b"done") == b"enod"
        assert served.result() == "done"


def test_tlsIO_2_1_3(pki: Pki) -> None:
    """tlsIO-2.1.3: the name is not among the alternative names."""
    with serving(tls_server(pki.wrong_name, answer_one_line)) as served:
        assert_refused(served, lambda: connect(served.port, **ours(pki, "server.example")))


def test_starttlsIO_2_1_3(pki: Pki) -> None:
    """starttlsIO-2.1.3: the name is not among the alternative names."""
    with serving(starttls_server(pki.wrong_name, answer_one_line, blocking=True)) as served:
        options = ours(pki, "server.example")
        assert_refused(served, lambda: wrap(served.port, peersubject="server.example", **options))


def second_address() -> tuple[str, int]:
    """127.0.0.2 and a port that is free there."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.2", 0))
        except OSError as error:
            pytest.skip(f"this system has no 127.0.0.2: {error}")
        address, port = probe.getsockname()
    return address, port


def test_tlsIO_2_2(pki: Pki) -> None:
    """tlsIO-2.2: myaddr and myport, seen by both ends."""
    address, port = second_address()
    with serving(tls_server(pki.server, answer_one_line)) as served:
        channel = connect(served.port, myaddr=address, myport=port, **ours(pki, "localhost"))
        assert channel.cget("sockname") == (address, port)
        assert channel.cget("peername") == (HOST, served.port)
        facts = json.loads(ask(channel, b"conninfo"))
        assert facts == [[address, port], [HOST, served.port], [address, port]]
        assert served.result() == "conninfo"


def test_tlsIO_2_6() -> None:
    """tlsIO-2.6: nobody listens."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))  # taken, and not listening
        with pytest.raises(ConnectionRefusedError):
            tls.tls_socket(HOST, bound.getsockname()[1], timeout=LIMIT)


def test_tlsIO_2_10(pki: Pki) -> None:
    """tlsIO-2.10: the listener is closed on accept, what it accepted lives."""

    async def main() -> Any:
        done = asyncio.get_running_loop().create_future()

        def accept(channel: Any, address: str, port: int) -> None:
            listener.close()
            channel.configure(translation="lf", blocking=False)

            def readable() -> None:
                try:
                    line = channel.gets()
                except BlockingIOError:
                    return
                channel.close()
                done.set_result(line)

            channel.event("readable", readable)

        listener = tls.tls_socket(
            0,
            server=accept,
            credentials=server_credentials(pki.server),
            verifier=verify_true,
            myaddr=HOST,
        )
        client = tls.tls_socket(
            HOST,
            listener.getsockname()[1],
            async_=True,
            credentials=client_credentials(pki, pki.client),
            verifier=verify_true,
        )
        with listener, client:
            client.configure(blocking=False)
            client.puts(b"123")
            client.flush()
            return await wait(done)

    assert asyncio.run(main()) == b"123"


# --- tlsIO-3.*: servers with events


def test_tlsIO_3_0(pki: Pki, server_identity: Identity) -> None:
    """tlsIO-3.0: the client's verifier accepts; the server sees the end."""
    with serving(tls_server(server_identity, answer_lines)) as served:
        channel = connect(served.port, **ours(pki, "localhost"))
        channel.configure(buffering="line", translation="lf")
        assert ask(channel, b"done") == b"enod"
        assert served.result() == ["done", EOF]


def test_starttlsIO_3_0(pki: Pki, server_identity: Identity) -> None:
    """starttlsIO-3.0: the client's verifier accepts; the server sees the end."""
    with serving(starttls_server(server_identity, answer_lines, blocking=False)) as served:
        channel = wrap(served.port, peersubject="server.example", **ours(pki, "localhost"))
        channel.configure(buffering="line", translation="lf")
        assert ask(channel, b"done") == b"enod"
        assert served.result() == ["done", EOF]


def test_starttlsIO_3_0_1(pki: Pki) -> None:
    """starttlsIO-3.0.1: 5000 questions and answers."""
    questions = rounds(5000)
    with serving(starttls_server(pki.server, answer_lines, blocking=False)) as served:
        with wrap(served.port, **ours(pki, "localhost")) as channel:
            channel.configure(buffering="line", translation="lf")
            for number in range(questions):
                line = str(number).encode()
                channel.puts(line)
                assert channel.gets() == line[::-1]
            channel.puts(b"quit")
            assert channel.gets() is None
        assert served.result() == [*map(str, range(questions)), "quit"]


def test_tlsIO_3_1(pki: Pki) -> None:
    """tlsIO-3.1: the client's verifier finds another name."""
    with serving(tls_server(pki.server, answer_lines)) as served:
        assert_refused(served, lambda: connect(served.port, **ours(pki, "localhostx")))


def test_starttlsIO_3_1(pki: Pki) -> None:
    """starttlsIO-3.1: the client's verifier finds another name."""
    with serving(starttls_server(pki.server, answer_lines, blocking=False)) as served:
        options = ours(pki, "localhostx")
        assert_refused(served, lambda: wrap(served.port, peersubject="server.example", **options))


def test_tlsIO_3_2(pki: Pki) -> None:
    """tlsIO-3.2: an alternative name, myaddr and myport, lines sent at once."""
    address, port = second_address()
    with serving(tls_server(pki.wrong_name, answer_lines)) as served:
        options = ours(pki, "altserver.wild.example")
        with connect(served.port, myaddr=address, myport=port, **options) as channel:
            channel.configure(buffering="line", translation="lf")
            channel.puts(b"123")
            channel.puts(b"conninfo")
            channel.puts(b"quit")
            assert channel.gets() == b"321"
            facts = json.loads(channel.gets())
        assert facts == [[address, port], [HOST, served.port], [address, port]]
        assert served.result() == ["123", "conninfo", "quit"]


def test_tlsIO_3_3(pki: Pki, server_identity: Identity) -> None:
    """tlsIO-3.3: as tlsIO-3.1, once with each kind of key."""
    with serving(tls_server(server_identity, answer_lines)) as served:
        assert_refused(served, lambda: connect(served.port, **ours(pki, "localhostx")))
