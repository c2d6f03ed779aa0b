"""Envelopes to a server's pid: answers to clients' requests, and what else is for a handler."""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int32_t

from rabble._core.ask cimport Reply
from rabble._core.client_desk cimport ClientDesk
from rabble._core.client_messages cimport Canary
from rabble._core.client_gate cimport canary_back
from rabble._core.client_replies cimport answer, fail, place_of
from rabble._core.client_server cimport ClientConnection, ClientServer
from rabble._core.envelope cimport Envelope
from rabble._core.executor cimport Executor
from rabble._core.ids cimport CorrelationId, same_pid

from rabble._core.messages import DeadLetterReason, Failed

__all__ = ["ClientReceiver"]

cdef extern from "Python.h":
    PyObject* PyDict_GetItem(object mapping, object key) noexcept


@cython.final
cdef class ClientReceiver:
    """What the envelopes to a server's pid go to.

    :param desk: where its clients are served.
    """

    def __cinit__(self, ClientDesk desk not None, ClientServer server not None):
        self.desk = desk
        self.server = server

    def deliver(self, Envelope envelope not None):
        """Give an envelope to the handler that it is for. In the executor's thread."""
        cdef ClientDesk desk = self.desk
        cdef ClientServer server = self.server
        cdef Executor executor = desk.executor
        cdef ClientConnection conn
        cdef CorrelationId cid = envelope.correlation_id
        cdef object msg = envelope.msg
        cdef int32_t place
        is_own = envelope.sender is not None and same_pid(envelope.sender, executor.pid)
        if is_own and (type(msg) is Reply or type(msg) is Failed):
            tag = (<Reply>msg).tag if type(msg) is Reply else msg.tag
            conn = None
            if type(tag) is Canary:
                canary_back(server, <Canary>tag, "" if type(msg) is Reply else code_of(msg.reason))
                return
            if type(tag) is CorrelationId:
                conn = connection_of(server, <CorrelationId>tag)
            if conn is None:
                server.late += 1
                return
            place = place_of(conn, tag)
            if place < 0:
                return
            server.requests.slots[place].asked = 0
            if type(msg) is Reply:
                answer(conn, place, (<Reply>msg).value)
            else:
                fail(conn, place, code_of(msg.reason), str(msg.reason))
            return
        if type(msg) is Canary and envelope.sender is server.pid:
            canary_back(server, <Canary>msg, "")
            return
        if cid is None or cid.connection is None or not same_pid(cid.pid, server.pid):
            executor.letters.drop(envelope, DeadLetterReason.NO_PROCESS)
            return
        conn = connection_of(server, cid)
        if conn is None or (cid.request is not None and place_of(conn, cid) < 0):
            server.late += conn is None
            return
        desk.call(
            conn, "handle_envelope", 3, <PyObject*>msg, <PyObject*>envelope.sender, <PyObject*>cid
        )


cdef ClientConnection connection_of(ClientServer server, CorrelationId cid):
    """The connection of a request's number that has begun and is not over, or `None`."""
    cdef PyObject* found = PyDict_GetItem(server.connections, cid.connection)
    if (
        found is NULL
        or (<ClientConnection>found).is_over
        or (<ClientConnection>found).handler is None
    ):
        return None
    return <ClientConnection>found


cdef dict CODES = {
    "CallTimeout": "timeout",
    "NoProcess": "no_process",
    "ProcessCrashed": "crashed",
    "NotConnected": "disconnected",
    "NodeStopped": "disconnected",
    "QueueFull": "too_many",
}


cdef str code_of(object error):
    """What a client is told of how a request ended that was passed on."""
    return CODES.get(type(error).__name__, "failed")
