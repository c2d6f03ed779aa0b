from libc.stdint cimport uint64_t

from rabble._core.dispatch cimport DispatchTable, Entry
from rabble._core.ids cimport Pid
from rabble._core.pid_slots cimport PidSet
from rabble._core.connection cimport Connection
from rabble._core.routes cimport Routes

cdef enum MonitorStatus:
    MONITORED = 0
    NO_PROCESS = 1       # nobody of this node has that pid
    UNREACHABLE = 2      # no connection leads to that pid's node
    TOO_MANY = 3         # the peer has as many pairs as it may

cdef class RemoteMonitor:
    # The MONITORs of a pair that the peer has not answered by a DOWN. There is more than one while
    # a DOWN for an earlier life may be under way.
    cdef uint64_t first                    # reference of the oldest ...
    cdef uint64_t latest                   # ... and of the one that the peer knows, or will

cdef class Monitors:
    # A pair is (monitoring, monitored). Each of its two ends that lives on this node has it in its
    # entry, as `monitoring` and as `monitored_by`; one that crosses a connection is there as well,
    # under the same two words: what a connection's `monitoring` has is monitored at the peer.
    cdef DispatchTable table               # the processes of this node
    cdef Routes routes                     # the connections to others; None without a mesh
    cdef Py_ssize_t peer_monitors_max      # pairs in which a peer's process monitors
    # (who ended, with whom it was linked) -> the newest Exiting of it that waits: of `links`.
    cdef dict leaving

    # What a process of this node asks.
    cdef MonitorStatus add(self, Entry entry, Pid pid) except? TOO_MANY
    cdef int remove(self, Entry entry, Pid pid) except -1

    # What a peer asks of a process of this node, and what it tells of its own.
    cdef MonitorStatus add_for_peer(
        self, Connection connection, Pid monitoring, Pid monitored, uint64_t reference
    ) except? UNREACHABLE
    cdef int remove_for_peer(
        self, Connection connection, Pid monitoring, Pid monitored, uint64_t reference
    ) except -1
    cdef Entry take_down(
        self, Connection connection, Pid monitoring, Pid monitored, uint64_t reference
    )

    # The end of a life, in two parts: first the pairs in which it is monitored, which cannot fail,
    # and then, when it has been let go of, those in which it monitors.
    cdef int forget_monitored_by(self, Pid pid, dict monitored_by) except -1
    cdef int forget_monitoring(self, Pid pid, PidSet monitoring) except -1
    # Envelopes with a notice of the end of a life for each pid that monitored it.
    cdef list farewells(self, Pid executor, Pid pid, dict monitored_by, object down)

    # The end of a connection: monitored pid of the peer -> pids of this node that monitor it.
    cdef dict forget_connection(self, Connection connection)
    # Of these the entry that still is there, which monitors `monitored` no longer.
    cdef Entry forget_remote(self, Pid monitoring, Pid monitored)
