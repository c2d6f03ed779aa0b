"""What each node of a test saw, and whether that keeps the promises of the mesh.

Every node's test application writes a log of its own: one JSON object a line, in the order in which
the node saw things. There is no global clock, and none is needed: the checker compares the order
within logs only.

    with Log(path, "n1") as log:
        log.start(incarnation)
        stamp = log.sent("a::n1@h:1", "b::n2@h:2", body, known=peer_incarnation)
        ...                                             # the stamp travels with the body
        log.received(stamp, "b::n2@h:2", body)
        log.members(["n1", "n2"], final=True)           # once faults are over and all is at rest
        log.stop()

    assert check_files(folder.glob("*.jsonl"), alive={"n1", "n2"}) == []

What the application must keep to:

- `start` comes first in each life, `sent` before the message is handed over, `received` and the
  others as soon as they are seen. What one executor delivers is logged in the order of delivery.
- A pair is a sending process of one life of its node and a receiving process of one life of its
  own. `sent` numbers the messages of a sender to a receiver from 1; the numbers go on when the
  receiver's node was started again.
- `known` is the incarnation of the receiver's node that is up as far as the sender has been told
  when its `receive` runs, or None.
- `dead_letter` names the message that it is about, wherever it is seen. A node that will be killed
  sends nothing that it refuses itself (`LOCAL`): killed before it was told so, it looks like a gap.
- The final `members` of a life says: nothing is on its way any more. Only what was sent before it
  must have arrived or have a witness; a life without one is taken to have ended in the middle. All
  nodes log it before the first of them stops. A node that was removed, and knows it, has none.

Which promise is checked how:

- G1 Numbers of a pair increase in the receiver's log.
- G2 No message is received twice, in whichever life.
- G3 A message comes from the life of its sender that the receiver was told is up; `node_up` never
  goes back to an older one. It reaches the life that its sender had been told of when it sent it,
  and no other, though word of a later one may be in the sender's queue. No life gets anything older
  than what an earlier one got.
- G4 The digest of what arrived is that of what was sent.
- G5 For a message that did not arrive: the sender's log has its dead letter, or the peer goes down
  after it was sent or was not up then, or the sender's life ended in the middle. And the receiver's
  log has, between what it got of the pair before and after: a time when the sender's node was not
  up, or `lost` for as many as are missing, or that very dead letter. What the sender's own node
  refused (`LOCAL`) the receiver need not know of. Before the first message that a life of the
  receiver gets of a pair none that went to that life is missing, but if one of the two nodes saw
  the other go down in between, or said so as above.
- G6 What is received was sent, to this process and node.
- G8 Up and down of a node alternate; what it says arrives while it is up.
- G11 The final members agree, and each is up at each other one in its present incarnation.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Event = dict[str, Any]
#: Travels with a message: sender, its node's incarnation, receiver, number, digest.
Stamp = tuple[str, int, str, int, str]

#: Reasons of dead letters that the receiver's node never hears of.
LOCAL = frozenset({"unencodable", "refused", "node_shutdown"})


def digest(body: bytes) -> str:
    """What tells two bodies apart."""
    return hashlib.blake2b(body, digest_size=8).hexdigest()


def node_of(pid: str) -> str:
    """The name of a process's node: from `name::node@host:port` or `name::node`."""
    return pid.rpartition("::")[2].partition("@")[0]


