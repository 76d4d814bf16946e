"""Staging and hooks, as the transitions worker does them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_celery import brands, keys, procs
from balsam_celery.service import hookrun
from balsam_celery.unfit import gathered, single
from balsam_celery.wire import TransitionEnded
from tests.service.test_hooks import done
from tests.waiting import wait_until


def order(tmp_path: Path, step: str, hook: list[Any], **fields: Any) -> dict[str, Any]:
    """What the transitions worker is told."""
    return {
        "id": "t00001", "attempt": 1, "name": "relax", "step": step, "hook": hook,
        "state": "RUN_ERROR", "reason": "exit code 4", "task_dir": str(tmp_path / "task"),
        "staged": str(tmp_path / "task" / "staged"), "work_dir": str(tmp_path / "task" / "1"),
        "environment": {"MINE": "1"}, **fields,
    }  # fmt: skip


def test_staging(tmp_path: Path) -> None:
    source = tmp_path / "in [1]"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a.txt").write_text("a")
    (source / "b.dat").write_text("b")
    entries = [
        str(source / "deep").replace("[", "[[]"),
        {"from": str(source).replace("[", "[[]") + "/*.dat", "to": "data/b.dat"},
    ]
    for _ in range(2):  # again is harmless
        told = hookrun.run(order(tmp_path, "stage_in", entries), {}, 10)
        assert (told.ok, told.reason) == (True, "")
    staged = tmp_path / "task" / "staged"
    assert (staged / "deep" / "a.txt").read_text() == "a"
    assert (staged / "data" / "b.dat").read_text() == "b"
    told = hookrun.run(order(tmp_path, "stage_in", [str(tmp_path / "none*")]), {}, 10)
    assert (told.ok, told.reason) == (False, f"stage_in: there is no {tmp_path}/none*")
    told = hookrun.run(order(tmp_path, "stage_in", [{"from": "/x", "to": "../../y"}]), {}, 10)
    assert not told.ok
    work = tmp_path / "task" / "1"
    work.mkdir()
    (work / "out.h5").write_text("h")
    out = [{"from": "*.h5", "to": str(tmp_path / "results")}]
    assert hookrun.run(order(tmp_path, "stage_out", out), {}, 10).ok
    assert (tmp_path / "results" / "out.h5").read_text() == "h"
    told = hookrun.run(order(tmp_path, "stage_out", ["*.h5"]), {}, 10)
    assert "give {'from': pattern, 'to': directory}" in told.reason


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with hardly any room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=6", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_no_room_is_no_fault_of_the_task(tmp_path: Path, small_disk: Path) -> None:
    """A full disk would else fail all that wait for a hook, within seconds."""
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    for path in (source / "large", source / "deep" / "large"):
        path.write_bytes(b"x" * 100_000)
    for entry in (source / "large", source / "deep"):
        told = hookrun.run(order(small_disk, "stage_in", [str(entry)]), {}, 10)
        assert told.unfit
        assert not told.ok
        target = small_disk / "task" / "staged" / entry.relative_to(source)
        target = target / "large" if entry.is_dir() else target
        assert told.reason == f"stage_in: No space left on device: {target}"
    assert not list(small_disk.rglob("*.part"))
    for number in range(6):  # no file more
        with contextlib.suppress(OSError):
            (small_disk / str(number)).touch()
    ran = tmp_path / "ran"
    told = hookrun.run(order(small_disk, "handler", ["touch", str(ran)]), dict(os.environ), 10)
    assert (told.unfit, told.verdict, ran.exists()) == (True, None, False)
    # what is the task's own fault stays so
    told = hookrun.run(order(tmp_path, "stage_in", [str(tmp_path / "none")]), {}, 10)
    assert (told.unfit, told.ok) == (False, False)
    told = hookrun.run(order(tmp_path, "handler", ["/no/such"]), {}, 10)
    assert (told.unfit, told.ok) == (False, False)


def test_what_goes_wrong_is_told_in_one_short_line(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "x0").symlink_to("/no/such")
    told = hookrun.run(order(tmp_path, "stage_in", [str(source)]), {}, 10)
    assert told.reason == f"stage_in: [Errno 2] No such file or directory: '{source}/x0'"
    for number in range(1, 1200):
        (source / f"x{number}").symlink_to("/no/such")
    told = hookrun.run(order(tmp_path, "stage_in", [str(source)]), {}, 10)
    assert told.reason.endswith(", and 1,199 more")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    told = hookrun.run(order(tmp_path, "stage_in", [str(pipe)]), {}, 10)
    assert told.reason == f"stage_in: `{pipe}` is a named pipe"
    told = hookrun.run(order(tmp_path, "preprocess", ["a\0b"]), {}, 10)
    assert told.reason == "preprocess: embedded null byte"


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[Path]:
    """Be somebody whom permissions bind, in an empty directory of theirs."""
    directory, is_root = Path(tempfile.mkdtemp()), os.geteuid() == 0
    try:
        if is_root:
            os.chown(directory, 65534, 65534)
            os.setegid(65534)
            os.seteuid(65534)
        if not os.access(directory, os.W_OK, effective_ids=True):
            pytest.skip(f"another user does not reach {directory}")
        yield directory
    finally:
        if is_root:
            os.seteuid(0)
            os.setegid(0)
        for path in (directory, *directory.rglob("*")):
            if path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(directory)


def test_read_only_files_are_staged_again_after_a_cut() -> None:
    with as_ordinary_user() as directory:
        source, staged = directory / "source", directory / "task" / "staged"
        (source / "deep" / "er").mkdir(parents=True)
        read_only = [source / "a", source / "deep" / "b", source / "deep" / "er" / "c"]
        for path in read_only:
            path.write_text("new")
            path.chmod(0o444)
        for path in (source / "deep" / "er", source / "deep"):
            path.chmod(0o555)
        asked = order(directory, "stage_in", [str(source / "a"), str(source / "deep")])
        assert hookrun.run(asked, {}, 10).ok
        # as if it had been cut short, before some of it was there
        (staged / "deep").chmod(0o755)
        (staged / "deep" / "b").unlink()
        (staged / "deep").chmod(0o555)
        told = hookrun.run(asked, {}, 10)
        assert (told.ok, told.reason) == (True, "")
        for path in read_only:
            copy = staged / path.relative_to(source)
            assert (copy.read_text(), copy.stat().st_mode & 0o777) == ("new", 0o444)
        assert (staged / "deep").stat().st_mode & 0o777 == 0o555
        assert sorted(path.name for path in staged.rglob("*")) == ["a", "b", "c", "deep", "er"]


def test_what_leads_to_its_own_target_becomes_a_copy(tmp_path: Path) -> None:
    """As copying met it, it was an error that was never reported."""
    work, results = tmp_path / "task" / "1", tmp_path / "results"
    for directory in (work / "out" / "deep", results / "out" / "deep"):
        directory.mkdir(parents=True)
    kept, made = results / "out" / "deep" / "kept.h5", work / "made.h5"
    kept.write_text("h")
    (work / "out" / "deep" / "kept.h5").symlink_to(kept)
    made.write_text("m")
    (results / "made.h5").symlink_to(made)
    entries = [{"from": name, "to": str(results)} for name in ("out", "made.h5")]
    told = hookrun.run(order(tmp_path, "stage_out", entries), {}, 10)
    assert (told.ok, told.reason) == (True, "")
    assert (kept.read_text(), made.read_text()) == ("h", "m")
    assert (work / "out" / "deep" / "kept.h5").readlink() == kept
    copy = results / "made.h5"
    assert (copy.read_text(), copy.is_symlink()) == ("m", False)


def test_files_that_are_their_own_target_are_told() -> None:
    """``copytree`` gives their message letter by letter."""
    mixed = shutil.Error([*"x and y", ("a", "b", "[Errno 28] No space left on device: 'b'")])
    assert (single(mixed).errno, single(mixed).filename) == (errno.ENOSPC, "b")
    assert gathered(mixed) == [("b", "[Errno 28] No space left on device: 'b'"), ("", "x and y")]


def test_a_directory_is_not_copied_into_itself_for_ever(tmp_path: Path) -> None:
    work = tmp_path / "task" / "1"
    (work / "deep").mkdir(parents=True)
    (work / "deep" / "a.txt").write_text("a")
    out = [{"from": "deep", "to": str(work / "deep" / "kept" / "here")}]
    assert hookrun.run(order(tmp_path, "stage_out", out), {}, 10).ok
    copied = work / "deep" / "kept" / "here" / "deep"
    assert (copied / "a.txt").read_text() == "a"
    assert list((copied / "kept" / "here").iterdir()) == []


def test_hook_programs(tmp_path: Path) -> None:
    show = "import json, os; print(json.dumps(dict(os.environ, cwd=os.getcwd())))"
    told = hookrun.run(
        order(tmp_path, "postprocess", [sys.executable, "-c", show]),
        {"PATH": os.environ["PATH"]},
        30,
    )
    assert told == dataclasses.replace(done("t00001", "postprocess", attempt=1), time=told.time)
    found = json.loads((tmp_path / "task" / "postprocess.1.out").read_text())
    assert (found["MINE"], found["BALSAM_TASK_ID"], found["BALSAM_ATTEMPT"]) == ("1", "t00001", "1")
    assert (found["BALSAM_STATE"], found["BALSAM_REASON"]) == ("RUN_ERROR", "exit code 4")
    assert found["cwd"] == str(tmp_path / "task" / "1")
    told = hookrun.run(order(tmp_path, "preprocess", ["sh", "-c", "echo bad >&2; exit 3"]), {}, 30)
    assert told.reason == "preprocess: exit code 3: bad"
    told = hookrun.run(order(tmp_path, "preprocess", ["/no/such"]), {}, 30)
    assert told.reason == "preprocess: No such file or directory: /no/such"


@pytest.mark.parametrize(
    ("says", "verdict", "ok"),
    [("restart", "restart", True), ("well\\n finish ", "finish", True), ("maybe", None, False)],
)
def test_handlers(tmp_path: Path, says: str, verdict: str | None, ok: bool) -> None:
    told = hookrun.run(order(tmp_path, "handler", ["printf", says + "\\n"]), dict(os.environ), 30)
    assert (told.ok, told.verdict) == (ok, verdict)


def test_a_hook_that_is_killed_ends_with_all_that_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"trap '' TERM; setsid sleep 600 & echo $! > {pid_file}; sleep 600"
    told: list[TransitionEnded] = []
    killed = threading.Event()
    asked = order(tmp_path, "postprocess", ["sh", "-c", script])
    thread = threading.Thread(
        target=lambda: told.append(hookrun.run(asked, dict(os.environ), 60, killed.is_set))
    )
    thread.start()
    wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), 20, "it runs")
    killed.set()
    thread.join(30)
    assert (told[0].ok, told[0].reason) == (False, "postprocess: killed")
    assert not procs.marked(["BALSAM_HOOK=t00001.1.postprocess"])
    assert not hookrun.run(asked, dict(os.environ), 60, killed.is_set).ok, "it does not begin"


def test_a_hook_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"setsid sleep 600 & echo $! > {pid_file}; trap '' TERM; sleep 600"
    told: list[TransitionEnded] = []
    thread = threading.Thread(
        target=lambda: told.append(
            hookrun.run(order(tmp_path, "handler", ["sh", "-c", script]), dict(os.environ), 1)
        )
    )
    thread.start()
    wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), 20, "it runs")
    thread.join(30)
    assert told[0].reason == "handler: it took longer than 1 s"
    child = procs.identity(int(pid_file.read_text()))
    assert child is None or not procs.alive(child)


def test_what_an_earlier_worker_left_of_a_hook_ends_first(tmp_path: Path) -> None:
    environment = {**os.environ, "BALSAM_HOOK": "t00001.1.handler"}
    for given_up in ("", "cut short 3 times"):
        left = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
        asked = order(tmp_path, "handler", ["echo", "fail"], given_up=given_up)
        told = hookrun.run(asked, dict(os.environ), 30)
        assert told.verdict == (None if given_up else "fail")
        assert left.wait(10) == -(signal.SIGTERM if given_up else signal.SIGKILL)
    assert told.reason == "handler: cut short 3 times"


@pytest.mark.parametrize("fails", ["identity", "end_all", "children_of"])
def test_a_hook_that_has_begun_is_not_put_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A shortage of the machine's then would have it run again, beside what it has left."""
    ran, shortages = tmp_path / "ran", [errno.ENFILE, errno.EMFILE]
    act = getattr(procs, fails)

    def short(*given: Any, **named: Any) -> Any:
        if ran.exists() and shortages:
            raise OSError(shortages.pop(), "no descriptor")
        return act(*given, **named)

    monkeypatch.setattr(procs, fails, short)
    if fails == "identity":  # it is asked for once the program runs
        monkeypatch.setattr(subprocess, "Popen", start_until(ran))
    job = keys.hooks_job("s-1")
    script = f"echo once >> {ran}; setsid sleep 600 & env -i setsid sleep 600 & exit 0"
    asked = order(tmp_path, "preprocess", ["sh", "-c", script])
    told = hookrun.run(asked, dict(os.environ), 60, job=job)
    assert (told.ok, told.unfit, told.reason) == (True, False, "")
    assert not any(procs.identity(pid) for pid in brands.branded(procs.snapshot(), job=job))
    assert not shortages
    assert ran.read_text() == "once\n"
    assert not procs.marked(["BALSAM_HOOK=t00001.1.preprocess"])


def start_until(ran: Path) -> Any:
    """Start programs as ``Popen`` does; return when the file ``ran`` is there."""

    def start(*given: Any, **named: Any) -> Any:
        process = popen(*given, **named)
        wait_until(ran.exists, 20, "it has begun")
        return process

    popen = subprocess.Popen
    return start
