import dataclasses
from typing import Any, Literal, final

from rabble._core.ids import CorrelationId, Pid

__all__ = [
    "Answer",
    "Canary",
    "ClientAsk",
    "CloseConnection",
    "Fail",
    "Incoming",
    "Outgoing",
    "Push",
    "ask",
]

@final
@dataclasses.dataclass(frozen=True)
class Answer:
    request: CorrelationId
    value: Any

@final
@dataclasses.dataclass(frozen=True)
class Fail:
    request: CorrelationId
    code: str
    text: str = ""

@final
@dataclasses.dataclass(frozen=True)
class Push:
    msg: Any

@final
@dataclasses.dataclass(frozen=True)
class CloseConnection:
    reason: str = "closed"

@final
@dataclasses.dataclass(frozen=True)
class ClientAsk:
    to: Pid
    msg: Any
    request: CorrelationId
    timeout_ms: float | None = None

def ask(
    to: Pid, msg: Any, request: CorrelationId, timeout_ms: float | None = None
) -> ClientAsk: ...

@final
@dataclasses.dataclass(frozen=True)
class Incoming:
    msg: Any
    id: int | None = None
    priority: int = 0

@final
@dataclasses.dataclass(frozen=True)
class Outgoing:
    kind: Literal["answer", "failure", "nack", "push", "goodbye"]
    id: int | None = None
    value: Any = None
    code: str = ""
    text: str = ""
    retry_after_ms: int = 0

@final
@dataclasses.dataclass(frozen=True)
class Canary:
    number: int
    node: str = ""
