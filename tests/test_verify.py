"""``cert_tls_verify``: every verdict and every option.

The cases of TWAPI's crypto.test (cert_tls_verify-1.0 to 12.0) are here on
certificates made on the spot; ``openssl verify`` is asked the same where it
can say the same.
"""

from __future__ import annotations

import asyncio
import datetime
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import peers
import pytest
from certs import Pki
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ReasonFlags, ocsp
from cryptography.x509.oid import NameOID
from mint import (
    CLIENT_AUTH,
    DAY,
    OCSP_SIGNING,
    SERVER_AUTH,
    Minted,
    authority,
    mint,
    name,
    version_1,
)

import twapi_tls as tls
from twapi_tls import Certificate, Store, TLSError, _native
from twapi_tls.certs import RESULTS

HOST = "a.example"
HOUR = datetime.timedelta(hours=1)


class World:
    """A root, an intermediate, and good certificates for server and client."""

    def __init__(self) -> None:
        self.root = authority("World root")
        self.middle = authority("World intermediate", self.root)
        self.leaf = mint("World server", self.middle, names=[HOST])
        self.client = mint("World client", self.middle, eku=[CLIENT_AUTH])
        self.crls = self.middle.crl() + self.root.crl()


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def store_of(certs: Iterable[Minted], crls: bytes = b"") -> Store:
    store = tls.cert_temporary_store()
    for cert in certs:
        tls.cert_store_add_encoded_certificate(store, cert.der)
    if crls:
        store.native.import_("pem", crls)
    return store


def verify(cert: Minted, crls: bytes = b"", **options: Any) -> str:
    """Under its own root, given its issuers and these CRLs, without revocation."""
    *between, root = cert.path[1:] or [cert]
    options.setdefault("server", HOST)
    options.setdefault("hstore", store_of(between, crls))
    options.setdefault("trustedroots", [tls.cert_import(root.der)])
    options.setdefault("revocationcheck", "none")
    return tls.cert_tls_verify(tls.cert_import(cert.der), **options)


# --- the cases of crypto.test


def test_server_and_client(world: World) -> None:
    assert verify(world.leaf) == "ok"
    assert verify(world.client, server=None) == "ok"


def test_common_name_where_there_is_no_alternative_name(world: World) -> None:
    """TWAPI compares it always; here it must be asked for."""
    old = mint("common.example", world.middle)
    assert verify(old, server="common.example") == "cnmatch"
    assert verify(old, server="common.example", commonname=True) == "ok"
    assert verify(old, server="other.example", commonname=True) == "cnmatch"
    both = mint("common.example", world.middle, names=[HOST])
    assert verify(both, server="common.example", commonname=True) == "cnmatch"


def test_names(world: World) -> None:
    several = mint(None, world.middle, names=["x.example", HOST, "*.w.example", "192.0.2.9"])
    for server in (HOST, "x.example", "q.w.example", "192.0.2.9", "A.EXAMPLE", "a.example."):
        assert verify(several, server=server) == "ok", server
    for server in ("w.example", "r.q.w.example", "192.0.2.8", "b.example", "x.example.evil"):
        assert verify(several, server=server) == "cnmatch", server
        assert verify(several, server=server, ignoreerrors=["name"]) == "ok", server


def test_international_names(world: World) -> None:
    idn = mint(None, world.middle, names=["xn--bcher-kva.example"])
    for server in ("bücher.example", "BÜCHER.example", "xn--bcher-kva.example"):
        assert verify(idn, server=server) == "ok"
    assert verify(idn, server="bucher.example") == "cnmatch"
    with pytest.raises(ValueError, match="no host name"):
        verify(idn, server="ü" * 80 + ".example")


@pytest.mark.parametrize("option", ["usageall", "usageany"])
@pytest.mark.parametrize(
    ("usages", "for_all", "for_any"),
    [
        (["server_auth"], True, True),
        ("server_auth", True, True),
        (["oid_pkix_kp_server_auth"], True, True),
        (["1.3.6.1.5.5.7.3.1"], True, True),
        (["client_auth"], False, False),
        (["server_auth", "client_auth"], False, True),
        (["client_auth", "server_auth"], False, True),
        (["1.2.3.4", "code_signing"], False, False),
        ([], True, True),
    ],
)
def test_usages(
    world: World, option: str, usages: Sequence[str], for_all: bool, for_any: bool
) -> None:
    fits = for_all if option == "usageall" else for_any
    assert verify(world.leaf, **{option: usages}) == ("ok" if fits else "wrongusage")
    assert verify(world.leaf, **{option: usages}, ignoreerrors=["usage"]) == "ok"


def test_usage_by_role(world: World) -> None:
    assert verify(world.leaf, server=None) == "wrongusage"
    assert verify(world.client, ignoreerrors=["name"]) == "wrongusage"
    both = mint("x", world.middle, names=[HOST], eku=[SERVER_AUTH, CLIENT_AUTH])
    assert verify(both) == verify(both, server=None) == "ok"
    silent = mint("x", world.middle, names=[HOST], eku=[])
    assert verify(silent) == verify(silent, server=None) == "ok"
    signs = mint("x", world.middle, names=[HOST], usage=["crl_sign"])
    assert verify(signs) == "wrongusage"
    agrees = mint("x", world.middle, names=[HOST], usage=["key_agreement"])
    assert verify(agrees) == "ok"


