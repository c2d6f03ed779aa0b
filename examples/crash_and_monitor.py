"""A process crashes, the one that monitors it is told, and starts another in its place.

A crash ends the process that raised and nothing else. Nobody restarts it unasked: here a process
named keeper does, with what every process has, `Monitor` and `Spawn`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import rabble
from rabble import (
    CorrelationId,
    Down,
    Envelope,
    Monitor,
    Output,
    Pid,
    Process,
    ProcessCrashed,
    Spawn,
)


@rabble.message(name="crash_and_monitor.Divide")
class Divide:
    """Asks for a quotient."""

    dividend: float
    divisor: float


class Divider(Process):
    """Answers `Divide`, and crashes on a divisor of 0."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Divide(dividend, divisor) if sender is not None:
                return Envelope(sender, dividend / divisor, correlation_id=correlation_id)
            case _:
                pass
        return None


class Keeper(Process):
    """Keeps a divider running and tells somebody of each that ended."""

    def __init__(self, to_tell: Pid) -> None:
        self.to_tell = to_tell

    def init(self) -> Output:
        return self.start("a divider runs")

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Down(pid, reason):
                return self.start(f"{pid.name} {reason.kind} ({reason.detail}), there is a new one")
            case _:
                pass
        return None

    def start(self, news: str) -> Output:
        divider = Pid("divider", self.node_id)
        # Handled in this order: by the time the news is read the divider runs.
        return [
            Envelope(self.executor, Spawn(Divider(), divider.name)),
            Envelope(self.executor, Monitor(divider)),
            Envelope(self.to_tell, news),
        ]


def main() -> None:
    # A crash goes to the log `rabble`, with its traceback. Here that is shown among the output.
    logging.basicConfig(stream=sys.stdout, format="log: %(message)s")
    with rabble.rouse() as node, node.mailbox("news") as news:
        node.spawn(Keeper(news.pid), "keeper")
        print("news:", news.receive(timeout=60).msg)
        divider = node.pid("divider")
        print("6 / 3 is", node.call(divider, Divide(6, 3)))
        try:
            node.call(divider, Divide(1, 0))
        except ProcessCrashed:
            print("the call of 1 / 0 ended with ProcessCrashed")
        print("news:", news.receive(timeout=60).msg)
        print("9 / 3 is", node.call(divider, Divide(9, 3)))


if __name__ == "__main__":
    main()
