"""However busy the processes keep each other, others have their turn.

DESIGN section 4: envelopes from other threads and due timers are taken in at least every 1 ms or
1,024 deliveries. Told by counts, on a clock that is handed in. And of peers that all have much to
say, each has its turn.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rabble
from rabble import CorrelationId, Envelope, Limits, Mesh, Output, Pid, Process, StartTimer, Timeout
from rabble._core.debug import CAPACITIES
from tests.faults.meshes import figures
from tests.faults.raw import CLUSTER, KEY, RawPeer
from tests.reference.session import CACHE_PID, ENVELOPE, FLAG_SENDER, frame
from tests.support import (
    BARE,
    PATIENCE_S,
    SANITIZED,
    TINY,
    TRACED,
    Does,
    Echo,
    HandClock,
    Witness,
    bare_executor,
    settle,
    until,
    until_up,
)

TURN_DELIVERIES = CAPACITIES["TURN_DELIVERIES_MAX"]
TURN_NS = 1_000_000
BATCH = CAPACITIES["BATCH_FRAMES_MAX"]  # messages of peers that are decoded at once
#: Those of a turn, from one look at the sockets to the next: TURN_BATCHES_MAX of the executor.
TURN_BATCHES = 6
STRIDE = 16  # deliveries between two looks at the clock, as long as they are fast


class Busy(Process):
    """Sends itself a message for each one it gets; calls `hook` with how many it got."""

    def __init__(self, hook: Callable[[int], None] = lambda count: None) -> None:
        self.hook = hook
        self.count = 0

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Envelope:
        self.count += 1
        self.hook(self.count)
        return Envelope(self.pid, msg)


@pytest.mark.parametrize("when", [1, 2, 1000, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("senders", [1, 7])
def test_what_a_thread_sends_waits_for_at_most_1024_deliveries(when: int, senders: int) -> None:
    heard: list[int] = []

    def hook(count: int) -> None:
        if count == when:  # in the middle of a turn, as another thread would
            executor.send(probe, "hello")

    with bare_executor(HandClock()) as executor:
        busy = Busy(hook)
        probe = executor.spawn(Does(lambda p, msg, sender: heard.append(busy.count)), "probe")
        pids = [executor.spawn(busy, "busy")]
        pids += [executor.spawn(Busy(), f"busy-{n}") for n in range(1, senders)]
        for pid in pids:
            executor.send(pid, "go")
        while not heard:
            assert executor.step() == TURN_DELIVERIES
    # All processes got as many messages as the one that counts.
    assert (heard[0] - when) * senders <= TURN_DELIVERIES + senders


@pytest.mark.parametrize("when", [1, 1000, 1024, 1025, 5000])
def test_a_due_timer_waits_for_at_most_1024_deliveries(when: int) -> None:
    fired: list[int] = []

    def hook(count: int) -> None:
        if count == when:
            clock.go_on(0.6)
            assert not fired

    with bare_executor(clock := HandClock()) as executor:
        busy = Busy(hook)
        own = CorrelationId(Pid("probe", BARE))
        probe = executor.spawn(Does(lambda p, msg, sender: fired.append(busy.count)), "probe")
        executor.send(executor.pid, StartTimer(own, 0), sender=probe)
        executor.send(executor.spawn(busy, "busy"), "go")
        clock.go_on(0.5)
        while not fired:
            executor.step()
    assert when < fired[0] <= when + TURN_DELIVERIES + 1


@pytest.mark.parametrize("ms", [0.02, 0.1, 0.3, 0.99, 1, 5, 1000])
def test_slow_processes_are_looked_away_from_each_millisecond(ms: float) -> None:
    with bare_executor(clock := HandClock()) as executor:
        executor.send(executor.spawn(Busy(lambda count: clock.go_on(ms)), "slow"), "go")
        # Fast processes are looked away from only now and then: these ones come as a surprise.
        assert executor.step() <= max(STRIDE, 1 / ms + STRIDE)
        for _ in range(20):
            start = clock.ns
            executor.step()
            assert clock.ns - start < TURN_NS + ms * 1_000_000


@pytest.mark.parametrize("others", [1, 3, 10, 40])
def test_a_slow_process_between_fast_ones_is_looked_away_from_as_well(others: int) -> None:
    """As who works for requests, each of which takes some deliveries besides."""
    ms = 1.5
    with bare_executor(clock := HandClock()) as executor:
        executor.send(executor.spawn(Busy(lambda count: clock.go_on(ms)), "slow"), "go")
        for number in range(others):
            executor.send(executor.spawn(Busy(), f"fast-{number}"), "go")
        # They come as a surprise, once.
        executor.step()
        for _ in range(200):
            start = clock.ns
            executor.step()
            assert clock.ns - start < TURN_NS + 2 * ms * 1_000_000


@given(st.lists(st.sampled_from([0, 1_000, 20_000, 70_000, 400_000, 3_000_000]), min_size=1))
def test_a_turn_outlasts_its_millisecond_by_a_few_deliveries_only(costs_ns: list[int]) -> None:
    spent: list[int] = []

    def hook(count: int) -> None:
        spent.append(costs_ns[count % len(costs_ns)])
        clock.ns += spent[-1]

    with bare_executor(clock := HandClock()) as executor:
        executor.send(executor.spawn(Busy(hook), "busy"), "go")
        for _ in range(50):
            spent.clear()
            assert 0 < executor.step() <= TURN_DELIVERIES
            assert sum(spent[:-STRIDE]) < TURN_NS


# 100,000 timers due at once.

STORM = 2_000 if TINY else 100_000


def due_ms(number: int) -> int:
    return 1 + number % 5000


def test_a_storm_of_timers_lets_others_through() -> None:
    order: list[int] = []
    heard: dict[str, int] = {}
    sent: dict[str, int] = {}

    def storm(process: Process, msg: Any, sender: Pid | None) -> Any:
        if not isinstance(msg, Timeout):
            # In another order than they are due in.
            numbers = [n * 7919 % STORM for n in range(STORM)]
            return [
                Envelope(executor.pid, StartTimer(CorrelationId(process.pid, n, n), due_ms(n)))
                for n in numbers
            ]
        order.append(msg.correlation_id.request)
        if len(order) in (1, 500, 1024, 30_000, 98_000):
            text = f"after {len(order)}"
            sent[text] = len(order)
            executor.send(probe, text)
        return None

    with bare_executor(clock := HandClock(), witness := Witness()) as executor:
        stormy = executor.spawn(Does(storm), "stormy")
        probe = executor.spawn(
            Does(lambda p, msg, sender: heard.update({msg: len(order)})),  # type: ignore[func-returns-value]
            "probe",
        )
        executor.send(stormy, "start")
        settle(executor)
        assert executor.timers == STORM
        clock.go_on(5_001)
        turns = 0
        while delivered := executor.step():
            assert delivered <= TURN_DELIVERIES
            turns += 1
        assert turns >= STORM // TURN_DELIVERIES
        assert executor.timers == 0
    assert witness.errors == []
    # Each once, in the order of their deadlines.
    assert [due_ms(n) for n in order] == sorted(due_ms(n) for n in range(STORM))
    assert sorted(order) == list(range(STORM))
    # Taken in after at most a turn, behind at most a turn's worth of timers.
    assert heard.keys() == sent.keys()
    assert max(heard[text] - sent[text] for text in sent) <= 2 * TURN_DELIVERIES


def test_a_storm_of_timers_does_not_pass_slow_processes() -> None:
    """Turns that end early must not pile up timers in front of everybody."""
    order: list[Any] = []

    def slow(process: Process, msg: Any, sender: Pid | None) -> Any:
        order.append(msg)
        clock.go_on(0.5)
        if len(order) == 100:
            executor.send(process.pid, "hello")
        return None

    with bare_executor(clock := HandClock()) as executor:
        pid = executor.spawn(Does(slow), "slow")
        for n in range(20_000):
            executor.send(executor.pid, StartTimer(CorrelationId(pid, request=n), 1), sender=pid)
        settle(executor)
        clock.go_on(10)
        while "hello" not in order:
            assert executor.step() <= 16
    assert order.index("hello") <= 100 + 2 * TURN_DELIVERIES


def test_a_timer_that_is_due_in_a_storm_can_still_be_cancelled() -> None:
    fired: list[int] = []
    acknowledged: list[int] = []

    def react(process: Process, msg: Any, sender: Pid | None) -> Any:
        number = msg.correlation_id.request
        if isinstance(msg, Timeout):
            fired.append(number)
            if number == 10:
                executor.send(
                    executor.pid,
                    rabble.CancelTimer(CorrelationId(process.pid, request=9_000), True),
                    sender=process.pid,
                )
                executor.send(executor.pid, rabble.Stop(other))
        else:
            assert msg == rabble.TimerCancelled(CorrelationId(process.pid, request=9_000), True)
            acknowledged.append(len(fired))
        return None

    with bare_executor(clock := HandClock()) as executor:
        pid = executor.spawn(Does(react), "one")
        other = executor.spawn(Does(lambda p, msg, sender: fired.append(-1)), "two")
        for n in range(10_000):
            own = pid if n % 2 == 0 else other
            executor.send(executor.pid, StartTimer(CorrelationId(own, request=n), 1), sender=own)
        settle(executor)
        clock.go_on(1)
        settle(executor)
    assert [n for n in fired if n >= 0] == [n for n in range(0, 10_000, 2) if n != 9_000]
    assert fired.count(-1) <= 5 + 2 * TURN_DELIVERIES
    assert acknowledged[0] <= 11 + 2 * TURN_DELIVERIES


def test_a_storm_does_not_put_the_executor_to_sleep_or_outlive_its_node() -> None:
    """On a real node: all of them come; and a node that ends meanwhile ends."""
    done = threading.Event()
    count = 0

    def react(process: Process, msg: Any, sender: Pid | None) -> Any:
        nonlocal count
        if msg == "start":
            return [
                Envelope(process.executor, StartTimer(CorrelationId(process.pid, request=n), 1))
                for n in range(20_000)
            ]
        count += 1
        if count == 20_000:
            done.set()
        return None

    with rabble.rouse() as node:
        node.send(node.spawn(Does(react), "one"), "start")
        assert done.wait(PATIENCE_S)
        node.send(node.spawn(Does(react), "two"), "start")
    assert node.status == "stopped"


#: What others may have to wait in a storm; builds that look at each of their steps take longer.
GAP_S = 0.5 if SANITIZED or TRACED else 0.05


class Stormy(Process):
    """Told `start`, it has 100,000 timers that are due at once. Tells when their time was."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.count = 0
        self.began_s = self.arming_s = self.ended_s = 0.0

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Output:
        if msg == "start":
            self.began_s = time.monotonic()
            own = (CorrelationId(self.pid, request=n) for n in range(STORM))
            timers = [Envelope(self.executor, StartTimer(each, 1_500)) for each in own]
            return [*timers, Envelope(self.pid, "armed")]
        if msg == "armed":
            self.arming_s = time.monotonic() - self.began_s
            return None
        self.count += 1
        if self.count == 1:
            # They were armed one after the other: all are due before the second one is told.
            time.sleep(self.arming_s)
            self.began_s = time.monotonic()
        elif self.count == STORM:
            self.ended_s = time.monotonic()
            self.over.set()
        return None


