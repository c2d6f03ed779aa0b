"""Children that note what becomes of them, and whoever asks a supervisor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rabble import (
    Ask,
    ChildError,
    ChildSpec,
    CorrelationId,
    Down,
    DownReason,
    Envelope,
    Failed,
    Monitor,
    Output,
    Pid,
    Process,
    Reply,
    Shutdown,
    Stop,
    Supervisor,
)
from rabble._core.executor import Executor
from tests.support import settle


class Notes:
    """What happened to the children, in order: `+name` for each start, `-name` for each end."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        #: Children whose `init` raises.
        self.unable: set[str] = set()

    def take(self) -> str:
        noted, self.noted = " ".join(self.noted), []
        return noted

    def spec(self, id: str, **options: Any) -> ChildSpec:
        return ChildSpec(id, Child, (self,), **options)

    def specs(self, ids: str, **options: Any) -> list[ChildSpec]:
        return [self.spec(id, **options) for id in ids.split()]


class Child(Process):
    """Does what it is told: `crash`, `stop` or `shutdown`."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes

    def init(self) -> Output:
        if self.pid.name in self.notes.unable:
            raise RuntimeError(f"{self.pid.name} is not able to")
        self.notes.noted.append(f"+{self.pid.name}")
        return None

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if msg == "crash":
            self.notes.noted.append(f"!{self.pid.name}")
            raise RuntimeError("as told")
        return Envelope(self.executor, Stop(self.pid, DownReason(msg)))

    def terminate(self, reason: DownReason) -> Output:
        self.notes.noted.append(f"-{self.pid.name}")
        return None


class Deaf(Supervisor):
    """Does not end when it is told to."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if isinstance(msg, Shutdown):
            return None
        return super().receive(msg, sender, correlation_id)


class Asker(Process):
    """Asks whom it is told, monitors whom it is told, and keeps what comes of it."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.downs: list[Down] = []

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if isinstance(msg, Reply):
            self.answers.append(msg.value)
        elif isinstance(msg, Failed):
            self.answers.append(msg.reason)
        elif isinstance(msg, Down):
            self.downs.append(msg)
        elif isinstance(msg, Pid):
            return Envelope(self.executor, Monitor(msg))
        else:
            to, request = msg
            return Envelope(self.executor, Ask(to, request, 60_000, 0))
        return None


class Tree:
    """A supervisor on an executor, and what it is told and tells."""

    def __init__(self, executor: Executor, supervisor: Supervisor, name: str = "top") -> None:
        self.executor = executor
        self.asker = Asker()
        self.asker_pid = executor.spawn(self.asker, "asker")
        self.supervisor = supervisor
        self.pid = executor.spawn(supervisor, name)
        executor.send(self.asker_pid, self.pid)
        settle(executor)

    def at(self, name: str) -> Pid:
        return self.at_of(self.pid, name)

    @staticmethod
    def at_of(pid: Pid, name: str) -> Pid:
        return Pid(name, pid.node)

    def tell(self, name: str, msg: Any) -> None:
        self.executor.send(self.at(name), msg)
        settle(self.executor)

    def ask(self, request: Any, of: str = "top") -> Any:
        self.executor.send(self.asker_pid, (self.at(of), request))
        settle(self.executor)
        (answer,), self.asker.answers = self.asker.answers, []
        return answer

    def code(self, request: Any, of: str = "top") -> str:
        answer = self.ask(request, of)
        assert isinstance(answer, ChildError), answer
        return answer.code

    def runs(self, *names: str) -> bool:
        return all(self.at(name) in self.executor.table for name in names)

    def end_of_top(self) -> DownReason:
        (down,) = self.asker.downs
        return down.reason


def states(children: Iterable[Any]) -> dict[str, str]:
    return {child.id: child.state for child in children}
