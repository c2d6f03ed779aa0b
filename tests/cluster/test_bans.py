"""Bans on the control planes of several nodes: who is shut out, by whom, and for how long."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

import pytest

from rabble import NodeId
from rabble.cluster.decide.bans import DURATION_MS_MAX
from rabble.cluster.decide.node_keys import NodeKey, derived
from rabble.cluster.gossip import KIND_MEMBERSHIP
from tests.cluster.plane import CODEC, Plane, turn_until, turn_while

#: A clock that is set: whoever starts later has a later incarnation.
START = 1 << 40
QUICK = {"digest_ms": 50, "redial_refused_ms": 20}
AUTHORITY = bytes(range(32))


def meet(*planes: Plane) -> None:
    """All join the first one, until each is connected to each."""
    for each in planes[1:]:
        each.plane.join(planes[0].own)
    whole = {each.own.name for each in planes}
    turn_until(lambda: all(e.peers | {e.own.name} == e.members == whole for e in planes), *planes)


def key_of(name: str, number: int = 1) -> NodeKey:
    return derived(AUTHORITY, name, bytes([number]) * 16)


@pytest.fixture
def abc() -> Iterator[tuple[Plane, Plane, Plane]]:
    with Plane("a", START, **QUICK) as a, Plane("b", START, **QUICK) as b:
        with Plane("c", START, **QUICK) as c:
            meet(a, b, c)
            yield a, b, c


def ban(plane: Plane, *subjects: str | bytes, seconds: float = 1_000.0) -> None:
    plane.plane.members.shut_out.ban(subjects, seconds)


def lift(plane: Plane, *subjects: str | bytes) -> None:
    plane.plane.members.shut_out.lift(subjects)


def texts(plane: Plane, *words: str) -> list[str]:
    return [text for text in plane.runtime.reports if all(word in text for word in words)]


# A name.


def test_a_banned_node_is_let_go_by_all_and_told_for_how_long(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    a, b, c = abc
    seen = [peer.connection for peer in b.plane._connections.all() if peer.node == c.own]
    ban(a, "c")
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"} and not c.peers, *abc)
    turn_until(lambda: a.members == b.members == {"a", "b"}, *abc)
    # By which NodeDown has its reason, and `refusals` its count.
    assert [each.code for each in seen] == [22]
    # It is no member less: all is as it was when the ban is over.
    assert not c.plane.status().removed and c.runtime.news == []
    assert all("c" in each.plane._membership for each in abc)
    [text] = texts(c, "banned")
    assert text == (
        "c: the name c is banned for 1000 s, by a: that is this node, which nobody lets in "
        "until then"
    )
    for each in (a, b):
        assert each.banned == {"c"}
        [text] = texts(each, "banned")
        assert text == f"{each.own.name}: the name c is banned for 1000 s, by a"
    status = b.plane.status()
    [shown] = status.bans
    assert (shown.node, shown.key, shown.by) == ("c", None, "a")
    assert 900 < shown.seconds_left <= 1_000


def test_a_banned_node_that_joins_again_is_refused_with_words_and_backs_off(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    a, b, c = abc
    ban(a, "c")
    turn_until(lambda: b.banned and not c.peers, *abc)
    c.runtime.reports.clear()
    levels: list[tuple[int, str]] = []
    c.runtime.report = lambda level, words: levels.append((level, words()))  # type: ignore[method-assign]
    c.plane.join(a.own)
    targets = c.plane._connection_manager._members.values()
    turn_until(lambda: all(each.ban_s > 900 for each in targets), *abc)
    turn_until(lambda: c.refusals.get("BANNED", 0) >= 6, *abc)
    warned = [text for level, text in levels if level == logging.WARNING]
    assert len(warned) == 1
    # It dialled, or was dialled.
    assert "BANNED: the peer refused: the name c is banned for " in warned[0]
    for each in (a, b):
        assert not each.peers & {"c"} and each.members == {"a", "b"}
        assert each.refusals.get("BANNED", 0) >= 1
        assert len(texts(each, "BANNED")) >= 1
    # Each peer is dialled less and less often.
    now = time.monotonic()
    statuses = c.plane._connection_manager.statuses(now)
    assert all(status.refusal is not None for status in statuses.values())


def test_another_node_of_the_name_is_refused_as_well(abc: tuple[Plane, Plane, Plane]) -> None:
    a, b, c = abc
    ban(a, "x")
    turn_until(lambda: a.banned == b.banned == c.banned == {"x"}, *abc)
    with Plane("x", START, **QUICK) as x:
        x.plane.join(b.own)
        turn_until(lambda: x.refusals.get("BANNED", 0) >= 2, *abc, x)
        assert not x.peers and b.members == {"a", "b", "c"}


def test_a_name_is_not_joined_while_it_is_banned(abc: tuple[Plane, Plane, Plane]) -> None:
    a, *_ = abc
    ban(a, "x")
    a.plane.join(NodeId("x", "127.0.0.1:1"))
    assert a.members == {"a", "b", "c"} and "x" not in a.desired
    [text] = texts(a, "cannot join")
    assert text == ("a: cannot join x@127.0.0.1:1: its name is banned; lift_ban() lets it in")


def test_a_join_of_an_address_where_somebody_is_banned_says_so_once(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    a, *_ = abc
    ban(a, "x")
    with Plane("x", START, **QUICK) as x:
        a.plane.join(x.own.addr)
        turn_until(lambda: a.refusals.get("BANNED", 0) >= 3, *abc, x)
        assert not x.peers and x.refusals.get("BANNED")
    [text] = texts(a, f"dialling {x.own.addr}")[:1]
    assert text.endswith("BANNED: the name x is banned for 1000 s more")


def test_a_connection_of_who_is_banned_ends_though_the_step_that_ends_it_broke_off(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    a, _b, c = abc
    a.plane.members.shut_out._bans.ban("c", 1_000, time.monotonic())
    turn_while(3, *abc)
    assert "c" in a.peers
    a.plane.failures.note("the test", OSError())
    turn_until(lambda: "c" not in a.peers and "a" not in c.peers, *abc)
    assert [each for each in texts(c, "banned") if "that is this node" in each]


def test_what_is_not_banned_cannot_be_lifted_which_is_said(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    a, *_ = abc
    lift(a, "x", bytes(32))
    assert texts(a, "no ban to lift") == [
        "a: no ban to lift: the name x is not banned, as far as is known",
        f"a: no ban to lift: the key {'00' * 32} is not banned, as far as is known",
    ]


def test_whoever_is_joined_elsewhere_in_spite_of_a_ban_is_shown_by_nobody(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    """As of two acts that did not know of each other."""
    a, b, _c = abc
    b.plane.join(NodeId("x", "127.0.0.1:1"))
    ban(a, "x")
    turn_until(lambda: all(each.banned == {"x"} for each in abc), *abc)
    turn_until(lambda: all("x" in each.plane._membership for each in abc), *abc)
    assert all(each.members == {"a", "b", "c"} for each in abc)
    # Until somebody has it leave, it is a member.
    a.plane.leave("x")
    turn_until(lambda: all("x" not in each.plane._membership for each in abc), *abc)
    assert all("x" not in each.desired for each in abc)


def test_a_node_that_comes_later_learns_of_the_ban_from_who_still_lives(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    a, b, c = abc
    ban(a, "x")
    turn_until(lambda: b.banned == c.banned == {"x"}, *abc)
    a.plane.leave("a")
    turn_until(lambda: b.peers == {"c"} and c.peers == {"b"}, *abc)
    with Plane("d", START, **QUICK) as d:
        d.plane.join(b.own)
        turn_until(lambda: d.banned == {"x"} and d.peers == {"b", "c"}, b, c, d)
        with Plane("x", START, **QUICK) as x:
            x.plane.join(d.own)
            turn_until(lambda: d.refusals.get("BANNED"), b, c, d, x)
            assert d.members == {"b", "c", "d"}


def test_a_ban_is_over_by_time_and_the_node_comes_in_by_itself(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    a, b, c = abc
    ban(a, "c", seconds=1.0)
    turn_until(lambda: b.banned and not c.peers, *abc)
    turn_until(lambda: c.peers == {"a", "b"} and a.members == {"a", "b", "c"}, *abc)
    assert c.refusals.get("BANNED", 0) >= 1
    assert not a.banned | b.banned and not c.plane.status().removed
    assert texts(a, "the name c is banned no longer")
    turn_until(lambda: not any(each.plane.status().bans for each in abc), *abc)


def test_a_ban_that_is_lifted_anywhere_is_over_everywhere(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    a, b, c = abc
    ban(a, "c")
    turn_until(lambda: b.banned and not c.peers, *abc)
    lift(b, "c")
    turn_until(lambda: not (a.banned or b.banned), *abc)
    turn_until(lambda: c.peers == {"a", "b"} and b.members == {"a", "b", "c"}, *abc)
    # Nothing is left to be told.
    turn_until(lambda: agree(*abc), *abc)


def agree(*planes: Plane) -> bool:
    """Whether each pair has the same digest."""
    digests = {
        (each.own.name, peer.node.name): each.plane._gossip._digest(peer, time.monotonic())
        for each in planes
        for peer in each.plane._connections.all()
    }
    return len(digests) == len(planes) * (len(planes) - 1) and all(
        digest == digests.get((two, one)) for (one, two), digest in digests.items()
    )


def cut_off(plane: Plane) -> None:
    """End its connections; as long as the others take no turns it is by itself."""
    for peer in plane.plane._connections.all():
        plane.plane._abandon(peer.connection_id, "the test", OSError())


def test_what_is_said_by_itself_ends_with_its_time_and_parts_nobody_then(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    """So it was with a removal that went with the ban, and spread after it."""
    a, b, c = abc
    cut_off(a)
    ban(a, "c", seconds=0.2)
    turn_until(lambda: not a.banned, a)
    turn_until(lambda: a.peers == {"b", "c"} and c.peers == {"a", "b"}, *abc)
    turn_until(lambda: agree(*abc), *abc)
    assert not c.plane.status().removed and not b.banned | c.banned
    assert a.members == b.members == c.members == {"a", "b", "c"}


def test_who_is_banned_and_bans_others_is_with_them_again_when_both_are_over(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    a, b, c = abc
    ban(a, "c", seconds=1.0)
    turn_until(lambda: b.banned and not c.peers, *abc)
    ban(c, "a", "b", seconds=2.0)
    # It connects to nobody whom it bans, and nobody else is told of that.
    turn_until(lambda: not a.banned | b.banned, *abc)
    assert not c.peers and a.peers == {"b"}
    turn_until(lambda: c.peers == {"a", "b"} and a.peers == {"b", "c"}, *abc)
    assert a.members == b.members == c.members == {"a", "b", "c"}
    assert not any(each.plane.status().removed for each in abc)


def test_who_is_shut_out_and_has_to_leave_is_no_member_when_the_ban_is_over(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    a, b, c = abc
    ban(a, "c", seconds=0.5)
    a.plane.leave("c")
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"} and not c.peers, *abc)
    turn_until(lambda: not a.banned | b.banned, *abc)
    assert a.members == b.members == {"a", "b"}
    turn_until(lambda: c.plane.status().removed, *abc)


def test_a_member_whose_name_is_let_in_again_is_dialled(abc: tuple[Plane, Plane, Plane]) -> None:
    """It was made a member by somebody who had not heard of the ban."""
    a, *_ = abc
    ban(a, "x")
    with Plane("x", START, **QUICK) as x:
        a.plane._membership.add(x.own)
        a.plane.members._changed()
        a.plane.members._add_peers([x.own])
        turn_until(lambda: all(each.refusals.get("BANNED") for each in abc), *abc, x)
        assert not x.peers
        lift(a, "x")
        turn_until(lambda: x.peers >= {"a", "b", "c"}, *abc, x)


# A key.


@pytest.fixture
def keyed() -> Iterator[tuple[Plane, Plane, Plane]]:
    with contextlib.ExitStack() as stack:
        planes = [stack.enter_context(Plane(name, START, key_of(name), **QUICK)) for name in "abc"]
        meet(*planes)
        a, b, c = planes
        yield a, b, c


def test_nodes_with_keys_of_their_own_show_them_to_each_other(
    keyed: tuple[Plane, Plane, Plane],
) -> None:
    a, *_ = keyed
    shown = {peer.node.name: peer.keys for peer in a.plane.status().connections}
    assert shown == {name: (key_of(name).fingerprint.hex(),) for name in "bc"}


def test_who_has_anothers_key_cannot_be_that_node(keyed: tuple[Plane, Plane, Plane]) -> None:
    """Here it claims the name and the id of the key, and lacks the rest."""
    a, *_ = keyed
    stolen = NodeKey("b", key_of("b").key_id, key_of("c").coefficients)
    with Plane("b", START * 2, stolen, **QUICK) as b:
        b.plane.join(a.own)
        turn_until(lambda: b.refusals.get("AUTH") and a.refusals.get("AUTH"), *keyed, b)
        assert a.peers == {"b", "c"} and not b.peers


def test_nodes_with_the_key_of_all_and_with_keys_of_their_own_refuse_each_other(
    keyed: tuple[Plane, Plane, Plane],
) -> None:
    a, *_ = keyed
    with Plane("x", START, **QUICK) as x:
        x.plane.join(a.own)
        turn_until(lambda: x.refusals.get("AUTH") and a.refusals.get("AUTH"), *keyed, x)
        assert texts(x, "a key of its own, this node the cluster's key") or texts(
            a, "the cluster's key, this node a key of its own"
        )


def test_a_banned_key_is_shut_out_and_the_name_comes_back_with_another_one(
    keyed: tuple[Plane, Plane, Plane],
) -> None:
    a, b, c = keyed
    ban(a, key_of("c").fingerprint)
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"} and not c.peers, *keyed)
    # The name stays a member: its node is dialled now and then, and is told so when it dials.
    assert a.members == b.members == {"a", "b", "c"}
    assert not c.plane.status().removed
    turn_until(lambda: c.refusals.get("BANNED", 0) >= 2, *keyed)
    assert texts(c, f"the key {key_of('c').fingerprint.hex()} is banned", "that is this node")
    assert "c" in a.desired and not a.peers & {"c"}
    c.plane.stop(0.0, 0.0)
    turn_while(3, *keyed)
    with Plane("c", START * 2, key_of("c", 2), **QUICK) as again:
        again.plane.join(a.own)
        turn_until(lambda: again.peers == {"a", "b"} and a.peers == {"b", "c"}, a, b, again)


@pytest.mark.parametrize("what", ["its key", "its name"])
def test_a_banned_node_that_is_only_dialled_learns_why_it_is_alone(
    keyed: tuple[Plane, Plane, Plane], what: str
) -> None:
    """It was started anew, and knows nobody: members dial it, as they do who was away."""
    a, b, c = keyed
    key = key_of("c").fingerprint
    ban(a, key if what == "its key" else "c")
    turn_until(lambda: b.banned and not c.peers, *keyed)
    port = int(c.own.addr.rpartition(":")[2])
    c.close()
    with Plane("c", START * 2, key_of("c"), port=port, **QUICK) as again:
        levels: list[tuple[int, str]] = []
        again.runtime.report = lambda level, words: levels.append((level, words()))  # type: ignore[method-assign]
        turn_until(lambda: again.refusals.get("BANNED", 0) >= 4, a, b, again)
        assert again.refusals.keys() == {"BANNED"} and not again.peers | again.desired
    [warning] = [text for level, text in levels if level == logging.WARNING]
    assert "c: a connection from 127.0.0.1:" in warning
    about = f"the key {key.hex()}" if what == "its key" else "the name c"
    assert f"BANNED: the peer refused: {about} is banned for " in warning
    for each in (a, b):
        assert len(texts(each, f"dialling {c.own.addr}: BANNED")) >= 1


def test_a_node_whose_key_is_let_in_again_is_dialled_at_once(
    keyed: tuple[Plane, Plane, Plane],
) -> None:
    a, b, c = keyed
    key = key_of("c").fingerprint
    ban(a, key)
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"} and not c.peers, *keyed)
    for each in keyed:
        # Nobody's turn comes by itself.
        for target in each.plane._connection_manager._members.values():
            if target.due is not None:
                waiting = each.plane._connection_manager._waiting
                waiting.drop(target)
                target.due = time.monotonic() + 10_000
                waiting._targets[target] = waiting._failing[target] = None
    lift(b, key)
    turn_until(lambda: a.peers == {"b", "c"} and b.peers == {"a", "c"}, *keyed)


def test_a_key_is_banned_by_whatever_name_it_is_used(
    keyed: tuple[Plane, Plane, Plane],
) -> None:
    a, b, c = keyed
    key = key_of("x").fingerprint
    ban(c, key)
    turn_until(lambda: a.banned == b.banned == {key}, *keyed)
    with Plane("x", START, key_of("x"), **QUICK) as x:
        x.plane.join(a.own)
        turn_until(lambda: x.refusals.get("BANNED"), *keyed, x)
        assert not x.peers
    with Plane("x", START * 2, key_of("x", 2), **QUICK) as x:
        x.plane.join(a.own)
        turn_until(lambda: x.peers == {"a", "b", "c"}, *keyed, x)


# What a member claims.


def claim(plane: Plane, rows: list[list[object]]) -> None:
    """Tell all peers of these bans."""
    body = CODEC.encode_message({"b": rows})
    for peer in plane.plane._connections.all():
        peer.connection.send_control(KIND_MEMBERSHIP, body)


def test_a_banned_node_does_not_lift_its_own_ban(abc: tuple[Plane, Plane, Plane]) -> None:
    """As it could, while it has connections to some who have not heard of it."""
    _a, b, c = abc
    b.plane.members.shut_out._bans.ban("c", 1_000, time.monotonic())
    claim(c, [["c", 2**40, 0, "a", 0, False], ["y", 2**40, 10**6, "a", 10**6, False]])
    turn_until(lambda: "y" in b.banned, *abc)
    assert b.banned == {"c", "y"}


def test_what_one_member_made_up_an_operator_undoes_on_any_other(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    """It costs what a forged removal does, a join, and one lifting."""
    a, b, m = abc
    claim(m, [["a", 99, DURATION_MS_MAX, "b", DURATION_MS_MAX, False]])
    turn_until(lambda: a.peers == {"c"} and b.peers == {"c"}, *abc)
    ban(b, "c")
    turn_until(lambda: b.peers == set(), *abc)
    assert all(ban.seconds_left <= 400 * 86_400 for ban in b.plane.status().bans)
    lift(b, "a")
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, *abc)
    turn_until(lambda: a.banned == b.banned == {"c"} and not m.peers, *abc)


def test_a_flood_of_bans_fills_no_table_and_keeps_no_ban_out(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    """Though it goes on, of ever later times, as long as anybody listens."""
    a, b, m = abc
    bound = a.plane._highest_believed()

    def flood(time: int) -> None:
        rows = [[f"x{i:03}", time + i, 10**6, "bm"[i % 2], 10**6, True] for i in range(512)]
        claim(m, [list(row) for row in rows])

    flood(10**6)
    turn_until(lambda: len(a.banned) == len(b.banned) == 256, *abc)
    assert a.peers == {"b", "c"}
    ban(a, "c")
    for step in range(1, 200):
        flood(bound - (200 - step) * 512)
        turn_while(1, *abc)
    turn_until(lambda: "c" in b.banned and not (m.peers or {"c"} & (a.peers | b.peers)), *abc)
    assert "c" in a.banned and len(a.banned) == len(b.banned) == 256
    assert texts(a, "is forgotten: Limits.bans_max is reached")


@pytest.mark.parametrize(
    "message",
    [
        {"b": 1},
        {"b": [["x", 1, 10, "a", 11, True]]},
        {"b": [["x", 1, 10, "a", 10, True]], "s": [], "v": [], "m": []},
        {"b": [], "d": bytes(32)},
        {"b": [], "x": 1},
        {"b": [], "k": 1},
    ],
)
def test_what_is_no_ban_ends_the_connection_that_it_came_over(
    abc: tuple[Plane, Plane, Plane], message: object
) -> None:
    a, b, m = abc
    body = CODEC.encode_message(message)
    [peer] = [each for each in m.plane._connections.all() if each.node == a.own]
    peer.connection.send_control(KIND_MEMBERSHIP, body)
    turn_until(lambda: a.refusals.get("DECODE") and m.refusals.get("DECODE"), *abc)
    assert texts(a, "is not taken in")
    assert not a.banned and "b" in a.peers


def test_a_ban_that_only_the_banned_node_was_told_of_is_forgotten_when_others_take_it(
    abc: tuple[Plane, Plane, Plane],
) -> None:
    a, b, m = abc
    [peer] = [each for each in m.plane._connections.all() if each.node == a.own]
    body = CODEC.encode_message({"b": [["a", 99, 10**6, "b", 10**6, False]], "k": True})
    peer.connection.send_control(KIND_MEMBERSHIP, body)
    turn_until(lambda: a.banned == {"a"}, *abc)
    assert a.peers == {"b", "c"} and not b.banned
    with Plane("d", START, **QUICK) as d:
        d.plane.join(a.own)
        turn_until(lambda: a.peers == {"b", "c", "d"} and not a.banned, *abc, d)
    assert not b.banned


@pytest.mark.parametrize("end", ["leave", "stop"])
def test_a_ban_is_told_before_who_said_it_parts(abc: tuple[Plane, Plane, Plane], end: str) -> None:
    a, b, c = abc
    ban(a, "x")
    # Within the time in which the next one is gathered with others.
    ban(a, "y")
    if end == "leave":
        a.plane.leave("a")
    else:
        a.plane.stop(10.0, 10.0)
    turn_until(lambda: not (b.peers & {"a"} or c.peers & {"a"}), *abc)
    for each in (b, c):
        assert {ban.node for ban in each.plane.status().bans} == {"x", "y"}
