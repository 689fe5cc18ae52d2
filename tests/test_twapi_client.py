"""TWAPI's tls.test, ported: tls_socket-client-*, starttls-client-* and http.

The original asks servers on the Internet. Here Python's own ssl serves on
loopback, with certificates that are good or bad as the original's hosts were.
See PORTED.md for what became of each.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import ssl
import threading
from collections.abc import Callable
from typing import Any

import peers
import pytest
from certs import Pki
from twapi_support import (
    BIG_PAGE,
    CERT_EXPIRED,
    HOST,
    HTTP_RESPONSE,
    LIMIT,
    REFUSED,
    SMALL_PAGE,
    UNTRUSTED_ROOT,
    VERIFYFAIL,
    WRONG_PRINCIPAL,
    VerificationError,
    client_credentials,
    connect,
    first,
    handshake_refused,
    http_request,
    read_to_eof,
    say_first,
    verify_error,
    verify_false,
    verify_name,
    verify_true,
    wait,
    wrap,
)

import twapi_tls as tls

pytestmark = pytest.mark.timeout(30)

Opener = Callable[..., Any]


def get_page(channel: Any) -> None:
    """A request and the whole answer, blocking."""
    with channel:
        channel.settimeout(LIMIT)
        http_request(channel)
        assert HTTP_RESPONSE.search(channel.read())
        assert channel.read() == b""
        assert channel.eof()


def check_failure(error: Any, code: int, name: str) -> None:
    assert error.code == code
    assert error.name == name
    assert error.errorcode[:2] == ("TWAPI_WIN32", str(code))
    assert f"0x{code & 0xFFFFFFFF:08x}" in str(error).lower()


def check_wrong_principal(error: Any) -> None:
    check_failure(error, WRONG_PRINCIPAL, "SEC_E_WRONG_PRINCIPAL")


def check_untrusted_root(error: Any) -> None:
    check_failure(error, UNTRUSTED_ROOT, "SEC_E_UNTRUSTED_ROOT")


# --- 1.*: blocking


def fetch(pki: Pki, opener: Opener, **options: Any) -> None:
    """Connects, gets the page, and sees the server content with how it ended."""
    with peers.ssl_server(pki.server, BIG_PAGE) as server:
        get_page(opener(server.port, pki, **options))
        server.finish()
    assert len(server.accepted) == 1


def test_tls_socket_client_1_0(pki: Pki) -> None:
    """tls_socket-client-1.0: a page, with the default verification."""
    fetch(pki, connect)


def test_starttls_client_1_0(pki: Pki) -> None:
    """starttls-client-1.0: a page, with the default verification."""
    fetch(pki, wrap)


def wrong_name(pki: Pki, opener: Opener) -> None:
    with peers.ssl_server(pki.server, SMALL_PAGE) as server:
        with pytest.raises(tls.TLSVerificationError) as caught:
            opener(server.port, pki, peersubject="other.example")
        check_wrong_principal(caught.value)
        assert "alert" in handshake_refused(server).lower()


def test_tls_socket_client_1_1(pki: Pki) -> None:
    """tls_socket-client-1.1: the certificate names somebody else."""
    wrong_name(pki, connect)


def test_starttls_client_1_1(pki: Pki) -> None:
    """starttls-client-1.1: the certificate names somebody else."""
    wrong_name(pki, wrap)


def test_starttls_client_1_1_1(pki: Pki) -> None:
    """starttls-client-1.1.1: a client without peersubject; the socket is closed."""
    with peers.ssl_server(pki.server, SMALL_PAGE) as server:
        import socket

        plain = socket.create_connection((HOST, server.port), LIMIT)
        with pytest.raises((TypeError, ValueError), match="peersubject"):
            tls.starttls(plain, credentials=client_credentials(pki))
        assert plain.fileno() == -1


def unknown_root(pki: Pki, opener: Opener) -> None:
    with peers.ssl_server(pki.untrusted, SMALL_PAGE) as server:
        with pytest.raises(tls.TLSVerificationError) as caught:
            opener(server.port, pki)
        check_untrusted_root(caught.value)
        assert "unknown_ca" in handshake_refused(server).lower()


def test_tls_socket_client_1_2(pki: Pki) -> None:
    """tls_socket-client-1.2: a root that nobody trusts."""
    unknown_root(pki, connect)


def test_starttls_client_1_2(pki: Pki) -> None:
    """starttls-client-1.2: a root that nobody trusts."""
    unknown_root(pki, wrap)


def test_tls_socket_client_1_3(pki: Pki) -> None:
    """tls_socket-client-1.3: a verifier that says yes."""
    fetch(pki, connect, verifier=verify_true)


def test_starttls_client_1_3(pki: Pki) -> None:
    """starttls-client-1.3: a verifier that says yes."""
    fetch(pki, wrap, verifier=verify_true)


def refused(pki: Pki, opener: Opener, verifier: Any) -> None:
    with peers.ssl_server(pki.server, SMALL_PAGE) as server:
        with pytest.raises(tls.TLSVerificationError, match=REFUSED) as caught:
            opener(server.port, pki, verifier=verifier)
        assert caught.value.errorcode == VERIFYFAIL
        assert "alert" in handshake_refused(server).lower()


def test_tls_socket_client_1_4(pki: Pki) -> None:
    """tls_socket-client-1.4: a verifier that says no."""
    refused(pki, connect, verify_false)


def test_starttls_client_1_4(pki: Pki) -> None:
    """starttls-client-1.4: a verifier that says no."""
    refused(pki, wrap, verify_false)


def verifier_raises(pki: Pki, opener: Opener) -> None:
    with peers.ssl_server(pki.server, SMALL_PAGE) as server:
        with pytest.raises(VerificationError, match=r"^Verification error$") as caught:
            opener(server.port, pki, verifier=verify_error)
        assert caught.value.errorcode == ("TEST", "TLS", "VERIFYFAIL")
        assert "alert" in handshake_refused(server).lower()


def test_tls_socket_client_1_5(pki: Pki) -> None:
    """tls_socket-client-1.5: a verifier that raises."""
    verifier_raises(pki, connect)


def test_starttls_client_1_5(pki: Pki) -> None:
    """starttls-client-1.5: a verifier that raises."""
    verifier_raises(pki, wrap)


def test_tls_socket_client_1_6(pki: Pki) -> None:
    """tls_socket-client-1.6: a verifier that verifies, the right name."""
    fetch(pki, connect, verifier=verify_name(pki, "localhost"))


def test_starttls_client_1_6(pki: Pki) -> None:
    """starttls-client-1.6: a verifier that verifies, the right name."""
    fetch(pki, wrap, verifier=verify_name(pki, "localhost"))


def test_tls_socket_client_1_7(pki: Pki) -> None:
    """tls_socket-client-1.7: a verifier that verifies, another name."""
    refused(pki, connect, verify_name(pki, "www.example.org"))


def test_starttls_client_1_7(pki: Pki) -> None:
    """starttls-client-1.7: a verifier that verifies, another name."""
    refused(pki, wrap, verify_name(pki, "www.example.org"))


# --- 2.*: async_


def failing(pki: Pki, identity: Any, use: Callable[[Any], Any], **options: Any) -> Any:
    """An async_ client whose negotiation fails: what its first use raises.

    It is raised again by what comes next, and readable as ``error``.
    """
    with peers.ssl_server(identity, SMALL_PAGE) as server:
        channel = connect(server.port, pki, async_=True, **options)
        with channel:
            assert tls.tls_state(channel) == "CLIENTINIT"
            with pytest.raises(Exception) as caught:
                use(channel)
            assert tls.tls_state(channel) == "CLOSED"
            assert channel.cget("error") is caught.value
            with pytest.raises(type(caught.value)) as again:
                channel.recv(1)
            assert again.value is caught.value
        assert server.accepted == []
    return caught.value


def read_all(channel: Any) -> None:
    channel.read()


def write_and_flush(channel: Any) -> None:
    """``puts`` only fills the buffer: it is the flush that fails."""
    channel.configure(buffering="full")
    try:
        channel.puts(b"GET /")
    except OSError as error:
        pytest.fail(f"puts() did not wait for the flush: {error!r}")
    channel.flush()


def test_tls_socket_client_2_0(pki: Pki) -> None:
    """tls_socket-client-2.0: a page."""
    fetch(pki, connect, async_=True)


def test_tls_socket_client_2_1(pki: Pki) -> None:
    """tls_socket-client-2.1: another name, raised by a read."""
    check_wrong_principal(failing(pki, pki.server, read_all, peersubject="other.example"))


def test_tls_socket_client_2_2(pki: Pki) -> None:
    """tls_socket-client-2.2: another name, raised by a flush."""
    check_wrong_principal(failing(pki, pki.server, write_and_flush, peersubject="other.example"))


def test_tls_socket_client_2_3(pki: Pki) -> None:
    """tls_socket-client-2.3: an untrusted root, raised by a read."""
    check_untrusted_root(failing(pki, pki.untrusted, read_all))


def test_tls_socket_client_2_4(pki: Pki) -> None:
    """tls_socket-client-2.4: an untrusted root, raised by a flush."""
    check_untrusted_root(failing(pki, pki.untrusted, write_and_flush))


def test_tls_socket_client_2_5(pki: Pki) -> None:
    """tls_socket-client-2.5: a verifier that says yes."""
    fetch(pki, connect, async_=True, verifier=verify_true)


def test_tls_socket_client_2_6(pki: Pki) -> None:
    """tls_socket-client-2.6: a verifier that says no, raised by a read."""
    error = failing(pki, pki.server, read_all, verifier=verify_false)
    assert isinstance(error, tls.TLSVerificationError)
    assert error.errorcode == VERIFYFAIL
    assert "Verifier callback returned false." in str(error)


def test_tls_socket_client_2_7(pki: Pki) -> None:
    """tls_socket-client-2.7: a verifier that raises, raised by a flush."""
    error = failing(pki, pki.server, write_and_flush, verifier=verify_error)
    assert isinstance(error, VerificationError)
    assert error.errorcode == ("TEST", "TLS", "VERIFYFAIL")


def switch_modes(pki: Pki, blocking_from: int) -> None:
    """The request's lines are written before OPEN, the first ones non-blocking."""
    request = [b"GET / HTTP/1.1", b"Host: localhost", b"Connection: close", b""]
    gate = threading.Event()
    with peers.ssl_server(pki.server, SMALL_PAGE, gate=gate) as server:
        with connect(server.port, pki, async_=True) as channel:
            channel.configure(buffering="line", translation="crlf", blocking=False)
            for line in request[:blocking_from]:
                channel.puts(line)
                assert tls.tls_state(channel) != "OPEN"
            gate.set()
            channel.configure(blocking=True)
            channel.settimeout(LIMIT)
            for line in request[blocking_from:]:
                channel.puts(line)
            assert channel.gets() == b"HTTP/1.1 200 OK"
            assert HTTP_RESPONSE.search(b"HTTP" + channel.read())
        # The handler refuses a request with a line twice, missing or out of place.
        server.finish()


