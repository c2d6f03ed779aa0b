"""What the core's tests are given: an executor, other nodes around it, and memory that runs out."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from rabble._core.executor import Executor
from tests.core.peers import Hub
from tests.core.sockets import descriptors
from tests.core.starvation import Starvation
from tests.support import TINY, Witness, bare_executor


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
def nothing_is_left() -> Iterator[None]:
    """No descriptor and no thread is left of what a test made."""
    gc.collect()
    before = len(descriptors()), threading.active_count()
    yield
    gc.collect()
    after = len(descriptors()), threading.active_count()
    # Fewer are well: what a failed test held goes with its report.
    assert after[0] <= before[0] and after[1] <= before[1], (before, after)


@pytest.fixture
def starvation() -> Iterator[Starvation]:
    """The collector rests: what it calls (Hypothesis counts its time) would fail as well."""
    testcapi = pytest.importorskip("_testcapi")
    gc.disable()
    yield Starvation(testcapi.set_nomemory, testcapi.remove_mem_hooks)
    gc.enable()


@pytest.fixture
def witness() -> Witness:
    """What `executor` tells the layer above it."""
    return Witness()


@pytest.fixture
def executor(witness: Witness) -> Iterator[Executor]:
    """An executor by itself, without a thread."""
    with bare_executor(witness=witness) as made:
        yield made


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An executor that other nodes, which the test plays, can connect to."""
    with Hub() as made:
        yield made
