"""What the batch system's variables tell a program of its task's nodes."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from balsam_celery import keys
from balsam_celery.launchers.steps import inner_steps
from balsam_celery.pilot.context import PilotContext, WorkerContext
from balsam_celery.pilot.part import Part
from balsam_celery.resources import NodeCapacity, NodeShare
from balsam_celery.wire import TaskSpec
from tests.launchers.test_keepers import pilot, script

NODES = ("n1", "n2", "n3")
PBS = {"PBS_JOBID": "7.head", "PBS_NODEFILE": "/var/spool/pbs/aux/7.head"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_TASKS_PER_NODE": "1(x3)"}


@pytest.fixture
def context(tmp_path: Path) -> PilotContext:
    capacities = (NodeCapacity(name, (0, 1, 2, 3)) for name in NODES)
    return pilot(tmp_path, "python", *capacities)


def part(context: PilotContext, *nodes: str, **variables: str) -> Part:
    context.environment.update(variables)
    own = tuple(node for node in context.nodes if node.name in nodes)
    name = nodes[0] if len(nodes) == 1 else keys.GANG
    return Part(WorkerContext(context, name, own))


def spec(directory: Path, *nodes: str, **changes: object) -> TaskSpec:
    directory.mkdir(exist_ok=True)
    whole = TaskSpec(
        id="t1",
        attempt=2,
        name="",
        application="app",
        argv=("prog",),
        environment={},
        work_dir=str(directory),
        shares=tuple(NodeShare(node, (0, 1)) for node in nodes),
        ranks_per_node=1,
        threads_per_rank=1,
        wall_time=60,
        kill_grace=1,
    )
    return replace(whole, **changes)


@pytest.mark.parametrize("own", [("n2",), ("n1", "n3")])
def test_pbs_names_the_nodes_of_the_task(
    context: PilotContext, tmp_path: Path, own: tuple[str, ...]
) -> None:
    made = part(context, *(own if len(own) == 1 else NODES), **PBS)
    variables = made.variables(spec(tmp_path / "work", *own), PBS)
    file = Path(variables.pop("PBS_NODEFILE"))
    assert file.read_text().split() == list(own)
    assert file.name == "7.head", "where Open MPI looks for it"
    assert not variables


def test_a_task_over_all_nodes_has_the_node_file_of_pbs(
    context: PilotContext, tmp_path: Path
) -> None:
    made = part(context, *NODES, **PBS)
    assert made.variables(spec(tmp_path / "work", *NODES), PBS) == {}


def test_slurm_tells_of_the_tasks_nodes_and_cores(context: PilotContext, tmp_path: Path) -> None:
    made = part(context, *NODES, **SLURM)
    one = spec(tmp_path / "work", "n1", "n3")
    before = {**SLURM, "PATH": "/bin", "OMPI_MCA_plm_slurm_args": "--mem=0"}
    variables = made.variables(one, before)
    assert variables.pop("PATH").endswith("/bin:/bin")
    assert variables == {
        "SLURM_JOB_NAME": "t1.2",
        "SLURM_JOB_NODELIST": "n1,n3",
        "SLURM_NODELIST": "n1,n3",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NNODES": "2",
        "SLURM_TASKS_PER_NODE": "2,2",
        "SLURM_JOB_CPUS_PER_NODE": "2,2",
        "SLURM_CPUS_ON_NODE": "2",
        "BALSAM_OTHER_NODES": "n2",
        "OMPI_MCA_plm_slurm_args": "--mem=0 --nodelist=n1,n3",
        "PRTE_MCA_plm_slurm_args": "--nodelist=n1,n3",
    }
    whole = made.variables(spec(tmp_path / "work", *NODES), before)
    assert [name for name in whole if not name.startswith("SLURM_")] == ["PATH"]


def test_virtual_nodes_are_not_those_of_a_job_around_them(
    context: PilotContext, tmp_path: Path
) -> None:
    made = part(replace(context, virtual=True), "n2", **SLURM, **PBS)
    assert made.variables(spec(tmp_path / "work", "n2"), {**SLURM, **PBS}) == {}


def test_an_srun_of_its_own_keeps_off_other_nodes(tmp_path: Path) -> None:
    installed = tmp_path / "slurm's own"
    installed.mkdir()
    script(installed / "srun", 'printf "%s\\n" "$0" "$PATH" "$@"')
    path = f"{installed}:/bin"
    found = inner_steps({"PATH": path}, ["n2"], ["n1", "n3"])
    said = subprocess.run(
        ["srun", "-n", "2", "a b", "*"],
        env=found,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    real, told, *arguments = said.stdout.splitlines()
    assert real == str(installed / "srun")
    assert told == found["PATH"], "what it starts may be a script with an srun"
    assert arguments == ["--exclude=n1,n3", "-n", "2", "a b", "*"]
    nothing = subprocess.run(
        ["srun"], env={**found, "PATH": found["PATH"].replace(path, "/")}, capture_output=True
    )
    assert nothing.returncode == 127
    assert nothing.stderr == b"srun: no such program on PATH\n"
