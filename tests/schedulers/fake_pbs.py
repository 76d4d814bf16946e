"""A PBS of eight nodes that answers as a real OpenPBS 23.06 was captured to, and runs its jobs.

Run as ``python fake_pbs.py STATE COMMAND ARGUMENTS``. What it prints are captured answers with the
values of its own jobs put in. A job is started by a process of its own (the command ``mom``), in
the home directory, with the environment that PBS gives and a login shell's PATH.

Two things were not captured, and follow what is documented:

- Nodes that are lost. What is said of them was captured (``nodefail-*``, ``pbsnodes-json-down``:
  the job stays R, with all its nodes), but not for how long: the first node's MoM ends a job after
  some minutes (``PBS_MAX_POLL_DOWNTIME`` in OpenPBS's ``src/include/job.h``), unless it has
  ``tolerate_node_failures=all`` (design PP-928 of PBS Pro). Here it does so at once. ``pbs_tmrsh``
  to such a node ends with 255 (``src/cmds/pbs_tmrsh.c``); its words are a guess.
- Nodes that are given back (design PP-339, "node ramp down"; OpenPBS's ``pbs_release_nodes.c``, and
  ``src/server/vnparse.c`` for refusals): never those of the first host, and none at all if one is
  not the job's. The job loses them in ``exec_host`` and ``exec_vnode``, and what it runs there
  ends. The node file stays as it was when the job began, as nothing says otherwise.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from balsam_celery import procs

SAMPLES = Path(__file__).parent.parent / "data" / "openpbs_samples"
SERVER = "pbsserver"
NODES = [f"pbs{number}" for number in range(1, 9)]
#: Seconds between TERM and KILL of a job that is deleted.
KILL_DELAY = 1.0

#: As ``pbs_tmrsh`` starts a process on one of its job's nodes: by the name in the node file, with
#: the job's environment, in the home directory; its output goes to the job's. By FAKE_PBS_HOST the
#: fake knows what runs "on" a node.
TMRSH = """\
#!/bin/bash
host=$1
shift
if [ -z "$PBS_ENVIRONMENT" ] || [ -z "$PBS_JOBID" ] || ! grep -qFx "$host" "$PBS_NODEFILE"; then
    echo "pbs_tmrsh: host \\"$host\\" is not a node in job <$PBS_JOBID>" >&2
    exit 255
fi
lost=${PBS_NODEFILE%/*}/$host.lost
if [ -e "$lost" ]; then
    echo "pbs_tmrsh: tm_poll(spawn): host \\"$host\\" err TM_SUCCESS 15010" >&2
    exit 255
fi
cd || exit
(
    for file in /proc/self/fd/*; do
        [ "${file##*/}" -gt 2 ] && eval "exec ${file##*/}>&-"
    done
    exec env -i HOME="$HOME" PATH=/usr/local/bin:/usr/bin:/bin PBS_ENVIRONMENT=PBS_BATCH \\
        PBS_JOBID="$PBS_JOBID" PBS_NODEFILE="$PBS_NODEFILE" FAKE_PBS_HOST="$PBS_JOBID/$host" \\
        setsid --wait "$@" >/dev/null 2>&1
)
status=$?
if [ -e "$lost" ]; then
    echo "pbs_tmrsh: tm_poll(obit): host \\"$host\\" err TM_SUCCESS 15010" >&2
    exit 255
