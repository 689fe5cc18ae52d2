"""Certificates one by one, with the ``cryptography`` package as oracle."""

from __future__ import annotations

import datetime
import gc
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from certs import Pki
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from mint import CLIENT_AUTH, SERVER_AUTH, Minted, authority, general_name, mint, name, version_1
from platforms import WINE

import twapi_tls as tls
from twapi_tls import Certificate, TLSError


def imported(minted: Minted) -> Certificate:
    return tls.cert_import(minted.der)


# --- import and export


@pytest.fixture(scope="module")
def one() -> Minted:
    return mint("One", names=["one.example"])


def test_import_der_and_pem(one: Minted) -> None:
    forms: list[Any] = [
        one.der,
        bytearray(one.der),
        memoryview(one.der),
        one.pem,
        one.pem.decode(),
        b"Subject: CN=One\n\n" + one.pem,
        one.pem.replace(b"\n", b"\r\n"),
        one.pem.replace(b"CERTIFICATE", b"X509 CERTIFICATE"),
    ]
    for form in forms:
        cert = tls.cert_import(form)
        assert cert.der() == one.der
        assert not cert.has_private_key()
    assert tls.cert_import(one.der, "der") == tls.cert_import(one.pem, "pem")


def test_import_takes_the_first_of_several(one: Minted) -> None:
    assert tls.cert_import(one.pem + mint("Two").pem).der() == one.der


