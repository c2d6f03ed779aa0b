"""The frame encoder: what is written is read, and what the peer would refuse is not written."""

from __future__ import annotations

import contextlib
import dataclasses
import tracemalloc

import pytest

from rabble._core.envelope import Envelope
from rabble._core.errors import EncodeError
from rabble._core.ids import CorrelationId, Pid
from rabble.registry import MessageRegistry
from tests.core.sessions import (
    DECODE_LIMIT,
    RECEIVER,
    SENDER,
    A,
    B,
    C,
    Colour,
    Pair,
    as_tuple,
    asked_by,
    by_pair,
    frames_in,
    read,
    reader,
    session,
    write,
)


def test_a_name_is_said_once_and_travels_as_an_index():
    writer, to = session(), reader()
    first = writer.encode(Envelope(RECEIVER, ["add", 7], SENDER))
    again = writer.encode(Envelope(Pid("n", B), ["add", 7], Pid("m", A)))
    assert [data[4] for data in frames_in(first)] == [1, 1, 2]
    assert len(again) == 6 + 2 + 2 + len(b"\x92\xa3add\x07")
    assert to.decode(first + again) == [Envelope(RECEIVER, ["add", 7], SENDER)] * 2
    one, two = reader().decode(first + again)
    assert one.to is two.to and one.sender is two.sender
    # ... and nodes are not made anew for each pid.
    assert one.to.node is B and one.sender.node is A


def test_more_pids_than_places_take_turns():
    writer, to = session(), reader()
    pids = [Pid(f"p{n}", B) for n in range(20_000)]
    for _ in range(2):
        envelopes = [Envelope(pid, n, SENDER) for n, pid in enumerate(pids)]
        writer.write_all(envelopes)
        assert to.decode(writer.take_data()) == envelopes


def test_three_pids_that_fight_for_two_places_go_by_the_bulk_lane():
    writer, to = session(pid_cache_slots=2), reader()
    cid = CorrelationId(Pid("x", C), 1, 2)
    sent = [Envelope(RECEIVER, n, SENDER, cid) for n in range(3)]
    writer.write_all(sent)
    # What follows it is not to overtake it, though there are places for its pids.
    sent.append(Envelope(RECEIVER, 3, SENDER))
    writer.write(sent[-1])
    assert {one[4] for one in frames_in(writer.take_data())} == {1}
    data = writer.take_bulk()
    assert [(one[4], one[5]) for one in frames_in(data)] == [(2, 0x1F)] * 3 + [(2, 0x11)]
    assert to.decode(data) == sent


@pytest.mark.parametrize(
    "msg",
    [
        pytest.param({2**9_000}, id="a large number in a set"),
        pytest.param({object()}, id="an object in a set"),
        pytest.param(object(), id="an object"),
        pytest.param([b"x" * 3000, object()], id="an object behind 3,000 bytes"),
        pytest.param({object(): 2}, id="a dict with an object for a key"),
        pytest.param("\ud800", id="a lone surrogate"),
    ],
)
def test_what_cannot_be_encoded_leaves_nothing_behind(msg):
    writer, to = session(), reader()
    before, after = Envelope(RECEIVER, 1, SENDER), Envelope(RECEIVER, 2, Pid("k", A))
    writer.write(before)
    with pytest.raises(EncodeError):
        writer.write(Envelope(Pid("o", B), msg, Pid("k", A)))
    writer.write(after)
    data = writer.take_data()
    assert to.decode(data) == [before, after]
    assert [one[4] for one in frames_in(data)].count(2) == 2
    assert not writer.take_bulk()


def test_depth_and_elements_are_counted_for_each_message():
    writer = session(depth_max=3, elements_max=4)
    for _ in range(3):
        writer.write(Envelope(RECEIVER, [[[]], 1], SENDER))
        with pytest.raises(EncodeError, match="nested"):
            writer.write(Envelope(RECEIVER, [[[[]]]], SENDER))
        with pytest.raises(EncodeError, match="elements"):
            writer.write(Envelope(RECEIVER, [1, 2, 3, 4, 5], SENDER))
    assert len(reader().decode(writer.take_data())) == 3


def test_the_longest_message_and_one_longer():
    writer = session(message_bytes_max=1000, fragment_bytes=100)
    to = reader(message_bytes_max=1000)
    cid = CorrelationId(Pid("x" * 255, C, "y" * 255), 1, 1)
    longest = Envelope(Pid("z" * 255, B, "w" * 255), b"x" * 997, SENDER, cid)
    for _ in range(3):
        writer.write(longest)
        with pytest.raises(EncodeError, match="1000"):
            writer.write(Envelope(RECEIVER, b"x" * 998, SENDER))
    data = writer.take_data() + writer.take_bulk()
    assert to.decode(data) == [longest] * 3
    assert read(reader(message_bytes_max=999), data) == ([], DECODE_LIMIT)
    small = session(fragment_bytes=1000, message_bytes_max=100)
    with pytest.raises(EncodeError, match="100 "):
        small.write(Envelope(RECEIVER, b"x" * 99, SENDER))
    data = session().encode(Envelope(RECEIVER, b"x" * 97))
    assert read(reader(message_bytes_max=98), data)[1] == DECODE_LIMIT
    assert read(reader(message_bytes_max=99), data)[1] is None


