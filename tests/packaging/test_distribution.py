"""What a user installs: its metadata, its one dependency, and the files it brings."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_msgpack_is_the_only_dependency() -> None:
    required = importlib.metadata.requires("rabble") or []
    assert [line for line in required if "extra ==" not in line] == ["msgpack>=1.2.4"]


def test_metadata() -> None:
    metadata = importlib.metadata.metadata("rabble")
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == PROJECT["project"]["version"]
    extras = set(metadata.get_all("Provides-Extra") or [])
    assert {"cert", "cli", "plot", "msgspec"} <= extras


def test_the_extras_that_are_named_exist() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")]:
        named = re.findall(r"rabble\[([\w,]+)\]", page.read_text())
        assert {name for names in named for name in names.split(",")} <= set(extras), page


def test_the_command() -> None:
    (command,) = (
        entry
        for entry in importlib.metadata.entry_points(group="console_scripts")
        if entry.name == "rabble"
    )
    assert command.value == "rabble.cli:main"
    assert callable(command.load())


def test_in_place_and_isolated_builds_need_the_same() -> None:
    extra = PROJECT["project"]["optional-dependencies"]["build"]
    assert sorted(extra) == sorted(PROJECT["build-system"]["requires"])


def test_the_changelog_knows_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert PROJECT["project"]["version"] in headings


def setup(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "--quiet", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_wheel_brings_stubs_and_declarations_but_no_sources(tmp_path) -> None:
    done = setup(
        "build",
        *("--build-base", str(tmp_path / "base"), "--build-lib", str(tmp_path / "lib")),
        RABBLE_NO_EXTENSIONS="1",
    )
    assert done.returncode == 0, done.stderr
    core = tmp_path / "lib" / "rabble" / "_core"
    here = ROOT / "src" / "rabble" / "_core"
    for suffix in ("pxd", "pyi"):
        expected = {path.name for path in here.glob(f"*.{suffix}")}
        assert {path.name for path in core.glob(f"*.{suffix}")} == expected
    assert (tmp_path / "lib" / "rabble" / "py.typed").exists()
    assert [path for path in (tmp_path / "lib").rglob("*") if path.suffix in (".pyx", ".c")] == []


def test_an_unknown_sanitizer_is_refused_plainly() -> None:
    done = setup("--version", RABBLE_SANITIZE="adress")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "RABBLE_SANITIZE='adress': adress is not known; "
        "allowed are address, undefined, joined by commas."
    )


def test_another_system_is_refused_plainly() -> None:
    code = (
        "import sys, setuptools.command.build_ext\n"
        "sys.platform = 'darwin'; sys.argv = ['setup.py', '--version']\n"
        "exec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert "rabble runs on Linux only (this is darwin)" in done.stderr
