"""Celery canvases → rows and edges, with the result tree that Celery would have given.

The rules are Celery's own (``celery/canvas.py``): arguments are put before a signature's own unless
it is immutable; a chain's first step takes the call's arguments and its last the call's id and
link; a group followed by anything hands on the list of its results; nested groups are flattened;
``link`` goes to a chord's body and ``link_error`` to each step of a chain. What Celery does with
messages when a task ends is here a dependency in SQL from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from celery import canvas as _canvas
from celery.utils.functional import maybe_list
from kombu.utils.uuid import uuid

from balsam_celery.errors import InvalidInput
from balsam_celery.store.errbacks import entry
from balsam_celery.store.insert import NewTask
from balsam_celery.tasks import hook
from balsam_celery.tasks.program import Program
from balsam_celery.tasks.rows import TIMING, RowMaker, Upstream, kombu_plain, type_of

#: The stubs lack some of its names.
canvas: Any = _canvas
maybe_signature, maybe_unroll_group = canvas.maybe_signature, canvas.maybe_unroll_group

#: Celery task that runs an errback of three arguments; see ``tasks.steps``.
ERRBACK = "balsam.errback"
#: Options of ours that, set on a whole canvas, are meant for every task in it.
SHARED = ("workflow", "tags")
_OWN = ("task_id", "link", "link_error", "chord", "chain", "group_id", "group_index", "root_id",
        "parent_id", "reply_to")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """What the caller of a signature adds to it."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    task_id: str | None = None
    link: tuple[Any, ...] = ()
    errbacks: tuple[dict[str, Any], ...] = ()  # compiled
    shared: Mapping[str, Any] = field(default_factory=dict)

    def without_place(self) -> Call:
        """The same for the next step: nothing that belongs to the first or last one alone."""
        return Call(errbacks=self.errbacks, shared=self.shared)


_FAILURE = Upstream(inputs="single", is_failure=True)


@dataclass(frozen=True, slots=True)
class Part:
    """A compiled signature.

    Attributes:
        result: its Celery result.
        exits: what follows it waits for: an id, or a list of those for a group.
    """

    result: Any
    exits: str | list[Any]


