"""One signature, with what is known of its place in a canvas → one new row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import Celery
from celery.utils.time import maybe_make_aware
from kombu.utils.json import dumps as kombu_dumps

from balsam_celery.amounts import counts_text
from balsam_celery.codec import DEPTH, is_too_deep
from balsam_celery.commands import PENDING, check_values, field_names, render
from balsam_celery.durations import ENDLESS, format_duration
from balsam_celery.errors import InvalidInput
from balsam_celery.packing import fits_some_queue
from balsam_celery.resources import Resources
from balsam_celery.settings import Settings
from balsam_celery.store import applications
from balsam_celery.store.engine import Store
from balsam_celery.store.insert import NewTask
from balsam_celery.tasks import hook, stepoptions
from balsam_celery.tasks.options import NAMES, TaskOptions, changed, plain_json, unknown
from balsam_celery.tasks.program import Program

#: Celery's options that say where a signature stands in its canvas; the edges say it here.
PLACE = frozenset({
    "task_id", "group_id", "group_index", "chord", "chain", "root_id", "parent_id", "reply_to",
    "link", "link_error", "chord_size", "replaced_task_nesting", "stamped_headers", "stamps",
})  # fmt: skip
#: Celery's options about sending a message now, which is not what happens.
SENDING = frozenset({
    "producer", "publisher", "connection", "router", "route_name", "add_to_parent", "retry",
    "retry_policy", "ignore_result", "result_cls", "serializer",
})  # fmt: skip
TIMING = ("countdown", "eta")


@dataclass(frozen=True, slots=True)
class Upstream:
    """What a task waits for, and what it gets before its own arguments.

    Attributes:
        parents: ids, in the order of their results.
        inputs: ``none``, ``single`` (the only parent's result) or ``list`` (of all results).
        given: values that are known already and come first.
        is_failure: it is an errback: its input is the failed task, which is no parent.
    """

    parents: tuple[str, ...] = ()
    inputs: str = "none"
    given: tuple[Any, ...] = ()
    is_failure: bool = False


class RowMaker:
    """Makes rows for one submission; looks each thing of the site up once.

    Args:
        app: the Celery application.
        settings: the site's.
        store: for commands that the site keeps.
        now: seconds since the epoch, for countdowns.
    """

    def __init__(self, app: Celery[Any], settings: Settings, store: Store, now: float) -> None:
        self.app = app
        self.settings = settings
        self.store = store
        self.now = now
        self._fits: dict[tuple[Resources, int], str | None] = {}
        self._kept: dict[str, tuple[tuple[str, ...], TaskOptions]] = {}

    def program(
        self,
        task: Program,
        id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        upstream: Upstream,
        errbacks: Sequence[Any],
    ) -> NewTask:
        """The row of a program's task.

        Raises:
            InvalidInput: an option or a value that cannot be used.
        """
        command, base = self._command(task)
        chosen = changed(base, self._own_options(options))
        wall_time = chosen.wall_time or self.settings.site.default_wall_time
        self._check_fits(chosen.resources, wall_time)
        self._check_end(chosen, wall_time)
        values = plain_json([*upstream.given, *args], f"an argument of {task.label}")
        named = plain_json(dict(kwargs), f"an argument of {task.label}")
        self._check_names(task, command, named)
        # an error callback is given the id of the task that failed
        first = "id" if upstream.is_failure else PENDING
        all_values = values if upstream.inputs == "none" else [first, *values]
        argv = None
        if upstream.parents or upstream.is_failure:
            check_values(command, all_values, named, task.literal)
        else:
            argv = render(command, all_values, named, task.literal)
        not_before, countdown = self._timing(options, bool(upstream.parents))
        resources = chosen.resources
        return NewTask(
            id=id,
            name=chosen.name or task.label,
            kind="program",
            workflow=chosen.workflow,
            application=task.label,
            command=command,
            literal=task.literal,
            arguments={"args": values, "kwargs": named},
            inputs=upstream.inputs if upstream.parents else "none",
            celery=countdown,
            errbacks=errbacks,
            argv=argv,
            num_nodes=resources.num_nodes,
            ranks_per_node=resources.ranks_per_node,
            threads_per_rank=resources.threads_per_rank,
            threads_per_core=resources.threads_per_core,
            gpus_per_rank=float(resources.gpus_per_rank),
            node_packing_count=resources.node_packing_count,
            cpu_affinity=resources.cpu_affinity,
            memory_per_node=resources.memory_per_node,
            resources_per_node=counts_text(resources.resources_per_node),
            launcher=chosen.launcher,
            environment=chosen.environment,
            wall_time=wall_time,
            expected_time=chosen.expected_time,
            priority=chosen.priority,
            max_retries=chosen.max_retries,
            retry_on=chosen.retry_on,
            retry_delay=chosen.retry_delay,
            restartable=chosen.restartable,
            checkpoint_grace=chosen.checkpoint_grace,
            end_signal=chosen.end_signal,
            on_parent_failure=chosen.on_parent_failure,
            not_before=not_before,
            hooks=chosen.hooks,
            input_files=chosen.input_files,
            data=chosen.data,
            tags=chosen.tags,
            parents=upstream.parents,
        )

    def step(
        self,
        name: str,
        type_: Any,
        id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        upstream: Upstream,
        errbacks: Sequence[Any],
    ) -> NewTask:
        """The row of an ordinary Celery task.

        ``celery`` is ``{"options": …}``, for ``app.send_task``: queue, time limits and the like.

        Raises:
            InvalidInput: an argument that JSON cannot hold, an option that no message can carry.
            TypeError: arguments that do not fit the task's signature, as Celery says it.
        """
        defaults = {} if type_ is None else type_._get_exec_options()
        merged = {**defaults, **options}
        own = {k: v for k, v in merged.items() if k in ("name", "workflow", "tags")}
        policy = merged.get("on_parent_failure", "fail")
        chosen = changed(TaskOptions(), {**own, "on_parent_failure": policy})
        known_late = upstream.parents or upstream.is_failure
        if type_ is not None and type_.typing and not known_late:
            check = getattr(type_, "__header__", None)
            if check is not None:
                check(*upstream.given, *args, **kwargs)
        send = {
            key: value
            for key, value in merged.items()
            if key not in PLACE | SENDING | {*TIMING, *own, "on_parent_failure"}
            and value is not None
        }
        serializer = merged.get("serializer")
        if serializer not in (None, "json"):
            raise InvalidInput(f"task {name}: serializer is {serializer!r}: messages are 'json'")
        stepoptions.check(name, merged, self.now)
        if upstream.parents:
            send["parent_id"] = upstream.parents[0]
        not_before, countdown = self._timing(merged, bool(upstream.parents))
        priority = merged.get("priority")
        return NewTask(
            id=id,
            name=chosen.name or name,
            kind="celery",
            workflow=chosen.workflow,
            application=name,
            arguments={
                "args": kombu_plain([*upstream.given, *args], f"an argument of {name}"),
                "kwargs": kombu_plain(dict(kwargs), f"an argument of {name}"),
            },
            inputs=upstream.inputs if upstream.parents else "none",
            celery={"options": kombu_plain(send, f"an option of {name}"), **countdown},
            errbacks=errbacks,
            priority=priority if isinstance(priority, int) else 0,
            on_parent_failure=chosen.on_parent_failure,
            not_before=not_before,
            tags=chosen.tags,
            parents=upstream.parents,
        )

    def _command(self, task: Program) -> tuple[tuple[str, ...], TaskOptions]:
        if task.command is not None:
            return task.command, task.defaults
        if task.label not in self._kept:
            with self.store.read() as conn:
                kept = applications.get(conn, task.label)
            options = changed(changed(TaskOptions(), kept.defaults), task.given)
            self._kept[task.label] = tuple(kept.command), options
        return self._kept[task.label]

    def _own_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        own = {}
        stamps = set(options.get("stamped_headers") or ())
        for name, value in options.items():
            if name in NAMES:
                own[name] = value
            elif name in PLACE | SENDING | {*TIMING, "headers", "shadow"} or name in stamps:
                continue
            elif name in ("queue", "routing_key", "exchange"):
                raise InvalidInput(
                    f"{name} is {value!r}: programs have no Celery queue, placement finds their"
                    " nodes; leave it out"
                )
            elif name in ("time_limit", "soft_time_limit"):
                raise InvalidInput(f"{name} is {value!r}: for programs it is called wall_time")
            else:
                raise InvalidInput(unknown(name, also=(*TIMING, "link", "link_error", "task_id")))
        return own

    def _check_names(
        self, task: Program, command: tuple[str, ...], named: Mapping[str, Any]
    ) -> None:
        if not named:
            return
        fields = task.fields
        if task.command is None and not task.literal:
            fields = field_names(command)
        for name in named:
            if name not in fields:
                known = ", ".join(f"{{{field}}}" for field in sorted(fields)) or "none by name"
                raise InvalidInput(
                    f"program {task.label!r} has no field {name!r}: its command has {known}"
                    " (options are given with set() or apply_async())"
                )

    def _check_end(self, chosen: TaskOptions, wall_time: int) -> None:
        grace, most = chosen.checkpoint_grace, self.settings.pilot.max_checkpoint_grace
        if grace == 0 and chosen.end_signal != "TERM":
            raise InvalidInput(
                f"end_signal is {chosen.end_signal!r}: give checkpoint_grace too, the time before"
                " its end at which the program gets it"
            )
        if grace > most:
            raise InvalidInput(
                f"checkpoint_grace is {format_duration(grace)}: [pilot] max_checkpoint_grace in"
                f" site.toml is {format_duration(most)}; ask for less"
            )
        if grace >= wall_time:
            raise InvalidInput(
                f"checkpoint_grace is {format_duration(grace)}: give less than wall_time, which is"
                f" {format_duration(wall_time)}"
            )

    def _check_fits(self, resources: Resources, wall_time: int) -> None:
        key = (resources, wall_time)
        if key not in self._fits:
            self._fits[key] = fits_some_queue(resources, wall_time, self.settings)
        reason = self._fits[key]
        if reason is not None:
            raise InvalidInput(reason)

    def _timing(self, options: Mapping[str, Any], waits: bool) -> tuple[float, dict[str, Any]]:
        """``not_before``, and what ``celery`` keeps: a countdown from the last parent's end."""
        countdown, eta = options.get("countdown"), options.get("eta")
        if countdown is not None:
            if not isinstance(countdown, int | float) or isinstance(countdown, bool):
                raise InvalidInput(f"countdown is {countdown!r}: give seconds")
            seconds = float(countdown)
            if not abs(seconds) < ENDLESS:
                raise InvalidInput(f"countdown is {countdown!r}: give less than {ENDLESS:,.0f} s")
            return (0.0, {"countdown": seconds}) if waits else (self.now + seconds, {})
        if eta is not None:
            moment = _moment(eta, self.app)
            if not moment - self.now < ENDLESS:
                raise InvalidInput(f"eta is {str(eta)!r}: give a time within the next thirty years")
            return moment, {}
        return 0.0, {}


def _moment(eta: Any, app: Celery[Any]) -> float:
    if isinstance(eta, str):
        try:
            eta = datetime.fromisoformat(eta)
        except ValueError:
            raise InvalidInput(f"eta is {eta!r}: give a datetime or ISO 8601 text") from None
    if not isinstance(eta, datetime):
        raise InvalidInput(f"eta is {eta!r}: give a datetime or ISO 8601 text")
    moment: datetime = maybe_make_aware(eta, app.timezone)
    return moment.timestamp()


def kombu_plain(value: Any, name: str) -> Any:
    """``value`` as the plain JSON that Celery's serializer makes of it (dates and the like kept).

    Raises:
        InvalidInput: it holds something that JSON, or a database's JSON column, cannot.
    """

    def refuse(constant: str) -> float:
        raise InvalidInput(f"{name} holds {constant}, which JSON cannot: give it as text")

    try:
        text = kombu_dumps(value)
        plain = json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise InvalidInput(f"{name} is nested too deep: give {DEPTH} levels at most") from None
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} is no JSON value: {error}") from None
    if is_too_deep(plain):
        raise InvalidInput(f"{name} is nested too deep: give {DEPTH} levels at most")
    if "\\u0000" in text:
        _refuse_nul(plain, name)
    return plain


def _refuse_nul(value: Any, name: str) -> None:
    if isinstance(value, str) and "\0" in value:
        raise InvalidInput(f"{name} holds a NUL byte: remove it")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        _refuse_nul(item, name)


def type_of(signature: Any) -> Any:
    """The Celery task of a signature, ``None`` when this process does not know it.

    Raises:
        InvalidInput: it names a program that was never declared here.
    """
    try:
        return signature.type
    except KeyError:
        name = signature["task"]
        if name.startswith(hook.PREFIX):
            raise InvalidInput(
                f"program {name.removeprefix(hook.PREFIX)!r} is not declared in this process:"
                " call program() first"
            ) from None
        return None
