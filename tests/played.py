"""A session that plays against a script: csrc/sspi/scripted.h.

The module is ``_testnative``, where the scripted engine's own provider drives
the table, or ``_testschannel``, where Windows' does (``sspi_support``).
"""

from __future__ import annotations

from typing import Any

from sspi_support import CLIENT, E_NOMEM, OK, SERVER, record

CERT = b"dns=localhost\nkey_algorithm=EC"
OTHER_CERT = b"dns=localhost\nkey_algorithm=RSA"
SERVER_CERTS = (b"dns=localhost",)
HELLO = record(b"client hello", 22)  # what the scripted client sends
ANSWER = record(b"server hello and all that", 22)
FINISHED = record(b"finished", 20)


class Play:
    """A script, and a session that plays against it."""

    def __init__(
        self,
        module: Any,
        role: int = CLIENT,
        *,
        certs: Any = None,
        flags: int = 0,
        window: int = 0,
        **options: Any,
    ) -> None:
        self.module = module
        self.script = module.Script()
        if certs is None:
            certs = SERVER_CERTS if role == SERVER else ()
        options.setdefault("credentials", True)
        if options["credentials"] is True:
            options["credentials"] = self.credentials(role, certs, flags=flags, window=window)
        self.session = module.Session(self.script, role, **options)

    def credentials(self, role: int, certs: Any = (), **options: Any) -> Any:
        return self.module.Credentials(self.script, role, certs, **options)

    def add(self, slot: str, status: int = OK, **answer: Any) -> Play:
        self.script.add(slot, status, **answer)
        return self

    def facts(self) -> dict[str, Any]:
        return self.session.facts()

    @property
    def state(self) -> int:
        return self.facts()["state"]

    @property
    def error(self) -> dict[str, Any]:
        return self.facts()["error"]

    def take(self) -> bytes:
        """The output, consumed."""
        out = self.session.output()
        self.session.consume(len(out))
        return out

    def calls(self, *slots: str) -> list[Any]:
        return [call for call in self.script.log() if not slots or call[0] in slots]

    def done(self) -> None:
        """Ends the session; the script must be over and nothing left."""
        script = self.script
        del self.session
        assert script.problem() == ""
        assert script.left() == 0
        assert script.alive() == (0, 0, 0, 0)
        # deleted once, if it was made at all
        made = any(c[0] == "step" and not c[2] and c[1] >= 0 for c in script.log())
        assert len([c for c in script.log() if c[0] == "delete"]) <= int(made)


def refuse_each_allocation_of_acquiring(module: Any, certs: Any, most: int) -> int:
    """A server's credentials, with each of the allocations refused in turn.

    Nothing is left over whichever it was. How many were refused; more than
    ``most`` are not tried.
    """
    errors = 0
    for number in range(1, most):
        script = module.Script()
        module.fail_allocation(number)
        try:
            module.Credentials(script, SERVER, certs)
        except RuntimeError as error:
            assert error.args[0]["status"] == E_NOMEM
            errors += 1
        made = module.allocations()[0]
        module.fail_allocation(0)
        assert script.alive() == (0, 0, 0, 0)
        if made < number:
            break
    return errors
