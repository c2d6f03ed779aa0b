"""Silence and standing still, and a node that is slow itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble.cluster.decide.failure_detector import Action, Down, FailureDetector, Recovered, Stalled
from rabble.limits import Limits


class Peer:
    """What would be observed of a connection to one peer."""

    def __init__(self, connection_id: int, name: str) -> None:
        self.connection_id, self.name = connection_id, name
        self.received_at = 0.0
        self.progress_at: float | None = None
        self.progress: int | None = None
        self.idle = True


class Watch:
    """A node that looks at its peers whenever it should, unless it is late."""

    def __init__(self, **limits: int) -> None:
        self.of = FailureDetector(Limits(**limits))
        self.now = 0.0
        self.peers: dict[str, Peer] = {}
        self.told: list[tuple[float, Action]] = []

    def add(self, name: str) -> Peer:
        peer = self.peers[name] = Peer(len(self.peers) + 1, name)
        peer.received_at = self.now
        self.of.add(peer.connection_id, name, self.now)
        return peer

    def look(self) -> None:
        for peer in self.peers.values():
            told_ago = None if peer.progress_at is None else self.now - peer.progress_at
            self.of.observe(
                peer.connection_id,
                self.now,
                self.now - peer.received_at,
                peer.progress,
                peer.idle,
                progress_ago_s=told_ago,
            )
        self.told += [(self.now, action) for action in self.of.tick(self.now)]

    def run(self, until: float, *talking: Peer, late_s: float = 0.0) -> None:
        """Look in time, or each time late; those who talk are heard all the while."""
        while True:
            tick = self.of.next_tick(self.now)
            if tick is None or tick + late_s > until:
                self.now = until
                return
            self.now = max(tick + late_s, self.now)
            for peer in talking:
                peer.received_at = self.now
            self.look()

    def actions(self) -> list[Action]:
        return [action for _, action in self.told]


def test_nobody_to_watch_is_no_reason_to_wake_up() -> None:
    of = FailureDetector(Limits())
    assert of.next_tick(0.0) is None and of.tick(100.0) == []
    of.add(1, "b", 100.0)
    assert of.next_tick(100.0) == 100.5
    of.remove(1)
    of.remove(1)
    of.observe(1, 101.0, 0.0, 1, False)
    assert of.next_tick(101.0) is None


def test_a_silent_peer_is_down_once() -> None:
    watch = Watch()
    peer, other = watch.add("b"), watch.add("c")
    watch.run(100.0, other)
    ((when, action),) = watch.told
    assert action == Down(peer.connection_id, pytest.approx(when))
    assert 8.0 < when <= 8.0 * 1.25


def test_the_time_of_the_test_rig() -> None:
    watch = Watch(heartbeat_ms=200, down_after_ms=1_600)
    watch.add("b")
    watch.run(10.0)
    ((when, _),) = watch.told
    assert 1.6 < when <= 1.6 * 1.25


def test_any_byte_is_life() -> None:
    watch = Watch()
    peer = watch.add("b")
    for second in range(0, 100, 7):
        peer.received_at = float(second)
        watch.run(second + 7.0)
    assert watch.told == []


def test_delays_and_losses_are_no_silence() -> None:
    watch = Watch()
    peer = watch.add("b")
    rng = random.Random(1)
    for second in range(60):
        if rng.random() < 0.98:
            peer.received_at = max(second + rng.uniform(-0.8, -0.4), peer.received_at)
        watch.run(second + 1.0)
    assert watch.told == []


def test_nobody_is_accused_unseen() -> None:
    of = FailureDetector(Limits())
    of.add(1, "b", 0.0)
    for i in range(100):
        assert of.tick(i / 2) == []


# The peer's executor.


def test_an_executor_that_stands_still_is_stalled_and_not_down() -> None:
    watch = Watch()
    peer = watch.add("b")
    peer.progress, peer.idle = 7, False
    watch.run(20.0, peer)
    ((when, action),) = watch.told
    assert action == Stalled("b", pytest.approx(5.0, abs=0.6)) and 5.0 < when < 6.1
    peer.progress = 8
    watch.run(21.0, peer)
    assert watch.actions()[1:] == [Recovered("b")]
    watch.run(40.0, peer)
    assert [type(action) for action in watch.actions()] == [Stalled, Recovered, Stalled]
    peer.idle = True
    watch.run(60.0, peer)
    assert watch.actions()[3:] == [Recovered("b")]


def test_who_was_idle_once_is_not_stalled() -> None:
    watch = Watch()
    peer = watch.add("b")
    peer.progress, peer.idle = 7, False
    for second in range(1, 100):
        peer.idle = second % 4 == 0
        watch.run(float(second), peer)
    assert watch.told == []


def test_who_goes_on_is_not_stalled() -> None:
    watch = Watch()
    peer = watch.add("b")
    peer.idle = False
    for second in range(1, 100):
        peer.progress = second // 4
        watch.run(float(second), peer)
    assert watch.told == []


def test_who_is_silent_is_not_known_to_stand_still() -> None:
    watch = Watch()
    peer = watch.add("b")
    peer.progress, peer.idle = 7, False
    watch.run(2.0, peer)
    watch.run(30.0)
    assert [type(action) for action in watch.actions()] == [Down]


def test_who_talks_without_telling_is_not_known_to_stand_still() -> None:
    watch = Watch()
    peer = watch.add("b")
    peer.progress, peer.idle, peer.progress_at = 7, False, 0.0
    watch.run(30.0, peer)
    assert watch.told == []
    peer.progress_at = 30.0
    watch.run(31.0, peer)
    assert watch.actions() == [Stalled("b", 30.0 - 0.0)]


# The node itself is slow.


def test_after_an_own_pause_nobody_is_accused_at_once() -> None:
    for pause in (1.0, 7.0, 10.0, 60.0, 3600.0):
        watch = Watch()
        peer, dead = watch.add("b"), watch.add("c")
        peer.progress, peer.idle = 6, False
        watch.run(4.0, peer, dead)
        peer.progress = 7
        watch.run(5.0, peer, dead)
        # The process stops, and wakes up before anybody has read what lies in the kernel.
        watch.now += pause
        watch.look()
        assert watch.told == []
        woke = watch.now
        # What was said meanwhile is heard; the peer's executor may have rested all the while.
        watch.run(woke + 3.0, peer)
        assert watch.told == []
        peer.progress = 8
        # One that really died is found out all the same, and nothing lasts.
        watch.run(woke + 60.0, peer)
        ((when, _),) = [told for told in watch.told if isinstance(told[1], Down)]
        assert watch.actions().count(Down(dead.connection_id, pytest.approx(8.0, abs=1.5))) == 1
        assert when <= woke + 16.0
        assert watch.of.widening == 1.0


def test_a_pause_is_taken_off_only_where_it_was_a_silence() -> None:
    """The poller hears on while the interpreter is held up."""
    watch = Watch()
    peer = watch.add("b")
    watch.run(5.0, peer)
    watch.now = 15.0
    peer.received_at = 14.0
    watch.look()
    watch.run(60.0)
    ((when, _),) = watch.told
    assert 22.0 < when < 25.0


def test_lateness_widens_and_wears_off() -> None:
    watch = Watch()
    peer = watch.add("b")
    watch.run(1.0, peer)
    assert watch.of.widening == 1.0
    watch.run(5.0, peer, late_s=0.2)
    assert watch.of.widening == 1.0  # as good as in time
    watch.run(7.0, peer, late_s=0.5)
    assert 1.4 < watch.of.widening < 3.0
    watch.run(100.0, peer, late_s=1.0)
    assert watch.of.widening == 8.0
    watch.run(104.0, peer)
    assert 3.0 <= watch.of.widening <= 5.5
    watch.run(110.0, peer)
    assert watch.of.widening == 1.0


def test_a_starved_node_calls_nobody_down() -> None:
    """It runs for a moment in each while, and hears its peers even more rarely."""
    watch = Watch(heartbeat_ms=200, down_after_ms=1_600)
    peer = watch.add("b")
    for _ in range(20):
        watch.run(watch.now + 4.0, late_s=0.5)
        peer.received_at = watch.now
    assert watch.told == []
    # But one that is dead for good is found out even so.
    watch.run(watch.now + 100.0, late_s=0.5)
    assert [type(action) for action in watch.actions()] == [Down]


def test_a_tick_too_early_changes_nothing() -> None:
    watch = Watch()
    watch.add("b")
    for i in range(70):
        watch.now = i / 10
        watch.look()
    assert watch.told == [] and watch.of.widening == 1.0


def test_a_clock_read_the_other_way_round_is_no_word() -> None:
    of = FailureDetector(Limits())
    of.add(1, "b", 10.0)
    of.observe(1, 10.5, -0.1, None, True)
    of.observe(1, 11.0, 0.7, None, True)
    assert of.tick(10.5) == []


@given(
    st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 5.0), st.booleans()), max_size=60),
)
def test_verdicts_follow_from_what_was_seen(script: list[tuple[float, float, bool]]) -> None:
    """However late the ticks come: nobody is down who was heard of within the timeout, down is
    said once, stalled and recovered take turns, and the widening stays between 1 and 8."""
    watch = Watch()
    peer = watch.add("b")
    peer.progress, peer.idle = 0, False
    for late, ago, moves in script:
        tick = watch.of.next_tick(watch.now)
        assert tick is not None
        watch.now = tick + late
        peer.received_at = max(peer.received_at, watch.now - ago) if ago < 4.0 else peer.received_at
        peer.progress += moves
        seen = len(watch.told)
        watch.look()
        for _, action in watch.told[seen:]:
            if isinstance(action, Down):
                assert watch.now - peer.received_at >= action.silence_s > 8.0
        assert 1.0 <= watch.of.widening <= 8.0
    actions = watch.actions()
    assert sum(isinstance(action, Down) for action in actions) <= 1
    turns = [type(action) for action in actions if not isinstance(action, Down)]
    assert turns == [Stalled, Recovered] * (len(turns) // 2) + [Stalled] * (len(turns) % 2)


class Leaving(Watch):
    """One that leaves out those who are well, as far as it may."""

    def __init__(self, **limits: int) -> None:
        super().__init__(**limits)
        self.left_out = 0

    def look(self) -> None:
        everybody, to_observe = self.peers, self.of.to_observe(self.now)
        self.peers = {
            name: peer
            for name, peer in everybody.items()
            if peer.connection_id in to_observe
            or not peer.idle
            or self.now - peer.received_at > self.of.well_s
        }
        self.left_out += len(everybody) - len(self.peers)
        super().look()
        self.peers = everybody


#: How late a look is, and of each of two peers: how long ago a word of it came, or that none did
#: since the look before; whether it is idle; whether it has gone on.
histories = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.3, 2.0, 9.0]),
        st.lists(
            st.tuples(
                st.sampled_from([None, None, 0.0, 0.2, 1.0, 3.0]), st.booleans(), st.booleans()
            ),
            min_size=2,
            max_size=2,
        ),
    ),
    max_size=60,
)


@pytest.mark.parametrize("down_after_ms", [8_000, 2_000])
@given(histories)
def test_who_is_well_may_be_left_out_and_nothing_changes(
    down_after_ms: int, history: list[tuple[float, list[tuple[float | None, bool, bool]]]]
) -> None:
    limits = {"down_after_ms": down_after_ms, "stalled_after_ms": 600}
    watches = Watch(**limits), Leaving(**limits)
    for watch in watches:
        watch.now = 100.0
        for name in "bc":
            watch.add(name).progress = 0
    for late, words in history:
        for watch in watches:
            tick = watch.of.next_tick(watch.now)
            assert tick is not None
            watch.now = tick + late
            for peer, (ago, idle, moves) in zip(watch.peers.values(), words, strict=True):
                if ago is None:
                    continue
                # What a peer says of itself comes with its words.
                peer.received_at = peer.progress_at = max(peer.received_at, watch.now - ago)
                peer.idle = idle
                peer.progress = (peer.progress or 0) + moves
            watch.look()
        assert watches[0].told == watches[1].told
        assert watches[0].of.widening == watches[1].of.widening


def test_of_idle_peers_that_are_heard_of_none_is_to_be_observed() -> None:
    watch = Leaving()
    peers = [watch.add(name) for name in "bcd"]
    watch.run(10.0, *peers)
    assert watch.left_out == 3 * 20 and watch.told == []
    # Until one is silent, or this node is late.
    watch.run(12.0, *peers[1:])
    before = watch.left_out
    watch.run(13.0, *peers[1:])
    assert watch.left_out == before + 2 * 2
    assert 1 in watch.of.to_observe(watch.now + 1.0) and 1 not in watch.of.to_observe(watch.now)
