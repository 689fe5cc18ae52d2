"""Credentials and contexts without sockets, by TWAPI's SSPI names.

Credentials are counted by their users: freeing a handle never hurts a
channel or context that was made with it. A context is a byte machine: bytes
of the peer in, bytes for the peer out. Source: TWAPI's sspi.tcl.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

from . import _native
from ._native import TLSError
from .certs import Certificate, Store, issuers_not_found
from .names import a_label
from .options import check_flag, check_seconds, expect
from .verify import Policy, default_verdict

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Final, Literal, NamedTuple, Protocol

    from typing_extensions import Buffer

    from .certs import Revocation

    Role = Literal["client", "server"]
    CertificateChooser = Callable[["SspiContext", list[bytes]], "Credentials | None"]
else:
    from .tuples import NamedTuple

    Protocol = object

PACKAGE: Final = "Microsoft Unified Security Protocol Provider"
_PACKAGES: Final = {"unisp", "schannel", "tls", "ssl", PACKAGE.lower()}
_PROTOCOLS: Final = {"tls1.2": _native.TLS1_2, "tls1.3": _native.TLS1_3}
_OLD: Final = ("ssl2", "ssl3", "tls1", "tls1.0", "tls1.1")
_REVOCATION: Final[dict[str, Revocation]] = {
    "none": "none",
    "full": "all",
    "endonly": "leaf",
    "excluderoot": "excluderoot",
    "besteffort": "all",
}


class ConnectionFacts(NamedTuple):
    """What was negotiated.

    protocol: "TLS 1.3". suite: the IANA number, suite_name its name,
    cipher_name the engine's own. bits: of the cipher's key. group: of the
    key exchange, "" if unknown. alpn: None if nothing was chosen. sni: the
    name the client asked for, "" if none. resumed: None if the engine cannot
    tell.
    """

    protocol: str
    suite: int
    suite_name: str
    cipher_name: str
    bits: int
    group: str
    alpn: bytes | None
    sni: str
    resumed: bool | None


class CredentialsConfig(NamedTuple):
    """What ``sspi_schannel_credentials`` was told, checked; no handle yet."""

    certificates: tuple[Certificate, ...] = ()
    protocols: int = 0
    cipherstrength: tuple[int, int] = (0, 0)
    ciphers: str | None = None
    rootstore: Store | None = None
    sessionlifespan: int = 0  # seconds
    usedefaultclientcert: bool = False
    resume: bool = True
    alpn: tuple[bytes, ...] = ()
    chain: Store | None = None
    clientcertificate: CertificateChooser | None = None
    install_intermediates: bool = False
    parent_window: int | None = None
    policy: Policy = Policy()


def _protocol_bit(name: object, option: str) -> int:
    if isinstance(name, str):
        bit = _PROTOCOLS.get(name.lower())
        if bit is not None:
            return bit
        if name.lower() in _OLD:
            raise ValueError(
                f"{option} {name!r} is not offered by this engine: TLS 1.2 and 1.3 only"
            )
    raise ValueError(f"bad {option} {name!r}: must be 'tls1.2' or 'tls1.3'")


def _protocol_mask(protocols: Iterable[str] | str, minimum: str | None, maximum: str | None) -> int:
    mask = 0
    for name in [protocols] if isinstance(protocols, str) else protocols:
        mask |= _protocol_bit(name, "protocol")
    if minimum is None and maximum is None:
        return mask
    low = _protocol_bit(minimum, "minimum_version") if minimum is not None else _native.TLS1_2
    high = _protocol_bit(maximum, "maximum_version") if maximum is not None else _native.TLS1_3
    allowed = sum(bit for bit in _PROTOCOLS.values() if low <= bit <= high)
    mask = mask & allowed if mask else allowed
    if not mask:
        raise ValueError("protocols, minimum_version and maximum_version leave no protocol")
    return mask


def _cipher_strength(value: object) -> tuple[int, int]:
    if value is None:
        return 0, 0
    pair = (value, 0) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or not 1 <= len(pair) <= 2:
        raise TypeError(f"cipherstrength must be bits or (minimum, maximum), not {value!r}")
    low, high = pair[0], pair[1] if len(pair) == 2 else 0
    if not isinstance(low, int) or not isinstance(high, int):
        raise TypeError(f"cipherstrength must be in whole bits, not {value!r}")
    if low < 0 or high < 0:
        raise ValueError("cipherstrength -1 (no encryption) is not offered by this engine")
    if high and high < low:
        raise ValueError("cipherstrength: the maximum is below the minimum")
    return low, high


def check_alpn(names: Iterable[str | bytes] | str | bytes) -> tuple[bytes, ...]:
    """Protocol names for ALPN as bytes of 1..255 (RFC 7301); ValueError."""
    if isinstance(names, (str, bytes)):
        names = [names]
    # memoryview(), since bytes(3) would be three zero bytes.
    result = tuple(
        name.encode() if isinstance(name, str) else bytes(memoryview(name)) for name in names
    )
    for name in result:
        if not 1 <= len(name) <= 255:
            raise ValueError(f"bad ALPN name {name!r}: must have 1 to 255 bytes")
    return result


def sspi_schannel_credentials(
    certificates: Store | Certificate | Iterable[Certificate] = (),
    protocols: Iterable[str] | str = (),
    cipherstrength: int | Sequence[int] | None = None,
    rootstore: Store | None = None,
    sessionlifespan: int | None = None,
    usedefaultclientcert: bool = False,
    disablereconnects: bool = False,
    revocationcheck: str = "none",
    ignoreerrorrevocationoffline: bool = False,
    ignoreerrornorevocationcheck: bool = False,
    validateservercert: bool = True,
    alpn: Iterable[str | bytes] | str | bytes = (),
    minimum_version: str | None = None,
    maximum_version: str | None = None,
    *,
    ciphers: str | None = None,
    chain: Store | Iterable[Certificate] | None = None,
    commonname: bool = False,
    fetchrevocation: bool = False,
    fetchtimeout: float = 15.0,
    clientcertificate: CertificateChooser | None = None,
    install_intermediates: bool = False,
    parent_window: int | None = None,
) -> CredentialsConfig:
    """A description of credentials, checked; ``sspi_acquire_credentials`` takes it.

    certificates: with private keys; of a Store, those that have one. A
    server may hold several and answers by SNI. protocols: "tls1.2",
    "tls1.3"; empty: the engine's default. cipherstrength: bits, minimum or
    (minimum, maximum). rootstore: a client's trust anchors in place of the
    system's; a server's roots whose names it sends when it asks for a
    certificate. sessionlifespan: milliseconds. disablereconnects: no
    resumption. revocationcheck: "none", "full", "endonly", "excluderoot",
    "besteffort" (full, with what cannot be found out ignored).
    validateservercert False: no automatic verification. alpn: names, the
    preferred first. minimum_version, maximum_version: as protocols.
    ciphers: an OpenSSL cipher list for TLS 1.2. chain: intermediates to
    send besides those that came with the certificates. commonname: accept a
    common name where there is no subject alternative name. fetchrevocation:
    CRLs may be fetched over HTTP, for at most fetchtimeout seconds.
    clientcertificate: ``chooser(context, issuers) -> Credentials | None``,
    called when a server asks for a certificate; issuers are DER names. A
    session in which it was asked is not resumed, so that it is asked again.
    install_intermediates: Schannel sends the issuers that Windows finds, not
    those in memory: put what came with the certificates, and ``chain``, into
    the user's store of intermediates ("CA"), where they stay. Without it
    acquiring warns (RuntimeWarning) of those that would be left out. OpenSSL
    sends them from memory and has nothing to do. parent_window: the client's
    private key may ask its user for a PIN or consent: the window (HWND) that
    the questions belong to, 0 for none. The negotiation then runs in a
    thread of its own, so that timeouts hold and an event loop goes on while
    a question is open; one that is not answered in time stays on the screen
    until it is. The certificate is shown once the server is verified, so
    that nobody is asked for a stranger. A window is Schannel's only.

    TypeError and ValueError for what cannot be honoured.
    """
    flags = {
        "usedefaultclientcert": usedefaultclientcert,
        "disablereconnects": disablereconnects,
        "ignoreerrorrevocationoffline": ignoreerrorrevocationoffline,
        "ignoreerrornorevocationcheck": ignoreerrornorevocationcheck,
        "validateservercert": validateservercert,
        "commonname": commonname,
        "fetchrevocation": fetchrevocation,
        "install_intermediates": install_intermediates,
    }
    for name, flag in flags.items():
        check_flag(name, flag)
    if certificates is None:
        raise TypeError("certificates is None: the search in the store found nothing that fits")
    if isinstance(certificates, Certificate):
        certs: tuple[Certificate, ...] = (certificates,)
    elif isinstance(certificates, Store):
        certs = tuple(cert for cert in certificates if cert.has_private_key())
        if not certs:
            raise ValueError("certificates: the store holds none with a private key")
    else:
        certs = tuple(certificates)
    for cert in certs:
        if not isinstance(cert, Certificate):
            raise TypeError(f"certificates must be Certificate objects, not {cert!r}")
        if not cert.has_private_key():
            raise ValueError(f"certificates: {cert!r} has no private key")
    if rootstore is not None and not isinstance(rootstore, Store):
        raise TypeError(f"rootstore must be a Store, not {rootstore!r}")
    if revocationcheck not in _REVOCATION:
        raise ValueError(
            f"bad revocationcheck {revocationcheck!r}: must be one of {', '.join(_REVOCATION)}"
        )
    if sessionlifespan is not None and not isinstance(sessionlifespan, int):
        raise TypeError(f"sessionlifespan must be whole milliseconds, not {sessionlifespan!r}")
    if sessionlifespan is not None and sessionlifespan < 0:
        raise ValueError("sessionlifespan must not be negative")
    if parent_window is not None and type(parent_window) is not int:
        raise TypeError(f"parent_window must be a window's handle, not {parent_window!r}")
    if parent_window is not None and not 0 <= parent_window < 1 << 63:
        raise ValueError(f"parent_window must be a window's handle or 0, not {parent_window}")
    if clientcertificate is not None and not callable(clientcertificate):
        raise TypeError("clientcertificate must be callable")
    if chain is not None and not isinstance(chain, Store):
        intermediates = Store()
        for cert in chain:
            if not isinstance(cert, Certificate):
                raise TypeError(f"chain must be Certificate objects or a Store, not {cert!r}")
            intermediates.native.add(cert.native)
        chain = intermediates
    ignore = 0
    if (
        ignoreerrorrevocationoffline
        or ignoreerrornorevocationcheck
        or revocationcheck == "besteffort"
    ):
        ignore = _native.IGNORE["revocationoffline"]
    # The stores and certificates may be released before the credentials are
    # acquired or used: keep handles of our own.
    return CredentialsConfig(
        certificates=tuple(Certificate(cert.native) for cert in certs),
        protocols=_protocol_mask(protocols, minimum_version, maximum_version),
        cipherstrength=_cipher_strength(cipherstrength),
        ciphers=ciphers,
        rootstore=None if rootstore is None else Store(rootstore.native),
        sessionlifespan=-(-(sessionlifespan or 0) // 1000),
        usedefaultclientcert=bool(usedefaultclientcert),
        resume=not disablereconnects,
        alpn=check_alpn(alpn),
        chain=None if chain is None else Store(chain.native),
        clientcertificate=clientcertificate,
        install_intermediates=bool(install_intermediates),
        parent_window=parent_window,
        policy=Policy(
            roots=None if rootstore is None else rootstore.native,
            revocation=_REVOCATION[revocationcheck],
            ignore=ignore,
            validate=bool(validateservercert),
            common_name=bool(commonname),
            fetch=bool(fetchrevocation),
            fetch_timeout=check_seconds(fetchtimeout, "fetchtimeout"),
        ),
    )


class Credentials:
    """Acquired credentials; a context manager, freed once."""

    def __init__(self, native: _native.Credentials, config: CredentialsConfig, role: Role) -> None:
        self._native: _native.Credentials | None = native
        self.config = config
        self.role: Role = role

    @property
    def native(self) -> _native.Credentials:
        """The engine's object; ValueError once freed."""
        if self._native is None:
            raise ValueError("the credentials were freed")
        return self._native

    @property
    def asks(self) -> bool:
        """May the private key ask a person, for a PIN or consent?"""
        return self.config.parent_window is not None

    @property
    def freed(self) -> bool:
        """Was this handle freed?"""
        return self._native is None

    def free(self) -> None:
        """Gives the handle back. Channels made with it go on; idempotent."""
        self._native = None

    def __enter__(self) -> Credentials:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def __repr__(self) -> str:
        return f"<Credentials {self.role}{' freed' if self.freed else ''}>"


