"""A site that is up, where other users can reach it, with a nasty name; and an engine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery.settings import LocalSettings
from tests.acceptance.live import LiveSite, live_site
from tests.pilot.conftest import pilot
from tests.service.running.conftest import app, clock, make_engine, player, site
from tests.store.conftest import migrated_postgres, migrated_sqlite, postgres_server, store, url

__all__ = [
    "app", "clock", "make_engine", "migrated_postgres", "migrated_sqlite", "pilot",
    "player", "postgres_server", "site", "store", "url",
]  # fmt: skip

#: What a shell would make of this is seen in the working directories of all processes.
NASTY = 'it\'s $(touch pwned) `touch pwned` & "q" * %d {0}'

USER_MODULE = """
import os
from celery import shared_task


@shared_task
def environ(*args):
    return dict(os.environ)
"""


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """The site; whoever started it has an open umask, and all directories above are open."""
    # pytest's own directories are closed to others, who would prove nothing there
    world = Path(tempfile.mkdtemp(prefix="balsam-world-"))
    world.chmod(0o755)
    (world / "scratch").mkdir(mode=0o755)
    directory = world / NASTY
    directory.mkdir(mode=0o700)
    (directory / "user_tasks.py").write_text(USER_MODULE, encoding="utf-8")
    (directory / "user_tasks.py").chmod(0o600)
    before = os.umask(0)
    try:
        with live_site(
            directory,
            LocalSettings(nodes=2, cores_per_node=2),
            world / "state",
            max_nodes="2",
            run_dir=f'"{world}/scratch/run"',
            default_wall_time='"5m"',
            max_wall_time='"30m"',
            idle_timeout='"60s"',
            imports='["user_tasks"]',
            kill_grace='"2s"',
        ) as opened:
            yield opened
    finally:
        os.umask(before)
        shutil.rmtree(world)
