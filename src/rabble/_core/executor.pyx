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
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_XDECREF
from libc.stdint cimport int64_t

from rabble._core.admission cimport Admission, admit_output
from rabble._core.backlog cimport Backlog
from rabble._core.capacities cimport TURN_DELIVERIES_MAX
from rabble._core.dead_letters cimport DeadLetters
from rabble._core.dispatch cimport (
    CALLBACK,
    EXECUTOR,
    INBOX,
    PROCESS,
    DispatchTable,
    Entry,
    Scene,
)
from rabble._core.envelope cimport Envelope, is_to_nobody, new_envelope
from rabble._core.failure cimport what_failed
from rabble._core.hooks cimport HookCaller
from rabble._core.idle cimport Idle
from rabble._core.ids cimport CorrelationId, NodeId, Pid, same_node, same_pid
from rabble._core.inbox cimport Inbox, monotonic_ns
from rabble._core.interrupts cimport Interrupts
from rabble._core.lives cimport Lives
from rabble._core.monitors cimport Monitors
from rabble._core.notices cimport Connected, Discard, Notice, Notifier, Undelivered
from rabble._core.connection cimport Connection
from rabble._core.contexts cimport clear_context, swap_context, this_thread
from rabble._core.poller cimport Poller
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.requests cimport Asked, Requests
from rabble._core.routes cimport NOT_CONNECTED, PEER_BUSY, SENT, UNENCODABLE, Routes
from rabble._core.texts cimport described, failure_text, not_a_correlation_id, not_a_pid
from rabble._core.timeouts cimport Timeouts

from rabble._core.errors import Interrupted
from rabble._core.ids import RESERVED_GROUP
from rabble._core.messages import PASSED_ON, DeadLetterReason, DownReason, Shutdown

__all__ = ["Executor"]

cdef enum:
    TURN_NS_MAX = 1_000_000          # between two looks at the inbox and the timers
    CLOCK_STRIDE = 16                # deliveries between two looks at the clock, if they are fast
    QUICK_RUN = 64                   # ... as so many in a row have been since one was slow
    TURN_BATCHES_MAX = 6             # of what peers sent, if nothing else is to be done
    DRAIN_LOOK_NS = 2_000_000        # between two looks at whether the services are done
    GIL_OFFER_NS = 5_000_000         # CPython's own switch interval
    DRAIN_S_MAX = 31_622_400         # 366 days: what a drain without end is taken for
    ASKS_MAX = 1_048_576             # the default of `Limits.asks_max`

cdef extern from *:
    """
    #include <pthread.h>
    /* How many forks led to this process: a node works only where it was roused. */
    static unsigned int rabble_forks = 0;
    static void rabble_forked(void) { rabble_forks += 1; }
    #define RABBLE_WATCH_FORKS() pthread_atfork(NULL, NULL, rabble_forked)
    /* What PyObject_Vectorcall does, without asking what a plain function is, and without looking
       whether it raised just if it says so: here the interpreter says it. */
    #define RABBLE_CALL(function, args, count) \
        (((PyFunctionObject *)(function))->vectorcall(function, args, count, NULL))
    """
    unsigned int forks "rabble_forks"
    int RABBLE_WATCH_FORKS() noexcept
    PyObject* RABBLE_CALL(PyObject* function, PyObject* const* args, size_t count)

cdef extern from "Python.h":
    # Declared without `except`: what they raise stays pending until it is taken.
    PyObject* PyObject_Vectorcall(
        PyObject* callable, PyObject* const* args, size_t nargsf, PyObject* kwnames
    )
    PyObject* PyObject_GetAttr(PyObject* obj, PyObject* name)
    Py_ssize_t Py_REFCNT(PyObject* obj) noexcept
    unsigned long PyThread_get_thread_ident() noexcept
    int PyException_SetTraceback(object error, object traceback) except -1
    void PyException_SetContext(object error, PyObject* context) noexcept
    void PyException_SetCause(object error, PyObject* cause) noexcept

# The same functions, called so that what they raise stays pending: they return -1 or NULL then.
ctypedef int (*quiet_step)(Executor executor) noexcept
ctypedef int (*quiet_turn)(Executor executor, int64_t most) noexcept
ctypedef int (*quiet_output)(Admission admission, Entry entry, PyObject* output) noexcept
ctypedef int (*quiet_send)(Routes routes, Envelope envelope) noexcept
ctypedef int (*quiet_end)(Lives lives, Entry entry, object reason) noexcept
ctypedef int (*quiet_control)(MessageHandler system_messages, Envelope envelope) noexcept


cdef class MessageHandler:
    """The handlers of control messages; `rabble._core.system_messages` has them."""

    cdef int handle(self, Envelope envelope) except -1:
        raise TypeError("this executor was given no handler of control messages")

    cdef bint is_own(self, object msg) noexcept:
        return False

    cdef int end_ask(self, Asked asked, Envelope envelope) except -1:
        raise TypeError("this executor was given no handler of what processes ask")

    cdef int own(self, Pid pid, Pid owner) except -1:
        raise TypeError("this executor was given no handler of what is owned")

    cdef bint end_owned(
        self, Pid pid, Pid owner, object reason, object told, object msg
    ) except -1:
        raise TypeError("this executor was given no handler of what is owned")

    cdef int disconnect(self, Connection connection) except -1:
        raise TypeError("this executor was given no handler of the end of connections")

    cdef int let_produce(self) except -1:
        return 0

    cdef int end_producing(self, Connection connection) except -1:
        return 0


