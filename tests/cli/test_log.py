"""``balsam log``: from the work directory, else from the database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_celery.cli.outputfile import Unreadable, chunks, start_of_last_lines
from balsam_celery.states import State
from balsam_celery.store import schema
from tests.cli.conftest import Cli

BINARY = bytes(range(256)) * 3


@pytest.fixture
def work_dir(cli: Cli, tmp_path: Path) -> Path:
    """Of the second attempt of a finished task."""
    directory = tmp_path / "work"
    directory.mkdir()
    (directory / "stdout").write_bytes(BINARY)
    (directory / "stderr").write_text("one\ntwo\nthree\n")
    cli.task("aaaaaa-1", State.JOB_FINISHED)
    cli.attempt("aaaaaa-1", 1, ended=3.0, work_dir=str(tmp_path / "gone"), stdout_tail="a\nfirst\n")
    cli.attempt("aaaaaa-1", 2, ended=3.0, work_dir=str(directory), stdout_tail="tail\n")
    return directory


def test_bytes_come_as_they_are(cli: Cli, work_dir: Path) -> None:
    assert cli("log", "aaaaaa").stdout_bytes == BINARY
    assert cli("log", "aaaaaa", "--stderr", "-n", "2").stdout == "two\nthree\n"
    assert cli("log", "aaaaaa", "--stderr", "-n", "0").stdout == ""
    assert cli("log", "aaaaaa", "-f").stdout_bytes == BINARY


def test_no_directory_so_the_database(cli: Cli, work_dir: Path) -> None:
    result = cli("log", "aaaaaa", "--attempt", "1", "-n", "1")
    assert result.stdout == "first\n"
    assert "from the database" in result.stderr
    plain = cli.json("log", "aaaaaa", "--attempt", "1")["logs"]
    assert plain == [
        {
            "id": "aaaaaa-1", "attempt": 1, "stream": "stdout", "source": "database",
            "text": "a\nfirst\n",
        }
    ]  # fmt: skip
    assert "no attempt 7 (there are: 1, 2)" in cli.refused("log", "aaaaaa", "--attempt", "7")


def test_an_empty_output_has_no_file(cli: Cli, work_dir: Path) -> None:
    (work_dir / "stdout").unlink()
    result = cli("log", "aaaaaa")
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_what_is_no_plain_file_is_not_read(cli: Cli, work_dir: Path, kind: str) -> None:
    path = work_dir / "stdout"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    else:
        path.mkdir()
    assert cli("log", "aaaaaa").stdout == "tail\n"


def test_not_run_yet(cli: Cli) -> None:
    cli.task("bbbbbb-1")
    assert "has not run yet" in cli("log", "bbbbbb").stderr
    cli("kill", "bbbbbb")
    assert "ended USER_KILLED without having run" in cli("log", "-f", "bbbbbb").stderr


def test_follow_until_the_attempt_ends(cli: Cli, tmp_path: Path) -> None:
    cli.task("bbbbbb-1", State.RUNNING)
    with subprocess.Popen(
        [sys.executable, "-m", "balsam_celery.cli", "log", "--follow", "bbbbbb"],
        env={**os.environ, "BALSAM_SITE": str(cli.site.directory), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            _follow(cli, process, tmp_path)
        finally:
            process.kill()


def _follow(cli: Cli, process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    assert b"waiting for it to start" in process.stderr.readline()
    (tmp_path / "stdout").write_bytes(b"one\n")
    cli.attempt("bbbbbb-1", work_dir=str(tmp_path))
    assert process.stdout.readline() == b"one\n"
    with (tmp_path / "stdout").open("ab") as output:
        output.write(b"two\n")
    assert process.stdout.readline() == b"two\n"
    assert process.poll() is None
    with (tmp_path / "stdout").open("ab") as output:
        output.write(b"last")
    with cli.store.write() as conn:
        conn.execute(schema.attempt.update().values(ended=9.0))
    assert process.stdout.read() == b"last"
    assert process.wait(30) == 0


def test_follow_is_for_one_task(cli: Cli, work_dir: Path) -> None:
    cli.task("bbbbbb-1")
    assert "--follow" in cli.refused("log", "-f", "aaaaaa", "bbbbbb")
    assert "--follow" in cli.refused("log", "-f", "--json", "aaaaaa")


@pytest.mark.parametrize("lines", [1, 2, 3, 7000, 20000, 30000])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_last_lines_of_a_long_file(tmp_path: Path, lines: int, end: bytes) -> None:
    path = tmp_path / "stdout"
    content = b"\n".join(b"line %d" % i for i in range(20_000)) + end
    path.write_bytes(content)
    wanted = b"".join(content.splitlines(keepends=True)[-lines:])
    assert b"".join(chunks(path, start_of_last_lines(path, lines))) == wanted


def test_a_missing_directory_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="is not there"):
        list(chunks(tmp_path / "no" / "stdout"))
    assert list(chunks(tmp_path / "stdout")) == []
