from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

cdef class NodeId:
    cdef readonly str name          # the node's name, unique in its mesh
    cdef readonly str addr          # "host:port", where its peers reach it
    cdef Py_hash_t hash_value       # computed once: every dispatch looks it up

cdef class Pid:
    cdef readonly str name          # the process's name within its node and group
    cdef readonly NodeId node       # where it lives
    cdef readonly str group         # the tenant, or None
    cdef Py_hash_t hash_value       # computed once: every dispatch looks it up
    # What a dispatch table found for it last: see DispatchTable.find. No part of the value.
    cdef PyObject* found            # its entry, borrowed
    cdef uint64_t found_in          # the epoch in which that holds; 0 is none

cdef class CorrelationId:
    cdef readonly Pid pid            # of the asking process
    cdef readonly object connection  # int or None: the client connection it came from
    cdef readonly object request     # int or None: which request of that asker
    cdef Py_hash_t hash_value
    # The Asked that waits for its answer, borrowed, or NULL: see Requests. No part of the value.
    cdef PyObject* asked

# One of a number of the core's own: past the checks, and without a tuple of arguments.
cdef CorrelationId new_correlation_id(Pid pid, object connection, int64_t request)
cdef bint same_node(NodeId a, NodeId b) noexcept
cdef bint same_pid(Pid a, Pid b) noexcept
# Whether it is one of a node's own: executor, calls, spawner.
cdef bint is_reserved(Pid pid) noexcept
