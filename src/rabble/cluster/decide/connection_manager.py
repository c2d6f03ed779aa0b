"""Whom to dial, when to dial again, and which of two connections to one peer stays."""

from __future__ import annotations

from collections.abc import Iterable

from rabble._core.ids import NodeId
from rabble.cluster.decide.actions import (
    Action,
    Close,
    ConnectionStatus,
    Dial,
    Down,
    RaiseIncarnation,
    Removed,
    SelfAddress,
    Up,
)
from rabble.cluster.decide.backoff import Backoff, Uniform
from rabble.cluster.decide.peers import DialTarget, Member, PendingDial
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.limits import Limits

__all__ = ["ConnectionManager"]


class ConnectionManager:
    """Whom to dial, when, and which connection to a peer stays. Decides; does no I/O.

    :param own: this node.
    :param incarnation: of this start of it.
    :param rng: for the jitter of waits.
    :param limits: its `dials_max`, `redial_*`, `dial_hold_back_ms`, `heartbeat_ms` and
        `peers_remembered_max` are used.

    `now` is monotonic seconds throughout. The caller carries out the actions in their order,
    before the next call. For one thread.

    **Simultaneous connects.** Two nodes that dial each other must agree which connection stays,
    though either hears of the other's at its own time. The responder decides when it has the
    initiator's PROOF. So an initiator asks `authenticating` before it sends PROOF: from then on the
    peer may take the dial for a connection. The node with the smaller name refuses (DUPLICATE) as
    long as it has such a dial, and the other one accepts and drops its own. A dial that has not
    come to its PROOF gives way to whatever is accepted.
    """

    def __init__(self, own: NodeId, incarnation: int, rng: Uniform, limits: Limits) -> None:
        self.own = own
        self.incarnation = incarnation
        self._backoff = Backoff(rng, limits)
        self._dials_max = limits.dials_max
        self._remembered_max = limits.peers_remembered_max
        self._settled_s = limits.redial_settled_ms / 1000
        self._heartbeat_s = limits.heartbeat_ms / 1000
        #: Somebody asked this start of the node to join: the HELLO of each dial has the flag JOIN.
        #: A peer may know nothing of that yet, but only of an earlier removal.
        self.joins = False
        self._last_id = 0
        self._members: dict[str, Member] = {}
        self._seeds: dict[str, DialTarget] = {}
        self._dials: dict[int, PendingDial] = {}
        self._up: dict[int, Member] = {}

    # The desired peers.

    def add_peer(self, node: NodeId, now: float, explicit: bool = False) -> list[Action]:
        """Keep a connection to this node from now on. May be called again at any time.

        :param explicit: somebody asked this node to join that one: dial at once, whatever
            happened before. Otherwise the node is a member of the cluster.

        The own name is ignored.
        """
        if node.name == self.own.name:
            return []
        member = self._member(node)
        if member.up:
            # What was asked for is there; the address is for the time after it.
            member.node, member.addr, member.is_desired = node, node.addr, True
            return []
        moved = member.addr != node.addr
        fresh = explicit or moved or not member.is_desired
        member.node, member.addr, member.is_desired = node, node.addr, True
        if explicit:
            self.joins = member.join = True
            member.barred = False
        elif moved and member.refusal is RefusalCode.SELF:
            member.barred = False
        if not fresh:
            return []
        if not member.barred:
            member.attempts, member.refusal = 0, None
        actions: list[Action] = []
        if (pending_dial := member.pending_dial) is not None:
            same = (pending_dial.addr, pending_dial.join) == (
                member.addr,
                self.joins or member.join,
            )
            if same or pending_dial.authenticating is not None:
                # What the peer may have accepted already is not dropped.
                return []
            actions.append(self._drop(pending_dial, "another dial was asked for"))
        self._plan(member, now)
        return actions

    def remove_peer(self, name: str, now: float) -> list[Action]:
        """The node of this name is no member any more: cancel a dial, close the connection."""
        member = self._members.get(name)
        if member is None:
            return []
        member.is_desired = member.join = member.barred = False
        member.due = None
        member.attempts = 0
        actions: list[Action] = []
        if member.pending_dial is not None:
            actions.append(self._drop(member.pending_dial, "no longer wanted"))
        if member.connection_id is not None:
            code = RefusalCode.REMOVED
            actions.append(Close(member.connection_id, code, code.meaning))
            actions.append(self._down(member))
        return actions

    def add_seed(self, addr: str, now: float) -> None:
        """Join whoever answers at this address, at once; what was there before is forgotten.

        It becomes a desired peer when a connection has shown its name.
        """
        for member in self._up.values():
            if member.peer is not None and member.peer.addr == addr:
                member.is_desired = True
                return
        self.joins = True
        target = self._seeds.setdefault(addr, DialTarget(addr, is_desired=True, join=True))
        target.attempts, target.refusal = 0, None
        if target.pending_dial is None:
            self._plan(target, now)

    def remove_seed(self, addr: str) -> list[Action]:
        """Do not dial this address any more; a dial is cancelled."""
        target = self._seeds.pop(addr, None)
        if target is None or target.pending_dial is None:
            return []
        return [self._drop(target.pending_dial, "no longer wanted")]

    # What becomes of a dial.

    def authenticating(
        self, connection_id: int, peer: NodeId, incarnation: int, now: float
    ) -> list[Action]:
        """The initiator has checked the responder's HELLO: may it send its PROOF?

        :returns: nothing if it may; else what to do instead, the Close of this dial. Who is not
            asked about a dial cannot call it established.
        """
        pending_dial = self._dials.get(connection_id)
        if pending_dial is None:
            return [Close(connection_id, RefusalCode.DUPLICATE, "this dial was dropped")]
        target = pending_dial.target
        member = self._members.get(peer.name)
        refusal: Refusal | None = None
        if target.whom is not None and target.whom.name != peer.name:
            refusal = Refusal(RefusalCode.NAME_MISMATCH, f"{peer.name} answers")
        elif member is not None:
            # A seed may turn out to be who is connected. If that is no tie any more it is asked
            # all the same: it refuses, with proof, and so names the seed; or wants a new one.
            settled = member.up and now - member.up_since >= self._settled_s
            refusal = member.verdict(peer, incarnation, silent=settled)
        if refusal is None and self._is_authenticating(peer, incarnation):
            refusal = Refusal(RefusalCode.DUPLICATE, "it is being dialled already")
        if refusal is not None:
            actions = self.dial_failed(connection_id, now, code=refusal.code)
            return [Close(connection_id, refusal.code, refusal.text), *actions]
        pending_dial.authenticating = (peer, incarnation)
        return []

    def dial_failed(
        self,
        connection_id: int,
        now: float,
        *,
        code: RefusalCode | None = None,
        authenticated: bool = False,
        incarnation: int = 0,
    ) -> list[Action]:
        """A dial came to nothing.

        :param code: why it was refused; `None` if the network was why.
        :param authenticated: the peer had proven itself before. Without that nobody is believed
            anything that would last.
        :param incarnation: that which the peer knows of this node, with STALE_INCARNATION.
        """
        pending_dial = self._dials.pop(connection_id, None)
        if pending_dial is None:
            return []
        target = pending_dial.target
        target.pending_dial = None
        target.attempts += 1
        target.refusal = code
        actions: list[Action] = []
        if authenticated and code is RefusalCode.SELF:
            self._bar(target)
            actions.append(SelfAddress(target.addr, target.whom))
        elif (
            authenticated
            and code is RefusalCode.REMOVED
            and (self.joins or target.join) <= pending_dial.join
        ):
            # Unless somebody asked this node to join only after that dial was begun.
            self._bar(target)
            actions.append(Removed(target.addr, target.whom))
        elif (
            authenticated
            and code is RefusalCode.DUPLICATE
            and pending_dial.authenticating is not None
        ):
            self._resolve(target, pending_dial.authenticating[0], now)
        elif (
            authenticated
            and code is RefusalCode.STALE_INCARNATION
            and self.incarnation <= incarnation < 2**64 - 1
        ):
            actions.append(RaiseIncarnation(incarnation + 1))
        self._plan(target, now)
        return actions

    # What becomes of a connection.

    def accepting(self) -> int:
        """The number for a connection that another node began."""
        self._last_id += 1
        return self._last_id

    def authorize(
        self, peer: NodeId, incarnation: int, now: float, silent_s: float | None = None
    ) -> Refusal | None:
        """Whether to accept a peer that dialled this node and has proven itself.

        :param silent_s: for how many seconds `connection_of(peer.name)` has been silent.
        :returns: `None` to accept: `established` is then called before anything else.

        Whether the peer is a member is not asked here.
        """
        if peer.name == self.own.name:
            if incarnation == self.incarnation:
                return Refusal(RefusalCode.SELF, "you are this node")
            return Refusal(RefusalCode.NAME_CONFLICT, "this node has your name")
        refusal: Refusal | None = None
        if (member := self._members.get(peer.name)) is not None:
            silent = silent_s is not None and silent_s > self._heartbeat_s
            refusal = member.verdict(peer, incarnation, silent)
        if (
            refusal is None
            and self.own.name < peer.name
            and self._is_authenticating(peer, incarnation)
        ):
            refusal = Refusal(RefusalCode.DUPLICATE, "this node is dialling you")
        return refusal

    def established(
        self, connection_id: int, peer: NodeId, incarnation: int, initiated: bool, now: float
    ) -> list[Action]:
        """The handshake of a connection is done: use it, instead of what was there.

        :param initiated: this node dialled. Otherwise `authorize` has just accepted it.
        :raises ValueError: if `authenticating` was not asked about this dial and this peer.
        """
        target: DialTarget | None = None
        if initiated:
            pending_dial = self._dials.get(connection_id)
            if pending_dial is None:
                return [Close(connection_id, RefusalCode.DUPLICATE, "this dial was dropped")]
            if pending_dial.authenticating != (peer, incarnation):
                raise ValueError(
                    f"authenticating was not called for connection {connection_id} to {peer}"
                )
            target = pending_dial.target
        known = self._members.get(peer.name)
        if known is not None and incarnation < known.incarnation:
            # A later start of it came in while this one was on its way.
            code = RefusalCode.STALE_INCARNATION
            return [
                Close(connection_id, code, code.meaning),
                *self.dial_failed(connection_id, now, code=code),
            ]
        member = self._member(peer)
        if target is not None:
            del self._dials[connection_id]
            target.pending_dial = None
            self._resolve(target, peer, now)
        actions: list[Action] = []
        for other in list(self._dials.values()):
            if other.target is member or (
                other.authenticating and other.authenticating[0].name == peer.name
            ):
                actions.append(self._drop(other, "another connection stays"))
                if other.target is not member:
                    # A seed asks again later: who it is has not been proven to this node.
                    other.target.attempts += 1
                    self._plan(other.target, now)
        if (seed := self._seeds.get(peer.addr)) is not None:
            if seed.pending_dial is not None:
                actions.append(self._drop(seed.pending_dial, "another connection stays"))
            self._resolve(seed, peer, now)
        if member.connection_id is not None:
            later = incarnation > member.incarnation
            code = RefusalCode.STALE_INCARNATION if later else RefusalCode.DUPLICATE
            text = "a later start of that node" if later else "a later connection stays"
            actions.append(Close(member.connection_id, code, text))
            actions.append(self._down(member))
        member.peer, member.incarnation = peer, incarnation
        if not member.is_desired:
            member.node, member.addr = peer, peer.addr
        member.connection_id, member.up_since, member.due = connection_id, now, None
        member.join = member.barred = False
        member.refusal = None
        self._up[connection_id] = member
        for target in self._targets():
            self._backoff.hurry(target, now)
        return [*actions, Up(connection_id, peer, incarnation)]

    def lost(self, connection_id: int, now: float, code: RefusalCode | None = None) -> list[Action]:
        """A connection ended; one that was closed for an action is no longer known here.

        :param code: that of the peer's BYE, or why this node closed it. It is for people: even a
            REMOVED may be about the other side. Who dials again gets an answer that is not.
        """
        member = self._up.get(connection_id)
        if member is None:
            return []
        actions: list[Action] = [self._down(member)]
        member.attempts = 0 if now - member.up_since >= self._settled_s else member.attempts + 1
        member.refusal = code
        self._plan(member, now)
        return actions

    # Time.

    def tick(self, now: float) -> list[Action]:
        """What is to be dialled now."""
        free = self._dials_max - len(self._dials)
        waiting = [(t.due, t) for t in self._targets() if t.due is not None and t.due <= now]
        # Who waits longest comes first, so nobody starves where there are more than fit.
        waiting.sort(key=lambda pair: pair[0])
        actions: list[Action] = []
        for _, target in waiting[: max(free, 0)]:
            join = self.joins or target.join
            pending_dial = PendingDial(self.accepting(), target, target.addr, join)
            target.pending_dial, target.due = pending_dial, None
            self._dials[pending_dial.connection_id] = pending_dial
            actions.append(Dial(pending_dial.connection_id, target.addr, target.whom, join))
        return actions

    def next_tick(self, now: float) -> float | None:
        """When `tick` has something to do if nothing else happens, in monotonic seconds."""
        if len(self._dials) >= self._dials_max:
            return None
        return min((t.due for t in self._targets() if t.due is not None), default=None)

    # What one may ask.

    def connection_of(self, name: str) -> int | None:
        """The connection to the node of this name, if there is one."""
        member = self._members.get(name)
        return None if member is None else member.connection_id

    def statuses(self, now: float) -> dict[str, ConnectionStatus]:
        """How it stands with each peer, by name."""
        return {name: member.status(now) for name, member in self._members.items()}

    def seed_statuses(self, now: float) -> dict[str, ConnectionStatus]:
        """How it stands with each seed, by address."""
        return {addr: seed.status(now) for addr, seed in self._seeds.items()}

    # The rest is internal.

    def _is_authenticating(self, peer: NodeId, incarnation: int) -> bool:
        """Whether a dial of this node may already be a connection for that peer."""
        return any(
            pending_dial.authenticating == (peer, incarnation)
            for pending_dial in self._dials.values()
        )

    def _plan(self, target: DialTarget, now: float) -> None:
        gone = target.whom is None and self._seeds.get(target.addr) is not target
        if target.up or gone or target.pending_dial is not None:
            target.due = None
            return
        larger = target.whom is not None and self.own.name > target.whom.name
        self._backoff.plan(target, now, hold_back=larger)

    def _bar(self, target: DialTarget) -> None:
        target.barred, target.join = True, False
        if target.whom is None:
            self._seeds.pop(target.addr, None)

    def _resolve(self, target: DialTarget, node: NodeId, now: float) -> None:
        """If that was a seed: it has proven to be this node, a desired peer from now on."""
        if target.whom is not None or self._seeds.get(target.addr) is not target:
            return
        del self._seeds[target.addr]
        member = self._member(node)
        member.is_desired = True
        if not member.up:
            # It does not know of the join yet.
            member.join = True
            member.attempts, member.refusal = target.attempts, target.refusal
            self._plan(member, now)

    def _drop(self, pending_dial: PendingDial, text: str) -> Close:
        del self._dials[pending_dial.connection_id]
        pending_dial.target.pending_dial = None
        return Close(pending_dial.connection_id, RefusalCode.DUPLICATE, text)

    def _down(self, member: Member) -> Down:
        assert member.connection_id is not None and member.peer is not None
        del self._up[member.connection_id]
        down = Down(member.connection_id, member.peer, member.incarnation)
        member.connection_id = None
        # To the end, for `_forget`.
        self._members[member.node.name] = self._members.pop(member.node.name)
        return down

    def _member(self, node: NodeId) -> Member:
        member = self._members.get(node.name)
        if member is None:
            self._forget()
            member = self._members[node.name] = Member(node.addr, node=node)
        return member

    def _forget(self) -> None:
        """Of the names that nobody wants, those that were connected last are kept."""
        idle = [
            name
            for name, member in self._members.items()
            if not member.is_desired
            and member.connection_id is None
            and member.pending_dial is None
        ]
        for name in idle[: max(len(idle) - self._remembered_max, 0)]:
            del self._members[name]

    def _targets(self) -> Iterable[DialTarget]:
        yield from self._members.values()
        yield from self._seeds.values()
