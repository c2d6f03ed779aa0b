"""Each request of each client ends exactly once (G10), whoever is killed meanwhile.

Clients are processes of the system that are killed at random and started again. They ask processes
that crash and are restarted, on the node of the server and on one behind it, which is killed and
started again as well. What all of them noted is checked at the end, and the server has nothing
left. A failure prints the seed; RABBLE_SEED=7 in the environment plays that of seed 7.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.client_history import Life, Violation, check, read, tally
from tests.faults.clients_app import WORKERS, digest
from tests.faults.meshes import LIMITS, ROOT, figures, loopback_addresses
from tests.faults.rig.process import OsProcess
from tests.support import until

SEED = int(os.environ.get("RABBLE_SEED", "1"))
CLIENTS = ("c1", "c2", "c3")
#: Requests of a client at a time.
THREADS = 5
#: Fewer than all clients have in flight: some are refused.
REQUESTS_MAX = 12


class Run:
    """A server, a node behind it, and clients of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.draw = random.Random(seed)
        addresses = loopback_addresses()
        self.spec: dict[str, Any] = {
            "front_addr": next(addresses),
            "back_addr": next(addresses),
            "limits": LIMITS,
            "requests_max": REQUESTS_MAX,
            "threads": THREADS,
            "seed": seed,
        }
        self.lives: list[tuple[str, bool]] = []
        self.running: dict[str, tuple[str, OsProcess]] = {}
        self.killed = {"clients": 0, "back": 0, "workers": 0}
        self.front = self.start("front", "front")
        try:
            self.back = self.start("back", "back")
            try:
                self.spec["address"] = self.front.wait_line("^ready ").split()[1]
                for name in CLIENTS:
                    self.begin(name)
            except BaseException:
                self.close()
                raise
        except BaseException:
            self.front.close()
            raise

    def start(self, role: str, name: str, **more: Any) -> OsProcess:
        spec = {**self.spec, "role": role, "log": str(self.folder / f"{name}.jsonl"), **more}
        return OsProcess(
            [sys.executable, "-m", "tests.faults.clients_app", json.dumps(spec)],
            ready="^ready",
            cwd=ROOT,
            talk=True,
        )

    def begin(self, name: str) -> None:
        life = f"{name}-{len(self.lives)}"
        self.running[name] = life, self.start("client", life, life=life)
        self.lives.append((life, False))

    def kill_client(self) -> None:
        name = self.draw.choice(CLIENTS)
        life, process = self.running.pop(name)
        process.kill()
        process.close()
        self.lives[self.lives.index((life, False))] = life, True
        self.killed["clients"] += 1
        self.begin(name)

    def kill_back(self) -> None:
        self.back.kill()
        self.back.close()
        self.killed["back"] += 1
        self.back = self.start("back", "back")

    def crash_worker(self) -> None:
        self.front.say(f"crash {self.draw.choice(WORKERS)}")
        self.killed["workers"] += 1

    def status(self) -> dict[str, int]:
        skip = sum(line.startswith("= ") for line in self.front.lines())
        self.front.say("status")
        found: dict[str, int] = json.loads(self.front.wait_line("^= ", skip=skip)[2:])
        return found

    def finish(self) -> list[Life]:
        """The clients end in order, and then the nodes; what the clients noted."""
        for _, process in self.running.values():
            process._popen.stdin.close()  # type: ignore[union-attr]
        for _, process in self.running.values():
            assert process.wait() == 0, process.stderr()
            assert "Traceback" not in process.stderr(), process.stderr()
        until(lambda: self.status()["connections"] == 0)
        return [
            Life(read(self.folder / f"{life}.jsonl"), killed, THREADS)
            for life, killed in self.lives
        ]

    def close(self) -> None:
        for _, process in self.running.values():
            process.close()
        self.back.close()
        self.front.close()


def perform(folder: Path, seed: int, faults: int, pause_s: float) -> None:
    run = Run(folder, seed)
    try:
        kinds = run.kill_client, run.kill_back, run.crash_worker
        # Of each kind one, and then whatever comes.
        for number in range(faults):
            # So that something is under way. How much is up to the machine.
            threading.Event().wait(run.draw.uniform(0, 2 * pause_s))
            (kinds[number] if number < len(kinds) else run.draw.choices(kinds, (6, 2, 4))[0])()
        lives = run.finish()
        status = run.status()
        violations = check(lives, read(folder / "front.jsonl"), read(folder / "back.jsonl"))
        assert not violations, f"seed {seed}: {violations[:20]}"
        assert (status["in_flight"], status["asks"]) == (0, 0), (seed, status)
        ended = status["answered"] + status["failed"] + status["refused"]
        assert ended == status["messages"], (seed, status)
        for process in (run.front, run.back):
            for each in process.stderr().split("Traceback")[1:]:
                assert "Planned" in each, each
        ends = tally(lives)
        assert ends["answer"] and ends["crashed"] + ends["disconnected"], (seed, ends)
        figures("clients", seed=str(seed), **{k: str(v) for k, v in run.killed.items()})
        figures("ends", **{k.replace(" ", "_"): str(v) for k, v in sorted(ends.items())})
    finally:
        run.close()


