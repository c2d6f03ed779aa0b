"""The inbox: how envelopes reach a thread from the others.

A queue guarded by the GIL, and one eventfd. Waking a sleeping thread costs some 25 microseconds, so
a wake-up is a flag, not a count: the owner arms the inbox before it sleeps, the first put disarms
it and writes the eventfd once, and nothing is written while the owner is awake. The GIL closes the
gap between "is it empty?" and "I sleep": both happen without letting it go.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport strerror
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close, read, write

from rabble._core.envelope cimport Envelope
from rabble._core.queue cimport EnvelopeQueue

__all__ = ["Inbox"]

cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_CLOEXEC
    enum: EFD_NONBLOCK
    int eventfd(unsigned int initval, int flags)

cdef extern from "<poll.h>" nogil:
    """
    #ifndef _GNU_SOURCE
    #error "ppoll needs _GNU_SOURCE, which Python.h defines"
    #endif
    """
    enum: POLLIN
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd* fds, unsigned long nfds, const timespec* timeout, const void* sigmask)


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef enum:
    SIGNALS_NS = 500_000_000     # how often a wait looks for signals


cdef int wait_readable(int fd, int64_t timeout_ns) noexcept nogil:
    """Sleep until `fd` is readable (1), the time is over (0), or a signal came (-EINTR).

    Any other negative result is an errno, too: it is taken here, because whatever runs between
    here and where the caller has the GIL again may change it.
    """
    cdef pollfd waited
    cdef timespec timeout
    cdef int status
    waited.fd = fd
    waited.events = POLLIN
    waited.revents = 0
    if timeout_ns >= 0:
        timeout.tv_sec = timeout_ns // 1_000_000_000
        timeout.tv_nsec = timeout_ns % 1_000_000_000
    status = ppoll(&waited, 1, NULL if timeout_ns < 0 else &timeout, NULL)
    return -errno if status < 0 else status


@cython.final
@cython.no_gc
cdef class Inbox:
    """FIFO of envelopes that any thread may fill and one thread at a time empties.

    :param limit: how many envelopes it holds at most.
    :param polled: whether others than `wait` may look at its eventfd, as a selector does. Then it
        is closed with the object; otherwise when the inbox is, and nobody waits in it any more.
    """

    def __cinit__(self, size_t limit, *, bint polled=True):
        self.fd = -1
        self.polled = polled
        if limit == 0:
            raise ValueError("an inbox needs a limit of at least 1 envelope, not 0")
        self.queue = EnvelopeQueue()
        self.limit = limit
        self.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.fd < 0:
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)

    def __len__(self):
        return self.queue.count()

    def fileno(self):
        """The eventfd, readable after a put to an armed inbox; -1 if it is closed."""
        return self.fd

    def try_put(self, Envelope envelope not None):
        """Append, from any thread. Returns False, and keeps nothing, if it is full or closed."""
        return self.put(envelope)

    def arm(self):
        """Ask for the eventfd to be written at the next put.

        Returns False, and asks for nothing, if there is something to take already.
        """
        return self.arm_now()

    def take(self, Py_ssize_t most):
        """Remove and return the oldest envelopes as a list, at most `most` of them."""
        cdef list taken = []
        self.drain()
        while self.queue.count() != 0 and len(taken) < most:
            taken.append(self.queue.take())
        return taken

    def wait(self, timeout=None):
        """Sleep without the GIL until there is something to take, or `timeout` seconds are over.

        Returns whether there is something. Signal handlers run meanwhile, and what they raise
        ends the wait. (Of a signal that comes between the last look for one and the sleep, or to
        another thread, the sleep is not told; so it is none of more than half a second.)
        """
        cdef int64_t left = -1
        cdef int64_t end = 0
        cdef int status, fd
        if timeout is not None:
            left = max(<int64_t>(timeout * 1e9), 0)
            end = monotonic_ns() + left
        while self.arm_now():
            fd = self.fd
            self.waiting += 1
            with nogil:
                status = wait_readable(fd, SIGNALS_NS if left < 0 else min(left, SIGNALS_NS))
            self.waiting -= 1
            self.armed = False
            if self.is_closed:
                self.let_go()
                break
            if status < 0 and status != -EINTR:
                raise OSError(-status, strerror(-status).decode())
            PyErr_CheckSignals()
            self.drain()
            if timeout is not None:
                left = end - monotonic_ns()
                if left <= 0:
                    break
        return self.queue.count() != 0

    def signal(self):
        """Make the owner's wait or poll return although nothing was put."""
        self.wake()

    @property
    def closed(self):
        """Whether it refuses further puts."""
        return self.is_closed

    def close(self):
        """Refuse further puts and wake the owner; what is inside can still be taken.

        An eventfd that may be polled is closed with the object and not before.
        """
        self.is_closed = True
        self.wake()
        self.let_go()

    cdef void let_go(self) noexcept:
        """Close the eventfd, if nobody can be waiting for it any more."""
        if not self.polled and self.waiting == 0 and self.fd >= 0:
            close(self.fd)
            self.fd = -1

    cdef bint put(self, Envelope envelope) except -1:
        if self.is_closed or self.queue.count() >= self.limit:
            return False
        self.put_always(envelope)
        return True

    cdef int put_always(self, Envelope envelope) except -1:
        """Append past the limit: for what the runtime itself has to say."""
        self.queue.put(envelope)
        if self.armed:
            self.wake()
        return 0

    cdef bint arm_now(self) noexcept:
        if self.is_closed or self.queue.count() != 0:
            return False
        self.armed = True
        return True

    cdef void wake(self) noexcept:
        cdef uint64_t one = 1
        self.armed = False
        if not self.signalled and self.fd >= 0:
            self.signalled = True
            # Cannot fail on an open eventfd that holds at most 1.
            write(self.fd, &one, 8)

    cdef void drain(self) noexcept:
        cdef uint64_t count
        self.armed = False
        # A closed one stays readable: several threads may wait for that.
        if self.signalled and not self.is_closed:
            read(self.fd, &count, 8)
            self.signalled = False
