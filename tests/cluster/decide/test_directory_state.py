"""The entries of one node and a peer's copy of them: any delivery, bounds, hostile statements."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble import Limits, MessageRegistry, NodeId, Pid
from rabble._core.codec import Codec
from rabble.cluster.decide import directory_state
from rabble.cluster.decide.directory_state import (
    Changes,
    DirectoryError,
    DirectoryLimit,
    Entry,
    GroupEntry,
    OwnEntries,
    PeerEntries,
    Statement,
    row_bytes,
)

CODEC = Codec(MessageRegistry())
LIMITS = Limits()
OWNER = NodeId("owner", "h:1")


def pid(name: str) -> Pid:
    return Pid(name, OWNER)


def said(message: dict[str, Any]) -> Statement:
    """As it comes out of a peer's decoder."""
    return Statement.of(OWNER, CODEC.decode_message(CODEC.encode_message(message)))


def change(own: OwnEntries, which: int) -> None:
    """One of a few dozen changes."""
    text, process = f"t{which % 3}", pid(f"p{which // 3 % 3}")
    kind = which // 9 % 3
    if kind == 2:
        entries = sorted(own.entries)
        if entries:
            own.drop(entries[which % len(entries)])
    elif kind == 1:
        if process not in own.groups.get(text, {}):
            own.add_member(text, process)
    else:
        own.add_name(text, process, which, is_held=bool(which % 2))


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[int, frozenset[Entry]], list[dict[str, Any]], Any]:
    """What an owner had whenever it told, what it said, and the order in which that arrives."""
    own = OwnEntries(LIMITS)
    snapshots: dict[int, frozenset[Entry]] = {0: frozenset()}
    statements: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 8))):
        for which in draw(st.lists(st.integers(0, 80), min_size=1, max_size=5)):
            change(own, which)
        statements += own.deltas()
        # Between the parts of a delta there is what is on its way to this.
        snapshots[own.version] = own.entries
        if draw(st.booleans()):
            statements += own.whole()
    numbers = st.lists(st.sampled_from(range(max(len(statements), 1))), max_size=40)
    order = draw(numbers) if statements else []
    return snapshots, [statements[number] for number in order], own


@pytest.fixture(params=[1, 200, 12 * 1024], ids=lambda size: f"{size}_bytes")
def statement_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """In how small parts all is said."""
    size: int = request.param
    monkeypatch.setattr(directory_state, "STATEMENT_BYTES_MAX", size)
    return size


@pytest.mark.usefixtures("statement_bytes")
def test_in_any_order_a_copy_is_what_there_was_at_some_version_and_never_an_earlier_one() -> None:
    @given(histories())
    def check(history: Any) -> None:
        snapshots, arriving, own = history
        known = PeerEntries(OWNER, LIMITS)
        for message in arriving:
            before, version = known.entries, known.version
            changes = known.read(said(message))
            assert known.version >= version
            assert known.entries == snapshots.get(known.version, known.entries)
            assert known.entries == before - set(changes.gone) | set(changes.come)
            assert not set(changes.gone) & set(changes.come)
            assert set(changes.gone) <= before
        for message in own.whole():
            known.read(said(message))
        assert (known.version, known.entries) == (own.version, own.entries)
        assert not known.is_behind

    check()


@pytest.mark.usefixtures("statement_bytes")
def test_in_order_deltas_are_enough() -> None:
    rng = random.Random(7)
    own, known = OwnEntries(LIMITS), PeerEntries(OWNER, LIMITS)
    for _ in range(300):
        change(own, rng.randrange(81))
        if rng.random() < 0.3:
            for message in own.deltas():
                known.read(said(message))
            assert (known.version, known.entries) == (own.version, own.entries)
            assert not known.is_behind
    assert own.deltas() == [] or own.is_untold is False


def test_a_lost_delta_is_noticed_by_the_next_one_and_a_whole_repairs_it() -> None:
    own, known = OwnEntries(LIMITS), PeerEntries(OWNER, LIMITS)
    own.add_name("a", pid("p"), 1, is_held=True)
    own.deltas()
    own.add_member("g", pid("p"))
    (late,) = own.deltas()
    assert known.read(said(late)) == Changes()
    assert known.is_behind and known.version == 0
    (whole,) = own.whole()
    assert set(known.read(said(whole)).come) == own.entries
    assert not known.is_behind
    assert known.read(said(late)) == Changes() == known.read(said(whole))


