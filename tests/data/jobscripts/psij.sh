#!/bin/sh
umask 077
export BALSAM_JOB_END=$(($(date +%s) + 90061))
export BALSAM_JOB_QUEUE=gpu BALSAM_JOB_NODES=4
module load gcc
export X="a b"
exec /opt/py/bin/python -m balsam_celery.pilot --site '/lustre/me/my site' --allocation 0a1b2c3d4e5f --queue gpu
