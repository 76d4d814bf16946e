"""What the batch system's variables tell a program of its task's nodes."""

from __future__ import annotations

import shutil
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
        "SLURM_TASKS_PER_NODE": "2(x2)",
        "SLURM_JOB_CPUS_PER_NODE": "2(x2)",
        "SLURM_CPUS_ON_NODE": "2",
        "BALSAM_SLURM_JOB": "7",
        "BALSAM_OTHER_NODES": "n2",
        "OMPI_MCA_plm_slurm_args": "--mem=0 --exclude=n2",
        "PRTE_MCA_plm_slurm_args": "--exclude=n2",
    }
    whole = made.variables(spec(tmp_path / "work", *NODES), before)
    added = [name for name in whole if not name.startswith("SLURM_")]
    assert added == ["PATH", "BALSAM_SLURM_JOB"]


def test_what_the_user_sets_stays(context: PilotContext, tmp_path: Path) -> None:
    """But for what keeps steps to the task's nodes: that is added to."""
    made = part(context, *NODES, **SLURM)
    own = {"PATH": "/opt/bin", "SLURM_NNODES": "9", "OMPI_MCA_plm_slurm_args": "--mem=0"}
    one = spec(tmp_path / "work", "n1", environment=own)
    variables = made.variables(one, {**SLURM, "PATH": "/bin", **own})
    assert "SLURM_NNODES" not in variables
    assert variables["PATH"].endswith("/bin:/opt/bin")
    assert variables["OMPI_MCA_plm_slurm_args"] == "--mem=0 --exclude=n[2-3]"
    made = part(replace(context, environment={}), *NODES, **PBS)
    one = spec(tmp_path / "work", "n1", environment={"PBS_NODEFILE": "mine"})
    assert made.variables(one, {**PBS, "PBS_NODEFILE": "mine"}) == {}


def test_virtual_nodes_are_not_those_of_a_job_around_them(
    context: PilotContext, tmp_path: Path
) -> None:
    made = part(replace(context, virtual=True), "n2", **SLURM, **PBS)
    assert made.variables(spec(tmp_path / "work", "n2"), {**SLURM, **PBS}) == {}


def test_variables_of_a_huge_pilot_are_short_enough(context: PilotContext, tmp_path: Path) -> None:
    """Linux starts nothing that has a variable of more than 128 KiB."""
    nodes = [f"x1921c7s5b0n{number:05}" for number in range(20_000)]
    made = part(context, *nodes, **SLURM)
    for own in (nodes[:1], nodes[7:19_999]):
        variables = made.variables(spec(tmp_path / "work", *own), {**SLURM, "PATH": "/bin"})
        assert subprocess.run(["/bin/true"], env=variables, check=False).returncode == 0


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a Slurm is whose ``srun`` prints its path, ``PATH`` and each argument."""
    installed = tmp_path / "slurm's own"
    installed.mkdir()
    script(installed / "srun", 'printf "%s\\n" "$0" "$PATH" "$@"')
    return f"{installed}:/bin"


def srun(directory: Path, environment: dict[str, str], *arguments: str) -> list[str]:
    """What it prints; called as a program in ``directory`` does."""
    argv = ["srun", *arguments]
    done = subprocess.run(
        argv, env=environment, cwd=directory, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_an_srun_of_its_own_keeps_off_other_nodes(tmp_path: Path, path: str) -> None:
    found = {**SLURM, **inner_steps({"PATH": path}, "7", ["n1", "n3"])}
    real, told, *arguments = srun(tmp_path, found, "-n", "2", "a b", "*")
    assert real == f"{path.removesuffix(':/bin')}/srun"
    assert told == found["PATH"], "what it starts may be a script with an srun"
    assert arguments == ["--exclude=n1,n3", "-n", "2", "a b", "*"]
    named = srun(tmp_path, {**found, "SLURM_JOB_NAME": "t1.2"}, "-n2")
    assert named[2:] == ["--exclude=n1,n3", "--job-name=t1.2", "-n2"]
    nothing = subprocess.run(
        ["srun"], env={**found, "PATH": found["PATH"].replace(path, "/")}, capture_output=True
    )
    assert nothing.returncode == 127
    assert nothing.stderr == b"srun: no such program on PATH\n"


@pytest.mark.parametrize("job", [{"SLURM_JOB_ID": "8"}, {}])
def test_an_srun_in_a_job_that_the_program_submits(
    tmp_path: Path, path: str, job: dict[str, str]
) -> None:
    """``sbatch`` hands it all variables; without a job, ``srun`` makes one."""
    found = inner_steps({"PATH": path}, "7", ["n1", "n3"])
    assert srun(tmp_path, {**found, **job, "SLURM_JOB_NAME": "mine"}, "-n2")[2:] == ["-n2"]


def test_two_installations_do_not_find_each_other_for_ever(tmp_path: Path, path: str) -> None:
    found = {**SLURM, **inner_steps({"PATH": path}, "7", ["n1"])}
    first = Path(found["PATH"].partition(":")[0])
    another = shutil.copytree(first, tmp_path / "another")
    (tmp_path / "link").symlink_to(first)
    for before in (another, tmp_path / "link", f"{another}:{first}:{another}"):
        both = {**found, "PATH": f"{before}:{found['PATH']}"}
        assert srun(tmp_path, both, "-n2")[2:] == ["--exclude=n1", "-n2"]
