"""The control plane: what it makes of a join, a removal, a crowd at its door, and its end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import select
import socket
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from rabble import NodeId, Removed
from rabble._core.connection import Connection
from rabble.addresses import Address
from rabble.cluster.connections import PeerConnection
from rabble.cluster.control_frames import FRAMES_A_TURN, SECONDS_A_TURN
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.gossip import KIND_MEMBERSHIP
from rabble.cluster.io import resolver
from rabble.cluster.io.handshake_socket import HandshakeSocket
from rabble.cluster.server import new_incarnation
from tests.cluster.plane import CODEC, Plane, turn_until, turn_while
from tests.support import PATIENCE_S, TINY, held_ports


def connect(plane: Plane) -> socket.socket:
    host, _, port = plane.own.addr.rpartition(":")
    return socket.create_connection((host, int(port)))


@pytest.fixture
def free_addr() -> Iterator[Callable[[], str]]:
    """Gives addresses where nobody listens, each another one."""
    with held_ports(2) as ports:
        yield lambda: f"127.0.0.1:{ports.pop()}"


# Joins.


@pytest.mark.parametrize("by", ["node id", "address"])
def test_a_join_connects_two_nodes_once_and_makes_both_members(by: str) -> None:
    with Plane("a") as a, Plane("b") as b:
        a.plane.join(b.own if by == "node id" else b.own.addr)
        turn_until(lambda: a.members == b.members == {"a", "b"}, a, b)
        turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)
        assert [len(each.runtime.up) for each in (a, b)] == [1, 1]
        assert a.runtime.reports == b.runtime.reports == []
        assert a.refusals == b.refusals == {}


def test_who_joins_one_joins_all() -> None:
    with Plane("a") as a, Plane("b") as b, Plane("c") as c:
        a.plane.join(b.own)
        c.plane.join(b.own.addr)
        turn_until(lambda: a.peers == {"b", "c"} and c.peers == {"a", "b"}, a, b, c)
        turn_until(lambda: a.members == b.members == c.members == {"a", "b", "c"}, a, b, c)


def test_a_join_of_itself_is_nothing() -> None:
    with Plane("a") as a:
        a.plane.join(a.own)
        turn_while(5, a)
        assert (a.members, a.peers, a.runtime.reports) == ({"a"}, set(), [])


def test_a_join_for_which_there_is_no_room_is_reported(free_addr: Callable[[], str]) -> None:
    with Plane("a", membership_members_max=1) as a:
        a.plane.join(NodeId("b", free_addr()))
        [text] = a.runtime.reports
        assert text.startswith("a: cannot join b@")
        assert a.members == {"a"}


def test_nobody_at_an_address_is_dialled_until_it_is_left(free_addr: Callable[[], str]) -> None:
    with Plane("a", redial_first_ms=1, redial_most_ms=1) as a:
        nobody = NodeId("b", free_addr())
        a.plane.join(nobody)
        assert a.members == {"a", "b"}
        turn_until(lambda: a.refusals.get("REFUSED", 0) >= 3, a)
        a.plane.leave("b")
        assert a.members == {"a"}
        turn_while(2, a)
        failures = a.refusals
        # The digest and the seeds are all that is left to do.
        assert a.plane.next_tick(time.monotonic()) > time.monotonic()
        turn_while(50, a)
        assert a.refusals == failures


def test_a_closed_port_is_warned_of_once(free_addr: Callable[[], str]) -> None:
    with Plane("a", redial_first_ms=1, redial_most_ms=1) as a:
        levels: list[int] = []
        a.runtime.report = lambda level, words: levels.append(level)  # type: ignore[method-assign]
        a.plane.join(free_addr())
        a.plane.join(NodeId("b", free_addr()))
        turn_until(lambda: a.refusals.get("REFUSED", 0) >= 8, a)
        assert levels.count(logging.WARNING) == 2
        assert set(a.refusals) == {"REFUSED"}


@pytest.mark.parametrize(
    "found",
    [OSError("no such host"), [], [(socket.AF_INET, ("192.0.2.1", 4_000))]],
    ids=["no host", "no address", "no way"],
)
def test_an_address_that_leads_nowhere_is_warned_of_once(
    found: list[Address] | OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in the way there: of a node that was never reached, a mistyped address may be."""

    def look_up(host: str, port: int, flags: int = 0) -> list[Address]:
        if flags or isinstance(found, OSError):
            raise found if isinstance(found, OSError) else OSError("no number")
        return found

    monkeypatch.setattr(resolver, "look_up", look_up)
    monkeypatch.setattr(HandshakeSocket, "connect", unreachable)
    with Plane("a", redial_first_ms=1, redial_most_ms=1) as a:
        told: list[str] = []

        def report(level: int, words: Callable[[], str]) -> None:
            if level == logging.WARNING:
                told.append(words())

        a.runtime.report = report  # type: ignore[method-assign]
        for addr in "some.host:4000", "other.host:4000":
            a.plane.join(NodeId(addr[:4], addr))
        turn_until(lambda: a.refusals.get("TIMEOUT", 0) >= 8, a)
        assert len(told) == 2
        assert "a: dialling some.host:4000: TIMEOUT: " in "".join(told)


