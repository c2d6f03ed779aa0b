"""Key files: what is written, and what is refused."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rabble import KeyFileError, RabbleError
from rabble.cluster.io import keys
from rabble.cluster.io.keys import (
    NODE_KEY_HEAD,
    is_node_key_file,
    new_key,
    new_node_key,
    parsed_node_key,
    read_key,
    read_key_file,
    read_keys,
    read_private,
    write_key,
    write_node_key,
    write_private,
)

KEY = bytes(range(32))
TEXT = KEY.hex().encode() + b"\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "key"


def put(file: Path, data: bytes, mode: int = 0o600) -> None:
    file.write_bytes(data)
    file.chmod(mode)


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file, or a symbolic link, another user's; without root, this one another user."""
    if os.geteuid() == 0:
        os.chown(path, 12_345, -1, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12_345)


def test_what_was_written_is_read(file: Path) -> None:
    write_key(file, KEY)
    assert file.read_bytes() == TEXT
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_key(file) == KEY
    assert read_key(str(file)) == KEY


def test_new_keys_are_drawn_from_the_source() -> None:
    assert new_key(lambda size: bytes([7] * size)) == bytes([7] * 32)
    assert new_key(secrets.token_bytes) != new_key(secrets.token_bytes)


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_the_mode_is_0600_whatever_the_umask(file: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_key(file, KEY)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", [TEXT[:-1], TEXT.upper(), TEXT[:-1] + b"\r\n"])
def test_a_key_as_people_write_it(file: Path, text: bytes) -> None:
    put(file, text)
    assert read_key(file) == KEY


def test_a_key_that_cannot_be_changed(file: Path) -> None:
    put(file, TEXT, 0o400)
    assert read_key(file) == KEY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o610, 0o601, 0o666])
def test_others_may_do_something_with_it(file: Path, mode: int) -> None:
    put(file, TEXT, mode)
    with pytest.raises(KeyFileError, match=f"has mode {mode:04o}, so others may use it"):
        read_key(file)


