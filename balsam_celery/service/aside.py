"""Nodes that fail what they are given: noticed from the ends of attempts, and put aside.

The service decides it, not the pilot, whose workers know nothing of each other's ends. It keeps
what it has seen in memory: a service that starts anew needs a few more failures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

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

#: Ends that are remembered of a pilot.
_MOST = 500


def rule_of(retry: RetrySettings) -> Rule:
    """The rule of ``site.toml``."""
    return Rule(retry.bad_node_tasks, float(retry.bad_node_time))


@dataclass(slots=True)
class _Seen:
    runs: deque[Run] = field(default_factory=lambda: deque(maxlen=_MOST))
    aside: dict[str, str] = field(default_factory=dict)  # reason by node
    again: set[str] = field(default_factory=set)  # tasks that were given back once


class Watch:
    """What the service has seen of the nodes of each pilot."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._seen: dict[str, _Seen] = {}

    def note(
        self, ends: Sequence[tuple[str, str, Ended]], ledger: Ledger, now: float
    ) -> list[tuple[str, Suspect]]:
        """Take in ends; returns the nodes to put aside, with their pilots.

        Of a node that is aside already, those tasks that ended there since.
        """
        for gone in self._seen.keys() - ledger.pilots.keys():
            del self._seen[gone]
        found: list[tuple[str, Suspect]] = []
        failing: set[str] = set()
        for pilot, node, ended in ends:
            verdict = verdict_of(ended, self._rule.within)
            if verdict is None or pilot not in ledger.pilots:
                continue
            seen = self._seen.setdefault(pilot, _Seen())
            reason = ended.reason or f"exit code {ended.exit_code}"
            seen.runs.append(Run(node, ended.id, verdict, reason))
            if verdict == "good":
                continue
            if node in seen.aside and verdict == "bad":
                found.append((pilot, Suspect(node, seen.aside[node], (ended.id,))))
            failing.add(pilot)
        for pilot in sorted(failing):
            found += [(pilot, one) for one in self._judge(pilot, ledger, now)]
        return [(pilot, self._once(pilot, one)) for pilot, one in found]

    def _judge(self, pilot: str, ledger: Ledger, now: float) -> list[Suspect]:
        seen, free = self._seen[pilot], ledger.pilots[pilot]
        nodes = {node.capacity.name for node in free.nodes if not node.lost} - seen.aside.keys()
        # what runs for longer than bad ones do speaks for its node as a good end does
        running = [
            Run(one.shares[0].node, one.id, "good")
            for one in free.holdings.values()
            if len(one.shares) == 1
            and not one.shares[0].queued
            and now - one.since > self._rule.within
        ]
        return suspects([*running, *seen.runs], nodes, self._rule)

    def _once(self, pilot: str, one: Suspect) -> Suspect:
        """A task is given back once; if it fails elsewhere too, that is its own."""
        seen = self._seen[pilot]
        seen.aside.setdefault(one.node, one.reason)
        tasks = tuple(task for task in one.tasks if task not in seen.again)
        seen.again.update(tasks)
        return Suspect(one.node, one.reason, tasks)


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
