#!/bin/sh
module load gcc
export X="a b"
exec /opt/py/bin/python -m balsam_celery.pilot --site '/lustre/me/my site' --allocation 0a1b2c3d4e5f --queue gpu
