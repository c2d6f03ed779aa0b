"""The application that every node of a fault test runs.

    python -m tests.faults.mesh_app '{"name": "n1", "addr": "h:1", "nodes": [...], ...}'

Its processes send random traffic to those of all nodes, and what the node sees goes into a log of
`tests.faults.history`. It is told what to do by lines of standard input and answers each with one
line that begins with `= `; what happens by itself are lines that begin with `! ` and end with the
monotonic time, which is the same for all processes of a machine.

A node sends to a peer only when that has said that its processes are there: between `rouse` and its
first `spawn` a node that was started again is reached already, and nobody would see what it drops.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

import rabble
from rabble import Envelope, Node, NodeId, Output, Pid, Process, messages
from tests.faults.history import Log
from tests.faults.linked_people import linked_people
from tests.faults.people import GROUPS, NAMES, People, is_planned
from tests.support import TINY

SENDERS = ("s1", "s2", "s3")
RECEIVERS = ("r1", "r2")
#: Nobody has this name: what is sent there becomes a dead letter at the receiver.
NOBODY = "nobody"
#: The tiny build sends seven bytes at a time: less is said there, and that in smaller parts.
SLOWER = 4 if TINY else 1
PARTS = {"fragment_bytes_max": 2_000} if TINY else {}
SMALL_BYTES, MIDDLE_BYTES, LARGE_BYTES = (30, 600, 2_200) if TINY else (300, 20_000, 70_000)
CHUNK = 64
#: A longer body repeats them: no two of its fragments are the same, and it is made quickly.
RANDOM_BYTES_MAX = (1 << 20) - 1


#: What a parcel weighs of which nobody has said so.
UNWEIGHED = -1


class Parcel:
    """A typed message, as most are."""

    stamp: Any
    body: bytes


class WeighedParcel:
    """The same class in the next version of the application. It weighs what its number is."""

    stamp: Any
    body: bytes
    weight: int = UNWEIGHED


@rabble.message(name="faults.hello")
class Hello:
    """The sender's processes are there, and it wants to know whether the receiver's are.

    The first of the two says it in vain; so it is answered.
    """

    incarnation: int
    asks: bool


@rabble.message(name="faults.flush")
class Flush:
    """Asks for `Flushed`, behind all that was sent in the lane that it goes by."""

    number: int
    large: bool
    filling: bytes


@rabble.message(name="faults.flushed")
class Flushed:
    number: int
    large: bool


@rabble.message(name="faults.command")
class Command:
    """A line of standard input."""

    words: list[str]


@rabble.message(name="faults.go")
class Go:
    on: bool


@rabble.message(name="faults.flood")
class Flood:
    to: Pid
    left: int
    size: int


class Wall:
    """Stands in for the machine's wall clock, and can be stepped."""

    def __init__(self) -> None:
        self._offset_s = 0.0
        self._seconds, self._ns = time.time, time.time_ns
        time.time, time.time_ns = self.seconds, self.ns  # type: ignore[assignment]

    def step(self, seconds: float) -> None:
        """Have it differ from the machine's by that."""
        self._offset_s = seconds

    def seconds(self) -> float:
        return self._seconds() + self._offset_s

    def ns(self) -> int:
        return self._ns() + round(self._offset_s * 1e9)


