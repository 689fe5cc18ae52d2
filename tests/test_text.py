"""The text layer: encodings, line ends and eofchar, however the bytes are cut.

The reference is the standard library: its incremental decoders, and its
universal newline decoder.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from certs import Pki
from channels import Work, plain_pair, tls_pair
from hypothesis import given, settings
from hypothesis import strategies as st

from twapi_tls.text import TextReader, TextSettings, TextWriter

pytestmark = pytest.mark.timeout(60)

ENCODINGS = ["utf-8", "utf-16", "utf-16-le", "utf-32-be", "latin-1", "shift_jis", "utf-7"]


@pytest.fixture
def ends(pki: Pki) -> Iterator[tuple[Any, Any]]:
    with tls_pair(pki) as both:
        yield both


@pytest.fixture(params=["plain", "TLS"])
def pair(request: pytest.FixtureRequest, pki: Pki) -> Iterator[tuple[Any, Any]]:
    with plain_pair() if request.param == "plain" else tls_pair(pki) as both:
        yield both


# --- encodings


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_both_ways(pair: tuple[Any, Any], encoding: str) -> None:
    here, there = pair
    here.configure(encoding=encoding)
    there.configure(encoding=encoding)
    line = "日本語" if encoding != "latin-1" else "Grüße"
    here.puts(line)
    here.write("second\n")
    assert there.gets() == line
    there.puts("answer")
    assert here.readline() == "answer\n"
    assert there.readline() == "second\n"
    here.close()
    assert there.read() == ""
    assert there.eof()


def test_text_and_bytes_are_not_mixed_up(ends: tuple[Any, Any]) -> None:
    here, _ = ends
    with pytest.raises(TypeError, match="encoding is None"):
        here.write("text")
    with pytest.raises(TypeError, match="encoding is None"):
        here.puts("text")
    here.configure(encoding="utf-8")
    with pytest.raises(TypeError, match="encoding is set"):
        here.write(b"bytes")
    with pytest.raises(TypeError, match="encoding is set"):
        here.puts(b"bytes")
    # The unbuffered stream is bytes always.
    here.sendall(b"bytes")


def test_an_unencodable_character_sends_nothing(ends: tuple[Any, Any]) -> None:
    here, there = ends
    here.configure(encoding="ascii")
    with pytest.raises(UnicodeEncodeError):
        here.write("half é")
    here.write("whole")
    assert there.read(5) == b"whole"


def test_undecodable_bytes_come_after_the_good(ends: tuple[Any, Any]) -> None:
    here, there = ends
    there.configure(encoding="utf-8")
    here.sendall("grün".encode() + b"\xff rest")
    assert there.read(4) == "grün"
    for _ in range(2):
        with pytest.raises(UnicodeDecodeError):
            there.read(1)
    # Nothing is lost: as bytes it is there.
    there.configure(encoding=None)
    assert there.read(6) == b"\xff rest"


@pytest.mark.parametrize("read", ["readline", "gets", "read"])
def test_half_a_character_at_the_end(ends: tuple[Any, Any], read: str) -> None:
    here, there = ends
    there.configure(encoding="utf-8")
    here.sendall("good €".encode()[:-1])
    here.close()
    assert getattr(there, read)() == "good "
    with pytest.raises(UnicodeDecodeError):
        getattr(there, read)()


def test_a_character_over_two_records(ends: tuple[Any, Any]) -> None:
    here, there = ends
    there.configure(encoding="utf-8")
    for byte in "€uro\n".encode():
        here.sendall(bytes([byte]))
    assert there.gets() == "€uro"


def test_non_blocking_text_waits_for_the_whole_character(ends: tuple[Any, Any]) -> None:
    here, there = ends
    there.configure(encoding="utf-8")
    first, second = "€".encode()[:2], "€".encode()[2:]
    here.sendall(first)
    there.settimeout(0.05)
    with pytest.raises(TimeoutError):
        there.read(1)
    there.setblocking(False)
    with pytest.raises(BlockingIOError):
        there.read(1)
    here.sendall(second)
    there.settimeout(5)
    assert there.read(1) == "€"


def test_changing_the_encoding_in_mid_stream(ends: tuple[Any, Any]) -> None:
    """HTTP's text head, a binary body, text again: not a byte is lost."""
    here, there = ends
    body = bytes(range(256))
    here.sendall("Kopf: ä\r\n\r\n".encode() + body + "ö\n".encode("latin-1"))
    there.configure(encoding="utf-8", translation="crlf")
    assert there.gets() == "Kopf: ä"
    assert there.gets() == ""
    there.configure(translation="binary")
    assert there.cget("encoding") is None
    assert there.read(256) == body
    there.configure(encoding="latin-1")
    assert there.gets() == "ö"


