"""A site and its real local scheduler; the store is that of ``tests.service``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import JobState, Scheduler
from balsam_celery.settings import LocalSettings, PilotSettings, QueueSettings
from balsam_celery.site import Site
from balsam_celery.siteinit import init
from tests.redis_server import RedisServer
from tests.waiting import wait_until


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site of four virtual nodes of two cores, with a queue of at most ten minutes.

    In its jobs a program that stays takes the place of the pilot.
    """
    program = tmp_path / "stays"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o700)
    made = init(tmp_path / "site", local=LocalSettings(nodes=4, cores_per_node=2))
    queue = QueueSettings(max_nodes=4, max_wall_time=600, max_queued=3, max_running=3)
    pilot = PilotSettings(python=str(program))
    return dataclasses.replace(
        made, settings=dataclasses.replace(made.settings, queues={"local": queue}, pilot=pilot)
    )


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """The site's Redis."""
    made = redis_server.client()
    yield made
    made.close()


@pytest.fixture
def scheduler(site: Site) -> Iterator[Scheduler]:
    """The local scheduler."""
    made = make_scheduler("local", settings=site.settings, local_dir=site.local_dir)
    yield made
    for job in made.jobs():
        made.cancel(job)
    wait_until(lambda: all(j.state is JobState.ENDED for j in made.jobs().values()), 30, "the end")
