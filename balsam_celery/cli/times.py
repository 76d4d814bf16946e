"""Times as people give them on the command line: ``2h`` ago, ``yesterday``, an ISO date."""

from __future__ import annotations

from datetime import datetime, timedelta

from balsam_celery.durations import parse_duration
from balsam_celery.errors import InvalidInput


def parse_moment(text: str, option: str, now: datetime) -> float:
    """Seconds since the epoch of the moment that ``text`` names.

    Args:
        text: a duration before ``now`` (``90``, ``10m``, ``2d``), ``now``, ``today``,
            ``yesterday``, or an ISO 8601 date or time; without a zone it is the local one.
        option: where it was given, for the error.
        now: the present, with its zone.

    Raises:
        InvalidInput: none of these.
    """
    word = text.strip().lower()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    named = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    if word in named:
        return named[word].timestamp()
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        pass  # not a date, so it should be a duration
    try:
        return now.timestamp() - parse_duration(word, option)
    except InvalidInput:
        raise InvalidInput(
            f"{option} is {text!r}: give a time such as 2026-11-22, 2026-11-22T17:30, "
            "'yesterday', or how long ago, such as 90m or 2d"
        ) from None
