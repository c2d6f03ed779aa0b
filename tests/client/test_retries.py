"""When a request is asked again, and pushes that wait."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble.client import (
    ClientClosed,
    ConnectionLost,
    ForkedClient,
    Nack,
    ProtocolError,
    PushesLost,
    RequestFailed,
    RetryBudget,
    RetryPolicy,
)
from rabble.client.pushes import PushBuffer
from rabble.errors import DecodeError, RabbleError


class Most:
    def uniform(self, a: float, b: float, /) -> float:
        return b


def lost(*, sent: bool) -> ConnectionLost:
    error = ConnectionLost("lost")
    error.sent = sent
    return error


def nack(retry_after: float) -> Nack:
    error = Nack("busy")
    error.retry_after = retry_after
    return error


def test_what_has_not_happened_is_retried_and_nothing_else():
    policy = RetryPolicy(first_ms=100)
    assert policy.wait_s(nack(2), 1, Most()) == 2.1
    assert policy.wait_s(lost(sent=False), 1, Most()) == 0.1
    for error in (lost(sent=True), RequestFailed("x"), DecodeError("x"), ClientClosed("x")):
        assert policy.wait_s(error, 1, Most()) is None
    assert RetryPolicy(first_ms=100, lost=True).wait_s(lost(sent=True), 1, Most()) == 0.1


def test_waits_double_up_to_a_bound_and_end_with_the_attempts():
    policy = RetryPolicy(attempts_max=100, first_ms=100, most_ms=500)
    waits = [policy.wait_s(nack(0), attempt, Most()) for attempt in range(1, 6)]
    assert waits == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert policy.wait_s(nack(0), 99, Most()) == 0.5
    assert policy.wait_s(nack(0), 100, Most()) is None


def test_what_is_not_retried_takes_no_token():
    policy = RetryPolicy(attempts_max=2)
    before = policy.budget.tokens
    assert policy.wait_s(nack(0), 2, Most()) is None
    assert policy.wait_s(lost(sent=True), 1, Most()) is None
    assert policy.budget.tokens == before
    assert policy.wait_s(nack(0), 1, Most()) is not None
    assert policy.budget.tokens == before - 1


@given(
    st.lists(st.booleans(), max_size=300),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(1, 20),
)
def test_retries_are_a_part_of_the_requests(steps, ratio, most):
    budget = RetryBudget(ratio, most)
    asked = retried = 0
    for is_retry in steps:
        if is_retry:
            retried += budget.withdraw()
        else:
            asked += 1
            budget.deposit()
        assert 0 <= budget.tokens <= most
        assert retried <= most + ratio * asked


def test_two_policies_have_two_budgets_unless_they_are_given_one():
    assert RetryPolicy().budget is not RetryPolicy().budget
    budget = RetryBudget()
    assert RetryPolicy(budget=budget).budget is budget


@pytest.mark.parametrize("arguments", [(-0.1,), (1.1,), (0.5, 0.5), (0.5, float("inf"))])
def test_a_budget_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match="RetryBudget: ratio must be 0 to 1"):
        RetryBudget(*arguments)


@pytest.mark.parametrize(
    "arguments", [{"attempts_max": 0}, {"first_ms": 0}, {"first_ms": 100, "most_ms": 50}]
)
def test_a_policy_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match="RetryPolicy: attempts_max must be 1"):
        RetryPolicy(**arguments)


# Errors.


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (nack(1.5), RabbleError),
        (lost(sent=True), ConnectionError),
        (RequestFailed("x"), RabbleError),
        (ProtocolError("x"), ValueError),
        (ClientClosed("x"), RabbleError),
        (ForkedClient("x"), RabbleError),
        (PushesLost("x"), RabbleError),
    ],
)
def test_errors_keep_what_they_know_when_they_are_copied(error, base):
    assert isinstance(error, RabbleError) and isinstance(error, base)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))


# Pushes.


@given(st.lists(st.booleans(), max_size=100), st.integers(1, 5))
def test_the_latest_pushes_are_kept_and_the_others_are_counted(steps, most):
    of = PushBuffer(most)
    model: list[int] = []
    dropped = count = 0
    for puts in steps:
        if puts:
            of.put(count)
            model.append(count)
            count += 1
            if len(model) > most:
                del model[0]
                dropped += 1
        elif dropped:
            with pytest.raises(PushesLost) as told:
                of.take()
            assert told.value.count == dropped
            dropped = 0
        elif model:
            assert of.take() == model.pop(0)
        else:
            with pytest.raises(IndexError):
                of.take()
        assert len(of) == len(model)


def test_one_that_cannot_be_decoded_is_told_in_its_place():
    of = PushBuffer(3)
    unknown = DecodeError("unknown")
    of.put(1)
    of.put(None, unknown)
    of.put(3)
    assert of.take() == 1
    with pytest.raises(DecodeError) as told:
        of.take()
    assert told.value is unknown
    assert of.take() == 3
