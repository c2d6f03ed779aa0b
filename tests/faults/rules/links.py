"""Links tie two lives: an abnormal end of one is the end of the other, or an `Exit` that it traps.

    life        token, pid, traps         `traps`: it is told of exits, and lives on
    life_end    token, how, of            `how`: `crashed` and so on; `linked`: the end of another,
                                          whose token is `of`, was passed on to it
    linked      by, token                 from now on both know that they are linked: an answer came
                                          to what was sent behind `Link`
    unlink      by, token                 `Unlink` is about to be asked for
    unlinked    by, token                 an answer came to what was sent behind `Unlink`
    exit        by, pid, token, kind      `Exit` came; `token` is the life that it was linked to
    heard       by, pid, token, confirms  something came from that life

It is the last part of G8: once, behind the last message of the life that ended.
"""

from __future__ import annotations

import dataclasses
import math

from tests.faults.history import BrokenLog, Violation
from tests.faults.rules.record import SLACK_S, Found, Life, Record

#: Ends that are passed on to whoever does not trap them.
ABNORMAL = ("crashed", "linked", "disconnected")


@dataclasses.dataclass
class Link:
    """What one life knows of its link to another."""

    by: Life
    other: Life
    at: int
    since: float
    #: When it was told of the end of the other; when it asked for no more of it, and was sure.
    told: float = math.inf
    unlink: float = math.inf
    unlinked: float = math.inf


def check(record: Record) -> list[Violation]:
    found = Found("G8")
    links: dict[tuple[str, str], Link] = {}
    gone: set[tuple[str, str]] = set()
    for node, index, event in record.events("linked", "unlink", "unlinked", "exit", "heard"):
        by, token = record.by(event), event["token"]
        key = (by.token, token)
        link = links.get(key)
        if event["e"] == "linked":
            if link is not None:
                raise BrokenLog(f"{node}, event {index}: {key} are linked already")
            links[key] = Link(by, record.lives[token], index, event["t"])
        elif event["e"] == "heard":
            if key in gone:
                found.say(node, index, f"{token} said something behind its Exit")
        elif event["e"] == "exit":
            gone.add(key)
            if not by.about.get("traps"):
                found.say(node, index, f"{by.token} was told of an exit, and traps none")
            if link is None:
                found.say(node, index, f"{by.token} was told of the exit of {token}, not linked")
            elif link.told < math.inf:
                found.say(node, index, f"{by.token} was told of the exit of {token} twice")
            elif link.unlinked < math.inf:
                found.say(node, index, f"{by.token} was told of {token}, no more linked")
            else:
                link.told = event["t"]
                _reason(record, found, link, node, index, event["kind"])
        elif link is not None:
            link.unlink = min(link.unlink, event["t"])
            if event["e"] == "unlinked":
                link.unlinked = event["t"]
    for link in links.values():
        _passed_on(record, found, link)
    for life in record.lives.values():
        if life.how == "linked":
            _why_linked(record, found, links, life)
    return found


def _reason(record: Record, found: Found, link: Link, node: str, index: int, kind: str) -> None:
    other = link.other
    if kind == "disconnected":
        due = record.due(link.told, node)
        near = record.downs(node, other.node, link.since - SLACK_S, due)
        if not near and record.is_up(node, other.node, link.since):
            found.say(node, index, f"the exit of {other.token} says {kind}: its node was up")
    elif kind != other.how:
        text = f"the exit of {other.token} says {kind}, and it was {other.how or 'alive'}"
        found.say(node, index, text)


def _passed_on(record: Record, found: Found, link: Link) -> None:
    """The other one ended while they were linked: this one was told, or ended with it."""
    by, other = link.by, link.other
    downs = record.downs(by.node, other.node, link.since, math.inf)
    broken = downs[0] if downs and by.node != other.node else math.inf
    ended = math.inf if other.how is None else other.until
    known, abnormal = min((broken, True), (ended, other.how in ABNORMAL))
    due = record.due(known, by.node)
    if known == ended:
        due = record.told(known, other.node, by.node)
    if known == ended and not record.connected(by.node, other.node, link.since, due):
        return
    if known >= link.unlink or due >= by.until:
        return
    if not by.about.get("traps"):
        if abnormal:
            found.say(by.node, link.at, f"{by.token} outlives {other.token}, linked to it")
    elif link.told > due:
        found.say(by.node, link.at, f"{by.token} was not told of the exit of {other.token}")


def _why_linked(
    record: Record, found: Found, links: dict[tuple[str, str], Link], life: Life
) -> None:
    assert life.end is not None
    token = record.logs[life.node][life.end]["of"]
    link = links.get((life.token, token))
    if life.about.get("traps"):
        found.say(life.node, life.end, f"{life.token} ended with {token}, and traps exits")
    elif link is None or link.unlinked < life.until:
        found.say(life.node, life.end, f"{life.token} ended with {token}, not linked to it")
    elif link.other.how not in ABNORMAL and not record.downs(
        life.node, link.other.node, link.since - SLACK_S, record.due(life.until, life.node)
    ):
        how = link.other.how or "alive"
        found.say(life.node, life.end, f"{life.token} ended with {token}, which is {how}")


__all__ = ["check"]
