"""Figures of a run (docs/planning.md has the definitions)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from balsam_celery.simulate.bound import lower_bound
from balsam_celery.simulate.machine import Machine
from balsam_celery.simulate.record import Record
from balsam_celery.simulate.workload import Workload


@dataclass(frozen=True, slots=True)
class Metrics:
    """Times in hours, waits in seconds, shares from 0 to 1.

    Attributes:
        efficiency: node-hours used over charged: the shares of nodes that successful attempts
            held while they ran, of what each allocation had the most use (cores, GPUs, …), over
            nodes × time of all allocations.
        saturated: the same over the allocations in which tasks waited all the time; ``None``: none.
        makespan: from the first submission to the end of the last task.
        over_bound: makespan over the lower bound.
        wait_mean, wait_median, wait_p95: from ready to first start.
        lost: node-hours of attempts that an allocation's end cut, over charged.
        node_hours: charged.
        allocations: that started.
        promised: longest wait at the head of the queue of a task of the widest kind, from when it
            was given a reservation (so no allocation's start is waited for).
        late: by how much the latest of them started after the time that it was first promised,
            which is when all that runs has reached its limit.
        done, timeouts, orphans: tasks by their end.
    """

    tasks: int
    efficiency: float
    saturated: float | None
    makespan: float
    over_bound: float
    wait_mean: float
    wait_median: float
    wait_p95: float
    lost: float
    node_hours: float
    allocations: int
    promised: float
    late: float
    done: int
    timeouts: int
    orphans: int
    passes: int
    plans: int

    def plain(self) -> dict[str, float | int | None]:
        """As JSON."""
        return asdict(self)


def measure(record: Record, ready: list[float], workload: Workload, machine: Machine) -> Metrics:
    """The figures of a finished run; ``ready``: when each task became ready."""
    charged = record.charged
    begin = min(workload.submitted)
    makespan = max(record.finished) - begin
    bound = lower_bound(workload, machine) - begin
    waits = sorted(
        start - since for start, since in zip(record.first_start, ready, strict=True) if start >= 0
    )
    busy = [one for one in record.allocations if not one.starved]
    full = sum(one.charged for one in busy)
    return Metrics(
        tasks=len(workload),
        efficiency=record.used / charged if charged else 0.0,
        saturated=sum(one.used for one in busy) / full if full else None,
        makespan=makespan / 3600,
        over_bound=makespan / bound,
        wait_mean=sum(waits) / len(waits),
        wait_median=waits[len(waits) // 2],
        wait_p95=waits[int(len(waits) * 0.95)],
        lost=record.lost / charged if charged else 0.0,
        node_hours=charged / 3600,
        allocations=len(record.allocations),
        promised=record.promised,
        late=record.late,
        done=record.done,
        timeouts=record.timeouts,
        orphans=record.orphans,
        passes=record.passes,
        plans=record.plans,
    )