def sspi_acquire_credentials(
    package: str = "unisp",
    role: str = "client",
    credentials: CredentialsConfig | None = None,
) -> Credentials:
    """Acquires credentials from the engine.

    package: "unisp", "schannel", "tls" or "ssl", all the same. role:
    "client" ("outbound") or "server" ("inbound"). credentials: of
    ``sspi_schannel_credentials``; None: all defaults. A server needs a
    certificate. Raises TLSError if the engine refuses them.
    """
    if expect(str, package, "package").lower() not in _PACKAGES:
        raise ValueError(f"bad package {package!r}: must be unisp, schannel, tls or ssl")
    roles: dict[str, Role] = {
        "client": "client",
        "outbound": "client",
        "server": "server",
        "inbound": "server",
    }
    if role not in roles:
        raise ValueError(f"bad role {role!r}: must be 'client' or 'server'")
    if credentials is None:
        credentials = CredentialsConfig()
    if not isinstance(credentials, CredentialsConfig):
        raise TypeError("credentials must come from sspi_schannel_credentials()")
    config = credentials
    side = roles[role]
    if side == "server" and config.parent_window is not None:
        raise ValueError("parent_window is for clients: a server's key must ask nobody")
    if side == "server" and not config.certificates:
        raise ValueError("server credentials need a certificate with a private key")
    certificates = config.certificates
    # Schannel builds the path that it sends from the system's stores.
    if certificates and not config.install_intermediates and _native.engine()[0] == "schannel":
        _warn_of_missing_issuers(config)
    asks = side == "client" and config.parent_window is not None
    if asks and certificates and config.clientcertificate is None:
        # Shown once the server asks, which is after it was verified: nobody
        # is to enter a PIN for a stranger.
        shown = Credentials(_acquire(config, side, certificates), config, side)
        config = config._replace(clientcertificate=lambda context, issuers: shown)
        certificates = ()
    return Credentials(_acquire(config, side, certificates), config, side)


