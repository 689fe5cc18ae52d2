"""The command line: ``python -m twapi_tls connect|serve|inspect|certs|demo|bench``.

Exit status: 0; 1 where the answer is no (a server that is not trusted, hashes
that differ); 2 for an error, said in one line; 130 after Ctrl-C. What a command
is asked for goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import platform
import socket
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__, certs, commands, describe, engine, sspi
from ._native import TLSError, TLSTimeoutError, TLSVerificationError
from .channel import Channel
from .progress import Progress
from .starttls_dialogues import DIALOGUES

__all__ = ["main"]

_PIECE = 64 * 1024


class _Mistake(ValueError):
    """A user's, said in one line."""


class _ReaderGone(Exception):
    """Nobody reads our stdout any more."""


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number") from None
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not between 0 and 65535")
    return port


def _host(text: str) -> str:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not bare or "/" in bare:
        raise argparse.ArgumentTypeError(f"{text!r} is no host name or address")
    return bare


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds


def _megabytes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of megabytes")
    return int(text)


def _password(options: argparse.Namespace) -> str | None:
    if options.password is not None and options.password_file is not None:
        raise _Mistake("--password and --password-file exclude each other")
    if options.password_file is not None:
        text = Path(options.password_file).read_text(encoding="utf-8")
        return text.splitlines()[0] if text else ""
    password: str | None = options.password
    return password


def _load(data: bytes, name: str, password: str | None) -> Any:
    """A store of what a file holds: PEM, PKCS #12 or one DER certificate."""
    if b"-----BEGIN " in data:
        return certs.cert_temporary_store(pem=data, password=password)
    if data[:1] != b"\x30":
        raise _Mistake(f"{name}: neither PEM nor PKCS #12 (PFX) nor a DER certificate")
    try:
        cert = certs.cert_import(data)
    except TLSError:
        return certs.cert_temporary_store(pfx=data, password=password)
    store = certs.cert_temporary_store()
    certs.cert_store_add_certificate(store, cert)
    return store


def _store_of(path: str, options: argparse.Namespace, *more: str) -> Any:
    """A store of the file (and more of them, joined); asks for a password
    that it needs where a person can answer."""
    password = _password(options)
    # PEM texts join: a key finds its certificate.
    data = b"\n".join(Path(name).read_bytes() for name in (path, *more))
    try:
        return _load(data, path, password)
    except TLSError as error:
        if password is not None or not sys.stdin.isatty() or "password" not in str(error):
            raise _Mistake(f"{path}: {error}") from error
    return _load(data, path, getpass.getpass(f"Password of {(*more, path)[0]}: "))


def _roots_of(options: argparse.Namespace) -> Any:
    return _load(Path(options.cafile).read_bytes(), options.cafile, None)


def _credentials(role: str, options: argparse.Namespace) -> sspi.Credentials:
    mine: list[Any] = []
    if options.key and not options.cert:
        raise _Mistake("--key needs --cert")
    if options.cert:
        store = _store_of(options.cert, options, *([options.key] if options.key else []))
        mine = [cert for cert in certs.cert_store_iterate(store) if cert.has_private_key()]
        if not mine:
            raise _Mistake(
                f"{options.cert} holds no certificate with a private key: is it in a file "
                "of its own (--key)?"
            )
    return sspi.sspi_acquire_credentials(
        package="unisp",
        role=role,
        credentials=sspi.sspi_schannel_credentials(
            certificates=mine,
            rootstore=_roots_of(options) if options.cafile else None,
            protocols=options.tls or (),
            alpn=tuple(options.alpn.split(",")) if options.alpn else (),
        ),
    )


def _accept_anything(channel: Channel, context: Any) -> bool:
    return True


def _connect(options: argparse.Namespace, verifier: Any = None) -> Channel:
    credentials = _credentials("client", options)
    subject = options.name or options.host
    if not options.starttls:
        return commands.tls_socket(
            options.host,
            options.port,
            credentials=credentials,
            peersubject=subject,
            verifier=verifier,
            timeout=options.timeout,
        )
    sock = socket.create_connection((options.host, options.port), timeout=options.timeout)
    try:
        DIALOGUES[options.starttls](sock, subject)
    except BaseException:
        sock.close()
        raise
    return commands.starttls(sock, credentials=credentials, peersubject=subject, verifier=verifier)


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _facts(channel: Channel) -> dict[str, Any]:
    context = channel.cget("context")
    return describe.connection_facts(context.facts(), describe.peer_chain(context))


def _connect_command(options: argparse.Namespace) -> int:
    with _connect(options, _accept_anything if options.insecure else None) as channel:
        channel.settimeout(None)
        facts = _facts(channel)
        person = sys.stdin.isatty()
        _note(
            f"Connected: {facts['protocol']}, {facts['cipher_suite']}"
            + (", NOT VERIFIED" if options.insecure else "")
            + (". End with Ctrl-D." if person else ".")
        )
        with Progress(not person or not sys.stdout.isatty()) as progress:
            _relay(channel, progress, options.crlf)
    return 0


