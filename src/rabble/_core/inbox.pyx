"""The inbox: how envelopes reach a thread from the others.

A queue guarded by the GIL, and one eventfd. Waking a sleeping thread costs some 25 microseconds, so
a wake-up is a flag, not a count: the owner arms the inbox before it sleeps, the first put disarms
it and writes the eventfd once, and nothing is written while the owner is awake. The GIL closes the
gap between "is it empty?" and "I sleep": both happen without letting it go.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.float cimport PyFloat_AsDouble
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from cpython.object cimport PyObject
from libc.errno cimport EINTR, errno
from libc.math cimport isnan
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


cdef extern from *:
    """
    /* Put an owned reference where PyList_New left NULL; and say how many of them there are. */
    #define RABBLE_LIST_FILL(list, at, owned) PyList_SET_ITEM(list, at, owned)
    #define RABBLE_LIST_ENDS(list, size) Py_SET_SIZE((PyVarObject *)(list), size)
    """
    void RABBLE_LIST_FILL(object into, Py_ssize_t at, PyObject* owned) noexcept
    void RABBLE_LIST_ENDS(object into, Py_ssize_t size) noexcept

cdef extern from "Python.h":
    list PyList_New(Py_ssize_t size)


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef enum:
    SIGNALS_NS = 500_000_000     # how often a wait looks for signals

cdef double WAIT_S_MAX = 4e9     # a longer wait, of 126 years, is one without end


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


cdef int new_eventfd(int count) except -1:
    cdef int fd = eventfd(count, EFD_CLOEXEC | EFD_NONBLOCK)
    if fd < 0:
        PyErr_SetFromErrno(OSError)
    return fd


cdef int64_t timeout_to_ns(object timeout) except? -2:
    """A timeout in seconds as nanoseconds; -1 is without end, as is more than a century."""
    cdef int overflow
    cdef int64_t whole
    cdef double seconds
    if timeout is None:
        return -1
    if PyLong_Check(timeout):
        # A float cannot be as large as an int can.
        whole = PyLong_AsLongLongAndOverflow(timeout, &overflow)
        seconds = <double>whole if not overflow else WAIT_S_MAX * overflow
    else:
        seconds = PyFloat_AsDouble(timeout)
    if isnan(seconds):
        raise ValueError("a timeout must be a number of seconds or None, not NaN")
    if seconds >= WAIT_S_MAX:
        return -1
    return <int64_t>(seconds * 1e9) if seconds > 0 else 0


# Seen by the garbage collector, as its messages may lead back to it: one that names its own mailbox
# does. All it refers to is its queue, which collecting empties; so that is taken away from no
# inbox, and no method has to ask for it.
@cython.final
@cython.no_gc_clear
cdef class Inbox:
    """FIFO of envelopes that any thread may fill and one thread at a time empties.

    :param limit: how many envelopes it holds at most.
    """

    def __cinit__(self, size_t limit):
        if limit == 0:
            raise ValueError("an inbox needs a limit of at least 1 envelope, not 0")
        self.queue = EnvelopeQueue()
        self.fd = new_eventfd(0)
        self.limit = limit

    def __dealloc__(self):
        # Where the arguments were refused nothing was opened, and 0 is no descriptor of its own.
        if self.limit != 0 and self.fd >= 0:
            close(self.fd)

    def __len__(self):
        return self.queue.count()

    def fileno(self):
        """The eventfd, readable after a put to an armed inbox, and for ever once it is closed.

        From now on it stays open as long as the inbox exists, since somebody may be polling it.
        """
        if self.fd < 0:
            # It was closed before anybody asked for it.
            self.fd = new_eventfd(1)
        self.is_polled = True
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
        cdef list taken
        cdef Py_ssize_t room = min(max(most, 0), <Py_ssize_t>self.queue.count())
        cdef Py_ssize_t n = 0
        # All the memory first: an envelope that was taken out, and has no place, would be lost.
        taken = PyList_New(room)
        self.drain()
        # To make a list may run the garbage collector, and with it code that takes some.
        while n < room and self.queue.count() != 0:
            RABBLE_LIST_FILL(taken, n, self.queue.take_owned())
            n += 1
        RABBLE_LIST_ENDS(taken, n)
        return taken

    def wait(self, timeout=None):
        """Sleep without the GIL until there is something to take, or `timeout` seconds are over.

        Returns whether there is something. Signal handlers run meanwhile, and what they raise
        ends the wait. (Of a signal that comes between the last look for one and the sleep, or to
        another thread, the sleep is not told; so it is none of more than half a second.)

        :param timeout: seconds, 0 if negative; infinity, or more than a century, is as None.
        :raises TypeError: if it is no number.
        :raises ValueError: if it is NaN.
        """
        cdef int64_t left = timeout_to_ns(timeout)
        cdef int64_t end = monotonic_ns() + left
        cdef bint is_bounded = left >= 0
        # Whoever closes the inbox leaves the eventfd open for this thread, which then closes it.
        self.waiting += 1
        try:
            while self.arm_now():
                self.sleep(left)
                if is_bounded:
                    left = end - monotonic_ns()
                    if left <= 0:
                        break
        finally:
            self.waiting -= 1
            if self.is_closed:
                self.give_back()
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

        The eventfd is closed as soon as no thread waits for it, but if somebody asked for its
        number, and so may be polling it: then with the object and not before.
        """
        self.is_closed = True
        self.wake()
        self.give_back()

    cdef bint put(self, Envelope envelope) except -1:
        if self.is_closed or self.is_full():
            return False
        self.put_always(envelope)
        return True

    cdef int put_always(self, Envelope envelope) except -1:
        """Append past the limit: for what the runtime itself has to say."""
        self.queue.append(envelope)
        if self.armed:
            self.wake()
        return 0

    cdef bint arm_now(self) noexcept:
        if self.is_closed or self.queue.count() != 0:
            return False
        self.armed = True
        return True

    cdef int sleep(self, int64_t left) except -1:
        """Sleep, armed, until the eventfd is written, a signal comes, or for a bounded time."""
        cdef int fd = self.fd
        cdef int status
        with nogil:
            status = wait_readable(fd, SIGNALS_NS if left < 0 else min(left, SIGNALS_NS))
        self.armed = False
        if status < 0 and status != -EINTR:
            raise OSError(-status, strerror(-status).decode())
        PyErr_CheckSignals()
        self.drain()
        return 0

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

    cdef void give_back(self) noexcept:
        """Close the eventfd of a closed inbox, if nobody polls it."""
        if self.fd >= 0 and self.waiting == 0 and not self.is_polled:
            close(self.fd)
            self.fd = -1