class World:
    """What the processes of this node share; all of them run in one thread."""

    def __init__(
        self, log: Log, own: NodeId, nodes: Iterable[NodeId], wall: Wall, version: int = 1
    ) -> None:
        self.log = log
        self.wall = wall
        #: Those that ask, watch and so on, if there are any.
        self.people: People | None = None
        self.own = own
        self.nodes = list(nodes)
        self.version = version
        declare = rabble.message(name="faults.parcel")
        self.parcel_class: Any = declare(Parcel) if version == 1 else declare(WeighedParcel)
        #: Weights that arrived: "right", "none", which the older version says, or "wrong".
        self.weights: collections.Counter[str] = collections.Counter()
        self.up: dict[str, int] = {}
        #: Peers whose processes are there, in which incarnation.
        self.ready: dict[str, int] = {}
        self.alone = False
        #: Messages so far, by the name of the node that they came from.
        self.heard: collections.Counter[str] = collections.Counter()
        self.busy = True

    def known(self, name: str) -> int | None:
        return self.log.incarnation if name == self.own.name else self.up.get(name)

    def parcel(self, sender: Pid, to: Pid, body: bytes, shape: int = 0) -> Envelope:
        stamp = self.log.sent(str(sender), str(to), body, self.known(to.node.name))
        msg: Any = self.parcel_class(stamp, body)
        if self.version > 1:
            msg = self.parcel_class(stamp, body, stamp[3])
        if shape == 1:
            msg = {"stamp": list(stamp), "body": body, "more": [1, 2.5, None, "é", {"a": True}]}
        elif shape == 2:
            msg = [list(stamp), body]
        return Envelope(to, msg)


def opened(msg: Any) -> tuple[Any, bytes] | None:
    """Stamp and body of what `World.parcel` made; None of anything else."""
    if isinstance(msg, dict):
        return (msg["stamp"], msg["body"]) if "stamp" in msg else None
    if isinstance(msg, list):
        return msg[0], msg[1]
    return (msg.stamp, msg.body) if hasattr(msg, "stamp") else None


class Receiver(Process):
    def __init__(self, world: World) -> None:
        self.world = world

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Output:
        found = opened(msg)
        assert found is not None
        self.world.log.received(found[0], str(self.pid), found[1])
        weight = getattr(msg, "weight", None)
        if weight is not None:
            number = found[0][3]
            known = {number: "right", UNWEIGHED: "none"}
            self.world.weights[known.get(weight, "wrong")] += 1
        if sender is not None:
            self.world.heard[sender.node.name] += 1
        return None


