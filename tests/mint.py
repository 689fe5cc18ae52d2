"""Certificates of every odd kind, one call each; see certs.py for the ordinary ones.

``mint`` makes one certificate; its result signs others, gives CRLs and OCSP
answers, and knows its forms. Nothing is written to disk.
"""

from __future__ import annotations

import datetime
import ipaddress
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from platforms import WINE

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | dsa.DSAPrivateKey

DAY = datetime.timedelta(days=1)
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
OCSP_SIGNING = ExtendedKeyUsageOID.OCSP_SIGNING

_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def key_usage(*words: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{word: word in words for word in _KEY_USAGES})


def name(common_name: str | None, *more: tuple[ObjectIdentifier, str]) -> x509.Name:
    attributes = [x509.NameAttribute(oid, value) for oid, value in more]
    if common_name is not None:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    return x509.Name(attributes)


def general_name(text: str | x509.GeneralName) -> x509.GeneralName:
    if isinstance(text, x509.GeneralName):
        return text
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


@dataclass(frozen=True)
class Minted:
    """A certificate with its key and who signed it (None: itself)."""

    certificate: x509.Certificate
    key: Key
    issuer: Minted | None

    @cached_property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @cached_property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: str | None = None, traditional: bool = False) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL
            if traditional
            else serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password.encode())
            if password
            else serialization.NoEncryption(),
        )

    @property
    def combined(self) -> bytes:
        """Key, certificate, and the issuers below the root; PEM."""
        return self.key_pem() + b"".join(each.pem for each in self.path[:-1] or [self])

    @property
    def path(self) -> list[Minted]:
        """This one, its issuer, and so on up to the root."""
        return [self, *(self.issuer.path if self.issuer else [])]

    def pfx(
        self, password: str | None, extra: Iterable[Minted] = (), label: bytes | None = None
    ) -> bytes:
        return pkcs12.serialize_key_and_certificates(
            label,
            self.key,
            self.certificate,
            [each.certificate for each in extra] or None,
            serialization.BestAvailableEncryption(password.encode())
            if password
            else serialization.NoEncryption(),
        )

    def crl(
        self,
        *revoked: Minted,
        age: datetime.timedelta = DAY,
        life: datetime.timedelta = 7 * DAY,
        signer: Minted | None = None,
        reason: x509.ReasonFlags | None = None,
    ) -> bytes:
        """Its list of these revoked certificates; PEM."""
        begin = now() - age
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(begin)
            .next_update(begin + life)
            .add_extension(x509.CRLNumber(int(begin.timestamp())), False)
        )
        for each in revoked:
            entry = (
                x509.RevokedCertificateBuilder()
                .serial_number(each.certificate.serial_number)
                .revocation_date(begin)
            )
            if reason is not None:
                entry = entry.add_extension(x509.CRLReason(reason), False)
            builder = builder.add_revoked_certificate(entry.build())
        signing = (signer or self).key
        return builder.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def answer(
        self,
        about: Minted,
        status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
        *,
        responder: Minted | None = None,
        issuer: Minted | None = None,
        age: datetime.timedelta = datetime.timedelta(hours=1),
        life: datetime.timedelta | None = DAY,
        reason: x509.ReasonFlags | None = None,
        algorithm: hashes.HashAlgorithm | None = None,
    ) -> bytes:
        """Its OCSP response about a certificate; DER."""
        begin = now() - age
        who = responder or self
        builder = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                cert=about.certificate,
                issuer=(issuer or self).certificate,
                algorithm=algorithm or hashes.SHA1(),
                cert_status=status,
                this_update=begin,
                next_update=None if life is None else begin + life,
                revocation_time=begin if status is ocsp.OCSPCertStatus.REVOKED else None,
                revocation_reason=reason,
            )
            .responder_id(ocsp.OCSPResponderEncoding.HASH, who.certificate)
        )
        if responder is not None:
            builder = builder.certificates([responder.certificate])
        response = builder.sign(who.key, hashes.SHA256())
        return response.public_bytes(serialization.Encoding.DER)


_WINE_KEYS: list[rsa.RSAPrivateKey] = []
_wine_turn = itertools.count()


