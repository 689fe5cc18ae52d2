"""Bad input: each a typed error that names its cause, with everything closed.

The peers here are plain sockets that say what they like. What the test leaves
open is conftest's to find; ``closed`` looks that the far end saw the end.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import random
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from certs import PFX_PASSWORD, Pki
from channels import NOBODYS, Work, clog, run, tcp_pair, tls_pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twapi_support import (
    HOST,
    LIMIT,
    Background,
    answer_one_line,
    client_credentials,
    connect,
    server_credentials,
    serving,
    tls_server,
)

import twapi_tls as tls

pytestmark = pytest.mark.timeout(60)


@contextmanager
def saying(*parts: bytes, then: Callable[[socket.socket], Any] | None = None) -> Iterator[Any]:
    """A server that says what it says once asked, and waits for our end.

    Its ``port``, and ``ended()``: our end was seen (by FIN or by reset).
    """
    listener = socket.create_server((HOST, 0))
    listener.settimeout(LIMIT)

    def serve() -> bool:
        with listener:
            sock, _ = listener.accept()
        with sock:
            sock.settimeout(LIMIT)
            assert sock.recv(5)
            for part in parts:
                sock.sendall(part)
            if then is not None:
                then(sock)
            try:
                while sock.fileno() >= 0 and sock.recv(65536):
                    pass
            except ConnectionResetError:
                pass
        return True

    class Server:
        port = listener.getsockname()[1]
        ended = staticmethod(Work(serve).result)

    yield Server
    assert Server.ended()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


RECORD_HEAD = b"\x16\x03\x03"


# --- what is no TLS, by name


FOREIGN = [
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
    (b"220 mail.example ESMTP ready\r\n", "SMTP|FTP"),
    (b"* OK IMAP4rev1 ready\r\n", "IMAP"),
    (b"+OK POP3 ready\r\n", "POP3"),
    (b"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH"),
    (b"<html><body>hello</body></html>", "HTML|TLS"),
    (bytes(64), "TLS"),
    (b"\xff" * 64, "TLS"),
    (b"\x80\x2e\x01\x03\x01" + bytes(41), "SSL"),
]


@pytest.mark.parametrize(("said", "name"), FOREIGN, ids=lambda v: repr(v)[:20])
def test_what_a_server_says_instead(pki: Pki, said: bytes, name: str) -> None:
    with saying(said) as server:
        with pytest.raises(tls.TLSError, match=name) as caught:
            connect(server.port, pki)
        assert caught.value.code < 0
        assert caught.value.errorcode[:1] == ("TWAPI_WIN32",) or caught.value.errorcode[:2] == (
            "TWAPI",
            "TLS",
        )


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
        (b"POST /form HTTP/1.0\r\n\r\n", "HTTP"),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", "HTTP"),
        (b"EHLO client.example\r\n", "SMTP"),
        (b"SSH-2.0-client\r\n", "SSH"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", "PROXY|TLS"),
        (bytes(64), "TLS"),
        (b"\x17\x03\x03\x00\x10" + bytes(16), "."),
    ],
    ids=lambda v: repr(v)[:20],
)
def test_what_a_client_says_instead(pki: Pki, said: bytes, name: str) -> None:
    """Background errors at a listener; the connection ends, the next is served."""
    with serving(tls_server(pki.server, answer_one_line)) as served:
        with socket.create_connection((HOST, served.port), LIMIT) as client:
            client.sendall(said)
            told = served.result()
            assert isinstance(told, Background)
            assert isinstance(told.error, tls.TLSError)
            import re

            assert re.search(name, str(told.error)), told.error
            try:
                while client.recv(100):
                    pass
            except ConnectionResetError:
                pass
        with connect(served.port, pki) as channel:
            channel.puts(b"line")
            assert channel.gets() == b"enil"


def test_plain_http_by_starttls(pki: Pki) -> None:
    one, other = tcp_pair()
    with other:
        other.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(tls.TLSError, match="HTTP"):
            tls.starttls(one, server=True, credentials=server_credentials(pki.server))
        assert one.fileno() == -1


# --- records


BAD_RECORDS = [
    (b"\x63\x03\x03\x00\x05hello", "an unknown type"),
    (b"\x16\x03\x03\xff\xff" + bytes(1000), "an oversized record"),
    (b"\x16\x03\x03\x48\x01" + bytes(1000), "a record just too large"),
    (b"\x16\x09\x09\x00\x05hello", "an unknown version"),
    (b"\x16\x03\x03\x00\x00" * 100, "empty handshake records"),
    (b"\x15\x03\x03\x00\x02\x02\x28", "a fatal alert"),
    (b"\x15\x03\x03\x00\x03\x02\x28\x00", "a malformed alert"),
    (b"\x14\x03\x03\x00\x01\x01" * 2, "ChangeCipherSpec out of turn"),
    (b"\x17\x03\x03\x00\x04data", "data before the handshake"),
    (b"\x16\x03\x03\x00\x04\x02\xff\xff\xff", "a ServerHello of 16 MiB"),
]


@pytest.mark.parametrize(("record", "what"), BAD_RECORDS, ids=[what for _, what in BAD_RECORDS])
def test_bad_records_in_the_handshake(pki: Pki, record: bytes, what: str) -> None:
    def end(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)

    with saying(record, then=end) as server:
        with pytest.raises(tls.TLSError) as caught:
            connect(server.port, pki)
        assert caught.value.errorcode
        assert str(caught.value)
        if what == "a fatal alert":
            assert caught.value.alert_received == "handshake_failure"
            assert isinstance(caught.value, tls.TLSAlertError)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize(
    "record",
    [
        b"\x63\x03\x03\x00\x20" + bytes(32),
        b"\x17\x03\x03\xff\xff" + bytes(70000),
        NOBODYS,
        b"\x17\x03\x03\x00\x00",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["unknown type", "oversized", "forged", "empty", "no record"],
)
def test_bad_records_on_an_open_channel(pki: Pki, version: str, record: bytes) -> None:
    """Data before it first; then the error, again and again; the peer is told."""
    with tls_pair(pki, version=version) as (here, there):
        there.sendall(b"good")
        with socket.socket(fileno=there.fileno()) as raw:
            raw.sendall(record)
            raw.detach()
        assert here.read(4) == b"good"
        errors = []
        for _ in range(2):
            with pytest.raises(tls.TLSError) as caught:
                here.recv(10)
            errors.append(caught.value)
        assert errors[0] is errors[1]
        assert not isinstance(errors[0], tls.TLSTruncatedError)
        assert tls.tls_state(here) == "CLOSED"
        assert here.fileno() == -1
        with pytest.raises(OSError) as told:
            while there.recv(100):
                pass
        if errors[0].alert_sent is None:
            # libssl has no call that sends an alert of our choice under keys.
            assert os.environ.get("TWAPI_TLS_RECORDS") == "openssl"
            assert isinstance(told.value, (tls.TLSTruncatedError, ConnectionResetError))
        else:
            assert isinstance(told.value, tls.TLSAlertError)
            assert told.value.alert_received == errors[0].alert_sent


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(noise=st.binary(min_size=1, max_size=300), framed=st.booleans())
def test_noise(pki: Pki, noise: bytes, framed: bool) -> None:
    """Whatever comes: a TLS error, or the end of the stream in the handshake."""
    data = RECORD_HEAD + struct.pack(">H", len(noise)) + noise if framed else noise
    creds = client_credentials(pki)
    for server in (False, True):
        one, other = tcp_pair()
        with other:
            other.sendall(data)
            other.shutdown(socket.SHUT_WR)
            options: dict[str, Any] = (
                {"server": True, "credentials": server_credentials(pki.server)}
                if server
                else {"peersubject": "localhost", "credentials": creds}
            )
            with pytest.raises(tls.TLSError):
                tls.starttls(one, **options)
            assert one.fileno() == -1


# --- peers that end, stall or reset at any point


class Relay:
    """Between a client and a server: passes ``limit`` bytes of the server's,
    then does ``what``."""

    def __init__(self, port: int, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self._target = port
        self._listener = socket.create_server((HOST, 0))
        self._listener.settimeout(LIMIT)
        self.port = self._listener.getsockname()[1]
        self.passed = 0
        self._done = threading.Event()
        self._work = Work(self._serve)

    def _serve(self) -> None:
        with self._listener:
            near, _ = self._listener.accept()
        with near, socket.create_connection((HOST, self._target), LIMIT) as far:
            near.settimeout(LIMIT)
            with suppress(OSError):
                self._pass(near, far)
            if self._what == "stalls" and self.passed == self._limit:
                assert self._done.wait(LIMIT)
            if self._what == "resets":
                reset(near)
            else:
                with suppress(OSError):
                    near.shutdown(socket.SHUT_WR)
                    while near.recv(65536):  # what is unread would make it a reset
                        pass

    def _pass(self, near: socket.socket, far: socket.socket) -> None:
        """Both ways, until the limit is reached or the server has ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(near, selectors.EVENT_READ)
            selector.register(far, selectors.EVENT_READ)
            while self.passed < self._limit:
                ready = [key.fileobj for key, _ in selector.select(LIMIT)]
                if not ready:
                    return
                if near in ready:
                    data = near.recv(65536)
                    if data:
                        far.sendall(data)
                    else:
                        selector.unregister(near)
                if far in ready:
                    data = far.recv(min(self._limit - self.passed, 65536))
                    if not data:
                        return
                    near.sendall(data)
                    self.passed += len(data)

    def finish(self) -> None:
        self._done.set()
        self._work.wait()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("what", ["closes", "resets", "stalls"])
