"""Many clients of one echo server, in a process of their own.

``stress_clients.py PORT ROOT COUNT ACTIVE ROUNDS``, driven by stress.py: a
word a line on stdin, the seconds that it took on stdout.

open    COUNT connections, half of them TLS 1.2, each asked once
active  ACTIVE of them at once, ROUNDS times: a message of its own on each,
        before the first answer is read
all     each of the COUNT is asked once more
close   all of them
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import twapi_tls as tls

LIMIT = 30.0
SIZE = 1000


def message(number: int, turn: int) -> bytes:
    return b"%d of %d;" % (turn, number) * (SIZE // 8)


class Clients:
    def __init__(self, port: str, root: str, count: str, active: str, rounds: str) -> None:
        self.port, self.count = int(port), int(count)
        self.active, self.rounds = int(active), int(rounds)
        anchors = tls.cert_temporary_store(pem=Path(root).read_bytes())
        self.credentials = [
            tls.sspi_acquire_credentials(
                role="client",
                credentials=tls.sspi_schannel_credentials(rootstore=anchors, protocols=[version]),
            )
            for version in ("tls1.2", "tls1.3")
        ]
        self.channels: list[tls.TlsChannel] = []
        self.turn = 0

    def ask(self, count: int) -> None:
        """A message on each of the first ``count``, then each one's answer."""
        self.turn += 1
        for number, channel in enumerate(self.channels[:count]):
            channel.sendall(message(number, self.turn))
        for number, channel in enumerate(self.channels[:count]):
            want = message(number, self.turn)
            if channel.read(len(want)) != want:
                raise SystemExit(f"connection {number} was answered what it did not ask")

    def do_open(self) -> None:
        for number in range(self.count):
            self.channels.append(
                tls.tls_socket(
                    *("127.0.0.1", self.port),
                    peersubject="localhost",
                    credentials=self.credentials[number % 2],
                    timeout=LIMIT,
                )
            )
        self.ask(self.count)

    def do_active(self) -> None:
        for _ in range(self.rounds):
            self.ask(self.active)

    def do_all(self) -> None:
        self.ask(self.count)

    def do_close(self) -> None:
        for channel in self.channels:
            channel.close()
        self.channels.clear()


def main(*arguments: str) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    clients = Clients(*arguments)
    for line in sys.stdin:
        started = time.perf_counter()
        getattr(clients, f"do_{line.strip()}")()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
