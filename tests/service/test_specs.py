"""Each task has a directory of its own, whatever its id."""

from __future__ import annotations

from pathlib import Path

from balsam_celery.service.specs import task_dir
from balsam_celery.store.engine import Store
from tests.store.making import add, program, task


def test_tasks_of_one_name_do_not_share_a_directory(store: Store) -> None:
    """Ids that users choose begin alike, differ in what no path may hold, or are long."""
    ids = [
        "scan-2026-run-0001",
        "scan-2026-run-0002",
        "a/b",
        "a-b",
        "a b",
        *("x" * 80 + c for c in "yz"),
    ]
    rows = [add(store, program(id, name="relax")) or task(store, id) for id in ids]
    found = {task_dir(Path("run"), row) for row in rows}
    assert len(found) == len(ids)
    assert all(len(one.name) < 160 and one.parent == Path("run/work/default") for one in found)
    assert Path("run/work/default/relax.scan-2026-run-0001") in found


def test_a_random_id_is_shortened(store: Store) -> None:
    id = "0f8fad5b-d9cb-469f-a165-70867728950e"
    add(store, program(id, name="relax"))
    assert task_dir(Path("run"), task(store, id)).name == "relax.0f8fad5b-d9c"
