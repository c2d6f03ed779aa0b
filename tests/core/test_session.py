"""Sessions: what one side of a connection writes the other one reads, and no more."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import gc
import json
import random
import struct
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabble._core.codec import Codec, EncodeError
from rabble._core.envelope import Envelope
from rabble._core.frame import split_frame
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.queue import EnvelopeQueue
from rabble._core.session import PeerEvent, Session, SessionError
from rabble._core.texts import Interrupted
from rabble.registry import MessageRegistry, message
from tests.reference import codec as reference_codec
from tests.reference import session as reference
from tests.reference.session import frame
from tests.support import SANITIZED

FOLDER = Path(__file__).parent
VECTORS = json.loads((FOLDER / "vectors" / "frames.json").read_text())
CORPUS = sorted((FOLDER / "corpus" / "session").glob("*.hex"))

REGISTRY = MessageRegistry()
#: Writes in these tests.
A = NodeId("a", "h:1")
#: Reads.
B = NodeId("b", "h:2")
#: Takes no part.
C = NodeId("c", "h:3")
OPEN = frozenset({"caller"})
SENDER = Pid("m", A)
RECEIVER = Pid("n", B)

PROTOCOL, SPOOF, DECODE, DECODE_LIMIT, FRAME_TOO_LARGE = 16, 17, 14, 15, 13


@message(name="Pair", registry=REGISTRY)
class Pair:
    left: object
    right: object


@message(name="Positive", registry=REGISTRY)
class Positive:
    n: int

    def __post_init__(self) -> None:
        if self.n <= 0:
            raise ValueError(f"{self.n} is not positive")


@message(name="Colour", registry=REGISTRY)
class Colour(enum.Enum):
    RED = 1
    GREEN = "green"


def session(own=A, peer=B, registry=REGISTRY, **more) -> Session:
    bounds = {k: more.pop(k) for k in ("depth_max", "elements_max") if k in more}
    executor = more.pop("executor", Pid("executor", own, "rabble"))
    codec = Codec(registry, **bounds)
    return Session(own, peer, 7, executor, codec=codec, open_names=OPEN, **more)


def reader(**more) -> Session:
    return session(B, A, **more)


def as_tuple(envelope: Envelope):
    """The same as a tuple of the reference."""
    event = envelope.msg
    if type(event) is not PeerEvent:
        return ("envelope", envelope)
    assert envelope.to == Pid("executor", event.session.own, "rabble")
    to, about, cid = event.to, event.about, event.correlation_id
    return {
        4: ("monitor", about, to),
        5: ("demonitor", about, to),
        6: ("down", to, about, event.why, event.life, event.detail),
        7: ("undelivered", to, cid, event.why),
        8: ("lost", event.count),
        101: ("undecodable", to, about, cid),
        102: ("refused", to, about, cid),
    }[event.kind]


def read(to: Session, data: bytes):
    """What `data` says, and the code that ends the connection, or None."""
    queue = EnvelopeQueue()
    code = None
    try:
        to.decode_into(data, queue)
    except SessionError as error:
        code = error.code
    return [as_tuple(queue.take()) for _ in range(len(queue))], code


def read_by_reference(to: reference.FrameDecoder, data: bytes):
    """The same of the reference."""
    code = None
    del to.events[:]
    try:
        to.read(data)
    except reference.Wrong as wrong:
        code = wrong.code
    return list(to.events), code


def reference_reader(**more) -> reference.FrameDecoder:
    return reference.FrameDecoder(B, A, REGISTRY, OPEN, **more)


def write(to: Session, what) -> None:
    if what[0] == "envelope":
        to.write(*what[1:])
    else:
        getattr(to, what[0])(*what[1:])


def expect_same(data: bytes) -> None:
    """Compiled and reference decoder read the same in these frames, and end for the same reason.

    But for two things that the reference does not tell from malformed bytes: a bound of the
    codec, and a class that is not registered, behind which the compiled one goes on.
    """
    received, code = read(reader(), data)
    expected, expected_code = read_by_reference(reference_reader(), data)
    limit = DECODE if code == DECODE_LIMIT else code
    expected_limit = DECODE if expected_code == DECODE_LIMIT else expected_code
    for place, what in enumerate(received):
        if what[0] == "undecodable":
            received = received[:place]
            limit = DECODE
            break
    assert repr((received, limit)) == repr((expected, expected_limit)), data.hex()


# The vectors, which were made by hand.


def vector_pid(text):
    return None if text is None else Pid.parse(text)


def vector_tuple(received):
    kind, *rest = received
    if kind == "envelope":
        to, msg, sender, cid = rest
        if type(msg) is dict:
            msg = Pair(*msg["Pair"])
        return (kind, Envelope(vector_pid(to), msg, vector_pid(sender), vector_cid(cid)))
    if kind in ("refused", "undecodable"):
        return (kind, vector_pid(rest[0]), vector_pid(rest[1]), vector_cid(rest[2]))
    if kind == "undelivered":
        return (kind, vector_pid(rest[0]), vector_cid(rest[1]), rest[2])
    return (kind, *(vector_pid(r) if type(r) is str and "@" in r else r for r in rest))


def vector_cid(parts):
    return None if parts is None else CorrelationId(vector_pid(parts[0]), *parts[1:])


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["comment"])
def test_vectors(vector):
    names = [] if vector.get("bare") else VECTORS["names"]
    data = b"".join(bytes.fromhex(text) for text in [*names, *vector["hex"]])
    expected = [vector_tuple(received) for received in vector["heard"]]
    assert read(reader(), data) == (expected, vector.get("code"))
    expect_same(data)


def test_vectors_have_every_kind_and_code():
    frames = [bytes.fromhex(text) for v in VECTORS["vectors"] for text in v["hex"]]
    assert {data[4] for data in frames if len(data) > 4} >= set(reference.SHAPES)
    codes = {vector.get("code") for vector in VECTORS["vectors"]}
    assert codes == {None, FRAME_TOO_LARGE, DECODE, DECODE_LIMIT, PROTOCOL, SPOOF}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_corpus(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    data = bytes.fromhex("".join(lines))
    assert read(reader(), data) == read(reader(), data)
    expect_same(data)


# Both directions against the reference, with anything that may be said.

names = st.sampled_from(["p", "q", "r", "caller", "ü", "x" * 255]) | st.text("abcé-", min_size=1)
groups = st.none() | st.sampled_from(["g", "rabble"])
numbers = st.none() | st.integers(0, 2**63 - 1) | st.sampled_from([0, 2**63 - 1])


def pids_of(node):
    return st.builds(Pid, names, st.just(node), groups)


senders, receivers = pids_of(A), pids_of(B)
cids = st.none() | st.builds(CorrelationId, senders | receivers | pids_of(C), numbers, numbers)
#: Who may have asked what node A passes on.
askers = (receivers | pids_of(C)).filter(lambda pid: pid.group != "rabble") | st.sampled_from(
    [Pid("calls", node, "rabble") for node in (B, C)]
)


def forwarded(to, msg, asker, connection, request, forwarder):
    return (
        "envelope",
        Envelope(to, msg, asker, CorrelationId(asker, connection, request)),
        forwarder,
    )


contents = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.text(),
    st.lists(st.text(max_size=5) | st.integers(0, 300), max_size=5),
    st.sampled_from([["add", 7], Pair(1, [2]), Colour.GREEN, SENDER, Positive(3)]),
    st.builds(bytes, st.integers(0, 200)),
    st.integers(0, 200).map(lambda n: bytes(range(n))),
)
whats = st.one_of(
    st.tuples(
        st.just("envelope"), st.builds(Envelope, receivers, contents, st.none() | senders, cids)
    ),
    st.tuples(st.sampled_from(["monitor", "demonitor"]), senders, receivers),
    st.builds(forwarded, receivers, contents, askers, numbers, numbers, senders),
    st.tuples(
        st.just("down"),
        receivers,
        senders,
        st.integers(1, 5),
        st.integers(0, 2**64 - 1),
        st.sampled_from(["", "ö!"]),
    ),
    st.tuples(st.just("undelivered"), receivers, cids, st.integers(1, 9)),
    st.tuples(st.just("lost"), st.integers(1, 2**32 - 1)),
)


def expected_of(what):
    """What is read when `what` is written."""
    if what[0] != "envelope":
        return what
    e = what[1]
    if e.to.group == "rabble" and e.to.name not in OPEN:
        return ("refused", e.to, e.sender, e.correlation_id)
    return what[:2]


def pair_of(what):
    """Whom of the peer it concerns, and whom of this node: what the order is kept for."""
    if what[0] == "envelope":
        return what[1].sender, what[1].to
    if what[0] == "refused":
        return what[2], what[1]
    if what[0] == "down":
        return what[2], what[1]
    return what[0]


def by_pair(sequence):
    found = {}
    for what in sequence:
        found.setdefault(pair_of(what), []).append(what)
    return found


class Lanes:
    """Empties the lanes of a link as the poll loop does: what it took of the bulk lane it sends at
    some time, frame by frame, and what is in the data lane then goes first.
    """

    def __init__(self, writer, deliver):
        self.writer = writer
        self.deliver = deliver
        self.bulk = []

    def take(self, step):
        """Do one of STEPS."""
        if step == "d":
            self.deliver(self.writer.take_data())
        elif step == "b":
            self.take_bulk()
        elif step in "Bh" and self.bulk:
            some = 1 if step == "h" else len(self.bulk)
            self.deliver(self.writer.take_data() + b"".join(self.bulk[:some]))
            del self.bulk[:some]
            self.take_bulk()

    def take_bulk(self):
        self.bulk += frames_in(self.writer.take_bulk(unsent=sum(map(len, self.bulk))))
        self.writer.take_bulk(unsent=sum(map(len, self.bulk)))

    def take_all(self):
        data = self.writer.take_data()
        self.deliver(data + b"".join(self.bulk) + self.writer.take_bulk())


#: Nothing; take the data lane; the bulk lane; send all of that; the first frame of it.
STEPS = "...dbBh"


@settings(max_examples=200)
@given(
    st.lists(st.tuples(whats, st.sampled_from(STEPS)), max_size=30),
    st.sampled_from([16, 17, 60, 65536]),
    st.sampled_from([2, 4, 8192]),
)
def test_what_is_written_is_read(steps, fragment_bytes, places):
    """Lanes are emptied at any time, in any order; the bulk lane may be underway for long."""
    writer = session(fragment_bytes=fragment_bytes, pid_cache_slots=places)
    quick, slow = reader(), reference_reader()
    received = []

    def deliver(data):
        found = read(quick, data)
        assert found == read_by_reference(slow, data)
        assert found[1] is None
        received.extend(found[0])

    lanes = Lanes(writer, deliver)

    for what, step in steps:
        write(writer, what)
        lanes.take(step)
    lanes.take_all()
    assert by_pair(received) == by_pair(expected_of(what) for what, _ in steps)


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


def frames_in(data):
    """The frames as bytes each."""
    frames = []
    while data:
        length = split_frame(data)[3]
        frames.append(data[:length])
        data = data[length:]
    return frames


@settings(max_examples=200)
@given(
    st.lists(whats, max_size=30),
    st.sampled_from([16, 17, 65536]),
    st.sampled_from([(0, 1, 2), (8191, 0, 77, 4000), tuple(range(8192))]),
)
def test_what_the_reference_writes_is_read(sent, fragment_bytes, places):
    writer = reference.FrameEncoder(A, REGISTRY, fragment_bytes, places)
    for what in sent:
        writer.write(what)
    received, code = read(reader(), writer.take_data() + writer.take_bulk())
    assert code is None
    assert by_pair(received) == by_pair(map(expected_of, sent))


# Names.


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


@pytest.mark.parametrize("count", [200_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_ever_new_names_take_the_memory_of_8192(count):
    to = reader()
    process = psutil.Process()

    def flood(numbers):
        for start in numbers:
            data = b"".join(
                frame(1, 0, struct.pack(">H", n % 8192) + f"name-{n}::a@h:1".encode())
                for n in range(start, start + 10_000)
            )
            to.decode(data)

    flood(range(0, 20_000, 10_000))
    blocks, memory = sys.getallocatedblocks(), process.memory_info().rss
    flood(range(20_000, 20_000 + count, 10_000))
    assert sys.getallocatedblocks() - blocks < 5_000
    assert SANITIZED or process.memory_info().rss - memory < 5 << 20


def test_pids_are_let_go_of_with_the_link():
    before = sys.getrefcount(SENDER), sys.getrefcount(RECEIVER)
    writer = session()
    writer.encode(Envelope(RECEIVER, 1, SENDER))
    assert sys.getrefcount(SENDER) > before[0]
    del writer
    gc.collect()
    assert (sys.getrefcount(SENDER), sys.getrefcount(RECEIVER)) == before


# What cannot be said.


@pytest.mark.parametrize(
    "msg", [2**64, {1}, object(), [b"x" * 3000, object()], {1: 2}, "\ud800"], ids=repr
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


@pytest.mark.parametrize("fragment_bytes", [16, 1000, 65536])
@pytest.mark.parametrize("size", [14, 65_531, 65_536, 70_000])
def test_large_bytes_are_sent_from_where_they_are_and_read_as_they_were(size, fragment_bytes):
    writer, to = session(fragment_bytes=fragment_bytes, pid_cache_slots=8192), reader()
    cid = CorrelationId(Pid("asker", C), 1, 2)
    payload = random.Random(size).randbytes(size)
    owners = sys.getrefcount(payload)
    for way in ("taken", "dropped"):
        sent = [Envelope(RECEIVER, payload, SENDER, cid), Envelope(RECEIVER, payload)]
        writer.write_all(sent)
        if way == "taken":
            received = to.decode(writer.take_data() + writer.take_bulk())
            assert received == sent
            assert [type(e.msg) for e in received] == [bytes, bytes]
            del received
        else:
            del writer
        del sent
        assert sys.getrefcount(payload) == owners


def test_bytes_longer_than_what_is_set_aside_for_them_grow():
    payload = random.Random(1).randbytes((9 << 20) + 5)
    assert reader().decode(session().encode(Envelope(RECEIVER, payload)))[0].msg == payload


@pytest.mark.parametrize("claimed", [0, 99, 101, 1 << 31])
@pytest.mark.parametrize("first", [10, 13, 14, 15, 60])
def test_bytes_in_fragments_that_are_not_as_long_as_they_say_are_refused(claimed, first):
    to = f"p@{B}".encode()
    head = bytes([16]) + struct.pack(">H", len(to)) + to
    whole = head + b"\xc6" + struct.pack(">I", claimed) + bytes(100)
    data = frame(3, 1, struct.pack(">I", len(whole)) + whole[:first])
    data += frame(3, 2, whole[first:])
    assert read(reader(), data)[1] is not None
    expect_same(data)
    expect_same(data.replace(struct.pack(">I", claimed), struct.pack(">I", 100), 1))


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
        ("monitor", RECEIVER, RECEIVER),
        ("demonitor", SENDER, SENDER),
        ("down", SENDER, SENDER, 1, 0),
        ("down", RECEIVER, RECEIVER, 1, 0),
        ("undelivered", SENDER, None, 1),
    ):
        with pytest.raises(EncodeError, match="does not live on"):
            write(writer, what)
    assert reader().decode(writer.take_data()) == []


def asked_by(asker, msg=1, request=None):
    """A request of `asker` to the receiver, as who is asked first may pass it on."""
    return Envelope(RECEIVER, msg, asker, CorrelationId(asker, None, request))


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


def test_a_text_is_cut_to_what_a_down_may_have():
    writer, to = session(), reader()
    writer.down(RECEIVER, SENDER, 2, 3, "e\u0301" * 100_000)
    writer.down(RECEIVER, SENDER, 2, 3, "\ud800 \U0001f600" + "\U0001f600" * 249)
    one, two = (as_tuple(e) for e in to.decode(writer.take_data()))
    assert one[5] == "\xe9" * 500
    assert two[5] == "? " + "\U0001f600" * 249


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
                lambda: writer.monitor(SENDER, RECEIVER),
                lambda: writer.down(RECEIVER, SENDER, 1, 0),
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


# No memory.


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
        ("down", Pid("o", B), SENDER, 1, 7, "why"),
        ("monitor", SENDER, RECEIVER),
        ("undelivered", RECEIVER, cid, 1),
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


@pytest.mark.parametrize("lasting", [1, 40])
def test_without_memory_what_is_read_is_whole_or_the_end(starvation, lasting):
    starve, feed = starvation
    writer = session(fragment_bytes=100)
    sent = [
        Envelope(RECEIVER, [1, "x" * 30, Pair(1, Colour.RED), {"k": [2]}], SENDER),
        Envelope(Pid("o", B), b"x" * 1_000, SENDER, CorrelationId(SENDER, 1, 2)),
        Envelope(Pid("o", B), [Positive(3), SENDER, A, CorrelationId(SENDER)], SENDER),
        Envelope(Pid("o", B), "y" * 300, SENDER),
    ]
    writer.write_all(sent)
    writer.down(RECEIVER, SENDER, 1, 2, "why")
    data = writer.take_data() + writer.take_bulk()
    whole = read(reader(), data)
    ended = 0
    for first in range(1, 150):
        to, queue = reader(), EnvelopeQueue()
        ends = False
        try:
            starve(first, first + lasting)
            try:
                to.decode_into(data, queue)
            finally:
                feed()
        except (SessionError, MemoryError) as error:
            # The interpreter has no memory to pass on a SessionError either.
            ends = True
            assert type(error) is MemoryError or error.code == 19
        received = [as_tuple(queue.take()) for _ in range(len(queue))]
        sound = [what for what in received if what[0] != "undecodable"]
        assert ends or len(received) == len(whole[0]), first
        assert [what for what in whole[0] if what in sound] == sound
        if ends:
            ended += 1
            assert read(to, data) == ([], 19)
    assert ended


# Lanes.


def test_a_pair_follows_its_large_message_until_that_is_gone():
    writer = session(fragment_bytes=100, pid_cache_slots=8192)
    other = Pid("other", B)
    writer.write(Envelope(RECEIVER, b"x" * 1000, SENDER))
    assert [one[4] for one in frames_in(writer.take_data())] == [1, 1]
    writer.write(Envelope(RECEIVER, 1, SENDER))
    writer.down(RECEIVER, SENDER, 1, 0)
    writer.write(Envelope(other, 2, SENDER))
    writer.write(Envelope(RECEIVER, 3))
    writer.monitor(SENDER, RECEIVER)
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


# Hearing strangers.


def names_said(*texts: str) -> bytes:
    return b"".join(
        frame(1, 0, struct.pack(">H", place) + text.encode()) for place, text in enumerate(texts)
    )


PREAMBLE = names_said("n::b@h:2", "m::a@h:1")


def test_nothing_is_read_after_an_error():
    to = reader()
    good = PREAMBLE + frame(2, 0, b"\0\0\7")
    received, code = read(to, good + frame(2, 0, b"\0\0\xc1") + good)
    assert (len(received), code) == (1, DECODE)
    for data in (good, b""):
        assert read(to, data) == ([], DECODE)


def test_half_a_frame_is_no_whole_frame():
    assert read(reader(), PREAMBLE[:-1]) == ([], PROTOCOL)
    assert read(reader(), b"\0") == ([], PROTOCOL)


@pytest.mark.parametrize(
    ("row", "body", "code"),
    [
        (16, b"\xdd\xff\xff\xff\xff", DECODE_LIMIT),
        (16, b"\xdf\xff\xff\xff\xff", DECODE_LIMIT),
        (16, b"\xdb\xff\xff\xff\xff", DECODE_LIMIT),
        (16, b"\xc6\xff\xff\xff\xff", DECODE_LIMIT),
        (16, b"\xc9\xff\xff\xff\xff\1", DECODE_LIMIT),
        (18, b"\x91" * 100_000, DECODE_LIMIT),
        (19, b"\xdd\0\x0f\x42\x40" + b"\x80" * 1_000_000, DECODE_LIMIT),
        (20, b"\xc1", DECODE),
        (22, b"\7\7", DECODE),
        (23, b"\xd4\x07\0", DECODE),
        (23, b"\xc7\x0c\xff" + b"\xff" * 12, DECODE),
        (24, b"\x81\1\1", DECODE),
        (25, b"\x82\xa1a\1\xa1a\2", DECODE),
        (26, b"\xa1\xff", DECODE),
        (26, b"\xa2\xc0\x80", DECODE),
        (26, b"\xa3\xed\xa0\x80", DECODE),
    ],
)
def test_malformed_messages(row, body, code):
    to = reader()
    data = PREAMBLE + frame(2, 0, b"\0\0" + body)
    tracemalloc.start()
    try:
        assert read(to, data) == ([], code)
        # What is claimed is not allocated.
        assert tracemalloc.get_traced_memory()[1] < 100_000 + 8 * (len(data) if row > 16 else 0)
    finally:
        tracemalloc.stop()


# In a thread with little stack, through fragments too.
DEEP = """
import threading
from tests.core.test_session import PREAMBLE, frame, read, reader

