"""Raises one error at a chosen place of the code, once: at any line, call or return."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import rabble

#: A file below the package, a line, and `line`, `call` or `return`.
Place = tuple[str, int, str]

PACKAGE = f"{Path(rabble.__file__).parent}/"


class Tracer:
    """Notes the places that are come by, and raises at one of them the first time.

    :param files: that are looked at, below the package; all files of a folder if it ends in `/`.
    :param chosen: where to raise a `MemoryError`; `None` to look only.
    """

    def __init__(self, files: Sequence[str], chosen: Place | None = None) -> None:
        self.files = tuple(PACKAGE + file for file in files)
        self.chosen = chosen
        self.places: dict[Place, None] = {}
        self.has_raised = False

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Trace what this thread does inside of it."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self.files):
            return None
        if event != "exception":
            place = (frame.f_code.co_filename[len(PACKAGE) :], frame.f_lineno, event)
            self.places[place] = None
            if place == self.chosen and not self.has_raised:
                self.has_raised = True
                raise MemoryError(f"raised at {place}")
        return self._trace
