"""A task as it is given to be inserted, and what may stand in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from balsam_celery.errors import InvalidInput


def _no_arguments() -> dict[str, Any]:
    return {"args": [], "kwargs": {}}


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to insert; the fields are columns of ``schema.task``.

    Attributes:
        argv: rendered by the caller for a task without parents; ``None`` when a parent's result
            is needed.
        tags: no order, no doubles.
        parents: ids, in the order in which their results are handed on; each in the same call
            or in the table already.
        memory_per_node: bytes.
        resources_per_node: ``amounts.counts_text``.
        wall_time: seconds; needed for kind ``program``.
    """

    id: str
    name: str
    kind: str = "program"
    workflow: str = ""
    application: str = ""
    command: Sequence[str] = ()
    literal: bool = False
    arguments: Mapping[str, Any] = field(default_factory=_no_arguments)
    inputs: str = "none"
    celery: Mapping[str, Any] = field(default_factory=dict)
    errbacks: Sequence[Any] = ()
    argv: Sequence[str] | None = None
    num_nodes: int = 1
    ranks_per_node: int = 1
    threads_per_rank: int = 1
    threads_per_core: int = 1
    gpus_per_rank: float = 0.0
    node_packing_count: int | None = None
    cpu_affinity: str = "depth"
    memory_per_node: int = 0
    resources_per_node: str = ""
    launcher: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    wall_time: int = 0
    expected_time: float | None = None
    priority: int = 0
    max_retries: int = 0
    retry_on: Sequence[Any] | None = None
    retry_delay: float | None = None
    restartable: bool = False
    checkpoint_grace: int = 0
    end_signal: str = "TERM"
    on_parent_failure: str = "fail"
    not_before: float = 0.0
    hooks: Mapping[str, Any] = field(default_factory=dict)
    input_files: Sequence[Any] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    parents: Sequence[str] = ()


#: The least and the greatest of what PostgreSQL's INTEGER and BIGINT hold.
_INTEGER, _BIGINT = 2**31, 2**63
_INTEGERS = (
    "num_nodes",
    "ranks_per_node",
    "threads_per_rank",
    "threads_per_core",
    "node_packing_count",
    "wall_time",
    "priority",
    "max_retries",
    "checkpoint_grace",
)
_LENGTHS = {
    "id": 155,
    "name": 200,
    "workflow": 200,
    "application": 200,
    "launcher": 64,
    "cpu_affinity": 16,
    "end_signal": 16,
    "resources_per_node": 500,
}
_CHOICES = {
    "kind": ("program", "celery"),
    "inputs": ("none", "single", "list"),
    "on_parent_failure": ("fail", "ignore"),
}


def check_tasks(tasks: Sequence[NewTask]) -> None:
    """Refuse what the table could not hold, alike for SQLite (which would) and PostgreSQL.

    Raises:
        InvalidInput: an id or a parent given twice, text too long, a number that does not fit.
    """
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise InvalidInput(f"task id {task.id!r} is given twice: give each task its own")
        seen.add(task.id)
        _check(task)


def _check(task: NewTask) -> None:
    if not task.id:
        raise InvalidInput(f"the id of task {task.name!r} is empty: give one")
    for name, length in _LENGTHS.items():
        _check_text(name, getattr(task, name) or "", length)
    for tag in task.tags:
        _check_text("tag", tag, 200)
    for name, choices in _CHOICES.items():
        if getattr(task, name) not in choices:
            raise InvalidInput(f"{name} is {getattr(task, name)!r}: give one of {choices}")
    for name in _INTEGERS:
        value = getattr(task, name)
        if value is not None and not -_INTEGER <= value < _INTEGER:
            raise InvalidInput(f"{name} is {value}: give a number under {_INTEGER}")
    if not 0 <= task.memory_per_node < _BIGINT:
        raise InvalidInput(f"memory_per_node is {task.memory_per_node}: give 0 to {_BIGINT - 1}")
    if task.kind == "program" and task.wall_time < 1:
        raise InvalidInput(f"wall_time is {task.wall_time}: give a time above zero")
    if len(set(task.parents)) < len(task.parents):
        raise InvalidInput(f"task {task.id} waits twice for one task: give each parent once")


def _check_text(name: str, value: str, length: int) -> None:
    if len(value) > length:
        raise InvalidInput(f"{name} {value[:30]!r}… has {len(value)} characters: at most {length}")
    if "\x00" in value or not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"{name} is {value!r}: give text that is UTF-8") from None
        if "\x00" in value:
            raise InvalidInput(f"{name} is {value!r}: remove the NUL character")
