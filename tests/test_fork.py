"""fork(): a child may use what the parent does not; using both is no silent
corruption: the peer refuses the second's records."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certs import Pki
from channels import Work, tls_pair
from twapi_support import (
    LIMIT,
    answer_one_line,
    client_credentials,
    connect,
    server_credentials,
    serving,
    tls_server,
)

import twapi_tls as tls

pytestmark = [
    pytest.mark.timeout(30),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()"),
    # Forking with threads is what is tried here.
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


def others_rest() -> None:
    """Waits until every other thread of this process waits in the system.

    A child has each lock as it was at the fork. Python's and the C library's
    are looked after; AddressSanitizer's allocator is not before LLVM 17 and
    GCC 14, and a thread that was joined may still be in there, giving back
    what it had: one child in sixty hung in its first malloc.
    """
    tasks = Path("/proc/self/task")  # another system's allocator is not ASan's
    end = time.monotonic() + LIMIT
    while tasks.is_dir() and not all(map(rests, tasks.iterdir())):
        assert time.monotonic() < end, "a thread is always at work"
        time.sleep(0.001)


def rests(task: Path) -> bool:
    try:
        _, _, rest = (task / "stat").read_text().rpartition(")")
    except OSError:
        return True  # it has ended
    return rest.split()[0] == "S" or task.name == str(threading.get_native_id())


def in_child(work: Callable[[], Any]) -> int:
    """Forks; the child does the work and ends without cleaning up. Its pid."""
    others_rest()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.alarm(int(2 * LIMIT))
        work()
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def succeeded(pid: int) -> bool:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_child_uses_what_the_parent_does_not(pki: Pki, version: str) -> None:
    """The forking server: the child has the connection."""
    with tls_pair(pki, version=version) as (here, there):
        here.sendall(b"before")
        assert there.recv(10) == b"before"

        def child() -> None:
            there.sendall(there.recv(100)[::-1])
            assert there.read() == b""
            there.close()

        pid = in_child(child)
        # The parent lets go of its copy, and says nothing to the peer.
        there.abort()
        here.sendall(b"after")
        assert here.recv(10) == b"retfa"
        here.shutdown(1)
        assert here.read() == b""
        assert succeeded(pid)


def test_aborting_the_childs_copy_does_not_hurt_the_parent(pki: Pki) -> None:
    """Nor does the child's end: nothing is sent, the connection is not shut."""
    with tls_pair(pki) as (here, there):
        assert succeeded(in_child(lambda: None))
        here.sendall(b"still mine")
        assert there.recv(100) == b"still mine"


def test_a_child_makes_channels_of_its_own(pki: Pki) -> None:
    """Credentials acquired before the fork serve in both."""
    creds = client_credentials(pki)
    with serving(tls_server(pki.server, answer_one_line)) as served:

        def talk() -> None:
            with connect(served.port, credentials=creds) as channel:
                channel.puts(b"line")
                assert channel.gets() == b"enil"

        talk()
        pid = in_child(talk)
        talk()
        assert succeeded(pid)
        assert [served.result() for _ in range(3)] == ["line"] * 3


def test_a_child_that_forked_while_another_thread_worked(pki: Pki) -> None:
    """A thread in a read holds that channel's locks for ever in the child:
    other channels work there."""
    creds = client_credentials(pki)
    with tls_pair(pki) as (here, there), serving(tls_server(pki.server, answer_one_line)) as served:
        reading = Work(here.recv, 10)

        def talk() -> None:
            with connect(served.port, credentials=creds) as channel:
                channel.puts(b"line")
                assert channel.gets() == b"enil"

        pids = [in_child(talk) for _ in range(3)]
        assert [succeeded(pid) for pid in pids] == [True] * 3
        there.sendall(b"x")
        assert reading.result() == b"x"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_using_both_is_refused_by_the_peer(pki: Pki, version: str) -> None:
    """The child's record has a number that was used: never taken for data."""
    with tls_pair(pki, version=version) as (here, there):
        assert succeeded(in_child(lambda: here.sendall(b"from the child")))
        assert there.recv(100) == b"from the child"
        here.sendall(b"from the parent")
        with pytest.raises(tls.TLSError) as caught:
            there.recv(100)
        assert caught.value.name in ("SEC_E_MESSAGE_ALTERED", "SEC_E_DECRYPT_FAILURE")
        assert caught.value.alert_sent == "bad_record_mac"
        with pytest.raises(OSError):
            while here.recv(100):
                pass


def test_a_server_that_forks_for_each_connection(pki: Pki) -> None:
    import socket

    creds = server_credentials(pki.server)
    children: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)

        def serve() -> None:
            for _ in range(2):
                plain, _ = listener.accept()
                plain.settimeout(LIMIT)

                def child(plain: socket.socket = plain) -> None:
                    with tls.starttls(plain, server=True, credentials=creds) as channel:
                        channel.sendall(channel.recv(100)[::-1])

                children.append(in_child(child))
                plain.close()

        serving_them = Work(serve)
        port = listener.getsockname()[1]
        channels = [connect(port, pki) for _ in range(2)]
        for number, channel in enumerate(channels):
            with channel:
                channel.sendall(b"hello %d" % number)
                assert channel.recv(100) == (b"hello %d" % number)[::-1]
        serving_them.result()
    assert [succeeded(pid) for pid in children] == [True] * 2
