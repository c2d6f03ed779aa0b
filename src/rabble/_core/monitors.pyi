"""Monitors: which process is told of whose end, on this node and across connections."""

from typing import final

__all__ = ["Monitors"]

@final
class Monitors: ...
