"""Runs planning over virtual time: `python -m balsam_celery.simulate` (docs/planning.md)."""
