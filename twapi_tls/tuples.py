"""``typing.NamedTuple`` without ``typing``.

Loading ``typing``, and having it compile annotations, took a third of the
time until a program has its first client. So the modules that a client needs
show it to type checkers only, and this stands in for it when they run.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any


class _Maker(type):
    """Makes a ``collections.namedtuple`` of a class statement with fields."""

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Any:
        if not bases:
            return super().__new__(mcs, name, bases, body)
        fields = list(body["__annotations__"])
        defaults = [body[field] for field in fields if field in body]
        make: Any = namedtuple
        made = make(name, fields, defaults=defaults, module=body["__module__"])
        made.__doc__ = body.get("__doc__")
        return made


class NamedTuple(metaclass=_Maker):
    """The base; fields only, those with a default last."""
