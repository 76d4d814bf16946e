"""Text and JSON that SQLite and PostgreSQL both take, whatever a program printed."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from balsam_celery.codec import encodable

_NUL_IN_JSON = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def clean_text(text: str) -> str:
    """``text`` with NUL (which PostgreSQL refuses) and lone surrogates (which UTF-8 does) replaced.

    Both can stand in a program's output.
    """
    return encodable(text).replace("\x00", "\ufffd")


def to_json(value: Any) -> str:
    """JSON text of ``value``, cleaned like :func:`clean_text`.

    NaN and infinities, which JSON and PostgreSQL lack, become null.
    """
    try:
        text = _ENCODER.encode(value)
    except ValueError:
        text = _ENCODER.encode(_finite(value))
    if "\\u0000" in text:
        text = _NUL_IN_JSON.sub("\\1\ufffd", text)
    return encodable(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
