"""Links tie two lives: an abnormal end of one is the end of the other, or an `Exit` that it traps.

    life        token, pid, traps         `traps`: it is told of exits, and lives on
    life_end    token, how, of, pid       `how`: `crashed` and so on; `linked`: the end of another,
                                          `pid`, was passed on to it; `of`: that life's token, if
                                          it is known
    link        by, pid                   `Link` is about to be asked for
    linked      by, token                 from now on both know that they are linked: an answer came
                                          to what was sent behind `Link`
    unlink      by, token                 `Unlink` is about to be asked for
    unlinked    by, token                 what was sent behind `Unlink`, of either, came to this one
    exit        by, pid, token, kind, life
                                          `Exit` came; `token` is the life that it was linked to, if
                                          that is known
    heard       by, pid, token, confirms  something came from that life

It is the last part of G8: once, behind the last message of the life that ended, and before the
first of the next one. Between `link` and `linked` nobody can know whether there is a link: then an
end may be passed on, and need not be. Two lives may be linked again when they have parted, and each
of them may ask for it.
"""

from __future__ import annotations

import collections
import dataclasses
import math

from tests.faults.history import BrokenLog, Event, Violation
from tests.faults.rules.record import SLACK_S, Found, Life, Record, node_of

#: Ends that are passed on to whoever does not trap them.
ABNORMAL = ("crashed", "linked", "disconnected", "shutdown")
#: Those that end a life, and do not only part it from others.
ENDS = ("crashed", "linked", "shutdown", "stopped")


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

    @property
    def is_over(self) -> bool:
        return min(self.told, self.unlink, self.unlinked) < math.inf


class Asked:
    """Who asked for a link with whom, and for its end."""

    def __init__(self, record: Record) -> None:
        self.record = record
        #: (token, pid) -> when, in order.
        self.link: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
        #: (token, token) -> when.
        self.unlink: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
        #: Pid -> the lives that asked for a link with it, each once.
        self.with_pid: dict[str, dict[str, Life]] = collections.defaultdict(dict)
        #: Token -> the pids with which it asked for one.
        self.by_token: dict[str, set[str]] = collections.defaultdict(set)
        for _, _, event in record.events("link", "unlink"):
            by = record.by(event)
            if event["e"] == "link":
                self.link[by.token, event["pid"]].append(event["t"])
                self.with_pid[event["pid"]][by.token] = by
                self.by_token[by.token].add(event["pid"])
            else:
                self.unlink[by.token, event["token"]].append(event["t"])

    def partners(self, life: Life) -> list[Life]:
        """All that it may have been linked with at some time."""
        own = [each for pid in self.by_token[life.token] for each in self.record.by_pid[pid]]
        return [*own, *self.with_pid[life.pid].values()]

    def is_possible(self, life: Life, pid: str) -> bool:
        """Whether one of that pid, or nobody there, may have been linked with it."""
        return bool(self.link.get((life.token, pid))) or any(
            each.pid == pid for each in self.with_pid[life.pid].values()
        )

    def begun(self, link: Link) -> float:
        """When that was asked for of which the link came, whoever of the two it was."""
        one, other = link.by, link.other
        those = [*self.link[one.token, other.pid], *self.link[other.token, one.pid]]
        return max((t for t in those if t <= link.since), default=link.since)

    def unlink_by_other(self, link: Link) -> float:
        begun = self.begun(link)
        those = self.unlink[link.other.token, link.by.token]
        return min((t for t in those if t >= begun), default=math.inf)

    def again_by_other(self, link: Link, until: float) -> bool:
        """Whether the other one may have asked for it anew, of which this one knows nothing."""
        begun = self.begun(link)
        return any(begun <= t <= until for t in self.link[link.other.token, link.by.pid])


def check(record: Record) -> list[Violation]:
    found = Found("G8")
    asked = Asked(record)
    #: The latest of each two lives, and all of them.
    links: dict[tuple[str, str], Link] = {}
    every: list[Link] = []
    #: (token, pid) -> the one with a life of that pid.
    present: dict[tuple[str, str], Link] = {}
    gone: set[tuple[str, str]] = set()
    #: (token, pid, number of a life) -> when its end was told.
    ends: dict[tuple[str, str, int], float] = {}
    for node, index, event in record.events("linked", "unlink", "unlinked", "exit", "heard"):
        by, token = record.by(event), event["token"]
        key = (by.token, token)
        link = links.get(key)
        if event["e"] == "linked":
            if link is not None and not link.is_over:
                raise BrokenLog(f"{node}, event {index}: {key} are linked already")
            other = record.lives[token]
            links[key] = present[by.token, other.pid] = Link(by, other, index, event["t"])
            every.append(links[key])
        elif event["e"] == "heard":
            if key in gone:
                found.say(node, index, f"{token} said something behind its Exit")
            latest = present.get((by.token, event["pid"]))
            if latest is not None and latest.other.token != token and by.about.get("traps"):
                if not latest.is_over and asked.unlink_by_other(latest) > event["t"]:
                    text = f"{token} said something before the Exit of {latest.other.token}"
                    found.say(node, index, text)
        elif event["e"] == "exit":
            if not by.about.get("traps"):
                found.say(node, index, f"{by.token} was told of an exit, and traps none")
            _once(record, found, ends, node, index, event)
            if token is None:
                latest = present.get((by.token, event["pid"]))
                _unsure(record, found, asked, latest, node, index, event)
                continue
            if event["kind"] in ENDS:
                gone.add(key)
            if link is None:
                found.say(node, index, f"{by.token} was told of the exit of {token}, not linked")
            elif link.told < math.inf:
                found.say(node, index, f"{by.token} was told of the exit of {token} twice")
            elif link.unlinked < math.inf and not asked.again_by_other(link, event["t"]):
                found.say(node, index, f"{by.token} was told of {token}, no more linked")
            else:
                link.told = event["t"]
                _reason(record, found, link, node, index, event["kind"])
        elif link is not None:
            link.unlink = min(link.unlink, event["t"])
            if event["e"] == "unlinked":
                link.unlinked = min(link.unlinked, event["t"])
    for link in every:
        _passed_on(record, found, asked, link)
    for life in record.lives.values():
        if life.how == "linked":
            _why_linked(record, found, asked, links, life)
    return found


