"""The floors of DESIGN section 8: a module imports only from below its own floor or beside it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "balsam_celery"
FLOORS: dict[str, int] = {
    # 0: pure
    "errors": 0,
    "states": 0,
    "resources": 0,
    "durations": 0,
    "amounts": 0,
    "runtimes": 0,
    "retrying": 0,
    "suspects": 0,
    "collection": 0,
    "commands": 0,
    "placement": 0,
    "packing": 0,
    "keys": 0,
    "ledger": 0,
    "simulate": 0,
    "backfill": 0,
    "bitset": 0,
    "decisions": 0,
    "candidate": 0,
    "lookahead": 0,
    "nodefree": 0,
    "pilotfree": 0,
    "lanes": 0,
    "limits": 0,
    "plans": 0,
    "asking": 0,
    "draining": 0,
    "releasing": 0,
    "room": 0,
    "soonest": 0,
    "pouring": 0,
    "requesting": 0,
    "sizing": 0,
    "outer": 0,
    "cutoff": 0,
    "unfit": 0,
    "codec": 0,
    "wire": 0,
    # 1: one outside world each
    "settings": 1,
    "site": 1,
    "siteinit": 1,
    "sitefile": 1,
    "discovery": 1,
    "discovered": 1,
    "jobscript": 1,
    "celeryapp": 1,
    "channel": 1,
    "copies": 1,
    "copying": 1,
    "store": 1,
    "schedulers": 1,
    "launchers": 1,
    "brands": 1,
    "holders": 1,
    "private": 1,
    "procs": 1,
    "outbox": 1,
    "redisaddress": 1,
    "redisserver": 1,
    "tls": 1,
    # 2
    "service": 2,
    "pilot": 2,
    # 3
    "tasks": 3,
    "beat": 3,
    # 4: entry points
    "cli": 4,
    "supervisor": 4,
    "config": 4,
    "": 4,
}
#: Neighbours on one floor that must not know each other.
APART = {("service", "pilot"), ("pilot", "service"), ("pilot", "store")}
MODULES = sorted(ROOT.rglob("*.py"))


def part_of(module: str) -> str:
    """``balsam_celery.store.lease`` → ``store``."""
    return module.removeprefix("balsam_celery").removeprefix(".").partition(".")[0]


def imports_of(path: Path) -> set[str]:
    """Modules of this package that the file imports, type checking aside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "balsam_celery":
                found |= {f"balsam_celery.{alias.name}" for alias in node.names}
            elif (node.module or "").startswith("balsam_celery."):
                found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("balsam_celery")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    relative = path.relative_to(ROOT)
    own = relative.parts[0].removesuffix(".py")
    own = "" if own == "__init__" else own
    assert own in FLOORS, f"{relative}: give it a floor"
    for module in imports_of(path):
        other = part_of(module)
        assert other in FLOORS, f"{relative} imports {module}, which has no floor"
        assert FLOORS[other] <= FLOORS[own], f"{relative} imports {module} from a floor above"
        assert (own, other) not in APART, f"{relative} must not know {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("module", ["balsam_celery", "balsam_celery.pilot.startup"])
def test_loads_no_sql(module: str) -> None:
    """Compute nodes have no use for a database, and never open one (R2)."""
    code = (
        f"import sys, {module}; "
        "print([m for m in sys.modules if m in ('sqlalchemy', 'balsam_celery.store')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
