"""The executor, slow and obviously right: one deque and one dict.

It knows processes, Spawn, Stop, Monitor, Demonitor, mailbox limits and dead letters, and takes a
script instead of a process: what `receive` returns is handed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

Letter = tuple[str, Any, str | None]  # to, message, sender


class ReferenceExecutor:
    """Runs scripts `(message, sender) -> list of letters`, or raises, under names."""

    def __init__(self) -> None:
        self.queue: deque[Letter] = deque()
        self.scripts: dict[str, Callable[[Any, str | None], list[Letter]]] = {}
        self.limits: dict[str, int] = {}
        self.watchers: dict[str, list[str]] = {}
        self.trace: list[tuple[str, Any, str | None]] = []
        self.dead: list[tuple[str, Any, str]] = []

    def spawn(
        self,
        name: str,
        script: Callable[[Any, str | None], list[Letter]],
        limit: int | None,
    ) -> bool:
        if name in self.scripts:
            return False
        self.scripts[name] = script
        if limit is not None:
            self.limits[name] = limit
        return True

    def send(self, to: str, message: Any, sender: str | None) -> None:
        # What the executor itself says takes no place in a mailbox.
        waiting = sum(1 for letter in self.queue if letter[0] == to and letter[2] != "executor")
        if sender != "executor" and to in self.scripts and waiting >= self.limits.get(to, 10**9):
            self.dead.append((to, message, "MAILBOX_FULL"))
            return
        self.queue.append((to, message, sender))

    def run(self) -> None:
        while self.queue:
            to, message, sender = self.queue.popleft()
            if to == "executor":
                self.control(message, sender)
            elif to not in self.scripts:
                self.dead.append((to, message, "NO_PROCESS"))
            else:
                self.trace.append((to, message, sender))
                try:
                    letters = self.scripts[to](message, sender)
                except RuntimeError:
                    self.remove(to, "crashed")
                    self.dead.append((to, message, "PROCESS_CRASHED"))
                    continue
                for letter in letters:
                    self.send(letter[0], letter[1], to)

    def control(self, message: Any, sender: str | None) -> None:
        what, name = message
        if what == "stop" and name in self.scripts:
            self.remove(name, "stopped")
        elif what == "monitor" and sender in self.scripts:
            if name not in self.scripts:
                self.send(sender, ("down", name, "no_process"), "executor")
            elif sender not in self.watchers.setdefault(name, []):
                self.watchers[name].append(sender)
        elif what == "demonitor" and sender in self.watchers.get(name, []):
            self.watchers[name].remove(sender)

    def remove(self, name: str, reason: str) -> None:
        del self.scripts[name]
        self.limits.pop(name, None)
        for others in self.watchers.values():
            if name in others:
                others.remove(name)
        for watcher in self.watchers.pop(name, []):
            self.send(watcher, ("down", name, reason), "executor")
