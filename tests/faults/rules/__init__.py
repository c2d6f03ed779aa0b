"""What processes saw of each other, and whether that keeps the promises about them.

Each module has a pure function over a `Record`, which is the logs of all nodes: `monitors` the
second half of G8, `timers` G9, `asks` G10, `names` G12 and what G11 says of names and groups,
`families` G13, `links` what ties two lives. `tests.faults.history` has the rest.

A life of a process is known by a token, which no other one has, of whatever start of whatever node.
Logs are compared in their own order. Where two nodes are compared it is by the monotonic time of
each event, which is the same for all processes of a machine, and never closer than `SLACK_S`: a
node may have been paused in between, and a connection that is cut is called down a while later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tests.faults.history import Event, Violation
from tests.faults.rules import asks, families, links, monitors, names, timers
from tests.faults.rules.record import Record

__all__ = ["RULES", "check"]

RULES: tuple[Callable[[Record], list[Violation]], ...] = (
    monitors.check,
    timers.check,
    asks.check,
    names.check,
    families.check,
    links.check,
)


def check(logs: Mapping[str, Sequence[Event]]) -> list[Violation]:
    """All that breaks one of these promises, in the logs of all nodes by name."""
    record = Record(logs)
    return sorted(
        (found for rule in RULES for found in rule(record)),
        key=lambda each: (each.node, each.at, each.promise),
    )
