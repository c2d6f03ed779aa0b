"""What is said of users' objects: bounded, true of plain values, and no failure of who asks."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._core.errors import Interrupted
from rabble._core.texts import bounded_repr, bounded_str, type_name

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.sets(st.integers(), max_size=4)
        | st.frozensets(st.text(), max_size=4)
        | st.builds(bytearray, st.binary())
    ),
    max_leaves=10,
)
errors = st.builds(
    lambda cls, args: cls(*args),
    st.sampled_from([ValueError, KeyError, OSError, SystemExit, Exception]),
    st.lists(st.integers(0, 9) | st.text(max_size=5), max_size=2),
)


@given(plain | errors)
def test_a_short_text_is_the_one_that_python_makes(value):
    assert bounded_str(value, 10_000) == str(value)
    assert bounded_repr(value, 10_000) == repr(value)


@given(plain | errors, st.integers(0, 30))
def test_a_long_text_is_cut(value, most):
    for bounded, whole in ((bounded_str, str(value)), (bounded_repr, repr(value))):
        text = bounded(value, most)
        assert len(text) <= most or len(whole) <= most
        if len(whole) <= most:
            assert text == whole


class Untellable(BaseException):
    """Raises what it is given whenever it is looked at."""

    def __init__(self, error):
        self.error = error

    def __str__(self):
        raise self.error

    __repr__ = __str__


class Text(str):
    __slots__ = ()

    def __getitem__(self, _):
        raise AssertionError("it was cut by its own method")

    __len__ = __iter__ = __getitem__


class Wordy:
    def __str__(self):
        return Text("x" * 1_000)

    __repr__ = __str__


class Nameless(type):
    def __getattribute__(cls, name):
        raise SystemExit(name)


@pytest.mark.parametrize(
    "error",
    [ValueError(), SystemExit(3), GeneratorExit(), MemoryError(), RecursionError(), Untellable(0)],
    ids=lambda error: type(error).__name__,
)
def test_an_object_that_raises_whatever_it_likes_has_a_text(error):
    value = Untellable(error)
    name = type(error).__name__
    assert bounded_str(value, 100) == f"an Untellable whose str raises {name}"
    assert bounded_repr([value], 100) == f"a list whose repr raises {name}"


def test_an_interruption_passes_and_in_the_main_thread_ctrl_c():
    for bounded in (bounded_str, bounded_repr):
        with pytest.raises(Interrupted):
            bounded(Untellable(Interrupted()), 100)
        with pytest.raises(KeyboardInterrupt):
            bounded(
                [Untellable(KeyboardInterrupt())]
                if bounded is bounded_repr
                else Untellable(KeyboardInterrupt()),
                100,
            )
    texts = []
    value = Untellable(KeyboardInterrupt())
    thread = threading.Thread(target=lambda: texts.append(bounded_str(value, 100)))
    thread.start()
    thread.join()
    assert texts == ["an Untellable whose str raises KeyboardInterrupt"]


def test_names_are_read_without_the_class():
    class Cls(metaclass=Nameless):
        pass

    assert type_name(Cls()) == "Cls"
    assert type_name(Cls) == "Nameless"
    assert type_name(1) == "int"
    assert type_name(threading.Lock()) == "lock"
    assert type_name(type("x" * 1_000_000, (), {})()) == "x" * 200
    # A character that is cut leaves nothing of itself.
    assert type_name(type("é" * 1_000, (), {})()) == "é" * 100
    assert type_name(type("x" + "é" * 1_000, (), {})()) == "x" + "é" * 99


def test_what_only_is_a_subclass_of_str_is_read_as_one():
    assert bounded_str(Wordy(), 10) == "xxxxxxx..."
    text = bounded_repr(Wordy(), 1_000)
    assert (type(text), text) == (str, "x" * 1_000)
    assert type(bounded_str(Text("a"), 10)) is str


def test_what_is_huge_is_not_worded_whole():
    huge = "x" * (20 << 20)
    looked_at = []

    class Seen:
        def __repr__(self):
            looked_at.append(self)
            return "seen"

    for value in (huge, huge.encode(), [huge] * 1_000, {huge: huge}, (1 << 10_000_000,)):
        assert len(bounded_repr(value, 200)) <= 200
        assert len(bounded_str(ValueError(value), 200)) <= 200
        assert len(bounded_str(KeyError(value), 200)) <= 200
    assert bounded_str(1 << 10_000_000, 200) == "<an int of 10000001 bits>"
    assert len(bounded_repr([Seen()] * 1_000_000, 200)) == 200
    assert len(looked_at) < 100


def test_what_contains_itself_has_an_end():
    looped: list = []
    looped += [looped, looped]
    assert len(bounded_repr(looped, 10_000)) < 20_000
    deep = ValueError("x")
    for _ in range(1_000_000):
        deep = ValueError(deep)
    assert bounded_str(deep, 100) == "..."
    while deep.args[0] != "x":
        deep = deep.args[0]


def test_a_container_that_changes_meanwhile():
    values: dict = {}

    class Adds:
        def __repr__(self):
            values[len(values)] = 1
            return "adds"

    values[0] = Adds()
    values[1] = Adds()
    assert bounded_repr(values, 100) == "a dict whose repr raises RuntimeError"

    class Clears:
        def __repr__(self):
            del listed[:]
            return "clears"

    listed = [Clears(), Clears()]
    assert bounded_repr(listed, 100) == "[clears]"
