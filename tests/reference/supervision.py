"""A supervisor as Erlang/OTP's is written: straight on, and it blocks where it waits.

Slow and obviously right: a list of rows, a mailbox that is searched, and a generator that stands
still at each `yield` until something has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from rabble.families.children import (
    Backoff,
    ChildSpec,
    CountChildren,
    DeleteChild,
    Restart,
    RestartChild,
    StartChild,
    Strategy,
    TerminateChild,
)

#: Something that blocks, and what it returns.
Blocking = Generator[None, None, Any]


class Row:
    """A child."""

    def __init__(self, id: str, spec: ChildSpec) -> None:
        self.id = id
        self.spec = spec
        self.state = "stopped"
        self.is_away = False
        self.restarts = 0
        self.since = 0.0

    def shown(self) -> str:
        """As it is told."""
        if self.state == "stopped":
            return "stopped"
        return "restarting" if self.state == "waiting" or self.is_away else "running"


class SlowSupervisor:
    """What it does is in `did`, in words."""

    def __init__(
        self,
        strategy: Strategy,
        specs: list[ChildSpec],
        intensity: int,
        period_s: float,
        backoff: Backoff | None,
        children_max: int,
        uniform: Callable[[float, float], float],
    ) -> None:
        self.strategy = strategy
        self.is_simple = strategy is Strategy.SIMPLE_ONE_FOR_ONE
        self.specs = specs
        self.rows = [] if self.is_simple else [Row(spec.id, spec) for spec in specs]
        self.intensity = intensity
        self.period_s = period_s
        self.backoff = backoff
        self.children_max = children_max
        self.uniform = uniform
        self.made = 0
        self.times: list[float] = []
        self.mailbox: list[tuple[Any, ...]] = []
        self.owed: list[int] = []
        self.did: list[tuple[Any, ...]] = []
        self.now = 0.0
        self.body = self.run()
        self.is_ending = False

    def tell(self, *event: Any, now: float) -> list[tuple[Any, ...]]:
        """Something has happened; returns what it does until it waits again."""
        self.now = now
        if event[0] == "end":
            if not self.is_ending:
                self.body = self.last(event[1])
        elif event[0] == "request" and self.is_ending:
            self.did.append(("answer", event[2], "ending"))
        elif event[0] in ("away", "here"):
            # It runs for its supervisor, whether its node is there or not.
            row = next((row for row in self.rows if row.id == event[1]), None)
            if row is not None:
                row.is_away = event[0] == "away"
                if row.state == "starting":
                    self.mailbox.append(("up", row.id))
        else:
            if event[0] == "request":
                self.owed.append(event[2])
            self.mailbox.append(event)
        next(self.body, None)
        did, self.did = self.did, []
        return did

    def wait(self, *wanted: tuple[str, str | None]) -> Blocking:
        """The first event of one of these kinds (and about this child) in the mailbox."""
        while True:
            for event in self.mailbox:
                for kind, id in wanted:
                    if event[0] == kind and (id is None or event[1] == id):
                        self.mailbox.remove(event)
                        return event
            yield

    def run(self) -> Blocking:
        failed = yield from self.start_all(self.rows)
        if failed is not None:
            yield from self.last("crashed")
            return
        self.did.append(("started",))
        while True:
            kinds = ("down", "retry", "due", "request")
            event = yield from self.wait(*((kind, None) for kind in kinds))
            if event[0] == "request":
                yield from self.follow(event[1], event[2])
                continue
            row = next((row for row in self.rows if row.id == event[1]), None)
            if row is None:
                continue
            if event[0] == "due":
                if row.state == "waiting":
                    yield from self.restart(row)
            elif (yield from self.ended(row, event[2] if event[0] == "down" else None)):
                yield from self.last("crashed")
                return

    def last(self, kind: str) -> Blocking:
        self.is_ending = True
        for ticket in self.owed:
            self.did.append(("answer", ticket, "ending"))
        self.owed = []
        yield from self.end_all(list(self.rows))
        self.did.append(("finish", kind))
        while True:
            yield

    def start(self, row: Row) -> Blocking:
        """None, or why it did not start."""
        self.did.append(("start", row.id))
        row.state = "starting"
        row.is_away = False
        wanted = [(kind, row.id) for kind in ("up", "failed", "down")]
        event = yield from self.wait(*wanted)
        row.state = "up" if event[0] == "up" else "stopped"
        row.since = self.now
        return event[0] == "up"

    def start_all(self, rows: list[Row]) -> Blocking:
        """The first that did not start."""
        for row in rows:
            if not (yield from self.start(row)):
                return row
        return None

    def end(self, row: Row) -> Blocking:
        if row.state == "waiting":
            self.did.append(("cancel", row.id))
            gone = (("retry", row.id), ("due", row.id))
            self.mailbox = [event for event in self.mailbox if event[:2] not in gone]
        elif row.state != "stopped":
            over = (("down", row.id), ("failed", row.id))
            has_ended = any(event[:2] in over for event in self.mailbox)
            if row.state != "ending" and not has_ended:
                self.did.append(("end", row.id))
            row.state = "ending"
            yield from self.wait(("down", row.id), ("failed", row.id))
        row.state = "stopped"
        if row.spec.restart is Restart.TEMPORARY and row in self.rows:
            self.rows.remove(row)

    def end_all(self, rows: list[Row]) -> Blocking:
        for row in reversed(rows):
            yield from self.end(row)

    def group(self, row: Row) -> list[Row]:
        if self.strategy is Strategy.ONE_FOR_ALL:
            return list(self.rows)
        if self.strategy is Strategy.REST_FOR_ONE:
            return self.rows[self.rows.index(row) :]
        return [row]

    def ended(self, row: Row, kind: str | None) -> Blocking:
        """True if that was too often."""
        restart = row.spec.restart
        is_normal = kind in ("stopped", "shutdown")
        row.state = "stopped"
        if restart is Restart.TEMPORARY or (restart is Restart.TRANSIENT and is_normal):
            if restart is Restart.TEMPORARY or self.is_simple:
                self.rows.remove(row)
            return False
        self.times = [time for time in self.times if self.now - time <= self.period_s]
        self.times.append(self.now)
        if len(self.times) > self.intensity:
            return True
        wait = 0.0
        if self.backoff is not None:
            if kind is not None and self.now - row.since >= self.backoff.most_ms / 1000:
                row.restarts = 0
            row.restarts += 1
            ceiling = min(self.backoff.first_ms * 2 ** (row.restarts - 1), self.backoff.most_ms)
            wait = self.uniform(0.0, ceiling / 1000)
        if wait > 0:
            row.state = "waiting"
            yield from self.end_all([each for each in self.group(row) if each is not row])
            self.did.append(("wait", row.id, wait))
        else:
            yield from self.restart(row)
        return False

    def restart(self, row: Row) -> Blocking:
        row.state = "stopped"
        group = self.group(row)
        yield from self.end_all(group)
        failed = yield from self.start_all([each for each in group if each in self.rows])
        if failed is not None:
            failed.state = "waiting"
            self.mailbox.append(("retry", failed.id))

    def follow(self, msg: Any, ticket: int) -> Blocking:
        answer = yield from self.answer(msg)
        self.owed.remove(ticket)
        self.did.append(("answer", ticket, answer))

    def answer(self, msg: Any) -> Blocking:
        shown = [(row.id, row.shown()) for row in self.rows]
        if isinstance(msg, StartChild):
            return (yield from self.start_child(msg))
        if isinstance(msg, CountChildren):
            active = [state for _, state in shown if state == "running"]
            return 1 if self.is_simple else len(shown), len(active), len(shown)
        if not hasattr(msg, "id"):
            return shown
        row = next((row for row in self.rows if row.id == msg.id), None)
        if row is None:
            return "not_found"
        state = row.shown()
        if isinstance(msg, TerminateChild):
            yield from self.end(row)
            if self.is_simple and row in self.rows:
                self.rows.remove(row)
            return row.id, "stopped"
        if self.is_simple:
            return "not_understood"
        if state != "stopped":
            return state
        if isinstance(msg, DeleteChild):
            self.rows.remove(row)
            return row.id, "stopped"
        assert isinstance(msg, RestartChild)
        return (row.id, row.shown()) if (yield from self.start(row)) else "failed"

    def start_child(self, msg: StartChild) -> Blocking:
        spec = msg.spec
        if self.is_simple != (spec is None):
            return "not_understood"
        for row in self.rows:
            if spec is not None and row.id == spec.id:
                return "already_present" if row.state == "stopped" else row.shown()
        if len(self.rows) >= self.children_max:
            return "full"
        if spec is None:
            self.made += 1
            row = Row(f"{self.specs[0].id}.{self.made}", self.specs[0])
        else:
            row = Row(spec.id, spec)
        self.rows.append(row)
        if (yield from self.start(row)):
            return row.id, row.shown()
        self.rows.remove(row)
        return "failed"
