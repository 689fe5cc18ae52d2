"""SSPI's vocabulary for tests, and the doors to the modules for tests.

``_testnative`` (tests/native/setup.py) shows the C floors below Python, and
``_testschannel`` the Windows engine over the scripted table. They are built by
``make``, which names their place in TWAPI_TLS_TESTNATIVE; where the variable is
set a missing module is an error, elsewhere the tests that need it say why they
are skipped.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import shutil
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _folder() -> tuple[Path, bool]:
    """Where the modules for tests are, and whether somebody said so."""
    place = os.environ.get("TWAPI_TLS_TESTNATIVE")
    return Path(place) if place else ROOT / "build" / "testnative", bool(place)


_NOT_BUILT = "{} is not built: run make, or python tests/native/setup.py"


def load_testnative() -> Any:
    folder, must = _folder()
    sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module("_testnative")
    except ImportError:
        if must:
            raise
        pytest.skip(
            _NOT_BUILT.format("_testnative"),
            allow_module_level=True,  # most tests load it with their module
        )
    finally:
        sys.path.pop(0)


SCHANNEL_PLAYED = sys.platform != "win32"  # elsewhere it is the engine itself


@functools.cache
def load_testschannel(
    build: int = 26100,
    *,
    wine: str | None = None,
    fips: int = 0,
    secur32: bool = True,
    sets_attributes: bool = True,
) -> Any:
    """``_testschannel`` (tests/native/sdk): the Windows engine on one Windows.

    Which Windows it is it asks once, so each gets a copy of the module.
    ``build`` 0: RtlGetVersion is not there; ``fips`` below 0: not told;
    ``secur32``, ``sets_attributes``: there is a function table, and
    SetContextAttributes in it.
    """
    folder, must = _folder()
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if (folder / f"_testschannel{suffix}").is_file():
            break
    else:
        if must:
            raise ImportError(f"no _testschannel in {folder}")
        pytest.skip(_NOT_BUILT.format("_testschannel"), allow_module_level=True)
    with tempfile.TemporaryDirectory() as copies:
        copy = shutil.copy(folder / f"_testschannel{suffix}", copies)
        spec = importlib.util.spec_from_file_location("_testschannel", copy)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    module.windows(build, wine, fips, secur32, sets_attributes)
    return module


# --- enum tw_status, tw_state, tw_role
DONE, WANT_READ, WANT_WRITE, WANT_VERDICT, WANT_CREDENTIALS, WANT_CERTIFICATE, END = range(7)
E_TLS, E_ALERT, E_TRUNCATED, E_NEGOTIATE_EOF, E_REFUSED, E_CLOSED, E_STATE = range(-1, -8, -1)
E_OS, E_NOMEM, E_ARGUMENT, E_UNSUPPORTED, E_NOT_FOUND, E_FORMAT = -8, -11, -12, -13, -14, -16
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


_ASKED = ("use", "version", "certs", "flags", "lifespan", "protocols", "min_bits", "max_bits")


def asked_for(data: bytes) -> dict[str, int]:
    """struct tw_script_asked: what the table's AcquireCredentialsHandle was given."""
    return dict(zip(_ASKED, struct.unpack(f"={len(_ASKED)}I", data), strict=True))


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
