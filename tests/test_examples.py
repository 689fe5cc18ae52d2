"""Every program in examples/ runs, as its head says that it is called."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import peers
import pytest
from certs import Pki
from platforms import SLOWER
from starttls_servers import SERVERS, dialogue_server

pytestmark = pytest.mark.timeout(60)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LIMIT = 30.0 * SLOWER


def command(name: str, *arguments: object) -> list[str]:
    (program,) = EXAMPLES.glob(f"??_{name}.py")
    return [sys.executable, "-W", "error", str(program), *map(str, arguments)]


def run(name: str, *arguments: object, data: bytes = b"") -> str:
    done = subprocess.run(
        command(name, *arguments), input=data, capture_output=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return done.stdout.decode().replace(os.linesep, "\n")


def test_every_example_is_run_here_and_listed() -> None:
    names = [path.stem for path in sorted(EXAMPLES.glob("*.py"))]
    assert [name[:2] for name in names] == [f"{n:02}" for n in range(1, len(names) + 1)]
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in names:
        assert f"test_{name[3:]}" in globals()
        assert f"| `{name}.py` |" in listed


def test_starttls(pki: Pki) -> None:
    def mail_server(connection: ssl.SSLSocket) -> None:
        assert connection.recv(1000) == b"EHLO client.example\r\n"
        connection.sendall(b"250-mx.example\r\n250 AUTH PLAIN\r\n")
        peers.echo(connection)

    with dialogue_server(pki.server, SERVERS["smtp"], mail_server) as (port, errors):
        printed = run("starttls", "localhost", port, pki.root)
    assert printed == "250-mx.example\r\n250 AUTH PLAIN\r\n"
    assert errors == []


def test_background_error(pki: Pki) -> None:
    phase, loop = run("background_error", pki.server.combined).splitlines()
    assert phase.startswith("phase handshake: ") and "HTTP" in phase
    assert loop == "event loop: RuntimeError('a handshake failed, see the log')"


def test_half_close(pki: Pki) -> None:
    with peers.ssl_server(pki.server) as server:
        printed = run("half_close", "localhost", server.port, pki.root, data=b"all of it\n")
    assert printed == "all of it\nCLOSED\n"


def test_handshake(pki: Pki) -> None:
    with peers.ssl_server(pki.server) as server:
        printed = run("handshake", "localhost", server.port, pki.root)
    assert printed == "CLIENTINIT\nTrue\nOPEN\n"


def test_client_verifier(pki: Pki) -> None:
    with peers.ssl_server(pki.server) as server:
        printed = run("client_verifier", "localhost", server.port, pki.root)
    assert printed == "localhost: ok\nhello\n"


def test_listener_requestclientcert(pki: Pki) -> None:
    arguments = command("listener_requestclientcert", 0, pki.server.combined, pki.root)
    listener = peers.Peer(arguments)
    try:
        port = int(listener.expect(rb"(\d+)\n")[1])
        context = peers.ssl_client_context(pki.root, identity=pki.client)
        with socket.create_connection((peers.HOST, port), LIMIT) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                assert secure.recv(100) == b"hello A client\n"
        listener.process.send_signal(signal.SIGINT)
        assert listener.wait() == 0
    finally:
        listener.stop()


@contextmanager
def proxy() -> Iterator[tuple[int, list[bytes]]]:
    """An HTTP proxy for one CONNECT."""
    requests: list[bytes] = []
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    with socket.create_server((peers.HOST, 0)) as listener:
        listener.settimeout(LIMIT)

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += client.recv(1)
                requests.append(head)
                host, port = head.split()[1].decode().split(":")
                with socket.create_connection((host, int(port)), LIMIT) as target:
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    back = threading.Thread(target=pump, args=(target, client))
                    back.start()
                    pump(client, target)
                    back.join(LIMIT)

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[0].start()
        yield listener.getsockname()[1], requests
        threads[0].join(LIMIT)


def test_socket_command(pki: Pki) -> None:
    with peers.ssl_server(pki.server) as server, proxy() as (port, requests):
        printed = run("socket_command", peers.HOST, port, "localhost", server.port, pki.root)
    assert printed == "OPEN\n"
    assert requests[0].startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % server.port)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_without_arguments_it_says_how_it_is_called(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 1
    assert f"    python {path.name} ".encode() in done.stderr
    assert b"Traceback" not in done.stderr
