"""An overridden tls_background_error: log what no caller can receive.

    python 02_background_error.py SERVER.pem

Starts a listener and a client that speaks no TLS at all; shows what the hook
and then the event loop's exception handler are given.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import twapi_tls as tls


def log_and_raise(message: str, options: dict[str, Any]) -> None:
    print(f"phase {options['phase']}: {message}")
    raise RuntimeError("a handshake failed, see the log") from options["exception"]


async def main(server_pem: str) -> None:
    with tls.cert_temporary_store(pem=Path(server_pem).read_bytes()) as store:
        mine = [cert for cert in tls.cert_store_iterate(store) if cert.has_private_key()]
        credentials = tls.sspi_acquire_credentials(
            package="unisp",
            role="server",
            credentials=tls.sspi_schannel_credentials(certificates=mine),
        )
    told = asyncio.Event()

    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        print(f"event loop: {context['exception']!r}")
        told.set()

    asyncio.get_running_loop().set_exception_handler(handler)
    tls.tls_background_error = log_and_raise
    listener = tls.tls_socket(
        0, server=lambda *accepted: None, credentials=credentials, myaddr="127.0.0.1"
    )
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.wait_for(told.wait(), 10)
        writer.close()
    finally:
        listener.close()
        tls.tls_background_error = tls.__tls_background_error__


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
