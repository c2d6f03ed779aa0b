from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from rabble._core.byte_queue cimport ByteQueue
from rabble._core.client_messages cimport ClientAsk
from rabble._core.client_server cimport ClientConnection, ClientServer
from rabble._core.client_socket cimport ClientSockets
from rabble._core.envelope cimport Envelope
from rabble._core.executor cimport Desk, Executor
from rabble._core.ids cimport CorrelationId
from rabble._core.poller cimport Poller

cdef class ClientDesk(Desk):
    cdef Executor executor
    cdef readonly Poller poller
    cdef ClientSockets* clients        # of that poller
    cdef list servers
    cdef ByteQueue taken               # whole frames that are being handled ...
    cdef int64_t taken_ns              # ... since when

    cdef int look(self) except -1
    cdef int visit(
        self, ClientConnection conn, const unsigned char* data, size_t size, int state, int end
    ) except -1

    # Frames and envelopes to handlers, and what these return.
    cdef int begin(self, ClientConnection conn) except -1
    cdef int handle(
        self, ClientConnection conn, const unsigned char* data, Py_ssize_t size
    ) except -1
    cdef CorrelationId begin_request(
        self, ClientConnection conn, int64_t id, object msg, int priority
    )
    cdef int decide(self, ClientServer server) except -1
    cdef int call(
        self, ClientConnection conn, str method, Py_ssize_t count, PyObject* first,
        PyObject* second, PyObject* third,
    ) except -1
    cdef int crashed(self, ClientConnection conn, object error) except -1
    cdef int emit(self, ClientConnection conn, object output) except -1
    cdef int emit_one(self, ClientConnection conn, object item) except -1
    cdef int send(self, Envelope envelope) except -1
    cdef int ask(self, ClientConnection conn, ClientAsk ask) except -1
    cdef int finish(self, ClientConnection conn, object reason, bint tells) except -1

    # What the clock does.
    cdef int cut(self, ClientServer server) except -1
    cdef int begin_drain(self, ClientServer server) except -1
