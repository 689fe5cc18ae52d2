"""Windows' engine over a scripted function table: provider_schannel.c itself.

The file is compiled as it is, with tests/native/sdk in the place of Windows'
SDK, and gets the scripted table (csrc/sspi/scripted.h) for secur32's. So what
it asks of Schannel is seen, and Schannel answers with every status that
Microsoft documents, on the Windows of one's choice. What the session makes of
the statuses of steps and records is in test_session_scripted.py, which runs
over this engine as well.
"""

from __future__ import annotations

import gc
import struct
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sspi_support as sspi
from played import (
    ANSWER,
    CERT,
    FINISHED,
    HELLO,
    SERVER_CERTS,
    Play,
    refuse_each_allocation_of_acquiring,
)
from sspi_support import (
    CLIENT,
    CONTINUE,
    DONE,
    E_ALERT,
    E_ARGUMENT,
    E_NOMEM,
    E_NOT_FOUND,
    E_REFUSED,
    E_STATE,
    E_TLS,
    E_UNSUPPORTED,
    END,
    FAILED,
    FAILURES,
    LACKING,
    OK,
    OPEN,
    SERVER,
    SUCCESSES,
    WANT_CERTIFICATE,
    WANT_READ,
    WANT_VERDICT,
    plain_alert,
    record,
)

if not sspi.SCHANNEL_PLAYED:
    pytest.skip("on Windows the engine has secur32's own table", allow_module_level=True)

NEWEST = 26100
t = sspi.load_testschannel(NEWEST)

NO_CREDENTIALS = FAILURES["SEC_E_NO_CREDENTIALS"]
UNSUPPORTED = FAILURES["SEC_E_UNSUPPORTED_FUNCTION"]
CLIENT_12, CLIENT_13, SERVER_12, SERVER_13 = 0x800, 0x2000, 0x400, 0x1000  # SP_PROT_...
TLS12, TLS13 = 2, 4
NO_RESUME, DEFAULT_CERT, INSTALL = 1, 2, 8  # TW_CRED_...
UNIQUE, ENDPOINT, EXPORTER = range(3)  # enum tw_binding
ATTR_UNIQUE, ATTR_ENDPOINT, ATTR_LOCAL, ATTR_ISSUERS, ATTR_CHAIN = 25, 26, 0x54, 0x59, 0x67
ATTR_UI_INFO, ATTR_MATERIAL_INFO, ATTR_MATERIAL = 0x68, 0x6A, 0x6B

# winerror.h: why a private key cannot be used
NTE_PERM, NTE_BAD_KEYSET = (code - (1 << 32) for code in (0x80090010, 0x80090016))
SCARD_E_NO_SMARTCARD, SCARD_W_BLOCKED, SCARD_W_CANCELLED = (
    code - (1 << 32) for code in (0x8010000C, 0x8010006C, 0x8010006E)
)
UTF_16 = f"utf-16-{sys.byteorder[0]}e"

by_name = pytest.mark.parametrize("code", FAILURES.values(), ids=list(FAILURES))
FATAL = {name: code for name, code in FAILURES.items() if code != sspi.INCOMPLETE}
by_fatal = pytest.mark.parametrize("code", FATAL.values(), ids=list(FATAL))
by_role = pytest.mark.parametrize("role", [CLIENT, SERVER], ids=["client", "server"])


@pytest.fixture(autouse=True)
def no_memory_left() -> Iterator[None]:
    before = t.allocations()[1]
    yield
    t.fail_allocation(0)
    if t.allocations()[1] != before:
        gc.collect()  # a traceback may hold a session
    assert t.allocations()[1] == before


def acquired(
    role: int = CLIENT, certs: Any = None, *, module: Any = t, **options: Any
) -> dict[str, int]:
    """What AcquireCredentialsHandle was asked for."""
    script = module.Script()
    if certs is None:
        certs = SERVER_CERTS if role == SERVER else ()
    module.Credentials(script, role, certs, **options)
    assert script.problem() == "" and script.alive() == (0, 0, 0, 0)
    (call,) = script.log()
    assert call[0] == "acquire"
    return sspi.asked_for(call[5])


def refused(
    role: int = CLIENT,
    certs: Any = (),
    *,
    module: Any = t,
    code: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The error of credentials that are not made; code: Schannel's answer."""
    script = module.Script()
    if code is not None:
        script.add("acquire", code)
    with pytest.raises(RuntimeError) as caught:
        module.Credentials(script, role, certs, **options)
    assert script.left() == 0 and script.alive() == (0, 0, 0, 0)
    return caught.value.args[0]


def opened(*, module: Any = t, role: int = CLIENT, **world: Any) -> Play:
    """An OPEN session; world: what its last step changes."""
    play = Play(module, role)
    play.add("step", CONTINUE, context=0, token=HELLO, remote=False)
    play.add("step", OK, context=1, input=ANSWER, **{"remote": CERT, **world})
    if role == SERVER:
        play.session.feed(record(sspi.client_hello(), 22))
    assert play.session.handshake() == WANT_READ
    play.session.feed(ANSWER)
    assert play.session.handshake() == DONE
    play.take()
    return play


# --- which Windows ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "version"),
    [
        ({"build": 17763}, "Schannel (Windows 10.0.17763)"),
        ({"build": 0}, "Schannel (Windows 0.0.0)"),
        ({"wine": "10.0"}, "Schannel (Wine 10.0 as Windows 10.0.26100)"),
    ],
    ids=str,
)
def test_the_engine_says_which_windows_it_is_on(windows: Any, version: str) -> None:
    module = sspi.load_testschannel(**windows)
    assert module.engine()[:2] == ("schannel", version)
    assert module.engine()[4] == 0  # records of both directions at once: unsafe there


@pytest.mark.parametrize("fips", [1, 0, -1])
def test_fips_mode_is_the_systems(fips: int) -> None:
    assert sspi.load_testschannel(fips=fips).engine()[2] == fips