def test_tls_socket_client_2_8(pki: Pki) -> None:
    """tls_socket-client-2.8: one line written non-blocking, the rest blocking."""
    switch_modes(pki, 1)


def test_tls_socket_client_2_8_1(pki: Pki) -> None:
    """tls_socket-client-2.8.1: all lines written non-blocking, before OPEN."""
    switch_modes(pki, 4)


def writable_when_open(pki: Pki, blocking: bool) -> None:
    async def main(port: int) -> None:
        with connect(port, pki, async_=True) as channel:
            channel.configure(blocking=blocking)
            assert tls.tls_state(channel) == "CLIENTINIT"

            def facts() -> Any:
                return tls.tls_state(channel), channel.cget("sockname")

            state, (address, local_port) = await first(channel, "writable", facts)
            assert state == "OPEN"
            assert address == HOST
            assert channel.getsockname() == (HOST, local_port)
            assert local_port > 0

    with peers.ssl_server(pki.server) as server:
        asyncio.run(main(server.port))


def test_tls_socket_client_2_9(pki: Pki) -> None:
    """tls_socket-client-2.9: writable comes after OPEN (bug 202)."""
    writable_when_open(pki, True)


def test_tls_socket_client_2_9_1(pki: Pki) -> None:
    """tls_socket-client-2.9.1: the same on a non-blocking channel."""
    writable_when_open(pki, False)


