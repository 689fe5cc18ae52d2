"""What is measured inside Windows' Python: windows_rows.py starts it under Wine.

    python windows_side.py '{"folder": ..., "library": ..., "pairs": 7, ...}'

Our engine, CPython's own ``ssl`` and the loop in plain C on secur32
(tests/windows/loop.c as a library) take turns in this one process. Prints one
line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import ssl
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ends import PIECE, Engine, Kind, Ours, Ssl, connected_pair
from measure import Run, take_turns
from memory_rows import open_ssl

import twapi_tls as tls

MB = 1e6
AT_ONCE = 8  # pieces between two looks at the clock, as in loop.c


def median_speed(work: Callable[[], int], seconds: float) -> float:
    """MB a second of the median piece, over ``seconds``.

    A piece takes less than the system lets a program run: the median one was
    not interrupted, however much else the machine has to do.
    """
    times = []
    clock = time.perf_counter
    end = clock() + seconds
    now = clock()
    while now < end:
        began = now
        if work() != PIECE:
            raise RuntimeError("not all of the data came back")
        now = clock()
        times.append(now - began)
    return PIECE / statistics.median(times) / MB


def memory_ours(ours: Ours, seconds: float) -> float:
    """A piece sealed and opened, in buffers of the caller's."""
    client, server = ours.memory_pair()
    data, room = bytes(PIECE), client.encrypted_size(PIECE)
    records, plain = bytearray(room), bytearray(room)
    view = memoryview(records)

    def work() -> int:
        return server.decrypt_into(view[: client.encrypt_into(data, records)], plain)

    return median_speed(work, seconds)


def memory_ssl(peer: Ssl, seconds: float) -> float:
    client, server = peer.memory_pair()
    data, plain = bytes(PIECE), bytearray(PIECE)

    def work() -> int:
        client.object.write(data)
        return open_ssl(server, client.outgoing.read(), plain)

    return median_speed(work, seconds)


def sockets(engine: Engine, seconds: float) -> float:
    """MB per second of CPU, from one thread to another over loopback."""
    one, other = connected_pair()
    data, plain = bytes(PIECE), bytearray(PIECE)
    failure: list[BaseException] = []

    def send() -> None:
        try:
            client = engine.client(one)
            hold.wait()
            end = time.process_time() + seconds
            while time.process_time() < end:
                for _ in range(AT_ONCE):
                    client.sendall(data)
            client.close()
        except BaseException as error:
            failure.append(error)

    hold = threading.Event()
    thread = threading.Thread(target=send)
    thread.start()
    server = engine.server(other)
    done = 0
    began = time.process_time()
    hold.set()
    while n := server.recv_into(plain):
        done += n
    thread.join()
    spent = time.process_time() - began
    server.close()
    if failure:
        raise failure[0]
    return done / spent / MB


def openssl_name(suite: str) -> str:
    """TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 as OpenSSL and ``ssl`` call it."""
    name = suite.removeprefix("TLS_").replace("_WITH_", "_")
    return re.sub(r"AES_(\d+)", r"AES\1", name).replace("_", "-")


def main() -> None:
    config: dict[str, Any] = json.loads(sys.argv[1])
    folder = Path(config["folder"])
    certificates: Any = SimpleNamespace(
        server=(folder / "server.pem").read_bytes(),
        root=(folder / "root.pem").read_bytes(),
        server_file=folder / "server.pem",
        root_file=folder / "root.pem",
    )
    ours = Ours(certificates, Kind("tls1.2"))
    facts = ours.memory_pair()[0].facts()
    cipher = openssl_name(facts.suite_name)
    peer = Ssl(certificates, Kind("tls1.2", cipher))
    library = ctypes.CDLL(config["library"])
    pfx = os.fsencode(folder / "server.pfx"), config["password"].encode()

    def plain_c(name: str, seconds: float) -> Run:
        call = getattr(library, name)
        call.restype = ctypes.c_double
        return lambda: float(call(*pfx, ctypes.c_double(seconds)))

    seconds = config["seconds"]
    speeds = {}
    for what, runs in (
        (
            "memory",
            {
                "ours": lambda: memory_ours(ours, seconds),
                "c": plain_c("loop_memory", seconds),
                "in place": plain_c("loop_in_place", seconds),
                "ssl": lambda: memory_ssl(peer, seconds),
            },
        ),
        (
            "sockets",
            {
                "ours": lambda: sockets(ours, seconds),
                "c": plain_c("loop_sockets", seconds),
                "ssl": lambda: sockets(peer, seconds),
            },
        ),
    ):
        if what in config["what"]:
            speeds[what] = take_turns(runs, config["pairs"])
    print(
        json.dumps(
            {
                "speeds": speeds,
                "engine": tls.engine.version,
                "ssl": ssl.OPENSSL_VERSION,
                "python": platform.python_version(),
                "suite": facts.suite_name,
                "protocol": facts.protocol,
            }
        ),
        flush=True,
    )
    # Wine's Python may wait for what a library left behind.
    os._exit(0)


if __name__ == "__main__":
    main()
