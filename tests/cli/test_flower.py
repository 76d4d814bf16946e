"""Flower with the site's configuration: who gets in, and what the pages show."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import site as sites
from balsam_celery.private import write_private
from balsam_celery.site import Site, config_file
from balsam_celery.siteinit import init
from tests.redis_server import RedisServer
from tests.waiting import wait_until

CELERY = (sys.executable, "-m", "celery", "-A", "balsam_celery")
PAGES = ["/", "/workers", "/tasks", "/broker", "/workers?json=1", "/metrics"]
API = ["/api/workers?refresh=1&status=0", "/api/tasks", "/api/queues/length", "/api/task/types"]


class Flower:
    """A Flower, and a worker for it to show."""

    def __init__(self, site: Site, worker: str) -> None:
        self.site = site
        self.worker = worker
        self.password = site.secret("flower")

    def get(
        self, path: str, password: str | None = None, *, method: str = "GET", body: str = ""
    ) -> tuple[int, str]:
        """Status and text of a page."""
        settings = self.site.settings.flower
        request = urllib.request.Request(
            f"http://{settings.host}:{settings.port}{path}",
            method=method,
            data=body.encode() if method == "POST" else None,
        )
        if password is not None:
            token = base64.b64encode(f"balsam:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def is_up(self) -> bool:
        """It answers at all."""
        try:
            return self.get("/healthcheck")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def knows_worker(self) -> bool:
        """It has the worker's own word on its settings."""
        text = self.get("/api/workers?refresh=1", self.password)[1]
        return "conf" in json.loads(text or "{}").get(self.worker, {})


@pytest.fixture(scope="module")
def flower(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """A Flower and a worker on the tests' Redis."""
    directory = tmp_path_factory.mktemp("flower") / "site"
    made = init(directory)
    write_private(directory / "secrets" / "url", redis_server.url + "\n")
    file = directory / sites.SITE_FILE
    head, redis_table, rest = file.read_text().partition("[redis]")
    file.write_text(
        head + redis_table + rest.replace('url_file = ""', 'url_file = "secrets/url"', 1)
    )
    made = sites.find(directory)
    logs = tmp_path_factory.mktemp("logs")
    environment = {
        **os.environ,
        "BALSAM_SITE": str(directory),
        # neither may open what the configuration closes
        "FLOWER_UNAUTHENTICATED_API": "true",
        "FLOWER_ADDRESS": "0.0.0.0",  # noqa: S104
    }
    name = f"tasks@{made.settings.site.id}"
    commands = {
        "flower": (*CELERY, "flower", f"--conf={config_file('flowerconfig.py')}"),
        "worker": (*CELERY, "worker", "-n", name, "-P", "solo", "-Q", "tasks", "-E"),
    }
    processes = []
    for role, command in commands.items():
        with (logs / role).open("wb") as log:
            processes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=directory)
            )
    running = Flower(made, name)
    try:
        wait_until(running.is_up, 60, "Flower answers")
        wait_until(running.knows_worker, 60, "Flower sees the worker")
        yield running
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
    for role in commands:
        assert redis_server.password not in (logs / role).read_text()
        assert running.password not in (logs / role).read_text()


@pytest.mark.parametrize("path", [*PAGES, *API, "/worker/tasks@x", "/task/x", "/tasks/datatable"])
@pytest.mark.parametrize("password", [None, "", "wrong"])
def test_nobody_gets_in_without_the_password(
    flower: Flower, path: str, password: str | None
) -> None:
    status, text = flower.get(path, password)
    assert status == 401
    assert "tasks@" not in text


@pytest.mark.parametrize(
    "path",
    ["/api/task/revoke/x?terminate=true", "/api/task/send-task/x", "/api/worker/shutdown/tasks@x"],
)
def test_nobody_acts_without_the_password(flower: Flower, path: str) -> None:
    assert flower.get(path, "wrong", method="POST", body="{}")[0] == 401
    assert flower.get(path, method="POST", body="{}")[0] == 401


@pytest.mark.parametrize("path", [*PAGES, *API, "/worker/{worker}"])
def test_no_page_shows_a_secret(flower: Flower, redis_server: RedisServer, path: str) -> None:
    status, text = flower.get(path.format(worker=flower.worker), flower.password)
    assert status == 200
    assert text
    assert redis_server.password not in text
    assert flower.password not in text


def test_pages_show_what_they_are_for(flower: Flower) -> None:
    assert flower.worker in flower.get("/", flower.password)[1]
    tasks = flower.get("/tasks", flower.password)[1]
    heads = [re.sub(r"<.*?>", "", head).strip() for head in re.findall(r"<th.*?</th>", tasks, re.S)]
    assert heads[:4] == ["Name", "args", "State", "Worker"]
    assert "natural-time" in tasks
    # the worker's settings are shown, so the test above looked at something
    assert "broker_url" in flower.get(f"/worker/{flower.worker}", flower.password)[1]


def test_listens_on_the_loopback_alone(flower: Flower) -> None:
    port = flower.site.settings.flower.port
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = {
        line.split()[1] for line in lines if line.split()[3] == "0A"
        and line.split()[1].endswith(f":{port:04X}")
    }  # fmt: skip
    assert listening == {f"0100007F:{port:04X}"}
    wide = Path("/proc/net/tcp6")
    assert not wide.exists() or f":{port:04X} 0000" not in wide.read_text()


def test_keeps_no_pickle(flower: Flower) -> None:
    found = [path.name for path in flower.site.directory.rglob("*") if "flower" in path.name]
    assert found == ["flower"]  # the secret
