"""Hosts as network namespaces on a bridge, and cuts between them with nftables.

    with Network(5) as net:
        a, b, *others = net.hosts
        net.partition([a, b], others)
        net.heal()

The bridge is in a namespace of its own: no interface or packet ever appears in the machine's own
network. Names carry the process id and start time of who made them, so runs can go side by side,
and what a killed run left behind is removed by the next one.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

TOOLS = {"ip": "iproute2", "ss": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
NAMES = Path("/run/netns")
PREFIX = "rabble"
HOSTS_MAX = 100
#: TEST-NET-1 of RFC 5737 and a unique local prefix: addresses that lead nowhere else.
IPV4, IPV6 = "192.0.2.", "fd72:6162:626c::"
#: An address at which packets vanish: connecting to it takes until it times out.
BLACK_HOLE_IPV4, BLACK_HOLE_IPV6 = IPV4 + "254", IPV6 + "fe"
COMMAND_TIMEOUT_S = 30.0
CLONE_NEWNET = 0x4000_0000

_serial = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def missing() -> str | None:
    """What this machine lacks for namespaces, nftables and TUN; None if nothing."""
    if absent := sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)}):
        return f"install {', '.join(absent)}"
    if os.geteuid() != 0:
        return "needs root"
    # In a namespace that ends with the command, so that nothing is left of the trial.
    trial = "mount --make-rprivate / && mount -t tmpfs none /run && ip netns add trial && "
    trial += "nft add table inet trial && ip tuntap add dev trial mode tun"
    ran = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", trial],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return (ran.stderr.strip() or f"status {ran.returncode}") if ran.returncode else None


def command(argv: Sequence[str], said: str | None = None) -> str:
    """Run a tool; what it printed. RuntimeError with its complaint if it fails."""
    ran = subprocess.run(
        argv, input=said or "", capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
    )
    if ran.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {ran.stderr.strip()}\n{said or ''}")
    return ran.stdout


def started_at(pid: int) -> int | None:
    """When a process was started, in clock ticks since the machine's start; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def owner_is_gone(name: str, prefix: str = PREFIX) -> bool:
    """Whether `name` was given by `own_name` in a process that has ended."""
    parts = name.split("-")
    if len(parts) < 3 or parts[0] != prefix or not (parts[1] + parts[2]).isdigit():
        return False
    return started_at(int(parts[1])) != int(parts[2])


def own_name(suffix: str, prefix: str = PREFIX) -> str:
    """A name that says which process it belongs to."""
    pid = os.getpid()
    return f"{prefix}-{pid}-{started_at(pid)}-{suffix}"


def ours() -> list[str]:
    """The namespaces that this process made and has not removed."""
    start = own_name("")
    return sorted(path.name for path in NAMES.glob(f"{start}*"))


def remove(namespace: str) -> None:
    """End what runs in a namespace of ours, and remove it."""
    with contextlib.suppress(RuntimeError):
        for pid in command(["ip", "netns", "pids", namespace]).split():
            if int(pid) != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
    with contextlib.suppress(RuntimeError):
        command(["ip", "netns", "delete", namespace])


def remove_stale() -> list[str]:
    """Remove the namespaces of processes that have ended without doing so; their names."""
    stale = [path.name for path in NAMES.glob(f"{PREFIX}-*") if owner_is_gone(path.name)]
    for namespace in stale:
        remove(namespace)
    return stale


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


class Rule(NamedTuple):
    """What a host does with packets that come from another one."""

    source: str
    verdict: str


DROP = "drop"
#: As a host that was rebooted answers: it knows nothing of the connection.
RESET = "meta l4proto tcp {from} reject with tcp reset"
UNREACHABLE = "reject with icmpx host-unreachable"


