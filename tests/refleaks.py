"""References that a test leaves behind: ``make refleaks``, or this program with pytest's arguments.

It needs a debug build of CPython, which counts all references there are
(``sys.gettotalrefcount``), and the package built with that one's headers:
only then are those of C counted.

Each test is run over and over in one process. Two runs fill the caches; a
further run may leave some references by chance, to what a cache grew by or to
what the interpreter specialised. If each of ``MEASURED`` runs in a row leaves
some, the test's fixtures are run as often without it, since pytest keeps a
little of every run; a test leaks if each of its runs left more than that, and
it fails with the numbers.
"""

from __future__ import annotations

import gc
import sys
from array import array

import pytest
from _pytest.runner import runtestprotocol

WARM = 2  # runs before the first that counts
MEASURED = 6  # runs that must each leave references; the first that does not ends it
PATIENCE = 600  # seconds for a test with all its runs


class References:
    """The plugin: runs each test often enough to tell, and once more for its result."""

    def __init__(self) -> None:
        self.without_test = False

    def pytest_collection_finish(self) -> None:
        gc.freeze()  # what is there already need not be looked through after each run

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self) -> bool | None:
        return True if self.without_test else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        left = references_left(item)
        if left:
            self.without_test = True
            pytests = max(references_left(item), default=0)
            self.without_test = False
            left = [count - pytests for count in left]
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in runtestprotocol(item, log=False, nextitem=nextitem):
            if left and min(left) > 0 and report.when == "call" and report.passed:
                report.outcome = "failed"
                report.longrepr = f"each run leaves references behind: {left}"
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


class Sibling(pytest.Item):
    """Stands for a test of the same module that comes next, so that what is shared stays."""

    def runtest(self) -> None:
        raise NotImplementedError("it never comes")


def references_left(item: pytest.Item) -> list[int]:
    """How many references each run left; none if a run left none, or did not pass."""
    counts = array("q", [0] * (MEASURED + 1))  # no objects, which would count too
    sibling = Sibling.from_parent(item.parent, name="sibling")
    for run in range(-WARM, MEASURED + 1):
        if not all(report.passed for report in runtestprotocol(item, log=False, nextitem=sibling)):
            return []
        gc.collect()
        if run >= 0:
            counts[run] = sys.gettotalrefcount()  # type: ignore[attr-defined]
        if run > 0 and counts[run] <= counts[run - 1]:
            return []
    return [counts[run] - counts[run - 1] for run in range(1, MEASURED + 1)]


def main(arguments: list[str]) -> int:
    if not hasattr(sys, "gettotalrefcount"):
        print("refleaks: this Python does not count references; it needs a debug build")
        return 1
    # -s: what a test prints would be kept for its report.
    plain = ["-s", "-p", "no:cacheprovider", "--timeout", str(PATIENCE)]
    return pytest.main([*plain, *arguments], plugins=[References()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
