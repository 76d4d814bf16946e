"""Queues of PBS as large sites have them: routes, limits of many forms, access lists."""

from __future__ import annotations

import json
from typing import Any

import pytest

from balsam_celery.schedulers.base import QueueInfo
from balsam_celery.schedulers.pbs_jobs import Unreadable
from balsam_celery.schedulers.pbs_nodes import Node, Shape, common_shape
from balsam_celery.schedulers.pbs_queues import limit, parse_queues

WHOLE = Shape(64, 4, 512 << 30)
NODES = [
    *(Node(f"x{n}", frozenset({"free"}), 0, WHOLE, idle=True, queue="") for n in range(6)),
    Node("login", frozenset({"free"}), 0, Shape(8), idle=True, queue=""),
    Node("d1", frozenset({"free"}), 0, Shape(32, 1), idle=True, queue="debug"),
]


def parse(queues: dict[str, dict[str, Any]]) -> dict[str, QueueInfo]:
    text = json.dumps({"Queue": queues})
    found = parse_queues(text, nodes=NODES, default="prod", user="me", groups=["team"])
    return {info.name: info for info in found}


def execution(**more: Any) -> dict[str, Any]:
    return {"queue_type": "Execution", "enabled": "True", "started": "True", **more}


def test_a_routing_queue_takes_what_its_destinations_take() -> None:
    small = execution(
        from_route_only="True",
        resources_min={"nodect": 1, "walltime": "00:05:00"},
        resources_max={"nodect": 2, "walltime": "03:00:00"},
    )
    large = execution(
        from_route_only="True",
        resources_min={"nodect": 3, "walltime": "00:10:00"},
        resources_max={"nodect": 5, "walltime": "24:00:00"},
    )
    route = {
        "queue_type": "Route",
        "enabled": "True",
        "started": "True",
        "route_destinations": "small,large@pbsserver,gone",
        "max_queued": "[u:PBS_GENERIC=10]",
    }
    found = parse({"small": small, "large": large, "prod": route})
    assert found == {
        "prod": QueueInfo(
            name="prod",
            max_nodes=5,
            min_nodes=1,
            min_wall_time=300,
            max_wall_time=86400,
            max_queued=10,
            cores_per_node=64,
            gpus_per_node=4,
            memory_per_node=512 << 30,
            is_default=True,
        )
    }


def test_a_route_that_leads_nowhere_is_not_enabled() -> None:
    route = execution(queue_type="Route", route_destinations=["gone"])
    assert not parse({"prod": route})["prod"].enabled


def test_nodes_of_a_queue_are_those_it_shares_and_its_own() -> None:
    found = parse({"prod": execution(), "debug": execution(resources_max={"nodect": 99})})
    assert (found["prod"].max_nodes, found["prod"].cores_per_node) == (6, 64)
    assert found["debug"].max_nodes == 6


def test_nodes_that_differ_by_some_memory_are_alike() -> None:
    # as a machine of equal nodes tells them
    kilobytes = (527672492, 527672476, 527672488, 263836244)
    nodes = [
        Node(f"x{n}", frozenset({"free"}), 0, Shape(64, 4, kb << 10), idle=True, queue="")
        for n, kb in enumerate(kilobytes)
    ]
    assert common_shape(nodes) == (Shape(64, 4, 263836244 << 10), 4)
    assert common_shape([]) == (Shape(cores=1), 0)


@pytest.mark.parametrize("change", [{"enabled": "False"}, {"started": "False"}])
def test_a_queue_that_is_switched_off(change: dict[str, str]) -> None:
    assert not parse({"prod": execution(**change)})["prod"].enabled


def test_queues_of_others_are_left_out() -> None:
    found = parse(
        {
            "mine": execution(acl_user_enable="True", acl_users="you,me@*"),
            "team": execution(acl_group_enable="True", acl_groups=["team", "staff"]),
            "yours": execution(acl_user_enable="True", acl_users="you"),
            "staff": execution(acl_group_enable="True", acl_groups="staff"),
        }
    )
    assert list(found) == ["mine", "team"]


@pytest.mark.parametrize(
    ("told", "most"),
    [
        ({}, None),
        ({"max_run": "[u:PBS_GENERIC=2]"}, 2),
        ({"max_run": "[u:PBS_GENERIC=2],[u:me=7]"}, 7),
        ({"max_run": "[u:PBS_GENERIC=20], [o:PBS_ALL=9], [g:PBS_GENERIC=1]"}, 9),
        ({"max_run": ["[u:PBS_GENERIC=20]", "[o:PBS_ALL=9]"]}, 9),
        ({"max_user_run": 4}, 4),
        ({"max_user_run": "4", "max_run": "[u:you=1]"}, 4),
    ],
)
def test_limits(told: dict[str, Any], most: int | None) -> None:
    assert limit(told, ("max_run",), "max_user_run", "me") == most


def test_an_answer_without_queues_is_not_none_at_all() -> None:
    with pytest.raises(Unreadable):
        parse_queues("{}", nodes=[], default="", user="me", groups=[])