@pytest.mark.parametrize("wine", [None, "10.0"])
def test_without_a_function_table_the_engine_cannot_be_used(wine: str | None) -> None:
    module = sspi.load_testschannel(secur32=False, wine=wine)
    assert not module.engine()[3]
    assert refused(module=module)["status"] == E_UNSUPPORTED


# --- what credentials ask for ---------------------------------------------------------


@by_role
@pytest.mark.parametrize(
    ("build", "version", "protocols"),
    [
        (0, 4, (CLIENT_12, SERVER_12)),  # not known: what every Windows takes
        (17762, 4, (CLIENT_12, SERVER_12)),
        (17763, 5, (CLIENT_12, SERVER_12)),
        (20347, 5, (CLIENT_12, SERVER_12)),
        (20348, 5, (CLIENT_12 | CLIENT_13, SERVER_12 | SERVER_13)),
        (NEWEST, 5, (CLIENT_12 | CLIENT_13, SERVER_12 | SERVER_13)),
    ],
)
def test_structure_and_protocols_by_build(
    role: int, build: int, version: int, protocols: tuple[int, int]
) -> None:
    asked = acquired(role, module=sspi.load_testschannel(build))
    assert asked["use"] == (1 if role == SERVER else 2)
    assert (asked["version"], asked["protocols"]) == (version, protocols[role == SERVER])
    assert asked["certs"] == (1 if role == SERVER else 0)
    # 1.2 alone may be asked for everywhere, both with as far as it goes
    asked = acquired(role, module=sspi.load_testschannel(build), protocols=TLS12)
    assert asked["protocols"] == (SERVER_12 if role == SERVER else CLIENT_12)
    asked = acquired(role, module=sspi.load_testschannel(build), protocols=TLS12 | TLS13)
    assert asked["protocols"] == protocols[role == SERVER]


@by_role
def test_tls_1_3_alone(role: int) -> None:
    asked = acquired(role, protocols=TLS13)
    assert asked["protocols"] == (SERVER_13 if role == SERVER else CLIENT_13)
    for build in (0, 17763, 20347):
        error = refused(role, SERVER_CERTS, module=sspi.load_testschannel(build), protocols=TLS13)
        assert (error["status"], error["code"]) == (E_UNSUPPORTED, UNSUPPORTED)
        assert "Windows 11 or Server 2022" in error["detail"]
        assert f"this is build {build}" in error["detail"]


def test_other_protocols_are_not_offered() -> None:
    for protocols in (1, 8, 1 | TLS12):
        error = refused(protocols=protocols)
        assert error["status"] == E_UNSUPPORTED and "1.2 and TLS 1.3 only" in error["detail"]


def test_a_clients_flags() -> None:
    """Manual validation, no default certificate, strong suites; staples are asked for."""
    manual, names, none_by_default, default = 0x8, 0x4, 0x10, 0x40
    staple, aux, strong = 0x100 | 0x800 | 0x1000, 0x200000, 0x400000
    always = manual | names | staple | aux | strong
    asked = acquired()
    assert asked["flags"] == always | none_by_default
    assert asked["lifespan"] == 0
    asked = acquired(flags=DEFAULT_CERT)
    assert asked["flags"] == always | default


def test_a_servers_flags() -> None:
    """No mapping of certificates to accounts."""
    mapper, aux, strong, reconnects = 0x2, 0x200000, 0x400000, 0x80
    assert acquired(SERVER)["flags"] == mapper | aux | strong
    asked = acquired(SERVER, flags=NO_RESUME)
    assert asked["flags"] == mapper | aux | strong | reconnects
    assert asked["lifespan"] == 0


@by_role
@pytest.mark.parametrize("build", [17762, NEWEST], ids=["old", "new"])
@pytest.mark.parametrize(
    ("seconds", "lifespan"),
    [(0, 0), (1, 1000), (36000, 36_000_000), (2_147_482, 2_147_482_000), (2_147_483, 2**31 - 1)],
)
def test_lifespans_are_milliseconds(role: int, build: int, seconds: int, lifespan: int) -> None:
    module = sspi.load_testschannel(build)
    assert acquired(role, module=module, lifespan=seconds)["lifespan"] == lifespan


@pytest.mark.parametrize("build", [17762, NEWEST], ids=["old", "new"])
def test_a_client_that_must_not_resume_has_no_cache(build: int) -> None:
    asked = acquired(module=sspi.load_testschannel(build), flags=NO_RESUME, lifespan=10)
    assert asked["lifespan"] == 0xFFFFFFFF
    assert asked["flags"] & 0x80 == 0  # for servers


@by_role
def test_cipher_strengths_need_the_old_structure_and_tls_1_2(role: int) -> None:
    for given in ({"min_bits": 256}, {"max_bits": 128}, {"min_bits": 128, "max_bits": 256}):
        asked = acquired(role, **given)
        assert asked["version"] == 4
        assert asked["protocols"] == (SERVER_12 if role == SERVER else CLIENT_12)
        assert asked["min_bits"] == given.get("min_bits", 0)
        assert asked["max_bits"] == given.get("max_bits", 0)
        for protocols in (TLS13, TLS12 | TLS13):
            error = refused(role, SERVER_CERTS, protocols=protocols, **given)
            assert (error["status"], error["code"]) == (E_UNSUPPORTED, UNSUPPORTED)
            assert "leave TLS 1.3 out" in error["detail"]


def test_what_schannel_has_no_way_to_be_told() -> None:
    error = refused(ciphers="ECDHE+AESGCM")
    assert error["status"] == E_UNSUPPORTED and "policy of Windows" in error["detail"]
    error = refused(SERVER, SERVER_CERTS, store=2)
    assert error["status"] == E_UNSUPPORTED and "issuers" in error["detail"]
    acquired(CLIENT, store=2)  # there they are the core's


