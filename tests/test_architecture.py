"""The house holds: who may include and import whom, and the manners of our C.

C: ``python -> wire -> core -> sspi``, never up.  Python: imports run downhill,
no cycles.  Exceptions are named in the tables below, with their reason.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import sspi_support

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "twapi_tls"

if not CSRC.is_dir():
    pytest.skip("no checkout: csrc is not here", allow_module_level=True)

C_FILES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".c", ".h"))
C_NAMES = [path.relative_to(CSRC).as_posix() for path in C_FILES]
PY_FILES = sorted(PACKAGE.glob("*.py"))

# --- C: includes -----------------------------------------------------------

FLOORS = {"sspi": 0, "core": 1, "wire": 2, "python": 3}

# What the ground floor may take from the first: words without protocol.
SSPI_MAY_TAKE = {"core/status.h", "core/atomic.h", "core/lock.h"}

# (file, header it includes) -> why.  Every line is a debt; keep it short.
INCLUDE_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("python/capi.c", "twapi_tls.h"): "the public header of the capsule, in twapi_tls/include",
}

# A system header's beginning -> the files (by pattern) that may include it.
SYSTEM_HEADERS = {
    r"Python\.h|structmember\.h": r"python/",
    r"openssl/": r"sspi/\w*openssl\w*\.[ch]$",
    # inet_pton and its kin read addresses; they open nothing.
    r"arpa/": r"wire/|sspi/\w*openssl\w*\.[ch]$",
    r"sys/socket\.h|netinet/|netdb\.h|poll\.h|sys/poll\.h|sys/uio\.h": r"wire/",
    # windows.h brings the old winsock unless winsock2.h came first.
    r"winsock2\.h|ws2tcpip\.h": r"wire/|sspi/sspi\.h$|core/(lock|atomic)\.h$",
}

PROVIDERS = {"openssl": {"openssl"}, "schannel": {"schannel", "crypt32"}}


def includes(text: str) -> Iterator[tuple[str, bool]]:
    """(header, whether it is ours) for each include line."""
    pattern = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)
    for match in pattern.finditer(text):
        yield match[2], match[1] == '"'


def provider_of(name: str) -> str | None:
    words = set(Path(name).stem.split("_"))
    for provider, marks in PROVIDERS.items():
        if words & marks:
            return provider
    return None


@pytest.mark.parametrize("name", C_NAMES)
def test_includes_run_downhill(name: str) -> None:
    here = name.partition("/")[0]
    assert here in FLOORS, f"{name}: no such floor"
    wrong = []
    for header, ours in includes((CSRC / name).read_text()):
        if (name, header) in INCLUDE_EXCEPTIONS:
            continue
        if not ours:
            for pattern, allowed in SYSTEM_HEADERS.items():
                if re.match(pattern, header) and not re.match(allowed, name):
                    wrong.append(f"<{header}> belongs to {allowed}")
            continue
        there = header.partition("/")[0]
        if header.endswith(".c"):
            wrong.append(f"{header}: a C file is no header")
        elif there not in FLOORS or not (CSRC / header).is_file():
            wrong.append(f"{header}: not written from csrc/, or not there")
        elif FLOORS[there] > FLOORS[here] and not (here == "sspi" and header in SSPI_MAY_TAKE):
            wrong.append(f"{header}: upwards")
        elif provider_of(name) and provider_of(header) and provider_of(name) != provider_of(header):
            wrong.append(f"{header}: sideways, from one provider to another")
    assert not wrong, f"{name}: " + "; ".join(wrong)


def test_include_exceptions_are_used() -> None:
    """An exception that nothing needs any more goes out of the table."""
    for name, header in INCLUDE_EXCEPTIONS:
        path = CSRC / name
        if path.is_file():
            assert header in {found for found, _ in includes(path.read_text())}, (name, header)


# --- C: manners ------------------------------------------------------------


def without_comments_and_strings(text: str) -> str:
    """The code alone; lengths and line ends stay, so that lines can be named."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    pattern = r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
    return re.sub(pattern, blank, text, flags=re.DOTALL)


