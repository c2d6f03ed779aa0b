"""Cells that have a class which another one replaced."""

from __future__ import annotations

import functools

from rabble._cells import adopt


def replaced(cls):
    new = type(cls)(cls.__name__, cls.__bases__, dict(vars(cls), __slots__=()))
    adopt(cls, new)
    return new


def test_whatever_hides_a_function():
    class Plain:
        __slots__ = ()

        @functools.cached_property
        def cached(self):
            return __class__

        @staticmethod
        def static():
            return __class__

        part = functools.partialmethod(lambda self, _: __class__, 1)

    assert replaced(Plain).static() is not Plain

    class Hidden:
        __slots__ = ()
        part = functools.partialmethod(lambda self, _: __class__, 1)

    new = replaced(Hidden)
    assert new().part() is new


def test_other_cells_are_left():
    class Other:
        pass

    class One:
        __slots__ = ()

        def other(self):
            return Other, later

        def own(self):
            return __class__

    new = replaced(One)
    assert new().own() is new
    later = 1
    assert new().other() == (Other, 1)


def test_a_program_behind_a_default_value_has_an_end():
    class Deep:
        __slots__ = ()
        whole = [[n] for n in range(50_000)]

        def own(self):
            return __class__

    new = replaced(Deep)
    assert new().own() is new
