"""Look for known vulnerabilities in the pinned dependencies, and for what is not as pinned.

Exit status 1: a pinned version has a known vulnerability, or what is installed is not what
``constraints.txt`` pins. An advisory service that cannot be reached is said, and no failure: no
build may depend on it. pip-audit itself calls a package that the service does not know "not
vulnerable"; here such packages are counted as not audited.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
#: Of every environment, or ours.
UNPINNED = {"pip", "setuptools", "wheel", "balsam-celery"}
#: Seconds for an answer of the advisory service, and for all of them.
TIMEOUT, WITHIN = 15, 300


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """Versions by name."""
    lines = (line.partition("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonical(name): version for name, version in pairs}


def unlike(pins: dict[str, str]) -> list[str]:
    """A line for each installed package that is not as pinned."""
    found = []
    for one in distributions():
        name = canonical(one.metadata["Name"])
        wanted = pins.get(name)
        if name not in UNPINNED and one.version != wanted:
            found.append(f"{name} {one.version} is installed, {wanted or 'no version'} is pinned")
    return sorted(found)


def advised() -> tuple[list[str], int, int, str]:
    """Lines on vulnerabilities, packages audited, packages not audited, and why not."""
    command = [
        sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps",
        "--disable-pip", "--format", "json", "--progress-spinner", "off",
        "--timeout", str(TIMEOUT),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN)
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return [], 0, len(pinned()), f"no answer within {WITHIN} s"
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return [], 0, len(pinned()), last
    found = [
        f"{one['name']} {one['version']}: {flaw['id']}: mended in"
        f" {', '.join(flaw['fix_versions']) or 'no version'}"
        for one in packages
        for flaw in one.get("vulns", ())
    ]
    skipped = [one["skip_reason"] for one in packages if "skip_reason" in one]
    return found, len(packages) - len(skipped), len(skipped), skipped[0] if skipped else ""


def main() -> int:
    """Print what was found; the exit status."""
    drift = unlike(pinned())
    found, audited, left_out, why = advised()
    for line in (*drift, *found):
        print(f"audit: {line}", file=sys.stderr)
    if left_out:
        print(f"audit: {left_out} packages were NOT audited: {why}", file=sys.stderr)
    print(f"audit: {audited} packages audited, {len(found)} known vulnerabilities")
    if drift:
        print("audit: run 'scripts/make-venv .venv', or 'make constraints'", file=sys.stderr)
    return 1 if drift or found else 0


if __name__ == "__main__":
    sys.exit(main())
