"""Writes tests/interop.md: what passed between us and other people's TLS.

    python tests/interop_table.py        (make interop)

Runs test_interop*.py and counts each test by what it says of itself: the first
line of its docstring, the peer, the version. Exits with pytest's status; a
failure is in the table as one.
"""

from __future__ import annotations

import inspect
import platform
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import peers  # noqa: E402
import pytest  # noqa: E402

import twapi_tls  # noqa: E402

TARGET = HERE / "interop.md"
TITLES = {
    "client": "Our client, their servers",
    "server": "Our server, their clients",
    "load": "KeyUpdate and renegotiation in the middle of data",
    "hostile": "A peer that breaks the protocol (tlslite-ng)",
}


class Table:
    """A pytest plugin: feature to peer to version to outcome."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, dict[str, dict[str, str]]]] = {}
        self.items: dict[str, tuple[str, str, str, str]] = {}
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            assert isinstance(item, pytest.Function)
            function: Any = item.function
            params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
            module = function.__module__.removeprefix("test_interop").strip("_")
            section = module or ("server" if "_server_" in function.__name__ else "client")
            title = (inspect.getdoc(function) or function.__name__).splitlines()[0]
            peer = str(params.get("peer", ""))
            rest = [str(value) for key, value in params.items() if key != "peer"]
            self.items[item.nodeid] = (section, title, peer, ", ".join(rest))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        section, title, peer, case = self.items[report.nodeid]
        row = self.rows.setdefault(section, {}).setdefault(title, {}).setdefault(peer, {})
        # A failure in the set-up or tear-down counts over a pass.
        if case not in row or report.outcome != "passed":
            row[case] = report.outcome

    def lines(self) -> list[str]:
        text: list[str] = []
        for section, title in TITLES.items():
            rows = self.rows.get(section)
            if not rows:
                continue
            names = sorted({peer for row in rows.values() for peer in row})
            plain = names == [""]
            text += ["", f"## {title}", ""]
            head = ["passed"] if plain else names
            text.append("| " + " | ".join(["what", *head]) + " |")
            text.append("|" + "---|" * (len(head) + 1))
            for what, row in rows.items():
                cells = [self._cell(row.get(name, {})) for name in names]
                text.append("| " + " | ".join([what, *cells]) + " |")
        return text

    def _cell(self, cases: dict[str, str]) -> str:
        if not cases:
            return "–"
        shown = []
        for case, outcome in cases.items():
            self.counts[outcome] += 1
            word = case or "yes"
            shown.append(word if outcome == "passed" else f"**{word} {outcome}**")
        return "; ".join(shown)


def main() -> int:
    table = Table()
    status = pytest.main(
        ["-q", "-p", "no:cacheprovider", *map(str, sorted(HERE.glob("test_interop*.py")))],
        plugins=[table],
    )
    rows = table.lines()
    versions = peers.versions()
    engine = twapi_tls.engine
    text = [
        "# Interoperability, measured",
        "",
        "Written by `make interop`; not by hand. A cell names the TLS versions (or cases) that",
        "passed; – means that the peer has not got it.",
        "",
        f"twapi_tls {twapi_tls.__version__} on {engine.name} ({engine.version}), "
        f"Python {platform.python_version()}, {platform.system()}.",
        "",
        "| peer | version |",
        "|---|---|",
        *(f"| {name} | {version} |" for name, version in versions.items()),
        *rows,
        "",
        "{passed} passed, {failed} failed, {skipped} skipped.".format(**table.counts),
    ]
    TARGET.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(f"{TARGET.relative_to(HERE.parent)}: {text[-1]}")
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
