"""The executor: the one thread that owns the run queue and calls `receive`.

One FIFO run queue, one dispatch table. A delivery is: take the oldest envelope, find its entry by
one dict look-up, call `receive` with positional arguments, put what it returned at the end of the
queue. Everything else happens between deliveries: at least every 1,024 of them, and as near to
every millisecond as `receive` lets it, the executor takes what other threads sent and fires the
timers that are due.

What a process asks of its runtime is a message to the executor's own pid, handled in its turn like
any other: so control messages keep their place among the sender's messages.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t

from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.idle cimport Idle
from rabble._core.ids cimport CorrelationId, NodeId, Pid, same_node, same_pid
from rabble._core.inbox cimport Inbox, monotonic_ns
from rabble._core.poll cimport Connection, Poller
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.routes cimport NOT_CONNECTED, PEER_BUSY, Routes
from rabble._core.table cimport (
    CALLBACK,
    EXECUTOR,
    INBOX,
    PROCESS,
    DispatchTable,
    Entry,
    EntryKind,
)
from rabble._core.timers cimport Timer, TimerWheel

from types import FunctionType

__all__ = ["Executor", "Interrupted"]

cdef enum:
    TURN_DELIVERIES_MAX = 1024       # between two looks at the inbox and the timers
    TURN_NS_MAX = 1_000_000
    CLOCK_STRIDE = 16                # deliveries between two looks at the clock, if they are fast
    DUE_QUEUED_MAX = 1024            # timers that fired and stand in the run queue
    DRAIN_LOOK_NS = 2_000_000        # between two looks at whether the services are done
    GIL_OFFER_NS = 5_000_000         # CPython's own switch interval

cdef extern from *:
    """
    #include <pthread.h>
    #include <structmember.h>
    /* How many forks led to this process: a node works only where it was roused. */
    static unsigned int rabble_forks = 0;
    static void rabble_forked(void) { rabble_forks += 1; }
    #define RABBLE_WATCH_FORKS() pthread_atfork(NULL, NULL, rabble_forked)
    #define RABBLE_MEMBER_OFFSET(member) (((PyMemberDescrObject *)(member))->d_member->offset)
    /* What PyObject_Vectorcall does, without asking what a plain function is, and without looking
       whether it raised just if it says so: the interpreter is who says it. */
    #define RABBLE_CALL(function, args, count) \
        (((PyFunctionObject *)(function))->vectorcall(function, args, count, NULL))
    """
    unsigned int forks "rabble_forks"
    int RABBLE_WATCH_FORKS() noexcept
    Py_ssize_t member_offset "RABBLE_MEMBER_OFFSET"(object member) noexcept
    PyObject* RABBLE_CALL(PyObject* function, PyObject* const* args, size_t count)

cdef extern from "Python.h":
    PyObject* PyObject_Vectorcall(
        PyObject* callable, PyObject* const* args, size_t nargsf, PyObject* kwnames
    )
    Py_ssize_t Py_REFCNT(PyObject* obj) noexcept
    int PyThreadState_SetAsyncExc(unsigned long thread_id, PyObject* exc) noexcept
    unsigned long PyThread_get_thread_ident() noexcept
    int PyException_SetTraceback(object error, object traceback) except -1
    void PyException_SetContext(object error, PyObject* context) noexcept
    void PyException_SetCause(object error, PyObject* cause) noexcept
    int PyObject_GenericSetAttr(object obj, object name, object value) except -1
    bint PyMethod_Check(object obj) noexcept
    PyObject* PyMethod_GET_FUNCTION(object method) noexcept
    PyObject* PyMethod_GET_SELF(object method) noexcept


class Interrupted(BaseException):
    """Raised in a `receive` that had not returned when its node had to end."""


@cython.final
cdef class Discard:
    """Control message of the runtime: remove a pid, if it is still `target`'s."""


@cython.final
cdef class Linked:
    """Control message of the runtime: a connection to another node is established."""


@cython.final
cdef class Undelivered:
    """Control message of the runtime: a service was given this and did not take it."""


if RABBLE_WATCH_FORKS() != 0:
    raise MemoryError("pthread_atfork failed")


cdef object pending_error():
    """The exception that a C-API call left behind, taken."""
    try:
        reraise()
    except BaseException as error:
        return error


cdef int reraise() except -1:
    return -1