def test_a_peer_that_goes_at_any_point(pki: Pki, version: str, what: str) -> None:
    """After 0, 1, 2 ... bytes of the handshake, and within the data."""
    creds = client_credentials(pki, protocols=[f"tls{version}"], disablereconnects=True)
    payload = bytes(5000)

    def answer(served: Any, channel: Any, *_: Any) -> None:
        with channel:
            channel.settimeout(LIMIT)
            channel.sendall(payload)

    whole = 0
    with serving(tls_server(pki.server, answer)) as served:
        relay = Relay(served.port, 1 << 30, "closes")
        with connect(relay.port, credentials=creds) as channel:
            assert channel.read() == payload
        relay.finish()
        whole = relay.passed
        points = [0, 1, 4, 5, 6, 100, 500]
        points += sorted(random.Random(what + version).sample(range(7, whole), 12))
        for limit in points:
            relay = Relay(served.port, limit, what)
            begin = time.monotonic()
            kinds = {
                "closes": (tls.TLSError,),
                "resets": (ConnectionResetError, BrokenPipeError, tls.TLSError),
                "stalls": (TimeoutError,),
            }[what]
            timeout = 0.15 if what == "stalls" else LIMIT
            got = b""
            with pytest.raises(kinds) as caught:
                with tls.tls_socket(
                    "localhost", relay.port, credentials=creds, timeout=timeout
                ) as channel:
                    while data := channel.recv(65536):
                        got += data
            # A cut is an error, never a clean end.
            assert payload.startswith(got)
            assert isinstance(caught.value, OSError)
            assert time.monotonic() - begin < 3 * LIMIT
            relay.finish()


