"""Celery calls on a live site: what each returns, and that every program is a row at once."""

from __future__ import annotations

from tests.acceptance.live import LiveSite
from tests.conftest import ROOT

HEAD = """
import json
from celery import chain, chord, group
from celery.result import AsyncResult
from balsam_celery import TaskFailed, app, program, submit_many, tasks, wait
from pathlib import Path
from tests.waiting import wait_until
import user_tasks
echo = program("echo", ["echo", "{0}"], wall_time="1m")
tail = program("tail", ["echo", "{0[output_tail]}!"], wall_time="1m")
count = program("count", ["/bin/sh", "-c", 'python3 -c "import json,os;'
    'print(len(json.load(open(os.environ[chr(66)+\\'ALSAM_INPUTS\\']))[chr(97)+\\'rgs\\'][0]))"'])
bad = program("bad", ["/bin/sh", "-c", "echo oops >&2; exit 3"], wall_time="1m")
def out(value): print(json.dumps(value))
"""


def run(live: LiveSite, code: str) -> object:
    """Run a client program whose modules lie in the site directory."""
    path = f"import sys; sys.path[:0] = [{str(live.site.directory)!r}, {str(ROOT)!r}]\n"
    return live.python(path + HEAD + code)


def test_delay_and_get(live: LiveSite) -> None:
    got = run(live, "out(echo.delay('a b;$(x) {} \\n\"').get(timeout=90))")
    assert isinstance(got, dict)
    assert got["output_tail"] == 'a b;$(x) {} \n"\n'
    assert got["state"] == "JOB_FINISHED"
    assert got["exit_code"] == 0
    assert got["seconds"] >= 0


def test_chain_of_programs(live: LiveSite) -> None:
    code = """
r = chain(echo.s("one"), tail.s(), tail.s()).apply_async()
ids = (r.id, r.parent.id, r.parent.parent.id)
rows = [t.state for t in tasks.filter(workflow="") if t.id in ids]
out([len(rows), r.get(timeout=90)["output_tail"], r.parent.get(timeout=5)["output_tail"]])
"""
    assert run(live, code) == [3, "one\n!\n!\n", "one\n!\n"]


def test_chord_with_a_program_as_body(live: LiveSite) -> None:
    code = """
r = chord([echo.s(n) for n in range(5)], count.s()).apply_async()
out(r.get(timeout=90)["output_tail"])
"""
    assert run(live, code) == "5\n"


def test_chord_with_an_ordinary_task_as_body(live: LiveSite) -> None:
    code = "out(chord([echo.s(n) for n in range(5)], user_tasks.total.s())().get(timeout=90))"
    assert run(live, code) == 10


def test_ordinary_tasks_between_programs(live: LiveSite) -> None:
    code = """
r = chain(echo.s(4), user_tasks.double.s(), echo.s()).apply_async()
out(r.get(timeout=90)["output_tail"])
"""
    assert run(live, code) == "8\n"


def test_ordinary_canvas_stays_celerys(live: LiveSite) -> None:
    code = """
header = [user_tasks.double.s(n) for n in (1, 2)]
out(chord(header, user_tasks.double.si(21))().get(timeout=60))
"""
    assert run(live, code) == 42


def test_group_and_retries(live: LiveSite) -> None:
    code = """
second = ["/bin/sh", "-c", "test $BALSAM_ATTEMPT = 2 && echo {0}"]
flaky = program("flaky", second, max_retries=1, retry_delay=0)
g = group(flaky.s(n) for n in range(3)).apply_async()
out([r["output_tail"].strip() for r in g.get(timeout=120)])
"""
    assert run(live, code) == ["0", "1", "2"]


def test_failure_carries_the_outcome(live: LiveSite) -> None:
    code = """
r = bad.delay()
try:
    r.get(timeout=90)
except TaskFailed as error:
    outcome = error.outcome
    out([r.state, outcome["exit_code"], outcome["error_tail"], outcome["task_id"] == r.id])
"""
    assert run(live, code) == ["FAILURE", 3, "oops\n", True]


def test_failure_in_a_chain_ends_what_follows(live: LiveSite) -> None:
    code = """
r = chain(bad.s(), tail.s()).apply_async()
wait([r, r.parent], timeout=90)
child = tasks.get(r.id)
out([child.state, child.reason.startswith("parent bad"), r.state])
"""
    assert run(live, code) == ["FAILED", True, "FAILURE"]


def test_link_and_link_error(live: LiveSite) -> None:
    path = live.site.directory / "links"
    code = f"""
ok = echo.apply_async(("x",), link=user_tasks.note.s(path={str(path)!r}))
no = bad.apply_async(link_error=echo.si('told'), link=tail.s())
no2 = bad.apply_async(link_error=echo.s())
wait([ok, no, no2], timeout=90)
def told():
    return [t for t in tasks.filter(name="echo") if t.arguments["args"][:1] == [no2.id]]
note = Path({str(path)!r})
wait_until(lambda: note.exists() and note.read_text() and told(), 60)
out([note.read_text(), len(told())])
"""
    assert run(live, code) == ["1\n", 1]


def test_countdown(live: LiveSite) -> None:
    code = """
r = echo.apply_async(("late",), countdown=3)
got = r.get(timeout=90)
out(got["started"] - got["created"] >= 3)
"""
    assert run(live, code) is True


def test_revoke_from_a_result(live: LiveSite) -> None:
    code = """
nap = program("nap", ["sleep", "600"], wall_time="20m")
r = nap.delay()
wait_until(lambda: tasks.get(r.id).state == "RUNNING", 60)
state = r.state
r.revoke(terminate=True)
wait([r], timeout=60)
out([state, tasks.get(r.id).state, r.state])
"""
    assert run(live, code) == ["STARTED", "USER_KILLED", "REVOKED"]


def test_a_task_of_the_tasks_worker_creates_programs(live: LiveSite) -> None:
    """Tasks decided while others run: a program's result decides how many follow."""
    code = """
got = chain(echo.s(3), user_tasks.double.s()).apply_async().get(timeout=90)
results = submit_many(echo.s(n) for n in range(got))
progress = wait(results, timeout=90)
out([progress.finished, progress.total])
"""
    assert run(live, code) == [6, 6]
