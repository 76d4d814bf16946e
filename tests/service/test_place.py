"""Slots are given from SQL's point of view: never twice, never to what is gone."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from sqlalchemy import update

from balsam_celery.ledger import Ledger
from balsam_celery.lookahead import LookAhead
from balsam_celery.placement import place as place_all
from balsam_celery.resources import NodeCapacity, NodeShare
from balsam_celery.service import place, specs, window
from balsam_celery.service.estimates import Estimates
from balsam_celery.service.requests import request_kill
from balsam_celery.states import State
from balsam_celery.store import allocations, scans, schema, standing
from balsam_celery.store.engine import Store
from balsam_celery.store.queries import get_task
from balsam_celery.store.rows import PilotState
from balsam_celery.store.schema import task as task_table
from tests.service.acting import LIMITS, add_pilot, attempts_of, ended, start, started, tell
from tests.store.making import add, program, task

S = State


def test_a_new_leader_knows_what_is_given_out(store: Store) -> None:
    add_pilot(store, (2, 2))
    add(store, *(program(f"t{number:05}") for number in range(10)))
    first = start(store)
    shares = {(share.node, share.cores) for sent in first for share in sent.spec.shares}
    assert len(first) == len(shares) == 4
    assert not start(store)
    tell(store, ended(first[0].spec.id))
    [fifth] = start(store)
    assert fifth.spec.shares == first[0].spec.shares
    row = task(store, fifth.spec.id)
    assert (row.state, row.attempt, row.pilot) == (S.DISPATCHED, 1, "pilot1")
    [attempt] = attempts_of(store, row.id)
    assert (attempt.allocation, attempt.pilot, attempt.nodes) == ("a-pilot1", "pilot1", row.shares)
    assert (attempt.argv, attempt.work_dir) == (
        ["/bin/true"],
        f"/run/work/default/{row.id}.{row.id}/1",
    )


def test_the_ledger_of_one_leader_agrees_with_sql(store: Store) -> None:
    add_pilot(store, (2,))
    add(store, *(program(f"t{number:05}") for number in range(6)))
    ledger = Ledger.empty()
    for _ in range(3):
        done = store.run(
            lambda conn, ledger=ledger: place.start(  # type: ignore[misc]
                conn, ledger, LIMITS, now=store.clock(), who="t"
            )
        )
        assert len(done.sent) == 2
        ledger = done.ledger
        rebuilt = store.run(lambda conn: place.rebuild(conn, LIMITS))
        assert set(rebuilt.pilots["pilot1"].holdings) == set(ledger.pilots["pilot1"].holdings)
        told = tell(store, *(ended(sent.spec.id) for sent in done.sent))
        for pilot, id, attempt in told.left:
            ledger = ledger.give_back(pilot, [(id, attempt)])
    assert not ledger.pilots["pilot1"].holdings


@pytest.mark.parametrize(
    "asked", [{"memory_per_node": 6 << 30}, {"resources_per_node": "licence=2"}]
)
def test_memory_and_resources_are_given_once(store: Store, asked: dict[str, object]) -> None:
    add_pilot(store, (4,), memory=10 << 30, resources=(("licence", 3),))
    add(store, program("t00001", **asked), program("t00002", **asked), program("t00003"))
    first, plain = start(store)
    assert (first.spec.id, plain.spec.id) == ("t00001", "t00003")
    [share] = first.spec.shares
    assert (share.memory, share.resources) in {(6 << 30, ()), (0, (("licence", 2),))}
    # a leader that has just started finds in SQL what is given out
    assert not start(store)
    tell(store, ended("t00001"))
    [second] = start(store)
    assert (second.spec.id, second.spec.shares) == ("t00002", first.spec.shares)


def test_draining_and_ended_pilots_get_nothing(store: Store) -> None:
    add_pilot(store)
    add(store, program("t00001"))
    ledger = store.run(lambda conn: place.rebuild(conn, LIMITS))
    store.run(
        lambda conn: allocations.update_pilot(
            conn, "pilot1", (PilotState.LIVE,), state=PilotState.DRAINING
        )
    )
    done = store.run(lambda conn: place.start(conn, ledger, LIMITS, now=store.clock(), who="test"))
    assert not done.sent
    assert done.ledger.pilots["pilot1"].draining
    store.run(
        lambda conn: allocations.update_pilot(
            conn, "pilot1", (PilotState.DRAINING,), state=PilotState.ENDED
        )
    )
    assert not store.run(lambda conn: place.sync(conn, done.ledger, LIMITS)).pilots


def test_rows_that_contradict_each_other_close_their_pilot(store: Store) -> None:
    add_pilot(store, (2,))
    add(store, *(program(f"t0000{number}") for number in range(4)))
    first, second = start(store)
    same = task(store, first.spec.id).shares
    store.run(
        lambda conn: conn.execute(
            task_table.update().where(task_table.c.id == second.spec.id).values(shares=same)
        )
    )
    tell(store, ended("none00"))
    assert not start(store)


def test_what_fits_is_found_behind_what_does_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "WINDOW", 10)
    add_pilot(store, (2,))
    wide = [program(f"w{number:05}", num_nodes=4, priority=5) for number in range(15)]
    thick = [program(f"c{number:05}", ranks_per_node=3, priority=4) for number in range(15)]
    add(store, *wide, *thick, program("t00001"), program("t00002"), program("t00003"))
    assert [sent.spec.id for sent in start(store)] == ["t00001", "t00002"]


def test_what_has_aged_is_found_behind_any_number_of_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "WINDOW", 5)
    add_pilot(store, (1,))
    add(store, program("old000"))
    newer = [program(f"n{number:05}", priority=2) for number in range(20)]
    add(store, *newer)
    created = store.clock() - 100
    store.run(
        lambda conn: conn.execute(
            task_table.update().where(task_table.c.id == "old000").values(created=created)
        )
    )

    def first(ageing: float) -> str:
        limits = replace(LIMITS, ageing=ageing)
        with store.read() as conn:
            ledger = place.rebuild(conn, limits)
            rules = window.Rules(limits.kill_grace, limits.ageing)
            [one] = window.decide(conn, ledger, rules, store.clock()).decided.placements
        return one.id

    assert first(math.inf).startswith("n")
    assert first(60.0).startswith("n")
    assert first(30.0) == "old000"


def test_the_first_of_all_is_seen_behind_older_ones_of_less_priority(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has aged how much: each of several pilots gets the first of what is left."""
    monkeypatch.setattr(window, "WINDOW", 5)
    add_pilot(store, (1,), id="one")
    add_pilot(store, (1,), id="two")
    add(store, *(program(f"a{number:05}", priority=-9) for number in range(150)))
    add(store, *(program(f"b{number:05}", priority=2) for number in range(3)))
    add(store, *(program(f"c{number:05}", priority=3) for number in range(20)))
    for kind, age in (("a", 400), ("b", 200)):
        _make_older(store, f"{kind}%", age)
    limits = replace(LIMITS, ageing=100.0)
    with store.read() as conn:
        ledger = place.rebuild(conn, limits)
        rules = window.Rules(limits.kill_grace, limits.ageing)
        decided = window.decide(conn, ledger, rules, store.clock()).decided
    assert [one.id for one in decided.placements] == ["b00000", "b00001"]


