"""The rig does what it is asked to, and leaves nothing behind.

Whether a cut cuts is told by order, not by time: what was sent through it has not arrived when what
was sent after it was healed has.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import math
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.rig import limits, netns
from tests.faults.rig.limits import Cgroup, Rlimits
from tests.faults.rig.line import CLEAR, MTU, Counters, Line, Weather, corrupted, falsified
from tests.faults.rig.marks import requires_root_network
from tests.faults.rig.netns import UNREACHABLE, Host, Network, ours, remove_stale
from tests.faults.rig.process import Ended, OsProcess, usage
from tests.faults.rig.proxy import UP, Manners, Proxy, replay
from tests.faults.rig.schedule import ALL_KINDS, Hands, Schedule, Step
from tests.faults.rig.switch import Switch
from tests.support import SANITIZED

PATIENCE_S = 30.0
ROOT = Path(__file__).parents[2]
FAMILIES = ["ipv4", "ipv6"]
SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(5) as network:
        yield network


@pytest.fixture(scope="module")
def switch(network: Network) -> Iterator[Switch]:
    with Switch(network, seed=1) as switch:
        yield switch


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Descriptors, threads, namespaces and the machine's interfaces are as they were."""

    def held() -> tuple[list[str], int, list[str], list[str]]:
        interfaces = sorted(name for _, name in socket.if_nameindex())
        return sorted(os.listdir("/proc/self/fd")), threading.active_count(), ours(), interfaces

    before = held()
    yield
    assert held() == before


@pytest.fixture
def healed_network(network: Network) -> Iterator[Network]:
    yield network
    network.heal()


def udp(host: Host, address: str) -> socket.socket:
    sock = host.make_socket(
        socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
    )
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    sock.bind((address, 0))
    sock.settimeout(PATIENCE_S)
    return sock


def reached(
    hosts: list[Host], family: str, expected: set[tuple[str, str]], heal: Callable[[], None]
) -> set[tuple[str, str]]:
    """Which hosts reach which by a datagram before `heal`, after which all reach all."""
    with contextlib.ExitStack() as stack:
        socks = {h.name: stack.enter_context(udp(h, getattr(h, family))) for h in hosts}
        pairs = [(a, b) for a in socks for b in socks if a != b]

        def say(what: str) -> None:
            for one, other in pairs:
                socks[one].sendto(f"{what} {one}".encode(), socks[other].getsockname())

        say("before")
        heal()
        say("after")
        heard: set[tuple[str, str, str]] = set()
        for name, sock in socks.items():
            wanted = {("after", other, name) for other in socks if other != name}
            wanted |= {("before", one, to) for one, to in expected if to == name}
            while not wanted <= heard:
                what, one = sock.recv(100).decode().split()
                heard.add((what, one, name))
    return {(one, other) for what, one, other in heard if what == "before"}


def all_pairs(hosts: Iterable[Host]) -> set[tuple[str, str]]:
    names = [host.name for host in hosts]
    return {(one, other) for one in names for other in names if one != other}


# Cuts.


@requires_root_network
@pytest.mark.parametrize("family", FAMILIES)
def test_hosts_reach_each_other_and_cuts_cut(healed_network: Network, family: str) -> None:
    n1, n2, n3, n4, n5 = healed_network.hosts
    everything = all_pairs(healed_network.hosts)

    def left(*gone: tuple[str, str]) -> set[tuple[str, str]]:
        expected = everything - set(gone)
        got = reached(healed_network.hosts, family, expected, healed_network.heal)
        return everything - got

    assert left() == set()
    healed_network.cut(n1, n2)
    assert left(("n1", "n2"), ("n2", "n1")) == {("n1", "n2"), ("n2", "n1")}
    healed_network.cut_one_way(n1, n2)
    assert left(("n1", "n2")) == {("n1", "n2")}
    healed_network.partition([n1, n2], [n3, n4, n5])
    across = {pair for pair in everything if len({"n1", "n2"} & set(pair)) == 1}
    assert left(*across) == across
    healed_network.isolate(n5)
    alone = {pair for pair in everything if "n5" in pair}
    assert left(*alone) == alone


@requires_root_network
def test_healing_may_be_of_one_pair(healed_network: Network) -> None:
    n1, n2, n3 = healed_network.hosts[:3]
    healed_network.partition([n1], [n2, n3])
    healed_network.heal(n2, n1)
    everything = all_pairs(healed_network.hosts)
    cut = {("n1", "n3"), ("n3", "n1")}
    assert (
        reached(healed_network.hosts, "ipv4", everything - cut, healed_network.heal)
        == everything - cut
    )


@contextlib.contextmanager
def connection(
    one: Host, other: Host, address: str
) -> Iterator[tuple[socket.socket, socket.socket, tuple[str, int]]]:
    """Both ends of a TCP connection, and where the second one listens."""
    with other.listen(address=address) as server:
        at = server.getsockname()[:2]
        with one.connect(at, PATIENCE_S) as client:
            accepted, _ = server.accept()
            with accepted:
                accepted.settimeout(PATIENCE_S)
                yield client, accepted, at


@requires_root_network
@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_lives_on_after_a_cut(healed_network: Network, family: str) -> None:
    one, other = healed_network.hosts[:2]
    with connection(one, other, getattr(other, family)) as (client, accepted, _):
        client.sendall(b"1")
        assert accepted.recv(9) == b"1"
        healed_network.cut(one, other)
        client.sendall(b"2")
        accepted.sendall(b"3")
        healed_network.heal()
        assert accepted.recv(9) == b"2"
        assert client.recv(9) == b"3"


