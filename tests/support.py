"""What many tests need: processes that do one thing, and waiting that ends."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rabble import (
    CorrelationId,
    Envelope,
    NameTaken,
    Node,
    NodeId,
    NodeUp,
    Output,
    Pid,
    Process,
    QueueFull,
    RabbleError,
    messages,
)
from rabble._core.debug import CAPACITIES
from rabble._core.executor import Executor
from rabble._core.system_messages import SystemMessages
from rabble.call_failures import asks_full
from rabble.calls import Calls
from rabble.strict import Strict

if interval := os.environ.get("RABBLE_SWITCH_INTERVAL"):
    # Seconds that a thread may keep the interpreter while another waits for it. `make tiny` has
    # them switch at every chance, so that what one leaves half done another one meets. Here,
    # since what tests run in a process of its own comes by here as well.
    sys.setswitchinterval(float(interval))

#: Seconds after which a test gives up; long, because the machine may stall.
PATIENCE_S = 30.0

#: Whether this build has every capacity at its smallest.
TINY = bool(CAPACITIES["IS_TINY"])

#: Whether AddressSanitizer is there, which keeps what is freed for a while: then the resident
#: memory says nothing.
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")

#: Whether this is a line-trace build under a tracer, where even the core's code without the GIL
#: needs it at every line.
TRACED = sys.gettrace() is not None

#: Of the meshes of the tests.
KEY = bytes(range(32))

#: The node of executors that have no node around them.
BARE = NodeId("bare", "h:1")


class Echo(Process):
    """Sends every message back."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        return None if sender is None else Envelope(sender, msg, correlation_id=correlation_id)


class Relay(Process):
    """Sends every message on to another pid, with the one that sent it as `(sender, msg)`."""

    def __init__(self, to: Pid) -> None:
        self.to = to

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        return Envelope(self.to, (sender, msg), correlation_id=correlation_id)


class Does(Process):
    """Calls a function with itself and every message, and sends what it returns."""

    def __init__(
        self,
        react: Callable[[Process, Any, Pid | None], Output],
        begin: Callable[[Process], Output] = lambda process: None,
    ) -> None:
        self.react = react
        self.begin = begin

    def init(self) -> Output:
        return self.begin(self)

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        return self.react(self, msg, sender)


class HandClock:
    """A monotonic clock in nanoseconds, which goes on only when it is told to."""

    def __init__(self, ns: int = 0) -> None:
        self.ns = ns

    def __call__(self) -> int:
        return self.ns

    def go_on(self, ms: float) -> None:
        self.ns += round(ms * 1_000_000)


class Witness:
    """What an executor without a node tells and asks; keeps what it was told."""

    def __init__(self) -> None:
        self.errors: list[tuple[Pid | None, BaseException]] = []
        #: Has the words for how requests end.
        self.calls = Calls(Pid("calls", BARE, "rabble"), 1)

    def crashed(self, pid: Pid | None, error: BaseException) -> None:
        self.errors.append((pid, error))

    def unencodable(self, envelope: Envelope, error: Exception) -> None:
        pass

    def ask_failure(self, to: Pid, msg: Any) -> RabbleError:
        return self.calls.failure_of(to, msg)

    def ask_timeout(self, to: Pid, number: int, timeout_ms: float) -> RabbleError:
        return self.calls.timeout_of(number, to, timeout_ms / 1_000)

    def asks_full(self, to: Pid, waiting: int) -> RabbleError:
        return asks_full(to, waiting)

    def quiet(self) -> bool:
        return True

    def refuse(self, pid: Pid | None = None) -> None:
        raise QueueFull("the inbox is full") if pid is None else NameTaken(f"{pid}")


@contextlib.contextmanager
def bare_executor(
    clock: Callable[[], int] | None = None,
    witness: Witness | None = None,
    codec: Any = None,
    inbox_max: int = 1 << 24,
    spin_us: int = 0,
    process_class: type = Process,
    asks_max: int = 1 << 20,
    node: NodeId = BARE,
) -> Iterator[Executor]:
    """An executor without a thread, to be driven by `step`; ended when it is left.

    That end is needed: an executor and its entries refer to each other. All tests make their
    executors here.
    """
    executor = Executor(
        node,
        process_class,
        witness or Witness(),
        inbox_max=inbox_max,
        spin_us=spin_us,
        clock=clock,
        strict=None if codec is None else Strict(codec),
        local_classes=messages.LOCAL_CLASSES,
        asks_max=asks_max,
    )
    SystemMessages(executor)
    try:
        yield executor
    finally:
        if not executor.stopping:
            executor.request_stop(0)
            executor.run()


@contextlib.contextmanager
def running(executor: Executor) -> Iterator[threading.Thread]:
    """Have an executor run in a thread, which is asked to end, and joined, at the end of this."""
    thread = threading.Thread(target=executor.run)
    thread.start()
    try:
        yield thread
    finally:
        executor.request_stop(0)
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the executor did not end"


def subscribe_dead_letters(executor: Executor, pid: Pid, wanted: bool = True) -> None:
    """Subscribe a process of a bare executor, as its own message would."""
    executor.send(executor.pid, messages.SubscribeDeadLetters(wanted), sender=pid)


class Turns(Protocol):
    """What does its work in turns, in the thread of the test; its `repr` says how it stands."""

    def turn(self) -> None:
        """Do what there is to do now."""


def turn_until(holds: Callable[[], object], *those: Turns) -> None:
    """Let them do their work until it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, those
        for each in those:
            each.turn()


def descriptors() -> dict[int, str]:
    """What each open descriptor leads to, but for the one that is opened here."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(number)] = os.readlink(f"/proc/self/fd/{number}")
    return found


def eventfds() -> list[int]:
    return [number for number, link in descriptors().items() if link == "anon_inode:[eventfd]"]


@contextlib.contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Ports of 127.0.0.1 that nobody is given meanwhile, and where nobody listens.

    Who binds to one of them by its number and with SO_REUSEADDR, as a node does, gets it.
    """
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in held:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0))
        yield [sock.getsockname()[1] for sock in held]


def until(holds: Callable[[], object]) -> None:
    """Wait for what is told by no event."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.001)


def settle(executor: Executor) -> int:
    """Step until nothing is left to do now; how many deliveries that were."""
    total = 0
    while True:
        total += (delivered := executor.step())
        # One that delivered nothing may have made dead letters.
        if not (delivered or executor.queue_depth or executor.inbox_depth):
            return total


def until_up(node: Node, *others: Node) -> None:
    """Wait until a node sends to these. That the status has a connection comes before that."""
    missing = {other.node_id for other in others}
    with node.mailbox() as box:
        node.subscribe_nodes(box.pid)
        while missing:
            event = box.receive(PATIENCE_S).msg
            if isinstance(event, NodeUp):
                missing.discard(event.node)
