"""The capacities of the core, which the `tiny` build has at their smallest."""

from __future__ import annotations

import re

from rabble._core.debug import CAPACITIES
from tests.cimports import CORE


def test_each_capacity_is_told_and_has_the_value_of_this_build() -> None:
    text = (CORE / "capacities.pxd").read_text()
    values = {
        name: (eval(release), eval(tiny))
        for name, release, tiny in re.findall(
            r"#define RABBLE_(\w+) RABBLE_CAPACITY\((.*), (.*)\)\n", text
        )
    }
    assert values.keys() == CAPACITIES.keys() and len(values) > 30
    told = set(re.findall(r'^    enum: (\w+) "RABBLE_\1"', text, re.M))
    assert told == values.keys()
    is_tiny = bool(CAPACITIES["IS_TINY"])
    assert {name: each[is_tiny] for name, each in values.items()} == CAPACITIES


def test_each_capacity_of_the_tiny_build_is_smaller_but_for_the_depth_of_the_wheel() -> None:
    text = (CORE / "capacities.pxd").read_text()
    found = re.findall(r"#define RABBLE_(\w+) RABBLE_CAPACITY\((.*), (.*)\)\n", text)
    larger = {name for name, release, tiny in found if eval(tiny) >= eval(release)}
    # More levels of fewer slots reach as far.
    assert larger == {"IS_TINY", "WHEEL_LEVELS"}
