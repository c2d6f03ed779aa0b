"""The frame decoder: a peer speaks for itself, and what is wrong ends what it must."""

from __future__ import annotations

import gc
import struct
import subprocess
import sys
import tracemalloc
import weakref

import psutil
import pytest

from rabble._core.envelope import Envelope
from rabble._core.errors import Interrupted, SessionError
from rabble._core.ids import CorrelationId, Pid
from rabble._core.queue import EnvelopeQueue
from rabble.registry import MessageRegistry, message
from tests.core.sessions import (
    CACHE_PID,
    DECODE,
    DECODE_LIMIT,
    DOWN,
    ENVELOPE,
    FOLDER,
    FRAGMENT,
    LIMIT,
    PREAMBLE,
    PROTOCOL,
    RECEIVER,
    SENDER,
    SPOOF,
    A,
    B,
    Colour,
    Pair,
    Positive,
    as_tuple,
    names_said,
    read,
    reader,
    session,
)
from tests.reference import codec as reference_codec
from tests.reference.session import frame
from tests.support import SANITIZED


@pytest.mark.parametrize("count", [200_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_ever_new_names_take_the_memory_of_8192(count):
    to = reader()
    process = psutil.Process()

    def flood(numbers):
        for start in numbers:
            data = b"".join(
                frame(CACHE_PID, 0, struct.pack(">H", n % 8192) + f"name-{n}::a@h:1".encode())
                for n in range(start, start + 10_000)
            )
            to.decode(data)

    flood(range(0, 20_000, 10_000))
    blocks, memory = sys.getallocatedblocks(), process.memory_info().rss
    flood(range(20_000, 20_000 + count, 10_000))
    assert sys.getallocatedblocks() - blocks < 5_000
    assert SANITIZED or process.memory_info().rss - memory < 5 << 20


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
    writer.down(RECEIVER, SENDER, 5, 1, 2, "why")
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
            assert type(error) is MemoryError or error.code == LIMIT
        received = [as_tuple(queue.take()) for _ in range(len(queue))]
        sound = [what for what in received if what[0] != "undecodable"]
        assert ends or len(received) == len(whole[0]), first
        assert [what for what in whole[0] if what in sound] == sound
        if ends:
            ended += 1
            assert read(to, data) == ([], LIMIT)
    assert ended


@pytest.mark.parametrize("message", [[Pair(1, Colour.RED)] * 30, [{}] * 30, [{1, 2}] * 30])
def test_a_message_that_takes_too_much_memory_here_ends_no_connection(message):
    """How much it takes depends on this node's classes, which may have more fields."""
    writer, to = session(), reader(decoded_bytes_max=3_000)
    writer.write_all([Envelope(RECEIVER, what, SENDER) for what in ("before", message, "after")])
    received, code = read(to, writer.take_data() + writer.take_bulk())
    assert code is None
    assert [what[0] for what in received] == ["envelope", "undecodable", "envelope"]


def test_nothing_is_read_after_an_error():
    to = reader()
    good = PREAMBLE + frame(ENVELOPE, 0, b"\0\0\7")
    received, code = read(to, good + frame(ENVELOPE, 0, b"\0\0\xc1") + good)
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
        (20, b"\xc1", DECODE),
        (22, b"\7\7", DECODE),
        (23, b"\xd4\x07\0", DECODE),
        (23, b"\xc7\x0c\xff" + b"\xff" * 12, DECODE),
        (26, b"\xa1\xff", DECODE),
        (26, b"\xa2\xc0\x80", DECODE),
        (26, b"\xa3\xed\xa0\x80", DECODE),
    ],
)
def test_malformed_messages(row, body, code):
    to = reader(decoded_bytes_max=16 << 20)
    data = PREAMBLE + frame(ENVELOPE, 0, b"\0\0" + body)
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
from tests.core.sessions import DECODE_LIMIT, ENVELOPE, PREAMBLE, frame, read, reader

def check():
    results.append(read(reader(), PREAMBLE + frame(ENVELOPE, 0, b"\\0\\0" + b"\\x91" * 100_000)))