def unreachable(connecting: HandshakeSocket, where: object) -> None:
    raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.1", "0x7f.1"])
@pytest.mark.parametrize("by", ["node id", "address"])
def test_one_node_by_several_spellings_is_one_member(host: str, by: str) -> None:
    with Plane("a") as a, Plane("b") as b:
        addr = f"{host}:{b.own.addr.rpartition(':')[2]}"
        a.plane.join(b.own)
        a.plane.join(NodeId("b", addr) if by == "node id" else addr)
        a.plane.join(b.own.addr)
        both = (a.own, b.own)
        turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)
        turn_until(lambda: b.plane.status().members == a.plane.status().members == both, a, b)
        turn_until(lambda: not a.plane._connection_manager.seed_statuses(0.0), a, b)
        assert [len(each.runtime.up) for each in (a, b)] == [1, 1]


def test_dials_that_cross_are_no_failures() -> None:
    """Whoever gives way, nothing times out, is warned of, or comes up twice."""
    for seed in range(30):
        rng = random.Random(seed)
        with Plane("a") as a, Plane("b") as b:
            a.plane.join(b.own)
            b.plane.join(a.own.addr if seed % 2 else a.own)
            for _ in range(60):
                rng.choice((a, b)).turn()
            turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)
            turn_while(10, a, b)
            assert [len(each.runtime.up) for each in (a, b)] == [1, 1]
            assert {*a.refusals, *b.refusals} <= {"DUPLICATE", "CLOSED"}
            assert not [t for t in a.runtime.reports + b.runtime.reports if "TIMEOUT" in t]


def test_a_probe_that_says_nothing_is_no_handshake_that_took_too_long() -> None:
    with Plane("a") as a:
        connect(a).close()
        turn_until(lambda: a.refusals, a)
        assert a.refusals == {"CLOSED": 1}


# Removal.


def test_a_node_that_is_removed_is_told_and_comes_back_as_a_later_start() -> None:
    with Plane("a") as a, Plane("b") as b:
        a.plane.join(b.own)
        turn_until(lambda: a.peers == {"b"} and b.members == {"a", "b"}, a, b)
        before = a.plane.status().incarnation
        b.plane.leave("a")
        assert b.members == {"b"}
        turn_until(lambda: a.plane.status().removed and not (a.peers or b.peers), a, b)
        assert a.runtime.news == [Removed(None)]
        turn_while(20, a, b)
        assert not (a.peers or b.peers)
        a.plane.join(b.own)
        turn_until(lambda: a.peers == {"b"} and b.members == {"a", "b"}, a, b)
        assert a.plane.status().incarnation > before
        assert not a.plane.status().removed


def test_a_node_may_remove_itself() -> None:
    with Plane("a") as a, Plane("b") as b:
        a.plane.join(b.own)
        turn_until(lambda: a.peers == {"b"} and b.members == {"a", "b"}, a, b)
        a.plane.leave("a")
        assert a.runtime.news == [Removed(None)]
        turn_until(lambda: b.members == {"b"} and not b.peers, a, b)
        assert b.runtime.news == []


