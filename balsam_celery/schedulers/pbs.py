"""PBS Professional and OpenPBS: the adapter, which runs the commands.

The pure parts are beside: :mod:`~balsam_celery.schedulers.pbs_commands` (argv and exit statuses),
:mod:`~balsam_celery.schedulers.pbs_jobs`, :mod:`~balsam_celery.schedulers.pbs_nodes` and
:mod:`~balsam_celery.schedulers.pbs_queues` (what the commands print).

Jobs are asked for one at a time. ``qstat`` without ids would tell of all users' jobs: on a large
machine tens of megabytes at each look, and one stranger's job that makes the JSON invalid would
hide ours. With several ids the JSON holds the first alone, and ``-u`` turns it into a table. So
``qselect`` names the user's jobs, and each that bears a name of the site, or whose id was asked
for, is looked at; those of other names, and those that have ended, are remembered and not looked at
again.
"""

from __future__ import annotations

import grp
import os
import pwd
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers import pbs_commands, pbs_jobs, pbs_nodes, pbs_queues
from balsam_celery.schedulers.base import (
    JOB_END,
    JOB_QUEUE,
    Capabilities,
    IdleWindow,
    Job,
    JobNodes,
    JobRequest,
    JobState,
    QueueInfo,
    Scheduler,
    job_prefix,
)
from balsam_celery.schedulers.commands import Commands, Done
from balsam_celery.schedulers.pbs_jobs import Attributes, Unreadable
from balsam_celery.schedulers.pbs_nodes import Node, Shape
from balsam_celery.settings import QueueSettings, Settings


