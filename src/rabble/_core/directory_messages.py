"""What processes ask of the names and groups of the mesh, and are told of them.

Each request goes to the executor, `Envelope(self.executor, Register("leader"))`, and has one
answer, which repeats its correlation id. None of these messages leaves its node.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rabble._core.ids import NodeId, Pid
from rabble._core.texts import bounded_repr

__all__ = [
    "DIRECTORY_NAME",
    "DIRECTORY_REQUESTS",
    "GetGroupMembers",
    "GroupChanged",
    "GroupJoined",
    "GroupLeft",
    "GroupMembers",
    "GroupRefused",
    "JoinGroup",
    "LeaveGroup",
    "NameHolder",
    "NameLost",
    "NameRefused",
    "Register",
    "Registered",
    "SubscribeGroup",
    "Unregister",
    "Unregistered",
    "WhereIs",
    "checked_name",
]

#: The name in the reserved group of the pid that knows the names and groups.
DIRECTORY_NAME = "directory"
#: A node that is nobody's.
NOWHERE = NodeId("nowhere", "localhost:0")


def checked_name(name: object) -> str:
    """What a name or a group may be called: as a process may.

    :raises TypeError: if it is no `str`.
    :raises ValueError: says what is wrong with it.
    """
    return Pid(name, NOWHERE).name  # type: ignore[arg-type]


def checked_own(request: Any, text: str) -> str:
    """The name or group of a request, whose `pid` is looked at, too."""
    pid = request.pid
    if pid is not None and type(pid) is not Pid:
        raise TypeError(
            f"{type(request).__name__}: pid must be a Pid or None, which is the process that asks, "
            f"not {bounded_repr(pid, 200)}"
        )
    return checked_name(text)


# What a process asks.


@dataclasses.dataclass(frozen=True, slots=True)
class Register:
    """Asks for a name that is unique in the mesh: `Registered` or `NameRefused` comes.

    The process has the name until it ends, gives it back, or is told `NameLost`.
    """

    #: As that of a process may be.
    name: str
    #: Who is to have it, of this node; `None` is the process that asks.
    pid: Pid | None = None

    def __post_init__(self) -> None:
        checked_own(self, self.name)


@dataclasses.dataclass(frozen=True, slots=True)
class Unregister:
    """Gives a name back, or what was asked for of it: `Unregistered` comes."""

    #: Which name.
    name: str
    #: Who has it, of this node; `None` is the process that asks.
    pid: Pid | None = None

    def __post_init__(self) -> None:
        checked_own(self, self.name)


@dataclasses.dataclass(frozen=True, slots=True)
class WhereIs:
    """Asks who has a name: `NameHolder` comes."""

    #: Which name.
    name: str

    def __post_init__(self) -> None:
        checked_name(self.name)


@dataclasses.dataclass(frozen=True, slots=True)
class JoinGroup:
    """Asks to be a member of a group, which needs no making: `GroupJoined` or `GroupRefused` comes.

    Who is a member already stays one. It is one until it ends, or leaves.
    """

    #: As a process may be called.
    group: str
    #: Who is to be a member, of this node; `None` is the process that asks.
    pid: Pid | None = None

    def __post_init__(self) -> None:
        checked_own(self, self.group)


@dataclasses.dataclass(frozen=True, slots=True)
class LeaveGroup:
    """Asks to be no member of a group any more: `GroupLeft` comes."""

    #: Which group.
    group: str
    #: Who is no member any more, of this node; `None` is the process that asks.
    pid: Pid | None = None

    def __post_init__(self) -> None:
        checked_own(self, self.group)


@dataclasses.dataclass(frozen=True, slots=True)
class GetGroupMembers:
    """Asks who is a member of a group: `GroupMembers` comes."""

    #: Which group.
    group: str

    def __post_init__(self) -> None:
        checked_name(self.group)


@dataclasses.dataclass(frozen=True, slots=True)
class SubscribeGroup:
    """Asks to be told of a group: `GroupMembers` comes, and `GroupChanged` from then on."""

    #: Which group.
    group: str
    #: False asks for no more; `GroupMembers` comes all the same, as the last of it.
    wanted: bool = True
    #: Who is to be told, of this node; `None` is the process that asks.
    pid: Pid | None = None

    def __post_init__(self) -> None:
        checked_own(self, self.group)


#: The classes of all requests.
DIRECTORY_REQUESTS: tuple[type, ...] = (
    GetGroupMembers,
    JoinGroup,
    LeaveGroup,
    Register,
    SubscribeGroup,
    Unregister,
    WhereIs,
)

# What a process is told.


@dataclasses.dataclass(frozen=True, slots=True)
class Registered:
    """The answer to a `Register`: every node that is connected knows that it has the name."""

    #: Which name.
    name: str
    #: Who has it.
    pid: Pid


@dataclasses.dataclass(frozen=True, slots=True)
class NameRefused:
    """The answer to a `Register` that could not be done."""

    #: Which name.
    name: str
    #: Why: `taken` (another process has it, or asked for it before), `no_process` (who was to have
    #: it does not run, or ended meanwhile), `given_back` (meanwhile), `guest` (this node is one),
    #: or `limit`, with what bound was reached.
    reason: str
    #: Who has it, or asked before, if it is taken.
    holder: Pid | None = None
    #: More about it, as text for people.
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class NameLost:
    """A name that this process had is another's: two parts of the mesh had one each and met again.

    Of both the one that has had it for longer keeps it.
    """

    #: Which name.
    name: str
    #: Who has it.
    holder: Pid


@dataclasses.dataclass(frozen=True, slots=True)
class Unregistered:
    """The answer to an `Unregister`."""

    #: Which name.
    name: str
    #: Whether that process had it.
    had_it: bool


@dataclasses.dataclass(frozen=True, slots=True)
class NameHolder:
    """The answer to a `WhereIs`."""

    #: Which name.
    name: str
    #: Who has it; `None`: nobody, as far as this node knows.
    pid: Pid | None


@dataclasses.dataclass(frozen=True, slots=True)
class GroupJoined:
    """The answer to a `JoinGroup`. Other nodes learn of it within a moment."""

    #: Which group.
    group: str
    #: Who is a member.
    pid: Pid


@dataclasses.dataclass(frozen=True, slots=True)
class GroupLeft:
    """The answer to a `LeaveGroup`."""

    #: Which group.
    group: str
    #: Whether that process was a member.
    was_member: bool


@dataclasses.dataclass(frozen=True, slots=True)
class GroupRefused:
    """The answer to a `JoinGroup` or `SubscribeGroup` that could not be done."""

    #: Which group.
    group: str
    #: Why: `no_process` (who was meant does not run), `guest` (this node is one), or `limit`.
    reason: str
    #: More about it, as text for people.
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class GroupMembers:
    """Who is a member of a group, as far as this node knows."""

    #: Which group.
    group: str
    #: Those of this node first, and of either the lesser pids.
    members: tuple[Pid, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class GroupChanged:
    """Who is a member of a group has changed, for those that subscribed to it."""

    #: Which group.
    group: str
    #: Who came.
    joined: tuple[Pid, ...]
    #: Who went: it left, it ended, or its node is not connected any more.
    left: tuple[Pid, ...]
