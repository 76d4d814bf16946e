"""What other users, and whoever looks at output of any kind, get to see of a site that is up."""

from __future__ import annotations

import base64
import http.client
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from balsam_celery import keys, procs
from balsam_celery.celeryapp import make_site_app, redis_client
from balsam_celery.private import write_private
from balsam_celery.supervisor import children
from tests.acceptance.live import LiveSite
from tests.security.conftest import NASTY
from tests.security.forged import celery_message, pickled
from tests.waiting import wait_until

WORKED = """
import json, os, sys
sys.path.append(os.environ["BALSAM_SITE"])
from balsam_celery import program
import user_tasks
show = [sys.executable, "-c",
        "import os, json; print(json.dumps(dict(os.environ)), flush=True)"]
one = program("one", show, preprocess=show, postprocess=show)
ranks = program("ranks", show, ranks_per_node=2, num_nodes=2)
results = [one.delay(), ranks.delay(), (one.s() | user_tasks.environ.s()).delay()]
found = [result.get(timeout=150, propagate=False) for result in results]
print(json.dumps({"ids": [result.id for result in results], "found": found}, default=str))
"""


@pytest.fixture(scope="module")
def worked(live: LiveSite) -> dict[str, object]:
    """The site has worked: programs, ranks over two nodes, hooks, a user's Celery task."""
    done = live.python(WORKED)
    assert isinstance(done, dict)
    return done


def places(live: LiveSite) -> Iterator[Path]:
    """Everything that the site has on disk."""
    for top in (live.site.directory, live.site.local_dir, live.site.run_dir):
        yield top
        yield from top.rglob("*")


def secrets_of(live: LiveSite) -> dict[str, str]:
    """By file; of keys their first line of base64, which is as telling."""
    found = {}
    for path in live.site.secrets_dir.iterdir():
        lines = [line for line in path.read_text().splitlines() if "-----" not in line]
        found[path.name] = lines[0]
    return found


def test_all_is_for_the_owner_alone(live: LiveSite, worked: dict[str, object]) -> None:
    seen = 0
    for path in places(live):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            continue
        wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
        found = stat.S_IMODE(status.st_mode)
        # programs may make executables of their own
        assert found & 0o077 == 0, f"{path} has mode {found:04o}, not {wanted:04o}"
        seen += 1
    assert seen > 60
    for needed in ("balsam.db", "redis.conf", "outbox", "job.sh", "stdout", "pilot.log"):
        assert any(needed in path.name for path in places(live)), needed


#: Run as another user: prints what that user got.
INTRUDER = """
import json, os, sys
paths, pids = json.load(sys.stdin)
got = []
for path in paths:
    try:
        got.append([path, os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(8)])
    except OSError:
        pass
for pid in pids:
    for leaf in ("environ", "maps", "fd", "cwd"):
        try:
            name = f"/proc/{pid}/{leaf}"
            got.append([name, os.listdir(name) if leaf == "fd" else
                        os.readlink(name) if leaf == "cwd" else open(name, "rb").read(8)])
        except OSError:
            pass
    try:
        os.kill(pid, 0)
        got.append(["signal", pid])
    except OSError:
        pass
print(json.dumps({"uid": os.geteuid(), "got": got}, default=repr))
"""