@requires_root_network
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reject_is_answered_as_by_a_rebooted_host(healed_network: Network, family: str) -> None:
    one, other = healed_network.hosts[:2]
    with connection(one, other, getattr(other, family)) as (client, _, at):
        healed_network.reject(one, other)
        client.sendall(b"1")
        with pytest.raises(ConnectionResetError):
            client.recv(9)
        with pytest.raises(ConnectionRefusedError):
            one.connect(at, PATIENCE_S)
        healed_network.heal()
        healed_network.reject(one, other, UNREACHABLE)
        with pytest.raises(OSError) as failed:
            one.connect(at, PATIENCE_S)
        assert failed.value.errno in (errno.EHOSTUNREACH, errno.EACCES, errno.ECONNREFUSED)


@requires_root_network
@pytest.mark.parametrize("family", FAMILIES)
def test_established_connections_go_dead_while_new_ones_pass(
    healed_network: Network, family: str
) -> None:
    one, other = healed_network.hosts[:2]
    address = getattr(other, family)
    with connection(one, other, address) as (old, accepted, _):
        old.sendall(b"1")
        assert accepted.recv(9) == b"1"
        healed_network.drop_established(other)
        old.sendall(b"2")
        with connection(one, other, address) as (fresh, there, _):
            fresh.sendall(b"3")
            there.sendall(b"4")
            assert there.recv(9) == b"3" and fresh.recv(9) == b"4"
        accepted.setblocking(False)
        with pytest.raises(BlockingIOError):
            accepted.recv(9)
        assert one.connections(other) == 1


@requires_root_network
@pytest.mark.parametrize("family", FAMILIES)
def test_sockets_are_killed_from_below(healed_network: Network, family: str) -> None:
    one, other, third = healed_network.hosts[:3]
    with (
        connection(one, other, getattr(other, family)) as (client, accepted, _),
        connection(one, third, getattr(third, family)) as (_, kept, _),
    ):
        assert one.kill_sockets(other) == 1
        with pytest.raises(ConnectionAbortedError):
            client.recv(9)
        with pytest.raises(ConnectionResetError):
            accepted.recv(9)
        assert one.connections(third) == 1
        kept.setblocking(False)
        with pytest.raises(BlockingIOError):
            kept.recv(9)


@requires_root_network
def test_routes_and_addresses_that_lead_nowhere(network: Network) -> None:
    one, other = network.hosts[:2]
    expected = {
        "blackhole": errno.EINVAL,
        "unreachable": errno.EHOSTUNREACH,
        "prohibit": errno.EACCES,
    }
    for kind, number in expected.items():
        for address in (other.ipv4, other.ipv6):
            one.block_route(address, kind)
            with pytest.raises(OSError) as failed:
                one.connect((address, 9), PATIENCE_S)
            one.unblock_route(address, kind)
            assert failed.value.errno == number
            with pytest.raises(ConnectionRefusedError):
                one.connect((address, 9), PATIENCE_S)
    for address in (netns.BLACK_HOLE_IPV4, netns.BLACK_HOLE_IPV6):
        with pytest.raises(TimeoutError):
            one.connect((address, 9), 0.2)


@requires_root_network
def test_a_parameter_of_the_kernel_is_set_in_one_host_only(network: Network) -> None:
    one, other = network.hosts[:2]
    before = other.run("cat", "/proc/sys/net/ipv4/tcp_retries2")
    one.sysctl("net.ipv4.tcp_retries2", 3)
    assert one.run("cat", "/proc/sys/net/ipv4/tcp_retries2") == "3\n"
    assert other.run("cat", "/proc/sys/net/ipv4/tcp_retries2") == before != "3\n"
    with pytest.raises(ValueError, match="below net"):
        one.sysctl("kernel.panic", 0)


# Nothing is left.


@requires_root_network
def test_a_failing_test_leaves_nothing() -> None:
    before = ours()
    with pytest.raises(ZeroDivisionError), Network(2) as network:
        # Something still runs in it.
        argv = network.hosts[0].argv(["sleep", "1000"])
        with OsProcess(argv) as process, Switch(network, 1) as switch:
            made = [*(host.namespace for host in network.hosts), network.hub]
            assert set(made) <= set(ours())
            pids = [process.pid, switch.pid]
            _ = 1 / 0
    assert ours() == before
    assert [netns.started_at(pid) for pid in pids] == [None, None]


HOLDS = """
import signal, subprocess
from tests.faults.rig.netns import Network
from tests.faults.rig.switch import Switch
with Network(2) as network, Switch(network, 1) as switch:
    # Not by the rig's own means: it outlives its starter.
    child = subprocess.Popen(network.hosts[0].argv(["sleep", "1000"]))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    print("ready", network.hub, child.pid, switch.pid, flush=True)
    signal.sigwait([signal.SIGINT])
    raise KeyboardInterrupt
"""


@requires_root_network
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_run_leaves_nothing(number: signal.Signals) -> None:
    with OsProcess([sys.executable, "-c", HOLDS], env={"PYTHONPATH": str(ROOT)}) as process:
        _, hub, child, switch = process.wait_line("ready").split()
        ends = [os.pidfd_open(int(pid)) for pid in (child, switch)]
        try:
            process.signal(number)
            process.wait()
            stale = remove_stale()
            # After an interrupt it cleaned up by itself; else this process did.
            assert (hub in stale) == (number == signal.SIGKILL)
            assert not (netns.NAMES / hub).exists()
            for end in ends:
                poll = select.poll()
                poll.register(end, select.POLLIN)
                assert poll.poll(PATIENCE_S * 1000)
        finally:
            for end in ends:
                os.close(end)


