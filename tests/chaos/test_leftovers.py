"""Each way of finding a process finds one that the others cannot; keys of the dead are found."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from balsam_celery.brands import children_branded
from balsam_celery.pilot.attempt import attempt_brand
from tests.chaos.leftovers import Hunted, keys
from tests.redis_server import RedisServer
from tests.waiting import wait_until

ROW = {"id": "chaos-test-left", "attempt": 2, "hooks": {"preprocess": ["true"]}}
JOB = "chaos-test.7"


@contextlib.contextmanager
def sleeper(
    environment: Mapping[str, str], *, attempt: str = "", job: str = "", place: str = "/"
) -> Iterator[int]:
    """A process that tells of itself only what is given here."""
    with children_branded(attempt=attempt, job=job):
        process = subprocess.Popen(["sleep", "600"], env=dict(environment), cwd=place)
    try:
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", 10)
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def hunted(tmp_path: Path) -> Hunted:
    return Hunted.of(tmp_path, [ROW], [JOB])


@pytest.mark.parametrize(
    ("told", "way"),
    [
        ({"environment": {"BALSAM_TASK_ID": "chaos-test-left"}}, "its mark"),
        ({"environment": {"BALSAM_HOOK": "chaos-test-left.0.preprocess"}}, "its mark"),
        ({"attempt": attempt_brand("chaos-test-left", 2)}, "the brand of an attempt or hook"),
        (
            {"attempt": "BALSAM_HOOK=chaos-test-left.0.preprocess"},
            "the brand of an attempt or hook",
        ),
        ({"job": JOB}, "the brand of a job"),
    ],
)
def test_each_way_alone_finds_it(hunted: Hunted, told: dict[str, str], way: str) -> None:
    assert hunted.alive() == []
    with sleeper(**{"environment": {}, **told}) as pid:  # type: ignore[arg-type]
        # also what a process of the site has started
        (found,) = hunted.alive([os.getpid()])
        assert found.startswith(f"pid {pid}, found by {way}: sleep 600")
    assert hunted.alive() == []


def test_what_names_the_directory_is_found_unless_the_site_has_it(
    hunted: Hunted, tmp_path: Path
) -> None:
    for environment, place in (({"BALSAM_SITE": f"{tmp_path}/site"}, "/"), ({}, str(tmp_path))):
        with sleeper(environment, place=place) as pid:
            (found,) = hunted.alive()
            assert found.startswith(f"pid {pid}, found by the run's directory: ")
            assert hunted.alive([os.getpid()]) == []


def test_keys_and_members_of_the_dead_are_found(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.set("left.acks.dead-pilot.n1", "x")
        client.set("left.acks.dead-pilot.n2", "x", ex=1000)
        client.set("left.acks.living.n1", "x")
        client.sadd("left._kombu.binding.celery.pidbox", "n1@dead-pilot.celery", "n1@living.celery")
        client.hset("left.unacked", mapping={"dead-allocation": "x", "other": "x"})
        client.zadd("left.index", {"n1@dead-pilot": time.time()})
        client.set("another.acks.dead-pilot.n1", "x")
        try:
            assert sorted(keys(client, "left.", ["dead-pilot"], ["dead-allocation"])) == [
                "dead-allocation in left.unacked",
                "left.acks.dead-pilot.n1",
                "n1@dead-pilot in left.index",
                "n1@dead-pilot.celery in left._kombu.binding.celery.pidbox",
            ]
        finally:
            client.delete(*client.scan_iter("left.*"), "another.acks.dead-pilot.n1")
