"""Timeouts: the timers of processes, from `StartTimer` until they are queued as fired.

All of it belongs to the executor's thread.
"""

cimport cython
from libc.stdint cimport int64_t

from rabble._core.capacities cimport DUE_QUEUED_MAX
from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.ids cimport CorrelationId
from rabble._core.timers cimport Timer, TimerWheel

__all__ = []


@cython.final
cdef class Timeouts:
    """The timers of one executor's processes."""

    def __cinit__(self):
        self.wheel = TimerWheel()
        self.due = []

    cdef int start(
        self, Entry entry, CorrelationId correlation_id, int64_t now_ns, int64_t delay_ms
    ) except -1:
        # Rounded up to the next tick, from the true time and not the batch's: never early.
        cdef int64_t due_ns = now_ns - self.epoch_ns + delay_ms * 1_000_000
        cdef Timer old, timer
        if entry.timers is None:
            entry.timers = {}
        old = entry.timers.get(correlation_id)
        timer = self.wheel.c_start(
            entry, correlation_id, (due_ns + 999_999) // 1_000_000 - self.wheel.now
        )
        entry.timers[correlation_id] = timer
        if old is not None:
            self.wheel.c_cancel(old)
        return 0

    cdef bint cancel(self, Entry entry, CorrelationId correlation_id) except -1:
        cdef Timer timer
        if entry.timers is None:
            return False
        timer = entry.timers.pop(correlation_id, None)
        if timer is None:
            return False
        self.wheel.c_cancel(timer)
        return True

    cdef int cancel_all(self, dict timers) except -1:
        cdef Timer timer
        for timer in timers.values():
            self.wheel.c_cancel(timer)
        return 0

    cdef int fire(self, int64_t now_ns) except -1:
        """Queue the timers that are due, but no more than others can be expected to wait behind.

        By way of the queue: what was sent before one fired is delivered before it, and a cancel
        that stands in front of it still takes effect. What there is no memory for stays due.
        """
        cdef int64_t tick = (now_ns - self.epoch_ns) // 1_000_000
        cdef Envelope envelope
        if len(self.due) == 0 and tick > self.wheel.now:
            # Only when `due` is empty: otherwise later timers would be queued before earlier ones.
            try:
                self.wheel.c_advance(tick, self.due)
            finally:
                # If memory ran out, what has fired is in there all the same.
                self.due.reverse()
        while len(self.due) != 0 and self.due_queued < DUE_QUEUED_MAX:
            if not self.run_queue.has_room(1):
                break
            envelope = new_envelope(self.pid, self.due[len(self.due) - 1], None, None)
            self.due.pop()
            self.run_queue.append(envelope)
            self.due_queued += 1
        return 0

    cdef bint has_fired(self, Timer timer) except -1:
        cdef Entry entry = <Entry>timer.owner
        if self.due_queued > 0:
            self.due_queued -= 1
        # Cancelled, replaced, or its process ended, while it stood in the queue.
        if entry.timers is None or entry.timers.get(timer.correlation_id) is not timer:
            return False
        del entry.timers[timer.correlation_id]
        return True

    cdef int64_t time_left(self, int64_t now_ns, int64_t most) noexcept:
        cdef int64_t tick = self.wheel.c_next_deadline()
        cdef int64_t left
        if len(self.due) != 0:
            return 0
        if tick < 0:
            return most
        left = max(self.epoch_ns + tick * 1_000_000 - now_ns, 0)
        return left if most < 0 else min(left, most)

    cdef int drop_all(self) except -1:
        self.wheel.drop_all()
        self.due.clear()
        return 0
