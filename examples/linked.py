"""Two processes that are linked end together, and one that traps exits is told.

An order is taken by a desk and its clerk: without one of them the other is of no use. The desk
spawns the clerk and is linked with it from its first moment on. The office has a link with the
desk, and traps exits: it is told why the desk ended, and opens another.
"""

from __future__ import annotations

import logging
from typing import Any

import rabble
from rabble import CorrelationId, DownReason, Envelope, Exit, Output, Pid, Process, Spawn


class Clerk(Process):
    """Writes orders down, as long as they can be read."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if not msg.isdecimal():
            raise ValueError(f"no number: {msg}")
        return rabble.reply(f"{msg} pieces are ordered", sender, correlation_id)


class Desk(Process):
    """Passes orders on to its clerk, and says why it closes."""

    def __init__(self, number: int, news: Pid) -> None:
        self.number = number
        self.news = news

    def init(self) -> Output:
        self.clerk = Pid(f"clerk {self.number}", self.node_id)
        return Envelope(self.executor, Spawn(Clerk(), self.clerk.name, link=True))

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        return Envelope(self.clerk, msg, sender, correlation_id)

    def terminate(self, reason: DownReason) -> Output:
        return Envelope(self.news, f"desk {self.number} closes: {reason.detail}")


class Office(Process):
    """Opens a desk, and another one when that has closed."""

    traps_exits = True

    def __init__(self, news: Pid) -> None:
        self.news = news
        self.desks = 0

    def init(self) -> Output:
        return self.open()

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        return self.open() if isinstance(msg, Exit) else None

    def open(self) -> Output:
        self.desks += 1
        return [
            Envelope(self.executor, Spawn(Desk(self.desks, self.news), "desk", link=True)),
            Envelope(self.news, f"desk {self.desks} is open"),
        ]


def main() -> None:
    # The traceback of the crash, which is part of the show.
    logging.getLogger("rabble").setLevel(logging.CRITICAL)
    with rabble.rouse() as node, node.mailbox("news") as news:
        node.spawn(Office(news.pid), "office")
        print(news.receive(timeout=60).msg)
        print(node.call(node.pid("desk"), "12"))
        try:
            node.call(node.pid("desk"), "a dozen")
        except rabble.ProcessCrashed as error:
            print("the clerk crashed:", error.detail)
        for _ in range(2):
            print(news.receive(timeout=60).msg)
        print(node.call(node.pid("desk"), "7"))


if __name__ == "__main__":
    main()
