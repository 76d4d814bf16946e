"""``init`` with a scheduler, ``allocations preview``, ``site refresh``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery.site import find
from tests.cli.conftest import Cli
from tests.cli.test_json import check
from tests.schedulers.harness_pbs import PbsHarness

CLUSTER = """
[scheduler]
kind = "slurm"
directives = ["--account=abc"]
setup = ["module load gcc"]
[queues.debug]
min_nodes = 2
max_nodes = 8
max_wall_time = "1h"
cores_per_node = 4
[queues.long]
max_nodes = 4
min_wall_time = "1h"
max_wall_time = "2d"
cores_per_node = 4
directives = ["--qos=long"]
"""


@pytest.fixture
def cluster(cli: Cli) -> Cli:
    """The site as one of a Slurm machine."""
    path = cli.site.directory / "site.toml"
    path.write_text(f'[site]\nname = "c"\nid = "{cli.site.settings.site.id}"\n{CLUSTER}')
    return cli


@pytest.fixture
def pbs(tmp_path: Path) -> Iterator[PbsHarness]:
    (tmp_path / "harness").mkdir()
    harness = PbsHarness(tmp_path / "harness")
    yield harness
    harness.stop()


@pytest.fixture
def no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PBS_CONF_FILE", str(tmp_path / "none"))


def files(cli: Cli) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in cli.site.directory.rglob("*") if p.is_file()}


def test_preview_of_a_local_site(cli: Cli) -> None:
    before = files(cli)
    result = cli("allocations", "preview")
    assert re.fullmatch(
        r"#!/bin/sh\nexec \S+ -m balsam_celery\.pilot --site \S+ --allocation 0{12}"
        r" --queue local\n",
        result.stdout,
    )
    assert result.stderr == "balsam: run by the site itself\n"
    assert cli.json("allocations", "--all") == {"allocations": []}
    assert files(cli) == before


def test_preview(cluster: Cli) -> None:
    plain = cluster.json("allocations", "preview")
    check("preview", plain)
    assert (plain["queue"], plain["nodes"], plain["wall_time"]) == ("debug", 2, 3600)
    assert "#SBATCH --nodes=2\n" in plain["script"]
    assert "#SBATCH --account=abc\n" in plain["script"]
    assert "\nmodule load gcc\n" in plain["script"]
    assert plain["command"][0] == "sbatch"
    assert plain["command"][-1].startswith(str(cluster.site.run_dir))
    args = ("--queue", "long", "--nodes", "4", "--wall-time", "90m")
    result = cluster("allocations", "preview", *args)
    assert "#SBATCH --time=01:30:00\n" in result.stdout
    assert "#SBATCH --qos=long\n" in result.stdout
    assert result.stderr.startswith("balsam: submitted by: sbatch --parsable ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--queue", "nope"), "--queue is 'nope': site.toml has debug, long"),
        (("--nodes", "1"), "--nodes is 1: queue 'debug' gives 2 to 8"),
        (("--nodes", "9"), "--nodes is 9: queue 'debug' gives 2 to 8"),
        (("--wall-time", "61m"), "--wall-time is '61m': queue 'debug' gives 1m to 1h"),
        (("--queue", "long", "--wall-time", "5m"), "queue 'long' gives 1h to 2d"),
        (("--wall-time", "x"), "--wall-time is 'x'"),
    ],
)
def test_preview_of_what_the_queue_does_not_give(
    cluster: Cli, args: tuple[str, ...], words: str
) -> None:
    assert words in cluster.refused("allocations", "preview", *args)


def test_preview_with_a_template_that_fails(cluster: Cli) -> None:
    path = cluster.site.directory / "site.toml"
    path.write_text(path.read_text().replace("[scheduler]", '[scheduler]\ntemplate = "a.j2"'))
    (cluster.site.directory / "a.j2").write_text("#!/bin/sh\n{{ job.queu }}\n")
    assert re.search(r"a\.j2:2: .*'queu'", cluster.refused("allocations", "preview"))


def test_preview_without_a_queue(cluster: Cli) -> None:
    path = cluster.site.directory / "site.toml"
    path.write_text(path.read_text().partition("[queues")[0])
    assert "add a table [queues.NAME]" in cluster.refused("allocations", "preview")


@pytest.mark.usefixtures("no_scheduler")
def test_init_without_a_scheduler_is_local(cli: Cli, tmp_path: Path) -> None:
    result = cli("init", str(tmp_path / "new"))
    assert "no batch scheduler answers here" in result.stderr
    made = find(tmp_path / "new").settings
    assert (made.scheduler.kind, made.redis.host, made.redis.tls) == ("local", "127.0.0.1", False)
    assert "local" in made.queues


@pytest.mark.usefixtures("no_scheduler")
def test_init_that_is_refused(cli: Cli, tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    assert "give one of auto, local, pbs" in cli.refused("init", new, "--scheduler", "x")
    assert "'slurm' does not answer" in cli.refused("init", new, "--scheduler", "slurm", status=1)
    line = cli.refused("init", new, "--scheduler", "auto", "--nodes", "2")
    assert "--nodes describe local nodes" in line
    assert not Path(new).exists()


@pytest.mark.usefixtures("no_scheduler")
def test_refresh_of_a_local_site(cli: Cli) -> None:
    assert cli.json("site", "refresh") == {"changes": [], "written": False}
    assert "'local' tells no queues" in cli("site", "refresh").stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[launcher]\nkind = "mpirn"', "[launcher] kind is 'mpirn': give one of auto, none, mpich"),
        ('[pilot]\nlauncher = "x"', "[pilot] launcher is 'x': give one of auto, none, mpich"),
        ('[launcher]\nkind = "template"', "give launcher.template, such as"),
        ('[pilot]\nlauncher = "template"', "give launcher.template, such as"),
        ('[launcher]\ntemplate = ["mpiexec", "{n}", "{command}"]', "holds '{n}': of braces it"),
    ],
)
def test_up_with_a_launcher_that_there_is_none_of(cli: Cli, text: str, words: str) -> None:
    path = cli.site.directory / "site.toml"
    path.write_text(f'[site]\nname = "c"\nid = "{cli.site.settings.site.id}"\n{text}\n')
    assert words in cli.refused("up")


def test_refresh_shows_a_queue_that_is_stopped(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    state.write_text("UP\n")
    for name, script in (
        ("sinfo", "echo 'small|4|1|4|100|'"),
        (
            "scontrol",
            f'[ "$3" = partition ] && read state < {state} && echo PartitionName=small'
            " State=$state MaxNodes=2 TotalNodes=2 MaxTime=60:00; exit 0",
        ),
    ):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    cli("init", str(tmp_path / "new"), "--scheduler", "slurm", "--no-tls")
    here = Cli(find(tmp_path / "new"), cli.store)
    state.write_text("DOWN\n")
    (change,) = here.json("site", "refresh", "--write")["changes"]
    check("change", change)
    assert (change["key"], change["now"], change["action"]) == (
        "queues.small", "stopped now", "keep",
    )  # fmt: skip
    assert re.search(r"queues\.small +a queue +stopped now ", here("site", "refresh").stdout)
    assert "small" in find(tmp_path / "new").settings.queues


def test_init_and_refresh_on_pbs(cli: Cli, pbs: PbsHarness, tmp_path: Path) -> None:
    directory = tmp_path / "new"
    result = cli("init", str(directory), "--scheduler", "auto", "--no-tls")
    assert "scheduler pbs: queues workq, short" in result.stderr
    assert "trusted_network" in result.stderr
    here = Cli(find(directory), cli.store)
    assert here.site.settings.scheduler.kind == "pbs"
    assert "nothing has changed" in here("site", "refresh").stderr
    script = here("allocations", "preview", "--nodes", "3").stdout
    assert "#PBS -l select=3:ncpus=4" in script
    assert "#PBS -q workq\n" in script

    path = directory / "site.toml"
    text = path.read_text().replace("[queues.short]", "[queues.gone]")
    path.write_text(text.replace("max_nodes = 8", "max_nodes = 9", 1))
    found = here.json("site", "refresh")["changes"]
    for change in found:
        check("change", change)
    assert [(c["key"], c["site"], c["now"], c["action"]) for c in found] == [
        ("queues.workq.max_nodes", 9, 8, "set"),
        ("queues.gone", {}, None, "keep"),
    ]
    shown = here("site", "refresh")
    assert re.search(r"queues\.workq\.max_nodes +9 +8 +8 +set", shown.stdout)
    assert "writes 1 change" in shown.stderr
    assert path.read_text().count("max_nodes = 9") == 1
    assert here.json("site", "refresh", "--write")["written"] is True
    assert "max_nodes = 9" not in path.read_text()
    assert "[queues.gone]" in path.read_text()
    with pbs.unavailable():
        assert "'pbs' does not answer" in here.refused("site", "refresh", status=1)
