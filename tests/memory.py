"""Two security contexts in memory: drive them, carry bytes between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mint import Minted

import twapi_tls as tls
from twapi_tls import Credentials, SspiContext, Store, TLSError


def store_with(*certs: Minted) -> Store:
    """Certificates with their keys, and the issuers below the root."""
    return tls.cert_temporary_store(pem=b"".join(cert.combined for cert in certs))


def roots(*certs: Minted) -> Store:
    return tls.cert_temporary_store(pem=b"".join(cert.path[-1].pem for cert in certs))


def server(*certs: Minted, **options: Any) -> Credentials:
    """A server's credentials; Schannel finds their intermediates as well."""
    options.setdefault("install_intermediates", True)
    return tls.sspi_acquire_credentials(
        "unisp", "server", tls.sspi_schannel_credentials(store_with(*certs), **options)
    )


def client(root: Minted | None = None, *certs: Minted, **options: Any) -> Credentials:
    """A client's credentials that trust one root."""
    if root is not None:
        options["rootstore"] = roots(root)
    if certs:
        options["certificates"] = store_with(*certs)
    return tls.sspi_acquire_credentials("unisp", "client", tls.sspi_schannel_credentials(**options))


def whole(data: bytes) -> Iterator[bytes]:
    if data:
        yield data


def bytewise(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


class Connection:
    """Both ends of one, negotiated or about to be."""

    def __init__(self, ours: SspiContext, theirs: SspiContext) -> None:
        self.client, self.server = ours, theirs

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.delete()
        self.server.delete()

    def other(self, end: SspiContext) -> SspiContext:
        return self.server if end is self.client else self.client

    def send(self, end: SspiContext, data: bytes) -> tuple[str, bytes]:
        """Data from one end, decrypted at the other; a renegotiation is answered."""
        records = tls.sspi_encrypt_stream(end, data)
        return self.receive(self.other(end), records)

    def receive(self, end: SspiContext, records: bytes) -> tuple[str, bytes]:
        got = b""
        while True:
            status, plain = tls.sspi_decrypt_stream(end, records)
            got += plain
            if status != "renegotiate":
                return status, got
            _, output, records = tls.sspi_step(end)
            back = tls.sspi_decrypt_stream(self.other(end), output)
            assert back == ("ok", b""), back


def negotiate(
    ours: SspiContext,
    theirs: SspiContext,
    chunks: Callable[[bytes], Iterator[bytes]] = whole,
) -> Connection:
    """Steps both until they are done; what is left over is decrypted.

    A step that fails gives its token to the other end first, then raises.
    """
    done = {ours: False, theirs: False}
    end, data = ours, b""
    status, output, left = tls.sspi_step(end)
    for _ in range(40):
        done[end] = done[end] or status == "done"
        if left:
            assert tls.sspi_decrypt_stream(end, left) == ("ok", b"")
        data, end = output, theirs if end is ours else ours
        if not data and all(done.values()):
            return Connection(ours, theirs)
        output = left = b""
        for chunk in chunks(data):
            if done[end]:
                assert tls.sspi_decrypt_stream(end, chunk)[1] == b""
                continue
            try:
                status, more, left = tls.sspi_step(end, chunk)
            except TLSError as error:
                tell(theirs if end is ours else ours, error.token)
                raise
            output += more
            done[end] = status == "done"
            if left:
                assert tls.sspi_decrypt_stream(end, left)[1] == b""
                left = b""
        status = "done" if done[end] else "continue"
    raise AssertionError("the negotiation does not end")


def tell(end: SspiContext, token: bytes) -> TLSError | None:
    """What the other end says to the token of a failure."""
    try:
        if end.session.state() == "OPEN":
            tls.sspi_decrypt_stream(end, token)
        else:
            tls.sspi_step(end, token)
    except TLSError as error:
        return error
    return None


def connect(
    ours: Credentials,
    theirs: Credentials,
    target: str | None = "localhost",
    *,
    mutualauth: bool = False,
    manualvalidation: bool = False,
    chunks: Callable[[bytes], Iterator[bytes]] = whole,
) -> Connection:
    """A negotiated connection. The tickets of TLS 1.3 are taken in."""
    return negotiate(
        tls.sspi_client_context(ours, target, manualvalidation),
        tls.sspi_server_context(theirs, mutualauth=mutualauth),
        chunks,
    )
