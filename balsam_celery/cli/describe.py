"""Rows as plain JSON values: the stable schema of ``docs/cli-json.md``.

Times become ISO 8601 in UTC; durations stay seconds, memory bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from balsam_celery.durations import timestamp as timestamp
from balsam_celery.resources import Resources
from balsam_celery.runtimes import Histogram
from balsam_celery.store.rows import AllocationRow, AttemptRow, EventRow, PilotRow, TaskRow

Plain = dict[str, Any]

_RESOURCES = (
    "num_nodes",
    "ranks_per_node",
    "threads_per_rank",
    "threads_per_core",
    "gpus_per_rank",
    "node_packing_count",
    "cpu_affinity",
    "memory_per_node",
)
#: What rows of an earlier release lack.
_NO_SHARE: Plain = {"memory": 0, "resources": [], "queued": False}
_NO_NODE: Plain = {"resources": [], "lost_reason": ""}


def resources(wanted: Resources) -> Plain:
    """What a task asks of nodes."""
    return {
        **{name: getattr(wanted, name) for name in _RESOURCES},
        "resources_per_node": dict(wanted.resources_per_node),
    }


def task(row: TaskRow) -> Plain:
    """A task in a list."""
    return {
        "id": row.id,
        "name": row.name,
        "workflow": row.workflow,
        "tags": list(row.tags),
        "kind": row.kind,
        "application": row.application,
        "state": str(row.state),
        "attempt": row.attempt,
        "num_nodes": row.num_nodes,
        "priority": row.priority,
        "work_dir": row.work_dir,
        "reason": row.reason,
        "created": timestamp(row.created),
        "changed": timestamp(row.changed),
        "finished": timestamp(row.finished),
        "not_before": timestamp(row.not_before) if row.not_before else None,
    }


def whole_task(
    row: TaskRow,
    attempts: Sequence[AttemptRow],
    events: Sequence[EventRow],
    parents: Sequence[str],
    children: Sequence[str],
) -> Plain:
    """A task with all that is known of it."""
    return task(row) | {
        "command": row.command,
        "literal": row.literal,
        "arguments": row.arguments,
        "argv": row.argv,
        "resources": resources(row.resources),
        "launcher": row.launcher,
        "environment": row.environment,
        "wall_time": row.wall_time,
        "expected_time": row.expected_time,
        "max_retries": row.max_retries,
        "retry_on": row.retry_on,
        "retry_delay": row.retry_delay,
        "failures": row.failures,
        "cuts": row.cuts,
        "restartable": row.restartable,
        "checkpoint_grace": row.checkpoint_grace,
        "end_signal": row.end_signal,
        "on_parent_failure": row.on_parent_failure,
        "hooks": row.hooks,
        "input_files": row.input_files,
        "data": row.data,
        "waiting_on": row.waiting_on,
        "parents": list(parents),
        "children": list(children),
        "pilot": row.pilot,
        "nodes": [_counted(_NO_SHARE, share) for share in row.shares or ()],
        "kill_requested": timestamp(row.kill_requested),
        "kill_reason": row.kill_reason,
        "result": row.result,
        "attempts": [attempt(a) for a in attempts],
        "events": [event(e) for e in events],
    }


def attempt(row: AttemptRow) -> Plain:
    """One run of a task."""
    return {
        "number": row.number,
        "allocation": row.allocation,
        "pilot": row.pilot,
        "nodes": [_counted(_NO_SHARE, share) for share in row.nodes],
        "argv": row.argv,
        "work_dir": row.work_dir,
        "environment_digest": row.environment_digest,
        "dispatched": timestamp(row.dispatched),
        "started": timestamp(row.started),
        "ended": timestamp(row.ended),
        "outcome": row.outcome,
        "exit_code": row.exit_code,
        "signal": row.signal,
        "user_time": row.user_time,
        "system_time": row.system_time,
        "max_memory": row.max_memory,
        "stdout_tail": row.stdout_tail,
        "stderr_tail": row.stderr_tail,
        "reason": row.reason,
    }


def event(row: EventRow) -> Plain:
    """One change of state."""
    return {
        "time": timestamp(row.time),
        "from": row.from_state,
        "to": row.to_state,
        "who": row.who,
        "message": row.message,
    }


def allocation(row: AllocationRow) -> Plain:
    """A batch job."""
    return {
        "id": row.id,
        "queue": row.queue,
        "nodes": row.nodes,
        "nodes_back": row.nodes_back,
        "wall_time": row.wall_time,
        "state": row.state,
        "native_id": row.native_id or None,  # "": not known whether the job exists
        "cancel_requested": timestamp(row.cancel_requested),
        "created": timestamp(row.created),
        "submitted": timestamp(row.submitted),
        "started": timestamp(row.started),
        "ended": timestamp(row.ended),
        "reason": row.reason,
        "run_dir": row.run_dir,
    }


def pilot(row: PilotRow) -> Plain:
    """An incarnation inside a batch job."""
    return {
        "id": row.id,
        "allocation": row.allocation,
        "state": row.state,
        "host": row.host,
        "pid": row.pid,
        "nodes": [_counted(_NO_NODE, node) for node in row.nodes],
        "registered": timestamp(row.registered),
        "heartbeat": timestamp(row.heartbeat),
        "end_time": timestamp(row.end_time),
        "ended": timestamp(row.ended),
        "idle_since": timestamp(row.idle_since),
        "stop_at": timestamp(row.stop_at),
        "reason": row.reason,
    }


def runtime(application: str, shape: str, runs: Histogram) -> Plain:
    """How long a program's runs of one shape took that ended well."""
    return {
        "application": application,
        "shape": shape,
        "runs": runs.count,
        "mean": runs.mean,
        "median": runs.quantile(0.5),
        "ninety_percent": runs.quantile(0.9),
    }


def _counted(missing: Plain, plain: Plain) -> Plain:
    """A plain ``NodeShare`` or ``NodeCapacity`` with its countable resources as an object."""
    whole = missing | plain
    return whole | {"resources": dict(whole["resources"])}