@pytest.mark.parametrize(
    ("data", "encoding", "error"),
    [
        (b"", None, TLSError),
        (b"", "pem", TLSError),
        ("", None, TLSError),
        (b"garbage", None, TLSError),
        (b"\x30\x03\x02\x01\x05", None, TLSError),
        (b"-----BEGIN CERTIFICATE-----\n", None, TLSError),
        (5, None, TypeError),
        (None, None, TypeError),
        (b"x", "text", ValueError),
        (b"x" * (65 << 20), "der", ValueError),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_import_of_what_is_none(data: Any, encoding: str | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        tls.cert_import(data, encoding)


def test_import_says_what_is_wrong(one: Minted) -> None:
    with pytest.raises(TLSError, match="bytes follow the certificate"):
        tls.cert_import(one.der + b"\0")
    with pytest.raises(TLSError):
        tls.cert_import(one.der[:-1])
    with pytest.raises(TLSError):
        tls.cert_import(one.pem, "der")
    with pytest.raises(TLSError):
        tls.cert_import(one.der, "pem")
    with pytest.raises(ValueError, match="holds no certificate"):
        tls.cert_import(one.key_pem())


@settings(max_examples=200)
@given(at=st.integers(0, 600), bit=st.integers(0, 7))
def test_a_damaged_certificate_is_refused_or_itself(at: int, bit: int) -> None:
    """No bit turned brings the parser down; what it takes, it gives back as it came."""
    data = bytearray(_DAMAGED.der)
    at %= len(data)
    data[at] ^= 1 << bit
    try:
        cert = tls.cert_import(bytes(data), "der")
    except TLSError:
        return
    tls.cert_info(cert)
    tls.cert_subject_name(cert, "simpledisplay")
    # The octet before the signature counts its unused bits (X.690, 8.6.2.2): a
    # parser may clear those that are said to be unused, or none.
    signature = x509.load_der_x509_certificate(_DAMAGED.der).signature
    unused = len(data) - len(signature) - 1
    if at == unused:
        return
    assert cert.der() == bytes(data)
    # Of the algorithm that is named outside the signed part Wine looks at the
    # object identifier only; its parameters are NULL, 6 octets further ahead.
    if WINE and at == unused - 6:
        return
    assert (
        tls.cert_tls_verify(
            cert,
            "one.example",
            trustedroots=[tls.cert_import(_DAMAGED_ROOT.der)],
            exclusiveroots=True,
            revocationcheck="none",
        )
        != "ok"
    )


def test_what_is_not_der_is_refused() -> None:
    """A signature's padding bits: libssl takes them and would give back others."""
    data = bytearray(_DAMAGED.der)
    padding = len(data) - len(_DAMAGED.certificate.signature) - 1
    assert data[padding] == 0
    data[padding] = 1
    data[-1] |= 1
    with pytest.raises(TLSError, match="DER"):
        tls.cert_import(bytes(data), "der")


_DAMAGED_ROOT = authority("Root of the damaged")
_DAMAGED = mint("Damaged", _DAMAGED_ROOT, names=["one.example"])


def test_export(one: Minted) -> None:
    cert = imported(one)
    assert tls.cert_export(cert, "der") == one.der
    assert tls.cert_export(cert) == tls.cert_export(cert, "pem") == one.pem
    with pytest.raises(ValueError, match="'text'"):
        tls.cert_export(cert, "text")


def test_equality_and_hash(one: Minted) -> None:
    a, b, other = imported(one), imported(one), imported(mint("Other"))
    assert a == b and hash(a) == hash(b) and len({a, b, other}) == 2
    assert a != other and a != one.der
    with_key = tls.cert_temporary_store(pem=one.combined)[0]
    assert with_key == a


# --- handles


def test_duplicate_and_release(one: Minted) -> None:
    cert = imported(one)
    twin = tls.cert_duplicate(cert)
    tls.cert_release(cert)
    tls.cert_release(cert)
    assert twin.der() == one.der
    uses: list[Callable[[Certificate], object]] = [
        lambda cert: cert.der(),
        tls.cert_export,
        tls.cert_info,
        tls.cert_thumbprint,
        tls.cert_subject_name,
        tls.cert_issuer_name,
        tls.cert_duplicate,
        tls.cert_tls_verify,
        lambda cert: tls.sspi_schannel_credentials([cert]),
        lambda cert: tls.cert_store_add_certificate(tls.cert_temporary_store(), cert),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="certificate was released"):
            use(cert)
    assert repr(cert) == "<Certificate released>"
    with twin:
        pass
    with pytest.raises(ValueError, match="released"):
        twin.der()


def test_a_key_of_a_released_store_still_serves(one: Minted) -> None:
    store = tls.cert_temporary_store(pem=one.combined)
    cert = tls.cert_store_find_certificate(store)
    assert cert is not None
    tls.cert_store_release(store)
    credentials = tls.sspi_acquire_credentials(
        "unisp", "server", tls.sspi_schannel_credentials([cert])
    )
    tls.cert_release(cert)
    gc.collect()
    context = tls.sspi_server_context(credentials)
    assert tls.sspi_step(context)[0] == "continue"
    context.delete()


# --- names


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (name("a.example"), ("a.example", "a.example", "CN=a.example")),
        (
            name("Ünïcode ☃ 名前"),
            ("Ünïcode ☃ 名前", "Ünïcode ☃ 名前", "CN=Ünïcode ☃ 名前"),
        ),
        (
            name(None, (NameOID.ORGANIZATION_NAME, "Only, Org")),
            ("", "Only, Org", r"O=Only\, Org"),
        ),
        (
            name("last", (NameOID.COMMON_NAME, "first")),
            ("last", "last", "CN=last, CN=first"),
        ),
        (x509.Name([]), ("", "", "")),
        (
            name("a", (NameOID.COUNTRY_NAME, "IN"), (NameOID.ORGANIZATION_NAME, 'q"u;o<t>e')),
            ("a", "a", r"CN=a, O=q\"u\;o\<t\>e, C=IN"),
        ),
        (
            name(None, (NameOID.ORGANIZATION_NAME, " # blank ")),
            ("", " # blank ", "O=\\ # blank\\ "),
        ),
    ],
)
def test_names(subject: x509.Name, expected: tuple[str, str, str]) -> None:
    cert = imported(mint(subject))
    common, display, whole = expected
    for get in (tls.cert_subject_name, tls.cert_issuer_name):
        assert get(cert) == get(cert, "oid_common_name") == get(cert, "2.5.4.3") == common
        assert get(cert, "simpledisplay") == display
        assert get(cert, "rdn") == whole


def test_a_zero_in_a_name_stays_visible() -> None:
    """The old trick: a name that a C string would cut short."""
    cert = imported(mint(name("good.example\0.evil.example"), names=["harmless.example"]))
    assert tls.cert_subject_name(cert) == "good.example\0.evil.example"
    assert not cert.matches("good.example", common_name=True)


def test_multi_valued_rdn() -> None:
    subject = x509.Name(
        [
            x509.RelativeDistinguishedName(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, "both"),
                    x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.example"),
                ]
            )
        ]
    )
    cert = imported(mint(subject))
    assert tls.cert_subject_name(cert) == "both"
    assert set(tls.cert_subject_name(cert, "rdn").split(" + ")) == {
        "CN=both",
        "emailAddress=a@b.example",
    }


