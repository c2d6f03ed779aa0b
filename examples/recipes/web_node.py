"""Who a web worker is among the nodes of the mesh."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator

from rabble import Mesh

WORKERS_MAX = 64
#: Where the workers of this machine see which numbers are taken.
FOLDER = os.environ.get("SHOP_RUN", tempfile.gettempdir())
#: By which address the other nodes reach this machine.
HOST = os.environ.get("SHOP_HOST", "127.0.0.1")
#: Of the worker 0; the next one has the next. 0: whatever is free.
PORT = int(os.environ.get("SHOP_PORT", "0"))
#: A node that is always there. With a key, or certificates, it may be on another machine.
MESH = Mesh(cluster="shop", seeds=os.environ.get("SHOP_SEEDS", "127.0.0.1:4000").split(","))


@contextlib.contextmanager
def own_name() -> Iterator[str]:
    """The node id of this worker: `web-0@...`, `web-1@...`; the least that no other worker has.

    The kernel lets go of it with the process, however that ends: so the successor has the same.
    """
    for number in range(WORKERS_MAX):
        with open(os.path.join(FOLDER, f"shop-web-{number}.lock"), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield f"web-{number}@{HOST}:{PORT and PORT + number}"
            return
    raise RuntimeError(f"{WORKERS_MAX} workers have their locks in {FOLDER}")
