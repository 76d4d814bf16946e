"""A scenario file (TOML): a machine, what is submitted to it, and the seeds.

``benchmarks/workloads`` has them. The keys are the attributes of the dataclasses here, in
``machine`` and in ``limits``; of the top ``about`` (a line for people) and ``saturated`` (its
backlog lasts, so that use while it does is judged).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from balsam_celery.durations import parse_duration
from balsam_celery.errors import InvalidInput
from balsam_celery.limits import Policy, Queue
from balsam_celery.resources import NodeCapacity, Resources
from balsam_celery.simulate.machine import Background, Machine

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Runtime:
    """Lognormal runtimes in whole seconds, from ``least`` to ``most``."""

    median: float
    sigma: float = 0.0
    least: float = 1.0
    most: float = 1e9


@dataclass(frozen=True, slots=True)
class Arrival:
    """When tasks are submitted.

    Attributes:
        kind: ``"batch"``: all at ``at``; ``"over"``: evenly at random from ``at`` for ``span``
            seconds; ``"bursts"``: in ``bursts`` equal parts, one every ``span`` seconds on average.
    """

    kind: str = "batch"
    at: float = 0.0
    span: float = 0.0
    bursts: int = 1


@dataclass(frozen=True, slots=True)
class Spawn:
    """Each finished task creates 0 to ``most`` tasks like itself, ``depth`` generations deep."""

    most: int
    depth: int


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks of one application.

    Attributes:
        application: its name.
        count: how many are submitted (those they create come on top).
        wall_time: limit of each in seconds.
        runtime: true runtimes.
        resources: what each asks for.
        expected: ``"none"``: the user says nothing, it is learned; ``"given"``: the true runtime
            times a factor drawn log-uniformly from 1/``wrong_by`` to ``wrong_by``.
        wrong_by: how bad the users' estimates are.
        restartable, priority: of each.
        arrival: when.
        spawn: what they create.
        after: application whose tasks they wait for, one each in order; empty: none.
    """

    application: str
    count: int
    wall_time: int
    runtime: Runtime
    resources: Resources = field(default_factory=Resources)
    expected: str = "none"
    wrong_by: float = 1.0
    restartable: bool = False
    priority: int = 0
    arrival: Arrival = field(default_factory=Arrival)
    spawn: Spawn | None = None
    after: str = ""


@dataclass(frozen=True, slots=True)
class Seeds:
    """Seeds for tuning, and those on which results are reported."""

    tuning: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a file says."""

    name: str
    about: str
    saturated: bool
    machine: Machine
    groups: tuple[Group, ...]
    seeds: Seeds


def load(path: Path) -> Scenario:
    """Read a scenario file.

    Raises:
        InvalidInput: it is missing, no TOML, or holds something that cannot be used.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}: give a scenario file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is no TOML: {error}") from None
    try:
        return _scenario(path.stem, table)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _scenario(name: str, table: dict[str, Any]) -> Scenario:
    known = {"about", "saturated", "seeds", "machine", "node", "queues", "policy", "tasks"}
    if unknown := sorted(table.keys() - known):
        raise InvalidInput(f"{unknown[0]!r} is unknown: the tables are {', '.join(sorted(known))}")
    for key in ("seeds", "machine", "node", "queues", "policy", "tasks"):
        if key not in table:
            raise InvalidInput(f"[{key}] is missing: add it")
    seeds = {key: tuple(value) for key, value in table["seeds"].items()}
    groups = tuple(_group(one, f"tasks[{n}]") for n, one in enumerate(table["tasks"]))
    named = {group.application for group in groups}
    for group in groups:
        if group.after and group.after not in named:
            raise InvalidInput(f"after is {group.after!r}: name one of {', '.join(sorted(named))}")
    return Scenario(
        name,
        table.get("about", ""),
        bool(table.get("saturated", False)),
        _machine(table),
        groups,
        _make(Seeds, seeds, "seeds"),
    )


def _machine(table: dict[str, Any]) -> Machine:
    shape = dict(table["node"])
    node = NodeCapacity(
        "node",
        tuple(range(shape.pop("cores", 1))),
        tuple(range(shape.pop("gpus", 0))),
        shape.pop("memory", 0),
        resources=tuple(sorted(shape.pop("resources", {}).items())),
    )
    if shape:
        raise InvalidInput(f"node.{min(shape)} is unknown: give cores, gpus, memory, resources")
    values = dict(table["machine"])
    if "background" in values:
        values["background"] = _make(Background, values["background"], "machine.background")
    times = ("min_wall_time", "max_wall_time")
    queues = tuple(
        _make(Queue, {**_seconds(one, times, f"queues[{n}]"), "node": node}, f"queues[{n}]")
        for n, one in enumerate(table["queues"])
    )
    values |= {"node": node, "queues": queues, "policy": _make(Policy, table["policy"], "policy")}
    return _make(Machine, values, "machine")


def _group(table: dict[str, Any], where: str) -> Group:
    values = _seconds(table, ("wall_time",), where)
    for key, kind in (("runtime", Runtime), ("arrival", Arrival), ("spawn", Spawn)):
        if key in values:
            values[key] = _make(kind, values[key], f"{where}.{key}")
    if "resources" in values:
        asked = dict(values["resources"])
        asked["resources_per_node"] = tuple(sorted(asked.pop("resources_per_node", {}).items()))
        values["resources"] = _make(Resources, asked, f"{where}.resources")
    group = _make(Group, values, where)
    _one_of(group.expected, ("none", "given"), f"{where}.expected")
    _one_of(group.arrival.kind, ("batch", "over", "bursts"), f"{where}.arrival.kind")
    return group


def _seconds(table: Mapping[str, Any], names: tuple[str, ...], where: str) -> dict[str, Any]:
    """The table with durations as seconds."""
    return {
        key: parse_duration(value, f"{where}.{key}") if key in names else value
        for key, value in table.items()
    }


def _one_of(value: str, allowed: tuple[str, ...], where: str) -> None:
    if value not in allowed:
        raise InvalidInput(f"{where} is {value!r}: give one of {', '.join(allowed)}")


def _make(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of a dataclass from a table; names what is unknown or missing."""
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - names):
        raise InvalidInput(
            f"{where}.{unknown[0]} is unknown: the keys are {', '.join(sorted(names))}"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise InvalidInput(f"{where}: {str(error).partition('() ')[2]}") from None
