"""Seeded lists of faults: printed, read back, and carried out in order.

    schedule = Schedule.drawn(seed=7, hosts=["n1", "n2", "n3"], duration_s=20)
    print(schedule)                         # paste it into Schedule.read to replay it
    schedule.perform(Hands(net, switch, processes), stopped)

A schedule is a plain list of steps, each with its time; what a fault undoes is a step of its own.
Every fault is taken back before the end, so that what comes after can judge how all recovered.
"""

from __future__ import annotations

import dataclasses
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from tests.faults.rig.line import CLEAR, Weather
from tests.faults.rig.netns import RESET, Network
from tests.faults.rig.process import OsProcess
from tests.faults.rig.switch import Switch

#: What a schedule may have, and what takes it back.
UNDONE_BY = {
    "kill": "restart",
    "pause": "resume",
    "partition": "heal",
    "isolate": "heal",
    "cut_one_way": "heal",
    "reject": "heal",
    "drop_established": None,
    "kill_sockets": None,
    "weather": "clear",
    "leave": None,
    "step_clock": None,
}
#: What the nodes themselves have to do, for which hands need `tell`.
TOLD = ("leave", "step_clock")
KINDS = tuple(kind for kind in UNDONE_BY if kind not in TOLD)
ALL_KINDS = (*KINDS, *TOLD)
#: By how much a wall clock is wrong, before or after.
STEP_MAX_S = 100_000.0
#: How bad the weather gets.
LOSS_MAX, DUPLICATE_MAX, CORRUPT_MAX, REORDER_MAX, DELAY_MAX_S = 0.1, 0.1, 0.05, 0.2, 0.2


@dataclasses.dataclass(frozen=True)
class Step:
    """At a time after the start, something happens to some hosts."""

    at_s: float
    what: str
    #: Lists of host names: the sides of a partition; source and target; or one host.
    on: tuple[tuple[str, ...], ...] = ()
    weather: Weather | None = None
    #: By how much a clock is stepped.
    seconds: float = 0.0

    def __str__(self) -> str:
        said: dict[str, Any] = {"at_s": self.at_s, "what": self.what, "on": self.on}
        if self.weather is not None:
            changed = dataclasses.asdict(self.weather).items()
            said["weather"] = {k: v for k, v in changed if v != getattr(CLEAR, k)}
        if self.seconds:
            said["seconds"] = self.seconds
        return json.dumps(said)


