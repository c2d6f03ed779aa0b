"""The executor: the one thread that owns the run queue and calls `receive`.

One FIFO run queue, one dispatch table. A delivery is: take the oldest envelope, find its entry by
one dict look-up, call `receive` with positional arguments, put what it returned at the end of the
queue. Everything else happens between deliveries: at least every 1,024 of them, and as near to
every millisecond as `receive` lets it, the executor takes what other threads sent and fires the
timers that are due.

What a process asks of its runtime is a message to the executor's own pid, handled in its turn like
any other: so control messages keep their place among the sender's messages. What the runtime has
to say to a process takes its turn as well, as a `Notice` that names the life it is meant for.

Whatever a user's object raises while the executor looks at it ends that object's process, or that
envelope, and nothing else. Such calls leave their exception pending and are asked whether they
failed: see `failure.pxd` for why no `except` clause is in the way.
"""

cimport cython
from cpython.exc cimport PyErr_ExceptionMatches
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t

from rabble._core.backlog cimport Backlog
from rabble._core.capacities cimport DUE_QUEUED_MAX, TURN_DELIVERIES_MAX
from rabble._core.dispatch cimport (
    CALLBACK,
    DEAD_LETTERS,
    EXECUTOR,
    INBOX,
    NODES,
    PROCESS,
    DispatchTable,
    Entry,
    EntryKind,
    MailboxLimit,
    Scene,
)
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.failure cimport take_failure
from rabble._core.frame_decoder cimport PeerEvent
from rabble._core.idle cimport Idle
from rabble._core.ids cimport CorrelationId, NodeId, Pid, same_node, same_pid
from rabble._core.inbox cimport Inbox, monotonic_ns
from rabble._core.monitors cimport Monitors
from rabble._core.notices cimport Connected, Discard, Notice, Undelivered
from rabble._core.poller cimport Connection, Poller
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.routes cimport NOT_CONNECTED, PEER_BUSY, Routes
from rabble._core.texts cimport bounded_repr, bounded_str, type_name
from rabble._core.timers cimport Timer, TimerWheel

from types import FunctionType

from rabble._core.texts import Interrupted

__all__ = ["Executor", "Interrupted"]

cdef enum:
    TURN_NS_MAX = 1_000_000          # between two looks at the inbox and the timers
    CLOCK_STRIDE = 16                # deliveries between two looks at the clock, if they are fast
    DRAIN_LOOK_NS = 2_000_000        # between two looks at whether the services are done
    GIL_OFFER_NS = 5_000_000         # CPython's own switch interval
    DRAIN_S_MAX = 31_622_400         # 366 days: what a drain without end is taken for
    DETAIL_MAX = 500                 # characters of an exception's text that a Down has

cdef extern from *:
    """
    #include <pthread.h>
    #include <structmember.h>
    /* How many forks led to this process: a node works only where it was roused. */
    static unsigned int rabble_forks = 0;
    static void rabble_forked(void) { rabble_forks += 1; }
    #define RABBLE_WATCH_FORKS() pthread_atfork(NULL, NULL, rabble_forked)
    /* -1 if it is no slot of that class for an object. */
    static Py_ssize_t rabble_member_offset(PyObject *type, PyObject *member) {
        PyMemberDescrObject *slot = (PyMemberDescrObject *)member;
        if (!PyType_Check(type) || Py_TYPE(member) != &PyMemberDescr_Type) return -1;
        if (!PyType_IsSubtype((PyTypeObject *)type, PyDescr_TYPE(member))) return -1;
        return slot->d_member->type == T_OBJECT_EX ? slot->d_member->offset : -1;
    }
    /* What PyObject_Vectorcall does, without asking what a plain function is, and without looking
       whether it raised just if it says so: the interpreter is who says it. */
    #define RABBLE_CALL(function, args, count) \
        (((PyFunctionObject *)(function))->vectorcall(function, args, count, NULL))
    #define RABBLE_IS_INSTANCE(object, type) \
        PyType_IsSubtype(Py_TYPE(object), (PyTypeObject *)(type))
    #define RABBLE_IS_ITERABLE(object) \
        (Py_TYPE(object)->tp_iter != NULL || PySequence_Check(object))
    #define RABBLE_TYPE(object) ((PyObject *)Py_TYPE(object))
    """
    unsigned int forks "rabble_forks"
    int RABBLE_WATCH_FORKS() noexcept
    Py_ssize_t member_offset "rabble_member_offset"(object cls, object member) noexcept
    PyObject* RABBLE_CALL(PyObject* function, PyObject* const* args, size_t count)
    # By the layout itself: `isinstance` believes what an object says of its class.
    bint RABBLE_IS_INSTANCE(object value, object cls) noexcept
    bint RABBLE_IS_ITERABLE(object value) noexcept
    PyObject* RABBLE_TYPE(object value) noexcept

cdef extern from "Python.h":
    # Declared without `except`: what they raise stays pending until it is taken.
    PyObject* PyObject_Vectorcall(
        PyObject* callable, PyObject* const* args, size_t nargsf, PyObject* kwnames
    )
    PyObject* PyObject_GetAttr(PyObject* obj, PyObject* name)
    PyObject* PyObject_CallMethodObjArgs(PyObject* obj, PyObject* name, ...)
    Py_ssize_t Py_REFCNT(PyObject* obj) noexcept
    int PyThreadState_SetAsyncExc(unsigned long thread_id, PyObject* exc) noexcept
    unsigned long PyThread_get_thread_ident() noexcept
    int PyException_SetTraceback(object error, object traceback) except -1
    void PyException_SetContext(object error, PyObject* context) noexcept
    void PyException_SetCause(object error, PyObject* cause) noexcept
    bint PyMethod_Check(object obj) noexcept
    PyObject* PyMethod_GET_FUNCTION(object method) noexcept
    PyObject* PyMethod_GET_SELF(object method) noexcept

# The same functions, called so that what they raise stays pending: they return -1 or NULL then.
ctypedef int (*quiet_step)(Executor executor) noexcept
ctypedef int (*quiet_output)(Executor executor, Entry entry, PyObject* result) noexcept
ctypedef int (*quiet_send)(Routes routes, Envelope envelope) noexcept
ctypedef int (*quiet_control)(MessageHandler system_messages, Envelope envelope) noexcept
ctypedef PyObject* (*quiet_codec)(Executor executor, Envelope envelope) noexcept


cdef class MessageHandler:
    """The handlers of control messages; `rabble._core.system_messages` has them."""

    cdef int handle(self, Envelope envelope) except -1:
        raise TypeError("this executor was given nobody who handles control messages")

    cdef int disconnect(self, Connection connection) except -1:
        raise TypeError("this executor was given nobody who handles the end of connections")


# What is taken for an exception that was lost: without memory the interpreter may end a call
# without one. Made once, so that it is there then.
cdef object LOST = MemoryError("there was no memory for the exception itself")


