"""What breaks off in the middle of a step is mended: no peer is forgotten, no change half made."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import Mock

import pytest

from rabble._core.codec import Codec
from rabble._core.ids import NodeId
from rabble.cluster.decide.actions import Action, Close, Dial, Down, Up
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.membership import Membership
from rabble.cluster.decide.refusal import RefusalCode
from rabble.limits import Limits
from rabble.registry import MessageRegistry
from tests.cluster.broken_off import Place, Tracer

A, B, C, D = (NodeId(name, f"10.0.0.{i}:1") for i, name in enumerate("abcd"))
CODEC = Codec(MessageRegistry())
FILES = ["cluster/decide/" + name for name in ("connection_manager.py", "backoff.py", "peers.py")]
FILES.append("cluster/decide/dial_rates.py")


# The connections.


class Host:
    """Does what the control plane does around a `ConnectionManager`, of which steps break off."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.manager = ConnectionManager(B, 10, random.Random(1), Limits(dials_max=3))
        self.tracer = tracer or Tracer(FILES)
        self.now = 0.0
        #: What there is of dials and of connections, by their numbers.
        self.dials: dict[int, Dial] = {}
        self.up: dict[int, NodeId] = {}
        #: Members that a step in between did not get to.
        self.members: dict[str, NodeId] = {}

    def take(
        self, step: Callable[..., Any], *arguments: Any, about: int | None = None, **named: Any
    ) -> Any:
        """Take a step; what it raises is mended before the next one.

        :param about: of a dial that comes to its end if this raises something.
        """
        try:
            with self.tracer.on():
                result = step(*arguments, **named)
        except MemoryError:
            self.dials.pop(about or 0, None)
            self.mend()
            return []
        if isinstance(result, list):
            self.carry_out(result)
        return result

    def mend(self) -> None:
        self.carry_out(self.manager.mend({*self.dials, *self.up}, self.now))
        for node in self.members.values():
            self.carry_out(self.manager.add_peer(node, self.now))
        for connection_id, node in list(self.up.items()):
            if self.manager.connection_of(node.name) != connection_id:
                del self.up[connection_id]

    def carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Dial(connection_id=connection_id):
                    self.dials[connection_id] = action
                case Up(connection_id, peer, _):
                    self.up[connection_id] = peer
                case Close(connection_id=connection_id) | Down(connection_id=connection_id):
                    self.dials.pop(connection_id, None)
                    self.up.pop(connection_id, None)

    # What happens.

    def add(self, node: NodeId, **named: Any) -> None:
        self.members[node.name] = node
        self.take(self.manager.add_peer, node, self.now, **named)

    def answer(self, connection_id: int, peer: NodeId) -> None:
        """A dial is answered, and its handshake comes to its end."""
        args = connection_id, peer, 20, self.now
        if self.take(self.manager.authenticating, *args, about=connection_id) is not None:
            self.dials.pop(connection_id, None)
        if self.dials.pop(connection_id, None) is not None:
            self.take(self.manager.established, connection_id, peer, 20, True, self.now)

    def accept(self, peer: NodeId) -> None:
        connection_id = self.manager.accepting()
        if self.take(self.manager.authorize, peer, 20, self.now) is None:
            self.take(self.manager.established, connection_id, peer, 20, False, self.now)

    def fail(self, connection_id: int, **named: Any) -> None:
        del self.dials[connection_id]
        self.take(self.manager.dial_failed, connection_id, self.now, **named)

    def lose(self, peer: NodeId) -> None:
        for connection_id in [each for each, node in self.up.items() if node == peer]:
            del self.up[connection_id]
            self.take(self.manager.lost, connection_id, self.now)

    def pass_time(self, seconds: float = 40.0) -> None:
        for _ in range(int(seconds * 4)):
            self.now += 0.25
            if not self.dials:
                self.take(self.manager.tick, self.now)
            self.take(self.manager.next_tick, self.now)


def live(host: Host) -> None:
    """Something of everything that can happen to a peer."""
    host.add(A)
    host.add(C, explicit=True)
    host.pass_time(2)
    for connection_id, dial in list(host.dials.items()):
        if dial.node == A:
            host.fail(connection_id)
        else:
            host.answer(connection_id, C)
    host.pass_time(2)
    host.accept(A)
    host.lose(C)
    host.lose(A)
    host.add(NodeId("a", "10.0.0.9:1"))
    host.pass_time(2)
    host.add(A)
    host.take(host.manager.add_seed, D.addr, host.now)
    host.pass_time(2)
    for connection_id in list(host.dials):
        host.fail(connection_id, code=RefusalCode.DUPLICATE, authenticated=True)
    host.pass_time(2)
    for connection_id, dial in list(host.dials.items()):
        if dial.node is None:
            host.answer(connection_id, D)
    host.take(host.manager.remove_seed, D.addr)
    host.members.pop("d", None)
    host.take(host.manager.remove_peer, "d", host.now)


def check(host: Host) -> None:
    """Behind it: whoever is a member is dialled, comes up, and does so again."""
    manager = host.manager
    for _ in range(2):
        host.now += 40.0
        for peer in (A, C):
            host.lose(peer)
        for _ in range(400):
            host.take(manager.tick, host.now)
            for connection_id, dial in list(host.dials.items()):
                host.answer(connection_id, dial.node or D)
            assert host.dials == {} and manager.dials() == []
            if set(host.up.values()) >= {A, C}:
                break
            host.now += 0.25
        assert set(host.up.values()) >= {A, C}, manager.statuses(host.now)
    for connection_id, peer in host.up.items():
        assert manager.connection_of(peer.name) == connection_id
    assert set(manager._up) == set(host.up)
    assert manager._rates._under_way == 0
    for waiting in manager._waiting:
        assert waiting.due is not None and not waiting.up and waiting.pending_dial is None
    host.pass_time(1)
    due = manager.next_tick(host.now)
    assert due is None or due < host.now + 100


