#!/bin/bash
#PBS -N balsam-1f2e3d4c-0a1b2c3d4e5f
#PBS -q gpu
#PBS -l select=4:ncpus=64:ngpus=4
#PBS -l place=scatter:excl
#PBS -l walltime=25:01:01
#PBS -r n
#PBS -W tolerate_node_failures=all
#PBS -j oe
#PBS -m n
#PBS -o localhost:/dev/null
#PBS --account=abc
#PBS --time-min=5
#PBS --qos=high

umask 077
if ! cd '/lustre/me/my site/run/allocations/0a1b2c3d4e5f' 2>/dev/null; then
  printf 'balsam: %s: no such directory on %s, or it may not be entered\n' '/lustre/me/my site/run/allocations/0a1b2c3d4e5f' "$(uname -n)" >&2
  exit 1
fi
exec >>job.out 2>&1
export BALSAM_JOB_QUEUE=gpu BALSAM_JOB_END=$(($(date +%s) + 90061))
module load gcc
export X="a b"
exec /opt/py/bin/python -m balsam_celery.pilot --site '/lustre/me/my site' --allocation 0a1b2c3d4e5f --queue gpu