def _acquire(
    config: CredentialsConfig, side: Role, certificates: tuple[Certificate, ...]
) -> _native.Credentials:
    return _native.Credentials(
        side,
        certificates=[cert.native for cert in certificates],
        chain=None if config.chain is None else config.chain.native,
        roots=None if config.rootstore is None or side == "client" else config.rootstore.native,
        protocols=config.protocols,
        min_bits=config.cipherstrength[0],
        max_bits=config.cipherstrength[1],
        ciphers=config.ciphers,
        session_lifespan=config.sessionlifespan,
        resume=config.resume,
        default_client_cert=config.usedefaultclientcert,
        chooses=config.clientcertificate is not None,
        install_chain=config.install_intermediates,
        window=config.parent_window or 0,
    )


def _warn_of_missing_issuers(config: CredentialsConfig) -> None:
    for cert in config.certificates:
        missing = issuers_not_found(cert, config.chain)
        if missing:
            names = ", ".join(repr(issuer.name("subject_rdn")) for issuer in missing)
            warnings.warn(
                f"Windows does not find the intermediate {names} by itself, so that Schannel "
                f"sends {cert.native.name('subject_rdn')!r} without it and peers may refuse the "
                "certificate: give install_intermediates=True to sspi_schannel_credentials, or "
                "add the intermediate to the system store CA",
                RuntimeWarning,
                stacklevel=3,
            )


