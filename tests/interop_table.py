"""Writes tests/interop.md: what passed between us and other people's TLS.

    python tests/interop_table.py        (make interop)

Runs test_interop*.py and test_sequence.py, with the record engine and with the
records left to the SSL object, each in a process of its own. Counts each test
by what it says of itself: the first line of its docstring, the peer, the
version. Exits with pytest's status; a failure is in the table as one.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import subprocess
import sys
import tempfile
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
    "sequence": "Far into a connection: our own KeyUpdate, sequence numbers",
    "hostile": "A peer that breaks the protocol (tlslite-ng)",
}


# Record path to what TWAPI_TLS_RECORDS is for it.
PATHS = {"engine": "", "object": "openssl"}
Rows = dict[str, dict[str, dict[str, dict[str, str]]]]
MANY = 5  # cases that a cell names one by one


class Collector:
    """A pytest plugin: section to feature to peer to case to outcome."""

    def __init__(self) -> None:
        self.rows: Rows = {}
        self.items: dict[str, tuple[str, str, str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            assert isinstance(item, pytest.Function)
            function: Any = item.function
            params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
            module = function.__module__.removeprefix("test_").removeprefix("interop").strip("_")
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
        outcome: str = report.outcome
        if isinstance(report.longrepr, tuple):
            outcome += f" ({report.longrepr[2].removeprefix('Skipped: ')})"
        # A failure in the set-up or tear-down counts over a pass.
        if case not in row or outcome != "passed":
            row[case] = outcome


def collect(target: Path) -> int:
    """Run the tests in this process; the rows go to a file."""
    collector = Collector()
    files = [*sorted(HERE.glob("test_interop*.py")), HERE / "test_sequence.py"]
    status = pytest.main(["-q", "-p", "no:cacheprovider", *map(str, files)], plugins=[collector])
    target.write_text(json.dumps(collector.rows), encoding="utf-8")
    return int(status)


def run(records: str) -> tuple[int, Rows]:
    """The same in a process with that record path."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.json"
        done = subprocess.run(
            [sys.executable, __file__, str(target)],
            env={**os.environ, "TWAPI_TLS_RECORDS": records},
            check=False,
        )
        rows: Rows = json.loads(target.read_text(encoding="utf-8"))
        return done.returncode, rows


def lines(rows: Rows) -> list[str]:
    text: list[str] = []
    for section, title in TITLES.items():
        features = rows.get(section)
        if not features:
            continue
        names = sorted({peer for row in features.values() for peer in row})
        text += ["", f"## {title}", ""]
        head = ["passed"] if names == [""] else names
        text.append("| " + " | ".join(["what", *head]) + " |")
        text.append("|" + "---|" * (len(head) + 1))
        for what, row in features.items():
            cells = [cell(row.get(name, {})) for name in names]
            text.append("| " + " | ".join([what, *cells]) + " |")
    return text


def cell(cases: dict[str, str]) -> str:
    if not cases:
        return "–"
    if len(cases) > MANY and set(cases.values()) == {"passed"}:
        return f"{len(cases)} cases"
    shown = []
    for case, outcome in cases.items():
        word = case or "yes"
        shown.append(word if outcome == "passed" else f"**{word} {outcome}**")
    return "; ".join(shown)


def outcomes(features: dict[str, dict[str, dict[str, str]]]) -> dict[tuple[str, str, str], str]:
    """By feature, peer and case."""
    return {
        (what, peer, case): outcome
        for what, row in features.items()
        for peer, cases in row.items()
        for case, outcome in cases.items()
    }


def counts(rows: Rows) -> str:
    """Such as "190 passed, 0 failed, 0 skipped"."""
    found = [
        outcome.partition(" ")[0]
        for features in rows.values()
        for outcome in outcomes(features).values()
    ]
    return ", ".join(f"{found.count(word)} {word}" for word in ("passed", "failed", "skipped"))


def differences(rows: Rows, other: Rows) -> list[str]:
    """Where the second table has another outcome; a whole section in one line."""
    text = []
    for section, features in rows.items():
        here, there = outcomes(features), outcomes(other.get(section, {}))
        found = {key: there.get(key, "not run") for key in here if there.get(key) != here[key]}
        if len(found) == len(here) and len(set(found.values())) == 1:
            text.append(f'"{TITLES[section]}": {found.popitem()[1]}')
            continue
        text += [f"{' '.join(key).rstrip()}: {outcome}" for key, outcome in found.items()]
    return text


def main() -> int:
    if len(sys.argv) > 1:
        return collect(Path(sys.argv[1]))
    found = {path: run(records) for path, records in PATHS.items()}
    rows, others = found["engine"][1], found["object"][1]
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
        *lines(rows),
        "",
        f"With the record engine: {counts(rows)}.",
        "",
        f"With the SSL object's records (`TWAPI_TLS_RECORDS=openssl`): {counts(others)}.",
        "",
        *(f"- {line}" for line in differences(rows, others)),
    ]
    TARGET.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(f"{TARGET.relative_to(HERE.parent)}: {counts(rows)}; {counts(others)}")
    return max(status for status, _ in found.values())


if __name__ == "__main__":
    raise SystemExit(main())
