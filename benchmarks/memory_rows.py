"""Rows without sockets: sealing, opening, handshakes, import time."""

from __future__ import annotations

import itertools
import os
import shlex
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ends import PIECE, Ours, Ssl, SslEnd
from measure import Row, Run, compare

import twapi_tls as tls

HERE = Path(__file__).resolve().parent
MB = 1e6


def timed(work: Callable[[], int], seconds: float) -> float:
    """Units of work per second of this process's CPU, over ``seconds``.

    CPU time, since nothing here waits: what other programs take from the
    machine is not ours.
    """
    done = 0
    began = time.process_time()
    end = began + seconds
    while True:
        done += work()
        now = time.process_time()
        if now >= end:
            return done / (now - began)


def pkg_config(*arguments: str) -> str:
    """What it answers, by the command that PKG_CONFIG names."""
    command = [*shlex.split(os.environ.get("PKG_CONFIG", "pkg-config")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class RawEvp:
    """EVP alone, in place on records of 16 KiB: no TLS can be faster."""

    def __init__(self, build: Path) -> None:
        version = pkg_config("--modversion", "libcrypto").strip()
        self.program = build / f"raw_evp-{version}"
        source = HERE / "raw_evp.c"
        if not self.program.exists() or self.program.stat().st_mtime < source.stat().st_mtime:
            build.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                ["cc", "-std=c11", "-D_GNU_SOURCE=1", "-O2", str(source), "-o", str(self.program)]
                + shlex.split(pkg_config("--cflags", "--libs", "libcrypto")),
                check=True,
            )

    def run(self, direction: str, cipher: str, seconds: float, size: int = 16384) -> float:
        """MB a second of records with ``size`` bytes of data."""
        answer = subprocess.run(
            [str(self.program), direction, cipher, str(seconds), str(size)],
            capture_output=True,
            text=True,
            check=True,
        )
        return float(answer.stdout) / MB

    def both(self, cipher: str, size: int, seconds: float) -> float:
        """MB a second of messages sealed and opened, in records of 16 KiB at most."""
        size = min(size, 16384)
        return 1 / sum(1 / self.run(way, cipher, seconds / 2, size) for way in ("seal", "open"))


def seal_ours(context: tls.SspiContext, data: bytes) -> bytes:
    return tls.sspi_encrypt_stream(context, data)


def seal_ssl(end: SslEnd, data: bytes) -> bytes:
    end.object.write(data)
    return end.outgoing.read()


def open_ours(context: tls.SspiContext, data: bytes, into: bytearray) -> int:
    return context.decrypt_into(data, into)


def open_ssl(end: SslEnd, data: bytes, into: bytearray) -> int:
    end.incoming.write(data)
    total = 0
    read = end.object.read
    view = memoryview(into)
    while end.incoming.pending or end.object.pending():
        try:
            total += int(read(len(into), view[total:]))
        except ssl.SSLWantReadError:
            break
    return total


def bulk_runs(
    ours: Ours, peer: Ssl, raw: RawEvp | None, seal: bool, seconds: float, cipher: str
) -> dict[str, Run]:
    """Megabytes per second, 256 KiB per call."""
    data = bytes(PIECE)
    sender, receiver = ours.memory_pair()
    ssl_sender, ssl_receiver = peer.memory_pair()
    into = bytearray(PIECE)

    def seal_run_ours() -> float:
        return timed(lambda: (seal_ours(sender, data), PIECE)[1], seconds) / MB

    def seal_run_ssl() -> float:
        return timed(lambda: (seal_ssl(ssl_sender, data), PIECE)[1], seconds) / MB

    def open_run(seal: Callable[[], bytes], open_: Callable[[bytes], int]) -> float:
        spent, done = 0.0, 0
        while spent < seconds:
            # Sealed outside the clock, a batch at a time.
            batch = [seal() for _ in range(4)]
            began = time.process_time()
            for records in batch:
                done += open_(records)
            spent += time.process_time() - began
        return done / spent / MB

    def open_run_ours() -> float:
        return open_run(lambda: seal_ours(sender, data), lambda d: open_ours(receiver, d, into))

    def open_run_ssl() -> float:
        return open_run(
            lambda: seal_ssl(ssl_sender, data), lambda d: open_ssl(ssl_receiver, d, into)
        )

    runs: dict[str, Run] = (
        {"ours": seal_run_ours, "peer": seal_run_ssl}
        if seal
        else {"ours": open_run_ours, "peer": open_run_ssl}
    )
    if raw is not None:
        runs["limit"] = lambda: raw.run("seal" if seal else "open", cipher, seconds)
    return runs


def message_runs(ours: Ours, peer: Ssl, size: int, seconds: float) -> dict[str, Run]:
    """Messages sealed and opened per second."""
    data = bytes(size)
    sender, receiver = ours.memory_pair()
    ssl_sender, ssl_receiver = peer.memory_pair()
    encrypt, decrypt = sender.encrypt, receiver.decrypt

    def ours_work() -> int:
        for _ in range(200):
            decrypt(encrypt(data))
        return 200

    write, take = ssl_sender.object.write, ssl_sender.outgoing.read
    feed, read = ssl_receiver.incoming.write, ssl_receiver.object.read

    def ssl_work() -> int:
        for _ in range(200):
            write(data)
            feed(take())
            read(size)
        return 200

    return {"ours": lambda: timed(ours_work, seconds), "peer": lambda: timed(ssl_work, seconds)}


STRANGERS = 64
"""Sets of anchors that take turns, more than paths are remembered."""


def handshake_runs(ours: Ours, peer: Ssl, kind: str, seconds: float) -> dict[str, Run]:
    """Handshakes per second, both ends, chain and name verified.

    kind "met": a client's credentials as long-lived as ssl's context is, and
    no resumption. "new": the server's chain was never verified before with
    these anchors. "resumed".
    """

    def unresumed(roots: tls.Store | None) -> tls.Credentials:
        return tls.sspi_acquire_credentials(
            role="client", credentials=ours.new_client_config(roots)._replace(resume=False)
        )

    met = unresumed(None)
    new = itertools.cycle([unresumed(ours.new_roots()) for _ in range(STRANGERS)])
    _ = ours.memory_pair()
    state: dict[str, ssl.SSLSession | None] = {"session": None}

    def ours_met() -> int:
        ours.memory_pair(met)
        return 1

    def ours_new() -> int:
        ours.memory_pair(next(new))
        return 1

    def ours_resumed() -> int:
        client, _ = ours.memory_pair()
        if client.facts().resumed is not True:
            raise RuntimeError("our session was not resumed")
        return 1

    def ssl_full() -> int:
        peer.memory_pair()
        return 1

    def ssl_resumed() -> int:
        client, _ = peer.memory_pair(state["session"])
        if state["session"] is not None and not client.object.session_reused:
            raise RuntimeError("ssl's session was not resumed")
        state["session"] = client.object.session
        return 1

    ssl_resumed()
    work = {"met": ours_met, "new": ours_new, "resumed": ours_resumed}[kind]
    ssl_work = ssl_resumed if kind == "resumed" else ssl_full
    return {"ours": lambda: timed(work, seconds), "peer": lambda: timed(ssl_work, seconds)}


def import_runs() -> dict[str, Run]:
    """Imports per second of CPU time, each in a fresh interpreter, compiled before.

    Without ``site``: an editable install's finder loads half of what either
    needs before the clock runs.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(HERE.parent)
    environment["PYTHONPYCACHEPREFIX"] = str(HERE.parent / "build" / "bench" / "pycache")

    def run(module: str) -> float:
        program = (
            f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
        )
        answer = subprocess.run(
            [sys.executable, "-S", "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        return 1 / float(answer.stdout)

    return {
        # ours loads its modules at their first use: what a client needs
        "ours": lambda: run("twapi_tls; twapi_tls.tls_socket"),
        "peer": lambda: run("ssl"),
    }


def rows(
    ours: Ours,
    peer: Ssl,
    raw: RawEvp | None,
    cipher: str,
    quick: bool,
    wanted: Callable[[str], bool],
) -> list[Row]:
    """All rows of this file that are wanted."""
    seconds = 0.1 if quick else 0.4
    pairs = 5 if quick else 15
    out: list[Row] = []

    def add(row: Row, make: Callable[[], dict[str, Run]], count: int = pairs) -> None:
        if wanted(row.name):
            out.append(compare(row, make(), count))

    evp = "raw EVP in place"
    add(
        Row("encrypt in memory, 256 KiB calls", "ssl MemoryBIO", evp, "MB/s", 1.25),
        lambda: bulk_runs(ours, peer, raw, True, seconds, cipher),
    )
    add(
        Row("decrypt in memory, 256 KiB calls", "ssl MemoryBIO", evp, "MB/s", 1.30),
        lambda: bulk_runs(ours, peer, raw, False, seconds, cipher),
    )
    for size, name, bar in ((64, "64 B", 3.3), (1024, "1 KiB", 2.3), (16384, "16 KiB", None)):
        add(
            Row(f"seal + open, {name} messages", "ssl MemoryBIO", "", "messages/s", bar),
            lambda size=size: message_runs(ours, peer, size, seconds),  # type: ignore[misc]
        )
    third = "crypto proper: a third"
    for name, limit, bar, kind in (
        ("full handshake, both ends", third, 1.1, "met"),
        ("full handshake, a server never met before", third, 1.1, "new"),
        ("resumed handshake, both ends", "", 1.4, "resumed"),
    ):
        add(
            Row(name, "ssl MemoryBIO", limit, "1/s", bar),
            lambda kind=kind: handshake_runs(ours, peer, kind, seconds),  # type: ignore[misc]
        )
    add(Row("import time", "import ssl", "", "1/s", 1.0), import_runs, 7 if quick else 21)
    return out
