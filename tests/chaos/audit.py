"""What must be true after the faults: pure, over the tasks asked for, the ledger and SQL's rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from balsam_celery.states import FINAL, TRANSITIONS, State
from tests.chaos import ledger
from tests.chaos.callbacks import wrong_callbacks
from tests.chaos.ledger import Line
from tests.chaos.plan import Injected
from tests.chaos.workload import RULES, Task, named

#: Faults that kill the transitions worker; of an earlier life's, ``balsam up`` does.
KILL_HOOKS = ("kill:transitions", "kill:supervisor")


@dataclass
class Findings:
    """What is wrong, by what it is called; each in words. All empty: the run has passed.

    Attributes:
        lost: tasks that are not there, or not final.
        wrong: tasks that ended otherwise than they had to.
        twice: tasks with more than one recorded success, or attempts that started more than once.
        overlapped: attempts that ran while an earlier one of the same task lived.
        unmatched: outcomes without a row, or rows without an outcome.
        histories: events that do not follow each other along the table of states.
        orphans: processes left.
        keys: what dead pilots left in Redis.
        owed: effects that were not performed, or results that are missing or not the row's.
        callbacks: hooks and errbacks that did not run, or for another attempt or task.
    """

    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    overlapped: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    histories: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    owed: list[str] = field(default_factory=list)
    callbacks: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {name: len(several) for name, several in vars(self).items()}

    def told(self) -> list[str]:
        """All of them, a line each."""
        return [f"{name}: {one}" for name, several in vars(self).items() for one in several]


def audit(
    site: str,
    asked: Sequence[Task],
    lines: Sequence[Line],
    rows: Sequence[Mapping[str, Any]],
    attempts: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
    injected: Sequence[Injected] = (),
) -> Findings:
    """Look at what can be told from tasks, ledger and SQL alone.

    Args:
        site: its id.
        asked: the tasks that were submitted.
        lines: the ledger.
        rows: of the table ``task``.
        attempts: of ``attempt``.
        events: of ``event``, by id.
        injected: the faults.
    """
    found = Findings()
    by_id = {row["id"]: row for row in rows}
    tries: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for attempt in attempts:
        tries[attempt["task"]].append(attempt)
    names = named(site, asked)
    found.unmatched += [f"{id}: nobody asked for it" for id in by_id.keys() - names.keys()]
    for id, task in names.items():
        row = by_id.get(id)
        if row is None:
            found.lost.append(f"{id} ({task.kind}) has no row")
        elif State(row["state"]) not in FINAL:
            found.lost.append(f"{id} ({task.kind}) is {row['state']}: {row['reason']}")
        else:
            _one(found, id, task, row, tries[id])
    found.overlapped += ledger.overlaps(lines)
    found.twice += ledger.run_twice(lines, [one for one in injected if one.kind in KILL_HOOKS])
    found.unmatched += _unmatched(lines, attempts)
    found.callbacks += wrong_callbacks(names, lines, attempts)
    found.histories += histories(events)
    return found


def _one(
    found: Findings,
    id: str,
    task: Task,
    row: Mapping[str, Any],
    tries: Iterable[Mapping[str, Any]],
) -> None:
    """A final task: is that its rightful end, and was it reached once?"""
    rule = RULES[task.kind]
    if row["state"] != rule.state:
        reason = f"{row['reason']}: {_told(tries)}"
        found.wrong.append(f"{id} ({task.kind}) is {row['state']}, not {rule.state}: {reason}")
        return
    codes = Counter(map(_status, tries))
    if codes[0] > 1:
        found.twice.append(f"{id} ({task.kind}) has {codes[0]} recorded successes")
    elif rule.status is not None and codes[rule.status] != rule.decisive:
        exits = f"{dict(codes)}: {_told(tries)}"
        found.wrong.append(f"{id} ({task.kind}) has the recorded exits {exits}")


def _status(attempt: Mapping[str, Any]) -> int | None:
    """Recorded exit status of an attempt, of a step 0 or 1; ``None`` if it ended otherwise."""
    if attempt["outcome"] == "exit":
        return int(attempt["exit_code"])
    return {"SUCCESS": 0, "FAILURE": 1}.get(attempt["outcome"])


def _told(tries: Iterable[Mapping[str, Any]]) -> str:
    """What is recorded of the attempts of a task, a line each."""
    lines = []
    for one in tries:
        told = str(one.get("stderr_tail") or "").strip()[-300:]
        names = ("number", "pilot", "nodes", "started", "ended", "outcome", "reason")
        lines.append(f"\n    {[one.get(name) for name in names]} {told!r}")
    return "".join(lines)


def _unmatched(lines: Sequence[Line], attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    known = {(one["task"], one["number"]) for one in attempts}
    ran = {(line.task, line.attempt) for line in lines if not line.is_hook}
    found += [f"{task}: attempt {number} ran without a row" for task, number in ran - known]
    good = ledger.successes(lines)
    for one in attempts:
        who = f"{one['task']}: attempt {one['number']}"
        if one["ended"] is None or one["outcome"] is None:
            found.append(f"{who} has no outcome")
        elif _status(one) == 0 and one["number"] not in good.get(one["task"], ()):
            found.append(f"{who} is recorded as a success that no program tells of")
    return found


def histories(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Events that do not follow the one before along the table of states, in words."""
    found = []
    where: dict[str, str | None] = {}
    for event in events:
        task, source, target = event["task"], event["from_state"], event["to_state"]
        before = where.get(task)
        if source != before:
            found.append(f"{task}: {source} → {target} after {before}")
        elif source is not None and State(target) not in TRANSITIONS[State(source)]:
            found.append(f"{task}: {source} → {target}")
        where[task] = target
    return found


def done_again(lines: Sequence[Line]) -> int:
    """Tasks whose program ran to a good end more than once.

    No fault: whoever was to write the end down was killed before it could.
    """
    programs = [line for line in lines if not line.is_hook]
    return sum(len(attempts) > 1 for attempts in ledger.successes(programs).values())
