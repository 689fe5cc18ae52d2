"""Build the extensions for tests: the C floors below Python, for pytest.

    python tests/native/setup.py build_ext      (from anywhere)

``_testnative`` has them as they are on this platform. ``_testschannel``
has provider_schannel.c over the scripted table, on systems other than
Windows, with tests/native/sdk in the place of Windows' SDK.

The modules land in build/testnative and never in a wheel. The switches are
those of the project's own setup.py: TWAPI_TLS_SANITIZE, _DEBUG, _WERROR,
_COVERAGE, and _WINDOWS, which cross-builds ``_testnative`` for the lane.
TWAPI_TLS_TESTNATIVE names another place for the modules.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
WINDOWS_PYTHON = os.environ.get("TWAPI_TLS_WINDOWS", "")
CROSS = bool(WINDOWS_PYTHON)
WINDOWS = CROSS or sys.platform == "win32"
MSVC = WINDOWS and not CROSS
OTHER_PLATFORMS = {"openssl", "posix"} if WINDOWS else {"schannel", "crypt32", "winsock", "win32"}


def switched_on(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def pkg_config(option: str) -> list[str]:
    command = [*shlex.split(os.environ.get("PKG_CONFIG", "pkg-config")), option]
    answer = subprocess.run(
        [*command, "libssl", "libcrypto"], capture_output=True, text=True, check=True
    )
    return shlex.split(answer.stdout)


def extension(name: str, sources: list[Path], folders: list[Path]) -> Extension:
    """A module of these files and all of csrc/core; folders go before the system's headers."""
    counted = str(HERE / "counted.h")
    if MSVC:
        compile_args = ["/std:c11", "/W4", "/utf-8", f"/FI{counted}"]
    else:
        compile_args = ["-std=c11", "-O1", "-g", "-fvisibility=hidden", "-Wall", "-Wextra"]
        compile_args += ["-include", counted]
    link_args: list[str] = []
    macros = [("_GNU_SOURCE", "1")]
    libraries: list[str] = []
    library_dirs: list[str] = []
    if WINDOWS:
        libraries = ["secur32", "crypt32", "ncrypt", "bcrypt", "ws2_32", "ole32", "advapi32"]
        macros += [("UNICODE", "1"), ("_UNICODE", "1"), ("WIN32_LEAN_AND_MEAN", "1")]
    else:
        compile_args.append("-pthread")
        link_args.append("-pthread")
    if CROSS:
        libraries.append("python3")
        library_dirs.append(WINDOWS_PYTHON)
        link_args.append("-static-libgcc")
    if switched_on("TWAPI_TLS_WERROR"):
        compile_args.append("/WX" if MSVC else "-Werror")
    if switched_on("TWAPI_TLS_DEBUG") or switched_on("TWAPI_TLS_COVERAGE"):
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
        name,
        sources=[str(path) for path in (HERE / "counted.c", *sources)],
        depends=[str(path) for folder in (CSRC, HERE) for path in sorted(folder.rglob("*.h"))],
        include_dirs=[str(folder) for folder in (*folders, CSRC, HERE, HERE / "ext")],
        define_macros=macros,
        undef_macros=["NDEBUG"],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        library_dirs=library_dirs,
        libraries=libraries,
        language="c",
    )


def testnative() -> Extension:
    sources = [
        path
        for folder in (CSRC / "sspi", CSRC / "core", CSRC / "wire", HERE / "ext")
        for path in sorted(folder.glob("*.c"))
        if not OTHER_PLATFORMS & set(path.stem.split("_"))
    ]
    module = extension("_testnative", sources, [])
    if not WINDOWS:
        module.extra_compile_args += pkg_config("--cflags")
        module.extra_link_args += pkg_config("--libs")
    return module


def testschannel() -> Extension:
    sources = [CSRC / "sspi" / name for name in ("provider_schannel.c", "scripted.c")]
    sources += sorted((CSRC / "core").glob("*.c"))
    sources += [HERE / "ext" / f"{name}.c" for name in ("alloc", "floors", "played", "support")]
    sources += sorted((HERE / "sdk").glob("*.c"))
    return extension("_testschannel", sources, [HERE / "sdk"])


class Build(build_ext):
    """Objects of each module apart; for Windows with mingw where that is asked for."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if CROSS:  # this system's Python.h describes this system
            self.include_dirs = [str(Path(WINDOWS_PYTHON) / "include")]
            self.library_dirs = []

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname}.pyd" if CROSS else super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        if CROSS:
            compiler = os.environ.get("CC", "x86_64-w64-mingw32-gcc")
            self.compiler.set_executables(
                preprocessor=f"{compiler} -E",
                compiler=compiler,
                compiler_so=compiler,
                linker_so=f"{compiler} -shared",
                linker_exe=compiler,
            )
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        place = self.build_temp
        self.build_temp = os.path.join(place, ext.name)
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = place


place = Path(os.environ.get("TWAPI_TLS_TESTNATIVE", ROOT / "build" / "testnative")).resolve()
os.chdir(HERE)  # away from the project's pyproject.toml
setup(
    name="twapi-tls-testnative",
    version="0",
    py_modules=[],
    packages=[],
    ext_modules=[testnative()] if WINDOWS else [testnative(), testschannel()],
    cmdclass={"build_ext": Build},
    options={
        "build_ext": {"build_lib": str(place), "build_temp": str(place / "objects")},
    },
    script_args=sys.argv[1:] or ["-q", "build_ext"],
)
