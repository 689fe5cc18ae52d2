"""Host names as TLS and certificates write them."""

from __future__ import annotations

import socket


def a_label(name: str) -> str:
    """A host name as certificates and SNI have it: IDN as A-labels.

    Addresses stay as they are, without an IPv6 zone. ValueError if it is no
    name.
    """
    if not isinstance(name, str):
        raise TypeError(f"a host name must be a string, not {name!r}")
    bare = name.partition("%")[0]
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, bare)
        except (OSError, ValueError):  # ValueError: NUL, or no ASCII
            continue
        return bare
    if name.isascii():
        return name
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ValueError(f"{name!r} is no host name: {error}") from error
