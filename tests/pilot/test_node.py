"""Which node a keeper's start finds itself on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from balsam_celery.pilot.link import Invitation
from balsam_celery.pilot.node import SLURM_NODE, START_ERROR, known_name, node_name
from balsam_celery.resources import NodeCapacity
from tests.pilot.service import make_site
from tests.redis_server import RedisServer


@pytest.mark.parametrize(
    ("names", "environ", "host", "known"),
    [
        (["a1", "a2"], {}, "a2", "a2"),
        (["a1.x", "a2.x"], {}, "a2", "a2.x"),
        (["a1", "a2"], {}, "a2.x", "a2"),
        (["a1", "a2"], {SLURM_NODE: "a2"}, "machine", "a2"),
        (["a1", "a2"], {SLURM_NODE: "a1"}, "a2", "a2"),
        (["a1", "a2"], {SLURM_NODE: "b1"}, "machine", None),
    ],
)
def test_names(names: list[str], environ: dict[str, str], host: str, known: str | None) -> None:
    assert known_name(names, environ, host) == known
    assert node_name(names, 0, environ, host) == (known or names[0])


def test_a_node_that_is_started_on_another_one(tmp_path: Path, redis_server: RedisServer) -> None:
    """It is refused, in one line; nobody else is stopped by that."""
    site = make_site(tmp_path / "site", redis_server)
    nodes = (NodeCapacity("n1", (0,)), NodeCapacity("n2", (0,)))
    Invitation("p", "a", time.time() + 60, nodes, (("127.0.0.1", 9),), "0" * 64).write(tmp_path)
    options = ["--site", str(site.directory), "--directory", str(tmp_path), "--within", "20"]
    done = subprocess.run(
        [sys.executable, "-m", "balsam_celery.pilot.node", *options, "--node", "n1"],
        env={**os.environ, SLURM_NODE: "n2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    host = os.uname().nodename
    assert done.stderr == f"pilot: node n1 was to be started, and this is n2 (host {host})\n"
    assert not (tmp_path / START_ERROR).exists()
