"""Whom to dial, when to dial again, and which of two connections to one peer stays."""

from __future__ import annotations

import collections
from collections.abc import Container

from rabble._core.ids import NodeId
from rabble._core.messages import is_guest
from rabble.addresses import Address
from rabble.cluster.decide.actions import (
    Action,
    Close,
    ConnectionStatus,
    Dial,
    Down,
    Held,
    RaiseIncarnation,
    Removed,
    SelfAddress,
    Up,
)
from rabble.cluster.decide.backoff import Backoff, Uniform
from rabble.cluster.decide.dial_rates import DialRates
from rabble.cluster.decide.peers import DialTarget, Member, PendingDial, refusal_of_stranger
from rabble.cluster.decide.pending_dials import PendingDials
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.cluster.decide.token_bucket import TokenBucket
from rabble.cluster.decide.waiting import Waiting
from rabble.limits import Limits

__all__ = ["ConnectionManager"]


class ConnectionManager:
    """Decides whom to dial, when, and which connection to a peer stays. Does no I/O.

    :param own: this node.
    :param incarnation: of this start of it.
    :param rng: for the jitter of waits.
    :param limits: its `dials_max`, `unreached_dials_per_second_max`, `redial_*`,
        `dial_hold_back_ms`, `heartbeat_ms`, `membership_members_max`, `guests_max` and
        `peers_remembered_max` are used.

    `now` is monotonic seconds throughout. The caller carries out the actions in their order,
    before the next call. For one thread.

    **Simultaneous connects.** Two nodes that dial each other must agree which connection stays,
    though either hears of the other's at its own time. The responder decides when it has the
    initiator's PROOF. So an initiator asks `authenticating` before it sends PROOF: from then on the
    peer may take the dial for a connection. The node with the smaller name refuses (DUPLICATE) as
    long as it has such a dial, and the other one accepts and drops its own. A dial that has not
    come to its PROOF gives way to whatever is accepted.

    Most of that is avoided, as the node with the greater name holds its first dial back. Where many
    nodes start together the others take their time. So it holds back as long as connections come
    up, but not for ever: the other one may not be able to dial.
    """

    def __init__(self, own: NodeId, incarnation: int, rng: Uniform, limits: Limits) -> None:
        self.own = own
        self.incarnation = incarnation
        self._backoff = Backoff(rng, limits)
        # Half of the dials at least are left to those that were reached before.
        self._rates = DialRates(
            limits.unreached_dials_per_second_max, max(limits.dials_max // 2, 1)
        )
        self._up_max = limits.membership_members_max
        self._guests_max = limits.guests_max
        self._remembered_max = limits.peers_remembered_max
        self._settled_s = limits.redial_settled_ms / 1000
        self._heartbeat_s = limits.heartbeat_ms / 1000
        self._down_after_s = limits.down_after_ms / 1000
        #: Somebody asked this start of the node to join: the HELLO of each dial has the flag JOIN.
        #: A peer may know nothing of that yet, but only of an earlier removal.
        self.joins = False
        self._last_id = 0
        self._members: collections.OrderedDict[str, Member] = collections.OrderedDict()
        self._seeds: dict[str, DialTarget] = {}
        self._dials = PendingDials(limits.dials_max)
        self._up: dict[int, Member] = {}
        self._waiting = Waiting(self._backoff)
        #: When the last connection came up.
        self._last_up = float("-inf")
        #: `tick` has nothing to do before that, unless what happens first sets it anew.
        self.none_before = float("-inf")

    # The desired peers.

    def add_peer(self, node: NodeId, now: float, explicit: bool = False) -> list[Action]:
        """Keep a connection to this node from now on. May be called again at any time.

        :param explicit: somebody asked this node to join that one: dial at once, whatever
            happened before. Otherwise the node is a member of the cluster, as others say, and so is
            where it is: another address than before is for the next dial, whenever that is due.

        The own name is ignored, and so is a guest, which nobody can dial.
        """
        if node.name == self.own.name or is_guest(node):
            return []
        member = self._member(node)
        actions: list[Action] = []
        if member.connection_id is not None and member.is_guest:
            text = "a member has that name now"
            actions.append(Close(member.connection_id, RefusalCode.NAME_CONFLICT, text))
            actions.append(self._down(member))
            member.peer, member.incarnation = None, -1
        if member.up:
            # What was asked for is there; the address is for the time after it.
            member.node, member.addr, member.is_desired = node, node.addr, True
            return []
        moved = member.addr != node.addr
        if moved:
            self.none_before = float("-inf")
            member.answered = member.peer is not None and member.peer.addr == node.addr
        fresh = explicit or not member.is_desired
        member.node, member.addr, member.is_desired = node, node.addr, True
        if explicit:
            self.joins = member.join = True
            member.barred = False
            member.holes, member.held_until = 0, 0.0
        elif moved and member.barred and member.refusal is RefusalCode.SELF:
            member.barred = False
            self._plan(member, now)
        if not fresh:
            return actions
        if not member.barred:
            member.attempts, member.refusal = 0, None
        if (pending_dial := member.pending_dial) is not None:
            same = pending_dial.join == (self.joins or member.join)
            if (same and pending_dial.addr == member.addr) or pending_dial.authenticating:
                # A dial that the peer may have accepted already is not dropped.
                return actions
            actions.append(self._drop(pending_dial, "another dial was asked for"))
        self._plan(member, now)
        return actions

    def remove_peer(self, name: str, now: float) -> list[Action]:
        """The node of this name is no member any more: cancel a dial, close the connection."""
        member = self._members.get(name)
        if member is None:
            return []
        member.is_desired = member.join = member.barred = False
        self._waiting.drop(member)
        member.attempts = 0
        actions: list[Action] = []
        if member.pending_dial is not None:
            actions.append(self._drop(member.pending_dial, "no longer wanted"))
        if member.connection_id is not None:
            code = RefusalCode.REMOVED
            actions.append(Close(member.connection_id, code, code.meaning))
            actions.append(self._down(member))
        self._forget_guest(member)
        return actions

    def shut_out(self, name: str, now: float, text: str, ban_s: float) -> list[Action]:
        """The node of this name, or its key, is banned for so long: end what there is to it.

        If it stays desired it is dialled now and then: it may have another key by then, and whoever
        is banned is told so.
        """
        if (member := self._members.get(name)) is None:
            return []
        pending_dial = member.pending_dial
        actions: list[Action] = [] if pending_dial is None else [self._drop(pending_dial, text)]
        if member.connection_id is not None:
            actions.append(Close(member.connection_id, RefusalCode.BANNED, text))
            actions.append(self._down(member))
        member.attempts += 1
        member.refusal, member.ban_s = RefusalCode.BANNED, ban_s
        self._plan(member, now)
        self._forget_guest(member)
        return actions

    def dial_banned(self, now: float) -> None:
        """A ban is over: dial whom one kept from being connected, as if nothing had happened."""
        for target in self._waiting.failing():
            if target.refusal is RefusalCode.BANNED:
                target.attempts, target.refusal = 0, None
                self._plan(target, now)

    def add_seed(self, addr: str, now: float, resolved: Address | None = None) -> None:
        """Join whoever answers at this address, at once; what was there before is forgotten.

        It becomes a desired peer when a connection has shown its name.

        :param resolved: what `addr` stands for, if that is known: its dials look nothing up.
        """
        for member in self._up.values():
            if member.peer is not None and member.peer.addr == addr:
                member.is_desired = True
                return
        self.joins = True
        target = self._seeds.setdefault(addr, DialTarget(addr, is_desired=True, join=True))
        target.attempts, target.refusal, target.resolved = 0, None, resolved
        if target.pending_dial is None:
            self._plan(target, now)

    def remove_seed(self, addr: str) -> list[Action]:
        """Do not dial this address any more; a dial is cancelled."""
        if (target := self._seeds.pop(addr, None)) is None:
            return []
        self._waiting.drop(target)
        pending_dial = target.pending_dial
        return [] if pending_dial is None else [self._drop(pending_dial, "no longer wanted")]

    # What becomes of a dial.

    def authenticating(
        self, connection_id: int, peer: NodeId, incarnation: int, now: float
    ) -> Refusal | None:
        """The initiator has checked the responder's HELLO: may it send its PROOF?

        :returns: `None` if it may. Otherwise why not: the dial has ended, and the caller closes it
            without a word. A dial that was not asked about cannot be called established.
        """
        if (pending_dial := self._dials.get(connection_id)) is None:
            return Refusal(RefusalCode.DUPLICATE, "this dial was dropped")
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
        if refusal is None and self._dials.is_authenticating(peer, incarnation):
            refusal = Refusal(RefusalCode.DUPLICATE, "it is being dialled already")
        if refusal is not None:
            # The peer has proven nothing yet, so no action follows from what it says.
            self.dial_failed(connection_id, now, code=refusal.code)
            return refusal
        self._dials.authenticate(pending_dial, peer, incarnation, now)
        return None

    def dial_failed(
        self,
        connection_id: int,
        now: float,
        *,
        code: RefusalCode | None = None,
        authenticated: bool = False,
        incarnation: int = 0,
        ban_s: float = 0.0,
    ) -> list[Action]:
        """A dial came to nothing.

        :param code: why it was refused; `None` if the network was why.
        :param authenticated: the peer had proven itself before. Without that nobody is believed
            anything that would last.
        :param incarnation: that which the peer knows of this node, with STALE_INCARNATION.
        :param ban_s: for how many seconds more, with BANNED.
        """
        if (pending_dial := self._dials.get(connection_id)) is None:
            return []
        self._dials.ended(pending_dial, now)
        self._end(pending_dial, reached=authenticated)
        target = pending_dial.target
        if not (authenticated and code is RefusalCode.DUPLICATE):
            # Otherwise the peer has another connection, or dials itself: that is no failure.
            target.attempts += 1
        target.refusal, target.ban_s = code, ban_s
        target.answered = target.answered or authenticated
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
            if now < member.held_until:
                text = "large packets are lost between this node and you: look at the MTU"
                return Refusal(RefusalCode.BUSY, text)
            silent = silent_s is not None and silent_s > self._heartbeat_s
            refusal = member.verdict(peer, incarnation, silent)
        is_expected = member is not None and (member.up or member.is_desired)
        if refusal is None and not is_expected:
            refusal = refusal_of_stranger(peer, self._up.values(), self._up_max, self._guests_max)
        if (
            refusal is None
            and self.own.name < peer.name
            and self._dials.is_authenticating(peer, incarnation)
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
        pending_dial: PendingDial | None = None
        if initiated:
            pending_dial = self._dials.get(connection_id)
            if pending_dial is None:
                return [Close(connection_id, RefusalCode.DUPLICATE, "this dial was dropped")]
            if pending_dial.authenticating != (peer, incarnation):
                raise ValueError(
                    f"authenticating was not called for connection {connection_id} to {peer}"
                )
        known = self._members.get(peer.name)
        if known is not None and known.is_guest and not is_guest(peer):
            known.incarnation = -1  # A member takes its name from a guest.
        if known is not None and incarnation < known.incarnation:
            # A later start of it came in while this one was on its way.
            code = RefusalCode.STALE_INCARNATION
            return [
                Close(connection_id, code, code.meaning),
                *self.dial_failed(connection_id, now, code=code),
            ]
        member = self._member(peer)
        if pending_dial is not None:
            self._dials.ended(pending_dial, now)
            self._end(pending_dial, reached=True)
            self._resolve(pending_dial.target, peer, now)
        actions: list[Action] = []
        for other in self._dials.of(peer.name, member):
            actions.append(self._drop(other, "another connection stays", reached=True))
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
        self._waiting.drop(member)
        self._up[connection_id] = member
        member.connection_id, member.up_since = connection_id, now
        member.join = member.barred = False
        member.answered = member.addr == peer.addr
        member.refusal = None
        if not is_guest(peer):  # Who says nothing of the network, nor of how many nodes start.
            self._last_up = now
            if self._waiting.hurry(now):
                self.none_before = float("-inf")
        return [*actions, Up(connection_id, peer, incarnation)]

    def lost(
        self,
        connection_id: int,
        now: float,
        code: RefusalCode | None = None,
        *,
        holed: bool = False,
    ) -> list[Action]:
        """A connection ended; one that was closed for an action is no longer known here.

        :param code: that of the peer's BYE, or why this node closed it. It is for people: even a
            REMOVED may be about the other side. The answer to the next dial is not.
        :param holed: it fell silent though its host confirmed what was sent to it. Once, its
            process may have stood still. Again, right after a handshake, larger packets are lost on
            the way: then it would come up and fall silent for ever, and is held down instead.
        """
        member = self._up.get(connection_id)
        if member is None or member.connection_id != connection_id:
            return []
        actions: list[Action] = [self._down(member)]
        lasted_s = now - member.up_since
        settled = lasted_s >= self._settled_s
        is_brief = holed and lasted_s < self._settled_s + self._down_after_s
        member.attempts = 0 if settled and not is_brief else member.attempts + 1
        if holed:
            member.holes = member.holes + 1 if is_brief else 1
            held_s = self._backoff.hold(member.holes)
            member.held_until = now + held_s
            if held_s and member.peer is not None:
                actions.append(Held(member.peer, held_s))
        elif settled:
            member.holes = 0
        member.refusal = code
        self._plan(member, now)
        self._forget_guest(member)
        return actions

    # Time.

    def tick(self, now: float) -> list[Action]:
        """What is to be dialled now."""
        if now < self.none_before:
            return []
        places = self._dials.places(now)
        if not any(places.values()):
            return []
        actions: list[Action] = []
        due: dict[bool, list[DialTarget]] = {True: [], False: []}
        for target in self._waiting.due(now, self._last_up):
            due[target.is_looked_up].append(target)
        for looked_up, free in places.items():
            for target, bucket in self._rates.in_turn(due[looked_up], now, free):
                actions.append(self._dial(target, bucket, looked_up, now))
        return actions

    def _dial(
        self, target: DialTarget, bucket: TokenBucket | None, looked_up: bool, now: float
    ) -> Dial:
        join = self.joins or target.join
        number, addr = self.accepting(), target.next_addr
        pending_dial = PendingDial(number, target, addr, join, now, bucket, looked_up)
        dial = Dial(number, addr, target.whom, join, target.resolved, target.is_hearsay)
        self._dials.add(pending_dial)
        target.pending_dial = pending_dial
        self._waiting.drop(target)
        return dial

    def next_tick(self, now: float) -> float | None:
        """When `tick` has something to do if nothing else happens, in monotonic seconds."""
        if now >= self.none_before:
            self.none_before = self._next_dial(now)
        return self.none_before if self.none_before < float("inf") else None

    def _next_dial(self, now: float) -> float:
        first_due = self._waiting.first_due()
        if now < first_due:
            return first_due
        # What is due waits for a place, or for its turn.
        if (next_place := self._dials.next_place(now)) is not None:
            return next_place
        return self._rates.first_due(self._waiting, now, self._dials.places(now))

    # What becomes of a step that broke off.

    def mend(self, known: Container[int], now: float) -> list[Action]:
        """Put right what a call that raised something has noted by half.

        :param known: the dials, handshakes and connections that the caller has, by their numbers.
            What it does not know of comes to its end, so that whoever is desired is dialled anew.
        """
        actions: list[Action] = []
        for pending_dial in self._dials.all():
            target = pending_dial.target
            if pending_dial.connection_id not in known or target.pending_dial is not pending_dial:
                target.attempts += 1
                actions.append(self._drop(pending_dial, "this node failed"))
        for connection_id, member in list(self._up.items()):
            if connection_id not in known or member.connection_id != connection_id:
                self._up.pop(connection_id)
                actions.append(Close(connection_id, RefusalCode.DUPLICATE, "this node failed"))
        self._rates.recount(each.bucket for each in self._dials.all())
        self._dials.recount()
        targets = dict.fromkeys([*self._members.values(), *self._seeds.values()])
        for target in [each for each in self._waiting if each not in targets]:
            self._waiting.drop(target)
        for target in targets:
            if target.pending_dial and target.pending_dial.connection_id not in self._dials:
                target.pending_dial = None
            if isinstance(target, Member) and target.connection_id not in self._up:
                target.connection_id = None
            is_idle = not target.up and target.pending_dial is None
            if is_idle != (target.due is not None) or is_idle != (target in self._waiting):
                self._plan(target, now)
        for member in list(self._members.values()):
            self._forget_guest(member)
        self._waiting.look_anew()
        self.none_before = float("-inf")
        return actions

    # What one may ask.

    def dials(self) -> list[int]:
        """The dials that are on their way."""
        return list(self._dials)

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

    def is_new(self, connection_id: int) -> bool:
        """Whether a dial is of somebody to whom there was no connection before."""
        if (pending_dial := self._dials.get(connection_id)) is None:
            return False
        return not isinstance(pending_dial.target, Member) or pending_dial.target.peer is None

    def is_tied(self, name: str) -> bool:
        """Whether the node of this name needs no further connection: it has one, or is dialled."""
        member = self._members.get(name)
        return (member is not None and member.up) or bool(self._dials.of(name, member))

    # The rest is internal.

    def _plan(self, target: DialTarget, now: float) -> None:
        self.none_before = float("-inf")
        self._waiting.drop(target)
        gone = target.whom is None and self._seeds.get(target.addr) is not target
        if target.up or gone or target.pending_dial is not None:
            return
        # A guest is dialled by nobody.
        waits_for = None if is_guest(self.own) else target.whom
        hold_back = waits_for is not None and self.own.name > waits_for.name
        self._waiting.plan(target, now, hold_back=hold_back)

    def _bar(self, target: DialTarget) -> None:
        target.barred, target.join = True, False
        if target.whom is None:
            self._seeds.pop(target.addr, None)

    def _resolve(self, target: DialTarget, node: NodeId, now: float) -> None:
        """If that was a seed: it has proven to be this node, a desired peer from now on."""
        if target.whom is not None or self._seeds.get(target.addr) is not target:
            return
        member = self._member(node)
        member.is_desired = True
        del self._seeds[target.addr]
        self._waiting.drop(target)
        if not member.up:
            # It does not know of the join yet.
            member.join = True
            member.attempts, member.refusal = target.attempts, target.refusal
            self._plan(member, now)

    def _end(self, pending_dial: PendingDial, *, reached: bool) -> None:
        self.none_before = float("-inf")
        self._dials.remove(pending_dial)
        if pending_dial.target.pending_dial is pending_dial:
            pending_dial.target.pending_dial = None
        self._rates.ended(pending_dial.bucket, reached=reached)

    def _drop(self, pending_dial: PendingDial, text: str, *, reached: bool = False) -> Close:
        self._end(pending_dial, reached=reached)
        return Close(pending_dial.connection_id, RefusalCode.DUPLICATE, text)

    def _down(self, member: Member) -> Down:
        assert member.connection_id is not None and member.peer is not None
        down = Down(member.connection_id, member.peer, member.incarnation)
        self._up.pop(member.connection_id, None)
        member.connection_id = None
        # To the end, for `forget_idle`.
        self._members.move_to_end(member.node.name)
        return down

    def _forget_guest(self, member: Member) -> None:
        """Of a guest that has gone nothing is kept."""
        if member.is_guest and member.is_idle:
            self._waiting.drop(member)
            self._members.pop(member.node.name, None)

    def _member(self, node: NodeId) -> Member:
        member = self._members.get(node.name)
        if member is None:
            Member.forget_idle(self._members, self._remembered_max)
            member = self._members[node.name] = Member(node.addr, node=node)
        return member