@pytest.mark.parametrize("kind", ["writable", "readable"])
def test_tls_socket_client_2_10(pki: Pki, kind: str) -> None:
    """tls_socket-client-2.10: a failed negotiation fires the events (bug 206)."""

    async def main(port: int) -> None:
        with connect(port, pki, async_=True) as channel:
            state = await first(channel, kind, lambda: tls.tls_state(channel))
            assert state == "CLOSED"
            check_failure(channel.cget("error"), CERT_EXPIRED, "SEC_E_CERT_EXPIRED")
            with pytest.raises(tls.TLSVerificationError):
                channel.send(b"x")

    with peers.ssl_server(pki.expired) as server:
        asyncio.run(main(server.port))


# --- 3.*: events


def page_by_events(pki: Pki, opener: Opener, handler: Any, session: Any) -> None:
    async def main(port: int) -> bytes:
        channel = opener(port, pki)
        with channel:
            return bytes(await session(channel))

    with peers.ssl_server(pki.server, handler) as server:
        response = asyncio.run(main(server.port))
        server.finish()
    assert HTTP_RESPONSE.search(response)


def connect_async(port: int, pki: Pki) -> Any:
    return connect(port, pki, async_=True)


async def read_events(channel: Any) -> bytes:
    channel.configure(blocking=False, translation="binary", buffering="none")
    channel.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return await read_to_eof(channel, channel.read)


