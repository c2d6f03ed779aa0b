"""G13: a supervisor leaves no child behind, and in an orderly end the last one ends first.

life         token, pid, parent,  of a child: the token of its supervisor, and the how-manieth
             place                child of that it is; of a supervisor that is a child, too
life_end     token, how           `shutdown` (in order), `gave_up`, `stopped`, `crashed`, or `fell`:
                                  with its supervisor
alive        by                   a child has done something
family_gone  token                a supervisor ended, and whatever stood in the queue behind
                                  that has been handled
"""

from __future__ import annotations

import collections
import itertools

from tests.faults.history import Violation
from tests.faults.rules.record import Found, Life, Record

#: How a supervisor ends that ends its children first.
ORDERLY = ("shutdown", "gave_up")


def check(record: Record) -> list[Violation]:
    found = Found("G13")
    children: dict[str, list[Life]] = collections.defaultdict(list)
    for life in record.lives.values():
        if (parent := life.about.get("parent")) is not None:
            children[parent].append(life)
            above = record.lives[parent]
            if not above.lives_at(life.begin):
                text = f"{life.token} began, and its supervisor {parent} had ended"
                found.say(life.node, life.begin, text)
            if life.how == "fell" and life.end is not None and above.lives_at(life.end):
                text = f"{life.token} fell with {parent}, which lives"
                found.say(life.node, life.end, text)
    for node, index, event in record.events("alive"):
        by = record.by(event)
        if not by.lives_at(index):
            found.say(node, index, f"{by.token} does something, and has ended")
    for node, index, event in record.events("family_gone"):
        for life in _below(children, event["token"]):
            if life.end is None or life.end > index:
                text = f"{life.token} lives, and the family of {event['token']} has ended"
                found.say(node, index, text)
    for token, those in children.items():
        parent = record.lives[token]
        if parent.end is not None and parent.how in ORDERLY:
            _in_order(found, parent, parent.end, those)
    return found


def _below(children: dict[str, list[Life]], token: str) -> list[Life]:
    below = list(children.get(token, ()))
    for life in below:
        below += children.get(life.token, ())
    return below


def _in_order(found: Found, parent: Life, end: int, those: list[Life]) -> None:
    left = [life for life in those if life.end is None or life.end > end]
    for life in left:
        text = f"{life.token} lives, and its supervisor {parent.token} has ended in order"
        found.say(parent.node, end, text)
    if left:
        return
    # Those that ended with it: after the last one that was started.
    begun = max(life.begin for life in those)
    ends = [(life.end, life) for life in those if life.end is not None and life.how == "shutdown"]
    ended = [life for end, life in sorted(ends, key=lambda each: each[0]) if end > begun]
    for one, other in itertools.pairwise(ended):
        if one.about["place"] < other.about["place"]:
            text = f"{one.token} was ended before {other.token}, which stands behind it"
            found.say(parent.node, other.begin, text)


__all__ = ["check"]
