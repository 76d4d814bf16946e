"""Which waiting jobs start: pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.schedulers.local_queue import Holding, Waiting, choose, expected_starts

NOW = 1000.0


def starts(
    waiting: list[Waiting], holding: list[Holding], nodes: int, **max_running: int
) -> list[int]:
    return choose(waiting, holding, nodes=nodes, max_running=max_running, now=NOW)


def test_first_come_first_served() -> None:
    waiting = [Waiting(1, "q", 2, 60), Waiting(2, "q", 2, 60), Waiting(3, "q", 1, 60)]
    assert starts(waiting, [], 4) == [1, 2]
    assert starts(waiting, [], 5) == [1, 2, 3]


def test_a_shorter_job_goes_before_a_wide_one_that_it_does_not_delay() -> None:
    holding = [Holding("q", 3, NOW + 100)]
    wide = Waiting(1, "q", 4, 60)
    assert starts([wide, Waiting(2, "q", 1, 100)], holding, 4) == [2]
    assert starts([wide, Waiting(2, "q", 1, 101)], holding, 4) == []


def test_a_longer_job_may_take_what_the_wide_one_leaves() -> None:
    holding = [Holding("q", 3, NOW + 100)]
    wide = Waiting(1, "q", 3, 60)
    narrow = [Waiting(number, "q", 1, 1000) for number in (2, 3)]
    assert starts([wide, *narrow], holding, 5) == [2, 3]
    assert starts([wide, *narrow], holding, 4) == [2]


def test_max_running_holds_back_its_own_queue_only() -> None:
    waiting = [Waiting(1, "a", 1, 60), Waiting(2, "a", 1, 60), Waiting(3, "b", 1, 60)]
    assert starts(waiting, [], 4, a=1) == [1, 3]
    assert starts(waiting, [Holding("a", 1, NOW)], 4, a=1) == [3]
    assert starts(waiting, [], 4, a=0) == [3]


def test_what_can_never_start_delays_nobody() -> None:
    assert starts([Waiting(1, "q", 9, 60), Waiting(2, "q", 1, 1e9)], [], 4) == [2]


def test_expected_starts_play_the_queue_through() -> None:
    waiting = [Waiting(1, "a", 4, 60), Waiting(2, "a", 2, 60), Waiting(3, "b", 9, 60)]
    holding = [Holding("a", 2, NOW + 10), Holding("a", 1, NOW + 30)]
    found = expected_starts(waiting, holding, nodes=4, max_running={}, now=NOW)
    assert found == {1: NOW + 30, 2: NOW + 90}, "the third can never start"
    limited = expected_starts(waiting[1:2], [], nodes=4, max_running={"a": 0}, now=NOW)
    assert limited == {}


JOBS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 5), st.integers(1, 100)), max_size=12
)


#: The same, all of one queue.
ALIKE = JOBS.map(lambda jobs: [("b", nodes, seconds) for _, nodes, seconds in jobs])


@given(st.one_of(JOBS, ALIKE), JOBS, st.integers(1, 3))
def test_limits_are_kept_and_the_first_is_not_delayed(
    queued: list[tuple[str, int, int]], running: list[tuple[str, int, int]], most: int
) -> None:
    waiting = [Waiting(number, *job) for number, job in enumerate(queued)]
    holding: list[Holding] = []
    for queue, nodes, left in running:
        if sum(job.nodes for job in holding) + nodes <= 6:
            holding.append(Holding(queue, nodes, NOW + left))
    chosen = [waiting[number] for number in starts(waiting, holding, 6, a=most, b=99)]
    after = holding + [Holding(job.queue, job.nodes, NOW + job.duration) for job in chosen]
    assert sum(job.nodes for job in after) <= 6
    if any(job.queue == "a" for job in chosen):
        assert sum(job.queue == "a" for job in after) <= most
    blocked = [job for job in waiting if job not in chosen and job.queue == "b"]
    if blocked and not any(job.queue == "a" for job in waiting):
        first = blocked[0]
        before = holding + [
            Holding(job.queue, job.nodes, NOW + job.duration)
            for job in chosen
            if job.number < first.number
        ]
        assert can_start(first, after) <= can_start(first, before)


def can_start(job: Waiting, holding: list[Holding]) -> float:
    """When ``job`` has its nodes if each of ``holding`` stays to its end."""
    return min(
        (
            moment
            for moment in [NOW, *(held.until for held in holding)]
            if sum(held.nodes for held in holding if held.until > moment) + job.nodes <= 6
        ),
        default=float("inf"),
    )


@given(JOBS, JOBS, st.integers(1, 3))
def test_what_is_chosen_now_is_expected_now_and_nothing_else(
    queued: list[tuple[str, int, int]], running: list[tuple[str, int, int]], most: int
) -> None:
    waiting = [Waiting(number, *job) for number, job in enumerate(queued)]
    holding: list[Holding] = []
    for queue, nodes, left in running:
        if sum(job.nodes for job in holding) + nodes <= 6:
            holding.append(Holding(queue, nodes, NOW + left))
    limits = {"a": most}
    found = expected_starts(waiting, holding, nodes=6, max_running=limits, now=NOW)
    now = set(choose(waiting, holding, nodes=6, max_running=limits, now=NOW))
    assert {number for number, start in found.items() if start == NOW} == now
    assert found.keys() == {job.number for job in waiting}, "each fits the machine one day"
    for moment in found.values():
        held = sum(job.nodes for job in holding if job.until > moment)
        held += sum(
            waiting[number].nodes
            for number, start in found.items()
            if start <= moment < start + waiting[number].duration
        )
        assert held <= 6
