"""Bulk through two sessions in one Windows process: ours, and CPython's ssl.

    python bench.py '{"megabytes": 200, "cert": ..., "root": ..., "key": ...}'

The counterpart of loop.c's ``bulk``: seal and open, no socket. Prints one
line of JSON, megabytes a second.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import twapi_tls
from twapi_tls import _native

PIECE = 256 * 1024


def ours(config: dict[str, Any]) -> float:
    def store(path: str) -> Any:
        return twapi_tls.cert_temporary_store(pem=Path(path).read_bytes())

    theirs = twapi_tls.sspi_acquire_credentials(
        role="server",
        credentials=twapi_tls.sspi_schannel_credentials(
            certificates=[c for c in store(config["cert"]) if c.has_private_key()]
        ),
    )
    mine = twapi_tls.sspi_acquire_credentials(role="client")
    client = _native.Session("client", mine.native, target="localhost", ask_verdict=False)
    server = _native.Session("server", theirs.native, ask_verdict=False)
    for _ in range(20):
        for one, other in ((client, server), (server, client)):
            if one.state() != "OPEN":
                one.handshake(0)
            other.feed(one.take_output())
    plain = bytes(PIECE)
    room = bytearray(PIECE)
    left = config["megabytes"] * (1 << 20)
    begin = time.perf_counter()
    while left > 0:
        client.send(plain, 0)
        server.feed(client.take_output())
        got = 0
        while got < PIECE:
            got += server.recv_into(memoryview(room)[got:], 0)
        left -= PIECE
    return config["megabytes"] / (time.perf_counter() - begin)


def theirs(config: dict[str, Any]) -> float:
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(config["cert"])
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    client_context.maximum_version = ssl.TLSVersion.TLSv1_2
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(20):
        for one in (client, server):
            try:
                one.do_handshake()
            except ssl.SSLWantReadError:
                pass
    plain = bytes(PIECE)
    room = bytearray(PIECE)
    left = config["megabytes"] * (1 << 20)
    begin = time.perf_counter()
    while left > 0:
        client.write(plain)
        got = 0
        while got < PIECE:
            got += server.read(PIECE - got, memoryview(room)[got:])
        left -= PIECE
    return config["megabytes"] / (time.perf_counter() - begin)


def main() -> None:
    config = json.loads(sys.argv[1])
    print(json.dumps({"ours": ours(config), "ssl": theirs(config)}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
