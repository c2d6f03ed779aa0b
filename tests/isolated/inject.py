"""Raises once at each place of a thread of a node, and looks at what the node makes of it.

A place is where a function of rabble is called, begins a line, or returns, in a given thread: so
whatever that thread calls, of rabble or not, fails once before it has done anything, and what is
rabble's once afterwards. Of the frames of `rabble.steps` there is nothing to be said: they are what
everything else stands on.

`python -m tests.isolated.inject ROLE [SECONDS [SEED]]` takes the places in an order of its own,
until all are done or the time is over.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import logging
import math
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import rabble
from rabble import (
    Envelope,
    Limits,
    Mesh,
    Node,
    NodeStopped,
    RabbleError,
    Service,
    ServiceHandler,
    ShutdownTimeout,
    TlsConfig,
    _shutdown,
    cli,
)
from tests.support import PATIENCE_S, Does, Echo, descriptors, until

PACKAGE = os.path.dirname(rabble.__file__) + os.sep
UNTRACED = (os.path.join(PACKAGE, "steps.py"), os.path.join(PACKAGE, "__init__.py"))
Place = tuple[str, int, str]


#: The functions that take what any step raises which they call, by their files.
GUARDS = {
    ("cluster/failures.py", "attempt"),
    ("cluster/server.py", "_do_commands"),
    ("cluster/io/resolver.py", "_work"),
    ("cluster/io/tls_proxy.py", "_carry"),
    ("reports.py", "_look"),
}
#: What these call besides: the end, and the notes of what has passed.
UNGUARDED = {
    ("cluster/control_plane.py", "stop"),
    ("cluster/failures.py", "passed"),
    ("cluster/io/tls_proxy_pump.py", "finish"),
}


def is_guarded(stack: list[tuple[str, str]]) -> bool:
    """Whether what is raised at the first of these functions is the end of a single thing.

    A thread's own loop, and the steps of its end, are what it stands on: what is raised there is
    the end of the node.
    """
    return not GUARDS.isdisjoint(stack[1:]) and UNGUARDED.isdisjoint(stack)


def stack_of(frame: FrameType | None) -> list[tuple[str, str]]:
    """The files and names of functions, the innermost first."""
    stack = []
    while frame is not None:
        stack.append((frame.f_code.co_filename.removeprefix(PACKAGE), frame.f_code.co_name))
        frame = frame.f_back
    return stack


class Injected(BaseException):
    """No handler for usual exceptions takes this one."""


class InjectedError(Exception):
    """Handlers for all usual exceptions take this one."""


class Tracer:
    """Follows the threads of one role, and raises at one place, once."""

    def __init__(self, role: str, wanted: Place | None, error: type[BaseException]) -> None:
        self.seen: dict[Place, None] = {}
        self.raised = False
        self.failed = False
        self.stack: list[tuple[str, str]] = []
        self._name = f"rabble:a:{role}"
        self._wanted = wanted
        self._error = error

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if threading.current_thread().name != self._name:
            return None
        return self._follow(frame, event, argument)

    def _follow(self, frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(PACKAGE) or file.endswith((".pyx", ".pxd")) or file in UNTRACED:
            return None
        if event != "exception":
            place = (file.removeprefix(PACKAGE), frame.f_lineno, event)
            self.seen[place] = None
            if place == self._wanted and not self.raised:
                self.raised = True
                self.stack = stack_of(frame)
                raise self._error(f"at {place}")
        return self._follow


class Upper(ServiceHandler):
    def init(self, service: Service) -> None:
        # So that the thread is found by its name.
        pass

    def handle_envelope(self, envelope: Envelope, service: Service) -> Any:
        if envelope.msg == "boom":
            raise LookupError("as was asked for")
        if envelope.sender is None:
            return None
        return Envelope(
            envelope.sender, envelope.msg.upper(), correlation_id=envelope.correlation_id
        )


class Peers:
    """The other node, which lives on, and what it takes to meet it."""

    def __init__(self, folder: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            assert cli.main(["cert", "ca", str(folder)]) == 0
            for name in ("a", "b"):
                assert cli.main(["cert", "node", str(folder), name]) == 0
        self._folder = folder
        self.node = rabble.rouse("b@127.0.0.1:0", mesh=Mesh(tls=self._tls("b")))
        self.echo = self.node.spawn(Echo(), "echo")

    def _tls(self, name: str) -> TlsConfig:
        return TlsConfig(
            self._folder / f"{name}.pem", self._folder / f"{name}.key", self._folder / "ca.pem"
        )

    def mesh(self) -> Mesh:
        port = self.node.node_id.addr.rpartition(":")[2]
        return Mesh(tls=self._tls("a"), seeds=[f"localhost:{port}"])


def attempt(what: Callable[[], Any]) -> Any:
    """Something may fail, in a way that is the user's to handle; it must not hang."""
    try:
        return what()
    except NodeStopped:
        raise
    except (RabbleError, TimeoutError) as error:
        return error


