"""``sspi_schannel_credentials`` and ``sspi_acquire_credentials``.

Every option is honoured, or raises; credentials live as long as somebody uses
them.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import peers
import pytest
from certs import Pki
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, rsa
from memory import (
    Connection,
    bytewise,
    client,
    connect,
    negotiate,
    roots,
    server,
    store_with,
    tell,
    whole,
)
from mint import CLIENT_AUTH, DAY, authority, mint
from platforms import WINE
from windows_native import contents, forget

import twapi_tls as tls
from twapi_tls import Credentials, SspiContext, TLSError

VERSIONS = pytest.mark.parametrize("version", ["tls1.2", "tls1.3"])


class World:
    def __init__(self) -> None:
        self.root = authority("Root")
        # Wine's servers send no intermediates.
        self.middle = self.root if WINE else authority("Intermediate", self.root)
        self.server = mint("server", self.middle, names=["localhost"])
        self.rsa = mint(
            "rsa server",
            self.middle,
            names=["localhost"],
            key=rsa.generate_private_key(65537, 2048),
            usage=["digital_signature", "key_encipherment"],
        )
        self.client = mint("A client", self.middle, eku=[CLIENT_AUTH])


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def facts(ours: Credentials, theirs: Credentials, **options: Any) -> tls.ConnectionFacts:
    with connect(ours, theirs, **options) as connection:
        assert connection.send(connection.client, b"x") == ("ok", b"x")
        return connection.client.facts()


def shown(connection: Connection) -> bytes:
    """The server's certificate; both ends say the same."""
    der = tls.sspi_remote_cert(connection.client).der()
    assert tls.sspi_local_cert(connection.server).der() == der
    return der


# --- acquiring and freeing


def test_packages() -> None:
    assert tls.sspi_enumerate_packages() == ["Microsoft Unified Security Protocol Provider"]
    for package in ("unisp", "schannel", "tls", "ssl", "Schannel", *tls.sspi_enumerate_packages()):
        tls.sspi_acquire_credentials(package).free()
    for package in ("NTLM", "Kerberos", "", "tls "):
        with pytest.raises(ValueError, match="bad package"):
            tls.sspi_acquire_credentials(package)


def test_roles(world: World) -> None:
    config = tls.sspi_schannel_credentials(store_with(world.server))
    for role, side in (
        ("client", "client"),
        ("outbound", "client"),
        ("server", "server"),
        ("inbound", "server"),
    ):
        with tls.sspi_acquire_credentials("tls", role, config) as credentials:
            assert credentials.role == side
            assert side in repr(credentials)
    for role in ("both", "", "Client"):
        with pytest.raises(ValueError, match="bad role"):
            tls.sspi_acquire_credentials("tls", role, config)
    with pytest.raises(ValueError, match="certificate with a private key"):
        tls.sspi_acquire_credentials("tls", "server")
    with pytest.raises(TypeError, match="sspi_schannel_credentials"):
        tls.sspi_acquire_credentials("tls", "client", {"certificates": ()})  # type: ignore[arg-type]


def test_a_role_is_not_used_for_the_other(world: World) -> None:
    ours, theirs = client(world.root), server(world.server)
    with pytest.raises(ValueError, match="client credentials"):
        tls.sspi_server_context(ours)
    with pytest.raises(ValueError, match="server credentials"):
        tls.sspi_client_context(theirs, "localhost")


@VERSIONS
def test_freeing_in_the_middle_hurts_nobody(world: World, version: str) -> None:
    """The handle, its certificates and stores go; what was begun goes on."""
    ours, theirs = client(world.root, world.client, protocols=version), server(world.server)
    ours_context = tls.sspi_client_context(ours, "localhost")
    theirs_context = tls.sspi_server_context(theirs, mutualauth=True)
    _, hello, _ = tls.sspi_step(ours_context)
    for credentials in (ours, theirs):
        tls.sspi_free_credentials(credentials)
        tls.sspi_free_credentials(credentials)
        assert credentials.freed and "freed" in repr(credentials)
    gc.collect()
    _, flight, left = tls.sspi_step(theirs_context, hello)
    assert not left
    status, answer, _ = tls.sspi_step(ours_context, flight)
    assert status == ("done" if version == "tls1.3" else "continue")
    status, last, _ = tls.sspi_step(theirs_context, answer)
    assert status == "done"
    if version == "tls1.2":
        assert tls.sspi_step(ours_context, last)[0] == "done"
    else:
        assert tls.sspi_decrypt_stream(ours_context, last) == ("ok", b"")
    with Connection(ours_context, theirs_context) as connection:
        assert connection.send(theirs_context, b"alive") == ("ok", b"alive")
        assert tls.sspi_remote_cert(theirs_context).der() == world.client.der
    for use in (
        lambda: tls.sspi_client_context(ours, "localhost"),
        lambda: tls.sspi_server_context(theirs),
    ):
        with pytest.raises(ValueError, match="freed"):
            use()


