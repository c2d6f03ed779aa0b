from libc.stdint cimport int64_t

from rabble._core.inbox cimport Inbox
from rabble._core.poller cimport Poller

cdef enum IdleState:
    AWAKE = 0        # delivering, or about to look at its inbox
    SPINNING = 1     # out of work, watching this very flag without the GIL
    CALLED = 2       # was spinning, and a sender wants it back
    ASLEEP = 3       # in ppoll, on its inbox's eventfd or on all sockets

cdef class Idle:
    cdef volatile int state                # IdleState
    cdef int64_t spin_ns                   # how long to look for work before it sleeps
    cdef int spin_credit                   # how well spinning has paid of late
    cdef int64_t handed_over_ns            # when a sender last came back from handing over
    cdef int64_t hand_over_credit_ns       # how long senders may hand over from now on
    cdef int64_t sleeps                    # how often it slept ...
    cdef int64_t wakeups                   # ... and was woken by its inbox
    cdef int64_t spins                     # how often it spun

    # The executor's. `poller` is None without a mesh.
    cdef bint may_spin(self) noexcept
    cdef bint spin(self, Inbox inbox, Poller poller, int64_t left) except -1
    cdef int sleep(self, Inbox inbox, Poller poller, int64_t left) except -1
    cdef int sleep_on_sockets(self, Poller poller, int64_t left) except -1

    # Any thread's, when it has put something into the inbox.
    cdef inline int call(self) except -1:
        return self.call_over() if self.state == SPINNING else 0
    cdef int call_over(self) except -1
    # The same without waiting for it, for a signal handler.
    cdef inline void recall(self) noexcept:
        if self.state == SPINNING:
            self.state = CALLED
