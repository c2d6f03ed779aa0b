"""What stands above the core in Python: supervisors, names and groups."""

from rabble.families.children import (
    Backoff,
    ChildCounts,
    ChildError,
    ChildInfo,
    ChildSpec,
    CountChildren,
    DeleteChild,
    Restart,
    RestartChild,
    StartChild,
    Strategy,
    TerminateChild,
    WhichChildren,
)
from rabble.families.supervisor import Supervisor

__all__ = [
    "Backoff",
    "ChildCounts",
    "ChildError",
    "ChildInfo",
    "ChildSpec",
    "CountChildren",
    "DeleteChild",
    "Restart",
    "RestartChild",
    "StartChild",
    "Strategy",
    "Supervisor",
    "TerminateChild",
    "WhichChildren",
]
