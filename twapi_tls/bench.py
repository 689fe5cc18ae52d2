"""The front of the benchmarks, which live in a checkout's ``benchmarks/``.

They are not installed: they build a C program and need ``cryptography``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["run"]

PROGRAM = Path(__file__).resolve().parent.parent / "benchmarks" / "run.py"


def run(arguments: Sequence[str] = ()) -> int:
    """Runs ``benchmarks/run.py`` with arguments; its exit status.

    FileNotFoundError where the package was installed without its checkout.
    """
    if not PROGRAM.is_file():
        raise FileNotFoundError(
            f"the benchmarks are part of a checkout, and {PROGRAM} is not there"
        )
    return subprocess.run([sys.executable, str(PROGRAM), *arguments], check=False).returncode
