"""Fixtures that every test may use: certificates, and the watch over descriptors."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certs import Identity, Pki, make_pki
from hypothesis import settings
from platforms import NOT_HERE, SLOWER, WINDOWS, WINE, skip_reason, wine_lacks
from windows_native import unchanged

import twapi_tls as tls

# What the interpreter and its libraries open once and keep.
_HARMLESS = ("/dev/urandom", "/dev/random", "/dev/null")
_SETTLE = 2.0 * SLOWER  # seconds a thread or a child may take to let go of its descriptors


# A busy machine is no failure; the test's own time limit bounds a hang.
settings.register_profile("twapi_tls", deadline=None)
settings.load_profile("twapi_tls")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's job in the background; the programs that tests interrupt
        # would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "keeps_fds: the test leaves descriptors open on purpose")
    if WINDOWS:
        # Its own test asks for it (pytest.warns); elsewhere it would hide what a test is about.
        config.addinivalue_line(
            "filterwarnings", "ignore:Windows does not find the intermediate:RuntimeWarning"
        )


collect_ignore = list(NOT_HERE)


def pytest_report_header() -> list[str]:
    return [f"not here: {name}: {reason}" for name, reason in NOT_HERE.items()]


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.nodeid.rpartition("/")[2]
        if wine_lacks(name) and item.get_closest_marker("real_windows") is None:
            item.add_marker(pytest.mark.real_windows(elsewhere=True))
        reason = skip_reason(name) or _not_real(item.get_closest_marker("real_windows"))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        limit = item.get_closest_marker("timeout")
        if limit is not None:
            item.add_marker(pytest.mark.timeout(SLOWER * limit.args[0]), append=False)


def _not_real(marker: pytest.Mark | None) -> str:
    """Why a test for Windows itself cannot be here; "" if it can.

    ``real_windows(elsewhere=True)``: other engines can show the same.
    """
    if marker is None or (WINDOWS and not WINE):
        return ""
    if marker.kwargs.get("elsewhere") and not WINDOWS:
        return ""
    return "only a real Windows shows this"


@pytest.fixture(scope="session", autouse=True)
def no_intermediates_left() -> Iterator[None]:
    """The user's store of intermediates is afterwards as it was."""
    if not WINDOWS:
        yield
        return
    with unchanged("CA"):
        yield


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory, no_intermediates_left: None) -> Pki:
    """A root, an intermediate, and certificates good and bad; see certs.py."""
    made = make_pki(tmp_path_factory.mktemp("pki"))
    if WINDOWS and not WINE:
        # Schannel sends the intermediates that Windows finds.
        with tls.cert_system_store_open("CA") as store:
            tls.cert_store_add_certificate(store, tls.cert_import(made.intermediate.read_bytes()))
    return made


@pytest.fixture(scope="session", params=["p256", "rsa2048"])
def server_identity(request: pytest.FixtureRequest, pki: Pki) -> Identity:
    """The good server certificate, once with each kind of key."""
    return pki.server if request.param == "p256" else pki.server_rsa


def open_descriptors() -> dict[int, str]:
    """Descriptor to what it names; empty where the system does not tell."""
    for folder in (Path("/proc/self/fd"), Path("/dev/fd")):
        if folder.is_dir():
            break
    else:
        return {}
    found = {}
    for entry in os.listdir(folder):
        descriptor = int(entry)
        try:
            # A link on Linux; on macOS only that it is open can be known.
            os.fstat(descriptor)
            found[descriptor] = os.readlink(folder / entry) if folder.parts[1] == "proc" else "open"
        except OSError:
            continue  # the listing's own
    return found


def new_descriptors(before: dict[int, str]) -> dict[int, str]:
    return {
        descriptor: target
        for descriptor, target in open_descriptors().items()
        if before.get(descriptor) != target and target not in _HARMLESS
    }


@pytest.fixture(autouse=True)
def no_leaked_descriptors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which a descriptor is open that was not before.

    Fixtures of the session that start within the test are set up before this
    one, so what they keep is not counted.
    """
    before = open_descriptors()
    yield
    if request.node.get_closest_marker("keeps_fds") is not None:
        return
    leaked = new_descriptors(before)
    if leaked:
        gc.collect()
        leaked = new_descriptors(before)
    settled = threading.Event()
    end = time.monotonic() + _SETTLE
    while leaked and time.monotonic() < end:
        settled.wait(0.02)
        leaked = new_descriptors(before)
    if leaked:
        listing = ", ".join(f"{fd} -> {target}" for fd, target in sorted(leaked.items()))
        pytest.fail(f"the test left descriptors open: {listing}")


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Fail a test after which a thread runs that did not before."""
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + _SETTLE
    for thread in set(threading.enumerate()) - before:
        thread.join(max(end - time.monotonic(), 0))
    left = [thread.name for thread in set(threading.enumerate()) - before]
    if left:
        pytest.fail(f"the test left threads running: {', '.join(left)}")