def test_a_peer_that_stalls_is_bounded_everywhere(pki: Pki) -> None:
    with saying() as server:
        begin = time.monotonic()
        with pytest.raises(tls.TLSTimeoutError, match="timed out"):
            tls.tls_socket("localhost", server.port, timeout=0.1)
        assert 0.05 < time.monotonic() - begin < LIMIT
    with tls_pair(pki) as (here, _):
        here.settimeout(0.1)
        with pytest.raises(TimeoutError):
            here.recv(1)
        with pytest.raises(TimeoutError):
            while True:
                here.sendall(bytes(1 << 20))
        begin = time.monotonic()
        here.abort()
        assert time.monotonic() - begin < 1


# --- certificates and keys


def store_of(**source: Any) -> Any:
    return tls.cert_temporary_store(**source)


def test_a_server_without_a_key(pki: Pki) -> None:
    with store_of(pem=pki.server.chain_pem) as store:
        cert = tls.cert_store_find_certificate(store, "any")
        with pytest.raises(ValueError, match="private key"):
            tls.sspi_schannel_credentials(certificates=[cert])
        with pytest.raises(ValueError, match="private key"):
            tls.sspi_schannel_credentials(certificates=store)


def test_a_key_of_another_certificate(pki: Pki) -> None:
    with pytest.raises((tls.TLSError, ValueError)) as caught:
        with store_of(pem=pki.server.chain_pem + pki.client.key_pem) as store:
            tls.sspi_schannel_credentials(certificates=store)
    assert "key" in str(caught.value)


