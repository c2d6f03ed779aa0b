"""The dispatch table, slow and obviously right: a list of pairs."""

from __future__ import annotations

from typing import Any

from rabble import Pid


class ReferenceTable:
    def __init__(self) -> None:
        self.pairs: list[tuple[str, Any]] = []

    def get(self, pid: Pid) -> Any:
        return next((target for text, target in self.pairs if text == str(pid)), None)

    def insert(self, pid: Pid, target: Any) -> bool:
        if self.get(pid) is not None:
            return False
        self.pairs.append((str(pid), target))
        return True

    def discard(self, pid: Pid) -> Any:
        target = self.get(pid)
        self.pairs = [pair for pair in self.pairs if pair[0] != str(pid)]
        return target
