from types import CodeType, TracebackType
from typing import Any

__all__ = ["traceback_entry"]

def traceback_entry(
    following: TracebackType | None, code: CodeType, namespace: dict[str, Any], line: int
) -> TracebackType: ...
