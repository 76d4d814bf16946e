"""Flower for a site: ``celery -A balsam_celery flower --conf=…/flowerconfig.py``.

Flower runs this file and takes each global name that is one of its options; the other names are
ours and start with an underscore, so that none becomes an option by accident. What is set here
wins over ``FLOWER_*`` variables of the environment.
"""

from celery.events.state import Task as _Task
from flower.views.monitor import Metrics as _Metrics
from tornado.web import authenticated as _authenticated

from balsam_celery import site as _site_module

_site = _site_module.find()

# Only the site's owner: from this machine, with the password that `balsam init` made. Basic
# authentication guards the pages and the API alike (Flower refuses API calls without it).
address = _site.settings.flower.host
port = _site.settings.flower.port
basic_auth = ["balsam:" + _site.secret("flower")]
unix_socket = ""
xheaders = False
debug = False

# Flower answers /metrics to everyone, and its labels are the names of tasks and workers. All that
# stays open is /healthcheck, which says OK and no more.
if not hasattr(_Metrics.get, "__wrapped__"):
    _Metrics.get = _authenticated(_Metrics.get)

# Flower's persistent mode keeps a pickle; there is none in this package (R10). SQL is the record:
# after a restart Flower shows what happens from then on.
persistent = False
# about 6 kB each
max_tasks = 10_000
# Node workers go with their allocations: forget them ten minutes later.
purge_offline_workers = 600

# Answers come late from a busy node; Flower waits this long (ms) in the background.
inspect_timeout = 3000.0
enable_events = True
auto_refresh = True
natural_time = True
tasks_columns = "name,args,state,worker,received,started,runtime,retries,result,uuid"


def format_task(task: _Task) -> _Task:
    """Keep a page readable: a result's output tails are long, and `balsam log` shows them whole."""
    for name in ("args", "kwargs", "result"):
        value = getattr(task, name, None)
        if isinstance(value, str) and len(value) > 1000:
            setattr(task, name, value[:1000] + " …")
    return task
