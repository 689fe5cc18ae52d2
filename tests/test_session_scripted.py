"""The session machine over a scripted engine: every answer that SSPI documents.

What an engine says is scripted call by call (csrc/sspi/scripted.h), so what
Schannel does and OpenSSL never would is played here on every platform. Every
test ends by checking that the script was played to its end, that nothing of it
is left (contexts, credentials, certificates, output buffers) and that no
memory is.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import played
import pytest
import sspi_support as sspi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from played import (
    ANSWER,
    CERT,
    FINISHED,
    HELLO,
    OTHER_CERT,
    SERVER_CERTS,
    refuse_each_allocation_of_acquiring,
)
from sspi_support import (
    CLIENT,
    CONTINUE,
    DONE,
    E_ALERT,
    E_ARGUMENT,
    E_CLOSED,
    E_NEGOTIATE_EOF,
    E_NOMEM,
    E_NOT_FOUND,
    E_REFUSED,
    E_STATE,
    E_TLS,
    E_TRUNCATED,
    E_UNSUPPORTED,
    END,
    EXPIRED,
    EXTRA,
    FAILED,
    FAILURES,
    HEADER,
    INCOMPLETE,
    INIT,
    INTERNAL,
    ISC_USE_SUPPLIED,
    LACKING,
    NEGOTIATING,
    OK,
    OPEN,
    RENEGOTIATE,
    SERVER,
    SUCCESSES,
    TRAILER,
    WANT_CERTIFICATE,
    WANT_CREDENTIALS,
    WANT_READ,
    WANT_VERDICT,
    WANT_WRITE,
    plain_alert,
    record,
)

import twapi_tls._native

t = sspi.load_testnative()

FATAL = {name: code for name, code in FAILURES.items() if code != INCOMPLETE}
by_name = lambda table: pytest.mark.parametrize(  # noqa: E731
    "code", table.values(), ids=list(table)
)


class Play(played.Play):
    """A session over the engine whose turn it is."""

    def __init__(self, role: int = CLIENT, **options: Any) -> None:
        super().__init__(t, role, **options)


ENGINES = {"scripted": t}
if sspi.SCHANNEL_PLAYED:
    ENGINES["schannel"] = sspi.load_testschannel()


@pytest.fixture(autouse=True, scope="module")
def full_pool() -> None:
    """Large blocks are kept for the next who needs one (buffer.c), eight at most."""
    for module in ENGINES.values():
        buffers = [module.Buffer() for _ in range(8)]
        assert all(buffer.append(bytes(200_000)) for buffer in buffers)


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who drives the scripted table: its own provider, or Windows' engine."""
    monkeypatch.setitem(globals(), "t", ENGINES[request.param])
    return request.param


# What tw_provider has beyond SSPI and Windows' engine leaves empty; the
# counterparts there are in test_schannel_scripted.py.
OWN_PROVIDER = pytest.mark.parametrize("engine", ["scripted"], indirect=True)


@pytest.fixture(autouse=True)
def no_memory_left(engine: str) -> Iterator[None]:
    before = t.allocations()[1]
    yield
    t.fail_allocation(0)
    if t.allocations()[1] != before:
        gc.collect()  # a traceback may hold a session
    assert t.allocations()[1] == before


def open_client(
    *, sizes: Any = None, protocol: int = 0, remote: bytes | None = CERT, **options: Any
) -> Play:
    """An OPEN client whose output was taken."""
    play = Play(**options)
    world: dict[str, Any] = {"sizes": sizes} if sizes else {}
    world |= {"protocol": protocol} if protocol else {}
    play.add("step", CONTINUE, context=0, token=HELLO, remote=False)
    play.add("step", OK, context=1, input=ANSWER, token=FINISHED, remote=remote, **world)
    assert play.session.handshake() == WANT_READ
    play.session.feed(ANSWER)
    assert play.session.handshake() == DONE
    assert play.take() == HELLO + FINISHED
    return play


def open_server(**options: Any) -> Play:
    play = Play(SERVER, **options)
    hello = record(sspi.client_hello(), 22)
    play.add("step", CONTINUE, context=0, input=hello, token=ANSWER)
    play.add("step", OK, context=1, input=FINISHED, token=b"")
    play.session.feed(hello)
    assert play.session.handshake() == WANT_READ
    play.session.feed(FINISHED)
    assert play.session.handshake() == DONE
    assert play.take() == ANSWER
    return play


# --- the first handshake -----------------------------------------------------


def test_a_client_opens_in_two_steps() -> None:
    play = open_client(target="Example.org")
    facts = play.facts()
    assert (facts["state"], facts["sni"], facts["remote"]) == (OPEN, "Example.org", CERT)
    assert (facts["facts"], facts["protocol"], facts["alpn"]) == (DONE, 4, "scripted")
    assert facts["issuers"] == [b"an issuer"] and facts["staple"] == [b"staple"]
    assert (facts["binding_status"], facts["local_status"]) == (DONE, E_NOT_FOUND)
    assert play.session.handshake() == DONE  # and no step more
    first, second = play.calls("step")
    assert first[4] == []  # no input descriptor without ALPN
    assert second[4] == [2, 0]
    play.done()


def test_before_the_first_step_there_is_nothing() -> None:
    play = Play()
    facts = play.facts()
    assert facts["state"] == INIT
    for what in ("facts", "remote_status", "local_status", "binding_status", "issuers_status"):
        assert facts[what] == E_STATE, what
    assert facts["staple"] == [] and facts["missing"] == 0
    assert play.session.read(10) == (E_STATE, b"")
    assert play.session.write(b"x") == (E_STATE, 0)
    assert play.session.shutdown() == E_STATE
    assert play.session.verdict(0) == E_STATE
    assert play.session.set_certificate(None) == E_STATE
    assert play.session.set_credentials(None) == E_STATE
    assert play.session.last()["detail"]
    assert play.state == INIT
    play.done()


def test_a_server_opens_and_needs_no_verdict() -> None:
    play = open_server()
    assert play.facts()["sni"] == "localhost"
    assert not play.facts()["hello"]  # nobody was told to ask for it: it went
    assert play.calls("verdict") == []
    play.done()


def test_incomplete_on_the_first_call_leaves_no_context() -> None:
    """The next call passes NULL again, and ALPN with it."""
    play = Play(SERVER, alpn=b"\2h2")
    hello = record(sspi.client_hello(), 22)
    play.add("step", INCOMPLETE, context=0, input=hello, missing=3)
    play.add("step", CONTINUE, context=0, input=hello + b"abc", token=ANSWER)
    play.add("step", OK, context=1, input=FINISHED)
    play.session.feed(hello)
    assert play.session.handshake() == WANT_READ
    assert play.facts()["missing"] == 3
    # the same bytes again would change nothing
    assert play.session.handshake() == WANT_READ
    assert len(play.calls("step")) == 1
    play.session.feed(b"abc")
    # "abc" is no record: whether it is one is the engine's to say
    status = play.session.handshake()
    assert status == WANT_READ
    play.session.feed(FINISHED)
    assert play.session.handshake() == DONE
    assert [c[4] for c in play.calls("step")] == [[2, 0, 18], [2, 0, 18], [2, 0]]
    play.done()


def test_a_context_that_a_failure_leaves_is_removed() -> None:
    """Wine makes one before it looks at the input; the next call passes NULL all the same."""
    play = Play(SERVER)
    hello = record(sspi.client_hello(), 22)
    play.add("step", INCOMPLETE, context=0, stray_handle=True)
    play.add("step", CONTINUE, context=0, token=ANSWER)
    play.session.feed(hello)
    assert play.session.handshake() == WANT_READ
    assert len(play.calls("delete")) == 1
    play.session.feed(b"abc")
    assert play.session.handshake() == WANT_READ
    assert play.take() == ANSWER
    script = play.script
    del play
    assert script.left() == 0 and script.alive() == (0, 0, 0, 0)


def test_the_alpn_structure_has_its_exact_length() -> None:
    play = Play(alpn=b"\2h2\x08http/1.1")
    play.add("step", CONTINUE, token=HELLO, no_input=True)
    assert play.session.handshake() == WANT_READ
    assert play.calls("step")[0][4] == [18]
    play.done()


@pytest.mark.parametrize("alpn", [b"\0", b"\3h2", b"\2h2\1", b"x" * 70_000], ids=len)
def test_malformed_alpn_is_an_argument_error(alpn: bytes) -> None:
    script = t.Script()
    credentials = t.Credentials(script, CLIENT)
    with pytest.raises(RuntimeError) as caught:
        t.Session(script, CLIENT, credentials, alpn=alpn)
    assert caught.value.args[0]["status"] == E_ARGUMENT


@pytest.mark.parametrize(
    ("target", "sni"),
    [
        ("10.0.0.1", ""),
        ("::1", ""),
        ("[::1]", ""),
        ("fe80::1%eth0", ""),
        ("", ""),
        (None, ""),
        ("a.example.", "a.example"),
        ("1.2.3", "1.2.3"),
        ("1.2.3.256", "1.2.3.256"),
        ("1..2.3", "1..2.3"),
        ("1.2.3.4.5", "1.2.3.4.5"),
        ("1.2.3.", "1.2.3"),
        ("1.2.3.0001", "1.2.3.0001"),
        ("[v1.x]", ""),
        ("bücher.example", "bücher.example"),
        ("\U0001f512.example", "\U0001f512.example"),
        ("x" * 255, "x" * 255),
    ],
)
def test_the_target_becomes_sni_unless_it_is_an_address(target: str | None, sni: str) -> None:
    play = Play(target=target)
    assert play.facts()["sni"] == sni
    play.done()


@pytest.mark.parametrize(
    "target",
    [
        ".",
        "x" * 256,
        b"\xff.example",
        b"\xc3.example",
        b"\xc0\xae",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"a\xf0\x9f\x94",
    ],
)
def test_an_impossible_target_is_an_argument_error(target: str | bytes) -> None:
    with pytest.raises(RuntimeError) as caught:
        Play(target=target)
    assert caught.value.args[0]["status"] == E_ARGUMENT
    assert caught.value.args[0]["code"] == FAILURES["SEC_E_TARGET_UNKNOWN"]


def test_arguments_of_a_new_session() -> None:
    script = t.Script()
    client, server = t.Credentials(script, CLIENT), t.Credentials(script, SERVER, SERVER_CERTS)
    for role, credentials, options in [
        (3, client, {}),
        (CLIENT, None, {}),
        (SERVER, None, {}),
        (CLIENT, server, {}),
        (SERVER, client, {}),
        (CLIENT, None, {"ask_credentials": True}),
    ]:
        with pytest.raises(RuntimeError) as caught:
            t.Session(script, role, credentials, **options)
        assert caught.value.args[0]["status"] == E_ARGUMENT


@OWN_PROVIDER
def test_an_engine_without_its_function_table() -> None:
    script = t.Script()
    client = t.Credentials(script, CLIENT)
    script.use(False)
    with pytest.raises(RuntimeError) as caught:
        t.Session(script, CLIENT, client)
    assert caught.value.args[0]["status"] == E_UNSUPPORTED
    with pytest.raises(RuntimeError) as caught:
        t.Credentials(script, CLIENT)
    assert caught.value.args[0]["status"] == E_UNSUPPORTED
    script.use(True)


def test_extra_of_a_step_goes_to_the_next_step_and_then_to_decryption() -> None:
    """SECBUFFER_EXTRA; what is left when it is open is application data."""
    play = Play()
    data = record(b"sealed")
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", CONTINUE, input=ANSWER + FINISHED + data, extra=len(FINISHED + data))
    play.add("step", OK, input=FINISHED + data, extra=len(data), remote=CERT)
    play.add("decrypt", OK, input=data, data=b"plain")
    assert play.session.handshake() == WANT_READ
    play.session.feed(ANSWER + FINISHED + data)
    assert play.session.handshake() == DONE
    assert play.session.read(100) == (DONE, b"plain")
    play.done()


