"""A client of its own that submits the tasks of a run, a batch at a time, through every fault.

Run as ``python -m tests.chaos.submitter SEED COUNT DIRECTORY`` with ``BALSAM_SITE`` set. A batch
whose fate is not known is looked for before it is submitted again, so none comes twice. It keeps
``AHEAD`` tasks waiting, and kills what is to be killed a batch later. It stops early once there is
a file ``enough``; how many it has submitted stands in ``submitted``.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from balsam_celery import NotFound, program, submit_many
from balsam_celery import tasks as submitted
from balsam_celery.celeryapp import current_site
from balsam_celery.errors import StoreError
from balsam_celery.tasks.submit import RedisDown
from tests.chaos.workload import RULES, WORKFLOW, Task, task_id, tasks

BATCH = 40
#: Tasks that wait, at the least, while there are more to come.
AHEAD = 150
#: Names of files in the directory.
ENOUGH, SUBMITTED = "enough", "submitted"
T = TypeVar("T")
_pause = threading.Event()


def insistent(fn: Callable[[], T]) -> T:
    """What ``fn`` returns once the database answers."""
    while True:
        try:
            return fn()
        except StoreError as error:
            print(f"submitter: {error}: trying again", file=sys.stderr, flush=True)
            _pause.wait(0.5)


def is_there(id: str) -> bool:
    """A task of this id exists."""
    try:
        submitted.get(id)
    except NotFound:
        return False
    return True


def main(seed: int, count: int, directory: Path) -> None:
    """Submit them all."""
    warnings.simplefilter("ignore", RedisDown)
    site = current_site().settings.site.id
    run = program(
        "chaos",
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("program.py")),
         str(directory), "{kind}", "{cores}", "{seconds}"],
        workflow=WORKFLOW, wall_time="2m",
    )  # fmt: skip

    def signature(task: Task) -> object:
        rule = RULES[task.kind]
        call = run.si(kind=task.kind, cores=rule.cores, seconds=task.seconds)
        return call.set(
            name=task.kind, task_id=task_id(site, task.number),
            expected_time=max(1.0, min(task.seconds, 60.0)), **rule.options,
        )  # fmt: skip

    def submit(batch: list[Task]) -> None:
        if is_there(task_id(site, batch[0].number)):
            return
        parts: list[object] = []
        for task in batch:
            part = signature(task)
            parts.append(parts.pop() | part if task.parent is not None and parts else part)  # type: ignore[operator]
        submit_many(parts)

    def kill(batch: list[Task]) -> None:
        doomed = [task_id(site, task.number) for task in batch if task.kind == "killed"]
        if doomed:
            submitted.kill(doomed)

    def waiting() -> int:
        return sum(submitted.count(workflow=WORKFLOW, state="PREPROCESSED").values())

    before: list[Task] = []
    done = 0
    for batch in batches(tasks(seed, count)):
        while insistent(waiting) > AHEAD and not (directory / ENOUGH).exists():
            _pause.wait(0.2)
        if (directory / ENOUGH).exists():
            break
        insistent(lambda batch=batch: submit(batch))  # type: ignore[misc]
        insistent(lambda before=before: kill(before))  # type: ignore[misc]
        before = batch
        done += len(batch)
    (directory / SUBMITTED).write_text(f"{done}\n", encoding="ascii")
    _pause.wait(5.0)
    insistent(lambda: kill(before))


def batches(all_tasks: list[Task]) -> list[list[Task]]:
    """Batches of tasks; a child comes with its parent."""
    found: list[list[Task]] = [[]]
    for task in all_tasks:
        if len(found[-1]) >= BATCH and task.parent is None:
            found.append([])
        found[-1].append(task)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
