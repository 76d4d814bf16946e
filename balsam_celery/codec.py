"""JSON values into frozen values, strictly: whatever does not fit is refused."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Hashable, Sequence
from typing import Any, Literal

#: Characters told of a message that is refused.
_SAID = 300
_SURROGATE = re.compile("[\ud800-\udfff]")


#: Arrays and objects that may stand in each other; Python's JSON gives up at several hundred.
DEPTH = 100


class MalformedMessage(ValueError):
    """The message is not one of ours; what is said of it is one short line, whatever it holds."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text[:_SAID].split()))


def encodable(text: str) -> str:
    """``text`` with lone surrogates, which UTF-8 refuses, replaced.

    They come from names of files that are no text, and from JSON.
    """
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def is_too_deep(plain: Any) -> bool:
    """Tell whether more than :data:`DEPTH` of its arrays and objects stand in each other."""
    level = [plain]
    for _ in range(DEPTH + 1):
        level = [
            item
            for one in level
            if isinstance(one, (dict, list, tuple))
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


@functools.cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    hints = typing.get_type_hints(cls)
    return {
        f.name: (
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
    }


def convert(kind: Any, plain: Any, where: str) -> Any:
    """The value of type ``kind`` that the JSON value ``plain`` holds.

    Args:
        kind: a dataclass, ``int``, ``str``, …, ``Any``; tuples, dicts with text for keys, literals
            and optional values of those; a union of dataclasses, told apart by ``"type"``.
        plain: the value.
        where: what it is, for the error.

    Raises:
        MalformedMessage: unknown or missing fields, a value of another type.
    """
    if kind is Any:
        return plain
    origin = typing.get_origin(kind)
    if origin is None:
        return _convert_plain_type(kind, plain, where)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if plain is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        return convert(inner[0], plain, where) if len(inner) == 1 else _tagged(inner, plain, where)
    if origin is Literal:
        if plain not in arguments:
            raise MalformedMessage(f"{where} is {plain!r}")
        return plain
    if origin is tuple:
        return _convert_tuple(arguments, plain, where)
    if origin is dict:
        if not isinstance(plain, dict):
            raise MalformedMessage(f"{where} is not an object")
        return {
            convert(str, k, where): convert(arguments[1], v, f"{where}.{k}")
            for k, v in plain.items()
        }
    raise TypeError(f"{where}: no codec for {kind}")


def _convert_tuple(arguments: tuple[Any, ...], plain: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(plain, list):
        raise MalformedMessage(f"{where} is not an array")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(convert(arguments[0], item, where) for item in plain)
    if len(plain) != len(arguments):
        raise MalformedMessage(f"{where} has {len(plain)} items")
    return tuple(convert(kind, item, where) for kind, item in zip(arguments, plain, strict=True))


def _tagged(kinds: Sequence[type[Any]], plain: Any, where: str) -> Any:
    tag = plain.get("type") if isinstance(plain, dict) else None
    kind = next((kind for kind in kinds if kind.__name__ == tag), None)
    if kind is None:
        raise MalformedMessage(f"{where} is not a record")
    rest = {key: value for key, value in plain.items() if key != "type"}
    return convert(kind, rest, kind.__name__)


def _convert_plain_type(kind: Any, plain: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(plain, dict):
            raise MalformedMessage(f"{where} is not an object")
        fields = _fields(typing.cast(Hashable, kind))
        if unknown := plain.keys() - fields.keys():
            raise MalformedMessage(f"{where} has unknown fields {sorted(unknown)}")
        missing = {name for name, (_, needed) in fields.items() if needed} - plain.keys()
        if missing:
            raise MalformedMessage(f"{where} lacks {sorted(missing)}")
        return typing.cast(type[Any], kind)(
            **{
                name: convert(fields[name][0], value, f"{where}.{name}")
                for name, value in plain.items()
            }
        )
    if kind is float and isinstance(plain, (int, float)) and not isinstance(plain, bool):
        # a time or an amount that is none would be refused by the database, or break who shows it
        try:
            number = float(plain)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise MalformedMessage(f"{where} is not a number of this world")
        return number
    if not isinstance(plain, kind) or (isinstance(plain, bool) and kind is not bool):
        raise MalformedMessage(f"{where} is {type(plain).__name__}, not {kind.__name__}")
    # as it is neither Redis nor a database takes it
    return encodable(plain) if kind is str else plain
