"""The command line: ``python -m twapi_tls connect|serve|inspect|certs|demo|bench``."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__, certs, commands, describe, engine, sspi
from ._native import TLSError
from .channel import Channel
from .starttls_dialogues import DIALOGUES

__all__ = ["main"]

_PIECE = 64 * 1024


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number") from None
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not between 0 and 65535")
    return port


def _store_of(path: str, password: str | None = None) -> Any:
    data = Path(path).read_bytes()
    if data.lstrip().startswith(b"-----"):
        return certs.cert_temporary_store(pem=data, password=password)
    return certs.cert_temporary_store(pfx=data, password=password)


def _credentials(role: str, options: argparse.Namespace) -> sspi.Credentials:
    mine: list[Any] = []
    if options.cert:
        store = _store_of(options.cert, options.password)
        if options.key:
            # PEM texts join: the key finds its certificate
            joined = Path(options.cert).read_bytes() + b"\n" + Path(options.key).read_bytes()
            store = certs.cert_temporary_store(pem=joined, password=options.password)
        mine = [cert for cert in certs.cert_store_iterate(store) if cert.has_private_key()]
        if not mine:
            raise SystemExit(f"{options.cert} holds no certificate with a private key (--key?)")
    return sspi.sspi_acquire_credentials(
        package="unisp",
        role=role,
        credentials=sspi.sspi_schannel_credentials(
            certificates=mine,
            rootstore=_store_of(options.cafile) if options.cafile else None,
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
        _note(f"Connected: {facts['protocol']}, {facts['cipher_suite']}. End with Ctrl-D.")
        _relay(channel)
    return 0


def _relay(channel: Channel) -> None:
    """stdin to the peer, the peer to stdout, until both have ended."""

    def upward() -> None:
        try:
            while data := os.read(0, _PIECE):
                channel.sendall(data)
            commands.tls_close(channel, "write")
        except OSError:
            # the reading side meets the same failure and reports it
            return

    threading.Thread(target=upward, daemon=True).start()
    out = sys.stdout.buffer
    while data := channel.recv(_PIECE):
        out.write(data)
        out.flush()


def _inspect_command(options: argparse.Namespace) -> int:
    outcome: dict[str, Any] = {}

    def verify(channel: Channel, context: Any) -> bool:
        cert = sspi.sspi_remote_cert(context)
        roots = list(certs.cert_store_iterate(_store_of(options.cafile))) if options.cafile else ()
        outcome["verdict"] = certs.cert_tls_verify(
            cert,
            server=options.name or options.host,
            trustedroots=roots,
            revocationcheck="none",
        )
        return True

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
    "partialchain": "an issuer is missing: the server did not send its whole chain",
    "time": "a certificate of the chain has expired or is not valid yet",
    "revoked": "a certificate of the chain was revoked",
    "wrongusage": "the certificate is not for servers",
    "signature": "a signature in the chain is wrong",
}


def _serve_command(options: argparse.Namespace) -> int:
    import asyncio

    credentials = _credentials("server", options)

    def serve(channel: Channel, address: str, port: int) -> None:
        def work() -> None:
            with channel:
                try:
                    while data := channel.recv(_PIECE):
                        channel.sendall(data)
                except OSError as error:
                    _note(f"{address}, port {port}: {error}")

        _note(f"{address}, port {port}: {_facts(channel)['protocol']}")
        threading.Thread(target=work, daemon=True).start()

    async def run() -> None:
        listener = commands.tls_socket(
            options.port, server=serve, credentials=credentials, myaddr=options.address
        )
        _note(f"Echo over TLS on port {listener.getsockname()[1]}. End with Ctrl-C.")
        try:
            await asyncio.Event().wait()
        finally:
            listener.close()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        return 130
    return 0


def _certs_command(options: argparse.Namespace) -> int:
    if options.file:
        store = _store_of(options.file, options.password)
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
    _note(f"{len(rows)} certificates")
    return 0


def _demo_command(options: argparse.Namespace) -> int:
    from . import demo

    return demo.run(options.megabytes)


def _bench_command(options: argparse.Namespace) -> int:
    from . import bench

    return bench.run(options.arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m twapi_tls", description="TLS over the operating system's own engine."
    )
    parser.add_argument(
        "--version", action="version", version=f"twapi_tls {__version__} on {engine}"
    )
    commands_ = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands_.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def tls_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--cert", metavar="FILE", help="own certificate: PEM or PFX")
        sub.add_argument("--key", metavar="FILE", help="its private key, if not in the same file")
        sub.add_argument("--password", help="of the key or PFX")
        sub.add_argument("--cafile", metavar="FILE", help="trust these roots, not the system's")
        sub.add_argument(
            "--tls", action="append", choices=("tls1.2", "tls1.3"), help="only this version"
        )
        sub.add_argument("--alpn", metavar="A,B", help="application protocols, best first")

    def peer_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("host")
        sub.add_argument("port", type=_port)
        sub.add_argument("--name", help="the name to ask for and verify (default: HOST)")
        sub.add_argument("--starttls", choices=sorted(DIALOGUES), help="begin in the clear")
        sub.add_argument("--timeout", type=float, default=30.0, help="seconds (default 30)")
        tls_options(sub)

    sub = add("connect", _connect_command, "connect, and join stdin and stdout to the channel")
    peer_options(sub)
    sub.add_argument("--insecure", action="store_true", help="do not verify the server")
    sub = add("inspect", _inspect_command, "describe a server's TLS; 1 if it is not trusted")
    peer_options(sub)
    sub.add_argument("--json", action="store_true", help="as JSON")
    sub = add("serve", _serve_command, "an echo server")
    sub.add_argument("port", type=_port, help="0: any free one")
    sub.add_argument("--address", default=None, help="listen on this address only")
    tls_options(sub)
    sub = add("certs", _certs_command, "list a store")
    sub.add_argument("store", nargs="?", default="ROOT", help="ROOT, CA, MY (default ROOT)")
    sub.add_argument("--location", default="user", choices=("user", "machine"))
    sub.add_argument("--file", help="a PEM or PFX file in place of a system store")
    sub.add_argument("--password", help="of the file")
    sub.add_argument("--json", action="store_true", help="as JSON")
    sub = add("demo", _demo_command, "server and client on this machine, 100 MB each way")
    sub.add_argument("--megabytes", type=int, default=100)
    # Its options are benchmarks/run.py's own, help included.
    sub = commands_.add_parser("bench", add_help=False, help="the benchmarks, against ssl")
    sub.set_defaults(run=_bench_command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    options.arguments = rest
    if rest and options.run is not _bench_command:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return 130
    except (TLSError, OSError, ValueError) as error:
        _note(f"error: {error}")
        return 2