def test_channels_count_their_credentials(world: World) -> None:
    """Nothing but a channel holds them; they go with it."""
    a, b = socket.socketpair()
    ours, theirs = client(world.root), server(world.server)
    thread_result: list[Any] = []

    def serve() -> None:
        thread_result.append(tls.starttls(b, server=True, credentials=theirs))

    thread = threading.Thread(target=serve)
    thread.start()
    channel = tls.starttls(a, peersubject="localhost", credentials=ours)
    thread.join(10)
    assert channel.cget("credentials") is ours
    watched = weakref.ref(ours)
    native = ours.native
    ours.free()
    del ours
    channel.sendall(b"still here")
    assert thread_result[0].recv(100) == b"still here"
    channel.close()
    thread_result[0].close()
    del channel, native
    thread_result.clear()
    gc.collect()
    assert watched() is None


# --- certificates


def test_certificates_in_every_shape(world: World) -> None:
    store = store_with(world.server)
    cert = store[0]
    for shape in (store, cert, [cert], (cert,), iter([cert])):
        config = tls.sspi_schannel_credentials(shape)  # type: ignore[arg-type]
        assert config.certificates == (cert,)
        theirs = tls.sspi_acquire_credentials("tls", "server", config)
        with connect(client(world.root), theirs) as connection:
            assert shown(connection) == world.server.der


@pytest.mark.parametrize(
    ("certificates", "error", "words"),
    [
        (lambda w: [tls.cert_import(w.server.der)], ValueError, "no private key"),
        (lambda w: tls.cert_temporary_store(pem=w.server.pem), ValueError, "none with a private"),
        (lambda w: tls.cert_temporary_store(), ValueError, "none with a private"),
        (lambda w: ["server.pem"], TypeError, "must be Certificate objects"),
        (lambda w: "server.pem", TypeError, "must be Certificate objects"),
        (lambda w: 5, TypeError, ""),
    ],
)
def test_certificates_that_cannot_serve(
    world: World, certificates: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words or None):
        tls.sspi_schannel_credentials(certificates(world))


def test_the_store_may_be_released_before_it_is_used(world: World) -> None:
    store = store_with(world.server)
    trusted = roots(world.root)
    theirs = tls.sspi_schannel_credentials(store)
    ours = tls.sspi_schannel_credentials(rootstore=trusted)
    for each in (store, trusted):
        tls.cert_store_release(each)
    with connect(
        tls.sspi_acquire_credentials("tls", "client", ours),
        tls.sspi_acquire_credentials("tls", "server", theirs),
    ) as connection:
        assert shown(connection) == world.server.der


@VERSIONS
def test_intermediates_go_along(world: World, version: str) -> None:
    """Those of the certificate's store, or of chain=; never the root."""
    leaf = tls.cert_temporary_store(pem=world.server.key_pem() + world.server.pem)
    middle = [tls.cert_import(world.middle.der)]
    for store, chain in (
        (store_with(world.server), None),
        (leaf, middle),
        (leaf, tls.cert_temporary_store(pem=world.middle.pem + world.root.pem)),
    ):
        theirs = tls.sspi_acquire_credentials(
            "tls",
            "server",
            tls.sspi_schannel_credentials(store, chain=chain, install_intermediates=True),
        )
        with connect(client(world.root, protocols=version), theirs) as connection:
            sent = [cert.der() for cert in tls.sspi_remote_cert(connection.client).chain()]
            assert sent == [world.server.der, world.middle.der]
    stranger = mint("server", authority("Elsewhere", world.root), names=["localhost"])
    leaf = tls.cert_temporary_store(pem=stranger.key_pem() + stranger.pem)
    bare = tls.sspi_acquire_credentials("tls", "server", tls.sspi_schannel_credentials(leaf))
    with pytest.raises(TLSError) as caught:
        connect(client(world.root, protocols=version), bare)
    assert caught.value.name == "SEC_E_UNTRUSTED_ROOT"


