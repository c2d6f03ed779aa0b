"""`World`: a node without threads, in which time goes on only when it is told to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

from rabble._assembly import checked_node_id, make_executor, make_threads
from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.inbox import Inbox
from rabble._core.texts import given
from rabble._runtime import LocalRuntime
from rabble._shutdown import Teardown
from rabble.calls import Reply
from rabble.hooks import Hooks
from rabble.limits import Limits
from rabble.messages import DeadLetter, SubscribeDeadLetters
from rabble.process import Process
from rabble.registry import MessageRegistry, default_registry
from rabble.services.mailbox import Mailboxes
from rabble.timeouts import checked_timeout

__all__ = ["Crash", "Probe", "World"]

#: After so many deliveries without a pause a world is held to be one that comes to no rest.
DELIVERIES_MAX = 1_000_000
#: How many a probe may hold.
PROBE_ENVELOPES_MAX = 1_000_000
#: The `Entry.kind` of a process.
PROCESS = 0
#: Under this name the world itself is told of dead letters.
LETTERS_NAME = "testing-dead-letters"


@dataclasses.dataclass(frozen=True, slots=True)
class Crash:
    """A process has raised; or, in a strict world, sent what cannot be encoded."""

    #: Which one; `None`: the test itself, or a control message that cannot be followed.
    pid: Pid | None
    #: What it raised.
    error: BaseException
    #: Where.
    traceback: TracebackType | None


class Probe:
    """A pid in a `World` whose mail the test reads, and under which it sends.

    :ivar pid: what the processes know it by.
    """

    def __init__(self, world: World, pid: Pid) -> None:
        self._world = world
        self._inbox = Inbox(PROBE_ENVELOPES_MAX)
        self.pid = pid
        if not world._runtime.executor.add_inbox(pid, self._inbox):
            self._inbox.close()
            world._runtime.refuse(pid)

    def send(self, to: Pid, msg: Any, *, correlation_id: CorrelationId | None = None) -> None:
        """Send under this pid; what comes of it has happened when this returns."""
        self._world.send(to, msg, sender=self.pid, correlation_id=correlation_id)

    def envelopes(self) -> list[Envelope]:
        """What came since the last time, in its order."""
        return self._inbox.take(len(self._inbox))

    def messages(self) -> list[Any]:
        """The messages of `envelopes`."""
        return [envelope.msg for envelope in self.envelopes()]


class WorldHooks(Hooks):
    """What the executor of a world tells: the world alone."""

    def __init__(self, runtime: LocalRuntime, world: World) -> None:
        super().__init__(runtime)
        self._world = world

    def crashed(self, pid: Pid | None, error: BaseException) -> None:
        # The executor takes the traceback away when this returns: its frames hold the process.
        self._world.crashes.append(Crash(pid, error, error.__traceback__))

    def unencodable(self, envelope: Envelope, error: Exception) -> None:
        self._world.crashes.append(Crash(envelope.sender, error, error.__traceback__))

    def quiet(self) -> bool:
        return True


class World:
    """A node for tests: its executor is the real one, and runs in the test's thread.

    What a test sends is delivered, with all that comes of it, before the call returns. Time stands
    still until `advance`; then each timer fires when it is due. So a test waits for nothing, and
    the same test is the same each time. What processes do by messages works as in a node: timers,
    requests, spawning, monitors, stops. There are no services, and no other nodes: an envelope
    to one is a dead letter.

    A context manager, which ends it. For one thread.

    .. code-block:: python

        with rabble.testing.World() as world:
            counter, me = world.spawn(Counter(), "counter"), world.probe("me")
            me.send(counter, "total")
            assert me.messages() == [0]
            world.advance(1.5)

    :param node_id: of the node that it is.
    :param seed: of the processes' random sources.
    :param strict: as that of `rouse`: True encodes and decodes each message.
    :param limits: bounds, the defaults if left out.
    :param registry: the message classes; by default all that `@message` declared.
    :param on_crash: `"raise"`: what a process raises is raised by whatever had the world go on.
        `"keep"`: it is in `crashes`, for tests in which processes are to crash.
    :raises ValueError: if `node_id`, `strict` or `on_crash` cannot be used.
    :ivar crashes: each `Crash` so far.
    """

    def __init__(
        self,
        *,
        node_id: NodeId | str = "test@127.0.0.1:1",
        seed: int = 0,
        strict: bool = False,
        limits: Limits | None = None,
        registry: MessageRegistry | None = None,
        on_crash: Literal["raise", "keep"] = "raise",
    ) -> None:
        if on_crash not in ("raise", "keep"):
            raise ValueError(f"World: on_crash must be 'raise' or 'keep', not {given(on_crash)}")
        self._raises = on_crash == "raise"
        self._now_ns = 0
        self.node_id = checked_node_id(node_id)
        self.crashes: list[Crash] = []
        self._raised = 0
        self._runtime = runtime = LocalRuntime(self.node_id, limits or Limits())
        runtime.clock = lambda: self._now_ns / 1e9
        mailboxes = Mailboxes(runtime)
        # None of them is ever started.
        make_threads(runtime, Teardown(runtime, mailboxes), mailboxes)
        make_executor(
            runtime,
            registry or default_registry,
            strict=bool(strict),
            spin_us=0,
            seed=seed,
            hooks=WorldHooks(runtime, self),
            clock_ns=lambda: self._now_ns,
        )
        self._letters = Probe(self, self.pid(LETTERS_NAME))
        runtime.executor.send(
            runtime.executor.pid, SubscribeDeadLetters(), sender=self._letters.pid
        )
        self._seen_letters: list[DeadLetter] = []
        self.run()

    # Who is there.

    def pid(self, name: str, group: str | None = None) -> Pid:
        """The pid that a name has, or would have."""
        return Pid(name, self.node_id, group)

    def spawn(
        self,
        process: Process[Any],
        name: str,
        *,
        group: str | None = None,
        mailbox_max: int | None = None,
    ) -> Pid:
        """As `Node.spawn`; its `init`, and what comes of it, has happened when this returns."""
        pid = self._runtime.executor.spawn(process, name, group=group, mailbox_max=mailbox_max)
        self.run()
        return pid

    def probe(self, name: str = "probe", group: str | None = None) -> Probe:
        """A pid whose mail the test reads.

        :raises NameTaken: if the name is in use.
        """
        return Probe(self, self.pid(name, group))

    def is_running(self, pid: Pid) -> bool:
        """Whether a process or probe has the pid."""
        return pid in self._runtime.executor.table

    # What happens.

    def send(
        self,
        to: Pid,
        msg: Any,
        *,
        sender: Pid | None = None,
        correlation_id: CorrelationId | None = None,
    ) -> None:
        """As `Node.send`; what comes of it has happened when this returns."""
        self._runtime.send(to, msg, sender=sender, correlation_id=correlation_id)
        self.run()

    def call(self, pid: Pid, msg: Any, timeout: float = 5.0) -> Any:
        """As `Node.call`. Time goes on for as long as there is no reply.

        :param timeout: in seconds of the world.
        """
        within_ns = round(min(checked_timeout(timeout), 1e9) * 1e9)
        reply = Reply()
        correlation_id = self._runtime._begin_call(pid, msg, reply)
        try:
            self.run()
            if not self._go_on(within_ns, lambda: reply.wait(0)):
                reply.set_exception(self._runtime.calls.timeout_of(reply.number, pid, timeout))
            return reply.take()
        finally:
            self._runtime.calls.give_up(correlation_id)

    def run(self) -> int:
        """Deliver until nothing waits, without a step of time; returns how many were delivered.

        :raises AssertionError: if there is no end to it.
        :raises BaseException: what a process raised, unless `on_crash` is `"keep"`.
        """
        executor, delivered, steps = self._runtime.executor, 0, 0
        while True:
            count = executor.step()
            delivered += count
            steps += 1
            self._raise_crash()
            # A step takes in a part of what was sent, and may deliver nothing.
            if not (count or executor.queue_depth or executor.inbox_depth):
                return delivered
            if max(delivered, steps) > DELIVERIES_MAX:
                raise AssertionError(
                    f"{self.node_id} comes to no rest: {delivered:,} envelopes were delivered, "
                    f"and {executor.queue_depth:,} wait"
                )

    def advance(self, seconds: float) -> None:
        """Let time go on: each timer fires when it is due, and all that comes of it happens.

        :param seconds: how long, 0 or more.
        :raises ValueError: if it is no such number.
        """
        self._go_on(round(checked_timeout(seconds) * 1e9), lambda: False)

    def _go_on(self, within_ns: int, is_over: Callable[[], bool]) -> bool:
        """Let time go on until something is so, or is over; returns whether it is so."""
        end = self._now_ns + within_ns
        self.run()
        while not is_over():
            left = self._runtime.executor.next_timer_ns
            if left is None or self._now_ns + left > end:
                self._now_ns = end
                self.run()
                return is_over()
            # What is due now, and did not fire, is due in the next millisecond of the wheel.
            self._now_ns = min(self._now_ns + (left or 1_000_000), end)
            if not self.run() and self._now_ns == end:
                return is_over()
        return True

    def _raise_crash(self) -> None:
        if self._raises and len(self.crashes) > self._raised:
            crash = self.crashes[self._raised]
            self._raised = len(self.crashes)
            crash.error.add_note(f"by {crash.pid or 'the test, or a control message'}")
            raise crash.error.with_traceback(crash.traceback)

    # What there is to see.

    @property
    def now(self) -> float:
        """Seconds since it began."""
        return self._now_ns / 1e9

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """Each `DeadLetter` so far, in its order."""
        for msg in self._letters.messages():
            if isinstance(msg, DeadLetter):
                self._seen_letters.append(msg)
        return self._seen_letters.copy()

    @property
    def timers(self) -> int:
        """How many timers run."""
        return self._runtime.executor.timers

    def processes(self) -> list[Pid]:
        """Who runs, without the probes and the world's own, in the order of their pids."""
        entries = self._runtime.executor.table.snapshot()
        return sorted(entry.pid for entry in entries if entry.kind == PROCESS)

    # The end.

    def close(self) -> None:
        """End it, as a node ends: processes are told `Shutdown`. Idempotent.

        :raises BaseException: what a process raised, unless `on_crash` is `"keep"`.
        """
        executor = self._runtime.executor
        if not executor.stopping:
            executor.request_stop(0.0)
            executor.run()
        self._raise_crash()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            # What the test failed with is what is told.
            self._raises = False
        self.close()
