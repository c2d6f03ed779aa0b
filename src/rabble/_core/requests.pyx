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
at the clock. Nor does it need a table of numbers: who answers on this node does so with the very
correlation id that he was given, and that leads to it. What comes over a connection has another,
and then all that wait are put into the table.

Any thread may forget a request, under the GIL; all else belongs to the executor's.
"""

cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow
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
    /* Whether there was memory for it. */
    static int rabble_put(PyObject *numbered, PyObject *number, PyObject *asked) {
        if (PyDict_SetItem(numbered, number, asked) == 0) return 1;
        PyErr_Clear();
        return 0;
    }
    """
    void rabble_remove(object numbered, object number) noexcept
    bint rabble_put(object numbered, object number, object asked) noexcept


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
    asked.timer = timeouts.wheel.c_start(asked, asked.cid.request, timeouts.ticks_until(due_ns))
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
        self.numbered = {}
        self.holders = {}
        self.peers = OrderedDict()
        self.held = {}

    def __dealloc__(self):
        drop_all(self.oldest)

    def __len__(self):
        cdef Asked asked
        cdef Py_ssize_t held = 0
        for asked in self.all_asked():
            held += asked.holder is not None
        return len(self.holders) + len(self.peers) + held

    @property
    def asks_waiting(self):
        """How many requests of processes wait for their ends."""
        return self.asks

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
        # All that may fail.
        cdef Rare rare = rare_of(asked.entry)
        asked.number = asked.cid.request
        asked.requests = <PyObject*>self
        asked.cid.asked = <PyObject*>asked
        asked.newer = NULL
        asked.older = rare.asks
        if rare.asks is not NULL:
            (<Asked>rare.asks).newer = <PyObject*>asked
        rare.asks = <PyObject*>asked
        # The chain's.
        Py_INCREF(asked)
        self.asks += 1
        asked.is_fresh = True
        asked.all_newer = NULL
        asked.all_older = self.newest
        if self.newest is not NULL:
            (<Asked>self.newest).all_newer = <PyObject*>asked
        else:
            self.oldest = <PyObject*>asked
        self.newest = <PyObject*>asked
        if self.fresh_oldest is NULL:
            self.fresh_oldest = <PyObject*>asked
        if self.unnumbered is NULL:
            self.unnumbered = <PyObject*>asked
        return 0

    cdef list all_asked(self):
        # Made first: that may collect, and what it runs may end some.
        cdef list asked = []
        cdef PyObject* each = self.oldest
        while each is not NULL:
            asked.append(<Asked>each)
            each = (<Asked>each).all_newer
        return asked

    cdef void number_all(self) noexcept:
        """Put those into the table that are not there; without memory some stay out."""
        cdef Asked asked
        while self.unnumbered is not NULL:
            asked = <Asked>self.unnumbered
            if not rabble_put(self.numbered, asked.cid.request, asked):
                return
            asked.is_numbered = True
            self.unnumbered = asked.all_newer

    cdef PyObject* find(self, object number) noexcept:
        cdef PyObject* found
        cdef int overflow = 0
        cdef long long wanted
        if self.unnumbered is not NULL:
            self.number_all()
        found = PyDict_GetItem(self.numbered, number)
        if found is NULL and self.unnumbered is not NULL:
            wanted = PyLong_AsLongLongAndOverflow(number, &overflow)
            found = self.unnumbered
            while found is not NULL and (<Asked>found).number != wanted:
                found = (<Asked>found).all_newer
        return found

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
            asked.is_fresh = False
            self.fresh_oldest = asked.all_newer
        return 0

    cdef void end_ask(self, Asked asked, Timeouts timeouts) noexcept:
        """The caller holds it."""
        if asked.newer is not NULL:
            (<Asked>asked.newer).older = asked.older
        else:
            asked.entry.rare.asks = asked.older
        if asked.older is not NULL:
            (<Asked>asked.older).newer = asked.newer
        self.leave(asked, timeouts)
        Py_DECREF(asked)

    cdef void leave(self, Asked asked, Timeouts timeouts) noexcept:
        """The chain's reference is the caller's from now on."""
        if asked.is_fresh:
            asked.is_fresh = False
            if self.fresh_oldest is <PyObject*>asked:
                self.fresh_oldest = asked.all_newer
        else:
            timeouts.stop(asked.timer)
            asked.timer = None
        if asked.is_numbered:
            rabble_remove(self.numbered, asked.cid.request)
        elif self.unnumbered is <PyObject*>asked:
            self.unnumbered = asked.all_newer
        if asked.all_newer is not NULL:
            (<Asked>asked.all_newer).all_older = asked.all_older
        else:
            self.newest = asked.all_older
        if asked.all_older is not NULL:
            (<Asked>asked.all_older).all_newer = asked.all_newer
        else:
            self.oldest = asked.all_newer
        self.asks -= 1
        asked.cid.asked = NULL
        self.release(asked)

    cdef void forget_asks(self, Entry entry, Timeouts timeouts) noexcept:
        cdef PyObject* each = entry.rare.asks
        while each is not NULL:
            # `drop_asks` drops the chain's reference: what a tag does at its end waits until then.
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
        if cid.asked is not NULL and (<Asked>cid.asked).requests is <PyObject*>self:
            if envelope.sender is None or not same_pid(envelope.sender, self.asker):
                return <Asked>cid.asked if same_pid(envelope.to, self.asker) else None
        if cid.pid is not self.asker and not same_pid(cid.pid, self.asker):
            return None
        if envelope.sender is not None and same_pid(envelope.sender, self.asker):
            # A request, and no answer: whoever calls takes none.
            return None
        if not same_pid(envelope.to, self.asker) or cid.request is None:
            return None
        found = self.find(cid.request)
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
        found = self.find(key)
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
        found = envelope.correlation_id.asked
        if found is not NULL and (<Asked>found).requests is <PyObject*>self:
            return self.hold(<Asked>found, entry)
        key = self.key_of(envelope.correlation_id)
        if key is None:
            return 0
        is_own = type(key) is int
        if is_own:
            found = self.find(key)
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
            found = self.find(key)
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
        found = self.find(number)
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
                unanswered.keys.append((<Asked>each).cid.request)
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
        cdef PyObject* each = self.oldest
        cdef PyObject* all_asked = each
        cdef Asked asked
        self.oldest = self.newest = self.fresh_oldest = self.unnumbered = NULL
        self.asks = 0
        while each is not NULL:
            asked = <Asked>each
            # No chain leads to what is dropped now.
            asked.entry.rare.asks = NULL
            # One that fired and never had its turn refers to it still.
            asked.timer = None
            if type(asked.holder) is Entry:
                (<Entry>asked.holder).rare.held = NULL
            asked.holder = None
            each = asked.all_newer
        self.numbered.clear()
        self.holders.clear()
        self.peers.clear()
        self.held.clear()
        drop_all(all_asked)
        return 0


cdef void drop_all(PyObject* each) noexcept:
    """Let go of a chain of Asked that no other one leads to."""
    cdef PyObject* newer
    while each is not NULL:
        newer = (<Asked>each).all_newer
        (<Asked>each).cid.asked = NULL
        Py_DECREF(<Asked>each)
        each = newer
