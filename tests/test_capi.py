"""The C API: an extension built as a stranger would, with the header alone."""

from __future__ import annotations

import importlib.util
import shutil
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from certs import Pki

import twapi_tls

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE / "capi_example"
V1_2, V1_3 = 0x2, 0x4
E_TLS, E_REFUSED, E_ARGUMENT, E_FORMAT = -1, -5, -12, -16

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the example's threads are POSIX threads"
)


@pytest.fixture(scope="module")
def tls_echo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The example, built in a folder of its own."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    work = tmp_path_factory.mktemp("capi")
    for source in EXAMPLE.iterdir():
        if source.is_file():
            shutil.copy(source, work)
    # From another folder the package is found as it is installed; a checkout
    # that is not installed is named.
    root = str(Path(twapi_tls.__file__).resolve().parent.parent)
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({root!r}); import runpy;"
         "sys.argv = ['setup.py', '-q', 'build_ext', '--inplace'];"
         "runpy.run_path('setup.py', run_name='__main__')"],
        cwd=work, check=True, timeout=120,
    )  # fmt: skip
    (built,) = [path for path in work.glob("tls_echo*") if path.suffix in (".so", ".pyd")]
    spec = importlib.util.spec_from_file_location("tls_echo", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def roots(pki: Pki) -> bytes:
    return pki.root_pem


def test_the_table_is_this_header_s(tls_echo: Any) -> None:
    about = tls_echo.about()
    assert about["version"] == 1
    assert about["engine"] == twapi_tls.engine.name
    assert about["engine_version"] == twapi_tls.engine.version


def test_echo_server_in_c_threads(tls_echo: Any, pki: Pki, roots: bytes) -> None:
    port = tls_echo.start(pki.server.combined.read_bytes())
    data = bytes(range(256)) * 4000
    answers: list[Any] = []

    def run(i: int) -> None:
        answers.append(tls_echo.echo(port, "localhost", roots, data[i:60000]))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    connections, count, failures = tls_echo.stop()
    assert sorted(len(answer[0]) for answer in answers) == sorted(60000 - i for i in range(8))
    assert all(data.find(answer[0]) == 60000 - len(answer[0]) for answer in answers)
    assert answers[0][1]["protocol"] == 4
    assert answers[0][1]["sni"] == "localhost"
    assert (connections, count, failures) == (8, sum(60000 - i for i in range(8)), 0)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=str)
def test_the_standard_library_as_client(tls_echo: Any, pki: Pki, version: Any) -> None:
    import socket

    port = tls_echo.start(pki.server.combined.read_bytes())
    context = ssl.create_default_context(cadata=pki.root_pem.decode())
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        sock.unwrap().close()
    assert tls_echo.stop() == (1, 5, 0)


@pytest.mark.parametrize(
    ("name", "trust", "code", "alert"),
    [
        ("wrong.example", True, "SEC_E_WRONG_PRINCIPAL", "bad_certificate"),
        ("localhost", False, "SEC_E_UNTRUSTED_ROOT", "unknown_ca"),
    ],
)
def test_a_client_verifies_by_itself(
    tls_echo: Any, pki: Pki, name: str, trust: bool, code: str, alert: str
) -> None:
    port = tls_echo.start(pki.server.combined.read_bytes())
    try:
        with pytest.raises(tls_echo.Failure) as caught:
            roots = pki.root_pem if trust else pki.other_root.read_bytes()
            tls_echo.echo(port, name, roots, b"secret")
    finally:
        connections, count, failures = tls_echo.stop()
    assert caught.value.args[:3] == (E_REFUSED, code, alert)
    assert (connections, count, failures) == (0, 0, 1)


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("piece", [1, 7, 1000, 70000])
@pytest.mark.parametrize("protocols", [V1_2, V1_3], ids=["1.2", "1.3"])
def test_contexts_in_buffers_of_the_caller(
    tls_echo: Any, pki: Pki, roots: bytes, piece: int, manual: bool, protocols: int
) -> None:
    data = bytes(range(256)) * (20 if piece == 1 else 300)
    pem = pki.server.combined.read_bytes()
    assert tls_echo.pump(pem, roots, "localhost", data, piece, manual, protocols) == data


@pytest.mark.parametrize("manual", [False, True])
def test_refusal_without_sockets(tls_echo: Any, pki: Pki, roots: bytes, manual: bool) -> None:
    pem = pki.server.combined.read_bytes()
    with pytest.raises(tls_echo.Failure) as caught:
        tls_echo.pump(pem, roots, "wrong.example", b"x", 4096, manual)
    assert caught.value.args[1] == "SEC_E_WRONG_PRINCIPAL"


def test_bad_arguments_say_what_is_wrong(tls_echo: Any, pki: Pki) -> None:
    said = tls_echo.refused(pki.server.combined.read_bytes())
    assert [status for status, _ in said[:3]] == [E_ARGUMENT] * 3
    assert "size" in said[0][1]
    assert "role" in said[1][1]
    assert "certificate" in said[2][1]
    assert said[3][0] in (E_ARGUMENT, E_FORMAT)
    assert "target" in said[4][1]
    assert "MANUAL" in said[5][1]


def test_a_bad_key_file_is_a_failure(tls_echo: Any, pki: Pki) -> None:
    with pytest.raises(tls_echo.Failure) as caught:
        tls_echo.start(pki.server.leaf.read_bytes())
    assert caught.value.args[0] == E_ARGUMENT
    assert "key" in caught.value.args[3]
