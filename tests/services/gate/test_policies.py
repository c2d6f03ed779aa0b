"""The numbers of a policy: each has its range, and the pairs their order."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rabble.services.gate import CanaryPolicy, GradientPolicy

POLICIES = (CanaryPolicy, GradientPolicy)
FIELDS = [(cls, field) for cls in POLICIES for field in dataclasses.fields(cls)]


def test_a_unit_is_in_each_name() -> None:
    units = ("_ms", "_percent", "_min", "_max", "_first", "_per_second", "_windows")
    for _, field in FIELDS:
        assert any(unit in field.name for unit in units), field.name


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=lambda each: getattr(each, "name", ""))
def test_each_number_is_an_int_of_its_range(cls: type, field: dataclasses.Field[int]) -> None:
    least, most = field.metadata["range"]
    assert least <= getattr(cls(), field.name) <= most
    wrong: list[Any] = [least - 1, most + 1, 1.5, "1", True, None]
    for value in wrong:
        with pytest.raises(ValueError) as caught:
            cls(**{field.name: value})
        assert str(caught.value).startswith(
            f"{cls.__name__}: {field.name} must be an int, {least} to {most}, not "
        )


@pytest.mark.parametrize(
    ("cls", "numbers", "text"),
    [
        (CanaryPolicy, {"low_ms": 50}, "low_ms must be less than high_ms, 50, not 50"),
        (CanaryPolicy, {"remote_low_ms": 501}, "remote_low_ms must be less than remote_high_ms"),
        (CanaryPolicy, {"canaries_min": 33}, "canaries_min must be at most canaries_max, 32"),
        (CanaryPolicy, {"canary_lost_ms": 50}, "high_ms must be less than canary_lost_ms, 50"),
        (CanaryPolicy, {"canary_lost_ms": 500}, "remote_high_ms must be less than canary_lost_ms"),
        (CanaryPolicy, {"pressure_low_percent": 80}, "pressure_low_percent must be less than"),
        (CanaryPolicy, {"pressure_full_percent": 79}, "pressure_high_percent must be at most"),
        (GradientPolicy, {"retry_after_ms_min": 2_001}, "retry_after_ms_min must be at most"),
        (GradientPolicy, {"limit_first": 3}, "limit_min must be at most limit_first, 3, not 4"),
        (GradientPolicy, {"limit_max": 7}, "limit_first must be at most limit_max, 7, not 8"),
    ],
)
def test_pairs_have_their_order(cls: type, numbers: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}: {text}"):
        cls(**numbers)


def test_a_policy_is_frozen_and_takes_no_positions() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CanaryPolicy().high_ms = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        CanaryPolicy(1)  # type: ignore[misc]
