# One connection's encoder and decoder: what two nodes say to each other, as frames and as objects.

from libc.stdint cimport uint64_t

from rabble._core.codec cimport Codec
from rabble._core.hear cimport Hearer
from rabble._core.ids cimport NodeId
from rabble._core.speak cimport Speaker

cdef class Link:
    cdef readonly NodeId own                    # this node
    cdef readonly NodeId peer                   # the other one
    cdef readonly uint64_t incarnation          # of the peer
    cdef readonly Codec codec                   # what encodes and decodes its messages
    cdef Speaker speaker                        # what is said goes through it ...
    cdef Hearer hearer                          # ... and what is heard through this
