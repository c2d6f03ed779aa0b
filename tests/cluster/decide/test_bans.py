"""Bans: the last word counts, each counts down by itself, and what a member claims is bounded."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rabble import Limits, MessageRegistry, NodeId
from rabble._core.codec import Codec
from rabble.cluster.decide.bans import (
    DURATION_MS_MAX,
    ROW_BYTES_MAX,
    BanChanges,
    Bans,
    Subject,
    subject_text,
)
from rabble.cluster.decide.belief import BELIEVED_WITHOUT_CLOCK as FAR
from rabble.cluster.decide.membership import MembershipError
from rabble.cluster.decide.refusal import Refusal, RefusalCode

CODEC = Codec(MessageRegistry())
KEY = bytes(range(32))
SUBJECTS: tuple[Subject, ...] = ("x", "y", KEY, bytes(32))
FEW = Limits(bans_max=3)


def bans_of(name: str, limits: Limits | None = None) -> Bans:
    return Bans(NodeId(name, "h:1"), limits)


def sent(bans: Bans, now: float = 0.0, subjects: Any = None) -> Any:
    """Rows as they come out of a peer's decoder."""
    return CODEC.decode_message(CODEC.encode_message(bans.rows(now, subjects)))


def banned(bans: Bans, now: float = 0.0) -> dict[Subject, float]:
    """For how many seconds more each is banned."""
    return {ban.subject: ban.until - now for ban in bans.in_force(now)}


def settle(*nodes: Bans, now: float = 0.0) -> None:
    for _ in range(20):
        pairs = itertools.permutations(nodes, 2)
        if not any(two.merge(sent(one, now), now).learned for one, two in pairs):
            return
    raise AssertionError("they do not come to an end")


# What it is for.


def test_a_ban_holds_for_its_time_and_no_longer() -> None:
    a = bans_of("a")
    assert a.ban("x", 10, 100.0) == ()
    assert banned(a, 100.0) == {"x": 10.0}
    assert a.next_tick() == 110.0
    assert a.tick(109.999) == [] and banned(a, 109.999)
    assert a.tick(110.0) == ["x"] and not banned(a, 110.0)
    assert a.tick(110.0) == [] and a.next_tick() is None


def test_whoever_is_told_counts_down_by_its_own_clock() -> None:
    a, b = bans_of("a"), bans_of("b")
    a.ban(KEY, 10, 100.0)
    assert b.merge(sent(a, 104.0), 7_000.0) == BanChanges((KEY,))
    assert banned(b, 7_000.0) == {KEY: 6.0}
    assert b.in_force(7_000.0)[0].by == "a"
    assert not banned(b, 7_006.0)


def test_the_name_or_the_key_is_refused_with_the_reason_and_the_time() -> None:
    a = bans_of("a")
    a.ban("x", 10, 0.0)
    a.ban(KEY, 20.5, 0.0)
    refusal = a.refusal("x", (), 0.5)
    assert refusal == Refusal(RefusalCode.BANNED, "the name x is banned for 10 s more", ban_s=10)
    # Of several the one that is over last.
    for name, keys in (("x", [KEY]), ("y", [bytes(32), KEY])):
        refusal = a.refusal(name, keys, 0.0)
        assert refusal is not None and refusal.ban_s == 21
        assert refusal.text == f"the key {KEY.hex()} is banned for 21 s more"
    assert a.refusal("y", [bytes(32)], 0.0) is None
    assert a.refusal("x", [KEY], 20.5) is None


def test_a_lifting_ends_it_everywhere_and_a_later_ban_holds_again() -> None:
    a, b = bans_of("a"), bans_of("b")
    a.ban("x", 1_000, 0.0)
    settle(a, b)
    assert b.lift("x", 1.0)
    assert not b.lift("x", 1.0) and not b.lift("y", 1.0)
    assert a.merge(sent(b, 1.0), 1.0).learned == ("x",)
    assert not banned(a, 1.0) and a.tick(1.0) == ["x"]
    # Somebody who had not heard of it brings the ban back to nobody.
    late = bans_of("c")
    late.merge([["x", 1, 1_000_000, "a", 999_000, False]], 1.0)
    assert a.merge(sent(late, 1.0), 1.0) == BanChanges()
    a.ban("x", 5, 2.0)
    settle(a, b, late, now=2.0)
    assert banned(b, 2.0) == banned(late, 2.0) == {"x": 5.0}


