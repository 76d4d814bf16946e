"""Commands of a real Slurm 22.05.8 as they were captured, and stand-ins that answer as it did."""

from __future__ import annotations

import shlex
from pathlib import Path

from balsam_celery.schedulers.commands import Done
from balsam_celery.schedulers.slurm_jobs import FORMAT

DIRECTORY = Path(__file__).parent.parent / "data" / "slurm_samples"


def sample(name: str) -> Done:
    """How the command in ``NAME.cmd`` ended."""

    def read(suffix: str) -> str:
        return (DIRECTORY / f"{name}.{suffix}").read_text(encoding="utf-8")

    return Done(int(read("rc")), read("out"), read("err"))


def as_asked(name: str, shown: str, form: str = FORMAT) -> str:
    """A captured list with its columns as the adapter asks for them.

    Args:
        name: of the sample.
        shown: its ``--format``; what it does not show is empty.
        form: the format wanted.
    """
    rows = []
    for line in sample(name).out.splitlines():
        row = form
        values = dict(zip(shown.split("|"), line.split("|"), strict=True))
        for column in form.removeprefix("balsam:").split("|"):
            row = row.replace(column, values.get(column, ""))
        rows.append(row)
    return "".join(f"{row}\n" for row in rows)


def stand_in(directory: Path, command: str, answer: Done) -> Path:
    """Put a program in ``directory`` that answers so; the file returned collects its arguments."""
    said = directory / f"{command}.said"
    for suffix, text in (("out", answer.out), ("err", answer.err)):
        (directory / f"{command}.{suffix}").write_text(text, encoding="utf-8")
    where = shlex.quote(str(directory / command))
    program = directory / command
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {where}.said\n'
        f"cat {where}.out\ncat {where}.err >&2\nexit {answer.status}\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return said
