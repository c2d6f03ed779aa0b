"""A member that lies: valid states with hostile contents among honest nodes, decided by bytes.

Honest nodes tell each other, join, remove, ban, restart and come back; between that a member which
nobody suspects tells any of them whatever a state, or a ban, can say. Once it is gone, and what it
has banned is let in, they have to agree, each has to be known to all as what it is, and what they
keep has to be within its bounds.

`lie` and `message` make up what is said for all tests of a liar: here as states alone, in
tests/cluster/test_lying_peer.py over connections, and in virtual time among a hundred nodes in
tests/cluster/decide/test_lying_member.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from rabble._core.codec import Codec
from rabble._core.ids import NodeId
from rabble.cluster.decide.bans import DURATION_MS_MAX, Bans, order_of
from rabble.cluster.decide.belief import AHEAD_MAX, CLOCK_MIN, MILLISECOND, highest_believed
from rabble.cluster.decide.handshake import Peer
from rabble.cluster.decide.membership import Membership, MembershipError, MembershipLimit
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.decide.standing import OwnStanding, refusal_by_standing
from rabble.limits import Limits
from rabble.registry import MessageRegistry

#: Of each a small one, so that all bounds are reached.
LIMITS = Limits(
    membership_members_max=7,
    membership_retired_max=3,
    membership_dots_per_member_max=2,
    frame_bytes_max=5_200,
    fragment_bytes_max=1_000,
    bans_max=3,
    ban_seconds_max=100,
)
#: The member that lies, by the name that it has proven.
LIAR = "m"
HONEST = ("a", "b", "c")
#: Who is lied about: with those that do not exist there are more than may be.
NAMES = (*HONEST, "d", "e", "f", "g", "h", "i")
ADDRS = ("a:1", "b:1", "c:1", "x:1", None)
CODEC = Codec(MessageRegistry())
NOW = CLOCK_MIN + 10**6 * MILLISECOND
#: Numbers that are told of others, besides those that are true.
NUMBERS = (
    *(1, 2, 3, 99, NOW, NOW + AHEAD_MAX - 1, NOW + AHEAD_MAX, NOW + AHEAD_MAX + 1),
    *(NOW + 2 * AHEAD_MAX, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1),
)
COUNTERS = tuple(number for number in NUMBERS if number < 2**63)
#: What a digest adds to the state that it goes with.
DIGEST_BYTES = len(CODEC.encode_message({"d": bytes(32)})) - 1


class HonestNode:
    """A node that runs, or is about to be started again."""

    def __init__(self, mesh: HonestMesh, name: str, incarnation: int) -> None:
        self.mesh = mesh
        self.node = NodeId(name, f"{name}:1")
        self.membership = Membership(self.node, incarnation, LIMITS, mesh.highest_believed)
        self.bans = Bans(self.node, LIMITS, mesh.highest_believed)
        self.standing = OwnStanding(self.membership, 1.0)
        #: A peer has refused it: it has to be told to join, as when it finds so itself.
        self.is_told_removed = False

    @property
    def incarnation(self) -> int:
        return self.membership.incarnation

    def take_in(self, state: object) -> None:
        """Merge a state; what a bound refuses changes nothing."""
        before = self.membership.encoded()
        try:
            self.membership.merge(state)
        except MembershipError:
            assert self.membership.encoded() == before, "taken in by half"
            raise
        finally:
            self.check_bounds()

    def hear_of_bans(self, rows: object, told_by: str) -> None:
        """Take in bans; what is wrong with them changes nothing."""
        before = self.bans.rows(self.mesh.seconds)
        try:
            self.bans.merge(rows, self.mesh.seconds, (told_by,))
        except MembershipError:
            assert self.bans.rows(self.mesh.seconds) == before, "taken in by half"
            raise
        self.check_bounds()

    def lift_all(self) -> None:
        """As an operator does when the liar is shut out."""
        for ban in self.bans.in_force(self.mesh.seconds):
            self.bans.lift(ban.subject, self.mesh.seconds)

    def check_bounds(self) -> None:
        now = self.mesh.seconds
        assert len(self.bans) <= LIMITS.bans_max
        for ban in self.bans.in_force(now):
            assert ban.until - now <= LIMITS.ban_seconds_max + 1e-6
        membership, state = self.membership, self.membership.state()
        assert len(membership) <= LIMITS.membership_members_max
        assert len(membership.encoded()) + DIGEST_BYTES + 2 <= LIMITS.frame_bytes_max
        assert len(state["s"]) <= len(membership) + LIMITS.membership_retired_max
        joins_max = len(membership) * LIMITS.membership_dots_per_member_max
        assert len(state["m"]) <= joins_max
        assert len(state["v"]) <= joins_max + LIMITS.membership_retired_max

    def become_later(self, at_least: int = 0) -> None:
        """As the control plane does. As long as one lies there may be no room among the members."""
        self.is_told_removed = False
        known = self.membership.incarnation_of(self.node.name)
        now = self.mesh.now
        with contextlib.suppress(MembershipLimit):
            self.membership.rejoin(max(at_least, now, known + 1, self.incarnation + 1))

    def tick(self) -> None:
        if self.standing.is_outbid(self.mesh.seconds):
            self.become_later()


class HonestMesh:
    """Nodes that tell each other only what they believe, and a clock that goes on."""

    def __init__(self) -> None:
        self.now = NOW
        #: How many frames the liar has sent.
        self.steps = 0
        self.nodes = {name: HonestNode(self, name, self.now + i) for i, name in enumerate(HONEST)}

    @property
    def seconds(self) -> float:
        return (self.now - NOW) / MILLISECOND / 1000

    def highest_believed(self) -> int:
        return highest_believed(self.now)

    def restart(self, name: str, incarnation: int) -> None:
        self.nodes[name] = HonestNode(self, name, incarnation)

    def hear_lie(self, said: Any) -> Any:
        """A frame of the liar's, as it comes out of the decoder."""
        self.steps += 1
        return CODEC.decode_message(CODEC.encode_message(said))

    def tell(self, sender: HonestNode, receiver: HonestNode, *, join: bool = False) -> None:
        """A connection, as far as the membership lets it come to one, and a state each way.

        :param join: the sender was told to join.
        """
        for one, other in ((sender, receiver), (receiver, sender)):
            if one.bans.refusal(other.node.name, (), self.seconds) is not None:
                return
        # Who is let in knows no better than the others what is said of it.
        for one in (sender, receiver):
            one.bans.forget([one.node.name])
        for _ in range(2):
            peer = Peer(sender.node, sender.incarnation, join, 1)
            refusal = refusal_by_standing(receiver.membership, peer)
            if refusal is None or refusal.code is not RefusalCode.STALE_INCARNATION:
                break
            sender.become_later(refusal.incarnation + 1)
        if refusal is not None:
            assert refusal.code is RefusalCode.REMOVED
            sender.is_told_removed = True
            return
        for one, other in ((sender, receiver), (receiver, sender)):
            rows = CODEC.decode_message(CODEC.encode_message(one.bans.rows(self.seconds)))
            other.hear_of_bans(rows, one.node.name)
        for one, other in ((sender, receiver), (receiver, sender)):
            state = CODEC.decode_message(one.membership.encoded())
            try:
                other.take_in(state)
            except MembershipLimit:
                # Honest nodes may have more than fits together; anything else is a finding.
                return

    def pairs(self) -> Iterator[tuple[HonestNode, HonestNode]]:
        return itertools.permutations(self.nodes.values(), 2)

    # After the lies.

    def come_to_rest(self) -> None:
        """The liar is gone. An operator removes who does not exist, and has the others join."""
        for _ in range(12):
            self.now += 2_000 * MILLISECOND
            for node in self.nodes.values():
                node.lift_all()
                for ghost in node.membership.members().keys() - set(HONEST):
                    node.membership.remove(ghost)
                if node.membership.is_removed or node.is_told_removed:
                    node.become_later()
                node.tick()
            for sender, receiver in self.pairs():
                # All are told to join the first one, and otherwise go by what they know.
                if receiver.node.name in sender.membership or receiver.node.name == HONEST[0]:
                    self.tell(sender, receiver, join=True)
            for node in self.nodes.values():
                node.tick()
        self.check_agreement()

    def check_agreement(self) -> None:
        digests = {node.membership.digest() for node in self.nodes.values()}
        for one, other in itertools.combinations(self.nodes, 2):
            pair = [
                self.nodes[name].bans.summary(self.seconds, {one, other}) for name in (one, other)
            ]
            assert pair[0] == pair[1], pair
        assert not any(node.bans.in_force(self.seconds) for node in self.nodes.values())
        states = {name: node.membership.state() for name, node in self.nodes.items()}
        assert len(digests) == 1, states
        for seen_by, seen in itertools.product(self.nodes.values(), repeat=2):
            name = seen.node.name
            assert seen_by.membership.members().get(name) == seen.node, (name, states)
            assert seen_by.membership.incarnation_of(name) == seen.incarnation, (name, states)
            peer = Peer(seen.node, seen.incarnation, False, 1)
            assert refusal_by_standing(seen_by.membership, peer) is None
        for node in self.nodes.values():
            node.check_bounds()


