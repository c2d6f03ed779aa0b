"""The compiled executor against the slow one, on scripts that hypothesis writes."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rabble import (
    Demonitor,
    Down,
    Envelope,
    Monitor,
    NameTaken,
    NodeId,
    Pid,
    Process,
    Stop,
    messages,
)
from rabble._core.control import Control
from rabble._core.executor import Executor
from tests.reference.executor import Letter, ReferenceExecutor

NODE = NodeId("model", "h:1")
NAMES = ["a", "b", "c", "d", "e"]

names = st.sampled_from(NAMES)
# One action of a process: a letter to somebody, or something asked of the executor.
actions = st.one_of(
    st.tuples(st.just("say"), names),
    st.tuples(st.sampled_from(["stop", "monitor", "demonitor"]), names),
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
        st.tuples(st.just("say"), names),
        st.tuples(st.just("stop"), names),
        st.tuples(st.just("spawn"), names),
    ),
    max_size=12,
)
limits = st.fixed_dictionaries({name: st.none() | st.integers(1, 3) for name in NAMES})


class Observer:
    """Takes what the executor reports."""

    def crashed(self, pid: Pid | None, error: BaseException) -> None:
        assert isinstance(error, RuntimeError | TypeError), repr(error)

    def unencodable(self, envelope: Envelope, error: Exception) -> None:
        raise AssertionError("nothing is encoded here")

    def refuse(self, pid: Pid | None = None) -> None:
        raise NameTaken

    def quiet(self) -> bool:
        return True


class Scripted(Process):
    """Does on its n-th message what the script says, and writes down what it was given."""

    def __init__(self, script: list[Any], trace: list[Any]) -> None:
        self.script = iter(script)
        self.trace = trace

    def receive(self, msg: Any, sender: Pid | None, correlation_id: object) -> Any:
        if isinstance(msg, Down):
            msg = ("down", msg.pid.name, msg.reason.kind)
        self.trace.append((self.pid.name, msg, sender and sender.name))
        todo, shape = next(self.script, ([], "list"))
        out = [self.envelope(what, name) for what, name in todo]
        if shape == "one" and out:
            return out[0]
        if shape == "generator":
            return (e for e in out)
        if shape == "raises":
            return self.raising(out)
        if shape == "junk":
            return [*out, "junk"]
        if shape == "kept":
            self.kept = [*out, *out]
            return self.kept
        return tuple(out) if shape == "tuple" else out

    def raising(self, out: list[Envelope]) -> Any:
        yield from out
        raise RuntimeError("as the script says")

    def envelope(self, what: str, name: str) -> Envelope:
        pid = Pid(name, NODE)
        if what == "say":
            return Envelope(pid, "said")
        control = {"stop": Stop, "monitor": Monitor, "demonitor": Demonitor}[what]
        return Envelope(self.executor, control(pid))


def reference_script(script: list[Any]) -> Any:
    remaining = iter(script)

    def run(message: Any, sender: str | None) -> list[Letter]:
        todo, shape = next(remaining, ([], "list"))
        out: list[Letter] = [
            (name, "said", None) if what == "say" else ("executor", (what, name), None)
            for what, name in todo
        ]
        if shape in ("raises", "junk"):
            raise RuntimeError
        if shape == "one":
            return out[:1]
        return out * 2 if shape == "kept" else out

    return run


@settings(max_examples=300)
@given(scripts, kick_offs, limits)
def test_every_delivery_and_every_loss_is_the_same(
    scripts: dict[str, list[Any]],
    kick_offs: list[tuple[str, str]],
    limits: dict[str, int | None],
) -> None:
    trace: list[Any] = []
    executor = Executor(NODE, messages, Process, Observer(), inbox_max=10_000, spin_us=0)
    Control(executor)
    reference = ReferenceExecutor()
    dead: dict[str, int] = {}

    def spawn(name: str) -> None:
        process = Scripted(scripts[name], trace)
        try:
            compiled = executor.spawn(process, name, mailbox_max=limits[name]) == Pid(name, NODE)
        except NameTaken:
            compiled = False
        assert compiled == reference.spawn(name, reference_script(scripts[name]), limits[name])

    def settle() -> None:
        while executor.step():
            pass
        reference.run()

    for name in NAMES:
        spawn(name)
    settle()
    for what, name in kick_offs:
        if what == "spawn":
            spawn(name)
        elif what == "stop":
            executor.send(executor.pid, Stop(Pid(name, NODE)))
            reference.send("executor", ("stop", name), None)
        else:
            executor.send(Pid(name, NODE), "kick", sender=Pid("outside", NODE))
            reference.send(name, "kick", "outside")
        settle()
    assert trace == reference.trace
    assert {e.pid.name for e in executor.table.snapshot()} - {"executor"} == set(reference.scripts)
    for _, _, reason in reference.dead:
        dead[reason] = dead.get(reason, 0) + 1
    assert {reason.name: n for reason, n in executor.dead_letters.items()} == dead
    assert executor.timers == 0
    assert executor.queue_depth == 0
    # An executor and its entries refer to each other: its end lets go of them.
    executor.request_stop(0)
    executor.run()
