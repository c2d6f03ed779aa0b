"""A supervisor by hand: as much of one as the examples need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rabble import (
    CorrelationId,
    Down,
    DownReason,
    Envelope,
    Monitor,
    Output,
    Pid,
    Process,
    Shutdown,
    Spawn,
    SpawnFailed,
    StartTimer,
    Stop,
    Timeout,
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A child: its name, what makes it, and whether it is `permanent`, `transient`, `temporary`."""

    name: str
    make: Callable[..., Process]
    arguments: tuple[Any, ...] = ()
    restart: str = "permanent"


@dataclasses.dataclass(frozen=True)
class AddChild:
    spec: Spec


@dataclasses.dataclass(frozen=True)
class AskChildren:
    """Asks for the names and states of the children."""


class HandSupervisor(Process):
    """Starts its children in order, starts them anew when they end, and ends them in reverse."""

    def __init__(
        self,
        specs: Iterable[Spec],
        restart_all: bool = False,
        intensity: int = 1,
        period_s: float = 5.0,
        pause_ms: float = 0.0,
    ) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.restart_all = restart_all
        self.intensity = intensity
        self.period_s = period_s
        self.pause_ms = pause_ms
        self.running: list[Pid] = []
        self.supervisors: set[Pid] = set()
        #: Those that were told to end, and those to be started when they have.
        self.ending: list[Pid] = []
        self.to_start: list[str] = []
        self.restarts: list[float] = []
        self.reason: DownReason | None = None

    def init(self) -> Output:
        self.timer = CorrelationId(self.pid, request=1)
        return [Envelope(self.executor, Monitor(self.executor)), *self.start_all(list(self.specs))]

    def start_all(self, names: list[str]) -> list[Envelope]:
        return [envelope for name in names for envelope in self.start(name)]

    def start(self, name: str) -> list[Envelope]:
        spec = self.specs[name]
        pid = Pid(name, self.node_id)
        self.running.append(pid)
        order = list(self.specs)
        self.running.sort(key=lambda running: order.index(running.name))
        process = spec.make(*spec.arguments)
        if isinstance(process, HandSupervisor):
            self.supervisors.add(pid)
        return [
            Envelope(self.executor, Spawn(process, name)),
            Envelope(self.executor, Monitor(pid)),
        ]

    def receive(
        self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> Iterator[Envelope]:
        match msg:
            case Down(pid, reason) if pid in self.ending:
                self.ending.remove(pid)
                self.running.remove(pid)
                yield from self.end_next()
            case Down(pid, reason) if pid in self.running:
                self.running.remove(pid)
                yield from self.ended(pid.name, reason)
            case SpawnFailed(_, reason):
                yield from self.end(DownReason("crashed", reason))
            case Timeout():
                yield from self.end_next()
            case Shutdown(reason):
                yield from self.end(DownReason("shutdown", reason))
            case AddChild(spec):
                self.specs[spec.name] = spec
                yield from self.start(spec.name)
                if sender is not None:
                    yield Envelope(sender, "added", correlation_id=correlation_id)
            case AskChildren() if sender is not None:
                names = {pid.name for pid in self.running}
                states = [(name, "running" if name in names else "stopped") for name in self.specs]
                yield Envelope(sender, states, correlation_id=correlation_id)
            case _:
                pass

    def ended(self, name: str, reason: DownReason) -> list[Envelope]:
        """A child has ended by itself."""
        restart = self.specs[name].restart
        if self.reason is not None:
            return []
        if restart == "temporary":
            del self.specs[name]
        if restart == "temporary" or (restart == "transient" and reason.kind != "crashed"):
            return []
        since = self.now - self.period_s
        self.restarts = [*(at for at in self.restarts if at > since), self.now]
        if len(self.restarts) > self.intensity:
            return self.end(DownReason("crashed", f"{name} ended too often"))
        self.to_start.append(name)
        if self.restart_all:
            self.ending = list(self.running)
            self.to_start = list(self.specs)
            return self.end_next()
        if self.pause_ms:
            delay_ms = self.random.uniform(0, self.pause_ms)
            return [Envelope(self.executor, StartTimer(self.timer, delay_ms))]
        return self.end_next()

    def end(self, reason: DownReason) -> list[Envelope]:
        """End all children, the last one first, and then itself."""
        if self.reason is not None:
            return []
        self.reason = reason
        self.ending = list(self.running)
        self.to_start = []
        return self.end_next()

    def end_next(self) -> list[Envelope]:
        """End the last one of those that are to end; if there is none go on."""
        if self.ending:
            last = self.ending[-1]
            if last in self.supervisors:
                return [Envelope(last, Shutdown("its supervisor ends"))]
            return [Envelope(self.executor, Stop(last))]
        if self.reason is not None:
            return [Envelope(self.executor, Stop(self.pid, self.reason))]
        names, self.to_start = self.to_start, []
        return self.start_all(names)

    def terminate(self, reason: DownReason) -> Output:
        return [Envelope(self.executor, Stop(pid)) for pid in reversed(self.running)]
