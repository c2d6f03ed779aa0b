"""The frames of clients: the protocol in msgpack, or what two functions of a user's make of bytes.

The first is compiled. Its values are those of the mesh's wire, read and written by the same decoder
and encoder, so what a client sends has the types of what another node sends.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcpy

from rabble._core.buffer_reader cimport BufferReader, array_header, check_end, malformed
from rabble._core.buffer_writer cimport BufferWriter, put_int
from rabble._core.byteorder cimport load_16, load_32, store_32
from rabble._core.capacities cimport ENCODE_BYTES_KEPT
from rabble._core.client_messages cimport Incoming, Outgoing
from rabble._core.client_socket cimport BY_DELIMITER, BY_LENGTH
from rabble._core.codec cimport Codec
from rabble._core.texts cimport bounded_repr, bounded_str, type_name

from rabble._core.errors import DecodeError, EncodeError

__all__ = ["ClientCodec"]

cdef enum:
    LENGTH_BYTES = 4
    TEXT_CHARS_MAX = 500       # of what a client is told for people
    CODE_CHARS_MAX = 32

cdef tuple KINDS = ("answer", "failure", "nack", "push", "goodbye")

cdef extern from *:
    """
    #define RABBLE_ID_MAX ((INT64_C(1) << 53) - 1)
    """
    const int64_t ID_MAX "RABBLE_ID_MAX"


cdef bint is_id(object value) noexcept:
    """Whether a client may call a request so: what other languages' numbers hold."""
    cdef int overflow = 0
    cdef int64_t number
    if type(value) is not int:
        return False
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    return not overflow and 0 <= number <= ID_MAX


cdef bint is_priority(object value) noexcept:
    return type(value) is int and (value == 0 or value == 1 or value == -1)


cdef int kind_of(object value) noexcept:
    return -1 if type(value) is not int else 0 if value == 0 else 1 if value == 1 else -1


