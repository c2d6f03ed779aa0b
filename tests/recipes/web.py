"""What the tests of the web recipes share: the node behind them, and requests."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.programs import Program
from tests.recipes.environment import ROOT, python
from tests.support import PATIENCE_S, until

RECIPES = ROOT / "examples" / "recipes"
#: Seconds. A server imports so much that on a busy machine it takes longer than all other programs.
START_S = 4 * PATIENCE_S


def run(command: Sequence[str], folder: Path = RECIPES, **more: Any) -> Program:
    """A program of the recipes' environment: the arguments of its Python."""
    return Program([python(), *command], folder, patience_s=START_S, **more)


def shop_node(app: str = "shop:start", name: str = "shop@127.0.0.1:0") -> tuple[Program, str]:
    """The node behind the web workers, which says who comes and goes, and its address."""
    command = ["-m", "rabble.cli", "node", name, "--app", app, "--cluster", "shop"]
    node = run([*command, "--log-level", "info"])
    return node, node.expect(r"^ready \w+@(\S+)")[1]


def surroundings(run: Path, seed: str, **more: str) -> Mapping[str, str]:
    """What web_node.py reads of the environment."""
    return {"SHOP_RUN": str(run), "SHOP_SEEDS": seed, **more}


def request(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """The status, and what the body's JSON says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        return answer.status, json.loads(said) if said else None
    finally:
        connection.close()


def order(port: int, item: str = "apple", count: Any = 1) -> tuple[int, Any]:
    return request(port, "POST", "/orders", {"item": item, "count": count})


def first_order(port: int) -> Any:
    """An order as soon as the web node knows the shop; of one apple. What it was answered."""
    answers = []

    def sold() -> bool:
        try:
            answers.append(order(port))
        except ConnectionRefusedError:
            # A server says that it has started a moment before it listens.
            return False
        status, said = answers[-1]
        assert status in (200, 503), said
        return status == 200

    until(sold)
    return answers[-1][1]
