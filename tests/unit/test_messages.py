"""The messages of the runtime: what a process says to its executor, and is told by it."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from rabble import messages
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.registry import default_registry


def test_the_system_messages_stay_here() -> None:
    for cls in messages.LOCAL_CLASSES:
        assert cls not in default_registry
        assert cls.__dataclass_params__.frozen
        assert "__slots__" in cls.__dict__
        assert cls.__match_args__ == tuple(field.name for field in dataclasses.fields(cls))
        assert inspect.getdoc(cls)
        assert cls.__name__ in messages.__all__


def test_system_messages_have_their_defaults() -> None:
    node = NodeId("local", "127.0.0.1:1")
    pid = Pid("p", node)
    assert not messages.CancelTimer(CorrelationId(pid)).acknowledge
    assert messages.Stop(pid).reason is None
    assert messages.DownReason("stopped").detail == ""
    with pytest.raises(ValueError, match="no_process"):
        messages.DownReason("gone", "")
    assert messages.DeadLetterReason("no_process") is messages.DeadLetterReason.NO_PROCESS
    match messages.Down(pid, messages.DownReason("crashed", "ValueError")):
        case messages.Down(who, messages.DownReason("crashed", detail)):
            assert (who, detail) == (pid, "ValueError")
        case other:
            pytest.fail(f"{other} did not match")
