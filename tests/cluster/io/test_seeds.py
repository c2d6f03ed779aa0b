"""Seeds: what names and files stand for is joined, and what they stand for no longer is left."""

from __future__ import annotations

import logging
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from rabble.addresses import Address, address_text
from rabble.cluster.config import Mesh
from rabble.cluster.io.resolver import Resolver
from rabble.cluster.io.seeds import ADDRESSES_MAX, FILE_BYTES_MAX, Seeds
from tests.cluster.noted import Noted

REFRESH_S = 10.0


def found(*addresses: str) -> list[Address]:
    """What a look-up answers."""
    pairs = [address.rsplit(":", 1) for address in addresses]
    return [(socket.AF_INET, (host, int(port))) for host, port in pairs]


class Names(Resolver):
    """A resolver that answers when it is told to."""

    def __init__(self) -> None:
        super().__init__("names", traceback.print_exception, Noted().failures)
        self.asked: list[tuple[str, Callable[[list[Address] | OSError], None]]] = []
        self.closed = False

    def resolve(self, addr: str, answer: Callable[[list[Address] | OSError], None]) -> None:
        self.asked.append((addr, answer))

    def answer(self, addr: str, what: list[Address] | OSError) -> None:
        """Answer the questions for that address."""
        answers = [answer for asked, answer in self.asked if asked == addr]
        assert answers, f"nobody asked for {addr}: {self.asked}"
        self.asked = [each for each in self.asked if each[0] != addr]
        for answer in answers:
            answer(what)

    def close(self) -> None:
        self.closed = True
        super().close()


class Seen:
    """Seeds, what became of them, and the time."""

    def __init__(self, mesh: Mesh) -> None:
        self.names = Names()
        self.dialled: set[str] = set()
        self.reports: list[tuple[int, str]] = []
        self.now = 100.0
        self.seeds = Seeds(
            mesh.seeds,
            mesh.seed_file,
            self.names,
            added=self.dial,
            dropped=self.dialled.remove,
            post=lambda call: call(),
            report=lambda level, text: self.reports.append((level, text())),
            refresh_s=REFRESH_S,
            clock=lambda: self.now,
        )

    def dial(self, text: str, address: Address) -> None:
        assert text == address_text(address)
        self.dialled.add(text)

    def look_again(self) -> None:
        """Let the time of the next look come, and no more than that."""
        due = self.seeds.next_tick()
        assert due == self.now + REFRESH_S
        self.seeds.tick(due - 0.001)
        assert self.seeds.next_tick() == due
        self.now = due
        self.seeds.tick(self.now)


def test_a_name_stands_for_all_its_addresses() -> None:
    seen = Seen(Mesh(seeds=["rabble.svc:4000"]))
    assert seen.seeds.next_tick() is None
    seen.seeds.start()
    seen.names.answer("rabble.svc:4000", found("10.0.0.1:4000", "10.0.0.2:4000"))
    assert seen.dialled == {"10.0.0.1:4000", "10.0.0.2:4000"}
    seen.look_again()
    seen.names.answer("rabble.svc:4000", found("10.0.0.2:4000", "10.0.0.3:4000"))
    assert seen.dialled == {"10.0.0.2:4000", "10.0.0.3:4000"}
    assert seen.reports == []


def test_a_name_that_is_not_found_keeps_its_addresses() -> None:
    seen = Seen(Mesh(seeds=["rabble.svc:4000"]))
    seen.seeds.start()
    seen.names.answer("rabble.svc:4000", found("10.0.0.1:4000"))
    seen.look_again()
    seen.names.answer("rabble.svc:4000", OSError("no such host"))
    assert seen.dialled == {"10.0.0.1:4000"}
    ((level, text),) = seen.reports
    assert level == logging.WARNING
    assert "rabble.svc:4000" in text and "no such host" in text


def test_what_is_joined_by_hand_is_dialled_anew() -> None:
    seen = Seen(Mesh())
    seen.seeds.start()
    seen.seeds.add("rabble.svc:4000")
    seen.names.answer("rabble.svc:4000", found("10.0.0.1:4000"))
    seen.seeds.add("rabble.svc:4000")
    assert seen.dialled == set()
    seen.names.answer("rabble.svc:4000", found("10.0.0.1:4000"))
    assert seen.dialled == {"10.0.0.1:4000"}


