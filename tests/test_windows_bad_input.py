"""What is wrong with stores, certificates and keys: each named, with the remedy.

Mostly Windows', where keys live elsewhere than their certificates; Wine shows
it as well. What other engines have of it runs there too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from mint import authority, mint
from platforms import WINDOWS
from windows_native import (
    in_my_store,
    is_admin,
    stored_key,
)

import twapi_tls as tls

windows = pytest.mark.skipif(not WINDOWS, reason="keys in stores of Windows")
MODERN = 20348  # the build from which Schannel has TLS 1.3


def acquire(certificate: tls.Certificate, role: str = "server") -> tls.TLSError:
    """What acquiring credentials for it raises."""
    config = tls.sspi_schannel_credentials(certificate)
    with pytest.raises(tls.TLSError) as caught:
        tls.sspi_acquire_credentials("tls", role, config)
    return caught.value


def in_my(der: bytes) -> tls.Certificate:
    """The certificate as MY has it."""
    with tls.cert_system_store_open("MY") as store:
        found = tls.cert_store_find_certificate(store, "existing", tls.cert_import(der))
        assert found is not None
        return found


# --- stores and searches


@pytest.mark.parametrize("location", ["user", "machine"])
def test_a_store_that_does_not_exist(location: str) -> None:
    with pytest.raises(tls.TLSError, match=r"'No such store'") as caught:
        tls.cert_system_store_open("No such store", location)
    assert caught.value.name == "CRYPT_E_NOT_FOUND"
    if WINDOWS:
        assert "certutil -store" in str(caught.value)
    with pytest.raises(ValueError, match="'user' or 'machine'"):
        tls.cert_system_store_open("MY", "elsewhere")


def test_a_thumbprint_that_matches_none() -> None:
    store = tls.cert_temporary_store(pem=mint("a").combined)
    for term in ("00" * 20, "00:" * 19 + "00", bytes(20)):
        assert tls.cert_store_find_certificate(store, "sha1_hash", term) is None
    # as it is used without a look
    with pytest.raises(TypeError, match="found nothing"):
        tls.sspi_schannel_credentials(
            tls.cert_store_find_certificate(store, "sha1_hash", "00" * 20)
        )
    with pytest.raises(TypeError, match="Certificate objects, not None"):
        tls.sspi_schannel_credentials([None])  # type: ignore[list-item]
    for term in ("", "abcd", "00" * 21, "not a hash"):
        with pytest.raises(ValueError, match="40 hexadecimal digits"):
            tls.cert_store_find_certificate(store, "sha1_hash", term)


def test_a_search_that_matches_two() -> None:
    """The next one is asked for with ``previous``; a thumbprint matches one, added twice or not."""
    one, other = mint("twin"), mint("twin")
    store = tls.cert_temporary_store(pem=one.combined + other.combined + one.pem)
    first = tls.cert_store_find_certificate(store, "subject_name", "CN=twin")
    assert first is not None and first.der() == one.der
    second = tls.cert_store_find_certificate(store, "subject_name", "CN=twin", first)
    assert second is not None and second.der() == other.der
    assert tls.cert_store_find_certificate(store, "subject_name", "CN=twin", second) is None
    thumbprint = tls.cert_thumbprint(tls.cert_import(one.der))
    found = tls.cert_store_find_certificate(store, "sha1_hash", thumbprint)
    assert tls.cert_store_find_certificate(store, "sha1_hash", thumbprint, found) is None


# --- keys


def test_a_certificate_without_a_key() -> None:
    with pytest.raises(ValueError, match="has no private key"):
        tls.sspi_schannel_credentials(tls.cert_import(mint("a").der))
    with pytest.raises(ValueError, match="none with a private key"):
        tls.sspi_schannel_credentials(tls.cert_temporary_store(pem=mint("a").pem))
    with pytest.raises(ValueError, match="need a certificate with a private key"):
        tls.sspi_acquire_credentials("tls", "server")


@windows
@pytest.mark.parametrize("role", ["client", "server"])
def test_a_key_whose_container_is_gone(role: str) -> None:
    cert = mint("localhost", authority("Root"))
    with in_my_store(cert.der, "no such container of twapi_tls"):
        found = in_my(cert.der)
        assert found.has_private_key()  # as far as its certificate knows
        error = acquire(found, role)
    assert error.name == "NTE_BAD_KEYSET"
    assert "import the certificate with its key again" in str(error)


@pytest.mark.real_windows
def test_a_key_that_may_not_be_read() -> None:
    root = authority("Root")
    with stored_key("p256") as key:
        cert = mint("localhost", root, key=key)  # type: ignore[arg-type]
        with in_my_store(cert.der, key.name):
            key.restrict("D:P(A;;GA;;;SY)")  # the system alone
            try:
                error = acquire(in_my(cert.der))
            finally:
                key.restrict("D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;OW)(A;;GA;;;WD)")
    assert error.name == "NTE_PERM"
    assert "Manage Private Keys" in str(error)


@pytest.mark.real_windows
def test_a_store_of_the_machine_that_is_not_ours_to_change() -> None:
    if is_admin():
        pytest.skip("this account may change the machine's stores")
    with tls.cert_system_store_open("MY", "machine") as store:  # reading is open to all
        with pytest.raises(tls.TLSError, match="run elevated") as caught:
            tls.cert_store_add_certificate(store, tls.cert_import(mint("a").der))
    assert caught.value.name == "E_ACCESSDENIED"


# --- files


def forms(password: str | None) -> dict[str, Callable[[], tls.Store]]:
    cert = mint("a")
    pfx, pem = cert.pfx("right"), cert.key_pem("right") + cert.pem
    return {
        "pfx": lambda: tls.cert_temporary_store(pfx=pfx, password=password),
        "pem": lambda: tls.cert_temporary_store(pem=pem, password=password),
    }


@pytest.mark.parametrize("form", ["pfx", "pem"])
@pytest.mark.parametrize("password", ["wrong", "", None])
def test_a_wrong_password(form: str, password: str | None) -> None:
    with pytest.raises(tls.TLSError, match="password") as caught:
        forms(password)[form]()
    assert ("needed" if password is None else "wrong") in str(caught.value)


@windows
def test_keys_of_a_pfx_serve_though_they_came_from_memory() -> None:
    """Keys that are in memory only are refused by Schannel; an import moves them."""
    cert = mint("localhost", authority("Root"), names=["localhost"])
    with tls.cert_temporary_store(pfx=cert.pfx("x"), password="x") as store:
        config = tls.sspi_schannel_credentials(store)
    tls.sspi_acquire_credentials("tls", "server", config).free()


# --- Windows itself


@windows
def test_windows_too_old_for_what_is_asked() -> None:
    """TLS 1.3 alone is refused by name below build 20348; with 1.2 it is left out."""
    assert sys.platform == "win32"
    build = sys.getwindowsversion().build
    only = tls.sspi_schannel_credentials(protocols="tls1.3")
    if build >= MODERN:
        tls.sspi_acquire_credentials("tls", "client", only).free()
    else:
        with pytest.raises(tls.TLSError, match=f"Windows 11 or Server 2022.*{build}") as caught:
            tls.sspi_acquire_credentials("tls", "client", only)
        assert caught.value.name == "SEC_E_UNSUPPORTED_FUNCTION"
    both = tls.sspi_schannel_credentials(protocols=["tls1.2", "tls1.3"])
    tls.sspi_acquire_credentials("tls", "client", both).free()


@windows
@pytest.mark.parametrize(
    "options, says",
    [
        ({"ciphers": "ECDHE+AESGCM"}, "no cipher list"),
        ({"cipherstrength": 256, "protocols": "tls1.3"}, "leave TLS 1.3 out"),
    ],
)
def test_what_schannel_does_not_offer(options: dict[str, str], says: str) -> None:
    with pytest.raises(tls.TLSError, match=says) as caught:
        tls.sspi_acquire_credentials(
            "tls",
            "client",
            tls.sspi_schannel_credentials(**options),  # type: ignore[arg-type]
        )
    assert caught.value.name == "SEC_E_UNSUPPORTED_FUNCTION"
