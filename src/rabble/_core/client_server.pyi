from collections.abc import Callable, Iterable
from typing import Any, final

from rabble._core.client_codec import ClientCodec
from rabble._core.executor import Executor
from rabble._core.ids import CorrelationId, Pid
from rabble._core.poller import Poller

__all__ = ["ClientConnection", "ClientServer"]

@final
class ClientConnection:
    def __new__(cls, *arguments: object, **more: object) -> ClientConnection: ...
    @property
    def id(self) -> CorrelationId: ...
    @property
    def peer(self) -> str: ...
    @property
    def server_pid(self) -> Pid: ...
    @property
    def now(self) -> float: ...

@final
class ClientServer:
    def __new__(
        cls,
        executor: Executor,
        poller: Poller,
        pid: Pid,
        *,
        make_handler: Callable[[], Any],
        codec: ClientCodec,
        gate: Any,
        front: Any,
        nodes: tuple[tuple[str, Pid], ...],
        pressures: Callable[[], dict[str, float]],
        changed: Callable[[Any], Iterable[Pid]],
        closed: Callable[[str], object],
        notify: Callable[[], object],
        frame_bytes_max: int,
        unsent_bytes_max: int,
        idle_ns_max: int,
        partial_ns_max: int,
        stuck_ns_max: int,
        linger_ns_max: int,
        requests_per_connection_max: int,
        requests_max: int,
        request_ns_max: int,
        retry_ms: int,
    ) -> ClientServer: ...
    @property
    def pid(self) -> Pid: ...
    @property
    def open(self) -> int: ...
    @property
    def sockets(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def has_gate(self) -> bool: ...
    @property
    def waiting_for_gate(self) -> int: ...
    @property
    def draining(self) -> bool: ...
    @property
    def answered(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def refused(self) -> int: ...
    @property
    def late(self) -> int: ...
    @property
    def messages(self) -> int: ...
    def attach(self, fd: int, peer: str, host: str) -> None: ...
    def request_drain(self) -> None: ...
    def close(self) -> None: ...