@pytest.mark.parametrize("seed", range(6))
def test_whoever_joins_and_leaves_the_peers_are_the_members(seed: int) -> None:
    """What is joined, merged and removed one by one comes to what all members together ask for."""
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        planes = [stack.enter_context(Plane(name, number)) for number, name in enumerate("abc", 1)]
        for _ in range(25):
            plane, other = rng.sample(planes, 2)
            if rng.random() < 0.5:
                plane.plane.join(other.own)
            else:
                plane.plane.leave(other.own.name)
            turn_while(rng.randrange(40), *planes)
            for each in planes:
                if not each.plane.status().removed:
                    assert each.desired >= each.members - {each.own.name}


# What others claim of a node's life.


def meet(*planes: Plane) -> None:
    """All join the first one, until each is connected to each."""
    for each in planes[1:]:
        each.plane.join(planes[0].own)
    whole = {each.own.name for each in planes}
    turn_until(lambda: all(e.peers | {e.own.name} == e.members == whole for e in planes), *planes)


def start(plane: Plane, incarnation: int, counter: int, ended: int, addr: str | None) -> Any:
    """The state of somebody who knows nothing but a start of that node, and no join of it."""
    known = plane.plane._membership.state()["v"]
    seen = [[*row[:3], 1] for row in known] if addr is None else []
    return {"s": [[plane.own.name, incarnation, counter, ended, addr]], "v": seen, "m": []}


def knows(plane: Plane, of: Plane) -> bool:
    """Whether it knows that node as what it is."""
    membership = plane.plane._membership
    incarnation = membership.incarnation_of(of.own.name)
    known = membership.members().get(of.own.name)
    return known == of.own and incarnation == of.plane.incarnation


def test_a_clock_that_goes_a_year_ahead_and_back_keeps_nobody_out() -> None:
    now = new_incarnation()
    year = 31_600_000_000 << 20
    with Plane("b", now) as b:
        for incarnation in (now, now + year, now + 1_000, now + year, 1, now + 2_000):
            with Plane("a", incarnation) as a:
                a.plane.join(b.own)
                turn_until(lambda a=a: a.peers == {"b"} and knows(a, a) and knows(b, a), a, b)
                turn_until(lambda a=a: knows(a, b), a, b)
            turn_until(lambda: not b.peers, b)


def test_a_clock_that_is_a_century_ahead_is_told_so() -> None:
    with Plane("b") as b, Plane("a", 2**63) as a:
        a.plane.join(b.own)
        turn_until(lambda: a.refusals.get("LIMIT") and b.refusals.get("LIMIT"), a, b)
        assert "a hundred years ahead of the clock" in a.runtime.reports[0]
        assert not (a.peers or b.peers)


@pytest.mark.parametrize("by", [1, 1 << 20, "bound", "beyond", 2**64 - 1])
def test_a_node_that_somebody_outbid_and_removed_comes_back_by_a_join(by: Any) -> None:
    """Whatever incarnation of it was removed: it goes beyond."""
    with contextlib.ExitStack() as stack:
        now = new_incarnation()
        # Each is a little later than the one before, as time goes on.
        a, b = (stack.enter_context(Plane("ab"[i], now + i * 1_000_000)) for i in range(2))
        leaving = stack.enter_context(contextlib.ExitStack())
        m = leaving.enter_context(Plane("m", now))
        meet(a, b, m)
        bound = a.plane._highest_believed()
        incarnation = {"bound": bound, "beyond": bound + 2_000_000}.get(by, by)
        m.claim(start(a, incarnation, 1, 1, None))
        if incarnation != bound:
            turn_while(20, a, b, m)
            assert not a.plane.status().removed
            m.claim(start(a, a.plane.incarnation, 1, 1, None))
        turn_until(lambda: a.plane.status().removed and "a" not in b.members, a, b, m)
        leaving.close()
        a.plane.join(b.own)
        turn_until(lambda: a.peers == b.peers ^ {"a", "b"} == {"b"}, a, b)
        turn_until(lambda: knows(a, a) and knows(b, a), a, b)
        assert not a.plane.status().removed


