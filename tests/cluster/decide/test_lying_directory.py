"""A member that lies of its names and groups: honest nodes agree when it is gone."""

from __future__ import annotations

import collections
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.directory_lies import play


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_honest_nodes_agree_whatever_a_member_said(data: bytes) -> None:
    play(data)


@pytest.mark.parametrize("seeds", [200, pytest.param(50_000, marks=pytest.mark.soak)])
def test_honest_nodes_agree_after_a_long_time_of_lies(seeds: int) -> None:
    happened: collections.Counter[str] = collections.Counter()
    for seed in range(seeds):
        data = random.Random(seed).randbytes(600)
        try:
            happened += play(data).happened
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    for what in ("registered", "lost", "refused: taken", "refused: limit"):
        assert happened[what], happened
