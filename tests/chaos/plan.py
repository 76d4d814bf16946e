"""Which faults befall a run, in which order: pure, from the seed alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

#: Seconds that a fault without a duration counts as lasting, for what is to overlap it.
MOMENT = 2.0
#: Mean pause, seconds, before a fault that does not overlap another.
PAUSE = 0.5
#: Share, of the faults that do not overlap, of those that leave no time for full work.
SOON = 0.7


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: ``what:whom``.
        least, most: seconds that it lasts until it is lifted; 0: over at once.
        weight: how often it comes, beside the others.
        needs: what must be there: ``postgres``, ``slurm``, ``namespaces``.
        without: what must not be there.
    """

    name: str
    least: float = 0.0
    most: float = 0.0
    weight: float = 1.0
    needs: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()


def _needs(*names: str) -> frozenset[str]:
    return frozenset(names)


KINDS = (
    Kind("kill:service", weight=2.0),
    # exactly between the commit of an end and the effects that it owes (R7)
    Kind("kill:service-owing", weight=2.0),
    Kind("kill:beat"),
    Kind("kill:transitions"),
    Kind("kill:tasks"),
    Kind("kill:redis", weight=1.5),
    Kind("kill:worker", weight=2.0),
    Kind("kill:pilot", weight=1.5),
    # it stays away for a while: whatever else dies then is not started again
    Kind("kill:supervisor", 0.5, 6.0, 0.3),
    Kind("pause:service", 1.0, 12.0),
    Kind("pause:beat", 1.0, 12.0, 0.5),
    Kind("pause:transitions", 1.0, 12.0, 0.5),
    Kind("pause:tasks", 1.0, 12.0, 0.5),
    Kind("pause:redis", 1.0, 12.0),
    Kind("pause:worker", 1.0, 12.0),
    Kind("pause:pilot", 1.0, 12.0),
    Kind("pause:supervisor", 1.0, 12.0, 0.5),
    Kind("message:twice", weight=1.5),
    Kind("message:late", 3.0, 25.0, 1.5),
    # longer than SILENT_AFTER of a pilot and every time-out of a socket
    Kind("cut:network", 65.0, 80.0, 0.15, _needs("namespaces")),
    Kind("cut:short", 3.0, 20.0, 1.0, _needs("namespaces")),
    Kind("clock:ahead", 5.0, 20.0, 0.75),
    Kind("clock:behind", 5.0, 20.0, 0.75),
    Kind("kill:postgres", 0.5, 8.0, 1.5, _needs("postgres")),
    Kind("stop:postgres", 1.0, 12.0, 1.0, _needs("postgres")),
    Kind("pause:postgres", 1.0, 12.0, 1.0, _needs("postgres")),
    Kind("kill:slurmctld", 1.0, 15.0, 2.0, _needs("slurm")),
    Kind("kill:slurmd", 1.0, 10.0, 2.0, _needs("slurm")),
    Kind("pause:slurmctld", 1.0, 15.0, 1.0, _needs("slurm")),
    Kind("pause:slurmd", 1.0, 15.0, 1.0, _needs("slurm")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a run.

    Attributes:
        number: from 1.
        kind: name of its kind.
        duration: seconds until it is lifted.
        choice: in [0, 1): picks the victim among those that there are then, and how far a clock
            goes wrong.
        overlaps: it comes while the fault before it lasts.
        soon: else: it comes once nothing is broken, and not only after full work again.
        wait: seconds from the injection of the fault before it, or from what it comes after.
    """

    number: int
    kind: str
    duration: float
    choice: float
    overlaps: bool
    soon: bool
    wait: float


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault as it came.

    Attributes:
        kind: name of its kind.
        monotonic, wall: when, in seconds, by the clocks of the machine.
        lifted: when it was over, on the monotonic clock.
    """

    kind: str
    monotonic: float
    wall: float
    lifted: float = 0.0


def possible(kinds: Iterable[Kind], present: Iterable[str]) -> list[Kind]:
    """Kinds whose needs are met by what is ``present``."""
    there = frozenset(present)
    return [kind for kind in kinds if kind.needs <= there and not kind.without & there]


def faults(
    seed: int, kinds: Sequence[Kind], *, share: float, soon: float = SOON
) -> Iterator[Fault]:
    """Faults without end.

    Args:
        seed: the same gives the same.
        kinds: to choose among.
        share: of the faults that overlap the one before.
        soon: of the others, the share that leave no time for full work.
    """
    chance = random.Random(f"faults {seed}")
    weights = [kind.weight for kind in kinds]
    before = MOMENT
    for number in itertools.count(1):
        (kind,) = chance.choices(kinds, weights)
        overlaps = number > 1 and chance.random() < share
        fault = _fault(chance, number, kind, overlaps, before, soon)
        before = max(MOMENT, fault.duration)
        yield fault


def each_once(seed: int, kinds: Sequence[Kind], *, share: float, longest: float) -> list[Fault]:
    """Each kind once, in an order of the seed's, none for more than ``longest`` seconds."""
    chance = random.Random(f"each {seed}")
    order = list(kinds)
    chance.shuffle(order)
    found: list[Fault] = []
    before = MOMENT
    for number, kind in enumerate(order, 1):
        short = Kind(kind.name, min(kind.least, longest), min(kind.most, longest))
        fault = _fault(chance, number, short, number > 1 and chance.random() < share, before)
        before = max(MOMENT, fault.duration)
        found.append(fault)
    return found


def _fault(
    chance: random.Random,
    number: int,
    kind: Kind,
    overlaps: bool,
    before: float,
    soon: float = SOON,
) -> Fault:
    duration = round(chance.uniform(kind.least, kind.most), 1)
    wait = chance.uniform(0.0, before) if overlaps else chance.expovariate(1 / PAUSE)
    choice, at_once = chance.random(), not overlaps and chance.random() < soon
    return Fault(number, kind.name, duration, choice, overlaps, at_once, round(min(wait, 60.0), 2))
