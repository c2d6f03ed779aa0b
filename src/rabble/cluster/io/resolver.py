"""Host names to addresses, without blocking the thread that asks."""

from __future__ import annotations

import collections
import functools
import socket
import threading
from collections.abc import Callable
from typing import Any

from rabble.cluster.decide.address import split_address
from rabble.reports import described
from rabble.steps import take_steps

__all__ = ["Address", "Resolver"]

#: A socket family, and an address of it as `socket.connect` takes it.
Address = tuple[int, tuple[Any, ...]]

#: What is done with the addresses that were found, or with why there are none.
Answer = Callable[["list[Address] | OSError"], None]
Question = tuple[str, int, Answer]

THREADS_MAX = 2


class Resolver:
    """Looks host names up in threads of its own; what is numeric needs none.

    :param name: of its threads, which are there as long as there is something to look up.
    :param failed: called with what ends one of them, in that thread.

    `close` does not wait for a look-up that goes on; its thread ends with it. `resolve` and `close`
    are for one thread.
    """

    def __init__(self, name: str, failed: Callable[[BaseException], None]) -> None:
        self._name = name
        self._failed = failed
        self._questions: collections.deque[Question] = collections.deque()
        #: The threads that have not found it empty yet. One adds itself before it was started.
        self._at_work: set[object] = set()
        self._closed = False

    def resolve(self, addr: str, answer: Answer) -> None:
        """Call `answer` with the addresses of `host:port`, or with why there are none.

        At once if the host is numeric, otherwise from another thread. It must not block.

        :raises ValueError: if `addr` is no address.
        """
        host, port = split_address(addr)
        try:
            found = look_up(host, port, socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            pass
        else:
            answer(found)
            return
        if self._closed:
            return
        self._questions.append((host, port, answer))
        if len(self._at_work) >= THREADS_MAX:
            return
        token = object()
        self._at_work.add(token)
        try:
            threading.Thread(
                target=take_steps,
                args=(
                    self._failed,
                    functools.partial(self._work, token),
                    functools.partial(self._at_work.discard, token),
                ),
                name=self._name,
                daemon=False,
            ).start()
        except RuntimeError as error:
            # No more threads. Those that are there do it; otherwise it cannot be done now.
            self._at_work.discard(token)
            if not self._at_work:
                self._questions.clear()
                answer(OSError(str(error)))

    def _work(self, token: object) -> None:
        while True:
            try:
                host, port, answer = self._questions.popleft()
            except IndexError:
                # First this, then the look whether something came meanwhile: whoever asks adds to
                # the queue first, and then looks whether somebody is at work.
                self._at_work.discard(token)
                if not self._questions:
                    return
                self._at_work.add(token)
                continue
            try:
                found: list[Address] | OSError = look_up(host, port)
            except OSError as error:
                found = error
            except BaseException as error:
                # A name that no resolver takes (UnicodeError), or whatever a patched one raises.
                found = OSError(described(error))
            answer(found)

    def close(self) -> None:
        """Take no more questions, and answer none that was not begun."""
        self._closed = True
        self._questions.clear()


def look_up(host: str, port: int, flags: int = 0) -> list[Address]:
    """All addresses of a host, in the system's order. May block for long."""
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags
    )
    return list(dict.fromkeys((int(family), where) for family, _, _, _, where in found))
