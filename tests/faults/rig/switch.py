"""A second network between the hosts of a `Network`, through a process that spoils packets.

    with Network(3) as net, Switch(net, seed=1) as switch:
        a, b, c = net.hosts
        switch.set(Weather(loss=0.02, delay_s=0.3, jitter_s=0.1))
        switch.set(Weather(cut=True), a, b)           # one way; the other still passes
        ... connect to switch.ipv4(b), from a ...
        print(switch.counters(a, b).lost)

Each host gets a TUN device; what it sends there is read by the switch, judged by the `Line` from
that host to the other one, and written to the other's device. The same seed and the same packets
have the same fate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import heapq
import ipaddress
import itertools
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.faults.rig.line import CLEAR, MTU, Counters, Line, Weather, destination
from tests.faults.rig.netns import Host, Network

#: Benchmarking addresses of RFC 2544, and another subnet of the rig's unique local prefix.
IPV4, IPV6 = "198.18.0.", "fd72:6162:626c:1::"
DEVICE = "tun0"
TUNSETIFF = 0x4004_54CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
#: What the switch holds back at most, so that a long delay cannot fill the machine.
HELD_BYTES_MAX = 64 << 20
ANSWER_TIMEOUT_S = 30.0
#: Packets taken from one device before the others have their turn.
BATCH = 64


class Switch:
    """The process that carries packets between the hosts' TUN devices, seen from the test."""

    def __init__(self, network: Network, seed: int, weather: Weather = CLEAR) -> None:
        self.network = network
        self.seed = seed
        self.weather = weather
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = b""

    def ipv4(self, host: Host) -> str:
        return f"{IPV4}{host.number}"

    def ipv6(self, host: Host) -> str:
        return f"{IPV6}{host.number:x}"

    def __enter__(self) -> Switch:
        devices: list[int] = []
        try:
            for host in self.network.hosts:
                devices.append(self._device(host))
            self._start(devices)
        except BaseException:
            self.close()
            raise
        finally:
            for fd in devices:
                os.close(fd)
        self.set(self.weather)
        self.network.refresh()  # cuts hold for the new addresses too
        return self

    def _device(self, host: Host) -> int:
        with host.entered():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
            addresses = [self.ipv4(host), self.ipv6(host)]
            host.run(
                *("ip", "-batch", "-"),
                said=f"link set {DEVICE} addrgenmode none mtu {MTU} txqueuelen 5000 up\n"
                f"addr add {addresses[0]}/24 dev {DEVICE}\n"
                f"addr add {addresses[1]}/64 dev {DEVICE} nodad\n",
            )
        except BaseException:
            os.close(fd)
            raise
        host.addresses += [a for a in addresses if a not in host.addresses]
        return fd

    def _start(self, devices: list[int]) -> None:
        here, there = socket.socketpair()
        self._control = here
        here.settimeout(ANSWER_TIMEOUT_S)
        with there:
            spec = {
                "seed": self.seed,
                "control": there.fileno(),
                "hosts": {
                    host.name: [fd, [self.ipv4(host), self.ipv6(host)]]
                    for host, fd in zip(self.network.hosts, devices, strict=True)
                },
            }
            # It ends when the control socket does, so also with whoever started it.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.rig.switch", json.dumps(spec)],
                pass_fds=[there.fileno(), *devices],
                cwd=Path(__file__).parents[3],
                stdin=subprocess.DEVNULL,
            )
        self.network.closers.append(self.close)
        self._ask({})  # it is there

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and with it the devices; may be called twice."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(ANSWER_TIMEOUT_S)
            finally:
                self._process.kill()
                self._process.wait()
                self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _ask(self, request: Mapping[str, Any]) -> Any:
        if self._control is None:
            raise RuntimeError("the switch is closed")
        self._control.sendall(json.dumps(request).encode() + b"\n")
        while b"\n" not in self._answers:
            if not (heard := self._control.recv(1 << 16)):
                raise RuntimeError("the switch has ended")
            self._answers += heard
        line, _, self._answers = self._answers.partition(b"\n")
        return json.loads(line)

    def set(self, weather: Weather, source: Host | None = None, target: Host | None = None) -> None:
        """Change the weather on the line from `source` to `target`; without one, from or to all.

        In force for each packet that the switch reads after this has returned. What is under way
        arrives when it would have.
        """
        self._ask(
            {
                "weather": dataclasses.asdict(weather),
                "source": source and source.name,
                "target": target and target.name,
            }
        )

    def counters(self, source: Host | None = None, target: Host | None = None) -> Counters:
        """What became of the packets of a line so far, or of all that fit."""
        total = Counters()
        for one, other, counts in self._ask({})["lines"]:
            if source and source.name != one or target and target.name != other:
                continue
            for name, count in counts.items():
                setattr(total, name, getattr(total, name) + count)
        return total

    def totals(self) -> dict[str, int]:
        """What no line counts: `unroutable` (to no host: multicast), `unwritten` (the device would
        not take it), `unheld` (too much held back), `held` (now)."""
        return {k: v for k, v in self._ask({}).items() if k != "lines"}


