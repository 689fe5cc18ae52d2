"""Windows' own calls that tests need beside the package: stores, keys, handles.

The package deletes nothing from a system store and makes no key; a test that
has to prepare or to tidy up does it here, with crypt32 and ncrypt by ctypes.
Imports everywhere; only what is called needs Windows.
"""

from __future__ import annotations

import ctypes
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa

import twapi_tls as tls

CURRENT_USER = 1 << 16  # CERT_SYSTEM_STORE_CURRENT_USER
SYSTEM_STORE = 13  # CERT_STORE_PROV_SYSTEM_REGISTRY_W: the store itself, no collection
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
    crypt32.CertCreateCertificateContext.restype = ctypes.c_void_p
    crypt32.CertCreateCertificateContext.argtypes = [
        ctypes.c_uint32,
        ctypes.c_char_p,
        ctypes.c_uint32,
    ]
    crypt32.CertFreeCertificateContext.argtypes = [ctypes.c_void_p]
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


# --- keys in Windows' key storage

SOFTWARE = "Microsoft Software Key Storage Provider"
NO_MORE_ITEMS = 0x8009002A  # NTE_NO_MORE_ITEMS
MACHINE = 0x20  # NCRYPT_MACHINE_KEY_FLAG, CRYPT_MACHINE_KEYSET
DACL = 4  # DACL_SECURITY_INFORMATION
PROVIDER_INFO = 2  # CERT_KEY_PROV_INFO_PROP_ID
ADD_REPLACE = 3  # CERT_STORE_ADD_REPLACE_EXISTING
Handle = ctypes.c_size_t  # NCRYPT_HANDLE


class ProviderInfo(ctypes.Structure):
    """CRYPT_KEY_PROV_INFO."""

    _fields_ = [
        ("container", ctypes.c_wchar_p),
        ("provider", ctypes.c_wchar_p),
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("parameters", ctypes.c_uint32),
        ("parameter", ctypes.c_void_p),
        ("spec", ctypes.c_uint32),
    ]


class KeyName(ctypes.Structure):
    """NCryptKeyName."""

    _fields_ = [
        ("name", ctypes.c_wchar_p),
        ("algorithm", ctypes.c_wchar_p),
        ("legacy", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    ]


def succeed(status: int, what: str) -> None:
    if status & 0xFFFFFFFF:
        raise OSError(f"{what}: 0x{status & 0xFFFFFFFF:08x}")


@contextmanager
def storage() -> Iterator[tuple[Any, Handle]]:
    """ncrypt, and the software key storage provider."""
    ncrypt = dll("ncrypt")
    provider = Handle()
    succeed(ncrypt.NCryptOpenStorageProvider(ctypes.byref(provider), SOFTWARE, 0), "provider")
    try:
        yield ncrypt, provider
    finally:
        ncrypt.NCryptFreeObject(provider)


def key_names() -> set[str]:
    """The user's containers in the software key storage provider."""
    found: set[str] = set()
    with storage() as (ncrypt, provider):
        state = ctypes.c_void_p()
        while True:
            entry = ctypes.POINTER(KeyName)()
            status = ncrypt.NCryptEnumKeys(
                provider, None, ctypes.byref(entry), ctypes.byref(state), 0
            )
            if status & 0xFFFFFFFF == NO_MORE_ITEMS:
                break
            succeed(status, "NCryptEnumKeys")
            found.add(entry.contents.name)
            ncrypt.NCryptFreeBuffer(entry)
        if state:
            ncrypt.NCryptFreeBuffer(state)
    return found


class StoredKey:
    """A key that was made in the provider and that nothing exports.

    ``public_key()`` is what ``mint(key=...)`` wants of a key.
    """

    def __init__(self, ncrypt: Any, handle: Handle, kind: str, name: str) -> None:
        self._ncrypt, self.handle, self.kind, self.name = ncrypt, handle, kind, name

    def export(self, form: str) -> bytes:
        """NCryptExportKey; OSError where the key's policy forbids it."""
        size = ctypes.c_uint32()
        arguments = (self.handle, Handle(0), form, None)
        status = self._ncrypt.NCryptExportKey(*arguments, None, 0, ctypes.byref(size), 0)
        succeed(status, f"NCryptExportKey {form}")
        blob = ctypes.create_string_buffer(size.value)
        status = self._ncrypt.NCryptExportKey(*arguments, blob, size, ctypes.byref(size), 0)
        succeed(status, f"NCryptExportKey {form}")
        return blob.raw[: size.value]

    def public_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        if self.kind == "rsa":
            # BCRYPT_RSAKEY_BLOB, then exponent and modulus, the high byte first
            blob = self.export("RSAPUBLICBLOB")
            exponent, modulus = struct.unpack_from("<2I", blob, 8)
            numbers = blob[24 : 24 + exponent], blob[24 + exponent : 24 + exponent + modulus]
            e, n = (int.from_bytes(number, "big") for number in numbers)
            return rsa.RSAPublicNumbers(e, n).public_key()
        blob = self.export("ECCPUBLICBLOB")  # BCRYPT_ECCKEY_BLOB, then X and Y
        (size,) = struct.unpack_from("<I", blob, 4)
        x, y = blob[8 : 8 + size], blob[8 + size : 8 + 2 * size]
        curve = ec.SECP256R1()
        return ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve
        ).public_key()

    def restrict(self, sddl: str) -> None:
        """Who may use the key, as a security descriptor's string."""
        advapi32 = dll("advapi32")
        convert = advapi32.ConvertStringSecurityDescriptorToSecurityDescriptorW
        descriptor, size = ctypes.c_void_p(), ctypes.c_uint32()
        if not convert(sddl, 1, ctypes.byref(descriptor), ctypes.byref(size)):
            raise failed("security descriptor")
        try:
            succeed(
                self._ncrypt.NCryptSetProperty(
                    self.handle, "Security Descr", descriptor, size, DACL
                ),
                "Security Descr",
            )
        finally:
            local_free = dll("kernel32").LocalFree
            local_free.argtypes = [ctypes.c_void_p]
            local_free(descriptor)


