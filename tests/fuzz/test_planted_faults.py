"""The state machines of a member that lies find what is wrong, if something is."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from rabble.cluster.control_frames import ControlFrames
from rabble.cluster.decide import membership
from rabble.cluster.decide.bans import Bans
from rabble.cluster.decide.membership import Membership
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.decide.standing import OwnStanding
from tests.fuzz import lies, lying_peer

#: Within so many steps a fault has to be found.
STEPS_MAX = 4_000
STORY_BYTES = 1_000


def close(self: Any, peer: Any, error: Exception) -> None:
    peer.connection.close(RefusalCode.LIMIT, "membership")


#: Of each protection what there would be without it.
FAULTS: dict[str, tuple[object, str, Callable[..., Any]]] = {
    "numbers beyond belief are believed": (
        *(membership, "believed"),
        lambda state, news, highest: state,
    ),
    "a node does not contradict what is said of it": (
        *(Membership, "_correct_own"),
        lambda self: False,
    ),
    "a node does not go beyond a start that somebody made up": (
        *(OwnStanding, "is_outbid"),
        lambda self, now: False,
    ),
    "there may be any number of members": (
        *(Membership, "_check_bounds"),
        lambda self, before: None,
    ),
    "there may be any number of bans": (Bans, "_forget_surplus", lambda self, now: ()),
}
#: Of what only control planes have.
FAULTS_OF_PLANES = {
    "a member is parted from another that knows more than fits": (ControlFrames, "_refuse", close),
    "a member is believed about itself": (
        *(Bans, "merge"),
        lambda self, rows, now, told_by=(), merge=Bans.merge: merge(self, rows, now),
    ),
    "a name may have any number of joins": (Membership, "_drop_surplus", lambda self, name: set()),
}


def steps_until_found(play: Callable[[bytes], Any]) -> int | None:
    """How many steps there were before the story that found something."""
    steps = 0
    for seed in range(STEPS_MAX):
        data = random.Random(seed).randbytes(STORY_BYTES)
        try:
            steps += play(data).steps
        except Exception:
            return steps
        if steps > STEPS_MAX:
            break
    return None


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        *((lies, each) for each in FAULTS),
        *((lying_peer, each) for each in FAULTS | FAULTS_OF_PLANES),
    ],
    ids=lambda each: each.__name__.rpartition(".")[2] if isinstance(each, ModuleType) else each,
)
def test_a_planted_fault_is_found(
    target: ModuleType, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whose, name, instead = (FAULTS | FAULTS_OF_PLANES)[fault]
    monkeypatch.setattr(whose, name, instead)
    assert steps_until_found(target.play) is not None


@pytest.mark.parametrize("target", [lies, lying_peer])
def test_without_one_nothing_is_found_and_a_story_has_many_steps(target: ModuleType) -> None:
    assert target.play(random.Random(0).randbytes(STORY_BYTES)).steps > 20