def test_an_encrypted_key(pki: Pki) -> None:
    pem = pki.server.chain_pem + pki.server.encrypted_key.read_bytes()
    for password in (None, "wrong"):
        with pytest.raises((tls.TLSError, ValueError), match="(?i)password|encrypted"):
            store_of(pem=pem, password=password)
    with store_of(pem=pem, password=PFX_PASSWORD) as store:
        assert tls.cert_store_find_certificate(store, "has_private_key") is not None


def test_a_pfx_with_the_wrong_password(pki: Pki) -> None:
    for password in (None, "", "wrong"):
        with pytest.raises((tls.TLSError, ValueError), match="(?i)password"):
            store_of(pfx=pki.server.pfx_bytes, password=password)


@pytest.mark.parametrize("kind", ["pem", "pfx", "pkcs7", "serialized"])
@pytest.mark.parametrize("data", [b"", b"nonsense", bytes(1000)])
def test_no_certificates_at_all(kind: str, data: bytes) -> None:
    with pytest.raises((tls.TLSError, ValueError)):
        store_of(**{kind: data})


def test_files_that_are_no_bytes(pki: Pki) -> None:
    for data in (7, ["pem"]):
        with pytest.raises(TypeError):
            store_of(pem=data)
    with pytest.raises(tls.TLSError, match="PEM"):
        store_of(pem="/the/path/of/a/file.pem")


# --- callbacks that misbehave


def test_a_verifier_that_returns_a_coroutine_on_a_blocking_channel(pki: Pki) -> None:
    async def verify(channel: Any, context: Any) -> bool:
        return True

    with serving(tls_server(pki.server, answer_one_line)) as served:
        with pytest.raises(TypeError, match="coroutine.*blocking"):
            connect(served.port, pki, verifier=verify)
        told = served.result()
        assert isinstance(told, Background)
        assert isinstance(told.error, tls.TLSError)
    gc.collect()  # filterwarnings: "never awaited" would be an error


def test_a_verifier_of_wrong_signature(pki: Pki) -> None:
    with serving(tls_server(pki.server, answer_one_line)) as served:
        with pytest.raises(TypeError, match="positional argument"):
            connect(served.port, pki, verifier=lambda: True)
        served.result()


def test_a_callback_of_wrong_signature(pki: Pki) -> None:
    def start(served: Any) -> Any:
        return tls.tls_socket(
            0,
            server=lambda channel: channel.close(),
            credentials=server_credentials(pki.server),
            myaddr=HOST,
        )

    with serving(start) as served:
        with connect(served.port, pki) as channel:
            told = served.result()
            assert isinstance(told, Background)
            assert isinstance(told.error, TypeError)
            assert channel.recv(1) == b""


