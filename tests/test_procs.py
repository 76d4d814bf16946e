"""Finding and ending processes, with programs that resist."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_celery import brands, procs
from balsam_celery.pilot import process
from balsam_celery.procs import Identity, Quarry
from tests.waiting import wait_until

NASTY = str(Path(__file__).with_name("nasty.py"))
MARK = "BALSAM_TEST_QUARRY"
#: Programs, and how many processes of each note themselves.
KINDS = {"plain": 1, "deaf": 1, "session": 2, "orphan": 2, "threads": 1, "storm": 201}


class Program:
    """A nasty program with a mark and a brand of its own."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.name = uuid.uuid4().hex
        self.pids = directory / f"{self.name}.pids"
        self.pids.touch()
        environment = {**os.environ, MARK: self.name}
        with brands.children_branded(job=self.name):
            self.process = subprocess.Popen(
                [sys.executable, "-S", NASTY, kind, str(self.pids)],
                env=environment,
                start_new_session=True,
            )
        leader = procs.entry(self.process.pid)
        assert leader is not None
        self.leader = leader.identity
        self.mark = Quarry(marks=frozenset({f"{MARK}={self.name}"}))
        self.brand = Quarry(job=self.name)
        self.all = Quarry(marks=self.mark.marks, job=self.name)

    def settled(self, processes: int) -> list[Identity]:
        """Wait until ``processes`` have noted themselves; those that live."""
        wait_until(
            lambda: len(self.pids.read_text().split()) >= processes,
            what=f"{processes} processes of {self.pids}",
        )
        if self.kind in ("orphan", "nameless"):
            self.process.wait()  # it notes itself and goes
        return [i for pid in self.pids.read_text().split() if (i := procs.identity(int(pid)))]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    started: list[Program] = []

    def starter(kind: str) -> Program:
        started.append(Program(kind, tmp_path))
        return started[-1]

    before = children()  # servers of other tests
    procs.become_subreaper()
    yield starter
    for program in started:
        assert procs.end(program.all, grace=0) == []
        program.process.wait()
    assert procs.unknown_children(before) == []
    procs.become_subreaper(False)


