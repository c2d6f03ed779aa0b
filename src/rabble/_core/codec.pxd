from rabble._core.decoder cimport Decoder
from rabble._core.encoder cimport Encoder
from rabble._core.plan cimport CodecBounds

cdef class Codec(CodecBounds):
    cdef Encoder encoder        # what writes
    cdef Decoder decoder        # what reads
