from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from rabble._core.backlog cimport Backlog
from rabble._core.dispatch cimport DispatchTable, Entry, EntryKind, Scene
from rabble._core.ids cimport Pid
from rabble._core.monitors cimport Monitors
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.requests cimport Requests
from rabble._core.timeouts cimport Timeouts

cdef class Lives:
    cdef Pid pid                           # the executor's
    cdef object process_class              # the base class of processes
    cdef Py_ssize_t runtime_offset         # where in a process its `_runtime` lies
    cdef object undefined_receive          # the `receive` of a class that defines none
    cdef object guard                      # makes what is called instead of a `receive`; or None
    cdef Scene scene                       # what processes may ask of where they run
    cdef DispatchTable table
    cdef EnvelopeQueue run_queue
    cdef Backlog backlog
    cdef Monitors monitors
    cdef Requests requests                 # of calls, and which life has them
    cdef Timeouts timeouts
    cdef dict letter_subscribers           # Pid -> Entry of those that are sent each dead letter
    cdef dict node_subscribers             # Pid -> Entry of those that are sent NodeUp, NodeDown
    cdef int64_t processes                 # that run
    cdef uint64_t spawned                  # processes ever begun
    cdef uint64_t added                    # services, mailboxes and callbacks ever added

    # Raise if what is asked for is wrong, whatever the process may be.
    cdef int check(self, Pid pid, object process, object mailbox_max) except -1
    # The beginning of a process, in two parts: all that may fail or run somebody's code, and then
    # what makes it known. The latter returns False if the name is taken; the caller holds what
    # `former_of` has returned until all of the beginning is done.
    cdef Entry prepare(self, Pid pid, object process, object mailbox_max)
    cdef object former_of(self, object process)
    cdef bint begin(self, Entry entry) except -1
    cdef PyObject** runtime_of(self, object process) noexcept
    # The same of a service: False if the name is taken.
    cdef bint begin_service(self, Pid pid, object target, EntryKind kind) except -1

    cdef int subscribe(self, Entry entry, int which, bint wanted) except -1

    # The end of one: its monitors and links are told `reason`. All or nothing, if memory is short.
    cdef int end(self, Entry entry, object reason, unsigned long long crash=*) except -1
    # The same of one that ends with its node.
    cdef int end_with_node(self, Entry entry, object reason) except -1
    # The same in two parts, of which the first cannot fail: it returns the pids that monitored it,
    # and its entry keeps its links for the second.
    cdef dict detach(self, Entry entry)
    cdef void let_go(self, Entry entry) noexcept
    cdef int tell_ended(self, Entry entry, dict monitored_by, object reason) except -1
    cdef list farewells(self, Entry entry, dict monitored_by, object reason)
    cdef void forget_links(self, Entry entry) noexcept
    # The end of all, of which nobody is told.
    cdef int clear(self) except -1
