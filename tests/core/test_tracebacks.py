"""Tracebacks of frames that never ran."""

from __future__ import annotations

import sys
import traceback
from types import CodeType

import pytest

from rabble._core.tracebacks import traceback_entry


def code(name: str) -> CodeType:
    return (lambda: None).__code__.replace(co_name=name, co_qualname=name, co_filename="x.py")


def test_it_shows_the_places_and_holds_no_caller() -> None:
    inner = traceback_entry(None, code("inner"), {"__name__": "inside"}, 7)
    outer = traceback_entry(inner, code("outer"), {"__name__": "outside"}, 3)
    assert outer.tb_next is inner
    assert [(place.name, place.lineno) for place in traceback.extract_tb(outer)] == [
        ("outer", 3),
        ("inner", 7),
    ]
    assert outer.tb_frame.f_back is None
    assert dict(outer.tb_frame.f_locals) == {}
    assert outer.tb_frame.f_globals == {"__name__": "outside"}


def test_the_interpreter_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError("so").with_traceback(traceback_entry(None, code("inner"), {}, 7))
    sys.__excepthook__(ValueError, error, error.__traceback__)
    assert capsys.readouterr().err == (
        'Traceback (most recent call last):\n  File "x.py", line 7, in inner\nValueError: so\n'
    )


def test_what_is_no_traceback_is_refused() -> None:
    with pytest.raises(TypeError):
        traceback_entry(5, code("inner"), {}, 7)  # type: ignore[arg-type]
