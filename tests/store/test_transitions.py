"""Moves: guarded, in order, each with its event."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsam_celery.states import FINAL, TRANSITIONS, State, is_legal
from balsam_celery.store.engine import Store
from balsam_celery.store.queries import events
from balsam_celery.store.transitions import IllegalTransition, Move, move
from tests.store.making import SUCCESS, add, history, program, race, task, walk

DISPATCH = Move("task-1", State.PREPROCESSED, State.DISPATCHED, values={"attempt": 1, "pilot": "p"})


def test_move_sets_columns_and_writes_event(store: Store) -> None:
    add(store, program("task-1"))
    with store.write() as conn:
        assert move(conn, [DISPATCH], now=1500.0, who="service") == {0}
    row = task(store, "task-1")
    assert (row.state, row.attempt, row.pilot, row.changed) == (State.DISPATCHED, 1, "p", 1500.0)
    with store.read() as conn:
        last = events(conn, "task-1")[-1]
    assert (last.from_state, last.to_state) == (State.PREPROCESSED, State.DISPATCHED)
    assert (last.time, last.who) == (1500.0, "service")


def test_several_moves_of_one_task_in_one_call(store: Store) -> None:
    add(store, program("task-1"))
    walk(store, "task-1", SUCCESS, result={"exit_code": 0})
    row = task(store, "task-1")
    assert (row.state, row.result, row.finished) == (State.JOB_FINISHED, {"exit_code": 0}, 1000.0)
    assert history(store, "task-1") == [State.CREATED, State.READY, *SUCCESS]


def test_event_keeps_the_time_at_which_it_happened(store: Store) -> None:
    add(store, program("task-1"))
    with store.write() as conn:
        move(conn, [dataclasses.replace(DISPATCH, time=1234.5)], now=1500.0, who="service")
    with store.read() as conn:
        assert events(conn, "task-1")[-1].time == 1234.5
    assert task(store, "task-1").changed == 1500.0


@pytest.mark.parametrize(
    "stale",
    [
        Move("task-1", State.RUNNING, State.RUN_DONE),  # state
        Move("task-1", State.PREPROCESSED, State.DISPATCHED, attempt=3),  # attempt
        Move("task-9", State.PREPROCESSED, State.DISPATCHED),  # no such task
    ],
    ids=["state", "attempt", "task"],
)
def test_stale_move_changes_nothing(store: Store, stale: Move) -> None:
    add(store, program("task-1"))
    before = task(store, "task-1")
    with store.write() as conn:
        assert move(conn, [stale], now=1500.0, who="service") == set()
    assert task(store, "task-1") == before
    assert len(history(store, "task-1")) == 3


def test_moves_after_a_lost_one_of_the_same_task_are_lost(store: Store) -> None:
    add(store, program("task-1"), program("task-2"))
    moves = [
        Move("task-1", State.PREPROCESSED, State.DISPATCHED, values={"attempt": 1}),
        Move("task-2", State.PREPROCESSED, State.DISPATCHED, values={"attempt": 1}),
        Move("task-1", State.RUNNING, State.RUN_DONE, attempt=1),  # it is only DISPATCHED
        Move("task-1", State.DISPATCHED, State.RUNNING, attempt=1),
        Move("task-2", State.DISPATCHED, State.RUNNING, attempt=1),
    ]
    with store.write() as conn:
        assert move(conn, moves, now=1500.0, who="service") == {0, 1, 4}
    assert task(store, "task-1").state is State.DISPATCHED
    assert task(store, "task-2").state is State.RUNNING


def test_finished_is_set_at_the_end_and_cleared_by_retry(store: Store) -> None:
    add(store, program("task-1"))
    walk(store, "task-1", [State.PREPROCESSED, State.FAILED], now=1100.0)
    assert task(store, "task-1").finished == 1100.0
    walk(store, "task-1", [State.FAILED, State.RESTART_READY], now=1200.0)
    assert task(store, "task-1").finished is None


def test_illegal_move_does_nothing_at_all(store: Store) -> None:
    add(store, program("task-1"))
    wrong = Move("task-1", State.PREPROCESSED, State.JOB_FINISHED)
    with store.write() as conn, pytest.raises(IllegalTransition, match="task-1"):
        move(conn, [DISPATCH, wrong], now=1500.0, who="service")
    assert task(store, "task-1").state is State.PREPROCESSED


def test_state_cannot_be_set_past_the_table(store: Store) -> None:
    add(store, program("task-1"))
    wrong = Move("task-1", State.PREPROCESSED, State.DISPATCHED, values={"state": "JOB_FINISHED"})
    with store.write() as conn, pytest.raises(ValueError, match="state"):
        move(conn, [wrong], now=1500.0, who="service")


def test_more_tasks_than_a_statement_takes_parameters(store: Store) -> None:
    number = 40_000
    ghosts = [Move(f"ghost-{i}", State.READY, State.PREPROCESSED) for i in range(number)]
    with store.write() as conn:
        assert move(conn, ghosts, now=1500.0, who="service") == set()


@pytest.mark.parametrize("batch", [1, 25])
def test_of_racing_moves_exactly_one_wins(store: Store, batch: int) -> None:
    ids = [f"task-{index}" for index in range(batch)]
    add(store, *(program(id) for id in ids))

    def attack(index: int) -> set[str]:
        # half of them in the other order: they must not wait for each other for ever
        mine = ids if index % 2 else ids[::-1]
        moves = [
            Move(id, State.PREPROCESSED, State.DISPATCHED, attempt=0,
                 values={"attempt": 1, "pilot": f"pilot-{index}"})
            for id in mine
        ]  # fmt: skip
        won = store.run(lambda conn: move(conn, moves, now=1500.0, who=f"mover-{index}"))
        return {mine[i] for i in won}

    wins = race(8, attack)
    for id in ids:
        winners = [index for index, won in enumerate(wins) if id in won]
        assert len(winners) == 1
        assert task(store, id).pilot == f"pilot-{winners[0]}"
        assert history(store, id).count(State.DISPATCHED) == 1


_LEGAL = [(source, target) for source, targets in TRANSITIONS.items() for target in targets]
_numbers = itertools.count()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batches=st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 2),
                st.sampled_from(_LEGAL),
                st.one_of(st.none(), st.integers(0, 2)),
                st.one_of(st.none(), st.integers(0, 2)),
            ),
            max_size=12,
        ),
        max_size=6,
    ),
    walks=st.lists(st.tuples(st.integers(0, 2), st.randoms(use_true_random=False)), max_size=12),
)
def test_any_moves_leave_legal_histories(
    store: Store,
    batches: list[list[tuple[int, tuple[State, State], int | None, int | None]]],
    walks: list[tuple[int, object]],
) -> None:
    """Whatever is asked, in whatever batches: the store does what a plain model does."""
    run = next(_numbers)
    ids = [f"run{run:05}-{index}" for index in range(3)]
    add(store, *(program(id) for id in ids))
    model = dict.fromkeys(ids, (State.PREPROCESSED, 0))
    expected = {id: [State.CREATED, State.READY, State.PREPROCESSED] for id in ids}

    def follow(moves: list[Move]) -> None:
        lost, won = set(), set()
        for index, one in enumerate(moves):
            state, attempt = model[one.id]
            fits = state is one.source and one.attempt in (None, attempt)
            if one.id in lost or not fits:
                lost.add(one.id)
                continue
            won.add(index)
            model[one.id] = (one.target, int(one.values.get("attempt", attempt)))
            expected[one.id].append(one.target)
        assert store.run(lambda conn: move(conn, moves, now=2000.0, who="test")) == won

    for batch in batches:
        follow(
            [
                Move(ids[i], source, target, attempt=guard,
                     values={} if attempt is None else {"attempt": attempt})
                for i, (source, target), guard, attempt in batch
            ]
        )  # fmt: skip
    for index, random in walks:
        # steps that do fit, so that long histories come up too
        source = model[ids[index]][0]
        target = random.choice(sorted(TRANSITIONS[source]) or [source])  # type: ignore[attr-defined]
        if target is not source:
            follow([Move(ids[index], source, target)])

    for id in ids:
        row = task(store, id)
        assert (row.state, row.attempt) == model[id]
        assert (row.finished is not None) == (row.state in FINAL)
        seen = history(store, id)
        assert seen == expected[id]
        assert all(is_legal(a, b) for a, b in itertools.pairwise(seen))
