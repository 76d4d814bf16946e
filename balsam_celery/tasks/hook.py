"""Where canvases that contain a program leave Celery's path.

Celery offers no extension point for the moment at which a whole canvas is applied: ``chain``,
``group`` and ``chord`` send their messages from their own ``apply_async``, whichever application
or task class they are made of, and a chain would keep its later steps inside the first message,
where a Redis outage could lose them. So the three methods are wrapped here, once: a canvas without
a program of ours passes through untouched, one with a program becomes rows in SQL instead.

Only Celery is imported here; what needs SQLAlchemy is loaded when the first such canvas is applied.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

from celery import canvas

#: Celery task names of programs start so.
PREFIX = "balsam.program."
_MARK = "_balsam_wrapped"


def contains_program(signature: Any) -> bool:
    """Whether ``signature`` (or its plain dict) has a program in it, callbacks included."""
    if not isinstance(signature, dict):
        return False
    name = signature.get("task")
    if isinstance(name, str) and name.startswith(PREFIX):
        return True
    kwargs = signature.get("kwargs")
    if name == "celery.chord" and isinstance(kwargs, dict):
        header, body = kwargs.get("header"), kwargs.get("body")
        if contains_program(body) or contains_program(header) or _any_program(header):
            return True
    elif name in ("celery.chain", "celery.group") and isinstance(kwargs, dict):
        if _any_program(kwargs.get("tasks")):
            return True
    elif name in ("celery.map", "celery.starmap", "celery.chunks") and contains_program(
        (kwargs or {}).get("task")
    ):
        return True
    options = signature.get("options")
    return isinstance(options, dict) and options_contain_program(options)


def options_contain_program(options: dict[str, Any]) -> bool:
    """Whether a callback, an error callback or the rest of a chain has a program in it."""
    return any(
        contains_program(value) or _any_program(value)
        for value in (options.get(name) for name in ("link", "link_error", "chain"))
        if value
    )


def _any_program(signatures: Any) -> bool:
    if isinstance(signatures, dict) or not isinstance(signatures, Iterable):
        return False
    return any(contains_program(signature) for signature in signatures)


def apply_canvas(signature: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    """Insert ``signature`` as rows and return its Celery result."""
    # SQLAlchemy is loaded here, not before: most processes that import user modules never need it
    submit = importlib.import_module("balsam_celery.tasks.submit")
    return submit.apply(signature, args, kwargs, options)


def _wrap(cls: Any) -> None:
    stock: Callable[..., Any] = cls.apply_async
    if getattr(stock, _MARK, False):
        return

    @functools.wraps(stock)
    def apply_async(self: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        # the body of a chord may come as an argument: chord(header)(body)
        if (
            contains_program(self)
            or options_contain_program(options)
            or (isinstance(kwargs, dict) and contains_program(kwargs.get("body")))
        ):
            return apply_canvas(self, args, kwargs, options)
        return stock(self, args, kwargs, **options)

    setattr(apply_async, _MARK, True)
    cls.apply_async = apply_async


def install() -> None:
    """Wrap Celery's ``chain``, ``group`` and ``chord``; again is harmless."""
    for cls in (canvas._chain, canvas.group, canvas.chord):
        _wrap(cls)