def test_more_extra_than_there_was_is_the_engines_fault() -> None:
    play = Play()
    play.add("step", CONTINUE, token=HELLO)
    play.add("step", CONTINUE, input=ANSWER, extra=len(ANSWER) + 1)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == E_TLS
    assert play.error["code"] == INTERNAL
    play.done()


def test_a_step_that_takes_nothing_waits_for_more() -> None:
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", CONTINUE, input=ANSWER, extra=len(ANSWER))
    play.add("step", OK, input=ANSWER + FINISHED, remote=CERT)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_READ
    assert play.session.handshake() == WANT_READ
    assert play.facts()["missing"] == 1
    play.session.feed(FINISHED)
    assert play.session.handshake() == DONE
    play.done()


def test_success_without_a_context_handle_is_the_engines_fault() -> None:
    play = Play()
    play.add("step", CONTINUE, token=HELLO, no_handle=True)
    assert play.session.handshake() == E_TLS
    assert play.error["code"] == INTERNAL
    play.done()


@pytest.mark.parametrize("role", [CLIENT, SERVER])
@pytest.mark.parametrize("first", [True, False])
@by_name(FATAL)
def test_a_failing_step_ends_it_and_its_token_goes_first(role: int, first: bool, code: int) -> None:
    """Every status that is documented for ISC and ASC."""
    play = Play(role)
    start = record(sspi.client_hello(), 22) if role == SERVER else b""
    before = b""
    if not first:
        play.add("step", CONTINUE, token=b"before", remote=False)
        before = b"before"
    play.add("step", code, token=plain_alert(40))
    play.session.feed(start)
    if not first:
        assert play.session.handshake() == WANT_READ
        play.session.feed(ANSWER)
    status = play.session.handshake()
    if code == FAILURES["SEC_E_INSUFFICIENT_MEMORY"]:
        assert status == E_NOMEM
        assert play.take() == before
    else:
        assert status == E_TLS
        assert play.take() == before + plain_alert(40)
        assert play.error["alert_sent"] == 40
    error = play.error
    assert error["code"] == code and error["alert_received"] == -1
    # it stays, whatever is called
    again = status
    assert play.session.handshake() == again and play.session.last() == error
    assert play.session.read(10) == (again, b"")
    assert play.session.write(b"x") == (again, 0)
    assert play.session.verdict(0) == again
    assert play.session.set_credentials(None) == again
    assert play.session.set_certificate(None) == again
    assert play.session.shutdown() == E_STATE
    assert play.state == FAILED and play.facts()["missing"] == 0
    play.done()


@by_name(
    {name: code for name, code in SUCCESSES.items() if code not in (CONTINUE, EXPIRED, LACKING)}
)
def test_a_success_that_schannel_never_gives_is_an_internal_error(code: int) -> None:
    play = Play()
    play.add("step", code)
    assert play.session.handshake() == E_TLS
    assert play.error["code"] == INTERNAL
    assert play.take() == plain_alert(80)
    play.done()


def test_the_alert_buffer_counts_only_without_a_token() -> None:
    play = Play()
    play.add("step", FAILURES["SEC_E_ILLEGAL_MESSAGE"], alert=plain_alert(47))
    assert play.session.handshake() == E_TLS
    assert play.take() == plain_alert(47)
    play.done()

    play = Play()
    play.add("step", FAILURES["SEC_E_ILLEGAL_MESSAGE"], token=b"T", alert=plain_alert(47))
    play.session.handshake()
    assert play.take() == b"T"
    assert play.error["alert_sent"] == -1
    play.done()

    # not an alert record: freed, not sent; ours goes instead
    play = Play()
    play.add("step", FAILURES["SEC_E_ILLEGAL_MESSAGE"], alert=b"\0\0\0")
    play.session.handshake()
    assert play.take() == plain_alert(47)
    play.done()

    # with a success it is no alert at all
    play = Play()
    play.add("step", CONTINUE, token=HELLO, alert=plain_alert(47))
    assert play.session.handshake() == WANT_READ
    assert play.take() == HELLO
    play.done()


def test_without_a_token_the_alert_is_asked_for() -> None:
    """ApplyControlToken, then a step without input."""
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", FAILURES["SEC_E_ALGORITHM_MISMATCH"], input=ANSWER)
    play.add("control", OK, attribute=2)
    play.add("step", OK, no_input=True, token=b"sealed alert")
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == E_TLS
    assert play.take() == HELLO + b"sealed alert"
    assert play.error["alert_sent"] == 40
    token = play.calls("control")[0][5]
    assert token == sspi.alert_token(40)
    play.done()


@by_name(FATAL)
def test_when_the_alert_cannot_be_made_a_plain_one_is_sent(code: int) -> None:
    """Each documented failure of ApplyControlToken."""
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", FAILURES["SEC_E_ALGORITHM_MISMATCH"], input=ANSWER)
    play.add("control", code)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == E_TLS
    assert play.take() == HELLO + plain_alert(40)
    assert play.error["code"] == FAILURES["SEC_E_ALGORITHM_MISMATCH"]
    play.done()


def test_a_failing_step_behind_the_alert_token_sends_what_it_gives() -> None:
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", FAILURES["SEC_E_ALGORITHM_MISMATCH"], input=ANSWER)
    play.add("control", OK)
    play.add("step", EXPIRED, token=plain_alert(80))
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == E_TLS
    assert play.take() == HELLO + plain_alert(80)
    assert play.error["alert_sent"] == 80
    play.done()


@OWN_PROVIDER
@pytest.mark.parametrize("number", [40, 48, 254])
def test_a_peers_fatal_alert_is_the_error(number: int) -> None:
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", FAILURES["SEC_E_ILLEGAL_MESSAGE"], token=b"last", alert_received=number)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == E_ALERT
    assert play.error["alert_received"] == number
    assert str(number) in play.error["detail"]
    assert play.take() == HELLO + b"last"
    play.done()


@pytest.mark.parametrize("number", [0, 90, 100])
def test_a_warning_is_not_why_it_failed(number: int) -> None:
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", FAILURES["SEC_E_ILLEGAL_MESSAGE"], alert_received=number)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == E_TLS
    assert play.error["alert_received"] == -1
    play.done()


@pytest.mark.parametrize("status", [EXPIRED, FAILURES["SEC_E_INTERNAL_ERROR"]])
def test_close_notify_during_the_negotiation(status: int) -> None:
    """Wine calls it an internal error."""
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", status, input=plain_alert(0), token=b"bye")
    play.session.handshake()
    play.session.feed(plain_alert(0))
    assert play.session.handshake() == E_NEGOTIATE_EOF
    assert play.error["code"] == EXPIRED
    assert play.take() == HELLO + b"bye"
    play.done()


def test_an_end_during_the_negotiation() -> None:
    for fed in (b"", ANSWER[:3], ANSWER[:-1]):
        play = Play()
        play.add("step", CONTINUE, token=HELLO, remote=False)
        play.session.handshake()
        play.session.feed(fed)
        assert play.session.handshake() == WANT_READ
        play.session.feed_eof()
        assert play.facts()["missing"] == 0
        assert play.session.handshake() == E_NEGOTIATE_EOF
        play.done()

    # the engine is asked once more for a whole record, then it is over
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", INCOMPLETE, input=ANSWER, token=b"kept")
    play.session.handshake()
    play.session.feed(ANSWER)
    play.session.feed_eof()
    assert play.session.handshake() == E_NEGOTIATE_EOF
    assert play.take() == HELLO + b"kept"
    play.done()

    play = Play(SERVER)
    play.session.feed(record(sspi.client_hello(), 22)[:-1])
    assert play.session.handshake() == WANT_READ
    assert play.facts()["missing"] == 1
    play.session.feed_eof()
    assert play.session.handshake() == E_NEGOTIATE_EOF
    play.done()


@pytest.mark.parametrize(
    ("fed", "words", "alert"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "an HTTP response", None),
        (b"hello, who is there?", "plain text", None),
        (b"\1\2\3\4\5\6\7", "not TLS", 10),
        (b"\x16\2\1\0\5", "not TLS", 10),
        (b"\x16\3\3\xff\xff", "too long", 22),
    ],
)
def test_foreign_bytes_on_a_client(fed: bytes, words: str, alert: int | None) -> None:
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.session.handshake()
    assert play.take() == HELLO
    play.session.feed(fed)
    assert play.session.handshake() == E_TLS
    assert words in play.error["detail"]
    assert play.error["code"] == sspi.INVALID_TOKEN
    assert play.take() == (b"" if alert is None else plain_alert(alert))
    play.done()


def test_foreign_bytes_behind_a_record() -> None:
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", CONTINUE, input=ANSWER + b"GET / HTTP", extra=10)
    play.session.handshake()
    play.session.feed(ANSWER + b"GET / HTTP")
    assert play.session.handshake() == E_TLS
    assert "no TLS record" in play.error["detail"]
    assert play.take() == HELLO + plain_alert(10)
    play.done()


@pytest.mark.parametrize(
    ("fed", "alert"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b""),
        (b"\x16\3\3\xff\xff", plain_alert(22)),
        (plain_alert(40), plain_alert(10)),
        (record(b"\2\0\0\0", 22), plain_alert(50)),
        (b"\1\2\3\4\5\6\7", plain_alert(10)),
    ],
)
def test_no_client_hello_on_a_server(fed: bytes, alert: bytes) -> None:
    play = Play(SERVER)
    play.session.feed(fed)
    assert play.session.handshake() == E_TLS
    assert play.error["code"] == sspi.INVALID_TOKEN
    assert play.take() == alert
    assert play.calls("step") == []
    play.done()


# --- the verdict ---------------------------------------------------------------


def test_the_token_waits_for_the_verdict(engine: str) -> None:
    """As soon as the certificate can be asked for, no token goes out before it."""
    play = Play(ask_verdict=True)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", CONTINUE, input=ANSWER, token=FINISHED, remote=CERT)
    play.add("step", OK, input=FINISHED)
    play.session.handshake()
    assert play.take() == HELLO
    play.session.feed(ANSWER)
    for _ in range(2):
        assert play.session.handshake() == WANT_VERDICT
    assert (play.state, play.take(), play.facts()["missing"]) == (NEGOTIATING, b"", 0)
    assert play.facts()["remote"] == CERT
    assert play.session.verdict(0) == DONE
    assert play.take() == FINISHED
    assert play.session.handshake() == WANT_READ
    play.session.feed(FINISHED)
    assert play.session.handshake() == DONE
    assert [c[3] for c in play.calls("verdict")] == ([0] if engine == "scripted" else [])
    play.done()


@pytest.mark.parametrize("remote", [CERT, None, False], ids=["cert", "none", "unknown"])
def test_at_the_end_the_verdict_is_due_whatever_is_known(remote: Any) -> None:
    play = Play(ask_verdict=True)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", OK, input=ANSWER, token=FINISHED, remote=remote)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_VERDICT
    assert play.take() == HELLO
    assert play.session.verdict(0) == DONE
    assert (play.state, play.take()) == (OPEN, FINISHED)
    assert play.session.handshake() == DONE
    play.done()


