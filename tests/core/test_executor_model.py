"""The compiled executor against the slow one, on scripts that hypothesis writes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rabble import (
    CancelTimer,
    CorrelationId,
    Demonitor,
    Down,
    DownReason,
    Envelope,
    Exit,
    Link,
    Monitor,
    NameTaken,
    Pid,
    Process,
    Spawn,
    SpawnFailed,
    StartTimer,
    Stop,
    Tick,
    Timeout,
    TimerCancelled,
    Unlink,
)
from rabble._core.codec import Codec
from rabble._core.debug import CAPACITIES
from rabble._core.executor import Executor
from rabble.registry import default_registry
from tests.reference.executor import INIT, TERMINATE, Letter, ReferenceExecutor, Script
from tests.support import BARE, HandClock, Witness, bare_executor, settle

NAMES = ["a", "b", "c", "d", "e"]
UNENCODABLE = NotImplemented
TIMERS_MAX = 3
CONTROLS = {
    "stop": Stop,
    "monitor": Monitor,
    "demonitor": Demonitor,
    "link": Link,
    "unlink": Unlink,
}

names = st.sampled_from(NAMES)
numbers = st.integers(1, TIMERS_MAX)
# Such that timers meet each other, the clock's steps, and the ends of the wheel's levels. (One of 0
# that is started just at a tick may fire in it or in the next one.)
delays = st.sampled_from([1, 1, 2, 3, 5, 8, 255, 256, 257, 65_535, 65_536, 70_000])
# Of timers that repeat: of parts of a tick, too.
periods = st.sampled_from([1, 1.5, 2, 2.25, 3, 5, 255.75, 256, 65_536])
# One action of a process: a letter to somebody, or something asked of the executor.
actions = st.one_of(
    st.tuples(st.sampled_from(["say", "say badly"]), names),
    # Around the size of a ring, and past what it grows to; how often the run queue grows while one
    # output is put into it depends on what was delivered before.
    st.tuples(st.just("say often"), names, st.sampled_from([2, 3, 100, 255, 256, 257, 300, 1_000])),
    st.tuples(st.sampled_from(["stop", "monitor", "demonitor", "spawn"]), names),
    st.tuples(st.sampled_from(["link", "link", "unlink", "spawn linked"]), names),
    st.tuples(st.sampled_from(["timer", "alarm"]), numbers, delays),
    st.tuples(st.just("every"), numbers, periods),
    st.tuples(st.just("cancel"), numbers, st.booleans()),
)
# What a process does on its n-th message: some actions, in one of the shapes that receive may
# return; then perhaps it raises half-way.
steps = st.tuples(
    st.lists(actions, max_size=4),
    st.sampled_from(["list", "tuple", "generator", "one", "kept", "raises", "junk"]),
)
scripts = st.fixed_dictionaries({name: st.lists(steps, max_size=6) for name in NAMES})
kick_offs = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["say", "stop", "spawn", "say badly"]), names),
        st.tuples(st.sampled_from(["spawn and stop", "spawn and say"]), names),
        # On behalf of a process, as a service may.
        st.tuples(st.sampled_from(["timer", "alarm"]), names, numbers, delays),
        st.tuples(st.just("every"), names, numbers, periods),
        st.tuples(st.sampled_from(["link", "unlink"]), names, names),
        st.tuples(st.just("wait"), st.sampled_from([1, 400_000, 999_999, 1_000_000])),
        st.tuples(st.just("wait"), delays.map(lambda ms: ms * 1_000_000)),
    ),
    max_size=16,
)
limits = st.fixed_dictionaries({name: st.none() | st.integers(1, 3) for name in NAMES})
with_init = with_terminate = with_traps = st.sets(names)


class Scripted(Process):
    """Does on its n-th message what the script says, and writes down what it was given."""

    def __init__(self, model: Model, name: str) -> None:
        self.model = model
        self.script = model.scripts[name]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: object) -> Any:
        about: Any = getattr(msg, "correlation_id", None)
        if msg == "ring":
            assert isinstance(correlation_id, CorrelationId) and correlation_id.pid == self.pid
        if isinstance(msg, Down):
            msg = ("down", msg.pid.name, msg.reason.kind)
        elif isinstance(msg, Exit):
            msg = ("exit", msg.pid.name, msg.reason.kind)
        elif isinstance(msg, SpawnFailed):
            msg = ("spawn failed", msg.pid.name)
        elif isinstance(msg, Timeout):
            assert about == correlation_id and about.pid == self.pid
            msg = ("timeout", about.request)
        elif isinstance(msg, Tick):
            assert msg.key == correlation_id and msg.key.pid == self.pid
            msg = ("tick", msg.key.request, msg.msg, msg.missed)
        elif isinstance(msg, TimerCancelled):
            assert about == correlation_id and about.pid == self.pid
            msg = ("cancelled", about.request, msg.was_active)
        self.model.trace.append((self.pid.name, msg, sender and sender.name))
        todo, shape = next(self.script, ([], "list"))
        out = [envelope for action in todo for envelope in self.envelopes(*action)]
        if shape == "one" and out:
            return out[0]
        if shape == "generator":
            return (e for e in out)
        if shape == "raises":
            return self.raising(out)
        if shape == "junk":
            return [*out, "junk"]
        if shape == "kept":
            # An instance can be spawned only once.
            self.kept = [*out, *(e for e in out if not isinstance(e.msg, Spawn))]
            return self.kept
        return tuple(out) if shape == "tuple" else out

    def raising(self, out: list[Envelope]) -> Any:
        yield from out
        raise RuntimeError("as the script says")

    def envelopes(self, what: str, about: Any, how: Any = None) -> list[Envelope]:
        if what == "say often":
            return [Envelope(Pid(about, BARE), "said") for _ in range(how)]
        if what in ("say", "say badly"):
            return [Envelope(Pid(about, BARE), UNENCODABLE if what == "say badly" else "said")]
        return [Envelope(self.executor, self.model.control(self.pid, what, about, how))]


class ScriptedWithInit(Scripted):
    def init(self) -> Any:
        return self.receive(INIT, None, None)


class ScriptedToTheEnd(Scripted):
    def terminate(self, reason: DownReason) -> Any:
        assert reason == DownReason("stopped") or reason.kind == "linked"
        return self.receive(TERMINATE, None, None)


def class_of(begins: bool, ends: bool, traps: bool) -> type[Scripted]:
    bases = (ScriptedWithInit,) * begins + (ScriptedToTheEnd,) * ends or (Scripted,)
    return type("ScriptedAs", bases, {"traps_exits": traps})


CLASSES = {ways: class_of(*ways) for ways in itertools.product((False, True), repeat=3)}


def reference_script(remaining: Iterator[Any]) -> Script:
    def run(message: Any, sender: str | None) -> list[Letter]:
        todo, shape = next(remaining, ([], "list"))
        out: list[Letter] = []
        for action in todo:
            if action[0] == "say often":
                out += [(action[1], "said", None)] * action[2]
            elif action[0] in ("say", "say badly"):
                out.append((action[1], UNENCODABLE if action[0] == "say badly" else "said", None))
            else:
                out.append(("executor", action, None))
        if shape in ("raises", "junk"):
            raise RuntimeError
        if shape == "one":
            return out[:1]
        if shape == "kept":
            return out + [x for x in out if x[0] != "executor" or not x[1][0].startswith("spawn")]
        return out

    return run


class Model:
    """Both executors, and what was seen of the compiled one."""

    def __init__(
        self,
        executor: Executor,
        clock: HandClock,
        scripts: dict[str, list[Any]],
        limits: dict[str, int | None],
        with_init: set[str],
        with_terminate: set[str],
        with_traps: set[str],
        strict: bool,
    ) -> None:
        self.executor = executor
        self.clock = clock
        self.begin_ns = clock.ns
        # What a life leaves of its script is the next one's, so that they end.
        self.scripts = {name: iter(script) for name, script in scripts.items()}
        remaining = {name: iter(script) for name, script in scripts.items()}
        self.limits = limits
        self.with_init = with_init
        self.with_terminate = with_terminate
        self.with_traps = with_traps
        self.trace: list[Any] = []
        self.reference = ReferenceExecutor(
            lambda name: (
                reference_script(remaining[name]),
                limits[name],
                name in with_init,
                name in with_terminate,
                name in with_traps,
            ),
            strict,
            lambda message: message != UNENCODABLE,
            CAPACITIES["TURN_DELIVERIES_MAX"],
            CAPACITIES["DUE_QUEUED_MAX"],
        )

    def process(self, name: str) -> Process:
        ways = (name in each for each in (self.with_init, self.with_terminate, self.with_traps))
        return CLASSES[tuple(ways)](self, name)

    def control(self, owner: Pid, what: str, about: Any, how: Any = None) -> Any:
        if what.startswith("spawn"):
            bound = what == "spawn linked"
            return Spawn(
                self.process(about), about, None, self.limits[about], link=bound, monitor=bound
            )
        if what == "timer":
            return StartTimer(CorrelationId(owner, None, about), how)
        if what in ("alarm", "every"):
            return StartTimer(CorrelationId(owner, None, about), how, "ring", what == "every")
        if what == "cancel":
            return CancelTimer(CorrelationId(owner, None, about), acknowledge=how)
        return CONTROLS[what](Pid(about, BARE))

    def spawn(self, name: str) -> None:
        try:
            pid = self.executor.spawn(self.process(name), name, mailbox_max=self.limits[name])
            assert pid == Pid(name, BARE)
        except NameTaken:
            assert not self.reference.spawn(name)
        else:
            assert self.reference.spawn(name)

    def from_outside(self, what: str, about: Any, *how: Any) -> None:
        reference = self.reference
        if what == "wait":
            self.clock.ns += about
            reference.now_ns = self.clock.ns - self.begin_ns
        elif what in ("timer", "alarm", "every", "link", "unlink"):
            owner, message = Pid(about, BARE), (what, *how)
            self.executor.send(self.executor.pid, self.control(owner, *message), sender=owner)
            reference.inbox.append(("executor", message, about))
        if what.startswith("spawn"):
            self.spawn(about)
        if what.endswith("stop"):
            self.executor.send(self.executor.pid, Stop(Pid(about, BARE)))
            reference.inbox.append(("executor", ("stop", about), None))
        elif what.endswith(("say", "badly")):
            message = UNENCODABLE if what == "say badly" else "kick"
            self.executor.send(Pid(about, BARE), message, sender=Pid("outside", BARE))
            reference.inbox.append((about, message, "outside"))

    def settle(self) -> None:
        settle(self.executor)
        self.reference.step()
        while not self.reference.is_at_rest:
            self.reference.step()

    def compare(self) -> None:
        executor, reference = self.executor, self.reference
        assert self.trace == reference.trace
        assert {e.pid.name for e in executor.table.snapshot()} - {"executor"} == {*reference.lives}
        dead: dict[str, int] = {}
        for _, _, reason in reference.dead:
            dead[reason] = dead.get(reason, 0) + 1
        assert {reason.name: n for reason, n in executor.dead_letters.items()} == dead
        assert executor.timers == len(reference.timers)
        assert executor.queue_depth == executor.inbox_depth == 0


@settings(max_examples=250)
@given(
    scripts,
    kick_offs,
    limits,
    with_init,
    with_terminate,
    with_traps,
    st.booleans(),
    st.integers(0, 2_000_000),
)
def test_every_delivery_and_every_loss_is_the_same(
    scripts: dict[str, list[Any]],
    kick_offs: list[tuple[Any, ...]],
    limits: dict[str, int | None],
    with_init: set[str],
    with_terminate: set[str],
    with_traps: set[str],
    strict: bool,
    begin_ns: int,
) -> None:
    clock = HandClock(begin_ns)
    codec = Codec(default_registry) if strict else None
    with bare_executor(clock, witness := Witness(), codec) as executor:
        model = Model(
            executor, clock, scripts, limits, with_init, with_terminate, with_traps, strict
        )
        for name in NAMES:
            model.spawn(name)
        model.settle()
        for kick_off in kick_offs:
            model.from_outside(*kick_off)
            model.settle()
            model.compare()
        # What still runs comes in the end, each in its turn.
        for _ in range(TIMERS_MAX * len(NAMES)):
            model.from_outside("wait", 70_001_000_000)
            model.settle()
        model.compare()
        assert all(isinstance(error, RuntimeError | TypeError) for _, error in witness.errors)