class Sender(Process):
    """A few messages every few milliseconds, to anybody."""

    def __init__(self, world: World, every_ms: float, large: float) -> None:
        self.world = world
        self.every_ms = every_ms
        self.large = large
        self.on = False

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Output:
        world = self.world
        out: list[Envelope] = []
        if isinstance(msg, Go):
            started = msg.on and not self.on
            self.on = msg.on
            if not started:
                return out
        elif isinstance(msg, Flood):
            for _ in range(min(msg.left, CHUNK)):
                body = self.random.randbytes(min(msg.size, RANDOM_BYTES_MAX))
                body = (body * (msg.size // RANDOM_BYTES_MAX + 1))[: msg.size]
                out.append(world.parcel(self.pid, msg.to, body))
            if msg.left > CHUNK:
                out.append(Envelope(self.pid, Flood(msg.to, msg.left - CHUNK, msg.size)))
            else:
                out.append(Envelope(Pid("watch", world.own), Flood(msg.to, 0, 0)))
            return out
        if not self.on:
            return out
        for _ in range(self.random.randint(1, 4)):
            node = self.random.choice(world.nodes)
            name = node.name
            if name != world.own.name:
                if world.alone:
                    continue
                if name in world.up:
                    if world.ready.get(name) != world.up[name]:
                        continue
                elif self.random.random() > 0.1:
                    continue
            lot = self.random.random()
            size = self.random.randint(0, SMALL_BYTES)
            name = NOBODY if self.random.random() < 0.02 else self.random.choice(RECEIVERS)
            if lot < self.large:
                size = self.random.randint(LARGE_BYTES, 3 * LARGE_BYTES)
            elif lot < 0.1:
                size = self.random.randint(SMALL_BYTES, MIDDLE_BYTES)
            body = self.random.randbytes(size)
            out.append(world.parcel(self.pid, Pid(name, node), body, self.random.randrange(3)))
        wait_ms = self.random.uniform(0.5, 1.5) * self.every_ms * SLOWER
        timer = rabble.CorrelationId(self.pid)
        out.append(Envelope(self.executor, messages.StartTimer(timer, wait_ms)))
        return out


def p99_and_most(values: list[float]) -> str:
    ordered = sorted(values) or [0.0]
    return f"{ordered[len(ordered) * 99 // 100]:.3f} {ordered[-1]:.3f}"


class Canary(Process):
    """Measures by how much timers are late."""

    EVERY_MS = 10

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self.due = 0.0

    def init(self) -> Output:
        return self.arm()

    def arm(self) -> Envelope:
        self.due = time.monotonic() + self.EVERY_MS / 1000
        timer = rabble.CorrelationId(self.pid)
        return Envelope(self.executor, messages.StartTimer(timer, self.EVERY_MS))

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Output:
        self.late_ms.append((time.monotonic() - self.due) * 1000)
        return self.arm()


@rabble.message(name="faults.probe")
class Probe:
    number: int
    asks: bool


class Prober(Process):
    """Measures how long a peer's one takes to answer small messages."""

    EVERY_MS = 10

    def __init__(self) -> None:
        self.to: Pid | None = None
        self.asked_at: dict[int, float] = {}
        self.took_ms: list[float] = []
        self.count = 0

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Output:
        now = time.monotonic()
        match msg:
            case Probe(number, True):
                assert sender is not None
                return Envelope(sender, Probe(number, False))
            case Probe(number, False):
                self.took_ms.append((now - self.asked_at.pop(number)) * 1000)
                return None
        if self.to is None:
            return None
        self.count += 1
        self.asked_at[self.count] = now
        timer = rabble.CorrelationId(self.pid)
        return [
            Envelope(self.to, Probe(self.count, True)),
            Envelope(self.executor, messages.StartTimer(timer, self.EVERY_MS)),
        ]

    def stop(self) -> str:
        """Ask no more: how many were answered, p99 and the most, those without an answer too."""
        self.to = None
        now = time.monotonic()
        took = self.took_ms + [(now - at) * 1000 for at in self.asked_at.values()]
        return f"{len(self.took_ms)} {p99_and_most(took)}"


class Watch(Process):
    """Follows commands, and logs what the node tells."""

    LOOK_MS = 20
    FLUSH_AGAIN_LOOKS = 25

    def __init__(
        self, world: World, node: Node, canary: Canary, prober: Prober, seeds: list[str]
    ) -> None:
        self.world = world
        self.node = node
        self.canary = canary
        self.prober = prober
        self.seeds = seeds
        #: What is to become true, and what is said then.
        self.awaited: list[tuple[Callable[[], bool], str]] = []
        #: The number of the flush that is under way; at which looks it began and is to be repeated.
        self.flushes = 0
        self.flush_began = self.flush_again = 0
        self.unflushed: set[tuple[str, bool]] = set()
        self.asked: list[Envelope] = []
        self.looks = 0
        self.removed = False
        self.rejoining = False
        self.dead: collections.Counter[str] = collections.Counter()
        self.down: dict[str, float] = {}
        #: What is to be known of the directory, by name or group, and what is known of it.
        self.directory: dict[str, dict[str, Any]] = {"names": {}, "groups": {}}

    def init(self) -> Output:
        return [
            Envelope(self.executor, messages.SubscribeNodes()),
            Envelope(self.executor, messages.StartTimer(self.timer(), self.LOOK_MS)),
        ]

    def timer(self) -> rabble.CorrelationId:
        return rabble.CorrelationId(self.pid)

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Output:
        log, world = self.world.log, self.world
        out: list[Envelope] = []
        match msg:
            case messages.NodeUp(node, incarnation):
                self.look_at_self()
                log.node_up(node.name, incarnation)
                world.up[node.name] = incarnation
                event(f"up {node.name} {incarnation}")
                out.append(Envelope(Pid("watch", node), Hello(log.incarnation, True)))
            case messages.NodeDown(node, incarnation):
                log.node_down(node.name)
                world.up.pop(node.name, None)
                world.ready.pop(node.name, None)
                event(f"down {node.name} {incarnation}")
            case messages.NodeStalled(node, stalled):
                event(f"{'stalled' if stalled else 'recovered'} {node.name}")
            case messages.Removed():
                self.removed = True
                event("removed")
            case messages.DeadLetter(envelope, reason):
                self.dead[reason.value] += 1
                if (found := opened(envelope.msg)) is not None:
                    log.dead_letter(found[0], reason.value)
            case messages.Lost(node, count):
                self.dead["lost"] += count
                log.lost(count, node.name)
            case Hello(incarnation, asks):
                assert sender is not None
                if world.up.get(sender.node.name) == incarnation:
                    world.ready[sender.node.name] = incarnation
                if asks:
                    out.append(Envelope(sender, Hello(log.incarnation, False)))
            case Flush(number, large, _):
                assert sender is not None
                out.append(Envelope(Pid("watch", sender.node), Flushed(number, large)))
            case Flushed(number, large):
                assert sender is not None
                if number == self.flushes:
                    self.unflushed.discard((sender.node.name, large))
            case Flood():
                answer("flood")
            case messages.NameHolder(name, pid):
                self.note("names", name, pid and str(pid))
            case messages.GroupMembers(group, members):
                self.note("groups", group, sorted(map(str, members)))
            case Command(words):
                out += self.follow(words)
            case messages.Timeout():
                out += self.look()
        self.say_what_is_true()
        return out

    def look(self) -> list[Envelope]:
        self.looks += 1
        if self.looks == 1:
            # It was told of the nodes that were up when it subscribed: no traffic before that.
            event(f"ready {self.world.log.incarnation}")
        self.look_at_self()
        out = [Envelope(self.executor, messages.StartTimer(self.timer(), self.LOOK_MS))]
        if self.removed and not self.world.up:
            self.removed, self.rejoining = False, True
            self.node.join(self.seeds[0])
        if self.unflushed and self.looks >= self.flush_again:
            # Less and less often: an answer may stand behind much that is still under way.
            self.flush_again += self.flush_again - self.flush_began
            self.unflushed = {each for each in self.unflushed if each[0] in self.world.up}
            out += self.ask_for_flush()
        return out

    def look_at_self(self) -> None:
        """A node that had to raise its incarnation begins a new life."""
        incarnation = self.node.cluster_status().incarnation
        if incarnation != self.world.log.incarnation:
            self.rejoining = False
            self.world.log.start(incarnation)
            event(f"incarnation {incarnation}")

    def say_what_is_true(self) -> None:
        for pair in list(self.awaited):
            if pair[0]():
                self.awaited.remove(pair)
                answer(pair[1])

    def note(self, kind: str, key: str, value: Any) -> None:
        """What the directory says of a name or a group; tell it when all of it is known."""
        self.directory[kind][key] = value
        if sum(map(len, self.directory.values())) == len(NAMES) + len(GROUPS):
            self.world.log.write("directory", **self.directory)
            answer(f"directory {json.dumps(self.directory, sort_keys=True)}")

    def is_whole(self, names: set[str]) -> bool:
        status = self.node.cluster_status()
        others = names - {self.world.own.name}
        return (
            set(self.member_names()) == names
            and self.world.up.keys() == others
            and {link.node.name for link in status.connections} == others
            and self.world.ready == self.world.up
        )

    def is_certified_for(self, days: float) -> bool:
        left = self.node.cluster_status().certificate_days_left
        return left is not None and days - 1 < left <= days

    def member_names(self) -> list[str]:
        return [member.name for member in self.node.cluster_status().members]

    def flush(self, large: bool = True) -> list[Envelope]:
        """Ask each peer for an answer behind all that was sent, in both lanes or the data lane."""
        self.flushes += 1
        self.flush_began = self.looks
        self.flush_again = self.looks + self.FLUSH_AGAIN_LOOKS
        lanes = (True, False) if large else (False,)
        self.unflushed = {(name, lane) for name in self.world.up for lane in lanes}
        return self.ask_for_flush()

    def ask_for_flush(self) -> list[Envelope]:
        # By senders of their own, as what one sends to one receiver keeps to a lane.
        return [
            Envelope(
                Pid("watch", node),
                Flush(self.flushes, lane, bytes(LARGE_BYTES if lane else 0)),
                sender=Pid("large" if lane else "watch", self.world.own),
            )
            for node in self.world.nodes
            for lane in (True, False)
            if (node.name, lane) in self.unflushed
        ]

    def follow(self, words: list[str]) -> list[Envelope]:
        world = self.world
        senders = [Pid(name, world.own) for name in SENDERS]
        match words:
            case ["go" | "pause" as what]:
                if world.people is not None:
                    world.people.on = what == "go"
                answer(what)
                return [Envelope(pid, Go(what == "go")) for pid in senders]
            case ["ended"]:
                # Whatever the people asked for has come to its end.
                self.awaited.append((lambda: not world.people or not world.people.open, "ended"))
            case ["directory"]:
                self.directory = {"names": {}, "groups": {}}
                requests = [messages.WhereIs(name) for name in NAMES]
                more = [messages.GetGroupMembers(group) for group in GROUPS]
                return [Envelope(self.executor, each) for each in [*requests, *more]]
            case ["leave", name]:
                self.node.leave(name)
                event(f"leave {name}")
            case ["step_clock", seconds]:
                world.wall.step(float(seconds))
                event(f"clock {seconds}")
            case ["alone", on]:
                # Only for itself does it send then.
                world.alone = on == "1"
                answer("alone")
            case ["whole", names]:
                wanted = set(names.split(","))
                self.awaited.append((lambda: self.is_whole(wanted), "whole"))
            case ["drain" | "last" as what]:
                flushes = self.flush(large=what == "drain")
                self.awaited.append((lambda: not self.unflushed, what))
                return flushes
            case ["rest"]:
                world.log.members(self.member_names(), final=True)
                answer("rest")
            case ["flood", name, count, size]:
                node = next(node for node in world.nodes if node.name == name)
                to = Pid(RECEIVERS[0], node)
                return [Envelope(senders[0], Flood(to, int(count), int(size)))]
            case ["canary"]:
                late = self.canary.late_ms
                answer(f"canary {len(late)} {p99_and_most(late)}")
                late.clear()
            case ["late", ms]:
                # Of the canary's samples since it was asked.
                answer(f"late {sum(each >= float(ms) for each in self.canary.late_ms)}")
            case ["samples", more]:
                wanted_samples = len(self.canary.late_ms) + int(more)
                taken = self.canary.late_ms
                self.awaited.append((lambda: len(taken) >= wanted_samples, "samples"))
            case ["probe", name]:
                node = next(node for node in world.nodes if node.name == name)
                self.prober.to = Pid("prober", node)
                answer("probe")
                return [Envelope(Pid("prober", world.own), Go(True))]
            case ["probed"]:
                answer(f"probed {self.prober.stop()}")
            case ["dead"]:
                answer(f"dead {json.dumps(self.dead)}")
            case ["links"]:
                links = self.node.cluster_status().connections
                answer(f"links {json.dumps({n.node.name: n.queued_bytes for n in links})}")
            case ["heard"]:
                answer(f"heard {json.dumps(world.heard)}")
            case ["members"]:
                answer(f"members {','.join(self.member_names())}")
            case ["join", target]:
                self.node.join(target)
                answer("join")
            case ["knows", name]:
                self.awaited.append((lambda: name in self.member_names(), f"knows {name}"))
            case ["keys", ids]:
                accepted = tuple(ids.split(","))
                self.awaited.append(
                    (lambda: self.node.cluster_status().key_ids == accepted, "keys")
                )
            case ["certified", days]:
                self.awaited.append((lambda: self.is_certified_for(float(days)), "certified"))
            case ["weights"]:
                dropped = self.node.metrics().counters["fields_dropped"]
                answer(f"weights {json.dumps({**world.weights, 'dropped': dropped})}")
            case ["block", seconds]:
                answer("block")
                time.sleep(float(seconds))
            case ["refusals"]:
                answer(f"refusals {json.dumps(dict(self.node.cluster_status().refusals))}")
            case ["hold", seconds]:
                answer("hold")
                threading.Thread(target=hold_gil, args=[float(seconds)]).start()
            case ["service", name]:
                try:
                    self.node.register_service(rabble.ServiceHandler(), name)
                    answer("service runs")
                except RuntimeError as error:
                    answer(f"service {type(error).__name__}: {error}")
            case _:
                answer(f"what? {words}")
        return []


def hold_gil(seconds: float) -> None:
    """As a C function that forgets to release it. (PyDLL keeps it.)"""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    event("released")


def answer(text: str) -> None:
    say(f"= {text}")


def event(text: str) -> None:
    say(f"! {text} {time.monotonic():.4f}")


def say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, f"{line}\n".encode())


class Signals:
    """The first one begins the node's end, the second one ends the process.

    A signal that comes just before a blocking read interrupts nothing, so the main thread waits in
    `select` for the file that the interpreter's own handler writes to.
    """

    def __init__(self) -> None:
        self._read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        event(f"signal {number}")

    def lines(self) -> Iterator[str]:
        """The lines of standard input, until it ends. `SystemExit` once a signal came."""
        rest = b""
        while True:
            ready, _, _ = select.select([0, self._read_end], [], [])
            if self._read_end in ready:
                raise SystemExit(0)
            read = os.read(0, 65_536)
            if not read:
                return
            *whole, rest = (rest + read).split(b"\n")
            yield from (line.decode() for line in whole)


def main(spec: dict[str, Any]) -> None:
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(levelname)s %(message)s")
    wall = Wall()
    logging.getLogger().handlers[0].addFilter(lambda record: not is_planned(record))
    own = NodeId(spec["name"], spec["addr"])
    nodes = [NodeId.parse(text) for text in spec["nodes"]]
    mesh = rabble.Mesh(
        key=spec["key"],
        tls=None if spec["tls"] is None else rabble.TlsConfig(*spec["tls"]),
        seeds=spec["seeds"],
        authenticate_loopback=spec["authenticate_loopback"],
    )
    limits = rabble.Limits(**{**spec["limits"], **PARTS})
    with Log(spec["log"], own.name) as log:
        signals = Signals()
        with rabble.rouse(own, limits=limits, mesh=mesh, spin_us=0, seed=spec["seed"]) as node:
            log.start(node.cluster_status().incarnation)
            world = World(log, own, nodes, wall, spec["version"])
            canary = Canary()
            prober = Prober()
            watch = Watch(world, node, canary, prober, spec["seeds"])
            # Who says hello to peers comes last: all that they send has its receiver, and is seen.
            pid = node.pid("watch")
            for name in RECEIVERS:
                node.spawn(Receiver(world), name)
            for name in SENDERS:
                node.spawn(Sender(world, spec["every_ms"], spec["large"]), name)
            if spec["ask_ms"] is not None:
                world.people = People(log, own, nodes, spec["ask_ms"], linked_people)
                for name, process in world.people.crew().items():
                    node.spawn(process, name)
            node.spawn(canary, "canary")
            node.spawn(prober, "prober")
            node.spawn(watch, "watch")
            node.subscribe_dead_letters(pid)
            for line in signals.lines():
                words = line.split()
                if words == ["stop"]:
                    break
                node.send(pid, Command(words))
        log.stop()
    answer("stop")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