class Log:
    """Appends events to a file. Each is one write, so what was logged survives SIGKILL.

    May be used from any thread; each sender numbers its messages from one thread only.
    """

    def __init__(self, path: str | os.PathLike[str], node: str) -> None:
        self.node = node
        self.incarnation = 0
        self._numbers: collections.Counter[tuple[str, str]] = collections.Counter()
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # an earlier life was killed, or the disk full, half-way

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def write(self, kind: str, /, **fields: Any) -> None:
        """Append an event, with the monotonic time, which all processes of a machine share."""
        event = {"e": kind, "t": time.monotonic(), **fields}
        line = json.dumps(event, separators=(",", ":")) + "\n"
        os.write(self._fd, line.encode())

    def start(self, incarnation: int) -> None:
        """A life begins; also when a running node had to raise its incarnation."""
        boot = self.incarnation == 0
        self.incarnation = incarnation
        self._numbers.clear()
        self.write("start", node=self.node, incarnation=incarnation, boot=boot)

    def sent(self, sender: str, to: str, body: bytes, known: int | None) -> Stamp:
        """A message is about to be sent; the stamp that has to go with it."""
        self._numbers[sender, to] += 1
        stamp = (sender, self.incarnation, to, self._numbers[sender, to], digest(body))
        self.write("sent", m=stamp, known=known)
        return stamp

    def received(self, stamp: Sequence[Any], by: str, body: bytes) -> None:
        """A message arrived at process `by`."""
        self.write("received", m=list(stamp), by=by, digest=digest(body))

    def dead_letter(self, stamp: Sequence[Any], reason: str) -> None:
        self.write("dead_letter", m=list(stamp), reason=reason)

    def node_up(self, node: str, incarnation: int) -> None:
        self.write("node_up", node=node, incarnation=incarnation)

    def node_down(self, node: str) -> None:
        self.write("node_down", node=node)

    def lost(self, count: int, node: str) -> None:
        """A peer says that it dropped so many envelopes to this node."""
        self.write("lost", count=count, node=node)

    def members(self, names: Iterable[str], final: bool = False) -> None:
        self.write("members", names=sorted(names), final=final)

    def stop(self) -> None:
        self.write("stop")


class BrokenLog(Exception):
    """A log that no node can have written: the test application is wrong, not the mesh."""


def read(path: str | os.PathLike[str]) -> list[Event]:
    """The events of a log. A line that is cut off is allowed where a life ended."""
    events: list[Event] = []
    torn = 0
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
            except ValueError:
                if torn:
                    raise BrokenLog(f"{path}:{torn}: no JSON") from None
                torn = number
                continue
            if torn and event["e"] != "start":
                raise BrokenLog(f"{path}:{torn}: no JSON, and no life ended there")
            torn = 0
            events.append(event)
    return events


class Violation(NamedTuple):
    """A promise that was broken, where this shows, and how."""

    promise: str
    node: str
    #: Index of the event in the node's log, from 0; -1: the log as a whole.
    at: int
    text: str

    def __str__(self) -> str:
        return f"{self.promise} at {self.node}, event {self.at}: {self.text}"


def check_files(
    paths: Iterable[str | os.PathLike[str]], alive: Iterable[str] = ()
) -> list[Violation]:
    """`check` of logs that are named after what their first event says."""
    return check(read_all(paths), alive)


def read_all(paths: Iterable[str | os.PathLike[str]]) -> dict[str, list[Event]]:
    """The logs of all nodes, by the name that the first event of each says."""
    logs: dict[str, list[Event]] = {}
    for path in sorted(map(Path, paths)):
        events = read(path)
        if not events or events[0]["e"] != "start":
            raise BrokenLog(f"{path} does not begin with a start")
        if logs.setdefault(events[0]["node"], events) is not events:
            raise BrokenLog(f"{path}: a second log of {events[0]['node']}")
    return logs


def check(
    logs: Mapping[str, Sequence[Event]],
    alive: Iterable[str] = (),
    local: frozenset[str] = LOCAL,
) -> list[Violation]:
    """All that breaks a promise, in the logs of all nodes by name.

    `alive`: nodes that must have come to rest, so their last life has final members. `local`:
    reasons of dead letters of which the receiver's node need not know.
    """
    return _Checker(logs, local).run(alive)


