"""The calls that wait for their replies: their numbers, and how the replies get to event loops.

A call is its asker's: the table refers to it weakly, so none is left behind by an asker that an
exception takes away, in whatever place: a KeyboardInterrupt comes between any two bytecodes, those
of a `finally` or of a `__del__` too. What has gone is swept out before the table grows. But a task
that waits is kept by its loop's part, as asyncio keeps one that sleeps: nobody else may hold it.

Replies come one by one in the executor's thread, and each thread that is to be woken costs more
than all else. So an event loop is told once of all that came before it looked, and where it has
nothing else to do it does not sleep at once after it has asked. And it has one timer for all of its
calls: that of the next deadline.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.failure cimport take_failure
from rabble._core.idle cimport SPIN_CREDIT_MAX, Credit, Idle, has_credit, spun, wait_for_idle
from rabble._core.ids cimport CorrelationId, Pid, same_pid
from rabble._core.requests cimport Requests
from rabble._core.weakrefs cimport PyWeakref_NewRef, referent

from asyncio import BaseEventLoop, CancelledError, get_running_loop
from contextvars import copy_context
from heapq import heapify, heappop, heappush
from time import monotonic

from rabble._core.messages import Bounced, CallFailed, DeadLetter, DeadLetterReason

__all__ = ["AwaitedReply", "CallTable", "LoopReplies"]

cdef extern from "Python.h":
    # Declared without `except`: what it raises stays pending until it is taken.
    PyObject* PyObject_CallFunctionObjArgs(PyObject* callable, ...)
    PyObject* PyDict_GetItem(object mapping, object key) noexcept
    PyObject* Py_NewRef(PyObject* obj) noexcept
    unsigned long PyThread_get_thread_ident() noexcept
    PyObject* PyObject_CallMethodObjArgs(PyObject* obj, PyObject* name, ...)

cdef enum:
    SWEEP_MIN = 64          # calls that wait before the table looks for askers that have gone
    STALE_MIN = 64          # deadlines of calls that ended, before they are thrown away


@cython.final
cdef class AwaitedReply:
    """The end of a call for whose reply a coroutine waits.

    It is what asyncio takes for a future, as far as a task asks one: an own one, since the loop is
    to run many tasks in one callback instead of one callback for each.

    :ivar correlation_id: of the request.
    :ivar to: whom it was sent to.
    :ivar number: of the call.
    :ivar timeout: seconds, as the caller gave them.
    """

    cdef object __weakref__
    cdef public bint _asyncio_future_blocking
    cdef readonly CorrelationId correlation_id
    cdef readonly Pid to
    cdef readonly object number
    cdef readonly object timeout
    cdef LoopReplies replies
    cdef CallTable table
    cdef object value
    cdef object error
    cdef bint is_set                # it has ended: from now on nothing changes that
    cdef bint is_done               # ... and the loop knows, or it was cancelled ...
    cdef bint is_cancelled          # ... namely that
    cdef object cancel_msg          # ... and what `cancel` was given
    cdef object callback            # what the task is woken by, once it waits
    cdef object context             # ... and in which context
    cdef list more                  # pairs of these, if there is more than one

    def set_result(self, value):
        """End it with a reply. False if it had ended already. From any thread."""
        return self.end(value, None)

    def set_exception(self, error):
        """End it with a failure. False if it had ended already. From any thread."""
        return self.end(None, error)

    cdef LoopReplies of_loop(self):
        if self.replies is None:
            raise TypeError("an AwaitedReply is made by a call, and by nobody else")
        return self.replies

    cdef bint end(self, object value, object error) except -1:
        cdef LoopReplies replies = self.of_loop()
        if self.is_set:
            return False
        # First: where there is no memory for that, it has not ended, and may be ended again.
        replies.ended.append(self)
        self.is_set = True
        self.value = value
        self.error = error
        replies.tell()
        return True

    cdef int give_up(self) except -1:
        """Its asker waits no more. In the loop's thread."""
        self.is_set = self.is_done = True
        self.callback = self.context = self.more = None
        self.value = self.error = None
        self.replies.held.pop(self.number, None)
        if self.table is not None:
            self.table.forget(self.number)
        return 0

    # What a task asks. In the loop's thread.

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if self.is_done:
            raise StopIteration
        if self._asyncio_future_blocking:
            # Nobody took what the last one gave, as a task does: a loop over it would have no end.
            raise RuntimeError("await wasn't used with future")
        self._asyncio_future_blocking = True
        return self

    def get_loop(self):
        """The loop that it is of."""
        return self.of_loop().loop

    def done(self):
        """Whether the loop knows that it has ended."""
        return self.is_done

    def cancelled(self):
        """Whether it ended because its task was cancelled."""
        return self.is_cancelled

    def result(self):
        """Raise `CancelledError` if its task was cancelled; how else it ended the coroutine says.

        The error carries what `cancel` was given, as that of a future does: whoever cancels a task
        may tell its own cancellation by that.
        """
        if self.is_cancelled:
            if self.cancel_msg is None:
                raise CancelledError
            raise CancelledError(self.cancel_msg)

    def exception(self):
        """As `result`."""
        return self.result()

    def cancel(self, msg=None):
        """The task is cancelled. False if the loop knew already that it has ended.

        :param msg: the argument of the `CancelledError`; None: it has none.
        """
        cdef LoopReplies replies = self.of_loop()
        cdef object callback
        if self.is_done:
            return False
        self.is_set = self.is_done = self.is_cancelled = True
        self.cancel_msg = msg
        self.value = self.error = None
        callback = self.callback
        self.callback = None
        replies.held.pop(self.number, None)
        if callback is not None:
            replies.loop.call_soon(callback, self, context=self.context)
        self.wake_more()
        return True

    def add_done_callback(self, callback, *, context=None):
        """Have that called with this one when it has ended: the task's step."""
        cdef LoopReplies replies = self.of_loop()
        if self.is_done:
            replies.loop.call_soon(callback, self, context=context)
        elif self.callback is None:
            self.context = copy_context() if context is None else context
            self.callback = callback
            replies.held[self.number] = self
        else:
            if self.more is None:
                self.more = []
            self.more.append((callback, copy_context() if context is None else context))

    def remove_done_callback(self, callback):
        """Have that called no more; returns how many there were."""
        count = 0
        if self.callback == callback:
            self.callback = None
            count = 1
        if self.more:
            left = [each for each in self.more if each[0] != callback]
            count += len(self.more) - len(left)
            self.more = left
        if self.callback is None and not self.more and self.replies is not None:
            self.replies.held.pop(self.number, None)
        return count

    cdef int wake_more(self) except -1:
        """Whatever else waits for it, by a callback of the loop each."""
        cdef list more = self.more
        if more is not None:
            self.more = None
            for callback, context in more:
                self.of_loop().loop.call_soon(callback, self, context=context)
        return 0

    cdef PyObject* settle(self) noexcept:
        """Run the task's next step. NULL, with an exception pending, if it raises; else owned."""
        cdef object callback = self.callback
        if self.is_done:
            return Py_NewRef(<PyObject*>None)
        self.is_done = True
        self.replies.held.pop(self.number, None)
        if callback is None:
            return Py_NewRef(<PyObject*>None)
        self.callback = None
        return PyObject_CallMethodObjArgs(
            <PyObject*>self.context, <PyObject*>"run", <PyObject*>callback, <PyObject*>self, NULL
        )


