from typing import final

__all__ = ["Backlog"]

@final
class Backlog: ...
