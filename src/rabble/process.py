"""`Process`: the base class of actors."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Generic, Protocol

from rabble._core.dispatch import show_runtime
from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.messages import DownReason

if TYPE_CHECKING:
    from typing import Any, ClassVar, TypeAlias

    # Type checkers bring this module themselves: a `Process` without parameters takes anything.
    from typing_extensions import TypeVar

    Message = TypeVar("Message", contravariant=True, default=Any)
else:
    from typing import TypeVar

    Message = TypeVar("Message", contravariant=True)

__all__ = ["Output", "Process", "Runtime"]

#: What `init` and `receive` may return.
Output: TypeAlias = "Envelope | Iterable[Envelope] | None"


class Runtime(Protocol):
    """What a process is given by who runs it: the executor's entry, or a test's own."""

    @property
    def pid(self) -> Pid:
        """The process's own pid."""

    @property
    def executor(self) -> Pid:
        """Where control messages go."""

    @property
    def now(self) -> float:
        """Monotonic seconds."""

    @property
    def random(self) -> random.Random:
        """The process's own random source."""


class Process(Generic[Message]):
    """An actor: state, and one method that takes a message and returns the envelopes to send.

    For type checkers `Process[Sell | Refund]` says which messages it takes: those of its users, and
    those of its runtime that it asks for, as `Timeout` or `Down`. Nothing of it is checked when it
    runs. A plain `Process` takes anything.

    A subclass defines `receive`, and `init` and `terminate` if it has something to say at its start
    and its end. They run in the executor's thread and should do no I/O, start no thread, read no
    clock and draw no random number but from `now` and `random`: then the process can be tested by
    calling its methods, simulated and replayed. What it wants of its runtime it sends to
    `executor`: `Envelope(self.executor, Stop(self.pid))`.

    A raising method ends the process; nothing that this call returned is sent.

    To test one without a node, hand it a runtime of your own with `attach`.
    """

    #: Whether processes of this class are sent an `Exit` when a process ends that they are linked
    #: with, instead of being ended by it. Looked up once, at the spawn.
    traps_exits: ClassVar[bool] = False

    __slots__ = ("__weakref__", "_runtime")

    _runtime: Runtime

    def init(self) -> Output:
        """Called once, before the first message, in the executor's thread.

        :returns: `None`, one `Envelope`, or an iterable of them.
        """
        return None

    def receive(
        self, msg: Message, sender: Pid | None, correlation_id: CorrelationId | None, /
    ) -> Output:
        """Handle one message. A generator's return type is `Iterator[Envelope]`.

        :param msg: what was said. It may be shared with others and must not be changed.
        :param sender: who said it; `None` from a thread that gave no sender.
        :param correlation_id: the request it belongs to, to be put into the reply; or `None`.
        :returns: `None`, one `Envelope`, or an iterable of them, a generator too.
        :raises Exception: whatever it raises ends the process, and is the reason of its `Down`.
        """
        raise TypeError(f"{type(self).__name__} does not define receive(msg, sender, cid)")

    def terminate(self, reason: DownReason) -> Output:
        """Called when the process is ended in order: by a `Stop`, by a link, or with its node.

        Not after a crash, nor before `init`. When the node ends, those that were spawned last come
        first, each when what the one before had to say is delivered, as long as there is time.

        :param reason: of that end: what its monitors are told.
        :returns: last envelopes, as `receive` does: they are sent before its monitors are told.
        :raises Exception: whatever it raises is its end, a crash, and nothing of this is sent.
        """
        return None

    def attach(self, runtime: Runtime) -> None:
        """Give the process its runtime. A node does it at the spawn, a test may instead.

        :param runtime: what `pid`, `node_id`, `executor`, `now` and `random` are taken from.
        """
        self._runtime = runtime

    def _attached(self) -> Runtime:
        try:
            return self._runtime
        except AttributeError:
            raise RuntimeError(
                f"this {type(self).__name__} was not spawned yet: pid, executor, now and random "
                f"are known from init() on; in a test, hand it a runtime with attach()"
            ) from None

    if TYPE_CHECKING:

        @property
        def pid(self) -> Pid: ...

        @property
        def node_id(self) -> NodeId: ...

        @property
        def executor(self) -> Pid: ...

        @property
        def now(self) -> float: ...

    @property
    def random(self) -> random.Random:
        """This process's own random source, seeded from the node's seed and its pid."""
        return self._attached().random


# Asked for with each message, so nothing of it is Python: `pid`, `node_id`, `executor`, `now`.
show_runtime(Process)
