"""In the tiny build the garbage collector comes at every chance while the core is tested."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.support import TINY


@pytest.fixture(autouse=TINY)
def _collections_at_every_allocation() -> Iterator[None]:
    """What is half made or half gone is looked at by the collector, and cycles end at once.

    What was there before is put aside: only so is a collection short enough.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