cdef object what_failed():
    """The exception of a call that says that it failed; it is pending no longer."""
    error = take_failure()
    return LOST if error is None else error


if RABBLE_WATCH_FORKS() != 0:
    raise MemoryError("pthread_atfork failed")


@cython.final
cdef class Executor:
    """The run queue, dispatch table, timers and inbox of one node.

    :param node: the `NodeId` whose processes it runs.
    :param protocol: the module with the control messages (`rabble.messages`).
    :param process_class: the base class of processes (`rabble.process.Process`).
    :param hooks: what the executor calls in the layer above: crashes, dead letters, metrics.
    :param inbox_max: how many envelopes of other threads may wait, wherever they do.
    :param spin_us: how long to look for work before sleeping, in microseconds; 0 is off.
    :param codec: strict mode: encodes and decodes every message. `None` is off.
    :param seed: of the processes' random sources.
    :param clock: monotonic nanoseconds as an int; `None` takes the kernel's.

    `run` belongs to one thread; all else but `step` is for any.
    """

    def __cinit__(
        self,
        NodeId node not None,
        protocol not None,
        process_class not None,
        hooks not None,
        *,
        size_t inbox_max,
        int64_t spin_us,
        codec=None,
        seed=0,
        clock=None,
    ):
        self.node = node
        self.pid = Pid("executor", node, "rabble")
        self.table = DispatchTable()
        self.monitors = Monitors()
        self.monitors.table = self.table
        self.run_queue = EnvelopeQueue()
        self.inbox = Inbox(inbox_max)
        self.backlog = Backlog()
        self.backlog.run_queue = self.run_queue
        self.backlog.inbox = self.inbox
        self.backlog.table = self.table
        self.wheel = TimerWheel()
        self.due = []
        self.stride = CLOCK_STRIDE
        self.protocol = protocol
        self.local_classes = frozenset([id(cls) for cls in protocol.LOCAL_CLASSES])
        self.process_class = process_class
        self.runtime_offset = member_offset(process_class, process_class._runtime)
        if self.runtime_offset < 0:
            raise TypeError(
                f"process_class must be a class with a slot _runtime, "
                f"not {bounded_repr(process_class, 200)}"
            )
        self.born_after_forks = forks
        self.hooks = hooks
        self.codec = codec
        self.checks = codec is not None
        self.scene = Scene.__new__(Scene)
        self.scene.pid = self.pid
        self.scene.seed = f"{seed}"
        self.clock = clock
        self.idle = Idle(spin_us)
        self.epoch_ns = self.now_ns()
        self.scene.batch_ns = self.epoch_ns
        self.interrupted_at = -1
        self.dead_letters = {}
        self.letter_subscribers = {}
        self.node_subscribers = {}
        self.system_messages = MessageHandler()
        cdef Entry own = Entry.__new__(Entry)
        own.pid = self.pid
        own.target = self.pid
        own.runtime = self.scene
        own.kind = EXECUTOR
        self.table.add(own)

    # What any thread may call.

    @property
    def now(self):
        """Monotonic seconds at which the current batch began."""
        return self.scene.now

    @property
    def stopping(self):
        """Whether it was asked to end, or has ended."""
        return self.is_stopping

    @property
    def queue_depth(self):
        """Envelopes in the run queue."""
        return self.run_queue.count()

    @property
    def inbox_depth(self):
        """Envelopes of other threads that were not taken in yet."""
        return self.inbox.queue.count()

    @property
    def outside_depth(self):
        """Envelopes of other threads that no process has been given yet: what `inbox_max` bounds.

        """
        self.backlog.forget_spans()
        return self.inbox.queue.count() + self.inbox.elsewhere

    @property
    def timers(self):
        """Timers that run."""
        return len(self.wheel)

    @property
    def sleeps(self):
        """How often it slept for want of work."""
        return self.idle.sleeps

    @property
    def wakeups(self):
        """How often its inbox woke it."""
        return self.idle.wakeups

    @property
    def spins(self):
        """How often it looked for work, for some microseconds, before it slept."""
        return self.idle.spins

    @property
    def current_pid(self):
        """Whose `receive` runs, or `None`."""
        cdef Entry entry
        if self.current is NULL:
            return None
        entry = <Entry>self.current
        return entry.pid

    def delivered_by_pid(self):
        """Pid to the number of envelopes it was given, of all but the runtime's own."""
        cdef Entry entry
        return {
            entry.pid: entry.delivered
            for entry in self.table.snapshot()
            if entry.kind == PROCESS or entry.kind == INBOX
        }

    @property
    def forked(self):
        """Whether this is a forked child of the process that the executor was made in."""
        return forks != self.born_after_forks

    def undeliverable(self, Envelope envelope not None, reason):
        """Make a dead letter of what a service was given and did not take. For any thread."""
        if self.ended:
            self.drop(envelope, reason)
            return
        cdef Undelivered letter = Undelivered.__new__(Undelivered)
        letter.envelope = envelope
        letter.reason = reason
        self.ask(letter)

    def new_random(self, Pid pid not None, life):
        """The random source of one life of a process."""
        return self.scene.new_random(pid, life)

    def send(
        self, Pid to not None, msg, *, Pid sender=None, CorrelationId correlation_id=None
    ):
        """Send a message. It must not be changed any more.

        What `Node.send` is. Raises what the hooks' `refuse` raises if too much waits already,
        the executor ends, or this is a forked child.
        """
        if forks != self.born_after_forks or not self.accept(
            new_envelope(to, msg, sender, correlation_id)
        ):
            self.hooks.refuse()

    def post(self, Envelope envelope not None):
        """Take an envelope of one of the node's own services, until the executor has ended.

        They are still heard while the node drains. Returns False if it was not accepted.
        """
        if self.ended or not self.put(envelope):
            return False
        self.idle.call()
        return True

    def spawn(self, process, name, *, group=None, mailbox_max=None):
        """Run a process under a name, and return its pid. What `Node.spawn` is.

        :raises TypeError: if `process` is none.
        :raises ValueError: if the name or the limit is not usable, or this very object runs.

        Raises what the hooks' `refuse` raises if the name is taken, too much waits for the
        executor already (of a process that has an `init`), the executor ends, or this is a forked
        child.
        """
        cdef Added added = ENDING
        cdef Pid pid = Pid(name, self.node, group)
        if forks == self.born_after_forks:
            added = self.add(pid, process, mailbox_max, True)
            if added == ADDED:
                return pid
        if added == FULL:
            self.hooks.refuse()
        self.hooks.refuse(pid)
        return pid

    cdef Added add(
        self, Pid pid, object process, object mailbox_max, bint from_outside
    ) except? FULL:
        """Add a process. Whatever may fail or run somebody's code comes before the table knows it.

        :param from_outside: another thread asks, which the bound of the inbox concerns.
        """
        cdef Entry entry
        cdef Envelope request = None
        cdef MailboxLimit limit = None
        cdef object bound
        cdef object former = None
        cdef PyObject** runtime
        if pid.group is not None and pid.group == self.pid.group:
            raise ValueError(f"the group {pid.group!r} is for the node's own services")
        if not RABBLE_IS_INSTANCE(process, self.process_class):
            raise TypeError(
                f"only a Process can be spawned, not {bounded_repr(process, 200)} "
                f"(of type {type_name(process)})"
            )
        if mailbox_max is not None:
            if type(mailbox_max) is not int or not 1 <= mailbox_max < 1 << 31:
                raise ValueError(
                    f"mailbox_max must be 1 to 2**31 - 1, not {bounded_repr(mailbox_max, 200)}"
                )
            limit = MailboxLimit.__new__(MailboxLimit)
            limit.most = mailbox_max
        entry = Entry.__new__(Entry)
        entry.pid = pid
        entry.target = process
        entry.runtime = self.scene
        entry.kind = PROCESS
        entry.limit = limit
        # The plain function is called with the process as its first argument: a bound method for
        # each process would cost 80 bytes, and a shift of the arguments per call. (Asking for the
        # process's __dict__ would make one, where CPython keeps the attributes without.)
        bound = process.receive
        if (
            PyMethod_Check(bound)
            and PyMethod_GET_SELF(bound) is <PyObject*>process
            and type(<object>PyMethod_GET_FUNCTION(bound)) is FunctionType
        ):
            entry.receive = <object>PyMethod_GET_FUNCTION(bound)
            entry.takes_self = True
        else:
            entry.receive = bound
        if type(process).init is not self.process_class.init:
            # It runs in the executor's thread, soon, or before a message that comes sooner.
            entry.unstarted = True
            request = new_envelope(self.pid, entry, None, None)
        # From here on nobody's code runs, so what was found stays true.
        if self.is_stopping:
            return ENDING
        # Where its entry lies: asking for an attribute that is not set yet costs an exception, and
        # the __setattr__ of a frozen class would refuse.
        runtime = <PyObject**>(<char*><PyObject*>process + self.runtime_offset)
        if runtime[0] is not NULL:
            former = <object>runtime[0]
            if type(former) is Entry and (<Entry>former).target is process:
                raise ValueError(
                    f"this {type_name(process)} runs already, as {(<Entry>former).pid}; "
                    f"spawn a new instance for every process"
                )
        if request is not None:
            if from_outside and self.backlog.is_full():
                return FULL
            self.inbox.queue.reserve(1)
        if limit is not None:
            limit.counted_from = self.backlog.popped + self.run_queue.count()
        if not self.table.add(entry):
            return NAME_TAKEN
        # Even numbers: how many services there are does not change what processes draw at random.
        self.lives += 1
        entry.life = 2 * self.lives
        Py_INCREF(entry)
        Py_XDECREF(runtime[0])     # `former` holds it, so that nothing ends here.
        runtime[0] = <PyObject*>entry
        self.processes += 1
        if limit is not None:
            self.backlog.limited += 1
            self.checks = True
        if request is not None:
            self.inbox.put_always(request)
            self.idle.call()
        return ADDED

    def add_inbox(self, Pid pid not None, Inbox inbox not None):
        """Add a service or mailbox whose envelopes go into `inbox`. False if the pid is taken."""
        return self.add_target(pid, inbox, INBOX)

    def add_callback(self, Pid pid not None, callback):
        """Add a pid whose envelopes `callback(envelope)` takes, in the executor's thread.

        It must be short and must not block. False if the pid is taken.
        """
        return self.add_target(pid, callback, CALLBACK)

    def discard(self, Pid pid not None, target, reason):
        """Remove a pid and tell its monitors, in the turn of the caller's other envelopes.

        Nothing happens if by then it belongs to another than `target`, or to nobody.
        """
        cdef Discard request = Discard.__new__(Discard)
        request.pid = pid
        request.target = target
        request.reason = reason
        self.ask(request)

    def subscribe_dead_letters(self, Pid pid not None, bint wanted=True):
        """Have every dead letter told to `pid` as a `DeadLetter` message, or no longer.

        A subscription belongs to the life that `pid` has now, and ends with it. Returns False, and
        does nothing, if no process or service of this node has that pid. For any thread.
        """
        cdef PyObject* found = self.table.find(pid)
        if found is NULL:
            return False
        self.subscribe(<Entry>found, self.letter_subscribers, DEAD_LETTERS, wanted)
        return True

    cdef int subscribe(self, Entry entry, dict subscribers, int which, bint wanted) except -1:
        if wanted:
            subscribers[entry.pid] = entry
            entry.subscribed |= which
        else:
            subscribers.pop(entry.pid, None)
            entry.subscribed &= ~which
        return 0

    @property
    def node_subscribed(self):
        """The pids that are told of nodes that come and go."""
        return tuple(self.node_subscribers)

    def join_mesh(self, Poller poller not None, Py_ssize_t peer_monitors_max):
        """Reach other nodes by the connections of `poller`. Called once, before `run`.

        :param peer_monitors_max: how much of the processes here each peer may monitor, in pairs.
        """
        if self.routes is not None or self.has_run:
            raise RuntimeError("join_mesh is called once, before run")
        self.routes = Routes(poller)
        self.monitors.routes = self.routes
        self.monitors.peer_pairs_max = peer_monitors_max
        poller.watch(self.inbox.fd)

    def connection_up(self, Connection connection not None):
        """A connection is established: tell whom it concerns, send and hear. For any thread.

        Its end needs no call: the executor notices, and tells the hooks.
        """
        cdef Connected request = Connected.__new__(Connected)
        request.connection = connection
        self.ask(request)

    def notify_nodes(self, msg):
        """Send a message of the runtime to all that subscribed to nodes. For any thread."""
        cdef Notice notice
        cdef Entry entry
        # Of a list: while an envelope is made other threads may run, and subscribe.
        for entry in list(self.node_subscribers.values()):
            notice = Notice.__new__(Notice)
            notice.entry = entry
            notice.msg = msg
            self.inbox.put_always(new_envelope(self.pid, notice, None, None))
        self.idle.call()

    def wake(self):
        """Have it look at its sockets and its inbox. For any thread; never blocks."""
        self.inbox.wake()

    def request_stop(self, double drain_s):
        """Take nothing more in, deliver what waits for at most `drain_s` seconds, then end.

        :raises ValueError: if `drain_s` is not a number. Less than 0 is 0; a year is the most.

        Idempotent; never blocks; may be called from a signal handler.
        """
        if drain_s != drain_s:
            raise ValueError("the time to drain must be seconds, not NaN")
        if not self.is_stopping:
            self.stop_ns = self.now_ns() + <int64_t>(
                min(max(drain_s, 0.0), <double>DRAIN_S_MAX) * 1e9
            )
            self.is_stopping = True
        self.inbox.wake()
        self.idle.recall()

    def run(self):
        """Deliver until `request_stop`. Called once, by the thread that is to be the executor's.

        Any exception that leaves it is a defect of rabble, or the end of memory.
        """
        cdef int status
        cdef object error = None
        if self.has_run or self.in_turn:
            raise RuntimeError("an executor runs once, and in one thread")
        self.has_run = True
        self.thread_id = PyThread_get_thread_ident()
        self.running = True
        status = (<quiet_step><void*>loop)(self)
        if status < 0:
            error = what_failed()
            if type(error) is Interrupted and self.is_stopping:
                # It was meant for what did not return just then; the time is over all the same.
                self.interrupting = False
                error = None
            else:
                self.failed = True
        self.running = False
        self.is_stopping = True
        for step in range(END_STEPS):
            # Once more if it failed: memory was exhausted for a moment, say.
            for _ in range(2):
                status = end_step(self, step)
                if status == 0:
                    break
                failure = what_failed()
                if error is None and type(failure) is not Interrupted:
                    self.failed = True
                    error = failure
        if error is not None:
            raise error

    cdef bint drained(self) noexcept:
        return (
            self.run_queue.count() == 0
            and self.inbox.queue.count() == 0
            and len(self.due) == 0
        )

    def interrupt(self):
        """Have `Interrupted` raised in what the executor runs, if that does not return.

        It reaches Python code, and ends no call into C. Who asks again after a while has it raised
        again, as somebody's code may have caught it.
        """
        if not self.running:
            return
        if self.current is not NULL or self.delivered == self.interrupted_at:
            self.interrupting = True
            PyThreadState_SetAsyncExc(self.thread_id, <PyObject*>Interrupted)
        self.interrupted_at = self.delivered

    def step(self, int64_t most=TURN_DELIVERIES_MAX):
        """Take in what waits and make at most `most` deliveries; returns how many were made.

        For tests and simulators, which drive an executor that has no thread.

        :raises RuntimeError: if it runs in a thread, has ended, or is in a turn.
        """
        cdef int64_t before = self.delivered
        if self.has_run or self.in_turn:
            raise RuntimeError("an executor that runs, has ended, or is in a turn takes no step")
        self.turn(most)
        return self.delivered - before

    # The loop.

    cdef int64_t now_ns(self) except -1:
        if self.clock is None:
            return monotonic_ns()
        return self.clock()

    cdef bint accept(self, Envelope envelope) except -1:
        if self.is_stopping or not self.put(envelope):
            return False
        self.idle.call()
        return True

    cdef inline bint put(self, Envelope envelope) except -1:
        """Put it into the inbox, if there is room. In any thread."""
        return self.inbox.put(envelope) or (
            not self.backlog.is_full() and self.inbox.put(envelope)
        )

    cdef int ask(self, object request) except -1:
        """Send a control message of the runtime's own, which no limit refuses."""
        self.inbox.put_always(new_envelope(self.pid, request, None, None))
        self.idle.call()
        return 0

    cdef bint add_target(self, Pid pid, object target, EntryKind kind) except -1:
        cdef Entry entry = Entry.__new__(Entry)
        entry.pid = pid
        entry.target = target
        entry.runtime = self.scene
        entry.kind = kind
        if self.is_stopping or not self.table.add(entry):
            return False
        self.other_lives += 1
        entry.life = 2 * self.other_lives + 1
        return True

    cdef int turn(self, int64_t most) except -1:
        """Look outside once, then deliver until the queue is empty or it is time to look again."""
        cdef int64_t start = self.now_ns()
        cdef int64_t looked = start
        cdef int64_t now, _, until_look
        cdef PyObject* taken
        self.scene.batch_ns = start
        self.in_turn = True
        try:
            self.poll(start)
            if self.routes is not None:
                self.receive()
            until_look = self.stride
            for _ in range(min(most, TURN_DELIVERIES_MAX)):
                if self.run_queue.count() == 0:
                    break
                taken = self.run_queue.take_owned()
                self.backlog.popped += 1
                try_deliver(self, taken)
                if forks != self.born_after_forks:
                    # It forked, and returned in the child: all that waits is the parent's.
                    return 0
                until_look -= 1
                if until_look == 0:
                    now = self.now_ns()
                    # Slow processes: look after every delivery, from the next turn's first on too.
                    if (now - looked) * CLOCK_STRIDE > TURN_NS_MAX // 4 * self.stride:
                        self.stride = 1
                    else:
                        self.stride = CLOCK_STRIDE
                    if now - start >= TURN_NS_MAX:
                        break
                    until_look = self.stride
                    looked = now
            if self.inbox.elsewhere != 0:
                self.backlog.forget_spans()
            if self.backlog.has_ended():
                self.backlog.forget_ended()
            if self.routes is not None and self.routes.dirty:
                self.routes.flush()
        finally:
            self.in_turn = False
        return 0

    cdef int poll(self, int64_t now) except -1:
        if self.inbox.queue.count() != 0:
            self.take_in()
        if self.wheel.count != 0 or len(self.due) != 0:
            self.fire(now)
        return 0

    cdef int take_in(self) except -1:
        """Move what other threads sent into the run queue.

        Just what stands there now: who sends faster than this would keep all others waiting. Where
        there is no memory for it, it stays where it is until there is.
        """
        cdef size_t begin = self.backlog.popped + self.run_queue.count()
        cdef size_t left = self.inbox.queue.count()
        cdef Envelope envelope
        if not self.checks:
            if not self.run_queue.take_all(self.inbox.queue):
                return 0
        else:
            if not self.run_queue.has_room(left):
                return 0
            while left != 0 and self.inbox.queue.count() != 0:
                left -= 1
                envelope = self.inbox.queue.take()
                # Counted one by one: somebody's code may run, and others send meanwhile.
                begin = self.backlog.popped + self.run_queue.count()
                admit_outside(self, envelope)
                self.backlog.note_span(begin)
            return 0
        return self.backlog.note_span(begin)

    cdef int fire(self, int64_t now) except -1:
        """Queue the timers that are due, but no more than others can be expected to wait behind.

        By way of the queue: what was sent before one fired is delivered before it, and a cancel
        that stands in front of it still takes effect. What there is no memory for stays due.
        """
        cdef int64_t tick = (now - self.epoch_ns) // 1_000_000
        cdef Envelope envelope
        if len(self.due) == 0 and tick > self.wheel.now:
            # Else what else is due by now comes after these.
            try:
                self.wheel.c_advance(tick, self.due)
            finally:
                # If memory ran out, what has fired is in there all the same.
                self.due.reverse()
        while len(self.due) != 0 and self.due_queued < DUE_QUEUED_MAX:
            if not self.run_queue.has_room(1):
                break
            envelope = new_envelope(self.pid, self.due[len(self.due) - 1], None, None)
            self.due.pop()
            self.run_queue.put(envelope)
            self.due_queued += 1
        return 0

    cdef int wait(self, int64_t most) except -1:
        """Out of work: look for some without the GIL for a while, then sleep.

        `most` is a bound in nanoseconds, or -1 to end with the request to stop only.
        """
        cdef int64_t left = self.time_left(self.now_ns(), most)
        cdef Poller poller = None if self.routes is None else self.routes.poller
        if left == 0 or self.inbox.queue.count() != 0:
            return 0
        if most < 0 and self.idle.may_spin():
            if self.idle.spin(self.inbox, poller, left):
                return 0
            left = self.time_left(self.now_ns(), most)
            if left == 0:
                return 0
        if (self.is_stopping and most < 0) or not self.inbox.arm_now():
            return 0
        return self.idle.sleep(self.inbox, poller, left)

    cdef int64_t time_left(self, int64_t now, int64_t most) noexcept:
        """Nanoseconds until a timer may be due, at most `most`; -1 is without end."""
        cdef int64_t tick = self.wheel.c_next_deadline()
        cdef int64_t left
        if len(self.due) != 0:
            return 0
        if tick < 0:
            return most
        left = max(self.epoch_ns + tick * 1_000_000 - now, 0)
        return left if most < 0 else min(left, most)

    # One delivery.

    cdef int deliver(self, Envelope envelope) except -1:
        cdef PyObject* found
        cdef Entry entry
        self.delivered += 1
        if self.routes is not None and envelope.to.node is self.routes.recent_node:
            # Nobody of another node is in the table.
            self.delivered -= 1
            return self.route(envelope)
        found = self.table.find(envelope.to)
        if found is NULL:
            self.delivered -= 1
            if not same_node(envelope.to.node, self.node):
                return self.route(envelope)
            return self.drop(envelope, self.protocol.DeadLetterReason.NO_PROCESS)
        entry = <Entry>found
        if entry.kind == PROCESS:
            if entry.limit is not None and not self.backlog.leaves_mailbox(entry):
                return self.drop(envelope, self.protocol.DeadLetterReason.MAILBOX_FULL)
            return self.give_to_process(entry, envelope)
        if entry.kind == EXECUTOR:
            return self.handle_control(envelope)
        return self.give_to_target(entry, envelope)

    cdef int give_to_process(self, Entry entry, Envelope envelope) except -1:
        cdef PyObject* args[4]
        cdef PyObject* result
        if entry.unstarted and not self.start(entry):
            return self.drop(envelope, self.protocol.DeadLetterReason.PROCESS_CRASHED)
        entry.delivered += 1
        # Borrowed: only this thread takes them out of the entry, and not while it is in `receive`.
        args[0] = <PyObject*>entry.target
        args[1] = <PyObject*>envelope.msg
        args[2] = <PyObject*>envelope.sender
        args[3] = <PyObject*>envelope.correlation_id
        self.current = <PyObject*>entry
        try:
            if entry.takes_self:
                result = RABBLE_CALL(<PyObject*>entry.receive, args, 4)
            else:
                result = PyObject_Vectorcall(<PyObject*>entry.receive, args + 1, 3, NULL)
            if not self.emit(entry, result):
                self.crash(entry, envelope)
        finally:
            # Also if `Interrupted` came within its crash: the caller's reference ends with this.
            self.current = NULL
        return 0

    cdef bint start(self, Entry entry) except -1:
        """Call `init`. False if that ended the process."""
        cdef object process = entry.target
        cdef PyObject* bound
        cdef PyObject* result = NULL
        entry.unstarted = False
        self.current = <PyObject*>entry
        try:
            bound = PyObject_GetAttr(<PyObject*>process, <PyObject*>"init")
            if bound is not NULL:
                result = PyObject_Vectorcall(bound, NULL, 0, NULL)
                Py_DECREF(<object>bound)
            if not self.emit(entry, result):
                self.crash(entry, None)
        finally:
            self.current = NULL
        return entry.target is not None

    cdef int give_to_target(self, Entry entry, Envelope envelope) except -1:
        cdef PyObject* result
        cdef PyObject* args[1]
        entry.delivered += 1
        if entry.kind == INBOX:
            if not (<Inbox>entry.target).put(envelope):
                reasons = self.protocol.DeadLetterReason
                # Closed, and about to be taken out of the table.
                self.drop(
                    envelope,
                    reasons.NO_PROCESS if (<Inbox>entry.target).is_closed else reasons.MAILBOX_FULL,
                )
            return 0
        args[0] = <PyObject*>envelope
        result = PyObject_Vectorcall(<PyObject*>entry.target, args, 1, NULL)
        if result is NULL:
            self.call_hook("crashed", entry.pid, what_failed())
        else:
            Py_DECREF(<object>result)
        return 0

    # What `receive` returned.

    cdef bint emit(self, Entry entry, PyObject* result) except -1:
        """Queue what `receive` returned, and take over its reference.

        False, with the error in `failure` and nothing queued, if it raised, or returned what
        cannot be sent.
        """
        cdef size_t before
        cdef int status
        if result is NULL:
            self.failure = what_failed()
            return False
        if result is <PyObject*>None:
            Py_DECREF(<object>result)
            return True
        if (
            type(<object>result) is Envelope
            and not self.checks
            and self.run_queue.count() <= self.run_queue.mask
        ):
            # As almost always: one envelope, nobody else's, and there is room.
            if (<Envelope>result).sender is not None:
                self.run_queue.put_owned(result)
                return True
            if Py_REFCNT(result) == 1:
                (<Envelope>result).sender = entry.pid
                self.run_queue.put_owned(result)
                return True
        before = self.run_queue.count()
        status = (<quiet_output><void*>emit_output)(self, entry, result)
        if status < 0:
            self.failure = what_failed()
            # Nothing is taken out of the queue while a delivery goes on, so all that is more than
            # before is this call's.
            self.run_queue.drop_newest(self.run_queue.count() - before)
            if self.backlog.limited:
                self.backlog.recount()
        Py_DECREF(<object>result)
        return status == 0

    cdef int emit_item(self, Entry entry, object item, int owners, list fresh) except -1:
        """Queue one envelope, its sender filled in; or put it into `fresh`, to be looked at.

        The sender is filled in in place if its `owners` are all the references there are; an
        envelope that somebody else holds too, to send it again perhaps, is copied.
        """
        cdef PyObject* owned = <PyObject*>item
        cdef Envelope envelope
        if type(item) is not Envelope:
            raise wrong_output(entry, item)
        if (<Envelope>item).sender is None:
            if Py_REFCNT(owned) != owners:
                envelope = new_envelope(
                    (<Envelope>item).to,
                    (<Envelope>item).msg,
                    entry.pid,
                    (<Envelope>item).correlation_id,
                )
            else:
                (<Envelope>item).sender = entry.pid
                envelope = <Envelope>item
        else:
            envelope = <Envelope>item
        if fresh is not None:
            fresh.append(self.checked(envelope))
        else:
            self.run_queue.put_owned(<PyObject*>envelope)
            Py_INCREF(envelope)
        return 0

    cdef object checked(self, Envelope envelope):
        """Strict mode: the envelope as another node would get it, or why it cannot go there.

        The latter as an `Undelivered`. Raises what the message's own code raised.
        """
        cdef PyObject* copied
        cdef Undelivered letter
        if (
            self.codec is None
            or <size_t>RABBLE_TYPE(envelope.msg) in self.local_classes
            or same_pid(envelope.to, self.pid)
        ):
            return envelope
        copied = (<quiet_codec><void*>recoded)(self, envelope)
        if copied is not NULL:
            again = <object>copied
            Py_DECREF(again)
            return again
        if not PyErr_ExceptionMatches(ValueError):
            raise what_failed()
        error = what_failed()
        self.call_hook("unencodable", envelope, error)
        letter = Undelivered.__new__(Undelivered)
        letter.envelope = envelope
        letter.reason = self.protocol.DeadLetterReason.UNENCODABLE
        return letter

    cdef int admit(self, Envelope envelope) except -1:
        """Queue an envelope if its receiver's mailbox has room for it."""
        if not self.backlog.put(envelope):
            return self.drop(envelope, self.protocol.DeadLetterReason.MAILBOX_FULL)
        return 0

    cdef int set_checks(self) except -1:
        self.checks = self.codec is not None or self.backlog.limited != 0
        return 0

    # The end of a process.

    cdef int crash(self, Entry entry, Envelope envelope) except -1:
        """`receive` or `init` failed: end that process and nothing else.

        It is let go of first of all, and the traceback, which holds its frame, before anything
        is said of it: so if it had all the memory there is some again.
        """
        cdef object error = self.failure
        cdef object monitored_by = None
        cdef bint ends = entry.target is not None
        self.failure = None
        if type(error) is Interrupted:
            self.interrupting = False
        self.crashes += 1
        if ends:
            monitored_by = self.detach(entry)
        self.call_hook("crashed", entry.pid, error)
        # (By assignment it could not be taken from a frozen class's.)
        PyException_SetTraceback(error, None)
        PyException_SetContext(error, NULL)
        PyException_SetCause(error, NULL)
        if ends:
            self.tell_ended(
                entry,
                monitored_by,
                self.protocol.DownReason("crashed", described(error)),
            )
        if envelope is not None:
            self.drop(envelope, self.protocol.DeadLetterReason.PROCESS_CRASHED)
        return 0

    cdef int remove_entry(self, Entry entry, object reason) except -1:
        """End a process or service: its timers, its monitors, and the cycle between the two.

        All or nothing: what takes memory comes first, so no monitor misses the end of who has gone.
        """
        cdef list envelopes = None
        cdef Envelope envelope
        if entry.monitored_by:
            envelopes = self.farewells(entry, entry.monitored_by, reason)
            self.run_queue.reserve(len(envelopes))
        self.detach(entry)
        if envelopes is not None:
            for envelope in envelopes:
                self.run_queue.put(envelope)
        return 0

    cdef object detach(self, Entry entry):
        """Take a process or service out of all that knows it; returns who monitored it.

        Nothing here may fail: who is half gone would be there for ever.
        """
        cdef Timer timer
        cdef dict timers = entry.timers
        cdef dict monitoring = entry.monitoring
        cdef dict monitored_by = entry.monitored_by
        self.table.remove(entry.pid)
        self.backlog.note_ended(entry.pid)
        entry.timers = entry.monitoring = entry.monitored_by = None
        if entry.kind == PROCESS:
            self.processes -= 1
        if entry.limit is not None:
            self.backlog.limited -= 1
            self.set_checks()
        if entry.subscribed:
            self.subscribe(entry, self.letter_subscribers, DEAD_LETTERS, False)
            self.subscribe(entry, self.node_subscribers, NODES, False)
        if timers is not None:
            for timer in timers.values():
                self.wheel.c_cancel(timer)
        if monitored_by is not None:
            self.monitors.forget_monitored_by(entry.pid, monitored_by)
        if entry.kind == INBOX:
            # Whoever owns it takes what is left, and learns that nothing follows.
            (<Inbox>entry.target).close()
        entry.target = None
        entry.receive = None
        entry.random_source = None
        entry.takes_self = False
        if monitoring is not None:
            self.monitors.forget_monitoring(entry.pid, monitoring)
        return monitored_by

    cdef int tell_ended(self, Entry entry, object monitored_by, object reason) except -1:
        """Tell who monitored a life that it has ended: in its turn, behind what that life sent."""
        if monitored_by:
            for envelope in self.farewells(entry, monitored_by, reason):
                self.run_queue.put(envelope)
        return 0

    cdef list farewells(self, Entry entry, dict monitored_by, object reason):
        """What tells them so."""
        down = self.protocol.Down(entry.pid, reason, entry.life)
        return self.monitors.farewells(self.pid, entry.pid, monitored_by, down)

    # What the runtime has to say.

    cdef int tell(self, Pid to, object msg, CorrelationId correlation_id=None) except -1:
        """Say something to who has that pid now."""
        cdef PyObject* found = self.table.find(to)
        if found is not NULL:
            return self.notify(<Entry>found, msg, correlation_id)
        self.run_queue.put(new_envelope(to, msg, self.pid, correlation_id))
        return 0

    cdef int notify(self, Entry entry, object msg, CorrelationId correlation_id=None) except -1:
        """Say something to a life of this node, in its turn."""
        cdef Notice notice = Notice.__new__(Notice)
        notice.entry = entry
        notice.msg = msg
        notice.correlation_id = correlation_id
        self.run_queue.put(new_envelope(self.pid, notice, None, None))
        return 0

    cdef int notify_now(self, Entry entry, object msg, CorrelationId correlation_id=None) except -1:
        """Say something to a life of this node at once: what stands in the queue came after it.

        No limit of a mailbox counts it: what the runtime has to say, a Down say, is promised.
        """
        cdef Envelope envelope = new_envelope(entry.pid, msg, self.pid, correlation_id)
        if entry.target is None:
            return self.drop(envelope, self.protocol.DeadLetterReason.NO_PROCESS)
        if entry.kind == PROCESS:
            return self.give_to_process(entry, envelope)
        if entry.kind == EXECUTOR:
            # Who monitors with the executor's pid as its own.
            return self.drop(envelope, self.protocol.DeadLetterReason.REFUSED)
        return self.give_to_target(entry, envelope)

    cdef int notify_all(self, dict subscribers, object msg) except -1:
        cdef Entry entry
        # Of a list: while an envelope is made other threads may run, and subscribe.
        for entry in list(subscribers.values()):
            self.notify(entry, msg)
        return 0

    cdef int call_hook(self, str what, object about, object error) except -1:
        """Tell the hooks. What they raise is counted: nobody is there to be told of that."""
        cdef PyObject* answer = PyObject_CallMethodObjArgs(
            <PyObject*>self.hooks, <PyObject*>what, <PyObject*>about, <PyObject*>error, NULL
        )
        if answer is not NULL:
            Py_DECREF(<object>answer)
            return 0
        failure = what_failed()
        if type(failure) is Interrupted:
            # It was meant for whatever runs when the time is over.
            self.interrupting = False
            raise failure
        self.failed_reports += 1
        return 0

    cdef int drop(self, Envelope envelope, object reason) except -1:
        """Make a dead letter: count it, and tell whom it concerns."""
        cdef PyObject* found
        self.dead_letters[reason] = self.dead_letters.get(reason, 0) + 1
        if type(envelope.msg) is self.protocol.DeadLetter or self.ended:
            return 0
        if (
            self.routes is not None
            and envelope.sender is not None
            and envelope.correlation_id is not None
            and not same_node(envelope.sender.node, self.node)
        ):
            self.send_undelivered(envelope, reason)
        if not self.letter_subscribers and envelope.correlation_id is None:
            return 0
        letter = self.protocol.DeadLetter(envelope, reason)
        self.notify_all(self.letter_subscribers, letter)
        if envelope.sender is not None and envelope.correlation_id is not None:
            found = self.table.find(envelope.sender)
            if found is not NULL and (<Entry>found).kind == CALLBACK:
                self.notify(<Entry>found, letter, envelope.correlation_id)
        return 0

    # Other nodes.

    cdef int route(self, Envelope envelope) except -1:
        """Hand over an envelope for another node to the connection that leads there."""
        cdef int status = NOT_CONNECTED
        if self.routes is not None:
            status = (<quiet_send><void*>send_by_routes)(self.routes, envelope)
            if status < 0:
                error = what_failed()
                if type(error) is Interrupted:
                    self.interrupting = False
                self.call_hook("unencodable", envelope, error)
                return self.drop(envelope, self.protocol.DeadLetterReason.UNENCODABLE)
        if status == NOT_CONNECTED:
            self.drop(envelope, self.protocol.DeadLetterReason.NOT_CONNECTED)
        elif status == PEER_BUSY:
            self.drop(envelope, self.protocol.DeadLetterReason.PEER_BUSY)
        return 0

    cdef int receive(self) except -1:
        """Look at the sockets, and queue what came."""
        cdef Poller poller = self.routes.poller
        cdef Connection connection
        cdef size_t before, count
        poller.sockets.progress = <unsigned long long>self.delivered
        if self.is_stopping:
            # What peers say from now on lies behind the end of the connection.
            poller.sockets.pending = False
            return 0
        if poller.sockets.connections == 0 and not poller.sockets.pending:
            return 0
        poller.look()
        if not poller.sockets.pending:
            return 0
        before = self.run_queue.count()
        over = self.routes.receive(self.run_queue, self.backlog.popped)
        count = self.run_queue.count() - before
        if self.backlog.limited and count != 0:
            admit_newest(self, count)
            self.routes.shrunk(self.backlog.popped + self.run_queue.count())
        if over is not None:
            for connection in over:
                self.system_messages.disconnect(connection)
        return 0

    cdef int send_undelivered(self, Envelope envelope, object reason) except -1:
        """Tell the node that an envelope came from what became of it."""
        cdef Connection connection = self.routes.find(envelope.sender.node)
        if connection is not None and connection.is_open():
            connection.frame_encoder.write_undelivered(
                envelope.sender,
                envelope.correlation_id,
                self.protocol.UNDELIVERED_CODES.get(reason, 1),
            )
            self.routes.answered(connection)
        return 0

    # Control messages.

    cdef int handle_control(self, Envelope envelope) except -1:
        cdef int status = (<quiet_control><void*>handle)(self.system_messages, envelope)
        cdef object cls
        if status < 0:
            error = what_failed()
            cls = type(envelope.msg)
            if type(error) is MemoryError and (
                cls is Notice
                or cls is Timer
                or cls is PeerEvent
                or cls is Connected
                or cls is Discard
            ):
                # Of the runtime's own: a Down that was promised, say. There is nobody who could be
                # ended for it, so the node is what fails.
                raise error
            self.refuse(envelope, error)
        return 0

    cdef int refuse(self, Envelope envelope, object error) except -1:
        """A control message was wrong: that is an error of the process that sent it."""
        cdef PyObject* found = NULL
        cdef Entry entry
        if envelope.sender is not None and not self.backlog.is_stale(envelope.sender):
            found = self.table.find(envelope.sender)
        if found is not NULL and (<Entry>found).kind == PROCESS:
            # Held: the table's may be the only other reference.
            entry = <Entry>found
            self.failure = error
            return self.crash(entry, envelope)
        if type(error) is Interrupted:
            self.interrupting = False
        self.call_hook("crashed", envelope.sender, error)
        return self.drop(envelope, self.protocol.DeadLetterReason.REFUSED)

    # The end.

    cdef int absorb_interrupt(self) except -1:
        """Have an exception that `interrupt` asked for, and nothing has raised yet, raised here.

        Any call into the interpreter does that. (Taking it back by PyThreadState_SetAsyncExc with
        NULL would leave CPython 3.11 looking for it for ever, before every call.)
        """
        if self.interrupting:
            self.interrupting = False
            self.hooks.quiet()
        return 0

    cdef int tell_shutdown(self) except -1:
        """Who monitors the executor is told that the node ends, and its answer is still sent."""
        cdef PyObject* found = self.table.find(self.pid)
        if found is not NULL and (<Entry>found).monitored_by is not None:
            for pid in list((<Entry>found).monitored_by):
                self.send_shutdown(<Pid>pid)
        return 0

    cdef int send_shutdown(self, Pid to) except -1:
        return self.tell(to, self.protocol.Shutdown("the node shuts down"))