def test_a_node_that_was_removed_while_it_was_away_comes_back_by_a_join() -> None:
    """It never heard of the start that it is refused for."""
    with Plane("b") as b, Plane("a") as a:
        with Plane("m") as m:
            meet(b, m)
            m.claim(start(a, 1 << 50, 1, 1, None))
            turn_until(lambda: b.plane._membership.incarnation_of("a") == 1 << 50, b, m)
        turn_until(lambda: not b.peers, b)
        a.plane.join(b.own)
        turn_until(lambda: a.peers == {"b"} and knows(b, a), a, b)
        assert a.plane.incarnation == (1 << 50) + 1


@pytest.mark.parametrize("addr", ["own", "127.0.0.1:1", None])
def test_a_start_that_a_node_never_made_ends_no_connection(addr: str | None) -> None:
    with Plane("a") as a, Plane("b") as b, contextlib.ExitStack() as stack:
        m = stack.enter_context(Plane("m"))
        meet(a, b, m)
        m.claim(start(a, a.plane.incarnation, 99, 1, a.own.addr if addr == "own" else addr))
        turn_until(lambda: a.plane._membership._starts["a"].counter == 100, a, b, m)
        stack.close()

        def agree() -> bool:
            if a.plane.status().removed:
                # Who heard of a removal before it was contradicted has acted upon it, as upon a
                # `leave`.
                assert addr is None
                a.plane.join(b.own)
            same = a.plane._membership.digest() == b.plane._membership.digest()
            return (a.peers, b.peers, same) == ({"b"}, {"a"}, True) and knows(b, a)

        turn_until(agree, a, b)
        assert knows(a, a) and not a.plane.status().removed
        if addr is not None:
            assert [len(each.runtime.up) for each in (a, b)] == [2, 2]


def test_a_later_start_that_somebody_made_up_is_gone_beyond() -> None:
    quick = {"digest_ms": 50}
    with Plane("a", **quick) as a, Plane("b", **quick) as b, contextlib.ExitStack() as stack:
        m = stack.enter_context(Plane("m", **quick))
        meet(a, b, m)
        m.claim(start(a, 1 << 50, 1, 0, "127.0.0.1:1"))
        turn_until(lambda: not knows(b, a), a, b, m)
        stack.close()
        turn_until(lambda: knows(a, a) and knows(b, a), a, b)
        assert a.plane.incarnation == (1 << 50) + 1
        assert any("which goes beyond it" in text for text in a.runtime.reports)
        assert a.peers == {"b"} and len(b.runtime.up) == 2


def test_what_is_not_believed_is_reported() -> None:
    with Plane("a") as a, Plane("m") as m:
        meet(a, m)
        m.claim(start(a, 2**64 - 1, 1, 0, None))
        turn_until(lambda: a.runtime.reports, a, m)
        [text] = a.runtime.reports
        assert text == (
            f"a: 1 rows of {m.own}'s membership are not believed: they are a hundred years ahead "
            f"of the clock"
        )
        assert a.peers == {"m"}


def test_a_newcomer_gets_through_among_a_thousand_that_are_made_up(
    free_addr: Callable[[], str],
) -> None:
    with Plane("a") as a, Plane("b") as b, contextlib.ExitStack() as stack:
        m = stack.enter_context(Plane("m"))
        meet(a, b, m)
        nowhere = free_addr()
        m.claim({"s": [[f"x{i:04}", 1, 1, 0, nowhere] for i in range(1_018)], "v": [], "m": []})
        turn_until(lambda: len(a.members) == len(b.members) == 1_021, a, b, m)
        stack.close()
        begun = time.monotonic()
        turn_until(lambda: a.refusals.get("REFUSED", 0) >= 40, a, b)
        with Plane("n") as n:
            n.plane.join(b.own)
            turn_until(lambda: n.peers == {"a", "b"} and knows(a, n) and knows(n, a), a, b, n)
            seconds = time.monotonic() - begun
            for each in (a, b, n):
                dials = each.refusals.get("REFUSED", 0)
                assert dials <= 2 * (32 + 10 * (seconds + 1)), (each.own.name, dials, seconds)