def test_what_came_and_went_between_two_deltas_is_not_told_but_its_version_is() -> None:
    own, known = OwnEntries(LIMITS), PeerEntries(OWNER, LIMITS)
    own.drop(own.add_member("g", pid("p")))
    (delta,) = own.deltas()
    assert delta == {"f": 0, "t": 2, "n": [], "g": [], "x": []}
    known.read(said(delta))
    assert known.version == 2
    assert own.deltas() == []


def test_wholes_of_two_versions_are_never_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_state, "STATEMENT_BYTES_MAX", 1)
    own = OwnEntries(LIMITS)
    entries = [own.add_member("g", pid(f"p{number}")) for number in range(3)]
    first = own.whole()
    own.drop(entries[0])
    second = own.whole()
    assert len(first) == 3 and len(second) == 2
    known = PeerEntries(OWNER, LIMITS)
    for message in (first[0], first[1], second[1]):
        known.read(said(message))
    assert known.entries == frozenset() and known.is_behind
    for message in second:
        known.read(said(message))
    assert known.entries == own.entries


def test_vectors() -> None:
    own = OwnEntries(LIMITS)
    own.add_name("leader", Pid("p", OWNER, "t"), 1_700_000_000_000, is_held=True)
    own.add_member("workers", pid("w"))
    (delta,) = own.deltas()
    assert CODEC.encode_message(delta).hex() == (
        "85a16600a17402a16e919601a66c6561646572a170a174cf0000018bcfe56800c3"
        "a167919402a7776f726b657273a177c0a17890"
    )
    (whole,) = own.whole()
    assert CODEC.encode_message(whole).hex() == (
        "85a16600a17402a16e919601a66c6561646572a170a174cf0000018bcfe56800c3"
        "a167919402a7776f726b657273a177c0a17702"
    )


# Bounds.


def test_an_owner_is_refused_what_does_not_fit_and_what_it_has_stays() -> None:
    own = OwnEntries(Limits(names_max=1, groups_max=1, group_members_max=2))
    own.add_name("a", pid("p"), 1, is_held=False)
    own.add_name("a", pid("p"), 1, is_held=True)
    own.add_member("g", pid("p"))
    own.add_member("g", pid("q"))
    before = (own.version, own.entries)
    for what, attempt in {
        "2 names are too many: Limits.names_max is 1": lambda: own.add_name(
            "b", pid("p"), 1, is_held=True
        ),
        "2 groups are too many: Limits.groups_max is 1": lambda: own.add_member("h", pid("p")),
        "3 members of one group are too many: Limits.group_members_max is 2": (
            lambda: own.add_member("g", pid("r"))
        ),
    }.items():
        with pytest.raises(DirectoryLimit) as caught:
            attempt()
        assert str(caught.value) == what
    assert (own.version, own.entries) == before
    size = row_bytes(GroupEntry(1, "g", pid("p")))
    narrow = OwnEntries(Limits(directory_bytes_max=size))
    entry = narrow.add_member("g", pid("p"))
    with pytest.raises(DirectoryLimit, match=f"Limits.directory_bytes_max is {size}"):
        narrow.add_member("g", pid("q"))
    narrow.drop(entry)
    narrow.add_member("g", pid("q"))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(names_max=2),
        Limits(groups_max=2),
        Limits(group_members_max=2),
        Limits(directory_bytes_max=200),
    ],
)
@pytest.mark.parametrize("kind", ["deltas", "whole"])
def test_of_a_peer_nothing_more_is_taken_in_than_there_is_room_for(
    limits: Limits, kind: str
) -> None:
    own, known = OwnEntries(LIMITS), PeerEntries(OWNER, limits)
    own.add_member("g", pid("p"))
    for message in own.deltas():
        known.read(said(message))
    before = (known.version, known.entries)
    for number in range(3):
        own.add_name(f"n{number}", pid("p"), 1, is_held=True)
        own.add_member(f"g{number}", pid("p"))
        own.add_member("g", pid(f"q{number}"))
    own.drop(own.groups["g"][pid("p")])
    for message in own.deltas() if kind == "deltas" else own.whole():
        with pytest.raises(DirectoryLimit):
            known.read(said(message))
    assert (known.version, known.entries) == before and known._staged is None
    assert known._book.bytes == sum(map(row_bytes, known.entries))


# What a hostile peer says.

