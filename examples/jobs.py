"""A queue of jobs for several nodes: who crashes is restarted, and the job is tried again.

The queue is a process of one node. Each other node has a supervisor with workers, which join a
group; the queue gives each member of the group one job at a time.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Iterator

from nodes import NodeProcess

import rabble
from rabble import (
    Ask,
    CallTimeout,
    ChildSpec,
    CorrelationId,
    Envelope,
    Failed,
    Group,
    GroupChanged,
    GroupMembers,
    JoinGroup,
    Mesh,
    Node,
    NotConnected,
    Output,
    Pid,
    Process,
    ProcessCrashed,
    Reply,
    Request,
    StartTimer,
    Supervisor,
)

WORKERS = 2
ATTEMPTS_MAX = 3
#: Of one attempt.
JOB_MS = 5_000
#: Before the next one: a worker that has crashed is back by then.
RETRY_MS = 50


@rabble.message(name="jobs.Done")
class Done:
    """What became of a job."""

    result: str
    attempts: int


@rabble.message(name="jobs.GivenUp")
class GivenUp:
    """It was tried often enough; why the last attempt failed."""

    why: str
    attempts: int


@rabble.message(name="jobs.Job")
class Job(Request[Done | GivenUp]):
    """Asks the queue for something to be done."""

    text: str


@rabble.message(name="jobs.Work")
class Work:
    """Asks a worker for one attempt."""

    text: str
    attempt: int


@dataclasses.dataclass
class Entry:
    """A job that has no end yet, and whom to tell of it."""

    job: Job
    customer: Pid | None
    correlation_id: CorrelationId | None
    attempts: int = 0


class Queue(Process[Job | Reply | Failed | Entry | GroupChanged | GroupMembers]):
    """Gives out jobs, and tells who wants them done what became of them."""

    def __init__(self) -> None:
        self.workers = Group("workers")
        self.busy: set[Pid] = set()
        self.waiting: collections.deque[Entry] = collections.deque()

    def init(self) -> Output:
        return self.workers.subscribe(self.executor)

    def receive(
        self,
        msg: Job | Reply | Failed | Entry | GroupChanged | GroupMembers,
        sender: Pid | None,
        correlation_id: CorrelationId | None,
    ) -> Iterator[Envelope]:
        match msg:
            case Job():
                self.waiting.append(Entry(msg, sender, correlation_id))
            case Entry():
                self.waiting.append(msg)
            case Reply((entry, worker), result):
                self.busy.discard(worker)
                yield end(entry, Done(result, entry.attempts))
            case Failed((entry, worker), reason):
                self.busy.discard(worker)
                yield self.again(entry, reason)
            case _:
                self.workers.takes(msg)
        for worker in self.workers.members:
            if self.waiting and worker not in self.busy:
                self.busy.add(worker)
                yield self.attempt(self.waiting.popleft(), worker)

    def attempt(self, entry: Entry, worker: Pid) -> Envelope:
        entry.attempts += 1
        work = Work(entry.job.text, entry.attempts)
        return Envelope(self.executor, Ask(worker, work, JOB_MS, tag=(entry, worker)))

    def again(self, entry: Entry, reason: Exception) -> Envelope:
        if not isinstance(reason, ProcessCrashed | CallTimeout | NotConnected):
            # The worker had no look at it: it has ended and is not back yet.
            entry.attempts -= 1
        if entry.attempts == ATTEMPTS_MAX:
            why = reason.error_text if isinstance(reason, ProcessCrashed) else str(reason)
            return end(entry, GivenUp(why, entry.attempts))
        return Envelope(self.executor, StartTimer(id(entry), RETRY_MS, entry))


def end(entry: Entry, answer: Done | GivenUp) -> Envelope:
    return rabble.reply(answer, entry.customer, entry.correlation_id)


class Worker(Process[Work | tuple[str, Pid | None, CorrelationId | None]]):
    """Takes 10 ms for a job, which the timer stands for here."""

    def init(self) -> Output:
        return Envelope(self.executor, JoinGroup("workers"))

    def receive(
        self,
        msg: Work | tuple[str, Pid | None, CorrelationId | None],
        sender: Pid | None,
        correlation_id: CorrelationId | None,
    ) -> Output:
        match msg:
            case Work("bad", _):
                raise ValueError("there is no way to do this")
            case Work("flaky", 1):
                raise OSError("the printer jams")
            case Work(text, _):
                work = (text.upper(), sender, correlation_id)
                return Envelope(self.executor, StartTimer("work", 10, work))
            case (result, customer, asked):
                return rabble.reply(result, customer, asked)


def start(node: Node) -> None:
    """For `rabble node --app jobs:start`: a supervisor and its workers."""
    # Crashes go to the log `rabble`. Here they are planned.
    logging.getLogger("rabble").setLevel(logging.CRITICAL)
    children = [ChildSpec(f"worker {number}", Worker) for number in range(WORKERS)]
    # As many restarts as there may be bad jobs: beyond that the supervisor gives up.
    node.spawn(Supervisor(children, intensity=100, period_ms=60_000), "workers")


async def main() -> None:
    async with rabble.rouse("queue@127.0.0.1:0", mesh=Mesh()) as node:
        queue = node.spawn(Queue(), "queue")

        async def do(text: str) -> Done | GivenUp:
            return await node.call_async(queue, Job(text), timeout=60)

        with (
            NodeProcess("one@127.0.0.1:0", "jobs:start") as one,
            NodeProcess("two@127.0.0.1:0", "jobs:start") as two,
        ):
            for each in (one, two):
                node.join(each.node_id)
            for text in ("good", "flaky", "bad"):
                print(text, "->", await do(text))

            jobs = [asyncio.create_task(do(f"job {number}")) for number in range(200)]
            await asyncio.wait(jobs[:20])
            one.kill()
            done = [result for result in await asyncio.gather(*jobs) if isinstance(result, Done)]
            print(f"{len(done)} of {len(jobs)} are done, though a node was killed")


if __name__ == "__main__":
    asyncio.run(main())
