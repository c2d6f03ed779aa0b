"""The bounds of a node: which values they may have, and that each says what it bounds."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rabble
from rabble import Limits
from rabble.limits import FRAGMENT_BYTES_MIN, FRAGMENT_HEAD_BYTES_MAX
from tests.support import PATIENCE_S, Echo, until

NAMES = [field.name for field in dataclasses.fields(Limits)]


RANGES: dict[str, tuple[int, int]] = {
    field.name: field.metadata["range"] for field in dataclasses.fields(Limits)
}


#: With which a bound that has to agree with another one may be anything.
OTHERS = {
    "frame_bytes_max": {"fragment_bytes_max": 16},
    "fragment_bytes_max": {"frame_bytes_max": 2**31},
    "heartbeat_ms": {"down_after_ms": 2**31 - 1},
    "down_after_ms": {"heartbeat_ms": 1},
    "message_bytes_max": {"unfinished_bytes_max": 2**40},
    "unfinished_bytes_max": {"message_bytes_max": 1},
}


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "1", True, None, 2**64, -(2**64)])
def test_a_bound_is_an_int_of_its_range(wrong: Any) -> None:
    for name, (least, most) in RANGES.items():
        if wrong is least:
            # Nothing at all is a bound, too: no guests.
            continue
        with pytest.raises(ValueError) as caught:
            Limits(**{name: wrong})
        assert str(caught.value) == (
            f"Limits: {name} must be an int, {least} to {most}, not {wrong!r}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_range_has_its_default_and_its_ends(name: str) -> None:
    least, most = RANGES[name]
    for value in least, most:
        others = OTHERS.get(name, {})
        if name == "fragment_bytes_max":
            value = min(value, 2**31 - FRAGMENT_HEAD_BYTES_MAX)
        if name == "down_after_ms":
            value = max(value, 2)
        assert getattr(Limits(**{**others, name: value}), name) == value
    for value in least - 1, most + 1:
        with pytest.raises(ValueError, match=f"Limits: {name} must be an int, {least} to {most}"):
            Limits(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("message_depth_max", 300),
        ("message_bytes_max", 2**31 + 1),
        ("inbox_envelopes_max", 2**64),
        ("frame_bytes_max", 2**31 + 1),
        ("digest_ms", 10**10),
        ("seeds_refresh_ms", 10**10),
        ("heartbeat_ms", 32_768_000),
        ("peer_queue_bytes_max", 3),
        ("tls_buffer_bytes_max", 2**40),
    ],
)
def test_what_the_core_or_the_kernel_refuses_is_refused_here(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"Limits: {name} must be an int, .* not {value}"):
        Limits(**{name: value})


def values(name: str) -> st.SearchStrategy[int]:
    """Of a bound's range, its ends above all."""
    least, most = RANGES[name]
    return st.sampled_from([least, least + 1, most - 1, most]) | st.integers(least, most)


@st.composite
def any_limits(draw: st.DrawFn) -> Limits:
    """Any that are accepted, some of their bounds being the defaults."""
    names = draw(st.sets(st.sampled_from(NAMES)))
    given = {name: draw(values(name)) for name in sorted(names)}
    # A fragment has to fit into a frame, and what is not given has its default.
    frame = given.setdefault("frame_bytes_max", 1 << 20)
    least, most = FRAGMENT_BYTES_MIN, frame - FRAGMENT_HEAD_BYTES_MAX
    given["fragment_bytes_max"] = draw(st.integers(least, most))
    # As that of a peer: a heartbeat comes in time, and a message can be finished.
    heartbeat = given.setdefault("heartbeat_ms", 1_000)
    given["down_after_ms"] = draw(st.integers(2 * heartbeat, RANGES["down_after_ms"][1]))
    message = given.setdefault("message_bytes_max", 1 << 20)
    given["unfinished_bytes_max"] = draw(st.integers(message, RANGES["unfinished_bytes_max"][1]))
    return Limits(**given)


@settings(max_examples=25, deadline=None)
@given(any_limits())
def test_any_limits_that_are_accepted_make_a_node_that_runs(limits: Limits) -> None:
    """All that they bound is made of them; and what they make so small that nothing passes, says so
    and goes on."""
    mesh = rabble.Mesh(key=bytes(range(32)))
    with rabble.rouse("b@127.0.0.1:0", mesh=mesh) as b:
        a = rabble.rouse("a@127.0.0.1:0", mesh=mesh, limits=limits, strict=True)
        try:
            runtime = a._runtime.mesh_side()._runtime
            session = runtime.make_session(b.node_id, 1, limits.message_bytes_max)
            assert session.frame_bytes_max == limits.frame_bytes_max
            a.join(b.node_id)
            until(
                lambda: (
                    a.cluster_status().connections
                    or a.cluster_status().refusals
                    or limits.handshake_ms < 1_000
                    or limits.connect_ms < 1_000
                    or limits.membership_members_max == 1
                )
            )
            # It still does what it is told.
            with contextlib.suppress(rabble.RabbleError):
                a.call(a.spawn(Echo(), "echo"), 1, PATIENCE_S)
            done = threading.Event()
            a._runtime.mesh_side().post(done.set)
            assert done.wait(PATIENCE_S)
            assert a.status in ("running", "stalled"), a.failure
        finally:
            a.shutdown(PATIENCE_S)
            assert a.failure is None


def test_a_fragment_has_to_fit_into_a_frame() -> None:
    most = 20_000 - FRAGMENT_HEAD_BYTES_MAX
    Limits(frame_bytes_max=20_000, fragment_bytes_max=most)
    with pytest.raises(ValueError, match=f"16 to {most}, which frame_bytes_max has room for"):
        Limits(frame_bytes_max=20_000, fragment_bytes_max=most + 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"heartbeat_ms": 2_000, "down_after_ms": 3_999},
            "down_after_ms must be at least 4000, twice heartbeat_ms, not 3999: a peer that has "
            "nothing to say is heard once in heartbeat_ms",
        ),
        ({"down_after_ms": 1_999}, "down_after_ms must be at least 2000, twice"),
        ({"heartbeat_ms": 4_001}, "down_after_ms must be at least 8002, twice"),
        (
            {"message_bytes_max": 1_000, "unfinished_bytes_max": 999},
            "unfinished_bytes_max must be at least message_bytes_max, 1000, not 999: a message "
            "that comes in fragments could not be finished",
        ),
        ({"message_bytes_max": 2**30}, "unfinished_bytes_max must be at least message_bytes_max"),
        ({"unfinished_bytes_max": 1}, "unfinished_bytes_max must be at least message_bytes_max"),
    ],
)
def test_bounds_that_have_to_agree(given: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Limits(**given)
    assert str(caught.value).startswith(f"Limits: {said}")
    Limits(heartbeat_ms=2_000, down_after_ms=4_000)
    Limits(message_bytes_max=1_000, unfinished_bytes_max=1_000)


def test_the_bounds_of_a_node_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().calls_max = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
def test_each_bound_has_its_unit_in_its_name_and_says_what_it_bounds(name: str) -> None:
    assert re.search(r"_(max|ms|ms_max|most_ms)$", name)
    source = inspect.getsource(Limits)
    assert re.search(rf"    #: [^\n]+\n    {name}: int = ", source)
