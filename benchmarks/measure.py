"""Side by side: how a ratio is measured.

Absolute figures of a machine drift by a factor of two within a run. So two
contenders take turns, each pair gives one ratio, and the median of the pairs
is the result; the quartiles say how far to trust it. Who goes first changes
from pair to pair.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Run = Callable[[], float]
"""Does the work once; how fast it went, larger is faster."""


@dataclass
class Row:
    """One line of the table."""

    name: str
    peer: str
    limit: str
    unit: str
    bar: float | None  # the ratio to reach; None: none was set
    ratio: float = 0.0  # ours to the peer's, the median of the pairs
    low: float = 0.0  # first and third quartile of the ratios
    high: float = 0.0
    ours: float = 0.0  # medians, in unit
    theirs: float = 0.0
    of_limit: float | None = None  # ours to the limit's, median of the pairs
    pairs: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Is the bar reached? None without one."""
        return None if self.bar is None else self.ratio >= self.bar


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def take_turns(runs: Mapping[str, Run], pairs: int) -> dict[str, list[float]]:
    """Each once unmeasured, then ``pairs`` times in turns: the speeds."""
    names = list(runs)
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        runs[name]()
    for number in range(pairs):
        for name in names if number % 2 == 0 else reversed(names):
            speeds[name].append(runs[name]())
    return speeds


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the pairs' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def fill(row: Row, ours: list[float], theirs: list[float]) -> Row:
    """What the speeds of the pairs come to."""
    row.low, row.ratio, row.high = quartiles([a / b for a, b in zip(ours, theirs, strict=True)])
    row.ours, row.theirs = statistics.median(ours), statistics.median(theirs)
    row.pairs = len(ours)
    return row


def compare(row: Row, runs: Mapping[str, Run], pairs: int) -> Row:
    """Fills row from ``runs``: "ours", "peer", perhaps "limit" and others.

    Each runs once unmeasured, then ``pairs`` times in turns. Whatever else
    ``runs`` holds becomes a note with its median.
    """
    speeds = take_turns(runs, pairs)
    fill(row, speeds["ours"], speeds["peer"])
    if "limit" in speeds:
        row.of_limit = median_ratio(speeds["ours"], speeds["limit"])
    for name in speeds:
        if name not in ("ours", "peer"):
            row.notes[name] = statistics.median(speeds[name])
    return row