# The end, in steps that each are done whatever became of the one before.

cdef enum EndStep:
    END_INTERRUPT        # an exception that was asked for and has not been raised
    END_FLUSH            # what was said is sent
    END_QUEUE            # what was not delivered is counted as dead letters
    END_INBOX            # ... and what was not even taken in
    END_TIMERS
    END_ENTRIES          # every process and service is let go of
    END_STEPS


cdef int end_step(Executor executor, int step) noexcept:
    """Do one step; -1 with its exception pending."""
    cdef int status = 0
    executor.ended = True
    executor.current = NULL
    if step == END_INTERRUPT:
        status = (<quiet_step><void*>absorb)(executor)
    elif step == END_FLUSH:
        status = (<quiet_step><void*>flush)(executor)
    elif step == END_QUEUE:
        status = (<quiet_drain><void*>drop_all)(executor, executor.run_queue)
    elif step == END_INBOX:
        status = (<quiet_drain><void*>drop_all)(executor, executor.inbox.queue)
    elif step == END_TIMERS:
        executor.wheel.drop_all()
        status = (<quiet_step><void*>clear_due)(executor)
    elif step == END_ENTRIES:
        status = (<quiet_step><void*>let_go)(executor)
    return status


ctypedef int (*quiet_drain)(Executor executor, EnvelopeQueue queue) noexcept


