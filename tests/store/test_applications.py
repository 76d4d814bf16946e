"""Applications and the site's facts."""

from __future__ import annotations

import pytest

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.store import applications, facts
from balsam_celery.store.engine import Store


def add(store: Store, name: str, *, replace: bool = False) -> None:
    with store.write() as conn:
        applications.add(
            conn,
            name=name,
            command=["x", "{0}"],
            defaults={"num_nodes": 2},
            replace=replace,
            now=1.0,
        )


def test_add_get_list_remove(store: Store) -> None:
    add(store, "relax")
    add(store, "collect")
    with store.write() as conn:
        row = applications.get(conn, "relax")
        assert (row.command, row.defaults, row.description) == (["x", "{0}"], {"num_nodes": 2}, "")
        assert [row.name for row in applications.list_all(conn)] == ["collect", "relax"]
        applications.remove(conn, "relax")
        with pytest.raises(NotFound, match="'balsam app ls'"):
            applications.get(conn, "relax")
        with pytest.raises(NotFound, match="did you mean 'collect'"):
            applications.remove(conn, "colect")


def test_existing_one_is_replaced_only_when_asked(store: Store) -> None:
    add(store, "relax")
    with pytest.raises(InvalidInput, match="exists"):
        add(store, "relax")
    add(store, "relax", replace=True)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\x00"])
def test_unusable_name(store: Store, name: str) -> None:
    with pytest.raises(InvalidInput):
        add(store, name)


def test_facts(store: Store) -> None:
    with store.write() as conn:
        assert facts.recall(conn, "host") is None
        facts.remember(conn, "host", "login1")
        facts.remember(conn, "host", "login2")
        assert facts.recall(conn, "host") == "login2"
