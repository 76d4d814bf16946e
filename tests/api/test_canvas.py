"""Canvases into rows and edges: what each task gets, the result tree, callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.canvas import Signature, xmap
from celery.result import AsyncResult, GroupResult
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsam_celery import keys
from balsam_celery.celeryapp import redis_client
from balsam_celery.errors import InvalidInput
from balsam_celery.states import State
from balsam_celery.tasks.submit import submit_many
from tests.api.conftest import Played

S = State


@pytest.fixture
def eager() -> Iterator[Celery[Any]]:
    """A stock Celery application that runs everything at once, to compare with."""
    app: Celery[Any] = Celery("eager", set_as_current=False)
    app.conf.update(task_always_eager=True, task_store_eager_result=False)

    def p(*args: Any) -> list[Any]:
        return ["p", *args]

    app.task(name="p", shared=False)(p)
    yield app
    app.close()


def value_of(play: Played, result: Any) -> Any:
    """What a result would hold if each task returned its name and arguments."""
    if isinstance(result, GroupResult):
        return [value_of(play, member) for member in result.results]
    row = play.task(result.id)
    inputs = [value_of(play, play.app.AsyncResult(id)) for id in play.parents(row.id)]
    first = {"none": [], "single": inputs, "list": [inputs]}[row.inputs]
    args = [*first, *row.arguments["args"]]
    if row.application == "celery.accumulate":
        return args[row.arguments["kwargs"]["index"]]
    return ["p", *args]


leaf = st.builds(lambda n, immutable: ("p", n, immutable), st.integers(0, 9), st.booleans())
trees = st.recursive(
    leaf,
    lambda sub: st.one_of(
        st.tuples(st.just("chain"), st.lists(sub, min_size=1, max_size=3)),
        st.tuples(st.just("group"), st.lists(sub, min_size=1, max_size=3)),
        st.tuples(st.just("chord"), st.lists(sub, min_size=1, max_size=3), leaf),
    ),
    max_leaves=7,
)


def build(tree: Any, app: Celery[Any], task: Any) -> Any:
    """The canvas that a tree of tuples describes."""
    kind = tree[0]
    if kind == "p":
        return task.si(tree[1]) if tree[2] else task.s(tree[1])
    members = [build(member, app, task) for member in tree[1]]
    if kind == "chord":
        return chord(members, build(tree[2], app, task), app=app)
    if kind == "group":
        return group(members, app=app)
    return chain(members) if len(members) > 1 else members[0]


@settings(
    max_examples=300, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(tree=trees)
def test_values_flow_as_in_celery(play: Played, eager: Celery[Any], tree: Any) -> None:
    if tree[0] == "p":
        return
    expected = build(tree, eager, eager.tasks["p"]).apply_async().get()
    canvas = build(tree, play.app, play.program("p", ["p"]))
    assert value_of(play, canvas.apply_async()) == expected


def shape(result: Any) -> Any:
    """A result tree: (kind, members, parent)."""
    if result is None:
        return None
    if isinstance(result, GroupResult):
        return ("group", [shape(member) for member in result.results], shape(result.parent))
    return ("task", shape(result.parent))


CANVASES = {
    "chain": lambda t: chain(t.s(1), t.s(2), t.s(3)),
    "fan out": lambda t: chain(t.s(1), group(t.s(2), t.s(3))),
    "fan in": lambda t: chain(group(t.s(1), t.s(2)), t.s(3)),
    "diamond": lambda t: chain(t.s(1), group(t.s(2), t.s(3)), t.s(4), t.s(5)),
    "group": lambda t: group(t.s(1), chain(t.s(2), t.s(3))),
    "groups in groups": lambda t: group(t.s(1), group(t.s(2), t.s(3))),
    "chord": lambda t: chord([t.s(1), t.s(2)], t.s(3)),
    "chord with chains": lambda t: chord([chain(t.s(1), t.s(2)), t.s(3)], t.s(4)),
    "chord in chain": lambda t: chain(t.s(1), chord([t.s(2)], t.s(3)), t.s(4)),
    "two groups": lambda t: chain(group(t.s(1), t.s(2)), group(t.s(3), t.s(4))),
    "one in a group": lambda t: group([chain(t.s(1), group(t.s(2), t.s(3)))]),
}


@pytest.mark.parametrize("name", CANVASES)
def test_result_trees_as_in_celery(play: Played, name: str) -> None:
    """The same canvas of an ordinary task, sent by stock Celery, has the same tree."""
    stock = shape(CANVASES[name](play.app.tasks["user.add"]).apply_async())
    ours = CANVASES[name](play.program("p", ["p"])).apply_async()
    assert shape(ours) == stock


def test_the_middle_of_a_chords_body_stays_reachable(play: Played) -> None:
    """Celery puts the header behind the last task of a body that is a chain."""
    p = play.program("p", ["p"])
    result = chord([p.s(1)], chain(p.s(2), p.s(3))).apply_async()
    assert shape(result) == ("task", ("task", ("group", [("task", None)], None)))


def test_arguments_of_calls(play: Played) -> None:
    p = play.program("p", ["p"])
    assert value_of(play, chain(p.s(1), p.s(2)).apply_async((0,))) == ["p", ["p", 0, 1], 2]
    assert value_of(play, group(p.s(1), p.si(2))(0)) == [["p", 0, 1], ["p", 2]]
    assert value_of(play, chord([p.s(1), p.s(2)])(p.s(3))) == ["p", [["p", 1], ["p", 2]], 3]
    assert value_of(play, chord([p.s(1)], p.s(3)).apply_async((0,))) == ["p", [["p", 0, 1]], 3]
    assert value_of(play, chord([], p.s(3)).apply_async()) == ["p", [], 3]
    assert value_of(play, (p.s(1) | p.s(2)).delay()) == ["p", ["p", 1], 2]


def test_later_steps_wait_in_sql(play: Played) -> None:
    p = play.program("p", ["p", "{0[work_dir]}"])
    last = chain(play.program("q", ["q"]).s(), p.s(), p.s()).apply_async()
    first = last.parent.parent
    states = {row.id: row.state for row in play.rows()}
    assert [states[id] for id in (first.id, last.parent.id, last.id)] == [
        S.PREPROCESSED, S.AWAITING_PARENTS, S.AWAITING_PARENTS,
    ]  # fmt: skip
    play.run(first.id)
    row = play.task(last.parent.id)
    assert (row.state, row.argv) == (S.PREPROCESSED, ["p", f"/work/{first.id}/1"])


def test_failure_fails_what_follows(play: Played) -> None:
    p = play.program("p", ["p"])
    last = chord([p.s(1), p.s(2)], p.s().set(on_parent_failure="fail")).apply_async()
    ignoring = chord([p.s(1), p.s(2)], p.s().set(on_parent_failure="ignore")).apply_async()
    for result in (last, ignoring):
        play.run(result.parent[0].id, code=1)
        play.run(result.parent[1].id)
    assert play.task(last.id).state is S.FAILED
    assert play.task(ignoring.id).state is S.PREPROCESSED


def test_ids_given_beforehand(play: Played) -> None:
    p = play.program("p", ["p"])
    canvas = chain(p.s(1), group(p.s(2), p.s(3)), p.s(4))
    frozen = canvas.freeze()
    result = canvas.apply_async()
    assert result.id == frozen.id
    assert result.parent.id == frozen.parent.id
    assert [r.id for r in result.parent] == [r.id for r in frozen.parent]
    assert chain(p.s(1), p.s(2)).apply_async(task_id="the-last").id == "the-last"
    assert chord([p.s(1)], p.s(2)).apply_async(task_id="the-body").id == "the-body"
    assert group(p.s(1), p.s(2)).apply_async(task_id="the-group").id == "the-group"
    one = p.s(1)
    one.freeze()
    with pytest.raises(InvalidInput, match="two tasks"):
        group(one, one).apply_async()


def test_options_of_canvases(play: Played) -> None:
    p = play.program("p", ["p"])
    result = chain(p.s(1), p.s(2)).apply_async(workflow="w", tags=["t"], num_nodes=2, countdown=60)
    first, second = play.task(result.parent.id), play.task(result.id)
    assert (first.workflow, second.workflow) == ("w", "w")
    assert (first.tags, second.tags) == (("t",), ("t",))
    # as in Celery, other options of a chain are those of its first task
    assert (first.num_nodes, second.num_nodes) == (2, 1)
    assert (first.not_before > 0, second.not_before) == (True, 0.0)
    members = group(p.s(1), p.s(2)).apply_async(num_nodes=2)
    assert [play.task(r.id).num_nodes for r in members] == [2, 2]
    body = chord([p.s(1)], p.s(2)).apply_async(countdown=60)
    assert play.task(body.parent[0].id).not_before > 0
    assert play.task(body.id).not_before == 0


def test_a_countdown_of_a_later_step_runs_from_its_parent(play: Played) -> None:
    p = play.program("p", ["p"])
    last = chain(p.s(1), p.s(2).set(countdown=500)).apply_async()
    assert play.task(last.id).not_before == 0
    before = play.store.clock()
    play.run(last.parent.id)
    assert play.task(last.id).not_before >= before + 500


def test_ordinary_tasks_in_a_canvas_are_rows(play: Played) -> None:
    p = play.program("p", ["p", "{0}"])
    add = play.app.tasks["user.add"]
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    last = chain(add.s(1, 2), p.s(), add.s(moment).set(time_limit=5)).apply_async()
    first, last_row = play.task(last.parent.parent.id), play.task(last.id)
    assert (first.kind, first.state, first.application) == ("celery", S.READY, "user.add")
    assert first.arguments == {"args": [1, 2], "kwargs": {}}
    assert last_row.celery["options"]["time_limit"] == 5
    assert last_row.arguments["args"][0]["__type__"] == "datetime"
    with pytest.raises(TypeError):
        chain(add.s(1, 2, 3), p.s()).apply_async()
    with pytest.raises(InvalidInput, match="JSON"):
        chain(add.s(object()), p.s()).apply_async()
    with pytest.raises(InvalidInput, match="JSON"):
        chain(add.s(float("nan")), p.s()).apply_async()
    with pytest.raises(InvalidInput, match="NUL"):
        chain(add.s("a\0b"), p.s()).apply_async()
    with pytest.raises(InvalidInput, match="cannot hold a program"):
        chain(xmap(p.s(), [1], app=play.app), p.s()).apply_async()
    for option, part in (
        ({"expires": "soon"}, "expires is 'soon': give seconds"),
        ({"expires": -1e12}, "expires is"),
        ({"expires": [1]}, "expires is"),
        ({"queue": "unacked"}, "queue is 'unacked', which is the site's"),
        ({"queue": "transitions"}, "queue is 'transitions'"),
        ({"queue": "pilot.p1.n0"}, "queue is"),
    ):
        with pytest.raises(InvalidInput, match=part):
            chain(add.s(1).set(**option), p.s()).apply_async()
    assert len(play.rows()) == 3
    given = {"expires": moment, "queue": "mine"}
    kept = chain(p.s(1), add.s(2).set(**given)).apply_async()
    assert play.task(kept.id).celery["options"]["queue"] == "mine"


def test_canvases_without_programs_stay_celerys(play: Played) -> None:
    add = play.app.tasks["user.add"]
    for canvas in (chain(add.s(1), add.s(2)), group(add.s(1)), chord([add.s(1)], add.s(2))):
        canvas.apply_async()
    add.apply_async((1,), link=add.s(2))
    assert play.rows() == []
    with redis_client(play.site) as client:
        assert client.llen(f"{play.site.settings.key_prefix}{keys.TASKS_QUEUE}") == 4


def test_links(play: Played) -> None:
    p, q = play.program("p", ["p"]), play.program("q", ["q"])
    add = play.app.tasks["user.add"]
    result = p.apply_async((1,), link=[q.s("l"), add.si(1)])
    linked = [row for row in play.rows() if row.id != result.id]
    kinds = [(row.application, row.inputs) for row in linked]
    assert kinds == [("q", "single"), ("user.add", "none")]
    assert all(play.parents(row.id) == [result.id] for row in linked)
    # an ordinary task that is linked to a program becomes a row with it
    result = add.apply_async((1,), link=q.s())
    assert play.task(result.id).kind == "celery"
    # a chain's link is its last task's, a chord's its body's
    for canvas in (chain(p.s(1), p.s(2)), chord([p.s(1)], p.s(2))):
        canvas.link(q.s("after"))
        result = canvas.apply_async()
        after = play.rows()[-1]
        assert play.parents(after.id) == [result.id]
    with pytest.raises(TypeError):
        group(add.s(1)).apply_async(link=add.s(1))
    with pytest.raises(InvalidInput, match="link"):
        group(p.s(1)).apply_async(link=q.s())


def test_errbacks(play: Played) -> None:
    p, q = play.program("p", ["p"]), play.program("q", ["q", "{0}", "{1}"])
    result = p.apply_async((1,), link_error=q.s("clean"))
    fine = p.apply_async((1,), link_error=q.s("never"))
    play.run(result.id, code=3)
    play.run(fine.id)
    play.perform()
    play.perform()
    (errback,) = [row for row in play.rows() if row.application == "q"]
    assert (errback.state, errback.argv) == (S.PREPROCESSED, ["q", result.id, "clean"])
    with pytest.raises(InvalidInput, match="no value"):
        p.apply_async((1,), link_error=q.si("alone"))
    field = play.program("field", ["q", "{0[work_dir]}"])
    with pytest.raises(InvalidInput, match="work_dir"):
        p.apply_async((1,), link_error=field.s())


def test_errback_of_a_task_that_never_ran(play: Played) -> None:
    """Celery calls none: it never sends the message that holds it."""
    p, q = play.program("p", ["p"]), play.program("q", ["q", "{0}"])
    result = chain(p.s(1), p.s(2).on_error(q.s())).apply_async()
    play.run(result.parent.id, code=1)
    play.perform()
    (errback,) = [row for row in play.rows() if row.application == "q"]
    assert errback.argv == ["q", result.id]


def test_errback_of_a_canvas_is_called_once(play: Played) -> None:
    p, q = play.program("p", ["p"]), play.program("q", ["q", "{0}"])
    canvas = chain(p.s(1), group(p.s(2), p.s(3)), p.s(4)).on_error(q.s())
    result = canvas.apply_async()
    play.run(result.parent.parent.id, code=1)
    assert {row.state for row in play.rows()} == {S.FAILED}
    play.perform()
    assert len([row for row in play.rows() if row.application == "q"]) == 1


def test_errbacks_of_ordinary_tasks(play: Played) -> None:
    def handler(request: Any, exc: Any, traceback: Any) -> None: ...

    def by_id(id: str) -> None: ...

    new = play.app.task(name="user.handler", shared=False)(handler)
    old = play.app.task(name="user.by_id", shared=False)(by_id)
    result = play.program("p", ["p"]).apply_async(link_error=[new.s(), old.s()])
    play.run(result.id, code=3)
    play.perform()
    rows = {row.application: row for row in play.rows() if row.kind == "celery"}
    assert rows["user.by_id"].arguments["args"] == [result.id]
    failure, errback = rows["balsam.errback"].arguments["args"]
    assert (failure["task_id"], failure["exit_code"]) == (result.id, 3)
    assert errback["task"] == "user.handler"


def test_what_is_refused(play: Played) -> None:
    p = play.program("p", ["p"])
    with pytest.raises(InvalidInput, match="no body"):
        chord([p.s(1)]).apply_async()
    with pytest.raises(InvalidInput, match="not declared"):
        chain(p.s(1), Signature("balsam.program.nowhere", app=play.app)).apply_async()
    with pytest.raises(InvalidInput, match="no body"):
        submit_many([p.s(1), chord([p.s(1)], app=play.app)])
    assert play.rows() == []


def test_signatures_cross_as_plain_dicts(play: Played) -> None:
    p = play.program("p", ["p"])
    plain = dict(chain(p.s(1), p.s(2)))
    result = play.app.signature(plain).apply_async()
    assert isinstance(result, AsyncResult)
    assert value_of(play, result) == ["p", ["p", 1], 2]


def test_generators(play: Played) -> None:
    p = play.program("p", ["p"])
    assert len(group(p.s(n) for n in range(20)).apply_async()) == 20
    body = chord((p.s(n) for n in range(20)), p.s()).apply_async()
    assert len(play.parents(body.id)) == 20


def test_replace_with_a_program_is_refused(play: Played) -> None:
    add = play.app.tasks["user.add"]
    add.push_request(id="x", called_directly=False)
    try:
        with pytest.raises(InvalidInput, match="cannot be replaced by a program"):
            add.replace(play.program("p", ["p"]).s())
    finally:
        add.pop_request()
