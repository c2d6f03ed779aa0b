"""Host names to addresses, without blocking the thread that asks."""

from __future__ import annotations

import collections
import contextlib
import functools
import socket
import threading
from collections.abc import Callable

from rabble.addresses import Address, split_address
from rabble.cluster.failures import Failures
from rabble.reports import described
from rabble.steps import take_steps

__all__ = ["Resolver"]

#: Called with the addresses that were found, or with why there are none.
Answer = Callable[["list[Address] | OSError"], None]
Name = tuple[str, int]

THREADS_MAX = 2
#: Names that are asked for at once. Beyond it each is answered by an error.
NAMES_MAX = 1_024
#: How many wait for the look-up of one name; beyond it the first is forgotten.
ANSWERS_MAX = 4


class Resolver:
    """Looks host names up in threads of its own; a numeric address needs none.

    :param name: of its threads, which are there as long as there is something to look up.
    :param failed: called with what ends one of them, in that thread.
    :param failures: is told of what ends a single look-up.

    A look-up may take the system for ever: how long it waits is for who asks to say. Asked again
    meanwhile for the same name, the resolver looks it up once.

    `close` does not wait for a look-up that goes on; its thread ends with it. `resolve` and `close`
    are for one thread.
    """

    def __init__(
        self, name: str, failed: Callable[[BaseException], None], failures: Failures
    ) -> None:
        self._name = name
        self._failed = failed
        self._failures = failures
        self._closed = False
        # What follows is changed by single operations, without a lock: an exception from outside
        # may end any step half-way, and a lock that stays taken would keep `close` for ever.
        #: What no thread has begun yet; and for each name, until it is answered, who waits for it.
        self._names: collections.deque[Name] = collections.deque()
        self._waiting: dict[Name, collections.deque[Answer]] = {}
        #: The threads that have not found it empty yet. One adds itself before it was started.
        self._at_work: set[object] = set()

    def resolve(self, addr: str, answer: Answer) -> None:
        """Call `answer` with the addresses of `host:port`, or with why there are none.

        At once if the host is numeric, or if it cannot be looked up; otherwise from another thread.
        It must not block. Raises nothing: what is no address is answered by an error, too.
        """
        found: list[Address] | OSError | None
        try:
            host, port = split_address(addr)
            found = numeric(host, port)
            if found is None:
                found = self._ask((host, port), answer)
        except BaseException as error:
            found = OSError(described(error))
        if found is not None:
            answer(found)

    def _ask(self, name: Name, answer: Answer) -> OSError | None:
        """Have a name looked up; why that cannot be."""
        if self._closed or self._joins_others(name, answer):
            return None
        if len(self._waiting) >= NAMES_MAX:
            return OSError(f"{NAMES_MAX} names wait to be looked up already, the most")
        try:
            self._waiting[name] = collections.deque([answer], ANSWERS_MAX)
            self._names.append(name)
            if len(self._at_work) < THREADS_MAX:
                self._start_thread()
        except BaseException:
            self._waiting.pop(name, None)
            raise
        return None

    def _joins_others(self, name: Name, answer: Answer) -> bool:
        """Whether it is answered with others, who wait for the same name."""
        waiting = self._waiting.get(name)
        if waiting is None:
            return False
        waiting.append(answer)
        if self._waiting.get(name) is not waiting:
            # A thread took them just then, and may be done with them.
            try:
                waiting.remove(answer)
            except ValueError:
                return True
            return False
        return True

    def _start_thread(self) -> None:
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
        except BaseException:
            # No more threads. Those that are there do it; otherwise it cannot be done now.
            self._at_work.discard(token)
            if not self._at_work:
                raise

    def _work(self, token: object) -> None:
        while True:
            try:
                if not self._look_one_up(token):
                    return
            except BaseException as error:
                self._failures.again(self._name, error)
            else:
                self._failures.passed(self._name)

    def _look_one_up(self, token: object) -> bool:
        """False if there is nothing to look up any more."""
        try:
            name = self._names.popleft()
        except IndexError:
            # First this, then the look whether something came meanwhile: `resolve` adds to the
            # queue first, and then looks whether a thread is at work.
            self._at_work.discard(token)
            if not self._names:
                return False
            self._at_work.add(token)
            return True
        found = looked_up(*name)
        waiting = self._waiting.pop(name, None)
        while waiting:
            try:
                waiting.popleft()(found)
            except BaseException as error:
                self._failures.note(f"the answer to who asked for {name[0]}", error)
        return True

    def close(self) -> None:
        """Take no more questions, and answer none that was not begun."""
        self._closed = True
        while self._names:
            with contextlib.suppress(IndexError):
                # A thread may have taken it just then.
                self._waiting.pop(self._names.popleft(), None)


def numeric(host: str, port: int) -> list[Address] | None:
    """The address that a host is itself; `None` if it has to be looked up."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        # No IPv4 address, or one of the older forms, which another function knows.
        pass
    else:
        return [(int(socket.AF_INET), (host, port))]
    try:
        return look_up(host, port, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None


def looked_up(host: str, port: int) -> list[Address] | OSError:
    """The addresses of a host, or why there are none."""
    try:
        return look_up(host, port)
    except OSError as error:
        return error
    except BaseException as error:
        # A name that no resolver takes (UnicodeError), or whatever a patched one raises.
        return OSError(described(error))


def look_up(host: str, port: int, flags: int = 0) -> list[Address]:
    """All addresses of a host, in the system's order. May block for long."""
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags
    )
    return list(dict.fromkeys((int(family), where) for family, _, _, _, where in found))
