"""When a target is dialled again."""

from __future__ import annotations

import pytest

from rabble.cluster.decide.backoff import HOLD_BACKS_MAX, HURRY_S, LASTING, UNREACHED, Backoff
from rabble.cluster.decide.peers import DialTarget
from rabble.cluster.decide.refusal import RefusalCode
from rabble.limits import Limits

LIMITS = Limits(redial_first_ms=100, redial_most_ms=1_000, redial_refused_ms=5_000)
NOW = 50.0


class Latest:
    """Draws the end of each range."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Earliest:
    """Draws its begin."""

    def uniform(self, a: float, b: float) -> float:
        return a


def wait(target: DialTarget, *, rng: Latest | Earliest | None = None, hold_back: bool = False):
    """Seconds until the target is due; `None` if it is not to be dialled."""
    Backoff(rng or Latest(), LIMITS).plan(target, NOW, hold_back=hold_back)
    return None if target.due is None else pytest.approx(target.due - NOW)


def desired(**more) -> DialTarget:
    return DialTarget("h:1", is_desired=True, **more)


def test_the_first_dial_does_not_wait() -> None:
    assert wait(desired()) == 0.0


@pytest.mark.parametrize(("attempts", "ceiling"), [(1, 0.1), (2, 0.2), (4, 0.8), (5, 1.0), (99, 1)])
def test_the_ceiling_doubles_with_each_failure_up_to_the_most(
    attempts: int, ceiling: float
) -> None:
    assert wait(desired(attempts=attempts)) == ceiling
    assert wait(desired(attempts=attempts), rng=Earliest()) == 0.0


@pytest.mark.parametrize("code", sorted(LASTING))
def test_a_refusal_that_lasts_waits_long(code: RefusalCode) -> None:
    assert wait(desired(attempts=1, refusal=code), rng=Earliest()) == 5.0
    assert wait(desired(attempts=1, refusal=code)) == 7.5


@pytest.mark.parametrize(
    ("attempts", "ban_s", "least_s"),
    [
        *((1, 1e9, 5.0), (2, 1e9, 10.0), (3, 1e9, 20.0), (99, 1e9, 20.0), (10**6, 1e9, 20.0)),
        # Not beyond the end of the ban; and what says that this is over is left alone all the same.
        *((1, 3.0, 3.0), (9, 3.0, 3.0), (1, 0.0, 0.1), (9, 0.0, 1.0), (9, 2.0**64, 20.0)),
    ],
)
def test_who_is_banned_dials_less_and_less_often(
    attempts: int, ban_s: float, least_s: float
) -> None:
    target = desired(attempts=attempts, refusal=RefusalCode.BANNED, ban_s=ban_s)
    assert wait(target, rng=Earliest()) == least_s
    assert wait(target) == 1.5 * least_s


def test_a_target_that_is_barred_or_not_desired_is_not_dialled() -> None:
    assert wait(DialTarget("h:1")) is None
    assert wait(desired(barred=True)) is None


def test_the_larger_name_holds_back_unless_it_was_told_to_join() -> None:
    held_back_s = LIMITS.dial_hold_back_ms / 1000
    assert wait(desired(), rng=Earliest(), hold_back=True) == held_back_s
    assert wait(desired(), hold_back=True) == 2 * held_back_s
    assert wait(desired(join=True), hold_back=True) == 0.0


@pytest.mark.parametrize(
    ("held_back_until", "last_up", "due"),
    [
        (NOW + 5, NOW - 0.1, NOW + 0.9),
        (NOW + 0.5, NOW - 0.1, NOW + 0.5),
        (NOW + 5, NOW - 1, None),
        (NOW + 5, float("-inf"), None),
        (NOW, NOW, None),
        (0.0, NOW, None),
    ],
)
def test_a_dial_that_is_due_is_held_back_while_connections_come_up(
    held_back_until: float, last_up: float, due: float | None
) -> None:
    target = desired(due=NOW, held_back_until=held_back_until)
    holds_back = Backoff(Latest(), LIMITS).holds_back(target, last_up, NOW)
    assert (holds_back, target.due) == (due is not None, NOW if due is None else due)


@pytest.mark.parametrize("code", sorted(UNREACHED, key=str))
def test_a_target_that_could_not_be_reached_is_tried_soon_when_another_could(
    code: RefusalCode | None,
) -> None:
    target = desired(attempts=9, refusal=code, due=NOW + 60)
    Backoff(Latest(), LIMITS).hurry(target, NOW)
    assert target.due == NOW + HURRY_S


@pytest.mark.parametrize(
    "target",
    [
        desired(attempts=9, refusal=RefusalCode.AUTH, due=NOW + 60),
        desired(attempts=0, due=NOW + 60),
        desired(attempts=9, due=NOW + HURRY_S),
        desired(attempts=9),
    ],
    ids=["refused", "never failed", "soon anyway", "not due"],
)
def test_others_are_not_hurried(target: DialTarget) -> None:
    due = target.due
    Backoff(Latest(), LIMITS).hurry(target, NOW)
    assert target.due == due


def test_who_is_hurried_leaves_the_other_side_its_time_from_then_on() -> None:
    backoff, target = Backoff(Latest(), Limits(redial_most_ms=60_000)), desired()
    target.attempts = 20
    backoff.plan(target, NOW, hold_back=True)
    assert target.due is not None and target.due > NOW + HURRY_S
    backoff.hurry(target, NOW)
    assert target.due is not None and target.due <= NOW + HURRY_S
    longest_s = HOLD_BACKS_MAX * LIMITS.dial_hold_back_ms / 1000
    assert target.held_back_until <= target.due + longest_s
