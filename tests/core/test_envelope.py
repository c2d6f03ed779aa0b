"""The envelope: its constructor is hand-made, so every way to call it is tried."""

from __future__ import annotations

import copy
import gc
import pickle
import sys

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
        (("a", 1), {}, "to must be a Pid, not str: 'a'"),
        ((None, 1), {}, "to must be a Pid, not NoneType"),
        ((A, 1, "b"), {}, "sender must be a Pid or None, not str"),
        ((A, 1, B, 7), {}, "correlation_id must be a CorrelationId or None, not int"),
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
