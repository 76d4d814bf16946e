"""What each rank gets of its node, and the shell text that gives it."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from balsam_celery import brands
from balsam_celery.launchers.shim import Place, divide, in_front
from balsam_celery.resources import GpuShare, NodeShare

#: The shells that are ``/bin/sh`` somewhere.
SHELLS = [shell for shell in ("/bin/dash", "/bin/bash", "/bin/busybox") if Path(shell).exists()]


def gpus(*shares: tuple[int, float]) -> tuple[GpuShare, ...]:
    return tuple(GpuShare(index, fraction) for index, fraction in shares)


@pytest.mark.parametrize(
    ("cores", "ranks", "dealt"),
    [
        ((0, 1, 2, 3), 2, [(0, 1), (2, 3)]),
        ((8, 9, 4, 5, 6), 2, [(8, 9, 4), (5, 6)]),
        ((3,), 2, [(3,), (3,)]),
        ((0, 1, 2), 1, [(0, 1, 2)]),
    ],
)
def test_cores_are_dealt_out_evenly(
    cores: tuple[int, ...], ranks: int, dealt: list[tuple[int, ...]]
) -> None:
    share = NodeShare("n1", cores)
    assert [place.cores for place in divide(share, ranks, pin=True)] == dealt
    assert divide(share, ranks, pin=False) == (Place(),) * ranks


@pytest.mark.parametrize(
    ("given", "ranks", "dealt"),
    [
        (gpus((0, 1.0), (2, 1.0)), 2, [(0,), (2,)]),
        (gpus((0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)), 2, [(0, 1), (2, 3)]),
        (gpus((5, 1.0)), 4, [(5,), (5,), (5,), (5,)]),
        (gpus((0, 1.0), (1, 0.6)), 4, [(0,), (0,), (1,), (0,)]),
        (gpus((0, 0.5), (1, 0.5)), 2, [(0,), (1,)]),
        (gpus((0, 1.0), (1, 1.0), (2, 1.0)), 2, [(0, 1), (1, 2)]),
        (gpus((3, 1 / 3)), 1, [(3,)]),
    ],
)
def test_gpus_are_dealt_out(
    given: tuple[GpuShare, ...], ranks: int, dealt: list[tuple[int, ...]]
) -> None:
    places = divide(NodeShare("n1", (0,), given), ranks, pin=False)
    assert [place.gpus for place in places] == dealt


def test_without_gpus_no_mask_is_set() -> None:
    assert divide(NodeShare("n1", (0,)), 1, pin=False) == (Place(gpus=None),)


def seen(
    shell: str,
    places: Mapping[str, Sequence[Place]],
    environment: Mapping[str, str],
    *,
    by_rank: bool = False,
) -> tuple[str, str]:
    """The cores and the GPU mask of a rank with this environment; taskset only writes them."""
    report = 'echo "$BOUND|$CUDA_VISIBLE_DEVICES|$MARK|$1|$2"'
    argv = in_front(
        ("/bin/sh", "-c", report, "sh", "=a ", ""), places, mark="MARK=it is", by_rank=by_rank
    )
    text = argv[2].replace("exec taskset -c", "BOUND=$cores; export BOUND; exec env --")
    assert text != argv[2]
    text = text.replace('exec env -- "$cores"', "exec")
    command = [shell, *(["sh"] if shell.endswith("busybox") else []), "-c", text, *argv[3:]]
    done = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    bound, mask, *rest = done.stdout.rstrip("\n").split("|")
    assert rest == ["it is", "=a ", ""]
    return bound, mask + done.stderr.partition(":")[0]


USUAL = (Place((0, 1), (4,)), Place((2, 3), (5,)))
OTHER = (Place((6, 7), (8,)), Place((8, 9), (9,)))


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("environment", "given"),
    [
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, ("2,3", "5")),
        ({"PMI_RANK": "2", "MPI_LOCALRANKID": "0"}, ("0,1", "4")),
        # hydra's proxies are tasks of Slurm, one on each node
        (
            {
                "PMI_RANK": "3",
                "MPI_LOCALRANKID": "1",
                "SLURM_LOCALID": "0",
                "SLURM_PROCID": "1",
                "SLURMD_NODENAME": "n2",
            },
            ("2,3", "5"),
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "PMIX_RANK": "1"},
            ("2,3", "5"),
        ),
        ({"PALS_RANKID": "3", "PALS_LOCAL_RANKID": "1"}, ("2,3", "5")),
        ({"ALPS_APP_PE": "3"}, ("2,3", "5")),
        ({"JSM_NAMESPACE_RANK": "3", "JSM_NAMESPACE_LOCAL_RANK": "1"}, ("2,3", "5")),
        ({"FLUX_TASK_RANK": "3", "FLUX_TASK_LOCAL_ID": "1"}, ("2,3", "5")),
        ({"SLURM_LOCALID": "1", "SLURMD_NODENAME": "n9"}, ("8,9", "9")),
        ({"SLURM_LOCALID": "0", "SLURMD_NODENAME": "n9.other.domain"}, ("6,7", "8")),
        ({}, ("", "balsam")),
    ],
)
def test_a_rank_finds_its_part(
    shell: str, environment: dict[str, str], given: tuple[str, str]
) -> None:
    places = {"n1": USUAL, "n2.domain": USUAL, "n9.domain": OTHER}
    assert seen(shell, places, environment) == given


@pytest.mark.parametrize("shell", SHELLS)
def test_virtual_nodes_are_told_apart_by_ranks(shell: str) -> None:
    places = {"v0": OTHER, "v1": USUAL}
    found = [
        seen(shell, places, {"PMI_RANK": str(rank), "MPI_LOCALRANKID": "0"}, by_rank=True)
        for rank in range(4)
    ]
    assert found == [("6,7", "8"), ("8,9", "9"), ("0,1", "4"), ("2,3", "5")]


def test_without_anything_to_give_no_rank_is_asked_for() -> None:
    assert seen("/bin/sh", {"n1": (Place(), Place())}, {}) == ("", "")


def test_the_table_holds_what_differs_alone() -> None:
    nodes = {f"n{index}": USUAL for index in range(1000)} | {"odd": OTHER}
    table = in_front(("prog",), nodes, mark="M=1")[9]
    assert table == "0=0,1/4 1=2,3/5 odd.0=6,7/8 odd.1=8,9/9"


def test_the_brand_is_that_of_the_attempt() -> None:
    report = "import resource; print(resource.getrlimit(resource.RLIMIT_RTTIME)[0])"
    argv = in_front(
        ("python3", "-c", report), {"n1": (Place(),)}, mark="M=1", brand=brands.value("t1/1")
    )
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
    with brands.children_branded(attempt="t1/1"):
        own = resource.getrlimit(resource.RLIMIT_RTTIME)[0]
    assert int(done.stdout) == own


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("drivers", "own", "given"),
    [
        ((), (), {"CUDA": "4", "ROCR": "4", "ZE": "4", "HIP": "0,1"}),
        (("nvidiactl",), (), {"CUDA": "4", "ROCR": "4", "ZE": "4", "HIP": "0,1"}),
        # of an AMD processor with a small GPU of its own
        (("kfd", "nvidiactl"), (), {"CUDA": "4", "ROCR": "4", "ZE": "4", "HIP": "0,1"}),
        (("kfd",), (), {"ROCR": "4"}),
        (("kfd",), ("HIP_VISIBLE_DEVICES",), {"ROCR": "4", "HIP": "0,1"}),
        (("kfd",), ("CUDA_VISIBLE_DEVICES",), {"ROCR": "4", "CUDA": "0,1"}),
    ],
)
def test_hip_sees_the_gpus_that_amds_lowest_layer_leaves(
    shell: str,
    drivers: tuple[str, ...],
    own: tuple[str, ...],
    given: dict[str, str],
    tmp_path: Path,
) -> None:
    for name in drivers:
        (tmp_path / name).touch()
    argv = in_front(("/usr/bin/env",), {"n1": (Place(gpus=(4,)),)}, mark="MARK=it", own=own)
    text = argv[2].replace("/dev/", f"{tmp_path}/").replace(f">{tmp_path}/null", ">/dev/null")
    command = [shell, *(["sh"] if shell.endswith("busybox") else []), "-c", text, *argv[3:]]
    inherited = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "0,1")
    environment = {"PATH": os.environ["PATH"], "PMI_RANK": "0", **inherited}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=20, check=True
    )
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    masks = ("VISIBLE_DEVICES", "AFFINITY_MASK", "DEVICE_ORDINAL")
    assert {
        name.partition("_")[0]: value for name, value in found.items() if name.endswith(masks)
    } == given
