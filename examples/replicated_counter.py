"""A replicated counter: a primary answers once both of its backups have the same total.

The three replicas run on one node. Each increment goes to the primary, which forwards it and keeps
the caller waiting until every backup has acknowledged. Nothing here replaces a replica that ends:
a caller then runs into its timeout.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import rabble
from rabble import CorrelationId, Envelope, Node, Output, Pid, Process, Request

INCREMENTS = 100


@rabble.message(name="replicated_counter.Total")
class Total:
    """What a replica has counted."""

    value: int


@rabble.message(name="replicated_counter.Increment")
class Increment(Request[Total]):
    """Asks a replica to add; it answers with `Total`."""

    by: int


@rabble.message(name="replicated_counter.GetTotal")
class GetTotal(Request[Total]):
    """Asks a replica for its `Total`."""


@dataclasses.dataclass
class Pending:
    """An increment that some backups have not acknowledged."""

    caller: Pid | None
    correlation_id: CorrelationId | None
    total: int
    missing: set[Pid]


class Replica(Process):
    """A counter; with backups it is the primary."""

    def __init__(self, backups: tuple[Pid, ...] = ()) -> None:
        self.backups = backups
        self.total = 0
        self.pending: dict[CorrelationId, Pending] = {}

    def init(self) -> None:
        self.request = CorrelationId(self.pid)

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Increment(by):
                self.total += by
                if self.backups:
                    return self.forward(msg, sender, correlation_id)
                return reply(sender, Total(self.total), correlation_id)
            case GetTotal():
                return reply(sender, Total(self.total), correlation_id)
            case Total() if sender is not None and correlation_id is not None:
                return self.acknowledge(sender, correlation_id)
            case _:
                pass
        return None

    def forward(
        self, msg: Increment, caller: Pid | None, correlation_id: CorrelationId | None
    ) -> Output:
        self.request = self.request.next_request()
        self.pending[self.request] = Pending(caller, correlation_id, self.total, set(self.backups))
        return [Envelope(backup, msg, correlation_id=self.request) for backup in self.backups]

    def acknowledge(self, backup: Pid, request: CorrelationId) -> Output:
        pending = self.pending[request]
        pending.missing.discard(backup)
        if pending.missing:
            return None
        del self.pending[request]
        return reply(pending.caller, Total(pending.total), pending.correlation_id)


def reply(to: Pid | None, msg: Total, correlation_id: CorrelationId | None) -> Envelope | None:
    """The answer to a request; there is none for a sender that gave no name."""
    return None if to is None else Envelope(to, msg, correlation_id=correlation_id)


def start(node: Node) -> list[Pid]:
    """Spawn three replicas. Returns their pids, the primary's first."""
    backups = (node.spawn(Replica(), "backup-1"), node.spawn(Replica(), "backup-2"))
    return [node.spawn(Replica(backups), "primary"), *backups]


def main() -> None:
    with rabble.rouse() as node:
        replicas = start(node)
        answers = [node.call(replicas[0], Increment(n)) for n in range(1, INCREMENTS + 1)]
        print(f"after {INCREMENTS} increments the primary answered {answers[-1].value}")
        totals = [node.call(replica, GetTotal()).value for replica in replicas]
        for replica, total in zip(replicas, totals, strict=True):
            print(f"{replica.name} has {total}")
        if len(set(totals)) != 1:
            raise SystemExit("the replicas differ")
        print("all three are equal")


if __name__ == "__main__":
    main()
