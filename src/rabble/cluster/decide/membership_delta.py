"""Deltas of the membership: the parts of a state that changed, and what a merge did to members.

A delta is a state itself. A state consists of *parts* that merge each for itself: of each name its
last start, and of each replica how many of its joins were seen together with those of them in
force. So any choice of whole parts is a state, merging it is merging a state, and what is lost,
doubled or late does no harm: see Almeida, Shoker and Baquero, "Delta state replicated data types",
2018. The part of a replica is never cut: how many joins were seen, without a join that is in force,
would say that it was dropped. What makes a node a member may be in several parts, so one of these
alone can make it none where the others have not come yet: parts that change together are told
together, and digests find the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rabble._core.ids import NodeId
from rabble.cluster.decide.membership_state import Replica, State

__all__ = ["UNCHANGED", "Changes", "Part", "changed_parts", "changes_between", "rows_by_part"]

#: A name stands for its last start, a replica for its joins.
Part = str | Replica


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """What a merge did. A member whose address changed is in both `added` and `removed`."""

    #: In the order of their names.
    added: tuple[NodeId, ...]
    removed: tuple[NodeId, ...]
    #: Whether the state is another one, which the peers have to get.
    state_changed: bool
    #: How many rows were left out, as their numbers are beyond belief.
    disbelieved: int = 0


UNCHANGED = Changes((), (), False)


def changed_parts(before: State, after: State) -> set[Part]:
    """The parts of a state that are other than those of an earlier one, or are new."""
    parts: set[Part] = {start.name for start in after.rows.starts - before.rows.starts}
    if after.rows.versions != before.rows.versions or after.rows.joins != before.rows.joins:
        parts.update(version[:2] for version in after.rows.versions - before.rows.versions)
        parts.update(join[:2] for join in after.rows.joins ^ before.rows.joins)
    return parts


def rows_by_part(state: Mapping[str, Any]) -> Iterator[tuple[Part, tuple[Any, ...]]]:
    """Of each part of a state that was merged the row which every change of it alters."""
    for row in state["s"]:
        yield row[0], tuple(row)
    for row in state["v"]:
        yield (row[0], row[1]), tuple(row)


def changes_between(before: dict[str, NodeId | None], members: dict[str, NodeId]) -> Changes:
    """What became of some names."""
    added, removed = [], []
    for name in sorted(name for name, old in before.items() if members.get(name) != old):
        old, new = before[name], members.get(name)
        if old is not None:
            removed.append(old)
        if new is not None:
            added.append(new)
    return Changes(tuple(added), tuple(removed), True)
