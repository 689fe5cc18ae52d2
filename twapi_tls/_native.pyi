"""The contract with the C floor.

Every blocking method lets go of the GIL while it works or waits. A timeout
is in seconds: None waits for ever, 0 never waits. Errors of TLS raise
``TLSError`` and its subclasses (made by ``_native``, re-exported by the
package); argument errors raise TypeError or ValueError; a missing
certificate or store raises ``TLSError`` as well.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, final

from typing_extensions import Buffer

from .text import TextReader
from .transport import ByteTransport

# --- status of Session.handshake/step and of non-waiting reads and writes
DONE: Final = 0
WANT_READ: Final = 1
WANT_WRITE: Final = 2
WANT_VERDICT: Final = 3
WANT_CREDENTIALS: Final = 4
WANT_CERTIFICATE: Final = 5
END: Final = 6

CODES: Final[dict[str, int]]
"""SSPI code names to signed values: {"SEC_E_WRONG_PRINCIPAL": -2146893022, ...}."""

class TLSError(OSError):
    code: int  # SSPI status, signed; 0 if none
    name: str  # "SEC_E_..." or ""
    errorcode: tuple[str, ...]  # TWAPI's: ("TWAPI", "TLS", "VERIFYFAIL")
    alert: str | None  # by name
    alert_sent: str | None
    alert_received: str | None
    token: bytes  # output that a failed step produced
    reason: str  # the sentence

class TLSVerificationError(TLSError): ...
class TLSTruncatedError(TLSError, EOFError): ...
class TLSAlertError(TLSError): ...
class TLSTimeoutError(TLSError, TimeoutError): ...
class TLSClosedError(TLSError, BrokenPipeError): ...

capi: Final[object]
"""The capsule "twapi_tls._native.capi" for C extensions: include/twapi_tls.h."""

def engine() -> tuple[str, str, int]:
    """(name, version, fips: 1, 0 or -1 unknown)."""

def code_name(code: int) -> str: ...
def code_text(code: int) -> str: ...
def alert_name(alert: int) -> str: ...
def would_block(written: int = 0, /) -> BlockingIOError:
    """What a non-blocking call raises when nothing can be done now; ``written``
    bytes were taken nevertheless (``characters_written``)."""

@final
class Certificate:
    """Immutable; equal and hashed by its DER."""
    def der(self) -> bytes: ...
    def chain(self) -> Store: ...
    """The certificates that came with it, leaf first."""
    def has_private_key(self) -> bool: ...
    def name(
        self, which: Literal["subject_rdn", "issuer_rdn", "subject_cn", "issuer_cn"]
    ) -> str: ...
    def info(self) -> list[tuple[str, str]]: ...
    """(key, text) pairs as provider.h's cert_info says."""
    def digest(self, bytes: Literal[20, 32]) -> bytes: ...
    def matches(self, host: str, common_name: bool = False) -> bool: ...
    def verify(
        self,
        *,
        server: str | None = None,
        check_name: bool = True,
        common_name: bool = False,
        extra: Store | None = None,
        roots: Store | None = None,
        more_roots: Store | None = None,
        revocation: Literal["none", "leaf", "all", "excluderoot"] = "none",
        ignore: int = 0,
        usages: Sequence[str] | None = None,
        usage_any: bool = False,
        ocsp: bytes | None = None,
        fetch: bool = False,
        fetch_timeout: float = 15.0,
        cache_end_cert: bool = False,
        root_update: bool = True,
        machine: bool = False,
        path: bool = False,
    ) -> tuple[int, int, str, Store | None]:
        """(code, depth, detail, path); code 0 is ok; codes in CERT_E_ form."""
    @staticmethod
    def from_der(data: Buffer, /) -> Certificate: ...

IGNORE: Final[dict[str, int]]
"""time name usage unknownca revocation basicconstraints policy criticalextensions revocationoffline -> bit."""

