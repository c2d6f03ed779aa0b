"""Requests: which life has the request of a call, so that its end is the end of the call.

A call is a thread's, a coroutine's (`calls` has these), or a process's: an `Ask`. It is the same in
all that follows, and has a number of the same row; only who waits for its end is another. A call's
request carries the pid of all that call on its node, and that number. The node whose
process takes such a request notes the life, until an answer to it goes out or the process passes it
on; what a life has when it ends is unanswered, and the asker is told. So nobody monitors anything
for a call, no frame is sent for one that is answered, and a request that reaches the next life of a
name is that life's.

What a process asks ends with its life: each Asked is in a chain of its asker's entry. It is *fresh*
until the turn ends in which it began: what is answered within the turn needs no timer and no look
at the clock.

Any thread may forget a request, under the GIL; all else belongs to the executor's.
"""

cimport cython
from cpython.object cimport PyObject

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t

from rabble._core.dispatch cimport Entry, Rare, rare_of
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.failure cimport take_failure
from rabble._core.ids cimport CorrelationId, NodeId, Pid, is_reserved, same_node, same_pid
from rabble._core.timeouts cimport Timeouts

from collections import OrderedDict

__all__ = ["Requests"]

cdef extern from "Python.h":
    # Of keys whose hash and equality are the core's own, or the interpreter's: it does not fail.
    PyObject* PyDict_GetItem "PyDict_GetItemWithError" (object mapping, object key) noexcept

cdef extern from *:
    """
    /* Of a dict whose keys are ints: that runs nobody's code and cannot fail, unless it is not
       there. The caller holds the value. */
    static void rabble_remove(PyObject *numbered, PyObject *number) {
        if (PyDict_DelItem(numbered, number) < 0) PyErr_Clear();
    }
    """
    void rabble_remove(object numbered, object number) noexcept


# Not seen by the collector: the entry that it refers to is cut loose at its end, and the tag is let
# go of with it, at the end of the ask or of its life, whichever is first.
@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Asked:
    """A request of a process that waits for its end."""


@cython.final
cdef class Unanswered:
    """A life has ended without having answered some requests."""


# Called so that what it raises stays pending: it returns -1 then.
ctypedef int (*quiet_start)(Timeouts timeouts, Asked asked, int64_t now_ns) noexcept


cdef int start_timer(Timeouts timeouts, Asked asked, int64_t now_ns) except -1:
    """From now on, which is later than it began: so none ends too early."""
    cdef int64_t due_ns = now_ns + asked.delay_ms * 1_000_000
    asked.timer = timeouts.wheel.c_start(asked, asked.number, timeouts.ticks_until(due_ns))
    return 0


