from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope
from rabble._core.executor cimport Executor, MessageHandler
from rabble._core.ids cimport Pid
from rabble._core.notices cimport Connected, Discard, Notice, Undelivered
from rabble._core.producers cimport Producers
from rabble._core.timers cimport Timer

cdef class SystemMessages(MessageHandler):
    cdef Executor executor
    cdef tuple classes             # of the messages, in the order of the .pyx's `Message`
    cdef Pid directory             # who knows the names and groups
    cdef Producers producers       # who waits for room in the queue to a peer

    cdef int place_of(self, object msg) noexcept
    cdef Entry asker(self, Envelope envelope)

    # What processes ask.
    cdef int start_timer(self, object request, Envelope envelope) except -1
    cdef int cancel_timer(self, object request, Envelope envelope) except -1
    cdef int spawn(self, object request, Envelope envelope) except -1
    # Of a process that was spawned just now.
    cdef int bind(
        self, Entry asker, Pid pid, bint link, bint monitor, bint owned
    ) except -1
    cdef int stop(self, object request) except -1
    cdef int monitor(self, object request, Envelope envelope) except -1
    cdef int demonitor(self, object request, Envelope envelope) except -1
    cdef int link(self, object request, Envelope envelope) except -1
    cdef int unlink(self, object request, Envelope envelope) except -1
    cdef int get_metrics(self, Envelope envelope) except -1
    cdef int subscribe_nodes(self, object request, Envelope envelope) except -1
    cdef int subscribe_dead_letters(self, object request, Envelope envelope) except -1
    cdef int pass_to_directory(self, Envelope envelope) except -1

    # What the runtime sends itself.
    cdef int notice(self, Notice notice) except -1
    cdef int timer(self, Timer timer) except -1
    cdef int start_process(self, Entry entry) except -1
    cdef int discard(self, Discard request) except -1
    cdef int undelivered(self, Undelivered letter) except -1
    cdef int connected(self, Connected request) except -1
