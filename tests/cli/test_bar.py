"""Long work shows at a terminal how far it is, and is silent elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from balsam_celery.store import schema
from balsam_celery.store.insert import NewTask, insert_tasks
from tests.cli.conftest import Cli

BALSAM = Path(sys.executable).with_name("balsam")


def at_a_terminal(cli: Cli, *args: str) -> str:
    """Call ``balsam`` with a terminal as stderr; what that showed."""
    ours, theirs = pty.openpty()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(cli.site.directory),
        "BALSAM_SITE": str(cli.site.directory),
        "TERM": "xterm",
    }
    with subprocess.Popen(
        [BALSAM, *args], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # what Linux says when nobody holds the other end any more
        finally:
            os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()


def many(cli: Cli) -> None:
    """One task more than one transaction takes."""
    tasks = [
        NewTask(
            id=f"task-{number:08}", name="relax", application="relax", literal=True, wall_time=60,
            command=["relax.x"], argv=["relax.x"],
        )
        for number in range(501)
    ]  # fmt: skip
    cli.store.run(lambda conn: insert_tasks(conn, tasks, now=cli.store.clock(), who="test"))


def test_kill(cli: Cli) -> None:
    many(cli)
    shown = at_a_terminal(cli, "kill", "--name", "relax", "--yes")
    for text in ("500 tasks killed", "500/501"):
        assert text in shown


def test_prune(cli: Cli) -> None:
    many(cli)
    cli("kill", "--name", "relax", "--yes")
    with cli.store.write() as conn:
        conn.execute(schema.task.update().values(finished=1.0))
        conn.execute(schema.effect.delete())  # no service runs that would perform them
    shown = at_a_terminal(cli, "prune", "--older-than", "1d", "--yes")
    assert "501/?" in shown


def test_elsewhere(cli: Cli) -> None:
    cli.task("task-00000001")
    last = cli("kill", "task-00000001").stderr.splitlines()[-1]
    assert last == "balsam: 1 task killed"
