"""A job queue over three nodes: no job is lost, whatever crashes and whichever node is killed.

Each node looks after workers of its own by a supervisor; the queue finds them by their group and
asks each for one job at a time. What a worker did not answer, another one is asked. A job that has
crashed three of them is given up.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

from nodes import NodeProcess

import rabble
from rabble import (
    Ask,
    ChildSpec,
    CorrelationId,
    Envelope,
    Failed,
    Group,
    GroupJoined,
    JoinGroup,
    Mesh,
    Node,
    Output,
    Pid,
    Process,
    ProcessCrashed,
    Reply,
    Request,
    StartTimer,
    Supervisor,
    reply,
)

ATTEMPTS = 3


@rabble.message(name="job_queue.Job")
class Job(Request[str]):
    """Asks for the number of primes below a limit; answered with a line about it."""

    limit: int


class Worker(Process[Job | GroupJoined]):
    """Does one job after the other."""

    def init(self) -> Output:
        return Envelope(self.executor, JoinGroup("workers"))

    def receive(
        self, msg: Job | GroupJoined, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> Output:
        if isinstance(msg, GroupJoined):
            return None
        divided = bytearray(msg.limit)  # raises, if that is negative
        for n in range(2, msg.limit):
            divided[2 * n :: n] = b"\1" * len(divided[2 * n :: n])
        return reply(f"{divided.count(0, 2)} primes below {msg.limit}", sender, correlation_id)


@dataclasses.dataclass
class Task:
    """A job that is not done yet, and who wants it."""

    job: Job
    client: Pid | None
    request: CorrelationId | None
    worker: Pid | None = None
    crashes: int = 0


class Queue(Process):
    """Has each job done by some worker, and answers it."""

    def __init__(self) -> None:
        self.workers = Group("workers")
        self.waiting: collections.deque[Task] = collections.deque()
        self.busy: set[Pid] = set()

    def init(self) -> Output:
        return self.workers.subscribe(self.executor)

    def receive(
        self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> Iterator[Envelope]:
        match msg:
            case Job():
                self.waiting.append(Task(msg, sender, correlation_id))
            case Reply(Task(worker=Pid() as worker) as task, answer):
                self.busy.discard(worker)
                yield reply(answer, task.client, task.request)
            case Failed(Task(worker=worker) as task, reason):
                # In a moment it is restarted, or its group knows that it has gone.
                yield Envelope(self.executor, StartTimer(worker, 100, worker))
                task.crashes += isinstance(reason, ProcessCrashed)
                if task.crashes < ATTEMPTS:
                    self.waiting.appendleft(task)
                else:
                    yield reply(f"{task.job} is given up", task.client, task.request)
            case Pid() as worker:
                self.busy.discard(worker)
            case _:
                self.workers.takes(msg)
        for worker in self.workers.members:
            if self.waiting and worker not in self.busy:
                task = self.waiting.popleft()
                task.worker = worker
                self.busy.add(worker)
                yield Envelope(self.executor, Ask(worker, task.job, 30_000, task))


def start(node: Node) -> None:
    """For `rabble node --app job_queue:start`: two workers, restarted when they crash."""
    # A crash goes to the log with its traceback, where nobody looks here.
    logging.getLogger("rabble").setLevel(logging.CRITICAL)
    workers = [ChildSpec(f"worker {n}", Worker) for n in range(2)]
    node.spawn(Supervisor(workers, intensity=10), "supervisor")


def open_queue(node: Node) -> Pid:
    return node.spawn(Queue(), "queue")


# Trying it out.


async def have_done(node: Node, queue: Pid, jobs: list[Job], victim: NodeProcess) -> list[str]:
    """Have all jobs done at once, while a node is killed."""
    calls = [asyncio.create_task(node.call_async(queue, job, timeout=60)) for job in jobs]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.to_thread(victim.kill)
    return await asyncio.gather(*calls)


def run(open_queue: Callable[[Node], Pid], app: str) -> None:
    with (
        rabble.rouse("a@127.0.0.1:0", mesh=Mesh()) as node,
        NodeProcess("b@127.0.0.1:0", app) as b,
        NodeProcess("c@127.0.0.1:0", app) as c,
    ):
        queue = open_queue(node)
        node.join(b.node_id)
        node.join(c.node_id)
        jobs = [Job(20_000 + 100 * n) for n in range(40)]
        answers = asyncio.run(have_done(node, queue, [*jobs, Job(-1)], b))
        print(f"{len(answers)} jobs are answered, though {b.node_id.name} was killed meanwhile:")
        print(*answers[:2], "...", *answers[-2:], sep="\n")


if __name__ == "__main__":
    run(open_queue, "job_queue:start")
