from libc.stdint cimport uint64_t

from rabble._core.codec cimport Codec
from rabble._core.frame_decoder cimport FrameDecoder
from rabble._core.frame_encoder cimport FrameEncoder
from rabble._core.ids cimport NodeId

cdef class Session:
    cdef readonly NodeId own                    # this node
    cdef readonly NodeId peer                   # the other one
    cdef readonly uint64_t incarnation          # of the peer
    cdef readonly frozenset labels              # that the peer gives itself
    cdef readonly int version                   # of the protocol: that both sides use
    cdef readonly Codec codec                   # what encodes and decodes its messages
    cdef FrameEncoder frame_encoder             # what is sent goes through it ...
    cdef FrameDecoder frame_decoder             # ... and what is received through this