@cython.final
cdef class LoopReplies:
    """The replies for one event loop, and the deadlines of those that it waits for.

    :param loop: whose. To be made in its thread.
    :param table: of the calls.
    """

    cdef readonly object loop
    cdef CallTable table
    cdef object time                # the loop's time
    cdef object call_soon           # its call_soon_threadsafe
    cdef object look                # `settle`, bound once
    cdef list ended                 # replies of which the loop is to be told
    cdef dict held                  # number -> the AwaitedReply that a task waits for
    cdef volatile bint is_told      # it will look at them
    cdef bint is_to_wait            # `wait` is among what the loop runs next
    cdef bint is_waiting            # it is in there: it need not be woken
    cdef object waits               # `wait`, bound once
    cdef object ready               # what the loop is to run next; None: nobody knows
    cdef Credit credit              # how well that has paid of late
    cdef list deadlines             # a heap of (loop's time, number); of calls that ended, too
    cdef double armed               # for when the timer is set; 0: it is not
    cdef Py_ssize_t compact_at      # how many deadlines there may be before the stale ones go

    def __cinit__(self, loop not None, CallTable table not None):
        self.loop = loop
        self.table = table
        self.call_soon = loop.call_soon_threadsafe
        self.time = loop.time
        if type(loop).time is BaseEventLoop.time and "time" not in vars(loop):
            # Which is all that it calls.
            self.time = monotonic
        self.look = self.settle
        self.waits = self.wait
        if isinstance(loop, BaseEventLoop):
            # Of other loops nobody knows whether they have something else to do.
            self.ready = getattr(loop, "_ready", None)
        self.credit.left = SPIN_CREDIT_MAX
        self.ended = []
        self.held = {}
        self.deadlines = []
        self.compact_at = STALE_MIN

    cdef int tell(self) except -1:
        """Have the loop look at those that have ended."""
        cdef PyObject* answer
        if self.is_told:
            return 0
        # Before the loop is woken: it may look while that call still goes on.
        self.is_told = True
        if self.is_waiting:
            return 0
        answer = PyObject_CallFunctionObjArgs(
            <PyObject*>self.call_soon, <PyObject*>self.look, NULL
        )
        if answer is not NULL:
            Py_DECREF(<object>answer)
            return 0
        failure = take_failure()
        self.is_told = False
        if isinstance(failure, RuntimeError) and self.loop.is_closed():
            # Nobody waits any more.
            self.ended = []
            return 0
        # The next one tells it of this one, too, or the timer does.
        raise failure

    def settle(self):
        """Run the tasks whose calls have ended, each to where it waits. In the loop's thread."""
        cdef AwaitedReply reply
        cdef list ended
        cdef PyObject* answer
        cdef Py_ssize_t at = 0
        # In this order: what ends from now on tells the loop again.
        self.is_told = False
        ended = self.ended
        self.ended = []
        while at < len(ended):
            reply = <AwaitedReply>ended[at]
            at += 1
            answer = reply.settle()
            if answer is NULL:
                # KeyboardInterrupt, say, which ends the loop, unless it is run again.
                failure = take_failure()
                self.ended = ended[at:] + self.ended
                self.is_told = True
                self.loop.call_soon(self.look)
                raise failure
            Py_DECREF(<object>answer)
            if reply.more is not None:
                reply.wake_more()

    cdef int sent(self) except -1:
        """A request is in the inbox: have the executor look there, now or when others are, too."""
        cdef Idle idle = self.table.idle
        if idle is None or self.is_to_wait:
            return 0
        if self.ready is None or idle.spin_ns == 0 or not has_credit(&self.credit):
            return idle.call()
        self.loop.call_soon(self.waits)
        self.is_to_wait = True
        return 0

    def wait(self):
        """Let the executor have its turn, and run what it has answered then. In the loop's thread.

        Otherwise the loop would sleep in its selector and the executor for the interpreter lock,
        and to wake either takes longer than most answers do. So a loop that has nothing else to do
        waits as the executor does: bounded, and as long as it pays.
        """
        cdef Idle idle = self.table.idle
        self.is_to_wait = False
        if self.is_told or idle is None:
            return
        if self.ready:
            idle.call()
            return
        self.is_waiting = True
        wait_for_idle(idle, &self.is_told)
        self.is_waiting = False
        spun(&self.credit, self.is_told)
        if self.is_told:
            self.settle()

    cdef int add_deadline(self, double seconds, object number) except -1:
        cdef double at = <double>self.time() + seconds
        if len(self.deadlines) >= self.compact_at:
            self.deadlines = [each for each in self.deadlines if each[1] in self.table.waiting]
            heapify(self.deadlines)
            self.compact_at = max(2 * len(self.deadlines), STALE_MIN)
        heappush(self.deadlines, (at, number))
        if self.armed == 0 or at < self.armed:
            self.arm(at)
        return 0

    cdef int arm(self, double at) except -1:
        self.loop.call_at(at, self.expire, at)
        self.armed = at
        return 0

    def expire(self, at):
        """End the calls whose time is over. In the loop's thread.

        :param at: for when this was to be called; a later timer than another one does nothing.
        """
        cdef double now
        if at != self.armed:
            return
        self.armed = 0
        # A timer of asyncio may fire earlier than its time, by the resolution of the clock.
        now = max(<double>self.time(), <double>at)
        try:
            while self.deadlines and self.deadlines[0][0] <= now:
                # Dropped when the call has ended: there may be no memory for its error just now.
                self.table.expire(self.deadlines[0][1])
                heappop(self.deadlines)
        finally:
            while self.deadlines and self.deadlines[0][1] not in self.table.waiting:
                heappop(self.deadlines)
            if self.deadlines:
                self.arm(self.deadlines[0][0])
            if self.ended and not self.is_told:
                # Whoever ended these could not wake the loop.
                self.loop.call_soon(self.look)
                self.is_told = True

    cdef int let_go(self) except -1:
        """The loop is closed: no task of it runs any more."""
        cdef dict held = self.held
        self.held = {}
        self.ended = []
        self.deadlines = []
        # Last: ends coroutines, if nobody else holds their tasks.
        held.clear()
        return 0


