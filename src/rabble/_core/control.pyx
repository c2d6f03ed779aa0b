"""Control messages: what processes ask of their runtime, and the runtime of its executor.

Each handler is called with the message and its envelope, in the executor's thread, in the message's
turn. What it raises is an error of the process that sent the message, and ends it.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.executor cimport Discard, Executor, Linked, Undelivered
from rabble._core.frame cimport DEMONITOR, DOWN, LOST, MONITOR, UNDELIVERED
from rabble._core.hear cimport HEARD_UNDECODABLE, Heard
from rabble._core.ids cimport CorrelationId, Pid, same_node
from rabble._core.link cimport Link
from rabble._core.poll cimport Connection
from rabble._core.table cimport CALLBACK, EXECUTOR, PROCESS, Entry
from rabble._core.timers cimport Timer
from rabble._core.timers import validate_delay_ms

__all__ = ["Control"]


@cython.final
cdef class Control:
    """The handlers of one executor's control messages; making it puts them into place."""

    def __init__(self, Executor executor not None):
        protocol = executor.protocol
        self.executor = executor
        self.timeout_class = protocol.Timeout
        self.down_reason = protocol.DownReason
        executor.controls = {
            protocol.StartTimer: self.start_timer,
            protocol.CancelTimer: self.cancel_timer,
            protocol.Spawn: self.spawn,
            protocol.Stop: self.stop,
            protocol.Monitor: self.monitor,
            protocol.Demonitor: self.demonitor,
            protocol.GetMetrics: self.get_metrics,
            protocol.SubscribeNodes: self.subscribe_nodes,
            Timer: self.timer,
            Entry: self.start_process,
            Discard: self.discard,
            Undelivered: self.undelivered,
            Linked: self.linked,
            Heard: self.heard,
        }

    cdef Entry asker(self, Envelope envelope):
        """The entry of who sent a control message, or `None` if it is gone by now."""
        cdef PyObject* found
        if envelope.sender is None:
            raise ValueError(
                f"{type(envelope.msg).__name__} needs a sender: it concerns who sent it"
            )
        found = self.executor.table.find(envelope.sender)
        return None if found is NULL else <Entry>found

    def start_process(self, Entry entry not None, Envelope envelope not None):
        if entry.unstarted and entry.target is not None:
            self.executor.start(entry)

    def discard(self, Discard request not None, Envelope envelope not None):
        cdef PyObject* found = self.executor.table.find(request.pid)
        cdef Entry entry
        if found is not NULL and (<Entry>found).target is request.target:
            entry = <Entry>found
            self.executor.remove_entry(entry, request.reason)

    def undelivered(self, Undelivered letter not None, Envelope envelope not None):
        self.executor.drop(letter.envelope, letter.reason)

    def timer(self, Timer timer not None, Envelope envelope not None):
        cdef Entry entry = timer.owner
        cdef Envelope timeout
        self.executor.due_queued -= 1
        # Cancelled, replaced, or its process ended, while it stood in the queue.
        if entry.timers is None or entry.timers.get(timer.correlation_id) is not timer:
            return
        del entry.timers[timer.correlation_id]
        timeout = new_envelope(
            entry.pid,
            self.timeout_class(timer.correlation_id),
            self.executor.pid,
            timer.correlation_id,
        )
        if entry.kind == PROCESS:
            self.executor.give_to_process(entry, timeout)
        else:
            self.executor.give_to_target(entry, timeout)

    def start_timer(self, request, Envelope envelope not None):
        cdef Entry entry = self.asker(envelope)
        cdef CorrelationId correlation_id = request.correlation_id
        cdef int64_t due_ns
        cdef Timer old
        if entry is None:
            return
        # Rounded up to the next tick, from the true time and not the batch's: never early.
        due_ns = self.executor.now_ns() - self.executor.epoch_ns + <int64_t>validate_delay_ms(
            request.delay_ms
        ) * 1_000_000
        if entry.timers is None:
            entry.timers = {}
        else:
            old = entry.timers.get(correlation_id)
            if old is not None:
                self.executor.wheel.c_cancel(old)
        entry.timers[correlation_id] = self.executor.wheel.c_start(
            entry, correlation_id, (due_ns + 999_999) // 1_000_000 - self.executor.wheel.now
        )

    def cancel_timer(self, request, Envelope envelope not None):
        cdef Entry entry = self.asker(envelope)
        cdef Timer timer = None
        if entry is None:
            return
        if entry.timers is not None:
            timer = entry.timers.pop(request.correlation_id, None)
            if timer is not None:
                self.executor.wheel.c_cancel(timer)
        if request.acknowledge:
            self.executor.tell(
                entry.pid,
                self.executor.protocol.TimerCancelled(request.correlation_id, timer is not None),
                request.correlation_id,
            )

    def spawn(self, request, Envelope envelope not None):
        cdef Pid pid = Pid(request.name, self.executor.node, request.group)
        if not self.executor.add(pid, request.process, request.mailbox_max):
            reason = "the node shuts down" if self.executor.is_stopping else "the name is taken"
            if envelope.sender is not None:
                self.executor.tell(
                    envelope.sender,
                    self.executor.protocol.SpawnFailed(pid, reason),
                    envelope.correlation_id,
                )

    def stop(self, request, Envelope envelope not None):
        cdef PyObject* found = self.executor.table.find(<Pid?>request.pid)
        cdef Entry entry
        if found is NULL:
            return
        if (<Entry>found).kind == EXECUTOR:
            raise ValueError("the executor is not stopped by a message; use node.shutdown()")
        entry = <Entry>found
        self.executor.remove_entry(entry, request.reason or self.down_reason("stopped"))

    def monitor(self, request, Envelope envelope not None):
        cdef Entry entry = self.asker(envelope)
        cdef Pid pid = <Pid?>request.pid
        cdef PyObject* found = self.executor.table.find(pid)
        cdef Entry watched
        if entry is None:
            return
        if found is NULL:
            reason = "no_process"
            if not same_node(pid.node, self.executor.node):
                if self.executor.routes is not None and self.executor.watch(entry.pid, pid):
                    if entry.watched is None:
                        entry.watched = {}
                    entry.watched[pid] = True
                    return
                reason = "disconnected"
            self.executor.tell(
                entry.pid, self.executor.protocol.Down(pid, self.down_reason(reason))
            )
            return
        watched = <Entry>found
        if watched.watchers is None:
            watched.watchers = {}
        if entry.watched is None:
            entry.watched = {}
        watched.watchers[entry.pid] = True
        entry.watched[pid] = True

    def demonitor(self, request, Envelope envelope not None):
        cdef Entry entry = self.asker(envelope)
        cdef Pid pid = <Pid?>request.pid
        cdef PyObject* found = self.executor.table.find(pid)
        if found is not NULL and entry is not None and (<Entry>found).watchers is not None:
            (<Entry>found).watchers.pop(entry.pid, None)
        if entry is not None and entry.watched is not None:
            if entry.watched.pop(pid, None) and found is NULL and self.executor.routes is not None:
                self.executor.unwatch(entry.pid, pid)

    def get_metrics(self, request, Envelope envelope not None):
        cdef Entry entry = self.asker(envelope)
        if entry is not None:
            self.executor.tell(entry.pid, self.executor.observer.metrics(), envelope.correlation_id)

    def subscribe_nodes(self, request, Envelope envelope not None):
        cdef Entry entry = self.asker(envelope)
        cdef Connection connection
        if entry is None:
            return
        known = entry.pid in self.executor.node_subscribers
        self.executor.subscribe_nodes(entry.pid, request.wanted)
        if request.wanted and not known and self.executor.routes is not None:
            for connection in self.executor.routes.connections:
                self.executor.tell(
                    entry.pid,
                    self.executor.protocol.NodeUp(
                        connection.link.peer, connection.link.incarnation
                    ),
                )

    # What other nodes say.

    def linked(self, Linked request not None, Envelope envelope not None):
        self.executor.connect(request.connection)

    def heard(self, Heard heard not None, Envelope envelope not None):
        cdef Link link = heard.link
        cdef Connection connection = self.executor.routes.find(link.peer)
        if connection is None or connection.link is not link:
            # It ended, and all that it meant with it, while this stood in the queue.
            return
        if heard.kind == MONITOR:
            self.watch(heard, connection)
        elif heard.kind == DEMONITOR:
            self.unwatch(heard, connection)
        elif heard.kind == DOWN:
            self.down(heard, connection)
        elif heard.kind == UNDELIVERED:
            self.bounced(heard)
        elif heard.kind == LOST:
            self.executor.count_lost(link.peer, heard.count)
        else:
            self.unfit(heard)

    cdef int watch(self, Heard heard, Connection connection) except -1:
        """A process of the peer monitors one of this node."""
        cdef PyObject* found = self.executor.table.find(heard.to)
        cdef Entry watched
        cdef dict watchers
        if found is NULL or (<Entry>found).kind == EXECUTOR:
            connection.speaker.say_down(
                heard.about, heard.to, self.executor.protocol.DOWN_CODES["no_process"], 0, ""
            )
            self.executor.routes.answered(connection)
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
            connection.watched_count += 1
        if watched.watchers is None:
            watched.watchers = {}
        watched.watchers[heard.about] = True
        if watchers is None:
            watchers = connection.watched[heard.to] = {}
        watchers[heard.about] = True
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
        if watchers is None or not watchers.pop(heard.to, None):
            return 0
        if not watchers:
            del connection.watches[heard.about]
        found = self.executor.table.find(heard.to)
        if found is not NULL and (<Entry>found).watched is not None:
            (<Entry>found).watched.pop(heard.about, None)
        kind = self.executor.protocol.DOWN_KINDS[heard.why]
        self.executor.tell(
            heard.to,
            self.executor.protocol.Down(heard.about, self.down_reason(kind, heard.detail)),
        )
        return 0

    cdef int bounced(self, Heard heard) except -1:
        """An envelope became a dead letter at the peer."""
        protocol = self.executor.protocol
        reason = protocol.UNDELIVERED_REASONS[heard.why]
        bounce = protocol.Bounced(heard.link.peer, heard.to, reason, heard.correlation_id)
        cdef PyObject* found = self.executor.table.find(heard.to)
        if found is not NULL and (<Entry>found).kind == CALLBACK:
            self.executor.tell(heard.to, bounce, heard.correlation_id)
        for pid in self.executor.subscribers:
            self.executor.tell(<Pid>pid, bounce)
        return 0

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
