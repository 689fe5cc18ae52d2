"""The long runs: ``make stress``, or ``python tests/stress.py [--only NAME] ...``.

rounds      connect, transfer, close, ten thousand times: descriptors and memory
            are where they were
positions   a connection over real sockets cut, doubled and flipped at each byte
            of either direction: it ends, with an error or with the right data
slow        peers that say nothing, or read nothing: bounded time and memory
many        many open connections at once: what each costs, that each works, and
            many of them at the same time
handshakes  a million of them in memory, of all kinds, refused ones too: memory is
            where it was after the first twentieth

Prints what it measured; exits with 1 when a promise is not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import hashlib
import os
import resource
import select
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, os.fspath(Path(__file__).resolve().parent))

from certs import Pki, make_pki
from platforms import SLOWER

import twapi_tls as tls

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
LIMIT = 10.0 * SLOWER
MEGABYTE = 1_000_000
RUNS = ("rounds", "positions", "slow", "many", "handshakes")
# What a run may add: the allocator's own unrest, seen at 0.1 to 0.7 MB. Without
# the GIL Python's is another, seen at 1 to 4 MB where no object was left.
GROWTH = (6 if sysconfig.get_config_var("Py_GIL_DISABLED") else 2) * MEGABYTE
SANITIZED = "TWAPI_TLS_SANITIZED" in os.environ


class Broken(AssertionError):
    """A promise that was not kept."""


def check(condition: object, text: str) -> None:
    if not condition:
        raise Broken(text)


# --- measures


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def memory() -> int:
    """Resident bytes, with what is free given back first."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def megabytes(amount: int) -> str:
    return f"{amount / MEGABYTE:+.2f} MB"


class Watch:
    """Descriptors, threads and memory since it was made."""

    def __init__(self) -> None:
        self.threads = threading.active_count()
        self.descriptors = descriptors()
        self.memory = memory()

    def settle(self, patience: float = 1.0) -> None:
        """Waits, LIMIT times ``patience``, for threads and descriptors to be as before."""
        end = time.monotonic() + LIMIT * patience
        tick = threading.Event()
        while time.monotonic() < end:
            if descriptors() <= self.descriptors and threading.active_count() <= self.threads:
                return
            gc.collect()
            tick.wait(0.02)

    def judge(self, growth: int = GROWTH) -> str:
        """A line about the difference; Broken if there is one that counts."""
        self.settle()
        more = descriptors() - self.descriptors
        grown = memory() - self.memory
        text = f"descriptors {more:+d}, memory {megabytes(grown)}"
        check(more <= 0, f"descriptors leaked: {text}")
        if SANITIZED:  # its quarantine keeps what was freed
            return text + " (not judged: a sanitizer runs)"
        check(grown <= growth, f"memory grew by more than {megabytes(growth)}: {text}")
        return text


# --- both ends


def credentials(pki: Pki, role: str, **options: Any) -> tls.Credentials:
    if role == "client":
        root = tls.cert_temporary_store(pem=pki.root_pem)
        config = tls.sspi_schannel_credentials(rootstore=root, **options)
    else:
        with tls.cert_temporary_store(pem=pki.server.combined.read_bytes()) as store:
            mine = [cert for cert in tls.cert_store_iterate(store) if cert.has_private_key()]
            config = tls.sspi_schannel_credentials(certificates=mine, **options)
    return tls.sspi_acquire_credentials(role=role, credentials=config)


@contextmanager
def echo_server(pki: Pki, **options: Any) -> Iterator[int]:
    """An echo over events, in a thread with a loop of its own; its port."""
    started = threading.Event()
    state: dict[str, Any] = {}

    def accepted(channel: Any, address: str, port: int) -> None:
        channel.configure(blocking=False)

        def readable() -> None:
            try:
                data = channel.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                channel.sendall(data)
            else:
                channel.close()

        channel.event("readable", readable)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)  # handshakes that fail are wanted here
        over = asyncio.Event()
        listener = tls.tls_socket(
            0,
            server=accepted,
            credentials=credentials(pki, "server"),
            myaddr=HOST,
            **options,
        )
        state.update(loop=loop, over=over, port=listener.getsockname()[1])
        started.set()
        await over.wait()
        listener.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    check(started.wait(LIMIT) and "port" in state, "the server does not start")
    try:
        yield state["port"]
    finally:
        state["loop"].call_soon_threadsafe(state["over"].set)
        thread.join(LIMIT)


def exchange(channel: Any, data: bytes) -> None:
    channel.sendall(data)
    back = b""
    while len(back) < len(data):
        piece = channel.recv(65536)
        check(piece, "the echo ended early")
        back += piece
    check(back == data, "the echo is not what was sent")


# --- rounds


