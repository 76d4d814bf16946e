"""Messages that are none of ours, as somebody with access to Redis could put them anywhere."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any


class Exploit:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


#: Not even one of kombu's.
NOISE: tuple[bytes, ...] = (
    b"not json", b"\xff\xfe\x00", b"", b"null", b"5", b"[]", b"{}", b"[" * 100_000,
    b'{"a": ' * 100_000, b'{"properties": {}}', b'"' + b"x" * 20_000_000 + b'"', b"9" * 5000,
    b"NaN", b'{"body": 3, "headers": 3, "properties": 3}',
)  # fmt: skip


def celery_message(task: Any, body: Any) -> bytes:
    """A message of Celery's, protocol 2."""
    text = json.dumps(body).encode()
    message = {
        "body": base64.b64encode(text).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "id": "forged", "task": task},
        "properties": {
            "correlation_id": "forged",
            "delivery_info": {"exchange": "", "routing_key": "x"},
            "delivery_tag": "tag",
            "body_encoding": "base64",
        },
    }
    return json.dumps(message).encode()


def pickled(task: str, path: Path) -> bytes:
    """One whose content type is pickle; whoever opens it makes the file ``path``."""
    message = json.loads(celery_message(task, None))
    message["body"] = base64.b64encode(pickle.dumps(Exploit(path))).decode()
    message["content-type"] = "application/x-python-serialize"
    message["content-encoding"] = "binary"
    return json.dumps(message).encode()
