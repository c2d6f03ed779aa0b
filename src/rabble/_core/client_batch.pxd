from cpython.object cimport PyObject

from rabble._core.byte_queue cimport ByteQueue
from rabble._core.capacities cimport CLIENT_BATCH_FRAMES
from rabble._core.transport cimport Sockets

cdef enum:
    BATCH_VISITS_MAX = CLIENT_BATCH_FRAMES    # connections that one batch looks at

# What the desk takes from one connection at a time.
cdef struct Visit:
    PyObject* connection     # borrowed: only the executor's thread lets go of one
    size_t size              # bytes of whole frames
    int state                # ClientState
    int end                  # ClientEnd
    bint peer_ended

# Take whole frames of the connections whose turn it is: appended to `taken`, in the order of the
# visits, of which there is room for `BATCH_VISITS_MAX`; returns how many there are. Needs the lock
# of the sockets.
cdef int take_batch(Sockets* s, ByteQueue* taken, Visit* visits) noexcept nogil