def test_a_members_state_that_does_not_fit_in_is_counted_and_ends_no_connection(
    free_addr: Callable[[], str],
) -> None:
    with Plane("a", membership_members_max=2) as a, Plane("m") as m:
        meet(a, m)
        m.plane.join(NodeId("c", free_addr()))
        turn_until(lambda: a.refusals.get("LIMIT"), a, m)
        assert a.members == {"a", "m"}
        m.plane.join(NodeId("d", free_addr()))
        turn_until(lambda: a.refusals["LIMIT"] > 1, a, m)
        assert (a.peers, m.peers) == ({"m"}, {"a"}) and len(a.runtime.up) == 1
        [text] = [text for text in a.runtime.reports if "not taken in" in text]
        assert text.startswith(f"a: the membership of {m.own} is not taken in: ")
        assert "Limits.membership_members_max is 2 here" in text or "after the merge" in text


@pytest.mark.parametrize("odd", [10**5_000, Decimal("sNaN")], ids=["digits", "sNaN"])
def test_a_value_that_cannot_be_shown_or_compared_is_a_defect_of_its_sender(odd: Any) -> None:
    with Plane("a") as a, Plane("m") as m:
        meet(a, m)
        start = list(a.plane._membership.row_of("m") or ())
        start[1] = odd
        m.claim({"s": [start], "v": [], "m": []})
        turn_until(lambda: m.refusals, a, m)
        assert m.refusals == {"DECODE": 1} and "INTERNAL_ERROR" not in a.refusals


def test_a_strangers_state_that_does_not_fit_in_ends_its_connection() -> None:
    with Plane("a", membership_members_max=2) as a, Plane("b") as b, Plane("n") as n:
        meet(a, b)
        n.plane.join(a.own)
        turn_until(lambda: n.refusals.get("LIMIT"), a, b, n)
        assert a.members == {"a", "b"}


def test_a_liar_that_told_two_nodes_more_than_fits_together_parts_them_in_nothing() -> None:
    limits = {"membership_members_max": 20, "digest_ms": 50, "digest_settled_ms": 50}
    ghosts = {"a": "x", "b": "y"}
    with Plane("a", **limits) as a, Plane("b", **limits) as b:
        with Plane("m", **limits) as m:
            meet(a, b, m)
            for peer in m.plane._connections.all():
                names = [f"{ghosts[peer.node.name]}{i:02}" for i in range(12)]
                rows = [[name, 1, 1, 0, "127.0.0.1:1"] for name in names]
                body = CODEC.encode_message({"s": rows, "v": [], "m": []})
                peer.connection.send_control(KIND_MEMBERSHIP, body)
            turn_until(lambda: a.refusals.get("LIMIT", 0) + b.refusals.get("LIMIT", 0), a, b, m)
        turn_until(lambda: "m" not in a.peers | b.peers, a, b)
        came_up = len(a.runtime.up), len(b.runtime.up)
        counted = a.refusals.get("LIMIT", 0) + b.refusals.get("LIMIT", 0)

        def are_counted() -> bool:
            assert (a.peers, b.peers) == ({"b"}, {"a"})
            return a.refusals.get("LIMIT", 0) + b.refusals.get("LIMIT", 0) > counted + 5

        turn_until(are_counted, a, b)
        assert (len(a.runtime.up), len(b.runtime.up)) == came_up
        reports = [text for text in a.runtime.reports if "not taken in" in text]
        assert len(reports) <= 1
        # What an operator does about it.
        for plane in (a, b):
            for name in plane.members - {"a", "b"}:
                plane.plane.leave(name)
        turn_until(lambda: a.members == b.members == {"a", "b"}, a, b)
        assert (len(a.runtime.up), len(b.runtime.up)) == came_up


@pytest.mark.skipif(TINY, reason="it is 8 MiB there, too, of 7 bytes each")
def test_a_busy_node_is_not_parted_from_a_peer_that_tells_it_more_than_it_can_read() -> None:
    """As a member that lies has others do, while it keeps that node busy."""
    limits = {"digest_ms": 50, "digest_settled_ms": 50}
    with Plane("a", **limits) as a, Plane("b", **limits) as b:
        meet(a, b)
        came_up = len(a.runtime.up), len(b.runtime.up)
        [peer] = a.plane._connections.all()
        names = [f"{'x' * 246}{number:03}" for number in range(250)]
        told = 0
        for ended in range(1, 200):
            state = {"s": [[name, 1, 1, ended, None] for name in names], "v": [], "m": []}
            body = CODEC.encode_message(state)
            while not peer.connection.send_control(KIND_MEMBERSHIP, body):
                assert peer.connection.open
                a.poller.poll()
                b.poller.poll()
            b.poller.poll()
            told += len(body)
        assert told > 12 << 20
        a.plane._membership.merge(state)

        def agree() -> bool:
            assert (a.peers, b.peers) == ({"b"}, {"a"})
            return a.plane._membership.digest() == b.plane._membership.digest()

        turn_until(agree, a, b)
        assert (len(a.runtime.up), len(b.runtime.up)) == came_up
        assert b.plane._membership.incarnation_of(names[0]) == 1


