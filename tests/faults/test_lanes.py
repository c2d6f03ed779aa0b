"""What overtakes what on its way between two nodes of one process."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

from rabble import Limits, Mesh, Pid, Process, rouse
from rabble._core.debug import CAPACITIES
from rabble.messages import Lost
from tests.support import KEY, PATIENCE_S, Does, until, until_up


def sizes_that_arrive_while_busy(sizes: list[int]) -> list[int]:
    """Send messages of one pair to a node whose executor takes none until all of them are there.

    Or, in the tiny build, until so much of them is as a node reads that takes none.
    """
    got: queue.SimpleQueue[int] = queue.SimpleQueue()
    blocked, go_on = threading.Event(), threading.Event()

    def block(*_: object) -> None:
        blocked.set()
        go_on.wait(PATIENCE_S)

    mesh = Mesh(key=KEY)
    with rouse("a@127.0.0.1:0", mesh=mesh) as a, rouse("b@127.0.0.1:0", mesh=mesh) as b:
        to = b.spawn(Does(lambda process, msg, sender: got.put(len(msg))), "to")
        blocker = b.spawn(Does(block), "blocker")
        a.join(b.node_id)
        until_up(a, b)
        until_up(b, a)

        def heard() -> int:
            return b.cluster_status().connections[0].bytes_received

        b.send(blocker, None)
        assert blocked.wait(PATIENCE_S)
        sender = Pid("anybody", a.node_id)
        before, total = heard(), 0
        for size in sizes:
            a.send(to, bytes(size), sender=sender)
            total += size
            if size > 65_536:
                until(lambda: heard() >= before + min(total, CAPACITIES["RECV_HIGH"]))  # noqa: B023
        until(lambda: heard() >= before + min(total, CAPACITIES["RECV_HIGH"]))
        go_on.set()
        return [got.get(timeout=PATIENCE_S) for _ in sizes]


def test_a_small_message_does_not_overtake_a_large_one_where_they_arrive() -> None:
    """A pair keeps its order, though the receiver is busy while both come in."""
    assert sizes_that_arrive_while_busy([200_000, 10]) == [200_000, 10]


def test_a_large_message_does_not_overtake_small_ones_where_they_arrive() -> None:
    """The same, though there are more small ones than one batch takes."""
    sizes = [*(size % 50 for size in range(5_000)), 200_000]
    assert sizes_that_arrive_while_busy(sizes) == sizes


def test_a_gap_is_told_between_what_is_around_it() -> None:
    """Though the receiver takes in at once what came before the gap and what came behind it."""
    seen: list[int | Lost] = []
    over = threading.Event()
    last = 20_000

    def take(process: Process, msg: Any, sender: Pid | None) -> None:
        if isinstance(msg, Lost):
            seen.append(msg)
        elif isinstance(msg, list):
            seen.append(msg[0])
            time.sleep(0.0002)
            if msg[0] == last:
                over.set()

    mesh = Mesh(key=KEY)
    small = Limits(peer_queue_bytes_max=64 << 10)
    with (
        rouse("a@127.0.0.1:0", mesh=mesh, limits=small) as a,
        rouse("b@127.0.0.1:0", mesh=mesh) as b,
    ):
        to = b.spawn(Does(take), "to")
        b.subscribe_dead_letters(to)
        a.join(b.node_id)
        until_up(a, b)
        until_up(b, a)
        sender = Pid("anybody", a.node_id)
        for number in range(last):
            a.send(to, [number, bytes(1_000)], sender=sender)
            if number % 1_000 == 999:
                time.sleep(0.01)
        while not over.wait(0.05):
            a.send(to, [last, b""], sender=sender)
    told, expected, gaps = 0, 0, 0
    for each in seen:
        if isinstance(each, Lost):
            told += each.count
        else:
            if each < last:
                assert told >= each - expected
            gaps += each > expected
            told, expected = 0, each + 1
    assert gaps
