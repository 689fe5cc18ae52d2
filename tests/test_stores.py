"""Certificate stores: filling, searching, releasing."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from certs import Pki
from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mint import Minted, authority, explicit, mint, name, pkcs7_of, sequence, tlv

import twapi_tls as tls
from twapi_tls import Certificate, Store, TLSError

PASSWORD = ("TWAPI", "TLS", "PASSWORD")
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def chain() -> list[Minted]:
    """Leaf, intermediate, root."""
    root = authority("Store root")
    middle = authority("Store intermediate", root)
    return [mint("Store leaf", middle, names=["leaf.example"]), middle, root]


def ders(store: Store) -> list[bytes]:
    return [cert.der() for cert in store]


def fitting(store: Store, kind: str, term: object = None) -> list[bytes]:
    """All that a search finds, by ``previous``."""
    found = []
    cert = tls.cert_store_find_certificate(store, kind, term)
    while cert is not None:
        found.append(cert.der())
        cert = tls.cert_store_find_certificate(store, kind, term, cert)
    return found


def run(command: list[str], data: bytes = b"") -> bytes:
    return subprocess.run(command, input=data, capture_output=True, timeout=30, check=True).stdout


# --- filling


def test_an_empty_store() -> None:
    with tls.cert_temporary_store() as store:
        assert len(store) == 0
        assert list(store) == []
        assert tls.cert_store_find_certificate(store) is None
        with pytest.raises(IndexError):
            store[0]


@pytest.mark.parametrize("form", ["pfx", "pkcs12"])
@pytest.mark.parametrize("password", ["correct horse", "pässwörd ☃", None, ""])
def test_pfx(chain: list[Minted], form: str, password: str | None) -> None:
    leaf, *above = chain
    data = leaf.pfx(password, above)
    store = tls.cert_temporary_store(**{form: data}, password=password)  # type: ignore[arg-type]
    assert ders(store) == [each.der for each in chain]
    assert [cert.has_private_key() for cert in store] == [True, False, False]


def test_pfx_takes_any_buffer(chain: list[Minted]) -> None:
    data = chain[0].pfx("pw")
    for buffer in (bytearray(data), memoryview(data)):
        assert len(tls.cert_temporary_store(pfx=buffer, password="pw")) == 1


@pytest.mark.peers
def test_pfx_of_openssl(chain: list[Minted], tmp_path: Path) -> None:
    """A file of another maker, with and without a MAC."""
    for options in ([], ["-nomac"]):
        data = openssl_pfx(chain, tmp_path, *options)
        store = tls.cert_temporary_store(pfx=data, password="pw")
        assert ders(store) == [each.der for each in chain]
        assert store[0].has_private_key()
        with pytest.raises(TLSError) as caught:
            tls.cert_temporary_store(pfx=data, password="other")
        assert caught.value.errorcode == PASSWORD


@pytest.mark.peers
def test_pfx_of_old_ciphers_is_no_matter_of_the_password(
    chain: list[Minted], tmp_path: Path
) -> None:
    try:
        data = openssl_pfx(chain, tmp_path, "-legacy")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"openssl has no legacy provider here: {error.stderr.decode()[:80]}")
    with pytest.raises(TLSError, match="RC2") as old:
        tls.cert_temporary_store(pfx=data, password="pw")
    assert old.value.errorcode != PASSWORD


def openssl_pfx(chain: list[Minted], folder: Path, *options: str) -> bytes:
    pem = folder / "all.pem"
    pem.write_bytes(chain[0].key_pem() + b"".join(each.pem for each in chain))
    command = [peers.require("openssl"), "pkcs12", "-export", "-in", str(pem)]
    return run([*command, "-passout", "pass:pw", *options])


def test_pfx_with_many_keys_keeps_them_all(chain: list[Minted]) -> None:
    """TWAPI's own test file has seven certificates and seven keys; Java's keytool and
    Windows make such files."""
    leaves = [mint(f"many {n}", chain[1]) for n in range(3)]
    bags = [bag for leaf in leaves for bag in safe_bags(leaf)]
    store = tls.cert_temporary_store(pfx=joined_pfx(bags))
    assert sorted(ders(store)) == sorted(each.der for each in leaves)
    assert all(cert.has_private_key() for cert in store)


# cryptography and openssl make no such files, so one is put together from
# the bags of several (RFC 7292, section 4), without a MAC.
_DATA = bytes.fromhex("06092a864886f70d010701")
_KEY_BAG = bytes.fromhex("060b2a864886f70d010c0a0101")


def safe_bags(one: Minted) -> list[bytes]:
    outer = sequence(one.pfx(None))  # version, authSafe
    infos = sequence(explicit(explicit(sequence(outer[1])[1])))
    return [bag for info in infos for bag in sequence(explicit(explicit(sequence(info)[1])))]


def joined_pfx(bags: list[bytes]) -> bytes:
    content = tlv(0x30, _DATA + tlv(0xA0, tlv(0x04, tlv(0x30, b"".join(bags)))))
    safe = tlv(0x30, _DATA + tlv(0xA0, tlv(0x04, tlv(0x30, content))))
    return tlv(0x30, b"\x02\x01\x03" + safe)


@pytest.mark.parametrize("der", [True, False])
def test_pkcs7(chain: list[Minted], der: bool) -> None:
    store = tls.cert_temporary_store(pkcs7=pkcs7_of(*chain, der=der))
    assert sorted(ders(store)) == sorted(each.der for each in chain)
    assert not any(cert.has_private_key() for cert in store)


def test_pkcs7_without_certificates_is_told_apart(chain: list[Minted]) -> None:
    enveloped = (
        pkcs7.PKCS7EnvelopeBuilder()
        .set_data(b"secret")
        .add_recipient(rsa_leaf().certificate)
        .encrypt(serialization.Encoding.DER, [])
    )
    with pytest.raises(TLSError, match="holds no certificates"):
        tls.cert_temporary_store(pkcs7=enveloped)


def rsa_leaf() -> Minted:
    return mint("rsa", key=rsa.generate_private_key(public_exponent=65537, key_size=2048))


@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize("password", [None, "hunter2"])
@pytest.mark.parametrize("key_first", [False, True])
def test_pem_with_key_and_chain(
    chain: list[Minted], traditional: bool, password: str | None, key_first: bool
) -> None:
    leaf = chain[0]
    key = leaf.key_pem(password, traditional)
    certs = b"".join(each.pem for each in chain)
    pem = key + certs if key_first else certs + key
    for data in (pem, pem.decode(), pem.replace(b"\n", b"\r\n"), b"words before\n" + pem):
        store = tls.cert_temporary_store(pem=data, password=password)
        assert ders(store) == [each.der for each in chain]
        assert [cert.has_private_key() for cert in store] == [True, False, False]
    assert ders(store[0].chain()) == [each.der for each in chain]


# Contents of OBJECT IDENTIFIERs.
PBES2 = bytes.fromhex("2a864886f70d01050d")
PBKDF2 = bytes.fromhex("2a864886f70d01050c")
CIPHERS = {  # name: identifier, bytes of the key
    "AES-128": (bytes.fromhex("608648016503040102"), 16),
    "AES-192": (bytes.fromhex("608648016503040116"), 24),
    "AES-256": (bytes.fromhex("60864801650304012a"), 32),
    "3DES": (bytes.fromhex("2a864886f70d0307"), 24),
}
PRFS: dict[str, tuple[bytes, hashes.HashAlgorithm]] = {
    "SHA-1": (bytes.fromhex("2a864886f70d0207"), hashes.SHA1()),
    "SHA-256": (bytes.fromhex("2a864886f70d0209"), hashes.SHA256()),
    "SHA-384": (bytes.fromhex("2a864886f70d020a"), hashes.SHA384()),
    "SHA-512": (bytes.fromhex("2a864886f70d020b"), hashes.SHA512()),
}


def sealed(
    cert: Minted,
    password: str,
    cipher: str = "AES-256",
    prf: str | None = "SHA-256",
    *,
    rounds: int = 1000,
    tell_length: bool = False,
) -> bytes:
    """The key as EncryptedPrivateKeyInfo with PBES2 (RFC 8018, A.4), in PEM."""
    plain = cert.key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    oid, size = CIPHERS[cipher]
    prf_oid, algorithm = PRFS[prf or "SHA-1"]
    kdf = PBKDF2HMAC(algorithm, size, b"salt and pepper", rounds)
    algorithm_of = TripleDES if cipher == "3DES" else algorithms.AES
    block = algorithm_of.block_size // 8
    iv = bytes(range(block))
    box = Cipher(algorithm_of(kdf.derive(password.encode())), modes.CBC(iv)).encryptor()
    pad = block - len(plain) % block
    data = box.update(plain + bytes([pad]) * pad) + box.finalize()
    params = tlv(0x04, b"salt and pepper") + tlv(0x02, rounds.to_bytes(4, "big").lstrip(b"\0"))
    if tell_length:
        params += tlv(0x02, bytes([size]))
    if prf is not None:
        params += tlv(0x30, tlv(0x06, prf_oid) + tlv(0x05, b""))
    kdf_der = tlv(0x30, tlv(0x06, PBKDF2) + tlv(0x30, params))
    scheme = tlv(0x30, tlv(0x06, oid) + tlv(0x04, iv))
    how = tlv(0x30, tlv(0x06, PBES2) + tlv(0x30, kdf_der + scheme))
    der = tlv(0x30, how + tlv(0x04, data))
    text = base64.encodebytes(der)
    return (
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + text + b"-----END ENCRYPTED PRIVATE KEY-----\n"
    )


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("prf", [None, *PRFS])
@pytest.mark.parametrize("tell_length", [False, True])
def test_encrypted_keys_of_today(cipher: str, prf: str | None, tell_length: bool) -> None:
    """What openssl and others write, whatever their defaults are."""
    cert = rsa_leaf()
    for password in ("secret", "pässwörd"):
        pem = sealed(cert, password, cipher, prf, tell_length=tell_length) + cert.pem
        store = tls.cert_temporary_store(pem=pem, password=password)
        assert [each.has_private_key() for each in store] == [True]
        tls.sspi_acquire_credentials("tls", "server", tls.sspi_schannel_credentials(store)).free()


def test_encrypted_keys_and_wrong_passwords() -> None:
    """One in 256 ends in a padding that looks right."""
    cert = rsa_leaf()
    pem = sealed(cert, "secret", rounds=1) + cert.pem
    for number in range(600):
        with pytest.raises(TLSError, match="password") as caught:
            tls.cert_temporary_store(pem=pem, password=f"wrong {number}")
        assert "wrong" in str(caught.value)


def test_encrypted_keys_that_are_damaged() -> None:
    """Each byte of the structure's head, and some beyond: an error at most.

    Some bits do not matter: of the vector, which changes the version within,
    or of parameters that nobody reads.
    """
    cert = rsa_leaf()
    lines = sealed(cert, "secret", rounds=1).splitlines(keepends=True)
    der = base64.b64decode(b"".join(lines[1:-1]))
    refused = 0
    for at in (*range(60), *range(60, len(der), 97)):
        bad = bytearray(der)
        bad[at] ^= 0x01
        pem = lines[0] + base64.encodebytes(bytes(bad)) + lines[-1] + cert.pem
        try:
            tls.cert_temporary_store(pem=pem, password="secret")
        except (TLSError, ValueError):
            refused += 1
    assert refused > 50
    with tls.cert_temporary_store(pem=b"".join(lines) + cert.pem, password="secret") as store:
        assert store[0].has_private_key()


def test_pem_with_several_identities(chain: list[Minted]) -> None:
    one, two = mint("one", chain[1]), rsa_leaf()
    pem = two.key_pem() + one.pem + two.pem + one.key_pem()
    store = tls.cert_temporary_store(pem=pem)
    assert ders(store) == [one.der, two.der]
    assert all(cert.has_private_key() for cert in store)


def test_the_same_certificate_is_kept_once(chain: list[Minted]) -> None:
    store = tls.cert_temporary_store(pem=chain[0].pem * 3 + chain[0].combined)
    assert ders(store).count(chain[0].der) == 1
    assert store[0].has_private_key()


def test_serialized(chain: list[Minted]) -> None:
    leaf, middle, root = chain
    full = tls.cert_temporary_store(pem=leaf.combined + root.pem + middle.crl(leaf))
    data = tls.cert_store_serialize(full)
    back = tls.cert_temporary_store(serialized=data)
    assert ders(back) == ders(full)
    assert not any(cert.has_private_key() for cert in back)
    # the CRL came along
    assert (
        tls.cert_tls_verify(
            back[0], "leaf.example", back, root_of(root), "leaf", ignoreerrors=["name"]
        )
        == "revoked"
    )
    empty = tls.cert_store_serialize(tls.cert_temporary_store())
    assert len(tls.cert_temporary_store(serialized=empty)) == 0


def root_of(root: Minted) -> list[Certificate]:
    return [tls.cert_import(root.der)]


def test_exports_hold_no_key(chain: list[Minted]) -> None:
    leaf = chain[0]
    store = tls.cert_temporary_store(pem=leaf.combined)
    secret: Any = leaf.key.private_numbers()  # type: ignore[union-attr]
    value = getattr(secret, "private_value", None) or secret.p  # P-256's, or a prime of RSA's
    number = value.to_bytes((value.bit_length() + 7) // 8, "big")
    exports = {
        "serialized": tls.cert_store_serialize(store),
        "pem": tls.cert_store_export_pem(store),
        "pkcs7": tls.cert_store_export_pkcs7(store),
        "der": tls.cert_export(store[0], "der"),
        "one": tls.cert_export(store[0]),
    }
    for form, data in exports.items():
        assert b"PRIVATE" not in data, form
        assert number not in data, form
    assert sorted(ders(tls.cert_temporary_store(pkcs7=exports["pkcs7"]))) == sorted(ders(store))
    assert x509.load_pem_x509_certificates(exports["pem"]) == [
        each.certificate for each in chain[:2]
    ]


def test_exported_pkcs7_is_for_others(chain: list[Minted]) -> None:
    store = tls.cert_temporary_store(pem=chain[0].combined)
    assert set(pkcs7.load_der_pkcs7_certificates(tls.cert_store_export_pkcs7(store))) == {
        each.certificate for each in chain[:2]
    }


# --- what cannot be read


@pytest.mark.parametrize(
    ("data", "given"),
    [
        ("pfx", "wrong"),
        ("pfx", None),
        ("pfx", ""),
        ("plain pfx", "superfluous"),
        ("pem", "wrong"),
        ("pem", None),
        ("pem", ""),
        ("traditional", "wrong"),
        ("traditional", None),
    ],
)
def test_passwords_that_do_not_fit(chain: list[Minted], data: str, given: str | None) -> None:
    leaf = chain[0]
    arguments: dict[str, bytes] = {
        "pfx": {"pfx": leaf.pfx("right")},
        "plain pfx": {"pfx": leaf.pfx(None)},
        "pem": {"pem": leaf.key_pem("right") + leaf.pem},
        "traditional": {"pem": leaf.key_pem("right", traditional=True) + leaf.pem},
    }[data]
    with pytest.raises(TLSError) as caught:
        tls.cert_temporary_store(**arguments, password=given)  # type: ignore[arg-type]
    assert caught.value.errorcode == PASSWORD
    expected = "a password is needed" if given is None else "the password is wrong"
    assert expected in str(caught.value)


@pytest.mark.parametrize("form", ["pem", "pfx"])
def test_a_key_of_another_certificate(chain: list[Minted], form: str) -> None:
    other = mint("other")
    with pytest.raises(ValueError, match="does not match any certificate"):
        if form == "pem":
            tls.cert_temporary_store(pem=other.key_pem() + chain[0].pem)
        else:
            tls.cert_temporary_store(pfx=mismatched_pfx(other, chain[0]))


def mismatched_pfx(key: Minted, cert: Minted) -> bytes:
    """One's key bag beside the other's certificate bag."""
    keys = [bag for bag in safe_bags(key) if _KEY_BAG in bag]
    certs = [bag for bag in safe_bags(cert) if _KEY_BAG not in bag]
    assert len(keys) == len(certs) == 1
    return joined_pfx(keys + certs)


FORMS = ["pfx", "pkcs12", "pkcs7", "pem", "serialized"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"garbage",
        b"\x30\x82\xff\xff",
        b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
        b"twapi_tls certificate store\nnothing more",
    ],
    ids=["empty", "zero", "words", "asn1", "short", "base64", "serialized"],
)
def test_garbage_is_an_error_of_its_form(form: str, data: bytes) -> None:
    with pytest.raises(TLSError) as caught:
        tls.cert_temporary_store(**{form: data})  # type: ignore[arg-type]
    assert caught.value.reason
    assert caught.value.errorcode != PASSWORD


@pytest.mark.parametrize("form", FORMS)
def test_one_form_is_not_taken_for_another(chain: list[Minted], form: str) -> None:
    forms = {
        "pfx": chain[0].pfx(None),
        "pkcs12": chain[0].pfx(None),
        "pkcs7": pkcs7_of(chain[0]),
        "pem": chain[0].pem,
        "serialized": tls.cert_store_serialize(tls.cert_temporary_store(pem=chain[0].pem)),
    }
    for other, data in forms.items():
        same = {form, other} <= {"pfx", "pkcs12"} or form == other
        # a PKCS #7 may be PEM, and what we serialize is PEM with a head
        if same or (form in ("pem", "pkcs7") and other in ("pem", "serialized")):
            tls.cert_temporary_store(**{form: data})  # type: ignore[arg-type]
        else:
            with pytest.raises(TLSError):
                tls.cert_temporary_store(**{form: data})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_huge_data_is_refused(form: str) -> None:
    with pytest.raises((TLSError, ValueError)):
        tls.cert_temporary_store(**{form: bytes(65 * MEBIBYTE)})  # type: ignore[arg-type]


def test_a_long_list_is_read(chain: list[Minted]) -> None:
    """Two thousand blocks, one certificate, in linear time and memory."""
    assert len(tls.cert_temporary_store(pem=chain[0].pem * 2000)) == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 5000), flip=st.integers(0, 5000), form=st.sampled_from(["pfx", "pkcs7"]))
def test_damage_never_passes_unnoticed(chain: list[Minted], cut: int, flip: int, form: str) -> None:
    """Cut off, or one bit turned: an error, or exactly what was there."""
    data = bytearray(chain[0].pfx("pw", chain[1:]) if form == "pfx" else pkcs7_of(*chain))
    if cut < len(data):
        del data[cut:]
    elif flip < len(data):
        data[flip] ^= 1
    password = "pw" if form == "pfx" else None
    try:
        store = tls.cert_temporary_store(**{form: bytes(data)}, password=password)  # type: ignore[arg-type]
    except (TLSError, ValueError):
        return
    assert len(store) <= 3


def test_arguments(chain: list[Minted]) -> None:
    with pytest.raises(TypeError, match="pfx and pem cannot be given together"):
        tls.cert_temporary_store(pfx=b"x", pem=b"y")
    with pytest.raises(TypeError, match="password needs"):
        tls.cert_temporary_store(password="x")
    with pytest.raises(TypeError, match="must be bytes"):
        tls.cert_temporary_store(pfx="text")  # type: ignore[arg-type]
    for form in ("pkcs7", "serialized"):
        with pytest.raises(TypeError, match="password cannot be used"):
            tls.cert_temporary_store(**{form: b"x"}, password="pw")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        tls.cert_temporary_store(pem=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        tls.cert_temporary_store(pfx=b"x", password=b"bytes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NUL"):
        tls.cert_temporary_store(pfx=chain[0].pfx("a"), password="a\0b")


# --- searching


@pytest.fixture(scope="module")
def library() -> tuple[Store, dict[str, Minted]]:
    root = authority("Library root")
    certs = {
        "root": root,
        "alice": mint(
            name("Alice Liddell", (NameOID.ORGANIZATION_NAME, "Wonder, Land + Co")),
            root,
            names=["alice.example", "192.0.2.1"],
            serial=0x0ABC,
        ),
        "bob": mint(name("Bob", (NameOID.COUNTRY_NAME, "IN")), root, names=["*.bob.example"]),
        "ümlaut": mint("Jürgen Ümlaut", root, names=["xn--bcher-kva.example"]),
        "nameless": mint(name(None, (NameOID.ORGANIZATION_NAME, "No common name")), root),
    }
    store = tls.cert_temporary_store(pem=b"".join(each.pem for each in certs.values()))
    tls.cert_store_add_certificate(
        store, tls.cert_temporary_store(pem=certs["bob"].key_pem() + certs["bob"].pem)[0]
    )
    return store, certs


@pytest.mark.parametrize(
    ("kind", "term", "expected"),
    [
        ("any", None, "root alice bob ümlaut nameless"),
        ("subject_substring", "lid", "alice"),
        ("subject_substring", "ALICE lid", "alice"),
        ("subject_substring", "wonder, land + co", "alice"),
        ("subject_substring", "cn=bob", "bob"),
        ("subject_substring", "jürgen ü", "ümlaut"),
        ("subject_substring", "JÜRGEN", "ümlaut"),
        ("subject_substring", "nobody", ""),
        ("subject_substring", "", "root alice bob ümlaut nameless"),
        ("issuer_substring", "library", "root alice bob ümlaut nameless"),
        ("issuer_substring", "alice", ""),
        ("subject_name", "CN=Bob, C=IN", "bob"),
        ("subject_name", "cn=bob,c=in", "bob"),
        ("subject_name", "CN=Bob", ""),
        ("issuer_name", "CN=Library root", "root alice bob ümlaut nameless"),
        ("serial_number", "0ABC", "alice"),
        ("serial_number", "abc", "alice"),
        ("serial_number", b"\x0a\xbc", "alice"),
        ("host", "alice.example", "alice"),
        ("host", "192.0.2.1", "alice"),
        ("host", "www.bob.example", "bob"),
        ("host", "bücher.example", "ümlaut"),
        ("host", "bob.example", ""),
        ("has_private_key", None, "bob"),
    ],
)
def test_find(
    library: tuple[Store, dict[str, Minted]], kind: str, term: object, expected: str
) -> None:
    store, certs = library
    assert fitting(store, kind, term) == [certs[word].der for word in expected.split()]


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_find_by_hash(library: tuple[Store, dict[str, Minted]], algorithm: str) -> None:
    store, certs = library
    for each in certs.values():
        digest = tls.cert_thumbprint(tls.cert_import(each.der), algorithm)
        spaced = " ".join(digest[i : i + 2] for i in range(0, len(digest), 2)).upper()
        for term in (digest, digest.upper(), spaced, "\u200e" + digest, bytes.fromhex(digest)):
            assert fitting(store, f"{algorithm}_hash", term) == [each.der]
    assert fitting(store, f"{algorithm}_hash", "00" * (20 if algorithm == "sha1" else 32)) == []


def test_find_existing(library: tuple[Store, dict[str, Minted]]) -> None:
    store, certs = library
    assert fitting(store, "existing", tls.cert_import(certs["bob"].der)) == [certs["bob"].der]
    assert fitting(store, "existing", tls.cert_import(mint("stranger").der)) == []


def test_find_releases_previous_and_goes_on_from_it(
    library: tuple[Store, dict[str, Minted]],
) -> None:
    store, certs = library
    first = tls.cert_store_find_certificate(store)
    assert first is not None
    kept = tls.cert_duplicate(first)
    second = tls.cert_store_find_certificate(store, "any", None, first)
    assert second is not None and second.der() == certs["alice"].der
    with pytest.raises(ValueError, match="released"):
        first.der()
    assert kept.der() == certs["root"].der
    # a handle that another search made, of a certificate of this store
    again = tls.cert_store_find_certificate(store, "any", None, tls.cert_import(certs["root"].der))
    assert again == second
    with pytest.raises(ValueError, match="not of this store"):
        tls.cert_store_find_certificate(store, "any", None, tls.cert_import(mint("x").der))


@pytest.mark.parametrize(
    ("kind", "term", "error"),
    [
        ("colour", "red", ValueError),
        ("subject_substring", None, TypeError),
        ("subject_substring", 5, TypeError),
        ("sha1_hash", "abcd", ValueError),
        ("sha256_hash", b"\0" * 20, ValueError),
        ("sha1_hash", 5, TypeError),
        ("existing", "text", TypeError),
        ("serial_number", None, TypeError),
    ],
)
def test_find_refuses_bad_terms(
    library: tuple[Store, dict[str, Minted]], kind: str, term: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        tls.cert_store_find_certificate(library[0], kind, term)


def test_iterate_is_a_snapshot_of_the_length(library: tuple[Store, dict[str, Minted]]) -> None:
    store, certs = library
    assert [cert.der() for cert in tls.cert_store_iterate(store)] == [
        each.der for each in certs.values()
    ]
    assert [cert.der() for cert in store] == ders(store)
    assert store[-1].der() == certs["nameless"].der
    with pytest.raises(IndexError):
        store[len(store)]


# --- adding


def test_add(chain: list[Minted]) -> None:
    leaf, middle, root = chain
    store = tls.cert_temporary_store()
    cert = tls.cert_import(leaf.der)
    assert tls.cert_store_add_certificate(store, cert) is cert
    assert tls.cert_store_add_encoded_certificate(store, middle.pem).der() == middle.der
    assert tls.cert_store_add_encoded_certificate(store, root.der).der() == root.der
    assert tls.cert_store_add_encoded_certificate(store, root.pem.decode()).der() == root.der
    assert ders(store) == [each.der for each in chain]
    with pytest.raises(TLSError):
        tls.cert_store_add_encoded_certificate(store, b"garbage")
    assert len(store) == 3


def test_a_lone_key_waits_for_its_certificate(chain: list[Minted]) -> None:
    store = tls.cert_temporary_store(pem=chain[0].key_pem())
    assert len(store) == 0
    tls.cert_store_add_certificate(store, tls.cert_import(chain[2].der))
    assert not store[0].has_private_key()
    tls.cert_store_add_certificate(store, tls.cert_import(chain[0].der))
    assert store[1].has_private_key()


def test_a_failed_import_changes_nothing(chain: list[Minted]) -> None:
    store = tls.cert_temporary_store(pem=chain[2].pem)
    with pytest.raises(ValueError):
        store.native.import_("pem", chain[1].pem + mint("x").key_pem())
    assert ders(store) == [chain[2].der]


def test_many_threads_on_one_store(chain: list[Minted]) -> None:
    """Adding, searching, exporting and verifying at once: nothing lost, nothing torn."""
    store = tls.cert_temporary_store(pem=chain[1].pem + chain[2].pem)
    key = ec.generate_private_key(ec.SECP256R1())
    lots = [[mint(f"{lot} {n}", chain[1], key=key).der for n in range(20)] for lot in range(3)]
    anchors = root_of(chain[2])
    failures: list[BaseException] = []
    finished = threading.Event()

    def add(certs: list[bytes]) -> None:
        for der in certs:
            tls.cert_store_add_encoded_certificate(store, der)

    def use() -> None:
        while not finished.is_set():
            assert tls.cert_store_find_certificate(store, "subject_name", "CN=Store root")
            tls.cert_temporary_store(serialized=tls.cert_store_serialize(store))
            for cert in store:
                verdict = tls.cert_tls_verify(
                    cert, None, store, anchors, "none", ignoreerrors=["usage"]
                )
                assert verdict == "ok"

    def guarded(work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            failures.append(error)

    users = [threading.Thread(target=guarded, args=(use,)) for _ in range(2)]
    adders = [threading.Thread(target=guarded, args=(add, lot)) for lot in lots]
    for thread in [*users, *adders]:
        thread.start()
    for thread in adders:
        thread.join(30)
    finished.set()
    for thread in users:
        thread.join(30)
    assert failures == []
    assert set(ders(store)) == {der for lot in lots for der in lot} | {
        chain[1].der,
        chain[2].der,
    }


# --- releasing


def test_release_is_idempotent_and_certificates_live_on(chain: list[Minted]) -> None:
    store = tls.cert_temporary_store(pem=chain[0].combined)
    cert = store[0]
    tls.cert_store_release(store)
    tls.cert_store_release(store)
    assert cert.der() == chain[0].der and cert.has_private_key()
    uses: list[Callable[[], object]] = [
        lambda: len(store),
        lambda: list(store),
        lambda: store[0],
        lambda: tls.cert_store_find_certificate(store),
        lambda: tls.cert_store_add_certificate(store, cert),
        lambda: tls.cert_store_serialize(store),
        lambda: tls.cert_tls_verify(cert, hstore=store),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="store was released"):
            use()
    assert "released" in repr(store)


def test_with_frees_the_store(chain: list[Minted]) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        tls.cert_temporary_store(pem=chain[0].combined) as store,
    ):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="store was released"):
        len(store)


# --- the system's


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    yield tmp_path


@pytest.mark.peers
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a store of its own")
def test_root_is_the_bundle(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE and SSL_CERT_DIR say where, as for all of OpenSSL."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"# a comment\n" + pki.root_pem + pki.other_root.read_bytes())
    empty = tmp_path / "none"
    empty.mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(empty))
    expected = [
        each.public_bytes(serialization.Encoding.DER)
        for each in x509.load_pem_x509_certificates(bundle.read_bytes())
    ]
    for spelling in ("ROOT", "root", "Root"):
        for location in ("user", "machine"):
            assert ders(tls.cert_system_store_open(spelling, location)) == expected
    hashed = tmp_path / "hashed"
    hashed.mkdir()
    (hashed / "root.pem").write_bytes(pki.root_pem)
    run([peers.require("openssl"), "rehash", str(hashed)])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "not there"))
    monkeypatch.setenv("SSL_CERT_DIR", f"{empty}:{hashed}")
    assert ders(tls.cert_system_store_open()) == expected[:1]


@pytest.mark.peers
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a store of its own")
def test_root_without_environment_is_what_openssl_trusts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    folder = (
        run([peers.require("openssl"), "version", "-d"]).decode().partition('"')[2].rstrip('"\n')
    )
    bundles = [Path(folder, "cert.pem"), Path(folder, "certs", "ca-certificates.crt")]
    bundle = next((path for path in bundles if path.exists()), None)
    if bundle is None:
        pytest.skip("this machine has no trust bundle")
    expected = run([peers.require("openssl"), "crl2pkcs7", "-nocrl", "-certfile", str(bundle)])
    listed = tls.cert_temporary_store(pkcs7=expected)
    assert sorted(ders(tls.cert_system_store_open("ROOT"))) == sorted(set(ders(listed)))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a store of its own")
def test_a_change_of_the_system_store_does_not_reach_others(home: Path) -> None:
    stranger = tls.cert_import(mint("stranger").der)
    tls.cert_store_add_certificate(tls.cert_system_store_open("ROOT"), stranger)
    assert stranger not in list(tls.cert_system_store_open("ROOT"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a store of its own")
@pytest.mark.parametrize("xdg", [False, True])
def test_my_is_a_directory_of_pkcs12_files(
    home: Path, xdg: bool, chain: list[Minted], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf, middle, root = chain
    data = home / "elsewhere" if xdg else home / ".local" / "share"
    if xdg:
        monkeypatch.setenv("XDG_DATA_HOME", str(data))
    assert len(tls.cert_system_store_open("MY")) == 0
    folder = data / "twapi_tls" / "my"
    folder.mkdir(parents=True)
    assert len(tls.cert_system_store_open("MY")) == 0
    second = mint("second", root)
    (folder / "b.pfx").write_bytes(second.pfx(None))
    (folder / "a.P12").write_bytes(leaf.pfx(None, [middle]))
    (folder / "broken.pfx").write_bytes(b"not a PFX")
    (folder / "locked.pfx").write_bytes(mint("locked").pfx("a password"))
    (folder / "notes.txt").write_bytes(leaf.pem)
    os.symlink(folder / "not there", folder / "dangling.pfx")
    (folder / "folder.pfx").mkdir()
    with tls.cert_system_store_open("my") as store:
        assert ders(store) == [leaf.der, middle.der, second.der]
        found = tls.cert_store_find_certificate(store, "subject_substring", "second")
        assert found is not None and found.has_private_key()
        tls.sspi_acquire_credentials(
            "unisp", "server", tls.sspi_schannel_credentials([found])
        ).free()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a store of its own")
def test_ca_is_there_and_empty() -> None:
    assert len(tls.cert_system_store_open("CA")) == 0


@pytest.mark.parametrize("name", ["", "NOPE", "ROOT ", "../MY"])
def test_an_unknown_system_store_is_named(name: str) -> None:
    with pytest.raises(TLSError) as caught:
        tls.cert_system_store_open(name)
    assert caught.value.name == "CRYPT_E_NOT_FOUND"
    assert repr(name) in str(caught.value)


def test_an_unknown_location_is_named() -> None:
    with pytest.raises(ValueError, match="'here'"):
        tls.cert_system_store_open("MY", "here")