class Actor(Protocol):
    """Who carries steps out."""

    def do(self, step: Step) -> None: ...


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps in the order of their times, and the seed they were drawn from."""

    seed: int
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join([f"# seed {self.seed}", *map(str, self.steps)])

    @classmethod
    def read(cls, text: str) -> Schedule:
        """What `str` made of one."""
        first, *lines = text.strip().splitlines()
        steps = []
        for said in map(json.loads, lines):
            weather = said.get("weather")
            steps.append(
                Step(
                    said["at_s"],
                    said["what"],
                    tuple(tuple(side) for side in said["on"]),
                    None if weather is None else Weather(**weather),
                    said.get("seconds", 0.0),
                )
            )
        return cls(int(first.removeprefix("# seed ")), tuple(steps))

    @classmethod
    def drawn(
        cls,
        seed: int,
        hosts: Sequence[str],
        duration_s: float,
        kinds: Iterable[str] = KINDS,
        every_s: float = 1.0,
        lasting_s: float = 2.0,
    ) -> Schedule:
        """A fault every `every_s` on the average, each for about `lasting_s`.

        A host that is down or paused is left alone until it is back; one of them always runs.
        Cuts add up, and `heal` takes all of them back.
        """
        rng = random.Random(seed)
        kinds = tuple(kinds)
        if unknown := set(kinds) - set(ALL_KINDS):
            raise ValueError(f"{sorted(unknown)}: what there is: {', '.join(ALL_KINDS)}")
        steps: list[Step] = []
        back_at: dict[str, float] = {}
        now = 0.0
        while (now := round(now + rng.expovariate(1 / every_s), 3)) < duration_s:
            what = rng.choice(kinds)
            until = round(min(duration_s, now + rng.uniform(0.5, 1.5) * lasting_s), 3)
            weather = _bad_weather(rng) if what == "weather" else None
            seconds = 0.0
            running = [host for host in hosts if back_at.get(host, -1.0) < now]
            if what in ("kill", "pause"):
                if len(running) < 2:
                    continue
                host = rng.choice(running)
                back_at[host] = until
                on: tuple[tuple[str, ...], ...] = ((host,),)
            elif what == "partition":
                mixed = rng.sample(list(hosts), len(hosts))
                place = rng.randint(1, len(hosts) - 1)
                on = (tuple(mixed[:place]), tuple(mixed[place:]))
            elif what in ("isolate", "drop_established", "kill_sockets", "step_clock"):
                on = ((rng.choice(list(hosts)),),)
                if what == "step_clock":
                    seconds = round(rng.uniform(-STEP_MAX_S, STEP_MAX_S), 3)
            elif what == "leave":
                # One tells the mesh that the other is to leave, or says so itself.
                if len(running) < 2:
                    continue
                on = ((rng.choice(running),), (rng.choice(running),))
            else:
                source, target = rng.sample(list(hosts), 2)
                on = ((source,), (target,))
            steps.append(Step(now, what, on, weather, seconds))
            if (undo := UNDONE_BY[what]) is not None:
                steps.append(Step(until, undo, () if undo == "heal" else on))
        # Sorting is stable: what begins at a time comes before what ends then.
        return cls(seed, tuple(sorted(steps, key=lambda step: step.at_s)))

    def perform(
        self,
        actor: Actor,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> int:
        """Carry the steps out, each at its time or as soon as the one before is done.

        Ends early when `stop` is set. How many steps were done.
        """
        stop = stop or threading.Event()
        start = clock()
        for done, step in enumerate(self.steps):
            if stop.wait(max(0.0, start + step.at_s - clock())):
                return done
            actor.do(step)
        return len(self.steps)


def _bad_weather(rng: random.Random) -> Weather:
    """One to three things that are wrong with a line."""
    all_of_it = {
        "loss": rng.uniform(0, LOSS_MAX),
        "duplicate": rng.uniform(0, DUPLICATE_MAX),
        "corrupt": rng.uniform(0, CORRUPT_MAX),
        "reorder": rng.uniform(0, REORDER_MAX),
        "delay_s": rng.uniform(0, DELAY_MAX_S),
    }
    chosen = rng.sample(sorted(all_of_it), rng.randint(1, 3))
    return Weather(**{name: round(all_of_it[name], 4) for name in chosen})  # type: ignore[arg-type]


class Hands:
    """Carries steps out on a network, a switch, and processes by host name.

    `restart` is called with the name of a host whose process was killed, and returns the new one;
    `tell` with the name of a host and what its node is to do, as `mesh_app` takes it.
    """

    def __init__(
        self,
        network: Network,
        switch: Switch | None = None,
        processes: Mapping[str, OsProcess] | None = None,
        restart: Callable[[str], OsProcess] | None = None,
        tell: Callable[[str, str], None] | None = None,
    ) -> None:
        self.network = network
        self.switch = switch
        self.processes = dict(processes or {})
        self.restart = restart
        self.tell = tell
        self.done: list[Step] = []

    def do(self, step: Step) -> None:
        sides = [[self.network[name] for name in side] for side in step.on]
        match step.what:
            case "kill":
                self.processes[step.on[0][0]].kill()
            case "restart":
                name = step.on[0][0]
                if self.restart is None:
                    raise ValueError("a schedule with kills needs `restart`")
                self.processes[name].close()
                self.processes[name] = self.restart(name)
            case "pause":
                self.processes[step.on[0][0]].pause()
            case "resume":
                self.processes[step.on[0][0]].resume()
            case "partition":
                self.network.partition(*sides)
            case "isolate":
                self.network.isolate(sides[0][0])
            case "cut_one_way":
                self.network.cut_one_way(sides[0][0], sides[1][0])
            case "reject":
                self.network.cut_one_way(sides[0][0], sides[1][0], RESET)
            case "heal":
                self.network.heal()
            case "drop_established":
                self.network.drop_established(sides[0][0])
            case "kill_sockets":
                sides[0][0].kill_sockets()
            case "leave" | "step_clock":
                if self.tell is None:
                    raise ValueError(f"a schedule with {step.what} needs `tell`")
                more = step.on[1][0] if step.what == "leave" else step.seconds
                self.tell(step.on[0][0], f"{step.what} {more}")
            case "weather" | "clear":
                if self.switch is None:
                    raise ValueError("a schedule with weather needs a switch")
                self.switch.set(step.weather or CLEAR, sides[0][0], sides[1][0])
            case unknown:
                raise ValueError(f"{unknown}: what there is: {', '.join(ALL_KINDS)}")
        self.done.append(step)