@cython.final
cdef class Requests:
    """Who has the requests of calls: those of this node, and those of peers that came here.

    :param asker: the pid of this node's threads and coroutines that call.
    :param waiting: a dict with the number of each call that waits as a key. Not changed here.
    """

    def __cinit__(self, Pid asker not None, dict waiting not None):
        self.asker = asker
        self.waiting = waiting
        self.asks = {}
        self.holders = {}
        self.peers = OrderedDict()
        self.held = {}

    def __len__(self):
        cdef Asked asked
        cdef Py_ssize_t held = 0
        for asked in self.asks.values():
            held += asked.holder is not None
        return len(self.holders) + len(self.peers) + held

    @property
    def asks_waiting(self):
        """How many requests of processes wait for their ends."""
        return len(self.asks)

    def deliver(self, Envelope envelope not None):
        """What comes for a call of a node that has no table of calls: it is late."""

    def forget(self, number):
        """A call of this node ended: whoever has its request is no concern of it any more.

        From any thread, once the number is no longer one of those that wait.
        """
        if self.holders:
            self.drop(number)

    def holder(self, number):
        """The pid that the request of a call of this node is with; `None`: whom it was sent to."""
        found = self.holder_of(number)
        if type(found) is Entry:
            return (<Entry>found).pid
        return found

    cdef object next_number(self):
        self.numbers += 1
        return self.numbers

    cdef int begin_ask(self, Asked asked) except -1:
        cdef Rare rare = rare_of(asked.entry)
        # Last of all that may fail.
        self.asks[asked.number] = asked
        asked.newer = NULL
        asked.older = rare.asks
        if rare.asks is not NULL:
            (<Asked>rare.asks).newer = <PyObject*>asked
        rare.asks = <PyObject*>asked
        asked.is_fresh = True
        asked.fresh_newer = NULL
        asked.fresh_older = self.fresh_newest
        if self.fresh_newest is not NULL:
            (<Asked>self.fresh_newest).fresh_newer = <PyObject*>asked
        else:
            self.fresh_oldest = <PyObject*>asked
        self.fresh_newest = <PyObject*>asked
        return 0

    cdef int start_timers(self, Timeouts timeouts, int64_t now_ns) except -1:
        cdef Asked asked
        while self.fresh_oldest is not NULL:
            asked = <Asked>self.fresh_oldest
            if (<quiet_start><void*>start_timer)(timeouts, asked, now_ns) < 0:
                # Without memory it stays fresh, and the executor does not sleep.
                error = take_failure()
                if error is not None and type(error) is not MemoryError:
                    raise error
                return 0
            self.end_fresh(asked)
        return 0

    cdef void end_fresh(self, Asked asked) noexcept:
        asked.is_fresh = False
        if asked.fresh_newer is not NULL:
            (<Asked>asked.fresh_newer).fresh_older = asked.fresh_older
        else:
            self.fresh_newest = asked.fresh_older
        if asked.fresh_older is not NULL:
            (<Asked>asked.fresh_older).fresh_newer = asked.fresh_newer
        else:
            self.fresh_oldest = asked.fresh_newer

    cdef void end_ask(self, Asked asked, Timeouts timeouts) noexcept:
        """The caller holds it."""
        if asked.newer is not NULL:
            (<Asked>asked.newer).older = asked.older
        else:
            asked.entry.rare.asks = asked.older
        if asked.older is not NULL:
            (<Asked>asked.older).newer = asked.newer
        self.leave(asked, timeouts)

    cdef void leave(self, Asked asked, Timeouts timeouts) noexcept:
        if asked.is_fresh:
            self.end_fresh(asked)
        else:
            timeouts.stop(asked.timer)
            asked.timer = None
        self.release(asked)
        rabble_remove(self.asks, asked.number)

    cdef void forget_asks(self, Entry entry, Timeouts timeouts) noexcept:
        cdef PyObject* each = entry.rare.asks
        while each is not NULL:
            # The chain's, which `drop_asks` drops: what a tag does at its end waits until then.
            Py_INCREF(<Asked>each)
            self.leave(<Asked>each, timeouts)
            each = (<Asked>each).older

    cdef void drop_asks(self, Entry entry) noexcept:
        cdef PyObject* each
        while entry.rare.asks is not NULL:
            each = entry.rare.asks
            entry.rare.asks = (<Asked>each).older
            Py_DECREF(<Asked>each)

    cdef Asked ask_of(self, Envelope envelope):
        cdef CorrelationId cid = envelope.correlation_id
        cdef PyObject* found
        if cid.pid is not self.asker and not same_pid(cid.pid, self.asker):
            return None
        if envelope.sender is not None and same_pid(envelope.sender, self.asker):
            # A request, and no answer: whoever calls takes none.
            return None
        if not same_pid(envelope.to, self.asker) or cid.request is None:
            return None
        found = PyDict_GetItem(self.asks, cid.request)
        return None if found is NULL else <Asked>found

    cdef int hold(self, Asked asked, Entry entry) except -1:
        cdef Rare rare
        if asked.holder is entry:
            return 0
        rare = rare_of(entry)
        self.release(asked)
        asked.holder = entry
        asked.held_newer = NULL
        asked.held_older = rare.held
        if rare.held is not NULL:
            (<Asked>rare.held).held_newer = <PyObject*>asked
        rare.held = <PyObject*>asked
        return 0

    cdef void release(self, Asked asked) noexcept:
        if type(asked.holder) is Entry:
            if asked.held_newer is not NULL:
                (<Asked>asked.held_newer).held_older = asked.held_older
            else:
                (<Entry>asked.holder).rare.held = asked.held_older
            if asked.held_older is not NULL:
                (<Asked>asked.held_older).held_newer = asked.held_newer
        asked.holder = None

    cdef object holder_of(self, object key):
        cdef PyObject* found
        if type(key) is not int:
            return self.peers.get(key)
        found = PyDict_GetItem(self.asks, key)
        if found is not NULL:
            return (<Asked>found).holder
        return self.holders.get(key)

    cdef object key_of(self, CorrelationId correlation_id):
        cdef Pid asker = correlation_id.pid
        if asker.group is None or correlation_id.request is None:
            return None
        if asker is self.asker or same_pid(asker, self.asker):
            return correlation_id.request
        if is_reserved(asker) and asker.name == self.asker.name:
            return correlation_id
        return None

    cdef int taken(self, Entry entry, Envelope envelope) except -1:
        cdef PyObject* found
        cdef dict keys
        cdef object holders
        cdef Pid sender = envelope.sender
        if sender is None or sender.group is None:
            return 0
        if envelope.correlation_id.pid is not sender:
            if not same_pid(envelope.correlation_id.pid, sender):
                return 0
        key = self.key_of(envelope.correlation_id)
        if key is None:
            return 0
        is_own = type(key) is int
        if is_own:
            found = PyDict_GetItem(self.asks, key)
            if found is not NULL:
                return self.hold(<Asked>found, entry)
        holders = self.holders if is_own else self.peers
        found = PyDict_GetItem(holders, key)
        if found is not NULL:
            if found is <PyObject*>entry:
                return 0
            self.drop(key)
        if not is_own:
            if len(self.peers) >= self.peers_max:
                self.forget_oldest()
        found = PyDict_GetItem(self.held, entry)
        keyed = key
        if found is not NULL:
            keyed = <object>found
            if type(keyed) is not dict:
                # Made before the request is noted: the collector runs here, and what it ends may
                # forget calls. From here to the end nothing can come between.
                keys = {keyed: None}
                if PyDict_GetItem(self.held, entry) is NULL:
                    keys.clear()
                keyed = keys
            (<dict>keyed)[key] = None
        holders[key] = entry
        self.held[entry] = keyed
        # After it was noted: a call that gives up meanwhile finds it either there or not at all.
        if is_own and key not in self.waiting:
            self.drop(key)
        return 0

    cdef object drop(self, object key):
        """Returns who had it, or `None`."""
        cdef PyObject* found
        cdef dict keys
        if type(key) is int:
            found = PyDict_GetItem(self.asks, key)
            if found is not NULL:
                holder = (<Asked>found).holder
                self.release(<Asked>found)
                return holder
            holder = self.holders.pop(key, None)
        else:
            holder = self.peers.pop(key, None)
        if holder is None:
            return None
        if type(holder) is Entry:
            found = PyDict_GetItem(self.held, holder)
            if found is not NULL and type(<object>found) is dict:
                keys = <dict>found
                keys.pop(key, None)
                if not keys:
                    self.held.pop(holder, None)
            elif found is not NULL and <object>found == key:
                self.held.pop(holder, None)
        return holder

    cdef int forget_oldest(self) except -1:
        """Forget the peer's request that was taken first: its process never answers, perhaps."""
        # In an OrderedDict, as the first key of a dict is found behind the gaps of those that went.
        if self.peers:
            self.drop(next(iter(self.peers)))
        return 0

    cdef int passed_on(self, object number, Pid to) except -1:
        cdef PyObject* found
        self.drop(number)
        found = PyDict_GetItem(self.asks, number)
        if found is not NULL:
            (<Asked>found).holder = to
            return 0
        self.holders[number] = to
        if number not in self.waiting:
            self.drop(number)
        return 0

    cdef bint has(self, Entry entry) noexcept:
        if entry.rare is not None and entry.rare.held is not NULL:
            return True
        return PyDict_GetItem(self.held, entry) is not NULL

    cdef Envelope unanswered(
        self, Entry entry, str kind, str detail, unsigned long long crash
    ):
        cdef PyObject* each
        cdef Unanswered unanswered = Unanswered.__new__(Unanswered)
        unanswered.entry = entry
        held = self.held.get(entry, ())
        unanswered.keys = [held] if type(held) is int or type(held) is CorrelationId else list(held)
        if entry.rare is not None:
            each = entry.rare.held
            while each is not NULL:
                unanswered.keys.append((<Asked>each).number)
                each = (<Asked>each).held_older
        unanswered.kind = kind
        unanswered.detail = detail
        unanswered.crash = crash
        return new_envelope(self.executor, unanswered, None, None)

    cdef int forget_node(self, NodeId node) except -1:
        for key in list(self.peers):
            if same_node((<CorrelationId>key).pid.node, node):
                self.drop(key)
        return 0

    cdef int clear(self) except -1:
        cdef dict asks = self.asks
        cdef Asked asked
        self.holders.clear()
        self.peers.clear()
        self.held.clear()
        self.asks = {}
        self.fresh_newest = self.fresh_oldest = NULL
        for asked in asks.values():
            # No chain leads to what is dropped now.
            asked.entry.rare.asks = NULL
            # One that fired and never had its turn refers to it still.
            asked.timer = None
            if type(asked.holder) is Entry:
                (<Entry>asked.holder).rare.held = NULL
            asked.holder = None
        asks.clear()
        return 0
