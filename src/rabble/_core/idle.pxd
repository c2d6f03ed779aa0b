from libc.stdint cimport int64_t

from rabble._core.inbox cimport Inbox
from rabble._core.poller cimport Poller

cdef enum IdleState:
    AWAKE = 0        # delivering, or about to look at its inbox
    SPINNING = 1     # out of work, watching this very flag without the GIL
    CALLED = 2       # was spinning, and a sender wants it back
    ASLEEP = 3       # in ppoll, on its inbox's eventfd or on all sockets

cdef enum:
    SPIN_CREDIT_MAX = 64

cdef struct Credit:
    # How well spinning has paid of late.
    int left                               # who spins in vain has one less, who has not 8 more
    unsigned int asked                     # without any one spin in so many is tried all the same

cdef bint has_credit(Credit* credit) noexcept
cdef void spun(Credit* credit, bint has_paid) noexcept

cdef class Idle:
    cdef volatile int state                # IdleState
    cdef int64_t spin_ns                   # how long to look for work before it sleeps
    cdef Credit credit
    cdef unsigned long thread_id           # of the executor, once it runs
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

# Have a spinning executor look at its inbox, and wait without the GIL until something was answered,
# and then until all of it is. Bounded, by the time for which an executor may spin and by the
# length of a turn.
cdef int wait_for_idle(Idle idle, volatile bint* is_answered) except -1