def live(node: Node, peers: Peers | None) -> None:
    """A short life, in which all that a node does for its user happens once."""
    echo = node.spawn(Echo(), "echo")
    attempt(lambda: node.call(echo, 1, 0.3))
    crashes = node.spawn(Does(lambda process, msg, sender: {}[msg]), "crashes")
    attempt(lambda: node.call(crashes, 1, 0.3))
    service = attempt(lambda: node.register_service(Upper, "service", on_crash="restart"))
    if isinstance(service, Service):
        attempt(lambda: node.call(service.pid, "a", 0.3))
        attempt(lambda: node.call(service.pid, "boom", 0.3))
        attempt(lambda: node.call(service.pid, "b", 0.3))
    attempt(lambda: node.export("echo", Echo))
    attempt(lambda: node.spawn_on(node.node_id, "echo", "another", timeout=0.3))
    attempt(lambda: node.spawn_on(node.node_id, "none", "another", timeout=0.3))
    box = attempt(node.mailbox)
    if isinstance(box, rabble.Mailbox):
        attempt(lambda: box.send(echo, 1))
        attempt(lambda: box.receive(0.3))
    if peers is not None:
        attempt(lambda: node.subscribe_nodes(box.pid))
        # Nobody is there, but the name has to be looked up.
        attempt(lambda: node.join("c@localhost:1"))
        attempt(lambda: box.receive(0.3))
        attempt(lambda: node.call(peers.echo, "x" * 100_000, 0.3))
        attempt(lambda: node.leave())
        attempt(lambda: box.receive(0.2))


def works(node: Node) -> bool:
    """Whether a node that says that it runs, does."""
    try:
        return bool(node.call(node.spawn(Echo(), "works"), 1, PATIENCE_S) == 1)
    except RabbleError:
        return False


def threads() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("rabble:a:"))


def once(
    role: str, peers: Peers | None, wanted: Place | None, error: type[BaseException]
) -> Tracer:
    """One life of a node, and what must hold whatever was raised in it."""
    dead: list[Any] = []
    threading.excepthook = dead.append
    tracer = Tracer(role, wanted, error)
    threading.settrace(tracer)
    node = rabble.rouse(
        "a@127.0.0.1:0",
        limits=Limits(shutdown_ms=int(PATIENCE_S * 1_000)),
        mesh=None if peers is None else peers.mesh(),
    )
    with contextlib.suppress(NodeStopped):
        live(node, peers)
    said = node.status
    if said == "running" and not works(node):
        said = node.status
        assert said != "running", "says that it runs, and does nothing"
    if said == "failed":
        # It ends by itself; and says by which exception, a moment after it says that it failed.
        until(lambda: node._runtime.ended.closed)
        until(lambda: error.__name__ in (node.failure or ""))
    began = time.monotonic()
    try:
        node.shutdown()
    except ShutdownTimeout as failure:
        raise AssertionError(f"it does not end: {failure}") from None
    assert time.monotonic() - began < PATIENCE_S
    assert node.status in ("stopped", "failed"), node.status
    assert not dead or node.status == "failed", dead
    assert (node.status == "failed") == (node.failure is not None)
    assert node.failure is None or error.__name__ in node.failure, node.failure
    until(lambda: not threads())
    assert node._teardown not in _shutdown.running
    assert len(node._runtime.calls) == 0
    tracer.failed = node.status == "failed"
    return tracer


def every_place(role: str, seconds: float, seed: int) -> None:
    logging.getLogger("rabble").addHandler(logging.NullHandler())
    logging.getLogger("rabble").propagate = False
    logging.raiseExceptions = False
    with contextlib.ExitStack() as at_end:
        peers = None
        if role in ("cluster", "tls", "names", "seeds"):
            folder = at_end.enter_context(tempfile.TemporaryDirectory())
            peers = Peers(Path(folder))
            at_end.callback(peers.node.shutdown)
        places: dict[Place, None] = {}
        for _ in range(3):
            places.update(once(role, peers, None, Injected).seen)
        order = sorted(places)
        random.Random(seed).shuffle(order)
        gc.collect()
        before = len(descriptors())
        began = time.monotonic()
        count = raised = failed = 0
        wrong: list[Place] = []
        for place in order:
            if time.monotonic() - began > seconds:
                break
            error = (Injected, InjectedError)[count % 2]
            faulthandler.dump_traceback_later(3 * PATIENCE_S, exit=True)
            try:
                tracer = once(role, peers, place, error)
            except BaseException:
                print("where:", place, error.__name__, flush=True)
                raise
            count += 1
            raised += tracer.raised
            failed += tracer.failed
            if tracer.failed and is_guarded(tracer.stack):
                wrong.append(place)
        faulthandler.cancel_dump_traceback_later()
        # The peer may be about to close its side of a connection. And three places are between
        # the moment in which a number has no owner any more and that in which it has the next:
        # there it is rather lost than closed twice.
        until(lambda: gc.collect() >= 0 and len(descriptors()) <= before + 2 + 3)
    print(f"{role}: {count} of {len(order)} places, {raised} met again, {failed} end the node")
    assert raised * 10 > count > 0, "few of the places are met again"
    assert not wrong, f"these ended the node, and are about a single thing: {wrong}"


if __name__ == "__main__":
    every_place(
        sys.argv[1],
        float(sys.argv[2]) if len(sys.argv) > 2 else math.inf,
        int(sys.argv[3]) if len(sys.argv) > 3 else time.time_ns(),
    )
