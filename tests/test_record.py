"""The record header: arithmetic on bytes, whatever they are."""

from __future__ import annotations

import pytest
import sspi_support as sspi
from hypothesis import given
from hypothesis import strategies as st
from sspi_support import record

t = sspi.load_testnative()
FINE, BAD_TYPE, BAD_VERSION, TOO_LONG = range(4)
LONGEST = 16384 + 2048  # RFC 5246, 6.2.3

_records = st.builds(
    record,
    st.binary(max_size=300),
    st.integers(20, 23),
    st.sampled_from([0x0300, 0x0301, 0x0303]),
)


@given(st.lists(_records, max_size=6), st.data())
def test_a_stream_cut_anywhere(records: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(records)
    cut = data.draw(st.integers(0, len(stream)))
    told = t.record(stream[:cut])
    whole = at = 0
    for one in records:
        at += len(one)
        if at <= cut:
            whole = at
    assert told["whole"] == whole
    assert told["check"] == FINE
    first = len(records[0]) if records else 0
    assert told["length"] == (first if cut >= 5 else 0)
    if cut < 5:
        assert told["missing"] == 5 - cut
    else:
        assert told["missing"] == max(0, first - cut)


@given(st.lists(_records, min_size=1, max_size=3))
def test_one_byte_at_a_time_what_is_missing_leads_to_the_end(records: list[bytes]) -> None:
    """Whoever reads just what is missing has the record, and nothing behind it."""
    stream = b"".join(records)
    have = 0
    while missing := t.record(stream[:have])["missing"]:
        have += missing
    assert stream[:have] == records[0]


@given(st.binary(max_size=64))
def test_garbage_is_judged_by_its_first_bytes(data: bytes) -> None:
    told = t.record(data)
    expected = FINE
    if len(data) >= 5 and int.from_bytes(data[3:5]) > LONGEST:
        expected = TOO_LONG
    if len(data) >= 2 and data[1] != 3:
        expected = BAD_VERSION
    if data and not 20 <= data[0] <= 23:
        expected = BAD_TYPE
    assert told["check"] == expected
    assert told["whole"] <= len(data)


@pytest.mark.parametrize(
    ("length", "check"), [(0, FINE), (16384, FINE), (LONGEST, FINE), (LONGEST + 1, TOO_LONG)]
)
def test_the_longest_record(length: int, check: int) -> None:
    told = t.record(b"\x17\x03\x03" + length.to_bytes(2))
    assert (told["check"], told["missing"]) == (check, length)


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        (b"GET / HTTP/1.1\r\n", "a plain HTTP request"),
        (b"POST /x HTTP/1.0\r\n", "a plain HTTP request"),
        (b"PUT /", "a plain HTTP request"),
        (b"HEAD", "a plain HTTP request"),
        (b"DELETE /", "a plain HTTP request"),
        (b"OPTIONS *", "a plain HTTP request"),
        (b"PATCH /", "a plain HTTP request"),
        (b"TRACE /", "a plain HTTP request"),
        (b"CONNECT a:443", "a plain HTTP proxy request"),
        (b"HTTP/1.1 400 Bad Request", "an HTTP response"),
        (b"PRI * HTTP/2.0\r\n", "an HTTP/2 preface in plain text"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH greeting"),
        (b"RFB 003.008\n", "a VNC greeting"),
        (b"PROXY TCP4 1", "a PROXY protocol header"),
        (b"EHLO me\r\n", "an SMTP command"),
        (b"HELO me\r\n", "an SMTP command"),
        (b"220 mail.example.org ESMTP", "an SMTP greeting"),
        (b"220-mail.example.org", "an SMTP greeting"),
        (b"554 no", "an SMTP greeting"),
        (b"220 (vsFTPd 3.0.3)", "an FTP greeting"),
        (b"+OK POP3 ready", "a POP3 greeting"),
        (b"* OK IMAP4rev1", "an IMAP greeting"),
        (b"* PREAUTH hi", "an IMAP greeting"),
        (b"\x80\x2e\x01\x03\x01", "an SSLv2 hello"),
        (b"\x80\x2e\x01\x00\x02", "an SSLv2 hello"),
        (b"\x4a\x00\x00\x00\x0a8.0.34\0", "a MySQL greeting"),
        (b"who is there?\r\n\t", "plain text"),
        (b"abc", None),
        (b"caf\xc3\xa9 au lait", None),
        (b"\x80\x2e\x02\x03\x01", None),
        (b"\0\0\0\0\0\0", None),
        (b"", None),
    ],
)
def test_what_foreign_bytes_look_like(data: bytes, looks: str | None) -> None:
    assert t.record(data)["looks"] == looks


@given(st.binary(max_size=300))
def test_looking_never_reads_beyond_the_end(data: bytes) -> None:
    looks = t.record(data)["looks"]
    assert looks is None or (looks and looks == looks.strip())


# --- what core/ keeps bytes and words in ------------------------------------------


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.binary(max_size=2000)),
            st.tuples(st.just("reserve"), st.binary(max_size=700)),
            st.tuples(st.just("consume"), st.integers(0, 3000)),
            st.tuples(st.just("relax"), st.none()),
        ),
        max_size=40,
    )
)
def test_a_buffer_is_a_queue_of_bytes(actions: list[tuple[str, object]]) -> None:
    buffer, model = t.Buffer(), b""
    for name, value in actions:
        if name == "append":
            assert buffer.append(value)
            model += value  # type: ignore[operator]
        elif name == "reserve":
            assert buffer.reserve(700, value)
            model += value  # type: ignore[operator]
        elif name == "consume":
            buffer.consume(value)
            model = model[value:]  # type: ignore[misc]
        else:
            buffer.relax()
            assert model or buffer.room() == 0  # empty: it holds no memory
        assert buffer.content() == model


@pytest.mark.parametrize("action", ["append", "reserve"])
def test_a_buffer_without_memory_keeps_what_it_has(action: str) -> None:
    buffer = t.Buffer()
    assert buffer.append(b"kept" * 100)
    t.fail_allocation(1, True)
    try:
        if action == "append":
            assert not buffer.append(bytes(5000))
        else:
            assert not buffer.reserve(5000, b"")
    finally:
        t.fail_allocation(0)
    assert buffer.content() == b"kept" * 100
    assert buffer.append(bytes(5000))


@given(st.text(max_size=300))
def test_a_sentence_is_cut_between_characters(text: str) -> None:
    data = text.replace("\0", "").encode()
    kept = t.error_detail(data)
    assert data.startswith(kept)
    kept.decode()
    assert len(data) - len(kept) == 0 or 252 <= len(kept) <= 255


def test_every_status_has_words() -> None:
    words = [t.status_text(status) for status in range(-16, 7)]
    assert all(words) and len(set(words)) == len(words)
    assert t.status_text(99) == "unknown status"


@pytest.mark.parametrize("name", sspi.FAILURES)
def test_every_failure_has_an_alert(name: str) -> None:
    assert t.alert_for_code(sspi.FAILURES[name]) in (10, 20, 40, 42, 43, 44, 45, 46, 47, 48, 49, 50,
                                                     80, 116, 120)  # fmt: skip
