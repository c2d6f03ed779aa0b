"""Control messages: what processes ask of their runtime, and the runtime of its executor.

Each handler is called with the message and its envelope, in the executor's thread, in the message's
turn. What it raises is an error of the process that sent the message, and ends it.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.executor cimport Discard, Executor, Undelivered
from rabble._core.ids cimport CorrelationId, Pid
from rabble._core.table cimport EXECUTOR, PROCESS, Entry
from rabble._core.timers cimport Timer
from rabble._core.timers import validate_delay_ms

__all__ = ["Control"]


@cython.final
cdef class Control:
    """The handlers of one executor's control messages; making it puts them into place."""

    def __init__(self, Executor executor not None):
        protocol = executor.protocol
        self.executor = executor
        self.timeout_class = protocol.Timeout
        self.down_reason = protocol.DownReason
        executor.controls = {
            protocol.StartTimer: self.start_timer,
            protocol.CancelTimer: self.cancel_timer,
            protocol.Spawn: self.spawn,
            protocol.Stop: self.stop,
            protocol.Monitor: self.monitor,
            protocol.Demonitor: self.demonitor,
            protocol.GetMetrics: self.get_metrics,
            Timer: self.timer,
            Entry: self.start_process,
            Discard: self.discard,
            Undelivered: self.undelivered,
        }

    cdef Entry asker(self, Envelope envelope):
        """The entry of who sent a control message, or `None` if it is gone by now."""
        cdef PyObject* found
        if envelope.sender is None:
            raise ValueError(
                f"{type(envelope.msg).__name__} needs a sender: it concerns who sent it"
            )
        found = self.executor.table.find(envelope.sender)
        return None if found is NULL else <Entry>found

    def start_process(self, Entry entry not None, Envelope envelope not None):
        if entry.unstarted and entry.target is not None:
            self.executor.start(entry)

    def discard(self, Discard request not None, Envelope envelope not None):
        cdef PyObject* found = self.executor.table.find(request.pid)
        cdef Entry entry
        if found is not NULL and (<Entry>found).target is request.target:
            entry = <Entry>found
            self.executor.remove_entry(entry, request.reason)

    def undelivered(self, Undelivered letter not None, Envelope envelope not None):
        self.executor.drop(letter.envelope, letter.reason)

    def timer(self, Timer timer not None, Envelope envelope not None):
        cdef Entry entry = timer.owner
        cdef Envelope timeout
        self.executor.due_queued -= 1
        # Cancelled, replaced, or its process ended, while it stood in the queue.
        if entry.timers is None or entry.timers.get(timer.correlation_id) is not timer:
            return
        del entry.timers[timer.correlation_id]
        timeout = new_envelope(
            entry.pid,
            self.timeout_class(timer.correlation_id),
            self.executor.pid,
            timer.correlation_id,
        )
        if entry.kind == PROCESS:
            self.executor.give_to_process(entry, timeout)
        else:
            self.executor.give_to_target(entry, timeout)

    def start_timer(self, request, Envelope envelope not None):
        cdef Entry entry = self.asker(envelope)
        cdef CorrelationId correlation_id = request.correlation_id
        cdef int64_t due_ns
        cdef Timer old
        if entry is None:
            return
        # Rounded up to the next tick, from the true time and not the batch's: never early.
        due_ns = self.executor.now_ns() - self.executor.epoch_ns + <int64_t>validate_delay_ms(
            request.delay_ms
        ) * 1_000_000
        if entry.timers is None:
            entry.timers = {}
        else:
            old = entry.timers.get(correlation_id)
            if old is not None:
                self.executor.wheel.c_cancel(old)
        entry.timers[correlation_id] = self.executor.wheel.c_start(
            entry, correlation_id, (due_ns + 999_999) // 1_000_000 - self.executor.wheel.now
        )

    def cancel_timer(self, request, Envelope envelope not None):
        cdef Entry entry = self.asker(envelope)
        cdef Timer timer = None
        if entry is None:
            return
        if entry.timers is not None:
            timer = entry.timers.pop(request.correlation_id, None)
            if timer is not None:
                self.executor.wheel.c_cancel(timer)
        if request.acknowledge:
            self.executor.tell(
                entry.pid,
                self.executor.protocol.TimerCancelled(request.correlation_id, timer is not None),
                request.correlation_id,
            )

    def spawn(self, request, Envelope envelope not None):
        cdef Pid pid = Pid(request.name, self.executor.node, request.group)
        if not self.executor.add(pid, request.process, request.mailbox_max):
            reason = "the node shuts down" if self.executor.is_stopping else "the name is taken"
            if envelope.sender is not None:
                self.executor.tell(
                    envelope.sender,
                    self.executor.protocol.SpawnFailed(pid, reason),
                    envelope.correlation_id,
                )

    def stop(self, request, Envelope envelope not None):
        cdef PyObject* found = self.executor.table.find(<Pid?>request.pid)
        cdef Entry entry
        if found is NULL:
            return
        if (<Entry>found).kind == EXECUTOR:
            raise ValueError("the executor is not stopped by a message; use node.shutdown()")
        entry = <Entry>found
        self.executor.remove_entry(entry, request.reason or self.down_reason("stopped"))

    def monitor(self, request, Envelope envelope not None):
        cdef Entry entry = self.asker(envelope)
        cdef Pid pid = <Pid?>request.pid
        cdef PyObject* found = self.executor.table.find(pid)
        cdef Entry watched
        if entry is None:
            return
        if found is NULL:
            self.executor.tell(
                entry.pid,
                self.executor.protocol.Down(pid, self.down_reason("no_process")),
            )
            return
        watched = <Entry>found
        if watched.watchers is None:
            watched.watchers = {}
        if entry.watched is None:
            entry.watched = {}
        watched.watchers[entry.pid] = True
        entry.watched[pid] = True

    def demonitor(self, request, Envelope envelope not None):
        cdef Entry entry = self.asker(envelope)
        cdef Pid pid = <Pid?>request.pid
        cdef PyObject* found = self.executor.table.find(pid)
        if found is not NULL and entry is not None and (<Entry>found).watchers is not None:
            (<Entry>found).watchers.pop(entry.pid, None)
        if entry is not None and entry.watched is not None:
            entry.watched.pop(pid, None)

    def get_metrics(self, request, Envelope envelope not None):
        cdef Entry entry = self.asker(envelope)
        if entry is not None:
            self.executor.tell(entry.pid, self.executor.observer.metrics(), envelope.correlation_id)