def test_names_of_the_living_are_not_stale() -> None:
    start = netns.started_at(os.getpid()) or 0
    assert not netns.owner_is_gone(netns.own_name("1-n1"))
    assert netns.owner_is_gone(f"rabble-{os.getpid()}-{start - 1}-1-n1")
    for name in ("rabble", "rabble-x-y-z", "other-1-1-1", "rabble-1"):
        assert not netns.owner_is_gone(name)


# A line of the switch, by counts.


def packet(source: int, payload: bytes, protocol: int = 17, version: int = 4) -> bytes:
    """An IP packet with a right checksum."""
    if protocol == 17:
        head = struct.pack("!HHHH", 1, 2, 8 + len(payload), 0)
        place = 6
    else:
        head = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 5 << 4, 16, 100, 0, 0)
        place = 16
    if version == 4:
        one, other = bytes([192, 0, 2, source]), bytes([192, 0, 2, 9])
        size = 20 + len(head) + len(payload)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, protocol, 0, one, other)
    else:
        one, other = bytes(15) + bytes([source]), bytes(15) + b"\x09"
        ip = struct.pack("!IHBB16s16s", 6 << 28, len(head) + len(payload), protocol, 64, one, other)
    sum_ = checksum(one, other, protocol, head + payload)
    head = head[:place] + struct.pack("!H", sum_ or 0xFFFF) + head[place + 2 :]
    return ip + head + payload


def checksum(one: bytes, other: bytes, protocol: int, data: bytes) -> int:
    """RFC 1071, over the pseudo header too; 0 if `data` has its right checksum."""
    data = one + other + struct.pack("!II", protocol, len(data)) + data
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def is_right(data: bytes) -> bool:
    start, at, size = (20, 12, 4) if data[0] >> 4 == 4 else (40, 8, 16)
    protocol = data[9] if start == 20 else data[6]
    one, other = data[at : at + size], data[at + size : at + 2 * size]
    return checksum(one, other, protocol, data[start:]) == 0


@given(
    payload=st.binary(min_size=1, max_size=50),
    bit=st.floats(0, 1, exclude_max=True),
    protocol=st.sampled_from([6, 17]),
    version=st.sampled_from([4, 6]),
)
def test_a_falsified_packet_has_a_right_checksum_and_a_corrupted_one_has_not(
    payload: bytes, bit: float, protocol: int, version: int
) -> None:
    good = packet(1, payload, protocol, version)
    assert is_right(good)

    def differing(other: bytes) -> list[int]:
        return [i for i, (a, b) in enumerate(zip(good, other, strict=True)) if a != b]

    bad = corrupted(good, bit)
    assert len(differing(bad)) == 1 and not is_right(bad)
    false = falsified(good, bit)
    assert false is not None and is_right(false)
    body = len(good) - len(payload)
    place = good.index(payload, body)
    changed = [i for i in differing(false) if i >= place]
    assert len(changed) == 1
    assert (good[changed[0]] ^ false[changed[0]]).bit_count() == 1


def test_what_has_no_payload_cannot_be_falsified() -> None:
    assert falsified(packet(1, b"", 6), 0.5) is None
    assert falsified(b"", 0.5) is None


@pytest.mark.parametrize("seed", range(3))
def test_rates_are_what_was_asked_for(seed: int) -> None:
    count = 20_000
    weather = Weather(loss=0.1, duplicate=0.2, corrupt=0.05, falsify=0.03, reorder=0.02)
    line = Line(random.Random(seed), weather)
    good = packet(1, bytes(100))
    for number in range(count):
        line.carry(good, float(number))
    seen = line.counters

    def near(got: int, of: int, rate: float) -> bool:
        return abs(got - of * rate) < 4 * math.sqrt(of * rate * (1 - rate))

    passed = count - seen.lost
    assert seen.seen == count and seen.seen_bytes == count * len(good)
    assert near(seen.lost, count, weather.loss)
    assert near(seen.duplicated, passed, weather.duplicate)
    assert near(seen.corrupted, passed, weather.corrupt)
    assert near(seen.falsified, passed, weather.falsify)
    assert near(seen.reordered, passed, weather.reorder)
    assert seen.handed_on == passed + seen.duplicated


weathers = st.builds(
    Weather,
    delay_s=st.floats(0, 1),
    jitter_s=st.floats(0, 1),
    loss=st.floats(0, 1),
    duplicate=st.floats(0, 1),
    corrupt=st.floats(0, 1),
    falsify=st.floats(0, 1),
    reorder=st.sampled_from([0.0, 0.3]),
    rate_bit_s=st.sampled_from([0.0, 64e3, 1e6]),
    queue_bytes=st.sampled_from([MTU, 10 * MTU]),
    cut=st.booleans(),
)


@given(
    weathers,
    st.integers(0, 2**32),
    st.lists(st.tuples(st.floats(0, 0.1), st.integers(1, 1400)), max_size=60),
)
def test_a_line_accounts_for_every_packet_and_is_never_early(
    weather: Weather, seed: int, sent: list[tuple[float, int]]
) -> None:
    lines = [Line(random.Random(seed), weather) for _ in range(2)]
    now = 0.0
    last = 0.0
    for gap, size in sent:
        now += gap
        data = packet(1, bytes(size))
        before = lines[0].counters.reordered
        arriving = lines[0].carry(data, now)
        assert arriving == lines[1].carry(data, now)
        for due, copy in arriving:
            assert due >= now + max(0.0, weather.delay_s - weather.jitter_s)
            assert len(copy) == len(data)
            if lines[0].counters.reordered == before:
                assert due >= last
                last = due
    seen = lines[0].counters
    kept = seen.seen - seen.cut - seen.lost - seen.overflowed
    assert seen.seen == len(sent) and seen.handed_on == kept + seen.duplicated