def fresh_key(above: Minted | None = None) -> Key:
    """P-256. On Wine, which keeps no keys of elliptic curves, one of forty RSA keys in turn.

    Never that of an issuer: whose key is its issuer's is self-signed to Wine.
    """
    if not WINE:
        return ec.generate_private_key(ec.SECP256R1())
    taken = [each.key for each in above.path] if above else []
    while True:
        at = next(_wine_turn) % 40
        if at == len(_WINE_KEYS):
            _WINE_KEYS.append(rsa.generate_private_key(public_exponent=65537, key_size=2048))
        if _WINE_KEYS[at] not in taken:
            return _WINE_KEYS[at]


def mint(
    subject: str | x509.Name | None = "leaf",
    issuer: Minted | None = None,
    *,
    names: Sequence[str | x509.GeneralName] = (),
    ca: bool | None = False,
    path_length: int | None = None,
    usage: Sequence[str] | None = None,
    eku: Sequence[ObjectIdentifier] | None = None,
    begins: datetime.timedelta = -DAY,
    ends: datetime.timedelta = 90 * DAY,
    serial: int | None = None,
    key: Key | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    hash_: hashes.HashAlgorithm | None = None,
    issuer_key: Key | None = None,
) -> Minted:
    """One certificate.

    ca None: no basicConstraints. usage None: what fits ``ca``; (): no
    keyUsage. eku None: none for a CA, else serverAuth. issuer_key: signs in
    place of the issuer's (a signature that is wrong).
    """
    key = key or fresh_key(issuer)
    whole = subject if isinstance(subject, x509.Name) else name(subject)
    signer = issuer_key or (issuer.key if issuer else key)
    above = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(whole)
        .issuer_name(issuer.certificate.subject if issuer else whole)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(now() + begins)
        .not_valid_after(now() + ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key()), False
        )
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), True)
    if usage is None:
        usage = ("key_cert_sign", "crl_sign", "digital_signature") if ca else ("digital_signature",)
    if usage:
        builder = builder.add_extension(key_usage(*usage), True)
    if eku is None and not ca:
        eku = [SERVER_AUTH]
    if eku:
        builder = builder.add_extension(x509.ExtendedKeyUsage(eku), False)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([general_name(each) for each in names]), False
        )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Minted(builder.sign(signer, hash_ or hashes.SHA256()), key, issuer)


def authority(subject: str = "A root", issuer: Minted | None = None, **options: object) -> Minted:
    """A certificate that may sign others."""
    return mint(subject, issuer, ca=True, **options)  # type: ignore[arg-type]


def pkcs7_of(*certificates: Minted, der: bool = True) -> bytes:
    return pkcs7.serialize_certificates(
        [each.certificate for each in certificates],
        serialization.Encoding.DER if der else serialization.Encoding.PEM,
    )


# Enough DER to put pieces of real objects together in ways that no maker
# offers.


def tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    if size < 0x80:
        return bytes([tag, size]) + value
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + value


def value_of(data: bytes) -> tuple[bytes, bytes]:
    """(value, what follows) of the first element."""
    size, at = data[1], 2
    if size & 0x80:
        at += size & 0x7F
        size = int.from_bytes(data[2:at], "big")
    return data[at : at + size], data[at + size :]


def sequence(data: bytes) -> list[bytes]:
    value, _ = value_of(data)
    items = []
    while value:
        _, rest = value_of(value)
        items.append(value[: len(value) - len(rest)])
        value = rest
    return items


def explicit(data: bytes) -> bytes:
    return value_of(data)[0]


def version_1(one: Minted) -> bytes:
    """The same certificate without version and extensions (X.509 of 1988); DER."""
    body, algorithm, _ = sequence(one.der)
    kept = [item for item in sequence(body) if item[0] not in (0xA0, 0xA3)]
    unsigned = tlv(0x30, b"".join(kept))
    assert isinstance(one.key, ec.EllipticCurvePrivateKey)
    signature = one.key.sign(unsigned, ec.ECDSA(hashes.SHA256()))
    return tlv(0x30, unsigned + algorithm + tlv(0x03, b"\0" + signature))
