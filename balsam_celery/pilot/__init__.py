"""The pilot: runs inside an allocation, keeps its nodes busy, and touches nothing but Redis (R2).

From the outside in: :mod:`startup` finds site and nodes, :mod:`supervisor` is the main process. On
one host it forks a Celery worker for each node and the gang worker (:mod:`staff`, :mod:`crew`).
Over several (:mod:`hosts`) a launcher starts a :mod:`node` on each, which MPI brings together
(:mod:`bootstrap`); its :mod:`keeper` forks that node's worker and has a link to the main process
(:mod:`links`, :mod:`link`, :mod:`channel`). :mod:`worker` is the life of one of those workers,
:mod:`strategy` turns messages into attempts, :mod:`pool` starts each when its cores are free,
:mod:`runner` and :mod:`process` run the program, :mod:`ending` and :mod:`sweep` end it on all its
nodes, :mod:`courier` carries outcomes to the service.

Architecture Invariant: nothing here imports ``balsam_celery.store`` or SQLAlchemy.
"""
