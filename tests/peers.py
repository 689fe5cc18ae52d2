"""Real peers on loopback: openssl, GnuTLS, nginx, curl, and Python's own ssl.

Each is a context manager that starts the peer on a free port of 127.0.0.1,
waits until it is ready (by reading what it prints, or by connecting), and stops
it at the end whatever happened.  Nothing here waits for a fixed time.

    with peers.openssl_server(pki.server) as peer:
        ... connect to (peer.host, peer.port) ...
        peer.expect(rb"hello")      # what the server received and printed
        peer.send(b"answer\\n")      # what the server shall send

A program that is not installed skips the test with the reason; under CI=true
it fails it.
"""

from __future__ import annotations

import os
import platform
import re
import selectors
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import pytest
from certs import Identity
from platforms import SLOWER, unix_name

HOST = "127.0.0.1"
READY = 15.0 * SLOWER  # seconds for a peer to become ready, or to say what is expected
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")


class PeerError(AssertionError):
    """A peer did not do what it was started for; its output is in the text."""


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{reason}, and CI wants every peer")
    pytest.skip(reason)


def find(program: str) -> str | None:
    """Where the program is, system folders included; None if nowhere."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS))
    return shutil.which(program, path=path)


def require(program: str) -> str:
    """Where the program is; skips the test (fails it in CI) if nowhere."""
    found = find(program)
    if found is None:
        _unavailable(f"{program} is not installed")
    return found


def versions() -> dict[str, str]:
    """What each installed peer says of its version, in short, for tables."""
    asked = {
        "openssl": ("openssl", "version"),
        "gnutls": ("gnutls-cli", "--version"),
        "curl": ("curl", "--version"),
        "nginx": ("nginx", "-v"),
    }
    found = {"python": f"ssl of Python {platform.python_version()}, {ssl.OPENSSL_VERSION}"}
    with suppress(PackageNotFoundError):
        found["tlslite-ng"] = version("tlslite-ng")
    for name, (program, argument) in asked.items():
        path = find(program)
        if path is None:
            continue
        answer = subprocess.run(
            [path, argument],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(path),
            timeout=READY,
            check=False,
        )
        line = answer.stdout.partition("\n")[0].strip()
        found[name] = re.split(r" \(| zlib/", line.removeprefix("nginx version: "))[0]
    return found


def free_port() -> int:
    """A port that was free a moment ago; use only where port 0 cannot be given."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _environment(program: str) -> dict[str, str]:
    """The environment for a program: ours without what bends its trust.

    A preloaded sanitizer stays out of foreign programs; ours need it.
    """
    environment = dict(os.environ)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE"):
        environment.pop(name, None)
    if program != sys.executable:
        environment.pop("LD_PRELOAD", None)
    environment["LC_ALL"] = "C"
    return environment


def _tail(output: bytes) -> str:
    """What a program printed, or the end of it, for an error's text."""
    text = output.decode(errors="replace")
    return text if len(text) <= 4000 else "[...]" + text[-4000:]


