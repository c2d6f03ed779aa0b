from rabble._core.connection cimport Connection
from rabble._core.transport cimport Sockets

cdef class Poller:
    cdef int stop_fd                   # eventfd, owned: wakes the poll thread
    cdef int inbox_fd                  # eventfd of the executor's inbox; -1: it is not watched
    cdef Sockets sockets               # what its transports share; the descriptors in it are owned
    cdef volatile bint stopping        # `run` is to return
    cdef volatile bint is_alone        # no executor looks any more
    cdef readonly bint running         # ... and has not returned

    cdef int check_idle(self, Connection connection) except -1

    # The executor's: a look at the sockets, and what a sleep begins and ends with.
    cdef void look(self) noexcept nogil
    cdef bint fall_asleep(self) noexcept nogil
    cdef void wake_up(self, bint stays_asleep) noexcept nogil