def test_each_request_ends_once_whoever_is_killed(tmp_path: Path) -> None:
    perform(tmp_path, SEED, faults=8, pause_s=0.15)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [SEED] if "RABBLE_SEED" in os.environ else range(2, 5))
def test_each_request_ends_once_for_a_long_time(tmp_path: Path, seed: int) -> None:
    perform(tmp_path, seed, faults=150, pause_s=0.3)


# The checker itself.


def asked(token: str, where: str = "front", name: str = "w0", action: str = "answer") -> Any:
    return {"e": "asked", "token": token, "where": where, "name": name, "action": action}


def ended(token: str, how: str = "answer", by: str = "front/w0") -> dict[str, Any]:
    value = {"value": [token, digest(token), by]} if how == "answer" else {}
    return {"e": "ended", "token": token, "how": how, **value}


def handled(token: str, by: str, action: str = "answer") -> dict[str, Any]:
    return {"e": "handled", "at": 0.1, "token": token, "by": by, "action": action}


def begun(token: str) -> dict[str, Any]:
    return {"e": "begun", "at": 0.0, "token": token}


def a_history() -> dict[str, list[dict[str, Any]]]:
    """What one life that ended in order, one that was killed, and two nodes noted."""
    stays = [
        {"e": "start"},
        *(asked("a.0"), ended("a.0")),
        *(asked("a.1", "back"), ended("a.1", by="back/w0")),
        *(asked("a.2", action="crash"), ended("a.2", "crashed")),
        *(asked("a.3"), ended("a.3", "nack")),
        *(asked("a.4"), ended("a.4", "not sent")),
        *(asked("a.5", "self"), ended("a.5", by="self")),
        *(asked("a.6", action="silent"), ended("a.6", "timeout")),
        {"e": "stop"},
    ]
    goes = [{"e": "start"}, asked("b.0"), asked("b.1"), ended("b.0"), asked("b.2")]
    front = [
        *(begun(f"a.{n}") for n in (0, 1, 2, 5, 6)),
        *(begun(f"b.{n}") for n in (0, 1)),
        handled("a.0", "front/w0"),
        handled("a.2", "front/w0", "crash"),
        handled("a.6", "front/w0", "silent"),
        handled("b.0", "front/w0"),
        handled("told", "front/w0", "crash"),
    ]
    return {"stays": stays, "goes": goes, "front": front, "back": [handled("a.1", "back/w0")]}


def judged(logs: dict[str, list[dict[str, Any]]]) -> list[Violation]:
    lives = [Life(logs["stays"], False, 2), Life(logs["goes"], True, 2)]
    return check(lives, logs["front"], logs["back"])


def of(log: list[dict[str, Any]], event: str, token: str) -> dict[str, Any]:
    (found,) = (each for each in log if (each["e"], each.get("token")) == (event, token))
    return found


#: What is done to the history, and the rule that is broken by it.
PLANTED: dict[str, Callable[[Any], object]] = {
    "ended twice": lambda h: h["stays"].insert(3, ended("a.0")),
    "never ended": lambda h: h["stays"].remove(of(h["stays"], "ended", "a.0")),
    "another's answer": lambda h: of(h["stays"], "ended", "a.0")["value"].__setitem__(0, "a.1"),
    "ended without having begun": lambda h: h["stays"].insert(1, ended("c.0")),
    "asked again": lambda h: h["goes"].append(asked("a.0")),
    "begun again": lambda h: h["front"].append(begun("a.0")),
    "handled again": lambda h: h["front"].append(handled("b.0", "front/w0")),
    "handled by another": lambda h: h["back"].append(handled("b.1", "back/w0")),
    "begun all the same": lambda h: h["front"].append(begun("a.3")),
    "never begun": lambda h: h["front"].remove(begun("a.6")),
    "made up": lambda h: h["front"].append(begun("z.0")),
    "answered by nobody": lambda h: h["back"].clear(),
    "no such end": lambda h: of(h["stays"], "ended", "a.6").update(how="nobody said"),
    "not told of the crash": lambda h: of(h["stays"], "ended", "a.2").update(how="timeout"),
    "ended without a word": lambda h: h["stays"].pop(),
}


@pytest.mark.parametrize("rule", PLANTED)
def test_the_checker_finds_what_is_planted(rule: str) -> None:
    logs = a_history()
    assert judged(logs) == []
    PLANTED[rule](logs)
    assert rule in {violation.rule for violation in judged(logs)}, judged(logs)


def test_of_one_that_was_killed_no_more_is_open_than_it_had_threads() -> None:
    logs = a_history()
    logs["goes"].append(asked("b.3"))
    assert {violation.rule for violation in judged(logs)} == {"never ended"}


def test_whatever_is_left_out_of_a_history_is_missed_or_was_no_part_of_it() -> None:
    """Each single event that is left out of the logs of what stays breaks a rule."""
    whole = a_history()
    for log, place in itertools.chain.from_iterable(
        ((name, n) for n in range(len(whole[name]))) for name in ("stays", "back")
    ):
        logs = copy.deepcopy(whole)
        gone = logs[log].pop(place)
        is_missed = gone["e"] != "start" and gone.get("how") != "x"
        assert bool(judged(logs)) == is_missed, gone
