"""A whole site, up, and clients of it in processes of their own, as users have them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from balsam_celery import procs, settings
from balsam_celery.settings import LocalSettings
from balsam_celery.site import Site, connect_store
from balsam_celery.siteinit import init
from balsam_celery.store import queries
from balsam_celery.store.engine import Store
from balsam_celery.store.queries import TaskFilter
from balsam_celery.store.rows import TaskRow
from balsam_celery.supervisor import down, up
from tests.clients import clients
from tests.waiting import wait_until

BIN = Path(sys.executable).parent
#: Lasts in its first attempt; each of its processes carries the task's mark.
FIRST_LASTS = 'if [ "$BALSAM_ATTEMPT" = 1 ]; then exec sleep 600; fi'


@dataclass
class LiveSite:
    """A site that is up."""

    site: Site
    store: Store

    @property
    def environment(self) -> dict[str, str]:
        """For clients."""
        return {**os.environ, "BALSAM_SITE": str(self.site.directory)}

    def balsam(self, *arguments: str, status: int = 0, stdin: str | None = None) -> str:
        """Run ``balsam …``; returns its standard output."""
        done = clients.run("balsam", *arguments, environment=self.environment, stdin=stdin)
        assert done.returncode == status, (arguments, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout if status == 0 else done.stdout + done.stderr

    def json(self, *arguments: str) -> Any:
        """Run ``balsam … --json``; returns what it prints."""
        return json.loads(self.balsam(*arguments, "--json"))

    def status(self) -> Any:
        """What ``balsam status --json`` prints, whatever its exit status."""
        done = clients.run("balsam", "status", "--json", environment=self.environment)
        return json.loads(done.stdout)

    def submit(self, *arguments: str) -> list[str]:
        """``balsam submit --json …``; returns the ids."""
        printed = json.loads(self.balsam("submit", "--json", *arguments))
        return [task["id"] for task in printed["tasks"]]

    def celery(self, *arguments: str) -> str:
        """Run ``celery -A balsam_celery …``."""
        argv = ("celery", "-A", "balsam_celery", *arguments)
        done = clients.run(*argv, environment=self.environment)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def python(self, code: str) -> Any:
        """Run a client program; returns the JSON value that its last line holds."""
        done = clients.run("python", code, environment=self.environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def task(self, id: str) -> TaskRow:
        """The row of one task."""
        with self.store.read() as conn:
            return queries.get_task(conn, id)

    def tasks(self, **criteria: Any) -> list[TaskRow]:
        """The rows that fit."""
        with self.store.read() as conn:
            return queries.select_tasks(conn, TaskFilter(**criteria), limit=100_000)

    def wait_for(self, id: str, *states: str, timeout: float = 90) -> TaskRow:
        """Wait until a task is in one of ``states``."""

        def there() -> TaskRow | None:
            row = self.task(id)
            return row if row.state in states else None

        def told() -> str:
            row = self.task(id)
            return f"task {id} in {states}; it is {row.state}: {row.reason}"

        row = wait_until(there, timeout, told)
        assert row is not None
        return row


def open_live_site(directory: Path, local: LocalSettings, **keys: str) -> LiveSite:
    """Make a site and bring it up; ``keys`` are changed in ``site.toml``, as a user would."""
    site = init(directory, name="test", local=local)
    path = directory / "site.toml"
    text = path.read_text(encoding="utf-8")
    for key, value in keys.items():
        text, count = re.subn(rf"^{key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, f"{key} stands {count} times in {path}"
    path.write_text(text, encoding="utf-8")
    site = replace(site, settings=settings.load(path))
    up(site)
    return LiveSite(site, connect_store(site))


@contextmanager
def live_site(
    directory: Path, local: LocalSettings, state_home: Path, **keys: str
) -> Iterator[LiveSite]:
    """One whose local state is kept in ``state_home``; it is down afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(state_home))
        opened = open_live_site(directory, local, **keys)
        try:
            yield opened
        finally:
            close_live_site(opened)


def close_live_site(live: LiveSite) -> None:
    """Bring it down."""
    live.store.close()
    down(live.site)


def kill9(pid: int) -> None:
    """End a process at once and wait until it is gone."""
    identity = procs.identity(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: identity is None or not procs.alive(identity), 20, f"{pid} is gone")


def one_on_each_node(live: LiveSite, nodes: int) -> dict[str, str]:
    """Start a task that lasts on each node of one pilot; node → task."""
    ids = live.submit(
        "--array", f"1-{nodes}", "--node-packing-count", "1", "--", "/bin/sh", "-c", FIRST_LASTS
    )
    for id in ids:
        live.wait_for(id, "RUNNING", timeout=120)
    return {live.task(id).shares[0]["node"]: id for id in ids}  # type: ignore[index]


def ran_twice(live: LiveSite, id: str) -> None:
    """The task was cut short, which counts as no failure, and then succeeded."""
    row = live.wait_for(id, "JOB_FINISHED", timeout=240)
    assert row.attempt == 2
    assert row.failures == 0
