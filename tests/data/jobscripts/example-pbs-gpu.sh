#!/bin/bash
#PBS -N balsam-1f2e3d4c-0a1b2c3d4e5f
#PBS -q debug
#PBS -l select=2:ncpus=32:ngpus=4:system=polaris
#PBS -l place=scatter:excl
#PBS -l walltime=01:00:00
#PBS -r n
#PBS -W tolerate_node_failures=all
#PBS -j oe
#PBS -m n
#PBS -o localhost:/dev/null
#PBS -A myproject
#PBS -l filesystems=home:eagle

umask 077
if ! cd /lustre/me/site/run/allocations/0a1b2c3d4e5f 2>/dev/null; then
  printf 'balsam: %s: no such directory on %s, or it may not be entered\n' /lustre/me/site/run/allocations/0a1b2c3d4e5f "$(uname -n)" >&2
  exit 1
fi
exec >>job.out 2>&1
export BALSAM_JOB_QUEUE=debug BALSAM_JOB_END=$(($(date +%s) + 3600))
module use /soft/modulefiles
module load conda
conda activate base
exec /opt/py/bin/python -m balsam_celery.pilot --site /lustre/me/site --allocation 0a1b2c3d4e5f --queue debug
