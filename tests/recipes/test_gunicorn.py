"""gunicorn: workers are forked, and nodes are roused behind the fork."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import Program
from tests.recipes.web import RECIPES, first_order, order, request, run, shop_node, surroundings

pytestmark = pytest.mark.timeout(900)  # the first test may have to make the environment

LISTENING = r"Listening at: http://127\.0\.0\.1:(\d+)"

# The mistake: with `preload_app` this module is imported before the fork.
TOO_EARLY = """
import rabble
from shop import Stock

node = rabble.rouse()
stock = node.spawn(Stock(), "stock")

def application(environ, start_response):
    try:
        node.call(stock, "apple")
    except rabble.ForkedNode as error:
        start_response("500 Internal Server Error", [])
        return [b'"%s"' % str(error).encode()]
"""


@pytest.fixture
def shop() -> Iterator[tuple[Program, str]]:
    node, addr = shop_node()
    with node:
        yield node, addr


def gunicorn(*options: str, **more: Any) -> Program:
    return run(["-m", "gunicorn", "--bind", "127.0.0.1:0", *options], **more)


def test_each_worker_has_a_node_from_behind_the_fork_to_its_end(
    shop: tuple[Program, str], tmp_path: Path
) -> None:
    node, addr = shop
    options = ("--config", "gunicorn_conf.py", "wsgi_shop:application")
    with gunicorn(*options, env=surroundings(tmp_path, addr)) as web:
        port = int(web.expect(LISTENING)[1])
        worker = int(web.expect(r"Booting worker with pid: (\d+)")[1])
        node.expect_all(r"up web-0@\S+ inc", r"up web-1@\S+ inc")
        # One stock for both.
        assert [first_order(port)["left"] for _ in range(4)] == [99, 98, 97, 96]
        assert order(port, "pear", 4) == (409, {"detail": "3 left"})
        # A worker ends in order; gunicorn starts another one, with the name that is free.
        os.kill(worker, signal.SIGTERM)
        name = node.expect(r"down (web-\d)@\S+ incarnation \d+: shutdown")[1]
        node.expect(rf"up {name}@\S+ incarnation")
        assert first_order(port)["left"] == 95
        said = web.end(signal.SIGTERM)
        assert "Traceback" not in said
    node.expect_all(r"down web-0@\S+ .*: shutdown", r"down web-1@\S+ .*: shutdown")


def test_a_node_that_was_roused_before_the_fork_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "too_early.py").write_text(TOO_EARLY)
    options = ("--preload", "--pythonpath", str(RECIPES), "too_early:application")
    with gunicorn(*options, folder=tmp_path) as web:
        port = int(web.expect(LISTENING)[1])
        master = web.process.pid
        worker = int(web.expect(r"Booting worker with pid: (\d+)")[1])
        status, said = request(port, "POST", "/orders", {})
        assert status == 500
        assert said == (
            f"local@127.0.0.1:0 runs in process {master}, and this is its forked child {worker}: "
            "rouse a node of its own here, behind the fork (with gunicorn: in post_fork)"
        )
        # The master's own node ends with it, and no worker is kept by it.
        web.end(signal.SIGTERM)


def test_uvicorns_worker_under_gunicorn_needs_no_hook(
    shop: tuple[Program, str], tmp_path: Path
) -> None:
    node, addr = shop
    options = ("--worker-class", "uvicorn_worker.UvicornWorker", "--workers", "2", "--preload")
    with gunicorn(*options, "fastapi_shop:app", env=surroundings(tmp_path, addr)) as web:
        port = int(web.expect(LISTENING)[1])
        node.expect_all(r"up web-0@\S+ inc", r"up web-1@\S+ inc")
        assert first_order(port)["left"] == 99
        web.end(signal.SIGTERM)
    node.expect_all(r"down web-0@\S+ .*: shutdown", r"down web-1@\S+ .*: shutdown")