cdef class Desk:
    """What serves the clients of an executor's servers; `rabble._core.client_desk` has it."""

    cdef bint take_answer(self, Asked asked, object value) except -1:
        return False

    cdef int serve(self, bint looks) except -1:
        return 0

    cdef int flush(self) except -1:
        return 0

    cdef int64_t time_left(self, int64_t now_ns, int64_t most) noexcept:
        return most

    cdef int drain(self) except -1:
        return 0

    cdef int end(self) except -1:
        return 0


if RABBLE_WATCH_FORKS() != 0:
    raise MemoryError("pthread_atfork failed")


@cython.final
cdef class Executor:
    """The run queue, dispatch table, timers and inbox of one node.

    :param node: the `NodeId` whose processes it runs.
    :param process_class: the base class of processes (`rabble.process.Process`).
    :param hooks: what the executor calls in the layer above: crashes, dead letters, metrics.
    :param inbox_max: how many envelopes of other threads may wait, wherever they do.
    :param spin_us: how long to look for work before sleeping, in microseconds; 0 is off.
    :param strict: strict mode: a `rabble.strict.Strict`, which says how each message arrives, or
        why it cannot. `None` is off.
    :param local_classes: of the messages that strict mode lets pass, as they never leave the node.
    :param seed: of the processes' random sources.
    :param clock: monotonic nanoseconds as an int; `None` takes the kernel's.
    :param asks_max: how many requests of processes may wait for their ends.

    `run` belongs to one thread; all else but `step` is for any.
    """

    def __cinit__(
        self,
        NodeId node not None,
        process_class not None,
        hooks not None,
        *,
        size_t inbox_max,
        int64_t spin_us,
        strict=None,
        local_classes=frozenset(),
        seed=0,
        clock=None,
        Py_ssize_t asks_max=ASKS_MAX,
    ):
        self.node = node
        self.asks_max = asks_max
        self.pid = Pid("executor", node, RESERVED_GROUP)
        self.born_after_forks = forks
        self.clock = clock
        self.stride = CLOCK_STRIDE
        self.node_subscribers = {}
        self.system_messages = MessageHandler()
        self.idle = Idle(spin_us)
        self.table = DispatchTable()
        self.run_queue = EnvelopeQueue()
        self.inbox = Inbox(inbox_max)

        self.scene = Scene.__new__(Scene)
        self.scene.pid = self.pid
        self.scene.seed = f"{seed}"
        self.scene.batch_ns = self.now_ns()

        self.backlog = Backlog()
        self.backlog.run_queue = self.run_queue
        self.backlog.inbox = self.inbox
        self.backlog.table = self.table
        self.backlog.is_strict = self.backlog.looks_at_each = strict is not None

        self.timeouts = Timeouts()
        self.timeouts.pid = self.pid
        self.timeouts.run_queue = self.run_queue
        self.timeouts.epoch_ns = self.scene.batch_ns

        self.interrupts = Interrupts()
        self.hooks = HookCaller()
        self.hooks.target = hooks
        self.hooks.interrupts = self.interrupts

        self.notifier = Notifier()
        self.notifier.pid = self.pid
        self.notifier.table = self.table
        self.notifier.run_queue = self.run_queue

        self.letters = DeadLetters()
        self.letters.node = node
        self.letters.notifier = self.notifier

        self.admission = Admission()
        self.admission.pid = self.pid
        self.admission.run_queue = self.run_queue
        self.admission.backlog = self.backlog
        self.admission.dead_letters = self.letters
        self.admission.hooks = self.hooks
        self.admission.strict = strict
        self.admission.local_classes = frozenset([id(cls) for cls in local_classes])

        self.monitors = Monitors()
        self.monitors.table = self.table
        self.crash_detail = self.unencodable_detail = ""

        self.lives = Lives(process_class)
        self.lives.pid = self.pid
        self.lives.scene = self.scene
        self.lives.table = self.table
        self.lives.run_queue = self.run_queue
        self.lives.backlog = self.backlog
        self.lives.monitors = self.monitors
        self.lives.timeouts = self.timeouts
        self.lives.letter_subscribers = self.letters.subscribers
        self.lives.node_subscribers = self.node_subscribers
        take_requests(self, Requests(Pid("calls", node, RESERVED_GROUP), {}))
        if strict is not None:
            self.lives.guard = strict.guard
            self.letters.opened = strict.opened

        cdef Entry own = Entry.__new__(Entry)
        own.pid = self.pid
        own.target = self.pid
        own.runtime = self.scene
        own.kind = EXECUTOR
        self.table.add(own)

    # What any thread may call.

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
        return len(self.timeouts.wheel)

    @property
    def processes(self):
        """Processes that run."""
        return self.lives.processes

    @property
    def dead_letters(self):
        """Reason to the number of envelopes that were not delivered."""
        return self.letters.counts

    @property
    def failed_reports(self):
        """How often the hooks raised when they were told."""
        return self.hooks.failed

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
    def next_timer_ns(self):
        """Nanoseconds until a timer may be due; `None` if none runs. For who holds the clock."""
        cdef int64_t left = self.timeouts.time_left(self.now_ns(), -1)
        return None if left < 0 else left

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

    def undeliverable(
        self, Envelope envelope not None, reason, str detail not None="",
        unsigned long long crash=0,
    ):
        """Make a dead letter of what a service was given and did not take. For any thread.

        :param detail: more about it, and `crash` its number, if a crash was the reason.
        """
        if self.letters.closed:
            self.letters.drop(envelope, reason, detail, crash)
            return
        cdef Undelivered letter = Undelivered.__new__(Undelivered)
        letter.envelope = envelope
        letter.reason = reason
        letter.detail = detail
        letter.crash = crash
        self.ask(letter)

    def send(self, to, msg, *, sender=None, correlation_id=None):
        """Send a message. It must not be changed any more.

        What `Node.send` is. Raises what the hooks' `refuse` raises if too much waits already,
        the executor ends, or this is a forked child.

        :raises TypeError: if `to`, `sender` or `correlation_id` is of another type.
        """
        if type(to) is not Pid:
            raise not_a_pid("send: to", "Pid", to)
        if sender is not None and type(sender) is not Pid:
            raise not_a_pid("send: sender", "Pid or None", sender)
        if correlation_id is not None and type(correlation_id) is not CorrelationId:
            raise not_a_correlation_id(
                "send: correlation_id", "CorrelationId or None", correlation_id
            )
        if forks != self.born_after_forks or not self.accept(
            new_envelope(<Pid>to, msg, <Pid>sender, <CorrelationId>correlation_id)
        ):
            self.hooks.target.refuse()

    def send_envelope(self, Envelope envelope not None):
        """The same of an envelope that nobody else has; a spinning executor is still to be called.

        """
        if forks != self.born_after_forks or self.is_stopping or not self.put(envelope):
            self.hooks.target.refuse()

    def post(self, Envelope envelope not None):
        """Take an envelope of one of the node's own services, until the executor has ended.

        They are still heard while the node drains. Returns False if it was not accepted.
        """
        if self.letters.closed or not self.put(envelope):
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
            self.hooks.target.refuse()
        self.hooks.target.refuse(pid)
        return pid

    cdef Added add(
        self, Pid pid, object process, object mailbox_max, bint from_outside
    ) except? FULL:
        """Add a process. Whatever may fail or run somebody's code comes before the table knows it.

        :param from_outside: another thread may ask, which the bound of the inbox concerns.
        """
        cdef Entry entry = self.lives.prepare(pid, process, mailbox_max)
        cdef Envelope request = None
        if entry.unstarted:
            request = new_envelope(self.pid, entry, None, None)
        # From here on nobody's code runs, so what was found stays true.
        if self.is_stopping:
            return ENDING
        # Held to the end, as what it refers to may have an end of its own.
        _former = self.lives.former_of(process)
        if request is not None:
            if from_outside and self.backlog.is_full():
                return FULL
            if from_outside:
                self.inbox.queue.reserve(1)
            else:
                self.run_queue.reserve(1)
        if not self.lives.begin(entry):
            return NAME_TAKEN
        if request is None:
            return ADDED
        if from_outside:
            self.inbox.put_always(request)
            self.idle.call()
        else:
            # The next in the queue: what who asked for it sends itself from now on comes after it.
            self.run_queue.append(request)
        return ADDED

    def own(self, Pid pid not None, Pid owner not None):
        """Have what was added just now owned, as by a `Spawn`. In the executor's thread.

        :param owner: a process of this node or another. If it has ended, so does `pid`.
        """
        self.system_messages.own(pid, owner)

    def end_owned(self, Pid pid not None, Pid owner not None, reason, told=None, msg=None):
        """End, in order, what is owned so. In the executor's thread.

        :param told: a class whose processes are sent `msg` instead, and end by themselves.
        :returns: whether `owner` owns it.
        """
        return self.system_messages.end_owned(pid, owner, reason, told, msg)

    def add_inbox(self, Pid pid not None, Inbox inbox not None):
        """Add a service or mailbox whose envelopes go into `inbox`. False if the pid is taken."""
        return not self.is_stopping and self.lives.begin_service(pid, inbox, INBOX)

    def add_callback(self, Pid pid not None, callback):
        """Add a pid whose envelopes `callback(envelope)` takes, in the executor's thread.

        It must be short and must not block. False if the pid is taken.
        """
        return not self.is_stopping and self.lives.begin_service(pid, callback, CALLBACK)

    def add_calls(self, Requests requests not None, callback):
        """Add the pid of the calls whose `requests` these are, as `add_callback` does.

        Called once, before `run`. The callback is given the reply to each, or why none comes.
        """
        take_requests(self, requests)
        return self.add_callback(requests.asker, callback)

    def number_crash(self):
        """Count the crash of a service, and return its number. For any thread."""
        self.crashes += 1
        return self.crashes

    def discard(self, Pid pid not None, target, reason, unsigned long long crash=0):
        """Remove a pid and tell its monitors, in the turn of the caller's other envelopes.

        Nothing happens if by then it belongs to another than `target`, or to nobody.

        :param crash: the number of the crash that ended it, for who waits for a reply of it.
        """
        cdef Discard request = Discard.__new__(Discard)
        request.pid = pid
        request.target = target
        request.reason = reason
        request.crash = crash
        self.ask(request)

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
        self.open_sockets(poller)
        self.routes = Routes(poller)
        self.routes.backlog = self.backlog
        self.monitors.routes = self.letters.routes = self.routes
        self.monitors.peer_monitors_max = self.requests.peers_max = peer_monitors_max

    def open_sockets(self, Poller poller not None):
        """Look at the sockets of `poller`, and sleep on them. Called once. For any thread.

        :raises RuntimeError: if it has sockets already.
        """
        if self.poller is not None:
            raise RuntimeError("an executor looks at the sockets of one poller")
        poller.watch(self.inbox.fd)
        self.poller = poller
        if self.has_run:
            # It may be asleep on its inbox alone.
            self.inbox.wake()
            self.idle.recall()

    def connection_up(self, Connection connection not None):
        """A connection is established: add its route, and tell the subscribers. For any thread.

        Its end needs no call: the executor notices, and tells the hooks.
        """
        cdef Connected request = Connected.__new__(Connected)
        self.connected += 1
        connection.number = self.connected
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

    def request_stop(self, double drain_s):
        """Take nothing more in, deliver what waits for at most `drain_s` seconds, then end.

        :raises ValueError: if `drain_s` is not a number. Less than 0 is 0; a year is the most.

        Idempotent; never blocks; may be called from a signal handler.
        """
        if drain_s != drain_s:
            raise ValueError("the time to drain must be seconds, not NaN")
        cdef int64_t drain_ns
        if not self.is_stopping:
            drain_ns = <int64_t>(min(max(drain_s, 0.0), <double>DRAIN_S_MAX) * 1e9)
            self.stop_ns = self.now_ns() + drain_ns
            self.last_words_ns = self.stop_ns - drain_ns // 4
            self.is_stopping = True
        self.inbox.wake()
        self.idle.recall()

    def run(self):
        """Deliver until `request_stop`. Called once, by the thread that is to be the executor's.

        Any exception that leaves it is a defect of rabble, or the end of memory.
        """
        cdef PyObject* context
        cdef int status
        cdef size_t step
        cdef object error = None
        if self.has_run or self.in_turn:
            raise RuntimeError("an executor runs once, and in one thread")
        context = self.begin_in_thread()
        self.has_run = True
        self.interrupts.thread_id = self.idle.thread_id = PyThread_get_thread_ident()
        self.running = True
        status = (<quiet_step><void*>loop)(self)
        if status < 0:
            error = what_failed()
            if self.is_stopping and self.interrupts.note(error):
                # It was meant for what did not return just then; the time is over all the same.
                error = None
            else:
                self.failed = True
        self.running = False
        self.is_stopping = True
        self.letters.closed = True
        self.current = NULL
        for step in range(sizeof(END) // sizeof(quiet_step)):
            # Once more if it failed: memory was exhausted for a moment, say.
            for _ in range(2):
                status = END[step](self)
                if status == 0:
                    break
                failure = what_failed()
                if error is None and type(failure) is not Interrupted:
                    self.failed = True
                    error = failure
        self.end_in_thread(context)
        if error is not None:
            raise error

    cdef PyObject* begin_in_thread(self) noexcept:
        """Deliver in this thread from now on. Returns the context that it is in, for the end."""
        self.thread = this_thread()
        if self.routes is not None:
            self.routes.thread = self.thread
        return swap_context(self.thread, NULL)

    cdef void end_in_thread(self, PyObject* context) noexcept:
        clear_context(self.thread)
        Py_XDECREF(swap_context(self.thread, context))

    cdef bint has_forked(self) noexcept:
        return forks != self.born_after_forks

    cdef bint drained(self) noexcept:
        return (
            self.run_queue.count() == 0
            and self.inbox.queue.count() == 0
            and len(self.timeouts.due) == 0
        )

    def interrupt(self):
        """Have `Interrupted` raised in what the executor runs, if that does not return.

        It reaches Python code, and ends no call into C. The watchdog asks again after a while, as
        somebody's code may have caught it.
        """
        if self.running:
            self.interrupts.ask(self.current is not NULL, self.delivered)

    def step(self, int64_t most=TURN_DELIVERIES_MAX):
        """Take in what waits and make at most `most` deliveries; returns how many were made.

        For tests and simulators, which drive an executor that has no thread.

        :raises RuntimeError: if it runs in a thread, has ended, or is in a turn.
        """
        cdef int64_t before = self.delivered
        cdef PyObject* context
        cdef object error
        cdef int status
        if self.has_run or self.in_turn:
            raise RuntimeError("an executor that runs, has ended, or is in a turn takes no step")
        context = self.begin_in_thread()
        status = (<quiet_turn><void*>take_turn)(self, most)
        error = what_failed() if status < 0 else None
        self.end_in_thread(context)
        if error is not None:
            raise error
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

    cdef int turn(self, int64_t most) except -1:
        """Look outside once, then deliver until the queue is empty or it is time to look again."""
        cdef int64_t start = self.now_ns()
        cdef int64_t looked = start
        cdef int64_t now, _, until_look
        cdef int batches = TURN_BATCHES_MAX
        cdef PyObject* taken
        self.scene.batch_ns = start
        self.in_turn = True
        try:
            self.poll(start)
            if self.routes is not None:
                self.receive(True)
            if self.desk is not None:
                self.desk.serve(True)
                if forks != self.born_after_forks:
                    return 0
            # What it took to take in what came is no delivery's time.
            looked = self.now_ns()
            until_look = self.stride
            for _ in range(min(most, TURN_DELIVERIES_MAX)):
                if self.run_queue.count() == 0:
                    batches -= 1
                    if batches <= 0 or self.poller is None:
                        break
                    # More may have come together with what was delivered just now.
                    if self.routes is not None:
                        self.receive(False)
                    if self.desk is not None:
                        self.desk.serve(False)
                        if forks != self.born_after_forks:
                            return 0
                    if self.run_queue.count() == 0:
                        break
                    if self.stride == 1:
                        looked = self.now_ns()
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
                        if now - looked > TURN_NS_MAX // 4:
                            self.quick = 0
                        elif self.stride != 1:
                            # A collection of garbage, say: the next fast one says that it was one.
                            self.quick = QUICK_RUN - 1
                        self.stride = 1
                    elif self.stride == 1:
                        # One that is fast says little: who works is asked and answered by others,
                        # and sixteen of them with a slow one for every second are no short turn.
                        self.quick += 1
                        if self.quick >= QUICK_RUN:
                            self.stride = CLOCK_STRIDE
                    if now - start >= TURN_NS_MAX:
                        break
                    until_look = self.stride
                    looked = now
            if self.inbox.elsewhere != 0:
                self.backlog.forget_spans()
            if self.backlog.has_ended():
                self.backlog.forget_ended()
            if self.requests.fresh_oldest is not NULL:
                self.requests.start_timers(self.timeouts, self.now_ns())
            if self.routes is not None and self.routes.dirty:
                self.routes.flush()
            if self.desk is not None:
                self.desk.flush()
            # The last delivery's: nothing of it stays while the executor sleeps.
            clear_context(self.thread)
        finally:
            self.in_turn = False
        return 0

    cdef int poll(self, int64_t now) except -1:
        if self.inbox.queue.count() != 0:
            self.admission.take_in(self.inbox)
        if self.timeouts.any():
            self.timeouts.fire(now)
        return 0

    cdef int wait(self, int64_t most) except -1:
        """Out of work: look for some without the GIL for a while, then sleep.

        `most` is a bound in nanoseconds, or -1 to end with the request to stop only.
        """
        cdef int64_t left = self.time_left(most)
        cdef Poller poller = self.poller
        if left == 0 or self.inbox.queue.count() != 0 or self.requests.fresh_oldest is not NULL:
            return 0
        if most < 0 and self.idle.may_spin():
            if self.idle.spin(self.inbox, poller, left):
                return 0
            left = self.time_left(most)
            if left == 0:
                return 0
        if (self.is_stopping and most < 0) or not self.inbox.arm_now():
            return 0
        return self.idle.sleep(self.inbox, poller, left)

    cdef int64_t time_left(self, int64_t most) except -2:
        """Nanoseconds until there is something to do by the clock, `most` of them at most."""
        cdef int64_t now = self.now_ns()
        cdef int64_t left = self.timeouts.time_left(now, most)
        return left if self.desk is None else self.desk.time_left(now, left)

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
            return self.letters.drop(envelope, DeadLetterReason.NO_PROCESS)
        entry = <Entry>found
        if entry.kind == PROCESS:
            if entry.limit is not None and not self.backlog.leaves_mailbox(entry):
                return self.letters.drop(envelope, DeadLetterReason.MAILBOX_FULL)
            return self.give_to_process(entry, envelope)
        if entry.kind == EXECUTOR:
            return self.handle_control(envelope)
        return self.give_to_target(entry, envelope)

    cdef int deliver_request(self, Envelope envelope) except -1:
        """Deliver the request of an `Ask`, in the turn of the latter.

        So it keeps its place among what its asker sent. It never stood in the queue, so no mailbox
        counts it; but one that is full takes none.
        """
        cdef PyObject* found = self.table.find(envelope.to)
        cdef Connection connection
        cdef Entry entry
        if found is NULL:
            if same_node(envelope.to.node, self.node):
                return self.letters.drop(envelope, DeadLetterReason.NO_PROCESS)
            if self.routes is not None:
                connection = self.routes.find(envelope.to.node)
                if connection is not None and self.routes.is_untold(connection):
                    # It meant a start of the node that is no more.
                    return self.letters.drop(envelope, DeadLetterReason.NOT_CONNECTED)
            return self.route(envelope)
        entry = <Entry>found
        if entry.kind == EXECUTOR:
            # Which may be an `Ask` again, and so on: each in its own turn.
            self.run_queue.append(envelope)
            return 0
        if entry.kind == PROCESS:
            if entry.limit is not None and entry.limit.queued >= entry.limit.most:
                return self.letters.drop(envelope, DeadLetterReason.MAILBOX_FULL)
            return self.give_to_process(entry, envelope)
        return self.give_to_target(entry, envelope)

    cdef int give_to_process(self, Entry entry, Envelope envelope) except -1:
        cdef PyObject* args[4]
        cdef PyObject* result
        if entry.unstarted and not self.start(entry):
            return self.letters.drop(
                envelope, DeadLetterReason.PROCESS_CRASHED, self.crash_detail, self.crash_latest
            )
        if <PyObject*>envelope.correlation_id is not <PyObject*>None:
            self.requests.taken(entry, envelope)
        if self.thread.context is not NULL:
            clear_context(self.thread)
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
            self.finish(entry, result, envelope)
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
        clear_context(self.thread)
        self.current = <PyObject*>entry
        try:
            bound = PyObject_GetAttr(<PyObject*>process, <PyObject*>"init")
            if bound is not NULL:
                result = PyObject_Vectorcall(bound, NULL, 0, NULL)
                Py_DECREF(<object>bound)
            self.finish(entry, result, None)
        finally:
            self.current = NULL
        return entry.target is not None

    cdef int stop(self, Entry entry, object reason) except -1:
        """End a process or service of this node in order."""
        cdef bint has_last_words = entry.terminates
        if not self.terminate(entry, reason):
            # It raised instead: that is a crash, of which all have been told.
            return 0
        if (<quiet_end><void*>end_life)(self.lives, entry, reason) < 0:
            error = what_failed()
            if not has_last_words:
                raise error
            # There is no memory for an end in order, and it has said its last words.
            return self.crash(entry, None, error)
        return 0

    cdef bint terminate(self, Entry entry, object reason) except -1:
        """Call `terminate`, if there is one to be called. False if that ended the process."""
        cdef PyObject* bound
        cdef PyObject* result = NULL
        cdef PyObject* args[1]
        if not entry.terminates or entry.unstarted:
            return True
        entry.terminates = False
        process = entry.target
        args[0] = <PyObject*>reason
        clear_context(self.thread)
        self.current = <PyObject*>entry
        try:
            bound = PyObject_GetAttr(<PyObject*>process, <PyObject*>"terminate")
            if bound is not NULL:
                result = PyObject_Vectorcall(bound, args, 1, NULL)
                Py_DECREF(<object>bound)
            self.finish(entry, result, None)
        finally:
            self.current = NULL
        return entry.target is not None

    cdef int give_to_target(self, Entry entry, Envelope envelope) except -1:
        cdef PyObject* result
        cdef PyObject* args[1]
        cdef Asked asked
        entry.delivered += 1
        if entry.kind == INBOX:
            if envelope.correlation_id is not None:
                self.requests.taken(entry, envelope)
            if not (<Inbox>entry.target).put(envelope):
                # Closed, and about to be taken out of the table; or full.
                reason = (
                    DeadLetterReason.NO_PROCESS
                    if (<Inbox>entry.target).is_closed
                    else DeadLetterReason.MAILBOX_FULL
                )
                self.letters.drop(envelope, reason)
            return 0
        if envelope.correlation_id is not None and self.requests.asks:
            asked = self.requests.ask_of(envelope)
            if asked is not None:
                return self.system_messages.end_ask(asked, envelope)
        args[0] = <PyObject*>envelope
        result = PyObject_Vectorcall(<PyObject*>entry.target, args, 1, NULL)
        if result is NULL:
            error = what_failed()
            if type(error) is MemoryError and entry.kind == CALLBACK:
                # The runtime's own: somebody waits for what it would have done, a call's end, say.
                raise error
            self.hooks.call("crashed", entry.pid, error)
        else:
            Py_DECREF(<object>result)
        return 0

    # What `receive` returned.

    cdef int finish(self, Entry entry, PyObject* result, Envelope envelope) except -1:
        """Queue what `receive` returned, and take over its reference.

        If it raised, or returned what cannot be sent, nothing of it is queued and the process ends.

        :param envelope: what it was given; `None` if it was its `init`.
        """
        if result is NULL:
            return self.crash(entry, envelope, what_failed())
        if result is <PyObject*>None:
            Py_DECREF(<object>result)
            return 0
        if (
            type(<object>result) is Envelope
            and not self.backlog.looks_at_each
            and self.run_queue.count() <= self.run_queue.mask
        ):
            # As almost always: one envelope, nobody else's, and there is room.
            if (<Envelope>result).sender is not None:
                self.run_queue.put_owned(result)
                return 0
            if Py_REFCNT(result) == 1:
                (<Envelope>result).sender = entry.pid
                self.run_queue.put_owned(result)
                return 0
        return self.finish_output(entry, result, envelope)

    cdef int finish_output(self, Entry entry, PyObject* result, Envelope envelope) except -1:
        """The same of what is more than one plain envelope, or is to be looked at."""
        cdef size_t before = self.run_queue.count()
        cdef int status
        status = (<quiet_output><void*>admit_output)(self.admission, entry, result)
        if status < 0:
            error = what_failed()
            # Nothing is taken out of the queue while a delivery goes on, so all that is more than
            # before is this call's.
            self.run_queue.drop_newest(self.run_queue.count() - before)
            if self.backlog.limited:
                self.backlog.recount()
            Py_DECREF(<object>result)
            return self.crash(entry, envelope, error)
        Py_DECREF(<object>result)
        return 0

    # The end of a process.

    cdef int crash(self, Entry entry, Envelope envelope, object error) except -1:
        """`receive` or `init` failed: end that process and nothing else.

        It is let go of first of all, and the traceback, which holds its frame, before anything
        is said of it: so if it had all the memory there is some again.
        """
        cdef dict monitored_by = None
        cdef int64_t number
        cdef bint ends = entry.target is not None
        self.interrupts.note(error)
        # Services count theirs, too, in their threads.
        self.crashes += 1
        number = self.crashes
        if ends:
            monitored_by = self.lives.detach(entry)
        self.crash_number = number
        self.hooks.call("crashed", entry.pid, error)
        self.crash_number = 0
        # (By assignment it could not be taken from a frozen class's.)
        PyException_SetTraceback(error, None)
        PyException_SetContext(error, NULL)
        PyException_SetCause(error, NULL)
        self.crash_detail = described(error)
        self.crash_latest = number
        if ends:
            self.lives.tell_ended(
                entry, monitored_by, DownReason("crashed", self.crash_detail)
            )
        if envelope is not None:
            self.letters.drop(
                envelope, DeadLetterReason.PROCESS_CRASHED, self.crash_detail, number
            )
        if ends and self.requests.has(entry):
            self.run_queue.append(
                self.requests.unanswered(entry, "crashed", self.crash_detail, number)
            )
        return 0

    # What the runtime has to say.

    cdef int give_notice(
        self, Entry entry, object msg, CorrelationId correlation_id=None
    ) except -1:
        """Give a life of this node a message of the runtime, whose turn it is.

        No limit of a mailbox counts it: what the runtime has to say, a Down say, is promised.
        """
        cdef Envelope envelope = new_envelope(entry.pid, msg, self.pid, correlation_id)
        if entry.target is None:
            return self.letters.drop(envelope, DeadLetterReason.NO_PROCESS)
        if entry.kind == PROCESS:
            return self.give_to_process(entry, envelope)
        if entry.kind == EXECUTOR:
            # A Down for a Monitor that had the executor's pid as its sender.
            return self.letters.drop(envelope, DeadLetterReason.REFUSED)
        return self.give_to_target(entry, envelope)

    # Other nodes.

    cdef int route(self, Envelope envelope) except -1:
        """Hand over an envelope for another node to the connection that leads there."""
        cdef int status = NOT_CONNECTED
        if self.thread.context is not NULL:
            # What encodes it may be a function of the user's.
            clear_context(self.thread)
        if self.routes is not None:
            status = (<quiet_send><void*>send_by_routes)(self.routes, envelope)
            if status < 0:
                error = what_failed()
                self.interrupts.note(error)
                self.hooks.call("unencodable", envelope, error)
                self.unencodable_detail = failure_text(error)
                self.letters.drop(
                    envelope, DeadLetterReason.UNENCODABLE, self.unencodable_detail
                )
                return UNENCODABLE
        if status == SENT:
            if envelope.correlation_id is not None:
                note_sent(self, envelope)
        elif status == NOT_CONNECTED:
            # Nobody's node is none, so this is where an envelope to None ends.
            self.letters.drop(
                envelope,
                DeadLetterReason.NO_RECEIVER
                if is_to_nobody(envelope)
                else DeadLetterReason.NOT_CONNECTED,
            )
        elif status == PEER_BUSY:
            self.letters.drop(envelope, DeadLetterReason.PEER_BUSY)
        return status

    cdef int receive(self, bint looks) except -1:
        """Queue a batch of what came, and look at the sockets before if so told."""
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
        if looks:
            poller.look()
        if not poller.sockets.pending:
            return 0
        before = self.run_queue.count()
        over = self.routes.receive(self.run_queue, self.backlog.popped)
        count = self.run_queue.count() - before
        if self.backlog.limited and count != 0:
            self.admission.admit_newest(count)
            self.routes.shrunk(self.backlog.popped + self.run_queue.count())
        if over is not None:
            for connection in over:
                self.system_messages.disconnect(connection)
        if self.system_messages.has_producers:
            self.system_messages.let_produce()
        return 0

    # Control messages.

    cdef int handle_control(self, Envelope envelope) except -1:
        cdef Envelope request
        cdef int status
        # It may look up keys of the user's.
        clear_context(self.thread)
        status = (<quiet_control><void*>handle)(self.system_messages, envelope)
        if self.follow_up is not None:
            request = self.follow_up
            self.follow_up = None
            if status == 0:
                return self.deliver_request(request)
        if status < 0:
            error = what_failed()
            if type(error) is MemoryError and self.system_messages.is_own(envelope.msg):
                # A Down that was promised, say. No process could be ended for it, so the node
                # fails.
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
            return self.crash(entry, envelope, error)
        self.interrupts.note(error)
        self.hooks.call("crashed", envelope.sender, error)
        return self.letters.drop(envelope, DeadLetterReason.REFUSED)

    # The end.

    cdef int tell_shutdown(self) except -1:
        """Send `Shutdown` to the executor's monitors; what they answer is still sent."""
        cdef PyObject* found = self.table.find(self.pid)
        if found is not NULL and (<Entry>found).monitored_by is not None:
            for pid in list((<Entry>found).monitored_by):
                self.send_shutdown(<Pid>pid)
        return 0

    cdef bint terminate_next(self) except -1:
        """The last words of the process that was spawned last, of those that may have some.

        One after the other, and what it says is delivered before the next one ends. False if there
        is none.
        """
        cdef Entry entry
        if self.last_words is None:
            self.last_words = [
                entry for entry in self.table.snapshot() if (<Entry>entry).terminates
            ]
        while self.last_words:
            entry = <Entry>self.last_words.pop()
            if entry.target is not None and entry.terminates:
                reason = DownReason("shutdown", "the node shuts down")
                if self.terminate(entry, reason):
                    self.lives.end_with_node(entry, reason)
                return True
        return False

    cdef int send_shutdown(self, Pid to) except -1:
        return self.notifier.notify_pid(to, Shutdown("the node shuts down"))


cdef int take_requests(Executor executor, Requests requests) except -1:
    """The requests of calls, in the one place of those that know of them."""
    requests.executor = executor.pid
    requests.peers_max = executor.monitors.peer_monitors_max
    requests.asks_max = executor.asks_max
    executor.requests = executor.lives.requests = executor.letters.requests = requests
    return 0


cdef int note_sent(Executor executor, Envelope envelope) except -1:
    """An envelope went to another node: it may answer the request of a call, or pass it on."""
    cdef CorrelationId cid = envelope.correlation_id
    cdef Connection connection
    cdef object key
    if cid.pid.group is None:
        return 0
    key = executor.requests.key_of(cid)
    if key is None:
        return 0
    if same_pid(envelope.to, cid.pid):
        executor.requests.drop(key)
    elif envelope.sender is not None and same_pid(envelope.sender, cid.pid):
        if type(key) is int:
            if executor.requests.holder_of(key) is not None:
                executor.requests.passed_on(key, envelope.to)
            return 0
        executor.requests.drop(key)
        if same_node(envelope.to.node, cid.pid.node):
            return 0
        # So the asker knows whose end would be that of its call.
        connection = executor.routes.find(cid.pid.node)
        if connection is not None and connection.is_open():
            connection.frame_encoder.write_undelivered(
                cid.pid, cid, PASSED_ON, 0, envelope.to, ""
            )
            executor.routes.touch(connection)
    return 0


# The end, in steps that each are done whatever became of the one before.

cdef quiet_step END[6]
END[0] = <quiet_step><void*>absorb_interrupt
END[1] = <quiet_step><void*>flush
END[2] = <quiet_step><void*>drop_queue
END[3] = <quiet_step><void*>drop_inbox
END[4] = <quiet_step><void*>drop_timers
END[5] = <quiet_step><void*>let_go


cdef int absorb_interrupt(Executor executor) except -1:
    """Have an exception that `interrupt` asked for, and nothing has raised yet, raised here.

    Any call into the interpreter does that. (Taking it back by PyThreadState_SetAsyncExc with
    NULL would leave CPython 3.11 looking for it for ever, before every call.)
    """
    if executor.interrupts.pending:
        executor.interrupts.pending = False
        executor.hooks.target.quiet()
    return 0


cdef int flush(Executor executor) except -1:
    # In a forked child it is the parent's to send.
    if executor.routes is not None and forks == executor.born_after_forks:
        executor.routes.flush()
    if executor.desk is not None and forks == executor.born_after_forks:
        executor.desk.end()
    return 0


cdef int drop_queue(Executor executor) except -1:
    return drop_all(executor, executor.run_queue)


cdef int drop_inbox(Executor executor) except -1:
    return drop_all(executor, executor.inbox.queue)


cdef int drop_all(Executor executor, EnvelopeQueue queue) except -1:
    cdef Envelope envelope
    cdef Undelivered letter
    while queue.count() != 0:
        envelope = queue.take()
        if envelope.to is not executor.pid:
            executor.letters.drop(envelope, DeadLetterReason.NODE_SHUTDOWN)
        elif type(envelope.msg) is Undelivered:
            # Somebody else's envelope, of which only this says that it was not delivered.
            letter = <Undelivered>envelope.msg
            if letter.envelope is not None:
                executor.letters.drop(
                    letter.envelope, letter.reason, letter.detail or "", letter.crash
                )
    return 0


cdef int drop_timers(Executor executor) except -1:
    return executor.timeouts.drop_all()


cdef int let_go(Executor executor) except -1:
    executor.last_words = None
    return executor.lives.clear()


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
                if executor.desk is not None:
                    executor.desk.drain()
                executor.system_messages.end_producing(None)
            elif executor.now_ns() >= executor.stop_ns:
                break
            elif executor.now_ns() >= executor.last_words_ns and executor.terminate_next():
                pass
            elif executor.drained():
                if not executor.hooks.target.quiet():
                    executor.wait(DRAIN_LOOK_NS)
                elif not executor.terminate_next():
                    break
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

cdef int take_turn(Executor executor, int64_t most) except -1:
    return executor.turn(most)


cdef int send_by_routes(Routes routes, Envelope envelope) except -1:
    return routes.send(envelope)


cdef int end_life(Lives lives, Entry entry, object reason) except -1:
    return lives.end(entry, reason)


cdef int handle(MessageHandler system_messages, Envelope envelope) except -1:
    return system_messages.handle(envelope)