def test_intermediates_that_an_engine_would_leave_out() -> None:
    """Schannel sends what Windows finds: a warning, or into its store; OpenSSL sends all."""
    middle = authority("Some intermediate", authority("Some root"))
    cert = mint("server", middle, names=["localhost"])
    root = middle.path[-1]
    came_along = tls.cert_temporary_store(pem=cert.combined + root.pem)
    apart = tls.cert_temporary_store(pem=cert.key_pem() + cert.pem)
    chain = tls.cert_temporary_store(pem=middle.pem + root.pem)
    for role in ("server", "client"):
        for store, more in ((came_along, None), (apart, chain)):
            config = tls.sspi_schannel_credentials(store, chain=more)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                tls.sspi_acquire_credentials("tls", role, config).free()
            if tls.engine.name == "openssl":
                assert caught == []
                continue
            (warning,) = caught
            assert warning.category is RuntimeWarning
            assert warning.filename == __file__
            text = str(warning.message)
            assert "Some intermediate" in text and "Some root" not in text
            assert "install_intermediates=True" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = tls.sspi_schannel_credentials(apart)  # nothing came with it
        tls.sspi_acquire_credentials("tls", "server", alone).free()
        # Afterwards Windows finds it. Wine's chain engine reads its stores once.
        for again in (True,) if WINE else (True, False):
            config = tls.sspi_schannel_credentials(came_along, install_intermediates=again)
            tls.sspi_acquire_credentials("tls", "server", config).free()
    if tls.engine.name == "schannel":
        installed = contents("CA")
        assert middle.der in installed
        assert root.der not in installed and cert.der not in installed
        assert forget("CA", middle.der)
    with pytest.raises(TypeError, match="install_intermediates"):
        tls.sspi_schannel_credentials(install_intermediates="yes")  # type: ignore[arg-type]


@VERSIONS
def test_a_server_chooses_by_name(world: World, version: str) -> None:
    certs = {
        "default": mint("default", world.middle, names=["default.example"]),
        "exact": mint("exact", world.middle, names=["a.example", "b.example"]),
        "wild": mint("wild", world.middle, names=["*.wild.example"]),
        "idn": mint("idn", world.middle, names=["xn--bcher-kva.example"]),
        "common": mint("common.example", world.middle),
    }
    theirs = server(*certs.values())
    for target, expected in (
        ("default.example", "default"),
        ("a.example", "exact"),
        ("B.Example", "exact"),
        ("x.wild.example", "wild"),
        ("bücher.example", "idn"),
        ("nobody.example", "default"),
        ("x.y.wild.example", "default"),
        ("192.0.2.1", "default"),
        (None, "default"),
    ):
        ours = client(world.root, protocols=version)
        with connect(ours, theirs, target, manualvalidation=True) as connection:
            assert shown(connection) == certs[expected].der, target
            sni = target.encode("idna").decode() if target and target != "192.0.2.1" else ""
            assert connection.server.facts().sni.lower() == sni.lower()


def test_a_server_chooses_by_what_the_client_can_verify(world: World) -> None:
    """Two kinds of key under one name: RSA for a client without ECDSA."""
    theirs = server(world.server, world.rsa)
    for ciphers, expected in (
        ("ECDHE-RSA-AES128-GCM-SHA256", world.rsa),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", world.server),
    ):
        ours = client(world.root, protocols="tls1.2", ciphers=ciphers)
        with connect(ours, theirs) as connection:
            assert shown(connection) == expected.der


# --- versions, suites, ALPN


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "TLS 1.3"),
        ({"protocols": "tls1.2"}, "TLS 1.2"),
        ({"protocols": ["tls1.2"]}, "TLS 1.2"),
        ({"protocols": ["TLS1.3"]}, "TLS 1.3"),
        ({"protocols": ["tls1.2", "tls1.3"]}, "TLS 1.3"),
        ({"minimum_version": "tls1.3"}, "TLS 1.3"),
        ({"maximum_version": "tls1.2"}, "TLS 1.2"),
        ({"minimum_version": "tls1.2", "maximum_version": "tls1.3"}, "TLS 1.3"),
        ({"protocols": ["tls1.2", "tls1.3"], "maximum_version": "tls1.2"}, "TLS 1.2"),
    ],
)
@pytest.mark.parametrize("side", ["client", "server"])
def test_versions(world: World, options: dict[str, Any], expected: str, side: str) -> None:
    ours = client(world.root, **(options if side == "client" else {}))
    theirs = server(world.server, **(options if side == "server" else {}))
    assert facts(ours, theirs).protocol == expected


