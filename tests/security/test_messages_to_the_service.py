"""What the service refuses of what lies in its inbox, records, and outlives."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from balsam_celery import keys
from balsam_celery.service.engine import Engine
from balsam_celery.states import State
from balsam_celery.store import allocations
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.wire import (
    Ended,
    PilotEnded,
    Record,
    Registered,
    Started,
    StepEnded,
    StepStarted,
    TransitionEnded,
    WorkerLost,
    to_plain,
)
from tests.security.forged import NOISE
from tests.service.acting import attempts_of
from tests.service.running.player import Player, over
from tests.store.making import add, history, program, task
from tests.waiting import wait_until

MakeEngine = Callable[[], Engine]
NOW = 1_700_000_000.0


def finish(store: Store, player: Player, pilot: str, spec: Any) -> None:
    """The attempt ends well, and that is recorded: nothing is lost behind what was refused."""
    player.run(pilot, "n0", spec)
    wait_until(lambda: task(store, spec.id).state is State.JOB_FINISHED, 20, "the good one ends")


def test_noise(
    make_engine: MakeEngine, store: Store, player: Player, caplog: pytest.LogCaptureFixture
) -> None:
    make_engine()
    player.register("p1")
    add(store, program("t00001"), now=time.time())
    [spec] = player.wait_specs(1, "p1")
    player.client.rpush(keys.inbox(player.prefix), *NOISE)
    finish(store, player, "p1", spec)
    # "{}" is a report without records
    assert caplog.text.count("dropped a report that is not ours") == len(NOISE) - 1
    assert max(len(record.getMessage()) for record in caplog.records) < 2000


def ended(task: str, **changes: Any) -> dict[str, Any]:
    """An outcome, as JSON values."""
    return {**to_plain(Ended(task, 1, "exit", "", NOW, started=NOW, exit_code=0)), **changes}


WRONG: tuple[dict[str, Any], ...] = (
    {"id": 5}, {"id": None}, {"attempt": "1"}, {"attempt": True}, {"attempt": 1.0},
    {"outcome": "won"}, {"outcome": ["x" * 20_000_000]}, {"ended": None}, {"ended": float("nan")},
    {"ended": float("inf")}, {"ended": -float("inf")}, {"ended": 10**400}, {"started": "now"},
    {"exit_code": "0"}, {"argv": "true"}, {"argv": [0]}, {"type": "Wrong"}, {"type": None},
    {"more\nforged": 1}, {"max_memory": float("nan")},
)  # fmt: skip


def test_wrong_types(
    make_engine: MakeEngine, store: Store, player: Player, caplog: pytest.LogCaptureFixture
) -> None:
    make_engine()
    player.register("p1")
    add(store, program("t00001"), now=time.time())
    [spec] = player.wait_specs(1, "p1")
    for change in WRONG:
        report = {"pilot": "p1", "node": "n0", "records": [[7, ended("t00001", **change)]]}
        player.client.rpush(keys.inbox(player.prefix), json.dumps(report))
    finish(store, player, "p1", spec)
    assert caplog.text.count("dropped a report that is not ours") == len(WRONG)
    assert "\nforged" not in caplog.text
    assert len(attempts_of(store, "t00001")) == 1


#: Of the right types, but nothing that a database holds, or that can be.
ODD: tuple[dict[str, Any], ...] = (
    {"exit_code": 10**30}, {"max_memory": 2**63}, {"attempt": 10**30}, {"stdout_tail": "\udfff"},
    {"stdout_tail": "a\0b"}, {"reason": "\ud800"}, {"id": "t\0"}, {"id": "\ud800"},
    {"id": "x" * 1_000_000}, {"environment_digest": "x" * 1_000_000}, {"attempt": -1},
)  # fmt: skip


def test_odd_values(
    make_engine: MakeEngine, store: Store, player: Player, caplog: pytest.LogCaptureFixture
) -> None:
    """Each stands in one report with a good outcome, which is recorded."""
    make_engine()
    player.register("p1", (64,))
    ids = [f"t{number:05}" for number in range(2 * len(ODD))]
    add(store, *(program(id) for id in ids), now=time.time())
    specs = {spec.id: spec for spec in player.wait_specs(len(ids), "p1")}
    for number, change in enumerate(ODD):
        good = to_plain(over(specs[ids[2 * number]]))
        records = [[7, ended(ids[2 * number + 1], **change)], [8, good]]
        report = {"pilot": "p1", "node": "n0", "records": records}
        player.client.rpush(keys.inbox(player.prefix), json.dumps(report))
    for number in range(len(ODD)):
        id = ids[2 * number]
        wait_until(lambda id=id: task(store, id).state is State.JOB_FINISHED, 20, f"{id} ends")
    assert "the service waits" not in caplog.text


def test_the_end_of_what_ran_is_known_whatever_else_is_told(
    make_engine: MakeEngine, store: Store, player: Player
) -> None:
    """Else it would be taken for lost and run again."""
    make_engine()
    player.register("p1", (64,))
    good = ({"max_memory": 2**63}, {"environment_digest": "x" * 1_000_000}, {"argv": ["\0"]})
    ids = [f"t{number:05}" for number in range(len(good))]
    add(store, *(program(id) for id in ids), now=time.time())
    specs = {spec.id: spec for spec in player.wait_specs(len(ids), "p1")}
    for id, change in zip(ids, good, strict=True):
        player.tell("p1", "n0", dataclasses.replace(over(specs[id]), **change))
    for id in ids:
        wait_until(lambda id=id: task(store, id).state is State.JOB_FINISHED, 20, f"{id} ends")
        [attempt] = attempts_of(store, id)
        assert (attempt.outcome, attempt.exit_code) == ("exit", 0)


def test_the_word_of_another_pilot(
    make_engine: MakeEngine, store: Store, player: Player, caplog: pytest.LogCaptureFixture
) -> None:
    """A task id that is not this pilot's."""
    make_engine()
    player.register("p1")
    player.register("p2")
    add(store, program("t00001"), now=time.time())
    found: list[tuple[str, Any]] = []

    def placed() -> bool:
        for pilot in ("p1", "p2"):
            found.extend((pilot, spec) for spec in player.take(pilot)[0])
        return bool(found)

    wait_until(placed, 20, "it is placed")
    [(own, spec)] = found
    other = "p2" if own == "p1" else "p1"
    words: list[tuple[str, str, Record]] = [
        (other, "n0", Started("t00001", 1, NOW, 1)),
        (other, "n0", over(spec)),
        (other, "n0", Ended("t00001", 1, "fenced", "", NOW)),
        ("", "", over(spec)),
        ("nobody", "n0", over(spec)),
        (own, "n0", Ended("t00001", 2, "lost", "", NOW)),
        (own, "n0", Ended("unknown", 1, "lost", "", NOW)),
        (other, "pilot", WorkerLost(own, "n0", "forged", False, NOW)),
        (other, "pilot", PilotEnded(own, "forged", NOW)),
        (other, "pilot", Registered(own, f"a-{own}", "h", 1, NOW, (), NOW)),
        (own, "n0", StepEnded("t00001", 1, "SUCCESS", 1, None, NOW)),
        # what a tasks worker may say of steps it may not of programs
        ("", "", StepStarted("t00001", 1, NOW, "forged")),
        ("", "", StepEnded("t00001", 1, "SUCCESS", 1, None, NOW)),
        (own, "n0", TransitionEnded("t00001", 1, "postprocess", True, "", None, NOW)),
    ]
    numbers = [(pilot, node, player.tell(pilot, node, word)) for pilot, node, word in words]
    # refused, and told no more
    for pilot, node, wanted in numbers:
        wait_until(
            lambda pilot=pilot, node=node, wanted=wanted: (
                set(wanted) <= set(player.acknowledged(pilot, node))
            ),
            20,
            "acknowledgements",
        )
    assert task(store, "t00001").state is State.DISPATCHED
    [attempt] = attempts_of(store, "t00001")
    assert (attempt.started, attempt.ended, attempt.outcome) == (None, None, None)
    with store.read() as conn:
        pilots = allocations.list_pilots(conn, LIVE_PILOTS)
    assert {(one.id, one.state.value, one.ended) for one in pilots} == {
        ("p1", "LIVE", None), ("p2", "LIVE", None),
    }  # fmt: skip
    assert caplog.text.count("refused from") == len(words)
    finish(store, player, own, spec)
    assert history(store, "t00001").count(State.DISPATCHED) == 1