def test_a_usage_for_anything(world: World) -> None:
    """anyExtendedKeyUsage: RFC 5280, 4.2.1.12."""
    anything = mint("x", world.middle, names=[HOST], eku=[x509.ObjectIdentifier("2.5.29.37.0")])
    assert verify(anything) == "ok"


def test_usage_of_an_intermediate_restricts(world: World) -> None:
    mails = authority("Mail only", world.root, eku=[x509.ObjectIdentifier("1.3.6.1.5.5.7.3.4")])
    assert verify(mint("x", mails, names=[HOST])) == "wrongusage"


@pytest.mark.parametrize("engine", ["user", "machine"])
def test_engines(world: World, engine: str) -> None:
    assert verify(world.leaf, engine=engine) == "ok"


def test_expired_and_not_yet_valid(world: World) -> None:
    expired = mint("x", world.middle, names=[HOST], begins=-3 * DAY, ends=-DAY)
    early = mint("x", world.middle, names=[HOST], begins=DAY)
    old_middle = authority("Old", world.root, ends=-HOUR)
    for late in (expired, early, mint("x", old_middle, names=[HOST])):
        assert verify(late) == "time"
        assert verify(late, ignoreerrors=["time"]) == "ok"
        assert verify(late, ignoreerrors="time") == "ok"


def test_roots_by_store_and_list(world: World) -> None:
    """-hstore and -trustedroots, each with and without what helps."""
    leaf = world.leaf
    root = tls.cert_import(world.root.der)
    nothing = tls.cert_temporary_store()
    both, only_middle = store_of([world.middle, world.root]), store_of([world.middle])
    matrix = [
        # hstore, trustedroots, verdict
        (None, (), "partialchain"),
        (nothing, (), "partialchain"),
        (only_middle, (), "partialchain"),
        (both, (), "untrustedroot"),
        (None, [root], "partialchain"),
        (both, [tls.cert_import(authority("World root").der)], "untrustedroot"),
        (both, [root], "ok"),
        (only_middle, [root], "ok"),
        (only_middle, root, "ok"),
        (only_middle, store_of([world.root]), "ok"),
    ]
    for hstore, roots, expected in matrix:
        got = verify(leaf, hstore=hstore, trustedroots=roots)
        assert got == expected, (hstore, roots)
        ignored = verify(leaf, hstore=hstore, trustedroots=roots, ignoreerrors=["unknownca"])
        assert ignored == "ok", (hstore, roots)
    assert verify(leaf, hstore=both, revocationcheck="all") == "revocationunknown"


def test_an_anchor_need_not_be_self_signed(world: World) -> None:
    middle = [tls.cert_import(world.middle.der)]
    assert verify(world.leaf, hstore=tls.cert_temporary_store(), trustedroots=middle) == "ok"


def test_self_signed() -> None:
    alone = mint("alone", names=[HOST])
    assert verify(alone, trustedroots=()) == "untrustedroot"
    assert verify(alone) == "ok"
    assert verify(alone, server="other.example") == "cnmatch"


def test_unknown_ca_is_judged_on(world: World) -> None:
    """An error that is ignored does not hide the others."""
    both = store_of([world.middle, world.root])
    options: dict[str, Any] = {"hstore": both, "trustedroots": ()}
    ignored = ["unknownca"]
    assert verify(world.client, **options, ignoreerrors=[*ignored, "name"]) == "wrongusage"
    assert verify(world.leaf, **options, server="x.example", ignoreerrors=ignored) == "cnmatch"
    assert verify(world.client, **options, ignoreerrors=[*ignored, "name", "usage"]) == "ok"


def test_options_of_windows_engine(world: World) -> None:
    for option in (
        "cacheendcert",
        "disableauthrootautoupdate",
        "urlretrievalcacheonly",
        "revocationcheckcacheonly",
    ):
        assert verify(world.leaf, **{option: True}) == "ok"
        assert verify(world.leaf, revocationcheck="all", **{option: True}) == "revocationunknown"
    for option in ("urlretrievalcacheonly", "revocationcheckcacheonly"):
        with pytest.raises(TypeError, match="fetch"):
            verify(world.leaf, fetch=True, **{option: True})


# --- the words


def test_words_are_windows_own() -> None:
    """By code; those that only Windows' engine says are there as well."""
    assert {code & 0xFFFFFFFF: word for code, word in RESULTS.items()} == {
        0x80096004: "signature",
        0x80092010: "revoked",
        0x800B010C: "revoked",
        0x800B0109: "untrustedroot",
        0x800B010D: "untrustedtestroot",
        0x800B010A: "partialchain",
        0x800B0110: "wrongusage",
        0x800B0101: "time",
        0x800B0114: "name",
        0x800B0113: "policy",
        0x80096019: "basicconstraints",
        0x800B0105: "criticalextension",
        0x800B0102: "validityperiodnesting",
        0x80092011: "norevocationdll",
        0x80092012: "norevocationcheck",
        0x80092013: "revocationoffline",
        0x800B010F: "cnmatch",
        0x800B0106: "purpose",
        0x800B010E: "revocationunknown",
        0x800B0103: "carole",
    }


def bad_signature(world: World) -> Minted:
    return mint("x", world.middle, names=[HOST], issuer_key=ec.generate_private_key(ec.SECP256R1()))


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.7"), b"\x05\x00")


