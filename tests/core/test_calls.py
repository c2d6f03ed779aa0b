"""The calls of event loops: each ends once, wakes its task once, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any, NoReturn, cast

import pytest

import rabble
from rabble import (
    CallTimeout,
    CorrelationId,
    Envelope,
    Node,
    NodeStopped,
    Output,
    Pid,
    Process,
    QueueFull,
)
from rabble._core.calls import AwaitedReply, LoopReplies
from rabble.calls import Calls
from tests.core.starvation import Starvation
from tests.support import BARE, PATIENCE_S, Does, Echo, until

CALLS = Pid("calls", BARE, "rabble")
ONE = Pid("one", BARE)
#: Of `Idle`.
SPIN_US_MAX = 1_000_000
CALLED = 50


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("n@h:1", limits=rabble.Limits(calls_max=2_000)) as node:
        yield node


def silent(node: Node, name: str = "silent") -> Pid:
    return node.spawn(Does(lambda process, msg, sender: None), name)


class Requests:
    """What sends the requests of a table of calls: it keeps them."""

    def __init__(self) -> None:
        self.sent: list[Envelope] = []

    def send_envelope(self, envelope: Envelope) -> None:
        self.sent.append(envelope)


def reply_to(request: Envelope, msg: object) -> Envelope:
    return Envelope(CALLS, msg, request.to, request.correlation_id)


def answer(calls: Calls, request: Envelope, msg: object) -> None:
    calls.deliver(reply_to(request, msg))


def call(calls: Calls, requests: Requests, msg: object = 1, timeout: float = PATIENCE_S) -> Any:
    return calls.call(requests, ONE, msg, timeout)  # type: ignore[arg-type]


def test_each_of_many_tasks_gets_its_own_replies(node: Node) -> None:
    echo = node.spawn(Echo(), "echo")

    async def ask(who: int) -> list[Any]:
        return [await node.call_async(echo, (who, n), PATIENCE_S) for n in range(20)]

    async def ask_all() -> list[list[Any]]:
        return await asyncio.gather(*(ask(who) for who in range(100)))

    assert asyncio.run(ask_all()) == [[(who, n) for n in range(20)] for who in range(100)]
    assert len(node._runtime.calls) == 0


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often another thread woke it."""

    woken = 0

    def call_soon_threadsafe(self, *args: Any, **more: Any) -> Any:
        self.woken += 1
        return super().call_soon_threadsafe(*args, **more)


def run_counting(coroutine: Coroutine[Any, Any, Any]) -> int:
    """Run it to its end; returns how often its loop was woken."""
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.run(coroutine)
        return cast("CountingLoop", runner.get_loop()).woken


async def ask_again_and_again(node: Node, echo: Pid) -> None:
    for n in range(CALLED):
        assert await node.call_async(echo, n, PATIENCE_S) == n


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="nobody spins on one processor")
def test_a_loop_that_has_nothing_else_to_do_waits_for_quick_answers_and_is_not_woken() -> None:
    with rabble.rouse("n@h:1", spin_us=SPIN_US_MAX) as node:
        echo = node.spawn(Echo(), "echo")
        assert run_counting(ask_again_and_again(node, echo)) < CALLED
    with rabble.rouse("n@h:1", spin_us=0) as node:
        echo = node.spawn(Echo(), "echo")
        assert run_counting(ask_again_and_again(node, echo)) == CALLED


def test_a_loop_that_has_something_else_to_do_does_it_and_is_woken() -> None:
    async def beside_others(node: Node, echo: Pid) -> None:
        asking = asyncio.create_task(ask_again_and_again(node, echo))
        while not asking.done():
            await asyncio.sleep(0)
        await asking

    with rabble.rouse("n@h:1", spin_us=SPIN_US_MAX) as node:
        echo = node.spawn(Echo(), "echo")
        assert run_counting(beside_others(node, echo)) == CALLED


def test_an_answer_that_takes_longer_than_a_loop_waits_comes_all_the_same(node: Node) -> None:
    held: list[Envelope] = []

    class Holds(Process):
        def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
            held.append(rabble.reply(msg, sender, cid))
            return None

    pid = node.spawn(Holds(), "holds")

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        asking = asyncio.create_task(node.call_async(pid, "late", PATIENCE_S))
        await loop.run_in_executor(None, until, lambda: held)
        # The loop has slept meanwhile: that is how it learnt of this.
        node._runtime.post_from_service(held.pop())
        assert await asking == "late"

    asyncio.run(ask())


