"""What runs in front of each rank: it marks, brands and binds the rank, then becomes its program.

Launchers differ in how they bind, and two launches on one node know nothing of each other's cores.
So they are told to bind nothing, and each rank binds itself to what placement gave it on its node.
This is one text for a POSIX shell, on every node in milliseconds, with no file to be found there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from balsam_celery.resources import GpuShare, NodeShare

#: Variables that say which GPUs a program may use: NVIDIA's, AMD's, Intel's.
GPU_MASKS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
#: On a node with AMD's GPUs only that of AMD's lowest layer is set. HIP and OpenCL, above it, count
#: by theirs in what it has left: there GPU 1 alone is number 0, and the same number in both leaves
#: none (https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html).
AMD_MASK = "ROCR_VISIBLE_DEVICES"
RELATIVE_MASKS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
#: All that the shim sets or takes away.
_OURS = tuple(dict.fromkeys((*GPU_MASKS, *RELATIVE_MASKS)))
_AMD_DRIVER, _NVIDIA_DRIVER = "/dev/kfd", "/dev/nvidiactl"
_EPSILON = 1e-6
#: Becomes the program whose arguments follow, each with ``=`` in front: so no launcher sees one
#: that it would take for its own.
_TEXT = r"""
mark=$1 brand=$2 per_node=$3 how=$4 masks=$5 places=$6
shift 6
export "$mark"
[ -z "$brand" ] || prlimit --pid $$ --rttime="$brand:" 2>/dev/null
rank=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${PMI_RANK:-${PALS_RANKID:-${ALPS_APP_PE:-\
${JSM_NAMESPACE_RANK:-${FLUX_TASK_RANK:-$SLURM_PROCID}}}}}}}
local=${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-${PALS_LOCAL_RANKID:-\
${JSM_NAMESPACE_LOCAL_RANK:-${FLUX_TASK_LOCAL_ID:-$SLURM_LOCALID}}}}}
place=
if [ -n "$places" ] && [ -z "$rank$local" ]; then
  echo 'balsam: this launcher does not number its ranks: they are not bound' >&2