def test_several_certificates_of_one_identity_are_one_credential() -> None:
    asked = acquired(SERVER, [b"dns=a\nkey_algorithm=RSA", b"dns=a\nkey_algorithm=EC"])
    assert asked["certs"] == 2


def test_intermediates_are_installed_when_asked_for() -> None:
    acquired(SERVER, flags=INSTALL, store=1)
    certs = [b"dns=a\ninstall=no"]
    acquired(SERVER, certs, store=1)  # not asked: not tried
    error = refused(SERVER, certs, flags=INSTALL, store=1)
    assert error["status"] == sspi.E_OS and "CA store" in error["detail"]


# --- credentials that Schannel refuses --------------------------------------------------


def test_a_certificate_without_a_key() -> None:
    error = refused(CLIENT, [b"dns=a\nkey=none"])
    assert (error["status"], error["code"]) == (E_ARGUMENT, NO_CREDENTIALS)
    assert "import it with its key" in error["detail"]
    # of two
    error = refused(SERVER, [b"dns=a\nkey_algorithm=EC", b"dns=a\nkey=none"])
    assert error["status"] == E_ARGUMENT


SENTENCES = {
    "SEC_E_NO_CREDENTIALS": "keys that exist in memory only (ephemeral) are not accepted",
    "SEC_E_UNKNOWN_CREDENTIALS": "check that this account may read it",
    "SEC_E_ALGORITHM_MISMATCH": "enabled on this machine (Windows' policy)",
    "SEC_E_INTERNAL_ERROR": "the private key does not belong to the certificate",
}


@by_role
@pytest.mark.parametrize("build", [17762, NEWEST], ids=["old", "new"])
@pytest.mark.parametrize("name", FAILURES)
def test_each_refusal_has_its_code_and_a_sentence(role: int, build: int, name: str) -> None:
    error = refused(role, SERVER_CERTS, code=FAILURES[name], module=sspi.load_testschannel(build))
    nomem = name == "SEC_E_INSUFFICIENT_MEMORY"
    assert error["status"] == (E_NOMEM if nomem else E_TLS)
    assert error["code"] == FAILURES[name]
    assert SENTENCES.get(name, "") in error["detail"]
    assert nomem or len(error["detail"]) > 10  # without memory the status says all
    assert "Local Security Authority" not in error["detail"]  # 0x80090304's own text
    assert "LSA" not in error["detail"]


@pytest.mark.parametrize("code", SUCCESSES.values(), ids=list(SUCCESSES))
def test_a_success_that_acquiring_never_has_gives_no_credentials(code: int) -> None:
    assert refused(code=code)["status"] == E_TLS


KEY_TROUBLES = {
    "access denied": (NTE_PERM, "Manage Private Keys"),
    "no container": (NTE_BAD_KEYSET, "import the certificate with its key again"),
    "cancelled": (SCARD_W_CANCELLED, "was cancelled"),
    "no card": (SCARD_E_NO_SMARTCARD, "insert it"),
    "blocked": (SCARD_W_BLOCKED, "unblock it"),
}


@pytest.mark.parametrize("name", ["SEC_E_NO_CREDENTIALS", "SEC_E_INTERNAL_ERROR"])
@pytest.mark.parametrize(("trouble", "remedy"), KEY_TROUBLES.values(), ids=list(KEY_TROUBLES))
def test_what_is_wrong_with_the_key_is_said_first(name: str, trouble: int, remedy: str) -> None:
    """Access denied, a PIN that was cancelled: the key itself knows better."""
    certs = [b"dns=a\nkey_algorithm=EC", b"dns=a\ntrouble=%d" % trouble]
    error = refused(SERVER, certs, code=FAILURES[name])
    assert (error["status"], error["code"]) == (E_TLS, trouble)
    assert remedy in error["detail"]
    assert refused(SERVER, [certs[1], certs[0]], code=FAILURES[name])["code"] == trouble


def test_the_second_identity_is_refused() -> None:
    script = t.Script()
    script.add("acquire", OK)
    script.add("acquire", NO_CREDENTIALS)
    with pytest.raises(RuntimeError):
        t.Credentials(script, SERVER, [b"dns=a", b"dns=b"])
    assert script.alive() == (0, 0, 0, 0)


def test_each_allocation_of_acquiring_refused() -> None:
    assert refuse_each_allocation_of_acquiring(t, SERVER_CERTS, 50) > 3


# --- certificates ---------------------------------------------------------------------


@by_name
def test_the_peers_certificate_is_asked_for_as_soon_as_it_may_be(code: int) -> None:
    """REMOTE_CERT_CONTEXT is there at the end only, REMOTE_CERT_CHAIN before it."""
    play = Play(t, ask_verdict=True)
    play.add("step", CONTINUE, token=HELLO)
    play.add("query", code, attribute=sspi.ATTR_REMOTE_CERT)
    play.session.handshake()
    asked = [c[3] for c in play.calls("query")]
    none = code == NO_CREDENTIALS  # that is an answer, though to a client too early
    assert asked == [sspi.ATTR_REMOTE_CERT] + ([] if none else [ATTR_CHAIN])
    play.add("step", CONTINUE, input=ANSWER, token=FINISHED)
    play.add("query", FAILURES["SEC_E_INVALID_HANDLE"], attribute=sspi.ATTR_REMOTE_CERT)
    play.add("query", OK, attribute=ATTR_CHAIN, data=CERT)
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_VERDICT
    assert play.take() == HELLO  # our Finished waits
    assert play.facts()["remote"] == CERT
    play.add("step", OK, input=FINISHED, remote=CERT)
    assert play.session.verdict(0) == DONE
    play.session.feed(FINISHED)
    assert play.session.handshake() == DONE
    play.done()


