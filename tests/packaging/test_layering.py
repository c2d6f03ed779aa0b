"""The layout is the architecture: cimports point one way, and the core knows nothing above it."""

from __future__ import annotations

import re

import pytest

from tests.cimports import CORE, PACKAGE, core_modules, statements

# From the bottom up; a module may refer to those on its left only. A new one has to take its place.
ORDER = (
    "capacities",
    "failure",
    "ids",
    "envelope",
    "queue",
    "inbox",
    "timers",
    "writer",
    "reader",
    "plan",
    "encode",
    "decode",
    "codec",
    "table",
    "frame",
    "lane",
    "bulk",
    "speak",
    "hear",
    "link",
    "channel",
    "arrivals",
    "poll",
    "routes",
    "idle",
    "executor",
    "control",
    "debug",
)

FILES = sorted([*CORE.glob("*.pyx"), *CORE.glob("*.pxd")])


def test_every_module_of_the_core_has_its_place() -> None:
    assert {path.stem for path in FILES} == set(ORDER)


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
