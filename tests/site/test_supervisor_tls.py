"""A whole site whose Redis is reached by TLS at an address of the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery.celeryapp import redis_client
from balsam_celery.errors import InvalidInput, SiteError
from balsam_celery.settings import LocalSettings
from balsam_celery.site import Site, find
from balsam_celery.siteinit import init
from balsam_celery.supervisor import down, status, up
from tests.flower import flower
from tests.site.tls_site import address, make_tls_site, need_tls
from tests.toml_keys import set_keys

CLIENT = """
import json
from celery import chord
from balsam_celery import program
from user_tasks import total
square = program("square", ["sh", "-c", "echo $(({n} * {n}))"])
print(json.dumps(chord([square.s(n=n) for n in range(1, 4)], total.s()).delay().get(timeout=90)))
"""
#: An ordinary Celery task of a user.
USER_MODULE = """
from celery import shared_task


@shared_task
def total(results):
    return sum(int(result["output_tail"]) for result in results)
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    need_tls()
    made = make_tls_site(tmp_path / "site", LocalSettings(nodes=2, cores_per_node=1))
    (made.directory / "user_tasks.py").write_text(USER_MODULE)
    made = set_keys(made, "tasks", imports='["user_tasks"]')
    try:
        yield made
    finally:
        down(find(made.directory))


def test_all_processes_and_pilots_reach_redis_by_tls(site: Site) -> None:
    said: list[str] = []
    up(site, said.append)
    assert f"certificates of Redis made in {site.directory}/tls" in said
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CLIENT], cwd=site.directory,
        env={**os.environ, "BALSAM_SITE": str(site.directory)},
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == 14
    with redis_client(site) as client:
        peers = {entry["laddr"] for entry in client.client_list()}
    # everyone is connected to the address of the network
    assert peers == {f"{address()}:{site.settings.redis.port}"}
    page = flower(site, "/broker")
    assert "<tr id=" in page
    assert "No queue data" not in page
    assert status(site).up
    # kombu's word for a server that anybody could be, and passwords
    for path in site.log_dir.iterdir():
        text = path.read_text(errors="replace")
        assert "insecure SSL" not in text, path
        assert site.secret("redis") not in text, path
    down(site)
    now = status(site)
    assert not any(process.up for process in now.processes)
    assert (now.allocations, now.pilots) == ((), ())
    # the certificates still serve
    said.clear()
    up(site, said.append)
    assert "redis answers" in said
    assert not [line for line in said if "certificates" in line]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"host": '"10.1.2.3"'}, r"\[redis\] '10\.1\.2\.3' leaves this machine in the clear: give"),
        ({"host": '"no-such-host.invalid"'}, "'no-such-host.invalid' is no address"),
        ({"interface": '"ib7"'}, "interface 'ib7' has no IPv4 address"),
    ],
)
def test_an_address_that_cannot_be_used(tmp_path: Path, keys: dict[str, str], message: str) -> None:
    site = set_keys(init(tmp_path / "site"), "redis", tls="false", **keys)
    with pytest.raises(SiteError, match=message):
        up(site)
    down(site)


def test_a_batch_job_needs_a_file_with_the_url(tmp_path: Path) -> None:
    site = set_keys(init(tmp_path / "site"), "redis", url_env='"MY_REDIS"')
    set_keys(site, "queues.local", cores_per_node="4")
    site = set_keys(site, "scheduler", kind='"slurm"')
    with pytest.raises(InvalidInput, match="'MY_REDIS', which no batch job is given"):
        up(site)