class Engine:
    """The process itself: one thread, one loop."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.control = socket.socket(fileno=spec["control"])
        self.devices: dict[int, str] = {}
        self.places: dict[bytes, tuple[str, int]] = {}
        for name, (fd, addresses) in spec["hosts"].items():
            self.devices[fd] = name
            for address in addresses:
                self.places[ipaddress.ip_address(address).packed] = (name, fd)
        self.lines = {
            pair: Line(random.Random("{}/{}/{}".format(spec["seed"], *pair)))
            for pair in itertools.permutations(self.devices.values(), 2)
        }
        self.held: list[tuple[float, int, int, bytes]] = []
        self.held_bytes = 0
        self.serial = itertools.count()
        self.counts = dict.fromkeys(("unroutable", "unwritten", "unheld"), 0)
        self.heard = b""

    def run(self) -> None:
        """Until the control socket is closed."""
        poll = select.epoll()
        for fd in (self.control.fileno(), *self.devices):
            poll.register(fd, select.EPOLLIN)
        while True:
            wait_s = -1.0
            if self.held:
                wait_s = max(0.0, self.held[0][0] - time.monotonic())
            for fd, _ in poll.poll(wait_s):
                if fd in self.devices:
                    self.take(fd)
                elif not self.answer():
                    return
            self.deliver(time.monotonic())

    def take(self, fd: int) -> None:
        source = self.devices[fd]
        for _ in range(BATCH):
            try:
                packet = os.read(fd, 65536)
            except BlockingIOError:
                return
            address = destination(packet)
            name, to = self.places.get(address or b"", ("", -1))
            if to < 0 or name == source:
                self.counts["unroutable"] += 1
                continue
            now = time.monotonic()
            for due, arriving in self.lines[source, name].carry(packet, now):
                if due <= now and not self.held:
                    self.write(to, arriving)
                elif self.held_bytes + len(arriving) > HELD_BYTES_MAX:
                    self.counts["unheld"] += 1
                else:
                    self.held_bytes += len(arriving)
                    heapq.heappush(self.held, (due, next(self.serial), to, arriving))

    def deliver(self, now: float) -> None:
        while self.held and self.held[0][0] <= now:
            _, _, to, packet = heapq.heappop(self.held)
            self.held_bytes -= len(packet)
            self.write(to, packet)

    def write(self, to: int, packet: bytes) -> None:
        try:
            os.write(to, packet)
        except OSError:  # down, full, or no IP packet any more
            self.counts["unwritten"] += 1

    def answer(self) -> bool:
        heard = self.control.recv(1 << 16)
        if not heard:
            return False
        *requests, self.heard = (self.heard + heard).split(b"\n")
        for request in map(json.loads, requests):
            if "weather" in request:
                weather = Weather(**request["weather"])
                for (source, target), line in self.lines.items():
                    if request["source"] in (None, source) and request["target"] in (None, target):
                        line.weather = weather
            self.control.sendall(json.dumps(self.status()).encode() + b"\n")
        return True

    def status(self) -> dict[str, Any]:
        lines: Iterable[Any] = (
            (*pair, dataclasses.asdict(line.counters)) for pair, line in self.lines.items()
        )
        return {"lines": list(lines), "held": len(self.held), **self.counts}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        Engine(json.loads(sys.argv[1])).run()
