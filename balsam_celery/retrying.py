"""Which failures are tried again, and after how long.  Pure.

``retry_on`` is a list of texts, each an entry of this little language:

=================  ==============================================================
``error``          the program ended with any exit code but 0
``exit:3``         with this one; ``exit:1-127``: with one of these
``signal``         a signal that was not ours ended it
``signal:KILL``    this one; also ``signal:SIGKILL``, ``signal:9``
``timeout``        its ``wall_time`` was over
``cannot-start``   no such program, no permission
``reason:TEXT``    the reason of its end holds this text
``!ENTRY``         never for such a failure, whatever the other entries say
=================  ==============================================================

Without an entry that permits, every failure is tried again that none forbids.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from balsam_celery.errors import InvalidInput

KINDS = ("error", "signal", "timeout", "cannot-start")
_FORMS = (*KINDS, "exit:CODE", "exit:FIRST-LAST", "signal:NAME", "reason:TEXT", "!ENTRY")


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed.

    Attributes:
        kind: of :data:`KINDS`.
        exit_code, signal: of its program; ``None``: not by that.
        reason: in words.
    """

    kind: str
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""


def checked(name: str, value: Any) -> tuple[str, ...]:
    """``value`` as entries.

    Raises:
        InvalidInput: one of them is none; names it and the forms.
    """
    if not isinstance(value, str | Iterable):
        raise InvalidInput(f"{name} is {value!r}: give a list such as ['exit:1-127', '!exit:2']")
    entries = [value] if isinstance(value, str) else list(value)
    for entry in entries:
        if not isinstance(entry, str) or _test(entry.removeprefix("!")) is None:
            raise InvalidInput(f"{name} holds {entry!r}: give some of {', '.join(_FORMS)}")
    return tuple(entries)


def forbids(entries: Sequence[str] | None, failure: Failure) -> str:
    """Which entry, or lack of one, keeps the failure from being tried again; "": nothing does."""
    entries = entries or ()
    for entry in entries:
        if entry.startswith("!") and _matches(entry[1:], failure):
            return f"names {entry!r}"
    permitting = [entry for entry in entries if not entry.startswith("!")]
    if not permitting or any(_matches(entry, failure) for entry in permitting):
        return ""
    return f"does not name {described(failure)!r}"


def described(failure: Failure) -> str:
    """The closest entry that names the failure."""
    if failure.exit_code is not None and failure.kind == "error":
        return f"exit:{failure.exit_code}"
    if failure.signal is not None and failure.kind == "signal":
        return f"signal:{failure.signal}"
    return failure.kind


def pause(delay: float, longest: float, failures: int) -> float:
    """Seconds until the next attempt: ``delay`` after the first failure, then twice as long each
    time, at the most ``longest``.

    Args:
        delay: seconds; 0: at once, always.
        longest: seconds.
        failures: those so far, this one included.
    """
    # the power is bounded, so that a task that failed a thousand times is no overflow
    return min(delay * 2.0 ** min(max(failures - 1, 0), 64), max(longest, 0.0))


def signal_number(text: str) -> int | None:
    """The number of ``KILL``, ``SIGKILL`` or ``9``; ``None``: there is no such signal."""
    if text.isascii() and text.isdigit():
        return int(text) if 0 < int(text) <= signals.SIGRTMAX else None
    try:
        return int(signals.Signals[f"SIG{text.upper().removeprefix('SIG')}"])
    except KeyError:
        return None


def _matches(entry: str, failure: Failure) -> bool:
    test = _test(entry)
    if test is None:
        return False  # of a later release: it names nothing here
    kind, first, last = test
    if kind == "reason":
        return entry.partition(":")[2] in failure.reason
    if kind != failure.kind:
        return False
    if first is None or last is None:
        return True
    value = failure.exit_code if kind == "error" else failure.signal
    return value is not None and first <= value <= last


def _test(entry: str) -> tuple[str, int | None, int | None] | None:
    """What an entry asks for: kind, first and last number; ``None``: it is none."""
    kind, colon, text = entry.partition(":")
    if not colon:
        return (entry, None, None) if entry in KINDS else None
    if kind == "reason":
        return (kind, None, None) if text else None
    if kind == "signal":
        number = signal_number(text)
        return None if number is None else (kind, number, number)
    first, dash, last = text.partition("-")
    bounds = (first, last if dash else first)
    if kind != "exit" or not all(one.isascii() and one.isdigit() for one in bounds):
        return None
    low, high = map(int, bounds)
    return ("error", low, high) if 0 < low <= high <= 255 else None
