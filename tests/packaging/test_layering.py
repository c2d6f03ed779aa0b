"""The layout is the architecture: cimports point one way, and the core knows nothing above it."""

from __future__ import annotations

import ast
import re

import pytest

from tests.cimports import CORE, PACKAGE, core_modules, statements

# A layer of the core's docstring: its name and its modules.
LAYER = re.compile(r"^    (\w+): +(.+)$", flags=re.M)


def layers() -> dict[str, list[str]]:
    """Of each layer of the core, from the bottom up, the modules: as the core's docstring has them.

    A module may refer to those before it only. A new one has to take its place there.
    """
    docstring = ast.get_docstring(ast.parse((CORE / "__init__.py").read_text()), clean=False)
    assert docstring is not None
    return {name: modules.split() for name, modules in LAYER.findall(docstring)}


ORDER = [name for modules in layers().values() for name in modules]

FILES = sorted([*CORE.glob("*.pyx"), *CORE.glob("*.pxd")])


def test_every_module_of_the_core_has_its_place() -> None:
    assert sorted(ORDER) == sorted({path.stem for path in FILES})


@pytest.mark.parametrize("source", FILES, ids=lambda path: path.name)
def test_references_point_backwards(source) -> None:
    place = ORDER.index(source.stem)
    assert core_modules(source) <= set(ORDER[:place])


@pytest.mark.parametrize("source", FILES, ids=lambda path: path.name)
def test_the_core_imports_nothing_above_it(source) -> None:
    inside = {PACKAGE, *(f"{PACKAGE}.{name}" for name in ORDER)}
    above = [
        line.strip()
        for module, line in statements(source)
        if module.split(".")[0] == "rabble"
        and module != "rabble"
        and not any(module == name or module.startswith(name + ".") for name in inside)
    ]
    plain = [line for module, line in statements(source) if module == "rabble"]
    assert above + [line for line in plain if "_core" not in line] == []


@pytest.mark.parametrize("source", FILES, ids=lambda path: path.name)
def test_no_conditional_compilation(source) -> None:
    assert not re.findall(r"^\s*(?:DEF|IF|ELIF)\s", source.read_text(), flags=re.M)


def test_each_module_has_its_summary_and_its_stub() -> None:
    for name in ORDER:
        assert (CORE / f"{name}.pxd").exists(), name
    # What is only a .pxd is compiled into those that cimport it.
    for source in CORE.glob("*.pyx"):
        assert source.with_suffix(".pyi").exists(), source.name
