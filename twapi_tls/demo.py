"""The main job, once, on this machine: ``python -m twapi_tls demo``.

Makes a CA, an intermediate, a server's and a client's certificate on the
spot; a server and a client verify each other over loopback, send 100 MB each
way and compare the hashes; then the connection is described. Nothing is
prepared and nothing is simulated: it is the same code that a program uses.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import threading
import time
from collections.abc import Callable
from typing import Any

from . import certs, commands, describe, sspi
from ._native import TLSError
from .channel import Channel
from .progress import Progress

__all__ = ["run"]

MEGABYTE = 1_000_000
PIECE = 256 * 1024


def make_certificates() -> tuple[bytes, bytes, bytes]:
    """(root PEM, server PEM with key and chain, client PEM with key and chain)."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        raise SystemExit(
            "The demo makes certificates with the package 'cryptography': "
            "pip install 'twapi_tls[cli]'"
        ) from None

    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)

    def issue(
        name: str,
        signer: tuple[Any, Any] | None,
        ca: int | None,
        usage: Any | None = None,
        names: list[Any] | None = None,
    ) -> tuple[Any, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer[0].subject if signer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca is not None, ca), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        cert = builder.sign(signer[1] if signer else key, hashes.SHA256())
        return cert, key

    def pem(*parts: Any) -> bytes:
        out = b""
        for part in parts:
            if isinstance(part, x509.Certificate):
                out += part.public_bytes(serialization.Encoding.PEM)
            else:
                out += part.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
        return out

    root = issue("twapi_tls demo root", None, 1)
    middle = issue("twapi_tls demo intermediate", root, 0)
    server = issue(
        "localhost",
        middle,
        None,
        ExtendedKeyUsageOID.SERVER_AUTH,
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))],
    )
    client = issue("demo client", middle, None, ExtendedKeyUsageOID.CLIENT_AUTH)
    return pem(root[0]), pem(server[1], server[0], middle[0]), pem(client[1], client[0], middle[0])


def _credentials(role: str, pem: bytes, root: bytes) -> sspi.Credentials:
    with certs.cert_temporary_store(pem=pem) as store:
        mine = [cert for cert in certs.cert_store_iterate(store) if cert.has_private_key()]
        return sspi.sspi_acquire_credentials(
            package="unisp",
            role=role,
            credentials=sspi.sspi_schannel_credentials(
                certificates=mine, rootstore=certs.cert_temporary_store(pem=root)
            ),
        )


class _Server(threading.Thread):
    """A listener on an event loop; each connection is served by a thread."""

    def __init__(self, credentials: sspi.Credentials, root: bytes, amount: int) -> None:
        super().__init__(name="demo server", daemon=True)
        self.credentials, self.root, self.amount = credentials, root, amount
        self.ready = threading.Event()
        self.port = 0
        self.client_name = ""
        self.digest = ""
        self.failure: BaseException | None = None
        self.refusals: list[BaseException | None] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def _verify(self, channel: Channel, context: Any) -> bool:
        cert = sspi.sspi_remote_cert(context)
        self.client_name = certs.cert_subject_name(cert)
        verdict = certs.cert_tls_verify(
            cert,
            trustedroots=list(certs.cert_store_iterate(certs.cert_temporary_store(pem=self.root))),
            revocationcheck="none",
        )
        return verdict == "ok"

    def _accepted(self, channel: Channel, address: str, port: int) -> None:
        threading.Thread(target=self._serve, args=(channel,), daemon=True).start()

    def _serve(self, channel: Channel) -> None:
        try:
            with channel:
                digest, left = hashlib.sha256(), self.amount
                buffer = bytearray(PIECE)
                while left:
                    n = channel.recv_into(memoryview(buffer)[: min(PIECE, left)])
                    if not n:
                        raise ConnectionError("the client stopped early")
                    digest.update(memoryview(buffer)[:n])
                    left -= n
                self.digest = digest.hexdigest()
                _send(channel, self.amount, b"server", lambda n: None)
        except BaseException as error:
            self.failure = error

    def run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            # The demo's last client refuses us on purpose.
            self._loop.set_exception_handler(
                lambda _, context: self.refusals.append(context.get("exception"))
            )
            self._over = asyncio.Event()
            listener = commands.tls_socket(
                0,
                server=self._accepted,
                credentials=self.credentials,
                requestclientcert=True,
                verifier=self._verify,
                myaddr="127.0.0.1",
            )
            self.port = listener.getsockname()[1]
            self.ready.set()
            await self._over.wait()
            listener.close()

        try:
            asyncio.run(serve())
        except BaseException as error:
            self.failure = error
            self.ready.set()

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._over.set)
        self.join(10)


