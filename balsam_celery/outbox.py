"""A worker's outbox: the file that keeps each outcome until the service has recorded it (R5).

One line per entry, ``CRC32 JSON``, appended with one ``write``::

    ["received", [[id, attempt], …]]     the worker has these; it owes an outcome for each. One that
                                         spans nodes names them: [id, attempt, [node, …]]
    ["ended", number, {an Ended record}]
    ["acked", [number, …]]               the service has recorded these
    ["seen", {id: attempt, …}]           written by a compaction only: attempts of the past

A torn last line, as a crash leaves it, is ignored; a damaged one elsewhere too, with a warning.
The service reads the same file, by :func:`read_outbox`, before it takes a dead pilot's tasks back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from balsam_celery.wire import Ended, MalformedMessage, encode, from_plain

logger = logging.getLogger(__name__)

#: A file above this many bytes is rewritten without what is over and done.
COMPACT_ABOVE = 8_000_000
#: Attempts remembered, so that a message that comes twice starts nothing twice. A node runs as many
#: in some minutes at best; what Redis has forgotten, or a service sends again, is seconds old.
#: Those whose outcome is owed are remembered beside them.
REMEMBERED = 20_000
#: Runs of this many seconds are worth a wait for the disk.
SYNC_ABOVE = 10.0
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC

Attempt = tuple[str, int]


def read_outbox(path: Path) -> list[Ended]:
    """Every outcome in the file, acknowledged or not, in the order of writing.

    Raises:
        OSError: the file cannot be read.
    """
    outcomes = []
    for entry in _entries(path):
        if entry[0] == "ended":
            try:
                fields = {name: value for name, value in entry[2].items() if name != "type"}
                outcomes.append(from_plain(Ended, fields))
            except MalformedMessage as error:
                logger.warning("%s: an outcome that cannot be read: %s", path, error)
    return outcomes


def read_unended(path: Path) -> list[Attempt]:
    """Attempts that were received and have not ended, as far as the file tells.

    Raises:
        OSError: the file cannot be read.
    """
    held: dict[Attempt, None] = {}
    for entry in _entries(path):
        match entry:
            case ["received", attempts]:
                held.update(((task, attempt), None) for task, attempt, *_ in attempts)
            case ["ended", _, record]:
                held.pop((record["id"], record["attempt"]), None)
    return list(held)


def _entries(path: Path) -> Iterator[list[Any]]:
    with path.open("rb") as file:
        for position, line in enumerate(file, 1):
            checksum, _, text = line.rstrip(b"\n").partition(b" ")
            whole = line.endswith(b"\n") and checksum == _checksum(text)
            entry = json.loads(text) if whole else None
            if isinstance(entry, list):
                yield entry
            elif line.endswith(b"\n"):
                logger.warning("%s: line %d is damaged and was skipped", path, position)


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _line(entry: Sequence[object]) -> bytes:
    text = json.dumps(entry, separators=(",", ":")).encode()
    return _checksum(text) + b" " + text + b"\n"


def _received_line(attempts: Mapping[Attempt, tuple[str, ...]]) -> bytes:
    return _line(["received", [(*key, nodes) if nodes else key for key, nodes in attempts.items()]])


def _ended_line(number: int, record: str) -> bytes:
    text = f'["ended",{number},{record}]'.encode()
    return _checksum(text) + b" " + text + b"\n"


class Outbox:
    """What a worker has received, and the outcomes that it still owes; safe between threads.

    Args:
        path: the file; an earlier life's entries are taken up.

    Attributes:
        lost: attempts that an earlier life received and never ended, for their owner to end as
            ``lost`` once no process of them lives; with the nodes of those that span several.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._held: dict[Attempt, tuple[str, ...]] = {}  # with its nodes, if it spans several
        self._unacked: dict[int, tuple[Attempt, str]] = {}
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._open: dict[str, int] = {}  # the latest attempts that are held or unacknowledged
        self._next = 1
        if path.exists():
            self._replay()
        self.lost = dict(self._held)
        self._file = os.open(path, _FLAGS, 0o600)
        self._size = os.fstat(self._file).st_size
        self._mend_end()
        self._compact_above = max(COMPACT_ABOVE, 2 * self._size)
        self._faulty = False

    def _replay(self) -> None:
        for entry in _entries(self.path):
            match entry:
                case ["received", attempts]:
                    for task, attempt, *spanned in attempts:
                        self._held[(task, attempt)] = tuple(*spanned)
                        self._open[task] = attempt
                        self._remember(task, attempt)
                case ["ended", number, record]:
                    key = (record["id"], record["attempt"])
                    self._held.pop(key, None)
                    self._open.setdefault(*key)
                    self._remember(*key)
                    text = json.dumps(record, separators=(",", ":"))
                    self._unacked[number] = (key, text)
                    self._next = max(self._next, number + 1)
                case ["acked", numbers]:
                    for number in numbers:
                        self._forget(number)
                        self._next = max(self._next, number + 1)
                case ["seen", attempts]:
                    for task, attempt in attempts.items():
                        self._remember(task, attempt)

    def _mend_end(self) -> None:
        """Keep a torn last line apart from the next one."""
        if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
            os.ftruncate(self._file, self._end_of_last_line())
            self._size = os.fstat(self._file).st_size

    def _end_of_last_line(self) -> int:
        position = self._size
        while position > 0:
            start = max(0, position - 65536)
            found = os.pread(self._file, position - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            position = start
        return 0

    def _remember(self, task: str, attempt: int) -> None:
        self._seen[task] = max(attempt, self._seen.get(task, 0))
        self._seen.move_to_end(task)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _forget(self, number: int) -> bool:
        """An outcome is recorded; false when there is none of that number."""
        if number not in self._unacked:
            return False
        (task, attempt), _ = self._unacked.pop(number)
        if self._open.get(task) == attempt:
            del self._open[task]
        return True

    def receive(
        self, attempts: Iterable[Attempt], nodes: Mapping[Attempt, tuple[str, ...]] | None = None
    ) -> list[Attempt]:
        """Take charge of attempts; returns those that are new here, never seen before.

        Args:
            attempts: (task, number) each.
            nodes: of those that span several.
        """
        with self._lock:
            new = {}
            for task, attempt in attempts:
                # a long one may be forgotten by the number of those that came since
                if attempt > max(self._seen.get(task, 0), self._open.get(task, 0)):
                    self._open[task] = attempt
                    new[(task, attempt)] = nodes.get((task, attempt), ()) if nodes else ()
                    self._remember(task, attempt)
            if new:
                self._held.update(new)
                self._write(_received_line(new), sync=False)
            return list(new)

    def end(self, outcomes: Sequence[Ended]) -> list[tuple[int, str]]:
        """Keep outcomes; returns (number, JSON) of each, ready to be sent."""
        texts = [encode(outcome) for outcome in outcomes]
        sync = any(o.started is not None and o.ended - o.started >= SYNC_ABOVE for o in outcomes)
        with self._lock:
            numbered = list(enumerate(texts, self._next))
            self._next += len(texts)
            for outcome, (number, text) in zip(outcomes, numbered, strict=True):
                key = (outcome.id, outcome.attempt)
                self._held.pop(key, None)
                self._open.setdefault(*key)
                self._unacked[number] = (key, text)
            self._write(b"".join(_ended_line(n, text) for n, text in numbered), sync=sync)
        return numbered

    def acknowledge(self, numbers: Iterable[int]) -> None:
        """Forget outcomes that the service has recorded."""
        with self._lock:
            known = [number for number in numbers if self._forget(number)]
            if known:
                self._write(_line(["acked", known]), sync=False)
            if self._size > self._compact_above:
                self._compact()

    def unacknowledged(self) -> list[tuple[int, str]]:
        """(number, JSON) of every outcome that the service has not yet recorded."""
        with self._lock:
            return [(number, text) for number, (_, text) in self._unacked.items()]

    def held(self) -> tuple[Attempt, ...]:
        """Attempts received whose outcomes are not yet acknowledged."""
        with self._lock:
            return (*self._held, *(key for key, _ in self._unacked.values()))

    def owes(self, task: str, attempt: int) -> bool:
        """Tell whether the attempt was received and its outcome is not in here yet."""
        with self._lock:
            return (task, attempt) in self._held

    def outcome(self, task: str, attempt: int) -> Ended | None:
        """The outcome of an attempt that ended here, if the file still has it."""
        found = None
        for outcome in read_outbox(self.path):
            if (outcome.id, outcome.attempt) == (task, attempt):
                found = outcome
        return found

    def _write(self, lines: bytes, *, sync: bool) -> None:
        """Append whole lines or nothing; on a full disk the memory keeps what the file cannot."""
        try:
            written = os.write(self._file, lines)
            if written < len(lines):
                os.ftruncate(self._file, self._size)
                raise OSError(28, f"only {written} of {len(lines)} bytes were written")
            if sync:
                os.fdatasync(self._file)
        except OSError as error:
            if not self._faulty:
                logger.error("%s: outcomes are kept in memory only: %s", self.path, error)
            self._faulty = True
        else:
            self._size += len(lines)
            self._mend()

    def mend(self) -> None:
        """Try to write what memory alone keeps, if there is anything."""
        with self._lock:
            self._mend()

    def _mend(self) -> None:
        # a full disk may have room for a short line, and not for all of it
        if self._faulty and self._compact():
            logger.warning("%s: can be written again", self.path)
            self._faulty = False

    def _compact(self) -> bool:
        """Write anew what is alive, and tell whether that is done; else the old file stays."""
        lines = [_line(["seen", dict(self._seen)]), _line(["acked", [self._next - 1]])]
        if self._held:
            lines.append(_received_line(self._held))
        lines += [_ended_line(number, text) for number, (_, text) in self._unacked.items()]
        fresh = self.path.with_suffix(".new")
        file = -1
        try:
            file = os.open(fresh, _FLAGS | os.O_TRUNC, 0o600)
            with open(file, "wb", closefd=False) as stream:
                stream.write(b"".join(lines))
            os.fdatasync(file)
            fresh.rename(self.path)
        except OSError as error:
            if not self._faulty:
                logger.error("%s: cannot be compacted: %s", self.path, error)
            if file >= 0:
                os.close(file)
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)  # it would take what little room there is
            return False
        old, self._file = self._file, file
        os.close(old)
        self._size = os.fstat(file).st_size
        self._compact_above = max(COMPACT_ABOVE, 2 * self._size)
        return True

    def close(self) -> None:
        """Close the file; what is in it stays."""
        os.close(self._file)
