"""A server's look at the ClientHello: cut, spread and damaged in every way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sspi_support as sspi
from hypothesis import given
from hypothesis import strategies as st
from sspi_support import DONE, E_FORMAT, E_NOMEM, WANT_READ, client_hello, record, vector

t = sspi.load_testnative()

_names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}\.){0,4}[a-z]{2,10}", fullmatch=True)
_protocols = st.lists(st.binary(min_size=1, max_size=20), max_size=8).map(tuple)
_versions = st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=16).map(tuple)


def pieces(message: bytes, sizes: list[int]) -> bytes:
    """The message, spread over records of these sizes, in turn."""
    out = b""
    at = i = 0
    while at < len(message):
        size = sizes[i % len(sizes)]
        out += record(message[at : at + size], 22, 0x0301)
        at += size
        i += 1
    return out


@given(
    name=_names,
    alpn=_protocols,
    versions=_versions,
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5),
)
def test_what_was_written_is_read(
    name: str, alpn: tuple[bytes, ...], versions: tuple[int, ...], sizes: list[int]
) -> None:
    message = client_hello(name, alpn=alpn, versions=versions)
    told = t.hello(pieces(message, sizes))
    assert told["status"] == DONE
    assert told["sni"] == name
    assert told["alpn"] == b"".join(vector(p, 1) for p in alpn)
    assert told["versions"] == list(versions)


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=5), data=st.data())
def test_cut_anywhere_it_says_how_much_is_missing_at_least(
    sizes: list[int], data: st.DataObject
) -> None:
    stream = pieces(client_hello(alpn=(b"h2",)), sizes)
    cut = data.draw(st.integers(0, len(stream) - 1))
    told = t.hello(stream[:cut])
    assert told["status"] == WANT_READ
    assert 1 <= told["missing"] <= len(stream) - cut


def test_reading_what_is_missing_reads_no_byte_too_many() -> None:
    stream = pieces(client_hello(), [7, 1, 30])
    have = 0
    while (told := t.hello(stream[:have]))["status"] == WANT_READ:
        have += told["missing"]
    assert (told["status"], have) == (DONE, len(stream))


@given(tail=st.binary(max_size=50))
def test_what_follows_is_of_no_interest(tail: bytes) -> None:
    assert t.hello(record(client_hello(), 22) + tail)["status"] == DONE
    # in the same record, too
    assert t.hello(record(client_hello() + tail, 22))["status"] == DONE


@given(st.binary(max_size=200))
def test_garbage_never_crashes(data: bytes) -> None:
    told = t.hello(data)
    assert told["status"] in (DONE, WANT_READ, E_FORMAT)
    if told["status"] == E_FORMAT:
        assert told["code"] == sspi.INVALID_TOKEN and told["detail"]


@given(st.binary(max_size=200))
def test_garbage_in_a_client_hello_never_crashes(body: bytes) -> None:
    told = t.hello(record(b"\1" + vector(body, 3), 22))
    assert told["status"] in (DONE, E_FORMAT)


@given(st.binary(max_size=120))
def test_garbage_as_extensions_never_crashes(extensions: bytes) -> None:
    told = t.hello(record(client_hello(None, versions=(), extra=extensions), 22))
    assert told["status"] in (DONE, E_FORMAT)


def every_flip(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        for value in (0, 0xFF, data[at] ^ 1, data[at] ^ 0x80):
            yield data[:at] + bytes([value]) + data[at + 1 :]


def test_any_damaged_byte_gives_an_answer() -> None:
    good = record(client_hello("a.example", alpn=(b"h2", b"http/1.1")), 22)
    seen = set()
    for damaged in every_flip(good):
        told = t.hello(damaged)
        seen.add(told["status"])
        assert told["missing"] >= 1 if told["status"] == WANT_READ else told["missing"] == 0
    assert seen == {DONE, WANT_READ, E_FORMAT}


def sni(*entries: tuple[int, bytes]) -> bytes:
    listed = b"".join(bytes([kind]) + vector(name, 2) for kind, name in entries)
    return b"\0\0" + vector(vector(listed, 2), 2)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("Example.ORG", "example.org"),
        ("x" * 255, "x" * 255),
        ("x" * 256, ""),  # no host name is that long
        (b"a\0b", ""),  # nothing that could cut a C string short
        (b"b\xc3\xbccher.example", ""),
        (b"a b", ""),
        (b"a\x7f", ""),
    ],
)
def test_only_host_names_are_names(name: Any, read: str) -> None:
    told = t.hello(record(client_hello(name), 22))
    assert (told["status"], told["sni"]) == (DONE, read)


def test_the_first_host_name_counts() -> None:
    hello = client_hello(None, extra=sni((7, b"other"), (0, b"first"), (0, b"second")))
    assert t.hello(record(hello, 22))["sni"] == "first"


@pytest.mark.parametrize(
    "extra",
    [
        sni(),
        sni((0, b"")),
        sni((0, b"a")) + sni((0, b"a")),
        b"\0\0" + vector(vector(b"\0\0\1a", 2) + b"x", 2),
        b"\0\x10" + vector(b"\0\0", 2),
        b"\0\x10" + vector(vector(b"\0", 2), 2),
        b"\0\x10" + vector(vector(b"\3h2", 2), 2),
        b"\0\x2b" + vector(b"\0", 2),
        b"\0\x2b" + vector(vector(b"\3\3\3", 1), 2),
        b"\0\x2b" + vector(vector(b"\3\3", 1) + b"x", 2),
        b"\0",
        b"\0\0\0\5a",
    ],
    ids=lambda extra: extra.hex(),
)
def test_malformed_extensions(extra: bytes) -> None:
    told = t.hello(record(client_hello(None, versions=(), extra=extra), 22))
    assert told["status"] == E_FORMAT
    assert "malformed ClientHello" in told["detail"]
    assert (told["sni"], told["alpn"], told["versions"]) == ("", b"", [])


def test_more_protocols_and_versions_than_are_kept() -> None:
    alpn = tuple(bytes([65 + i]) * 100 for i in range(10))
    versions = tuple(range(100, 120))
    told = t.hello(record(client_hello(alpn=alpn, versions=versions), 22))
    assert told["alpn"] == b"".join(vector(p, 1) for p in alpn[:5])
    assert told["versions"] == list(versions[:16])


def test_without_extensions_the_legacy_version_counts() -> None:
    body = client_hello(None, versions=())[4:-2]  # no extensions at all
    told = t.hello(record(b"\1" + vector(body, 3), 22))
    assert (told["status"], told["versions"]) == (DONE, [0x0303])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n", "a plain HTTP request to a TLS port"),
        (b"\x80\x2e\x01\x03\x01", "an SSLv2 hello"),
        (b"\1\2\3\4\5", "not TLS"),
        (sspi.plain_alert(40), "a TLS alert instead of a ClientHello"),
        (record(b"data"), "no ClientHello"),
        (record(b"\2\0\0\0", 22), "no ClientHello"),
        (record(b"", 22) + b"\x16", "malformed TLS record"),
        (b"\x16\3\1\xff\xff", "too long"),
        (b"\x16\3\1\x40\x01", "malformed TLS record"),  # more than a plaintext holds
        (record(b"\1\1\0\0", 22), "more than 64 KiB"),
        (pieces(client_hello(extra=b"\xff\xff" + vector(bytes(5000), 2)), [1]), "too many pieces"),
        (record(b"\1\0", 22) + record(b"x"), "no ClientHello"),
    ],
)
def test_what_is_no_client_hello_is_named(data: bytes, words: str) -> None:
    told = t.hello(data)
    assert told["status"] == E_FORMAT
    assert words in told["detail"]


def test_a_spread_hello_without_memory() -> None:
    stream = pieces(client_hello(), [20])
    t.fail_allocation(1)
    try:
        assert t.hello(stream)["status"] == E_NOMEM
    finally:
        t.fail_allocation(0)
    assert t.hello(stream)["status"] == DONE
