"""How a call ends whose answer cannot come: the exception for each reason."""

from __future__ import annotations

from typing import TypeVar, assert_never

from rabble._core.ids import NodeId, Pid
from rabble._core.messages import CallFailed
from rabble.errors import (
    DecodeError,
    EncodeError,
    NodeStopped,
    NoProcess,
    NotConnected,
    ProcessCrashed,
    QueueFull,
    RabbleError,
)
from rabble.messages import Bounced, DeadLetter, DeadLetterReason

__all__ = ["asks_full", "call_failure", "end_failure", "node_failure"]

E = TypeVar("E", bound=RabbleError)


def call_failure(to: Pid, letter: DeadLetter | Bounced) -> RabbleError:
    """The error of a call whose request, or its reply, became a dead letter.

    :param to: whom the request was sent to.
    :param letter: of this node, or what another one told of its own.
    """
    if isinstance(letter, DeadLetter):
        envelope = letter.envelope
        is_reply = (
            envelope.correlation_id is not None and envelope.to == envelope.correlation_id.pid
        )
        about = envelope.sender if is_reply else envelope.to
        node = to.node if about is None else about.node
        passed_on = False
    else:
        about, node = letter.about, letter.node
        # Of a request the receiver is named where it is of that node, which these three are not.
        is_reply = about is not None and letter.reason in REPLY_REASONS
        # That node tells only of its own pids: so it was for another node's.
        passed_on = about is None and letter.reason in REPLY_REASONS
    # The request may have been passed on.
    pid = about or to
    detail, crash = letter.detail, letter.crash
    what = f"the reply of {pid}" if is_reply else f"the message for {pid}"
    if passed_on:
        what = f"the request, which {pid} passed on,"
    match letter.reason:
        case DeadLetterReason.PROCESS_CRASHED:
            return crashed(pid, node, detail, crash)
        case DeadLetterReason.NODE_SHUTDOWN:
            text = f"the node of {pid} stopped before the message was delivered"
            return made(NodeStopped(text), pid, node, detail)
        case DeadLetterReason.MAILBOX_FULL:
            return made(QueueFull(f"the mailbox of {pid} is full"), pid, node, detail)
        case DeadLetterReason.PEER_BUSY:
            if is_reply:
                text = f"{what} was dropped: too much waits already for this node"
            elif passed_on:
                text = f"{what} was dropped: too much waits already for the node that it was for"
            else:
                text = f"too much waits already for the node of {pid}"
            return made(QueueFull(text), pid, node, detail)
        case DeadLetterReason.NOT_CONNECTED:
            text = f"no connection leads to the node of {pid}"
            if passed_on:
                text = f"no connection leads from {node} to where {pid} passed the request on"
            return made(NotConnected(text), pid, node, detail)
        case DeadLetterReason.UNENCODABLE:
            text = f"{what} cannot be encoded: {detail or 'no reason is known'}"
            return made(EncodeError(text), pid, node, detail)
        case DeadLetterReason.UNDECODABLE:
            where = "here" if is_reply else f"by {node}"
            text = f"{what} cannot be decoded {where}: {detail or 'no reason is known'}"
            return made(DecodeError(text), pid, node, detail)
        case DeadLetterReason.NO_RECEIVER:
            text = f"{pid} passed the request on to None, which is nobody"
            return made(NoProcess(text), pid, node, detail)
        case DeadLetterReason.CHANGED:
            text = f"{what} was changed after it was sent"
            return made(EncodeError(text), pid, node, detail)
        case DeadLetterReason.NO_PROCESS | DeadLetterReason.REFUSED | DeadLetterReason.LOST:
            text = f"{pid} could not be reached: {letter.reason.value}"
            return made(NoProcess(text), pid, node, detail)
        case _:
            assert_never(letter.reason)


def end_failure(to: Pid, failed: CallFailed) -> RabbleError:
    """The error of a call whose request was taken by what then ended.

    :param to: whom the request was sent to.
    """
    pid = failed.about or to
    if failed.kind == "crashed":
        return crashed(pid, pid.node, failed.detail, failed.crash)
    if failed.kind == "disconnected":
        return node_failure(to, pid, failed.detail)
    text = f"{pid} stopped before it replied"
    if failed.detail:
        text += f": {failed.detail}"
    return made(NoProcess(text), pid, pid.node, failed.detail)


def node_failure(to: Pid, holder: Pid, why: str) -> RabbleError:
    """The error of a call whose request is with a node that went.

    :param to: whom the request was sent to.
    :param holder: who has it now, there.
    :param why: it went, as text.
    """
    text = f"the connection to {holder.node} ended before {holder} replied: {why}"
    if holder != to:
        text += f" ({to} had passed the request on)"
    return made(NotConnected(text), holder, holder.node, why)


def asks_full(to: Pid, waiting: int) -> RabbleError:
    """The error of an `Ask` that was not sent, since so many wait for their ends."""
    text = f"{waiting} requests of processes wait already, which is Limits.asks_max"
    return made(QueueFull(text), to, to.node, "")


def crashed(pid: Pid, node: NodeId, detail: str, crash: int) -> RabbleError:
    """The error of a call whose process raised."""
    text = f"{pid} crashed: {detail}" if detail else f"{pid} crashed"
    if crash:
        text += f" (crash {crash} in the log of {node})"
    else:
        text += f" (the log of {node} has the traceback)"
    error = made(ProcessCrashed(text), pid, node, detail)
    error.crash = crash
    return error


#: Why another node says that a message from there was not sent.
REPLY_REASONS = (
    DeadLetterReason.UNENCODABLE,
    DeadLetterReason.PEER_BUSY,
    DeadLetterReason.NOT_CONNECTED,
)


def made(error: E, pid: Pid, node: NodeId, detail: str) -> E:
    """An error with what it is about."""
    error.pid, error.node, error.detail = pid, node, detail
    return error
