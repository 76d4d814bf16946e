"""What a step's message may be told: what can never be sent, or would harm the site, is refused."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from balsam_celery.errors import InvalidInput
from balsam_celery.keys import is_ours


def check(name: str, options: Mapping[str, Any], now: float) -> None:
    """Refuse options of a step that no message can carry.

    Args:
        name: of the Celery task.
        options: as Celery's ``apply_async`` takes them.
        now: seconds since the epoch.

    Raises:
        InvalidInput: says which, and what to give.
    """
    expires, queue = options.get("expires"), options.get("queue")
    if expires is not None and not _is_moment(expires, now):
        raise InvalidInput(
            f"task {name}: expires is {expires!r}: give seconds, a datetime or ISO 8601 text"
        )
    if isinstance(queue, str) and is_ours(queue):
        raise InvalidInput(f"task {name}: queue is {queue!r}, which is the site's: give another")


def _is_moment(expires: Any, now: float) -> bool:
    try:
        if isinstance(expires, str):
            datetime.fromisoformat(expires)
        elif isinstance(expires, int | float) and not isinstance(expires, bool):
            datetime.fromtimestamp(now) + timedelta(seconds=expires)
        else:
            return isinstance(expires, datetime)
    except (ValueError, OverflowError):
        return False
    return True
