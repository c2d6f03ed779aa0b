"""The backlog: what an executor has to know of what stands in its run queue.

How much of it other threads sent, which bounds them; how much of it waits for a process with a
mailbox limit; and which of it was sent by a life that has ended since. None of this is counted for
each delivery: places in the queue are noted, and compared with how many were ever taken out.

All of it belongs to the executor's thread, but for `is_full`, which the others ask.
"""

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

from rabble._core.dispatch cimport PROCESS, Entry, MailboxLimit
from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport NodeId, Pid, same_node
from rabble._core.queue cimport EnvelopeQueue

from bisect import bisect_left

__all__ = ["Backlog"]

cdef enum:
    SPANS_MIN = 16
    RAISED_MAX = 1_024        # mailboxes that are noted to be getting full


# Nothing is taken away from it by the collector: what it refers to is cut by itself.
@cython.final
@cython.no_gc_clear
cdef class Backlog:
    """The backlog of one executor."""

    def __cinit__(self):
        self.ended_pids = {}
        self.ended_before = {}
        self.spans = <Span*>PyMem_RawMalloc(SPANS_MIN * sizeof(Span))
        if self.spans is NULL:
            raise MemoryError
        self.spans_mask = SPANS_MIN - 1

    def __dealloc__(self):
        PyMem_RawFree(self.spans)

    cdef int note_span(self, size_t begin) except -1:
        """Note that the run queue was sent by other threads from `begin` to its end.

        So it is known how much of it has not been delivered, without counting deliveries. A
        stretch that follows the one before without a gap is one with it; where there is no memory
        for another, what lies between them is counted as well.
        """
        cdef size_t end = self.popped + self.run_queue.count()
        cdef size_t capacity, i
        cdef Span* spans
        cdef Span* last
        if end == begin:
            return 0
        if self.spans_head != self.spans_tail:
            last = &self.spans[(self.spans_tail - 1) & self.spans_mask]
            if last.end == begin:
                self.inbox.elsewhere += end - last.end
                last.end = end
                return 0
            if self.spans_tail - self.spans_head > self.spans_mask:
                capacity = 2 * (self.spans_mask + 1)
                spans = <Span*>PyMem_RawMalloc(capacity * sizeof(Span))
                if spans is NULL:
                    self.inbox.elsewhere += end - last.end
                    last.end = end
                    return 0
                for i in range(self.spans_tail - self.spans_head):
                    spans[i] = self.spans[(self.spans_head + i) & self.spans_mask]
                PyMem_RawFree(self.spans)
                self.spans = spans
                self.spans_mask = capacity - 1
                self.spans_tail -= self.spans_head
                self.spans_head = 0
        last = &self.spans[self.spans_tail & self.spans_mask]
        last.begin = begin
        last.end = end
        self.spans_tail += 1
        self.inbox.elsewhere += end - begin
        return 0

    cdef void forget_spans(self) noexcept:
        """Forget what has been delivered by now."""
        cdef Span* oldest
        if self.run_queue.count() == 0:
            # Also where dead letters took something out in between.
            self.spans_head = self.spans_tail
            self.inbox.elsewhere = 0
            return
        while self.spans_head != self.spans_tail:
            oldest = &self.spans[self.spans_head & self.spans_mask]
            if <Py_ssize_t>(self.popped - oldest.begin) <= 0:
                break
            if <Py_ssize_t>(self.popped - oldest.end) < 0:
                self.inbox.elsewhere -= self.popped - oldest.begin
                oldest.begin = self.popped
                break
            self.inbox.elsewhere -= oldest.end - oldest.begin
            self.spans_head += 1

    cdef bint is_full(self) noexcept:
        """Whether the inbox is full, after the envelopes delivered in this turn are counted off.

        So exactly as many wait as `inbox_max` says before a sender is refused.
        """
        if self.inbox.is_full():
            self.forget_spans()
        return self.inbox.is_full()

    cdef void add_limit(self) noexcept:
        self.limited += 1
        self.looks_at_each = True

    cdef void remove_limit(self) noexcept:
        self.limited -= 1
        self.looks_at_each = self.is_strict or self.limited != 0

    cdef bint leaves_mailbox(self, Entry entry) noexcept:
        """Count out what was just taken from the run queue for a process with a mailbox limit.

        False if it came before the process was spawned, with more than may wait: then nobody knew
        of the limit, so what exceeds it is found here.
        """
        cdef MailboxLimit limit = entry.limit
        if <Py_ssize_t>(limit.counted_from - self.popped) >= 0:
            if limit.early >= limit.most:
                return False
            limit.early += 1
        elif limit.queued:
            limit.queued -= 1
        return True

    cdef bint put(self, Envelope envelope) except -1:
        """Queue an envelope. False if its receiver's mailbox is full."""
        cdef PyObject* found
        cdef MailboxLimit limit
        cdef size_t place
        if self.limited:
            found = self.table.find(envelope.to)
            if found is not NULL and (<Entry>found).limit is not None:
                limit = (<Entry>found).limit
                if limit.queued >= limit.most:
                    return False
                self.run_queue.reserve(1)
                if limit.queued + 1 >= limit.high and not limit.is_raised:
                    self.note_raised(limit)
                limit.queued += 1
                # What is counted here is counted out, too, though it stood in the queue for a
                # moment when its process was spawned.
                place = self.popped + self.run_queue.count()
                if <Py_ssize_t>(limit.counted_from - place) > 0:
                    limit.counted_from = place
        self.run_queue.append(envelope)
        return True

    cdef int watch(self) except -1:
        if self.raised is None:
            self.raised = []
        return 0

    cdef int note_raised(self, MailboxLimit limit) except -1:
        if self.raised is not None and len(self.raised) < RAISED_MAX:
            self.raised.append(limit)
            limit.is_raised = True
        return 0

    cdef int recount(self) except -1:
        """Count anew what waits for each process with a limit: the queue was changed.

        What stood there before its process was spawned is still not counted: as much of it as may
        wait is found when it is delivered.
        """
        cdef Entry entry
        cdef MailboxLimit limit
        cdef PyObject* found
        cdef size_t position
        cdef size_t end = self.popped + self.run_queue.count()
        for entry in self.table.snapshot():
            limit = entry.limit
            if limit is not None:
                limit.queued = 0
                if <Py_ssize_t>(limit.counted_from - end) > 0:
                    limit.counted_from = end
        position = self.run_queue.head
        while position != self.run_queue.tail:
            # Finding a pid runs nobody's code, so the queue stays as it is meanwhile.
            found = self.table.find(
                (<Envelope>self.run_queue.slots[position & self.run_queue.mask]).to
            )
            if found is not NULL and (<Entry>found).limit is not None:
                limit = (<Entry>found).limit
                if <Py_ssize_t>(
                    self.popped + (position - self.run_queue.head) - limit.counted_from
                ) >= 0:
                    limit.queued += 1
            position += 1
        return 0

    cdef list take_all_for(self, NodeId node, list places):
        """Take out what is queued for another node; returns it once all of it is out."""
        cdef EnvelopeQueue queue = self.run_queue
        cdef size_t left = queue.count()
        cdef size_t place
        cdef list dropped = []
        cdef list entries
        cdef Envelope envelope
        cdef Entry entry
        cdef PyObject* owned
        # All the memory first: a queue that is half turned over would be out of order.
        for place in range(left):
            envelope = <Envelope>queue.slots[(queue.head + place) & queue.mask]
            if same_node(envelope.to.node, node):
                places.append(self.popped + place)
                dropped.append(envelope)
        if not dropped:
            return dropped
        entries = self.table.snapshot()
        while left != 0:
            left -= 1
            owned = queue.take_owned()
            if same_node((<Envelope>owned).to.node, node):
                Py_DECREF(<Envelope>owned)
            else:
                # There is room for what was just taken out.
                queue.put_owned(owned)
        # All envelopes behind one that went have moved up, and so have the places that are kept.
        for pids in (self.ended_pids, self.ended_before):
            for pid, ended in list((<dict>pids).items()):
                (<dict>pids)[pid] = ended - bisect_left(places, ended)
        self.ended_at -= <size_t>bisect_left(places, self.ended_at)
        self.ended_before_at -= <size_t>bisect_left(places, self.ended_before_at)
        if self.limited:
            for entry in entries:
                if entry.limit is not None:
                    # So many stood before where it is counted from.
                    entry.limit.counted_from -= <size_t>bisect_left(
                        places, entry.limit.counted_from
                    )
            self.recount()
        return dropped

    cdef bint is_of_process(self, Envelope envelope) noexcept:
        cdef PyObject* found
        if envelope.sender is None:
            return False
        found = self.table.find(envelope.sender)
        # One that is not there has ended, or asked from another node, and a process passes it on.
        return found is NULL or (<Entry>found).kind == PROCESS

    cdef bint is_stale(self, Pid sender) except -1:
        """Whether what was just taken from the run queue was sent by a life that has ended since.

        It was, if it stood in the queue when the last life of that name ended.
        """
        if not self.has_ended():
            return False
        place = self.ended_pids.get(sender)
        if place is None:
            place = self.ended_before.get(sender)
        return place is not None and <Py_ssize_t>(self.popped - <size_t>place) <= 0

    cdef int forget_ended(self) except -1:
        """Forget the lives of whose messages none is in the queue any more.

        In two generations, as the queue may never be empty: those before are gone when the queue
        has passed the last of them, and those since then take their place.
        """
        if <Py_ssize_t>(self.popped - self.ended_before_at) >= 0:
            self.ended_before = self.ended_pids
            self.ended_before_at = self.ended_at
            self.ended_pids = {}
        return 0

    cdef int note_ended(self, Pid pid) except -1:
        """A life of that pid has ended."""
        if self.run_queue.count() != 0:
            # What it asked for and nobody has handled yet is not asked by its successor. (Without
            # memory to note that, it is.)
            self.ended_at = self.popped + self.run_queue.count()
            try:
                self.ended_pids[pid] = self.ended_at
            except MemoryError:
                pass
        return 0
