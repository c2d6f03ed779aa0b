"""What an executor does while it has nothing to do, and how it is called back."""

from typing import final

__all__ = ["Idle"]

@final
class Idle:
    def __new__(cls, spin_us: int) -> Idle: ...