def faults(world: World) -> dict[str, tuple[Minted, str, str | None]]:
    """Fault: (certificate, verdict, what ignores it). One fault each."""
    permitted = x509.NameConstraints([x509.DNSName("b.example")], None)
    excluded = x509.NameConstraints(None, [x509.DNSName("a.example")])
    explicit = x509.PolicyConstraints(0, None)
    return {
        "none": (world.leaf, "ok", None),
        "signature": (bad_signature(world), "signature", None),
        "weak key": (
            mint("x", world.middle, names=[HOST], key=rsa.generate_private_key(65537, 1024)),
            "signature",
            None,
        ),
        "critical": (
            mint("x", world.middle, names=[HOST], extensions=[(UNKNOWN, True)]),
            "criticalextension",
            "criticalextensions",
        ),
        "critical above": (
            mint("x", authority("m", world.root, extensions=[(UNKNOWN, True)]), names=[HOST]),
            "criticalextension",
            "criticalextensions",
        ),
        "not critical": (
            mint("x", world.middle, names=[HOST], extensions=[(UNKNOWN, False)]),
            "ok",
            None,
        ),
        "no CA": (
            mint("x", mint("m", world.root, usage=["key_cert_sign"]), names=[HOST]),
            "basicconstraints",
            "basicconstraints",
        ),
        "no basicConstraints": (
            mint("x", mint("m", world.root, ca=None, usage=["key_cert_sign"]), names=[HOST]),
            "basicconstraints",
            "basicconstraints",
        ),
        "path length": (
            mint("x", authority("b", authority("a", world.root, path_length=0)), names=[HOST]),
            "basicconstraints",
            "basicconstraints",
        ),
        "path length fits": (
            mint("x", authority("b", authority("a", world.root, path_length=1)), names=[HOST]),
            "ok",
            None,
        ),
        "not permitted": (
            mint("x", authority("m", world.root, extensions=[(permitted, True)]), names=[HOST]),
            "name",
            None,
        ),
        "excluded": (
            mint("x", authority("m", world.root, extensions=[(excluded, True)]), names=[HOST]),
            "name",
            None,
        ),
        "policy": (
            mint("x", authority("m", world.root, extensions=[(explicit, True)]), names=[HOST]),
            "policy",
            "policy",
        ),
        "expired": (mint("x", world.middle, names=[HOST], ends=-HOUR), "time", "time"),
        "early": (mint("x", world.middle, names=[HOST], begins=HOUR), "time", "time"),
        "usage": (mint("x", world.middle, names=[HOST], eku=[CLIENT_AUTH]), "wrongusage", "usage"),
        "key usage": (
            mint("x", world.middle, names=[HOST], usage=["data_encipherment"]),
            "wrongusage",
            "usage",
        ),
        "name": (mint("x", world.middle, names=["b.example"]), "cnmatch", "name"),
        "address": (mint("x", world.middle, names=["192.0.2.1"]), "cnmatch", "name"),
        "self-signed": (mint("x", names=[HOST]), "ok", None),
    }


FAULTS = list(faults(World()))
IGNORABLE = list(_native.IGNORE)


@pytest.fixture(scope="module")
def faulty(world: World) -> dict[str, tuple[Minted, str, str | None]]:
    return faults(world)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_word(
    faulty: dict[str, tuple[Minted, str, str | None]], fault: str
) -> None:
    cert, verdict, ignored_by = faulty[fault]
    assert verify(cert) == verdict
    for option in IGNORABLE:
        expected = "ok" if option == ignored_by else verdict
        assert verify(cert, ignoreerrors=[option]) == expected, option
    assert verify(cert, ignoreerrors=IGNORABLE) == (
        "ok" if ignored_by or verdict == "ok" else verdict
    )


@pytest.mark.peers
@pytest.mark.parametrize("fault", FAULTS)
def test_openssl_verify_says_the_same(
    faulty: dict[str, tuple[Minted, str, str | None]], fault: str, tmp_path: Path
) -> None:
    cert, verdict, _ = faulty[fault]
    *between, root = cert.path[1:] or [cert]
    files = {"root": root.pem, "between": b"".join(each.pem for each in between), "leaf": cert.pem}
    for word, data in files.items():
        (tmp_path / word).write_bytes(data)
    command = [peers.require("openssl"), "verify", "-CAfile", str(tmp_path / "root")]
    command += ["-no-CApath", "-no-CAstore", "-purpose", "sslserver", "-verify_hostname", HOST]
    command += ["-auth_level", "2", "-policy_check"]
    if between:
        command += ["-untrusted", str(tmp_path / "between")]
    answer = subprocess.run(
        [*command, str(tmp_path / "leaf")], capture_output=True, text=True, timeout=30, check=False
    )
    assert (answer.returncode == 0) == (verdict == "ok"), answer.stderr


def test_the_worst_of_several_faults_is_told(world: World) -> None:
    """Revocation and signature before anchors, those before time, usage, name."""
    mixed = mint("x", world.middle, names=["b.example"], ends=-HOUR, eku=[CLIENT_AUTH])
    order = [("time", "time"), ("wrongusage", "usage"), ("cnmatch", "name"), ("ok", None)]
    ignored: list[str] = []
    for verdict, then in order:
        assert verify(mixed, ignoreerrors=ignored) == verdict
        ignored += [then] if then else []
    assert verify(mixed, world.middle.crl(mixed), revocationcheck="leaf") == "revoked"


def test_version_1_certificates(world: World) -> None:
    """No extensions: no name but the common one, and no CA."""
    leaf = mint("v1.example", world.root)
    plain = Minted(x509.load_der_x509_certificate(version_1(world.root)), world.root.key, None)
    assert plain.der != world.root.der
    anchor = [tls.cert_import(plain.der)]
    signed = mint("x", plain, names=[HOST])
    assert verify(signed, trustedroots=anchor) == "ok"  # trusting it was a decision
    assert verify(leaf, server="v1.example", commonname=True) == "ok"


