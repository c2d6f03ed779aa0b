# The codec: envelopes and messages to msgpack and back.

from rabble._core.decoder cimport Decoder
from rabble._core.encoder cimport Encoder

cdef class Codec:
    cdef readonly object registry               # of the classes that may be sent and built
    cdef readonly Py_ssize_t message_bytes_max  # of one message or envelope
    cdef readonly int depth_max                 # how deep containers may be nested
    cdef readonly Py_ssize_t elements_max       # of all containers of one message together
    cdef Encoder encoder                        # what writes
    cdef Decoder decoder                        # what reads
