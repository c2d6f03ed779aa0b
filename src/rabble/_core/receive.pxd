# All of this needs the lock.

from rabble._core.byte_queue cimport ByteQueue
from rabble._core.transport cimport Sockets, Transport

# One look at all sockets: reads what came, and sends what can be sent again. Never blocks. Returns
# whether there may be more to be done at once than one look takes from the kernel.
cdef bint poll_sockets(Sockets* s) noexcept nogil
# Split what a transport has received into whole frames; of records only what is verified.
cdef void split_frames(Sockets* s, Transport* t) noexcept nogil
cdef void verify_records(Sockets* s, Transport* t) noexcept nogil
# Swap the empty `decoding`, and `decoding_bulk` if that is empty, for all the whole frames that
# came.
# `bulk_waits` becomes whether those of the second have to wait for those of the first.
cdef void take_locked(
    Sockets* s, Transport* t, ByteQueue* decoding, ByteQueue* decoding_bulk, bint* bulk_waits
) noexcept nogil
