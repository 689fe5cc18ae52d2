"""A listener that asks its clients for a certificate and verifies it.

    python 06_listener_requestclientcert.py PORT SERVER.pem ROOTS.pem

SERVER.pem holds the private key and the chain. Each client is greeted by the
name in its certificate. Prints the port it listens on; ends with Ctrl-C.
"""

import asyncio
import sys
from pathlib import Path

import twapi_tls as tls


def credentials(pem: bytes) -> tls.Credentials:
    with tls.cert_temporary_store(pem=pem) as store:
        mine = [cert for cert in tls.cert_store_iterate(store) if cert.has_private_key()]
        return tls.sspi_acquire_credentials(
            package="unisp",
            role="server",
            credentials=tls.sspi_schannel_credentials(certificates=mine),
        )


async def main(port: int, server_pem: str, roots_pem: str) -> None:
    roots = tls.cert_temporary_store(pem=Path(roots_pem).read_bytes())

    def verify(channel: tls.Channel, context: object) -> bool:
        cert = tls.sspi_remote_cert(context)  # raises if the client sent none
        anchors = list(tls.cert_store_iterate(roots))
        return tls.cert_tls_verify(cert, trustedroots=anchors, revocationcheck="none") == "ok"

    def accepted(channel: tls.Channel, address: str, port: int) -> None:
        client = tls.sspi_remote_cert(channel.cget("context"))
        with channel:
            channel.sendall(f"hello {tls.cert_subject_name(client)}\n".encode())

    listener = tls.tls_socket(
        port,
        server=accepted,
        credentials=credentials(Path(server_pem).read_bytes()),
        requestclientcert=True,
        verifier=verify,
    )
    print(listener.getsockname()[1], flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        listener.close()


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
    except KeyboardInterrupt:
        pass
