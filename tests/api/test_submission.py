"""Programs into rows: options, values, what is refused, and what Redis has to do with it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain
from celery.result import AsyncResult

from balsam_celery.errors import InvalidInput, SiteError
from balsam_celery.states import State
from balsam_celery.store import applications
from balsam_celery.tasks import submit as submit_module
from balsam_celery.tasks.program import program
from balsam_celery.tasks.submit import RedisDown, submit_many
from balsam_celery.wire import Wake
from tests.api.conftest import Played

RELAX = ["relax.x", "{input}"]


def test_delay_is_a_row(play: Played) -> None:
    relax = play.program(
        "relax", RELAX, ranks_per_node=4, wall_time="10m", max_retries=1, tags=["a"], workflow="w"
    )
    result = relax.delay(input="water.xyz")
    assert isinstance(result, AsyncResult)
    row = play.task(result.id)
    assert row.state is State.PREPROCESSED
    assert (row.kind, row.name, row.application) == ("program", "relax", "relax")
    assert row.argv == ["relax.x", "water.xyz"]
    assert (row.ranks_per_node, row.wall_time, row.max_retries) == (4, 600, 1)
    assert (row.tags, row.workflow) == (("a",), "w")
    assert play.inbox() == [Wake()]
    assert result.state == "PENDING"


def test_options_of_a_call(play: Played) -> None:
    relax = play.program("relax", RELAX, wall_time="10m", environment={"A": 1})
    wide = relax.s(input="ice").set(
        num_nodes=4, wall_time="50m", priority=7, name="ice", tags=["t"]
    )
    row = play.task(wide.delay().id)
    assert (row.num_nodes, row.wall_time, row.priority, row.name) == (4, 3000, 7, "ice")
    assert row.environment == {"A": "1"}
    row = play.task(
        relax.apply_async(kwargs={"input": "x"}, gpus_per_rank=0, task_id="my-own-id").id
    )
    assert (row.id, row.num_nodes, row.wall_time, row.name) == ("my-own-id", 1, 600, "relax")
    assert play.task(relax.si(input="y").delay().id).argv == ["relax.x", "y"]


def test_not_before(play: Played) -> None:
    relax = play.program("relax", RELAX)
    before = time.time()
    later = play.task(relax.s(input="x").apply_async(countdown=100).id)
    assert before + 100 <= later.not_before <= time.time() + 100
    moment = datetime.now(UTC) + timedelta(hours=1)
    for eta in (moment, moment.isoformat(), moment.replace(tzinfo=None)):
        row = play.task(relax.s(input="x").set(eta=eta).delay().id)
        assert row.not_before == pytest.approx(moment.timestamp())
    far = ({"countdown": seconds} for seconds in (math.inf, -math.inf, math.nan, 1.7e12))
    bad: dict[str, Any]
    for bad in ({"countdown": "soon"}, {"eta": "soon"}, {"eta": 5}, {"eta": "2999-01-01"}, *far):
        with pytest.raises(InvalidInput, match="is"):
            relax.s(input="x").apply_async(**bad)
        with pytest.raises(InvalidInput, match="is"):
            chain(relax.s(input="x"), relax.si(input="x").set(**bad)).apply_async()
    nested: Any = []
    for _ in range(150):
        nested = [nested]
    with pytest.raises(InvalidInput, match="nested too deep"):
        relax.s(input=nested).apply_async()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"num_nodes": 0}, "num_nodes is 0"),
        ({"num_nodes": -1}, "num_nodes is -1"),
        ({"num_nodes": 5}, "num_nodes is 5: no queue gives more than 4"),
        ({"ranks_per_node": 99}, "cores"),
        ({"gpus_per_rank": 1}, "GPU"),
        ({"memory_per_node": "much"}, "memory_per_node is 'much': give bytes"),
        ({"resources_per_node": ["licence"]}, "resources_per_node is .*: give a dict"),
        ({"resources_per_node": {"licence": 1}}, r"resources_per_node\.licence is 1: no node has"),
        ({"wall_time": 0}, "wall_time is 0"),
        ({"wall_time": "abc"}, "wall_time is 'abc'"),
        ({"wall_time": "100d"}, "wall_time is 100d: the longest"),
        ({"num_node": 1}, "did you mean 'num_nodes'"),
        ({"walltime": 1}, "did you mean 'wall_time'"),
        ({"queue": "fast"}, "no Celery queue"),
        ({"time_limit": 5}, "called wall_time"),
        ({"priority": "high"}, "priority is 'high'"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"retry_on": ["rain"]}, "retry_on holds 'rain'"),
        ({"retry_on": ["exit:9-3"]}, "retry_on holds 'exit:9-3'"),
        ({"retry_on": 3}, "retry_on is 3: give a list"),
        ({"retry_delay": "soon"}, "retry_delay is 'soon'"),
        ({"end_signal": "USR1"}, "end_signal is 'USR1': give checkpoint_grace too"),
        (
            {"checkpoint_grace": "11m"},
            r"is 11m: \[pilot\] max_checkpoint_grace in site.toml is 10m",
        ),
        ({"checkpoint_grace": 60, "wall_time": 60}, "give less than wall_time, which is 1m"),
        ({"end_signal": "KILL"}, "end_signal is 'KILL': give a signal that a program can catch"),
        ({"tags": "one"}, "tags is 'one'"),
        ({"environment": {"A=B": "1"}}, "without '='"),
        ({"environment": {"A": "x\0"}}, "NUL"),
        ({"on_parent_failure": "panic"}, "give 'fail' or 'ignore'"),
        ({"launcher": "lam"}, "launcher is 'lam'"),
        ({"name": "x" * 201}, "201 characters"),
        ({"data": {"a": float("nan")}}, "JSON"),
        ({"preprocess": "ls -l"}, "give a list"),
        ({"restartable": "yes"}, "True or False"),
    ],
)
def test_refused_options(play: Played, options: dict[str, Any], part: str) -> None:
    relax = play.program("relax", RELAX)
    with pytest.raises(InvalidInput, match=part) as caught:
        relax.s(input="x").set(**options).delay()
    assert "\n" not in str(caught.value)
    assert play.rows() == []


@pytest.mark.parametrize(
    ("args", "kwargs", "part"),
    [
        ((), {}, "give input="),
        ((), {"input": "a\0b"}, "NUL"),
        ((), {"input": "a", "inputt": "b"}, "no field 'inputt'"),
        ((), {"input": object()}, "of type object"),
        ((), {"input": float("inf")}, "JSON"),
        ((), {"input": {1: 2}}, "keys are text"),
    ],
)
def test_refused_values(play: Played, args: Any, kwargs: Any, part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        play.program("relax", RELAX).delay(*args, **kwargs)
    assert play.rows() == []


def test_refused_declarations(play: Played) -> None:
    for name, command, part in (
        ("", ["x"], "name"),
        ("x", "ls", "list"),
        ("x", [], "names no program"),
        ("x", ["x", "{}"], "placeholder"),
    ):
        with pytest.raises(InvalidInput, match=part):
            play.program(name, command)  # type: ignore[arg-type]
    relax = play.program("relax", RELAX)
    for wrong in (relax, relax.apply, relax.map, relax.starmap):
        with pytest.raises(InvalidInput, match=r"delay|group"):
            wrong([])
    with pytest.raises(InvalidInput, match="group"):
        relax.chunks([], 2)


def test_paths_and_tuples_are_values(play: Played) -> None:
    row = play.task(play.program("p", ["x", "{0}", "{1}"]).delay(Path("/a b"), (1, "z")).id)
    assert row.argv == ["x", "/a b", '[1, "z"]']


def test_a_command_that_the_site_keeps(play: Played) -> None:
    with play.store.write() as conn:
        applications.add(
            conn, name="kept", command=["kept.x", "{a}"],
            defaults={"num_nodes": 2, "wall_time": 60}, now=0.0,
        )  # fmt: skip
    row = play.task(play.program("kept", num_nodes=3).delay(a=1).id)
    assert (row.argv, row.num_nodes, row.wall_time) == (["kept.x", "1"], 3, 60)
    with pytest.raises(InvalidInput, match="kept"):
        play.program("kep").delay(a=1)


def test_many_in_one_transaction(play: Played) -> None:
    relax = play.program("relax", RELAX)
    results = submit_many(relax.s(input=str(number)) for number in range(5000))
    assert len({result.id for result in results}) == 5000
    with pytest.raises(InvalidInput, match="give input"):
        submit_many([relax.s(input="x"), relax.s()])
    with play.store.read() as conn:
        assert conn.exec_driver_sql("select count(*) from task").scalar() == 5000
    assert submit_many([]) == []


def test_an_id_is_used_once(play: Played) -> None:
    relax = play.program("relax", RELAX)
    relax.apply_async(kwargs={"input": "x"}, task_id="abcdef")
    with pytest.raises(InvalidInput, match="abcdef"):
        relax.apply_async(kwargs={"input": "x"}, task_id="abcdef")


def test_redis_down_is_told_once(deaf: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    submit_module._told.clear()
    relax = deaf.program("relax", RELAX)
    with pytest.warns(RedisDown, match="in the database"):
        result = relax.delay(input="x")
    assert deaf.task(result.id).state is State.PREPROCESSED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = (relax.s(input="y") | relax.si(input="z")).apply_async()
        assert [row.id for row in deaf.rows()] == [result.id, second.parent.id, second.id]
        # and the result answers from SQL
        assert result.state == "PENDING"
        deaf.run(result.id, out="fine\n")
        assert result.get(timeout=10)["output_tail"] == "fine\n"
    submit_module._told.clear()


def test_no_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are declared anywhere; a call says that there is no site."""
    code = (
        "import sys\n"
        "from balsam_celery import program, BalsamError\n"
        "p = program('p', ['x'])\n"
        "assert not any(m.split('.')[0] == 'sqlalchemy' for m in sys.modules)\n"
        "try: p.delay()\n"
        "except BalsamError as error: print(type(error).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "SiteError\n"


def test_an_application_of_others(play: Played) -> None:
    other = Celery("other", set_as_current=False)
    with pytest.raises(SiteError, match="belongs to no site"):
        program("p", ["x"], app=other).delay()
    other.close()


def test_public_names() -> None:
    code = (
        "import json, sys, balsam_celery\n"
        "before = any(m.split('.')[0] == 'sqlalchemy' for m in sys.modules)\n"
        "missing = [n for n in balsam_celery.__all__ if not hasattr(balsam_celery, n)]\n"
        "from balsam_celery import tasks\n"
        "missing += [n for n in tasks.__all__ if not hasattr(tasks, n)]\n"
        "print(json.dumps([before, missing]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, []]
