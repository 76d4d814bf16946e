"""Launchers, with real MPI programs under every ``mpiexec`` that is here."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from balsam_celery import launchers
from balsam_celery.errors import SettingsError
from balsam_celery.launchers import Launcher, clean_environment, find_launcher, launch
from balsam_celery.resources import NodeShare
from balsam_celery.settings import LauncherSettings
from balsam_celery.wire import TaskSpec

PROGRAM = str(Path(__file__).with_name("mpi_program.py"))
SPEC = TaskSpec(
    id="t1",
    attempt=1,
    name="name",
    application="app",
    argv=(sys.executable, PROGRAM),
    environment={},
    work_dir="/",
    shares=(NodeShare("vnode0", (0,)),),
    ranks_per_node=1,
    threads_per_rank=1,
    wall_time=60,
    kill_grace=5,
)
#: What makes mpi4py load the MPI library of that launcher, if it would not by itself.
LIBRARY = {"mpich": {}, "openmpi": {"MPI4PY_MPIABI": "openmpi"}}


def spec(nodes: int, ranks: int, *argv: str, launcher: str | None = None) -> TaskSpec:
    shares = tuple(NodeShare(f"vnode{index}", (index,)) for index in range(nodes))
    return dataclasses.replace(
        SPEC,
        shares=shares,
        ranks_per_node=ranks,
        launcher=launcher,
        argv=(*SPEC.argv, *argv),
    )


@pytest.fixture(params=["mpich", "openmpi"])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    try:
        return find_launcher(LauncherSettings(), request.param)
    except SettingsError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no mpiexec of {request.param}: {error}")


def run(what: TaskSpec, how: Launcher, directory: Path, **outer: str) -> list[Any]:
    """What each rank wrote, by rank; ``outer`` is added to this process's environment."""
    started = launch(what, how, one_host=True, root=os.geteuid() == 0)
    done = subprocess.run(
        started.argv,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **clean_environment({**os.environ, **outer}),
            **started.environment,
            **LIBRARY[how.kind],
        },
    )
    assert done.returncode == 0, done.stderr
    files = sorted(directory.glob("rank-*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 2), (2, 1), (2, 2)])
def test_starts_the_ranks_asked_for(
    launcher: Launcher, nodes: int, ranks: int, tmp_path: Path
) -> None:
    seen = run(spec(nodes, ranks), launcher, tmp_path)
    assert [row["rank"] for row in seen] == list(range(nodes * ranks))
    assert {row["size"] for row in seen} == {nodes * ranks}
    assert {row["library"] for row in seen} == {"MPICH" if launcher.kind == "mpich" else "Open"}


def test_virtual_nodes_are_nodes_to_mpich(tmp_path: Path) -> None:
    seen = run(spec(2, 2), find_launcher(LauncherSettings(), "mpich"), tmp_path)
    assert {row["shared"] for row in seen} == {2}


def test_one_rank_when_a_launcher_is_asked_for_by_name(launcher: Launcher, tmp_path: Path) -> None:
    what = spec(1, 1, launcher=launcher.kind)
    assert [row["size"] for row in run(what, launcher, tmp_path)] == [1]


def test_a_program_may_start_programs_of_its_own(launcher: Launcher, tmp_path: Path) -> None:
    """A pilot started by an ``mpiexec`` itself: the inner ranks must not join the outer."""
    outer = run(spec(1, 2), launcher, tmp_path)[1]["environment"]
    named = {name for name in outer if name.startswith(("PMI", "OMPI_", "PMIX_"))}
    assert named, "the ranks of the outer launcher are marked"
    inner = tmp_path / "inner"
    inner.mkdir()
    seen = run(spec(2, 2), launcher, inner, **outer)
    assert [(row["rank"], row["size"]) for row in seen] == [(rank, 4) for rank in range(4)]
    unlike = {"PMI_RANK", "PMI_FD", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"} & outer.keys()
    assert all(row["environment"][name] != outer[name] for row in seen[2:] for name in unlike)


def test_a_serial_program_under_an_outer_launcher_is_alone(
    launcher: Launcher, tmp_path: Path
) -> None:
    outer = run(spec(1, 2), launcher, tmp_path)[0]["environment"]
    alone = tmp_path / "alone"
    alone.mkdir()
    assert [row["size"] for row in run(spec(1, 1), launcher, alone, **outer)] == [1]


@pytest.mark.parametrize(
    "argument",
    [
        ":",
        "",
        " a b ",
        "'",
        '"',
        "a\nb",
        ";",
        "$(id)",
        "$HOME",
        "{}",
        "*",
        "\\",
        "-n",
        "--",
        "ü\x01",
    ],
)
def test_arguments_arrive_as_they_are(launcher: Launcher, argument: str, tmp_path: Path) -> None:
    code = (
        "import json, os, pathlib, sys;"
        "pathlib.Path(f'rank-{os.getpid()}.json').write_text(json.dumps(sys.argv[1:]))"
    )
    what = dataclasses.replace(
        spec(1, 2), argv=(sys.executable, "-c", code, "before", argument, "after")
    )
    assert run(what, launcher, tmp_path) == [["before", argument, "after"]] * 2


def test_serial_programs_are_executed_directly() -> None:
    started = launch(spec(1, 1), None, one_host=True, root=True)
    assert started == launchers.Launch(SPEC.argv)


def test_none_leaves_starting_ranks_to_the_program() -> None:
    what = spec(2, 2, launcher="none")
    assert launch(what, Launcher("none"), one_host=True, root=False).argv == SPEC.argv


def test_ranks_without_a_launcher_are_an_error() -> None:
    with pytest.raises(ValueError, match="need a launcher"):
        launch(spec(1, 2), None, one_host=True, root=False)


def test_hosts_are_named_on_a_cluster() -> None:
    mpich = launch(spec(2, 3), Launcher("mpich", "/m/mpiexec"), one_host=False, root=False)
    assert mpich.argv[1:10] == (
        *("-rmk", "user", "-bind-to", "none"),
        *("-hosts", "vnode0,vnode1", "-ppn", "3", "-n"),
    )
    openmpi = launch(spec(2, 3), Launcher("openmpi", "/o/mpiexec"), one_host=False, root=False)
    assert openmpi.argv[:3] == ("/o/mpiexec", "--host", "vnode0:3,vnode1:3")
    assert "--allow-run-as-root" not in openmpi.argv


def test_environment_is_cleaned_of_outer_launchers_only() -> None:
    outer = {
        "PMI_RANK": "3",
        "PMIX_RANK": "3",
        "OMPI_COMM_WORLD_RANK": "3",
        "MPI_LOCALRANKID": "1",
        "HYDI_CONTROL_FD": "8",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_CPU_BIND": "quiet",
    }
    kept = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "UCX_TLS": "tcp", "PATH": "/bin"}
    assert clean_environment({**outer, **kept}) == kept


def test_finds_the_launcher_by_its_kind() -> None:
    found = find_launcher(LauncherSettings())
    assert found.kind in ("mpich", "openmpi")
    assert launchers.detect(found.mpiexec) == found.kind
    assert find_launcher(LauncherSettings(kind="none")) == Launcher("none")
    named = LauncherSettings(mpiexec=found.mpiexec)
    assert find_launcher(named) == found


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (LauncherSettings(kind="lam"), "give one of auto, none, mpich, openmpi"),
        (LauncherSettings(mpiexec="/no/such/mpiexec"), "no such program"),
        (LauncherSettings(mpiexec="/bin/true"), "neither MPICH nor Open MPI"),
    ],
)
def test_bad_settings_are_told(settings: LauncherSettings, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        find_launcher(settings)


def test_a_named_mpiexec_of_another_mpi_is_told(launcher: Launcher) -> None:
    other = "openmpi" if launcher.kind == "mpich" else "mpich"
    with pytest.raises(SettingsError, match=f"which is {launcher.kind}"):
        find_launcher(LauncherSettings(kind=other, mpiexec=launcher.mpiexec))


def test_none_found_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SettingsError, match=r"install the extra 'balsam_celery\[local\]'"):
        find_launcher(LauncherSettings(), environ={"PATH": str(tmp_path)})
