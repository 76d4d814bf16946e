"""Nodes that fail what they are given: noticed from the ends of attempts, and put aside.

The service decides it, not the pilot, whose workers know nothing of each other's ends. It keeps
what it has seen in memory: a service that starts anew needs a few more failures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from sqlalchemy import Connection, bindparam, update

from balsam_celery.ledger import Ledger
from balsam_celery.service import pilots
from balsam_celery.service.cases import Batch
from balsam_celery.service.requests import retry_batch
from balsam_celery.settings import RetrySettings
from balsam_celery.states import FINAL, State
from balsam_celery.store import schema
from balsam_celery.suspects import Rule, Run, Suspect, suspects, verdict_of
from balsam_celery.wire import Ended

#: Ends that are remembered: so many tasks of a broken node come back at the most.
_MOST = 2000


def rule_of(retry: RetrySettings) -> Rule:
    """The rule of ``site.toml``."""
    return Rule(retry.bad_node_tasks, float(retry.bad_node_time))


class Watch:
    """What the service has seen of the nodes of all pilots, each named ``(pilot, node)`` here."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._runs: deque[Run] = deque(maxlen=_MOST)
        self._trail: dict[str, int] = {}  # ends since the last good one, by node
        self._aside: dict[str, str] = {}  # reason by node
        self._again: set[str] = set()  # tasks that were given back once

    def note(
        self, ends: Sequence[tuple[str, str, Ended]], ledger: Ledger, now: float
    ) -> list[tuple[str, Suspect]]:
        """Take in ends; returns the nodes to put aside, with their pilots.

        Of a node that is aside already, those tasks that ended there since, and nowhere else badly.
        """
        self._forget(ledger)
        found: list[Suspect] = []
        for pilot, node, ended in ends:
            verdict = verdict_of(ended, self._rule.within)
            if verdict is None or pilot not in ledger.pilots:
                continue
            key = f"{pilot}/{node}"
            reason = ended.reason or f"exit code {ended.exit_code}"
            self._runs.append(Run(key, ended.id, verdict, reason))
            self._trail[key] = 0 if verdict == "good" else self._trail.get(key, 0) + 1
            if key in self._aside and verdict == "bad" and self._fails_only(ended.id, key):
                found.append(Suspect(key, self._aside[key], (ended.id,)))
        least = min(self._rule.tasks or self._rule.starts, self._rule.starts)
        if any(length >= least for key, length in self._trail.items() if key not in self._aside):
            found += self._judge(ledger, now)
        return [self._once(one) for one in found]

    def _fails_only(self, task: str, key: str) -> bool:
        bad = (run.node for run in self._runs if run.task == task and run.verdict == "bad")
        return all(node == key for node in bad)

    def _forget(self, ledger: Ledger) -> None:
        """Let go of pilots that have ended; what ran there still tells of its tasks."""
        for book in (self._trail, self._aside):
            for key in [key for key in book if key.partition("/")[0] not in ledger.pilots]:
                del book[key]
        if not self._aside:
            self._again.clear()

    def _judge(self, ledger: Ledger, now: float) -> list[Suspect]:
        nodes, running = set(), []
        for pilot, free in ledger.pilots.items():
            if not free.draining:
                usable = (node.capacity.name for node in free.nodes if not node.lost)
                nodes |= {f"{pilot}/{name}" for name in usable} - self._aside.keys()
            # what runs for longer than bad ones do speaks for its node as a good end does
            running += [
                Run(f"{pilot}/{one.shares[0].node}", one.id, "good")
                for one in free.holdings.values()
                if len(one.shares) == 1
                and not one.shares[0].queued
                and now - one.since > self._rule.within
            ]
        return suspects([*running, *self._runs], nodes, self._rule)

    def _once(self, one: Suspect) -> tuple[str, Suspect]:
        """A task is given back once; if it fails elsewhere too, that is its own."""
        self._aside.setdefault(one.node, one.reason)
        tasks = tuple(task for task in one.tasks if task not in self._again)
        self._again.update(tasks)
        pilot, _, node = one.node.partition("/")
        return pilot, Suspect(node, one.reason, tasks)


def put_aside(batch: Batch, pilot: str, one: Suspect) -> None:
    """Start nothing more on a node; its failures are not its tasks', which run elsewhere."""
    pilots.puts_aside(batch.conn, pilot, one.node, one.reason)
    batch.load(one.tasks)
    cases = [batch.cases[id] for id in one.tasks if id in batch.cases]
    failed = [case.row.id for case in cases if case.state is State.FAILED]
    if failed:
        retry_batch(batch, failed, f"node {one.node} was put aside: {one.reason}")
    others = [case.row.id for case in cases if case.state not in FINAL and case.failures]
    _forgive(batch.conn, [id for id in others if id not in failed])


def _forgive(conn: Connection, ids: Collection[str]) -> None:
    """One failure less, and no pause before the next attempt."""
    if ids:
        task = schema.task
        conn.execute(
            update(task)
            .where(task.c.id == bindparam("b_id"))
            .values(failures=task.c.failures - 1, not_before=0.0),
            [{"b_id": id} for id in sorted(ids)],
        )
