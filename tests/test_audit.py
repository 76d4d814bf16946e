"""The audit of dependencies tells apart what is bad, good, and not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "audit.py"
GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([GOOD], 0, "1 packages audited, 0 known vulnerabilities"),
        ([GOOD, BAD], 1, "b 2: PYSEC-1: mended in 2.1"),
        ([GOOD, UNKNOWN], 0, "1 packages were NOT audited: not found on PyPI"),
        (None, 0, "packages were NOT audited: ConnectionError: no route"),
    ],
)
def test_verdict(tmp_path: Path, packages: list[Any] | None, status: int, said: str) -> None:
    """``pip_audit`` is a stand-in that prints what the real one does."""
    answer = json.dumps({"dependencies": packages, "fixes": []})
    code = f"print({answer!r})" if packages is not None else "raise ConnectionError('no route')"
    (tmp_path / "pip_audit.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CI": "true"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert said in done.stdout + done.stderr
    assert done.returncode == status, done.stderr


def test_what_is_installed_is_what_is_pinned(tmp_path: Path) -> None:
    (tmp_path / "pip_audit.py").write_text("print('{\"dependencies\": []}')")
    stray = tmp_path / "stray-1.0.dist-info"
    stray.mkdir()
    (stray / "METADATA").write_text("Metadata-Version: 2.1\nName: stray\nVersion: 1.0\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "stray 1.0 is installed, no version is pinned" in done.stderr
