"""Build the one C extension, ``twapi_tls._native``.

Everything static lives in pyproject.toml; this file chooses what depends on
the platform: which C files, which compiler switches, where OpenSSL is.

Environment switches, each empty or absent for "no":

TWAPI_TLS_SANITIZE  comma separated sanitizers: ``address,undefined``
TWAPI_TLS_DEBUG     ``1``: no optimisation, full debug information, asserts
TWAPI_TLS_WERROR    ``1``: warnings are errors
TWAPI_TLS_COVERAGE  ``1``: instrument for gcov
TWAPI_TLS_WINDOWS   a folder with a Windows CPython (include/, python3.dll):
                    build for it with mingw, on any system. CC names the
                    compiler, default x86_64-w64-mingw32-gcc; the wheel's
                    platform is bdist_wheel's ``--plat-name``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
WINDOWS_PYTHON = os.environ.get("TWAPI_TLS_WINDOWS", "")
CROSS = bool(WINDOWS_PYTHON)
WINDOWS = CROSS or sys.platform == "win32"
# The limited API does not exist on free-threaded builds before 3.15.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
OPENSSL_MINIMUM = "3.0"

# "Platforms by file": the last (or first) word of a file's name says where it
# belongs; a name without such a word belongs everywhere.
POSIX_WORDS = frozenset({"openssl", "posix"})
WINDOWS_WORDS = frozenset({"schannel", "crypt32", "winsock", "win32"})
# Built for tests only, never shipped.
TEST_FILES = frozenset({"scripted.c"})


def switched_on(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def sources() -> list[str]:
    """The C files of this platform, relative to the root, sorted."""
    foreign = POSIX_WORDS if WINDOWS else WINDOWS_WORDS
    chosen = []
    for path in sorted((ROOT / "csrc").glob("*/*.c")):
        if path.name in TEST_FILES or foreign & set(path.stem.split("_")):
            continue
        chosen.append(path.relative_to(ROOT).as_posix())
    return chosen


def headers() -> list[str]:
    folders = (ROOT / "csrc", ROOT / "twapi_tls" / "include")
    return sorted(p.relative_to(ROOT).as_posix() for f in folders for p in f.rglob("*.h"))


def pkg_config(*arguments: str) -> list[str]:
    """The words pkg-config answers, or an exit that says what to install."""
    command = [*shlex.split(os.environ.get("PKG_CONFIG", "pkg-config")), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        reason = f"pkg-config could not be run ({error.strerror})"
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip() or "pkg-config does not know OpenSSL"
    else:
        return shlex.split(answer.stdout)
    raise SystemExit(
        f"twapi_tls needs OpenSSL {OPENSSL_MINIMUM} or later with its headers, "
        "found by pkg-config.\n"
        f"  {reason}\n"
        "Install:\n"
        "  Debian, Ubuntu:  apt-get install libssl-dev pkg-config\n"
        "  Fedora, RHEL:    dnf install openssl-devel pkgconf-pkg-config\n"
        "  macOS:           brew install openssl@3 pkg-config\n"
        "                   (and add $(brew --prefix openssl@3)/lib/pkgconfig to\n"
        "                   PKG_CONFIG_PATH if pkg-config does not find it)"
    )


def extension() -> Extension:
    macros: list[tuple[str, str | None]] = []
    if not FREE_THREADED:
        macros.append(("Py_LIMITED_API", "0x030B0000"))
    debug = switched_on("TWAPI_TLS_DEBUG")
    undefine = ["NDEBUG"] if debug else []
    werror = switched_on("TWAPI_TLS_WERROR")

    link_args: list[str]
    library_dirs: list[str] = []
    if WINDOWS:
        libraries = ["secur32", "crypt32", "ncrypt", "bcrypt", "ws2_32", "ole32", "advapi32"]
        macros += [("UNICODE", "1"), ("_UNICODE", "1"), ("WIN32_LEAN_AND_MEAN", "1")]
    if CROSS:
        compile_args = ["-std=c11", "-O2", "-Wall", "-Wextra"]
        # Nothing of the compiler's own beside the module: no DLL to ship.
        link_args = ["-static-libgcc", "-Wl,--no-insert-timestamp"]
        library_dirs = [WINDOWS_PYTHON]
        libraries.append("python3")
        if werror:
            compile_args.append("-Werror")
        if debug:
            compile_args += ["-O0", "-g3"]
        if switched_on("TWAPI_TLS_COVERAGE"):
            compile_args += ["--coverage", "-O0", "-g"]
            link_args.append("--coverage")
        if not debug and not switched_on("TWAPI_TLS_COVERAGE"):
            link_args.append("-s")
    elif WINDOWS:
        compile_args = ["/std:c11", "/W4", "/utf-8"]
        link_args = []
        if werror:
            compile_args.append("/WX")
        if debug:
            compile_args += ["/Od", "/Zi"]
            link_args.append("/DEBUG")
    else:
        # -std=c11 hides POSIX; pyconfig.h defines the same macro the same way.
        macros.append(("_GNU_SOURCE", "1"))
        compile_args = ["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"]
        link_args = []
        libraries = []
        names = [f"libssl >= {OPENSSL_MINIMUM}", f"libcrypto >= {OPENSSL_MINIMUM}"]
        compile_args += pkg_config("--cflags", *names)
        for word in pkg_config("--libs", *names):
            if word.startswith("-l"):
                libraries.append(word[2:])
            elif word.startswith("-L"):
                library_dirs.append(word[2:])
            else:
                link_args.append(word)
        compile_args.append("-pthread")
        link_args.append("-pthread")
        if werror:
            compile_args.append("-Werror")
        if debug:
            compile_args += ["-O0", "-g3"]
        sanitizers = os.environ.get("TWAPI_TLS_SANITIZE", "")
        if sanitizers:
            compile_args += [
                f"-fsanitize={sanitizers}",
                "-fno-sanitize-recover=all",
                "-fno-omit-frame-pointer",
                "-O1",
                "-g",
            ]
            link_args.append(f"-fsanitize={sanitizers}")
        if switched_on("TWAPI_TLS_COVERAGE"):
            compile_args += ["--coverage", "-O0", "-g"]
            link_args.append("--coverage")

    return Extension(
        "twapi_tls._native",
        sources=sources(),
        depends=headers(),
        include_dirs=["csrc", "twapi_tls/include"],
        define_macros=macros,
        undef_macros=undefine,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        library_dirs=library_dirs,
        libraries=libraries,
        py_limited_api=not FREE_THREADED,
        language="c",
    )


class CrossBuild(build_ext):
    """Builds for a Windows CPython with mingw; see TWAPI_TLS_WINDOWS."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # This system's Python.h describes this system.
        self.include_dirs = [str(Path(WINDOWS_PYTHON) / "include")]
        self.library_dirs = []

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".pyd"

    def build_extensions(self) -> None:
        compiler = os.environ.get("CC", "x86_64-w64-mingw32-gcc")
        self.compiler.set_executables(
            preprocessor=f"{compiler} -E",
            compiler=compiler,
            compiler_so=compiler,
            linker_so=f"{compiler} -shared",
            linker_exe=compiler,
        )
        super().build_extensions()


# Building a source distribution or asking for metadata needs no OpenSSL, and
# must not fail for want of it.
BUILDS = {"build", "build_ext", "bdist_wheel", "bdist", "install", "develop"}
needs_extension = not {"sdist", "egg_info", "dist_info", "clean"} & set(sys.argv[1:])
needs_extension = needs_extension or bool(BUILDS & set(sys.argv[1:]))

setup(
    license="MIT",  # here, because old and new setuptools disagree on its form in pyproject
    ext_modules=[extension()] if needs_extension else [],
    cmdclass={"build_ext": CrossBuild} if CROSS else {},
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
