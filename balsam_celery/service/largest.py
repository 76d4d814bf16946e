"""How large a message may be, measured before it is sent.

Redis takes no value of more than 512 MiB (``proto-max-bulk-len``): it closes the connection, which
looks as if it were away. Such a message would be tried for ever, and all behind it would wait.
"""

from __future__ import annotations

import json
from typing import Any

from balsam_celery.amounts import format_bytes
from balsam_celery.errors import InvalidInput

#: Bytes of JSON in one message at the most; on its way it grows by a third (base64).
LARGEST = 256 * 2**20


def measured(*values: Any) -> int:
    """The bytes that JSON values take in a message.

    Raises:
        InvalidInput: they are more than :data:`LARGEST`.
    """
    size = sum(_size(value) for value in values)
    if size > LARGEST:
        raise InvalidInput(
            f"what it is given takes {format_bytes(size)}, and one message holds"
            f" {format_bytes(LARGEST)} at the most: set a smaller [pilot] output_tail, let it have"
            " fewer parents, or hand over files"
        )
    return size


def _size(value: Any, depth: int = 3) -> int:
    """Bytes of a JSON value: as a whole, or part by part, down to the results of each parent.

    The text of all of them at once would take more memory than they do.
    """
    if depth and isinstance(value, dict):
        return sum(_size(key, 0) + _size(one, depth - 1) + 4 for key, one in value.items()) + 2
    if depth and isinstance(value, list):
        return sum(_size(one, depth - 1) + 2 for one in value) + 2
    return len(json.dumps(value))
