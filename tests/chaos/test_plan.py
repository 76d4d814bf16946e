"""The plan: repeatable, complete, overlapping as often as asked."""

from __future__ import annotations

from itertools import islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.plan import KINDS, MOMENT, each_once, faults, possible

SEEDS = st.integers(0, 2**32)


@given(SEEDS)
def test_the_same_seed_gives_the_same_faults(seed: int) -> None:
    first = list(islice(faults(seed, KINDS, share=0.2), 50))
    assert first == list(islice(faults(seed, KINDS, share=0.2), 50))
    assert first != list(islice(faults(seed + 1, KINDS, share=0.2), 50))


@given(SEEDS, st.floats(0, 1))
def test_a_fault_that_overlaps_begins_while_the_one_before_lasts(seed: int, share: float) -> None:
    drawn = list(islice(faults(seed, KINDS, share=share), 60))
    assert not drawn[0].overlaps
    assert not any(fault.overlaps and fault.soon for fault in drawn)
    for before, fault in pairwise(drawn):
        if fault.overlaps:
            assert fault.wait <= max(MOMENT, before.duration)
    assert not any(fault.soon for fault in islice(faults(seed, KINDS, share=share, soon=0.0), 60))
    kinds = {kind.name: kind for kind in KINDS}
    assert all(kinds[f.kind].least <= f.duration <= kinds[f.kind].most for f in drawn)


@given(SEEDS)
def test_the_stated_share_overlaps(seed: int) -> None:
    drawn = list(islice(faults(seed, KINDS, share=0.2), 2000))
    assert 0.15 < sum(fault.overlaps for fault in drawn) / len(drawn) < 0.25
    assert {fault.kind for fault in drawn} == {kind.name for kind in KINDS}


@given(SEEDS)
def test_each_once(seed: int) -> None:
    drawn = each_once(seed, KINDS, share=0.5, longest=9.0)
    assert sorted(fault.kind for fault in drawn) == sorted(kind.name for kind in KINDS)
    assert all(fault.duration <= 9.0 for fault in drawn)


def test_a_kind_needs_what_it_breaks() -> None:
    local = {kind.name for kind in possible(KINDS, [])}
    assert "kill:service" in local
    assert not local & {"kill:postgres", "kill:slurmctld", "cut:network"}
    assert "kill:slurmd" in {kind.name for kind in possible(KINDS, ["slurm"])}
