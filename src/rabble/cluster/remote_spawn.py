"""Spawning on other nodes: what a node exports by name, and the pid that is asked for it.

A request is a list, `["spawn", exported, arguments, name, group]`, to the pid `spawner` of the
node; the answer is `["spawned", pid]` or `["refused", text]`, with its correlation id. Only
what the node exported itself can be made: nothing is imported or found by a name from the wire.

With a sixth element, the pid of a process of the node that asks, that process owns what is spawned:
it ends when its owner ends or is cut off, what an earlier life of the owner left under that name
gives way, and the answer comes when its `init` has run. `["end", name, group, owner, reason]` ends
in order what is owned so; there is no answer but the exit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rabble._core.envelope import Envelope
from rabble._core.errors import Interrupted
from rabble._core.executor import Executor
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.texts import bounded_repr
from rabble.addresses import RESERVED_GROUP, SPAWNER_NAME
from rabble.errors import NameTaken, NodeStopped, SpawnRefused
from rabble.families.supervisor import Supervisor
from rabble.messages import DeadLetterReason, DownReason, Shutdown
from rabble.reports import Reporter
from rabble.texts import TEXT_CHARS_MAX, cut, described

if TYPE_CHECKING:
    from rabble.process import Process

__all__ = ["Exports", "pid_of_answer", "spawn_request"]

#: Characters of an answer that say in which log the traceback is.
WHERE_CHARS_MAX = 150


class Exports:
    """What a node lets others spawn here.

    :param executor: which spawns it.
    :param exports_max: how many names there may be.

    `export` is for any thread; `deliver` is the executor's callback for the pid `spawner`.
    """

    def __init__(self, executor: Executor, reporter: Reporter, exports_max: int) -> None:
        self.pid = Pid(SPAWNER_NAME, executor.node, RESERVED_GROUP)
        self._executor = executor
        self._reporter = reporter
        self._exports_max = exports_max
        self._exports: dict[str, Export] = {}

    def export(self, name: str, factory: Callable[..., Process]) -> None:
        """See `Node.export`."""
        # The same rules as for other names.
        Pid(name, self.pid.node)
        if not callable(factory):
            raise TypeError(
                "export takes a Process class or a function that makes one, "
                f"not {bounded_repr(factory, 100)}"
            )
        known = self._exports.get(name)
        if known is not None:
            if known.factory is factory:
                return
            raise ValueError(f"{name!r} is exported already, as {bounded_repr(known.factory, 100)}")
        if len(self._exports) >= self._exports_max:
            raise ValueError(
                f"{len(self._exports)} names are exported already; "
                f"Limits.exports_max is {self._exports_max}"
            )
        self._exports[name] = Export(factory)

    def deliver(self, envelope: Envelope) -> None:
        """A request came. Runs in the executor's thread."""
        sender = envelope.sender
        if sender is None or sender == self._executor.pid:
            # Nobody to answer; or an answer of this pid that became a dead letter, as told by the
            # executor, which has been counted.
            if sender is None:
                self._executor.undeliverable(envelope, DeadLetterReason.REFUSED)
            return
        if self._end(envelope.msg, sender.node):
            return
        answer: list[Any]
        try:
            answer = self._begun(envelope.msg) or self._spawn(envelope.msg, sender.node)
            if answer[0] == "began":
                # Its `init` stands before this in the inbox.
                after = Envelope(self.pid, answer, sender, envelope.correlation_id)
                if self._executor.post(after):
                    return
                raise SpawnRefused(f"{self.pid.node} shuts down")
        except SpawnRefused as error:
            answer = ["refused", str(error)]
        except Interrupted:
            raise
        except BaseException as error:
            # One of the objects that are concerned raised it. The asker is answered all the same.
            self._reporter.report_crash(self.pid, error)
            answer = ["refused", cut(described(BaseException.with_traceback(error, None)))]
        # A node that ends is still heard by whoever asked.
        reply = Envelope(sender, answer, self.pid, envelope.correlation_id)
        if not self._executor.post(reply):
            self._executor.undeliverable(reply, DeadLetterReason.NODE_SHUTDOWN)

    def _end(self, msg: Any, asker: NodeId) -> bool:
        """Whether that is what was asked for."""
        match msg:
            case ["end", str(name), None | str() as group, Pid() as owner, str(why)]:
                pass
            case _:
                return False
        try:
            pid = Pid(name, self.pid.node, group)
        except (TypeError, ValueError):
            return True
        if owner.node == asker:
            reason = DownReason("shutdown", cut(why))
            # A supervisor ends its children first.
            self._executor.end_owned(pid, owner, reason, Supervisor, Shutdown(reason.detail))
        return True

    def _begun(self, msg: Any) -> list[Any] | None:
        """Of what is owned it is said when its `init` has run."""
        match msg:
            case ["began", str(name), None | str() as group, int(life)]:
                pass
            case _:
                return None
        try:
            pid = Pid(name, self.pid.node, group)
        except (TypeError, ValueError) as error:
            raise SpawnRefused(cut(str(error))) from None
        entry = self._executor.table.get(pid)
        if entry is None or entry.life != life:
            raise SpawnRefused(f"{pid} has ended already; the log of {pid.node} says why")
        return ["spawned", pid]

    def _spawn(self, msg: Any, asker: NodeId) -> list[Any]:
        exported, arguments, name, group, owner = checked(msg)
        if owner is not None and owner.node != asker:
            raise SpawnRefused(cut(f"{owner} is no process of {asker}, which asked"))
        export = self._exports.get(exported)
        if export is None:
            raise SpawnRefused(cut(f"{self.pid.node} exports no {exported!r}"))
        unfit = export.unfit(arguments)
        if unfit is not None:
            raise SpawnRefused(cut(f"wrong arguments for {exported!r}: {unfit}"))
        try:
            pid = Pid(name, self.pid.node, group)
        except (TypeError, ValueError) as error:
            raise SpawnRefused(cut(str(error))) from None
        try:
            process = export.factory(*arguments)
        except Interrupted:
            raise
        except BaseException as error:
            self._reporter.report_crash(pid, error)
            # Its traceback, which holds what was made so far, must not outlive this call.
            text = described(BaseException.with_traceback(error, None))
            where = cut(f"the log of {self.pid.node} has the traceback", WHERE_CHARS_MAX)
            room = TEXT_CHARS_MAX - WHERE_CHARS_MAX - 3
            said = cut(f"making {exported!r} raised {text}", room)
            raise SpawnRefused(f"{said} ({where})") from None
        if owner is not None:
            left = DownReason("shutdown", "its owner has begun anew")
            self._executor.end_owned(pid, owner, left)
        try:
            self._executor.spawn(process, name, group=group)
            if owner is None:
                return ["spawned", pid]
            self._executor.own(pid, owner)
            entry = self._executor.table.get(pid)
            return ["began", name, group, 0 if entry is None else entry.life]
        except NameTaken:
            raise SpawnRefused(f"the name is taken: {pid}") from None
        except NodeStopped:
            raise SpawnRefused(f"{self.pid.node} shuts down") from None
        except (TypeError, ValueError) as error:
            raise SpawnRefused(cut(f"{exported!r} cannot be spawned: {error}")) from None


