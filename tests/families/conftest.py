"""An executor without a thread, on a clock that is set by hand, as those of the core have it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rabble._core.executor import Executor
from tests.core.conftest import starvation as starvation
from tests.support import HandClock, Witness, bare_executor


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def executor(clock: HandClock, witness: Witness) -> Iterator[Executor]:
    with bare_executor(clock=clock, witness=witness) as executor:
        yield executor
