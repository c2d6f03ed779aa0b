from typing import final

from rabble._core.executor import Executor

__all__ = ["SystemMessages"]

@final
class SystemMessages:
    def __new__(cls, executor: Executor) -> SystemMessages: ...