@pytest.mark.parametrize("rate_bit_s", [64e3, 1e6, 100e6])
def test_a_token_bucket_gives_the_rate_after_its_burst(rate_bit_s: float) -> None:
    line = Line(random.Random(1), Weather(rate_bit_s=rate_bit_s, queue_bytes=1 << 30))
    data = packet(1, bytes(1000))
    count = 1000
    dues = [line.carry(data, 0.0)[0][0] for _ in range(count)]
    assert dues.count(0.0) == line.weather.burst_bytes // len(data)
    total_s = (count * len(data) - line.weather.burst_bytes) * 8 / rate_bit_s
    assert dues[-1] == pytest.approx(total_s)
    # What was idle long enough may burst again, but not more.
    later = [line.carry(data, dues[-1] + 1000)[0][0] - dues[-1] - 1000 for _ in range(3)]
    assert later[0] == later[1] == 0 < later[2]


def test_a_full_queue_overflows() -> None:
    line = Line(random.Random(1), Weather(rate_bit_s=64e3, queue_bytes=10_000))
    data = packet(1, bytes(972))
    for _ in range(100):
        line.carry(data, 0.0)
    assert line.counters.handed_on == 10 + 3
    assert line.counters.overflowed == 100 - line.counters.handed_on


def test_wrong_weather_is_refused() -> None:
    for wrong in ({"loss": 1.1}, {"delay_s": -1}, {"jitter_s": math.nan}, {"burst_bytes": 1}):
        with pytest.raises(ValueError):
            Weather(**wrong)


# The switch.


def through(
    switch: Switch, one: Host, other: Host, family: str, weather: Weather, count: int
) -> tuple[list[bytes], Counters]:
    """What arrives of `count` numbered datagrams, and what the line counted meanwhile."""
    address = getattr(switch, family)
    with udp(one, address(one)) as sender, udp(other, address(other)) as receiver:
        before = switch.counters(one, other)
        switch.set(weather, one, other)
        for number in range(count):
            sender.sendto(b"%06d" % number, receiver.getsockname())
            # So many that the device's queue cannot overflow; the switch has read them all then.
            if number % 500 == 499 or number == count - 1:
                while switch.counters(one, other).seen - before.seen <= number:
                    pass
        after = switch.counters(one, other)
        switch.set(CLEAR, one, other)
        sender.sendto(b"end", receiver.getsockname())
        heard = list(iter(lambda: receiver.recv(100), b"end"))
    difference = {k: v - getattr(before, k) for k, v in vars(after).items()}
    return heard, Counters(**difference)


def checksum_errors(host: Host, kind: str) -> int:
    """How many packets the kernel of a host has dropped for their checksum."""
    total = 0
    for line in host.run("cat", "/proc/net/snmp6").splitlines():
        name, value = line.split()
        total += int(value) if name == f"{kind}6InCsumErrors" else 0
    names, values = (
        line.split()
        for line in host.run("cat", "/proc/net/snmp").splitlines()
        if line.startswith(f"{kind}:")
    )
    return total + int(values[names.index("InCsumErrors")])


@requires_root_network
@pytest.mark.parametrize("family", FAMILIES)
def test_the_switch_spoils_as_its_counters_say(
    network: Network, switch: Switch, family: str
) -> None:
    one, other = network.hosts[:2]
    count = 1500
    expected = [b"%06d" % number for number in range(count)]

    heard, counts = through(switch, one, other, family, CLEAR, count)
    assert heard == expected and counts.handed_on == counts.seen == count

    heard, counts = through(switch, one, other, family, Weather(loss=0.2, duplicate=0.1), count)
    assert len(heard) == counts.handed_on and counts.lost > 0 < counts.duplicated
    assert len(set(heard)) == count - counts.lost
    assert heard == sorted(heard)

    wrong = checksum_errors(other, "Udp")
    heard, counts = through(switch, one, other, family, Weather(corrupt=0.2), count)
    # A flipped port is a wrong checksum as well; a flipped length is another error.
    assert len(heard) == count - counts.corrupted and set(heard) <= set(expected)
    assert 0 < checksum_errors(other, "Udp") - wrong <= counts.corrupted

    heard, counts = through(switch, one, other, family, Weather(falsify=0.2), count)
    assert len(heard) == count
    assert sum(a != b for a, b in zip(heard, expected, strict=True)) == counts.falsified > 0

    late = Weather(reorder=0.1, reorder_s=0.01)
    heard, counts = through(switch, one, other, family, late, 200)
    assert counts.reordered > 0


@requires_root_network
def test_what_was_held_back_comes_later(network: Network, switch: Switch) -> None:
    one, other = network.hosts[:2]
    with (
        udp(one, switch.ipv4(one)) as sender,
        udp(other, switch.ipv4(other)) as receiver,
    ):
        delay_s = 0.05
        switch.set(Weather(delay_s=delay_s))
        begin = time.monotonic()
        sender.sendto(b"1", receiver.getsockname())
        assert receiver.recv(9) == b"1"
        assert time.monotonic() - begin >= delay_s

        seen = switch.counters(one, other).seen
        switch.set(Weather(reorder=1, reorder_s=0.1))
        sender.sendto(b"late", receiver.getsockname())
        while switch.counters(one, other).seen == seen:
            pass
        switch.set(CLEAR)
        sender.sendto(b"soon", receiver.getsockname())
        assert [receiver.recv(9), receiver.recv(9)] == [b"soon", b"late"]


