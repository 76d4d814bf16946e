"""Commands of a real OpenPBS 23.06 as they were captured, and stand-ins that answer as it did."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from balsam_celery.schedulers.commands import Done

DIRECTORY = Path(__file__).parent.parent / "data" / "openpbs_samples"

#: An answer: a sample's name, or the answer itself.
Answer = str | Done

_PROGRAM = f"""#!{sys.executable}
import json, pathlib, sys
here = pathlib.Path(__file__)
with here.with_suffix(".said").open("a") as said:
    print(json.dumps(sys.argv[1:]), file=said)
answers = json.loads(here.with_suffix(".json").read_text())
status, out, err = answers.get(" ".join(sys.argv[1:])) or answers.get("*") or (
    97, "", f"nobody expected: {{sys.argv[1:]}}"
)
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


def sample(name: str) -> Done:
    """How the command in ``NAME.cmd`` ended."""

    def read(suffix: str) -> str:
        path = DIRECTORY / f"{name}.{suffix}"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    return Done(int(read("rc")), read("out"), read("err"))


def command_of(name: str) -> str:
    """The arguments of the command in ``NAME.cmd``, separated by blanks."""
    return " ".join(shlex.split((DIRECTORY / f"{name}.cmd").read_text(encoding="utf-8"))[1:])


def renamed(name: str, job_name: str) -> Done:
    """A captured job under another name: those of the samples are not of any site."""

    def rename(told: dict[str, Any]) -> None:
        told["Job_Name"] = job_name

    return changed(name, rename)


def changed(name: str, change: Callable[[dict[str, Any]], None]) -> Done:
    """A captured answer of ``qstat`` of one job, whose attributes ``change`` alters."""
    done = sample(name)
    plain = json.loads(done.out)
    (told,) = plain["Jobs"].values()
    change(told)
    return Done(done.status, json.dumps(plain, indent="\t", ensure_ascii=False), done.err)


class StandIns:
    """Programs that answer by their exact arguments and note down what they were called with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def answer(self, command: str, answers: dict[str, Answer]) -> None:
        """Let ``command`` answer to each of these arguments; to any others by ``*``."""
        plain = {}
        for arguments, answer in answers.items():
            done = sample(answer) if isinstance(answer, str) else answer
            plain[arguments] = (done.status, done.out, done.err)
        (self.directory / f"{command}.json").write_text(json.dumps(plain), encoding="utf-8")
        program = self.directory / command
        program.write_text(_PROGRAM, encoding="utf-8")
        program.chmod(0o755)

    def said(self, command: str) -> list[list[str]]:
        """The arguments of each call of ``command``, in order."""
        path = self.directory / f"{command}.said"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
