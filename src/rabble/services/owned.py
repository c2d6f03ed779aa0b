"""Services that are children of a supervisor: the pid that is asked for one."""

from __future__ import annotations

from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.errors import Interrupted
from rabble._core.ids import Pid
from rabble._core.messages import SERVICES_NAME, DeadLetterReason, EndService, RunService
from rabble._runtime import LocalRuntime
from rabble.addresses import RESERVED_GROUP
from rabble.families.stand_ins import Note
from rabble.services.service import Service, ServiceNode, is_owned, start_service
from rabble.texts import cut, described

__all__ = ["OwnedServices"]


class OwnedServices:
    """Starts and ends the services of supervisors. All of it runs in the executor's thread.

    No peer reaches its pid. It does not wait for a service: `start` of a thread returns when that
    has begun.

    :param runtime: of the node.
    :param node: the `Node`, for the handlers' use.
    """

    def __init__(self, runtime: LocalRuntime, node: ServiceNode) -> None:
        self.pid = Pid(SERVICES_NAME, runtime.node_id, RESERVED_GROUP)
        self._runtime = runtime
        self._node = node

    def deliver(self, envelope: Envelope) -> None:
        """A request came."""
        msg = envelope.msg
        if type(msg) is EndService:
            for service in list(self._runtime.services):
                if isinstance(service, Service) and is_owned(service, msg.pid, msg.owner):
                    service.stop()
        elif type(msg) is RunService and envelope.sender is not None:
            reply = Envelope(envelope.sender, self._run(msg), self.pid, envelope.correlation_id)
            if not self._runtime.executor.post(reply):
                self._runtime.undelivered(reply, DeadLetterReason.NODE_SHUTDOWN)
        else:
            self._runtime.executor.undeliverable(envelope, DeadLetterReason.REFUSED)

    def _run(self, msg: RunService) -> list[Any]:
        begun = Envelope(msg.owner, Note("up"))
        try:
            service = start_service(
                self._runtime, self._node, msg.make, msg.name, msg.group, "stop", begun
            )
        except Interrupted:
            raise
        except BaseException as error:
            # The name is taken, or there is no thread: that is the child's failure.
            return ["refused", cut(described(BaseException.with_traceback(error, None)))]
        try:
            self._runtime.executor.own(service.pid, msg.owner)
        except BaseException:
            service.stop()
            raise
        return ["spawned", service.pid]
