"""tls_handshake and tls_state: an async_ client, with other work meanwhile.

    python 04_handshake.py HOST PORT ROOTS.pem

Prints the states that the channel goes through. The event loop drives the
handshake; ``tls_handshake`` tells whether it is done.
"""

import asyncio
import sys
from pathlib import Path

import twapi_tls as tls


async def main(host: str, port: int, roots_file: str) -> None:
    roots = tls.cert_temporary_store(pem=Path(roots_file).read_bytes())
    credentials = tls.sspi_acquire_credentials(
        role="client", credentials=tls.sspi_schannel_credentials(rootstore=roots)
    )
    with tls.tls_socket(host, port, async_=True, credentials=credentials) as channel:
        channel.configure(blocking=False)
        print(tls.tls_state(channel))
        settled = asyncio.Event()
        # Writable comes once the channel is OPEN, or has failed.
        channel.event("writable", settled.set)
        await asyncio.wait_for(settled.wait(), 10)
        channel.event("writable", None)
        print(tls.tls_handshake(channel))  # raises what the negotiation failed of
        print(tls.tls_state(channel))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
