"""Host names to addresses, without blocking the thread that asks."""

from __future__ import annotations

import collections
import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable

from rabble.addresses import Address, split_address
from rabble.cluster.failures import RETRY_S, Failures
from rabble.reports import described
from rabble.steps import take_steps

__all__ = ["Question", "Resolver"]

#: Called with the addresses that were found, or with why there are none.
Answer = Callable[["list[Address] | OSError"], None]
Name = tuple[str, int]

THREADS_MAX = 2
#: Made beforehand: where this is the answer there may be no memory for another one.
NOT_LOOKED_UP = OSError("it could not be looked up")


class Question:
    """Somebody waits for the addresses of a name. For one thread.

    :param by: until when, in monotonic seconds.
    """

    __slots__ = ("_withdraw", "answer", "by")

    def __init__(
        self, answer: Answer, by: float, withdraw: Callable[[Question], None] | None = None
    ) -> None:
        self.answer = answer
        self.by = by
        self._withdraw = withdraw

    def withdraw(self) -> None:
        """Wait no longer. An answer that is on its way comes all the same."""
        if self._withdraw is not None:
            self._withdraw(self)


class Resolver:
    """Looks host names up in threads of its own; a numeric address needs none.

    :param name: of its threads, which are there as long as there is something to look up.
    :param failed: called with what ends one of them, in that thread.
    :param failures: is told of what ends a single look-up.
    :param waiting_max: how many names may wait to be looked up, and questions for the same name.
        Beyond it a question is answered by an error.
    :param clock: monotonic seconds. For any thread.

    A look-up may take the system for ever: how long it waits is for who asks to say. A name for
    which nobody waits any more is not looked up. Asked again meanwhile for the same name, the
    resolver looks it up once.

    `close` does not wait for a look-up that goes on; its thread ends with it. `resolve`, `close`
    and what is done with a question are for one thread.
    """

    def __init__(
        self,
        name: str,
        failed: Callable[[BaseException], None],
        failures: Failures,
        *,
        waiting_max: int,
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._failed = failed
        self._failures = failures
        self._waiting_max = waiting_max
        self._clock = clock
        self._closed = False
        # What follows is changed by single operations, without a lock: an exception from outside
        # may end any step half-way, and a lock that stays taken would keep `close` for ever.
        #: What no thread has begun yet; and for each name, until it is answered, who waits for it.
        self._names: collections.deque[Name] = collections.deque()
        self._waiting: dict[Name, collections.deque[Question]] = {}
        #: The threads that have not found it empty yet. One adds itself before it was started.
        self._at_work: set[object] = set()

    def resolve(self, addr: str, answer: Answer, by: float) -> Question:
        """Call `answer` with the addresses of `host:port`, or with why there are none.

        At once if the host is numeric, or if it cannot be looked up; otherwise from another thread.
        It must not block. Raises nothing: what is no address is answered by an error, too.

        :param by: when nobody waits for the answer any more, in monotonic seconds.
        :returns: what may be withdrawn before.
        """
        question = Question(answer, by)
        found: list[Address] | OSError | None
        try:
            host, port = split_address(addr)
            found = numeric(host, port)
            if found is None:
                question = Question(answer, by, functools.partial(self._withdraw, (host, port)))
                found = self._ask((host, port), question)
        except BaseException as error:
            found = OSError(described(error))
        if found is not None:
            answer(found)
        return question

    def _ask(self, name: Name, question: Question) -> OSError | None:
        """Have a name looked up; why that cannot be."""
        if self._closed:
            return None
        if len(self._waiting.get(name, ())) >= self._waiting_max:
            return OSError(f"{self._waiting_max} wait for this name already, the most")
        if self._joins_others(name, question):
            return None
        if len(self._names) >= self._waiting_max:
            return OSError(f"{self._waiting_max} names wait to be looked up already, the most")
        try:
            self._waiting[name] = collections.deque([question])
            self._names.append(name)
            if len(self._at_work) < THREADS_MAX:
                self._start_thread()
        except BaseException:
            self._withdraw(name, question)
            raise
        return None

    def _withdraw(self, name: Name, question: Question) -> None:
        """Forget a question; and a name that nobody asks for and no thread has begun."""
        waiting = self._waiting.get(name)
        with contextlib.suppress(ValueError):
            # It is another one's by now, or answered.
            if waiting is not None:
                waiting.remove(question)
            if not waiting:
                self._names.remove(name)
                self._waiting.pop(name, None)

    def _joins_others(self, name: Name, question: Question) -> bool:
        """Whether it is answered with others, who wait for the same name."""
        waiting = self._waiting.get(name)
        if waiting is None:
            return False
        waiting.append(question)
        if self._waiting.get(name) is not waiting:
            # A thread took them just then, and may be done with them.
            try:
                waiting.remove(question)
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
                time.sleep(RETRY_S)
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
        found: list[Address] | OSError = NOT_LOOKED_UP
        waiting = self._waiting.get(name)
        is_over = False
        try:
            is_over = self._is_over(name, waiting)
            if not is_over:
                found = looked_up(*name)
        finally:
            if not is_over:
                # Whatever was raised: nobody waits for ever, and the name can be asked for again.
                self._answer(name, waiting, found)
        return True

    def _is_over(self, name: Name, waiting: collections.deque[Question] | None) -> bool:
        """Whether nobody waits for a name any more, which is forgotten then."""
        if self._is_awaited(waiting):
            return False
        self._waiting.pop(name, None)
        # Nobody joins them from now on; somebody may have until now.
        return not self._is_awaited(waiting)

    def _is_awaited(self, waiting: collections.deque[Question] | None) -> bool:
        # Of a copy: the thread that asks may add to it meanwhile.
        return waiting is not None and self._clock() < max(
            [question.by for question in waiting.copy()], default=float("-inf")
        )

    def _answer(
        self,
        name: Name,
        waiting: collections.deque[Question] | None,
        found: list[Address] | OSError,
    ) -> None:
        if self._waiting.get(name) is waiting:
            # Otherwise these are of others, who asked anew.
            self._waiting.pop(name, None)
        while waiting:
            try:
                waiting.popleft().answer(found)
            except BaseException as error:
                self._failures.note(f"the answer to who asked for {name[0]}", error)

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
