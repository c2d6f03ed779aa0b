"""Groups of processes: `Groups` for threads and asyncio, `Group` for whoever sends to one."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._runtime import LocalRuntime
from rabble.errors import NoProcess, QueueFull, RabbleError
from rabble.messages import (
    GetGroupMembers,
    GroupChanged,
    GroupMembers,
    GroupRefused,
    JoinGroup,
    LeaveGroup,
    SubscribeGroup,
)

__all__ = ["Group", "Groups"]

#: Of how many members one has to change for all to be sorted anew.
MANY = 8


class Group:
    """The members of a group as its holder was told of them, and envelopes to them.

    For a process, which asks for it in `init` with `subscribe` and hands it in `receive` what
    comes: a plain value that does no I/O. For a thread, made of what `node.groups.members` says.

    :param name: of the group.
    :param node: whose members are near; `None`: nobody's.
    :param members: those that are known by now.

    :ivar name: of the group.
    """

    __slots__ = ("_members", "_near", "_node", "_order", "_turns", "name")

    def __init__(self, name: str, node: NodeId | None = None, members: Iterable[Pid] = ()) -> None:
        self.name = GetGroupMembers(name).group
        self._node = node
        self._turns = itertools.count()
        self._order: list[Pid] = []
        #: The same as it is shown; made when it is asked for.
        self._members: tuple[Pid, ...] | None = None
        #: How many of them are near.
        self._near = 0
        self._set(members)

    @property
    def members(self) -> tuple[Pid, ...]:
        """The members, those of `node` first, and of either the lesser pids."""
        if self._members is None:
            self._members = tuple(self._order)
        return self._members

    def subscribe(self, executor: Pid) -> Envelope:
        """What a process sends to be told of the group.

        :param executor: the process's `executor`.
        """
        return Envelope(executor, SubscribeGroup(self.name))

    def takes(self, msg: Any) -> bool:
        """Take a message in, if it tells of this group.

        :param msg: anything that came.
        :returns: whether it was one.
        """
        if type(msg) is GroupChanged and msg.group == self.name:
            self._change(msg)
            return True
        if type(msg) is GroupMembers and msg.group == self.name:
            self._set(msg.members)
            return True
        return False

    def to_all(self, msg: Any, *, correlation_id: CorrelationId | None = None) -> list[Envelope]:
        """An envelope to each member.

        :param msg: the message, which they share and which must not be changed any more.
        :param correlation_id: the request it belongs to.
        :returns: none if there is no member.
        """
        if correlation_id is None:
            return [Envelope(member, msg) for member in self.members]
        return [Envelope(each, msg, correlation_id=correlation_id) for each in self.members]

    def to_one(self, msg: Any, *, correlation_id: CorrelationId | None = None) -> list[Envelope]:
        """An envelope to the member whose turn it is: each has one turn in a round.

        The arguments, and what is returned without members, are those of `to_all`.
        """
        return self._in_turn(len(self.members), msg, correlation_id)

    def to_nearest(
        self, msg: Any, *, correlation_id: CorrelationId | None = None
    ) -> list[Envelope]:
        """As `to_one`, among the members of this node if it has any."""
        members = self.members
        return self._in_turn(self._near or len(members), msg, correlation_id)

    def to_key(
        self, key: str | bytes | int, msg: Any, *, correlation_id: CorrelationId | None = None
    ) -> list[Envelope]:
        """An envelope to the member that a key belongs to, on every node the same one.

        When a member comes or goes only the keys move that are its own then, or were: it is
        rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit
        rates", 1998). It takes time in proportion to the members.

        :param key: of what the message is about.

        The other arguments, and what is returned without members, are those of `to_all`.
        """
        member = self.member_of(key)
        return [] if member is None else [Envelope(member, msg, correlation_id=correlation_id)]

    def member_of(self, key: str | bytes | int) -> Pid | None:
        """The member that a key belongs to; `None` if there is no member.

        :param key: as that of `to_key`.
        :raises TypeError: if it is of another type.
        """
        if type(key) is int:
            data = b"i%d" % key
        elif type(key) is str:
            data = b"s" + key.encode()
        elif type(key) is bytes:
            data = b"b" + key
        else:
            raise TypeError(
                f"the key of a group's member must be a str, bytes or int, not of type "
                f"{type(key).__name__}; take its repr, say"
            )
        # One key for all: hashing it once makes each further hash short, whatever its length.
        seed = hashlib.blake2b(data, digest_size=16).digest()

        def weight(member: Pid) -> bytes:
            # By the node's name, and not its address: so a node that is started again elsewhere has
            # the same keys.
            text = f"{member.group or ''}::{member.name}::{member.node.name}"
            return hashlib.blake2b(text.encode(), digest_size=8, key=seed).digest()

        return max(self.members, key=lambda member: (weight(member), member), default=None)

    def __len__(self) -> int:
        return len(self._order)

    def _place(self, pid: Pid) -> tuple[bool, Pid]:
        return pid.node != self._node, pid

    def _set(self, members: Iterable[Pid]) -> None:
        self._order = sorted(set(members), key=self._place)
        self._members = None
        self._near = sum(pid.node == self._node for pid in self._order)

    def _change(self, msg: GroupChanged) -> None:
        if MANY * (len(msg.joined) + len(msg.left)) > len(self._order):
            self._set({*self._order, *msg.joined}.difference(msg.left))
            return
        # To sort a thousand members takes as long as to send to them.
        order, place = self._order, self._place
        for pid in (*msg.left, *msg.joined):
            at = bisect.bisect_left(order, place(pid), key=place)
            is_there = at < len(order) and order[at] == pid
            if is_there is (pid in msg.joined):
                continue
            if is_there:
                del order[at]
            else:
                order.insert(at, pid)
            if pid.node == self._node:
                self._near += -1 if is_there else 1
        self._members = None

    def _in_turn(
        self, count: int, msg: Any, correlation_id: CorrelationId | None
    ) -> list[Envelope]:
        if not count:
            return []
        member = self.members[next(self._turns) % count]
        return [Envelope(member, msg, correlation_id=correlation_id)]


class Groups:
    """The groups of the mesh, each with many members: `node.groups`.

    The methods block for as long as the executor takes: not for processes, which send `JoinGroup`
    and its like to their executor. Each has a twin for asyncio. All are for any thread but the
    executor's. They raise what `Node.call` does besides what they say.
    """

    def __init__(self, runtime: LocalRuntime) -> None:
        self._runtime = runtime

    def join(self, group: str, pid: Pid, timeout: float = 5.0) -> None:
        """Make a process of this node a member; who is one already stays it.

        It is one until it ends or leaves. Other nodes learn of it within a moment.

        :param group: as a process may be called; it needs no making.
        :param pid: a process, service or mailbox of this node.
        :param timeout: in seconds.
        :raises NoProcess: if nobody has that pid.
        :raises QueueFull: if there is no room for it: the error says which limit.
        :raises ValueError: if the group's name cannot be one, or the pid is of another node.
        """
        self._runtime.check_here(pid, "join", "let it join on its own node")
        check_joined(self._ask(JoinGroup(group, pid), timeout), pid)

    async def join_async(self, group: str, pid: Pid, timeout: float = 5.0) -> None:
        """As `join`, for asyncio."""
        self._runtime.check_here(pid, "join", "let it join on its own node")
        check_joined(await self._ask_async(JoinGroup(group, pid), timeout), pid)

    def leave(self, group: str, pid: Pid, timeout: float = 5.0) -> bool:
        """Make a process of this node no member any more.

        :param group: which one.
        :param pid: the member.
        :param timeout: in seconds.
        :returns: whether it was one.
        :raises ValueError: if the group's name cannot be one, or the pid is of another node.
        """
        self._runtime.check_here(pid, "leave", "let it leave on its own node")
        return bool(self._ask(LeaveGroup(group, pid), timeout).was_member)

    async def leave_async(self, group: str, pid: Pid, timeout: float = 5.0) -> bool:
        """As `leave`, for asyncio."""
        self._runtime.check_here(pid, "leave", "let it leave on its own node")
        return bool((await self._ask_async(LeaveGroup(group, pid), timeout)).was_member)

    def members(self, group: str, timeout: float = 5.0) -> tuple[Pid, ...]:
        """Who is in a group, as far as this node knows.

        :param group: which one.
        :param timeout: in seconds.
        :returns: those of this node first, and of either the lesser pids.
        :raises ValueError: if the group's name cannot be one.
        """
        return members_of(self._ask(GetGroupMembers(group), timeout))

    async def members_async(self, group: str, timeout: float = 5.0) -> tuple[Pid, ...]:
        """As `members`, for asyncio."""
        return members_of(await self._ask_async(GetGroupMembers(group), timeout))

    def subscribe(
        self, group: str, pid: Pid, wanted: bool = True, timeout: float = 5.0
    ) -> tuple[Pid, ...]:
        """Have `GroupChanged` of a group sent to `pid` from now on, or no longer.

        A subscription ends with the process, service or mailbox that has the pid now.

        :param group: which one.
        :param pid: the subscriber.
        :param wanted: False ends the subscription.
        :param timeout: in seconds.
        :returns: the members before the first `GroupChanged`.
        :raises NoProcess: if nobody has that pid on this node.
        :raises ValueError: if the group's name cannot be one, or the pid is of another node.
        """
        self._runtime.check_here(pid, "a subscription", "let it subscribe on its own node")
        return check_joined(self._ask(SubscribeGroup(group, bool(wanted), pid), timeout), pid)

    async def subscribe_async(
        self, group: str, pid: Pid, wanted: bool = True, timeout: float = 5.0
    ) -> tuple[Pid, ...]:
        """As `subscribe`, for asyncio."""
        self._runtime.check_here(pid, "a subscription", "let it subscribe on its own node")
        request = SubscribeGroup(group, bool(wanted), pid)
        return check_joined(await self._ask_async(request, timeout), pid)

    def _ask(self, request: Any, timeout: float) -> Any:
        return self._runtime.call(self._runtime.executor.pid, request, timeout)

    async def _ask_async(self, request: Any, timeout: float) -> Any:
        return await self._runtime.call_async(self._runtime.executor.pid, request, timeout)


def check_joined(answer: Any, pid: Pid) -> tuple[Pid, ...]:
    """Raise why that was refused, if it was; or who is in the group, if the answer says so."""
    if not isinstance(answer, GroupRefused):
        return answer.members if isinstance(answer, GroupMembers) else ()
    if answer.reason == "limit":
        raise QueueFull(f"{pid} cannot be a member of {answer.group!r}: {answer.detail}")
    if answer.reason == "guest":
        raise RabbleError(f"{pid} cannot be a member of {answer.group!r}: {answer.detail}")
    raise NoProcess(f"{pid} does not run: it cannot be a member of {answer.group!r}, or be told")


def members_of(answer: GroupMembers) -> tuple[Pid, ...]:
    return answer.members
