"""A request with a timeout by hand: what `Ask`, `Reply` and `Failed` stand for."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from rabble import (
    CancelTimer,
    CorrelationId,
    Demonitor,
    Down,
    Envelope,
    Monitor,
    Pid,
    Process,
    StartTimer,
    Timeout,
)


@dataclasses.dataclass
class Answered:
    tag: Any
    value: Any


@dataclasses.dataclass
class NotAnswered:
    tag: Any
    #: `timeout`, or how who was asked ended.
    kind: str


class Requests:
    """The requests of a process that are under way. Each ends once."""

    def __init__(self, process: Process) -> None:
        self.executor = process.executor
        self.last = CorrelationId(process.pid)
        self.under_way: dict[CorrelationId, tuple[Pid, Any, Any]] = {}
        self.asked: dict[Pid, set[CorrelationId]] = collections.defaultdict(set)

    def ask(self, to: Pid, msg: Any, timeout_ms: float, tag: Any) -> list[Envelope]:
        self.last = self.last.next_request()
        self.under_way[self.last] = to, msg, tag
        self.asked[to].add(self.last)
        return [
            Envelope(self.executor, Monitor(to)),
            Envelope(self.executor, StartTimer(self.last, timeout_ms)),
            Envelope(to, msg, correlation_id=self.last),
        ]

    def ended(self, msg: Any, correlation_id: CorrelationId | None) -> list[Any]:
        """What a message means for them: each that it ends, as `Answered` or `NotAnswered`."""
        if isinstance(msg, Down):
            requests = self.asked.pop(msg.pid, set())
            return [NotAnswered(self.under_way.pop(each)[2], msg.reason.kind) for each in requests]
        if correlation_id not in self.under_way:
            return []
        to, asked, tag = self.under_way[correlation_id]
        if msg is asked:
            # It asks itself, and this is the request.
            return []
        del self.under_way[correlation_id]
        self.asked[to].discard(correlation_id)
        if isinstance(msg, Timeout):
            return [NotAnswered(tag, "timeout")]
        return [Answered(tag, msg)]

    def tidy(self, correlation_id: CorrelationId | None) -> list[Envelope]:
        """Behind a message: what was asked of the executor for it is not needed any more."""
        out = []
        if correlation_id is not None and correlation_id.pid == self.last.pid:
            out.append(Envelope(self.executor, CancelTimer(correlation_id)))
        for pid in [pid for pid, requests in self.asked.items() if not requests]:
            del self.asked[pid]
            out.append(Envelope(self.executor, Demonitor(pid)))
        return out


def answer(value: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> list[Envelope]:
    return [] if sender is None else [Envelope(sender, value, correlation_id=correlation_id)]