@pytest.mark.parametrize("who", ["thread", "peer"])
@pytest.mark.parametrize(
    ("storms", "share"),
    [
        # On a busy machine all waits are longer: that it is not the whole storm will do.
        pytest.param(10, 0.5, id="quick"),
        pytest.param(20, 0.0, id="exact", marks=pytest.mark.soak),
    ],
)
def test_a_question_in_a_storm_of_timers_waits_for_50_ms_at_most(
    who: str, storms: int, share: float
) -> None:
    """On a real node. A busy machine adds to what is waited, so the best of some storms counts."""
    limits = Limits(receive_report_after_ms=60_000)
    gaps_s: list[float] = []
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(
            rabble.rouse("n@127.0.0.1:0", mesh=Mesh(key=KEY, cluster=CLUSTER), limits=limits)
        )
        echo = node.spawn(Echo(), "echo")
        if who == "peer":
            raw = stack.enter_context(RawPeer(node))
            until(lambda: len(node.cluster_status().connections) == 1)
            names = [str(echo).encode(), str(Pid("me", raw.node)).encode()]
            for place, name in enumerate(names):
                raw.say(frame(CACHE_PID, 0, struct.pack(">H", place) + name))

        def ask() -> None:
            if who == "peer":
                raw.say(frame(ENVELOPE, FLAG_SENDER, struct.pack(">HHB", 0, 1, 7)))
                assert raw.wait_for(ENVELOPE) is not None
            else:
                assert node.call(echo, 7, PATIENCE_S) == 7

        for number in range(storms):
            stormy = Stormy()
            node.send(node.spawn(stormy, f"stormy-{number}"), "start")
            answers = [time.monotonic()]
            while not stormy.over.is_set():
                ask()
                answers.append(time.monotonic())
                assert answers[-1] - answers[0] < PATIENCE_S
            # What was asked before, in the sleep of the first one, has waited since that ended.
            within = [at for at in answers if stormy.began_s < at < stormy.ended_s]
            times = [stormy.began_s, *within, stormy.ended_s]
            gaps_s.append(max(b - a for a, b in itertools.pairwise(times)))
            lasted_s = stormy.ended_s - stormy.began_s
            figures(
                f"storm of timers, {who}", gap_s=gaps_s[-1], lasted_s=lasted_s, answers=len(within)
            )
            if gaps_s[-1] <= max(GAP_S, share * lasted_s):
                return
    pytest.fail(f"the largest gaps of these storms: {gaps_s}")


