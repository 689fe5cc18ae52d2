"""Certificates for the tests, made on the spot.

One root signs one intermediate, which signs everything a well-behaved peer
shows.  Beside them stand the ones that must be refused: expired, not yet
valid, made for another name, made for another usage, self-signed, and one
under a root that nobody trusts.

Everything is written as files under one directory, because foreign peers want
files; the ``*_pem`` and ``pfx`` bytes are the same things in memory.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from platforms import WINE

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PFX_PASSWORD = "correct horse"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Identity:
    """A certificate with its key, in every form that somebody wants.

    ``chain`` is the certificate followed by its intermediates (never the
    root), PEM; ``combined`` is ``key`` followed by ``chain``; ``pfx`` holds
    key and chain under ``PFX_PASSWORD``.
    """

    name: str
    certificate: x509.Certificate
    private_key: PrivateKey
    issuers: tuple[x509.Certificate, ...]
    leaf: Path
    chain: Path
    key: Path
    encrypted_key: Path
    combined: Path
    pfx: Path

    @property
    def leaf_der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def chain_pem(self) -> bytes:
        return self.chain.read_bytes()

    @property
    def key_pem(self) -> bytes:
        return self.key.read_bytes()

    @property
    def pfx_bytes(self) -> bytes:
        return self.pfx.read_bytes()


@dataclass(frozen=True)
class Pki:
    """What the ``pki`` fixture gives; see the module's text."""

    directory: Path
    root: Path  # PEM, the trust anchor
    root_certificate: x509.Certificate
    intermediate: Path  # PEM
    intermediate_certificate: x509.Certificate
    other_root: Path  # PEM, of a root that signed nothing but ``untrusted``
    server: Identity  # P-256; localhost, 127.0.0.1, ::1
    server_rsa: Identity  # RSA 2048, the same names
    client: Identity  # P-256, usage clientAuth
    client_rsa: Identity  # RSA 2048, usage clientAuth
    expired: Identity  # the right names, ended yesterday
    not_yet_valid: Identity  # the right names, begins tomorrow
    wrong_name: Identity  # names other.example and *.wild.example only
    wrong_usage: Identity  # the right names, usage clientAuth only
    self_signed: Identity  # the right names, its own issuer
    untrusted: Identity  # the right names, under other_root

    @property
    def root_pem(self) -> bytes:
        return self.root.read_bytes()


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "twapi_tls tests"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class _Authority:
    """A certificate that signs others."""

    def __init__(self, common_name: str, issuer: _Authority | None = None) -> None:
        self.key = _ec_key()
        self.issuer = issuer
        now = datetime.datetime.now(datetime.UTC)
        subject = _name(common_name)
        signer = issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * _DAY)
            .not_valid_after(now + 365 * _DAY)
            .add_extension(x509.BasicConstraints(True, 0 if issuer else None), True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                ),
                True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), False
            )
        )
        self.certificate: x509.Certificate = builder.sign(signer.key, hashes.SHA256())

    def intermediates(self) -> tuple[x509.Certificate, ...]:
        """This authority and those above it, the root left out."""
        if self.issuer is None:
            return ()
        return (self.certificate, *self.issuer.intermediates())


def _identity(
    directory: Path,
    label: str,
    issuer: _Authority | None,
    key: PrivateKey,
    names: Sequence[str],
    *,
    common_name: str | None = None,
    client: bool = False,
    begins: int = -1,
    ends: int = 90,
) -> Identity:
    """Sign and write one certificate; ``begins`` and ``ends`` are days from now."""
    now = datetime.datetime.now(datetime.UTC)
    subject = _name(common_name or names[0])
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    signing_key: PrivateKey = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins * _DAY)
        .not_valid_after(now + ends * _DAY)
        .add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=isinstance(key, rsa.RSAPrivateKey),
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            True,
        )
        .add_extension(x509.ExtendedKeyUsage([usage]), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), False
        )
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), False
        )
    certificate = builder.sign(signing_key, hashes.SHA256())
    issuers = issuer.intermediates() if issuer else ()

    plain_key = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    locked_key = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PFX_PASSWORD.encode()),
    )
    chain = _pem(certificate) + b"".join(_pem(above) for above in issuers)
    identity = Identity(
        name=label,
        certificate=certificate,
        private_key=key,
        issuers=issuers,
        leaf=directory / f"{label}.crt",
        chain=directory / f"{label}.chain.pem",
        key=directory / f"{label}.key",
        encrypted_key=directory / f"{label}.encrypted.key",
        combined=directory / f"{label}.pem",
        pfx=directory / f"{label}.pfx",
    )
    identity.leaf.write_bytes(_pem(certificate))
    identity.chain.write_bytes(chain)
    identity.key.write_bytes(plain_key)
    identity.encrypted_key.write_bytes(locked_key)
    identity.combined.write_bytes(plain_key + chain)
    identity.pfx.write_bytes(
        pkcs12.serialize_key_and_certificates(
            label.encode(),
            key,
            certificate,
            issuers or None,
            serialization.BestAvailableEncryption(PFX_PASSWORD.encode()),
        )
    )
    for secret in (identity.key, identity.combined):
        secret.chmod(0o600)
    return identity


def make_pki(directory: Path, *, wine: bool = WINE) -> Pki:
    """Make everything anew under ``directory``, which exists.

    wine: what Wine's Schannel can use: every key is RSA, as it keeps no keys
    of elliptic curves, and the root signs everything itself, as its servers
    send no intermediates.
    """
    any_key = _rsa_key if wine else _ec_key
    root = _Authority("Test root")
    intermediate = _Authority("Test intermediate", root)
    signer = root if wine else intermediate
    other = _Authority("A root nobody trusts")
    root_file = directory / "root.pem"
    root_file.write_bytes(_pem(root.certificate))
    intermediate_file = directory / "intermediate.pem"
    intermediate_file.write_bytes(_pem(intermediate.certificate))
    other_file = directory / "other-root.pem"
    other_file.write_bytes(_pem(other.certificate))
    return Pki(
        directory=directory,
        root=root_file,
        root_certificate=root.certificate,
        intermediate=intermediate_file,
        intermediate_certificate=intermediate.certificate,
        other_root=other_file,
        server=_identity(directory, "server", signer, any_key(), LOCAL_NAMES),
        server_rsa=_identity(directory, "server-rsa", signer, _rsa_key(), LOCAL_NAMES),
        client=_identity(
            directory, "client", signer, any_key(), (), common_name="A client", client=True
        ),
        client_rsa=_identity(
            directory,
            "client-rsa",
            signer,
            _rsa_key(),
            (),
            common_name="Another client",
            client=True,
        ),
        expired=_identity(
            directory, "expired", signer, any_key(), LOCAL_NAMES, begins=-20, ends=-1
        ),
        not_yet_valid=_identity(
            directory, "not-yet-valid", signer, any_key(), LOCAL_NAMES, begins=1
        ),
        wrong_name=_identity(
            directory, "wrong-name", signer, any_key(), ("other.example", "*.wild.example")
        ),
        wrong_usage=_identity(
            directory, "wrong-usage", signer, any_key(), LOCAL_NAMES, client=True
        ),
        self_signed=_identity(directory, "self-signed", None, any_key(), LOCAL_NAMES),
        untrusted=_identity(directory, "untrusted", other, any_key(), LOCAL_NAMES),
    )
