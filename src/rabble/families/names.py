"""`Names`: the names of the mesh, for threads and for asyncio."""

from __future__ import annotations

from typing import Any

from rabble._core.ids import Pid
from rabble._runtime import LocalRuntime
from rabble.errors import NameTaken, NoProcess, QueueFull, RabbleError
from rabble.messages import NameHolder, NameRefused, Register, Registered, Unregister, WhereIs

__all__ = ["Names"]


class Names:
    """The names of the mesh, each with one owner: `node.names`.

    The methods block for as long as the executor takes, and `register` for a round trip to the
    farthest node: not for processes, which send `Register` and its like to their executor. Each
    has a twin for asyncio. All are for any thread but the executor's. They raise what `Node.call`
    does besides what they say: `CallTimeout`, `NodeStopped`, `QueueFull`.
    """

    def __init__(self, runtime: LocalRuntime) -> None:
        self._runtime = runtime

    def register(self, name: str, pid: Pid, timeout: float = 10.0) -> None:
        """Give a process of this node a name that is unique in the mesh.

        The process has it until it ends, it is taken back, or it is told `NameLost`.

        :param name: as that of a process may be.
        :param pid: who is to have it: a process, service or mailbox of this node.
        :param timeout: in seconds; above those of `Limits.name_claim_ms`.
        :raises NameTaken: if another process has it, or asked for it at the same time.
        :raises NoProcess: if nobody has that pid, or it ended meanwhile.
        :raises QueueFull: if there is no room for a further name: the error says which limit.
        :raises ValueError: if the name cannot be one, or the pid is of another node.
        :raises CallTimeout: if no answer came in time: it may have the name all the same.
        """
        self._runtime.check_here(pid, "register", "let its own node register it")
        check_registered(self._ask(Register(name, pid), timeout), pid)

    async def register_async(self, name: str, pid: Pid, timeout: float = 10.0) -> None:
        """As `register`, for asyncio."""
        self._runtime.check_here(pid, "register", "let its own node register it")
        check_registered(await self._ask_async(Register(name, pid), timeout), pid)

    def unregister(self, name: str, pid: Pid, timeout: float = 5.0) -> bool:
        """Take a name back from a process of this node.

        :param name: which one.
        :param pid: who has it.
        :param timeout: in seconds.
        :returns: whether it had it.
        :raises ValueError: if the name cannot be one, or the pid is of another node.
        """
        self._runtime.check_here(pid, "unregister", "let its own node unregister it")
        return bool(self._ask(Unregister(name, pid), timeout).had_it)

    async def unregister_async(self, name: str, pid: Pid, timeout: float = 5.0) -> bool:
        """As `unregister`, for asyncio."""
        self._runtime.check_here(pid, "unregister", "let its own node unregister it")
        return bool((await self._ask_async(Unregister(name, pid), timeout)).had_it)

    def whereis(self, name: str, timeout: float = 5.0) -> Pid | None:
        """Who has a name.

        :param name: which one.
        :param timeout: in seconds.
        :returns: its pid; `None`: nobody, as far as this node knows.
        :raises ValueError: if the name cannot be one.
        """
        return holder_of(self._ask(WhereIs(name), timeout))

    async def whereis_async(self, name: str, timeout: float = 5.0) -> Pid | None:
        """As `whereis`, for asyncio."""
        return holder_of(await self._ask_async(WhereIs(name), timeout))

    def _ask(self, request: Any, timeout: float) -> Any:
        return self._runtime.call(self._runtime.executor.pid, request, timeout)

    async def _ask_async(self, request: Any, timeout: float) -> Any:
        return await self._runtime.call_async(self._runtime.executor.pid, request, timeout)


def check_registered(answer: Registered | NameRefused, pid: Pid) -> None:
    """Raise why it was not registered, if so."""
    if isinstance(answer, Registered):
        return
    match answer.reason:
        case "taken":
            raise NameTaken(
                f"{answer.name!r} is the name of {answer.holder}; stop it first, or take another "
                f"name"
            )
        case "limit":
            raise QueueFull(f"{pid} cannot have the name {answer.name!r}: {answer.detail}")
        case "guest":
            raise RabbleError(f"{pid} cannot have the name {answer.name!r}: {answer.detail}")
    why = "has it not" if answer.reason == "given_back" else "does not run"
    raise NoProcess(f"{pid} {why}: it cannot have the name {answer.name!r}")


def holder_of(answer: NameHolder) -> Pid | None:
    return answer.pid
