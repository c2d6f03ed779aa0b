"""What decides has no I/O, no clock and no chance of its own, and knows no server."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rabble.services.gate

FOLDER = Path(rabble.services.gate.__file__).parent
#: Each refers to those before it only.
ORDER = (
    "messages",
    "policies",
    "estimates",
    "pressure",
    "gate",
    "canaries",
    "canary_gate",
    "gradient_gate",
    "fair_queue",
    "admission_queue",
)
ALLOWED = {
    "__future__", "abc", "collections", "collections.abc", "dataclasses", "math", "typing",
    "rabble.limits", "rabble.texts",
}  # fmt: skip


def imported(name: str) -> set[str]:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    found = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    return found | {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_backwards_and_to_nothing_outside(name: str) -> None:
    before = {f"rabble.services.gate.{each}" for each in ORDER[: ORDER.index(name)]}
    assert imported(name) <= ALLOWED | before
