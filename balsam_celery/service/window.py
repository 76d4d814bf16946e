"""Which waiting tasks a placement pass looks at: the first of the backlog that may fit."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

from sqlalchemy import ColumnElement, Connection, and_

from balsam_celery.candidate import grown
from balsam_celery.ledger import Ledger
from balsam_celery.lookahead import NO_LOOK_AHEAD, LookAhead
from balsam_celery.placement import Candidate, Pass, place
from balsam_celery.resources import Resources
from balsam_celery.service.estimates import Estimates, estimates
from balsam_celery.store import scans, schema
from balsam_celery.store.scans import Waiting

#: How many waiting tasks a pass looks at.
WINDOW = 500
#: Of how many priorities and widths behind them it looks at the oldest task.
OTHERS = 200
#: How many of those may go first because of their age, and how many tasks of each it looks at.
AGED, OF_EACH = 5, 20
#: How many shapes that do not fit it passes over at the most.
MOST_SHAPES = 50
SHAPE = (
    "num_nodes",
    "ranks_per_node",
    "threads_per_rank",
    "threads_per_core",
    "gpus_per_rank",
    "node_packing_count",
    "memory_per_node",
    "resources_per_node",
    "wall_time",
)
Shape = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What placement needs beside ledger and backlog.

    Attributes:
        kill_grace: seconds between TERM and KILL.
        ageing: seconds of waiting that raise a task's priority by one.
        ahead: how far short tasks are sent ahead.
        tell_all: also work out the reservations that nothing ran into; what starts is the same.
    """

    kill_grace: int
    ageing: float = math.inf
    ahead: LookAhead = NO_LOOK_AHEAD
    tell_all: bool = False


class Looked(NamedTuple):
    """What a look at the backlog led to.

    Attributes:
        decided: what placement says.
        more: more of the backlog may start.
        candidates: what placement was shown.
        ahead: how far it sent ahead.
    """

    decided: Pass
    more: bool
    candidates: tuple[Candidate, ...]
    ahead: LookAhead


def decide(conn: Connection, ledger: Ledger, rules: Rules, now: float) -> Looked:
    """What placement says of the first tasks of the backlog, and whether more of it may start.

    When the first ones are so many of shapes that do not fit that the window holds nothing else,
    it is moved past those shapes, so that what fits behind them is seen too. Behind it the oldest
    of each priority and width are looked at: one of them may have grown into the first of all.
    """
    most = most_of(ledger, rules.ahead)
    # by id: a later window shows those of an earlier one again that found room
    candidates: dict[str, Candidate] = {}
    passed: set[Shape] = set()
    known = estimates(conn, now)
    while True:
        but = [_is_of(shape) for shape in passed]
        window = scans.placeable(conn, now=now, limit=WINDOW, but=but)
        candidates |= candidates_of(window, rules.kill_grace, most, known)
        is_full = len(window) == WINDOW
        if is_full and rules.ageing < math.inf:
            aged = _aged(conn, window[-1], rules.ageing, now, but)
            candidates |= candidates_of(aged, rules.kill_grace, most, known)
        ahead = replace(rules.ahead, many=WINDOW // 2 if is_full else None)
        decided = place(
            ledger,
            candidates.values(),
            now,
            ageing=rules.ageing,
            ahead=ahead,
            tell_all=rules.tell_all,
        )
        if not is_full or not decided.ledger.free_cores:
            return Looked(decided, False, tuple(candidates.values()), ahead)
        placed = {one.id for one in decided.placements}
        fitting = {shape_of(row) for row in window if row.id in placed}
        refused = {shape_of(row): row for row in window if shape_of(row) not in fitting}
        # where the last ones found room, the next pass goes on behind them
        if not refused or len(passed) >= MOST_SHAPES or shape_of(window[-1]) in fitting:
            return Looked(decided, True, tuple(candidates.values()), ahead)
        passed |= {
            # what no pilot could hold, were it empty, no limit makes fit
            shape if _could_hold(ledger, row.resources) else shape[:-1]
            for shape, row in refused.items()
        }


def _aged(
    conn: Connection,
    last: Waiting,
    ageing: float,
    now: float,
    but: Collection[ColumnElement[bool]],
) -> Iterator[Waiting]:
    """What is behind the window's last, and may go before it by its age."""
    found = scans.oldest_of_each(conn, last, now=now, limit=OTHERS, but=but)

    def order(row: Waiting) -> tuple[float, int, float]:
        return -grown(row.priority, row.created, now, ageing), -row.num_nodes, row.line

    aged = sorted((row for row in found if order(row) < order(last)), key=order)
    yield from aged[AGED:]
    for row in aged[:AGED]:
        yield from scans.placeable(conn, now=now, limit=OF_EACH, but=but, alike=row)


def most_of(ledger: Ledger, ahead: LookAhead = NO_LOOK_AHEAD) -> int:
    """How many equal tasks may start, have a pilot kept for them, or matter to look-ahead.

    That sends so many, and leaves one for each that may have others queued behind it.
    """
    open_ = sum(not pilot.draining for pilot in ledger.pilots.values())
    most = ledger.free_cores + max(0, open_ - 1)
    if ahead.tasks:
        # what starts in the same pass may have others behind it, too
        running = sum(len(pilot.holdings) for pilot in ledger.pilots.values())
        most += ledger.free_cores + running + ahead.tasks
    return most


def _could_hold(ledger: Ledger, wanted: Resources) -> bool:
    return any(
        (pilot.suiting(wanted) & ~pilot.lost_nodes).bit_count() >= wanted.num_nodes
        for pilot in ledger.pilots.values()
        if not pilot.draining
    )


def candidates_of(
    window: Iterable[Waiting], kill_grace: int, most: int, known: Estimates
) -> dict[str, Candidate]:
    """The programs among ``window``, by id: of equal ones no more than could matter.

    Each that starts takes a core, and each pilot is kept for one at the most: of ``most`` and one
    more the last is refused, and with it the rest. Ageing sets apart those of unequal priority.
    """
    found: dict[str, Candidate] = {}
    seen: Counter[tuple[object, ...]] = Counter()
    wanted: dict[tuple[object, ...], Resources] = {}
    for row in window:
        if row.kind != "program":
            continue
        expected = known.fits(row)
        kind = (*shape_of(row), row.priority, row.cpu_affinity, row.restartable, expected)
        seen[kind] += 1
        if seen[kind] > most + 1:
            continue
        if kind not in wanted:
            wanted[kind] = row.resources
        found[row.id] = Candidate(
            id=row.id,
            attempt=row.attempt + 1,
            resources=wanted[kind],
            wall_time=row.wall_time,
            kill_grace=kill_grace,
            priority=row.priority,
            created=row.created,
            restartable=row.restartable,
            expected_time=expected,
            lasts=row.expected_time or 0.0,
        )
    return found


#: What placement tells a task apart by.
shape_of = cast(Callable[[Waiting], Shape], operator.attrgetter(*SHAPE))


def _is_of(shape: Shape) -> ColumnElement[bool]:
    # the wall time, which is the last, may be left out
    pairs = zip(SHAPE, shape, strict=False)
    return and_(*(schema.task.c[name].is_not_distinct_from(value) for name, value in pairs))
