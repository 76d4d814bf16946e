"""What is free in one pilot, and who holds the rest."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from immutables import Map

from balsam_celery.bitset import members
from balsam_celery.nodefree import NodeFree
from balsam_celery.resources import NodeCapacity, NodeShare, Resources
from balsam_celery.soonest import Soonest, fits_from

Key = tuple[str, int]
#: Of how many shapes it is remembered where they do not fit.
_MOST_SHAPES = 256
#: Seconds within which the ends of what runs are not told apart when nodes are chosen by them.
_STEP = 32.0


@dataclass(frozen=True, slots=True)
class Holding:
    """What one attempt holds.

    Attributes:
        id, attempt: the task's id and the number of the attempt.
        shares: nodes and what it has on each, head node first.
        until: when it has ended at the latest, seconds since the epoch.
        packing: the task's ``node_packing_count``.
        since: when it was given, seconds since the epoch.
        lane: what it asked for, if it is so short that others may queue behind it (look-ahead).
    """

    id: str
    attempt: int
    shares: tuple[NodeShare, ...]
    until: float
    packing: int | None = None
    since: float = 0.0
    lane: Resources | None = None

    @property
    def key(self) -> Key:
        """(task id, attempt)."""
        return self.id, self.attempt

    @property
    def is_gang(self) -> bool:
        """It spans nodes, so it holds them whole."""
        return len(self.shares) > 1

    @property
    def is_queued(self) -> bool:
        """It was sent ahead, behind one that held the same."""
        return self.shares[0].queued


class PilotFree:
    """One pilot and what is free in it.

    Only ``ledger`` and ``placement`` change one, and only a copy that nobody else has seen.

    Attributes:
        id: the pilot's id.
        deadline: when it begins to stop what runs, seconds since the epoch.
        draining: nothing may start in it.
        holdings: what runs, or is queued behind what runs, by (task id, attempt).
        free_nodes: places of nodes on which nothing runs and something may, as a bit set.
        lost_nodes: places of lost nodes, as a bit set.
        free_cores: free cores of nodes that are not lost.
    """

    __slots__ = (
        "_buckets",
        "_kinds",
        "_nodes",
        "_on_node",
        "_places",
        "_queued",
        "_releases",
        "_soonest",
        "_suiting",
        "_unfit",
        "_until",
        "deadline",
        "draining",
        "free_cores",
        "free_nodes",
        "holdings",
        "id",
        "lost_nodes",
    )

    def __init__(
        self, pilot: str, nodes: Iterable[NodeCapacity], deadline: float, draining: bool = False
    ) -> None:
        self.id = pilot
        self.deadline = deadline
        self.draining = draining
        every = [NodeFree.of(capacity) for capacity in nodes]
        self._nodes: Map[int, NodeFree] = Map(enumerate(every))
        self.holdings: Map[Key, Holding] = Map()
        self.free_nodes = (1 << len(every)) - 1
        self.lost_nodes = 0
        self.free_cores = sum(len(node.cores) for node in every)
        self._places = {node.capacity.name: place for place, node in enumerate(every)}
        #: places of nodes by their number of free cores, as bit sets
        self._buckets: dict[float, int] = {}
        #: places of nodes alike but for their names, as bit sets
        self._kinds: dict[NodeCapacity, int] = {}
        self._suiting: dict[Resources, int] = {}
        #: places on which a shape is known not to fit; forgotten when something there is freed
        self._unfit: dict[Resources, int] = {}
        #: what runs on each node, by place
        self._on_node: Map[int, tuple[Holding, ...]] = Map()
        #: when all that each node holds has ended at the latest, and places by that, in steps
        self._until = array("d", [0.0]) * len(every)
        self._releases: dict[float, int] = {0.0: self.free_nodes}
        self._soonest = Soonest()
        #: keys of what is queued behind a holding, in order
        self._queued: Map[Key, tuple[Key, ...]] = Map()
        for place, node in enumerate(every):
            count, capacity = len(node.cores), node.capacity
            self._buckets[count] = self._buckets.get(count, 0) | 1 << place
            cores = tuple(range(count))
            kind = replace(capacity, name="", cores=cores, lost=False, lost_reason="")
            self._kinds[kind] = self._kinds.get(kind, 0) | 1 << place
            if capacity.lost:
                self.lose(capacity.name)

    def copy(self) -> PilotFree:
        """One that may be changed without changing this one."""
        other = PilotFree.__new__(PilotFree)
        for name in PilotFree.__slots__:
            setattr(other, name, getattr(self, name))
        # the rest never changes in place
        other._buckets = self._buckets.copy()
        other._unfit = self._unfit.copy()
        other._until = self._until[:]
        other._releases = self._releases.copy()
        other._soonest = self._soonest.copy()
        return other

    @property
    def nodes(self) -> list[NodeFree]:
        """Its nodes, in its order."""
        return [self._nodes[place] for place in range(len(self._nodes))]

    def node(self, place: int) -> NodeFree:
        """The node at ``place``."""
        return self._nodes[place]

    def has_node(self, name: str) -> bool:
        """It has a node of that name."""
        return name in self._places

    def on_node(self, place: int) -> tuple[Holding, ...]:
        """What runs on the node at ``place``."""
        return self._on_node.get(place, ())

    def place(self, name: str) -> int:
        """The place of the node of that name."""
        return self._places[name]

    def lanes(self, wanted: Resources, among: int) -> Iterator[tuple[Holding, int]]:
        """What runs on places ``among`` (a bit set) behind which a short task of ``wanted`` may be
        queued, and how many are already."""
        for place in members(among & ((1 << len(self._nodes)) - 1) & ~self.lost_nodes):
            for holding in self.on_node(place):
                if holding.lane == wanted:
                    yield holding, len(self._queued.get(holding.key, ()))

    def queued(self) -> Iterator[tuple[Holding, tuple[Key, ...]]]:
        """What others are queued behind, and those."""
        for key, behind in self._queued.items():
            yield self.holdings[key], behind

    def until(self, place: int) -> float:
        """When all that the node holds has ended at the latest; 0 when it holds nothing."""
        return self._until[place]

    def lasts(self, holding: Holding) -> float:
        """When ``holding``, and what is queued behind it, has ended at the latest.

        What is queued is taken back where its node is kept for another task, but that may come when
        it has just started.
        """
        behind = self._queued.get(holding.key, ())
        return max([holding.until, *(self.holdings[key].until for key in behind)])

    def soonest(self, wanted: Resources) -> tuple[float, int] | None:
        """When, at the latest, and at which place a task of a part of a node fits the soonest.

        ``None``: nowhere; a time that has passed: now.
        """

        usable = self.suiting(wanted) & ~self.lost_nodes

        def time_on(place: int) -> float:
            if not usable >> place & 1:
                return math.inf
            holders = self.on_node(place)
            if holders and holders[0].is_gang:
                # it holds the node whole
                return self.lasts(holders[0])
            held = [(self.lasts(one), one.shares[0], one.packing) for one in holders]
            return fits_from(self._nodes[place], held, wanted)

        return self._soonest.first(wanted, len(self._nodes), time_on)

    def releases(self) -> Iterator[int]:
        """Places of nodes, as bit sets: those that are free now, then others by when they are at
        the latest, in steps of some seconds."""
        for step in sorted(self._releases):
            yield self._releases[step]

    def fitting(self, wanted: Resources, among: int) -> Iterator[tuple[int, NodeShare]]:
        """Places ``among`` (a bit set) on which a single-node task fits now, the fullest first,
        each with what the task would be given there."""
        need = wanted.least_cores
        unfit = self._unfit.get(wanted, 0)
        for count in sorted(count for count in self._buckets if count >= need):
            for place in members(self._buckets[count] & among & ~unfit):
                share = self._nodes[place].share(wanted)
                if share is not None:
                    yield place, share
                else:
                    unfit |= 1 << place
                    # what is found here stays true of this pilot, whatever is taken from it
                    self._note_unfit(wanted, unfit)

    def _note_unfit(self, wanted: Resources, places: int) -> None:
        if len(self._unfit) >= _MOST_SHAPES and wanted not in self._unfit:
            self._unfit.clear()
        self._unfit[wanted] = places

    def suiting(self, wanted: Resources) -> int:
        """Places of nodes that could hold a task of ``wanted`` if nothing ran, as a bit set."""
        found = self._suiting.get(wanted)
        if found is None:
            found = 0
            for capacity, places in self._kinds.items():
                if NodeFree.of(capacity).share(wanted) is not None:
                    found |= places
            if len(self._suiting) >= _MOST_SHAPES:
                self._suiting.clear()
            self._suiting[wanted] = found
        return found

    def take(self, holding: Holding) -> None:
        """Give ``holding`` its shares; one sent ahead is queued behind the one that holds them.

        Raises:
            ValueError: some of it is not free, or the attempt holds something here already.
        """
        if holding.key in self.holdings:
            raise ValueError(f"attempt {holding.attempt} of {holding.id} is given slots twice")
        ahead = self._holder(holding.shares[0]) if holding.is_queued else None
        if ahead is not None:
            behind = self._queued.get(ahead.key, ())
            self._queued = self._queued.set(ahead.key, (*behind, holding.key))
            self.holdings = self.holdings.set(holding.key, holding)
            self._lane_changed(holding)
            return
        gang, packing, until = holding.is_gang, holding.packing, holding.until
        changed = []
        for share in holding.shares:
            place = self._places[share.node]
            node = self._nodes[place].with_taken(share, packing, gang)
            changed.append((place, node, max(until, self._until[place])))
        on_node, alone = self._on_node.mutate(), (holding,)
        for place, _, _ in changed:
            others = on_node.get(place, ())
            on_node[place] = (*others, holding) if others else alone
        self._on_node = on_node.finish()
        self._change(changed)
        self.holdings = self.holdings.set(holding.key, holding)

    def _holder(self, share: NodeShare) -> Holding | None:
        """Who holds the very cores of ``share``."""
        for holding in self.on_node(self._places[share.node]):
            [there] = [one for one in holding.shares if one.node == share.node]
            if there.cores == share.cores:
                return holding
        return None

    def give_back(self, task: str, attempt: int) -> None:
        """Free what the attempt holds; nothing when it holds nothing here."""
        key = (task, attempt)
        holding = self.holdings.get(key)
        if holding is None:
            return
        self.holdings = self.holdings.delete(key)
        behind = self._queued.get(key, ())
        if behind:
            self._queued = self._queued.delete(key)
        elif holding.is_queued and self._leave_lane(holding):
            return
        heir = self.holdings[behind[0]] if behind else None
        if heir is not None and behind[1:]:
            self._queued = self._queued.set(heir.key, behind[1:])
        for share in holding.shares:
            place = self._places[share.node]
            left = tuple(one for one in self.on_node(place) if one is not holding)
            if heir is None:
                node = self._nodes[place].with_given_back(share, holding.packing)
            else:
                # it has the same cores: the node stays as it is
                node, left = self._nodes[place], (*left, heir)
            self._on_node = self._on_node.set(place, left)
            self._change([(place, node, self._latest(left))])

    def _leave_lane(self, holding: Holding) -> bool:
        """Take out one that is still queued; those behind it move up. False: it is not queued."""
        ahead = self._holder(holding.shares[0])
        behind = self._queued.get(ahead.key, ()) if ahead is not None else ()
        if ahead is None or holding.key not in behind:
            return False
        left = tuple(key for key in behind if key != holding.key)
        self._queued = self._queued.set(ahead.key, left) if left else self._queued.delete(ahead.key)
        self._lane_changed(holding)
        return True

    def _lane_changed(self, holding: Holding) -> None:
        """``holding`` is queued on its node, or is no more."""
        place = self._places[holding.shares[0].node]
        self._change([(place, self._nodes[place], self._latest(self.on_node(place)))])

    def _latest(self, holdings: Iterable[Holding]) -> float:
        """When the last of them has ended at the latest."""
        if self._queued:
            return max(map(self.lasts, holdings), default=0.0)
        return max((one.until for one in holdings), default=0.0)

    def lose(self, name: str) -> None:
        """Let nothing start on a node any more."""
        place = self._places[name]
        node = self._nodes[place]
        if not node.lost:
            self.lost_nodes |= 1 << place
            self.free_cores -= len(node.cores)
            self._change([(place, node.with_lost(), self._until[place])])

    def _change(self, changed: Iterable[tuple[int, NodeFree, float]]) -> None:
        """Put nodes at their places, with the time at which each is free at the latest."""
        nodes = self._nodes.mutate()
        # bits are gathered by what becomes of them: a set of thousands is not rewritten for each
        alike: dict[tuple[int, int, float, float, bool], int] = {}
        free = given_back = touched = 0
        for place, node, until in changed:
            old, before, bit = nodes[place], self._until[place], 1 << place
            nodes[place], self._until[place] = node, until
            touched |= bit
            steps = before // _STEP, until // _STEP
            what = len(old.cores), len(node.cores), *steps, node.lost
            alike[what] = alike.get(what, 0) | bit
            if node.holders < old.holders:
                given_back |= bit
            if node.is_free:
                free |= bit
        self._nodes = nodes.finish()
        self._soonest.forget(touched)
        for (cores_before, cores, step_before, step, lost), places in alike.items():
            _move(self._buckets, cores_before, cores, places)
            _move(self._releases, step_before, step, places)
            self.free_nodes &= ~places
            if not lost:
                self.free_cores += (cores - cores_before) * places.bit_count()
        self.free_nodes |= free
        if given_back:
            for wanted, places in self._unfit.items():
                self._unfit[wanted] = places & ~given_back


def _move(sets: dict[float, int], before: float, after: float, places: int) -> None:
    """Move places from one to another of several disjoint bit sets; empty ones vanish."""
    if before == after:
        return
    left = sets.get(before, 0) & ~places
    if left:
        sets[before] = left
    else:
        sets.pop(before, None)
    sets[after] = sets.get(after, 0) | places
