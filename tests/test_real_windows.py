"""What only a real Windows shows, and no other test asks for.

Keys that never leave Windows' key storage, keys that an import moves there,
its windows, its console (Wine has one, too). Whatever else Wine lacks (tests/platforms.py) is in
the whole suite, and chosen by ``-m real_windows`` as well.

Where another engine can do the same (``elsewhere=True``), the same body runs
there, so that the test itself is known to be right.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certs import Pki
from channels import tls_pair
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from memory import client, connect
from mint import CLIENT_AUTH, Minted, authority, mint
from platforms import WINDOWS
from twapi_support import client_credentials, server_credentials
from windows_native import dll, in_my_store, is_admin, key_names, stored_key

import twapi_tls as tls

real_windows = pytest.mark.real_windows
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])
KINDS = pytest.mark.parametrize("kind", ["rsa", "p256"])
USAGES = ["digital_signature", "key_encipherment"]


def talk(one: Any, other: Any) -> None:
    """Data in both directions."""
    one.sendall(b"question")
    assert other.recv(100) == b"question"
    other.sendall(b"answer")
    assert one.recv(100) == b"answer"


# --- keys that stay where they were made


@contextmanager
def kept(
    kind: str, machine: bool = False, **options: Any
) -> Iterator[tuple[Minted, tls.Certificate]]:
    """A certificate in MY whose key nothing exports, found by its thumbprint."""
    with stored_key(kind, machine) as key:
        with pytest.raises(OSError, match="NCryptExportKey"):
            key.export("PKCS8_PRIVATEKEY")
        cert = mint("localhost", authority("Root"), key=key, **options)  # type: ignore[arg-type]
        with in_my_store(cert.der, key.name, machine), tls.cert_system_store_open("MY") as store:
            thumbprint = tls.cert_thumbprint(tls.cert_import(cert.der))
            found = tls.cert_store_find_certificate(store, "sha1_hash", thumbprint)
            assert found is not None and found.has_private_key()
            yield cert, found


@real_windows
@KINDS
@VERSIONS
def test_a_server_with_a_key_that_stays(kind: str, version: str) -> None:
    usages = USAGES if kind == "rsa" else USAGES[:1]
    with kept(kind, names=["localhost"], usage=usages) as (cert, found):
        config = tls.sspi_schannel_credentials(found)
        with tls.sspi_acquire_credentials("tls", "server", config) as theirs:
            ours = client(cert.path[-1], protocols=f"tls{version}")
            with connect(ours, theirs) as connection:
                assert connection.client.facts().protocol == f"TLS {version}"
                assert connection.send(connection.client, b"x") == ("ok", b"x")
                assert connection.send(connection.server, b"y") == ("ok", b"y")
                assert tls.sspi_local_cert(connection.server).der() == cert.der


@real_windows
@KINDS
def test_a_server_with_a_key_of_the_machine(kind: str) -> None:
    if not is_admin():
        pytest.skip("this account may not make keys of the machine")
    with kept(kind, True, names=["localhost"]) as (cert, found):
        config = tls.sspi_schannel_credentials(found)
        with tls.sspi_acquire_credentials("tls", "server", config) as theirs:
            with connect(client(cert.path[-1]), theirs) as connection:
                assert connection.send(connection.client, b"x") == ("ok", b"x")


@real_windows
@KINDS
@VERSIONS
def test_a_client_with_a_key_that_stays(pki: Pki, kind: str, version: str) -> None:
    """In TLS 1.3 that is RSA-PSS for RSA (RFC 8446, 4.2.3)."""
    seen = []

    def verifier(channel: Any, context: Any) -> bool:
        seen.append(tls.sspi_remote_cert(context).der())
        return True

    with kept(kind, eku=[CLIENT_AUTH]) as (cert, found):
        config = tls.sspi_schannel_credentials(
            found, rootstore=tls.cert_temporary_store(pem=pki.root_pem), protocols=f"tls{version}"
        )
        with tls.sspi_acquire_credentials("tls", "client", config) as ours:
            options = {"requestclientcert": True, "verifier": verifier}
            with tls_pair(pki, client={"credentials": ours}, server=options) as (one, other):
                talk(one, other)
                assert tls.sspi_local_cert(one.context).der() == cert.der
        assert seen == [cert.der]


# --- keys that an import moves into the key storage

FORMS: dict[str, Callable[[Minted], tls.Store]] = {
    "PKCS #8": lambda cert: tls.cert_temporary_store(pem=cert.key_pem() + cert.pem),
    "traditional": lambda cert: tls.cert_temporary_store(
        pem=cert.key_pem(traditional=True) + cert.pem
    ),
    "PBES2": lambda cert: tls.cert_temporary_store(
        pem=cert.key_pem("pässwörd") + cert.pem, password="pässwörd"
    ),
    "PFX": lambda cert: tls.cert_temporary_store(pfx=cert.pfx("secret"), password="secret"),
    "PFX without password": lambda cert: tls.cert_temporary_store(pfx=cert.pfx(None)),
}


@real_windows(elsewhere=True)
@pytest.mark.parametrize("form", FORMS)
@KINDS
def test_imported_keys_serve(form: str, kind: str) -> None:
    """Under a name of their own, which goes with the last certificate."""
    key: Any = (
        rsa.generate_private_key(65537, 2048)
        if kind == "rsa"
        else ec.generate_private_key(ec.SECP256R1())
    )
    root = authority("Root")
    cert = mint("localhost", root, names=["localhost"], key=key, usage=USAGES)
    before = key_names() if WINDOWS else set()
    with FORMS[form](cert) as store:
        config = tls.sspi_schannel_credentials(store)
        theirs = tls.sspi_acquire_credentials("tls", "server", config)
    if WINDOWS:
        assert len(key_names() - before) == 1
    for version in ("tls1.2", "tls1.3"):
        with connect(client(root, protocols=version), theirs) as connection:
            assert connection.send(connection.server, b"y") == ("ok", b"y")
    theirs.free()
    del config, theirs, connection, store
    if WINDOWS:
        assert key_names() == before


@real_windows
def test_many_imports_at_once_do_not_meet() -> None:
    cert = mint("localhost", authority("Root"))
    before = key_names()
    stores = [FORMS["PFX"](cert) for _ in range(20)]
    assert len(key_names() - before) == 20
    del stores
    assert key_names() == before


# --- what Schannel is asked for


@real_windows(elsewhere=True)
def test_the_newest_protocol_unless_told(pki: Pki) -> None:
    newest = "TLS 1.3"
    if sys.platform == "win32" and sys.getwindowsversion().build < 20348:
        newest = "TLS 1.2"
    with tls_pair(pki) as (one, other):
        assert one.facts().protocol == other.facts().protocol == newest


@real_windows(elsewhere=True)
def test_a_cipher_strength_holds(pki: Pki) -> None:
    """With Schannel that takes the older structure, and so TLS 1.2."""
    ours = client_credentials(pki, cipherstrength=256, protocols="tls1.2")
    with tls_pair(pki, client={"credentials": ours}) as (one, _):
        assert one.facts().bits == 256
    with pytest.raises(tls.TLSError):
        theirs = server_credentials(pki.server, cipherstrength=(0, 128), protocols="tls1.2")
        with tls_pair(pki, client={"credentials": ours}, server={"credentials": theirs}):
            pass


@real_windows(elsewhere=True)
def test_the_machines_trust(pki: Pki) -> None:
    verdict = tls.cert_tls_verify(
        tls.cert_import(pki.server.leaf_der),
        server="localhost",
        hstore=tls.cert_temporary_store(pem=pki.intermediate.read_bytes()),
        trustedroots=[tls.cert_import(pki.root_pem)],
        revocationcheck="none",
        engine="machine",
    )
    assert verdict == "ok"


@real_windows
@VERSIONS
def test_a_parent_window(pki: Pki, version: str) -> None:
    """Schannel takes one; this key asks nobody, so that none is seen."""
    user32 = dll("user32")
    user32.GetDesktopWindow.restype = ctypes.c_void_p
    window = int(user32.GetDesktopWindow() or 0)
    assert window
    ours = client_credentials(pki, pki.client, parent_window=window, protocols=f"tls{version}")
    options = {"requestclientcert": True, "verifier": lambda channel, context: True}
    with tls_pair(pki, client={"credentials": ours}, server=options) as (one, other):
        talk(one, other)


# --- the process


CHILD = """
    import ctypes, socket, sys, threading, time
    import twapi_tls as tls

    kernel32 = ctypes.WinDLL("kernel32")
    kernel32.SetConsoleCtrlHandler(None, False)  # control-C is not ignored
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    threading.Timer(1, lambda: kernel32.GenerateConsoleCtrlEvent(0, 0)).start()
    began = time.monotonic()
    try:
        if sys.argv[1] == "handshake":
            tls.tls_socket(*address, timeout=30)
        else:
            tls.TcpChannel(socket.create_connection(address)).recv(1)
    except KeyboardInterrupt:
        print("interrupted", time.monotonic() - began < 10)
"""


@pytest.mark.skipif(not WINDOWS, reason="a console of Windows")
@pytest.mark.parametrize("call", ["handshake", "recv"])
def test_control_c_at_a_console_ends_a_wait(call: str) -> None:
    assert sys.platform == "win32"
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), call],
        capture_output=True,
        text=True,
        timeout=60,
        creationflags=subprocess.CREATE_NEW_CONSOLE,
    )
    assert child.stdout.split() == ["interrupted", "True"], child.stderr


@real_windows
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_connections_leave_no_handle(pki: Pki) -> None:
    config = {"rounds": 1000, "cert": str(pki.server.combined), "root": str(pki.root)}
    soak = Path(__file__).with_name("windows") / "soak.py"
    child = subprocess.run(
        [sys.executable, soak, json.dumps(config)], capture_output=True, text=True, timeout=580
    )
    facts = json.loads(child.stdout.splitlines()[-1])
    before, after = facts["before"], facts["after"]
    assert after["open"] <= before["open"] + 8
    assert after["resident"] < before["resident"] + 1000 * 2048
