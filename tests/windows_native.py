"""Windows' own calls that tests need beside the package: stores, keys, handles.

The package deletes nothing from a system store and makes no key; a test that
has to prepare or to tidy up does it here, with crypt32 and ncrypt by ctypes.
Imports everywhere; only what is called needs Windows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import twapi_tls as tls

CURRENT_USER = 1 << 16  # CERT_SYSTEM_STORE_CURRENT_USER
SYSTEM_STORE = 10  # CERT_STORE_PROV_SYSTEM_W
MAXIMUM_ALLOWED = 0x1000
X509 = 1
FIND_EXISTING = 0xD0000


def dll(name: str) -> Any:
    """A system DLL, with GetLastError kept."""
    return ctypes.WinDLL(name, use_last_error=True)  # type: ignore[attr-defined]


def failed(what: str) -> OSError:
    code = ctypes.get_last_error()  # type: ignore[attr-defined]
    return OSError(f"{what}: 0x{code & 0xFFFFFFFF:08x}")


@contextmanager
def opened(store: str) -> Iterator[tuple[Any, int]]:
    """crypt32, and the user's system store of that name."""
    crypt32 = dll("crypt32")
    crypt32.CertOpenStore.restype = ctypes.c_void_p
    crypt32.CertOpenStore.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_wchar_p,
    ]
    crypt32.CertCloseStore.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    handle = crypt32.CertOpenStore(SYSTEM_STORE, 0, None, CURRENT_USER | MAXIMUM_ALLOWED, store)
    if not handle:
        raise failed(f"CertOpenStore {store}")
    try:
        yield crypt32, handle
    finally:
        crypt32.CertCloseStore(handle, 0)


def forget(store: str, der: bytes) -> bool:
    """Deletes a certificate from the user's store; False if it is not there."""
    with opened(store) as (crypt32, handle):
        crypt32.CertCreateCertificateContext.restype = ctypes.c_void_p
        crypt32.CertCreateCertificateContext.argtypes = [
            ctypes.c_uint32,
            ctypes.c_char_p,
            ctypes.c_uint32,
        ]
        crypt32.CertFindCertificateInStore.restype = ctypes.c_void_p
        crypt32.CertFindCertificateInStore.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        crypt32.CertDeleteCertificateFromStore.argtypes = [ctypes.c_void_p]
        crypt32.CertFreeCertificateContext.argtypes = [ctypes.c_void_p]
        same = crypt32.CertCreateCertificateContext(X509, der, len(der))
        found = crypt32.CertFindCertificateInStore(handle, X509, 0, FIND_EXISTING, same, None)
        crypt32.CertFreeCertificateContext(same)
        if found and not crypt32.CertDeleteCertificateFromStore(found):
            raise failed(f"CertDeleteCertificateFromStore {store}")
        return bool(found)


def contents(store: str) -> set[bytes]:
    """The certificates of the user's store, in DER."""
    with tls.cert_system_store_open(store) as held:
        return {cert.der() for cert in held}


@contextmanager
def unchanged(store: str) -> Iterator[None]:
    """What is added to the user's store meanwhile is taken out again."""
    before = contents(store)
    try:
        yield
    finally:
        for der in contents(store) - before:
            forget(store, der)
