from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport CorrelationId, NodeId, Pid
from rabble._core.timeouts cimport Timeouts
from rabble._core.timers cimport Timer

cdef class Asked:
    # The request of an `Ask` that waits for its end. The chain of all of them owns it.
    cdef PyObject* requests                # the Requests whose it is, borrowed
    cdef Entry entry                       # the life that asked
    cdef CorrelationId cid                 # of the request, which leads back to this until its end
    cdef long long number                  # the same number as its
    cdef Pid to                            # whom it was sent to
    cdef object tag                        # of the asker's choice; not looked at
    cdef CorrelationId correlation_id      # of the `Ask` itself, for its end; or None
    cdef object timeout_ms                 # as the asker gave it
    cdef int64_t delay_ms                  # the same, as a number
    cdef Timer timer                       # the end of its time; None while fresh, and at its end
    cdef bint is_fresh                     # its time has not begun to be measured
    cdef bint is_numbered                  # it is in `Requests.numbered`
    cdef object holder                     # who has the request: as in `Requests.holders`, or None
    cdef PyObject* newer                   # of those that the same life waits for, borrowed ...
    cdef PyObject* older                   # ... the next and the one before; or NULL
    cdef PyObject* held_newer              # the same of those that the same life has
    cdef PyObject* held_older
    cdef PyObject* all_newer               # the same of all
    cdef PyObject* all_older

cdef class Unanswered:
    # A life has ended without having answered these.
    cdef Entry entry                       # which
    cdef list keys                         # as in `Requests.held`
    cdef str kind                          # how it ended: that of a DownReason
    cdef str detail                        # why
    cdef unsigned long long crash          # the number of its crash in the log; 0: it did not crash

cdef class Requests:
    cdef readonly Pid asker                # the pid that this node's requests come from
    cdef dict waiting                      # number -> anything, of this node's calls that wait
    # What its processes wait for: a chain of Asked in the order in which they began, each of which
    # it owns. Most end before they need a timer, and are found by their correlation id.
    cdef PyObject* oldest
    cdef PyObject* newest
    cdef PyObject* fresh_oldest            # the first that began in this turn, or NULL
    cdef PyObject* unnumbered              # the first that is not in `numbered` yet, or NULL
    cdef Py_ssize_t asks                   # how many wait
    cdef Py_ssize_t asks_max               # how many of these there may be
    cdef dict numbered                     # number -> Asked: filled when one is looked for by it
    cdef long long numbers                 # given so far, to calls and asks
    cdef Pid executor                      # handles `Unanswered`
    cdef Py_ssize_t peers_max              # how many requests of peers are known at once
    # Who has a request: the Entry of this node that took it, or the Pid that it was passed on to.
    cdef dict holders                      # number of a call of this node -> who
    cdef object peers                      # correlation id of a peer's -> who; the oldest first
    cdef dict held                         # Entry -> its key in these two, or a dict of several

    # The next call or ask.
    cdef object next_number(self)
    # An `Ask` whose fields are set begins, fresh; it has come to its end, which cannot fail.
    cdef int begin_ask(self, Asked asked) except -1
    cdef void end_ask(self, Asked asked, Timeouts timeouts) noexcept
    cdef void leave(self, Asked asked, Timeouts timeouts) noexcept
    # A turn ends: those that began in it and wait still have timers from now on.
    cdef int start_timers(self, Timeouts timeouts, int64_t now_ns) except -1
    # All that wait, in their order.
    cdef list all_asked(self)
    # One of them by its number, borrowed, or NULL.
    cdef PyObject* find(self, object number) noexcept
    cdef void number_all(self) noexcept
    # All those of a life that ends, in two parts: nobody's code runs before `drop_asks`.
    cdef void forget_asks(self, Entry entry, Timeouts timeouts) noexcept
    cdef void drop_asks(self, Entry entry) noexcept
    # Whose end an envelope to `asker` is, or None.
    cdef Asked ask_of(self, Envelope envelope)
    # A life has one; nobody has it any more, as far as is known.
    cdef int hold(self, Asked asked, Entry entry) except -1
    cdef void release(self, Asked asked) noexcept

    # A life of this node is given an envelope with a correlation id.
    cdef int taken(self, Entry entry, Envelope envelope) except -1
    # The key of a call's request, from whatever node; None: it is none.
    cdef object key_of(self, CorrelationId correlation_id)
    # Who has the request with a key, or None.
    cdef object holder_of(self, object key)
    # Whoever has it answers no more: it is answered, passed on, or known to have failed.
    cdef object drop(self, object key)
    # A request of this node's went to a pid of another one.
    cdef int passed_on(self, object number, Pid to) except -1
    # Whether a life has any.
    cdef bint has(self, Entry entry) noexcept
    # An `Unanswered` of a life that ends and has some, to be queued behind what it sent.
    cdef Envelope unanswered(self, Entry entry, str kind, str detail, unsigned long long crash)
    cdef int forget_oldest(self) except -1
    # The connection to a node has ended: nobody there waits for an answer any more.
    cdef int forget_node(self, NodeId node) except -1
    cdef int clear(self) except -1
