"""Nodes that are to be put aside: whatever starts there fails, and elsewhere it does not.  Pure.

A broken node (a lost mount, a dead GPU) ends what it is given within seconds, so it is given more
than any other and eats the backlog. Tasks that are broken themselves look alike from there, so a
node is suspected only for tasks that failed nowhere else, and for more of them in a row than the
failures elsewhere let expect.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from balsam_celery.durations import format_duration
from balsam_celery.wire import Ended

Verdict = Literal["good", "bad", "unfit"]


@dataclass(frozen=True, slots=True)
class Rule:
    """When a node is put aside.

    Attributes:
        tasks: so many different tasks failed on it, one after the other; 0: never.
        within: seconds from their start in which they did.
        starts: so many starts in a row were impossible for the node's own sake.
        chance: that so many would fail in a row on a good node, at the most. Of a million tasks of
            which every eighth fails, about one such row is nobody's fault.
    """

    tasks: int = 5
    within: float = 10.0
    starts: int = 3
    chance: float = 1e-7


@dataclass(frozen=True, slots=True)
class Run:
    """An attempt on one node that has ended, or runs for longer than a bad one would.

    ``reason`` is of its end.
    """

    node: str
    task: str
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A node to put aside, why, and the tasks for whose failures it is to blame."""

    node: str
    reason: str
    tasks: tuple[str, ...]


def verdict_of(ended: Ended, within: float) -> Verdict | None:
    """What an end says of its node; ``None``: nothing."""
    if ended.outcome == "unfit":
        # where a launcher was started it is the batch system that could not start its ranks
        return "unfit" if ended.started is None else None
    if ended.outcome not in ("exit", "signal", "timeout", "cannot-start"):
        return None
    if ended.outcome == "exit" and ended.exit_code == 0:
        return "good"
    ran = 0.0 if ended.started is None else ended.ended - ended.started
    return "bad" if ran <= within else "good"


def suspects(runs: Sequence[Run], nodes: Collection[str], rule: Rule) -> list[Suspect]:
    """The nodes to put aside; for tasks that fail there alone not the last one.

    Args:
        runs: oldest first.
        nodes: those that may be used.
        rule: see there.
    """
    found: list[Suspect] = []
    by_node: dict[str, list[Run]] = {node: [] for node in nodes}
    for run in runs:
        by_node.setdefault(run.node, []).append(run)
    bad_on = _bad_on(runs)
    for node in sorted(nodes):
        suspect = _unfit(node, by_node[node], rule)
        if suspect is None and len(nodes) - len(found) > 1:
            suspect = _bad(node, by_node, bad_on, rule)
        if suspect is not None:
            found.append(suspect)
    return found


def _bad_on(runs: Sequence[Run]) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for run in runs:
        if run.verdict == "bad":
            found.setdefault(run.task, set()).add(run.node)
    return found


def _unfit(node: str, own: Sequence[Run], rule: Rule) -> Suspect | None:
    last = own[-rule.starts :]
    if len(last) < rule.starts or any(run.verdict != "unfit" for run in last):
        return None
    reason = f"{rule.starts} starts in a row were impossible there; the last: {last[-1].reason}"
    return Suspect(node, reason, ())


def _bad(
    node: str,
    by_node: Mapping[str, Sequence[Run]],
    bad_on: Mapping[str, set[str]],
    rule: Rule,
) -> Suspect | None:
    tasks: dict[str, Run] = {}
    for run in reversed(by_node[node]):
        if run.verdict != "bad":
            break
        if bad_on[run.task] == {node}:
            tasks.setdefault(run.task, run)
    if not rule.tasks or len(tasks) < rule.tasks:
        return None
    elsewhere = [run for other, own in by_node.items() if other != node for run in own]
    good = sum(run.verdict == "good" for run in elsewhere)
    bad = sum(run.verdict == "bad" for run in elsewhere)
    # Laplace's rule of succession
    usual = (bad + 1) / (good + bad + 2)
    if not good or usual ** len(tasks) > rule.chance:
        return None
    last = next(iter(tasks.values()))
    reason = (
        f"{len(tasks)} different tasks in a row failed there within"
        f" {format_duration(rule.within)} of their start, while others run well elsewhere;"
        f" the last: {last.reason}"
    )
    return Suspect(node, reason, tuple(reversed(tasks)))
