"""Each allocation on the way of a message fails once, and many in a row.

The executor may give up, which is its node's failure and says so; it may not crash, hang, lose
count of its processes, or be unable to end.
"""

from __future__ import annotations

import pytest

from tests.isolated.nomemory import available
from tests.isolated.script import FORKS, run
from tests.support import SANITIZED

pytestmark = [
    pytest.mark.skipif(not available(), reason="this Python has no _testcapi"),
    pytest.mark.skipif(SANITIZED, reason="its allocator says it aborts where none is left"),
]

COMMON = """
import logging
from rabble import *
from rabble._core.codec import Codec
from rabble.registry import default_registry
from tests.isolated.nomemory import without_memory
from tests.support import (
    BARE, Does, HandClock, Witness, bare_executor, settle, subscribe_dead_letters,
)

OUTSIDE = Pid("outside", BARE)
TIMER = CorrelationId(Pid("p", BARE), None, 1)

class Node:
    '''An executor, what it is told, and whether it has given up.'''

    def __init__(self, strict=False):
        self.clock = HandClock()
        codec = Codec(default_registry) if strict else None
        self.context = bare_executor(self.clock, Witness(), codec)
        self.executor = self.context.__enter__()
        self.got = []
        self.failed = False
        self.box = self.spawn(lambda process, msg, sender: self.got.append(msg), "box")

    def spawn(self, react, name, **more):
        return self.executor.spawn(Does(react), name, **more)

    def settle(self):
        try:
            for _ in range(1000):
                self.executor.step()
                if not self.executor.queue_depth and not self.executor.inbox_depth:
                    break
        except MemoryError:
            self.failed = True
            raise

def check(node):
    executor = node.executor
    if not node.failed:
        settle(executor)
        # Of those who were there each may have had no memory for what it does itself.
        got = []
        executor.send(node.spawn(lambda process, msg, sender: got.append(msg), "new"), "works")
        settle(executor)
        assert got == ["works"]
    kinds = [entry.kind for entry in executor.table.snapshot()]
    assert executor.processes == kinds.count(0), (executor.processes, kinds)
    assert executor.outside_depth >= 0
    node.context.__exit__(None, None, None)
    assert len(executor.table) == 0 and executor.queue_depth == executor.inbox_depth == 0

def raises(process, msg, sender):
    raise ValueError("x" * 100)

def late(to, count):
    def react(process, msg, sender):
        def generate():
            for n in range(count):
                yield Envelope(to, n)
            raise ValueError
        return generate()
    return react

def send(react, **more):
    def begin():
        node = Node(**more)
        node.pid = node.spawn(lambda p, m, s: react(node)(p, m, s), "p")
        node.executor.send(node.executor.pid, Monitor(node.pid), sender=node.box)
        settle(node.executor)
        node.executor.send(node.pid, 1)
        return node
    without_memory(begin, lambda node: node.settle(), check, most=MOST, step=STEP)

def output(make, **more):
    send(lambda node: lambda process, msg, sender: make(node, process), **more)
"""