def test_a_new_ban_takes_the_place_of_a_longer_one() -> None:
    a, b = bans_of("a"), bans_of("b")
    a.ban("x", 1_000, 0.0)
    settle(a, b)
    b.ban("x", 1, 0.0)
    settle(a, b)
    assert banned(a) == {"x": 1.0}


def test_of_two_words_that_did_not_know_of_each_other_the_longer_ban_wins() -> None:
    a, b = bans_of("a"), bans_of("b")
    a.ban("x", 10, 0.0)
    b.ban("x", 1_000, 0.0)
    settle(a, b)
    assert banned(a) == banned(b) == {"x": 1_000.0}
    assert a.lift("x", 0.0)
    b.ban("x", 3, 0.0)
    settle(a, b)
    assert banned(a) == banned(b) == {"x": 3.0}


def test_of_one_word_the_least_time_counts_so_it_never_gets_longer_by_going_round() -> None:
    a, b = bans_of("a"), bans_of("b")
    a.ban("x", 10, 0.0)
    now = 0.0
    for _ in range(100):
        rows = sent(a, now)
        now += 0.05
        b.merge(rows, now)
        rows = sent(b, now)
        now += 0.04
        a.merge(rows, now)
    assert banned(a, 9.0) == {"x": 1.0}
    assert banned(b, 9.0) == {"x": pytest.approx(1.05)}


def test_a_node_that_stood_still_learns_that_it_is_over() -> None:
    a, b = bans_of("a"), bans_of("b")
    a.ban("x", 10, 0.0)
    settle(a, b)
    # For b ten seconds have passed, for a none.
    assert a.summary(0.0) != b.summary(10.0)
    assert a.merge(sent(b, 10.0), 0.0) == BanChanges((), ("x",))
    assert a.tick(0.0) == ["x"] and not banned(a)
    assert a.summary(0.0) == b.summary(10.0)


def test_what_is_over_is_not_brought_back_and_ended_here_only_once() -> None:
    a, b = bans_of("a"), bans_of("b")
    a.ban("x", 10, 0.0)
    stale = sent(a)
    assert a.tick(11.0) == ["x"]
    assert a.merge(stale, 11.0).learned == () and not banned(a, 11.0)
    # Who hears of it when it is over has nothing to end.
    assert b.merge(sent(a, 11.0), 11.0).learned == ("x",)
    assert b.tick(11.0) == []


def test_what_still_holds_is_never_told_as_over() -> None:
    a, b = bans_of("a"), bans_of("b")
    a.ban("x", 0.0001, 0.0)
    b.merge(sent(a), 0.0)
    assert banned(b)


def test_only_some_are_sent_if_only_some_are_wanted() -> None:
    a = bans_of("a")
    for subject in reversed(SUBJECTS):
        a.ban(subject, 10, 0.0)
    assert [row[0] for row in sent(a)] == ["x", "y", bytes(32), KEY]
    assert [row[0] for row in sent(a, subjects=["y", KEY, "z"])] == ["y", KEY]


@pytest.mark.parametrize("seconds", [0, -1, 400 * 86_400 + 1, math.nan, math.inf])
def test_a_ban_takes_a_time_that_may_be(seconds: float) -> None:
    a = bans_of("a")
    with pytest.raises(ValueError, match="up to 34560000 s"):
        a.ban("x", seconds, 0.0)
    assert len(a) == 0


def test_subjects_are_named_for_people() -> None:
    assert subject_text("x") == "the name x"
    assert subject_text("\u0416") == "the name \\u0416"
    assert subject_text(KEY) == f"the key {KEY.hex()}"


# What a member claims.


def test_nobody_is_believed_about_itself() -> None:
    a, x = bans_of("a"), bans_of("x")
    for subject in ("x", KEY):
        a.ban(subject, 1_000, 0.0)
    x.merge(sent(a), 0.0)
    x.lift("x", 0.0)
    x.lift(KEY, 0.0)
    x.ban("y", 10, 0.0)
    assert a.merge(sent(x), 0.0, ("x", KEY)) == BanChanges(("y",))
    assert banned(a).keys() == {"x", "y", KEY}


def test_nobody_bans_for_longer_than_may_be() -> None:
    a = bans_of("a", Limits(ban_seconds_max=60))
    a.merge([["x", 1, DURATION_MS_MAX, "m", DURATION_MS_MAX, False]], 0.0)
    assert banned(a) == {"x": 60.0}
    # Told again and again it gets no longer: for that it needs a new word each time.
    a.merge([["x", 1, DURATION_MS_MAX, "m", DURATION_MS_MAX, False]], 50.0)
    assert banned(a, 50.0) == {"x": 10.0}


