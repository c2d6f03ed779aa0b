"""Distribution: what happens per connection, and what other nodes send besides envelopes.

What passes per message stays in `routes` and the executor. All of it belongs to the executor's
thread, and runs between two deliveries.
"""

from cpython.object cimport PyObject

from rabble._core.dispatch cimport CALLBACK, Entry
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.executor cimport Executor, admit_newest
from rabble._core.frame cimport DEMONITOR, DOWN, LOST, MONITOR, UNDELIVERED
from rabble._core.frame_decoder cimport EVENT_UNDECODABLE, PeerEvent
from rabble._core.ids cimport NodeId, Pid
from rabble._core.monitors cimport NO_PROCESS, TOO_MANY, MonitorStatus
from rabble._core.notices cimport Notice
from rabble._core.poller cimport Connection
from rabble._core.session cimport Session

__all__ = []


cdef int add_connection(Executor executor, Connection connection) except -1:
    """A connection to a node is established."""
    cdef Connection old = executor.routes.by_name.get(connection.session.peer.name)
    cdef size_t before = executor.run_queue.count()
    if old is not None:
        executor.routes.receive_all(old, executor.run_queue)
        if executor.backlog.limited and executor.run_queue.count() != before:
            admit_newest(executor, executor.run_queue.count() - before)
        end_connection(executor, old)
    executor.routes.add(connection)
    up = executor.protocol.NodeUp(connection.session.peer, connection.session.incarnation)
    return executor.notify_all(executor.node_subscribers, up)


cdef int end_connection(Executor executor, Connection connection) except -1:
    """A connection has come to its end: so has, for this node, all that lives behind it."""
    cdef dict pairs, monitored_there
    cdef Envelope envelope
    cdef Entry entry
    cdef NodeId node = connection.session.peer
    if not executor.routes.remove(connection):
        return 0
    # What was sent before must not reach the node's next start.
    executor.poll(executor.scene.batch_ns)
    for envelope in executor.backlog.take_all_for(node):
        executor.drop(envelope, executor.protocol.DeadLetterReason.NOT_CONNECTED)
    executor.routes.shrunk(executor.backlog.popped + executor.run_queue.count())
    monitored_there = executor.monitors.forget_connection(connection)
    why = executor.hooks.why_ended(connection)
    if why == "shutdown":
        reason = executor.protocol.DownReason("shutdown", f"{node} ended")
    else:
        reason = executor.protocol.DownReason(
            "disconnected", f"the connection to {node} ended: {why}"
        )
    for monitored, pairs in monitored_there.items():
        down = executor.protocol.Down(monitored, reason)
        for monitoring in pairs:
            entry = executor.monitors.forget_remote(<Pid>monitoring, <Pid>monitored)
            if entry is not None:
                executor.notify(entry, down)
    down = executor.protocol.NodeDown(node, connection.session.incarnation, why)
    executor.notify_all(executor.node_subscribers, down)
    executor.hooks.disconnected(connection)
    return 0


cdef int handle_event(Executor executor, PeerEvent event) except -1:
    cdef Session session
    cdef Connection connection
    if type(event.session) is not Session or executor.routes is None:
        return 0
    session = <Session>event.session
    connection = executor.routes.find(session.peer)
    if connection is None or connection.session is not session:
        # It ended, and all that it meant with it, while this stood in the queue.
        return 0
    if event.kind == MONITOR:
        return add_monitor(executor, event, connection)
    if event.kind == DEMONITOR:
        return remove_monitor(executor, event, connection)
    if event.kind == DOWN:
        return deliver_down(executor, event, connection)
    if event.kind == UNDELIVERED:
        return note_undelivered(executor, event)
    if event.kind == LOST:
        return count_lost(executor, session.peer, event.count)
    return drop_unfit(executor, event)