def test_a_client_certificate_chooser_that_misbehaves(pki: Pki) -> None:
    class Odd(Exception):
        pass

    def raising(*_: Any) -> Any:
        raise Odd

    for chooser, kind in ((raising, Odd), (lambda *_: 7, TypeError)):
        creds = client_credentials(pki, clientcertificate=chooser)
        options = {"requestclientcert": True}
        with serving(tls_server(pki.server, answer_one_line, **options)) as served:
            with pytest.raises(kind):
                connect(served.port, credentials=creds)
            told = served.result()
            assert isinstance(told, Background)


class Liar:
    """A transport that breaks its promises."""

    def __init__(self, **lies: Any) -> None:
        self.lies = lies
        self.closed = 0

    def recv(self, n: int) -> Any:
        return self.lies.get("recv", b"")

    def send(self, data: bytes) -> Any:
        return self.lies.get("send", len(data))

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("lies", "kind"),
    [
        ({"recv": "text"}, TypeError),
        ({"recv": 7}, TypeError),
        ({"recv": bytes(1 << 20)}, ValueError),
        ({"send": "all"}, TypeError),
        ({"send": 10**9}, ValueError),
        ({"send": -1}, ValueError),
        ({"send": None}, TypeError),
        ({"send": 0}, ValueError),
    ],
    ids=lambda value: repr(value)[:40],  # Windows bounds the environment
)
def test_a_transport_that_lies(pki: Pki, lies: Any, kind: Any) -> None:
    liar = Liar(**lies)
    begin = time.monotonic()
    with pytest.raises(kind):
        tls.starttls(liar, peersubject="localhost", credentials=client_credentials(pki))
    assert time.monotonic() - begin < LIMIT
    assert liar.closed == 1


def test_a_transport_whose_methods_raise(pki: Pki) -> None:
    class Odd(Exception):
        pass

    class Raising(Liar):
        def recv(self, n: int) -> Any:
            raise Odd("in recv")

        def close(self) -> None:
            super().close()
            raise Odd("in close")

    liar = Raising()
    with pytest.raises(Odd, match="in recv"):
        tls.starttls(liar, peersubject="localhost", credentials=client_credentials(pki))
    assert liar.closed == 1


# --- nothing is left


def test_failures_leave_nothing(pki: Pki) -> None:
    """Many of each; descriptors are conftest's, objects are counted here."""

    def channels() -> int:
        gc.collect()
        return sum(isinstance(thing, tls.TlsChannel) for thing in gc.get_objects())

    creds = client_credentials(pki)
    before = channels()

    def one(number: int) -> None:
        with saying(b"HTTP/1.1 200 OK\r\n\r\n") as server:
            with pytest.raises(tls.TLSError):
                connect(server.port, credentials=creds)
        one, other = tcp_pair()
        with other:
            with pytest.raises(ValueError):
                tls.starttls(one)
        with pytest.raises(TypeError):
            tls.tls_socket("localhost", 1, socketcmd=lambda *_, **__: number)

    for number in range(20):
        one(number)
    assert channels() == before


def test_failures_on_the_loop_leave_nothing(pki: Pki) -> None:
    reports: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, told: reports.append(str(told["exception"]))
        )
        creds = server_credentials(pki.server)
        with tls.tls_socket(0, server=print, credentials=creds, myaddr=HOST) as listener:
            for _ in range(50):
                with socket.create_connection(listener.getsockname(), LIMIT) as client:
                    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            end = time.monotonic() + LIMIT
            while len(reports) < 50 and time.monotonic() < end:
                await asyncio.sleep(0.01)
            assert listener._unfinished == set()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    gc.collect()
    assert len(reports) == 50
    assert not [t for t in gc.get_objects() if isinstance(t, tls.TlsChannel) and not t.closed]


def test_run_is_bounded_and_checks() -> None:
    """channels.run fails when something reached the loop's handler."""

    async def main() -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "x"})

    with pytest.raises(AssertionError):
        run(main())


# --- the wrong thing in the wrong place: TypeError, and nothing of the inside


