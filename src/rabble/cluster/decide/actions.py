"""What `ConnectionManager` has its caller do, and the status that it gives of a peer."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rabble._core.ids import NodeId
from rabble.addresses import Address
from rabble.cluster.decide.refusal import RefusalCode

__all__ = [
    "Action",
    "Close",
    "ConnectionStatus",
    "Dial",
    "Down",
    "Held",
    "RaiseIncarnation",
    "Removed",
    "SelfAddress",
    "Up",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Dial:
    """Connect to `addr` and begin a handshake as the initiator.

    :param connection_id: of this dial, and of the connection that comes of it.
    :param node: who is expected there; `None` for a seed.
    :param join: the handshake says that this node was told to join.
    :param resolved: what `addr` stands for; `None` if it is to be looked up.
    :param is_hearsay: only others say that a node is there.
    """

    connection_id: int
    addr: str
    node: NodeId | None
    join: bool
    resolved: Address | None = None
    is_hearsay: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Close:
    """End this dial or connection; `ConnectionManager` has forgotten it.

    :param code: for the BYE of a connection; a dial is dropped without a word.
    """

    connection_id: int
    code: RefusalCode
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Up:
    """From now on this is the connection to that peer."""

    connection_id: int
    peer: NodeId
    incarnation: int


@dataclasses.dataclass(frozen=True, slots=True)
class Down:
    """There is no connection to that peer any more; the last action about this connection."""

    connection_id: int
    peer: NodeId
    incarnation: int


@dataclasses.dataclass(frozen=True, slots=True)
class RaiseIncarnation:
    """A peer knows a later start of this node: take an incarnation of at least that."""

    at_least: int


@dataclasses.dataclass(frozen=True, slots=True)
class SelfAddress:
    """The address that was dialled is this node's own; it is not dialled again."""

    addr: str
    node: NodeId | None

    @property
    def text(self) -> str:
        """For the log."""
        who = "itself" if self.node is None else f"itself, as {self.node}"
        return f"at {self.addr} this node finds {who}; not dialled again"


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """Connections to that peer come up and fall silent: there is to be none for a while."""

    peer: NodeId
    for_s: float

    @property
    def text(self) -> str:
        """For the log."""
        return (
            f"handshakes and heartbeats of {self.peer} pass, and what is larger does not: look at "
            f"the MTU on the way. It is held down for {self.for_s:.0f} s"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Removed:
    """A peer says that this node was removed from the cluster; it is not dialled again."""

    addr: str
    node: NodeId | None


Action = Dial | Close | Up | Down | RaiseIncarnation | SelfAddress | Held | Removed


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """How it stands with one peer or seed.

    :param state: `unwanted` also if it is not to be dialled because it is this node, or because
        it removed this node.
    :param attempts: failed dials since the last connection that lasted.
    :param next_dial_s: seconds until the next dial, if one waits.
    :param refusal: why the last dial failed; `None` if the network, or nothing, was why.
    """

    state: Literal["up", "dialling", "waiting", "unwanted"]
    attempts: int
    next_dial_s: float | None
    refusal: RefusalCode | None
