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
from typing import Any, TypeVar

from celery import chord, group

from balsam_celery import NotFound, app, program, submit_many
from balsam_celery import tasks as submitted
from balsam_celery.celeryapp import current_site
from balsam_celery.errors import StoreError
from balsam_celery.tasks.submit import RedisDown
from tests.chaos.steps import ERRBACK, STEP
from tests.chaos.workload import (
    RULES,
    WORKFLOW,
    Canvas,
    Task,
    canvases,
    errback_id,
    task_id,
)

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
    script = [sys.executable, "-I", "-S", str(Path(__file__).with_name("program.py"))]
    run = program(
        "chaos", [*script, str(directory), "{kind}", "{cores}", "{seconds}"],
        workflow=WORKFLOW, wall_time="2m",
    )  # fmt: skip
    told = program(
        "chaos-errback", [*script, str(directory), "errback-program", "1", "0.2", "{0}"],
        workflow=WORKFLOW, wall_time="2m",
    )  # fmt: skip
    hook = [*script, str(directory), "hook", "0", "0.2"]

    def signature(task: Task) -> Any:
        rule, id = RULES[task.kind], task_id(site, task.number)
        if rule.is_step:
            about = {"kind": task.kind, "seconds": task.seconds, "inputs": task.inputs}
            call = app.signature(STEP, kwargs={"directory": str(directory), **about})
            call.set(workflow=WORKFLOW)
        else:
            call = run.si(kind=task.kind, cores=rule.cores, seconds=task.seconds)
            call.set(
                expected_time=max(1.0, min(task.seconds, 60.0)),
                **rule.options, **dict.fromkeys(rule.hooks, hook),
            )  # fmt: skip
        if rule.has_errbacks:
            call.set(link_error=errbacks(id))
        return call.set(name=task.kind, task_id=id)

    def errbacks(id: str) -> list[Any]:
        """An ordinary Celery task and a program, both told the id of the task that has failed."""
        step = app.signature(ERRBACK, kwargs={"directory": str(directory)})
        both = {"errback": step, "errback-program": told.s()}
        return [
            call.set(workflow=WORKFLOW, name=kind, task_id=errback_id(id, kind))
            for kind, call in both.items()
        ]

    def canvas_of(stages: Canvas) -> Any:
        calls = [[signature(task) for task in stage] for stage in stages]
        made: Any = group(calls[0]) if len(calls[0]) > 1 else calls[0][0]
        for (call,), (task,) in zip(calls[1:], stages[1:], strict=True):
            # both ways in which users write a chord
            made = chord(calls[0], call) if task.kind == "gather" else made | call
        return made

    def submit(batch: list[Canvas]) -> None:
        if not is_there(task_id(site, batch[0][0][0].number)):
            submit_many(map(canvas_of, batch))

    def kill(batch: list[Canvas]) -> None:
        doomed = [task_id(site, task.number) for task in flat(batch) if task.kind == "killed"]
        if doomed:
            submitted.kill(doomed)

    def waiting() -> int:
        return sum(submitted.count(workflow=WORKFLOW, state="PREPROCESSED").values())

    before: list[Canvas] = []
    done = 0
    for batch in batches(canvases(seed, count)):
        while insistent(waiting) > AHEAD and not (directory / ENOUGH).exists():
            _pause.wait(0.2)
        if (directory / ENOUGH).exists():
            break
        insistent(lambda batch=batch: submit(batch))  # type: ignore[misc]
        insistent(lambda before=before: kill(before))  # type: ignore[misc]
        before = batch
        done += len(flat(batch))
    (directory / SUBMITTED).write_text(f"{done}\n", encoding="ascii")
    _pause.wait(5.0)
    insistent(lambda: kill(before))


def flat(several: list[Canvas]) -> list[Task]:
    """Tasks of canvases."""
    return [task for canvas in several for stage in canvas for task in stage]


def batches(several: list[Canvas]) -> list[list[Canvas]]:
    """Canvases in batches of tasks."""
    found: list[list[Canvas]] = [[]]
    for canvas in several:
        if len(flat(found[-1])) >= BATCH:
            found.append([])
        found[-1].append(canvas)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
