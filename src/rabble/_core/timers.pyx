"""The hierarchical timing wheel: timers by the million, started and cancelled in constant time.

This is scheme 7 of Varghese & Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987): levels
of 256 slots, where a slot of level n is 256**n ticks long (the `tiny` build has more levels, of 4).
A timer lies at the level of the highest byte in which its deadline differs from now, in the slot
which that byte of the deadline numbers. So what lies at a level is due before all that lies above
it, and the earliest slot is the first occupied one of the lowest occupied level: found in a bitmap,
however far away it is. When now reaches the start of a slot, its timers move down, each to the
level that is now its own; at level 0 a slot is a single tick, and its timers fire. A timer moves at
most four times in its life.

A byte cannot carry over into the next one within a level, except at the topmost level, which has
none above it: that one is a ring. A timer there is 1 to 192 slots away, so that a slot never holds
timers of two rounds.

Two timers of one deadline fire in the order in which they were started: a slot is a queue, and a
later timer can lie lower than an earlier one only once now has reached the earlier one's slot,
which then has been emptied downwards.
"""

cimport cython
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.list cimport PyList_Append
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.math cimport ceil
from libc.stdint cimport int64_t, uint64_t

from rabble._core.capacities cimport WHEEL_LEVELS, WHEEL_SLOT_BITS
from rabble._core.texts cimport bounded_repr, type_name

__all__ = ["Timer", "TimerWheel", "validate_delay_ms"]

cdef extern from *:
    """
    /* What a user may ask for: 366 days of milliseconds. */
    #define RABBLE_DELAY_MAX INT64_C(31622400000)
    /* What the wheel can hold: three quarters of the topmost level. */
    #define RABBLE_WHEEL_TOP_SHIFT ((RABBLE_WHEEL_LEVELS - 1) * RABBLE_WHEEL_SLOT_BITS)
    #define RABBLE_DELAY_REACH \\
        ((INT64_C(3) << RABBLE_WHEEL_SLOT_BITS) / 4 << RABBLE_WHEEL_TOP_SHIFT)
    /* Room for what the executor adds, and a slot's start does not pass the end of int64_t. */
    _Static_assert(RABBLE_DELAY_REACH > 2 * RABBLE_DELAY_MAX, "a year must fit into the wheel");
    _Static_assert(RABBLE_WHEEL_TOP_SHIFT + RABBLE_WHEEL_SLOT_BITS < 62, "ticks must fit");
    /* Far enough below the end of int64_t that no deadline passes it. */
    #define RABBLE_TICK_MAX (INT64_C(1) << 62)
    """
    const int64_t DELAY_MAX "RABBLE_DELAY_MAX"
    const int64_t DELAY_REACH "RABBLE_DELAY_REACH"
    const int64_t TICK_MAX "RABBLE_TICK_MAX"
    enum: TOP_SHIFT "RABBLE_WHEEL_TOP_SHIFT"
    int count_trailing_zeros "__builtin_ctzll"(uint64_t bits) noexcept nogil
    int count_leading_zeros "__builtin_clzll"(uint64_t bits) noexcept nogil

cdef enum:
    TOP = WHEEL_LEVELS - 1


