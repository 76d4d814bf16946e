"""Slurm's node lists, by hand, by property, and against Slurm itself."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsam_celery.schedulers.hostlist import expand, fold
from tests.slurm_cluster import SlurmCluster

#: Words whose meaning was taken from ``scontrol show hostnames`` of Slurm 22.05.
KNOWN = {
    "n[1-3,5]": "n1 n2 n3 n5",
    "n[01-10]": "n01 n02 n03 n04 n05 n06 n07 n08 n09 n10",
    "n[8-11]": "n8 n9 n10 n11",
    "n[9-010]": "n9 n10",
    "n[003,1]": "n003 n1",
    "a[1-2]b[3-4]": "a1b3 a1b4 a2b3 a2b4",
    "rack[0-1]node[08-10]": "rack0node08 rack0node09 rack0node10 "
    "rack1node08 rack1node09 rack1node10",
    "n1,n1": "n1 n1",
    "n[1,1]": "n1 n1",
    "dev-[1-2],dev-3x[0-1]": "dev-1 dev-2 dev-3x0 dev-3x1",
    "n1-2": "n1-2",
    " n1 , n2": "n1 n2",
    "": "",
}


@pytest.mark.parametrize("word", KNOWN)
def test_known_words(word: str) -> None:
    assert " ".join(expand(word)) == KNOWN[word]


def test_a_name_may_go_on_after_its_brackets() -> None:
    """Newer versions write so."""
    assert expand("n[1-2]-ib,x") == ("n1-ib", "n2-ib", "x")


@pytest.mark.parametrize(
    "word", ["n[3-1]", "n[1-2", "n1]", "n[]", "n[a]", "n[1-]", "n[[1]]", "n[1-2000000]", "n[٣]"]
)
def test_what_is_no_list_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is not a list of nodes"):
        expand(word)


def test_more_names_than_any_machine_has_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="it names 10000000000"):
        expand("a[1-100000]b[1-100000]")


PREFIXES = st.sampled_from(["n", "gpu-", "nid", "rack7node"])
NAMES = st.lists(st.tuples(PREFIXES, st.integers(1, 120), st.integers(1, 4)), max_size=40)


@given(NAMES)
def test_expanding_undoes_folding(names: list[tuple[str, int, int]]) -> None:
    plain = tuple(f"{prefix}{str(number).zfill(digits)}" for prefix, number, digits in names)
    assert expand(fold(plain)) == plain


def test_what_counts_up_is_folded_into_one_range() -> None:
    names = ["n8", "n9", "n10", "n11", "n13", "x", "x", "gpu-098", "gpu-099", "gpu-100"]
    assert fold(names) == "n[8-9],n[10-11],n13,x,x,gpu-[098-100]"
    assert fold([]) == ""


@given(names=NAMES.filter(bool))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_slurm_means_the_same(
    slurm_cluster: SlurmCluster, names: list[tuple[str, int, int]]
) -> None:
    plain = [f"{prefix}{str(number).zfill(digits)}" for prefix, number, digits in names]
    word = slurm_cluster.run("scontrol", "show", "hostlist", ",".join(plain)).stdout.strip()
    meant = slurm_cluster.run("scontrol", "show", "hostnames", word).stdout.split()
    assert list(expand(word)) == meant
    folded = slurm_cluster.run("scontrol", "show", "hostnames", fold(plain)).stdout.split()
    assert folded == plain
