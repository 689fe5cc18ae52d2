"""scripts/bootstrap: what is missing is said, before anything is built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).resolve().parent.parent / "scripts" / "bootstrap"

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not BOOTSTRAP.exists(), reason="no checkout: scripts/ is not here"),
    pytest.mark.skipif(os.name == "nt", reason="bootstrap is a shell's program"),
]


def bootstrap(**environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("CC", "PKG_CONFIG")}
    return subprocess.run(
        [str(BOOTSTRAP), "build"],
        env={**kept, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("words", ["/no/such/tool", "no-such-tool --static"])
@pytest.mark.parametrize("name", ["CC", "PKG_CONFIG"])
def test_a_tool_that_was_named_and_is_not_there(name: str, words: str) -> None:
    done = bootstrap(**{name: words})
    assert done.returncode == 1
    assert f"{name} is set to '{words}'" in done.stderr
    assert done.stdout == ""


def test_an_old_python_is_named(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text(
        "#!/bin/sh\n"
        "case $1$2 in -V) echo Python 3.8.18;; *version_info*) exit 1;; *) exit 0;; esac\n"
    )
    old.chmod(0o755)
    done = bootstrap(PYTHON=str(old))
    assert done.returncode == 1
    assert f"{old} is Python 3.8.18; twapi_tls needs Python 3.11 or later" in done.stderr
