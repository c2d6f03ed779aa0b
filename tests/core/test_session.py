"""Sessions: what one side of a connection writes the other one reads, and no more."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import sys
import tracemalloc

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabble._core.envelope import Envelope
from rabble._core.errors import SessionError
from rabble._core.ids import CorrelationId, Pid
from tests.core.sessions import (
    DECODE,
    DECODE_LIMIT,
    FOLDER,
    FRAME_TOO_LARGE,
    OPEN,
    PROTOCOL,
    RECEIVER,
    REGISTRY,
    SENDER,
    SPOOF,
    STEPS,
    A,
    B,
    C,
    Colour,
    Lanes,
    Pair,
    Positive,
    by_pair,
    expect_same,
    frames_in,
    mutate,
    read,
    read_by_reference,
    reader,
    reference_reader,
    session,
    valid_stream,
    write,
)
from tests.reference import session as reference
from tests.support import SANITIZED

VECTORS = json.loads((FOLDER / "vectors" / "frames.json").read_text())
CORPUS = sorted((FOLDER / "corpus" / "session").glob("*.hex"))


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
        to, cid, why, crash, about, detail = rest
        return (kind, vector_pid(to), vector_cid(cid), why, crash, vector_pid(about), detail)
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
references = st.integers(0, 2**64 - 1)
whats = st.one_of(
    st.tuples(
        st.just("envelope"), st.builds(Envelope, receivers, contents, st.none() | senders, cids)
    ),
    st.tuples(st.sampled_from(["monitor", "demonitor"]), senders, receivers, references),
    st.builds(forwarded, receivers, contents, askers, numbers, numbers, senders),
    st.tuples(st.sampled_from(["link", "unlink"]), senders, receivers, references),
    st.tuples(
        st.sampled_from(["down", "exit"]),
        receivers,
        senders,
        references,
        st.integers(1, 6),
        st.integers(0, 2**64 - 1),
        st.sampled_from(["", "ö!"]),
    ),
    st.tuples(
        st.just("undelivered"),
        receivers,
        cids,
        st.sampled_from(sorted(reference.WHYS)),
        st.integers(0, 2**64 - 1),
        st.none() | senders,
        st.sampled_from(["", "ö!", "x" * 1_000]),
    ),
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


def test_pids_are_let_go_of_with_the_link():
    before = sys.getrefcount(SENDER), sys.getrefcount(RECEIVER)
    writer = session()
    writer.encode(Envelope(RECEIVER, 1, SENDER))
    assert sys.getrefcount(SENDER) > before[0]
    del writer
    gc.collect()
    assert (sys.getrefcount(SENDER), sys.getrefcount(RECEIVER)) == before


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


def test_the_tables_of_pids_take_no_memory_before_a_pid_crosses():
    tracemalloc.start()
    try:
        writers, readers = [], []
        for _ in range(10):
            writers.append(session())
            readers.append(reader())
        assert tracemalloc.get_traced_memory()[0] < 20 * (16 << 10)
        writers[0].write(Envelope(RECEIVER, 1, SENDER))
        data = writers[0].take_data()
        assert read(readers[0], data)[1] is None
        # What one knows is no other one's.
        assert read(readers[1], frames_in(data)[-1])[1] == PROTOCOL
        writers[1].write(Envelope(RECEIVER, 1, SENDER))
        assert writers[1].take_data() == data
    finally:
        tracemalloc.stop()


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
