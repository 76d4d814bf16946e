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
    size = sum(len(json.dumps(value)) for value in values)
    if size > LARGEST:
        raise InvalidInput(
            f"what it is given takes {format_bytes(size)}, and one message holds"
            f" {format_bytes(LARGEST)} at the most: set a smaller [pilot] output_tail, let it have"
            " fewer parents, or hand over files"
        )
    return size