def check():
    results.append(read(reader(), PREAMBLE + frame(2, 0, b"\\0\\0" + b"\\x91" * 100_000)))

results = []
threading.stack_size(256 * 1024)
thread = threading.Thread(target=check)
thread.start()
thread.join()
assert results == [([], 15)], results
print("survived")
"""


def test_depth_is_refused_on_a_small_stack():
    done = subprocess.run(
        [sys.executable, "-c", DEEP],
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "survived\n", "")


@pytest.mark.parametrize(
    ("msg", "detail"),
    [
        (reference_codec.extension(1, b"\xa9os.system\x91\xa2ls"), "no class is registered"),
        (reference_codec.extension(2, b"\xa2No\x01"), "no class is registered"),
        (reference_codec.extension(1, b"\xa4Pair\x91\1"), "Pair has 2 fields here, but 1 came"),
        (reference_codec.extension(1, b"\xa8Positive\x91\0"), "0 is not positive"),
        (reference_codec.extension(2, b"\xa6Colour\x07"), "Colour has no member"),
        (reference_codec.extension(1, b"\xa6Colour\x91\x07"), "Colour is an enum here"),
        (reference_codec.extension(2, b"\xa4Pair\x07"), "Pair is a message class here"),
    ],
)
def test_a_class_that_is_not_known_here_ends_that_envelope_only(msg, detail):
    cid = CorrelationId(SENDER, 1, 2)
    head = struct.pack(">HHHQQ", 0, 1, 1, 1, 2)
    whole = b"\x13\0\x08n::b@h:2\0\x08m::a@h:1\0\x08m::a@h:1" + b"\x91" + msg
    data = (
        PREAMBLE
        + frame(2, 15, head + msg)
        + frame(3, 3, struct.pack(">I", len(whole)) + whole)
        + frame(2, 0, b"\0\0\7")
        + frame(3, 3, struct.pack(">I", len(whole)) + whole)
        + frame(2, 0, b"\0\0\x08")
    )
    to = reader()
    queue = EnvelopeQueue()
    to.decode_into(data, queue)
    envelopes = [queue.take() for _ in range(len(queue))]
    assert [as_tuple(e) for e in envelopes] == [
        ("undecodable", RECEIVER, SENDER, cid),
        ("undecodable", RECEIVER, SENDER, CorrelationId(SENDER)),
        ("envelope", Envelope(RECEIVER, 7)),
        ("undecodable", RECEIVER, SENDER, CorrelationId(SENDER)),
        ("envelope", Envelope(RECEIVER, 8)),
    ]
    assert detail in envelopes[0].msg.detail
    assert "os" not in vars(sys.modules[__name__])


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_ever_new_classes_and_keys_leave_nothing_behind(count):
    registry = MessageRegistry()
    to = reader(registry=registry)
    queue = EnvelopeQueue()

    def flood(numbers):
        for start in numbers:
            data = b""
            for n in range(start, start + 1_000):
                name = reference_codec.encode(registry, f"Type-{n}")
                keys = reference_codec.encode(registry, {f"key-{n}": f"text-{n}"})
                for msg in (
                    reference_codec.extension(1, name + b"\x90"),
                    reference_codec.extension(2, name + b"\x01"),
                    keys,
                ):
                    data += frame(2, 0, b"\0\0" + msg)
            to.decode_into(data, queue)
            kinds = [as_tuple(queue.take())[0] for _ in range(len(queue))]
            assert kinds == ["undecodable", "undecodable", "envelope"] * 1_000

    to.decode(names_said(str(RECEIVER)))
    # The caches are full after these.
    flood(range(0, 5_000, 1_000))
    gc.collect()
    blocks = sys.getallocatedblocks()
    flood(range(5_000, 5_000 + count, 1_000))
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 2_000
    assert registry.plans_by_name == registry.plans_by_class == {}


def test_a_message_class_cannot_read_on_its_own_session_nor_end_more_than_its_message():
    registry = MessageRegistry()
    to = session(B, A, registry=registry)

    @message(name="Meddler", registry=registry)
    class Meddler:
        what: object

        def __post_init__(self):
            if self.what == "exit":
                raise SystemExit(3)
            if self.what == "mute":
                raise Mute
            if self.what == "long":
                raise ValueError(self, "x" * 10_000_000)
            if self.what == "over":
                raise Interrupted
            to.decode(b"")

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    def built(what):
        return frame(2, 0, b"\0\0" + reference_codec.extension(1, b"\xa7Meddler\x91\xa4" + what))

    sent = [built(what) for what in (b"hear", b"mute", b"exit", b"long")]
    received = to.decode(PREAMBLE + b"".join(sent))
    assert [as_tuple(each)[0] for each in received] == ["undecodable"] * 4
    details = [each.msg.detail for each in received]
    assert "made its own session read" in details[0]
    assert details[1].endswith("Mute: a Mute whose str raises RuntimeError")
    assert details[2].endswith("SystemExit: 3")
    assert all(len(detail) <= 1_000 for detail in details)
    # What ends the node's thread is nobody's failure.
    with pytest.raises(Interrupted):
        to.decode(built(b"over"))
    assert read(to, b"") == ([], 19)


# By index and in full.
@pytest.mark.parametrize(
    ("to", "sender"), [("x::c@h:3", None), ("m::a@h:1", None), ("n::b@h:2", "x::c@h:3")]
)
def test_nobody_speaks_for_others_and_nothing_is_relayed(to, sender):
    texts = [to] if sender is None else [to, sender]
    places = b"".join(struct.pack(">H", place) for place in range(len(texts)))
    data = names_said(*texts) + frame(2, len(texts) - 1, places + b"\7")
    assert read(reader(), data) == ([], SPOOF)
    full = b"".join(struct.pack(">H", len(text)) + text.encode() for text in texts)
    assert read(reader(), frame(2, 16 | len(texts) - 1, full + b"\7")) == ([], SPOOF)


def test_the_same_name_at_another_address_is_another_node():
    for text in ("n::b@h:3", "n::bb@h:2"):
        assert read(reader(), names_said(text) + frame(2, 0, b"\0\0\7")) == ([], SPOOF)


def test_reserved_pids_are_not_reached():
    writer, to = session(), reader()
    executor, caller = Pid("executor", B, "rabble"), Pid("caller", B, "rabble")
    for pid in (executor, Pid("cluster", B, "rabble"), caller, Pid("executor", B)):
        writer.write(Envelope(pid, "stop", SENDER))
    data = writer.take_data()
    in_full = b"\0\x18" + str(executor).encode() + b"\xa4stop"
    received, code = read(to, data + frame(2, 16, struct.pack(">H", 23) + in_full[2:]))
    assert code is None
    assert [what[0] for what in received] == [
        "refused",
        "refused",
        "envelope",
        "envelope",
        "refused",
    ]
    assert received[0] == ("refused", executor, SENDER, None)
    # Whatever its message is: it is not looked at.
    assert read(reader(), names_said(str(executor)) + frame(2, 0, b"\0\0\xc1"))[1] is None


def test_memory_for_fragments_grows_with_what_came():
    to = reader()
    head = b"\x10\0\x08n::b@h:2"
    tracemalloc.start()
    try:
        to.decode(frame(3, 1, struct.pack(">I", 64 << 20) + head))
        assert tracemalloc.get_traced_memory()[0] < 10_000
        for _ in range(16):
            to.decode(frame(3, 0, bytes(65_536)))
        assert tracemalloc.get_traced_memory()[0] < 2 * 16 * 65_536 + 100_000
        with pytest.raises(SessionError):
            to.decode(frame(3, 2, b"x"))
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()


def test_bounds_of_a_session():
    for wrong in (
        {"fragment_bytes": 15},
        {"fragment_bytes": 1 << 20},
        {"message_bytes_max": 0},
        {"message_bytes_max": (64 << 20) + 1},
        {"pid_cache_slots": 3},
        {"pid_cache_slots": 1},
        {"pid_cache_slots": 16384},
        {"peer": A},
        {"executor": Pid("executor", B, "rabble")},
    ):
        with pytest.raises(ValueError, match="Session: "):
            session(**wrong)
    to = session()
    assert (to.own, to.peer, to.incarnation) == (A, B, 7)
    assert (to.fragment_bytes, to.message_bytes_max) == (65536, 64 << 20)
    assert to.frame_bytes_max == 1 << 20


def test_what_is_told_can_be_read():
    to = reader()
    (envelope,) = to.decode(PREAMBLE + frame(6, 0, b"\0\0\0\1\2" + struct.pack(">Q", 9) + b"oh"))
    assert repr(envelope.msg) == (
        f"<PeerEvent 6 from a@h:1: to={RECEIVER!r}, about={SENDER!r}, why=2, life=9, detail='oh'>"
    )
    assert envelope.msg.session is to
    error = SessionError(16, "no")
    assert (error.code, error.text, str(error)) == (16, "no", "code 16: no")
    with pytest.raises(TypeError):
        weakref.ref(envelope.msg)


# Whatever bytes come, a SessionError at worst, and the reference agrees.


def valid_stream(rng: random.Random) -> list[bytes]:
    writer = session(
        fragment_bytes=rng.choice([16, 64, 65536]), pid_cache_slots=rng.choice([2, 8192])
    )
    pids = [Pid(rng.choice("pqrs"), node, rng.choice([None, "g"])) for node in (A, A, B, B, C)]
    for _ in range(rng.randrange(1, 6)):
        sender, to = rng.choice(pids[:2]), rng.choice(pids[2:4])
        cid = rng.choice([None, CorrelationId(rng.choice(pids), 1, rng.getrandbits(63))])
        msg = rng.choice([None, 7, "text", [1, "x", {"k": 2.5}], Pair(1, sender), b"x" * 40])
        rng.choice(
            [
                lambda: writer.write(Envelope(to, msg, sender, cid)),  # noqa: B023
                lambda: writer.write(Envelope(to, msg, rng.choice([None, sender]), cid)),  # noqa: B023
                lambda: writer.monitor(sender, to),  # noqa: B023
                lambda: writer.down(to, sender, rng.randrange(1, 6), 7, "why"),  # noqa: B023
                lambda: writer.write(Envelope(to, msg, to, CorrelationId(to)), sender),  # noqa: B023
                lambda: writer.undelivered(to, cid, rng.randrange(1, 10)),  # noqa: B023
            ]
        )()
    return frames_in(writer.take_data() + writer.take_bulk())


def mutate(rng: random.Random, frames: list[bytes]) -> bytes:
    frames = list(frames)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place = rng.randrange(len(frames))
        one = bytearray(frames[place])
        kind = rng.randrange(7)
        if kind == 0:
            one[rng.randrange(len(one))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            one[rng.randrange(len(one))] = rng.choice([0, 1, 0x7F, 0x80, 0xC1, 0xC7, 0xDF, 0xFF])
        elif kind == 2:
            # A body that is longer or shorter, in a frame that says so.
            body = one[6:]
            at = rng.randrange(len(body) + 1)
            body[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
            one = bytearray(frame(one[4], one[5], bytes(body)))
        elif kind == 3:
            one[5] = rng.randrange(64)
        elif kind == 4:
            one[4] = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 16, 19, 20])
        elif kind == 5:
            frames.insert(rng.randrange(len(frames) + 1), bytes(one))
            continue
        else:
            del frames[place]
            if not frames:
                return b""
            continue
        frames[place] = bytes(one)
    return b"".join(frames)


def fuzz(seed: int, inputs: int) -> None:
    rng = random.Random(seed)
    process = psutil.Process()
    memory = blocks = 0
    warm = min(inputs // 2, 10_000)
    frames: list[bytes] = []
    for n in range(inputs):
        if n % 20 == 0:
            frames = valid_stream(rng)
        if n == warm:
            gc.collect()
            memory, blocks = process.memory_info().rss, sys.getallocatedblocks()
        expect_same(mutate(rng, frames))
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 5_000
    assert SANITIZED or process.memory_info().rss - memory < 5 << 20


def test_mutations():
    fuzz(1, 20_000)


# In parts, each done before faulthandler_timeout is over: its dump of a running thread, which it
# makes without the GIL, may crash the process.
@pytest.mark.soak
@pytest.mark.parametrize("part", range(10))
def test_a_million_mutations(part):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    fuzz(seed, 100_000)


@given(st.binary(max_size=200))
def test_any_bytes(data):
    with contextlib.suppress(SessionError):
        reader().decode(data)
    expect_same(data)
