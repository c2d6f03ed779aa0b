"""What an executor does while it has nothing to do, and how it is called back.

Work often comes within microseconds, and waking from sleep takes longer than that. So an executor
that is out of work first *spins*: without the GIL it watches a flag, and its sockets. A sender
that finds it spinning calls it over; only when nothing came does it sleep.
docs/internals/architecture.md tells why, and what it costs whom.
"""

cimport cython
from libc.stdint cimport int64_t

from rabble._core.inbox cimport Inbox, monotonic_ns, wait_readable
from rabble._core.poller cimport Poller

__all__ = ["Idle"]

cdef enum:
    HAND_OVER_NS_MAX = 30_000        # how long a sender lets the executor go first
    HAND_OVER_COST_NS = 3_000        # what that is expected to take
    HAND_OVER_CREDIT_NS = 50_000     # what senders may save up for it
    SPIN_US_MAX = 1_000_000
    ANSWER_NS_MAX = 1_000_000        # an executor's turn
    SPIN_CREDIT_GAIN = 8
    SPIN_ANYWAY = 16                 # without credit it spins once in so many sleeps

cdef extern from *:
    """
    #if defined(__x86_64__) || defined(__i386__)
    #define RABBLE_RELAX() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define RABBLE_RELAX() __asm__ __volatile__("yield")
    #else
    #define RABBLE_RELAX() ((void)0)
    #endif
    #define RABBLE_FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    void RABBLE_RELAX() noexcept nogil
    void RABBLE_FENCE() noexcept nogil


cdef bint has_credit(Credit* credit) noexcept:
    credit.asked += 1
    return credit.left > 0 or credit.asked % SPIN_ANYWAY == 0


cdef void spun(Credit* credit, bint has_paid) noexcept:
    if has_paid:
        credit.left = min(credit.left + SPIN_CREDIT_GAIN, <int>SPIN_CREDIT_MAX)
    elif credit.left > 0:
        credit.left -= 1


cdef int wait_for_idle(Idle idle, volatile bint* is_answered) except -1:
    cdef int64_t start = monotonic_ns()
    cdef int64_t now = start
    with nogil:
        RABBLE_FENCE()
        if idle.state == SPINNING:
            idle.state = CALLED
        RABBLE_FENCE()
        while now - start < (ANSWER_NS_MAX if is_answered[0] else idle.spin_ns):
            # It has the GIL until it is idle: to ask for that before would mean sleep.
            if is_answered[0] and (idle.state == SPINNING or idle.state == ASLEEP):
                break
            RABBLE_RELAX()
            now = monotonic_ns()
    return 0


# It refers to no object, so there is nothing for the garbage collector to see.
@cython.final
cdef class Idle:
    """The idle time of one executor.

    :param spin_us: how long to look for work before sleeping, in microseconds, up to a second's; 0
        is off.
    """

    def __cinit__(self, int64_t spin_us):
        if not 0 <= spin_us <= SPIN_US_MAX:
            raise ValueError(f"spin_us must be 0 to {SPIN_US_MAX} microseconds, not {spin_us}")
        self.spin_ns = spin_us * 1000
        self.credit.left = SPIN_CREDIT_MAX

    cdef bint may_spin(self) noexcept:
        return self.spin_ns > 0 and has_credit(&self.credit)

    cdef bint spin(self, Inbox inbox, Poller poller, int64_t left) except -1:
        """Look for work without the GIL, for `left` nanoseconds at most; whether there is some.

        Less than 0 is as long as spinning is allowed.
        """
        cdef bint looks = poller is not None and (
            poller.sockets.connections != 0 or poller.sockets.clients.connections != 0
        )
        cdef bint paid
        cdef int64_t end = monotonic_ns() + (
            self.spin_ns if left < 0 else min(left, self.spin_ns)
        )
        self.spins += 1
        self.state = SPINNING
        if looks:
            poller.sockets.idle = True
        with nogil:
            while self.state == SPINNING and monotonic_ns() < end:
                if looks:
                    poller.look()
                    if poller.sockets.pending or poller.sockets.clients.pending:
                        break
                RABBLE_RELAX()
            if looks:
                poller.sockets.idle = False
        self.state = AWAKE
        paid = inbox.queue.count() != 0 or (
            looks and (poller.sockets.pending or poller.sockets.clients.pending)
        )
        spun(&self.credit, paid)
        return paid

    cdef int sleep(self, Inbox inbox, Poller poller, int64_t left) except -1:
        """Sleep until the inbox, which is armed, is signalled, for `left` nanoseconds at most.

        Less than 0 is without end. On a mesh, what comes for the executor from a peer ends it, too.
        """
        cdef int fd = inbox.fd
        # Whoever closes it meanwhile leaves its eventfd open.
        inbox.is_polled = True
        self.sleeps += 1
        self.state = ASLEEP
        if poller is not None:
            self.sleep_on_sockets(poller, left)
        else:
            with nogil:
                # Too early a return, by a signal say, costs one more turn and nothing else.
                wait_readable(fd, left)
        self.state = AWAKE
        if inbox.signalled:
            self.wakeups += 1
        inbox.drain()
        return 0

    cdef int sleep_on_sockets(self, Poller poller, int64_t left) except -1:
        """The same on all sockets besides the inbox, and answer what needs no GIL."""
        cdef int64_t end = monotonic_ns() + left
        cdef int status
        with nogil:
            poller.sockets.idle = True
            if poller.fall_asleep():
                while True:
                    status = wait_readable(poller.sockets.epfd, left)
                    poller.wake_up(status > 0)
                    if not poller.sockets.sleeper:
                        break
                    # Heartbeats, or a close that was expected: nothing for the executor.
                    if left >= 0:
                        left = max(end - monotonic_ns(), 0)
            # From here on it has something to do, and makes no progress until it has the GIL.
            poller.sockets.idle = False
        return 0

    cdef int call_over(self) except -1:
        """Get the spinning executor to look at its inbox.

        It needs the GIL for that, which this thread holds; taking a held one means sleeping on a
        condition variable, some 25 microseconds. So the sender lets go of the GIL first, calls,
        and waits for the executor to be idle again, or for a bounded time.

        That costs a sender a microsecond or two per envelope, so it may take up half of its time
        at most: one that sends in a loop soon only calls, and goes on until the interpreter takes
        the GIL from it; the executor then gets its envelopes in batches.
        """
        cdef int64_t start = monotonic_ns()
        cdef int64_t now = start
        self.hand_over_credit_ns = min(
            self.hand_over_credit_ns + start - self.handed_over_ns, HAND_OVER_CREDIT_NS
        )
        if self.hand_over_credit_ns < HAND_OVER_COST_NS:
            self.handed_over_ns = start
            self.state = CALLED
            return 0
        with nogil:
            RABBLE_FENCE()
            self.state = CALLED
            RABBLE_FENCE()
            while (
                self.state != SPINNING
                and self.state != ASLEEP
                and now - start < HAND_OVER_NS_MAX
            ):
                RABBLE_RELAX()
                now = monotonic_ns()
        now = monotonic_ns()
        self.hand_over_credit_ns -= now - start
        self.handed_over_ns = now
        return 0
