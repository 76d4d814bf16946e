"""The tasks of a run and how each must end: pure, from the seed alone."""

from __future__ import annotations

import random
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
        status: exit status of the run that decides, ``None`` where none does.
        decisive: how many runs end with that status, neither more nor less.
        options: of ``Program.set``.
        cores: that each rank of it holds.
        least, most: seconds that a run sleeps.
    """

    weight: float
    state: str = "JOB_FINISHED"
    status: int | None = 0
    decisive: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    cores: int = 1
    least: float = 0.3
    most: float = 2.5


RULES = {
    "serial": Rule(50, options={"node_packing_count": 2}),
    "multicore": Rule(15, options={"threads_per_rank": 2}, cores=2),
    "ranks": Rule(3, options={"ranks_per_node": 2}),
    "wide": Rule(4, options={"num_nodes": 2}, cores=2),
    "fail": Rule(5, "FAILED", 3),
    "fails-twice": Rule(3, "FAILED", 3, 2, options={"max_retries": 1}),
    "flaky": Rule(5, options={"max_retries": 1}),
    "restartable": Rule(4, options={"restartable": True}, least=3.0, most=8.0),
    "family": Rule(4),
    # child of the task before it
    "child": Rule(5),
    "hooked": Rule(2, options={"preprocess": ["/bin/true"], "postprocess": ["/bin/true"]}),
    # runs until the user kills it
    "killed": Rule(1, "USER_KILLED", None, 0, {"wall_time": "10m"}, least=590.0, most=590.0),
}


@dataclass(frozen=True, slots=True)
class Task:
    """One task: its number from 0, its kind, the seconds that it sleeps, its parent's number."""

    number: int
    kind: str
    seconds: float
    parent: int | None = None


def tasks(seed: int, count: int) -> list[Task]:
    """The tasks of a run, in the order of submission."""
    chance = random.Random(f"tasks {seed}")
    names = list(RULES)
    weights = [rule.weight for rule in RULES.values()]
    found: list[Task] = []
    for number in range(count):
        (kind,) = chance.choices(names, weights)
        rule = RULES[kind]
        seconds = round(chance.uniform(rule.least, rule.most), 2)
        before = found[-1] if found else None
        if kind == "child" and (before is None or RULES[before.kind].state != "JOB_FINISHED"):
            kind = "serial"
        parent = number - 1 if kind == "child" else None
        found.append(Task(number, kind, seconds, parent))
    return found


def task_id(site: str, number: int) -> str:
    """Id of a task: processes are ended by it over the whole machine, so it holds the site's."""
    return f"{site}-{number:06d}"