def test_a_node_for_which_there_is_no_room_any_more_stays_removed(
    free_addr: Callable[[], str],
) -> None:
    with Plane("a", membership_members_max=2) as a, Plane("b", membership_members_max=2) as b:
        meet(a, b)
        b.plane.leave("a")
        turn_until(lambda: a.plane.status().removed, a, b)
        a.plane._membership.add(NodeId("c", free_addr()))
        a.plane.join(b.own)
        assert a.plane.status().removed
        assert "cannot be a member again" in a.runtime.reports[-1]


# What others see.


def test_the_status_is_published_once_a_round_and_only_when_something_changed() -> None:
    with contextlib.ExitStack() as stack:
        planes = [stack.enter_context(Plane(name)) for name in "abcdef"]
        first = planes[0]
        published = 0
        publish = first.plane._status_board.publish

        def count(*about: Any) -> None:
            nonlocal published
            published += 1
            publish(*about)

        first.plane._status_board.publish = count  # type: ignore[method-assign]
        for each in planes[1:]:
            first.plane.join(each.own)
        assert published == 0
        rounds = 0
        while len(first.plane.status().connections) < 5:
            before = published
            turn_while(1, *planes)
            assert published - before <= 1
            rounds += 1
            assert rounds < 100_000
        everybody = {each.own.name for each in planes}
        turn_until(lambda: all(e.peers == everybody - {e.own.name} for e in planes), *planes)
        turn_until(lambda: all(e.members == everybody for e in planes), *planes)
        before = published
        turn_while(20, *planes)
        assert published == before


def test_who_is_told_of_a_connection_finds_it_in_the_status() -> None:
    with Plane("a") as a, Plane("b") as b:
        seen: list[int] = []
        up = a.runtime.connection_up

        def connection_up(connection: Connection) -> None:
            seen.append(len(a.plane.status().connections))
            up(connection)

        a.runtime.connection_up = connection_up  # type: ignore[method-assign]
        a.plane.join(b.own)
        turn_until(lambda: seen, a, b)
        assert seen == [1]


# A crowd, and the end.


def test_of_too_many_handshakes_the_oldest_gives_way_and_is_counted() -> None:
    with Plane("a", handshakes_max=2) as a, contextlib.ExitStack() as stack:
        first, *_ = [stack.enter_context(connect(a)) for _ in range(3)]
        turn_until(lambda: a.refusals, a)
        assert a.refusals == {"BUSY": 1}
        [text] = a.runtime.reports
        assert text.endswith("BUSY: too many handshakes")
        assert first.recv(1) == b""


def test_a_flood_of_connections_that_say_nothing_keeps_no_peer_out() -> None:
    """Not even one from the same address, and with room for few."""
    with Plane("a", handshakes_max=16) as a, Plane("b") as b, contextlib.ExitStack() as stack:
        b.plane.join(a.own)
        begun = time.monotonic()
        while not (a.peers and b.peers):
            assert time.monotonic() < begun + PATIENCE_S, (a.refusals, b.refusals)
            for _ in range(6):
                stack.enter_context(connect(a))
            turn_while(1, a, b)
        assert a.refusals["BUSY"] > 2
        assert b.refusals == {}


def test_a_node_that_is_about_to_end_begins_nothing_new(free_addr: Callable[[], str]) -> None:
    with Plane("a") as a, Plane("b") as b:
        a.plane.join(b.own)
        a.plane.drain()
        a.plane.join(NodeId("c", free_addr()))
        turn_while(20, a, b)
        assert a.members == {"a", "b"}
        assert not (a.peers or b.peers)
        with pytest.raises(ConnectionRefusedError):
            connect(a)


