"""From what the service orders to what a launcher is told."""

from __future__ import annotations

import dataclasses

import pytest

from balsam_celery import brands
from balsam_celery.errors import SettingsError
from balsam_celery.launchers.hydra import Hydra
from balsam_celery.launchers.srun import Srun
from balsam_celery.pilot.ranks import exported, make_ranks, needs_launcher
from balsam_celery.resources import GpuShare, NodeShare
from balsam_celery.wire import TaskSpec

GPUS = (GpuShare(0, 1.0), GpuShare(1, 1.0))
SPEC = TaskSpec(
    id="0b5c1d1e-7a55-4b4a-9d0f-6a7b8c9d0e1f",
    attempt=2,
    name="name",
    application="app",
    argv=("prog", ":"),
    environment={},
    work_dir="/",
    shares=(NodeShare("n1", (0, 1, 2, 3), GPUS), NodeShare("n2", (4, 5, 6, 7), GPUS)),
    ranks_per_node=2,
    threads_per_rank=1,
    wall_time=60,
    kill_grace=5,
)
MASKS = (
    *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"),
    *("HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
)
PINNED = {"n1": True, "n2": True}
#: Positions of the shim's arguments in the ranks' argv.
_MARK, _BRAND, _PER_NODE, _HOW, _MASKS, _PLACES = range(4, 10)


def changed(**values: object) -> TaskSpec:
    return dataclasses.replace(SPEC, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        (SPEC, True),
        (changed(launcher="none"), False),
        (changed(shares=SPEC.shares[:1]), True),
        (changed(shares=SPEC.shares[:1], ranks_per_node=1), False),
        (changed(shares=SPEC.shares[:1], ranks_per_node=1, launcher="mpich"), True),
    ],
)
def test_a_launcher_is_for_several_ranks_or_by_name(spec: TaskSpec, needed: bool) -> None:
    assert needs_launcher(spec) is needed


def test_ranks_of_a_task_over_two_hosts() -> None:
    ranks = make_ranks(
        SPEC, Srun("srun"), virtual=False, pinned=PINNED, exports=("A", "HOSTNAME"), root=False
    )
    assert ranks.nodes == ("n1", "n2")
    assert (ranks.ranks_per_node, ranks.cores_per_rank, ranks.gpus_per_rank) == (2, 2, 1.0)
    assert ranks.name == "0b5c1d1e-7a55-4b4a-9d0f-6a7b8c9d0e1f.2"
    assert ranks.exports == ("A",)
    assert not ranks.one_host
    shim = ranks.argv
    assert shim[_MARK] == f"BALSAM_RANK_MARK={SPEC.id}/2"
    assert shim[_BRAND] == str(brands.value(f"{SPEC.id}/2"))
    assert (shim[_PER_NODE], shim[_HOW], shim[_MASKS]) == ("2", "node", " ".join(MASKS))
    assert sorted(shim[_PLACES].split()) in (
        ["0=0,1/0", "1=2,3/1", "n2.0=4,5/0", "n2.1=6,7/1"],
        ["0=4,5/0", "1=6,7/1", "n1.0=0,1/0", "n1.1=2,3/1"],
    )
    assert shim[10:] == ("=prog", "=:")


def test_what_is_not_to_be_bound_is_not() -> None:
    for spec, pinned in ((changed(pin=False), PINNED), (SPEC, {"n1": True})):
        ranks = make_ranks(spec, Srun("srun"), virtual=False, pinned=pinned, exports=(), root=False)
        assert ranks.argv[_PLACES] == "0=/0 1=/1"
    own = changed(environment={"CUDA_VISIBLE_DEVICES": "7"})
    ranks = make_ranks(own, Srun("srun"), virtual=False, pinned=PINNED, exports=(), root=False)
    assert ranks.argv[_MASKS] == " ".join(MASKS[1:])


def test_virtual_nodes_are_one_host() -> None:
    ranks = make_ranks(SPEC, Hydra("m"), virtual=True, pinned=PINNED, exports=("A",), root=True)
    assert ranks.one_host
    assert ranks.exports == ()
    assert ranks.argv[_HOW] == "rank"
    assert ranks.argv[_PLACES] == "0=0,1/0 1=2,3/1 2=4,5/0 3=6,7/1"
    with pytest.raises(SettingsError, match="'srun' knows nothing of the virtual nodes"):
        make_ranks(SPEC, Srun("srun"), virtual=True, pinned=PINNED, exports=(), root=True)


def test_names_of_steps_are_plain_and_unique() -> None:
    names = [
        make_ranks(
            changed(id=identity), Srun("s"), virtual=False, pinned={}, exports=(), root=False
        ).name
        for identity in ("a b", "a|b", "a-b")
    ]
    assert names[2] == "a-b.2"
    assert names[0] != names[1]
    assert all(name.startswith("a-b-") for name in names[:2])


def test_variables_of_one_host_stay_there() -> None:
    names = ("PATH", "BALSAM_TASK_ID", "BASH_FUNC_f%%", "HOSTNAME", "SLURM_JOB_ID", "PBS_NODENUM")
    assert exported((*names, "TMPDIR", "_", "XDG_RUNTIME_DIR", "SSH_CLIENT", "PWD")) == (
        "BALSAM_TASK_ID",
        "PATH",
    )
