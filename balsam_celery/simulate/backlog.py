"""The simulated tasks that wait, by kind, the oldest first."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator

from balsam_celery.runtimes import bucket_of
from balsam_celery.simulate.workload import Workload

#: Number of a kind, and in which step (``runtimes.bucket_of``) the longest run was that was cut;
#: -1: none was.
Key = tuple[int, int]


class Waiting:
    """Waiting tasks of one kind; those that were cut come first: they are the oldest."""

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.returned: list[int] = []
        self.fresh: deque[int] = deque()

    def __len__(self) -> int:
        return len(self.returned) + len(self.fresh)

    def first(self, count: int) -> Iterator[int]:
        """The ``count`` oldest."""
        yield from self.returned[:count]
        left = count - len(self.returned)
        for task in self.fresh:
            if left <= 0:
                return
            left -= 1
            yield task

    def take(self, task: int) -> None:
        """``task`` does not wait any more."""
        if self.fresh and self.fresh[0] == task:
            self.fresh.popleft()
        elif task in self.returned:
            self.returned.remove(task)
        else:
            self.fresh.remove(task)


class Backlog:
    """What is ready to start.

    Attributes:
        kinds: waiting tasks by number of their kind and how long they ran when an allocation's end
            cut them; no empty ones.
        ready: when each task became ready, seconds.
        count: how many wait.
    """

    def __init__(self, workload: Workload) -> None:
        self.kinds: dict[Key, Waiting] = {}
        self.ready = list(workload.submitted)
        self.count = 0
        self._kind = workload.kind
        self._ran: dict[int, int] = {}

    def add(self, task: int, now: float) -> None:
        """``task`` becomes ready."""
        self.ready[task] = now
        self.count += 1
        self.kinds.setdefault(self.key(task), Waiting()).fresh.append(task)

    def put_back(self, task: int, ran: float) -> None:
        """An allocation's end cut ``task``, which had run for ``ran`` seconds."""
        self._ran[task] = max(self._ran.get(task, -1), bucket_of(ran))
        self.count += 1
        insort(self.kinds.setdefault(self.key(task), Waiting()).returned, task)

    def take(self, task: int) -> None:
        """``task`` starts."""
        key = self.key(task)
        waiting = self.kinds[key]
        waiting.take(task)
        if not len(waiting):
            del self.kinds[key]
        self.count -= 1

    def key(self, task: int) -> Key:
        """What it waits under, or would."""
        return self._kind[task], self._ran.get(task, -1)