class Host:
    """A network namespace with an IPv4 and an IPv6 address."""

    def __init__(self, name: str, namespace: str, number: int) -> None:
        self.name = name
        self.namespace = namespace
        self.number = number
        self.ipv4 = f"{IPV4}{number}"
        self.ipv6 = f"{IPV6}{number:x}"
        #: All its addresses; a switch adds more.
        self.addresses = [self.ipv4, self.ipv6]
        self.rules: set[Rule] = set()
        #: Connections of an earlier one are not let through.
        self.generation = 1

    def __repr__(self) -> str:
        return f"Host({self.name}, {self.ipv4})"

    def argv(self, argv: Iterable[str]) -> list[str]:
        """The command line that runs `argv` in this host. It replaces itself, so signals arrive."""
        return ["nsenter", f"--net={NAMES / self.namespace}", "--", *argv]

    def run(self, *argv: str, said: str | None = None) -> str:
        """Run a command in this host and wait for it; what it printed."""
        return command(self.argv(argv), said)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Within it the calling thread is in this host: sockets that it makes stay there."""
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(NAMES / self.namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _set_namespace(there)
                yield
            finally:
                _set_namespace(back)
                os.close(there)
        finally:
            os.close(back)

    def make_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        """A socket of this host."""
        with self.entered():
            return socket.socket(family, kind)

    def listen(self, port: int = 0, address: str | None = None) -> socket.socket:
        """A listening TCP socket of this host."""
        address = address or self.ipv4
        server = self.make_socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            server.listen()
        except BaseException:
            server.close()
            raise
        return server

    def connect(self, address: tuple[str, int], timeout_s: float) -> socket.socket:
        """A TCP connection from this host."""
        client = self.make_socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        try:
            client.settimeout(timeout_s)
            client.connect(address)
        except BaseException:
            client.close()
            raise
        return client

    def sysctl(self, name: str, value: object) -> None:
        """Set a parameter below net, such as `net.ipv4.tcp_retries2`, in this host only."""
        if not name.startswith("net."):
            raise ValueError(f"{name}: only what is below net belongs to a namespace")
        with self.entered():
            Path("/proc/sys", name.replace(".", "/")).write_text(f"{value}\n")

    def block_route(self, address: str, kind: str = "blackhole") -> None:
        """Connecting to an address fails at once: `blackhole`, `unreachable` or `prohibit`."""
        self.run("ip", "route", "add", kind, address)

    def unblock_route(self, address: str, kind: str = "blackhole") -> None:
        self.run("ip", "route", "del", kind, address)

    def kill_sockets(self, peer: Host | None = None, *expression: str) -> int:
        """Close TCP connections from below (`ss -K`): all, those with a peer, or those that fit
        an expression of ss, such as `dport = :80`.

        How many that were. The owner gets ECONNABORTED, the peer a reset.
        """
        alive = ("established", "syn-sent", "syn-recv", "close-wait")
        return len(self._sockets("-K", alive, peer, expression))

    def connections(self, peer: Host | None = None, *expression: str) -> int:
        """How many established TCP connections there are."""
        return len(self._sockets("-n", ("established",), peer, expression))

    def _sockets(
        self, what: str, states: Iterable[str], peer: Host | None, expression: Sequence[str]
    ) -> list[str]:
        words = list(expression)
        if peer is not None:
            ends = " or ".join(f"dst [{a}]" if ":" in a else f"dst {a}" for a in peer.addresses)
            words = ["(", *ends.split(), ")", *expression]
        wanted = [word for state in states for word in ("state", state)]
        return self.run("ss", what, "-H", "-n", "-t", *wanted, *words).splitlines()

    def apply(self, addresses_of: Callable[[str], Iterable[str]]) -> None:
        """Tell the kernel the rules, in one transaction."""
        lines = []
        for rule in sorted(self.rules):
            for address in addresses_of(rule.source):
                match = f"{'ip6' if ':' in address else 'ip'} saddr {address}"
                if "{from}" in rule.verdict:
                    lines.append(rule.verdict.replace("{from}", match))
                    # Other protocols know no reset.
                    lines.append(f"{match} drop")
                else:
                    lines.append(f"{match} {rule.verdict}")
        # A connection is marked with the generation in which it began. Packets that belong to
        # none, such as neighbour discovery, have no mark.
        mark = f"ct state new ct mark set {self.generation}"
        lines += [mark, f"ct state established,related ct mark != {self.generation} drop"]
        said = ["table inet faults", "delete table inet faults", "table inet faults {"]
        for hook, rules in ("input", lines), ("output", [mark]):
            said += [f"chain {hook} {{", f"type filter hook {hook} priority 0;", *rules, "}"]
        self.run("nft", "-f", "-", said="\n".join([*said, "}", ""]))


class Network:
    """Hosts n1, n2, … that reach each other until they are cut off.

    Cuts act where packets arrive: the sender is told nothing, as if the wire were cut. They hold
    for all addresses of a host, those of a switch too.
    """

    def __init__(self, hosts: int = 5) -> None:
        if not 1 <= hosts <= HOSTS_MAX:
            raise ValueError(f"{hosts} hosts; 1 to {HOSTS_MAX} are possible")
        base = own_name(str(next(_serial)))
        self.hub = f"{base}-hub"
        self.hosts = [Host(f"n{i}", f"{base}-n{i}", i) for i in range(1, hosts + 1)]
        self.closers: list[Callable[[], None]] = []

    def __getitem__(self, name: str) -> Host:
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)

    def __enter__(self) -> Network:
        remove_stale()
        # For an exit that comes while this is entered or left.
        atexit.register(self.close)
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self) -> None:
        for namespace in (self.hub, *(host.namespace for host in self.hosts)):
            command(["ip", "netns", "add", namespace])
        hub = ["link set lo up", "link add br0 type bridge stp_state 0 mcast_snooping 0"]
        hub += ["link set br0 addrgenmode none", f"addr add {BLACK_HOLE_IPV4}/24 dev br0"]
        hub += [f"addr add {BLACK_HOLE_IPV6}/64 dev br0 nodad", "link set br0 up"]
        for host in self.hosts:
            port = f"p{host.number}"
            hub.append(f"link add {port} type veth peer name eth0 netns {host.namespace}")
            hub += [f"link set {port} addrgenmode none", f"link set {port} master br0 up"]
        command(["ip", "-n", self.hub, "-batch", "-"], "\n".join(hub))
        command(
            ["nsenter", f"--net={NAMES / self.hub}", "--", "nft", "-f", "-"],
            "table inet hole {\nchain arriving {\ntype filter hook input priority 0; policy drop;\n"
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n}\n}\n",
        )
        for host in self.hosts:
            lines = ["link set lo up", "link set eth0 addrgenmode none", "link set eth0 up"]
            lines.append(f"addr add {host.ipv4}/24 dev eth0")
            lines.append(f"addr add {host.ipv6}/64 dev eth0 nodad")
            command(["ip", "-n", host.namespace, "-batch", "-"], "\n".join(lines))
            self._apply(host)

    def close(self) -> None:
        """Remove everything; may be called twice."""
        for closer in reversed(self.closers):
            closer()
        self.closers.clear()
        for namespace in (self.hub, *(host.namespace for host in self.hosts)):
            if (NAMES / namespace).exists():
                remove(namespace)
        atexit.unregister(self.close)

    def _apply(self, host: Host) -> None:
        host.apply(lambda name: self[name].addresses)

    def refresh(self) -> None:
        """Tell all hosts their rules again, after their addresses changed."""
        for host in self.hosts:
            if host.rules:
                self._apply(host)

    def _change(self, add: Iterable[tuple[Host, Rule]]) -> None:
        changed = {}
        for host, rule in add:
            if rule not in host.rules:
                host.rules.add(rule)
                changed[host.name] = host
        for host in changed.values():
            self._apply(host)

    def cut_one_way(self, source: Host, target: Host, verdict: str = DROP) -> None:
        """What `source` sends does not arrive at `target`, which may answer with an error."""
        self._change([(target, Rule(source.name, verdict))])

    def cut(self, one: Host, other: Host) -> None:
        """Nothing passes between two hosts."""
        self._change([(other, Rule(one.name, DROP)), (one, Rule(other.name, DROP))])

    def reject(self, source: Host, target: Host, verdict: str = RESET) -> None:
        """`target` answers with a reset, or UNREACHABLE, whatever `source` sends to it."""
        self.cut_one_way(source, target, verdict)

    def partition(self, *sides: Iterable[Host]) -> None:
        """Hosts of different sides do not reach each other; a host on no side reaches all."""
        groups = [list(side) for side in sides]
        self._change(
            (target, Rule(source.name, DROP))
            for one, other in itertools.permutations(groups, 2)
            for source in one
            for target in other
            if source is not target
        )

    def isolate(self, host: Host) -> None:
        """Cut a host off from all others."""
        self.partition([host], [other for other in self.hosts if other is not host])

    def heal(self, one: Host | None = None, other: Host | None = None) -> None:
        """Take back all cuts and rejects, or those between two hosts."""
        for host in self.hosts:
            kept = {
                rule
                for rule in host.rules
                if one and other and {rule.source, host.name} != {one.name, other.name}
            }
            if kept != host.rules:
                host.rules = kept
                self._apply(host)

    def drop_established(self, *hosts: Host) -> None:
        """Connections that there are now go dead at these hosts, or all; new ones pass."""
        for host in hosts or self.hosts:
            host.generation += 1
            self._apply(host)
