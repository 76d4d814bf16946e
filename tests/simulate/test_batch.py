"""The batch queue by hand: first come, first served, and EASY backfilling."""

from __future__ import annotations

from balsam_celery.simulate.batch import Batch
from tests.simulate.making import machine


def ids(jobs: list) -> list[str]:  # type: ignore[type-arg]
    return [job.id for job in jobs]


def batch(max_running: int = 9) -> Batch:
    return Batch(machine(nodes=8, max_running=max_running), 0)


def test_what_fits_starts_at_once() -> None:
    queue = batch()
    assert ids(queue.submit("a", "q", 8, 100, 0)) == ["a"]
    assert queue.submit("b", "q", 1, 100, 0) == []
    assert ids(queue.end("a", 50)) == ["b"]


def test_backfill_does_not_delay_the_first() -> None:
    queue = batch()
    queue.submit("a", "q", 6, 100, 0)
    assert queue.submit("wide", "q", 8, 100, 0) == []
    assert queue.submit("long", "q", 2, 101, 0) == [], "wide would wait for it"
    assert ids(queue.submit("short", "q", 2, 100, 0)) == ["short"]
    assert queue.end("short", 10) == []
    assert ids(queue.end("a", 60)) == ["wide"]


def test_backfill_may_take_what_the_first_leaves() -> None:
    queue = batch()
    queue.submit("a", "q", 6, 100, 0)
    queue.submit("wide", "q", 7, 100, 0)
    assert ids(queue.submit("long", "q", 1, 9999, 0)) == ["long"]


def test_idle_windows() -> None:
    queue = batch()
    [window] = queue.idle(0)
    assert (window.nodes, window.seconds) == (8, float("inf"))
    queue.submit("a", "q", 5, 100, 0)
    queue.submit("wide", "q", 7, 100, 0)
    first, second = queue.idle(40)
    assert (first.nodes, first.seconds) == (3, 60)
    assert (second.nodes, second.seconds) == (1, float("inf"))


def test_the_most_that_run_do_not_hold_up_others() -> None:
    queue = batch(max_running=1)
    queue.submit("a", "q", 1, 100, 0)
    assert queue.submit("b", "q", 1, 100, 0) == []
    queue.cancel("b")
    queue.submit("c", "q", 1, 100, 0)
    assert ids(queue.end("a", 10)) == ["c"]


def test_others_keep_the_machine_busy() -> None:
    queue = Batch(machine(nodes=64, load=0.8), 7)
    free, time = 0.0, 0.0
    while time < 5 * 86400:
        following = queue.next_time()
        free += queue.free * (following - time)
        time = following
        queue.advance(time)
    assert 0.6 < 1 - free / (64 * time) < 0.95