def test_that_a_server_has_no_certificate_is_believed_at_the_end_only() -> None:
    """A server of TLS has one: an engine that says "none" before it came says it too early."""
    play = Play(ask_verdict=True)
    play.add("step", CONTINUE, token=HELLO, remote=None)
    play.add("step", CONTINUE, input=ANSWER, token=FINISHED)
    play.add("step", OK, input=FINISHED)
    assert play.session.handshake() == WANT_READ
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_READ
    play.session.feed(FINISHED)
    assert play.session.handshake() == WANT_VERDICT
    assert play.facts()["remote_status"] == E_NOT_FOUND
    assert play.session.verdict(FAILURES["SEC_E_UNTRUSTED_ROOT"], "") == E_REFUSED
    assert "not trusted" in play.error["detail"]  # no words are none
    play.done()


def test_that_a_client_has_no_certificate_is_believed_at_once() -> None:
    play = Play(SERVER, ask_verdict=True, request_cert=True)
    play.add("step", CONTINUE, token=ANSWER, remote=False)
    play.add("step", CONTINUE, input=FINISHED, token=b"held", remote=None)
    play.session.feed(record(sspi.client_hello(None), 22))
    assert play.session.handshake() == WANT_READ
    assert play.facts()["sni"] == ""
    play.session.feed(FINISHED)
    assert play.session.handshake() == WANT_VERDICT
    assert play.take() == ANSWER
    assert play.session.verdict(0) == DONE
    assert play.take() == b"held"
    play.done()


@OWN_PROVIDER
def test_a_suspended_engine_is_stepped_again_without_input() -> None:
    play = Play(ask_verdict=True)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", CONTINUE, input=ANSWER, remote=CERT)
    play.add("verdict", CONTINUE)
    play.add("step", OK, no_input=True, token=FINISHED)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_VERDICT
    assert play.session.verdict(0) == DONE
    assert play.session.handshake() == DONE
    play.done()


@OWN_PROVIDER
def test_a_suspended_engine_gets_what_input_there_is() -> None:
    play = Play(ask_verdict=True)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", CONTINUE, input=ANSWER + FINISHED, extra=len(FINISHED), remote=CERT)
    play.add("verdict", CONTINUE)
    play.add("step", OK, input=FINISHED, token=FINISHED)
    play.session.handshake()
    play.session.feed(ANSWER + FINISHED)
    assert play.session.handshake() == WANT_VERDICT
    assert play.session.verdict(0) == DONE
    assert play.session.handshake() == DONE
    play.done()


@OWN_PROVIDER
@by_name(FATAL)
def test_an_engine_that_fails_on_acceptance(code: int) -> None:
    play = Play(ask_verdict=True)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", CONTINUE, input=ANSWER, token=FINISHED, remote=CERT)
    play.add("verdict", code)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_VERDICT
    nomem = code == FAILURES["SEC_E_INSUFFICIENT_MEMORY"]
    assert play.session.verdict(0) == (E_NOMEM if nomem else E_TLS)
    assert play.error["code"] == code
    assert play.state == FAILED
    play.done()


@OWN_PROVIDER
@pytest.mark.parametrize("alert", [b"", plain_alert(48), b"sealed"])
@pytest.mark.parametrize("at_end", [False, True])
def test_a_refusal_drops_the_token_and_sends_the_alert(alert: bytes, at_end: bool) -> None:
    play = Play(ask_verdict=True)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", OK if at_end else CONTINUE, input=ANSWER, token=FINISHED, remote=CERT)
    play.add("verdict", OK, token=alert)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_VERDICT
    assert play.session.verdict(FAILURES["SEC_E_CERT_EXPIRED"], "too old") == E_REFUSED
    assert play.take() == HELLO + (alert or plain_alert(45))
    error = play.error
    assert (error["code"], error["detail"]) == (FAILURES["SEC_E_CERT_EXPIRED"], "too old")
    assert error["alert_sent"] == (48 if alert == plain_alert(48) else 45)
    assert play.session.handshake() == E_REFUSED
    play.done()


def test_a_refusal_without_words_has_the_codes_own() -> None:
    play = Play(ask_verdict=True)
    play.add("step", OK, token=HELLO, remote=CERT)
    play.session.handshake()
    assert play.session.verdict(FAILURES["SEC_E_UNTRUSTED_ROOT"]) == E_REFUSED
    assert "not trusted" in play.error["detail"]
    play.done()


def test_the_pause_and_lacking_credentials_in_one_step() -> None:
    play = Play(ask_verdict=True, ask_certificate=True)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", LACKING, input=ANSWER, remote=CERT)
    play.add("step", OK, input=ANSWER, flags_set=ISC_USE_SUPPLIED, token=FINISHED)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_VERDICT
    assert play.session.set_certificate(None) == E_STATE
    assert play.session.verdict(0) == DONE
    assert play.session.handshake() == WANT_CERTIFICATE
    assert play.session.verdict(0) == E_STATE
    assert play.session.set_certificate(None) == DONE
    assert play.session.handshake() == DONE
    play.done()


@pytest.mark.parametrize("request_cert", [False, True])
def test_a_server_asks_for_the_verdict_of_a_client_without_certificate(
    request_cert: bool,
) -> None:
    play = Play(SERVER, ask_verdict=True, request_cert=request_cert)
    hello = record(sspi.client_hello(), 22)
    play.add("step", CONTINUE, token=ANSWER, remote=False, flags_set=2 if request_cert else 0)
    play.add("step", OK, input=FINISHED, token=b"ticket", remote=None)
    play.session.feed(hello)
    assert play.session.handshake() == WANT_READ
    assert play.take() == ANSWER
    play.session.feed(FINISHED)
    assert play.session.handshake() == WANT_VERDICT
    assert play.take() == b""  # no ticket before it
    assert play.session.verdict(0) == DONE
    assert play.take() == b"ticket"
    play.done()


# --- certificates and credentials ------------------------------------------------


def test_lacking_credentials_are_retried_with_the_same_input_once() -> None:
    """SEC_I_INCOMPLETE_CREDENTIALS."""
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", LACKING, input=ANSWER, flags_clear=ISC_USE_SUPPLIED)
    play.add("step", OK, input=ANSWER, flags_set=ISC_USE_SUPPLIED, remote=CERT)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == DONE
    play.done()


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("chosen", [False, True])
def test_lacking_credentials_twice_is_an_error(ask: bool, chosen: bool) -> None:
    play = Play(ask_certificate=ask)
    other = play.credentials(CLIENT, (CERT,))
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", LACKING, input=ANSWER, flags_clear=ISC_USE_SUPPLIED)
    if ask and chosen:
        play.add("step", LACKING, input=ANSWER, flags_clear=ISC_USE_SUPPLIED)
    play.add("step", LACKING, input=ANSWER, flags_set=ISC_USE_SUPPLIED)
    play.session.handshake()
    play.session.feed(ANSWER)
    status = play.session.handshake()
    if ask:
        assert status == WANT_CERTIFICATE
        assert play.session.set_certificate(other if chosen else None) == DONE
        status = play.session.handshake()
    assert status == E_TLS
    assert play.error["code"] == FAILURES["SEC_E_INCOMPLETE_CREDENTIALS"]
    assert play.take() == HELLO + plain_alert(40)
    del other
    play.done()


def test_a_chosen_certificate_is_used() -> None:
    play = Play(ask_certificate=True)
    other = play.credentials(CLIENT, (CERT,))
    foreign = play.credentials(SERVER, SERVER_CERTS)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", LACKING, input=ANSWER)
    play.add("step", OK, input=ANSWER, flags_clear=ISC_USE_SUPPLIED, remote=CERT)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_CERTIFICATE
    assert play.session.set_certificate(foreign) == E_ARGUMENT
    assert play.session.handshake() == WANT_CERTIFICATE
    assert play.session.set_certificate(other) == DONE
    assert play.session.handshake() == DONE
    del other, foreign
    play.done()


def test_a_server_that_chooses_its_credentials_by_name() -> None:
    play = Play(SERVER, credentials=None, ask_credentials=True)
    client, server = play.credentials(CLIENT), play.credentials(SERVER, SERVER_CERTS)
    hello = record(sspi.client_hello("b.example"), 22)
    play.add("step", OK, input=hello, token=ANSWER)
    play.session.feed(hello)
    for _ in range(2):
        assert play.session.handshake() == WANT_CREDENTIALS
    facts = play.facts()
    assert (facts["sni"], facts["hello"], facts["credentials"]) == ("b.example", True, False)
    assert play.session.set_credentials(None) == E_ARGUMENT
    assert play.session.set_credentials(client) == E_ARGUMENT
    assert play.session.handshake() == WANT_CREDENTIALS
    assert play.session.set_credentials(server) == DONE
    assert play.session.handshake() == DONE
    assert play.facts()["credentials"]
    del client, server
    play.done()


def test_a_server_may_keep_the_credentials_it_had() -> None:
    play = Play(SERVER, ask_credentials=True)
    hello = record(sspi.client_hello(), 22)
    play.add("step", OK, input=hello, token=ANSWER)
    play.session.feed(hello)
    assert play.session.handshake() == WANT_CREDENTIALS
    assert play.session.set_credentials(None) == DONE
    assert play.session.handshake() == DONE
    play.done()


# --- OPEN: what is asked at the end of the handshake ----------------------------


@by_name(FATAL)
def test_sizes_that_cannot_be_had(code: int) -> None:
    """Each documented failure of QueryContextAttributes."""
    play = Play()
    play.add("step", OK, token=HELLO)
    play.add("query", code, attribute=4)
    nomem = code == FAILURES["SEC_E_INSUFFICIENT_MEMORY"]
    assert play.session.handshake() == (E_NOMEM if nomem else E_TLS)
    assert play.error["code"] == code
    play.done()


@pytest.mark.parametrize(
    "sizes",
    [(5, 17, 0), (5000, 17, 16384), (5, 5000, 16384), (5, 17, 1 << 20)],
)
def test_absurd_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    play = Play()
    play.add("step", OK, token=HELLO, sizes=sizes)
    assert play.session.handshake() == E_TLS
    assert play.error["code"] == INTERNAL
    play.done()


@pytest.mark.parametrize("role", [CLIENT, SERVER])
@pytest.mark.parametrize("missing", ["confidentiality", "stream"])
def test_attributes_that_were_asked_for_must_come(role: int, missing: str) -> None:
    """What the engine returns is held against what was asked for."""
    stream = sspi.ISC_STREAM if role == CLIENT else sspi.ASC_STREAM
    attributes = stream if missing == "confidentiality" else sspi.ISC_CONFIDENTIALITY
    play = Play(role)
    play.add("step", OK, token=HELLO, attributes=attributes)
    if role == SERVER:
        play.session.feed(record(sspi.client_hello(), 22))
    assert play.session.handshake() == E_TLS
    assert play.error["code"] == FAILURES["SEC_E_UNSUPPORTED_FUNCTION"]
    assert play.take() == HELLO + plain_alert(80)
    play.done()


def test_facts_are_those_of_the_first_ok() -> None:
    """ALPN reads empty after later steps on Schannel."""
    play = open_client()
    play.add("decrypt", RENEGOTIATE, extra=0)
    play.add("step", OK, protocol=0)
    play.session.feed(record(b"ticket"))
    assert play.session.read(10) == (WANT_READ, b"")
    assert play.facts()["alpn"] == "scripted"
    play.done()


def test_an_engine_without_facts_still_opens() -> None:
    play = Play()
    play.add("step", OK, token=HELLO, protocol=0)
    assert play.session.handshake() == DONE
    assert play.facts()["facts"] == E_STATE
    play.done()


# --- reading ---------------------------------------------------------------------

R = record(b"0123456789")


