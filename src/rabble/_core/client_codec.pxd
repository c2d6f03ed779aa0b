from libc.stdint cimport int64_t

from rabble._core.buffer_reader cimport BufferReader
from rabble._core.buffer_writer cimport BufferWriter
from rabble._core.decoder cimport Decoder
from rabble._core.encoder cimport Encoder

cdef enum OutgoingKind:
    # The first element of what goes to a client, see docs/guides/server.md.
    OUT_ANSWER = 0
    OUT_FAILURE = 1
    OUT_NACK = 2
    OUT_PUSH = 3
    OUT_GOODBYE = 4

cdef enum:
    NO_ID = -1

cdef class ClientCodec:
    cdef Encoder encoder         # of the protocol in msgpack; None: `decode` and `encode` do it
    cdef Decoder decoder
    cdef object decode           # bytes -> Incoming
    cdef object encode           # Outgoing -> bytes
    cdef readonly int framing    # Framing
    cdef readonly int delimiter  # ... of BY_DELIMITER
    cdef readonly bint is_ordered        # answers carry no id and go in the order of the requests
    cdef BufferWriter out        # the frame that was written last: size 0 is none
    # What was read last; taken by who reads it.
    cdef int64_t id              # of a request; NO_ID: it is none
    cdef object msg
    cdef int priority

    # Read a frame without its length or delimiter. DecodeError: `id` may be known all the same.
    cdef int read(self, const unsigned char* data, Py_ssize_t size) except -1
    # Write one to `out`, whole. EncodeError, or whatever the user's function raises.
    cdef int write(
        self, OutgoingKind kind, int64_t id, object value, object code, object text,
        int64_t retry_ms,
    ) except -1
    cdef int64_t read_id(self, BufferReader* r) except -1
    cdef int read_by_function(self, bytes data) except -1
    cdef int write_array(
        self, BufferWriter* w, OutgoingKind kind, int64_t id, object value, object code,
        object text, int64_t retry_ms,
    ) except -1
    cdef int write_by_function(
        self, OutgoingKind kind, int64_t id, object value, object code, object text,
        int64_t retry_ms,
    ) except -1
    cdef void trim(self) noexcept
