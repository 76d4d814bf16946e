"""Batch scripts: what is rendered, word for word, and that a shell runs it as it is meant."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from pathlib import Path

import pytest

from balsam_celery import jobscript, settings
from balsam_celery.errors import SettingsError
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import JobRequest
from balsam_celery.settings import QueueSettings, SchedulerSettings, Settings
from balsam_celery.site import Site

GOLDEN = Path(__file__).parent.parent / "data" / "jobscripts"
EXAMPLES = Path(__file__).parents[2] / "config" / "sites"
ID = "0a1b2c3d4e5f"
KINDS = ("slurm", "pbs", "psij", "local")


def make_site(directory: Path, kind: str = "slurm", python: str = "/opt/py/bin/python") -> Site:
    """A site of that kind with two queues, one with GPUs, and nothing on disk."""
    made = Settings(
        site=dataclasses.replace(settings.SiteSettings(), id="1f2e3d4c"),
        scheduler=SchedulerSettings(
            kind=kind,
            directives=() if kind == "local" else ("--account=abc", "--time-min=5"),
            setup=("module load gcc", 'export X="a b"'),
            executor="lsf",
        ),
        queues={
            "gpu": QueueSettings(
                max_nodes=8, cores_per_node=64, gpus_per_node=4, directives=("--qos=high",)
            ),
            "cpu": QueueSettings(max_nodes=8, cores_per_node=48),
        },
        pilot=dataclasses.replace(settings.PilotSettings(), python=python),
    )
    return Site(directory, made, Path("/var/tmp/local"))


def render(site: Site, queue: str = "gpu", nodes: int = 4, wall_time: int = 90061) -> str:
    """The script of an allocation of ``site``."""
    kind = site.settings.scheduler.kind
    scheduler = make_scheduler(kind, settings=site.settings, local_dir=site.local_dir)
    directory = site.run_dir / "allocations" / ID
    request = JobRequest(
        f"balsam-{site.settings.site.id}-{ID}",
        queue, nodes, wall_time, directory / "job.sh", directory,
    )  # fmt: skip
    return jobscript.render(site, scheduler, request, ID)


def with_template(site: Site, text: str, name: str = "own.sh.j2") -> Site:
    """``site`` with a template of its own."""
    (site.directory / name).write_text(text)
    scheduler = dataclasses.replace(site.settings.scheduler, template=name)
    return dataclasses.replace(
        site, settings=dataclasses.replace(site.settings, scheduler=scheduler)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_golden(kind: str) -> None:
    script = render(make_site(Path("/lustre/me/my site"), kind))
    assert script == (GOLDEN / f"{kind}.sh").read_text()


@pytest.mark.parametrize(("kind", "line"), [("slurm", "--account=m1_g"), ("pbs", "-A m1_g")])
def test_the_account_of_a_queue(kind: str, line: str) -> None:
    site = make_site(Path("/lustre/me"), kind)
    queue = dataclasses.replace(site.settings.queues["gpu"], account="m1_g")
    made = dataclasses.replace(site.settings, queues=site.settings.queues | {"gpu": queue})
    site = dataclasses.replace(site, settings=made)
    assert f"#{'SBATCH' if kind == 'slurm' else 'PBS'} {line}" in render(site).splitlines()
    assert line not in render(site, "cpu")


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.toml")))
def test_examples(name: str, tmp_path: Path) -> None:
    loaded = settings.load(EXAMPLES / f"{name}.toml")
    loaded = dataclasses.replace(
        loaded,
        site=dataclasses.replace(loaded.site, id="1f2e3d4c"),
        pilot=dataclasses.replace(loaded.pilot, python="/opt/py/bin/python"),
    )
    for template in EXAMPLES.glob("*.j2"):
        (tmp_path / template.name).write_text(template.read_text())
    site = Site(tmp_path, loaded, Path("/var/tmp/local"))
    queue = next(iter(loaded.queues))
    script = render(site, queue, loaded.queues[queue].max_nodes, 3600)
    golden = (GOLDEN / f"example-{name}.sh").read_text()
    assert script.replace(str(tmp_path), "/lustre/me/site") == golden


def test_every_example_template_belongs_to_an_example() -> None:
    used = {settings.load(path).scheduler.template for path in EXAMPLES.glob("*.toml")} - {""}
    assert used == {path.name for path in EXAMPLES.glob("*.j2")}


def test_a_queue_without_gpus_asks_for_none() -> None:
    assert "gpu" not in render(make_site(Path("/s")), "cpu").replace("--queue", "")
    assert "select=4:ncpus=48\n" in render(make_site(Path("/s"), "pbs"), "cpu")


def test_pbs_is_asked_for_no_more_memory_than_a_node_has() -> None:
    site = make_site(Path("/s"), "pbs")
    queue = dataclasses.replace(site.settings.queues["gpu"], memory_per_node=(512 << 30) + 1023)
    changed = dataclasses.replace(site.settings, queues={"gpu": queue})
    script = render(dataclasses.replace(site, settings=changed))
    assert "select=4:ncpus=64:ngpus=4:mem=536870912kb\n" in script


@pytest.mark.parametrize("kind", KINDS)
def test_a_shell_runs_it(kind: str, tmp_path: Path) -> None:
    site_dir = tmp_path / "a 'site' $HOME; %j"
    python = tmp_path / "py thon"
    python.write_text(
        '#!/bin/sh\nfor a in "$PWD" "$BALSAM_JOB_QUEUE" "$BALSAM_JOB_END" "$X" "$(umask)" "$@"\n'
        'do printf "%s\\n" "$a"; done\n'
    )
    python.chmod(0o700)
    site = make_site(site_dir, kind, str(python))
    changed = dataclasses.replace(site.settings.scheduler, setup=("X='set up'", "export X"))
    site = dataclasses.replace(site, settings=dataclasses.replace(site.settings, scheduler=changed))
    directory = site.run_dir / "allocations" / ID
    directory.mkdir(parents=True)
    script = directory / "job.sh"
    script.write_text(render(site, wall_time=3600))
    script.chmod(0o700)
    started = time.time()
    done = subprocess.run([script], cwd=tmp_path, capture_output=True, text=True, check=True)
    # PBS would copy the output only when the job has ended: the script writes it itself
    out = (directory / "job.out").read_text() if kind == "pbs" else done.stdout
    cwd, queue, end, x, umask, *argv = out.splitlines()
    assert x == "set up"
    assert argv == ["-m", "balsam_celery.pilot", "--site", str(site_dir), "--allocation", ID,
                    "--queue", "gpu"]  # fmt: skip
    if kind == "pbs":
        assert cwd == str(directory)  # PBS starts jobs in $HOME
    if kind in ("pbs", "psij"):
        assert queue == "gpu"
    if kind != "local":
        assert started - 1 <= float(end) - 3600 <= time.time()
    if kind != "local":
        assert umask == "0077"
    assert done.stderr == ""


def test_a_directory_that_the_node_does_not_see_is_told(tmp_path: Path) -> None:
    """A file system that is not mounted there: the pilot does not start somewhere else."""
    site = make_site(tmp_path / "my 'site'", "pbs", "/bin/echo")
    script = tmp_path / "job.sh"
    script.write_text(render(site, wall_time=3600))
    done = subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, text=True)
    directory = site.run_dir / "allocations" / ID
    assert done.stdout == ""
    why = f"no such directory on {os.uname().nodename}, or it may not be entered"
    assert done.stderr == f"balsam: {directory}: {why}\n"
    assert done.returncode == 1


def test_own_template_extends_the_one_of_the_kind(tmp_path: Path) -> None:
    text = '{% extends "slurm.sh.j2" %}{% block setup %}{{ super() }}echo {{ job.nodes }}\n'
    text += "{% endblock %}"
    # of the same name: it must not extend itself
    script = render(with_template(make_site(tmp_path), text, "slurm.sh.j2"))
    assert 'export X="a b"\necho 4\nexec /opt/py/bin/python' in script
    assert "#SBATCH --nodes=4" in script


def test_what_a_template_sees(tmp_path: Path) -> None:
    text = (
        "{{ job.name }} {{ job.wall_time | hms }} {{ queue.gpus_per_node }} {{ scheduler.kind }}\n"
        "{{ site.settings.site.id }} {{ directives | join(';') }} {{ setup | length }}\n"
        "{{ 'a b' | quote }}\n"
    )
    assert render(with_template(make_site(tmp_path), text)) == (
        f"balsam-1f2e3d4c-{ID} 25:01:01 4 slurm\n"
        "1f2e3d4c --account=abc;--time-min=5;--qos=high 2\n"
        "'a b'\n"
    )


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("ok\n{% if %}\n", 2, "Expected an expression"),
        ("ok\n\n{{ job.node }}\n", 3, "no attribute 'node'"),
        ("{{ nonesuch }}\n", 1, "'nonesuch' is undefined"),
        ("a\n{{ 'x' | hms }}\n", 2, "invalid literal"),
        ("a\n{{ 1 / 0 }}\n", 2, "division by zero"),
        ("a\n{{ 1 | nonesuch }}\n", 2, "No filter named 'nonesuch'"),
    ],
)
def test_a_template_that_fails_names_its_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    site = with_template(make_site(tmp_path), text)
    with pytest.raises(SettingsError, match=message) as raised:
        render(site)
    assert f"{tmp_path / 'own.sh.j2'}:{line}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_template_that_cannot_be_read(tmp_path: Path) -> None:
    site = with_template(make_site(tmp_path), "")
    (tmp_path / "own.sh.j2").unlink()
    with pytest.raises(SettingsError, match=r"own\.sh\.j2.*No such file"):
        render(site)
    (tmp_path / "own.sh.j2").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"own\.sh\.j2.*utf-8"):
        render(site)
    site = with_template(make_site(tmp_path), '{% extends "nonesuch.j2" %}')
    with pytest.raises(SettingsError, match=r"own\.sh\.j2:1: 'nonesuch\.j2' not found"):
        render(site)


def test_a_queue_that_site_toml_does_not_have() -> None:
    with pytest.raises(SettingsError, match=r"no queue 'nowhere': site\.toml has cpu, gpu"):
        render(make_site(Path("/s")), "nowhere")