def test_a_zero_in_a_name_is_no_end(world: World) -> None:
    trick = mint(
        name("x", (NameOID.ORGANIZATION_NAME, "y")),
        world.middle,
        names=[x509.DNSName("a.example\0.evil.example")],
    )
    assert verify(trick) != "ok"


# --- what serves as intermediate and as anchor


def test_what_came_with_the_certificate_serves(world: World) -> None:
    pem = world.leaf.combined
    cert = tls.cert_temporary_store(pem=pem)[0]
    root = [tls.cert_import(world.root.der)]
    verdict = tls.cert_tls_verify(cert, HOST, trustedroots=root, revocationcheck="none")
    assert verdict == "ok"
    bare = tls.cert_import(world.leaf.der)
    assert (
        tls.cert_tls_verify(bare, HOST, trustedroots=root, revocationcheck="none") == "partialchain"
    )


@pytest.mark.peers
def test_the_peers_certificates_serve(pki: Pki) -> None:
    """What sspi_remote_cert gives brings along what the server sent."""
    root = tls.cert_temporary_store(pem=pki.root_pem)
    verdicts: list[str] = []

    def verifier(channel: Any, context: Any) -> bool:
        cert = tls.sspi_remote_cert(context)
        verdicts.append(
            tls.cert_tls_verify(
                cert, "localhost", trustedroots=root, exclusiveroots=True, revocationcheck="none"
            )
        )
        return verdicts[-1] == "ok"

    with peers.openssl_server(pki.server) as peer:
        tls.tls_socket("127.0.0.1", peer.port, peersubject="localhost", verifier=verifier).close()
    assert verdicts == ["ok"]


