"""``python -m balsam_celery.pilot --site DIR --allocation ID``: what a batch script runs."""

from __future__ import annotations

import sys

from balsam_celery.pilot.startup import main

sys.exit(main(sys.argv[1:]))
