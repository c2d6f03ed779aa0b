"""Files that change while they are watched: what is read of them, and when."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble import KeyFileError
from rabble.cluster.io.watched_files import WatchedFiles


def read(*paths: str) -> list[str]:
    try:
        texts = [Path(path).read_text() for path in paths]
    except OSError as error:
        raise KeyFileError(f"cannot be read: {error.strerror}") from error
    if "bad" in texts:
        raise KeyFileError("bad")
    return texts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("one")
    return file


_times = itertools.count(1)


def stamp(file: Path) -> None:
    """Give a file a time that none had before: tests write faster than the kernel's clock ticks."""
    os.utime(file, ns=(0, next(_times)))


def replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    stamp(new)
    new.replace(file)


def renewed(files: WatchedFiles[list[str]]) -> bool:
    """Whether two looks, of which the first finds the change, bring another content."""
    assert not files.renew()
    return files.renew()


def test_what_changed_is_read_when_it_stands_still(file: Path) -> None:
    files = WatchedFiles([file], read)
    assert files.content == ["one"]
    assert not renewed(files) and not files.is_settling
    replace(file, "two")
    assert not files.renew() and files.is_settling
    replace(file, "three")
    assert not files.renew() and files.is_settling
    assert files.content == ["one"]
    assert files.renew() and not files.is_settling
    assert files.content == ["three"]
    assert not renewed(files)


@given(
    steps=st.lists(st.sampled_from(["look", "one", "two", "one two", "bad", "gone"]), max_size=30)
)
def test_only_what_two_looks_in_a_row_found_is_read(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "file")
        file.write_text("one")
        files = WatchedFiles([file], read)
        # Which file is there, by a number of its own, and which was there at the last look.
        there: int | None = 0
        found: int | None = 0
        state, content = "one", "one"
        for number, step in enumerate(steps, 1):
            if step != "look":
                state, there = step, None if step == "gone" else number
                file.unlink(missing_ok=True) if step == "gone" else replace(file, step)
                continue
            before, stood_still, found = content, found == there, there
            if stood_still and state not in ("bad", "gone"):
                content = state
            try:
                changed = files.renew()
            except KeyFileError:
                assert stood_still and state in ("bad", "gone")
                changed = False
            assert changed == (content != before)
            assert files.content == [content]


def test_of_several_each_counts(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("1")
    files = WatchedFiles([file, other], read)
    for changed, text in ((other, "2"), (file, "two")):
        replace(changed, text)
        assert renewed(files)
    assert files.content == ["two", "2"]


def test_of_a_link_what_it_leads_to_counts(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    files = WatchedFiles([link], read)
    replace(file, "two")
    assert renewed(files)
    (tmp_path / "elsewhere").write_text("three")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    assert renewed(files)
    assert files.content == ["three"]


def test_the_same_content_in_another_file_is_nothing_new(file: Path) -> None:
    files = WatchedFiles([file], read)
    replace(file, "one")
    assert not renewed(files)
    assert not files.renew()


def test_what_cannot_be_used_is_raised_once_for_each_state_and_changes_nothing(file: Path) -> None:
    files = WatchedFiles([file], read)
    for text in ("bad", "bad"):
        replace(file, text)
        assert not files.renew()
        with pytest.raises(KeyFileError, match="bad"):
            files.renew()
        assert not files.renew() and not files.is_settling
    file.unlink()
    assert not files.renew()
    with pytest.raises(KeyFileError, match="No such file"):
        files.renew()
    assert files.content == ["one"]
    replace(file, "two")
    assert renewed(files)


@pytest.mark.parametrize("error", [KeyFileError("too many open files"), MemoryError()])
def test_what_is_not_the_fault_of_the_file_is_tried_again(file: Path, error: Exception) -> None:
    failing = False

    def fails_for_a_while(path: str) -> list[str]:
        if failing:
            raise error
        return read(path)

    files = WatchedFiles([file], fails_for_a_while)
    replace(file, "two")
    failing = True
    assert not files.renew()
    with pytest.raises(type(error)):
        files.renew()
    failing = False
    assert files.renew()
    assert files.content == ["two"]


def test_a_file_that_becomes_usable_by_its_mode_alone_is_read(file: Path) -> None:
    def read_private(path: str) -> list[str]:
        if os.stat(path).st_mode & 0o077:
            raise KeyFileError("others may use it")
        return read(path)

    file.chmod(0o600)
    files = WatchedFiles([file], read_private)
    replace(file, "two")
    file.chmod(0o644)
    assert not files.renew()
    with pytest.raises(KeyFileError):
        files.renew()
    file.chmod(0o600)
    assert renewed(files)


def test_a_path_is_one_from_where_the_program_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    files = WatchedFiles([file.name], read)
    monkeypatch.chdir("/")
    replace(file, "two")
    assert renewed(files)


def test_what_cannot_be_used_at_first_is_raised(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        WatchedFiles([tmp_path / "none"], read)
