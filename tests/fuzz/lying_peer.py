"""A peer that lies to whole control planes, in virtual time, decided by bytes.

It is a member that has proven its name. Each step is one MEMBERSHIP frame that is valid by form, of
whatever contents, through the sockets and the compiled decoder of an honest node to its control
plane. Between them honest nodes join, remove, ban, restart and lose connections, and the peer comes
as whatever start of its name, from whatever address, and refuses who dials it in whatever words.

After each burst all is within its bounds, and nothing of the honest nodes has failed for itself.
Once the peer is gone, and operators have undone what a member may do, the honest nodes agree, hold
each other, and stay so.
"""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Callable
from typing import Any

from rabble import NodeId
from rabble.cluster.connections import PeerConnection
from rabble.cluster.control_frames import FRAMES_A_TURN
from rabble.cluster.decide.belief import AHEAD_MAX, highest_believed
from rabble.cluster.decide.handshake import Peer
from rabble.cluster.decide.membership_state import MembershipLimit
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.cluster.gossip import KIND_MEMBERSHIP
from tests.fuzz import lies
from tests.fuzz.lies import COUNTERS, DIGEST_BYTES, HONEST, NOW, NUMBERS, Choices, Chooser, Truth
from tests.fuzz.virtual_planes import VERSION, Stranger, VirtualNetwork, VirtualPlane, Wire
from tests.reference.session import frame

#: Of each a small one, so that all bounds are reached.
LIMITS = {
    "digest_ms": 1_000,
    "digest_settled_ms": 200,
    "redial_first_ms": 20,
    "redial_most_ms": 1_000,
    "redial_refused_ms": 1_000,
    "dial_hold_back_ms": 10,
    "dials_max": 4,
    "peers_remembered_max": 4,
    "membership_members_max": 6,
    "membership_retired_max": 24,
    "membership_dots_per_member_max": 2,
    "frame_bytes_max": 20_000,
    "fragment_bytes_max": 1_000,
    "bans_max": 5,
    "ban_seconds_max": 100,
}
LIAR = "m"
NAMES = (*HONEST, "d", "e", "f", "g", LIAR)
#: Where the liar is, or may be.
LAIRS = ("m:1", "x:1")
#: What it says that it is at, where it is none that may say anything.
AS_GUEST = "m:0"
ADDRS = ("a:1", "b:1", "c:1", "localhost:1", *LAIRS, None)
#: What it says in place of an acceptance.
CODES = tuple(RefusalCode)
#: The wire's kind of a BYE, whose body is a code, the length of a text, and the text.
BYE = 18
#: States of honest nodes that the liar has kept, to tell them again.
KEPT = 8


class Spun:
    """What is said in one burst, as a number of two bytes says: so an input tells a long story."""

    def __init__(self, number: int) -> None:
        self._state = number

    def below(self, count: int) -> int:
        # The generator of Knuth's MMIX.
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self._state >> 33) % count

    def of(self, values: Any) -> Any:
        return values[self.below(len(values))]


