"""The messages of the runtime: what a process says to its executor, and is told by it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import pytest

import rabble
from rabble import messages
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.registry import default_registry


def test_the_system_messages_stay_here() -> None:
    for cls in messages.LOCAL_CLASSES:
        assert cls not in default_registry
        assert cls.__dataclass_params__.frozen
        # Neither does one have room for more.
        assert cls.__dictoffset__ == 0
        assert cls.__match_args__ == tuple(field.name for field in dataclasses.fields(cls))
        assert inspect.getdoc(cls)
        # But for what supervisors say to the runtime alone.
        assert cls.__name__ in {*messages.__all__, "EndService", "RunService"}


def test_system_messages_have_their_defaults() -> None:
    node = NodeId("local", "127.0.0.1:1")
    pid = Pid("p", node)
    assert not messages.CancelTimer(CorrelationId(pid)).acknowledge
    assert messages.Stop(pid).reason is None
    assert messages.Ask(pid, 1, 2).tag is None
    assert messages.DownReason("stopped").detail == ""
    with pytest.raises(ValueError, match="no_process"):
        messages.DownReason("gone", "")
    assert messages.DeadLetterReason("no_process") is messages.DeadLetterReason.NO_PROCESS
    match messages.Down(pid, messages.DownReason("crashed", "ValueError")):
        case messages.Down(who, messages.DownReason("crashed", detail)):
            assert (who, detail) == (pid, "ValueError")
        case other:
            pytest.fail(f"{other} did not match")


def test_what_is_compiled_is_as_the_other_messages() -> None:
    pid = Pid("p", NodeId("local", "127.0.0.1:1"))
    ask = messages.Ask(pid, {"a": 1}, 10, tag=[1])
    for again in (copy.copy(ask), copy.deepcopy(ask), pickle.loads(pickle.dumps(ask))):
        assert again == ask and repr(again) == repr(ask) and again is not ask
    assert dataclasses.replace(ask, timeout_ms=5) != ask
    assert repr(messages.Reply(1, "x")) == "Reply(tag=1, value='x')"
    assert hash(messages.Reply(1, 2)) == hash(messages.Reply(1, 2))
    with pytest.raises(AttributeError):
        ask.tag = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        messages.Ask(pid)  # type: ignore[call-arg]
    match messages.Reply("tag", 3):
        case messages.Reply(tag, value):
            assert (tag, value) == ("tag", 3)


def test_a_reply_goes_to_who_asked_with_what_it_asked_by() -> None:
    pid = Pid("p", NodeId("local", "127.0.0.1:1"))
    cid = CorrelationId(pid, None, 1)
    answer = rabble.reply("yes", pid, cid)
    assert (answer.to, answer.msg, answer.sender, answer.correlation_id) == (pid, "yes", None, cid)
    # Nobody asked: that is an answer to nobody, and no error.
    assert rabble.reply("yes", None, None).to is None
    with pytest.raises(TypeError, match="Envelope: to must be a Pid or None"):
        rabble.reply("yes", "p", cid)  # type: ignore[arg-type]
