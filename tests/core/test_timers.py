"""The timing wheel against a list of timers, above all where one level ends and the next begins."""

from __future__ import annotations

import gc
import math
import random
import sys
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rabble._core.debug import CAPACITIES
from rabble._core.timers import Timer, TimerWheel, validate_delay_ms
from tests.reference.wheel import DELAY_TICKS_MAX, ReferenceTimer, ReferenceWheel

DAY = 24 * 60 * 60 * 1000
LEVELS = CAPACITIES["WHEEL_LEVELS"]
SLOT_BITS = CAPACITIES["WHEEL_SLOT_BITS"]
SLOTS = 1 << SLOT_BITS
SPANS = [
    1 << (SLOT_BITS * level) for level in range(LEVELS + 1)
]  # of a slot of each level; last, of the wheel
MOVES_MAX = LEVELS - 1  # how often one timer goes down a level
TICK_MAX = 2**62

# Ticks around which something happens: multiples of what a slot is long, one more and one less.
edges = st.builds(
    lambda span, factor, off: max(span * factor + off, 0),
    st.sampled_from(SPANS),
    st.sampled_from([1, 2, 3, SLOTS - 1, SLOTS, SLOTS + 1]),
    st.sampled_from([-1, 0, 1]),
)
starts = st.one_of(st.just(0), edges, st.integers(0, 2**45), st.just(TICK_MAX - 2**42))
delays = st.one_of(
    st.integers(0, 3),
    edges.map(lambda delay: min(delay, DELAY_TICKS_MAX)),
    st.integers(0, 70_000),
    st.integers(0, DELAY_TICKS_MAX),
    st.just(DELAY_TICKS_MAX),
)


def to_edge(now: int, level: int, off: int) -> int:
    """Ticks from now to the next start of a slot of that level, and one more or less."""
    return max(SPANS[level] - now % SPANS[level] + off, 0)


def lazily_reached(wheel: TimerWheel, goal: int) -> int:
    """Advance as a sleeper does, up to the first timer that fires; how often it woke up."""
    fired: list[Timer] = []
    wakes = 0
    while not fired:
        tick = wheel.next_deadline()
        assert tick is not None and wheel.now < tick <= goal
        fired = wheel.advance(tick)
        wakes += 1
    assert wheel.now == goal and [timer.deadline for timer in fired] == [goal]
    return wakes