class LyingNetwork(VirtualNetwork):
    """Honest planes, and one peer of theirs that lies.

    :ivar steps: frames of the liar that an honest node has read.
    """

    def __init__(self, choices: Choices) -> None:
        super().__init__(LIMITS, random.Random(1), NOW)
        self.choices, self.steps = choices, 0
        #: Whom of two honest nodes something parted that the other one said.
        self.parted: list[tuple[str, str, str]] = []
        #: Who has taken in what the liar says on bans of itself.
        self.believed: list[tuple[str, object]] = []
        self.honest = {name: self.start(name) for name in HONEST}
        self.wires: dict[VirtualPlane, Wire] = {}
        self.incarnation = self.new_incarnation()
        self.addr = LAIRS[0]
        #: Honest nodes that were started again, and may know nobody.
        self.restarted: set[str] = set()
        self.kept: list[dict[str, Any]] = []
        self.truth = Truth(NAMES, {}, ADDRS, self.digests)
        for plane in self.honest.values():
            plane.join(self.honest["a"].own)
        self.answer_with(None)
        for _ in range(6):
            self.run(0.1)
        assert all(len(each.peers) == 2 for each in self.honest.values())
        for plane in self.honest.values():
            self.appear(plane)

    def start(self, name: str, incarnation: int | None = None) -> VirtualPlane:
        plane = super().start(name, incarnation)
        frames = plane._control_frames
        read, refuse = frames._read_membership, frames._refuse

        def counted(peer: PeerConnection, body: bytes) -> None:
            if peer.node.name != LIAR:
                read(peer, body)
                return
            self.steps += 1
            before = word_on_liar(plane)
            read(peer, body)
            if (after := word_on_liar(plane)) not in (None, before):
                self.believed.append((name, after))

        def looked_at(peer: PeerConnection, error: Exception) -> None:
            is_open, is_known = peer.connection.open, peer.node.name in plane.membership
            refuse(peer, error)
            # For who is no member there may be no room; nothing else ends a connection of these.
            is_due = isinstance(error, MembershipLimit) and not is_known
            if peer.node.name in HONEST and is_open and not (peer.connection.open or is_due):
                self.parted.append((name, peer.node.name, str(error)))

        frames._read_membership, frames._refuse = counted, looked_at  # type: ignore[method-assign]
        return plane

    def digests(self) -> list[bytes]:
        return [each.membership.digest() for each in self.honest.values()]

    # What the liar does.

    def peer(self, *, join: bool) -> Peer:
        return Peer(NodeId(LIAR, self.addr), self.incarnation, join, VERSION)

    def answer_with(self, refusal: Refusal | None) -> None:
        """How it answers whoever dials it, at any of its addresses."""
        addr = LAIRS[0] if self.addr == AS_GUEST else self.addr
        peer = Peer(NodeId(LIAR, addr), self.incarnation, False, VERSION)
        self.strangers = {each: Stranger(peer, refusal, self.connected) for each in LAIRS}

    def connected(self, plane: VirtualPlane, sock: socket.socket) -> None:
        if (before := self.wires.get(plane)) is not None:
            before.close()
        self.wires[plane] = Wire(sock)

    def wire_to(self, plane: VirtualPlane) -> Wire | None:
        """Its connection to a node, which it makes if that lets it in."""
        wire = self.wires.get(plane)
        if wire is not None:
            wire.read()
        if wire is None or not wire.is_open:
            if self.choices.below(4):
                # An operator believes that it is another one by now.
                plane.members.shut_out.lift([LIAR])
            self.appear(plane)
            wire = self.wires.get(plane)
        return wire if wire is not None and wire.is_open else None

    def appear(self, plane: VirtualPlane) -> None:
        """Dial a node as it is; and if that is refused, as a later start that was told to join."""
        for join in (False, True):
            self.call(Stranger(self.peer(join=join), None, self.connected), plane)
            wire = self.wires.get(plane)
            if wire is not None and wire.is_open:
                return
            known = plane.membership.incarnation_of(LIAR)
            if plane.membership.standing(LIAR, self.incarnation) == "removed":
                self.incarnation = min(known + 1, highest_believed(self.new_incarnation()))

    def lie_to(self, plane: VirtualPlane, count: int) -> None:
        """A burst of frames."""
        wire = self.wire_to(plane)
        if wire is None:
            return
        self.truth.incarnations = {
            each.own.name: each.incarnation for each in self.honest.values()
        } | {LIAR: self.incarnation}
        choices = Spun(self.choices.below(256) << 8 | self.choices.below(256))
        for _ in range(count):
            wire.send(self.a_frame(choices))

    def a_frame(self, choices: Chooser) -> bytes:
        return frame(KIND_MEMBERSHIP, 0, lies.CODEC.encode_message(self.a_message(choices)))

    def a_message(self, choices: Chooser) -> Any:
        kind = choices.below(24)
        if kind < 11:
            return lies.message(self.truth, choices)
        if kind < 18:
            return self.retold(choices)
        if kind < 22:
            more = {"k": True} if choices.below(2) else {}
            return {"b": lies.lie_of_bans(choices), **more}
        if kind == 22:
            return self.many(choices)
        # Most of what follows in the burst is not read then.
        return self.wrong(choices) if choices.below(8) == 0 else {"d": bytes(32)}

    def many(self, choices: Chooser) -> dict[str, Any]:
        """As many rows as a frame may have: removals, and joins by starts that never were."""
        ended, count = choices.of(COUNTERS), choices.of((3, 8, 24, 25))
        prefix = choices.of(("gone", "n" * 200, "é" * 100))
        names = sorted(f"{prefix}-{number:03}" for number in range(count))
        if choices.below(2):
            return {"s": [[name, 1, 1, ended, None] for name in names], "v": [], "m": []}
        return {"s": [], "v": [[name, 1, choices.of(COUNTERS), ended] for name in names], "m": []}

    def retold(self, choices: Chooser) -> dict[str, Any]:
        """What an honest node knows, or knew, but for some cells or rows."""
        state = self.honest[choices.of(HONEST)].membership.state()
        if choices.below(4) == 0:
            self.kept = [*self.kept[1 - KEPT :], state]
        if self.kept and choices.below(3) == 0:
            state = choices.of(self.kept)
        rows = {key: [list(row) for row in state[key]] for key in "svm"}
        for _ in range(choices.below(4)):
            key = choices.of("svvmm")
            if not rows[key]:
                continue
            row = choices.of(rows[key])
            place = choices.below(len(row) + 1)
            if place == len(row):
                rows[key].remove(row)
            elif isinstance(row[place], int):
                top = min(highest_believed(self.new_incarnation()), 2**63 - 1)
                near = (row[place] + 1, max(row[place] - 1, key != "s"), top, top + 1)
                row[place] = choices.of((*near, *(NUMBERS if place == 1 else COUNTERS)))
            elif place == 4:
                row[place] = choices.of(ADDRS if key == "s" else ADDRS[:-1])
            else:
                row[place] = choices.of(NAMES)
        said: dict[str, Any] = {
            "s": in_order(rows["s"], 1),
            "v": in_order(rows["v"], 2),
            "m": in_order(rows["m"], 3),
        }
        if choices.below(3) == 0:
            said["d"] = choices.of((bytes(32), *self.digests()))
        if choices.below(3) == 0:
            said["k"] = bool(choices.below(2))
        return said

    def wrong(self, choices: Chooser) -> Any:
        """A message that is no state: it costs the liar its connection, and nothing else."""
        return choices.of(
            (
                None,
                [],
                {},
                {"s": [], "v": []},
                {"s": [["a", 1, 1, 0]], "v": [], "m": []},
                {"s": [], "v": [], "m": [["a", 1, 1, "a", "a:1"]]},
                {"b": [["a", 1, 1, "a", 2, True]]},
                {"b": [], "d": b""},
                {"d": 1},
            )
        )

    def act_as_liar(self, plane: VirtualPlane) -> None:
        """It goes, or comes as another start, from elsewhere; or will say other words."""
        choices, act = self.choices, self.choices.below(5)
        wire = self.wires.get(plane)
        if act == 0 and wire is not None:
            wire.close()
        elif act == 1 and wire is not None:
            wire.send(frame(BYE, 0, bytes([choices.of(CODES), 0])))
            wire.close()
        elif act == 2:
            number = choices.of((*NUMBERS[:8], self.new_incarnation(), self.incarnation + 1))
            self.incarnation = min(number, highest_believed(self.new_incarnation()))
            self.addr = choices.of((*LAIRS, *LAIRS, AS_GUEST))
            self.answer_with(None)
            if wire is not None:
                wire.close()
        elif act == 3:
            told = choices.of((*NUMBERS, plane.incarnation))
            # As the handshake reads it.
            incarnation = told if told <= highest_believed(self.new_incarnation()) else 0
            ban_s = choices.of((0, 1, 60, 2**31))
            self.answer_with(Refusal(choices.of(CODES), "no", incarnation, ban_s))
        else:
            self.answer_with(None)

    # What others do.

    def act_honestly(self, plane: VirtualPlane) -> None:
        choices, act, name = self.choices, self.choices.below(9), self.choices.of(NAMES)
        if act < 3:
            # As who was removed is told to, and any other.
            plane.join(NodeId(name, f"{name}:1"))
        elif act == 3:
            plane.leave(name)
        elif act == 4 and name != plane.own.name:
            plane.members.shut_out.ban([name], choices.of((1, 60)))
        elif act == 5:
            plane.members.shut_out.lift([each.subject for each in plane.bans.in_force(self.now)])
        elif act == 6:
            now = self.new_incarnation()
            # With a clock that is right, a year ahead, or not set.
            clock = choices.of((now, now + AHEAD_MAX // 100, 1))
            self.honest[plane.own.name] = self.start(plane.own.name, clock + choices.below(9))
            self.restarted.add(plane.own.name)
            if (wire := self.wires.pop(plane, None)) is not None:
                wire.close()
        elif act == 7:
            for peer in plane._connections.all():
                if peer.node.name == name:
                    peer.connection.abort(RefusalCode.TIMEOUT)

    # What is looked at.

    def check(self, plane: VirtualPlane) -> None:
        """Whatever was said: bounds, and that nothing has failed for itself."""
        assert not self.parted, self.parted
        assert not self.believed, self.believed
        assert not plane.runtime.failures, plane.runtime.failures
        assert not plane.failures.is_unmended, plane.runtime.reports[-3:]
        assert "INTERNAL_ERROR" not in plane.status().refusals, plane.runtime.reports[-3:]
        del plane.runtime.reports[:-20], plane.runtime.news[:], plane.runtime.up[:]
        limits, membership, now = self.limits, plane.membership, self.now
        assert len(plane.bans) <= limits.bans_max
        for ban in plane.bans.in_force(now):
            assert ban.until - now <= limits.ban_seconds_max + 1e-6
        assert len(membership) <= limits.membership_members_max
        assert len(membership.encoded()) + DIGEST_BYTES + 2 <= limits.frame_bytes_max
        state = membership.state()
        joins_max = len(membership) * limits.membership_dots_per_member_max
        assert len(state["s"]) <= len(membership) + limits.membership_retired_max
        assert len(state["m"]) <= joins_max
        assert len(state["v"]) <= joins_max + limits.membership_retired_max
        manager, gossip = plane._connection_manager, plane._gossip
        ids = {each.connection_id for each in plane._connections.all()}
        assert len(manager.dials()) <= 2 * limits.dials_max
        assert len(manager._members) <= len(membership) + len(ids) + limits.peers_remembered_max + 1
        for each in (gossip._compared, gossip._whole_sent_at, gossip._strangers):
            assert ids.issuperset(each)

    def hold_each_other(self) -> bool:
        """Whether they agree, and each is known as what it is and connected to each."""
        planes = self.honest.values()
        incarnations = {each.own.name: each.incarnation for each in planes}
        nodes = {each.own.name: each.own for each in planes}
        return (
            len(set(self.digests())) == 1
            and self.know_the_same_bans()
            and all(
                each.membership.members() == nodes
                and {each.own.name, *each.peers} == nodes.keys()
                and all(
                    each.membership.incarnation_of(name) == incarnations[name] for name in nodes
                )
                for each in planes
            )
        )

    def know_the_same_bans(self) -> bool:
        """Each pair of them, of all but the two themselves; and none holds.

        A table that is full has no room for some words of the other one, as what is said of a node
        itself takes room there.
        """
        planes, now = self.honest.values(), self.now
        for one, other in itertools.combinations(planes, 2):
            names = {one.own.name, other.own.name}
            first, second = (
                {row[0]: row for row in each.bans.summary(now, names)} for each in (one, other)
            )
            if limits_reached(one) or limits_reached(other):
                if any(first[each] != second[each] for each in first.keys() & second):
                    return False
            elif first != second:
                return False
        return not any(each.bans.in_force(now) for each in planes)

    def come_to_rest(self) -> None:
        """The liar is gone. Operators undo what it may do: see SECURITY.md."""
        for wire in self.wires.values():
            wire.close()
        self.strangers.clear()
        for number in range(ROUNDS_MAX):
            for plane in self.honest.values() if number % 4 == 0 else ():
                if bans := plane.bans.in_force(self.now):
                    plane.members.shut_out.lift([each.subject for each in bans])
                for ghost in plane.membership.members().keys() - set(HONEST):
                    plane.leave(ghost)
                for other in self.honest.values():
                    if self.is_to_join(plane, other):
                        plane.join(other.own)
            self.run(0.6, turns=2)
            for plane in self.honest.values():
                self.check(plane)
            if self.hold_each_other():
                break
        else:
            raise AssertionError(self.described())
        digests = self.digests()
        for _ in range(6):
            self.run(2.0, turns=2)
        assert self.digests() == digests, self.described()
        assert self.hold_each_other(), self.described()

    def is_to_join(self, plane: VirtualPlane, other: VirtualPlane) -> bool:
        """Whether an operator has to have a node join another one: it was removed, or restarted."""
        if plane is other or other.own.name in plane.peers:
            return False
        names = plane.own.name, other.own.name
        return (
            plane._life.is_removed
            or other._life.is_removed
            or not self.restarted.isdisjoint(names)
            or any(name not in each.membership for name in names for each in (plane, other))
        )

    def end(self) -> None:
        """Nothing of it is left."""
        for wire in self.wires.values():
            wire.close()
        self.close()

    def described(self) -> str:
        return "\n".join(
            f"{each.own}, {each.incarnation}: {each.peers}, {each.membership.state()}, "
            f"{each.bans.summary(self.now)}, {each.status().refusals}, {each.runtime.reports}"
            for each in self.honest.values()
        )


#: Seconds that go by after something was done.
PAUSES = (0.0, 0.0, 0.01, 0.06, 0.3, 2.0)
#: Rounds of 0.6 s in which honest nodes have come to hold each other.
ROUNDS_MAX = 80


def word_on_liar(plane: VirtualPlane) -> object:
    """The last word on a ban of the liar's name."""
    return next((row[1:4] for row in plane.bans.summary(0.0) if row[0] == LIAR), None)


def limits_reached(plane: VirtualPlane) -> bool:
    return len(plane.bans) == LIMITS["bans_max"]


def in_order(rows: list[list[Any]], width: int) -> list[list[Any]]:
    """The same with one row for each key."""
    by_key = {tuple(row[:width]): row for row in rows}
    return [by_key[key] for key in sorted(by_key)]


def play(data: bytes, made: Callable[[Choices], LyingNetwork] = LyingNetwork) -> LyingNetwork:
    """What the bytes say, and then rest."""
    choices = Choices(data)
    network = made(choices)
    try:
        while choices:
            act, plane = choices.below(10), network.honest[choices.of(HONEST)]
            if act < 7:
                network.lie_to(plane, 1 + choices.below(FRAMES_A_TURN))
                plane.turn()
                network.check(plane)
                if act < 4:
                    # It goes on before the others have heard of it.
                    continue
            elif act == 7:
                network.act_as_liar(plane)
            else:
                network.act_honestly(plane)
            network.run(choices.of(PAUSES))
            for each in network.honest.values():
                network.check(each)
        network.come_to_rest()
        return network
    finally:
        network.end()
