"""Names and groups: sending to a group whose members are on five nodes, and what changes cost."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble.bench.messaging import PATIENCE_S
from rabble.bench.model import Case, Limit, Sample, Target, expect
from rabble.bench.remote_side import ANSWERED_ROUNDS, GROUP, Member
from rabble.bench.sides import Side
from rabble.cluster.config import Mesh
from rabble.families.groups import Group
from rabble.messages import JoinGroup, LeaveGroup, Register, Unregister
from rabble.node import rouse
from rabble.process import Output, Process

__all__ = ["groups"]

NODES = 5


class Sender(Process):
    """Sends rounds to all members, and counts who answers.

    :param pids: to whom; `None`: to the group, which it is told of, and which one member leaves and
        joins again behind every few rounds.
    """

    def __init__(
        self, rounds: int, members: int, main: Pid, changing: Pid, pids: tuple[Pid, ...] | None
    ) -> None:
        self.rounds = rounds
        self.members = members
        self.main = main
        self.changing = changing
        self.pids = pids
        self.group = Group(GROUP)
        self.round = 0
        self.answers = 0
        self.changes = 0

    def init(self) -> Output:
        return self.group.subscribe(self.executor) if self.pids is None else None

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if type(msg) is int:
            self.answers += 1
            return None if self.answers % self.members else self.some_rounds()
        if self.group.takes(msg):
            self.changes += 1
            # First of all it is told who is there.
            return None if self.round else self.some_rounds()
        return self.some_rounds() if self.pids is not None else None

    def some_rounds(self) -> list[Envelope]:
        """As many as are answered at once."""
        if self.round == self.rounds:
            return [Envelope(self.main, (self.answers, self.changes))]
        out: list[Envelope] = []
        for _ in range(ANSWERED_ROUNDS):
            self.round += 1
            if self.pids is None:
                out += self.group.to_all(self.round)
            else:
                number = self.round
                out += [Envelope(pid, number) for pid in self.pids]
        if self.pids is None:
            out.append(Envelope(self.executor, LeaveGroup(GROUP, self.changing)))
            out.append(Envelope(self.executor, JoinGroup(GROUP, self.changing)))
        return out


class Changer(Process):
    """Says one thing, and another one when it is answered, so many times."""

    def __init__(self, times: int, main: Pid, to: Pid | None, words: tuple[Any, Any]) -> None:
        self.left = 2 * times
        self.main = main
        self.to = to
        self.words = words

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if not self.left:
            return Envelope(self.main, "done")
        self.left -= 1
        return Envelope(self.to or self.executor, self.words[self.left % 2])


class Five(contextlib.AbstractContextManager["Five"]):
    """This process's node and four others, with the members of a group spread over them."""

    def __init__(self, members: int) -> None:
        self.members = members
        self._runs = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Five:
        with contextlib.ExitStack() as stack:
            share = self.members // NODES
            sides = [stack.enter_context(Side("group", f"n{n}", share)) for n in range(1, NODES)]
            self._node = node = stack.enter_context(rouse("n0@127.0.0.1:0", mesh=Mesh()))
            self._main = stack.enter_context(node.mailbox())
            for number in range(self.members - share * (NODES - 1)):
                self._own = node.spawn(Member(), f"member-{number}")
                node.groups.join(GROUP, self._own)
            for side in sides:
                side.read()
                side.write(str(node.node_id))
            end = time.monotonic() + PATIENCE_S
            while len(node.groups.members(GROUP)) < self.members:
                if time.monotonic() > end:
                    raise RuntimeError("the members of the group are not known in time")
                time.sleep(0.01)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, rounds: int, *, plainly: bool) -> Sample:
        """Send so many rounds to all members."""
        pids = self._node.groups.members(GROUP) if plainly else None
        sender = Sender(rounds, self.members, self._main.pid, self._own, pids)
        (answers, changes), seconds = self._run(sender)
        messages = rounds * self.members
        expect("groups", answers * ANSWERED_ROUNDS, messages)
        # Who is in the group when it begins, and each that left and joined.
        expect("groups: changes", changes, 0 if plainly else 1 + 2 * rounds // ANSWERED_ROUNDS)
        return Sample(messages, seconds)

    def change(self, times: int, words: tuple[Any, Any]) -> Sample:
        """Have a process ask for one thing and then another, so many times."""
        _, seconds = self._run(Changer(times, self._main.pid, None, words))
        return Sample(2 * times, seconds)

    def ask(self, times: int, *, far: bool) -> Sample:
        """As many questions and answers, with a member of this node or of another one."""
        members = self._node.groups.members(GROUP)
        to = members[-1] if far else members[0]
        _, seconds = self._run(Changer(times, self._main.pid, to, (0, 0)))
        return Sample(2 * times, seconds)

    def _run(self, process: Process) -> tuple[Any, float]:
        """What it has to say at its end, and after how many seconds."""
        node = self._node
        self._runs += 1
        pid = node.spawn(process, f"run-{self._runs}")
        start = time.perf_counter()
        node.send(pid, "go")
        said = self._main.receive(PATIENCE_S).msg
        seconds = time.perf_counter() - start
        node.stop(pid)
        return said, seconds


def groups(members: int = 1_000, rounds: int = 200, changes: int = 2_000) -> list[Case]:
    """All members of a group over five nodes are sent to, beside plain envelopes to their pids;
    and what it takes to join and leave a group, and to have and give back a name."""
    five, few, fewer = Five(members), Five(NODES), Five(NODES)
    of_nodes = {"nodes": NODES}
    return [
        Case(
            "groups",
            {"members": members, **of_nodes, "rounds": rounds},
            "messages/s",
            lambda: five.send(rounds, plainly=False),
            Limit("plain envelopes", lambda: five.send(rounds, plainly=True)),
            Target(0.7),
            session=five,
        ),
        Case(
            "groups-churn",
            of_nodes,
            "changes/s",
            lambda: few.change(changes, (JoinGroup("churn"), LeaveGroup("churn"))),
            Limit("answers here", lambda: few.ask(changes, far=False)),
            session=few,
        ),
        Case(
            "groups-names",
            of_nodes,
            "changes/s",
            lambda: fewer.change(changes // 10, (Register("name"), Unregister("name"))),
            Limit("answers there", lambda: fewer.ask(changes // 10, far=True)),
            session=fewer,
        ),
    ]
