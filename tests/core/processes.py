"""The processes that the core's tests run, and a codec for the strict mode."""

from __future__ import annotations

from typing import Any

from rabble import CorrelationId, Output, Pid, Process
from rabble._core.executor import Executor
from tests.support import BARE, Does

#: Nobody: a pid of the executor's own node under which nothing runs.
OUTSIDE = Pid("outside", BARE)


class Recorder(Process):
    """Keeps the messages that it is given."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.successor: Process | None = None

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        self.got.append(msg)
        return None


def spawn_recorder(
    executor: Executor, name: str = "recorder", **options: Any
) -> tuple[Pid, list[Any]]:
    """Run a `Recorder`; returns its pid, and the list of the messages that it is given."""
    process = Recorder()
    return executor.spawn(process, name, **options), process.got


def returning(output: object) -> Does:
    """A process whose `receive` returns that."""
    return Does(lambda process, msg, sender: output)  # type: ignore[arg-type, return-value]


def raising(error: BaseException) -> Does:
    """A process whose `receive` raises that."""

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        raise error

    return Does(react)


class OddCodec:
    """A strict mode in which an exception, sent as a message, is raised where it is encoded."""

    def encode_message(self, msg: Any) -> Any:
        if isinstance(msg, BaseException):
            raise msg
        return msg

    def decode_message(self, data: Any) -> Any:
        return data


class Refilling(OddCodec):
    """Each message that is taken in has another thread send two more."""

    executor: Executor
    left = 10_000

    def encode_message(self, msg: Any) -> Any:
        if self.left:
            self.left -= 1
            self.executor.send(OUTSIDE, msg)
        return msg
