"""Processes that look after others: Python above the core, as a user could write it."""

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
