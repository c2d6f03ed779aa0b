"""Deltas of the membership: the parts of a state that changed, which are a state themselves.

A state consists of *parts* that merge each for itself: of each name its last start, and of each
replica how many of its joins were seen together with those of them in force. So any choice of whole
parts is a state, merging it is merging a state, and what is lost, doubled or late does no harm: see
Almeida, Shoker and Baquero, "Delta state replicated data types", 2018. The part of a replica is
never cut: how many joins were seen, without a join that is in force, would say that it was dropped.
What makes a node a member may be in several parts, so one of these alone can make it none where the
others have not come yet: parts that change together are told together, and digests find the rest.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from rabble.cluster.decide.membership_state import Replica, State

__all__ = ["Part", "changed_parts", "rows_by_part"]

#: A name stands for its last start, a replica for its joins.
Part = str | Replica


def changed_parts(before: State, after: State) -> set[Part]:
    """The parts of a state that are other than those of an earlier one, or are new."""
    parts: set[Part] = {start.name for start in after.rows.starts - before.rows.starts}
    if after.rows.versions != before.rows.versions or after.rows.joins != before.rows.joins:
        parts.update(version[:2] for version in after.rows.versions - before.rows.versions)
        parts.update(join[:2] for join in after.rows.joins ^ before.rows.joins)
    return parts


def rows_by_part(
    state: Mapping[str, Any], among: Container[Part]
) -> Iterator[tuple[Part, tuple[Any, ...]]]:
    """Of some parts of a state that was merged the row which every change of it alters.

    :param among: which parts.
    """
    for row in state["s"]:
        if row[0] in among:
            yield row[0], tuple(row)
    for row in state["v"]:
        if (row[0], row[1]) in among:
            yield (row[0], row[1]), tuple(row)
