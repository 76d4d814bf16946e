#!/bin/bash
#SBATCH --job-name=balsam-1f2e3d4c-0a1b2c3d4e5f
#SBATCH --partition=short
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=01:00:00
#SBATCH --no-requeue
#SBATCH --no-kill
#SBATCH --chdir=/scratch/me/balsam-runs/allocations/0a1b2c3d4e5f
#SBATCH --output=/scratch/me/balsam-runs/allocations/0a1b2c3d4e5f/job.out
#SBATCH --open-mode=append
#SBATCH --account=chem
#SBATCH --mail-type=NONE

umask 077
export BALSAM_JOB_END=$(($(date +%s) + 3600))
source "$HOME/miniforge3/etc/profile.d/conda.sh"
conda activate chemistry
exec /opt/py/bin/python -m balsam_celery.pilot --site /lustre/me/site --allocation 0a1b2c3d4e5f --queue short
