"""The environment of the recipes: made once, and what happens where it cannot be had."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recipes import environment


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Path]]:
    """The folders that are made into environments, by nothing at all."""
    folders: list[Path] = []

    def install(folder: Path) -> None:
        assert not folder.exists()
        (folder / "bin").mkdir(parents=True)
        folders.append(folder)

    monkeypatch.setattr(environment, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(environment, "WANTED", "")
    monkeypatch.setattr(environment, "install", install)
    environment.once_made.cache_clear()
    yield folders
    environment.once_made.cache_clear()


def fail(folder: Path) -> None:
    environment.run(sys.executable, "-c", "import sys; sys.exit('first\\nno such package')")


def test_it_is_made_once_for_a_list_of_packages(
    made: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = environment.python()
    environment.once_made.cache_clear()
    assert environment.python() == first == str(made[0] / "bin" / "python")
    other = tmp_path / "requirements.txt"
    other.write_text("another==1\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", other)
    environment.once_made.cache_clear()
    assert environment.python() == str(made[1] / "bin" / "python") != first


def test_one_that_was_made_by_half_is_made_anew(
    made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.python()
    (made[0] / "complete").unlink()
    environment.once_made.cache_clear()
    assert environment.python() == str(made[0] / "bin" / "python")
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("wanted", "outcome"), [("", pytest.skip.Exception), ("required", pytest.fail.Exception)]
)
def test_where_it_cannot_be_had_a_test_says_why(
    made: list[Path], monkeypatch: pytest.MonkeyPatch, wanted: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setattr(environment, "WANTED", wanted)
    monkeypatch.setattr(environment, "install", fail)
    said = r"the packages of tests/recipes/requirements.txt cannot be had: no such package"
    with pytest.raises(outcome, match=said):
        environment.python()
    # And it is not tried again.
    monkeypatch.setattr(environment, "install", lambda folder: pytest.fail("tried again"))
    with pytest.raises(outcome, match=said):
        environment.python()


def test_where_it_is_not_wanted_nothing_is_made(
    made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "WANTED", "no")
    with pytest.raises(pytest.skip.Exception):
        environment.python()
    assert made == []


def test_every_package_has_one_version() -> None:
    text = environment.REQUIREMENTS.read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in lines)
    names = [line.partition("==")[0] for line in lines]
    assert len(set(names)) == len(names)
