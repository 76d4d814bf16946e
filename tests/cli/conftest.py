"""A site with a database, no process running, and the command line to call on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from balsam_celery import site as sites
from balsam_celery.cli import balsam
from balsam_celery.settings import LocalSettings
from balsam_celery.site import Site
from balsam_celery.siteinit import init
from balsam_celery.states import State
from balsam_celery.store import schema
from balsam_celery.store.engine import Store
from balsam_celery.store.insert import NewTask, insert_tasks
from balsam_celery.store.queries import get_task
from balsam_celery.store.transitions import Move, move
from tests.store.conftest import migrated_sqlite

__all__ = ["migrated_sqlite"]
S = State
#: From PREPROCESSED to each state, on legal moves.
PATHS: dict[State, tuple[State, ...]] = {
    S.PREPROCESSED: (),
    S.RUNNING: (S.DISPATCHED, S.RUNNING),
    S.JOB_FINISHED: (S.DISPATCHED, S.RUNNING, S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED),
    S.FAILED: (S.DISPATCHED, S.RUNNING, S.RUN_ERROR, S.FAILED),
    S.USER_KILLED: (S.USER_KILLED,),
}


@dataclass
class Cli:
    """Calls ``balsam`` on a site, in this process."""

    site: Site
    store: Store

    def __call__(self, *args: str, status: int = 0, stdin: str | bytes | None = None) -> Result:
        """Call it and check its exit status."""
        runner = CliRunner(env={"BALSAM_SITE": str(self.site.directory), "BALSAM_DEBUG": "1"})
        result = runner.invoke(balsam, list(args), input=stdin, prog_name="balsam")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, (args, result.exit_code, result.output)
        return result

    def json(self, *args: str, status: int = 0, stdin: str | bytes | None = None) -> Any:
        """Call it with ``--json`` and decode its stdout."""
        return json.loads(self(*args, "--json", status=status, stdin=stdin).stdout)

    def refused(self, *args: str, status: int = 2, stdin: str | bytes | None = None) -> str:
        """Call it, check that it fails without results, and return its line on stderr."""
        result = self(*args, status=status, stdin=stdin)
        assert result.stdout == ""
        assert result.stderr.startswith("balsam: "), result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr.strip().removeprefix("balsam: ")

    def task(self, id: str, state: State = S.PREPROCESSED, **fields: Any) -> str:
        """Insert a task and bring it to ``state``."""
        fields = {"name": "relax", "command": ["relax.x"], "argv": ["relax.x"]} | fields
        new = NewTask(id=id, application="relax", literal=True, wall_time=60, **fields)
        now = self.store.clock()
        self.store.run(lambda conn: insert_tasks(conn, [new], now=now, who="test"))
        source, moves = S.PREPROCESSED, []
        for target in PATHS[state]:
            moves.append(Move(id, source, target))
            source = target
        if moves:
            won = self.store.run(lambda conn: move(conn, moves, now=now, who="test"))
            assert len(won) == len(moves)
        return id

    def attempt(self, id: str, number: int = 1, **fields: Any) -> None:
        """Insert an attempt."""
        row = {
            "task": id,
            "number": number,
            "nodes": [{"node": "n0", "cores": [0, 1], "gpus": []}],
            "argv": ["relax.x"],
            "dispatched": 1.0,
            "started": 2.0,
            "reason": "",
        } | fields
        with self.store.write() as conn:
            conn.execute(schema.attempt.insert(), [row])
            conn.execute(schema.task.update().where(schema.task.c.id == id).values(attempt=number))

    def state(self, id: str) -> State:
        """The state of a task."""
        with self.store.read() as conn:
            return get_task(conn, id).state


@pytest.fixture
def site(tmp_path: Path, migrated_sqlite: Path) -> Site:
    """A new site of 4 virtual nodes with a database, and nothing running."""
    made = init(tmp_path / "site", local=LocalSettings(nodes=4, cores_per_node=8))
    shutil.copy(migrated_sqlite, made.database_path)
    return made


@pytest.fixture
def cli(site: Site) -> Iterator[Cli]:
    """The command line on :func:`site`."""
    store = sites.connect_store(site)
    yield Cli(site, store)
    store.close()