def _relay(channel: Channel, progress: Progress, crlf: bool) -> None:
    """stdin to the peer, the peer to stdout, until both have ended."""
    failures: list[OSError] = []
    sent = progress.task("sent", _size_of_stdin()) if not sys.stdin.isatty() else None
    received = progress.task("received") if not sys.stdout.isatty() else None

    def upward() -> None:
        try:
            while data := os.read(0, _PIECE):
                channel.sendall(data.replace(b"\n", b"\r\n") if crlf else data)
                if sent is not None:
                    sent(len(data))
            commands.tls_close(channel, "write")
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=upward, daemon=True)
    thread.start()
    out = sys.stdout.buffer
    while data := channel.recv(_PIECE):
        try:
            out.write(data)
            out.flush()
        except BrokenPipeError:
            raise _ReaderGone from None
        if received is not None:
            received(len(data))
    if thread.is_alive() and sys.stdin.isatty():
        _note("The peer closed the connection.")
    if failures:
        raise failures[0]


def _size_of_stdin() -> int | None:
    found = os.fstat(0)
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _inspect_command(options: argparse.Namespace) -> int:
    outcome: dict[str, Any] = {}

    def verify(channel: Channel, context: Any) -> bool:
        outcome["verdict"] = certs.cert_tls_verify(
            sspi.sspi_remote_cert(context),
            server=options.name or options.host,
            trustedroots=_roots_of(options) if options.cafile else (),
            exclusiveroots=bool(options.cafile),
            revocationcheck="none",
        )
        return True  # it is only looked at; nothing is sent to it

    with _connect(options, verify) as channel:
        facts = _facts(channel)
    verdict = outcome["verdict"]
    facts["verification"] = verdict
    facts["trusted"] = verdict == "ok"
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        text = _VERDICTS.get(verdict, "the certificate is not trusted")
        for line in describe.sentences(facts, f"{verdict}: {text}"):
            print(line)
    return 0 if verdict == "ok" else 1


_VERDICTS = {
    "ok": "the chain leads to a trusted root and the name matches",
    "cnmatch": "the certificate was made for another name",
    "untrustedroot": "the chain ends in a root that this machine does not trust",
    "partialchain": "an issuer is missing: it was not sent, or its root is not known here",
    "time": "a certificate of the chain has expired or is not valid yet",
    "revoked": "a certificate of the chain was revoked",
    "wrongusage": "the certificate is not for servers",
    "signature": "a signature in the chain is wrong",
    "basicconstraints": "a certificate of the chain may not issue others",
    "name": "a name constraint of an issuer forbids the name",
    "policy": "a certificate of the chain breaks the engine's policy (a weak key, say)",
    "criticalextension": "a certificate has a critical extension that nobody knows",
    "purpose": "an issuer may not issue certificates for servers",
}


def _serve_command(options: argparse.Namespace) -> int:
    import asyncio

    credentials = _credentials("server", options)

    def verify(channel: Channel, context: Any) -> bool:
        verdict = certs.cert_tls_verify(
            sspi.sspi_remote_cert(context),
            trustedroots=_roots_of(options),
            exclusiveroots=True,
            revocationcheck="none",
        )
        return verdict == "ok"

    def serve(channel: Channel, address: str, port: int) -> None:
        facts = _facts(channel)
        client = f", {facts['chain'][0]['subject']}" if facts["chain"] else ""
        _note(f"{address}, port {port}: {facts['protocol']}, {facts['cipher_suite']}{client}")

        def work() -> None:
            try:
                with channel:
                    while data := channel.recv(_PIECE):
                        channel.sendall(data)
            except OSError as error:
                _note(f"{address}, port {port}: {error}")

        threading.Thread(target=work, daemon=True).start()

    async def run() -> None:
        # A handshake that failed is a line, not a traceback.
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: _note(f"refused: {context.get('exception') or context['message']}")
        )
        listener = commands.tls_socket(
            options.port,
            server=serve,
            credentials=credentials,
            myaddr=options.address,
            requestclientcert=bool(options.cafile),
            verifier=verify if options.cafile else None,
        )
        _note(f"Echo over TLS on port {listener.getsockname()[1]}. End with Ctrl-C.")
        try:
            await asyncio.Event().wait()
        finally:
            listener.close()

    asyncio.run(run())
    return 0


def _certs_command(options: argparse.Namespace) -> int:
    if options.file:
        store = _store_of(options.file, options)
    else:
        store = certs.cert_system_store_open(options.store, options.location)
    rows = []
    for cert in certs.cert_store_iterate(store):
        facts = describe.certificate_facts(cert)
        facts["has_private_key"] = cert.has_private_key()
        rows.append(facts)
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        key = " (with private key)" if row["has_private_key"] else ""
        print(f"{row['sha256'][:16]}  until {row['not_after'][:10]}  {row['subject']}{key}")
    _note(f"{len(rows)} certificate{'' if len(rows) == 1 else 's'}")
    return 0