@pytest.mark.parametrize(
    "order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1), (1, 3, 2, 0)]
)
def test_buffers_come_in_any_order(order: tuple[int, ...]) -> None:
    """All four of DecryptMessage's are scanned; EXTRA counts from the end."""
    play = open_client()
    parts = [
        (HEADER, 0, 5),
        (sspi.DATA, 5, 4),
        (TRAILER, 9, 6),
        (EXTRA, -1, len(R)),
    ]
    play.add("decrypt", OK, input=R + R, data=b"abcd", parts=[parts[i] for i in order])
    play.add("decrypt", OK, input=R, data=b"efgh")
    play.session.feed(R + R)
    assert play.session.read(100) == (DONE, b"abcdefgh")
    assert play.session.read(100) == (WANT_READ, b"")
    play.done()


def test_several_records_may_be_one_answer() -> None:
    play = open_client()
    play.add("decrypt", OK, parts=[(sspi.DATA, 10, 8)], data=b"in place")
    play.session.feed(R + R)
    assert play.session.read(3) == (DONE, b"in ")
    assert play.facts()["pending"] == 5
    assert play.session.read(100) == (DONE, b"place")
    assert play.facts()["input"] == 0
    play.done()


@pytest.mark.parametrize(
    "parts",
    [
        [(sspi.DATA, 0, 16)],
        [(sspi.DATA, 15, 1)],
        [(sspi.DATA, 5, 5), (EXTRA, -1, 10)],
        [(sspi.DATA, 5, 4), (EXTRA, -1, 16)],
    ],
)
def test_answers_beyond_the_input_are_the_engines_fault(parts: list[Any]) -> None:
    play = open_client()
    play.add("decrypt", OK, parts=parts)
    play.session.feed(R)
    assert play.session.read(100) == (E_TLS, b"")
    assert play.error["code"] == INTERNAL
    play.done()


@pytest.mark.parametrize("missing", [-1, 0, 7, 1 << 30])
def test_missing_is_a_hint(missing: int) -> None:
    """SECBUFFER_MISSING may be there or not, and is no promise."""
    play = open_client()
    play.add("decrypt", INCOMPLETE, input=R, missing=missing)
    play.add("decrypt", OK, input=R + b"\x17", extra=1, data=b"x")
    play.session.feed(R)
    assert play.session.read(10) == (WANT_READ, b"")
    assert play.facts()["missing"] == (7 if missing == 7 else 1)
    assert play.session.read(10) == (WANT_READ, b"")  # not tried again
    play.session.feed(b"\x17")
    assert play.session.read(10) == (DONE, b"x")
    assert play.facts()["missing"] == 4
    play.done()


def test_nothing_is_decrypted_of_less_than_a_record() -> None:
    play = open_client()
    play.add("decrypt", OK, input=R, data=b"x")
    for i in range(len(R)):
        assert play.session.read(10) == (WANT_READ, b"")
        assert 1 <= play.facts()["missing"] <= len(R) - i
        play.session.feed(R[i : i + 1])
    assert play.session.read(0) == (DONE, b"")
    assert play.session.read(10) == (DONE, b"x")
    play.done()


def test_close_notify_ends_reading_only() -> None:
    """SEC_I_CONTEXT_EXPIRED: writing goes on."""
    play = open_client()
    play.add("decrypt", OK, data=b"last", extra=len(R))
    play.add("decrypt", EXPIRED)
    play.add("encrypt", OK, input=b"still")
    play.session.feed(R + R)
    assert play.session.read(100) == (DONE, b"last")
    for _ in range(2):
        assert play.session.read(100) == (END, b"")
    assert play.facts()["read_ended"]
    assert play.session.write(b"still") == (DONE, 5)
    assert play.take()[5:10] == bytes(b ^ 0xFF for b in b"still")
    play.done()


def test_close_notify_with_data_in_front() -> None:
    play = open_client()
    play.add("decrypt", EXPIRED, data=b"last")
    play.session.feed(R)
    assert play.session.read(100) == (DONE, b"last")
    assert play.session.read(100) == (END, b"")
    play.done()


@by_name(FATAL)
def test_a_failing_decryption_comes_behind_the_data(code: int) -> None:
    play = open_client()
    play.add("decrypt", OK, data=b"good", extra=len(R))
    play.add("decrypt", code)
    play.add("control", OK, attribute=2)
    play.add("step", OK, no_input=True, token=b"sealed alert")
    nomem = code == FAILURES["SEC_E_INSUFFICIENT_MEMORY"]
    play.session.feed(R + R)
    assert play.session.read(100) == (DONE, b"good")
    for _ in range(2):
        assert play.session.read(100) == (E_NOMEM if nomem else E_TLS, b"")
    assert play.error["code"] == code
    if nomem:
        assert play.take() == b""
        assert play.script.left() == 2  # without memory nothing more is tried
        return
    assert play.take() == b"sealed alert"
    play.done()


@by_name({n: c for n, c in SUCCESSES.items() if c not in (EXPIRED, RENEGOTIATE)})
def test_a_decryption_with_an_unknown_success(code: int) -> None:
    play = open_client()
    play.add("decrypt", code)
    play.session.feed(R)
    assert play.session.read(100) == (E_TLS, b"")
    assert play.error["code"] == INTERNAL
    assert play.take() == b""  # under keys, and the engine makes no alert
    play.done()


@OWN_PROVIDER
def test_a_peers_alert_while_open() -> None:
    play = open_client()
    play.add("decrypt", FAILURES["SEC_E_ILLEGAL_MESSAGE"], alert_received=80)
    play.session.feed(R)
    assert play.session.read(100) == (E_ALERT, b"")
    assert play.session.write(b"x") == (E_ALERT, 0)
    play.done()


def test_ok_with_zero_bytes_is_tolerated_but_not_for_ever() -> None:
    """Wine says so for close_notify and tickets; a flood is an attack."""
    play = open_client()
    for _ in range(64):
        play.add("decrypt", OK, data=b"", parts=[(sspi.DATA, 5, 0)])
        play.session.feed(R)
        assert play.session.read(10) == (WANT_READ, b"")
    play.add("decrypt", OK, data=b"x")
    for _ in range(64):
        play.add("decrypt", OK)
    play.session.feed(R)
    assert play.session.read(1) == (DONE, b"x")
    for _ in range(64):
        play.session.feed(R)
        assert play.session.read(10) == (WANT_READ, b"")
    play.add("decrypt", OK)
    play.session.feed(R)
    assert play.session.read(10) == (E_TLS, b"")
    assert "empty records" in play.error["detail"]
    play.done()


def test_truncation_is_told_after_the_data() -> None:
    play = open_client()
    play.add("decrypt", OK, data=b"data", extra=3)
    play.session.feed(R + R[:3])
    play.session.feed_eof()
    assert play.session.read(10) == (DONE, b"data")
    for _ in range(2):
        assert play.session.read(10) == (E_TRUNCATED, b"")
    assert play.session.write(b"x") == (E_TRUNCATED, 0)
    play.done()


def test_a_ragged_end_may_be_an_end() -> None:
    play = open_client(ragged_eof=True)
    play.session.feed_eof()
    for _ in range(2):
        assert play.session.read(10) == (END, b"")
    play.add("encrypt", OK)
    assert play.session.write(b"x") == (DONE, 1)
    play.done()


def test_no_record_while_open() -> None:
    for fed, words, alert in (
        (b"GET / HTTP", "no TLS record", 10),
        (b"\x17\3\3\xff\xff", "long", 22),
    ):
        play = open_client()
        play.add("control", OK, attribute=2)
        play.add("step", OK, token=b"sealed")
        play.session.feed(fed)
        assert play.session.read(10) == (E_TLS, b"")
        assert words in play.error["detail"]
        assert play.error["alert_sent"] == alert
        assert play.take() == b"sealed"
        play.done()


# --- RENEGOTIATE -------------------------------------------------------------------


def test_post_handshake_messages_several_times_in_a_row_with_data_around() -> None:
    """Before, between and behind them no byte is lost."""
    play = open_client()
    stream = R * 5
    ticket = b"post-handshake"
    play.add("decrypt", OK, input=stream, data=b"one", extra=4 * len(R))
    # Schannel: the decrypted message stands in EXTRA, in front of the rest
    play.add("decrypt", RENEGOTIATE, data=b"two", extra=3 * len(R))
    play.add("step", OK, input=R * 3, extra=2 * len(R), token=b"answer1")
    play.add("decrypt", RENEGOTIATE, input=R * 2, extra=2 * len(R))
    play.add("step", OK, input=R * 2, extra=2 * len(R), token=b"answer2")
    play.add("decrypt", RENEGOTIATE, input=R * 2, extra=len(R))
    play.add("step", OK, input=R, extra=len(R))
    play.add("decrypt", OK, input=R, data=b"three")
    play.session.feed(stream)
    assert play.session.read(100) == (DONE, b"onetwothree")
    assert play.take() == b"answer1answer2"
    assert ticket not in play.take()
    assert play.session.read(100) == (WANT_READ, b"")
    play.done()


def test_a_renegotiation_without_input() -> None:
    """HelloRequest without EXTRA: the step has no input at all."""
    play = open_client()
    play.add("decrypt", RENEGOTIATE)
    play.add("step", CONTINUE, no_input=True, token=b"hello again")
    play.add("step", CONTINUE, input=ANSWER, token=b"more")
    play.add("step", OK, input=FINISHED, sizes=(13, 24, 100))
    play.add("encrypt", OK, input=b"z" * 100)
    play.add("encrypt", OK, input=b"z")
    play.session.feed(R)
    assert play.session.read(10) == (WANT_READ, b"")
    assert play.take() == b"hello again"
    # nothing else is encrypted meanwhile
    assert play.session.write(b"data") == (WANT_READ, 0)
    play.session.feed(ANSWER)
    assert play.session.read(10) == (WANT_READ, b"")
    assert play.session.write(b"data") == (WANT_READ, 0)
    play.session.feed(FINISHED)
    assert play.session.read(10) == (WANT_READ, b"")
    assert play.take() == b"more"
    # the sizes changed with it
    assert play.session.write(b"z" * 101) == (DONE, 101)
    out = play.take()
    assert len(out) == 2 * (13 + 24) + 101
    play.done()


def test_a_renegotiation_that_needs_more_bytes() -> None:
    play = open_client()
    play.add("decrypt", RENEGOTIATE, extra=3)
    play.add("step", INCOMPLETE, input=ANSWER[:3], missing=len(ANSWER) - 3)
    play.add("step", OK, input=ANSWER)
    play.session.feed(R + ANSWER[:3])
    assert play.session.read(10) == (WANT_READ, b"")
    assert play.facts()["missing"] == len(ANSWER) - 3
    assert play.session.read(10) == (WANT_READ, b"")
    play.session.feed(ANSWER[3:])
    assert play.session.read(10) == (WANT_READ, b"")
    assert play.session.write(b"") == (DONE, 0)
    play.done()


def renegotiating(**world: Any) -> Play:
    """OPEN, and in a renegotiation that waits for the peer."""
    play = open_client(**world)
    play.add("decrypt", RENEGOTIATE)
    play.add("step", CONTINUE, no_input=True, token=b"hello again")
    play.session.feed(R)
    assert play.session.read(10) == (WANT_READ, b"")
    assert play.take() == b"hello again"
    return play


def test_the_handshake_brings_a_renegotiation_on() -> None:
    """A writer that waits for its end need not read."""
    play = renegotiating()
    assert play.session.handshake() == WANT_READ
    play.add("step", OK, input=ANSWER, token=b"finished again")
    play.add("encrypt", OK)
    play.session.feed(ANSWER)
    assert play.session.handshake() == DONE
    assert play.take() == b"finished again"
    assert play.session.write(b"x") == (DONE, 1)
    play.done()


