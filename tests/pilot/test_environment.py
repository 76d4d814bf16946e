"""Variables that a program without a launcher gets. Pure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.context import PilotContext, WorkerContext
from balsam_celery.pilot.environment import Environments
from balsam_celery.resources import GpuShare, NodeShare
from balsam_celery.settings import Settings
from balsam_celery.site import Site
from tests.launchers.test_from_attempt import MASKS, SPEC

GIVEN = NodeShare("n1", (0,), (GpuShare(1, 1.0), GpuShare(3, 0.5)))


@pytest.mark.parametrize(
    ("amd", "own", "masks"),
    [
        (False, {}, {"CUDA": "1,3", "ROCR": "1,3", "ZE": "1,3", "HIP": "0,1,2,3"}),
        # HIP counts its own, by whichever name, in what ROCR's has left
        (True, {}, {"ROCR": "1,3"}),
        (True, {"HIP_VISIBLE_DEVICES": "0"}, {"ROCR": "1,3", "HIP": "0"}),
        (True, {"ROCR_VISIBLE_DEVICES": "3"}, {"ROCR": "3"}),
    ],
)
def test_masks_of_gpus(
    tmp_path: Path, amd: bool, own: dict[str, str], masks: dict[str, str]
) -> None:
    inherited = {"HIP_VISIBLE_DEVICES": "0,1,2,3"}
    pilot = PilotContext(Site(tmp_path, Settings(), tmp_path), "p", "a", (), 0.0, inherited)
    made = Environments(WorkerContext(pilot, "n1", ()), "nodes", amd=amd)
    spec = dataclasses.replace(SPEC, shares=(GIVEN,), environment=own)
    found, _ = made.make(Attempt(spec), {})
    assert {n.partition("_")[0]: value for n, value in found.items() if n in MASKS} == masks


def test_without_gpus_no_mask_is_touched(tmp_path: Path) -> None:
    inherited = {"CUDA_VISIBLE_DEVICES": ""}
    pilot = PilotContext(Site(tmp_path, Settings(), tmp_path), "p", "a", (), 0.0, inherited)
    made = Environments(WorkerContext(pilot, "n1", ()), "nodes", amd=True)
    spec = dataclasses.replace(SPEC, shares=(NodeShare("n1", (0,)),))
    found, _ = made.make(Attempt(spec), {})
    assert {name: found[name] for name in MASKS if name in found} == inherited
