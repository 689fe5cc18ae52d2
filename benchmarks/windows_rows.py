"""Rows of Windows' engine, in Wine: where the lane has been set up already.

A Windows Python of the lane's (scripts/windows-lane) runs windows_side.py,
with the extension cross-built for it and tests/windows/loop.c as a library.
Nothing is set up or fetched here: without a lane there are no rows, and the
table says so.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import Row, fill, median_ratio

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LANE = Path(os.environ.get("TWAPI_TLS_LANE", ROOT / ".lane"))
PYTHON = "3.11"
C = "the loop in plain C on secur32"
SSL = "CPython's ssl"
OF_PLAIN_C = 0.95


@dataclass
class Windows:
    """What there is to say of Windows' engine."""

    about: str  # what was measured, or why nothing was; empty: not asked for
    rows: list[Row] = field(default_factory=list)


def obstacle() -> str:
    """Why there can be no rows; "" if there can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "Wine is set up on Linux on x86_64 alone"
    if not (LANE / f"done-{PYTHON}").exists():
        return "no Wine with a Windows Python is set up here (make windows-quick does that)"
    return ""


def windows_path(path: Path) -> str:
    """As a program under Wine sees it; forward slashes will do."""
    return f"Z:{path}"


def build(folder: Path) -> Path:
    """The package and the C loop for Windows; where the library is."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build"]
        + ["--build-base", str(ROOT / "build" / "windows"), "--build-lib", str(folder)],
        cwd=ROOT,
        env=dict(os.environ, TWAPI_TLS_WINDOWS=str(LANE / "py" / "cp311")),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    source, library = ROOT / "tests" / "windows" / "loop.c", folder / "loop.dll"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(
            ["x86_64-w64-mingw32-gcc", "-shared", "-O2", "-DUNICODE", "-D_UNICODE"]
            + ["-DWIN32_LEAN_AND_MEAN", str(source), "-o", str(library)]
            + ["-lsecur32", "-lcrypt32", "-lpsapi", "-lws2_32"],
            check=True,
        )
    return library


def measure(folder: Path, what: list[str], quick: bool) -> dict[str, Any]:
    """What windows_side.py says."""
    library = build(folder)
    sys.path.insert(0, str(ROOT / "tests"))
    certs = importlib.import_module("certs")
    with tempfile.TemporaryDirectory(prefix="twapi_tls-bench-") as place:
        certs.make_pki(Path(place), wine=True)
        config = {
            "folder": windows_path(Path(place)),
            "library": windows_path(library),
            "password": certs.PFX_PASSWORD,
            "pairs": 7 if quick else 21,
            "seconds": 0.3,
            "what": what,
        }
        answer = subprocess.run(
            [str(ROOT / "scripts" / "windows-lane"), "python", PYTHON]
            + [windows_path(HERE / "windows_side.py"), json.dumps(config)],
            env=dict(os.environ, PYTHONPATH=windows_path(folder)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=True,
        )
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def rows(folder: Path, quick: bool, wanted: Callable[[str], bool]) -> Windows:
    """Sealing and opening in memory, and a stream over loopback."""
    units = {"memory": "MB/s", "sockets": "MB/CPU s"}
    names = {
        "memory": "Wine: seal + open in memory, 256 KiB calls",
        "sockets": "Wine: bulk TCP, both ends in a process",
    }
    what = [key for key, name in names.items() if wanted(name)]
    if not what:
        return Windows("")
    why = obstacle()
    if why:
        return Windows(f"Windows' engine was not measured: {why}.")
    try:
        found = measure(folder, what, quick)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or "").strip().splitlines()[-1:]
        return Windows(f"Windows' engine was not measured: {error} {' '.join(said)}")
    made = []
    for key in what:
        speeds: dict[str, list[float]] = found["speeds"][key]
        plain_c = Row(names[key], C, "", units[key], OF_PLAIN_C)
        if "in place" in speeds:
            plain_c.limit = "the same, data read in place"
            plain_c.of_limit = median_ratio(speeds["ours"], speeds["in place"])
        made.append(fill(plain_c, speeds["ours"], speeds["c"]))
        made.append(fill(Row(names[key], SSL, "", units[key], None), speeds["ours"], speeds["ssl"]))
    return Windows(
        f"{found['engine']}, {found['protocol']} with {found['suite']}, Python {found['python']} "
        f"for Windows with {found['ssl']}; the rest as above.",
        made,
    )
