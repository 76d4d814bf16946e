"""What becomes of programs of all kinds, seen from the service's end of the inbox."""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import keys
from balsam_celery.resources import GpuShare, NodeShare
from balsam_celery.wire import Started
from tests.pilot.service import Pilot
from tests.waiting import wait_until

PYTHON = sys.executable
_counter = itertools.count()


def new_id() -> str:
    return f"task-{next(_counter)}"


def test_success(pilot: Pilot) -> None:
    task = new_id()
    before = time.time()
    pilot.run(pilot.spec(task, "/bin/echo", "out"))
    ended = pilot.service.ended(task)
    assert (ended.outcome, ended.exit_code, ended.signal, ended.reason) == ("exit", 0, None, "")
    assert ended.argv == ("/bin/echo", "out")
    assert (ended.stdout_tail, ended.stderr_tail) == ("out\n", "")
    assert ended.started is not None
    assert before <= ended.started <= ended.ended <= time.time()
    assert len(ended.environment_digest) == 64
    work = pilot.directory / "work" / task
    assert [path.name for path in work.iterdir()] == ["stdout"], "empty files are removed"


def test_failure_and_stderr(pilot: Pilot) -> None:
    task = new_id()
    pilot.run(pilot.spec(task, "/bin/sh", "-c", "echo oops >&2; exit 3"))
    ended = pilot.service.ended(task)
    assert (ended.outcome, ended.exit_code, ended.reason) == ("exit", 3, "exit code 3")
    assert ended.stderr_tail == "oops\n"


def test_signal(pilot: Pilot) -> None:
    task = new_id()
    pilot.run(pilot.spec(task, "/bin/sh", "-c", "kill -SEGV $$"))
    ended = pilot.service.ended(task)
    assert (ended.outcome, ended.exit_code, ended.signal) == ("signal", None, 11)
    assert ended.reason == "ended by signal 11 (SIGSEGV)"


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("no-such-program", "x"), "cannot start: No such file or directory: no-such-program"),
        (("/etc/passwd",), "cannot start: Permission denied: /etc/passwd"),
        (("/bin/echo", "a\0b"), "cannot start: embedded null byte"),
        (("/bin/echo", "x" * 3_000_000), "cannot start: Argument list too long: /bin/echo"),
    ],
)
def test_cannot_start(pilot: Pilot, argv: tuple[str, ...], reason: str) -> None:
    task = new_id()
    pilot.run(pilot.spec(task, *argv))
    ended = pilot.service.ended(task)
    assert (ended.outcome, ended.reason, ended.started) == ("cannot-start", reason, None)


@pytest.mark.parametrize("work_dir", ["/proc/no/such", "/etc/passwd", "/dev/null/x"])
def test_work_dir_that_cannot_be_made(pilot: Pilot, work_dir: str) -> None:
    task = new_id()
    pilot.run(pilot.spec(task, "/bin/true", work_dir=work_dir))
    ended = pilot.service.ended(task)
    assert ended.outcome == "cannot-start"
    assert ended.reason.startswith("cannot start: ")
    assert work_dir.split("/")[2] in ended.reason


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one more directory and no byte of content."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=3", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_under_the_work_directory(pilot: Pilot, full_disk: Path) -> None:
    (full_disk / "filler").write_bytes(b"x" * 4096)
    no_file, no_directory = new_id(), new_id()
    for task in (no_file, no_directory):
        pilot.run(pilot.spec(task, "/bin/true", work_dir=str(full_disk / task)))
    wanted = [f"{full_disk}/{no_file}/stdout", f"{full_disk}/{no_directory}"]
    for task, path in zip((no_file, no_directory), wanted, strict=True):
        ended = pilot.service.ended(task)
        assert ended.outcome == "unfit"
        assert ended.reason == f"cannot start: No space left on device: {path}"


def test_full_disk_for_staged_files(pilot: Pilot, full_disk: Path, tmp_path: Path) -> None:
    """Copying a directory gathers its errors as texts: it is the disk all the same."""
    staged = tmp_path / "staged"
    (staged / "deep").mkdir(parents=True)
    (staged / "deep" / "file").write_bytes(b"x" * 8192)
    task = new_id()
    work_dir = full_disk / task
    pilot.run(pilot.spec(task, "/bin/true", work_dir=str(work_dir), staged=str(staged)))
    ended = pilot.service.ended(task)
    assert ended.outcome == "unfit"
    assert ended.reason == f"cannot start: No space left on device: {work_dir}/deep/file"