@final
class Store:
    def __init__(self) -> None: ...
    @staticmethod
    def open_system(name: str, location: str = "user", /) -> Store: ...
    def import_(
        self,
        kind: Literal["der", "pem", "pfx", "pkcs7", "key_der", "serialized"],
        data: Buffer,
        password: str | None = None,
    ) -> None: ...
    def add(self, cert: Certificate, /) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Certificate: ...
    def export(self, kind: Literal["pem", "pkcs7", "serialized"], /) -> bytes: ...

@final
class Credentials:
    def __init__(
        self,
        role: Literal["client", "server"],
        *,
        certificates: Sequence[Certificate] = (),
        chain: Store | None = None,
        roots: Store | None = None,
        protocols: int = 0,
        min_bits: int = 0,
        max_bits: int = 0,
        ciphers: str | None = None,
        session_lifespan: int = 0,
        resume: bool = True,
        default_client_cert: bool = False,
        chooses: bool = False,
        install_chain: bool = False,
        window: int = 0,
    ) -> None: ...
    @property
    def role(self) -> str: ...

TLS1_2: Final = 2
TLS1_3: Final = 4

@final
class Session:
    """core/session.h, and with a socket wire/wire.h."""
    def __init__(
        self,
        role: Literal["client", "server"],
        credentials: Credentials | None,
        *,
        target: str | None = None,
        request_cert: bool = False,
        ask_verdict: bool = True,
        ask_credentials: bool = False,
        ask_certificate: bool = False,
        ragged_eof: bool = False,
        alpn: Sequence[bytes] = (),
    ) -> None: ...

    # with a socket
    def attach(self, fd: int, /) -> None:
        """Takes over a connected socket (the caller detaches it). After
        this the I/O methods drive the socket."""
    def fileno(self) -> int:
        """-1 once closed or without a socket."""
    def handshake(self, timeout: float | None = None, /) -> int:
        """DONE, a WANT_ decision, or (timeout 0, or no socket)
        WANT_READ / WANT_WRITE. Raises on failure."""
    def recv(self, n: int, timeout: float | None = None, /) -> bytes | None:
        """1..n bytes; b"" at the end; None: would block (timeout 0)."""
    def recv_into(self, buffer: Buffer, timeout: float | None = None, /) -> int:
        """Bytes; 0 at the end; -1: would block."""
    def send(self, data: Buffer, timeout: float | None = None, /) -> int:
        """Bytes taken. Timeout 0: as many as fit, 0 if none. Otherwise
        all of them; on TLSTimeoutError/interruption its ``written``
        attribute says how many were taken."""
    def flush(self, timeout: float | None = None, /) -> bool:
        """True when no output waits any more."""
    def shutdown_write(self, timeout: float | None = None, /) -> bool:
        """close_notify and FIN; False: output still waits (timeout 0)."""
    def close(self, timeout: float = 0.0, graceful: bool = True, /) -> None: ...
    def readable(self) -> bool:
        """Would recv return (data, end or error) without waiting? Looks in the
        socket, and opens a record to know whether it has data."""
    def set_spin(self, flag: bool, /) -> None:
        """Does a read that has to wait spin for up to 50 us first?"""

    # without a socket: bytes in, bytes out (also: any other transport)
    def feed(self, data: Buffer, /) -> None: ...
    def feed_eof(self) -> None: ...
    def set_ragged_eof(self, flag: bool, /) -> None:
        """As the argument; an error that stands stays. Also with a socket."""
    def encrypt(self, data: Buffer, /) -> bytes:
        """The records for data, with what output waited before them."""
    def encrypt_into(self, data: Buffer, buffer: Buffer, /) -> int:
        """As encrypt into a buffer of encrypted_size(len(data)) or more: bytes written."""
    def encrypted_size(self, length: int, /) -> int:
        """Room for length bytes encrypted, and for what output waits before them."""
    def decrypt(self, data: Buffer, /) -> bytes:
        """The plaintext of the peer's bytes, perhaps b""; plaintext before an error comes first."""
    def decrypt_into(self, data: Buffer, buffer: Buffer, /) -> int:
        """As decrypt into a buffer: bytes written; what does not fit waits inside."""
    def take_output(self) -> bytes: ...
    def take_input(self) -> bytes: ...
    """Unconsumed ciphertext, removed (TWAPI's leftover)."""
    def shutdown(self) -> None:
        """close_notify into the output."""
    def missing(self) -> int: ...

    # answers
    def verdict(self, code: int, detail: str = "", /) -> None:
        """0 accepts. Otherwise refuses: raises TLSVerificationError after
        the alert went out (with a socket) or into the output."""
    def set_credentials(self, credentials: Credentials, /) -> None: ...
    def set_certificate(self, credentials: Credentials | None, /) -> None: ...
    def hello(self) -> dict[str, Any] | None:
        """{"server_name": str, "alpn": [bytes], "versions": [int]}."""

    # facts
    def state(self) -> Literal["INIT", "NEGOTIATING", "OPEN", "FAILED"]: ...
    def pending(self) -> int: ...
    def at_rest(self) -> bool:
        """Does everything wait for the peer's next bytes: nothing inside to be
        read, no output? Without a look in the socket."""
    def output_pending(self) -> int: ...
    def input_pending(self) -> int: ...
    def read_ended(self) -> bool: ...
    def write_ended(self) -> bool: ...
    def error(self) -> TLSError | OSError | None: ...
    def remote_cert(self) -> Certificate: ...
    def local_cert(self) -> Certificate: ...
    def facts(self) -> dict[str, Any]:
        """protocol ("TLS 1.3"), suite (int), suite_name, cipher_name, bits,
        group, alpn (bytes | None), resumed (bool | None), sni (str)."""
    def binding(self, kind: Literal["unique", "endpoint"], /) -> bytes: ...
    def export(self, label: str, length: int, context: bytes | None = None, /) -> bytes: ...
    def issuers(self) -> list[bytes]: ...
    def ocsp(self) -> bytes | None: ...
    def features(self) -> int: ...
    @property
    def credentials(self) -> Credentials | None: ...

