"""SSPI's vocabulary for tests, and the door to ``_testnative``.

``_testnative`` (tests/native/setup.py) shows the C floors below Python. It is
built by ``make``, which names its place in TWAPI_TLS_TESTNATIVE; where the
variable is set a missing module is an error, elsewhere the tests that need it
say why they are skipped.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_testnative() -> Any:
    place = os.environ.get("TWAPI_TLS_TESTNATIVE")
    folder = Path(place) if place else ROOT / "build" / "testnative"
    sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module("_testnative")
    except ImportError:
        if place:
            raise
        pytest.skip(
            "_testnative is not built: run make, or python tests/native/setup.py",
            allow_module_level=True,  # most tests load it with their module
        )
    finally:
        sys.path.pop(0)


# --- enum tw_status, tw_state, tw_role
DONE, WANT_READ, WANT_WRITE, WANT_VERDICT, WANT_CREDENTIALS, WANT_CERTIFICATE, END = range(7)
E_TLS, E_ALERT, E_TRUNCATED, E_NEGOTIATE_EOF, E_REFUSED, E_CLOSED, E_STATE = range(-1, -8, -1)
E_NOMEM, E_ARGUMENT, E_UNSUPPORTED, E_NOT_FOUND, E_FORMAT = -11, -12, -13, -14, -16
INIT, NEGOTIATING, OPEN, FAILED = range(4)
CLIENT, SERVER = 1, 2


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


OK = 0
# winerror.h and sspi.h
SUCCESSES = {
    "SEC_I_CONTINUE_NEEDED": 0x00090312,
    "SEC_I_COMPLETE_NEEDED": 0x00090313,
    "SEC_I_COMPLETE_AND_CONTINUE": 0x00090314,
    "SEC_I_LOCAL_LOGON": 0x00090315,
    "SEC_I_GENERIC_EXTENSION_RECEIVED": 0x00090316,
    "SEC_I_CONTEXT_EXPIRED": 0x00090317,
    "SEC_I_INCOMPLETE_CREDENTIALS": 0x00090320,
    "SEC_I_RENEGOTIATE": 0x00090321,
    "SEC_I_NO_LSA_CONTEXT": 0x00090323,
    "SEC_I_SIGNATURE_NEEDED": 0x0009035C,
    "SEC_I_NO_RENEGOTIATION": 0x00090360,
    "SEC_I_MESSAGE_FRAGMENT": 0x00090364,
    "SEC_I_CONTINUE_NEEDED_MESSAGE_OK": 0x00090366,
    "SEC_I_ASYNC_CALL_PENDING": 0x00090368,
}
# What Microsoft's pages name for InitializeSecurityContext and
# AcceptSecurityContext (Schannel), EncryptMessage, DecryptMessage,
# ApplyControlToken and QueryContextAttributes, taken together.
FAILURES = {
    name: _signed(value)
    for name, value in {
        "SEC_E_INSUFFICIENT_MEMORY": 0x80090300,
        "SEC_E_INVALID_HANDLE": 0x80090301,
        "SEC_E_UNSUPPORTED_FUNCTION": 0x80090302,
        "SEC_E_TARGET_UNKNOWN": 0x80090303,
        "SEC_E_INTERNAL_ERROR": 0x80090304,
        "SEC_E_NOT_OWNER": 0x80090306,
        "SEC_E_INVALID_TOKEN": 0x80090308,
        "SEC_E_QOP_NOT_SUPPORTED": 0x8009030A,
        "SEC_E_LOGON_DENIED": 0x8009030C,
        "SEC_E_UNKNOWN_CREDENTIALS": 0x8009030D,
        "SEC_E_NO_CREDENTIALS": 0x8009030E,
        "SEC_E_MESSAGE_ALTERED": 0x8009030F,
        "SEC_E_OUT_OF_SEQUENCE": 0x80090310,
        "SEC_E_NO_AUTHENTICATING_AUTHORITY": 0x80090311,
        "SEC_E_CONTEXT_EXPIRED": 0x80090317,
        "SEC_E_INCOMPLETE_MESSAGE": 0x80090318,
        "SEC_E_INCOMPLETE_CREDENTIALS": 0x80090320,
        "SEC_E_BUFFER_TOO_SMALL": 0x80090321,
        "SEC_E_WRONG_PRINCIPAL": 0x80090322,
        "SEC_E_UNTRUSTED_ROOT": 0x80090325,
        "SEC_E_ILLEGAL_MESSAGE": 0x80090326,
        "SEC_E_CERT_UNKNOWN": 0x80090327,
        "SEC_E_CERT_EXPIRED": 0x80090328,
        "SEC_E_ENCRYPT_FAILURE": 0x80090329,
        "SEC_E_DECRYPT_FAILURE": 0x80090330,
        "SEC_E_ALGORITHM_MISMATCH": 0x80090331,
        "SEC_E_CRYPTO_SYSTEM_INVALID": 0x80090337,
        "SEC_E_UNSUPPORTED_PREAUTH": 0x80090343,
        "SEC_E_CERT_WRONG_USAGE": 0x80090349,
        "SEC_E_INVALID_PARAMETER": 0x8009035D,
        "SEC_E_APPLICATION_PROTOCOL_MISMATCH": 0x80090367,
        "CRYPT_E_REVOKED": 0x80092010,
        "CERT_E_UNTRUSTEDROOT": 0x800B0109,
    }.items()
}
globals().update(SUCCESSES)
globals().update(FAILURES)
CONTINUE = SUCCESSES["SEC_I_CONTINUE_NEEDED"]
EXPIRED = SUCCESSES["SEC_I_CONTEXT_EXPIRED"]
LACKING = SUCCESSES["SEC_I_INCOMPLETE_CREDENTIALS"]
RENEGOTIATE = SUCCESSES["SEC_I_RENEGOTIATE"]
INCOMPLETE = FAILURES["SEC_E_INCOMPLETE_MESSAGE"]
INTERNAL = FAILURES["SEC_E_INTERNAL_ERROR"]
INVALID_TOKEN = FAILURES["SEC_E_INVALID_TOKEN"]
INVALID_HANDLE = FAILURES["SEC_E_INVALID_HANDLE"]

# SECBUFFER_...
EMPTY, DATA, TOKEN, MISSING, EXTRA, TRAILER, HEADER, ALERT, ALPN = 0, 1, 2, 4, 5, 6, 7, 17, 18

ISC_ALLOCATE, ISC_STREAM, ISC_EXTENDED_ERROR = 0x100, 0x8000, 0x4000
ISC_CONFIDENTIALITY, ISC_MANUAL, ISC_USE_SUPPLIED = 0x10, 0x80000, 0x80
ASC_ALLOCATE, ASC_STREAM, ASC_EXTENDED_ERROR = 0x100, 0x10000, 0x8000
ASC_MUTUAL = 0x2

ATTR_STREAM_SIZES, ATTR_ALPN, ATTR_REMOTE_CERT = 4, 35, 0x53
ATTR_CONNECTION_INFO, ATTR_SESSION_INFO, ATTR_CIPHER_INFO = 0x5A, 0x5D, 0x64
SHUTDOWN_TOKEN = (1).to_bytes(4, sys.byteorder)


def alert_token(number: int) -> bytes:
    """SCHANNEL_ALERT_TOKEN, fatal."""
    return b"".join(value.to_bytes(4, sys.byteorder) for value in (2, 2, number))


# --- bytes of TLS


def record(body: bytes, kind: int = 23, version: int = 0x0303) -> bytes:
    return bytes([kind]) + version.to_bytes(2) + len(body).to_bytes(2) + body


def plain_alert(number: int) -> bytes:
    """A fatal alert without keys (RFC 8446, 6)."""
    return record(bytes([2, number]), 21)


def vector(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size) + data


def client_hello(
    name: str | bytes | None = "localhost",
    *,
    alpn: tuple[bytes, ...] = (),
    versions: tuple[int, ...] = (0x0304, 0x0303),
    extra: bytes = b"",
) -> bytes:
    """A ClientHello message, without the record header (RFC 8446, 4.1.2)."""
    extensions = b""
    if name is not None:
        host = name.encode() if isinstance(name, str) else name
        extensions += b"\0\0" + vector(vector(b"\0" + vector(host, 2), 2), 2)
    if alpn:
        extensions += b"\0\x10" + vector(vector(b"".join(vector(p, 1) for p in alpn), 2), 2)
    if versions:
        listed = b"".join(v.to_bytes(2) for v in versions)
        extensions += b"\0\x2b" + vector(vector(listed, 1), 2)
    extensions += extra
    body = (
        b"\3\3"
        + bytes(range(32))
        + vector(b"", 1)
        + vector(b"\x13\x01", 2)
        + vector(b"\0", 1)
        + vector(extensions, 2)
    )
    return b"\1" + vector(body, 3)
