"""Channels on Windows' engine, under Wine, against everything that runs here.

Each row: a Windows Python at one end, at the other our own engine on Linux,
openssl, GnuTLS or Python's ssl; both roles, TLS 1.2 and 1.3; bytes in both
directions at once, with equal hashes at both ends. What was sent and how long
it took goes to pytest's report, from which windows_table.py makes a table.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import peers
import pytest
from certs import Pki

import twapi_tls

pytestmark = [pytest.mark.timeout(240), pytest.mark.keeps_fds]

ROOT = Path(__file__).resolve().parents[2]
LANE = ROOT / "scripts" / "windows-lane"
PYTHON = os.environ["TWAPI_TLS_LANE_PYTHON"]
SIZE = int(os.environ.get("TWAPI_TLS_LANE_SIZE", str(1 << 20)))
WAIT = 180.0
VERSIONS = ("1.2", "1.3")


class Windows:
    """The Windows end: a process that prints lines of JSON."""

    def __init__(self, version: str, **config: Any) -> None:
        environment = dict(os.environ)
        if version == "1.3":
            environment |= {"LANE_TLS13": "1", "LANE_WINDOWS": "win11"}
        for name, value in list(config.items()):
            if isinstance(value, Path):
                config[name] = "Z:" + str(value)
        self.process = subprocess.Popen(
            [LANE, "python", PYTHON, "Z:" + str(ROOT / "tests/windows/peer.py"),
             json.dumps({"size": SIZE, **config})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )  # fmt: skip
        self._late = False
        self._timer = threading.Timer(WAIT, self._stop_late)
        self._timer.start()

    def _stop_late(self) -> None:
        self._late = True
        self.process.kill()

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            assert self.process.stderr is not None
            why = f"was stopped after {WAIT} s" if self._late else "said nothing more"
            pytest.fail(f"the Windows end {why}: {self.process.stderr.read()}")
        facts: dict[str, Any] = json.loads(text)
        assert "error" not in facts, facts["trace"]
        return facts

    def stop(self) -> None:
        self._timer.cancel()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def windows(version: str, **config: Any) -> Iterator[Windows]:
    end = Windows(version, **config)
    try:
        yield end
    finally:
        end.stop()


def pump(
    send: Callable[[bytes], object], receive: Callable[[int], bytes], turns: bool = False
) -> dict[str, str]:
    """SIZE random bytes each way, at once or first out, then in: the hashes.

    In turns where the peer cannot do both: an SSLSocket is not to be used by
    two threads at once.
    """
    data = os.urandom(min(SIZE, 1 << 20))
    sent, received = hashlib.sha256(), hashlib.sha256()

    def work() -> None:
        left = SIZE
        while left:
            part = data[:left]
            send(part)
            sent.update(part)
            left -= len(part)

    sender = threading.Thread(target=work, daemon=True)
    sender.start()
    if turns:
        sender.join(WAIT)
    left = SIZE
    while left:
        part = receive(min(left, 1 << 20))
        assert part, f"the connection ended with {left} bytes missing"
        received.update(part)
        left -= len(part)
    sender.join(WAIT)
    return {"sent": sent.hexdigest(), "received": received.hexdigest()}


@pytest.fixture(autouse=True)
def _row(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """What windows_table.py has to know of a test of the table."""
    owner, case = request.cls, getattr(request.node, "callspec", None)
    if owner is None or case is None:
        return
    record_property("role", owner.__name__.removeprefix("Test").lower())
    record_property("peer", request.node.originalname.removeprefix("test_"))
    record_property("version", case.params["version"])
    record_property("certificate", "yes" if case.params.get("with_certificate") else "no")
    record_property("bytes", SIZE)


def agree(facts: dict[str, Any], other: dict[str, str], version: str) -> None:
    assert facts["received"] == other["sent"]
    assert facts["sent"] == other["received"]
    assert facts["protocol"] == f"TLS {version}"


# --- peers that speak through pipes


class Pipes:
    """A program that sends its input and prints what it receives."""

    def __init__(self, command: list[str], stack: ExitStack) -> None:
        self._errors = stack.enter_context(tempfile.TemporaryFile())
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.source, self.drain = self.process.stdin, self.process.stdout
        stack.callback(self._stop)

    def _stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.source, self.drain):
            with suppress(BrokenPipeError):
                stream.close()

    def _send(self, data: bytes) -> None:
        self.source.write(data)
        self.source.flush()

    def pump(self) -> dict[str, str]:
        try:
            return pump(self._send, lambda size: os.read(self.drain.fileno(), size))
        except (AssertionError, OSError) as error:
            self._errors.seek(0)
            said = self._errors.read()[-2000:].decode(errors="replace")
            pytest.fail(f"{error}; the peer said: {said}")


def gnutls(stack: ExitStack, version: str, **config: Any) -> Pipes:
    """GnuTLS' library; gnutls_peer.py says why not its programs."""
    config = {
        name: str(value) if isinstance(value, Path) else value for name, value in config.items()
    }
    peers.require("gnutls-cli")  # which says that the library is there
    program = str(Path(__file__).with_name("gnutls_peer.py"))
    return Pipes([sys.executable, program, json.dumps({"version": version, **config})], stack)


