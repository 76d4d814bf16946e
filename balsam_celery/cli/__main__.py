"""``python -m balsam_celery.cli``: the command line where ``balsam`` is not on the path."""

from __future__ import annotations

from balsam_celery.cli import main

main()
