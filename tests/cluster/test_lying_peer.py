"""A peer that lies to control planes, over connections: when it is gone they hold each other."""

from __future__ import annotations

import contextlib
import itertools
import random
import time

import pytest

from rabble.cluster.connections import PeerConnection
from rabble.cluster.decide.bans import DURATION_MS_MAX
from rabble.cluster.gossip import KIND_MEMBERSHIP
from rabble.cluster.server import new_incarnation
from tests.cluster.plane import CODEC, Plane, turn_until, turn_while
from tests.fuzz.lies import COUNTERS, DIGEST_BYTES, Choices, Drawn, Truth, message
from tests.fuzz.lying_peer import LyingNetwork
from tests.reference.session import frame

LIMITS = {
    "digest_ms": 50,
    "membership_members_max": 9,
    # All that is made up: of names that are forgotten too soon each node tells the others anew.
    "membership_retired_max": 200,
    "membership_dots_per_member_max": 2,
    "frame_bytes_max": 20_000,
    "fragment_bytes_max": 1_000,
    "bans_max": 5,
    "redial_refused_ms": 20,
}
HONEST = "abc"


def truth_of(planes: list[Plane]) -> Truth:
    """Of the nodes that are there; with names of some that are not, and of the liar's own."""
    own = planes[0].own.addr
    nowhere = ["127.0.0.1:1", "localhost:1", own.replace("127.0.0.1", "localhost")]
    return Truth(
        [*HONEST, "d", "e", "f", "g", "m"],
        {each.own.name: each.plane.incarnation for each in planes},
        [*nowhere, *(each.own.addr for each in planes), None],
        digests=lambda: [each.plane._membership.digest() for each in planes],
    )


def a_lie_of_bans(rng: random.Random) -> dict[str, list[list[object]]]:
    """Bans of nodes that are there and some that are not."""
    names = rng.sample((*HONEST, "d", "e", "f", "m"), rng.randint(1, 7))
    rows: list[list[object]] = []
    for name in names:
        duration_ms = rng.choice((0, 1, 50, 10**6, DURATION_MS_MAX))
        left_ms = rng.choice((0, duration_ms))
        by = rng.choice((*HONEST, "d", "m"))
        rows.append([name, rng.choice(COUNTERS), duration_ms, by, left_ms, rng.random() < 0.5])
    return {"b": rows}


def know_the_same_bans(planes: list[Plane]) -> bool:
    """Each pair of them, of all but the two themselves; and none holds.

    A table that is full has no room for some words of the other one, as what is
    said of a node itself takes room there.
    """
    now = time.monotonic()
    bans = {each.own.name: each.plane.members.shut_out._bans for each in planes}
    full = {each.own.name for each in planes if len(bans[each.own.name]) == each.limits.bans_max}

    def same(one: str, other: str) -> bool:
        words = [
            {row[0]: row for row in bans[name].summary(now, {one, other})} for name in (one, other)
        ]
        if full & {one, other}:
            return all(words[0][each] == words[1][each] for each in words[0].keys() & words[1])
        return words[0] == words[1]

    return not any(each.in_force(now) for each in bans.values()) and all(
        same(one, other) for one, other in itertools.combinations(bans, 2)
    )


def hold_each_other(planes: list[Plane]) -> bool:
    """Whether they agree, and each is known as what it is and connected to each."""
    digests = {each.plane._membership.digest() for each in planes}
    names = {each.own.name for each in planes}
    incarnations = {each.own.name: each.plane.incarnation for each in planes}
    return (
        len(digests) == 1
        and know_the_same_bans(planes)
        and all(
            each.members == each.peers | {each.own.name} == names
            and all(
                each.plane._membership.members()[other.own.name] == other.own
                and each.plane._membership.incarnation_of(other.own.name)
                == incarnations[other.own.name]
                for other in planes
            )
            for each in planes
        )
    )


def check_bounds(plane: Plane) -> None:
    membership, limits = plane.plane._membership, plane.limits
    assert len(plane.plane.members.shut_out._bans) <= limits.bans_max
    assert len(membership) <= limits.membership_members_max
    assert len(membership.encoded()) + DIGEST_BYTES + 2 <= limits.frame_bytes_max
    assert len(membership.state()["s"]) <= len(membership) + limits.membership_retired_max


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", [10, pytest.param(300, marks=pytest.mark.soak)])
def test_control_planes_hold_each_other_after_a_peer_lied(seeds: int) -> None:
    for seed in range(seeds):
        try:
            lie_to_them(random.Random(seed))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error


def lie_to_them(rng: random.Random) -> None:
    with contextlib.ExitStack() as stack:
        planes = [stack.enter_context(Plane(name, new_incarnation(), **LIMITS)) for name in HONEST]
        with Plane("m", new_incarnation(), **LIMITS) as liar:
            for each in (*planes, liar):
                each.plane.join(planes[0].own)
            turn_until(lambda: all(each.peers >= {"m"} for each in planes), *planes, liar)
            truth, choices = truth_of(planes), Drawn(rng)
            for _ in range(30):
                truth.incarnations = truth_of(planes).incarnations
                of_bans = rng.random() < 0.3
                for peer in liar.plane._connections.all():
                    # To each something else.
                    lie = a_lie_of_bans(rng) if of_bans else message(truth, choices)
                    said = CODEC.encode_message(lie)
                    peer.connection.send_control(KIND_MEMBERSHIP, said)
                turn_while(rng.randint(1, 12), *planes, liar)
                for each in planes:
                    check_bounds(each)
                if not liar.peers:
                    # It comes as often as it likes.
                    liar.plane.join(rng.choice(planes).own)
        # An operator removes who does not exist, lets in who was banned, and tells them to join.
        deadline = time.monotonic() + 20
        while not hold_each_other(planes):
            assert time.monotonic() < deadline, [
                (each.own.name, each.members, each.peers, each.plane._membership.state())
                for each in planes
            ]
            for each in planes:
                each.plane.members.shut_out.lift(each.banned)
                for name in each.members - set(HONEST):
                    each.plane.leave(name)
                if each.plane.status().removed:
                    each.plane.join(
                        rng.choice([other for other in planes if other is not each]).own
                    )
            turn_while(20, *planes)
        for each in planes:
            check_bounds(each)
            assert not each.runtime.failures


def test_a_node_that_is_lied_of_all_the_time_does_not_tell_the_others_all_the_time() -> None:
    """It contradicts each lie, and tells them twice in the time for which changes are gathered."""
    network = LyingNetwork(Choices(b""))
    try:
        a, b = network.honest["a"], network.honest["b"]
        read, told = a._control_frames._read_membership, 0

        def counted(peer: PeerConnection, body: bytes) -> None:
            nonlocal told
            told += peer.node == b.own
            read(peer, body)

        a._control_frames._read_membership = counted
        for number in range(1_000):
            row = ["b", b.incarnation, 100 + 2 * number, 0, "x:1"]
            said = CODEC.encode_message({"s": [row], "v": [], "m": []})
            network.wires[b].send(frame(KIND_MEMBERSHIP, 0, said))
            network.run(0.001, turns=1)
            network.wires[b].read()
        assert network.steps == 1_000
        # In a second, and the digests.
        assert 10 < told < 30
        network.run(0.2)
        assert a.membership.row_of("b") == b.membership.row_of("b")
        assert b.membership.members()["b"] == b.own
    finally:
        network.end()