def test_a_loop_is_told_once_of_all_that_came_before_it_looked() -> None:
    calls, requests, told = Calls(CALLS, 100), Requests(), 0

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        original = loop.call_soon_threadsafe

        def counting(*args: Any, **more: Any) -> Any:
            nonlocal told
            told += 1
            return original(*args, **more)

        loop.call_soon_threadsafe = counting  # type: ignore[method-assign]
        tasks = [asyncio.create_task(call(calls, requests, n)) for n in range(10)]
        await asyncio.sleep(0)
        for request in requests.sent:
            answer(calls, request, request.msg)
        assert told == 1
        assert await asyncio.gather(*tasks) == list(range(10))

    asyncio.run(ask())


def test_one_that_is_cancelled_is_given_up_and_the_others_are_not() -> None:
    calls, requests = Calls(CALLS, 100), Requests()

    async def ask() -> None:
        tasks = [asyncio.create_task(call(calls, requests, n)) for n in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        # Its reply has come already, and the loop has not looked yet.
        answer(calls, requests.sent[1], "came")
        tasks[1].cancel()
        answer(calls, requests.sent[2], "comes")
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in done] == [
            asyncio.CancelledError,
            asyncio.CancelledError,
            str,
        ]

    asyncio.run(ask())
    assert len(calls) == 0 and calls.late_replies == 0


def test_a_reply_wakes_a_task_that_is_cancelled_as_it_wakes() -> None:
    """The task that is woken first cancels the next one, of the same batch of replies."""
    calls, requests = Calls(CALLS, 100), Requests()

    async def ask() -> list[Any]:
        async def first() -> Any:
            await call(calls, requests)
            tasks[1].cancel()

        tasks = [asyncio.create_task(each) for each in (first(), call(calls, requests))]
        await asyncio.sleep(0)
        for request in requests.sent:
            answer(calls, request, 1)
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(each) for each in asyncio.run(ask())] == [type(None), asyncio.CancelledError]


@pytest.mark.parametrize("timeout", [0, 0.0, 0.01, 1e-9])
def test_time_is_over_at_its_time_and_says_what_was_given(timeout: float) -> None:
    calls, requests = Calls(CALLS, 100), Requests()

    async def ask() -> None:
        start = time.monotonic()
        with pytest.raises(CallTimeout, match=f"one::bare@h:1 did not reply in {timeout} s"):
            await call(calls, requests, timeout=timeout)
        assert time.monotonic() - start >= timeout

    asyncio.run(ask())
    answer(calls, requests.sent[0], "late")
    assert len(calls) == 0 and calls.late_replies == 1


def test_deadlines_of_any_order_are_kept_and_those_of_ended_calls_are_forgotten() -> None:
    calls, requests = Calls(CALLS, 1_000), Requests()

    async def ask() -> None:
        order: list[float] = []

        async def one(timeout: float) -> None:
            with pytest.raises(CallTimeout):
                await call(calls, requests, timeout=timeout)
            order.append(timeout)

        tasks = [asyncio.create_task(one(timeout)) for timeout in (0.06, 0.02, 0.04)]
        for _ in range(300):
            task = asyncio.create_task(call(calls, requests, timeout=0.03))
            await asyncio.sleep(0)
            answer(calls, requests.sent[-1], 1)
            await task
        await asyncio.gather(*tasks)
        assert order == [0.02, 0.04, 0.06]

    asyncio.run(ask())


@pytest.mark.parametrize("timeout", ["5", None, float("nan")])
def test_a_timeout_that_is_none_is_said_before_anything_is_sent(timeout: Any) -> None:
    calls, requests = Calls(CALLS, 100), Requests()

    async def ask() -> None:
        with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds"):
            await call(calls, requests, timeout=timeout)

    asyncio.run(ask())
    assert requests.sent == [] and len(calls) == 0


