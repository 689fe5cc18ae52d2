"""One end of a connection, run by a Windows Python under Wine.

    python peer.py '{"role": "client", "port": 4433, "size": 1000000, ...}'

Connects or listens, sends ``size`` random bytes while it receives as many,
and prints what happened as lines of JSON: a server first its port, then
either end the facts and the hashes of what it sent and received.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import twapi_tls

BLOCK = 1 << 20


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def send(channel: Any, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0:
        data = os.urandom(min(size, BLOCK))
        digest.update(data)
        channel.sendall(data)
        size -= len(data)
    return digest.hexdigest()


def receive(channel: Any, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0:
        data = channel.recv(min(size, BLOCK))
        if not data:
            raise EOFError(f"the peer closed with {size} bytes missing")
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()


def exchange(channel: Any, size: int) -> dict[str, str]:
    """Both directions at once; a peer may send first or last."""
    result: dict[str, str] = {}
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result["sent"] = send(channel, size)
        except BaseException as error:
            failure.append(error)

    sender = threading.Thread(target=work)
    sender.start()
    try:
        result["received"] = receive(channel, size)
    finally:
        sender.join(120)
    if failure:
        raise failure[0]
    return result


def turns(channel: Any, size: int) -> dict[str, str]:
    """All in, then all out: with a peer that cannot do both at once."""
    received = receive(channel, size)
    return {"received": received, "sent": send(channel, size)}


def identity(path: str) -> list[Any]:
    store = twapi_tls.cert_temporary_store(pem=Path(path).read_bytes())
    return [cert for cert in store if cert.has_private_key()]


def client(config: dict[str, Any]) -> None:
    options: dict[str, Any] = {}
    if "cert" in config:
        options["certificates"] = identity(config["cert"])
    root = twapi_tls.cert_temporary_store(pem=Path(config["root"]).read_bytes())
    credentials = twapi_tls.sspi_acquire_credentials(
        role="client",
        credentials=twapi_tls.sspi_schannel_credentials(rootstore=root, **options),
    )
    sock = socket.create_connection(("127.0.0.1", config["port"]), 30)
    channel = twapi_tls.starttls(sock, peersubject="localhost", credentials=credentials)
    finish(channel, config)


def server(config: dict[str, Any]) -> None:
    credentials = twapi_tls.sspi_acquire_credentials(
        role="server",
        credentials=twapi_tls.sspi_schannel_credentials(certificates=identity(config["cert"])),
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        say(port=listener.getsockname()[1])
        listener.settimeout(60)
        sock, _ = listener.accept()
    sock.settimeout(30)
    finish(twapi_tls.starttls(sock, server=True, credentials=credentials), config)


def finish(channel: Any, config: dict[str, Any]) -> None:
    channel.settimeout(60)
    facts = channel.cget("context").facts()
    ways = {"exchange": exchange, "turns": turns}
    hashes = ways[config.get("way", "exchange")](channel, config["size"])
    twapi_tls.tls_close(channel)
    say(protocol=facts.protocol, suite=facts.suite_name, **hashes)


def main() -> int:
    config = json.loads(sys.argv[1])
    try:
        {"client": client, "server": server}[config["role"]](config)
    except BaseException as error:
        say(error=repr(error), code=getattr(error, "code", None), trace=traceback.format_exc())
        return 1
    return 0


if __name__ == "__main__":
    # Wine's Python may wait for a thread that a failed peer left behind.
    status = main()
    sys.stdout.flush()
    os._exit(status)