fi
exit $status
"""

Job = dict[str, Any]


class Fake:
    """The state in a directory: one file for each job."""

    def __init__(self, state: Path) -> None:
        self.state = state

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with (self.state / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def jobs(self) -> list[Job]:
        files = sorted(self.state.glob("*.job"), key=lambda path: int(path.stem))
        return [json.loads(path.read_text()) for path in files]

    def save(self, job: Job) -> None:
        new = self.state / f"{job['number']}.new"
        new.write_text(json.dumps(job))
        new.replace(new.with_suffix(".job"))

    def load(self, id: str) -> Job | None:
        path = self.state / f"{id.partition('.')[0]}.job"
        return json.loads(path.read_text()) if path.exists() else None

    def free(self) -> list[str]:
        """Nodes that no job has and that are there."""
        taken = {node for job in self.jobs() if job["state"] == "R" for node in job["nodes"]}
        return [node for node in NODES if node not in taken and self.lost(node) is None]

    def lost(self, node: str) -> float | None:
        """When the node was lost, ``None`` while it is there."""
        path = self.state / f"{node}.lost"
        return float(path.read_text()) if path.exists() else None

    def lose(self, node: str, ago: float = 0.0) -> None:
        """A node has no power any more; the server has known that for ``ago`` seconds.

        It is not the first one of a job.
        """
        new = self.state / f"{node}.losing"
        new.write_text(str(time.time() - ago))
        new.replace(new.with_suffix(".lost"))
        self.end_on(node)
        with self.locked():
            for job in self.jobs():
                if job["state"] != "R" or node not in job["nodes"]:
                    continue
                assert node != job["nodes"][0]
                if not job["tolerant"]:
                    self.save({**job, "deleted": True})

    def end_on(self, node: str, job: str = "") -> None:
        """End at once what jobs, or one of them, have started on a node by ``pbs_tmrsh``."""
        numbers = [job] if job else [str(one["number"]) for one in self.jobs()]
        marks = frozenset(f"FAKE_PBS_HOST={number}.{SERVER}/{node}" for number in numbers)
        procs.end(procs.Quarry(marks=marks), grace=0)


def main(argv: list[str]) -> int:
    fake = Fake(Path(argv[0]))
    command, arguments = argv[1], argv[2:]
    if command != "mom" and (fake.state / "down").exists():
        captured = command if command in ("qsub", "qdel", "pbsnodes") else "qstat"
        return replay(f"err-serverdown-{captured}")
    with fake.locked() if command != "mom" else contextlib.nullcontext():
        return {
            "qsub": qsub,
            "qstat": qstat,
            "qselect": qselect,
            "qdel": qdel,
            "pbsnodes": pbsnodes,
            "pbs_release_nodes": pbs_release_nodes,
            "mom": mom,
        }[command](fake, arguments)


def replay(name: str, **values: str) -> int:
    """Answer as captured, with some words changed."""
    for stream, suffix in ((sys.stdout, "out"), (sys.stderr, "err")):
        path = SAMPLES / f"{name}.{suffix}"
        text = path.read_text() if path.exists() else ""
        for word, value in values.items():
            text = text.replace(word.replace("_", "."), value)
        stream.write(text)
    return int((SAMPLES / f"{name}.rc").read_text())


def qsub(fake: Fake, arguments: list[str]) -> int:
    assert arguments[:-1] == ["-f"], arguments
    script = Path(arguments[-1]).read_text()
    options: dict[str, str] = {}
    for line in re.findall(r"^#PBS (.*)$", script, re.M):
        option, _, value = line.partition(" ")
        if option == "-l":
            option, _, value = value.partition("=")
        options[option] = value
    if options["-q"] != "workq":
        return replay("err-unknown-queue")
    # processes are known by it: another fake that runs beside must have others
    known = fake.jobs()
    number = known[-1]["number"] + 1 if known else secrets.randbelow(10**7) + 10**6
    select = re.fullmatch(r"(\d+):ncpus=(\d+)(?::mem=\d+kb)?", options["select"])
    assert select is not None, options
    nodes, cores = map(int, select.groups())
    job: Job = {
        "number": number,
        "name": options["-N"],
        "script": script,
        # more jobs than nodes share them: what is waited for in a queue is not tested here
        "nodes": (fake.free() + [node for node in NODES if fake.lost(node) is None])[:nodes],
        "tolerant": options.get("-W") == "tolerate_node_failures=all",
        "cores": cores,
        "wall_time": options["walltime"],
        "queued": time.time(),
        "state": "Q" if nodes > len(NODES) else "R",
        "started": time.time(),
        "exports": dict(os.environ) if "-V" in options else {},
    }
    fake.save(job)
    if job["state"] == "R":
        subprocess.Popen(
            [sys.executable, __file__, str(fake.state), "mom", str(number)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(fake.state / "mom.err").open("a"),
            start_new_session=True,
        )
    return replay("qsub-ok", **{f"60_{SERVER}": f"{number}.{SERVER}"})


def mom(fake: Fake, arguments: list[str]) -> int:
    """Run a job to its end, as ``pbs_mom`` does.

    A login shell reads the script's name. It leads the session by which alone the job's processes
    are known, and when it ends, the rest of its session is killed at once. A TERM ends it.
    """
    job = fake.load(arguments[0])
    assert job is not None
    user = pwd.getpwuid(os.geteuid())
    node_file = fake.state / f"{job['number']}.nodes"
    node_file.write_text("".join(f"{node}\n" * 2 for node in job["nodes"]))
    environment = {
        **job["exports"],
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "PBS_JOBID": f"{job['number']}.{SERVER}",
        "PBS_JOBNAME": job["name"],
        "PBS_NODEFILE": str(node_file),
        "PBS_QUEUE": "workq",
        # in place of /etc/pbs.conf, by which PBS is found where PATH does not lead to it
        "PBS_CONF_FILE": str(fake.state / "pbs.conf"),
        "NCPUS": "1",
        "OMP_NUM_THREADS": "1",
    }
    script = fake.state / f"{job['number']}.SC"
    script.write_text(job["script"])
    script.chmod(0o700)
    process = subprocess.Popen(
        ["/bin/bash"],
        cwd=user.pw_dir,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(f"{shlex.quote(str(script))}\n".encode())
    process.stdin.close()
    asked = None
    while process.poll() is None:
        job = fake.load(arguments[0])
        assert job is not None
        if "deleted" in job and asked is None:
            asked = time.monotonic()
            kill_session(process.pid, signal.SIGTERM)
        late = asked is not None and time.monotonic() > asked + KILL_DELAY
        if late or job["state"] == "F":
            kill_session(process.pid, signal.SIGKILL)
        time.sleep(0.02)
    kill_session(process.pid, signal.SIGKILL)
    with fake.locked():
        job = fake.load(arguments[0])
        assert job is not None
        if job["state"] == "F":
            return 0  # the server has ended it without a word of its node
        code = process.returncode
        fake.save(
            {**job, "state": "F", "ended": time.time(), "code": code if code >= 0 else 256 - code}
        )
    return 0


def kill_session(session: int, number: signal.Signals) -> None:
    """Signal all processes of a session, and no others of the job."""
    for entry in procs.snapshot().values():
        if entry.session == session and entry.lives:
            procs.send(entry.identity, number)


def qselect(fake: Fake, arguments: list[str]) -> int:
    history = arguments[0] == "-x"
    assert arguments[history : 2 + history] == ["-u", pwd.getpwuid(os.geteuid()).pw_name], arguments
    for job in fake.jobs():
        if history or job["state"] != "F":
            print(f"{job['number']}.{SERVER}")
    return 0


def qstat(fake: Fake, arguments: list[str]) -> int:
    if arguments == ["-Q", "-f", "-F", "json"]:
        return replay("qstat-Qf-json")
    if arguments == ["-B", "-f", "-F", "json"]:
        return replay("qstat-Bf-json")
    assert arguments[-4:-1] == ["-f", "-F", "json"], arguments
    id = arguments[-1]
    job = fake.load(id)
    if job is None:
        return replay("qstat-unknown", **{f"99999_{SERVER}": id})
    if job["state"] == "F" and arguments[0] != "-x":
        return replay("qstat-finished-without-x", **{f"61_{SERVER}": id})
    name = {"R": "f-json-running", "Q": "f-json-impossible", "F": "xf-json-finished-EX3"}
    plain = json.loads((SAMPLES / f"qstat-{name[job['state']]}.out").read_text())
    (told,) = plain["Jobs"].values()
    told |= {"Job_Name": job["name"], "qtime": moment(job["queued"])}
    told["Resource_List"]["walltime"] = job["wall_time"]
    if job["state"] != "Q":
        cores = job["cores"]
        told |= {
            "stime": moment(job["started"]),
            "exec_host": "+".join(f"{node}/0*{cores}" for node in job["nodes"]),
            "exec_vnode": "+".join(f"({node}:ncpus={cores})" for node in job["nodes"]),
        }
    if job["state"] == "F":
        substate = 91 if "deleted" in job else 93 if job["code"] else 92
        told |= {"Exit_status": job["code"], "substate": substate, "obittime": moment(job["ended"])}
    plain["Jobs"] = {f"{job['number']}.{SERVER}": told}
    print(json.dumps(plain, indent="\t"))
    return 0


def moment(seconds: float) -> str:
    """As ``qstat`` prints it: in the time zone of its environment."""
    return time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(seconds))


def qdel(fake: Fake, arguments: list[str]) -> int:
    *options, id = arguments
    assert options in ([], ["-W", "force"]), arguments
    job = fake.load(id)
    if job is None:
        return replay("qdel-unknown", **{f"99999_{SERVER}": id})
    if job["state"] == "F":
        return replay("qdel-finished", **{f"61_{SERVER}": id})
    if job["state"] == "Q":
        job |= {"state": "F", "ended": time.time(), "code": 0}
    if options:
        job |= {"state": "F", "ended": time.time(), "code": 265}
    fake.save({**job, "deleted": True})
    return replay("qdel-running")


def pbsnodes(fake: Fake, arguments: list[str]) -> int:
    if arguments == ["-a", "-F", "json"]:
        return replay("pbsnodes-a-json-busy")
    assert arguments[:2] == ["-F", "json"], arguments
    name = arguments[2]
    if name not in NODES:
        return replay("pbsnodes-unknown", nope=name)
    since = fake.lost(name)
    if since is None:
        return replay("pbsnodes-one-offline-json", pbs8=name)
    told = json.loads((SAMPLES / "pbsnodes-json-down.out").read_text().replace("pbs7", name))
    told["timestamp"] = int(time.time())
    jobs = [f"{job['number']}.{SERVER}" for job in fake.jobs() if job["state"] == "R"]
    told["nodes"][name] |= {"last_state_change_time": int(since), "jobs": jobs}
    print(json.dumps(told, indent="\t"))
    return 0


def pbs_release_nodes(fake: Fake, arguments: list[str]) -> int:
    option, id, *nodes = arguments
    assert option == "-j", arguments
    assert nodes, arguments
    job = fake.load(id)
    if job is None or job["state"] != "R":
        print(f"pbs_release_nodes: Request invalid for state of job {id}", file=sys.stderr)
        return 15016 % 256
    head, *others = job["nodes"]
    if head in nodes:
        words = f"Can't free '{head}' since it's on a primary execution host"
    elif missing := [node for node in nodes if node not in others]:
        words = f"node(s) requested to be released not part of the job: {' '.join(missing)}"
    else:
        job["nodes"] = [node for node in job["nodes"] if node not in nodes]
        fake.save(job)
        for node in nodes:
            fake.end_on(node, str(job["number"]))
        return 0
    print(f"pbs_release_nodes: {words}", file=sys.stderr)
    return 15010 % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