def without_directives(code: str) -> str:
    """Preprocessor lines, continuations included, blanked."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, code, flags=re.MULTILINE)


def end_of_parenthesis(code: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(code)):
        if code[position] == "(":
            depth += 1
        elif code[position] == ")":
            depth -= 1
            if depth == 0:
                return position + 1
    return len(code)


def missing_braces(text: str) -> list[str]:
    code = without_directives(without_comments_and_strings(text))
    wrong = []
    for match in re.finditer(r"\b(if|for|while|switch|else|do)\b", code):
        word = match[1]
        after = match.end()
        if word in ("if", "for", "while", "switch"):
            opening = code.find("(", after)
            if opening < 0:
                continue
            after = end_of_parenthesis(code, opening)
        rest = code[after:].lstrip()
        if rest.startswith("{"):
            continue
        if word == "else" and re.match(r"if\b", rest):
            continue
        if word == "while" and rest.startswith(";") and code[: match.start()].rstrip()[-1:] == "}":
            continue  # the end of do { } while ();
        wrong.append(f"{code.count(chr(10), 0, match.start()) + 1}: {word} without braces")
    return wrong


@pytest.mark.parametrize("name", C_NAMES)
def test_manners_of_c(name: str) -> None:
    text = (CSRC / name).read_text(encoding="utf-8")
    wrong = []
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > 79:
            wrong.append(f"{number}: {len(line)} columns")
        if "\t" in line:
            wrong.append(f"{number}: tab")
        if line != line.rstrip():
            wrong.append(f"{number}: blank at the end")
        if re.search(r"\b(TBD|TODO|FIXME|XXX)\b", line):
            wrong.append(f"{number}: something left to be done")
    code = without_comments_and_strings(text)
    strings_blanked = re.sub(r"\"(?:\\.|[^\"\\\n])*\"", '""', text)
    outside = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), strings_blanked, flags=re.S)
    for number, line in enumerate(outside.split("\n"), 1):
        if "//" in line:
            wrong.append(f"{number}: // comment")
    if re.search(r"\btypedef\s+struct\s*\w*\s*\{", code) and name != "sspi/sspi.h":
        wrong.append("a typedef'd struct (only SSPI's own may be)")
    if not text.lstrip().startswith("/*"):
        wrong.append("1: the head has no comment")
    if not text.endswith("\n") or text.endswith("\n\n"):
        wrong.append("the file does not end in one line end")
    wrong += missing_braces(text)
    assert not wrong, f"{name}:\n  " + "\n  ".join(wrong)


def test_the_lint_finds_what_it_is_for() -> None:
    good = "if (a) {\n} else if (b) {\n}\ndo {\n} while (c);\nfor (;;) {\n}\n/* if (x) y; */\n"
    assert missing_braces(good) == []
    assert missing_braces("\nif (a(b))\n    c();\n") == ["2: if without braces"]
    assert missing_braces("if (a) {\n} else\n    c();\n") == ["2: else without braces"]
    assert missing_braces("while (a)\n    ;\n") == ["1: while without braces"]


# --- Python: imports -------------------------------------------------------

# Downhill: a module imports, when it is loaded, only modules of a lower number.
# A module that is not here must still not make a cycle.
LEVELS = {
    "_native": 0,
    "errors": 1,
    "text": 2,
    "registry": 2,
    "starttls_dialogues": 2,
    "progress": 2,
    "pool": 2,
    "gather": 2,
    "transport": 2,
    "certs": 3,
    "verify": 4,
    "sspi": 5,
    "describe": 6,
    "streams": 3,
    "events": 5,
    "pollers": 2,
    "tuples": 1,
    "background": 6,
    "channel": 7,
    "commands": 8,
    "aio": 9,
    "ssl_compat": 10,
    "__init__": 11,
    "demo": 12,
    "bench": 12,
    "cli": 13,
    "__main__": 14,
}

# (module, what it imports) -> why.
IMPORT_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("events", "__init__"): "reads the overridable tls_background_error off the package",
}

# Modules of the standard library that only these may import when loaded.
# asyncio imports ssl, and importing twapi_tls must load neither.
RESERVED = {
    "ssl": {"ssl_compat", "bench"},  # the benchmarks compare with it
    "asyncio": {"aio", "ssl_compat", "demo", "bench"},
}


def imports_at_load(tree: ast.AST) -> Iterator[tuple[str, int, str | None, int]]:
    """(module, level, name, line) of imports outside functions and TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports_at_load(ast.Module([other], []))
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, 0, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.module or "", node.level, alias.name, node.lineno
        else:
            yield from imports_at_load(node)


def siblings_imported(path: Path) -> dict[str, int]:
    """Modules of the package that a module imports when loaded, with the line."""
    known = {other.stem for other in PY_FILES} | set(LEVELS)
    found: dict[str, int] = {}
    for module, level, name, line in imports_at_load(ast.parse(path.read_text())):
        parts = module.split(".") if module else []
        if level == 0:
            if not parts or parts[0] != "twapi_tls":
                continue
            parts = parts[1:]
        if parts:
            found[parts[0]] = line
        elif name is not None and name in known:
            found[name] = line
        else:
            found["__init__"] = line
    return found


