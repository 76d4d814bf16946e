"""Celery beat with one leader: sends what the service does from time to time, and nothing else."""