def test_alternative_names() -> None:
    cert = imported(
        mint(
            "common",
            names=[
                "first.example",
                "second.example",
                "192.0.2.7",
                "2001:db8::7",
                x509.RFC822Name("mail@first.example"),
                x509.UniformResourceIdentifier("https://first.example/a?b"),
            ],
        )
    )
    assert tls.cert_subject_name(cert, "dns") == "first.example"
    assert tls.cert_subject_name(cert, "ip") == "192.0.2.7"
    assert tls.cert_subject_name(cert, "email") == "mail@first.example"
    assert tls.cert_subject_name(cert, "url") == "https://first.example/a?b"
    assert tls.cert_info(cert)["ip"] == ["192.0.2.7", "2001:db8::7"]
    bare = imported(mint("common"))
    assert [tls.cert_subject_name(bare, kind) for kind in ("dns", "ip", "email", "url")] == [
        "common",
        "",
        "",
        "",
    ]
    for get in (tls.cert_subject_name, tls.cert_issuer_name):
        with pytest.raises(ValueError, match="'colour'"):
            get(cert, "colour")
    with pytest.raises(ValueError, match="'dns'"):
        tls.cert_issuer_name(cert, "dns")


# --- what it names

HOSTS = [
    # (names in the certificate, host, does it match)
    (["a.example"], "a.example", True),
    (["a.example"], "A.EXAMPLE", True),
    (["A.Example"], "a.example", True),
    (["a.example"], "a.example.", True),
    (["a.example"], "b.a.example", False),
    (["a.example"], "example", False),
    (["a.example"], ".example", False),
    (["a.example"], "", False),
    (["*.a.example"], "b.a.example", True),
    (["*.a.example"], "a.example", False),
    (["*.a.example"], "c.b.a.example", False),
    (["*.a.example"], ".a.example", False),
    (["*.a.example"], "*.a.example", False),
    (["b*.a.example"], "bc.a.example", False),
    (["*b.a.example"], "cb.a.example", False),
    (["b.*.example"], "b.a.example", False),
    (["*.*.example"], "b.a.example", False),
    (["*"], "example", False),
    (["*.example"], "a.example", False),  # as OpenSSL: two labels must stand after it
    (["*.xn--bcher-kva.example"], "www.bücher.example", True),
    (["xn--bcher-kva.example"], "bücher.example", True),
    (["xn--bcher-kva.example"], "BÜCHER.example", True),
    (["xn--bcher-kva.example"], "bucher.example", False),
    (["192.0.2.1"], "192.0.2.1", True),
    (["192.0.2.1"], "192.0.2.2", False),
    (["2001:db8::1"], "2001:0DB8:0::0001", True),
    (["2001:db8::1"], "[2001:db8::1]", True),
    (["fe80::1"], "fe80::1%lo", True),
    ([x509.DNSName("192.0.2.1")], "192.0.2.1", False),
    ([x509.DNSName("*.0.2.1")], "192.0.2.1", False),
    (["::ffff:192.0.2.1"], "192.0.2.1", False),
    ([x509.RFC822Name("root@a.example")], "a.example", False),
    ([x509.UniformResourceIdentifier("https://a.example")], "a.example", False),
]


@pytest.mark.parametrize(("names", "host", "expected"), HOSTS)
def test_matches(names: list[str], host: str, expected: bool) -> None:
    cert = imported(mint("a.example", names=names))
    assert cert.matches(host) is expected
    # the common name never counts beside a subject alternative name
    assert cert.matches(host, common_name=True) is expected


def test_common_name_counts_only_alone_and_if_asked() -> None:
    alone = imported(mint("a.example"))
    assert not alone.matches("a.example")
    assert alone.matches("a.example", common_name=True)
    assert not alone.matches("b.example", common_name=True)
    address = imported(mint("192.0.2.1"))
    assert not address.matches("192.0.2.1", common_name=True)
    beside = imported(mint("a.example", names=["b.example"]))
    assert not beside.matches("a.example", common_name=True)
    mail = imported(mint("a.example", names=[x509.RFC822Name("x@y.example")]))
    assert not mail.matches("a.example", common_name=True)


