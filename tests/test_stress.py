"""The short forms of ``make stress``: each run's promises, with fewer of them."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import stress
from certs import Pki

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measured by Linux's /proc"),
]


@pytest.mark.slow
def test_rounds(pki: Pki) -> None:
    """Connect, transfer, close: descriptors and memory are where they were."""
    print(stress.rounds(pki, 1000))


def test_positions(pki: Pki) -> None:
    print(stress.positions(pki, 97))


def test_slow_peers(pki: Pki) -> None:
    print(stress.slow(pki, 30))


def test_many_connections(pki: Pki) -> None:
    print(stress.many(pki, 200, 40))


def test_handshakes(pki: Pki) -> None:
    print(stress.handshakes(pki, 800))


def test_a_leak_is_found(pki: Pki) -> None:
    """The measure itself: descriptors and memory that stay are told."""
    watch = stress.Watch()
    kept = stress.socket.socket()
    with pytest.raises(stress.Broken, match="descriptors leaked"):
        stress.LIMIT, limit = 0.1, stress.LIMIT
        try:
            watch.judge()
        finally:
            stress.LIMIT = limit
            kept.close()
    if stress.SANITIZED:
        return
    # Past Python's allocator, which may have that much put by.
    with mmap.mmap(-1, 3 * stress.GROWTH) as ballast:
        ballast.write(bytes(len(ballast)))
        with pytest.raises(stress.Broken, match="memory grew"):
            watch.judge()
