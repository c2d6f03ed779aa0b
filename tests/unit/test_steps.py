"""The steps of a thread of the runtime: each is taken, whatever the others raise."""

from __future__ import annotations

from collections.abc import Callable

from rabble.steps import take_steps


class Steps:
    """Steps that are noted when they are taken, and what failed."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.failed: list[str] = []

    def step(self, name: str, raises: int = 0, last: bool = False) -> Callable[[], bool]:
        """A step that raises so many times."""
        left = iter(range(raises))

        def take() -> bool:
            self.taken.append(name)
            if next(left, None) is not None:
                raise LookupError(name)
            return last

        return take

    def note(self, error: BaseException) -> None:
        self.failed.append(str(error))


def test_a_step_that_raises_is_told_and_taken_once_more() -> None:
    of = Steps()
    take_steps(of.note, of.step("run", raises=1), of.step("end"))
    assert of.taken == ["run", "run", "end"]
    assert of.failed == ["run"]


def test_a_step_that_raises_again_hinders_no_other() -> None:
    of = Steps()
    take_steps(of.note, of.step("run", raises=9), of.step("close", raises=9), of.step("end"))
    assert of.taken == ["run", "run", "close", "close", "end"]
    assert of.failed == ["run", "run", "close", "close"]


def test_a_step_may_leave_the_others_to_another_thread() -> None:
    of = Steps()
    take_steps(of.note, of.step("run", last=True), of.step("end"))
    assert of.taken == ["run"]
    # Also when it says so only the second time.
    take_steps(of.note, of.step("again", raises=1, last=True), of.step("end"))
    assert of.taken == ["run", "again", "again"]


def test_what_cannot_even_be_told_hinders_no_step() -> None:
    of = Steps()

    def fail(error: BaseException) -> None:
        raise MemoryError

    take_steps(fail, of.step("run", raises=2), of.step("end"))
    assert of.taken == ["run", "run", "end"]
