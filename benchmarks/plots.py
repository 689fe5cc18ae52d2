"""Pictures of throughput: against the size of messages, and of connections.

``make bench BENCH_ARGS=--plots`` measures and draws docs/throughput-*.png.
Each point is the median of some turns, the band behind it their quartiles;
the contenders take turns at each point (measure.py).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ends import Engine, Ours, Plain, Ssl
from measure import Run, quartiles, take_turns
from memory_rows import MB, RawEvp, open_ssl, timed
from socket_rows import epoll_run, taken_by, transfer

SIZES = [16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576]
CONNECTIONS = [1, 4, 16, 64, 200, 500]

# Okabe and Ito's colours, which no colour-blindness makes equal; the marks
# tell the lines apart in grey.
STYLES: dict[str, dict[str, Any]] = {
    "twapi_tls": {"color": "#0072B2", "marker": "o", "linewidth": 2.2, "zorder": 4},
    "ssl": {"color": "#D55E00", "marker": "s", "zorder": 3},
    "plain sockets": {"color": "#555555", "marker": "^", "linestyle": "--"},
    "raw EVP": {"color": "#009E73", "marker": "D", "linestyle": ":"},
}


@dataclass
class Line:
    """One contender in one panel: low, median and high at each x."""

    name: str
    low: list[float]
    middle: list[float]
    high: list[float]


@dataclass
class Panel:
    """One picture's half."""

    title: str
    x_label: str
    y_label: str
    x: list[int]
    lines: list[Line]


def panel(
    titles: tuple[str, str, str],
    xs: Sequence[int],
    runs: Callable[[int], Mapping[str, Run]],
    turns: int,
) -> Panel:
    """Measures all contenders at each x."""
    lines: dict[str, Line] = {}
    for x in xs:
        print(f"  {titles[0]}: {x:,} ...", file=sys.stderr, flush=True)
        for name, speeds in take_turns(runs(x), turns).items():
            line = lines.setdefault(name, Line(name, [], [], []))
            low, middle, high = quartiles(speeds)
            line.low.append(low)
            line.middle.append(middle)
            line.high.append(high)
    return Panel(*titles, list(xs), list(lines.values()))


def stream_run(engine: Engine, size: int, amount: int) -> float:
    """MB per second of the sender's and the receiver's CPU, one send a message."""
    began, ended, took, taken = transfer(
        engine, size, amount, taken_by(engine, amount), time.process_time
    )
    return amount / (ended - began + taken - took) / MB