def writable_then(translation: str, reader: Callable[[Any], Callable[[], Any]]) -> Any:
    """Waits for OPEN by the writable event, then reads by readable events."""

    async def session(channel: Any) -> bytes:
        channel.configure(blocking=False, translation=translation, buffering="none")
        await first(channel, "writable")
        assert tls.tls_state(channel) == "OPEN"
        http_request(channel)
        channel.configure(translation=translation)
        return await read_to_eof(channel, reader(channel))

    return session


def whatever_is_there(channel: Any) -> Callable[[], Any]:
    return channel.read  # type: ignore[no-any-return]


def byte_by_byte(channel: Any) -> Callable[[], Any]:
    return lambda: channel.read(1)


def line_by_line(channel: Any) -> Callable[[], Any]:
    def read() -> Any:
        line = channel.gets()
        return None if line is None else line + b"\n"

    return read


def test_tls_socket_client_3_0(pki: Pki) -> None:
    """tls_socket-client-3.0: readable events to EOF."""
    page_by_events(pki, connect, BIG_PAGE, read_events)


def test_starttls_client_3_0(pki: Pki) -> None:
    """starttls-client-3.0: readable events to EOF."""
    page_by_events(pki, wrap, BIG_PAGE, read_events)


def test_tls_socket_client_3_1(pki: Pki) -> None:
    """tls_socket-client-3.1: async_, a writable event, readable events to EOF."""
    session = writable_then("binary", whatever_is_there)
    page_by_events(pki, connect_async, BIG_PAGE, session)


def test_tls_socket_client_3_1_1(pki: Pki) -> None:
    """tls_socket-client-3.1.1: the end comes with the data (bug 203)."""
    # A page of one record, close_notify and FIN in the same breath.
    session = writable_then("binary", whatever_is_there)
    page_by_events(pki, connect_async, SMALL_PAGE, session)


def test_tls_socket_client_3_1_2(pki: Pki) -> None:
    """tls_socket-client-3.1.2: the same, one byte at a time (bug 203)."""
    page_by_events(pki, connect_async, SMALL_PAGE, writable_then("binary", byte_by_byte))


def test_tls_socket_client_3_2(pki: Pki) -> None:
    """tls_socket-client-3.2: lines by readable events."""
    page_by_events(pki, connect_async, BIG_PAGE, writable_then("lf", line_by_line))


def test_starttls_client_3_2(pki: Pki) -> None:
    """starttls-client-3.2: lines by readable events."""
    page_by_events(pki, wrap, BIG_PAGE, writable_then("lf", line_by_line))


# --- 4.*: protocols


def protocol_used(pki: Pki, opener: Opener, **options: Any) -> tuple[str, str | None]:
    """The protocol as the client and as the server tell it."""
    with peers.ssl_server(pki.server) as server:
        credentials = client_credentials(pki, **options)
        try:
            with opener(server.port, credentials=credentials) as channel:
                ours = channel.cget("context").facts().protocol
                channel.sendall(b"x")
                assert channel.recv(1) == b"x"
        finally:
            tls.sspi_free_credentials(credentials)
        return ours, server.accepted[0].version


def test_tls_socket_client_4_0(pki: Pki) -> None:
    """tls_socket-client-4.0: the protocol is the one asked for, or an error."""
    assert protocol_used(pki, connect, protocols=["tls1.3"]) == ("TLS 1.3", "TLSv1.3")
    if tls.engine[0] == "openssl":
        # The original asks for TLS 1.0 and is rated "Bad" for it.
        with pytest.raises(ValueError, match="tls1"):
            client_credentials(pki, protocols=["tls1"])


def test_starttls_client_4_0(pki: Pki) -> None:
    """starttls-client-4.0: TLS 1.2 where both ends could do better."""
    assert protocol_used(pki, wrap, protocols=["tls1.2"]) == ("TLS 1.2", "TLSv1.2")


# --- 5.*: bad certificates, as badssl.com's


def test_tls_socket_client_5_0(pki: Pki) -> None:
    """tls_socket-client-5.0: a host whose certificate names others."""
    with peers.ssl_server(pki.wrong_name) as server:
        with pytest.raises(tls.TLSVerificationError) as caught:
            connect(server.port, pki)
        check_wrong_principal(caught.value)