@cython.final
cdef class Executor:
    """The run queue, dispatch table, timers and inbox of one node.

    :param node: the `NodeId` whose processes it runs.
    :param protocol: the module with the control messages (`rabble.messages`).
    :param process_class: the base class of processes (`rabble.process.Process`).
    :param observer: who is told and asked what concerns the layer above (`rabble.observer`).
    :param inbox_max: how many envelopes of other threads may wait.
    :param spin_us: how long to look for work before sleeping, in microseconds; 0 is off.
    :param codec: strict mode: encodes and decodes every message. `None` is off.
    :param seed: of the processes' random sources.
    :param clock: monotonic nanoseconds as an int; `None` takes the kernel's.

    `run` belongs to one thread; all else but `step` is for any.
    """

    def __init__(
        self,
        NodeId node not None,
        protocol,
        process_class,
        observer,
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
        self.run_queue = EnvelopeQueue()
        self.inbox = Inbox(inbox_max)
        self.wheel = TimerWheel()
        self.due = []
        self.stride = CLOCK_STRIDE
        self.protocol = protocol
        self.process_class = process_class
        self.runtime_offset = member_offset(process_class._runtime)
        self.born_after_forks = forks
        self.observer = observer
        self.codec = codec
        self.seed = seed
        self.clock = clock
        self.idle = Idle(spin_us)
        self.epoch_ns = self.now_ns()
        self.batch_ns = self.epoch_ns
        self.dead_letters = {}
        self.subscribers = ()
        self.node_subscribers = ()
        self.controls = {}
        cdef Entry own = Entry.__new__(Entry)
        own.pid = self.pid
        own.target = self.pid
        own.kind = EXECUTOR
        self.table.add(own)

    # What any thread may call.

    @property
    def now(self):
        """Monotonic seconds at which the current batch began."""
        return self.batch_ns * 1e-9

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

    def new_random(self, Pid pid not None):
        """A process's own random source."""
        from random import Random
        return Random(f"{self.seed}:{pid}")

    def send(
        self, Pid to not None, msg, *, Pid sender=None, CorrelationId correlation_id=None
    ):
        """Send a message. It must not be changed any more.

        What `Node.send` is. Raises what the observer's `refuse` raises if the inbox is full, the
        executor ends, or this is a forked child.
        """
        if forks != self.born_after_forks or not self.accept(
            new_envelope(to, msg, sender, correlation_id)
        ):
            self.observer.refuse()

    def post(self, Envelope envelope not None):
        """Take an envelope of one of the node's own services, until the executor has ended.

        They are still heard while the node drains. Returns False if it was not accepted.
        """
        if self.ended or not self.inbox.put(envelope):
            return False
        self.idle.call()
        return True

    def spawn(self, process, name, *, group=None, mailbox_max=None):
        """Run a process under a name, and return its pid. What `Node.spawn` is.

        :raises TypeError: if `process` is none.
        :raises ValueError: if the name or the limit is not usable, or this very object runs.

        Raises what the observer's `refuse` raises if the name is taken, the executor ends, or
        this is a forked child.
        """
        cdef Pid pid
        pid = Pid(name, self.node, group)
        if forks != self.born_after_forks or not self.add(pid, process, mailbox_max):
            self.observer.refuse(pid)
        return pid

    cdef bint add(self, Pid pid, object process, object mailbox_max) except -1:
        """Add a process. False if its pid is taken or the executor ends."""
        cdef Entry entry
        cdef object bound
        cdef PyObject* known
        cdef unsigned int limit = 0
        if pid.group is not None and pid.group == self.pid.group:
            raise ValueError(f"the group {pid.group!r} is for the node's own services")
        if not isinstance(process, self.process_class):
            raise TypeError(f"only a Process can be spawned, not {process!r}")
        if mailbox_max is not None:
            if type(mailbox_max) is not int or not 1 <= mailbox_max < 1 << 31:
                raise ValueError(f"mailbox_max must be 1 to 2**31 - 1, not {mailbox_max!r}")
            limit = mailbox_max
        # Read in place: asking for an attribute that is not set yet costs an exception.
        known = (<PyObject**>(<char*><PyObject*>process + self.runtime_offset))[0]
        if (
            known is not NULL
            and type(<object>known) is Entry
            and (<Entry>known).target is process
        ):
            raise ValueError(
                f"this {type(process).__name__} runs already, as {(<Entry>known).pid}; "
                f"spawn a new instance for every process"
            )
        if self.is_stopping:
            return False
        entry = Entry.__new__(Entry)
        entry.pid = pid
        entry.target = process
        entry.runtime = self
        entry.kind = PROCESS
        entry.mailbox_max = limit
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
        if not self.table.add(entry):
            return False
        # Past a __setattr__ of the class's own: that of a frozen one would refuse.
        PyObject_GenericSetAttr(process, "_runtime", entry)
        self.processes += 1
        if limit:
            self.limited += 1
        if type(process).init is not self.process_class.init:
            # It runs in the executor's thread, soon, or before a message that comes sooner.
            entry.unstarted = True
            self.ask(entry)
        return True

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
        """Have every dead letter told to `pid` as a `DeadLetter` message, or no longer."""
        if wanted:
            self.subscribers = tuple(dict.fromkeys(self.subscribers + (pid,)))
        else:
            self.subscribers = tuple(p for p in self.subscribers if p != pid)

    def subscribe_nodes(self, Pid pid not None, bint wanted=True):
        """Have `pid` told of every node that comes and goes, or no longer."""
        if wanted:
            self.node_subscribers = tuple(dict.fromkeys(self.node_subscribers + (pid,)))
        else:
            self.node_subscribers = tuple(p for p in self.node_subscribers if p != pid)

    @property
    def node_subscribed(self):
        """The pids that are told of nodes that come and go."""
        return self.node_subscribers

    def join_mesh(self, Poller poller not None, Py_ssize_t watches_max):
        """Reach other nodes by the connections of `poller`. Called once, before `run`.

        :param watches_max: how much of the processes here each peer may monitor, in pairs.
        """
        self.routes = Routes(poller)
        self.watches_max = watches_max
        poller.watch(self.inbox.fd)

    def link_up(self, Connection connection not None):
        """A connection is established: tell whom it concerns, send and hear. For any thread.

        Its end needs no call: the executor notices, and tells the observer.
        """
        cdef Linked request = Linked.__new__(Linked)
        request.connection = connection
        self.ask(request)

    def tell_nodes(self, msg):
        """Send a message of the runtime to all that subscribed to nodes. For any thread."""
        for pid in self.node_subscribers:
            self.inbox.put_always(new_envelope(<Pid>pid, msg, self.pid, None))
        self.idle.call()

    def wake(self):
        """Have it look at its sockets and its inbox. For any thread; never blocks."""
        self.inbox.wake()

    def request_stop(self, double drain_s):
        """Take nothing more in, deliver what waits for at most `drain_s` seconds, then end.

        Idempotent; never blocks; may be called from a signal handler.
        """
        if not self.is_stopping:
            self.stop_ns = self.now_ns() + <int64_t>(max(drain_s, 0.0) * 1e9)
            self.is_stopping = True
        self.inbox.wake()
        self.idle.recall()

    def run(self):
        """Deliver until `request_stop`. Called once, by the thread that is to be the executor's.

        Any exception that leaves it is a defect of rabble, or the end of memory.
        """
        cdef bint told = False
        cdef int64_t offered = 0
        self.thread_id = PyThread_get_thread_ident()
        self.running = True
        try:
            while True:
                self.turn(TURN_DELIVERIES_MAX)
                if forks != self.born_after_forks:
                    # A `receive` forked, and returned in the child: the node is the parent's.
                    break
                if self.is_stopping:
                    if not told:
                        told = True
                        self.tell_shutdown()
                    elif self.now_ns() >= self.stop_ns:
                        break
                    elif self.drained():
                        if self.observer.quiet():
                            break
                        self.wait(DRAIN_LOOK_NS)
                elif self.run_queue.count() == 0:
                    self.wait(-1)
                if self.batch_ns - offered > GIL_OFFER_NS:
                    # A run of deliveries to inboxes never enters the interpreter's own loop,
                    # where the GIL is offered to other threads.
                    offered = self.batch_ns
                    with nogil:
                        pass
        except Interrupted:
            # It was meant for a `receive` that returned just then; the time is over all the same.
            self.interrupting = False
        finally:
            self.running = False
            self.is_stopping = True
            self.absorb_interrupt()
            self.end()

    cdef bint drained(self) noexcept:
        return (
            self.run_queue.count() == 0
            and self.inbox.queue.count() == 0
            and len(self.due) == 0
        )

    def interrupt(self):
        """Have `Interrupted` raised in the `receive` that runs, if one does.

        It reaches Python code, and ends no call into C.
        """
        if self.running and self.current is not NULL and not self.interrupting:
            self.interrupting = True
            PyThreadState_SetAsyncExc(self.thread_id, <PyObject*>Interrupted)

    def step(self, int64_t most=TURN_DELIVERIES_MAX):
        """Take in what waits and make at most `most` deliveries; returns how many were made.

        For tests and simulators, which drive an executor that has no thread.
        """
        cdef int64_t before = self.delivered
        self.turn(most)
        return self.delivered - before

    # The loop.

    cdef int64_t now_ns(self) except -1:
        if self.clock is None:
            return monotonic_ns()
        return self.clock()

    cdef bint accept(self, Envelope envelope) except -1:
        if self.is_stopping or not self.inbox.put(envelope):
            return False
        self.idle.call()
        return True

    cdef int ask(self, object request) except -1:
        """Send a control message of the runtime's own, which no limit refuses."""
        self.inbox.put_always(new_envelope(self.pid, request, None, None))
        self.idle.call()
        return 0

    cdef bint add_target(self, Pid pid, object target, EntryKind kind) except -1:
        cdef Entry entry = Entry.__new__(Entry)
        entry.pid = pid
        entry.target = target
        entry.runtime = self
        entry.kind = kind
        return not self.is_stopping and self.table.add(entry)

    cdef int turn(self, int64_t most) except -1:
        """Look outside once, then deliver until the queue is empty or it is time to look again."""
        cdef int64_t start = self.now_ns()
        cdef int64_t looked = start
        cdef int64_t now, _, until_look
        cdef PyObject* taken
        self.batch_ns = start
        self.poll(start)
        if self.routes is not None:
            self.hear()
        until_look = self.stride
        for _ in range(min(most, TURN_DELIVERIES_MAX)):
            if self.run_queue.count() == 0:
                break
            taken = self.run_queue.take_owned()
            self.popped += 1
            try_deliver(self, taken)
            until_look -= 1
            if until_look == 0:
                now = self.now_ns()
                # Slow processes: look after every delivery, from the next turn's first one on too.
                if (now - looked) * CLOCK_STRIDE > TURN_NS_MAX // 4 * self.stride:
                    self.stride = 1
                else:
                    self.stride = CLOCK_STRIDE
                if now - start >= TURN_NS_MAX:
                    break
                until_look = self.stride
                looked = now
        if self.routes is not None and self.routes.dirty:
            self.routes.flush()
        return 0

    cdef int poll(self, int64_t now) except -1:
        cdef Envelope envelope
        if self.inbox.queue.count() != 0:
            if self.limited or self.codec is not None:
                while self.inbox.queue.count() != 0:
                    envelope = self.inbox.queue.take()
                    self.admit(envelope)
            else:
                self.run_queue.take_all(self.inbox.queue)
        if self.wheel.count != 0 or len(self.due) != 0:
            self.fire(now)
        return 0

    cdef int fire(self, int64_t now) except -1:
        """Queue the timers that are due, but no more than others can be expected to wait behind.

        By way of the queue: what was sent before one fired is delivered before it, and a cancel
        that stands in front of it still takes effect.
        """
        if len(self.due) == 0:
            # Else what else is due by now comes after these.
            self.wheel.c_advance((now - self.epoch_ns) // 1_000_000, self.due)
            self.due.reverse()
        while len(self.due) != 0 and self.due_queued < DUE_QUEUED_MAX:
            self.run_queue.put(new_envelope(self.pid, self.due.pop(), None, None))
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
        if envelope.to is None:
            # Only Envelope.__new__(Envelope) makes such a thing.
            return self.drop(envelope, self.protocol.DeadLetterReason.NO_PROCESS)
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
            return self.give_to_process(entry, envelope)
        if entry.kind == EXECUTOR:
            return self.control(envelope)
        return self.give_to_target(entry, envelope)

    # Other nodes.

    cdef int route(self, Envelope envelope) except -1:
        """Hand over an envelope for another node to the connection that leads there."""
        cdef int said = NOT_CONNECTED
        if self.routes is not None:
            try:
                if type(envelope.msg) is self.protocol.Down and envelope.sender is self.pid:
                    return self.say_down(envelope)
                said = self.routes.say(envelope)
            except Exception as error:
                self.observer.unencodable(envelope, error)
                return self.drop(envelope, self.protocol.DeadLetterReason.UNENCODABLE)
        if said == NOT_CONNECTED:
            self.drop(envelope, self.protocol.DeadLetterReason.NOT_CONNECTED)
        elif said == PEER_BUSY:
            self.drop(envelope, self.protocol.DeadLetterReason.PEER_BUSY)
        return 0

    cdef int say_down(self, Envelope envelope) except -1:
        """A process of this node ended that one of the peer's monitors."""
        cdef Connection connection = self.routes.find(envelope.to.node)
        cdef dict watchers
        if connection is None:
            # Its node is told nothing any more: to its processes all of this one is down.
            return 0
        watchers = connection.watched.get(envelope.msg.pid)
        if watchers is not None:
            if watchers.pop(envelope.to, None):
                connection.watched_count -= 1
            if not watchers:
                del connection.watched[envelope.msg.pid]
        reason = envelope.msg.reason
        why = self.protocol.DOWN_CODES.get(reason.kind, 1)
        connection.speaker.say_down(envelope.to, envelope.msg.pid, why, 0, reason.detail)
        return self.routes.answered(connection)

    cdef int hear(self) except -1:
        """Look at the sockets, and queue what came."""
        cdef Poller poller = self.routes.poller
        cdef Connection connection
        cdef size_t tail
        poller.sockets.progress = <unsigned long long>self.delivered
        if self.is_stopping:
            # What peers say from now on lies behind the end of the connection.
            poller.sockets.ready = False
            return 0
        if poller.sockets.connections == 0 and not poller.sockets.ready:
            return 0
        poller.look()
        if not poller.sockets.ready:
            return 0
        tail = self.run_queue.tail
        over = self.routes.hear(self.run_queue, self.popped)
        if self.limited and self.run_queue.tail != tail:
            self.admit_since(tail)
            self.routes.shrunk(self.popped + self.run_queue.count())
        if over is not None:
            for connection in over:
                self.disconnect(connection)
        return 0

    cdef int connect(self, Connection connection) except -1:
        """A connection to a node is established."""
        cdef Connection old = self.routes.by_name.get(connection.link.peer.name)
        if old is not None:
            self.routes.hear_all(old, self.run_queue)
            self.disconnect(old)
        self.routes.add(connection)
        up = self.protocol.NodeUp(connection.link.peer, connection.link.incarnation)
        for pid in self.node_subscribers:
            self.tell(<Pid>pid, up)
        return 0

    cdef int disconnect(self, Connection connection) except -1:
        """A connection has come to its end: so has, for this node, all that lives behind it."""
        cdef PyObject* found
        cdef dict watchers
        cdef NodeId node = connection.link.peer
        if not self.routes.remove(connection):
            return 0
        # What was sent before must not reach the node's next start.
        self.poll(self.batch_ns)
        self.drop_all_for(node)
        self.routes.shrunk(self.popped + self.run_queue.count())
        for watched, watchers in connection.watched.items():
            found = self.table.find(<Pid>watched)
            if found is not NULL and (<Entry>found).watchers is not None:
                for watcher in watchers:
                    (<Entry>found).watchers.pop(watcher, None)
        why = self.observer.why_ended(connection)
        if why == "shutdown":
            reason = self.protocol.DownReason("shutdown", f"{node} ended")
        else:
            reason = self.protocol.DownReason(
                "disconnected", f"the connection to {node} ended: {why}"
            )
        for watched, watchers in connection.watches.items():
            down = self.protocol.Down(watched, reason)
            for pid in watchers:
                found = self.table.find(<Pid>pid)
                if found is not NULL and (<Entry>found).watched is not None:
                    (<Entry>found).watched.pop(watched, None)
                self.tell(<Pid>pid, down)
        connection.watches = {}
        connection.watched = {}
        connection.watched_count = 0
        down = self.protocol.NodeDown(node, connection.link.incarnation, why)
        for pid in self.node_subscribers:
            self.tell(<Pid>pid, down)
        self.observer.disconnected(connection)
        return 0

    cdef int drop_all_for(self, NodeId node) except -1:
        cdef size_t left = self.run_queue.count()
        cdef Envelope envelope
        while left != 0:
            left -= 1
            envelope = self.run_queue.take()
            if envelope.to is not None and same_node(envelope.to.node, node):
                self.drop(envelope, self.protocol.DeadLetterReason.NOT_CONNECTED)
            else:
                self.run_queue.put(envelope)
        return 0

    cdef int give_to_process(self, Entry entry, Envelope envelope) except -1:
        cdef PyObject* args[4]
        cdef PyObject* result
        if entry.unstarted and not self.start(entry):
            return self.drop(envelope, self.protocol.DeadLetterReason.PROCESS_CRASHED)
        entry.delivered += 1
        if entry.queued and envelope.sender is not self.pid:
            entry.queued -= 1
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
        cdef PyObject* init
        cdef PyObject* result
        entry.unstarted = False
        self.current = <PyObject*>entry
        try:
            try:
                bound = process.init
            except BaseException as error:
                self.failure = error
                self.crash(entry, None)
                return False
            init = <PyObject*>bound
            result = PyObject_Vectorcall(init, NULL, 0, NULL)
            if not self.emit(entry, result):
                self.crash(entry, None)
        finally:
            self.current = NULL
        return entry.target is not None

    cdef int give_to_target(self, Entry entry, Envelope envelope) except -1:
        entry.delivered += 1
        if entry.kind == INBOX:
            if not (<Inbox>entry.target).put(envelope):
                self.drop(envelope, self.protocol.DeadLetterReason.MAILBOX_FULL)
            return 0
        try:
            entry.target(envelope)
        except BaseException as error:
            self.observer.crashed(entry.pid, error)
        return 0

    cdef bint emit(self, Entry entry, PyObject* result) except -1:
        """Queue what `receive` returned, and take over its reference.

        False, with the error in `failure` and nothing queued, if it raised, or returned what
        cannot be sent.
        """
        cdef size_t tail = self.run_queue.tail
        if result is NULL:
            self.failure = pending_error()
            return False
        if result is <PyObject*>None:
            Py_DECREF(<object>result)
            return True
        if type(<object>result) is not Envelope:
            return self.emit_many(entry, result)
        if (<Envelope>result).sender is None:
            if Py_REFCNT(result) == 1:
                (<Envelope>result).sender = entry.pid
            else:
                result = copy_from(entry, result)
        self.run_queue.put_owned(result)
        if self.limited or self.codec is not None:
            self.admit_since(tail)
        return True

    cdef bint emit_many(self, Entry entry, PyObject* owned) except -1:
        """As `emit`, for what should be an iterable of envelopes."""
        cdef size_t tail = self.run_queue.tail
        cdef object result = <object>owned
        cdef int owners = 1
        Py_DECREF(result)
        if type(result) is list or type(result) is tuple:
            # An envelope that only this list holds, which only the executor holds, is nobody
            # else's; one of a list that is kept elsewhere is.
            owners = 2 if Py_REFCNT(owned) == 1 else 0
        try:
            if type(result) is list:
                for item in <list>result:
                    self.emit_item(entry, item, owners)
            elif type(result) is tuple:
                for item in <tuple>result:
                    self.emit_item(entry, item, owners)
            else:
                iterator = iter_of(entry, result)
                for item in iterator:
                    self.emit_item(entry, item, owners)
        except BaseException as error:
            self.failure = error
            self.run_queue.truncate(tail)
            return False
        if self.limited or self.codec is not None:
            self.admit_since(tail)
        return True

    cdef int emit_item(self, Entry entry, object item, int owners) except -1:
        """Queue one envelope, its sender filled in.

        That is done in place if its `owners` are all the references there are; an envelope that
        somebody else holds too, to send it again perhaps, is copied.
        """
        cdef PyObject* owned = <PyObject*>item
        if type(item) is not Envelope:
            raise wrong_output(entry, item)
        if (<Envelope>item).sender is None and Py_REFCNT(owned) != owners:
            owned = copy_from(entry, owned)
        else:
            if (<Envelope>item).sender is None:
                (<Envelope>item).sender = entry.pid
            Py_INCREF(item)
        self.run_queue.put_owned(owned)
        return 0

    cdef int crash(self, Entry entry, Envelope envelope) except -1:
        """`receive` or `init` failed: end that process and nothing else."""
        cdef object error = self.failure
        self.failure = None
        if type(error) is Interrupted:
            self.interrupting = False
        self.crashes += 1
        detail = f"{type(error).__name__}: {error_text(error)}"
        if entry.target is not None:
            self.remove_entry(entry, self.protocol.DownReason("crashed", detail))
        self.observer.crashed(entry.pid, error)
        if envelope is not None:
            self.drop(envelope, self.protocol.DeadLetterReason.PROCESS_CRASHED)
        # The traceback holds the frame of `receive`, and with it the process and the message. (By
        # assignment it could not be taken from a frozen class's.)
        PyException_SetTraceback(error, None)
        PyException_SetContext(error, NULL)
        PyException_SetCause(error, NULL)
        return 0

    cdef int admit(self, Envelope envelope) except -1:
        """Queue an envelope past what slows sending down: the strict mode and mailbox limits."""
        cdef PyObject* found
        cdef Entry entry
        if (
            self.codec is not None
            and type(envelope.msg) not in self.protocol.LOCAL_CLASSES
            and not same_pid(envelope.to, self.pid)
        ):
            try:
                copied = self.codec.decode_message(self.codec.encode_message(envelope.msg))
            except ValueError as error:
                self.observer.unencodable(envelope, error)
                return self.drop(envelope, self.protocol.DeadLetterReason.UNENCODABLE)
            envelope = new_envelope(
                envelope.to, copied, envelope.sender, envelope.correlation_id
            )
        if self.limited and envelope.sender is not self.pid:
            # What the executor itself has to say, a Down say, is promised and takes no place.
            found = self.table.find(envelope.to)
            if found is not NULL:
                entry = <Entry>found
                if entry.mailbox_max:
                    if entry.queued >= entry.mailbox_max:
                        return self.drop(
                            envelope, self.protocol.DeadLetterReason.MAILBOX_FULL
                        )
                    entry.queued += 1
        self.run_queue.put(envelope)
        return 0

    cdef int admit_since(self, size_t tail) except -1:
        cdef list fresh = []
        cdef Envelope envelope
        cdef size_t position
        cdef PyObject* owned
        position = tail
        while position != self.run_queue.tail:
            owned = self.run_queue.slots[position & self.run_queue.mask]
            fresh.append(<object>owned)
            position += 1
        self.run_queue.truncate(tail)
        for envelope in fresh:
            self.admit(envelope)
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
            self.say_undelivered(envelope, reason)
        if not self.subscribers and envelope.correlation_id is None:
            return 0
        letter = self.protocol.DeadLetter(envelope, reason)
        for pid in self.subscribers:
            self.tell(<Pid>pid, letter)
        if envelope.sender is not None and envelope.correlation_id is not None:
            found = self.table.find(envelope.sender)
            if found is not NULL and (<Entry>found).kind == CALLBACK:
                self.tell(envelope.sender, letter, envelope.correlation_id)
        return 0

    cdef int say_undelivered(self, Envelope envelope, object reason) except -1:
        """Tell the node that an envelope came from what became of it."""
        cdef Connection connection = self.routes.find(envelope.sender.node)
        if connection is not None and connection.is_open():
            connection.speaker.say_undelivered(
                envelope.sender,
                envelope.correlation_id,
                self.protocol.UNDELIVERED_CODES.get(reason, 1),
            )
            self.routes.answered(connection)
        return 0

    cdef int count_lost(self, NodeId peer, object count) except -1:
        """A peer dropped envelopes that were for this node, because its queue was full."""
        reason = self.protocol.DeadLetterReason.LOST
        self.dead_letters[reason] = self.dead_letters.get(reason, 0) + count
        for pid in self.subscribers:
            # At once: what stands in the queue came after the gap, and must not be seen before.
            self.deliver(new_envelope(<Pid>pid, self.protocol.Lost(peer, count), self.pid, None))
        return 0

    cdef int tell(self, Pid to, object msg, CorrelationId correlation_id=None) except -1:
        self.run_queue.put(new_envelope(to, msg, self.pid, correlation_id))
        return 0

    cdef int remove_entry(self, Entry entry, object reason) except -1:
        """End a process or service: its timers, its monitors, and the cycle between the two."""
        cdef PyObject* found
        cdef Timer timer
        self.table.remove(entry.pid)
        if entry.kind == PROCESS:
            self.processes -= 1
        if entry.mailbox_max:
            self.limited -= 1
        if entry.timers is not None:
            for timer in entry.timers.values():
                self.wheel.c_cancel(timer)
            entry.timers = None
        if entry.watched is not None:
            for pid in entry.watched:
                found = self.table.find(<Pid>pid)
                if found is not NULL:
                    if (<Entry>found).watchers is not None:
                        (<Entry>found).watchers.pop(entry.pid, None)
                elif self.routes is not None:
                    self.unwatch(entry.pid, <Pid>pid)
            entry.watched = None
        if entry.watchers is not None:
            watchers = entry.watchers
            entry.watchers = None
            # Its own monitor of itself has nobody left to tell.
            watchers.pop(entry.pid, None)
            down = self.protocol.Down(entry.pid, reason)
            for pid in watchers:
                found = self.table.find(<Pid>pid)
                if found is not NULL and (<Entry>found).watched is not None:
                    (<Entry>found).watched.pop(entry.pid, None)
                self.tell(<Pid>pid, down)
        if entry.kind == INBOX:
            # Whoever owns it takes what is left, and learns that nothing follows.
            (<Inbox>entry.target).close()
        entry.target = None
        entry.receive = None
        entry.takes_self = False
        return 0

    cdef int watch(self, Pid watcher, Pid watched) except -1:
        """Monitor a process of another node. 0 if no connection leads there."""
        cdef Connection connection = self.routes.find(watched.node)
        cdef dict watchers
        if connection is None or not connection.is_open():
            return 0
        watchers = connection.watches.get(watched)
        if watchers is None:
            watchers = connection.watches[watched] = {}
        watchers[watcher] = True
        connection.speaker.say_monitor(watcher, watched)
        self.routes.touch(connection)
        return 1

    cdef int unwatch(self, Pid watcher, Pid watched) except -1:
        cdef Connection connection = self.routes.find(watched.node)
        cdef dict watchers = None if connection is None else connection.watches.get(watched)
        if watchers is not None and watchers.pop(watcher, None):
            if not watchers:
                del connection.watches[watched]
            if connection.is_open():
                connection.speaker.say_demonitor(watcher, watched)
                self.routes.touch(connection)
        return 0

    # Control messages.

    cdef int control(self, Envelope envelope) except -1:
        handler = self.controls.get(type(envelope.msg))
        try:
            if handler is None:
                raise TypeError(
                    f"the executor was sent a {type(envelope.msg).__name__}; it understands "
                    + ", ".join(sorted(
                        c.__name__ for c in self.controls if c.__module__ == self.protocol.__name__
                    ))
                )
            handler(envelope.msg, envelope)
        except Exception as error:
            self.refuse(envelope, error)
        return 0

    cdef int refuse(self, Envelope envelope, object error) except -1:
        """A control message was wrong: that is an error of the process that sent it."""
        cdef PyObject* found = NULL
        cdef Entry entry
        if envelope.sender is not None:
            found = self.table.find(envelope.sender)
        if found is not NULL and (<Entry>found).kind == PROCESS:
            entry = <Entry>found
            self.failure = error
            return self.crash(entry, envelope)
        self.observer.crashed(envelope.sender, error)
        return self.drop(envelope, self.protocol.DeadLetterReason.REFUSED)

    # The end.

    cdef int absorb_interrupt(self) except -1:
        """Have an exception that `interrupt` asked for, and nothing has raised yet, raised here.

        Any call into the interpreter does that. (Taking it back by PyThreadState_SetAsyncExc with
        NULL would leave CPython 3.11 looking for it for ever, before every call.)
        """
        if self.interrupting:
            try:
                self.observer.quiet()
            except Interrupted:
                self.interrupting = False
        return 0

    cdef int tell_shutdown(self) except -1:
        """Who monitors the executor is told that the node ends, and its answer is still sent."""
        cdef Entry own = <Entry>self.table.find(self.pid)
        if own.watchers is not None:
            for pid in own.watchers:
                self.tell(<Pid>pid, self.protocol.Shutdown("the node shuts down"))
        return 0

    cdef int end(self) except -1:
        """Let go of everything; what was not delivered is counted as dead letters."""
        cdef Entry entry
        cdef Envelope envelope
        self.ended = True
        if self.routes is not None:
            self.routes.flush()
        self.run_queue.take_all(self.inbox.queue)
        while self.run_queue.count() != 0:
            envelope = self.run_queue.take()
            if envelope.to is not self.pid:
                self.drop(envelope, self.protocol.DeadLetterReason.NODE_SHUTDOWN)
        self.wheel.clear()
        self.due.clear()
        for entry in self.table.snapshot():
            entry.target = None
            entry.receive = None
            entry.takes_self = False
            entry.timers = entry.watchers = entry.watched = None
        self.table.clear()
        self.processes = 0
        self.current = NULL
        return 0


cdef int try_deliver(Executor executor, PyObject* owned) except -1:
    """Deliver, and drop the run queue's reference whatever comes of it."""
    cdef Envelope envelope = <Envelope>owned
    Py_DECREF(envelope)
    return executor.deliver(envelope)


cdef PyObject* copy_from(Entry entry, PyObject* shared) except NULL:
    """A copy of an envelope, sent by `entry`; the caller owns its reference."""
    cdef Envelope envelope = <Envelope>shared
    cdef Envelope copied = new_envelope(
        envelope.to, envelope.msg, entry.pid, envelope.correlation_id
    )
    Py_INCREF(copied)
    return <PyObject*>copied


cdef object iter_of(Entry entry, object result):
    try:
        return iter(result)
    except TypeError:
        raise wrong_output(entry, result) from None


cdef object wrong_output(Entry entry, object value):
    return TypeError(
        f"{type(entry.target).__name__}.receive returned {shown(value)}; "
        f"it may return None, one Envelope, or an iterable of Envelopes"
    )


cdef str shown(object value):
    try:
        text = repr(value)
    except Exception:
        text = "an object whose repr fails"
    if len(text) > 200:
        text = text[:197] + "..."
    return f"{text} (a {type(value).__name__})"


cdef str error_text(object error):
    try:
        text = str(error)
    except Interrupted:
        raise
    except BaseException:
        text = "its str fails"
    return text if len(text) <= 500 else text[:497] + "..."
