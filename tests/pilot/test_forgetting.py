"""A Redis that comes back without what it had."""

from __future__ import annotations

from pathlib import Path

from balsam_celery.wire import Started
from tests.pilot.service import Service, make_site
from tests.redis_server import RedisServer
from tests.waiting import wait_until


def test_starts_are_told_again(tmp_path: Path) -> None:
    """Else a program that runs for hours would be taken for one that waits."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    service = Service(make_site(tmp_path / "site", server), server)
    try:
        pilot = service.start([2])
        over = pilot.spec("over", "/bin/sleep", "0.3", shares=(pilot.share("n0", 1),))
        pilot.run(pilot.spec("runs", "/bin/sleep", "100"), over)
        wait_until(lambda: len(service.all(Started)) == 2, 10, "both are told")
        service.ended("over")
        # as if the two had been lost on the way to the service
        service.records.clear()
        server.stop(kill=True)
        log = pilot.directory / "n0.log"
        wait_until(lambda: "Redis does not answer" in log.read_text(), 20, "it noticed")
        server.start()
        service.connect_again()
        [start] = wait_until(lambda: service.all(Started), 20, "the start comes again")
        assert (start.id, start.attempt) == ("runs", 1)
    finally:
        service.close()
        server.stop()
