from typing import final

__all__ = ["UnfinishedMessages"]

@final
class UnfinishedMessages:
    def __new__(cls, bytes_max: int) -> UnfinishedMessages: ...
    @property
    def bytes(self) -> int: ...
    @property
    def bytes_max(self) -> int: ...
