"""A node's own life in the mesh: removed, told so whatever fails, and dialled by others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from rabble import Removed
from tests.cluster.plane import Plane, turn_until

START = 1 << 40
QUICK = {"digest_ms": 50, "redial_refused_ms": 20}


@pytest.fixture
def ab() -> Iterator[tuple[Plane, Plane]]:
    with Plane("a", START, **QUICK) as a, Plane("b", START, **QUICK) as b:
        b.plane.join(a.own)
        turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)
        yield a, b


def levels_of(plane: Plane) -> list[tuple[int, str]]:
    """What is reported from now on, with its level."""
    levels: list[tuple[int, str]] = []
    plane.runtime.report = lambda level, words: levels.append((level, words()))  # type: ignore[method-assign]
    return levels


def test_who_dials_a_removed_node_is_told_once_on_which_one_somebody_has_to_join(
    ab: tuple[Plane, Plane],
) -> None:
    a, b = ab
    b.plane.leave("b")
    turn_until(lambda: not a.peers and b.plane.status().removed, *ab)
    said_by_a, said_by_b = levels_of(a), levels_of(b)
    a.plane.join(b.own.addr)
    turn_until(lambda: a.refusals.get("NOT_JOINED", 0) >= 3, *ab)
    assert b.refusals.get("NOT_JOINED", 0) >= 3
    words = (
        "the node that answers was removed from its cluster and lets nobody in: "
        "call join() there, or start it anew; it is b"
    )
    assert [text for level, text in said_by_a if level == logging.WARNING] == [
        f"a: dialling {b.own.addr}: NOT_JOINED: the peer refused: {words}"
    ]
    [warning] = [text for level, text in said_by_b if level == logging.WARNING]
    assert warning.startswith("b: a connection from ")
    assert warning.endswith(f"NOT_JOINED: refused: {words}")
    # What it says is done.
    b.plane.join(a.own)
    turn_until(lambda: a.peers == {"b"} and b.members == {"a", "b"}, *ab)
    assert not a.plane._connection_manager.seed_statuses(0.0)
    # If it happens again it is said again.
    b.plane.leave("b")
    turn_until(lambda: not a.peers and b.plane.status().removed, *ab)
    a.plane.join(b.own)
    turn_until(lambda: a.refusals.get("NOT_JOINED", 0) >= 5, *ab)
    assert len([text for level, text in said_by_a if "NOT_JOINED" in text and level > 20]) == 2


def test_a_node_hears_of_its_removal_though_its_connections_cannot_be_ended(
    ab: tuple[Plane, Plane], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = ab

    def fails(*arguments: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(b.plane._seeds, "pause", fails)
        a.plane.leave("b")
        turn_until(lambda: b.runtime.news, *ab)
        assert b.runtime.news == [Removed(None)] and b.plane.status().removed
        assert any("join() begins anew" in text for text in b.runtime.reports)
    # What broke off is done when it can be.
    turn_until(lambda: not b.peers and not b.desired, *ab)


def seen_incarnation(of: Plane, by: Plane) -> int | None:
    """Of the start of a node that another one is connected to."""
    for peer in by.plane.status().connections:
        if peer.node == of.own:
            return peer.incarnation
    return None


@pytest.mark.parametrize("whose", ["who was dialled", "who dials", "who has proven itself"])
def test_a_handshake_of_an_earlier_start_comes_to_nothing(
    whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Plane("a", START, **QUICK) as a, Plane("b", START, **QUICK) as b:
        changing = a if whose == "who was dialled" else b
        step = {
            "who was dialled": (a.plane._admission, "refusal"),
            "who dials": (b.plane._admission, "refusal_of_answer"),
            "who has proven itself": (b.plane._handshakes, "authenticate"),
        }[whose]
        ordinary = getattr(*step)
        changed = []

        def become_later(*arguments: Any) -> Any:
            answer = ordinary(*arguments)
            if not changed:
                changed.append(changing.plane.incarnation)
                assert changing.plane._life.become_later()
            return answer

        monkeypatch.setattr(*step, become_later)
        b.plane.join(a.own)
        turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)
        assert seen_incarnation(a, b) == a.plane.incarnation
        assert seen_incarnation(b, a) == b.plane.incarnation
        assert changed and changed[0] < changing.plane.incarnation