@settings(max_examples=100)
@given(
    address=st.ip_addresses(),
    other=st.ip_addresses(),
)
def test_addresses_match_by_value(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    other: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    cert = imported(mint("x", names=[str(address)], key=_KEY))
    assert cert.matches(str(address)) and cert.matches(address.exploded)
    assert cert.matches(str(other)) is (address == other)


_KEY = ec.generate_private_key(ec.SECP256R1())


# --- digests


@settings(max_examples=20)
@given(serial=st.integers(1, (1 << 159) - 1))
def test_thumbprint_and_serial(serial: int) -> None:
    minted = mint("x", serial=serial, key=_KEY)
    cert = imported(minted)
    assert tls.cert_thumbprint(cert) == minted.certificate.fingerprint(hashes.SHA1()).hex()
    assert (
        tls.cert_thumbprint(cert, "sha256") == minted.certificate.fingerprint(hashes.SHA256()).hex()
    )
    assert int(tls.cert_info(cert)["serial"], 16) == serial


def test_thumbprint_of_another_algorithm(one: Minted) -> None:
    with pytest.raises(ValueError, match="'md5'"):
        tls.cert_thumbprint(imported(one), "md5")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\x81", "-7F"), (b"\xff\x01", "-FF"), (b"\x00", "0"), (b"\x00\x80", "80")],
)
def test_odd_serial_numbers(content: bytes, expected: str) -> None:
    """Negative and zero: RFC 5280 forbids them, certificates have them."""
    minted = mint("x", serial=0x7E if len(content) == 1 else 0x7EAA, key=_KEY)
    usual = bytes([2, len(content)]) + (b"\x7e" if len(content) == 1 else b"\x7e\xaa")
    assert minted.der.count(usual) == 1
    cert = tls.cert_import(minted.der.replace(usual, bytes([2, len(content)]) + content))
    assert int(tls.cert_info(cert)["serial"], 16) == int(expected, 16)
    store = tls.cert_temporary_store()
    tls.cert_store_add_certificate(store, cert)
    assert tls.cert_store_find_certificate(store, "serial_number", expected) == cert


# --- everything it says


def test_info_against_the_oracle(pki: Pki) -> None:
    identities = [pki.server, pki.server_rsa, pki.client, pki.expired, pki.self_signed]
    certificates = [each.certificate for each in identities]
    certificates += [pki.root_certificate, pki.intermediate_certificate]
    for each in certificates:
        info = tls.cert_info(tls.cert_import(each.public_bytes(serialization.Encoding.DER)))
        assert int(info["serial"], 16) == each.serial_number
        assert info["version"] == "3"
        assert when(info["notbefore"]) == each.not_valid_before_utc
        assert when(info["notafter"]) == each.not_valid_after_utc
        assert info["key_bits"] == each.public_key().key_size  # type: ignore[union-attr]
        basic = each.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert info["is_ca"] is basic.ca
        usage = each.extensions.get_extension_for_class(x509.KeyUsage).value
        words = {"digitalSignature": usage.digital_signature, "keyCertSign": usage.key_cert_sign}
        words |= {"cRLSign": usage.crl_sign, "keyEncipherment": usage.key_encipherment}
        assert set(info["usage"]) == {word for word, there in words.items() if there}
        try:
            eku = each.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            assert info["eku"] == [oid.dotted_string for oid in eku]
        except x509.ExtensionNotFound:
            assert info["eku"] == []
        try:
            names = each.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert info["dns"] == names.get_values_for_type(x509.DNSName)
            assert info["ip"] == [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
        except x509.ExtensionNotFound:
            assert info["dns"] == info["ip"] == []


def when(text: str) -> datetime.datetime:
    assert text.endswith("Z")
    return datetime.datetime.fromisoformat(text)


def test_info_of_a_full_certificate() -> None:
    minted = mint(
        "full",
        authority("Issuer ☃"),
        eku=[SERVER_AUTH, CLIENT_AUTH, x509.ObjectIdentifier("1.3.6.1.4.1.99999.1.2.3")],
        usage=["digital_signature", "key_agreement", "encipher_only"],
        extensions=[
            (
                x509.AuthorityInformationAccess(
                    [
                        x509.AccessDescription(
                            AuthorityInformationAccessOID.OCSP,
                            x509.UniformResourceIdentifier("http://ocsp.example/"),
                        ),
                        x509.AccessDescription(
                            AuthorityInformationAccessOID.CA_ISSUERS,
                            x509.UniformResourceIdentifier("http://ca.example/ca.crt"),
                        ),
                    ]
                ),
                False,
            ),
            (crl_points("http://crl.example/1", "http://crl.example/2"), False),
        ],
    )
    info = tls.cert_info(imported(minted))
    assert info["issuer"] == "CN=Issuer ☃"
    assert info["usage"] == ["digitalSignature", "keyAgreement", "encipherOnly"]
    assert info["eku"] == ["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2", "1.3.6.1.4.1.99999.1.2.3"]
    assert info["ocsp_url"] == ["http://ocsp.example/"]
    assert info["ca_url"] == ["http://ca.example/ca.crt"]
    assert info["crl_url"] == ["http://crl.example/1", "http://crl.example/2"]


def crl_points(*urls: str) -> x509.CRLDistributionPoints:
    return x509.CRLDistributionPoints(
        [
            x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
            for url in urls
        ]
    )


@pytest.mark.parametrize(
    ("make", "algorithm", "bits", "signature"),
    [
        (lambda: rsa.generate_private_key(65537, 2048), "RSA", 2048, "sha256WithRSAEncryption"),
        (lambda: ec.generate_private_key(ec.SECP384R1()), "EC", 384, "ecdsa-with-SHA256"),
    ],
)
def test_info_of_keys(make: Callable[[], Any], algorithm: str, bits: int, signature: str) -> None:
    info = tls.cert_info(imported(mint("key", key=make())))
    assert (info["key_algorithm"], info["key_bits"]) == (algorithm, bits)
    assert info["signature_algorithm"] == signature


def test_other_keys_serve_too(pki: Pki) -> None:
    """Ed25519 and RSA-PSS, as a foreign maker writes them."""
    key = ed25519.Ed25519PrivateKey.generate()
    pss = rsa.generate_private_key(65537, 2048)
    for private, sign in (
        (key, {"algorithm": None}),
        (
            pss,
            {
                "algorithm": hashes.SHA256(),
                "rsa_padding": padding.PSS(padding.MGF1(hashes.SHA256()), 32),
            },
        ),
    ):
        subject = name("odd key")
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(private.public_key())
            .serial_number(77)
            .not_valid_before(datetime.datetime(2020, 1, 1))
            .not_valid_after(datetime.datetime(2099, 12, 31, 23, 59, 59))
            .add_extension(x509.SubjectAlternativeName([general_name("odd.example")]), False)
            .sign(private, **sign)  # type: ignore[arg-type]
        )
        cert = tls.cert_import(made.public_bytes(serialization.Encoding.DER))
        assert tls.cert_info(cert)["notafter"] == "2099-12-31T23:59:59Z"
        assert (
            tls.cert_tls_verify(cert, "odd.example", trustedroots=[cert], revocationcheck="none")
            == "ok"
        )


