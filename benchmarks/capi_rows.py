"""Rows of the C API against the same loops in plain C on OpenSSL."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import Row, Run, compare

import twapi_tls as tls

HERE = Path(__file__).resolve().parent
MB = 1e6
WITHIN = 0.9  # of the plain loop


def load(build: Path) -> Any:
    """capi_loop.c, built if it is older than what it is made of."""
    built = build / f"capi_loop{sysconfig.get_config_var('EXT_SUFFIX')}"
    source, header = HERE / "capi_loop.c", Path(tls.get_include()) / "twapi_tls.h"
    newest = max(source.stat().st_mtime, header.stat().st_mtime)
    if not built.exists() or built.stat().st_mtime < newest:
        build.mkdir(parents=True, exist_ok=True)
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "libssl", "libcrypto"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        subprocess.run(
            ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-pthread"]
            + [f"-I{sysconfig.get_path('include')}", f"-I{tls.get_include()}"]
            + [str(source), "-o", str(built)]
            + shlex.split(flags),
            check=True,
        )
    spec = importlib.util.spec_from_file_location("capi_loop", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(
    pem: bytes, root: bytes, build: Path, quick: bool, wanted: Callable[[str], bool]
) -> list[Row]:
    """Bulk and echo over TCP between two threads, sealing in memory."""
    if sys.platform == "win32":
        return []
    pairs, seconds = (5, 0.2) if quick else (11, 0.6)
    cache: list[Any] = []
    made = []
    for what, name, unit, scale in (
        ("bulk", "C API: bulk TCP, both ends, 256 KiB calls", "MB/s", MB),
        ("echo", "C API: echo 64 B, two threads", "/s", 1.0),
        ("seal", "C API: encrypt in memory, 256 KiB calls", "MB/s", MB),
    ):
        if not wanted(name):
            continue
        cache = cache or [load(build)]
        loop = cache[0].run

        def run(ours: bool, loop: Any = loop, what: str = what, scale: float = scale) -> Run:
            return lambda: float(loop(ours, what, pem, root, seconds)) / scale

        row = Row(name, "the loop in plain C on OpenSSL", "", unit, WITHIN)
        made.append(compare(row, {"ours": run(True), "peer": run(False)}, pairs))
    return made