def _demo_command(options: argparse.Namespace) -> int:
    from . import demo

    return demo.run(options.megabytes)


def _bench_command(options: argparse.Namespace) -> int:
    from . import bench

    return bench.run(options.arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m twapi_tls",
        description="TLS over the operating system's own engine.",
        epilog="Exit status: 0; 1 for no (not trusted); 2 for an error; 130 after Ctrl-C.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"twapi_tls {__version__} on {engine}, Python {platform.python_version()}",
    )
    commands_ = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands_.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def password_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--password", help="of the key or PFX (others may see it: ps)")
        sub.add_argument("--password-file", metavar="FILE", help="whose first line it is")

    def tls_options(sub: argparse.ArgumentParser, roots: str, cert: str) -> None:
        sub.add_argument("--cert", metavar="FILE", required=cert == "required", help=_CERT)
        sub.add_argument("--key", metavar="FILE", help="its private key, if in another file")
        password_options(sub)
        sub.add_argument("--cafile", metavar="FILE", help=roots)
        sub.add_argument(
            "--tls", action="append", choices=("tls1.2", "tls1.3"), help="only this version"
        )
        sub.add_argument("--alpn", metavar="A,B", help="application protocols, best first")

    def peer_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("host", metavar="HOST", type=_host, help="a name or an address")
        sub.add_argument("port", metavar="PORT", type=_port)
        sub.add_argument("--name", help="the name to ask for and verify (default: HOST)")
        sub.add_argument(
            "--starttls",
            metavar="PROTOCOL",
            choices=sorted(DIALOGUES),
            help=f"begin in the clear: {', '.join(sorted(DIALOGUES))}",
        )
        sub.add_argument(
            "--timeout", metavar="SECONDS", type=_seconds, default=30.0, help="(default 30)"
        )
        tls_options(sub, "trust the roots in it, not the system's", "optional")

    sub = add("connect", _connect_command, "connect, and join stdin and stdout to the channel")
    peer_options(sub)
    sub.add_argument("--insecure", action="store_true", help="do not verify the server")
    sub.add_argument("--crlf", action="store_true", help="send line ends as CR LF (SMTP, HTTP)")
    sub = add("inspect", _inspect_command, "describe a server's TLS; 1 if it is not trusted")
    peer_options(sub)
    sub.add_argument("--json", action="store_true", help="as JSON")
    sub = add("serve", _serve_command, "an echo server")
    sub.add_argument("port", metavar="PORT", type=_port, help="0: any free one")
    sub.add_argument("--address", default=None, help="listen on this address only")
    tls_options(sub, "ask clients for a certificate under the roots in it", "required")
    sub = add("certs", _certs_command, "list a store")
    sub.add_argument("store", nargs="?", default="ROOT", help="ROOT, CA, MY (default ROOT)")
    sub.add_argument("--location", default="user", choices=("user", "machine"))
    sub.add_argument(
        "--file", metavar="FILE", help="a PEM, PFX or DER file in place of a system store"
    )
    password_options(sub)
    sub.add_argument("--json", action="store_true", help="as JSON")
    sub = add("demo", _demo_command, "server and client on this machine, 100 MB each way")
    sub.add_argument("--megabytes", metavar="N", type=_megabytes, default=100)
    # Its options are benchmarks/run.py's own, help included.
    sub = commands_.add_parser("bench", add_help=False, help="the benchmarks, against ssl")
    sub.set_defaults(run=_bench_command)
    return parser


_CERT = "own certificate with its chain: PEM or PFX"


def _sentence(error: BaseException, options: argparse.Namespace) -> str:
    """One line that a person can act on."""
    host, port = getattr(options, "host", None), getattr(options, "port", None)
    where = f"{host}, port {port}: " if host is not None else ""
    if isinstance(error, socket.gaierror):
        return f"{host or getattr(options, 'address', None)}: no such host ({error.strerror})"
    if isinstance(error, TLSVerificationError) and options.run is _connect_command:
        return f"{where}{error} (--cafile to trust another root, --insecure to go on anyway)"
    if isinstance(error, TLSTimeoutError) or type(error) is TimeoutError:
        seconds = getattr(options, "timeout", None)
        return f"{where}no answer" + (f" within {seconds:g} s" if seconds else "")
    if isinstance(error, OSError) and not isinstance(error, TLSError):
        if error.filename is not None:
            return f"{error.filename}: {error.strerror}"
        return where + (error.strerror or str(error))
    return where + str(error) if isinstance(error, TLSError) else str(error)


def _hang_up() -> int:
    """Whoever read our stdout has gone: as other programs, end silently."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    options.arguments = rest
    if rest and options.run is not _bench_command:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        status = int(run(options))
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            return _hang_up()
        return status
    except KeyboardInterrupt:
        return 130
    except _ReaderGone:
        return _hang_up()
    except (TLSError, OSError, ValueError) as error:
        _note(f"error: {_sentence(error, options)}")
        return 2
