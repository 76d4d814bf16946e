"""What state a new task begins in: pure functions of the tasks and of their parents' states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.states import FINAL, State
from balsam_celery.store.newtask import NewTask


@dataclass(frozen=True, slots=True)
class FirstState:
    """How a task enters the table.

    Attributes:
        path: the states it passes through, the last one is the row's.
        met: for each of its parents, whether it is met.
        reason: why it is FAILED, else empty.
    """

    path: tuple[State, ...]
    met: tuple[bool, ...] = ()
    reason: str = ""

    @property
    def state(self) -> State:
        """The row's state."""
        return self.path[-1]


def first_states(tasks: Sequence[NewTask], outside: Mapping[str, State]) -> dict[str, FirstState]:
    """The first state of each task, by id.

    Args:
        tasks: those of one insertion, in any order.
        outside: states of the parents that are in the table already.

    Raises:
        NotFound: a parent is neither in ``tasks`` nor in ``outside``.
        InvalidInput: tasks wait for each other in a circle.
    """
    inside = {task.id for task in tasks}
    for task in tasks:
        for parent in task.parents:
            if parent not in inside and parent not in outside:
                raise NotFound(f"task {task.id} waits for {parent!r}, which does not exist")
    states = dict(outside)
    plans: dict[str, FirstState] = {}
    for task in _parents_first(tasks):
        plans[task.id] = _first_state(task, states)
        states[task.id] = plans[task.id].state
    return plans


def _parents_first(tasks: Sequence[NewTask]) -> Iterator[NewTask]:
    by_id = {task.id: task for task in tasks}
    graph = {task.id: [p for p in task.parents if p in by_id] for task in tasks if task.parents}
    yield from (task for task in tasks if not task.parents)
    try:
        for id in TopologicalSorter(graph).static_order():
            if id in graph:
                yield by_id[id]
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise InvalidInput(f"tasks wait for each other: {circle}: remove one edge") from None


def _first_state(task: NewTask, states: Mapping[str, State]) -> FirstState:
    met = tuple(_is_met(task, states[parent]) for parent in task.parents)
    if not all(met):
        for parent in task.parents:
            if states[parent] in FINAL and not _is_met(task, states[parent]):
                return FirstState(
                    (State.CREATED, State.AWAITING_PARENTS, State.FAILED),
                    met,
                    f"parent {parent} is {states[parent]}",
                )
        return FirstState((State.CREATED, State.AWAITING_PARENTS), met)
    # without argv it needs a parent's result first, which the service renders
    needs_nothing = task.argv is not None and not (
        task.hooks.get("stage_in") or task.hooks.get("preprocess")
    )
    if task.kind == "program" and needs_nothing:
        return FirstState((State.CREATED, State.READY, State.PREPROCESSED), met)
    return FirstState((State.CREATED, State.READY), met)


def _is_met(task: NewTask, parent: State) -> bool:
    return parent is State.JOB_FINISHED or (parent in FINAL and task.on_parent_failure == "ignore")