elif [ -n "$places" ]; then
  host=${SLURMD_NODENAME:-$(uname -n)}
  local=$((${local:-$rank} % per_node))
  [ "$how" = node ] || local=$rank
  for one in $places; do
    case $one in
      "$local="*) [ -n "$place" ] || place=${one#*=} ;;
      "${host%%.*}.$local="*) place=${one#*=} ;;
    esac
  done
fi
for one do
  shift
  set -- "$@" "${one#=}"
done
if [ -n "$place" ]; then
  gpus=${place#*/}
  if [ "$gpus" != - ]; then
    amd=
    [ ! -e /dev/kfd ] || [ -e /dev/nvidiactl ] || amd=amd
    for one in $masks; do
      case $amd$one in
        amdROCR_*|CUDA_*|ROCR_*|ZE_*) export "$one=$gpus" ;;
        amd*) unset "$one" ;;
      esac
    done
  fi
  cores=${place%/*}
  if [ -n "$cores" ] && command -v taskset >/dev/null; then
    exec taskset -c "$cores" "$@"
  elif [ -n "$cores" ]; then
    echo 'balsam: there is no taskset here: ranks are not bound' >&2
  fi
fi
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Place:
    """What one rank gets of its node: core ids (empty: not bound), GPUs (``None``: not masked)."""

    cores: tuple[int, ...] = ()
    gpus: tuple[int, ...] | None = None


def has_amd_gpus() -> bool:
    """Tell whether this host's GPUs are AMD's, as the shim tells it of its own."""
    return Path(_AMD_DRIVER).exists() and not Path(_NVIDIA_DRIVER).exists()


def masked(gpus: Sequence[int], *, amd: bool) -> dict[str, str | None]:
    """Variables by which a program sees these GPUs alone; ``None`` for what must not be set."""
    mask = ",".join(map(str, gpus))
    if amd:
        return {**dict.fromkeys(RELATIVE_MASKS), AMD_MASK: mask}
    return dict.fromkeys(GPU_MASKS, mask)


def divide(share: NodeShare, ranks: int, *, pin: bool) -> tuple[Place, ...]:
    """What each of ``ranks`` ranks gets of what a task was given on a node.

    Cores are dealt out in order, evenly, the first ranks getting one more where it does not come
    out. So are GPUs: a rank with less than one GPU sees one, which it shares.

    Args:
        pin: bind the ranks to their cores.
    """
    least, more = divmod(len(share.cores), ranks)
    gpus = _divide_gpus(share.gpus, ranks)
    places = []
    first = 0
    for rank in range(ranks):
        last = first + least + (rank < more)
        # too few cores: all ranks use all of them
        cores = share.cores[first:last] if least else share.cores
        places.append(Place(cores if pin else (), gpus[rank] if share.gpus else None))
        first = last
    return tuple(places)


def _divide_gpus(gpus: Sequence[GpuShare], ranks: int) -> list[tuple[int, ...]]:
    left = {share.index: share.fraction for share in gpus}
    each = sum(left.values()) / ranks
    dealt = []
    for _ in range(ranks):
        wanted = each
        got: list[int] = []
        if each < 1 - _EPSILON:
            # one that can hold all of it, else the one with the most
            fitting = [index for index, free in left.items() if free > each - _EPSILON]
            index = fitting[0] if fitting else max(left, key=lambda one: left[one], default=-1)
            got = [index] if left else []
            if got:
                left[index] -= each
        else:
            for index, free in left.items():
                if wanted > _EPSILON and free > _EPSILON:
                    got.append(index)
                    left[index] = max(0.0, free - wanted)
                    wanted -= free
        dealt.append(tuple(got))
    return dealt


def in_front(
    argv: Sequence[str],
    places: Mapping[str, Sequence[Place]],
    *,
    mark: str,
    brand: int = 0,
    by_rank: bool = False,
    own: Collection[str] = (),
) -> tuple[str, ...]:
    """``argv`` with the shim in front.

    Args:
        places: node → what each of its ranks gets; the same number of ranks on each.
        mark: ``NAME=VALUE`` for the ranks' environment.
        brand: number of their brand; 0: none.
        by_rank: nodes are told from each other by the ranks' numbers alone, which go through
            ``places`` in order; else by their names, and ranks may be numbered in any order.
        own: variables that the user has set, which stay; others are set to a rank's GPUs.
    """
    per_node = len(next(iter(places.values())))
    table = _by_rank(places) if by_rank else _by_node(places)
    if all(place == Place() for ranks in places.values() for place in ranks):
        table = {}
    text = " ".join(f"{key}={_written(place)}" for key, place in table.items())
    how = "rank" if by_rank else "node"
    masks = " ".join(name for name in _OURS if name not in own)
    arguments = [mark, str(brand or ""), str(per_node), how, masks, text]
    return ("/bin/sh", "-c", _TEXT, "rank", *arguments, *(f"={part}" for part in argv))


def _by_rank(places: Mapping[str, Sequence[Place]]) -> dict[str, Place]:
    dealt = [place for ranks in places.values() for place in ranks]
    return {str(rank): place for rank, place in enumerate(dealt)}


def _by_node(places: Mapping[str, Sequence[Place]]) -> dict[str, Place]:
    """What most nodes have, by local rank, and what others have, by node and local rank."""
    usual = Counter(map(tuple, places.values())).most_common(1)[0][0]
    table = {str(local): place for local, place in enumerate(usual)}
    for node, ranks in places.items():
        if tuple(ranks) != usual:
            short = node.partition(".")[0]
            table |= {f"{short}.{local}": place for local, place in enumerate(ranks)}
    return table


def _written(place: Place) -> str:
    gpus = "-" if place.gpus is None else ",".join(map(str, place.gpus))
    return f"{','.join(map(str, place.cores))}/{gpus}"
