"""System messages: what processes ask of their runtime, and the runtime of its executor.

Each is handled in the executor's thread, in the message's turn. What its handler raises is an error
of the process that sent the message, and ends it; so a handler looks at all that the message has
before it does anything: half a request is none.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from rabble._core.ask cimport Ask
from rabble._core.asks cimport begin_ask, expire_ask, take_answer
from rabble._core.directory_requests cimport ask_directory, is_directory_request
from rabble._core.dispatch cimport CALLBACK, DEAD_LETTERS, EXECUTOR, NODES, Entry
from rabble._core.envelope cimport Envelope
from rabble._core.distribution cimport (
    add_connection,
    end_connection,
    handle_event,
    note_told,
    send_down,
    tell_unanswered,
)
from rabble._core.executor cimport ENDING, NAME_TAKEN, Executor, MessageHandler
from rabble._core.exits cimport begin_link, check_linking, handle_exiting
from rabble._core.failure cimport what_failed
from rabble._core.frame_decoder cimport PeerEvent
from rabble._core.ids cimport CorrelationId, Pid, same_node
from rabble._core.links cimport Exiting, find_link, owned_by, remove_link
from rabble._core.links cimport Link as LinkEnd
from rabble._core.monitors cimport MONITORED, NO_PROCESS, MonitorStatus
from rabble._core.notices cimport Connected, Discard, Notice, Undelivered
from rabble._core.connection cimport Connection
from rabble._core.producers cimport Producers
from rabble._core.requests cimport Asked, Unanswered
from rabble._core.texts cimport (
    bounded_repr,
    described,
    given,
    must_pass,
    not_a_correlation_id,
    not_a_pid,
    type_name,
)
from rabble._core.timeouts cimport Alarm, Timeouts, has_fired
from rabble._core.timers cimport Timer, delay_ms_of, period_ns_of
from rabble._core.directory_messages import DIRECTORY_NAME
from rabble._core.messages import (
    CancelTimer,
    Demonitor,
    Down,
    DownReason,
    Drain,
    GetMetrics,
    Link,
    Monitor,
    NodeUp,
    Produce,
    Spawn,
    SpawnFailed,
    StartTimer,
    Stop,
    SubscribeDeadLetters,
    SubscribeNodes,
    Tick,
    Timeout,
    TimerCancelled,
    Unlink,
)

__all__ = ["SystemMessages"]

cdef extern from "Python.h":
    PyObject* PyTuple_GET_ITEM(tuple items, Py_ssize_t place) noexcept

cdef extern from *:
    """
    #define RABBLE_IS_UNHASHABLE(key) \
        (Py_TYPE(key)->tp_hash == NULL || Py_TYPE(key)->tp_hash == PyObject_HashNotImplemented)
    """
    bint RABBLE_IS_UNHASHABLE(object key) noexcept

cdef extern from *:
    """
    #define RABBLE_IS_A(value, cls) PyObject_TypeCheck(value, (PyTypeObject *)(cls))
    """
    # By the layout itself: `isinstance` believes what an object says of its class.
    bint RABBLE_IS_A(object value, object cls) noexcept

# In the order of `SystemMessages.classes`: first what the runtime sends itself.
cdef enum Message:
    NOTICE
    TIMER
    START_PROCESS
    PEER_EVENT
    DISCARD
    NOT_DELIVERED
    NOT_ANSWERED
    CONNECTED
    EXITING
    ASK
    PRODUCE
    DRAIN
    START_TIMER
    CANCEL_TIMER
    SPAWN
    MONITOR_PID
    DEMONITOR_PID
    STOP
    SUBSCRIBE_NODES
    SUBSCRIBE_DEAD_LETTERS
    GET_METRICS
    LINK_PID
    UNLINK_PID
    MESSAGES


# Called so that what it raises stays pending: it returns -1 then.
ctypedef int (*quiet_add)(
    Executor executor, Pid pid, object process, object mailbox_max
) noexcept
ctypedef int (*quiet_fired)(Timeouts timeouts, Timer timer, int64_t now_ns) noexcept


@cython.final
cdef class SystemMessages(MessageHandler):
    """The handlers of one executor's control messages; making it puts them into place.

    :param executor: whose.
    """

    def __cinit__(self, Executor executor not None):
        self.executor = executor
        self.classes = (
            Notice,
            Timer,
            Entry,
            PeerEvent,
            Discard,
            Undelivered,
            Unanswered,
            Connected,
            Exiting,
            Ask,
            Produce,
            Drain,
            StartTimer,
            CancelTimer,
            Spawn,
            Monitor,
            Demonitor,
            Stop,
            SubscribeNodes,
            SubscribeDeadLetters,
            GetMetrics,
            Link,
            Unlink,
        )
        self.directory = Pid(DIRECTORY_NAME, executor.node, executor.pid.group)
        self.producers = Producers(executor)
        executor.system_messages = self

    cdef int handle(self, Envelope envelope) except -1:
        cdef object msg = envelope.msg
        cdef int which
        if type(msg) is Ask:
            # They come as often as plain envelopes do.
            return begin_ask(self.executor, <Ask>msg, envelope, self.asker(envelope))
        which = self.place_of(msg)
        if which == NOTICE:
            return self.notice(<Notice>msg)
        if which == TIMER:
            return self.timer(<Timer>msg)
        if which == START_PROCESS:
            return self.start_process(<Entry>msg)
        if which == PEER_EVENT:
            return handle_event(self.executor, <PeerEvent>msg)
        if which == DISCARD:
            return self.discard(<Discard>msg)
        if which == NOT_DELIVERED:
            return self.undelivered(<Undelivered>msg)
        if which == NOT_ANSWERED:
            return tell_unanswered(self.executor, <Unanswered>msg)
        if which == CONNECTED:
            return self.connected(<Connected>msg)
        if which == EXITING:
            return handle_exiting(self.executor, <Exiting>msg)
        if which == PRODUCE:
            return self.producers.produce(envelope)
        if which == DRAIN:
            return self.producers.drain(envelope, self.asker(envelope))
        if which == START_TIMER:
            return self.start_timer(msg, envelope)
        if which == CANCEL_TIMER:
            return self.cancel_timer(msg, envelope)
        if which == SPAWN:
            return self.spawn(msg, envelope)
        if which == MONITOR_PID:
            return self.monitor(msg, envelope)
        if which == DEMONITOR_PID:
            return self.demonitor(msg, envelope)
        if which == STOP:
            return self.stop(msg)
        if which == SUBSCRIBE_NODES:
            return self.subscribe_nodes(msg, envelope)
        if which == SUBSCRIBE_DEAD_LETTERS:
            return self.subscribe_dead_letters(msg, envelope)
        if which == GET_METRICS:
            return self.get_metrics(envelope)
        if which == LINK_PID:
            return self.link(msg, envelope)
        if which == UNLINK_PID:
            return self.unlink(msg, envelope)
        if is_directory_request(msg):
            return self.pass_to_directory(envelope)
        raise TypeError(
            f"the executor was sent a {type_name(msg)}; it understands "
            "Ask, CancelTimer, Demonitor, Drain, GetGroupMembers, GetMetrics, JoinGroup, "
            "LeaveGroup, Link, Monitor, Register, Spawn, StartTimer, Stop, SubscribeDeadLetters, "
            "SubscribeGroup, SubscribeNodes, Unlink, Unregister, WhereIs"
        )

    cdef inline int place_of(self, object msg) noexcept:
        """Which of the classes it is of: `MESSAGES` if of none."""
        cdef object cls = type(msg)
        cdef int which = 0
        # By identity: a class's own metaclass may say anything of equality and hash.
        while which < MESSAGES and PyTuple_GET_ITEM(self.classes, which) is not <PyObject*>cls:
            which += 1
        return which

    cdef bint is_own(self, object msg) noexcept:
        return self.place_of(msg) <= EXITING

    cdef Entry asker(self, Envelope envelope):
        """The entry of a control message's sender, or `None` if that life is over by now."""
        cdef PyObject* found
        if envelope.sender is None:
            raise ValueError(
                f"{type_name(envelope.msg)} needs a sender: it concerns the process that sends it"
            )
        found = self.executor.table.find(envelope.sender)
        if found is NULL or self.executor.backlog.is_stale(envelope.sender):
            return None
        return <Entry>found

    # What the runtime sends itself. Somebody might make such an object and send it: an empty one.

    cdef int notice(self, Notice notice) except -1:
        if notice.entry is not None:
            return self.executor.give_notice(notice.entry, notice.msg, notice.correlation_id)
        if notice.connection is not None:
            return send_down(
                self.executor, notice.connection, notice.monitoring, notice.reference, notice.msg
            )
        return 0

    cdef int start_process(self, Entry entry) except -1:
        # Another executor's process starts there.
        if entry.unstarted and entry.target is not None and entry.runtime is self.executor.scene:
            self.executor.start(entry)
        return 0

    cdef int discard(self, Discard request) except -1:
        cdef PyObject* found
        cdef Entry entry
        if request.pid is None:
            return 0
        found = self.executor.table.find(request.pid)
        if found is not NULL and (<Entry>found).target is request.target:
            # Held: the table's may be the only other reference.
            entry = <Entry>found
            if entry.kind == EXECUTOR:
                raise ValueError("the executor's own pid stays until it ends")
            self.executor.lives.end(entry, request.reason, request.crash)
        return 0

    cdef int undelivered(self, Undelivered letter) except -1:
        if letter.envelope is not None:
            self.executor.letters.drop(
                letter.envelope, letter.reason, letter.detail or "", letter.crash
            )
        return 0

    cdef int timer(self, Timer timer) except -1:
        cdef Entry entry
        cdef Alarm alarm
        cdef int fired
        cdef object msg
        if type(timer.owner) is Asked:
            return expire_ask(self.executor, <Asked>timer.owner, timer)
        if type(timer.owner) is not Entry:
            raise TypeError("a Timer is nothing to be sent")
        entry = <Entry>timer.owner
        fired = (<quiet_fired><void*>has_fired)(
            self.executor.timeouts, timer, self.executor.now_ns()
        )
        if fired < 0:
            # What the process chose as a key cannot be looked up any more.
            return self.executor.crash(entry, None, what_failed())
        if fired == 0:
            return 0
        if type(timer.correlation_id) is not Alarm:
            return self.executor.give_notice(
                entry, Timeout(timer.correlation_id), timer.correlation_id
            )
        alarm = <Alarm>timer.correlation_id
        msg = Tick(alarm.key, alarm.msg, alarm.missed) if alarm.period_ns else alarm.msg
        return self.executor.give_notice(entry, msg, correlation_id_or_none(alarm.key))

    cdef int connected(self, Connected request) except -1:
        if request.connection is None or self.executor.routes is None:
            return 0
        if request.is_told:
            return note_told(self.executor, request.connection)
        return add_connection(self.executor, request.connection)

    # What processes ask.

    cdef int start_timer(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef object known_by = request.correlation_id
        cdef bint repeats = request.repeat
        cdef Alarm alarm
        cdef int64_t delay_ns
        if request.msg is None and not repeats:
            correlation_id_in(request)
            delay_ns = delay_ms_of(request.delay_ms) * 1_000_000
        else:
            known_by = alarm = Alarm.__new__(Alarm)
            alarm.key = key_in(request)
            alarm.msg = request.msg
            if repeats:
                delay_ns = alarm.period_ns = period_ns_of(request.delay_ms)
            else:
                delay_ns = delay_ms_of(request.delay_ms) * 1_000_000
        if entry is None or entry.target is None:
            return 0
        delay_ns += self.executor.now_ns()
        if repeats:
            alarm.due_ns = delay_ns
        return self.executor.timeouts.start(entry, known_by, delay_ns)

    cdef int cancel_timer(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef object key = key_in(request)
        cdef bint acknowledge = request.acknowledge
        cdef bint was_active
        if entry is None:
            return 0
        was_active = self.executor.timeouts.cancel(entry, key)
        if acknowledge:
            self.executor.notifier.notify(
                entry, TimerCancelled(key, was_active), correlation_id_or_none(key)
            )
        return 0

    cdef int spawn(self, object request, Envelope envelope) except -1:
        cdef Pid pid = Pid(request.name, self.executor.node, request.group)
        cdef object process = request.process
        cdef object mailbox_max = request.mailbox_max
        cdef bint owned = request.owned
        cdef bint link = request.link or owned
        cdef bint monitor = request.monitor
        cdef Entry asker = None
        cdef str reason
        cdef int added
        self.executor.lives.check(pid, process, mailbox_max)
        if link or monitor:
            asker = self.asker(envelope)
            if asker is not None:
                check_linking(asker)
            elif link:
                # What it was to be linked with is over, and nobody else knows of it.
                return 0
        added = (<quiet_add><void*>add)(self.executor, pid, process, mailbox_max)
        if added < 0:
            # The request is a right one, and it is the process that cannot be spawned: who asked is
            # told. Where nobody can be told, it is a control message that cannot be followed.
            error = what_failed()
            if (
                type(error) is MemoryError
                or must_pass(error)
                or envelope.sender is None
                or self.executor.backlog.is_stale(envelope.sender)
            ):
                raise error
            reason = described(error)
        elif added == NAME_TAKEN:
            reason = "the name is taken"
        elif added == ENDING:
            reason = "the node shuts down"
        else:
            return 0 if asker is None else self.bind(asker, pid, link, monitor, owned)
        if envelope.sender is not None and not self.executor.backlog.is_stale(envelope.sender):
            self.executor.notifier.notify_pid(
                envelope.sender,
                SpawnFailed(pid, reason),
                envelope.correlation_id,
            )
        return 0

    cdef int bind(
        self, Entry asker, Pid pid, bint link, bint monitor, bint owned
    ) except -1:
        """Link and monitor a process from its first moment on; else it has none."""
        cdef Entry child = <Entry>self.executor.table.find(pid)
        cdef bint is_bound = False
        try:
            if link:
                begin_link(self.executor, asker, pid)
            if owned:
                owned_by(child, asker.pid)
            if monitor:
                self.executor.monitors.add(asker, pid)
            is_bound = True
        finally:
            if not is_bound:
                # It has not begun, so nobody has anything to be told.
                self.executor.lives.detach(child)
        return 0

    cdef int own(self, Pid pid, Pid owner) except -1:
        cdef PyObject* found = self.executor.table.find(pid)
        cdef Entry child
        cdef bint is_owned = False
        if found is NULL:
            return 0
        child = <Entry>found
        try:
            begin_link(self.executor, child, owner)
            owned_by(child, owner)
            is_owned = True
        finally:
            if not is_owned:
                self.executor.lives.detach(child)
        return 0

    cdef bint end_owned(
        self, Pid pid, Pid owner, object reason, object told, object msg
    ) except -1:
        cdef PyObject* found = self.executor.table.find(pid)
        cdef LinkEnd link = None if found is NULL else find_link(<Entry>found, owner)
        cdef Entry entry
        if link is None or not link.is_owned:
            return False
        # Held: the table's may be the only other reference.
        entry = <Entry>found
        if told is not None and RABBLE_IS_A(entry.target, told):
            self.executor.notifier.notify(entry, msg)
        else:
            self.executor.stop(entry, reason)
        return True

    cdef int stop(self, object request) except -1:
        cdef Pid pid = pid_in(request)
        cdef object reason = request.reason
        cdef PyObject* found
        cdef Entry entry
        if reason is None:
            reason = DownReason("stopped")
        elif type(reason) is not DownReason or reason.kind not in DownReason.STOP_KINDS:
            raise TypeError(
                f"Stop: reason must be a DownReason of kind "
                f"{', '.join(DownReason.STOP_KINDS)}, or None, not {bounded_repr(reason, 200)}"
            )
        if not same_node(pid.node, self.executor.node):
            raise ValueError(
                f"Stop: {pid} is no process of {self.executor.node}; a node stops its own "
                f"processes only, so send that process a message that has it stop itself"
            )
        found = self.executor.table.find(pid)
        if found is NULL:
            return 0
        entry = <Entry>found
        if entry.kind == EXECUTOR:
            raise ValueError("the executor is not stopped by a message; use node.shutdown()")
        if entry.kind == CALLBACK:
            raise ValueError(f"{pid} is the runtime's own and is not stopped by a message")
        return self.executor.stop(entry, reason)

    cdef int monitor(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef Pid pid = pid_in(request)
        cdef MonitorStatus status
        cdef bint known
        if entry is None:
            return 0
        known = entry.monitoring is not None and entry.monitoring.has(pid)
        status = self.executor.monitors.add(entry, pid)
        if status == MONITORED:
            if self.executor.shutdown_sent and not known and pid == self.executor.pid:
                # A first Monitor while the node drains: what all others were sent came before it.
                return self.executor.send_shutdown(entry.pid)
            return 0
        reason = "no_process" if status == NO_PROCESS else "disconnected"
        return self.executor.notifier.notify(
            entry, Down(pid, DownReason(reason))
        )

    cdef int demonitor(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef Pid pid = pid_in(request)
        if entry is not None:
            self.executor.monitors.remove(entry, pid)
        return 0

    cdef int link(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef Pid pid = pid_in(request)
        return 0 if entry is None else begin_link(self.executor, entry, pid)

    cdef int unlink(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef Pid pid = pid_in(request)
        return remove_link(self.executor.monitors, entry, envelope.sender, pid)

    cdef int get_metrics(self, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        if entry is not None:
            self.executor.notifier.notify(
                entry, self.executor.hooks.target.metrics(), envelope.correlation_id
            )
        return 0

    cdef int subscribe_nodes(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef bint wanted = request.wanted
        cdef Connection connection
        cdef bint known
        if entry is None:
            return 0
        known = entry.subscribed & NODES
        self.executor.lives.subscribe(entry, NODES, wanted)
        if wanted and not known and self.executor.routes is not None:
            for connection in self.executor.routes.connections:
                self.executor.notifier.notify(
                    entry,
                    NodeUp(
                        connection.session.peer,
                        connection.session.incarnation,
                        connection.session.labels,
                    ),
                )
        return 0

    cdef int subscribe_dead_letters(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef bint wanted = request.wanted
        if entry is not None:
            self.executor.lives.subscribe(entry, DEAD_LETTERS, wanted)
        return 0

    cdef int end_ask(self, Asked asked, Envelope envelope) except -1:
        return take_answer(self.executor, asked, envelope)

    cdef int pass_to_directory(self, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        if entry is None:
            return 0
        return ask_directory(self.executor, self.directory, entry, envelope)

    cdef int disconnect(self, Connection connection) except -1:
        return end_connection(self.executor, connection)

    cdef int let_produce(self) except -1:
        return self.producers.go_on()

    cdef int end_producing(self, Connection connection) except -1:
        return self.producers.end(connection)


cdef Pid pid_in(object request):
    """The pid of a control message. `TypeError` if it has none."""
    pid = request.pid
    if type(pid) is not Pid:
        raise not_a_pid(f"{type_name(request)}: pid", "Pid", pid)
    return <Pid>pid


cdef CorrelationId correlation_id_in(object request):
    """The correlation id of a control message. `TypeError` if it has none."""
    correlation_id = request.correlation_id
    if type(correlation_id) is not CorrelationId:
        raise not_a_correlation_id(
            f"{type_name(request)}: correlation_id", "CorrelationId", correlation_id
        )
    return <CorrelationId>correlation_id


cdef object key_in(object request):
    """The key of a timer that is started or cancelled. `TypeError` if it is none."""
    key = request.correlation_id
    if key is None:
        correlation_id_in(request)
    if type(key) is not CorrelationId and RABBLE_IS_UNHASHABLE(key):
        raise TypeError(
            f"{type_name(request)}: the key of a timer must be hashable, as a str, an int or a "
            f"CorrelationId is, not {given(key)}"
        )
    return key


cdef CorrelationId correlation_id_or_none(object key):
    return <CorrelationId>key if type(key) is CorrelationId else None


cdef int add(Executor executor, Pid pid, object process, object mailbox_max) except -1:
    return executor.add(pid, process, mailbox_max, False)
