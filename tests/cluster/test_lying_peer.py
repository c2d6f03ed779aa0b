"""A peer that lies to control planes, over connections: when it is gone they hold each other."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from rabble.cluster.gossip import KIND_MEMBERSHIP
from rabble.cluster.server import new_incarnation
from tests.cluster.plane import CODEC, Plane, turn_until, turn_while
from tests.fuzz.lies import DIGEST_BYTES, Drawn, Truth, message

LIMITS = {
    "digest_ms": 50,
    "membership_members_max": 9,
    # All that is made up: of names that are forgotten too soon each node tells the others anew.
    "membership_retired_max": 200,
    "membership_dots_per_member_max": 2,
    "frame_bytes_max": 20_000,
    "fragment_bytes_max": 1_000,
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


def hold_each_other(planes: list[Plane]) -> bool:
    """Whether they agree, and each is known as what it is and connected to each."""
    digests = {each.plane._membership.digest() for each in planes}
    names = {each.own.name for each in planes}
    incarnations = {each.own.name: each.plane.incarnation for each in planes}
    return len(digests) == 1 and all(
        each.members == each.peers | {each.own.name} == names
        and all(
            each.plane._membership.members()[other.own.name] == other.own
            and each.plane._membership.incarnation_of(other.own.name)
            == incarnations[other.own.name]
            for other in planes
        )
        for each in planes
    )


def check_bounds(plane: Plane) -> None:
    membership, limits = plane.plane._membership, plane.limits
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
                for peer in liar.plane._connections.all():
                    # To each something else.
                    said = CODEC.encode_message(message(truth, choices))
                    peer.connection.send_control(KIND_MEMBERSHIP, said)
                turn_while(rng.randint(1, 12), *planes, liar)
                for each in planes:
                    check_bounds(each)
                if not liar.peers:
                    # It comes as often as it likes.
                    liar.plane.join(rng.choice(planes).own)
        # An operator removes who does not exist, and tells the others to join.
        deadline = time.monotonic() + 20
        while not hold_each_other(planes):
            assert time.monotonic() < deadline, [
                (each.own.name, each.members, each.peers, each.plane._membership.state())
                for each in planes
            ]
            for each in planes:
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