cdef int absorb(Executor executor) except -1:
    return executor.absorb_interrupt()


cdef int flush(Executor executor) except -1:
    # In a forked child it is the parent who sends it.
    if executor.routes is not None and forks == executor.born_after_forks:
        executor.routes.flush()
    return 0


cdef int drop_all(Executor executor, EnvelopeQueue queue) except -1:
    cdef Envelope envelope
    while queue.count() != 0:
        envelope = queue.take()
        if envelope.to is not executor.pid:
            executor.drop(envelope, executor.protocol.DeadLetterReason.NODE_SHUTDOWN)
    return 0


cdef int clear_due(Executor executor) except -1:
    executor.due.clear()
    return 0


cdef int let_go(Executor executor) except -1:
    """Cut what refers to each other. What a process does in its own end finds an empty table."""
    cdef dict entries = executor.table.clear()
    cdef Entry entry
    executor.processes = 0
    executor.letter_subscribers.clear()
    executor.node_subscribers.clear()
    for entry in entries.values():
        entry.timers = entry.monitored_by = entry.monitoring = None
        entry.receive = None
        entry.random_source = None
        entry.takes_self = False
        entry.target = None
    return 0


cdef int loop(Executor executor) except -1:
    """Deliver until it is asked to stop, and for as long as there is time to drain after that."""
    cdef int64_t offered = 0
    while True:
        executor.turn(TURN_DELIVERIES_MAX)
        if forks != executor.born_after_forks:
            # A `receive` forked, and returned in the child: the node is the parent's.
            break
        if executor.is_stopping:
            if not executor.shutdown_sent:
                executor.shutdown_sent = True
                executor.tell_shutdown()
            elif executor.now_ns() >= executor.stop_ns:
                break
            elif executor.drained():
                if executor.hooks.quiet():
                    break
                executor.wait(DRAIN_LOOK_NS)
        elif executor.run_queue.count() == 0:
            executor.wait(-1)
        if executor.scene.batch_ns - offered > GIL_OFFER_NS:
            # A run of deliveries to inboxes never enters the interpreter's own loop,
            # where the GIL is offered to other threads.
            offered = executor.scene.batch_ns
            with nogil:
                pass
    return 0


