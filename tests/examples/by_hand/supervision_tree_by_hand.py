"""`examples/supervision_tree.py` without `Supervisor`."""

from __future__ import annotations

import logging
from typing import Any

from supervising import AddChild, AskChildren, HandSupervisor, Spec

import rabble
from rabble import CorrelationId, DownReason, Envelope, Output, Pid, Process, Shutdown


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


def counter(name: str, news: Pid) -> HandSupervisor:
    """A till and its printer: neither is of use without the other."""
    parts = [Spec(f"{part} {name}", Worker, (news,)) for part in ("till", "printer")]
    return HandSupervisor(parts, restart_all=True, intensity=1, period_s=60)


def shop(news: Pid) -> HandSupervisor:
    """Two counters, of which each is restarted alone."""
    counters = [Spec(f"counter {name}", counter, (name, news), "transient") for name in ("A", "B")]
    return HandSupervisor(counters, intensity=5, period_s=60, pause_ms=10)


# Trying it out.


def main() -> None:
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
        node.call(top, AddChild(Spec("guard", Worker, (news.pid,), "temporary")))
        show(1)
        children = node.call(top, AskChildren())
        print("its children:", ", ".join(f"{name} ({state})" for name, state in children))
        print("the shop closes, the last one first:")
        node.send(top, Shutdown("it is late"))
        show(5)


if __name__ == "__main__":
    main()