@by_name
def test_where_neither_is_told_the_verdict_is_due_at_the_end(code: int) -> None:
    """An old Windows does not know REMOTE_CERT_CHAIN."""
    play = Play(t, ask_verdict=True)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("query", code, attribute=ATTR_CHAIN)
    play.add("step", CONTINUE, input=ANSWER, token=FINISHED)
    play.add("query", OK, attribute=ATTR_CHAIN)  # nor without a certificate
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_READ
    assert play.take() == HELLO + FINISHED
    play.add("step", OK, input=FINISHED, remote=CERT)
    play.session.feed(FINISHED)
    assert play.session.handshake() == WANT_VERDICT
    assert play.facts()["remote"] == CERT
    assert play.session.verdict(0) == DONE
    play.done()


def test_an_answer_without_a_certificate_is_none_yet() -> None:
    play = opened(remote=None)
    play.add("query", OK, attribute=sspi.ATTR_REMOTE_CERT)
    assert play.facts()["remote_status"] == E_NOT_FOUND
    play.done()


def test_the_peers_certificate_is_told_apart_from_none() -> None:
    play = opened(role=SERVER, remote=None)
    facts = play.facts()
    assert (facts["remote_status"], facts["remote"]) == (E_NOT_FOUND, None)
    play.done()


def test_our_own_certificate() -> None:
    play = opened()
    play.add("query", OK, attribute=ATTR_LOCAL, data=b"dns=ours")
    facts = play.facts()
    assert (facts["local_status"], facts["local"]) == (DONE, b"dns=ours")
    play.add("query", OK, attribute=ATTR_LOCAL)
    facts = play.facts()
    assert (facts["local_status"], facts["local"]) == (E_NOT_FOUND, None)
    play.done()


@by_name
def test_our_own_certificate_cannot_be_told(code: int) -> None:
    play = opened()
    play.add("query", code, attribute=ATTR_LOCAL)
    status = play.facts()["local_status"]
    assert status == (E_UNSUPPORTED if code == UNSUPPORTED else E_NOT_FOUND)
    play.done()


@pytest.mark.parametrize("attribute", [sspi.ATTR_REMOTE_CERT, ATTR_LOCAL])
def test_no_memory_for_a_certificate(attribute: int) -> None:
    play = opened(remote=None)
    play.add("query", OK, attribute=attribute, data=CERT)
    t.fail_allocation(1)
    facts = play.facts()
    t.fail_allocation(0)
    which = "local_status" if attribute == ATTR_LOCAL else "remote_status"
    assert facts[which] == E_NOMEM
    play.done()


# --- facts ------------------------------------------------------------------------------


def connection(protocol: int, algorithm: int = 0, bits: int = 0) -> bytes:
    """SecPkgContext_ConnectionInfo."""
    return struct.pack("=7I", protocol, algorithm, bits, 0, 0, 0, 0)


def cipher_info(protocol: int, suite: int, names: tuple[str, str], bits: int) -> bytes:
    """SecPkgContext_CipherInfo of version 1."""

    def wide(text: str) -> bytes:
        return text.encode(UTF_16)[:126].ljust(128, b"\0")

    return b"".join(
        [
            struct.pack("=4I", 1, protocol, suite, 0),
            wide(names[0]),
            wide(names[1]),
            struct.pack("=2I", bits, 16),
            wide("SHA384"),
            struct.pack("=I", 384),
            wide("ECDH"),
            struct.pack("=2I", 0, 255),
            wide("RSA"),
            struct.pack("=I", 0),
        ]
    )


def told(*queries: tuple[int, int, bytes], module: Any = t, **world: Any) -> dict[str, Any]:
    """The facts of a connection that answers so, in this order."""
    play = Play(module)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", OK, input=ANSWER, remote=CERT, **world)
    for attribute, status, answer in queries:
        play.add("query", status, attribute=attribute, token=answer)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == DONE
    assert play.script.left() == 0
    facts = play.facts()
    play.done()
    return facts


@pytest.mark.parametrize(
    ("bits", "protocol"),
    [(CLIENT_12, TLS12), (SERVER_12, TLS12), (CLIENT_13, TLS13), (SERVER_13, TLS13), (0x40, 0)],
)
def test_the_protocol_is_told_by_connection_info(bits: int, protocol: int) -> None:
    assert told((sspi.ATTR_CONNECTION_INFO, OK, connection(bits)))["protocol"] == protocol


@pytest.mark.parametrize(("number", "protocol"), [(0x0303, TLS12), (0x0304, TLS13), (0x0302, 0)])
def test_the_protocol_is_told_by_cipher_info(number: int, protocol: int) -> None:
    facts = told(
        (sspi.ATTR_CONNECTION_INFO, OK, connection(0)),
        (sspi.ATTR_CIPHER_INFO, OK, cipher_info(number, 0x1302, ("a", "b"), 256)),
    )
    assert facts["protocol"] == protocol


def test_wine_has_no_number_for_tls_1_3() -> None:
    module = sspi.load_testschannel(wine="10.0")
    facts = told((sspi.ATTR_CONNECTION_INFO, OK, connection(0)), module=module)
    assert facts["protocol"] == TLS13
    facts = told((sspi.ATTR_CONNECTION_INFO, OK, connection(CLIENT_12)), module=module)
    assert facts["protocol"] == TLS12


def test_the_cipher_suite() -> None:
    facts = told(
        (sspi.ATTR_CONNECTION_INFO, OK, connection(CLIENT_13, 0x6610, 128)),
        (sspi.ATTR_CIPHER_INFO, OK, cipher_info(0x304, 0x1302, ("TLS_AES_256…", "AES"), 256)),
    )
    assert (facts["suite"], facts["bits"]) == (0x1302, 256)
    assert (facts["suite_name"], facts["cipher_name"]) == ("TLS_AES_256…", "AES")
    assert facts["protocol"] == TLS13


