"""TWAPI's tls.test, ported: tls-client-openssl-* and tls-server-openssl-*.

The peers are ``openssl s_server`` and ``openssl s_client``, as in the original.
See PORTED.md for what became of each.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import peers
import pytest
from certs import Pki
from twapi_support import (
    HOST,
    LIMIT,
    NO_CREDENTIALS,
    UNTRUSTED_ROOT,
    client_credentials,
    server_credentials,
    status_of,
    verify_true,
    wait,
)

import twapi_tls as tls

pytestmark = [pytest.mark.timeout(30), pytest.mark.peers]

ONCE_REVERSED = ["-naccept", "1", "-rev"]
WORKED = re.compile(rb"(?s)CONNECTION ESTABLISHED.*CONNECTION CLOSED")
# BEGIN SSL SESSION PARAMETERS and the like follow a handshake that was finished.
FAILED = re.compile(rb"CONNECTION FAILURE")


class StatusError(Exception):
    """What ``openssl_verify`` raises for anything but ok."""

    def __init__(self, status: str) -> None:
        super().__init__(f"Verification failed with status {status}")
        self.errorcode = ("TLS", status)


def openssl_verify(pki: Pki, name: str | None) -> Any:
    def verify(channel: Any, context: Any) -> bool:
        with tls.sspi_remote_cert(context) as cert:
            status = status_of(pki, cert, name)
        if status != "ok":
            raise StatusError(status)
        return True

    return verify


def connect(peer: peers.Peer, **options: Any) -> Any:
    return tls.tls_socket(HOST, peer.port, timeout=LIMIT, **options)


def output_of(peer: peers.Peer) -> bytes:
    """What the program printed by its end; with -naccept 1 it ends by itself."""
    peer.wait(LIMIT)
    return peer.output


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_client_openssl_1_0(pki: Pki, version: str) -> None:
    """tls-client-openssl-1.0: a verifier against a CA of ours."""
    with peers.openssl_server(pki.server, version=version, arguments=ONCE_REVERSED) as peer:
        with connect(peer, verifier=openssl_verify(pki, "localhost")) as channel:
            channel.puts(b"abcd")
            channel.flush()
            assert channel.gets() == b"dcba"
        assert WORKED.search(output_of(peer))


def test_tls_client_openssl_1_0_1(pki: Pki) -> None:
    """tls-client-openssl-1.0.1: one message as long as s_server can take."""
    data = (b"abcdefghij" * 1640)[:16382]
    with peers.openssl_server(pki.server, arguments=ONCE_REVERSED) as peer:
        with connect(peer, verifier=openssl_verify(pki, "localhost")) as channel:
            # s_server -rev answers a line: with its end it fills the buffer
            channel.puts(data)
            channel.flush()
            assert channel.gets() == data[::-1]
        assert WORKED.search(output_of(peer))


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_client_openssl_1_1(pki: Pki, version: str) -> None:
    """tls-client-openssl-1.1: the verifier finds another name."""
    with peers.openssl_server(pki.server, version=version, arguments=ONCE_REVERSED) as peer:
        with pytest.raises(StatusError) as caught:
            connect(peer, verifier=openssl_verify(pki, "www.notsimple.org"))
        assert caught.value.errorcode == ("TLS", "cnmatch")
        output = output_of(peer)
    # The original's server had an established connection; the verdict comes
    # before our Finished now, and the server is told.
    assert FAILED.search(output)
    assert not WORKED.search(output)
    assert b"alert" in output


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_client_openssl_2_0(pki: Pki, version: str) -> None:
    """tls-client-openssl-2.0: no verifier, and a root that nobody knows."""
    with peers.openssl_server(pki.server, version=version, arguments=ONCE_REVERSED) as peer:
        with pytest.raises(tls.TLSVerificationError) as caught:
            connect(peer)
        assert caught.value.code == UNTRUSTED_ROOT
        output = output_of(peer)
    assert FAILED.search(output)
    assert b"alert unknown ca" in output


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_client_openssl_3_0(pki: Pki, version: str) -> None:
    """tls-client-openssl-3.0: a client certificate is required, and given."""
    with peers.openssl_server(
        pki.server,
        version=version,
        client_ca=pki.root,
        require_client=True,
        arguments=ONCE_REVERSED,
    ) as peer:
        credentials = client_credentials(pki, pki.client)
        with connect(peer, credentials=credentials, verifier=verify_true) as channel:
            channel.puts(b"1234")
            channel.flush()
            assert channel.gets() == b"4321"
        tls.sspi_free_credentials(credentials)
        output = output_of(peer)
    assert WORKED.search(output)
    assert re.search(rb"Peer certificate: .*CN ?= ?A client", output)


def refused_without_certificate(pki: Pki, version: str) -> tuple[Any, bytes]:
    """What was raised, connecting or by the first read; what the server printed."""
    with peers.openssl_server(
        pki.server,
        version=version,
        client_ca=pki.root,
        require_client=True,
        arguments=["-naccept", "1"],
    ) as peer:
        channel = None
        try:
            with pytest.raises(tls.TLSError) as caught:
                channel = connect(peer, verifier=verify_true)
                # TLS 1.3: a server judges after the client's last flight.
                assert version == "1.3"
                channel.recv(1)
        finally:
            if channel is not None:
                assert tls.tls_state(channel) == "CLOSED"
                channel.close()
        return caught.value, output_of(peer)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_client_openssl_3_1(pki: Pki, version: str) -> None:
    """tls-client-openssl-3.1: a client certificate is required, and not given."""
    error, output = refused_without_certificate(pki, version)
    # The original learns of an unexpected EOF; the alert says why.
    alert = {"1.2": "handshake_failure", "1.3": "certificate_required"}[version]
    assert isinstance(error, tls.TLSAlertError)
    assert error.alert_received == alert
    assert error.alert == alert
    assert b"peer did not return a certificate" in output


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_client_openssl_3_2(pki: Pki, version: str) -> None:
    """tls-client-openssl-3.2: a client certificate is asked for, and not given."""
    with peers.openssl_server(
        pki.server, version=version, client_ca=pki.root, arguments=ONCE_REVERSED
    ) as peer:
        with connect(peer, verifier=verify_true) as channel:
            channel.puts(b"1234")
            channel.flush()
            assert channel.gets() == b"4321"
        assert WORKED.search(output_of(peer))


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_client_openssl_4_0(pki: Pki, version: str) -> None:
    """tls-client-openssl-4.0: 500 messages, each 26 bytes longer."""
    with peers.openssl_server(pki.server, version=version, arguments=ONCE_REVERSED) as peer:
        with connect(peer, verifier=openssl_verify(pki, "localhost")) as channel:
            for count in range(1, 501):
                data = b"abcdefghijklmnopqrstuvwxyz" * count
                channel.puts(data)
                channel.flush()
                assert channel.gets() == data[::-1], f"answer {count}"
        assert WORKED.search(output_of(peer))


# --- we serve


def accept_one(pki: Pki, version: str, identity: Any) -> tuple[Any, list[Any], peers.Peer]:
    """A listener that asks for certificates, and s_client.

    The first outcome (a subject's name, or a background error), every channel
    that there was, and the client, which has ended.
    """
    channels: list[Any] = []

    def verify(channel: Any, context: Any) -> bool:
        channels.append(channel)
        assert tls.tls_state(channel) == "NEGOTIATING"
        verdict = openssl_verify(pki, None)(channel, context)
        assert isinstance(verdict, bool)
        return verdict

    async def main() -> tuple[Any, peers.Peer]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        background: list[Any] = []

        def failed(_: Any, context: dict[str, Any]) -> None:
            background.append(context["exception"])
            if not done.done():
                done.set_result(context["exception"])

        def accept(channel: Any, address: str, port: int) -> None:
            with channel, tls.sspi_remote_cert(channel.cget("context")) as cert:
                assert tls.tls_state(channel) == "OPEN"
                done.set_result(tls.cert_subject_name(cert))

        loop.set_exception_handler(failed)
        with tls.tls_socket(
            0,
            server=accept,
            credentials=server_credentials(pki.server),
            requestclientcert=True,
            verifier=verify,
            myaddr=HOST,
        ) as listener:
            port = listener.getsockname()[1]
            with peers.openssl_client(port, identity=identity, version=version) as peer:
                outcome = await wait(done)
                await asyncio.to_thread(peer.wait, LIMIT)
        assert len(background) <= 1, background
        return outcome, peer

    outcome, peer = asyncio.run(main())
    return outcome, channels, peer


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_server_openssl_1_0(pki: Pki, version: str) -> None:
    """tls-server-openssl-1.0: the client's certificate, asked for and given."""
    outcome, channels, peer = accept_one(pki, version, pki.client)
    assert outcome == "A client"
    assert len(channels) == 1
    assert peer.process.returncode == 0, peer.output.decode()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_server_openssl_1_1(pki: Pki, version: str) -> None:
    """tls-server-openssl-1.1: the client's certificate, asked for and not given."""
    outcome, channels, peer = accept_one(pki, version, None)
    assert isinstance(outcome, tls.TLSError)
    assert outcome.code == NO_CREDENTIALS
    assert outcome.name == "SEC_E_NO_CREDENTIALS"
    assert outcome.errorcode[:2] == ("TWAPI_WIN32", str(NO_CREDENTIALS))
    # No channel is left over, and the client was told.
    assert [channel.fileno() for channel in channels] == [-1]
    assert [tls.tls_state(channel) for channel in channels] == ["CLOSED"]
    assert b"alert" in peer.output
