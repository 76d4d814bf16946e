"""The end of what several attempts have on one node."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from balsam_celery import brands, procs
from balsam_celery.pilot.process import end_processes
from tests.waiting import wait_until

#: Ends by itself once so many were told to end.
TOGETHER = """\
import pathlib, signal, sys, time
told = pathlib.Path(sys.argv[1])
def end(*_):
    with told.open("a") as file:
        file.write("told\\n")
    while told.read_text().count("told") < int(sys.argv[2]):
        time.sleep(0.02)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
with told.open("a") as file:
    file.write("ready\\n")
while True:
    time.sleep(1)
"""


def test_all_attempts_have_their_grace_at_once(tmp_path: Path) -> None:
    """One after the other, the end of a node that is cut off would have no bound."""
    told, names = tmp_path / "told", [f"t{number}/1" for number in range(3)]
    started = []
    for name in names:
        with brands.children_branded(attempt=name):
            argv = [sys.executable, "-S", "-c", TOGETHER, str(told), str(len(names))]
            started.append(subprocess.Popen(argv, env={}))
    reapers = [threading.Thread(target=one.wait) for one in started]
    try:
        wait_until(
            lambda: told.exists() and told.read_text().count("ready") == len(names),
            what="they run",
        )
        for reaper in reapers:
            reaper.start()
        end_processes((), tuple(names), 60.0)
        assert not any(procs.identity(one.pid) for one in started)
    finally:
        for one in started:
            one.kill()
            one.wait()
    assert [one.returncode for one in started] == [0] * len(names)
