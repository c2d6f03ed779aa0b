"""uvicorn and FastAPI: each worker is a node while its application's lifespan is open."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import Program
from tests.recipes.web import RECIPES, first_order, order, request, run, shop_node, surroundings
from tests.support import held_ports, until

pytestmark = pytest.mark.timeout(900)  # the first test may have to make the environment

RUNNING = r"Uvicorn running on http://127\.0\.0\.1:(\d+)"
#: Only now somebody listens at the port.
STARTED = "Application startup complete"


@pytest.fixture
def shop() -> Iterator[tuple[Program, str]]:
    node, addr = shop_node()
    with node:
        yield node, addr


def uvicorn(*options: str, **more: Any) -> Program:
    return run(["-m", "uvicorn", "fastapi_shop:app", *options], **more)


def test_a_worker_is_a_node_for_as_long_as_it_serves(
    shop: tuple[Program, str], tmp_path: Path
) -> None:
    node, addr = shop
    # A socket that is handed over, as process managers do.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        with uvicorn("--fd", str(fd), env=surroundings(tmp_path, addr), pass_fds=[fd]) as web:
            web.expect(STARTED)
            assert first_order(port) == {"left": 99, "served_by": "web-0"}
            assert order(port, "pear", 4) == (409, {"detail": "3 left"})
            assert order(port, "pear", 3) == (200, {"left": 0, "served_by": "web-0"})
            # FastAPI refuses it, and nobody is asked.
            assert order(port, "apple", "many")[0] == 422
            status, who = request(port, "GET", "/node")
            assert (status, who["up"]) == (200, ["shop"])
            node.expect(rf"up web-0@\S+ incarnation {who['incarnation']}")
            # uvicorn ends by the signal itself, so what is not ended in the lifespan never is.
            said = web.end(signal.SIGTERM, status=-signal.SIGTERM)
            assert "Application shutdown complete" in said
    # It said goodbye.
    node.expect(rf"down web-0@\S+ incarnation {who['incarnation']}: shutdown")
    node.end(signal.SIGTERM)


def test_while_the_shop_is_gone_clients_are_told_to_come_back(tmp_path: Path) -> None:
    node, addr = shop_node()
    with node, uvicorn("--port", "0", env=surroundings(tmp_path, addr)) as web:
        port = int(web.expect_all(RUNNING, STARTED)[0][1])
        first_order(port)
        node.end(signal.SIGTERM)
        until(lambda: request(port, "GET", "/node")[1]["up"] == [])
        assert order(port) == (503, {"detail": "the shop is closed"})
        again, _ = shop_node(name=f"shop@{addr}")
        with again:
            # A new shop, with all its apples.
            assert first_order(port)["left"] == 99
            web.end(signal.SIGINT)


def test_each_worker_is_a_node_and_a_successor_has_its_name(
    shop: tuple[Program, str], tmp_path: Path
) -> None:
    node, addr = shop
    # A worker that comes late on a busy machine is not to be taken for dead.
    options = ("--port", "0", "--workers", "2", "--timeout-worker-healthcheck", "60")
    with uvicorn(*options, env=surroundings(tmp_path, addr)) as web:
        port = int(web.expect(RUNNING)[1])
        worker = int(web.expect(r"Started server process \[(\d+)\]")[1])
        node.expect_all(r"up web-0@\S+ inc", r"up web-1@\S+ inc")
        web.expect_all(STARTED)
        # One stock for all of them.
        left = [first_order(port)["left"] for _ in range(6)]
        assert left == [99, 98, 97, 96, 95, 94]
        # One is killed: uvicorn starts another one, which has the name that is free.
        os.kill(worker, signal.SIGKILL)
        name = node.expect(r"down (web-\d)@\S+ incarnation \d+: lost")[1]
        node.expect(rf"up {name}@\S+ incarnation")
        assert first_order(port)["left"] == 93
        web.end(signal.SIGTERM)
    node.expect_all(r"down web-0@\S+ incarnation \d+: shutdown", r"down web-1@\S+ .*: shutdown")


def test_a_reloaded_application_has_the_name_and_the_port_of_the_one_before(
    shop: tuple[Program, str], tmp_path: Path
) -> None:
    node, addr = shop
    for name in ("fastapi_shop.py", "shop.py", "web_node.py"):
        shutil.copy(RECIPES / name, tmp_path)
    options = ("--port", "0", "--reload", "--reload-dir", str(tmp_path))
    with held_ports(1) as (node_port,):
        env = surroundings(tmp_path, addr, SHOP_PORT=str(node_port))
        with uvicorn(*options, env=env, folder=tmp_path) as web:
            port = int(web.expect_all(RUNNING, STARTED)[0][1])
            assert first_order(port)["left"] == 99
            before = request(port, "GET", "/node")[1]
            assert before["node"] == f"web-0@127.0.0.1:{node_port}"
            program = tmp_path / "fastapi_shop.py"
            program.write_text(program.read_text().replace("left=left", "left=-left"))
            web.expect("Reloading")
            node.expect(rf"down web-0@\S+ incarnation {before['incarnation']}: shutdown")
            node.expect(rf"up web-0@127\.0\.0\.1:{node_port} incarnation")
            assert first_order(port)["left"] == -98
            after = request(port, "GET", "/node")[1]
            assert after["node"] == before["node"]
            assert after["incarnation"] > before["incarnation"]
            web.end(signal.SIGINT)