def wait_for_port(port: int, peer: Pipes) -> None:
    """Listening, seen without a connection: the peer serves only one."""
    end = time.monotonic() + 15
    wanted = f":{port:04X} "
    while True:
        table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        if any(wanted in line and " 0A " in line for line in table.splitlines()):
            return
        assert peer.process.poll() is None and time.monotonic() < end, "the peer does not listen"
        threading.Event().wait(0.02)


# --- the Windows end as a client


@pytest.mark.parametrize("with_certificate", [False, True], ids=["anonymous", "certificate"])
@pytest.mark.parametrize("version", VERSIONS)
class TestClient:
    @pytest.fixture(autouse=True)
    def clients(self, wine_pki: Pki) -> None:
        # Wine sends no intermediates: the root signs the client's itself.
        self.certificate = wine_pki.client_rsa.combined
        self.client_ca = wine_pki.root

    def start(self, pki: Pki, version: str, port: int, with_certificate: bool, **more: Any) -> Any:
        if with_certificate:
            more["cert"] = self.certificate
        return windows(version, role="client", port=port, root=pki.root, **more)

    def test_our_engine(self, pki: Pki, version: str, with_certificate: bool) -> None:
        store = twapi_tls.cert_temporary_store(pem=pki.server.combined.read_bytes())
        credentials = twapi_tls.sspi_acquire_credentials(
            role="server",
            credentials=twapi_tls.sspi_schannel_credentials(
                certificates=store, protocols=[f"tls{version}"]
            ),
        )
        seen: list[str] = []

        def verifier(channel: Any, context: Any) -> bool:
            seen.append(twapi_tls.cert_subject_name(twapi_tls.sspi_remote_cert(context)))
            return True

        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(30)
            with self.start(pki, version, listener.getsockname()[1], with_certificate) as end:
                sock, _ = listener.accept()
                sock.settimeout(WAIT)
                channel = twapi_tls.starttls(
                    sock,
                    server=True,
                    credentials=credentials,
                    requestclientcert=with_certificate,
                    verifier=verifier if with_certificate else None,
                )
                with channel:
                    other = pump(channel.sendall, channel.recv)
                    agree(end.line(), other, version)
        assert seen == (["Another client"] if with_certificate else [])

    def test_openssl(self, pki: Pki, version: str, with_certificate: bool) -> None:
        port = peers.free_port()
        command = [
            peers.require("openssl"), "s_server", "-quiet", "-accept", f"127.0.0.1:{port}",
            "-naccept", "1", "-tls" + version.replace(".", "_"),
            "-cert", str(pki.server.leaf), "-key", str(pki.server.key),
            "-cert_chain", str(pki.server.chain),
        ]  # fmt: skip
        if with_certificate:
            command += ["-Verify", "4", "-verify_return_error", "-CAfile", str(self.client_ca)]
        with ExitStack() as stack:
            peer = Pipes(command, stack)
            wait_for_port(port, peer)
            end = stack.enter_context(self.start(pki, version, port, with_certificate))
            other = peer.pump()
            agree(end.line(), other, version)

    def test_gnutls(self, pki: Pki, version: str, with_certificate: bool) -> None:
        port = peers.free_port()
        wanted = {"ca": self.client_ca} if with_certificate else {}
        with ExitStack() as stack:
            peer = gnutls(
                stack,
                version,
                role="server",
                port=port,
                cert=pki.server.chain,
                key=pki.server.key,
                **wanted,
            )
            wait_for_port(port, peer)
            end = stack.enter_context(self.start(pki, version, port, with_certificate))
            other = peer.pump()
            agree(end.line(), other, version)

    def test_python_ssl(self, pki: Pki, version: str, with_certificate: bool) -> None:
        hashes: list[dict[str, str]] = []

        def handler(connection: ssl.SSLSocket) -> None:
            connection.settimeout(WAIT)
            hashes.append(pump(connection.sendall, connection.recv, turns=True))
            connection.recv(1)  # the Windows end's close_notify

        with (
            peers.ssl_server(
                pki.server,
                handler,
                version=version,
                client_ca=self.client_ca if with_certificate else None,
                require_client=with_certificate,
            ) as server,
            self.start(pki, version, server.port, with_certificate, way="turns") as end,
        ):
            facts = end.line()
            server.wait_for(lambda s: hashes or s.errors)
            assert not server.errors
            agree(facts, hashes[0], version)
            assert (server.accepted[0].peer_certificate is not None) == with_certificate