def test_another_owner(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(file, TEXT)
    give_away(file, monkeypatch)
    with pytest.raises(KeyFileError, match="belongs to user"):
        read_key(file)


def test_root_may_own_it(monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.stat_result((stat.S_IFREG | 0o600, 1, 1, 1, 0, 0, 65, 0, 0, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    assert keys.file_problem(status) is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert keys.file_problem(status) is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        TEXT[:62] + b"\n",
        TEXT[:-1] + b"00\n",
        KEY,
        b"g" + TEXT[1:],
        b"\xff" * 64,
        TEXT[:32] + b" " + TEXT[32:],
        b" ".join(TEXT[n : n + 2] for n in range(0, 64, 2)),
    ],
    ids=range(9),
)
def test_what_is_no_key(file: Path, text: bytes) -> None:
    put(file, text)
    with pytest.raises(KeyFileError, match="64 hexadecimal digits") as caught:
        read_key(file)
    assert TEXT[:8].decode() not in str(caught.value)


def test_all_zero(file: Path) -> None:
    put(file, b"0" * 64 + b"\n")
    with pytest.raises(KeyFileError, match="all zero"):
        read_key(file)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        read_key(tmp_path / "none")
    with pytest.raises(KeyFileError, match="not a regular file"):
        read_key(tmp_path)
    with pytest.raises(KeyFileError, match="not a regular file"):
        read_key("/dev/null")


def test_a_named_pipe_does_not_keep_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    errors: list[Exception] = []

    def read() -> None:
        try:
            read_key(tmp_path / "pipe")
        except KeyFileError as error:
            errors.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(30)
    assert "not a regular file" in str(errors[0])


def test_symbolic_links(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key(file, KEY)
    link = tmp_path / "link"
    link.symlink_to(file)
    assert read_key(link) == KEY
    give_away(link, monkeypatch)
    with pytest.raises(KeyFileError, match="the symbolic link belongs to user"):
        read_key(link)


def test_a_link_to_a_file_that_others_may_read(file: Path, tmp_path: Path) -> None:
    put(file, TEXT, 0o644)
    link = tmp_path / "link"
    link.symlink_to(file)
    with pytest.raises(KeyFileError, match="0644"):
        read_key(link)


def test_nothing_is_overwritten(file: Path, tmp_path: Path) -> None:
    write_key(file, KEY)
    with pytest.raises(KeyFileError, match="exists already"):
        write_key(file, bytes(32))
    assert read_key(file) == KEY
    for target in (file, tmp_path / "elsewhere"):
        link = tmp_path / f"to-{target.name}"
        link.symlink_to(target)
        with pytest.raises(KeyFileError, match="exists already"):
            write_key(link, KEY)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        write_key(tmp_path / "none" / "key", KEY)


def test_what_cannot_be_written_whole_is_not_left(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        write_key(file, KEY)
    assert not file.exists()


def test_short_writes_go_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    write_private(file, TEXT)
    assert read_private(file) == TEXT


def test_only_keys_are_written(file: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes, not 3"):
        write_key(file, b"key")
    assert not file.exists()


def test_the_error_is_one_of_rabble() -> None:
    assert issubclass(KeyFileError, RabbleError)
    assert issubclass(KeyFileError, ValueError)


# Two keys.


@pytest.mark.parametrize("between", [b"", b"\n", b"\r\n  "])
def test_a_file_may_hold_two_of_which_the_first_is_the_own(file: Path, between: bytes) -> None:
    other = bytes(range(1, 33))
    put(file, TEXT + between + other.hex().encode())
    assert read_keys(file) == (KEY, other)
    assert read_key(file) == KEY


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (TEXT * 2, "the same key twice"),
        (TEXT + b"0" * 64, "the key is all zero"),
        (TEXT + b"12", "not a key"),
        (TEXT + bytes(range(1, 33)).hex().encode() + b"\n" + TEXT, "3 keys; at most 2"),
        (b"", "not a key"),
    ],
)
def test_what_is_no_two_keys(file: Path, text: bytes, problem: str) -> None:
    put(file, text)
    with pytest.raises(KeyFileError, match=problem) as raised:
        read_keys(file)
    assert KEY.hex() not in str(raised.value)


# The key of one node.


def test_a_node_key_is_read_as_it_was_written(file: Path) -> None:
    key = new_node_key(KEY, "\u0436\u0443\u043a", lambda size: bytes(range(size)))
    write_node_key(file, key)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_key_file(file) == key and is_node_key_file(file)
    assert file.read_text().splitlines()[:3] == [
        "rabble node key 1",
        "name \u0436\u0443\u043a",
        "id 000102030405060708090a0b0c0d0e0f",
    ]
    with pytest.raises(KeyFileError, match="the key of one node, and not one of a cluster"):
        read_keys(file)
    with pytest.raises(KeyFileError, match="exists already"):
        write_node_key(file, key)


def test_the_file_of_a_clusters_key_is_none_of_a_node(file: Path, tmp_path: Path) -> None:
    write_key(file, KEY)
    assert read_key_file(file) == (KEY,)
    for path in (file, tmp_path / "none", tmp_path):
        assert not is_node_key_file(path)


def test_a_name_that_no_node_can_have_gets_no_key() -> None:
    with pytest.raises(ValueError, match="is not usable"):
        new_node_key(KEY, "a ", bytes)


NUMBERS = b"".join(b"%064x\n" % (0x0202 << number) for number in range(64))
LINES = b"rabble node key 1\nname a\nid " + b"01" * 16 + b"\n" + NUMBERS
WHOLE = LINES + b"sha256 " + hashlib.sha256(LINES).hexdigest().encode() + b"\n"


@pytest.mark.parametrize(
    "text",
    [
        WHOLE[:-1] + b"0\n",
        WHOLE[:-73],
        LINES,
        LINES[:-65] + WHOLE[-73:],
        WHOLE + b"02" * 32,
        WHOLE.replace(b"sha256", b"sha512"),
        WHOLE.replace(b"name a", b"name a "),
        WHOLE.replace(b"name a", b"a"),
        WHOLE.replace(b"name a", b"name \xff"),
        WHOLE.replace(b"id 01", b"id 0"),
        WHOLE.replace(b"id", b"it"),
        WHOLE.replace(b"%064x" % 0x0202, b"0x" * 32),
        WHOLE[:18],
    ],
)
def test_what_is_no_whole_node_key(file: Path, text: bytes) -> None:
    put(file, WHOLE)
    assert read_key_file(file)
    file.unlink()
    put(file, text)
    with pytest.raises(KeyFileError, match="not a whole node key") as raised:
        read_key_file(file)
    assert "0202" not in str(raised.value)


@given(st.data())
def test_a_node_key_with_a_digit_that_was_mistyped_is_not_taken(data: st.DataObject) -> None:
    """Wherever it is: or else it would be a key that nobody takes, or has another name."""
    places = [n for n in range(len(NODE_KEY_HEAD) + 1, len(WHOLE)) if WHOLE[n : n + 1].isalnum()]
    place = data.draw(st.sampled_from(places))
    digit = data.draw(st.sampled_from(b"0123456789abcdefx"))
    changed = WHOLE[:place] + bytes([digit]) + WHOLE[place + 1 :]
    assume(changed != WHOLE)
    with pytest.raises(KeyFileError) as raised:
        parsed_node_key(changed, "a.key")
    assert "202" not in str(raised.value)


def test_what_is_said_of_a_digit_that_was_mistyped(file: Path) -> None:
    put(file, WHOLE.replace(b"0202", b"0203", 1))
    with pytest.raises(KeyFileError, match="its checksum does not fit: a digit is not what it was"):
        read_key_file(file)
    file.unlink()
    lines = WHOLE.split(b"\n")
    lines[7], lines[8] = lines[8], lines[7]
    put(file, b"\n".join(lines))
    with pytest.raises(KeyFileError, match="its checksum does not fit"):
        read_key_file(file)


@pytest.mark.parametrize(
    "text",
    [
        WHOLE.replace(b"\n", b"\r\n"),
        WHOLE[:-1],
        WHOLE + b"\n\n",
        LINES[:-65] + WHOLE[len(LINES) - 65 :].upper().replace(b"SHA256", b"sha256"),
    ],
    ids=["of Windows", "no end of line", "empty lines", "capitals"],
)
def test_a_node_key_that_people_have_copied(file: Path, text: bytes) -> None:
    put(file, WHOLE)
    whole = read_key_file(file)
    file.unlink()
    put(file, text)
    assert read_key_file(file) == whole and is_node_key_file(file)
