"""How tests are handed to processes."""

from __future__ import annotations

import pytest

from tests.conftest import APART, FIRST, ROOT, TOGETHER, unit_of


@pytest.mark.parametrize("place", [*APART, *TOGETHER, *FIRST])
def test_every_place_is_there(place: str) -> None:
    assert list(ROOT.glob(f"{place}*"))


def test_units() -> None:
    for apart in APART:
        assert unit_of(f"{apart}::test_a[one]") == f"{apart}::test_a[one]"
    postgres = "tests/acceptance/test_postgres.py"
    assert unit_of(f"{postgres}::test_a") == postgres
    assert unit_of("tests/acceptance/test_kill.py::test_a") == "tests/acceptance/"
    assert unit_of("tests/slurm/test_faults.py::test_a[one]") == "tests/slurm/test_faults.py"