def test_starttls_client_5_0(pki: Pki) -> None:
    """starttls-client-5.0: a host whose certificate names others."""
    with peers.ssl_server(pki.wrong_name) as server:
        with pytest.raises(tls.TLSVerificationError) as caught:
            wrap(server.port, pki)
        check_wrong_principal(caught.value)


def test_tls_socket_client_5_2(pki: Pki) -> None:
    """tls_socket-client-5.2: a root that the system does not know."""
    with peers.ssl_server(pki.server) as server:
        with pytest.raises(tls.TLSVerificationError) as caught:
            connect(server.port)
        check_untrusted_root(caught.value)


def test_starttls_client_5_2(pki: Pki) -> None:
    """starttls-client-5.2: a root that the system does not know."""
    with peers.ssl_server(pki.server) as server:
        with pytest.raises(tls.TLSVerificationError) as caught:
            wrap(server.port)
        check_untrusted_root(caught.value)


# --- 6.*: a server that would like a client's certificate


def optional_certificate(pki: Pki, version: str, **options: Any) -> None:
    with peers.ssl_server(pki.server, BIG_PAGE, client_ca=pki.root, version=version) as server:
        get_page(connect(server.port, pki, **options))
        server.finish()
    assert server.accepted[0].peer_certificate is None


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_socket_client_6_0(pki: Pki, version: str) -> None:
    """tls_socket-client-6.0: asked for a certificate, none given (bug 178)."""
    optional_certificate(pki, version)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_socket_client_6_1(pki: Pki, version: str) -> None:
    """tls_socket-client-6.1: the same with async_."""
    optional_certificate(pki, version, async_=True)


# --- 7.*: servers that speak first


def test_tls_socket_client_7_0(pki: Pki) -> None:
    """tls_socket-client-7.0: a server that speaks first."""
    with peers.ssl_server(pki.server, say_first) as server:
        with connect(server.port, pki) as channel:
            line = channel.gets()
        server.finish()
    assert b"NOTICE" in line and b"Checking Ident" in line


def test_tls_socket_client_7_1(pki: Pki) -> None:
    """tls_socket-client-7.1: a server that speaks first, async_."""

    async def main(port: int) -> Any:
        with connect(port, pki, async_=True) as channel:
            channel.settimeout(LIMIT)
            return await first(channel, "writable", channel.gets)

    with peers.ssl_server(pki.server, say_first) as server:
        line = asyncio.run(main(server.port))
        server.finish()
    assert b"NOTICE" in line and b"Checking Ident" in line


# --- tls-http-geturl-*: under the language's own HTTP client


def test_tls_http_geturl_1_0(pki: Pki) -> None:
    """tls-http-geturl-1.0: http.client over a channel."""

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = connect(self.port, pki)

    with peers.ssl_server(pki.server, BIG_PAGE) as server:
        connection = Connection("localhost", server.port)
        try:
            connection.putrequest("GET", "/", skip_accept_encoding=True)
            connection.endheaders()
            response = connection.getresponse()
            assert response.status == 200
            body = response.read()
        finally:
            connection.close()
        server.finish()
    assert len(body) == int(response.headers["Content-Length"])
    assert body.startswith(b"<HTML") and body.endswith(b"</HTML>\n")


class _Bytes:
    """What http.client.HTTPResponse wants of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def test_tls_http_geturl_1_1(pki: Pki) -> None:
    """tls-http-geturl-1.1: http.client's answer, given to a callback by events."""

    async def main(port: int) -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        parts: list[bytes] = []
        channel = connect(port, pki, async_=True)

        def command(response: http.client.HTTPResponse) -> None:
            done.set_result((response.status, response.read()))

        def readable() -> None:
            try:
                parts.append(channel.recv(65536))
            except BlockingIOError:
                return
            if channel.eof():
                channel.close()
                response = http.client.HTTPResponse(_Bytes(b"".join(parts)))  # type: ignore
                response.begin()
                command(response)

        with channel:
            channel.configure(blocking=False)
            channel.event("readable", readable)
            channel.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")  # before OPEN
            return await wait(done)

    with peers.ssl_server(pki.server, BIG_PAGE) as server:
        status, body = asyncio.run(main(server.port))
    assert status == 200
    assert body.startswith(b"<HTML") and body.endswith(b"</HTML>\n")
    assert not [error for error in server.errors if isinstance(error, ssl.SSLError)]
