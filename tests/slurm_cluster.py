"""A private Slurm for tests: eight nodes on this machine, gone at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import procs
from balsam_celery.procs import Identity
from tests.waiting import wait_until

#: Names of the nodes; each has 4 CPUs by its configuration, whatever the machine has.
NODES = tuple(f"n{number}" for number in range(1, 9))
_TEMPLATE = Path(__file__).parent / "slurm" / "slurm.conf.in"
#: Below this, a node keeps what it starts; see there.
_NODE = (sys.executable, str(Path(__file__).parent / "slurm" / "node.py"))
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol")
_SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_START_TRIES = 3


def missing_programs() -> list[str]:
    """What of Slurm and munge is not installed here."""
    return [name for name in _PROGRAMS if shutil.which(name, path=_SEARCH) is None]


class SlurmCluster:
    """One munged, one slurmctld and eight slurmd, with ports, key and directory of their own.

    All run as the current user, and only this user can submit jobs if it is not root.
    ``min_job_age`` is how long, in seconds (at least 2), an ended job's record is kept.
    """

    def __init__(self, min_job_age: int = 300) -> None:
        self.min_job_age = min_job_age
        # short: the sockets lie here, and their paths are limited to 108 bytes
        self.directory = Path(tempfile.mkdtemp(prefix="balsam-slurm-")).resolve()
        self.configuration = self.directory / "slurm.conf"
        self._munged: subprocess.Popen[bytes] | None = None
        self._controller: subprocess.Popen[bytes] | None = None
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        #: Of nodes whose slurmd was killed: what keeps the steps that live on.
        self._former: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find this cluster, beside the usual environment."""
        return {"SLURM_CONF": str(self.configuration)}

    def start(self) -> None:
        """Start everything and wait until all nodes are idle."""
        for name in ("munge", "state", "log", "spool", *(f"spool/{node}" for node in NODES)):
            (self.directory / name).mkdir(mode=0o755)
        self._start_munged()
        for left in reversed(range(_START_TRIES)):
            self._configure()
            if self._try_start():
                break
            # somebody may have taken a port since we looked
            assert left, f"Slurm does not start: {self._logs()}"
            self._stop_slurm()
        wait_until(self._all_idle, 60, "all nodes of Slurm are idle")

    def stop(self) -> None:
        """End all processes of this cluster, those of its jobs too, and remove its directory."""
        self._stop_slurm()
        if self._munged is not None:
            _end(self._munged)
            self._munged = None
        wait_until(self._kill_the_rest, 30, "all processes of Slurm are gone")
        for former in self._former:
            former.wait(20)
        shutil.rmtree(self.directory)

    def run(
        self, *argv: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a client of this cluster; with ``check`` it has to succeed."""
        done = subprocess.run(
            argv,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}: {done.stderr}"
        return done

    def popen(self, *argv: str) -> subprocess.Popen[bytes]:
        """Start a command as a client of this cluster; the caller ends it."""
        return subprocess.Popen(
            argv,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def node_states(self) -> dict[str, str]:
        """State of each node as ``sinfo`` says it (``idle``, ``down*``); empty if it fails."""
        done = self.run("sinfo", "--noheader", "-N", "-p", "debug", "-o", "%N %T", check=False)
        return dict(line.split() for line in done.stdout.splitlines() if not done.returncode)

    def stop_controller(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop slurmctld by a signal; it keeps its state, and the jobs run on."""
        assert self._controller is not None, "the controller does not run"
        _end(self._controller, number)
        self._controller = None

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        process = self._spawn("slurmctld", "-D", "-f", str(self.configuration))
        self._controller = process
        wait_until(lambda: self._pings() or process.poll() is not None, 30, "slurmctld answers")
        assert process.poll() is None, f"slurmctld does not start: {self._logs()}"

    def controller(self) -> list[Identity]:
        """The process of slurmctld, if it runs."""
        found = self._controller and procs.identity(self._controller.pid)
        return [found] if found is not None else []

    def slurmd(self, name: str) -> list[Identity]:
        """Processes of a node's slurmd, if it runs; those of steps have another name."""
        node = self._nodes.get(name)
        found = []
        for entry in procs.descendants([node.pid]).values() if node is not None else ():
            with contextlib.suppress(OSError):
                comm = Path(f"/proc/{entry.identity.pid}/comm").read_text().strip()
                if entry.lives and comm == "slurmd":
                    found.append(entry.identity)
        return found

    def kill_slurmd(self, name: str) -> None:
        """End a node's slurmd by SIGKILL; the steps on the node run on."""
        doomed = self.slurmd(name)
        self._former.append(self._nodes.pop(name))
        for process in doomed:
            procs.send(process, signal.SIGKILL)

    def start_slurmd(self, name: str) -> None:
        """Start the slurmd that was killed; it finds the node's steps again."""
        self._start_node(name)

    def down_node(self, name: str) -> None:
        """Let a node die (its slurmd and all processes of its steps) and say so to Slurm.

        Nothing on the node can report its end, as when the power fails.
        """
        self._kill_node(name)
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=test")

    def resume_node(self, name: str) -> None:
        """Start a node that is down and wait until it is idle."""
        self._start_node(name)
        wait_until(lambda: self.node_states().get(name) == "idle", 60, f"{name} is idle")

    def processes(self) -> set[int]:
        """Pids of all processes of this cluster: daemons, clients, steps and what they started."""
        wanted = f"SLURM_CONF={self.directory}/".encode()
        daemons = [self._munged, self._controller, *self._nodes.values()]
        found = {one.pid for one in daemons if one is not None and one.poll() is None}
        for pid in _pids():
            with contextlib.suppress(OSError):  # it ended, or it is not ours
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if any(entry.startswith(wanted) for entry in environment):
                    found.add(pid)
        return (found | _descendants(found)) - {os.getpid()}

    def _start_munged(self) -> None:
        directory = self.directory / "munge"
        (directory / "key").touch(mode=0o600)
        (directory / "key").write_bytes(secrets.token_bytes(128))
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid"}
        names |= {"log-file": "log", "seed-file": "seed"}
        places = [f"--{option}={directory / name}" for option, name in names.items()]
        # it warns that others cannot reach its socket, and starts when forced: none of them shall
        process = self._spawn("munged", "--foreground", "--force", *places)
        self._munged = process
        wait_until(
            lambda: (directory / "socket").exists() or process.poll() is not None,
            20,
            "munged listens",
        )
        assert process.poll() is None, f"munged does not start: {self._logs()}"

    def _configure(self) -> None:
        controller, *ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
            " CPUs=4 RealMemory=2000 State=UNKNOWN"
            for name, port in zip(NODES, ports, strict=True)
        ]
        text = _TEMPLATE.read_text(encoding="utf-8")
        for name, value in {
            "HOST": host,
            "CONTROLLER_PORT": str(controller),
            "USER": pwd.getpwuid(os.geteuid()).pw_name,
            "DIRECTORY": str(self.directory),
            "MIN_JOB_AGE": str(self.min_job_age),
            # MPICH names shared memory by job and step, and killed ranks leave it behind: two
            # clusters of one machine must not have the same numbers
            "FIRST_JOB_ID": str(1 + secrets.randbelow(10_000_000)),
            "NODES": "\n".join(nodes),
        }.items():
            text = text.replace(f"@{name}@", value)
        self.configuration.write_text(text, encoding="utf-8")

    def _try_start(self) -> bool:
        controller = self._spawn("slurmctld", "-D", "-f", str(self.configuration))
        self._controller = controller
        for name in NODES:
            self._start_node(name)
        started = [controller, *self._nodes.values()]

        def decided() -> bool:
            return self._pings() or any(one.poll() is not None for one in started)

        wait_until(decided, 60, "slurmctld answers")
        return all(one.poll() is None for one in started)

    def _start_node(self, name: str) -> None:
        self._nodes[name] = self._spawn(
            "slurmd", "-D", "-N", name, "-f", str(self._node_configuration(name)), below=_NODE
        )

    def _node_configuration(self, name: str) -> Path:
        """The cluster's, with an ``mpi.conf`` beside it that is the node's own.

        The nodes have one ``/tmp``, where the PMIx of each would make the same directory.
        """
        directory = self.directory / "spool" / name
        (directory / "mpi.conf").write_text(f"PMIxCliTmpDirBase={directory}\n", encoding="utf-8")
        link = directory / self.configuration.name
        link.unlink(missing_ok=True)
        link.symlink_to(self.configuration)
        return link

    def _spawn(
        self, program: str, *arguments: str, below: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        path = shutil.which(program, path=_SEARCH)
        assert path is not None, f"{program} is not installed"
        with (self.directory / "log" / f"{program}.output").open("ab") as log:
            return subprocess.Popen(
                [*below, path, *arguments],
                env={**os.environ, **self.environment},
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt at the terminal is for the tests alone
            )

    def _pings(self) -> bool:
        return self.run("scontrol", "ping", check=False).returncode == 0

    def _all_idle(self) -> bool:
        ended = [name for name, process in self._nodes.items() if process.poll() is not None]
        assert not ended, f"slurmd of {ended} ended: {self._logs()}"
        return self.node_states() == dict.fromkeys(NODES, "idle")

    def _stop_slurm(self) -> None:
        if self._controller is not None:
            self.stop_controller()
        for name in NODES:
            self._kill_node(name)

    def _kill_node(self, name: str) -> None:
        node = self._nodes.pop(name, None)
        if node is None:
            return
        frozen: set[int] = set()

        def freeze() -> bool:
            running = _descendants({node.pid}) - frozen
            for pid in running:
                _signal(pid, signal.SIGSTOP)
            frozen.update(running)
            return not running

        # all at once: no slurmstepd must live to report its tasks' ends, and nobody forks
        wait_until(freeze, 30, f"all processes of {name} are stopped")
        for pid in frozen:
            _signal(pid, signal.SIGKILL)
        wait_until(lambda: not _descendants({node.pid}), 30, f"the processes of {name} are gone")
        node.kill()
        node.wait(20)

    def _kill_the_rest(self) -> bool:
        left = self.processes()
        for pid in left:
            _signal(pid, signal.SIGKILL)
        return not left

    def _logs(self) -> str:
        files = [*sorted(self.directory.glob("log/*")), self.directory / "munge" / "log"]
        texts = [path.read_text(errors="replace")[-2000:] for path in files if path.exists()]
        return "\n".join(texts)


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now, all different."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
        return ports


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _descendants(roots: set[int]) -> set[int]:
    """Living processes below ``roots``, these not included; zombies do not count."""
    children: dict[int, list[int]] = {}
    living = set()
    for pid in _pids():
        with contextlib.suppress(OSError):  # it ended
            # the command's name may contain blanks and parentheses: the fields come after it
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(pid)
            if fields[0] != "Z":
                living.add(pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in found:
                found.add(child)
                todo.append(child)
    return (found - roots) & living


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
    process.send_signal(number)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Skip where Slurm or munge is not installed, but fail when CI=true."""
    missing = missing_programs()
    if missing:
        message = f"Slurm or munge is not installed: no {', '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def slurm_cluster(slurm_installed: None) -> Iterator[SlurmCluster]:
    """One Slurm for the run; its tests leave it with all nodes idle."""
    cluster = SlurmCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def own_slurm_cluster(slurm_installed: None) -> Iterator[SlurmCluster]:
    """A Slurm for one test, when what it does to nodes or records would hinder the next.

    Example: after a node died under a step of several nodes, the step's first node stays
    "completing" for a minute.
    """
    cluster = SlurmCluster(min_job_age=2)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
