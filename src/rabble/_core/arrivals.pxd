# What arrives on channels, below the interpreter. All of this needs the lock.

from rabble._core.channel cimport Channel, Sockets
from rabble._core.lane cimport Lane

# One look at all sockets: reads what came, and sends what can be sent again. Never blocks. Returns
# whether there may be more to be done at once than one look takes from the kernel.
cdef bint step(Sockets* s) noexcept nogil
# Sort what a channel has heard into whole frames.
cdef void cut(Sockets* s, Channel* c) noexcept nogil
# Trade the empty `taken`, and `taken_bulk` if that is empty, for all the whole frames that came.
# `bulk_waits` becomes whether those of the second have to wait for those of the first.
cdef void take_locked(
    Sockets* s, Channel* c, Lane* taken, Lane* taken_bulk, bint* bulk_waits
) noexcept nogil
