"""Certificates and stores, by TWAPI's names.

Thin: parsing, path building and stores are the engine's (crypt32 on
Windows, OpenSSL elsewhere). The objects here free themselves; ``with``, the
``..._release`` functions and garbage collection all do the same.
Source: TWAPI's twapi_crypto manual pages.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from . import _native
from .errors import Deadline, code
from .names import a_label
from .options import check_flag, check_port, check_seconds, check_timeout, expect

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Literal

    from typing_extensions import Buffer

    Revocation = Literal["none", "all", "leaf", "excluderoot"]


class Certificate:
    """A certificate, perhaps with a private key that stays in the engine.

    Immutable; equal and hashed by its DER. A released one raises ValueError.
    """

    __slots__ = ("_index", "_native", "_store")

    def __init__(
        self, native: _native.Certificate, store: Store | None = None, index: int = -1
    ) -> None:
        self._native: _native.Certificate | None = native
        self._store = store  # where it was found: its neighbours may be issuers
        self._index = index

    @property
    def native(self) -> _native.Certificate:
        """The engine's object."""
        if self._native is None:
            raise ValueError("the certificate was released")
        return self._native

    def chain(self) -> Store:
        """The certificates that came with it, leaf first."""
        return Store(self.native.chain())

    def has_private_key(self) -> bool:
        """Can it prove an identity?"""
        return self.native.has_private_key()

    def der(self) -> bytes:
        """The certificate in DER."""
        return self.native.der()

    def info(self) -> list[tuple[str, str]]:
        """What it says, as (key, text) pairs; ``cert_info`` sorts them."""
        return self.native.info()

    def digest(self, bytes: Literal[20, 32]) -> bytes:
        """SHA-1 (20) or SHA-256 (32) of the DER."""
        return self.native.digest(bytes)

    def matches(self, host: str, common_name: bool = False) -> bool:
        """Does it name this host (DNS name or IP address)?"""
        return self.native.matches(a_label(host), common_name)

    def release(self) -> None:
        """Gives it back; idempotent."""
        self._native = None
        self._store = None

    def __enter__(self) -> Certificate:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Certificate):
            return NotImplemented
        return self._native == other._native

    def __hash__(self) -> int:
        return hash(self.native)

    def __repr__(self) -> str:
        if self._native is None:
            return "<Certificate released>"
        return f"<Certificate {self._native.name('subject_rdn')!r}>"


class Store:
    """A set of certificates; iterable. A released one raises ValueError."""

    __slots__ = ("_native",)

    def __init__(self, native: _native.Store | None = None) -> None:
        self._native: _native.Store | None = _native.Store() if native is None else native

    @property
    def native(self) -> _native.Store:
        """The engine's object."""
        if self._native is None:
            raise ValueError("the certificate store was released")
        return self._native

    def release(self) -> None:
        """Gives it back; certificates found in it live on. Idempotent."""
        self._native = None

    def __len__(self) -> int:
        return len(self.native)

    def __getitem__(self, index: int) -> Certificate:
        return Certificate(self.native[index], self, index)

    def __iter__(self) -> Iterator[Certificate]:
        native = self.native
        for index in range(len(native)):
            yield Certificate(native[index], self, index)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        if self._native is None:
            return "<Store released>"
        return f"<Store of {len(self._native)}>"


# --- stores


def cert_temporary_store(
    *,
    pfx: Buffer | None = None,
    pkcs12: Buffer | None = None,
    pkcs7: Buffer | None = None,
    pem: Buffer | str | None = None,
    serialized: Buffer | None = None,
    password: str | None = None,
) -> Store:
    """A store in memory, filled from at most one of the formats.

    All are bytes (``pem`` may be str). PEM and PFX may carry private keys
    and chains; ``password`` opens them, and is refused with the formats that
    have none. Raises TLSError if the data cannot be read or the password is
    wrong, TypeError for two formats.
    """
    given = {
        "pfx": pfx,
        "pkcs12": pkcs12,
        "pkcs7": pkcs7,
        "pem": pem,
        "serialized": serialized,
    }
    chosen = [(kind, data) for kind, data in given.items() if data is not None]
    if len(chosen) > 1:
        names = " and ".join(kind for kind, _ in chosen)
        raise TypeError(f"{names} cannot be given together")
    store = Store()
    if not chosen:
        if password is not None:
            raise TypeError("password needs pfx, pkcs12 or pem")
        return store
    kind, data = chosen[0]
    if kind == "pem":
        raw = data.encode() if isinstance(data, str) else data
        store.native.import_("pem", raw, password)
    elif isinstance(data, str):
        raise TypeError(f"{kind} must be bytes, not str")
    elif kind in ("pfx", "pkcs12"):
        store.native.import_("pfx", data, password)
    elif password is not None:
        raise TypeError(f"password cannot be used with {kind}")
    else:
        store.native.import_("pkcs7" if kind == "pkcs7" else "serialized", data)
    return store