def test_a_name_that_does_not_fit_is_left_out() -> None:
    facts = told(
        (sspi.ATTR_CONNECTION_INFO, OK, connection(CLIENT_13)),
        (sspi.ATTR_CIPHER_INFO, OK, cipher_info(0x304, 0x1302, ("…" * 60, "AES"), 256)),
    )
    assert (facts["suite_name"], facts["cipher_name"]) == ("", "AES")


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [(0x660E, "AES-128"), (0x660F, "AES-192"), (0x6610, "AES-256"), (0x6603, "3DES"), (1, "")],
)
def test_without_cipher_info_the_algorithm_is_named(algorithm: int, name: str) -> None:
    facts = told((sspi.ATTR_CONNECTION_INFO, OK, connection(CLIENT_12, algorithm, 112)))
    assert (facts["cipher_name"], facts["bits"], facts["suite"]) == (name, 112, 0)


@pytest.mark.parametrize(
    ("protocol", "status", "flags", "resumed"),
    [
        (CLIENT_12, OK, 1, 1),
        (CLIENT_12, OK, 0, 0),
        (CLIENT_12, UNSUPPORTED, 1, -1),
        (CLIENT_12, FAILURES["SEC_E_INVALID_HANDLE"], 1, -1),
    ],
)
def test_whether_a_session_of_tls_1_2_was_resumed(
    protocol: int, status: int, flags: int, resumed: int
) -> None:
    facts = told(
        (sspi.ATTR_CONNECTION_INFO, OK, connection(protocol)),
        (sspi.ATTR_SESSION_INFO, status, struct.pack("=2I32x", flags, 0)),
    )
    assert facts["resumed"] == resumed


def test_whether_a_session_of_tls_1_3_was_resumed_is_not_told() -> None:
    play = opened(protocol=TLS13)
    assert play.facts()["resumed"] == -1
    assert sspi.ATTR_SESSION_INFO not in [c[3] for c in play.calls("query")]
    play.done()


@pytest.mark.parametrize(
    ("status", "state", "extension", "name", "alpn"),
    [
        (OK, 1, 2, b"h2", "h2"),
        (OK, 1, 2, b"x" * 255, "x" * 255),
        (OK, 0, 2, b"h2", ""),  # none was agreed on
        (OK, 1, 1, b"spdy", ""),  # NPN
        (UNSUPPORTED, 1, 2, b"h2", ""),
    ],
)
def test_alpn(status: int, state: int, extension: int, name: bytes, alpn: str) -> None:
    answer = struct.pack("=iiB255s", state, extension, len(name), name)
    assert told((sspi.ATTR_ALPN, status, answer))["alpn"] == alpn


@by_name
def test_facts_that_cannot_be_told(code: int) -> None:
    play = Play(t)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("query", code, attribute=sspi.ATTR_CONNECTION_INFO)
    play.session.handshake()
    facts = play.facts()
    assert facts["facts"] == (E_UNSUPPORTED if code == UNSUPPORTED else E_STATE)
    assert play.script.left() == 0
    play.done()


@pytest.mark.parametrize(
    "queries",
    [
        [(sspi.ATTR_CONNECTION_INFO, connection(0))],
        [
            (sspi.ATTR_CONNECTION_INFO, connection(CLIENT_12)),
            (sspi.ATTR_CIPHER_INFO, cipher_info(0x303, 0, ("TLS_NULL_WITH_NULL_NULL", ""), 0)),
        ],
    ],
    ids=["no protocol", "null suite"],
)
def test_an_answer_about_nothing_is_no_fact(queries: list[tuple[int, bytes]]) -> None:
    """Wine has one as soon as there is a context."""
    play = Play(t)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    for attribute, answer in queries:
        play.add("query", OK, attribute=attribute, token=answer)
    play.session.handshake()
    assert play.facts()["facts"] == E_STATE
    play.done()


def test_half_an_answer_is_told_as_far_as_it_goes() -> None:
    facts = told((sspi.ATTR_CONNECTION_INFO, OK, connection(0, 0x660E, 128)))
    assert (facts["facts"], facts["protocol"], facts["bits"]) == (DONE, 0, 128)
    facts = told(
        (sspi.ATTR_CONNECTION_INFO, OK, connection(CLIENT_13)),
        (sspi.ATTR_CIPHER_INFO, OK, cipher_info(0x304, 0, ("", "AES"), 128)),
    )
    assert (facts["suite"], facts["bits"], facts["protocol"]) == (0, 128, TLS13)
    facts = told(
        (sspi.ATTR_CONNECTION_INFO, OK, connection(CLIENT_13)),
        (sspi.ATTR_CIPHER_INFO, OK, cipher_info(0x304, 0x1301, ("", "AES"), 0)),
    )
    assert (facts["suite"], facts["bits"]) == (0x1301, 0)


# --- channel bindings ---------------------------------------------------------------------


def bindings(data: bytes, at: int = 32, length: int | None = None) -> bytes:
    """SEC_CHANNEL_BINDINGS with application data."""
    return struct.pack("=8I", 0, 0, 0, 0, 0, 0, len(data) if length is None else length, at) + data


@pytest.mark.parametrize(
    ("kind", "attribute"), [(UNIQUE, ATTR_UNIQUE), (ENDPOINT, ATTR_ENDPOINT)], ids=str
)
def test_bindings_of_the_engine(kind: int, attribute: int) -> None:
    play = opened(protocol=TLS12)
    value = b"tls-some:" + bytes(range(32))
    play.add("query", OK, attribute=attribute, data=bindings(value))
    assert play.session.binding(kind, None, None, 100) == (DONE, value)
    play.add("query", OK, attribute=attribute, data=bindings(b""))
    assert play.session.binding(kind, None, None, 100) == (DONE, b"")
    play.add("query", OK, attribute=attribute, data=bindings(value))
    assert play.session.binding(kind, None, None, len(value) - 1) == (E_ARGUMENT, b"")
    play.add("query", OK, attribute=attribute)
    assert play.session.binding(kind, None, None, 100) == (E_UNSUPPORTED, b"")
    play.done()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        bindings(b"")[:-1],
        bindings(b"abc", at=36),
        bindings(b"abc", length=4),
        bindings(b"abc", at=32, length=0xFFFFFFFF),
        bindings(b"abc", at=0xFFFFFFFF, length=1),
    ],
)
def test_a_malformed_binding_is_the_engines_fault(answer: bytes) -> None:
    play = opened(protocol=TLS12)
    play.add("query", OK, attribute=ATTR_ENDPOINT, data=answer)
    assert play.session.binding(ENDPOINT, None, None, 100) == (E_TLS, b"")
    assert "malformed" in play.session.last()["detail"]
    play.done()