SCENARIOS = {
    "one envelope": "output(lambda node, p: Envelope(node.box, 1))",
    "one that is kept": """
output(lambda node, p: setattr(p, 'kept', Envelope(node.box, 1)) or p.kept)
""",
    "a list of 300": "output(lambda node, p: [Envelope(node.box, n) for n in range(300)])",
    "a tuple": "output(lambda node, p: (Envelope(node.box, 1), Envelope(node.box, 2)))",
    "a generator": "output(lambda node, p: (Envelope(node.box, n) for n in range(3)))",
    "a generator that fails late": "send(lambda node: late(node.box, 300))",
    "junk": "output(lambda node, p: [Envelope(node.box, 1), 5])",
    "an exception": "send(lambda node: raises)",
    "strict": "output(lambda node, p: [Envelope(node.box, {'a': [1, 'b']})] * 3, strict=True)",
    "strict and not encodable": "output(lambda node, p: Envelope(node.box, object()), strict=True)",
    "a spawn and a stop": """
def make(node, p):
    child = Does(lambda *a: None, lambda q: Envelope(node.box, 1))
    return [
        Envelope(p.executor, Spawn(child, "child")),
        Envelope(p.executor, Monitor(Pid("child", BARE))),
        Envelope(Pid("child", BARE), 1),
        Envelope(p.executor, Stop(Pid("child", BARE))),
        Envelope(p.executor, Stop(p.pid)),
    ]
output(make)
""",
    "timers": """
def make(node, p):
    node.clock.go_on(5)
    return [
        Envelope(p.executor, StartTimer(TIMER, 0)),
        Envelope(p.executor, StartTimer(TIMER, 1)),
        Envelope(p.executor, StartTimer(TIMER.next_request(), 1)),
        Envelope(p.executor, CancelTimer(TIMER, acknowledge=True)),
    ] if not p.executor is None and not hasattr(p, "done") and not setattr(p, "done", 1) else None
output(make)
""",
    "dead letters": """
def make(node, p):
    subscribe_dead_letters(node.executor, node.box)
    return [Envelope(Pid("nobody", BARE), n) for n in range(3)]
output(make)
""",
    "a mailbox limit": """
def make(node, p):
    return [
        Envelope(p.executor, Spawn(Does(lambda *a: None), "child", mailbox_max=2)),
        *(Envelope(Pid("child", BARE), n) for n in range(5)),
        *(Envelope(node.box, n) for n in range(5)),
    ]
output(make)
""",
    "from another thread": """
def begin():
    node = Node()
    settle(node.executor)
    return node

def attempt(node):
    executor = node.executor
    executor.spawn(Does(lambda *a: None), "child", mailbox_max=3)
    for n in range(300):
        executor.send(node.box, n, sender=OUTSIDE, correlation_id=TIMER)
    subscribe_dead_letters(executor, node.box)
    executor.discard(Pid("child", BARE), None, None)
    node.settle()

without_memory(begin, attempt, check, most=MOST, step=STEP)
""",
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_without_memory_a_delivery_is_made_or_fails(name: str) -> None:
    run("MOST, STEP = 160, 3\n" + COMMON + SCENARIOS[name], *FORKS)


@pytest.mark.soak
@pytest.mark.parametrize("name", SCENARIOS)
def test_without_memory_at_each_allocation(name: str) -> None:
    run("MOST, STEP = 2_000, 1\n" + COMMON + SCENARIOS[name], *FORKS, patience_s=1_800)


NODE = """
import _testcapi, logging, time
import rabble
from rabble import Process
logging.getLogger("rabble").setLevel(1_000)
class P(Process):
    def receive(self, msg, sender, cid):
        if msg is not None:
            kind, k, m = msg
            error = ValueError("made before")
            _testcapi.set_nomemory(k, k + m)
            if kind == "new":
                raise ValueError("made now")
            raise error
        return rabble.Envelope(sender, "pong", correlation_id=cid)
for kind in "made", "new":
    for k in range(0, 40, STEP):
        for m in 1, 40:
            node = rabble.rouse()
            p, other = node.spawn(P(), "p"), node.spawn(P(), "other")
            node.call(p, None), node.call(other, None)
            message = (kind, k, m)
            node.send(p, message)
            # This thread needs no memory now: without any, the interpreter may end itself.
            time.sleep(0.02)
            _testcapi.remove_mem_hooks()
            try:
                alive = node.call(other, None, 30)
            except (rabble.RabbleError, MemoryError):
                alive = None
            asked = node.status in ("stopping", "stopped")
            assert not asked, (kind, k, m, "ends, and nobody has asked for it")
            assert alive == "pong" or node.status == "failed" or node.call(other, None) == "pong"
            try:
                node.shutdown()
            except rabble.ShutdownTimeout:
                assert node.status == "failed"
print("done")
"""


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.soak)])
def test_a_node_whose_receive_left_no_memory_lives_or_says_that_it_failed(step: int) -> None:
    assert run(f"STEP = {step}\n" + NODE, patience_s=600).strip().endswith("done")
