"""``ls``, ``show``, ``wait``, and the options that choose tasks."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from balsam_celery.cli.times import parse_moment
from balsam_celery.errors import InvalidInput
from balsam_celery.states import State
from tests.cli.conftest import Cli
from tests.waiting import wait_until

IDS = ["abcdef-1", "abcdef-2", "bcdefa-3", "cdefab-4"]


@pytest.fixture
def tasks(cli: Cli) -> list[str]:
    """Four tasks of several states, names, workflows and tags."""
    cli.task(IDS[0], State.JOB_FINISHED, workflow="water", tags=["hot", "wet"])
    cli.task(IDS[1], State.FAILED, workflow="water", tags=["hot"], name="collect")
    cli.task(IDS[2], workflow="ice", name="relax.7")
    cli.task(IDS[3], State.RUNNING)
    return IDS


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ((), [0, 1, 2, 3]),
        (("--limit", "2"), [2, 3]),
        (("--workflow", "water"), [0, 1]),
        (("--tag", "hot", "--tag", "wet"), [0]),
        (("--name", "relax*"), [0, 2, 3]),
        (("--name", "nothing*"), []),
        (("--state", "failed,running"), [1, 3]),
        (("--state", "FAILED", "--state", "job-finished"), [0, 1]),
        (("--since", "1h"), [0, 1, 2, 3]),
        (("--until", "1h"), []),
        (("--until", "2020-01-01"), []),
        (("cdefab", "abcdef-1"), [0, 3]),
        (("cdefab", "abcdef-1", "--state", "RUNNING"), [3]),
    ],
)
def test_ls(cli: Cli, tasks: list[str], args: tuple[str, ...], wanted: list[int]) -> None:
    plain = cli.json("ls", *args)
    assert [task["id"] for task in plain["tasks"]] == [tasks[i] for i in wanted]


def test_ls_for_people(cli: Cli, tasks: list[str]) -> None:
    result = cli("ls", "--limit", "3")
    assert "cdefab-4" in result.stdout
    assert "abcdef-1" not in result.stdout
    assert "the newest 3 of 4 tasks" in result.stderr
    assert cli.json("ls", "--count") == {
        "counts": {"FAILED": 1, "JOB_FINISHED": 1, "PREPROCESSED": 1, "RUNNING": 1},
        "total": 4,
    }


def test_names_cannot_drive_the_terminal(cli: Cli) -> None:
    cli.task("abcdef-1", name="red\x1b[31m\nfaked line")
    lines = cli("ls").stdout.splitlines()
    assert len(lines) == 2
    assert r"red\x1b[31m\nfaked line" in lines[1]
    assert "\x1b" not in cli("show", "abcdef-1").stdout


UNKNOWN = {
    ("--state", "RUNING"): "did you mean RUNNING?",
    ("--tag", "hott"): "no task has the tag 'hott': did you mean 'hot'?",
    ("--workflow", "watr"): "did you mean 'water'?",
    ("--name", "colect"): "did you mean 'collect'?",
    ("--since", "tomorow"): "--since is 'tomorow'",
    ("--until", "0"): "--until is '0'",
    ("zzzzzz",): "there is no task 'zzzzzz'",
    ("abc",): "at least 6",
    ("abcdef",): "fits several",
}


@pytest.mark.parametrize("command", ["ls", "show", "log", "wait", "kill", "retry", "rm"])
def test_unknown_words_are_named(cli: Cli, tasks: list[str], command: str) -> None:
    for args, words in UNKNOWN.items():
        assert words in cli.refused(command, *args)


def test_no_tasks_named(cli: Cli) -> None:
    for command in ("show", "log", "wait", "kill", "retry", "rm"):
        assert "no tasks named" in cli.refused(command)


@pytest.mark.parametrize(
    ("args", "near"),
    [(("lss",), "ls"), (("ls", "--nme", "x"), "--name"), (("app", "ad"), "add"),
     (("allocations", "cancl"), "cancel"), (("pilot", "drian"), "drain")],
)  # fmt: skip
def test_unknown_commands_and_options_name_the_nearest(
    cli: Cli, args: tuple[str, ...], near: str
) -> None:
    assert near in cli(*args, status=2).stderr


def test_show_an_object_or_a_list(cli: Cli, tasks: list[str]) -> None:
    cli.attempt(tasks[0], outcome="exit", exit_code=0, ended=4.5, max_memory=1 << 20)
    plain = cli.json("show", "abcdef-1")
    assert plain["id"] == "abcdef-1"
    assert plain["state"] == "JOB_FINISHED"
    assert plain["resources"]["num_nodes"] == 1
    assert plain["attempts"][0]["ended"] == "1970-01-01T00:00:04.500Z"
    assert [event["to"] for event in plain["events"]][-2:] == ["POSTPROCESSED", "JOB_FINISHED"]
    assert len(cli.json("show", "abcdef-1", "bcdefa")["tasks"]) == 2
    assert len(cli.json("show", "--workflow", "ice")["tasks"]) == 1
    text = cli("show", *tasks).stdout
    assert "exit code 0" in text
    assert "n0[0,1]" in text


def test_show_relatives(cli: Cli, tasks: list[str]) -> None:
    cli.task("child-1", State.PREPROCESSED, parents=["abcdef-1"])
    assert cli.json("show", "child-1")["parents"] == ["abcdef-1"]
    assert cli.json("show", "abcdef-1")["children"] == ["child-1"]


def test_times() -> None:
    now = datetime.fromisoformat("2026-11-22T12:00:00+01:00")
    assert parse_moment("2026-11-22T10:00Z", "--since", now) == now.timestamp() - 3600
    assert parse_moment("90m", "--since", now) == now.timestamp() - 5400
    assert parse_moment("2d", "--since", now) == now.timestamp() - 172800
    assert parse_moment("today", "--since", now) == now.timestamp() - 43200
    assert parse_moment(" Yesterday", "--since", now) == now.timestamp() - 129600
    for text in ("", "soon", "-1h", "2026-13-01", "1e400"):
        with pytest.raises(InvalidInput, match="--since is"):
            parse_moment(text, "--since", now)


def test_wait_tells_by_its_status(cli: Cli, tasks: list[str]) -> None:
    assert cli.json("wait", "abcdef-1") == {
        "counts": {"JOB_FINISHED": 1}, "total": 1, "timed_out": False,
    }  # fmt: skip
    assert cli.json("wait", "--workflow", "water", status=1)["counts"]["FAILED"] == 1
    result = cli("wait", "cdefab", "--timeout", "1s", status=124)
    assert "they go on" in result.stderr
    assert cli.state("cdefab-4") == State.RUNNING
    assert "--timeout is '0'" in cli.refused("wait", "abcdef-1", "--timeout", "0")


def test_interrupted_wait_says_that_tasks_go_on(cli: Cli, tasks: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "balsam_celery.cli", "wait", "cdefab"],
        env={**os.environ, "BALSAM_SITE": str(cli.site.directory)},
        stderr=subprocess.PIPE,
        text=True,
        # a run in the background of a script ignores it, and so would this process
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )

    def asleep() -> bool:
        # an interrupt within a destructor would be lost; between two looks it sleeps
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "S" and opened_database()

    def opened_database() -> bool:
        for path in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                if cli.site.database_path.name in str(path.readlink()):
                    return True
        return False

    try:
        wait_until(asleep, 30, "the command has read the database, and waits")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "the tasks go on" in errors
    assert "Traceback" not in errors
    assert cli.state("cdefab-4") == State.RUNNING


def test_every_timestamp_is_utc(cli: Cli, tasks: list[str]) -> None:
    text = cli("show", *tasks, "--json").stdout
    stamps = re.findall(r'"(\d{4}-\d\d-\d\d[^"]*)"', text)
    assert stamps
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp) for stamp in stamps)


def test_reading_loads_no_celery(cli: Cli, tasks: list[str]) -> None:
    code = (
        "import sys\nfrom balsam_celery.cli import balsam\n"
        "balsam(['ls', '--json'], standalone_mode=False)\n"
        "heavy = {'celery', 'kombu', 'flower', 'rich', 'redis'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "BALSAM_SITE": str(cli.site.directory)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip() == "[]"


def test_a_closed_pipe_is_no_fault(cli: Cli) -> None:
    cli("submit", "--array", "1-3000", "true")
    done = subprocess.run(
        ["bash", "-c", '"$0" -m balsam_celery.cli ls --all --json | head -1', sys.executable],
        env={**os.environ, "BALSAM_SITE": str(cli.site.directory)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_a_fault_of_ours_is_one_line(cli: Cli, tmp_path: Path) -> None:
    with cli.store.write() as conn:
        # a constraint of which we know nothing
        conn.exec_driver_sql("CREATE UNIQUE INDEX odd ON task (kind)")
    done = subprocess.run(
        [sys.executable, "-m", "balsam_celery.cli", "submit", "--array", "1-2", "--", "true"],
        env={
            **os.environ,
            "BALSAM_SITE": str(cli.site.directory),
            "XDG_STATE_HOME": str(tmp_path / "state"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    log = tmp_path / "state" / "balsam" / "balsam-cli.log"
    assert str(log) in done.stderr
    assert "Traceback" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0
