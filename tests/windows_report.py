"""What the runs under Wine came to, for ``scripts/windows-test``.

    windows_report.py OUTPUT TITLE=REPORT.xml ...

Reads pytest's JUnit files, prints a table (run, passed, failed, skipped,
seconds), and writes it to OUTPUT with every reason for which something was
skipped, how often, per run. A report that is not there is a run that ended
before its end.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


class Run:
    """One run of pytest; ``complete`` is False without a report."""

    def __init__(self, title: str, report: Path) -> None:
        self.title = title
        self.passed = self.failed = 0
        self.seconds = 0.0
        self.reasons: Counter[str] = Counter()
        self.complete = report.is_file()
        if not self.complete:
            return
        for case in ElementTree.parse(report).iter("testcase"):
            self.seconds += float(case.get("time", 0))
            skipped = case.find("skipped")
            if skipped is not None:
                self.reasons[skipped.get("message", "")] += 1
            elif case.find("failure") is not None or case.find("error") is not None:
                self.failed += 1
            else:
                self.passed += 1

    @property
    def row(self) -> str:
        if not self.complete:
            return f"{self.title:<24} ended before its end: see its log"
        skipped = self.reasons.total()
        return (
            f"{self.title:<24} {self.passed:>7} {self.failed:>7} {skipped:>7} {self.seconds:>9.0f}"
        )


def table(runs: list[Run]) -> str:
    head = f"{'run':<24} {'passed':>7} {'failed':>7} {'skipped':>7} {'seconds':>9}"
    return "\n".join([head, *(run.row for run in runs)])


def reasons(runs: list[Run]) -> str:
    lines = []
    for run in runs:
        if run.reasons:
            lines += ["", f"skipped, {run.title}:"]
            lines += [f"{count:>5}  {reason}" for reason, count in run.reasons.most_common()]
    return "\n".join(lines)


def main(output: str, *reports: str) -> None:
    runs = [
        Run(title, Path(report)) for title, _, report in (one.partition("=") for one in reports)
    ]
    print(table(runs))
    Path(output).write_text(f"{table(runs)}\n{reasons(runs)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
