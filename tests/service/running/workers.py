"""Celery workers of a site's login node, as the supervisor would start them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from balsam_celery.celeryapp import ROLE_VARIABLE
from balsam_celery.site import SITE_VARIABLE, Site
from balsam_celery.supervisor.children import CELERY_COMMAND
from tests.waiting import wait_until


class Worker:
    """One Celery worker process."""

    def __init__(self, site: Site, app: Celery[Any], role: str, name: str, *options: str) -> None:
        self.hostname = f"{role}@{name}"
        self._app = app
        self.log = site.directory / f"{self.hostname}.log"
        environment = {**os.environ, SITE_VARIABLE: str(site.directory), ROLE_VARIABLE: role}
        argv = [
            sys.executable, "-P", "-m", CELERY_COMMAND, "worker", "-l", "INFO",
            "-n", self.hostname, "-Q", role, "--without-gossip", "--without-mingle", *options,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def inspect(self, command: str, *arguments: str) -> Any:
        """Its answer to ``celery inspect``; ``None``: there is none."""
        inspect = self._app.control.inspect([self.hostname], timeout=1.0)
        return (getattr(inspect, command)(*arguments) or {}).get(self.hostname)

    def wait_ready(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.inspect("ping") is not None

        wait_until(answers, 60, f"{self.hostname} answers")

    def queues(self) -> list[str]:
        """Queues that it takes from."""
        return [queue["name"] for queue in self.inspect("active_queues") or ()]

    def kill(self) -> None:
        """SIGKILL, to it and its pool."""
        os.killpg(self.process.pid, 9)
        self.process.wait(20)

    def stop(self) -> None:
        """End it, the hard way if it must be."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


class Workers:
    """Starts workers and stops them at the end."""

    def __init__(self, site: Site, app: Celery[Any]) -> None:
        self._site = site
        self._app = app
        self._started: list[Worker] = []

    def start(self, role: str, name: str, *options: str) -> Worker:
        """Start a worker and wait until it answers."""
        worker = Worker(self._site, self._app, role, name, *options)
        self._started.append(worker)
        worker.wait_ready()
        return worker

    def stop(self) -> None:
        """Stop all."""
        for worker in self._started:
            worker.stop()


@pytest.fixture
def workers(site: Site, app: Celery[Any]) -> Iterator[Workers]:
    """Workers of the site."""
    made = Workers(site, app)
    yield made
    made.stop()


def write_module(site: Site, name: str, source: str) -> None:
    """A module of the user's in the site's directory, imported by the tasks worker."""
    (site.directory / f"{name}.py").write_text(source)
    with (site.directory / "site.toml").open("a") as file:
        file.write(f'\n[tasks]\nimports = ["{name}"]\n')


def read_lines(path: Path) -> list[str]:
    """Lines of a file, none when it does not exist."""
    return path.read_text().splitlines() if path.exists() else []