@pytest.mark.parametrize("seed", range(6))
def test_no_other_task_goes_before_those_in_the_window(
    store: Store, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(window, "WINDOW", 10)
    draw = random.Random(seed)
    add_pilot(store, (1, 1, 1, 1))
    for group in range(60):
        priority = draw.randrange(-12, 1)
        age = -80 * priority + draw.randrange(300)
        tasks = [
            program(
                f"t{group:02}{number:03}",
                num_nodes=draw.randrange(1, 5),
                priority=priority,
            )
            for number in range(10)
        ]
        add(store, *tasks, now=store.clock() - age)
    limits = replace(LIMITS, ageing=100.0)
    with store.read() as conn:
        ledger = place.rebuild(conn, limits)
        rules = window.Rules(limits.kill_grace, limits.ageing)
        looked = window.decide(conn, ledger, rules, store.clock())
        every = window.candidates_of(
            scans.placeable(conn, now=store.clock(), limit=999), limits.kill_grace, 999, Estimates()
        )
    [first, *_] = place_all(ledger, every.values(), store.clock(), ageing=100.0).placements
    assert looked.decided.placements[0].id == first.id


@pytest.mark.parametrize("seed", range(4))
def test_what_is_told_to_go_before_a_task_is_what_placement_starts_before_it(
    store: Store, seed: int
) -> None:
    """Where all that waits fits, the place among what starts is the count of those before."""
    draw = random.Random(seed)
    for group in range(6):
        tasks = [
            program(
                f"t{group:02}{number:03}",
                num_nodes=draw.randrange(1, 3),
                ranks_per_node=draw.randrange(1, 3),
                threads_per_rank=draw.randrange(1, 5),
                threads_per_core=draw.randrange(1, 3),
                node_packing_count=draw.choice([None, 1, 2]),
                wall_time=draw.choice([60, 90]),
                priority=draw.randrange(3),
            )
            for number in range(12)
        ]
        add(store, *tasks, now=store.clock() - draw.randrange(400))
    now, ageing = store.clock(), 100.0
    nodes = tuple(NodeCapacity(f"n{n}", tuple(range(8))) for n in range(150))
    ledger = Ledger.empty().add_pilot("all", nodes, now + 1e6)
    with store.read() as conn:
        every = window.candidates_of(
            scans.placeable(conn, now=now, limit=999), LIMITS.kill_grace, 999, Estimates()
        )
        first = [one.id for one in place_all(ledger, every.values(), now, ageing=ageing).placements]
        assert len(first) == 72
        for count, id in enumerate(first):
            told = standing.ahead(conn, get_task(conn, id), window.SHAPE, now=now, ageing=ageing)
            assert told.total == count


def _make_older(store: Store, like: str, seconds: float) -> None:
    created = task_table.c.created - seconds
    store.run(
        lambda conn: conn.execute(
            task_table.update().where(task_table.c.id.like(like)).values(created=created)
        )
    )


def test_short_tasks_are_sent_ahead_and_taken_back(store: Store) -> None:
    add_pilot(store, (1, 1))
    add(store, *(program(f"t{number:05}", expected_time=0.1) for number in range(10)))
    ahead = LookAhead(tasks=4)
    sent = list(start(store, ahead))
    assert [one.spec.shares[0].queued for one in sent] == [False] * 2 + [True] * 4
    assert not start(store, ahead)
    behind = [one.spec.id for one in sent if one.spec.shares == sent[2].spec.shares]
    assert len(behind) == 2
    # the first ends: the one behind it has its cores, and nothing is given twice
    tell(store, ended(sent[0].spec.id))
    with store.read() as conn:
        ledger = place.rebuild(conn, LIMITS)
    assert ledger.free_cores == 0
    assert len(ledger.pilots["pilot1"].holdings) == 5
    # what it waits for runs on and on
    now = store.clock() + 3 * ahead.patience
    late = store.run(lambda conn: place.start(conn, ledger, LIMITS, now=now, who="test"))
    queued = {(one.spec.id, 1) for one in sent[2:]} - {(behind[0], 1)}
    assert {(task, attempt) for _, _, task, attempt in late.recalled} == queued
    tell(store, ended(behind[1], "killed", started=None, reason="taken back"))
    assert task(store, behind[1]).state is S.RESTART_READY
    assert task(store, behind[1]).failures == 0


def test_one_that_runs_stands_before_one_sent_ahead_when_the_ledger_is_built_again(
    store: Store,
) -> None:
    add_pilot(store, (1,))
    add(store, *(program(f"t{number:05}", expected_time=0.1) for number in range(5)))
    first, second, third = start(store, LookAhead(tasks=2))
    tell(store, ended(first.spec.id))
    tell(store, started(second.spec.id, time=store.clock() + 1))
    with store.read() as conn:
        ledger = place.rebuild(conn, LIMITS)
    [(holding, behind)] = ledger.pilots["pilot1"].queued()
    assert (holding.id, behind) == (second.spec.id, ((third.spec.id, 1),))


def test_many_shapes_that_no_pilot_can_hold_hide_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "WINDOW", 10)
    monkeypatch.setattr(window, "MOST_SHAPES", 5)
    add_pilot(store, (1,))
    wide = [program(f"w{n:05}", num_nodes=2, wall_time=100 + n) for n in range(60)]
    add(store, *wide, program("t00001"))
    assert [sent.spec.id for sent in start(store)] == ["t00001"]