def handles() -> dict[str, list[Callable[[Any], object]]]:
    """By what it wants: each function whose first argument is a handle."""
    return {
        "Certificate": [
            tls.cert_duplicate,
            tls.cert_export,
            tls.cert_info,
            tls.cert_issuer_name,
            tls.cert_release,
            tls.cert_subject_name,
            tls.cert_thumbprint,
            tls.cert_tls_verify,
            lambda thing: tls.cert_store_add_certificate(tls.cert_temporary_store(), thing),
        ],
        "Store": [
            tls.cert_store_export_pem,
            tls.cert_store_export_pkcs7,
            tls.cert_store_find_certificate,
            tls.cert_store_iterate,
            tls.cert_store_release,
            tls.cert_store_serialize,
            lambda thing: tls.cert_store_add_encoded_certificate(thing, b""),
        ],
        "Credentials": [
            tls.sspi_client_context,
            tls.sspi_free_credentials,
            tls.sspi_server_context,
        ],
        "SspiContext": [
            tls.sspi_connection_facts,
            tls.sspi_context_features,
            tls.sspi_delete_context,
            tls.sspi_issuers_accepted_by_peer,
            tls.sspi_local_cert,
            tls.sspi_remote_cert,
            tls.sspi_shutdown_context,
            tls.sspi_step,
            lambda thing: tls.sspi_decrypt_stream(thing, b""),
            lambda thing: tls.sspi_encrypt_stream(thing, b""),
        ],
    }


@pytest.mark.parametrize("wanted", sorted(handles()))
@pytest.mark.parametrize(
    "thing", [None, 3, "text", b"-----BEGIN PRIVATE KEY-----", [], memoryview(b"x"), object(), int]
)
def test_what_is_no_handle_is_a_type_error_that_names_the_type(wanted: str, thing: object) -> None:
    for function in handles()[wanted]:
        with pytest.raises(TypeError, match=wanted) as caught:
            function(thing)
        assert type(thing).__name__ in str(caught.value)
        assert "PRIVATE" not in str(caught.value), "what may be a key is not repeated"


def test_handles_of_one_sort_are_no_handles_of_another(pki: Pki) -> None:
    store = tls.cert_temporary_store(pem=pki.root.read_bytes())
    credentials = client_credentials(pki)
    things = {
        "Certificate": tls.cert_import(pki.root.read_bytes()),
        "Store": store,
        "Credentials": credentials,
        "SspiContext": tls.sspi_client_context(credentials, "localhost"),
    }
    for wanted, functions in handles().items():
        for kind, thing in things.items():
            for function in functions if kind != wanted else ():
                with pytest.raises(TypeError, match=f"{wanted}, not {kind}"):
                    function(thing)
    assert not credentials.freed
    assert len(store) == 1


def test_a_channel_in_place_of_its_context_is_told_where_that_is(pki: Pki) -> None:
    with (
        tls_pair(pki) as (near, _),
        pytest.raises(TypeError, match=r"TlsChannel .*channel\.context"),
    ):
        tls.sspi_remote_cert(near)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, "", "no", 2, []])
