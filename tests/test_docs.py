"""The pages in docs/ and the README say what is so: their code runs.

Blocks of one page share their names, as a reader would type them in. The word
after ``python`` says how a block is run: none, as it stands; ``server``: in a
thread, until a client has been served; ``client``: as it stands. A client's
``www.example.org`` is a server here, trusted as the system's roots would be.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.machinery
import importlib.util
import inspect
import queue
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from certs import Pki

import twapi_tls as tls

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LIMIT = 20.0

if not DOCS.is_dir():
    pytest.skip("no checkout: docs is not here", allow_module_level=True)

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[ \t]*(\w*)[ \t]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str, int]]:
    """(language, word, text, line) of each block of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        (match[1], match[2], match[3], text.count("\n", 0, match.start()) + 2)
        for match in BLOCK.finditer(text)
    ]


WITH_CODE = [page for page in PAGES if any(block[0] == "python" for block in blocks(page))]


def identity(pem: Path) -> tls.Credentials:
    with tls.cert_temporary_store(pem=pem.read_bytes()) as store:
        config = tls.sspi_schannel_credentials(certificates=store, alpn=["http/1.1"])
    return tls.sspi_acquire_credentials(role="server", credentials=config)


def answer(channel: Any) -> None:
    """A page for GET, and an echo for everything else."""
    try:
        with channel:
            while data := channel.recv(65536):
                if data.startswith(b"GET "):
                    channel.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello\n")
                    return
                channel.sendall(data)
    except OSError:
        pass  # clients of ours that end in the middle


@dataclass
class World:
    """What the blocks meet in place of the network."""

    pki: Pki
    port: int = 0
    loop: asyncio.AbstractEventLoop | None = None
    listeners: queue.Queue[tuple[int, asyncio.AbstractEventLoop]] = field(
        default_factory=queue.Queue
    )
    ready: threading.Event = field(default_factory=threading.Event)
    workers: list[threading.Thread] = field(default_factory=list)

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        def accepted(channel: Any, address: str, port: int) -> None:
            worker = threading.Thread(target=answer, args=(channel,))
            self.workers.append(worker)
            worker.start()

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: None)  # refused on purpose by the blocks
        self.over = asyncio.Event()
        with REAL(
            0, server=accepted, credentials=identity(self.pki.server.combined), myaddr="127.0.0.1"
        ) as listener:
            self.port, self.loop = listener.getsockname()[1], loop
            self.ready.set()
            await self.over.wait()

    def tls_socket(self, *address: Any, **options: Any) -> Any:
        """``tls_socket`` with the names of the pages led here."""
        if "server" in options:
            listener = REAL(0, **{**options, "myaddr": "127.0.0.1"})
            self.listeners.put((listener.getsockname()[1], asyncio.get_running_loop()))
            return listener
        host, _ = address
        assert host.endswith("example.org"), host
        options.setdefault("peersubject", "localhost")
        options.setdefault("timeout", LIMIT)
        if "credentials" not in options:
            roots = tls.cert_temporary_store(pem=self.pki.root_pem)
            options["credentials"] = tls.sspi_acquire_credentials(
                credentials=tls.sspi_schannel_credentials(rootstore=roots)
            )
        return REAL("127.0.0.1", self.port, **options)


REAL = tls.tls_socket


@pytest.fixture
def world(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    here = World(pki)
    shutil.copy(pki.server.combined, tmp_path / "server.pem")
    shutil.copy(pki.client.combined, tmp_path / "client.pem")
    shutil.copy(pki.root, tmp_path / "root.pem")
    monkeypatch.chdir(tmp_path)
    thread = threading.Thread(target=here.run)
    thread.start()
    assert here.ready.wait(LIMIT)
    monkeypatch.setattr(tls, "tls_socket", here.tls_socket)
    yield here
    assert here.loop is not None
    here.loop.call_soon_threadsafe(here.over.set)
    thread.join(LIMIT)
    for worker in here.workers:
        worker.join(LIMIT)
    assert not thread.is_alive()


def run_server(code: Any, names: dict[str, Any], world: World) -> None:
    """Runs a block that serves for ever until it has served one client."""

    def body() -> None:
        try:
            exec(code, names)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            failures.append(error)

    failures: list[BaseException] = []
    thread = threading.Thread(target=body)
    thread.start()
    port, loop = world.listeners.get(timeout=LIMIT)
    port_before, world.port = world.port, port
    try:
        with world.tls_socket("www.example.org", 443) as channel:
            assert channel.read() == b"hello\n"
    finally:
        world.port = port_before
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(LIMIT)
    assert not failures, failures
    assert not thread.is_alive()


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path, world: World) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, word, text, line in blocks(page):
        if language != "python":
            continue
        tree = ast.parse("\n" * (line - 1) + text, str(page))
        code = compile(tree, str(page), "exec")
        if word == "server":
            run_server(code, names, world)
        else:
            assert word in ("", "client"), f"{page.name}:{line}: how is {word!r} run?"
            exec(code, names)


def reference() -> Any:
    loader = importlib.machinery.SourceFileLoader("reference", str(ROOT / "scripts" / "reference"))
    spec = importlib.util.spec_from_loader("reference", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def test_the_reference_has_every_public_name_and_no_other() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### `(\w+)`$", text, re.MULTILINE)) == sorted(tls.__all__)


def test_the_reference_names_every_argument() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    for name in tls.__all__:
        thing = getattr(tls, name)
        if not inspect.isfunction(thing):
            continue
        entry = re.search(rf"^### `{name}`\n\n```text\n(.*?)^```$", text, re.M | re.S)
        assert entry is not None, name
        for argument in inspect.signature(thing).parameters:
            assert re.search(rf"\b{argument}\b", entry[1]), (
                f"{name}: {argument} is not in docs/reference.md; run scripts/reference"
            )


def test_the_reference_lists_what_a_channel_can_do() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    entry = re.search(r"^### `Channel`\n(.*?)^### ", text, re.M | re.S)
    assert entry is not None
    documented = set(re.findall(r"^- `(\w+)", entry[1], re.MULTILINE))
    inside = reference().INSIDE
    assert documented == {
        name for name in dir(tls.Channel) if not name.startswith("_") and name not in inside
    }


def test_the_reference_can_be_written_anew() -> None:
    page = reference().page()
    assert re.findall(r"^### ", page, re.MULTILINE).__len__() == len(tls.__all__)


def anchors(page: Path) -> set[str]:
    found = set()
    for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def test_the_tests_that_the_readme_names_exist() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme.partition("| feature | tests |\n|---|---|\n")[2].partition("\n\n")[0]
    for row in table.splitlines():
        assert re.search(r"`test_\w+\.py::", row), row
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", readme)
    assert len(named) > len(table.splitlines()) > 10
    for file, name in named:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{file}::{name}"


def test_examples_compile_and_say_what_they_are() -> None:
    for path in sorted((ROOT / "examples").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path.name


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == tls.__version__
    assert f"## {tls.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_help_and_version_of_the_command_line() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "twapi_tls", "--version"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
        cwd=ROOT,
    ).stdout
    assert f"twapi_tls {tls.__version__} on " in said
    assert tls.engine.version in said
