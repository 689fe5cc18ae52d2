"""A process is looked into from outside: what a closed connection of its own
has left there of keys and data. Linux shows a process's memory in /proc.

Keys are those that the peer, Python's ``ssl``, derived. An SSL object of
libssl's goes back to the allocator as it is, TLS 1.3's secrets in it
(docs/threat-model.md); so they are not looked for, but what is made of them.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certs import Pki
from channels import tcp_pair
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from twapi_support import LIMIT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="no /proc shows a process's memory here"
)

OUT, IN = b"<what it sends> ", b"<what it gets>  "
TIMES = 4096
SIZE = TIMES * len(OUT)
HUGE = 1 << 30  # a mapping that is no allocator's: a sanitizer's shadow
VERSIONS = {"tls1.2": ssl.TLSVersion.TLSv1_2, "tls1.3": ssl.TLSVersion.TLSv1_3}

# Its own copies of the data lie in bytearrays, which it clears.
PROGRAM = """
import gc, socket, sys
import twapi_tls as tls

role, version, out, incoming, times, fd = sys.argv[1:7]
out = bytearray(out.encode())
out *= int(times)  # in place: bytes that are freed nobody clears
incoming = bytearray(len(out))


def run():
    pem = sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))
    store = tls.cert_temporary_store(pem=pem)
    kind = {"rootstore" if role == "client" else "certificates": store}
    config = tls.sspi_schannel_credentials(protocols=[version], disablereconnects=True, **kind)
    credentials = tls.sspi_acquire_credentials(role=role, credentials=config)
    channel = tls.starttls(
        socket.socket(fileno=int(fd)), server=role == "server", credentials=credentials,
        peersubject=None if role == "server" else "localhost",
    )
    channel.sendall(out)
    got = 0
    with memoryview(incoming) as view:
        while got < len(view):
            got += channel.recv_into(view[got:])
    for buffer in (out, incoming):
        buffer[:] = bytes(len(buffer))
    print("open", flush=True)
    sys.stdin.buffer.readline()
    tls.tls_close(channel)
    tls.sspi_free_credentials(credentials)
    tls.cert_store_release(store)


run()
gc.collect()
print("closed", flush=True)
sys.stdin.buffer.readline()
"""


@contextmanager
def process(role: str, version: str, pem: bytes, end: socket.socket) -> Iterator[subprocess.Popen]:
    """PROGRAM over ``end``, given ``pem``."""
    arguments = [role, version, OUT.decode(), IN.decode(), str(TIMES), str(end.fileno())]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[end.fileno()],
    ) as child:
        try:
            child.stdin.write(b"%d\n%b" % (len(pem), pem))
            child.stdin.flush()
            yield child
            child.stdin.close()
            assert child.wait(LIMIT) == 0
        finally:
            child.kill()


def memory_of(child: subprocess.Popen) -> Iterator[bytes]:
    """What the process can write to, one mapping after the other."""
    with open(f"/proc/{child.pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{child.pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            begin, end = (int(at, 16) for at in span.split("-"))
            if "w" in rights and end - begin < HUGE:
                memory.seek(begin)
                yield memory.read(end - begin)


def found(child: subprocess.Popen, wanted: dict[str, bytes]) -> set[str]:
    """Which of ``wanted`` lie in the process's memory."""
    return {name for part in memory_of(child) for name, value in wanted.items() if value in part}


def keys(log: Path, suite: str) -> dict[str, bytes]:
    """What a connection is protected with: RFC 8446, 7.3, of the secrets that
    the peer logged; in TLS 1.2 the master secret (RFC 5246, 8.1)."""
    made = {}
    for line in log.read_text().splitlines():
        if line.startswith("#"):
            continue
        label, _, secret = line.split()
        value = bytes.fromhex(secret)
        if label == "CLIENT_RANDOM":
            made["master secret"] = value
        elif "TRAFFIC" in label:
            algorithm = hashes.SHA384() if suite.endswith("384") else hashes.SHA256()
            length = 16 if "_128_" in suite else 32
            info = length.to_bytes(2, "big") + b"\x09tls13 key\x00"
            made[f"key of {label}"] = HKDFExpand(algorithm, length, info).derive(value)
    return made


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("role", ["client", "server"])
def test_a_closed_connection_leaves_nothing(
    pki: Pki, tmp_path: Path, role: str, version: str
) -> None:
    log = tmp_path / "secrets"
    if role == "client":
        pem, name = pki.root_pem, None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.server.combined)
    else:
        pem, name = pki.server.combined.read_bytes(), "localhost"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(pki.root)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    context.keylog_filename = os.fspath(log)
    end, sock = tcp_pair()
    end.setblocking(True)
    with end, process(role, version, pem, end) as child:
        end.close()
        with context.wrap_socket(sock, role == "client", server_hostname=name) as peer:
            peer.sendall(IN * TIMES)
            left = SIZE
            while left:
                left -= len(peer.recv(left))
            suite = peer.cipher()[0]
            assert child.stdout.readline() == b"open\n"
            secret = keys(log, suite)
            assert found(child, secret), "none found where they must be: the search is wrong"
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert peer.recv(1) == b""
        assert child.stdout.readline() == b"closed\n"
        if os.environ.get("TWAPI_TLS_RECORDS") != "openssl":
            # libssl does not clear the buffer that it decrypts in
            secret.update({"data sent": OUT * 2, "data received": IN * 2})
        assert found(child, secret) == set()