def test_several_loops_in_several_threads_get_theirs(node: Node) -> None:
    echo = node.spawn(Echo(), "echo")
    got: dict[int, list[Any]] = {}

    async def ask(who: int) -> list[Any]:
        return await asyncio.gather(
            *(node.call_async(echo, (who, n), PATIENCE_S) for n in range(50))
        )

    def run(who: int) -> None:
        for _ in range(4):
            got[who] = asyncio.run(ask(who))

    threads = [threading.Thread(target=run, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {who: [(who, n) for n in range(50)] for who in range(4)}


def test_a_loop_that_was_closed_harms_nobody() -> None:
    calls, requests = Calls(CALLS, 100), Requests()
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        asyncio.get_running_loop().create_task(call(calls, requests))
        await asyncio.sleep(0)

    loop.run_until_complete(begin())
    tasks = asyncio.all_tasks(loop)
    loop.close()
    answer(calls, requests.sent[0], "nobody waits")

    async def ask() -> Any:
        task = asyncio.create_task(call(calls, requests))
        await asyncio.sleep(0)
        answer(calls, requests.sent[-1], "somebody does")
        return await task

    assert asyncio.run(ask()) == "somebody does"
    for task in tasks:
        # It will not be run any more: asyncio would complain.
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_what_nobody_waits_for_any_more_is_swept_out() -> None:
    calls, requests = Calls(CALLS, 100), Requests()

    async def begin() -> None:
        for _ in range(90):
            coroutine = call(calls, requests)
            coroutine.send(None)
            del coroutine
            if len(requests.sent) % 30 == 0:
                gc.collect()

    asyncio.run(begin())
    gc.collect()
    assert len(calls) == 0


def test_more_than_may_wait_are_refused(node: Node) -> None:
    pid = silent(node)

    async def ask() -> None:
        tasks = [asyncio.create_task(node.call_async(pid, n, PATIENCE_S)) for n in range(2_000)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="2000 calls wait"):
            await node.call_async(pid, 1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert len(node._runtime.calls) == 0

    asyncio.run(ask())


def test_the_end_of_the_node_ends_all(node: Node) -> None:
    pid = silent(node)

    async def ask() -> list[Any]:
        tasks = [asyncio.create_task(node.call_async(pid, n, PATIENCE_S)) for n in range(100)]
        await asyncio.sleep(0)
        node.request_shutdown()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(each) for each in asyncio.run(ask())} == {NodeStopped}
    with pytest.raises(NodeStopped):
        asyncio.run(node.call_async(pid, 1))


def test_what_a_task_raises_at_the_loop_keeps_no_other_from_its_reply() -> None:
    """A KeyboardInterrupt ends `run_forever`; the loop may be run again."""
    calls, requests = Calls(CALLS, 100), Requests()
    loop = asyncio.new_event_loop()

    async def interrupted() -> None:
        await call(calls, requests)
        raise KeyboardInterrupt

    async def ask() -> list[Any]:
        first = asyncio.ensure_future(interrupted())
        rest = [asyncio.ensure_future(call(calls, requests)) for _ in range(3)]
        await asyncio.sleep(0)
        for request in requests.sent:
            answer(calls, request, 1)
        await asyncio.wait([first])
        return list(await asyncio.gather(*rest))

    task = loop.create_task(ask())
    with contextlib.suppress(KeyboardInterrupt):
        loop.run_until_complete(task)
    with contextlib.suppress(KeyboardInterrupt):
        loop.run_until_complete(task)
    assert task.result() == [1, 1, 1]
    loop.close()


def test_a_failure_holds_no_frame_and_no_call_when_it_was_caught(node: Node) -> None:
    def crash(process: Process, msg: Any, sender: Pid | None) -> None:
        raise ValueError("as planned")

    async def ask() -> None:
        for n in range(3):
            pid = node.spawn(Does(crash), f"crashes-{n}")
            with pytest.raises(rabble.ProcessCrashed, match="ValueError: as planned"):
                await node.call_async(pid, 1, PATIENCE_S)

    def nothing_is_held() -> bool:
        gc.collect()
        return not any(type(each) is AwaitedReply for each in gc.get_objects())

    asyncio.run(ask())
    # The executor's thread, which ended the last call, may still be at the end of that.
    until(nothing_is_held)


def test_it_is_a_coroutine_that_sends_nothing_before_it_runs() -> None:
    calls, requests = Calls(CALLS, 100), Requests()

    async def ask() -> Any:
        coroutine = call(calls, requests)
        assert asyncio.iscoroutine(coroutine) and requests.sent == []
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coroutine)
        await asyncio.sleep(0)
        answer(calls, requests.sent[0], {"k": 1})
        return await asyncio.wait_for(task, PATIENCE_S)

    assert asyncio.run(ask()) == {"k": 1}


@pytest.mark.parametrize("value", [(1, 2), None, ValueError("a value"), StopIteration(1)])
def test_a_reply_may_be_anything(value: object) -> None:
    calls, requests = Calls(CALLS, 100), Requests()

    async def ask() -> Any:
        task = asyncio.create_task(call(calls, requests))
        await asyncio.sleep(0)
        answer(calls, requests.sent[0], value)
        return await task

    assert asyncio.run(ask()) is value


def test_whoever_else_looks_at_the_end_of_a_call_is_told_as_by_a_future() -> None:
    """As a debugger does, or a loop of another make: each callback once, in its context."""
    calls, requests, told = Calls(CALLS, 100), Requests(), []

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        first, second = (call(calls, requests) for _ in range(2))
        replies = [first.send(None), second.send(None)]
        for reply in replies:
            assert isinstance(reply, AwaitedReply) and not reply.done()
            assert reply.get_loop() is loop and reply._asyncio_future_blocking
            with pytest.raises(RuntimeError, match="await wasn't used with future"):
                list(reply)
            for n in range(3):
                reply.add_done_callback(lambda each, n=n: told.append((each.number, n)))
        answer(calls, requests.sent[0], 1)
        assert replies[1].cancel() and not replies[1].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        numbers = [reply.number for reply in replies]
        assert sorted(told) == [(number, n) for number in numbers for n in range(3)]
        assert replies[0].result() is None and not replies[0].cancelled()
        with pytest.raises(asyncio.CancelledError):
            replies[1].exception()
        with pytest.raises(StopIteration) as end:
            first.send(None)
        assert end.value.value == 1
        second.close()

    asyncio.run(ask())


@pytest.mark.parametrize(("given", "args"), [((), ()), (("why",), ("why",)), ((None,), ())])
def test_a_cancelled_call_carries_what_its_task_was_cancelled_with(
    given: tuple[Any, ...], args: tuple[Any, ...]
) -> None:
    """By which whoever cancelled it, such as a scope of anyio, knows its own cancellation."""
    calls, requests = Calls(CALLS, 100), Requests()

    async def ask(waits: Any) -> tuple[Any, ...]:
        task = asyncio.ensure_future(waits)
        await asyncio.sleep(0)
        task.cancel(*given)
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        return cancelled.value.args

    async def future() -> None:
        await asyncio.get_running_loop().create_future()

    assert asyncio.run(ask(call(calls, requests))) == args == asyncio.run(ask(future()))


def test_a_task_that_nobody_else_holds_gets_its_reply() -> None:
    calls, requests, got = Calls(CALLS, 100), Requests(), []

    async def fire() -> None:
        got.append(await call(calls, requests))

    async def ask() -> None:
        asyncio.get_running_loop().create_task(fire())
        await asyncio.sleep(0)
        gc.collect()
        answer(calls, requests.sent[0], "reply")
        await asyncio.sleep(0)

    asyncio.run(ask())
    assert got == ["reply"]
    gc.collect()
    assert [each for each in gc.get_objects() if type(each) is AwaitedReply] == []


def abandoned(calls: Calls, requests: Requests, count: int) -> None:
    """Tasks of a loop that is closed while they wait."""
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        for _ in range(count):
            task = loop.create_task(call(calls, requests))
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    loop.run_until_complete(begin())
    loop.close()


def test_the_tasks_of_a_loop_that_was_closed_are_let_go() -> None:
    calls, requests = Calls(CALLS, 100), Requests()
    abandoned(calls, requests, 10)
    len(calls)
    gc.collect()
    assert len(calls) == 0
    assert [each for each in gc.get_objects() if type(each) is AwaitedReply] == []


def test_the_collector_may_end_calls_while_they_are_swept() -> None:
    calls, requests = Calls(CALLS, 20_000), Requests()
    abandoned(calls, requests, 3_000)
    thresholds = gc.get_threshold()
    try:
        gc.set_threshold(500, 1, 1)
        assert len(calls) <= 3_000
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    assert len(calls) == 0


def test_a_reply_for_which_its_loop_could_not_be_woken_comes_with_the_timer() -> None:
    calls, requests = Calls(CALLS, 100), Requests()

    async def ask() -> Any:
        loop = asyncio.get_running_loop()
        original = loop.call_soon_threadsafe

        def fails(*args: Any, **more: Any) -> NoReturn:
            loop.call_soon_threadsafe = original  # type: ignore[method-assign]
            raise MemoryError

        loop.call_soon_threadsafe = fails  # type: ignore[method-assign]
        task = asyncio.create_task(call(calls, requests, timeout=0.01))
        await asyncio.sleep(0)
        with pytest.raises(MemoryError):
            answer(calls, requests.sent[0], "came")
        return await asyncio.wait_for(task, PATIENCE_S)

    assert asyncio.run(ask()) == "came"
    assert len(calls) == 0


def test_without_memory_for_its_reply_a_call_ends_at_its_time(
    starvation: Starvation,
) -> None:

    async def ask(nth: int) -> tuple[Any, bool]:
        calls, requests = Calls(CALLS, 100), Requests()
        task = asyncio.create_task(call(calls, requests, timeout=0.01))
        await asyncio.sleep(0)
        envelope = reply_to(requests.sent[0], "came")
        starved = starvation.ends_a_node(nth, lambda: calls.deliver(envelope))
        try:
            result = await asyncio.wait_for(asyncio.shield(task), PATIENCE_S)
        except CallTimeout:
            result = "late"
        assert len(calls) == 0
        return result, starved

    # The last one is never come to.
    results = [asyncio.run(ask(nth), debug=False) for nth in (*range(20), 1_000_000)]
    assert ("late", False) not in results
    assert {starved for _, starved in results} == {False, True}


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_time_that_is_over_is_told_though_there_were_no_words_for_it_at_first(
    error: type[Exception],
) -> None:
    told: list[Exception] = []

    class Failing(Calls):
        fails = True

        def timeout_of(self, number: int, to: Pid, timeout: float) -> CallTimeout:
            if self.fails:
                self.fails = False
                raise error
            return super().timeout_of(number, to, timeout)

    calls, requests = Failing(CALLS, 100), Requests()

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
        with pytest.raises(CallTimeout):
            await asyncio.wait_for(call(calls, requests, timeout=0.01), PATIENCE_S)

    asyncio.run(ask())
    assert [type(each) for each in told] == [error] and len(calls) == 0


def test_a_loop_that_fails_to_be_woken_and_is_not_closed_says_so() -> None:
    calls, requests = Calls(CALLS, 100), Requests()

    async def ask() -> Any:
        loop = asyncio.get_running_loop()
        original = loop.call_soon_threadsafe

        def fails(*args: Any, **more: Any) -> NoReturn:
            loop.call_soon_threadsafe = original  # type: ignore[method-assign]
            raise RuntimeError("no thread to be had")

        loop.call_soon_threadsafe = fails  # type: ignore[method-assign]
        task = asyncio.create_task(call(calls, requests, timeout=0.01))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="no thread"):
            answer(calls, requests.sent[0], "came")
        return await asyncio.wait_for(task, PATIENCE_S)

    assert asyncio.run(ask()) == "came"


def test_one_that_no_call_made_says_so_and_is_not_changed() -> None:
    reply = AwaitedReply()
    for use in (
        reply.get_loop,
        reply.cancel,
        lambda: reply.set_result(1),
        lambda: reply.add_done_callback(print),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match="made by a call, and by nobody else"):
            use()
        assert not reply.done() and not reply.cancelled()
    assert reply.remove_done_callback(print) == 0  # type: ignore[arg-type]


def test_a_loop_with_a_clock_of_its_own_is_asked() -> None:
    calls, requests = Calls(CALLS, 100), Requests()

    class Ahead(asyncio.SelectorEventLoop):
        shift = 0.0

        def time(self) -> float:
            return super().time() + self.shift

    async def ask() -> None:
        task = asyncio.ensure_future(call(calls, requests, timeout=1_000.0))
        await asyncio.sleep(0)
        loop.shift = 1_001.0
        with pytest.raises(CallTimeout):
            await task

    loop = Ahead()
    loop.run_until_complete(ask())
    loop.close()


def test_the_replies_of_a_loop_are_made_for_it() -> None:
    with pytest.raises(TypeError):
        LoopReplies(None, Calls(CALLS, 1))  # type: ignore[arg-type]
