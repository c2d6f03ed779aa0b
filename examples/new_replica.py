"""A replica that comes while others write: it is sent all there is, then follows without a hole.

One process of the mesh leads: it has the name `store`, takes what is written, numbers it, and sends
it to those that follow. A follower has all changes up to a number, or waits for a snapshot.
"""

from __future__ import annotations

import asyncio
import dataclasses

from nodes import NodeProcess

import rabble
from rabble import (
    CorrelationId,
    Down,
    Envelope,
    Mesh,
    Monitor,
    NameHolder,
    Node,
    Output,
    Pid,
    Process,
    Request,
    StartTimer,
    WhereIs,
)

WRITES = 500
#: Until a follower that found no leader looks again.
LOOK_MS = 50


@rabble.message(name="new_replica.Put")
class Put(Request[int]):
    """Writes; the answer is the number of the change."""

    key: str
    value: int


@rabble.message(name="new_replica.Follow")
class Follow:
    """Asks the leader for all there is, and for all that changes from then on."""


@rabble.message(name="new_replica.Snapshot")
class Snapshot:
    """All there was after this change."""

    number: int
    values: dict[str, int]


@rabble.message(name="new_replica.Change")
class Change:
    """One change."""

    number: int
    key: str
    value: int


@rabble.message(name="new_replica.State")
class State:
    """What a replica has. `snapshots`: the numbers of those with which it began, or began anew."""

    number: int
    values: dict[str, int]
    snapshots: list[int]


@rabble.message(name="new_replica.GetState")
class GetState(Request[State]):
    """Asks a replica for what it has."""


@dataclasses.dataclass(frozen=True)
class Look:
    """Time to look for the leader."""


class Leader(Process[Put | Follow | GetState | Down]):
    """Takes what is written, and sends it to all that follow."""

    def __init__(self) -> None:
        self.number = 0
        self.values: dict[str, int] = {}
        self.followers: set[Pid] = set()

    def receive(
        self,
        msg: Put | Follow | GetState | Down,
        sender: Pid | None,
        correlation_id: CorrelationId | None,
    ) -> Output:
        match msg:
            case Put(key, value):
                self.number += 1
                self.values[key] = value
                change = Change(self.number, key, value)
                return [
                    *(Envelope(follower, change) for follower in self.followers),
                    rabble.reply(self.number, sender, correlation_id),
                ]
            case Follow() if sender is not None:
                # From this call on it is sent each change; and the snapshot goes first.
                self.followers.add(sender)
                return [
                    Envelope(self.executor, Monitor(sender)),
                    Envelope(sender, Snapshot(self.number, dict(self.values))),
                ]
            case Down(follower):
                self.followers.discard(follower)
            case GetState():
                state = State(self.number, dict(self.values), [])
                return rabble.reply(state, sender, correlation_id)
            case _:
                pass
        return None


class Follower(Process[Snapshot | Change | GetState | Look | NameHolder | Down]):
    """Has what the leader has, a moment later."""

    def init(self) -> Output:
        self.leader: Pid | None = None
        #: Of the last change that is in `values`; `None`: a snapshot is on its way.
        self.number: int | None = None
        self.values: dict[str, int] = {}
        self.snapshots: list[int] = []
        return Envelope(self.executor, WhereIs("store"))

    def receive(
        self,
        msg: Snapshot | Change | GetState | Look | NameHolder | Down,
        sender: Pid | None,
        correlation_id: CorrelationId | None,
    ) -> Output:
        match msg:
            case Change(number, key, value) if sender == self.leader:
                if self.number is None:
                    return None  # The snapshot has it.
                if number != self.number + 1:
                    return self.follow()
                self.number = number
                self.values[key] = value
            case Snapshot(number, values) if sender == self.leader:
                self.number = number
                self.values = dict(values)
                self.snapshots.append(number)
            case Look():
                return Envelope(self.executor, WhereIs("store"))
            case NameHolder(_, None):
                return Envelope(self.executor, StartTimer("look", LOOK_MS, Look()))
            case NameHolder(_, leader):
                self.leader = leader
                return self.follow()
            case Down(leader) if leader == self.leader:
                # It ended, or cannot be reached: changes may be missed from here on.
                self.leader = None
                return Envelope(self.executor, StartTimer("look", LOOK_MS, Look()))
            case GetState():
                state = State(self.number or 0, dict(self.values), list(self.snapshots))
                return rabble.reply(state, sender, correlation_id)
            case _:
                pass
        return None

    def follow(self) -> list[Envelope]:
        assert self.leader is not None
        self.number = None
        return [
            Envelope(self.executor, Monitor(self.leader)),
            Envelope(self.leader, Follow()),
        ]


def start(node: Node) -> None:
    """For `rabble node --app new_replica:start`."""
    node.spawn(Follower(), "replica")


async def main() -> None:
    async with rabble.rouse("a@127.0.0.1:0", mesh=Mesh()) as node:
        leader = node.spawn(Leader(), "replica")
        await node.names.register_async("store", leader)
        written = 0

        async def write(count: int) -> None:
            nonlocal written
            for _ in range(count):
                written += 1
                put = Put(f"key {written % 97}", written)
                if await node.call_async(leader, put, 60) != written:
                    raise SystemExit("a change has another number")

        async def agree(*replicas: Pid) -> list[State]:
            """Wait until they have all that was written, and compare what they have."""
            wanted = await node.call_async(leader, GetState(), 60)
            states: list[State] = []
            while not states or any(state.number < wanted.number for state in states):
                states = [await node.call_async(pid, GetState(), 60) for pid in replicas]
            if any(state.values != wanted.values for state in states):
                raise SystemExit("the replicas differ")
            return states

        async def new_replica(node_id: str) -> NodeProcess:
            """Start a node, and go on writing until its replica has a snapshot."""
            process = await asyncio.to_thread(NodeProcess, node_id, "new_replica:start")
            node.join(process.node_id)
            return process

        async def write_until_it_follows(replica: Pid) -> None:
            while True:
                await write(1)
                try:
                    state = await node.call_async(replica, GetState(), 60)
                except rabble.NoProcess:
                    continue  # Not connected yet.
                if state.snapshots:
                    return

        await write(WRITES)
        print(f"{WRITES} changes, and a replica comes")
        with await new_replica("b@127.0.0.1:0") as b:
            replica = Pid("replica", b.node_id)
            await write_until_it_follows(replica)
            await write(WRITES)
            (state,) = await agree(replica)
            (began,) = state.snapshots
            if WRITES < began < written:
                print("it began with a snapshot, and has followed since: both have the same")

            b.kill()
            await write(WRITES)
            print(f"it is killed, and comes back after {WRITES} more changes")
            with await new_replica(str(b.node_id)):
                await write_until_it_follows(replica)
                await write(WRITES)
                (state,) = await agree(replica)
                (again,) = state.snapshots
                if again > began + WRITES:
                    print("it began with another snapshot: both have the same")


if __name__ == "__main__":
    asyncio.run(main())
