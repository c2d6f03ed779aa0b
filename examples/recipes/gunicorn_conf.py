"""How gunicorn runs the shop: a node for each worker, from behind the fork to the worker's end.

gunicorn --config gunicorn_conf.py wsgi_shop:application
"""

from __future__ import annotations

import contextlib
from typing import Any

preload_app = True
workers = 2
worker_class = "gthread"
threads = 4

at_exit = contextlib.ExitStack()


def post_fork(server: Any, worker: Any) -> None:
    """In each worker. What the master has roused before the fork would be of no use here."""
    from web_node import MESH, own_name
    from wsgi_shop import Worker

    import rabble

    name = at_exit.enter_context(own_name())
    Worker.node = at_exit.enter_context(rabble.rouse(name, mesh=MESH))


def worker_exit(server: Any, worker: Any) -> None:
    """When the worker has answered what it had, or was told to give up: say goodbye."""
    at_exit.close()
