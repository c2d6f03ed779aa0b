"""The model finds whatever is planted, and nothing in what is well."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rabble import NodeId, Pid
from tests.stress.ledger import (
    BIG,
    TRAVELS,
    Point,
    Record,
    Rules,
    Said,
    Teller,
    Timers,
    Violation,
    Watch,
    body_of,
    check,
    same,
)

PID = Pid("m0", NodeId("a", "h:1"))
LIFE = "m0@a/7"
RULES = Rules(
    immortal=frozenset({"i0@a"}), limits={"l0@a": 2, "c0@a": 6}, credit=frozenset({"c0@a"})
)


class Play:
    """A small round: ten messages to i0, and what came of them."""

    def __init__(self) -> None:
        self.teller = Teller(LIFE)
        self.record = Record("a")
        self.said = [self.teller.say("i0@a", n) for n in range(10)]
        self.mortal = [self.teller.say("m1@a") for _ in range(3)]
        self.limited = [self.teller.say("l0@a", batch=1) for _ in range(4)]
        self.record.batch_limits[1] = 2

    def arrive(self, said: Said, life: int = 1, **more: bool) -> None:
        self.record.arrive(said, said.to, life, PID, **more)

    def well(self, leave_out: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        for n, said in enumerate(self.said):
            if n not in leave_out:
                self.arrive(said)
        self.arrive(self.mortal[0], 5)
        self.record.lose(self.mortal[1], "no_process")
        self.arrive(self.mortal[2], 6)
        for said in self.limited[:2]:
            self.arrive(said, 9)
        for said in self.limited[2:]:
            self.record.lose(said, "mailbox_full")

    def found(self, rules: Rules = RULES) -> set[str]:
        return {violation.kind for violation in check([self.teller], [self.record], rules)}


def test_nothing_is_found_in_what_is_well() -> None:
    play = Play()
    play.well()
    fatal = play.teller.say("m1@a", do="die")
    play.arrive(fatal, 6, fatal=True)
    play.record.lose(fatal, "process_crashed")
    refused = play.teller.say("i0@a")
    play.teller.refuse(refused)
    play.record.kept_sent["k", "m0@a"] = play.record.kept_got["k", "m0@a"] = 3
    assert play.found() == set()


def plant_lost(play: Play) -> None:
    play.well({9})


def plant_lost_witness(play: Play) -> None:
    play.well()
    play.arrive(play.teller.say("m1@a", do="die"), 6, fatal=True)


def plant_twice(play: Play) -> None:
    play.well()
    play.arrive(play.said[9])


def plant_twice_by_letter(play: Play) -> None:
    play.well()
    play.record.lose(play.mortal[2], "no_process")


def plant_two_letters(play: Play) -> None:
    play.well()
    play.record.lose(play.mortal[1], "no_process")


def plant_order(play: Play) -> None:
    play.well({3})
    play.arrive(play.said[3])


def plant_changed(play: Play) -> None:
    play.well({9})
    said = play.said[9]
    body = Point(1, [1]) if said.kind % 8 != 5 else None
    play.arrive(Said(LIFE, said.to, said.number, 0, "", 0, said.kind, body))


def plant_receiver(play: Play) -> None:
    play.well({9})
    play.record.arrive(play.said[9], "m1@a", 1, PID)


def plant_sender(play: Play) -> None:
    play.well({9})
    play.record.arrive(play.said[9], "i0@a", 1, Pid("m1", PID.node))


def plant_no_sender(play: Play) -> None:
    play.well({9})
    play.record.arrive(play.said[9], "i0@a", 1, None)


def plant_never_sent(play: Play) -> None:
    play.well()
    play.arrive(Said(LIFE, "i0@a", 10, 0, "", 0, 0, None))


def plant_never_sent_pair(play: Play) -> None:
    play.well()
    play.arrive(Said(LIFE, "i1@a", 0, 0, "", 0, 0, None))


def plant_refused(play: Play) -> None:
    play.well()
    said = play.teller.say("i0@a")
    play.teller.refuse(said)
    play.arrive(said)


def plant_failing(play: Play) -> None:
    play.well()
    play.arrive(play.teller.say_nothing("i0@a"))


def plant_failing_letter(play: Play) -> None:
    play.well()
    play.record.lose(play.teller.say_nothing("i0@a"), "no_process")


def plant_reason(play: Play) -> None:
    play.well({9})
    play.record.lose(play.said[9], "no_process")


def plant_full_without_limit(play: Play) -> None:
    play.well({9})
    play.record.lose(play.said[9], "mailbox_full")


def plant_full_within_credit(play: Play) -> None:
    play.well()
    play.record.lose(play.teller.say("c0@a"), "mailbox_full")


def plant_unencodable(play: Play) -> None:
    play.well({9})
    play.record.lose(play.said[9], "unencodable")


def plant_crash_without_crash(play: Play) -> None:
    play.well({9})
    play.record.lose(play.said[9], "process_crashed")


def plant_disconnected(play: Play) -> None:
    play.well()
    play.record.lose(play.teller.say("m0@b"), "not_connected")


def plant_living(play: Play) -> None:
    play.well()
    one, two = play.teller.say("m1@a"), play.teller.say("m1@a")
    play.record.lose(one, "no_process")
    play.arrive(two, 6)


def plant_limit(play: Play) -> None:
    play.well()
    for _ in range(2):
        play.arrive(play.teller.say("l0@a", batch=1), 9)


def plant_output_of_nobody(play: Play) -> None:
    play.well()
    play.arrive(play.teller.say("l0@a", batch=2), 9)


def plant_kept(play: Play) -> None:
    play.well()
    play.record.kept_sent["k", "m0@a"] = 2
    play.record.kept_got["k", "m0@a"] = 1


def plant_kept_of_another(play: Play) -> None:
    play.well()
    play.record.kept_sent["k", "m0@a"] = 1
    play.record.kept_got["k", "m0@a"] = 1
    play.record.kept_got["k", "m1@a"] = 1


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (plant_lost, "lost"),
        (plant_lost_witness, "lost"),
        (plant_twice, "twice"),
        (plant_twice_by_letter, "twice"),
        (plant_two_letters, "two dead letters"),
        (plant_order, "order"),
        (plant_changed, "changed"),
        (plant_receiver, "wrong receiver"),
        (plant_sender, "wrong sender"),
        (plant_no_sender, "wrong sender"),
        (plant_never_sent, "never sent"),
        (plant_never_sent_pair, "never sent"),
        (plant_refused, "never sent"),
        (plant_failing, "output of a failing call"),
        (plant_failing_letter, "output of a failing call"),
        (plant_reason, "reason"),
        (plant_full_without_limit, "reason"),
        (plant_full_within_credit, "reason"),
        (plant_unencodable, "reason"),
        (plant_crash_without_crash, "reason"),
        (plant_disconnected, "reason"),
        (plant_living, "lost to the living"),
        (plant_limit, "limit passed"),
        (plant_output_of_nobody, "never sent"),
        (plant_kept, "kept"),
        (plant_kept_of_another, "kept"),
    ],
)
def test_what_is_planted_is_found(plant: Callable[[Play], None], kind: str) -> None:
    play = Play()
    plant(play)
    assert play.found() == {kind}


def test_what_is_missing_may_be_on_its_way_when_a_round_ends_early() -> None:
    play = Play()
    play.well({9})
    assert play.found(Rules(complete=False, immortal=RULES.immortal, limits=RULES.limits)) == set()


@pytest.mark.parametrize("kind", [*range(8), BIG, TRAVELS, TRAVELS + 1])
def test_a_body_is_known_from_its_number(kind: int) -> None:
    assert same(body_of(kind, 7), body_of(kind, 7))
    others = [
        body_of(other, 7) for other in (*range(8), BIG, TRAVELS, TRAVELS + 1) if other != kind
    ]
    assert not any(same(other, body_of(kind, 7)) for other in others)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(1, 1.0), (True, 1), ([1], (1,)), ([[1]], [[True]]), ({"a": 1}, {"a": 1.0}), (Point(1, 2), 1)],
)
def test_another_type_is_another_body(given: object, wanted: object) -> None:
    assert not same(given, wanted)


MS = 1_000_000


def timers_well(timers: Timers) -> None:
    timers.start(1, 0, 5)
    timers.fire(1, 5 * MS)
    timers.start(2, 0, 20)  # replaced, and fires once
    timers.start(2, 0, 1)
    timers.fire(2, 1 * MS)
    timers.start(3, 0, 1)  # fires, and is then started again
    timers.start(3, 2 * MS, 3)
    timers.fire(3, 1 * MS)
    timers.fire(3, 5 * MS)
    timers.start(4, 0, 5)
    timers.cancel(4, True)
    timers.acknowledged(4, True)
    timers.start(5, 0, 5)
    timers.cancel(5, True)
    timers.fire(5, 6 * MS)
    timers.acknowledged(5, False)
    timers.start(6, 0, 5)
    timers.cancel(6, False)


def early(timers: Timers) -> None:
    timers.start(9, 0, 5)
    timers.fire(9, 5 * MS - 1)


def early_after_replacing(timers: Timers) -> None:
    timers.start(9, 0, 1)
    timers.start(9, 0, 5)
    timers.fire(9, 2 * MS)


def twice(timers: Timers) -> None:
    timers.start(9, 0, 5)
    timers.fire(9, 5 * MS)
    timers.fire(9, 6 * MS)


def never_started(timers: Timers) -> None:
    timers.fire(9, 6 * MS)


def after_cancel(timers: Timers) -> None:
    timers.start(9, 0, 5)
    timers.cancel(9, True)
    timers.acknowledged(9, True)
    timers.fire(9, 6 * MS)


def lost_timer(timers: Timers) -> None:
    timers.start(9, 0, 5)


def lost_before_cancel(timers: Timers) -> None:
    timers.start(9, 0, 5)
    timers.cancel(9, True)
    timers.acknowledged(9, False)


def active_after_firing(timers: Timers) -> None:
    timers.start(9, 0, 5)
    timers.cancel(9, True)
    timers.fire(9, 6 * MS)
    timers.acknowledged(9, True)


def not_acknowledged(timers: Timers) -> None:
    timers.start(9, 0, 5)
    timers.cancel(9, True)
    timers.fire(9, 6 * MS)


def acknowledged_twice(timers: Timers) -> None:
    timers.start(9, 0, 5)
    timers.cancel(9, True)
    timers.acknowledged(9, True)
    timers.acknowledged(9, True)


@pytest.mark.parametrize(
    ("plant", "kinds"),
    [
        (lambda timers: None, set()),
        (early, {"timer early"}),
        (early_after_replacing, {"timer early"}),
        (twice, {"timer twice"}),
        (never_started, {"timer twice"}),
        (after_cancel, {"timer after its cancel"}),
        (lost_timer, {"timer lost"}),
        (lost_before_cancel, {"timer lost"}),
        (active_after_firing, {"acknowledged wrongly"}),
        (not_acknowledged, {"not acknowledged"}),
        (acknowledged_twice, {"acknowledged twice"}),
    ],
)
def test_what_is_planted_in_timers_is_found(
    plant: Callable[[Timers], None], kinds: set[str]
) -> None:
    record = Record("a")
    timers = Timers(record, "m0")
    timers_well(timers)
    plant(timers)
    timers.end()
    assert {fault.kind for fault in record.faults} == kinds


#: Each letter is something that a watcher does or sees: a sk, s ure, l eave, L eft, d own,
#: n o_process, digits are lives that are heard, D is a Down that says it is life 9's.
@pytest.mark.parametrize(
    ("story", "kinds"),
    [
        ("", set()),
        ("1as1d2as2d", set()),
        ("asn", set()),
        ("1asn2", set()),
        ("as11lL2", set()),
        ("as1ldL2", set()),
        ("1a1d2as2d", set()),
        ("d", {"Down twice"}),
        ("asdd", {"Down twice"}),
        ("aslLd", {"Down twice"}),
        ("as1d1", {"life after its Down"}),
        ("1asn1", {"life after its Down"}),
        ("as1d21", {"life after its Down"}),
        ("as12d", {"next life before the Down"}),
        ("as1", {"Down missing"}),
        ("a", {"mark lost"}),
        ("asl", {"mark lost"}),
        ("as1n", {"Down reason"}),
        ("as1D", {"Down of another life"}),
    ],
)
def test_what_is_planted_at_a_watcher_is_found(story: str, kinds: set[str]) -> None:
    record = Record("a")
    watch = Watch(record, "w0 of m0")
    acts: dict[str, Callable[[], None]] = {
        "a": watch.ask,
        "s": watch.sure,
        "l": watch.leave,
        "L": watch.left,
        "d": lambda: watch.down("stopped"),
        "n": lambda: watch.down("no_process"),
        "D": lambda: watch.down("stopped", 9),
    }
    for act in story:
        watch.heard(int(act)) if act.isdigit() else acts[act]()
    watch.end()
    assert {fault.kind for fault in record.faults} == kinds


def test_violations_read_well() -> None:
    play = Play()
    plant_twice(play)
    assert check([play.teller], [play.record], RULES) == [
        Violation("twice", f"{LIFE} -> i0@a #9 arrived twice")
    ]
