"""What a supervisor decides, next to one that is written straight on and blocks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rabble import DownReason, NodeId, Pid, Process
from rabble.families.actions import (
    Action,
    Answer,
    Cancel,
    Child,
    End,
    Finish,
    Kill,
    Start,
    Started,
    State,
    Wait,
)
from rabble.families.children import (
    Backoff,
    ChildCounts,
    ChildError,
    ChildInfo,
    ChildSpec,
    CountChildren,
    DeleteChild,
    Restart,
    RestartChild,
    StartChild,
    Strategy,
    TerminateChild,
    WhichChildren,
)
from rabble.families.supervision import Supervision
from tests.reference.supervision import SlowSupervisor

SUPERVISOR = Pid("supervisor", NodeId("n", "h:1"))
IDS = ("a", "b", "c", "d", "w.1", "w.2", "w.3")


def half(least: float, most: float) -> float:
    return (least + most) / 2


def answer_in_words(answer: Any) -> Any:
    if isinstance(answer, ChildError):
        return answer.code
    if isinstance(answer, ChildInfo):
        return answer.id, answer.state
    if isinstance(answer, ChildCounts):
        return answer.specs, answer.active, answer.workers
    return [answer_in_words(each) for each in answer]


def in_words(action: Action) -> tuple[Any, ...]:
    if isinstance(action, Answer):
        return "answer", action.ticket, answer_in_words(action.answer)
    if isinstance(action, Finish):
        return "finish", action.reason.kind
    if isinstance(action, Started):
        return ("started",)
    if isinstance(action, Wait):
        return "wait", action.child.id, action.seconds
    return type(action).__name__.lower(), action.child.id


def make(
    strategy: Strategy,
    specs: list[ChildSpec],
    intensity: int = 1,
    period_s: float = 5.0,
    backoff: Backoff | None = None,
    children_max: int = 100,
    requests_max: int = 100,
) -> Supervision:
    return Supervision(
        SUPERVISOR,
        strategy,
        specs,
        intensity=intensity,
        period_s=period_s,
        backoff=backoff,
        uniform=half,
        children_max=children_max,
        requests_max=requests_max,
    )


class Machine(RuleBasedStateMachine):
    """A supervisor, its children by hand, and the slow one."""

    @initialize(
        steps=st.sampled_from([0, 9]),
        strategy=st.sampled_from(Strategy),
        restarts=st.lists(st.sampled_from(Restart), min_size=1, max_size=4),
        intensity=st.sampled_from([0, 1, 2, 5]),
        backoff=st.sampled_from([None, Backoff(125, 500), Backoff(0, 0)]),
    )
    def begin(
        self,
        steps: int,
        strategy: Strategy,
        restarts: list[Restart],
        intensity: int,
        backoff: Backoff | None,
    ) -> None:
        if strategy is Strategy.SIMPLE_ONE_FOR_ONE:
            specs = [ChildSpec("w", Process, restart=restarts[0])]
        else:
            specs = [
                ChildSpec(id, Process, restart=restart)
                for id, restart in zip("abcd", restarts, strict=False)
            ]
        self.now = 0.0
        self.tickets = 0
        self.supervision = make(strategy, specs, intensity, 5.0, backoff, 4)
        self.slow = SlowSupervisor(strategy, specs, intensity, 5.0, backoff, 4, half)
        # The children as the world has them: those that run, and what was asked of them.
        self.alive: dict[str, tuple[Child, int]] = {}
        self.asked: set[str] = set()
        self.order: list[str] = []
        self.is_over = False
        self.waits: dict[str, tuple[Child, int]] = {}
        self.check(self.supervision.begin(self.now), self.slow.tell("begin", now=self.now))
        self.all_goes_well_for_a_while(steps)

    def check(self, actions: list[Action], expected: list[tuple[Any, ...]]) -> None:
        assert [in_words(action) for action in actions] == expected
        for action in actions:
            if isinstance(action, Start):
                # Nobody is started twice at a time.
                assert action.child.id not in self.alive
                self.alive[action.child.id] = action.child, action.child.number
                self.order.append(action.child.id)
            elif isinstance(action, End):
                assert action.child.id in self.alive
                self.asked.add(action.child.id)
                # The last one that was started first, of those that are to end.
                if self.supervision.reason is not None:
                    running = [id for id in self.order if id in self.alive]
                    order = list(self.supervision.children)
                    after = order[order.index(action.child.id) + 1 :]
                    assert not set(after) & set(running)
            elif isinstance(action, Wait):
                self.waits[action.child.id] = action.child, action.child.number
            elif isinstance(action, Cancel):
                self.waits.pop(action.child.id, None)
            elif isinstance(action, Finish):
                # Nothing is left behind.
                assert not self.alive
                self.is_over = True

    def starting(self) -> list[str]:
        return [id for id, (child, _) in self.alive.items() if child.state is State.STARTING]

    @rule(seconds=st.sampled_from([0.125, 0.5, 2.0, 5.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.starting())
    @rule()
    def it_is_up(self) -> None:
        (id,) = self.starting()
        child, number = self.alive[id]
        self.check(
            self.supervision.arrived(child, number, self.now),
            self.slow.tell("up", id, now=self.now),
        )

    @precondition(lambda self: self.starting())
    @rule()
    def its_node_is_away(self) -> None:
        (id,) = self.starting()
        child, number = self.alive[id]
        self.check(
            self.supervision.away(child, number, self.now),
            self.slow.tell("away", id, now=self.now),
        )

    @precondition(lambda self: any(child.is_away for child, _ in self.alive.values()))
    @rule(data=st.data())
    def its_node_is_there(self, data: st.DataObject) -> None:
        away = sorted(id for id, (child, _) in self.alive.items() if child.is_away)
        id = data.draw(st.sampled_from(away))
        child, number = self.alive[id]
        self.check(
            self.supervision.arrived(child, number, self.now),
            self.slow.tell("here", id, now=self.now),
        )

    @rule(steps=st.integers(1, 12))
    def all_goes_well_for_a_while(self, steps: int) -> None:
        """Else hardly any of what takes many steps would come to its end."""
        for _ in range(steps):
            if self.starting():
                self.it_is_up()
            elif self.asked:
                self.end_one(min(self.asked), "shutdown")

    @precondition(lambda self: self.starting())
    @rule()
    def it_is_not_there(self) -> None:
        (id,) = self.starting()
        child, number = self.alive.pop(id)
        self.check(
            self.supervision.failed(child, number, "it may not", self.now),
            self.slow.tell("failed", id, now=self.now),
        )

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), kind=st.sampled_from(["crashed", "stopped", "shutdown"]))
    def one_ends(self, data: st.DataObject, kind: str) -> None:
        id = data.draw(st.sampled_from(sorted(self.alive)))
        self.end_one(id, kind)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def one_ends_that_was_told_to(self, data: st.DataObject) -> None:
        self.end_one(data.draw(st.sampled_from(sorted(self.asked))), "shutdown")

    def end_one(self, id: str, kind: str) -> None:
        child, _ = self.alive.pop(id)
        self.asked.discard(id)
        self.check(
            self.supervision.down(child, DownReason(kind), self.now),
            self.slow.tell("down", id, kind, now=self.now),
        )

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def a_wait_is_over(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.waits)))
        child, number = self.waits.pop(id)
        self.check(
            self.supervision.due(child, number, self.now), self.slow.tell("due", id, now=self.now)
        )

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def one_takes_long_to_end(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.alive)))
        child, number = self.alive[id]
        actions = self.supervision.overdue(child, number, self.now)
        assert actions == ([Kill(child)] if id in self.asked else [])

    @rule(data=st.data())
    def somebody_asks(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(IDS))
        msg = data.draw(
            st.sampled_from(
                [
                    StartChild(ChildSpec(id, Process)),
                    StartChild(ChildSpec(id, Process, restart=Restart.TEMPORARY)),
                    StartChild(),
                    TerminateChild(id),
                    RestartChild(id),
                    DeleteChild(id),
                    WhichChildren(),
                    CountChildren(),
                ]
            )
        )
        self.tickets += 1
        self.check(
            self.supervision.request(msg, self.tickets, self.now),
            self.slow.tell("request", msg, self.tickets, now=self.now),
        )

    @precondition(lambda self: self.now > 20)
    @rule()
    def it_is_to_end(self) -> None:
        self.check(
            self.supervision.end(DownReason("shutdown"), self.now),
            self.slow.tell("end", "shutdown", now=self.now),
        )

    def teardown(self) -> None:
        # However it stands: it ends when it is told to, and has left nobody.
        if not hasattr(self, "supervision"):
            return
        self.it_is_to_end()
        while self.alive:
            self.end_one(next(iter(self.asked)), "stopped")
        assert self.is_over


Machine.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def test_each_event_is_answered_as_the_slow_model_does() -> None:
    run_state_machine_as_test(Machine)  # type: ignore[no-untyped-call]


# What chance hardly finds.


def spec(id: str, **options: Any) -> ChildSpec:
    return ChildSpec(id, Process, **options)


def begun(supervision: Supervision) -> Supervision:
    """With all its children up."""
    actions = supervision.begin(0.0)
    while actions and isinstance(actions[0], Start):
        child = actions[0].child
        actions = supervision.started(child, child.number, 0.0)
    return supervision


def test_restarts_count_for_as_long_as_the_period() -> None:
    for second, gives_up in ((5.0, True), (5.000001, False)):
        supervision = begun(make(Strategy.ONE_FOR_ONE, [spec("a"), spec("b")], intensity=1))
        a, b = supervision.children.values()
        supervision.down(a, DownReason("crashed"), 0.0)
        supervision.down(b, DownReason("crashed"), second)
        supervision.started(a, a.number, second)
        supervision.started(b, b.number, second)
        assert (supervision.reason is not None) is gives_up


def test_what_is_said_of_an_earlier_start_is_none_of_the_next_ones() -> None:
    supervision = begun(make(Strategy.ONE_FOR_ONE, [spec("a")], intensity=9))
    (a,) = supervision.children.values()
    supervision.down(a, DownReason("crashed"), 0.0)
    assert (a.state, a.number) == (State.STARTING, 2)
    assert supervision.started(a, 1, 0.0) == supervision.failed(a, 1, "late", 0.0) == []
    assert supervision.due(a, 1, 0.0) == [] and a.state is State.STARTING
    assert supervision.started(a, 2, 0.0) == [] and a.state is State.RUNNING
    supervision.request(TerminateChild("a"), 1, 0.0)
    assert supervision.overdue(a, 1, 0.0) == []
    assert supervision.overdue(a, 2, 0.0) == [Kill(a)]


@pytest.mark.parametrize("ended", ["crashed", "stopped"])
def test_what_has_been_terminated_is_not_restarted_for_having_crashed(ended: str) -> None:
    supervision = begun(make(Strategy.ONE_FOR_ONE, [spec("a"), spec("b")]))
    a, b = supervision.children.values()
    # While one ends the other does, too, which waits for its turn behind the second request.
    supervision.request(TerminateChild("a"), 1, 0.0)
    supervision.request(TerminateChild("b"), 2, 0.0)
    supervision.down(b, DownReason(ended), 0.0)
    actions = supervision.down(a, DownReason("shutdown"), 0.0)
    assert [in_words(action) for action in actions] == [
        ("answer", 1, ("a", "stopped")),
        ("answer", 2, ("b", "stopped")),
    ]
    assert a.state is b.state is State.STOPPED


def test_how_an_earlier_start_ended_says_nothing_of_the_next() -> None:
    specs = [spec("a", restart=Restart.TRANSIENT), spec("b"), spec("c")]
    supervision = begun(make(Strategy.ONE_FOR_ONE, specs))
    a, b, c = supervision.children.values()
    for ticket, request in enumerate(
        [TerminateChild("b"), TerminateChild("a"), RestartChild("a"), TerminateChild("c")]
    ):
        supervision.request(request, ticket, 0.0)
    # Ended by a crash, and has been terminated and started again before that has its turn.
    supervision.down(a, DownReason("crashed"), 0.0)
    supervision.down(b, DownReason("shutdown"), 0.0)
    supervision.started(a, a.number, 0.0)
    # The second time it ends normally, and is not to be restarted.
    supervision.down(a, DownReason("stopped"), 0.0)
    actions = supervision.down(c, DownReason("shutdown"), 0.0)
    assert [in_words(action) for action in actions] == [("answer", 3, ("c", "stopped"))]
    assert a.state is State.STOPPED


def test_of_requests_only_so_many_wait() -> None:
    supervision = make(Strategy.ONE_FOR_ONE, [spec("a")], requests_max=2)
    supervision.begin(0.0)
    assert supervision.request(CountChildren(), 1, 0.0) == []
    assert supervision.request(CountChildren(), 2, 0.0) == []
    assert [in_words(each) for each in supervision.request(CountChildren(), 3, 0.0)] == [
        ("answer", 3, "full")
    ]
    (a,) = supervision.children.values()
    actions = supervision.started(a, a.number, 0.0)
    assert [in_words(action)[:2] for action in actions] == [
        ("started",),
        ("answer", 1),
        ("answer", 2),
    ]
    assert supervision.request(CountChildren(), 4, 0.0) != []


def test_a_name_that_is_too_long_with_its_number_is_no_child() -> None:
    template = spec("w", name="n" * 254)
    supervision = begun(make(Strategy.SIMPLE_ONE_FOR_ONE, [template]))
    (answer,) = supervision.request(StartChild(), 1, 0.0)
    assert in_words(answer) == ("answer", 1, "failed") and not supervision.children


def test_a_child_that_could_not_be_started_is_not_ended() -> None:
    """It crashes, is started anew, and the end comes before it is said that it may not start."""
    machine = Machine()
    machine.begin(
        steps=9,
        strategy=Strategy.ONE_FOR_ONE,
        restarts=[Restart.PERMANENT, Restart.PERMANENT],
        intensity=1,
        backoff=None,
    )
    machine.end_one("a", "crashed")
    machine.it_is_to_end()
    machine.it_is_not_there()
    machine.all_goes_well_for_a_while(steps=1)
    machine.teardown()
