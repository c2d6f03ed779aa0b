"""A member that lies of its names and groups, among honest nodes, decided by bytes.

It may be connected to any of them, says each whatever a message can say, acknowledges what it
likes, asks again and again, and goes. Nothing that it says is of another's processes, what is kept
of it is within its bounds, every request of an honest process is answered, and once it is gone the
honest nodes agree, and each name is held by who was told so.
"""

from __future__ import annotations

from typing import Any

from rabble._core.ids import NodeId
from rabble.cluster.decide.directory_state import (
    VERSION_MAX,
    Book,
    DirectoryError,
    GroupEntry,
    row_bytes,
)
from rabble.limits import Limits
from tests.cluster.decide.directory_network import CODEC, Host, Network
from tests.fuzz.lies import Choices

#: Of each a small one, so that all bounds are reached.
LIMITS = Limits(names_max=3, groups_max=2, group_members_max=3, directory_bytes_max=300)
LIAR = NodeId("m", "h:9")
NAMES = ("leader", "x", "y", "z")
GROUPS = ("g", "h", "i")
PROCESSES = ("p", "q", "a", "leader")
TIMES = (0, 1, 1_700_000_000_000, VERSION_MAX)
NUMBERS = (0, 1, 2, 3, 7, 2**62, VERSION_MAX, VERSION_MAX + 1, 2**64, -1)
JUNK: tuple[Any, ...] = (None, True, b"", "", [], {}, [[]], 1.5, "a::b", "a" * 300, "\u200b")


def play(data: bytes) -> Network:
    """What the bytes say, and then rest."""
    choices = Choices(data)
    network = Network(0, 3, limits=LIMITS)
    for host in network.hosts:
        network.start(host)
    network.run(0.5)
    while choices:
        host = choices.of(network.hosts)
        act = choices.below(12)
        if act < 5:
            act_honestly(network, host, choices)
        elif act == 5:
            network.run(choices.of((0.0, 0.01, 0.2, 3.0, 11.0)))
        elif act == 6:
            network.do(host, directory(host).peer_up(LIAR, network.now))
        elif act == 7:
            network.do(host, directory(host).peer_down(LIAR, network.now))
        else:
            listen(network, host, lie(host, choices))
        for each in network.hosts:
            check_bounds(each)
    for host in network.hosts:
        network.do(host, directory(host).peer_down(LIAR, network.now))
    network.run(30.0)
    assert not network.open_requests, network.open_requests
    network.check()
    return network


def directory(host: Host) -> Any:
    assert host.directory is not None
    return host.directory


def act_honestly(network: Network, host: Host, choices: Choices) -> None:
    life = network.spawn(host, choices.of(PROCESSES))
    what = choices.below(8)
    if what < 3:
        network.register(host, life, choices.of(NAMES))
    elif what < 4:
        network.unregister(host, life, choices.of(NAMES))
    elif what < 6:
        network.join(host, life, choices.of(GROUPS))
    elif what < 7:
        network.leave(host, life, choices.of(GROUPS))
    else:
        network.end(host, life)


def listen(network: Network, host: Host, message: Any) -> None:
    """A node reads what the liar says; what is wrong with it changes nothing."""
    message = CODEC.decode_message(CODEC.encode_message(message))
    peer = directory(host)._peers.get(LIAR)
    before = peer and peer.entries.entries
    # Of who is not connected nothing is read.
    network.happened["lie"] += peer is not None
    try:
        network.do(host, directory(host).read(LIAR, message, network.now))
    except DirectoryError as error:
        assert len(str(error)) < 400 and str(error).isascii(), error
        assert (peer and peer.entries.entries) == before, "taken in by half"
        # What is to be said all the same.
        network.do(host, directory(host).tick(network.now))


def lie(host: Host, choices: Choices) -> Any:
    """A message that could be one, of whatever the liar likes."""
    kind = choices.below(12)
    if kind == 0:
        return choices.of(JUNK)
    said: dict[Any, Any] = {}
    if kind in (1, 2):
        said["a"] = choices.of((directory(host)._entries.version, *NUMBERS[:-2]))
    if kind in (2, 3):
        said["d"] = choices.of(NUMBERS[:-1])
    if kind in (3, 4):
        said["q"] = choices.of((True, True, False, 1))
    if kind > 4:
        said |= statement(host, choices)
    if kind == 11 and said:
        said[choices.of(sorted(said))] = choices.of(JUNK)
    return said


def statement(host: Host, choices: Choices) -> dict[str, Any]:
    peer = directory(host)._peers.get(LIAR)
    known = 0 if peer is None else peer.entries.version
    staged = None if peer is None else peer.entries._staged
    whole = choices.below(2)
    first = choices.of((known, known, 0, *NUMBERS[:6]))
    if whole and staged is not None and choices.below(3):
        first = staged.at
    last = min(first + choices.of((1, 2, 5, 6, 0)), 2**64 - 1)
    dot = first
    said: dict[str, Any] = {"f": first, "t": last, "n": [], "g": []}
    for _ in range(choices.below(6)):
        dot = min(dot + choices.of((1, 1, 1, 0)), 2**64 - 1)
        process, tenant = choices.of(PROCESSES), choices.of((None, None, "t"))
        if choices.below(2):
            row = [
                dot,
                choices.of(NAMES),
                process,
                tenant,
                choices.of(TIMES),
                choices.of((True, False)),
            ]
            said["n"].append(row)
        else:
            row = [dot, choices.of(GROUPS), process, tenant]
            said["g"].append(row)
        if not choices.below(12):
            row[choices.below(len(row))] = choices.of(JUNK)
    if whole:
        said["w"] = choices.of((last, last, last + 2, staged.version if staged else 0))
    else:
        dots = [] if peer is None else [entry.dot for entry in peer.entries.entries]
        said["x"] = [choices.of((*sorted(dots), *NUMBERS[:6])) for _ in range(choices.below(4))]
    return said


def check_bounds(host: Host) -> None:
    peer = directory(host)._peers.get(LIAR)
    if peer is None:
        return
    staged = peer.entries._staged
    for book in (peer.entries._book, *([] if staged is None else [staged.book])):
        check_book(book)
    for entry in peer.entries.entries:
        assert entry.pid.node == LIAR


def check_book(book: Book) -> None:
    assert len(book.names) <= LIMITS.names_max
    assert len(book.groups) <= LIMITS.groups_max
    assert all(0 < len(each) <= LIMITS.group_members_max for each in book.groups.values())
    assert book.bytes == sum(map(row_bytes, book.by_dot.values())) <= LIMITS.directory_bytes_max
    members = sum(isinstance(entry, GroupEntry) for entry in book.by_dot.values())
    assert members == sum(map(len, book.groups.values()))
    assert len(book.by_dot) == members + len(book.names)
