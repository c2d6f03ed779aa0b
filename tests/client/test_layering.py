"""The layout of the client: imports point one way, and need neither the mesh nor the core."""

from __future__ import annotations

import ast

import pytest

from tests.cimports import CORE

CLIENT = CORE.parent / "client"
#: Each module imports those before it only.
ORDER = (
    "errors",
    "limits",
    "addresses",
    "events",
    "values",
    "encoding",
    "cursor",
    "instances",
    "decoding",
    "codec",
    "framing",
    "protocol",
    "pushes",
    "dialling",
    "retries",
    "arguments",
    "sockets",
    "connection",
    "blocking",
    "aio",
)
#: What there is without the compiled core. Its errors are one of the modules written in Python.
BELOW = {
    "rabble._classes",
    "rabble._core.errors",
    "rabble.errors",
    "rabble.registry",
    "rabble.request",
    "rabble.texts",
    "rabble.timeouts",
}
#: What does something: the rest has no I/O, and its clock and its random source are handed in.
OUTSIDE = {"asyncio", "os", "random", "select", "socket", "ssl", "subprocess", "time"}
ACTS = {"sockets", "connection", "blocking", "aio"}


def imported(name: str) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse((CLIENT / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module or "")
    return modules


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in CLIENT.glob("*.py")} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_backwards_and_need_no_core(name: str) -> None:
    inside = {f"rabble.client.{each}" for each in ORDER[: ORDER.index(name)]}
    found = {module for module in imported(name) if module.split(".")[0] == "rabble"}
    assert found <= inside | BELOW


@pytest.mark.parametrize("name", [name for name in ORDER if name not in ACTS])
def test_what_decides_has_no_io_no_clock_and_no_chance(name: str) -> None:
    assert not {module.split(".")[0] for module in imported(name)} & OUTSIDE
