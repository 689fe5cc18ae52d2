"""PORTED.md is complete and true: 115 names, and each row's test exists."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOTAL = 115  # tests in TWAPI's tls.test

_ROW = re.compile(r"\| (\S+) \| (ported|adapted|not applicable) \| (\S+) \| ([^|]*) \|")
_NAME = re.compile(r"([a-zA-Z_]+(?:-[a-zA-Z]+)*-\d+(?:\.\d+)+): ")


def rows() -> list[tuple[str, str, str, str]]:
    lines = (HERE / "PORTED.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")][2:]
    found = [_ROW.fullmatch(line) for line in table]
    for line, match in zip(table, found, strict=True):
        assert match is not None, f"not a row of the table: {line}"
    return [(match[1], match[2], match[3].strip("`"), match[4]) for match in found if match]


def ports() -> dict[str, str]:
    """The original's name to ``file::function``: what a port's docstring begins with."""
    found: dict[str, str] = {}
    for path in sorted(HERE.glob("test_twapi_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                match = _NAME.match(ast.get_docstring(node) or "")
                assert match, f"{path.name}: {node.name} does not say which test it ports"
                assert match[1] not in found, f"{match[1]} was ported twice"
                found[match[1]] = f"{path.name}::{node.name}"
    return found


def test_every_original_is_there_once() -> None:
    names = Counter(row[0] for row in rows())
    assert [name for name, count in names.items() if count > 1] == []
    assert len(names) == TOTAL


def test_rows_and_ports_are_the_same() -> None:
    expected = {name: where for name, kind, where, _ in rows() if kind != "not applicable"}
    assert expected == ports()


def test_what_is_not_plain_is_explained() -> None:
    for name, kind, where, note in rows():
        if kind == "not applicable":
            assert where == "–" and note, f"{name}: why not?"
        if kind == "adapted":
            assert note, f"{name}: how?"


def test_the_counts_are_right() -> None:
    kinds = Counter(kind for _, kind, _, _ in rows())
    line = (
        f"{TOTAL} tests: {kinds['ported']} ported, {kinds['adapted']} adapted to loopback, "
        f"{kinds['not applicable']} not applicable."
    )
    print(line)
    assert line in (HERE / "PORTED.md").read_text(encoding="utf-8").splitlines()