@requires_root_network
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_in_the_switch_is_one_way(network: Network, switch: Switch, family: str) -> None:
    one, other, third = network.hosts[:3]
    address = getattr(switch, family)
    with contextlib.ExitStack() as stack:
        a, b, c = (stack.enter_context(udp(h, address(h))) for h in (one, other, third))
        switch.set(Weather(cut=True), one, other)
        a.sendto(b"cut", b.getsockname())
        b.sendto(b"back", a.getsockname())
        a.sendto(b"aside", c.getsockname())
        assert a.recv(9) == b"back" and c.recv(9) == b"aside"
        while not switch.counters(one, other).cut:
            pass
        switch.set(CLEAR)
        a.sendto(b"healed", b.getsockname())
        assert b.recv(9) == b"healed"


@requires_root_network
def test_the_networks_cuts_hold_in_the_switch(healed_network: Network, switch: Switch) -> None:
    one, other = healed_network.hosts[:2]
    with (
        udp(one, switch.ipv4(one)) as sender,
        udp(other, switch.ipv4(other)) as receiver,
    ):
        handed = switch.counters(one, other).handed_on
        healed_network.cut(one, other)
        sender.sendto(b"cut", receiver.getsockname())
        while switch.counters(one, other).handed_on == handed:
            pass
        healed_network.heal()
        sender.sendto(b"healed", receiver.getsockname())
        assert receiver.recv(9) == b"healed"


@requires_root_network
def test_the_same_seed_has_the_same_fate() -> None:
    weather = Weather(loss=0.2, duplicate=0.2, falsify=0.1)
    fates = []
    with Network(2) as network:
        for seed in (5, 5, 6):
            with Switch(network, seed) as switch:
                one, other = network.hosts
                fates.append(through(switch, one, other, "ipv4", weather, 300)[0])
    assert fates[0] == fates[1] != fates[2]


def transfer(one: Host, other: Host, address: str, size: int) -> tuple[bytes, bytes]:
    """Digests of what was sent through a TCP connection and of what arrived."""
    data = random.Random(size).randbytes(size)
    with connection(one, other, address) as (client, accepted, _):

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        arrived = hashlib.sha256()
        while part := accepted.recv(1 << 16):
            arrived.update(part)
        sender.join()
    return hashlib.sha256(data).digest(), arrived.digest()


@requires_root_network
@pytest.mark.parametrize("family", FAMILIES)
def test_tcp_survives_bad_weather(network: Network, switch: Switch, family: str) -> None:
    one, other = network.hosts[:2]
    wrong = checksum_errors(other, "Tcp")
    before = switch.counters(one, other)
    switch.set(Weather(loss=0.01, duplicate=0.05, corrupt=0.02, reorder=0.05, reorder_s=0.002))
    sent, arrived = transfer(one, other, getattr(switch, family)(other), 1_000_000)
    switch.set(CLEAR)
    assert sent == arrived
    after = switch.counters(one, other)
    for name in ("lost", "duplicated", "corrupted", "reordered"):
        assert getattr(after, name) > getattr(before, name), name
    assert checksum_errors(other, "Tcp") > wrong


@requires_root_network
def test_a_falsified_bit_reaches_the_application(network: Network, switch: Switch) -> None:
    one, other = network.hosts[:2]
    switch.set(Weather(falsify=1), one, other)
    sent, arrived = transfer(one, other, switch.ipv4(other), 10_000)
    switch.set(CLEAR)
    assert sent != arrived


# The proxy.


