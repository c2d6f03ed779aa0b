"""The layout is the architecture: cimports point one way, and the core knows nothing above it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.cimports import CORE, PACKAGE, core_files, core_modules, statements

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

FILES = core_files()


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
        assert (CORE / f"{name}.pxd").exists() or (CORE / f"{name}.py").exists(), name
    # What is only a .pxd is compiled into those that cimport it; what is Python needs neither.
    for source in CORE.glob("*.pyx"):
        assert source.with_suffix(".pyi").exists(), source.name


# The cluster: what composes stands on what does, and that on what decides. Each module of the
# package refers to those on its left only, as the modules of the core do.
CLUSTER = CORE.parent / "cluster"
CLUSTER_ORDER = (
    "decide.refusal",
    "decide.actions",
    "decide.token_bucket",
    "decide.peers",
    "decide.backoff",
    "decide.dial_window",
    "decide.pending_dials",
    "decide.dial_rates",
    "decide.waiting",
    "decide.connection_manager",
    "decide.failure_detector",
    "decide.patience",
    "decide.belief",
    "decide.node_keys",
    "decide.handshake_wire",
    "decide.handshake_actions",
    "decide.handshake_config",
    "decide.handshake",
    "decide.membership_state",
    "decide.membership_delta",
    "decide.membership",
    "decide.bans",
    "decide.standing",
    "decide.dissemination",
    "decide.directory_state",
    "decide.directory",
    "failures",
    "io.watched_files",
    "io.keys",
    "io.tls",
    "io.certificates",
    "io.tls_proxy_pump",
    "io.tls_proxy",
    "io.resolver",
    "io.seeds",
    "io.handshake_socket",
    "io.handshake_runner",
    "io.connector",
    "io.listener",
    "config",
    "handshake_configs",
    "remote_spawn",
    "directory_service",
    "runtime",
    "connections",
    "ban_gossip",
    "gossip",
    "status",
    "control_frames",
    "renewal",
    "identity",
    "own_life",
    "shut_out",
    "members",
    "admission",
    "failed_handshakes",
    "joins",
    "sockets",
    "control_plane",
    "server",
)
#: What nobody can tell apart from the world outside: what decides is handed time and chance.
OUTSIDE = {
    "asyncio", "datetime", "os", "pathlib", "random", "secrets", "select", "selectors", "signal",
    "socket", "ssl", "subprocess", "threading", "time",
}  # fmt: skip
CLUSTER_FILES = {
    ".".join(path.relative_to(CLUSTER).with_suffix("").parts): path
    for path in sorted(CLUSTER.rglob("*.py"))
    if path.name != "__init__.py"
}


def imported(source: Path) -> set[str]:
    """All modules that a Python file imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            modules.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module"
            modules.add(node.module)
            modules.update(f"{node.module}.{name.name}" for name in node.names)
    return modules


def test_every_module_of_the_cluster_has_its_place() -> None:
    assert set(CLUSTER_FILES) == set(CLUSTER_ORDER)


@pytest.mark.parametrize("name", CLUSTER_ORDER)
def test_imports_within_the_cluster_point_backwards(name: str) -> None:
    place = CLUSTER_ORDER.index(name)
    inside = {f"rabble.cluster.{each}": each for each in CLUSTER_ORDER}
    references = {inside[module] for module in imported(CLUSTER_FILES[name]) if module in inside}
    assert references <= set(CLUSTER_ORDER[:place])


@pytest.mark.parametrize("name", [each for each in CLUSTER_ORDER if each.startswith("decide.")])
def test_what_decides_has_no_io_no_clock_and_no_chance(name: str) -> None:
    assert not {module.split(".")[0] for module in imported(CLUSTER_FILES[name])} & OUTSIDE


# The families: Python above the core, which a user could have written.
FAMILIES = CORE.parent / "families"
FAMILIES_ORDER = (
    "children",
    "actions",
    "supervision",
    "stand_ins",
    "supervisor",
    "names",
    "groups",
)
#: What they stand on: a process and its messages, and nothing that a node is made of.
FAMILIES_BELOW = {
    "rabble.errors",
    "rabble.messages",
    "rabble.process",
    "rabble.registry",
    "rabble.texts",
}


def test_every_module_of_the_families_has_its_place() -> None:
    assert {path.stem for path in FAMILIES.glob("*.py")} - {"__init__"} == set(FAMILIES_ORDER)


@pytest.mark.parametrize("name", FAMILIES_ORDER)
def test_the_families_know_no_node_and_imports_within_them_point_backwards(name: str) -> None:
    inside = {f"rabble.families.{each}" for each in FAMILIES_ORDER[: FAMILIES_ORDER.index(name)]}
    modules = {
        module
        for module in imported(FAMILIES / f"{name}.py")
        if module.startswith("rabble.") and not module.startswith("rabble._core")
    }
    # What a node has of names and groups for threads asks its executor as calls do.
    below = FAMILIES_BELOW | ({"rabble._runtime"} if name in ("names", "groups") else set())
    for module in modules:
        assert {module, module.rpartition(".")[0]} & (inside | below), module


@pytest.mark.parametrize("name", FAMILIES_ORDER)
def test_families_have_no_io_no_clock_and_no_chance(name: str) -> None:
    modules = imported(FAMILIES / f"{name}.py")
    assert not {module.split(".")[0] for module in modules} & OUTSIDE


def test_no_file_of_the_package_is_long() -> None:
    """But for what runs per message, which stays together."""
    package = CORE.parent
    lines = {
        str(path.relative_to(package)): len(path.read_text().splitlines())
        for suffix in ("*.py", "*.pyx", "*.pxd")
        for path in package.rglob(suffix)
    }
    long = {
        f"_core/{name}.pyx"
        for name in ("encoder", "decoder", "executor", "frame_encoder", "transport")
    }
    assert {name for name, count in lines.items() if count > 610} <= long
