"""Bulk pairs: a sender and a receiver keep their order, whichever lanes their messages go by."""

from __future__ import annotations

import gc
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from rabble._core.envelope import Envelope
from rabble._core.ids import Pid
from tests.core.sessions import (
    RECEIVER,
    SENDER,
    STEPS,
    B,
    C,
    Lanes,
    asked_by,
    frames_in,
    read,
    reader,
    session,
)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("pqr"),
            st.sampled_from([1, 300]),
            st.booleans(),
            st.sampled_from(STEPS),
        ),
        max_size=40,
    ),
)
def test_a_hole_is_told_between_what_is_around_it(steps):
    """G5: whichever lanes what was refused, and what is around it, go by, and however far they are.

    As the routes do: once one is refused all are, until the next that is said, before which the
    hole is told.
    """
    writer, to = session(fragment_bytes=100), reader()
    received = []
    refused = counted = 0

    def deliver(data):
        found, code = read(to, data)
        assert code is None
        received.extend(found)

    lanes = Lanes(writer, deliver)

    for number, (name, size, is_refused, step) in enumerate(steps):
        envelope = Envelope(Pid(name, B), [number, "x" * size], SENDER)
        if is_refused:
            writer.refuse(envelope)
            refused += 1
        else:
            if refused:
                writer.lost(refused)
            counted += refused
            refused = 0
            writer.write(envelope)
        lanes.take(step)
    lanes.take_all()
    assert sum(what[1] for what in received if what[0] == "lost") == counted
    for name in "pqr":
        since, missing, lost = -1, 0, 0
        for what in received:
            if what[0] == "lost":
                lost += what[1]
            elif what[1].to.name == name:
                number = what[1].msg[0]
                missing = sum(steps[n][0] == name for n in range(since + 1, number))
                assert lost >= missing, (name, since, number)
                since, lost = number, 0


def test_what_is_passed_on_keeps_the_order_of_its_pair():
    writer, to = session(fragment_bytes=100), reader()
    asker = Pid("x", C)
    sent = [asked_by(asker, b"x" * 1000), asked_by(asker, 2), Envelope(RECEIVER, 3, SENDER)]
    for envelope in sent:
        writer.write(envelope)
    data, bulk = writer.take_data(), writer.take_bulk()
    # Only what another pair says passes the large one.
    assert to.decode(data) == sent[2:]
    assert [one[4] for one in frames_in(bulk)][-1] == 2
    assert to.decode(bulk) == sent[:2]


def test_a_pair_follows_its_large_message_until_that_is_gone():
    writer = session(fragment_bytes=100, pid_cache_slots=8192)
    other = Pid("other", B)
    writer.write(Envelope(RECEIVER, b"x" * 1000, SENDER))
    assert [one[4] for one in frames_in(writer.take_data())] == [1, 1]
    writer.write(Envelope(RECEIVER, 1, SENDER))
    writer.down(RECEIVER, SENDER, 5, 1, 0)
    writer.write(Envelope(other, 2, SENDER))
    writer.write(Envelope(RECEIVER, 3))
    writer.monitor(SENDER, RECEIVER, 1)
    bulk = frames_in(writer.take_bulk(unsent=1))
    kinds = [(one[4], one[5]) for one in bulk]
    assert kinds == [(3, 1)] + [(3, 0)] * 9 + [(3, 2), (2, 17), (6, 16)]
    assert all(len(one) <= 6 + 100 + 4 for one in bulk if one[4] == 3)
    assert [one[4] for one in frames_in(writer.take_data())] == [1, 2, 2, 4]
    # The poll loop still has one byte of it.
    writer.write(Envelope(RECEIVER, 4, SENDER))
    assert not writer.take_data() and writer.take_bulk(unsent=0)
    writer.write(Envelope(RECEIVER, 5, SENDER))
    assert writer.take_data() and not writer.take_bulk()


def test_a_pair_may_overtake_what_others_have_in_the_bulk_lane():
    writer = session(fragment_bytes=100, pid_cache_slots=8192)
    writer.write(Envelope(RECEIVER, b"x" * 1000, SENDER))
    writer.take_data()
    first = len(writer.take_bulk())
    writer.take_bulk(unsent=first)
    writer.write(Envelope(Pid("other", B), b"y" * 1000, SENDER))
    second = len(writer.take_bulk())
    writer.take_bulk(unsent=second)
    # All of the first is sent, of the second nothing.
    writer.write(Envelope(RECEIVER, 1, SENDER))
    assert [one[4] for one in frames_in(writer.take_data())] == [1, 2]


def test_a_bulk_lane_that_never_empties_forgets_pairs():
    writer = session(fragment_bytes=16, pid_cache_slots=2)
    blocks = 0
    for n in range(6_000):
        if n == 1_000:
            gc.collect()
            blocks = sys.getallocatedblocks()
        writer.write(Envelope(Pid(f"p{n}", B), b"x" * 17, SENDER))
        writer.take_data()
        writer.take_bulk(unsent=1)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 4_000
