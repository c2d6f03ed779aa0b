"""What `test_every_type` does to one extension type of the core, in a process of its own.

    python -m tests.isolated.everything MODULE.CLASS REPORT

Each use of it is written to REPORT before it is made: when the process dies, its last line says of
what. A use may return or raise whatever it likes; whatever does neither, is what is looked for.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import gc
import importlib
import io
import itertools
import math
import operator
import os
import pickle
import pkgutil
import random
import resource
import select
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import rabble
import rabble._core
from rabble import CorrelationId, Envelope, MessageRegistry, NodeId, Pid, messages
from rabble.process import Process
from tests.support import Echo, Witness, bare_executor

#: How long all uses of one type may take; far more than they need, since a machine may stall.
PATIENCE_S = 120

#: How long one use may wait: a signal handler then raises in it.
USE_S = 2.0

#: Methods that never return and look for no signal by themselves, by what ends them.
ENDLESS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "poller.Poller.run": ("stop", ()),
    "executor.Executor.run": ("request_stop", (0,)),
}

CORE = "rabble._core."


def core_types() -> dict[str, type]:
    """Every extension type of the core: `module.Class` to itself."""
    found = {}
    for info in pkgutil.iter_modules(rabble._core.__path__):
        module = importlib.import_module(CORE + info.name)
        for name, value in vars(module).items():
            is_static = isinstance(value, type) and not value.__flags__ & 1 << 9
            if is_static and value.__module__ == module.__name__:
                found[f"{info.name}.{name}"] = value
    return found


# What they are used with.


class Raises:
    """Whatever is asked of it, it raises what ends interpreters and threads."""

    def _raise(self, *args: Any) -> Any:
        raise SystemExit("asked")

    __str__ = __repr__ = __hash__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = _raise
    __len__ = __iter__ = __next__ = __getitem__ = __contains__ = __call__ = __bool__ = _raise
    __int__ = __float__ = __index__ = __bytes__ = __format__ = __reduce_ex__ = _raise
    __add__ = __radd__ = __enter__ = __length_hint__ = __sizeof__ = __buffer__ = _raise
    __class__ = property(_raise)  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        raise SystemExit(name)


class Text(str):
    """A str that is none to whoever asks it."""

    __str__ = __repr__ = __hash__ = __eq__ = encode = partition = split = Raises._raise


class Number(int):
    __int__ = __index__ = __hash__ = __eq__ = __lt__ = __le__ = __add__ = Raises._raise
    bit_length = Raises._raise


class Bytes(bytes):
    __len__ = __getitem__ = __iter__ = __hash__ = __eq__ = Raises._raise


class Listed(list):  # type: ignore[type-arg]
    __len__ = __getitem__ = __iter__ = Raises._raise


class Mapped(dict):  # type: ignore[type-arg]
    __len__ = __getitem__ = __iter__ = get = pop = items = Raises._raise


class Odd(type):
    """A class that has no name and no hash."""

    __hash__ = __eq__ = __call__ = Raises._raise
    __name__ = property(Raises._raise)  # type: ignore[assignment]


class OddClass(metaclass=Odd):
    pass


class Liar:
    """Says that it is of another class, whose memory it has not."""

    def __init__(self, cls: type) -> None:
        self._cls = cls

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._cls


def failing() -> Iterator[Any]:
    yield 1
    raise SystemExit("late")


NODE = NodeId("n", "h:1")
PID = Pid("p", NODE)


def plain_values() -> list[Any]:
    """Of no type of the core."""
    return [
        *(None, True, 0, 1, -1, 7, 255, 256, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, -(2**63)),
        *(2**64 - 1, 2**64, 10**400, -(10**400), 1.5, -0.0, 1e300, math.inf, -math.inf, math.nan),
        *(1j, "", "x", "a::b", "\ud800", "\0", "n@h:1", "p::n@h:1", "é" * 300, "x" * 70_000),
        *(b"", b"x", bytes(6), b"\xff" * 64, bytes(70_000), bytearray(b"xy"), memoryview(b"z")),
        *((), (1, 2), [], [PID], {}, {"x": 1}, {PID: {PID: True}}, set(), frozenset({"x"}), ...),
        *(object(), object, type, int, len, lambda *args, **more: None, failing(), range(3)),
        *(Raises(), Text("x"), Text("p::n@h:1"), Number(3), Bytes(b"x"), Listed([1]), Mapped()),
        *(OddClass, Liar(Pid), Liar(Process), Liar(int), sys, messages, ValueError("x"), Echo()),
    ]


def made() -> dict[type, list[Any]]:
    """Instances of the core's types that work."""
    from rabble._core.codec import Codec
    from rabble._core.decoder import Decoder
    from rabble._core.encoder import Encoder
    from rabble._core.idle import Idle
    from rabble._core.inbox import Inbox
    from rabble._core.poller import Poller
    from rabble._core.queue import EnvelopeQueue
    from rabble._core.routes import Routes
    from rabble._core.session import Session
    from rabble._core.timers import TimerWheel

    registry = MessageRegistry()
    codec = Codec(registry)
    link = Session(NODE, NodeId("m", "h:2"), 7, PID, codec=codec)
    poller = Poller(
        heartbeat_ms=1000, frame_bytes_max=1 << 20, queue_bytes_max=1 << 20, partial_ms_max=1000
    )
    near, far = socket.socketpair()
    near.setblocking(False)
    connection = poller.attach(near.detach(), link)
    far.detach()
    wheel = TimerWheel()
    queue = EnvelopeQueue()
    queue.put(Envelope(PID, 1, PID))
    inbox = Inbox(5)
    inbox.try_put(Envelope(PID, 1, PID))
    roots = [
        *(NODE, PID, CorrelationId(PID, 1, 2), Envelope(PID, "x", PID, CorrelationId(PID))),
        *(codec, link, poller, connection, wheel, wheel.start(PID, None, 5), queue, inbox),
        *(Idle(0), Routes(poller), registry, Pid("p", NODE, "g")),
    ]
    with contextlib.suppress(TypeError):
        roots.append(Encoder())
    with contextlib.suppress(TypeError):
        roots.append(Decoder())
    return reached(roots)


