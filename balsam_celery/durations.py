"""Durations as people write them: ``90``, ``"10m"``, ``"1h30m"``, ``"01:30:00"`` → seconds.

And moments as JSON has them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from balsam_celery.errors import InvalidInput

#: No time from now that people mean is as long: some thirty years, in seconds.
ENDLESS = 1e9
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s?)?")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d{2}):(\d{2})")


def parse_duration(value: object, name: str = "duration") -> int:
    """Seconds in ``value``.

    Args:
        value: a number of seconds, ``"1d2h3m4s"`` with any parts left out, or ``"[D-]HH:MM:SS"``.
        name: what the value is, for the error.

    Raises:
        InvalidInput: not a duration, not longer than zero, or :data:`ENDLESS`.
    """
    seconds = _seconds(value)
    if seconds is None or not 0 < seconds < ENDLESS:
        raise InvalidInput(
            f"{name} is {value!r}: give a time above zero, and below thirty years, such as 90,"
            " '10m', '1h30m' or '01:30:00'"
        )
    return seconds


def parse_pause(value: object, name: str = "pause") -> int:
    """:func:`parse_duration`, where 0 (``"0s"``) is a time too.

    Raises:
        InvalidInput: not a duration.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    zero = value == 0 if is_number else isinstance(value, str) and value.strip() in ("0", "0s")
    return 0 if zero else parse_duration(value, name)


def _seconds(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return int(value) if 0 < value < ENDLESS else None
    if not isinstance(value, str):
        return None
    text = value.strip().lower()
    if clock := _CLOCK.fullmatch(text):
        days, hours, minutes, secs = (int(part or 0) for part in clock.groups())
        return days * 86400 + hours * 3600 + minutes * 60 + secs
    parts = _PARTS.fullmatch(text)
    if not text or parts is None:
        return None
    return sum(
        int(part) * unit for part, unit in zip(parts.groups(), _UNITS.values(), strict=True) if part
    )


def format_duration(seconds: float) -> str:
    """``seconds`` as people read it: ``"1h30m"``, ``"42s"``, ``"0.3s"``."""
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}s"
    left = round(seconds)
    text = ""
    for letter, unit in _UNITS.items():
        count, left = divmod(left, unit)
        if count:
            text += f"{count}{letter}"
    return text or "0s"


def timestamp(seconds: float | None) -> str | None:
    """``seconds`` since the epoch as ``2026-11-22T17:54:27.120Z``."""
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