class Peer:
    """A running program: what it prints is collected, what it reads is ours."""

    host = HOST

    def __init__(self, command: Sequence[str | os.PathLike[str]], port: int = 0) -> None:
        self.command = [os.fspath(word) for word in command]
        self.port = port
        self._output = bytearray()
        self._seen = 0  # expect() goes on from here
        self._ended = False
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=_environment(self.command[0]),
        )
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    def _collect(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        while True:
            data = stream.read(65536)
            with self._changed:
                if data:
                    self._output += data
                else:
                    self._ended = True
                self._changed.notify_all()
            if not data:
                return

    @property
    def output(self) -> bytes:
        """All that was printed so far, stderr included."""
        with self._changed:
            return bytes(self._output)

    def expect(self, pattern: bytes, timeout: float = READY) -> re.Match[bytes]:
        """Wait until ``pattern`` is printed after the last expectation."""
        compiled = re.compile(pattern)
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                found = compiled.search(bytes(self._output), self._seen)
                if found is not None:
                    self._seen = found.end()
                    return found
                left = end - time.monotonic()
                if self._ended or left <= 0:
                    why = "ended" if self._ended else f"did not within {timeout:g} s"
                    printed = _tail(bytes(self._output))
                    raise PeerError(
                        f"{self.command[0]} should have printed {pattern!r} but {why}; "
                        f"it printed:\n{printed}"
                    )
                self._changed.wait(left)

    def until(self, condition: Callable[[bytes], object], timeout: float = READY) -> bytes:
        """Wait until all that was printed so far meets a condition; that output."""
        end = time.monotonic() + timeout
        with self._changed:
            while not condition(bytes(self._output)):
                left = end - time.monotonic()
                if self._ended or left <= 0:
                    raise PeerError(
                        f"{self.command[0]} did not print what was expected; it printed:\n"
                        + _tail(bytes(self._output))
                    )
                self._changed.wait(left)
            return bytes(self._output)

    def send(self, data: bytes) -> None:
        """Write to the program's standard input, all of it."""
        stream = self.process.stdin
        assert stream is not None
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]

    def close_stdin(self) -> None:
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()

    def wait(self, timeout: float = READY) -> int:
        """The exit status, once the program has ended and all output is read."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            printed = _tail(self.output)
            raise PeerError(
                f"{self.command[0]} still runs after {timeout:g} s; it printed:\n{printed}"
            ) from None
        self._reader.join(timeout)
        return status

    def stop(self) -> None:
        """End the program if it still runs; idempotent."""
        self.close_stdin()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def wait_until_listening(self) -> None:
        """Wait until the port accepts; the program's end is an error at once."""
        end = time.monotonic() + READY
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=READY).close()
                return
            except ConnectionRefusedError:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.02)  # not ready: give it the processor
                if self.process.poll() is not None or time.monotonic() > end:
                    self._reader.join(1)
                    raise PeerError(
                        f"{self.command[0]} does not listen on {self.port}; it printed:\n"
                        + self.output.decode(errors="replace")
                    ) from None


def _openssl_version(version: str | None) -> list[str]:
    """``"1.2"`` or ``"1.3"`` as s_client's and s_server's switch."""
    if version is None:
        return []
    return ["-tls" + version.replace(".", "_")]


def _gnutls_priority(version: str | None, priority: str | None) -> list[str]:
    if priority is None:
        priority = "NORMAL"
    if version is not None:
        priority += f":-VERS-ALL:+VERS-TLS{version}"
    return ["--priority", priority]


# --- openssl ---------------------------------------------------------------


@contextmanager
def openssl_server(
    identity: Identity,
    *,
    version: str | None = None,
    client_ca: Path | None = None,
    require_client: bool = False,
    arguments: Sequence[str] = (),
) -> Iterator[Peer]:
    """``openssl s_server``: prints what it receives, sends what it is given.

    ``arguments=["-rev"]`` makes it answer each line reversed, ``["-www"]``
    answer HTTP with a page about the connection.  Lines that begin with one of
    s_server's command letters (Q, q, r, R, P, S, k, K, c ...) are commands: ``k`` and
    ``K`` send a KeyUpdate, ``r`` and ``R`` ask for renegotiation.
    """
    command = [
        require("openssl"),
        "s_server",
        "-accept",
        f"{HOST}:0",
        "-cert",
        str(identity.leaf),
        "-key",
        str(identity.key),
        "-cert_chain",
        str(identity.chain),
        *_openssl_version(version),
    ]
    if client_ca is not None:
        command += ["-CAfile", str(client_ca), "-Verify" if require_client else "-verify", "4"]
        command += ["-verify_return_error"]
    peer = Peer([*command, *arguments])
    try:
        peer.port = int(peer.expect(rb"ACCEPT \S*:(\d+)\r?\n")[1])
        yield peer
    finally:
        peer.stop()