@contextmanager
def stored_key(kind: str, machine: bool = False) -> Iterator[StoredKey]:
    """A fresh key of the user's (or machine's), "rsa" or "p256", deleted at the end."""
    with storage() as (ncrypt, provider):
        handle = Handle()
        name = f"twapi_tls tests {uuid.uuid4()}"
        algorithm = "RSA" if kind == "rsa" else "ECDSA_P256"
        status = ncrypt.NCryptCreatePersistedKey(
            provider, ctypes.byref(handle), algorithm, name, 0, MACHINE if machine else 0
        )
        succeed(status, "NCryptCreatePersistedKey")
        properties = [("Export Policy", 0), *([("Length", 2048)] if kind == "rsa" else [])]
        for what, value in properties:
            data = ctypes.c_uint32(value)
            succeed(ncrypt.NCryptSetProperty(handle, what, ctypes.byref(data), 4, 0), what)
        succeed(ncrypt.NCryptFinalizeKey(handle, 0), "NCryptFinalizeKey")
        try:
            yield StoredKey(ncrypt, handle, kind, name)
        finally:
            if ncrypt.NCryptDeleteKey(handle, 0):  # frees the handle where it succeeds
                ncrypt.NCryptFreeObject(handle)


@contextmanager
def in_my_store(der: bytes, container: str, machine: bool = False) -> Iterator[None]:
    """Meanwhile the user's MY holds the certificate, its key in that container
    of the user (or of the machine)."""
    with opened("MY") as (crypt32, handle):
        crypt32.CertSetCertificateContextProperty.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_void_p,
        ]
        crypt32.CertAddCertificateContextToStore.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_void_p,
        ]
        context = crypt32.CertCreateCertificateContext(X509, der, len(der))
        flags = MACHINE if machine else 0
        info = ProviderInfo(container=container, provider=SOFTWARE, flags=flags)
        try:
            if not crypt32.CertSetCertificateContextProperty(
                context, PROVIDER_INFO, 0, ctypes.byref(info)
            ):
                raise failed("CERT_KEY_PROV_INFO")
            if not crypt32.CertAddCertificateContextToStore(handle, context, ADD_REPLACE, None):
                raise failed("CertAddCertificateContextToStore")
        finally:
            crypt32.CertFreeCertificateContext(context)
    try:
        yield
    finally:
        forget("MY", der)


def is_admin() -> bool:
    return bool(dll("shell32").IsUserAnAdmin())