class DirectStream:
    """What Streams is made of: the small calls without Python.

    They do the ordinary case, bytes straight from or to a Session, and call
    the method of the same name with ``_slow_`` before it for any other. A
    read's OSError goes to ``_read_failed(error)`` while it is handled (raises,
    or returns where it counts as the end), what sendall's first send did not
    take to ``_send_rest(data, sent)``.
    """
    def recv(self, bufsize: int, flags: int = 0) -> bytes: ...
    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int: ...
    def send(self, data: Buffer, flags: int = 0) -> int: ...
    def sendall(self, data: Buffer, flags: int = 0) -> None: ...
    def _direct_readable(self) -> bool | None:
        """The session's readable(), where reading is the ordinary case; None:
        it is not, and who asks looks himself."""
    def _direct_at_rest(self) -> bool:
        """Are reading and writing the ordinary case, and the session at rest?"""

    # the state that decides which case it is
    _usable: bool
    _closed: bool
    """True until it is set: what was not made whole needs no close."""
    _eof: bool
    _blocked: bool
    _write_ended: bool
    _io: ByteTransport | None
    _timeout: float | None
    """ValueError for a negative one."""
    _reader: TextReader | None
    _output_error: OSError | None
    # each set once
    _ahead: bytearray
    _queue: bytearray
    _write_lock: Turn

@final
class Turn:
    """A lock that its holder may take again, as threading.RLock; C takes it
    without a call into Python."""
    def acquire(self, timeout: float | None = None, /) -> bool:
        """False after ``timeout`` seconds (None: for ever, 0: at once)."""
    def release(self) -> None:
        """Once for each time it was taken; RuntimeError for another thread."""
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...
