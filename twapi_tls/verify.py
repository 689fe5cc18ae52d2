"""Who is at the other end: the default verification, and verifiers.

The engine pauses the handshake and asks (``WANT_VERDICT``); what is decided
here goes back through ``Session.verdict``, so that no callback ever runs
inside the engine.
"""

from __future__ import annotations

from collections.abc import Callable

from . import _native
from .errors import VERIFYFAIL, code, make_error

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, NamedTuple

    from .certs import Revocation
    from .channel import Channel

    Verifier = Callable[..., Any]
else:
    from .tuples import NamedTuple


class Policy(NamedTuple):
    """How credentials want the peer of a client verified.

    roots: exclusive trust anchors, None for the system's. revocation, ignore:
    as ``_native.Certificate.verify``. validate False: not at all. fetch: the
    network may be asked for CRLs, for at most fetch_timeout seconds.
    """

    roots: _native.Store | None = None
    revocation: Revocation = "none"
    ignore: int = 0
    validate: bool = True
    common_name: bool = False
    fetch: bool = False
    fetch_timeout: float = 15.0


# What a verification of certificates calls a failure, and what SSPI calls
# it when a handshake fails of it (Schannel's own mapping).
_PEER_CODES = {
    "CERT_E_CN_NO_MATCH": "SEC_E_WRONG_PRINCIPAL",
    "CERT_E_UNTRUSTEDROOT": "SEC_E_UNTRUSTED_ROOT",
    "CERT_E_CHAINING": "SEC_E_UNTRUSTED_ROOT",
    "CERT_E_UNTRUSTEDTESTROOT": "SEC_E_UNTRUSTED_ROOT",
    "CERT_E_EXPIRED": "SEC_E_CERT_EXPIRED",
    "CERT_E_WRONG_USAGE": "SEC_E_CERT_WRONG_USAGE",
    "CERT_E_PURPOSE": "SEC_E_CERT_WRONG_USAGE",
}


def peer_code(value: int) -> int:
    """A verification's CERT_E_ code in the form a handshake reports."""
    mapped = _PEER_CODES.get(_native.code_name(value))
    return _native.CODES.get(mapped, value) if mapped else value


def default_verdict(
    session: _native.Session, peersubject: str | None, policy: Policy
) -> tuple[int, str]:
    """(code, detail) of a server's certificate; code 0 accepts.

    Chain to the trust anchors, validity, serverAuth, and name or address
    against ``peersubject``; with what the server sent as intermediates.
    """
    if not policy.validate:
        return 0, ""
    cert = session.remote_cert()
    result, _, detail, _ = cert.verify(
        server=peersubject,
        check_name=True,
        common_name=policy.common_name,
        roots=policy.roots,
        revocation=policy.revocation,
        ignore=policy.ignore,
        ocsp=session.ocsp(),
        fetch=policy.fetch,
        fetch_timeout=policy.fetch_timeout,
    )
    if not result:
        return 0, ""
    result = peer_code(result)
    return result, detail or _native.code_text(result)


REFUSED = "TLS negotiation failed. Verifier callback returned false."


class Refusal(Exception):
    """A verifier said no: the code for the peer's alert, and what to raise."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.code = code("SEC_E_CERT_UNKNOWN")
        self.error = error


def judge(answer: object) -> None:
    """Accepts True, and nothing else; otherwise raises Refusal."""
    if answer is True:
        return
    if answer is False:
        raise Refusal(
            make_error(
                _native.TLSVerificationError,
                REFUSED,
                code=code("SEC_E_CERT_UNKNOWN"),
                errorcode=VERIFYFAIL,
            )
        )
    raise Refusal(
        TypeError(f"TLS negotiation failed: the verifier must return True or False, not {answer!r}")
    )


def is_awaitable(thing: object) -> bool:
    """Would ``await`` take it? (Without importing inspect.)"""
    return hasattr(type(thing), "__await__")


def discard_awaitable(thing: Any) -> None:
    """Closes a coroutine that nobody will await, so that nothing warns."""
    close = getattr(thing, "close", None) or getattr(thing, "cancel", None)
    if close is not None:
        close()


def refuse_awaitable(thing: object) -> Refusal:
    """What an awaitable verifier on a blocking channel gets."""
    discard_awaitable(thing)
    return Refusal(
        TypeError(
            "TLS negotiation failed: the verifier returned an awaitable "
            f"({type(thing).__name__}), which a blocking channel cannot await"
        )
    )


def call_verifier(verifier: Verifier, channel: Channel, context: object) -> object:
    """The verifier's answer; what it raises becomes a Refusal."""
    try:
        return verifier(channel, context)
    except Exception as error:
        raise Refusal(error) from error
