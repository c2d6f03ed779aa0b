from typing import final

__all__ = ["Idle"]

@final
class Idle:
    def __new__(cls, spin_us: int) -> Idle: ...
