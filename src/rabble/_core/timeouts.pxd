from libc.stdint cimport int64_t

from rabble._core.dispatch cimport Entry
from rabble._core.ids cimport Pid
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.timers cimport Timer, TimerWheel

cdef class Alarm:
    # What a timer is known by that brings a message of the process's own, or repeats.
    cdef object key                        # of the process's choice; its hash may be anybody's code
    cdef object msg                        # what it brings
    cdef int64_t period_ns                 # between two firings; 0: it fires once
    cdef int64_t due_ns                    # when the next one is due, by the executor's clock
    cdef int64_t missed                    # firings that came to nothing before the last one

cdef class Timeouts:
    cdef Pid pid                           # the executor's, which handles fired timers
    cdef EnvelopeQueue run_queue
    cdef TimerWheel wheel                  # ticks are milliseconds since `epoch_ns`
    cdef int64_t epoch_ns                  # when tick 0 of the wheel was
    cdef list due                          # timers that fired and are not queued yet, next one last
    cdef Py_ssize_t due_queued             # timers that fired and stand in the run queue

    # What a process asks. A timer is known by its key, or by an Alarm that has the key.
    cdef int start(self, Entry entry, object known_by, int64_t due_ns) except -1
    cdef bint cancel(self, Entry entry, object key) except -1
    cdef int stop(self, Timer timer) except -1
    cdef int64_t ticks_until(self, int64_t due_ns) noexcept
    # Its end.
    cdef int cancel_all(self, dict timers) except -1

    # Queue what is due, and note that one of it has its turn: whether it still is to fire. (A
    # function, so that what somebody's key raises can be left pending.)
    cdef int fire(self, int64_t now_ns) except -1

    # Nanoseconds until one may be due, at most `most`; -1 is without end.
    cdef int64_t time_left(self, int64_t now_ns, int64_t most) noexcept
    cdef inline bint any(self) noexcept:
        return self.wheel.count != 0 or len(self.due) != 0
    cdef int drop_all(self) except -1

cdef bint has_fired(Timeouts timeouts, Timer timer, int64_t now_ns) except -1