# --- the Windows end as a server


@pytest.mark.parametrize("version", VERSIONS)
class TestServer:
    def start(self, wine_pki: Pki, version: str, **more: Any) -> Any:
        return windows(version, role="server", cert=wine_pki.server.combined, **more)

    def test_our_engine(self, wine_pki: Pki, version: str) -> None:
        root = twapi_tls.cert_temporary_store(pem=wine_pki.root_pem)
        credentials = twapi_tls.sspi_acquire_credentials(
            role="client",
            credentials=twapi_tls.sspi_schannel_credentials(
                rootstore=root, protocols=[f"tls{version}"]
            ),
        )
        with self.start(wine_pki, version) as end:
            port = end.line()["port"]
            channel = twapi_tls.tls_socket(
                "127.0.0.1", port, peersubject="localhost", credentials=credentials, timeout=WAIT
            )
            with channel:
                other = pump(channel.sendall, channel.recv)
                agree(end.line(), other, version)

    def test_openssl(self, wine_pki: Pki, version: str) -> None:
        with ExitStack() as stack:
            end = stack.enter_context(self.start(wine_pki, version))
            port = end.line()["port"]
            command = [
                peers.require("openssl"), "s_client", "-quiet", "-connect", f"127.0.0.1:{port}",
                "-tls" + version.replace(".", "_"), "-CAfile", str(wine_pki.root),
                "-verify_return_error", "-verify_hostname", "localhost",
            ]  # fmt: skip
            other = Pipes(command, stack).pump()
            agree(end.line(), other, version)

    def test_gnutls(self, wine_pki: Pki, version: str) -> None:
        with ExitStack() as stack:
            end = stack.enter_context(self.start(wine_pki, version))
            port = end.line()["port"]
            peer = gnutls(stack, version, role="client", port=port, ca=wine_pki.root)
            other = peer.pump()
            agree(end.line(), other, version)

    def test_python_ssl(self, wine_pki: Pki, version: str) -> None:
        context = peers.ssl_client_context(wine_pki.root, version=version)
        with self.start(wine_pki, version, way="turns") as end:
            port = end.line()["port"]
            with (
                socket.create_connection(("127.0.0.1", port), WAIT) as sock,
                context.wrap_socket(sock, server_hostname="localhost") as connection,
            ):
                other = pump(connection.sendall, connection.recv, turns=True)
                agree(end.line(), other, version)


def test_the_lane_is_what_it_says(record_property: Callable[[str, object], None]) -> None:
    """The engine at the other end is secur32, not a copy of ours."""
    answer = subprocess.run(
        [LANE, "python", PYTHON, "-c", "import twapi_tls; print(twapi_tls.engine)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    record_property("engine", answer.stdout.strip())
    assert answer.stdout.startswith("schannel (Schannel (Wine 10.")
    assert shutil.which("wine") is None or "Wine 10" in answer.stdout


def test_a_thousand_connections_leave_nothing(wine_pki: Pki) -> None:
    """In one process: handles and memory are where they were."""
    config = {
        "rounds": 1500,
        "cert": "Z:" + str(wine_pki.server.combined),
        "root": "Z:" + str(wine_pki.root),
    }
    answer = subprocess.run(
        [LANE, "python", PYTHON, "Z:" + str(ROOT / "tests/windows/soak.py"), json.dumps(config)],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=True,
    )
    facts = json.loads(answer.stdout.splitlines()[-1])
    before, after = facts["before"], facts["after"]
    assert after["handles"] <= before["handles"] + 8
    # 1,000 connections between the two; a context alone has 20 KB.
    assert after["resident"] < before["resident"] + 1000 * 2048


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """windows/loop.c, built: the same in plain C on secur32."""
    program = tmp_path_factory.mktemp("loop") / "loop.exe"
    subprocess.run(
        ["x86_64-w64-mingw32-gcc", "-O2", "-Wall", "-DUNICODE", "-D_UNICODE",
         "-DWIN32_LEAN_AND_MEAN", ROOT / "tests/windows/loop.c", "-o", program,
         "-lsecur32", "-lcrypt32", "-lpsapi", "-lws2_32"],
        check=True,
        timeout=120,
    )  # fmt: skip
    return program


def test_a_loop_in_c_shows_what_secur32_keeps(loop: Path, wine_pki: Pki) -> None:
    """What the soak above is held against: contexts alone leave nothing."""
    answer = subprocess.run(
        [LANE, "wine", loop, "Z:" + str(wine_pki.server.pfx), "correct horse", "soak", "1000"],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=True,
    )
    before, after = (int(word) for word in answer.stdout.split())
    assert after < before + 900 * 1024