results = []
threading.stack_size(256 * 1024)
thread = threading.Thread(target=check)
thread.start()
thread.join()
assert results == [([], DECODE_LIMIT)], results
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
        (reference_codec.extension(1, b"\xa6Colour\x91\x07"), "Colour is no message class here"),
        (reference_codec.extension(2, b"\xa4Pair\x07"), "Pair is no enum here"),
    ],
)
def test_a_class_that_is_not_known_here_ends_that_envelope_only(msg, detail):
    cid = CorrelationId(SENDER, 1, 2)
    head = struct.pack(">HHHQQ", 0, 1, 1, 1, 2)
    whole = b"\x13\0\x08n::b@h:2\0\x08m::a@h:1\0\x08m::a@h:1" + b"\x91" + msg
    data = (
        PREAMBLE
        + frame(ENVELOPE, 15, head + msg)
        + frame(FRAGMENT, 3, struct.pack(">I", len(whole)) + whole)
        + frame(ENVELOPE, 0, b"\0\0\7")
        + frame(FRAGMENT, 3, struct.pack(">I", len(whole)) + whole)
        + frame(ENVELOPE, 0, b"\0\0\x08")
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
                    data += frame(ENVELOPE, 0, b"\0\0" + msg)
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

    @message(name="Meddler", registry=registry, post_init=True)
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
        return frame(
            ENVELOPE, 0, b"\0\0" + reference_codec.extension(1, b"\xa7Meddler\x91\xa4" + what)
        )

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
    assert read(to, b"") == ([], LIMIT)


# By index and in full.
@pytest.mark.parametrize(
    ("to", "sender"), [("x::c@h:3", None), ("m::a@h:1", None), ("n::b@h:2", "x::c@h:3")]
)
def test_nobody_speaks_for_others_and_nothing_is_relayed(to, sender):
    texts = [to] if sender is None else [to, sender]
    places = b"".join(struct.pack(">H", place) for place in range(len(texts)))
    data = names_said(*texts) + frame(ENVELOPE, len(texts) - 1, places + b"\7")
    assert read(reader(), data) == ([], SPOOF)
    full = b"".join(struct.pack(">H", len(text)) + text.encode() for text in texts)
    assert read(reader(), frame(ENVELOPE, 16 | len(texts) - 1, full + b"\7")) == ([], SPOOF)


def test_the_same_name_at_another_address_is_another_node():
    for text in ("n::b@h:3", "n::bb@h:2"):
        assert read(reader(), names_said(text) + frame(ENVELOPE, 0, b"\0\0\7")) == ([], SPOOF)


def test_reserved_pids_are_not_reached():
    writer, to = session(), reader()
    executor, caller = Pid("executor", B, "rabble"), Pid("caller", B, "rabble")
    for pid in (executor, Pid("cluster", B, "rabble"), caller, Pid("executor", B)):
        writer.write(Envelope(pid, "stop", SENDER))
    data = writer.take_data()
    in_full = b"\0\x18" + str(executor).encode() + b"\xa4stop"
    received, code = read(to, data + frame(ENVELOPE, 16, struct.pack(">H", 23) + in_full[2:]))
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
    assert read(reader(), names_said(str(executor)) + frame(ENVELOPE, 0, b"\0\0\xc1"))[1] is None


def test_what_is_told_can_be_read():
    to = reader()
    body = b"\0\0\0\1" + struct.pack(">QBQ", 5, 2, 9) + b"oh"
    (envelope,) = to.decode(PREAMBLE + frame(DOWN, 0, body))
    assert repr(envelope.msg) == (
        f"<PeerEvent 6 from a@h:1: to={RECEIVER!r}, about={SENDER!r}, reference=5, why=2, life=9, "
        f"detail='oh'>"
    )
    assert envelope.msg.session is to
    error = SessionError(16, "no")
    assert (error.code, error.text, str(error)) == (16, "no", "code 16: no")
    with pytest.raises(TypeError):
        weakref.ref(envelope.msg)