@contextmanager
def openssl_client(
    port: int,
    *,
    ca: Path | None = None,
    identity: Identity | None = None,
    version: str | None = None,
    servername: str | None = "localhost",
    arguments: Sequence[str] = (),
) -> Iterator[Peer]:
    """``openssl s_client``: prints what it receives, sends what it is given.

    It is started, not connected: the test serves it.  With ``ca`` a chain that
    does not verify ends it.  What it receives may land in the middle of a line
    that it prints about the session: expect ``rb"hello"``, not ``rb"\\nhello"``.
    """
    command = [require("openssl"), "s_client", "-connect", f"{HOST}:{port}"]
    command += _openssl_version(version)
    if servername is not None:
        command += ["-servername", servername]
    if ca is not None:
        command += ["-CAfile", str(ca), "-verify_return_error", "-verify", "4"]
        if servername is not None:
            command += ["-verify_hostname", servername]
    if identity is not None:
        command += ["-cert", str(identity.leaf), "-key", str(identity.key)]
        command += ["-cert_chain", str(identity.chain)]
    peer = Peer([*command, *arguments], port)
    try:
        yield peer
    finally:
        peer.stop()


# --- GnuTLS ----------------------------------------------------------------


@contextmanager
def gnutls_server(
    identity: Identity,
    *,
    version: str | None = None,
    client_ca: Path | None = None,
    require_client: bool = False,
    priority: str | None = None,
    http: bool = False,
    arguments: Sequence[str] = (),
) -> Iterator[Peer]:
    """``gnutls-serv``: echoes, or with ``http`` answers a page."""
    program = require("gnutls-serv")
    command = [
        program,
        "--http" if http else "--echo",
        "--x509certfile",
        str(identity.chain),
        "--x509keyfile",
        str(identity.key),
        *_gnutls_priority(version, priority),
    ]
    if client_ca is None:
        command.append("--disable-client-cert")
    else:
        command += ["--x509cafile", str(client_ca)]
        if require_client:
            command += ["--require-client-cert", "--verify-client-cert"]
    # It cannot be given port 0, so another may take the port first.
    for attempt in range(5):
        port = free_port()
        peer = Peer([*command, "--port", str(port), *arguments], port)
        try:
            peer.expect(rb"listening on IPv4 \S+ port \d+\.\.\.done")
            break
        except PeerError:
            peer.stop()
            if attempt == 4 or b"in use" not in peer.output:
                raise
    try:
        yield peer
    finally:
        peer.stop()