def test_the_end_is_told_to_the_peers_and_is_over_when_it_is_sent() -> None:
    with Plane("a") as a, Plane("b") as b:
        a.plane.join(b.own)
        turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)
        assert not a.plane.is_over
        a.plane.stop(60.0, 60.0)
        turn_until(lambda: a.plane.is_over and not b.peers, a, b)
        assert b.refusals == {"SHUTDOWN": 1}
        # Asked again, it does not begin anew.
        a.plane.stop(0.0, 0.0)
        assert a.plane.is_over


# What a peer may have done in a turn.


def tell_much(plane: Plane, count: int) -> None:
    """Tell its peers so many things of a node, one by one, and then goodbye."""
    for peer in plane.plane._connections.all():
        for number in range(count):
            row = [f"of-{plane.own.name}", 1, 2 + number, 0, "127.0.0.1:1"]
            body = CODEC.encode_message({"s": [row], "v": [], "m": []})
            assert peer.connection.send_control(KIND_MEMBERSHIP, body)
        peer.connection.close(RefusalCode.SHUTDOWN, "", after_all=True)


def test_what_peers_tell_is_taken_in_by_a_few_of_each_in_a_turn_and_all_in_the_end() -> None:
    count = 10 * FRAMES_A_TURN
    with Plane("a") as a, Plane("m") as m, Plane("n") as n:
        for each in (m, n):
            each.plane.join(a.own)
        # These two know nothing of each other.
        turn_until(lambda: a.peers == {"m", "n"} and m.peers >= {"a"} <= n.peers, a, m, n)
        for each in (m, n):
            for peer in each.plane._connections.all():
                if peer.node != a.own:
                    peer.connection.abort(0)
            turn_while(1, each)
            tell_much(each, count)
        has_come = lambda: (  # noqa: E731
            a.poller.poll(), m.poller.poll(), n.poller.poll(),
            not any(each.connection.open for each in a.plane._connections.all()),
        )[-1]  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while not has_come():
            assert time.monotonic() < deadline

        def counters() -> list[int]:
            rows = [a.plane._membership.row_of(f"of-{name}") for name in "mn"]
            return [row[2] if row is not None else 1 for row in rows]

        before = counters()
        while before != [count + 1, count + 1]:
            assert select.select([a.poller], [], [], 0)[0], "nobody says that there is more"
            a.turn()
            after = counters()
            for one, other in zip(before, after, strict=True):
                assert one < other <= one + FRAMES_A_TURN or one == other == count + 1
            before = after
        turn_until(lambda: not a.plane._connections.all(), a)


def test_a_peer_whose_frames_take_long_has_fewer_of_them_read_in_a_turn() -> None:
    with Plane("a") as a, Plane("m") as m:
        meet(a, m)
        frames, now, read = a.plane._control_frames, 0.0, list[bytes]()

        def take_long(peer: PeerConnection, body: bytes) -> None:
            nonlocal now
            # Others are of the nodes themselves.
            if len(body) == 1:
                now += SECONDS_A_TURN
                read.append(body)

        frames._clock, frames._read_membership = lambda: now, take_long
        [peer] = m.plane._connections.all()
        for number in range(5):
            assert peer.connection.send_control(KIND_MEMBERSHIP, bytes([number]))
        turn_until(lambda: len(read) >= 1, a)
        for count in range(1, 6):
            assert read == [bytes([number]) for number in range(count)]
            assert count == 5 or select.select([a.poller], [], [], 0)[0], "nobody says so"
            a.turn()


def test_what_its_thread_was_not_given_is_excused_and_what_it_waited_is_not() -> None:
    with Plane("a") as a:
        now, used, runner = 100.0, 5.0, a.plane.sockets.handshakes
        a.plane._clock = lambda: now
        a.plane._processor_clock = lambda: used
        a.plane.looked()
        now, used = 103.0, 6.0
        a.plane.looks()
        assert runner.patience.excused_s == 2.0
        assert runner.looked_at == 101.0
        # It waits for its sockets.
        now = 150.0
        a.plane.looked()
        a.plane.looks()
        assert runner.patience.excused_s == 2.0
