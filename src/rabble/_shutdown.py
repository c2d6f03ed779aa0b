"""The end of a node: drain, end what hangs on the executor, join the threads.

The executor's thread ends the node. It delivers what waits, and then takes the steps of `Teardown`,
each of which is taken whatever the others raise. `shutdown` asks for that, waits, and joins the
threads.

The rules of signals: a handler may call `shutdown` at any moment, and so may have interrupted the
holder of a lock, `shutdown` itself among them. So the end takes no lock that the interrupted
code may hold: the state of the node changes by single operations of dicts and sets, a wait is one
on an eventfd, and a thread that is inside of threading's start or join, which take such locks, is
noted in `LocalRuntime.in_threading`: a handler that interrupted it leaves the joining to it.

The interpreter waits for non-daemon threads at its exit, so `end_all` ends the nodes that were left
running before that. In a forked child nothing of this is done: the threads stayed in the parent.
All that is done there is to close the descriptors of the mesh.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable, Iterable

from rabble._runtime import LocalRuntime
from rabble.errors import ShutdownTimeout
from rabble.services.mailbox import Mailboxes
from rabble.steps import take_steps
from rabble.texts import described
from rabble.timeouts import checked_timeout

__all__ = ["Teardown", "end_all", "end_at_exit", "interpreter_ends", "running"]


class Teardown:
    """Ends one node.

    :param runtime: of the node.
    :param mailboxes: of the node, which are closed first.
    """

    def __init__(self, runtime: LocalRuntime, mailboxes: Mailboxes) -> None:
        self.runtime = runtime
        self._mailboxes = mailboxes
        # Which thread runs the executor: its own, or the one that could not start it.
        self._runner: dict[None, int] = {}
        self._ran = False

    # For whoever wants the end.

    def shutdown(self, timeout: float | None = None) -> None:
        """See `Node.shutdown`."""
        runtime = self.runtime
        within = runtime.shutdown_s if timeout is None else checked_timeout(timeout)
        runtime.request_shutdown(within)
        end = runtime.clock() + within
        if self._is_in_own_thread():
            return
        half = runtime.clock() + (end - runtime.clock()) * 0.6
        while not runtime.ended.closed:
            now = runtime.clock()
            if now >= end:
                raise ShutdownTimeout(f"{runtime.node_id} did not end: {self._what_keeps_it()}")
            if now >= half:
                # Again and again: what it raises may have been caught.
                runtime.executor.interrupt()
                half = now + 0.1
            runtime.ended.wait(max(min(half, end) - now, 0.001))
        alive = self._join_threads(end)
        if alive:
            raise ShutdownTimeout(
                f"{runtime.node_id} did not end: these threads run: {', '.join(alive)}"
            )

    async def shutdown_async(self, timeout: float | None) -> None:
        """See `Node.shutdown_async`."""
        # So that it ends, whether there is a thread to be had or not.
        self.runtime.request_shutdown(timeout)
        if self._is_in_own_thread():
            return
        end: concurrent.futures.Future[None] = concurrent.futures.Future()

        def wait_for_end() -> None:
            try:
                self.shutdown(timeout)
            except BaseException as error:
                end.set_exception(error)
            else:
                end.set_result(None)

        thread = threading.Thread(
            target=wait_for_end, name=f"rabble:{self.runtime.node_id.name}:shutdown", daemon=False
        )
        thread.start()
        ended = asyncio.wrap_future(end)
        cancelled: BaseException | None = None
        while not ended.done():
            try:
                # Cancelled, it would leave a node behind that ends at some time.
                await asyncio.wait([ended])
            except asyncio.CancelledError as error:
                cancelled = error
        thread.join()
        if cancelled is not None:
            # Seen by asyncio, which would complain of it otherwise.
            ended.exception()
            raise cancelled
        ended.result()

    def abandon(self) -> None:
        """Let go of all, since the node could not be made. Waits for the threads that did start.

        The executor has to run for that: without one there is nothing yet. A thread that was
        started, in spite of what was raised, is either there first, or finds it done.
        """
        runtime = self.runtime
        if not hasattr(runtime, "executor"):
            return
        runtime.executor.request_stop(0.0)
        take_steps(functools.partial(runtime.fail, "the start"), *self.steps())
        end = runtime.clock() + runtime.shutdown_s
        while not runtime.ended.closed and runtime.clock() < end:
            runtime.ended.wait(0.1)
        self._join_threads(end)

    def _join_threads(self, end: float) -> list[str]:
        """Join all threads of a node that has ended, and return the names of those that run on."""
        runtime = self.runtime
        current = threading.get_ident()
        if current in runtime.in_threading:
            # A signal handler's: what it interrupted joins them.
            return []
        runtime.in_threading.add(current)
        try:
            threads = [
                thread
                for thread in (*runtime.to_join, runtime.thread, runtime.reporter.thread)
                # One that was never started.
                if thread.ident is not None
            ]
            for thread in threads:
                thread.join(max(end - runtime.clock(), 0.1))
            return [thread.name for thread in threads if thread.is_alive()]
        finally:
            runtime.in_threading.discard(current)

    def _is_in_own_thread(self) -> bool:
        """Whether this thread is one whose end belongs to that of the node."""
        runtime, current = self.runtime, threading.current_thread()
        own = {runtime.thread, runtime.reporter.thread}
        return current in own or any(s.thread is current for s in list(runtime.services))

    def _what_keeps_it(self) -> str:
        runtime = self.runtime
        busy = runtime.executor.current_pid
        if busy is not None:
            return f"receive of {busy} does not return"
        alive = [s.thread.name for s in list(runtime.services) if s.thread.is_alive()]
        return f"these threads run: {', '.join(alive) or runtime.thread.name}"

    # In the executor's thread.

    def steps(self) -> tuple[Callable[[], bool | None], ...]:
        """What the executor's thread does: run it, and let go of all that hangs on it."""
        return (
            self._run,
            self._end_mailboxes,
            self._end_services,
            self._end_polling,
            self._end_cluster,
            # Looked up when its turn has come, as that of the reporter: tests have one that fails.
            lambda: self._end_calls(),
            functools.partial(running.discard, self),
            lambda: self.runtime.reporter.end(),
            self.runtime.ended.close,
        )

    def _run(self) -> bool:
        """Run the executor. True if all that follows is somebody else's."""
        current = threading.get_ident()
        if self._runner.setdefault(None, current) != current:
            return True
        executor = self.runtime.executor
        if not self._ran:
            self._ran = True
            executor.run()
        # A `receive` may have forked, and returned in the child: the node is the parent's.
        return executor.forked

    def _end_mailboxes(self) -> None:
        self.runtime.ending = True
        self._mailboxes.close_all()

    def _end_services(self) -> None:
        if self.runtime.poll_thread is not None and self.runtime.poller is not None:
            # What clients are still to be sent is sent by the thread that looks at their sockets.
            self.runtime.poller.executor_ended()
        services = self.runtime.services.copy()
        for service in services:
            service.stop()
        for service, wait_for_end in services.items():
            # One that has not begun sees that it was stopped.
            if wait_for_end():
                self.runtime.to_join.add(service.thread)

    def _end_polling(self) -> None:
        runtime = self.runtime
        if runtime.poll_thread is not None and runtime.poller is not None:
            runtime.poller.stop()
            runtime.to_join.add(runtime.poll_thread)

    def _end_cluster(self) -> None:
        cluster = self.runtime.cluster
        if cluster is not None:
            patience_s = self.runtime.shutdown_s / 4
            # A peer that goes on to take what was sent may do so for as long as there is time.
            cluster.request_stop(patience_s, max(patience_s, 0.8 * self.runtime.time_left_s()))
            self.runtime.to_join.update(cluster.wait_for_end())

    def _end_calls(self) -> None:
        self.runtime.calls.close(self.runtime.why_stopped())