def test_exclusive_and_additional_roots(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = authority("Other root")
    theirs = mint("x", other, names=[HOST])
    monkeypatch.setenv("SSL_CERT_FILE", write(tmp_path / "system.pem", world.root.pem))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    ours = [tls.cert_import(other.der)]
    assert verify(world.leaf, trustedroots=()) == "ok"
    assert verify(theirs, trustedroots=()) == "partialchain"
    assert verify(world.leaf, trustedroots=ours) == "ok"
    assert verify(theirs, trustedroots=ours) == "ok"
    assert verify(world.leaf, trustedroots=ours, exclusiveroots=True) == "partialchain"
    assert verify(theirs, trustedroots=ours, exclusiveroots=True) == "ok"
    for nothing in ((), [], tls.cert_temporary_store()):
        verdict = verify(world.leaf, trustedroots=nothing, exclusiveroots=True)
        assert verdict == "partialchain", nothing
    # a certificate in hstore is no anchor, whatever it is
    assert verify(theirs, trustedroots=(), hstore=store_of([other])) == "untrustedroot"


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_two_paths_the_good_one_is_found(world: World) -> None:
    """A cross-signed intermediate whose other issuer is unknown, or expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    stranger = authority("Stranger")
    good = authority("Crossed", world.root, key=key)
    bad = authority("Crossed", stranger, key=key)
    old = authority("Crossed", world.root, key=key, ends=-HOUR)
    leaf = mint("x", good, names=[HOST])
    for others in ([bad, good], [good, bad], [old, good], [bad, old, good]):
        assert verify(leaf, hstore=store_of(others)) == "ok"


# --- revocation: lists in the store


@pytest.mark.parametrize(
    ("mode", "leaf"),
    [("all", "revoked"), ("leaf", "revoked"), ("excluderoot", "revoked"), ("none", "ok")],
)
def test_revoked(world: World, mode: str, leaf: str) -> None:
    root, between = world.root, world.middle
    for reason in (None, ReasonFlags.key_compromise, ReasonFlags.certificate_hold):
        crls = between.crl(world.leaf, reason=reason) + root.crl()
        assert verify(world.leaf, crls, revocationcheck=mode) == leaf
        assert verify(world.leaf, crls, revocationcheck=mode, ignoreerrors=["revocation"]) == "ok"
        offline = ["revocationoffline"]
        assert verify(world.leaf, crls, revocationcheck=mode, ignoreerrors=offline) == leaf


@pytest.mark.parametrize(
    ("mode", "verdict"), [("all", "revoked"), ("excluderoot", "revoked"), ("none", "ok")]
)
def test_an_intermediate_is_revoked(world: World, mode: str, verdict: str) -> None:
    crls = world.middle.crl() + world.root.crl(world.middle)
    assert verify(world.leaf, crls, revocationcheck=mode) == verdict


@pytest.mark.parametrize("mode", ["all", "leaf", "excluderoot"])
def test_lists_that_clear(world: World, mode: str) -> None:
    root, between = world.root, world.middle
    assert verify(world.leaf, between.crl() + root.crl(), revocationcheck=mode) == "ok"
    if mode == "leaf":
        for crls in (between.crl(), between.crl() + root.crl(between)):
            assert verify(world.leaf, crls, revocationcheck=mode) == "ok"


def test_a_root_that_revokes_itself(world: World) -> None:
    crls = world.middle.crl() + world.root.crl(world.root)
    assert verify(world.leaf, crls, revocationcheck="excluderoot") == "ok"
    assert verify(world.leaf, crls, revocationcheck="leaf") == "ok"


@pytest.mark.parametrize("mode", ["all", "leaf", "excluderoot"])
def test_nothing_to_go_by(world: World, mode: str) -> None:
    root, middle = world.root, world.middle
    for crls in (b"", root.crl()):
        assert verify(world.leaf, crls, revocationcheck=mode) == "revocationunknown"
    if mode != "leaf":
        assert verify(world.leaf, middle.crl(), revocationcheck=mode) == "revocationunknown"
    for ignored in ("revocation", "revocationoffline"):
        assert verify(world.leaf, revocationcheck=mode, ignoreerrors=[ignored]) == "ok"


def test_lists_that_do_not_count(world: World) -> None:
    """Stale, from the future, signed by another, of another issuer."""
    root, middle = world.root, world.middle
    stale = middle.crl(age=10 * DAY, life=5 * DAY)
    assert verify(world.leaf, stale + root.crl(), revocationcheck="all") == "revocationoffline"
    early = middle.crl(age=-DAY)
    assert verify(world.leaf, early + root.crl(), revocationcheck="all") == "revocationoffline"
    forged = middle.crl(signer=authority("x"))
    assert verify(world.leaf, forged + root.crl(), revocationcheck="all") == "revocationunknown"
    forged = middle.crl(world.leaf, signer=authority("x"))
    assert verify(world.leaf, forged + root.crl(), revocationcheck="all") == "revocationunknown"
    foreign = authority("Foreign").crl()
    assert verify(world.leaf, foreign + root.crl(), revocationcheck="all") == "revocationunknown"
    # a stale list that names it is still a fact
    old = middle.crl(world.leaf, age=10 * DAY, life=5 * DAY)
    assert verify(world.leaf, old + root.crl(), revocationcheck="all") == "revoked"


def test_the_fresh_list_beats_the_stale_one(world: World) -> None:
    stale = world.middle.crl(age=10 * DAY, life=5 * DAY)
    assert verify(world.leaf, stale + world.crls, revocationcheck="all") == "ok"
    assert (
        verify(
            world.leaf,
            world.middle.crl(age=2 * DAY)
            + world.middle.crl(world.leaf, age=HOUR)
            + world.root.crl(),
            revocationcheck="all",
        )
        == "revoked"
    )


def test_the_default_is_to_check(world: World) -> None:
    cert = tls.cert_import(world.leaf.der)
    root = [tls.cert_import(world.root.der)]
    store = store_of([world.middle])
    assert tls.cert_tls_verify(cert, HOST, store, root) == "revocationunknown"
    revoked = world.middle.crl(world.leaf) + world.root.crl()
    store = store_of([world.middle], revoked)
    assert tls.cert_tls_verify(cert, HOST, store, root) == "revoked"


# --- revocation: the stapled answer


def stapled(world: World, answer: bytes | None, **options: Any) -> str:
    options.setdefault("revocationcheck", "leaf")
    return verify(world.leaf, ocsp=answer, **options)


def test_stapled_answers(world: World) -> None:
    middle, leaf = world.middle, world.leaf
    good, revoked, unknown = (
        ocsp.OCSPCertStatus.GOOD,
        ocsp.OCSPCertStatus.REVOKED,
        ocsp.OCSPCertStatus.UNKNOWN,
    )
    assert stapled(world, middle.answer(leaf)) == "ok"
    assert stapled(world, middle.answer(leaf, algorithm=hashes.SHA256())) == "ok"
    assert stapled(world, middle.answer(leaf, revoked)) == "revoked"
    assert stapled(world, middle.answer(leaf, unknown)) == "revocationunknown"
    assert stapled(world, middle.answer(leaf, good, age=3 * DAY)) == "revocationoffline"
    assert stapled(world, middle.answer(leaf, good, age=-HOUR)) == "revocationoffline"
    assert stapled(world, middle.answer(leaf, good, life=None)) == "ok"
    assert stapled(world, middle.answer(leaf, good, life=None, age=30 * DAY)) == "revocationoffline"
    # revoked stays so, but a hold may be lifted
    assert stapled(world, middle.answer(leaf, revoked, age=30 * DAY)) == "revoked"
    hold = ReasonFlags.certificate_hold
    assert stapled(world, middle.answer(leaf, revoked, reason=hold)) == "revoked"
    old_hold = middle.answer(leaf, revoked, reason=hold, age=30 * DAY)
    assert stapled(world, old_hold) == "revocationoffline"


def test_stapled_answers_of_others(world: World) -> None:
    middle, leaf = world.middle, world.leaf
    other = mint("other", middle, names=[HOST])
    assert stapled(world, middle.answer(other)) == "revocationunknown"
    fake = authority("World intermediate")
    assert stapled(world, fake.answer(leaf)) == "revocationunknown"
    assert stapled(world, fake.answer(leaf, issuer=middle)) == "revocationunknown"
    assert stapled(world, world.root.answer(leaf, issuer=middle)) == "revocationunknown"
    # the leaf itself cannot answer for itself
    assert stapled(world, leaf.answer(leaf, issuer=middle)) == "revocationunknown"


def test_stapled_answers_by_a_delegate(world: World) -> None:
    middle, leaf = world.middle, world.leaf
    responder = mint("Responder", middle, eku=[OCSP_SIGNING])
    assert stapled(world, middle.answer(leaf, responder=responder)) == "ok"
    revoked = middle.answer(leaf, ocsp.OCSPCertStatus.REVOKED, responder=responder)
    assert stapled(world, revoked) == "revoked"
    undelegated = mint("Not a responder", middle)
    assert stapled(world, middle.answer(leaf, responder=undelegated)) == "revocationunknown"
    of_another = mint("Responder", world.root, eku=[OCSP_SIGNING])
    assert stapled(world, middle.answer(leaf, responder=of_another)) == "revocationunknown"
    expired = mint("Responder", middle, eku=[OCSP_SIGNING], ends=-HOUR)
    assert stapled(world, middle.answer(leaf, responder=expired)) == "revocationunknown"


@pytest.mark.parametrize("answer", [b"", b"garbage", b"\x30\x03\x0a\x01\x06", b"\x30" * 1000])
def test_stapled_garbage_is_no_answer(world: World, answer: bytes) -> None:
    assert stapled(world, answer) == "revocationunknown"


def test_a_stapled_answer_is_about_the_leaf_only(world: World) -> None:
    answer = world.middle.answer(world.leaf)
    assert stapled(world, answer, revocationcheck="all") == "revocationunknown"
    assert verify(world.leaf, world.root.crl(), ocsp=answer, revocationcheck="all") == "ok"
    assert stapled(world, answer, revocationcheck="none") == "ok"
    bad = world.middle.answer(world.leaf, ocsp.OCSPCertStatus.REVOKED)
    assert stapled(world, bad, revocationcheck="none") == "ok"
    # it does not overrule a list that says revoked
    crls = world.middle.crl(world.leaf) + world.root.crl()
    assert verify(world.leaf, crls, ocsp=answer, revocationcheck="all") == "revoked"


@pytest.mark.peers
@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("status", ["GOOD", "REVOKED"])
def test_stapled_by_a_server(pki: Pki, version: str, status: str, tmp_path: Path) -> None:
    """openssl s_server staples; automatic verification takes note."""
    issuer = authority("Stapling root")
    leaf = mint("localhost", issuer, names=["localhost"])
    answer = issuer.answer(leaf, ocsp.OCSPCertStatus[status])
    files = {"leaf.pem": leaf.pem, "key.pem": leaf.key_pem(), "answer.der": answer}
    for word, data in files.items():
        (tmp_path / word).write_bytes(data)
    credentials = tls.sspi_acquire_credentials(
        credentials=tls.sspi_schannel_credentials(
            rootstore=tls.cert_temporary_store(pem=issuer.pem), revocationcheck="endonly"
        )
    )
    command = [peers.require("openssl"), "s_server", "-accept", "127.0.0.1:0"]
    command += ["-cert", str(tmp_path / "leaf.pem"), "-key", str(tmp_path / "key.pem")]
    command += ["-status_file", str(tmp_path / "answer.der"), f"-tls{version.replace('.', '_')}"]
    peer = peers.Peer(command)
    try:
        port = int(peer.expect(rb"ACCEPT \S*:(\d+)\r?\n")[1])
        where: dict[str, Any] = {"peersubject": "localhost", "credentials": credentials}
        if status == "GOOD":
            tls.tls_socket("127.0.0.1", port, **where).close()
        else:
            with pytest.raises(TLSError) as caught:
                tls.tls_socket("127.0.0.1", port, **where)
            assert caught.value.name == "CRYPT_E_REVOKED"
            assert caught.value.alert_sent == "certificate_revoked"
    finally:
        peer.stop()


# --- revocation: fetched lists


class Library:
    """An HTTP server of CRLs on the loopback interface."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | tuple[int, str]] = {}
        self.asked: list[str] = []
        self.released = threading.Event()
        library = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                library.asked.append(self.path)
                if self.path == "/stall":
                    library.released.wait(20)
                    return
                page = library.pages.get(self.path, (404, ""))
                if isinstance(page, bytes):
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(page)))
                    self.end_headers()
                    self.wfile.write(page)
                else:
                    self.send_response(page[0])
                    self.send_header("Location", page[1])
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """No words on standard error."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


@contextmanager
def opened_library() -> Iterator[Library]:
    library = Library()
    try:
        yield library
    finally:
        library.close()


def points(*urls: str) -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (
            x509.CRLDistributionPoints(
                [
                    x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
                    for url in urls
                ]
            ),
            False,
        )
    ]


def der_of(crl: bytes) -> bytes:
    return x509.load_pem_x509_crl(crl).public_bytes(Encoding.DER)


def test_fetch(world: World) -> None:
    with opened_library() as library:
        middle = authority("m", world.root, extensions=points(library.url("/root.crl")))
        leaf = mint("x", middle, names=[HOST], extensions=points(library.url("/middle.crl")))
        library.pages = {
            "/root.crl": der_of(world.root.crl()),
            "/middle.crl": der_of(middle.crl()),
        }
        assert verify(leaf, revocationcheck="all") == "revocationunknown"
        assert verify(leaf, fetch=True) == "ok"  # revocationcheck none
        assert library.asked == []
        assert verify(leaf, revocationcheck="all", fetch=True) == "ok"
        assert sorted(library.asked) == ["/middle.crl", "/root.crl"]
        library.asked.clear()
        assert verify(leaf, revocationcheck="leaf", fetch=True) == "ok"
        assert library.asked == ["/middle.crl"]
        library.pages["/middle.crl"] = der_of(middle.crl(leaf))
        assert verify(leaf, revocationcheck="all", fetch=True) == "revoked"
        library.pages["/middle.crl"] = der_of(middle.crl(age=9 * DAY, life=DAY))
        assert verify(leaf, revocationcheck="all", fetch=True) == "revocationoffline"
        library.pages["/middle.crl"] = der_of(middle.crl(signer=authority("thief")))
        assert verify(leaf, revocationcheck="all", fetch=True) == "revocationunknown"
        library.pages["/middle.crl"] = b"no CRL"
        assert verify(leaf, revocationcheck="all", fetch=True) == "revocationunknown"
        library.pages["/middle.crl"] = middle.crl()  # PEM: RFC 5280, 4.2.1.13 says DER
        assert verify(leaf, revocationcheck="all", fetch=True) == "revocationunknown"
        del library.pages["/middle.crl"]
        assert verify(leaf, revocationcheck="all", fetch=True) == "revocationunknown"


def test_nothing_is_fetched_without_need(world: World) -> None:
    """Not of a bad path: URLs of strangers are not followed; not what is at hand."""
    with opened_library() as library:
        url = points(library.url("/x.crl"))
        stranger = authority("stranger")
        options: dict[str, Any] = {"revocationcheck": "all", "fetch": True}
        cases = [
            (mint("x", stranger, names=[HOST], extensions=url), {"trustedroots": ()}),
            (mint("x", world.middle, names=["b.example"], extensions=url), {}),
            (mint("x", world.middle, names=[HOST], ends=-HOUR, extensions=url), {}),
        ]
        for cert, more in cases:
            assert verify(cert, **options, **more) not in ("ok", "revocationunknown")
        good = mint("x", world.middle, names=[HOST], extensions=url)
        assert verify(good, world.crls, **options) == "ok"
        assert library.asked == []


def test_only_http_is_followed_and_the_next_point_is_tried(world: World) -> None:
    with opened_library() as library:
        library.pages = {"/good.crl": der_of(world.root.crl())}
        tries = [
            "ldap://127.0.0.1/x",
            "file:///etc/passwd",
            "https://127.0.0.1:9/x",
            "ftp://127.0.0.1:9/x",
            library.url("/missing.crl"),
            library.url("/good.crl"),
        ]
        leaf = mint("x", world.root, names=[HOST], extensions=points(*tries))
        assert verify(leaf, revocationcheck="all", fetch=True) == "ok"
        assert library.asked == ["/missing.crl", "/good.crl"]


def test_a_redirection_is_followed(world: World) -> None:
    with opened_library() as library:
        library.pages = {
            "/moved.crl": (302, library.url("/good.crl")),
            "/good.crl": der_of(world.root.crl()),
            "/round": (302, library.url("/round")),
        }
        leaf = mint("x", world.root, names=[HOST], extensions=points(library.url("/moved.crl")))
        assert verify(leaf, revocationcheck="all", fetch=True) == "ok"
        loop = mint("x", world.root, names=[HOST], extensions=points(library.url("/round")))
        assert (
            verify(loop, revocationcheck="all", fetch=True, fetchtimeout=2) == "revocationunknown"
        )


def test_a_fetch_ends_at_its_deadline(world: World) -> None:
    with opened_library() as library:
        leaf = mint("x", world.root, names=[HOST], extensions=points(library.url("/stall")))
        began = time.monotonic()
        verdict = verify(leaf, revocationcheck="all", fetch=True, fetchtimeout=0.5)
        assert verdict == "revocationunknown"
        assert 0.4 < time.monotonic() - began < 3
    with pytest.raises(ValueError, match="fetchtimeout"):
        verify(leaf, fetch=True, fetchtimeout=-1)
    with pytest.raises(ValueError, match="fetchtimeout"):
        verify(leaf, fetch=True, fetchtimeout=float("nan"))


def test_a_fetch_to_nowhere_is_unknown(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/x", "http://nowhere.invalid/x", "http://"):
        leaf = mint("x", world.root, names=[HOST], extensions=points(url))
        assert (
            verify(leaf, revocationcheck="all", fetch=True, fetchtimeout=5) == "revocationunknown"
        )


def test_a_fetch_lets_other_threads_run(world: World) -> None:
    with opened_library() as library:
        leaf = mint("x", world.root, names=[HOST], extensions=points(library.url("/stall")))
        verdicts: list[str] = []
        thread = threading.Thread(
            target=lambda: verdicts.append(
                verify(leaf, revocationcheck="all", fetch=True, fetchtimeout=15)
            )
        )
        thread.start()
        end = time.monotonic() + 10
        while not library.asked and time.monotonic() < end:
            threading.Event().wait(0.01)
        assert library.asked == ["/stall"]
        assert verify(leaf) == "ok"  # meanwhile
        library.released.set()
        thread.join(15)
        assert verdicts == ["revocationunknown"]


def test_a_fetch_keeps_no_store_from_others(world: World) -> None:
    """A responder that stalls holds up who asked it, not all with the same anchors."""
    with opened_library() as library:
        leaf = mint("x", world.root, names=[HOST], extensions=points(library.url("/stall")))
        roots = tls.cert_temporary_store(pem=world.root.pem)
        with ThreadPoolExecutor(2) as pool:
            slow = pool.submit(
                verify,
                leaf,
                revocationcheck="all",
                fetch=True,
                fetchtimeout=15,
                trustedroots=roots,
            )
            end = time.monotonic() + 10
            while not library.asked and time.monotonic() < end:
                threading.Event().wait(0.01)
            assert library.asked == ["/stall"]
            quick = pool.submit(verify, leaf, trustedroots=roots)
            try:
                assert quick.result(5) == "ok"
            finally:
                library.released.set()
            # crypt32 has a word of its own for a responder that does not answer
            assert slow.result(15) in ("revocationunknown", "revocationoffline")


def test_a_fetch_of_a_channel_is_off_the_event_loop() -> None:
    """While the CRL is waited for, the loop goes on."""
    with opened_library() as library:
        root = authority("Loop root")
        url = points(library.url("/stall"))
        leaf = mint("localhost", root, names=["localhost"], extensions=url)
        server = tls.sspi_acquire_credentials(
            role="server",
            credentials=tls.sspi_schannel_credentials(
                tls.cert_temporary_store(pem=leaf.key_pem() + leaf.pem)
            ),
        )
        client = tls.sspi_acquire_credentials(
            credentials=tls.sspi_schannel_credentials(
                rootstore=tls.cert_temporary_store(pem=root.pem),
                revocationcheck="full",
                fetchrevocation=True,
                fetchtimeout=15,
            )
        )

        async def run() -> tuple[str, str]:
            a, b = socket.socketpair()
            a.setblocking(False)
            b.setblocking(False)
            theirs = tls.starttls(b, server=True, credentials=server)
            ours = tls.starttls(a, peersubject="localhost", credentials=client)
            while not library.asked:
                await asyncio.sleep(0.005)
            meanwhile = tls.tls_state(ours)
            library.released.set()
            while tls.tls_state(ours) == "NEGOTIATING":
                await asyncio.sleep(0.005)
            error = ours.cget("error")
            ours.close()
            with pytest.raises(OSError):
                theirs.recv(1)
            theirs.close()
            return meanwhile, str(error)

        meanwhile, error = asyncio.run(asyncio.wait_for(run(), 20))
        assert meanwhile == "NEGOTIATING"
        assert "CERT_E_REVOCATION_FAILURE" in error or "REVOCATION" in error


# --- arguments


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"revocationcheck": "some"}, ValueError, "'some'"),
        ({"engine": "steam"}, ValueError, "'steam'"),
        ({"ignoreerrors": ["everything"]}, ValueError, "'everything'"),
        ({"usageall": ["x"]}, ValueError, "'x'"),
        ({"usageany": ["server_auth", ""]}, ValueError, "''"),
        ({"usageall": ["server_auth"], "usageany": ["client_auth"]}, TypeError, "together"),
        ({"server": 5}, TypeError, "5"),
        ({"server": "a\0b"}, ValueError, "NUL"),
        ({"hstore": "x"}, TypeError, "hstore"),
        ({"trustedroots": ["x"]}, TypeError, "trustedroots"),
        ({"ocsp": "text"}, TypeError, "bytes-like"),
    ],
)
def test_arguments(world: World, options: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        verify(world.leaf, **options)


def test_what_is_no_host_names_nothing(world: World) -> None:
    for server in ("", ".", "..", "*", "*.example", "a example", "a" * 300, "http://a.example"):
        assert verify(world.leaf, server=server) == "cnmatch", server


def test_many_verifications_at_once(world: World) -> None:
    """One certificate and one store, from several threads."""
    cert: Certificate = tls.cert_import(world.leaf.der)
    store, root = store_of([world.middle], world.crls), [tls.cert_import(world.root.der)]
    verdicts: list[str] = []

    def work() -> None:
        for _ in range(20):
            verdicts.append(tls.cert_tls_verify(cert, HOST, store, root))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert verdicts == ["ok"] * 80


# --- a path that was found good is remembered; what it does not settle is not


def judged(leaf: bytes, world: World, roots: Store, **options: Any) -> str:
    """The verdict as a client's handshake asks for it."""
    options.setdefault("server", HOST)
    code = _native.Certificate.from_der(leaf).verify(
        extra=store_of([world.middle]).native, roots=roots.native, **options
    )[0]
    return RESULTS.get(code, hex(code)) if code else "ok"


