"""Bars on stderr for long transfers, when a person is watching."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["Progress"]


class Progress:
    """A context manager; its tasks count bytes.

    Silent where ``wanted`` is false, where stderr is no terminal, or where
    rich is not installed.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._bars: Any = None
        if wanted and sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import (
                    BarColumn,
                    DownloadColumn,
                    TextColumn,
                    TimeElapsedColumn,
                    TransferSpeedColumn,
                )
                from rich.progress import Progress as Bars
            except ImportError:
                return
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def task(self, title: str, total: int | None = None) -> Callable[[int], None]:
        """A bar for ``total`` bytes (None: not known); call it with each piece's size."""
        if self._bars is None:
            return lambda n: None
        task = self._bars.add_task(title, total=total)
        return lambda n: self._bars.advance(task, n)