def message_runs(ours: Ours, peer: Ssl, size: int, seconds: float) -> dict[str, Run]:
    """MB per second of CPU, messages of any size sealed and opened."""
    data, into = bytes(size), bytearray(size)
    count = max(1, min(200, (1 << 20) // size))
    sender, receiver = ours.memory_pair()
    ssl_sender, ssl_receiver = peer.memory_pair()
    encrypt, decrypt, decrypt_into = sender.encrypt, receiver.decrypt, receiver.decrypt_into
    write, take = ssl_sender.object.write, ssl_sender.outgoing.read
    feed, read = ssl_receiver.incoming.write, ssl_receiver.object.read

    def ours_work() -> int:
        if size > 16384:
            for _ in range(count):
                decrypt_into(encrypt(data), into)
        else:
            for _ in range(count):
                decrypt(encrypt(data))
        return count * size

    def ssl_work() -> int:
        if size > 16384:  # several records, each a read
            for _ in range(count):
                write(data)
                open_ssl(ssl_receiver, take(), into)
        else:
            for _ in range(count):
                write(data)
                feed(take())
                read(size)
        return count * size

    return {
        "twapi_tls": lambda: timed(ours_work, seconds) / MB,
        "ssl": lambda: timed(ssl_work, seconds) / MB,
    }


def in_memory(ours: Ours, peer: Ssl, raw: RawEvp | None, cipher: str, quick: bool) -> Panel:
    seconds = 0.05 if quick else 0.2

    def runs(size: int) -> Mapping[str, Run]:
        made = message_runs(ours, peer, size, seconds)
        if raw is not None:
            made["raw EVP"] = lambda: raw.both(cipher, size, seconds)
        return made

    titles = (
        "Sealed and opened in memory",
        "message (bytes)",
        "megabytes per second of CPU",
    )
    return panel(titles, SIZES, runs, 3 if quick else 7)


def over_tcp(ours: Ours, peer: Ssl, quick: bool) -> Panel:
    def runs(size: int) -> Mapping[str, Run]:
        # small messages take longer: about as much time for each size
        amount = min(64 << 20, size * 40_000) // (4 if quick else 1) // size * size
        return {
            engine.name: lambda engine=engine: stream_run(engine, size, amount)  # type: ignore[misc]
            for engine in (ours, peer, Plain())
        }

    titles = (
        "From process to process over TCP, a call a message",
        "message (bytes)",
        "megabytes per second of CPU, both ends",
    )
    return panel(titles, SIZES, runs, 3 if quick else 5)


def by_connections(ours: Ours, peer: Ssl, size: int, name: str, quick: bool) -> Panel:
    seconds = 0.2 if quick else 0.6

    def runs(count: int) -> Mapping[str, Run]:
        return {
            engine.name: lambda engine=engine: epoll_run(  # type: ignore[misc]
                engine, ours, count, size, seconds, isinstance(engine, Plain)
            )
            for engine in (ours, peer, Plain())
        }

    titles = (
        f"Requests of {name}, answered by one epoll loop",
        "open connections, one request under way on each",
        "requests per second of the server's CPU",
    )
    return panel(titles, CONNECTIONS[:-1] if quick else CONNECTIONS, runs, 3 if quick else 5)


def size_text(n: float) -> str:
    """256 B, 16 KiB, 1 MiB."""
    for unit in ("B", "KiB"):
        if n < 1024:
            return f"{n:g} {unit}"
        n /= 1024
    return f"{n:g} MiB"


def draw(panels: Sequence[Panel], title: str, caption: str, path: Path, sizes: bool) -> None:
    """Panels side by side as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure, axes = pyplot.subplots(1, len(panels), figsize=(11, 5.2), constrained_layout=True)
    for axis, part in zip(axes, panels, strict=True):
        for line in part.lines:
            style = STYLES[line.name]
            label = "twapi_tls (ours)" if line.name == "twapi_tls" else line.name
            axis.fill_between(part.x, line.low, line.high, color=style["color"], alpha=0.18, lw=0)
            axis.plot(part.x, line.middle, label=label, markersize=5, **style)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.xaxis.set_major_locator(FixedLocator(part.x))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(
            FuncFormatter(lambda n, _: size_text(n) if sizes else f"{n:g}")
        )
        axis.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.10g}"))
        axis.yaxis.set_minor_formatter(
            FuncFormatter(lambda n, _: f"{n:,.10g}" if f"{n:e}"[0] in "25" else "")
        )
        axis.tick_params(axis="y", which="minor", labelsize=8)
        if sizes:
            axis.tick_params(axis="x", rotation=35)
        axis.set_title(part.title, fontsize=11)
        axis.set_xlabel(part.x_label)
        axis.set_ylabel(part.y_label)
        axis.grid(True, which="major", color="#dddddd")
        axis.grid(True, which="minor", color="#f0f0f0")
        axis.set_axisbelow(True)
        axis.legend(loc="lower right", frameon=True, framealpha=0.9)
    figure.suptitle(title, fontsize=13)
    figure.supxlabel(textwrap.fill(caption, 150), fontsize=8, color="#444444")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def plots(
    ours: Ours,
    peer: Ssl,
    raw: RawEvp | None,
    cipher: str,
    quick: bool,
    caption: str,
    build: Path,
    docs: Path,
) -> list[Path]:
    """Measures, keeps the figures in ``build`` as JSON, draws into ``docs``."""
    pictures: list[tuple[str, str, bool, Callable[[], list[Panel]]]] = [
        (
            "size",
            "Throughput against the size of a message",
            True,
            lambda: [in_memory(ours, peer, raw, cipher, quick), over_tcp(ours, peer, quick)],
        ),
        (
            "connections",
            "Throughput against the number of connections",
            False,
            lambda: [
                by_connections(ours, peer, 64, "64 B", quick),
                by_connections(ours, peer, 16384, "16 KiB", quick),
            ],
        ),
    ]
    data = build / "plots.json"
    drawn = []
    found: dict[str, Any] = {"caption": caption}
    for name, title, sizes, panels in pictures:
        made = panels()
        found[name] = [dataclasses.asdict(part) for part in made]
        data.write_text(json.dumps(found, indent=1) + "\n")
        path = docs / f"throughput-{name}.png"
        draw(made, title, caption, path, sizes)
        drawn.append(path)
    return drawn
