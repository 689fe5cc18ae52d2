"""The command line as a user runs it: ``python -m twapi_tls ...``, a process each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import peers
import pytest
from certs import PFX_PASSWORD, Pki
from platforms import SLOWER
from starttls_servers import REFUSALS, SERVERS, dialogue_server, hanging_up

import twapi_tls as tls

pytestmark = pytest.mark.timeout(60)

LIMIT = 30.0 * SLOWER
COMMAND = [sys.executable, "-m", "twapi_tls"]


def run(*arguments: object, data: bytes = b"", **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=data,
        capture_output=True,
        timeout=LIMIT,
        check=False,
        **options,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def refused(*arguments: object, **options: Any) -> str:
    """A user's mistake: exit status 2, one line on stderr, which is returned."""
    done = run(*arguments, **options)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr.removeprefix("error: ").strip()


# --- in general


def test_version() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"twapi_tls {tls.__version__} on {tls.engine.name} (")


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in ("connect", "inspect", "serve", "certs", "demo", "bench"):
        assert f"    {name} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["connect", "localhost"], "the following arguments are required: PORT"),
        (["connect", "localhost", "https"], "'https' is not a port number"),
        (["connect", "localhost", "70000"], "70000 is not between 0 and 65535"),
        (["connect", "https://localhost/", "443"], "is no host name"),
        (["connect", "localhost", "1", "--starttls", "nntp"], "invalid choice: 'nntp'"),
        (["connect", "localhost", "1", "--timeout", "-1"], "must be more than 0"),
        (["connect", "localhost", "1", "--frob"], "unrecognized arguments: --frob"),
        (["serve", "0"], "the following arguments are required: --cert"),
        (["demo", "--megabytes", "many"], "'many' is not a whole number of megabytes"),
        (["demo", "--megabytes", "0"], "'0' is not a whole number of megabytes"),
    ],
)
def test_usage_errors(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: " in done.stderr
    assert said in done.stderr.splitlines()[-1]


def test_nobody_listens() -> None:
    port = peers.free_port()
    assert refused("connect", peers.HOST, port) == (
        f"{peers.HOST}, port {port}: Connection refused"
    )


def test_no_such_host() -> None:
    assert refused("inspect", "no-such-host.invalid", 443).startswith(
        "no-such-host.invalid: no such host"
    )


def test_a_silent_server() -> None:
    with socket.create_server((peers.HOST, 0)) as listener:
        port = listener.getsockname()[1]
        for more in ([], ["--starttls", "smtp"]):
            said = refused("connect", peers.HOST, port, "--timeout", 0.3, *more)
            assert said == f"{peers.HOST}, port {port}: no answer within 0.3 s"


@pytest.mark.parametrize("option", ["--cert", "--cafile"])
def test_a_file_that_is_not_there(option: str) -> None:
    said = refused("connect", "localhost", 1, option, "/no/such.pem")
    assert said == "/no/such.pem: No such file or directory"


# --- connect


def test_connect_piped(pki: Pki) -> None:
    data = os.urandom(1_000_000)
    with peers.ssl_server(pki.server) as server:
        done = subprocess.run(
            [*COMMAND, "connect", "localhost", str(server.port), "--cafile", str(pki.root)],
            input=data,
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    # No bar, no colour: nobody is watching.
    assert re.fullmatch(rb"Connected: TLS 1\.3, TLS_\w+\.\n", done.stderr)


def test_connect_as_a_person_does(pki: Pki) -> None:
    with peers.ssl_server(pki.server) as server:
        with at_terminal("connect", "localhost", server.port, "--cafile", pki.root) as terminal:
            terminal.expect(r"Connected: TLS 1\.3, TLS_\w+\. End with Ctrl-D\.")
            terminal.type(b"hello\n")
            terminal.expect(r"hello\r\n(.*\r\n)?hello\r\n")  # typed, and come back
            terminal.type(b"\x04")
            assert terminal.wait() == 0


def test_the_peer_ends_it(pki: Pki) -> None:
    def say_goodbye(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"bye\n")
        with suppress(OSError):
            connection.unwrap()

    with peers.ssl_server(pki.server, say_goodbye) as server:
        with at_terminal("connect", "localhost", server.port, "--cafile", pki.root) as terminal:
            terminal.expect(r"bye\r\n")
            terminal.expect(r"The peer closed the connection\.")
            assert terminal.wait() == 0


def test_ctrl_c(pki: Pki) -> None:
    with peers.ssl_server(pki.server) as server:
        with at_terminal("connect", "localhost", server.port, "--cafile", pki.root) as terminal:
            terminal.expect(r"End with Ctrl-D")
            terminal.type(b"\x03")
            assert terminal.wait() == 130
            assert "Traceback" not in terminal.text


def test_connect_shows_progress_to_a_person(pki: Pki, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(3_000_000))
    target = tmp_path / "back"
    with peers.ssl_server(pki.server) as server:
        with open(source, "rb") as stdin, open(target, "wb") as stdout:
            with at_terminal(
                "connect",
                "localhost",
                server.port,
                "--cafile",
                pki.root,
                stdin=stdin,
                stdout=stdout,
            ) as terminal:
                assert terminal.wait() == 0
        assert target.read_bytes() == source.read_bytes()
    assert re.search(r"sent.*3\.0/3\.0\s+MB", terminal.text)
    assert re.search(r"received.*3\.0", terminal.text)


def test_crlf(pki: Pki) -> None:
    with peers.ssl_server(pki.server) as server:
        done = run(
            "connect",
            "localhost",
            server.port,
            "--cafile",
            pki.root,
            "--crlf",
            data=b"EHLO\nQUIT\n",
        )
    assert done.stdout == "EHLO\r\nQUIT\r\n"


def test_connect_refuses_and_says_how_to_go_on(pki: Pki) -> None:
    with peers.ssl_server(pki.untrusted) as server:
        said = refused("connect", "localhost", server.port, "--cafile", pki.root)
        assert "SEC_E_UNTRUSTED_ROOT" in said
        assert "--cafile" in said and "--insecure" in said
        done = run("connect", "localhost", server.port, "--insecure", data=b"x")
        assert (done.returncode, done.stdout) == (0, "x")
        assert "NOT VERIFIED" in done.stderr


def test_connect_by_another_name(pki: Pki) -> None:
    with peers.ssl_server(pki.wrong_name) as server:
        where = ("connect", peers.HOST, server.port, "--cafile", pki.root)
        assert "SEC_E_WRONG_PRINCIPAL" in refused(*where)
        assert run(*where, "--name", "other.example", data=b"x").stdout == "x"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_connect_with_a_version_and_alpn(pki: Pki, version: str) -> None:
    with peers.ssl_server(pki.server, alpn=["http/1.1"]) as server:
        done = run(
            *("connect", "localhost", server.port, "--cafile", pki.root),
            *("--tls", f"tls{version}", "--alpn", "h2,http/1.1"),
            data=b"x",
        )
        assert f"TLS {version}" in done.stderr
        assert server.accepted[0].alpn == "http/1.1"


def test_connect_with_a_client_certificate(pki: Pki, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(PFX_PASSWORD + "\n", encoding="utf-8")
    ways = [
        ["--cert", pki.client.combined],
        ["--cert", pki.client.chain, "--key", pki.client.key],
        ["--cert", pki.client.pfx, "--password", PFX_PASSWORD],
        ["--cert", pki.client.pfx, "--password-file", secret],
        ["--cert", pki.client.chain, "--key", pki.client.encrypted_key, "--password", PFX_PASSWORD],
    ]
    with peers.ssl_server(pki.server, client_ca=pki.root, require_client=True) as server:
        for way in ways:
            done = run("connect", "localhost", server.port, "--cafile", pki.root, *way, data=b"x")
            assert (done.returncode, done.stdout) == (0, "x"), done
        assert {seen.peer_certificate for seen in server.accepted} == {pki.client.leaf_der}
        done = run("connect", "localhost", server.port, "--cafile", pki.root)
        assert done.returncode == 2
        assert "certificate_required" in done.stderr.splitlines()[-1]


def test_own_certificates_that_will_not_do(pki: Pki) -> None:
    where = ("connect", "localhost", 1)
    leaf, key = pki.client.leaf, pki.client.key
    assert "no certificate with a private key" in refused(*where, "--cert", leaf)
    assert refused(*where, "--key", key) == "--key needs --cert"
    assert "does not match" in refused(*where, "--cert", leaf, "--key", pki.server.key)
    locked = refused(*where, "--cert", leaf, "--key", pki.client.encrypted_key)
    assert "a password is needed" in locked
    wrong = refused(*where, "--cert", pki.client.pfx, "--password", "wrong")
    assert "the password is wrong" in wrong
    assert "neither PEM nor PKCS #12" in refused(*where, "--cert", Path(__file__))


def test_a_password_is_asked_for_at_a_terminal(pki: Pki) -> None:
    with at_terminal("certs", "--file", pki.client.pfx) as terminal:
        terminal.expect(r"Password of .*client\.pfx: ")
        terminal.type(PFX_PASSWORD.encode() + b"\n")
        terminal.expect(r"with private key")
        assert terminal.wait() == 0
        assert PFX_PASSWORD not in terminal.text


def test_the_reader_of_stdout_goes(pki: Pki) -> None:
    def endless(connection: ssl.SSLSocket) -> None:
        with suppress(OSError):
            while True:
                connection.sendall(b"line\n" * 1000)

    with peers.ssl_server(pki.server, endless) as server:
        process = subprocess.Popen(
            [*COMMAND, "connect", "localhost", str(server.port), "--cafile", str(pki.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.read(5) == b"line\n"
            process.stdout.close()
            errors = process.stderr.read()
            assert process.wait(LIMIT) == 141, errors
            assert errors.count(b"\n") == 1  # "Connected"


# --- STARTTLS


@pytest.mark.parametrize("protocol", SERVERS)
def test_starttls(pki: Pki, protocol: str) -> None:
    with dialogue_server(pki.server, SERVERS[protocol]) as (port, errors):
        done = run(
            *("connect", "localhost", port, "--cafile", pki.root, "--starttls", protocol),
            data=b"over TLS",
        )
    assert (done.returncode, done.stdout) == (0, "over TLS"), (done, errors)
    assert errors == []


@pytest.mark.peers
@pytest.mark.parametrize("protocol", SERVERS)
def test_the_dialogue_servers_are_true(pki: Pki, protocol: str) -> None:
    """openssl s_client comes to terms with the same servers."""
    with dialogue_server(pki.server, SERVERS[protocol]) as (port, _):
        arguments = ["-starttls", protocol, "-quiet"]
        if protocol in ("smtp", "xmpp"):
            arguments += ["-name", "localhost"]
        with peers.openssl_client(port, ca=pki.root, arguments=arguments) as client:
            client.send(b"over TLS\n")
            client.expect(rb"over TLS\n")


@pytest.mark.parametrize("protocol", SERVERS)
def test_inspect_after_starttls(pki: Pki, protocol: str) -> None:
    with dialogue_server(pki.server, SERVERS[protocol]) as (port, _):
        done = run("inspect", "localhost", port, "--cafile", pki.root, "--starttls", protocol)
    assert done.returncode == 0, done
    assert "Protocol:      TLS 1.3" in done.stdout


@pytest.mark.parametrize("protocol", REFUSALS)
def test_starttls_refused(pki: Pki, protocol: str) -> None:
    dialogue, words = REFUSALS[protocol]
    with dialogue_server(pki.server, dialogue) as (port, _):
        said = refused("connect", "localhost", port, "--starttls", protocol)
    assert words in said


@pytest.mark.parametrize("protocol", SERVERS)
def test_the_server_hangs_up_before_tls(pki: Pki, protocol: str) -> None:
    def hang_up(plain: socket.socket) -> None:
        plain.shutdown(socket.SHUT_WR)
        hanging_up(plain)

    with dialogue_server(pki.server, hang_up) as (port, _):
        said = refused("connect", "localhost", port, "--starttls", protocol)
    assert "the server closed the connection before STARTTLS" in said


def test_bytes_injected_before_tls_are_not_taken(pki: Pki) -> None:
    """CVE-2011-0411: an answer to a command that was to be protected."""

    def inject(plain: socket.socket) -> None:
        plain.sendall(b"220 mx.example ESMTP\r\n")
        plain.recv(100)
        plain.sendall(b"250-mx.example\r\n250 STARTTLS\r\n")
        plain.recv(100)
        plain.sendall(b"220 Go ahead\r\n250 injected\r\n")
        plain.recv(1000)

    with dialogue_server(pki.server, inject) as (port, _):
        done = run("connect", "localhost", port, "--starttls", "smtp", "--insecure", data=b"x")
    assert done.returncode == 2
    assert "injected" not in done.stdout


# --- inspect


def test_inspect(pki: Pki) -> None:
    with peers.ssl_server(pki.server) as server:
        done = run("inspect", "localhost", server.port, "--cafile", pki.root)
    assert done.returncode == 0
    assert done.stderr == ""
    for words in (
        "Protocol:      TLS 1.3",
        "Cipher suite:  TLS_",
        "Server name:   localhost",
        "Verification:  ok: the chain leads to a trusted root and the name matches",
        "CN=localhost",
        "issued by CN=Test intermediate",
    ):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("which", "verdict", "words"),
    [
        ("untrusted", "partialchain", "its root is not known here"),
        ("self_signed", "untrustedroot", "a root that this machine does not trust"),
        ("expired", "time", "has expired or is not valid yet"),
        ("not_yet_valid", "time", "has expired or is not valid yet"),
        ("wrong_name", "cnmatch", "was made for another name"),
        ("wrong_usage", "wrongusage", "is not for servers"),
    ],
)
def test_inspect_says_what_is_wrong(pki: Pki, which: str, verdict: str, words: str) -> None:
    with peers.ssl_server(getattr(pki, which)) as server:
        where = ("inspect", "localhost", server.port, "--cafile", pki.root)
        done = run(*where)
        assert done.returncode == 1
        assert f"Verification:  {verdict}: " in done.stdout
        assert words in done.stdout
        facts = json.loads(run(*where, "--json").stdout)
        assert (facts["trusted"], facts["verification"]) == (False, verdict)


def test_inspect_json(pki: Pki) -> None:
    with peers.ssl_server(pki.server, version="1.2") as server:
        done = run("inspect", "localhost", server.port, "--cafile", pki.root, "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0
    assert facts["protocol"] == "TLS 1.2"
    assert facts["trusted"] is True
    assert facts["sni"] == "localhost"
    assert [cert["subject"].split(",")[0] for cert in facts["chain"]] == [
        "CN=localhost",
        "CN=Test intermediate",
    ]
    assert facts["chain"][0]["sha256"] == hashlib.sha256(pki.server.leaf_der).hexdigest()


def test_cafile_replaces_the_systems_roots(pki: Pki) -> None:
    """A server under root is not trusted by whom only another root is given."""
    with peers.ssl_server(pki.server) as server:
        done = run("inspect", "localhost", server.port, "--cafile", pki.other_root)
    assert done.returncode == 1


def test_inspect_of_a_server_that_speaks_no_tls() -> None:
    def answer(plain: socket.socket) -> None:
        plain.recv(1000)
        plain.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        plain.close()

    with socket.create_server((peers.HOST, 0)) as listener:
        thread = threading.Thread(target=lambda: answer(listener.accept()[0]), daemon=True)
        thread.start()
        said = refused("inspect", "localhost", listener.getsockname()[1])
        thread.join(LIMIT)
    assert "plain text" in said and "HTTP" in said


# --- serve


@contextmanager
def served(*arguments: object) -> Iterator[peers.Peer]:
    process = peers.Peer([*COMMAND, "serve", "0", "--address", peers.HOST, *map(str, arguments)])
    try:
        process.port = int(process.expect(rb"Echo over TLS on port (\d+)\.")[1])
        yield process
    finally:
        process.stop()


def talk(port: int, context: ssl.SSLContext, data: bytes) -> bytes:
    with socket.create_connection((peers.HOST, port), LIMIT) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            secure.sendall(data)
            back = b""
            while len(back) < len(data):
                piece = secure.recv(65536)
                assert piece
                back += piece
            return back


def test_serve(pki: Pki) -> None:
    with served("--cert", pki.server.combined) as process:
        for _ in range(2):
            context = peers.ssl_client_context(pki.root)
            assert talk(process.port, context, b"to and fro") == b"to and fro"
            process.expect(rb"127\.0\.0\.1, port \d+: TLS 1\.3, TLS_\w+\n")
        process.process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert b"Traceback" not in process.output


def test_serve_survives_what_is_no_tls(pki: Pki) -> None:
    with served("--cert", pki.server.combined) as process:
        with socket.create_connection((peers.HOST, process.port), LIMIT) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while plain.recv(1000):
                pass
        process.expect(rb"refused: .*HTTP[^\n]*\n")
        assert talk(process.port, peers.ssl_client_context(pki.root), b"x") == b"x"
        assert b"Traceback" not in process.output


def test_serve_asks_for_client_certificates(pki: Pki) -> None:
    with served("--cert", pki.server.combined, "--cafile", pki.root) as process:
        good = peers.ssl_client_context(pki.root, identity=pki.client)
        assert talk(process.port, good, b"x") == b"x"
        process.expect(rb"TLS 1\.3, TLS_\w+, CN=A client")
        with pytest.raises(OSError):
            talk(process.port, peers.ssl_client_context(pki.root), b"x")
        process.expect(rb"refused: ")


def test_serve_where_the_port_is_taken(pki: Pki) -> None:
    with socket.create_server((peers.HOST, 0)) as listener:
        port = listener.getsockname()[1]
        said = refused("serve", port, "--address", peers.HOST, "--cert", pki.server.combined)
    assert "in use" in said


# --- certs


def test_certs_of_a_file(pki: Pki, tmp_path: Path) -> None:
    der = tmp_path / "leaf.der"
    der.write_bytes(pki.server.leaf_der)
    for arguments, count, keys in (
        ([pki.server.chain], 2, 0),
        ([pki.server.combined], 2, 1),
        ([pki.server.pfx, "--password", PFX_PASSWORD], 2, 1),
        ([der], 1, 0),
    ):
        done = run("certs", "--file", *arguments)
        assert done.returncode == 0, done
        lines = done.stdout.splitlines()
        assert len(lines) == count
        assert sum("(with private key)" in line for line in lines) == keys
        assert lines[0].startswith(hashlib.sha256(pki.server.leaf_der).hexdigest()[:16])
        assert done.stderr == f"{count} certificate{'s' if count > 1 else ''}\n"


def test_certs_as_json(pki: Pki) -> None:
    rows = json.loads(run("certs", "--file", pki.server.chain, "--json").stdout)
    assert [row["is_ca"] for row in rows] == [False, True]
    assert rows[0]["names"] == ["localhost", "127.0.0.1", "::1"]


def test_certs_of_the_system() -> None:
    done = run("certs")
    assert done.returncode == 0
    assert done.stderr == f"{len(done.stdout.splitlines())} certificates\n"


def test_certs_of_no_store() -> None:
    assert "'NOPE'" in refused("certs", "NOPE")


# --- demo


def test_demo() -> None:
    done = run("demo", "--megabytes", 5)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "The hashes are equal." in done.stdout
    for words in ("Protocol:      TLS 1.3", "Cipher suite:", "Chain:", "Verification:"):
        assert words in done.stdout
    assert re.search(r"Refused: .*SEC_E_UNTRUSTED_ROOT", done.stdout)
    assert "the server verified the client 'demo client'" in done.stdout
    digests = re.findall(r"\b[0-9a-f]{64}\b", done.stdout)
    assert digests[0] == digests[1]


def test_demo_shows_progress_to_a_person() -> None:
    with at_terminal("demo", "--megabytes", 20) as terminal:
        assert terminal.wait() == 0
    assert re.search(r"sending.*20\.0/20\.0\s+MB", terminal.text)
    assert re.search(r"receiving.*20\.0/20\.0\s+MB", terminal.text)


# --- at a terminal


class Terminal:
    """A process whose standard streams are a terminal's, and what it shows."""

    def __init__(self, arguments: Sequence[str], stdin: Any, stdout: Any) -> None:
        import pty

        self._ours, theirs = pty.openpty()
        self.text = ""
        try:
            self.process = subprocess.Popen(
                arguments,
                stdin=theirs if stdin is None else stdin,
                stdout=theirs if stdout is None else stdout,
                stderr=theirs,
                env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
                start_new_session=True,
                preexec_fn=_take_terminal if stdin is None else None,
            )
        finally:
            os.close(theirs)

    def _read(self, limit: float) -> bool:
        """Some more text; False at the end."""
        if not select.select([self._ours], [], [], max(0.0, limit))[0]:
            raise AssertionError(f"nothing more is shown after: {self.text!r}")
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # EIO: nobody has it open any more
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def expect(self, pattern: str) -> None:
        end = time.monotonic() + LIMIT
        while not re.search(pattern, self.text):
            assert self._read(end - time.monotonic()), f"it ended with: {self.text!r}"

    def wait(self) -> int:
        end = time.monotonic() + LIMIT
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(LIMIT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def at_terminal(*arguments: object, stdin: Any = None, stdout: Any = None) -> Iterator[Terminal]:
    if os.name == "nt":
        pytest.skip("Windows has no pseudo-terminals of POSIX's kind")
    terminal = Terminal([*COMMAND, *map(str, arguments)], stdin, stdout)
    try:
        yield terminal
    finally:
        terminal.close()
