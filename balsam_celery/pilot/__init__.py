"""The pilot: runs inside an allocation, keeps its nodes busy, and touches nothing but Redis (R2).

From the outside in: :mod:`startup` finds site and nodes, :mod:`supervisor` forks one Celery worker
for each node (and the gang worker) and watches over them, :mod:`worker` is the life of one of
those, :mod:`strategy` turns messages into attempts, :mod:`pool` starts each when its cores are
free, :mod:`runner` and :mod:`process` run the program, :mod:`courier` carries outcomes to the
service.

Architecture Invariant: nothing here imports ``balsam_celery.store`` or SQLAlchemy.
"""