NAME = [1, "a", "p", None, 5, True]
MEMBER = [2, "g", "p", None]
GOOD: dict[str, Any] = {"f": 0, "t": 2, "n": [NAME], "g": [MEMBER]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"t": None}, {"t": 0}, {"t": -1}, {"t": 2**63}, {"t": True}, {"t": 1.0}, {"t": "2"},
        {"f": 3}, {"f": 2}, {"f": -1}, {"f": None}, {"n": None}, {"n": {}}, {"g": "x"}, {"x": 1},
        {"w": 1}, {"w": -1}, {"w": 2**63}, {"w": "2"}, {"w": 2, "x": [1]},
        {"n": [[*NAME, 1]]}, {"n": [NAME[:5]]}, {"n": ["abcdef"]}, {"n": [None]},
        {"n": [[0, *NAME[1:]]]}, {"n": [[3, *NAME[1:]]]}, {"n": [["1", *NAME[1:]]]},
        {"n": [[1, "", "p", None, 5, True]]}, {"n": [[1, "a" * 256, "p", None, 5, True]]},
        {"n": [[1, "a::b", "p", None, 5, True]]}, {"n": [[1, b"a", "p", None, 5, True]]},
        {"n": [[1, "a\n", "p", None, 5, True]]}, {"n": [[1, "a\u200b", "p", None, 5, True]]},
        {"n": [[1, "a", "", None, 5, True]]}, {"n": [[1, "a", "p", "", 5, True]]},
        {"n": [[1, "a", "p", 7, 5, True]]}, {"n": [[1, "a", "p", None, -1, True]]},
        {"n": [[1, "a", "p", None, 2**63, True]]}, {"n": [[1, "a", "p", None, 5, 1]]},
        {"n": [[1, "a", "p", None, None, True]]}, {"g": [[1, "g", "p", None]]},
        {"g": [MEMBER[:3]]}, {"g": [[2, "", "p", None]]}, {"g": [[2, "g", "p", b""]]},
        {"g": [MEMBER, MEMBER]}, {"f": 2, "t": 3, "n": [], "g": [], "x": [1, 1]},
        {"x": ["1"]}, {"x": [1]}, {"x": [0]},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_not_well_formed_is_refused_with_a_short_text(wrong: dict[str, Any]) -> None:
    with pytest.raises(DirectoryError) as caught:
        said(copy.deepcopy(GOOD) | wrong)
    assert len(str(caught.value)) < 400 and str(caught.value).isascii()


def test_nobody_has_this_node_look_at_more_than_a_statement_holds() -> None:
    rows = [[number, "g", f"p{number}", None] for number in range(1, 4_098)]
    with pytest.raises(DirectoryError, match="4097 members and 0 dots are more than 4096"):
        said({"f": 0, "t": 5_000, "n": [], "g": rows})
    said({"f": 0, "t": 5_000, "n": [], "g": rows[:4_096]})
    with pytest.raises(DirectoryError, match="more than 4096"):
        said({"f": 5_000, "t": 5_001, "n": [], "g": [], "x": list(range(1, 5_000))})


def test_what_a_node_says_is_never_more_than_another_one_looks_at() -> None:
    own, known = OwnEntries(LIMITS), PeerEntries(OWNER, LIMITS)
    entries = [own.add_member("g", pid(f"p{number}")) for number in range(9_000)]
    for message in own.deltas():
        known.read(said(message))
    for entry in entries:
        own.drop(entry)
    for message in own.deltas():
        known.read(said(message))
    assert known.version == own.version and not known.entries


def test_the_same_is_said_well() -> None:
    known = PeerEntries(OWNER, LIMITS)
    known.read(said(GOOD))
    assert known.version == 2 and len(known.entries) == 2
    # Fields that are not known yet are passed over.
    known.read(said({"f": 2, "t": 3, "n": [], "g": [], "x": [1, 2], "later": 1}))
    assert not known.entries


@pytest.mark.parametrize(
    "second",
    [
        {"f": 2, "t": 3, "n": [[3, "a", "q", None, 5, True]], "g": []},
        {"f": 2, "t": 3, "n": [], "g": [[3, "g", "p", None]], "x": [1]},
        {
            "f": 2,
            "t": 4,
            "n": [[3, "b", "q", None, 5, True], [4, "b", "q", None, 5, True]],
            "g": [],
        },
    ],
)
def test_what_is_there_twice_is_refused_and_nothing_of_it_taken_in(second: dict[str, Any]) -> None:
    known = PeerEntries(OWNER, LIMITS)
    known.read(said(GOOD))
    before = known.entries
    with pytest.raises(DirectoryError, match="is there twice"):
        known.read(said(second))
    assert known.entries == before and known.version == 2
    assert set(known.names) == {"a"}
