"""One live site for the whole of the acceptance tests: eight virtual nodes of two slots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery.settings import LocalSettings
from tests.acceptance.live import LiveSite, close_live_site, open_live_site

#: An ordinary Celery module of a user: on the path because it lies in the site directory.
USER_MODULE = '''
from celery import shared_task


@shared_task
def total(results):
    """Sum of what the programs printed."""
    results = results if isinstance(results, list) else [results]
    return sum(int(result["output_tail"]) for result in results)


@shared_task
def double(number):
    return 2 * int(number if not isinstance(number, dict) else number["output_tail"])


@shared_task
def fail(*args):
    raise ValueError("on purpose")


@shared_task
def note(*args, path):
    with open(path, "a") as file:
        file.write(f"{len(args)}\\n")
'''


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """The site; tests leave it up and idle."""
    directory: Path = tmp_path_factory.mktemp("live") / "site"
    directory.mkdir(mode=0o700)
    (directory / "user_tasks.py").write_text(USER_MODULE, encoding="utf-8")
    live = open_live_site(
        directory,
        LocalSettings(nodes=8, cores_per_node=2, gpus_per_node=2),
        max_nodes="4",
        default_wall_time='"5m"',
        max_wall_time='"30m"',
        idle_timeout='"20s"',
        imports='["user_tasks"]',
        kill_grace='"2s"',
        poll_interval='"1s"',
        interval='"1s"',
    )
    yield live
    close_live_site(live)
