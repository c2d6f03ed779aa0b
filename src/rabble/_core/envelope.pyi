from typing import Any, final

from rabble._core.ids import CorrelationId, Pid

__all__ = ["Envelope", "reply"]

@final
class Envelope:
    __match_args__ = ("to", "msg", "sender", "correlation_id")
    def __new__(
        cls,
        to: Pid | None,
        msg: object,
        sender: Pid | None = ...,
        correlation_id: CorrelationId | None = ...,
    ) -> Envelope: ...
    @property
    def to(self) -> Pid | Any: ...  # None of one to nobody, for which few have to ask
    @property
    def msg(self) -> Any: ...
    @property
    def sender(self) -> Pid | None: ...
    @property
    def correlation_id(self) -> CorrelationId | None: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __copy__(self) -> Envelope: ...
    def __deepcopy__(self, memo: dict[int, object]) -> Envelope: ...

def reply(msg: object, sender: Pid | None, correlation_id: CorrelationId | None) -> Envelope: ...
