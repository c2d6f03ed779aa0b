"""G12: a name has one owner while the mesh is whole. G11: all agree who has it, and is in a group.

    life, life_end
    register     by, name      `Register` is about to be asked for
    registered   by, name      `Registered` came
    name_lost    by, name      `NameLost` came
    unregister   by, name      `Unregister` is about to be asked for
    unregistered by, name      `Unregistered` came
    join, leave  by, group     `JoinGroup` or `LeaveGroup` is about to be asked for
    joined       by, group     `GroupJoined` came
    directory    names, groups what a node says of them when all has come to rest: name -> pid or
                               None, group -> pids

"Whole" are the times at which every node runs and is told that every other one is up. What was
asked for before that may have been granted by a part of the mesh; what was asked for afterwards is
the business of all.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses

from tests.faults.history import Event, Violation
from tests.faults.rules.record import Found, Life, Record, node_of

#: After the mesh is whole: what parts of it knew crosses with the connections.
SETTLED_S = 0.5


@dataclasses.dataclass
class Owned:
    """A name that a life was told it has."""

    by: Life
    name: str
    at: int
    asked: float
    since: float
    until: float


def owned(record: Record, found: Found) -> list[Owned]:
    """Who had which name, from when to when."""
    asked: dict[tuple[str, str], float] = {}
    giving: set[tuple[str, str]] = set()
    now: dict[tuple[str, str], Owned] = {}
    every: list[Owned] = []
    for node, index, event in record.events(
        "register", "registered", "unregister", "unregistered", "name_lost"
    ):
        by = record.by(event)
        key = (by.token, event["name"])
        if event["e"] == "register":
            asked[key] = event["t"]
        elif event["e"] == "registered":
            if key not in asked:
                found.say(node, index, f"{by.token} has {key[1]}, for which it did not ask")
                continue
            if key not in now:
                now[key] = Owned(by, key[1], index, asked[key], event["t"], by.until)
                every.append(now[key])
        elif event["e"] == "unregistered":
            giving.discard(key)
        elif (has := now.pop(key, None)) is not None:
            has.until = event["t"]
            if event["e"] == "unregister":
                giving.add(key)
        elif event["e"] == "name_lost" and key not in giving:
            found.say(node, index, f"{by.token} lost {key[1]}, which it did not have")
    return every


def check(record: Record) -> list[Violation]:
    found = Found("G12")
    every = owned(record, found)
    _one_owner(record, found, every)
    g11 = Found("G11")
    last = _agreement(record, g11)
    for node, (index, event) in last.items():
        _names(record, found, every, node, index, event)
        _groups(record, g11, node, index, event)
    return [*found, *g11]


def _one_owner(record: Record, found: Found, every: list[Owned]) -> None:
    by_name: dict[str, list[Owned]] = collections.defaultdict(list)
    for each in every:
        by_name[each.name].append(each)
    whole = record.whole()
    starts = [since for since, _ in whole]
    for name, those in by_name.items():
        those.sort(key=lambda each: each.since)
        for place, one in enumerate(those):
            for other in those[place + 1 :]:
                since, until = other.since, min(one.until, other.until)
                if since >= until:
                    continue
                # Both were asked for while the mesh was whole; or it has been whole for long.
                for at in range(max(bisect.bisect(starts, since) - 1, 0), len(whole)):
                    begin, end = whole[at]
                    if begin >= until:
                        break
                    asked = min(one.asked, other.asked)
                    settled = begin + SETTLED_S
                    if asked < settled:
                        settled = record.due(begin, *record.logs)
                    if max(since, settled) < min(until, end):
                        text = (
                            f"{name} is that of {other.by.token}, and from "
                            f"{one.since:.3f} to {one.until:.3f} of {one.by.token}"
                        )
                        found.say(other.by.node, other.at, text)
                        break


def _agreement(record: Record, found: Found) -> dict[str, tuple[int, Event]]:
    """The last word of each node on its directory, if there is one: all say the same."""
    last = {node: (index, event) for node, index, event in record.events("directory")}
    items = list(last.items())
    for node, (index, event) in items[1:]:
        other, (_, there) = items[0]
        for what in ("names", "groups"):
            for key in event[what].keys() | there[what].keys():
                here, so = event[what].get(key), there[what].get(key)
                if here != so:
                    text = f"{what[:-1]} {key} is {here}, at {other} {so}"
                    found.say(node, index, text)
    return last


def _names(
    record: Record, found: Found, every: list[Owned], node: str, index: int, event: Event
) -> None:
    """Who has a name at rest was told so, and who was told so has it."""
    now = event["t"]
    for name, pid in event["names"].items():
        owners = {
            each.by.pid
            for each in every
            if each.name == name and each.by.node == node and each.since <= now <= each.until
        }
        if pid is not None and node_of(pid) == node and pid not in owners:
            found.say(node, index, f"{name} is that of {pid}, which was not told so")
        for owner in owners - {pid}:
            found.say(node, index, f"{owner} was told that it has {name}, which is {pid}'s")


def _groups(record: Record, found: Found, node: str, index: int, event: Event) -> None:
    """Of this node those are in a group that joined and have not left or ended."""
    inside: dict[str, set[str]] = collections.defaultdict(set)
    doubtful: set[tuple[str, str]] = set()
    boot = record.boot_at(node, event["t"])
    assert boot is not None
    for at in range(boot.begin, index):
        each = record.logs[node][at]
        if each["e"] not in ("join", "joined", "leave"):
            continue
        by = record.by(each)
        if by.lives_at(index):
            key = (each["group"], by.pid)
            if each["e"] == "join":
                doubtful.add(key)
            elif each["e"] == "joined":
                doubtful.discard(key)
                inside[each["group"]].add(by.pid)
            else:
                inside[each["group"]].discard(by.pid)
    for group, members in event["groups"].items():
        here = {pid for pid in members if node_of(pid) == node}
        wrong = {pid for pid in here ^ inside[group] if (group, pid) not in doubtful}
        if wrong:
            text = f"of {group} should be {sorted(inside[group])}, and are {sorted(here)}"
            found.say(node, index, text)


__all__ = ["check"]
