"""Planning runs without garbage collection, and leaves it as it was."""

from __future__ import annotations

import gc

import pytest

from balsam_celery.collection import uncollected


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_it_is_as_before_afterwards(before: bool, fails: bool) -> None:
    @uncollected
    def work(value: int) -> tuple[int, bool]:
        if fails:
            raise ValueError(value)
        return value, gc.isenabled()

    was = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        if fails:
            with pytest.raises(ValueError, match="7"):
                work(7)
        else:
            assert work(7) == (7, False)
        assert gc.isenabled() is before
    finally:
        (gc.enable if was else gc.disable)()
