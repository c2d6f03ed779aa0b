"""The envelope: its constructor is hand-made, so every way to call it is tried."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from rabble import CorrelationId, Envelope, NodeId, Pid

NODE = NodeId("n", "h:1")
A = Pid("a", NODE)
B = Pid("b", NODE)
CID = CorrelationId(A, request=1)


def fields(envelope: Envelope) -> tuple[object, ...]:
    return (envelope.to, envelope.msg, envelope.sender, envelope.correlation_id)


@pytest.mark.parametrize("given", range(5))
def test_every_split_into_positional_and_keyword_arguments_is_the_same(given: int) -> None:
    values = [A, "hello", B, CID]
    names = ["to", "msg", "sender", "correlation_id"]
    envelope = Envelope(*values[:given], **dict(zip(names[given:], values[given:], strict=True)))  # type: ignore[arg-type]
    assert fields(envelope) == (A, "hello", B, CID)


def test_what_is_left_out_is_none() -> None:
    assert fields(Envelope(A, 1)) == (A, 1, None, None)
    assert fields(Envelope(A, 1, correlation_id=CID)) == (A, 1, None, CID)
    assert fields(Envelope(msg=1, to=A)) == (A, 1, None, None)
    assert fields(Envelope(A, 1, None, None)) == (A, 1, None, None)


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "needs both"),
        ((A,), {}, "needs both"),
        ((), {"msg": 1}, "needs both"),
        ((A, 1, B, CID, 5), {}, "5 were given"),
        ((A, 1), {"to": A}, "to was given twice"),
        ((A, 1), {"msg": A}, "msg was given twice"),
        ((A, 1), {"recipient": A}, "no argument 'recipient'"),
        (
            ("a", 1),
            {},
            "Envelope: to must be a Pid or None, not the str 'a'; write node.pid('a')",
        ),
        (
            ("a::n@h:1", 1),
            {},
            "Envelope: to must be a Pid or None, not the str 'a::n@h:1'; "
            "write Pid.parse('a::n@h:1')",
        ),
        (
            (5, 1),
            {},
            "to must be a Pid or None, not the int 5; what node.spawn and node.pid return is one",
        ),
        (
            (A, 1, "b"),
            {},
            "Envelope: sender must be a Pid or None, not the str 'b'; write node.pid",
        ),
        (
            (A, 1, B, 7),
            {},
            "Envelope: correlation_id must be a CorrelationId or None, not the int 7; write "
            "CorrelationId(pid, request=1), or pass on the one that receive was given",
        ),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    args: tuple[object, ...], kwargs: dict[str, object], said: str
) -> None:
    with pytest.raises(TypeError) as caught:
        Envelope(*args, **kwargs)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_it_is_an_immutable_value() -> None:
    envelope = Envelope(A, [1], B, CID)
    assert envelope == Envelope(A, [1], B, CID)
    assert envelope != Envelope(A, [2], B, CID)
    assert envelope != 5
    assert hash(Envelope(A, 1)) == hash(Envelope(A, 1))
    assert pickle.loads(pickle.dumps(envelope)) == envelope
    assert copy.copy(envelope) is envelope
    deep = copy.deepcopy(envelope)
    assert deep == envelope
    assert deep.msg is not envelope.msg
    for name in Envelope.__match_args__:
        with pytest.raises(AttributeError):
            setattr(envelope, name, None)
    assert eval(repr(envelope)) == envelope
    assert eval(repr(Envelope(A, 1))) == Envelope(A, 1)


def test_one_to_none_goes_to_nobody_and_says_so() -> None:
    envelope = Envelope(None, [1], B, CID)
    assert fields(envelope) == (None, [1], B, CID)
    assert envelope == Envelope(None, [1], B, CID) != Envelope(A, [1], B, CID)
    assert hash(Envelope(None, 1)) == hash(Envelope(to=None, msg=1))
    assert eval(repr(envelope)) == envelope and repr(Envelope(None, 1)) == "Envelope(None, 1)"
    assert pickle.loads(pickle.dumps(envelope)) == envelope
    assert copy.deepcopy(envelope) == envelope
    # No pid that anybody can make is equal to where it goes.
    assert envelope != Envelope(Pid("nobody", NodeId("nobody", "nobody:0")), [1], B, CID)
    match envelope:
        case Envelope(None, [1]):
            pass
        case _:
            pytest.fail("no match")


def test_it_can_be_matched() -> None:
    match Envelope(A, 5, B):
        case Envelope(Pid("a"), int(n), Pid("b"), None):
            assert n == 5
        case _:
            pytest.fail("no match")


def test_making_and_dropping_them_keeps_the_reference_counts() -> None:
    message = object()
    before = [sys.getrefcount(x) for x in (A, B, CID, message)]
    for _ in range(5_000):
        Envelope(A, message, B, CID)
        Envelope(A, message, sender=B, correlation_id=CID)
        with pytest.raises(TypeError):
            Envelope(A, message, B, 5)  # type: ignore[arg-type]
    kept = [Envelope(A, message, B, CID) for _ in range(3_000)]
    del kept
    gc.collect()
    assert [sys.getrefcount(x) for x in (A, B, CID, message)] == before


# The collector, and depth.


class Big:
    """Something that a weak reference finds."""


def test_the_collector_is_told_of_an_envelope_whose_message_it_knows() -> None:
    for msg in (None, 1, "text", b"bytes", 2.0, A):
        assert not gc.is_tracked(Envelope(A, msg))
    for tracked in ([], {}, (1,), Big(), Exception()):
        assert gc.is_tracked(Envelope(A, tracked))


def chain(length: int, innermost: object = None) -> Envelope:
    envelope = Envelope(A, innermost)
    for _ in range(length):
        envelope = Envelope(A, envelope)
    return envelope


def test_a_chain_of_a_million_envelopes_is_let_go_of() -> None:
    innermost = Big()
    gone = weakref.ref(innermost)
    deep: Any = chain(1_000_000, innermost)
    del innermost, deep
    assert gone() is None


def test_a_chain_of_envelopes_with_containers_between_them_is_let_go_of() -> None:
    innermost = Big()
    gone = weakref.ref(innermost)
    mixed: Any = innermost
    for _ in range(200_000):
        mixed = Envelope(A, [Envelope(A, (mixed,))])
    del innermost, mixed
    assert gone() is None


@pytest.mark.parametrize("look", [hash, repr, lambda deep: deep == chain(100_000)])
def test_what_looks_into_a_chain_of_envelopes_ends(look: Callable[[Envelope], object]) -> None:
    with pytest.raises(RecursionError):
        look(chain(100_000))
