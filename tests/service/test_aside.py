"""Nodes that fail what they are given: nothing starts there, and the tasks run elsewhere."""

from __future__ import annotations

from balsam_celery.ledger import Ledger
from balsam_celery.service import place
from balsam_celery.service.aside import Watch, put_aside
from balsam_celery.service.backoff import pauses
from balsam_celery.service.cases import Batch
from balsam_celery.service.record import Recorded
from balsam_celery.states import State
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState, PilotRow, PilotState
from balsam_celery.suspects import Rule
from balsam_celery.wire import Ended
from tests.service.acting import LIMITS, add_pilot, ended, start, tell
from tests.store.making import add, history, program, task

S = State
RULE = Rule(tasks=3, within=10, starts=2, chance=0.05)


def ledger_of(store: Store) -> Ledger:
    with store.read() as conn:
        return place.rebuild(conn, LIMITS, lock=False)


def notice(store: Store, watch: Watch, recorded: Recorded) -> list[str]:
    """What the engine does of it; returns the nodes put aside."""
    found = watch.note(recorded.ends, ledger_of(store), store.clock())
    for pilot, one in found:
        store.run(lambda conn: put_aside(Batch(conn, store.clock(), "test"), pilot, one))  # noqa: B023
    return [one.node for _, one in found]


def pilot(store: Store) -> PilotRow:
    with store.read() as conn:
        return allocations.get_pilot(conn, "pilot1")


def place_all(store: Store, *ids: str, **values: int) -> dict[str, str]:
    """Put tasks on the two nodes; returns the node of each."""
    add_pilot(store, cores=(4, 4))
    add(store, *(program(id, **values) for id in ids))
    return {sent.spec.id: sent.spec.shares[0].node for sent in start(store)}


def test_tasks_run_elsewhere(store: Store) -> None:
    ids = [f"t{n:05}" for n in range(8)]
    nodes = place_all(store, *ids)
    broken = nodes[ids[0]]
    [*there] = (id for id in ids if nodes[id] == broken)
    [*elsewhere] = (id for id in ids if nodes[id] != broken)
    watch = Watch(RULE)
    # what is known of elsewhere comes late, or early
    assert notice(store, watch, tell(store, ended(elsewhere[0]))) == []
    assert notice(store, watch, tell(store, *(ended(id, code=1) for id in there[:2]))) == []
    assert task(store, there[0]).state is S.FAILED
    # the third settles it, and a fourth that was there is not to blame either
    assert notice(store, watch, tell(store, ended(there[2], code=1))) == [broken]
    assert notice(store, watch, tell(store, ended(there[3], code=1))) == [broken]
    for id in there:
        row = task(store, id)
        assert (row.state, row.failures) == (S.RESTART_READY, 0)
        assert history(store, id)[-2:] == ["FAILED", "RESTART_READY"]
    [lost] = [node for node in pilot(store).nodes if node["lost"]]
    assert lost["name"] == broken
    assert lost["lost_reason"].startswith("put aside: 3 different tasks in a row failed there")
    again = start(store)
    assert {sent.spec.id for sent in again} >= {there[0]}
    assert {sent.spec.shares[0].node for sent in again} == {nodes[elsewhere[0]]}
    # who fails there too has failed by itself
    recorded = tell(store, ended(there[0], code=1, attempt=2))
    assert notice(store, watch, recorded) == []
    assert task(store, there[0]).state is S.FAILED


def test_that_others_run_well_may_be_known_late(store: Store) -> None:
    """In another pilot too; until then the node eats what it gets, and all of that comes back."""
    add_pilot(store, cores=(4,))
    add_pilot(store, cores=(4,), id="pilot2")
    ids = [f"t{n:05}" for n in range(8)]
    add(store, *(program(id) for id in ids))
    pilots = {sent.spec.id: sent.pilot for sent in start(store)}
    there = [id for id in ids if pilots[id] == "pilot1"]
    elsewhere = [id for id in ids if pilots[id] == "pilot2"]
    watch = Watch(RULE)
    assert notice(store, watch, tell(store, *(ended(id, code=1) for id in there))) == []
    assert notice(store, watch, tell(store, ended(elsewhere[0]))) == ["n0"]
    assert {task(store, id).state for id in there} == {S.RESTART_READY}
    # it was the only node of its pilot
    assert pilot(store).state is PilotState.DRAINING


def test_who_fails_elsewhere_too_is_not_given_back(store: Store) -> None:
    """Also where its last failure is on a node that is aside by then."""
    add_pilot(store, cores=(1, 1))
    ledger, watch = ledger_of(store), Watch(RULE)

    def note(node: str, id: str, code: int) -> list[str]:
        found = watch.note([("pilot1", node, ended(id, code=code))], ledger, store.clock())
        return [task for _, one in found for task in one.tasks]

    assert note("n1", "well", 0) == note("n0", "a", 1) == note("n0", "b", 1) == []
    assert note("n0", "c", 1) == ["a", "b", "c"]
    assert note("n1", "own", 1) == note("n0", "own", 1) == []
    assert note("n0", "d", 1) == ["d"]


def test_a_retry_that_waits_is_not_counted(store: Store) -> None:
    ids = [f"t{n:05}" for n in range(8)]
    nodes = place_all(store, *ids, max_retries=1)
    broken = nodes[ids[0]]
    there = [id for id in ids if nodes[id] == broken][:3]
    [other, *_] = (id for id in ids if nodes[id] != broken)
    watch = Watch(RULE)
    recorded = tell(store, ended(other), *(ended(id, code=1) for id in there))
    assert task(store, there[0]).not_before > store.clock()
    assert notice(store, watch, recorded) == [broken]
    for id in there:
        row = task(store, id)
        assert (row.state, row.failures, row.not_before) == (S.RESTART_READY, 0, 0.0)


def test_a_node_that_can_start_nothing_does_not_eat_the_backlog(store: Store) -> None:
    """It is no failure of the tasks; where no node is left the pilot ends, and its queue pauses."""
    ids = [f"t{n:05}" for n in range(8)]
    nodes = place_all(store, *ids)
    watch = Watch(RULE)

    def unfit(id: str) -> Ended:
        return ended(id, "unfit", started=None, reason="cannot start: No space left on device: /x")

    aside = notice(store, watch, tell(store, *(unfit(id) for id in ids)))
    assert aside == sorted(set(nodes.values()))
    for id in ids:
        row = task(store, id)
        assert (row.state, row.failures) == (S.RESTART_READY, 0)
        assert row.not_before > store.clock()
    row = pilot(store)
    assert row.state is PilotState.DRAINING
    assert row.reason == (
        "none of its nodes can be used: 2 starts in a row were impossible there; the last: cannot"
        " start: No space left on device: /x"
    )

    def over(conn: object) -> None:
        allocations.update_allocation(
            conn,  # type: ignore[arg-type]
            "a-pilot1",
            (AllocationState.QUEUED,),
            state=AllocationState.ENDED,
            ended=store.clock(),
        )

    store.run(over)
    with store.read() as conn:
        found = pauses(conn, "q", store.clock())
    assert found is not None
    assert found.failures == 1
    assert "No space left" in found.reason
