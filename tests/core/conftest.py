"""When the garbage collector comes while the core is tested, and when memory does not."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from tests.support import TINY


@pytest.fixture(autouse=TINY)
def _collections_at_every_allocation() -> Iterator[None]:
    """In the tiny build: it looks at what is half made or half gone, and cycles end at once.

    What was there before is put aside: only so is a collection short enough.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture
def starvation() -> Iterator[tuple[Callable[[int, int], None], Callable[[], None]]]:
    """`starve(first, end)` has those allocations fail, counted from now on; `feed()` ends that.

    The collector rests: what it calls (Hypothesis counts its time) would fail as well.
    """
    testcapi = pytest.importorskip("_testcapi")
    gc.disable()
    yield testcapi.set_nomemory, testcapi.remove_mem_hooks
    gc.enable()
