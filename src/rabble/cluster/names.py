"""Host names to addresses, without blocking the thread that asks."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rabble.cluster.config import split_address

__all__ = ["Address", "Resolver"]

#: A socket family, and an address of it as `socket.connect` takes it.
Address = tuple[int, tuple[Any, ...]]

THREADS_MAX = 2


class Resolver:
    """Looks host names up in threads of its own; what is numeric needs none.

    :param name: of its threads, which are started when they are first needed.

    `close` does not wait for a look-up that goes on; its thread ends with it.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix=name)

    def resolve(self, addr: str, answer: Callable[[list[Address] | OSError], None]) -> None:
        """Call `answer` with the addresses of `host:port`, or with why there are none.

        At once if the host is numeric, otherwise from another thread. It must not block.

        :raises ValueError: if `addr` is no address.
        """
        host, port = split_address(addr)
        try:
            answer(look_up(host, port, socket.AI_NUMERICHOST))
            return
        except OSError:
            pass
        self._pool.submit(self._look_up, host, port, answer)

    def _look_up(
        self, host: str, port: int, answer: Callable[[list[Address] | OSError], None]
    ) -> None:
        try:
            found: list[Address] | OSError = look_up(host, port)
        except (OSError, UnicodeError) as error:
            found = error if isinstance(error, OSError) else OSError(str(error))
        answer(found)

    def close(self) -> None:
        """Take no more questions."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def look_up(host: str, port: int, flags: int = 0) -> list[Address]:
    """All addresses of a host, in the system's order. May block for long."""
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags
    )
    return list(dict.fromkeys((int(family), where) for family, _, _, _, where in found))
