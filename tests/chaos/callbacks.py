"""Hooks and errbacks: each has run for what it belongs to, and for nothing else. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.chaos.ledger import Line, successes
from tests.chaos.workload import RULES, Task


def wrong_callbacks(
    names: Mapping[str, Task],
    lines: Sequence[Line],
    attempts: Iterable[Mapping[str, Any]],
) -> list[str]:
    """What did not run, or ran for another attempt or task, in words.

    How often one ran for its attempt is the business of ``ledger.run_twice``.

    Args:
        names: all tasks that there must be, by id.
        lines: the ledger.
        attempts: rows of the table ``attempt``.
    """
    codes: dict[str, dict[int, int]] = {}
    for one in attempts:
        if one["outcome"] == "exit":
            codes.setdefault(one["task"], {})[one["number"]] = one["exit_code"]
    started: dict[str, set[int]] = {}
    told: dict[str, list[Line]] = {}
    for line in lines:
        if line.what == "start" and line.is_hook:
            started.setdefault(line.task, set()).add(line.attempt)
        elif line.what == "told":
            told.setdefault(line.task, []).append(line)
    done = successes(lines)
    found = []
    for id, task in names.items():
        for step in RULES[task.kind].hooks:
            hook = f"{id}:{step}"
            wanted = _attempts(step, codes.get(id, {}))
            ran = started.pop(hook, set())
            if ran != wanted or not wanted <= done.get(hook, set()):
                ended = sorted(done.get(hook, ()))
                found.append(
                    f"{hook} began for the attempts {sorted(ran)} and ended well for {ended},"
                    f" not for {sorted(wanted)}"
                )
        if task.kind.startswith("errback"):
            failed = id.removesuffix(f"-{task.kind}")
            of = told.pop(id, [])
            found += [f"{id} was told of {line.last}" for line in of if line.last != failed]
            if not {line.attempt for line in of} & done.get(id, set()):
                found.append(f"{id} was not told that {failed} has failed")
    found += [f"{hook} ran, and nobody asked for it" for hook in started]
    found += [f"{id} was told of a failure, and nobody asked for it" for id in told]
    return found


def _attempts(step: str, codes: Mapping[int, int]) -> set[int]:
    """Attempts for which a hook must run, by the recorded exits of its task."""
    if step == "preprocess":
        return {0}
    return {number for number, code in codes.items() if (code != 0) == (step == "handler")}
