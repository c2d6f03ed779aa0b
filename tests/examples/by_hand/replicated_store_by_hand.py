"""`examples/replicated_store.py` without `Ask` and `Group`."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import replicated_store
from asking import Answered, Requests, answer
from membership import Directory, Join, Members, Watch, directory_of, members_of
from replicated_store import MAJORITY, NO_MAJORITY, REPLICAS, Get, Put, Read, Version, Write

from rabble import CorrelationId, Envelope, Node, Output, Pid, Process


@dataclasses.dataclass
class Round:
    """What a replica has asked all others for a client."""

    wanted: Get | Put
    client: Pid | None
    request: CorrelationId | None
    answers: list[Version]
    is_last: bool = False
    failed: int = 0


class Replica(Process):
    """Has a version of each key, and asks all replicas for its clients."""

    def __init__(self) -> None:
        self.replicas: list[Pid] = []
        self.versions: dict[str, Version] = collections.defaultdict(lambda: (0, "", None))
        self.number = 0

    def init(self) -> Output:
        self.requests = Requests(self)
        directory = directory_of(self.node_id)
        return [Envelope(directory, Join("replicas")), Envelope(directory, Watch("replicas"))]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        out: list[Envelope] = []
        for ended in self.requests.ended(msg, correlation_id):
            if isinstance(ended, Answered):
                out += self.answered(ended.tag, ended.value)
            else:
                out += self.failed(ended.tag)
        out += self.requests.tidy(correlation_id)
        match msg:
            case Get(key) | Put(key):
                out += self.ask_all(Read(key), Round(msg, sender, correlation_id, []))
            case Read(key):
                out += answer(self.versions[key], sender, correlation_id)
            case Write(key, version):
                self.versions[key] = max(self.versions[key], version)
                out += answer(version, sender, correlation_id)
            case "how many are you?":
                out += answer(len(self.replicas), sender, correlation_id)
            case Members("replicas", members):
                self.replicas = members
            case _:
                pass
        return out

    def answered(self, asked: Round, version: Version) -> list[Envelope]:
        asked.answers.append(version)
        if len(asked.answers) == MAJORITY:
            return self.go_on(asked, max(asked.answers))
        return []

    def failed(self, asked: Round) -> list[Envelope]:
        asked.failed += 1
        if asked.failed == REPLICAS - MAJORITY + 1:
            return answer(NO_MAJORITY, asked.client, asked.request)
        return []

    def ask_all(self, msg: Read | Write, asked: Round) -> list[Envelope]:
        asked.failed = REPLICAS - len(self.replicas)
        if len(self.replicas) < MAJORITY:
            return answer(NO_MAJORITY, asked.client, asked.request)
        return [
            envelope
            for replica in self.replicas
            for envelope in self.requests.ask(replica, msg, 5_000, asked)
        ]

    def go_on(self, asked: Round, version: Version) -> list[Envelope]:
        """A majority has answered, and this is the latest version that any of them has."""
        if asked.is_last:
            return answer(version[2], asked.client, asked.request)
        if isinstance(asked.wanted, Put):
            self.number = max(self.number, version[0]) + 1
            version = self.number, self.node_id.name, asked.wanted.value
        last = Round(asked.wanted, asked.client, asked.request, [], is_last=True)
        return self.ask_all(Write(asked.wanted.key, version), last)


def start(node: Node) -> None:
    """For `rabble node --app replicated_store_by_hand:start`."""
    node.spawn(Directory(), "directory")
    node.spawn(Replica(), "replica")


# Trying it out.


if __name__ == "__main__":
    replicated_store.run(
        start, "replicated_store_by_hand:start", lambda node: members_of(node, "replicas")
    )
