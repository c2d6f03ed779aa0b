"""Requests: which life has the request of a call, so that its end is the end of the call.

A call's request carries the correlation id of the thread or coroutine that waits. The node whose
process takes such a request notes the life, until an answer to it goes out or the process passes it
on; what a life has when it ends is unanswered, and the asker is told. So nobody monitors anything
for a call, no frame is sent for one that is answered, and a request that reaches the next life of a
name is that life's.

Any thread may forget a request, under the GIL; all else belongs to the executor's.
"""

cimport cython
from cpython.object cimport PyObject

from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.ids cimport CorrelationId, NodeId, Pid, is_reserved, same_node, same_pid

from collections import OrderedDict

__all__ = ["Requests"]

cdef extern from "Python.h":
    PyObject* PyDict_GetItem(object mapping, object key) noexcept


@cython.final
cdef class Unanswered:
    """A life has ended without having answered some requests."""


@cython.final
cdef class Requests:
    """Who has the requests of calls: those of this node, and those of peers that came here.

    :param asker: the pid of this node's threads and coroutines that call.
    :param waiting: a dict with the number of each call that waits as a key. Not changed here.
    """

    def __cinit__(self, Pid asker not None, dict waiting not None):
        self.asker = asker
        self.waiting = waiting
        self.holders = {}
        self.peers = OrderedDict()
        self.held = {}

    def __len__(self):
        return len(self.holders) + len(self.peers)

    def forget(self, number):
        """A call of this node ended: whoever has its request is no concern of it any more.

        From any thread, once the number is no longer one of those that wait.
        """
        if self.holders:
            self.drop(number)

    def holder(self, number):
        """The pid that the request of a call of this node is with; `None`: whom it was sent to."""
        found = self.holders.get(number)
        if type(found) is Entry:
            return (<Entry>found).pid
        return found

    cdef object holder_of(self, object key):
        return self.holders.get(key) if type(key) is int else self.peers.get(key)

    cdef object key_of(self, CorrelationId correlation_id):
        cdef Pid asker = correlation_id.pid
        if asker.group is None or correlation_id.request is None:
            return None
        if asker is self.asker or same_pid(asker, self.asker):
            return correlation_id.request
        if is_reserved(asker) and asker.name == self.asker.name:
            return correlation_id
        return None

    cdef int taken(self, Entry entry, Envelope envelope) except -1:
        cdef PyObject* found
        cdef dict keys
        cdef object holders
        cdef Pid sender = envelope.sender
        if sender is None or sender.group is None:
            return 0
        if envelope.correlation_id.pid is not sender:
            if not same_pid(envelope.correlation_id.pid, sender):
                return 0
        key = self.key_of(envelope.correlation_id)
        if key is None:
            return 0
        is_own = type(key) is int
        holders = self.holders if is_own else self.peers
        found = PyDict_GetItem(holders, key)
        if found is not NULL:
            if found is <PyObject*>entry:
                return 0
            self.drop(key)
        if not is_own:
            if len(self.peers) >= self.peers_max:
                self.forget_oldest()
        found = PyDict_GetItem(self.held, entry)
        # Made before the request is noted: the collector runs here, and what it ends may forget
        # calls. From here to the end nothing can come between.
        keys = {key: None} if found is NULL else <dict>found
        holders[key] = entry
        keys[key] = None
        self.held[entry] = keys
        # After it was noted: a call that gives up meanwhile finds it either there or not at all.
        if is_own and key not in self.waiting:
            self.drop(key)
        return 0

    cdef object drop(self, object key):
        """Returns who had it, or `None`."""
        cdef PyObject* found
        cdef dict keys
        if type(key) is int:
            holder = self.holders.pop(key, None)
        else:
            holder = self.peers.pop(key, None)
        if holder is None:
            return None
        if type(holder) is Entry:
            found = PyDict_GetItem(self.held, holder)
            if found is not NULL:
                keys = <dict>found
                keys.pop(key, None)
                if not keys:
                    self.held.pop(holder, None)
        return holder

    cdef int forget_oldest(self) except -1:
        """Forget the peer's request that was taken first: its process never answers, perhaps."""
        # In an OrderedDict, as the first key of a dict is found behind the gaps of those that went.
        if self.peers:
            self.drop(next(iter(self.peers)))
        return 0

    cdef int passed_on(self, object number, Pid to) except -1:
        self.drop(number)
        self.holders[number] = to
        if number not in self.waiting:
            self.drop(number)
        return 0

    cdef bint has(self, Entry entry) noexcept:
        return PyDict_GetItem(self.held, entry) is not NULL

    cdef Envelope unanswered(
        self, Entry entry, str kind, str detail, unsigned long long crash
    ):
        cdef Unanswered unanswered = Unanswered.__new__(Unanswered)
        unanswered.entry = entry
        unanswered.keys = list(self.held[entry])
        unanswered.kind = kind
        unanswered.detail = detail
        unanswered.crash = crash
        return new_envelope(self.executor, unanswered, None, None)

    cdef int forget_node(self, NodeId node) except -1:
        for key in list(self.peers):
            if same_node((<CorrelationId>key).pid.node, node):
                self.drop(key)
        return 0

    cdef int clear(self) except -1:
        self.holders.clear()
        self.peers.clear()
        self.held.clear()
        return 0