def test_what_the_peer_would_call_spoofed_is_not_said():
    writer = session()
    for what in (
        ("envelope", Envelope(SENDER, 1)),
        ("envelope", Envelope(Pid("x", C), 1)),
        ("envelope", Envelope(RECEIVER, 1, RECEIVER)),
        ("envelope", Envelope(RECEIVER, 1, Pid("x", C))),
        # Nobody answers in another's name, and nobody asks in that of another's runtime.
        ("envelope", Envelope(RECEIVER, 1, Pid("x", C), CorrelationId(SENDER))),
        ("envelope", Envelope(RECEIVER, 1, Pid("x", C), CorrelationId(Pid("x", C, "g")))),
        ("envelope", asked_by(Pid("executor", C, "rabble"))),
        ("envelope", asked_by(Pid("spawner", B, "rabble"))),
        ("envelope", asked_by(Pid("x", C)), RECEIVER),
        ("monitor", RECEIVER, RECEIVER, 1),
        ("demonitor", SENDER, SENDER, 1),
        ("down", SENDER, SENDER, 5, 1, 0),
        ("down", RECEIVER, RECEIVER, 5, 1, 0),
        ("link", RECEIVER, RECEIVER, 1),
        ("link", SENDER, SENDER, 1),
        ("unlink", RECEIVER, SENDER, 1),
        ("exit", SENDER, SENDER, 5, 1, 0),
        ("exit", RECEIVER, RECEIVER, 5, 1, 0),
        ("undelivered", SENDER, None, 1),
    ):
        with pytest.raises(EncodeError, match="does not live on"):
            write(writer, what)
    assert reader().decode(writer.take_data()) == []


@pytest.mark.parametrize("places", [2, 8192])
@pytest.mark.parametrize("size", [0, 100, 200_000])
def test_a_request_is_passed_on_in_the_name_of_who_asked(places, size):
    """By the data lane, in full by the bulk lane, in fragments; for another node and for the one
    that it is passed on to.
    """
    writer, to = session(pid_cache_slots=places), reader()
    askers = [Pid("x", C), RECEIVER, Pid("y", B), Pid("calls", B, "rabble")]
    sent = [asked_by(asker, b"x" * size, n) for n, asker in enumerate(askers)]
    for envelope in sent:
        writer.write(envelope)
    writer.write(asked_by(askers[0], "by whom it was asked"), SENDER)
    sent.append(asked_by(askers[0], "by whom it was asked"))
    data = writer.take_data() + writer.take_bulk()
    received = to.decode(data)
    assert sorted(received, key=repr) == sorted(sent, key=repr)
    # The frames have who passed it on, which the peer can hold against whom it is connected to.
    assert b"rabble::executor::a@h:1" in data and b"m::a@h:1" in data


def test_a_text_is_cut_to_what_a_down_may_have():
    writer, to = session(), reader()
    writer.down(RECEIVER, SENDER, 5, 2, 3, "e\u0301" * 100_000)
    writer.down(RECEIVER, SENDER, 5, 2, 3, "\ud800 \U0001f600" + "\U0001f600" * 249)
    one, two = (as_tuple(e) for e in to.decode(writer.take_data()))
    assert one[6] == "\xe9" * 500
    assert two[6] == "? " + "\U0001f600" * 249


@pytest.mark.parametrize("msg", [b"x" * 2_000, ["x" * 1_000] * 2, "x" * 2_000])
@pytest.mark.parametrize("fragment_bytes", [100, 65_536])
def test_what_the_peer_does_not_take_is_not_sent_and_both_bounds_are_named(msg, fragment_bytes):
    writer = session(fragment_bytes=fragment_bytes, peer_message_bytes_max=1_999)
    with pytest.raises(EncodeError) as caught:
        writer.write(Envelope(RECEIVER, msg, SENDER))
    said = str(caught.value)
    assert "1999 that b@h:2 takes" in said and f"the {64 << 20} of a@h:1" in said
    writer.write(Envelope(RECEIVER, "y" * 1_996, SENDER))
    (envelope,) = reader().decode(writer.take_data() + writer.take_bulk())
    assert envelope.msg == "y" * 1_996
    # One that takes more than this node sends changes nothing.
    writer = session(message_bytes_max=1_000, peer_message_bytes_max=1 << 62)
    with pytest.raises(EncodeError, match="more than"):
        writer.write(Envelope(RECEIVER, msg, SENDER))