def test_recv_takes_what_the_text_layer_has_not_used(ends: tuple[Any, Any]) -> None:
    here, there = ends
    here.sendall("früh\nspät".encode())
    there.configure(encoding="utf-8")
    assert there.gets() == "früh"
    assert there.pending() == 5
    assert there.recv(100) == "spät".encode()
    assert there.pending() == 0


# --- line ends


LINE_ENDS = {"lf": b"\n", "cr": b"\r", "crlf": b"\r\n", "auto": b"\r\n", "binary": b"\n"}


@pytest.mark.parametrize("output", LINE_ENDS)
@pytest.mark.parametrize("encoding", [None, "utf-16-le"])
def test_translation_of_output(ends: tuple[Any, Any], output: str, encoding: Any) -> None:
    here, there = ends
    here.configure(translation=("lf", output))
    here.configure(encoding=encoding)
    assert here.cget("encoding") == encoding
    text = "one\ntwo\n" if encoding else b"one\ntwo\n"
    assert here.write(text) == 8
    end = LINE_ENDS[output].decode()
    wire = f"one{end}two{end}".encode(encoding or "ascii")
    assert there.read(len(wire)) == wire


@pytest.mark.parametrize(
    ("translation", "wire", "lines"),
    [
        ("lf", b"a\r\nb\rc\nd", [b"a\r\n", b"b\rc\n", b"d"]),
        ("cr", b"a\rb\r\nc\nd\r", [b"a\n", b"b\n", b"\nc\nd\n"]),
        ("crlf", b"a\r\nb\rc\nd\r\n", [b"a\n", b"b\rc\nd\n"]),
        ("auto", b"a\r\nb\rc\nd\r", [b"a\n", b"b\n", b"c\n", b"d\n"]),
        ("binary", b"a\r\nb\n", [b"a\r\n", b"b\n"]),
    ],
)
@pytest.mark.parametrize("encoding", [None, "ascii"])
@pytest.mark.parametrize("pieces", [1, 100])
def test_translation_of_input(
    ends: tuple[Any, Any],
    translation: str,
    wire: bytes,
    lines: list[bytes],
    encoding: Any,
    pieces: int,
) -> None:
    here, there = ends
    there.configure(translation=(translation, "lf"))
    there.configure(encoding=encoding)
    for at in range(0, len(wire), len(wire) // pieces or 1):
        here.sendall(wire[at : at + (len(wire) // pieces or 1)])
    here.close()
    wanted: list[Any] = lines if encoding is None else [line.decode() for line in lines]
    assert list(there) == wanted


def test_a_pair_of_translations(ends: tuple[Any, Any]) -> None:
    here, there = ends
    here.configure(translation=("auto", "crlf"))
    assert here.cget("translation") == ("auto", "crlf")
    here.puts(b"out")
    assert there.read(5) == b"out\r\n"
    there.sendall(b"in\r\n")
    assert here.gets() == b"in"


def test_auto_answers_a_lone_cr_at_once(ends: tuple[Any, Any]) -> None:
    """Waiting for a line feed that never comes would hang a dialogue."""
    here, there = ends
    there.configure(translation="auto")
    here.sendall(b"mac\r")
    assert there.gets() == b"mac"
    here.sendall(b"\nnext\n")
    assert there.gets() == b"next"


# --- eofchar


def test_eofchar_of_input(ends: tuple[Any, Any]) -> None:
    here, there = ends
    there.configure(eofchar=("\x1a", ""))
    here.sendall(b"text\nmore\x1abehind")
    assert there.gets() == b"text"
    assert there.read() == b"more"
    assert there.eof()
    assert there.read() == b""
    assert there.gets() is None
    # What lies behind it is there once it counts no more.
    there.configure(eofchar="")
    assert not there.eof()
    assert there.read(7) == b"\x1abehind"


def test_eofchar_of_output_goes_with_close(ends: tuple[Any, Any]) -> None:
    here, there = ends
    here.configure(eofchar=("", "\x1a"))
    assert here.cget("eofchar") == ("", "\x1a")
    here.write(b"text")
    here.close()
    assert there.read() == b"text\x1a"


def test_eofchar_of_output_goes_with_half_close(ends: tuple[Any, Any]) -> None:
    here, there = ends
    here.configure(eofchar=("", "\x1a"))
    here.write(b"text")
    here.shutdown(1)
    assert there.read() == b"text\x1a"
    here.close()


def test_binary_translation_has_no_eofchar(ends: tuple[Any, Any]) -> None:
    here, _ = ends
    here.configure(eofchar="\x1a", encoding="utf-8")
    here.configure(translation="binary")
    assert here.cget("eofchar") == ""
    assert here.cget("encoding") is None


# --- against the standard library


def cut(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = i = 0
    while at < len(data):
        yield data[at : at + cuts[i % len(cuts)]]
        at += cuts[i % len(cuts)]
        i += 1


CUTS = st.lists(st.integers(1, 9), min_size=1, max_size=12)
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=12)


def universal(text: str) -> str:
    return io.IncrementalNewlineDecoder(None, translate=True).decode(text, final=True)


REFERENCE: dict[str, Callable[[str], str]] = {
    "lf": str,
    "binary": str,
    "cr": lambda text: text.replace("\r", "\n"),
    "crlf": lambda text: text.replace("\r\n", "\n"),
    "auto": universal,
}


def read_by_takes(reader: TextReader, pieces: Iterator[bytes], sizes: list[int]) -> str:
    out = []
    i = 0
    while True:
        got = reader.take(sizes[i % len(sizes)])
        i += 1
        if got is None:
            piece = next(pieces, None)
            reader.feed_eof() if piece is None else reader.feed(piece)
        elif not got:
            return "".join(out)
        else:
            assert isinstance(got, str)
            assert len(got) <= sizes[(i - 1) % len(sizes)]
            out.append(got)


def read_by_lines(reader: TextReader, pieces: Iterator[bytes]) -> list[str]:
    out: list[str] = []
    while True:
        got = reader.line()
        if got is None:
            piece = next(pieces, None)
            reader.feed_eof() if piece is None else reader.feed(piece)
        elif not got:
            return out
        else:
            assert isinstance(got, str)
            out.append(got)


TEXTS = st.text(st.sampled_from("ab\r\nä€日😀"), max_size=60)


@pytest.mark.parametrize("translation", REFERENCE)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-le", "gb18030"])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, cuts=CUTS, sizes=SIZES)
def test_reading_is_the_standard_librarys(
    translation: str, encoding: str, text: str, cuts: list[int], sizes: list[int]
) -> None:
    data = text.encode(encoding)
    wanted = REFERENCE[translation](codecs.decode(data, encoding))
    set_to = TextSettings(encoding, input=translation)
    assert read_by_takes(TextReader(set_to), cut(data, cuts), sizes) == wanted
    lines = read_by_lines(TextReader(set_to), cut(data, cuts))
    assert "".join(lines) == wanted
    if translation in ("lf", "binary", "auto"):
        assert lines == list(io.StringIO(wanted, newline="\n"))


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(
        st.sampled_from([b"a", b"\n", "€".encode(), b"\xff", b"\xe2\x82", b"\xf0\x9f"]), max_size=12
    ).map(b"".join),
    cuts=CUTS,
    sizes=SIZES,
)
def test_faults_are_the_standard_librarys(data: bytes, cuts: list[int], sizes: list[int]) -> None:
    """The good characters before the first fault, then the fault."""
    fault = None
    try:
        good = data.decode()
    except UnicodeDecodeError as error:
        fault = error
        good = data[: error.start].decode()
    reader = TextReader(TextSettings("utf-8", input="lf"))
    pieces = cut(data, cuts)
    out = ""
    i = 0
    while True:
        try:
            got = reader.take(sizes[i % len(sizes)])
            if got is None:
                piece = next(pieces, None)
                reader.feed_eof() if piece is None else reader.feed(piece)
        except UnicodeDecodeError as error:
            assert fault is not None
            assert error.reason == fault.reason
            break
        i += 1
        if got is None:
            continue
        if not got:
            assert fault is None
            break
        assert isinstance(got, str)
        out += got
    assert out == good


@pytest.mark.parametrize("translation", REFERENCE)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "shift_jis"])
@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("ab\r\n語"), max_size=40),
    cuts=CUTS,
    take=st.integers(0, 40),
)
def test_what_was_not_used_goes_back_byte_for_byte(
    translation: str, encoding: str, text: str, cuts: list[int], take: int
) -> None:
    data = text.encode(encoding)
    reader = TextReader(TextSettings(encoding, input=translation))
    for piece in cut(data, cuts):
        reader.feed(piece)
    used = reader.take(take) if take else ""
    back = reader.unread()
    assert data.endswith(back)
    rest = TextReader(TextSettings(encoding, input=translation))
    rest.feed(back)
    rest.feed_eof()
    after = read_by_takes(rest, iter(()), [100])
    whole = REFERENCE[translation](text)
    assert (used or "") + after == whole
    assert reader.empty


