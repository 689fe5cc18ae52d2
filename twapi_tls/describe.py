"""A connection in plain words, and as data for programs.

Used by the command line; nothing below it knows about it.
"""

from __future__ import annotations

from typing import Any

from . import sspi
from ._native import TLSError
from .certs import Certificate

__all__ = ["certificate_facts", "connection_facts", "peer_chain", "sentences"]


def certificate_facts(cert: Certificate) -> dict[str, Any]:
    """What a person asks about a certificate, as plain data."""
    single: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for key, text in cert.info():
        if key in ("dns", "ip", "email", "uri", "usage", "eku"):
            several.setdefault(key, []).append(text)
        else:
            single.setdefault(key, text)
    return {
        "subject": single.get("subject", ""),
        "issuer": single.get("issuer", ""),
        "serial": single.get("serial", ""),
        "not_before": single.get("notbefore", ""),
        "not_after": single.get("notafter", ""),
        "names": several.get("dns", []) + several.get("ip", []),
        "usages": several.get("eku", []),
        "key": f"{single.get('key_algorithm', '')} {single.get('key_bits', '')}".strip(),
        "signature": single.get("signature_algorithm", ""),
        "is_ca": single.get("is_ca") == "1",
        "sha256": cert.digest(32).hex(),
    }


def connection_facts(negotiated: sspi.ConnectionFacts, chain: list[Certificate]) -> dict[str, Any]:
    """Everything ``inspect --json`` prints about an open connection."""
    alpn = negotiated.alpn
    return {
        "protocol": negotiated.protocol,
        "cipher_suite": negotiated.suite_name,
        "cipher_suite_number": negotiated.suite,
        "bits": negotiated.bits,
        "key_exchange_group": negotiated.group,
        "alpn": alpn.decode("ascii", "replace") if alpn else None,
        "sni": negotiated.sni or None,
        "resumed": negotiated.resumed,
        "chain": [certificate_facts(cert) for cert in chain],
    }


def sentences(facts: dict[str, Any], verification: str) -> list[str]:
    """The facts of `connection_facts` as lines for a person."""
    lines = [
        f"Protocol:      {facts['protocol']}",
        f"Cipher suite:  {facts['cipher_suite']} ({facts['bits']} bits)",
    ]
    if facts["key_exchange_group"]:
        lines.append(f"Key exchange:  {facts['key_exchange_group']}")
    lines.append(f"Application:   {facts['alpn'] or 'no protocol was negotiated (ALPN)'}")
    if facts["sni"]:
        lines.append(f"Server name:   {facts['sni']} (sent as SNI)")
    resumed = facts["resumed"]
    lines.append(
        "Session:       "
        + ("new" if resumed is False else "resumed" if resumed else "the engine does not tell")
    )
    lines.append(f"Verification:  {verification}")
    for depth, cert in enumerate(facts["chain"]):
        title = "Chain:         " if depth == 0 else "               "
        lines.append(f"{title}{depth} {cert['subject']}")
        lines.append(f"                 issued by {cert['issuer']}")
        lines.append(
            f"                 valid {cert['not_before']} to {cert['not_after']}, {cert['key']}"
        )
        if cert["names"] and depth == 0:
            lines.append(f"                 for {', '.join(cert['names'])}")
    return lines


def peer_chain(context: sspi.SspiContext) -> list[Certificate]:
    """The peer's certificates as it sent them, leaf first; [] if none."""
    try:
        leaf = sspi.sspi_remote_cert(context)
    except TLSError as error:
        if error.name == "SEC_E_NO_CREDENTIALS":
            return []
        raise
    return [leaf, *(cert for cert in leaf.chain() if cert != leaf)]
