"""Version and engine: the first things to look at in a bug report."""

from __future__ import annotations

from typing import Final, NamedTuple

from . import _native

__version__: Final = "0.1.0"


class Engine(NamedTuple):
    """name ("schannel", "openssl"), version for a person, fips (None: unknown)."""

    name: str
    version: str
    fips: bool | None

    def __str__(self) -> str:
        return f"{self.name} ({self.version}){' FIPS' if self.fips else ''}"


def _find() -> Engine:
    name, version, fips = _native.engine()
    return Engine(name, version, None if fips < 0 else bool(fips))


engine: Final = _find()
