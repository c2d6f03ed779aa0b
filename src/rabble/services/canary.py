"""The pid that answers canaries of other nodes' gates, as the executor comes to it."""

from __future__ import annotations

from rabble._core.envelope import Envelope
from rabble._core.ids import NodeId, Pid
from rabble._core.messages import DeadLetterReason
from rabble._runtime import LocalRuntime
from rabble.addresses import CALLS_NAME, CANARY_NAME, RESERVED_GROUP

__all__ = ["CanaryPerch", "canary_pid"]


def canary_pid(node_id: NodeId) -> Pid:
    """Whom a gate's canaries through that node are sent to."""
    return Pid(CANARY_NAME, node_id, RESERVED_GROUP)


class CanaryPerch:
    """Answers whatever is asked of its pid. `deliver` is the executor's callback for `pid`.

    :param runtime: of the node.
    """

    def __init__(self, runtime: LocalRuntime) -> None:
        self.pid = canary_pid(runtime.node_id)
        self._runtime = runtime

    def deliver(self, envelope: Envelope) -> None:
        """One came. Runs in the executor's thread, behind all that stood in its queue."""
        executor = self._runtime.executor
        sender = envelope.sender
        if sender is not None and sender == Pid("executor", self.pid.node, RESERVED_GROUP):
            # It says that an answer went to nobody: to answer that would go on for ever.
            return
        asks = sender is not None and (sender.group, sender.name) == (RESERVED_GROUP, CALLS_NAME)
        if not asks or envelope.correlation_id is None:
            executor.undeliverable(envelope, DeadLetterReason.REFUSED)
            return
        reply = Envelope(envelope.sender, None, self.pid, envelope.correlation_id)
        if not executor.post(reply):
            self._runtime.undelivered(reply, DeadLetterReason.NODE_SHUTDOWN)