def sspi_free_credentials(credentials: Credentials) -> None:
    """Gives credentials back; idempotent, and never hurts their users."""
    expect(Credentials, credentials, "credentials").free()


def sspi_enumerate_packages() -> list[str]:
    """The security packages that ``sspi_acquire_credentials`` can use."""
    return [PACKAGE]


# --- contexts


class SspiContext:
    """A security context: of a channel, or on its own.

    Free-standing ones are made by ``sspi_client_context`` and
    ``sspi_server_context`` and stepped by the caller. A channel's context
    tells facts and certificates; the channel alone moves it.

    ``encrypt(data) -> bytes`` and ``decrypt(data) -> bytes`` of a
    free-standing one are what ``sspi_encrypt_stream`` and
    ``sspi_decrypt_stream`` do, without status: for many small messages.
    """

    def __init__(
        self,
        session: _native.Session,
        role: Role,
        *,
        target: str | None = None,
        policy: Policy | None = None,
        chooser: CertificateChooser | None = None,
        of_channel: bool = False,
    ) -> None:
        self._session: _native.Session | None = session
        self.role: Role = role
        self.target = target
        self.policy = policy
        self.chooser = chooser
        self.of_channel = of_channel
        self.encrypt: Callable[[Buffer], bytes] = self._no_records
        self.decrypt: Callable[[Buffer], bytes] = self._no_records
        if not of_channel:
            # The engine's own methods: a call of Python's costs as much as
            # a small record.
            self.encrypt, self.decrypt = session.encrypt, session.decrypt
            vars(self).update(encrypt_into=session.encrypt_into, decrypt_into=session.decrypt_into)

    def encrypt_into(self, data: Buffer, buffer: Buffer) -> int:
        """The records for data into a writable buffer: how many bytes.

        The buffer has ``encrypted_size(len(data))`` bytes or more, else
        ValueError and nothing is done. What waits to go to the peer comes
        first; the two memories must not overlap (ValueError). Errors as
        with ``sspi_encrypt_stream``.
        """
        return _own(self).encrypt_into(data, buffer)

    def encrypted_size(self, length: int) -> int:
        """The room that ``encrypt_into`` wants for so many bytes.

        At most that much is written; now, for it grows by what comes to
        wait: an answer to a peer that changed its keys, say.
        """
        return _own(self).encrypted_size(length)

    def decrypt_into(self, data: Buffer, buffer: Buffer) -> int:
        """The plaintext of the peer's bytes into a writable buffer: how many bytes.

        What does not fit waits inside: ``decrypt_into(b"", buffer)`` gives
        more of it, and 0 says that nothing is left. A buffer as long as data
        holds all of it with the fewest copies; what is behind the plaintext
        in it may be overwritten. Errors and what is kept
        as with ``sspi_decrypt_stream``, which tells the status; the two
        memories must not overlap (ValueError).
        """
        return _own(self).decrypt_into(data, buffer)

    def _no_records(self, data: Buffer, /) -> bytes:
        _own(self)
        raise ValueError("the security context has no records")

    @property
    def session(self) -> _native.Session:
        """The engine's object; ValueError once deleted."""
        if self._session is None:
            raise ValueError("the security context was deleted")
        return self._session

    def facts(self) -> ConnectionFacts:
        """What was negotiated. TLSError before it is known."""
        return ConnectionFacts(**self.session.facts())

    def channel_binding(self, kind: str = "tls-server-end-point") -> bytes:
        """A channel binding's bytes, without prefix.

        kind: "tls-unique" (RFC 5929; TLS 1.2 only), "tls-server-end-point"
        (RFC 5929), "tls-exporter" (RFC 9266). TLSError where protocol or
        engine has none.
        """
        if kind == "tls-exporter":
            return self.export("EXPORTER-Channel-Binding", 32, b"")
        if kind == "tls-unique":
            raw = self.session.binding("unique")
        elif kind == "tls-server-end-point":
            raw = self.session.binding("endpoint")
        else:
            raise ValueError(
                f"bad channel binding {kind!r}: must be tls-unique, "
                "tls-server-end-point or tls-exporter"
            )
        # SSPI hands bindings out with their prefix (RFC 5056, 2.1).
        return raw.removeprefix(kind.encode() + b":")

    def export(self, label: str, length: int, context: bytes | None = None) -> bytes:
        """Keying material for ``label`` (RFC 5705; RFC 8446, 7.5)."""
        return self.session.export(label, length, context)

    def delete(self) -> None:
        """Ends a free-standing context; idempotent."""
        if not self.of_channel and self._session is not None:
            self._session.close(0.0, False)
            self._session = None
            self.encrypt = self.decrypt = self._no_records
            del vars(self)["encrypt_into"], vars(self)["decrypt_into"]

    def __enter__(self) -> SspiContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()