class _Life:
    """A node from a start to the next one or the end of its log."""

    def __init__(self, node: str, incarnation: int, begin: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.begin = begin
        self.end = begin
        #: Index of the final `members`; None if the life ended in the middle.
        self.rest: int | None = None
        self.final: list[str] = []
        self.up: dict[str, int] = {}
        self.up_at_rest: dict[str, int] = {}
        #: Indexes of node_up and node_down of each peer, with the incarnation or None.
        self.turns: dict[str, list[tuple[int, int | None]]] = collections.defaultdict(list)
        self.lost: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
        #: (sender, receiver) -> number -> index
        self.sent: dict[tuple[str, str], dict[int, int]] = collections.defaultdict(dict)
        #: (sender, its incarnation, receiver) -> (number, index) in the order of arrival
        self.got: dict[tuple[str, int, str], list[tuple[int, int]]] = collections.defaultdict(list)
        #: message without its digest -> reasons and indexes
        self.dead: dict[tuple[str, int, str, int], list[tuple[str, int]]] = collections.defaultdict(
            list
        )

    def ever_not_up(self, peer: str, after: int, before: int) -> bool:
        """Whether a peer was not up at some time between two events."""
        up = False
        for index, incarnation in self.turns[peer]:
            if index >= before:
                break
            up = incarnation is not None
            if index > after and not up:
                return True
            if index > after and up:
                return True  # it can only have come up if it was not
        return not up

    def was_down(self, peer: str, after: int, before: int) -> bool:
        """Whether a peer went down between two events."""
        return any(
            after < index < before for index, incarnation in self.turns[peer] if incarnation is None
        )


class _Checker:
    def __init__(self, logs: Mapping[str, Sequence[Event]], local: frozenset[str]) -> None:
        self.logs = logs
        self.local = local
        self.lives: dict[str, list[_Life]] = {}
        self.found: list[Violation] = []
        #: (receiver's node, begin of its life, sender's node) -> missing, witnessed by `lost` only
        self.only_told: collections.Counter[tuple[str, int, str]] = collections.Counter()

    def run(self, alive: Iterable[str]) -> list[Violation]:
        for node, events in self.logs.items():
            self.lives[node] = list(self._lives(node, events))
        for lives in self.lives.values():
            for life in lives:
                self._walk(life)
        self._no_message_twice()
        for lives in self.lives.values():
            for life in lives:
                for pair, sent in life.sent.items():
                    self._pair(life, pair, sent)
        self._lost_enough()
        self._agreement(alive)
        return sorted(self.found, key=lambda v: (v.node, v.at, v.promise))

    def _broken(self, promise: str, node: str, at: int, text: str) -> None:
        self.found.append(Violation(promise, node, at, text))

    def _lives(self, node: str, events: Sequence[Event]) -> Iterator[_Life]:
        """Cut a log into lives, and read what other logs are compared with."""
        life: _Life | None = None
        for index, event in enumerate(events):
            kind = event["e"]
            if kind == "start":
                if event["node"] != node:
                    raise BrokenLog(f"{node}, event {index}: a start of {event['node']}")
                if life is not None:
                    if event["incarnation"] <= life.incarnation:
                        self._broken("G3", node, index, "a later start has no higher incarnation")
                    yield life
                life = _Life(node, event["incarnation"], index)
            elif life is None:
                raise BrokenLog(f"{node}, event {index}: {kind} before any start")
            elif kind == "sent":
                sender, incarnation, to, number, _ = event["m"]
                numbers = life.sent[sender, to]
                if (
                    incarnation != life.incarnation
                    or node_of(sender) != node
                    or number <= next(reversed(numbers), 0)
                ):
                    raise BrokenLog(f"{node}, event {index}: {event} cannot be")
                numbers[number] = index
            elif kind == "dead_letter":
                message = tuple(event["m"][:4])
                life.dead[message].append((event["reason"], index))
            elif kind == "members" and event["final"]:
                life.rest = index
                life.final = event["names"]
            assert life is not None
            life.end = index + 1
        if life is not None:
            yield life

    def _walk(self, life: _Life) -> None:
        """What a log shows by itself, and of each message that arrived."""
        newest: dict[str, int] = {}
        for index in range(life.begin, life.end):
            event = self.logs[life.node][index]
            kind = event["e"]
            if kind == "node_up":
                peer, incarnation = event["node"], event["incarnation"]
                if peer in life.up:
                    self._broken("G8", life.node, index, f"{peer} is up already")
                if incarnation < newest.get(peer, 0):
                    self._broken("G3", life.node, index, f"an older incarnation of {peer} is up")
                if incarnation not in {each.incarnation for each in self.lives.get(peer, ())}:
                    self._broken("G3", life.node, index, f"{peer} never had this incarnation")
                newest[peer] = max(incarnation, newest.get(peer, 0))
                life.up[peer] = incarnation
                life.turns[peer].append((index, incarnation))
            elif kind == "node_down":
                peer = event["node"]
                if life.up.pop(peer, None) is None:
                    self._broken("G8", life.node, index, f"{peer} is not up")
                life.turns[peer].append((index, None))
            elif kind == "lost":
                life.lost[event["node"]].append((index, event["count"]))
                if event["node"] not in life.up:
                    self._broken("G8", life.node, index, f"word of {event['node']}, not up")
            elif kind == "received":
                self._arrival(life, index, event)
            if index == life.rest:
                life.up_at_rest = dict(life.up)

    def _arrival(self, life: _Life, index: int, event: Event) -> None:
        sender, incarnation, to, number, _ = event["m"]
        what = f"message {number} from {sender} to {to}"
        peer = node_of(sender)
        if node_of(to) != life.node or event["by"] != to:
            self._broken("G6", life.node, index, f"{what}, not to {event['by']}")
        if peer != life.node:
            up = life.up.get(peer)
            if up is None:
                self._broken("G8", life.node, index, f"{what}, whose node is not up")
            elif incarnation != up:
                age = "an older" if incarnation < up else "a later"
                self._broken("G3", life.node, index, f"{what}, of {age} incarnation than is up")
        origin = self._life_of(peer, incarnation)
        sent_at = None if origin is None else origin.sent.get((sender, to), {}).get(number)
        if origin is None or sent_at is None:
            self._broken("G6", life.node, index, f"{what} was never sent")
            return
        sent = self.logs[peer][sent_at]
        if event["digest"] != sent["m"][4]:
            self._broken("G4", life.node, index, f"{what} has changed")
        got = life.got[sender, incarnation, to]
        if got and number < got[-1][0]:
            self._broken("G1", life.node, index, f"{what} came after {got[-1][0]}")
        got.append((number, index))
        if peer != life.node and sent["known"] != life.incarnation:
            text = f"{what} was sent to incarnation {sent['known']}"
            self._broken("G3", life.node, index, text)

    def _life_of(self, node: str, incarnation: int) -> _Life | None:
        lives = self.lives.get(node, ())
        return next((life for life in lives if life.incarnation == incarnation), None)

    def _no_message_twice(self) -> None:
        for node, lives in self.lives.items():
            seen: set[tuple[str, int, str, int]] = set()
            latest: dict[tuple[str, int, str], int] = {}
            for life in lives:
                for pair, got in life.got.items():
                    top = latest.get(pair, 0)
                    for number, index in got:
                        what = f"message {number} from {pair[0]} to {pair[2]}"
                        if (*pair, number) in seen:
                            self._broken("G2", node, index, f"{what} came twice")
                        elif number < top:
                            text = f"{what} came after {top} went to an earlier incarnation"
                            self._broken("G3", node, index, text)
                        seen.add((*pair, number))
                        latest[pair] = max(number, latest.get(pair, 0))

    def _pair(self, life: _Life, pair: tuple[str, str], sent: Mapping[int, int]) -> None:
        """Every message of a sender to a receiver has arrived or has its witnesses."""
        sender, to = pair
        target = self.lives.get(node_of(to), [])
        # (number, life, index) of all that arrived, in the order of their numbers.
        key = (sender, life.incarnation, to)
        arrived = sorted(
            (number, place, index)
            for place, each in enumerate(target)
            for number, index in each.got.get(key, ())
        )
        numbers = {number for number, _, _ in arrived}
        ahead = iter([*arrived, None])
        after = next(ahead)
        before: tuple[int, int, int] | None = None
        hole: list[int] = []
        for number, sent_at in sent.items():
            if life.rest is not None and sent_at > life.rest:
                break  # nobody waited for it
            if number in numbers:
                while after is not None and after[0] <= number:
                    if hole:
                        self._hole(life, pair, hole, before, after)
                        hole = []
                    before, after = after, next(ahead)
            else:
                hole.append(number)
        if hole:
            self._hole(life, pair, hole, before, None)

    def _hole(
        self,
        life: _Life,
        pair: tuple[str, str],
        hole: Sequence[int],
        before: tuple[int, int, int] | None,
        after: tuple[int, int, int] | None,
    ) -> None:
        """Messages that are missing between two that arrived, of which either may be none."""
        sender, to = pair
        node = node_of(to)
        target = self.lives.get(node, [])
        dead_there = set()
        for each in target:
            for number in hole:
                if (sender, life.incarnation, to, number) in each.dead and each is not life:
                    dead_there.add(number)
        missing = []
        for number in hole:
            reasons = [r for r, _ in life.dead.get((sender, life.incarnation, to, number), ())]
            if number in dead_there:
                continue  # it had arrived at the node
            if node == life.node:
                if not reasons and life.rest is not None:
                    text = f"message {number} from {sender} to {to} is lost within the node"
                    self._broken("G5", life.node, life.sent[pair][number], text)
                continue
            if not reasons and not self._sender_knows(life, node, life.sent[pair][number]):
                text = f"message {number} from {sender} to {to} is lost, and no witness here"
                self._broken("G5", life.node, life.sent[pair][number], text)
            if not self.local.intersection(reasons):
                missing.append(number)
        if missing:
            self._receiver_knows(life, pair, missing, before, after)

    def _sender_knows(self, life: _Life, node: str, sent_at: int) -> bool:
        if life.rest is None:
            return True
        return life.ever_not_up(node, sent_at, life.rest)

    def _receiver_knows(
        self,
        life: _Life,
        pair: tuple[str, str],
        missing: Sequence[int],
        before: tuple[int, int, int] | None,
        after: tuple[int, int, int] | None,
    ) -> None:
        sender, to = pair
        target = self.lives.get(node_of(to), [])
        if not target:
            return
        if after is not None and (before is None or before[1] != after[1]):
            self._first_of_a_life(life, pair, missing, after)
            return
        if after is not None:
            there, until = target[after[1]], after[2]
        else:
            # None of these arrived, so the last life is where they should have.
            there = target[-1]
            if there.rest is None or (before and before[1] != len(target) - 1):
                return
            until = there.rest
        since = before[2] if before else there.begin
        if there.ever_not_up(life.node, since, until):
            return
        told = sum(count for at, count in there.lost[life.node] if since < at < until)
        if told < len(missing):
            text = (
                f"{len(missing)} messages from {sender} to {to}, {missing[0]} to {missing[-1]}, are"
                f" missing before this, and {told} are said to be lost"
            )
            self._broken("G5", there.node, until, text)
        else:
            self.only_told[there.node, there.begin, life.node] += len(missing)

    def _first_of_a_life(
        self,
        life: _Life,
        pair: tuple[str, str],
        missing: Sequence[int],
        after: tuple[int, int, int],
    ) -> None:
        """Nothing of the pair arrived in this life of the receiver's node before `after`.

        What went to an earlier life may have ended with it; what went to this one may not.
        """
        sender, to = pair
        there = self.lives[node_of(to)][after[1]]
        sent, log = life.sent[pair], self.logs[life.node]
        missing = [n for n in missing if log[sent[n]]["known"] == there.incarnation]
        if not missing:
            return
        begin, end = sent[missing[0]], sent[after[0]]
        if life.was_down(there.node, begin, end) or there.was_down(
            life.node, there.begin, after[2]
        ):
            return
        told = sum(count for at, count in there.lost[life.node] if at < after[2])
        if told < len(missing):
            text = (
                f"{len(missing)} messages from {sender} to {to}, the first is {missing[0]}, are"
                f" missing before this, the first that arrives, and {told} are said to be lost"
            )
            self._broken("G5", there.node, after[2], text)
        else:
            self.only_told[there.node, there.begin, life.node] += len(missing)

    def _lost_enough(self) -> None:
        """Several pairs may not all point at the same few that were said to be lost."""
        for (node, begin, peer), count in self.only_told.items():
            there = next(life for life in self.lives[node] if life.begin == begin)
            told = sum(count for _, count in there.lost[peer])
            if told < count:
                text = f"{count} messages from {peer} are missing, {told} said to be lost"
                self._broken("G5", node, -1, text)

    def _agreement(self, alive: Iterable[str]) -> None:
        last = {node: lives[-1] for node, lives in self.lives.items() if lives}
        for node in alive:
            if node not in last or last[node].rest is None:
                self._broken("G11", node, -1, "it has not come to rest: no final members")
        at_rest = {node: life for node, life in last.items() if life.rest is not None}
        for node, life in at_rest.items():
            assert life.rest is not None
            for other, there in at_rest.items():
                if not there.final and other in life.final:
                    text = f"{other} is a member, which knows that it was removed"
                    self._broken("G11", node, life.rest, text)
                elif node < other and life.final and there.final and life.final != there.final:
                    text = f"members {life.final}, at {other} {there.final}"
                    self._broken("G11", node, life.rest, text)
            wanted = {
                name: at_rest[name].incarnation
                for name in life.final
                if name != node and name in at_rest
            }
            up = {name: i for name, i in life.up_at_rest.items() if name in at_rest}
            if up != wanted:
                text = f"up are {up}, which should be {wanted}"
                self._broken("G11", node, life.rest, text)