def cert_system_store_open(name: str = "ROOT", location: str = "user") -> Store:
    """A system store: "ROOT", "CA", "MY" ..., of "user" or "machine".

    On Windows the real one. Elsewhere ROOT is the system's trust bundle, MY
    a directory of PKCS#12 files under the user's data folder. TLSError if
    there is no such store.
    """
    if location not in ("user", "machine"):
        raise ValueError(f"bad location {location!r}: must be 'user' or 'machine'")
    return Store(_native.Store.open_system(name, location))


def cert_store_release(store: Store) -> None:
    """Gives a store back; idempotent."""
    expect(Store, store, "store").release()


def cert_store_serialize(store: Store) -> bytes:
    """Certificates and CRLs of a store in a form of our own, without keys.

    ``cert_temporary_store(serialized=...)`` takes it.
    """
    return expect(Store, store, "store").native.export("serialized")


def cert_store_export_pem(store: Store) -> bytes:
    """Certificates and CRLs of a store as PEM, without keys."""
    return expect(Store, store, "store").native.export("pem")


def cert_store_export_pkcs7(store: Store) -> bytes:
    """Certificates and CRLs of a store as PKCS #7 (DER), without keys."""
    return expect(Store, store, "store").native.export("pkcs7")


def cert_store_iterate(store: Store) -> Iterator[Certificate]:
    """The certificates of a store, one after the other."""
    return iter(expect(Store, store, "store"))


def cert_store_add_certificate(store: Store, cert: Certificate) -> Certificate:
    """Adds a certificate (with its key, if it has one) and returns it."""
    expect(Store, store, "store").native.add(expect(Certificate, cert, "cert").native)
    return cert


def cert_store_add_encoded_certificate(store: Store, data: Buffer | str) -> Certificate:
    """Adds a certificate given as DER or PEM and returns it."""
    expect(Store, store, "store")
    return cert_store_add_certificate(store, cert_import(data))


def _hash_term(term: object) -> str:
    if isinstance(term, str):
        return "".join(c for c in term if c not in ": \u200e").lower()
    return bytes(memoryview(term)).hex()  # type: ignore[arg-type]


def _find_test(kind: str, term: object) -> Callable[[_native.Certificate], bool]:
    """The predicate of a way to search; checks the term once."""
    if kind == "any":
        return lambda cert: True
    if kind == "has_private_key":
        return lambda cert: cert.has_private_key()
    if term is None:
        raise TypeError(f"finding by {kind} needs a term")
    if kind == "existing":
        if not isinstance(term, Certificate):
            raise TypeError("finding an existing certificate needs a Certificate")
        der = term.der()
        return lambda cert: cert.der() == der
    if kind in ("sha1_hash", "sha256_hash"):
        size: Literal[20, 32] = 20 if kind == "sha1_hash" else 32
        digest = _hash_term(term)
        if len(digest) != 2 * size:
            raise ValueError(f"a {kind} has {size} bytes, {2 * size} hexadecimal digits")
        return lambda cert: cert.digest(size).hex() == digest
    if kind == "serial_number":
        serial = _hash_term(term).lstrip("0")
        return lambda cert: dict(cert.info()).get("serial", "").lower().lstrip("0") == serial
    if not isinstance(term, str):
        raise TypeError(f"finding by {kind} needs a string")
    if kind in ("subject_substring", "issuer_substring"):
        # As CERT_FIND_SUBJECT_STR: any part of the whole name, no case.
        which: Literal["subject_rdn", "issuer_rdn"] = (
            "subject_rdn" if kind == "subject_substring" else "issuer_rdn"
        )
        part = term.casefold()
        return lambda cert: (
            part in cert.name(which).casefold()
            or part in ", ".join(_attribute_values(cert.name(which))).casefold()
        )
    if kind in ("subject_name", "issuer_name"):
        whole: Literal["subject_rdn", "issuer_rdn"] = (
            "subject_rdn" if kind == "subject_name" else "issuer_rdn"
        )
        wanted = _canonical_name(term)
        return lambda cert: _canonical_name(cert.name(whole)) == wanted
    if kind == "host":
        host = a_label(term)
        return lambda cert: cert.matches(host)
    raise ValueError(
        f"bad search type {kind!r}: must be any, existing, has_private_key, host, "
        "issuer_name, issuer_substring, serial_number, sha1_hash, sha256_hash, "
        "subject_name or subject_substring"
    )


