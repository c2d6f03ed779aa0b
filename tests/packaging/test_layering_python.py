"""The layout is the architecture: the Python above the core has no circle of imports."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.cimports import CORE, PACKAGE

SOURCES = CORE.parent


def python_modules() -> dict[str, Path]:
    """Each module of the package that is written in Python, by its name, but those of the core."""
    found = {}
    for source in SOURCES.rglob("*.py"):
        parts = source.relative_to(SOURCES.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not f"{name}.".startswith(f"{PACKAGE}."):
            found[name] = source
    return found


def imported(name: str, source: Path, known: Iterable[str]) -> set[str]:
    """The modules that one imports anywhere: in functions and under TYPE_CHECKING, too."""
    known = set(known)
    found = set()
    package = name if source.stem == "__init__" else name.rpartition(".")[0]
    for statement in ast.walk(ast.parse(source.read_text())):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            base = statement.module or ""
            if statement.level:
                up = package.split(".")[: len(package.split(".")) - statement.level + 1]
                base = ".".join([*up, *([base] if base else [])])
            for alias in statement.names:
                # A module of a package, or what another module defines.
                inside = f"{base}.{alias.name}"
                found.add(inside if inside in known else base)
    return (found & known) - {name}


@functools.cache
def references() -> dict[str, set[str]]:
    modules = python_modules()
    return {name: imported(name, source, modules) for name, source in modules.items()}


def circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """The modules of one circle; none if there is no circle."""
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            found = follow(other, [*way, name])
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := follow(name, []))), [])


def reachable(start: str, edges: Mapping[str, Iterable[str]]) -> set[str]:
    """All that a module stands on."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for other in edges.get(waiting.pop(), ()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def test_imports_are_read_from_the_sources() -> None:
    edges = references()
    assert "rabble.process" in edges["rabble.services.service"]
    assert "rabble.services.service" in edges["rabble.node"]
    # In a function only, and under TYPE_CHECKING only.
    assert "rabble.bench.report" in edges["rabble.cli.bench"]
    assert "rabble.process" in edges["rabble.cluster.remote_spawn"]


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_python_imports_have_no_circle() -> None:
    assert circle(references()) == []


@pytest.mark.parametrize("above", ["rabble", "rabble.node", "rabble._shutdown"])
@pytest.mark.parametrize(
    "below",
    [
        "rabble._runtime",
        "rabble.hooks",
        "rabble.services",
        "rabble.services.mailbox",
        "rabble.services.service",
        "rabble.cluster.server",
    ],
)
def test_what_a_node_is_made_of_knows_no_node(below: str, above: str) -> None:
    edges = references()
    assert {below, above} <= set(edges)
    assert above not in reachable(below, edges)


def test_services_use_nothing_private_of_their_node() -> None:
    private = [
        f"{source.name}:{part.lineno}: {part.attr}"
        for name, source in python_modules().items()
        if name.startswith("rabble.services.") or name in ("rabble.hooks", "rabble._runtime")
        for part in ast.walk(ast.parse(source.read_text()))
        if isinstance(part, ast.Attribute)
        and part.attr.startswith("_")
        and isinstance(part.value, ast.Attribute)
        and part.value.attr in ("node", "_node", "_runtime", "runtime")
    ]
    assert private == []