@pytest.mark.parametrize("order", [("tls1.2", "tls1.3"), ("tls1.3", "tls1.2")])
def test_versions_that_do_not_meet(world: World, order: tuple[str, str]) -> None:
    ours, theirs = client(world.root, protocols=order[0]), server(world.server, protocols=order[1])
    ours_context = tls.sspi_client_context(ours, "localhost")
    theirs_context = tls.sspi_server_context(theirs)
    with pytest.raises(TLSError) as caught:
        negotiate(ours_context, theirs_context)
    assert caught.value.name == "SEC_E_UNSUPPORTED_FUNCTION"
    assert caught.value.alert_sent == "protocol_version"
    told = tell(ours_context, caught.value.token)
    assert ours_context.session.state() == "FAILED"
    assert told is None or told.alert_received == "protocol_version"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"protocols": "ssl3"}, ValueError),
        ({"protocols": ["tls1.2", "tls1"]}, ValueError),
        ({"protocols": "tls1.1"}, ValueError),
        ({"protocols": "tls2"}, ValueError),
        ({"protocols": [4]}, ValueError),
        ({"minimum_version": "tls1"}, ValueError),
        ({"minimum_version": "tls1.3", "maximum_version": "tls1.2"}, ValueError),
        ({"protocols": "tls1.2", "minimum_version": "tls1.3"}, ValueError),
        ({"cipherstrength": -1}, ValueError),
        ({"cipherstrength": (256, 128)}, ValueError),
        ({"cipherstrength": "strong"}, TypeError),
        ({"cipherstrength": (1, 2, 3)}, TypeError),
        ({"cipherstrength": 128.5}, TypeError),
        ({"alpn": [""]}, ValueError),
        ({"alpn": ["x" * 256]}, ValueError),
        ({"sessionlifespan": -1}, ValueError),
        ({"revocationcheck": "some"}, ValueError),
        ({"rootstore": "roots.pem"}, TypeError),
        ({"clientcertificate": "me"}, TypeError),
        ({"unheard_of": 1}, TypeError),
        ({"chain": ["x"]}, TypeError),
    ],
)
def test_options_that_cannot_be_honoured(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        tls.sspi_schannel_credentials(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cipherstrength": 512}, "at least 512 bits"),
        ({"cipherstrength": (1, 64)}, "1 to 64 bits"),
        ({"ciphers": "NO-SUCH-SUITE"}, "no cipher"),
    ],
)
def test_options_that_the_engine_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tls.sspi_acquire_credentials(credentials=tls.sspi_schannel_credentials(**options))


def test_default_client_certificates_are_windows_own() -> None:
    config = tls.sspi_schannel_credentials(usedefaultclientcert=True)
    if tls.engine.name == "schannel":
        tls.sspi_acquire_credentials(credentials=config).free()
        return
    with pytest.raises(TLSError, match="no default client certificate") as caught:
        tls.sspi_acquire_credentials(credentials=config)
    assert caught.value.name == "SEC_E_UNSUPPORTED_FUNCTION"


@VERSIONS
@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(
    ("strength", "bits"), [(128, {128, 256}), (256, {256}), ((128, 128), {128}), ((0, 128), {128})]
)
def test_cipher_strength(
    world: World, version: str, side: str, strength: Any, bits: set[int]
) -> None:
    option: dict[str, Any] = {"cipherstrength": strength}
    ours = client(world.root, protocols=version, **(option if side == "client" else {}))
    theirs = server(world.server, **(option if side == "server" else {}))
    assert facts(ours, theirs).bits in bits


