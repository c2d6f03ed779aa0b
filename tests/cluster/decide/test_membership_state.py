"""The state of a membership as a value: what two say together, and what one adds to the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rabble import Limits
from rabble._core.codec import Codec
from rabble.cluster.decide.membership_state import (
    Rows,
    Start,
    State,
    Version,
    last_start,
    merged_version,
    read_state,
)
from rabble.registry import MessageRegistry

CODEC = Codec(MessageRegistry())
#: Few of each, so that two of them often meet.
few = st.integers(1, 3)
ends = st.integers(0, 3)
starts = st.builds(Start, st.just("a"), few, few, ends, st.sampled_from([None, "h:1", "h:2"]))
versions = st.builds(Version, st.just("a"), st.just(5), few, ends)


def state_of(*members: str) -> State:
    """Starts in force, and no joins."""
    return State(
        Rows(frozenset(Start(name, 1, 1, 0, "h:1") for name in members), frozenset(), frozenset()),
        CODEC,
    )


@given(starts, starts, starts)
def test_of_starts_of_a_name_all_choose_the_same(a: Start, b: Start, c: Start) -> None:
    assert last_start(a, a) == a
    assert last_start(a, b) == last_start(b, a)
    assert last_start(last_start(a, b), c) == last_start(a, last_start(b, c))


@given(starts, starts)
def test_a_start_that_was_dropped_stays_dropped(a: Start, b: Start) -> None:
    chosen = last_start(a, b)
    latest = max((a.incarnation, a.counter), (b.incarnation, b.counter))
    of_latest = [each.addr for each in (a, b) if (each.incarnation, each.counter) == latest]
    assert (chosen.incarnation, chosen.counter) == latest
    assert (chosen.addr is None) == (None in of_latest)


@given(starts, starts)
def test_the_last_start_is_one_of_the_two_objects_if_it_equals_one(a: Start, b: Start) -> None:
    chosen = last_start(a, b)
    assert chosen not in (a, b) or chosen is a or chosen is b


@given(versions, versions)
def test_the_version_of_both_is_one_of_the_two_objects_if_it_equals_one(
    a: Version, b: Version
) -> None:
    both = merged_version(a, b)
    assert both not in (a, b) or both is a or both is b


@given(versions, versions)
def test_what_two_know_of_a_replica_is_the_most_of_both(a: Version, b: Version) -> None:
    both = merged_version(a, b)
    assert both == merged_version(b, a)
    assert (both.counter, both.ended) == (max(a.counter, b.counter), max(a.ended, b.ended))


def test_a_state_is_encoded_alike_in_whatever_order_its_rows_came() -> None:
    one, other = state_of("a", "b", "c"), state_of("c", "b", "a")
    assert one.encoded() == other.encoded()
    assert one.digest() == other.digest()
    assert one.encoded() is one.encoded()


def test_a_state_adds_nothing_to_itself() -> None:
    news = state_of("a", "b").news_for(state_of("a", "b"))
    assert not (news.starts or news.versions or news.lost or news.gained or news.touched)
    assert news.is_all


def test_what_one_adds_to_another_is_what_that_does_not_have() -> None:
    news = state_of("a", "b").news_for(state_of("b", "c"))
    assert set(news.starts) == news.touched == {"a"}
    # The two together are more than the one: it does not have `c`.
    assert not news.is_all
    assert state_of("a", "b", "c").news_for(state_of("b", "c")).is_all


@given(starts, starts, starts)
def test_a_state_is_all_of_both_only_if_the_known_one_adds_nothing(
    known: Start, received: Start, other: Start
) -> None:
    none: frozenset[Version] = frozenset()
    before = State(Rows(frozenset({known}), none, frozenset()), CODEC)
    others = frozenset({received, other._replace(name="b")})
    state = State(Rows(others, none, frozenset()), CODEC)
    news = state.news_for(before)
    together = {**before.starts(), **news.starts}
    assert together == {"a": last_start(known, received), "b": other._replace(name="b")}
    assert news.is_all == (set(together.values()) == others)
    assert news.received_starts == others - {known}


def test_rows_that_are_known_are_shared_and_not_checked_again() -> None:
    known = state_of("a", "b")
    read = read_state(state_of("a", "b", "c").plain(), known, Limits())
    assert read.rows == state_of("a", "b", "c").rows
    of_known = {id(start) for start in known.rows.starts}
    assert of_known < {id(start) for start in read.rows.starts}