def _context(ctx: object) -> SspiContext:
    """``ctx``, if it is a context; TypeError otherwise."""
    if isinstance(ctx, SspiContext):
        return ctx
    hint = " (a channel's is channel.context)" if hasattr(type(ctx), "context") else ""
    raise TypeError(f"ctx must be of type SspiContext, not {type(ctx).__name__}{hint}")


def _own(ctx: SspiContext) -> _native.Session:
    """The session of a free-standing context, which the caller may move."""
    if _context(ctx).of_channel:
        raise ValueError("a channel's context is moved by the channel alone")
    return ctx.session


def make_session(
    role: Role,
    credentials: Credentials | None,
    *,
    target: str | None = None,
    request_cert: bool = False,
    ask_verdict: bool = True,
    alpn: Sequence[bytes] | None = None,
) -> _native.Session:
    """A session for credentials, or for a server that chooses them later."""
    if credentials is not None and credentials.role != role:
        raise ValueError(f"{credentials.role} credentials cannot be used by a {role}")
    config = CredentialsConfig() if credentials is None else credentials.config
    return _native.Session(
        role,
        None if credentials is None else credentials.native,
        target=target,
        request_cert=request_cert,
        ask_verdict=ask_verdict,
        ask_credentials=credentials is None,
        ask_certificate=role == "client" and config.clientcertificate is not None,
        alpn=config.alpn if alpn is None else alpn,
    )