def reached(roots: list[Any]) -> dict[type, list[Any]]:
    """The instances of the core's types that lead from these to each other; some of each."""
    types = set(core_types().values())
    found: dict[type, list[Any]] = {}
    seen: set[int] = set()
    waiting = list(roots)
    while waiting and len(seen) < 20_000:
        value = waiting.pop(0)
        if id(value) in seen or isinstance(value, type) or value is sys.modules:
            continue
        seen.add(id(value))
        if type(value) in types:
            some = found.setdefault(type(value), [])
            if len(some) < 2:
                some.append(value)
        elif isinstance(value, type(sys)):
            continue
        waiting.extend(gc.get_referents(value))
    return found


# How they are used.


class Attack:
    def __init__(self, name: str, report: int) -> None:
        self.name = name
        self.cls = core_types()[name]
        self.report = report
        self.uses = 0
        self.stage = ""

    def use(self, what: str, call: Callable[[], object]) -> object:
        """One use: it returns, or raises."""
        self.uses += 1
        os.write(self.report, f"{self.stage}: {what}\n".encode(errors="replace"))
        signal.setitimer(signal.ITIMER_REAL, USE_S)
        try:
            return call()
        except BaseException:
            return None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def blank(self) -> Any:
        """By `__new__` alone, if that works."""
        return self.use("__new__(cls)", lambda: self.cls.__new__(self.cls))

    def calls(self, what: str, call: Callable[..., object], values: list[Any]) -> None:
        """With no argument, with each, and with some of the combinations."""
        rng = random.Random(what)
        self.use(f"{what}()", call)
        for n, value in enumerate(values):
            self.use(f"{what}(#{n})", lambda value=value: call(value))
        for size, times in ((2, 60), (3, 40), (4, 30), (5, 20), (8, 10)):
            for _ in range(times):
                chosen = [rng.randrange(len(values)) for _ in range(size)]
                self.use(
                    f"{what}{chosen}", lambda chosen=chosen: call(*(values[n] for n in chosen))
                )
        self.use(f"{what}(**)", lambda: call(nothing_has_this=1))

    def new(self, values: list[Any]) -> None:
        """Making one, in each way; what comes of it is used a little."""
        self.calls("cls", self.cls, values)
        self.calls("__new__", lambda *args: self.cls.__new__(self.cls, *args), values[:40])
        self.use("__new__(object)", lambda: object.__new__(self.cls))
        self.use("__new__(int)", lambda: self.cls.__new__(int))  # type: ignore[call-overload]
        self.use("subclass", lambda: type("Sub", (self.cls,), {})())
        self.use("set on the class", lambda: setattr(self.cls, "x", 1))
        self.use("del on the class", lambda: delattr(self.cls, "__init__"))
        for other in (int, tuple, Envelope, Exception):
            self.use(f"with {other}", lambda other=other: type("Both", (self.cls, other), {}))

    def slots(self, it: Any, values: list[Any]) -> None:
        for one in (
            *(len, iter, next, hash, repr, str, format, bool, int, float, complex, bytes, list),
            *(operator.index, operator.neg, operator.pos, abs, operator.invert, operator.not_),
            *(reversed, sorted, sum, max, dir, vars, memoryview, sys.getsizeof, weakref.ref, it_is),
            *(
                copy.copy,
                copy.deepcopy,
                gc.get_referents,
                gc.is_tracked,
                gc.get_referrers,
                callable,
            ),
            *(operator.length_hint, weakref.WeakSet, aiter, id, type, io.BytesIO, set, tuple),
        ):
            self.use(getattr(one, "__name__", str(one)), lambda one=one: one(it))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            self.use(f"pickle {protocol}", lambda p=protocol: pickle.loads(pickle.dumps(it, p)))
        for n, value in enumerate([it, *values]):
            for two in (
                *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
                *(
                    operator.contains,
                    operator.getitem,
                    operator.delitem,
                    operator.add,
                    operator.sub,
                ),
                *(operator.mul, operator.mod, operator.and_, operator.or_, pow, divmod),
                *(operator.iadd, isinstance, operator.matmul),
            ):
                self.use(f"{two.__name__} #{n}", lambda two=two, v=value: two(it, v))
                self.use(f"r{two.__name__} #{n}", lambda two=two, v=value: two(v, it))
            self.use(f"setitem #{n}", lambda v=value: operator.setitem(it, v, v))
            self.use(f"hasattr #{n}", lambda v=value: getattr(it, v))
        self.use("__class__", lambda: setattr(it, "__class__", Envelope))
        self.use("__dict__", lambda: it.__dict__)
        self.use("with", lambda: enter(it))

    def attributes(self, it: Any, values: list[Any]) -> None:
        for name in dir(self.cls):
            full = f"{self.name}.{name}"
            if name in ("__class__", "__subclasshook__", "__init_subclass__"):
                continue
            self.use(f"del {name}", lambda name=name: delattr(it, name))
            for n, value in enumerate(values[::6]):
                self.use(f"set {name} #{n}", lambda name=name, v=value: setattr(it, name, v))
            got = self.use(f"get {name}", lambda name=name: getattr(it, name))
            if callable(got):
                if full in ENDLESS:
                    end, args = ENDLESS[full]
                    self.use(end, lambda end=end, args=args: getattr(it, end)(*args))
                self.calls(name, got, values)
                self.calls(f"cls.{name}", getattr(self.cls, name), values[:20])

    def all_of(self, stage: str, it: Any, values: list[Any]) -> None:
        self.stage = stage
        self.slots(it, values)
        self.attributes(it, values)
        self.slots(it, values[:20])


