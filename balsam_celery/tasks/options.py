"""What a user may say of a task, checked: the fields of ``program()`` and of ``set()``."""

from __future__ import annotations

import dataclasses
import difflib
import math
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from balsam_celery.amounts import counts_of, parse_bytes
from balsam_celery.codec import DEPTH
from balsam_celery.commands import check_literal, to_text
from balsam_celery.durations import parse_duration, parse_pause
from balsam_celery.errors import InvalidInput
from balsam_celery.resources import Resources
from balsam_celery.retrying import checked, signal_number

RESOURCES = tuple(f.name for f in dataclasses.fields(Resources))
HOOKS = ("stage_in", "preprocess", "postprocess", "stage_out", "handler")
#: ``launchers.KINDS``, which a program that only submits need not load.
LAUNCHERS = (
    "none",
    "mpich",
    "intelmpi",
    "openmpi",
    "srun",
    "aprun",
    "jsrun",
    "flux",
    "template",
)


class ProgramOptions(TypedDict, total=False):
    """Keyword arguments of ``program()``.

    ``set()`` and ``apply_async()`` take them too, and ``name``, the task's own (the program's
    unless given). The resources are those of :class:`balsam_celery.resources.Resources`. Times are
    seconds or text such as ``"10m"``.
    """

    workflow: str
    tags: Iterable[str]
    num_nodes: int
    ranks_per_node: int
    threads_per_rank: int
    threads_per_core: int
    gpus_per_rank: float
    node_packing_count: int | None
    cpu_affinity: str
    memory_per_node: int | str | None  # bytes, or text such as "4GiB"
    resources_per_node: Mapping[str, int] | None  # such as {"licence": 2}
    launcher: str | None  # one of LAUNCHERS; the site's unless given
    environment: Mapping[str, object] | None
    wall_time: int | float | str | None  # the site's default unless given
    expected_time: int | float | str | None
    priority: int
    max_retries: int
    retry_on: Sequence[str] | None  # entries of balsam_celery.retrying; any failure unless given
    retry_delay: int | float | str | None  # before the first retry; the site's unless given
    restartable: bool
    checkpoint_grace: int | float | str  # before its end the program gets end_signal
    end_signal: str  # such as "USR1"
    on_parent_failure: str  # fail | ignore
    stage_in: Sequence[Any] | None
    preprocess: Sequence[str] | None
    postprocess: Sequence[str] | None
    stage_out: Sequence[Any] | None
    handler: Sequence[str] | None
    input_files: Sequence[str] | None
    data: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The same, checked and complete (seconds; ``wall_time`` ``None``: the site's default)."""

    name: str = ""
    workflow: str = ""
    tags: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    launcher: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    wall_time: int | None = None
    expected_time: float | None = None
    priority: int = 0
    max_retries: int = 0
    retry_on: tuple[str, ...] | None = None
    retry_delay: float | None = None
    restartable: bool = False
    checkpoint_grace: int = 0
    end_signal: str = "TERM"
    on_parent_failure: str = "fail"
    hooks: dict[str, list[Any]] = field(default_factory=dict)
    input_files: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


#: All names that ``set()`` takes.
NAMES = frozenset({*ProgramOptions.__annotations__, "name"})


def changed(base: TaskOptions, changes: Mapping[str, Any]) -> TaskOptions:
    """``base`` with ``changes``.

    Raises:
        InvalidInput: an unknown option (the nearest known one is named), or a value that cannot be
            used.
    """
    if not changes:
        return base
    values: dict[str, Any] = {}
    resources: dict[str, Any] = {}
    hooks = dict(base.hooks)
    for name, value in changes.items():
        if name in RESOURCES:
            resources[name] = _AMOUNTS[name](value, name) if name in _AMOUNTS else value
        elif name in HOOKS:
            hooks[name] = _hook(name, value)
        elif name in _CHECKS:
            values[name] = _CHECKS[name](name, value)
        else:
            raise InvalidInput(unknown(name))
    hooks = {name: hook for name, hook in hooks.items() if hook}
    return dataclasses.replace(
        base, resources=dataclasses.replace(base.resources, **resources), hooks=hooks, **values
    )


def unknown(name: str, also: Iterable[str] = ()) -> str:
    """The line that refuses the option ``name``."""
    near = difflib.get_close_matches(name, [*NAMES, *also], n=1, cutoff=0.0)[0]
    return f"unknown option {name!r}: did you mean {near!r}?"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is {value!r}: give text")
    if len(value) > 200:
        raise InvalidInput(f"{name} is {len(value)} characters long: give 200 at the most")
    return to_text(value, name)


def _tags(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidInput(f"{name} is {value!r}: give a list of text such as ['water']")
    tags = tuple(dict.fromkeys(_text("a tag", tag) for tag in value))
    if "" in tags:
        raise InvalidInput(f"{name} hold an empty tag: remove it")
    return tags


def _launcher(name: str, value: Any) -> str | None:
    if value is not None and value not in LAUNCHERS:
        raise InvalidInput(f"{name} is {value!r}: give one of {', '.join(LAUNCHERS)}")
    return None if value is None else str(value)


def _environment(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping | None):
        raise InvalidInput(f"{name} is {value!r}: give a dict such as {{'OMP_PROC_BIND': 'true'}}")
    checked = {}
    for key, item in (value or {}).items():
        if not isinstance(key, str) or not key or "=" in key or "\0" in key:
            raise InvalidInput(f"{name} names a variable {key!r}: give a name without '='")
        checked[key] = to_text(item, f"{name}[{key!r}]")
    return checked


def _wall_time(name: str, value: Any) -> int | None:
    return None if value is None else parse_duration(value, name)


def _expected_time(name: str, value: Any) -> float | None:
    return None if value is None else float(parse_duration(value, name))


def _priority(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 1_000_000:
        raise InvalidInput(f"{name} is {value!r}: give a whole number; higher ones go first")
    return value


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1_000_000:
        raise InvalidInput(f"{name} is {value!r}: give a whole number of 0 or more")
    return value


def _retry_on(name: str, value: Any) -> tuple[str, ...] | None:
    return None if value is None else checked(name, value)


def _delay(name: str, value: Any) -> float | None:
    return None if value is None else float(parse_pause(value, name))


def _grace(name: str, value: Any) -> int:
    return parse_pause(value, name)


def _end_signal(name: str, value: Any) -> str:
    """The signal's name without ``SIG``."""
    number = signal_number(value) if isinstance(value, str) else None
    if number is None or number in (signal.SIGKILL, signal.SIGSTOP):
        raise InvalidInput(
            f"{name} is {value!r}: give a signal that a program can catch, such as 'USR1'"
        )
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)  # a real-time signal


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} is {value!r}: give True or False")
    return value


def _parent_policy(name: str, value: Any) -> str:
    if value not in ("fail", "ignore"):
        raise InvalidInput(f"{name} is {value!r}: give 'fail' or 'ignore'")
    return str(value)


def _files(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise InvalidInput(f"{name} is {value!r}: give a list of text such as [{value!r}]")
    return tuple(_text(f"an entry of {name}", entry) for entry in value or ())


def _data(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping | None):
        raise InvalidInput(f"{name} is {value!r}: give a dict of JSON values")
    plain = plain_json(dict(value or {}), name)
    assert isinstance(plain, dict)
    return plain


def _hook(name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if name in ("stage_in", "stage_out"):
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
            raise InvalidInput(f"{name} is {value!r}: give a list")
        return list(plain_json(list(value), name))
    check_literal(value)
    return list(value)


#: Resources that are given otherwise than ``Resources`` has them.
_AMOUNTS: dict[str, Callable[[object, str], Any]] = {
    "memory_per_node": parse_bytes,
    "resources_per_node": counts_of,
}
_CHECKS = {
    "name": _text,
    "workflow": _text,
    "tags": _tags,
    "launcher": _launcher,
    "environment": _environment,
    "wall_time": _wall_time,
    "expected_time": _expected_time,
    "priority": _priority,
    "max_retries": _count,
    "retry_on": _retry_on,
    "retry_delay": _delay,
    "restartable": _flag,
    "checkpoint_grace": _grace,
    "end_signal": _end_signal,
    "on_parent_failure": _parent_policy,
    "input_files": _files,
    "data": _data,
}


def plain_json(value: Any, name: str, levels: int = DEPTH) -> Any:
    """``value`` as plain JSON values (paths as text, tuples as lists), nested so deep at most.

    Raises:
        InvalidInput: it holds something that JSON, or a database's JSON column, cannot.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return to_text(value, name)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(f"{name} holds {value}, which JSON cannot: give it as text")
        return value
    if not levels:
        raise InvalidInput(f"{name} is nested too deep: give {DEPTH} levels at most")
    if isinstance(value, Mapping):
        return {_key(key, name): plain_json(item, name, levels - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item, name, levels - 1) for item in value]
    path = getattr(value, "__fspath__", None)
    if path is not None and isinstance(text := path(), str):
        return to_text(text, name)
    raise InvalidInput(
        f"{name} holds {value!r} of type {type(value).__name__}: give text, numbers, lists or dicts"
    )


def _key(key: Any, name: str) -> str:
    if not isinstance(key, str):
        raise InvalidInput(f"{name} holds the key {key!r}: keys are text, so write {str(key)!r}")
    return to_text(key, name)
