"""The backlog: what an executor has to know of what stands in its run queue."""

from typing import final

__all__ = ["Backlog"]

@final
class Backlog: ...