def _attribute_values(name: str) -> list[str]:
    r"""The values of "CN=a, O=b \\+ c": ["a", "b + c"], without escapes.

    The engine writes RFC 4514's escapes: a backslash before the character,
    or before two hexadecimal digits of a byte.
    """
    import re  # here: a search by name is rare, and it is slow to load

    values = []
    for attribute in re.findall(r"((?:\\.|[^\\])+?)(?:, | \+ |$)", name, re.DOTALL):
        raw = re.sub(
            rb"\\([0-9A-Fa-f]{2}|.)",
            lambda found: bytes.fromhex(found[1].decode()) if len(found[1]) == 2 else found[1],
            attribute.partition("=")[2].encode(),
            flags=re.DOTALL,
        )
        values.append(raw.decode("utf-8", "replace"))
    return values or [""]


def _canonical_name(name: str) -> str:
    return ",".join(part.strip() for part in name.split(",")).casefold()


def cert_store_find_certificate(
    store: Store,
    type: str = "any",
    term: object = None,
    previous: Certificate | None = None,
) -> Certificate | None:
    """The next certificate of a store that fits, None at the end.

    type: ``any``, ``subject_substring``, ``issuer_substring`` (parts of the
    name, no case), ``subject_name``, ``issuer_name`` (the whole name, as
    "CN=a, O=b"), ``sha1_hash``, ``sha256_hash`` (bytes or hexadecimal),
    ``serial_number`` (hexadecimal), ``host`` (the certificate names it),
    ``has_private_key``, ``existing`` (a Certificate). ``previous``: where
    the search goes on; it is released, as in TWAPI.
    """
    native = expect(Store, store, "store").native
    test = _find_test(type, term)
    start = 0
    if previous is not None:
        start = _position(store, expect(Certificate, previous, "previous")) + 1
        previous.release()
    for index in range(start, len(native)):
        cert = native[index]
        if test(cert):
            return Certificate(cert, store, index)
    return None


def _position(store: Store, cert: Certificate) -> int:
    native = store.native
    at = cert._index
    if 0 <= at < len(native) and native[at] == cert.native:
        return at
    for index in range(len(native)):
        if native[index] == cert.native:
            return index
    raise ValueError("the previous certificate is not of this store")


# --- certificates


def cert_import(data: Buffer | str, encoding: str | None = None) -> Certificate:
    """A certificate from DER or PEM.

    ``encoding``: "der", "pem", or None: told by the data. TLSError if it is
    no certificate.
    """
    raw = data.encode() if isinstance(data, str) else bytes(memoryview(data))
    if encoding is None:
        encoding = "pem" if b"-----BEGIN" in raw else "der"
    if encoding == "der":
        return Certificate(_native.Certificate.from_der(raw))
    if encoding != "pem":
        raise ValueError(f"bad encoding {encoding!r}: must be 'der' or 'pem'")
    store = _native.Store()
    store.import_("pem", raw)
    if not len(store):
        raise ValueError("the PEM text holds no certificate")
    return Certificate(store[0])


def cert_export(cert: Certificate, encoding: str = "pem") -> bytes:
    """The certificate, without its key, as "pem" or "der" (bytes)."""
    der = expect(Certificate, cert, "cert").der()
    if encoding == "der":
        return der
    if encoding != "pem":
        raise ValueError(f"bad encoding {encoding!r}: must be 'der' or 'pem'")
    from binascii import b2a_base64

    text = b2a_base64(der, newline=False)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


