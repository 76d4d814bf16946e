"""Output files of an attempt on a file system that fails under them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from balsam_celery.pilot.output import Output


def test_tails(tmp_path: Path) -> None:
    output = Output(tmp_path)
    os.write(output.files[0], b"some words")
    assert output.close(5) == ("words", "")
    assert [path.name for path in tmp_path.iterdir()] == ["stdout"]


@pytest.mark.parametrize("call", ["fstat", "close"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_file_that_is_gone_costs_its_tail_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
    number: int,
) -> None:
    """A server of files that was away says so when a file is looked at, or closed."""
    output = Output(tmp_path)
    stdout, stderr = output.files
    os.write(stdout, b"out")
    os.write(stderr, b"err")
    real = getattr(os, call)
    failed: list[int] = []

    def fails(file: int) -> object:
        if file == stdout and not failed:  # later the number may be of another file
            failed.append(file)
            if call == "close":
                real(file)  # Linux closes it whatever it says
            raise OSError(number, os.strerror(number))
        return real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        tails = output.close(100)
    assert tails[1] == "err"
    assert f"{tmp_path}/stdout: {os.strerror(number)}" in caplog.text
    assert output.files == []
    for file in (stdout, stderr):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)


def test_files_are_closed_once(tmp_path: Path) -> None:
    """A second close would be of somebody else's descriptor."""
    output = Output(tmp_path)
    files = list(output.files)
    output.close(0)
    other = os.open(tmp_path, os.O_RDONLY)
    assert other in files
    assert output.close(0) == ("", "")
    os.close(other)