# Endless self-sends.


def test_endless_self_sends_leave_room_for_threads_services_and_timers() -> None:
    with rabble.rouse() as node:
        for n in range(100):
            node.send(node.spawn(Busy(), f"busy-{n}"), "go")
        echo = node.spawn(Echo(), "echo")
        results: list[int] = []

        def ask(base: int) -> None:
            results.extend(node.call(echo, base + n, PATIENCE_S) for n in range(20))

        threads = [threading.Thread(target=ask, args=(100 * n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        with node.mailbox() as box:
            executor = node.pid("executor", "rabble")
            for n in range(20):
                own = CorrelationId(box.pid, request=n)
                box.send(executor, StartTimer(own, 1))
                assert box.receive(PATIENCE_S).msg == Timeout(own)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert sorted(results) == sorted(100 * n + m for n in range(3) for m in range(20))
        for n in range(100):
            node.stop(node.pid(f"busy-{n}"))
    assert node.executor_status().dead_letters == {"no_process": 100}


@pytest.mark.parametrize("peers", [1, 2, 4])
def test_peers_take_turns_and_are_decoded_no_faster_than_delivered(peers: int) -> None:
    """All told it much while it was busy: that waits as bytes, except for a batch at a time."""
    messages, payload = 200 if TINY else 2_000, bytes(50)
    # A node that does not take what it is told reads no more than it may keep.
    ahead = min(messages * len(payload), CAPACITIES["RECV_HIGH"])
    heard: list[str] = []
    depths: list[int] = []
    blocked, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def take(process: Process, msg: Any, sender: Pid | None) -> None:
        if sender is None:
            blocked.set()
            assert go_on.wait(PATIENCE_S)
            return
        heard.append(sender.node.name)
        depths.append(node.executor_status().queue_depth)
        if len(heard) == peers * messages:
            over.set()

    mesh = Mesh(key=bytes(32))
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(rabble.rouse("busy@127.0.0.1:0", mesh=mesh))
        to = node.spawn(Does(take), "to")
        others = [
            stack.enter_context(rabble.rouse(f"peer-{n}@127.0.0.1:0", mesh=mesh))
            for n in range(peers)
        ]
        for other in others:
            other.join(node.node_id)
        until_up(node, *others)
        for other in others:
            until_up(other, node, *(each for each in others if each is not other))
        before = {link.node: link.bytes_received for link in node.cluster_status().connections}
        node.send(to, None)
        assert blocked.wait(PATIENCE_S)
        for other in others:
            for _ in range(messages):
                other.send(to, payload, sender=Pid("anybody", other.node_id))
        until(
            lambda: all(
                link.bytes_received >= before[link.node] + ahead
                for link in node.cluster_status().connections
            )
        )
        go_on.set()
        assert over.wait(PATIENCE_S)
    assert max(depths) < BATCH
    for name in {*heard}:
        at = [-1, *(n for n, one in enumerate(heard) if one == name)]
        assert len(at) - 1 == messages
        # A turn takes no more than so many batches of what is there already, without a look for
        # what the others have sent meanwhile.
        most = (peers - 1) * BATCH * TURN_BATCHES + 1
        assert max(b - a for a, b in itertools.pairwise(at)) <= most