def cert_duplicate(cert: Certificate) -> Certificate:
    """A second handle of the same certificate, released on its own."""
    expect(Certificate, cert, "cert")
    return Certificate(cert.native, cert._store, cert._index)


def cert_release(cert: Certificate) -> None:
    """Gives a handle back; idempotent."""
    expect(Certificate, cert, "cert").release()


def _name(cert: Certificate, name: str, issuer: bool) -> str:
    native = expect(Certificate, cert, "cert").native
    rdn = native.name("issuer_rdn" if issuer else "subject_rdn")
    common = native.name("issuer_cn" if issuer else "subject_cn")
    if name in ("oid_common_name", "2.5.4.3", "cn"):
        return common
    if name == "rdn":
        return rdn
    if name == "simpledisplay":
        return common or _attribute_values(rdn)[0]
    if name in ("dns", "email", "url", "ip") and not issuer:
        key = "uri" if name == "url" else name
        for found, value in native.info():
            if found == key:
                return value
        return common if name == "dns" else ""
    raise ValueError(
        f"bad name type {name!r}: must be oid_common_name, simpledisplay or rdn"
        + ("" if issuer else ", dns, email, ip or url")
    )


def cert_subject_name(cert: Certificate, name: str = "oid_common_name") -> str:
    """A name of the subject, "" if it has none of that sort.

    name: ``oid_common_name``, ``simpledisplay`` (the common name, else the
    first attribute), ``rdn`` ("CN=a, O=b"), and the first subject alternative
    name of a sort: ``dns`` (else the common name), ``email``, ``ip``, ``url``.
    """
    return _name(cert, name, False)


def cert_issuer_name(cert: Certificate, name: str = "oid_common_name") -> str:
    """A name of the issuer: ``oid_common_name``, ``simpledisplay``, ``rdn``."""
    return _name(cert, name, True)


def cert_thumbprint(cert: Certificate, algorithm: str = "sha1") -> str:
    """The digest of the DER, "sha1" or "sha256", as lower-case hexadecimal."""
    sizes: dict[str, Literal[20, 32]] = {"sha1": 20, "sha256": 32}
    if algorithm not in sizes:
        raise ValueError(f"bad algorithm {algorithm!r}: must be 'sha1' or 'sha256'")
    return expect(Certificate, cert, "cert").native.digest(sizes[algorithm]).hex()


_LISTS = ("dns", "ip", "email", "uri", "usage", "eku", "ocsp_url", "crl_url", "ca_url")


def cert_info(cert: Certificate) -> dict[str, Any]:
    """What a certificate says, for a person or a program.

    Strings: ``version``, ``serial`` (hexadecimal), ``subject``, ``issuer``,
    ``notbefore`` and ``notafter`` (ISO 8601, UTC), ``key_algorithm``,
    ``signature_algorithm``; int ``key_bits``; bool ``is_ca``; lists of
    strings: ``dns``, ``ip``, ``email``, ``uri``, ``usage``, ``eku``,
    ``ocsp_url``, ``crl_url``, ``ca_url``.
    """
    info: dict[str, Any] = {key: [] for key in _LISTS}
    for key, value in expect(Certificate, cert, "cert").native.info():
        if key in _LISTS:
            info[key].append(value)
        elif key == "is_ca":
            info[key] = value == "1"
        elif key == "key_bits":
            info[key] = int(value)
        else:
            info[key] = value
    return info


def cert_fetch(host: str, port: int = 443, *, timeout: float | None = 30.0) -> Certificate:
    """The certificate that a server shows, unverified; no data moves.

    The connection is refused as soon as the certificate is known.
    ``timeout`` in seconds, for all of it. Raises what the connect raises, TLSError, and
    TLSTimeoutError.
    """
    name = a_label(host)
    port = check_port(port)
    timeout = check_timeout(timeout)
    credentials = _native.Credentials("client", resume=False)
    session = _native.Session("client", credentials, target=name)
    deadline = Deadline(timeout)
    fd = socket.create_connection((host, port), timeout).detach()
    try:
        session.attach(fd)
    except BaseException:
        socket.close(fd)
        raise
    try:
        status = session.handshake(deadline.left())
        while status == _native.WANT_CERTIFICATE:
            session.set_certificate(None)
            status = session.handshake(deadline.left())
        cert = Certificate(session.remote_cert())
        if status == _native.WANT_VERDICT:
            with suppress(OSError):
                session.verdict(code("SEC_E_CERT_UNKNOWN"), "only the certificate was wanted")
        return cert
    finally:
        session.close(0.0, False)