@contextmanager
def gnutls_client(
    port: int,
    *,
    ca: Path | None = None,
    identity: Identity | None = None,
    version: str | None = None,
    servername: str = "localhost",
    priority: str | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[Peer]:
    """``gnutls-cli``: prints what it receives, sends what it is given.

    Without ``ca`` it accepts any certificate.
    """
    command = [require("gnutls-cli"), "--port", str(port)]
    command += _gnutls_priority(version, priority)
    if ca is None:
        command.append("--insecure")
    else:
        command += ["--x509cafile", str(ca), "--verify-hostname", servername]
    command += ["--sni-hostname", servername]
    if identity is not None:
        command += ["--x509certfile", str(identity.chain), "--x509keyfile", str(identity.key)]
    peer = Peer([*command, *arguments, HOST], port)
    try:
        yield peer
    finally:
        peer.stop()


# --- nginx and curl --------------------------------------------------------

_NGINX = """\
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr info;
events {{ worker_connections 128; }}
http {{
    access_log off;
    default_type application/octet-stream;
    client_max_body_size 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port} ssl;
        server_name localhost;
        root {folder}/www;
        ssl_certificate {chain};
        ssl_certificate_key {key};
        ssl_protocols {protocols};
        {extra}
        location = /hello {{ return 200 "hello from nginx\\n"; }}
        location = /facts {{
            return 200 "$ssl_protocol $ssl_cipher $ssl_session_reused $ssl_client_verify\\n";
        }}
        location /upload/ {{ dav_methods PUT; create_full_put_path on; }}
    }}
    {another}
}}
"""

_NGINX_OTHER = """\
server {{
        listen {host}:{port} ssl;
        server_name {name};
        ssl_certificate {chain};
        ssl_certificate_key {key};
        location = /hello {{ return 200 "hello from the other\\n"; }}
    }}
"""


@contextmanager
def nginx(
    identity: Identity,
    folder: Path,
    *,
    version: str | None = None,
    client_ca: Path | None = None,
    require_client: bool = False,
    extra: str = "",
    other: tuple[str, Identity] | None = None,
) -> Iterator[Peer]:
    """nginx with TLS, its configuration and files under ``folder`` (a tmp_path).

    ``/hello`` answers a line, ``/facts`` the protocol, the cipher, whether the
    session was resumed (``r`` or ``.``) and how the client's certificate verified;
    what is PUT under ``/upload/`` becomes a file; anything else is a file under
    ``folder / "www"``.  ``other``: a second server's name and certificate.
    """
    program = require("nginx")

    def named(path: Path) -> str:
        return unix_name(path) or str(path)

    (folder / "www").mkdir(exist_ok=True)
    if client_ca is not None:
        verify = "on" if require_client else "optional"
        extra += f" ssl_client_certificate {named(client_ca)}; ssl_verify_client {verify};"
        extra += " ssl_verify_depth 3;"
    for attempt in range(5):
        port = free_port()
        configuration = folder / "nginx.conf"
        configuration.write_text(
            _NGINX.format(
                folder=named(folder),
                host=HOST,
                port=port,
                chain=named(identity.chain),
                key=named(identity.key),
                protocols="TLSv1.2 TLSv1.3" if version is None else f"TLSv{version}",
                extra=extra,
                another=""
                if other is None
                else _NGINX_OTHER.format(
                    host=HOST,
                    port=port,
                    name=other[0],
                    chain=named(other[1].chain),
                    key=named(other[1].key),
                ),
            )
        )
        peer = Peer([program, "-e", "stderr", "-p", folder, "-c", configuration], port)
        try:
            peer.wait_until_listening()
            break
        except PeerError:
            peer.stop()
            if attempt == 4 or b"Address already in use" not in peer.output:
                raise
    try:
        yield peer
    finally:
        peer.stop()


@contextmanager
def curl(
    port: int,
    path: str = "/",
    *,
    ca: Path | None = None,
    identity: Identity | None = None,
    version: str | None = None,
    servername: str = "localhost",
    arguments: Sequence[str] = (),
) -> Iterator[Peer]:
    """``curl`` asking for https://servername:port/path on loopback.

    It is started, not finished: the test serves it, then looks at
    ``peer.wait()`` and ``peer.output``.  Without ``ca`` it accepts any
    certificate.
    """
    command = [require("curl"), "--silent", "--show-error", "--noproxy", "*", "--http1.1"]
    command += ["--max-time", "30", "--resolve", f"{servername}:{port}:{HOST}"]
    command += ["--insecure"] if ca is None else ["--cacert", str(ca)]
    if version is not None:
        command += [f"--tlsv{version}", "--tls-max", version]
    if identity is not None:
        command += ["--cert", str(identity.chain), "--key", str(identity.key)]
    peer = Peer([*command, *arguments, f"https://{servername}:{port}{path}"], port)
    try:
        yield peer
    finally:
        peer.stop()


# --- Python's ssl ----------------------------------------------------------


def _versions_of(context: ssl.SSLContext, version: str | None) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if version is not None:
        only = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
        context.minimum_version = only
        context.maximum_version = only


def ssl_server_context(
    identity: Identity,
    *,
    version: str | None = None,
    client_ca: Path | None = None,
    require_client: bool = False,
    alpn: Sequence[str] = (),
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _versions_of(context, version)
    context.load_cert_chain(identity.chain, identity.key)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def ssl_client_context(
    ca: Path | None = None,
    *,
    identity: Identity | None = None,
    version: str | None = None,
    alpn: Sequence[str] = (),
) -> ssl.SSLContext:
    """A client's context; without ``ca`` it accepts any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _versions_of(context, version)
    if ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(ca)
    if identity is not None:
        context.load_cert_chain(identity.chain, identity.key)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def echo(connection: ssl.SSLSocket) -> None:
    """Send back what comes until the peer's close_notify, then send ours."""
    while True:
        data = connection.recv(65536)
        if not data:
            break
        connection.sendall(data)
    # A peer that closed fully after its close_notify may not wait for ours.
    with suppress(ssl.SSLZeroReturnError):
        connection.unwrap()


@dataclass
class Accepted:
    """What Python's ssl saw of one finished handshake."""

    version: str | None
    cipher: str
    alpn: str | None
    resumed: bool
    peer_certificate: bytes | None


@dataclass
class SSLServer:
    """A running server of Python's ssl; lists grow as connections come."""

    port: int
    host: str = HOST
    accepted: list[Accepted] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    _running: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, condition: Callable[[SSLServer], Any], timeout: float = READY) -> None:
        """Wait until ``condition(self)`` is true; PeerError after the timeout."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise PeerError(f"the ssl server has {self.accepted} and {self.errors}")

    def finish(self) -> None:
        """Wait until no connection is served any more; AssertionError for errors.

        Leaving the server's ``with`` block ends connections, so one that is about
        to end well needs this first.
        """
        self.wait_for(lambda server: server._running == 0)
        assert self.errors == []


@contextmanager
def ssl_server(
    identity: Identity,
    handler: Callable[[ssl.SSLSocket], None] = echo,
    *,
    context: ssl.SSLContext | None = None,
    version: str | None = None,
    client_ca: Path | None = None,
    require_client: bool = False,
    alpn: Sequence[str] = (),
    gate: threading.Event | None = None,
) -> Iterator[SSLServer]:
    """Python's ssl in threads: ``handler`` gets each connection after its handshake.

    No handshake begins before ``gate``, if there is one, is set.

    What a handshake or a handler raises is kept in ``errors`` and ends only that
    connection.
    """
    if context is None:
        context = ssl_server_context(
            identity,
            version=version,
            client_ca=client_ca,
            require_client=require_client,
            alpn=alpn,
        )
    listener = socket.create_server((HOST, 0))
    listener.setblocking(False)
    server = SSLServer(listener.getsockname()[1])
    stop_here, stop_there = socket.socketpair()
    live: set[socket.socket] = set()
    threads: list[threading.Thread] = []

    def serve(plain: socket.socket) -> None:
        connection: socket.socket = plain
        try:
            plain.settimeout(READY)
            secure = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            connection = secure
            with server._changed:
                live.discard(plain)
                live.add(secure)
            if gate is not None and not gate.wait(READY):
                raise PeerError("the gate stayed shut")
            secure.do_handshake()
            cipher = secure.cipher()
            with server._changed:
                server.accepted.append(
                    Accepted(
                        version=secure.version(),
                        cipher=cipher[0] if cipher else "",
                        alpn=secure.selected_alpn_protocol(),
                        resumed=bool(secure.session_reused),
                        peer_certificate=secure.getpeercert(True),
                    )
                )
                server._changed.notify_all()
            handler(secure)
        except Exception as error:  # kept for the test to look at
            with server._changed:
                server.errors.append(error)
                server._changed.notify_all()
        finally:
            connection.close()
            with server._changed:
                live.discard(connection)
                server._running -= 1
                server._changed.notify_all()

    def accept() -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(stop_there, selectors.EVENT_READ)
            while True:
                if any(key.fileobj is stop_there for key, _ in selector.select()):
                    return
                try:
                    plain, _ = listener.accept()
                except (BlockingIOError, ConnectionError):
                    continue
                with server._changed:
                    live.add(plain)
                    server._running += 1
                thread = threading.Thread(target=serve, args=(plain,), daemon=True)
                threads.append(thread)
                thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield server
    finally:
        stop_here.close()
        acceptor.join(READY)
        stop_there.close()
        listener.close()
        with server._changed:
            remaining = list(live)
        for connection in remaining:
            with suppress(OSError):
                # The plain socket's own: SSLSocket.shutdown drops its TLS state.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in threads:
            thread.join(READY)