# The one piece of state that is the interpreter's and not a node's: which nodes are to be ended
# before it waits for their threads.
running: set[Teardown] = set()


def end_at_exit(teardown: Teardown) -> None:
    """Have a node ended before the interpreter waits for its threads, unless it ends earlier."""
    running.add(teardown)


def interpreter_ends() -> bool:
    """Whether the interpreter already waits for threads, and would wait for those of a new node."""
    return bool(getattr(threading, "_SHUTTING_DOWN", False))


def request(teardown: Teardown) -> None:
    """Ask for the end, so that several nodes end at once."""
    teardown.runtime.request_shutdown()


def end_all(teardowns: Iterable[Teardown] = running) -> None:
    """End nodes that were left running.

    :raises ShutdownTimeout: if some did not end in time; says what keeps each.
    """
    own = [teardown for teardown in list(teardowns) if not teardown.runtime.executor.forked]
    kept = []
    # Whatever is raised by the end of one, the others are ended, too.
    for end in (request, Teardown.shutdown):
        for teardown in own:
            try:
                end(teardown)
            except ShutdownTimeout as error:
                kept.append(str(error))
            except BaseException as error:
                teardown.runtime.fail("the end at exit", error)
                kept.append(f"{teardown.runtime.node_id}: {described(error)}")
    if kept:
        # Raised, it has the interpreter say so and end; otherwise that would wait for the threads.
        raise ShutdownTimeout("; ".join(kept))


def close_inherited() -> None:
    """In a forked child: close its copies of the descriptors by which its parent's nodes are heard.

    Else the end of the parent, however it comes, would be seen by its peers, and its port be free,
    only when the child has ended, too.
    """
    for teardown in list(running):
        runtime = teardown.runtime
        if runtime.cluster is not None:
            runtime.cluster.close_inherited()
        for close in list(runtime.inherited.values()):
            close()
        if runtime.poll_thread is not None and runtime.poller is not None:
            runtime.poller.close_inherited()


os.register_at_fork(after_in_child=close_inherited)


# The interpreter joins non-daemon threads before it runs atexit's functions, so a node that was
# left running must be ended before that. threading has a hook there, which concurrent.futures
# uses; it is not documented, hence the fallback, which serves embedders that call exit themselves.
getattr(threading, "_register_atexit", atexit.register)(end_all)
