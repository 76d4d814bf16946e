"""Who starts next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.slots import Slots
from balsam_celery.resources import NodeShare
from balsam_celery.wire import TaskSpec

CORES = range(4)


def make(index: int, cores: frozenset[int]) -> Attempt:
    return Attempt(
        TaskSpec(
            id=str(index),
            attempt=1,
            name="",
            application="",
            argv=("x",),
            environment={},
            work_dir="/x",
            shares=(NodeShare("n", tuple(sorted(cores))),),
            ranks_per_node=1,
            threads_per_rank=1,
            wall_time=1,
            kill_grace=1,
        )
    )


@given(
    some.lists(some.frozensets(some.sampled_from(CORES), min_size=1), max_size=20),
    some.randoms(use_true_random=False),
)
def test_no_core_twice_no_starvation(wanted: list[frozenset[int]], random: object) -> None:
    slots = Slots(("n", core) for core in CORES)
    for index, cores in enumerate(wanted):
        slots.add(make(index, cores))
    started: list[Attempt] = []
    while True:
        started += slots.start()
        running = list(slots.running.values())
        taken = [slot for attempt in running for slot in attempt.slots]
        assert len(taken) == len(set(taken))
        for waiting in slots.waiting.values():
            earlier = [a for a in running if int(a.spec.id) < int(waiting.spec.id)]
            ahead = [a for a in slots.waiting.values() if int(a.spec.id) < int(waiting.spec.id)]
            assert any(not waiting.slots.isdisjoint(a.slots) for a in [*earlier, *ahead, *running])
        if not running:
            break
        slots.release(random.choice(running))  # type: ignore[attr-defined]
    assert len(started) == len(wanted)
    for core in CORES:
        order = [int(a.spec.id) for a in started if ("n", core) in a.slots]
        assert order == sorted(order), "nobody overtakes on a core"


def test_withdrawn_attempts_never_start() -> None:
    slots = Slots([("n", 0)])
    first, second = make(1, frozenset({0})), make(2, frozenset({0}))
    slots.add(first)
    slots.add(second)
    assert slots.start() == [first]
    assert slots.withdraw(second.key) is second
    assert slots.withdraw(second.key) is None
    slots.release(first)
    assert slots.start() == []