# --- verification

# The result names of cert_tls_verify by code, TWAPI crypto.tcl:1120-1160.
RESULTS: dict[int, str] = {
    value - (1 << 32): name
    for value, name in {
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
    }.items()
}

USAGES: dict[str, str] = {
    "server_auth": "1.3.6.1.5.5.7.3.1",
    "client_auth": "1.3.6.1.5.5.7.3.2",
    "code_signing": "1.3.6.1.5.5.7.3.3",
    "email_protection": "1.3.6.1.5.5.7.3.4",
    "ipsec_end_system": "1.3.6.1.5.5.7.3.5",
    "ipsec_tunnel": "1.3.6.1.5.5.7.3.6",
    "ipsec_user": "1.3.6.1.5.5.7.3.7",
    "timestamp_signing": "1.3.6.1.5.5.7.3.8",
    "ocsp_signing": "1.3.6.1.5.5.7.3.9",
}


def _usage_oids(usages: Iterable[str] | str, option: str) -> list[str]:
    oids = []
    for usage in [usages] if isinstance(usages, str) else usages:
        if not isinstance(usage, str):
            raise TypeError(f"{option} must be strings, not {usage!r}")
        oid = USAGES.get(usage.removeprefix("oid_pkix_kp_"), usage)
        if not oid.replace(".", "").isdigit():
            raise ValueError(f"bad usage {usage!r} in {option}: an OID or {', '.join(USAGES)}")
        oids.append(oid)
    return oids


def ignore_bits(names: Iterable[str] | str) -> int:
    """The engine's bits of names such as "time", "name", "unknownca"."""
    bits = 0
    for name in [names] if isinstance(names, str) else names:
        if name not in _native.IGNORE:
            allowed = ", ".join(sorted(_native.IGNORE))
            raise ValueError(f"bad error to ignore {name!r}: must be one of {allowed}")
        bits |= _native.IGNORE[name]
    return bits


def collect(
    items: Store | Certificate | Iterable[Certificate] | None, what: str
) -> _native.Store | None:
    """A native store of what a user gave as certificates; None if nothing."""
    if items is None:
        return None
    if isinstance(items, Store):
        return items.native
    certs: Sequence[Certificate] = [items] if isinstance(items, Certificate) else list(items)
    if not certs:
        return None
    store = _native.Store()
    for cert in certs:
        if not isinstance(cert, Certificate):
            raise TypeError(f"{what} must be Certificate objects or a Store, not {cert!r}")
        store.add(cert.native)
    return store