def _pieces(seed: bytes, amount: int) -> Callable[[int], bytes]:
    block = hashlib.shake_256(seed).digest(PIECE)
    return lambda sent: block[: min(PIECE, amount - sent)]


def _send(channel: Channel, amount: int, seed: bytes, advance: Callable[[int], None]) -> str:
    digest, piece, sent = hashlib.sha256(), _pieces(seed, amount), 0
    while sent < amount:
        data = piece(sent)
        channel.sendall(data)
        digest.update(data)
        sent += len(data)
        advance(len(data))
    return digest.hexdigest()


def _receive(channel: Channel, amount: int, advance: Callable[[int], None]) -> str:
    digest, got, buffer = hashlib.sha256(), 0, bytearray(PIECE)
    while got < amount:
        n = channel.recv_into(buffer)
        if not n:
            raise ConnectionError(f"the server stopped after {got} bytes")
        digest.update(memoryview(buffer)[:n])
        got += n
        advance(n)
    return digest.hexdigest()


def _expected(seed: bytes, amount: int) -> str:
    digest, piece, sent = hashlib.sha256(), _pieces(seed, amount), 0
    while sent < amount:
        data = piece(sent)
        digest.update(data)
        sent += len(data)
    return digest.hexdigest()


def _refusal(port: int) -> TLSError | None:
    """What a client raises that trusts the system's roots only; None: it connected."""
    try:
        commands.tls_socket("localhost", port, timeout=60).close()
    except TLSError as error:
        return error
    return None


def run(megabytes: int = 100) -> int:
    """Runs the demo; 0 if everything was as it should be."""
    amount = megabytes * MEGABYTE
    print("Making a root CA, an intermediate, a server's and a client's certificate ...")
    root, server_pem, client_pem = make_certificates()
    server = _Server(_credentials("server", server_pem, root), root, amount)
    server.start()
    server.ready.wait(30)
    if server.failure is not None:
        raise server.failure
    print(f"A TLS server listens on 127.0.0.1, port {server.port}.")
    client_credentials = _credentials("client", client_pem, root)
    # By address, so that no resolver is asked; the certificate is for the name.
    channel = commands.tls_socket(
        "127.0.0.1",
        server.port,
        credentials=client_credentials,
        peersubject="localhost",
        timeout=60,
    )
    with channel:
        started = time.perf_counter()
        with Progress() as progress:
            sent = _send(channel, amount, b"client", progress.task("sending  ", amount))
            received = _receive(channel, amount, progress.task("receiving", amount))
        seconds = time.perf_counter() - started
        context = channel.cget("context")
        chain = describe.peer_chain(context)
        facts = describe.connection_facts(context.facts(), chain)
        verdict = certs.cert_tls_verify(
            chain[0],
            server="localhost",
            trustedroots=certs.cert_temporary_store(pem=root),
            exclusiveroots=True,
            revocationcheck="none",
        )
    refusal = _refusal(server.port)
    server.stop()
    if server.failure is not None:
        raise server.failure
    good = server.digest == sent and received == _expected(b"server", amount)
    rate = 2 * megabytes / seconds
    print(f"Sent {megabytes} MB and received {megabytes} MB in {seconds:.2f} s ({rate:.0f} MB/s).")
    print(f"SHA-256 to the server:  {sent}")
    print(f"          it computed:  {server.digest}")
    print(f"SHA-256 from it:        {received}")
    print("The hashes are equal." if good else "THE HASHES DIFFER.")
    print()
    verification = (
        f"{verdict}: the chain leads to the demo's root and the name 'localhost' matches; "
        f"the server verified the client '{server.client_name}'"
    )
    good = good and verdict == "ok" and refusal is not None
    for line in describe.sentences(facts, verification):
        print(line)
    print(f"Refused:       a client that does not know the root: {refusal}")
    return 0 if good else 1