@pytest.mark.parametrize("path", PY_FILES, ids=lambda path: path.name)
def test_imports_run_downhill(path: Path) -> None:
    here = path.stem
    wrong = []
    for there, line in siblings_imported(path).items():
        if (here, there) in IMPORT_EXCEPTIONS:
            continue
        if here in LEVELS and there in LEVELS and LEVELS[there] >= LEVELS[here]:
            wrong.append(f"line {line}: {here} imports {there}, which is not below it")
        elif there == "__init__" and here not in LEVELS:
            wrong.append(f"line {line}: {here} imports the package itself")
    for module, level, _, line in imports_at_load(ast.parse(path.read_text())):
        top = module.partition(".")[0]
        if level == 0 and top in RESERVED and here not in RESERVED[top]:
            wrong.append(f"line {line}: {here} imports {top} when it is loaded")
    assert not wrong, "; ".join(wrong)


def test_imports_make_no_cycle() -> None:
    graph = {
        path.stem: {
            there
            for there in siblings_imported(path)
            if (path.stem, there) not in IMPORT_EXCEPTIONS
        }
        for path in PY_FILES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' -> '.join(error.args[1])}")


def test_nobody_but_ssl_compat_names_ssl() -> None:
    """Not even inside a function."""
    for path in PY_FILES:
        if path.stem in RESERVED["ssl"]:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert "ssl" not in names, f"{path.name}:{getattr(node, 'lineno', 0)} imports ssl"


def test_importing_the_package_loads_neither_ssl_nor_asyncio() -> None:
    program = (
        "import sys, twapi_tls\n"
        "for name in twapi_tls.__all__: getattr(twapi_tls, name)\n"
        "print(sorted({'ssl', '_ssl', 'asyncio', 'rich'} & set(sys.modules)))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert (answer.returncode, answer.stdout.strip()) == (0, "[]"), answer.stderr


def test_the_package_loads_its_modules_at_first_use() -> None:
    program = (
        "import sys, twapi_tls\n"
        "before = [name for name in sys.modules if name.startswith('twapi_tls.')]\n"
        "assert set(twapi_tls.__all__) <= set(dir(twapi_tls))\n"
        "try: twapi_tls.no_such_name\n"
        "except AttributeError as error: print(before, 'no_such_name' in str(error))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert (answer.returncode, answer.stdout.strip()) == (0, "[] True"), answer.stderr


def test_a_client_loads_no_more_than_it_needs() -> None:
    """Each of these would make it slower to load than ssl is."""
    program = (
        "import sys, twapi_tls; twapi_tls.tls_socket\n"
        "slow = {'typing', 're', 'importlib', 'inspect', 'dataclasses', 'ipaddress', 'queue'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
    )
    assert (answer.returncode, answer.stdout.strip()) == (0, "[]"), answer.stderr


# --- what is written about the code --------


def test_pages_that_are_named_are_there() -> None:
    """A comment that sends its reader to a page sends them to one of ours."""
    sources = [*C_FILES, *PY_FILES]
    for folder in ("tests", "benchmarks", "examples", "scripts"):
        found = [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".c", "")]
        sources += [p for p in found if "corpus" not in p.parts]  # bytes, not text
    pages = {page.name for where in (".", "docs", "tests") for page in (ROOT / where).glob("*.md")}
    named = {
        (page, path.relative_to(ROOT).as_posix())
        for path in sources
        if path.is_file()
        for page in re.findall(r"\b([A-Z]\w+\.md)\b", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 3
    assert {page for page, _ in named} <= pages, named
    for path in C_FILES:
        numbered = re.search(r"\b[Ff]acts? \d", path.read_text(encoding="utf-8"))
        assert not numbered, f"{path.name}: a fact by its number, of a list that is not here"


# --- what is for tests only --------------------------------------------------


def test_what_is_for_tests_only_is_not_shipped() -> None:
    """The scripted engine is in _testnative, and in nothing that a wheel holds."""
    mark = b"the script refuses the credentials"
    assert mark in (CSRC / "sspi" / "scripted.c").read_bytes()
    shipped = Path(importlib.import_module("twapi_tls._native").__file__ or "")
    assert mark not in shipped.read_bytes(), "the scripted engine is in the shipped extension"
    strangers = [path.name for path in shipped.parent.iterdir() if "_testnative" in path.name]
    assert not strangers, "a module for tests lies in the package"
    testnative = sspi_support.load_testnative()
    assert mark in Path(testnative.__file__).read_bytes()