@by_name
def test_bindings_that_cannot_be_had(code: int) -> None:
    for kind, attribute in ((UNIQUE, ATTR_UNIQUE), (ENDPOINT, ATTR_ENDPOINT)):
        play = opened(protocol=TLS12)
        play.add("query", code, attribute=attribute)
        status, _ = play.session.binding(kind, None, None, 100)
        assert status == (E_UNSUPPORTED if code == UNSUPPORTED else E_STATE)
        assert play.session.last()["code"] == code
        play.done()


def test_tls_unique_is_of_tls_1_2_and_exports_of_tls_1_3() -> None:
    play = opened(protocol=TLS13)
    assert play.session.binding(UNIQUE, None, None, 100) == (E_UNSUPPORTED, b"")
    assert "tls-exporter" in play.session.last()["detail"]
    assert play.session.binding(9, None, None, 100) == (E_ARGUMENT, b"")
    play.done()
    play = opened(protocol=TLS12)
    assert play.session.binding(EXPORTER, "label", None, 32) == (E_UNSUPPORTED, b"")
    assert "TLS 1.3 only" in play.session.last()["detail"]
    play.done()


@pytest.mark.parametrize("context", [None, b"", b"context"])
def test_keying_material(context: bytes | None) -> None:
    play = opened(protocol=TLS13)
    assert play.session.binding(EXPORTER, "EXPORTER-x", context, 7) == (DONE, b"\xee" * 7)
    (call,) = play.calls("set")
    assert (call[3], call[5]) == (ATTR_MATERIAL_INFO, b"EXPORTER-x\0" + (context or b""))
    play.done()


@pytest.mark.parametrize(("label", "context", "room"), [
    ("x" * 65535, b"", 8), ("x", b"x" * 65536, 8), ("x", b"", 65536)
], ids=["label", "context", "length"])  # fmt: skip
def test_keying_material_has_bounds(label: str, context: bytes, room: int) -> None:
    play = opened(protocol=TLS13)
    assert play.session.binding(EXPORTER, label, context, room) == (E_ARGUMENT, b"")
    assert play.calls("set") == []
    play.done()


@pytest.mark.parametrize(
    ("data", "room"), [(None, 8), (None, 0), (b"", 8), (b"short", 8), (b"longer than it", 8)]
)
def test_keying_material_of_another_length_is_the_engines_fault(
    data: bytes | None, room: int
) -> None:
    play = opened(protocol=TLS13)
    play.add("query", OK, attribute=ATTR_MATERIAL, data=data)
    assert play.session.binding(EXPORTER, "x", None, room) == (E_STATE, b"")
    assert play.session.last()["code"] == sspi.INTERNAL
    play.done()


@by_name
@pytest.mark.parametrize("slot", ["set", "query"])
def test_keying_material_that_cannot_be_had(slot: str, code: int) -> None:
    play = opened(protocol=TLS13)
    attribute = ATTR_MATERIAL if slot == "query" else ATTR_MATERIAL_INFO
    play.add(slot, code, attribute=attribute)
    status, got = play.session.binding(EXPORTER, "x", None, 8)
    assert status == (E_UNSUPPORTED if code == UNSUPPORTED else E_STATE)
    assert got == b"" and play.session.last()["code"] == code
    play.done()


@pytest.mark.parametrize("wine", [None, "10.0"])
def test_a_table_without_setting_attributes_exports_nothing(wine: str | None) -> None:
    module = sspi.load_testschannel(sets_attributes=False, wine=wine)
    play = opened(module=module, protocol=TLS13)
    assert play.session.binding(EXPORTER, "x", None, 8) == (E_UNSUPPORTED, b"")
    play.done()


@by_name
def test_bindings_before_there_are_facts(code: int) -> None:
    play = Play(t)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("query", code, attribute=sspi.ATTR_CONNECTION_INFO)
    play.session.handshake()
    status, _ = play.session.binding(ENDPOINT, None, None, 100)
    assert status == (E_UNSUPPORTED if code == UNSUPPORTED else E_STATE)
    play.done()


# --- issuers, staples --------------------------------------------------------------------


def test_the_issuers_that_a_server_asks_for() -> None:
    play = opened()
    names = [b"CN=one", b"CN=two", b"CN=three"]
    play.add("query", OK, attribute=ATTR_ISSUERS, data=b"".join(n + b"\0" for n in names))
    assert play.session.issuers(10) == (DONE, names)
    play.add("query", OK, attribute=ATTR_ISSUERS, data=b"".join(n + b"\0" for n in names))
    assert play.session.issuers(2) == (DONE, names[:2])  # the caller has enough
    play.add("query", OK, attribute=ATTR_ISSUERS)
    assert play.session.issuers(10) == (DONE, [])
    play.add("query", OK, attribute=ATTR_ISSUERS, data=b"")
    assert play.session.issuers(10) == (DONE, [])
    play.done()


@by_name
def test_nobody_asked_or_it_is_not_known_there(code: int) -> None:
    play = opened()
    play.add("query", code, attribute=ATTR_ISSUERS)
    assert play.session.issuers(10) == (E_UNSUPPORTED if code == UNSUPPORTED else DONE, [])
    play.done()


