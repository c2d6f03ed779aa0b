"""The protocol without I/O: the vectors of its page, any cut of the bytes, any garbage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabble.client.errors import ProtocolError
from rabble.client.events import (
    Answer,
    Event,
    Failure,
    Goodbye,
    Push,
    Refusal,
    Undecoded,
    error_of,
)
from rabble.client.framing import ID_MAX, Framing, JsonLines, MsgpackFrames, PlainLines
from rabble.client.limits import ClientLimits
from rabble.client.protocol import ClientProtocol
from rabble.errors import DecodeError, EncodeError, QueueFull
from rabble.registry import MessageRegistry
from tests.client.servers import frame_of

VECTORS = Path(__file__).parent / "vectors"
LIMITS = ClientLimits(frame_bytes_max=4096)
REGISTRY = MessageRegistry()
#: Of whoever waits, in these tests.
ASKED = range(10)
NAMES = tuple(map(str, ASKED))


def vectors(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())["vectors"]


def plain(event: Event) -> list[Any]:
    """An event as the vectors have it."""
    name = type(event).__name__
    if isinstance(event, Undecoded):
        return [name, event.id]
    return [name, *(getattr(event, field) for field in event.__match_args__)]


def framing(kind: Any = MsgpackFrames, limits: ClientLimits = LIMITS) -> Framing:
    made: Framing = kind(REGISTRY, limits)
    return made


def protocol(kind: Any = MsgpackFrames, limits: ClientLimits = LIMITS) -> ClientProtocol[str]:
    """One with requests 0 to 9 in flight, of "0" to "9"."""
    made: ClientProtocol[str] = ClientProtocol(framing(kind, limits), limits.in_flight_max)
    for n in ASKED:
        assert made.request(NAMES[n], "ask")[0] == n
    return made


def heard(of: ClientProtocol[str], *pieces: bytes) -> list[Any]:
    """What came of these pieces, and "broken" at its end if that is the end."""
    found: list[Any] = []
    for piece in pieces:
        of.feed(piece)
        try:
            for waiter, event in of.events():
                found.append((waiter, plain(event)))
        except ProtocolError:
            if found[-1:] != ["broken"]:
                found.append("broken")
    return found


# Vectors.


@pytest.mark.parametrize("vector", vectors("requests"), ids=lambda vector: vector["comment"])
def test_what_is_said_is_what_the_page_shows(vector):
    if "request" in vector:
        request_id, msg, priority = vector["request"]
        said = framing().request(request_id, msg, priority)
    else:
        said = framing().message(vector["message"])
    assert said.hex() == vector["hex"]


@pytest.mark.parametrize("vector", vectors("answers"), ids=lambda vector: vector["comment"])
def test_what_is_heard_is_what_the_page_shows(vector):
    (found,) = heard(protocol(), bytes.fromhex(vector["hex"]))
    waiter, event = found
    assert event == vector["event"]
    of_request = event[0] not in ("Push", "Goodbye")
    assert waiter == (str(event[1]) if of_request else None)


@pytest.mark.parametrize("vector", vectors("malformed"), ids=lambda vector: vector["comment"])
def test_what_is_not_of_the_protocol_is_its_end(vector):
    of = protocol()
    assert heard(of, bytes.fromhex(vector["hex"]))[-1] == "broken"
    with pytest.raises(ProtocolError):
        list(of.events())
    assert heard(of, frame_of(0, 8, "more")) == ["broken"]


@pytest.mark.parametrize("vector", vectors("json_lines"), ids=lambda vector: vector["line"][:30])
def test_lines_of_json_are_what_the_page_shows(vector):
    found = heard(protocol(JsonLines), vector["line"].encode() + b"\r\n")
    assert [event for _, event in found] == [vector["event"]]


# Any cut, any garbage.

texts = st.text(max_size=10)
msgs = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
ids = st.sampled_from(ASKED) | st.integers(0, 12)
frames = st.one_of(
    st.builds(lambda n, v: [0, n, v], ids, msgs),
    st.builds(lambda n, c, t: [1, n, c, t], ids, texts, texts),
    st.builds(lambda n, ms, t: [2, n, ms, t], ids, st.integers(0, 10**6), texts),
    st.builds(lambda v: [3, v], msgs),
    st.builds(lambda c, t: [4, c, t], st.just("drain"), texts),
    st.lists(msgs, max_size=4),
)


def of_json(frame: list[Any]) -> dict[str, Any] | list[Any]:
    keys = {
        0: ("id", "value"),
        1: ("id", "error", "text"),
        2: ("id", "nack_ms", "text"),
        3: ("push",),
        4: ("goodbye", "text"),
    }
    kind = frame[0] if frame and type(frame[0]) is int else None
    return dict(zip(keys[kind], frame[1:], strict=False)) if kind in keys else frame


STREAMS = {
    MsgpackFrames: lambda said: b"".join(frame_of(*frame) for frame in said),
    JsonLines: lambda said: b"".join(json.dumps(of_json(f)).encode() + b"\n" for f in said),
    PlainLines: lambda said: b"".join(str(frame).encode() + b"\n" for frame in said),
}


@st.composite
def streams(draw: Any) -> tuple[Any, bytes, list[bytes]]:
    """A framing, what a server says in it, and the same in pieces; some of it damaged."""
    kind = draw(st.sampled_from(list(STREAMS)))
    data = bytearray(STREAMS[kind](draw(st.lists(frames, max_size=6))))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    cuts = [0, *places, len(data)]
    return kind, bytes(data), [bytes(data[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]


@given(streams())
@settings(max_examples=300)
def test_any_cut_of_the_bytes_gives_the_same_events(stream):
    kind, data, pieces = stream
    whole = heard(protocol(kind), data)
    assert heard(protocol(kind), *pieces) == whole
    assert heard(protocol(kind), *(data[n : n + 1] for n in range(len(data)))) == whole


@given(st.sampled_from(list(STREAMS)), st.binary(max_size=200))
@settings(max_examples=300)
def test_garbage_is_a_protocol_error_and_nothing_else(kind, data):
    heard(protocol(kind), data)
    heard(protocol(kind), struct.pack(">I", len(data)) + data, b"\n")


@given(st.lists(st.tuples(st.sampled_from("ragdxe"), st.integers(0, 20)), max_size=60))
def test_each_request_ends_once(steps):
    """Against a model: who waits for which id, and whether anybody still does."""
    limits = ClientLimits(in_flight_max=5)
    of: ClientProtocol[object] = ClientProtocol(framing(limits=limits), 5)
    model: dict[int, object | None] = {}
    for step, n in steps:
        request_id = sorted(model)[n % len(model)] if model else n
        if step == "r":
            waiter = object()
            if len(model) == 5:
                with pytest.raises(QueueFull, match="ClientLimits.in_flight_max"):
                    of.request(waiter, n)
                assert of.is_stuck == (set(model.values()) == {None})
                continue
            made, _ = of.request(waiter, n)
            assert made not in model
            model[made] = waiter
        elif step == "g":
            if model.get(request_id) is not None:
                of.abandon(request_id, model[request_id])
                model[request_id] = None
        elif step == "x":
            # Whose request it was is not whose it is.
            of.abandon(request_id, object())
        elif step == "d" and model:
            of.feed(frame_of(2, request_id, n, ""))
            waiters = [who for who, _ in of.events()]
            expected = model.pop(request_id)
            assert waiters == ([] if expected is None else [expected])
        assert of.in_flight == len(model)
    assert of.end() == [who for who in model.values() if who is not None]
    assert of.end() == []


# Single rules.


def test_behind_a_goodbye_nothing_comes():
    of = protocol()
    assert heard(of, frame_of(4, "drain", "") + frame_of(0, 7, 1) + b"\xff" * 9) == [
        (None, ["Goodbye", "drain", ""])
    ]
    assert heard(of, b"\xff" * 9) == []


def test_a_late_answer_goes_to_nobody_and_is_counted():
    of = protocol()
    of.abandon(3, NAMES[3])
    assert heard(of, frame_of(0, 3, "late") + frame_of(0, 4, "in time")) == [
        ("4", ["Answer", 4, "in time"])
    ]
    assert of.late == 1


def test_ids_go_around_and_are_not_used_twice():
    of: ClientProtocol[str] = ClientProtocol(framing(), 10)
    assert of.request("first", 0)[0] == 0
    of._next_id = ID_MAX
    assert of.request("last", 0)[0] == ID_MAX
    assert of.request("next", 0)[0] == 1


def test_what_cannot_be_encoded_leaves_nothing_behind():
    of = protocol()
    for call in (lambda: of.request("x", object()), lambda: of.message(object())):
        with pytest.raises(EncodeError):
            call()
    with pytest.raises(EncodeError, match="frame_bytes_max"):
        of.request("x", "y" * 4092)
    for priority in (2, True, 1.0, None):
        with pytest.raises(ValueError, match="priority must be -1, 0 or 1"):
            of.request("x", 0, priority)
    assert of.in_flight == len(ASKED)
    assert of.request("x", "y" * 4080)[0] == 10


@pytest.mark.parametrize("kind", [JsonLines, PlainLines])
def test_a_line_is_bounded(kind):
    of = framing(kind)
    with pytest.raises(EncodeError):
        of.request(0, "x" * 5000, 0)
    for said in (b"x" * 5000, b"x" * 4097 + b"\n"):
        assert heard(protocol(kind), said) == ["broken"]
    assert heard(protocol(PlainLines), b"x" * 4096, b"\r", b"\n") == [
        ("0", ["Answer", 0, "x" * 4096])
    ]


@pytest.mark.parametrize(
    "said",
    [
        b"{",
        b"[]",
        b'{"id":7}',
        b'{"id":true,"value":1}',
        b'{"id":7,"value":NaN}',
        b'{"id":-1,"value":1}',
        b'{"id":7,"nack_ms":"5"}',
        b'{"id":7,"error":5}',
        b'{"goodbye":null}',
        b'{"push":' + b"[" * 65 + b"]" * 65 + b"}",
        b"\xff",
    ],
)
def test_lines_that_are_not_of_the_protocol(said):
    assert heard(protocol(JsonLines), said + b"\n") == ["broken"]


def test_brackets_in_strings_do_not_nest():
    value = {"a": "[" * 100 + '\\"' + "{" * 100, "b": "]"}
    line = json.dumps({"push": value}).encode() + b"\n"
    assert heard(protocol(JsonLines), line) == [(None, ["Push", value])]


def test_json_says_what_it_does_not_carry():
    for msg in (float("nan"), {1, 2}, b"x", "\ud800"):
        with pytest.raises(EncodeError):
            framing(JsonLines).request(0, msg, 0)
    assert framing(JsonLines).request(1, {"a": [1]}, -1) == (
        b'{"id":1,"msg":{"a":[1]},"priority":-1}\n'
    )
    assert framing(JsonLines).message("ü") == '{"msg":"ü"}\n'.encode()
    # Of its answer the connection would end.
    deepest: Any = "[[{"
    for _ in range(LIMITS.message_depth_max):
        deepest = [deepest]
    line = framing(JsonLines).request(1, deepest, 0)
    hearing = framing(JsonLines)
    hearing.feed(line.replace(b'"msg"', b'"value"'))
    assert plain(hearing.next_event())[-1] == deepest
    with pytest.raises(EncodeError, match="message_depth_max"):
        framing(JsonLines).request(2, [deepest], 0)


def test_plain_lines_are_answered_in_order():
    of: ClientProtocol[str] = ClientProtocol(framing(PlainLines), 10)
    assert of.request("a", "first") == (0, b"first\n")
    assert of.message("no answer") == b"no answer\n"
    for waiter in "bcd":
        of.request(waiter, "more")
    assert heard(of, b"1\nto nobody\nBUSY 120\nERROR failed why so\nERROR odd\nnews\n") == [
        ("a", ["Answer", 0, "1"]),
        ("b", ["Refusal", 1, 120, ""]),
        ("c", ["Failure", 2, "failed", "why so"]),
        ("d", ["Failure", 3, "odd", ""]),
        (None, ["Push", "news"]),
    ]
    for msg in ("two\nlines", 5, "x\r"):
        with pytest.raises(EncodeError, match="PlainLines|plain lines"):
            of.request("x", msg)
    assert of.in_flight == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"GOODBYE drain the server ends\n", ["Goodbye", "drain", "the server ends"]),
        (b"GOODBYE full\r\n", ["Goodbye", "full", ""]),
    ],
)
def test_a_goodbye_of_plain_lines_answers_nobody(line: bytes, said: list[Any]):
    assert heard(protocol(PlainLines), line + b"more\n") == [(None, said)]
    of: ClientProtocol[str] = ClientProtocol(framing(PlainLines), 10)
    of.request("a", "first")
    assert heard(of, line + b"more\n") == [(None, said)]
    assert of.end() == ["a"]


def test_what_requests_end_by():
    nack = error_of(Refusal(1, 1500, "later"))
    assert (type(nack).__name__, nack.retry_after) == ("Nack", 1.5)
    assert "1500 ms: later" in str(nack)
    failed = error_of(Failure(1, "crashed", "why"))
    assert (str(failed), failed.code, failed.detail) == ("crashed: why", "crashed", "why")
    assert error_of(Answer(1, None)) is None
    assert error_of(Push(1)) is error_of(Goodbye("a", "b")) is None
    unknown = DecodeError("no such class")
    assert error_of(Undecoded(1, unknown)) is unknown


def test_the_page_shows_the_vectors():
    """The page has the frames of its examples as hexadecimal digits, each of them a vector."""
    page = (Path(__file__).parents[2] / "docs/internals/client-protocol.md").read_text()
    known = {vector["hex"] for name in ("requests", "answers") for vector in vectors(name)}
    shown = [
        line.split("`")[1].replace(" ", "")
        for line in page.splitlines()
        if line.startswith("| `0000")
    ]
    assert len(shown) >= 7
    assert set(shown) <= known
    for frame in shown:
        msgpack.unpackb(bytes.fromhex(frame)[4:])
