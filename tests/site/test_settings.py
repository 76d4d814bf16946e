"""Checks of ``site.toml`` beyond the type of each value."""

from __future__ import annotations

from typing import Any

import pytest

from balsam_celery import settings
from balsam_celery.errors import InvalidInput

QUEUE = {"cores_per_node": 4}


def parse(kind: str, queue: dict[str, Any], **scheduler: Any) -> settings.Settings:
    return settings.parse({"scheduler": {"kind": kind, **scheduler}, "queues": {"q": queue}})


@pytest.mark.parametrize(
    ("kind", "queue", "scheduler", "message"),
    [
        ("slurm", {}, {}, r"queues\.q\.cores_per_node is 0: give the cores"),
        ("slurm", QUEUE | {"min_nodes": 0}, {}, r"queues\.q\.min_nodes is 0: give 1 or more"),
        ("slurm", QUEUE | {"min_nodes": 2}, {}, r"queues\.q: min_nodes is above max_nodes"),
        (
            "local",
            {"min_nodes": 9, "max_nodes": 9},
            {},
            r"queues\.q\.min_nodes is 9: local\.nodes is \d, so no job fits; give that or less",
        ),
        ("pbs", QUEUE | {"directives": "-A x"}, {}, r"queues\.q\.directives .*list of strings"),
        ("local", {}, {"directives": ["-A x"]}, r"the local scheduler has no directives"),
        ("local", {"directives": ["-A x"]}, {}, r"queues\.q\.directives has '-A x'"),
        ("slurm", QUEUE, {"directives": ["#SBATCH -A x"]}, r"has '#SBATCH -A x': give one option"),
        ("slurm", QUEUE, {"directives": ["-A x\n-C y"]}, r"give one option"),
        ("slurm", QUEUE | {"resources_per_node": 2}, {}, r"resources_per_node is 2: give a dict"),
        (
            "slurm",
            QUEUE | {"resources_per_node": {"nvme": 0}},
            {},
            r"queues\.q\.resources_per_node\.nvme is 0: give a whole number of 1 or more",
        ),
        ("local", {"account": "abc"}, {}, r"queues\.q\.account is 'abc': the local scheduler has"),
        ("pbs", QUEUE | {"account": "-A x"}, {}, r"queues\.q\.account is '-A x': give its name"),
        ("slurm", QUEUE | {"account": "a\n#"}, {}, r"queues\.q\.account .*give its name alone"),
        ("slurm", QUEUE | {"directives": [""]}, {}, r"queues\.q\.directives has ''"),
    ],
)
def test_refused(kind: str, queue: dict[str, Any], scheduler: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse(kind, queue, **scheduler)


def test_a_node_that_is_only_slow_is_not_lost() -> None:
    assert settings.parse({"pilot": {"silence_timeout": "10s"}}).pilot.silence_timeout == 10
    with pytest.raises(InvalidInput, match=r"pilot\.silence_timeout is 9: give 10s or more"):
        settings.parse({"pilot": {"silence_timeout": "9s"}})


def test_programs_are_killed_before_their_allocation_ends() -> None:
    read = settings.parse({"site": {"kill_grace": "60s"}, "pilot": {"drain_margin": "61s"}})
    assert (read.site.kill_grace, read.pilot.drain_margin) == (60, 61)
    message = r"pilot\.drain_margin is 15: give more than site\.kill_grace, which is 15,"
    with pytest.raises(InvalidInput, match=message):
        settings.parse({"site": {"kill_grace": "15s"}})


def test_what_the_site_counts_itself() -> None:
    counts = {"licence": 2, "nvme": 1}
    queue = parse("slurm", QUEUE | {"resources_per_node": counts}).queues["q"]
    local = settings.parse({"local": {"resources_per_node": counts}}).local
    assert queue.resources_per_node == local.resources_per_node == counts


def test_accepted() -> None:
    assert parse("local", {}).queues["q"].cores_per_node == 0
    read = parse("pbs", QUEUE | {"directives": ["-l filesystems=home"]}, directives=["-A x"])
    assert read.scheduler.directives == ("-A x",)
    assert read.queues["q"].directives == ("-l filesystems=home",)
