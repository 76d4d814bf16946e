"""The short form: every kind of fault befalls a site once, some of them while another lasts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.plan import Kind, each_once, possible
from tests.chaos.report import Result
from tests.chaos.run import Run
from tests.chaos.stage import present, stage

SEED = int(os.environ.get("BALSAM_CHAOS_SEED", "7"))
#: Where the logs and files of a run that found something are kept.
KEEP = Path(os.environ["BALSAM_CHAOS_KEEP"]) if "BALSAM_CHAOS_KEEP" in os.environ else None
#: Longer than every time-out: for the long form.
LONG = {"cut:network"}


def chaos(site: str, database: str, kinds: Sequence[Kind]) -> Result:
    """One run in which each of ``kinds`` that can be comes once."""
    result = Result(SEED, site, database)
    with stage(site, database) as world:
        wanted = [kind for kind in possible(kinds, present(world)) if kind.name not in LONG]
        # as many tasks as the faults take time
        run = Run(world, result, 20_000, print, all_tasks=False, keep=KEEP)
        run.go(each_once(SEED, wanted, share=0.4, longest=3.0), seconds=600.0)
    assert result.passed, (SEED, result.told)
    assert result.tasks > 100
    assert len(result.faults) + len(result.missed) == len(wanted), "the time was over"
    # what dies last may leave nothing to break; most must have been broken
    assert len(result.faults) >= len(wanted) - 2, result.missed
    return result