def write(path: Path, text: str) -> None:
    """Write a file that differs from what it was, however coarse the file system's clock is."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 1, before + 1))


def test_a_file_is_read_again_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "seeds"
    write(path, "# the first two\n10.0.0.1:4000\n\n10.0.0.2:4000\n")
    seen = Seen(Mesh(seed_file=path))
    seen.seeds.start()
    for addr in ("10.0.0.1:4000", "10.0.0.2:4000"):
        seen.names.answer(addr, found(addr))
    assert seen.dialled == {"10.0.0.1:4000", "10.0.0.2:4000"}
    write(path, "10.0.0.2:4000\n10.0.0.3:4000\n")
    seen.look_again()
    assert seen.dialled == {"10.0.0.2:4000"}
    # Of one that was taken out an answer may still be under way.
    assert {addr for addr, _ in seen.names.asked} == {"10.0.0.2:4000", "10.0.0.3:4000"}
    seen.names.answer("10.0.0.3:4000", found("10.0.0.3:4000"))
    assert seen.dialled == {"10.0.0.2:4000", "10.0.0.3:4000"}


def test_an_answer_that_comes_too_late_is_none(tmp_path: Path) -> None:
    path = tmp_path / "seeds"
    write(path, "slow.example:4000\n")
    seen = Seen(Mesh(seed_file=path))
    seen.seeds.start()
    write(path, "# none\n")
    seen.look_again()
    seen.names.answer("slow.example:4000", found("10.0.0.1:4000"))
    assert seen.dialled == set()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, "No such file"),
        (fifo, "no regular file"),
        (device, "no regular file"),
        (lambda path: (path.unlink(), path.mkdir()), "no regular file"),
        (lambda path: write(path, "#" * (FILE_BYTES_MAX + 1)), "more than 524,288 bytes"),
    ],
    ids=["missing", "fifo", "device", "folder", "too long"],
)
def test_a_file_that_cannot_be_used_changes_nothing_and_blocks_nobody(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    path = tmp_path / "seeds"
    write(path, "10.0.0.1:4000\n")
    seen = Seen(Mesh(seed_file=path))
    seen.seeds.start()
    seen.names.answer("10.0.0.1:4000", found("10.0.0.1:4000"))
    spoil(path)
    seen.look_again()
    assert seen.dialled == {"10.0.0.1:4000"}
    ((level, text),) = seen.reports
    assert level == logging.WARNING
    assert str(path) in text and said in text


@pytest.mark.parametrize("line", [b"10.0.0.9", b"db..internal:1", b"\xff:1", b"x:70000", b"a b:1"])
def test_a_bad_line_is_told_with_its_number_and_the_others_are_kept(
    tmp_path: Path, line: bytes
) -> None:
    path = tmp_path / "seeds"
    write(path, "10.0.0.1:4000\n10.0.0.2:4000\n")
    seen = Seen(Mesh(seed_file=path))
    seen.seeds.start()
    for addr in ("10.0.0.1:4000", "10.0.0.2:4000"):
        seen.names.answer(addr, found(addr))
    path.write_bytes(b"10.0.0.1:4000\n" + line + b"\n10.0.0.3:4000\n")
    seen.look_again()
    seen.names.answer("10.0.0.3:4000", found("10.0.0.3:4000"))
    # The bad line may be what became of the one that is missing now.
    assert seen.dialled == {"10.0.0.1:4000", "10.0.0.2:4000", "10.0.0.3:4000"}
    ((level, text),) = seen.reports
    assert level == logging.WARNING
    assert text.startswith(f"the file of seeds {path}, line 2: ")
    # It is told once; and when it is mended, what is listed no more is left.
    seen.look_again()
    write(path, "10.0.0.1:4000\n10.0.0.3:4000\n")
    seen.look_again()
    assert seen.dialled == {"10.0.0.1:4000", "10.0.0.3:4000"}
    assert [text for _, text in seen.reports if "file of seeds" in text] == [text]


def test_of_many_bad_lines_the_first_are_told_and_the_others_counted(tmp_path: Path) -> None:
    path = tmp_path / "seeds"
    write(path, "bad\n" * 100 + "10.0.0.1:4000\n")
    seen = Seen(Mesh(seed_file=path))
    seen.seeds.start()
    seen.names.answer("10.0.0.1:4000", found("10.0.0.1:4000"))
    assert seen.dialled == {"10.0.0.1:4000"}
    assert len(seen.reports) == 4
    assert seen.reports[-1][1].endswith(", and 97 lines more")


class OddPath:
    """A path of a user's class, which may do anything when it is asked."""

    asked = 0

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        self.asked += 1
        if self.asked > 1:
            raise SystemExit("asked in another thread than the user's")
        return str(self.path)


