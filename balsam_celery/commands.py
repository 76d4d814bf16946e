"""Command templates: argv lists with placeholders, filled with values.  Pure.

A placeholder is ``{name}`` (a keyword value), ``{0}`` (a positional value) or either followed by
keys in brackets: ``{0[work_dir]}`` is the work directory in a parent's result, ``{0[2][seconds]}``
a field of the third result of a chord's header. A brace itself is written twice. There is no more
to it (no attributes, conversions or formats), so that a value can fill a part of one argument and
can never become more arguments, and no template reaches into Python objects (R10).
"""

from __future__ import annotations

import functools
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from balsam_celery.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+")
_KEYS = re.compile(r"(?:\[([^\[\]{}]+)\])*")
_KEY = re.compile(r"\[([^\[\]{}]+)\]")


class _Pending:
    """A value that is known only once a parent has ended: whatever is looked up in it fits."""

    def __repr__(self) -> str:
        return "<the result of a parent>"


PENDING: Final = _Pending()


@dataclass(frozen=True, slots=True)
class Field:
    """A placeholder: ``base`` is a name or a position, ``keys`` what is looked up in its value."""

    base: str | int
    keys: tuple[str, ...]
    text: str


#: One argument: text and placeholders, in order.
Argument = tuple[str | Field, ...]


def parse_template(command: Sequence[str]) -> tuple[Argument, ...]:
    """The arguments of ``command``, split into text and placeholders.

    Raises:
        InvalidInput: no program, an argument that is not text, a placeholder that is none of ours.
    """
    check_literal(command)
    return _parse(tuple(command))


def field_names(command: Sequence[str]) -> frozenset[str]:
    """Names of the keyword values that the template ``command`` asks for.

    Raises:
        InvalidInput: not a template.
    """
    return frozenset(
        part.base
        for argument in parse_template(command)
        for part in argument
        if isinstance(part, Field) and isinstance(part.base, str)
    )


def check_literal(command: Sequence[str]) -> None:
    """Check a command that is run as it stands, braces and all.

    Raises:
        InvalidInput: no program, or an argument that is not text or cannot be passed to a program.
    """
    if isinstance(command, (str, bytes)) or not isinstance(command, Sequence):
        raise InvalidInput(f"command is {command!r}: give a list such as ['relax.x', '{{input}}']")
    if not command or not command[0]:
        raise InvalidInput(f"command {list(command)!r} names no program: put it first in the list")
    for argument in command:
        if not isinstance(argument, str):
            raise InvalidInput(
                f"command holds {argument!r}: each argument is text, so write {str(argument)!r}"
            )
        _check_text(argument, argument)


def render(
    command: Sequence[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    literal: bool = False,
) -> tuple[str, ...]:
    """The argv of one attempt.

    Text is put in as it is, numbers as ``str`` writes them, all other JSON values as JSON. Each
    element of ``command`` gives exactly one argument.

    Args:
        command: the template.
        args: positional values, parents' results first.
        kwargs: keyword values.
        literal: ``command`` holds no placeholders and is taken as it stands.

    Raises:
        InvalidInput: a placeholder without a value, a key that its value lacks, a NUL byte.
    """
    if literal:
        check_literal(command)
        return tuple(command)
    argv = tuple(
        "".join(part if isinstance(part, str) else _fill(part, args, kwargs) for part in argument)
        for argument in _parse(tuple(command))
    )
    if not argv[0]:
        raise InvalidInput(
            f"command {list(command)!r} names no program: {command[0]!r} came out empty"
        )
    return argv


def check_values(
    command: Sequence[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    literal: bool = False,
) -> None:
    """Check, as :func:`render` would, values of which some (:data:`PENDING`) come later.

    Raises:
        InvalidInput: as for :func:`render`.
    """
    if literal:
        check_literal(command)
        return
    for argument in _parse(tuple(command)):
        for part in argument:
            if isinstance(part, Field):
                _fill(part, args, kwargs)


@functools.lru_cache(maxsize=1024)
def _parse(command: tuple[str, ...]) -> tuple[Argument, ...]:
    return tuple(_parse_argument(argument) for argument in command)


def _parse_argument(argument: str) -> Argument:
    parts: list[str | Field] = []
    try:
        pieces = list(string.Formatter().parse(argument))
    except ValueError as error:
        raise InvalidInput(
            f"argument {argument!r}: {error}; a brace itself is written {{{{ or }}}}"
        ) from None
    for text, name, form, conversion in pieces:
        if text:
            parts.append(text)
        if name is not None:
            if form or conversion:
                raise InvalidInput(
                    f"argument {argument!r}: {{{name}}} takes no conversion or format; "
                    "give the value already formatted"
                )
            parts.append(_parse_field(name, argument))
    return tuple(parts)


def _parse_field(name: str, argument: str) -> Field:
    base = _NAME.match(name)
    keys = _KEYS.fullmatch(name, base.end()) if base else None
    if base is None or keys is None:
        raise InvalidInput(
            f"argument {argument!r}: {{{name}}} is no placeholder; write {{name}}, {{0}} or "
            "{0[work_dir]}, and a brace itself as {{ or }}"
        )
    text = base.group()
    return Field(
        base=int(text) if text.isdigit() else text,
        keys=tuple(_KEY.findall(name, base.end())),
        text=name,
    )


def _fill(field: Field, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    value: Any
    if isinstance(field.base, int):
        if field.base >= len(args):
            raise InvalidInput(
                f"the command's {{{field.text}}} has no value: {len(args)} positional values given"
            )
        value = args[field.base]
    elif field.base in kwargs:
        value = kwargs[field.base]
    else:
        given = ", ".join(sorted(kwargs)) or "none"
        raise InvalidInput(
            f"the command's {{{field.text}}} has no value: give {field.base}=… (given: {given})"
        )
    for key in field.keys:
        if value is PENDING:
            return ""
        value = _look_up(value, key, field)
    if value is PENDING:
        return ""
    return to_text(value, field.text)


def _look_up(value: Any, key: str, field: Field) -> Any:
    if isinstance(value, Mapping) and key in value:
        return value[key]
    if (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and key.isdecimal()
        and int(key) < len(value)
    ):
        return value[int(key)]
    if isinstance(value, Mapping):
        known = f"keys {', '.join(sorted(map(str, value))) or 'none'}"
    elif isinstance(value, Sequence) and not isinstance(value, str):
        known = f"a list of {len(value)}"
    else:
        known = f"a value of type {type(value).__name__}"
    raise InvalidInput(f"the command's {{{field.text}}}: no {key!r} in {known}")


def to_text(value: Any, name: str) -> str:
    """``value`` as one argument or environment variable.

    Raises:
        InvalidInput: not a JSON value, or text that no program can be given.
    """
    if isinstance(value, str):
        text = value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        text = str(value)
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{name} is {value!r}: not a JSON value: {error}") from None
    _check_text(text, name)
    return text


def _check_text(text: str, name: str) -> None:
    if "\0" in text:
        raise InvalidInput(f"{name!r} holds a NUL byte, which no argument can: remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{name!r} holds text that UTF-8 cannot write: {text!r}") from None