def test_another_user_gets_nothing(live: LiveSite, worked: dict[str, object]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can try as another user")
    marks = {children.mark(live.site, name) for name in (*children.NAMES, children.SUPERVISOR)}
    pids = list(procs.marked(marks))
    assert len(pids) >= 6
    paths = [str(path) for path in places(live)]
    # a Python that others can reach: the one of the tests may lie in a closed home
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", INTRUDER],
        input=json.dumps([paths, pids]), user=65534, group=65534, extra_groups=[], umask=0,
        cwd="/", capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told == {"uid": 65534, "got": []}
    # the same program gets all of it as the owner: it looked where something is
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", INTRUDER],
        input=json.dumps([paths, pids]), cwd="/", capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert len(json.loads(done.stdout)["got"]) > len(paths) / 2


def flower(live: LiveSite, path: str, password: str | None, method: str = "GET") -> tuple[int, str]:
    """Status and text of a page of Flower."""
    settings = live.site.settings.flower
    connection = http.client.HTTPConnection(settings.host, settings.port, timeout=30)
    headers = {}
    if password is not None:
        token = base64.b64encode(f"balsam:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("password", [None, "", "wrong"])
def test_flower_and_redis_refuse(live: LiveSite, password: str | None) -> None:
    for path in ("/", "/workers", "/tasks", "/broker", "/metrics", "/api/workers", "/api/tasks"):
        assert flower(live, path, password)[0] == 401, path
    for path in ("/api/worker/shutdown/x", "/api/task/revoke/x", "/api/task/send-task/balsam.pack"):
        assert flower(live, path, password, "POST")[0] == 401, path
    settings = live.site.settings.redis
    with (
        redis.Redis(settings.host, settings.port, password=password or None) as client,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        client.keys()


def test_no_secret_is_seen(live: LiveSite, worked: dict[str, object]) -> None:
    secrets = secrets_of(live)
    assert {"redis", "flower"} <= secrets.keys()
    seen: dict[str, str] = {"results": json.dumps(worked)}
    assert "BALSAM_TASK_ID" in seen["results"]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                seen[f"{entry}/cmdline"] = (entry / "cmdline").read_text(errors="replace")
            except OSError:
                continue
    marks = {children.mark(live.site, name) for name in (*children.NAMES, children.SUPERVISOR)}
    for pid in procs.marked(marks):
        seen[f"{pid} environ"] = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    private = (live.site.secrets_dir, live.site.local_dir / "redis" / "redis.conf")
    for path in places(live):
        if path.is_file() and not any(path.is_relative_to(one) for one in private):
            seen[str(path)] = path.read_text(errors="replace")
    for needed in ("job.sh", "stdout", "preprocess", "service.log", "tasks.log", "redis.log"):
        assert any(needed in name for name in seen), needed
    ids = worked["ids"]
    assert isinstance(ids, list)
    for command in (["show", ids[0]], ["show", ids[0], "--json"], ["status", "--json"]):
        seen[" ".join(command)] = live.balsam(*command)
    with make_site_app(live.site) as control:
        inspect = control.control.inspect(timeout=2)
        for what in ("conf", "stats", "report", "active"):
            seen[f"inspect {what}"] = json.dumps(getattr(inspect, what)())
    for path in ("/", "/workers?json=1", "/broker", "/tasks", "/api/workers?refresh=1"):
        seen[f"flower {path}"] = flower(live, path, secrets["flower"])[1]
    assert "broker_url" in seen["inspect conf"]
    assert len(seen) > 100
    for where, text in seen.items():
        for name, secret in secrets.items():
            assert secret not in text, f"the secret {name} is in {where}"


def test_a_nasty_name_is_read_by_no_shell(live: LiveSite, worked: dict[str, object]) -> None:
    """The site's own directory has it: in job scripts, launchers' commands, working directories."""
    assert live.site.directory.name == NASTY
    found = worked["found"]
    assert isinstance(found, list)
    assert [one["exit_code"] for one in found[:2]] == [0, 0]
    assert found[2]["BALSAM_SITE"].endswith(NASTY)
    assert not list(live.site.directory.parent.rglob("pwned"))


VALUES = (
    "a b", "'q\"", "new\nline", "; touch pwned", "$(touch pwned)", "`touch pwned`", "{0}", "{x}",
    "", "*", "ü☃", "%s", "\\", "-e", "--help", "~", "!!", "a=b", "| touch pwned", "\t\x1b[31m",
)  # fmt: skip

INJECTED = """
import json, sys
from balsam_celery import program
values = json.loads(sys.stdin.read())
show = [sys.executable, "-c",
        # in one write, as those of several ranks come into one pipe
        "import os, sys, json; os.write(1, (json.dumps([sys.argv[1:], dict(one for one in"
        " os.environ.items() if one[0][0] == 'V'), os.environ['BALSAM_TASK_NAME']])"
        " + os.linesep).encode())"]
hook = [sys.executable, "-c", "import sys; sys.exit(sys.argv[1:] != %r)" % values, *values]
environment = {f"V{number}": value for number, value in enumerate(values)}
extra = {"V;touch pwned": "1", "V$(touch pwned)": "1", "V x": "1"}
show += ["{%d}" % number for number in range(len(values))]
one = program("one", show, environment={**environment, **extra},
              preprocess=hook, postprocess=hook)
ranks = program("ranks", show, environment=environment, ranks_per_node=2, num_nodes=2)
name = "; touch pwned $(touch pwned) 'x"
results = [p.s(*values).set(name=name, workflow=name).apply_async() for p in (one, ranks)]
found = [result.get(timeout=150) for result in results]
print(json.dumps([one["output_tail"].splitlines() for one in found]))
"""


def test_values_reach_programs_as_they_are(live: LiveSite) -> None:
    """Arguments, variables, names: of a program, of ranks over nodes, of hooks."""
    done = subprocess.run(
        [sys.executable, "-c", INJECTED],
        env=live.environment, input=json.dumps(VALUES), capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone, ranks = json.loads(done.stdout.splitlines()[-1])
    assert (len(alone), len(ranks)) == (1, 4)
    wanted = {f"V{number}": value for number, value in enumerate(VALUES)}
    for line in (*alone, *ranks):
        arguments, variables, name = json.loads(line)
        assert arguments == list(VALUES)
        assert wanted.items() <= variables.items()
        assert name == "; touch pwned $(touch pwned) 'x"
    assert not list(live.site.directory.parent.rglob("pwned"))
    assert not Path("pwned").exists()


def test_variables_that_there_cannot_be(live: LiveSite) -> None:
    said = live.balsam("submit", "-e", "=1", "--", "true", status=2)
    assert len(said.strip().splitlines()) == 1
    code = (
        "import json\nfrom balsam_celery import program\nfrom balsam_celery.errors import"
        " InvalidInput\nsaid = []\nfor name, value in (('A', 'a\\0b'), ('A=B', '1'), ('', '')):\n"
        " try: program('x', ['true'], environment={name: value})\n"
        " except InvalidInput as error: said.append(str(error))\nprint(json.dumps(said))"
    )
    assert len(live.python(code)) == 3


def test_forged_messages_to_the_login_nodes_workers(live: LiveSite, tmp_path: Path) -> None:
    """A task with a hook, that stands behind all of them, goes on; the logs tell of them."""
    client = redis_client(live.site)
    prefix = live.site.settings.key_prefix
    orders: list[Any] = [3, None, [], {}, {"id": 3}, {"id": "x", "attempt": 1, "step": "rm"}]
    for queue in (keys.SERVICE_QUEUE, keys.TRANSITIONS_QUEUE, keys.TASKS_QUEUE):
        for task in (keys.TRANSITION, "balsam.poll", "user_tasks.environ", "os.system"):
            client.lpush(f"{prefix}{queue}", pickled(task, tmp_path / "opened"))
            bodies = [[[order], {}, {}] for order in orders]
            client.lpush(f"{prefix}{queue}", *(celery_message(task, body) for body in bodies))
    client.close()
    done = live.python(
        "import json\nfrom balsam_celery import program\n"
        "one = program('hooked', ['true'], preprocess=['true'])\n"
        "print(json.dumps(one.delay().get(timeout=150)['exit_code']))"
    )
    assert done == 0
    for log, said in (
        ("service", "x-python-serialize"), ("transitions", "x-python-serialize"),
        ("tasks", "x-python-serialize"), ("service", "unregistered task"),
        ("transitions", "unregistered task"), ("tasks", "unregistered task"),
        ("transitions", "KeyError"),
    ):  # fmt: skip
        path = live.site.log_dir / f"{log}.log"
        wait_until(lambda path=path, said=said: said in path.read_text(), 20, f"{said} in {path}")
    assert not (tmp_path / "opened").exists()


def test_a_wrong_password_of_redis(live: LiveSite) -> None:
    """Status says it in a line; what was submitted is not lost."""
    path = live.site.secrets_dir / "redis"
    before = path.read_text()
    write_private(path, "geheim\n")
    try:
        said = live.balsam("status", status=1)
        [line] = [line for line in said.splitlines() if line.split()[:1] == ["redis"]]
        assert "password" in line
        ids = live.submit("--", "true")
        said += live.balsam("ls")
    finally:
        write_private(path, before)
    assert "geheim" not in said
    live.wait_for(ids[0], "JOB_FINISHED")
    wait_until(lambda: live.json("status")["up"], 30, "all is well again")
