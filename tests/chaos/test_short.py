"""The short form: every kind of fault befalls a site once, some of them while another lasts."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from tests.chaos.plan import KINDS, Kind, each_once, possible
from tests.chaos.report import Result
from tests.chaos.run import Run
from tests.chaos.stage import present, stage
from tests.postgres import find_binaries
from tests.slurm_cluster import slurm_installed

__all__ = ["slurm_installed"]

SEED = int(os.environ.get("BALSAM_CHAOS_SEED", "7"))
#: Longer than every time-out: for the long form.
LONG = {"cut:network"}


def chaos(site: str, database: str, kinds: Sequence[Kind], tasks: int) -> Result:
    """One run in which each of ``kinds`` that can be comes once."""
    result = Result(SEED, site, database)
    with stage(site, database) as world:
        wanted = [kind for kind in possible(kinds, present(world)) if kind.name not in LONG]
        Run(world, result, tasks, print).go(
            each_once(SEED, wanted, share=0.4, longest=3.0), seconds=150.0
        )
    assert result.passed, (SEED, result.told)
    assert result.tasks == tasks
    assert len(result.faults) + len(result.missed) == len(wanted), "the time was over"
    # what dies last may leave nothing to break; most must have been broken
    assert len(result.faults) >= len(wanted) - 2, result.missed
    return result


@pytest.mark.timeout(600)
def test_a_local_site() -> None:
    chaos("local", "sqlite", KINDS, 900)


@pytest.mark.timeout(600)
def test_a_site_on_slurm_and_postgresql(slurm_installed: None) -> None:
    if find_binaries() is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    names = {"kill:pilot", "kill:worker", "kill:service-owing"}
    kinds = [kind for kind in KINDS if kind.needs & {"slurm", "postgres"} or kind.name in names]
    chaos("slurm", "postgres", kinds, 350)
