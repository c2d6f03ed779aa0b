"""What many tests need: processes that do one thing, and waiting that ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rabble import CorrelationId, Envelope, Output, Pid, Process

#: Seconds after which a test gives up; long, because the machine may stall.
PATIENCE_S = 30.0


class Echo(Process):
    """Sends every message back."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        return None if sender is None else Envelope(sender, msg, correlation_id=correlation_id)


class Relay(Process):
    """Sends every message on to another pid, with the one that sent it as `(sender, msg)`."""

    def __init__(self, to: Pid) -> None:
        self.to = to

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        return Envelope(self.to, (sender, msg), correlation_id=correlation_id)


class Does(Process):
    """Calls a function with itself and every message, and sends what it returns."""

    def __init__(
        self,
        react: Callable[[Process, Any, Pid | None], Output],
        begin: Callable[[Process], Output] = lambda process: None,
    ) -> None:
        self.react = react
        self.begin = begin

    def init(self) -> Output:
        return self.begin(self)

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        return self.react(self, msg, sender)
