"""The tasks of a run and how each must end: pure, from the seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

#: Name of the workflow that all tasks of a run belong to.
WORKFLOW = "chaos"


@dataclass(frozen=True, slots=True)
class Rule:
    """How tasks of one kind must end.

    Attributes:
        weight: how many there are, beside the others.
        state: in which they end.
        status: exit status of the run that decides, ``None`` where none does. Of a step: 0, or 1
            when it raises.
        decisive: how many runs end with that status, neither more nor less.
        options: of ``Program.set``.
        cores: that each rank of it holds.
        least, most: seconds that a run sleeps.
        is_step: an ordinary Celery task.
        hooks: that it has; each must run once for its attempt.
        has_errbacks: it ends FAILED, and both of its errbacks must be called.
    """

    weight: float
    state: str = "JOB_FINISHED"
    status: int | None = 0
    decisive: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    cores: int = 1
    least: float = 0.3
    most: float = 2.5
    is_step: bool = False
    hooks: tuple[str, ...] = ()
    has_errbacks: bool = False


#: Two on a node. What fails on purpose takes no node for itself: such tasks would follow each other
#: on a node that no packed task fits on, and five in a row put it aside (``suspects``).
_PACKED = {"node_packing_count": 2}

RULES = {
    "serial": Rule(46, options=_PACKED),
    "multicore": Rule(15, options={"threads_per_rank": 2}, cores=2),
    "ranks": Rule(3, options={"ranks_per_node": 2}),
    "wide": Rule(4, options={"num_nodes": 2}, cores=2),
    "fail": Rule(3, "FAILED", 3, options=_PACKED),
    "told": Rule(2, "FAILED", 3, options=_PACKED, has_errbacks=True),
    "fails-twice": Rule(2, "FAILED", 3, 2, options={"max_retries": 1, **_PACKED}),
    "flaky": Rule(3, options={"max_retries": 1, **_PACKED}),
    # fails once, and its handler has it started again
    "handled": Rule(2, options=_PACKED, hooks=("handler",)),
    "hooked": Rule(3, hooks=("preprocess", "postprocess")),
    "restartable": Rule(4, options={"restartable": True}, least=3.0, most=8.0),
    "family": Rule(4),
    # what follows the task before it, in a chain
    "child": Rule(4),
    "step": Rule(4, least=0.1, most=1.0, is_step=True),
    "broken-step": Rule(1, "FAILED", 1, least=0.1, most=1.0, is_step=True, has_errbacks=True),
    # what follows a group, as a chord's body
    "gather": Rule(1.5, least=0.1, most=1.0, is_step=True),
    "gather-program": Rule(1.5),
    # runs until the user kills it
    "killed": Rule(1, "USER_KILLED", None, 0, {"wall_time": "10m"}, least=590.0, most=590.0),
    # never drawn: they come when a task with errbacks has failed
    "errback": Rule(0, is_step=True),
    "errback-program": Rule(0),
}
FOLLOW = ("child", "step", "broken-step")
GATHER = ("gather", "gather-program")
#: Kinds of a group's members; one is a step among programs.
MEMBERS = ("serial", "step", "serial")


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        number: from 0.
        kind: of :data:`RULES`.
        seconds: that it sleeps.
        inputs: how many results it is to be given.
    """

    number: int
    kind: str
    seconds: float
    inputs: int = 0


#: Tasks of one canvas: stages that follow each other, each of one task or of a group.
Canvas = list[list[Task]]


def canvases(seed: int, count: int) -> list[Canvas]:
    """What is submitted in a run, in that order, until there are ``count`` tasks or a few more.

    With as many tasks as some of the canvases hold, it gives just these.
    """
    chance = random.Random(f"tasks {seed}")
    names = list(RULES)
    weights = [rule.weight for rule in RULES.values()]
    found: list[Canvas] = []
    number = 0

    def task(kind: str, inputs: int = 0) -> Task:
        nonlocal number
        rule = RULES[kind]
        number += 1
        return Task(number - 1, kind, round(chance.uniform(rule.least, rule.most), 2), inputs)

    while number < count:
        (kind,) = chance.choices(names, weights)
        last = found[-1][-1] if found else []
        if kind in GATHER:
            found.append([[task(member) for member in MEMBERS], [task(kind, len(MEMBERS))]])
        elif kind in FOLLOW and len(last) == 1 and RULES[last[0].kind].state == "JOB_FINISHED":
            found[-1].append([task(kind, 1)])
        else:
            found.append([[task("serial" if kind in FOLLOW else kind)]])
    return found


def tasks(seed: int, count: int) -> list[Task]:
    """The same, one by one."""
    return [task for canvas in canvases(seed, count) for stage in canvas for task in stage]


def task_id(site: str, number: int) -> str:
    """Id of a task: processes are ended by it over the whole machine, so it holds the site's."""
    return f"{site}-{number:06d}"


def errback_id(id: str, kind: str) -> str:
    """Id of an errback of the task ``id``."""
    return f"{id}-{kind}"


def named(site: str, asked: Iterable[Task]) -> dict[str, Task]:
    """All tasks that there must be in the end, by id: those asked for, and errbacks."""
    found = {}
    for task in asked:
        id = task_id(site, task.number)
        found[id] = task
        if RULES[task.kind].has_errbacks:
            for kind in ("errback", "errback-program"):
                found[errback_id(id, kind)] = Task(task.number, kind, 0.2)
    return found