def test_encoding_that_speaks_itself_is_refused():
    registry = MessageRegistry()
    writer = session(registry=registry)

    @dataclasses.dataclass(frozen=True)
    class Computed:
        field: object = None

        def __getattribute__(self, name):
            if name != "field":
                return super().__getattribute__(name)
            for act in (
                lambda: writer.write(Envelope(RECEIVER, 1)),
                lambda: writer.monitor(SENDER, RECEIVER, 1),
                lambda: writer.down(RECEIVER, SENDER, 5, 1, 0),
                lambda: writer.undelivered(RECEIVER, None, 1),
                lambda: writer.lost(1),
                writer.take_data,
                writer.take_bulk,
            ):
                with pytest.raises(RuntimeError, match="its own session"):
                    act()
            return 5

    registry.register(Computed, "Computed")
    writer.write(Envelope(RECEIVER, Computed(), SENDER))
    (back,) = session(B, A, registry=registry).decode(writer.take_data())
    assert vars(back.msg) == {"field": 5}


def test_what_a_property_raises_leaves_nothing_in_a_lane():
    registry = MessageRegistry()

    @dataclasses.dataclass(frozen=True)
    class Raises:
        field: object = None

        def __getattribute__(self, name):
            raise SystemExit(name)

    registry.register(Raises, "Raises")
    writer, to = session(registry=registry, fragment_bytes=100), session(B, A, registry=registry)
    for before in ([], ["x" * 200]):
        with pytest.raises(SystemExit):
            writer.write(Envelope(RECEIVER, [*before, Raises()], SENDER))
    writer.write(Envelope(RECEIVER, 1, SENDER))
    assert to.decode(writer.take_data() + writer.take_bulk()) == [Envelope(RECEIVER, 1, SENDER)]


@pytest.mark.parametrize("lasting", [1, 40])
def test_without_memory_an_envelope_is_said_or_not_and_no_less(starvation, lasting):
    starve, feed = starvation
    cid = CorrelationId(Pid("x", C), 1, 2)
    asker = Pid("y", C)
    whats = [
        ("envelope", Envelope(RECEIVER, [1, "x" * 30, Pair(1, Colour.RED)], SENDER, cid)),
        ("envelope", Envelope(Pid("o", B), b"x" * 1_000, SENDER)),
        ("envelope", Envelope(Pid("o", B), {"k": "y" * 300}, SENDER)),
        ("envelope", Envelope(Pid("o", B), 3, asker, CorrelationId(asker))),
        ("down", Pid("o", B), SENDER, 5, 1, 7, "why"),
        ("exit", Pid("o", B), SENDER, 5, 1, 7, "why"),
        ("link", SENDER, Pid("o", B), 2),
        ("link", SENDER, RECEIVER, 2),
        ("monitor", SENDER, RECEIVER, 1),
        ("undelivered", RECEIVER, cid, 1, 3, SENDER, "why"),
        ("lost", 3),
    ]
    for places in (2, 8192):
        for first in range(1, 60):
            writer = session(fragment_bytes=100, pid_cache_slots=places)
            writer.refuse(Envelope(Pid("o", B), 1, SENDER))
            sent = []
            for what in whats:
                with contextlib.suppress(MemoryError):
                    starve(first, first + lasting)
                    try:
                        write(writer, what)
                    finally:
                        feed()
                    sent.append(what)
            # Whatever became of these, what is written next is read.
            sent.append(("envelope", Envelope(Pid("o", B), "last", SENDER)))
            write(writer, sent[-1])
            data = writer.take_data() + writer.take_bulk()
            received, code = read(reader(), data)
            assert code is None
            assert by_pair(w for w in received if w[0] != "lost") == by_pair(
                w[:2] if w[0] == "envelope" else w for w in sent if w[0] != "lost"
            ), (places, first)
            lost = sum(what[1] for what in received if what[0] == "lost")
            assert lost == sum(what[1] for what in sent if what[0] == "lost")


def test_a_large_message_leaves_no_large_buffer():
    writer = session()
    big = Envelope(RECEIVER, b"x" * (32 << 20), SENDER)
    tracemalloc.start()
    try:
        writer.write(big)
        data = writer.take_data()
        before = tracemalloc.get_traced_memory()[0]
        assert before < 80 << 20
        assert len(data) < 100
        with pytest.raises(EncodeError):
            writer.write(Envelope(RECEIVER, [big.msg, object()], SENDER))
        # What a lane keeps for the next large message, and some.
        assert tracemalloc.get_traced_memory()[0] - before < 10 << 20
    finally:
        tracemalloc.stop()
