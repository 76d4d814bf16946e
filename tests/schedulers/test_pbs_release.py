"""What the PBS adapter says to give nodes of a running job back, and what PBS may answer."""

from __future__ import annotations

import pytest

from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.schedulers.base import Scheduler
from balsam_celery.schedulers.commands import Done
from tests.schedulers.pbs_samples import StandIns
from tests.schedulers.test_pbs import pbs, scheduler

__all__ = ["pbs", "scheduler"]


def test_nodes_are_given_back(pbs: StandIns, scheduler: Scheduler) -> None:
    pbs.answer("pbs_release_nodes", {"*": Done(0, "", "")})
    scheduler.release("77.pbsserver", ["n3.cluster", "n4"], [])
    assert pbs.said("pbs_release_nodes") == [["-j", "77.pbsserver", "n3", "n4"]]


def test_nodes_that_are_back_already_do_no_harm(pbs: StandIns, scheduler: Scheduler) -> None:
    """OpenPBS takes none when the job lacks one of them (``src/server/vnparse.c``)."""
    words = "pbs_release_nodes: node(s) requested to be released not part of the job: n3\n"
    gone = Done(15010 % 256, "", words)
    answers = {"-j 77.pbsserver n3 n4": gone, "-j 77.pbsserver n3": gone, "*": Done(0, "", "")}
    pbs.answer("pbs_release_nodes", answers)
    scheduler.release("77.pbsserver", ["n3", "n4"], [])
    alone = [["-j", "77.pbsserver", "n3"], ["-j", "77.pbsserver", "n4"]]
    assert pbs.said("pbs_release_nodes")[1:] == alone


def test_giving_back_can_fail(pbs: StandIns, scheduler: Scheduler) -> None:
    refused = Done(15007 % 256, "", "Unauthorized Request  77.pbsserver\n")
    away = Done(111, "", "cannot connect to server\n")
    answers = {"-j 77.pbsserver n3": refused, "-j 78.pbsserver n3": away}
    pbs.answer("pbs_release_nodes", answers)
    with pytest.raises(SchedulerError, match="Unauthorized Request"):
        scheduler.release("77.pbsserver", ["n3"], [])
    with pytest.raises(SchedulerUnavailable, match="cannot connect to server"):
        scheduler.release("78.pbsserver", ["n3"], [])
