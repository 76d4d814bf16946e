"""Celery results against rows: pure, over what Redis held for each task when all was over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from balsam_celery.states import FINAL, State, celery_state
from tests.chaos.plan import Injected

#: Faults that may cost Redis what it had taken shortly before.
_LOSES = "kill:redis"
#: Seconds from a task's end in which such a fault excuses a missing result: until the service has
#: performed the effect, and the two that Redis may wait with writing (``appendfsync everysec``).
EXCUSED = 15.0


def wrong_results(
    rows: Iterable[Mapping[str, Any]],
    kept: Mapping[str, Mapping[str, Any] | None],
    injected: Iterable[Injected],
) -> list[str]:
    """Final tasks whose result is missing or is not the row's, in words.

    ``[results] copy_expires`` is a day there and a run half an hour, so none is gone by its age.

    Args:
        rows: of the table ``task``.
        kept: what Redis has for each, decoded, by id.
        injected: the faults of the run.
    """
    losses = [one.wall for one in injected if one.kind == _LOSES]
    found = []
    for row in rows:
        state, result = State(row["state"]), kept.get(row["id"])
        if state not in FINAL:
            continue  # lost, and told as that
        wanted = celery_state(state)
        if result is None:
            if not any(row["finished"] <= loss <= row["finished"] + EXCUSED for loss in losses):
                found.append(f"{row['id']}: there is no Celery result, the task is {wanted}")
        elif result["status"] != wanted:
            found.append(f"{row['id']}: the Celery result is {result['status']}, not {wanted}")
        elif state is State.JOB_FINISHED and result["result"] != row["result"]:
            found.append(f"{row['id']}: the Celery result has another value than the row")
    return found
