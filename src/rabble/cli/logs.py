"""The log of `rabble node`: the application's own, or one to standard error if it set up none."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TextIO

__all__ = ["logged"]

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class LastHandler(logging.StreamHandler[TextIO]):
    """Writes to what is standard error at that time."""

    def __init__(self) -> None:
        # Not of StreamHandler, which would set the stream.
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter(FORMAT))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


@contextlib.contextmanager
def logged(level: str | None) -> Iterator[None]:
    """Have each record that no handler of the application takes written to standard error.

    To be entered when the application's module was imported. What the application sets up later is
    its own as well: the handler is `logging.lastResort`, which `basicConfig` and `dictConfig` do
    not know, and which is asked for the records that have no other handler.

    :param level: of what is logged. If the application's module set up the log, this is for the
        logger `rabble` only. `None` is the application's own, or `warning`.
    """
    root = logging.getLogger()
    logger = logging.getLogger("rabble") if root.handlers else root
    last_resort_before, level_before = logging.lastResort, logger.level
    logging.lastResort = LastHandler()
    if level is not None:
        logger.setLevel(level.upper())
    level_then = logger.level
    try:
        yield
    finally:
        logging.lastResort = last_resort_before
        if logger.level == level_then:
            logger.setLevel(level_before)