def test_a_good_path_vouches_for_nothing_else(world: World) -> None:
    roots = store_of([world.root])
    for _ in range(2):
        assert judged(world.leaf.der, world, roots) == "ok"
    assert judged(world.leaf.der, world, roots, server="b.example") == "cnmatch"
    assert judged(world.leaf.der, world, roots, usages=[CLIENT_AUTH.dotted_string]) == "wrongusage"
    assert judged(world.leaf.der, world, roots, server=None) == "wrongusage"
    assert judged(world.leaf.der, world, roots, revocation="all") == "revocationunknown"
    forged = bytearray(world.leaf.der)
    forged[-1] ^= 1
    assert judged(bytes(forged), world, roots) == "signature"
    assert judged(world.leaf.der, world, store_of([authority("Another root")])) == "partialchain"
    assert judged(world.leaf.der, world, roots) == "ok"


def test_a_bad_path_is_asked_again(world: World) -> None:
    roots = tls.cert_temporary_store()
    assert judged(world.leaf.der, world, roots) == "partialchain"
    tls.cert_store_add_encoded_certificate(roots, world.root.der)
    assert judged(world.leaf.der, world, roots) == "ok"


def test_what_was_good_only_with_errors_ignored_is_asked_again(world: World) -> None:
    roots = store_of([world.root])
    old = mint("World old", world.middle, names=[HOST], begins=-2 * DAY, ends=-DAY)
    ignore = _native.IGNORE["time"]
    assert judged(old.der, world, roots, ignore=ignore) == "ok"
    assert judged(old.der, world, roots) == "time"