def test_ciphers_choose_among_tls_1_2(world: World) -> None:
    suite = "ECDHE-ECDSA-CHACHA20-POLY1305"
    ours = client(world.root, protocols="tls1.2", ciphers=suite)
    assert facts(ours, server(world.server)).cipher_name == suite
    with pytest.raises(TLSError) as caught:
        connect(
            ours, server(world.server, protocols="tls1.2", ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
        )
    assert caught.value.name == "SEC_E_ALGORITHM_MISMATCH"


@VERSIONS
def test_alpn(world: World, version: str) -> None:
    """The server's order decides; nothing in common ends it; none is none."""
    cases: list[tuple[Any, Any, bytes | None]] = [
        (["h2", "http/1.1"], ["http/1.1", "h2"], b"http/1.1"),
        (["h2"], [b"h2"], b"h2"),
        ("h2", "h2", b"h2"),
        (["h2"], (), None),
        ((), ["h2"], None),
        (["x" * 255], ["y", "x" * 255], b"x" * 255),
    ]
    for offered, known, chosen in cases:
        ours = client(world.root, protocols=version, alpn=offered)
        with connect(ours, server(world.server, alpn=known)) as connection:
            assert connection.client.facts().alpn == chosen
            assert connection.server.facts().alpn == chosen
    with pytest.raises(TLSError) as caught:
        connect(client(world.root, protocols=version, alpn="a"), server(world.server, alpn="b"))
    assert caught.value.name == "SEC_E_APPLICATION_PROTOCOL_MISMATCH"
    assert caught.value.alert_sent == "no_application_protocol"


# --- the server verified


def test_root_store_takes_the_systems_place(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = authority("Other root")
    bundle = tmp_path / "system.pem"
    bundle.write_bytes(world.root.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    ours, theirs = server(world.server), server(mint("x", other, names=["localhost"]))
    connect(client(), ours).client.delete()
    connect(client(other), theirs).client.delete()
    empty = tls.sspi_acquire_credentials(
        credentials=tls.sspi_schannel_credentials(rootstore=tls.cert_temporary_store())
    )
    for credentials, peer in ((client(), theirs), (client(other), ours), (empty, ours)):
        with pytest.raises(TLSError) as caught:
            connect(credentials, peer)
        assert caught.value.name == "SEC_E_UNTRUSTED_ROOT"
        assert caught.value.alert_sent == "unknown_ca"


@VERSIONS
@pytest.mark.parametrize(
    ("fault", "code", "alert"),
    [
        ({"names": ["other.example"]}, "SEC_E_WRONG_PRINCIPAL", None),
        ({"ends": -DAY / 2}, "SEC_E_CERT_EXPIRED", "certificate_expired"),
        ({"begins": DAY}, "SEC_E_CERT_EXPIRED", "certificate_expired"),
        ({"eku": [CLIENT_AUTH]}, "SEC_E_CERT_WRONG_USAGE", None),
    ],
)
def test_automatic_verification(
    world: World, version: str, fault: dict[str, Any], code: str, alert: str | None
) -> None:
    theirs = server(mint("x", world.middle, **{"names": ["localhost"], **fault}))
    ours_context = tls.sspi_client_context(client(world.root, protocols=version), "localhost")
    theirs_context = tls.sspi_server_context(theirs)
    with pytest.raises(TLSError) as caught:
        negotiate(ours_context, theirs_context)
    assert caught.value.name == code
    assert caught.value.token
    assert alert is None or caught.value.alert_sent == alert
    assert theirs_context.session.state() == "FAILED"  # it was told
    off = client(world.root, protocols=version, validateservercert=False)
    with connect(off, theirs) as connection:
        assert connection.send(connection.client, b"x") == ("ok", b"x")
    with connect(client(world.root, protocols=version), theirs, manualvalidation=True):
        pass


@pytest.mark.parametrize(
    ("options", "revoked", "unknown"),
    [
        ({}, "ok", "ok"),
        ({"revocationcheck": "none"}, "ok", "ok"),
        ({"revocationcheck": "full"}, "CRYPT_E_REVOKED", "CERT_E_REVOCATION_FAILURE"),
        ({"revocationcheck": "endonly"}, "CRYPT_E_REVOKED", "CERT_E_REVOCATION_FAILURE"),
        ({"revocationcheck": "excluderoot"}, "CRYPT_E_REVOKED", "CERT_E_REVOCATION_FAILURE"),
        ({"revocationcheck": "besteffort"}, "CRYPT_E_REVOKED", "ok"),
        (
            {"revocationcheck": "full", "ignoreerrorrevocationoffline": True},
            "CRYPT_E_REVOKED",
            "ok",
        ),
        (
            {"revocationcheck": "full", "ignoreerrornorevocationcheck": True},
            "CRYPT_E_REVOKED",
            "ok",
        ),
    ],
)
def test_revocation(world: World, options: dict[str, Any], revoked: str, unknown: str) -> None:
    """By CRLs in the root store, which is the store that a client brings."""
    theirs = server(world.server)
    for crls, expected in (
        (world.middle.crl(world.server) + world.root.crl(), revoked),
        (b"", unknown),
        (world.middle.crl() + world.root.crl(), "ok"),
    ):
        store = tls.cert_temporary_store(pem=world.root.pem + crls)
        ours = tls.sspi_acquire_credentials(
            credentials=tls.sspi_schannel_credentials(rootstore=store, **options)
        )
        try:
            connect(ours, theirs)
            outcome = "ok"
        except TLSError as error:
            outcome = error.name
        assert outcome == expected


def test_common_name_only_if_asked(world: World) -> None:
    theirs = server(mint("localhost", world.middle))
    with pytest.raises(TLSError) as caught:
        connect(client(world.root), theirs)
    assert caught.value.name == "SEC_E_WRONG_PRINCIPAL"
    with connect(client(world.root, commonname=True), theirs):
        pass


# --- client certificates


@VERSIONS
def test_a_client_shows_its_certificate(world: World, version: str) -> None:
    ours, theirs = client(world.root, world.client, protocols=version), server(world.server)
    with connect(ours, theirs, mutualauth=True) as connection:
        peer = tls.sspi_remote_cert(connection.server)
        assert peer.der() == world.client.der
        assert [cert.der() for cert in peer.chain()] == [world.client.der, world.middle.der]
        assert tls.sspi_local_cert(connection.client).der() == world.client.der
        assert tls.sspi_context_features(connection.server)["mutualauth"]
        verdict = tls.cert_tls_verify(
            peer, trustedroots=roots(world.root), exclusiveroots=True, revocationcheck="none"
        )
        assert verdict == "ok"
    with connect(ours, theirs) as connection:
        for context in (connection.server,):
            with pytest.raises(TLSError) as caught:
                tls.sspi_remote_cert(context)
            assert caught.value.name == "SEC_E_NO_CREDENTIALS"
            assert caught.value.code == -2146893042


@VERSIONS
@pytest.mark.parametrize("answer", ["certificate", "None"])
def test_a_chooser_is_told_the_issuers(world: World, version: str, answer: str) -> None:
    """Every name of the server's root store, in order, as DER."""
    other = authority("Another root")
    store = tls.cert_temporary_store(pem=other.pem + world.root.pem)
    theirs = server(world.server, rootstore=store)
    asked: list[tuple[str, list[bytes]]] = []
    chosen = client(None, world.client)

    def chooser(context: SspiContext, issuers: list[bytes]) -> Credentials | None:
        asked.append((context.role, issuers))
        return chosen if answer == "certificate" else None

    ours = client(world.root, protocols=version, clientcertificate=chooser)
    with connect(ours, theirs) as connection:
        assert tls.sspi_issuers_accepted_by_peer(connection.client) == []
    assert asked == []
    with connect(ours, theirs, mutualauth=True) as connection:
        names = [each.certificate.subject.public_bytes() for each in (other, world.root)]
        assert asked == [("client", names)]
        assert tls.sspi_issuers_accepted_by_peer(connection.client) == names
        if answer == "certificate":
            assert tls.sspi_remote_cert(connection.server).der() == world.client.der
            assert tls.sspi_local_cert(connection.client).der() == world.client.der
        else:
            for end in (
                lambda: tls.sspi_remote_cert(connection.server),
                lambda: tls.sspi_local_cert(connection.client),
            ):
                with pytest.raises(TLSError) as caught:
                    end()
                assert caught.value.name == "SEC_E_NO_CREDENTIALS"


@VERSIONS
@pytest.mark.parametrize("chunks", [whole, bytewise])
def test_a_chooser_is_not_asked_for_a_server_that_is_refused(
    world: World, version: str, chunks: Any
) -> None:
    """Who we are is told to nobody before it is known who asks."""
    asked: list[str] = []

    def chooser(context: SspiContext, issuers: list[bytes]) -> None:
        asked.append(version)

    theirs = server(mint("x", world.middle, names=["other.example"]))
    ours = client(world.root, protocols=version, clientcertificate=chooser)
    with pytest.raises(TLSError) as caught:
        connect(ours, theirs, mutualauth=True, chunks=chunks)
    assert caught.value.name == "SEC_E_WRONG_PRINCIPAL"
    assert asked == []
    with connect(ours, theirs, "other.example", mutualauth=True, chunks=chunks):
        assert asked == [version]


@VERSIONS
def test_a_chooser_that_fails(world: World, version: str) -> None:
    theirs = server(world.server)

    def chooser_of(value: Any) -> Any:
        def chooser(context: SspiContext, issuers: list[bytes]) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        return chooser

    for value, error in (
        (LookupError("no card"), LookupError),
        ("me.pem", TypeError),
        (theirs, (ValueError, TypeError, TLSError)),
    ):
        ours = client(world.root, protocols=version, clientcertificate=chooser_of(value))
        with pytest.raises(error):  # type: ignore[call-overload]
            connect(ours, theirs, mutualauth=True)


@VERSIONS
def test_many_issuers(world: World, version: str) -> None:
    """The whole list, beyond one record's worth of names."""
    many = [authority(f"Root number {n} " + "x" * 40) for n in range(150)]
    store = tls.cert_temporary_store(pem=b"".join(each.pem for each in many))
    theirs = server(world.server, rootstore=store)
    seen: list[list[bytes]] = []

    def chooser(context: SspiContext, issuers: list[bytes]) -> None:
        seen.append(issuers)

    ours = client(world.root, protocols=version, clientcertificate=chooser)
    with connect(ours, theirs, mutualauth=True):
        pass
    assert [x509.Name([]).public_bytes() != name for name in seen[0]] == [True] * 150
    assert seen == [[each.certificate.subject.public_bytes() for each in many]]


# --- what the system says


POLICY = "openssl_conf = start\n[start]\nssl_conf = ssl\n[ssl]\nsystem_default = policy\n[policy]\n"
NOTHING = "openssl_conf = start\n[start]\nproviders = those\n[those]\nnull = none\n[none]\n"
FIPS = "openssl_conf = start\n[start]\nalg_section = algorithms\n[algorithms]\n"


def run_under(configuration: str, program: str, folder: Path, head: str = POLICY) -> Any:
    """A Python program's JSON answer, under this openssl.cnf."""
    path = folder / "openssl.cnf"
    path.write_text(f"{head}{configuration}\n")
    environment = {**os.environ, "OPENSSL_CONF": str(path)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    answer = subprocess.run(
        [sys.executable, "-c", "import json\n" + program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


PROGRAM = """
import twapi_tls as tls
from memory import client, connect, server
from mint import authority, mint
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, rsa
root = authority("root")
leaf = mint("x", root, names=["localhost"], key=rsa.generate_private_key(65537, 2048),
            usage=["digital_signature", "key_encipherment"])
found = []
for options in ({}, {"protocols": "tls1.2"}):
    try:
        with connect(client(root, **options), server(leaf)) as connection:
            facts = connection.client.facts()
            found.append([facts.protocol, facts.cipher_name, facts.group])
    except tls.TLSError as error:
        found.append(error.name)
store = tls.cert_temporary_store(pem=root.pem)
found.append(tls.cert_tls_verify(tls.cert_import(leaf.der), "localhost", trustedroots=store,
                                 revocationcheck="none"))
print(json.dumps(found))
"""


@pytest.mark.skipif(tls.engine.name != "openssl", reason="openssl.cnf is OpenSSL's")
def test_openssl_cnf_is_honoured(tmp_path: Path) -> None:
    default, old, verdict = run_under("MinProtocol = TLSv1.2", PROGRAM, tmp_path)
    assert (default[0], old[0], verdict) == ("TLS 1.3", "TLS 1.2", "ok")
    default, _, _ = run_under("MaxProtocol = TLSv1.2", PROGRAM, tmp_path)
    assert default[0] == "TLS 1.2"
    default, _, _ = run_under("Groups = P-384", PROGRAM, tmp_path)
    assert default[2].lower() in ("secp384r1", "p-384")
    _, old, _ = run_under("CipherString = ECDHE-RSA-AES128-GCM-SHA256", PROGRAM, tmp_path)
    assert old[1] == "ECDHE-RSA-AES128-GCM-SHA256"
    default, _, _ = run_under("Ciphersuites = TLS_CHACHA20_POLY1305_SHA256", PROGRAM, tmp_path)
    assert default[1] == "TLS_CHACHA20_POLY1305_SHA256"


@pytest.mark.skipif(tls.engine.name != "openssl", reason="openssl.cnf is OpenSSL's")
@pytest.mark.parametrize("others", [(), ("base",), ("legacy",), ("base", "legacy")])
def test_providers_of_openssl_cnf(others: tuple[str, ...], tmp_path: Path) -> None:
    """Whatever else it activates beside the default provider, connections are the same."""
    head = "openssl_conf = start\n[start]\nproviders = those\nssl_conf = ssl\n[ssl]\n"
    head += "system_default = policy\n[policy]\nGroups = P-384\n[those]\n"
    names = ("default", *others)
    head += "".join(f"{name} = some\n" for name in names) + "[some]\nactivate = 1\n"
    default, old, verdict = run_under("", PROGRAM, tmp_path, head)
    assert (default[0], old[0], verdict) == ("TLS 1.3", "TLS 1.2", "ok")
    assert default[2].lower() in ("secp384r1", "p-384")


@pytest.mark.skipif(tls.engine.name != "openssl", reason="openssl.cnf is OpenSSL's")
def test_the_generator_of_openssl_cnf(tmp_path: Path) -> None:
    head = "openssl_conf = start\n[start]\nrandom = generator\n[generator]\n"
    default, old, verdict = run_under(
        "random = HASH-DRBG\ndigest = SHA256", PROGRAM, tmp_path, head
    )
    assert (default[0], old[0], verdict) == ("TLS 1.3", "TLS 1.2", "ok")


@pytest.mark.skipif(tls.engine.name != "openssl", reason="Schannel knows no DSA in a path")
@VERSIONS
def test_keys_that_tls_has_no_use_for(version: str) -> None:
    """A CA may have another kind of key than authenticates in TLS: its path is good."""
    root = authority("root")
    odd = mint("odd", root, ca=True, key=dsa.generate_private_key(2048))
    theirs = server(mint("x", odd, names=["localhost"]))
    with connect(client(root, protocols=version), theirs) as connection:
        assert tls.cert_subject_name(tls.sspi_remote_cert(connection.client)) == "x"
    stranger = mint("odd", root, ca=True, key=odd.key, issuer_key=mint("y").key)
    forged = server(mint("x", stranger, names=["localhost"]))
    with pytest.raises(TLSError) as caught, connect(client(root, protocols=version), forged):
        pass
    assert caught.value.name == "TRUST_E_CERT_SIGNATURE"


@pytest.mark.skipif(tls.engine.name != "openssl", reason="openssl.cnf is OpenSSL's")
def test_the_security_level_holds_for_chains_as_well(tmp_path: Path) -> None:
    """2048 bits of RSA are 112 of strength: level 2, not 3."""
    _, _, verdict = run_under("CipherString = DEFAULT@SECLEVEL=3", PROGRAM, tmp_path)
    assert verdict == "signature"


@pytest.mark.peers
def test_the_engine_and_fips_are_told() -> None:
    assert tls.engine.name in ("openssl", "schannel")
    assert any(digit in tls.engine.version for digit in "0123456789")
    if tls.engine.name == "openssl":
        listed = subprocess.run(
            [peers.require("openssl"), "list", "-providers"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        # Demanded it can only be where there is a provider of it.
        assert tls.engine.fips is False or "fips" in listed


@pytest.mark.skipif(tls.engine.name != "openssl", reason="openssl.cnf is OpenSSL's")
def test_fips_mode_is_told_and_kept_to(tmp_path: Path) -> None:
    """Demanded without a FIPS provider, nothing can be done; thumbprints are no protection."""
    cert = mint("x")
    program = f"""
import twapi_tls as tls
cert = tls.cert_import(bytes.fromhex({cert.der.hex()!r}))
found = [tls.engine.fips, tls.cert_thumbprint(cert), tls.cert_thumbprint(cert, "sha256")]
try:
    tls.sspi_acquire_credentials()
    found.append("acquired")
except tls.TLSError as error:
    found.append(str(error))
print(json.dumps(found))
"""
    told, sha1, sha256, outcome = run_under(
        "default_properties = fips=yes", program, tmp_path, FIPS
    )
    assert told in (True, 1)
    assert sha1 == cert.certificate.fingerprint(hashes.SHA1()).hex()
    assert sha256 == cert.certificate.fingerprint(hashes.SHA256()).hex()
    assert "FIPS provider" in outcome


@pytest.mark.peers
def test_the_documented_way_of_a_server(pki: Pki) -> None:
    """Store, find, acquire, release: the credentials survive."""
    store = tls.cert_temporary_store(pfx=pki.server.pfx_bytes, password="correct horse")
    cert = tls.cert_store_find_certificate(store, "subject_substring", "localhost")
    assert cert is not None
    credentials = tls.sspi_acquire_credentials(
        package="unisp",
        role="server",
        credentials=tls.sspi_schannel_credentials(certificates=[cert]),
    )
    tls.cert_release(cert)
    tls.cert_store_release(store)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        with peers.openssl_client(listener.getsockname()[1], ca=pki.root) as peer:
            sock, _ = listener.accept()
            with tls.starttls(sock, server=True, credentials=credentials) as channel:
                channel.sendall(b"greetings\n")
                peer.expect(b"greetings")
    tls.sspi_free_credentials(credentials)


def test_acquiring_is_quick_enough_to_do_often(world: World) -> None:
    """No leak that a thousand would show, nor a second each."""
    config = tls.sspi_schannel_credentials(store_with(world.server))
    began = time.monotonic()
    for _ in range(300):
        tls.sspi_acquire_credentials("tls", "server", config).free()
    assert time.monotonic() - began < 20


@pytest.mark.skipif(tls.engine.name != "openssl", reason="openssl.cnf is OpenSSL's")
def test_a_digest_that_the_engine_lacks_is_told(tmp_path: Path) -> None:
    cert = mint("x")
    program = f"""
import twapi_tls as tls
cert = tls.cert_import(bytes.fromhex({cert.der.hex()!r}))
found = []
for name in ("sha1", "sha256"):
    try:
        found.append(tls.cert_thumbprint(cert, name))
    except tls.TLSError as error:
        found.append([error.name, str(error)])
print(json.dumps(found))
"""
    for digest, (name, text) in zip(
        ("SHA-1", "SHA-256"), run_under("activate = 1", program, tmp_path, NOTHING), strict=True
    ):
        assert name == "SEC_E_UNSUPPORTED_FUNCTION" and digest in text