@pytest.mark.parametrize("name", ["validateservercert", "commonname", "disablereconnects"])
def test_no_switch_of_verification_is_turned_by_accident(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        tls.sspi_schannel_credentials(**{name: value})


def test_nor_of_contexts_and_certificates(pki: Pki) -> None:
    cert = tls.cert_import(pki.root.read_bytes())
    with pytest.raises(TypeError, match="exclusiveroots"):
        tls.cert_tls_verify(cert, exclusiveroots=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="manualvalidation"):
        tls.sspi_client_context(client_credentials(pki), "localhost", "no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="usageall must be strings"):
        tls.cert_tls_verify(cert, usageall=[1])  # type: ignore[list-item]


TIMES: list[tuple[Any, type[Exception]]] = [
    (float("nan"), ValueError),
    (-1, ValueError),
    (float("inf"), ValueError),
    (2**63, ValueError),
    (10**400, ValueError),
    ("3", TypeError),
]


@pytest.mark.parametrize(("value", "kind"), TIMES, ids=lambda value: str(value)[:9])
def test_times(value: Any, kind: type[Exception], pki: Pki) -> None:
    cert = tls.cert_import(pki.root.read_bytes())
    with tls_pair(pki) as (near, far):
        for call in (
            lambda: near.settimeout(value),
            lambda: tls.sspi_schannel_credentials(fetchtimeout=value),
            lambda: tls.cert_tls_verify(cert, fetchtimeout=value),
            lambda: tls.cert_fetch(HOST, 1, timeout=value),
            lambda: tls.tls_socket(HOST, 1, timeout=value),
        ):
            with pytest.raises(kind, match=r"timeout|seconds"):
                call()


@pytest.mark.parametrize("value", [1.5, float("nan"), "1"])
def test_a_lifespan_is_whole_milliseconds(value: Any) -> None:
    with pytest.raises(TypeError, match="sessionlifespan"):
        tls.sspi_schannel_credentials(sessionlifespan=value)


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        (-1, ValueError),
        (65536, ValueError),
        (2**63, ValueError),
        ("no-such-service", ValueError),
        ("a\0b", ValueError),
        ("\ud800", ValueError),
        (None, TypeError),
        (1.5, TypeError),
        (True, TypeError),
    ],
)
def test_ports(port: Any, kind: type[Exception]) -> None:
    async def listen() -> None:
        tls.socket_command(port, server=print)

    for call in (
        lambda: tls.cert_fetch(HOST, port),
        lambda: tls.socket_command(HOST, port),
        lambda: tls.tls_socket(HOST, port),
        lambda: run(listen()),
    ):
        with pytest.raises(kind, match="port"):
            call()


def test_the_socket_command_says_what_it_takes() -> None:
    with pytest.raises(TypeError, match="host and port"):
        tls.socket_command(HOST)
    with pytest.raises(TypeError, match="callable"):
        tls.socket_command(0, server="no callback")  # type: ignore[arg-type]


def test_a_loop_that_is_none() -> None:
    with pytest.raises(TypeError, match="event loop, not str"):
        tls.tls_socket(0, server=print, credentials=lambda *_: None, loop="loop")  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [3, True, 2**31, [65, 66], object()])
def test_puts_takes_bytes_and_nothing_that_bytes_can_be_made_of(data: Any, pki: Pki) -> None:
    with tls_pair(pki) as (near, far):
        far.settimeout(LIMIT)
        with pytest.raises(TypeError):
            near.puts(data)
        near.puts(bytearray(b"line"))
        near.flush()
        assert far.gets() == b"line"


@pytest.mark.parametrize("names", [[3], [True], [None], [[104, 50]], 3, b"h2".hex])
def test_alpn_names_are_text_or_bytes(names: Any) -> None:
    with pytest.raises(TypeError):
        tls.sspi_schannel_credentials(alpn=names)
    with pytest.raises(TypeError):
        tls.tls_socket(HOST, 1, alpn=names)


def test_a_copy_to_what_cannot_take_it_loses_nothing(pki: Pki) -> None:
    with tls_pair(pki) as (gone, _):
        gone.close()
    with tls_pair(pki) as (near, far):
        far.sendall(b"data")
        near.settimeout(LIMIT)
        with pytest.raises(TypeError, match="sendall"):
            near.copy_to(None)
        with pytest.raises(tls.TLSClosedError):
            near.copy_to(gone)
        assert near.read(4) == b"data"


def test_channels_are_neither_copied_nor_pickled(pki: Pki) -> None:
    with tls_pair(pki) as (near, far):
        for call in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="TlsChannel cannot be copied or pickled"):
                call(near)
        near.sendall(b"x")
        assert far.recv(1) == b"x"


