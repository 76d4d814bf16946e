"""What a worker answers to a kill order of an attempt that it does not run (any more)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from balsam_celery.outbox import Outbox
from balsam_celery.pilot.courier import Courier
from balsam_celery.pilot.desk import Desk
from balsam_celery.pilot.pool import AttemptPool
from balsam_celery.pilot.slots import Slots
from balsam_celery.wire import Ended, KillOrder


class Answers:
    """The desk's courier: what it was given has not been written into the outbox yet."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.told: list[Ended] = []

    def put(self, outcome: Ended, idle: bool) -> None:
        self.told.append(outcome)

    def again(self, task: str, attempt: int) -> bool:
        return self._outbox.outcome(task, attempt) is not None


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = Outbox(tmp_path / "gang.outbox")
    yield made
    made.close()


def order(outbox: Outbox, task: str) -> list[Ended]:
    """Answers to a kill order; nothing runs here."""
    answers = Answers(outbox)
    pool = AttemptPool(1)
    pool.attach(Slots([("n0", 0)]), *cast("list[Any]", [None, None, None]))
    Desk(outbox, pool, cast("Courier", answers)).kill(KillOrder(task, 1, "asked"))
    return answers.told


def test_one_that_was_never_seen_is_fenced(outbox: Outbox) -> None:
    [ended] = order(outbox, "unseen")
    assert (ended.outcome, ended.reason) == ("fenced", "asked")


def test_one_whose_outcome_is_owed_is_not_called_over(outbox: Outbox) -> None:
    """Its outcome is on its way; or is withheld, for on a silent node a process of it may live."""
    outbox.receive([("owed", 1)])
    assert order(outbox, "owed") == []
    outbox.end([Ended("owed", 1, "exit", "", ended=5.0, exit_code=3)])
    assert order(outbox, "owed") == [], "the outbox has it, and it is sent again"