@pytest.mark.parametrize(
    ("line", "staple"),
    [(b"", [b"staple"]), (b"\nstaple=an answer", [b"an answer"]), (b"\nstaple=none", []),
     (b"\nstaple=", []), (b"\nstaple=gone", [])],
)  # fmt: skip
def test_the_staple_is_the_certificates(line: bytes, staple: list[bytes]) -> None:
    play = opened(remote=CERT + line)
    assert play.facts()["staple"] == staple
    play.done()


@by_name
def test_no_certificate_no_staple(code: int) -> None:
    play = opened()
    play.add("query", code, attribute=sspi.ATTR_REMOTE_CERT)
    assert play.facts()["staple"] == []
    play.add("query", OK, attribute=sspi.ATTR_REMOTE_CERT)
    assert play.facts()["staple"] == []
    play.done()


def test_no_memory_for_the_staple() -> None:
    play = opened()
    t.fail_allocation(1)
    facts = play.facts()
    t.fail_allocation(0)
    assert facts["staple"] == []
    play.done()


# --- resumption off --------------------------------------------------------------------------


SESSION_TOKEN = struct.pack("=2I", 3, 2)  # SCHANNEL_SESSION, DISABLE_RECONNECTS


@pytest.mark.parametrize("build", [22000, NEWEST])
def test_a_client_that_must_not_resume_says_so_after_its_first_step(build: int) -> None:
    play = Play(sspi.load_testschannel(build), flags=NO_RESUME)
    play.add("step", CONTINUE, context=0, token=HELLO, remote=False)
    play.add("control", OK, attribute=3)
    play.add("step", OK, context=1, input=ANSWER, remote=CERT)
    assert play.session.handshake() == WANT_READ
    assert play.take() == HELLO
    play.session.feed(ANSWER)
    assert play.session.handshake() == DONE
    assert [c[5] for c in play.calls("control")] == [SESSION_TOKEN]
    assert play.calls("delete") == []
    play.done()


@pytest.mark.parametrize("build", [17762, 20348, 21999])
def test_below_windows_11_it_begins_again(build: int) -> None:
    """The token comes too late for a ClientHello that is made: it is thrown away."""
    play = Play(sspi.load_testschannel(build), flags=NO_RESUME, alpn=b"\2h2")
    play.add("step", CONTINUE, context=0, token=b"thrown away", remote=False)
    play.add("control", OK, attribute=3)
    play.add("step", CONTINUE, context=0, token=HELLO)
    play.add("step", OK, context=1, input=ANSWER, remote=CERT)
    assert play.session.handshake() == WANT_READ
    assert play.take() == HELLO
    play.session.feed(ANSWER)
    assert play.session.handshake() == DONE
    assert len(play.calls("control")) == 1
    assert [c[4] for c in play.calls("step")] == [[18], [18], [2, 0]]  # ALPN once more
    assert len(play.calls("delete")) == 1
    script = play.script
    del play
    assert script.alive() == (0, 0, 0, 0)


@by_fatal
def test_the_session_token_is_refused(code: int) -> None:
    """An engine without a session cache has nothing to be told."""
    play = Play(t, flags=NO_RESUME)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("control", code, attribute=3)
    status = play.session.handshake()
    if code == UNSUPPORTED:
        assert status == WANT_READ and play.take() == HELLO
    else:
        assert status < 0 and play.error["code"] == code and play.state == FAILED
    play.done()


def test_who_may_resume_and_servers_need_no_token() -> None:
    play = opened()
    assert play.calls("control") == []
    play.done()
    play = Play(t, SERVER, flags=NO_RESUME)
    play.add("step", CONTINUE, token=ANSWER)
    play.session.feed(record(sspi.client_hello(), 22))
    assert play.session.handshake() == WANT_READ
    assert play.calls("control") == []
    play.done()


# --- the window that asks for a PIN -------------------------------------------------------

WINDOW = 0x1234


@pytest.mark.parametrize("build", [21999, NEWEST])
def test_the_parent_window_is_told_behind_the_first_step(build: int) -> None:
    """To the context that stays."""
    play = Play(sspi.load_testschannel(build), flags=NO_RESUME, window=WINDOW)
    again = build < 22000
    play.add("step", CONTINUE, context=0, token=HELLO, remote=False)
    play.add("control", OK)
    if again:
        play.add("step", CONTINUE, context=0, token=HELLO)
    assert play.session.handshake() == WANT_READ
    (call,) = play.calls("set")
    assert (call[3], call[5]) == (ATTR_UI_INFO, struct.pack("P", WINDOW))
    order = [c[0] for c in play.calls("step", "control", "set", "delete")]
    assert order[-1] == "set" and order.count("step") == 1 + again
    play.script.add("step", OK, remote=CERT)
    play.session.feed(ANSWER)
    assert play.session.handshake() == DONE
    script = play.script
    del play
    assert script.alive() == (0, 0, 0, 0)


def asked_for_a_certificate() -> Play:
    """A client whose server wants a certificate."""
    play = Play(t, ask_certificate=True)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", LACKING, input=ANSWER, remote=CERT)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_CERTIFICATE
    return play


def test_the_chosen_certificates_window_is_told_before_its_step() -> None:
    play = asked_for_a_certificate()
    play.add("step", OK, input=ANSWER)
    chosen = play.credentials(CLIENT, [b"dns=me"], window=WINDOW)
    assert play.session.set_certificate(chosen) == DONE
    del chosen
    assert play.session.handshake() == DONE
    assert [c[0] for c in play.calls("step", "set")] == ["step", "step", "set", "step"]
    play.done()


@by_fatal
def test_the_chosen_certificates_window_is_not_taken(code: int) -> None:
    play = asked_for_a_certificate()
    play.add("set", code, attribute=ATTR_UI_INFO)
    chosen = play.credentials(CLIENT, [b"dns=me"], window=WINDOW)
    assert play.session.set_certificate(chosen) == E_UNSUPPORTED
    del chosen
    assert (play.state, play.error["code"]) == (FAILED, code)
    script = play.script
    del play
    assert script.left() == 0 and script.alive() == (0, 0, 0, 0)