@contextlib.contextmanager
def proxied(seed: int = 0) -> Iterator[tuple[Proxy, socket.socket, socket.socket]]:
    """A proxy with one connection through it: the client's end and the server's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with Proxy(server.getsockname(), seed) as proxy:
            with socket.create_connection(proxy.address, PATIENCE_S) as client:
                accepted, _ = server.accept()
                with accepted:
                    accepted.settimeout(PATIENCE_S)
                    yield proxy, client, accepted


def take(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        assert (part := sock.recv(size - len(data))), data
        data += part
    return data


def test_the_proxy_passes_splits_and_delays() -> None:
    with proxied() as (proxy, client, accepted):
        client.sendall(b"hello")
        assert take(accepted, 5) == b"hello"
        accepted.sendall(b"world")
        assert take(client, 5) == b"world"
        proxy.set(Manners(split_bytes=1, delay_s=0.01), UP)
        begin = time.monotonic()
        client.sendall(b"abcde")
        assert accepted.recv(1) == b"a"
        assert take(accepted, 4) == b"bcde"
        assert time.monotonic() - begin >= 0.05
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(9) == b""
        accepted.sendall(b"!")
        assert client.recv(9) == b"!"
        (recording,) = proxy.recordings
        assert (bytes(recording.up), bytes(recording.down)) == (b"helloabcde", b"world!")


def test_the_proxy_stalls_one_direction() -> None:
    with proxied() as (proxy, client, accepted):
        proxy.set(Manners(stalled=True), UP)
        client.sendall(b"up")
        accepted.sendall(b"down")
        assert take(client, 4) == b"down"
        accepted.setblocking(False)
        with pytest.raises(BlockingIOError):
            accepted.recv(9)
        accepted.settimeout(PATIENCE_S)
        proxy.set(Manners())
        assert take(accepted, 2) == b"up"


def test_the_proxy_swallows_and_flips() -> None:
    with proxied(seed=3) as (proxy, client, accepted):
        proxy.set(Manners(swallow=True), UP)
        client.sendall(b"gone")
        proxy.wait(lambda p: bytes(p.recordings[0].up) == b"gone")
        proxy.set(Manners(split_bytes=1, flip=0.25), UP)
        client.sendall(bytes(400))
        heard = take(accepted, 400)
        assert sum(map(int.bit_count, heard)) == proxy.flipped
        assert 60 < proxy.flipped < 140


@pytest.mark.parametrize("reset", [False, True])
def test_the_proxy_drops_and_refuses(reset: bool) -> None:
    with proxied() as (proxy, client, accepted):
        assert proxy.drop(reset) == 1
        for sock in (client, accepted):
            if reset:
                with pytest.raises(ConnectionResetError):
                    sock.recv(9)
            else:
                assert sock.recv(9) == b""
        proxy.refuse()
        with socket.create_connection(proxy.address, PATIENCE_S) as refused:
            assert refused.recv(9) == b""
        assert proxy.drop() == 0


def test_the_proxy_ends_a_connection_whose_target_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    with Proxy(address) as proxy, socket.create_connection(proxy.address, PATIENCE_S) as client:
        assert client.recv(9) == b""


def test_a_recorded_session_is_replayed() -> None:
    with proxied() as (proxy, client, accepted):
        client.sendall(b"secret")
        assert take(accepted, 6) == b"secret"
        recorded = bytes(proxy.recordings[0].up)
        answers: list[bytes] = []
        with socket.create_server(("127.0.0.1", 0)) as victim:
            address = victim.getsockname()
            other = threading.Thread(
                target=lambda: answers.append(replay(recorded, address, PATIENCE_S))
            )
            other.start()
            again, _ = victim.accept()
            with again:
                again.settimeout(PATIENCE_S)
                assert take(again, 6) == b"secret" and again.recv(1) == b""
                again.sendall(b"no")
            other.join()
        assert answers == [b"no"]


# Processes.

SERVES = """
import os, resource, signal, subprocess, sys, threading
child = subprocess.Popen(["sleep", "1000"])
print("child", child.pid, flush=True)
# Waited for, as a handler would miss one that comes just before the wait.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
threading.Thread(target=threading.Event().wait, daemon=True).start()
held = open(os.devnull)
print("ready", *resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)
signal.sigwait([signal.SIGTERM])
print("leaving", file=sys.stderr, flush=True)
os._exit(7)
"""


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_is_awaited_paused_measured_and_ended() -> None:
    argv = [sys.executable, "-c", SERVES]
    with OsProcess(argv, ready="^ready", rlimits=Rlimits(open_files=77)) as process:
        assert process.lines()[1] == "ready 77 77"
        assert process.alive and process.wait_line("child") == process.lines()[0]
        used = process.usage()
        assert used.threads == 2 and used.fds == 4 and 1 << 20 < used.rss_bytes < 1 << 28
        process.pause()
        assert state_of(process.pid) == "T"
        process.set_rlimit(resource.RLIMIT_NOFILE, 50)
        assert "50" in Path(f"/proc/{process.pid}/limits").read_text()
        process.resume()
        process.terminate()
        assert process.wait() == 7
        assert process.stderr() == "leaving\n"
        child = os.pidfd_open(int(process.lines()[0].split()[1]))
    # What it started ends with it.
    poll = select.poll()
    poll.register(child, select.POLLIN)
    assert poll.poll(PATIENCE_S * 1000)
    os.close(child)
    assert process.stderr() == "leaving\n" and not process.alive


def test_a_paused_process_is_killed() -> None:
    with OsProcess(["sleep", "1000"]) as process:
        process.pause()
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.signal(signal.SIGTERM)
    with OsProcess(["sleep", "1000"]) as process:
        process.pause()
    assert netns.started_at(process.pid) is None
    assert process.wait() == -signal.SIGKILL


def test_a_process_outlives_the_thread_that_started_it() -> None:
    script = "import signal; print('ready', flush=True); signal.sigwait([signal.SIGTERM])"
    script = script.replace("print", "signal.pthread_sigmask(0, [signal.SIGTERM]); print")
    started: list[OsProcess] = []

    def start() -> None:
        started.append(OsProcess([sys.executable, "-c", script], ready="ready"))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with started[0] as process:
        process.terminate()
        assert process.wait() == 0


def test_a_program_that_is_not_there_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError):
        OsProcess(["no-such-program"])


def test_who_ends_without_being_ready_is_told_of() -> None:
    script = "import sys; print('1'); print('why', file=sys.stderr); sys.exit(3)"
    with pytest.raises(Ended, match="why"):
        OsProcess([sys.executable, "-c", script], ready="ready")
    with OsProcess(["sleep", "1000"]) as process, pytest.raises(TimeoutError):
        process.wait(0.01)
    with OsProcess(["sleep", "1000"]) as process, pytest.raises(TimeoutError):
        process.wait_line("ready", 0.01)


def test_lines_are_awaited_one_after_another() -> None:
    script = "print(*range(3), sep='\\n', flush=True); input()"
    with OsProcess([sys.executable, "-c", script]) as process:
        assert process.wait_line(r"\d", skip=2) == "2"
        with pytest.raises(Ended):
            process.wait_line(r"\d", skip=3)
        assert process.wait() == 1


def test_a_process_can_be_talked_to() -> None:
    script = "while True: print(input()[::-1], flush=True)"
    with OsProcess([sys.executable, "-c", script], talk=True) as process:
        for word in ("abc", "def"):
            process.say(word)
            assert process.wait_line(word[::-1])
        process.kill()
        process.say("nobody listens")


def test_what_a_process_holds_is_counted() -> None:
    before = usage(os.getpid())
    with open(os.devnull), open(os.devnull):
        assert usage(os.getpid()).fds == before.fds + 2


@requires_root_network
def test_a_process_runs_in_a_host(network: Network) -> None:
    script = "import socket; print('ready', *[n for _, n in socket.if_nameindex()], flush=True)"
    with OsProcess([sys.executable, "-c", script], host=network["n2"], ready="ready") as process:
        assert "eth0" in process.lines()[0].split()
        assert process.wait() == 0


@pytest.mark.skipif(limits.lacking("pids") is not None, reason=f"{limits.lacking('pids')}")
def test_a_group_bounds_processes() -> None:
    script = "import threading\ntry: threading.Thread(target=print).start()\n"
    script += "except RuntimeError: print('refused')"
    with Cgroup(pids=1) as group:
        folder = group.folders["pids"]
        with OsProcess([sys.executable, "-c", script], cgroup=group) as process:
            assert process.wait_line("refused") and process.wait() == 0
    assert not folder.exists()


@pytest.mark.skipif(limits.lacking("cpu") is not None, reason=f"{limits.lacking('cpu')}")
def test_a_group_bounds_processor_time_and_ends_what_is_in_it() -> None:
    with Cgroup(cpu=0.2) as group:
        script = "print('ready', flush=True)\nwhile True: pass"
        process = OsProcess([sys.executable, "-c", script], cgroup=group)
        try:
            process.wait_line("ready")
            before = group.read("cpu", "cpu.stat")
            while group.read("cpu", "cpu.stat").split()[3] == before.split()[3]:
                pass  # nr_throttled grows
            group.close()
            assert process.wait() == -signal.SIGKILL
        finally:
            process.close()


@pytest.mark.skipif(limits.lacking("memory") is not None, reason=f"{limits.lacking('memory')}")
def test_a_group_bounds_memory() -> None:
    with Cgroup(memory_bytes=64 << 20) as group:
        script = "data = bytearray(256 << 20)"
        with OsProcess([sys.executable, "-c", script], cgroup=group) as process:
            assert process.wait() == -signal.SIGKILL


@pytest.mark.skipif(SANITIZED, reason="the sanitizer takes terabytes of addresses")
def test_address_space_is_bounded_without_a_group() -> None:
    script = "try: bytearray(1 << 30)\nexcept MemoryError: print('refused')"
    bounded = Rlimits(address_space_bytes=512 << 20)
    with OsProcess([sys.executable, "-c", script], rlimits=bounded) as process:
        assert process.wait_line("refused")


# Schedules.

HOSTS = ["n1", "n2", "n3", "n4", "n5"]


@given(st.integers(0, 2**32), st.sampled_from([0, 5, 60]), st.sets(st.sampled_from(ALL_KINDS)))
def test_a_schedule_is_the_same_for_its_seed_and_takes_back_what_it_did(
    seed: int, duration_s: int, kinds: set[str]
) -> None:
    chosen = sorted(kinds) or list(ALL_KINDS)
    schedule = Schedule.drawn(seed, HOSTS, duration_s, chosen)
    assert schedule == Schedule.drawn(seed, HOSTS, duration_s, chosen)
    assert Schedule.read(str(schedule)) == schedule
    assert str(schedule).startswith(f"# seed {seed}")
    down: set[str] = set()
    cut = False
    stormy: set[tuple[tuple[str, ...], ...]] = set()
    last = 0.0
    for step in schedule.steps:
        assert last <= step.at_s <= duration_s
        last = step.at_s
        if step.what in ("kill", "pause"):
            assert step.on[0][0] not in down
            down.add(step.on[0][0])
            assert len(down) < len(HOSTS)
        elif step.what in ("restart", "resume"):
            down.remove(step.on[0][0])
        elif step.what in ("partition", "isolate", "cut_one_way", "reject"):
            cut = True
        elif step.what == "heal":
            cut = False
        elif step.what == "weather":
            stormy.add(step.on)
        elif step.what == "clear":
            stormy.discard(step.on)
    assert not down and not cut and not stormy


def test_every_kind_of_fault_is_drawn() -> None:
    drawn = {step.what for step in Schedule.drawn(1, HOSTS, 200, ALL_KINDS).steps}
    assert set(ALL_KINDS) <= drawn
    with pytest.raises(ValueError, match="what there is"):
        Schedule.drawn(1, HOSTS, 1, ["earthquake"])


class Stub:
    def __init__(self, stop: threading.Event, stop_after: int) -> None:
        self.stop, self.stop_after = stop, stop_after
        self.done: list[Step] = []

    def do(self, step: Step) -> None:
        self.done.append(step)
        if len(self.done) == self.stop_after:
            self.stop.set()


def test_a_schedule_is_performed_in_order_and_can_be_stopped() -> None:
    schedule = Schedule.drawn(3, HOSTS, 10)
    clock = iter(range(10**9))
    stub = Stub(threading.Event(), stop_after=5)
    # By this clock every step is overdue when it is looked at.
    assert schedule.perform(stub, stub.stop, lambda: float(next(clock) * 1000)) == 5
    assert stub.done == list(schedule.steps[:5])


@requires_root_network
def test_each_step_is_carried_out(healed_network: Network, switch: Switch) -> None:
    def start(name: str) -> OsProcess:
        return OsProcess(["sleep", "1000"], host=healed_network[name])

    def close() -> None:
        for process in hands.processes.values():
            process.close()

    n1, n2 = healed_network.hosts[:2]
    with contextlib.ExitStack() as stack:
        hands = Hands(healed_network, switch, {name: start(name) for name in HOSTS}, start)
        stack.callback(close)
        first = hands.processes["n1"]
        hands.do(Step(0, "kill", (("n1",),)))
        assert first.wait() == -signal.SIGKILL
        hands.do(Step(0, "restart", (("n1",),)))
        assert hands.processes["n1"].alive
        hands.do(Step(0, "pause", (("n2",),)))
        assert state_of(hands.processes["n2"].pid) == "T"
        hands.do(Step(0, "resume", (("n2",),)))
        with pytest.raises(ValueError, match="needs `tell`"):
            hands.do(Step(0, "leave", (("n1",), ("n2",))))
        told: list[tuple[str, str]] = []
        hands.tell = lambda name, words: told.append((name, words))
        hands.do(Step(0, "leave", (("n1",), ("n2",))))
        hands.do(Step(0, "step_clock", (("n3",),), seconds=-60.5))
        assert told == [("n1", "leave n2"), ("n3", "step_clock -60.5")]
        everything = all_pairs(healed_network.hosts)
        heal = functools.partial(hands.do, Step(0, "heal"))
        split = Step(0, "partition", (("n1",), ("n2", "n3", "n4", "n5")))
        apart = {pair for pair in everything if "n1" in pair}
        for step, gone in (
            (split, apart),
            (Step(0, "isolate", (("n1",),)), apart),
            (Step(0, "cut_one_way", (("n1",), ("n2",))), {("n1", "n2")}),
        ):
            hands.do(step)
            left = reached(healed_network.hosts, "ipv4", everything - gone, heal)
            assert left == everything - gone
        with connection(n1, n2, n2.ipv4) as (client, _, at):
            hands.do(Step(0, "kill_sockets", (("n1",),)))
            with pytest.raises(ConnectionAbortedError):
                client.recv(1)
            hands.do(Step(0, "reject", (("n1",), ("n2",))))
            with pytest.raises(ConnectionRefusedError):
                n1.connect(at, PATIENCE_S)
            heal()
        hands.do(Step(0, "drop_established", (("n1",),)))
        hands.do(Step(0, "weather", (("n1",), ("n2",)), Weather(falsify=1)))
        hands.do(Step(0, "clear", (("n1",), ("n2",))))
        assert len(set(transfer(n1, n2, switch.ipv4(n2), 10_000))) == 1
        with pytest.raises(ValueError, match="what there is"):
            hands.do(Step(0, "earthquake"))


# Longer ones.


@pytest.mark.soak
@requires_root_network
@pytest.mark.parametrize("seed", range(3))
def test_a_drawn_schedule_leaves_a_network_as_it_was(
    network: Network, switch: Switch, seed: int
) -> None:
    """All kinds of faults for 20 s, with transfers in between that may fail but not change."""
    schedule = Schedule.drawn(seed, HOSTS, 20, every_s=0.2, lasting_s=1)
    print(schedule)

    def start(name: str) -> OsProcess:
        return OsProcess(["sleep", "1000"], host=network[name])

    hands = Hands(network, switch, {name: start(name) for name in HOSTS}, start)
    try:
        failures: list[BaseException] = []
        over = threading.Event()

        def perform() -> None:
            try:
                schedule.perform(hands)
            except BaseException as error:
                failures.append(error)
            finally:
                over.set()

        performer = threading.Thread(target=perform)
        performer.start()
        rng = random.Random(seed)
        whole = 0
        while not over.is_set():
            one, other = rng.sample(network.hosts, 2)
            with contextlib.suppress(OSError):
                with other.listen(address=switch.ipv4(other)) as server:
                    server.settimeout(0.5)
                    with one.connect(server.getsockname()[:2], 0.5) as client:
                        accepted, _ = server.accept()
                        with accepted:
                            accepted.settimeout(0.5)
                            client.sendall(bytes(range(256)) * 40)
                            assert take(accepted, 256 * 40) == bytes(range(256)) * 40
                            whole += 1
        performer.join()
        assert not failures and whole > 10
        assert len(hands.done) == len(schedule.steps)
        assert all(process.alive for process in hands.processes.values())
        everything = all_pairs(network.hosts)
        for family in FAMILIES:
            assert reached(network.hosts, family, everything, lambda: None) == everything
        one, other = network.hosts[:2]
        assert len(set(transfer(one, other, switch.ipv4(other), 100_000))) == 1
    finally:
        network.heal()
        switch.set(CLEAR)
        for process in hands.processes.values():
            process.close()


@pytest.mark.soak
@requires_root_network
def test_a_slow_line_gives_its_rate(network: Network, switch: Switch) -> None:
    """A lower bound only: the bucket may not give more than its rate."""
    one, other = network.hosts[:2]
    switch.set(Weather(rate_bit_s=64e3))
    begin = time.monotonic()
    sent, arrived = transfer(one, other, switch.ipv4(other), 40_000)
    switch.set(CLEAR)
    assert sent == arrived
    assert time.monotonic() - begin > (40_000 - 2 * MTU) * 8 / 64e3


@pytest.mark.soak
@requires_root_network
def test_a_hundred_networks_leave_nothing() -> None:
    before = usage(os.getpid())
    for _ in range(100):
        with Network(3) as network, Switch(network, 1) as switch:
            one, other = network.hosts[:2]
            through(switch, one, other, "ipv4", CLEAR, 10)
    after = usage(os.getpid())
    assert (after.fds, after.threads) == (before.fds, before.threads)
    assert SANITIZED or after.rss_bytes - before.rss_bytes < 5 << 20
