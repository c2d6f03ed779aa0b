"""Raises in the frames of rabble, at one place after the other, each time in a thread of its own.

What is raised in the few bytecodes that end the handling of an exception leaves the interpreter
with that exception at hand, and all that hangs on it, until the thread ends.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import rabble

__all__ = ["Raised", "at_every_bytecode", "at_every_place"]

PACKAGE = os.path.dirname(rabble.__file__) + os.sep


class Raised(KeyboardInterrupt):
    """What no handler expects, and asyncio's loops let through."""


def is_followed(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    # In a line-trace build the core has frames, too, which take no None.
    return file.startswith(PACKAGE) and not file.endswith((".pyx", ".pxd"))


def at_every_bytecode(do: Callable[[], Any], look: Callable[[int], Any], least: int = 100) -> None:
    """Raise before one bytecode after the other, as a signal handler may, until none is left.

    There are more than `least`: else nothing would be tested.
    """
    left = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if not is_followed(frame):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise Raised
        return trace

    def attempt() -> None:
        # CPython 3.12 looks whether any frame wants this when tracing begins, and not later.
        sys._getframe().f_trace_opcodes = True
        raising(do, trace)

    # What is raised in a finalizer is printed, and this is not about that.
    sys.unraisablehook = lambda unraisable: None
    for place in itertools.count(1):
        left = place
        in_a_thread(attempt)
        look(place)
        if left > 0:
            break
    assert place > least, place


def raising(do: Callable[[], Any], trace: Any) -> None:
    sys.settrace(trace)
    try:
        do()
    except Raised:
        pass
    finally:
        sys.settrace(None)


def in_a_thread(do: Callable[[], Any]) -> None:
    thread = threading.Thread(target=do)
    thread.start()
    thread.join()


def at_every_place(do: Callable[[], Any], look: Callable[[object], Any]) -> None:
    """Raise where each function is called, begins a line or returns, once each."""
    wanted = None
    seen: dict[object, None] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not is_followed(frame):
            return None
        place = (frame.f_code.co_filename, frame.f_lineno, event)
        if event != "exception" and place not in seen:
            seen[place] = None
            if place == wanted:
                raise Raised(place)
        return trace

    def attempt() -> None:
        seen.clear()
        in_a_thread(lambda: raising(do, trace))
        look(wanted)

    attempt()
    places = list(seen)
    assert len(places) > 20, places
    for place in places:
        wanted = place
        attempt()