def test_output_that_cannot_be_written(pilot: Pilot) -> None:
    """The program hears of it from its own writes, and ends as it wants to."""
    task = new_id()
    pilot.run(pilot.spec(task, "/bin/sh", "-c", "echo much > /dev/full"))
    ended = pilot.service.ended(task)
    assert ended.outcome == "exit"
    assert ended.exit_code != 0


def test_arguments_arrive_as_they_are(pilot: Pilot) -> None:
    task = new_id()
    arguments = ["a b", "'q\"", "new\nline", "; rm -rf $HOME", "$(id)", "{0}", "", "*", "ü☃"]
    code = "import sys, json; json.dump(sys.argv[1:], sys.stdout)"
    pilot.run(pilot.spec(task, PYTHON, "-c", code, *arguments))
    assert json.loads(pilot.service.ended(task).stdout_tail) == arguments


def test_environment(pilot: Pilot) -> None:
    task = new_id()
    share = NodeShare("n0", (0, 1), (GpuShare(0, 1.0), GpuShare(1, 0.5)))
    code = "import os, json; json.dump(dict(os.environ), open('env.json', 'w'))"
    spec = pilot.spec(
        task,
        PYTHON,
        "-c",
        code,
        environment={"MINE": "1", "PATH": "/bin"},
        shares=(share,),
        threads_per_rank=2,
        inputs={"args": [1, "x" * 200_000], "kwargs": {"k": None}},
    )
    pilot.run(spec)
    ended = pilot.service.ended(task)
    assert ended.exit_code == 0, ended
    found = json.loads((Path(spec.work_dir) / "env.json").read_text())
    expected = {
        "MINE": "1",
        "PATH": "/bin",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "ROCR_VISIBLE_DEVICES": "0,1",
        "BALSAM_TASK_ID": task,
        "BALSAM_TASK_NAME": f"name of {task}",
        "BALSAM_ATTEMPT": "1",
        "BALSAM_NODES": "n0",
        "BALSAM_NUM_NODES": "1",
        "BALSAM_RANKS": "1",
        "BALSAM_RANKS_PER_NODE": "1",
        "BALSAM_CORES": "0,1",
        "BALSAM_GPUS": "0,1",
        "BALSAM_WORK_DIR": spec.work_dir,
        "PWD": spec.work_dir,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert Path(found["BALSAM_NODEFILE"]).read_text() == "n0\n"
    assert json.loads(Path(found["BALSAM_INPUTS"]).read_text()) == spec.inputs
    strange = {"BALSAM_SITE", "BALSAM_LOCAL_NODES", "PMI_RANK", "OLDPWD", "SPT_NOENV"}
    assert not strange & found.keys()
    password = pilot.service.server.password
    assert not [name for name, value in found.items() if password in value]


def test_digest_tells_environments_apart(pilot: Pilot) -> None:
    same, again, other = new_id(), new_id(), new_id()
    pilot.run(pilot.spec(same, "/bin/true"), pilot.spec(again, "/bin/true"))
    pilot.run(pilot.spec(other, "/bin/true", environment={"X": "1"}))
    first, second, third = (
        pilot.service.ended(task).environment_digest for task in (same, again, other)
    )
    assert first == second != third


def test_staged_files_are_there(pilot: Pilot, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text("staged")
    task = new_id()
    pilot.run(pilot.spec(task, "/bin/cat", "deep/file", staged=str(tmp_path)))
    assert pilot.service.ended(task).stdout_tail == "staged"


def test_binary_output(pilot: Pilot) -> None:
    task = new_id()
    pilot.run(pilot.spec(task, "/bin/sh", "-c", r"printf 'a\000\377b'"))
    assert pilot.service.ended(task).stdout_tail == "a\ufffd\ufffdb"


@pytest.mark.parametrize("size", [100_000_000, pytest.param(10**9, marks=pytest.mark.long)])
def test_much_output(pilot: Pilot, size: int) -> None:
    """All of it is in the file, its tail is told, and the worker's memory stays flat."""
    task = new_id()
    pid = pilot.pid_of("n0")
    before = _memory(pid)
    command = f"head -c {size} /dev/zero | tr '\\0' x; echo; echo the end"
    spec = pilot.spec(task, "/bin/sh", "-c", command)
    pilot.run(spec)
    ended = pilot.service.ended(task, timeout=120)
    assert ended.exit_code == 0
    assert len(ended.stdout_tail) == 2000
    assert ended.stdout_tail.endswith("x\nthe end\n")
    assert _memory(pid) - before < 20_000_000
    stdout = Path(spec.work_dir) / "stdout"
    assert stdout.stat().st_size == size + len("\nthe end\n")
    stdout.unlink()


def _memory(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_usage(pilot: Pilot) -> None:
    busy, small = new_id(), new_id()
    code = "b = b'x' * 300_000_000; sum(range(5_000_000))"
    pilot.run(pilot.spec(busy, PYTHON, "-c", code), pilot.spec(small, "/bin/sleep", "0.3"))
    ended = pilot.service.ended(busy)
    assert 300_000_000 < ended.max_memory < 400_000_000
    assert ended.user_time > 0.05
    assert 0 < pilot.service.ended(small).max_memory < 20_000_000, "not the worker's own peak"


def test_wall_time(pilot: Pilot) -> None:
    task = new_id()
    pilot.run(pilot.spec(task, "/bin/sleep", "60", wall_time=1))
    ended = pilot.service.ended(task)
    assert (ended.outcome, ended.signal) == ("timeout", 15)
    assert ended.reason == "its wall_time of 1s was over"
    assert ended.started is not None
    assert 1.0 <= ended.ended - ended.started < 3.0


def test_wall_time_of_a_program_deaf_to_term(pilot: Pilot) -> None:
    task = new_id()
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    pilot.run(pilot.spec(task, PYTHON, "-c", code, wall_time=1))
    ended = pilot.service.ended(task)
    assert (ended.outcome, ended.signal) == ("timeout", 9)


def test_long_runs_are_announced_and_short_ones_are_not(pilot: Pilot) -> None:
    short, long = new_id(), new_id()
    pilot.run(pilot.spec(short, "/bin/true"), pilot.spec(long, "/bin/sleep", "1"))
    started = wait_until(
        lambda: [s for s in pilot.service.all(Started) if s.id == long], 10, "a start"
    )
    assert started[0].pid > 0
    assert pilot.service.ended(long).started == started[0].time
    assert not [s for s in pilot.service.all(Started) if s.id == short]


def test_cores_are_given_once_and_in_order(pilot: Pilot) -> None:
    """Two cores: narrow tasks share the node, a wide one waits for both and is not starved."""
    wide = (pilot.whole("n0"),)
    first, second, both, after = (new_id() for _ in range(4))
    pilot.run(
        pilot.spec(first, "/bin/sleep", "0.3", shares=(pilot.share("n0", 0),)),
        pilot.spec(second, "/bin/sleep", "0.6", shares=(pilot.share("n0", 1),)),
        pilot.spec(both, "/bin/sleep", "0.1", shares=wide),
        pilot.spec(after, "/bin/sleep", "0.1", shares=(pilot.share("n0", 0),)),
    )
    runs = [pilot.service.ended(task) for task in (first, second, both, after)]
    starts = [run.started or 0 for run in runs]
    assert starts[1] < runs[0].ended, "side by side"
    assert starts[2] >= max(runs[0].ended, runs[1].ended)
    assert starts[3] >= runs[2].ended


def test_outcomes_are_acknowledged_and_forgotten(pilot: Pilot) -> None:
    task = new_id()
    pilot.run(pilot.spec(task, "/bin/true"))
    pilot.service.ended(task)
    prefix = pilot.service.prefix
    heartbeats = keys.heartbeats(prefix, pilot.id)

    def nothing_held() -> bool:
        text = pilot.service.client.hget(heartbeats, "n0")
        return text is not None and json.loads(text)["held"] == []

    wait_until(nothing_held, 10, "a heartbeat that holds nothing")
    pilot.service.look()
    sent = [r for _, _, _, r in pilot.service.records if getattr(r, "id", "") == task]
    assert len(sent) == 1
