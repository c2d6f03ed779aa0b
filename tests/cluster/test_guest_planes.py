"""Guests of a mesh, in one thread: whom they reach, and that nobody remembers them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from rabble import NodeId
from rabble.cluster.decide.actions import Close
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.refusal import RefusalCode
from tests.cluster.guest_plane import GuestPlane
from tests.cluster.plane import Plane, turn_until
from tests.cluster.remembered import remembered

#: What the names of guests have in them, and nothing else has.
VISITOR = "visitor"


@contextlib.contextmanager
def mesh_of(*names: str, **limits: int) -> Iterator[list[Plane]]:
    """Planes that are members of one mesh, connected each to each."""
    with contextlib.ExitStack() as stack:
        planes = [stack.enter_context(Plane(name, 1_000, **limits)) for name in names]
        for plane in planes[1:]:
            plane.plane.join(planes[0].own.addr)
        turn_until(
            lambda: all(
                plane.peers == set(names) - {plane.own.name} and plane.members == set(names)
                for plane in planes
            ),
            *planes,
        )
        yield planes


def comes(guest: Plane, *planes: Plane) -> None:
    """A guest joins the first one, and comes to be connected to all."""
    guest.plane.join(planes[0].own.addr)
    names = {plane.own.name for plane in planes}
    turn_until(
        lambda: guest.peers == names and all(guest.own.name in plane.peers for plane in planes),
        guest,
        *planes,
    )


def nobody_remembers(*planes: Plane) -> None:
    for plane in planes:
        # The test's own.
        plane.runtime.up.clear()
        plane.runtime.reports.clear()
        assert remembered(plane.plane, VISITOR) == []


def test_a_guest_is_connected_to_all_members_and_is_none() -> None:
    with mesh_of("a", "b", "c") as planes, GuestPlane(VISITOR) as guest:
        states = {plane.plane._membership.encoded() for plane in planes}
        comes(guest, *planes)
        # It knows the members, and is none of them, for itself or for others.
        assert guest.members == {"a", "b", "c"}
        assert all(plane.members == {"a", "b", "c"} for plane in planes)
        assert {plane.plane._membership.encoded() for plane in planes} == states
        assert guest.plane._membership.digest() == planes[0].plane._membership.digest()
        assert remembered(planes[0].plane, VISITOR)
        status = planes[0].plane.status()
        assert {each.node.name for each in status.connections if each.guest} == {guest.own.name}
        assert guest.plane.status().removed is False
        guest.close()
        turn_until(lambda: all(len(plane.peers) == 2 for plane in planes), *planes)
        nobody_remembers(*planes)


def come_and_go(count: int, at_a_time: int) -> None:
    with mesh_of("a", "b") as planes:
        states = [plane.plane._membership.encoded() for plane in planes]
        for first in range(0, count, at_a_time):
            with contextlib.ExitStack() as stack:
                guests = [
                    stack.enter_context(GuestPlane(f"{VISITOR}-{first + n}"))
                    for n in range(at_a_time)
                ]
                for guest in guests:
                    guest.plane.join(planes[first % 2].own.addr)
                turn_until(
                    lambda guests=guests: (
                        all(guest.peers == {"a", "b"} for guest in guests)
                        and all(len(plane.peers) == 1 + at_a_time for plane in planes)
                    ),
                    *guests,
                    *planes,
                )
                # Every other one without a word, as if it were killed.
                for guest in guests[::2]:
                    guest.plane.stop(1.0, 1.0)
                    turn_until(lambda guest=guest: guest.plane.is_over, guest, *planes)
            turn_until(lambda: all(len(plane.peers) == 1 for plane in planes), *planes)
        nobody_remembers(*planes)
        assert [plane.plane._membership.encoded() for plane in planes] == states
        assert [len(plane.plane._connection_manager._members) for plane in planes] == [1, 1]
        assert all(plane.refusals == {} or "a" not in plane.refusals for plane in planes)


def test_guests_come_and_go_and_no_member_remembers_one() -> None:
    come_and_go(20, 5)


@pytest.mark.soak
def test_a_thousand_guests_come_and_go_and_no_member_remembers_one() -> None:
    come_and_go(1_000, 20)


def test_a_name_is_free_again_as_soon_as_its_guest_has_gone() -> None:
    name = NodeId(VISITOR, "any:1")
    with mesh_of("a", "b") as planes:
        for incarnation in (7, 5, 9, 1):
            # A clock that went back is nothing to those who remember nothing.
            with GuestPlane(name, incarnation) as guest:
                assert guest.own.name == VISITOR
                comes(guest, *planes)
        turn_until(lambda: all(len(plane.peers) == 1 for plane in planes), *planes)
        nobody_remembers(*planes)


def test_of_two_guests_of_one_name_the_first_stays() -> None:
    name = NodeId(VISITOR, "any:1")
    with mesh_of("a") as planes, GuestPlane(name) as first:
        comes(first, *planes)
        with GuestPlane(name, 50) as second:
            second.plane.join(planes[0].own.addr)
            turn_until(lambda: second.refusals.get("NAME_CONFLICT"), second, first, *planes)
            assert first.peers == {"a"} and second.peers == set()
            first.close()
            turn_until(lambda: second.peers == {"a"}, second, *planes)


def test_members_come_and_go_while_a_guest_is_there() -> None:
    with mesh_of("a", "b") as planes, GuestPlane(VISITOR) as guest:
        comes(guest, *planes)
        with Plane("c", 1_000) as c:
            c.plane.join(planes[1].own.addr)
            # Nobody tells it to join that one: it hears of it.
            turn_until(lambda: guest.peers == {"a", "b", "c"}, guest, c, *planes)
            planes[0].plane.leave("c")
            turn_until(lambda: guest.peers == {"a", "b"}, guest, c, *planes)
            assert guest.members == {"a", "b"} and "c" not in guest.desired
            assert c.plane.status().removed
            assert guest.own.name not in c.peers


def test_a_guest_dials_again_whom_it_has_lost() -> None:
    with mesh_of("a", "b") as planes, GuestPlane(VISITOR) as guest:
        comes(guest, *planes)
        (lost,) = (each for each in guest.plane._connections.all() if each.node.name == "b")
        lost.connection.abort(RefusalCode.TIMEOUT)
        turn_until(lambda: guest.peers == {"a"}, guest, *planes)
        turn_until(lambda: guest.peers == {"a", "b"}, guest, *planes)
        assert guest.own.name in planes[1].peers


def test_there_are_no_more_guests_than_there_may_be() -> None:
    with mesh_of("a", "b", guests_max=1) as planes, GuestPlane(VISITOR) as guest:
        comes(guest, *planes)
        with GuestPlane(VISITOR) as other, Plane("c", 1_000) as c:
            other.plane.join(planes[0].own.addr)
            turn_until(lambda: other.refusals.get("LIMIT"), other, guest, *planes)
            # Members are not counted.
            c.plane.join(planes[0].own.addr)
            turn_until(lambda: c.peers >= {"a", "b"}, c, other, guest, *planes)
            assert other.peers <= {"c"}
            guest.close()
            turn_until(lambda: other.peers == {"a", "b", "c"}, other, c, *planes)


def test_a_guest_takes_no_members_name_and_a_member_takes_a_guests() -> None:
    with mesh_of("a", "b") as planes:
        with GuestPlane(NodeId("b", "any:1")) as guest:
            guest.plane.join(planes[0].own.addr)
            turn_until(lambda: guest.refusals.get("NAME_CONFLICT"), guest, *planes)
            assert planes[0].peers == {"b"} and guest.peers == set()
        with GuestPlane(NodeId("c", "any:1")) as guest, Plane("c", 1) as c:
            comes(guest, *planes)
            c.plane.join(planes[0].own.addr)
            turn_until(
                lambda: c.peers == {"a", "b"} and all(c.own.name in p.members for p in planes),
                c,
                guest,
                *planes,
            )
            connected = [
                each.node
                for plane in planes
                for each in plane.plane.status().connections
                if each.node.name == "c"
            ]
            assert connected == [c.own, c.own]


def test_what_a_guest_says_of_members_ends_its_connection() -> None:
    with mesh_of("a", "b") as planes, GuestPlane(VISITOR) as guest:
        comes(guest, *planes)
        before = planes[0].plane._membership.encoded()
        guest.claim({**planes[0].plane._membership.state()})
        turn_until(lambda: "DECODE" in planes[0].refusals, guest, *planes)
        assert any("it is a guest" in text for text in planes[0].runtime.reports)
        guest.claim({"b": []})
        assert planes[0].plane._membership.encoded() == before


def test_nobody_dials_a_guest() -> None:
    with mesh_of("a") as (a,), GuestPlane(VISITOR) as guest:
        comes(guest, a)
        a.plane.join(guest.own)
        assert any("nobody can dial" in text for text in a.runtime.reports)
        assert a.members == {"a"}
        manager: ConnectionManager = a.plane._connection_manager
        assert manager.add_peer(guest.own, 0.0) == []
        # A member of that name is another matter, whoever says that there is one.
        (close, _, *_) = manager.add_peer(NodeId(guest.own.name, "127.0.0.1:9"), 0.0)
        assert isinstance(close, Close) and close.code is RefusalCode.NAME_CONFLICT
