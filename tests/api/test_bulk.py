"""Many tasks at once: read, listed in pages, killed and tried again."""

from __future__ import annotations

import pytest

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.states import State
from balsam_celery.store import queries
from balsam_celery.tasks import query
from tests.api.conftest import Played

S = State


def test_reading_in_bulk(play: Played) -> None:
    p, q = play.program("p", ["p"], workflow="w", tags=["a", "b"]), play.program("q", ["q"])
    results = [p.s().set(name=f"p-{n}").delay() for n in range(3)] + [q.delay()]
    play.run(results[0].id)
    app = play.app
    assert [t.id for t in query.filter(workflow="w", app=app)] == [r.id for r in results[:3]]
    assert [t.name for t in query.filter(name="p-*", newest_first=True, limit=2, app=app)] == [
        "p-2", "p-1",
    ]  # fmt: skip
    assert [t.id for t in query.filter(state="job_finished", app=app)] == [results[0].id]
    assert len(list(query.filter(tags=["a", "b"], state=["PREPROCESSED"], app=app))) == 2
    assert query.count(app=app) == {S.JOB_FINISHED: 1, S.PREPROCESSED: 3}
    assert query.filter(workflow="w", app=app).count() == {S.JOB_FINISHED: 1, S.PREPROCESSED: 2}
    assert query.ids(application="q", app=app) == [results[3].id]
    (attempt,) = query.attempts(results[0].id, app=app)
    assert (attempt.number, attempt.exit_code) == (1, 0)
    assert query.events(results[0].id, app=app)[-1].to_state is S.JOB_FINISHED
    chained = (p.s() | q.s()).apply_async()
    assert [t.id for t in query.parents(chained.id, app=app)] == [chained.parent.id]
    assert [t.id for t in query.children(chained.parent.id, app=app)] == [chained.id]
    told = query.explain(chained.id, app=app)
    assert (told["code"], told["parents"][0]["id"]) == ("parents", chained.parent.id)
    assert "service is not up" in told["text"]
    for criteria in ({"state": "DONE"}, {"kind": "dog"}, {"limit": 0}, {"worflow": "w"}):
        with pytest.raises(InvalidInput, match=r"did you mean|give"):
            query.filter(app=app, **criteria)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        query.get("nothing-of-that-id", app=app)
    with pytest.raises(NotFound):
        query.explain("nothing-of-that-id", app=app)


def test_pages(play: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_PAGE", 3)
    p = play.program("p", ["p"])
    made = [p.delay().id for _ in range(7)]
    assert [t.id for t in query.filter(app=play.app)] == made
    assert [t.id for t in query.filter(app=play.app, newest_first=True)] == made[::-1]
    assert [t.id for t in query.filter(app=play.app, limit=4)] == made[:4]


def test_acting_in_bulk(play: Played) -> None:
    p = play.program("p", ["p"])
    last = (p.s() | p.s()).apply_async()
    answer = query.kill(last.parent, app=play.app)
    assert set(answer.done) == {last.parent.id, last.id}
    assert {row.state for row in play.rows()} == {S.USER_KILLED}
    assert query.retry([last.parent.id], app=play.app).done
    assert play.task(last.id).state is S.AWAITING_PARENTS
    with pytest.raises(InvalidInput):
        query.remove(last.parent.id, app=play.app)
    query.kill([last.parent], app=play.app)
    assert {gone.id for gone in query.remove([last, last.parent], app=play.app)} == {
        last.id, last.parent.id,
    }  # fmt: skip
    for nothing in ("nowhere", ["nowhere"], [3], 3):
        with pytest.raises(InvalidInput):
            query.kill(nothing, app=play.app)
    with play.store.read() as conn:
        assert queries.count_tasks(conn, queries.TaskFilter()) == {}