def it_is(it: Any) -> object:
    match it:
        case Envelope() | Pid() | NodeId() | CorrelationId():
            return True
        case [*_] | {"x": _}:
            return False
    return None


def enter(it: Any) -> None:
    with it:
        pass


def too_long(number: int, frame: object) -> None:
    # Again and again, should what is waited in swallow it.
    signal.setitimer(signal.ITIMER_REAL, USE_S)
    raise TimeoutError("that use waited")


def attack_in_child(attack: Attack, stage: str, its: list[Any], values: list[Any]) -> None:
    """The same in a forked child, whose parent's threads are not there."""
    child = os.fork()
    if child == 0:
        for it in its:
            attack.all_of(stage, it, values)
        os._exit(0)
    # The watchdog of this process has no thread in that one.
    ended = os.pidfd_open(child)
    if not select.select([ended], [], [], PATIENCE_S / 2)[0]:
        os.kill(child, signal.SIGABRT)
    status = os.waitpid(child, 0)[1]
    if status:
        attack.stage = f"{stage} ended by {status}"
        os.write(1000, f"{attack.stage}\n".encode())
        os._exit(1)


def main(name: str, path: str) -> None:
    # Uses may close any descriptor: of this process they close those below, never these.
    report = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(report, 1000)
    os.dup2(2, 1001)
    os.close(report)
    faulthandler.enable(1001, all_threads=False)
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True, file=1001)
    sys.stderr = os.fdopen(1001, "w", closefd=False)
    empty = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(empty, fd)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, too_long)
    sys.unraisablehook = lambda *args: None
    random.seed(1)

    attack = Attack(name, 1000)
    there = made()
    good = list(itertools.chain.from_iterable(there.values()))
    values = [*plain_values(), *good]
    attack.stage = "new"
    blank = attack.blank()
    if blank is not None:
        values.append(blank)
    attack.new(values)
    attack.stage = "blank"
    if blank is not None:
        attack.all_of("blank", blank, values)
    for it in there.get(attack.cls, []):
        attack.all_of("alone", it, values)

    attack.stage = "executor"
    # What was done to it may be what its own end fails of.
    with contextlib.suppress(Exception), bare_executor(witness=Witness()) as executor:
        executor.spawn(Echo(), "echo")
        executor.step()
        mine = reached([executor]).get(attack.cls, [])
        for it in mine:
            attack.all_of("executor", it, values)
    for it in mine:
        attack.all_of("executor ended", it, values)

    attack.stage = "rouse"
    node = rabble.rouse(mesh=rabble.Mesh())
    node.spawn(Echo(), "echo")
    box = node.mailbox()
    mine = reached([node, box]).get(attack.cls, [])
    if mine:
        attack_in_child(attack, "forked", mine, values)
    attack.stage = "shutdown"
    node.shutdown()
    assert not [t for t in threading.enumerate() if t.name.startswith("rabble:")]
    for it in mine:
        attack.all_of("shut down", it, values)
    attack.stage = "end"
    del mine, good, values, there, blank, node, box
    gc.collect()
    os.write(1000, f"done {attack.uses}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
