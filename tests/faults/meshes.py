"""A mesh of `mesh_app` processes under test: started, told, awaited, and checked at the end.

with Members(tmp_path, 3) as mesh:            # on loopback, or on the hosts of a Network
    mesh.begin()                              # a full mesh, and traffic
    mesh["n1"].process.pause()
    mesh["n2"].awaits("down n1")
    ...
    mesh.settle()                             # no traffic, all at rest, the history checked
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rabble import TlsConfig
from tests.faults import history, rules
from tests.faults.rig.limits import Cgroup, Rlimits
from tests.faults.rig.netns import Host, Network
from tests.faults.rig.process import PATIENCE_S, OsProcess, Usage
from tests.faults.rig.switch import Switch
from tests.support import SANITIZED

ROOT = Path(__file__).parents[2]
PORT = 7000
HEARTBEAT_S = 0.2
T_DOWN_S = 1.6
#: What a busy machine may add to whatever is bounded in time.
SLACK_S = 5.0
RSS_MORE_BYTES = 5 << 20
#: Short, so that a test sees many; all waits are as much shorter than the default as the heartbeat.
LIMITS = {
    "heartbeat_ms": 200,
    "down_after_ms": 1_600,
    "stalled_after_ms": 1_000,
    "handshake_ms": 1_500,
    "redial_most_ms": 1_000,
    "dial_hold_back_ms": 200,
    "digest_ms": 2_000,
}
_serial = itertools.count(1)


def loopback_addresses() -> Iterator[str]:
    """Addresses of 127.0.0.0/8 that no other test process uses."""
    net = os.getpid() * 64 + next(_serial) % 64
    for host in range(1, 255):
        yield f"127.{net >> 8 & 255}.{net & 255}.{host}:{PORT}"


class Member:
    """One node: its process, or the processes of its starts one after another."""

    def __init__(self, name: str, addr: str, host: Host | None, start: Callable[[], OsProcess]):
        self.name = name
        self.addr = addr
        self.host = host
        self._start = start
        self.process = start()
        self._heard = 0
        self.first_words = ""

    def __repr__(self) -> str:
        return f"<{self.name} at {self.addr}>"

    def ask(self, command: str, timeout_s: float = PATIENCE_S) -> str:
        """Tell it to do something and wait for its answer, without the first word of both."""
        self.tell(command)
        return self.answer(command, timeout_s)

    def tell(self, command: str) -> None:
        self.process.say(command)

    def answer(self, command: str, timeout_s: float = PATIENCE_S) -> str:
        """The next answer to a command that it was told."""
        word = command.split()[0]
        try:
            line = self.process.wait_line("^= ", timeout_s, skip=self._heard)
        except TimeoutError as error:
            raise TimeoutError(f"{self.name} does not answer {command!r}: {error}") from None
        self._heard += 1
        assert line.startswith(f"= {word}"), (self.name, command, line)
        return line.removeprefix(f"= {word}").strip()

    def awaits(
        self, pattern: str, since: float = 0.0, timeout_s: float = PATIENCE_S
    ) -> tuple[float, str]:
        """Wait for an event not before a monotonic time: when that was, and what."""
        deadline = time.monotonic() + timeout_s
        for skip in itertools.count():
            left_s = max(deadline - time.monotonic(), 0.0)
            try:
                line = self.process.wait_line(f"^! {pattern}", left_s, skip)
            except TimeoutError:
                raise TimeoutError(
                    f"{self.name}: no {pattern!r} in {timeout_s} s; {self.events()[-20:]}"
                ) from None
            at = float(line.rsplit(maxsplit=1)[1])
            if at >= since:
                return at, line
        raise AssertionError

    def events(self, pattern: str = "", since: float = 0.0) -> list[str]:
        """What happened by itself so far."""
        return [
            line
            for line in self.process.lines()
            if re.match(f"! {pattern}", line) and float(line.rsplit(maxsplit=1)[1]) >= since
        ]

    def logs(self, pattern: str) -> None:
        """Wait until its log has a pattern: what is reported is written a little later."""
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, said := self.process.stderr()):
            assert time.monotonic() < deadline, f"{self.name} does not log {pattern!r}: {said}"
            time.sleep(0.02)

    def restart(self) -> None:
        """Start it again after its end."""
        self.first_words += self.process.stderr()
        self.process.close()
        self.process = self._start()
        self._heard = 0


class Members:
    """Nodes n1, n2, ..., each of which has the first two as its seeds."""

    def __init__(
        self,
        folder: Path,
        count: int = 3,
        network: Network | None = None,
        *,
        addresses: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None,
        limits_of: Mapping[str, Mapping[str, int]] | None = None,
        every_ms: float = 20.0,
        large: float = 0.01,
        seed: int = 1,
        rlimits: Mapping[str, Rlimits] | None = None,
        cgroups: Mapping[str, Cgroup] | None = None,
        tls: Mapping[str, TlsConfig] | None = None,
        authenticate_loopback: bool = False,
        ask_ms: float | None = None,
    ) -> None:
        """`addresses`: instead of those of loopback or the hosts.

        `ask_ms`: there are people as well, whose questions may take so long.
        """
        names = [f"n{i}" for i in range(1, count + 1)]
        if addresses is None:
            if network is None:
                addresses = dict(zip(names, loopback_addresses(), strict=False))
            else:
                addresses = {name: f"{network[name].ipv4}:{PORT}" for name in names}
        self.folder = folder
        self.network = network
        self.names = names
        #: The first of `write_keys`, which all nodes begin with.
        self.key = secrets.token_bytes(32)
        for name in names:
            self.write_keys(name, self.key)
        #: Of the application, which a node has from its next start on.
        self.version_of = dict.fromkeys(names, 1)
        self._tls = {
            name: tuple(map(str, (config.cert, config.key, config.ca)))
            for name, config in (tls or {}).items()
        }
        self._limits_of = limits_of or {}
        self._rlimits = rlimits or {}
        self._cgroups = cgroups or {}
        self._usage: dict[OsProcess, Usage] = {}
        self._spec: dict[str, Any] = {
            "nodes": [f"{name}@{addresses[name]}" for name in names],
            "authenticate_loopback": authenticate_loopback,
            "limits": {**LIMITS, **(limits or {})},
            "every_ms": every_ms,
            "large": large,
            "seed": seed,
            "ask_ms": ask_ms,
        }
        self.addresses = dict(addresses)
        with ThreadPoolExecutor(count) as pool:
            started = [pool.submit(self._member, name) for name in names]
        try:
            self.members = {name: job.result() for name, job in zip(names, started, strict=True)}
        except BaseException:
            for job in started:
                if job.exception() is None:
                    job.result().process.close()
            raise

    def _member(self, name: str) -> Member:
        host = None if self.network is None else self.network[name]
        return Member(name, self.addresses[name], host, lambda: self._start(name, host))

    def _start(self, name: str, host: Host | None) -> OsProcess:
        spec = {
            **self._spec,
            "name": name,
            "addr": self.addresses[name],
            "limits": {**self._spec["limits"], **self._limits_of.get(name, {})},
            "seeds": [self.addresses[each] for each in self.names[:2] if each != name],
            "log": str(self.folder / f"{name}.jsonl"),
            "key": str(self._key_file(name)),
            "tls": self._tls.get(name),
            "version": self.version_of[name],
        }
        return OsProcess(
            [sys.executable, "-m", "tests.faults.mesh_app", json.dumps(spec)],
            host=host,
            ready="^! ready ",
            rlimits=self._rlimits.get(name),
            cgroup=self._cgroups.get(name),
            cwd=ROOT,
            talk=True,
        )

    def _key_file(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def write_keys(self, name: str, *keys: bytes) -> None:
        """Put a key file of these in place of that of a node."""
        new = self.folder / "new.key"
        new.touch(0o600)
        new.write_text("".join(f"{key.hex()}\n" for key in keys))
        new.replace(self._key_file(name))

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members.values())

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all; may be called twice."""
        for member in self:
            member.process.close()

    def others(self, *names: str) -> list[Member]:
        return [member for member in self if member.name not in names]

    def all_ask(
        self, command: str, of: Iterable[Member] | None = None, timeout_s: float = PATIENCE_S
    ) -> dict[str, str]:
        """Tell all, then wait for all answers."""
        members = list(of or self)
        for member in members:
            member.tell(command)
        try:
            return {member.name: member.answer(command, timeout_s) for member in members}
        except TimeoutError as error:
            # Whoever does not answer may wait for another one.
            for member in members:
                tail = member.process.stderr()[-1_000:]
                error.add_note(f"{member.name}: {member.events()[-5:]} {tail}")
            raise

    def whole(self, of: Iterable[Member] | None = None, timeout_s: float = PATIENCE_S) -> float:
        """Wait until these, or all, are members of a full mesh; how long that took."""
        begin = time.monotonic()
        members = list(of or self)
        names = ",".join(member.name for member in members)
        self.all_ask(f"whole {names}", members, timeout_s)
        return time.monotonic() - begin

    def begin(self) -> None:
        """A full mesh, and traffic."""
        self.whole()
        self.all_ask("go")

    def rest(self, of: Iterable[Member] | None = None, timeout_s: float = PATIENCE_S) -> None:
        """No more traffic, and what was under way has arrived; then all say who is a member."""
        members = list(of or self)
        self.all_ask("pause", members)
        self.whole(members, timeout_s)
        self.all_ask("drain", members, timeout_s)
        # Answers to the last question are under way; after this none is.
        self.all_ask("drain", members, timeout_s)
        self.all_ask("rest", members)

    def agree(self, within_s: float) -> float:
        """Wait until all say the same of names and groups: how long that took.

        The people have nothing open any more. What each said last is in its log in any case.
        """
        begin = time.monotonic()
        while True:
            said = set(self.all_ask("directory").values())
            took_s = time.monotonic() - begin
            if len(said) == 1 or took_s > within_s:
                return took_s
            time.sleep(0.05)

    def links(self, name: str) -> dict[str, int]:
        """The peers that a node is connected to, and what waits for each, in bytes."""
        links: dict[str, int] = json.loads(self[name].ask("links"))
        return links

    def usage(self) -> dict[str, Usage]:
        return {member.name: member.process.usage() for member in self}

    def check(self, alive: Iterable[str] | None = None) -> None:
        """The history keeps all promises, and no log has a traceback."""
        alive = self.names if alive is None else list(alive)
        logs = history.read_all(sorted(self.folder.glob("*.jsonl")))
        found = [*history.check(logs, alive), *rules.check(logs)]
        shown = "\n".join(map(str, found[:10]))
        assert not found, f"{len(found)} violations, logs in {self.folder}\n{shown}"
        for member in self:
            said = member.first_words + member.process.stderr()
            assert "Traceback" not in said, said
            assert " CRITICAL " not in said, said

    def warm_up(self) -> None:
        """Traffic until caches are full, then rest: what `settle` compares with."""
        self.begin()
        time.sleep(1)
        self.settle()

    def settle(self, rss_more_bytes: int = RSS_MORE_BYTES) -> None:
        """At rest, with a history without a flaw; what is held is what was held the last time.

        A process that was started since is compared with nothing.
        """
        self.rest()
        self.check()
        self._usage = self._as_before(rss_more_bytes)

    def _as_before(self, rss_more_bytes: int) -> dict[OsProcess, Usage]:
        """Descriptors of dials and goodbyes may still be about to be closed."""
        deadline = time.monotonic() + SLACK_S
        while True:
            now = {member.process: member.process.usage() for member in self}
            wrong = [
                f"{member.name}: {before}, now {now[member.process]}"
                for member in self
                if (before := self._usage.get(member.process)) is not None
                and differs(before, now[member.process], rss_more_bytes)
            ]
            if not wrong:
                return now
            assert time.monotonic() < deadline, "\n".join(wrong)
            time.sleep(0.05)


def differs(before: Usage, now: Usage, rss_more_bytes: int) -> bool:
    """Whether something was not given back."""
    if (now.fds, now.threads) != (before.fds, before.threads):
        return True
    return now.rss_bytes - before.rss_bytes > rss_more_bytes and not SANITIZED


def figures(test: str, **measured: float | str) -> None:
    """What a test measured, for whoever runs pytest with -s or -rP."""
    shown = (f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in measured.items())
    print(f"\n[{test}] {', '.join(shown)}")


def over(switch: Switch, network: Network, folder: Path, count: int, **limits: int) -> Members:
    """A mesh of hosts that reach each other through a switch, which makes the weather."""
    addresses = {host.name: f"{switch.ipv4(host)}:{PORT}" for host in network.hosts[:count]}
    return Members(folder, count, network, addresses=addresses, limits=limits)
