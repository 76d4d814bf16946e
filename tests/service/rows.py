"""Rows of tasks, attempts, allocations and pilots as plain values, for tests of pure functions."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from balsam_celery.states import State
from balsam_celery.store.rows import (
    AllocationRow,
    AllocationState,
    AttemptRow,
    PilotRow,
    PilotState,
    TaskRow,
)

NOW = 1_795_363_200.0
T = TypeVar("T")

#: What a column holds where a test does not say.
_EMPTY: dict[str, Any] = {
    "str": "", "int": 0, "float": 0.0, "bool": False, "list": [], "dict": {}, "tuple": (),
}  # fmt: skip


def _make(kind: type[T], values: dict[str, Any]) -> T:
    """A row; fields that are not given are empty, or ``None`` where they may be."""
    plain = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        annotation = str(field.type)
        if annotation.endswith("| None") or annotation == "Any":
            plain[field.name] = None
        else:
            plain[field.name] = _EMPTY.get(annotation.partition("[")[0])
    return kind(**plain | values)


def task_row(state: State, **values: Any) -> TaskRow:
    """A program of one core for ten minutes, which changed a minute ago."""
    plain = {
        "id": "abcdef-1", "name": "relax", "kind": "program", "application": "relax",
        "num_nodes": 1, "ranks_per_node": 1, "threads_per_rank": 1, "threads_per_core": 1,
        "cpu_affinity": "depth", "on_parent_failure": "fail", "inputs": "none", "wall_time": 600,
        "state": state, "created": NOW - 3600, "changed": NOW - 60,
    }  # fmt: skip
    return _make(TaskRow, plain | values)


def attempt_row(**values: Any) -> AttemptRow:
    """An attempt that ran from 100 s to 60 s ago."""
    plain = {
        "task": "abcdef-1", "number": 1, "dispatched": NOW - 101, "started": NOW - 100,
        "ended": NOW - 60, "outcome": "exit", "exit_code": 0,
    }  # fmt: skip
    return _make(AttemptRow, plain | values)


def allocation_row(state: AllocationState, **values: Any) -> AllocationRow:
    """Two nodes for an hour in the queue ``debug``."""
    plain = {
        "id": "a1", "queue": "debug", "nodes": 2, "wall_time": 3600, "state": state,
        "created": NOW - 120, "native_id": "17",
    }  # fmt: skip
    return _make(AllocationRow, plain | values)


def pilot_row(state: PilotState = PilotState.LIVE, **values: Any) -> PilotRow:
    """A pilot of two nodes that has an hour left and was heard of just now."""
    nodes = [{"name": name, "cores": [0, 1], "gpus": []} for name in ("n0", "n1")]
    plain = {
        "id": "p1", "allocation": "a1", "state": state, "host": "h", "pid": 1, "nodes": nodes,
        "registered": NOW - 100, "heartbeat": NOW - 1, "end_time": NOW + 3600,
    }  # fmt: skip
    return _make(PilotRow, plain | values)