cdef class CallTable:
    """The calls of one node that wait for their replies, by number.

    :param pid: to which the replies come.
    :param calls_max: how many may wait.

    A subclass says in words how they end. `deliver` is the executor's; all else is for any thread.
    """

    cdef readonly Pid pid
    cdef readonly Pid executor              # says which fail: nobody else's word is taken
    cdef public object undeliverable        # makes a dead letter of a request
    cdef public object closed_because       # the node has ended, and why; None: it has not
    cdef readonly Requests requests         # which life has which
    cdef public Idle idle                   # of the executor that has them; None: of none
    cdef readonly Py_ssize_t late_replies
    cdef dict waiting                       # number -> weak reference to what is to be ended
    cdef Py_ssize_t calls_max
    cdef Py_ssize_t sweep_at                # how many may wait before the table is swept
    cdef LoopReplies recent                 # of the loop that called last
    cdef dict loops                         # loop -> its LoopReplies

    def __cinit__(self, Pid pid not None, Py_ssize_t calls_max):
        self.pid = pid
        self.executor = Pid("executor", pid.node, pid.group)
        self.calls_max = calls_max
        self.sweep_at = min(SWEEP_MIN, calls_max)
        self.waiting = {}
        self.loops = {}
        self.requests = Requests(pid, self.waiting)

    def __len__(self):
        self.sweep()
        return len(self.waiting)

    def next_number(self):
        """A number that no call has had."""
        return self.requests.next_number()

    cdef object add(self, object reply):
        """Number a call that begins."""
        if len(self.waiting) >= self.sweep_at:
            self.sweep()
            if len(self.waiting) >= self.calls_max:
                self.full(len(self.waiting))
        number = self.requests.next_number()
        self.waiting[number] = PyWeakref_NewRef(reply, NULL)
        return number

    def begin(self, reply not None, Pid to not None):
        """A new call, to be ended by `reply`: the correlation id to send along.

        `reply` is told its `number` and whom it was sent `to`.
        """
        reply.to = to
        reply.number = number = self.add(reply)
        if self.closed_because is not None:
            # The node ended between the caller's look and here.
            self.close(self.closed_because)
        return CorrelationId(self.pid, None, number)

    def call_async(self, sends, to, msg, timeout):
        """What `Node.call_async` is: `call`, but in the executor's thread, which would not wait."""
        if self.idle is not None and self.idle.thread_id == PyThread_get_thread_ident():
            self.in_executor("call_async()")
        return self.call(sends, to, msg, timeout)

    async def call(self, sends not None, Pid to not None, msg, timeout):
        """A request, and the reply to it.

        :param sends: the request, by its `send_envelope`: the executor, or what stands before it.
        """
        cdef AwaitedReply reply = AwaitedReply.__new__(AwaitedReply)
        cdef LoopReplies replies = self.recent
        cdef bint is_over = False
        cdef double seconds
        if type(timeout) is float and 0.0 <= <double>timeout <= 3e7:
            seconds = <double>timeout
        else:
            seconds = self.seconds_of(timeout)
        loop = get_running_loop()
        if replies is None or replies.loop is not loop:
            replies = self.replies_of(loop)
        reply.replies = replies
        reply.table = self
        reply.to = to
        reply.timeout = timeout
        reply.number = self.add(reply)
        try:
            reply.correlation_id = CorrelationId(self.pid, None, reply.number)
            if self.closed_because is not None:
                self.close(self.closed_because)
            replies.add_deadline(seconds, reply.number)
            sends.send_envelope(new_envelope(to, msg, self.pid, reply.correlation_id))
            replies.sent()
            msg = None
            await reply
            is_over = True
        finally:
            if not is_over:
                reply.give_up()
        if reply.error is None:
            return reply.value
        error = reply.error
        reply.error = None
        raise error

    cdef LoopReplies replies_of(self, object loop):
        cdef LoopReplies replies = self.loops.get(loop)
        if replies is None:
            self.let_go_of_closed()
            self.loops[loop] = replies = LoopReplies(loop, self)
        self.recent = replies
        return replies

    cdef int let_go_of_closed(self) except -1:
        cdef LoopReplies replies
        for each in list(self.loops):
            if each.is_closed():
                replies = self.loops.pop(each, None)
                if replies is self.recent:
                    self.recent = None
                if replies is not None:
                    replies.let_go()
        return 0

    def forget(self, number):
        """End a call whose asker waits no more. False if it had ended already."""
        waited = self.waiting.pop(number, None) is not None
        if self.requests.holders:
            self.requests.drop(number)
        return waited

    def deliver(self, Envelope envelope not None):
        """A reply, or why none comes. Runs in the executor's thread; never blocks."""
        cdef CorrelationId cid = envelope.correlation_id
        cdef PyObject* found = NULL
        cdef object reply = None
        cdef bint ended = False
        if envelope.sender is not None and same_pid(envelope.sender, self.pid):
            return self.refuse(envelope)
        if cid is not None and not same_pid(cid.pid, self.pid):
            return self.refuse(envelope)
        if cid is not None and cid.request is not None:
            found = PyDict_GetItem(self.waiting, cid.request)
        if found is NULL:
            self.late_replies += 1
            if cid is None and (self.waiting or self.requests.asks_waiting):
                self.note_stray(envelope.sender)
            return
        reply = referent(<object>found)
        if reply is not None:
            # First of all, so that nothing can come between this and what its asker waits for.
            cls = type(envelope.msg)
            if (
                (cls is DeadLetter or cls is Bounced or cls is CallFailed)
                and envelope.sender is not None
                and same_pid(envelope.sender, self.executor)
            ):
                ended = reply.set_exception(self.failure_of(reply.to, envelope.msg))
            elif type(reply) is AwaitedReply:
                ended = (<AwaitedReply>reply).end(envelope.msg, None)
            else:
                ended = reply.set_result(envelope.msg)
        self.waiting.pop(cid.request, None)
        if self.requests.holders:
            self.requests.drop(cid.request)
        if not ended:
            self.late_replies += 1

    cdef object refuse(self, Envelope envelope):
        """A request came: whoever calls takes none. Its asker is told."""
        self.late_replies += 1
        if self.undeliverable is not None:
            self.undeliverable(envelope, DeadLetterReason.REFUSED)

    def expire(self, number):
        """End the call of an event loop whose time is over."""
        cdef PyObject* found = PyDict_GetItem(self.waiting, number)
        cdef AwaitedReply reply
        if found is NULL:
            return
        reply = (<object>found)()
        # In this order: what has not ended is asked again.
        if reply is not None and not reply.is_set:
            reply.end(None, self.timeout_of(reply.number, reply.to, reply.timeout))
        self.forget(number)

    def those_waiting(self):
        """Of each call that waits what is to be ended."""
        replies = [each() for each in list(self.waiting.values())]
        return [each for each in replies if each is not None]

    def sweep(self):
        """Forget the calls whose askers have gone."""
        self.let_go_of_closed()
        # A copy of the keys, which is made without a new object for each: the collector, which runs
        # where objects are made, ends coroutines, and those forget their calls.
        for number in list(self.waiting):
            each = self.waiting.get(number)
            if each is not None and each() is None:
                self.forget(number)
        self.sweep_at = min(max(2 * len(self.waiting), SWEEP_MIN), self.calls_max)