cdef str text_of(object value, Py_ssize_t most):
    """What people are told, as a text that can be sent: an error's may have lone surrogates."""
    cdef str text = value if type(value) is str and len(value) <= most else bounded_str(value, most)
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# Seen by the collector, as a user's functions lead anywhere; what is read last is taken at once.
@cython.final
cdef class ClientCodec:
    """The codec of one server. For the executor's thread, but while the server is made.

    :param codec: a `Codec`, for the protocol in msgpack; or `None`.
    :param decode: a function from `bytes` to an `Incoming`, if there is no `codec`.
    :param encode: one from an `Outgoing` to `bytes`.
    :param delimiter: the byte that ends each frame; -1: each begins with its length.
    :param is_ordered: answers carry no id, and go in the order of the requests.
    """

    def __cinit__(
        self, Codec codec, decode=None, encode=None, *, int delimiter=-1, bint is_ordered=False
    ):
        if codec is not None:
            self.encoder = codec.encoder
            self.decoder = codec.decoder
        self.decode = decode
        self.encode = encode
        self.framing = BY_LENGTH if delimiter < 0 else BY_DELIMITER
        self.delimiter = delimiter
        self.is_ordered = is_ordered

    def __dealloc__(self):
        PyMem_RawFree(self.out.data)

    cdef int read(self, const unsigned char* data, Py_ssize_t size) except -1:
        cdef BufferReader r
        cdef Py_ssize_t n
        cdef int kind
        self.id = NO_ID
        self.msg = None
        self.priority = 0
        if self.decoder is None:
            return self.read_by_function(PyBytes_FromStringAndSize(<const char*>data, size))
        self.decoder.begin(&r, data, size)
        n = array_header(&r)
        if n < 2 or r.at >= r.end:
            raise malformed(&r, "a frame of a client is an array of two elements or more")
        if r.at[0] <= 1:
            kind = r.at[0]
            r.at += 1
        else:
            # An integer may take more bytes than it needs.
            kind = kind_of(self.decoder.read(&r))
        if kind == 0:
            if n < 3:
                raise malformed(&r, "a request is an array of three elements or more")
            self.id = self.read_id(&r)
            n -= 1
        elif kind != 1:
            raise malformed(&r, "a frame of a client is a request, 0, or a message, 1")
        self.msg = self.decoder.read(&r)
        n -= 2
        if kind == 0 and n:
            priority = self.decoder.read(&r)
            if not is_priority(priority):
                raise malformed(&r, "the priority of a request is -1, 0 or 1")
            self.priority = priority
            n -= 1
        if n:
            # Of a later version of the protocol.
            r.owed += n
            self.decoder.drop(&r, n)
        check_end(&r)
        return 0

    cdef int64_t read_id(self, BufferReader* r) except -1:
        cdef unsigned char tag = r.at[0] if r.at < r.end else 0xc0
        cdef object number
        if tag < 0x80:
            r.at += 1
            return tag
        if tag == 0xcd and r.end - r.at >= 3:
            r.at += 3
            return load_16(r.at - 2)
        if tag == 0xce and r.end - r.at >= 5:
            r.at += 5
            return load_32(r.at - 4)
        number = self.decoder.read(r)
        if not is_id(number):
            raise malformed(r, f"the id of a request is an int, 0 to {ID_MAX}")
        return number

    cdef int read_by_function(self, bytes data) except -1:
        cdef Incoming incoming
        made = self.decode(data)
        if type(made) is not Incoming:
            raise DecodeError(f"the codec returned {bounded_repr(made, 80)}, and no Incoming")
        incoming = <Incoming>made
        if incoming.id is not None and not is_id(incoming.id):
            raise DecodeError(f"the id of a request is an int, 0 to {ID_MAX}")
        if not is_priority(incoming.priority):
            raise DecodeError("the priority of a request is -1, 0 or 1")
        self.id = NO_ID if incoming.id is None else incoming.id
        self.msg = incoming.msg
        self.priority = incoming.priority
        return 0

    cdef int write(
        self, OutgoingKind kind, int64_t id, object value, object code, object text,
        int64_t retry_ms,
    ) except -1:
        cdef BufferWriter* w = &self.out
        cdef bint is_written = False
        self.trim()
        try:
            if self.encoder is None:
                self.write_by_function(kind, id, value, code, text, retry_ms)
            else:
                w.size = LENGTH_BYTES
                self.encoder.allow(w)
                self.write_array(w, kind, id, value, code, text, retry_ms)
                store_32(w.data, w.size - LENGTH_BYTES)
            is_written = True
        finally:
            if not is_written:
                w.size = 0
        return 0

    cdef int write_array(
        self, BufferWriter* w, OutgoingKind kind, int64_t id, object value, object code,
        object text, int64_t retry_ms,
    ) except -1:
        cdef Encoder encoder = self.encoder
        cdef unsigned char* p
        encoder.grow(w, LENGTH_BYTES + 2 + 9)
        p = w.data + w.size
        p[0] = 0x90 | (
            2 if kind == OUT_PUSH else 4 if kind == OUT_FAILURE or kind == OUT_NACK else 3
        )
        p[1] = <unsigned char>kind
        w.size += 2
        if kind <= OUT_NACK:
            w.size += put_int(p + 2, id)
        if kind == OUT_ANSWER or kind == OUT_PUSH:
            encoder.write(w, value)
            if w.size - LENGTH_BYTES > encoder.message_bytes_max:
                raise EncodeError(
                    f"the message takes more than {encoder.message_bytes_max} bytes; "
                    f"send it in parts"
                )
            return 0
        if kind == OUT_NACK:
            encoder.grow(w, 9)
            w.size += put_int(w.data + w.size, retry_ms)
        else:
            encoder.write(w, text_of(code, CODE_CHARS_MAX))
        return encoder.write(w, text_of(text, TEXT_CHARS_MAX))

    cdef int write_by_function(
        self, OutgoingKind kind, int64_t id, object value, object code, object text,
        int64_t retry_ms,
    ) except -1:
        cdef Py_ssize_t size
        cdef unsigned char* p
        data = self.encode(Outgoing(
            KINDS[kind], None if id == NO_ID else id, value, text_of(code, CODE_CHARS_MAX),
            text_of(text, TEXT_CHARS_MAX), retry_ms,
        ))
        if type(data) is not bytes:
            raise EncodeError(f"the codec returned a {type_name(data)}, and no bytes")
        size = PyBytes_GET_SIZE(<bytes>data)
        p = <unsigned char*>PyBytes_AS_STRING(<bytes>data)
        if self.framing == BY_DELIMITER and memchr(p, self.delimiter, size) is not NULL:
            raise EncodeError(f"the frame has its own delimiter in it: {bounded_repr(data, 80)}")
        self.out.size = 0
        reserve_out(&self.out, size + LENGTH_BYTES)
        if self.framing == BY_LENGTH:
            store_32(self.out.data, size)
            self.out.size = LENGTH_BYTES
        memcpy(self.out.data + self.out.size, p, size)
        self.out.size += size
        if self.framing == BY_DELIMITER:
            self.out.data[self.out.size] = <unsigned char>self.delimiter
            self.out.size += 1
        return 0

    cdef void trim(self) noexcept:
        """What a long message took is not kept."""
        if self.out.capacity > ENCODE_BYTES_KEPT:
            PyMem_RawFree(self.out.data)
            self.out.data = NULL
            self.out.capacity = 0
        self.out.size = 0

    # For tests, and for who makes the frames of goodbyes beforehand.

    def read_frame(self, bytes data not None):
        """The message, the id and the priority of a frame without its length or delimiter.

        :raises DecodeError: if it is none.
        """
        self.read(<const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        msg = self.msg
        self.msg = None
        return msg, None if self.id == NO_ID else self.id, self.priority

    def write_frame(self, str kind not None, key=None, value=None, code="", text="", retry_ms=0):
        """The bytes of a whole frame. `kind` is as of an `Outgoing`.

        :raises EncodeError: if the value cannot be written.
        """
        cdef int64_t id = NO_ID if key is None else key
        self.write(<OutgoingKind><int>KINDS.index(kind), id, value, code, text, retry_ms)
        return PyBytes_FromStringAndSize(<char*>self.out.data, self.out.size)


cdef int reserve_out(BufferWriter* w, Py_ssize_t size) except -1:
    cdef unsigned char* data
    if w.capacity < size:
        data = <unsigned char*>PyMem_RawRealloc(w.data, size)
        if data is NULL:
            raise MemoryError
        w.data = data
        w.capacity = size
    return 0