def broken_at(place: Place | None) -> Host:
    host = Host(Tracer(FILES, place))
    live(host)
    assert host.tracer.has_raised == (place is not None)
    host.tracer = Tracer(FILES)
    check(host)
    return host


def places() -> list[Place]:
    host = Host()
    live(host)
    found = list(host.tracer.places)
    check(host)
    return found


def test_whoever_is_a_member_comes_up_wherever_a_step_breaks_off() -> None:
    found = places()
    assert len(found) > 300, len(found)
    failed = []
    for place in found:
        try:
            broken_at(place)
        except Exception as error:
            failed.append(f"{place}: {error!r:.100}")
    assert not failed, "\n".join(failed)


class Short(dict[Any, Any]):
    """For once it has no memory for another entry."""

    is_short = False

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.is_short:
            self.is_short = False
            raise MemoryError("no room")
        super().__setitem__(key, value)


@pytest.mark.parametrize(
    "way",
    ["_waiting._targets", "_waiting._failing", "_dials._by_id", "_dials._authenticating", "_up"],
)
@pytest.mark.parametrize("happens", ["add", "tick", "established", "failed"])
def test_a_set_that_could_not_grow_hides_nobody(way: str, happens: str) -> None:
    host = Host()
    *parents, name = way.split(".")
    owner = functools.reduce(getattr, parents, host.manager)
    short = Short(getattr(owner, name))
    setattr(owner, name, short)
    short.is_short = happens == "add"
    host.add(A, explicit=True)
    host.add(C)
    short.is_short |= happens == "tick"
    host.pass_time(1)
    short.is_short |= happens in ("established", "failed")
    for connection_id, dial in list(host.dials.items()):
        if happens == "failed":
            host.fail(connection_id)
        else:
            assert dial.node is not None
            host.answer(connection_id, dial.node)
    short.is_short = False
    check(host)


# The membership.

MEMBERSHIP = [f"cluster/decide/membership{rest}.py" for rest in ("", "_state")]


def replica(node: NodeId, incarnation: int, **limits: int) -> Membership:
    return Membership(node, incarnation, Limits(membership_retired_max=2, **limits))


def others() -> list[dict[str, Any]]:
    """States that bring starts, joins and removals, and go beyond what this node says of itself."""
    b, c = replica(B, 20), replica(C, 30)
    states = [b.state()]
    b.add(D)
    states.append(b.state())
    c.merge(states[-1])
    c.remove("d")
    states.append(c.state())
    for i in range(4):
        c.add(NodeId(f"n{i}", "h:1"))
        c.remove(f"n{i}")
    c.add(NodeId("n4", "h:1"))
    states.append(c.state())
    states.append({"s": [["a", 10, 7, 0, "elsewhere:1"]], "v": [], "m": []})
    return [CODEC.decode_message(CODEC.encode_message(state)) for state in states]


Step = Callable[[Membership], object]


def steps() -> list[Step]:
    def merge(state: object) -> Step:
        return lambda membership: membership.merge(state)

    first, *rest = map(merge, others())
    return [
        first,
        lambda membership: membership.add(NodeId("e", "h:1")),
        *rest,
        lambda membership: membership.remove("e"),
        lambda membership: membership.remove("a"),
        lambda membership: membership.rejoin(40),
        lambda membership: membership.state(),
    ]


def change_membership(tracer: Tracer, whole: list[bytes] | None = None) -> list[bytes]:
    """Take all steps; the state behind each of them, which is that of `whole` for each.

    One that breaks off is taken again, unless it was at its end already.
    """
    membership = replica(A, 10)
    states = [membership.encoded()]
    for step in steps():
        try:
            with tracer.on():
                step(membership)
        except MemoryError:
            assert whole is not None
            state = membership.encoded()
            if state != whole[len(states)]:
                assert state == states[-1], "changed by half"
                step(membership)
        states.append(membership.encoded())
        other = replica(NodeId("z", "h:1"), 1)
        if not membership.is_removed:
            other.merge(CODEC.decode_message(states[-1]))
            assert {**membership.members(), "z": other.own} == other.members()
        dots = {dot for dots in membership._joins_of.values() for dot in dots}
        assert dots == membership._joins.keys()
    return states


@pytest.mark.parametrize("apart", [5, pytest.param(1, marks=pytest.mark.soak)])
def test_a_change_of_the_membership_that_breaks_off_changes_nothing(apart: int) -> None:
    tracer = Tracer(MEMBERSHIP)
    whole = change_membership(tracer)
    assert len(tracer.places) > 250, len(tracer.places)
    failed = []
    for place in list(tracer.places)[::apart]:
        broken = Tracer(MEMBERSHIP, place)
        try:
            assert change_membership(broken, whole) == whole
            assert broken.has_raised
        except Exception as error:
            failed.append(f"{place}: {error!r:.100}")
    assert not failed, "\n".join(failed)


def test_what_cannot_be_undone_for_want_of_memory_is_undone_at_the_next_call() -> None:
    membership, other = replica(A, 10), replica(B, 20)
    before = membership.state()
    names: Any = Mock(side_effect=MemoryError)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(membership, "_settle", names)
        patched.setattr(membership, "_winner", names)
        for _ in range(3):
            with pytest.raises(MemoryError):
                membership.merge(other.state())
        with pytest.raises(MemoryError):
            membership.members()
    assert membership.members() == {"a": A}
    assert membership.state() == before
    assert membership.merge(other.state()).added == (B,)