def _once(
    record: Record,
    found: Found,
    ends: dict[tuple[str, str, int], float],
    node: str,
    index: int,
    event: Event,
) -> None:
    """No life ends twice. A later start of its node has the same numbers."""
    life = event.get("life", 0)
    if not life or event["kind"] not in ENDS:
        return
    before = ends.setdefault((event["by"], event["pid"], life), event["t"])
    if before == event["t"]:
        return
    ends[event["by"], event["pid"], life] = event["t"]
    if not record.downs(node, node_of(event["pid"]), before - SLACK_S, event["t"] + SLACK_S):
        text = f"{event['by']} was told of the end of life {life} of {event['pid']} twice"
        found.say(node, index, text)


def _unsure(
    record: Record,
    found: Found,
    asked: Asked,
    latest: Link | None,
    node: str,
    index: int,
    event: Event,
) -> None:
    """It was told of an exit before it knew of a link, or behind one that it had given up."""
    by, pid, kind = record.by(event), event["pid"], event["kind"]
    if not asked.is_possible(by, pid):
        found.say(node, index, f"{by.token} was told of an exit of {pid}, never linked with it")
    if kind in ENDS:
        if not any(each.how == kind and each.start <= event["t"] for each in record.by_pid[pid]):
            found.say(node, index, f"the exit of {pid} says {kind}: no life of it ended so")
    elif kind == "no_process":
        # It answers one of those that nothing has shown to have been handled.
        sure = -math.inf if latest is None else latest.since
        those = [t for t in asked.link.get((by.token, pid), ()) if sure < t <= event["t"]]
        since = min(those, default=-math.inf)
        for life in record.by_pid[pid]:
            if life.start < since and event["t"] < life.until:
                found.say(node, index, f"the exit of {pid} says {kind}, and {life.token} ran")
    elif kind == "disconnected":
        since, due = event["t"] - SLACK_S, record.due(event["t"], node)
        peer = node_of(pid)
        if record.is_up(node, peer, since) and not record.downs(node, peer, since, due):
            if due < by.boot.last:
                found.say(node, index, f"the exit of {pid} says {kind}: its node was up")


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


def _passed_on(record: Record, found: Found, asked: Asked, link: Link) -> None:
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
    if known >= min(link.unlink, asked.unlink_by_other(link)) or due >= by.until:
        return
    if not by.about.get("traps"):
        if abnormal:
            found.say(by.node, link.at, f"{by.token} outlives {other.token}, linked to it")
    elif link.told > due:
        found.say(by.node, link.at, f"{by.token} was not told of the exit of {other.token}")


def _why_linked(
    record: Record, found: Found, asked: Asked, links: dict[tuple[str, str], Link], life: Life
) -> None:
    assert life.end is not None
    event = record.logs[life.node][life.end]
    token = event["of"]
    if life.about.get("traps"):
        found.say(life.node, life.end, f"{life.token} ended with {token}, and traps exits")
        return
    partners = asked.partners(life)
    if any(each.how == "linked" and each.until <= life.until for each in partners):
        # Along a chain: nobody tells who passed it on.
        return
    if token is None:
        if not asked.is_possible(life, event["pid"]):
            text = f"{life.token} ended with {event['pid']}, never linked with it"
            found.say(life.node, life.end, text)
        return
    link, other = links.get((life.token, token)), record.lives[token]
    is_linked = other in partners if link is None else link.unlinked > life.until
    if link is not None and asked.again_by_other(link, life.until):
        is_linked = True
    if not is_linked:
        found.say(life.node, life.end, f"{life.token} ended with {token}, not linked to it")
    elif other.how not in ABNORMAL and not record.downs(
        life.node,
        other.node,
        (life.until if link is None else link.since) - SLACK_S,
        record.due(life.until, life.node),
    ):
        how = other.how or "alive"
        found.say(life.node, life.end, f"{life.token} ended with {token}, which is {how}")


__all__ = ["check"]
