"""A chat room over five nodes: all hear the same, in the same order, and who has gone.

The room is a process on one node, the guests are processes on five; each of the other four nodes
runs in a process of its own and lets guests be spawned there.
"""

from __future__ import annotations

import contextlib
from typing import Any

from nodes import NodeProcess, wait_until

import rabble
from rabble import CorrelationId, Down, Envelope, Mesh, Monitor, Node, Output, Pid, Process, Request

NAMES = ("ann", "bob", "cem", "dee", "eve")


@rabble.message(name="chat.Enter")
class Enter:
    """A guest comes in."""

    name: str


@rabble.message(name="chat.Say")
class Say:
    """Something to be said to all who are in the room."""

    text: str


@rabble.message(name="chat.GetLines")
class GetLines(Request[list[str]]):
    """Asks a guest for what it heard."""


class Room(Process):
    """Tells everybody what anybody says."""

    def __init__(self) -> None:
        self.guests: dict[Pid, str] = {}

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Enter(name) if sender is not None:
                self.guests[sender] = name
                return [Envelope(self.executor, Monitor(sender)), *self.tell(f"{name} comes in")]
            case Say(text) if sender is not None and sender in self.guests:
                return self.tell(f"{self.guests[sender]}: {text}")
            case Down(guest, _):
                return self.tell(f"{self.guests.pop(guest)} is gone")
            case _:
                pass
        return None

    def tell(self, line: str) -> list[Envelope]:
        return [Envelope(guest, line) for guest in self.guests]


class Guest(Process):
    """Comes in, and listens. What it is to say it is told from outside."""

    def __init__(self, room: Pid) -> None:
        self.room = room
        self.lines: list[str] = []

    def init(self) -> Output:
        return Envelope(self.room, Enter(self.pid.name))

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case str(line) if sender == self.room:
                self.lines.append(line)
            case Say():
                return Envelope(self.room, msg)
            case GetLines() if sender is not None:
                return Envelope(sender, list(self.lines), correlation_id=correlation_id)
            case _:
                pass
        return None


def start(node: Node) -> None:
    """For `rabble node --app chat:start`: guests may be spawned here."""
    node.export("guest", Guest)


class Evening:
    """What happens, one thing after the other. Prints what ann hears."""

    def __init__(self, node: Node, room: Pid) -> None:
        self.node = node
        self.room = room
        self.guests: dict[str, Pid] = {}
        self.last = ""

    def come(self, name: str, where: NodeProcess | None = None) -> None:
        if where is None:
            self.guests[name] = self.node.spawn(Guest(self.room), name)
        else:
            self.guests[name] = self.node.spawn_on(where.node_id, "guest", name, self.room)
        self.hear()

    def say(self, name: str, text: str) -> None:
        self.node.send(self.guests[name], Say(text))
        self.hear()

    def hear(self) -> None:
        """Wait until all who are there have heard one line more, and print it."""

        def all_heard() -> bool:
            return all(lines and lines[-1] != self.last for lines in self.lines())

        wait_until(all_heard)
        (self.last, *others) = {lines[-1] for lines in self.lines()}
        if others:
            raise SystemExit("they heard different things")
        print(self.last)

    def lines(self) -> list[list[str]]:
        return [self.node.call(guest, GetLines()) for guest in self.guests.values()]


def main() -> None:
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(rabble.rouse("ann@127.0.0.1:0", mesh=Mesh()))
        others: dict[str, NodeProcess] = {}
        for name in NAMES[1:]:
            others[name] = stack.enter_context(NodeProcess(f"{name}@127.0.0.1:0", "chat:start"))
            node.join(others[name].node_id)
        wait_until(lambda: len(node.cluster_status().connections) == len(others))
        print("nodes:", *(member.name for member in node.cluster_status().members))

        evening = Evening(node, node.spawn(Room(), "room"))
        for name in NAMES:
            evening.come(name, others.get(name))
        evening.say("bob", "good evening")
        evening.say("eve", "hello from a node that is about to be killed")
        del evening.guests["eve"]
        others["eve"].kill()
        evening.hear()
        evening.say("cem", "where did eve go?")
        del evening.guests["dee"]
        others["dee"].end()
        evening.hear()
        evening.say("ann", "good night")

        first = evening.lines()[0]
        for lines in evening.lines():
            if lines != first[-len(lines) :]:
                raise SystemExit("they heard different things")
        print(f"{len(evening.guests)} heard the same, in the same order")


if __name__ == "__main__":
    main()
