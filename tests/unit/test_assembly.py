"""How a node is put together: what cannot be used, and what is left if it cannot be made."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import pytest

import rabble
from rabble import Limits, NodeStopped, _shutdown
from tests.support import PATIENCE_S


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_node_that_gets_no_thread_leaves_nothing_behind(
    allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, left = threading.Thread.start, iter(range(allowed))

    def start_few(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    gc.collect()
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(threading.Thread, "start", start_few)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        rabble.rouse("few@127.0.0.1:0")
    for thread in threading.enumerate():
        if thread.name.startswith("rabble:few:"):
            thread.join(PATIENCE_S)
    del thread
    gc.collect()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("bad", [{"spin_us": -1}, {"spin_us": 2_000_000}, {"spin_us": 1.5}])
def test_a_bad_option_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="spin_us must be"):
        rabble.rouse(**bad)
    with pytest.raises(ValueError, match="is no node id"):
        rabble.rouse("nonsense")
    with pytest.raises(TypeError, match="NodeId or its text"):
        rabble.rouse(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="calls_max must be an int, 1 to .*, not 0"):
        Limits(calls_max=0)


def test_a_node_that_is_roused_while_the_interpreter_ends_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "_SHUTTING_DOWN", True, raising=False)
    with pytest.raises(NodeStopped, match="the interpreter ends"):
        rabble.rouse("late@127.0.0.1:0")
    assert not any(each.name.startswith("rabble:late:") for each in threading.enumerate())
    assert not _shutdown.running
