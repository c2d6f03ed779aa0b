from cpython.object cimport PyObject

from rabble._core.backlog cimport Backlog
from rabble._core.dead_letters cimport DeadLetters
from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope
from rabble._core.hooks cimport HookCaller
from rabble._core.ids cimport Pid
from rabble._core.inbox cimport Inbox
from rabble._core.queue cimport EnvelopeQueue

cdef class Admission:
    cdef Pid pid                           # the executor's: control messages stay as they are
    cdef EnvelopeQueue run_queue
    cdef Backlog backlog
    cdef DeadLetters dead_letters
    cdef HookCaller hooks
    cdef object strict                     # says how each message arrives; None: strict mode is off
    cdef object local_classes              # ids of the classes that the strict mode lets pass

    # Move what other threads sent into the run queue.
    cdef int take_in(self, Inbox inbox) except -1
    # Queue what one of them sent. Whatever is wrong with it ends it alone.
    cdef int admit_outside(self, Envelope envelope) except -1
    # Look again at the newest `count` in the queue, which other nodes sent, say.
    cdef int admit_newest(self, size_t count) except -1

    cdef int admit(self, Envelope envelope) except -1
    cdef int take_item(self, Entry entry, object item, int owners, list fresh) except -1
    cdef object checked(self, Envelope envelope)
    cdef Envelope checked_ask(self, Envelope envelope)

# Queue what `receive` returned: one envelope, or an iterable of them. If it fails, what it has
# queued by then is the caller's to take back. (A function, so that it can be called with its
# exception left pending.)
cdef int admit_output(Admission admission, Entry entry, object output) except -1
