"""Seeds: what names and files stand for is joined, and what they stand for no longer is left."""

from __future__ import annotations

import logging
import os
import socket
import traceback
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from rabble.addresses import Address, address_text
from rabble.cluster.config import Mesh
from rabble.cluster.io.resolver import Answer, Question, Resolver
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
        super().__init__(
            "names",
            traceback.print_exception,
            Noted().failures,
            waiting_max=ADDRESSES_MAX,
            clock=lambda: 0.0,
        )
        self.asked: list[tuple[str, Question]] = []
        self.withdrawn: list[Question] = []
        self.closed = False

    def resolve(self, addr: str, answer: Answer, by: float) -> Question:
        question = Question(answer, by, self.withdrawn.append)
        self.asked.append((addr, question))
        return question

    def answer(self, addr: str, what: list[Address] | OSError) -> None:
        """Answer the questions for that address. It may be too late for them."""
        questions = [question for asked, question in self.asked if asked == addr]
        assert questions, f"nobody asked for {addr}: {self.asked}"
        self.asked = [each for each in self.asked if each[0] != addr]
        for question in questions:
            question.answer(what)

    def answer_all(self) -> None:
        """Each stands for itself."""
        for addr, _ in list(self.asked):
            self.answer(addr, found(addr))

    def close(self) -> None:
        self.closed = True
        super().close()


