"""What lies, and what means harm, finds what is wrong, if something is."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rabble.client import framing
from rabble.client.protocol import ClientProtocol
from rabble.cluster.control_frames import ControlFrames
from rabble.cluster.decide import membership
from rabble.cluster.decide.bans import Bans
from rabble.cluster.decide.membership import Membership
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.decide.standing import OwnStanding
from rabble.services import codecs
from rabble.services.codecs import FunctionCodec, Outgoing
from tests.fuzz import client_speech, hostile_clients, hostile_server, lies, lying_peer
from tests.fuzz.mutators import mutated

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


# Clients that mean harm, and a server that does.

CORPUS = Path(__file__).parent / "corpus"
#: Within so many changed inputs a fault has to be found.
INPUTS_MAX = 6_000


def inputs_until_found(target: str, play: Callable[[bytes], Any]) -> int | None:
    """How many changed inputs there were before the one that found something."""
    rng = random.Random(1)
    seeds = [file.read_bytes() for file in sorted(CORPUS.joinpath(target).iterdir())]
    for number in range(INPUTS_MAX):
        try:
            play(mutated(target, rng.choice(seeds), rng))
        except Exception:
            return number
    return None


def said_instead(change: Callable[[Outgoing], Outgoing]) -> Callable[[Any], None]:
    """A server of JSON that says something else than it was to say."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        json = client_speech.SPEECHES[1]
        encode = codecs.encode_json
        made = FunctionCodec(
            codecs.decode_json, lambda out: encode(change(out)), codecs.LineFraming()
        )
        monkeypatch.setattr(json, "made", made)

    return plant


def former_values() -> Callable[[Outgoing], Outgoing]:
    """Every fifth answer is the one before."""
    answers: list[Any] = []

    def change(out: Outgoing) -> Outgoing:
        if out.kind == "answer":
            answers.append(out.value)
            if len(answers) % 5 == 0:
                return dataclasses.replace(out, value=answers[-2])
        return out

    return change


def another_id(out: Outgoing) -> Outgoing:
    return out if out.id is None or out.id % 4 else dataclasses.replace(out, id=out.id + 1)


def no_time(out: Outgoing) -> Outgoing:
    return dataclasses.replace(out, retry_after_ms=0) if out.kind == "nack" else out


def never_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "_from_json", json.JSONDecoder().decode)


def holding(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    make = hostile_clients.Scene.make_handler

    def make_handler(scene: Any) -> Any:
        held.append(make(scene))
        return held[-1]

    monkeypatch.setattr(hostile_clients.Scene, "make_handler", make_handler)


def without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_clients.HandClock, "go_on", lambda clock, ms: None)
    monkeypatch.setattr(hostile_clients, "ROUNDS_MAX", 20)


def crossing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one client asks is answered as if another one's handler had been asked."""
    act = hostile_clients.Handler.act

    def crossed(handler: Any, action: int, request: Any, value: Any) -> Any:
        if type(value) is list and handler.number == 2:
            value = [value[0].replace("2-", "1-"), value[1]]
        return act(handler, action, request, value)

    monkeypatch.setattr(hostile_clients.Handler, "act", crossed)


def miscounting(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = hostile_clients.Gate.ended

    def sometimes(gate: Any, now_ns: int, begun_ns: int, ok: bool) -> None:
        if ok:
            ended(gate, now_ns, begun_ns, ok)

    monkeypatch.setattr(hostile_clients.Gate, "ended", sometimes)


FAULTS_OF_SERVERS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "an answer has the id of another request": said_instead(another_id),
    "an answer is that of another request": said_instead(former_values()),
    "a Nack says no time": said_instead(no_time),
    "NaN is taken for JSON": never_nan,
    "a handler outlives its connection": holding,
    "no request ends by the clock": without_a_clock,
    "a client is given what another one was to be": crossing,
    "the gate is not told of all ends": miscounting,
}


@pytest.mark.parametrize("fault", FAULTS_OF_SERVERS)
def test_clients_that_mean_harm_find_a_planted_fault(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAULTS_OF_SERVERS[fault](monkeypatch)
    assert inputs_until_found("clients", hostile_clients.play) is not None


def keeps_it(of: Any, event: Any) -> Any:
    """A request may be answered twice."""
    return of._in_flight.get(getattr(event, "id", None))


def as_it_comes(said: dict[str, Any], key: str) -> Any:
    return said.get(key)


def whatever(reader: Any, most: int) -> Any:
    return reader.read()


def forgets(of: Any, data: bytes) -> None:
    of._problem = None
    of._framing.feed(data)


def keeps_all(buffer: Any, line_bytes_max: int) -> None:
    buffer._line_bytes_max, buffer._received, buffer._searched = 1 << 30, bytearray(), 0


FAULTS_OF_CLIENTS: dict[str, tuple[Any, str, Any]] = {
    "a request ends as often as it is answered": (ClientProtocol, "_waiter_of", keeps_it),
    "an id of JSON may be anything": (framing, "json_number", as_it_comes),
    "an id of msgpack may be anything": (framing, "number_of", whatever),
    "what was broken goes on": (ClientProtocol, "feed", forgets),
    "a line may be of any length": (framing.LineBuffer, "__init__", keeps_all),
}


@pytest.mark.parametrize("fault", FAULTS_OF_CLIENTS)
def test_a_server_that_means_harm_finds_a_planted_fault(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whose, name, instead = FAULTS_OF_CLIENTS[fault]
    monkeypatch.setattr(whose, name, instead)
    assert inputs_until_found("answers", hostile_server.play) is not None