cdef int try_deliver(Executor executor, PyObject* owned) except -1:
    """Deliver, and drop the run queue's reference whatever comes of it."""
    cdef Envelope envelope = <Envelope>owned
    Py_DECREF(envelope)
    return executor.deliver(envelope)


# What is called so that its exception stays pending.

cdef int emit_output(Executor executor, Entry entry, object result) except -1:
    """Queue what `receive` returned: one envelope, or an iterable of them."""
    cdef list fresh = None
    cdef int owners = 0
    cdef size_t before = executor.run_queue.count()
    cdef bint checked = executor.checks
    if checked:
        fresh = []
    if type(result) is Envelope:
        executor.emit_item(entry, result, 1, fresh)
    elif type(result) is list or type(result) is tuple:
        # An envelope that only this list holds, which only the executor holds, is nobody
        # else's; one of a list that is kept elsewhere is.
        if Py_REFCNT(<PyObject*>result) == 1:
            owners = 2
        if type(result) is list:
            for item in <list>result:
                executor.emit_item(entry, item, owners, fresh)
        else:
            for item in <tuple>result:
                executor.emit_item(entry, item, owners, fresh)
    elif RABBLE_IS_ITERABLE(result):
        for item in result:
            executor.emit_item(entry, item, 0, fresh)
    else:
        raise wrong_output(entry, result)
    if checked:
        # Nothing of it failed: now each goes where there is room for it.
        for item in fresh:
            if type(item) is Envelope:
                executor.admit(<Envelope>item)
            else:
                executor.drop((<Undelivered>item).envelope, (<Undelivered>item).reason)
    elif executor.backlog.limited:
        # A generator that spawned what has a limit, and sent to it.
        admit_newest(executor, executor.run_queue.count() - before)
    return 0


