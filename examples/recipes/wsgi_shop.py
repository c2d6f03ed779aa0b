"""The shop as a plain WSGI application, without a framework and without asyncio.

gunicorn_conf.py rouses a node in each worker and hands it over here.
"""

from __future__ import annotations

import http
import json
from collections.abc import Callable, Iterable
from typing import Any

from shop import Order, Sold

import rabble


class Worker:
    """What this worker process has: its node, between `post_fork` and `worker_exit`."""

    node: rabble.Node


def order(item: str, count: int) -> tuple[int, dict[str, Any]]:
    """The status of the answer, and its body."""
    node = Worker.node
    try:
        stock = node.names.whereis("stock")
        if stock is None:
            return 503, {"detail": "the shop is closed"}
        answer = node.call(stock, Order(item, count), timeout=10)
    except rabble.RabbleError as error:
        return 503, {"detail": str(error)}
    if isinstance(answer, Sold):
        return 200, {"left": answer.left, "served_by": node.node_id.name}
    return 409, {"detail": f"{answer.left} left"}


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = json.loads(environ["wsgi.input"].read())
    status, answer = order(body["item"], body["count"])
    start_response(
        f"{status} {http.HTTPStatus(status).phrase}", [("Content-Type", "application/json")]
    )
    return [json.dumps(answer).encode()]
