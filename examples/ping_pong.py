"""Ping-pong: two processes send one ball to and fro, and a script waits for the end."""

from __future__ import annotations

from typing import Any

import rabble
from rabble import CorrelationId, Envelope, Output, Pid, Process

TURNS = 10_000


@rabble.message(name="ping_pong.Ball")
class Ball:
    """On its way until no turns are left."""

    turns_left: int


class Player(Process):
    """Returns the ball with one turn less; with none left it tells the referee."""

    def __init__(self, referee: Pid) -> None:
        self.referee = referee
        self.hits = 0

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Ball(0):
                return Envelope(self.referee, "the ball is down")
            case Ball(turns_left) if sender is not None:
                self.hits += 1
                return Envelope(sender, Ball(turns_left - 1))
            case "hits" if sender is not None:
                return Envelope(sender, self.hits, correlation_id=correlation_id)
            case _:
                pass
        return None


def main() -> None:
    with rabble.rouse() as node, node.mailbox("referee") as referee:
        ping = node.spawn(Player(referee.pid), "ping")
        pong = node.spawn(Player(referee.pid), "pong")
        # The first hit is ours, in the name of pong: ping returns the ball to its sender.
        node.send(ping, Ball(TURNS), sender=pong)
        print(f"{referee.pid.name}: {referee.receive(timeout=60).msg}")
        print(f"ping hit {node.call(ping, 'hits')} times, pong {node.call(pong, 'hits')} times")


if __name__ == "__main__":
    main()
