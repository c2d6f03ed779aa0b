"""The copy of an exception that a record of the log may keep."""

from __future__ import annotations

import gc
import re
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from rabble._core.errors import Interrupted
from rabble.tracebacks import COPIES_MAX, FRAMES_MAX, detached, traceback_text


class Thing:
    """What a frame has."""


class Broken(KeyError):
    def __init__(self, thing: Thing) -> None:
        super().__init__("broken")
        self.thing = thing

    def __str__(self) -> str:
        return "a broken thing"


def caught(make: Callable[[], BaseException]) -> BaseException:
    try:
        raise make()
    except BaseException as error:
        return error


def copy_of(error: BaseException) -> BaseException:
    copy = detached(error)
    assert copy is not None
    return copy


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def broken_deep(thing: Thing) -> None:
    try:
        raise Broken(thing)
    except Broken as cause:
        error = ValueError("then")
        error.add_note("look at the thing")
        raise error from cause


def test_it_reads_as_the_exception_and_holds_nothing() -> None:
    thing = Thing()
    alive = weakref.ref(thing)
    text = ""
    copy: BaseException | None = None
    try:
        broken_deep(thing)
    except ValueError as error:
        copy, text = copy_of(error), traceback_text(error)
    del thing
    gc.collect()
    assert alive() is None
    assert copy is not None
    assert type(copy) is not ValueError and isinstance(copy, ValueError)
    assert isinstance(copy.__cause__, KeyError) and not isinstance(copy.__cause__, Broken)
    # But for the module of a class, and the marks below a line.
    marks = re.compile(r"^ +[~^]+\n", flags=re.M)
    assert shown(copy).replace(f"{__name__}.", "") == marks.sub("", text)


def test_it_says_what_tools_ask_for() -> None:
    copy = copy_of(caught(lambda: Broken(Thing())))
    assert (type(copy).__name__, type(copy).__qualname__) == ("Broken", "Broken")
    assert type(copy).__module__ == __name__
    assert str(copy) == "a broken thing"
    assert copy.__traceback__ is not None
    frame = copy.__traceback__.tb_frame
    assert frame.f_globals == {"__name__": __name__}
    assert (frame.f_code.co_name, frame.f_code.co_filename) == ("caught", __file__)
    assert frame.f_lineno == copy.__traceback__.tb_lineno


@pytest.mark.parametrize(
    "make",
    [
        lambda: SyntaxError("bad", ("file", 1, 1, "text")),
        lambda: FileNotFoundError(2, "none", "file"),
        lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        lambda: SystemExit(3),
        lambda: StopIteration(2),
        lambda: ImportError("none", name="x"),
        lambda: NameError("none", name="printt"),
        lambda: AttributeError("none", name="x", obj=Thing()),
        lambda: MemoryError(),
        lambda: GeneratorExit(),
        lambda: KeyboardInterrupt("^C"),
    ],
)
def test_each_of_pythons_own_is_one_of_its_kind(make: Callable[[], BaseException]) -> None:
    error = caught(make)
    copy = copy_of(error)
    assert isinstance(copy, type(error)) and type(copy) is not type(error)
    assert str(copy) == str(error)
    assert shown(copy).splitlines()[-1].startswith(type(error).__name__)


def test_a_group_has_its_parts() -> None:
    parts = [ValueError("one"), ExceptionGroup("inner", [KeyError("two")])]
    copy = copy_of(caught(lambda: ExceptionGroup("outer", parts)))
    assert isinstance(copy, ExceptionGroup)
    first, second = copy.exceptions
    assert (str(first), str(second)) == ("one", "inner (1 sub-exception)")
    assert isinstance(second, ExceptionGroup)
    other = copy_of(caught(lambda: BaseExceptionGroup("outer", [SystemExit("one")])))
    assert isinstance(other, BaseExceptionGroup) and not isinstance(other, ExceptionGroup)


def test_it_is_bounded() -> None:
    def wide(depth: int) -> BaseException:
        if not depth:
            return ValueError("x" * 1_000)
        return ExceptionGroup("group", [wide(depth - 1) for _ in range(6)])  # type: ignore[misc, list-item]

    def deep(left: int) -> BaseException:
        if left:
            return deep(left - 1)
        raise ValueError("deep")

    def parts(error: BaseException) -> list[BaseException]:
        found = [error]
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                found += parts(part)
        return found

    assert len(parts(copy_of(caught(lambda: wide(4))))) <= COPIES_MAX
    assert len(str(copy_of(wide(0)))) <= 500
    places = traceback.extract_tb(copy_of(caught(lambda: deep(300))).__traceback__)
    assert len(places) == FRAMES_MAX
    assert places[-1].name == "deep"


def test_a_chain_that_goes_round_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    copy = copy_of(one)
    assert copy.__context__ is not None and copy.__context__.__context__ is copy


def test_a_context_that_was_suppressed_stays_so() -> None:
    def raising() -> BaseException:
        try:
            raise LookupError("hidden")
        except LookupError:
            raise ValueError("shown") from None

    assert "hidden" not in shown(copy_of(caught(raising)))


def test_whatever_it_is_made_of_raises_nothing() -> None:
    class Cursed(type):
        def __getattribute__(cls, name: str) -> Any:
            raise SystemExit(name)

    class Bad(Exception, metaclass=Cursed):
        def __getattribute__(self, name: str) -> Any:
            raise SystemExit(name)

        def __str__(self) -> str:
            raise SystemExit("in __str__")

    # Not in a parameter, where pytest would look at it.
    try:
        raise Bad("x")
    except BaseException as error:
        copy = detached(error)
    assert copy is not None
    assert type.__getattribute__(type(copy), "__name__") == "Bad"


def test_the_end_of_a_receive_is_not_swallowed() -> None:
    class Ended(Exception):
        def __str__(self) -> str:
            raise Interrupted

    with pytest.raises(Interrupted):
        detached(Ended())