def test_plaintext_in_the_way_of_a_renegotiation_is_the_readers() -> None:
    play = renegotiating(protocol=2)
    play.add("decrypt", OK, input=R, data=b"under way")
    play.session.feed(R)
    for _ in range(2):
        assert play.session.handshake() == DONE
        assert play.facts()["pending"] == len(b"under way")
    assert play.session.write(b"x") == (WANT_READ, 0)
    assert play.session.read(100) == (DONE, b"under way")
    assert play.session.handshake() == WANT_READ
    play.done()


def test_the_peer_closes_instead_of_renegotiating() -> None:
    """It will not go on with it: writing does."""
    play = renegotiating()
    play.add("step", EXPIRED, input=ANSWER)
    play.add("encrypt", OK)
    play.session.feed(ANSWER)
    assert play.session.handshake() == DONE
    assert play.session.write(b"x") == (DONE, 1)
    assert play.session.read(10) == (END, b"")
    play.done()


def test_the_stream_ends_in_a_renegotiation() -> None:
    play = renegotiating(ragged_eof=True)
    play.add("encrypt", OK)
    play.session.feed_eof()
    assert play.session.handshake() == DONE
    assert play.session.write(b"x") == (DONE, 1)
    play.done()
    play = renegotiating()
    play.session.feed_eof()
    assert play.session.handshake() == E_TRUNCATED
    play.done()


def test_close_notify_waits_for_the_end_of_a_renegotiation() -> None:
    play = renegotiating()
    assert not play.facts()["close_waits"]
    assert play.session.shutdown() == DONE
    assert play.facts()["close_waits"]
    assert play.take() == b""
    assert play.session.write(b"x") == (E_CLOSED, 0)
    play.add("step", OK, input=ANSWER, token=b"finished again")
    play.add("control", OK, attribute=1)
    play.add("step", OK, no_input=True, token=b"close_notify")
    play.session.feed(ANSWER)
    assert play.session.read(10) == (WANT_READ, b"")
    assert play.facts()["has_output"] and not play.facts()["close_waits"]
    assert play.take() == b"finished againclose_notify"
    assert not play.facts()["has_output"] and not play.facts()["busy"]
    play.done()


def test_a_renegotiation_of_tls12_with_a_piece_of_a_record() -> None:
    """Where data begins is not known: the engine gets what there is."""
    play = renegotiating(protocol=2)
    play.add("step", INCOMPLETE, input=ANSWER[:7])
    play.add("step", OK, input=ANSWER)
    play.session.feed(ANSWER[:7])
    assert play.session.read(10) == (WANT_READ, b"")
    play.session.feed(ANSWER[7:])
    assert play.session.read(10) == (WANT_READ, b"")
    play.done()


def test_a_peer_that_takes_no_answers() -> None:
    """What lies unsent beside what was written is bounded."""
    play = open_client()
    size, count = 200_000, 0
    while count * size <= 512 * 1024 + 64 * 1024:
        play.add("decrypt", RENEGOTIATE)
        play.add("step", OK, token=bytes(size))
        count += 1
    play.add("decrypt", RENEGOTIATE)
    play.add("control", OK, attribute=2)
    play.add("step", OK, no_input=True, token=b"alert")
    for _ in range(count):
        play.session.feed(R)
        assert play.session.read(10) == (WANT_READ, b"")
    play.session.feed(R)
    assert play.session.read(10) == (E_TLS, b"")
    assert "takes none" in play.error["detail"]
    assert play.take().endswith(b"alert")
    play.done()


def test_data_that_was_under_way_in_a_renegotiation_of_tls12() -> None:
    play = Play()
    play.add("step", OK, token=HELLO, remote=CERT, protocol=2)
    assert play.session.handshake() == DONE
    play.take()
    play.add("decrypt", RENEGOTIATE, input=record(b"\0\0\0\0", 22) + R, extra=len(R))
    play.add("step", CONTINUE, no_input=True, token=b"hello again")
    play.add("decrypt", OK, input=R, data=b"under way")
    play.add("step", OK, input=ANSWER)
    play.session.feed(record(b"\0\0\0\0", 22) + R)
    assert play.session.read(100) == (DONE, b"under way")
    assert play.take() == b"hello again"
    play.session.feed(ANSWER)
    assert play.session.read(100) == (WANT_READ, b"")
    play.add("encrypt", OK)
    assert play.session.write(b"x") == (DONE, 1)
    play.done()


@pytest.mark.parametrize("before", [CERT, None])
@pytest.mark.parametrize("after", [CERT, OTHER_CERT, None, CERT + b"x"])
@pytest.mark.parametrize("stage", ["at once", "later"])
def test_the_peers_certificate_may_not_change(before: Any, after: Any, stage: str) -> None:
    play = open_client(remote=before)
    play.add("decrypt", RENEGOTIATE)
    if stage == "at once":
        play.add("step", CONTINUE, token=b"hello again", remote=after)
    else:
        play.add("step", CONTINUE, token=b"hello again")
        play.add("step", OK, input=ANSWER, token=b"finished again", remote=after)
    play.add("control", OK, attribute=2)
    play.add("step", OK, token=b"alert")
    play.session.feed(R)
    if stage == "later":
        assert play.session.read(10) == (WANT_READ, b"")
        play.session.feed(ANSWER)
    status, data = play.session.read(10)
    if before == after:
        assert (status, data) == (WANT_READ, b"")
        assert play.script.left() == 2
        return
    assert (status, data) == (E_TLS, b"")
    assert "certificate changed" in play.error["detail"]
    assert b"finished again" not in (out := play.take())
    assert out.endswith(b"alert")
    play.done()


def test_a_certificate_that_is_not_known_yet_is_no_change() -> None:
    play = open_client()
    play.add("decrypt", RENEGOTIATE)
    play.add("step", CONTINUE, token=b"again", remote=False)
    play.add("step", OK, input=ANSWER, remote=CERT)
    play.session.feed(R)
    assert play.session.read(10) == (WANT_READ, b"")
    play.session.feed(ANSWER)
    assert play.session.read(10) == (WANT_READ, b"")
    assert play.session.write(b"") == (DONE, 0)
    play.done()


@by_name(FATAL)
@pytest.mark.parametrize("later", [False, True])
def test_a_failing_renegotiation(code: int, later: bool) -> None:
    play = open_client()
    play.add("decrypt", RENEGOTIATE, data=b"before")
    if later:
        play.add("step", CONTINUE, token=b"again")
    play.add("step", code, token=b"alert")
    play.session.feed(R)
    assert play.session.read(10) == (DONE, b"before")
    if later:
        assert play.session.read(10) == (WANT_READ, b"")
        play.session.feed(ANSWER)
    nomem = code == FAILURES["SEC_E_INSUFFICIENT_MEMORY"]
    assert play.session.read(10) == (E_NOMEM if nomem else E_TLS, b"")
    assert play.error["code"] == code
    assert play.take() == (b"again" if later else b"") + (b"" if nomem else b"alert")
    play.done()


def test_a_client_certificate_asked_for_in_a_renegotiation() -> None:
    play = open_client()
    play.add("decrypt", RENEGOTIATE, extra=len(ANSWER))
    play.add("step", LACKING, input=ANSWER)
    play.add("step", OK, input=ANSWER, flags_set=ISC_USE_SUPPLIED, token=b"none")
    play.session.feed(R + ANSWER)
    assert play.session.read(10) == (WANT_READ, b"")
    assert play.take() == b"none"
    # a second time it insists
    play.add("decrypt", RENEGOTIATE, extra=len(ANSWER))
    play.add("step", LACKING, input=ANSWER)
    play.session.feed(R + ANSWER)
    assert play.session.read(10) == (E_TLS, b"")
    assert play.error["code"] == FAILURES["SEC_E_INCOMPLETE_CREDENTIALS"]
    play.done()


def test_a_renegotiation_that_ends_the_connection() -> None:
    play = open_client()
    play.add("decrypt", RENEGOTIATE)
    play.add("step", EXPIRED, token=b"bye")
    play.session.feed(R)
    assert play.session.read(10) == (END, b"")
    assert play.take() == b"bye"
    play.done()


@by_name({n: c for n, c in SUCCESSES.items() if c not in (CONTINUE, EXPIRED, LACKING)})
def test_an_unknown_success_in_a_renegotiation(code: int) -> None:
    play = open_client()
    play.add("decrypt", RENEGOTIATE)
    play.add("step", code)
    play.session.feed(R)
    assert play.session.read(10) == (E_TLS, b"")
    assert play.error["code"] == INTERNAL
    play.done()


def test_sizes_that_cannot_be_had_after_a_renegotiation() -> None:
    play = open_client()
    play.add("decrypt", RENEGOTIATE)
    play.add("step", CONTINUE)
    play.add("step", OK, input=ANSWER, token=b"out")
    play.add("query", INTERNAL, attribute=sspi.ATTR_STREAM_SIZES)
    play.session.feed(R)
    assert play.session.read(10) == (WANT_READ, b"")
    play.session.feed(ANSWER)
    assert play.session.read(10) == (E_TLS, b"")
    assert play.take() == b"out"
    play.done()


def test_a_flood_of_handshake_messages() -> None:
    play = open_client()
    for _ in range(256):
        play.add("decrypt", RENEGOTIATE, extra=0)
        play.add("step", OK)
        play.session.feed(R)
        assert play.session.read(10) == (WANT_READ, b"")
    play.add("decrypt", RENEGOTIATE, extra=0)
    play.session.feed(R)
    assert play.session.read(10) == (E_TLS, b"")
    assert "handshake messages" in play.error["detail"]
    play.done()


def test_a_server_is_asked_again_too() -> None:
    play = open_server()
    play.add("decrypt", RENEGOTIATE, extra=len(ANSWER))
    play.add("step", LACKING, input=ANSWER)  # no answer that a server can get
    play.session.feed(R + ANSWER)
    assert play.session.read(10) == (E_TLS, b"")
    play.done()


# --- writing -------------------------------------------------------------------------


def test_what_is_written_is_cut_at_the_largest_message() -> None:
    play = open_client(sizes=(5, 17, 10))
    for part in (b"0123456789", b"abcdefghij", b"k"):
        play.add("encrypt", OK, input=part)
    assert play.session.write(b"0123456789abcdefghijk") == (DONE, 21)
    out = play.take()
    assert len(out) == 21 + 3 * 22
    assert t.record(out)["whole"] == len(out)
    play.done()


@pytest.mark.parametrize(("header", "trailer"), [(5, 17), (5, 0), (3, 17), (0, 1), (5, 16)])
def test_lengths_that_shrink(header: int, trailer: int) -> None:
    """EncryptMessage may need less than STREAM_SIZES says: the parts are closed up."""
    play = open_client()
    play.add("encrypt", OK, header=header, trailer=trailer)
    play.add("encrypt", OK)
    assert play.session.write(b"abc") == (DONE, 3)
    assert play.session.write(b"def") == (DONE, 3)
    out = play.take()
    assert len(out) == header + 3 + trailer + 5 + 3 + 17
    assert out[header : header + 3] == bytes(b ^ 0xFF for b in b"abc")
    assert out[header + 3 : header + 3 + trailer] == b"\xee" * trailer
    play.done()


@pytest.mark.parametrize("part", ["header", "trailer"])
def test_lengths_that_grow_are_the_engines_fault(part: str) -> None:
    play = open_client()
    play.add("encrypt", OK, **{part: 100})
    assert play.session.write(b"abc") == (E_TLS, 0)
    assert play.error["code"] == INTERNAL
    assert play.take() == b""
    play.done()


@by_name({**FAILURES, **SUCCESSES})
def test_an_encryption_that_does_not_succeed(code: int) -> None:
    play = open_client()
    play.add("encrypt", OK)
    play.add("encrypt", code)
    assert play.session.write(b"abc") == (DONE, 3)
    status, n = play.session.write(b"secret")
    nomem = code == FAILURES["SEC_E_INSUFFICIENT_MEMORY"]
    assert (status, n) == (E_NOMEM if nomem else E_TLS, 0)
    assert play.error["code"] == (code if code < 0 else INTERNAL)
    out = play.take()
    assert len(out) == 25 and b"secret" not in out
    assert play.state == FAILED
    play.done()


