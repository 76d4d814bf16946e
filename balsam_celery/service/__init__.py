"""What the site's service does: record, place, release, submit, reap, kill and deliver effects.

Everything here is plain functions over ``store``, ``wire`` and the pure floors; ``engine`` is the
loop that calls them and ``tasks.handlers`` the thin Celery side.
"""