def test_a_node_that_allows_itself_less_cuts_a_ban_for_itself_alone() -> None:
    a, b, cuts = bans_of("a"), bans_of("b"), bans_of("c", Limits(ban_seconds_max=60))
    a.ban("x", 1_000, 0.0)
    cuts.merge(sent(a), 0.0)
    assert banned(cuts) == {"x": 60.0} and cuts.next_tick() == 60.0
    # What it passes on is what it was told.
    for other in (a, b):
        other.merge(sent(cuts, 10.0), 10.0)
        assert banned(other, 10.0) == {"x": 990.0}
    # When it is over there, others know nothing else of it, nor has it been said that it is over.
    assert cuts.tick(60.0) == ["x"] and not banned(cuts, 60.0) and cuts.next_tick() is None
    assert cuts.get("x", 60.0) is None and cuts.refusal("x", (), 60.0) is None
    settle(a, b, cuts, now=60.0)
    assert a.summary(60.0) == b.summary(60.0) == cuts.summary(60.0)
    assert banned(a, 60.0) == banned(b, 60.0) == {"x": 940.0}
    # It can be lifted there all the same.
    assert cuts.lift("x", 61.0)
    settle(a, b, cuts, now=61.0)
    assert not banned(a, 61.0)


def test_a_cut_is_of_the_whole_ban_so_that_whoever_hears_of_it_later_holds_it_no_longer() -> None:
    limits = Limits(ban_seconds_max=60)
    first, later, last = (bans_of(name, limits) for name in "abc")
    first.merge([["x", 1, DURATION_MS_MAX, "m", DURATION_MS_MAX, False]], 0.0)
    later.merge(sent(first, 20.0), 20.0)
    assert banned(first, 20.0) == banned(later, 20.0) == {"x": 40.0}
    last.merge(sent(later, 70.0), 70.0)
    assert not banned(last, 70.0) and last.tick(70.0) == [] and "x" in last
    assert first.summary(70.0) == later.summary(70.0) == last.summary(70.0)


def test_what_is_cut_here_holds_its_place_in_the_table_as_it_does_elsewhere() -> None:
    """Or else nodes would forget different ones, and never agree."""
    a, cuts = bans_of("a", FEW), bans_of("c", Limits(bans_max=3, ban_seconds_max=60))
    a.ban("x", 1_000, 0.0)
    for name in ("y", "z"):
        a.ban(name, 100, 0.0)
    settle(a, cuts)
    a.lift("y", 70.0)
    settle(a, cuts, now=70.0)
    a.ban("u", 10, 70.0)
    settle(a, cuts, now=70.0)
    assert [row[0] for row in a.rows(70.0)] == ["u", "x", "z"]
    assert a.summary(70.0) == cuts.summary(70.0)


def test_a_time_beyond_belief_is_left_out_and_after_any_other_there_is_a_later_word() -> None:
    a, b = bans_of("a"), bans_of("b")
    rows = [["x", FAR + 1, 9, "m", 9, True], ["y", FAR, 9_000, "m", 9_000, True]]
    assert a.merge(rows, 0.0) == BanChanges(("y",), (), (), 1)
    assert banned(a).keys() == {"y"}
    # Which others believe a millisecond later.
    b._highest_believed = lambda: FAR + (1 << 20)
    assert a.lift("y", 0.0)
    settle(a, b)
    assert not banned(b) and len(b) == 1


def test_the_table_is_bounded_and_what_holds_is_kept_before_what_is_over() -> None:
    a = bans_of("a", FEW)
    a.ban("over", 10, 0.0)
    a.ban("kept", 1_000, 0.0)
    a.lift("over", 0.0)
    for number in range(20):
        a.ban(f"lifted-{number}", 1_000, 0.0)
        a.lift(f"lifted-{number}", 0.0)
        assert len(a) <= 3 and banned(a).keys() == {"kept"}
    a.ban("y", 1_000, 0.0)
    a.ban("z", 1_000, 0.0)
    assert a.ban("last", 1_000, 0.0) == ("kept",)
    assert banned(a).keys() == {"y", "z", "last"}


