import dataclasses
from typing import Any, final

from rabble._core.ids import Pid

__all__ = ["Ask", "Reply"]

@final
@dataclasses.dataclass(frozen=True)
class Ask:
    to: Pid
    msg: Any
    timeout_ms: float
    tag: Any = ...

@final
@dataclasses.dataclass(frozen=True)
class Reply:
    tag: Any
    value: Any
