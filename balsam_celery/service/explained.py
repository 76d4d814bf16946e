"""Explanations as plain JSON values: the stable schema of ``docs/cli-json.md``."""

from __future__ import annotations

from typing import Any

from balsam_celery.durations import timestamp
from balsam_celery.service.explain_allocations import Explained
from balsam_celery.service.why import site_trouble
from balsam_celery.service.why_allocations import AllocationFacts
from balsam_celery.service.why_backlog import Need
from balsam_celery.service.why_facts import Why
from balsam_celery.store.rows import TaskRow

Plain = dict[str, Any]


def plain_task(row: TaskRow, why: Why) -> Plain:
    """The explanation of a task."""
    ahead = why.ahead
    return {
        "id": row.id,
        "name": row.name,
        "state": str(row.state),
        "code": why.code,
        "text": why.text,
        "attempt": row.attempt,
        "failures": row.failures,
        "max_retries": row.max_retries,
        "parents": [{"id": p.id, "name": p.name, "state": str(p.state)} for p in why.parents],
        "ahead": None
        if ahead is None
        else {
            "total": ahead.total,
            "higher_priority": ahead.higher,
            "wider": ahead.wider,
            "larger": ahead.larger,
            "older": ahead.older,
            "same_shape": ahead.alike,
        },
        "allocation": why.allocation,
        "pilot": why.pilot,
        "nodes": list(why.nodes),
        "expected_start": timestamp(why.expected_start),
        "latest_end": timestamp(why.latest_end),
    }


def plain_allocations(found: Explained) -> Plain:
    """The explanation of packing."""
    trouble = site_trouble(found.site)
    return {
        "allocations": [_allocation(facts, why) for facts, why in found.allocations],
        "backlog": [_need(need, why) for need, why in found.backlog],
        "note": trouble[1] if trouble else "",
    }


def _allocation(facts: AllocationFacts, why: Why) -> Plain:
    row = facts.row
    return {
        "id": row.id,
        "native_id": row.native_id or None,
        "queue": row.queue,
        "nodes": row.nodes,
        "wall_time": row.wall_time,
        "state": str(row.state),
        "code": why.code,
        "text": why.text,
        "asked_for": row.asked_for,
        "planned": facts.planned,
        "pilot": why.pilot,
        "expected_start": timestamp(why.expected_start),
        "latest_end": timestamp(why.latest_end),
    }


def _need(need: Need, why: Why) -> Plain:
    wanted = need.resources
    return {
        "code": why.code,
        "text": why.text,
        "tasks": need.count,
        "unplanned": max(0, need.left),
        "num_nodes": wanted.num_nodes,
        "cores_per_node": wanted.least_cores,
        "gpus_per_node": wanted.gpus_per_node,
        "wall_time": need.wall_time,
        "priority": need.priority,
        "planned": [{"allocation": id, "tasks": n} for id, n in need.planned],
        "asked": [
            {"queue": r.queue, "nodes": r.nodes, "wall_time": r.wall_time, "tasks": n}
            for r, n in need.asked
        ],
    }