@by_fatal
def test_a_window_that_is_not_taken(code: int) -> None:
    play = Play(t, window=WINDOW)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("set", code, attribute=ATTR_UI_INFO)
    assert play.session.handshake() == E_UNSUPPORTED
    assert play.error["code"] == code and "window" in play.error["detail"]
    play.done()


def test_a_table_without_setting_attributes_takes_no_window() -> None:
    for wine in (None, "10.0"):
        play = Play(sspi.load_testschannel(sets_attributes=False, wine=wine), window=WINDOW)
        play.add("step", CONTINUE, token=HELLO, remote=False)
        assert play.session.handshake() == E_UNSUPPORTED
        play.done()


# --- the verdict, alerts ---------------------------------------------------------------------


@pytest.mark.parametrize("at_end", [False, True])
def test_a_refusal_drops_schannels_token_and_sends_an_alert_of_ours(at_end: bool) -> None:
    play = Play(t, ask_verdict=True)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", OK if at_end else CONTINUE, input=ANSWER, token=FINISHED, remote=CERT)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_VERDICT
    assert play.session.verdict(FAILURES["SEC_E_CERT_EXPIRED"]) == E_REFUSED
    assert play.take() == HELLO + plain_alert(45)
    assert play.error["alert_sent"] == 45
    assert play.calls("control") == []
    play.done()


def test_a_servers_refusal_in_tls_1_3_goes_out_under_keys() -> None:
    """There its Finished is out, and the peer expects records: SCHANNEL_ALERT, a step."""
    play = Play(t, SERVER, ask_verdict=True, request_cert=True)
    play.add("step", CONTINUE, token=ANSWER, remote=False)
    play.add("step", OK, input=FINISHED, token=b"tickets", remote=CERT, protocol=TLS13)
    play.session.feed(record(sspi.client_hello(), 22))
    play.session.handshake()
    play.session.feed(FINISHED)
    assert play.session.handshake() == WANT_VERDICT
    play.add("control", OK, attribute=2)
    play.add("step", OK, no_input=True, token=b"sealed alert")
    assert play.session.verdict(FAILURES["SEC_E_UNTRUSTED_ROOT"]) == E_REFUSED
    assert play.take() == ANSWER + b"sealed alert"
    assert play.calls("control")[0][5] == sspi.alert_token(48)
    play.done()


def test_a_peers_alert_in_the_clear_is_read_by_the_core() -> None:
    """Schannel tells no name: alert_received is the record's."""
    play = Play(t)
    play.add("step", CONTINUE, token=HELLO, remote=False)
    play.add("step", FAILURES["SEC_E_ILLEGAL_MESSAGE"], input=plain_alert(40))
    play.session.handshake()
    play.session.feed(plain_alert(40))
    assert play.session.handshake() == E_ALERT
    assert play.error["alert_received"] == 40
    play.done()


def test_a_certificate_chosen_after_the_request() -> None:
    """INCOMPLETE_CREDENTIALS: issuers, another credential, the same context and input."""
    play = Play(t, ask_certificate=True)
    play.add("step", CONTINUE, context=0, token=HELLO, remote=False)
    play.add("step", LACKING, context=1, input=ANSWER, remote=CERT)
    play.session.handshake()
    play.session.feed(ANSWER)
    assert play.session.handshake() == WANT_CERTIFICATE
    assert play.session.issuers(9) == (DONE, [b"an issuer"])
    chosen = play.credentials(CLIENT, [b"dns=me"])
    assert sspi.asked_for(play.calls("acquire")[-1][5])["certs"] == 1
    play.add("step", OK, context=1, input=ANSWER, token=FINISHED)
    assert play.session.set_certificate(chosen) == DONE
    del chosen
    assert play.session.handshake() == DONE
    assert (play.state, play.take()) == (OPEN, HELLO + FINISHED)
    play.done()


# --- what only Wine needs ------------------------------------------------------------------

ALERT_12 = record(b"sealed close_notify", 21)
ALERT_13 = record(bytes(19), 23)  # 2 bytes, 1 of type, 16 of tag


def wine_reads(fed: bytes, *, wine: str | None = "10.0", **answer: Any) -> tuple[int, bytes]:
    play = opened(module=sspi.load_testschannel(wine=wine))
    play.add("decrypt", OK, **answer)
    play.session.feed(fed)
    got: tuple[int, bytes] = play.session.read(100)
    play.done()
    return got


@pytest.mark.parametrize("alert", [ALERT_12, ALERT_13], ids=["1.2", "1.3"])
def test_wine_answers_close_notify_with_nothing(alert: bytes) -> None:
    assert wine_reads(alert, data=b"") == (END, b"")
    # no other engine is put right
    assert wine_reads(alert, data=b"", wine=None) == (WANT_READ, b"")


@pytest.mark.parametrize(
    "data",
    [record(bytes(20), 23), record(bytes(19 + 256), 23), record(bytes(19), 22)],
    ids=["longer", "much longer", "handshake"],
)
def test_wine_says_nothing_of_tickets_either(data: bytes) -> None:
    assert wine_reads(data, data=b"") == (WANT_READ, b"")


def test_data_under_wine_is_data_whatever_its_length() -> None:
    assert wine_reads(ALERT_13, data=b"12") == (DONE, b"12")


@by_name
def test_errors_under_wine_stay_errors(code: int) -> None:
    play = opened(module=sspi.load_testschannel(wine="10.0"))
    play.add("decrypt", code, missing=3)
    play.session.feed(ALERT_12)
    assert play.session.read(100)[0] == (
        WANT_READ if code == sspi.INCOMPLETE
        else E_NOMEM if code == FAILURES["SEC_E_INSUFFICIENT_MEMORY"]
        else E_TLS
    )  # fmt: skip
    script = play.script
    del play
    assert script.alive() == (0, 0, 0, 0)