def test_the_line_feed_of_a_used_carriage_return_does_not_go_back() -> None:
    for encoding in ("utf-8", "utf-16-le", "utf-32-be"):
        reader = TextReader(TextSettings(encoding, input="auto"))
        for byte in "a\r".encode(encoding):
            reader.feed(bytes([byte]))
            if reader.line() is not None:
                break
        for byte in "\nb".encode(encoding):
            reader.feed(bytes([byte]))
        assert reader.unread() == "b".encode(encoding)


@pytest.mark.parametrize("output", LINE_ENDS)
@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=20), max_size=8))
def test_writing_is_the_standard_librarys(output: str, texts: list[str]) -> None:
    """A byte order mark comes once; line ends as TextIOWrapper's newline=."""
    writer = TextWriter(TextSettings("utf-16", output=output))
    raw = io.BytesIO()
    wrapper = io.TextIOWrapper(raw, "utf-16", errors="strict", newline=LINE_ENDS[output].decode())
    wanted: list[str] = []
    for text in texts:
        try:
            text.encode("utf-16")
        except UnicodeEncodeError:
            continue
        wanted.append(text)
    out = b"".join(writer.encode(text) for text in wanted)
    for text in wanted:
        wrapper.write(text)
    wrapper.flush()
    assert out == raw.getvalue()


@settings(max_examples=25, deadline=None)
@given(text=TEXTS, cuts=CUTS, translation=st.sampled_from(["auto", "lf", "crlf"]))
def test_over_a_channel(text: str, cuts: list[int], translation: str) -> None:
    """The same through a socket, cut as it comes."""
    with plain_pair() as (here, there):
        there.configure(encoding="utf-8", translation=(translation, "lf"))
        data = text.encode()
        sending = Work(lambda: ([here.sendall(piece) for piece in cut(data, cuts)], here.close()))
        assert there.read() == REFERENCE[translation](text)
        sending.result()