class Chooser(Protocol):
    """Decides what is said."""

    def below(self, count: int) -> int: ...

    def of(self, values: Any) -> Any: ...


class Choices:
    """What happens, as the bytes of an input say; zeros when they have come to their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def below(self, count: int) -> int:
        found = self._data[self._at] if self else 0
        self._at += 1
        return found % count

    def of(self, values: Any) -> Any:
        return values[self.below(len(values))]


class Drawn:
    """The same by chance."""

    def __init__(self, rng: random.Random) -> None:
        self.below = rng.randrange
        self.of = rng.choice


@dataclasses.dataclass
class Truth:
    """What the liar knows, and says other things of.

    :param names: of whom it speaks, of those that there are and of others.
    :param incarnations: of those that there are.
    :param addrs: where they might be, by number or by name; `None` for a start that was dropped.
    :param digests: of states that there are.
    """

    names: Sequence[str]
    incarnations: Mapping[str, int]
    addrs: Sequence[str | None] = ADDRS
    digests: Callable[[], Sequence[bytes]] = tuple
    #: So that each move is later than the one before.
    moves: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(100))


def lie(truth: Truth, choices: Chooser) -> dict[str, Any]:
    """A state that could be one, of whatever the liar likes."""
    rows: dict[str, dict[tuple[Any, ...], list[Any]]] = {"s": {}, "v": {}, "m": {}}
    for _ in range(1 + choices.below(4)):
        name = choices.of(truth.names)
        own = truth.incarnations.get(name)
        known = () if own is None else (own, own + 1)
        incarnation = choices.of((*known, *NUMBERS))
        counter = choices.of(COUNTERS)
        ended = choices.of((0, *COUNTERS))
        if choices.below(3):
            rows["s"][(name,)] = [name, incarnation, counter, ended, choices.of(truth.addrs)]
            continue
        rows["v"][name, incarnation] = [name, incarnation, counter, ended]
        if choices.below(2):
            member, addr = choices.of(truth.names), choices.of([*filter(None, truth.addrs)])
            if member != name:
                number = max(counter - choices.below(3), 1)
                dot = (name, incarnation, number)
                rows["m"][dot] = [*dot, member, addr]
    return {key: [rows[key][by] for by in sorted(rows[key])] for key in rows}


def lie_of_bans(choices: Chooser) -> list[list[Any]]:
    """Bans that could be some, of whatever the liar likes."""
    rows = {}
    for _ in range(1 + choices.below(5)):
        subject = choices.of((*NAMES, LIAR, bytes(32)))
        duration_ms = choices.of((0, 1, 5_000, DURATION_MS_MAX))
        left_ms = choices.of((0, duration_ms))
        time, by = choices.of(COUNTERS), choices.of((*NAMES, LIAR))
        rows[subject] = [subject, time, duration_ms, by, left_ms, bool(choices.below(2))]
    return [rows[subject] for subject in sorted(rows, key=order_of)]


def act_on_bans(mesh: HonestMesh, node: HonestNode, choices: Choices) -> None:
    act = choices.below(5)
    if act < 3:
        with contextlib.suppress(MembershipError):
            node.hear_of_bans(mesh.hear_lie(lie_of_bans(choices)), LIAR)
        return
    subject = choices.of(NAMES)
    if act == 3:
        node.bans.lift(subject, mesh.seconds)
    elif subject != node.node.name:
        node.bans.ban(subject, choices.of((1, 60)), mesh.seconds)


def many_gone(choices: Chooser) -> dict[str, Any]:
    """Removals of so many that others may be forgotten for them."""
    ended = choices.of(COUNTERS)
    names = sorted(f"gone-{number}" for number in range(choices.of((30, 256))))
    return {"s": [[name, 1, 1, ended, None] for name in names], "v": [], "m": []}


def move(truth: Truth, choices: Chooser) -> dict[str, Any]:
    """A node is elsewhere, as it says itself, again and again."""
    name = choices.of(sorted(truth.incarnations))
    row = [name, truth.incarnations[name], next(truth.moves), 0, choices.of(truth.addrs[:-1])]
    return {"s": [row], "v": [], "m": []}


def message(truth: Truth, choices: Chooser) -> dict[str, Any]:
    """What goes over a connection: a state or a digest, or both, or a state for the peer alone."""
    digest = choices.of((bytes(32), b"", *truth.digests()))
    kind = choices.below(10)
    if kind == 0:
        return {"d": digest}
    said = move(truth, choices) if kind < 4 else lie(truth, choices)
    if kind in (1, 4, 5):
        said["d"] = digest
    if kind in (2, 5, 6):
        said["k"] = bool(choices.below(2))
    return said


def play(data: bytes) -> HonestMesh:
    """What the bytes say, and then rest."""
    mesh, choices = HonestMesh(), Choices(data)
    truth = Truth(NAMES, {})
    while choices:
        mesh.now += choices.of((0, 1, MILLISECOND, 700 * MILLISECOND))
        act = choices.below(10)
        name = choices.of(HONEST)
        node = mesh.nodes[name]
        if act > 7:
            act_on_bans(mesh, node, choices)
        elif act < 3:
            try:
                truth.incarnations = {each: of.incarnation for each, of in mesh.nodes.items()}
                node.take_in(mesh.hear_lie(lie(truth, choices)))
            except MembershipError as error:
                assert len(str(error)) < 400 and str(error).isascii(), error
        elif act < 5:
            other = mesh.nodes[choices.of(HONEST)]
            if other is not node and not node.membership.is_removed:
                mesh.tell(node, other, join=bool(choices.below(2)))
        elif act == 5:
            node.membership.remove(choices.of(NAMES))
        elif act == 6:
            # With a clock that is right, a year ahead, or not set.
            clock = choices.of((mesh.now, mesh.now + AHEAD_MAX // 100, 1))
            mesh.restart(name, clock + choices.below(9))
        elif node.membership.is_removed:
            node.become_later()
        else:
            target = choices.of(NAMES)
            if target != name:
                with contextlib.suppress(MembershipLimit):
                    node.membership.add(NodeId(target, f"{target}:1"))
        # What a state or a ban did is looked at where it is taken in.
        node.check_bounds()
        for each in mesh.nodes.values():
            each.tick()
    mesh.come_to_rest()
    return mesh
