"""Launchers that belong to one batch system and bring their own daemons: ALPS, JSM, Flux.

Their machines cannot be had here. Options come from the manuals that each class names.
"""

from __future__ import annotations

import re

from balsam_celery.errors import SettingsError
from balsam_celery.launchers.base import Launch, Launcher, Ranks

_NODE_ID = re.compile(r"(?:nid0*)?(\d+)")


class Aprun(Launcher):
    """``aprun`` of Cray's ALPS: aprun(1), "Run Applications Using the aprun Command" (HPE S-2496).

    It passes on the whole environment. The loss of a node ends all ranks there are.
    """

    kind = "aprun"
    stays = True

    def launch(self, ranks: Ranks) -> Launch:
        numbers = []
        for node in ranks.nodes:
            found = _NODE_ID.fullmatch(node)
            if found is None:
                raise SettingsError(f"aprun: node {node!r} is no node id such as 'nid00012'")
            numbers.append(found[1])
        argv = [self.path, "-q", "-n", str(ranks.count), "-N", str(ranks.ranks_per_node)]
        argv += ["-d", str(ranks.cores_per_rank), "-cc", "none", "-L", ",".join(numbers)]
        return Launch((*argv, "-b", *self.options, *ranks.argv))


class Jsrun(Launcher):
    """``jsrun`` of IBM's Job Step Manager: "jsrun command", "Explicit Resource File (ERF) format".

    Hosts can be named in a resource file alone (IBM Spectrum LSF 10.1, Job Step Manager 10.4). It
    passes on the whole environment.
    """

    kind = "jsrun"
    stays = True

    def launch(self, ranks: Ranks) -> Launch:
        lines = ["overlapping_rs: allow", "oversubscribe_cpu: allow", "oversubscribe_gpu: allow"]
        cores, gpus = ranks.cores_per_rank, ranks.whole_gpus_per_rank
        number = 0
        for node in ranks.nodes:
            for local in range(ranks.ranks_per_node):
                parts = [f"host: {node}", f"cpu: {_span(local * cores, cores)}"]
                if gpus:
                    first = int(local * ranks.gpus_per_rank)
                    parts.append(f"gpu: {_span(first, gpus)}")
                lines.append(f"rank: {number}: {{ {'; '.join(parts)} }}")
                number += 1
        resources = ranks.file("erf")
        argv = [self.path, "--erf_input", resources]
        argv += ["--exit_on_error", "0" if ranks.survives else "1"]
        files = {resources: "".join(f"{line}\n" for line in lines)}
        return Launch((*argv, *self.options, *ranks.argv), files=files)


def _span(first: int, count: int) -> str:
    return f"{{{first}}}" if count == 1 else f"{{{first}-{first + count - 1}}}"


class Flux(Launcher):
    """``flux run``: flux-run(1), flux-shell(1) of flux-core 0.7x.

    It passes on the whole environment. The loss of a node ends all ranks there are.
    """

    kind = "flux"
    stays = True

    def launch(self, ranks: Ranks) -> Launch:
        argv = [self.path, "run", f"--nodes={len(ranks.nodes)}", f"--ntasks={ranks.count}"]
        argv.append(f"--cores-per-task={ranks.cores_per_rank}")
        if ranks.whole_gpus_per_rank:
            argv.append(f"--gpus-per-task={ranks.whole_gpus_per_rank}")
        argv.append(f"--requires=hosts:{','.join(ranks.nodes)}")
        argv += ["--setopt=cpu-affinity=off", "--setopt=gpu-affinity=off"]
        argv.append("--setopt=exit-timeout=none")
        if not ranks.survives:
            argv.append("--setopt=exit-on-error")
        if ranks.name:
            argv.append(f"--job-name={ranks.name}")
        return Launch((*argv, "--input=/dev/null", *self.options, *ranks.argv))
