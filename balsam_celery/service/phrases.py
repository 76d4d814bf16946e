"""Parts of sentences: times, counts, names, what programs printed.  Pure but for the time zone."""

from __future__ import annotations

import time
from collections.abc import Sequence

from balsam_celery.durations import format_duration

_LONGEST = 200
#: Names that are listed before the rest is counted.
_NAMED = 4


def moment(when: float, now: float) -> str:
    """``when`` on the user's clock, and how far it is: ``2026-11-22 17:54:27 (in 12m)``."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    distance = format_duration(round(abs(when - now)))
    return f"{shown} ({f'in {distance}' if when > now else f'{distance} ago'})"


def counted(count: int, noun: str) -> str:
    """``3 tasks``, ``1 task``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def times(count: int) -> str:
    """``once``, ``twice``, ``3 times``."""
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


def listed(names: Sequence[str]) -> str:
    """``n0``, ``n0 and n1``, ``n0, n1, n2, n3 and 5 more``."""
    shown = list(names[:_NAMED])
    if len(names) > _NAMED:
        return f"{', '.join(shown)} and {len(names) - _NAMED:,} more"
    return " and ".join(part for part in (", ".join(shown[:-1]), *shown[-1:]) if part)


def nodes(names: Sequence[str]) -> str:
    """``node n0``, ``nodes n0 and n1``."""
    return f"node{'' if len(names) == 1 else 's'} {listed(names)}"


def ended(text: str) -> str:
    """``text`` as the end of a sentence: with one full stop."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def last_line(text: str | None) -> str:
    """The last line of an output that holds anything, cut to a readable length; or ``""``."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    if not lines:
        return ""
    return lines[-1] if len(lines[-1]) <= _LONGEST else f"{lines[-1][:_LONGEST]}…"
