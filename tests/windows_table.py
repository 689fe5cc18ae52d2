"""Writes tests/windows_interop.md: Windows' engine and other people's TLS.

    python tests/windows_table.py 3.11=REPORT.xml [3.12=REPORT.xml ...]

Each REPORT is what pytest's --junitxml left of tests/windows run with that
Windows Python. scripts/windows-test does both (make windows). A row that failed
is in the table as one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "windows")]

import gnutls_peer  # noqa: E402
import peers  # noqa: E402

import twapi_tls  # noqa: E402

TARGET = HERE / "windows_interop.md"
PEERS = {
    "our_engine": "twapi_tls on Linux",
    "openssl": "openssl",
    "gnutls": "GnuTLS",
    "python_ssl": "Python's ssl",
}
Row = tuple[str, str, str, str, int]  # role, peer, TLS version, certificate, bytes


def outcome(case: ElementTree.Element) -> str:
    for word in ("failure", "error", "skipped"):
        if case.find(word) is not None:
            return f"**{word}**"
    return f"{float(case.get('time', '0')):.0f} s"


def read(report: Path) -> tuple[str, dict[Row, str]]:
    """The engine that was met, and each row's outcome."""
    engine, rows = "", {}
    for case in ElementTree.parse(report).iter("testcase"):
        found = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
        engine = found.get("engine", engine)
        if "role" in found:
            names = (found[name] for name in ("role", "peer", "version", "certificate"))
            role, peer, version, certificate = names
            rows[role, peer, version, certificate, int(found["bytes"])] = outcome(case)
    return engine, rows


def versions(engine: str) -> list[str]:
    ours, others = twapi_tls.engine, peers.versions()
    return [
        f"| Windows' engine | {engine} |",
        f"| {PEERS['our_engine']} | {ours.name} ({ours.version}) |",
        f"| openssl | {others.get('openssl', '–')} |",
        f"| GnuTLS | its library {gnutls_peer.version()} |",
        f"| Python's ssl | {others['python']} |",
    ]


def main() -> int:
    reports = dict(argument.split("=", 1) for argument in sys.argv[1:])
    found = {python: read(Path(report)) for python, report in reports.items()}
    rows = {row: None for _, outcomes in found.values() for row in outcomes}
    engine = next(iter(found.values()))[0]
    text = [
        "# Windows' engine against other people's TLS, measured",
        "",
        "Written by `make windows` from `tests/windows/test_cross.py`; not by hand. One end is",
        "a genuine Windows CPython under Wine, the other the peer, on Linux. The bytes are random,",
        "go each way, and have equal hashes at both ends. Seconds are the whole test's: starting",
        "both ends is in them, and whatever else the machine was doing. Wine's servers ask no",
        "client for a certificate.",
        "",
        "| what | version |",
        "|---|---|",
        *versions(engine),
        "",
        "| the Windows end | peer | TLS | client certificate | MB each way | "
        + " | ".join(f"Python {python}" for python in found)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(found),
    ]
    counts = {"passed": 0, "not passed": 0}
    for row in rows:
        role, peer, version, certificate, size = row
        cells = [outcomes.get(row, "–") for _, outcomes in found.values()]
        for cell in cells:
            counts["passed" if cell.endswith(" s") else "not passed"] += 1
        shown = [role, PEERS[peer], version, certificate, f"{size / 1e6:g}", *cells]
        text.append("| " + " | ".join(shown) + " |")
    text += ["", "{passed} passed, {not passed} not.".format_map(counts)]
    TARGET.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(f"{TARGET.relative_to(HERE.parent)}: {text[-1]}")
    return 0 if rows and not counts["not passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
