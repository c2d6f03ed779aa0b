"""Timeouts: the timers of processes, from `StartTimer` until they are queued as fired.

A timer that repeats is one timer, which is started again when it has had its turn: for the next
time that is still to come, counted from its start, so it neither drifts nor makes up for what was
missed. What a process chose as the key of a timer may run its code wherever it is looked up, so
that is done where it can end the process.

All of it belongs to the executor's thread.
"""

cimport cython
from libc.stdint cimport int64_t

from rabble._core.capacities cimport DUE_QUEUED_MAX
from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.timers cimport Timer, TimerWheel

__all__ = []


@cython.final
@cython.no_gc
cdef class Alarm:
    """The key and the message of a timer, and when it is due if it repeats.

    Only its timer refers to it, so it is in no cycle that outlives the timer.
    """


cdef inline object key_of(object known_by):
    return (<Alarm>known_by).key if type(known_by) is Alarm else known_by


@cython.final
cdef class Timeouts:
    """The timers of one executor's processes."""

    def __cinit__(self):
        self.wheel = TimerWheel()
        self.due = []

    cdef int start(self, Entry entry, object known_by, int64_t due_ns) except -1:
        cdef object key = key_of(known_by)
        cdef Timer old, timer
        cdef bint is_known = False
        if entry.timers is None:
            entry.timers = {}
        old = entry.timers.get(key)
        timer = self.wheel.c_start(entry, known_by, self.ticks_until(due_ns))
        try:
            entry.timers[key] = timer
            is_known = True
        finally:
            if not is_known:
                # The hash of its key raises, or memory is short: nobody could cancel it.
                self.wheel.c_cancel(timer)
        if old is not None:
            self.stop(old)
        return 0

    cdef int64_t ticks_until(self, int64_t due_ns) noexcept:
        """Rounded up to the next tick, from the true time and not the batch's: never early."""
        return (due_ns - self.epoch_ns + 999_999) // 1_000_000 - self.wheel.now

    cdef int stop(self, Timer timer) except -1:
        """It is in no entry any more; if it has fired and stands in the queue, it comes to nothing.
        """
        timer.correlation_id = None
        self.wheel.c_cancel(timer)
        return 0

    cdef bint cancel(self, Entry entry, object key) except -1:
        cdef Timer timer
        if entry.timers is None:
            return False
        timer = entry.timers.pop(key, None)
        if timer is None:
            return False
        self.stop(timer)
        return True

    cdef int cancel_all(self, dict timers) except -1:
        cdef Timer timer
        for timer in timers.values():
            self.stop(timer)
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


cdef bint has_fired(Timeouts timeouts, Timer timer, int64_t now_ns) except -1:
    """One that fired has its turn. False if it was cancelled, or its process ended, meanwhile."""
    cdef Entry entry = <Entry>timer.owner
    cdef Alarm alarm
    if timeouts.due_queued > 0:
        timeouts.due_queued -= 1
    # Nothing is known by None: one that was stopped while it stood in the queue.
    if entry.timers is None or timer.correlation_id is None:
        return False
    if type(timer.correlation_id) is Alarm:
        alarm = <Alarm>timer.correlation_id
        if alarm.period_ns:
            alarm.missed = max(now_ns - alarm.due_ns, 0) // alarm.period_ns
            alarm.due_ns += (alarm.missed + 1) * alarm.period_ns
            timeouts.wheel.c_restart(timer, timeouts.ticks_until(alarm.due_ns))
            return True
    key = key_of(timer.correlation_id)
    if entry.timers.get(key) is not timer:
        return False
    del entry.timers[key]
    return True