class Compiler:
    """Compiles the canvases of one submission into :attr:`rows`."""

    def __init__(self, maker: RowMaker) -> None:
        self.maker = maker
        self.app = maker.app
        self.rows: list[NewTask] = []
        self._receives: dict[str, str] = {}
        self._ids: set[str] = set()

    def compile(self, signature: Any, upstream: Upstream, call: Call) -> Part:
        """Add the rows of ``signature``.

        Raises:
            InvalidInput: a part of it cannot be used.
        """
        signature = maybe_signature(signature, self.app)
        if isinstance(signature, canvas._chain):
            return self._chain(signature, upstream, call)
        if isinstance(signature, canvas.group):
            return self._group(signature, upstream, call)
        if isinstance(signature, canvas.chord):
            return self._chord(signature, upstream, call)
        if isinstance(signature, canvas.chunks):
            return self._group(signature.group(), upstream, call)
        return self._task(signature, upstream, call)

    def _task(self, signature: Any, upstream: Upstream, call: Call) -> Part:
        if signature.immutable:
            upstream = replace(upstream, inputs="none", given=())
        args, kwargs, options = signature._merge(
            call.args, dict(call.kwargs), {k: v for k, v in call.options.items() if v is not None}
        )
        options = {**call.shared, **options}
        id = str(options.get("task_id") or call.task_id or uuid())
        if id in self._ids:
            raise InvalidInput(f"two tasks of the canvas have the id {id}: freeze each only once")
        self._ids.add(id)
        links = (*(maybe_list(options.get("link")) or ()), *call.link)
        chain = list(reversed(maybe_list(options.get("chain")) or ()))
        errbacks = [*self._errbacks(options.get("link_error"), call.shared), *call.errbacks]
        type_ = type_of(signature)
        if isinstance(type_, Program):
            row = self.maker.program(type_, id, args, kwargs, options, upstream, errbacks)
        else:
            if hook.contains_program({"task": signature["task"], "kwargs": kwargs}):
                raise InvalidInput(
                    f"{signature['task']} cannot hold a program: use group(p.s(x) for x in …)"
                )
            if isinstance(signature, canvas._basemap):
                kwargs = {**kwargs, "it": list(kwargs["it"])}
            row = self.maker.step(
                signature["task"], type_, id, args, kwargs, options, upstream, errbacks
            )
        self.rows.append(row)
        if upstream.is_failure:
            self._receives[id] = "nothing" if upstream.inputs == "none" else "id"
        part = Part(self.app.AsyncResult(id, task_name=signature["task"]), id)
        for link in links:
            self.compile(link, _after(part), Call(shared=call.shared))
        if chain:
            return self._sequence(chain, _after(part), Call(shared=call.shared), part.result)
        return part

    def _chain(self, chain: Any, upstream: Upstream, call: Call) -> Part:
        options = {**chain.options, **call.options}
        call = replace(
            _absorb(self, options, call),
            args=() if chain.immutable else (*call.args, *chain.args),
        )
        if chain.immutable:
            upstream = replace(upstream, inputs="none", given=())
        return self._sequence(list(chain.tasks), upstream, call, None)

    def _sequence(
        self, tasks: Iterable[Any], upstream: Upstream, call: Call, previous: Any
    ) -> Part:
        steps = [self._step(task) for task in tasks]
        full = [step for step in steps if not _is_empty(step)]
        if not full:
            groups = [step for step in steps if isinstance(step, canvas.group)]
            if not groups:
                raise InvalidInput("the chain is empty: give it tasks")
            full = groups[:1]
        part: Part | None = None
        for position, step in enumerate(full):
            is_first, is_last = position == 0, position == len(full) - 1
            own = call.without_place()
            if is_first:
                own = replace(own, args=call.args, kwargs=call.kwargs, options=call.options)
            if is_last:
                own = replace(own, task_id=call.task_id, link=call.link)
            if part is not None:
                upstream = self._join(part)
            part = self.compile(step, upstream, own)
            if previous is not None:
                _oldest(part.result).parent = previous
            previous = part.result
        assert part is not None
        return part

    def _step(self, task: Any) -> Any:
        step = maybe_signature(task, self.app)
        return maybe_unroll_group(step) if isinstance(step, canvas.group) else step

    def _group(self, group: Any, upstream: Upstream, call: Call) -> Part:
        options = {**group.options, **call.options}
        if options.get("link") or call.link:
            raise InvalidInput("a group cannot have a link: put a chord's body behind it")
        call = _absorb(self, options, call)
        group_id = str(options.get("task_id") or uuid())
        member_call = replace(call, task_id=None, link=())
        parts = [
            self.compile(member, upstream, member_call) for member in self._members(group.tasks)
        ]
        result = self.app.GroupResult(group_id, [part.result for part in parts])
        return Part(result, [part.exits for part in parts])

    def _members(self, tasks: Any) -> Iterable[Any]:
        for task in tasks:
            member = maybe_signature(task, self.app)
            if isinstance(member, canvas.group):
                yield from self._members(member.tasks)
            elif not (isinstance(member, canvas._chain) and not member.tasks):
                yield member

    def _chord(self, chord: Any, upstream: Upstream, call: Call) -> Part:
        kwargs = dict(call.kwargs)
        body = maybe_signature(kwargs.pop("body", None) or chord.body, self.app)
        if body is None:
            raise InvalidInput("the chord has no body: give one, or use a group")
        options = {**chord.options, **call.options}
        own = _absorb(self, options, call)
        header = chord.tasks if isinstance(chord.tasks, canvas.group) else None
        header_options = header.options if header is not None else {}
        group_id = str(header_options.get("task_id") or chord.options.get("task_id") or uuid())
        header_call = Call(
            args=() if chord.immutable else (*call.args, *chord.args),
            kwargs={**chord.kwargs.get("kwargs", {}), **kwargs},
            options={**_for_members(header_options), **own.options},
            # no errbacks: a header task that fails fails the body, which calls its own
            shared=own.shared,
        )
        members = [
            self.compile(member, upstream, header_call)
            for member in self._members(chord.tasks if header is None else header.tasks)
        ]
        header_part = Part(
            self.app.GroupResult(group_id, [part.result for part in members]),
            [part.exits for part in members],
        )
        after = (
            self._join(header_part) if members else replace(upstream, inputs="none", given=([],))
        )
        body_part = self.compile(
            body,
            after,
            Call(
                options={k: v for k, v in own.options.items() if k not in TIMING},
                # not the chord's own id: that is its header's
                task_id=_id(call.options) or call.task_id,
                link=own.link,
                errbacks=own.errbacks,
                shared=own.shared,
            ),
        )
        _oldest(body_part.result).parent = header_part.result
        return body_part

    def _join(self, part: Part) -> Upstream:
        """What follows ``part`` waits for."""
        if isinstance(part.exits, str):
            return _after(part)
        return Upstream(tuple(self._single(exit_) for exit_ in part.exits), "list")

    def _single(self, exits: str | list[Any]) -> str:
        """One id whose result is that of ``exits``.

        A group inside a chord's header hands on a list; Celery's own ``accumulate`` makes one.
        """
        if isinstance(exits, str):
            return exits
        upstream = Upstream(tuple(self._single(exit_) for exit_ in exits), "list")
        gather = self.app.signature("celery.accumulate", kwargs={"index": 0})
        part = self._task(gather, upstream, Call())
        assert isinstance(part.exits, str)
        return part.exits

    def _errbacks(self, errbacks: Any, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [self._errback(errback, shared) for errback in maybe_list(errbacks) or ()]

    def _errback(self, errback: Any, shared: Mapping[str, Any]) -> dict[str, Any]:
        errback = maybe_signature(errback, self.app)
        compiler = Compiler(self.maker)
        if self._wants_exception(errback):
            plain = kombu_plain({**errback, "options": {}}, f"errback {errback['task']}")
            options = _for_members(errback.options)
            errback = self.app.signature(ERRBACK, args=(plain,), options=options)
            compiler.compile(errback, _FAILURE, Call(shared=shared))
            compiler._receives[compiler.rows[0].id] = "failure"
        else:
            compiler.compile(errback, _FAILURE, Call(shared=shared))
        return entry(compiler.rows, compiler._receives)

    def _wants_exception(self, errback: Any) -> bool:
        """Celery calls errbacks of several arguments with (request, exc, traceback)."""
        if type(errback) is not canvas.Signature:
            return False
        type_ = type_of(errback)
        if type_ is None or isinstance(type_, Program) or not hasattr(type_, "__header__"):
            return False
        backend: Any = self.app.backend
        return bool(backend._errback_arity_greater(errback, 1))


def _absorb(compiler: Compiler, options: Mapping[str, Any], call: Call) -> Call:
    """``call`` with what ``options`` of a chain, group or chord mean for its members."""
    shared = {**call.shared, **{name: options[name] for name in SHARED if name in options}}
    return replace(
        call,
        options=_for_members(options),
        task_id=_id(options) or call.task_id,
        link=(*(maybe_list(options.get("link")) or ()), *call.link),
        errbacks=(*compiler._errbacks(options.get("link_error"), shared), *call.errbacks),
        shared=shared,
    )


def _for_members(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in _OWN and k not in SHARED}


def _id(options: Mapping[str, Any]) -> str | None:
    task_id = options.get("task_id")
    return None if task_id is None else str(task_id)


def _after(part: Part) -> Upstream:
    assert isinstance(part.exits, str)
    return Upstream((part.exits,), "single")


def _oldest(result: Any) -> Any:
    while result.parent is not None:
        result = result.parent
    return result


def _is_empty(step: Any) -> bool:
    return isinstance(step, (canvas._chain, canvas.group)) and not step.tasks
