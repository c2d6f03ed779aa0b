from libc.stdint cimport int64_t

from rabble._core.dispatch cimport DispatchTable, Entry, MailboxLimit
from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport NodeId, Pid
from rabble._core.inbox cimport Inbox
from rabble._core.queue cimport EnvelopeQueue

cdef struct Span:
    # A stretch of the run queue that other threads sent: where it begins and ends, counted in
    # envelopes that were ever taken out.
    size_t begin
    size_t end

cdef class Backlog:
    cdef EnvelopeQueue run_queue           # what this is about
    cdef Inbox inbox                       # what other threads sent comes from there
    cdef DispatchTable table               # where the receivers are found
    cdef size_t popped                     # envelopes ever taken out of the run queue
    cdef int64_t limited                   # how many entries have a mailbox limit
    cdef list raised                       # MailboxLimits that have got high; None: nobody looks
    cdef bint is_strict                    # each message is to go through the codec
    cdef bint looks_at_each                # either: each envelope is looked at before it is queued
    cdef dict ended_pids                   # Pid of an ended life -> where the run queue ended then
    cdef size_t ended_at                   # the last of these places
    cdef dict ended_before                 # the same of those before; gone when ...
    cdef size_t ended_before_at            # ... so many were taken out
    cdef Span* spans                       # ring: what of the run queue others sent, in order
    cdef size_t spans_mask
    cdef size_t spans_head
    cdef size_t spans_tail

    # What other threads sent.
    cdef int note_span(self, size_t begin) except -1
    cdef void forget_spans(self) noexcept
    cdef bint is_full(self) noexcept

    # A process with a mailbox limit has begun, or ended.
    cdef void add_limit(self) noexcept
    cdef void remove_limit(self) noexcept
    # `put` queues an envelope, or returns False if its receiver's mailbox is full.
    cdef bint put(self, Envelope envelope) except -1
    cdef bint leaves_mailbox(self, Entry entry) noexcept
    # Note from now on which mailboxes get full.
    cdef int watch(self) except -1
    cdef int note_raised(self, MailboxLimit limit) except -1
    cdef int recount(self) except -1

    # Take out what is queued for another node, and return it once all of it is out. `places` is
    # given where each of them stood, counted in envelopes ever taken out.
    cdef list take_all_for(self, NodeId node, list places)
    # Whether a process returned it, as far as its sender tells, and not a thread or service.
    cdef bint is_of_process(self, Envelope envelope) noexcept

    # Lives that have ended.
    cdef int note_ended(self, Pid pid) except -1
    cdef bint is_stale(self, Pid sender) except -1
    cdef int forget_ended(self) except -1
    cdef inline bint has_ended(self) noexcept:
        return len(self.ended_pids) != 0 or len(self.ended_before) != 0
