"""What rabble raises.

`RabbleError` is the root: whoever catches it catches what rabble raises of its own. A class also
has the standard base that says what kind of failure it is, so that `except TimeoutError` takes a
`CallTimeout`. An argument that cannot be used is a plain `TypeError` or `ValueError`, and what the
system refuses a plain `OSError`.
"""

from __future__ import annotations

from rabble._core.errors import DecodeError, DecodeLimitError, EncodeError, RabbleError

__all__ = [
    "CallTimeout",
    "DecodeError",
    "DecodeLimitError",
    "EncodeError",
    "ForkedNode",
    "JoinFailed",
    "JoinTimeout",
    "KeyFileError",
    "NameTaken",
    "NoProcess",
    "NodeStopped",
    "NotConnected",
    "ProcessCrashed",
    "QueueFull",
    "RabbleError",
    "ShutdownTimeout",
    "SpawnRefused",
    "SupervisorFailed",
]


# The core raises these, and defines them; a traceback shows the name that they are imported by.
for _error in (RabbleError, EncodeError, DecodeError, DecodeLimitError):
    _error.__module__ = __name__


class NodeStopped(RabbleError):
    """The node was shut down, or is being shut down, and takes nothing more."""


class ForkedNode(RabbleError):
    """The node belongs to the parent of this forked process, where alone it works."""


class KeyFileError(RabbleError, ValueError):
    """A file of keys or certificates cannot be used; says which, why, and never what is in it."""


class NameTaken(RabbleError, ValueError):
    """A process or service of that name runs already."""


class QueueFull(RabbleError):
    """A bound of `Limits` is reached; nothing was queued."""


class NoProcess(RabbleError):
    """No process or service of that pid runs; or the one that took the message ended in order."""


class NotConnected(NoProcess):
    """No connection leads to the node of that pid, or it ended before the answer came."""


class ProcessCrashed(RabbleError):
    """The process raised: while it handled the message, or before it had answered.

    `str` says what it raised, and under which number the traceback is in the log of its node.
    """

    @property
    def error_type(self) -> str:
        """The name of the class of what it raised; empty if it is not known."""
        return self.detail.partition(":")[0]

    @property
    def error_text(self) -> str:
        """The text of what it raised."""
        return self.detail.partition(": ")[2]


class SpawnRefused(RabbleError):
    """Another node did not spawn what it was asked for; says why."""


class JoinFailed(RabbleError):
    """A node could not be joined; says why, and `node` who refused, if that is known.

    :ivar code: the code of the refusal, as `ClusterStatus.refusals` counts it: `AUTH`, `BANNED` and
        so on; `UNRESOLVED` if the host has no address, `REFUSED` if nobody listens there. Empty if
        it came to no dial.
    """

    code: str = ""


class JoinTimeout(JoinFailed, TimeoutError):
    """A node was not up in time; says how the last dial failed. It is joined all the same."""


class CallTimeout(RabbleError, TimeoutError):
    """No answer came in time."""


class ShutdownTimeout(RabbleError, TimeoutError):
    """The node did not end in time; says what keeps it."""


class SupervisorFailed(RabbleError):
    """A supervisor gave up and has ended its children; says why."""
