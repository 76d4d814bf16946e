"""Strategies for machines, tasks and histories, small enough to find the corners."""

from __future__ import annotations

from hypothesis import strategies as st

from balsam_celery.ledger import Ledger
from balsam_celery.placement import Candidate
from balsam_celery.resources import NodeCapacity, Resources

NOW = 1_000_000.0


def node(name: str, cores: int, gpus: int = 0, memory: int = 0, licences: int = 0) -> NodeCapacity:
    resources = (("licence", licences),) if licences else ()
    return NodeCapacity(name, tuple(range(cores)), tuple(range(gpus)), memory, resources=resources)


def resources() -> st.SearchStrategy[Resources]:
    return st.builds(
        Resources,
        num_nodes=st.integers(1, 4),
        ranks_per_node=st.integers(1, 4),
        threads_per_rank=st.integers(1, 2),
        gpus_per_rank=st.sampled_from([0.0, 0.0, 0.1, 1 / 3, 0.5, 1, 1.5]),
        node_packing_count=st.sampled_from([None, None, 1, 2, 3]),
        memory_per_node=st.sampled_from([0, 0, 3, 10]),
        resources_per_node=st.sampled_from([(), (), (("licence", 1),), (("licence", 2),)]),
    )


@st.composite
def candidates(draw: st.DrawFn, most: int = 25) -> list[Candidate]:
    shapes = draw(st.lists(resources(), min_size=1, max_size=5))
    expected = st.sampled_from([None, 0.1, 1.0, 20.0, 300.0])
    return [
        Candidate(
            id=f"t{number}",
            attempt=draw(st.integers(1, 3)),
            resources=draw(st.sampled_from(shapes)),
            wall_time=draw(st.sampled_from([1, 10, 50, 100, 400])),
            kill_grace=5,
            priority=draw(st.sampled_from([0, 0, 0, 1, -5])),
            created=draw(st.floats(0, 100, allow_nan=False)),
            restartable=draw(st.booleans()),
            expected_time=(seconds := draw(expected)),
            lasts=seconds or 0.0,
        )
        for number in range(draw(st.integers(1, most)))
    ]


@st.composite
def ledgers(draw: st.DrawFn) -> Ledger:
    ledger = Ledger.empty()
    for pilot in range(draw(st.integers(1, 3))):
        cores = draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=6))
        gpus = draw(st.integers(0, 3))
        memory, licences = draw(st.sampled_from([0, 10])), draw(st.sampled_from([0, 3]))
        nodes = [
            node(f"n{number}", count, gpus, memory, licences) for number, count in enumerate(cores)
        ]
        ledger = ledger.add_pilot(
            f"p{pilot}",
            nodes,
            NOW + draw(st.sampled_from([-1, 3, 60, 120, 500, 5000])),
            draining=draw(st.integers(0, 9)) == 0,
        )
    return ledger
