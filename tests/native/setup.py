"""Build ``_testnative``: the C floors below Python, made reachable for pytest.

    python tests/native/setup.py build_ext      (from anywhere)

The module lands in build/testnative and never in a wheel. The switches are
those of the project's own setup.py: TWAPI_TLS_SANITIZE, _DEBUG, _WERROR,
_COVERAGE. TWAPI_TLS_TESTNATIVE names another place for the module.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WINDOWS = sys.platform == "win32"
OTHER_PLATFORMS = {"openssl", "posix"} if WINDOWS else {"schannel", "crypt32", "winsock", "win32"}
WRAPPED = ("malloc", "calloc", "realloc", "free")


def switched_on(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def pkg_config(option: str) -> list[str]:
    command = [*shlex.split(os.environ.get("PKG_CONFIG", "pkg-config")), option]
    answer = subprocess.run(
        [*command, "libssl", "libcrypto"], capture_output=True, text=True, check=True
    )
    return shlex.split(answer.stdout)


def extension() -> Extension:
    sources = [
        path
        for floor in ("sspi", "core", "wire")
        for path in sorted((ROOT / "csrc" / floor).glob("*.c"))
        if not OTHER_PLATFORMS & set(path.stem.split("_"))
    ]
    sources += sorted((HERE / "ext").glob("*.c"))
    debug = switched_on("TWAPI_TLS_DEBUG")
    compile_args = ["-std=c11", "-O1", "-g", "-fvisibility=hidden", "-Wall", "-Wextra"]
    link_args = [f"-Wl,--wrap={name}" for name in WRAPPED]
    libraries: list[str] = []
    if WINDOWS:
        libraries = ["secur32", "crypt32", "ncrypt", "ws2_32"]
    else:
        compile_args += [*pkg_config("--cflags"), "-pthread"]
        link_args += [*pkg_config("--libs"), "-pthread"]
    if switched_on("TWAPI_TLS_WERROR"):
        compile_args.append("-Werror")
    if debug or switched_on("TWAPI_TLS_COVERAGE"):
        compile_args.append("-O0")
    if switched_on("TWAPI_TLS_COVERAGE"):
        compile_args.append("--coverage")
        link_args.append("--coverage")
    sanitizers = os.environ.get("TWAPI_TLS_SANITIZE", "")
    if sanitizers:
        compile_args += [
            f"-fsanitize={sanitizers}",
            "-fno-sanitize-recover=all",
            "-fno-omit-frame-pointer",
        ]
        link_args.append(f"-fsanitize={sanitizers}")
    return Extension(
        "_testnative",
        sources=[str(path) for path in sources],
        depends=[
            str(path)
            for folder in (ROOT / "csrc", HERE / "ext")
            for path in sorted(folder.rglob("*.h"))
        ],
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("_GNU_SOURCE", "1"), ("TW_WRAPPED_MALLOC", "1")],
        undef_macros=["NDEBUG"],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        libraries=libraries,
        language="c",
    )


place = Path(os.environ.get("TWAPI_TLS_TESTNATIVE", ROOT / "build" / "testnative")).resolve()
os.chdir(HERE)  # away from the project's pyproject.toml
setup(
    name="twapi-tls-testnative",
    version="0",
    py_modules=[],
    packages=[],
    ext_modules=[extension()],
    options={
        "build_ext": {"build_lib": str(place), "build_temp": str(place / "objects")},
    },
    script_args=sys.argv[1:] or ["-q", "build_ext"],
)