def children() -> set[int]:
    """Living children of this process."""
    return set(procs.children_of(os.getpid()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["mark", "brand"])
def test_ends_every_process(start: Callable[[str], Program], kind: str, way: str) -> None:
    program = start(kind)
    living = program.settled(KINDS[kind])
    assert living
    quarry = program.mark if way == "mark" else program.brand
    assert set(living) <= set(procs.find(quarry))
    assert procs.end(quarry, grace=0.2) == []
    assert not [process for process in living if procs.alive(process)]
    assert procs.find(program.all) == []


def test_those_that_are_to_be_killed_can_be_looked_at(start: Callable[[str], Program]) -> None:
    """They are stopped, also those that have come since TERM."""
    program = start("deaf")
    [deaf] = program.settled(1)
    seen: list[str] = []

    def look() -> None:
        seen.append(Path(f"/proc/{deaf.pid}/stat").read_text().rpartition(") ")[2][0])

    assert procs.end(program.all, grace=0.1, before_kill=look) == []
    assert seen[0] == "T"


def test_the_grace_begins_with_term(
    start: Callable[[str], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first look at all processes takes longer than the grace."""
    program = start("deaf")
    program.settled(1)
    snapshot, send = procs.snapshot, procs.send
    sent: dict[int, float] = {}

    def slow() -> dict[int, procs.Entry]:
        if not sent:
            time.sleep(0.6)
        return snapshot()

    def seen(process: Identity, number: int) -> bool:
        sent.setdefault(number, time.monotonic())
        return send(process, number)

    monkeypatch.setattr(procs, "snapshot", slow)
    monkeypatch.setattr(procs, "send", seen)
    assert procs.end(program.all, grace=0.5) == []
    assert sent[signal.SIGSTOP] - sent[signal.SIGTERM] >= 0.5


@pytest.mark.parametrize("kind", ["orphan", "nameless"])
def test_brand_finds_orphans_of_whom_nothing_is_known(
    start: Callable[[str], Program], kind: str
) -> None:
    """Double fork, a session of its own and, for one, an empty environment."""
    program = start(kind)
    [orphan] = program.settled(2)
    by_mark, by_brand = procs.find(program.mark), procs.find(program.brand)
    assert by_brand == [orphan]
    assert by_mark == ([orphan] if kind == "orphan" else [])
    assert procs.end(program.brand, grace=0.05) == []
    assert not procs.alive(orphan)


def test_a_storm_is_ended_while_it_forks(start: Callable[[str], Program]) -> None:
    program = start("storm")
    program.settled(20)
    assert procs.end(Quarry(roots=frozenset({program.leader}), job=program.name), grace=0) == []
    assert procs.find(program.all) == []


def test_a_stopped_process_is_woken_to_end(start: Callable[[str], Program]) -> None:
    program = start("stopped")
    program.settled(1)
    wait_until(lambda: b"T" in Path(f"/proc/{program.leader.pid}/stat").read_bytes().split())
    assert procs.end(program.mark, grace=30) == []
    assert program.process.wait() == -signal.SIGTERM


def test_grace_is_kept_for_those_that_act_on_term(start: Callable[[str], Program]) -> None:
    program = start("plain")
    program.settled(1)
    assert procs.end(program.mark, grace=30) == []
    assert program.process.wait() == -signal.SIGTERM


@pytest.mark.usefixtures("start")
def test_the_session_is_found_after_its_leader() -> None:
    left = subprocess.Popen(
        ["/bin/sh", "-c", "env -i sleep 300 & echo $!"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    leader = procs.entry(left.pid)
    assert leader is not None
    assert left.stdout is not None
    member = int(left.stdout.readline())
    left.stdout.close()
    left.wait()
    quarry = Quarry(sessions=frozenset({leader.identity}))
    assert [process.pid for process in procs.find(quarry)] == [member]
    assert procs.end(quarry, grace=0) == []
    procs.reap(member)
    with pytest.raises(ProcessLookupError):
        os.killpg(left.pid, 0)


def test_a_session_number_given_again_is_not_the_session(start: Callable[[str], Program]) -> None:
    program = start("plain")
    program.settled(1)
    earlier = Identity(program.leader.pid, program.leader.start_time - 1, program.leader.boot_id)
    assert procs.find(Quarry(sessions=frozenset({earlier}))) == []
    assert procs.find(Quarry(roots=frozenset({earlier}))) == []
    assert not procs.alive(earlier)
    assert not procs.send(earlier, signal.SIGKILL)
    assert procs.alive(program.leader)


def test_a_process_lives_on_without_its_main_thread(start: Callable[[str], Program]) -> None:
    program = start("threads")
    program.settled(1)
    status = Path(f"/proc/{program.leader.pid}/status")
    wait_until(lambda: "State:\tZ" in status.read_text(), what="the main thread to end")
    assert procs.alive(program.leader)
    assert procs.find(program.brand) == [program.leader]


def test_a_zombie_does_not_live(start: Callable[[str], Program]) -> None:
    program = start("plain")
    program.settled(1)
    program.process.kill()
    wait_until(lambda: not procs.alive(program.leader))
    assert procs.entry(program.leader.pid) is not None
    assert program.process.wait() == -signal.SIGKILL
    assert procs.entry(program.leader.pid) is None


def test_unknown_children_are_the_orphans(start: Callable[[str], Program]) -> None:
    program = start("nameless")
    [orphan] = program.settled(2)
    known = (children() | {program.process.pid}) - {orphan.pid}
    wait_until(lambda: orphan in procs.unknown_children(known), what="the orphan to be adopted")
    brand = brands.of(orphan.pid)
    assert brand is not None
    assert brand.job == brands.job_number(program.name)
    procs.end(Quarry(roots=frozenset({orphan})), grace=0)
    assert procs.unknown_children(known) == []
    assert procs.entry(orphan.pid) is None, "a dead orphan is reaped"


def test_descendants_and_children(start: Callable[[str], Program]) -> None:
    program = start("session")
    members = program.settled(2)
    [child] = [process for process in members if process != program.leader]
    assert procs.children_of(program.leader.pid) == [child.pid]
    assert set(procs.descendants([program.leader.pid])) == {child.pid}
    below = Quarry(parents=frozenset({program.leader}))
    assert procs.find(below) == [child]
    assert procs.end(below, grace=0) == []
    assert procs.alive(program.leader)


def test_the_hunter_is_spared(start: Callable[[str], Program]) -> None:
    program = start("plain")
    program.settled(1)
    quarry = Quarry(roots=frozenset({procs.own_identity()}), marks=program.mark.marks)
    found = procs.find(quarry)
    assert program.leader in found
    assert procs.own_identity() not in found


def test_names_with_parentheses_are_read(tmp_path: Path) -> None:
    odd = tmp_path / "a) S (b"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(odd), "300"])
    try:
        found = procs.entry(process.pid)
        assert found is not None
        assert found.parent == os.getpid()
        assert found.lives
    finally:
        process.kill()
        process.wait()


def test_brands_of_attempts_within_a_job() -> None:
    def start_one(job: str, attempt: str) -> subprocess.Popen[bytes]:
        with brands.children_branded(job=job, attempt=attempt):
            return subprocess.Popen(["/bin/sleep", "300"])

    started = [start_one("j1", "a"), start_one("j1", "b"), start_one("j2", "a")]
    pids = [process.pid for process in started]
    try:
        assert brands.of(0) is None, "the starter is not branded"
        assert brands.branded(pids, job="j1") == set(pids[:2])
        assert brands.branded(pids, job="j1", attempts=["a"]) == {pids[0]}
        assert brands.branded(pids, attempts=["a"]) == set(), (
            "of this process's own job, which is none"
        )
        assert brands.branded([*pids, 2**22 + 1], job="j3") == set()
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_branded_process_brands_its_attempts_within_its_job() -> None:
    code = (
        "import subprocess;"
        "from balsam_celery import brands;"
        "outer = brands.of(0);\n"
        "with brands.children_branded(attempt='a'):\n"
        "    child = subprocess.Popen(['/bin/sleep', '300'])\n"
        "try:\n"
        "    inner = brands.of(child.pid)\n"
        "    assert brands.branded([child.pid], attempts=['a']) == {child.pid}\n"
        "finally:\n"
        "    child.kill(); child.wait()\n"
        "assert brands.of(0) == outer\n"
        "assert inner.job == outer.job == brands.job_number('j')\n"
        "assert (outer.attempt, inner.attempt) == (0, brands.attempt_number('a'))\n"
    )
    with brands.children_branded(job="j"):
        process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait(timeout=60) == 0


def test_brands_yield_to_a_lowered_hard_limit() -> None:
    code = (
        "import resource, subprocess;"
        "from balsam_celery import brands;"
        "resource.setrlimit(resource.RLIMIT_RTTIME, (5_000_000, 5_000_000));\n"
        "with brands.children_branded(job='j'):\n"
        "    subprocess.run(['/bin/true'], check=True)\n"
        "assert brands.of(0) is None\n"
        "assert resource.getrlimit(resource.RLIMIT_RTTIME) == (5_000_000, 5_000_000)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_processes_that_the_kernel_hides_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``hidepid=1`` those of other users are listed, and cannot be looked at."""
    hidden = os.getppid()
    name = Path(f"/proc/{hidden}/comm").read_text().strip()
    assert hidden in process.named(name)

    def hiding(look: Callable[..., Any]) -> Callable[..., Any]:
        def looks(path: Any, *arguments: Any, **named: Any) -> Any:
            if str(path).startswith(f"/proc/{hidden}/"):
                raise PermissionError(1, "Operation not permitted", str(path))
            return look(path, *arguments, **named)

        return looks

    monkeypatch.setattr(Path, "read_bytes", hiding(Path.read_bytes))
    monkeypatch.setattr(Path, "iterdir", hiding(Path.iterdir))
    monkeypatch.setattr("builtins.open", hiding(open))
    assert hidden not in procs.snapshot()
    assert procs.find(Quarry(marks=frozenset({f"{MARK}=nobody"}))) == []
    assert procs.environment(hidden) == b""
    assert procs.children_of(hidden) == []
    assert hidden not in process.named(name)
    assert process.peak_memory(hidden) == 0