def cert_tls_verify(
    cert: Certificate,
    server: str | None = None,
    hstore: Store | None = None,
    trustedroots: Store | Certificate | Iterable[Certificate] = (),
    revocationcheck: str = "all",
    usageall: Iterable[str] | str | None = None,
    usageany: Iterable[str] | str | None = None,
    ignoreerrors: Iterable[str] | str = (),
    engine: str = "user",
    *,
    commonname: bool = False,
    exclusiveroots: bool = False,
    ocsp: bytes | None = None,
    fetch: bool = False,
    fetchtimeout: float = 15.0,
    revocationcheckcacheonly: bool = False,
    urlretrievalcacheonly: bool = False,
    cacheendcert: bool = False,
    disableauthrootautoupdate: bool = False,
) -> str:
    """Verifies a certificate for TLS: "ok", or the name of the failure.

    server: DNS name or IP address: a server's certificate, with name check;
    None: a client's. hstore: intermediates and CRLs, besides those that came
    with the certificate. trustedroots: trust anchors besides the system's,
    or in their place if ``exclusiveroots``. revocationcheck: ``all``,
    ``leaf``, ``excluderoot``, ``none``. usageall, usageany: extended key
    usages (OIDs or ``server_auth`` ...), all or one of which it must have;
    default serverAuth or clientAuth. ignoreerrors: ``time name usage
    unknownca revocation basicconstraints policy criticalextensions
    revocationoffline``. engine: "user" or "machine": whose trust settings
    and intermediates count; they differ on Windows only. commonname: compare
    the common name where there is no subject alternative name. ocsp: a
    stapled answer, DER. fetch: CRLs may be fetched over HTTP, for at most
    ``fetchtimeout`` seconds.
    revocationcheckcacheonly, urlretrievalcacheonly: nothing may be fetched,
    which is so without ``fetch`` anyhow. cacheendcert,
    disableauthrootautoupdate: for Windows, whose engine caches certificates
    and updates its roots; OpenSSL does neither.

    Failures: ``signature revoked untrustedroot untrustedtestroot
    partialchain wrongusage time name cnmatch policy basicconstraints
    criticalextension revocationoffline revocationunknown ...``; one without
    a name is given in hexadecimal. Raises only if it could not run.
    Source: TWAPI, cert_tls_verify.
    """
    modes: dict[str, Revocation] = {
        "all": "all",
        "none": "none",
        "leaf": "leaf",
        "excluderoot": "excluderoot",
    }
    expect(Certificate, cert, "cert")
    if revocationcheck not in modes:
        raise ValueError(f"bad revocationcheck {revocationcheck!r}: one of {', '.join(modes)}")
    if engine not in ("user", "machine"):
        raise ValueError(f"bad engine {engine!r}: must be 'user' or 'machine'")
    if usageall is not None and usageany is not None:
        raise TypeError("usageall and usageany cannot be given together")
    if fetch and (revocationcheckcacheonly or urlretrievalcacheonly):
        raise TypeError("fetch cannot be given with an option that allows the cache only")
    usages: list[str] | None = None
    if usageall is not None:
        usages = _usage_oids(usageall, "usageall")
    elif usageany is not None:
        usages = _usage_oids(usageany, "usageany")
    if hstore is not None and not isinstance(hstore, Store):
        raise TypeError(f"hstore must be a Store, not {hstore!r}")
    roots = collect(trustedroots, "trustedroots")
    exclusiveroots = check_flag("exclusiveroots", exclusiveroots)
    if exclusiveroots and roots is None:
        roots = _native.Store()  # none at all, which is not "the system's"
    ignore = ignore_bits(ignoreerrors)
    mode = modes[revocationcheck]
    if ignore & _native.IGNORE["revocation"]:
        mode = "none"
    result = cert.native.verify(
        server=None if server is None else a_label(server),
        check_name=server is not None and not ignore & _native.IGNORE["name"],
        common_name=check_flag("commonname", commonname),
        extra=None if hstore is None else hstore.native,
        roots=roots if exclusiveroots else None,
        more_roots=None if exclusiveroots else roots,
        revocation=mode,
        ignore=ignore,
        usages=usages,
        usage_any=usageany is not None,
        ocsp=ocsp,
        fetch=check_flag("fetch", fetch),
        fetch_timeout=check_seconds(fetchtimeout, "fetchtimeout"),
        cache_end_cert=cacheendcert,
        root_update=not disableauthrootautoupdate,
        machine=engine == "machine",
    )[0]
    if result == 0:
        return "ok"
    return RESULTS.get(result, f"0x{result & 0xFFFFFFFF:08x}")


def issuers_not_found(cert: Certificate, chain: Store | None) -> list[_native.Certificate]:
    """The intermediates that came with ``cert``, or are in ``chain``, and that
    the system does not find by itself: an engine that sends what the system
    finds leaves them out."""
    came_with_it = joined(cert.native.chain(), None if chain is None else chain.native)
    if len(came_with_it) < 2:
        return []
    usage = _native.IGNORE["usage"]
    whole = cert.native.verify(extra=came_with_it, ignore=usage, path=True)[3]
    found = _native.Certificate.from_der(cert.der()).verify(ignore=usage, path=True)[3]
    known = set() if found is None else {found[at].der() for at in range(len(found))}
    path = [] if whole is None else [whole[at] for at in range(1, len(whole))]
    return [
        issuer
        for issuer in path
        if issuer.name("subject_rdn") != issuer.name("issuer_rdn") and issuer.der() not in known
    ]


def joined(first: _native.Store, second: _native.Store | None) -> _native.Store:
    """One store with what two hold; CRLs come along where there is one."""
    if second is None:
        return first
    if not len(first):
        return second
    both = _native.Store()
    both.import_("serialized", second.export("serialized"))
    for index in range(len(first)):
        both.add(first[index])
    return both