def test_whoever_fills_the_table_keeps_no_ban_of_an_operator_out() -> None:
    """Whatever it says, before and after, to whom, and of whatever time it says it is."""
    a, b, c = (bans_of(name, Limits(bans_max=16)) for name in "abc")

    def flood(time: int, by: str) -> list[list[Any]]:
        """As much as fits three times."""
        names = [f"{by}-{i:02}" for i in range(48)]
        return [[name, time, DURATION_MS_MAX, by, DURATION_MS_MAX, True] for name in names]

    for honest in (a, b, c):
        honest.merge(flood(FAR - 1_000, "m"), 0.0, ("m",))
        assert len(honest) == 16
    assert len(a.ban("m", 1_000, 0.0)) == 1
    word = sent(a, subjects=["m"])
    # Of those that have not heard it yet one is told what is later than that; and tells others.
    b.merge(flood(FAR, "a"), 0.0, ("m",))
    assert b.merge(word, 0.0, ("a",)).learned == ("m",)
    c.merge(sent(b), 0.0, ("b",))
    assert "m" in c.merge(word, 0.0, ("a",)).confirmed or "m" in banned(c)
    c.merge(word, 0.0, ("a",))
    for by in "abcm":
        for one, two in itertools.permutations((a, b, c), 2):
            two.merge(flood(FAR, by), 0.0, ("m",))
            two.merge(sent(one), 0.0, (one._own.name,))
    for honest in (a, b, c):
        assert "m" in banned(honest) and len(honest) == 16


def test_what_is_first_hand_comes_before_the_rest_but_of_each_giver_only_a_part() -> None:
    a = bans_of("a", Limits(bans_max=32))
    rows = [[f"by-b-{i:02}", 1 + i, 9_000, "b", 9_000, True] for i in range(40)]
    a.merge(rows, 0.0, ("b",))
    a.merge([[f"later-{i:02}", 100 + i, 9_000, "c", 9_000, True] for i in range(40)], 0.0, ("d",))
    kept = set(banned(a))
    assert kept & {row[0] for row in rows} == {"by-b-38", "by-b-39"}
    assert len(kept) == 32


ROW = ["x", 1, 10, "a", 10, False]
WRONG: dict[str, Any] = {
    "no array": {"x": 1},
    "a row that is none": [1],
    "a row that is too short": [ROW[:5]],
    "a row that is too long": [[*ROW, 1]],
    "a number as subject": [[1, *ROW[1:]]],
    "no subject": [[None, *ROW[1:]]],
    "a name that is none": [["x ", *ROW[1:]]],
    "a name that is too long": [["x" * 256, *ROW[1:]]],
    "a fingerprint that is too short": [[bytes(31), *ROW[1:]]],
    "a fingerprint that is too long": [[bytes(33), *ROW[1:]]],
    "a subject twice": [ROW, ROW],
    "time 0": [["x", 0, 10, "a", 10, False]],
    "a time that is too high": [["x", 2**63, 10, "a", 10, False]],
    "a time that is true": [["x", True, 10, "a", 10, False]],
    "a time that is a float": [["x", 1.0, 10, "a", 10, False]],
    "a duration that is negative": [["x", 1, -1, "a", 0, False]],
    "a duration that is too long": [["x", 1, DURATION_MS_MAX + 1, "a", 0, False]],
    "more left than there was": [["x", 1, 10, "a", 11, False]],
    "less than nothing left": [["x", 1, 10, "a", -1, False]],
    "by no name": [["x", 1, 10, "", 10, False]],
    "no word on whose it is": [["x", 1, 10, "a", 10, None]],
    "by a fingerprint": [["x", 1, 10, KEY, 10, False]],
}


@pytest.mark.parametrize("rows", WRONG.values(), ids=WRONG)
def test_what_is_no_ban_is_refused_with_words_and_nothing_of_it_is_taken_in(rows: Any) -> None:
    a = bans_of("a")
    fine = ["fine", 1, 10, "a", 10, True]
    with pytest.raises(MembershipError) as caught:
        a.merge([fine, *rows] if isinstance(rows, list) else rows, 0.0)
    assert len(str(caught.value)) < 400 and str(caught.value).isascii()
    assert len(a) == 0


def test_the_longest_row_is_no_longer_than_it_is_counted() -> None:
    row = ["x" * 255, 2**63 - 1, DURATION_MS_MAX, "y" * 255, DURATION_MS_MAX, True]
    assert bans_of("a").merge([row], 0.0).disbelieved == 1
    assert len(CODEC.encode_message(row)) <= ROW_BYTES_MAX


# In any order.

rows = st.lists(
    st.tuples(
        st.sampled_from([*SUBJECTS, "z", "u"]),
        st.integers(1, 6),
        st.sampled_from([0, 1_000, 5_000]),
        st.sampled_from("ab"),
        st.booleans(),
    ),
    max_size=12,
)


def told(rows: list[tuple[Any, ...]]) -> list[list[list[Any]]]:
    """Each of them by itself, as it may come; whether it is over depends on nothing but the row."""
    return [[[*row[:4], row[2] if row[1] % 2 else 0, row[4]]] for row in rows]


