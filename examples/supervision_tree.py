"""A tree of supervisors: who crashes is started anew, and what crashes too often goes one level up.

A till and its printer stand on each other, so both are restarted when one of them crashes; a shop
has several such counters. Nobody in the tree knows how to restart anything but the supervisors.
"""

from __future__ import annotations

import logging
from typing import Any

import rabble
from rabble import (
    Backoff,
    ChildInfo,
    ChildSpec,
    CorrelationId,
    DownReason,
    Envelope,
    Output,
    Pid,
    Process,
    Restart,
    Shutdown,
    StartChild,
    Supervisor,
    WhichChildren,
)


class Worker(Process):
    """Tells when it starts and when it ends, and crashes when it is told to."""

    def __init__(self, news: Pid) -> None:
        self.news = news

    def init(self) -> Output:
        return Envelope(self.news, f"{self.pid.name} starts")

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        raise RuntimeError(f"out of {msg}")

    def terminate(self, reason: DownReason) -> Output:
        return Envelope(self.news, f"{self.pid.name} ends")


def counter(name: str, news: Pid) -> Supervisor:
    """A till and its printer: neither is of use without the other."""
    parts = [ChildSpec(f"{part} {name}", Worker, (news,)) for part in ("till", "printer")]
    return Supervisor(parts, strategy="one_for_all", intensity=1, period_ms=60_000)


def shop(news: Pid) -> Supervisor:
    """Two counters, of which each is restarted alone."""
    counters = [
        ChildSpec(f"counter {name}", counter, (name, news), restart=Restart.TRANSIENT)
        for name in ("A", "B")
    ]
    return Supervisor(counters, intensity=5, period_ms=60_000, backoff=Backoff(10, 1_000))


# Trying it out.


def main() -> None:
    # A crash goes to the log `rabble`, with its traceback. Here the news say enough.
    logging.getLogger("rabble").setLevel(logging.CRITICAL)
    with rabble.rouse() as node, node.mailbox("news") as news:

        def show(count: int) -> None:
            for _ in range(count):
                print(" ", news.receive(timeout=60).msg)

        top = node.spawn(shop(news.pid), "shop")
        print("the shop opens:")
        show(4)
        print("the printer of A crashes, and is restarted with its till:")
        node.send(node.pid("printer A"), "paper")
        show(3)
        print("the till crashes, too, so its supervisor gives up and is restarted itself:")
        node.send(node.pid("till A"), "coins")
        show(3)
        print("one more, while the shop is open:")
        spec = ChildSpec("guard", Worker, (news.pid,), restart=Restart.TEMPORARY)
        node.call(top, StartChild(spec))
        show(1)
        children: tuple[ChildInfo, ...] = node.call(top, WhichChildren())
        print("its children:", ", ".join(f"{each.id} ({each.state})" for each in children))
        print("the shop closes, the last one first:")
        node.send(top, Shutdown("it is late"))
        show(5)


if __name__ == "__main__":
    main()