class PbsScheduler(Scheduler):
    """Jobs of PBS.

    Args:
        site: the site's id; its jobs are those whose names begin with ``balsam-<site>-``.
        queues: those of ``site.toml``.
        timeout: seconds for one command.
        down_after: seconds for which a node must be down to count as given up.
        hidden: names of environment variables that neither commands nor jobs may see.
    """

    # pbs_mom knows the processes of a job by their sessions alone; a job whose first node's MoM is
    # lost, or which is deleted by force, is F whatever runs there
    capabilities = Capabilities(
        finds_by_name=True,
        tells_queues=True,
        tells_idle=True,
        end_is_proof=False,
        releases_nodes=True,
    )
    template = "pbs.sh.j2"
    kill_delay = (10.0, "kill_delay")

    def __init__(
        self,
        site: str,
        queues: Mapping[str, QueueSettings],
        timeout: float,
        down_after: float,
        hidden: Collection[str] = (),
    ) -> None:
        self._down_after = down_after
        self._sights = pbs_nodes.Sights()
        self._prefix = job_prefix(site)
        self._queues = queues
        self._submitting = Commands(timeout, hidden=hidden)
        self._asking = Commands(timeout, hidden=hidden, additions=pbs_commands.UTC)
        # the site's jobs as they were told last, and None for what is not the site's
        self._known: dict[str, Job | None] = {}

    def submit_command(self, request: JobRequest) -> Sequence[str]:
        """``qsub``, wherever it is."""
        return _found(pbs_commands.submit(request.script))

    def submit(self, request: JobRequest) -> str:
        """Submit a script; returns the whole id, number and server."""
        done = self._submitting.run(self.submit_command(request))
        if done.status in pbs_commands.REFUSED:
            raise SchedulerError(done.message)
        if done.status != 0:
            raise SchedulerUnavailable(f"{done.message} (qsub ended with {done.status})")
        # a site's hook may print more lines around the id
        ids = [line.strip() for line in done.out.splitlines() if pbs_commands.number(line.strip())]
        if len(ids) != 1:
            raise SchedulerUnavailable(f"qsub did not answer with a job's id: {done.message}")
        return ids[0]

    def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
        """The site's jobs that have not ended or are an hour old at most, and those of ``ids``.

        Where ``ids`` are given, a job beside them of which nothing is known yet, and of which PBS
        does not tell, is left out: it is most likely not the site's (one that was moved to a server
        that is down, say), and hides nothing. Without ``ids`` the answer is whole or none.
        """
        asked = {pbs_commands.number(id): id for id in ids if pbs_commands.number(id)}
        listed = {pbs_commands.number(id): id for id in self._listed()}
        wanted = asked | {number: id for number, id in listed.items() if number not in asked}
        told = frozenset(wanted.values())
        self._known = {id: job for id, job in self._known.items() if id in told}
        found = {}
        for number, native_id in wanted.items():
            try:
                job = self._look(native_id, asked=number in asked)
            except SchedulerUnavailable:
                if not asked or number in asked or native_id in self._known:
                    raise
                continue
            if job is not None:
                found[native_id] = job
        return found

    def _look(self, native_id: str, *, asked: bool) -> Job | None:
        """A job of the site; ``None`` for one of another, or one that PBS does not know."""
        if native_id in self._known:
            known = self._known[native_id]
            if (not asked) if known is None else known.state is JobState.ENDED:
                return known
        text = self._tell(native_id)
        if text is None:
            return None
        name = pbs_jobs.name_of(text)
        if not asked and name and not name.startswith(self._prefix):
            self._known[native_id] = None
            return None
        with _reading(f"qstat {native_id}"):
            told = pbs_jobs.attributes(text)
            job = pbs_jobs.make_job(native_id, told)
        # one that was asked for may bear another name by now; but numbers start anew one day, and
        # then its number is most likely somebody else's
        own = job.name.startswith(self._prefix) or (asked and pbs_jobs.owner(told) == _user())
        self._known[native_id] = job if own else None
        return self._known[native_id]

    def cancel(self, native_id: str) -> None:
        """Ask for a job's end; also harmless for one that is not known.

        Raises:
            SchedulerError: not the id of a job, or of a job of somebody else.
            SchedulerUnavailable: PBS did not take it.
        """
        if not pbs_commands.number(native_id):
            raise SchedulerError(f"{native_id!r} is not the id of a PBS job")
        done = self._submitting.run(_found(pbs_commands.cancel(native_id)))
        if done.status in pbs_commands.NOT_TO_CANCEL:
            raise SchedulerError(done.message)
        if done.status != 0 and done.status not in pbs_commands.HARMLESS_TO_CANCEL:
            raise SchedulerUnavailable(f"{done.message} (qdel ended with {done.status})")

    def release(self, native_id: str, nodes: Collection[str], kept: Sequence[str]) -> None:
        """Take ``nodes`` out of a running job.

        Raises:
            SchedulerError: refused.
            SchedulerUnavailable: PBS did not take it.
        """
        vnodes = [pbs_nodes.short(node) for node in nodes]
        done = self._asking.run(_found(pbs_commands.release(native_id, vnodes)))
        if pbs_commands.NOT_THERE in done.message and len(vnodes) > 1:
            # one of them is out already, and then none is taken
            for node in nodes:
                self.release(native_id, [node], kept)
        elif done.status in pbs_commands.NOT_TO_RELEASE:
            if pbs_commands.NOT_THERE not in done.message:
                raise SchedulerError(done.message)
        elif done.status != 0:
            raise SchedulerUnavailable(f"{done.message} (pbs_release_nodes: {done.status})")

    def inside(self, environment: Mapping[str, str]) -> JobNodes:
        """The nodes in ``PBS_NODEFILE``; what each gives to the job, and its end, by ``qstat``.

        Where ``qstat`` does not answer, the batch script's :data:`JOB_END` and the queue's nodes in
        ``site.toml`` serve. PBS's own ``NCPUS`` and ``OMP_NUM_THREADS`` do not: they tell of
        threads, and of the first node alone.

        Raises:
            SchedulerError: not in a PBS job.
            SchedulerUnavailable: PBS does not answer, and the environment does not tell.
        """
        native_id, path = environment.get("PBS_JOBID"), environment.get("PBS_NODEFILE")
        if not native_id or not path:
            raise SchedulerError("not inside a job of PBS: PBS_JOBID or PBS_NODEFILE is not set")
        try:
            hosts = pbs_nodes.node_file(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SchedulerUnavailable(f"PBS_NODEFILE={path}: {error.strerror}") from None
        queue = self._queues.get(environment.get(JOB_QUEUE, ""), QueueSettings())
        configured = Shape(queue.cores_per_node, queue.gpus_per_node, queue.memory_per_node)
        try:
            text = self._tell(native_id)
            if text is None:
                raise SchedulerUnavailable(f"PBS does not know the job {native_id}")
            with _reading(f"qstat {native_id}"):
                told = pbs_jobs.attributes(text)
            end, shapes = _end(told), pbs_nodes.shapes(told)
        except SchedulerUnavailable:
            given = environment.get(JOB_END, "")
            if not given.isdecimal() or not configured.cores:
                raise
            end, shapes = float(given), {}
        by_host = {pbs_nodes.short(host): shape for host, shape in shapes.items()}
        nodes = [_capacity(host, by_host.get(pbs_nodes.short(host)), configured) for host in hosts]
        return JobNodes(nodes=tuple(nodes), end_time=end, native_id=native_id)

    def down_nodes(self, nodes: Collection[str]) -> frozenset[str]:
        """Those of which PBS has had no word for :func:`~balsam_celery.cutoff.over_after` seconds.

        PBS takes no dead node out of a running job: the job stays R. "down" means that the node
        does not answer, which is not yet its end (R4); but the pilot, too, has lost such a node
        when this is asked, and a node that has lost its pilot ends what it runs within that time.
        """
        down = set()
        for name in nodes:
            for known in dict.fromkeys((name, pbs_nodes.short(name))):
                now, told = self._nodes(known)
                if any(node.states for node in told):
                    # each is looked at, also behind one that is up: its time may begin now
                    given_up = [self._sights.given_up(node, now, self._down_after) for node in told]
                    if all(given_up):
                        down.add(name)
                    break
        return frozenset(down)

    def queues(self) -> tuple[QueueInfo, ...]:
        """The queues that this user may submit to, the default first."""
        server = self._ask(pbs_commands.server())
        queues = self._ask(pbs_commands.queues())
        _, nodes = self._nodes()
        with _reading("qstat"):
            return pbs_queues.parse_queues(
                queues,
                nodes=nodes,
                default=pbs_queues.default_queue(server),
                user=_user(),
                groups=_groups(),
            )

    def idle(self) -> tuple[IdleWindow, ...]:
        """Free nodes of each queue of ``site.toml``."""
        _, nodes = self._nodes()
        counts = {
            queue: sum(node.idle for node in pbs_nodes.usable(nodes, queue))
            for queue in self._queues
        }
        return tuple(IdleWindow(queue, count) for queue, count in counts.items() if count)

    def _listed(self) -> list[str]:
        """Ids of this user's plain jobs that live or were made lately."""
        user = _user()
        ids = self._ask(pbs_commands.living(user)).split()
        # where PBS keeps no history this prints nothing, and ends with 0
        ids += self._ask(pbs_commands.recent(user, time.time())).split()
        return [id for id in ids if pbs_commands.number(id)]

    def _tell(self, native_id: str) -> str | None:
        """What ``qstat`` prints of one job, of which it tells; ``None`` if PBS does not know it."""
        for history in (True, False):
            done = self._asking.run(_found(pbs_commands.job(native_id, history=history)))
            if done.status == pbs_commands.UNKNOWN_JOB:
                return None
            text = _output(done)
            if '"Jobs"' in text:
                return text
            # PBS keeps no history: "-x" is refused, with status 0 and an answer without "Jobs"
        raise SchedulerUnavailable(f"qstat tells nothing of {native_id}: {done.message}")

    def _nodes(self, name: str = "") -> tuple[float, list[Node]]:
        text = self._ask(pbs_commands.nodes(name))
        with _reading("pbsnodes"):
            return pbs_nodes.parse_nodes(text)

    def _ask(self, argv: Sequence[str]) -> str:
        return _output(self._asking.run(_found(argv)))


def _output(done: Done) -> str:
    # the status first: a qstat that failed prints valid JSON all the same
    if done.status != 0:
        raise SchedulerUnavailable(done.message)
    return done.out


def _found(argv: Sequence[str]) -> list[str]:
    return [pbs_commands.find(argv[0], os.environ), *argv[1:]]


@contextmanager
def _reading(command: str) -> Iterator[None]:
    """What cannot be understood tells nothing: it is never half an answer."""
    try:
        yield
    except Unreadable as error:
        raise SchedulerUnavailable(f"{command}: {error}") from None


def _end(told: Attributes) -> float:
    """When the job ends at the latest.

    Raises:
        SchedulerUnavailable: PBS does not tell.
    """
    wall_time = pbs_jobs.seconds((told.get("Resource_List") or {}).get("walltime"))
    started, now = pbs_jobs.moment(told.get("stime")), time.time()
    if wall_time is None:
        raise SchedulerUnavailable("PBS does not tell the job's wall time")
    # the job runs, so it began before now, whatever the server's clock says
    return min(started or now, now) + wall_time


def _capacity(host: str, given: Shape | None, configured: Shape) -> NodeCapacity:
    given = given or Shape()
    return NodeCapacity(
        name=host,
        cores=tuple(range(given.cores or configured.cores or 1)),
        gpus=tuple(range(given.gpus or configured.gpus)),
        memory=given.memory or configured.memory,
    )


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _groups() -> list[str]:
    ids = {os.getegid(), *os.getgroups()}
    return [group.gr_name for group in grp.getgrall() if group.gr_gid in ids]


def make_pbs(settings: Settings, local_dir: Path) -> PbsScheduler:
    """The PBS adapter of a site."""
    secret = (settings.database.url_env, settings.redis.url_env)
    return PbsScheduler(
        site=settings.site.id,
        queues=settings.queues,
        timeout=settings.scheduler.command_timeout,
        down_after=settings.over_after,
        hidden=[name for name in secret if name],
    )
