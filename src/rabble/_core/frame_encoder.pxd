from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from rabble._core.buffer_writer cimport BufferWriter
from rabble._core.bulk_pairs cimport BulkPairs
from rabble._core.encoder cimport Encoder
from rabble._core.envelope cimport Envelope
from rabble._core.gather cimport GatherWriter
from rabble._core.ids cimport CorrelationId, NodeId, Pid

cdef struct PidSlot:
    # A slot of the pid cache. Two of them, side by side, are where a pid can stand.
    PyObject* pid               # owned; NULL: never used
    bint is_own                 # whether it lives on this node ...
    bint is_peer                # ... or on the peer

cdef class FrameEncoder:
    cdef NodeId own                             # this node
    cdef NodeId peer                            # the one that is sent to
    cdef Pid executor                           # passes on what no process is known to have
    cdef Encoder encoder                        # encodes messages, and the texts of pids
    cdef Py_ssize_t fragment_bytes              # longer messages are cut into parts of that size
    cdef Py_ssize_t message_bytes_max           # longer ones are not sent ...
    cdef Py_ssize_t peer_bytes_max              # ... nor are those that the peer does not take

    # Whole frames that the poller has not taken yet. The poller may take them (swap the buffer,
    # which is of PyMem_RawMalloc, or take the bytes and set `size` to 0) while it holds the GIL in
    # the executor's thread, and never while a `write_` runs, which may call Python code.
    cdef BufferWriter data                      # the data lane
    cdef GatherWriter bulk                      # the bulk lane
    cdef bint is_encoding                       # a `write_` runs

    cdef BulkPairs pairs                        # whose messages are there
    cdef size_t down_bytes                      # of DOWNs and the like put there, that may wait ...
    cdef uint64_t down_end                      # ... and where the last one ends, in `bulk.written`

    cdef PidSlot* slots                         # the pid cache, as the peer has it
    cdef unsigned char* latest                  # of each two slots: which was used last
    cdef size_t sets_mask                       # how many pairs of slots are used, less 1

    # What is written is appended to a lane. On an EncodeError nothing of it is.
    # `forwarder` is who passes it on, if it is a request of another node: None is the executor.
    cdef int write_envelope(self, Envelope envelope, Pid forwarder) except -1
    # `reference` is the MONITOR that it is about: see "References" in the protocol.
    cdef int write_monitor(self, Pid monitoring, Pid monitored, uint64_t reference) except -1
    cdef int write_demonitor(self, Pid monitoring, Pid monitored, uint64_t reference) except -1
    cdef int write_down(
        self, Pid monitoring, Pid monitored, uint64_t reference, int why, uint64_t life, str detail
    ) except -1
    # The same of links: `reference` is the LINK itself, or the latest one of the other process that
    # was seen here.
    cdef int write_link(self, Pid linking, Pid linked, uint64_t reference) except -1
    cdef int write_unlink(self, Pid linking, Pid linked, uint64_t reference) except -1
    cdef int write_exit(
        self, Pid linked, Pid ended, uint64_t reference, int why, uint64_t life, str detail
    ) except -1
    # `about` is whose doing it was, or None.
    cdef int write_undelivered(
        self, Pid to, CorrelationId correlation_id, int why, uint64_t crash, Pid about, str detail
    ) except -1
    cdef int write_lost(self, uint32_t count) except -1
    # Note that an envelope was refused instead of written; `write_lost` is to count it.
    cdef int note_refused(self, Envelope envelope) except -1
    cdef int write_window_update(self, uint64_t consumed) except -1

    # What the poll loop does, as bytes: for tests and benchmarks.
    cdef bytes take_data(self)
    cdef bytes take_bulk(self, size_t unsent)

    cdef Py_ssize_t write_message(self, object msg, Py_ssize_t start) except -1
    cdef int write_in_full(self, Envelope envelope, Pid forwarder) except -1
    cdef bint is_large_bytes(self, object msg) noexcept
    cdef int write_bytes(self, Envelope envelope, Pid forwarder, bytes msg) except -1
    cdef int move_to_bulk(
        self, Envelope envelope, Pid forwarder, Py_ssize_t start, Py_ssize_t message
    ) except -1
    cdef int put_in_bulk(
        self,
        Envelope envelope,
        Pid forwarder,
        const unsigned char* begin,
        Py_ssize_t begin_size,
        const unsigned char* source,
        Py_ssize_t source_size,
        bytes message,
    ) except -1
    cdef int write_monitor_frame(
        self, int kind, Pid monitoring, Pid monitored, uint64_t reference
    ) except -1
    cdef int write_link_frame(
        self, int kind, Pid linking, Pid linked, uint64_t reference
    ) except -1
    cdef int write_down_frame(
        self, int kind, Pid to, Pid ended, uint64_t reference, int why, uint64_t life, str detail
    ) except -1
    cdef int check_pair(self, bint is_own, Pid own, bint is_peer, Pid peer) except -1
    # Room for a frame that names two pids and has a tail of `size` bytes, in the lane in which it
    # follows what the own one sent to the peer's: its flags and both pids are there, and `tail` is
    # where the rest is to be written. `own_first` tells which pid comes first.
    cdef int begin_pair_frame(
        self, int kind, Pid own, Pid peer, bint own_first, Py_ssize_t size, unsigned char** tail
    ) except -1
    cdef Py_ssize_t slot_of(self, Pid pid, Py_ssize_t kept) except -1
    cdef Py_ssize_t assign_slot(self, Pid pid, Py_ssize_t kept) except -1
    cdef void cut_back(self, Py_ssize_t size) noexcept
    cdef Py_ssize_t slot_of_forwarder(
        self, Envelope envelope, Pid forwarder, Py_ssize_t kept
    ) except -1
    cdef Pid who_forwards(self, Envelope envelope, Pid forwarder)
    cdef Py_ssize_t write_head(
        self, unsigned char* p, Envelope envelope, Pid forwarder
    ) except -1
