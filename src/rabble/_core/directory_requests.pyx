"""Requests to the directory of names and groups, and what that does with its executor.

The directory is Python above the core, a callback of the executor under a pid of its own. What has
to be done between two deliveries is here: a request is handed to it with the very lives that it
concerns, whose ends it is told of from that moment on, so a successor is never taken for one.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from rabble._core.dispatch cimport CALLBACK, EXECUTOR, NODES, Entry
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.executor cimport Executor
from rabble._core.ids cimport CorrelationId, Pid, same_node
from rabble._core.texts cimport type_name
from rabble._core.timers cimport delay_ms_of

from rabble._core.directory_messages import DIRECTORY_REQUESTS

__all__ = ["Asked", "DirectoryPort"]

cdef extern from "Python.h":
    PyObject* PyTuple_GET_ITEM(tuple items, Py_ssize_t place) noexcept
    Py_ssize_t PyTuple_GET_SIZE(tuple items) noexcept

cdef tuple CLASSES = DIRECTORY_REQUESTS


cdef bint is_directory_request(object msg) noexcept:
    cdef object cls = type(msg)
    cdef Py_ssize_t i
    # By identity: a class's own metaclass may say anything of equality and hash.
    for i in range(PyTuple_GET_SIZE(CLASSES)):
        if PyTuple_GET_ITEM(CLASSES, i) is <PyObject*>cls:
            return True
    return False


@cython.final
cdef class Asked:
    """A request of a process. Made by the core alone."""


cdef int ask_directory(
    Executor executor, Pid directory, Entry asker, Envelope envelope
) except -1:
    cdef PyObject* found = executor.table.find(directory)
    cdef Entry subject = asker
    cdef Asked asked
    cdef Pid pid = asker.pid
    request = envelope.msg
    if found is NULL:
        raise RuntimeError(f"{executor.node} has no names and groups")
    # Whoever made it past its own check is found out.
    request.__post_init__()
    concerns_somebody = hasattr(type(request), "pid")
    if concerns_somebody:
        given = request.pid
        if given is not None:
            pid = given
            if not same_node(pid.node, executor.node):
                raise ValueError(
                    f"{type_name(request)}: {pid} is no process of {executor.node}; a node speaks "
                    f"for its own only, so let that process ask for itself"
                )
            subject = entry_of(executor, pid)
    asked = Asked.__new__(Asked)
    asked.request = request
    asked.pid = pid
    asked.asker = asker.pid
    asked.asker_life = asker.life
    if concerns_somebody and subject is not None:
        if subject.kind == EXECUTOR or subject.kind == CALLBACK:
            raise ValueError(f"{type_name(request)}: {pid} is the runtime's own")
        executor.monitors.add(<Entry>found, pid)
        asked.life = subject.life
    executor.run_queue.append(
        new_envelope(directory, asked, executor.pid, envelope.correlation_id)
    )
    return 0


cdef Entry entry_of(Executor executor, Pid pid):
    cdef PyObject* found = executor.table.find(pid)
    return None if found is NULL else <Entry>found


@cython.final
cdef class DirectoryPort:
    """What the directory does with its executor. For that one's thread, or before it runs.

    :param pid: under which the directory is a callback of the executor.
    """

    def __cinit__(self, Executor executor not None, Pid pid not None):
        self.executor = executor
        self.pid = pid

    cdef Entry entry(self):
        return entry_of(self.executor, self.pid)

    def subscribe_nodes(self):
        """Be told of nodes that come and go, before all others."""
        self.executor.lives.subscribe(self.entry(), NODES, True)

    def notify(self, Pid pid not None, uint64_t life, msg, CorrelationId correlation_id):
        """Send a message to a life, in its turn, if it still is one then."""
        cdef Entry entry = entry_of(self.executor, pid)
        if entry is not None and entry.life == life:
            self.executor.notifier.notify(entry, msg, correlation_id)

    def tell(self, Pid pid not None, msg):
        """Send a message in the directory's name, before what is returned by a later `receive`."""
        self.executor.run_queue.append(new_envelope(pid, msg, self.pid, None))

    def wake_after(self, delay_ms, CorrelationId correlation_id not None):
        """Have a `Timeout` come, and none of an earlier call of that correlation id."""
        cdef Entry entry = self.entry()
        cdef int64_t due_ns
        if entry is not None:
            due_ns = self.executor.now_ns() + delay_ms_of(delay_ms) * 1_000_000
            self.executor.timeouts.start(entry, correlation_id, due_ns)
