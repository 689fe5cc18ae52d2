"""C's way and Python's, step by step: the same conversation, the same outcomes.

Of two connections with one script, one goes the direct way (py_direct.c)
wherever that is open, the other never: what it runs over is its session, but
behind an object that C does not know. After every step both tell the same:
what the call gave or raised, with all that the exception knows, and how the
channel stands.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from typing import Any

import pytest
from certs import Pki
from channels import NOBODYS, tls_pair

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(
        not hasattr(socket, "AF_UNIX"),
        reason="what was sent over TCP has not yet arrived",
    ),
]

STEPS = 60


class Unknown:
    """A session that is none to C: every call takes Python's way."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def outcome(step: Any, here: Any, there: Any) -> Any:
    """What it gave, or all that its exception tells."""
    try:
        return step(here, there)
    except Exception as error:
        told = {
            name: getattr(error, name, None)
            for name in (
                "errno",
                "code",
                "name",
                "alert_sent",
                "alert_received",
                "errorcode",
                "written",
                "characters_written",
            )
        }
        context = error.__context__
        return type(error), str(error), told, type(context)


def standing(channel: Any) -> Any:
    """How it stands, by all that may be asked."""
    return {
        "state": channel.state,
        "eof": channel.eof(),
        "blocked": channel.blocked(),
        "output": channel.pending("output"),
        "closed": channel.closed,
        "error": repr(channel.cget("error")),
        "open": channel.fileno() >= 0,
        "readable": channel._event_readable(),
        "rest": channel._event_rest(),
    }


class Script:
    """Steps by chance, the same for each connection."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def some(self, most: int) -> int:
        return self.chance.choice([0, 1, 2, 7, 100, 1000, most])

    def text(self) -> bytes:
        pieces = [b"", b"a", b"line\n", b"two\r\nlines\n", "äß\n".encode(), b"\xff"]
        return self.chance.choice(pieces)

    def step(self) -> Any:
        """(what, for whom it is done)"""
        chance = self.chance
        name = chance.choice(
            ["recv", "recv", "recv_into", "send", "sendall", "hear", "say", "say", "other"]
        )
        if name == "recv":
            n = self.some(200_000)
            return name, lambda here, there: here.recv(n)
        if name == "recv_into":
            n, room = self.some(1000), self.some(30_000)
            return name, lambda here, there: received_into(here, room, n)
        if name in ("send", "sendall"):
            data = chance.choice([bytes, bytearray, memoryview])(
                self.text() * chance.choice([1, 1, 1, 1000])
            )
            return name, lambda here, there: getattr(here, name)(data)
        if name == "hear":
            return name, lambda here, there: there.recv(1 << 20)
        if name == "say":
            data = bytes(self.text() * chance.choice([1, 1, 400, 8000]))
            return name, lambda here, there: there.send(data)
        return self.other()

    def other(self) -> Any:
        chance = self.chance
        name = chance.choice(
            [
                "readline",
                "read",
                "gets",
                "write",
                "puts",
                "flush",
                "pending",
                "options",
                "copy",
                "there ends",
                "here ends",
                "there aborts",
                "garbage",
                "close",
            ]
            + ["options", "write", "readline"] * 4
        )
        if name in ("readline", "read"):
            n = chance.choice([-1, 0, 3, 5000])
            return name, lambda here, there: getattr(here, name)(n)
        if name in ("write", "puts"):
            data: Any = self.text()
            if chance.random() < 0.3:
                data = data.decode("latin-1")
            return name, lambda here, there: getattr(here, name)(data)
        if name == "options":
            options: dict[str, Any] = chance.choice(
                [
                    {"encoding": "utf-8"},
                    {"encoding": None, "translation": "binary"},
                    {"translation": ("auto", "crlf")},
                    {"eofchar": "a"},
                    {"eofchar": ""},
                    {"buffering": "full"},
                    {"buffering": "line"},
                    {"buffering": "none"},
                    {"ragged_eof": "eof"},
                    {"ragged_eof": "error"},
                ]
            )
            return f"{name} {options}", lambda here, there: here.configure(**options)
        calls: dict[str, Any] = {
            "gets": lambda here, there: here.gets(),
            "flush": lambda here, there: here.flush(),
            "pending": lambda here, there: here.pending(),
            "copy": lambda here, there: here.copy_to(there, 10),
            "there ends": lambda here, there: there.half_close(),
            "here ends": lambda here, there: here.half_close(),
            "there aborts": lambda here, there: there.abort(),
            "garbage": garbage,
            "close": lambda here, there: here.close(),
        }
        return name, calls[name]


def received_into(here: Any, room: int, n: int) -> Any:
    buffer = bytearray(room)
    return here.recv_into(buffer, n), bytes(buffer)


def garbage(here: Any, there: Any) -> Any:
    with there._socket() as sock:
        return sock.send(NOBODYS, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("seed", range(12))
def test_both_ways_mean_the_same(pki: Pki, version: str, seed: int) -> None:
    with ExitStack() as stack:
        # Not TCP: what was sent has arrived, on both connections.
        ends = [
            stack.enter_context(tls_pair(pki, version=version, below=socket.socketpair))
            for _ in range(2)
        ]
        for here, there in ends:
            here.settimeout(0)
            there.settimeout(0)
        other = ends[1][0]
        other._io = Unknown(other._io)
        script = Script(seed)
        done: list[str] = []
        for _ in range(STEPS):
            name, step = script.step()
            done.append(name)
            told = [(outcome(step, here, there), standing(here)) for here, there in ends]
            assert told[0] == told[1], done