def answer_certificate(context: SspiContext) -> Credentials | None:
    """Answers WANT_CERTIFICATE through the chooser, whose choice it returns.

    What the chooser raises, rises.
    """
    chosen = None
    if context.chooser is not None:
        chosen = context.chooser(context, context.session.issuers())
        if chosen is not None and not isinstance(chosen, Credentials):
            raise TypeError(f"clientcertificate must return Credentials or None, not {chosen!r}")
    context.session.set_certificate(None if chosen is None else chosen.native)
    return chosen


def sspi_client_context(
    cred: Credentials,
    target: str | None = None,
    manualvalidation: bool = False,
    *,
    alpn: Iterable[str | bytes] | None = None,
) -> SspiContext:
    """A client's context; the first ``sspi_step`` gives the ClientHello.

    target: the server's name or address, for SNI and verification; needed
    unless manualvalidation, which accepts every certificate: the caller
    looks at it (``sspi_remote_cert``).
    """
    config = expect(Credentials, cred, "cred").config
    manualvalidation = check_flag("manualvalidation", manualvalidation)
    if target is None and not manualvalidation and config.policy.validate:
        raise ValueError("target is needed to verify the server (or manualvalidation=True)")
    name = None if target is None else a_label(target)
    session = make_session(
        "client",
        cred,
        target=name,
        ask_verdict=not manualvalidation and config.policy.validate,
        alpn=None if alpn is None else check_alpn(alpn),
    )
    return SspiContext(
        session, "client", target=name, policy=config.policy, chooser=config.clientcertificate
    )


def sspi_server_context(
    cred: Credentials,
    data: Buffer = b"",
    mutualauth: bool = False,
    *,
    alpn: Iterable[str | bytes] | None = None,
) -> SspiContext:
    """A server's context, given the client's first bytes.

    mutualauth: ask the client for its certificate; it is not verified. The
    answer to ``data`` comes from the next ``sspi_step``.
    """
    session = make_session(
        "server",
        expect(Credentials, cred, "cred"),
        request_cert=check_flag("mutualauth", mutualauth),
        ask_verdict=False,
        alpn=None if alpn is None else check_alpn(alpn),
    )
    context = SspiContext(session, "server")
    if len(memoryview(data)):
        session.feed(data)
    return context


def sspi_step(ctx: SspiContext, data: Buffer = b"") -> tuple[str, bytes, bytes]:
    """One step of a negotiation: (status, output, leftover).

    status: "done"; "continue": send output, step again with the answer;
    "disconnected": the peer ended it. leftover: bytes after the handshake,
    for ``sspi_decrypt_stream``. A server's certificate is verified in here.
    A failed step raises TLSError; its ``token`` is what the peer should be
    sent. After ``renegotiate`` from decryption: step without data, send the
    output, give the leftover back to decryption.
    """
    session = _own(ctx)
    if len(memoryview(data)):
        session.feed(data)
    try:
        if session.state() == "OPEN":
            return "done", session.take_output(), session.take_input()
        while True:
            status = session.handshake(0)
            if status == _native.WANT_VERDICT:
                session.verdict(*default_verdict(session, ctx.target, ctx.policy or Policy()))
            elif status == _native.WANT_CERTIFICATE:
                answer_certificate(ctx)
            else:
                break
    except TLSError as error:
        if error.name == "SEC_I_CONTEXT_EXPIRED":
            return "disconnected", session.take_output(), b""
        error.token = (error.token or b"") + session.take_output()
        raise
    if status == _native.DONE:
        return "done", session.take_output(), session.take_input()
    if status == _native.END:
        return "disconnected", session.take_output(), b""
    return "continue", session.take_output(), b""