# Not seen by the garbage collector: with a million timers each full collection would walk over all
# of them. An owner mostly keeps its timers, and a timer its owner, but no such cycle outlives its
# use: a timer that runs is the wheel's, so there is nothing to collect; one that was cancelled or
# cleared has let go of its owner; and one that fired its owner lets go of when it is told, or ends.
# What it is known by leads to no timer: a CorrelationId, or an Alarm of `timeouts`, which only its
# timer refers to. No timer is another's owner, or dropping one could drop the next, and so on,
# deeper than the C stack.
@cython.final
@cython.no_gc
@cython.freelist(1024)
cdef class Timer:
    """A started timer, made by `TimerWheel.start`.

    One that was cancelled or cleared has no owner any more. Whoever keeps one that fired keeps its
    owner.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("a Timer cannot be made by itself: TimerWheel.start makes them")

    def __repr__(self):
        state = "active" if self.active else "inactive"
        return f"<Timer of {self.correlation_id!r}, deadline {self.deadline}, {state}>"

    @property
    def deadline(self):
        """The tick at which it is due."""
        return self.node.deadline

    @property
    def active(self):
        """Whether it runs: it neither fired nor was it cancelled."""
        return self.wheel is not NULL


cdef int64_t to_ticks(object value) except? -1:
    # What a parameter declared as int64_t does to 1.5 is to make it 1: a timer that fires early.
    cdef int overflow
    cdef int64_t ticks
    # Asked of the type and not of the object, which may say that it is of any class.
    if not PyLong_Check(value):
        raise TypeError(f"ticks are an int, not {type_name(value)}: {bounded_repr(value, 60)}")
    ticks = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        raise ValueError(f"ticks must fit into 64 bits, not {bounded_repr(value, 60)}")
    return ticks


cdef Py_ssize_t node_offset() except -1:
    cdef Timer probe = Timer.__new__(Timer)
    return <char*>&probe.node - <char*><PyObject*>probe


cdef Py_ssize_t NODE_OFFSET = node_offset()


cdef inline PyObject* timer_of(Node* node) noexcept nogil:
    """The timer that `node` is part of, borrowed. `node` must not be a head."""
    return <PyObject*>(<char*>node - NODE_OFFSET)


# Functions, as the debug build cannot check `self` for None in an assignment without the GIL.

cdef inline void set_bit(uint64_t* words, int bit) noexcept nogil:
    words[bit // WORD_BITS] |= <uint64_t>1 << (bit % WORD_BITS)


cdef inline void clear_bit(uint64_t* words, int bit) noexcept nogil:
    words[bit // WORD_BITS] &= ~(<uint64_t>1 << (bit % WORD_BITS))


@cython.final
cdef class TimerWheel:
    """Timers on a clock that is handed in. One tick is meant to be a millisecond.

    :param now: the tick at which it begins, 0 to 2**62.
    :raises TypeError: if `now` is no int.
    :raises ValueError: if `now` is out of range.

    A wheel keeps every running timer, and with it the owner, alive: `clear` it when done, or see
    that it dies itself. Not thread-safe beyond the GIL, which every method holds.
    """

    def __cinit__(self, now=0):
        cdef Node* head
        cdef int slot
        cdef int64_t tick = to_ticks(now)
        for slot in range(WHEEL_LEVELS * SLOTS):
            head = &self.slots[slot]
            head.next = head.prev = head
        if not 0 <= tick <= TICK_MAX:
            raise ValueError(f"a wheel begins at a tick from 0 to {TICK_MAX}, not at {tick}")
        self.now = tick

    def __dealloc__(self):
        self.drop_all()

    def __len__(self):
        return self.count

    def start(self, owner, correlation_id, delay):
        """Start a timer that is due in `delay` ticks, in the next one at the earliest.

        :param owner: whatever shall be found in the timer when it fires.
        :param correlation_id: likewise.
        :param delay: ticks, 0 to 31,622,400,000 (366 days).
        :returns: the `Timer`.
        :raises TypeError: if `delay` is no int, or the others are timers themselves.
        :raises ValueError: if `delay` is out of range.
        """
        cdef int64_t ticks = to_ticks(delay)
        if isinstance(owner, Timer) or isinstance(correlation_id, Timer):
            raise TypeError("a timer cannot belong to a timer, nor be known by one")
        if not 0 <= ticks <= DELAY_MAX:
            raise ValueError(f"the delay must be 0 to {DELAY_MAX} ticks (366 days), not {ticks}")
        return self.c_start(owner, correlation_id, ticks)

    def cancel(self, Timer timer not None):
        """See that `timer` does not fire.

        :returns: whether it ran; `False` if it had fired or been cancelled already.
        :raises ValueError: if it runs in another wheel.
        """
        return self.c_cancel(timer)

    def advance(self, now):
        """Move on to tick `now`.

        :returns: the timers that are due by then, inactive now, in the order of their deadlines;
            those of one deadline in the order in which they were started.
        :raises TypeError: if `now` is no int.
        :raises ValueError: if `now` is before the wheel's, or beyond 2**62.

        The cost is that of the timers that fire or move down a level, however many ticks pass.
        Timers of one slot move together: those of a whole topmost slot, 50 days, now and then.
        """
        cdef list out = []
        self.c_advance(to_ticks(now), out)
        return out

    def next_deadline(self):
        """When `advance` will have something to do: a tick, or `None` if no timer runs.

        Never later than the earliest deadline. Within 256 ticks it mostly is that deadline; before,
        it is the start of the slot that the timer lies in, where it moves down a level. Whoever
        sleeps until then, advances and asks again wakes up at most five times for one timer.
        """
        cdef int64_t tick = self.c_next_deadline()
        return None if tick < 0 else tick

    def clear(self):
        """Cancel all timers; returns how many there were."""
        return self.drop_all()

    cdef Timer c_start(self, object owner, object cid, int64_t delay):
        """As `start`, but takes all that the wheel can hold: 192 * 2**32 ticks.

        The executor counts from the true time, which may be ahead of `now`; so what it asks for
        may be a bit longer than what it was asked for. Less than 1 counts as 1.
        """
        cdef Timer timer
        if delay > DELAY_REACH:
            raise ValueError(f"the delay must be at most {DELAY_REACH} ticks, not {delay}")
        timer = Timer.__new__(Timer)
        timer.owner = owner
        timer.correlation_id = cid
        timer.node.deadline = self.now + max(delay, 1)
        timer.wheel = <void*>self
        self.link(&timer.node)
        Py_INCREF(timer)
        self.count += 1
        return timer

    cdef void c_restart(self, Timer timer, int64_t delay) noexcept:
        if timer.wheel is not NULL:
            return
        timer.node.deadline = self.now + min(max(delay, 1), DELAY_REACH)
        timer.wheel = <void*>self
        self.link(&timer.node)
        Py_INCREF(timer)
        self.count += 1

    cdef bint c_cancel(self, Timer timer) except -1:
        if timer.wheel is not <void*>self:
            if timer.wheel is NULL:
                return False
            raise ValueError(
                f"{bounded_repr(timer, 200)} runs in another wheel and must be cancelled there"
            )
        self.unlink(&timer.node)
        timer.wheel = NULL
        self.count -= 1
        # Last, because they may be the last references, whose end runs code that uses the wheel.
        _owner = timer.owner
        timer.owner = None
        Py_DECREF(timer)
        return True

    cdef int c_advance(self, int64_t now, list out) except -1:
        """As `advance`; what fires is appended to `out`.

        If memory runs out, `out` has what fired, and the rest fires at the next call.
        """
        cdef int64_t tick
        cdef int slot
        if not self.now <= now <= TICK_MAX:
            raise ValueError(
                f"a wheel at tick {self.now} can advance to a tick from there to {TICK_MAX}, "
                f"not to {now}"
            )
        while True:
            tick = self.earliest(&slot)
            if tick < 0 or tick > now:
                break
            # The place of every timer depends on now: it moves along slot by slot.
            self.now = tick
            self.visits += 1
            if slot < SLOTS:
                self.fire(slot, out)
            else:
                self.cascade(slot)
        self.now = now
        return 0

    cdef int64_t c_next_deadline(self) noexcept:
        """As `next_deadline`; -1 if no timer runs."""
        cdef int slot
        return self.earliest(&slot)

    cdef int fire(self, int slot, list out) except -1:
        cdef Node* head = &self.slots[slot]
        cdef Timer timer
        while head.next is not head:
            timer = <Timer>timer_of(head.next)
            PyList_Append(out, timer)
            self.unlink(&timer.node)
            timer.wheel = NULL
            self.count -= 1
            # The wheel's reference; the list has one of its own, so nothing ends here.
            Py_DECREF(timer)
        return 0

    cdef int64_t earliest(self, int* slot) noexcept nogil:
        """The start of the first slot that holds a timer, and its number; -1 if none does."""
        cdef int nth, word, shift, own, found
        cdef int64_t current
        cdef uint64_t bits
        for word in range(TOP * WORDS):
            bits = self.occupied[word]
            if bits != 0:
                slot[0] = word * WORD_BITS + count_trailing_zeros(bits)
                shift = slot[0] // SLOTS * WHEEL_SLOT_BITS
                return (
                    self.now >> (shift + WHEEL_SLOT_BITS) << (shift + WHEEL_SLOT_BITS)
                ) | (<int64_t>(slot[0] % SLOTS) << shift)
        # The ring, beginning at the word of now's slot. What that word has in front of the slot
        # would be more than three quarters of the ring away, beyond the reach of a timer; but if
        # the ring is one word, that is behind all else: so it is looked at last.
        current = self.now >> TOP_SHIFT
        own = <int>(current % SLOTS)
        for nth in range(WORDS + (WORDS == 1)):
            word = (own // WORD_BITS + nth) % WORDS
            bits = self.occupied[TOP * WORDS + word]
            if WORDS == 1 and nth == 0:
                bits &= ~<uint64_t>0 << own
            if bits != 0:
                found = word * WORD_BITS + count_trailing_zeros(bits)
                slot[0] = TOP * SLOTS + found
                return (current + (found + SLOTS - own) % SLOTS) << TOP_SHIFT
        return -1

    cdef void link(self, Node* node) noexcept nogil:
        """Put it at the end of the slot that is right for its deadline as seen from now."""
        cdef uint64_t differing = <uint64_t>(node.deadline ^ self.now)
        cdef int level = min((63 - count_leading_zeros(differing | 1)) // WHEEL_SLOT_BITS, TOP)
        cdef int slot = level * SLOTS + <int>(
            (node.deadline >> (level * WHEEL_SLOT_BITS)) % SLOTS
        )
        cdef Node* head = &self.slots[slot]
        node.next = head
        node.prev = head.prev
        head.prev.next = node
        head.prev = node
        set_bit(self.occupied, slot)

    cdef void unlink(self, Node* node) noexcept nogil:
        cdef int slot
        node.prev.next = node.next
        node.next.prev = node.prev
        if node.next is node.prev:
            # Both neighbours are the same only if they are the head, whose place is its number.
            slot = <int>(node.next - self.slots)
            clear_bit(self.occupied, slot)

    cdef void cascade(self, int slot) noexcept nogil:
        """Move the timers of `slot`, whose start is now, to the levels below."""
        cdef Node* head = &self.slots[slot]
        cdef Node* node = head.next
        cdef Node* following
        head.next = head.prev = head
        clear_bit(self.occupied, slot)
        while node is not head:
            following = node.next
            self.link(node)
            node = following

    cdef Py_ssize_t drop_all(self) noexcept:
        """Dropping a timer may end its owner, whose end may run code that starts and cancels.

        So all of them are taken out first, into a chain that is nobody else's, and are inactive
        before the first one is dropped. What is started meanwhile stays.
        """
        cdef Py_ssize_t dropped = self.count
        cdef Node* chain = NULL
        cdef Node* head
        cdef Node* node
        cdef int slot
        cdef PyObject* timer
        cdef object owner
        if dropped == 0:
            # Also where the arguments were refused, and there are no rings yet.
            return 0
        for slot in range(WHEEL_LEVELS * SLOTS):
            head = &self.slots[slot]
            while head.next is not head:
                node = head.next
                self.unlink(node)
                (<Timer>timer_of(node)).wheel = NULL
                node.next = chain
                chain = node
        self.count = 0
        while chain is not NULL:
            timer = timer_of(chain)
            chain = chain.next
            owner = (<Timer>timer).owner
            (<Timer>timer).owner = None
            Py_DECREF(<object>timer)
            owner = None
        return dropped


def validate_delay_ms(value):
    """The delay that a user asked for, as whole milliseconds.

    :param value: milliseconds, an int or float from 0 to 31,622,400,000 (366 days).
    :returns: the same as an int; part of a millisecond counts as a whole one, so that no timer
        fires early.
    :raises TypeError: if it is no int or float; a bool is none either.
    :raises ValueError: if it is negative, too large or not a number.
    """
    return delay_ms_of(value)


cdef int64_t delay_ms_of(object value) except -1:
    cdef int overflow = 0
    cdef int64_t whole = 0
    cdef double given = 0
    # Asked of the type and not of the object, which may say that it is of any class; and no method
    # of a subclass is called, which could say anything.
    if value is True or value is False or not (PyLong_Check(value) or PyFloat_Check(value)):
        raise TypeError(
            f"a delay must be milliseconds as an int or float, "
            f"not {type_name(value)}: {bounded_repr(value, 60)}"
        )
    if PyLong_Check(value):
        whole = PyLong_AsLongLongAndOverflow(value, &overflow)
        if not overflow and 0 <= whole <= DELAY_MAX:
            return whole
    else:
        given = PyFloat_AS_DOUBLE(value)
        # Written so that NaN, which compares as false to everything, is refused as well.
        if 0 <= given <= <double>DELAY_MAX:
            whole = <int64_t>given
            return whole if <double>whole == given else whole + 1
    raise ValueError(
        f"a delay must be from 0 to {DELAY_MAX} milliseconds (366 days), "
        f"not {bounded_repr(value, 60)}"
    )


cdef int64_t period_ns_of(object value) except -1:
    cdef int64_t whole_ms = delay_ms_of(value)
    cdef double given
    if PyLong_Check(value):
        if whole_ms >= 1:
            return whole_ms * 1_000_000
    else:
        given = PyFloat_AS_DOUBLE(value)
        if given >= 1.0:
            # Rounded up, as never to be early.
            return <int64_t>ceil(given * 1e6)
    raise ValueError(
        f"a timer that repeats does so every 1 millisecond or less often, "
        f"not every {bounded_repr(value, 60)}"
    )
