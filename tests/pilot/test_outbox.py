"""The outbox: what a worker owes survives whatever happens to the worker and to its file."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import outbox as module
from balsam_celery.outbox import Outbox, read_outbox
from balsam_celery.wire import Ended, decode


def ended(task: str, attempt: int = 1, **fields: object) -> Ended:
    return Ended(task, attempt, "exit", "", ended=5.0, **fields)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "n0.outbox"


def test_life_of_an_outcome(path: Path) -> None:
    box = Outbox(path)
    assert box.receive([("a", 1), ("b", 1)]) == [("a", 1), ("b", 1)]
    assert box.held() == (("a", 1), ("b", 1))
    [(number, text)] = box.end([ended("a", stdout_tail="ü\n\x00")])
    assert decode(Ended, _without_type(text)) == ended("a", stdout_tail="ü\n\x00")
    assert box.unacknowledged() == [(number, text)]
    assert box.held() == (("b", 1), ("a", 1))
    box.acknowledge([number, 99])
    assert box.unacknowledged() == []
    assert box.held() == (("b", 1),)
    assert box.outcome("a", 1) == ended("a", stdout_tail="ü\n\x00")
    assert box.outcome("b", 1) is None
    box.close()


def _without_type(text: str) -> str:
    return text.replace(',"type":"Ended"', "")


def test_replay_tells_what_was_lost_and_what_is_owed(path: Path) -> None:
    box = Outbox(path)
    box.receive([("a", 1), ("b", 2), ("c", 1)])
    first = box.end([ended("a"), ended("b", 2)])
    box.acknowledge([first[0][0]])
    box.close()
    again = Outbox(path)
    assert again.lost == {("c", 1): ()}
    assert again.unacknowledged() == [first[1]]
    assert again.receive([("a", 1), ("b", 1), ("b", 2), ("c", 1), ("b", 3)]) == [("b", 3)]
    [(number, _)] = again.end([ended("c")])
    assert number == 3, "numbers go on where the earlier life stopped"
    again.close()


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_torn_last_line(path: Path, cut: int) -> None:
    box = Outbox(path)
    box.receive([("a", 1), ("b", 1)])
    box.end([ended("a")])
    box.end([ended("b", stdout_tail="x" * 300)])
    box.close()
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_outbox(path) == [ended("a")]
    again = Outbox(path)
    assert again.lost == {("b", 1): ()}
    again.end([ended("b")])
    again.close()
    assert read_outbox(path) == [ended("a"), ended("b")]


def test_damaged_line_in_the_middle(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = Outbox(path)
    for task in "abc":
        box.end([ended(task)])
    box.close()
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"id":"b"', b'"id":"x"'))
    assert read_outbox(path) == [ended("a"), ended("c")]
    assert "line 2 is damaged" in caplog.text


def test_missing_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_outbox(path)


def test_compaction_keeps_what_is_alive(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_ABOVE", 20_000)
    box = Outbox(path)
    box.receive([("held", 1)], {("held", 1): ("n0", "n1")})
    for index in range(200):
        box.receive([(f"t{index}", 1)])
        [(number, _)] = box.end([ended(f"t{index}", stdout_tail="x" * 500)])
        box.acknowledge([number])
        assert path.stat().st_size < 60_000
    owed = box.end([ended("owed")])
    box.close()
    again = Outbox(path)
    assert again.lost == {("held", 1): ("n0", "n1")}
    assert again.unacknowledged() == owed
    assert again.receive([("t0", 1), ("t199", 1)]) == []
    [(number, _)] = again.end([ended("z")])
    assert number > owed[0][0]
    again.close()


def test_full_disk(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that cannot grow loses nothing: memory keeps it, and the file once it can."""
    box = Outbox(path)
    box.end([ended("a")])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
    try:
        box.receive([("b", 1)])
        box.end([ended("b"), ended("c")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "kept in memory only" in caplog.text
    assert [n for n, _ in box.unacknowledged()] == [1, 2, 3]
    assert [e.id for e in read_outbox(path)] == ["a"]
    box.end([ended("d")])
    assert sorted(e.id for e in read_outbox(path)) == ["a", "b", "c", "d"]
    box.close()


@contextlib.contextmanager
def longest_file(size: int) -> Iterator[None]:
    """No file may be longer: stands in for a disk with so much room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("again", ["written", "mended"])
def test_a_full_disk_that_has_room_for_a_short_line(path: Path, again: str) -> None:
    """What memory alone keeps is written once there is room, also if others were meanwhile."""
    box = Outbox(path)
    box.receive([("long", 1), ("short", 1)])
    with longest_file(path.stat().st_size + 100):
        box.end([ended("long", stdout_tail="x" * 500)])
        box.receive([("new", 1)])
        assert box.path.read_bytes().count(b"new"), "it fits"
        assert list(path.parent.iterdir()) == [path], "nothing half done takes room"
        box.mend()
    assert not read_outbox(path)
    if again == "written":
        box.end([ended("short")])
    else:
        box.mend()
    assert "long" in {one.id for one in read_outbox(path)}
    # the worker is killed
    left = Outbox(path)
    assert ("long", 1) not in left.lost
    assert "long" in {decode(Ended, _without_type(text)).id for _, text in left.unacknowledged()}
    left.close()
    box.close()


def test_what_runs_or_is_owed_is_never_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that comes again would start it beside itself, however many came since."""
    monkeypatch.setattr(module, "REMEMBERED", 3)
    box = Outbox(path)
    box.receive([("runs", 2), ("owed", 1), ("over", 1)])
    box.end([ended("owed")])
    [(number, _)] = box.end([ended("over")])
    box.acknowledge([number])
    box.receive([(f"other-{index}", 1) for index in range(10)])
    again = [("runs", 2), ("runs", 1), ("owed", 1)]
    assert box.receive(again) == []
    box.close()
    replayed = Outbox(path)
    assert replayed.receive(again) == [], "nor by the next life"
    assert replayed.receive([("runs", 3), ("over", 1)]) == [("runs", 3), ("over", 1)]
    replayed.close()