def test_what_found_room_is_placed_once_though_two_windows_show_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "WINDOW", 4)
    add_pilot(store, (4,))
    wide = [program(f"w{number:05}", num_nodes=4) for number in range(4)]
    thin = [program(f"t{number:05}", priority=5) for number in range(2)]
    add(store, *thin, *wide)
    assert [sent.spec.id for sent in start(store)] == ["t00000", "t00001"]
    with store.read() as conn:
        rebuilt = place.rebuild(conn, LIMITS)
    assert len(rebuilt.pilots["pilot1"].holdings) == 2


def test_what_is_killed_or_not_yet_due_is_not_started(store: Store) -> None:
    add_pilot(store)
    add(store, program("t00001"), program("t00002", not_before=5000.0))
    request_kill(store, ["t00001"], "x")
    assert not start(store)


def test_a_gang_task_goes_to_the_gang_worker(store: Store) -> None:
    add_pilot(store, (2, 2))
    add(store, program("t00001", num_nodes=2))
    [sent] = start(store)
    assert sent.worker == "gang"
    assert sent.spec.shares == (NodeShare("n0", (0, 1)), NodeShare("n1", (0, 1)))


def test_names_in_paths() -> None:
    assert specs.slug("../../etc/passwd", "task") == "etc-passwd"
    assert specs.slug("..", "task") == "task"
    assert specs.slug("", "task") == "task"
    assert specs.slug("Wasser über 100 °C", "task") == "Wasser-ber-100-C"
    assert len(specs.slug("x" * 300, "task")) == 60


def test_a_pilot_that_cannot_be_read_keeps_no_other_from_its_tasks(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that nothing of this release has written."""
    add_pilot(store, (2,), id="p1")
    add_pilot(store, (2,), id="p2")
    broken = update(schema.pilot).where(schema.pilot.c.id == "p1")
    with store.write() as conn:
        conn.execute(broken.values(nodes=[{"nonsense": 1}]))
    add(store, program("t00001"))
    ledger = store.run(lambda conn: place.rebuild(conn, LIMITS))
    [sent] = start(store)
    assert sent.pilot == "p2"
    caplog.clear()
    store.run(lambda conn: place.sync(conn, ledger, LIMITS))
    assert not caplog.records, "it was told already"
