"""Effects: due in order, put off, dropped when done."""

from __future__ import annotations

from balsam_celery.store import effects
from balsam_celery.store.effects import NewEffect
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import EffectKind


def add(store: Store, *rows: NewEffect) -> list[int]:
    with store.write() as conn:
        effects.add(conn, rows, now=1000.0)
        return [row.id for row in effects.due(conn, 1e12, 100)][-len(rows) :]


def due(store: Store, now: float = 1000.0) -> list[tuple[str, str]]:
    with store.read() as conn:
        return [(row.task, row.kind.value) for row in effects.due(conn, now, 100)]


def test_effects_are_due_in_order_until_done(store: Store) -> None:
    ids = add(
        store,
        NewEffect("task-1", EffectKind.RESULT, {"a": [1]}),
        NewEffect("task-2", EffectKind.SEND, {}),
    )
    assert due(store) == [("task-1", "result"), ("task-2", "send")]
    with store.read() as conn:
        assert effects.due(conn, 1000.0, 1)[0].payload == {"a": [1]}
        assert effects.count(conn) == 2
    with store.write() as conn:
        effects.done(conn, ids[:1])
        effects.done(conn, ids[:1])  # harmless
        effects.done(conn, [])
    assert due(store) == [("task-2", "send")]


def test_effect_not_yet_due(store: Store) -> None:
    add(store, NewEffect("task-1", EffectKind.SEND, {}, not_before=2000.0))
    assert due(store, 1999.9) == []
    assert due(store, 2000.0) == [("task-1", "send")]


def test_failed_effect_is_put_off_with_the_later_ones_of_its_task(store: Store) -> None:
    first, *_ = add(
        store,
        NewEffect("task-1", EffectKind.RESULT, {}),
        NewEffect("task-1", EffectKind.FORGET, {}),
        NewEffect("task-2", EffectKind.RESULT, {}),
    )
    with store.write() as conn:
        effects.failed(conn, first, 1010.0)
    assert due(store) == [("task-2", "result")]
    assert due(store, 1010.0) == [
        ("task-1", "result"),
        ("task-1", "forget"),
        ("task-2", "result"),
    ]
    with store.read() as conn:
        assert [row.tries for row in effects.due(conn, 1010.0, 10)] == [1, 0, 0]