def test_the_output_is_bounded() -> None:
    play = open_client()
    limit = 512 * 1024
    data = bytes(limit)
    taken = 0
    for _ in range(limit // 16384 + 1):
        play.add("encrypt", OK)
    status, taken = play.session.write(data)
    assert status == WANT_WRITE and 0 < taken < limit
    out = play.session.output()
    assert len(out) <= limit
    assert play.session.write(data[taken:]) == (WANT_WRITE, 0)
    play.session.consume(len(out))
    assert play.session.write(data[taken:]) == (DONE, limit - taken)
    play.take()
    assert play.script.left() == 0 or play.script.left() == 1
    while play.script.left():
        assert play.session.write(b"x") == (DONE, 1)
    play.done()


def test_the_output_is_filled_to_its_bound() -> None:
    """The room that an engine's own messages might take does not count there."""
    limit, overhead, whole = 512 * 1024, 22, 16384
    records, rest = divmod(limit, whole + overhead)
    play = open_client()
    for _ in range(records + 1):
        play.add("encrypt", OK)
    for size in (records * whole, rest - overhead):
        assert play.session.write(bytes(size)) == (DONE, size)
    assert len(play.session.output()) == limit
    play.session.consume(0)
    assert play.session.write(b"x") == (WANT_WRITE, 0)
    assert len(play.take()) == limit
    play.done()


@pytest.mark.parametrize("lent", [False, True])
def test_no_memory_for_what_is_sealed(lent: bool) -> None:
    play = open_client()
    play.add("encrypt", OK)
    assert play.session.write(b"before") == (DONE, 6)
    if lent:
        play.session.output()  # must stay where it is
    t.fail_allocation(1, True)
    status, n = play.session.write(bytes(300_000))
    t.fail_allocation(0)
    assert (status, n) == (E_NOMEM, 0)
    play.done()


def test_output_that_is_lent_out_stays_while_more_is_written() -> None:
    play = open_client()
    play.add("encrypt", OK, input=b"a" * 400)
    for _ in range(3):
        play.add("encrypt", OK)
    play.session.write(b"a" * 400)
    first = play.session.output()  # lent
    assert play.session.write(b"b" * 10_000) == (DONE, 10_000)
    play.session.consume(100)
    second = play.session.output()
    assert second[: len(first) - 100] == first[100:]
    assert play.session.write(b"c" * 100) == (DONE, 100)
    assert play.session.write(b"d" * 100) == (DONE, 100)
    play.session.consume(len(second))
    rest = play.take()
    assert rest.count(bytes([0xFF ^ ord("c")])) >= 100
    play.done()


# --- endings -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [OK, EXPIRED, CONTINUE])
def test_shutdown_is_a_token_and_a_step(status: int) -> None:
    """ApplyControlToken(SCHANNEL_SHUTDOWN), then a step without input."""
    play = open_client()
    play.add("control", OK, attribute=1)
    play.add("step", status, no_input=True, token=b"close_notify")
    play.add("decrypt", OK, data=b"goes on")
    assert play.session.shutdown() == DONE
    assert play.session.shutdown() == DONE  # once
    assert play.take() == b"close_notify"
    assert play.facts()["write_ended"]
    assert play.session.write(b"x") == (E_CLOSED, 0)
    play.session.feed(R)
    assert play.session.read(10) == (DONE, b"goes on")
    play.done()


@by_name(FATAL)
@pytest.mark.parametrize("where", ["control", "step"])
def test_a_shutdown_that_fails(code: int, where: str) -> None:
    play = open_client()
    if where == "step":
        play.add("control", OK)
    play.add(where, code)
    assert play.session.shutdown() == E_TLS
    assert play.session.last()["code"] == code
    assert play.session.shutdown() == DONE
    assert play.session.write(b"x") == (E_CLOSED, 0)
    assert play.state == OPEN  # reading goes on
    play.done()


def test_abort_ends_everything_at_once() -> None:
    play = open_client()
    play.add("decrypt", OK, data=b"never read")
    play.session.feed(R)
    assert play.session.read(1) == (DONE, b"n")
    play.session.abort()
    assert play.session.read(10) == (E_CLOSED, b"")
    assert play.session.write(b"x") == (E_CLOSED, 0)
    assert play.session.handshake() == E_CLOSED
    assert play.session.shutdown() == E_CLOSED
    assert play.facts()["pending"] == 0
    assert play.session.feed(R) == DONE  # and is thrown away
    assert play.facts()["input"] == 0
    play.done()


def test_abort_keeps_the_first_error() -> None:
    play = Play()
    play.add("step", FAILURES["SEC_E_TARGET_UNKNOWN"])
    assert play.session.handshake() == E_TLS
    play.session.abort()
    assert play.session.handshake() == E_TLS
    play.done()


# --- input ---------------------------------------------------------------------------


def test_input_is_bounded_and_can_be_lent() -> None:
    play = open_client()
    assert play.session.reserve((1 << 20) + 1) == (E_ARGUMENT, 0)
    assert play.session.feed(bytes((1 << 20) + 1)) == E_ARGUMENT
    play.add("decrypt", OK, data=b"abcde", extra=2)
    play.add("decrypt", OK, input=R, data=b"f")
    play.session.feed(R + R[:2])
    assert play.session.read(1) == (DONE, b"a")
    status, room = play.session.reserve(100)
    assert status == DONE and room >= 100
    # a reader goes on while the memory is lent out
    assert play.session.read(2) == (DONE, b"bc")
    assert play.session.read(2) == (DONE, b"de")
    assert play.session.read(2) == (WANT_READ, b"")
    play.session.commit(R[2:])
    assert play.session.read(100) == (DONE, b"f")
    play.session.reserve(10)
    play.session.commit(b"")
    assert play.facts()["input"] == 0
    status, _ = play.session.reserve(0)
    assert status == DONE
    play.session.abort()
    play.session.commit(b"late")
    assert play.facts()["input"] == 0
    play.done()


def test_no_memory_for_input() -> None:
    play = open_client()
    t.fail_allocation(1, True)
    assert play.session.reserve(1_000_000)[0] == E_NOMEM
    t.fail_allocation(0)
    assert play.session.reserve(10)[0] == DONE
    play.session.commit(b"")
    play.done()


def test_leftover_is_taken_out_behind_the_plaintext() -> None:
    play = open_client()
    play.add("decrypt", OK, data=b"plain", extra=7)
    play.session.feed(R + b"\x17\3\3left")
    assert play.session.read(1) == (DONE, b"p")
    assert play.facts()["input"] == 7
    assert play.session.take_input(3) == b"\x17\3\3"
    assert play.session.read(2) == (DONE, b"la")
    play.session.reserve(1)
    assert play.session.take_input(2) == b"le"
    play.session.commit(b"!")
    assert play.session.read(2) == (DONE, b"in")
    assert play.session.take_input(100) == b"ft!"
    assert play.session.take_input(100) == b""
    play.done()


# --- credentials ----------------------------------------------------------------------


def test_certificates_of_the_same_names_share_a_handle(engine: str) -> None:
    script = t.Script()
    credentials = t.Credentials(
        script,
        SERVER,
        [
            b"dns=a.example\nip=10.0.0.1\nkey_algorithm=EC",
            b"dns=b.example\nkey_algorithm=EC",
            b"ip=10.0.0.1\ndns=A.EXAMPLE\nkey_algorithm=RSA",
            b"dns=a.example\nip=10.0.0.1\nkey_algorithm=EC",
            b"subject=nameless",
            b"subject=nameless",
            b"dns=a.example\nkey_algorithm=" + b"x" * 64,
        ],
        store=1 if engine == "schannel" else 3,
    )
    assert script.alive()[0] == 6
    assert credentials.handle("a.example") == 0
    assert credentials.handle("b.example") == 1
    assert credentials.handle("unknown.example") == 0
    assert credentials.handle(None) == 0
    assert credentials.handle("") == 0
    counts = [sspi.asked_for(c[5])["certs"] if engine == "schannel" else c[3] for c in script.log()]
    assert counts == [2, 1, 1, 1, 1, 1]
    del credentials
    assert script.alive() == (0, 0, 0, 0)


def test_each_allocation_of_several_identities_refused() -> None:
    certs = [b"dns=" + letter * 100 + b"\nip=10.0.0.1\nkey_algorithm=EC" for letter in (b"a", b"b")]
    assert refuse_each_allocation_of_acquiring(t, certs, 100) > 5


def test_credentials_that_cannot_be_acquired() -> None:
    script = t.Script()
    for role, certs, status in [
        (9, (), E_ARGUMENT),
        (SERVER, (), E_ARGUMENT),
        (SERVER, (None,), E_ARGUMENT),
    ]:
        with pytest.raises(RuntimeError) as caught:
            t.Credentials(script, role, certs)
        assert caught.value.args[0]["status"] == status
    # the second of two is refused: the first goes back
    script.add("acquire", OK)
    script.add("acquire", FAILURES["SEC_E_NO_CREDENTIALS"])
    with pytest.raises(RuntimeError) as caught:
        t.Credentials(script, SERVER, [b"dns=a", b"dns=b"])
    assert caught.value.args[0]["code"] == FAILURES["SEC_E_NO_CREDENTIALS"]
    assert script.alive() == (0, 0, 0, 0)


# --- allocation refused, and every call failing in turn ----------------------------------


def life_of_a_client() -> Play:
    """Everything that a session does, with whatever comes of it."""
    play = Play(ask_verdict=True, ask_certificate=True, target="localhost", alpn=b"\2h2")
    s = play.session
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", LACKING, input=ANSWER, remote=CERT)
    play.add("step", CONTINUE, input=ANSWER, token=FINISHED)
    play.add("step", OK, input=FINISHED)
    play.add("encrypt", OK)
    play.add("decrypt", OK, data=b"data", extra=len(R))
    play.add("decrypt", RENEGOTIATE, data=b"more")
    play.add("step", CONTINUE, token=b"x" * 2000)
    play.add("step", OK, input=ANSWER, token=b"y" * 2000)
    play.add("encrypt", OK)
    play.add("control", OK)
    play.add("step", OK, token=b"close_notify")
    play.add("decrypt", EXPIRED)
    s.handshake()
    s.feed(ANSWER)
    s.handshake()
    s.verdict(0)
    s.handshake()
    s.set_certificate(None)
    s.handshake()
    s.feed(FINISHED)
    s.handshake()
    s.write(b"first")
    s.output()
    s.write(b"z" * 5000)
    s.consume(3)
    s.feed(R + R)
    s.read(6)
    s.read(100)
    s.feed(ANSWER)
    s.read(100)
    s.write(b"second")
    s.shutdown()
    s.feed(R)
    s.read(100)
    return play


def life_with_large_tokens() -> Play:
    """Every buffer grows at every step, also while it is lent out."""
    play = Play(ask_verdict=True)
    s = play.session
    play.add("step", CONTINUE, token=b"a" * 3000, remote=False)
    play.add("step", INCOMPLETE, input=ANSWER, token=b"b" * 5000)
    play.add("step", CONTINUE, token=b"c" * 9000, remote=CERT)
    play.add("step", OK, token=b"d" * 20_000)
    play.add("decrypt", RENEGOTIATE)
    play.add("step", OK, token=b"e" * 50_000)
    for _ in range(8):
        play.add("encrypt", OK)
    play.add("control", OK)
    play.add("step", OK, token=b"f" * 400_000)
    s.handshake()
    s.output()
    s.feed(ANSWER)
    s.handshake()
    s.feed(ANSWER)
    s.handshake()
    s.verdict(0)
    s.output()
    if s.reserve(100_000)[0] == DONE:
        s.commit(FINISHED)
    s.handshake()
    s.feed(R)
    s.read(100)
    s.write(bytes(100_000))
    s.output()
    s.write(b"more")
    s.shutdown()
    return play


def life_of_a_server() -> Play:
    play = Play(SERVER, ask_verdict=True, request_cert=True, ask_credentials=True)
    s = play.session
    hello = sspi.client_hello("a.example", alpn=(b"h2",))
    play.add("step", CONTINUE, token=ANSWER, remote=False)
    play.add("step", OK, input=FINISHED, token=b"ticket", remote=CERT)
    play.add("verdict", OK, token=b"alert")
    for part in (hello[:50], hello[50:]):
        s.feed(record(part, 22))
        s.handshake()
    s.set_credentials(None)
    s.handshake()
    s.feed(FINISHED)
    s.handshake()
    s.verdict(FAILURES["SEC_E_CERT_EXPIRED"], "no")
    return play


@pytest.mark.parametrize("life", [life_of_a_client, life_with_large_tokens, life_of_a_server])
@pytest.mark.parametrize("onward", [False, True], ids=["once", "from then on"])
def test_every_allocation_refused_in_turn(life: Callable[[], Play], onward: bool) -> None:
    """An error or none, never a crash, a leak or a hang."""
    errors = 0
    for number in range(1, 1000):
        t.fail_allocation(number, onward)
        play = None
        try:
            play = life()
        except RuntimeError as error:  # credentials or session were not made
            assert error.args[0]["status"] == E_NOMEM
            errors += 1
        made = t.allocations()[0]
        t.fail_allocation(0)
        if play is not None:
            script = play.script
            if (standing := play.error)["status"] == E_NOMEM:
                errors += 1
                assert standing["code"] == FAILURES["SEC_E_INSUFFICIENT_MEMORY"]
            del play
            assert script.alive() == (0, 0, 0, 0)
        if made < number:
            break
    else:
        raise AssertionError("it never comes to an end")
    assert errors > 5


@pytest.mark.parametrize("slot", ["step", "encrypt", "decrypt", "control", "verdict"])
@by_name({**FAILURES, **SUCCESSES})
def test_each_call_failing_in_turn(slot: str, code: int) -> None:
    """Wherever in its life an engine says something else, nothing is left."""
    for nth in range(4):
        play = Play(ask_verdict=True)
        s = play.session
        script = [
            ("step", CONTINUE, {"token": HELLO, "remote": False}),
            ("step", CONTINUE, {"token": FINISHED, "remote": CERT}),
            ("verdict", OK, {}),
            ("step", OK, {}),
            ("encrypt", OK, {}),
            ("decrypt", OK, {"data": b"data"}),
            ("decrypt", RENEGOTIATE, {}),
            ("step", OK, {}),
            ("control", OK, {}),
            ("step", OK, {"token": b"bye"}),
        ]
        places = [i for i, entry in enumerate(script) if entry[0] == slot]
        if nth >= len(places):
            break
        at = places[nth]
        script[at] = (slot, code, script[at][2])
        for name, status, answer in script[: at + 1]:
            play.add(name, status, **answer)
        s.handshake()
        s.feed(ANSWER)
        s.handshake()
        s.verdict(0)
        s.feed(FINISHED)
        s.handshake()
        s.write(b"secret")
        s.feed(R)
        status, got = s.read(100)
        assert got in (b"", b"data")
        s.feed(R)
        s.read(100)
        s.shutdown()
        out = play.take()
        assert b"secret" not in out
        if play.state == FAILED:
            assert s.handshake() == play.error["status"]
        script_object = play.script
        del s, play
        assert script_object.alive() == (0, 0, 0, 0)


# --- records from memory to memory -------------------------------------------------------


@OWN_PROVIDER
def test_reading_straight_into_the_callers_memory() -> None:
    """Where the engine can; no DecryptMessage then."""
    play = open_client()
    play.add("open", OK, input=R + R, data=b"onetwo")
    play.session.feed(R + R)
    assert play.session.read(6) == (DONE, b"onetwo")
    # part of it: the rest is what the next call sees
    play.add("open", OK, input=R + R, header=len(R), data=b"one")
    play.add("open", RENEGOTIATE, input=R, data=b"two")
    play.add("step", OK, token=b"answer")
    play.session.feed(R + R)
    assert play.session.read(100) == (DONE, b"onetwo")
    assert play.take() == b"answer"
    play.add("open", EXPIRED, data=b"last")
    play.session.feed(R)
    assert play.session.read(100) == (DONE, b"last")
    assert play.session.read(100) == (END, b"")
    assert play.calls("decrypt") == []
    play.done()


@OWN_PROVIDER
def test_an_engine_that_cannot_for_this_context_is_asked_once() -> None:
    play = open_client()
    play.add("open", FAILURES["SEC_E_UNSUPPORTED_FUNCTION"])
    play.add("decrypt", OK, data=b"one", extra=len(R))
    play.add("decrypt", OK, data=b"two")
    play.add("encrypt", OK, input=b"out")
    play.session.feed(R + R)
    assert play.session.read(100) == (DONE, b"onetwo")
    assert play.session.write(b"out") == (DONE, 3)
    play.done()


@OWN_PROVIDER
def test_an_engine_that_opens_nothing_leaves_it_to_decryption() -> None:
    play = open_client()
    play.add("open", OK, header=0)
    play.add("decrypt", OK, data=b"too long")
    play.session.feed(R)
    assert play.session.read(4) == (DONE, b"too ")
    play.done()


@OWN_PROVIDER
@by_name({n: c for n, c in FATAL.items() if n != "SEC_E_UNSUPPORTED_FUNCTION"})
def test_a_failure_on_the_straight_way(code: int) -> None:
    nomem = code == FAILURES["SEC_E_INSUFFICIENT_MEMORY"]
    play = open_client()
    play.add("open", code, data=b"good", header=len(R))
    play.session.feed(R + R)
    assert play.session.read(100) == (DONE, b"good")
    assert play.session.read(100) == (E_NOMEM if nomem else E_TLS, b"")
    assert play.error["code"] == code
    play.done()

    play = open_client()
    play.add("seal", code, token=b"gone out")
    assert play.session.write(b"data")[0] == (E_NOMEM if nomem else E_TLS)
    assert play.error["code"] == code
    play.done()

    play = open_client()
    play.add("seal", code)
    assert play.session.convert(False, b"data", 100)[0] == (E_NOMEM if nomem else E_TLS)
    play.done()

    play = open_client()
    play.add("open", code)
    assert play.session.convert(True, R, 100)[0] == (E_NOMEM if nomem else E_TLS)
    play.done()


@OWN_PROVIDER
def test_writing_straight_into_the_output() -> None:
    play = open_client()
    play.add("seal", OK, input=b"data", token=b"sealed data")
    assert play.session.write(b"data") == (DONE, 4)
    assert play.take() == b"sealed data"
    # what did not fit goes the other way
    play.add("seal", OK, input=b"data", header=3, token=b"sealed dat")
    play.add("encrypt", OK, input=b"a")
    assert play.session.write(b"data") == (DONE, 4)
    assert play.take().startswith(b"sealed dat\x17\3\3")
    play.done()


@OWN_PROVIDER
def test_sealing_from_memory_to_memory() -> None:
    play = open_client()
    sealed, content, exactly, bound = play.session.sizes(16385, b"")
    assert (sealed, content, exactly) == (16385 + 2 * 22, 0, True)
    assert bound >= sealed + len(play.session.output())
    play.add("seal", OK, input=b"data", token=b"sealed")
    assert play.session.convert(False, b"data", 100) == (DONE, 4, b"sealed")
    # waiting output goes first, so nothing is sealed past it
    play.add("encrypt", OK, input=b"queued")
    assert play.session.write(b"queued") == (DONE, 6)
    assert play.session.convert(False, b"data", 100) == (DONE, 0, b"")
    play.take()
    play.add("control", OK)
    play.add("step", OK)
    assert play.session.shutdown() == DONE
    assert play.session.convert(False, b"data", 100) == (E_CLOSED, 0, b"")
    play.done()


@OWN_PROVIDER
def test_opening_from_memory_to_memory() -> None:
    play = open_client()
    small = record(bytes(22 + 4))
    assert play.session.sizes(0, small + small)[1] >= 8
    play.add("open", OK, input=R + R, header=len(R), data=b"one")
    play.add("open", OK, input=R, data=b"two")
    assert play.session.convert(True, R + R, 100) == (DONE, 2 * len(R), b"onetwo")
    # less than a record, no record, or bytes that wait inside: not this way
    assert play.session.convert(True, R[:-1], 100) == (DONE, 0, b"")
    assert play.session.convert(True, b"GET / HTTP", 100) == (DONE, 0, b"")
    play.session.feed(R[:3])
    assert play.session.convert(True, R, 100) == (DONE, 0, b"")
    assert play.session.take_input(10) == R[:3]
    play.add("open", EXPIRED, data=b"")
    assert play.session.convert(True, R, 100)[:2] == (DONE, len(R))
    assert play.facts()["read_ended"]
    play.add("open", FAILURES["SEC_E_UNSUPPORTED_FUNCTION"])
    assert play.session.convert(True, R, 100) == (DONE, 0, b"")
    assert play.script.left() == 1


@OWN_PROVIDER
def test_an_engine_that_seals_nothing_is_at_fault() -> None:
    """EncryptMessage would pass by what it has to send first."""
    play = open_client()
    play.add("seal", OK, header=0, token=b"")
    assert play.session.write(b"data") == (E_TLS, 0)
    assert play.error["code"] == INTERNAL
    script = play.script
    del play
    assert script.alive() == (0, 0, 0, 0)


def test_what_a_started_record_may_hold() -> None:
    play = open_client()
    play.session.feed(R[:3])
    assert play.session.sizes(0, R[3:] + R)[1] >= 2 * (len(R) - 22)
    script = play.script
    del play
    assert script.alive() == (0, 0, 0, 0)


@pytest.mark.parametrize(("block", "exactly"), [(0, True), (1, True), (16, False)])
def test_sizes_are_exact_where_nothing_is_padded(block: int, exactly: bool) -> None:
    play = open_client(sizes=(5, 64, 16384, block))
    assert play.session.sizes(10, b"")[2] == exactly
    play.done()


@OWN_PROVIDER
def test_an_engine_that_works_in_place_only_opens_from_memory() -> None:
    """Record by record, so that no more than one is copied inside at a time."""
    play = open_client()
    play.add("open", FAILURES["SEC_E_UNSUPPORTED_FUNCTION"], header=0)
    play.add("decrypt", OK, input=R, data=b"one")
    play.add("decrypt", OK, input=R, data=b"")
    play.add("decrypt", OK, input=R, data=b"three")
    assert play.session.convert(True, R + R + R + R[:7], 100) == (DONE, 3 * len(R), b"onethree")
    # what does not fit waits inside, and then nothing is taken
    play.add("decrypt", OK, input=R, data=b"a sentence")
    assert play.session.convert(True, R + R, 2) == (DONE, len(R), b"a ")
    assert play.facts()["pending"] == 8
    assert play.session.convert(True, R, 100) == (DONE, 0, b"")
    assert play.session.read(100) == (DONE, b"sentence")
    # plaintext comes before the error, and the error stays
    play.add("decrypt", OK, input=R, data=b"last")
    play.add("decrypt", FAILURES["SEC_E_MESSAGE_ALTERED"], input=R)
    assert play.session.convert(True, R + R + R, 100) == (DONE, 2 * len(R), b"last")
    assert play.session.convert(True, R, 100) == (DONE, 0, b"")
    assert play.session.read(100) == (E_TLS, b"")
    play.done()


@OWN_PROVIDER
@pytest.mark.parametrize("offset", [5, 3, 9])
def test_data_opened_in_place_lies_side_by_side(offset: int) -> None:
    """Wherever in its record the engine puts it, and whatever stood before it."""
    play = open_client()
    play.add("open", FAILURES["SEC_E_UNSUPPORTED_FUNCTION"], header=0)
    parts = [(HEADER, 0, offset), (sspi.DATA, offset, 6), (TRAILER, offset + 6, 9 - offset)]
    words = [b"first ", b"second", b"third!"]
    for word in words:
        play.add("decrypt", OK, input=R, data=word, parts=parts)
    assert play.session.convert(True, R * 3, 100) == (DONE, 3 * len(R), b"".join(words))
    play.done()


@OWN_PROVIDER
def test_what_a_record_opened_in_place_leaves_over_is_for_the_step() -> None:
    """RENEGOTIATE's handshake bytes, with data in front and behind."""
    play = open_client()
    play.add("open", FAILURES["SEC_E_UNSUPPORTED_FUNCTION"], header=0)
    play.add("decrypt", OK, input=R, data=b"before")
    play.add("decrypt", RENEGOTIATE, input=R, extra=4)
    play.add("step", OK, input=R[-4:], token=b"answer")
    play.add("decrypt", OK, input=R, data=b"behind")
    assert play.session.convert(True, R * 3, 100) == (DONE, 3 * len(R), b"beforebehind")
    assert play.take() == b"answer"
    play.done()


@OWN_PROVIDER
def test_an_answer_that_lies_outside_is_the_engines_fault_in_place_too() -> None:
    play = open_client()
    play.add("open", FAILURES["SEC_E_UNSUPPORTED_FUNCTION"], header=0)
    play.add("decrypt", OK, input=R, parts=[(sspi.DATA, 15, 1)])
    assert play.session.convert(True, R, 100) == (E_TLS, len(R), b"")
    assert play.error["code"] == INTERNAL
    play.done()


@OWN_PROVIDER
def test_an_engine_that_wants_more_than_a_record_gets_it() -> None:
    play = open_client()
    play.add("open", FAILURES["SEC_E_UNSUPPORTED_FUNCTION"], header=0)
    play.add("decrypt", INCOMPLETE, input=R)  # in place
    play.add("decrypt", INCOMPLETE, input=R)  # in the input
    assert play.session.convert(True, R + R, 100) == (DONE, len(R), b"")
    play.add("decrypt", OK, input=R + R, data=b"both")
    play.session.feed(R)
    assert play.session.read(100) == (DONE, b"both")
    play.done()


@OWN_PROVIDER
def test_an_engine_that_works_in_place_only_ends_a_stream_from_memory() -> None:
    play = open_client()
    play.add("open", FAILURES["SEC_E_UNSUPPORTED_FUNCTION"], header=0)
    play.add("decrypt", OK, input=R, data=b"last")
    play.add("decrypt", EXPIRED, input=R)
    assert play.session.convert(True, R + R + R, 100) == (DONE, 2 * len(R), b"last")
    assert play.session.read(100) == (END, b"")
    play.done()


@OWN_PROVIDER
def test_an_engine_that_works_in_place_only_seals_into_memory() -> None:
    """The copy into its place is the only one; what does not fit is not taken."""
    play = open_client()
    data = bytes(range(250)) * 80  # 20,000: two records
    play.add("seal", FAILURES["SEC_E_UNSUPPORTED_FUNCTION"], input=data, header=0)
    play.add("encrypt", OK, input=data[:16384])
    room = play.session.sizes(len(data), b"")[0]
    status, taken, sealed = play.session.convert(False, data, room - 1)
    assert (status, taken) == (DONE, 16384)
    assert sealed[5 : 5 + 16384] == bytes(b ^ 0xFF for b in data[:16384])
    play.add("encrypt", OK, input=data[16384:])
    assert play.session.convert(False, data[16384:], room)[:2] == (DONE, len(data) - 16384)
    play.add("encrypt", FAILURES["SEC_E_ENCRYPT_FAILURE"], input=b"x")
    assert play.session.convert(False, b"x", 100) == (E_TLS, 0, b"")
    play.done()


def test_before_open_nothing_is_converted() -> None:
    play = Play()
    assert play.session.sizes(100, b"")[0] == 0
    assert play.session.convert(False, b"x", 100) == (E_STATE, 0, b"")
    play.done()


# --- a private key that refuses in the middle of a handshake ------------------------------

KEY_TROUBLES = {  # what Schannel hands on from a key's provider: (code, the remedy in words)
    "SCARD_W_CANCELLED_BY_USER": (0x8010006E, "connect again and enter it"),
    "SCARD_W_WRONG_CHV": (0x8010006B, "before the card is blocked"),
    "SCARD_W_CHV_BLOCKED": (0x8010006C, "unblock it"),
    "SCARD_W_REMOVED_CARD": (0x80100069, "insert it"),
    "SCARD_E_NO_READERS_AVAILABLE": (0x8010002E, "connect it"),
    "NTE_USER_CANCELLED": (0x80090036, "consent"),
    "NTE_SILENT_CONTEXT": (0x80090022, "a session with a desktop"),
    "NTE_PERM": (0x80090010, "Manage Private Keys"),
}


@pytest.mark.parametrize("name", KEY_TROUBLES)
def test_a_key_that_refuses_is_named_with_its_remedy(name: str) -> None:
    value, remedy = KEY_TROUBLES[name]
    code = value - (1 << 32)
    play = Play()
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", code, input=ANSWER)
    assert play.session.handshake() == WANT_READ
    assert play.take() == HELLO
    play.session.feed(ANSWER)
    assert play.session.handshake() == E_TLS
    assert play.error["code"] == code and remedy in play.error["detail"]
    assert twapi_tls._native.code_name(code) == name
    assert play.take() == plain_alert(play.error["alert_sent"])  # the server is not left waiting
    play.done()


# --- resumption forbidden late, and refusals under new keys -------------------------------


@OWN_PROVIDER
def test_a_client_that_must_not_resume_may_begin_again() -> None:
    """An engine that can be told only through a context, and was told too late."""
    script = t.Script()
    script.add("step", CONTINUE, context=0, token=b"first hello", remote=False)
    script.add("forbid", CONTINUE)
    script.add("step", CONTINUE, context=0, token=HELLO)
    script.add("step", OK, context=1, input=ANSWER, remote=CERT)
    session = t.Session(script, CLIENT, t.Credentials(script, CLIENT, flags=1))
    assert session.handshake() == WANT_READ
    assert session.output() == HELLO  # the first one is dropped
    session.consume(len(HELLO))
    session.feed(ANSWER)
    assert session.handshake() == DONE
    del session
    assert (script.problem(), script.left(), script.alive()) == ("", 0, (0, 0, 0, 0))


@OWN_PROVIDER
@by_name({"OK": OK, **FATAL})
def test_what_forbidding_resumption_comes_to(code: int) -> None:
    script = t.Script()
    script.add("step", CONTINUE, token=HELLO, remote=False)
    script.add("forbid", code)
    session = t.Session(script, CLIENT, t.Credentials(script, CLIENT, flags=1))
    status = session.handshake()
    if code == OK:
        assert status == WANT_READ
    else:
        assert status == (E_NOMEM if code == FAILURES["SEC_E_INSUFFICIENT_MEMORY"] else E_TLS)
    del session
    assert (script.problem(), script.left(), script.alive()) == ("", 0, (0, 0, 0, 0))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_servers_refusal_goes_out_under_the_keys_that_the_peer_expects(protocol: int) -> None:
    play = Play(SERVER, ask_verdict=True, request_cert=True)
    play.add("step", CONTINUE, token=ANSWER, remote=False)
    play.add("step", OK, input=FINISHED, token=b"tickets", remote=CERT, protocol=protocol)
    if protocol == 4:
        play.add("control", OK, attribute=2)
        play.add("step", OK, no_input=True, token=b"sealed alert")
    play.session.feed(record(sspi.client_hello(), 22))
    assert play.session.handshake() == WANT_READ
    assert play.take() == ANSWER
    play.session.feed(FINISHED)
    assert play.session.handshake() == WANT_VERDICT
    assert play.session.verdict(FAILURES["SEC_E_CERT_EXPIRED"]) == E_REFUSED
    assert play.take() == (b"sealed alert" if protocol == 4 else plain_alert(45))
    assert play.error["alert_sent"] == 45
    play.done()


def test_the_ragged_end_can_be_chosen_late() -> None:
    play = open_client()
    play.session.ragged(True)
    play.session.feed_eof()
    assert play.session.read(10) == (END, b"")
    play.done()


# --- anything in any order -----------------------------------------------------------------

_status = st.sampled_from([OK, CONTINUE, LACKING, EXPIRED, RENEGOTIATE, INCOMPLETE, INTERNAL])
_entry = st.tuples(
    st.sampled_from(["step", "encrypt", "decrypt", "control", "query", "verdict", "open", "seal"]),
    _status,
    st.fixed_dictionaries(
        {},
        optional={
            "token": st.binary(max_size=20),
            "alert": st.just(plain_alert(80)),
            "extra": st.integers(-1, 40),
            "missing": st.integers(-1, 40),
            "data": st.binary(max_size=9),
            "remote": st.sampled_from([CERT, OTHER_CERT, None, False]),
            "alert_received": st.sampled_from([-1, 0, 40]),
            "sizes": st.sampled_from([(5, 17, 16384), (13, 16, 10), (0, 0, 1)]),
        },
    ),
)
_action = st.sampled_from(
    ["handshake", "feed", "eof", "read", "write", "verdict", "refuse", "certificate",
     "shutdown", "take", "lend", "leftover", "abort"]
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    role=st.sampled_from([CLIENT, SERVER]),
    options=st.fixed_dictionaries(
        {n: st.booleans() for n in ("ask_verdict", "ask_certificate", "request_cert", "ragged_eof")}
    ),
    entries=st.lists(_entry, max_size=12),
    actions=st.lists(_action, max_size=25),
)
def test_any_engine_and_any_caller(
    role: int, options: dict[str, bool], entries: list[Any], actions: list[str]
) -> None:
    """Nonsense from below and above: every call comes back, nothing is left."""
    play = Play(role, **options)
    if role == SERVER:
        play.session.feed(record(sspi.client_hello(), 22))
    for slot, status, answer in entries:
        play.add(slot, status, **answer)
    s = play.session
    for action in actions:
        if action == "handshake":
            s.handshake()
        elif action == "feed":
            s.feed(R)
        elif action == "eof":
            s.feed_eof()
        elif action == "read":
            status, got = s.read(7)
            assert (status == DONE) == bool(got)
        elif action == "write":
            status, n = s.write(b"0123456789")
            assert n == 10 if status == DONE else n < 10
        elif action == "verdict":
            s.verdict(0)
        elif action == "refuse":
            s.verdict(FAILURES["SEC_E_CERT_EXPIRED"])
        elif action == "certificate":
            s.set_certificate(None)
        elif action == "shutdown":
            s.shutdown()
        elif action == "take":
            play.take()
        elif action == "lend":
            s.reserve(30)
            s.read(2)
            s.commit(R)
        elif action == "leftover":
            s.take_input(5)
        else:
            s.abort()
        facts = play.facts()
        assert (facts["state"] == FAILED) == (facts["error"]["status"] < 0)
    script = play.script
    del s, play
    assert script.alive() == (0, 0, 0, 0)
