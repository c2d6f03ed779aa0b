"""Seeds: what names and files stand for is joined, and what they stand for no longer is left."""

from __future__ import annotations

import logging
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from rabble.cluster.config import Mesh
from rabble.cluster.io.resolver import Address, Resolver
from rabble.cluster.io.seeds import ADDRESSES_MAX, Seeds

REFRESH_S = 10.0


def found(*addresses: str) -> list[Address]:
    """What a look-up answers."""
    pairs = [address.rsplit(":", 1) for address in addresses]
    return [(socket.AF_INET, (host, int(port))) for host, port in pairs]


class Names(Resolver):
    """A resolver that answers when it is told to."""

    def __init__(self) -> None:
        super().__init__("names", traceback.print_exception)
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
            added=self.dialled.add,
            dropped=self.dialled.remove,
            post=lambda call: call(),
            report=lambda level, text: self.reports.append((level, text())),
            refresh_s=REFRESH_S,
            clock=lambda: self.now,
        )

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
    with pytest.raises(ValueError, match="nowhere"):
        seen.seeds.add("nowhere")


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


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: write(path, "10.0.0.9\n")])
def test_a_file_that_cannot_be_used_changes_nothing(
    tmp_path: Path, spoil: Callable[[Path], None]
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
    assert str(path) in text


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