@pytest.mark.parametrize("cause", [KeyboardInterrupt, ValueError])
def test_what_ended_the_body_is_raised_and_not_what_close_met(
    cause: type[BaseException], pki: Pki
) -> None:
    def body(near: tls.Channel, far: tls.Channel) -> None:
        with near:
            near.configure(buffering="full")
            far.abort()
            # What cannot be sent any more: the peer's end has answered a
            # first record with a reset.
            with pytest.raises(OSError, match=r"reset|pipe"):
                while True:
                    near.sendall(b"x" * 65536)
            near.configure(buffering="full")
            raise cause("the body's")

    with tls_pair(pki) as (near, far):
        with pytest.raises(cause, match="the body's"):
            body(near, far)
        assert near.closed


def test_a_forgotten_channel_gives_up_its_connection_attempt() -> None:
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(LIMIT)
        channel = tls.tls_socket(HOST, listener.getsockname()[1], async_=True)
        sock, _ = listener.accept()
        with sock, pytest.warns(ResourceWarning, match="unclosed channel"):
            del channel
            gc.collect()
        # no warning of a socket that nobody here ever saw: filterwarnings


# --- closing ends, whatever a method below raises or calls


class Transport:
    """A transport over a socket; ``sending`` and ``receiving`` come before each call."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sending: Callable[[], Any] = int
        self.receiving: Callable[[], Any] = int

    def recv(self, n: int) -> bytes:
        self.receiving()
        return self.sock.recv(n)

    def send(self, data: bytes) -> int:
        self.sending()
        return self.sock.send(data)

    def close(self) -> None:
        self.sock.close()


@contextmanager
def over_an_object(pki: Pki) -> Iterator[tuple[tls.TlsChannel, Transport]]:
    """A client's channel over a Transport; its server echoes."""
    near, far = tcp_pair()
    for sock in (near, far):
        sock.settimeout(LIMIT)

    def serve() -> None:
        credentials = server_credentials(pki.server)
        with (
            suppress(OSError),  # the client's end is a rough one
            tls.starttls(far, server=True, credentials=credentials) as channel,
        ):
            while data := channel.recv(100):
                channel.sendall(data)

    work = Work(serve)
    transport = Transport(near)
    channel = tls.starttls(transport, peersubject="localhost", credentials=client_credentials(pki))
    yield channel, transport
    assert near.fileno() == -1, "the transport was not closed"
    work.result()


def interrupt() -> None:
    raise KeyboardInterrupt


def divide() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("trouble", "kind"), [(interrupt, KeyboardInterrupt), (divide, ZeroDivisionError)]
)
def test_close_closes_whatever_the_flush_raises(
    trouble: Callable[[], Any], kind: type[BaseException], pki: Pki
) -> None:
    with over_an_object(pki) as (channel, transport):
        channel.configure(buffering="full")
        channel.write(b"waits in the buffer")
        transport.sending = trouble
        with pytest.raises(kind):
            channel.close()
        assert channel.closed


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no setitimer()")
def test_ctrl_c_in_a_close_that_waits_leaves_no_descriptor(pki: Pki) -> None:
    with tls_pair(pki) as (near, there):
        near.setblocking(False)
        clog(near, there)
        near.setblocking(True)
        descriptor = near.fileno()
        before = signal.signal(signal.SIGALRM, lambda *_: interrupt())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                near.close()  # nobody reads: it would wait for CLOSE_TIMEOUT
            assert time.monotonic() - began < 4
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(descriptor)


def test_a_transport_that_calls_its_channel_is_no_deadlock(pki: Pki) -> None:
    with over_an_object(pki) as (channel, transport):
        for name in ("recv", "gets"):
            call: Callable[..., Any] = getattr(channel, name)
            transport.receiving = (lambda c: lambda: c(1))(call) if name == "recv" else call
            with pytest.raises(RecursionError):
                channel.recv(1)
        transport.receiving = int
        transport.sending = channel.close
        with pytest.raises((OSError, ValueError)):
            channel.sendall(b"x")
        assert channel.closed