cdef int admit_outside(Executor executor, Envelope envelope) except -1:
    """Look at what another thread sent, and queue it. Whatever is wrong with it ends it alone."""
    cdef PyObject* checked
    if executor.codec is not None:
        checked = (<quiet_codec><void*>check)(executor, envelope)
        if checked is NULL:
            error = what_failed()
            if type(error) is Interrupted:
                executor.interrupting = False
            executor.call_hook("unencodable", envelope, error)
            return executor.drop(envelope, executor.protocol.DeadLetterReason.UNENCODABLE)
        item = <object>checked
        Py_DECREF(item)
        if type(item) is not Envelope:
            return executor.drop((<Undelivered>item).envelope, (<Undelivered>item).reason)
        envelope = <Envelope>item
    return executor.admit(envelope)


cdef int admit_newest(Executor executor, size_t count) except -1:
    """Look at what other nodes sent, which has just been queued."""
    cdef list fresh = []
    cdef Envelope envelope
    cdef size_t position
    for position in range(executor.run_queue.tail - count, executor.run_queue.tail):
        # Only the list grows, so what is in the queue stays where it is.
        fresh.append(<object>executor.run_queue.slots[position & executor.run_queue.mask])
    executor.run_queue.drop_newest(count)
    for envelope in fresh:
        executor.admit(envelope)
    return 0