class Seen:
    """Seeds, what became of them, and the time.

    What is dialled is so until the test has somebody answer there.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.names = Names()
        self.dialled: set[str] = set()
        self.added: list[str] = []
        #: What each seed that was given was found to stand for, or why for nothing.
        self.looked_up: list[tuple[str, set[str] | str]] = []
        self.reports: list[tuple[int, str]] = []
        self.now = 100.0
        self.seeds = Seeds(
            mesh.seeds,
            mesh.seed_file,
            self.names,
            looked_up=self.look_up,
            added=self.dial,
            dropped=self.dialled.discard,
            dialled=lambda now: self.dialled,
            post=lambda call: call(),
            report=lambda level, text: self.reports.append((level, text())),
            refresh_s=REFRESH_S,
            clock=lambda: self.now,
        )

    def look_up(self, addr: str, found: Collection[str] | OSError) -> None:
        self.looked_up.append((addr, str(found) if isinstance(found, OSError) else set(found)))

    def dial(self, text: str, address: Address) -> None:
        assert text == address_text(address)
        self.added.append(text)
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


def test_what_a_seed_stands_for_is_told_and_why_for_nothing() -> None:
    seen = Seen(Mesh())
    seen.seeds.start()
    assert seen.seeds.add("rabble.svc:4000")
    assert seen.looked_up == []
    seen.names.answer("rabble.svc:4000", found("10.0.0.1:4000", "10.0.0.2:4000"))
    # Before any of them is dialled.
    assert seen.looked_up == [("rabble.svc:4000", {"10.0.0.1:4000", "10.0.0.2:4000"})]
    assert seen.seeds.add("rabble.svc:4000")
    seen.names.answer("rabble.svc:4000", OSError("no such host"))
    assert seen.looked_up[1:] == [("rabble.svc:4000", "no such host")]


def test_a_name_is_asked_for_again_though_its_answer_could_not_be_handed_over() -> None:
    seen = Seen(Mesh(seeds=["rabble.svc:4000"]))
    seen.seeds.start()
    post = seen.seeds._post

    def fails(call: Callable[[], None]) -> None:
        raise MemoryError

    seen.seeds._post = fails
    with pytest.raises(MemoryError):
        seen.names.answer("rabble.svc:4000", found("10.0.0.1:4000"))
    seen.seeds._post = post
    assert not seen.names.asked
    seen.look_again()
    seen.names.answer("rabble.svc:4000", found("10.0.0.1:4000"))
    assert seen.dialled == {"10.0.0.1:4000"}


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
    seen.names.answer("rabble.svc:4000", found("10.0.0.1:4000"))
    assert seen.added == 2 * ["10.0.0.1:4000"]
    # A look is no join.
    seen.look_again()
    seen.names.answer("rabble.svc:4000", found("10.0.0.1:4000"))
    assert seen.added == 2 * ["10.0.0.1:4000"]


def test_what_is_joined_by_hand_while_its_name_hangs_is_dialled_when_it_is_found() -> None:
    seen = Seen(Mesh(seeds=["rabble.svc:4000"]))
    seen.seeds.start()
    seen.seeds.add("rabble.svc:4000")
    seen.names.answer("rabble.svc:4000", found("10.0.0.1:4000"))
    assert seen.added == ["10.0.0.1:4000"]


def test_an_address_is_dialled_as_long_as_one_seed_stands_for_it() -> None:
    seen = Seen(Mesh(seeds=["127.0.0.1:7"]))
    seen.seeds.start()
    seen.names.answer("127.0.0.1:7", found("127.0.0.1:7"))
    seen.seeds.add("localhost:7")
    seen.seeds.add("rabble.svc:7")
    for name in "localhost:7", "rabble.svc:7":
        seen.names.answer(name, found("127.0.0.1:7", "127.0.0.2:7"))
    seen.seeds.remove("localhost:7")
    assert seen.dialled == {"127.0.0.1:7", "127.0.0.2:7"}
    seen.look_again()
    seen.names.answer("rabble.svc:7", found("127.0.0.3:7"))
    assert seen.dialled == {"127.0.0.1:7", "127.0.0.3:7"}
    seen.seeds.remove("127.0.0.1:7")
    assert seen.dialled == {"127.0.0.3:7"}


@pytest.mark.parametrize("other", ["given", "joined"])
def test_a_seed_that_the_file_no_longer_lists_stays_if_it_is_from_elsewhere_too(
    tmp_path: Path, other: str
) -> None:
    path = tmp_path / "seeds"
    write(path, "10.0.0.1:4000\n10.0.0.2:4000\n")
    seen = Seen(Mesh(seeds=["10.0.0.1:4000"] if other == "given" else [], seed_file=path))
    seen.seeds.start()
    if other == "joined":
        seen.seeds.add("10.0.0.1:4000")
    seen.names.answer_all()
    write(path, "# none\n")
    seen.look_again()
    seen.names.answer_all()
    assert seen.dialled == {"10.0.0.1:4000"}
    # And the other way round: what was joined is the file's as well.
    write(path, "10.0.0.1:4000\n10.0.0.3:4000\n")
    seen.look_again()
    seen.names.answer_all()
    assert seen.dialled == {"10.0.0.1:4000", "10.0.0.3:4000"}


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
    assert seen.names.withdrawn == [question for _, question in seen.names.asked]
    seen.names.answer("one:1", found("one-address:1"))
    assert seen.dialled == set()


def test_more_than_can_be_kept_are_left_out_with_a_word() -> None:
    seen = Seen(Mesh(key=b"k" * 32))
    for n in range(ADDRESSES_MAX + 1):
        seen.seeds.add(f"n{n}:1")
    assert len(seen.names.asked) == ADDRESSES_MAX
    assert seen.reports == [
        (
            logging.WARNING,
            f"the seed n{ADDRESSES_MAX}:1 is left out, as there are 1,024, the most; leave "
            "addresses that were joined and where nobody answers, or join nodes by their ids, "
            "name@host:port",
        )
    ]
    seen.seeds.remove("n7:1")
    seen.seeds.add("one-more:1")
    assert len(seen.reports) == 1


@pytest.mark.parametrize("addr", ["10.0.0.1:{}", "name.example:{}"])
def test_any_number_of_addresses_can_be_joined_in_a_nodes_life(addr: str) -> None:
    seen = Seen(Mesh(key=b"k" * 32))
    for n in range(1, 3 * ADDRESSES_MAX):
        seen.seeds.add(addr.format(n))
        seen.names.answer(addr.format(n), found(f"10.0.0.1:{n}"))
        assert f"10.0.0.1:{n}" in seen.dialled
        # Somebody answers there, and is a member.
        seen.dialled.clear()
    assert seen.reports == []


def test_a_joined_address_is_forgotten_when_it_is_a_members_and_a_name_is_not() -> None:
    seen = Seen(Mesh(seeds=["10.0.0.1:1"]))
    seen.seeds.start()
    for addr in "10.0.0.2:1", "10.0.0.3:1", "rabble.svc:1":
        seen.seeds.add(addr)
    seen.names.answer("rabble.svc:1", found("10.0.0.4:1"))
    seen.names.answer_all()
    seen.dialled -= {"10.0.0.1:1", "10.0.0.2:1", "10.0.0.4:1"}
    seen.seeds.pause()
    seen.look_again()
    assert len(seen.names.asked) == 4
    seen.names.answer("rabble.svc:1", found("10.0.0.4:1"))
    seen.names.answer_all()
    dialled = set(seen.dialled)
    seen.seeds.resume()
    seen.dialled &= dialled
    seen.look_again()
    assert {addr for addr, _ in seen.names.asked} == {"10.0.0.1:1", "10.0.0.3:1", "rabble.svc:1"}


def test_what_was_found_is_given_again() -> None:
    seen = Seen(Mesh(seeds=["10.0.0.1:1", "rabble.svc:1", "slow.svc:1"]))
    seen.seeds.start()
    seen.names.answer("10.0.0.1:1", found("10.0.0.1:1"))
    seen.names.answer("rabble.svc:1", found("10.0.0.2:1", "10.0.0.3:1"))
    seen.dialled.clear()
    seen.seeds.resume()
    assert seen.dialled == {"10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"}
