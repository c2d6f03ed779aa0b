"""Control messages: what processes ask of their runtime, and the runtime of its executor.

Each is handled in the executor's thread, in the message's turn. What its handler raises is an error
of the process that sent the message, and ends it; so a handler looks at all that the message has
before it does anything: half a request is none.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.executor cimport (
    ENDING,
    TAKEN,
    Added,
    Controls,
    Discard,
    Executor,
    Linked,
    Notice,
    Undelivered,
)
from rabble._core.frame cimport DEMONITOR, DOWN, LOST, MONITOR, UNDELIVERED
from rabble._core.hear cimport HEARD_UNDECODABLE, Heard
from rabble._core.ids cimport CorrelationId, Pid, same_node
from rabble._core.link cimport Link
from rabble._core.poll cimport Connection
from rabble._core.table cimport CALLBACK, EXECUTOR, NODES, Entry
from rabble._core.texts cimport bounded_repr, type_name
from rabble._core.timers cimport Timer
from rabble._core.timers import validate_delay_ms

__all__ = ["Control"]

# In the order of `Control.classes`.
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
    HEARD
    DISCARD
    NOT_DELIVERED
    LINKED
    SUBSCRIBE_NODES
    GET_METRICS
    MESSAGES

#: What a process may give as the reason of a Stop: the others are the runtime's to say.
cdef tuple STOP_KINDS = ("stopped", "crashed", "shutdown")


@cython.final
cdef class Control(Controls):
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
            Heard,
            Discard,
            Undelivered,
            Linked,
            protocol.SubscribeNodes,
            protocol.GetMetrics,
        )
        executor.controls = self

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
        if which == HEARD:
            return self.heard(<Heard>msg)
        if which == DISCARD:
            return self.discard(<Discard>msg)
        if which == NOT_DELIVERED:
            return self.undelivered(<Undelivered>msg)
        if which == LINKED:
            return self.linked(<Linked>msg)
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
        if found is NULL or self.executor.is_stale(envelope.sender):
            return None
        return <Entry>found

    # What the runtime says itself. Somebody might make such an object and send it: an empty one.

    cdef int notice(self, Notice notice) except -1:
        if notice.entry is not None:
            return self.executor.notify_now(notice.entry, notice.msg, notice.correlation_id)
        if notice.connection is not None:
            return self.executor.say_down(notice.connection, notice.watcher, notice.msg)
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

    cdef int linked(self, Linked request) except -1:
        if request.connection is not None and self.executor.routes is not None:
            self.executor.connect(request.connection)
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
        if added == TAKEN:
            reason = "the name is taken"
        elif added == ENDING:
            reason = "the node shuts down"
        else:
            return 0
        if envelope.sender is not None and not self.executor.is_stale(envelope.sender):
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
        cdef PyObject* found
        cdef Entry watched
        cdef bint known
        if pid is None:
            raise TypeError("Monitor: pid must be a Pid, not None")
        if entry is None:
            return 0
        found = self.executor.table.find(pid)
        if found is NULL:
            reason = "no_process"
            if not same_node(pid.node, self.executor.node):
                if self.executor.routes is not None and self.executor.watch(entry.pid, pid):
                    if entry.watched is None:
                        entry.watched = {}
                    entry.watched[pid] = True
                    return 0
                reason = "disconnected"
            return self.executor.notify(
                entry, self.executor.protocol.Down(pid, self.down_reason(reason))
            )
        watched = <Entry>found
        known = entry.watched is not None and pid in entry.watched
        if watched.watchers is None:
            watched.watchers = {}
        if entry.watched is None:
            entry.watched = {}
        # In this order: where there is no memory for the second one, nobody's successor is told.
        entry.watched[pid] = True
        watched.watchers[entry.pid] = True
        if watched.kind == EXECUTOR and self.executor.shutdown_told and not known:
            # A first Monitor while the node drains: what all others were sent came before it.
            return self.executor.say_shutdown(entry.pid)
        return 0

    cdef int demonitor(self, object request, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        cdef Pid pid = <Pid?>request.pid
        cdef PyObject* found
        if pid is None:
            raise TypeError("Demonitor: pid must be a Pid, not None")
        found = self.executor.table.find(pid)
        if found is not NULL and entry is not None and (<Entry>found).watchers is not None:
            (<Entry>found).watchers.pop(entry.pid, None)
        if entry is not None and entry.watched is not None:
            if entry.watched.pop(pid, None) and found is NULL and self.executor.routes is not None:
                self.executor.unwatch(entry.pid, pid)
        return 0

    cdef int get_metrics(self, Envelope envelope) except -1:
        cdef Entry entry = self.asker(envelope)
        if entry is not None:
            self.executor.notify(entry, self.executor.observer.metrics(), envelope.correlation_id)
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
                        connection.link.peer, connection.link.incarnation
                    ),
                )
        return 0

    # What other nodes say.

    cdef int heard(self, Heard heard) except -1:
        cdef Link link
        cdef Connection connection
        if type(heard.link) is not Link or self.executor.routes is None:
            return 0
        link = <Link>heard.link
        connection = self.executor.routes.find(link.peer)
        if connection is None or connection.link is not link:
            # It ended, and all that it meant with it, while this stood in the queue.
            return 0
        if heard.kind == MONITOR:
            return self.watch(heard, connection)
        if heard.kind == DEMONITOR:
            return self.unwatch(heard, connection)
        if heard.kind == DOWN:
            return self.down(heard, connection)
        if heard.kind == UNDELIVERED:
            return self.bounced(heard)
        if heard.kind == LOST:
            return self.executor.count_lost(link.peer, heard.count)
        return self.unfit(heard)

    cdef int watch(self, Heard heard, Connection connection) except -1:
        """A process of the peer monitors one of this node."""
        cdef Notice notice
        cdef PyObject* found = self.executor.table.find(heard.to)
        cdef Entry watched
        cdef dict watchers
        if found is NULL or (<Entry>found).kind == EXECUTOR:
            # In its turn: what a life that has ended sent may stand in the queue.
            notice = Notice.__new__(Notice)
            notice.connection = connection
            notice.watcher = heard.about
            notice.msg = self.executor.protocol.Down(heard.to, self.down_reason("no_process"))
            self.executor.run_queue.put(new_envelope(self.executor.pid, notice, None, None))
            return 0
        watched = <Entry>found
        watchers = connection.watched.get(heard.to)
        if watchers is None or heard.about not in watchers:
            if connection.watched_count >= self.executor.watches_max:
                connection.speaker.say_down(
                    heard.about, heard.to, self.executor.protocol.DOWN_CODES["refused"], 0,
                    f"{self.executor.node} lets a peer monitor no more than "
                    f"Limits.peer_watches_max, {self.executor.watches_max}",
                )
                self.executor.routes.answered(connection)
                return 0
        if watched.watchers is None:
            watched.watchers = {}
        if watchers is None:
            watchers = connection.watched[heard.to] = {}
        if heard.about not in watchers:
            # Counted when it stands there, and not if there is no memory for it.
            watchers[heard.about] = True
            connection.watched_count += 1
        watched.watchers[heard.about] = True
        return 0

    cdef int unwatch(self, Heard heard, Connection connection) except -1:
        cdef PyObject* found = self.executor.table.find(heard.to)
        cdef dict watchers = connection.watched.get(heard.to)
        if watchers is not None:
            if watchers.pop(heard.about, None):
                connection.watched_count -= 1
            if not watchers:
                del connection.watched[heard.to]
        if found is not NULL and (<Entry>found).watchers is not None:
            (<Entry>found).watchers.pop(heard.about, None)
        return 0

    cdef int down(self, Heard heard, Connection connection) except -1:
        """A process of the peer ended that one of this node monitors, if it still does."""
        cdef dict watchers = connection.watches.get(heard.about)
        cdef PyObject* found
        cdef Entry entry
        if watchers is None or not watchers.pop(heard.to, None):
            return 0
        if not watchers:
            del connection.watches[heard.about]
        found = self.executor.table.find(heard.to)
        if found is NULL:
            return 0
        entry = <Entry>found
        if entry.watched is not None:
            entry.watched.pop(heard.about, None)
        kind = self.executor.protocol.DOWN_KINDS[heard.why]
        # At once: what the next life of that name has sent may stand in the queue already.
        return self.executor.notify_now(
            entry,
            self.executor.protocol.Down(
                heard.about, self.down_reason(kind, heard.detail), heard.life
            ),
        )

    cdef int bounced(self, Heard heard) except -1:
        """An envelope became a dead letter at the peer."""
        protocol = self.executor.protocol
        reason = protocol.UNDELIVERED_REASONS[heard.why]
        bounce = protocol.Bounced(heard.link.peer, heard.to, reason, heard.correlation_id)
        cdef PyObject* found = self.executor.table.find(heard.to)
        if found is not NULL and (<Entry>found).kind == CALLBACK:
            self.executor.notify(<Entry>found, bounce, heard.correlation_id)
        return self.executor.notify_all(self.executor.letter_subscribers, bounce)

    cdef int unfit(self, Heard heard) except -1:
        """An envelope came that is for nobody here, or that this node cannot build."""
        cdef Envelope envelope = new_envelope(
            heard.to, None, heard.about, heard.correlation_id
        )
        reasons = self.executor.protocol.DeadLetterReason
        if heard.kind == HEARD_UNDECODABLE:
            self.executor.observer.undecodable(envelope, heard.detail)
            self.executor.drop(envelope, reasons.UNDECODABLE)
            if heard.about is not None and heard.correlation_id is None:
                # The one dead letter whose sender is told in any case: it is a defect of theirs.
                self.executor.say_undelivered(envelope, reasons.UNDECODABLE)
        else:
            self.executor.drop(envelope, reasons.REFUSED)
        return 0
