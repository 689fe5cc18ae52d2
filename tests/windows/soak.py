"""Many connections in one Windows process: what is left of handles and memory.

    python soak.py '{"rounds": 1000, "cert": ..., "root": ...}'

Prints one line of JSON: handles and resident bytes after a third of the rounds
(what is made once is there by then) and after all of them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import sys
import threading
from ctypes import wintypes
from pathlib import Path
from typing import Any

import twapi_tls


class Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS_EX."""

    _fields_ = [
        ("cb", wintypes.DWORD),
        ("PageFaultCount", wintypes.DWORD),
        *[
            (name, ctypes.c_size_t)
            for name in (
                "PeakWorkingSetSize",
                "WorkingSetSize",
                "QuotaPeakPagedPoolUsage",
                "QuotaPagedPoolUsage",
                "QuotaPeakNonPagedPoolUsage",
                "QuotaNonPagedPoolUsage",
                "PagefileUsage",
                "PeakPagefileUsage",
                "PrivateUsage",
            )
        ],
    ]


def count() -> dict[str, int]:
    """Bytes in memory, and the handle that the next object gets: the lowest
    that is free, so that it rises with every handle that is left behind.
    (Wine counts neither handles, which ``open`` is on Windows, nor private bytes.)"""
    gc.collect()
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    for name in ("GetCurrentProcess", "CreateEventW"):
        getattr(kernel, name).restype = wintypes.HANDLE
    memory = Counters()
    memory.cb = ctypes.sizeof(memory)
    kernel.K32GetProcessMemoryInfo(
        wintypes.HANDLE(kernel.GetCurrentProcess()), ctypes.byref(memory), memory.cb
    )
    events = [kernel.CreateEventW(None, True, False, None) for _ in range(8)]
    for event in events:
        kernel.CloseHandle(wintypes.HANDLE(event))
    opened = wintypes.DWORD()
    kernel.GetProcessHandleCount(wintypes.HANDLE(kernel.GetCurrentProcess()), ctypes.byref(opened))
    return {
        "handles": max(events) // 4,
        "open": opened.value,
        "resident": memory.WorkingSetSize,
    }


def store(path: str) -> Any:
    return twapi_tls.cert_temporary_store(pem=Path(path).read_bytes())


def main() -> None:
    config = json.loads(sys.argv[1])
    rounds = config["rounds"]
    theirs = twapi_tls.sspi_acquire_credentials(
        role="server",
        credentials=twapi_tls.sspi_schannel_credentials(
            certificates=[c for c in store(config["cert"]) if c.has_private_key()]
        ),
    )
    ours = twapi_tls.sspi_acquire_credentials(
        role="client",
        credentials=twapi_tls.sspi_schannel_credentials(rootstore=store(config["root"])),
    )
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def serve() -> None:
        for _ in range(rounds):
            sock, _ = listener.accept()
            with twapi_tls.starttls(sock, server=True, credentials=theirs) as channel:
                channel.sendall(channel.recv(1000))
                channel.recv(1)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    before: dict[str, int] = {}
    for number in range(rounds):
        if number == rounds // 3:
            before = count()
        with twapi_tls.tls_socket(
            "127.0.0.1", port, peersubject="localhost", credentials=ours
        ) as channel:
            channel.sendall(b"x" * 1000)
            got = 0
            while got < 1000:
                got += len(channel.recv(1000 - got))
    server.join(30)
    print(json.dumps({"before": before, "after": count()}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
