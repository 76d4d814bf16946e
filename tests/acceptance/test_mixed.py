"""2,000 mixed tasks through overlapping pilots, one of them killed on the way."""

from __future__ import annotations

import os
import signal
from collections import Counter, defaultdict

import redis
from sqlalchemy import select

from balsam_celery.states import TRANSITIONS, State
from balsam_celery.store import schema
from tests.acceptance.live import LiveSite
from tests.waiting import wait_until

SCRIPT = """
import json, os, sys
from balsam_celery import program, submit_many, wait
ledger = sys.argv[1] if len(sys.argv) > 1 else LEDGER
code = '''echo "$BALSAM_TASK_ID $BALSAM_ATTEMPT" >> "$1"; [ "$2" = fail ] && exit 7
[ "$2" = flaky ] && [ "$BALSAM_ATTEMPT" = 1 ] && exit 3; exit 0'''
mixed = program("mixed", ["/bin/sh", "-c", code, "sh", "{0}", "{1}"], workflow="mixed",
                wall_time="1m", launcher="none")
signatures = []
for n in range(2000):
    kind = "fail" if n % 20 == 0 else "flaky" if n % 20 == 1 else "ok"
    shape = [dict(), dict(node_packing_count=1), dict(node_packing_count=2),
             dict(ranks_per_node=2)][n % 4]
    if n % 50 == 25:
        shape = dict(num_nodes=2)
    if n % 100 == 77:
        shape = dict(num_nodes=4)
    signatures.append(mixed.s(ledger, kind).set(
        name=f"mixed-{kind}", max_retries=1 if kind == "flaky" else 0, retry_delay=0, **shape))
results = submit_many(signatures)
print(json.dumps([r.id for r in results]))
"""


def test_two_thousand(live: LiveSite) -> None:
    ledger = live.site.directory / "ledger"
    ids = live.python(SCRIPT.replace("LEDGER", repr(str(ledger))))
    assert len(set(ids)) == 2000

    def live_pilots() -> list[int]:
        with live.store.read() as conn:
            pilot = schema.pilot.c
            return list(conn.scalars(select(pilot.pid).where(pilot.state == "LIVE")))

    def done() -> int:
        with live.store.read() as conn:
            task = schema.task.c
            query = select(task.id).where(task.workflow == "mixed", task.finished.is_not(None))
            return len(conn.execute(query).all())

    wait_until(lambda: done() > 200 and len(live_pilots()) >= 2, 120, "two pilots at work")
    os.kill(live_pilots()[0], signal.SIGKILL)
    wait_until(lambda: done() == 2000, 200, "all 2,000 final")

    rows = {row.id: row for row in live.tasks(workflow="mixed")}
    expected = {"mixed-ok": "JOB_FINISHED", "mixed-flaky": "JOB_FINISHED", "mixed-fail": "FAILED"}
    wrong = [
        (r.id, r.name, r.state, r.reason) for r in rows.values() if r.state != expected[r.name]
    ]
    assert wrong == []
    assert Counter(row.name for row in rows.values()) == {
        "mixed-ok": 1800, "mixed-flaky": 100, "mixed-fail": 100,
    }  # fmt: skip
    with live.store.read() as conn:
        attempts = conn.execute(select(schema.attempt).where(schema.attempt.c.task.in_(ids))).all()
        events = conn.execute(
            select(schema.event).where(schema.event.c.task.in_(ids)).order_by(schema.event.c.id)
        ).all()
    successes = Counter(
        attempt.task for attempt in attempts if attempt.exit_code == 0 and attempt.outcome == "exit"
    )
    good = {id for id, row in rows.items() if row.state == "JOB_FINISHED"}
    assert successes == dict.fromkeys(good, 1)
    assert all(attempt.ended is not None for attempt in attempts)
    check_histories(events)
    check_ledger(ledger.read_text(), {(a.task, a.number) for a in attempts})


def check_histories(events: list) -> None:
    """Every event follows the one before it, along the table of states."""
    where: dict[str, str | None] = defaultdict(lambda: None)
    for event in events:
        assert event.from_state == where[event.task], event
        if event.from_state is not None:
            assert State(event.to_state) in TRANSITIONS[State(event.from_state)], event
        where[event.task] = event.to_state


def check_ledger(text: str, recorded: set[tuple[str, int]]) -> None:
    """What ran is what SQL says: no attempt ran twice, none without a row."""
    ran = Counter(tuple(line.split()) for line in text.splitlines())
    assert not {key: count for key, count in ran.items() if count > 1}
    assert {(id, int(number)) for id, number in ran} <= recorded


def test_redis_holds_queues_and_sql_the_backlog(live: LiveSite) -> None:
    """R6: thousands wait in SQL, Redis holds no more than the pilots can start."""
    live.balsam("submit", "--array", "1-3000", "--workflow", "deep", "--", "sleep", "0.2")
    wait_until(lambda: live.tasks(workflow="deep", states=("RUNNING",)), 60, "some run")
    prefix = live.site.settings.key_prefix
    with redis.Redis.from_url(live.site.redis_url()) as client:
        queues = [k for k in client.scan_iter(f"{prefix}pilot.*") if client.type(k) == b"list"]
        waiting = sum(client.llen(key) for key in queues)
    assert waiting <= 64
    assert len(live.tasks(workflow="deep", states=("PREPROCESSED",))) > 1000
    live.balsam("kill", "--workflow", "deep", "--yes")
    wait_until(
        lambda: all(
            row.state in ("USER_KILLED", "JOB_FINISHED") for row in live.tasks(workflow="deep")
        ),
        90,
        "all killed",
    )
    assert live.json("ls", "--workflow", "deep", "--state", "RUNNING")["tasks"] == []
