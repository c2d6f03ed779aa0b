"""A chat for `nc`: each client is a line of people, a process is the room, and nothing is lost.

Run it with an address, as `python line_chat.py 127.0.0.1:7000`, and come in by `nc 127.0.0.1 7000`.
Without one it lets two clients of its own say something, and ends.
"""

import contextlib
import socket
import sys
import threading
from typing import Any

import rabble
from rabble.services.server import (
    Answer,
    ConnectionHandler,
    PlainLines,
    Push,
    RequestId,
    ServerOutput,
    TcpServer,
)


class Room(rabble.Process):
    """Tells everybody what one of them says."""

    def __init__(self) -> None:
        # Of each who is here: the name, by where it is reached.
        self.people: dict[tuple[rabble.Pid, rabble.CorrelationId], str] = {}

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> rabble.Output:
        kind, text = msg
        who = (sender, correlation_id)
        if kind == "in":
            said = f"{text} comes in"
            self.people[who] = text
        elif kind == "out":
            said = f"{self.people.pop(who)} is gone"
        else:
            said = f"{self.people[who]}: {text}"
        return [rabble.Envelope(to, said, None, each) for to, each in self.people if each != who[1]]


class Visitor(ConnectionHandler):
    """One client. Its first line is its name, and each other one is said to the room."""

    def __init__(self, room: rabble.Pid) -> None:
        self.room = room
        self.name = ""

    def init(self) -> ServerOutput:
        return Push("who are you?")

    def handle_message(self, msg: str, request: RequestId | None) -> ServerOutput:
        assert request is not None  # each line is a request
        if not self.name:
            if not msg.strip():
                return Answer(request, "who are you?")
            self.name = msg
            return [rabble.Envelope(self.room, ("in", msg)), Answer(request, f"hello, {msg}")]
        return [rabble.Envelope(self.room, ("say", msg)), Answer(request, "ok")]

    def handle_envelope(self, msg: str, sender: Any, correlation_id: Any) -> ServerOutput:
        return Push(msg)

    def closed(self, reason: str) -> ServerOutput:
        return rabble.Envelope(self.room, ("out", "")) if self.name else None


def talk(address: str) -> None:
    """Two clients, as a test would have them."""
    host, _, port = address.rpartition(":")

    def come_in() -> Any:
        with socket.create_connection((host, int(port))) as sock:
            # The connection is closed with the file.
            return sock.makefile("rw", encoding="utf-8")

    def line(client: Any) -> str:
        return str(client.readline()).rstrip()

    def say(client: Any, text: str) -> str:
        client.write(text + "\n")
        client.flush()
        return line(client)

    ann, bob = come_in(), come_in()
    print("ann is asked:", line(ann))
    print("ann is told:", say(ann, "ann"))
    print("bob is asked:", line(bob))
    print("bob is told:", say(bob, "bob"))
    print("ann hears:", line(ann))
    print("bob says something:", say(bob, "good evening"))
    print("ann hears:", line(ann))
    bob.close()
    print("ann hears:", line(ann))
    ann.close()


def main() -> None:
    bind = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:0"
    with rabble.rouse("chat@127.0.0.1:0") as node:
        room = node.spawn(Room(), "room")
        with TcpServer(node, lambda: Visitor(room), bind, codec=PlainLines) as server:
            if len(sys.argv) == 1:
                return talk(server.address)
            print(f"come in at {server.address}; Ctrl+C ends it", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


if __name__ == "__main__":
    main()