@given(rows, st.randoms(use_true_random=False))
def test_in_whatever_order_it_is_told_it_comes_to_the_same(
    rows: list[tuple[Any, ...]], rng: random.Random
) -> None:
    a, b = bans_of("a"), bans_of("b")
    for each in told(rows):
        a.merge(each, 0.0)
    again = [*told(rows), *rng.sample(told(rows), len(rows) // 2)]
    rng.shuffle(again)
    for each in again:
        b.merge(each, 0.0)
    assert a.rows(0.0) == b.rows(0.0)
    assert a.merge(sent(b), 0.0).learned == ()


@given(st.tuples(rows, rows, rows))
def test_nodes_without_room_for_all_agree_when_they_have_told_each_other(
    each: tuple[list[tuple[Any, ...]], ...],
) -> None:
    nodes = [bans_of(name, FEW) for name in "abc"]
    for node, rows in zip(nodes, each, strict=True):
        for row in told(rows):
            node.merge(row, 0.0)
            assert len(node) <= 3
    settle(*nodes)
    assert nodes[0].rows(0.0) == nodes[1].rows(0.0) == nodes[2].rows(0.0)


class Countdown(RuleBasedStateMachine):
    """Nodes with clocks of their own, against who knows when each word was said."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        #: How long all that was told together was under way.
        self.delayed_s = 0.0
        self.nodes = {name: bans_of(name) for name in "abc"}
        self.clocks = {"a": 0.0, "b": -5_000.0, "c": 1e6}
        self.known: dict[str, dict[Subject, tuple[int, int, str]]] = {name: {} for name in "abc"}
        self.ends: dict[tuple[Subject, tuple[int, int, str]], float] = {}

    def clock(self, name: str) -> float:
        return self.now + self.clocks[name]

    def said(self, name: str, subject: Subject) -> None:
        """A node has given its word."""
        [[_, *word, _, _]] = self.nodes[name].rows(self.clock(name), [subject])
        time, duration_ms, by = word
        assert by == name
        assert all(time > known[0] for known in self.known[name].values())
        self.known[name][subject] = (time, duration_ms, by)
        self.ends[subject, (time, duration_ms, by)] = self.now + duration_ms / 1_000

    @rule(name=st.sampled_from("abc"), subject=st.sampled_from(SUBJECTS), s=st.integers(1, 30))
    def ban(self, name: str, subject: Subject, s: int) -> None:
        self.nodes[name].ban(subject, s, self.clock(name))
        self.said(name, subject)

    @rule(name=st.sampled_from("abc"), subject=st.sampled_from(SUBJECTS))
    def lift(self, name: str, subject: Subject) -> None:
        if self.nodes[name].lift(subject, self.clock(name)):
            self.said(name, subject)

    @rule(pair=st.permutations("abc"), delay_s=st.sampled_from([0.0, 0.01, 3.0]))
    def tell(self, pair: list[str], delay_s: float) -> None:
        one, two, _ = pair
        rows = sent(self.nodes[one], self.clock(one))
        words = dict(self.known[one])
        self.wait(delay_s)
        self.delayed_s += delay_s
        self.nodes[two].merge(rows, self.clock(two))
        for subject, word in words.items():
            self.known[two][subject] = max(word, self.known[two].get(subject, word))

    @rule(seconds=st.floats(0.001, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def each_counts_down_the_last_word_that_it_knows(self) -> None:
        for name, node in self.nodes.items():
            clock = self.clock(name)
            for subject, word in self.known[name].items():
                [[_, *found, left_ms, _]] = node.rows(clock, [subject])
                assert tuple(found) == word
                left_s = self.ends[subject, word] - self.now
                # A row's milliseconds are rounded up.
                assert left_ms >= left_s * 1_000 - 1e-3
                assert left_ms <= max(left_s + self.delayed_s, 0.0) * 1_000 + 30
            assert len(node) == len(self.known[name])

    def teardown(self) -> None:
        if not hasattr(self, "nodes"):
            return
        for _ in range(2):
            for one, two in itertools.permutations("abc", 2):
                self.nodes[two].merge(sent(self.nodes[one], self.clock(one)), self.clock(two))
        summaries = [node.summary(self.clock(name)) for name, node in self.nodes.items()]
        assert summaries[0] == summaries[1] == summaries[2]


TestCountdown = Countdown.TestCase
TestCountdown.settings = settings(max_examples=60, stateful_step_count=30)
