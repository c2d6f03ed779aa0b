"""The supported Pythons are said in many places, and are the same in each."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def supported() -> list[str]:
    """As the classifiers say: 3.11, 3.12, ..."""
    found = (re.fullmatch(r".* :: (3\.\d+)", line) for line in PROJECT["project"]["classifiers"])
    return [match[1] for match in found if match]


def test_the_classifiers_name_each_version_once_and_leave_none_out() -> None:
    minors = [int(name.removeprefix("3.")) for name in supported()]
    assert minors == list(range(minors[0], minors[-1] + 1))


def test_the_oldest_is_the_one_that_is_required_and_that_ruff_and_the_finder_know() -> None:
    oldest = supported()[0]
    assert PROJECT["project"]["requires-python"] == f">={oldest}"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    finder = (ROOT / "tools" / "find_python").read_text()
    assert f"sys.version_info >= ({oldest.replace('.', ', ')})" in finder
    assert f"rabble needs Python {oldest} or newer" in finder


def test_the_finder_looks_for_each() -> None:
    finder = (ROOT / "tools" / "find_python").read_text()
    (all_of,) = re.findall(r"for name in (python3\.\d+(?: python3\.\d+)*);", finder)
    assert all_of.split() == [f"python{version}" for version in supported()]
    (one_of,) = re.findall(r"set -- (python3.*)$", finder, flags=re.M)
    assert set(one_of.split()) == {"python3", *all_of.split()}


def test_the_pythons_of_a_newer_debian_are_supported_ones() -> None:
    (named,) = re.findall(r"^versions=\((.*)\)$", (ROOT / "tools/debian_pythons").read_text(), re.M)
    assert set(named.split()) <= set(supported())


@pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="an sdist has no gate")
def test_the_gate_runs_the_newest_python_of_a_newer_debian() -> None:
    (named,) = re.findall(r"^versions=\((.*)\)$", (ROOT / "tools/debian_pythons").read_text(), re.M)
    versions = named.split()
    assert versions == sorted(versions, key=lambda version: int(version.partition(".")[2]))
    gate = (ROOT / ".ci" / "run").read_text()
    assert "tools/debian_pythons versions | tail -n 1" in gate
    (jobs,) = re.findall(r"^for job in (.*); do$", gate, re.M)
    assert "newest_python" in jobs.split()


def test_a_wheel_is_released_for_each_python_machine_and_libc() -> None:
    release = PROJECT["tool"]["cibuildwheel"]
    assert release["build"] == [f"cp{version.replace('.', '')}-*" for version in supported()]
    # Nothing is skipped, so both manylinux and musllinux are built.
    assert "skip" not in release
    assert release["linux"]["archs"] == ["native"]
    for machine in ("x86_64", "aarch64"):
        assert f"manylinux-{machine}-image" in release["linux"]
        assert f"musllinux-{machine}-image" in release["linux"]


@pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no workflows")
def test_the_release_runs_on_each_kind_of_machine() -> None:
    text = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
    (runners,) = re.findall(r"runner: \[(.*)\]", text)
    assert runners.split(", ") == ["ubuntu-24.04", "ubuntu-24.04-arm"]


@pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no workflows")
def test_each_matrix_of_a_workflow_has_all() -> None:
    matrices = {
        f"{path.name}: {listed}": re.findall(r"3\.\d+", listed)
        for path in WORKFLOWS
        for listed in re.findall(r"python: \[(.*)\]", path.read_text())
    }
    assert {name.split(":")[0] for name in matrices} == {"ci.yml", "wheels.yml"}
    assert all(versions == supported() for versions in matrices.values()), matrices


@pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no workflows")
def test_no_workflow_runs_a_version_that_is_not_supported() -> None:
    for path in WORKFLOWS:
        alone = re.findall(r'python-version: "(3\.\d+)"', path.read_text())
        assert set(alone) <= set(supported()), path.name


def test_the_pages_say_the_same() -> None:
    first, last = supported()[0], supported()[-1]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"Python {first} to {last}" in readme
    assert f"Python {first} to {last}" in " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