cdef object check(Executor executor, Envelope envelope):
    return executor.checked(envelope)


cdef object recoded(Executor executor, Envelope envelope):
    """The envelope with a message that went through the codec."""
    msg = executor.codec.decode_message(executor.codec.encode_message(envelope.msg))
    return new_envelope(envelope.to, msg, envelope.sender, envelope.correlation_id)


cdef int send_by_routes(Routes routes, Envelope envelope) except -1:
    return routes.send(envelope)


cdef int handle(MessageHandler system_messages, Envelope envelope) except -1:
    return system_messages.handle(envelope)


# Texts.

cdef object wrong_output(Entry entry, object value):
    return TypeError(
        f"{type_name(entry.target)}.receive returned {bounded_repr(value, 200)} "
        f"(a {type_name(value)}); it may return None, one Envelope, or an iterable of Envelopes"
    )


# Made once: there when memory is not.
cdef str NO_WORDS = "an exception for whose text there was no memory"

ctypedef PyObject* (*quiet_words)(PyObject* error) noexcept


cdef object words_of(object error):
    return f"{type_name(error)}: {bounded_str(error, DETAIL_MAX)}"


cdef object described(object error):
    """An exception's class and text, whatever its `__str__` does."""
    cdef PyObject* words = (<quiet_words><void*>words_of)(<PyObject*>error)
    if words is NULL:
        what_failed()
        return NO_WORDS
    text = <object>words
    Py_DECREF(text)
    return text