cdef int add_monitor(Executor executor, PeerEvent event, Connection connection) except -1:
    """A process of the peer monitors one of this node."""
    cdef Notice notice
    cdef MonitorStatus status = executor.monitors.add_for_peer(
        connection, event.about, event.to
    )
    if status == NO_PROCESS:
        # In its turn: what a life that has ended sent may stand in the queue.
        notice = Notice.__new__(Notice)
        notice.connection = connection
        notice.monitoring = event.about
        notice.msg = executor.protocol.Down(event.to, executor.protocol.DownReason("no_process"))
        executor.run_queue.put(new_envelope(executor.pid, notice, None, None))
    elif status == TOO_MANY:
        connection.frame_encoder.write_down(
            event.about, event.to, executor.protocol.DOWN_CODES["refused"], 0,
            f"{executor.node} lets a peer monitor no more than "
            f"Limits.peer_watches_max, {executor.monitors.peer_pairs_max}",
        )
        executor.routes.answered(connection)
    return 0


cdef int remove_monitor(Executor executor, PeerEvent event, Connection connection) except -1:
    return executor.monitors.remove_for_peer(connection, event.about, event.to)


cdef int deliver_down(Executor executor, PeerEvent event, Connection connection) except -1:
    """A process of the peer ended that one of this node monitors, if it still does."""
    cdef Entry entry = executor.monitors.take_down(connection, event.to, event.about)
    if entry is None:
        return 0
    kind = executor.protocol.DOWN_KINDS[event.why]
    # At once: what the next life of that name has sent may stand in the queue already.
    return executor.notify_now(
        entry,
        executor.protocol.Down(
            event.about, executor.protocol.DownReason(kind, event.detail), event.life
        ),
    )


cdef int note_undelivered(Executor executor, PeerEvent event) except -1:
    """An envelope became a dead letter at the peer."""
    protocol = executor.protocol
    reason = protocol.UNDELIVERED_REASONS[event.why]
    bounce = protocol.Bounced(event.session.peer, event.to, reason, event.correlation_id)
    cdef PyObject* found = executor.table.find(event.to)
    if found is not NULL and (<Entry>found).kind == CALLBACK:
        executor.notify(<Entry>found, bounce, event.correlation_id)
    return executor.notify_all(executor.letter_subscribers, bounce)


cdef int drop_unfit(Executor executor, PeerEvent event) except -1:
    """An envelope came that is for nobody here, or that this node cannot build."""
    cdef Envelope envelope = new_envelope(event.to, None, event.about, event.correlation_id)
    reasons = executor.protocol.DeadLetterReason
    if event.kind == EVENT_UNDECODABLE:
        executor.hooks.undecodable(envelope, event.detail)
        executor.drop(envelope, reasons.UNDECODABLE)
        if event.about is not None and event.correlation_id is None:
            # The one dead letter whose sender is told in any case: it is a defect of theirs.
            executor.send_undelivered(envelope, reasons.UNDECODABLE)
    else:
        executor.drop(envelope, reasons.REFUSED)
    return 0


cdef int send_down(Executor executor, Connection connection, Pid monitoring, object down) except -1:
    """A process of this node ended that one of the peer's monitors."""
    if executor.routes.find(monitoring.node) is not connection:
        # Whom it concerned is down for this node.
        return 0
    reason = down.reason
    why = executor.protocol.DOWN_CODES.get(reason.kind, 1)
    connection.frame_encoder.write_down(monitoring, down.pid, why, down.life, reason.detail)
    return executor.routes.answered(connection)


cdef int count_lost(Executor executor, NodeId peer, object count) except -1:
    """A peer dropped envelopes that were for this node, because its queue was full."""
    cdef Entry entry
    reason = executor.protocol.DeadLetterReason.LOST
    executor.dead_letters[reason] = executor.dead_letters.get(reason, 0) + count
    for entry in list(executor.letter_subscribers.values()):
        # At once: what stands in the queue came after the gap, and must not be seen before.
        executor.notify_now(entry, executor.protocol.Lost(peer, count))
    return 0
