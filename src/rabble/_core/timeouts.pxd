from libc.stdint cimport int64_t

from rabble._core.dispatch cimport Entry
from rabble._core.ids cimport CorrelationId, Pid
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.timers cimport Timer, TimerWheel

cdef class Timeouts:
    cdef Pid pid                           # the executor's, which handles fired timers
    cdef EnvelopeQueue run_queue
    cdef TimerWheel wheel                  # ticks are milliseconds since `epoch_ns`
    cdef int64_t epoch_ns                  # when tick 0 of the wheel was
    cdef list due                          # timers that fired and are not queued yet, next one last
    cdef Py_ssize_t due_queued             # timers that fired and stand in the run queue

    # What a process asks.
    cdef int start(
        self, Entry entry, CorrelationId correlation_id, int64_t now_ns, int64_t delay_ms
    ) except -1
    cdef bint cancel(self, Entry entry, CorrelationId correlation_id) except -1
    # Its end.
    cdef int cancel_all(self, dict timers) except -1

    # Queue what is due, and note that one of it has its turn: whether it still is to fire.
    cdef int fire(self, int64_t now_ns) except -1
    cdef bint has_fired(self, Timer timer) except -1

    # Nanoseconds until one may be due, at most `most`; -1 is without end.
    cdef int64_t time_left(self, int64_t now_ns, int64_t most) noexcept
    cdef inline bint any(self) noexcept:
        return self.wheel.count != 0 or len(self.due) != 0
    cdef int drop_all(self) except -1
