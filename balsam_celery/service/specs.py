"""What a worker is told of an attempt: rows → :class:`wire.TaskSpec`, and where it works."""

from __future__ import annotations

import hashlib
import re
import signal
from pathlib import Path
from typing import Any

from balsam_celery import keys
from balsam_celery.resources import NodeShare
from balsam_celery.retrying import signal_number
from balsam_celery.store.rows import TaskRow
from balsam_celery.wire import TaskSpec

#: Tasks that share one message at the most (DESIGN section 3).
BUNDLE = 16
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
#: What ``uuid4`` gives.
_RANDOM = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def slug(text: str, default: str) -> str:
    """``text`` as one component of a path, at most 60 characters."""
    safe = _UNSAFE.sub("-", text).strip("-.")[:60]
    return safe or default


def id_part(id: str) -> str:
    """What tells a task's directory from those of all others.

    Of an id that Celery or we have made, which is random, twelve characters do; one that the user
    has chosen may differ from others in any character.
    """
    if _RANDOM.fullmatch(id):
        return id[:12]
    safe = slug(id, "id")
    if safe == id:
        return safe
    return f"{safe}.{hashlib.blake2b(id.encode(), digest_size=6).hexdigest()}"


def task_dir(run_dir: Path, row: TaskRow) -> Path:
    """Directory of a task; its attempts have a directory each in it."""
    name = f"{slug(row.name, 'task')}.{id_part(row.id)}"
    return run_dir / "work" / slug(row.workflow, "default") / name


def staged_dir(run_dir: Path, row: TaskRow) -> Path | None:
    """Where staging and preprocessing put files for a task; ``None`` when it has neither."""
    if row.hooks.get("stage_in") or row.hooks.get("preprocess"):
        return task_dir(run_dir, row) / "staged"
    return None


def make_spec(
    row: TaskRow,
    attempt: int,
    shares: tuple[NodeShare, ...],
    *,
    run_dir: Path,
    kill_grace: int,
    inputs: dict[str, Any] | None,
    pinned: bool,
) -> TaskSpec:
    """The order to run an attempt.

    Args:
        row: the task, with its argv.
        attempt: number of the attempt.
        shares: what it was given, head node first.
        run_dir: the site's.
        kill_grace: seconds between TERM and KILL.
        inputs: values for ``$BALSAM_INPUTS``.
        pinned: the core ids of those nodes are real.
    """
    staged = staged_dir(run_dir, row)
    return TaskSpec(
        id=row.id,
        attempt=attempt,
        name=row.name,
        application=row.application,
        argv=tuple(row.argv or ()),
        environment=row.environment,
        # a restartable program goes on with what its last attempt has written
        work_dir=str(task_dir(run_dir, row) / ("run" if row.restartable else str(attempt))),
        shares=shares,
        ranks_per_node=row.ranks_per_node,
        threads_per_rank=row.threads_per_rank,
        wall_time=row.wall_time,
        kill_grace=kill_grace,
        launcher=row.launcher,
        inputs=inputs,
        staged=str(staged) if staged else None,
        pin=pinned and row.cpu_affinity == "depth",
        checkpoint_grace=row.checkpoint_grace,
        end_signal=signal_number(row.end_signal) or signal.SIGTERM.value,
        restartable=row.restartable,
    )


def worker_of(num_nodes: int, head: str) -> str:
    """Name, within its pilot, of the worker that runs a task: its node's, or the gang worker."""
    return keys.GANG if num_nodes > 1 else head
