"""What failed for itself, kept by the test that looks at it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from rabble.cluster.failures import Failures


class Noted:
    """A `Failures`, and what it was told."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.count = 0
        self.failures = Failures("test", self.report, self.add)

    def add(self) -> None:
        self.count += 1

    def report(self, level: int, words: Callable[[], str]) -> None:
        assert level == logging.ERROR
        self.texts.append(words())
