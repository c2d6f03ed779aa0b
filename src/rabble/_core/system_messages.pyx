"""System messages: what processes ask of their runtime, and the runtime of its executor.

Each is handled in the executor's thread, in the message's turn. What its handler raises is an error
of the process that sent the message, and ends it; so a handler looks at all that the message has
before it does anything: half a request is none.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from rabble._core.dispatch cimport CALLBACK, EXECUTOR, NODES, Entry
from rabble._core.envelope cimport Envelope
from rabble._core.distribution cimport add_connection, end_connection, handle_event, send_down
from rabble._core.executor cimport ENDING, NAME_TAKEN, Added, Executor, MessageHandler
from rabble._core.frame_decoder cimport PeerEvent
from rabble._core.ids cimport CorrelationId, Pid, same_node
from rabble._core.monitors cimport MONITORED, NO_PROCESS, MonitorStatus
from rabble._core.notices cimport Connected, Discard, Notice, Undelivered
from rabble._core.poller cimport Connection
from rabble._core.texts cimport bounded_repr, type_name
from rabble._core.timers cimport Timer
from rabble._core.timers import validate_delay_ms

__all__ = ["SystemMessages"]

# In the order of `SystemMessages.classes`.
cdef enum Message:
    NOTICE
    TIMER
    START_TIMER
    CANCEL_TIMER
    SPAWN
    START_PROCESS
    MONITOR_PID
    DEMONITOR_PID
    STOP
    PEER_EVENT
    DISCARD
    NOT_DELIVERED
    CONNECTED
    SUBSCRIBE_NODES
    GET_METRICS
    MESSAGES

#: What a process may give as the reason of a Stop: the others are the runtime's to say.
cdef tuple STOP_KINDS = ("stopped", "crashed", "shutdown")


@cython.final
cdef class SystemMessages(MessageHandler):
    """The handlers of one executor's control messages; making it puts them into place.

    :param executor: whose.
    """

    def __cinit__(self, Executor executor not None):
        protocol = executor.protocol
        self.executor = executor
        self.timeout_class = protocol.Timeout
        self.down_reason = protocol.DownReason
        self.classes = (
            Notice,
            Timer,
            protocol.StartTimer,
            protocol.CancelTimer,
            protocol.Spawn,
            Entry,
            protocol.Monitor,
            protocol.Demonitor,
            protocol.Stop,
            PeerEvent,
            Discard,
            Undelivered,
            Connected,
            protocol.SubscribeNodes,
            protocol.GetMetrics,
        )
        executor.system_messages = self

    cdef int handle(self, Envelope envelope) except -1:
        cdef object msg = envelope.msg
        cdef object cls = type(msg)
        cdef int which = 0
        # By identity: a class's own metaclass may say anything of equality and hash.
        while which < MESSAGES and cls is not self.classes[which]:
            which += 1
        if which == NOTICE:
            return self.notice(<Notice>msg)
        if which == TIMER:
            return self.timer(<Timer>msg)
        if which == START_TIMER:
            return self.start_timer(msg, envelope)
        if which == CANCEL_TIMER:
            return self.cancel_timer(msg, envelope)
        if which == SPAWN:
            return self.spawn(msg, envelope)
        if which == START_PROCESS:
            return self.start_process(<Entry>msg)
        if which == MONITOR_PID:
            return self.monitor(msg, envelope)
        if which == DEMONITOR_PID:
            return self.demonitor(msg, envelope)
        if which == STOP:
            return self.stop(msg)
        if which == PEER_EVENT:
            return handle_event(self.executor, <PeerEvent>msg)
        if which == DISCARD:
            return self.discard(<Discard>msg)
        if which == NOT_DELIVERED:
            return self.undelivered(<Undelivered>msg)
        if which == CONNECTED:
            return self.connected(<Connected>msg)
        if which == SUBSCRIBE_NODES:
            return self.subscribe_nodes(msg, envelope)
        if which == GET_METRICS:
            return self.get_metrics(envelope)
        raise TypeError(
            f"the executor was sent a {type_name(msg)}; it understands "
            "CancelTimer, Demonitor, GetMetrics, Monitor, Spawn, StartTimer, Stop, SubscribeNodes"
        )

    cdef Entry asker(self, Envelope envelope):
        """The entry of who sent a control message, or `None` if that life is over by now."""
        cdef PyObject* found
        if envelope.sender is None:
            raise ValueError(
                f"{type_name(envelope.msg)} needs a sender: it concerns who sent it"
            )
        found = self.executor.table.find(envelope.sender)
        if found is NULL or self.executor.backlog.is_stale(envelope.sender):
            return None
        return <Entry>found

    # What the runtime sends itself. Somebody might make such an object and send it: an empty one.

    cdef int notice(self, Notice notice) except -1:
        if notice.entry is not None:
            return self.executor.notify_now(notice.entry, notice.msg, notice.correlation_id)
        if notice.connection is not None:
            return send_down(self.executor, notice.connection, notice.monitoring, notice.msg)
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
            self.executor.remove_entry(entry, request.reason)
        return 0

    cdef int undelivered(self, Undelivered letter) except -1:
        if letter.envelope is not None:
            self.executor.drop(letter.envelope, letter.reason)
        return 0

    cdef int timer(self, Timer timer) except -1:
        cdef Entry entry
        if type(timer.owner) is not Entry:
            raise TypeError("a Timer is nothing to be sent")
        entry = <Entry>timer.owner
        if self.executor.due_queued > 0:
            self.executor.due_queued -= 1
        # Cancelled, replaced, or its process ended, while it stood in the queue.
        if entry.timers is None or entry.timers.get(timer.correlation_id) is not timer:
            return 0
        del entry.timers[timer.correlation_id]
        return self.executor.notify_now(
            entry, self.timeout_class(timer.correlation_id), timer.correlation_id
        )

    cdef int connected(self, Connected request) except -1:
        if request.connection is not None and self.executor.routes is not None:
            add_connection(self.executor, request.connection)
        return 0

    # What processes ask.

    cdef int start_timer(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef CorrelationId correlation_id = request.correlation_id
        cdef int64_t delay_ms = validate_delay_ms(request.delay_ms)
        cdef int64_t due_ns
        cdef Timer old, timer
        if correlation_id is None:
            raise TypeError("StartTimer: correlation_id must be a CorrelationId, not None")
        if entry is None or entry.target is None:
            return 0
        # Rounded up to the next tick, from the true time and not the batch's: never early.
        due_ns = self.executor.now_ns() - self.executor.epoch_ns + delay_ms * 1_000_000
        if entry.timers is None:
            entry.timers = {}
        old = entry.timers.get(correlation_id)
        timer = self.executor.wheel.c_start(
            entry, correlation_id, (due_ns + 999_999) // 1_000_000 - self.executor.wheel.now
        )
        entry.timers[correlation_id] = timer
        if old is not None:
            self.executor.wheel.c_cancel(old)
        return 0

    cdef int cancel_timer(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef CorrelationId correlation_id = request.correlation_id
        cdef bint acknowledge = request.acknowledge
        cdef Timer timer = None
        if entry is None:
            return 0
        if entry.timers is not None:
            timer = entry.timers.pop(correlation_id, None)
            if timer is not None:
                self.executor.wheel.c_cancel(timer)
        if acknowledge:
            self.executor.notify(
                entry,
                self.executor.protocol.TimerCancelled(correlation_id, timer is not None),
                correlation_id,
            )
        return 0

    cdef int spawn(self, object request, Envelope envelope) except -1:
        cdef Pid pid = Pid(request.name, self.executor.node, request.group)
        cdef Added added = self.executor.add(pid, request.process, request.mailbox_max, False)
        cdef str reason
        if added == NAME_TAKEN:
            reason = "the name is taken"
        elif added == ENDING:
            reason = "the node shuts down"
        else:
            return 0
        if envelope.sender is not None and not self.executor.backlog.is_stale(envelope.sender):
            self.executor.tell(
                envelope.sender,
                self.executor.protocol.SpawnFailed(pid, reason),
                envelope.correlation_id,
            )
        return 0

    cdef int stop(self, object request) except -1:
        cdef Pid pid = <Pid?>request.pid
        cdef object reason = request.reason
        cdef PyObject* found
        cdef Entry entry
        if reason is None:
            reason = self.down_reason("stopped")
        elif type(reason) is not self.down_reason or reason.kind not in STOP_KINDS:
            raise TypeError(
                f"Stop: reason must be a DownReason of kind {', '.join(STOP_KINDS)}, or None, "
                f"not {bounded_repr(reason, 200)}"
            )
        if pid is None or not same_node(pid.node, self.executor.node):
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
        return self.executor.remove_entry(entry, reason)

    cdef int monitor(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef Pid pid = <Pid?>request.pid
        cdef MonitorStatus status
        cdef bint known
        if pid is None:
            raise TypeError("Monitor: pid must be a Pid, not None")
        if entry is None:
            return 0
        known = entry.monitoring is not None and pid in entry.monitoring
        status = self.executor.monitors.add(entry, pid)
        if status == MONITORED:
            if self.executor.shutdown_sent and not known and pid == self.executor.pid:
                # A first Monitor while the node drains: what all others were sent came before it.
                return self.executor.send_shutdown(entry.pid)
            return 0
        reason = "no_process" if status == NO_PROCESS else "disconnected"
        return self.executor.notify(
            entry, self.executor.protocol.Down(pid, self.down_reason(reason))
        )

    cdef int demonitor(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef Pid pid = <Pid?>request.pid
        if pid is None:
            raise TypeError("Demonitor: pid must be a Pid, not None")
        if entry is not None:
            self.executor.monitors.remove(entry, pid)
        return 0

    cdef int get_metrics(self, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        if entry is not None:
            self.executor.notify(entry, self.executor.hooks.metrics(), envelope.correlation_id)
        return 0

    cdef int subscribe_nodes(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef bint wanted = request.wanted
        cdef Connection connection
        cdef bint known
        if entry is None:
            return 0
        known = entry.subscribed & NODES
        self.executor.subscribe(entry, self.executor.node_subscribers, NODES, wanted)
        if wanted and not known and self.executor.routes is not None:
            for connection in self.executor.routes.connections:
                self.executor.notify(
                    entry,
                    self.executor.protocol.NodeUp(
                        connection.session.peer, connection.session.incarnation
                    ),
                )
        return 0

    cdef int disconnect(self, Connection connection) except -1:
        return end_connection(self.executor, connection)
