#!/bin/bash
#SBATCH --job-name=balsam-1f2e3d4c-0a1b2c3d4e5f
#SBATCH --partition=gpu
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gres=gpu:4
#SBATCH --time=25:01:01
#SBATCH --no-requeue
#SBATCH --no-kill
#SBATCH --chdir='/lustre/me/my site/run/allocations/0a1b2c3d4e5f'
#SBATCH --output='/lustre/me/my site/run/allocations/0a1b2c3d4e5f/job.out'
#SBATCH --open-mode=append
#SBATCH --account=abc
#SBATCH --time-min=5
#SBATCH --qos=high

umask 077
export BALSAM_JOB_END=$(($(date +%s) + 90061))
module load gcc
export X="a b"
exec /opt/py/bin/python -m balsam_celery.pilot --site '/lustre/me/my site' --allocation 0a1b2c3d4e5f --queue gpu