def test_dates_beyond_2050_and_before_1970() -> None:
    minted = mint(
        "old and new",
        begins=datetime.timedelta(days=-25000),
        ends=datetime.timedelta(days=20000),
    )
    info = tls.cert_info(imported(minted))
    assert when(info["notbefore"]) == minted.certificate.not_valid_before_utc
    assert when(info["notafter"]) == minted.certificate.not_valid_after_utc


def test_version_1_has_no_extensions() -> None:
    cert = tls.cert_import(version_1(mint("Version one")))
    info = tls.cert_info(cert)
    assert info["version"] == "1"
    assert not info["is_ca"]
    assert info["dns"] == info["usage"] == info["eku"] == []
    assert tls.cert_subject_name(cert) == "Version one"


def short(text: str) -> bool:
    """Some versions of ``cryptography`` take X.520's 64 for bytes."""
    return len(text.encode()) <= 64


@settings(max_examples=40)
@given(
    text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=64).filter(
        short
    )
)
def test_any_text_is_a_name(text: str) -> None:
    minted = mint(name(text), key=_KEY)
    cert = imported(minted)
    assert tls.cert_subject_name(cert) == text
    assert tls.cert_subject_name(cert, "simpledisplay") == text
    store = tls.cert_temporary_store(pem=minted.pem)
    assert tls.cert_store_find_certificate(store, "subject_substring", text) == cert
    assert (
        tls.cert_store_find_certificate(store, "subject_name", tls.cert_subject_name(cert, "rdn"))
        == cert
    )


# --- cert_fetch


def test_fetch_of_a_server_that_nobody_trusts(pki: Pki) -> None:
    identity = pki.self_signed
    store = tls.cert_temporary_store(pem=identity.combined.read_bytes())
    credentials = tls.sspi_acquire_credentials(
        "unisp", "server", tls.sspi_schannel_credentials(store)
    )

    def serve_once(
        listener: socket.socket, options: dict[str, Any], failures: list[OSError]
    ) -> None:
        sock, _ = listener.accept()
        try:
            tls.starttls(sock, server=True, credentials=credentials, **options).close()
        except OSError as error:
            failures.append(error)

    for options in ({}, {"requestclientcert": True}):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(10)
            failures: list[OSError] = []

            thread = threading.Thread(target=serve_once, args=(listener, options, failures))
            thread.start()
            cert = tls.cert_fetch("127.0.0.1", listener.getsockname()[1], timeout=10)
            thread.join(10)
        assert cert.der() == identity.leaf_der
        assert len(failures) == 1  # the server was told that it will not go on


def test_fetch_is_bounded_and_leaves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(TimeoutError):
            tls.cert_fetch("127.0.0.1", silent.getsockname()[1], timeout=0.2)
    with pytest.raises(ConnectionRefusedError):
        tls.cert_fetch("127.0.0.1", silent_port(), timeout=5)


def silent_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return int(gone.getsockname()[1])
