"""The fence between incarnations of a pilot, on a file system that answers or hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from balsam_celery.pilot.fence import INCARNATION, Fence
from tests.waiting import wait_until


def test_one_look_says_what_is_there(
    tmp_path: Path, children: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    own = Fence(tmp_path, "mine", children.append)
    own.raise_up()
    assert not own.closed()
    os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOWAIT)
    assert not own.closed()
    newer = Fence(tmp_path, "older", children.append)
    wait_until(newer.closed, 10, "the file names another")
    nowhere = Fence(tmp_path / "nowhere", "mine", children.append)
    nowhere.closed()
    os.waitid(os.P_PID, children[2], os.WEXITED | os.WNOWAIT)
    assert not nowhere.closed()
    assert "cannot be read: No such file or directory" in caplog.text
    assert len(children) == 3


def test_a_file_system_that_hangs_holds_nobody_up(tmp_path: Path, children: list[int]) -> None:
    """One look waits, and there is no other meanwhile; its answer counts when it comes."""
    os.mkfifo(tmp_path / INCARNATION)
    fence = Fence(tmp_path, "mine", children.append)
    assert [fence.closed() for _ in range(5)] == [False] * 5
    assert len(children) == 1
    (tmp_path / INCARNATION).write_text("a newer one")
    wait_until(fence.closed, 10, "the answer counts")