def rounds(pki: Pki, count: int) -> str:
    """Connect, transfer, close; half of them TLS 1.2, sessions resumed or not."""
    data = hashlib.shake_256(b"round").digest(20_000)
    kinds = [
        credentials(pki, "client", protocols=[version], disablereconnects=off)
        for version in ("tls1.2", "tls1.3")
        for off in (False, True)
    ]

    def play(port: int, number: int, kinds: list[tls.Credentials] = kinds) -> None:
        for one in range(number):
            with tls.tls_socket(
                HOST,
                port,
                peersubject="localhost",
                credentials=kinds[one % len(kinds)],
                timeout=LIMIT,
            ) as channel:
                exchange(channel, data)

    with echo_server(pki) as port:
        # Pools and caches fill; the server's cache of sessions without a
        # ticket (TLS 1.2) holds 1024.
        if count >= 5000:
            play(port, 1100, kinds[1:2])
        play(port, max(500, count // 20))
        watch = Watch()
        started = time.perf_counter()
        play(port, count)
        seconds = time.perf_counter() - started
        verdict = watch.judge()
    return f"{count} rounds in {seconds:.1f} s ({count / seconds:.0f}/s): {verdict}"


# --- positions

MESSAGE = b"what the client says, which comes back"
# How long an end may wait for bytes that a spoiled length promises.
PATIENCE = 0.3

Spoil = Callable[[bytes, int], bytes]


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def double(data: bytes, at: int) -> bytes:
    return data[:at] + data[at : at + 1] + data[at:]


class Case:
    """One connection through a relay that spoils one byte."""

    def __init__(
        self, client: tls.Credentials, server: tls.Credentials, patience: float = PATIENCE
    ) -> None:
        self.patience = patience
        self.credentials = {"client": client, "server": server}
        self.received = {"client": b"", "server": b""}
        self.errors: list[BaseException] = []
        self.passed = {"client": 0, "server": 0}

    def _client(self, sock: socket.socket) -> None:
        with tls.starttls(
            sock, peersubject="localhost", credentials=self.credentials["client"]
        ) as channel:
            channel.sendall(MESSAGE)
            while len(self.received["client"]) < len(MESSAGE):
                data = channel.recv(4096)
                if not data:
                    break
                self.received["client"] += data

    def _server(self, sock: socket.socket) -> None:
        with tls.starttls(sock, server=True, credentials=self.credentials["server"]) as channel:
            while data := channel.recv(4096):
                self.received["server"] += data
                channel.sendall(data)

    def _guarded(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        try:
            sock.settimeout(self.patience)
            work(sock)
        except OSError as error:
            self.errors.append(error)
        except BaseException as error:
            self.errors.append(Broken(f"not an OSError: {error!r}"))

    def play(self, source: str = "", at: int = -1, kind: str = "") -> None:
        """``kind`` of harm to byte ``at`` of what ``source`` sends."""
        client, near = socket.socketpair()
        far, server = socket.socketpair()
        threads = [
            threading.Thread(target=self._guarded, args=(self._client, client), daemon=True),
            threading.Thread(target=self._guarded, args=(self._server, server), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            self._relay(near, far, source, at, kind)
        finally:
            near.close()
            far.close()
            for thread in threads:
                thread.join(LIMIT)
                check(not thread.is_alive(), f"{kind} at {at} of the {source}: it hangs")
        for error in self.errors:
            if isinstance(error, Broken):
                raise error
        for end in ("client", "server"):
            check(
                MESSAGE.startswith(self.received[end]),
                f"{kind} at {at} of the {source}: the {end} got what nobody sent",
            )

    def _relay(
        self, near: socket.socket, far: socket.socket, source: str, at: int, kind: str
    ) -> None:
        ways = {near: ("client", far), far: ("server", near)}
        end = time.monotonic() + LIMIT
        while ways and time.monotonic() < end:
            for ready in select.select(list(ways), [], [], LIMIT)[0]:
                name, other = ways[ready]
                try:
                    data = ready.recv(65536)
                except OSError:
                    data = b""
                start, self.passed[name] = self.passed[name], self.passed[name] + len(data)
                cut = False
                if name == source and start <= at < start + len(data):
                    if kind == "cut":
                        data, cut = data[: at - start], True
                    else:
                        data = (flip if kind == "flip" else double)(data, at - start)
                with suppress(OSError):
                    if data:
                        other.sendall(data)
                    if cut or not data:
                        other.shutdown(socket.SHUT_WR)
                if cut:
                    return
                if not data:
                    del ways[ready]


def positions(pki: Pki, step: int) -> str:
    """Each kind of harm to every ``step``-th byte, both directions and versions."""
    told: list[str] = []
    watch: Watch | None = None
    started = time.perf_counter()
    for version in ("tls1.2", "tls1.3"):
        client = credentials(pki, "client", protocols=[version], disablereconnects=True)
        server = credentials(pki, "server", disablereconnects=True)
        clean = Case(client, server, LIMIT)
        clean.play()
        check(not clean.errors, f"{version}: unspoiled, it fails: {clean.errors}")
        check(clean.received["client"] == MESSAGE, f"{version}: unspoiled, data is missing")
        if watch is None:
            for at in range(50):
                Case(client, server).play("client", at, "flip")
            watch = Watch()
        cases = errors = 0
        for source in ("client", "server"):
            for at in range(0, clean.passed[source], step):
                for kind in ("cut", "flip", "double"):
                    case = Case(client, server)
                    case.play(source, at, kind)
                    whole = case.received["client"] == MESSAGE
                    check(
                        case.errors or whole,
                        f"{version}, {kind} at {at} of the {source}: no error, and no data",
                    )
                    cases += 1
                    errors += bool(case.errors)
        told.append(f"{version} {cases} cases, {errors} errors")
    assert watch is not None
    seconds = time.perf_counter() - started
    return f"{'; '.join(told)}; {seconds:.0f} s; {watch.judge(4 * MEGABYTE)}"


# --- slow peers


def slow(pki: Pki, count: int) -> str:
    """Peers that connect and say nothing, or little; one that does not read."""
    with echo_server(pki, handshake_timeout=1.0) as port:
        with tls.tls_socket(
            HOST, port, peersubject="localhost", credentials=credentials(pki, "client")
        ) as channel:
            exchange(channel, b"warm")
        watch = Watch()
        started = time.perf_counter()
        silent = [socket.create_connection((HOST, port), LIMIT) for _ in range(count)]
        for number, sock in enumerate(silent):
            sock.sendall(b"\x16\x03\x01\x02\x00\x01"[: number % 7])
        for sock in silent:
            with suppress(ConnectionError):
                while sock.recv(4096):  # an alert, perhaps; then the end
                    pass
            sock.close()
        seconds = time.perf_counter() - started
        check(seconds < 1.0 + LIMIT / 2, f"silent peers held on for {seconds:.1f} s")
        text = f"{count} silent peers gone in {seconds:.1f} s: {watch.judge(4 * MEGABYTE)}"
        # One that does not read: writing to it ends by the timeout. An interpreter
        # without the GIL keeps freed memory for itself, so the data is made before.
        data = bytes(200 * MEGABYTE)
        before = memory()
        with socket.create_server((HOST, 0)) as listener:
            plain = socket.create_connection(listener.getsockname(), LIMIT)
            accepted, _ = listener.accept()
            accepted.settimeout(LIMIT)
            ends: list[Any] = []
            server = credentials(pki, "server")
            thread = threading.Thread(
                target=lambda: ends.append(tls.starttls(accepted, server=True, credentials=server))
            )
            thread.start()
            channel = tls.starttls(
                plain, peersubject="localhost", credentials=credentials(pki, "client")
            )
            thread.join(LIMIT)
            channel.settimeout(0.5)
            started = time.perf_counter()
            try:
                channel.sendall(data)
            except TimeoutError:
                seconds = time.perf_counter() - started
            else:
                raise Broken("200 MB went to a peer that does not read")
            grown = memory() - before
            channel.abort()
            ends[0].abort()
        check(seconds < 2.0, f"a send with a timeout of 0.5 s took {seconds:.1f} s")
        check(SANITIZED or grown < 8 * MEGABYTE, f"writing to it took {megabytes(grown)}")
    return f"{text}; a peer that does not read: {seconds:.1f} s, {megabytes(grown)}"


# --- many


def room_for(count: int) -> int:
    """How many connections this process may hold, one end of each, up to
    ``count``; the limit of descriptors is raised as far as it may be."""
    spare = 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard - spare)
    if soft < count + spare:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + spare, hard))
    return count


def many(pki: Pki, count: int, active: int) -> str:
    """Open connections, their clients in another process: what each costs,
    that all are served, and some of them at once."""
    asked, count, rounds = count, room_for(count), 10
    active = min(active, count)
    with echo_server(pki) as port:
        arguments = (str(port), os.fspath(pki.root), str(count), str(active), str(rounds))
        with subprocess.Popen(
            [sys.executable, os.fspath(HERE / "stress_clients.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as clients:
            assert clients.stdin is not None and clients.stdout is not None

            def tell(word: str) -> float:
                assert clients.stdin is not None and clients.stdout is not None
                clients.stdin.write(f"{word}\n")
                clients.stdin.flush()
                line = clients.stdout.readline()
                check(line, f"the clients failed at {word!r}")
                return float(line)

            def wave() -> tuple[float, float, float, int]:
                before = memory()
                opened = tell("open")
                held = memory() - before
                at_once, total = tell("active"), tell("all")
                tell("close")
                return opened, at_once, total, held

            start = Watch()
            opened, at_once, total, held = wave()
            start.settle(patience=10)
            # The heap that the first wave grew serves the second.
            watch = Watch()
            wave()
            watch.settle(patience=10)
            verdict = watch.judge(max(held // 10, GROWTH))
            clients.stdin.close()
            check(clients.wait(LIMIT) == 0, "the clients failed at the end")
    short = "" if count == asked else f" (descriptors for {asked} are not allowed here)"
    return (
        f"{count} open and answered{short}: {count / opened:,.0f} a second, "
        f"{held / count / 1024:.1f} KiB each; {active} at once: "
        f"{active * rounds / at_once:,.0f} messages a second; all again in {total:.1f} s; "
        f"after a second wave: {verdict}"
    )


# --- handshakes


class Pair:
    """Both ends of connections in memory."""

    def __init__(self, pki: Pki, asks: bool = False, refused: bool = False, **options: Any) -> None:
        self.asks, self.refused = asks, refused
        self.server = credentials(pki, "server", **options)
        if asks:
            mine = tls.cert_temporary_store(pem=pki.client.combined.read_bytes())
            options["certificates"] = mine
        self.client = credentials(pki, "client", **options)

    def once(self) -> None:
        """A handshake, and a message each way; or the refusal."""
        name = "elsewhere.example" if self.refused else "localhost"
        client = tls.sspi_client_context(self.client, name)
        _, output, _ = tls.sspi_step(client)
        server = tls.sspi_server_context(self.server, output, mutualauth=self.asks)
        status = {client: "continue", server: "continue"}
        at, other, data = server, client, b""
        try:
            while True:
                if status[at] == "continue":
                    status[at], data, rest = tls.sspi_step(at, data)
                    check(not rest, "bytes were left over")
                elif data:
                    tls.sspi_decrypt_stream(at, data)  # tickets
                    data = b""
                at, other = other, at
                if set(status.values()) == {"done"} and not data:
                    break
        except tls.TLSVerificationError:
            check(self.refused, "a good server was refused")
        else:
            check(not self.refused, "a server of another name was accepted")
            check(server.decrypt(client.encrypt(b"to")) == b"to", "other data came")
            check(client.decrypt(server.encrypt(b"fro")) == b"fro", "other data came")
        client.delete()
        server.delete()


def handshakes(pki: Pki, count: int) -> str:
    """Of both versions, with and without a client's certificate, refused ones,
    each kind once in sixteen; the rest is resumed."""
    kinds = [
        Pair(pki, protocols="tls1.3", disablereconnects=True),
        Pair(pki, protocols="tls1.2", disablereconnects=True),
        Pair(pki, protocols="tls1.3", asks=True),
        Pair(pki, protocols="tls1.2", asks=True),
        Pair(pki, refused=True),
    ]
    resumed = [Pair(pki, protocols="tls1.3"), Pair(pki, protocols="tls1.2")]
    pairs = [resumed[at % 2] for at in range(16)]
    pairs[1:15:3] = kinds

    def some(number: int) -> None:
        for at in range(number):
            pairs[at % len(pairs)].once()

    first = max(count // 20, len(pairs))
    some(first)
    watch = Watch()
    begin = time.monotonic()
    some(count - first)
    pace = (count - first) / (time.monotonic() - begin)
    return f"{count:,}: {pace:.0f} a second; {watch.judge()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=RUNS, action="append")
    parser.add_argument("--rounds", type=int, default=10_000, metavar="N")
    parser.add_argument("--step", type=int, default=1, metavar="N", help="every N-th byte")
    parser.add_argument("--silent", type=int, default=500, metavar="N", help="silent peers")
    parser.add_argument("--many", type=int, default=10_000, metavar="N", help="connections")
    parser.add_argument("--active", type=int, default=2_000, metavar="N", help="of them at once")
    parser.add_argument("--handshakes", type=int, default=1_000_000, metavar="N")
    options = parser.parse_args()
    runs: dict[str, Callable[[Pki], str]] = {
        "rounds": lambda pki: rounds(pki, options.rounds),
        "positions": lambda pki: positions(pki, options.step),
        "slow": lambda pki: slow(pki, options.silent),
        "many": lambda pki: many(pki, options.many, options.active),
        "handshakes": lambda pki: handshakes(pki, options.handshakes),
    }
    print(f"twapi_tls {tls.__version__} on {tls.engine}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        pki = make_pki(Path(folder))
        for name, run in runs.items():
            if options.only and name not in options.only:
                continue
            try:
                print(f"{name:10}  {run(pki)}", flush=True)
            except Broken as error:
                failed += 1
                print(f"{name:10}  NOT KEPT: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