class WheelMachine(RuleBasedStateMachine):
    """The wheel and the list do the same things at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.pairs: dict[int, tuple[Timer, ReferenceTimer]] = {}

    @initialize(now=starts)
    def begin(self, now: int) -> None:
        self.wheel = TimerWheel(now)
        self.reference = ReferenceWheel(now)

    def start_one(self, delay: int) -> None:
        self.number += 1
        timer = self.wheel.start("owner", self.number, delay)
        self.pairs[self.number] = (timer, self.reference.start("owner", self.number, delay))
        assert timer.owner == "owner" and timer.correlation_id == self.number

    def advance_to(self, now: int) -> None:
        if now > TICK_MAX:
            with pytest.raises(ValueError):
                self.wheel.advance(now)
            return
        expected = self.reference.advance(now)
        fired = self.wheel.advance(now)
        assert [timer.correlation_id for timer in fired] == [t.correlation_id for t in expected]
        assert not any(timer.active for timer in fired)

    @rule(delay=delays, times=st.sampled_from([1, 1, 3]))
    def start(self, delay: int, times: int) -> None:
        for _ in range(times):
            self.start_one(delay)

    @rule(level=st.integers(0, LEVELS), off=st.sampled_from([-1, 0, 1]))
    def start_at_edge(self, level: int, off: int) -> None:
        self.start_one(min(to_edge(self.wheel.now, level, off), DELAY_TICKS_MAX))

    @precondition(lambda self: len(self.reference) > 0)
    @rule(data=st.data())
    def start_at_the_same_tick_as_another(self, data: st.DataObject) -> None:
        other = data.draw(st.sampled_from(self.reference.running), "other")
        self.start_one(other.deadline - self.wheel.now)

    @precondition(lambda self: bool(self.pairs))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        timer, twin = self.pairs[data.draw(st.sampled_from(sorted(self.pairs)), "number")]
        assert self.wheel.cancel(timer) == self.reference.cancel(twin)

    @rule(ticks=delays)
    def advance(self, ticks: int) -> None:
        self.advance_to(self.wheel.now + ticks)

    @rule(level=st.integers(0, LEVELS), off=st.sampled_from([-1, 0, 1]))
    def advance_to_edge(self, level: int, off: int) -> None:
        self.advance_to(self.wheel.now + to_edge(self.wheel.now, level, off))

    @precondition(lambda self: len(self.reference) > 0)
    @rule(off=st.sampled_from([-1, 0, 1]))
    def advance_to_deadline(self, off: int) -> None:
        deadline = self.reference.next_deadline()
        assert deadline is not None
        self.advance_to(max(deadline + off, self.wheel.now))

    @precondition(lambda self: len(self.reference) > 0)
    @rule()
    def advance_to_what_the_wheel_says(self) -> None:
        tick = self.wheel.next_deadline()
        assert tick is not None
        self.advance_to(tick)

    @rule()
    def advance_backwards(self) -> None:
        with pytest.raises(ValueError):
            self.wheel.advance(self.wheel.now - 1)

    @rule()
    def clear(self) -> None:
        assert self.wheel.clear() == self.reference.clear()

    @invariant()
    def same(self) -> None:
        if self.number == 0:
            return
        assert self.wheel.now == self.reference.now
        assert len(self.wheel) == len(self.reference)
        for timer, twin in self.pairs.values():
            assert (timer.active, timer.deadline) == (twin.active, twin.deadline)
        bound, exact = self.wheel.next_deadline(), self.reference.next_deadline()
        if exact is None:
            assert bound is None
        else:
            assert bound is not None and self.wheel.now < bound <= exact
            if exact // SLOTS == self.wheel.now // SLOTS:
                assert bound == exact  # it is in level 0

    def teardown(self) -> None:
        if self.number:
            self.advance_to(min(self.wheel.now + DELAY_TICKS_MAX, TICK_MAX))
            # What was started near the end of time may be due after it, and stays.
            assert all(timer.deadline > TICK_MAX for timer in self.reference.running)
            assert len(self.wheel) == len(self.reference)


TestWheel = WheelMachine.TestCase
TestWheel.settings = settings(stateful_step_count=40)


# Boundaries, one by one.


@pytest.mark.parametrize("factor", [1, 2, SLOTS - 1])
@pytest.mark.parametrize("start_off", [-1, 0, 1])
@pytest.mark.parametrize("level", range(1, LEVELS + 1))
def test_at_each_boundary_a_timer_fires_in_its_tick(
    level: int, start_off: int, factor: int
) -> None:
    boundary = SPANS[level] * factor
    begin = boundary + start_off
    wanted = {
        *(span + off for span in SPANS for off in (-1, 0, 1)),
        *(to_edge(begin, edge, off) for edge in range(LEVELS + 1) for off in (-1, 0, 1)),
        1,
        DELAY_TICKS_MAX,
    }
    for delay in sorted(delay for delay in wanted if delay <= DELAY_TICKS_MAX):
        wheel = TimerWheel(begin)
        timer = wheel.start(None, None, delay)
        deadline = begin + max(delay, 1)
        assert timer.deadline == deadline
        assert wheel.advance(deadline - 1) == []
        assert wheel.next_deadline() == deadline
        assert wheel.advance(deadline) == [timer]
        assert wheel.next_deadline() is None
        # In one go, and as one that sleeps in between.
        timer = wheel.start(None, None, delay)
        assert wheel.advance(wheel.now + delay + 1) == [timer]
        wheel.start(None, None, delay)
        assert lazily_reached(wheel, wheel.now + max(delay, 1)) <= MOVES_MAX + 1


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
def test_timers_on_both_sides_of_a_boundary_fire_one_by_one(level: int) -> None:
    boundary = max(8 * SPANS[level], 1 << 12)
    wheel = TimerWheel(boundary - 1000)
    by_deadline = {
        deadline: [wheel.start(None, n, deadline - wheel.now) for n in range(2)]
        for deadline in sorted(range(boundary - 300, boundary + 301), key=lambda d: d % 7)
    }
    for tick in range(boundary - 301, boundary + 302):
        assert wheel.advance(tick) == by_deadline.get(tick, [])


@pytest.mark.parametrize("begin_off", [-1, 0, 1])
@pytest.mark.parametrize(
    "slot", sorted({0, 62, 63, 64, 65, *range(SLOTS - 9, SLOTS + 2)} - {*range(-9, 0)})
)
def test_slots_of_the_topmost_level_come_in_turn(slot: int, begin_off: int) -> None:
    length = SPANS[LEVELS - 1]
    # Where a slot is longer than any delay, from so near its end that the next is in reach.
    begin = length * (slot + SLOTS + 1) - min(length, DELAY_TICKS_MAX // 2) + begin_off
    starts = [length * (slot + SLOTS + nth) for nth in range(1, 8)]
    starts = [start for start in starts if start + 1 - begin <= DELAY_TICKS_MAX]
    deadlines = [start + off for start in starts for off in (-1, 0, 1)]
    wheel = TimerWheel(begin)
    for deadline in random.Random(slot).sample(deadlines, len(deadlines)):
        wheel.start(None, None, deadline - begin)
    for deadline in deadlines:
        bound = wheel.next_deadline()
        assert bound is not None and bound <= deadline
        assert wheel.advance(deadline - 1) == []
        assert [timer.deadline for timer in wheel.advance(deadline)] == [deadline]
    wheel = TimerWheel(begin)
    for deadline in reversed(deadlines):
        wheel.start(None, None, deadline - begin)
    assert [timer.deadline for timer in wheel.advance(deadlines[-1])] == deadlines


@given(
    begin=starts,
    steps=st.lists(st.tuples(delays, delays), min_size=1, max_size=20),
)
def test_every_timer_fires_in_the_first_advance_to_its_deadline(
    begin: int, steps: list[tuple[int, int]]
) -> None:
    begin = min(begin, TICK_MAX - 20 * DELAY_TICKS_MAX)
    wheel, reference = TimerWheel(begin), ReferenceWheel(begin)
    for number, (delay, ticks) in enumerate(steps):
        wheel.start(None, number, delay)
        reference.start(None, number, delay)
        fired = wheel.advance(wheel.now + ticks)
        expected = reference.advance(reference.now + ticks)
        assert [t.correlation_id for t in fired] == [t.correlation_id for t in expected]


# Order.


def test_a_tick_is_a_queue_whatever_the_distance_it_was_started_from() -> None:
    wheel = TimerWheel(7)
    deadline = 7 + DELAY_TICKS_MAX
    timers = []
    for before in (DELAY_TICKS_MAX, 2**32, 2**32 - 1, 70_000, 65_536, 300, 256, 255, 1):
        assert wheel.advance(deadline - before) == []
        timers += [wheel.start(None, None, before) for _ in range(2)]
    assert wheel.advance(deadline) == timers


def test_a_hundred_thousand_timers_due_at_once() -> None:
    chosen = random.Random(109)
    wheel = TimerWheel()
    timers = [wheel.start(None, n, chosen.randrange(10_000)) for n in range(100_000)]
    fired = wheel.advance(20_000)
    assert fired == sorted(timers, key=lambda timer: timer.deadline)
    assert wheel.visits <= sum(10_000 // span + 1 for span in SPANS)


# The cost of time that passes: none. Counted, not measured.


def test_a_long_jump_visits_only_the_slots_of_the_one_timer() -> None:
    wheel = TimerWheel(12_345)
    timer = wheel.start(None, None, 300 * DAY)
    assert wheel.advance(12_345 + 300 * DAY - 1) == []
    assert wheel.advance(12_345 + 300 * DAY) == [timer]
    assert wheel.visits <= MOVES_MAX + 1


def test_a_year_long_timer_amid_a_tick_by_tick_life() -> None:
    wheel = TimerWheel()
    year = wheel.start(None, "year", DELAY_TICKS_MAX)
    for day in range(1, 367):
        short = [wheel.start(None, None, ticks) for ticks in (1, 255, 256, 70_000, DAY - 1)]
        assert wheel.advance(wheel.now + DAY - 1) == short
        assert year.active
        assert wheel.advance(day * DAY) == ([year] if day == 366 else [])
    assert not year.active
    assert wheel.visits <= 366 * 5 * (MOVES_MAX + 1)


def test_an_empty_wheel_and_one_with_a_far_timer_advance_without_a_visit() -> None:
    wheel = TimerWheel()
    for _ in range(1000):
        assert wheel.advance(wheel.now + 2**40) == []
    assert wheel.visits == 0
    wheel.start(None, None, 366 * DAY)
    for _ in range(1000):
        wheel.advance(wheel.now + 1000)
    assert wheel.visits == 0


@given(begin=starts, delay=delays)
def test_a_sleeper_wakes_up_at_most_five_times(begin: int, delay: int) -> None:
    wheel = TimerWheel(begin)
    wheel.start(None, None, delay)
    assert lazily_reached(wheel, begin + max(delay, 1)) <= MOVES_MAX + 1


# Cancelling.


def test_cancel_tells_whether_it_ran() -> None:
    wheel = TimerWheel()
    timer, other = wheel.start(None, 1, 5), wheel.start(None, 2, 5)
    assert timer.active
    assert wheel.cancel(timer) is True
    assert not timer.active
    assert wheel.cancel(timer) is False
    assert wheel.advance(5) == [other]
    assert wheel.cancel(other) is False
    assert len(wheel) == 0


def test_the_last_of_a_slot_takes_the_slot_with_it() -> None:
    wheel = TimerWheel()
    for delay in (1, 255, 256, 65_535, 65_536, 2**24, 2**32, DELAY_TICKS_MAX):
        timers = [wheel.start(None, None, delay) for _ in range(3)]
        for timer in (timers[1], timers[0], timers[2]):
            assert wheel.next_deadline() is not None
            assert wheel.cancel(timer)
        assert wheel.next_deadline() is None
    assert wheel.advance(2 * DELAY_TICKS_MAX) == []
    assert wheel.visits == 0


def test_a_timer_of_another_wheel_is_refused_and_goes_on_running() -> None:
    mine, others = TimerWheel(), TimerWheel()
    timer = others.start(None, "cid", 5)
    with pytest.raises(ValueError, match="another wheel"):
        mine.cancel(timer)
    assert timer.active and len(others) == 1 and len(mine) == 0
    assert others.advance(5) == [timer]
    assert mine.cancel(timer) is False


def test_only_timers_can_be_cancelled() -> None:
    wheel: Any = TimerWheel()
    for wrong in (None, 1, "timer"):
        with pytest.raises(TypeError):
            wheel.cancel(wrong)


# What is out of range.


def test_going_backwards_is_refused_and_changes_nothing() -> None:
    wheel = TimerWheel(1000)
    timer = wheel.start(None, None, 10)
    for wrong in (999, 0, -1, TICK_MAX + 1):
        with pytest.raises(ValueError, match="1000"):
            wheel.advance(wrong)
    assert wheel.now == 1000
    assert wheel.advance(1000) == []
    assert wheel.advance(1010) == [timer]


def test_a_delay_out_of_range_is_refused() -> None:
    wheel: Any = TimerWheel()
    for wrong in (-1, DELAY_TICKS_MAX + 1, 2**53):
        with pytest.raises(ValueError, match="31622400000"):
            wheel.start(None, None, wrong)
    for wrong in (2**63, -(2**63) - 1, 10**5000):
        with pytest.raises(ValueError, match="64 bits"):
            wheel.start(None, None, wrong)
    assert len(wheel) == 0


@pytest.mark.parametrize("wrong", [1.5, 1.0, "1", None])
def test_ticks_are_whole(wrong: Any) -> None:
    wheel = TimerWheel()
    for call in (lambda: wheel.start(None, None, wrong), lambda: wheel.advance(wrong)):
        with pytest.raises(TypeError, match=f"not {type(wrong).__name__}: "):
            call()
    with pytest.raises(TypeError):
        TimerWheel(wrong)
    assert len(wheel) == 0 and wheel.now == 0


def test_where_a_wheel_can_begin() -> None:
    for wrong in (-1, TICK_MAX + 1, 2**64):
        with pytest.raises(ValueError):
            TimerWheel(wrong)
    wheel = TimerWheel(TICK_MAX)
    timer = wheel.start(None, None, DELAY_TICKS_MAX)
    assert timer.deadline == TICK_MAX + DELAY_TICKS_MAX
    assert wheel.advance(TICK_MAX) == []
    assert wheel.clear() == 1


# The delay of a user.


@given(st.integers(0, DELAY_TICKS_MAX))
def test_a_whole_delay_stays_what_it_is(delay: int) -> None:
    for given_as in (delay, float(delay)):
        checked = validate_delay_ms(given_as)
        assert checked == delay and type(checked) is int


@given(st.floats(0, DELAY_TICKS_MAX))
def test_part_of_a_millisecond_counts_as_a_whole_one(delay: float) -> None:
    checked = validate_delay_ms(delay)
    assert checked == math.ceil(delay) and type(checked) is int
    assert 0 <= checked <= DELAY_TICKS_MAX


@given(
    st.one_of(
        st.integers(max_value=-1),
        st.integers(min_value=DELAY_TICKS_MAX + 1),
        st.floats(max_value=0, exclude_max=True),
        st.floats(min_value=DELAY_TICKS_MAX, exclude_min=True),
        st.sampled_from([math.nan, -math.nan, math.inf, -math.inf, -5e-324]),
        st.sampled_from([2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**5000, -(10**5000)]),
    )
)
def test_a_delay_beyond_the_bounds_is_refused_with_the_bounds(delay: float) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 31622400000 milliseconds \(366 days\), not "):
        validate_delay_ms(delay)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("wrong", [True, False, None, "5", b"5", [], 1j, object(), Unprintable()])
def test_what_is_no_number_is_refused_by_its_type(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"milliseconds.*not {type(wrong).__name__}: "):
        validate_delay_ms(wrong)


# References and lifetimes.


def test_a_running_timer_needs_nobody_to_hold_it() -> None:
    wheel = TimerWheel()
    for number in range(3000):  # more than the freelist keeps
        wheel.start(f"owner {number}", number, 10)
    gc.collect()
    fired = wheel.advance(10)
    assert [timer.correlation_id for timer in fired] == list(range(3000))
    assert [timer.owner for timer in fired] == [f"owner {number}" for number in range(3000)]


@pytest.mark.parametrize("end", ["cancel", "fire", "clear", "wheel dies"])
@pytest.mark.parametrize("delay", [1, 300, 2**33])
def test_the_wheel_owns_one_reference_while_the_timer_runs(end: str, delay: int) -> None:
    owner, cid = object(), object()
    before = sys.getrefcount(owner), sys.getrefcount(cid)
    wheel = TimerWheel()
    timer = wheel.start(owner, cid, delay)
    running = sys.getrefcount(timer)
    if end == "cancel":
        wheel.cancel(timer)
    elif end == "fire":
        wheel.advance(2**34)
    elif end == "clear":
        assert wheel.clear() == 1
    else:
        del wheel
    assert not timer.active
    assert sys.getrefcount(timer) == running - 1
    # Only one that fired has to say whose it is.
    assert timer.owner is (owner if end == "fire" else None) and timer.correlation_id is cid
    assert (sys.getrefcount(owner), sys.getrefcount(cid)) == (
        before[0] + (end == "fire"),
        before[1] + 1,
    )
    del timer
    assert (sys.getrefcount(owner), sys.getrefcount(cid)) == before


def test_a_timer_outlives_its_wheel_and_belongs_to_none_then() -> None:
    timer = TimerWheel().start(None, None, 5)
    assert not timer.active
    assert TimerWheel().cancel(timer) is False


def test_the_collector_does_not_walk_over_timers() -> None:
    wheel = TimerWheel()
    assert not gc.is_tracked(wheel.start(None, None, 5))


class Meddler:
    """An owner whose end uses the wheel, as that of a process might."""

    def __init__(self, wheel: TimerWheel, to_cancel: list[Timer], log: list[Any]) -> None:
        self.wheel, self.to_cancel, self.log = wheel, to_cancel, log

    def __del__(self) -> None:
        self.log.append([self.wheel.cancel(timer) for timer in self.to_cancel])
        self.log.append(self.wheel.start(None, "started at the end", 3))
        self.log.append(self.wheel.clear() if len(self.log) > 6 else len(self.wheel))


def test_what_ends_with_a_timer_may_use_the_wheel() -> None:
    wheel = TimerWheel()
    log: list[Any] = []
    kept = [wheel.start(None, n, n) for n in (1, 10, 300, 70_000)]
    for delay in (1, 10, 300):
        wheel.start(Meddler(wheel, kept, log), None, delay)
    assert wheel.clear() == 7
    # The first two ends leave one timer each; the third cancels what they and it have started.
    assert [entry for entry in log if isinstance(entry, list)] == [[False] * 4] * 3
    assert [entry for entry in log if isinstance(entry, int)] == [1, 2, 3]
    assert len(wheel) == 0 and wheel.next_deadline() is None
    assert wheel.advance(2**33) == []


@pytest.mark.parametrize("end", ["cancel", "clear", "wheel dies"])
def test_an_owner_that_keeps_its_timer_is_not_kept_by_it_for_ever(end: str) -> None:
    class Owner:
        timer: Timer

    wheel = TimerWheel()
    owner = Owner()
    owner.timer = wheel.start(owner, None, 5)
    seen = weakref.ref(owner)
    if end == "cancel":
        wheel.cancel(owner.timer)
    elif end == "clear":
        wheel.clear()
    else:
        del wheel
    # Without the collector, which does not see timers.
    del owner
    assert seen() is None


def test_timers_of_timers_are_refused_as_dropping_one_would_drop_all_the_others() -> None:
    wheel = TimerWheel()
    timer = wheel.start(None, None, 5)
    for owner, cid in ((timer, None), (None, timer)):
        with pytest.raises(TypeError, match="timer cannot belong to a timer"):
            wheel.start(owner, cid, 5)
    assert len(wheel) == 1


class Odd(int):
    """An int whose every method lies or raises."""

    def _raise(self, *args: object) -> Any:
        raise SystemExit("asked")

    __int__ = __index__ = __le__ = __ge__ = __lt__ = __gt__ = __eq__ = _raise
    __repr__ = __str__ = bit_length = _raise
    __hash__ = None  # type: ignore[assignment]


class Liar:
    __class__ = int  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise SystemExit("asked")


def test_no_method_of_a_delays_class_is_asked() -> None:
    wheel: Any = TimerWheel()
    assert validate_delay_ms(Odd(7)) == 7
    assert wheel.start(None, None, Odd(7)).deadline == 7
    assert len(wheel.advance(Odd(8))) == 1
    for call in (validate_delay_ms, lambda wrong: wheel.start(None, None, wrong)):
        for wrong in (Odd(-1), Odd(2**62), Odd(2**70)):
            with pytest.raises(ValueError, match="31622400000|64 bits"):
                call(wrong)
        with pytest.raises(TypeError, match="not Liar"):
            call(Liar())


def test_owners_die_with_their_timers() -> None:
    class Owner:
        pass

    wheel = TimerWheel()
    owners = [Owner() for _ in range(4)]
    seen = [weakref.ref(owner) for owner in owners]
    timers = [wheel.start(owner, None, 5) for owner in owners[:3]]
    wheel.start(owners.pop(), None, 2**33)
    owners.clear()
    wheel.cancel(timers.pop())
    assert [ref() is None for ref in seen] == [False, False, True, False]
    timers.clear()
    wheel.advance(5)
    assert [ref() is None for ref in seen] == [True, True, True, False]
    del wheel
    assert seen[3]() is None


def test_a_timer_is_made_by_a_wheel_only_and_cannot_be_changed() -> None:
    make: Any = Timer
    with pytest.raises(TypeError, match="start"):
        make()
    wheel = TimerWheel()
    assert wheel.cancel(make.__new__(make)) is False
    timer = wheel.start("owner", "cid", 5)
    for name in ("owner", "correlation_id", "deadline", "active"):
        with pytest.raises(AttributeError):
            setattr(timer, name, None)
    assert repr(timer) == "<Timer of 'cid', deadline 5, active>"
    wheel.advance(5)
    assert repr(timer) == "<Timer of 'cid', deadline 5, inactive>"