class Export:
    """One thing that may be spawned."""

    def __init__(self, factory: Callable[..., Process]) -> None:
        self.factory = factory
        self._signature: inspect.Signature | None = None
        try:
            self._signature = inspect.signature(factory)
        except (TypeError, ValueError):
            # Not of Python's own making: then only calling it tells.
            pass

    def unfit(self, arguments: list[Any]) -> str | None:
        """Why it cannot be called with these; `None` if it can."""
        if self._signature is not None:
            try:
                self._signature.bind(*arguments)
            except TypeError as error:
                return str(error)
        return None


def checked(msg: Any) -> tuple[str, list[Any], str, str | None, Pid | None]:
    """The parts of a request; `SpawnRefused` if it is none."""
    match msg:
        case ["spawn", str(exported), list(arguments), str(name), None | str() as group]:
            return exported, arguments, name, group, None
        case [
            "spawn",
            str(exported),
            list(arguments),
            str(name),
            None | str() as group,
            Pid() as owner,
        ]:
            return exported, arguments, name, group, owner
    raise SpawnRefused(
        "a request is a list: 'spawn', what is exported, a list of arguments, a name, a group or "
        "None, and perhaps the pid of an owner"
    )


def spawn_request(
    node_id: NodeId,
    exported: str,
    name: str,
    *args: Any,
    group: str | None = None,
    correlation_id: CorrelationId | None = None,
) -> Envelope:
    """What a process returns to have a process spawned on another node, or on its own.

    The answer is a message with the same correlation id: `["spawned", pid]`, or
    `["refused", text]`, which says why.

    :param node_id: which node.
    :param exported: the name under which it exports what makes the process; see `Node.export`.
    :param name: of the process, unique within its group on that node.
    :param args: for what makes it; whatever may be sent.
    :param group: the tenant it belongs to.
    :param correlation_id: by which the answer is known.
    :raises ValueError: if a name cannot be one.
    """
    for checked_name in (exported, name):
        Pid(checked_name, node_id, group)
    request = ["spawn", exported, list(args), name, group]
    return Envelope(
        Pid(SPAWNER_NAME, node_id, RESERVED_GROUP), request, correlation_id=correlation_id
    )


def pid_of_answer(answer: Any, node_id: NodeId | None = None) -> Pid:
    """The pid in the answer to a request.

    :param node_id: which node answered, for the error.
    :raises SpawnRefused: says why there is none.
    """
    match answer:
        case ["spawned", Pid() as pid]:
            return pid
        case ["refused", str(text)]:
            pass
        case _:
            text = f"the answer is none: {bounded_repr(answer, TEXT_CHARS_MAX)}"
    error = SpawnRefused(text)
    error.node, error.detail = node_id, text
    raise error
