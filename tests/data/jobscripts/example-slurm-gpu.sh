#!/bin/bash
#SBATCH --job-name=balsam-1f2e3d4c-0a1b2c3d4e5f
#SBATCH --qos=regular
#SBATCH --nodes=256
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gres=gpu:4
#SBATCH --time=01:00:00
#SBATCH --no-requeue
#SBATCH --no-kill
#SBATCH --chdir=/lustre/me/site/run/allocations/0a1b2c3d4e5f
#SBATCH --output=/lustre/me/site/run/allocations/0a1b2c3d4e5f/job.out
#SBATCH --open-mode=append
#SBATCH --account=m1234_g
#SBATCH --constraint=gpu

umask 077
export BALSAM_JOB_END=$(($(date +%s) + 3600))
module load PrgEnv-gnu cudatoolkit
export MPICH_GPU_SUPPORT_ENABLED=1
exec /opt/py/bin/python -m balsam_celery.pilot --site /lustre/me/site --allocation 0a1b2c3d4e5f --queue regular
