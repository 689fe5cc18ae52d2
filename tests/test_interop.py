"""Our client and our server against other people's TLS, on loopback.

Each test is one promise for one peer and one version; ``make interop`` turns
what passed into the table ``interop.md``. The peers run as they were shipped,
each in both roles where it has both.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any

import peers
import pytest
from certs import Pki
from interop_support import (
    CLIENTS,
    MEGABYTE,
    OTHER,
    PATIENCE,
    SERVERS,
    connect,
    exchange,
    facts,
    http,
    our_server,
    printed,
    run_client,
    run_python_client,
    serve,
    sha256,
    work_for,
)
from twapi_support import certificate, client_credentials, verify_true

import twapi_tls as tls

pytestmark = [pytest.mark.peers, pytest.mark.timeout(60)]

server_peer = pytest.mark.parametrize("peer", SERVERS)
client_peer = pytest.mark.parametrize("peer", CLIENTS)
versions = pytest.mark.parametrize("version", ["1.2", "1.3"])


@server_peer
@versions
def test_client_transfers(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """1 MB each way, equal hashes; the protocol is the one asked for"""
    with serve(peer, pki.server, tmp_path, version=version) as running:
        with connect(running, credentials=client_credentials(pki)) as channel:
            assert facts(channel).protocol == f"TLS {version}"
            there, here = exchange(peer, running, channel, MEGABYTE)
    assert sha256(there) == sha256(MEGABYTE)
    assert sha256(here) == sha256(MEGABYTE)


@server_peer
@versions
def test_client_refuses(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """A server's certificate of an unknown root is refused; the server's handshake fails"""
    with serve(peer, pki.untrusted, tmp_path, version=version) as running:
        with pytest.raises(tls.TLSVerificationError) as caught:
            connect(running, credentials=client_credentials(pki))
        assert caught.value.name == "SEC_E_UNTRUSTED_ROOT"
        assert caught.value.alert_sent == "unknown_ca"
        if peer == "python":
            running.wait_for(lambda server: server.errors)
            assert "UNKNOWN_CA" in str(running.errors[0])
        else:
            # gnutls-serv tells no names. In TLS 1.3 OpenSSL 3.0 sends a client's
            # alert in the clear before its Finished; GnuTLS wants it encrypted.
            running.expect(rb"unknown ca|fatal alert has been received|Decryption has failed")


@server_peer
@versions
def test_client_certificate(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """A client certificate is required, and given"""
    with serve(
        peer, pki.server, tmp_path, version=version, client_ca=pki.root, require_client=True
    ) as running:
        with connect(running, credentials=client_credentials(pki, pki.client)) as channel:
            there, here = exchange(peer, running, channel)
            assert there == here == b"<123>\n"
            if peer == "nginx":
                assert http(channel, b"GET /facts HTTP/1.1").endswith(b" SUCCESS\n")
            elif peer == "python":
                assert running.accepted[0].peer_certificate == pki.client.leaf_der


@server_peer
@versions
def test_client_certificate_missing(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """A client certificate is required, and not given: an error that says so"""
    with serve(
        peer, pki.server, tmp_path, version=version, client_ca=pki.root, require_client=True
    ) as running:
        if peer == "nginx":
            # It answers in HTTP: the handshake goes through.
            with connect(running, credentials=client_credentials(pki)) as channel:
                channel.sendall(b"GET /facts HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert channel.recv(12) == b"HTTP/1.1 400"
            return
        with pytest.raises(tls.TLSAlertError) as caught:
            with connect(running, credentials=client_credentials(pki)) as channel:
                # TLS 1.3: the server judges after our last flight.
                assert version == "1.3"
                channel.recv(1)
        expected = "certificate_required" if version == "1.3" else "handshake_failure"
        if peer == "gnutls":
            # Its word for it in TLS 1.2, to other clients as well.
            assert caught.value.alert_received in (expected, "decode_error")
        else:
            assert caught.value.alert_received == expected


@server_peer
@versions
def test_client_certificate_refused(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """A client certificate of another root is given: the server's alert is named"""
    with serve(
        peer, pki.server, tmp_path, version=version, client_ca=pki.root, require_client=True
    ) as running:
        mine = client_credentials(pki, pki.untrusted)
        if peer == "nginx":
            with connect(running, credentials=mine) as channel:
                channel.sendall(b"GET /facts HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert channel.recv(12) == b"HTTP/1.1 400"
            return
        with pytest.raises(tls.TLSAlertError) as caught:
            with connect(running, credentials=mine) as channel:
                assert version == "1.3"
                channel.recv(1)
        assert caught.value.alert_received in {
            "unknown_ca",
            "bad_certificate",
            "certificate_unknown",
            "access_denied",  # GnuTLS's
        }


@server_peer
@versions
def test_client_alpn(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """ALPN: the one both know is agreed on"""
    with serve(peer, pki.server, tmp_path, version=version, alpn=["http/1.1", "imap"]) as running:
        credentials = client_credentials(pki, alpn=["spdy/3", "http/1.1"])
        with connect(running, credentials=credentials) as channel:
            assert facts(channel).alpn == b"http/1.1"
            exchange(peer, running, channel)


@server_peer
@versions
def test_client_sni(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """SNI: a server with two certificates shows the one asked for"""
    with serve(peer, pki.server, tmp_path, version=version, other=pki.wrong_name) as running:
        for name, identity in (("localhost", pki.server), (OTHER, pki.wrong_name)):
            with connect(
                running,
                credentials=client_credentials(pki),
                peersubject=name,
                verifier=verify_true,
            ) as channel:
                assert facts(channel).sni == name
                with tls.sspi_remote_cert(channel.cget("context")) as shown:
                    assert tls.cert_export(shown, "der") == identity.leaf_der


@server_peer
@versions
def test_client_resumes(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """The second connection resumes the first one's session, and says so"""
    with serve(peer, pki.server, tmp_path, version=version) as running:
        credentials = client_credentials(pki)
        for resumed in (False, True):
            with connect(running, credentials=credentials) as channel:
                exchange(peer, running, channel)  # TLS 1.3: takes the ticket in
                assert facts(channel).resumed is resumed
                if peer == "nginx":
                    told = http(channel, b"GET /facts HTTP/1.1").split()[2]
                    assert told == (b"r" if resumed else b".")
        if peer == "python":
            assert [seen.resumed for seen in running.accepted] == [False, True]


@server_peer
@versions
def test_client_resumption_off(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """disablereconnects: the second connection is a new session"""
    with serve(peer, pki.server, tmp_path, version=version) as running:
        credentials = client_credentials(pki, disablereconnects=True)
        for _ in range(2):
            with connect(running, credentials=credentials) as channel:
                exchange(peer, running, channel)
                assert facts(channel).resumed is False


# --- peers that connect


@client_peer
@versions
def test_server_transfers(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """1 MB each way, equal hashes; the protocol is the one asked for"""
    with our_server(pki.server, work_for(peer)) as served:
        back, _ = run_client(peer, served.port, pki, tmp_path, version=version, data=MEGABYTE)
        assert served.result().protocol == f"TLS {version}"
        assert isinstance(served.result(), tls.TlsChannel)
    assert sha256(back) == sha256(MEGABYTE)


@client_peer
@versions
def test_server_is_refused(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """A client refuses our certificate: its alert is named"""
    with our_server(pki.untrusted, work_for(peer)) as served:
        with pytest.raises((peers.PeerError, ssl.SSLCertVerificationError)):
            run_client(peer, served.port, pki, tmp_path, version=version)
        outcome = served.result()
        if isinstance(outcome, tls.ConnectionFacts):
            # gnutls-cli judges after its own Finished.
            assert peer == "gnutls"
            outcome = served.result()
        else:
            outcome = outcome.error
        assert isinstance(outcome, tls.TLSAlertError), repr(outcome)
        assert outcome.alert_received in {
            "unknown_ca",
            "bad_certificate",
            "certificate_unknown",
        }


@client_peer
@versions
def test_server_asks_certificate(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """A client certificate is asked for and given; the verifier sees it"""
    seen: list[bytes] = []

    def verify(channel: Any, context: Any) -> bool:
        with tls.sspi_remote_cert(context) as cert:
            seen.append(tls.cert_export(cert, "der"))
            root = tls.cert_import(pki.root_pem)
            verdict = tls.cert_tls_verify(cert, trustedroots=[root], revocationcheck="none")
            return verdict == "ok"

    with our_server(pki.server, work_for(peer), requestclientcert=True, verifier=verify) as served:
        back, _ = run_client(peer, served.port, pki, tmp_path, version=version, identity=pki.client)
    assert back == b"<123>\n"
    assert seen == [pki.client.leaf_der]


@client_peer
@versions
def test_server_refuses_certificate(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """A client certificate is asked for, given and refused: the client gets an alert"""

    def verify(channel: Any, context: Any) -> bool:
        return False

    with our_server(pki.server, work_for(peer), requestclientcert=True, verifier=verify) as served:
        with pytest.raises((peers.PeerError, ssl.SSLError)) as caught:
            run_client(peer, served.port, pki, tmp_path, version=version, identity=pki.client)
        assert "alert" in str(caught.value).lower()
        refused = served.result().error
        assert refused.errorcode == ("TWAPI", "TLS", "VERIFYFAIL")


@client_peer
@versions
def test_server_asks_no_certificate_given(
    peer: str, version: str, pki: Pki, tmp_path: Path
) -> None:
    """A client certificate is asked for, not given, and let pass"""
    names: list[str] = []

    def verify(channel: Any, context: Any) -> bool:
        with pytest.raises(tls.TLSError) as caught:
            tls.sspi_remote_cert(context)
        names.append(caught.value.name)
        return True

    with our_server(pki.server, work_for(peer), requestclientcert=True, verifier=verify) as served:
        back, _ = run_client(peer, served.port, pki, tmp_path, version=version)
    assert back == b"<123>\n"
    assert names == ["SEC_E_NO_CREDENTIALS"]


@client_peer
@versions
def test_server_alpn(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """ALPN: the one both know is agreed on"""
    with our_server(pki.server, work_for(peer), config={"alpn": ["imap", "http/1.1"]}) as served:
        _, output = run_client(
            peer, served.port, pki, tmp_path, version=version, alpn=["spdy/3", "http/1.1"]
        )
        assert served.result().alpn == b"http/1.1"
    assert re.search(r"(?i)(ALPN|application protocol)\W.*http/1\.1", output)


@client_peer
@versions
def test_server_sni(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """SNI: our server shows the certificate of the name that was asked for"""
    credentials = tls.sspi_acquire_credentials(
        role="server",
        credentials=tls.sspi_schannel_credentials(
            certificates=[certificate(pki.server), certificate(pki.wrong_name)]
        ),
    )

    def choose(name: str, alpn: list[bytes], versions: list[int]) -> tls.Credentials:
        return credentials

    for chooser in (credentials, choose):
        with our_server(chooser, work_for(peer)) as served:  # type: ignore[arg-type]
            for name in ("localhost", OTHER):
                # The client verifies the name: another certificate would not do.
                run_client(peer, served.port, pki, tmp_path, version=version, name=name)
                assert served.result().sni == name
                assert isinstance(served.result(), tls.TlsChannel)


def resume(peer: str, port: int, pki: Pki, folder: Path, version: str, expected: bool) -> None:
    """Two connections of one client; with ``expected`` it must say: resumed.

    Otherwise it may say that there is no session to come back with.
    """
    options: dict[str, Any] = {"ca": pki.root, "version": version}
    if peer == "openssl":
        session = folder / "session.pem"
        for word in ("-sess_out", "-sess_in"):
            arguments = [word, str(session)] if word == "-sess_out" or session.exists() else []
            with peers.openssl_client(port, arguments=arguments, **options) as client:
                client.send(b"<123>\n")
                # What comes back comes after the tickets.
                assert printed(client, 6) == b"<123>\n"
                client.send(b"Q\n")
                client.wait(PATIENCE)
                if word == "-sess_in":
                    said = b"Reused, TLSv" in client.output
    elif peer == "gnutls":
        arguments = ["--resume", "--waitresumption"] if expected else ["--resume"]
        with peers.gnutls_client(port, arguments=arguments, **options) as client:
            client.expect(rb"Connecting again", PATIENCE)
            client.expect(rb"Simple Client Mode", PATIENCE)
            client.send(b"<123>\n")
            assert printed(client, 6) == b"<123>\n"
            client.close_stdin()
            client.wait(PATIENCE)
            said = b"This is a resumed session" in client.output
    elif peer == "python":
        context = peers.ssl_client_context(pki.root, version=version)
        session = run_python_client(port, context, "localhost", b"<123>\n")[3]
        said = run_python_client(port, context, "localhost", b"<123>\n", session)[2]
    else:
        url = f"https://localhost:{port}/again"
        arguments = ["--verbose", url]
        with peers.curl(port, arguments=arguments, **options) as client:
            assert client.wait(PATIENCE) == 0, client.output
        said = expected  # curl does not tell
    assert said is expected


@client_peer
@versions
def test_server_resumes(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """A client's second connection resumes the session; both ends say so"""
    with our_server(pki.server, work_for(peer)) as served:
        resume(peer, served.port, pki, tmp_path, version, True)
        reports = [served.result() for _ in range(4)]
        resumed = [seen.resumed for seen in reports if isinstance(seen, tls.ConnectionFacts)]
    assert resumed == [False, True]


@client_peer
@versions
def test_server_resumption_off(peer: str, version: str, pki: Pki, tmp_path: Path) -> None:
    """disablereconnects: no session of ours is resumed"""
    with our_server(pki.server, work_for(peer), config={"disablereconnects": True}) as served:
        resume(peer, served.port, pki, tmp_path, version, False)
        reports = [served.result() for _ in range(4)]
        resumed = [seen.resumed for seen in reports if isinstance(seen, tls.ConnectionFacts)]
    assert resumed == [False, False]