def sspi_encrypt_stream(ctx: SspiContext, data: Buffer) -> bytes:
    """The records for ``data``; b"" for none. Needs a negotiated context."""
    return _own(ctx).encrypt(data)


def sspi_decrypt_stream(ctx: SspiContext, data: Buffer) -> tuple[str, bytes]:
    """(status, plaintext) of the peer's bytes; incomplete records are kept.

    status: "ok"; "expired": the peer sent close_notify; "renegotiate": call
    ``sspi_step(ctx)``, send its output, give its leftover back here.
    Plaintext before an error comes first; the next call raises the error.
    """
    session = _own(ctx)
    try:
        plain = session.decrypt(data)
    except TLSError as error:
        error.token = (error.token or b"") + session.take_output()
        raise
    if session.read_ended():
        return "expired", plain
    # the output of a failed context is its alert, which the error will carry
    waiting = session.output_pending() and session.state() == "OPEN"
    return "renegotiate" if waiting else "ok", plain


class Writer(Protocol):
    """What ``sspi_encrypt_and_write`` writes to."""

    def write(self, data: bytes, /) -> object: ...

    def flush(self) -> object: ...


def sspi_encrypt_and_write(
    ctx: SspiContext, data: Buffer, chan: Writer, *, flush: bool = True
) -> None:
    """Writes the records for ``data`` to a binary channel or file."""
    if not callable(getattr(chan, "write", None)):
        raise TypeError(f"chan must have a write method; {type(chan).__name__} has none")
    chan.write(sspi_encrypt_stream(ctx, data))
    if flush:
        chan.flush()


def sspi_shutdown_context(ctx: SspiContext) -> tuple[str, bytes]:
    """("done", close_notify for the peer); b"" where it was sent before."""
    session = _own(ctx)
    session.shutdown()
    return "done", session.take_output()


def sspi_delete_context(ctx: SspiContext) -> None:
    """Ends a context; idempotent."""
    _context(ctx).delete()


def sspi_remote_cert(ctx: SspiContext) -> Certificate:
    """The peer's certificate; ``SEC_E_NO_CREDENTIALS`` if it sent none."""
    return Certificate(_context(ctx).session.remote_cert())


def sspi_local_cert(ctx: SspiContext) -> Certificate:
    """Our own certificate; ``SEC_E_NO_CREDENTIALS`` if none was used."""
    return Certificate(_context(ctx).session.local_cert())


def sspi_issuers_accepted_by_peer(ctx: SspiContext) -> list[bytes]:
    """The DER names of all authorities the peer accepts; perhaps none."""
    return list(_context(ctx).session.issuers())


def sspi_connection_facts(ctx: SspiContext) -> ConnectionFacts:
    """What was negotiated, as ``SspiContext.facts``."""
    return _context(ctx).facts()


# ISC_RET_/ASC_RET_ of sspi.h; two bits differ by role.
_FEATURES: Final = {
    "delegate": (0x1, 0x1),
    "mutualauth": (0x2, 0x2),
    "replaydetect": (0x4, 0x4),
    "sequencedetect": (0x8, 0x8),
    "confidentiality": (0x10, 0x10),
    "usesessionkey": (0x20, 0x20),
    "allocatememory": (0x100, 0x100),
    "extendederror": (0x4000, 0x8000),
    "stream": (0x8000, 0x10000),
    "integrity": (0x10000, 0x20000),
}


def sspi_context_features(ctx: SspiContext) -> dict[str, Any]:
    """What the context grants: ``raw`` (int) and a bool for each feature."""
    raw = _context(ctx).session.features()
    at = 0 if ctx.role == "client" else 1
    features: dict[str, Any] = {name: bool(raw & bits[at]) for name, bits in _FEATURES.items()}
    features["raw"] = raw
    return features
