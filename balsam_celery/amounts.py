"""Memory and countable resources as people and the database write them.

``"4GiB"`` → bytes; ``{"nvme": 1, "licence": 2}`` → :data:`~balsam_celery.resources.Counts` →
``"licence=2,nvme=1"``, the one text of these amounts, so that SQL can compare and group by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction

from balsam_celery.errors import InvalidInput
from balsam_celery.resources import Counts

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", 1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
#: What PostgreSQL's BIGINT and INTEGER hold.
_MOST_BYTES, _MOST = 2**63, 2**31


def parse_bytes(value: object, name: str) -> int:
    """Bytes in ``value``: a number, or text such as ``"4GiB"`` (1024³) or ``"4GB"`` (1000³).

    ``None`` is 0.

    Args:
        value: what was given.
        name: what it is, for the error.

    Raises:
        InvalidInput: not an amount of memory.
    """
    size = 0 if value is None else _bytes(value)
    if size is None or not 0 <= size < _MOST_BYTES:
        raise InvalidInput(f"{name} is {value!r}: give bytes, or text such as '4GiB' or '4GB'")
    return size


def _bytes(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    match = _SIZE.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None or match[2] not in _UNITS:
        return None
    return int(Fraction(match[1]) * _UNITS[match[2]])


def format_bytes(size: int) -> str:
    """``size`` as people read it: ``"4GiB"``, ``"1.5GiB"``, ``"100B"``."""
    for letter, power in zip("PTGMK", (5, 4, 3, 2, 1), strict=True):
        if size >= 1024**power:
            # rounded down: never more than there is
            return f"{size * 100 // 1024**power / 100:g}{letter}iB"
    return f"{size}B"


def counts_of(value: object, name: str) -> Counts:
    """The amounts in a dict of name → whole number; ``None`` is none.

    Args:
        value: what was given.
        name: what it is, for the error.

    Raises:
        InvalidInput: not such a dict, a name that cannot be one, an amount below 1.
    """
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{name} is {value!r}: give a dict such as {{'licence': 2}}")
    for key, amount in value.items():
        if not isinstance(key, str) or not _NAME.fullmatch(key):
            raise InvalidInput(
                f"{name} names {key!r}: give a letter, then letters, digits, '_', '.' and '-',"
                " 64 at the most"
            )
        if not isinstance(amount, int) or isinstance(amount, bool) or not 1 <= amount < _MOST:
            raise InvalidInput(f"{name}.{key} is {amount!r}: give a whole number of 1 or more")
    return tuple(sorted(value.items()))


def counts_given(settings: Iterable[str], name: str) -> dict[str, int]:
    """The amounts in ``NAME=AMOUNT`` texts, as :func:`counts_of` takes them.

    Raises:
        InvalidInput: not such a text, or a name that is given twice.
    """
    counts: dict[str, int] = {}
    for setting in settings:
        key, _, amount = setting.partition("=")
        if not _NAME.fullmatch(key) or not re.fullmatch(r"[0-9]{1,10}", amount):
            raise InvalidInput(f"{name} is {setting!r}: give NAME=AMOUNT, such as licence=2")
        if key in counts:
            raise InvalidInput(f"{name} {setting}: {key} is given twice; give it once")
        counts[key] = int(amount)
    return counts


def counts_text(counts: Counts) -> str:
    """``counts`` as the database keeps them."""
    return ",".join(f"{name}={amount}" for name, amount in counts)


def counts_from(text: str) -> Counts:
    """What :func:`counts_text` wrote."""
    parts = (part.partition("=") for part in text.split(",") if part)
    return tuple((name, int(amount)) for name, _, amount in parts)