def test_a_path_of_a_users_own_class_is_asked_once(tmp_path: Path) -> None:
    path = tmp_path / "seeds"
    write(path, "10.0.0.1:4000\n")
    seen = Seen(Mesh(seed_file=OddPath(path)))
    seen.seeds.start()
    assert [addr for addr, _ in seen.names.asked] == ["10.0.0.1:4000"]
    seen.names.answer("10.0.0.1:4000", found("10.0.0.1:4000"))
    seen.look_again()
    assert seen.reports == []


def test_a_look_up_that_does_not_end_is_told(tmp_path: Path) -> None:
    seen = Seen(Mesh(seeds=["slow.example:1", "quick.example:1"]))
    seen.seeds.start()
    seen.names.answer("quick.example:1", found("10.0.0.1:1"))
    seen.look_again()
    assert seen.reports == [
        (
            logging.WARNING,
            "the seed slow.example:1 has no address yet: the name server does not answer",
        )
    ]
    seen.names.answer("slow.example:1", found("10.0.0.2:1"))
    assert seen.dialled == {"10.0.0.1:1", "10.0.0.2:1"}


def test_another_file_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write(first, "10.0.0.1:4000\n")
    write(second, "10.0.0.2:4000\n")
    seen = Seen(Mesh(seed_file=first))
    seen.seeds.start()
    seen.names.answer("10.0.0.1:4000", found("10.0.0.1:4000"))
    seen.seeds.watch_file(second)
    seen.names.answer("10.0.0.2:4000", found("10.0.0.2:4000"))
    assert seen.dialled == {"10.0.0.2:4000"}


def test_the_resolver_is_closed() -> None:
    seen = Seen(Mesh())
    seen.seeds.close()
    assert seen.names.closed


def test_what_is_removed_is_dialled_no_longer_and_not_asked_for_again() -> None:
    seen = Seen(Mesh(key=b"k" * 32))
    for name in "one", "other":
        seen.seeds.add(f"{name}:1")
        seen.names.answer(f"{name}:1", found(f"{name}-address:1"))
    assert seen.dialled == {"one-address:1", "other-address:1"}
    seen.seeds.remove("one:1")
    seen.seeds.remove("unheard:1")
    assert seen.dialled == {"other-address:1"}
    seen.seeds.start()
    assert {addr for addr, _ in seen.names.asked} == {"other:1"}


def test_an_answer_for_what_was_removed_meanwhile_is_nothing() -> None:
    seen = Seen(Mesh(key=b"k" * 32))
    seen.seeds.add("one:1")
    seen.seeds.remove("one:1")
    seen.names.answer("one:1", found("one-address:1"))
    assert seen.dialled == set()


def test_more_than_can_be_kept_are_left_out_with_a_word() -> None:
    seen = Seen(Mesh(key=b"k" * 32))
    for n in range(ADDRESSES_MAX + 1):
        seen.seeds.add(f"n{n}:1")
    assert len(seen.names.asked) == ADDRESSES_MAX
    assert seen.reports == [
        (
            logging.ERROR,
            f"the seed n{ADDRESSES_MAX}:1 is left out: there are 1024 already, the most",
        )
    ]
