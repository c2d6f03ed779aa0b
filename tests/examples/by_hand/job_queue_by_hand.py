"""`examples/job_queue.py` without `Ask`, `Supervisor`, `Group` and timers that carry a message."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import job_queue
from asking import Answered, NotAnswered, Requests, answer
from job_queue import Job
from membership import Directory, Join, Members, Watch, directory_of
from supervising import HandSupervisor, Spec

from rabble import CorrelationId, Envelope, Node, Output, Pid, Process, StartTimer, Timeout

ATTEMPTS = 3


class Worker(Process):
    """Does one job after the other."""

    def init(self) -> Output:
        return Envelope(directory_of(self.node_id), Join("workers"))

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if not isinstance(msg, Job):
            return None
        divided = bytearray(msg.limit)
        for n in range(2, msg.limit):
            divided[2 * n :: n] = b"\1" * len(divided[2 * n :: n])
        return answer(f"{divided.count(0, 2)} primes below {msg.limit}", sender, correlation_id)


@dataclasses.dataclass
class Task:
    """A job that is not done yet, and who wants it."""

    job: Job
    client: Pid | None
    request: CorrelationId | None
    worker: Pid
    crashes: int = 0


class Queue(Process):
    """Has each job done by some worker, and answers it."""

    def __init__(self) -> None:
        self.workers: list[Pid] = []
        self.waiting: collections.deque[Task] = collections.deque()
        self.busy: set[Pid] = set()
        self.resting: dict[CorrelationId, Pid] = {}

    def init(self) -> Output:
        self.requests = Requests(self)
        self.rest = CorrelationId(self.executor)
        return Envelope(directory_of(self.node_id), Watch("workers"))

    def receive(
        self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> Iterator[Envelope]:
        for ended in self.requests.ended(msg, correlation_id):
            yield from self.ended(ended.tag, ended)
        yield from self.requests.tidy(correlation_id)
        match msg:
            case Job():
                self.waiting.append(Task(msg, sender, correlation_id, self.pid))
            case Timeout(timer) if timer in self.resting:
                self.busy.discard(self.resting.pop(timer))
            case Members("workers", members):
                self.workers = members
            case _:
                pass
        for worker in self.workers:
            if self.waiting and worker not in self.busy:
                task = self.waiting.popleft()
                task.worker = worker
                self.busy.add(worker)
                yield from self.requests.ask(worker, task.job, 30_000, task)

    def ended(self, task: Task, how: Answered | NotAnswered) -> Iterator[Envelope]:
        if isinstance(how, Answered):
            self.busy.discard(task.worker)
            yield from answer(how.value, task.client, task.request)
            return
        # In a moment it is restarted, or its group knows that it has gone.
        self.rest = self.rest.next_request()
        self.resting[self.rest] = task.worker
        yield Envelope(self.executor, StartTimer(self.rest, 100))
        task.crashes += how.kind == "crashed"
        if task.crashes < ATTEMPTS:
            self.waiting.appendleft(task)
        else:
            yield from answer(f"{task.job} is given up", task.client, task.request)


def start(node: Node) -> None:
    """For `rabble node --app job_queue_by_hand:start`."""
    logging.getLogger("rabble").setLevel(logging.CRITICAL)
    node.spawn(Directory(), "directory")
    workers = [Spec(f"worker {n}", Worker) for n in range(2)]
    node.spawn(HandSupervisor(workers, intensity=10), "supervisor")


def open_queue(node: Node) -> Pid:
    node.spawn(Directory(), "directory")
    return node.spawn(Queue(), "queue")


# Trying it out.


if __name__ == "__main__":
    job_queue.run(open_queue, "job_queue_by_hand:start")
